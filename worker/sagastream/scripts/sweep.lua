#!lua flags=allow-oom
-- Take sagas whose hash has expired out of the indexes, as far as they are in ended and begun only.
--
-- KEYS     1 ended (zset)  2 begun (zset)  3 indexed (hash)  4.. the hashes of the sagas
-- ARGV     the ids of the sagas, in the same order
-- RETURNS  1 how many still have their hash  2 those that have none and are in more indexes, so that they were left: a
--          list of id, what indexed says of it, ...
--          error WRONGTYPE: a key has another type than it should; nothing was written

for i, wanted in ipairs({'zset', 'zset', 'hash'}) do
  local found = redis.call('TYPE', KEYS[i]).ok
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is not a ' .. wanted)
  end
end

local there, gone = 0, {}
for i, id in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[3 + i]) == 1 then
    there = there + 1
  else
    gone[#gone + 1] = id
  end
end
if #gone == 0 then
  return {there, {}}
end
local left, swept = {}, {}
for i, names in ipairs(redis.call('HMGET', KEYS[3], unpack(gone))) do
  if names then
    left[#left + 1], left[#left + 2] = gone[i], names
  else
    swept[#swept + 1] = gone[i]
  end
end
if #swept > 0 then
  redis.call('ZREM', KEYS[1], unpack(swept))
  redis.call('ZREM', KEYS[2], unpack(swept))
end
return {there, left}
