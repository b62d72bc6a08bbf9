#!lua flags=allow-oom
--@args belt_ms publish worker batch told:rest
--@use tail: failed
--@use beginning: begin
-- Begin the logs of jobs that were started from nothing: with their first tokens, or whole. The batch
-- is a msgpack array of items. Answers name only those that were not simply written, as in `append`.
-- Where there is more to tell of jobs, a second array has it for each, as `begin` takes it.
--
-- Behind it, perhaps, the server's time in ms past which nothing is begun: the lease of the worker is
-- long over then, and log and result of a job that another has ended since may be gone, so that
-- nothing else would tell.
local until_ms = tonumber(ARGV[told + 1])
if until_ms and tonumber(redis.call('TIME')[1]) * 1000 > until_ms then
  return { err = 'UNLEASED the lease of the worker was over when its call came' }
end
local messages = (ARGV[told] or '') ~= '' and cmsgpack.unpack(ARGV[told])
local out = {}
for number, item in ipairs(cmsgpack.unpack(batch)) do
  local ok, reply = pcall(begin, publish, belt_ms, worker, item, messages and messages[number])
  if not ok then
    reply = failed(reply)
  end
  if reply then
    table.insert(reply, 1, number - 1)
    out[#out + 1] = reply
  end
end
return out
