// The way to Redis: connections that reconnect, and calls that wait out an outage.

import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import * as redis from '@redis/client'
import { openMaster, openOwn, parseSentinels } from './sentinel.mjs'

/** How long an answer may take, in addition to the time that a blocking read waits. */
const ANSWER_TIMEOUT_MS = 5000
/** Errors of the server that pass: it is loading, failing over, full, cannot write to its disk, ends a blocking read … */
const PASSING = /^(LOADING|READONLY|OOM|MISCONF|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS|BUSY|UNBLOCKED) /
/** Those that say that the server is a replica by now. */
const DEMOTED = /^(READONLY|MASTERDOWN|UNBLOCKED .*instance state changed)/
/** It may be a former master, which its replicas have left. */
const FORMER = /^NOREPLICAS /

/** The service is declared or configured wrongly. Its text is one line, fit to show a person. */
export class ServiceError extends Error {}

/** Redis cannot be reached, or its answer was lost. */
class Away extends Error {}

/** Whether Redis is away for a while. If so, wait; every other error is a fault. */
export function isOutage(error) {
  if (error instanceof redis.ErrorReply) return PASSING.test(error.message)
  return error instanceof Away || error instanceof redis.SocketClosedUnexpectedlyError
}

/** Milliseconds to wait after the nth failure in a row. */
export function delay(failures) {
  return Math.min(2000, 50 * 2 ** Math.min(failures - 1, 30))
}

/** The clients for services' own data that are connected. */
const own = new Set()

/**
 * A node-redis client for a service's own data. It reconnects, and holds back calls until then. If a handler finds that
 * its server is a replica by now, it looks its address up again.
 */
export function connect(url = process.env.REDIS_URL) {
  const named = parseSentinels(url ?? '')
  if (named) return openOwn(named, { socket: timeouts(), disableClientInfo: true })
  const client = open(url)
  client.on('ready', () => own.add(client)).on('end', () => own.delete(client))
  return client
}

/** Look the address up again: it may lead to the master by now. A connection that is open leads to the replica for ever. */
function reconnect(client) {
  if (!client.isReady) return // another call has seen to it
  client.destroy()
  client.connect().catch(() => {})
}

function open(url, options = {}) {
  const client = redis.createClient({ ...parseUrl(url), ...options, RESP: 2, disableClientInfo: true })
  client.on('error', () => {}) // the caller gets the error
  client.connect().catch(() => {})
  return client
}

/** One connection of the service itself. Answers are arrays, integers, and Buffers for strings. */
export class Connection {
  #client // undefined while Sentinels are asked for the master
  #settled
  #fault
  #away = 'not connected yet'
  #follows = false // whether Sentinels name the master
  #isClosed = false
  #scripts = new Map()

  constructor(url) {
    const options = {
      disableOfflineQueue: true, // the caller decides what to do while Redis is away
      pingInterval: 2000, // so that a server that hangs is noticed
      commandOptions: { typeMapping: { [redis.RESP_TYPES.BLOB_STRING]: Buffer } },
    }
    const named = parseSentinels(url ?? '')
    if (named) {
      this.#follows = true
      this.#settled = new Promise((resolve) => this.#follow(named, options, resolve))
      return
    }
    this.#client = open(url, options)
    this.#settled = new Promise((resolve) => this.#client.once('ready', resolve).once('error', resolve))
    this.#client.on('error', (error) => {
      if (error instanceof redis.ErrorReply && !isOutage(error)) this.#fault = error // such as a refused login
    })
  }

  /** Be connected to the master, whichever server that is. `settled` is called once it is known whether there is one. */
  async #follow(named, options, settled) {
    for (let failures = 0; !this.#isClosed && !this.#fault; ) {
      try {
        const client = await openMaster(named, { ...options, socket: timeouts(), RESP: 2, disableClientInfo: true })
        failures = 0
        this.#client = client
        settled()
        if (this.#isClosed) client.destroy()
        while (client.isOpen) await new Promise((resolve) => client.once('end', resolve).once('error', resolve))
        this.#away = 'the connection to the master was lost'
      } catch (error) {
        if (error instanceof redis.ErrorReply && !isOutage(error)) this.#fault = error
        this.#away = error.message
        failures += 1
      }
      this.#client = undefined
      settled()
      if (!this.#isClosed) await sleep(delay(failures || 1))
    }
  }

  /** Connect anew. A client that Sentinels led to its server ends, and then they are asked. */
  #leave(client) {
    if (!this.#follows) reconnect(client)
    else if (client.isOpen) client.destroy()
  }

  get isReady() {
    return this.#client?.isReady ?? false
  }

  async call(...words) {
    await this.#settled
    if (this.#fault) throw this.#fault
    const client = this.#client
    if (!client) throw new Away(this.#away)
    try {
      return await client.sendCommand(words.map((word) => (word instanceof Buffer ? word : String(word))))
    } catch (error) {
      if (!(error instanceof redis.ErrorReply)) throw new Away(error.message || error.code, { cause: error })
      if (DEMOTED.test(error.message) || FORMER.test(error.message)) this.#leave(client)
      throw error
    }
  }

  /** Run a script of the folder scripts/, even if the server has forgotten it. */
  async script(name, keys, args) {
    if (!this.#scripts.has(name)) {
      const text = readFileSync(new URL(`scripts/${name}.lua`, import.meta.url), 'utf8')
      this.#scripts.set(name, { text, sha: createHash('sha1').update(text).digest('hex') })
    }
    const { text, sha } = this.#scripts.get(name)
    try {
      return await this.call('EVALSHA', sha, keys.length, ...keys, ...args)
    } catch (error) {
      if (!error.message.startsWith('NOSCRIPT')) throw error
      await this.call('SCRIPT', 'LOAD', text) // Valkey may evict a script that it only knows from EVAL
      return this.call('EVAL', text, keys.length, ...keys, ...args)
    }
  }

  /** Have a command write that a full store takes, too: without it, sagas that are under way could not end. */
  evenIfFull(name, key, ...words) {
    return this.script('even_if_full', [key], [name, key, ...words])
  }

  close() {
    this.#isClosed = true
    if (this.#client?.isOpen) this.#client.destroy()
  }
}

/** Waits while Redis is away, and says so: once when it goes, once when it is back. */
export class Patience {
  #say
  #connections
  #outage // the calls that cannot reach Redis, and whether it was said that it is away

  /**
   * @param stop an AbortSignal; once it is aborted, nobody waits any longer
   * @param connections Redis is back once all of them are: one may come back a while after the other
   */
  constructor(say, stop, connections, outage = { calls: new Set(), isTold: false }) {
    this.#say = say
    this.stop = stop
    this.#connections = connections
    this.#outage = outage
  }

  /** The same, with another end. */
  until(stop) {
    return new Patience(this.#say, stop, this.#connections, this.#outage)
  }

  /** What `call` returns, however long Redis is away. `call` may be called twice; that must do no harm. */
  async patiently(call) {
    const me = Symbol('call')
    for (let failures = 1; ; failures += 1) {
      try {
        const answer = await call()
        this.#outage.calls.delete(me)
        this.#sayIfBack()
        return answer
      } catch (error) {
        if (!isOutage(error) || this.stop.aborted) {
          this.#outage.calls.delete(me)
          throw error
        }
        if (DEMOTED.test(error.message)) own.forEach(reconnect) // nobody knows which of them the handler has called
        if (!this.#outage.isTold) this.#say(`Redis is away (${error.message}); waiting`)
        this.#outage.isTold = true
        this.#outage.calls.add(me)
        await this.pause(delay(failures))
      }
    }
  }

  #sayIfBack() {
    const { calls, isTold } = this.#outage
    if (!isTold || calls.size > 0 || !this.#connections.every((connection) => connection.isReady)) return
    this.#outage.isTold = false
    this.#say('Redis is back')
  }

  /** Wait, but stop waiting at the stop. */
  async pause(ms) {
    await sleep(ms, undefined, { signal: this.stop }).catch(() => {})
  }
}

/** The options of node-redis for a URL. It knows redis:// and rediss://, but not the unix:// of the embedded server. */
function parseUrl(url) {
  if (!url) throw new ServiceError('REDIS_URL is not set')
  if (/^rediss?:\/\/./.test(url)) return { url, socket: timeouts() }
  const found = /^unix:\/\/(?:([^:@/]*)(?::([^@/]*))?@)?(\/[^?]+)/.exec(url)
  if (!found) throw new ServiceError('REDIS_URL is not usable: it is not redis://, rediss://, unix:// or redis+sentinel://')
  const [username, password, path] = found.slice(1).map((part) => part && decodeURIComponent(part))
  return { socket: { ...timeouts(), path }, username: username || undefined, password }
}

function timeouts() {
  return {
    connectTimeout: ANSWER_TIMEOUT_MS,
    socketTimeout: ANSWER_TIMEOUT_MS,
    reconnectStrategy: (retries, cause) =>
      cause instanceof redis.ErrorReply && !isOutage(cause) ? cause : delay(retries + 1),
  }
}
