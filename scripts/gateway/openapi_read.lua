--- What an OpenAPI document says: 3.0, 3.1, and Swagger 2.0, as one model.
--
-- Only what describes requests is read. A field that nobody knows is refused:
-- a slip such as `requestBdy` would otherwise check nothing.
--
-- The model: { doc, version = "2.0" | "3.0" | "3.1", prefix, operations }, and
-- an operation is { id, method, path, source, parameters, body, security }.

local document <const> = require "gateway.document"
local options <const> = require "gateway.options"
local M = {}

-- The operations of a path, in the order in which they are declared.
local METHODS <const> = {
  "get", "head", "post", "put", "patch", "delete", "options", "trace",
}


local function set(text)
  local names = {}
  for name in text:gmatch("%S+") do
    names[name] = true
  end
  return names
end

local ABOUT <const> = set "description summary"

local ROOT <const> = {
  ["2.0"] = set [[swagger info host basePath schemes consumes produces paths
    definitions parameters responses securityDefinitions security tags
    externalDocs]],
  ["3.0"] = set [[openapi info servers paths components security tags
    externalDocs]],
  ["3.1"] = set [[openapi info servers paths components security tags
    externalDocs webhooks jsonSchemaDialect]],
}
local PATH_ITEM <const> = set [[$ref summary description servers parameters get
  put post delete options head patch trace]]
local OPERATION <const> = {
  ["2.0"] = set [[tags summary description externalDocs operationId consumes
    produces parameters responses schemes deprecated security]],
  ["3.0"] = set [[tags summary description externalDocs operationId parameters
    requestBody responses callbacks deprecated security servers]],
}
local PARAMETER <const> = set [[name in description required deprecated
  allowEmptyValue style explode allowReserved schema example examples content]]
local BODY <const> = set "description content required"
local MEDIA <const> = set "schema example examples encoding"

--- What a parameter of Swagger 2.0 says of its values.
M.OLD_SCHEMA = set [[type format items default maximum exclusiveMaximum minimum
  exclusiveMinimum maxLength minLength pattern maxItems minItems uniqueItems
  enum multipleOf]]
local OLD_PARAMETER <const> = set [[name in description required schema
  allowEmptyValue collectionFormat]]
for name in pairs(M.OLD_SCHEMA) do
  OLD_PARAMETER[name] = true
end

local PLACES <const> = {
  ["2.0"] = set "path query header formData body",
  ["3.0"] = set "path query header cookie",
}
local DIALECTS <const> = {
  ["https://spec.openapis.org/oas/3.1/dialect/base"] = true,
  ["https://json-schema.org/draft/2020-12/schema"] = true,
}


-- ---- the document ----------------------------------------------------------

local function read_version(doc)
  local root = doc.value
  if not document.is_map(root) then
    error(doc.name .. ":1: is no OpenAPI document: it must be a map", 0)
  end
  for field, wanted in pairs { swagger = '"2.0"', openapi = '"3.0.3"' } do
    local value = root[field]
    if value ~= nil and type(value) ~= "string" then
      doc:fail(root, field, ("must be a text: write %s: %s"):format(field,
        wanted))
    end
  end
  if root.swagger == "2.0" then
    return "2.0"
  end
  local version = root.openapi and root.openapi:match("^(3%.[01])%.%d+$")
  if version then
    return version
  end
  doc:fail(root, root.openapi and "openapi" or root.swagger and "swagger",
    'which version? swagger: "2.0", openapi: "3.0.x" and openapi: "3.1.x" are'
    .. " read")
end


-- The path of one server's URL; nil and why where it has none that is fixed.
local function path_of(url)
  local path = url:match("^[^/]+://[^/]*(.*)$")
    or url:match("^//[^/]*(.*)$") or url:match("^/.*$")
  if not path then
    return nil, "is relative to where the document was found"
  elseif path:find("[{}?#%%%s]") then
    return nil, "its path is not fixed"
  end
  return (path:gsub("/+$", ""))
end


-- What stands before each path: basePath, or the servers' common path.
local function read_prefix(api)
  local doc, root = api.doc, api.doc.value
  if api.version == "2.0" then
    local base = doc:text(root, "basePath") or ""
    return (base:gsub("/+$", ""))
  end
  local prefix
  for i, server in ipairs(doc:list(root, "servers") or {}) do
    if not document.is_map(server) or not doc:text(server, "url") then
      doc:fail(root.servers, i, "a server needs a url")
    end
    local path, why = path_of(server.url)
    if path and prefix and path ~= prefix then
      path, why = nil, "its path is another than the first one's"
    end
    if not path then
      api.prefix_like = prefix or (server.url:gsub("^%a+://[^/]*", ""))
      api.prefix_at = doc:at(server, "url")
      api.prefix_why = ("%s: %s"):format(options.show(server.url), why)
      return nil
    end
    prefix = path
  end
  return prefix or ""
end


-- ---- parameters and bodies -------------------------------------------------

local function read_parameter(api, list, i)
  local doc = api.doc
  if not document.is_map(list[i]) then
    doc:fail(list, i, "a parameter must be a map")
  end
  local source = doc:follow(list[i], api.version == "3.1" and ABOUT or nil)
  local old = api.version == "2.0"
  doc:check_keys(source, old and OLD_PARAMETER or PARAMETER)
  local name, place = doc:text(source, "name"), doc:text(source, "in")
  if not name or not place then
    doc:fail(source, nil, "a parameter needs name and in")
  end
  local places = PLACES[old and "2.0" or "3.0"]
  if not places[place] then
    doc:fail(source, "in", ("there is no %s%s"):format(options.show(place),
      options.suggest(place, places)))
  end
  if place == "path" and source.required == false then
    doc:fail(source, "required", "a path always has its parameters: write true")
  end
  return {
    name = name, place = place, source = source,
    required = doc:boolean(source, "required") or false,
    key = place .. " " .. (place == "header" and name:lower() or name),
  }
end


-- The parameters of a path item or an operation, those of `inherited` first;
-- one of the same name and place takes its place.
local function read_parameters(api, owner, inherited)
  local list, index, own = {}, {}, {}
  for i, parameter in ipairs(inherited) do
    list[i], index[parameter.key] = parameter, i
  end
  local given = api.doc:list(owner, "parameters") or {}
  for i = 1, #given do
    local parameter = read_parameter(api, given, i)
    if own[parameter.key] then
      api.doc:fail(parameter.source, "name", ("a second %s parameter %s")
        :format(parameter.place, options.show(parameter.name)))
    end
    own[parameter.key] = true
    local at = index[parameter.key] or #list + 1
    list[at], index[parameter.key] = parameter, at
  end
  return list
end


-- A media type without its parameters, of which only charset=utf-8 is fine.
local function read_media(doc, owner, key, name)
  local media, rest = name:lower():match("^%s*([%w.+*-]+/[%w.+*-]+)%s*(.*)$")
  if not media or media:find("*", 1, true) then
    doc:fail(owner, key, ("no media type %s: write one such as"
      .. " application/json"):format(options.show(name)))
  elseif rest ~= "" and not rest:find('^;%s*charset="?utf%-8"?$') then
    doc:fail(owner, key, ("%s: of its parameters only charset=utf-8 is read")
      :format(options.show(name)))
  end
  return media
end


-- The body of an operation of 3.x: { source, media = list of { type, owner,
-- key, schema, holder } }.
local function read_body(api, operation)
  local doc = api.doc
  if not doc:map(operation, "requestBody") then
    return nil
  end
  local source = doc:follow(operation.requestBody,
    api.version == "3.1" and ABOUT or nil)
  doc:check_keys(source, BODY)
  local content = doc:check_map(source, "content")
  local body = { source = source, media = {} }
  for _, key in ipairs(options.sorted_keys(content)) do
    local holder = doc:check_map(content, key)
    doc:check_keys(holder, MEDIA)
    body.media[#body.media + 1] = {
      type = read_media(doc, content, key, key), owner = content, key = key,
      schema = holder.schema, holder = holder,
    }
  end
  if #body.media == 0 then
    doc:fail(source, "content", "names no media type")
  end
  return body
end


-- The same for 2.0, where the body is a parameter, and its media types are in
-- `consumes`.
local function read_old_body(api, operation, parameters)
  local doc, form, found, fields = api.doc, nil, nil, {}
  for i = #parameters, 1, -1 do
    local parameter = parameters[i]
    if parameter.place == "body" or parameter.place == "formData" then
      table.remove(parameters, i)
      form = form or parameter.place == "formData" and parameter
      if found and parameter.place == "body" then
        doc:fail(found.source, "in", "a second body: there can be one")
      elseif parameter.place == "formData" then
        table.insert(fields, 1, parameter)
      end
      found = parameter.place == "body" and parameter or found
    end
  end
  if not form and not found then
    return nil
  end
  local body = { source = (found or form).source, media = {}, fields = fields }
  if form then
    body.media[1] = {
      type = "multipart/form-data", owner = form.source, key = "in",
      holder = form.source,
    }
    return body
  end
  local owner = operation.consumes and operation or doc.value
  local consumes = doc:list(owner, "consumes") or { "application/json" }
  for i, name in ipairs(consumes) do
    if type(name) ~= "string" then
      doc:fail(consumes, i, "must be a media type")
    end
    body.media[i] = {
      type = read_media(doc, owner, "consumes", name), owner = owner,
      key = "consumes", schema = found.source.schema, holder = found.source,
    }
  end
  return body
end


-- ---- operations ------------------------------------------------------------

local function read_operation(api, item, method, path, inherited)
  local doc = api.doc
  local source = doc:check_map(item, method)
  local old = api.version == "2.0"
  doc:check_keys(source, OPERATION[old and "2.0" or "3.0"])
  if source.servers then
    doc:fail(source, "servers", "an operation with servers of its own is not"
      .. " read: the gateway is its server")
  end
  local operation = {
    id = doc:text(source, "operationId"), method = method:upper(), path = path,
    source = source, at = doc:at(item, method),
    parameters = read_parameters(api, source, inherited),
    security = doc:list(source, "security")
      or doc:list(doc.value, "security"),
    security_owner = source.security and source or doc.value,
  }
  if old then
    operation.body = read_old_body(api, source, operation.parameters)
  else
    operation.body = read_body(api, source)
  end
  return operation
end


local function add_operation(api, operation)
  local doc, names = api.doc, api.names
  if operation.id and names[operation.id] then
    doc:fail(operation.source, "operationId", ("%s is that of %s %s, too")
      :format(options.show(operation.id), names[operation.id].method,
        names[operation.id].path))
  end
  if operation.id then
    names[operation.id] = operation
  end
  names[operation.method .. " " .. operation.path] = operation
  api.operations[#api.operations + 1] = operation
end


local function read_path(api, paths, path)
  local doc = api.doc
  if not path:find("^/") then
    doc:fail(paths, path, "a path begins with '/'")
  end
  local item = doc:follow(doc:check_map(paths, path))
  doc:check_keys(item, PATH_ITEM)
  if item.servers then
    doc:fail(item, "servers", "a path with servers of its own is not read: the"
      .. " gateway is its server")
  end
  local inherited = read_parameters(api, item, {})
  for _, method in ipairs(METHODS) do
    if item[method] ~= nil then
      api.try(function()
        add_operation(api, read_operation(api, item, method, path, inherited))
      end)
    end
  end
end


local function run(func)
  func()
end


--- Reads a document as an API.
-- @param doc  of gateway.document
-- @param try  function(func) that calls `func`; the audit's catches what it
--             raises, and goes on
function M.read(doc, try)
  local api = { doc = doc, operations = {}, names = {}, try = try or run }
  api.version = read_version(doc)
  local root = doc.value
  api.try(function()
    doc:check_keys(root, ROOT[api.version])
  end)
  local dialect = doc:text(root, "jsonSchemaDialect")
  if dialect and not DIALECTS[dialect] then
    doc:fail(root, "jsonSchemaDialect", "another dialect than that of OpenAPI"
      .. " 3.1 is not read")
  end
  api.prefix = read_prefix(api)
  local paths = doc:check_map(root, "paths")
  for _, path in ipairs(options.sorted_keys(paths)) do
    if not path:find("^x%-") then
      api.try(function()
        read_path(api, paths, path)
      end)
    end
  end
  return api
end


return M
