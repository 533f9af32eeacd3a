#!lua
-- Write a stream anew, so that nothing is left of the entries that were deleted from it. XDEL and XTRIM only mark an
-- entry: its bytes stay beside those of its neighbours, in memory and in every file, until all of them are deleted.
--
-- A stream may be large. So a call copies a portion, and the caller calls again; readers and writers go on meanwhile. The
-- call that has copied all puts the copy in the place of the stream, with its groups and what they hold.
--
-- KEYS     1 the stream  2 its copy
-- ARGV     1 the id of the last entry that the calls before have copied ("0-0": this is the first call)
--          2 about how many bytes to copy in this call
--          3 how long a copy is kept that nobody goes on with, ms
-- RETURNS  a word, and the id of the last entry that was copied:
--            done     nothing is left of deleted entries
--            more     call again
--          or why the stream stays as it is, and there is no copy:
--            changed  entries that had been copied were deleted meanwhile
--            busy     somebody else copies the stream (that copy stays)
--            held     readers hold too much, or a deleted entry
--            long     an entry has more fields than a script can copy
--          error WRONGTYPE: the key is not a stream; nothing was written

local stream_key, copy_key = KEYS[1], KEYS[2]
local copied_up_to, most_bytes, kept_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local most_held = 1000

-- What XINFO says, by name.
local function facts(list)
  local found = {}
  for i = 1, #list, 2 do
    found[list[i]] = list[i + 1]
  end
  return found
end

local function give_up(why)
  redis.call('DEL', copy_key)
  return { why, copied_up_to }
end

if redis.call('EXISTS', stream_key) == 0 then
  return give_up('done')
end
local stream = facts(redis.call('XINFO', 'STREAM', stream_key))
if stream.length == 0 then  -- then it has no bytes either
  return give_up('done')
end
local is_first, first = copied_up_to == '0-0', stream['first-entry'][1]
local is_begun = redis.call('EXISTS', copy_key) == 1
if is_first == is_begun
  or is_begun and facts(redis.call('XINFO', 'STREAM', copy_key))['last-generated-id'] ~= copied_up_to then
  return { 'busy', copied_up_to }
end

-- One entry may have a megabyte, so several are read at once only while they are small.
local bytes, is_complete, count = 0, false, 1
while bytes < most_bytes do
  -- pcall: nothing comes after the greatest id that there is
  local page = redis.pcall('XRANGE', stream_key, '(' .. copied_up_to, '+', 'COUNT', count)
  if page.err or #page == 0 then
    is_complete = true
    break
  end
  local bytes_before = bytes
  for _, entry in ipairs(page) do
    local id, words = entry[1], entry[2]
    if #words > 7000 then  -- Lua can pass at most some 8,000 values in one call
      return give_up('long')
    end
    redis.call('XADD', copy_key, id, unpack(words))
    bytes = bytes + 1000  -- what a call costs, as bytes
    for _, word in ipairs(words) do
      bytes = bytes + #word
    end
    copied_up_to = id
  end
  count = bytes - bytes_before < 65536 and 8 or 1
end
redis.call('PEXPIRE', copy_key, kept_ms)
if not is_complete then
  return { 'more', copied_up_to }
end

-- The oldest entries may have been trimmed meanwhile. All others must be there.
redis.call('XTRIM', copy_key, 'MINID', '=', first)
if redis.call('XLEN', copy_key) ~= stream.length then
  return give_up('changed')
end
for _, list in ipairs(redis.call('XINFO', 'GROUPS', stream_key)) do
  local group = facts(list)
  if group.pending > most_held then
    return give_up('held')
  end
  if group['entries-read'] then
    redis.call('XGROUP', 'CREATE', copy_key, group.name, group['last-delivered-id'], 'ENTRIESREAD', group['entries-read'])
  else
    redis.call('XGROUP', 'CREATE', copy_key, group.name, group['last-delivered-id'])
  end
  for _, entry in ipairs(redis.call('XPENDING', stream_key, group.name, '-', '+', most_held)) do
    local id, consumer, idle_ms, deliveries = unpack(entry)
    redis.call('XCLAIM', copy_key, group.name, consumer, 0, id, 'IDLE', idle_ms, 'RETRYCOUNT', deliveries, 'FORCE', 'JUSTID')
  end
  -- A pending entry that was deleted cannot be copied. Its holder must still be told that it is gone.
  if redis.call('XPENDING', copy_key, group.name)[1] ~= group.pending then
    return give_up('held')
  end
end
redis.call('XSETID', copy_key, stream['last-generated-id'], 'ENTRIESADDED', stream['entries-added'],
  'MAXDELETEDID', stream['max-deleted-entry-id'])
redis.call('PERSIST', copy_key)
redis.call('RENAME', copy_key, stream_key)
return { 'done', copied_up_to }
