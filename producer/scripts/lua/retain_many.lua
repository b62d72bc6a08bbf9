#!lua flags=allow-oom
--@args log_ms result_ms batch
-- Second step of completion where logs lie elsewhere: log and result of the jobs of the batch, a
-- msgpack array, get a TTL.
for _, job in ipairs(cmsgpack.unpack(batch)) do
  redis.call('PEXPIRE', L.log .. job, log_ms)
  redis.call('PEXPIRE', L.result .. job, result_ms)
end
return 1
