--- What a schema's `pattern` lets through: computed, not guessed.
--
--     local p = pattern.new("^[a-z./-]{1,20}$")
--     p:admits ".."            --> "..": the shortest value that contains it
--     p:admits_first "-"       --> "-"
--     p:meets(pattern.new "(^|/)[.][.](/|$)")
--     p:anchored(), p:longest()  --> true, 20
--
-- A pattern becomes a finite automaton over code points, and questions become
-- intersections of automata, so an answer holds for every value. Lookaheads
-- right after a leading ^ are taken in. What is not regular (a backreference),
-- or too large, cannot be judged: then `p.why` says so, and the pattern counts
-- as one that lets everything through.

local automaton <const> = require "gateway.automaton"
local core <const> = require "gateway.core"
local redos <const> = require "gateway.redos"
local regex <const> = require "gateway.regex"
local M = {}

local TRIES <const> = 40

local Pattern = {}
Pattern.__index = Pattern


-- Takes the lookaheads after a leading ^ out of a tree.
-- @return the tree without them, and a list of them
local function take_looks(tree)
  local looks, rest = {}, { kind = "cat" }
  if tree.kind ~= "cat" or not tree[1] or tree[1].what ~= "begin" then
    return tree, looks
  end
  for i, node in ipairs(tree) do
    if node.kind == "look" and #looks == i - 2 then
      looks[#looks + 1] = node
    else
      rest[#rest + 1] = node
    end
  end
  return rest, looks
end


local function look_automaton(look)
  local a = automaton.of(automaton.machine {
    kind = "cat", { kind = "assert", what = "begin" }, look.node,
  })
  return look.negative and automaton.complement(a) or a
end


local function build(self, text)
  local tree, why = regex.parse(text)
  if not tree then
    regex.give_up(why)
  end
  local rest, looks = take_looks(tree)
  self.trees = { rest }
  for i, look in ipairs(looks) do
    self.trees[i + 1] = look.node
  end
  self.machine = automaton.machine(rest)
  self.bare = automaton.of(self.machine)
  local all = self.bare
  for _, look in ipairs(looks) do
    all = automaton.product(all, look_automaton(look))
  end
  self.all = self.min > 0
    and automaton.product(all, automaton.length(self.min)) or all
  self.distance = self.all:distances()
  return true
end


--- new(text [, lengths]): analyses a pattern as our schemas take it.
-- @param lengths  a schema whose minLength and maxLength hold too
-- @return the pattern, its `why` set if it cannot be judged; or nil and why
--         the engine refuses it
function M.new(text, lengths)
  local ok, message = core.schema_check(core.encode { pattern = text })
  if not ok then
    return nil, message
  end
  local self = setmetatable({
    text = text, min = lengths and lengths.minLength or 0,
    max = lengths and lengths.maxLength or math.huge,
  }, Pattern)
  local _, why = regex.try(build, self, text)
  self.why = why
  return self
end


-- ---- what it lets through --------------------------------------------------

-- The shortest value of an intersection, where maxLength has room for it.
-- Nil: none. `instead` is the answer of a pattern that cannot be judged.
local function example(self, other, instead)
  if self.why then
    return instead, self.why
  end
  local value, why = regex.try(function()
    return automaton.product(self.all, other):shortest()
  end)
  if why then
    return instead, why
  end
  return value and utf8.len(value) <= self.max and value or nil
end


local function codes_of(text)
  local codes = {}
  for _, code in utf8.codes(text) do
    codes[#codes + 1] = code
  end
  return codes
end


--- admits(text): the shortest valid value that contains the text, or nil. A
-- second result says why this could not be judged; then the first is the text.
function Pattern:admits(text)
  return example(self, automaton.text(codes_of(text), false), text)
end


--- admits_first(text): the same, of values that begin with it.
function Pattern:admits_first(text)
  return example(self, automaton.text(codes_of(text), true), text)
end


--- meets(other [, text]): the shortest value that both patterns take, and that
-- contains the text; or nil.
function Pattern:meets(other, text)
  if other.why then
    return "", other.why
  end
  local both = text and automaton.product(other.all,
    automaton.text(codes_of(text), false)) or other.all
  return example(self, both, other:shortest())
end


--- shortest(): the shortest valid value, or nil: there is none.
function Pattern:shortest()
  if self.why then
    return nil, self.why
  end
  local value = self.all:shortest()
  return value and utf8.len(value) <= self.max and value or nil
end


--- accepts(value): true where the value is valid; nil where it cannot be told.
function Pattern:accepts(value)
  if self.why then
    return nil
  end
  local length = utf8.len(value)
  return length >= self.min and length <= self.max and self.all:accepts(value)
end


--- anchored(): true where a match is always the whole value: ^ and $ bind
-- every alternative.
function Pattern:anchored()
  if self.why then
    return false
  end
  local a, distance = self.bare, self.bare:distances()
  for node in pairs(distance) do
    local state, before = a.keys[node] // 4, a.keys[node] % 4
    if state == self.machine.rest
      or state == self.machine.first and before ~= 1 then
      return false
    end
  end
  return true
end


--- length_min(): the fewest code points of a valid value; nil: there is none,
-- or that cannot be judged.
function Pattern:length_min()
  return not self.why and self.distance[1] or nil
end


--- longest(): the most code points of a valid value, or nil: no end.
function Pattern:longest()
  local length
  if not self.why then
    length = self.all:longest()
  end
  if self.max < math.huge then
    return math.min(length or self.max, self.max)
  end
  return length
end


--- redos(): nil; or "exponential" or "polynomial", and a value (within
-- maxLength) at which the engine gives up. Nil, nil and why: it cannot be told.
function Pattern:redos()
  if not self.machine then
    return nil
  end
  self.attack = self.attack or table.pack(redos.find(self.text, self.trees,
    automaton.machine, self.max))
  return table.unpack(self.attack, 1, self.attack.n)
end


-- ---- samples ---------------------------------------------------------------

--- sample(random [, max]): a random valid value of at most `max` code points
-- (64, if there is one so short); nil where there is none, or it cannot be
-- judged.
-- @param random  random(n) -> 1 … n
function Pattern:sample(random, max)
  if self.why or not self.distance[1] then
    return nil
  end
  max = math.min(max or math.max(64, self.distance[1]), self.max)
  return self.all:walk(random, max, self.distance)
end

-- What is put into a valid value to make it invalid.
local BITS <const> = {
  "/", "..", "-", " ", "\n", "\0", "'", "|", ":", "@", "%2f", "\u{e9}", "A",
  "0", "_", "\t",
}


-- A value with a bit put in, a character taken out, or one doubled.
local function changed(value, random)
  local length = utf8.len(value)
  local at = utf8.offset(value, random(length + 1))
  local after = utf8.offset(value, 2, at) or at
  local how = random(4)
  local left, char = value:sub(1, at - 1), value:sub(at, after - 1)
  local right = value:sub(after)
  if how == 1 then
    return left .. right
  elseif how == 2 then
    return left .. char .. char .. right
  end
  return left .. BITS[random(#BITS)] .. (how == 3 and char or "") .. right
end


--- near_miss(random [, max]): an invalid value that is close to a valid one, or
-- nil: none was found, or it cannot be judged.
function Pattern:near_miss(random, max)
  for _ = 1, self.why and 0 or TRIES do
    local value = self:sample(random, max)
    if not value then
      return nil
    end
    value = changed(value, random)
    if not self:accepts(value) and utf8.len(value) <= (max or math.huge) then
      return value
    end
  end
  return nil
end


return M
