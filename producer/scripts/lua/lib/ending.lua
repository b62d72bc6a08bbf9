--@offers to_ending ending_of tombstone
-- Jobs that end without an owner: from here on their record is the authority until the terminal
-- entry is written, and the holder of the returned epoch may write it.
local function to_ending(job, epoch, finish, now)
  redis.call('HSET', K.job .. job, 'state', 'ending', 'epoch', epoch, 'finish', finish,
    'owner', '')
  redis.call('ZADD', K.ending, now, job)
  redis.call('ZREM', K.due, 'd:' .. job, 'n:' .. job)
end

local function ending_of(job)
  local record = redis.call('HMGET', K.job .. job, 'epoch', 'state', 'finish', 'v', 'listen')
  return { job, tonumber(record[1]) or 0, record[2] == 'done' and 1 or 0, record[3] or '',
    tonumber(record[4]) or 1, record[5] or '' }
end

-- Open a record for something that never was a job, so that its failed event is written like
-- every other end without an owner, also if the caller dies.
local function tombstone(job, finish, now)
  redis.call('HSET', K.job .. job, 'tenant', '', 'priority', 1, 'dead', 1, 'v', 2)
  to_ending(job, 1, finish, now)
  return ending_of(job)
end
