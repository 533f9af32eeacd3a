#!lua flags=allow-oom
-- Pause, resume or stop a bulk, if its state allows it.
--
-- KEYS     1 the bulk (hash)  2 bulks:open (zset)
-- ARGV     1 its id  2 the state that it is to have  3 how long it is kept, ms  4.. the states from which this is possible
-- RETURNS  the state that it had; nil: there is no such bulk
local state = redis.call('HGET', KEYS[1], 'state')
if not state then
  return nil
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
for i = 4, #ARGV do
  if state == ARGV[i] then
    redis.call('HSET', KEYS[1], 'state', ARGV[2], 'updated_ms', now)
    if ARGV[2] == 'STOPPED' then
      redis.call('HSET', KEYS[1], 'ended_ms', now)
    end
    -- In any case: a worker notes what is still to be answered, and takes it out.
    redis.call('ZADD', KEYS[2], now, ARGV[1])
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
    break
  end
end
return state
