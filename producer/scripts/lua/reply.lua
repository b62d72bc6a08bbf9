#!lua flags=allow-oom
--@args secret message ttl_ms
-- Leave the answer to a raw entry where its sender waits for it, for a while.
redis.call('RPUSH', K.replies .. secret, message)
redis.call('PEXPIRE', K.replies .. secret, ttl_ms)
return 1
