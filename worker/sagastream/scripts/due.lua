#!lua
-- Lease the sagas whose time has come: whoever gets them sees to them, and if it dies they come up again.
--
-- KEYS     1 timers (zset)
-- ARGV     1 how many at the most  2 for how long they are leased, ms
-- RETURNS  how long it is until the next one, ms (-1: there is none that waits for a time), then the ids
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for i = 1, #due do
  redis.call('ZADD', KEYS[1], now + ARGV[2], due[i])
end
local following = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return { following[2] and math.max(0, math.ceil(following[2] - now)) or -1, unpack(due) }
