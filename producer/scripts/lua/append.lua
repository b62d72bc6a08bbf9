#!lua flags=allow-oom
--@args belt_ms publish batch clients:rest
--@use tail: tail_of answer failed
-- Log tokens and publish them. Compared are epoch and `to` of the log's last entry, never its id.
--
-- The batch is one flat msgpack array, COLUMNS values a job; entry and message come ready-made,
-- because gluing them together here costs three times as much. Answers name only the items that
-- were not simply written: { number, status, epoch, last, finish, entries }. Where clients have
-- channels of their own a second array names that of each job, or is empty there.
local COLUMNS = 7
local LOG, CHANNEL, CLIENT = L.log, L.tok, L.cli
local call = redis.call
local heard = ARGV[clients] and cmsgpack.unpack(ARGV[clients])

local function write(log, job, id, belt, entry, message, number)
  call('XADD', log, id, 'e', entry)
  -- The marker gave the log its belt; renewing it now and then is enough, and costs less.
  if belt == 1 then
    call('PEXPIRE', log, belt_ms)
  end
  call(publish, CHANNEL .. job, message)
  if heard and heard[number] ~= '' then
    call(publish, CLIENT .. heard[number], message)
  end
end

local function append_compared(number, job, start, id, _, belt, entry, message)
  local log = LOG .. job
  local tail = tail_of(log)
  if not tail then
    return answer('nolog')
  end
  local epoch, to = string.match(id, '^(%d+)-(%d+)$')
  epoch, to = tonumber(epoch), tonumber(to)
  if tail.ended then
    return answer(tail.epoch == epoch and 'already' or 'fenced', tail)
  end
  if tail.epoch ~= epoch then
    return answer(tail.epoch > epoch and 'fenced' or 'behind', tail)
  end
  if tail.to >= to then
    return answer('already', tail, log)
  end
  if tail.to + 1 ~= start then
    return answer('gap', tail, log)
  end
  write(log, job, id, belt, entry, message, number)
  return { 'ok', epoch, to, '', call('XLEN', log) }
end

local items = cmsgpack.unpack(batch)
local first, count = 1, #items

-- A log only ever grows, and every writer but the caller adds an entry of its own. So a log with as
-- many entries as the caller left in it ends where the caller left it, which costs a quarter of
-- reading its tail. After a rollback the count could be right by accident: then the server was
-- away and the caller has to take over first, and a zombie's entry is refused by the order of ids.
--
-- Goes on from `first` to the first item of which that cannot be said. One loop for all of them:
-- a function and a pcall for each cost a fifth of the whole.
local function append_counted()
  while first <= count do
    local job, entries = items[first], items[first + 3]
    local log = LOG .. job
    if entries == 0 or call('XLEN', log) ~= entries then
      return
    end
    write(log, job, items[first + 2], items[first + 4], items[first + 5], items[first + 6],
      (first + 6) / COLUMNS)
    first = first + COLUMNS
  end
end

local out = {}
while first <= count do
  pcall(append_counted)
  if first <= count then
    local number = (first + 6) / COLUMNS
    local ok, reply = pcall(append_compared, number, unpack(items, first, first + COLUMNS - 1))
    if not ok then
      reply = failed(reply)
    end
    table.insert(reply, 1, number - 1)
    out[#out + 1] = reply
    first = first + COLUMNS
  end
end
return out
