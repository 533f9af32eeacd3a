#!lua
-- Take a consumer out of its group. What it still holds is not lost with it: it is made to look long abandoned, so that
-- others take it over at once, and the consumer stays in the group until they have.
--
-- KEYS     1 the stream
-- ARGV     1 the group  2 the consumer
-- RETURNS  how many entries it still held; 0 where there is no such group
local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000, ARGV[2])
if held.err then
  return 0
end
if #held == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
  return 0
end
local ids = {}
for i = 1, #held do
  ids[i] = held[i][1]
end
ids[#ids + 1] = 'IDLE'
ids[#ids + 1] = 86400000
ids[#ids + 1] = 'JUSTID'
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(ids))
return #held
