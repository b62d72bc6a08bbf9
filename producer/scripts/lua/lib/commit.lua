--@offers commit
-- The commit point: terminal entry and result value in one turn, and the terminal event to all who
-- listen. `head` is what the job's messages begin with, up to the epoch; `last` the last index.
--
-- No short TTL is given here: the log must outlive the record's way to `done`.
local function commit(publish, ttl_ms, job, epoch, last, finish, result, head, listen)
  local log = L.log .. job
  redis.call('XADD', log, string.format('%d-%d', epoch, last + 1), 'finish', finish,
    'from', last + 1, 'to', last)
  redis.call('PEXPIRE', log, ttl_ms)
  redis.call('SET', L.result .. job, result, 'PX', ttl_ms)
  local message = head .. epoch .. ',"choice":0,"from":' .. last + 1 .. ',"to":' .. last
    .. ',"text":"","ids":[],"ends":[],"finish":' .. finish .. '}'
  redis.call(publish, L.tok .. job, message)
  if listen and listen ~= '' then
    redis.call(publish, L.cli .. listen, message)
  end
end
