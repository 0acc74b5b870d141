--- Upstreams: where requests are forwarded to, and `gateway.fetch`.
--
--     local app = gateway.upstream { "http://127.0.0.1:8080" }
--     handle = app                       -- as it came
--     handle = app:to "/internal/{name}" -- with a target of our own
--
-- What `handle` takes, and what a handler may return, is any table with a field
-- `forward`: the upstream's number and what to change on the way.

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local M = {}

local SPEC <const> = options.spec("gateway.upstream", {
  name = { options.text,
    help = "what logs and tests call it; if not given, its first target" },
  connect_timeout = { options.seconds,
    help = "1 s; 2 s for https://" },
  head_timeout = { options.seconds, default = 30000,
    help = "for the head of an answer" },
  idle_timeout = { options.seconds, default = 30000,
    help = "between two parts of an answer" },
  keepalive_timeout = { options.seconds, default = 60000,
    help = "an idle connection is kept for that long" },
  keepalive = { options.integer(0, 10000), default = 64,
    help = "idle connections that a worker keeps" },
  identity_headers = { options.boolean,
    help = "send Client-Cert and X-Forwarded-Client-Cert" },
  ca = { options.text,
    help = "PEM: who may have issued the server's certificate; required for "
      .. "https://" },
  certificate = { options.text,
    help = "PEM: our own client certificate" },
  key = { options.text,
    help = "PEM: its key" },
  server_name = { options.text,
    help = "the name that the server's certificate must have" },
  server_spiffe = { options.text,
    help = "the SPIFFE ID that it must have" },
  crl = options.CRL.crl,
  crl_missing = options.CRL.crl_missing,
  crl_expired = options.CRL.crl_expired,
  client_cert_chain = { options.boolean, default = false,
    help = "send Client-Cert-Chain, too" },
  proxy_protocol = { options.one_of("v1", "v2"),
    help = "announce the client to a tcp:// or unix: target" },
  health = { later = "comes with a later version" },
})

local TO_SPEC <const> = options.spec("app:to", {
  set = { options.text_map, default = {},
    help = "header fields to send; values are templates" },
  remove = { options.texts, default = core.array {},
    help = "header fields to leave out" },
  respond_set = { options.text_map, default = {},
    help = "header fields of the answer" },
  respond_remove = { options.texts, default = core.array {},
    help = "header fields to take from the answer" },
})

-- What a template may name besides the route's captures: of a list, the first
-- entry.
local NAMES <const> = { ["request.id"] = true }

for _, field in ipairs {
  "cn", "o", "ou", "c", "l", "st", "dc", "uid", "dn", "uri", "dns", "ip",
  "email", "spiffe", "serial", "fingerprint", "issuer", "spki", "key",
  "not_before", "not_after",
} do
  NAMES["identity." .. field] = true
end

local Upstream = {}
local Forward = {}
local Stream = {}  -- an upstream of tcp:// or unix: targets, for gateway.tcp


-- One target: nil and a message where it is none.
local function check_target(target)
  if not options.text(target) then
    return nil, "a target is a string, not " .. options.show(target)
  end
  if target:find("^http%+unix:/[^/]") or target:find("^https?://[^/?#@%s]+/?$")
    or target:find("^tcp://[^/?#@%s]+:%d+$") or target:find("^unix:/[^/]") then
    return target
  end
  local mend = 'write "http://HOST:PORT", "https://HOST:PORT" or'
    .. ' "http+unix:/PATH"; for gateway.tcp "tcp://HOST:PORT" or "unix:/PATH"'
  if target:find("^https?://[^/?#@%s]+/") then
    mend = "a target has no path: write it in app:to \"/path/{name}\""
  end
  return nil, ("no target %s: %s"):format(options.show(target), mend)
end


-- A target of gateway.tcp: a server that need not speak HTTP.
local function is_stream(target)
  return target:find("^tcp:") or target:find("^unix:")
end


-- The identity headers are only worth something where nobody else can connect.
local function is_local(target)
  local host = target:match("^https?://([^/]+)/?$")
  host = host and host:gsub(":%d+$", "")
  return not host or host:find("^127%.%d+%.%d+%.%d+$") or host == "localhost"
    or host == "[::1]"
end


-- Why an upstream should not be sent identity headers as it stands, or nil.
local function exposed(target, read)
  if not read.identity_headers or is_local(target) then
    return nil
  end
  if not target:find("^https:") then
    return ("%s gets the client's identity as plain headers over the network;"
      .. " anyone who can reach it can forge them: write https://, or"
      .. " identity_headers = false"):format(target)
  end
  if not read.certificate then
    return ("%s gets the client's identity in headers, but cannot tell us from"
      .. " another client: give certificate and key, and let it demand them,"
      .. " or write identity_headers = false"):format(target)
  end
end


-- Splits { "http://…", option = … } into its targets and its options.
local function split(at, what, given)
  if type(given) == "string" then
    given = { given }
  elseif type(given) ~= "table" then
    options.fail(at, what, 'takes a table: { "http://127.0.0.1:8080" }')
  end
  local targets, rest = {}, {}
  for key, value in pairs(given) do
    if math.type(key) ~= "integer" then
      rest[key] = value
    end
  end
  for i, target in ipairs(given) do
    local ok, message = check_target(target)
    if not ok then
      options.fail(at, what, message)
    end
    targets[i] = target
  end
  if #targets == 0 then
    options.fail(at, what, 'names no target: { "http://127.0.0.1:8080" }')
  end
  return targets, rest
end


--- upstream { target …, options }: declares a server to forward to.
function M.declare(given)
  local what <const> = "gateway.upstream"
  local at = policy.declare(what)
  local targets, rest = split(at, what, given)
  local read = options.read(at, what, rest, SPEC)
  options.read_crl(read)
  local name = read.name or targets[1]
  policy.unique(at, what, "upstreams", name)
  local stream = is_stream(targets[1]) ~= nil
  for _, option in ipairs { "identity_headers", "keepalive",
    "keepalive_timeout", "head_timeout", "idle_timeout" } do
    if stream and rest[option] ~= nil then
      options.fail(at, what, ("option '%s' is for http:// targets"):format(
        option))
    end
  end
  if read.proxy_protocol and not stream then
    options.fail(at, what, "option 'proxy_protocol' is for tcp:// and unix:"
      .. " targets: connections of HTTP are shared by clients")
  end
  read.identity_headers = not stream and read.identity_headers ~= false
  for _, target in ipairs(targets) do
    if (is_stream(target) ~= nil) ~= stream then
      options.fail(at, what, "mixes tcp:// or unix: with http:// targets:"
        .. " declare two upstreams")
    end
    local why = exposed(target, read)
    if why then
      policy.warn(at, why)
    end
  end
  -- a TLS handshake is two more round trips, and a signature at each end
  local connect = targets[1]:find("^https:") and 2000 or 1000
  local index = policy.add("upstreams", {
    name = name, targets = core.array(targets), at = at,
    connect_ms = read.connect_timeout or connect, head_ms = read.head_timeout,
    idle_ms = read.idle_timeout, keepalive_ms = read.keepalive_timeout,
    keepalive = read.keepalive, identity_headers = read.identity_headers,
    ca = read.ca, certificate = read.certificate, key = read.key,
    server_name = read.server_name, server_spiffe = read.server_spiffe,
    crl = read.crl, crl_missing_ok = read.crl_missing_ok,
    crl_expired_ok = read.crl_expired_ok,
    client_cert_chain = read.client_cert_chain,
    proxy_protocol = read.proxy_protocol == "v1" and 1
      or read.proxy_protocol == "v2" and 2 or 0,
  })
  if stream then
    return setmetatable({ name = name, index = index }, Stream)
  end
  return setmetatable({
    name = name, index = index,
    forward = {
      upstream = index, target = "", set = {}, remove = core.array {},
      respond_set = {}, respond_remove = core.array {},
    },
  }, Upstream)
end


--- The number of the upstream that gateway.tcp's `to` names; a target by itself
-- becomes one.
function M.stream(at, what, to, listener)
  if type(to) == "string" and is_stream(to) then
    to = M.declare { to, name = to .. " of " .. listener }
  end
  if getmetatable(to) == Stream then
    return to.index
  end
  options.fail(at, what, ('to must be "tcp://HOST:PORT", "unix:/PATH" or an'
    .. " upstream of such targets, not %s"):format(
    getmetatable(to) == Upstream and "one of http:// targets"
      or options.show(to)))
end


-- Header names as a client could send them.
local function check_headers(what, option, names)
  for _, name in ipairs(names) do
    if type(name) ~= "string" or name:find("[^%w!#$&'*+.^_`|~%%-]") then
      options.fail(nil, what, ("%s: no header name %s"):format(option,
        options.show(name)))
    end
  end
end


--- app:to([target] [, options]): forwards to `target`, a template of the
-- captures ("/internal/{name}"); options change header fields, and may name
-- {identity.cn} or {request.id}. Called in a hook, nothing in it is a template.
local function to(self, target, opts)
  local what <const> = "app:to"
  if getmetatable(self) ~= Upstream then
    options.fail(nil, what, 'is called with a colon: app:to "/path"')
  end
  if type(target) == "table" then
    target, opts = nil, target
  end
  target = target or ""
  if type(target) ~= "string" or target ~= "" and not target:find("^/") then
    options.fail(nil, what, ("a target begins with '/', not %s"):format(
      options.show(target)))
  end
  local read = options.read(nil, what, opts or {}, TO_SPEC)
  check_headers(what, "set", options.sorted_keys(read.set))
  check_headers(what, "remove", read.remove)
  check_headers(what, "respond_set", options.sorted_keys(read.respond_set))
  check_headers(what, "respond_remove", read.respond_remove)
  read.upstream, read.target = self.index, target
  read.literal = policy.sealed() or nil  -- made by a hook: may hold client data
  return setmetatable({ forward = read }, Forward)
end


-- What each field of a fetch must be; a number may stand for a text.
local FETCH <const> = options.spec("gateway.fetch", {
  path = { kind = "string", type = "a string", required = true,
    help = "from '/' on, with a query or without" },
  method = { kind = "string", type = "a string", shown = '"GET"',
    help = "the method" },
  query = { kind = "table", type = "a table of names and strings",
    help = "parameters, which are encoded, and put behind the path" },
  headers = { kind = "table", type = "a table of names and strings",
    help = "header fields" },
  body = { kind = "string", type = "a string",
    help = "the body" },
  timeout = { kind = "number", type = "a number of seconds", shown = "30 s",
    help = "for the whole answer" },
  max = { kind = "number", type = 'a size: bytes, or "64K"', shown = "8M",
    help = "of the answer's body; more of it is an error" },
})


-- Raises at the caller's line. What is of request.raw, core.fetch() refuses.
local function check_fetch(request)
  for _, name in ipairs(options.sorted_keys(request)) do
    local value, wanted = request[name], FETCH[name] and FETCH[name].kind
    local kind = type(value)
    if not wanted then
      options.fail(nil, "gateway.fetch", ("unknown field %s%s"):format(
        options.show(name), options.suggest(tostring(name), FETCH)))
    elseif kind ~= wanted and kind ~= "userdata"
      and not (wanted == "string" and kind == "number") then
      options.fail(nil, "gateway.fetch", ("%s must be a %s, not %s"):format(
        name, wanted, options.show(value)))
    end
  end
  check_headers("gateway.fetch", "headers",
    options.sorted_keys(request.headers or {}))
end


-- The same request, its `max` as a number: "16K" is 16384.
local function with_size(request)
  local max, wanted = options.size(request.max)
  if not max then
    options.fail(nil, "gateway.fetch", ("max takes %s, not %s"):format(wanted,
      options.show(request.max)))
  end
  local read = {}
  for name, value in pairs(request) do
    read[name] = value
  end
  read.max = max
  return read
end


--- app:fetch(path | { path =, … }): the same as gateway.fetch(app, …).
local function fetch(self, request)
  if getmetatable(self) ~= Upstream then
    options.fail(nil, "gateway.fetch",
      "takes an upstream first: gateway.fetch(app, { path = \"/x\" })")
  end
  if type(request) == "string" then
    request = { path = request }
  elseif type(request) == "table" then
    if type(request.max) == "string" then
      request = with_size(request)
    end
    check_fetch(request)
  elseif type(request) ~= "userdata" then
    options.fail(nil, "gateway.fetch", "takes a path or { path = \"/x\" }, not "
      .. options.show(request))
  end
  return core.fetch(self.index, request)
end

M.fetch = fetch
Upstream.__index = { to = to, fetch = fetch }


--- True where `value` may stand as `handle`: an upstream, or app:to(…).
function M.is_forward(value)
  local kind = getmetatable(value)
  return kind == Upstream or kind == Forward
end


--- True where `value` is an upstream for gateway.tcp alone.
function M.is_stream(value)
  return getmetatable(value) == Stream
end


--- Checks the names in a forward's templates against a route's captures.
function M.check_templates(at, what, forward, captures)
  local known = {}
  for name in pairs(NAMES) do
    known[name] = true
  end
  for name in pairs(captures) do
    known[name] = true
  end
  local function check(option, template)
    local left = template:gsub("{([^{}]*)}", function(name)
      if not known[name] then
        local plain = name:match("^([%w_]+)%.%.%.$")
        options.fail(at, what, ("%s: nothing is named {%s}%s"):format(option,
          name, plain and captures[plain] and (": write {%s}, the dots stand"
            .. " only in the route's path"):format(plain)
            or options.suggest(name, known)))
      end
      return ""
    end)
    if left:find("[{}]") then
      options.fail(at, what, ("%s: braces do not match in %s"):format(option,
        options.show(template)))
    end
  end
  check("target", forward.target)
  for _, name in ipairs(options.sorted_keys(forward.set)) do
    check("set " .. name, forward.set[name])
  end
  for _, name in ipairs(options.sorted_keys(forward.respond_set)) do
    check("respond_set " .. name, forward.respond_set[name])
  end
end


return M
