--- Sets of code points, for the analysis of patterns.
--
-- A set is a flat list of ranges in order, { low, high, low, high, … }, with
-- gaps between them. Sets are never changed once made.

local core <const> = require "gateway.core"
local M = {}

local LAST <const> = 0x10FFFF
local CHUNK <const> = 4096
local BLOCK <const> = 128

-- All of Unicode; a JSON string cannot hold surrogates.
M.ALL = { 0, 0xD7FF, 0xE000, LAST }

-- What an example is made of: the first of these that a set has anything of.
local NICE <const> = {
  { 97, 122 }, { 48, 57 }, { 65, 90 }, { 33, 126 }, { 32, 32 },
  { 0xA1, 0xD7FF }, { 0, LAST },
}


--- A set of ranges in any order, which may overlap.
function M.new(ranges)
  local pairs_ = {}
  for i = 1, #ranges, 2 do
    pairs_[#pairs_ + 1] = { ranges[i], ranges[i + 1] }
  end
  table.sort(pairs_, function(a, b)
    return a[1] < b[1]
  end)
  local set = {}
  for _, range in ipairs(pairs_) do
    if #set > 0 and range[1] <= set[#set] + 1 then
      set[#set] = math.max(set[#set], range[2])
    else
      set[#set + 1], set[#set + 2] = range[1], range[2]
    end
  end
  return set
end


--- What is in both.
function M.intersect(a, b)
  if a == M.ALL then
    return b
  elseif b == M.ALL then
    return a
  end
  local set, i, j = {}, 1, 1
  while i < #a and j < #b do
    local low, high = math.max(a[i], b[j]), math.min(a[i + 1], b[j + 1])
    if low <= high then
      set[#set + 1], set[#set + 2] = low, high
    end
    if a[i + 1] < b[j + 1] then
      i = i + 2
    else
      j = j + 2
    end
  end
  return set
end


local PLAIN <const> = M.new(M.ALL)

--- The set without what is no character of Unicode.
function M.clip(set)
  return M.intersect(set, PLAIN)
end


--- All that is not in it.
function M.negate(set)
  local others, from = {}, 0
  for i = 1, #set, 2 do
    if set[i] > from then
      others[#others + 1], others[#others + 2] = from, set[i] - 1
    end
    from = set[i + 1] + 1
  end
  if from <= LAST then
    others[#others + 1], others[#others + 2] = from, LAST
  end
  return M.clip(others)
end


function M.has(set, code)
  for i = 1, #set, 2 do
    if code <= set[i + 1] then
      return code >= set[i]
    end
  end
  return false
end


--- A member that reads well; nil of an empty set.
function M.pick(set)
  for _, range in ipairs(NICE) do
    local part = M.intersect(set, range)
    if #part > 0 then
      return part[1]
    end
  end
  return nil
end


local function nth(set, n)
  for i = 1, #set, 2 do
    local size = set[i + 1] - set[i] + 1
    if n <= size then
      return set[i] + n - 1
    end
    n = n - size
  end
  return nil
end


local function size(set)
  local sum = 0
  for i = 1, #set, 2 do
    sum = sum + set[i + 1] - set[i] + 1
  end
  return sum
end


--- Any member; three of four times an ASCII one, where there is one.
-- @param random  random(n) -> 1 … n
function M.random(set, random)
  local ascii = M.intersect(set, { 32, 126 })
  if #ascii > 0 and random(4) > 1 then
    set = ascii
  end
  return nth(set, random(size(set)))
end


--- The set without regard to the case of ASCII letters; nil where it holds
-- others. K and S have a third form in Unicode.
function M.fold(set)
  if #set > 0 and set[#set] > 127 then
    return nil
  end
  local ranges = table.move(set, 1, #set, 1, {})
  for upper = 65, 90 do
    if M.has(set, upper) or M.has(set, upper + 32) then
      local third = upper == 75 and 0x212A or upper == 83 and 0x17F or upper
      for _, code in ipairs { upper, upper + 32, third } do
        ranges[#ranges + 1], ranges[#ranges + 2] = code, code
      end
    end
  end
  return M.new(ranges)
end


-- ---- sets that the engine knows --------------------------------------------

local asked, texts = {}, {}


-- All code points from low to high as JSON; whole chunks are kept.
local function string_of(low, high)
  local text = texts[low] and texts[low][high]
  if text then
    return text
  end
  local parts = {}
  for from = low, high, BLOCK do
    local codes = {}
    for code = from, math.min(from + BLOCK - 1, high) do
      codes[#codes + 1] = code
    end
    parts[#parts + 1] = utf8.char(table.unpack(codes))
  end
  text = core.encode(table.concat(parts))
  if high - low >= CHUNK // 2 then
    texts[low] = texts[low] or {}
    texts[low][high] = text
  end
  return text
end


-- Adds to `ranges` what is of the class in low … high: all, nothing, or what
-- is in the halves.
local function ask(class, low, high, ranges)
  local text = string_of(low, high)
  if core.schema_test(class.all, text) then
    ranges[#ranges + 1], ranges[#ranges + 2] = low, high
  elseif low < high and core.schema_test(class.some, text) then
    local middle = (low + high) // 2
    ask(class, low, middle, ranges)
    ask(class, middle + 1, high, ranges)
  end
end


--- What one item of a pattern (`\pL`, `[[:alpha:]]`) matches, found by asking
-- the engine itself.
-- @param flags  "" or "(?i)"
function M.ask(item, flags)
  local key = flags .. item
  if not asked[key] then
    local class = {
      all = core.encode { pattern = flags .. "^" .. item .. "*$" },
      some = core.encode { pattern = key },
    }
    local ranges = {}
    for low = 0, LAST, CHUNK do
      for i = 1, #M.ALL, 2 do
        local from = math.max(low, M.ALL[i])
        local to = math.min(low + CHUNK - 1, M.ALL[i + 1])
        if from <= to then
          ask(class, from, to, ranges)
        end
      end
    end
    asked[key] = M.new(ranges)
  end
  return asked[key]
end


return M
