#!lua
-- Append requests to begin sagas: of those of which the store knows nothing yet. What it knows is told instead, so that
-- a saga that was begun before is not asked for again, and one whose id another saga has is not asked for at all.
--
-- KEYS  1 requests (stream)  2.. the hash of each saga
-- ARGV  for each saga, in the order of the hashes: number of words of its entry, field, value, ...
-- RETURNS  for each saga 1: its request was appended; or, with nothing appended, what its hash holds (field, value, ...);
--          0: what stands at its key is no hash
--          error WRONGTYPE: requests is no stream; nothing was appended

local results = {}
local at = 1
for i = 2, #KEYS do
  local words = tonumber(ARGV[at])
  local held = redis.pcall('HGETALL', KEYS[i])
  if held.err then
    results[i - 1] = 0
  elseif #held > 0 then
    results[i - 1] = held
  else
    redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + words))
    results[i - 1] = 1
  end
  at = at + 1 + words
end
return results
