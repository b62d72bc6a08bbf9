#!lua flags=allow-oom
--@args job ttl_ms
-- Last step of completion: out of `ending`; record and idempotency entry expire after log and result.
local record = redis.call('HMGET', K.job .. job, 'state', 'idem')
if record[1] and record[1] ~= 'done' then
  return 0
end
redis.call('ZREM', K.ending, job)
redis.call('PEXPIRE', K.job .. job, ttl_ms)
if record[2] and record[2] ~= '' then
  redis.call('PEXPIRE', K.idem .. record[2], ttl_ms)
end
return 1
