#!lua flags=allow-oom
-- Give up the lease on sagas that due.lua has leased: they are due again at once, and another worker may take them.
--
-- KEYS     1 timers (zset)
-- ARGV     1 until when they are leased, ms, as due.lua returned it  2.. the ids
-- RETURNS  how many were given back; a saga that got another score meanwhile is not given back
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leased_until, given_back = tonumber(ARGV[1]), 0
for i = 2, #ARGV do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) == leased_until then
    redis.call('ZADD', KEYS[1], now, ARGV[i])
    given_back = given_back + 1
  end
end
return given_back
