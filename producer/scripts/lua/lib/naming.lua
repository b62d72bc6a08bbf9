--@offers inherited tenants_job
-- Jobs by address, which names the tenant. Those of version 1 lie at the plain id whatever their
-- tenant; their records have no `v`, and no release writes such records any more.
local function inherited(job, tenant)
  local plain = string.match(job, '^([^@]+)@')
  local found = plain and redis.call('HMGET', K.job .. plain, 'tenant', 'v')
  return found and found[1] == tenant and not found[2] and plain or nil
end

-- Where a tenant's job lies, nil if it has none of that name. Without a tenant the address is taken
-- as it is.
local function tenants_job(job, tenant)
  if not tenant or tenant == '' then
    return job
  end
  local found = redis.call('HMGET', K.job .. job, 'tenant', 'v')
  if found[1] then
    return (found[2] or found[1] == tenant or found[1] == '') and job or nil
  end
  return inherited(job, tenant)
end
