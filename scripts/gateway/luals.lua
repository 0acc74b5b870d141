--- `gateway docs --format luals`: annotations for lua-language-server, by which
-- an editor completes and checks policies and their tests.

local options <const> = require "gateway.options"
local M = {}

local SCHEMA <const> = "gateway.schema|table|function"
local CHECK <const> = "fun(request: request, identity: identity):"
  .. " boolean?, any"
local RESPOND <const> = "fun(request: request, response: gateway.response):"
  .. " gateway.response"
local LOG <const> = "fun(request: request, response: gateway.response,"
  .. " decision: gateway.decision)"
local WORK <const> = "gateway.app|gateway.forward|fun(request: request,"
  .. " identity: identity): any"

-- Types of options, by the words that readers and rows say them with.
local WORDS <const> = {
  { "^a string, or a list", "string|string[]" }, { "^a string$", "string" },
  { "^a string, or request%.stream", "string|gateway.stream" },
  { "^true or false$", "boolean" },
  { "^a whole number.* or ", "integer|string" },
  { "^a whole number", "integer" }, { "^a number", "number" },
  { "^seconds$", "number" }, { "^a size", "integer|string" },
  { "^a list of strings$", "string[]" },
  { "^a table of names and strings$", "table<string, string>" },
  { "^a table", "table" }, { "^a file", "string|string[]" },
  { '^"clientAuth" or "any"$', '"clientAuth"|"any"' },
  { '^"tcp://', "string|gateway.app" }, { '^"" or a path', "string" },
  { '^"', "string|boolean" }, { "^true, false or", "boolean|table" },
  { "^condition or function", "gateway.condition|fun(identity: identity):"
    .. " boolean, any" },
  { "^a schema$", SCHEMA }, { "^gateway%.bytes", "gateway.body" },
  { "^function%(request, identity%), upstream", WORK },
  { "^upstream, or", "gateway.app|gateway.forward" },
}
-- Of options whose words say less than there is to say.
local BY_NAME <const> = {
  check = ("(%s)|(%s)[]"):format(CHECK, CHECK),
  respond = ("(%s)|(%s)[]"):format(RESPOND, RESPOND),
  log = ("(%s)|(%s)[]"):format(LOG, LOG),
  handlers = "table<string, boolean|table|" .. WORK .. ">",
  slots = "table<string, " .. SCHEMA .. ">",
  args = "(string|gateway.slot)[]",
}
local IN_TABLES <const> = {
  ["route: validate"] = {
    path = "table<string, " .. SCHEMA .. ">",
    query = "gateway.unchecked|table<string, " .. SCHEMA .. ">",
    headers = "table<string, " .. SCHEMA .. ">",
  },
}


local function type_of(words)
  local names = words:match("^one of (.*)$")
  if names then
    return (names:gsub("[^, ]+", '"%0"'):gsub(", ", "|"))
  end
  for _, row in ipairs(WORDS) do
    if words:find(row[1]) then
      return row[2]
    end
  end
  return "any"
end


-- ---- tables of options -----------------------------------------------------

local function class_name(spec)
  local name = spec:gsub(": ", "."):gsub(":", ".")
  return (name:find("^gateway%.") and name or "gateway." .. name) .. ".options"
end

-- How an option's value is made of tables that have a spec of their own.
local MADE_OF <const> = {
  certificates = "%s[]", sni = "table<string, %s>", tickets = "boolean|%s",
}


local function option_type(spec, option)
  local inner = spec.name .. ": " .. option.name
  local other = option.help:match("^see (.+)$") or option.help:match(
    "^what: see (.+)$") or option.help:match("^as (gateway%.listen) takes it$")
  if options.specs[inner] then
    return (MADE_OF[option.name] or "%s"):format(class_name(inner))
  elseif other and options.specs[other] then
    return class_name(other)
  end
  local of_spec = IN_TABLES[spec.name]
    and IN_TABLES[spec.name][option.name]
  local vague = option.type:find("^function, or list")
    or option.type == "a table"
  return of_spec or vague and BY_NAME[option.name] or type_of(option.type)
end


local function write_class(out, spec)
  out[#out + 1] = "---@class " .. class_name(spec.name)
  for _, option in ipairs(spec.options) do
    out[#out + 1] = ("---@field %s%s %s %s"):format(option.name,
      option.required and "" or "?", option_type(spec, option),
      option.help .. (option.default and " (default " .. option.default .. ")"
        or ""))
  end
  out[#out + 1] = ""
end


-- ---- functions -------------------------------------------------------------

local KEYWORDS <const> = {
  ["function"] = true, ["end"] = true, ["if"] = true, ["and"] = true,
  ["or"] = true, ["not"] = true, ["nil"] = true, ["in"] = true,
}

-- Types of parameters, by their names; or by those of function and parameter.
local PARAMETERS <const> = {
  path = "string", seconds = "number", status = "integer", n = "integer",
  headers = "table<string, string>", keywords = "table", schema = SCHEMA,
  items = SCHEMA, properties = "table<string, " .. SCHEMA .. ">",
  list = SCHEMA, text = "string", folder = "string", body = "string",
  detail = "string|table", message = "string", name = "string",
  level = '"debug"|"info"|"warn"|"error"', methods = "string|string[]",
  prefix = "string", upstream = "gateway.app", t = "table", target = "string",
  slots = "table<string, string|number|boolean>", command = "string",
  reason = "string", where = "string", stage = '"authorize"|"check"',
  wanted = "table", number = "integer", method = "string", r = "test.r",
  identity = "test.client|identity", function_ = "fun()", max = "integer",
  min = "integer",
  ["number.min"] = "number", ["number.max"] = "number",
  ["bytes.max"] = "integer|string", ["stream.max"] = "integer|string",
  ["bytes...."] = "string", ["stream...."] = "string",
  ["any_of.options"] = "(" .. SCHEMA .. ")[]",
  ["one_of.options"] = "(" .. SCHEMA .. ")[]",
  ["all_of.options"] = "(" .. SCHEMA .. ")[]",
  ["enum.options"] = "any[]", ["slot.value"] = "string|gateway.slot.options",
  ["file_below.options"] = "table",
  ["any.a"] = "gateway.condition", ["any.b"] = "gateway.condition",
  ["all.a"] = "gateway.condition", ["all.b"] = "gateway.condition",
  ["none.a"] = "gateway.condition", ["none.b"] = "gateway.condition",
  ["any...."] = "gateway.condition", ["all...."] = "gateway.condition",
  ["none...."] = "gateway.condition",
  ["env.default"] = "string", ["policy.value"] = "string",
  ["equal.wanted"] = "any",
}


-- The parameters in a list such as "path [, options]": name and optional?
local function split_parameters(flat)
  local list = {}
  for at, word in flat:gmatch("()([%w_.]+)") do
    local before = flat:sub(1, at - 1)
    local _, opened = before:gsub("%[", "")
    local _, closed = before:gsub("%]", "")
    if word == "..." then
      local last = list[#list]
      list[last and not before:find(",%s*$") and #list or #list + 1] = {
        "...", true,
      }
    elseif not before:find("|%s*$") then  -- another form of the one before
      list[#list + 1] = {
        KEYWORDS[word] and word .. "_" or word, opened > closed,
      }
    end
  end
  return list
end


-- The parameters that a signature shows; nil: it is no function.
local function parameters(item)
  local inside = item.signature:match("^%((.*)%)")
  if inside then
    return split_parameters((inside:gsub("%b{}", "options")
      :gsub('%b""', "value"):gsub("…", "...")))
  elseif item.signature == "" then
    return nil
  end
  local many = item.signature:find("{", 1, true)
  return { { many and "options" or "value", false } }
end


-- The type of a parameter of a function: its table of options, if there is one.
local function parameter_type(section, item, full, name)
  local spec = item.specs[1]
  local known = PARAMETERS[full:match("[%w_]+$") .. "." .. name]
  if known then
    return known
  elseif name == "options" and spec then
    local either = item.signature:find('^ "') and "string|" or ""
    return either .. class_name(spec.name)
  elseif spec and item.signature:find(name .. " | {", 1, true) then
    return "string|" .. class_name(spec.name)
  elseif section.name == "id" and name == "value" then
    return "string"
  end
  return PARAMETERS[name] or "any"
end

-- What functions return, by their names; conditions and expectations are alike.
local RETURNS <const> = {
  ["gateway.upstream"] = "gateway.app", ["gateway.command"] = "gateway.command",
  ["gateway.group"] = "gateway.group", ["group:group"] = "gateway.group",
  ["gateway.env"] = "string", ["gateway.now"] = "number",
  ["gateway.time"] = "number", ["gateway.random"] = "string",
  ["gateway.list"] = "table", ["gateway.encode"] = "string",
  ["gateway.decode"] = "any, string?", ["gateway.null"] = "any",
  ["gateway.fetch"] = "gateway.answer?, string?, string?",
  ["app:fetch"] = "gateway.answer?, string?, string?",
  ["app:to"] = "gateway.forward", ["gateway.slot"] = "gateway.slot",
  ["command:run"] = "gateway.result", ["command:stream"] = "gateway.reply",
  ["command:job"] = "gateway.reply", ["gateway.text"] = "gateway.reply",
  ["gateway.json"] = "gateway.reply", ["gateway.response"] = "gateway.reply",
  ["gateway.problem"] = "gateway.reply", ["gateway.bytes"] = "gateway.body",
  ["gateway.stream"] = "gateway.body",
  ["gateway.unchecked"] = "gateway.unchecked",
  ["t.identity"] = "test.client", ["t.request"] = "test.r",
}
for _, name in ipairs {
  "string", "integer", "number", "boolean", "filename", "relative_path", "uuid",
  "date", "datetime", "enum", "const", "array", "object", "any_of", "one_of",
  "all_of", "optional", "commas", "schema", "file_below",
} do
  RETURNS["gateway." .. name] = "gateway.schema"
end


local function returned(section, full)
  return RETURNS[full] or section.name == "id" and "gateway.condition" or "nil"
end


-- Parameters that may be left out before one that may not: "[level,] message"
-- is two forms.
local function write_overload(out, params, returns)
  local kept, last = {}, 0
  for i, param in ipairs(params) do
    last = param[2] and last or i
  end
  for i, param in ipairs(params) do
    if i > last or not param[2] then
      kept[#kept + 1] = ("%s%s: %s"):format(param[1], param[2] and "?" or "",
        param.type)
    else
      param[2] = false
    end
  end
  if #kept < #params then
    out[#out + 1] = ("---@overload fun(%s): %s"):format(
      table.concat(kept, ", "), returns)
  end
end


local function write_function(out, section, name, item, full)
  local params, returns = parameters(item), returned(section, full)
  out[#out + 1] = "---" .. item.text
  if not params then
    out[#out + 1] = ("---@type %s\n%s = nil\n"):format(returns, name)
    return
  end
  for _, param in ipairs(params) do
    param.type = parameter_type(section, item, full, param[1])
  end
  write_overload(out, params, returns)
  local words = {}
  for i, param in ipairs(params) do
    words[i] = param[1]
    out[#out + 1] = ("---@param %s%s %s"):format(param[1],
      param[2] and param[1] ~= "..." and "?" or "", param.type)
  end
  out[#out + 1] = ("---@return %s\nfunction %s(%s) end\n"):format(
    (returns:gsub(", ", "\n---@return ")), name, table.concat(words, ", "))
end


-- ---- a file of annotations -------------------------------------------------

-- Things without fields that a policy may read, and what can be called.
local OPAQUE <const> = {
  "gateway.forward", "gateway.reply", "gateway.body",
  "gateway.unchecked", "gateway.slot", "gateway.stream",
}
local REST <const> = [[
---@class gateway.condition
---@overload fun(identity: identity): boolean, string?

---@class gateway.schema
---@overload fun(keywords: table): gateway.schema

---@class gateway.usage
---@field ms integer from start to end
---@field cpu_ms number of computing
---@field rss integer KiB of memory, at most
]]


local function write_object(out, object)
  out[#out + 1] = "---@class " .. object.class
  for _, field in ipairs(object.fields) do
    out[#out + 1] = ("---@field %s %s %s"):format(field[1], field[2], field[3])
  end
  out[#out + 1] = ""
end


local function write_objects(out, api, name)
  for _, object in ipairs(api.objects) do
    if (object.class:match("^test%.") and "test" or "gateway") == name then
      write_object(out, object)
    end
  end
  if name == "gateway" then
    for _, class in ipairs(OPAQUE) do
      out[#out + 1] = ("---@class %s\n"):format(class)
    end
    out[#out + 1] = REST
  elseif name == "test" then
    out[#out + 1] = "---@class test.client\n"
  end
end


local function write_classes(out, section)
  local seen = {}
  for _, item in ipairs(section.items) do
    for _, spec in ipairs(item.specs) do
      if not seen[spec.name] then
        seen[spec.name] = true
        write_class(out, spec)
      end
    end
  end
end


-- What the methods of a group take is what the module's own functions do.
local function model(known, item, full)
  local own = known[(full:gsub("^group:", "gateway."))]
  return own and full:find("^group:") and setmetatable({ text = item.text },
    { __index = own }) or item
end


local function write_functions(out, section, root)
  local classes, known = {}, {}
  for _, item in ipairs(section.items) do
    for _, full in ipairs(item.names) do
      known[full] = item
    end
  end
  for _, item in ipairs(section.items) do
    for _, full in ipairs(item.names) do
      local object = full:match("^([%w_]+):")
      if object and not classes[object] then
        classes[object] = true
        out[#out + 1] = ("---@class gateway.%s\nlocal %s = {}\n"):format(object,
          object)
      end
      write_function(out, section, object and full or root .. "."
        .. full:match("[^.]+$"), model(known, item, full), full)
    end
  end
end


--- The annotations of one module: a file that only an editor reads.
-- @param api   reference.api()
-- @param name  gateway, id or test
function M.write(api, name)
  local known = {}
  for _, section in ipairs(api.sections) do
    known[section.name] = section
  end
  local section = known[name]
  if not section then
    return nil, ("there are no annotations of '%s'%s"):format(name,
      options.suggest(name, known))
  end
  local root = section.module:match("[%w_]+$")
  local out = { "---@meta " .. section.module .. "\n" }
  write_objects(out, api, name)
  write_classes(out, section)
  out[#out + 1] = ("---@class %s\nlocal %s = {}\n"):format(section.module, root)
  write_functions(out, section, root)
  out[#out + 1] = "return " .. root
  return table.concat(out, "\n") .. "\n"
end


return M
