--@offers entries_of note_taken write_taken
--@use fairness: begin_holding add_time
--@use waiting: drop_entries add_load
--@use affinity: take_home
-- What a pull takes: noted while it decides, written at once when it has. A job costs two calls so,
-- one that reads its record and one that writes it; all else is written once for each stream, tenant
-- or pull. What goes wrong while it decides has changed nothing of the jobs it took.
local taken = {}

local function take_nothing()
  taken = { records = {}, held = {}, streams = {}, lanes = {}, prefixes = {} }
end
take_nothing()

-- The list of a stream's entries that go, and with it the lane that it is, if it is one.
local function entries_of(stream, lane_priority, lane_tenant)
  for _, each in ipairs(taken.streams) do
    if each.stream == stream then
      return each.entries
    end
  end
  local made = { stream = stream, entries = {}, priority = lane_priority, tenant = lane_tenant }
  taken.streams[#taken.streams + 1] = made
  return made.entries
end

-- Sums over the jobs of one tenant and priority.
local function sums_of(priority, tenant)
  for _, each in ipairs(taken.lanes) do
    if each.priority == priority and each.tenant == tenant then
      return each
    end
  end
  local made = { priority = priority, tenant = tenant, jobs = 0, queued_jobs = 0,
    queued_tokens = 0, queued_prompts = 0, time = 0 }
  taken.lanes[#taken.lanes + 1] = made
  return made
end

-- Note one job. `queued` is what it adds to the load, `prompt` of it in its prompt, nil for nothing;
-- `charge` is in tokens, nil if it was charged before, and `time` the same by the tenant's weight;
-- `stamps` with that of this pull.
local function note_taken(job, epoch, priority, tenant, prefix, queued, prompt, charge, time, stamps)
  taken.records[#taken.records + 1] = { job, epoch, stamps, charge }
  taken.held[#taken.held + 1] = job
  taken.held[#taken.held + 1] = epoch
  taken.prefixes[prefix] = true
  local sums = sums_of(priority, tenant)
  sums.jobs, sums.time = sums.jobs + 1, sums.time + time
  if queued then
    sums.queued_jobs, sums.queued_tokens = sums.queued_jobs + 1, sums.queued_tokens + queued
    sums.queued_prompts = sums.queued_prompts + prompt
  end
end

local function write_taken(worker)
  if #taken.held == 0 then
    return
  end
  redis.call('HSET', K.held .. worker, unpack(taken.held))
  for _, record in ipairs(taken.records) do
    local job, epoch, stamps, charge = record[1], record[2], record[3], record[4]
    if charge then
      redis.call('HSET', K.job .. job, 'state', 'held', 'epoch', epoch, 'owner', worker,
        'stream', '', 'entry', '', 'queued', '', 'stamps', stamps, 'charge', charge)
    else
      redis.call('HSET', K.job .. job, 'state', 'held', 'epoch', epoch, 'owner', worker,
        'stream', '', 'entry', '', 'queued', '', 'stamps', stamps)
    end
  end
  for _, sums in ipairs(taken.lanes) do
    begin_holding(sums.priority, sums.tenant, sums.jobs)
  end
  for _, each in ipairs(taken.streams) do
    drop_entries(each.stream, each.entries, each.priority, each.tenant)
  end
  for _, sums in ipairs(taken.lanes) do
    if sums.queued_jobs > 0 then
      add_load(sums.tenant, sums.priority, -sums.queued_tokens, -sums.queued_prompts,
        -sums.queued_jobs)
    end
    add_time(sums.priority, sums.tenant, sums.time)
  end
  for prefix in pairs(taken.prefixes) do
    take_home(prefix)
  end
  take_nothing()
end
