#!lua flags=allow-oom
--@args ttl_ms batch
-- Last step of completion where logs lie elsewhere: the jobs of the batch, a msgpack array, leave
-- `ending`; record and idempotency entry expire after log and result.
for _, job in ipairs(cmsgpack.unpack(batch)) do
  local record = redis.call('HMGET', K.job .. job, 'state', 'idem')
  if not record[1] or record[1] == 'done' then
    redis.call('ZREM', K.ending, job)
    redis.call('PEXPIRE', K.job .. job, ttl_ms)
    if record[2] and record[2] ~= '' then
      redis.call('PEXPIRE', K.idem .. record[2], ttl_ms)
    end
  end
end
return 1
