#!lua flags=allow-oom
--@args name tenant callback
--@use base: now_ms
--@use webhooks: open_hook
-- Open the hook of an event that is no job's end; one that is known stays as it is.
if redis.call('EXISTS', K.hook .. name) == 1 then
  return 0
end
open_hook(name, tenant, callback, '{"reason":"stop"}', now_ms())
return 1
