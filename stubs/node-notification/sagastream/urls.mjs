// REDIS_URL: which server it names, which nodes of a cluster, or which Sentinels. No text that this raises has a part of
// the url in it: there may be a password in it.

/** The service is declared or configured wrongly. Its text is one line, fit to show a person. */
export class ServiceError extends Error {}

const SERVER = /^(rediss?):\/\/(?:([^:@/?#]*)(?::([^@/?#]*))?@)?([^@/?#]*)(?:\/(\d*))?(?:\?(.*))?$/
const ADDRESS = /^(\[[^\]]+\]|[^:[\]]*)(?::(\d{1,5}))?$/
const SOCKET = /^unix:\/\/(?:([^:@/]*)(?::([^@/]*))?@)?(\/[^?]+)(?:\?(.*))?$/
const SENTINELS = /^(rediss?)\+sentinel:\/\/(?:([^:@/]*)(?::([^@/]*))?@)?([^@/?]+)\/([\w.-]+)(?:\/(\d*))?(?:\?(.*))?$/
const ENCODE = 'characters of a password such as # / ? @ & % are written %23 %2F %3F %40 %26 %25'
const TORN = `it cannot be taken apart; ${ENCODE}`
const PORT = 6379
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
      return { socket: { path: decodeURIComponent(path) }, ...login(username, password, undefined, query) }
    }
    if (!/^rediss?:/.test(url)) throw new Error('it is not redis://, rediss://, unix:// or redis+sentinel://')
    const [scheme, username, password, hosts, database, query] = taken(SERVER, url)
    const nodes = hosts.split(',').map(address)
    if (nodes.length > 1 && hosts.split(',').includes('')) throw new Error('it names no host between two commas')
    const socket = scheme === 'rediss' ? { ...nodes[0], tls: true } : nodes[0]
    return { socket, ...(nodes.length > 1 && { nodes }), ...login(username, password, database, query) }
  })
}

/** What a url like redis+sentinel://user:password@one:26379,two/mymaster/0 names; null: it names no Sentinels. */
export function parseSentinels(url) {
  if (!/^rediss?\+sentinel:/.test(url)) return null
  return usable(() => {
    const [scheme, username, password, hosts, name, database, query] = taken(SENTINELS, url)
    const options = new URLSearchParams(query)
    return {
      name,
      tls: scheme === 'rediss',
      ...login(username, password, database, query),
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

function login(username, password, database, query) {
  const options = new URLSearchParams(query)
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
