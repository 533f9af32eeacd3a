#!lua flags=allow-oom
-- Lease the sagas that are due. The worker that gets them deals with them; if it dies, they are due again.
--
-- KEYS     timers (zset) of each partition
-- ARGV     1 how many of each at most  2 for how long they are leased, ms  3 the time now, ms ("": as this server says;
--          each node of a cluster has its own clock)  4.. the ids of sagas to leave out
-- RETURNS  until when they are leased, ms; then for each of KEYS a list: how long it is until the next saga there is
--          due, ms (-1: no saga waits for a time); then the ids of those that are leased
--          error WRONGTYPE: one of the keys is not a zset; nothing was written
for i = 1, #KEYS do
  local found = redis.call('TYPE', KEYS[i]).ok
  if found ~= 'zset' and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is not a zset')
  end
end

local now = tonumber(ARGV[3])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local leased_until = now + ARGV[2]
local passed_over = {}
for i = 4, #ARGV do
  passed_over[ARGV[i]] = true
end

-- The first sagas in timers, at most so many, without those to leave out: member, score, member, score, ...
local function first(timers, most, up_to)
  local range = { 'ZRANGEBYSCORE', timers, '-inf', up_to, 'WITHSCORES', 'LIMIT', 0, most + #ARGV - 3 }
  local found, kept = redis.call(unpack(range)), {}
  for i = 1, #found, 2 do
    if #kept < 2 * most and not passed_over[found[i]] then
      kept[#kept + 1], kept[#kept + 2] = found[i], found[i + 1]
    end
  end
  return kept
end

local answer = { leased_until }
for number, timers in ipairs(KEYS) do
  local due, ids = first(timers, tonumber(ARGV[1]), now), {}
  for i = 1, #due, 2 do
    redis.call('ZADD', timers, leased_until, due[i])
    ids[#ids + 1] = due[i]
  end
  local following = first(timers, 1, '(+inf')[2]
  answer[number + 1] = { following and math.max(0, math.ceil(following - now)) or -1, unpack(ids) }
end
return answer
