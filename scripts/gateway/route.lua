--- Routes: who may call what, with which input, and what then happens.
--
-- `gateway.get(path, { … })` and its siblings end here, as do groups. A route
-- is read in the order in which its requests will pass: path, authorize,
-- validate, check, handle, respond, log.

local core <const> = require "gateway.core"
local identity <const> = require "gateway.identity"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local schema <const> = require "gateway.schema"
local upstream <const> = require "gateway.upstream"
local M = {}

local METHODS <const> = {
  GET = true, HEAD = true, POST = true, PUT = true, PATCH = true,
  DELETE = true, OPTIONS = true,
}
local WITHOUT_BODY <const> = { GET = true, HEAD = true, OPTIONS = true }
local MAX_CAPTURES <const> = 16

-- Legal, but read in two ways by some server: refused unless a route says so.
local ALLOW <const> = {
  semicolon = true, encoded_slash = true, empty_segment = true, non_utf8 = true,
  nameless_param = true, underscore = true, header_symbol = true,
  body_on_get = true, content_encoding = true,
}

local SPEC <const> = options.spec("route", {
  authorize = { options.anything,
    type = "condition or function(identity)",
    help = "who may call it; required, here or in the group" },
  validate = { options.table, default = {},
    help = "what: see route: validate" },
  check = { options.anything,
    type = "function, or list of functions",
    help = "what neither schema nor condition can say: (request, identity)" },
  handle = { options.anything, required = true,
    type = "function(request, identity), upstream, or upstream:to(…)",
    help = "the work" },
  respond = { options.anything,
    type = "function, or list of functions",
    help = "returns the response, changed: (request, response)" },
  log = { options.anything,
    type = "function, or list of functions",
    help = "when all is over: (request, response, decision)" },
  limits = { options.table, default = {},
    help = "see route: limits" },
  allow = { options.table, default = {},
    help = "what is legal, but odd, and let through: semicolon,"
      .. " encoded_slash, empty_segment, non_utf8, nameless_param, underscore,"
      .. " header_symbol, body_on_get, content_encoding" },
  host = { options.text, default = "",
    help = "only for this Host" },
  listener = { options.text, default = "",
    help = "only on this listener" },
  limit = { later = "comes with a later version (rate limits)" },
  client_ca = { options.text,
    help = "PEM: the client's chain must go through one of these" },
  upgrade = { options.anything,
    type = "a string, or a list of them",
    help = '"websocket": a tunnel, if the upstream agrees' },
})

local GROUP_SPEC <const> = options.spec("gateway.group", {
  authorize = SPEC.authorize, check = SPEC.check, respond = SPEC.respond,
  log = SPEC.log, limits = SPEC.limits, allow = SPEC.allow, host = SPEC.host,
  listener = SPEC.listener, limit = SPEC.limit, client_ca = SPEC.client_ca,
})

local VALIDATE_SPEC <const> = options.spec("route: validate", {
  path = { options.table, default = {},
    help = "a schema for each capture" },
  query = { options.table, default = {},
    help = "a schema for each parameter; or gateway.unchecked" },
  headers = { options.table, default = {},
    help = "a schema for each header field that hooks read" },
  json = { options.anything,
    type = "a schema", help = "of a JSON body" },
  types = { options.texts,
    help = "of that body, in place of application/json" },
  body = { options.anything,
    type = "gateway.bytes(max) or gateway.stream(max)", help = "another body" },
})

local LIMITS_SPEC <const> = options.spec("route: limits", {
  hook_cpu = { options.seconds,
    help = "computing time of one hook" },
  hook_time = { options.seconds,
    help = "of one hook, waiting and all" },
  body_idle = { options.seconds,
    help = "between two parts of a request's body" },
  write_idle = { options.seconds,
    help = "for a client to take more of an answer" },
  body_size = { options.size,
    help = "bytes of a body" },
  upgrade_idle = { options.seconds,
    help = "of a tunnel without a byte" },
})

local NO_GROUP <const> = {
  prefix = "", authorize = {}, check = {}, respond = {}, log = {}, limits = {},
  host = "", listener = "", allow = {},
}


-- What a route allows of ALLOW: names in a list, the group's first.
local function read_allow(at, what, given, inherited)
  local names, seen = {}, {}
  for _, list in ipairs { inherited, given } do
    if not options.texts(list) then
      options.fail(at, what, 'allow takes a list: { "semicolon" }')
    end
    for _, name in ipairs(list) do
      if not ALLOW[name] then
        options.fail(at, what, ("allow: there is no %s%s"):format(
          options.show(name), options.suggest(name, ALLOW)))
      end
      if not seen[name] then
        names[#names + 1], seen[name] = name, true
      end
    end
  end
  return core.array(names), seen
end


-- The captures of a path pattern, as { name = true }. "*" is the target of
-- `OPTIONS *`, and has none.
local function read_path(at, what, path)
  if path == "*" then
    return {}
  end
  if type(path) ~= "string" or not path:find("^/") then
    options.fail(at, what, ("the path begins with '/', not %s"):format(
      options.show(path)))
  end
  if path:find("[?#%%%c%s\\]") or path:find("//", 1, true) then
    options.fail(at, what, "a path is written decoded, without query, spaces or"
      .. " empty segments")
  end
  local captures, count = {}, 0
  for segment, place in path:gmatch("/([^/]*)()") do
    local name, rest = segment:match("^{([%a_][%w_]*)(%.*)}$")
    if segment == "." or segment == ".." then
      options.fail(at, what, "no request's path has a segment '.' or '..'")
    end
    if segment:find("[{}]") and (not name or rest ~= "" and rest ~= "...") then
      options.fail(at, what, ("segment %s: a capture is a whole segment, {name}"
        .. " or, at the end, {name...}"):format(options.show(segment)))
    end
    if rest == "..." and place <= #path then
      options.fail(at, what, ("{%s...} takes the rest of the path, so it must"
        .. " be the last segment"):format(name))
    end
    if name and captures[name] then
      options.fail(at, what, ("two captures are named {%s}"):format(name))
    end
    if name then
      captures[name] = true
      count = count + 1
    end
  end
  if count > MAX_CAPTURES then
    options.fail(at, what, ("more than %d captures"):format(MAX_CAPTURES))
  end
  return captures
end


local function read_methods(at, what, given)
  local methods, seen = {}, {}
  for i, method in ipairs(type(given) == "table" and given or { given }) do
    if method == "*" then
      return { "*" }
    end
    if not METHODS[method] then
      options.fail(at, what, ("no method %s%s"):format(options.show(method),
        options.suggest(tostring(method), METHODS)))
    end
    if seen[method] then
      options.fail(at, what, ("method %s is named twice"):format(method))
    end
    methods[i], seen[method] = method, true
  end
  if #methods == 0 then
    options.fail(at, what, 'names no method: { "GET", "POST" }')
  end
  return methods
end


-- `upgrade`: a protocol or a list of them, in lower case; nil: none.
local function read_upgrade(at, what, value, methods)
  if value == nil then
    return nil
  end
  local tokens, message = options.texts(
    type(value) == "string" and { value } or value)
  if not tokens then
    options.fail(at, what, ('upgrade must be "websocket", or %s'):format(
      message))
  end
  for i, token in ipairs(tokens) do
    tokens[i] = token:lower()
  end
  if not table.concat(methods, " "):find("[G*]") then
    options.fail(at, what, "upgrade: only a GET can be upgraded: use"
      .. " gateway.get")
  end
  return tokens
end


-- Browsers present a client's certificate to whoever asks, and let any page
-- open a WebSocket.
local function warn_of_origins(at, what, upgrade, headers, check)
  if upgrade and not headers.origin and #check == 0 then
    policy.warn(at, what .. ": upgrade: nothing looks at Origin, so any web"
      .. " page may open this with its visitor's certificate: add validate ="
      .. " { headers = { Origin = … } }, or a check")
  end
end


-- One authorize: as the configuration wants it.
local function read_authorize(at, what, value)
  if type(value) == "table" and not identity.is_condition(value) then
    options.fail(at, what, "authorize: say what a list means: id.any(…) or"
      .. " id.all(…)")
  end
  if value == true then
    options.fail(at, what, "authorize: to let every client in, write id.anyone")
  end
  local condition, message = identity.to_condition(value)
  if not condition then
    options.fail(at, what, "authorize: " .. message)
  end
  if type(value) == "function" then
    return { hook = policy.hook(value, false), text = "a function at " .. at }
  end
  return {
    hook = policy.hook(condition.test, condition.pure), text = condition.text,
  }
end


-- A hook, or a list of hooks; returns their numbers.
local function read_hooks(at, what, name, value)
  local numbers = {}
  if value == nil then
    return numbers
  end
  local list = type(value) == "table" and not getmetatable(value) and value
    or { value }
  for i, hook in ipairs(list) do
    if type(hook) ~= "function" then
      options.fail(at, what, ("%s must be a function, or a list of functions,"
        .. " not %s"):format(name, options.show(hook)))
    end
    numbers[i] = policy.hook(hook, false)
  end
  if #numbers == 0 then
    options.fail(at, what, name .. " is an empty list")
  end
  return numbers
end


local function join(first, second)
  local all = {}
  table.move(first, 1, #first, 1, all)
  table.move(second, 1, #second, #all + 1, all)
  return core.array(all)
end


local function no_authorize(at, what)
  options.fail(at, what, "option 'authorize' is missing: say who may call"
    .. " this, such as authorize = id.ou \"ops\", or id.anyone")
end


-- What gateway.tcp shares with routes.
M.read_hooks = read_hooks


--- One authorize, which must be there.
function M.read_authorize(at, what, value)
  if value == nil then
    no_authorize(at, what)
  end
  return read_authorize(at, what, value)
end


-- ---- validate --------------------------------------------------------------

local function read_path_schemas(at, what, given, captures, path)
  local schemas = {}
  for _, name in ipairs(options.sorted_keys(given)) do
    local label = ("%s: validate.path.%s"):format(what, tostring(name))
    if not captures[name] then
      options.fail(at, label, ("there is no {%s} in %s%s"):format(
        tostring(name), path, options.suggest(tostring(name), captures)))
    end
    if schema.is_optional(given[name]) then
      options.fail(at, label, "a capture is always there: leave out"
        .. " gateway.optional")
    end
    schemas[name] = schema.read_text(at, label, given[name], false)
  end
  for _, name in ipairs(options.sorted_keys(captures)) do
    if not schemas[name] then
      options.fail(at, what, ("capture {%s} has no schema: add validate = {"
        .. " path = { %s = gateway.filename } } or another schema"):format(
        name, name))
    end
  end
  return schemas
end


local function read_query(at, what, given)
  if schema.is_unchecked(given) then
    return {}, true
  end
  local query = {}
  for _, name in ipairs(options.sorted_keys(given)) do
    if not options.text(name) then
      options.fail(at, what .. ": validate.query",
        "takes names and schemas: { lines = gateway.integer(1, 100) }")
    end
    query[name] = schema.read_input(at,
      ("%s: validate.query.%s"):format(what, name), given[name])
  end
  return query, false
end


local function read_headers(at, what, given, allow)
  local headers = {}
  for _, name in ipairs(options.sorted_keys(given)) do
    local label = ("%s: validate.headers.%s"):format(what, tostring(name))
    if type(name) ~= "string" or name:find("[^%w!#$%%&'*+.^_`|~-]") then
      options.fail(at, label, "is no header name")
    end
    for word, odd in pairs { underscore = "_", header_symbol = "[^%w_-]" } do
      if name:find(odd) and not allow[word] then
        options.fail(at, label, ("such a name is refused: add allow = { %q }")
          :format(word))
      end
    end
    local lower = name:lower()
    if headers[lower] then
      options.fail(at, label, "is declared twice")
    end
    headers[lower] = schema.read_input(at, label, given[name])
  end
  return headers
end


-- A body is for methods that have one.
local function check_body_methods(at, what, kind, methods, allow)
  for _, method in ipairs(methods) do
    if WITHOUT_BODY[method] and not allow.body_on_get then
      options.fail(at, what, ("%s: a %s request has no body: use"
        .. ' gateway.post, put or patch; or allow = { "body_on_get" }'):format(
        kind, method))
    end
    if method == "*" and kind == "validate.json" and not allow.body_on_get then
      options.fail(at, what, kind .. ": gateway.any takes GET too, which has no"
        .. ' body: use gateway.route({ "POST", "PUT" }, …)')
    end
  end
end


-- The media types of a JSON body: application/json, or those that are said.
local function read_json_types(at, what, validate)
  local types = validate.types or { "application/json" }
  for i, media in ipairs(types) do
    types[i] = media:lower()
    if not types[i]:find("^[%w.+-]+/[%w.-]*%+?json$") then
      options.fail(at, what, ("validate.types: %s is no JSON: write one such as"
        .. ' "application/merge-patch+json"'):format(options.show(media)))
    end
  end
  return core.array(types)
end


local function read_body(at, what, validate, methods, max, allow)
  if validate.json ~= nil and validate.body ~= nil then
    options.fail(at, what, "the body is declared twice: validate.json and"
      .. " validate.body")
  end
  if validate.types and validate.json == nil then
    options.fail(at, what, "validate.types goes with validate.json; those of"
      .. ' another body go into it: gateway.bytes("1M", "image/png")')
  end
  if validate.json ~= nil then
    check_body_methods(at, what, "validate.json", methods, allow)
    return {
      kind = "json", max = max, types = read_json_types(at, what, validate),
      schema = schema.read(at, what .. ": validate.json", validate.json),
    }
  end
  if validate.body == nil then
    return { kind = "none", max = 0, types = core.array {} }
  end
  if not schema.is_body(validate.body) then
    options.fail(at, what, "validate.body takes gateway.bytes(max) or"
      .. " gateway.stream(max); a schema goes into validate.json")
  end
  check_body_methods(at, what, "validate.body", methods, allow)
  local body = validate.body
  if body.max and max then
    options.fail(at, what, "the body's limit is declared twice: in"
      .. " validate.body and in limits.body_size")
  end
  return { kind = body.kind, max = body.max or max, types = body.types }
end


-- ---- handle and limits -----------------------------------------------------

local function read_handle(at, what, handle, captures)
  if type(handle) == "function" then
    if identity.constructors[handle] then
      options.fail(at, what, "handle: a condition goes into authorize")
    end
    return { kind = "lua", hook = policy.hook(handle, false) }
  end
  if upstream.is_stream(handle) then
    options.fail(at, what, ("handle: upstream %s is for gateway.tcp: a route"
      .. " needs http://, https:// or http+unix: targets"):format(handle.name))
  end
  if not upstream.is_forward(handle) then
    options.fail(at, what, ("handle must be function(request, identity), an"
      .. " upstream, or upstream:to(…), not %s"):format(options.show(handle)))
  end
  local forward = handle.forward
  upstream.check_templates(at, what .. ": handle", forward, captures)
  return {
    kind = "proxy", upstream = forward.upstream, target = forward.target,
    set = forward.set, remove = forward.remove,
    respond_set = forward.respond_set, respond_remove = forward.respond_remove,
  }
end


local function read_limits(at, what, given, inherited)
  local limits = options.read(at, what .. ": limits", given, LIMITS_SPEC)
  for name, value in pairs(inherited) do
    if limits[name] == nil then
      limits[name] = value
    end
  end
  return limits
end


-- An option that a group may fix, and then its routes may not change.
local function inherit(at, what, name, own, inherited)
  if own ~= "" and inherited ~= "" and own ~= inherited then
    options.fail(at, what, ("%s is %s, but the group says %s"):format(name,
      options.show(own), options.show(inherited)))
  end
  return own ~= "" and own or inherited
end


-- The group's authorize, and what `read` adds to it: its CA, its own.
local function read_who(at, what, group, read)
  local who = { table.unpack(group.authorize) }
  if read.client_ca then
    who[#who + 1] = read_authorize(at, what, identity.ca(read.client_ca))
  end
  if read.authorize ~= nil then
    who[#who + 1] = read_authorize(at, what, read.authorize)
  end
  return who
end


-- Declares one route; its complaints begin with `at` and `what`.
local function add(at, what, group, methods, path, given)
  local captures = read_path(at, what, path)
  methods = read_methods(at, what, methods)
  if path == "*" and (#methods > 1 or methods[1] ~= "OPTIONS") then
    options.fail(at, what, 'the path "*" is for OPTIONS alone')
  end
  local read = options.read(at, what, given, SPEC)
  local authorize = read_who(at, what, group, read)
  if read.authorize == nil and #group.authorize == 0 then
    no_authorize(at, what)
  end
  local validate = options.read(at, what .. ": validate", read.validate,
    VALIDATE_SPEC)
  local query, unchecked = read_query(at, what, validate.query)
  local limits = read_limits(at, what, read.limits, group.limits)
  local allow, allowed = read_allow(at, what, read.allow, group.allow)
  local headers = read_headers(at, what, validate.headers, allowed)
  local check = join(group.check, read_hooks(at, what, "check", read.check))
  local upgrade = read_upgrade(at, what, read.upgrade, methods)
  warn_of_origins(at, what, upgrade, headers, check)
  policy.add("routes", {
    methods = core.array(methods), path = path, at = at,
    host = inherit(at, what, "host", read.host:lower(), group.host),
    listener = inherit(at, what, "listener", read.listener, group.listener),
    authorize = core.array(authorize),
    path_schemas = read_path_schemas(at, what, validate.path, captures, path),
    query = query, query_unchecked = unchecked, allow = allow,
    headers = headers,
    body = read_body(at, what, validate, methods, limits.body_size, allowed),
    check = check, upgrade = upgrade,
    handle = read_handle(at, what, read.handle, captures),
    respond = join(read_hooks(at, what, "respond", read.respond),
      group.respond),
    log = join(read_hooks(at, what, "log", read.log), group.log),
    limits = {
      hook_cpu_ms = limits.hook_cpu, hook_time_ms = limits.hook_time,
      body_ms = limits.body_idle, write_ms = limits.write_idle,
      upgrade_idle_ms = limits.upgrade_idle,
    },
  })
end


-- The same for one of the functions below, in the policy's own place.
local function declare(word, group, methods, path, given)
  local what = "gateway." .. word
  local at = policy.declare(what)
  if type(path) == "string" and (path == "" or path:find("^/")) then
    path = group.prefix .. path
    what = what .. " " .. path
  end
  add(at, what, group, methods, path, given)
end


-- What a group, or a document, says for all of its routes.
local function group_state(at, what, outer, prefix, read)
  return {
    prefix = outer.prefix .. prefix,
    authorize = read_who(at, what, outer, read),
    check = join(outer.check, read_hooks(at, what, "check", read.check)),
    respond = join(read_hooks(at, what, "respond", read.respond),
      outer.respond),
    log = join(read_hooks(at, what, "log", read.log), outer.log),
    limits = read_limits(at, what, read.limits, outer.limits),
    allow = read_allow(at, what, read.allow, outer.allow),
    host = inherit(at, what, "host", read.host:lower(), outer.host),
    listener = inherit(at, what, "listener", read.listener, outer.listener),
  }
end


-- What gateway.openapi declares its routes by.
M.GROUP_SPEC = GROUP_SPEC
M.METHODS = METHODS
M.add = add


--- The group that gateway.openapi's own options make.
function M.new_group(at, what, read)
  return group_state(at, what, NO_GROUP, "", read)
end


-- ---- the functions a policy calls ------------------------------------------

--- get, post, put, patch, delete, head, options(path, options): a route for
-- that method; GET answers HEAD, too. A path is segments, `{name}` for one, and
-- `{name...}` for the rest, at the end.

--- any(path, options): a route for every method.
local WORDS <const> = {
  get = "GET", post = "POST", put = "PUT", patch = "PATCH", delete = "DELETE",
  head = "HEAD", options = "OPTIONS", any = "*",
}

for word, method in pairs(WORDS) do
  M[word] = function(path, given)
    declare(word, NO_GROUP, method, path, given)
  end
end


--- route(methods, path, options): a route for a method or a list of methods.
function M.route(methods, path, given)
  declare("route", NO_GROUP, methods, path, given)
end


local Group = {}

--- group:get, group:post, group:put, group:patch, group:delete, group:head,
-- group:options, group:any, group:route, group:group(…): as those of gateway,
-- within the group.

-- A group's methods take `self`; `v1.get(…)` with a dot is a common slip.
local function check_self(self, word)
  if getmetatable(self) ~= Group then
    options.fail(nil, "group:" .. word, ("is called with a colon:"
      .. ' v1:%s("/path", { … })'):format(word))
  end
  return self.state
end

local GROUP_METHODS <const> = {
  route = function(self, methods, path, given)
    declare("route", check_self(self, "route"), methods, path, given)
  end,
}

for word, method in pairs(WORDS) do
  GROUP_METHODS[word] = function(self, path, given)
    declare(word, check_self(self, word), method, path, given)
  end
end


-- A group within a group, or within none.
local function new_group(outer, prefix, given)
  local what <const> = "gateway.group"
  local at = policy.declare(what)
  if type(prefix) ~= "string" or not prefix:find("^/.*[^/]$") then
    options.fail(at, what, ("a prefix is as \"/v1\", not %s"):format(
      options.show(prefix)))
  end
  local read = options.read(at, what, given or {}, GROUP_SPEC)
  local state = group_state(at, what, outer, prefix, read)
  return setmetatable({ state = state }, Group)
end


--- group(prefix, options): a prefix for routes, and authorize, check, respond
-- and log hooks that add to their own. `v1:get(…)`, `v1:group(…)`.
function M.group(prefix, given)
  return new_group(NO_GROUP, prefix, given)
end


function GROUP_METHODS.group(self, prefix, given)
  return new_group(check_self(self, "group"), prefix, given)
end


function Group.__index(_, key)
  local method = GROUP_METHODS[key]
  if not method then
    options.fail(nil, "group", ("has no '%s'%s"):format(tostring(key),
      options.suggest(tostring(key), GROUP_METHODS)))
  end
  return method
end


return M
