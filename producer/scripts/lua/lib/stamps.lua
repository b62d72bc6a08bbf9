--@offers stamped
-- The timeline of a job: one text in its record, `stamps`, that the scripts add to which let it change
-- hands anyway. A stamp is `<kind><ms of the server's time>:<words>`, stamps are parted by blanks
-- (`producer/scripts/timeline.py` has the kinds). Past a bound those in the middle go, and `+` is left
-- in their place.
local MAX_BYTES, FIRST_BYTES, LAST_BYTES = 1024, 160, 480

-- A worker tells moments of its own as `<kind><ms since its pull>`, which the last pull makes times of.
local function placed(stamps, lived)
  local pulled = tonumber(string.match(' ' .. stamps, '.* p(%d+)'))
  if not pulled then
    return stamps
  end
  for kind, ms in string.gmatch(lived, '(%a)(%d+)') do
    stamps = stamps .. ' ' .. kind .. string.format('%.0f', pulled + tonumber(ms))
  end
  return stamps
end

-- Return the stamps of a record with what was lived since the last one, and a new one behind it.
local function stamped(stamps, lived, kind, at, words)
  stamps = stamps or ''
  if lived and lived ~= '' then
    stamps = placed(stamps, lived)
  end
  local stamp = kind .. string.format('%.0f', at) .. (words and ':' .. words or '')
  if #stamps > MAX_BYTES then
    local first = string.match(string.sub(stamps, 1, FIRST_BYTES), '^(.*) ') or ''
    local last = string.match(string.sub(stamps, -LAST_BYTES), ' (.*)$') or ''
    stamps = first .. ' + ' .. last
  end
  return stamps == '' and stamp or stamps .. ' ' .. stamp
end
