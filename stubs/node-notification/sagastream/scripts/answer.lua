#!lua flags=allow-oom
-- Answer a batch of commands: for each, record what was done, send the reply, and acknowledge the command. A command
-- that another consumer holds by now is not acknowledged: its entry may stand for what that consumer has begun.
--
-- KEYS  1 the service's commands (stream)  2 replies (stream)  3 quarantine (stream)
--       and, if the commands are of more than one partition, the same three of each of the others
--       then the service's records (hashes)
-- ARGV  1 the service's group
--       2 how long a record is kept after the last write to its hash, in seconds
--       3 the consumer that answers
--       4.. for each command a group of arguments:
--           the command's entry id
--           key index of the stream that the answer goes to: replies or quarantine of the command's partition
--           key index of its record (0: it has none)
--           field of the record: the idempotency key and the type of the command
--           field of the tombstone of its step ("": the command is a compensation)
--           its record, as it was when it was looked up ("": there was none)
--           kind of the answer:
--             ok, failed  it is recorded
--             unknown     the command may have been done: this is counted in the record
--             final       nothing is recorded, and the command is not overruled. A recorded answer is sent in its place
--           what is recorded for `ok` or `failed`: the result or the error of the answer, JSON ("": it has none)
--           number of arguments of the answer, then field, value, ...; the first value is its body
-- RETURNS  the numbers, from 1, of the commands that were overruled: their step has failed or was undone meanwhile, so
--          what they may have done must be undone. Nothing was written for them. A number is negative if the consumer
--          does not hold the command any more: others may have answered it, so no entry stands for the undo. The caller
--          has to add the command to the stream again before it forgets it
--          error WRONGTYPE: one of the keys has another type than it should; nothing was written
--          another error: one of the streams takes no more entries, since somebody has added one with the greatest id that
--          there is; nothing is left of what was written
--
-- A record is "ok <result>" or "failed <error>". The first one stands. If another process or a later attempt answers
-- the command afterwards, the body of the recorded answer is sent in place of its own (the other fields of its answer
-- are sent as they are). That body is made of the record and of the name of the record's field.
--
-- A record of a newer release begins with a "v", its format and a blank. It is neither read nor replaced. Nothing is
-- written for its command: it is handed back, so that a process of that release takes it. If the consumer does not hold
-- it any more, and may have done it, it is overruled.
--
-- Or the record of a transaction is "unknown <how often>". If that was written after an attempt looked the record up,
-- the attempt cannot say that nothing of the command remains: its `failed` is sent as `unknown`, and is not recorded.

-- Globals are looked up by name each time.
local KEYS, ARGV, call, try, tonumber = KEYS, ARGV, redis.call, redis.pcall, tonumber
local group, kept, consumer = ARGV[1], ARGV[2], ARGV[3]
-- The idle time that hands an entry back: longer than any lease.
local handed_back_ms = 24 * 3600 * 1000

-- Where each command's arguments begin; the fields to look up, by key index; and the places of the commands of each
-- partition, by the key index of its commands.
local places, fields, of_stream, streams, last = {}, {}, {}, 3, 4
while last <= #ARGV do
  local target, key = tonumber(ARGV[last + 1]), tonumber(ARGV[last + 2])
  local stream = target - (target - 1) % 3
  local those = of_stream[stream]
  if not those then
    those = {}
    of_stream[stream], streams = those, math.max(streams, stream + 2)
  end
  those[#those + 1] = last
  if key > 0 then
    local asked = fields[key] or {}
    asked[#asked + 1], asked[#asked + 2] = ARGV[last + 3], ARGV[last + 4]
    fields[key] = asked
  end
  places[#places + 1] = last
  last = last + 9 + tonumber(ARGV[last + 8])
end

for i = 1, #KEYS do
  local found = call('TYPE', KEYS[i]).ok
  local wanted = i <= streams and 'stream' or 'hash'
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is not a ' .. wanted)
  end
end

-- The body of the reply that says how a command ended. The names in a field need no escaping and contain no slash.
local function body_of(field, kind, payload)
  local saga_id, step, name = string.match(field, '^([^/]+)/(%d+)/%a+/([^/]+)$')
  if not name then
    return nil
  end
  local member = payload ~= '' and ',"' .. (kind == 'ok' and 'result' or 'error') .. '":' .. payload or ''
  return '{"type":"' .. name .. '_' .. kind .. '","saga_id":"' .. saga_id .. '","step":' .. step .. member .. '}'
end

-- What a record says: `ok` or `failed`, the body of the reply, and how often the outcome was unknown.
local function read(record, field)
  local kind, payload = string.match(record, '^(%a+) (.*)$')
  -- A damaged record counts as none, as when a service looks it up: the handler has run, so its answer must be sent. To
  -- read a long one takes longer than anybody may hold up the server, and this look is only for what changed since then.
  if (kind == 'ok' or kind == 'failed') and (payload == '' or #payload > 65536 or pcall(cjson.decode, payload)) then
    local body = body_of(field, kind, payload)
    return body and kind, body, 0
  end
  return nil, nil, kind == 'unknown' and tonumber(payload) or 0
end

-- Whether only a newer release can read a record.
local function is_newer(record)
  local format = string.match(record, '^v([1-9]%d*) ')
  return format and tonumber(format) > 1
end

-- What the records hold, by key index and field. One call a hash: a call costs more than a field. A batch has at most
-- as many commands as one read brings: far fewer than one call can take.
local known = {}
for key, asked in pairs(fields) do
  local found, values = call('HMGET', KEYS[key], unpack(asked)), {}
  for i = 1, #asked do
    values[asked[i]] = found[i] or nil
  end
  known[key] = values
end

-- The entries that this consumer holds, by the key index of their stream, as far as one call finds them: a batch is
-- usually in order, and held whole.
local held = {}
for stream, those in pairs(of_stream) do
  local first, final, ids = ARGV[those[1]], ARGV[those[#those]], {}
  local found = try('XPENDING', KEYS[stream], group, first, final, #those, consumer)
  for i = 1, #found do
    ids[found[i][1]] = true
  end
  held[stream] = ids
end

-- Who holds an entry; nil: nobody. Without a group nobody does.
local function holder_of(stream, id)
  if held[stream][id] then
    return consumer
  end
  local pending = try('XPENDING', KEYS[stream], group, id, id, 1)
  return pending[1] and pending[1][2]
end

local overruled, done, records, appends = {}, {}, {}, {}

-- Record a value; the commands after this one see it.
local function record_it(key, field, value)
  local words = records[key] or {}
  words[#words + 1], words[#words + 2] = field, value
  records[key], known[key][field] = words, value
end

for number, at in ipairs(places) do
  local target, key, field, tombstone = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 3], ARGV[at + 4]
  local stream = target - (target - 1) % 3
  local seen, kind, payload = ARGV[at + 5], ARGV[at + 6], ARGV[at + 7]
  local values = known[key] or {}
  local record = values[field] or ''
  local before, body, times = nil, nil, 0
  if record ~= '' then
    before, body, times = read(record, field)
  end
  -- Whether what a handler may have done must not stand: its step has failed, or was undone. This holds even if an `ok`
  -- is recorded: it is from an earlier delivery, and the undo did not cover what this delivery did after it.
  local is_void = before == 'failed' or values[tombstone]
  local may_be_done = tombstone ~= '' and (kind == 'ok' or kind == 'unknown')
  local holder = holder_of(stream, ARGV[at])
  if record ~= '' and is_newer(record) then
    if holder == consumer then
      call('XCLAIM', KEYS[stream], group, consumer, 0, ARGV[at], 'IDLE', handed_back_ms, 'JUSTID')
    elseif may_be_done then
      overruled[#overruled + 1] = -number
    end
  elseif may_be_done and is_void then
    overruled[#overruled + 1] = holder == consumer and number or -number
  else
    local in_doubt = kind == 'failed' and times > 0 and record ~= seen
    if body then
      ARGV[at + 10] = body
    elseif kind == 'unknown' and tombstone ~= '' then
      record_it(key, field, 'unknown ' .. times + 1)
    elseif (kind == 'ok' or kind == 'failed') and not in_doubt then
      record_it(key, field, kind .. ' ' .. payload)
    end
    appends[#appends + 1], appends[#appends + 2] = at, in_doubt
    if not holder or holder == consumer then
      local ids = done[stream] or {}
      ids[#ids + 1] = ARGV[at]
      done[stream] = ids
    end
  end
end

-- The answers first: only an append shows whether a stream takes more. If it does not, those before are taken back.
-- pcall: a user of a service may delete none; then they come twice, and the second time they are ignored.
local added = {}
for i = 1, #appends, 2 do
  local at, answer = appends[i], nil
  local target, first = KEYS[tonumber(ARGV[at + 1])], at + 9
  if appends[i + 1] then
    answer = try('XADD', target, '*', 'unknown', 1, unpack(ARGV, first, at + 8 + tonumber(ARGV[at + 8])))
  else
    answer = try('XADD', target, '*', unpack(ARGV, first, at + 8 + tonumber(ARGV[at + 8])))
  end
  if answer.err then
    for j = 1, #added, 2 do
      try('XDEL', added[j], added[j + 1])
    end
    return answer
  end
  added[#added + 1], added[#added + 2] = target, answer
end
for key, words in pairs(records) do
  call('HSET', KEYS[key], unpack(words))
  call('EXPIRE', KEYS[key], kept)
end
for stream, ids in pairs(done) do
  call('XACK', KEYS[stream], group, unpack(ids))
  call('XDEL', KEYS[stream], unpack(ids))
end
return overruled
