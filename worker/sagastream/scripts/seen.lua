#!lua flags=allow-oom
-- Note that a process has seen a partition of a cluster by now, unless another node holds it than the process saw last.
-- Remove the processes that have not for a long time.
--
-- KEYS     1 seen (zset)
-- ARGV     1 the name of the process  2 how long a name is kept after the process last saw the partition, ms
--          3 the replication id that it saw
-- RETURNS  the time that was written, ms; nil: another replication id is there, nothing was written
--          error WRONGTYPE: seen is not a zset; nothing was written

if not string.find(redis.call('INFO', 'replication'), 'master_replid:' .. ARGV[3], 1, true) then
  return false
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. now - ARGV[2])
return now
