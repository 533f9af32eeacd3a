#!lua flags=allow-oom
-- Commit a part of a turn of the orchestrator. For each saga, if nobody has changed it since it was read, write all
-- that was decided about it. The sagas may be of several partitions, if one call may touch the keys of all of them.
--
-- KEYS  1 timers (zset)  2 ended (zset)  3 events (stream)
--       and, if there are changes of more than one partition, the same three of each of the others
--       the other streams that are appended to or acknowledged
--       if ARGV says so: begun (zset) of each partition, then the other indexes (zsets), then indexed (hash) of each
--       then the hashes of the sagas, and the records of services (hashes) in which it is looked up
-- ARGV  1 a list, in MessagePack, so that the script gets one long argument and not many short ones:
--           1 how many of KEYS are timers, ended or streams
--           2 the group of the acknowledged streams
--           3 about how many entries an events stream keeps
--           4 the time now, ms
--           5 how long the hash of a saga is kept after the saga has ended, ms: by the word that says so, see below
--           6 the changes, those of one partition after those of another; each is a list:
--               1 index of its saga's hash among the hashes, from 1 (0: no saga, nothing to compare)
--               2 the version that the hash must have, as text ("": there must be no hash)
--               3 the time of the last change that the hash must have, as text. The version is not enough: a saga that
--                 was deleted and begun again, or that a failover set back, reaches the same versions again
--               4 its score in timers, ms or "+inf" ("": no change; "ended" or "aborted": it has ended now; "gone": there
--                 is no such saga, but something may still be told of it, which the next sweep of `ended` takes away;
--                 "swept": nothing is told of it any more)
--               5 the member of timers and ended: the saga's id
--               6 what is written into the hash: a list of field, value, ...
--               7 what is appended: a list of key index, list of field, value, ..., and so on
--               8 the entries to acknowledge and delete: a list of key index, entry id, ...
--               9 if there are any, the commands that nobody waits for any more: a list of key index, group, when it was
--                 sent in ms, what its body begins with, ... They are deleted if nobody has read them
--              10 if they change, its places in the indexes: a list of the number of an index (1: begun of the first
--                 partition), its score there ("gone": it leaves), ...
--              11 with that, what indexed says of it then: the indexes that it is in ("": it says nothing)
--              12 if that matters, what indexed must say of it before that
--           7 if a saga begins, or a change has places: how many of KEYS are indexes, begun among them. A saga that begins
--             is in begun without a place
--           8 if a change has places: 1, indexed is among KEYS
--           9 if there are changes of more than one partition: how many changes are of each, in the order of KEYS
--          10 if commands are sent for the first time: what is looked up, so that their service need not. For each hash
--             of records a list: its key index; a list of record, tombstone, ... (both are fields of it); a list of the
--             number of a change, place in its list 7 of the fields of the command, ... If neither exists,
--             the command gets the field unrecorded_ms: the time of its entry, ms. A copy of the entry has another time
--             in its id, so it does not match
-- RETURNS  for every change 1: committed; 5: the same, it began, and an earlier saga may have had its id, of which indexed
--          may say something; or, if nothing of it was written, 0: the hash has another version or time, or sagastream did not
--          write it; 2: one of the keys to which it appends is not a stream; 3: one of these streams takes no more
--          entries, since somebody has added one with the greatest id that there is; 4: indexed says something else of
--          it, so it may be in indexes that this change does not know
--          error WRONGTYPE: timers, ended, events or an index has another type than it should; nothing was
--          written, of no partition
--
-- If a script fails halfway, what it has written stays written. So everything is checked before the first write. Only
-- an append shows whether a stream takes more: so a change appends first, and takes that back if a stream does not.
-- XINFO would say it before, but copies the first and the last entry for that, which may be megabytes.

-- Globals are looked up by name each time.
local KEYS, call, try, unpack = KEYS, redis.call, redis.pcall, unpack
local fixed, group, events_kept, now, kept_ms, changes, indexes, tells, counts, asked = unpack(cmsgpack.unpack(ARGV[1]))
counts = counts or { #changes }
local partitions, before_indexed = #counts, fixed + (indexes or 0)  -- the key before that of the first indexed
local hashes = tells and before_indexed + partitions or before_indexed  -- the key before that of the first hash

-- Call a command with a list, after `first` if there is one. Lua can pass at most some 8,000 values in one call.
local function in_slices(command, key, list, first)
  for from = 1, #list, 1000 do
    local to = math.min(from + 999, #list)
    if first then
      call(command, key, first, unpack(list, from, to))
    else
      call(command, key, unpack(list, from, to))
    end
  end
end

-- The commands of which nothing is recorded, by their fields; and the id of the entry that each gets.
local unrecorded, new_id = {}, nil
if asked then
  local time = call('TIME')
  local ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  new_id = ms .. '-*'
  for i = 1, #asked do
    local key, fields, places = unpack(asked[i])
    local known = try('HMGET', KEYS[key], unpack(fields)) -- pcall: the key may hold no hash; the service tells that
    for at = 1, known.err and 0 or #fields, 2 do
      if not (known[at] or known[at + 1]) then
        local words = changes[places[at]][7][places[at + 1]]
        words[#words + 1], words[#words + 2] = 'unrecorded_ms', ms
        unrecorded[words] = true
      end
    end
  end
end

local unusable, is_any_unusable = {}, false
for i = 1, fixed do
  local found, is_own = call('TYPE', KEYS[i]).ok, i <= 3 * partitions
  local wanted = is_own and i % 3 ~= 0 and 'zset' or 'stream'
  if found ~= wanted and found ~= 'none' then
    if is_own then
      return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is not a ' .. wanted)
    end
    unusable[i], is_any_unusable = true, true
  end
end

for i = fixed + 1, hashes do
  local found = call('TYPE', KEYS[i]).ok
  local wanted = i > before_indexed and 'hash' or 'zset'
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is not a ' .. wanted)
  end
end

-- Whether the hash is still the one on which the change was decided.
local function is_as_it_was(key, version, updated_at)
  if version == '' then
    return call('EXISTS', key) == 0
  end
  -- pcall: the value at this key may not be a hash; whoever reads the saga reports that. Without a version, sagastream
  -- did not write it, so it must not write to it.
  local found = try('HMGET', key, 'version', 'updated_at')
  return found[1] == version and found[2] == updated_at
end

-- Whether one of the keys to append to is unusable.
local function is_stuck(appends)
  for i = 1, #appends, 2 do
    if unusable[appends[i]] then
      return true
    end
  end
  return false
end

-- Append the entries of a change; `events`: which key the events of its partition are. Returns whether all of them could
-- be appended; otherwise none is there.
local function append(appends, events)
  local added = {}
  for i = 1, #appends, 2 do
    local stream, fields, answer = appends[i], appends[i + 1], nil
    if stream == events then
      answer = try('XADD', KEYS[stream], 'MAXLEN', '~', events_kept, '*', unpack(fields))
    else
      answer = unrecorded[fields] and try('XADD', KEYS[stream], new_id, unpack(fields))
      if not answer or answer.err then -- the stream may have a later entry: if the clock was set back
        answer = try('XADD', KEYS[stream], '*', unpack(fields))
      end
    end
    if answer.err then
      for at = 1, #added, 2 do
        try('XDEL', KEYS[added[at]], added[at + 1])
      end
      return false
    end
    added[#added + 1], added[#added + 2] = stream, answer
  end
  return true
end

local results, last = {}, 0
for partition = 1, partitions do
  for number = last + 1, last + counts[partition] do
    local change = changes[number]
    local hash, version, updated_at, told_before = change[1], change[2], change[3], change[12]
    if hash > 0 and not is_as_it_was(KEYS[hashes + hash], version, updated_at) then
      results[number] = 0
    elseif told_before and (call('HGET', KEYS[before_indexed + partition], change[5]) or '') ~= told_before then
      results[number] = 4
    else
      results[number] = is_any_unusable and is_stuck(change[7]) and 2 or 1
    end
  end
  last = last + counts[partition]
end

-- By key index: the entries to acknowledge; what changes in the indexes.
local acknowledged, joins, leaves = {}, {}, {}

-- Note the places of a saga in the indexes.
local function note_places(id, places)
  for i = 1, #places, 2 do
    local index, score = places[i], places[i + 1]
    if score == 'gone' then
      leaves[index] = leaves[index] or {}
      table.insert(leaves[index], id)
    else
      joins[index] = joins[index] or {}
      table.insert(joins[index], score)
      table.insert(joins[index], id)
    end
  end
end

-- The sagas that begin are in begun. If one of them was there already, an earlier saga had its id: its hash has expired
-- or was deleted, and no sweep has seen to it yet. Which one that is, is of no matter: it is rare.
local function begin(begun, ended, ...)
  if call('ZADD', begun, 'NX', ...) == select('#', ...) / 2 then
    return
  end
  call('ZADD', begun, ...)
  local words, again = {...}, {}
  for i = 2, #words, 2 do
    call('ZREM', ended, words[i])
    again[words[i]] = true
  end
  for number, change in ipairs(changes) do
    if results[number] == 1 and change[2] == '' and again[change[5]] then
      results[number] = 5
    end
  end
end

-- Write the changes of a partition, from the first to the last.
local function write(partition, first, last)
  local events = 3 * partition
  local timers_key, ended_key, indexed_key = KEYS[events - 2], KEYS[events - 1], KEYS[before_indexed + partition]
  local waiting, ended, done_with, swept, begins, told, untold = {}, {}, {}, {}, {}, {}, {}
  for number = first, last do
    local change = changes[number]
    if results[number] == 1 and not append(change[7], events) then
      results[number] = 3
    end
    if results[number] == 1 then
      local hash, _, _, timer, id, fields, _, entries = unpack(change)
      local key, moves = KEYS[hashes + hash], #fields > 0
      if moves then
        call('HSET', key, unpack(fields))
        if change[2] == '' then
          begins[#begins + 1], begins[#begins + 2] = now, id
        end
      end
      if change[10] then
        note_places(id, change[10])
        if change[11] == '' then
          untold[#untold + 1] = id
        else
          told[#told + 1], told[#told + 2] = id, change[11]
        end
      end
      -- A change that writes no fields only corrects the saga's places in timers and ended.
      if kept_ms[timer] then
        if moves or call('PTTL', key) == -1 then
          call('PEXPIRE', key, kept_ms[timer])
        end
        if moves then
          ended[#ended + 1], ended[#ended + 2] = now, id
        else
          call('ZADD', ended_key, 'NX', now, id)
        end
        done_with[#done_with + 1] = id
      elseif timer == 'gone' then
        done_with[#done_with + 1] = id
        ended[#ended + 1], ended[#ended + 2] = 0, id
      elseif timer == 'swept' then
        done_with[#done_with + 1], swept[#swept + 1] = id, id
      elseif timer ~= '' then
        if not moves then
          call('PERSIST', key)
        end
        waiting[#waiting + 1], waiting[#waiting + 2] = timer, id
      end
      for i = 1, #entries, 2 do
        local stream = entries[i]
        local ids = acknowledged[stream] or {}
        ids[#ids + 1] = entries[i + 1]
        acknowledged[stream] = ids
      end
    end
  end
  for from = 1, #begins, 1000 do
    begin(KEYS[fixed + partition], ended_key, unpack(begins, from, math.min(from + 999, #begins)))
  end
  in_slices('ZADD', timers_key, waiting)
  in_slices('ZREM', timers_key, done_with)
  in_slices('ZADD', ended_key, ended)
  in_slices('ZREM', ended_key, swept)
  in_slices('HSET', indexed_key, told)
  in_slices('HDEL', indexed_key, untold)
end

last = 0
for partition = 1, partitions do
  write(partition, last + 1, last + counts[partition])
  last = last + counts[partition]
end

-- Delete a command that nobody waits for any more, unless a process of the service has read it: such a process may have
-- had an effect, and the entry is what has it undone. Without this, the stream of a service that nobody runs would grow
-- with each attempt. The command was added soon after it was sent, and older ones before it are usually deleted too. So
-- the search is short; it is bounded for the call, since each entry may have a megabyte.
local looks, bytes = 1024, 4 * 1024 * 1024
local function delete_unread(stream, service, sent_ms, beginning)
  local first = sent_ms
  for _ = 1, 64 do
    local entry = call('XRANGE', stream, first, '+', 'COUNT', 1)[1]
    if not entry or looks <= 0 or bytes <= 0 then
      return
    end
    local fields = entry[2]
    for i = 1, #fields, 2 do
      bytes = bytes - #fields[i + 1]
      if fields[i] == 'body' and string.sub(fields[i + 1], 1, #beginning) == beginning then
        -- without a group nobody has read it
        local held = try('XPENDING', stream, service, entry[1], entry[1], 1)
        if held.err or #held == 0 then
          call('XDEL', stream, entry[1])
        end
        return
      end
    end
    looks, first = looks - 1, '(' .. entry[1]
  end
end

for number, change in ipairs(changes) do
  local given_up = change[9]
  for i = 1, given_up and results[number] == 1 and #given_up or 0, 4 do
    if not unusable[given_up[i]] then
      delete_unread(KEYS[given_up[i]], given_up[i + 1], given_up[i + 2], given_up[i + 3])
    end
  end
end

for index, list in pairs(joins) do
  in_slices('ZADD', KEYS[fixed + index], list)
end
for index, ids in pairs(leaves) do
  in_slices('ZREM', KEYS[fixed + index], ids)
end
for stream, ids in pairs(acknowledged) do
  if not unusable[stream] then -- if the key is not a stream any more, the entries are gone
    in_slices('XACK', KEYS[stream], ids, group)
    in_slices('XDEL', KEYS[stream], ids)
  end
end
return results
