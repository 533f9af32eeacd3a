// What services are written with; see ../notification.mjs and docs/protocol.md.

import { randomUUID } from 'node:crypto'
import { hostname } from 'node:os'
import { ErrorReply } from '@redis/client'
import { Broker, Patience } from './broker.mjs'
import { addedMs, Inbox } from './inbox.mjs'
import { encodePayload, Malformed, parse } from './json.mjs'
import { done, failed, isId, kindOf, Newer, newerFormat, readCommand, refusal, sealedWith, verdict } from './messages.mjs'
import { delay, isOutage } from './outage.mjs'
import { Store } from './store.mjs'
import { ServiceError } from './urls.mjs'

/** How often to call a handler that throws anything but Reject, before the reply says `unknown`. */
const TRIES = 3
/** How many processes may begin a command and die before the reply says `unknown`. */
const MAX_TAKEOVERS = 5
/** How often the undo of a command may begin before a person has to decide. */
const MAX_UNDOS = 10

/** How long the lease is renewed for a handler whose answer is always waited for. */
const LONGEST_MS = 24 * 3600 * 1000
/** How long a process that is to end still tries to send its answers, while Redis is away. */
const GRACE_MS = 25_000
/** How often to look whether there is a store. */
const NO_STORE_MS = 500

/** Thrown by a handler: the step fails, and no effect of it remains. `error` is any JSON value. */
export class Reject extends Error {
  constructor(error) {
    super(typeof error === 'string' ? error : 'rejected')
    this.error = error
  }
}

export class Service {
  #commands = new Map()
  #compensations = new Map()

  /**
   * @param name what sagas call the service
   * @param leaseMs how long a process that is dead may hold a command before another takes it over
   * @param concurrency how many commands one process works on at once
   */
  constructor(name, { leaseMs = 30_000, concurrency = 8 } = {}) {
    // Without a colon, which ends the name in the names of keys.
    if (!isId(name) || name.includes(':')) throw new ServiceError(`${name} cannot be the name of a service`)
    Object.assign(this, { name, leaseMs, concurrency })
  }

  /**
   * Declare a command's handler, (params, context) -> result, and the compensation that undoes it; null: none.
   *
   * In params and results an integer that a Number cannot hold is a BigInt; see json.mjs.
   */
  command(name, { compensation }, handler) {
    this.#checkNew(name)
    this.#commands.set(name, { handler, compensation })
  }

  /** Declare the handler of a compensation: (params of the step that it undoes, context). */
  compensation(name, handler) {
    this.#checkNew(name)
    this.#compensations.set(name, handler)
  }

  handler(name, compensating) {
    return compensating ? this.#compensations.get(name) : this.#commands.get(name)?.handler
  }

  /** What undoes a transaction: what its step says, or else what is declared; null: nothing; undefined: neither says. */
  undoOf(command) {
    return command.undoneBy !== undefined ? command.undoneBy : this.#commands.get(command.type)?.compensation
  }

  get compensations() {
    return [...this.#compensations.keys()]
  }

  publishes() {
    for (const [name, { compensation }] of this.#commands) {
      if (compensation !== null && !this.#compensations.has(compensation)) {
        throw new ServiceError(`${name} of service ${this.name} is undone by ${compensation}, which has no handler`)
      }
    }
    if (!this.#commands.size) throw new ServiceError(`service ${this.name} declares no command`)
    return Object.fromEntries([...this.#commands].map(([name, { compensation }]) => [name, compensation]))
  }

  /**
   * Work until SIGTERM or SIGINT, then answer the commands in flight. An error that a person can fix becomes one line
   * on stderr, and exit code 1.
   */
  async run(url = process.env.REDIS_URL) {
    const stop = new AbortController()
    for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => stop.abort())
    let broker
    try {
      const publishes = this.publishes()
      broker = new Broker(url)
      await new Runner(this, publishes, broker, stop).run()
    } catch (error) {
      if (!(error instanceof ServiceError || error instanceof ErrorReply)) throw error
      process.stderr.write(`${printable(`service ${this.name}: ${error.message}`)}\n`)
      process.exitCode = 1
    } finally {
      broker?.close()
    }
  }

  #checkNew(name) {
    if (!isId(name)) throw new ServiceError(`service ${this.name}: ${name} cannot be the name of a command`)
    if (this.#commands.has(name) || this.#compensations.has(name)) {
      throw new ServiceError(`service ${this.name} declares ${name} twice`)
    }
  }
}

/** Lets many commands run at once, or one alone. */
class Gate {
  #running = 0
  #alone = 0 // how many wait to run alone, or do
  #waiting = new Set() // of functions that wake those who wait

  /** Wait for the turn of a command. False: it has not come within `ms`; only for one that runs alone. */
  async enter(alone, ms) {
    if (!alone) {
      while (this.#alone) await this.#change()
    } else {
      this.#alone += 1
      for (const until = Date.now() + ms; this.#running; ) {
        if (Date.now() < until) {
          await this.#change(until - Date.now())
        } else {
          this.#end(alone)
          return false
        }
      }
    }
    this.#running += 1
    return true
  }

  leave(alone) {
    this.#running -= 1
    this.#end(alone)
  }

  #end(alone) {
    if (alone) this.#alone -= 1
    for (const wake of this.#waiting) wake()
    this.#waiting.clear()
  }

  async #change(ms) {
    let timer
    await new Promise((wake) => {
      this.#waiting.add(wake)
      if (ms !== undefined) timer = setTimeout(wake, ms)
    })
    clearTimeout(timer)
  }
}

/** One process of a service. Any number of them share the work. */
class Runner {
  #service
  #broker
  #store
  #consumer
  #inboxes = [] // one that reads all partitions; on a cluster, where a call keeps to one of them, one for each
  #held = new Set() // the places of the entries in flight here
  #asked = 0 // how many commands the readings under way may bring
  #patience
  #telling // the patience of what must be told: it lasts beyond the stop
  #say
  #stop
  #fault
  #left = new Set() // what was said of commands that are left to another release
  #gate = new Gate()
  #inFlight = new Set() // the commands that are being worked on, as promises …
  #latest = new Map() // … and the latest promise of each record

  constructor(service, publishes, broker, stop) {
    // Never used twice: another consumer with this name would take over its commands.
    this.#consumer = `${hostname()}-${process.pid}-${randomUUID().slice(0, 8)}`
    this.#say = (what) => process.stderr.write(`${printable(`service ${service.name} ${this.#consumer}: ${what}`)}\n`)
    this.#service = service
    this.#broker = broker
    this.#stop = stop
    this.#patience = new Patience(this.#say, stop.signal, broker)
    const over = new AbortController()
    const end = () => setTimeout(() => over.abort(), GRACE_MS).unref()
    stop.signal.addEventListener('abort', end, { once: true })
    this.#telling = this.#patience.until(over.signal)
    this.#store = new Store({
      ...{ broker, publishes, say: this.#say, fail: (error) => this.#end(error) },
      ...{ service: service.name, compensations: service.compensations, prefix: prefixOf(process.env) },
    })
  }

  async run() {
    this.#say('started')
    try {
      await this.#patience.patiently(() => this.#broker.recognise(this.#say))
      while (!this.#stop.signal.aborted) await this.#serveAll(await this.#partitions())
    } catch (error) {
      this.#end(error)
    }
    await Promise.all(this.#inFlight)
    await Promise.all(this.#inboxes.map((inbox) => inbox.leave()))
    if (this.#fault) throw this.#fault
  }

  /** The tags of the partitions, once there is a store; none at the end. */
  async #partitions() {
    for (let isTold = false; !this.#stop.signal.aborted; isTold = true) {
      const tags = await this.#patience.patiently(() => this.#store.tags())
      if (tags !== null) return tags
      if (!isTold) this.#say(`there is no store ${this.#store.prefix} yet; waiting for a worker, which makes it`)
      await this.#patience.pause(NO_STORE_MS)
    }
    return []
  }

  /** Work until the end, or until the store has other partitions. */
  async #serveAll(tags) {
    const groups = this.#broker.isCluster ? tags.map((tag) => [tag]) : [tags]
    this.#inboxes = groups.map(
      (group) =>
        new Inbox({
          ...{ reader: this.#broker.reader(), writer: this.#broker.writer, store: this.#store, tags: group },
          ...{ service: this.#service.name, leaseMs: this.#service.leaseMs },
          ...{ consumer: this.#consumer, held: this.#held, say: this.#say },
        }),
    )
    await Promise.all(this.#inboxes.map((inbox) => this.#serveFrom(inbox)))
    for (const { reader } of this.#inboxes) this.#broker.leave(reader)
  }

  async #serveFrom(inbox) {
    while (!this.#stop.signal.aborted && !inbox.isGone) {
      const free = this.#service.concurrency - this.#inFlight.size
      if (free <= 0) {
        await Promise.race(this.#inFlight)
        continue
      }
      // Each of several readings may bring one: so a process may have a few more in hand than it is to work on at once.
      const count = Math.max(1, Math.ceil((free - this.#asked) / this.#inboxes.length))
      for (const entry of await this.#read(inbox, count)) {
        const work = this.#work(entry)
          .catch((error) => this.#end(error)) // an outage: stop, and leave the command to another process
          .finally(() => this.#inFlight.delete(work))
        this.#inFlight.add(work)
      }
    }
  }

  #end(error) {
    if (!isOutage(error)) this.#fault ??= error
    this.#stop.abort()
  }

  async #read(inbox, count) {
    this.#asked += count
    try {
      return await this.#patience.patiently(async () => {
        try {
          return await inbox.read(count)
        } catch (error) {
          inbox.recover()
          throw error
        }
      })
    } catch (error) {
      this.#end(error)
      return []
    } finally {
      this.#asked -= count
    }
  }

  async #work(entry) {
    this.#held.add(entry.place)
    try {
      const command = readCommand(entry.fields, addedMs(entry))
      await this.#afterOthers(command.record, () => this.#serve({ entry, command }))
    } catch (error) {
      if (error instanceof Newer) return await this.#leave(entry, error.message)
      const reason = error instanceof Malformed ? error.message : unrecordable(error)
      if (reason === undefined) throw error
      await this.#patience.patiently(() => entry.inbox.quarantine(entry, reason))
    } finally {
      this.#held.delete(entry.place)
    }
  }

  /** Wait until other deliveries of the same command are answered here: then there is a record to answer from. */
  async #afterOthers(record, call) {
    const mine = (this.#latest.get(record) ?? Promise.resolve()).catch(() => {}).then(call)
    this.#latest.set(record, mine)
    try {
      await mine
    } finally {
      if (this.#latest.get(record) === mine) this.#latest.delete(record)
    }
  }

  async #serve({ entry, command }) {
    // Looked up even if it comes for the first time: another delivery of it may have been answered.
    const { nowMs, record, tombstone } = await this.#patience.patiently(() => entry.inbox.recall(entry, command))
    const format = newerFormat(record)
    if (format) return this.#leave(entry, `met format ${format}, which only a newer release knows`)
    const { reply: known, undo } = verdict(command, { record, tombstone, again: entry.again })
    if (known && !undo) return this.#answer(entry, known, 'final')
    // If a process that had taken it over has died, it runs alone: so what runs beside it does not die with it.
    const alone = entry.again && (await this.#patience.patiently(() => entry.inbox.begun(entry, command))) > 0
    if (!(await this.#gate.enter(alone, this.#service.leaseMs))) return undefined // others take it over
    try {
      if (undo) return await this.#overrule(entry, command, undefined, known)
      return await this.#run(entry, command, nowMs, record)
    } finally {
      this.#gate.leave(alone)
    }
  }

  async #run(entry, command, nowMs, record) {
    if (nowMs > command.notAfterMs) nowMs = await entry.inbox.freshTime(nowMs)
    if (nowMs > command.notAfterMs) {
      const late = `${command.type} came ${nowMs - command.notAfterMs} ms too late, and was not begun`
      // If nobody had it before, it was certainly not begun, and leaves nothing in doubt.
      return this.#answer(entry, failed(command, JSON.stringify(late), true), entry.again ? 'unknown' : 'final')
    }
    if (await this.#isElsewhere(command)) return this.#leave(entry, `has no ${command.type}, which another release has`)
    if (sealedWith(command)) return this.#leaveSealed(entry, command)
    const reply = (await this.#deadly(entry, command)) ?? (await this.#handle(entry, command, command.notAfterMs))
    if (reply) return this.#tell(entry, reply, record)
    // Stop, and leave the command to another process. If others had it before the handler ended, they may have answered
    // it before the effect was there: then only this process can say that nobody knows.
    if (await this.#telling.patiently(() => entry.inbox.holds(entry))) {
      // It did not die of it.
      return entry.takenOver ? this.#telling.patiently(() => entry.inbox.count(entry, command, 'takeovers', -1)) : undefined
    }
    const lost = `${command.type} was begun by a process that lost it to another one`
    return this.#tell(entry, this.#giveUp(command, lost), record)
  }

  /** Answer with the reply of a handler. If the step was refused meanwhile, undo what the handler did. */
  async #tell(entry, reply, record) {
    const { command } = reply
    const overruled = await this.#answer(entry, reply, kindOf(reply), record)
    if (overruled > 0) return this.#overrule(entry, command, reply.result, refusal(command))
    if (overruled === 0) return undefined
    this.#say(`${where(command)} was done after it was refused, and others had answered it: sent again, to be undone`)
    return this.#telling.patiently(() => entry.inbox.sendAgain(entry, reply.result))
  }

  #answer(entry, reply, kind, seen) {
    return this.#telling.patiently(() => entry.inbox.answer(entry, reply, kind, seen))
  }

  /** The reply in place of the handler, if too many processes have died of the command. */
  async #deadly(entry, command) {
    if (!entry.takenOver) return undefined
    const times = await this.#patience.patiently(() => entry.inbox.count(entry, command, 'takeovers'))
    if (times < MAX_TAKEOVERS) return undefined
    return this.#giveUp(command, `${times} processes took ${command.type} and did not live to answer it`)
  }

  /**
   * Undo the effect that a command may have had although it must not be done, and answer it. If the undo does not
   * succeed, the command stays pending: the process that takes it over tries again.
   */
  async #overrule(entry, command, result, reply) {
    const name = await this.#undoOf(command)
    if (name !== null) {
      if (await this.#isElsewhere({ type: name, compensating: true })) {
        return this.#leave(entry, `has no ${name}, which another release has`)
      }
      // What this process has returned itself is not sealed.
      if (sealedWith(command)) return this.#leaveSealed(entry, command)
      this.#say(`${where(command)} must not be done: undoing what may have come of it`)
      if (entry.again) {
        const times = await this.#patience.patiently(() => entry.inbox.count(entry, command, `undos/${entry.id}`))
        if (times >= MAX_UNDOS) {
          const what = `may have been done after it was refused, and could not be undone ${times} times`
          await this.#patience.patiently(() => entry.inbox.quarantine(entry, `${command.type} ${what}`))
          return
        }
      }
      // Under a separate key: the step's compensation has run under the usual one, and has found nothing.
      const key = `${command.sagaId}/${command.step}/compensation/${entry.id}`
      const undoing = { ...command, type: name, compensating: true, key }
      if (result !== undefined) undoing.result = parse(result)
      const undone = await this.#handle(entry, undoing, Infinity)
      if (!undone?.ok) return
    }
    await this.#answer(entry, reply, 'final')
  }

  /** This runtime has no codec: a handler must not take a sealed value for what is in it. */
  async #leaveSealed(entry, command) {
    const why = `met a value that is sealed with key ${sealedWith(command)}, and opens none`
    if (!this.#left.has(why)) this.#say(`${why}: leaves such commands, unanswered, to processes that can`)
    this.#left.add(why)
    await this.#patience.patiently(() => entry.inbox.handBack(entry))
  }

  /** Have a process of another release take a command over. Says why, once. */
  async #leave(entry, why) {
    if (!this.#left.has(why)) this.#say(`${why}: leaves all of it to that release`)
    this.#left.add(why)
    await this.#patience.patiently(() => entry.inbox.handBack(entry))
  }

  /** Whether another release of the service has this command or compensation, and this one has not. */
  async #isElsewhere({ type, compensating }) {
    if (this.#service.handler(type, compensating)) return false
    const published = await this.#patience.patiently(() => this.#store.published())
    return isId(type) && (compensating ? [...published.values()].includes(type) : published.has(type))
  }

  /** What undoes a transaction: as the step or this process says, or else as the service publishes; null: nothing. */
  async #undoOf(command) {
    if (command.undoneBy !== undefined) return command.undoneBy
    const own = this.#service.undoOf(command)
    if (own) return own
    // A process of another release may have done it. So that this one needs no undo, or does not know the command, says
    // nothing of what came of it. Nor does it if no release publishes it: that may have been deleted.
    const published = await this.#patience.patiently(() => this.#store.published())
    const undo = published.get(command.type)
    if (isId(undo) && undo !== command.type) return undo
    return undo === '' || own === null ? null : undefined
  }

  /** Run a handler, and renew the lease meanwhile: until its answer is not waited for any more, at most for a day. */
  async #handle(entry, command, untilMs) {
    const { inbox } = entry
    const end = Math.min(untilMs, inbox.clock() + LONGEST_MS)
    const renewing = setInterval(() => {
      if (inbox.clock() < end) inbox.renew(entry).catch(() => {}) // if Redis is away, the next one may succeed
    }, this.#service.leaseMs / 4)
    try {
      return await this.#reply(entry, command)
    } finally {
      clearInterval(renewing)
    }
  }

  /** The reply to a command; undefined: the process stops, and leaves it to another. */
  async #reply(entry, command) {
    const handler = this.#service.handler(command.type, command.compensating)
    if (!handler) {
      const known = command.compensating ? 'compensation' : 'command'
      const error = `unknown_command: service ${this.#service.name} has no ${known} ${command.type}`
      // A process of another release may have begun it; what that release publishes can be deleted.
      return failed(command, JSON.stringify(error), entry.again || command.attempt > 1)
    }
    for (let tries = 1; ; ) {
      try {
        // If the handler cannot reach its own Redis, that says nothing about the step.
        return await this.#patience.patiently(() => callHandler(handler, command, entry.inbox.clock))
      } catch (error) {
        if (isOutage(error)) return undefined
        if (error instanceof Malformed) {
          return this.#giveUp(command, `the result of ${command.type} is unusable: ${error.message}`)
        }
        this.#say(`${where(command)} threw ${describe(error)} (try ${tries} of ${TRIES})`)
        if (tries === TRIES) return this.#giveUp(command, describe(error))
        await this.#patience.pause(delay(tries))
        if (this.#stop.signal.aborted) return undefined
        tries += 1
      }
    }
  }

  #giveUp(command, why) {
    this.#say(`the outcome of ${where(command)} is unknown: ${why}`)
    return failed(command, JSON.stringify(printable(why)), true)
  }
}

/** What the names of all keys of the store begin with. */
function prefixOf(environment) {
  const prefix = environment.SAGASTREAM_PREFIX || 'saga'
  if (!/^[a-z0-9_-]{1,32}$/.test(prefix)) {
    throw new ServiceError('SAGASTREAM_PREFIX must be 1 to 32 characters of a-z 0-9 _ -')
  }
  return prefix
}

/**
 * Call a handler once. Reject becomes a reply; every other exception propagates. Malformed: its result is not JSON.
 * @param clock the time by the clock of Redis, in ms
 */
async function callHandler(handler, command, clock) {
  const { sagaId, step, key, transactionKey, attempt, result, notAfterMs, traceparent, tracestate } = command
  const deadline = notAfterMs === Infinity ? null : new Date(notAfterMs)
  // With the API of OpenTelemetry, a handler's spans hang under the saga's if it runs `context.with(…, …)` with
  // `propagation.extract(ROOT_CONTEXT, { traceparent, tracestate })`. Both are undefined if the saga belongs to no trace.
  const context = { sagaId, step, key, transactionKey, attempt, result, deadline, traceparent, tracestate }
  // For how long the answer is still waited for, in ms; Infinity: for good. The clock of this machine may be wrong.
  Object.defineProperty(context, 'remainingMs', { get: () => Math.max(0, notAfterMs - clock()) })
  let value
  try {
    value = await handler(command.params, context)
  } catch (error) {
    if (!(error instanceof Reject)) throw error
    return failed(command, encodeError(error.error))
  }
  if (command.compensating || value === undefined || value === null) return done(command)
  return done(command, encodePayload(value))
}

function encodeError(error) {
  try {
    return encodePayload(error)
  } catch {
    return JSON.stringify(describe(error))
  }
}

/** Why the answer to a command cannot be recorded, if this is what the error of a script says. */
function unrecordable(error) {
  const key = error instanceof ErrorReply && /^WRONGTYPE (\S+) is not a hash/.exec(error.message)?.[1]
  return key ? `its answer cannot be recorded: ${key} is not a hash; delete that key, then replay this entry` : undefined
}

function where(command) {
  return `${command.type} of saga ${command.sagaId}, step ${command.step}`
}

function describe(error) {
  try {
    return printable(String(error).slice(0, 500))
  } catch {
    return 'an error that cannot be shown' // it is the user's, and its toString may do anything
  }
}

/** A text on one line. Characters that act on a terminal or hide are escaped. */
function printable(text) {
  return text.replace(/[\p{C}\u2028\u2029]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`)
}
