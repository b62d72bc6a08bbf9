#!lua flags=allow-oom
--@args belt_ms publish worker batch
--@use tail: failed
--@use beginning: begin
-- Begin the logs of jobs that were started from nothing: with their first tokens, or whole. The batch
-- is a msgpack array of items. Answers name only those that were not simply written, as in `append`.
local out = {}
for number, item in ipairs(cmsgpack.unpack(batch)) do
  local ok, reply = pcall(begin, publish, belt_ms, worker, item)
  if not ok then
    reply = failed(reply)
  end
  if reply then
    table.insert(reply, 1, number - 1)
    out[#out + 1] = reply
  end
end
return out
