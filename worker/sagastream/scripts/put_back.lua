#!lua flags=allow-oom
-- Put entries back that are in a stream, that the group has passed over, and that nobody holds: no reader would ever get
-- them. That comes of XGROUP SETID or XGROUP DELCONSUMER by hand. Each is added again, since a group reads only onward.
--
-- KEYS     1 the stream
-- ARGV     1 the group  2.. the entries' ids
-- RETURNS  how many were put back; the others were answered, read or put back meanwhile
--          error NOGROUP: there is no such group; nothing was written

local group = ARGV[1]

-- What XINFO says, by name.
local function facts(list)
  local found = {}
  for i = 1, #list, 2 do
    found[list[i]] = list[i + 1]
  end
  return found
end

-- Whether one id comes after another. Both numbers may have 64 bits, more than a number of Lua holds exactly.
local function is_after(one, other)
  local ms, number = one:match('(%d+)-(%d+)')
  local other_ms, other_number = other:match('(%d+)-(%d+)')
  if ms ~= other_ms then
    return #ms > #other_ms or (#ms == #other_ms and ms > other_ms)
  end
  return #number > #other_number or (#number == #other_number and number > other_number)
end

local read_up_to
for _, list in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local found = facts(list)
  if found.name == group then
    read_up_to = found['last-delivered-id']
  end
end
if not read_up_to then
  return redis.error_reply('NOGROUP no such group')
end

local lost = {}
for i = 2, #ARGV do
  local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  -- Lua can pass at most some 8,000 values in one call: an entry with more fields stays where it is.
  local is_short = entry and #entry[2] < 7000
  local is_held = #redis.call('XPENDING', KEYS[1], group, ARGV[i], ARGV[i], 1) > 0
  if is_short and not is_held and not is_after(entry[1], read_up_to) then
    lost[#lost + 1] = entry
  end
end

-- The group was set to an id that no entry has yet: it would pass over all entries until then.
local newest = facts(redis.call('XINFO', 'STREAM', KEYS[1]))['last-generated-id']
if is_after(read_up_to, newest) then
  redis.call('XGROUP', 'SETID', KEYS[1], group, newest)
end
for _, entry in ipairs(lost) do
  local fields = entry[2]
  -- Somebody may have worked on it already.
  fields[#fields + 1], fields[#fields + 2] = 'replayed', 1
  redis.call('XADD', KEYS[1], '*', unpack(fields))
  redis.call('XDEL', KEYS[1], entry[1])
end
return #lost
