--- Shapes: JSON Schema (draft 2020-12) as Lua tables, with short constructors.
--
-- A schema is a plain table of JSON Schema keywords, or one of the
-- constructors here. Each constructor is itself a schema (`gateway.boolean`)
-- and may be called to narrow it (`gateway.integer(1, 100)`); a table as its
-- last argument adds keywords (`gateway.string { pattern = "^[a-z]+$" }`).
--
-- Lua has one kind of table where JSON has arrays and objects. In a schema the
-- keyword decides: `required` takes a list, `properties` takes names. So `{}`
-- is never ambiguous here.

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local M = {}

local MAX_DEPTH <const> = 64

-- The metatables by which wrappers are told from plain schemas.
local CONSTRUCTOR <const> = {}
local OPTIONAL <const> = {}
local FILE <const> = {}
local BODY <const> = {}
local UNCHECKED <const> = {}
local COMMAS <const> = {}

-- What each keyword's value is made of; see the converters below.
local KEYWORDS <const> = {
  type = "types", enum = "values", const = "value", default = "value",
  multipleOf = "number", minimum = "number", maximum = "number",
  exclusiveMinimum = "number", exclusiveMaximum = "number",
  minLength = "count", maxLength = "count", pattern = "text", format = "text",
  items = "schema", prefixItems = "schemas", contains = "schema",
  minItems = "count", maxItems = "count", uniqueItems = "boolean",
  minContains = "count", maxContains = "count", unevaluatedItems = "schema",
  properties = "named", patternProperties = "named",
  additionalProperties = "schema", unevaluatedProperties = "schema",
  propertyNames = "schema", required = "texts",
  minProperties = "count", maxProperties = "count",
  dependentRequired = "named_texts", dependentSchemas = "named",
  allOf = "schemas", anyOf = "schemas", oneOf = "schemas", ["not"] = "schema",
  ["if"] = "schema", ["then"] = "schema", ["else"] = "schema",
  ["$ref"] = "text", ["$id"] = "text", ["$anchor"] = "text",
  ["$defs"] = "named", ["$schema"] = "text", ["$comment"] = "text",
  title = "text", description = "text", examples = "values",
  deprecated = "boolean", readOnly = "boolean", writeOnly = "boolean",
}

-- Words of other drafts and of OpenAPI, and what to write instead.
local OTHERS <const> = {
  definitions = "write $defs", nullable = 'write type = { "…", "null" }',
  dependencies = "write dependentRequired or dependentSchemas",
  additionalItems = "write items beside prefixItems",
  id = "write $id", optional = "wrap the schema in gateway.optional(…)",
  min = "write minimum, minLength or minItems",
  max = "write maximum, maxLength or maxItems",
  ["$dynamicRef"] = "it is not supported: write $ref",
  ["$recursiveRef"] = "it is not supported: write $ref",
  contentEncoding = 'nothing looks into a string: write format = "byte"',
  contentMediaType = "nothing looks into a string: take it out",
  contentSchema = "nothing looks into a string: take it out",
}

local TYPES <const> = {
  string = true, integer = true, number = true, boolean = true,
  array = true, object = true, null = true,
}


-- One conversion: what is being read, for its errors.
local Reader = {}
Reader.__index = Reader


function Reader:fail(pointer, message)
  if #pointer > 100 then
    pointer = pointer:sub(1, 60) .. "…"
  end
  local place = pointer == "" and "" or " at " .. pointer
  options.fail(self.at, self.what .. place, message)
end


function Reader:list(value, pointer, each)
  if type(value) ~= "table" then
    self:fail(pointer, "must be a list, not " .. options.show(value))
  end
  local list = {}
  for key in pairs(value) do
    if math.type(key) ~= "integer" or key < 1 or key > #value then
      self:fail(pointer, "must be a list, without names or holes")
    end
  end
  for i = 1, #value do
    list[i] = each(self, value[i], pointer .. "/" .. i - 1)
  end
  return core.array(list)
end


function Reader:map(value, pointer, each)
  if type(value) ~= "table" then
    self:fail(pointer, "must be a table of names, not " .. options.show(value))
  end
  local map = {}
  for _, name in ipairs(options.sorted_keys(value)) do
    if type(name) ~= "string" then
      self:fail(pointer, "must have names as keys, not a list")
    end
    map[name] = each(self, value[name], pointer .. "/" .. name)
  end
  return map
end


function Reader:text(value, pointer)
  if type(value) ~= "string" then
    self:fail(pointer, "must be a string, not " .. options.show(value))
  end
  return value
end


function Reader:boolean(value, pointer)
  if type(value) ~= "boolean" then
    self:fail(pointer, "must be true or false, not " .. options.show(value))
  end
  return value
end


function Reader:number(value, pointer)
  if not math.type(value) or value ~= value or math.abs(value) == math.huge then
    self:fail(pointer, "must be a number, not " .. options.show(value))
  end
  return math.tointeger(value) or value
end


function Reader:count(value, pointer)
  local count = math.type(value) and math.tointeger(value)
  if not count or count < 0 then
    self:fail(pointer, "must be a whole number from 0, not "
      .. options.show(value))
  end
  return count
end


function Reader:types(value, pointer)
  if type(value) == "table" then
    return self:list(value, pointer, self.types)
  end
  if not TYPES[value] then
    self:fail(pointer, ("no type %s%s"):format(options.show(value),
      options.suggest(tostring(value), TYPES)))
  end
  return value
end


-- Any JSON value: the encoder objects to what JSON cannot say.
function Reader:value(value, pointer)
  if not pcall(core.encode, value) then
    self:fail(pointer, "is no JSON value")
  end
  return value
end


function Reader:values(value, pointer)
  return self:list(value, pointer, self.value)
end


function Reader:texts(value, pointer)
  return self:list(value, pointer, self.text)
end


function Reader:named(value, pointer)
  return self:map(value, pointer, self.schema)
end


function Reader:named_texts(value, pointer)
  return self:map(value, pointer, self.texts)
end


function Reader:schemas(value, pointer)
  local list = self:list(value, pointer, self.schema)
  if #list == 0 then
    self:fail(pointer, "must hold at least one schema")
  end
  return list
end


function Reader:keyword(key, value, pointer)
  local kind = KEYWORDS[key]
  if kind then
    return self[kind](self, value, pointer .. "/" .. key)
  end
  if type(key) ~= "string" then
    self:fail(pointer, "a schema is a table of keywords, not a list")
  end
  local mend = OTHERS[key] and ": " .. OTHERS[key]
    or options.suggest(key, KEYWORDS)
  self:fail(pointer, ("unknown keyword '%s'%s"):format(key, mend))
end


-- What stands where a schema should: told by its metatable.
function Reader:misplaced(value, pointer)
  local kind = getmetatable(value)
  if kind == OPTIONAL then
    self:fail(pointer, "gateway.optional goes around a query parameter, a"
      .. " header, or a property in gateway.object { … }")
  elseif kind == BODY then
    self:fail(pointer, "gateway.bytes and gateway.stream go into"
      .. " validate.body")
  elseif kind == UNCHECKED then
    self:fail(pointer, "gateway.unchecked is for validate.query alone")
  elseif kind == COMMAS then
    self:fail(pointer, "gateway.commas goes around the whole schema of a query"
      .. " parameter or a header")
  end
end


function Reader:schema(value, pointer)
  if type(value) == "boolean" then
    return value
  end
  if type(value) ~= "table" then
    self:fail(pointer, "must be a schema, such as gateway.integer(1, 10),"
      .. " not " .. options.show(value))
  end
  self:misplaced(value, pointer)
  if getmetatable(value) == FILE then
    value = value.schema
  end
  self.depth = self.depth + 1
  if self.depth > MAX_DEPTH then
    self:fail(pointer, "nests deeper than 64 levels, or contains itself")
  end
  local plain = {}
  for _, key in ipairs(options.sorted_keys(value)) do
    plain[key] = self:keyword(key, value[key], pointer)
  end
  self.depth = self.depth - 1
  return plain
end


--- Reads a schema: a plain table for JSON, checked by the C side's compiler.
-- @param at    "file:line" for errors, or nil for the caller's place
-- @param what  what the schema is for: "gateway.post: validate.json"
function M.read(at, what, value)
  local reader = setmetatable({ at = at, what = what, depth = 0 }, Reader)
  local plain = reader:schema(value, "")
  local ok, message = core.schema_check(core.encode(plain))
  if not ok then
    options.fail(at, what, message)
  end
  return plain
end


-- Each type a schema of text may have; nil and a message where it names none.
local function text_types(plain)
  local types = type(plain) == "table" and plain.type
  if not types then
    return nil, "needs a type: text is read as the type its schema names"
  end
  return type(types) == "table" and types or { types }
end


--- Reads a schema for text (a capture, a parameter, a header, a slot), which
-- must name its type.
-- @param arrays  true where a value may repeat
function M.read_text(at, what, value, arrays)
  local plain = M.read(at, what, value)
  local types, message = text_types(plain)
  if not types then
    options.fail(at, what, message)
  end
  for _, name in ipairs(types) do
    if name == "object" or name == "array" and not arrays then
      options.fail(at, what, ("cannot be of type %s: it is one text"):format(
        name))
    end
  end
  return plain
end


-- The schema of an input, and whether it is a list in one text.
local function read_list(at, what, value)
  if getmetatable(value) == COMMAS then
    return M.read_text(at, what, value.schema, true), true
  end
  return M.read_text(at, what, value, true), nil
end


--- Reads an input that may be optional.
-- @return { schema =, optional =, default =, commas = } as the configuration
--         wants it
function M.read_input(at, what, value)
  if getmetatable(value) ~= OPTIONAL then
    local plain, commas = read_list(at, what, value)
    return { schema = plain, optional = false, commas = commas }
  end
  local plain, commas = read_list(at, what, value.schema)
  local input = {
    schema = plain, optional = true, default = value.default, commas = commas,
  }
  if value.default ~= nil then
    M.test_default(at, what, input.schema, value.default)
  end
  return input
end


--- Refuses a default that its own schema would refuse.
function M.test_default(at, what, plain, default)
  local encoded, text = pcall(core.encode, default)
  if not encoded then
    options.fail(at, what, "the default is no JSON value")
  end
  local ok, message = core.schema_test(core.encode(plain), text)
  if not ok then
    options.fail(at, what, ("the default %s breaks its own schema: %s"):format(
      text, message))
  end
end


local texts = setmetatable({}, { __mode = "k" })


--- The JSON text of a schema. The C side asks for it in `raw:check(schema)`.
function M.text(value)
  local text = texts[value]
  if not text then
    text = core.encode(M.read(nil, "schema", value))
    texts[value] = text
  end
  return text
end


--- Formats that leave no room for anything but what they are: not for a
-- program's own syntax, either.
M.NARROW_FORMATS = {
  uuid = true, date = true, time = true, ["date-time"] = true,
  duration = true, ipv4 = true, ipv6 = true, hostname = true,
}


--- True where a plain schema's type lets a text in.
function M.may_be_string(plain)
  local types = type(plain.type) == "table" and plain.type or { plain.type }
  for _, name in ipairs(types) do
    if name == "string" then
      return true
    end
  end
  return #types == 0
end


--- True where `value` is gateway.file_below(…).
function M.is_file(value)
  return getmetatable(value) == FILE
end


--- True where `value` is gateway.bytes(…) or gateway.stream(…).
function M.is_body(value)
  return getmetatable(value) == BODY
end


--- True where `value` is gateway.optional(…).
function M.is_optional(value)
  return getmetatable(value) == OPTIONAL
end


--- True where `value` is gateway.unchecked.
function M.is_unchecked(value)
  return getmetatable(value) == UNCHECKED
end


-- ---- constructors ----------------------------------------------------------

-- The call of a constructor: a copy of its keywords, then those that its
-- positional arguments stand for, then those of a table.
local function narrow(self, ...)
  local kind = getmetatable(self)
  local made = {}
  for key, value in pairs(self) do
    made[key] = value
  end
  local count = select("#", ...)
  for i = 1, count do
    local argument = select(i, ...)
    if type(argument) == "table" and i == count then
      for key, value in pairs(argument) do
        made[key] = value
      end
    elseif argument ~= nil then
      if not kind.names[i] then
        options.fail(nil, "gateway." .. kind.name, kind.usage)
      end
      made[kind.names[i]] = argument
    end
  end
  local low, high = made[kind.names[1]], made[kind.names[2]]
  if math.type(low) and math.type(high) and low > high then
    options.fail(nil, "gateway." .. kind.name,
      ("no value is from %s to %s"):format(low, high))
  end
  return setmetatable(made, CONSTRUCTOR)
end


-- A constructor: a schema that can be called. `names` are the keywords that
-- its positional arguments stand for.
local function constructor(name, names, schema)
  local usage = #names == 0 and "takes only a table of JSON Schema keywords"
    or ("takes %s and a table of JSON Schema keywords"):format(
      table.concat(names, ", "))
  M[name] = setmetatable(schema, {
    __call = narrow, name = name, names = names, usage = usage,
  })
end

--- string([min [, max]] [, keywords]): a string of min to max characters.
constructor("string", { "minLength", "maxLength" }, { type = "string" })

--- integer([min [, max]] [, keywords]): a whole number, exact to 64 bits.
constructor("integer", { "minimum", "maximum" }, { type = "integer" })

--- number([min [, max]] [, keywords]): any JSON number.
constructor("number", { "minimum", "maximum" }, { type = "number" })

--- boolean: true or false.
constructor("boolean", {}, { type = "boolean" })

--- filename: one name of letters, digits, ".", "_", "-" that begins with none
-- of "." and "-".
constructor("filename", {}, {
  type = "string", minLength = 1, maxLength = 255,
  pattern = "^[A-Za-z0-9_][A-Za-z0-9._-]*$",
})

--- relative_path: such names (also with "~", "@", "+", "=", "," after the
-- first character) with "/" between them; so no "..", no hidden file, nothing
-- absolute.
constructor("relative_path", {}, {
  type = "string", minLength = 1, maxLength = 1024,
  pattern = "^[A-Za-z0-9_][A-Za-z0-9._~@+=,-]*"
    .. "(/[A-Za-z0-9_][A-Za-z0-9._~@+=,-]*)*$",
})

--- uuid: 8-4-4-4-12 hexadecimal digits.
constructor("uuid", {}, { type = "string", format = "uuid", maxLength = 36 })

--- date: "2026-11-25".
constructor("date", {}, { type = "string", format = "date", maxLength = 10 })

--- datetime: "2026-11-25T03:10:44Z" (RFC 3339).
constructor("datetime", {}, {
  type = "string", format = "date-time", maxLength = 64,
})


-- The type names that a list of values, or of schemas, has between them, so
-- that the schema can read text; nil where one has none.
local function union(list, type_of)
  local types, seen = {}, {}
  for _, item in ipairs(list) do
    local kind = type_of(item)
    for _, name in ipairs(type(kind) == "table" and kind or { kind }) do
      if not seen[name] then
        seen[name] = true
        types[#types + 1] = name
      end
    end
    if not kind then
      return nil
    end
  end
  return #types == 1 and types[1] or types
end


local function type_of_value(value)
  local kind = type(value)
  if kind == "number" then
    return math.tointeger(value) and "integer" or "number"
  end
  return (kind == "string" or kind == "boolean") and kind or nil
end


local function type_of_schema(value)
  if getmetatable(value) == FILE then
    return "string"
  end
  return type(value) == "table" and value.type or nil
end


--- enum { "a", "b" }: one of the values.
function M.enum(...)
  local values = ...
  if type(values) ~= "table" then
    values = { ... }
  end
  if #values == 0 then
    options.fail(nil, "gateway.enum", 'takes a list: gateway.enum { "a", "b" }')
  end
  return setmetatable({ type = union(values, type_of_value), enum = values },
    CONSTRUCTOR)
end


--- const(value): exactly that value.
function M.const(value)
  if value == nil then
    options.fail(nil, "gateway.const", 'takes a value: gateway.const "v1"')
  end
  return setmetatable({ type = type_of_value(value), const = value },
    CONSTRUCTOR)
end


--- array(items [, min [, max]] [, keywords]): a list; in a query, a parameter
-- that may repeat.
function M.array(items, ...)
  if items == nil then
    options.fail(nil, "gateway.array",
      "takes the schema of its items: gateway.array(gateway.integer, 1, 10)")
  end
  local base = setmetatable({ type = "array", items = items }, {
    name = "array", names = { "minItems", "maxItems" },
    usage = "takes items, minItems, maxItems and a table of keywords",
  })
  return narrow(base, ...)
end


--- object(properties [, keywords]): an object with these properties, each
-- required unless wrapped in gateway.optional, and no others.
function M.object(properties, keywords)
  if type(properties) ~= "table" then
    options.fail(nil, "gateway.object",
      "takes a table of properties: gateway.object { name = gateway.string }")
  end
  local made = { type = "object", properties = {}, required = {} }
  for _, name in ipairs(options.sorted_keys(properties)) do
    local value = properties[name]
    if getmetatable(value) == OPTIONAL then
      if value.default ~= nil then
        options.fail(nil, "gateway.object", ("property '%s': a body is"
          .. " passed on as it came, so no default can be filled in: leave it"
          .. " out here, and write `request.json.%s or %s` in the hook"):format(
          name, name, options.show(value.default)))
      end
      value = value.schema
    else
      table.insert(made.required, name)
    end
    made.properties[name] = value
  end
  for key, value in pairs(keywords or {}) do
    made[key] = value
  end
  return setmetatable(made, CONSTRUCTOR)
end


-- anyOf, allOf, oneOf: a keyword over a list of schemas.
local function combination(name, keyword)
  return function(list, ...)
    if type(list) ~= "table" or #list == 0 or select("#", ...) > 0 then
      options.fail(nil, "gateway." .. name, ("takes a list of schemas:"
        .. " gateway.%s { gateway.integer, gateway.boolean }"):format(name))
    end
    local types = keyword ~= "allOf" and union(list, type_of_schema) or nil
    return setmetatable({ type = types, [keyword] = list }, CONSTRUCTOR)
  end
end

--- any_of { … }: at least one of the schemas holds.
M.any_of = combination("any_of", "anyOf")

--- one_of { … }: exactly one of the schemas holds.
M.one_of = combination("one_of", "oneOf")

--- all_of { … }: every one of the schemas holds.
M.all_of = combination("all_of", "allOf")


--- optional(schema [, default]): an input that may be missing.
function M.optional(schema, default)
  if getmetatable(schema) ~= COMMAS then
    M.read(nil, "gateway.optional", schema)
  end
  return setmetatable({ schema = schema, default = default }, OPTIONAL)
end


--- commas(list): a list in one text, its items between commas ("a,b,c").
function M.commas(list)
  local plain = M.read(nil, "gateway.commas", list)
  if plain.type ~= "array" then
    options.fail(nil, "gateway.commas", "takes a list:"
      .. " gateway.commas(gateway.array(gateway.integer, 1, 10))")
  end
  return setmetatable({ schema = list }, COMMAS)
end


--- schema(text): a schema written as JSON.
function M.schema(text)
  local value, message = nil, "takes a schema as JSON text"
  if type(text) == "string" then
    value, message = core.decode(text)
  end
  if type(value) ~= "table" then
    options.fail(nil, "gateway.schema", message or "is not a JSON object")
  end
  return value
end


local FILE_OPTIONS <const> = { stdin = true }


--- file_below(folder [, options]): a slot whose value names a regular file
-- below `folder`; no link of any kind is followed.
-- @param options  pattern and other JSON Schema keywords for the name (default:
--                 gateway.filename), and stdin = true: the program reads it as
--                 standard input, and the slot stands in no argument
function M.file_below(folder, opts)
  if not options.text(folder) then
    options.fail(nil, "gateway.file_below", "takes a folder: gateway.file_below"
      .. '("/var/log/app", { pattern = "^[a-z]+[.]log$" })')
  end
  local keywords = {}
  for key, value in pairs(opts or {}) do
    if not FILE_OPTIONS[key] then
      keywords[key] = value
    end
  end
  local stdin = opts and opts.stdin or false
  if type(stdin) ~= "boolean" then
    options.fail(nil, "gateway.file_below", "stdin must be true or false")
  end
  local schema = keywords.pattern
    and { type = "string", minLength = 1, maxLength = 255 } or M.filename
  local made = setmetatable({
    below = core.absolute(folder), stdin = stdin,
    schema = narrow(setmetatable(schema, getmetatable(M.filename)), keywords),
  }, FILE)
  M.read(nil, "gateway.file_below", made)
  return made
end


-- gateway.bytes and gateway.stream: a body that is no JSON.
local function body(kind, max, ...)
  local bytes, wanted
  if max ~= nil or kind == "stream" then
    bytes, wanted = options.size(max)
    if not bytes then
      options.fail(nil, "gateway." .. kind, ("takes its limit, %s, not %s")
        :format(wanted, options.show(max)))
    end
  end
  local types = {}
  for i, media in ipairs { ... } do
    if type(media) ~= "string" or not media:find("^[%w.+-]+/[%w.+-]+$") then
      options.fail(nil, "gateway." .. kind, ("no media type %s: write one such"
        .. ' as "application/octet-stream"'):format(options.show(media)))
    end
    types[i] = media:lower()
  end
  return setmetatable({ kind = kind, max = bytes, types = core.array(types) },
    BODY)
end


--- bytes([max] [, type …]): a buffered body of at most `max` bytes and one of
-- the media types; any type where none is given.
function M.bytes(max, ...)
  return body("bytes", max, ...)
end


--- stream(max [, type …]): a body that flows through and is not validated.
function M.stream(max, ...)
  return body("stream", max, ...)
end


--- unchecked: `validate.query = gateway.unchecked` forwards any query.
M.unchecked = setmetatable({}, UNCHECKED)


return M
