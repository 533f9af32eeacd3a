#!lua
-- Take some of a thing, once for each idempotency key.
-- KEYS     1 left (hash)  2 taken (hash)  3 counter (string)
-- ARGV     1 idempotency key  2 thing  3 amount (whole number)  4 how much there is at first  5 prefix of ids
--          6 1: if too little is left now, nothing is taken under that key later either
-- RETURNS  the id of what was taken; false: too little is left, or was; "void": the key was given back before
local before = redis.call('HGET', KEYS[2], ARGV[1])
if before == 'refused' then
  return false
end
if before then
  return before:match('^%S+')
end
local amount = tonumber(ARGV[3])
local left = tonumber(redis.call('HGET', KEYS[1], ARGV[2]) or ARGV[4])
if amount > left then
  if ARGV[6] == '1' then
    redis.call('HSET', KEYS[2], ARGV[1], 'refused')
  end
  return false
end
local id = ARGV[5] .. redis.call('INCR', KEYS[3])
redis.call('HSET', KEYS[1], ARGV[2], string.format('%.0f', left - amount))
redis.call('HSET', KEYS[2], ARGV[1], id .. ' ' .. ARGV[3] .. ' ' .. ARGV[2])
return id
