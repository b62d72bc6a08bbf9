--@offers tail_of tail_of_result answer failed
-- The last entry of a token log, read in place of any counter: its fields are written in fixed
-- order, so the kind is the first name. Tokens are one field `e`; their `to` is that of the id.
--
-- A completed job may have its end in the result alone: epoch, indices and finish stand there as
-- `JobResult.dump` writes them, the finish last. Quotes inside of texts are escaped, so no text can
-- be taken for a name.
local function tail_of_result(job)
  local result = redis.call('GET', L.result .. job)
  local at, to = string.find(result or '', ',"finish":', 1, true)
  local _, runs = string.find(result or '', ',"runs":', 1, true)
  if not at or not runs then
    return nil
  end
  return {
    epoch = tonumber(string.match(result, '"epoch":(%d+)')),
    to = tonumber(string.match(result, '^[%[%],%d]-(%d+)%]%]', runs + 1)) or 0,
    ended = true,
    finish = string.sub(result, to + 1, -2),
    version = string.match(result, '^{"v":(%d+)'),
  }
end

local function tail_of(log)
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if not last then
    return tail_of_result(string.sub(log, #L.log + 1))
  end
  local fields = last[2]
  local kind = fields[1]
  local epoch, index = string.match(last[1], '^(%d+)-(%d+)$')
  local to = index
  if kind == 'marker' then
    to = fields[4]
  elseif kind == 'finish' then
    to = fields[6]
  end
  return {
    epoch = tonumber(epoch),
    to = tonumber(to),
    ended = kind == 'finish',
    finish = kind == 'finish' and fields[2] or '',
  }
end

-- The number of entries is asked for where the caller goes on writing.
local function answer(status, tail, log)
  return { status, tail and tail.epoch or 0, tail and tail.to or 0, tail and tail.finish or '',
    log and redis.call('XLEN', log) or 0 }
end

local function failed(reason)
  return { 'error', 0, 0, type(reason) == 'table' and reason.err or tostring(reason), 0 }
end
