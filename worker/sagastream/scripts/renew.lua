#!lua flags=allow-oom
-- Put a new stream in the place of one that takes no more entries, or will not for long: somebody has added an entry with
-- an id of a time that no clock gives. The old stream is set aside with its entries. The new one has the same groups.
--
-- KEYS     1 the stream  2 where it is set aside
-- ARGV     1 its newest id, as the caller saw it
-- RETURNS  1, or 0: the stream has another newest id, or something is set aside already; nothing was written

local facts = redis.call('XINFO', 'STREAM', KEYS[1])
local newest
for i = 1, #facts, 2 do
  if facts[i] == 'last-generated-id' then
    newest = facts[i + 1]
  end
end
if newest ~= ARGV[1] or redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
redis.call('RENAME', KEYS[1], KEYS[2])
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
  for i = 1, #group, 2 do
    if group[i] == 'name' then
      redis.call('XGROUP', 'CREATE', KEYS[1], group[i + 1], '0', 'MKSTREAM')
    end
  end
end
return 1
