#!lua flags=allow-oom
--@args trace_ms:number batch
--@use dropping: drop_result
-- Drop logs and results of a shard, a msgpack array of jobs whose records say so.
for _, job in ipairs(cmsgpack.unpack(batch)) do
  drop_result(job, trace_ms)
end
return 1
