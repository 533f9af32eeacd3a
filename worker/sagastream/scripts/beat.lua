#!lua flags=allow-oom
-- Write a process into the heartbeat, and what it has been running for long. Remove the processes that were not heard
-- for a long time, or that are too many.
--
-- KEYS     1 alive (zset)  2 running (hash)
-- ARGV     1 the member  2 how long a member is kept after it was last heard, ms  3 how many members are
--          kept, those that were heard last  4 the name of the process: its field of running
--          5 what it has been running for long, JSON ("": nothing)
--          6 what stands in the members of those with which it shares the partitions ("" or missing: with nobody)
--          7 within which time those were heard, ms  8 of more of them than this none is told
-- RETURNS  the time that was written, ms
--          … or, with 6: {that time, a member, its score, the next member …}, itself among them; or {that time} if they
--          are too many
--          error WRONGTYPE: alive is not a zset; nothing was written
--
-- A full store allows this too (allow-oom): a member replaces itself, and a worker that waits for memory is alive.
-- If running is not a hash, the process is alive all the same: nothing is written there.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
local running = redis.call('TYPE', KEYS[2]).ok

-- No process writes a longer member: whatever else stands there costs little.
local most_bytes = 32768

-- Of very many, each beat removes 500 of each kind.
local function remove(members)
  if #members == 0 then
    return
  end
  redis.call('ZREM', KEYS[1], unpack(members))
  for _, member in ipairs(running == 'hash' and members or {}) do
    local is_json, value = pcall(cjson.decode, #member <= most_bytes and member or '')
    if is_json and type(value) == 'table' and type(value.name) == 'string' then
      redis.call('HDEL', KEYS[2], value.name)
    end
  end
end

remove(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. now - ARGV[2], 'LIMIT', 0, 500))
-- A time in the future was written before the clock was set back.
remove(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now + ARGV[2], '+inf', 'LIMIT', 0, 500))
local too_many = math.min(redis.call('ZCARD', KEYS[1]) - ARGV[3], 500)
if too_many > 0 then
  remove(redis.call('ZRANGE', KEYS[1], 0, too_many - 1))
end
if ARGV[5] ~= '' and (running == 'hash' or running == 'none') then
  redis.call('HSET', KEYS[2], ARGV[4], ARGV[5])
elseif running == 'hash' then
  redis.call('HDEL', KEYS[2], ARGV[4])
end
if (ARGV[6] or '') == '' then
  return now
end
-- The text is only a sieve: whoever asked parses what comes through.
local found = {now}
local heard = redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[7], now + ARGV[7], 'WITHSCORES')
for i = 1, #heard, 2 do
  if #heard[i] <= most_bytes and string.find(heard[i], ARGV[6], 1, true) then
    if #found > 2 * ARGV[8] then
      return {now}
    end
    found[#found + 1] = heard[i]
    found[#found + 1] = heard[i + 1]
  end
end
return found
