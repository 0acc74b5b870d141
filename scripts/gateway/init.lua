--- gateway: what a policy may say.
--
--     local gateway = require "gateway"
--     local id = require "gateway.identity"
--
--     gateway.listen {
--       address = "127.0.0.1:8443", client_ca = "certs/ca.crt",
--       certificate = "certs/server.crt", key = "certs/server.key",
--     }
--     gateway.get("/hello", {
--       authorize = id.ou "ops",
--       handle = function() return gateway.text "hello\n" end,
--     })
--
-- The first part of this API declares, while the policy loads, and raises an
-- error that begins with file:line at every mistake. The second part is for
-- hooks, which run per request.
--
-- The library, part by part. A module uses its own part and those above it, and
-- gateway.core, which the C side gives. What each is for is its first line.
-- `gateway NAME` runs main of its module: NAME, or control.
--
--   ground     options, strings, stage, pointer, scan, policy: the book that
--              the rest of the policy library writes
--   policies   identity, schema, response, upstream, command, route, jobs,
--              shadow, document, openapi_read, openapi_schema, openapi, init
--   schemas    charset, regex, automaton, redos, pattern, shape, oracle,
--              generate, canary: what passes, computed; values that do
--   tools      tool, who, client_for, stub, story, decisions, reach, finding,
--              http_client: what several commands need
--   test       luadump, coverage, results, fuzz_model, fuzz_change,
--              fuzz_failure, fuzz, test
--   audit      luasource, flow, audit_config, audit_hook, audit_input,
--              audit_trace, audit_openapi_policy, audit_openapi,
--              audit_live_input, audit_live_probe, audit_live, audit_host,
--              audit_allow, audit
--   commands   control, explain, replay, routes, whoami, topics, reference,
--              luals, docs, completion

local core <const> = require "gateway.core"
local command <const> = require "gateway.command"
local jobs <const> = require "gateway.jobs"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local response <const> = require "gateway.response"
local route <const> = require "gateway.route"
local schema <const> = require "gateway.schema"
local shadow <const> = require "gateway.shadow"
local upstream <const> = require "gateway.upstream"
local M = {}


-- ---- process and listeners -------------------------------------------------

local LIMITS_SPEC <const> = options.spec("gateway.listen: limits", {
  handshake = { options.seconds, default = 10000, json = "handshake_ms",
    help = "for a TLS handshake" },
  head = { options.seconds, default = 10000, json = "head_ms",
    help = "for a request's head" },
  body_idle = { options.seconds, default = 30000, json = "body_ms",
    help = "between two parts of a request's body" },
  write_idle = { options.seconds, default = 30000, json = "write_ms",
    help = "for a client to take more of an answer" },
  idle = { options.seconds, default = 75000, json = "idle_ms",
    help = "between two requests of a connection" },
  head_size = { options.size, default = 16384, json = "head_bytes",
    help = "bytes of a head" },
  head_fields = { options.integer(1, 10000), default = 100,
    help = "fields of a head" },
  uri_size = { options.size, default = 8192, json = "uri_bytes",
    help = "bytes of a request's target" },
  body_size = { options.size, default = 1048576, json = "body_bytes",
    help = "bytes of a body that is buffered" },
  connections = { options.integer(1, 1000000), default = 10000,
    help = "open at a time, in each worker" },
  handshakes = { options.integer(1, 1000000), default = 100,
    help = "under way at a time, in each worker" },
  per_identity = { options.integer(1, 1000000), default = 200,
    help = "connections of one client, in each worker" },
  requests = { options.integer(0, 4294967295), default = 10000,
    help = "of one connection, which then closes; 0: no end" },
  pipeline = { options.size, default = 65536, json = "pipeline_bytes",
    help = "bytes of requests that came before their turn" },
  query_params = { options.integer(0, 10000), default = 100,
    help = "parameters of a query" },
  hook_cpu = { options.seconds, default = 100, json = "hook_cpu_ms",
    help = "computing time of one hook" },
  hook_time = { options.seconds, default = 30000, json = "hook_time_ms",
    help = "of one hook, waiting and all" },
})

local LATER <const> = "comes with a later version"

-- Must a client's certificate be issued for clientAuth? True: it need not.
local function any_purpose(value)
  if value == "any" or value == "clientAuth" then
    return value == "any"
  end
  return nil, '"clientAuth" or "any"'
end


-- Names of files, no folders: one, or a list of them; always a list in the end.
local function file_names(value)
  local list = options.texts(options.text(value) and { value } or value)
  return list and list[1] and list, "a file name, or a list of them"
end


-- Revocation lists of a server name; false: none, where the listener has some.
local function lists(value)
  if value == false then
    return core.array {}
  end
  return options.files(value)
end


-- false: no tickets. A table: how long they live, and how long their keys.
local function tickets(value)
  if type(value) == "boolean" or type(value) == "table" then
    return value
  end
  return nil, "true, false or { lifetime = …, rotate = … }"
end

local LISTEN_SPEC <const> = options.spec("gateway.listen", {
  name = { options.text,
    help = "what routes and logs call it; if not given, its address" },
  address = { options.text, required = true,
    help = '"127.0.0.1:8443", "[::1]:8443", "*:8443" or "unix:/path"' },
  certificate = { file_names,
    help = "PEM: the server's, its intermediates after it" },
  key = { file_names,
    help = "PEM: the key of each certificate, in the same order" },
  certificates = { options.table,
    help = "the same, as a list of { certificate =, key = }" },
  client_ca = { options.text, required = true,
    help = "PEM: who may have issued the clients' certificates" },
  sni = { options.table, default = {},
    help = "by server name, another certificate, client_ca or crl" },
  sni_strict = { options.boolean, default = false,
    help = "refuse server names that sni does not have" },
  tickets = { tickets, default = true,
    help = "whether clients may resume; { lifetime =, rotate = }" },
  explain = { options.boolean, default = false,
    help = "tell clients why they were refused" },
  log_identity = { options.boolean, default = false,
    help = "a line for each new client, so that a log can be run again" },
  limits = { options.table, default = {},
    help = "see gateway.listen: limits" },
  crl = options.CRL.crl,
  crl_missing = options.CRL.crl_missing,
  crl_expired = options.CRL.crl_expired,
  host_check = { options.boolean, default = true,
    help = "answer 421 where Host is not the TLS server name" },
  strip_headers = { options.texts, default = core.array {},
    help = 'more fields that no client may send: names, or "X-Team-*"' },
  proxy_protocol = { options.table,
    help = '{ from = { "10.0.0.0/8" } }: balancers that announce clients' },
  eku = { any_purpose, default = false, shown = '"clientAuth"',
    help = "what clients' certificates must be issued for" },
  depth = { options.integer(1, 9), default = 9,
    help = "certificates above a client's, at most" },
})

local CERTIFICATE_SPEC <const> = options.spec("gateway.listen: certificates", {
  certificate = { options.text, required = true,
    help = "PEM: the server's, its intermediates after it" },
  key = { options.text, required = true,
    help = "PEM: its key" },
})

local SNI_SPEC <const> = options.spec("gateway.listen: sni", {
  certificate = { file_names,
    help = "PEM: for this name" },
  key = { file_names,
    help = "PEM: its key" },
  certificates = { options.table,
    help = "the same, as a list of { certificate =, key = }" },
  client_ca = { options.text, default = "",
    help = "PEM: who may have issued the certificates of its clients" },
  crl = { lists,
    help = "lists of that client_ca; false: none" },
})

local TICKETS_SPEC <const> = options.spec("gateway.listen: tickets", {
  lifetime = { options.seconds, default = 8 * 3600 * 1000,
    help = "since the client last showed its certificate" },
  rotate = { options.seconds, default = 8 * 3600 * 1000,
    help = "how often the key changes" },
})


-- Workers: a number, or "auto" for one a processor, which is 0 in JSON.
local function workers(value)
  if value == "auto" then
    return 0
  end
  local number = options.integer(1, 256)(value)
  return number, 'a whole number from 1 to 256, or "auto"'
end


-- The control socket; false: none.
local function control(value)
  if value == false then
    return "off"
  end
  local path = options.text(value) and value:find("^unix:/[^/]") and value
  return path or nil, '"unix:/path", or false'
end

local PROCESS_SPEC <const> = options.spec("gateway.process", {
  workers = { workers, default = 1,
    help = 'processes that serve; "auto": one a processor' },
  user = { options.text, default = "nobody",
    help = "whom they become, where gateway is started as root" },
  group = { options.text, default = "",
    help = "their group; if not given, the user's" },
  access_log = { options.boolean, default = true,
    help = "a line for each request" },
  log_level = { options.one_of("debug", "info", "warn", "error"),
    default = "info",
    help = "the least that is logged" },
  lua_memory = { options.size, default = 67108864,
    help = "of one worker's scripts" },
  drain = { options.seconds, default = 30000,
    help = "how long a drain or reload waits for requests" },
  accept_missing = { options.texts, default = core.array {},
    help = "floor layers that this machine may lack" },
  must_have = { options.texts, default = core.array {},
    help = "extra layers and posture that stop the start if missing" },
  clock = { options.one_of("wait", "floor"), default = "wait",
    help = "while the clock is not set: wait, or take the day of the build" },
  ticket_keys = { options.text, default = "",
    help = "a file of keys that replicas share" },
  audit_key = { options.text, default = "",
    help = "a file: audit records carry MACs under this key" },
  control = { control, default = "",
    help = "its control socket; false: none. If not given, it is in "
      .. "/run/gateway, $XDG_RUNTIME_DIR/gateway or /tmp/gateway-UID" },
})

local ADMIN_SPEC <const> = options.spec("gateway.admin", {
  address = { options.text, required = true,
    help = '"127.0.0.1:9443" or "unix:/path": in the clear, to whoever asks' },
})


-- How the program runs, as the configuration wants it.
local function read_process(at, what, given)
  local read = options.read(at, what, given, PROCESS_SPEC)
  read.drain_ms, read.drain = read.drain, nil
  read.clock_floor, read.clock = read.clock == "floor", nil
  read.at = at
  return read
end

policy.set_default_process(read_process(nil, "gateway.process", {}))


--- process { workers =, user =, … }: how the program runs; at most once.
function M.process(given)
  local what <const> = "gateway.process"
  local at = policy.declare(what)
  policy.set_process(at, read_process(at, what, given))
end


-- The certificates of a listener or server name, in either form, as a list of
-- { certificate =, key = }; takes the options out of `read`.
local function take_certificates(at, what, read)
  local names, keys, list = read.certificate, read.key, read.certificates
  local pairs_ = core.array {}
  read.certificate, read.key, read.certificates = nil, nil, nil
  if list then
    if names or keys then
      options.fail(at, what, "give either certificate and key,"
        .. " or certificates")
    end
    for _, pair in ipairs(list) do
      pairs_[#pairs_ + 1] = options.read(at, what .. ": certificates", pair,
        CERTIFICATE_SPEC)
    end
    if #pairs_ == 0 then
      options.fail(at, what, "certificates must be a list such as"
        .. ' { { certificate = "server.crt", key = "server.key" } }')
    end
    return pairs_
  end
  if names and not keys then
    options.fail(at, what, "option 'key' is missing")
  elseif keys and not names then
    options.fail(at, what, "option 'certificate' is missing")
  end
  names, keys = names or {}, keys or {}
  if #names ~= #keys then
    options.fail(at, what, ("certificate names %d files, and key %d: one key"
      .. " for each certificate, in the same order"):format(#names, #keys))
  end
  for i, name in ipairs(names) do
    pairs_[i] = { certificate = name, key = keys[i] }
  end
  return pairs_
end


-- What is served by server name, as a list.
local function read_sni(at, what, sni, crl)
  local list = core.array {}
  for _, name in ipairs(options.sorted_keys(sni)) do
    if type(name) ~= "string" then
      options.fail(at, what, "sni must be a table of server names, such as"
        .. ' { ["a.example"] = { client_ca = "a.crt" } }')
    end
    local here = ("%s: sni %q"):format(what, name)
    local read = options.read(at, here, sni[name], SNI_SPEC)
    read.certificates = take_certificates(at, here, read)
    if #read.certificates == 0 and read.client_ca == "" then
      options.fail(at, here, "says nothing: give certificate and key,"
        .. " or client_ca")
    end
    if read.client_ca ~= "" and not read.crl and #crl > 0 then
      options.fail(at, here, "has a client_ca of its own, so the lists of the"
        .. " listener do not cover it: give crl, or crl = false")
    elseif read.client_ca == "" and read.crl and #read.crl == 0 then
      options.fail(at, here, "crl = false needs a client_ca of its own")
    end
    read.name = name:lower()
    list[#list + 1] = read
  end
  return list
end


local function read_tickets(at, what, read)
  local given = read.tickets
  read.tickets = given ~= false
  given = options.read(at, what .. ": tickets",
    type(given) == "table" and given or {}, TICKETS_SPEC)
  read.ticket_lifetime_s = math.max(1, given.lifetime // 1000)
  read.ticket_rotate_s = math.max(1, given.rotate // 1000)
end


local PROXY_SPEC <const> = options.spec("gateway.listen: proxy_protocol", {
  from = { options.texts, required = true,
    help = "whose connections begin with a PROXY header; others are refused" },
})


-- A listener, as the configuration wants it.
local function read_listener(at, what, given)
  local read = options.read(at, what, given, LISTEN_SPEC)
  local limits = options.read(at, what .. ": limits", read.limits, LIMITS_SPEC)
  read.limits = {}
  for name, value in pairs(limits) do
    read.limits[LIMITS_SPEC[name].json or name] = value
  end
  read.eku_any, read.eku = read.eku, nil
  if read.eku_any then
    policy.warn(at, what .. [[: eku = "any" lets in certificates that were]]
      .. " issued for something else, such as a web server's: let authorize"
      .. " name who may call, never id.anyone")
  end
  options.read_crl(read)
  if read.proxy_protocol then
    read.proxy_from = options.read(at, what .. ": proxy_protocol",
      read.proxy_protocol, PROXY_SPEC).from
    read.proxy_protocol = nil
  end
  read.certificates = take_certificates(at, what, read)
  if #read.certificates == 0 then
    options.fail(at, what, "option 'certificate' is missing")
  end
  read.sni = read_sni(at, what, read.sni, read.crl)
  read_tickets(at, what, read)
  read.name = read.name or read.address
  policy.unique(at, what, "listeners", read.name)
  read.at = at
  return read
end


--- listen { address =, certificate =, key =, client_ca =, … }: a TLS listener.
function M.listen(given)
  local what <const> = "gateway.listen"
  local at = policy.declare(what)
  policy.add("listeners", read_listener(at, what, given))
end


local TCP_SPEC <const> = options.spec("gateway.tcp", {
  listen = { options.table, required = true,
    help = "as gateway.listen takes it" },
  authorize = { options.anything,
    type = "condition or function(identity)", help = "who; required" },
  to = { options.anything, required = true,
    type = '"tcp://HOST:PORT", "unix:/PATH", or an upstream of such targets',
    help = "where to" },
  idle = { options.seconds, default = 3600000,
    help = "without a byte in either direction" },
  half_idle = { options.seconds, default = 60000,
    help = "the same, when one direction has ended" },
  alpn = { options.texts, default = core.array {},
    help = "protocols that are offered to clients" },
  log = { options.anything,
    type = "function, or list of functions",
    help = "called at the end, (request, response, decision)" },
})


--- tcp { listen = { … }, authorize =, to = }: any protocol over TCP, for whom
-- authorize allows; `to` is "tcp://host:port", "unix:/path", or an upstream of
-- such targets.
function M.tcp(given)
  local what <const> = "gateway.tcp"
  local at = policy.declare(what)
  local read = options.read(at, what, given, TCP_SPEC)
  local listener = read_listener(at, what .. ": listen", read.listen)
  if listener.explain then
    options.fail(at, what, "explain: there is no answer to explain it in")
  end
  listener.tcp = {
    authorize = core.array { route.read_authorize(at, what, read.authorize) },
    log = core.array(route.read_hooks(at, what, "log", read.log)),
    upstream = upstream.stream(at, what, read.to, listener.name),
    idle_ms = read.idle, half_ms = read.half_idle, alpn = read.alpn,
  }
  policy.add("listeners", listener)
end


--- admin { address = }: where /healthz, /readyz and /metrics are served.
function M.admin(given)
  local what <const> = "gateway.admin"
  local at = policy.declare(what)
  local read = options.read(at, what, given, ADMIN_SPEC)
  read.at = at
  policy.add("admin", read)
end


--- env(name [, default]): an environment variable, as it was at start.
function M.env(name, default)
  local what <const> = "gateway.env"
  local at = policy.declare(what)
  if type(name) ~= "string" or not name:find("^[%a_][%w_]*$") then
    options.fail(at, what, "no variable name " .. options.show(name))
  end
  policy.ask_env(name)
  local value = core.env(name)
  if value == nil and default == nil then
    options.fail(at, what, ("%s is not set: set it, or give a default:"
      .. " gateway.env(%q, \"…\")"):format(name, name))
  end
  if value == nil then
    return default
  end
  return value
end


-- ---- upstreams, commands, routes, schemas ----------------------------------

M.upstream = upstream.declare
M.command = command.declare
M.slot = command.slot
M.jobs = jobs.declare
M.shadow = shadow.declare

for _, name in ipairs {
  "get", "post", "put", "patch", "delete", "head", "options", "any", "route",
  "group",
} do
  M[name] = route[name]
end

for _, name in ipairs {
  "string", "integer", "number", "boolean", "enum", "const", "filename",
  "relative_path", "uuid", "date", "datetime", "array", "object", "any_of",
  "one_of", "all_of", "optional", "commas", "schema", "file_below", "bytes",
  "stream", "unchecked",
} do
  M[name] = schema[name]
end


--- openapi "api.yaml", openapi { file =, handlers =, upstream =, … }: routes
-- and schemas straight from an OpenAPI document: OpenAPI 3.0 and 3.1, Swagger
-- 2.0; YAML or JSON. What cannot be checked strictly does not load.
function M.openapi(given)
  -- here, for a policy without one does not need the module
  return require "gateway.openapi".declare(given)
end


-- ---- for hooks -------------------------------------------------------------

M.text = response.text
M.json = response.json
M.response = response.response
M.problem = response.problem

--- fetch(upstream, path | { path =, method =, … }): asks an upstream and waits.
-- Returns { status, headers, body }; or nil, message, code.
M.fetch = upstream.fetch

--- sleep(seconds): waits; other requests go on.
M.sleep = core.sleep

--- now(): seconds of a clock that never goes back.
M.now = core.now

--- time(): seconds since 1970.
M.time = core.time

--- random(n): n random hexadecimal digits.
M.random = core.random

--- null: the JSON null.
M.null = core.null

--- list(t): marks a table as a JSON array, also if it is empty.
M.list = core.array

--- encode(value): a value as JSON text.
M.encode = core.encode

--- decode(text): JSON text as a value.
M.decode = core.decode

local LEVELS <const> = { debug = true, info = true, warn = true, error = true }


--- log([level,] message): one line on the log; level "info" if not given.
function M.log(level, message)
  if message == nil then
    level, message = "info", level
  end
  if not LEVELS[level] then
    options.fail(nil, "gateway.log", ("no level %s%s"):format(
      options.show(level), options.suggest(tostring(level), LEVELS)))
  end
  core.log(level, tostring(message))
end


-- ---- slips -----------------------------------------------------------------

local NOT_YET <const> = { limit = true }


-- Reading what is not there: gateway.gett(…), gateway.limit(…).
local function missing(_, name)
  if NOT_YET[name] then
    options.fail(nil, "gateway." .. name, LATER)
  end
  options.fail(nil, "gateway." .. tostring(name), "there is no such function"
    .. options.suggest(tostring(name), M))
end


return setmetatable(M, { __index = missing })
