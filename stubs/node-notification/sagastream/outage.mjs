// What an error of Redis means: the one list of what an outage is, and how long to wait then.

import * as redis from '@redis/client'
import { distrust } from './tls.mjs'
import { ServiceError } from './urls.mjs'

/** Errors of the server that pass: it is loading, failing over, full, cannot write to its disk, ends a blocking read … */
const PASSING = /^(LOADING|READONLY|OOM|MISCONF|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS|BUSY|UNBLOCKED) /
/** Those that say that the server is a replica by now. */
const DEMOTED = /^(READONLY|MASTERDOWN|UNBLOCKED .*instance state changed)/
/** It may be a former master, which its replicas have left. */
const FORMER = /^NOREPLICAS /

/** Redis cannot be reached, or its answer was lost. */
export class Away extends Error {}

/** The same of one node of a cluster. Its map has told of that. */
export class NodeAway extends Away {}

/** Whether Redis is away for a while. If so, wait; every other error is a fault. */
export function isOutage(error) {
  if (error instanceof redis.ErrorReply) return PASSING.test(error.message)
  return error instanceof Away || error instanceof redis.SocketClosedUnexpectedlyError
}

/** What of an error at a connection a service ends with: a login is refused, a certificate is. undefined: it passes. */
export function faultOf(error) {
  if (error instanceof redis.ErrorReply) return isOutage(error) ? undefined : error
  const why = distrust(error)
  return why === undefined ? undefined : new ServiceError(why, { cause: error })
}

/** What an error at a connection says to a person. */
export function reason(error) {
  return error.message || error.errors?.[0]?.message || error.code || 'the connection was lost'
}

/**
 * What to add to an error if url and port may not agree about TLS.
 *
 * @param socket how node-redis reaches a server that has never answered
 */
export function mismatch(error, { tls, path }) {
  if (path !== undefined) return ''
  if (tls) return error instanceof redis.ConnectionTimeoutError ? '; perhaps the port speaks no TLS: redis://' : ''
  const isClosed = error instanceof redis.SocketClosedUnexpectedlyError || error.code === 'ECONNRESET'
  return isClosed ? '; perhaps the port wants TLS: rediss://' : ''
}

/** Whether an error says that the server is a replica by now. */
export function isDemoted(error) {
  return DEMOTED.test(error.message)
}

/** Whether an error says that the server is no master any more, or may be none. */
export function isLeft(error) {
  return isDemoted(error) || FORMER.test(error.message)
}

/** Milliseconds to wait after the nth failure in a row. */
export function delay(failures) {
  return Math.min(2000, 50 * 2 ** Math.min(failures - 1, 30))
}
