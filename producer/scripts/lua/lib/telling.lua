--@offers tell_beginning
-- Add to the fields of a marker what a job's first owner tells in it: how many tokens the prompt has,
-- and how the answers are read, where they are messages.
local function tell_beginning(marker, chat, prompt)
  if prompt then
    marker[#marker + 1] = 'prompt'
    marker[#marker + 1] = prompt
  end
  if chat and chat ~= '' then
    marker[#marker + 1] = 'chat'
    marker[#marker + 1] = chat
  end
end
