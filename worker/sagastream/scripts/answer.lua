#!lua
-- Answer a batch of commands: for each record what was done, send the reply, acknowledge the command.
--
-- KEYS  1 the service's commands (stream)  2 replies (stream)  3 quarantine (stream)
--       4.. the service's records (hashes)
-- ARGV  1 the service's group
--       2 how long a record is kept after the last write to its hash, in seconds
--       3.. one group of arguments a command:
--           the command's entry id
--           key index of the stream that the answer goes to
--           key index of its record (0: it has none)
--           field of the record: the idempotency key and the type of the command
--           kind: ok, failed; or unknown, which is not recorded
--           attempt of the command
--           number of arguments of the answer, then field, value, ...; the first value is what is recorded
-- RETURNS  the number of commands that were answered from the record instead
--          error WRONGTYPE: one of the keys is not what it should be; nothing was written
--
-- A record is "<kind> <attempt> <body>". What was done stays done: whoever answers the command later, another process
-- or a later attempt, sends the recorded reply in place of its own (of which only the first field is sent). A failure
-- is recorded for its attempt and those before it; a later attempt may succeed.

local group, kept = ARGV[1], ARGV[2]

for i = 1, #KEYS do
  local found = redis.call('TYPE', KEYS[i]).ok
  local wanted = i <= 3 and 'stream' or 'hash'
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is not a ' .. wanted)
  end
end

-- The recorded reply that stands for this attempt; nil: there is none.
local function recorded(key, field, attempt)
  local record = redis.call('HGET', key, field)
  if not record then
    return nil
  end
  local kind, before, body = string.match(record, '^(%a+) (%d+) (.*)$')
  if kind == 'ok' or (kind == 'failed' and tonumber(before) >= attempt) then
    return body
  end
  return nil
end

local again, ids, records = 0, {}, {}
local at = 3
while at <= #ARGV do
  local target, key, field = KEYS[tonumber(ARGV[at + 1])], tonumber(ARGV[at + 2]), ARGV[at + 3]
  local kind, attempt, n = ARGV[at + 4], tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local first, last = at + 7, at + 6 + n
  ids[#ids + 1] = ARGV[at]
  local before = nil
  if key > 0 then
    local record = kind .. ' ' .. ARGV[at + 5] .. ' ' .. ARGV[first + 1]
    if kind == 'unknown' then
      before = recorded(KEYS[key], field, attempt)
    elseif redis.call('HSETNX', KEYS[key], field, record) == 0 then
      before = recorded(KEYS[key], field, attempt)
      if not before then
        redis.call('HSET', KEYS[key], field, record)
      end
    end
    records[key] = true
  end
  if before then
    redis.call('XADD', target, '*', ARGV[first], before)
    again = again + 1
  else
    redis.call('XADD', target, '*', unpack(ARGV, first, last))
  end
  at = last + 1
end
for key in pairs(records) do
  redis.call('EXPIRE', KEYS[key], kept)
end
-- At most one reading's worth of ids, far below what one call can take.
if #ids > 0 then
  redis.call('XACK', KEYS[1], group, unpack(ids))
  redis.call('XDEL', KEYS[1], unpack(ids))
end
return again
