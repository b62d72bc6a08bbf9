#!lua
--@args batch
--@use accepting: accept write_load
-- Accept jobs or say why not, one by one: a msgpack array with the arguments of `submit` for each.
-- Answers are as of `submit`, or the error that one job met. No allow-oom, as there.
local out = {}
for number, asked in ipairs(cmsgpack.unpack(batch)) do
  local ok, reply = pcall(accept, unpack(asked))
  out[number] = ok and reply or { 'error', type(reply) == 'table' and reply.err or tostring(reply) }
end
write_load()
return out
