#!lua flags=allow-oom
-- Write a process into the heartbeat, and remove those that were not heard for a long time, or that are too many.
--
-- KEYS     1 alive (zset)
-- ARGV     1 the member  2 how long a member is kept after it was last heard, ms  3 how many members are
--          kept, those that were heard last
-- RETURNS  the time that was written, ms
--          error WRONGTYPE: alive is not a zset; nothing was written
--
-- A full store allows this too (allow-oom): a member replaces itself, and a worker that waits for memory is alive.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. now - ARGV[2])
-- A time in the future was written before the clock was set back.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. now + ARGV[2], '+inf')
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -ARGV[3] - 1)
return now
