--- What texts a schema lets through, for audits: its string leaves, and whether
-- one admits something that is dangerous where it goes.

local core <const> = require "gateway.core"
local pattern <const> = require "gateway.pattern"
local plain_schema <const> = require "gateway.schema"
local pointer <const> = require "gateway.pointer"
local M = {}

local MAX_LEAVES <const> = 400
local MAX_DEPTH <const> = 24

-- Where a danger may stand in a value of a format that has room for it.
local ROOM <const> = {
  email = { "a%sb@example.org", '"a%sb"@example.org' },
  ["idn-email"] = { "a%sb@example.org", '"a%sb"@example.org' },
  uri = { "https://a/%s", "https://a/%s/b", "x:%s" },
  iri = { "https://a/%s", "https://a/%s/b" },
  ["uri-reference"] = { "%s", "a/%s" }, ["iri-reference"] = { "%s", "a/%s" },
  ["uri-template"] = { "%s" }, ["json-pointer"] = { "/%s" },
  ["relative-json-pointer"] = { "0/%s" }, regex = { "%s", "a%sb", "[%s]" },
  byte = { "aaa%s", "%saaa" },
}

-- What may do harm in a path, an argument or a header. The values that hold it
-- are those of the pattern; `plain` is an example by itself.
M.DANGERS = {
  { id = "dot-dot", text = "'..' as a path segment", plain = "..",
    pattern = "(^|/)[.][.](/|$)" },
  { id = "slash", text = "'/'", plain = "/", pattern = "/" },
  { id = "backslash", text = "a backslash", plain = "\\",
    pattern = "\\\\" },
  { id = "leading-dash", text = "'-' at the beginning", plain = "-",
    pattern = "^-" },
  { id = "at", text = "'@' at the beginning", plain = "@", pattern = "^@" },
  { id = "pipe", text = "'|'", plain = "|", pattern = "[|]" },
  { id = "colon", text = "':'", plain = ":", pattern = ":" },
  { id = "blank", text = "a blank", plain = " ", pattern = " " },
  { id = "newline", text = "a newline", plain = "\n", pattern = "[\\n\\r]" },
  { id = "nul", text = "NUL", plain = "\0", pattern = "\\x00" },
}

local analysed = {}


-- The analysis of a pattern under a schema's lengths.
local function analyse(schema)
  local min, max = schema.minLength or 0, schema.maxLength or math.huge
  local key = ("%d %s %s"):format(min, max, schema.pattern)
  analysed[key] = analysed[key] or pattern.new(schema.pattern, schema)
  return analysed[key]
end

M.analyse = analyse


local function danger_pattern(danger)
  danger.analysis = danger.analysis or pattern.new(danger.pattern)
  return danger.analysis
end

M.danger_pattern = danger_pattern


-- ---- leaves ----------------------------------------------------------------

local function any_string(list)
  for _, value in ipairs(list) do
    if type(value) == "string" then
      return true
    end
  end
  return false
end

local Walk = {}
Walk.__index = Walk


function Walk:each_of(list, name, depth, barred)
  for _, part in ipairs(list or {}) do
    self:visit(part, name, depth, barred)
  end
end


-- The names of members that no schema names. They are texts, too.
function Walk:names(schema, name)
  local function add(part)
    table.insert(self.leaves, { name = name .. ".(name)", schema = part,
      is_name = true })
  end
  local own = schema.propertyNames
  if type(own) == "table" then
    add(own)
    return
  end
  for text in pairs(schema.patternProperties or {}) do
    add { type = "string", pattern = text }
  end
  if schema.additionalProperties and schema.additionalProperties ~= core.null
    or schema.unevaluatedProperties then
    add { type = "string" }
  end
end


-- Members and items.
function Walk:inside(schema, name, depth)
  self:names(schema, name)
  for key, part in pairs(schema.properties or {}) do
    self:visit(part, name .. "." .. key, depth)
  end
  for _, part in pairs(schema.patternProperties or {}) do
    self:visit(part, name .. ".*", depth)
  end
  for _, key in ipairs { "additionalProperties", "unevaluatedProperties" } do
    if schema[key] then
      self:visit(schema[key], name .. ".*", depth)
    end
  end
  if schema.items ~= nil and schema.items ~= false then
    self:visit(schema.items, name .. "[]", depth)
  end
  self:each_of(schema.prefixItems, name .. "[]", depth)
end


-- How much a leaf says: only some values, a pattern, or neither.
local function strength(schema)
  return M.is_narrow(schema) and 2 or schema.pattern and 1 or 0
end


-- The leaf with a longest length, where it has none so short.
local function shortened(leaf, most)
  local schema = {}
  for key, part in pairs(leaf.schema) do
    schema[key] = part
  end
  schema.maxLength = math.min(most, schema.maxLength or most)
  return { name = leaf.name, schema = schema, is_name = leaf.is_name }
end


-- What leaves from `first` to `last`, which are alternatives, ask of each name
-- at least: the strength, and the longest length.
function Walk:least_of(first, last)
  local least, long = {}, {}
  for i = first, last do
    local name, schema = self.leaves[i].name, self.leaves[i].schema
    least[name] = math.min(least[name] or 2, strength(schema))
    long[name] = math.max(long[name] or 0, schema.maxLength or math.huge)
  end
  return least, long
end


-- Parts of the leaves hold together, each from a number up to the next: of
-- those that speak of one name, the strictest stay, with the least maxLength.
-- @return that maxLength, by name
function Walk:hold_together(starts)
  local best, short, kept, least_of = {}, {}, {}, {}
  for k, first in ipairs(starts) do
    local least, long = self:least_of(first, (starts[k + 1]
      or #self.leaves + 1) - 1)
    least_of[k] = least
    for name, value in pairs(least) do
      best[name] = math.max(best[name] or 0, value)
      short[name] = math.min(short[name] or math.huge, long[name])
    end
  end
  for k, first in ipairs(starts) do
    for i = first, (starts[k + 1] or #self.leaves + 1) - 1 do
      local leaf = self.leaves[i]
      if least_of[k][leaf.name] == best[leaf.name] then
        kept[#kept + 1] = short[leaf.name] < math.huge
          and shortened(leaf, short[leaf.name]) or leaf
      end
    end
  end
  for i = #self.leaves, starts[1], -1 do
    self.leaves[i] = nil
  end
  table.move(kept, 1, #kept, starts[1], self.leaves)
  return short
end


-- Alternatives: what each of them asks of a name is asked of it by all.
function Walk:alternatives(list, name, depth, barred)
  local least
  for _, part in ipairs(list or {}) do
    local first = #self.leaves + 1
    self:visit(part, name, depth, barred)
    local own, both = self:least_of(first, #self.leaves), {}
    for known, value in pairs(least or own) do
      both[known] = own[known] and math.min(value, own[known])
    end
    least = both
  end
  return least or {}
end


-- The keywords that speak of the same value. `barred`: it can be no string.
function Walk:beside(schema, name, depth, barred, first)
  local starts = { first }
  for _, part in ipairs(schema.allOf or {}) do
    starts[#starts + 1] = #self.leaves + 1
    self:visit(part, name, depth, barred)
  end
  if schema["$ref"] then
    starts[#starts + 1] = #self.leaves + 1
    self:visit(pointer.find(self.root, schema["$ref"]), name, depth, barred)
  end
  local short = self:hold_together(starts)
  for _, key in ipairs { "anyOf", "oneOf" } do
    local own = table.move(self.leaves, first, #self.leaves, 1, {})
    for i = #self.leaves, first, -1 do
      self.leaves[i] = nil
    end
    local others = self:alternatives(schema[key], name, depth, barred)
    for i = first, #self.leaves do
      local leaf = self.leaves[i]
      local most = short[leaf.name] or math.huge
      self.leaves[i] = most < math.huge and shortened(leaf, most) or leaf
    end
    for _, leaf in ipairs(own) do
      if strength(leaf.schema) >= (others[leaf.name] or 0) then
        table.insert(self.leaves, leaf)
      end
    end
  end
  self:each_of({ schema["then"], schema["else"] }, name, depth, barred)
end


function Walk:visit(schema, name, depth, barred)
  if schema == true then
    schema = {}
  end
  if type(schema) ~= "table" or self.seen[schema] or depth > MAX_DEPTH
    or #self.leaves >= MAX_LEAVES then
    return
  end
  self.seen[schema] = true
  barred = barred or not plain_schema.may_be_string(schema)
  local first = #self.leaves + 1
  local combined = schema.anyOf or schema.oneOf or schema.allOf
    or schema["$ref"] or schema["then"] or schema["else"]
  if not barred and not (combined and not schema.pattern
    and not schema.enum and not schema.maxLength) then
    table.insert(self.leaves, { name = name, schema = schema })
  end
  self:inside(schema, name, depth + 1)
  self:beside(schema, name, depth + 1, barred, first)
  self.seen[schema] = nil
end


--- The parts of a schema that may be a string: a list of { name, schema }.
-- @param name  of the whole: "body" gives "body.room", "body.list[]"
function M.leaves(schema, name)
  local walk = setmetatable({ root = schema, leaves = {}, seen = {} }, Walk)
  walk:visit(schema, name, 0)
  table.sort(walk.leaves, function(a, b)
    return a.name < b.name
  end)
  return walk.leaves
end


-- ---- questions about a leaf ------------------------------------------------

--- True where a leaf can only be one of some values, or of a narrow format.
function M.is_narrow(schema)
  return schema.enum ~= nil or schema.const ~= nil
    or plain_schema.NARROW_FORMATS[schema.format] or false
end


--- True where the leaf takes texts at all: an enum of numbers does not.
function M.is_text(schema)
  if schema.enum then
    return any_string(schema.enum)
  elseif schema.const ~= nil then
    return type(schema.const) == "string"
  end
  return plain_schema.may_be_string(schema)
end


-- The values a leaf can only be, or nil.
local function values_of(schema)
  return schema.enum or schema.const ~= nil and { schema.const } or nil
end


-- Would the whole leaf take it? A pattern is one keyword of several.
local function taken(schema, value)
  local plain = {}
  for key, part in pairs(schema) do
    plain[key] = part
  end
  plain["$ref"] = nil
  return core.schema_test(core.encode(plain), core.encode(value)) == true
end


-- Does a value hold the danger?
local function holds(danger, value)
  return utf8.len(value) ~= nil and danger_pattern(danger):accepts(value)
end

M.holds = holds


-- The same of a leaf without a pattern.
local function admits_plain(schema, danger)
  if not schema.format then
    return danger.plain .. ("a"):rep((schema.minLength or 0) - #danger.plain)
  end
  for _, room in ipairs(ROOM[schema.format] or { "%s" }) do
    local value = room:gsub("%%s", (danger.plain:gsub("%%", "%%%%")))
    if holds(danger, value) and taken(schema, value) then
      return value
    end
  end
  return nil
end


--- The shortest value of a leaf that holds a danger; nil: none does. A second
-- result says why it could not be told; then the value is one that might.
function M.admits(schema, danger)
  local values = values_of(schema)
  for _, value in ipairs(values or {}) do
    if type(value) == "string" and holds(danger, value) then
      return value
    end
  end
  if values or schema.maxLength == 0
    or plain_schema.NARROW_FORMATS[schema.format] and not schema.pattern then
    return nil
  elseif not schema.pattern then
    return admits_plain(schema, danger)
  end
  local value, why = analyse(schema):meets(danger_pattern(danger))
  if why then
    return danger.plain, why
  end
  return value and taken(schema, value) and value or nil
end


--- A value as a finding shows it: JSON, cut.
function M.show(value)
  local text = core.encode(value)
  return #text > 60 and text:sub(1, 57) .. "…" or text
end


return M
