#!lua flags=allow-oom
-- Put a quarantined entry back into the stream from which it came, or drop it.
--
-- KEYS     1 quarantine (stream)  2 the stream to which it goes (left out: the entry is dropped)
-- ARGV     1 the entry's id in the quarantine  2.. field, value, ... of the entry that is added
-- RETURNS  1, or 0 if the quarantine holds no such entry
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then
  return 0
end
if KEYS[2] then
  redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
end
redis.call('XDEL', KEYS[1], ARGV[1])
return 1
