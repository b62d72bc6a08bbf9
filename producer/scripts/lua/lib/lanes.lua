--@offers fairest_lanes next_entry fairest
-- The lanes of the tenants with the least virtual time, as seen by one pull: entries are read only of a
-- lane that is picked, four at first and then sixteen at a time.
local function fairest_lanes(priority, count)
  local lanes = {}
  local first = redis.call('ZRANGE', K.backlog .. priority, 0, count - 1, 'WITHSCORES')
  for i = 1, #first, 2 do
    lanes[#lanes + 1] = { tenant = first[i], time = tonumber(first[i + 1]), entries = {}, at = 1,
      after = '-', stream = K.lane .. priority .. ':' .. first[i], spared = 0 }
  end
  return lanes
end

local function next_entry(lane)
  if lane.at > #lane.entries then
    lane.entries = redis.call('XRANGE', lane.stream, lane.after, '+', 'COUNT',
      lane.after == '-' and 4 or 16)
    lane.at = 1
  end
  local entry = lane.entries[lane.at]
  if entry then
    lane.at, lane.after = lane.at + 1, '(' .. entry[1]
  end
  return entry
end

local function fairest(lanes)
  local best
  for index, lane in ipairs(lanes) do
    if not best or lane.time < lanes[best].time then
      best = index
    end
  end
  return best
end
