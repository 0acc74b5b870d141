--- The lines of a script that hold code, from its bytecode: what lua_dump()
-- wrote (Lua 5.4, ldump.c).

local core <const> = require "gateway.core"
local M = {}

local Dump = {}
Dump.__index = Dump

local NUMBER <const>, INTEGER <const> = 0x13, 0x03
local TEXTS <const> = { [0x04] = true, [0x14] = true }
local ABSOLUTE <const> = -128
local INSTRUCTION <const>, UPVALUE <const> = 4, 3


function Dump:byte()
  self.at = self.at + 1
  return self.bytes:byte(self.at - 1)
end


function Dump:int()
  local number, byte = 0
  repeat
    byte = self:byte()
    number = number << 7 | byte & 0x7f
  until byte >= 0x80
  return number
end


function Dump:skip(count)
  self.at = self.at + count
end


function Dump:text()
  local size = self:int()
  self:skip(size > 0 and size - 1 or 0)
end


function Dump:constants()
  for _ = 1, self:int() do
    local kind = self:byte()
    if kind == NUMBER or kind == INTEGER then
      self:skip(8)
    elseif TEXTS[kind] then
      self:text()
    end
  end
end


-- Adds the lines of one function's instructions. One with a variable number of
-- arguments begins with an instruction that no hook sees.
function Dump:lines(from, vararg, add)
  local steps = {}
  for i = 1, self:int() do
    local step = self:byte()
    steps[i] = step < 128 and step or step - 256
  end
  local absolute, next_absolute = {}, 0
  for i = 1, self:int() do
    self:int()
    absolute[i] = self:int()
  end
  for i, step in ipairs(steps) do
    if step == ABSOLUTE then
      next_absolute = next_absolute + 1
      from = absolute[next_absolute]
    else
      from = from + step
    end
    if i > 1 or not vararg then
      add(from)
    end
  end
end


function Dump:func(add)
  self:text()
  local from = self:int()
  self:int()
  self:byte()
  local vararg = self:byte() ~= 0
  self:byte()
  self:skip(self:int() * INSTRUCTION)
  self:constants()
  self:skip(self:int() * UPVALUE)
  for _ = 1, self:int() do
    self:func(add)
  end
  self:lines(from, vararg, add)
  for _ = 1, self:int() do
    self:text()
    self:int()
    self:int()
  end
  for _ = 1, self:int() do
    self:text()
  end
end


-- A line that only closes something: its instruction may never run.
local function only_closes(line)
  local rest = line:gsub("%-%-.*$", ""):gsub("%f[%w_]end%f[^%w_]", "")
    :gsub("%f[%w_]else%f[^%w_]", "")
  return not rest:find("[^%s%)%],;}]")
end


--- The lines of a script that hold code, as a sorted list.
function M.code_lines(source)
  local bytes = core.test_dump(source)
  local text, found, lines = {}, {}, {}
  for line in (source .. "\n"):gmatch("(.-)\r?\n") do
    text[#text + 1] = line
  end
  if not bytes then
    return lines
  end
  -- the header: signature, version, format, LUAC_DATA, three sizes, an integer
  -- and a number to compare; then the number of upvalues
  local dump = setmetatable({ bytes = bytes, at = 4 + 2 + 6 + 3 + 16 + 2 },
    Dump)
  dump:func(function(line)
    if line > 0 and not found[line] and not only_closes(text[line] or "") then
      found[line] = true
      lines[#lines + 1] = line
    end
  end)
  table.sort(lines)
  return lines
end


return M
