--@offers read_entry bury
--@use base: whole failure
--@use letters: dead_letter
--@use waiting: drop_entry stop_waiting
--@use ending: to_ending ending_of tombstone
-- Entries of lanes and front lists as strangers may have written them: nothing here may raise.
local function field_of(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then
      return fields[i + 1]
    end
  end
  return nil
end

-- Whether a text is the address of a job: an id, and for any tenant but `default` the tenant.
local function is_address(job)
  local id, tenant = string.match(job or '', '^([%w_.:~%-]+)@?([%w_.:@/%-]*)$')
  return id ~= nil and #id <= 96 and #tenant <= 64
end

local LIMITS = { { 'prompt', 0, 1e9 }, { 'output', 1, 1e9 }, { 'n', 1, 64 }, { 'logged', 0, 1e11 } }

-- The entry's fields, checked; or nil, the offending field and a sentence.
local function read_entry(fields)
  local found = {}
  for i = 1, #fields, 2 do
    found[fields[i]] = fields[i + 1]
  end
  if not is_address(found.job) then
    return nil, 'job', 'the entry names no job'
  end
  if found.v ~= '1' and found.v ~= '2' then
    return nil, 'v', 'the entry speaks wire version ' .. string.sub(found.v or 'none', 1, 16)
      .. '; this release speaks 1 and 2'
  end
  for _, limit in ipairs(LIMITS) do
    local number = whole(found[limit[1]], limit[2], limit[3])
    if not number then
      return nil, limit[1], 'not a whole number from ' .. limit[2] .. ' to ' .. limit[3]
    end
    found[limit[1]] = number
  end
  if not found.tenant or found.tenant == '' then
    return nil, 'tenant', 'the entry names no tenant'
  end
  found.prefix = found.prefix or ''
  return found
end

-- Take an entry out that is no valid job: dead letter, and a failed event where it names a job
-- that nobody knows. A job that is known elsewhere is not disturbed.
local function bury(stream, id, fields, field, message, priority, lane_tenant, endings, now)
  local finish = failure('invalid_request', field, message)
  local job = field_of(fields, 'job')
  local named = is_address(job)
  local body = table.concat(fields, ' ')
  dead_letter(named and job or 'raw-' .. id, lane_tenant or '', finish, body, now)
  local record = named and redis.call('HMGET', K.job .. job, 'stream', 'entry', 'epoch', 'tenant',
    'priority')
  if named and record[1] == stream and record[2] == id then
    stop_waiting(job, record[4], record[5])
    to_ending(job, record[3] + 1, finish, now)
    endings[#endings + 1] = ending_of(job)
    return
  end
  drop_entry(stream, id, priority, lane_tenant)
  if named and redis.call('EXISTS', K.job .. job) == 0 then
    endings[#endings + 1] = tombstone(job, finish, now)
  end
end
