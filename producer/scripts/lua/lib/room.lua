--@offers room pages cost_of has_room_for spend_room is_room_left
-- What a worker has room for, as one pull spends it: pages, rows, and what a job takes of them.
-- `cached` has the tokens that all jobs of a prefix share; of an `idle` one nobody holds the pages.
local room = { pages = 0, rows = 0, page = 1, expected = {}, default_output = 0, cached = {},
  idle = {} }

local function pages(tokens)
  return math.ceil(tokens / room.page)
end

-- Pages of the job's prompt that another job holds or was counted for. Those of an idle prefix are
-- counted with the first job of it, because from then on nothing else can have them.
local function shared_of(found)
  if room.idle[found.prefix] then
    return 0
  end
  local known = math.min(room.cached[found.prefix] or 0, math.max(found.prompt - 1, 0))
  return math.floor(known / room.page)
end

-- Pages that the job needs now, less what it shares: its prompt, per further choice a copy of the
-- page in which that ends, and per choice what is logged and expected. Then the shared ones, and its
-- size in tokens.
local function cost_of(found, lane)
  local logged = math.ceil(found.logged / found.n)
  local output = math.min(found.output, room.expected[lane] or room.default_output)
  output = math.max(output, math.min(found.output, logged + room.page))
  local shared = shared_of(found)
  local copies = found.prompt % room.page > 0 and found.n - 1 or 0
  return pages(found.prompt) - shared + copies + found.n * pages(output), shared,
    found.prompt + found.n * output
end

local function has_room_for(found, need)
  return need <= room.pages and found.n <= room.rows
end

local function spend_room(found, need)
  room.pages, room.rows = room.pages - need, room.rows - found.n
  room.idle[found.prefix] = nil
end

local function is_room_left()
  return room.pages > 0 and room.rows > 0
end
