#!lua flags=allow-oom
-- Make sagas due that wait for nothing but the end of a pause.
--
-- KEYS     1 timers (zset)
-- ARGV     1 for how long due.lua leases a saga, ms  2.. the ids
-- RETURNS  how many are due now that were not. A saga that is due anyway, or leased, or not in timers, stays as it is
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leased_until, woken = now + ARGV[1], 0
for i = 2, #ARGV do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) > leased_until then
    redis.call('ZADD', KEYS[1], 0, ARGV[i]) -- due by any clock: each node of a cluster has its own
    woken = woken + 1
  end
end
return woken
