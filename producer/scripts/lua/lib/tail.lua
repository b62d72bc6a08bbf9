--@offers tail_of answer failed
-- The last entry of a token log, read in place of any counter: its fields are written in fixed
-- order, so the kind is the first name. Tokens are one field `e`; their `to` is that of the id.
local function tail_of(log)
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if not last then
    return nil
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
