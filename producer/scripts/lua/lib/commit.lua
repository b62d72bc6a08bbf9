--@offers commit
-- The commit point: terminal entry and result value in one turn, and the terminal event to all who
-- listen. `head` is what the job's messages begin with, up to the epoch; `last` the last index;
-- `told` nothing, or fields of JSON with which the event ends messages.
--
-- No short TTL is given here: the log must outlive the record's way to `done`.
local function commit(publish, ttl_ms, job, epoch, last, finish, result, head, listen, told)
  local log = L.log .. job
  redis.call('XADD', log, string.format('%d-%d', epoch, last + 1), 'finish', finish,
    'from', last + 1, 'to', last)
  redis.call('PEXPIRE', log, ttl_ms)
  redis.call('SET', L.result .. job, result, 'PX', ttl_ms)
  local ending = told and told ~= '' and ',' .. told or ''
  local message = head .. epoch .. ',"choice":0,"from":' .. last + 1 .. ',"to":' .. last
    .. ',"text":"","ids":[],"ends":[]' .. ending .. ',"finish":' .. finish .. '}'
  redis.call(publish, L.tok .. job, message)
  if listen and listen ~= '' then
    redis.call(publish, L.cli .. listen, message)
  end
end
