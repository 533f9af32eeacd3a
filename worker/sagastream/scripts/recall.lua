#!lua flags=allow-oom
-- Look up what a service has done about a batch of commands. For each compensation, leave a tombstone for its step:
-- from now on the service refuses the step's transaction.
--
-- KEYS     the service's records (hashes)
-- ARGV     1 how long a record is kept after the last write to its hash, in seconds
--          2.. for each command a group of arguments:
--              key index of its record
--              field of the record: the idempotency key and the type of the command
--              field of the tombstone of its step
--              1: it is a compensation
-- RETURNS  the time, ms; then, for each command about which something is known (about most nothing is), a list of
--          three: its number, from 1; its record (nil: none); 1 if its step has a tombstone, else 0
--          error WRONGTYPE: one of the keys is not a hash; nothing was written

for i = 1, #KEYS do
  local found = redis.call('TYPE', KEYS[i]).ok
  if found ~= 'hash' and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is not a hash')
  end
end

local time = redis.call('TIME')
local answers, fields, written = { time[1] * 1000 + math.floor(time[2] / 1000) }, {}, {}
for at = 2, #ARGV, 4 do
  local asked = fields[ARGV[at]] or {}
  asked[#asked + 1], asked[#asked + 2] = ARGV[at + 1], ARGV[at + 2]
  fields[ARGV[at]] = asked
end
-- What the records hold, by key index and field. One call a hash: a call costs more than a field. A batch has at most
-- as many commands as one read brings: far fewer than one call can take.
local known = {}
for key, asked in pairs(fields) do
  local found, values = redis.call('HMGET', KEYS[tonumber(key)], unpack(asked)), {}
  for i = 1, #asked do
    values[asked[i]] = found[i] or nil
  end
  known[key] = values
end

for at = 2, #ARGV, 4 do
  local values, record, tombstone = known[ARGV[at]], ARGV[at + 1], ARGV[at + 2]
  if ARGV[at + 3] == '1' then
    local key = KEYS[tonumber(ARGV[at])]
    redis.call('HSETNX', key, tombstone, '1')
    values[tombstone], written[key] = values[tombstone] or '1', true
  end
  if values[record] or values[tombstone] then
    answers[#answers + 1] = { (at + 2) / 4, values[record] or false, values[tombstone] and 1 or 0 }
  end
end
for key in pairs(written) do
  redis.call('EXPIRE', key, ARGV[1])
end
return answers
