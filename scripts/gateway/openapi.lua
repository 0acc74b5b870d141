--- gateway.openapi: routes and schemas straight from an OpenAPI document.
--
--     gateway.openapi {
--       file = "api.yaml",
--       authorize = id.spiffe "spiffe://example.org/ns/shop/**",
--       upstream = app,
--       handlers = {
--         createOrder = { authorize = id.ou "ops", handle = app:to "/orders" },
--         getStatus = function() return gateway.json { ok = true } end,
--         deleteOrder = false,
--       },
--     }
--
-- Each operation becomes one route, whose place is its line in the document.
-- The document says what is let in, the policy whom, and what then happens.

local core <const> = require "gateway.core"
local document <const> = require "gateway.document"
local openapi_read <const> = require "gateway.openapi_read"
local openapi_schema <const> = require "gateway.openapi_schema"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local route <const> = require "gateway.route"
local schema <const> = require "gateway.schema"
local M = {}

local WHAT <const> = "gateway.openapi"


-- formats = { phone = "^[+][0-9]{5,15}$" }: a pattern, or keywords.
local function formats(value)
  local wanted <const> = 'a table: { phone = "^[+][0-9]{5,15}$" }'
  if type(value) ~= "table" then
    return nil, wanted
  end
  for name, own in pairs(value) do
    if not options.text(name) or type(own) ~= "table"
      and not options.text(own) then
      return nil, wanted
    end
  end
  return value
end


-- A prefix may be empty: then paths are as the document has them.
local function prefix(value)
  if value == "" or options.text(value) and value:find("^/.*[^/]$") then
    return value
  end
  return nil, '"" or a path such as "/v1"'
end

M.SPEC = options.spec("gateway.openapi", {
  file = { options.text, required = true,
    help = "the document, kept in the policy's folder or below" },
  handlers = { options.table, default = {},
    help = 'by operationId, or "GET /path": a function, an upstream, a route\'s'
      .. " options but validate, or false: not served" },
  upstream = { options.anything,
    type = "upstream, or upstream:to(…)",
    help = "the handle of operations that have none" },
  missing = { options.one_of("error", "refuse"), default = "error",
    help = "what nothing handles; refuse: it is not served" },
  prefix = { prefix,
    help = "what stands before each path, in place of the document's own" },
  open = { options.boolean, default = false,
    help = "lets additionalProperties: true stand" },
  formats = { formats, default = {},
    help = "what formats of your own mean" },
  media = { options.text,
    help = "which body counts where an operation has several that differ" },
})
for name, row in pairs(route.GROUP_SPEC) do
  M.SPEC[name] = row
end

-- What a handler may say of its operation: what a route may, but `validate`,
-- which the document says; `body` is for bodies that no schema can check.
local HANDLER <const> = {
  authorize = true, check = true, handle = true, respond = true, log = true,
  limits = true, allow = true, client_ca = true, upgrade = true, body = true,
}

-- Headers that are not parameters by the letter of OpenAPI 3.
local NOT_PARAMETERS <const> = {
  accept = true, ["content-type"] = true, authorization = true,
}


-- ---- parameters ------------------------------------------------------------

-- The styles that are checked.
local STYLES <const> = { path = "simple", query = "form", header = "simple" }


-- How the items of a list are told apart: true where by commas in one text,
-- false where by repeating the name. Swagger 2.0 says it in other words.
local function old_commas(api, parameter)
  local doc, source = api.doc, parameter.source
  local format = doc:text(source, "collectionFormat") or "csv"
  if format == "multi" and parameter.place == "query" then
    return false
  elseif format ~= "csv" then
    doc:fail(source, "collectionFormat", ("%s is not checked: write csv%s")
      :format(options.show(format), parameter.place == "query" and " or multi"
        or ""))
  end
  return true
end


local function new_commas(api, parameter)
  local explode = api.doc:boolean(parameter.source, "explode")
  return parameter.place == "header" or explode == false
end


local function check_style(api, parameter)
  local doc, source = api.doc, parameter.source
  local style = doc:text(source, "style") or STYLES[parameter.place]
  if style ~= STYLES[parameter.place] then
    doc:fail(source, "style", ("%s is not checked: in the %s only %s is")
      :format(options.show(style), parameter.place, STYLES[parameter.place]))
  end
end


local function check_parameter(api, parameter)
  local doc, source = api.doc, parameter.source
  if parameter.place == "cookie" then
    doc:fail(source, "in", "cookies are not checked: take it from a header")
  elseif source.content ~= nil then
    doc:fail(source, "content", "JSON within a text is not checked: write"
      .. " schema, or send it as the body")
  elseif doc:boolean(source, "allowEmptyValue") then
    doc:fail(source, "allowEmptyValue", "lets an empty text in whatever the"
      .. " schema says: leave it out, and let the schema allow \"\"")
  elseif api.version == "2.0" and source.schema ~= nil then
    doc:fail(source, "schema", "is for a body: write type beside name")
  elseif (api.version == "2.0" and source.type or source.schema) == nil then
    doc:fail(source, nil, api.version == "2.0" and "a parameter needs a type"
      or "a parameter needs a schema")
  end
  check_style(api, parameter)
end


-- Where the schema of a parameter stands: owner, key. Swagger 2.0 writes it
-- among the parameter's own fields.
local function schema_place(api, parameter)
  local doc, source = api.doc, parameter.source
  if api.version ~= "2.0" then
    return source, "schema"
  end
  local copy = doc:alias({}, source)
  for key in pairs(openapi_read.OLD_SCHEMA) do
    copy[key] = source[key]
  end
  return doc:alias({ schema = copy }, source), "schema"
end


-- The types of one text, as a schema wants them.
local function list_of(types)
  types.null = nil
  local list = options.sorted_keys(types)
  return #list == 1 and list[1] or core.array(list)
end


-- Complains about lists of what is no text, and objects.
local function check_text(doc, source, types, is_item)
  if types.object or is_item and types.array then
    doc:fail(source, nil, ("%s in one text is not checked"):format(
      types.object and "an object" or "a list of lists"))
  end
end


-- The schema of a list's items, through $ref and allOf.
local function items_of(doc, source)
  while source["$ref"] ~= nil and source.items == nil do
    source = doc:target(source)
  end
  if document.is_map(source.items) then
    return source.items
  end
  for _, branch in ipairs(document.items(source.allOf)) do
    local items = document.is_map(branch) and items_of(doc, branch)
    if items then
      return items
    end
  end
end


-- Looks at a list. Returns true where its items stand between commas.
local function check_list(api, parameter, source, types)
  local doc = api.doc
  local items = items_of(doc, source)
  if items then
    check_text(doc, items, openapi_schema.text_types(doc, items) or {}, true)
  end
  if parameter.place == "path" then
    doc:fail(source, nil, "a list in a path is not checked: write type: string"
      .. " and a pattern")
  end
  local commas = (api.version == "2.0" and old_commas or new_commas)(api,
    parameter)
  types.null = nil
  if commas and next(types, next(types)) ~= nil then
    doc:fail(source, nil, "a list in one text can be nothing else beside: write"
      .. " type: array")
  end
  return commas
end


--- A parameter as `validate` wants it.
-- @param converter  of gateway.openapi_schema
function M.input(api, converter, parameter)
  local doc = api.doc
  check_parameter(api, parameter)
  local owner, key = schema_place(api, parameter)
  local plain = converter.convert(owner, key)
  local source = owner[key]
  local types = openapi_schema.text_types(doc, source) or {}
  check_text(doc, source, types, false)
  local commas = types.array and check_list(api, parameter, source, types)
  plain.type = list_of(types)
  local read = plain
  if commas then
    plain = schema.commas(plain)
  end
  if parameter.required or parameter.place == "path" then
    return plain
  end
  local default = source.default
  if default == core.null then
    default = nil
  end
  if default ~= nil then
    schema.test_default(doc:at(source, "default"), WHAT .. ": " ..
      options.show(parameter.name), read, default)
  end
  return schema.optional(plain, default)
end


-- ---- bodies ----------------------------------------------------------------

local FORMS <const> = {
  ["multipart/form-data"] = true, ["application/x-www-form-urlencoded"] = true,
}


-- What is text, of which a schema would say something if it could.
local TEXTS <const> = { "^text/", "[/+]xml$", "[/+]yaml$", "json", "script$" }


-- Is the schema of a body that of bytes, of which nothing but the number is
-- said? Without a schema, what is no text is.
local function is_bytes(api, media)
  local source, text = media.schema, false
  for _, pattern in ipairs(TEXTS) do
    text = text or media.type:find(pattern) ~= nil
  end
  if source == nil or document.is_map(source) and next(source) == nil then
    return api.version ~= "2.0" and not text
  end
  for key in pairs(document.is_map(source) and source or {}) do
    if key ~= "type" and key ~= "format" and key ~= "maxLength"
      and key ~= "contentMediaType" and key ~= "description"
      and not key:find("^x%-") then
      return false
    end
  end
  return source.format == "binary" or api.version == "3.1" and not text
    and source.contentMediaType ~= nil
end


--- What one media type of a body is: "json", "bytes", or nil and why not.
function M.body_kind(api, media)
  if media.type:find("/json$") or media.type:find("%+json$") then
    return "json"
  elseif FORMS[media.type] then
    return nil, "forms are not checked: send JSON"
  elseif is_bytes(api, media) then
    return "bytes"
  end
  return nil, "only JSON, and bytes (format: binary), are checked"
end


-- Do two values of the document say the same?
local function same(a, b)
  if type(a) ~= "table" or type(b) ~= "table" then
    return a == b
  end
  for key, value in pairs(a) do
    if not same(value, b[key]) then
      return false
    end
  end
  for key in pairs(b) do
    if a[key] == nil then
      return false
    end
  end
  return document.is_list(a) == document.is_list(b)
end


-- The media types that are one body: those of the same schema, or of the same
-- number of bytes at most.
local function pick_media(api, body, wanted)
  local first, types = nil, {}
  for _, media in ipairs(body.media) do
    if not wanted or media.type == wanted then
      local kind, why = M.body_kind(api, media)
      if not kind then
        api.doc:fail(media.owner, media.key, ("%s, or say %s"):format(why,
          #body.media > 1 and 'media = "application/json" in gateway.openapi,'
            .. " to take that one alone" or "body = gateway.bytes(…) for this"
            .. " operation in handlers"))
      end
      local what = kind == "json" and media.schema
        or media.schema and media.schema.maxLength
      if first and (first.kind ~= kind or not same(first.what, what)) then
        api.doc:fail(media.owner, media.key, "a second body with another"
          .. " schema: choose one: gateway.openapi { media = "
          .. options.show(media.type) .. " }")
      end
      first = first or { kind = kind, what = what, media = media }
      types[#types + 1] = media.type
    end
  end
  if not first then
    api.doc:fail(body.source, nil, ("none of its media types is %s, which"
      .. " gateway.openapi { media = … } names"):format(options.show(wanted)))
  end
  return first, types
end


--- The body of an operation, as `validate` wants it: adds to `validate`.
-- @param wanted  the media type that counts where there are several; or nil
function M.body(api, converter, body, wanted, validate)
  if #body.media == 1 then
    wanted = nil
  end
  local picked, types = pick_media(api, body, wanted)
  local media = picked.media
  if picked.kind == "bytes" then
    local max = picked.what
    if max ~= nil and not (math.tointeger(max) and max >= 0) then
      api.doc:fail(media.schema, "maxLength", "must be a whole number, 0 or"
        .. " more")
    end
    validate.body = schema.bytes(picked.what, table.unpack(types))
    return
  elseif media.schema == nil then
    api.doc:fail(media.holder, nil, "a JSON body needs a schema")
  end
  validate.json = converter.convert(media.holder, "schema")
  validate.types = core.array(types)
end


-- ---- operations ------------------------------------------------------------

-- "/pets/{pet-id}" as a route wants it, and the names of its captures.
local function read_path(api, operation)
  local names, taken = {}, {}
  local path = operation.path:gsub("{([^{}]*)}", function(name)
    local plain = name:gsub("[^%w_]", "_"):gsub("^%d", "_%0")
    if taken[plain] then
      api.doc:fail(operation.source, nil, ("two parts of %s are named {%s}")
        :format(operation.path, plain))
    end
    names[name], taken[plain] = plain, true
    return "{" .. plain .. "}"
  end)
  return path, names
end


local function check_header(doc, parameter)
  local name = parameter.name
  if name:find("[^%w!#$%%&'*+.^_`|~-]") then
    doc:fail(parameter.source, "name", "is no name of a header")
  end
end


-- What the document says of an operation's inputs, as `validate` wants it.
local function read_inputs(api, converter, operation, captures)
  local validate = { path = {}, query = {}, headers = {} }
  local doc = api.doc
  for _, parameter in ipairs(operation.parameters) do
    local place, name = parameter.place, parameter.name
    if place == "header" then
      check_header(doc, parameter)
    elseif place == "path" and not captures[name] then
      doc:fail(parameter.source, "name", ("there is no {%s} in %s%s"):format(
        name, operation.path, options.suggest(name, captures)))
    end
    if place ~= "header" or api.version == "2.0"
      or not NOT_PARAMETERS[name:lower()] then
      local input = M.input(api, converter, parameter)
      validate[place == "header" and "headers" or place][
        place == "path" and captures[name] or name] = input
    end
  end
  for name, capture in pairs(captures) do
    if not validate.path[capture] then
      doc:fail(operation.source, nil, ("no parameter describes {%s} of %s")
        :format(name, operation.path))
    end
  end
  return validate
end


--- Everything that a route of this operation validates, and its path.
-- @param read  what gateway.openapi was given: open, formats, media
-- @param own   true where the policy says how the body is checked
function M.operation(api, read, operation, own)
  local converter = openapi_schema.converter(api, read)
  local path, captures = read_path(api, operation)
  local validate = read_inputs(api, converter, operation, captures)
  if operation.body and not own then
    M.body(api, converter, operation.body, read.media, validate)
  end
  return validate, path
end


-- ---- handlers --------------------------------------------------------------

-- The options of an operation's handler; nil where it is to be refused.
local function read_handler(at, read, operation)
  local given = read.handlers[operation.id or ""]
  if given == nil then
    given = read.handlers[operation.method .. " " .. operation.path]
  end
  if given == false or given == nil and not read.upstream
    and read.missing == "refuse" then
    return nil
  end
  local own = {}
  if type(given) == "table" and getmetatable(given) == nil then
    for key, value in pairs(given) do
      own[key] = value
    end
  else
    own.handle = given
  end
  if own.handle == nil then
    own.handle = read.upstream
  end
  if own.handle == nil then
    options.fail(at, WHAT, ("nothing handles %s %s (%s, at %s): name it in"
      .. ' handlers, give upstream, or say missing = "refuse"'):format(
      operation.method, operation.path, operation.id or "no operationId",
      operation.at))
  end
  return own
end


-- Names in `handlers` that the document does not have.
local function check_handlers(at, api, handlers)
  for _, name in ipairs(options.sorted_keys(handlers)) do
    if not api.names[name] then
      options.fail(at, WHAT, ("handlers: %s has no operation %s%s"):format(
        api.doc.name, options.show(name), options.suggest(tostring(name),
          api.names)))
    end
    local given = handlers[name]
    if type(given) == "table" and getmetatable(given) == nil then
      for _, key in ipairs(options.sorted_keys(given)) do
        if key == "validate" then
          options.fail(at, WHAT, ("handlers.%s: validate is what the document"
            .. " says; use check for more"):format(name))
        elseif not HANDLER[key] then
          options.fail(at, WHAT, ("handlers.%s: unknown option '%s'%s"):format(
            name, tostring(key), options.suggest(tostring(key), HANDLER)))
        end
      end
    end
  end
end


local function declare_operation(at, api, read, group, operation)
  local own = read_handler(at, read, operation)
  if not own then
    return
  end
  if own.authorize == nil and #group.authorize == 0 then
    options.fail(at, WHAT, ("option 'authorize' is missing, for all or for %s"
      .. " %s (at %s): say who may call this, such as authorize = id.ou"
      .. ' "ops", or id.anyone'):format(operation.method, operation.path,
      operation.at))
  end
  if not route.METHODS[operation.method] then
    api.doc:fail(operation.source, nil, ("%s is never served: leave it out, or"
      .. " say handlers = { [%q] = false }"):format(operation.method,
      operation.id or operation.method .. " " .. operation.path))
  end
  local validate, path = M.operation(api, read, operation, own.body ~= nil)
  validate.body = own.body or validate.body
  own.body, own.validate = nil, validate
  route.add(operation.at, ("%s (%s) %s %s"):format(WHAT, at, operation.method,
    operation.path), group, operation.method, group.prefix .. path, own)
end


-- The text of a document that was read with the scripts.
local function find(at, file)
  for _, name in ipairs { core.folder() .. file, file } do
    local text = core.source(name)
    if text then
      return name, text
    end
  end
  options.fail(at, WHAT, ("%s was not found: keep it in the policy's folder"
    .. " (or below), end its name in .yaml, .yml or .json, and write that name"
    .. " in quotes, whole, in the policy"):format(options.show(file)))
end


--- openapi "api.yaml", or openapi { file = "api.yaml", … }: see the top.
function M.declare(given)
  if type(given) == "string" then
    given = { file = given }
  end
  local at = policy.declare(WHAT)
  local read = options.read(at, WHAT, given, M.SPEC)
  M.declare_text(at, read, find(at, read.file))
end


--- The same for a document that is at hand.
-- @param read  the options, read by M.SPEC
function M.declare_text(at, read, name, text)
  local doc, message = document.read(name, text)
  if not doc then
    error(message, 0)
  end
  local api = openapi_read.read(doc)
  check_handlers(at, api, read.handlers)
  local group = route.new_group(at, WHAT, read)
  group.prefix = read.prefix or api.prefix
  if not group.prefix then
    options.fail(at, WHAT, ("what stands before each path is not clear (%s,"
      .. ' server %s): say prefix = "%s"'):format(api.prefix_at,
      api.prefix_why, api.prefix_like:match("^/[%w/._~-]+$") or "/v1"))
  end
  for _, operation in ipairs(api.operations) do
    declare_operation(at, api, read, group, operation)
  end
end


return M
