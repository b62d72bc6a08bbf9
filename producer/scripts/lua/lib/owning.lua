--@offers let_go take_out is_held
--@use fairness: end_holding
-- Jobs that a worker holds.
local claimed = {}

-- Strike a job off what a worker holds; `flag` is that of its record. The caller keeps the books.
-- Which suspect a worker claims is asked once per call: no caller changes it elsewhere.
local function take_out(worker, job, flag)
  redis.call('HDEL', K.held .. worker, job)
  if flag then
    redis.call('HDEL', K.flags .. worker, job)
  end
  if claimed[worker] == nil then
    claimed[worker] = redis.call('HGET', K.worker .. worker, 'suspect')
  end
  if claimed[worker] == job then
    redis.call('HDEL', K.worker .. worker, 'suspect')
  end
end

local function let_go(worker, job, tenant, priority)
  take_out(worker, job, true)
  end_holding(priority, tenant, 1)
end

local function is_held(worker, job, epoch)
  return redis.call('HGET', K.held .. worker, job) == epoch
end
