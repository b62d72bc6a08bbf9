--@offers FIELDS evidence_of
-- What speaks against a job, one text in its record so that a healthy job costs one empty field:
--   ride     with how many suspects at most it may be on one worker, itself counted; 0 = no suspect
--   blame    what counts since it last passed its place, or since its ride became smaller
--   strikes  what counts while its ride is 1
--   deaths   engines that died with it on board in all, where nothing else was suspected
--   place, since  where it was at its last crash: index, and tokens since that start
--   tried    1: it has run alone and passed; next beside others that all have passed
local FIELDS = { 'ride', 'blame', 'strikes', 'deaths', 'place', 'since', 'tried' }

-- `attempts` is all that releases before this one have kept.
local function evidence_of(packed, attempts)
  local found = { ride = 0, blame = 0, strikes = 0, deaths = 0, place = 0, since = 0, tried = 0 }
  local at = 1
  for number in string.gmatch(packed or '', '%d+') do
    if FIELDS[at] then
      found[FIELDS[at]] = tonumber(number)
    end
    at = at + 1
  end
  local crashes = tonumber(attempts) or 0
  if at == 1 and crashes > 0 then
    found.ride, found.blame = crashes > 1 and 1 or 0, crashes == 1 and 1 or 0
  end
  return found
end
