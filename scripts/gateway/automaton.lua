--- Finite automata over code points: what a pattern's tree becomes.
--
-- An automaton has numbered nodes, the first of them 1; `edges(node)` is a flat
-- list { set, node, set, node, … } and `final(node)` tells whether a value may
-- end there. Nodes are made as they are asked for, so that an intersection is
-- no larger than the part that is looked at. All work is bounded: what is too
-- large is given up with a reason (regex.try), not cut short.

local charset <const> = require "gateway.charset"
local regex <const> = require "gateway.regex"
local M = {}

local MAX_STATES <const> = 30000
local MAX_NODES <const> = 100000
local MAX_SETS <const> = 3000  -- nodes that stand for sets of nodes
local MAX_EDGES <const> = 600000
local MAX_PAIRS <const> = 3000000  -- of edges that a product looks at
local NOT_WORD <const> = charset.negate(regex.WORD)

local Automaton = {}
Automaton.__index = Automaton


-- An automaton whose nodes are known by a key.
-- @param first   the key of node 1
-- @param expand  expand(key, add): calls add(set, key) for each edge
-- @param final   final(key) -> boolean
-- @param most    how many nodes there may be; MAX_NODES if not given
local function new(first, expand, final, most)
  return setmetatable({
    keys = { first }, numbers = { [first] = 1 }, known = {}, finals = {},
    count = 0, most = most or MAX_NODES, expand = expand, is_final = final,
  }, Automaton)
end


function Automaton:number(key)
  local number = self.numbers[key]
  if not number then
    number = #self.keys + 1
    if number > self.most then
      regex.give_up("its size")
    end
    self.keys[number], self.numbers[key] = key, number
  end
  return number
end


function Automaton:edges(node)
  local edges = self.known[node]
  if not edges then
    edges = {}
    self.expand(self.keys[node], function(set, key)
      if #set > 0 then
        edges[#edges + 1], edges[#edges + 2] = set, self:number(key)
      end
    end)
    self.count = self.count + #edges
    if self.count > MAX_EDGES then
      regex.give_up("its size")
    end
    self.known[node] = edges
  end
  return edges
end


function Automaton:final(node)
  local final = self.finals[node]
  if final == nil then
    final = self.is_final(self.keys[node])
    self.finals[node] = final
  end
  return final
end


-- ---- from a tree -----------------------------------------------------------

-- A machine's states have free moves { to, assertion or nil } and at most one
-- move by a code point: { set, to }. `loops` are the first and last state of
-- each outermost star, `rounds` has the state where each star begins a turn.
local Machine = {}
Machine.__index = Machine


function Machine:state()
  local state = #self.free + 1
  if state > MAX_STATES then
    regex.give_up("its size")
  end
  self.free[state] = {}
  return state
end


function Machine:join(from, to, assertion)
  table.insert(self.free[from], { to, assertion })
end

local BUILD = {}


-- Adds a tree after state `from`. Returns the state where it ends.
function Machine:add(node, from)
  return BUILD[node.kind](self, node, from)
end


function BUILD.empty(_, _, from)
  return from
end


function BUILD.set(self, node, from)
  local begin, to = from, self:state()
  if self.move[from] then
    begin = self:state()
    self:join(from, begin)
  end
  self.move[begin] = { node.set, to }
  return to
end


function BUILD.cat(self, node, from)
  for _, part in ipairs(node) do
    from = self:add(part, from)
  end
  return from
end


function BUILD.alt(self, node, from)
  local to = self:state()
  for _, part in ipairs(node) do
    local begin = self:state()
    self:join(from, begin)
    self:join(self:add(part, begin), to)
  end
  return to
end


BUILD["assert"] = function(self, node, from)
  local to = self:state()
  self:join(from, to, node.what)
  self.words = self.words or node.what == "boundary" or node.what == "inside"
  return to
end


function BUILD.look()
  regex.give_up("a lookahead that is not at the beginning, after ^")
end


-- A tree any number of times. The way in and the way round are told apart, so
-- that redos.lua can count the ways through a star within a star.
function Machine:round(tree, from, out)
  local begin, outermost = self:state(), not self.inside
  self.inside = true
  self:join(from, begin)
  self.rounds[begin] = true
  local done = self:add(tree, begin)
  local again = self:state()
  self:join(done, again)
  self:join(again, begin)
  self:join(again, out)
  if outermost then
    self.inside = false
    table.insert(self.loops, { begin, again })
  end
end


function BUILD.rep(self, node, from)
  for _ = 1, node.min do
    from = self:add(node.node, from)
  end
  local out = self:state()
  self:join(from, out)
  if not node.max then
    self:round(node.node, from, out)
    return out
  end
  for _ = node.min + 1, node.max do
    from = self:add(node.node, from)
    self:join(from, out)
  end
  return out
end


--- The machine of a tree: a match anywhere in the value, as schemas search.
-- State `first` goes round before the match, `last` is where it has ended, and
-- `rest` goes round after it.
function M.machine(tree)
  local self = setmetatable({ free = {}, move = {}, loops = {}, rounds = {} },
    Machine)
  local again = self:state()
  self.first, self.last, self.rest = self:state(), self:state(), self:state()
  self.loops[1] = { self.first, self.first }
  self:join(self.first, again)
  self.move[again] = { charset.ALL, self.first }
  local begin = self:state()
  self:join(self.first, begin)
  self:join(self:add(tree, begin), self.last)
  self.move[self.last] = { charset.ALL, self.rest }
  self.move[self.rest] = { charset.ALL, self.rest }
  return self
end


-- Does an assertion hold between what is before and what comes?
local function holds(what, before, after)
  if what == "begin" then
    return before == "begin"
  elseif what == "end" then
    return after == "end"
  end
  local at_edge = (before == "word") ~= (after == "word")
  return at_edge == (what == "boundary")
end


-- All states that are reached for free.
local function reach(machine, from, before, after)
  local list, seen = { from }, { [from] = true }
  local i = 1
  while list[i] do
    for _, move in ipairs(machine.free[list[i]]) do
      local to, assertion = move[1], move[2]
      if not seen[to]
        and (not assertion or holds(assertion, before, after)) then
        seen[to] = true
        list[#list + 1] = to
      end
    end
    i = i + 1
  end
  return list, seen
end

local BEFORE <const> = { "begin", "word", "other" }


--- The automaton of a machine, without free moves. A key is a state and what
-- was before it.
function M.of(machine)
  local kinds = machine.words
    and { { "word", regex.WORD, 2 }, { "other", NOT_WORD, 3 } }
    or { { "other", charset.ALL, 3 } }
  local function expand(key, add)
    for _, kind in ipairs(kinds) do
      local after, set, number = kind[1], kind[2], kind[3]
      for _, from in ipairs(reach(machine, key // 4, BEFORE[key % 4], after)) do
        local move = machine.move[from]
        if move then
          add(charset.intersect(move[1], set), move[2] * 4 + number)
        end
      end
    end
  end
  return new(machine.first * 4 + 1, expand, function(key)
    local _, seen = reach(machine, key // 4, BEFORE[key % 4], "end")
    return seen[machine.last] or seen[machine.rest] or false
  end)
end


-- ---- texts, products, complements ------------------------------------------

--- Every value that contains a text; with `first`, that begins with it.
-- @param codes  list of code points
function M.text(codes, first)
  return new(first and 0 or -1, function(key, add)
    if key == -1 or key == #codes then
      add(charset.ALL, key)
    end
    local at = math.max(key, 0)
    if at < #codes then
      add({ codes[at + 1], codes[at + 1] }, at + 1)
    end
  end, function(key)
    return math.max(key, 0) == #codes
  end)
end


--- Values of a length. @param max  or nil
function M.length(min, max)
  return new(0, function(count, add)
    if count < (max or math.huge) then
      add(charset.ALL, max and count + 1 or math.min(count + 1, min))
    end
  end, function(count)
    return count >= min
  end)
end


--- What both take.
function M.product(a, b)
  local pairs_left = MAX_PAIRS
  return new((1 << 24) + 1, function(key, add)
    local left, right = a:edges(key >> 24), b:edges(key & 0xFFFFFF)
    pairs_left = pairs_left - #left * #right // 4
    if pairs_left < 0 then
      regex.give_up("its size")
    end
    for i = 1, #left, 2 do
      for j = 1, #right, 2 do
        local set = charset.intersect(left[i], right[j])
        if #set > 0 then
          add(set, left[i + 1] << 24 | right[j + 1])
        end
      end
    end
  end, function(key)
    return a:final(key >> 24) and b:final(key & 0xFFFFFF)
  end)
end


-- The code points at which an edge of these nodes begins, or has just ended.
local function borders(a, nodes)
  local list, seen = {}, {}
  for _, node in ipairs(nodes) do
    local edges = a:edges(node)
    for i = 1, #edges, 2 do
      for j, code in ipairs(edges[i]) do
        code = j % 2 == 0 and code + 1 or code
        if not seen[code] then
          seen[code] = true
          list[#list + 1] = code
        end
      end
    end
  end
  list[#list + 1] = 0
  table.sort(list)
  return list
end


-- The nodes that `nodes` go to by a code point, as a key.
local function follow(a, nodes, code)
  local list, seen = {}, {}
  for _, node in ipairs(nodes) do
    local edges = a:edges(node)
    for i = 1, #edges, 2 do
      local to = edges[i + 1]
      if not seen[to] and charset.has(edges[i], code) then
        seen[to] = true
        list[#list + 1] = to
      end
    end
  end
  table.sort(list)
  return table.concat(list, " ")
end


local function nodes_of(key)
  local nodes = {}
  for number in key:gmatch("%d+") do
    nodes[#nodes + 1] = tonumber(number)
  end
  return nodes
end


local function any_final(a, nodes)
  for _, node in ipairs(nodes) do
    if a:final(node) then
      return true
    end
  end
  return false
end


-- The automaton with one node for each set of nodes that can be reached at
-- once; takes what `a` takes, or, negated, all else.
local function determined(a, negative)
  return new("1", function(key, add)
    local nodes, ranges = nodes_of(key), {}
    local codes = borders(a, nodes)
    for i, code in ipairs(codes) do
      local last = (codes[i + 1] or 0x110000) - 1
      if code <= last then
        local to = follow(a, nodes, code)
        ranges[to] = ranges[to] or {}
        table.insert(ranges[to], code)
        table.insert(ranges[to], last)
      end
    end
    for to, list in pairs(ranges) do
      add(charset.clip(charset.new(list)), to)
    end
  end, function(key)
    return any_final(a, nodes_of(key)) ~= negative
  end, MAX_SETS)
end


--- What the automaton does not take.
function M.complement(a)
  return determined(a, true)
end


-- ---- questions -------------------------------------------------------------

--- True where it takes a value.
function Automaton:accepts(text)
  local nodes = { 1 }
  for _, code in utf8.codes(text) do
    nodes = nodes_of(follow(self, nodes, code))
  end
  return any_final(self, nodes)
end


--- The shortest value it takes, or nil: none.
function Automaton:shortest()
  local queue, from, by, i = { 1 }, { false }, {}, 1
  while queue[i] and not self:final(queue[i]) do
    local edges = self:edges(queue[i])
    for j = 1, #edges, 2 do
      local to = edges[j + 1]
      if from[to] == nil then
        from[to], by[to] = queue[i], edges[j]
        queue[#queue + 1] = to
      end
    end
    i = i + 1
  end
  local codes, node = {}, queue[i]
  if not node then
    return nil
  end
  while from[node] do
    table.insert(codes, 1, utf8.char(charset.pick(by[node])))
    node = from[node]
  end
  return table.concat(codes)
end


--- How many code points it takes at least from each node to an end; of a node
-- that leads to none: nil.
function Automaton:distances()
  local before, distance, queue, i = {}, {}, {}, 1
  while i <= #self.keys do
    local edges = self:edges(i)
    for j = 2, #edges, 2 do
      before[edges[j]] = before[edges[j]] or {}
      table.insert(before[edges[j]], i)
    end
    if self:final(i) then
      distance[i] = 0
      queue[#queue + 1] = i
    end
    i = i + 1
  end
  i = 1
  while queue[i] do
    for _, node in ipairs(before[queue[i]] or {}) do
      if not distance[node] then
        distance[node] = distance[queue[i]] + 1
        queue[#queue + 1] = node
      end
    end
    i = i + 1
  end
  return distance
end


-- How many edges lead to each useful node from useful ones.
local function arrivals(self, distance)
  local counts = {}
  for node in pairs(distance) do
    local edges = self:edges(node)
    for i = 2, #edges, 2 do
      counts[edges[i]] = (counts[edges[i]] or 0) + 1
    end
  end
  return counts
end


--- The length of the longest value, or nil: there is no end.
function Automaton:longest()
  local distance = self:distances()
  if not distance[1] then
    return 0
  end
  local counts, useful = arrivals(self, distance), 0
  local length, queue, best, i = { 0 }, {}, 0, 1
  for _ in pairs(distance) do
    useful = useful + 1
  end
  if (counts[1] or 0) == 0 then
    queue[1] = 1
  end
  while queue[i] do
    local node = queue[i]
    if self:final(node) then
      best = math.max(best, length[node])
    end
    local edges = self:edges(node)
    for j = 2, #edges, 2 do
      local to = edges[j]
      if distance[to] then
        length[to] = math.max(length[to] or 0, length[node] + 1)
        counts[to] = counts[to] - 1
        if counts[to] == 0 then
          queue[#queue + 1] = to
        end
      end
    end
    i = i + 1
  end
  return #queue == useful and best or nil
end


--- A random value of at most `max` code points, or nil: there is none.
-- @param distance  what distances() said
function Automaton:walk(random, max, distance)
  local node, codes = 1, {}
  if (distance[1] or math.huge) > max then
    return nil
  end
  while not (self:final(node) and random(6) == 1) do
    local edges, open = self:edges(node), {}
    for i = 1, #edges, 2 do
      local left = distance[edges[i + 1]]
      if left and left + #codes < max then
        open[#open + 1] = i
      end
    end
    if #open == 0 then
      break
    end
    local i = open[random(#open)]
    codes[#codes + 1] = utf8.char(charset.random(edges[i], random))
    node = edges[i + 1]
  end
  return table.concat(codes)
end


return M
