--- What texts a schema lets through, for audits: its string leaves, and whether
-- one admits something that is dangerous where it goes.

local core <const> = require "gateway.core"
local pattern <const> = require "gateway.pattern"
local pointer <const> = require "gateway.pointer"
local M = {}

local MAX_LEAVES <const> = 400
local MAX_DEPTH <const> = 24

-- Formats that leave no room for anything but what they are.
local NARROW <const> = {
  uuid = true, date = true, time = true, ["date-time"] = true, duration = true,
  ipv4 = true, ipv6 = true, hostname = true,
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

local function may_be_string(schema)
  local types = schema.type
  if type(types) ~= "table" then
    return types == nil or types == "string"
  end
  for _, name in ipairs(types) do
    if name == "string" then
      return true
    end
  end
  return false
end


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


function Walk:each_of(list, name, depth)
  for _, part in ipairs(list or {}) do
    self:visit(part, name, depth)
  end
end


-- The names of members that no schema names. They are texts, too.
function Walk:names(schema, name)
  local function add(part)
    table.insert(self.leaves, { name = name .. ".*", schema = part,
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


function Walk:visit(schema, name, depth)
  if schema == true then
    schema = {}
  end
  if type(schema) ~= "table" or self.seen[schema] or depth > MAX_DEPTH
    or #self.leaves >= MAX_LEAVES then
    return
  end
  self.seen[schema] = true
  local combined = schema.anyOf or schema.oneOf or schema.allOf
    or schema["$ref"] or schema["then"] or schema["else"]
  if may_be_string(schema) and not (combined and not schema.pattern
    and not schema.enum and not schema.maxLength) then
    table.insert(self.leaves, { name = name, schema = schema })
  end
  self:inside(schema, name, depth + 1)
  for _, key in ipairs { "anyOf", "oneOf", "allOf" } do
    self:each_of(schema[key], name, depth + 1)
  end
  self:each_of({ schema["then"], schema["else"] }, name, depth + 1)
  if schema["$ref"] then
    self:visit(pointer.find(self.root, schema["$ref"]), name, depth + 1)
  end
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
    or NARROW[schema.format] or false
end


--- True where the leaf takes texts at all: an enum of numbers does not.
function M.is_text(schema)
  if schema.enum then
    return any_string(schema.enum)
  elseif schema.const ~= nil then
    return type(schema.const) == "string"
  end
  return may_be_string(schema)
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
    or NARROW[schema.format] and not schema.pattern then
    return nil
  elseif not schema.pattern then
    local value = danger.plain
    return not schema.format and value .. ("a"):rep((schema.minLength or 0)
      - #value) or taken(schema, value) and value or nil
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
