--- Audit rules about what a policy declares: who, where, and within what walls.
--
-- Each rule looks at the plain configuration, and reports by
-- `audit:add(rule, at, what [, severity])`.

local finding <const> = require "gateway.finding"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local M = {}

local MIB <const> = 1048576
local MANY_SECONDS <const> = 300000

finding.rules {
  ["tls.no-crl"] = { "low", "a listener without revocation lists lets a stolen"
    .. " certificate in until it expires",
    "give crl = \"…\", and renew it by a timer" },
  ["tls.crl-missing"] = { "medium", "a client that no revocation list covers is"
    .. " let in", "leave out crl_missing = \"allow\"" },
  ["tls.crl-expired"] = { "medium", "a revocation list past its date still lets"
    .. " clients in", "leave out crl_expired = \"allow\"" },
  ["tls.eku-any"] = { "medium", "certificates that were issued for something"
    .. " else than clients are let in",
    "leave out eku = \"any\", and issue client certificates for clientAuth" },
  ["tls.explain"] = { "medium", "clients are told why they are refused, which"
    .. " helps one that probes", "leave out explain = true; the log says why" },
  ["tls.host-check"] = { "low", "Host may be another name than the one that TLS"
    .. " was made for", "leave out host_check = false" },
  ["tls.proxy-from-anywhere"] = { "medium", "anyone who can connect may claim"
    .. " any client address", "let proxy_protocol.from name the balancer" },
  ["tls.plain-upstream"] = { "medium", "requests cross a network in the clear",
    "write https:// and ca, or put the upstream on loopback or a Unix socket" },
  ["sandbox.accept-missing"] = { "medium", "the gateway starts without a layer"
    .. " of its sandbox", "leave it out of accept_missing; give the machine"
    .. " what `gateway check` says the layer needs" },
  ["sandbox.root"] = { "high", "workers run as root",
    "name an ordinary user in gateway.process { user = … }" },
  ["sandbox.clock-floor"] = { "low", "a clock that is wrong does not stop"
    .. " clients, so expired certificates may pass",
    "write clock = \"wait\"" },
  ["sandbox.admin-exposed"] = { "medium", "health and metrics are served in the"
    .. " clear to whoever can connect",
    "write a loopback address, or unix:/path" },
  ["sandbox.no-access-log"] = { "low", "no line says who called what",
    "leave out access_log = false" },
  ["command.network"] = { "medium", "a program that clients drive can reach the"
    .. " network", "leave out network = true; or allow it, and say why" },
  ["command.write"] = { "low", "a program that clients drive may write files",
    "name as little as possible in write, and no folder that holds programs or"
    .. " configuration" },
  ["command.no-audit-key"] = { "info", "records of what was run carry no MAC",
    "give gateway.process { audit_key = … }" },
  ["limits.loose"] = { "low", "a limit is so wide that one client can hold what"
    .. " others need", "leave it out, for the default, or make it smaller" },
  ["identity.anyone"] = { "medium", "every client of the CA reaches an"
    .. " upstream",
    "say in authorize who needs it, such as id.spiffe or id.ou" },
  ["identity.denylist"] = { "medium", "authorize says only who may not enter:"
    .. " every other client of the CA may", "say who may, with id.all(…,"
    .. " id.none(…)) where some of them may not" },
  ["identity.any-method"] = { "low", "an upstream is reached with every method",
    "name the methods: gateway.get, or gateway.route({ \"GET\", … }, …)" },
  ["identity.whole-domain"] = { "low", "every workload of a trust domain counts"
    .. " as the same", "name the path, such as spiffe://domain/ns/x/sa/y" },
  ["policy.warning"] = { "low", "gateway check warns of something",
    "do what the warning says" },
  ["route.falls-through"] = { "medium", "a method that a route does not have"
    .. " passes on to a wider route with another authorize",
    "give the wider route the same authorize, or the narrow one all methods" },
  ["route.shadowed"] = { "medium", "no request reaches a route: others take"
    .. " every path that its schema lets through",
    "delete it, or widen its schema" },
}


-- ---- listeners and the process ---------------------------------------------

local function check_crl(audit, listener)
  local crl = listener.crl and #listener.crl > 0
  if not crl then
    audit:add("tls.no-crl", listener.at, ("listener %s has no revocation lists")
      :format(listener.name))
  end
  for _, site in ipairs(crl and listener.sni or {}) do
    if site.crl and #site.crl == 0 then
      audit:add("tls.no-crl", listener.at, ("server name %s of listener %s has"
        .. " no revocation lists"):format(site.name, listener.name))
    end
  end
end

local FLAGS <const> = {
  { "crl_missing_ok", true, "tls.crl-missing", "crl_missing = \"allow\"" },
  { "crl_expired_ok", true, "tls.crl-expired", "crl_expired = \"allow\"" },
  { "eku_any", true, "tls.eku-any", "eku = \"any\"" },
  { "explain", true, "tls.explain", "explain = true" },
  { "host_check", false, "tls.host-check", "host_check = false" },
}

-- Limits of a listener, and what is more than any client needs.
local LOOSE <const> = {
  head_bytes = 256 * 1024, body_bytes = 256 * MIB, pipeline_bytes = MIB,
  handshake_ms = 60000, head_ms = 60000, body_ms = MANY_SECONDS,
  write_ms = MANY_SECONDS, hook_cpu_ms = 2000, hook_time_ms = MANY_SECONDS,
  per_identity = 5000, query_params = 1000, head_fields = 1000,
}


local function check_limits(audit, what, at, limits, loose)
  for name, most in pairs(loose) do
    if limits[name] and limits[name] > most then
      audit:add("limits.loose", at, ("%s: %s is %d, more than %d"):format(what,
        name, limits[name], most))
    end
  end
end


local function check_listeners(audit, book)
  for _, listener in ipairs(book.listeners) do
    check_crl(audit, listener)
    for _, row in ipairs(FLAGS) do
      if listener[row[1]] == row[2] then
        audit:add(row[3], listener.at, ("listener %s: %s"):format(listener.name,
          row[4]))
      end
    end
    check_limits(audit, "listener " .. listener.name, listener.at,
      listener.limits, LOOSE)
    for _, from in ipairs(listener.proxy_from or {}) do
      if from:find("/0$") then
        audit:add("tls.proxy-from-anywhere", listener.at,
          ("listener %s: proxy_protocol from %s"):format(listener.name, from))
      end
    end
    if listener.limits.requests == 0 then
      audit:add("limits.loose", listener.at, ("listener %s: a connection may"
        .. " carry any number of requests"):format(listener.name))
    end
  end
end

-- Layers without which a hole in a worker or a program is a way out.
local CRUCIAL <const> = { seccomp = true, landlock = true, no_new_privs = true }


local function check_process(audit, book)
  local process, at = book.process, book.process_at
  if not process then
    return
  end
  for _, layer in ipairs(process.accept_missing) do
    audit:add("sandbox.accept-missing", at, ("accept_missing names %s"):format(
      layer), CRUCIAL[layer] and "high" or nil)
  end
  if process.user == "root" then
    audit:add("sandbox.root", at, "user = \"root\"")
  end
  if process.clock_floor then
    audit:add("sandbox.clock-floor", at, "clock = \"floor\"")
  end
  if not process.access_log then
    audit:add("sandbox.no-access-log", at, "access_log = false")
  end
end


local function is_loopback(address)
  return address:find("^unix:") or address:find("^127%.")
    or address:find("^localhost:") or address:find("^%[::1%]")
end


local function check_admin(audit, book)
  for _, admin in ipairs(book.admin) do
    if not is_loopback(admin.address) then
      audit:add("sandbox.admin-exposed", admin.at,
        ("gateway.admin listens on %s"):format(admin.address))
    end
  end
end


-- ---- upstreams and commands ------------------------------------------------

local function check_upstreams(audit, book)
  for _, upstream in ipairs(book.upstreams) do
    for _, target in ipairs(upstream.targets) do
      local host = target:match("^http://(.*)$") or target:match("^tcp://(.*)$")
      if host and not is_loopback(host .. ":") then
        audit:add("tls.plain-upstream", upstream.at,
          ("upstream %s is %s"):format(upstream.name, target))
      end
    end
    for _, row in ipairs { FLAGS[1], FLAGS[2] } do
      if upstream[row[1]] then
        audit:add(row[3], upstream.at, ("upstream %s: %s"):format(upstream.name,
          row[4]))
      end
    end
  end
end

local LOOSE_COMMAND <const> = {
  timeout_ms = 600000, memory = 4096 * MIB, cpu_ms = 600000, processes = 1024,
  file_size = 1024 * MIB, stdout = 256 * MIB, stdin = 256 * MIB,
}


local function check_commands(audit, book)
  for _, command in ipairs(book.commands) do
    local what = "command " .. command.name
    if command.network then
      audit:add("command.network", command.at, what .. ": network = true")
    end
    for _, path in ipairs(command.write) do
      audit:add("command.write", command.at, ("%s may write below %s"):format(
        what, path), path == "/" and "high" or nil)
    end
    check_limits(audit, what, command.at, command, LOOSE_COMMAND)
  end
  local first = book.commands[1]
  if first and not (book.process and book.process.audit_key ~= "") then
    audit:add("command.no-audit-key", first.at, "commands are declared, and no"
      .. " audit_key")
  end
end


-- ---- who -------------------------------------------------------------------

-- True where the text of a condition holds for every client: "anyone", or
-- any(…) of it. A function is not one of these.
local function is_anyone(text)
  if text == "anyone" then
    return true
  end
  local inside = text:match("^any(%b())$")
  return inside ~= nil and (" " .. inside:gsub("%b\"\"", "")):find(
    "[%s(,]anyone%f[^%w]") ~= nil and not inside:find("none(", 1, true)
    and not inside:find("all(", 1, true)
end


--- True where a route lets in every client of the CA.
function M.open(route)
  for _, who in ipairs(route.authorize) do
    if not is_anyone(who.text) then
      return false
    end
  end
  return true
end


-- True where authorize says only who may not enter.
local function is_denylist(route)
  local found = false
  for _, who in ipairs(route.authorize) do
    local denies = who.text:find("^none%b()$") ~= nil
    if not denies and not is_anyone(who.text) then
      return false
    end
    found = found or denies
  end
  return found
end


local function check_denylist(audit, route, at, name)
  if is_denylist(route) then
    audit:add("identity.denylist", at, ("%s: authorize says only who may not"
      .. " enter: %s"):format(name, route.authorize[1].text))
  end
end


local function check_who(audit, route)
  check_denylist(audit, route, route.at, policy.title(route))
  local proxy = route.handle.kind == "proxy"
  if proxy and M.open(route) then
    audit:add("identity.anyone", route.at, ("%s: anyone with a certificate"
      .. " reaches the upstream"):format(policy.title(route)))
  end
  if proxy and route.methods[1] == "*" then
    audit:add("identity.any-method", route.at, policy.title(route)
      .. ": every method is forwarded")
  end
  for _, who in ipairs(route.authorize) do
    local domain = who.text:match("spiffe \"(spiffe://[^/\"]+/%*%*)\"")
    if domain then
      audit:add("identity.whole-domain", route.at, ("%s: %s is every workload"
        .. " there is"):format(policy.title(route), domain))
    end
  end
end


local function check_tunnels(audit, book)
  for _, listener in ipairs(book.listeners) do
    if listener.tcp and M.open(listener.tcp) then
      audit:add("identity.anyone", listener.at, ("gateway.tcp %s: anyone with a"
        .. " certificate reaches the server behind"):format(listener.name))
    end
    if listener.tcp then
      check_denylist(audit, listener.tcp, listener.at, "gateway.tcp "
        .. listener.name)
    end
  end
end


-- ---- routes and other routes -----------------------------------------------

-- Does the pattern of `wide` take the paths of `narrow`, and others?
local function is_wider(wide, narrow)
  local a, b = options.segments(wide), options.segments(narrow)
  for i, segment in ipairs(a) do
    if segment:find("%.%.%.}$") then
      return b[i] ~= nil and b[i] ~= "" and wide ~= narrow
    elseif not b[i] or segment ~= b[i] and not segment:find("^{") then
      return false
    end
  end
  return #a == #b and wide ~= narrow and not narrow:find("...}", 1, true)
end


local function who_text(route)
  local texts = {}
  for i, who in ipairs(route.authorize) do
    texts[i] = who.text
  end
  return table.concat(texts, " and ")
end

local METHODS <const> = { "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE",
  "OPTIONS" }


-- The methods that `wide` takes and `narrow` does not.
local function left_over(wide, narrow)
  local list = {}
  for _, method in ipairs(METHODS) do
    if policy.takes(wide, method) and not policy.takes(narrow, method) then
      list[#list + 1] = method
    end
  end
  return list
end


-- Does any route of this path take the method?
local function taken_at(book, path, method)
  for _, route in ipairs(book.routes) do
    if route.path == path and policy.takes(route, method) then
      return true
    end
  end
  return false
end


local function check_falls_through(audit, book, narrow)
  for _, wide in ipairs(book.routes) do
    local same_place = wide.host == narrow.host
      and wide.listener == narrow.listener
    if same_place and is_wider(wide.path, narrow.path)
      and who_text(wide) ~= who_text(narrow) then
      local methods = {}
      for _, method in ipairs(left_over(wide, narrow)) do
        if not taken_at(book, narrow.path, method) then
          methods[#methods + 1] = method
        end
      end
      if #methods > 0 then
        audit:add("route.falls-through", narrow.at, ("%s of %s is answered by"
          .. " %s (%s), whose authorize is %s"):format(
          table.concat(methods, ", "), narrow.path, policy.title(wide), wide.at,
          who_text(wide)), not M.open(wide) and "low" or nil)
      end
    end
  end
end


-- Where all values of a capture are literal segments of other routes.
local function check_shadowed(audit, book, route)
  for name, schema in pairs(route.path_schemas) do
    local values = schema.enum or schema.const ~= nil and { schema.const }
    local shadowed = values and #values > 0
    for _, value in ipairs(values or {}) do
      local path = route.path:gsub("{" .. name .. "%.*}", function()
        return tostring(value)
      end)
      for _, method in ipairs(route.methods[1] == "*" and METHODS
        or route.methods) do
        shadowed = shadowed and taken_at(book, path, method)
      end
    end
    if shadowed then
      audit:add("route.shadowed", route.at, ("%s: each value of {%s} has a"
        .. " route of its own, which goes first"):format(policy.title(route),
        name))
    end
  end
end


-- What the declarations themselves have remarked; eku has a rule of its own.
local function check_warnings(audit, book)
  for _, warning in ipairs(book.warnings) do
    if not warning.text:find("eku =", 1, true) then
      audit:add("policy.warning", warning.at, warning.text)
    end
  end
end


--- Applies the rules.
function M.check(audit, book)
  check_warnings(audit, book)
  check_listeners(audit, book)
  check_process(audit, book)
  check_admin(audit, book)
  check_upstreams(audit, book)
  check_commands(audit, book)
  check_tunnels(audit, book)
  for _, route in ipairs(book.routes) do
    check_who(audit, route)
    check_falls_through(audit, book, route)
    check_shadowed(audit, book, route)
  end
end


return M
