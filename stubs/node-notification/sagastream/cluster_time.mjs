// The time of a cluster: that of the node which has the keys of the whole store. Each node has a clock of its own.

import { setTimeout as sleep } from 'node:timers/promises'

/** How often that node is asked. In between, and while it is away, the time goes on by the clock of this process. */
const ASK_EVERY_MS = 1000
/** How long to wait for that node as long as it was never heard. */
const PATIENCE_MS = 500

export class ClusterTime {
  #ask // asks the node; a promise of a BigInt
  #asking // the promise of the answer that is under way
  #askedAt = -Infinity // when it was asked last, by performance.now() …
  #toldAt = -Infinity // … and when the question was asked that it has answered last
  #aheadMs // how far its clock is ahead of performance.now(); undefined: it was never heard

  constructor(ask) {
    this.#ask = ask
  }

  /** The time in ms, as this process knows it; undefined: that node is away, and was never heard. */
  async now() {
    if (this.#askedAt < performance.now() - ASK_EVERY_MS) {
      const asked = this.#again()
      // Nothing waits for one node, if it need not.
      if (this.#aheadMs === undefined) await Promise.race([asked, sleep(PATIENCE_MS, undefined, { ref: false })])
    }
    return this.#known()
  }

  /** The same, as that node tells it at this moment, if it is there: its clock may have been set. */
  async told() {
    const now = performance.now()
    await this.#asking // that was asked before, so it may be old
    if (this.#toldAt < now) await this.#again()
    return this.#known()
  }

  #known() {
    return this.#aheadMs === undefined ? undefined : Math.round(performance.now() + this.#aheadMs)
  }

  #again() {
    const now = performance.now()
    this.#askedAt = now
    this.#asking ??= this.#ask()
      .then((ms) => {
        this.#aheadMs = Number(ms) - performance.now()
        this.#toldAt = now
      })
      .catch(() => {}) // what is known stands
      .finally(() => {
        this.#asking = undefined
      })
    return this.#asking
  }
}
