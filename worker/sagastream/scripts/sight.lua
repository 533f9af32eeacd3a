#!lua flags=no-writes
-- Tell how far a partition of a cluster is, and which node holds it. All of one node and one moment: if it is on the
-- move, single commands may be answered by two.
--
-- KEYS     1 the stream that a process reads  2 seen (zset)
-- ARGV     1 the process of which to tell when it last saw the partition
-- RETURNS  {the time: seconds, microseconds}, INFO replication, the id of the node (an error: this user may not ask),
--          the time of that process (nil: none), XINFO GROUPS of the stream (an error: there is none),
--          the newest process and its time ({}: none)

return {
  redis.call('TIME'),
  redis.call('INFO', 'replication'),
  redis.pcall('CLUSTER', 'MYID'),
  redis.pcall('ZSCORE', KEYS[2], ARGV[1]),
  redis.pcall('XINFO', 'GROUPS', KEYS[1]),
  redis.pcall('ZRANGE', KEYS[2], 0, 0, 'REV', 'WITHSCORES'),
}
