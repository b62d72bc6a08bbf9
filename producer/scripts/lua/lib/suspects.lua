--@offers crowd in_order is_worth_a_look keeps_off add_to_crowd claims
--@use base: whole
--@use evidence: evidence_of
-- The suspects among those that wait, and with how many others one may be on a worker. `crowd` is
-- what the pulling worker holds: jobs in all, suspects among them, the least ride of those, and jobs
-- that have not passed their place since their last crash. A worker of a release before this one
-- tells nothing of it (`told`) and takes a suspect only alone.
local MAX_SUSPECTS, ALONE_ATTEMPTS = 256, 2
local CLAIM_MS, FIRST_MS, ANYWAY_MS = 2000, 2000, 10000
local crowd = { told = false, held = 0, num = 0, least = 0, open = 0, worker = '', now = 0,
  left = false, asked = false }

local function waited_ms(id)
  return crowd.now - (tonumber(string.match(id, '^%d+')) or crowd.now)
end

-- What waits in `suspects`: first who runs alone, while that is possible, then large groups before
-- small ones, because those are likelier to pass and stream on beside the others. Who has passed
-- alone comes when nothing else does (`last`), or when it has waited.
local function in_order(last)
  local sorted = {}
  for number, entry in ipairs(redis.call('XRANGE', K.suspects, '-', '+', 'COUNT', MAX_SUSPECTS)) do
    local each = { id = entry[1], fields = entry[2], priority = '1', ride = 1, tried = false,
      number = number }
    for i = 1, #entry[2], 2 do
      local name, value = entry[2][i], entry[2][i + 1]
      if name == 'priority' and string.find(value, '^[012]$') then
        each.priority = value
      elseif name == 'ride' then
        each.ride = whole(value, 1, 1e6) or 1
      elseif name == 'tried' then
        each.tried = value == '1'
      end
    end
    each.is_alone = each.ride == 1 and not each.tried
    each.rank = each.is_alone and crowd.held + crowd.num == 0 and math.huge or each.ride
    if not each.tried or last or waited_ms(each.id) >= FIRST_MS then
      sorted[#sorted + 1] = each
    else
      crowd.left = true
    end
  end
  table.sort(sorted, function(one, other)
    if one.rank ~= other.rank then
      return one.rank > other.rank
    end
    return one.number < other.number
  end)
  return sorted
end

local function most_with(ride)
  return crowd.least > 0 and math.min(crowd.least, ride) or ride
end

-- Whether to read the record of one that waits: of those that have to run alone, while this worker
-- is not empty, the first, which may have to be claimed.
local function is_worth_a_look(each)
  if each.is_alone and crowd.held > 0 then
    local is_first = not crowd.asked
    crowd.asked = true
    return is_first
  end
  return crowd.num < most_with(each.ride)
end

-- Why a job has to wait: `alone` for an empty worker, `crowd` for suspects or open cases to leave
-- this one; nil if it may ride. Then how it rides: `alone`, `last` of its pull, or nil.
local function keeps_off(packed, attempts, id)
  local crashes = tonumber(attempts) or 0
  if not packed and crashes < ALONE_ATTEMPTS then
    return nil, nil
  end
  local found = evidence_of(packed, attempts)
  if crashes >= ALONE_ATTEMPTS or (found.ride > 0 and not crowd.told) then
    return crowd.held + crowd.num > 0 and 'alone' or nil, 'alone'
  end
  if found.ride == 0 then
    return nil, nil
  end
  if found.tried == 1 then
    local is_free = crowd.num == 0 and (crowd.open == 0 or waited_ms(id) >= ANYWAY_MS)
    return not is_free and 'crowd' or nil, 'last'
  end
  return crowd.num >= most_with(found.ride) and 'crowd' or nil, nil
end

-- Count a job that the worker has taken.
local function add_to_crowd(packed, attempts)
  crowd.held = crowd.held + 1
  if not packed and (tonumber(attempts) or 0) == 0 then
    return
  end
  local found = evidence_of(packed, attempts)
  if found.ride > 0 then
    crowd.num = crowd.num + 1
    crowd.least = most_with(found.ride)
  end
  if found.ride > 0 or found.blame > 0 then
    crowd.open = crowd.open + 1
  end
end

-- A suspect that found no empty worker for a while is claimed by one of the busy when its turn
-- comes: that one takes nothing more until it holds nothing, and then the suspect, else under steady
-- load it would never run.
local function claims(job, id)
  if crowd.held == 0 or waited_ms(id) < CLAIM_MS then
    return false
  end
  local claimant = redis.call('HGET', K.job .. job, 'claimant')
  if claimant and claimant ~= crowd.worker and redis.call('EXISTS', K.alive .. claimant) == 1 then
    return false
  end
  redis.call('HSET', K.job .. job, 'claimant', crowd.worker)
  redis.call('HSET', K.worker .. crowd.worker, 'claim', job)
  return true
end
