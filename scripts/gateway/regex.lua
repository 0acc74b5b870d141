--- Reads the regular expressions of our schemas' `pattern` into a tree.
--
-- The dialect is what the C side compiles (schema_re_compile): PCRE2 held close
-- to ECMA-262. What is not regular, or rare enough to get wrong, is refused
-- with a reason, never guessed at: a pattern that cannot be judged has to count
-- as one that lets everything through.
--
-- Nodes of the tree, by `kind`: set { set }, empty, cat { node, … }, alt {
-- node, … }, rep { node, min, max or nil }, assert { what }, look { node,
-- negative }.

local charset <const> = require "gateway.charset"
local M = {}

local MAX_NESTING <const> = 200
local ALL <const> = charset.ALL
local DOT <const> = charset.negate { 10, 10, 13, 13 }
local DIGIT <const> = { 48, 57 }
local WORD <const> = { 48, 57, 65, 90, 95, 95, 97, 122 }

M.WORD = WORD

local CONTROLS <const> = { n = 10, r = 13, t = 9, f = 12, a = 7, e = 27 }
local CLASSES <const> = {
  d = DIGIT, D = charset.negate(DIGIT), w = WORD, W = charset.negate(WORD),
}
local ASKED <const> = { s = true, S = true, h = true, H = true, v = true,
  V = true, N = true }
local ASSERTIONS <const> = {
  b = "boundary", B = "inside", A = "begin", z = "end",
}
local FAR <const> = {
  Q = "a quotation \\Q…\\E", E = "a quotation \\Q…\\E", R = "\\R", X = "\\X",
  G = "\\G", K = "\\K", Z = "\\Z", C = "\\C", g = "a backreference",
  k = "a backreference", o = "\\o{…}",
}

local Reader = {}
Reader.__index = Reader


-- What try() catches: why a pattern cannot be judged.
local Unjudged = {}

local function give_up(why)
  error(setmetatable({ why = why }, Unjudged), 0)
end

M.give_up = give_up


--- Calls a function that may give up.
-- @return what it returns, or nil and why
function M.try(func, ...)
  local ok, result, more = pcall(func, ...)
  if ok then
    return result, more
  elseif getmetatable(result) == Unjudged then
    return nil, result.why
  elseif result == "not enough memory" then
    return nil, "its size"
  end
  error(result, 0)
end


function Reader:take(pattern)
  local found = { self.text:match("^" .. pattern .. "()", self.at) }
  if #found == 0 then
    return nil
  end
  self.at = found[#found]
  return found[1], found[2], found[3]
end


function Reader:done()
  return self.at > #self.text
end


function Reader:code()
  local code = utf8.codepoint(self.text, self.at)
  self.at = utf8.offset(self.text, 2, self.at)
  return code
end


-- ---- sets ------------------------------------------------------------------

-- A set under the flags in force. `item` is its text, for the engine.
function Reader:set(set, item)
  if self.flags.i then
    set = charset.fold(set) or charset.ask(item, "(?i)")
  end
  return { kind = "set", set = set }
end


-- \x41, \u0041, \u{41}, \ud83d\ude00, \012, \cA, after the backslash; or nil.
function Reader:numbered()
  local high, low =
    self:take("u([dD][89abAB]%x%x)\\u([dD][c-fC-F]%x%x)")
  if high then
    return 0x10000 + (tonumber(high, 16) - 0xD800 << 10)
      + tonumber(low, 16) - 0xDC00
  end
  local octal = self:take("(0[0-7]?[0-7]?)")
  if octal then
    return tonumber(octal, 8)
  end
  local hex = self:take("x(%x%x)") or self:take("u(%x%x%x%x)")
    or self:take("u{(%x+)}")
  if hex then
    return tonumber(hex, 16)
  end
  local control = self:take("c([ -~])")
  return control and control:upper():byte() ~ 64
end


-- The code point of an escape that stands for one, or nil.
function Reader:escaped_code()
  local code = self:numbered()
  if code then
    return code
  end
  local letter = self.text:sub(self.at, self.at)
  if CONTROLS[letter] then
    self.at = self.at + 1
    return CONTROLS[letter]
  end
  return (letter:find("^[^%w]$") or letter:find("^[xuU]$")) and self:code()
end


-- The set of an escape that stands for several, or nil.
function Reader:escaped_class()
  local from = self.at
  local letter = self:take("([dDwW])")
  if letter then
    return CLASSES[letter]
  end
  local asked = self:take("([pP]%^?%a)") or self:take("([pP]{[^}]*})")
  if not asked and ASKED[self.text:sub(from, from)]
    and not self.text:find("^N{", from) then
    asked = self:take("(.)")
  end
  return asked and charset.ask("\\" .. asked, self.flags.i and "(?i)" or "")
end


-- Where the class that begins at `from` ends.
local function class_end(text, from)
  local at = text:match("^%[%^?()", from)
  while at <= #text do
    local char = text:sub(at, at)
    local posix = text:match("^%[:%^?%a+:%]()", at)
    if char == "]" then
      return at
    elseif posix then
      at = posix
    else
      at = at + (char == "\\" and 2 or 1)
    end
  end
  return #text
end


-- One end of a range: a code point; nil and a set, where it is no single one;
-- nil alone for what the engine had better read itself.
function Reader:class_item()
  if self:take("(\\)") then
    if self:take("(b)") then
      return 8
    end
    local code = self:escaped_code()
    if code then
      return code
    end
    return nil, self:escaped_class()
  end
  if self.text:find("^%[[:.=]", self.at) then
    return nil
  end
  return self:code()
end


-- The ranges of a class up to its "]"; nil where it is not a plain one, which
-- \w under (?i) is not.
function Reader:class_ranges()
  local ranges = {}
  while not self:take("(%])") do
    if self:done() then
      return nil
    end
    local low, set = self:class_item()
    local high = low
    if not low and (not set or self.flags.i) then
      return nil
    end
    if self.text:find("^%-[^%]]", self.at) then
      self.at = self.at + 1
      high = low and self:class_item()
      if not high or high < low then
        return nil
      end
    end
    set = set or { low, high }
    table.move(set, 1, #set, #ranges + 1, ranges)
  end
  return ranges
end


function Reader:class()
  local from = self.at
  local last = class_end(self.text, from)
  local item = self.text:sub(from, last)
  if item:find("\\[QE]") then
    give_up(FAR.Q)
  end
  self.at = from + 1
  local negative = self:take("(%^)")
  local ranges = self:class_ranges()
  if not ranges then
    self.at = last + 1
    return { kind = "set", set = charset.ask(item,
      self.flags.i and "(?i)" or "") }
  end
  local set = charset.clip(charset.new(ranges))
  if self.flags.i then
    local folded = charset.fold(set)
    if not folded then
      return self:set(set, item)
    end
    set = folded
  end
  return { kind = "set", set = negative and charset.negate(set) or set }
end


-- ---- atoms -----------------------------------------------------------------

function Reader:escape()
  local from = self.at - 1
  local letter = self.text:sub(self.at, self.at)
  if ASSERTIONS[letter] then
    self.at = self.at + 1
    return { kind = "assert", what = ASSERTIONS[letter] }
  elseif FAR[letter] then
    give_up(FAR[letter])
  elseif letter:find("[1-9]") then
    give_up("a backreference")
  end
  local code = self:escaped_code()
  if code then
    return self:set({ code, code }, self.text:sub(from, self.at - 1))
  end
  local set = self:escaped_class()
  if not set then
    give_up("\\" .. letter)
  end
  return { kind = "set", set = set }
end


-- (?is-is) and (?is-is: after "(?"; true where it is one.
function Reader:read_flags()
  local on, off, close = self:take("([a-zA-Z]*)%-?([a-zA-Z]*)([:)])")
  if not on then
    return nil
  end
  if (on .. off):find("[^is]") then
    give_up("the option (?" .. on .. ")")
  end
  local flags = { i = self.flags.i, s = self.flags.s }
  for flag in on:gmatch(".") do
    flags[flag] = true
  end
  for flag in off:gmatch(".") do
    flags[flag] = false
  end
  self.flags = flags
  return close
end


-- What stands after "(": "group", "flags", or "look" and whether it is
-- negative.
function Reader:group_kind()
  if self:take("(%*)") then
    give_up("a verb (*…)")
  elseif not self:take("(%?)") then
    return "group"
  elseif self:take("(:)") or self:take("(P?<[%a_][%w_]*>)")
    or self:take("('[%a_][%w_]*')") then
    return "group"
  end
  local look = self:take("([=!])")
  if look then
    return "look", look == "!"
  elseif self:take("(<[=!])") then
    give_up("a lookbehind")
  end
  local close = self:read_flags()
  if not close then
    give_up("a group (?" .. self.text:sub(self.at, self.at))
  end
  return close == ")" and "flags" or "group"
end


function Reader:group()
  local before = self.flags
  local kind, negative = self:group_kind()
  if kind == "flags" then
    return { kind = "empty" }
  end
  self.depth = self.depth + 1
  if self.depth > MAX_NESTING then
    give_up("its nesting")
  end
  local node = self:alternatives()
  self.depth = self.depth - 1
  self.at = self.at + 1  -- the ")": the engine has seen that it is there
  self.flags = before
  if kind == "look" then
    return { kind = "look", node = node, negative = negative }
  end
  return node
end


function Reader:atom()
  local char = self:take("([%[%(%\\%.%^%$])")
  if char == "[" then
    self.at = self.at - 1
    return self:class()
  elseif char == "(" then
    return self:group()
  elseif char == "\\" then
    return self:escape()
  elseif char == "." then
    return { kind = "set", set = self.flags.s and ALL or DOT }
  elseif char then
    return { kind = "assert", what = char == "^" and "begin" or "end" }
  end
  local from = self.at
  local code = self:code()
  return self:set({ code, code }, self.text:sub(from, self.at - 1))
end


-- ---- the whole -------------------------------------------------------------

-- The bounds of a quantifier, if one follows.
function Reader:quantifier()
  local sign = self:take("([*+?])")
  if sign then
    return sign == "+" and 1 or 0, sign == "?" and 1 or nil, true
  end
  local from = self.at
  local low, comma, high =
    self:take("{[ \t]*(%d*)[ \t]*(,?)[ \t]*(%d*)[ \t]*}")
  if not low or low .. high == "" or low == "" and comma == "" then
    self.at = from
    return nil
  end
  low = tonumber(low) or 0
  return low, comma == "" and low or tonumber(high), true
end


function Reader:repeated()
  local node = self:atom()
  local min, max, found = self:quantifier()
  while found do
    if self:take("(%+)") then
      give_up("a possessive quantifier")
    end
    self:take("(%?)")
    if node.kind == "look" then
      give_up("a repeated lookahead")
    end
    node = { kind = "rep", node = node, min = min, max = max }
    min, max, found = self:quantifier()
  end
  return node
end


function Reader:sequence()
  local list = { kind = "cat" }
  while not self:done() and not self.text:find("^[|)]", self.at) do
    list[#list + 1] = self:repeated()
  end
  return list
end


function Reader:alternatives()
  local list = { kind = "alt", self:sequence() }
  while self:take("(|)") do
    list[#list + 1] = self:sequence()
  end
  return #list == 1 and list[1] or list
end


--- Reads a pattern that the engine takes.
-- @return its tree; or nil and what in it cannot be judged
function M.parse(text)
  return M.try(function()
    if text:find("^%(%*") then
      give_up("a verb (*…)")
    end
    local reader = setmetatable({ text = text, at = 1, depth = 0, flags = {} },
      Reader)
    return reader:alternatives()
  end)
end


return M
