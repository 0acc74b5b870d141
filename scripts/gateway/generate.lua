--- Values for a schema, good ones and bad ones, for `gateway test --fuzz`.
--
-- Nothing here says which are which: gateway.oracle does. good() tries to make
-- a valid value, near() changes one at its edges: one more, one less, another
-- type, a member too many, a text that the pattern nearly takes.

local core <const> = require "gateway.core"
local oracle <const> = require "gateway.oracle"
local pointer <const> = require "gateway.pointer"
local M = {}

local DEPTH <const> = 6
local TEXT_MAX <const> = 2000  -- of the texts made here, in characters
local ITEMS_MAX <const> = 40

local WORDS <const> = {
  "a", "abc", "x1", "A", "0", "-", "a b", "a/b", "..", "é", "%2f", "a\nb",
}

-- What is put into texts, at either end or alone: what programs, paths and
-- parsers take for more than a text.
local HOSTILE <const> = {
  "", " ", "\n", "\t", "-", "--", "-rf", "/", "/etc/passwd", "..", "../",
  "../../etc/passwd", "%2e%2e%2f", ".", "~", "|id", ";id", "$(id)", "`id`",
  "'", '"', "\\", "\0", "\r\n", "@", ":", "=", "*", "?", "é", "İ", "‐", "／",
  "\u{202e}", "null", "true", "0",
}
local NUMBERS <const> = {
  0, -1, 1, 0.5, -0.5, 2147483647, 2147483648, -2147483649, 4294967296,
  9007199254740993, math.maxinteger, math.mininteger, 1e308, -1e308, 1e-9,
}
local FORMATS <const> = {
  uuid = { "123e4567-e89b-12d3-a456-426614174000",
    "00000000-0000-0000-0000-000000000000" },
  date = { "2026-11-25", "2024-02-28" }, time = { "03:10:44Z", "23:59:59Z" },
  ["date-time"] = { "2026-11-25T03:10:44Z", "1999-01-01T00:00:00Z" },
  ipv4 = { "192.0.2.7", "0.0.0.0" }, email = { "ann@example.org" },
  hostname = { "example", "localhost" }, byte = { "", "aGVsbG8x" },
  ipv6 = { "2001:db8::1", "::" }, uri = { "https://example.org/" },
  duration = { "P1D", "PT5M" },
}


local function pick(list, random)
  return list[random(#list)]
end


local function types_of(schema)
  local types = schema.type
  if types == nil then
    if schema.properties or schema.required then
      return { "object" }
    elseif schema.items ~= nil or schema.prefixItems then
      return { "array" }
    elseif schema.minimum or schema.maximum then
      return { "integer" }
    end
    return { "string" }
  end
  return type(types) == "table" and types or { types }
end


-- ---- good values -----------------------------------------------------------

-- Both schemas in one, as far as their keywords do not meet.
local function merged(a, b)
  local all = {}
  for _, part in ipairs { a, b } do
    for key, value in pairs(part) do
      if (key == "properties" or key == "required") and all[key] then
        local joined = {}
        for _, old in ipairs { all[key], value } do
          for name, one in pairs(old) do
            joined[key == "required" and #joined + 1 or name] = one
          end
        end
        value = joined
      end
      all[key] = value
    end
  end
  return all
end


-- A schema without $ref, allOf, anyOf and oneOf: one way through them.
local function flat(schema, root, random, depth)
  if type(schema) ~= "table" or depth > DEPTH then
    return type(schema) == "table" and schema or {}
  end
  local plain = {}
  for key, value in pairs(schema) do
    plain[key] = value
  end
  plain.allOf, plain.anyOf, plain.oneOf, plain["$ref"] = nil, nil, nil, nil
  local parts = { table.unpack(schema.allOf or {}) }
  for _, word in ipairs { "anyOf", "oneOf" } do
    parts[#parts + 1] = schema[word] and pick(schema[word], random)
  end
  if schema["$ref"] then
    parts[#parts + 1] = pointer.find(root, schema["$ref"])
  end
  for _, part in ipairs(parts) do
    plain = merged(plain, flat(part, root, random, depth + 1))
  end
  return plain
end

M.flat = flat


local function good_number(schema, whole, random)
  local step = schema.multipleOf or (whole and 1 or nil)
  local low = schema.minimum or schema.exclusiveMinimum
    and schema.exclusiveMinimum + (step or 0.5)
  local high = schema.maximum or schema.exclusiveMaximum
    and schema.exclusiveMaximum - (step or 0.5)
  low = low or high and high - 100 or 0
  high = high or low + 100
  local value = pick({ low, high, low + (high - low) * random(99) / 100 },
    random)
  if step then
    value = value // step * step
    if value < low then
      value = value + step
    end
  end
  return math.tointeger(value) or value
end


-- A text of so many characters, made of one that is valid without that.
local function stretched(text, length)
  local have = utf8.len(text) or #text
  if have >= length then
    return text:sub(1, (utf8.offset(text, length + 1) or #text + 1) - 1)
  end
  local last = have > 0 and text:sub(utf8.offset(text, -1)) or "a"
  return text .. last:rep(length - have)
end


local function good_string(schema, random)
  local low = schema.minLength or 0
  local high = math.min(schema.maxLength or low + 20, TEXT_MAX)
  if schema.pattern then
    local made = oracle.pattern(schema.pattern)
    local text = made and made:sample(random,
      math.max(1, math.min(high, 24), made:length_min() or 0))
    if text and random(4) == 1 then
      text = stretched(text, random(2) == 1 and high or low)
    end
    return text or ""
  elseif FORMATS[schema.format] then
    return pick(FORMATS[schema.format], random)
  end
  return stretched(pick(WORDS, random), pick({ low, high, math.min(high,
    math.max(low, random(12))) }, random))
end


local make  -- make(schema, root, random, depth) -> value


local function good_array(schema, root, random, depth)
  local low = schema.minItems or 0
  local high = math.min(schema.maxItems or low + 3, ITEMS_MAX)
  local prefix, list = schema.prefixItems or {}, core.array {}
  local count = math.max(low, math.min(high, pick({ low, high, random(3) },
    random)))
  if depth > 2 then
    count = math.min(count, math.max(low, 1))
  end
  for i = 1, math.min(count, ITEMS_MAX) do
    local item = prefix[i]
    if item == nil then
      item = schema.items
    end
    if item == nil then
      item = { type = "string" }
    end
    if item ~= false then
      list[i] = make(item, root, random, depth + 1)
    end
  end
  if schema.contains and #list < high then
    list[#list + 1] = make(schema.contains, root, random, depth + 1)
  end
  return list
end


-- Adds members of no name of their own until there are enough, or a few more.
local function fill(schema, value, root, random, depth)
  local rest = schema.additionalProperties
  if rest == nil then
    rest = schema.unevaluatedProperties
  end
  local names = type(schema.propertyNames) == "table" and schema.propertyNames
    or { type = "string", maxLength = 9, minLength = 1 }
  for text, part in pairs(schema.patternProperties or {}) do
    names, rest = { type = "string", pattern = text }, part
  end
  local count = oracle.count_members(value)
  local least = math.max(schema.minProperties or 0, math.min(count
    + random(3) - 1, schema.maxProperties or math.huge))
  for _ = 1, type(rest) == "table" and ITEMS_MAX or 0 do
    if oracle.count_members(value) >= least then
      return
    end
    local name = make({ allOf = { { type = "string" }, names } }, root, random,
      DEPTH - 1)
    value[name] = make(rest, root, random, depth + 1)
  end
end


-- Adds what a member that is there asks for.
local function add_dependents(schema, value, root, random, depth)
  for name, wanted in pairs(schema.dependentRequired or {}) do
    for _, other in ipairs(value[name] ~= nil and wanted or {}) do
      if value[other] == nil then
        value[other] = make((schema.properties or {})[other] or {}, root,
          random, depth + 1)
      end
    end
  end
end


-- Adds members that patternProperties has schemas for.
local function add_patterned(schema, value, root, random, depth)
  for text, sub in pairs(schema.patternProperties or {}) do
    local made = oracle.pattern(text)
    local name = made and made:sample(random, 4)
    if name and value[name] == nil
      and (next(value) == nil or random(2) == 1) then
      value[name] = make(sub, root, random, depth + 1)
    end
  end
end


local function good_object(schema, root, random, depth)
  local value, wanted = {}, {}
  for _, name in pairs(schema.required or {}) do
    wanted[name] = true
  end
  for name, sub in pairs(schema.properties or {}) do
    if wanted[name] or depth < 4 and random(2) == 1 then
      value[name] = make(sub, root, random, depth + 1)
    end
  end
  for name in pairs(wanted) do
    if value[name] == nil then
      value[name] = make(schema.additionalProperties or { type = "string" },
        root, random, depth + 1)
    end
  end
  add_patterned(schema, value, root, random, depth)
  fill(schema, value, root, random, depth)
  add_dependents(schema, value, root, random, depth)
  return value
end


function make(schema, root, random, depth)
  local plain = flat(schema, root, random, 0)
  if plain.const ~= nil then
    return plain.const
  elseif plain.enum then
    return pick(plain.enum, random)
  end
  local kind = pick(types_of(plain), random)
  if depth > DEPTH then
    return core.null
  elseif kind == "integer" or kind == "number" then
    return good_number(plain, kind == "integer", random)
  elseif kind == "string" then
    return good_string(plain, random)
  elseif kind == "array" then
    return good_array(plain, root, random, depth)
  elseif kind == "object" then
    return good_object(plain, root, random, depth)
  elseif kind == "boolean" then
    return random(2) == 1
  end
  return core.null
end


--- good(schema, random): a value that is probably valid.
-- @param random  random(n) -> 1 … n
function M.good(schema, random)
  return make(schema, schema, random, 0)
end


-- ---- values at the edges ---------------------------------------------------

local function copy(value)
  if type(value) ~= "table" then
    return value
  end
  local new = {}
  for key, one in pairs(value) do
    new[key] = one
  end
  return oracle.is_array(value) and core.array(new) or new
end


local function near_number(schema, value, random)
  local edges = { value + 1, value - 1, value + 0.5, -value, tostring(value) }
  for _, word in ipairs { "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum" } do
    local edge = schema[word]
    if edge then
      for _, near in ipairs { edge, edge - 1, edge + 1, edge - 0.5,
        edge + 0.5 } do
        edges[#edges + 1] = near
      end
    end
  end
  return random(3) == 1 and pick(NUMBERS, random) or pick(edges, random)
end


local function near_string(schema, value, random)
  local how = random(8)
  local hostile = pick(HOSTILE, random)
  local made = schema.pattern and oracle.pattern(schema.pattern)
  if how == 1 and schema.maxLength and schema.maxLength < TEXT_MAX then
    return stretched(value, schema.maxLength + random(2) - 1)
  elseif how == 2 and (schema.minLength or 0) > 0 then
    return stretched(value, schema.minLength - random(2) + 1)
  elseif how <= 4 and made then
    return made:near_miss(random, TEXT_MAX) or hostile
  elseif how == 5 then
    return hostile .. value
  elseif how == 6 then
    return value .. hostile
  elseif how == 7 then
    return random(2) == 1 and value:upper() or value:lower()
  end
  return hostile
end


local near  -- near(schema, value, root, random, depth) -> value


local function near_array(schema, value, root, random, depth)
  local list, how = copy(value), random(4)
  if schema.contains and random(3) == 1 then
    for i = 1, random((schema.maxContains or 1) + 1) do
      list[i] = make(schema.contains, root, random, depth + 1)
    end
  elseif how == 1 and schema.maxItems and schema.maxItems < ITEMS_MAX then
    while #list <= schema.maxItems do
      list[#list + 1] = make(schema.items or {}, root, random, depth + 1)
    end
  elseif how == 2 and #list > 0 then
    list[#list] = nil
  elseif how == 3 and #list > 0 then
    list[#list + 1] = list[1]
  elseif #list > 0 then
    local i = random(#list)
    local item = (schema.prefixItems or {})[i] or schema.items
    list[i] = near(type(item) == "table" and item or {}, list[i], root, random,
      depth + 1)
  else
    list[1] = pick(WORDS, random)
  end
  return list
end

local EXTRA <const> = {
  "extra", "__proto__", "constructor", "", "a\0b", "$ref", "é", "ID", "id ",
}


local function near_object(schema, value, root, random, depth)
  local object, names = copy(value), {}
  for name in pairs(value) do
    names[#names + 1] = name
  end
  table.sort(names)
  local how = random(#names == 0 and 1 or 4)
  local most = schema.maxProperties
  if most and most < ITEMS_MAX and random(4) == 1 then
    local more = { minProperties = most + 1 }
    for key, part in pairs(schema) do
      more[key] = more[key] or part
    end
    fill(more, object, root, random, depth)
    return object
  elseif how == 1 then
    object[pick(EXTRA, random)] = pick({ 1, "x", true, core.null }, random)
    return object
  end
  local name = pick(names, random)
  if how == 2 then
    object[name] = nil
  elseif how == 3 and name:upper() ~= name then
    object[name], object[name:upper()] = nil, object[name]
  else
    object[name] = near((schema.properties or {})[name] or {}, object[name],
      root, random, depth + 1)
  end
  return object
end


function near(schema, value, root, random, depth)
  local plain = flat(schema, root, random, 0)
  if plain["not"] and random(4) == 1 then
    return make(plain["not"], root, random, DEPTH - 1)
  elseif random(8) == 1 or depth > DEPTH then
    return pick({ core.null, true, false, 0, 1.5, "", "a", core.array {},
      {}, core.array { value } }, random)
  elseif type(value) == "number" then
    return near_number(plain, value, random)
  elseif type(value) == "string" then
    return near_string(plain, value, random)
  elseif oracle.is_array(value) then
    return near_array(plain, value, root, random, depth)
  elseif type(value) == "table" then
    return near_object(plain, value, root, random, depth)
  end
  return pick({ "true", 0, 1, "null" }, random)
end


--- near(schema, value, random): a value near to `value`, valid or not.
function M.near(schema, value, random)
  return near(schema, value, schema, random, 0)
end


-- ---- text ------------------------------------------------------------------

--- text(value): a scalar as a client would write it in a URL or a header.
function M.text(value)
  if type(value) == "string" then
    return value
  elseif type(value) == "boolean" or math.type(value) == "integer" then
    return tostring(value)
  elseif type(value) == "number" then
    return ("%.14g"):format(value)
  elseif value == core.null then
    return "null"
  end
  return core.encode(value)
end

-- Ways to write a number that are none, or are another one.
local SPELLINGS <const> = {
  "+%s", " %s", "%s ", "0%s", "%s.0", "%se0", "0x%s", "%s,0", "%s\n", "--%s",
  "%s%s", "%sL", "९", "1e999", "NaN", "-", "",
}


--- near_text(schema, text, random): a text near to a valid one.
function M.near_text(schema, text, random)
  local how = random(4)
  if how == 1 and tonumber(text) then
    local spelling = pick(SPELLINGS, random)
    return (spelling:gsub("%%s", text))
  elseif how == 2 then
    local types = types_of(flat(schema, schema, random, 0))
    local value = (types[1] == "integer" or types[1] == "number")
      and tonumber(text) or text
    return M.text(near(schema, value, schema, random, DEPTH - 1))
  end
  local value = tonumber(text) and types_of(schema)[1] ~= "string"
    and tonumber(text) or text
  return M.text(near(schema, value, schema, random, DEPTH - 1))
end


return M
