--- Canaries: requests that satisfy a route's schemas, and whose values can be
-- told from each other wherever they turn up.

local core <const> = require "gateway.core"
local generate <const> = require "gateway.generate"
local options <const> = require "gateway.options"
local oracle <const> = require "gateway.oracle"
local pattern <const> = require "gateway.pattern"
local pointer <const> = require "gateway.pointer"
local strings <const> = require "gateway.strings"
local M = {}

local MAX_TRIES <const> = 300  -- of making a value that the whole schema takes
local MAX_DEPTH <const> = 12
local SEED <const> = 20261126
local ROUND_STEP <const> = 0.618034  -- spreads the numbers of later rounds

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
  byte = "qz%02daaaa",
}


-- ---- values ----------------------------------------------------------------

local Maker = {}
Maker.__index = Maker


--- A maker of the values of one request.
-- @param instead  { [input's key] = value } to send in place of canaries
-- @param like     the maker of the request that is sent again with them
-- @param rounds   { json =, other = }: another number makes other choices in
--                 the body and elsewhere, where there are any
function M.new(instead, like, rounds)
  local self = setmetatable({
    inputs = {}, instead = instead or {}, found = like and like.found or {},
    again = like ~= nil, rounds = like and like.rounds or rounds or {},
    round = 0, seed = SEED,
  }, Maker)
  function self.random(n)
    self.seed = self.seed * 6364136223846793005 + 1442695040888963407
    return (self.seed >> 33) % n + 1
  end
  return self
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
  if SAMPLES[schema.format] and not schema.pattern then
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


-- The bounds of numbers that a schema takes.
local function bounds_of(schema)
  local low = schema.minimum or schema.exclusiveMinimum
    and schema.exclusiveMinimum + 1 or nil
  local high = schema.maximum or schema.exclusiveMaximum
    and schema.exclusiveMaximum - 1 or nil
  low = low or high and math.min(0, high - 50) or 0
  return low, high or math.max(low, 0) + 99999
end


-- A number within the bounds, with as many digits as there is room for; and its
-- marker, where it can be told from others.
local function number_of(schema, number, round)
  local low, high = bounds_of(schema)
  local value = math.min(low + number % 7, high)
  if round > 0 then
    local share = round == 1 and 1 or round > 2 and ROUND_STEP * round % 1 or 0
    value = math.floor(low + (high - low) * share)
  end
  for _, base in ipairs(round == 0 and { 70000, 7000, 700 } or {}) do
    if base + 100 <= high and base >= low then
      value = base + number * 7 % 90
      break
    end
  end
  local step = schema.multipleOf
  if step then
    value = math.ceil(value / step) * step
    value = value <= high and value or math.floor(high / step) * step
  end
  value = math.tointeger(value) or value
  return value, value >= 700 and tostring(value) or nil
end


local function type_of(schema)
  local types = type(schema.type) == "table" and schema.type or { schema.type }
  for _, name in ipairs(types) do
    if name == "string" then
      return name
    end
  end
  return types[1] or schema.properties and "object" or schema.items and "array"
    or (schema.minimum or schema.maximum) and "number" or "string"
end


-- The names of the members that an object is given.
local function members_of(schema, depth, round)
  local wanted, names = {}, {}
  for _, key in ipairs(schema.required or {}) do
    if not wanted[key] then
      names[#names + 1], wanted[key] = key, true
    end
  end
  local properties = schema.properties or {}
  local known = options.sorted_keys(properties)
  for i = 1, #known do
    local key = known[(i + round * 3 - 1) % #known + 1]
    if not wanted[key] and depth < 4 and properties[key] ~= false
      and #names < (schema.maxProperties or math.huge) then
      names[#names + 1] = key
    end
  end
  return names
end


-- A member that has no name of its own: a schema for its name, and its own.
local function unnamed_of(schema)
  local text, part = next(schema.patternProperties or {})
  if text then
    return { type = "string", pattern = text }, part
  end
  part = schema.additionalProperties
  if part == nil then
    part = schema.unevaluatedProperties
  end
  local names = schema.propertyNames
  return type(names) == "table" and names or { type = "string", maxLength = 9 },
    type(part) == "table" and part or nil
end


function Maker:object(schema, where, name, depth)
  local value, names = {}, members_of(schema, depth, self.round)
  local properties = schema.properties or {}
  for _, key in ipairs(names) do
    value[key] = self:value(properties[key], where, name .. "." .. key,
      depth + 1)
  end
  local key, part = unnamed_of(schema)
  local count = math.min(math.max(schema.minProperties or 1, 1), 20) - #names
  for i = 1, part and depth < 4 and count or 0 do
    local text = self:text(key, #self.inputs + i)
    if text and value[text] == nil then
      value[text] = self:value(part, where, name .. ".*", depth + 1)
    end
  end
  return value
end


function Maker:array(schema, where, name, depth)
  local list, prefix = {}, schema.prefixItems or {}
  for i = 1, math.max(1, math.min(schema.minItems or 1, 20)) do
    local item = prefix[i]
    if item == nil then
      item = schema.items
    end
    if item ~= false then
      list[i] = self:value(item, where, name .. "[]", depth + 1)
    end
  end
  return core.array(list)
end


-- A value for a schema that is neither a list nor an object.
function Maker:scalar(schema, kind, input)
  local number = #self.inputs
  if schema.const ~= nil then
    input.value = schema.const
  elseif schema.enum then
    input.value = schema.enum[number % #schema.enum + 1]
  elseif kind == "string" then
    input.value, input.mark = self:text(schema, number)
  elseif kind == "boolean" then
    input.value = true
  elseif kind == "null" then
    input.value = core.null
  else
    input.value, input.mark = number_of(schema, number, self.round)
  end
end


-- A value for a schema, noted among the inputs.
-- @param where  "path", "query", "headers", "json" or "body"
function Maker:value(schema, where, name, depth)
  schema = generate.flat(schema, self.root, self.random, 0)
  local kind = type_of(schema)
  local fixed = schema.enum or schema.const ~= nil
  if depth > MAX_DEPTH then
    return core.null
  elseif kind == "object" and not fixed then
    return self:object(schema, where, name, depth)
  elseif kind == "array" and not fixed then
    return self:array(schema, where, name, depth)
  end
  local input = { where = where, name = name, schema = schema }
  self:scalar(schema, kind, input)
  for _ = 1, not taken(schema, input.value) and 20 or 0 do
    local other = generate.good(schema, self.random)
    if taken(schema, other) then
      input.value, input.mark = other, nil
      break
    end
  end
  return self:note(input)
end


-- Notes an input. The value that is sent for it: its own, or one instead.
function Maker:note(input)
  input.key = ("%d %s %s"):format(#self.inputs, input.where, input.name)
  if self.instead[input.key] ~= nil then
    input.value, input.mark = self.instead[input.key], self.instead[input.key]
  end
  table.insert(self.inputs, input)
  return input.value
end


-- The schema of a member or an item, in a schema or one beside it; or nil.
function Maker:part_of(schema, key, depth)
  if type(schema) ~= "table" or depth > MAX_DEPTH then
    return nil
  end
  local found = (schema.properties or {})[key]
  if math.type(key) then
    found = (schema.prefixItems or {})[key] or schema.items
  end
  local beside = { schema["then"] or false, schema["else"] or false,
    schema["$ref"] and pointer.find(self.root, schema["$ref"]) or false }
  for _, word in ipairs { "allOf", "anyOf", "oneOf" } do
    table.move(schema[word] or {}, 1, #(schema[word] or {}), #beside + 1,
      beside)
  end
  for _, part in ipairs(beside) do
    found = found or self:part_of(part, key, depth + 1)
  end
  return found
end


-- Notes the scalars of a value that was made without markers.
function Maker:note_all(value, schema, where, name)
  if type(value) ~= "table" then
    local text = type(value) == "string" and #value > 3
    return self:note { where = where, name = name, value = value,
      mark = text and value or nil, schema = { const = value } }
  end
  local list = oracle.is_array(value)
  local copy = list and core.array {} or {}
  for _, key in ipairs(options.sorted_keys(value)) do
    local part = self:part_of(schema, key, 0)
    copy[key] = self:note_all(value[key], part, where, name
      .. (list and "[]" or part and "." .. key or ".*"))
  end
  return copy
end


--- A value that a schema takes, its parts noted among the inputs. Where the
-- schema asks for more than the parts can see (not, if, contains, …), one is
-- looked for at random.
function Maker:input(schema, where, name)
  self.root = schema
  self.round = self.rounds[where == "json" and "json" or "other"] or 0
  self.seed = SEED ~ self.round * 0x9E3779B97F4A7C15
  local kept, key = #self.inputs, where .. " " .. name
  if self.found[key] ~= nil then
    return self:note_all(self.found[key], schema, where, name)
  end
  local value = self:value(schema, where, name, 0)
  if self.again or taken(schema, value) then
    return value
  end
  for _ = 1, MAX_TRIES do
    local other = generate.good(schema, self.random)
    if taken(schema, other) then
      for i = #self.inputs, kept + 1, -1 do
        self.inputs[i] = nil
      end
      self.found[key] = other
      return self:note_all(other, schema, where, name)
    end
  end
  return value
end


-- Other values for a text: first one that is as long, then any.
local function other_texts(schema)
  local maker, list = M.new(), {}
  list[1] = maker:text(schema, 20)
  for i = 2, 12 do
    list[i] = generate.good(schema, maker.random)
  end
  return list
end


--- At most two other values that the schema of an input takes.
function M.others(input)
  local schema, value = input.schema, input.value
  local list = schema.enum or type(value) == "boolean" and { not value } or {}
  if math.type(value) then
    local step = schema.multipleOf or 1
    list = { value + step, value - step, value + 2 * step, value - 2 * step }
  elseif type(value) == "string" and #list == 0 and schema.const == nil then
    list = other_texts(schema)
  end
  local found = {}
  for _, one in ipairs(list) do
    if #found < 2 and one ~= value and one ~= found[1] and taken(schema, one)
    then
      found[#found + 1] = one
    end
  end
  return found
end


-- ---- requests --------------------------------------------------------------

local function encoded(value, keep)
  return strings.percent(tostring(value), keep)
end


function Maker:target(route)
  local path = route.path:gsub("{([%w_]+)(%.*)}", function(name, dots)
    local value = self:input(route.path_schemas[name], "path", name)
    return encoded(value, dots ~= "" and "/" or nil)
  end)
  local parts = {}
  for _, name in ipairs(options.sorted_keys(route.query)) do
    local value = self:input(route.query[name].schema, "query", name)
    for _, one in ipairs(type(value) == "table" and value or { value }) do
      parts[#parts + 1] = encoded(name) .. "=" .. encoded(one)
    end
  end
  if route.query_unchecked then
    parts[#parts + 1] = "qz=" .. encoded(self:input({ type = "string" },
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
    local value = self:input(route.headers[name].schema, "headers", name)
    opts.headers[name] = type(value) == "table" and table.concat(value, ", ")
      or tostring(value)
  end
  if route.host ~= "" then
    opts.headers.host = route.host:gsub("^%*", "x")
  end
  if route.body.kind == "json" then
    opts.json = self:input(route.body.schema, "json", "body")
    opts.headers["content-type"] = route.body.types[1]
  elseif route.body.kind ~= "none" then
    opts.body = self:input({ type = "string", maxLength = route.body.max },
      "body", "body")
    opts.headers["content-type"] = route.body.types[1]
      or "application/octet-stream"
  end
  return method, target, opts
end


return M
