#!lua flags=allow-oom
--@args job epoch:number
--@use ending: ending_of
-- Raise the epoch of a job in `ending` above that of a log which outlived a rollback of this node.
local record = redis.call('HMGET', K.job .. job, 'state', 'epoch')
if record[1] ~= 'ending' then
  return false
end
if tonumber(record[2]) < epoch then
  redis.call('HSET', K.job .. job, 'epoch', epoch)
end
return ending_of(job)
