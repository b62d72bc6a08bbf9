#!lua flags=allow-oom
--@args entries:rest
-- Delete dead letters and take them off the count; returns how many were still there.
local deleted, bytes = 0, 0
for i = entries, #ARGV do
  local letter = redis.call('XRANGE', K.dead, ARGV[i], ARGV[i])[1]
  if letter then
    for _, text in ipairs(letter[2]) do
      bytes = bytes + #text
    end
    deleted = deleted + redis.call('XDEL', K.dead, letter[1])
  end
end
if deleted > 0 and redis.call('HEXISTS', K.letters, 'count') == 1 then
  redis.call('HINCRBY', K.letters, 'count', -deleted)
  redis.call('HINCRBY', K.letters, 'bytes', -bytes)
end
return deleted
