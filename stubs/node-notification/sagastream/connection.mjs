// Connections of the service itself, each to one server.

import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import * as redis from '@redis/client'
import { Away, delay, faultOf, isLeft, isOutage, mismatch, NodeAway, reason } from './outage.mjs'
import { openMaster } from './sentinel.mjs'

/** How long an answer may take, in addition to the time that a blocking read waits. */
const ANSWER_TIMEOUT_MS = 5000

/** A client of node-redis, which connects, and reconnects, by itself. */
export function open(server, options = {}) {
  const socket = { ...timeouts(), ...server.socket }
  const client = redis.createClient({ ...server, ...options, socket, RESP: 2, disableClientInfo: true })
  client.on('error', () => {}) // the caller gets the error
  client.connect().catch(() => {})
  return client
}

export function timeouts() {
  return {
    connectTimeout: ANSWER_TIMEOUT_MS,
    socketTimeout: ANSWER_TIMEOUT_MS,
    reconnectStrategy: (retries, cause) => (faultOf(cause) ? cause : delay(retries + 1)),
  }
}

const scripts = new Map()

/** One connection, to what a url names. Answers are arrays, integers, and Buffers for strings. */
export class Connection {
  #client // undefined while Sentinels are asked for the master
  #settled
  #fault
  #away = 'not connected yet'
  #socket // how node-redis reaches the server; undefined: Sentinels name it
  #hasAnswered = false
  #follows // whether Sentinels name the master
  #node // who is told of this node of a cluster; undefined: it is a server by itself
  #isClosed = false

  /**
   * @param server a url, as `parse` in urls.mjs takes it apart; or how node-redis reaches a node of a cluster
   * @param node only of a node: `failed(why)` is called when it cannot be reached, `answered()` when it answers
   */
  constructor(server, node) {
    const options = {
      disableOfflineQueue: true, // the caller decides what to do while Redis is away
      pingInterval: 2000, // so that a server that hangs is noticed
      commandOptions: { typeMapping: { [redis.RESP_TYPES.BLOB_STRING]: Buffer } },
    }
    this.#node = node
    this.#follows = server.sentinels !== undefined
    if (this.#follows) {
      this.#settled = new Promise((resolve) => this.#follow(server, options, resolve))
      return
    }
    this.#socket = server.socket
    this.#client = open(server, options)
    this.#settled = new Promise((resolve) => this.#client.once('ready', resolve).once('error', resolve))
    this.#client.on('error', (error) => {
      this.#fault ??= faultOf(error)
      this.#away = this.#why(error)
      if (!this.#fault && !this.#isClosed) node?.failed(this.#away)
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
        this.#fault ??= faultOf(error)
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

  call(...words) {
    return this.send(words)
  }

  /** @param asking the node is to answer although the slot is only on its way to it */
  async send(words, asking = false) {
    await this.#settled
    if (this.#fault) throw this.#fault
    const client = this.#client
    if (!client) throw new Away(this.#away)
    try {
      const texts = words.map((word) => (word instanceof Buffer ? word : String(word)))
      // ASKING holds for the command that comes next on the connection.
      const sent = asking ? both(client.sendCommand(['ASKING']), client.sendCommand(texts)) : client.sendCommand(texts)
      const answer = await sent
      this.#hasAnswered = true
      this.#node?.answered()
      return answer
    } catch (error) {
      if (!(error instanceof redis.ErrorReply)) throw this.#fault ?? this.#lost(error)
      this.#hasAnswered = true
      // Of a cluster, the map says where the slots are by now.
      if (!this.#node && isLeft(error)) this.#leave(client)
      if (!isOutage(error)) this.#node?.answered()
      throw error
    }
  }

  #lost(error) {
    const why = error instanceof redis.ClientOfflineError ? this.#away : this.#why(error)
    return new (this.#node ? NodeAway : Away)(why, { cause: error })
  }

  #why(error) {
    return reason(error) + (this.#socket && !this.#hasAnswered ? mismatch(error, this.#socket) : '')
  }

  /** Run a script of the folder scripts/, even if the server has forgotten it. */
  async script(name, keys, args, asking = false) {
    const { text, sha } = scriptOf(name)
    const words = [keys.length, ...keys, ...args]
    try {
      return await this.send(['EVALSHA', sha, ...words], asking)
    } catch (error) {
      if (!error.message.startsWith('NOSCRIPT')) throw error
      await this.call('SCRIPT', 'LOAD', text) // Valkey may evict a script that it only knows from EVAL
      return this.send(['EVAL', text, ...words], asking)
    }
  }

  /** Have a command write that a full store takes, too: without it, sagas that are under way could not end. */
  evenIfFull(name, key, ...words) {
    return this.script('even_if_full', [key], [name, key, ...words])
  }

  /** The time by the clock of the server, in ms. `_key`: of a cluster, the clock of the node that has this key. */
  async time(_key) {
    return millis(await this.call('TIME'))
  }

  /** In which mode the server works: standalone, cluster … undefined: this user may not ask. */
  async mode() {
    try {
      const words = (await this.call('HELLO')).map(String)
      return words[words.indexOf('mode') + 1]
    } catch (error) {
      if (error.message.startsWith('NOPERM')) return undefined
      throw error
    }
  }

  close() {
    this.#isClosed = true
    if (this.#client?.isOpen) this.#client.destroy()
  }
}

/** Look the address up again: it may lead to the master by now. A connection that is open leads to the replica for ever. */
export function reconnect(client) {
  if (!client.isReady) return // another call has seen to it
  client.destroy()
  client.connect().catch(() => {})
}

/** What the second call answers, if both are answered. */
async function both(first, second) {
  const answers = await Promise.all([first, second])
  return answers[1]
}

function scriptOf(name) {
  if (!scripts.has(name)) {
    const text = readFileSync(new URL(`scripts/${name}.lua`, import.meta.url), 'utf8')
    scripts.set(name, { text, sha: createHash('sha1').update(text).digest('hex') })
  }
  return scripts.get(name)
}

/** What TIME answers, in ms. */
export function millis([seconds, micros]) {
  return BigInt(seconds) * 1000n + BigInt(micros) / 1000n
}
