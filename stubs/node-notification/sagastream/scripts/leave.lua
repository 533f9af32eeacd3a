#!lua flags=allow-oom
-- Take a consumer out of its group. If it still holds entries, it stays in the group, since the server would drop them
-- with it: they get a long idle time instead, so that others take them over at once.
--
-- KEYS     1 the stream
-- ARGV     1 the group  2 the consumer
-- RETURNS  how many entries it still held (it hands back at most 20,000); 0 if there is no such group
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
