// REDIS_URL: which server it names, which nodes of a cluster, or which Sentinels. No text that this raises has a part of
// a password in it.

import { secured, TLS_OPTIONS } from './tls.mjs'

/** The service is declared or configured wrongly. Its text is one line, fit to show a person. */
export class ServiceError extends Error {}

const SERVER = /^(rediss?):\/\/(?:([^:@/?#]*)(?::([^@/?#]*))?@)?([^@/?#]*)(?:\/(\d*))?(?:\?(.*))?$/
const ADDRESS = /^(\[[^\]]+\]|[^:[\]]*)(?::(\d{1,5}))?$/
const SOCKET = /^unix:\/\/(?:([^:@/]*)(?::([^@/]*))?@)?(\/[^?]+)(?:\?(.*))?$/
const SENTINELS = /^(rediss?)\+sentinel:\/\/(?:([^:@/]*)(?::([^@/]*))?@)?([^@/?]+)\/([\w.-]+)(?:\/(\d*))?(?:\?(.*))?$/
const ENCODE = 'characters of a password such as # / ? @ & % are written %23 %2F %3F %40 %26 %25'
const TORN = `it cannot be taken apart; ${ENCODE}`
const PORT = 6379
/** The options of every url, and those of a url that names Sentinels. By their values: what they must be; empty: anything. */
const OPTIONS = { db: [], username: [], password: [] }
const SENTINEL_OPTIONS = { sentinel_username: [], sentinel_password: [] }
const SENTINEL_PORT = 26379

/** What a url names: Sentinels, or a server. */
export function parse(url = '') {
  return parseSentinels(url) ?? parseUrl(url)
}

/**
 * How node-redis reaches the server that a url names. The login may also stand behind the `?`, as Python's clients have
 * it; so may `db`, which is stronger than the path. `nodes`: only if the url names several nodes of a cluster.
 */
export function parseUrl(url) {
  if (!url) throw new ServiceError('REDIS_URL is not set')
  return usable(() => {
    if (url.startsWith('unix://')) {
      const [username, password, path, query] = taken(SOCKET, url)
      const options = known(query, OPTIONS)
      return { socket: { path: decodeURIComponent(path) }, ...login(username, password, undefined, options) }
    }
    if (!/^rediss?:/.test(url)) throw new Error('it is not redis://, rediss://, unix:// or redis+sentinel://')
    const [scheme, username, password, hosts, database, query] = taken(SERVER, url)
    const nodes = hosts.split(',').map(address)
    if (nodes.length > 1 && hosts.split(',').includes('')) throw new Error('it names no host between two commas')
    const isSecure = scheme === 'rediss'
    const options = known(query, { ...OPTIONS, ...(isSecure && TLS_OPTIONS) })
    const socket = { ...nodes[0], ...(isSecure && secured(options)) }
    return { socket, ...(nodes.length > 1 && { nodes }), ...login(username, password, database, options) }
  })
}

/** What a url like redis+sentinel://user:password@one:26379,two/mymaster/0 names; null: it names no Sentinels. */
export function parseSentinels(url) {
  if (!/^rediss?\+sentinel:/.test(url)) return null
  return usable(() => {
    const [scheme, username, password, hosts, name, database, query] = taken(SENTINELS, url)
    const isSecure = scheme === 'rediss'
    const options = known(query, { ...OPTIONS, ...(isSecure && TLS_OPTIONS), ...SENTINEL_OPTIONS })
    return {
      name,
      tls: isSecure ? secured(options) : {},
      ...login(username, password, database, options),
      sentinels: hosts.split(',').map(sentinel),
      login: {
        username: options.get('sentinel_username') ?? undefined,
        password: options.get('sentinel_password') ?? undefined,
      },
    }
  })
}

function usable(parse) {
  try {
    return parse()
  } catch (error) {
    const why = error instanceof URIError ? 'a % in it is not followed by two hexadecimal digits' : error.message
    throw new ServiceError(`REDIS_URL is not usable: ${why}`)
  }
}

/** The parts of a url. What follows the ? is the last of them. */
function taken(form, url) {
  const parts = form.exec(url)?.slice(1)
  const query = parts?.at(-1)
  // A password may have a ? in it.
  if (parts && (query ?? '').split('&').every((option) => option === '' || /^[a-z_]+=/.test(option))) return parts
  throw new Error(TORN)
}

function address(text) {
  const parts = ADDRESS.exec(text)
  if (!parts) throw new Error(TORN)
  const [, host, port] = parts
  return { host: host.replace(/^\[|\]$/g, '') || 'localhost', port: Number(port ?? PORT) }
}

/** The options behind the `?`, if each is one of these. */
function known(query, allowed) {
  const options = new URLSearchParams(query)
  for (const [name, value] of options) {
    if (!Object.hasOwn(allowed, name)) throw new Error(unknown(name, options, allowed))
    if (!value) throw new Error(`its option ${name} must have a value`)
    const wanted = allowed[name]
    if (wanted.length && !wanted.includes(value)) throw new Error(`its option ${name} must be ${wanted.join(' or ')}`)
  }
  return options
}

function unknown(name, options, allowed) {
  if (Object.hasOwn(TLS_OPTIONS, name)) return `it has an option ${name}; that is for rediss:// only`
  if (Object.hasOwn(SENTINEL_OPTIONS, name)) return `it has an option ${name}; that is for redis+sentinel:// only`
  if (name === 'ssl_ca_path') return 'it has an option ssl_ca_path, which Node cannot use; ssl_ca_certs names one file'
  // It may be a part of a password that has a ? or a & in it.
  const isSecret = [...options].some(([other, value]) => value.includes('@') || other.endsWith('password'))
  if (isSecret) return `it has an option that does not exist; ${ENCODE}`
  return `it has an option ${name.slice(0, 40)}; there are ${Object.keys(allowed).join(', ')}`
}

function login(username, password, database, options) {
  const number = options.get('db') ?? (database || '0')
  if (!/^\d{1,5}$/.test(number)) throw new Error('the database must be a number')
  return {
    username: decoded(username) ?? options.get('username') ?? undefined,
    password: decoded(password) ?? options.get('password') ?? undefined,
    database: Number(number),
  }
}

function decoded(text) {
  return text ? decodeURIComponent(text) : undefined
}

function sentinel(text) {
  const [, host, port] = /^\[?(.*?)\]?(?::(\d+))?$/.exec(text)
  return { host, port: Number(port ?? SENTINEL_PORT) }
}
