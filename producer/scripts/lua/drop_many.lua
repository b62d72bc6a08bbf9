#!lua flags=allow-oom
--@args batch
--@use dropping: drop_result
-- Drop logs and results of a shard, a msgpack array of jobs whose records say so.
for _, job in ipairs(cmsgpack.unpack(batch)) do
  drop_result(job, true)
end
return 1
