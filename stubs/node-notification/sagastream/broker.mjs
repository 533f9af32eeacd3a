// The way to Redis: what a service calls it with, and waiting until an outage is over.

import { setTimeout as sleep } from 'node:timers/promises'
import { ClusterConnection, ClusterMap } from './cluster.mjs'
import { Connection } from './connection.mjs'
import { delay, isDemoted, isOutage, NodeAway } from './outage.mjs'
import { reconnectOwn } from './own_data.mjs'
import { parse } from './urls.mjs'

export { connect } from './own_data.mjs'

/** The connections of a process: one for everything that does not wait, others that wait for commands. */
export class Broker {
  #server
  #map // undefined: it is no cluster
  #open = []

  /** @param url that of a server, of Sentinels, or of one or several nodes of a cluster */
  constructor(url) {
    this.#server = parse(url)
    this.writer = this.#opened(new Connection(this.#server))
  }

  /** Learn whether the server is a node of a cluster. Then one call may only have keys of one partition. */
  async recognise(say) {
    if (this.#map || this.#server.sentinels) return
    if (!this.#server.nodes && (await this.writer.mode()) !== 'cluster') return
    this.#map = new ClusterMap(this.#server, say)
    this.leave(this.writer)
    this.writer = this.#opened(new ClusterConnection(this.#map))
  }

  get isCluster() {
    return this.#map !== undefined
  }

  /** A connection that may wait for commands: on a cluster, for those of one partition. */
  reader() {
    return this.#opened(this.#map ? new ClusterConnection(this.#map, true) : new Connection(this.#server))
  }

  /** What is away in an outage, for people to see. Of its nodes, a cluster tells by itself. */
  get name() {
    return this.isCluster ? 'a part of the cluster' : 'Redis'
  }

  /** Whether all connections to a single server are there. */
  get isReady() {
    return this.isCluster || this.#open.every((connection) => connection.isReady)
  }

  /** Close a reader. */
  leave(reader) {
    reader.close()
    this.#open.splice(this.#open.indexOf(reader), 1)
  }

  close() {
    for (const connection of this.#open) connection.close()
  }

  #opened(connection) {
    this.#open.push(connection)
    return connection
  }
}

/** Waits while Redis is away, and says so: once when it goes, once when it is back. */
export class Patience {
  #say
  #broker
  #outage // the calls that cannot reach Redis, and of what it was said that it is away

  /**
   * @param stop an AbortSignal; once it is aborted, nobody waits any longer
   * @param broker Redis is back once all its connections are: one may come back a while after the other
   */
  constructor(say, stop, broker, outage = { calls: new Set(), told: '' }) {
    this.#say = say
    this.stop = stop
    this.#broker = broker
    this.#outage = outage
  }

  /** The same, with another end. */
  until(stop) {
    return new Patience(this.#say, stop, this.#broker, this.#outage)
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
        if (isDemoted(error)) reconnectOwn()
        if (!(error instanceof NodeAway)) this.#isAway(me, error) // of that, the map of the cluster has told
        await this.pause(delay(failures))
      }
    }
  }

  #isAway(call, error) {
    const { name } = this.#broker
    if (!this.#outage.told) this.#say(`${name} is away (${error.message}); waiting`)
    this.#outage.told ||= name
    this.#outage.calls.add(call)
  }

  #sayIfBack() {
    const { calls, told } = this.#outage
    if (!told || calls.size > 0 || !this.#broker.isReady) return
    this.#outage.told = ''
    this.#say(`${told} is back`)
  }

  /** Wait, but stop waiting at the stop. */
  async pause(ms) {
    await sleep(ms, undefined, { signal: this.stop }).catch(() => {})
  }
}
