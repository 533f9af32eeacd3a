// What a store keeps outside of its partitions: how it is laid out, and what a service publishes.

import { ClusterTime } from './cluster_time.mjs'
import { isId } from './messages.mjs'
import { isOutage } from './outage.mjs'
import { ServiceError } from './urls.mjs'

/** The version of the keys, streams and scripts that this knows. */
const PROTOCOL = '2'
/** How often to publish: somebody may have deleted it. */
const PUBLISH_EVERY_MS = 30_000
/** How soon to try again if a node of a cluster is away. */
const AGAIN_MS = 1000

export class Store {
  #services // the names of the keys of services begin so
  #alive // the key of the heartbeat …
  #time // … whose node says what time it is
  #published // what all releases publish, as last read
  #nextPublish = 0
  #joining // on a cluster: what is done beside all else
  #others = new Set() // the keys that hold something else

  /**
   * @param publishes the service's commands, and what undoes each
   * @param compensations the names of all its compensations
   * @param prefix what the names of all keys of the store begin with
   * @param fail called with an error that waiting does not mend
   */
  constructor({ broker, service, publishes, compensations, prefix, say, fail }) {
    Object.assign(this, { broker, service, publishes, compensations, prefix, say, fail })
    this.layout = null // the tags of the partitions, with blanks between them, as last read
  }

  /** The time of a cluster; undefined: a single server tells it. */
  get time() {
    if (!this.broker.isCluster) return undefined
    return (this.#time ??= new ClusterTime(() => this.broker.writer.time(this.#alive)))
  }

  /** The tags of the partitions; null: there is no store yet. */
  async tags() {
    const store = `${this.prefix}:store`
    const found = await this.broker.writer.call('HMGET', store, 'protocol', 'partitions', 'tags', 'shared')
    const [protocol, partitions, tags, shared] = found.map((value) => value && String(value))
    if (partitions === null && protocol === null) return null
    if (protocol !== PROTOCOL) {
      throw new ServiceError(`${store} has protocol ${protocol ?? '1'}; this service knows ${PROTOCOL}`)
    }
    this.layout = tags
    // Only on a cluster, the keys of the whole store have a hash tag.
    const base = `${this.prefix}${shared === null ? '' : `:{${shared}}`}`
    this.#services = `${base}:services`
    this.#alive = `${base}:alive`
    return tags.split(' ')
  }

  /** Look at the layout again, and publish what the service can do. On a cluster, another node may have the partitions:
   * so this is done beside all else. */
  async join() {
    if (this.broker.isCluster) this.#joinBeside()
    else await this.#join()
  }

  async #join() {
    await this.tags()
    await this.publish()
  }

  /** Publish again from time to time. */
  async publishAgain() {
    if (Date.now() < this.#nextPublish) return
    if (this.broker.isCluster) this.#joinBeside()
    else await this.publish()
  }

  #joinBeside() {
    this.#joining ??= this.#join()
      .catch((error) => {
        if (!isOutage(error)) this.fail(error)
        this.#nextPublish = Date.now() + AGAIN_MS
      })
      .finally(() => {
        this.#joining = undefined
      })
  }

  /** What all releases of the service publish: field -> value. */
  async published() {
    try {
      return await this.#read()
    } catch (error) {
      // On a cluster, another node may have it: then nothing waits for that one.
      if (!this.broker.isCluster || !this.#published || !isOutage(error)) throw error
      return this.#published
    }
  }

  async #read() {
    const key = `${this.#services}:${this.service}`
    const words = await this.#unlessOther([], key, this.broker.writer.call('HGETALL', key))
    const fields = new Map()
    for (let at = 0; at < words.length; at += 2) fields.set(String(words[at]), String(words[at + 1]))
    this.#published = fields
    return fields
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

  async publish() {
    const { writer } = this.broker
    const before = await this.#read()
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
    const services = this.#services
    await this.#unlessOther(0, services, writer.evenIfFull('SADD', services, this.service))
    const key = `${services}:${this.service}`
    if (pairs.length) await this.#unlessOther(0, key, writer.evenIfFull('HSET', key, ...pairs.flat()))
    // Another release may say at this moment what undoes it.
    for (const [name] of said.filter(isNew)) {
      await this.#unlessOther(0, key, writer.evenIfFull('HSETNX', key, name, ''))
    }
    this.#nextPublish = Date.now() + PUBLISH_EVERY_MS
  }
}
