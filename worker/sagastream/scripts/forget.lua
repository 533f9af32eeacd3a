#!lua flags=allow-oom
-- Delete the consumers of a group that are gone: they hold no entries, and have not asked for any for a long time. If a
-- consumer was only silent, the server creates it again when it next asks.
--
-- KEYS     1 the stream
-- ARGV     1 the group  2 how long is a long time, ms
-- RETURNS  how many were deleted; 0 if there is no such group
local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
local forgotten = 0
for i = 1, consumers.err and 0 or #consumers do
  local consumer = {}
  for at = 1, #consumers[i], 2 do
    consumer[consumers[i][at]] = consumers[i][at + 1]
  end
  if consumer.pending == 0 and consumer.idle > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    forgotten = forgotten + 1
  end
end
return forgotten
