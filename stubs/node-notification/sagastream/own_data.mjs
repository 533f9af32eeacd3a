// Clients of node-redis for what a service itself keeps in Redis.

import * as redis from '@redis/client'
import { ClusterMap } from './cluster.mjs'
import { open, reconnect, timeouts } from './connection.mjs'
import { Away, delay, NodeAway } from './outage.mjs'
import { openOwn } from './sentinel.mjs'
import { parse } from './urls.mjs'

/** The server does not have the key: it is a node of a cluster, and another one has it. */
const ELSEWHERE = /^(MOVED|ASK|CROSSSLOT) /

/** What ends a client. */
const ENDS = ['destroy', 'close', 'quit', 'disconnect']
/** A node could not be reached, or its answer was lost. */
const LOST = [
  ...[redis.SocketClosedUnexpectedlyError, redis.SocketTimeoutError, redis.ConnectionTimeoutError],
  redis.RootNodesUnavailableError,
]
/** A client was left for a new one. */
const LEFT = [redis.DisconnectsClientError, redis.ClientClosedError]

/** The clients that are connected, each to one server. */
const own = new Set()

/**
 * A client of node-redis for a service's own data. It reconnects, and holds back calls until then. If a handler finds
 * that its server is a replica by now, it looks its address up again. If the server is a node of a cluster, the client
 * has the commands that node-redis has for clusters, and sends each to the node of its key.
 */
export function connect(url = process.env.REDIS_URL) {
  const server = parse(url)
  if (server.sentinels) return openOwn(server, { socket: timeouts(), disableClientInfo: true })
  const client = open(server)
  client.on('ready', () => own.add(client)).on('end', () => own.delete(client))
  return eitherOf(client, server)
}

/** Look the addresses of all up again: nobody knows which of them a handler has called. */
export function reconnectOwn() {
  own.forEach(reconnect)
}

/** The error of a call. If the user may not do that, it says what: Redis does not name the key. */
function naming(error, name, words) {
  if (error instanceof redis.ErrorReply && error.message.startsWith('NOPERM ') && typeof words[0] === 'string') {
    error.message += ` (${name} ${words[0]})`
  }
  return error
}

/** `client`; or, once its server turns out to be a node of a cluster, a client of the cluster in its place. */
function eitherOf(client, server) {
  let cluster // undefined: the server is not known to be a node of one
  let isOver = false
  const turn = () => {
    if (!cluster) {
      cluster = new OwnCluster(server)
      client.close().catch(() => {}) // what was called goes on to its end
    }
    return cluster
  }
  client.once('ready', async () => {
    const words = (await client.sendCommand(['HELLO']).catch(() => [])).map(String)
    if (words[words.indexOf('mode') + 1] === 'cluster' && !isOver) turn()
  })
  const call = (name, words) => {
    if (ENDS.includes(name)) isOver = true
    if (cluster) return cluster.call(name, words)
    const answer = client[name](...words)
    if (answer === client) return either // such as that of on()
    if (!(answer instanceof Promise)) return answer
    return answer.catch((error) => {
      // It was called before the server has said what it is, and nothing of it was done.
      if (!ELSEWHERE.test(error.message) || isOver) throw naming(error, name, words)
      return turn().call(name, words)
    })
  }
  if (server.nodes) turn() // only a cluster has several
  const either = new Proxy(client, {
    get(_, name) {
      const value = cluster ? cluster.property(name) : client[name]
      return typeof value === 'function' ? (...words) => call(name, words) : value
    },
  })
  return either
}

/** A client of a cluster. It follows slots by itself, but not a failover: then a new one takes its place. */
class OwnCluster {
  #server
  #map
  #masters = new Set()
  #client
  #isConnected = false
  #connecting // the first time
  #isOver = false

  constructor(server) {
    this.#server = server
    this.#map = new ClusterMap(server, () => {}) // the service says which nodes are away
    this.#map.onChange((masters) => {
      const isLeft = [...this.#masters].some((address) => !masters.has(address))
      this.#masters = masters
      if (isLeft && this.#isConnected) this.#renew()
    })
    this.#client = this.#open() // until it is connected, it only shows what it has
    this.#connecting = this.#renew()
  }

  property(name) {
    return this.#client[name]
  }

  call(name, words) {
    if (ENDS.includes(name)) this.#isOver = true
    if (!this.#isConnected && !this.#isOver) return this.#connecting.then(() => this.call(name, words))
    const answer = this.#client[name](...words)
    if (!(answer instanceof Promise)) return answer
    return answer.catch((error) => {
      const isOne = (known) => known.some((one) => error instanceof one)
      if (this.#isOver) throw error
      if (isOne(LEFT)) throw new NodeAway('a master of the cluster was left', { cause: error })
      if (isOne(LOST) || error.syscall !== undefined) throw new Away(error.message || error.code, { cause: error })
      throw naming(error, name, words)
    })
  }

  /** Connect to the cluster as it is now, then leave the nodes as they were. */
  async #renew() {
    for (let failures = 1; !this.#isOver; failures += 1) {
      await this.#map.look()
      const next = this.#open()
      try {
        await next.connect()
        if (this.#isOver) return next.destroy()
        if (this.#isConnected) this.#client.destroy()
        this.#client = next
        this.#isConnected = true
        return undefined
      } catch {
        await new Promise((again) => setTimeout(again, delay(failures)))
      }
    }
    return undefined
  }

  #open() {
    const { socket, ...login } = this.#server
    const { host: _host, port: _port, path: _path, ...secure } = socket
    const client = redis.createCluster({
      rootNodes: this.#map.nodes().map((address) => ({ socket: this.#map.reach(address).socket })),
      defaults: { ...login, socket: { ...timeouts(), ...secure }, disableClientInfo: true },
      minimizeConnections: true, // it would wait for all nodes, even for those that are away
      RESP: 2,
    })
    client.on('error', () => {}) // the caller gets the error
    return client.on('node-error', () => this.#map.look())
  }
}
