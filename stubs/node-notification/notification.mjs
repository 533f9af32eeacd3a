// A sample service: it notifies people. What it sent is in an outbox in Redis, by idempotency key:
//
// stubs:{notification}:outbox   hash   idempotency key -> the notification as JSON; "withdrawn": it must not be sent

import { connect } from './sagastream/broker.mjs'
import { Reject, Service } from './sagastream/service.mjs'

const OUTBOX = 'stubs:{notification}:outbox'
const WITHDRAWN = 'withdrawn'

const service = new Service('notification')
let redis // connected when the first command comes

service.command('SendNotification', { compensation: 'WithdrawNotification' }, async (params, context) => {
  const { to, text } = params ?? {}
  if (typeof to !== 'string' || typeof text !== 'string') throw new Reject('malformed_params: needs to and text')
  if (!to.includes('@')) throw new Reject('no_such_address')
  redis ??= connect()
  await redis.hSetNX(OUTBOX, context.key, JSON.stringify({ to, text }))
  if ((await redis.hGet(OUTBOX, context.key)) === WITHDRAWN) throw new Reject('cancelled')
  return { notification_id: `n-${context.key}` }
})

service.compensation('WithdrawNotification', async (_params, context) => {
  redis ??= connect()
  await redis.hSet(OUTBOX, context.transactionKey, WITHDRAWN)
})

await service.run()
redis?.destroy()
