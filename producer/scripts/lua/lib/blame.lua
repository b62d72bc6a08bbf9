--@offers acquit blame_engine blame_worker blame_log keep_evidence
--@use evidence: FIELDS
-- What a crash adds to the evidence against a job. An engine that died before its worker's eyes
-- weighs two, a worker that vanished one.
local ENGINE, WORKER, MARGIN = 2, 1, 16
local SUSPECT_BLAME, SUSPECT_DEATHS, HALF_BLAME, POISON_STRIKES, LOG_STRIKES = 4, 4, 2, 4, 6
local BESIDE_BLAME, HALF_STRIKE = 6, 1

local function acquit(found)
  found.ride, found.blame, found.strikes, found.tried = 0, 0, 0, 0
end

-- Let a suspect ride with half as many; of `most` that were suspected together half are left.
local function halve(found, most)
  local half = math.max(1, math.floor(most / 2))
  found.ride = found.ride == 0 and half or math.min(found.ride, half)
  found.blame = 0
end

-- An engine died: `suspected` jobs on board are blamed for it, `company` others are not, and this
-- job is one of those where `beside` is set: three engines in a row that die with it make it a
-- suspect too, else a second killer would ride along while others are searched in its stead. Two
-- deaths alone are a strike when they make it a suspect; one is none, it would count twice.
-- Without `sound` the fault may as well be the engine's. Returns whether the job is found guilty.
local function blame_engine(found, place, since, suspected, company, beside, sound)
  found.place, found.since = place, since
  local alone = suspected == 1 and company == 0
  if beside then
    found.blame = found.blame + ENGINE
    if found.blame >= BESIDE_BLAME then
      halve(found, suspected + company)
    end
    return false
  end
  found.deaths = found.deaths + 1
  if found.ride == 0 then
    found.blame = found.blame + ENGINE
    found.strikes = found.strikes + (alone and HALF_STRIKE or 0)
    if found.blame >= SUSPECT_BLAME or found.deaths >= SUSPECT_DEATHS then
      halve(found, suspected)
      found.strikes = found.strikes - found.strikes % ENGINE
    end
    return false
  end
  if found.ride > 1 and not alone then
    halve(found, math.min(found.ride, suspected))
    return false
  end
  found.ride, found.tried = 1, 0
  if suspected == 1 then
    found.strikes = found.strikes + (sound and ENGINE or WORKER)
  end
  return found.strikes >= POISON_STRIKES
end

-- A worker vanished that had begun the job; `held` is how many it had. All that is known is where
-- the log ends. Returns whether the job is found guilty.
local function blame_worker(found, logged, held, choices)
  local made = logged - found.place
  if made > found.since + MARGIN * choices then
    acquit(found)
  elseif made > 0 and found.ride == 0 then
    found.blame = 0
  end
  found.place = math.max(found.place, logged)
  if found.ride == 1 then
    found.strikes, found.tried = found.strikes + WORKER, 0
    return found.strikes >= POISON_STRIKES
  end
  found.blame = found.blame + WORKER
  if found.ride == 0 and found.blame >= SUSPECT_BLAME then
    halve(found, held)
  elseif found.ride > 1 and found.blame >= HALF_BLAME then
    halve(found, found.ride)
  end
  return false
end

-- The job's own log cannot be continued: nobody else may have done that.
local function blame_log(found)
  found.strikes = found.strikes + ENGINE
  return found.strikes >= LOG_STRIKES
end

-- Write the evidence, and `attempts` for people and for releases before this one, which let a job
-- run alone from 2 on; returns it.
local function keep_evidence(job, found, guilty)
  local attempts = 0
  if guilty then
    attempts = 3
  elseif found.ride == 1 and found.tried == 0 then
    attempts = 2
  elseif found.ride > 0 or found.blame > 0 or found.strikes > 0 then
    attempts = 1
  end
  if attempts == 0 and found.deaths == 0 then
    redis.call('HDEL', K.job .. job, 'evidence')
    redis.call('HSET', K.job .. job, 'attempts', 0)
    return 0
  end
  local packed = {}
  for at, name in ipairs(FIELDS) do
    packed[at] = string.format('%.0f', found[name])
  end
  redis.call('HSET', K.job .. job, 'evidence', table.concat(packed, ' '), 'attempts', attempts)
  return attempts
end
