#!lua flags=allow-oom
-- Write fields of a hash, if others are still as the caller saw them.
--
-- KEYS     1 the hash
-- ARGV     1 the number of words that say what the caller saw  2.. field, value, ... as the caller saw them
--          then field, value, ... to write
-- RETURNS  1, or 0: one of the fields is not as the caller saw it, or the key is not a hash; nothing was written

local seen = tonumber(ARGV[1])
for i = 2, seen + 1, 2 do
  local found = redis.pcall('HGET', KEYS[1], ARGV[i])
  if type(found) == 'table' and not found.err:find('^WRONGTYPE') then
    return found  -- as that the user may not do this
  end
  if found ~= ARGV[i + 1] then
    return 0
  end
end
-- Lua can pass at most some 8,000 values in one call.
for first = seen + 2, #ARGV, 1000 do
  redis.call('HSET', KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
return 1
