#!lua
--@args asked:rest
--@use accepting: accept
-- Accept a job, or say why not. No allow-oom: this is the script to refuse when memory is full.
return accept(unpack(ARGV, asked))
