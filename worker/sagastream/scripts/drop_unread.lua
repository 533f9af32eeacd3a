#!lua flags=allow-oom
-- Delete entries of a stream that no reader of the group has got yet. If the stream is empty then, and has no group, it
-- is deleted too.
--
-- KEYS     1 the stream
-- ARGV     1 the group  2.. the entries' ids
-- RETURNS  how many were deleted; the others were read or deleted meanwhile

-- Whether one id comes after another. Both numbers may have 64 bits, more than a number of Lua holds exactly.
local function is_after(one, other)
  local ms, number = one:match('(%d+)-(%d+)')
  local other_ms, other_number = other:match('(%d+)-(%d+)')
  if ms ~= other_ms then
    return #ms > #other_ms or (#ms == #other_ms and ms > other_ms)
  end
  return #number > #other_number or (#number == #other_number and number > other_number)
end

if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local groups, read_up_to = redis.call('XINFO', 'GROUPS', KEYS[1]), nil
for _, list in ipairs(groups) do
  local found = {}
  for i = 1, #list, 2 do
    found[list[i]] = list[i + 1]
  end
  if found.name == ARGV[1] then
    read_up_to = found['last-delivered-id']
  end
end
local dropped = 0
for i = 2, #ARGV do
  if not read_up_to or is_after(ARGV[i], read_up_to) then
    dropped = dropped + redis.call('XDEL', KEYS[1], ARGV[i])
  end
end
if #groups == 0 and redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[1])
end
return dropped
