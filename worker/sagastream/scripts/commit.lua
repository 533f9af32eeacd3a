#!lua
-- Commit one turn of the orchestrator: for every saga in it compare the version, then write all that was decided.
--
-- KEYS  1 timers (zset)  2 ended (zset)  3 events (stream)
--       4.. the other streams that are appended to or acknowledged, then the hashes of the sagas
-- ARGV  1 how many of KEYS are timers, ended or streams (the hashes follow)
--       2 the group of the acknowledged streams
--       3 about how many entries the events stream keeps
--       4 the time now, ms
--       5 how long the hash of a saga is kept once it has ended, ms
--       6.. the changes; each is, in this order:
--           length of the rest of the change, in arguments
--           which of the hashes is its saga's, from 1 (0: no saga, nothing to compare)
--           the version that the hash must have ("": there must be no hash)
--           the time of its last change, as it stands in the hash: a saga that was deleted and begun again, or that a
--           failover threw back, comes to the same versions once more
--           its score in timers, ms or "+inf" ("": no change; "ended": it has ended now; "gone": there is no such saga)
--           the member of timers and ended: the saga's id
--           number of hash arguments, then field, value, ...
--           number of appends; each: key index, number of arguments, field, value, ...
--           the entries to acknowledge and delete: key index, entry id, ... (to the end of the change)
-- RETURNS  for every change 1: committed; or, with nothing of it written, 0: the hash has another version, or is none
--          of ours, 2: where it appends to stands something that is no stream
--          error WRONGTYPE: timers, ended or events is not what it should be; nothing was written
--
-- A script that fails halfway keeps its first writes: so everything is checked before the first of them.

local fixed, group, events_kept, now, kept_ms = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5]

-- Lua hands over some 8,000 values in one call at the most.
local function in_slices(list, call)
  for first = 1, #list, 1000 do
    call(unpack(list, first, math.min(first + 999, #list)))
  end
end

local unusable = {}
for i = 1, fixed do
  local found = redis.call('TYPE', KEYS[i]).ok
  local wanted = i <= 2 and 'zset' or 'stream'
  if found ~= wanted and found ~= 'none' then
    if i <= 3 then
      return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is not a ' .. wanted)
    end
    unusable[i] = true
  end
end

-- Whether a change appends to something unusable; `at` is its number of hash arguments.
local function is_stuck(at)
  at = at + 1 + tonumber(ARGV[at])
  local appends = tonumber(ARGV[at])
  at = at + 1
  for _ = 1, appends do
    if unusable[tonumber(ARGV[at])] then
      return true
    end
    at = at + 2 + tonumber(ARGV[at + 1])
  end
  return false
end

local results, starts = {}, {}
local cursor, change, last = 6, 0, #ARGV
while cursor <= last do
  change = change + 1
  starts[change] = cursor + 1
  local hash = tonumber(ARGV[cursor + 1])
  results[change] = 1
  if hash > 0 then
    local key = KEYS[fixed + hash]
    -- pcall: at this key may stand something that is no hash; its reader will say so
    local found = redis.pcall('HMGET', key, 'version', 'updated_at')
    local version, updated = found[1], found[2]
    if version == false then
      -- a hash without a version is not ours to write to
      version, updated = redis.call('EXISTS', key) == 0 and '' or nil, ''
    end
    if version ~= ARGV[cursor + 2] or updated ~= ARGV[cursor + 3] then
      results[change] = 0
    end
  end
  if next(unusable) and results[change] == 1 and is_stuck(cursor + 6) then
    results[change] = 2
  end
  cursor = cursor + 1 + tonumber(ARGV[cursor])
end

local acknowledged, waiting, ended, done_with = {}, {}, {}, {}
for change = 1, #results do
  if results[change] == 1 then
    local at = starts[change]
    local last = at - 1 + tonumber(ARGV[at - 1])
    local key, timer, id = KEYS[fixed + tonumber(ARGV[at])], ARGV[at + 3], ARGV[at + 4]
    local n = tonumber(ARGV[at + 5])
    at = at + 6
    if n > 0 then
      redis.call('HSET', key, unpack(ARGV, at, at + n - 1))
      at = at + n
    end
    -- Of a change that writes no fields only the places in timers and ended are set right.
    if timer == 'ended' then
      if n > 0 or redis.call('PTTL', key) == -1 then
        redis.call('PEXPIRE', key, kept_ms)
      end
      ended[#ended + 1], ended[#ended + 2] = now, id
      done_with[#done_with + 1] = id
    elseif timer == 'gone' then
      done_with[#done_with + 1] = id
    elseif timer ~= '' then
      if n == 0 then
        redis.call('PERSIST', key)
      end
      waiting[#waiting + 1], waiting[#waiting + 2] = timer, id
    end
    local appends = tonumber(ARGV[at])
    at = at + 1
    for _ = 1, appends do
      local stream = tonumber(ARGV[at])
      n = tonumber(ARGV[at + 1])
      if stream == 3 then
        redis.call('XADD', KEYS[3], 'MAXLEN', '~', events_kept, '*', unpack(ARGV, at + 2, at + 1 + n))
      else
        redis.call('XADD', KEYS[stream], '*', unpack(ARGV, at + 2, at + 1 + n))
      end
      at = at + 2 + n
    end
    for i = at, last, 2 do
      local stream = tonumber(ARGV[i])
      local ids = acknowledged[stream] or {}
      ids[#ids + 1] = ARGV[i + 1]
      acknowledged[stream] = ids
    end
  end
end

in_slices(waiting, function(...) redis.call('ZADD', KEYS[1], ...) end)
in_slices(done_with, function(...) redis.call('ZREM', KEYS[1], ...) end)
in_slices(ended, function(...) redis.call('ZADD', KEYS[2], ...) end)
for stream, ids in pairs(acknowledged) do
  -- where something else stands by now, the entries are gone
  in_slices(unusable[stream] and {} or ids, function(...)
    redis.call('XACK', KEYS[stream], group, ...)
    redis.call('XDEL', KEYS[stream], ...)
  end)
end
return results
