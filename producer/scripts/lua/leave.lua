#!lua flags=allow-oom
--@args worker
--@use base: ring
-- Note that a worker pulls no more: the prefixes that are at home with it are anybody's at once, and
-- what was left to it is announced.
if redis.call('SISMEMBER', K.workers, worker) == 0 then
  return 0
end
redis.call('HSET', K.worker .. worker, 'leaving', 1, 'room', 0)
if redis.call('EXISTS', K.backlog .. '0', K.backlog .. '1', K.backlog .. '2') > 0 then
  ring()
end
return 1
