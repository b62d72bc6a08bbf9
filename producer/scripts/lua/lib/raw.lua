--@offers raw_place raw_name
-- Raw entries of both inboxes under one name: those of the second, which workers of version 1 do
-- not see, have a `2/` in front.
local function raw_place(entry)
  if string.sub(entry, 1, 2) == '2/' then
    return K.inbox2, string.sub(entry, 3)
  end
  return K.inbox, entry
end

local function raw_name(stream, id)
  return (stream == K.inbox2 and '2/' or '') .. id
end
