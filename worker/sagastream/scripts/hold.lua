#!lua flags=allow-oom
-- Set the idle time of the entries that a consumer still holds. An idle time of 0 renews the lease; a long one hands
-- the entries back, so that others take them over at once.
--
-- KEYS     1 the stream
-- ARGV     1 the group  2 the consumer  3 the idle time, ms  4.. the entries' ids
-- RETURNS  the ids of the entries that it still held; the others were not changed

local held = {}
for i = 4, #ARGV do
  local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if not pending.err and #pending > 0 then
    held[#held + 1] = ARGV[i]
  end
end
if #held > 0 then
  local words = { unpack(held) }
  for _, word in ipairs({ 'IDLE', ARGV[3], 'JUSTID' }) do
    words[#words + 1] = word
  end
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(words))
end
return held
