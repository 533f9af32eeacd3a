// The master that Sentinels name: connections to it, whichever server that is at the time.

import * as redis from '@redis/client'
import { mismatch, reason } from './outage.mjs'
import { distrust } from './tls.mjs'

/** How long a Sentinel may take to answer. Then the next one is asked. */
const PATIENCE_MS = 1000

/**
 * A client that is connected to the master, and ends with its connection: so the next one asks anew.
 *
 * @param options of node-redis, for the client
 */
export async function openMaster(named, options) {
  const said = []
  const untrusted = []
  for (const sentinel of [...named.sentinels]) {
    let master
    try {
      master = await ask(sentinel, named)
      const client = await connected({
        ...options,
        socket: { ...options.socket, ...master, ...named.tls, reconnectStrategy: false },
        username: named.username,
        password: named.password,
        database: named.database,
      })
      try {
        if ((await roleOf(client)) === 'replica') throw new Error('it is a replica')
      } catch (error) {
        client.destroy()
        throw error
      }
      // The one that knew the master is asked first the next time.
      named.sentinels.sort((one, other) => Number(other === sentinel) - Number(one === sentinel))
      return client
    } catch (error) {
      if (master && isRefusal(error)) throw error
      const where = master ? ` names ${master.host}:${master.port}` : ''
      said.push(`${sentinel.host}:${sentinel.port}${where}: ${reason(error)}${mismatch(error, named.tls)}`)
      if (distrust(error)) untrusted.push(error)
    }
  }
  if (untrusted.length === named.sentinels.length) throw untrusted[0] // waiting mends nothing
  throw new Error(`no Sentinel leads to the master ${named.name}: ${said.join('; ')}`)
}

/** Whether the login is refused, or a certificate is. Waiting does not mend that. */
function isRefusal(error) {
  if (distrust(error)) return true
  return error instanceof redis.ErrorReply && /^(WRONGPASS|NOAUTH|NOPERM)/.test(error.message)
}

/** Where the master is, as a Sentinel says. */
async function ask({ host, port }, { name, tls, login }) {
  const waits = { connectTimeout: PATIENCE_MS, socketTimeout: PATIENCE_MS, reconnectStrategy: false }
  const socket = { host, port, ...tls, ...waits }
  const client = await connected({ socket, ...login, RESP: 2, disableClientInfo: true })
  try {
    const words = (await client.sendCommand(['SENTINEL', 'MASTER', name])).map(String)
    const facts = Object.fromEntries(words.flatMap((word, at) => (at % 2 ? [] : [[word, words[at + 1]]])))
    if (/\b[so]_down\b/.test(facts.flags)) throw new Error('it says that the master is down')
    return { host: facts.ip, port: Number(facts.port) }
  } finally {
    client.destroy()
  }
}

async function connected(options) {
  const client = redis.createClient(options)
  client.on('error', () => {}) // the caller gets the error
  await client.connect()
  return client
}

async function roleOf(client) {
  const words = (await client.sendCommand(['HELLO'])).map(String)
  return words[words.indexOf('role') + 1]
}

/** A client of node-redis for a service's own data. It has the same commands, and follows the master by itself. */
export function openOwn(named, options) {
  const { socket, ...others } = options
  const client = redis.createSentinel({
    name: named.name,
    sentinelRootNodes: named.sentinels,
    nodeClientOptions: {
      ...others,
      socket: { ...socket, ...named.tls },
      username: named.username,
      password: named.password,
      database: named.database,
    },
    sentinelClientOptions: { ...named.login, socket: named.tls, disableClientInfo: true },
    RESP: 2,
  })
  client.on('error', () => {})
  const connecting = client.connect()
  connecting.catch(() => {})
  return client
}
