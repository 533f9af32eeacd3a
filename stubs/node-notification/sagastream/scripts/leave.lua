#!lua
-- Take a consumer out of its group. What it still holds is not lost with it: it is made to look long abandoned, so that
-- others take it over at once, and the consumer stays in the group.
--
-- KEYS     1 the stream
-- ARGV     1 the group  2 the consumer
-- RETURNS  how many entries it still held (at most 20,000 of them are handed back); 0 where there is no such group
local total, after = 0, '-'
for _ = 1, 20 do
  local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], after, '+', 1000, ARGV[2])
  if held.err or #held == 0 then
    break
  end
  local ids = {}
  for i = 1, #held do
    ids[i] = held[i][1]
  end
  total = total + #ids
  after = '(' .. ids[#ids]
  ids[#ids + 1] = 'IDLE'
  ids[#ids + 1] = 86400000
  ids[#ids + 1] = 'JUSTID'
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(ids))
end
if total == 0 then
  redis.pcall('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
return total
