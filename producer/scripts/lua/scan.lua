#!lua flags=allow-oom
--@args limit:number
--@use base: now_ms
-- List the jobs of workers without a lease; a worker without both is struck off, and listed without
-- a job unless it had said that it leaves.
local LOST_MS = 3600000
local out = {}

-- Remember for an hour which workers vanished, and since when it is known, for people.
local function note_lost(worker)
  local now = now_ms()
  redis.call('ZADD', K.lost, 'NX', now, worker)
  redis.call('ZREMRANGEBYSCORE', K.lost, '-inf', now - LOST_MS)
  redis.call('PEXPIRE', K.lost, LOST_MS)
end

for _, worker in ipairs(redis.call('SUNION', K.workers, K.workers1)) do
  if redis.call('EXISTS', K.alive .. worker) == 0 then
    local held = redis.call('HGETALL', K.held .. worker)
    local is_leaving = redis.call('HGET', K.worker .. worker, 'leaving')
    if #held > 0 or not is_leaving then
      note_lost(worker)
    end
    if #held == 0 then
      if not is_leaving then
        out[#out + 1] = { worker, '', 0, 1, 0 }
      end
      redis.call('SREM', K.workers, worker)
      redis.call('SREM', K.workers1, worker)
      redis.call('DEL', K.worker .. worker, K.flags .. worker)
    end
    for i = 1, #held, 2 do
      if #out >= limit then
        return out
      end
      local record = redis.call('HMGET', K.job .. held[i], 'priority', 'attempts')
      out[#out + 1] = { worker, held[i], tonumber(held[i + 1]) or 0, tonumber(record[1]) or 1,
        tonumber(record[2]) or 0 }
    end
  end
end
return out
