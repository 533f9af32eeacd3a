#!lua flags=allow-oom
-- Call one command, even if the store is full. For what must be written so that sagas which are under way can end: by
-- that they free memory.
--
-- KEYS     1 the key to which the command writes
-- ARGV     the command, with that key in it
-- RETURNS  its answer, or its error

return redis.pcall(unpack(ARGV))
