--@offers now_ms whole ring is_woken wake failure
-- Server time and checked numbers; every stored time is server time in milliseconds.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A whole number within bounds, or nil: hostile fields must never raise.
local function whole(value, low, high)
  local number = tonumber(value)
  if number and number >= low and number <= high and number == math.floor(number) then
    return number
  end
  return nil
end

-- Once per call is enough: nobody takes the bell meanwhile.
local is_rung = false

local function ring()
  if not is_rung and redis.call('LLEN', K.bell) == 0 then
    redis.call('LPUSH', K.bell, '1')
  end
  is_rung = true
end

-- A bell for one worker; it expires, because that one may never listen again.
local function is_woken(worker)
  return redis.call('LLEN', K.wake .. worker) > 0
end

local function wake(worker)
  if not is_woken(worker) then
    redis.call('LPUSH', K.wake .. worker, '1')
    redis.call('PEXPIRE', K.wake .. worker, 5000)
  end
end

local function failure(code, field, message)
  return cjson.encode({
    reason = 'failed',
    error = { code = code, field = field, message = message },
  })
end
