#!lua
-- Append requests to begin sagas, but only for sagas that have no hash yet. If there is a hash, return it instead: the
-- caller sees whether it is the same saga, begun before, or another saga with the same id. Neither is requested. If a
-- worker has said that there is no room for more sagas, nothing is appended.
--
-- KEYS  1 requests (stream)  2 full (string)  3.. the hash of each saga
-- ARGV  for each saga, in the order of the hashes: number of words in its entry, then field, value, ...
-- RETURNS  for each saga 1: its request was appended; or, if nothing was appended, the content of its hash (field,
--          value, ...); or 0: the value at its key is not a hash; or a text: there is no room, and this is why
--          an error: requests is not a stream, or takes no more entries; nothing was appended

local results, added = {}, {}
local at = 1
local full = redis.pcall('GET', KEYS[2])
for i = 3, #KEYS do
  local words = tonumber(ARGV[at])
  local held = redis.pcall('HGETALL', KEYS[i])
  if held.err then
    results[i - 2] = 0
  elseif #held > 0 then
    results[i - 2] = held
  elseif type(full) == 'string' then
    results[i - 2] = full
  else
    local answer = redis.pcall('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + words))
    if answer.err then  -- take back those before; a user who may not delete them sends them again, which does no harm
      for _, id in ipairs(added) do
        redis.pcall('XDEL', KEYS[1], id)
      end
      return answer
    end
    added[#added + 1] = answer
    results[i - 2] = 1
  end
  at = at + 1 + words
end
return results
