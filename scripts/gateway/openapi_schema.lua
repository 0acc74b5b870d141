--- Schemas of OpenAPI documents as schemas of ours.
--
-- Three dialects come in (those of Swagger 2.0, OpenAPI 3.0 and 3.1), JSON
-- Schema 2020-12 comes out. What would be let through without a look, by the
-- letter of the document or because our dialect cannot say it, is refused with
-- its line: a value of no type, members of any name, a format that nobody
-- knows, a keyword that has no effect. Annotations are left out.

local core <const> = require "gateway.core"
local document <const> = require "gateway.document"
local options <const> = require "gateway.options"
local pointer <const> = require "gateway.pointer"
local M = {}

-- What becomes of each keyword of 3.0: the name of a method below.
local OAS30 <const> = {
  ["$ref"] = "ref", type = "types", enum = "keep", default = "drop",
  multipleOf = "keep", minimum = "keep", maximum = "keep",
  exclusiveMinimum = "truth", exclusiveMaximum = "truth",
  minLength = "keep", maxLength = "keep", pattern = "keep", format = "format",
  items = "value", minItems = "keep", maxItems = "keep", uniqueItems = "keep",
  properties = "members", additionalProperties = "additional",
  required = "keep", minProperties = "keep", maxProperties = "keep",
  allOf = "branches", anyOf = "branches", oneOf = "branches",
  ["not"] = "branch",
  nullable = "drop", discriminator = "drop", readOnly = "drop",
  writeOnly = "drop", xml = "drop", externalDocs = "drop", example = "drop",
  deprecated = "drop", title = "drop", description = "drop",
}

local OAS20 <const> = {}
for key, kind in pairs(OAS30) do
  OAS20[key] = kind
end
for _, key in ipairs { "anyOf", "oneOf", "not", "nullable", "writeOnly",
  "deprecated" } do
  OAS20[key] = nil
end

local OAS31 <const> = {
  const = "keep", prefixItems = "values", contains = "branch",
  minContains = "keep", maxContains = "keep", unevaluatedItems = "value",
  patternProperties = "members", propertyNames = "branch",
  unevaluatedProperties = "additional", dependentRequired = "keep",
  dependentSchemas = "named_branches", ["if"] = "branch", ["then"] = "branch",
  ["else"] = "branch", exclusiveMinimum = "keep", exclusiveMaximum = "keep",
  examples = "drop", ["$comment"] = "drop", ["$defs"] = "drop",
  contentEncoding = "encoding", contentMediaType = "drop",
}
for key, kind in pairs(OAS30) do
  OAS31[key] = OAS31[key] or kind
end
OAS31.nullable = nil

local DIALECTS <const> = { ["2.0"] = OAS20, ["3.0"] = OAS30, ["3.1"] = OAS31 }

-- What to write instead of words of other dialects.
local OTHERS <const> = {
  nullable = 'is of 3.0: write type: […, "null"]',
  anyOf = "is not in Swagger 2.0: convert the document to OpenAPI 3",
  oneOf = "is not in Swagger 2.0: convert the document to OpenAPI 3",
  ["not"] = "is not in Swagger 2.0: convert the document to OpenAPI 3",
  const = "is of 3.1: write enum with one value",
  ["$id"] = "is not read: write $ref as \"#/components/schemas/…\"",
  ["$anchor"] = "is not read: write $ref as \"#/components/schemas/…\"",
  ["$dynamicRef"] = "is not read: write $ref",
  ["$dynamicAnchor"] = "is not read: write $ref",
  ["$schema"] = "another dialect within the document is not read",
  contentSchema = "is not checked: leave it out, or send an object",
  definitions = "write $ref: \"#/components/schemas/…\"",
  dependencies = "is of older drafts: 3.1 has dependentRequired and"
    .. " dependentSchemas",
  additionalItems = "is of older drafts: 3.1 has items beside prefixItems",
}

-- The type that a keyword is about: beside another one it would do nothing.
local ABOUT <const> = {
  minLength = "string", maxLength = "string", pattern = "string",
  contentEncoding = "string",
  multipleOf = "number", minimum = "number", maximum = "number",
  exclusiveMinimum = "number", exclusiveMaximum = "number",
  items = "array", prefixItems = "array", contains = "array",
  minItems = "array", maxItems = "array", uniqueItems = "array",
  unevaluatedItems = "array",
  properties = "object", patternProperties = "object",
  additionalProperties = "object", unevaluatedProperties = "object",
  propertyNames = "object", required = "object", minProperties = "object",
  maxProperties = "object", dependentRequired = "object",
  dependentSchemas = "object",
}

local TEXT_FORMATS <const> = {}
for name in ([[date-time date time duration email idn-email hostname ipv4 ipv6
  uri uri-reference iri iri-reference uuid json-pointer relative-json-pointer
  regex byte]]):gmatch("%S+") do
  TEXT_FORMATS[name] = true
end

-- Formats of numbers, as ranges; int32 and int64 our dialect knows.
local RANGES <const> = {
  int8 = { -128, 127 }, uint8 = { 0, 255 }, int16 = { -32768, 32767 },
  uint16 = { 0, 65535 }, uint32 = { 0, 4294967295 },
  uint64 = { 0, below = 2.0 ^ 64 },
  float = { -3.4028234663852886e38, 3.4028234663852886e38 },
}
local NUMBER_FORMATS <const> = { int32 = true, int64 = true, double = true }
for name in pairs(RANGES) do
  NUMBER_FORMATS[name] = true
end

-- Formats that are hints to people and say nothing about values.
local HINTS <const> = { password = true, double = true }

-- What an object may be said to hold.
local MEMBERS <const> = {
  "properties", "patternProperties", "additionalProperties",
  "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref", "enum", "const",
}


local Converter = {}
Converter.__index = Converter


function Converter:fail(source, key, message)
  local list = math.type(key) and self.lists[source]
  if list then  -- a number alone would say little
    error(("%s: %s: item %d %s"):format(self.doc:at(source, key), list, key,
      message), 0)
  end
  self.doc:fail(source, key, message)
end


-- The types a schema names, as a set; nil where it names none.
local function types_of(source)
  local value = source.type
  if type(value) == "string" then
    return { [value] = true }
  elseif type(value) ~= "table" then
    return nil
  end
  local set = {}
  for _, name in ipairs(document.items(value)) do
    set[name] = true
  end
  return set
end


local function has_type(types, wanted)
  return types[wanted] or wanted == "number" and types.integer
end


-- ---- what lets anything in -------------------------------------------------

-- Does some keyword of the schema say which values there may be?
function Converter:is_bounded(source, depth)
  if type(source) ~= "table" then
    return source == false
  elseif source.type ~= nil or source.enum ~= nil or source.const ~= nil then
    return true
  elseif depth > 32 then
    return false
  elseif source["$ref"] ~= nil then
    return self:is_bounded(self.doc:target(source), depth + 1)
  end
  for _, branch in ipairs(document.items(source.allOf)) do
    if self:is_bounded(branch, depth + 1) then
      return true
    end
  end
  for _, key in ipairs { "oneOf", "anyOf" } do
    local all = source[key] ~= nil and #document.items(source[key]) > 0
    for _, branch in ipairs(document.items(source[key])) do
      all = all and self:is_bounded(branch, depth + 1)
    end
    if all then
      return true
    end
  end
  return false
end


local function mentions(source, keys)
  for _, key in ipairs(keys) do
    if source[key] ~= nil then
      return true
    end
  end
  return false
end


-- Where a schema that is nothing but a $ref leads in the end.
function Converter:leads_to(source)
  for _ = 1, 32 do
    local key = next(source)
    if key ~= "$ref" or next(source, key) ~= nil then
      break
    end
    source = self.doc:target(source)
  end
  return source
end


-- May a list with items of any kind meet the schema, by some way through $ref,
-- allOf, oneOf and anyOf?
function Converter:lets_any_list(source, depth)
  if type(source) ~= "table" then
    return source == true
  end
  local types, most = types_of(source), math.tointeger(source.maxItems)
  if depth > 32 then
    return true
  elseif types and not types.array
    or mentions(source, { "items", "unevaluatedItems", "enum", "const" })
    or most and most <= #document.items(source.prefixItems) then
    return false
  elseif source["$ref"] ~= nil
    and not self:lets_any_list(self.doc:target(source), depth + 1) then
    return false
  end
  for _, branch in ipairs(document.items(source.allOf)) do
    if not self:lets_any_list(branch, depth + 1) then
      return false
    end
  end
  for _, key in ipairs { "oneOf", "anyOf" } do
    local some = source[key] == nil
    for _, branch in ipairs(document.items(source[key])) do
      some = some or self:lets_any_list(branch, depth + 1)
    end
    if not some then
      return false
    end
  end
  return true
end


-- Complains about a schema that a value may meet, and that lets anything in.
function Converter:check_bounded(source, owner, key)
  if source == true then
    self:fail(owner, key, "lets any value in: write a schema with a type")
  elseif source == false then
    return
  elseif not self:is_bounded(source, 0) then
    if not document.is_map(source) then
      self:fail(owner, key, "must be a schema, which is a map")
    end
    source = self:leads_to(source)
    local list = math.type(key) and self.lists[owner]
    self:fail(source, nil, ("%s has no type, so it lets any value in: write"
      .. " type: %s"):format(list and ("%s: item %d"):format(list, key)
        or options.show(tostring(key)),
      source.properties and "object" or source.items and "array" or "…"))
  end
  source = self:leads_to(source)
  local types = types_of(source)
  if types and types.object and not mentions(source, MEMBERS)
    and source.maxProperties ~= 0 then
    self:fail(source, "type", "an object of which nothing is said lets any"
      .. " member in: write properties, or additionalProperties: false")
  end
  if self:lets_any_list(source, 0) then
    self:fail(source, types and "type" or nil, source.prefixItems ~= nil
      and "an array with prefixItems alone lets any further item in: write"
        .. " items: false"
      or "an array without items lets any item in: write items")
  end
end


-- ---- keywords --------------------------------------------------------------

function Converter.keep(_, plain, source, key)
  plain[key] = source[key]
end


function Converter.drop()
end


function Converter:ref(plain, source)
  local target, name = self.doc:target(source)
  if self.dialect ~= OAS31 then
    self.doc:follow(source)  -- what stands beside it would be ignored
  end
  plain["$ref"] = "#/$defs/" .. self:define(target, name)
end


local OLD_TYPES <const> = {
  string = true, integer = true, number = true, boolean = true, array = true,
  object = true,
}
local TYPES <const> = { null = true }

for name in pairs(OLD_TYPES) do
  TYPES[name] = true
end


function Converter:types(plain, source, key)
  local value = source[key]
  if self.dialect ~= OAS31 and type(value) == "table" then
    self:fail(source, key, "a list of types is of 3.1: write one")
  elseif value == "file" then
    self:fail(source, key, "file: no JSON holds a file: write a body of its own"
      .. " media type")
  elseif value == "null" and self.dialect ~= OAS31 then
    self:fail(source, key, "there is no type null before 3.1: write nullable:"
      .. " true beside a type")
  end
  for _, name in ipairs(document.is_list(value) and value or { value }) do
    if not TYPES[name] or name == "null" and self.dialect ~= OAS31 then
      self:fail(source, key, ("there is no type %s%s"):format(
        options.show(name), options.suggest(tostring(name),
          self.dialect == OAS31 and TYPES or OLD_TYPES)))
    end
  end
  plain.type = value
end


-- exclusiveMinimum: true makes minimum exclusive.
function Converter:truth(plain, source, key)
  local limit = key == "exclusiveMinimum" and "minimum" or "maximum"
  local value = source[key]
  if type(value) ~= "boolean" then
    self:fail(source, key, ("must be true or false in %s, beside %s"):format(
      self.version, limit))
  elseif value and source[limit] == nil then
    self:fail(source, key, ("needs %s beside it"):format(limit))
  elseif value then
    self.exclusive[plain] = self.exclusive[plain] or {}
    self.exclusive[plain][key] = limit
  end
end


-- A schema that applies to the same value, or only in part.
function Converter:branch(plain, source, key)
  plain[key] = self:schema(source[key], source, key)
end


function Converter:value(plain, source, key)
  self:check_bounded(source[key], source, key)
  self:branch(plain, source, key)
end


local function each(method, is_right, wanted)
  return function(self, plain, source, key)
    if not is_right(source[key]) then
      self:fail(source, key, "must be " .. wanted)
    end
    local made = {}
    self.lists[source[key]] = document.is_list(source[key]) and key or nil
    for _, name in ipairs(options.sorted_keys(source[key])) do
      self[method](self, made, source[key], name)
    end
    plain[key] = document.is_list(source[key]) and core.array(made) or made
  end
end

Converter.branches = each("branch", document.is_list, "a list of schemas")
Converter.values = each("value", document.is_list, "a list of schemas")
Converter.named_branches = each("branch", document.is_map, "a map of schemas")


-- Is a property one that no request may have? Its schema says so, or one that
-- applies wherever that does.
function Converter:is_read_only(source, depth)
  if type(source) ~= "table" or depth > 32 then
    return false
  elseif source.readOnly == true then
    return true
  elseif source["$ref"] ~= nil
    and self:is_read_only(self.doc:target(source), depth + 1) then
    return true
  end
  for _, branch in ipairs(document.items(source.allOf)) do
    if self:is_read_only(branch, depth + 1) then
      return true
    end
  end
  for _, branch in ipairs(document.items(source.oneOf or source.anyOf)) do
    if self:is_read_only(branch, depth + 1) then
      self:fail(branch, "readOnly", "is not read in one of several schemas:"
        .. " write it beside oneOf or anyOf")
    end
  end
  return false
end


-- The schema of a member, which is none where no request may have it.
function Converter:member(plain, source, key)
  if self:is_read_only(source[key], 0) then
    plain[key] = false
  else
    self:value(plain, source, key)
  end
end


Converter.members = each("member", document.is_map, "a map of schemas")


-- additionalProperties, unevaluatedProperties: a schema, or a truth.
function Converter:additional(plain, source, key)
  local value = source[key]
  if value == false then
    plain[key] = false
  elseif value == true or document.is_map(value) and next(value) == nil then
    if not self.open then
      self:fail(source, key, "lets any member in: list them in properties, or"
        .. " say open = true in gateway.openapi")
    end
    plain[key] = true
  else
    self:member(plain, source, key)
  end
end


function Converter:encoding(plain, source, key)
  if source[key] ~= "base64" or source.format ~= nil then
    self:fail(source, key, "only base64, and without a format, is checked")
  end
  plain.format = "byte"
end


-- ---- formats ---------------------------------------------------------------

-- Adds a schema that the same value has to meet.
local function also(plain, schema)
  plain.allOf = plain.allOf or core.array {}
  table.insert(plain.allOf, schema)
end


local function narrow(plain, range)
  local low, high = table.unpack(range)
  local exact = math.type(plain.minimum) and plain.minimum
  plain.minimum = exact and math.max(exact, low) or low
  exact = math.type(plain.maximum) and plain.maximum
  if high then
    plain.maximum = exact and math.min(exact, high) or high
  end
  if range.below or range ~= RANGES.float and plain.type ~= "integer" then
    also(plain, { multipleOf = 1, exclusiveMaximum = range.below })
  end
end


-- A format that the policy explains: formats = { phone = "^[+]…$" }.
function Converter:own_format(plain, source, name)
  local own = self.formats[name]
  if not own then
    self:fail(source, "format", ("%s is not known: say it with a pattern, or"
      .. " explain it: gateway.openapi { formats = { [%q] = \"^…$\" } }")
      :format(options.show(name), name))
  end
  also(plain, type(own) == "string" and { pattern = own } or own)
end


function Converter:format(plain, source, key)
  local name, types = self.doc:text(source, key), types_of(source)
  if name == "binary" then
    self:fail(source, key, "binary: no JSON holds bytes: write format: byte"
      .. " (base64), or a body of its own media type")
  end
  local wanted = NUMBER_FORMATS[name] and "number" or "string"
  if types and not has_type(types, wanted) then
    self:fail(source, key, ("%s is a format of %ss: %s"):format(
      options.show(name), wanted, wanted == "number"
        and "write a pattern" or "write type: string"))
  end
  if HINTS[name] then
    return
  elseif RANGES[name] then
    self.ranges[plain] = RANGES[name]
  elseif TEXT_FORMATS[name] or NUMBER_FORMATS[name] then
    plain.format = name
  else
    self.own[plain] = name
  end
end


-- ---- what takes more than one keyword --------------------------------------

-- nullable: true adds null to the type beside it, and to nothing else.
function Converter:nullable(plain, source)
  if self.dialect ~= OAS30 or not self.doc:boolean(source, "nullable") then
    return
  elseif type(source.type) ~= "string" then
    self:fail(source, "nullable", "does nothing without a type beside it:"
      .. " write it there, where type is")
  end
  plain.type = core.array { source.type, "null" }
end


-- The values of the discriminator by which each schema is named, as lists.
function Converter:mapping(source, discriminator, branches)
  local values = {}
  local mapping = self.doc:map(discriminator, "mapping") or {}
  for _, value in ipairs(options.sorted_keys(mapping)) do
    local ref = self.doc:text(mapping, value)
    local target = ref:find("^#/") and ref or "#/components/schemas/" .. ref
    values[target] = values[target] or {}
    table.insert(values[target], value)
  end
  local used = {}
  for i, branch in ipairs(branches) do
    local ref = type(branch) == "table" and branch["$ref"]
    if not ref then
      self:fail(branches, i, "must be a $ref, for its name, beside a"
        .. " discriminator")
    end
    local _, name = self.doc:target(branch)
    used[i] = values[ref] or { name }
    values[ref] = nil
  end
  local left = next(values)
  if left then
    self:fail(source, "discriminator", ("its mapping names %s, which is not"
      .. " among the schemas"):format(left))
  end
  return used
end


-- oneOf with a discriminator: each branch wants its own value of that member.
function Converter:discriminator(plain, source)
  local given = self.doc:map(source, "discriminator")
  if source.discriminator == nil then
    return
  end
  local key = source.oneOf and "oneOf" or source.anyOf and "anyOf"
  local name = given and self.doc:text(given, "propertyName")
  if not key or not name then
    self:fail(source, "discriminator", "is only read beside oneOf or anyOf,"
      .. " with a propertyName: list the schemas there")
  end
  local values = self:mapping(source, given, source[key])
  for i, list in ipairs(values) do
    plain[key][i] = { allOf = core.array {
      plain[key][i],
      { type = "object", required = core.array { name },
        properties = { [name] = { enum = core.array(list) } } },
    } }
  end
end


-- What no request may have, none can be asked for.
local function drop_read_only(plain)
  local left = {}
  for i, name in ipairs(plain.required) do
    if not plain.properties or plain.properties[name] ~= false then
      left[#left + 1] = plain.required[i]
    end
  end
  plain.required = core.array(left)
end


function Converter:finish(plain, source)
  for key, limit in pairs(self.exclusive[plain] or {}) do
    plain[key], plain[limit] = plain[limit], nil
  end
  if self.ranges[plain] then
    narrow(plain, self.ranges[plain])
  end
  if self.own[plain] then
    self:own_format(plain, source, self.own[plain])
  end
  self:nullable(plain, source)
  self:discriminator(plain, source)
  if plain.properties and document.is_list(plain.required) then
    drop_read_only(plain)
  end
end


function Converter:check_about(source, key)
  local types = types_of(source)
  local about = ABOUT[key]
  if about and types and not has_type(types, about) then
    self:fail(source, key, ("is about %ss, so it does nothing beside this"
      .. " type"):format(about))
  end
end


-- A schema, wherever it stands.
function Converter:schema(source, owner, key)
  if type(source) == "boolean" and self.dialect == OAS31 then
    return source
  elseif not document.is_map(source) then
    self:fail(owner, key, "must be a schema, which is a map")
  end
  local plain = {}
  self.places[plain] = source
  for _, word in ipairs(options.sorted_keys(source)) do
    local kind = self.dialect[word]
    if not kind and not word:find("^x%-") then
      self:fail(source, word, OTHERS[word] or OAS31[word] and
        "is of 3.1, not of " .. self.version or "there is no such keyword"
        .. options.suggest(word, self.dialect))
    elseif kind then
      self:check_about(source, word)
      self[kind](self, plain, source, word)
    end
  end
  self:finish(plain, source)
  return plain
end


-- A schema that is referred to: it is converted once, under a name of its own.
function Converter:define(target, name)
  local known = self.names[target]
  if known then
    return known
  end
  local base = name:gsub("[^%w_.-]", "_")
  local unique, count = base, 1
  while self.taken[unique] do
    count = count + 1
    unique = base .. "_" .. count
  end
  self.taken[unique], self.names[target] = true, unique
  self.defs[unique] = self:schema(target, target, nil)
  return unique
end


-- ---- the whole -------------------------------------------------------------

-- The place in the document of what the C side complains about.
function Converter:place(root, path)
  local at, source, key = root, self.places[root], nil
  for step in pointer.steps(path) do
    at = pointer.child(at, step)
    if at == nil then
      break
    end
    if type(at) == "table" and self.places[at] then
      source, key = self.places[at], nil
    else
      key = source[step] ~= nil and step or key
    end
  end
  return source, key
end


function Converter:check(root)
  local ok, message = core.schema_check(core.encode(root))
  if ok then
    return
  end
  local path, why = message:match("^schema at #(.-): (.*)$")
  local source, key = self:place(root, path or "")
  local word = why and why:match("^([%w$]+): ")
  if word and source[word] ~= nil then
    key, why = word, why:sub(#word + 3)
  end
  self:fail(source, key, why or message)
end


--- A converter of one document's schemas.
-- @param api   of gateway.openapi_read
-- @param opts  { open = true where additionalProperties: true may stand,
--              formats = { name = pattern or keywords } }
function M.converter(api, opts)
  return {
    --- A schema of the document as one of ours.
    -- @param owner, key  where it stands: owner[key] is the schema
    convert = function(owner, key)
      local self = setmetatable({
        doc = api.doc, version = api.version, dialect = DIALECTS[api.version],
        open = opts.open, formats = opts.formats or {},
        defs = {}, names = {}, taken = {}, places = {}, lists = {},
        exclusive = {}, ranges = {}, own = {},
      }, Converter)
      local source = owner[key]
      self:check_bounded(source, owner, key)
      local plain = self:schema(source, owner, key)
      if next(self.defs) then
        plain["$defs"] = self.defs
      end
      self:check(plain)
      return plain
    end,
  }
end


-- ---- text ------------------------------------------------------------------

local function type_of_value(value)
  local kind = type(value)
  if kind == "number" then
    return math.type(value) == "integer" and "integer" or "number"
  end
  return (kind == "string" or kind == "boolean") and kind or "null"
end


local text_types


-- Adds to `set` the types that any of a list of schemas names.
local function add_types(set, doc, list, depth)
  for _, branch in ipairs(list) do
    local types = document.is_map(branch) and text_types(doc, branch, depth)
    if not types then
      return nil
    end
    for name in pairs(types) do
      set[name] = true
    end
  end
  return set
end


--- The types a text may be read as, as a set; nil where no schema says.
function text_types(doc, source, depth)
  if depth > 32 then
    return nil
  elseif source.type ~= nil then
    return types_of(source)
  elseif source["$ref"] ~= nil then
    return text_types(doc, doc:target(source), depth + 1)
  elseif source.enum ~= nil or source.const ~= nil then
    local set = {}
    for _, value in ipairs(source.enum and document.items(source.enum)
      or { source.const }) do
      set[type_of_value(value)] = true
    end
    return set
  end
  for _, branch in ipairs(document.items(source.allOf)) do
    local types = document.is_map(branch)
      and text_types(doc, branch, depth + 1)
    if types then
      return types
    end
  end
  local list = document.items(source.oneOf or source.anyOf)
  return list[1] ~= nil and add_types({}, doc, list, depth + 1) or nil
end


function M.text_types(doc, source)
  return text_types(doc, source, 0)
end


return M
