--- Patterns whose match takes far more steps than the value has characters.
--
-- A backtracking matcher tries every way to read a value. Where a loop can read
-- one text in two ways, the ways double with each turn (exponential); where
-- one loop follows another and both read the same, they grow with the square
-- (polynomial). Both are searched for in the machine of the pattern; what is
-- found is then tried on the engine, and counts only if that gives up. The work
-- is bounded: what it was not enough for is said, not passed over.

local charset <const> = require "gateway.charset"
local core <const> = require "gateway.core"
local regex <const> = require "gateway.regex"
local M = {}

local MAX_WAYS <const> = 20000
local MAX_DEPTH <const> = 1000
local MAX_WORK <const> = 500000  -- edges, and pairs of them, for each graph
local MAX_LOOP <const> = 1000
local MAX_LOOPS <const> = 20
local MAX_TRIED <const> = 8
local LENGTHS <const> = { 60, 500, 2000 }
local GAVE_UP <const> = "too many steps"
local BAD <const> = { "!", "\n", "a", "\u{e9}" }


-- ---- the graph -------------------------------------------------------------

local function charge(work, n)
  work.left = work.left - n
  if work.left < 0 then
    regex.give_up("its size")
  end
end


-- How many ways lead for free from a state to each that moves: 1, or 2 for
-- more; and whether one leads to the end. No way passes a state more often than
-- `turns`: once finds most; twice is needed for (a?b?)*, where the second turn
-- takes what the first left out. A turn that reads nothing ends a loop.
local function ways(machine, from, turns, work)
  local counts, on_way, budget, ends = {}, {}, MAX_WAYS, false
  local function go(state, depth)
    local passed = on_way[state] or 0
    if passed >= (machine.rounds[state] and 1 or turns) then
      return
    elseif budget == 0 or depth > MAX_DEPTH then
      work.short = true
      return
    end
    budget = budget - 1
    charge(work, 1)
    if state == machine.last then
      ends = true
    elseif machine.move[state] then
      counts[state] = math.min(2, (counts[state] or 0) + 1)
    end
    on_way[state] = passed + 1
    for _, move in ipairs(machine.free[state]) do
      go(move[1], depth + 1)
    end
    on_way[state] = passed
  end
  go(from, 0)
  return counts, ends
end


-- The graph { edges = { [node] = { { set, to, twice }, … } }, ends =, work = }
-- of the nodes that a match can be at. Of the work, `short` is true where
-- a part was left out.
local function graph_of(machine, turns)
  local graph = { edges = {}, ends = {},
    work = { left = MAX_WORK, short = false } }
  local queue, i = { machine.first }, 1
  graph.edges[machine.first] = {}
  while queue[i] do
    local edges = graph.edges[queue[i]]
    local counts, ends = ways(machine, queue[i], turns, graph.work)
    graph.ends[queue[i]] = ends
    for state, count in pairs(counts) do
      local set, to = machine.move[state][1], machine.move[state][2]
      edges[#edges + 1] = { set, to, count > 1 }
      if not graph.edges[to] then
        graph.edges[to] = {}
        queue[#queue + 1] = to
      end
    end
    table.sort(edges, function(a, b)
      return a[2] < b[2]
    end)
    i = i + 1
  end
  return graph
end


-- The loops: lists of nodes that lead to each other.
local function loops_of(graph, machine)
  local loops = {}
  for _, range in ipairs(machine.loops) do
    local loop = { inside = {}, inner = {} }
    for node = range[1], range[2] do
      if graph.edges[node] then
        loop[#loop + 1] = node
        loop.inside[node] = true
      end
    end
    if #loop > MAX_LOOP or #loops == MAX_LOOPS then
      graph.work.short = true
    elseif #loop > 0 then
      loops[#loops + 1] = loop
    end
  end
  return loops
end


-- The edges of a node of a loop that stay in it.
local function inner(graph, loop, node)
  local edges = loop.inner[node]
  if not edges then
    edges = {}
    for _, edge in ipairs(graph.edges[node]) do
      edges[#edges + 1] = loop.inside[edge[2]] and edge or nil
    end
    loop.inner[node] = edges
  end
  return edges
end


-- ---- searching -------------------------------------------------------------

-- Breadth first from `start` over moves(key, add); add(set, key). The text of
-- the first way to a key for which goal(key), or nil.
local function search(graph, start, moves, goal)
  local queue, from, by, i = { start }, { [start] = false }, {}, 1
  local found
  while queue[i] and not found do
    local key = queue[i]
    charge(graph.work, 1)
    moves(key, function(set, to)
      if #set > 0 and not found and goal(to) then
        found = { set, key }
      elseif #set > 0 and from[to] == nil then
        from[to], by[to] = key, set
        queue[#queue + 1] = to
      end
    end)
    i = i + 1
  end
  if not found then
    return nil
  end
  local codes, key = { utf8.char(charset.pick(found[1])) }, found[2]
  while from[key] do
    table.insert(codes, 1, utf8.char(charset.pick(by[key])))
    key = from[key]
  end
  return table.concat(codes)
end


-- A text that leads from a node to one for which goal(node).
local function way(graph, from, goal)
  return goal(from) and "" or search(graph, from, function(key, add)
    charge(graph.work, #graph.edges[key])
    for _, edge in ipairs(graph.edges[key]) do
      add(edge[1], edge[2])
    end
  end, goal)
end


local function way_to(graph, from, to)
  return way(graph, from, function(node)
    return node == to
  end)
end


-- Calls add(set, to, to, part) for each pair of edges, of one list and another,
-- that read the same; `part` where they are two, or one that can be read in two
-- ways.
local function both(graph, lefts, rights, add)
  charge(graph.work, #lefts * #rights)
  for _, left in ipairs(lefts) do
    for _, right in ipairs(rights) do
      local set = charset.intersect(left[1], right[1])
      if #set > 0 then
        add(set, left[2], right[2], left ~= right or left[3])
      end
    end
  end
end


-- Two different readings of one text, from a node of the loop to another: the
-- node, the text, and where it ends.
local function two_ways(graph, loop, node)
  local ended
  local text = search(graph, node << 25 | node << 1, function(key, add)
    local a, b, parted = key >> 25, key >> 1 & 0xFFFFFF, key & 1 == 1
    local lefts, rights = inner(graph, loop, a), inner(graph, loop, b)
    both(graph, lefts, rights, function(set, left, right, part)
      local differ = parted or a == b and part or false
      if differ and left == right then
        ended = ended or left
      end
      add(set, left << 25 | right << 1 | (differ and 1 or 0))
    end)
  end, function(key)
    return key & 1 == 1 and key >> 25 == key >> 1 & 0xFFFFFF
  end)
  return text, ended
end


-- Calls each(kind, node, pump) for nodes of a loop from which a text can be
-- read in two ways, until that returns.
local function exponential(graph, loop, each)
  local tried = 0
  for _, node in ipairs(loop) do
    local text, ended = two_ways(graph, loop, node)
    local back = text and way_to(graph, ended, node)
    tried = tried + (text and 1 or 0)
    local found = back and each("exponential", node, text .. back)
    if found or tried >= MAX_TRIED then
      return found
    end
  end
  return nil
end


-- A text that goes round at p, leads from p to q, and goes round at q; those
-- are of two loops.
local function polynomial(graph, p, q, first, second)
  local function key_of(a, b, c)
    return a << 40 | b << 20 | c
  end
  local goal = key_of(p, q, q)
  return search(graph, key_of(p, p, q), function(key, add)
    local a, b, c = key >> 40, key >> 20 & 0xFFFFF, key & 0xFFFFF
    local lefts, thirds = inner(graph, first, a), inner(graph, second, c)
    both(graph, lefts, graph.edges[b], function(set, left, right)
      charge(graph.work, #thirds)
      for _, edge in ipairs(thirds) do
        add(charset.intersect(set, edge[1]), key_of(left, right, edge[2]))
      end
    end)
  end, function(key)
    return key == goal
  end)
end


-- ---- trying ----------------------------------------------------------------

-- The ways to set a pumped text into a value that does not match in the end.
local function shapes(begin, rest)
  local list = {}
  for _, bad in ipairs(BAD) do
    for _, shape in ipairs {
      { begin, bad }, { begin, rest .. bad }, { rest .. bad .. begin, bad },
    } do
      list[#list + 1] = shape
    end
  end
  return list
end


-- The shortest value of a shape at which the engine gives up.
local function shortest(test, shape, pump, most)
  local low, high = 1, most
  while low < high do
    local middle = (low + high) // 2
    if test(shape[1] .. pump:rep(middle) .. shape[2]) then
      high = middle
    else
      low = middle + 1
    end
  end
  return shape[1] .. pump:rep(low) .. shape[2]
end


-- A value at which the engine gives up, or nil.
local function attack(pattern, begin, pump, rest, max)
  local schema = core.encode { pattern = pattern }
  local function test(value)
    local _, why = core.schema_test(schema, core.encode(value))
    return why and why:find(GAVE_UP, 1, true)
  end
  for _, length in ipairs(LENGTHS) do
    for _, shape in ipairs(shapes(begin, rest)) do
      local room = math.min(length, max) - utf8.len(shape[1])
        - utf8.len(shape[2])
      local most = room // utf8.len(pump)
      if most > 0 and test(shape[1] .. pump:rep(most) .. shape[2]) then
        return shortest(test, shape, pump, most)
      end
    end
    if length >= max then
      break
    end
  end
  return nil
end


-- A text by which one loop passes into the other, or nil.
local function passage(graph, first, second)
  for _, q in ipairs(second) do
    local pump = polynomial(graph, first[1], q, first, second)
    if pump then
      return pump
    end
  end
  return nil
end


-- Calls each(kind, node, pump) for each suspicious loop, until that returns.
local function suspects(graph, loops, each)
  for _, loop in ipairs(loops) do
    local found = exponential(graph, loop, each)
    if found then
      return found
    end
  end
  local tried = 0
  for i, first in ipairs(loops) do
    for j = i + 1, tried < MAX_TRIED and #loops or 0 do
      local pump = passage(graph, first, loops[j])
      tried = tried + (pump and 1 or 0)
      local found = pump and each("polynomial", first[1], pump)
      if found then
        return found
      end
    end
  end
  return nil
end


-- A kind and a value; or nil and why there was not work enough to tell.
local function find(pattern, machine, max, turns)
  local graph = graph_of(machine, turns)
  local found = suspects(graph, loops_of(graph, machine),
    function(kind, node, pump)
      local begin = way_to(graph, machine.first, node)
      local rest = way(graph, node, function(other)
        return graph.ends[other]
      end)
      local value = begin and rest and attack(pattern, begin, pump, rest, max)
      return value and { kind, value }
    end)
  return found, not found and graph.work.short and "its size" or nil
end


-- A tree in which what is counted may come any number of times: (a{1,30}){1,30}
-- is read in as many ways as (a+)+. True where that changes it.
local function loosened(tree)
  local copy, changed = {}, false
  for key, part in pairs(tree) do
    local within = false
    if type(part) == "table" and part.kind then
      part, within = loosened(part)
    end
    copy[key], changed = part, changed or within
  end
  if copy.kind == "rep" and (copy.max or 0) > 2 then
    copy.min, copy.max, changed = math.min(copy.min, 1), nil, true
  end
  return copy, changed
end


--- Can a value of at most `max` characters make the engine give up?
-- @param trees    the pattern's tree, and those of its lookaheads
-- @param machine_of  automaton.machine
-- @param max      or math.huge
-- @return "exponential" or "polynomial", and the shortest such value; or nil,
--         nil and, where it cannot be told, why
function M.find(pattern, trees, machine_of, max)
  local unknown
  for _, tree in ipairs(trees) do
    local loose, changed = loosened(tree)
    for _, one in ipairs { tree, changed and loose or nil } do
      local machine = machine_of(one)
      for turns = 1, 2 do
        local found, why = regex.try(find, pattern, machine, max, turns)
        if found then
          return found[1], found[2]
        end
        unknown = unknown or why
      end
    end
  end
  return nil, nil, unknown
end


return M
