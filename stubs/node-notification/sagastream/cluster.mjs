// A cluster: which node has which keys, and connections that send each call to the node of its keys.

import * as redis from '@redis/client'
import { Connection } from './connection.mjs'
import { Away, faultOf, isOutage, NodeAway } from './outage.mjs'

const SLOTS = 16384
/** How long a node may take to say which node has which slots. Then the next one is asked. */
const PATIENCE_MS = 1000
/** How often the nodes are asked while something does not answer. */
const ASK_EVERY_MS = 500
/** How often one call follows a slot to another node. While a slot moves, nodes may disagree for a moment. */
const MAX_MOVES = 5

/** The slot of a key: the CRC16 of the text between the first { and the next }, or of the whole key. */
export function slotOf(key) {
  const from = key.indexOf('{') + 1
  const to = from ? key.indexOf('}', from) : -1
  let crc = 0
  for (const byte of Buffer.from(to > from ? key.slice(from, to) : key)) {
    crc ^= byte << 8
    for (let bit = 0; bit < 8; bit += 1) crc = crc & 0x8000 ? (crc << 1) ^ 0x1021 : crc << 1
  }
  return (crc & 0xffff) % SLOTS
}

/** Which node has which slots, and which nodes are away. Says once when one goes, and once when it is back. */
export class ClusterMap {
  #say
  #server // how node-redis reaches the first node that the url names; the others have the same users
  #seeds // the addresses of all nodes that it names
  #bySlot = new Array(SLOTS) // the address of the node that has it
  #masters = new Set() // the addresses of all that have slots
  #known // the addresses of all nodes: replicas too, one of which may be the master by now
  #away = new Set() // the addresses of those that do not answer
  #looking // the look that is under way
  #nextLook = 0
  #refusal // the error with which a node has refused to be asked, which waiting does not mend
  #followers = new Set() // called when slots have another node

  constructor(server, say) {
    this.#server = server
    this.#say = say
    const { path } = server.socket
    this.#seeds = path ? [path] : (server.nodes ?? [server.socket]).map(({ host, port }) => addressOf(host, port))
    this.#known = new Set(this.#seeds)
  }

  /** How node-redis reaches a node. */
  reach(address) {
    if (address === this.#seeds[0]) return this.#server
    const { path, ...socket } = this.#server.socket
    const port = Number(address.slice(address.lastIndexOf(':') + 1))
    return { ...this.#server, socket: { ...socket, host: hostOf(address), port } }
  }

  /** The addresses of all nodes. */
  nodes() {
    return [...this.#known]
  }

  /** The address of the node that has a slot. */
  async nodeOf(slot) {
    if (this.#bySlot[slot] === undefined) await this.look()
    const address = this.#bySlot[slot]
    if (address !== undefined) return address
    if (this.#refusal) throw this.#refusal
    throw new Away(`no node of the cluster is known to have slot ${slot}`)
  }

  /** A node has said that a slot is at this one by now. */
  moved(slot, address) {
    this.#known.add(address)
    this.#masters.add(address)
    this.#bySlot[slot] = address
    this.look()
  }

  /** Call this whenever slots have another node, with the addresses of all nodes that may have some. */
  onChange(follower) {
    this.#followers.add(follower)
    return () => this.#followers.delete(follower)
  }

  failed(address, why) {
    this.look()
    if (!this.#masters.has(address) || this.#away.has(address)) return
    this.#away.add(address)
    this.#say(`the node ${address} of the cluster is away (${why}); the others go on`)
  }

  isAway(address) {
    return this.#away.has(address)
  }

  answered(address) {
    if (this.#away.delete(address)) this.#say(`the node ${address} of the cluster is back`)
  }

  /** Ask the nodes which of them has which slots, but not too often. Never fails: then what was known stands. */
  look() {
    if (this.#looking || Date.now() < this.#nextLook) return this.#looking
    this.#looking = this.#look().finally(() => {
      this.#looking = undefined
      this.#nextLook = Date.now() + ASK_EVERY_MS
    })
    return this.#looking
  }

  async #look() {
    // In any order: one that was cut off from the others may give an old map.
    const nodes = [...this.#known].map((address) => [this.#away.has(address) + Math.random(), address])
    for (const [, address] of nodes.sort(([one], [other]) => one - other)) {
      try {
        return this.#take(await ask(this.reach(address)), address)
      } catch (error) {
        // The next one may answer. Why this one is away, the connections to it tell.
        this.#refusal = faultOf(error) ?? this.#refusal
      }
    }
    return undefined
  }

  #take(ranges, asked) {
    if (!ranges.length) throw new Error('it knows of no slots')
    const bySlot = new Array(SLOTS)
    const known = new Set(this.#seeds)
    for (const [first, last, ...nodes] of ranges) {
      // Without a host, it is where the node that was asked is.
      const addresses = nodes.map((node) => addressOf(String(node[0] ?? '') || hostOf(asked), node[1]))
      bySlot.fill(addresses[0], first, last + 1)
      addresses.forEach((address) => known.add(address))
    }
    const masters = new Set(bySlot.filter((address) => address !== undefined))
    const isNew = bySlot.some((address, slot) => address !== this.#bySlot[slot])
    this.#bySlot = bySlot
    this.#known = known
    this.#masters = masters
    for (const address of this.#away) {
      if (masters.has(address)) continue
      this.#away.delete(address)
      this.#say(`the node ${address} of the cluster has no slots any more; the others have them`)
    }
    if (isNew) for (const follower of this.#followers) follower(masters)
  }
}

/**
 * Calls that go to the nodes of their keys, on one connection a node. Each call may have the keys of one slot only. It
 * has what Connection has.
 */
export class ClusterConnection {
  #map
  #nodes = new Map() // by address
  #isOfOne
  #forget

  /** @param isOfOne whether all its keys are in one slot: then it keeps the connection to the node of that alone */
  constructor(map, isOfOne = false) {
    this.#map = map
    this.#isOfOne = isOfOne
    this.#forget = map.onChange((masters) => this.#keep(masters))
  }

  call(...words) {
    return this.#at(keyOf(words), (node, asking) => node.send(words, asking))
  }

  script(name, keys, args) {
    return this.#at(keys[0], (node, asking) => node.script(name, keys, args, asking))
  }

  evenIfFull(name, key, ...words) {
    return this.script('even_if_full', [key], [name, key, ...words])
  }

  time(key) {
    return this.#at(key, (node) => node.time())
  }

  close() {
    this.#forget()
    for (const node of this.#nodes.values()) node.close()
  }

  /** Have the node of a key answer. If the slot is elsewhere, or on its way, follow it. */
  async #at(key, ask) {
    const slot = slotOf(key)
    let address = await this.#map.nodeOf(slot)
    for (let moves = 0, asking = false; moves < MAX_MOVES; moves += 1) {
      try {
        return await ask(this.#node(address), asking)
      } catch (error) {
        const [, kind, , to] = /^(MOVED|ASK) (\d+) (\S+)$/.exec(error.message) ?? []
        if (kind === undefined) {
          if (!isOutage(error)) throw error
          this.#map.look()
          // It is on its way back, and is not there yet.
          throw this.#map.isAway(address) ? new NodeAway(error.message, { cause: error }) : error
        }
        // Without a host, it is where the node that was asked is.
        address = to.startsWith(':') ? hostOf(address) + to : to
        asking = kind === 'ASK'
        if (asking) continue
        this.#map.moved(slot, address)
        if (this.#isOfOne) this.#keep(new Set([address]))
      }
    }
    throw new Away(`the nodes of the cluster do not agree which of them has slot ${slot}`)
  }

  #node(address) {
    if (!this.#nodes.has(address)) {
      const told = {
        failed: (why) => this.#map.failed(address, why),
        answered: () => this.#map.answered(address),
      }
      this.#nodes.set(address, new Connection(this.#map.reach(address), told))
    }
    return this.#nodes.get(address)
  }

  /** Leave all nodes but these. */
  #keep(addresses) {
    for (const [address, node] of this.#nodes) {
      if (addresses.has(address)) continue
      node.close()
      this.#nodes.delete(address)
    }
  }
}

/** The key of a command that has one stream or one key. */
function keyOf(words) {
  return words[0] === 'XREADGROUP' ? words[words.indexOf('STREAMS') + 1] : words[1]
}

function addressOf(host, port) {
  return `${host}:${port}`
}

function hostOf(address) {
  return address.startsWith('/') ? '127.0.0.1' : address.slice(0, address.lastIndexOf(':'))
}

/** Which node has which slots, as one of them says. */
async function ask(server) {
  const socket = {
    ...server.socket,
    ...{ connectTimeout: PATIENCE_MS, socketTimeout: PATIENCE_MS, reconnectStrategy: false },
  }
  const client = redis.createClient({ ...server, socket, RESP: 2, disableClientInfo: true })
  client.on('error', () => {}) // the caller gets the error
  await client.connect()
  try {
    return await client.sendCommand(['CLUSTER', 'SLOTS'])
  } finally {
    client.destroy()
  }
}
