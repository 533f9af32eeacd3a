#!lua
-- Answer a batch of commands: for each record what was done, send the reply, acknowledge the command.
--
-- KEYS  1 the service's commands (stream)  2 replies (stream)  3 quarantine (stream)
--       4.. the service's records (hashes)
-- ARGV  1 the service's group
--       2 how long a record is kept after the last write to its hash, in seconds
--       3.. one group of arguments a command:
--           the command's entry id
--           key index of its record (0: nothing is recorded)
--           field of the record
--           key index of the stream that the answer goes to
--           number of arguments of the answer, then field, value, ...: the second argument is what is recorded
-- RETURNS  the number of commands whose recorded answer was sent again instead of the one given
--
-- What was recorded first stays the answer, whoever comes later: a second process that worked on the same
-- command, or the same command sent again.

local group, kept = ARGV[1], ARGV[2]

for i = 1, #KEYS do
  local found = redis.call('TYPE', KEYS[i]).ok
  local wanted = i <= 3 and 'stream' or 'hash'
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is not a ' .. wanted)
  end
end

local again, ids, records = 0, {}, {}
local at = 3
while at <= #ARGV do
  local key, field = tonumber(ARGV[at + 1]), ARGV[at + 2]
  local target, n = KEYS[tonumber(ARGV[at + 3])], tonumber(ARGV[at + 4])
  local first, last = at + 5, at + 4 + n
  ids[#ids + 1] = ARGV[at]
  if key == 0 or redis.call('HSETNX', KEYS[key], field, ARGV[first + 1]) == 1 then
    redis.call('XADD', target, '*', unpack(ARGV, first, last))
  else
    redis.call('XADD', target, '*', ARGV[first], redis.call('HGET', KEYS[key], field))
    again = again + 1
  end
  if key > 0 then records[key] = true end
  at = last + 1
end
for key in pairs(records) do
  redis.call('EXPIRE', KEYS[key], kept)
end
if #ids > 0 then
  redis.call('XACK', KEYS[1], group, unpack(ids))
  redis.call('XDEL', KEYS[1], unpack(ids))
end
return again
