#!lua flags=allow-oom
-- Lease a bulk, and note how far it has come.
--
-- KEYS     1 the bulk (hash)  2 bulks:open (zset)  3 its results (stream)
-- ARGV     1 its id  2 who carries it  3 for how long it is leased, ms; 0: it is given back  4 how long it is kept, ms
--          5 what becomes of it: '' goes on; 'end' is done, unless somebody has paused or stopped it; 'rest' is left
--          until somebody resumes it, unless somebody has  6 how many results are kept  7 how many words follow that are
--          fields, and the fields; 0: it is only leased, and if another carries it, that is refused  then, for each
--          result, the number of its words, and the words
-- RETURNS  all fields of the bulk; nil: another carries it, or has carried it meanwhile, or there is no such bulk
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return nil
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local holder = redis.call('HGET', KEYS[1], 'holder')
local fields = tonumber(ARGV[7])
if holder and holder ~= ARGV[2] then
  local until_ms = tonumber(redis.call('HGET', KEYS[1], 'leased_until_ms')) or 0
  if fields > 0 or ARGV[5] ~= '' or until_ms > now then
    return nil
  end
end
local state = redis.call('HGET', KEYS[1], 'state')
if fields > 0 then
  redis.call('HSET', KEYS[1], unpack(ARGV, 8, 7 + fields))
end
redis.call('HSET', KEYS[1], 'holder', ARGV[2], 'leased_until_ms', string.format('%.0f', now + ARGV[3]))
if fields > 0 then
  redis.call('HSET', KEYS[1], 'updated_ms', string.format('%.0f', now))
end
local at = 8 + fields
while at <= #ARGV do
  redis.call('XADD', KEYS[3], 'MAXLEN', ARGV[6], '*', unpack(ARGV, at + 1, at + ARGV[at]))
  at = at + 1 + ARGV[at]
end
if ARGV[5] == 'end' and state == 'RUNNING' then
  redis.call('HSET', KEYS[1], 'state', 'DONE', 'ended_ms', string.format('%.0f', now))
  redis.call('ZREM', KEYS[2], ARGV[1])
elseif ARGV[5] == 'rest' and state ~= 'RUNNING' then
  redis.call('ZREM', KEYS[2], ARGV[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[3], ARGV[4])
return redis.call('HGETALL', KEYS[1])
