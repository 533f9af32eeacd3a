#!lua
-- Append requests to begin sagas, but only for sagas that have no hash yet. If there is a hash, return it instead: the
-- caller sees whether it is the same saga, begun before, or another saga with the same id. Neither is requested.
--
-- KEYS  1 requests (stream)  2.. the hash of each saga
-- ARGV  for each saga, in the order of the hashes: number of words in its entry, then field, value, ...
-- RETURNS  for each saga 1: its request was appended; or, if nothing was appended, the content of its hash (field,
--          value, ...); or 0: the value at its key is not a hash
--          an error: requests is not a stream, or takes no more entries; nothing was appended

local results, added = {}, {}
local at = 1
for i = 2, #KEYS do
  local words = tonumber(ARGV[at])
  local held = redis.pcall('HGETALL', KEYS[i])
  if held.err then
    results[i - 1] = 0
  elseif #held > 0 then
    results[i - 1] = held
  else
    local answer = redis.pcall('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + words))
    if answer.err then  -- take back those before; a user who may not delete them sends them again, which does no harm
      for _, id in ipairs(added) do
        redis.pcall('XDEL', KEYS[1], id)
      end
      return answer
    end
    added[#added + 1] = answer
    results[i - 1] = 1
  end
  at = at + 1 + words
end
return results
