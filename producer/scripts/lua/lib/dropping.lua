--@offers drop_result
--@use tail: tail_of_result
-- Results that are dropped for room. For as long as calls of before its end may arrive, a few bytes
-- stand in place of a fresh job's log and result: the log answers as before, and readers are told.
local FINISH = '{"reason":"failed","usage":{"prompt_tokens":0,"cached_tokens":0,"completion_tokens":0},'
  .. '"choices":[],"error":{"code":"dropped","field":null,"message":"its result was dropped for room"}}'

-- The trace stays for `trace_ms`, if that is above 0.
local function drop_result(job, trace_ms)
  local tail = trace_ms > 0 and tail_of_result(job)
  redis.call('DEL', L.log .. job, L.result .. job)
  if tail then
    local id = cjson.encode(string.match(job, '^[^@]*'))
    redis.call('SET', L.result .. job, '{"v":' .. (tail.version or 2) .. ',"job":' .. id .. ',"epoch":' .. tail.epoch
      .. ',"choices":[],"runs":[],"dropped":true,"finish":' .. FINISH .. '}', 'PX', trace_ms)
  end
end
