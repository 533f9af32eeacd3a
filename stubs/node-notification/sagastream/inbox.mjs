// A service's commands: one consumer of its group reads and answers them.

import { ServiceError } from './broker.mjs'
import { isId, quarantineFields, replyFields } from './messages.mjs'

const REPLIES = 'saga:{0}:replies'
const QUARANTINE = 'saga:{0}:quarantine'
const STORE = 'saga:store'
const HOUR_MS = 3600 * 1000
/** How long a service's record of what it did outlives the last write to its hash, in seconds. */
const DONE_KEPT_S = 2 * 24 * 3600
/** How long a read waits for new commands; so also how long a process may take to notice that it shall stop. */
const BLOCK_MS = 500
/** How often to look for abandoned commands, forget consumers that are gone, and publish again. */
const CLAIM_EVERY_MS = 2000
const FORGET_EVERY_MS = 30_000
const PUBLISH_EVERY_MS = 30_000
/** How long a consumer has not asked when it is forgotten. */
const GONE_MS = 60_000
/** The idle time of an entry that is handed back: longer than any lease. */
const HANDED_BACK_MS = 24 * 3600 * 1000
/** How much longer than the look at abandoned commands the rest after it is, and how long at most. */
const REST = 20
const LONGEST_REST_MS = 10_000
/** An id that no entry comes after. */
const AFTER_ALL = '18446744073709551614-0'
const PAGE = 128

export class Inbox {
  #joined = false
  #own = null // from which id to go on reading the entries that this consumer holds; null: all are read
  #nextClaim = 0
  #claimBegan = 0
  #claimAfter = '-' // where the look at abandoned commands goes on
  #nextForget = 0
  #nextPublish = 0

  /**
   * @param reader a connection that waits for commands
   * @param writer another, for everything else
   * @param publishes the service's commands, and what undoes each
   * @param compensations the names of all its compensations
   */
  constructor({ reader, writer, service, consumer, leaseMs, publishes, compensations, say }) {
    Object.assign(this, { reader, writer, service, consumer, leaseMs, publishes, compensations, say })
    this.stream = `saga:{0}:commands:${service}`
    this.held = new Set() // ids of the entries in flight here
  }

  /** Start the next read from the beginning: an answer may have been lost, the store may have changed. */
  recover() {
    this.#joined = false
  }

  /** At most `count` entries to work on: own pending ones, abandoned ones, or new ones. */
  async read(count) {
    try {
      if (!this.#joined) await this.#join()
      if (Date.now() >= this.#nextPublish) await this.#publish() // somebody may have deleted it
      while (this.#own !== null) {
        const entries = await this.#readOwn(count)
        if (entries.length) return entries
      }
      if (Date.now() >= this.#nextClaim) {
        if (this.#claimAfter === '-') this.#claimBegan = Date.now()
        const entries = await this.#claim(count)
        if (entries.length) return entries
        // However much of it is for another release: it costs little of this process's time.
        const rest = Math.min(REST * (Date.now() - this.#claimBegan), LONGEST_REST_MS)
        this.#nextClaim = Date.now() + Math.max(rest, Math.min(this.leaseMs / 2, CLAIM_EVERY_MS))
        await this.#showUp()
      }
      if (Date.now() >= this.#nextForget) {
        this.#nextForget = Date.now() + FORGET_EVERY_MS
        await this.writer.script('forget', [this.stream], [this.service, GONE_MS])
      }
      return entriesOf(await this.#xreadgroup(this.reader, '>', 'COUNT', count, 'BLOCK', BLOCK_MS))
    } catch (error) {
      if (!/^(NOGROUP|UNBLOCKED)/.test(error.message)) throw error
      this.say(`the stream or group of ${this.stream} was deleted; created it again`)
      this.recover()
      return []
    }
  }

  /** What is recorded about a command, and the time. For a compensation it leaves a tombstone for the step. */
  async recall(command) {
    const args = [DONE_KEPT_S, 1, command.record, command.tombstone, command.compensating ? 1 : 0]
    const [nowMs, known] = await this.writer.script('recall', [this.#done(command)], args)
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
    const overruled = await this.#answer([...answer, ...counted(replyFields(reply))], this.#done(command))
    return overruled[0] ?? 0
  }

  /** Add a command again, as one that was delivered before: whoever reads it undoes it. */
  async sendAgain(entry, result) {
    const fields = { ...entry.fields, replayed: '1', ...(result === undefined ? {} : { result }) }
    await this.writer.call('XADD', this.stream, '*', ...Object.entries(fields).flat())
  }

  /** Whether nobody has taken an entry over, or answered it. */
  async holds(entry) {
    const of = [this.stream, this.service, entry.id, entry.id, 1, this.consumer]
    return (await this.writer.call('XPENDING', ...of)).length > 0
  }

  async quarantine(entry, reason) {
    this.say(`quarantined the entry ${entry.id}: ${reason}`)
    const fields = quarantineFields(entry, this.stream, reason)
    await this.#answer([entry.id, 3, 0, '', '', '', 'final', '', ...counted(fields)])
  }

  /** Count one more of `what` for a command that others held before; returns the count. */
  async count(command, what) {
    const times = await this.writer.call('HINCRBY', this.#done(command), `${command.record}/${what}`, 1)
    await this.writer.call('EXPIRE', this.#done(command), DONE_KEPT_S)
    return times
  }

  /** Have a process of another release take this over at once. */
  async handBack(entry) {
    const held = [this.stream, this.service, this.consumer, 0, entry.id]
    await this.writer.call('XCLAIM', ...held, 'IDLE', HANDED_BACK_MS, 'JUSTID')
  }

  /** What all releases of the service publish: field -> value. */
  async published() {
    const words = await this.writer.call('HGETALL', `saga:services:${this.service}`)
    const fields = new Map()
    for (let at = 0; at < words.length; at += 2) fields.set(String(words[at]), String(words[at + 1]))
    return fields
  }

  /** Leave the group, and leave to others what is still held. */
  async leave() {
    await this.writer.script('leave', [this.stream], [this.service, this.consumer])
  }

  #answer(args, ...records) {
    return this.writer.script('answer', [this.stream, REPLIES, QUARANTINE, ...records], [
      ...[this.service, DONE_KEPT_S, this.consumer],
      ...args,
    ])
  }

  /** The key of the records: they are filed by the hour in which the saga began. */
  #done(command) {
    return `saga:{0}:done:${this.service}:${Math.floor(command.begunMs / HOUR_MS)}`
  }

  async #join() {
    const partitions = await this.writer.call('HGET', STORE, 'partitions')
    if (partitions !== null && String(partitions) !== '1') {
      throw new ServiceError(`the store was laid out for ${partitions} partitions; this service knows 1`)
    }
    await this.#publish()
    try {
      // From 0: what was sent before anybody read is for this group too.
      await this.writer.call('XGROUP', 'CREATE', this.stream, this.service, '0', 'MKSTREAM')
    } catch (error) {
      if (!error.message.startsWith('BUSYGROUP')) throw error
    }
    this.#own = '0'
    this.#nextClaim = 0
    this.#joined = true
  }

  async #publish() {
    const before = await this.published()
    const pairs = Object.entries(this.publishes).map(([name, undo]) => [name, undo ?? ''])
    const named = pairs.map(([, undo]) => undo)
    // What no command names is a value too: then another release knows that it is not unknown to all.
    for (const undo of [...this.compensations, ...pairs.map(([name]) => before.get(name))]) {
      if (isId(undo) && !named.includes(undo)) pairs.push([`(${undo})`, undo])
    }
    await this.writer.call('HSET', `saga:services:${this.service}`, ...pairs.flat())
    this.#nextPublish = Date.now() + PUBLISH_EVERY_MS
  }

  #xreadgroup(connection, after, ...options) {
    const from = ['STREAMS', this.stream, after]
    return connection.call('XREADGROUP', 'GROUP', this.service, this.consumer, ...options, ...from)
  }

  async #readOwn(count) {
    const answer = await this.#xreadgroup(this.writer, this.#own, 'COUNT', count)
    const page = answer?.[0]?.[1] ?? []
    this.#own = page.length ? String(page.at(-1)[0]) : null
    const deleted = page.filter(([, fields]) => !fields).map(([id]) => String(id))
    if (deleted.length) {
      this.say(`${deleted.length} commands were deleted before they were answered: ${deleted.slice(0, 5)}`)
      await this.writer.call('XACK', this.stream, this.service, ...deleted)
    }
    return entriesOf(answer, { again: true }).filter(({ id }) => !this.held.has(id))
  }

  /** What others have held for longer than the lease. Not XAUTOCLAIM: it would also renew what is in flight here. */
  async #claim(count) {
    const idle = ['IDLE', this.leaseMs, this.#claimAfter, '+', PAGE]
    const pending = await this.writer.call('XPENDING', this.stream, this.service, ...idle)
    const abandoned = pending.map(([id]) => String(id)).filter((id) => !this.held.has(id))
    const ids = abandoned.slice(0, count)
    // Go on behind them: what is handed back to another release must not hide what comes after it.
    this.#claimAfter = ids.length ? `(${ids.at(-1)}` : '-'
    if (!ids.length) return []
    const claim = [this.stream, this.service, this.consumer, this.leaseMs, ...ids]
    const page = await this.writer.call('XCLAIM', ...claim)
    return entriesOf([[this.stream, page]], { again: true, takenOver: true })
  }

  /** Show that this is alive. Redis 7.0 does not count a read that finds nothing, unless it asks for own entries. */
  #showUp() {
    return this.#xreadgroup(this.writer, AFTER_ALL, 'COUNT', 1)
  }
}

function counted(words) {
  return [words.length, ...words]
}

function entriesOf(answer, { again = false, takenOver = false } = {}) {
  const page = answer?.[0]?.[1] ?? []
  return page
    .filter((entry) => entry?.[1])
    .map(([id, words]) => {
      const fields = Object.create(null)
      for (let at = 0; at < words.length; at += 2) fields[String(words[at])] = words[at + 1]
      // An entry that was put back from the quarantine was delivered before, too.
      return { id: String(id), fields, again: again || fields.replayed !== undefined, takenOver }
    })
}

/** When an entry was added, by the clock of Redis. */
export function addedMs(entry) {
  return Number(entry.id.split('-')[0])
}
