#!lua flags=allow-oom
-- Write a process into the heartbeat, and sweep out those that were not heard for long.
--
-- KEYS     1 alive (zset)
-- ARGV     1 the member  2 how long a member that is not heard is kept, ms
-- RETURNS  the time that was written, ms
--          error WRONGTYPE: alive is not a zset; nothing was written
--
-- A full store takes it too (allow-oom): one member in the place of another, and a worker that waits for room is alive.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. now - ARGV[2])
-- What was heard in the future was heard before the clock was set back.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. now + ARGV[2], '+inf')
redis.call('ZADD', KEYS[1], now, ARGV[1])
return now
