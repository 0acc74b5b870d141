--- Requests by an OpenAPI document: for `gateway audit --live`.
--
-- An operation becomes a list of slots, which are its parameters, the texts in
-- its JSON body and the fields of its form, each with a value that its schema
-- takes; build() makes the request, with another value in one of them. This
-- reads documents that are not strict, too: what a schema does not say is made
-- up.

local core <const> = require "gateway.core"
local document <const> = require "gateway.document"
local options <const> = require "gateway.options"
local pattern <const> = require "gateway.pattern"
local strings <const> = require "gateway.strings"
local M = {}

local MAX_DEPTH <const> = 8
local SEED <const> = 42
local OPTIONAL_DEPTH <const> = 3  -- how deep what may be left out is put in
local SAMPLES <const> = {
  date = "2024-02-29", time = "12:30:00Z", ["date-time"] =
  "2024-02-29T12:30:00Z", duration = "P1D", ipv4 = "192.0.2.1",
  uuid = "0b6d3a52-7f7e-4b2c-9b0e-3e5a3f0d9c11", ipv6 = "2001:db8::1",
  hostname = "host.example.org", email = "a@example.org", byte = "aGk=",
  uri = "https://example.org/", ["uri-reference"] = "/x",
}
local X <const> = "%x%x%x%x"
local FORMS <const> = {  -- texts that are not so are none of that format
  date = "^%d%d%d%d%-%d%d%-%d%d$",
  ["date-time"] = "^%d%d%d%d%-%d%d%-%d%d[Tt ]%d%d:%d%d:%d%d",
  ipv4 = "^%d+%.%d+%.%d+%.%d+$", ipv6 = "^[%x:.]+$",
  uuid = "^" .. X .. X .. ("%-" .. X):rep(4) .. X .. X .. "$",
  hostname = "^[%w.-]+$", byte = "^[%w+/]*=*$",
}
local WORDS <const> = {
  "type", "enum", "const", "pattern", "format", "minLength", "maxLength",
  "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "items",
  "example", "default", "readOnly",
}


-- ---- what is said about a value --------------------------------------------

local function gather(doc, source, facts, depth)
  if not document.is_map(source) or depth > MAX_DEPTH then
    return facts
  end
  for _, word in ipairs(WORDS) do
    if source[word] ~= nil and facts[word] == nil then
      facts[word] = source[word]
    end
  end
  for key, property in pairs(document.is_map(source.properties)
    and source.properties or {}) do
    facts.properties[key] = facts.properties[key] or property
  end
  for _, key in ipairs(document.items(source.required)) do
    facts.required[key] = true
  end
  if source["$ref"] ~= nil then
    gather(doc, doc:target(source), facts, depth + 1)
  end
  for _, branch in ipairs(document.items(source.allOf)) do
    gather(doc, branch, facts, depth + 1)
  end
  for _, word in ipairs { "oneOf", "anyOf" } do
    gather(doc, document.items(source[word])[1], facts, depth + 1)
  end
  return facts
end


local function kind_of(facts)
  local types = document.is_list(facts.type) and facts.type or { facts.type }
  for _, name in ipairs(types) do
    if name ~= "null" then
      return name
    end
  end
  return next(facts.properties) and "object" or facts.items and "array"
    or "string"
end


-- All that a schema says; of anyOf and oneOf, the first branch.
local function facts_of(doc, source)
  local facts = gather(doc, source, { properties = {}, required = {} }, 0)
  facts.kind = kind_of(facts)
  if facts.kind == "string" and type(facts.pattern) == "string" then
    local p = pattern.new(facts.pattern, {
      minLength = math.tointeger(facts.minLength),
      maxLength = math.tointeger(facts.maxLength),
    })
    facts.judge = p and not p.why and p or nil
  end
  return facts
end


-- ---- values that it takes --------------------------------------------------

local function text_of(facts)
  local made = SAMPLES[facts.format]
  if facts.judge and not (made and facts.judge:accepts(made)) then
    return facts.judge:sample(strings.sequence(SEED), 12)
      or facts.judge:shortest() or "a"
  end
  local least = math.tointeger(facts.minLength) or 0
  return made or ("a"):rep(math.min(math.max(least, 1), 10000))
end


-- The bounds of a number, and whether each is itself no value (in 3.0 that is
-- true or false, in 3.1 a bound of its own).
local function bounds_of(facts)
  local low, high = tonumber(facts.minimum), tonumber(facts.maximum)
  local above, below = facts.exclusiveMinimum, facts.exclusiveMaximum
  low = type(above) == "number" and math.max(above, low or above) or low
  high = type(below) == "number" and math.min(below, high or below) or high
  return low, high, above == true or above == low, below == true
    or below == high
end


local function number_of(facts)
  local low, high, above, below = bounds_of(facts)
  local step = facts.kind == "integer" and 1 or high and low
    and (high - low) / 2 or 1
  local value = low and low + (above and step or 0) or high
    and high - (below and step or 0) or 1
  value = facts.kind == "integer" and math.ceil(value) or value
  return math.tointeger(value) or value
end


local value_of  -- a schema's value, below


local function object_of(doc, facts, all, depth)
  local object = {}
  for _, key in ipairs(options.sorted_keys(facts.properties)) do
    if facts.required[key] or all and depth < OPTIONAL_DEPTH then
      local part = facts_of(doc, facts.properties[key])
      if part.readOnly ~= true and depth < MAX_DEPTH then
        object[key] = value_of(doc, part, all, depth + 1)
      end
    end
  end
  return object
end


-- @param all  false: of objects only what is required
function value_of(doc, facts, all, depth)
  local given = facts.example
  if given == nil then
    given = facts.default
  end
  if given ~= nil and given ~= core.null then
    return given
  elseif facts.const ~= nil then
    return facts.const
  elseif document.items(facts.enum)[1] ~= nil then
    return facts.enum[1]
  elseif facts.kind == "object" then
    return object_of(doc, facts, all, depth)
  elseif facts.kind == "array" then
    return core.array { value_of(doc, facts_of(doc, facts.items), all,
      depth + 1) }
  elseif facts.kind == "boolean" then
    return true
  elseif facts.kind == "string" then
    return text_of(facts)
  end
  return number_of(facts)
end


-- ---- what it does not take -------------------------------------------------

local function is_among(list, value)
  for _, one in ipairs(list) do
    if tostring(one) == value then
      return true
    end
  end
  return false
end


local function out_of_bounds(facts, value)
  local low, high, above, below = bounds_of(facts)
  return low and (value < low or above and value == low)
    or high and (value > high or below and value == high)
end


--- Why the document forbids a text in a slot, or nil: it may not.
function M.forbids(slot, value)
  local facts = slot.facts
  local length = utf8.len(value) or #value
  if document.is_list(facts.enum) then
    return not is_among(facts.enum, value) and "enum" or nil
  elseif facts.const ~= nil then
    return tostring(facts.const) ~= value and "const" or nil
  elseif facts.kind == "integer" or facts.kind == "number" then
    local number = tonumber(value)
    if not number or facts.kind == "integer"
      and not math.tointeger(number) then
      return "type: " .. facts.kind
    end
    return out_of_bounds(facts, number) and "its bounds" or nil
  elseif facts.kind == "boolean" then
    return value ~= "true" and value ~= "false" and "type: boolean" or nil
  elseif length > (tonumber(facts.maxLength) or math.huge) then
    return "maxLength"
  elseif facts.judge and facts.judge:accepts(value) == false then
    return "pattern"
  end
  local form = FORMS[facts.format]
  return form and not value:find(form) and "format: " .. facts.format or nil
end


-- ---- slots -----------------------------------------------------------------

-- The schema of a parameter: in Swagger 2.0 it is the parameter itself.
local function schema_of(api, source)
  local schema = api.version ~= "2.0" and source.schema or nil
  if document.is_map(source.content) then
    local _, media = next(source.content)
    schema = document.is_map(media) and media.schema or schema
  end
  return schema or source
end


local function plain_text(value)
  if type(value) == "table" then
    value = value[1]
  end
  return value ~= nil and value ~= core.null and tostring(value) or ""
end


local function parameter_slot(api, parameter)
  local source = parameter.source
  local facts = facts_of(api.doc, schema_of(api, source))
  local value = source.example
  if value == nil and document.is_map(source.examples) then
    local _, example = next(source.examples)
    value = document.is_map(example) and example.value or nil
  end
  if value == nil then
    value = value_of(api.doc, facts, true, 0)
  end
  if facts.kind == "array" then
    facts = facts_of(api.doc, facts.items)
  end
  return {
    place = parameter.place, name = parameter.name, facts = facts,
    required = parameter.required or parameter.place == "path",
    value = plain_text(value), at = api.doc:at(source),
    is_file = source.type == "file",
    what = (parameter.place == "formData" and "form field "
      or parameter.place .. " parameter ") .. options.show(parameter.name),
  }
end


-- Adds a slot for each text of a JSON body.
local function body_slots(api, slots, source, value, path, at)
  local facts = facts_of(api.doc, source)
  if #path > MAX_DEPTH then
    return
  elseif type(value) == "string" then
    slots[#slots + 1] = {
      place = "body", path = path, facts = facts, value = value, at = at,
      what = "body field " .. options.show(table.concat(path, ".")),
    }
  elseif document.is_list(value) then
    local below = table.move(path, 1, #path, 1, {})
    below[#below + 1] = 1
    body_slots(api, slots, facts.items, value[1], below, at)
  elseif type(value) == "table" then
    for _, key in ipairs(options.sorted_keys(value)) do
      local below = table.move(path, 1, #path, 1, {})
      below[#below + 1] = key
      body_slots(api, slots, facts.properties[key], value[key], below,
        document.is_map(facts.properties[key])
          and api.doc:at(facts.properties[key]) or at)
    end
  end
end


-- Adds a slot for each field of a form that is described as an object (3.x).
local function form_slots(api, slots, source, at)
  local facts = facts_of(api.doc, source)
  for _, key in ipairs(options.sorted_keys(facts.properties)) do
    local part = facts_of(api.doc, facts.properties[key])
    local inner = part.kind == "array" and facts_of(api.doc, part.items) or part
    local value = value_of(api.doc, part, true, 0)
    if part.kind == "object" then
      value = core.encode(value)
    end
    slots[#slots + 1] = {
      place = "formData", name = key, facts = inner,
      required = facts.required[key], value = plain_text(value),
      is_file = part.format == "binary",
      at = document.is_map(facts.properties[key])
        and api.doc:at(facts.properties[key]) or at,
      what = "form field " .. options.show(key),
    }
  end
end

local FORM <const> = "application/x-www-form-urlencoded"
local MULTIPART <const> = "multipart/form-data"


-- The body that is sent: JSON, if there is such a one, else a form.
local function media_of(operation)
  local form
  for _, media in ipairs(operation.body and operation.body.media or {}) do
    if media.type:find "/json$" or media.type:find "%+json$" then
      return media
    elseif media.type == FORM or media.type == MULTIPART then
      form = form or media
    end
  end
  return form
end


-- In 2.0 each field of a form is a parameter, and files need multipart.
local function old_form(api, read, operation)
  local fields = operation.body and operation.body.fields or {}
  local consumes = operation.source.consumes
  for _, parameter in ipairs(fields) do
    local slot = parameter_slot(api, parameter)
    read.form = (slot.is_file or read.form == MULTIPART) and MULTIPART or FORM
    table.insert(read.slots, slot)
  end
  if #fields > 0 and document.items(consumes)[1] == MULTIPART then
    read.form = MULTIPART
  end
end


--- An operation of a document as slots. @param api  of openapi_read
function M.read(api, operation)
  local read = {
    method = operation.method, path = operation.path, at = operation.at,
    name = operation.method .. " " .. operation.path, slots = {}, all = true,
  }
  for _, parameter in ipairs(operation.parameters) do
    table.insert(read.slots, parameter_slot(api, parameter))
  end
  local media = media_of(operation)
  old_form(api, read, operation)
  if not read.form and media and (media.type == FORM
    or media.type == MULTIPART) then
    read.form = media.type
    form_slots(api, read.slots, media.schema, api.doc:at(media.owner,
      media.key))
  elseif not read.form and media then
    local facts = facts_of(api.doc, media.schema)
    read.media = media.type
    read.full = value_of(api.doc, facts, true, 0)
    read.least = value_of(api.doc, facts, false, 0)
    body_slots(api, read.slots, media.schema, read.full, {}, api.doc:at(
      media.owner, media.key))
  end
  return read
end


-- ---- requests --------------------------------------------------------------

-- A copy of a body with another value at a path.
local function put(value, path, text, from)
  if from > #path then
    return text
  elseif type(value) ~= "table" then
    value = {}
  end
  local copy = document.is_list(value) and core.array {} or {}
  for key, part in pairs(value) do
    copy[key] = part
  end
  copy[path[from]] = put(copy[path[from]], path, text, from + 1)
  return copy
end


-- A boundary that no probe holds.
local BOUNDARY <const> = "gateway-audit-7e1d0c5a"


local function form_of(read, fields)
  local parts = {}
  for i, field in ipairs(fields) do
    if read.form == FORM then
      parts[i] = strings.percent(field.name) .. "="
        .. strings.percent(field.value)
    else
      local name = field.name:gsub("[%c\"]", "_")
      parts[i] = ("--%s\r\nContent-Disposition: form-data; name=\"%s\"%s")
        :format(BOUNDARY, name, field.is_file
        and "; filename=\"gwaudit.txt\"" or "") .. "\r\n\r\n" .. field.value
        .. "\r\n"
    end
  end
  if read.form == FORM then
    return table.concat(parts, "&")
  end
  return table.concat(parts) .. "--" .. BOUNDARY .. "--\r\n"
end


local function body_of(read, slot, text)
  if not read.media then
    return nil
  end
  local value = read.all and read.full or read.least
  if slot and slot.place == "body" then
    value = put(value, slot.path, text, 1)
  end
  return core.encode(value)
end


--- A request of an operation.
-- @param base  what stands before each path
-- @param slot  the one that gets `text`; or nil: all have values that are fine
-- @param raw   true: `text` is put into a path as it is
function M.build(read, base, slot, text, raw)
  local path, query, headers, cookies = read.path, {}, {}, {}
  local fields = {}
  for _, one in ipairs(read.slots) do
    local value = one == slot and text or one.value
    local wanted = one.required or read.all or one == slot
    if one.place == "path" then
      local shown = raw and one == slot and value or strings.percent(value)
      path = path:gsub("{" .. one.name:gsub("%p", "%%%0") .. "}",
        (shown:gsub("%%", "%%%%")))
    elseif wanted and one.place == "query" then
      query[#query + 1] = strings.percent(one.name) .. "="
        .. strings.percent(value)
    elseif wanted and one.place == "header" then
      headers[#headers + 1] = { one.name, value }
    elseif wanted and one.place == "formData" then
      fields[#fields + 1] = { name = one.name, value = value,
        is_file = one.is_file }
    elseif wanted and one.place == "cookie" then
      cookies[#cookies + 1] = one.name .. "=" .. strings.percent(value)
    end
  end
  if #cookies > 0 then
    headers[#headers + 1] = { "Cookie", table.concat(cookies, "; ") }
  end
  local media = read.media or read.form
  if media then
    headers[#headers + 1] = { "Content-Type", media == MULTIPART
      and media .. "; boundary=" .. BOUNDARY or media }
  end
  return {
    method = read.method, headers = headers,
    body = read.form and form_of(read, fields) or body_of(read, slot, text),
    target = base .. path .. (#query > 0 and "?" .. table.concat(query, "&")
      or ""),
  }
end


return M
