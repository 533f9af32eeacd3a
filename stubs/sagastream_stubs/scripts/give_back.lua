#!lua
-- Give back what was taken under an idempotency key, once. From then on nothing can be taken under that key.
-- KEYS     1 left (hash)  2 taken (hash)  3 counter (string)
-- ARGV     1 idempotency key
-- RETURNS  1: given back, 0: there was nothing to give back
local before = redis.call('HGET', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], 'void')
if not before or before == 'void' or before == 'refused' then
  return 0
end
local amount, thing = before:match('^%S+ (%S+) (.*)$')
redis.call('HINCRBY', KEYS[1], thing, amount)
return 1
