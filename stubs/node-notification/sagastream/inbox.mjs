// A service's commands: one consumer of its group reads and answers them.

import { quarantineFields, replyFields } from './messages.mjs'

const HOUR_MS = 3600n * 1000n
/** How long a service's record of what it did outlives the last write to its hash, in seconds. */
const DONE_KEPT_S = 2 * 24 * 3600
/** How long a read waits for new commands; so also how long a process may take to notice that it shall stop. */
const BLOCK_MS = 500
/** How often to look for abandoned commands, and forget consumers that are gone. */
const CLAIM_EVERY_MS = 2000
const FORGET_EVERY_MS = 30_000
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
  #partitions // one for each partition that it reads: the names of its keys
  #own = new Map() // by stream: from which id to go on reading the entries that this consumer holds
  #nextClaim = 0
  #claimBegan = 0
  #nextForget = 0
  #deleted = false // whether a group was deleted since it last joined …
  #moved = false // … or has only moved to another node: unless it has to be made again
  #aheadMs = 0 // how far the clock of Redis is ahead of performance.now()

  /**
   * @param reader a connection that waits for commands
   * @param writer another, for everything else
   * @param tags of the partitions that it reads. One call may have keys of all of them
   * @param held the places of the entries in flight in this process
   */
  constructor({ reader, writer, store, service, consumer, leaseMs, tags, held, say }) {
    Object.assign(this, { reader, writer, store, service, consumer, leaseMs, held, say })
    this.#partitions = tags.map((tag) => partition(store.prefix, tag, service))
    this.layout = store.layout
  }

  /** Whether the store was made anew, with other partitions. */
  get isGone() {
    return this.store.layout !== this.layout
  }

  /** The time by the clock of Redis, in ms, as this process computes it since it last looked up a command. */
  clock = () => performance.now() + this.#aheadMs

  /** Start the next read from the beginning: an answer may have been lost, the store may have changed. */
  recover() {
    this.#joined = false
  }

  /** At most `count` entries to work on: own pending ones, abandoned ones, or new ones. */
  async read(count) {
    try {
      if (!this.#joined) await this.#join()
      if (!this.#joined) return []
      await this.store.publishAgain()
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
      const [found] = /^(NOGROUP|UNBLOCKED the stream key no longer exists)/.exec(error.message) ?? []
      if (found === undefined) throw error
      // On a cluster, a stream that moves to another node is gone from where it was.
      if (found === 'NOGROUP' || !this.store.broker.isCluster) this.#deleted = true
      else this.#moved = true
      this.recover()
      return []
    }
  }

  /** What is recorded about a command, and the time. For a compensation it leaves a tombstone for the step. */
  async recall({ partition }, command) {
    const args = [DONE_KEPT_S, 1, command.record, command.tombstone, command.compensating ? 1 : 0]
    const recalled = this.writer.script('recall', [partition.done(command)], args)
    // Of a cluster, recall.lua tells the time of the node of the partition, which may have another clock.
    const [[ownMs, known], sharedMs] = await Promise.all([recalled, this.store.time?.now()])
    const nowMs = sharedMs ?? ownMs
    this.#aheadMs = nowMs - performance.now()
    const [, record, tombstone] = known ?? [1, null, 0] // usually nothing is known
    return { nowMs, record, tombstone: tombstone === 1 }
  }

  /** The time by which a command may be refused as too late. `nowMs`: the time when the command was looked up. */
  async freshTime(nowMs) {
    return (await this.store.time?.told()) ?? nowMs
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

  /** Leave the group, and leave to others what is still held. */
  async leave() {
    const left = ({ commands }) => this.writer.script('leave', [commands], [this.service, this.consumer])
    await Promise.allSettled(this.#partitions.map(left)) // only to be tidy: without it, others wait for the lease
  }

  #answer({ commands, replies, quarantine }, args, ...records) {
    const keys = [commands, replies, quarantine, ...records]
    return this.writer.script('answer', keys, [this.service, DONE_KEPT_S, this.consumer, ...args])
  }

  async #join() {
    await this.store.join()
    if (this.isGone) return
    const made = await Promise.all(this.#partitions.map(({ commands }) => this.#makeGroup(commands)))
    this.#deleted ||= this.#moved && made.includes(true)
    if (this.#deleted) {
      // Whoever has made the group again: it gives, as new, what it gave before.
      const now = async (one) => Object.assign(one, { untilMs: await this.writer.time(one.commands) })
      await Promise.all(this.#partitions.map(now))
      this.say(`a stream or group of the commands of ${this.service} was deleted; created it again`)
    }
    this.#deleted = false
    this.#moved = false
    this.#own = this.#all('0')
    this.#nextClaim = 0
    this.#joined = true
  }

  /** Returns whether there was none. */
  async #makeGroup(stream) {
    try {
      // From 0: what was sent before anybody read is for this group too.
      const words = ['XGROUP', 'CREATE', stream, this.service, '0', 'MKSTREAM']
      await this.writer.script('even_if_full', [stream], words)
      return true
    } catch (error) {
      if (!error.message.startsWith('BUSYGROUP')) throw error
      return false
    }
  }

  /** The streams of all partitions, each with this id. */
  #all(id) {
    return new Map(this.#partitions.map(({ commands }) => [commands, id]))
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
      else if (at[0] > partition.untilMs) partition.untilMs = await this.writer.time(partition.commands)
      if (at[0] <= partition.untilMs) entry.again = true
    }
    return entries
  }

  #entries(answer, how) {
    const byStream = new Map(this.#partitions.map((one) => [one.commands, one]))
    const found = (answer ?? []).flatMap(([name, page]) => entriesOf(byStream.get(String(name)), page, how))
    return found.map((entry) => Object.assign(entry, { inbox: this }))
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
