#!lua flags=allow-oom
-- Give up the lease on sagas that due.lua has leased: they are due again at once, and another worker may take them.
--
-- KEYS     1 timers (zset)
-- ARGV     1 until when they are leased, ms, as due.lua returned it  2 since when they are, ms  3.. the ids
-- RETURNS  how many were given back; a saga that got another score meanwhile is not given back
local leased_until, given_back = tonumber(ARGV[1]), 0
for i = 3, #ARGV do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) == leased_until then
    redis.call('ZADD', KEYS[1], ARGV[2], ARGV[i])
    given_back = given_back + 1
  end
end
return given_back
