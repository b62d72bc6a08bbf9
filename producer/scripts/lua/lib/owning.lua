--@offers let_go is_held
--@use fairness: end_holding
-- Jobs that a worker holds.
local function let_go(worker, job, tenant, priority)
  redis.call('HDEL', K.held .. worker, job)
  redis.call('HDEL', K.flags .. worker, job)
  if redis.call('HGET', K.worker .. worker, 'suspect') == job then
    redis.call('HDEL', K.worker .. worker, 'suspect')
  end
  end_holding(priority, tenant)
end

local function is_held(worker, job, epoch)
  return redis.call('HGET', K.held .. worker, job) == epoch
end
