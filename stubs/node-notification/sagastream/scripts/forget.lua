#!lua
-- Forget the consumers of a group that are gone: they hold nothing, and have not asked for a long time. One that only
-- slept is made anew when it asks again.
--
-- KEYS     1 the stream
-- ARGV     1 the group  2 how long is long, ms
-- RETURNS  how many were forgotten; 0 where there is no such group
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
