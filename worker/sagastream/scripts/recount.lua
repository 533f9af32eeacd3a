#!lua flags=allow-oom
-- Have entries count as delivered now that were delivered at a time which has not come yet: the clock was set back.
-- Otherwise nobody could claim them before that time. Who holds them, and how often they were delivered, stays.
--
-- KEYS     1 the stream
-- ARGV     1 the group  2 the id of the entry after which to look ("": from the first one on)  3 at how many to look
-- RETURNS  the id of the last entry at which it looked; "" if there are no more, or there is no such group
local first = ARGV[2] == '' and '-' or '(' .. ARGV[2]
local page = redis.pcall('XPENDING', KEYS[1], ARGV[1], first, '+', ARGV[3])
if page.err or #page == 0 then
  return ''
end
local held = {}
for _, entry in ipairs(page) do
  local id, consumer, idle = entry[1], entry[2], entry[3]
  -- The server says 0 if the time of delivery is still to come. An entry that was delivered just now is not changed.
  if idle == 0 then
    held[consumer] = held[consumer] or {}
    table.insert(held[consumer], id)
  end
end
for consumer, ids in pairs(held) do
  for _, word in ipairs({ 'IDLE', 0, 'JUSTID' }) do
    table.insert(ids, word)
  end
  redis.call('XCLAIM', KEYS[1], ARGV[1], consumer, 0, unpack(ids))
end
return #page == tonumber(ARGV[3]) and page[#page][1] or ''
