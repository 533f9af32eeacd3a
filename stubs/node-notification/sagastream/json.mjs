// JSON without a loss. JSON.parse and JSON.stringify round numbers silently: 3544790567247868102 becomes
// 3544790567247868000. Here an integer that a Number cannot hold is a BigInt, both ways, and any other number that a
// Number cannot hold is refused. Pure.

const MAX_DEPTH = 64
/** How many values a text may hold, and how many of them may be objects: reading more would hold the process up. */
const [MAX_VALUES, MAX_OBJECTS] = [100_000, 50_000]
/** … besides a payload, the members of a body. */
const OTHER_MEMBERS = 16
const MAX_PAYLOAD_DEPTH = MAX_DEPTH - 3
const MAX_PAYLOAD_BYTES = (1 << 20) - 1024
/** The integers that the protocol knows: 64 bits, signed or not. */
const [LEAST, GREATEST] = [-(2n ** 63n), 2n ** 64n - 1n]
/** More characters than any such integer has, and than anybody needs for another number. */
const [MAX_INTEGER_CHARS, MAX_NUMBER_CHARS] = [20, 1100]
/** Outside of strings, no other sign of JSON has a code that is as small as this. */
const BLANK = 0x20
const NUMBER = /-?\d[\d.eE+-]*/y
const WORDS = { t: [true, 4], f: [false, 5], n: [null, 4] }

/** It is not JSON as the protocol has it, or a value that no JSON can carry. */
export class Malformed extends Error {}

/** The value of a JSON text. Throws Malformed. */
export function parse(text) {
  try {
    checkCounts(text, MAX_VALUES)
    JSON.parse(text) // what follows relies on its syntax
  } catch (error) {
    throw error instanceof Malformed ? error : new Malformed(`not JSON: ${error.message}`)
  }
  return new Reader(text).value(1)
}

/** A value as JSON text; undefined if JSON.stringify has none for it, either. Throws Malformed. */
export function stringify(value, key = '', level = 1) {
  if (typeof value?.toJSON === 'function') value = value.toJSON(key)
  if ([Number, String, Boolean, BigInt].some((type) => value instanceof type)) value = value.valueOf()
  switch (typeof value) {
    case 'string':
      return writeString(value)
    case 'boolean':
      return String(value)
    case 'number':
      return writeNumber(value)
    case 'bigint':
      return String(within64Bits(value, value))
    case 'object':
      return value === null ? 'null' : writeContainer(value, level)
    default:
      return undefined
  }
}

/** A handler's value as JSON. Throws Malformed if no reply can carry it, or if it would change without notice. */
export function encodePayload(value) {
  const text = stringify(value)
  if (text === undefined) throw new Malformed(`a ${typeof value} is not JSON`)
  const bytes = Buffer.byteLength(text)
  if (bytes > MAX_PAYLOAD_BYTES) throw new Malformed(`too large: ${bytes} bytes, at most ${MAX_PAYLOAD_BYTES}`)
  checkCounts(text, MAX_VALUES - OTHER_MEMBERS)
  return text
}

/** Throws Malformed if there are too many values to be read. If it is not JSON, all up to the fault is counted right. */
function checkCounts(text, mostValues) {
  if (text.length <= MAX_OBJECTS) return
  let [values, objects, isEmpty] = [1, 0, false]
  for (let at = 0; at < text.length; at += 1) {
    if (text.charCodeAt(at) <= BLANK) continue
    const sign = text[at]
    // A value more comes with each comma, and with each container that is not empty.
    if (isEmpty && sign !== ']' && sign !== '}') values += 1
    isEmpty = sign === '[' || sign === '{'
    if (sign === ',') values += 1
    else if (sign === '{') objects += 1
    else if (sign === '"') at = endOfString(text, at)
  }
  if (values > mostValues) throw new Malformed(`too many values: ${values}, at most ${mostValues}`)
  if (objects > MAX_OBJECTS) throw new Malformed(`too many objects: ${objects}, at most ${MAX_OBJECTS}`)
}

/** Where the quote stands that ends the string that begins here; the end of the text if there is none. */
function endOfString(text, start) {
  let at = start + 1
  for (; at < text.length && text[at] !== '"'; at += 1) if (text[at] === '\\') at += 1
  return at
}

/** Reads a text that is known to be JSON. */
class Reader {
  #text
  #at = 0

  constructor(text) {
    this.#text = text
  }

  value(level) {
    const first = this.#next()
    if (first === '"') return this.#string()
    if (first === '[' || first === '{') {
      if (level > MAX_DEPTH) throw new Malformed(`nested deeper than ${MAX_DEPTH} levels`)
      return first === '[' ? this.#array(level) : this.#object(level)
    }
    if (first in WORDS) {
      const [value, length] = WORDS[first]
      this.#at += length
      return value
    }
    NUMBER.lastIndex = this.#at
    const [digits] = NUMBER.exec(this.#text)
    this.#at += digits.length
    return readNumber(digits)
  }

  /** The next character that is not a blank. */
  #next() {
    while (this.#text.charCodeAt(this.#at) <= BLANK) this.#at += 1
    return this.#text[this.#at]
  }

  #string() {
    const end = endOfString(this.#text, this.#at)
    const value = this.#text.slice(this.#at + 1, end)
    const quoted = value.includes('\\') && this.#text.slice(this.#at, end + 1)
    this.#at = end + 1
    return quoted ? JSON.parse(quoted) : value
  }

  #array(level) {
    const items = []
    for (this.#at += 1; this.#next() !== ']'; this.#skipComma()) items.push(this.value(level + 1))
    this.#at += 1
    return items
  }

  #object(level) {
    const members = {}
    for (this.#at += 1; this.#next() !== '}'; this.#skipComma()) {
      const name = this.#string()
      if (Object.hasOwn(members, name)) throw new Malformed(`the key ${JSON.stringify(name)} occurs twice in one object`)
      this.#next() // the colon
      this.#at += 1
      const value = this.value(level + 1)
      if (name !== '__proto__') members[name] = value
      // An assignment would not make a member.
      else Object.defineProperty(members, name, { value, writable: true, enumerable: true, configurable: true })
    }
    this.#at += 1
    return members
  }

  #skipComma() {
    if (this.#next() === ',') this.#at += 1
  }
}

function readNumber(digits) {
  const number = Number(digits)
  if (/^-?\d+$/.test(digits)) {
    if (Number.isSafeInteger(number)) return number
    return within64Bits(digits.length <= MAX_INTEGER_CHARS ? BigInt(digits) : Infinity, digits)
  }
  if (!isHeld(digits, number)) throw new Malformed(`the number ${short(digits)} is more than a Number can hold`)
  return number
}

/** Whether a Number holds what the digits say: written with as many digits, it is the same again. */
function isHeld(digits, number) {
  if (String(number) === digits) return true // most are; the rest takes longer
  if (!Number.isFinite(number) || digits.length > MAX_NUMBER_CHARS) return false
  const [coefficient, exponent] = decimal(digits)
  if (coefficient === '') return true // it is zero
  if (coefficient.length > 100) return false // more than toPrecision can write
  // Where the Number lies in the middle of two, the two ways of writing it differ.
  return [number.toPrecision(coefficient.length), String(number)].some((written) => {
    const [held, heldExponent] = decimal(written)
    return held === coefficient && heldExponent === exponent
  })
}

/** A number as its significant digits, without zeros around them, and the power of ten of the last one. */
function decimal(digits) {
  const [, whole, fraction = '', exponent = '0'] = /^-?(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/.exec(digits)
  const all = (whole + fraction).replace(/^0+/, '')
  const coefficient = all.replace(/0+$/, '')
  return [coefficient, Number(exponent) - fraction.length + all.length - coefficient.length]
}

function writeContainer(value, level) {
  if (level > MAX_PAYLOAD_DEPTH) throw new Malformed(`nested deeper than ${MAX_PAYLOAD_DEPTH} levels`)
  if (Array.isArray(value)) {
    return `[${value.map((item, index) => stringify(item, String(index), level + 1) ?? 'null').join(',')}]`
  }
  const members = []
  for (const [name, item] of Object.entries(value)) {
    const text = stringify(item, name, level + 1)
    if (text !== undefined) members.push(`${writeString(name)}:${text}`)
  }
  return `{${members.join(',')}}`
}

function writeString(text) {
  if (/\p{Surrogate}/u.test(text)) throw new Malformed('a text has half a character, which UTF-8 cannot say')
  return JSON.stringify(text)
}

function writeNumber(number) {
  if (!Number.isFinite(number)) throw new Malformed('NaN and infinities have no place in JSON')
  if (Object.is(number, -0)) return '-0.0'
  // JSON writes it without an exponent, so it would be read as an integer with more digits than it has.
  const isWritten = Number.isInteger(number) && Math.abs(number) < 1e21
  if (isWritten && !Number.isSafeInteger(number)) throw new Malformed(`the integer ${number} is not exact`)
  return String(number)
}

function within64Bits(integer, digits) {
  if (integer >= LEAST && integer <= GREATEST) return integer
  throw new Malformed(`the integer ${short(digits)} does not fit into 64 bits`)
}

function short(digits) {
  const text = String(digits)
  return text.length > 24 ? `${text.slice(0, 24)}…` : text
}
