#!lua
--@args asked:rest
--@use accepting: accept write_load
-- Accept a job, or say why not. No allow-oom: this is the script to refuse when memory is full.
local ok, reply = pcall(accept, unpack(ARGV, asked))
write_load()
return ok and reply or type(reply) == 'table' and reply or redis.error_reply(tostring(reply))
