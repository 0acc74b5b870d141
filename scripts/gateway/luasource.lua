--- Reads Lua 5.4 source into a tree, for the audit of policies.
--
-- The source has been loaded before, so it is Lua; what this reader does not
-- take is an error with file and line all the same.
--
-- Every node has `kind` and `line`. Expressions: name, text (a string), number,
-- constant (nil, true, false), vararg, func { params, body, last }, call {
-- func, args }, method { object, name, args }, index { object, key }, table {
-- items of { key, value } }, binary { op, left, right }, unary { op, value }.
-- Statements: locals { names, values }, assign { targets, values }, call and
-- method, block { body }, loop { cond, body }, choice { branches of { cond,
-- body }, otherwise }, each { names, values, body }, give (return) { values },
-- leave (break), jump.

local M = {}

local WORDS <const> = {}
for word in ([[and break do else elseif end false for function goto if in local
  nil not or repeat return then true until while]]):gmatch("%a+") do
  WORDS[word] = true
end

-- Left and right strength of binary operators.
local BINARY <const> = {
  ["or"] = { 1, 1 }, ["and"] = { 2, 2 },
  ["<"] = { 3, 3 }, [">"] = { 3, 3 }, ["<="] = { 3, 3 }, [">="] = { 3, 3 },
  ["~="] = { 3, 3 }, ["=="] = { 3, 3 },
  ["|"] = { 4, 4 }, ["~"] = { 5, 5 }, ["&"] = { 6, 6 },
  ["<<"] = { 7, 7 }, [">>"] = { 7, 7 }, [".."] = { 9, 8 },
  ["+"] = { 10, 10 }, ["-"] = { 10, 10 },
  ["*"] = { 11, 11 }, ["/"] = { 11, 11 }, ["//"] = { 11, 11 },
  ["%"] = { 11, 11 }, ["^"] = { 14, 13 },
}
local UNARY <const> = { ["not"] = true, ["-"] = true, ["#"] = true,
  ["~"] = true }
local UNARY_STRENGTH <const> = 12
local MAX_NESTING <const> = 150


-- ---- words -----------------------------------------------------------------

local ESCAPES <const> = {
  n = "\n", t = "\t", r = "\r", a = "\a", b = "\b", f = "\f", v = "\v",
}


-- The escape whose letter is at `at`: what it stands for, and where it ends.
local function unescape(text, at)
  local code, last = text:match("^u{(%x+)}()", at)
  if code then
    return utf8.char(tonumber(code, 16)), last
  end
  code, last = text:match("^x(%x%x)()", at)
  if code then
    return string.char(tonumber(code, 16)), last
  end
  code, last = text:match("^(%d%d?%d?)()", at)
  if code then
    return string.char(tonumber(code) & 255), last
  end
  last = text:match("^z%s*()", at)
  if last then
    return "", last
  end
  local char = text:sub(at, at)
  return ESCAPES[char] or char, at + 1
end


-- A quoted string's value.
local function unquoted(text)
  local parts, at = {}, 1
  while true do
    local backslash = text:find("\\", at, true)
    if not backslash then
      break
    end
    parts[#parts + 1] = text:sub(at, backslash - 1)
    parts[#parts + 1], at = unescape(text, backslash + 1)
  end
  parts[#parts + 1] = text:sub(at)
  return table.concat(parts)
end


local Lexer = {}
Lexer.__index = Lexer


function Lexer:fail(message)
  error(("%s:%d: %s"):format(self.name, self.line, message), 0)
end


-- Counts the lines of a piece of source.
function Lexer:pass(to)
  for _ in self.source:sub(self.at, to):gmatch("\n") do
    self.line = self.line + 1
  end
  self.at = to + 1
end


-- A long bracket at the place; its inside, or nil.
function Lexer:long()
  local level, inside = self.source:match("^%[(=*)%[()", self.at)
  if not level then
    return nil
  end
  local first, last = self.source:find("]" .. level .. "]", inside, true)
  if not first then
    self:fail("a long string or comment does not end")
  end
  local text = self.source:sub(inside, first - 1)
  self:pass(last)
  return (text:gsub("^\r?\n", ""))
end


-- Comments and blanks; comments are kept.
function Lexer:skip()
  while true do
    local last = self.source:match("^%s+()", self.at)
    if last then
      self:pass(last - 1)
    elseif self.source:find("^%-%-", self.at) then
      local line = self.line
      self.at = self.at + 2
      local text = self:long()
      if not text then
        text, last = self.source:match("^([^\n]*)()", self.at)
        self.at = last
      end
      table.insert(self.comments, { line = line, text = text,
        alone = self.code_line ~= line })
    else
      return
    end
  end
end


function Lexer:quoted()
  local quote = self.source:sub(self.at, self.at)
  local at = self.at + 1
  while at <= #self.source and self.source:sub(at, at) ~= quote do
    at = at + (self.source:sub(at, at) == "\\" and 2 or 1)
  end
  local text = unquoted(self.source:sub(self.at + 1, at - 1))
  self:pass(at)
  return text
end


-- The next word: its kind ("name", "text", "number", "end", or the word or sign
-- itself), value and line.
function Lexer:read()
  self:skip()
  local line, source, at = self.line, self.source, self.at
  self.code_line = line
  if at > #source then
    return "end of file", nil, line
  end
  local name, last = source:match("^([%a_][%w_]*)()", at)
  if name then
    self.at = last
    return WORDS[name] and name or "name", name, line
  end
  local number = source:match("^0[xX][%x.]*[pP]?[+-]?%x*()", at)
    or source:match("^%.?%d[%w.]*[eE][+-]%d+()", at)
    or source:match("^%.?%d[%w.]*()", at)
  if number then
    self.at = number
    return "number", tonumber(source:sub(at, number - 1)), line
  end
  local char = source:sub(at, at)
  if char == '"' or char == "'" then
    return "text", self:quoted(), line
  end
  local long = self:long()
  if long then
    return "text", long, line
  end
  for size = 3, 1, -1 do
    local sign = source:sub(at, at + size - 1)
    if sign == "..." or BINARY[sign] or sign == "::"
      or size == 1 and sign:find("[%(%){}%[%];:,.=#]") then
      self.at = at + size
      return sign, sign, line
    end
  end
  self:fail("no such character in Lua: " .. char)
end


-- ---- the parser ------------------------------------------------------------

local Parser = {}
Parser.__index = Parser


function Parser:advance()
  self.before = self.line
  self.kind, self.value, self.line = self.lexer:read()
end


function Parser:accept(kind)
  if self.kind ~= kind then
    return false
  end
  self:advance()
  return true
end


function Parser:expect(kind)
  if self.kind ~= kind then
    self.lexer.line = self.line
    self.lexer:fail(("'%s' expected, not '%s'"):format(kind, self.kind))
  end
  local value = self.value
  self:advance()
  return value
end


function Parser:node(kind, fields)
  fields = fields or {}
  fields.kind = kind
  fields.line = fields.line or self.line
  return fields
end


function Parser:list(read)
  local list = { read(self) }
  while self:accept(",") do
    list[#list + 1] = read(self)
  end
  return list
end


function Parser:func(line, with_self)
  local params = with_self and { "self" } or {}
  self:expect("(")
  while self.kind ~= ")" do
    params[#params + 1] = self.kind == "..." and "..." or self.value
    self:advance()
    self:accept(",")
  end
  self:advance()
  local body = self:block()
  local last = self.line
  self:expect("end")
  return self:node("func", {
    params = params, body = body, line = line, last = last,
  })
end


function Parser:table()
  local node = self:node("table", { items = {} })
  self:expect("{")
  while self.kind ~= "}" do
    local item = { line = self.line }
    if self:accept("[") then
      item.key = self:expression()
      self:expect("]")
      self:expect("=")
      item.value = self:expression()
    else
      local value = self:expression()
      if value.kind == "name" and self:accept("=") then
        item.key = self:node("text", { value = value.name })
        value = self:expression()
      end
      item.value = value
    end
    table.insert(node.items, item)
    if not self:accept(",") then
      self:accept(";")
    end
  end
  self:advance()
  return node
end


function Parser:arguments()
  if self.kind == "text" then
    local text = self:node("text", { value = self.value })
    self:advance()
    return { text }
  elseif self.kind == "{" then
    return { self:table() }
  end
  self:expect("(")
  if self:accept(")") then
    return {}
  end
  local list = self:list(self.expression)
  self:expect(")")
  return list
end


function Parser:primary()
  local node
  if self.kind == "name" then
    node = self:node("name", { name = self.value })
    self:advance()
  else
    self:expect("(")
    node = self:expression()
    self:expect(")")
  end
  while true do
    local line = self.line
    if self:accept(".") then
      local key = self:node("text", { value = self:expect("name") })
      node = self:node("index", { object = node, key = key, line = line })
    elseif self:accept("[") then
      node = self:node("index", { object = node, key = self:expression(),
        line = line })
      self:expect("]")
    elseif self:accept(":") then
      local name = self:expect("name")
      node = self:node("method", { object = node, name = name,
        args = self:arguments(), line = line })
    elseif self.kind == "(" or self.kind == "text" or self.kind == "{" then
      node = self:node("call", { func = node, args = self:arguments(),
        line = line })
    else
      return node
    end
  end
end


function Parser:simple()
  local kind, value, line = self.kind, self.value, self.line
  if kind == "text" or kind == "number" then
    self:advance()
    return self:node(kind, { value = value, line = line })
  elseif kind == "nil" or kind == "true" or kind == "false" then
    self:advance()
    return self:node("constant", { value = kind, line = line })
  elseif kind == "..." then
    self:advance()
    return self:node("vararg", { line = line })
  elseif kind == "{" then
    return self:table()
  elseif kind == "function" then
    self:advance()
    return self:func(line)
  end
  return self:primary()
end


function Parser:expression(strength)
  strength = strength or 0
  self.depth = self.depth + 1
  if self.depth > MAX_NESTING then
    self.lexer:fail("nests too deep to be read")
  end
  local left
  if UNARY[self.kind] then
    local op, line = self.kind, self.line
    self:advance()
    left = self:node("unary", { op = op, line = line,
      value = self:expression(UNARY_STRENGTH) })
  else
    left = self:simple()
  end
  local row = BINARY[self.kind]
  while row and row[1] > strength do
    local op, line = self.kind, self.line
    self:advance()
    left = self:node("binary", { op = op, left = left, line = line,
      right = self:expression(row[2]) })
    row = BINARY[self.kind]
  end
  self.depth = self.depth - 1
  return left
end


-- ---- statements ------------------------------------------------------------

local STATEMENTS <const> = {}


function Parser:block()
  local body = {}
  while self.kind ~= "end" and self.kind ~= "else" and self.kind ~= "elseif"
    and self.kind ~= "until" and self.kind ~= "end of file" do
    local read = STATEMENTS[self.kind]
    if self.kind == "return" then
      body[#body + 1] = read(self)
      break
    end
    body[#body + 1] = read and read(self) or not read and self:other() or nil
  end
  return body
end


-- A call, or an assignment.
function Parser:other()
  local line, first = self.line, self:primary()
  if self.kind ~= "=" and self.kind ~= "," then
    return first
  end
  local targets = { first }
  while self:accept(",") do
    targets[#targets + 1] = self:primary()
  end
  self:expect("=")
  return self:node("assign", { targets = targets, line = line,
    values = self:list(self.expression) })
end


STATEMENTS[";"] = function(self)
  self:advance()
  return nil
end


STATEMENTS["::"] = function(self)
  local node = self:node("jump")
  self:advance()
  self:advance()
  self:expect("::")
  return node
end

STATEMENTS["goto"] = function(self)
  local node = self:node("jump")
  self:advance()
  self:expect("name")
  return node
end

STATEMENTS["break"] = function(self)
  local node = self:node("leave")
  self:advance()
  return node
end

STATEMENTS["do"] = function(self)
  local line = self.line
  self:advance()
  local body = self:block()
  self:expect("end")
  return self:node("block", { body = body, line = line })
end

STATEMENTS["while"] = function(self)
  local line = self.line
  self:advance()
  local cond = self:expression()
  self:expect("do")
  local body = self:block()
  self:expect("end")
  return self:node("loop", { cond = cond, body = body, line = line })
end

STATEMENTS["repeat"] = function(self)
  local line = self.line
  self:advance()
  local body = self:block()
  self:expect("until")
  return self:node("loop", { cond = self:expression(), body = body, once = true,
    line = line })
end

STATEMENTS["if"] = function(self)
  local node = self:node("choice", { branches = {} })
  repeat
    self:advance()
    local cond = self:expression()
    self:expect("then")
    table.insert(node.branches, { cond = cond, body = self:block() })
  until self.kind ~= "elseif"
  if self:accept("else") then
    node.otherwise = self:block()
  end
  self:expect("end")
  return node
end

STATEMENTS["for"] = function(self)
  local line = self.line
  self:advance()
  local names = self:list(function()
    return self:expect("name")
  end)
  if not self:accept("=") then
    self:expect("in")
  end
  local values = self:list(self.expression)
  self:expect("do")
  local body = self:block()
  self:expect("end")
  return self:node("each", { names = names, values = values, body = body,
    line = line })
end

STATEMENTS["function"] = function(self)
  local line = self.line
  self:advance()
  local target = self:node("name", { name = self:expect("name") })
  local method = false
  while self.kind == "." or self.kind == ":" do
    method = self.kind == ":"
    self:advance()
    target = self:node("index", { object = target,
      key = self:node("text", { value = self:expect("name") }) })
  end
  return self:node("assign", { targets = { target }, line = line,
    values = { self:func(line, method) } })
end

STATEMENTS["local"] = function(self)
  local line = self.line
  self:advance()
  if self:accept("function") then
    local name = self:expect("name")
    return self:node("locals", { names = { name }, line = line,
      values = { self:func(line) } })
  end
  local names = self:list(function()
    local name = self:expect("name")
    if self:accept("<") then
      self:expect("name")
      self:expect(">")
    end
    return name
  end)
  return self:node("locals", { names = names, line = line,
    values = self:accept("=") and self:list(self.expression) or {} })
end

STATEMENTS["return"] = function(self)
  local line, values = self.line, {}
  self:advance()
  if self.kind ~= "end" and self.kind ~= "end of file" and self.kind ~= ";"
    and self.kind ~= "else" and self.kind ~= "elseif" and self.kind ~= "until"
  then
    values = self:list(self.expression)
  end
  self:accept(";")
  return self:node("give", { values = values, line = line })
end


--- Reads a chunk.
-- @param name    for errors
-- @return its statements, and its comments: { line, text, alone = true where no
--         code stands before it }
function M.read(name, source)
  source = source:gsub("^#[^\n]*", "")
  local lexer = setmetatable({
    name = name, source = source, at = 1, line = 1, comments = {},
  }, Lexer)
  local parser = setmetatable({ lexer = lexer, depth = 0 }, Parser)
  parser:advance()
  local body = parser:block()
  parser:expect("end of file")
  return body, lexer.comments
end


--- Calls each(node) for every node of a tree, outer ones first.
function M.walk(node, each)
  if node.kind then
    each(node)
  end
  for _, part in pairs(node) do
    if type(part) == "table" then
      M.walk(part, each)
    end
  end
end


return M
