// Commands and replies, and what to do with a command that was seen before. Pure.

import { Malformed, parse } from './json.mjs'

const ID = /^[A-Za-z0-9._:-]{1,128}$/
const MAX_STEPS = 100
/** The format of commands and of records that this release knows. */
const FORMAT = 1
const MAX_BODY_BYTES = 1 << 20

/** The span of a saga, as W3C Trace Context writes it. A later version may have more at the end. */
const TRACEPARENT = /^(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-[!-~]{0,400})?$/

/** What tracing systems add to it: members, as workers write them. */
const MEMBER = '[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\\--<>-~]{0,255}[!-+\\--<>-~]'
const TRACESTATE = new RegExp(`^${MEMBER}(,${MEMBER}){0,31}$`)
const MAX_TRACESTATE = 512

/** A command that only a newer release knows. */
export class Newer extends Error {}

/**
 * The command that an entry holds. Throws Malformed or Newer.
 *
 * @param fields the entry's fields, name -> Buffer
 * @param sentMs when it was added; used if `begun_ms` is missing, as in entries that were made by hand
 */
export function readCommand(fields, sentMs) {
  const format = readNumber(fields.format, 'format', 1)
  if (format > FORMAT) throw new Newer(`met format ${format}, which only a newer release knows`)
  if (fields.body === undefined) throw new Malformed('the entry has no field body')
  const body = readBody(fields.body)
  const compensating = body.compensating ?? false
  if (typeof compensating !== 'boolean') throw new Malformed('compensating must be true or false')
  if (!Number.isInteger(body.step) || body.step < 1 || body.step > MAX_STEPS) {
    throw new Malformed(`step must be a whole number from 1 to ${MAX_STEPS}`)
  }
  const type = readName(body.type, 'type')
  const where = `${readName(body.saga_id, 'saga_id')}/${body.step}`
  const key = `${where}/${compensating ? 'compensation' : 'transaction'}`
  return {
    type,
    sagaId: body.saga_id,
    step: body.step,
    compensating,
    params: compensating ? readJson(fields.params, 'params', null) : (body.params ?? null),
    result: readJson(fields.result, 'result', null),
    attempt: readNumber(fields.attempt, 'attempt', 1),
    begunMs: readNumber(fields.begun_ms, 'begun_ms', sentMs),
    notAfterMs: readNumber(fields.not_after_ms, 'not_after_ms', Infinity),
    retried: fields.retried !== undefined,
    undoneBy: readCompensation(fields.compensation),
    ...readTrace(fields),
    key,
    transactionKey: `${where}/transaction`,
    record: `${key}/${type}`,
    tombstone: `${where}/transaction/(void)`,
  }
}

export function isId(name) {
  return typeof name === 'string' && ID.test(name)
}

/** The key with which something in the params or the result of a command is sealed; undefined: nothing is. */
export function sealedWith(command) {
  return keyIn(command.params) ?? keyIn(command.result)
}

function keyIn(value) {
  if (value === null || typeof value !== 'object') return undefined
  const sealed = Object.keys(value).length === 1 ? value.$sealed : undefined
  if (sealed !== null && typeof sealed === 'object' && Object.keys(sealed).length === 3) {
    const { key, from, data } = sealed
    if (isId(key) && typeof from === 'string' && typeof data === 'string') return key
  }
  for (const member of Object.values(value)) {
    const key = keyIn(member)
    if (key !== undefined) return key
  }
  return undefined
}

/** The reply that says that a command was done. `result` is JSON, or undefined if there is none. */
export function done(command, result) {
  return { command, ok: true, result }
}

/** The reply that says that no effect of a command remains; if `unknown`: that nobody knows. `error` is JSON. */
export function failed(command, error, unknown = false) {
  return { command, ok: false, error, unknown }
}

/** The reply to a command whose step was undone before it came. */
export function refusal(command) {
  return failed(command, JSON.stringify(`cancelled: ${command.type} came after its compensation`))
}

/** The fields of the entry for the replies stream: name, value, … */
export function replyFields(reply) {
  const { command } = reply
  const members = [
    `"type":"${command.type}_${reply.ok ? 'ok' : 'failed'}"`,
    `"saga_id":"${command.sagaId}"`,
    `"step":${command.step}`,
  ]
  if (reply.result !== undefined) members.push(`"result":${reply.result}`)
  if (reply.error !== undefined) members.push(`"error":${reply.error}`)
  const fields = ['body', `{${members.join(',')}}`, 'attempt', String(command.attempt)]
  if (reply.unknown) fields.push('unknown', '1')
  if (command.traceparent !== undefined) fields.push('traceparent', command.traceparent)
  if (command.tracestate !== undefined) fields.push('tracestate', command.tracestate)
  return fields
}

/** The fields of an entry for the quarantine. */
export function quarantineFields(entry, stream, reason) {
  const body = entry.fields.body ?? Buffer.alloc(0)
  const names = Object.keys(entry.fields).filter((name) => name !== 'body')
  const others = JSON.stringify(Object.fromEntries(names.map((name) => [name, String(entry.fields[name])])))
  const isWhole = body.length <= MAX_BODY_BYTES && others.length <= 4096
  return [
    ...['reason', reason, 'stream', stream, 'entry_id', entry.id],
    ...['body', body.subarray(0, MAX_BODY_BYTES)],
    ...['fields', isWhole ? others : `cut: ${others}`.slice(0, 4096)],
  ]
}

/**
 * What to do with a command that was looked up. Without a `reply`: call its handler. With one: answer with it. If
 * `undo`: first undo what an earlier delivery may have done.
 *
 * @param record what is recorded about it; null if nothing is
 * @param tombstone whether the step's compensation has come already
 * @param again whether it was delivered before: somebody may have worked on it
 */
export function verdict(command, { record, tombstone, again }) {
  let reply = recorded(command, record)
  if (!reply && tombstone && !command.compensating) reply = refusal(command)
  // Even if an ok is recorded: that was another delivery, and this one may have had its effect after the undo.
  const undo = Boolean(reply) && !command.compensating && (tombstone || !reply.ok) && again
  return { reply, undo }
}

/** The format of a record, if only a newer release can read it. Then its command is left to that release. */
export function newerFormat(record) {
  const format = Number(/^v([1-9][0-9]{0,8}) /.exec(record ?? '')?.[1] ?? 1)
  return format > FORMAT ? format : undefined
}

/** The kind of a handler's reply, for answer.lua. What is recorded is final. */
export function kindOf(reply) {
  if (reply.ok) return 'ok'
  return reply.unknown || reply.command.retried ? 'unknown' : 'failed'
}

function recorded(command, record) {
  const [, kind, text] = /^(ok|failed) (.*)$/s.exec(record ?? '') ?? []
  if (kind === undefined) return undefined
  try {
    if (text !== '') JSON.parse(text) // it is sent on as it stands
  } catch {
    return undefined // a garbled record answers nothing
  }
  const payload = text === '' ? undefined : text
  return kind === 'ok' ? done(command, payload) : failed(command, payload)
}

function readBody(bytes) {
  if (bytes.length > MAX_BODY_BYTES) throw new Malformed(`too large: ${bytes.length} bytes, at most ${MAX_BODY_BYTES}`)
  const body = readJson(bytes, 'body')
  const isObject = body !== null && typeof body === 'object' && !Array.isArray(body)
  if (!isObject) throw new Malformed('the body is not a JSON object')
  return body
}

function readJson(bytes, what, otherwise) {
  if (bytes === undefined) return otherwise
  try {
    return parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (error) {
    throw new Malformed(`${what}: ${error instanceof Malformed ? error.message : `not JSON: ${error.message}`}`)
  }
}

function readName(name, what) {
  if (!isId(name)) throw new Malformed(`${what} must be 1 to 128 characters of A-Z a-z 0-9 . _ : -`)
  return name
}

function readNumber(bytes, what, otherwise) {
  if (bytes === undefined) return otherwise
  if (!/^[0-9]{1,15}$/.test(bytes)) throw new Malformed(`the field ${what} must be a whole number`)
  return Number(bytes)
}

/** What undoes a transaction, as the step says. undefined: the step does not say; null: nothing is to be undone. */
function readCompensation(bytes) {
  if (bytes === undefined || bytes.length === 0) return bytes && null
  if (!isId(String(bytes))) throw new Malformed('the field compensation must be a name, or empty')
  return String(bytes)
}

/**
 * The span of the saga, and what tracing systems add to it. undefined: it is not there, or not written as it should be. A
 * trace that is cut off is better than a command that is refused.
 */
function readTrace({ traceparent, tracestate }) {
  const [, version, rest, more] = TRACEPARENT.exec(traceparent?.toString('latin1') ?? '') ?? []
  if (rest === undefined || (version === '00' && more !== undefined)) return {}
  const state = tracestate?.toString('latin1') ?? ''
  const isState = state.length <= MAX_TRACESTATE && TRACESTATE.test(state)
  return { traceparent: `00-${rest}`, tracestate: isState ? state : undefined }
}
