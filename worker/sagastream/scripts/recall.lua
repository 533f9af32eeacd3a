#!lua
-- Look up what a service has done about a batch of commands. Of a compensation, a tombstone is left for its step: from
-- now on the step's transaction is refused. Of a command that was taken over, that is counted.
--
-- KEYS     the service's records (hashes)
-- ARGV     1 how long a record is kept after the last write to its hash, in seconds
--          2.. one group of arguments a command:
--              key index of its record
--              field of the record: the idempotency key and the type of the command
--              field of the tombstone of its step
--              1: it is a compensation
--              field in which takeovers are counted ("": it was not taken over)
-- RETURNS  the time, ms; then for every command a list of three: its record (false: none), 1 if the tombstone of its
--          step is there, how often it was taken over
--          error WRONGTYPE: one of the keys is no hash; nothing was written

for i = 1, #KEYS do
  local found = redis.call('TYPE', KEYS[i]).ok
  if found ~= 'hash' and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is not a hash')
  end
end

local time = redis.call('TIME')
local answers, written = { time[1] * 1000 + math.floor(time[2] / 1000) }, {}
for at = 2, #ARGV, 5 do
  local key, tombstone, takeovers = KEYS[tonumber(ARGV[at])], ARGV[at + 2], ARGV[at + 4]
  if ARGV[at + 3] == '1' then
    redis.call('HSETNX', key, tombstone, '1')
    written[key] = true
  end
  local times = 0
  if takeovers ~= '' then
    -- pcall: somebody may have written something there that is no number
    times = tonumber(redis.pcall('HINCRBY', key, takeovers, 1)) or 1
    written[key] = true
  end
  answers[#answers + 1] = { redis.call('HGET', key, ARGV[at + 1]), redis.call('HEXISTS', key, tombstone), times }
end
for key in pairs(written) do
  redis.call('EXPIRE', key, ARGV[1])
end
return answers
