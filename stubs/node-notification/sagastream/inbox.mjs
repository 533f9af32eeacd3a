// A service's commands: one consumer of its group reads and answers them.

import { setTimeout as sleep } from 'node:timers/promises'
import { ServiceError } from './broker.mjs'
import { isId, quarantineFields, replyFields } from './messages.mjs'

/** The version of the keys, streams and scripts that this knows. */
const PROTOCOL = '2'
const HOUR_MS = 3600n * 1000n
/** How long a service's record of what it did outlives the last write to its hash, in seconds. */
const DONE_KEPT_S = 2 * 24 * 3600
/** How long a read waits for new commands; so also how long a process may take to notice that it shall stop. */
const BLOCK_MS = 500
/** How often to look for abandoned commands, forget consumers that are gone, and publish again. */
const CLAIM_EVERY_MS = 2000
const FORGET_EVERY_MS = 30_000
const PUBLISH_EVERY_MS = 30_000
/** How often to look whether there is a store. */
const NO_STORE_MS = 500
/** How long a consumer has not asked when it is forgotten. */
const GONE_MS = 60_000
/** The idle time of an entry that is handed back: longer than any lease. */
const HANDED_BACK_MS = 24 * 3600 * 1000
/** The most that a count can have come to: far more than a command is tried. */
const MOST_COUNTED = 999_999
/** How much longer than the look at abandoned commands the rest after it is, and how long at most. */
const REST = 20
const LONGEST_REST_MS = 10_000
/** An id that no entry comes after. */
const AFTER_ALL = '18446744073709551614-0'
const PAGE = 128

export class Inbox {
  #joined = false
  #partitions = [] // one for each partition of the store: the names of its keys
  #own = new Map() // by stream: from which id to go on reading the entries that this consumer holds
  #nextClaim = 0
  #claimBegan = 0
  #nextForget = 0
  #nextPublish = 0
  #deleted = false // whether a group was deleted since it last joined
  #others = new Set() // the keys that hold something else

  /**
   * @param reader a connection that waits for commands
   * @param writer another, for everything else
   * @param publishes the service's commands, and what undoes each
   * @param compensations the names of all its compensations
   * @param prefix what the names of all keys of the store begin with
   */
  constructor({ reader, writer, service, consumer, leaseMs, publishes, compensations, prefix, say }) {
    Object.assign(this, { reader, writer, service, consumer, leaseMs, publishes, compensations, prefix, say })
    this.held = new Set() // the places of the entries in flight here
    this.toldNoStore = false
  }

  /** Start the next read from the beginning: an answer may have been lost, the store may have changed. */
  recover() {
    this.#joined = false
  }

  /** At most `count` entries to work on: own pending ones, abandoned ones, or new ones. */
  async read(count) {
    try {
      if (!this.#joined) await this.#join()
      if (!this.#joined) return []
      if (Date.now() >= this.#nextPublish) await this.#publish() // somebody may have deleted it
      while (this.#own.size) {
        const entries = await this.#readOwn(count)
        if (entries.length) return entries
      }
      if (Date.now() >= this.#nextClaim) {
        if (this.#partitions.every(({ claimAfter }) => claimAfter === '-')) this.#claimBegan = Date.now()
        const entries = await this.#claim(count)
        if (entries.length) return entries
        // However much of it is for another release: it costs little of this process's time.
        const rest = Math.min(REST * (Date.now() - this.#claimBegan), LONGEST_REST_MS)
        this.#nextClaim = Date.now() + Math.max(rest, Math.min(this.leaseMs / 2, CLAIM_EVERY_MS))
        await this.#showUp()
      }
      if (Date.now() >= this.#nextForget) {
        this.#nextForget = Date.now() + FORGET_EVERY_MS
        const forgotten = ({ commands }) => this.writer.script('forget', [commands], [this.service, GONE_MS])
        await Promise.all(this.#partitions.map(forgotten))
      }
      const each = Math.ceil(count / this.#partitions.length)
      const answer = await this.#xreadgroup(this.reader, this.#all('>'), 'COUNT', each, 'BLOCK', BLOCK_MS)
      return await this.#whatIsNew(this.#entries(answer))
    } catch (error) {
      if (!/^(NOGROUP|UNBLOCKED the stream key no longer exists)/.test(error.message)) throw error
      this.say(`a stream or group of the commands of ${this.service} was deleted; created it again`)
      this.#deleted = true
      this.recover()
      return []
    }
  }

  /** What is recorded about a command, and the time. For a compensation it leaves a tombstone for the step. */
  async recall({ partition }, command) {
    const args = [DONE_KEPT_S, 1, command.record, command.tombstone, command.compensating ? 1 : 0]
    const [nowMs, known] = await this.writer.script('recall', [partition.done(command)], args)
    const [, record, tombstone] = known ?? [1, null, 0] // usually nothing is known
    return { nowMs, record, tombstone: tombstone === 1 }
  }

  /**
   * Record, reply, acknowledge. Returns 0; or, if the command was overruled and nothing was written: 1: undo what was
   * done; -1: the same, but others may have answered it. Then call `sendAgain`, so that something stands for the undo.
   */
  async answer(entry, reply, kind, seen) {
    const { command } = reply
    const tombstone = command.compensating ? '' : command.tombstone
    const answer = [entry.id, 2, 4, command.record, tombstone, seen ?? '', kind, reply.result ?? reply.error ?? '']
    const words = [...answer, ...counted(replyFields(reply))]
    const overruled = await this.#answer(entry.partition, words, entry.partition.done(command))
    return overruled[0] ?? 0
  }

  /** Add a command again, as one that was delivered before: whoever reads it undoes it. */
  async sendAgain(entry, result) {
    const fields = { ...entry.fields, replayed: '1', ...(result === undefined ? {} : { result }) }
    await this.writer.evenIfFull('XADD', entry.partition.commands, '*', ...Object.entries(fields).flat())
  }

  /** Renew the lease on an entry, if nobody has taken it over. */
  async renew(entry) {
    await this.writer.script('hold', [entry.partition.commands], [this.service, this.consumer, 0, entry.id])
  }

  /** Whether nobody has taken an entry over, or answered it. */
  async holds(entry) {
    const of = [entry.partition.commands, this.service, entry.id, entry.id, 1, this.consumer]
    return (await this.writer.call('XPENDING', ...of)).length > 0
  }

  async quarantine(entry, reason) {
    this.say(`quarantined the entry ${entry.id}: ${reason}`)
    const fields = quarantineFields(entry, entry.partition.commands, reason)
    await this.#answer(entry.partition, [entry.id, 3, 0, '', '', '', 'final', '', ...counted(fields)])
  }

  /** How often the beginning of a command, or of its undo, was counted before. */
  async begun({ partition, id }, command) {
    const fields = ['takeovers', `undos/${id}`].map((what) => `${command.record}/${what}`)
    const counted = await this.writer.call('HMGET', partition.done(command), ...fields)
    return Math.max(...counted.map((times) => Number.parseInt(times, 10) || 0))
  }

  /** Count one more of `what` for a command that others held before; returns the count. -1 takes it back. */
  async count({ partition }, command, what, by = 1) {
    const counter = [partition.done(command), `${command.record}/${what}`]
    const least = Math.max(by, 0)
    const counted = this.writer.evenIfFull('HINCRBY', ...counter, by)
    const times = await counted.catch((error) => {
      if (/not an integer|overflow/.test(error.message)) return -1
      throw error
    })
    const isPlausible = times >= least && times <= MOST_COUNTED
    if (!isPlausible) await this.writer.evenIfFull('HSET', ...counter, least) // it was damaged, which counts as none
    await this.writer.call('EXPIRE', partition.done(command), DONE_KEPT_S)
    return isPlausible ? times : least
  }

  /** Have a process of another release take this over at once. */
  async handBack(entry) {
    const held = [entry.partition.commands, this.service, this.consumer, 0, entry.id]
    await this.writer.call('XCLAIM', ...held, 'IDLE', HANDED_BACK_MS, 'JUSTID')
  }

  /** What all releases of the service publish: field -> value. */
  async published() {
    const key = `${this.prefix}:services:${this.service}`
    const words = await this.#unlessOther([], key, this.writer.call('HGETALL', key))
    const fields = new Map()
    for (let at = 0; at < words.length; at += 2) fields.set(String(words[at]), String(words[at + 1]))
    return fields
  }

  /** Leave the group, and leave to others what is still held. */
  async leave() {
    const left = ({ commands }) => this.writer.script('leave', [commands], [this.service, this.consumer])
    await Promise.all(this.#partitions.map(left))
  }

  #answer({ commands, replies, quarantine }, args, ...records) {
    const keys = [commands, replies, quarantine, ...records]
    return this.writer.script('answer', keys, [this.service, DONE_KEPT_S, this.consumer, ...args])
  }

  async #join() {
    const tags = await this.#tags()
    if (tags === null && !this.#partitions.length) {
      if (!this.toldNoStore) this.say(`there is no store ${this.prefix} yet; waiting for a worker, which makes it`)
      this.toldNoStore = true
      await sleep(NO_STORE_MS)
      return
    }
    // If the store was emptied meanwhile, a worker makes it again as it was.
    if (tags !== null) {
      const known = new Map(this.#partitions.map((one) => [one.commands, one]))
      const named = tags.map((tag) => partition(this.prefix, tag, this.service))
      this.#partitions = named.map((one) => known.get(one.commands) ?? one)
    }
    await this.#publish()
    await Promise.all(this.#partitions.map(({ commands }) => this.#makeGroup(commands)))
    if (this.#deleted) {
      // Whoever has made the group again: it gives, as new, what it gave before.
      const untilMs = await this.#now()
      for (const one of this.#partitions) one.untilMs = untilMs
      this.#deleted = false
    }
    this.#own = this.#all('0')
    this.#nextClaim = 0
    this.#joined = true
  }

  /** The tags of the partitions; null: there is no store yet. */
  async #tags() {
    const store = `${this.prefix}:store`
    const found = await this.writer.call('HMGET', store, 'protocol', 'partitions', 'tags')
    const [protocol, partitions, tags] = found.map((value) => value && String(value))
    if (partitions === null && protocol === null) return null
    if (protocol !== PROTOCOL) {
      throw new ServiceError(`${store} has protocol ${protocol ?? '1'}; this service knows ${PROTOCOL}`)
    }
    return tags.split(' ')
  }

  async #makeGroup(stream) {
    try {
      // From 0: what was sent before anybody read is for this group too.
      const words = ['XGROUP', 'CREATE', stream, this.service, '0', 'MKSTREAM']
      await this.writer.script('even_if_full', [stream], words)
    } catch (error) {
      if (!error.message.startsWith('BUSYGROUP')) throw error
    }
  }

  /** The streams of all partitions, each with this id. */
  #all(id) {
    return new Map(this.#partitions.map(({ commands }) => [commands, id]))
  }

  /** The answer of Redis, or `otherwise` if the key holds something of another type, which is said once. */
  async #unlessOther(otherwise, key, answer) {
    try {
      return await answer
    } catch (error) {
      if (!error.message.startsWith('WRONGTYPE')) throw error
      if (!this.#others.has(key)) this.say(`cannot publish its commands: ${key} holds something else; delete it`)
      this.#others.add(key)
      return otherwise
    }
  }

  async #publish() {
    const before = await this.published()
    // If another release undoes a command, this one does not take that away: sagas of the other may be under way.
    const isKept = ([name, undo]) => undo === null && isId(before.get(name)) && before.get(name) !== name
    const said = Object.entries(this.publishes).filter((pair) => !isKept(pair))
    const isNew = ([name, undo]) => undo === null && !before.has(name)
    const pairs = said.filter((pair) => !isNew(pair)).map(([name, undo]) => [name, undo ?? ''])
    const named = pairs.map(([, undo]) => undo)
    // What no command names is a value too: then another release knows that it is not unknown to all.
    for (const undo of [...this.compensations, ...Object.keys(this.publishes).map((name) => before.get(name))]) {
      if (isId(undo) && !named.includes(undo)) pairs.push([`(${undo})`, undo])
    }
    const services = `${this.prefix}:services`
    await this.#unlessOther(0, services, this.writer.evenIfFull('SADD', services, this.service))
    const key = `${this.prefix}:services:${this.service}`
    if (pairs.length) await this.#unlessOther(0, key, this.writer.evenIfFull('HSET', key, ...pairs.flat()))
    // Another release may say at this moment what undoes it.
    for (const [name] of said.filter(isNew)) {
      await this.#unlessOther(0, key, this.writer.evenIfFull('HSETNX', key, name, ''))
    }
    this.#nextPublish = Date.now() + PUBLISH_EVERY_MS
  }

  #xreadgroup(connection, after, ...options) {
    const from = ['STREAMS', ...after.keys(), ...after.values()]
    return connection.call('XREADGROUP', 'GROUP', this.service, this.consumer, ...options, ...from)
  }

  async #readOwn(count) {
    const answer = await this.#xreadgroup(this.writer, this.#own, 'COUNT', count)
    this.#own = new Map()
    for (const [name, page] of answer ?? []) {
      const stream = String(name)
      if (page.length) this.#own.set(stream, String(page.at(-1)[0]))
      const deleted = page.filter(([, fields]) => !fields).map(([id]) => String(id))
      if (deleted.length) {
        this.say(`${deleted.length} commands were deleted before they were answered: ${deleted.slice(0, 5)}`)
        await this.writer.call('XACK', stream, this.service, ...deleted)
      }
    }
    return this.#entries(answer, { again: true }).filter(({ place }) => !this.held.has(place))
  }

  /** What others have held for longer than the lease. Not XAUTOCLAIM: it would also renew what is in flight here. */
  async #claim(count) {
    const claimed = []
    for (const one of this.#partitions) {
      const room = count - claimed.length
      if (room > 0) claimed.push(...(await this.#claimOf(one, room)))
    }
    return claimed
  }

  async #claimOf(partition, count) {
    const stream = partition.commands
    const idle = ['IDLE', this.leaseMs, partition.claimAfter, '+', PAGE]
    const pending = await this.writer.call('XPENDING', stream, this.service, ...idle)
    const abandoned = pending.map(([id]) => String(id)).filter((id) => !this.held.has(`${stream} ${id}`))
    const ids = abandoned.slice(0, count)
    // Go on behind them: what is handed back to another release must not hide what comes after it.
    partition.claimAfter = ids.length ? `(${ids.at(-1)}` : '-'
    if (!ids.length) return []
    const claim = [stream, this.service, this.consumer, this.leaseMs, ...ids]
    const page = await this.writer.call('XCLAIM', ...claim)
    return this.#entries([[stream, page]], { again: true, takenOver: true })
  }

  /** Show that this is alive. Redis 7.0 does not count a read that finds nothing, unless it asks for own entries. */
  #showUp() {
    return this.#xreadgroup(this.writer, this.#all(AFTER_ALL), 'COUNT', 1)
  }

  /**
   * Entries that the group gives as new. New ones come in their order, after all that was given before. If not,
   * somebody has set the group back, and all that stood in the stream by then counts as delivered before.
   */
  async #whatIsNew(entries) {
    for (const entry of entries) {
      const { partition } = entry
      const at = entry.id.split('-').map(BigInt)
      if (isAfter(at, partition.reached)) partition.reached = at
      else if (at[0] > partition.untilMs) partition.untilMs = await this.#now()
      if (at[0] <= partition.untilMs) entry.again = true
    }
    return entries
  }

  /** The time by the clock of Redis, in ms. */
  async #now() {
    const [seconds, micros] = await this.writer.call('TIME')
    return BigInt(seconds) * 1000n + BigInt(micros) / 1000n
  }

  #entries(answer, how) {
    const byStream = new Map(this.#partitions.map((one) => [one.commands, one]))
    return (answer ?? []).flatMap(([name, page]) => entriesOf(byStream.get(String(name)), page, how))
  }
}

/** The names of the keys of one partition, as far as a service needs them. */
function partition(prefix, tag, service) {
  const base = `${prefix}:{${tag}}`
  return {
    commands: `${base}:commands:${service}`,
    replies: `${base}:replies:${service}`,
    quarantine: `${base}:quarantine:${service}`,
    claimAfter: '-', // where the look at abandoned commands goes on
    reached: [-1n, 0n], // the newest entry that it was given as new
    untilMs: -1n, // what was added until then was delivered before
    /** The key of the records: they are filed by the hour in which the saga began. */
    done: ({ begunMs }) => `${base}:done:${service}:${BigInt(begunMs) / HOUR_MS}`,
  }
}

function counted(words) {
  return [words.length, ...words]
}

function entriesOf(partition, page, { again = false, takenOver = false } = {}) {
  return page
    .filter((entry) => entry?.[1])
    .map(([id, words]) => {
      const fields = Object.create(null)
      for (let at = 0; at < words.length; at += 2) fields[String(words[at])] = words[at + 1]
      // An entry that was put back from the quarantine was delivered before, too.
      const before = again || fields.replayed !== undefined
      return { id: String(id), place: `${partition.commands} ${id}`, partition, fields, again: before, takenOver }
    })
}

/** Whether an id of an entry comes after another, as numbers. */
function isAfter([ms, number], [otherMs, otherNumber]) {
  return ms > otherMs || (ms === otherMs && number > otherNumber)
}

/** When an entry was added, by the clock of Redis: a BigInt, since people may give any 64 bits as an id. */
export function addedMs(entry) {
  return BigInt(entry.id.split('-')[0])
}
