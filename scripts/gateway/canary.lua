--- Canaries: requests that satisfy a route's schemas, and whose values can be
-- told from each other wherever they turn up.

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local pattern <const> = require "gateway.pattern"
local pointer <const> = require "gateway.pointer"
local strings <const> = require "gateway.strings"
local M = {}

local MAX_DEPTH <const> = 12
local SEED <const> = 20261126

-- What a marker is made of, for patterns that take only some characters. The
-- two X are the input's number.
local FORMS <const> = {
  { "qzXXk", "a" }, { "QZXXK", "A" }, { "90XX7", "0" }, { "eaXXf", "a" },
  { "qXX", "a" }, { "9XX", "0" },
}

local SAMPLES <const> = {
  uuid = "00000000-0000-4000-8000-0000000000%02x", date = "2026-11-%02d",
  ["date-time"] = "2026-11-26T03:10:%02dZ", time = "03:10:%02dZ",
  duration = "P%dD", ipv4 = "192.0.2.%d", ipv6 = "2001:db8::%x",
  email = "qz%d@example.org", hostname = "qz%d.example.org",
  uri = "https://example.org/qz%d", ["uri-reference"] = "/qz%d",
  iri = "https://example.org/qz%d", ["json-pointer"] = "/qz%d",
}


-- ---- values ----------------------------------------------------------------

local Maker = {}
Maker.__index = Maker


--- A maker of the values of one request.
-- @param instead  { [input's key] = value } to send in place of canaries
function M.new(instead)
  return setmetatable({ inputs = {}, instead = instead or {},
    random = strings.sequence(SEED) }, Maker)
end


-- The pattern of a schema of text, its lengths with it.
function M.analyse(schema)
  return pattern.new(schema.pattern or "^(?s:.*)$", schema)
end


local function marker(form, number)
  local first = form[2]:byte()
  local base = form[2] == "0" and 10 or 6
  return (form[1]:gsub("XX", string.char(first + number // base % base,
    first + number % base)))
end


local function taken(schema, value)
  return core.schema_test(core.encode(schema), core.encode(value)) == true
end


-- A text that the schema takes; and the marker in it, which is the whole where
-- nothing shorter can be told from others, or nil where nothing can.
function Maker:text(schema, number)
  if schema.enum or schema.const ~= nil then
    return schema.enum and schema.enum[1] or schema.const
  elseif SAMPLES[schema.format] and not schema.pattern then
    local value = SAMPLES[schema.format]:format(number % 28 + 1)
    return value, value
  end
  local p = M.analyse(schema)
  for _, form in ipairs(p.why and {} or FORMS) do
    local mark = marker(form, number)
    local value = p:admits(mark)
    if value and taken(schema, value) then
      return value, mark
    end
  end
  local value = p:sample(self.random, 32)
  return value, value and #value > 3 and value or nil
end


-- A number within the bounds.
local function number_of(schema, number)
  local low = schema.minimum or schema.exclusiveMinimum
    and schema.exclusiveMinimum + 1 or nil
  local high = schema.maximum or schema.exclusiveMaximum
    and schema.exclusiveMaximum - 1 or nil
  low = low or high and high - 50 or 0
  local value = math.min(low + number % 7, high or math.huge)
  local step = schema.multipleOf
  value = step and math.ceil(low / step) * step or value
  return math.tointeger(value) or value
end


local function first_type(schema)
  local types = type(schema.type) == "table" and schema.type or { schema.type }
  for _, name in ipairs(types) do
    if name == "string" then
      return name
    end
  end
  return types[1] or schema.properties and "object" or schema.items and "array"
    or "string"
end


-- A local $ref, anyOf and oneOf as the schema that they stand for.
function Maker:plain(schema)
  for _ = 1, MAX_DEPTH do
    if type(schema) ~= "table" then
      return {}
    end
    local ref = schema["$ref"]
    local part = schema.anyOf or schema.oneOf or schema.allOf
    if ref then
      schema = pointer.find(self.root, ref)
    elseif part and not (schema.properties or schema.pattern
      or schema.enum) then
      schema = part[1]
    else
      return schema
    end
  end
  return {}
end


function Maker:object(schema, where, name, depth)
  local value, wanted = {}, {}
  for _, key in ipairs(schema.required or {}) do
    wanted[key] = true
  end
  local properties = schema.properties or {}
  for _, key in ipairs(options.sorted_keys(properties)) do
    local part = properties[key]
    if wanted[key] or depth < 4 and part ~= false then
      value[key] = self:value(part, where, name .. "." .. key, depth + 1)
    end
  end
  return value
end


--- A value for a schema, noted among the inputs.
-- @param where  "path", "query", "headers", "json" or "body"
-- @param depth  of a part: how deep it lies in the schema that was asked for
function Maker:value(schema, where, name, depth)
  if not depth then
    self.root, depth = schema, 0
  end
  schema = self:plain(schema)
  local kind = first_type(schema)
  if depth > MAX_DEPTH then
    return core.null
  elseif kind == "object" then
    return self:object(schema, where, name, depth)
  elseif kind == "array" then
    local list = {}
    for i = 1, math.max(1, math.min(schema.minItems or 1, 20)) do
      list[i] = self:value(schema.prefixItems and schema.prefixItems[i]
        or schema.items, where, name .. "[]", depth + 1)
    end
    return core.array(list)
  end
  local key = where .. " " .. name
  local input = { where = where, name = name, schema = schema, key = key }
  if schema.enum or schema.const ~= nil then
    input.value = schema.enum and schema.enum[1] or schema.const
  elseif kind == "string" then
    input.value, input.mark = self:text(schema, #self.inputs)
  elseif kind == "boolean" then
    input.value = true
  elseif kind == "null" then
    input.value = core.null
  else
    input.value = number_of(schema, #self.inputs)
  end
  if self.instead[key] ~= nil then
    input.value, input.mark = self.instead[key], self.instead[key]
  end
  table.insert(self.inputs, input)
  return input.value
end


-- ---- requests --------------------------------------------------------------

local function encoded(value, keep)
  return strings.percent(tostring(value), keep)
end


function Maker:target(route)
  local path = route.path:gsub("{([%w_]+)(%.*)}", function(name, dots)
    local value = self:value(route.path_schemas[name], "path", name)
    return encoded(value, dots ~= "" and "/" or nil)
  end)
  local parts = {}
  for _, name in ipairs(options.sorted_keys(route.query)) do
    local value = self:value(route.query[name].schema, "query", name)
    for _, one in ipairs(type(value) == "table" and value or { value }) do
      parts[#parts + 1] = encoded(name) .. "=" .. encoded(one)
    end
  end
  if route.query_unchecked then
    parts[#parts + 1] = "qz=" .. encoded(self:value({ type = "string" },
      "query", "(undeclared)"))
  end
  return path .. (#parts > 0 and "?" .. table.concat(parts, "&") or "")
end


--- One request to a route that its schemas take.
-- @return method, target, options as t.request wants them; the inputs are in
--         self.inputs
function Maker:request(route)
  local method = route.methods[1]
  if method == "*" then
    method = route.body.kind == "none" and "GET" or "POST"
  end
  local opts = { headers = {}, listener = route.listener ~= ""
    and route.listener or nil }
  local target = self:target(route)
  for _, name in ipairs(options.sorted_keys(route.headers)) do
    local value = self:value(route.headers[name].schema, "headers", name)
    opts.headers[name] = type(value) == "table" and table.concat(value, ", ")
      or tostring(value)
  end
  if route.host ~= "" then
    opts.headers.host = route.host:gsub("^%*", "x")
  end
  if route.body.kind == "json" then
    opts.json = self:value(route.body.schema, "json", "body")
  elseif route.body.kind ~= "none" then
    opts.body = self:value({ type = "string", maxLength = route.body.max },
      "body", "body")
    opts.headers["content-type"] = route.body.types[1]
      or "application/octet-stream"
  end
  return method, target, opts
end


return M
