// TLS: what a url says of it, and what an error says about certificates. Nothing here has a part of a password in a text.

import { X509Certificate } from 'node:crypto'
import { readFileSync, statSync } from 'node:fs'
import { createSecureContext } from 'node:tls'
import { getSystemErrorMap } from 'node:util'

/** The options of rediss:// urls. By their values: what they must be; empty: anything. */
export const TLS_OPTIONS = {
  ...{ ssl_ca_certs: [], ssl_certfile: [], ssl_keyfile: [], ssl_password: [], ssl_ciphers: [] },
  ...{ ssl_check_hostname: ['true', 'false'], ssl_cert_reqs: ['required', 'none'] },
}

/** What OpenSSL finds wrong with a certificate of the server, as a code of Node. */
const UNTRUSTED =
  /^(ERR_TLS_CERT_\w+|CERT_\w+|\w+_CERT(_\w+)?|UNABLE_TO_\w+|ERROR_IN_CERT_\w+|CRL_\w+|INVALID_(CA|PURPOSE)|PATH_LENGTH_EXCEEDED|HOSTNAME_MISMATCH)$/
/** What the server says if it does not trust this process, as a code of Node. */
const REFUSED = /^ERR_SSL_.*ALERT_(CERTIFICATE_\w+|BAD_CERTIFICATE|UNSUPPORTED_CERTIFICATE|UNKNOWN_CA)$/
/** Other reasons for which a connection will never be made. */
const NEVER = [
  [/^ERR_SSL_WRONG_VERSION_NUMBER$/, 'Redis speaks no TLS at this port: name it with redis://'],
  [/^ERR_SSL_(UNSUPPORTED_PROTOCOL|.*ALERT_PROTOCOL_VERSION)$/, 'Redis and this process have no version of TLS in common'],
  [/^ERR_SSL_.*HANDSHAKE_FAILURE$/, 'Redis and this process have no cipher in common, or it wants a certificate'],
]

/**
 * What the options of a rediss:// url mean for node-redis. The files are read now, not again at each connection.
 *
 * @param options a URLSearchParams
 */
export function secured(options) {
  const named = ['ssl_ca_certs', 'ssl_certfile', 'ssl_keyfile'].filter((name) => options.has(name))
  try {
    const [ca, cert, key] = ['ssl_ca_certs', 'ssl_certfile', 'ssl_keyfile'].map((name) => read(options.get(name)))
    const certificates = {
      ...(ca && { ca }),
      ...(cert && { cert, key: key ?? cert }), // one file may have both
      ...(options.has('ssl_password') && { passphrase: options.get('ssl_password') }),
      ...(options.has('ssl_ciphers') && { ciphers: options.get('ssl_ciphers') }),
    }
    if (ca) new X509Certificate(ca) // a file without a certificate would be ignored
    createSecureContext(certificates)
    return {
      tls: true,
      ...certificates,
      ...(options.get('ssl_check_hostname') === 'false' && { checkServerIdentity: () => undefined }),
      ...(options.get('ssl_cert_reqs') === 'none' && { rejectUnauthorized: false }),
    }
  } catch (error) {
    const files = named.map((name) => `${options.get(name)}: `).join('')
    throw new Error(`its certificates cannot be used: ${files}${whyUnusable(error)}`)
  }
}

function read(path) {
  if (path === null) return undefined
  if (!statSync(path).isFile()) throw new NotAFile() // reading it might wait for ever
  return readFileSync(path, 'utf8')
}

class NotAFile extends Error {
  reason = 'not a file'
}

function whyUnusable(error) {
  if (error.syscall !== undefined) return getSystemErrorMap().get(error.errno)?.[1] ?? error.code
  return error.reason ?? error.code ?? 'not a certificate and its key, or another password'
}

/** Why a connection will never be made, for a person; undefined: waiting may help. */
export function distrust(error) {
  const { code = '' } = error
  if (REFUSED.test(code)) return 'Redis does not take the certificate of this process: see ssl_certfile and ssl_keyfile'
  const never = NEVER.find(([pattern]) => pattern.test(code))
  if (never) return never[1]
  if (!UNTRUSTED.test(code)) return undefined
  return `the certificate of Redis cannot be trusted: ${error.message}${nextStep(code)}`
}

function nextStep(code) {
  if (/^ERR_TLS_CERT_ALTNAME/.test(code)) return '; use a name in REDIS_URL that the certificate has'
  if (/SELF_SIGNED|ISSUER|LEAF_SIGNATURE/.test(code)) return '; name its CA by ssl_ca_certs in REDIS_URL'
  return ''
}
