--@offers open_hook
-- Webhooks: from the completion of its job on, a hook lies in `hooks` until it is settled. Without
-- a control service nobody takes it out, so both keys forget it after a week.
local HOOK_BELT_MS = 604800000

local function open_hook(job, tenant, callback, finish, now)
  local key = K.hook .. job
  redis.call('HSET', key, 'state', 'due', 'tenant', tenant, 'callback', callback, 'finish', finish,
    'created', now, 'claims', 0, 'tries', 0)
  redis.call('PEXPIRE', key, HOOK_BELT_MS)
  redis.call('ZADD', K.hooks, now, job)
  redis.call('ZREMRANGEBYSCORE', K.hooks, '-inf', now - HOOK_BELT_MS)
end
