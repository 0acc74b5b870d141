--- `gateway audit --live URL`: a running service, ours or anyone's.
--
-- Is a client certificate really asked for? The same request is sent with
-- certificates that must not do: none, one that signs itself, one of another CA
-- of the same name, an expired one, one for servers. Then, with an OpenAPI
-- document, each input is probed (audit_live_probe). Only the host of the URL
-- is ever talked to: redirects are not followed, and the document's servers do
-- not count.

local core <const> = require "gateway.core"
local document <const> = require "gateway.document"
local finding <const> = require "gateway.finding"
local http_client <const> = require "gateway.http_client"
local input <const> = require "gateway.audit_live_input"
local options <const> = require "gateway.options"
local openapi_read <const> = require "gateway.openapi_read"
local probe <const> = require "gateway.audit_live_probe"
local strings <const> = require "gateway.strings"
local M = {}

local DAY <const> = 86400
local HELLO_SECONDS <const> = 5
local MTLS <const> = "take no request without a certificate of your own CA"

finding.rules {
  ["live.no-certificate"] = { "high", "requests without a client certificate"
    .. " are answered", "require one, and refuse in the handshake" },
  ["live.self-signed"] = { "high", "a certificate that signs itself is let in",
    MTLS },
  ["live.other-ca"] = { "high", "a certificate of another CA with the same name"
    .. " is let in", "verify signatures, not names" },
  ["live.expired"] = { "high", "an expired certificate is let in",
    "verify the dates" },
  ["live.server-certificate"] = { "medium", "a certificate for servers is let"
    .. " in as a client's", "ask for the purpose clientAuth" },
  ["live.plain-http"] = { "high", "requests without TLS are answered",
    "serve TLS only on this port" },
  ["live.old-tls"] = { "medium", "the service speaks TLS 1.0 or 1.1",
    "let TLS 1.2 be the oldest" },
  ["live.unsure"] = { "low", "a bad certificate got the refusal that the good"
    .. " one got", "give a URL that the good certificate may"
    .. " GET" },
  ["live.baseline"] = { "info", "not even a valid request was answered with"
    .. " 2xx, so probes show less", "put examples into the document that the"
    .. " service takes" },
  ["live.incomplete"] = { "info", "the audit stopped before its end",
    "give a higher --max" },
}

local SAFE <const> = { GET = true, HEAD = true, OPTIONS = true }

local Live = {}
Live.__index = Live

local STOP <const> = {}  -- raised where --max requests were sent


function Live:add(rule, at, what, severity)
  self.list:add { rule = rule, at = at, severity = severity,
    what = strings.for_json(what) }
end


-- Notes how a check went. @param state  "ok", "found" or "not checked"
function Live:note(state, what, why)
  table.insert(self.checks, { state = state, what = strings.for_json(what),
    why = strings.for_json(why) })
end


-- Waits for its turn, and counts.
function Live:turn()
  if self.requests >= self.max then
    error(STOP, 0)
  end
  local now = core.now()
  if self.next_at > now then
    core.pause(self.next_at - now)
  end
  self.next_at = math.max(now, self.next_at) + 1 / self.rate
  self.requests = self.requests + 1
end


function Live:client(pair)
  local url = self.url
  return http_client.new {
    host = url.host, port = url.port, authority = url.authority,
    ca = self.ca, certificate = pair.certificate, key = pair.key,
    plain = pair.plain,
  }
end


--- Asks, with the good certificate.
function Live:ask(request)
  self:turn()
  return self.good:ask(request)
end


-- ---- the URL ---------------------------------------------------------------

--- Takes "https://host:port/path" apart; nil and why where it is none.
function M.url(text)
  local authority, rest = text:match("^https://([^/?#]+)(.*)$")
  if not authority then
    return nil, "must be https://HOST[:PORT][/PATH]"
  elseif authority:find("@", 1, true) or rest:find "[#%c ]" then
    return nil, "must have no user, no fragment and no blanks"
  end
  local host, port = authority:match("^%[([%x:.]+)%]:?(%d*)$")
  if not host then
    host, port = authority:match("^([%w._-]+):?(%d*)$")
  end
  if not host then
    return nil, "has no host that is a name or an address"
  end
  local path = rest:match("^[^?]*")
  return {
    host = host, port = port ~= "" and port or "443", authority = authority,
    target = (path == "" and "/" or "") .. rest, base = path:gsub("/+$", ""),
    at = "https://" .. authority .. (path == "" and "/" or path),
  }
end


-- ---- certificates that must not do -----------------------------------------

-- Mints a certificate that looks like the good one.
local function alike(self, more, issuer)
  local order = { like = self.certificate, eku = more.eku or "clientAuth",
    not_before = more.not_before, not_after = more.not_after }
  local pair, why = core.mint(order, issuer)
  if pair and issuer and more.signed then
    -- what stands behind the good one leads to the CA
    local _, last = self.certificate:find("%-%-%-%-%-END CERTIFICATE%-%-%-%-%-")
    pair.certificate = pair.certificate .. self.certificate:sub(last + 1)
  end
  return pair, why
end


local function other_ca(self)
  local ca = assert(core.mint { cn = "another CA", ca = true })
  return alike(self, {}, { key = ca.key })
end


local function by_ca(more)
  return function(self)
    return self:signed(more)
  end
end

local CHECKS <const> = {
  { "no certificate", "live.no-certificate", function() return {} end },
  { "a certificate that signs itself", "live.self-signed", function(self)
    return alike(self, {})
  end },
  { "a certificate of another CA of the same name", "live.other-ca", other_ca },
  { "an expired certificate", "live.expired", by_ca {
    not_before = -30 * DAY, not_after = -DAY } },
  { "a certificate for servers", "live.server-certificate", by_ca {
    eku = "serverAuth" } },
  { "plain HTTP on the TLS port", "live.plain-http", function()
    return { plain = true }
  end },
}


-- One by --ca-key, in `more` with dates from now on. Nil and why: there is no
-- such key, or what it signs is not even let in where it is good.
function Live:signed(more)
  if not self.ca_key then
    return nil, "give --ca-key, the key of a test CA that the service trusts"
  end
  local now = math.floor(core.time())
  return alike(self, {
    eku = more.eku, signed = true,
    not_before = more.not_before and now + more.not_before,
    not_after = more.not_after and now + more.not_after,
  }, { key = self.ca_key })
end


-- Does --ca-key make certificates that the service takes?
function Live:try_ca_key()
  if not self.ca_key then
    return
  end
  local pair, why = self:signed {}
  local answer
  if pair then
    self:turn()
    answer, why = self:client(pair):ask(self.plain_request)
  end
  if not answer or answer.status ~= self.answer.status then
    self.ca_key = nil
    self:note("not checked", "certificates by --ca-key", ("even a good one is"
      .. " refused (%s): give the key of the CA that issued --cert"):format(
      why or "status " .. answer.status))
  end
end


-- Was it refused because of its certificate? Then the good one is let in, right
-- after it, on a connection of its own.
function Live:refused(what, why, step)
  if why == "timeout" or step ~= "handshake" and step ~= "answer" then
    return self:note("not checked", what, why)
  end
  self:turn()
  local client = self:client(self)
  local answer = client:ask(self.plain_request)
  client:close()
  if answer then
    self:note("ok", what, "refused: " .. why)
  else
    self:note("not checked", what, "then the good certificate was refused, too")
  end
end


-- What an answer to a bad certificate means.
function Live:judge(check, answer, why, step)
  local what, rule, good = check[1], check[2], self.answer
  if not answer then
    return self:refused(what, why, step)
  elseif answer.status < 400 then
    self:note("found", what, "status " .. answer.status)
    self:add(rule, self.url.at, ("%s: %s %s is answered with %d"):format(what,
      self.plain_request.method, self.plain_request.target, answer.status),
      answer.status >= 300 and answer.status ~= good.status and "medium" or nil)
  elseif answer.status == good.status and answer.body == good.body then
    self:note("not checked", what, ("it got the answer that the good one got,"
      .. " %d"):format(answer.status))
    self:add("live.unsure", self.url.at, ("%s: the same %d as with the good"
      .. " certificate"):format(what, answer.status))
  else
    self:note("ok", what, "refused with status " .. answer.status)
  end
end


function Live:try_certificates()
  self:try_ca_key()
  for _, check in ipairs(CHECKS) do
    local pair, why = check[3](self)
    if pair then
      self:turn()
      local client = self:client(pair)
      self:judge(check, client:ask(self.plain_request))
      client:close()
    else
      self:note("not checked", check[1], why)
    end
  end
end


-- ---- old TLS ---------------------------------------------------------------

local function s2(text)
  return string.pack(">s2", text)
end


-- A ClientHello of an old version, with what servers of that age know.
local function old_hello(version, host)
  local extensions = string.pack(">I2", 10) .. s2(s2("\0\23\0\24\0\25"))
    .. string.pack(">I2", 11) .. s2 "\1\0"
  if not host:find "^[%d.:]+$" then
    extensions = extensions .. string.pack(">I2", 0)
      .. s2(s2("\0" .. s2(host)))
  end
  local random = core.random(64):gsub("%x%x", function(hex)
    return string.char(tonumber(hex, 16))
  end)
  local body = string.pack(">I2", version) .. random .. "\0"
    .. s2("\xc0\x0a\xc0\x09\xc0\x14\xc0\x13" -- ECDHE, AES, SHA-1
    .. "\0\x39\0\x33\0\x35\0\x2f\0\x0a\0\xff") .. "\1\0" .. s2(extensions)
  local hello = "\1" .. string.pack(">s3", body)
  return "\22\3\1" .. s2(hello)
end


-- What a server makes of it: true where it goes on with that version; else why
-- it does not.
local function read_hello(bytes, version)
  if bytes:byte(1) == 21 then
    return false, "alert " .. (bytes:byte(7) or "?")
  elseif bytes:byte(1) ~= 22 or bytes:byte(6) ~= 2 or #bytes < 11 then
    return false, "no ServerHello"
  end
  return string.unpack(">I2", bytes, 10) == version, "another version"
end


function Live:try_old(name, version)
  self:turn()
  local what = "a ClientHello of " .. name
  local dial, why = core.dial { host = self.url.host, port = self.url.port,
    plain = true, seconds = HELLO_SECONDS }
  if not dial then
    return self:note("not checked", what, why)
  end
  dial:send(old_hello(version, self.url.host), HELLO_SECONDS)
  local bytes, until_ = "", core.now() + HELLO_SECONDS
  while #bytes < 11 and not (bytes:byte(1) == 21 and #bytes >= 7) do
    local more
    more, why = dial:receive(math.max(0, until_ - core.now()))
    if not more then
      break
    end
    bytes = bytes .. more
  end
  dial:close()
  if bytes == "" then
    return self:note(why == "timeout" and "not checked" or "ok", what, why)
  end
  local spoken
  spoken, why = read_hello(bytes, version)
  self:note(spoken and "found" or "ok", what, not spoken and "refused: " .. why
    or "it answers with a ServerHello")
  if spoken then
    self:add("live.old-tls", self.url.at, ("a ClientHello of %s is answered"
      .. " with a ServerHello"):format(name))
  end
end


-- ---- the document ----------------------------------------------------------

-- The operations of the document that may be called.
function Live:read_document(name, text, unsafe)
  local doc, message = document.read(name, text)
  if not doc then
    return nil, message
  end
  local function try(func)
    local ok, problem = pcall(func)
    if not ok then
      self:note("not checked", "a part of " .. name, tostring(problem))
    end
  end
  local list = {}
  local ok, problem = pcall(function()
    local api = openapi_read.read(doc, try)
    for _, operation in ipairs(api.operations) do
      if not unsafe and not SAFE[operation.method] then
        self:note("not checked", operation.method .. " " .. operation.path,
          "give --unsafe-methods to call what may change something")
      else
        try(function()
          list[#list + 1] = input.read(api, operation)
        end)
      end
    end
  end)
  if not ok then
    return nil, tostring(problem)
  end
  return list
end


-- The first request of an operation: with all inputs, or if that is refused,
-- with those it must have.
function Live:try_operation(read)
  local statuses = {}
  for _, all in ipairs { true, false } do
    read.all = all
    local request = input.build(read, self.base)
    local answer, why = self:ask(request)
    statuses[#statuses + 1] = answer and answer.status or why
    if answer and answer.status < 300 then
      if self.answer.status >= 300 and read.method == "GET" then
        self.plain_request, self.answer = request, answer
      end
      return
    end
  end
  read.all = true
  self:add("live.baseline", read.at, ("%s: the valid request is answered with"
    .. " %s, and without optional inputs with %s"):format(read.name,
    table.unpack(statuses)))
end


function Live:try_slots(read)
  for _, slot in ipairs(read.slots) do
    local before = #self.list
    local what = read.name .. ", " .. slot.what
    local sent, why = probe.run(self, read, slot)
    if sent then
      self:note(#self.list > before and "found" or "ok", what,
        options.count(sent, "request"))
    else
      self:note("not checked", what, why)
    end
  end
end


-- ---- the whole -------------------------------------------------------------

function Live:try_all(operations)
  for _, read in ipairs(operations) do
    self:try_operation(read)
  end
  self:try_certificates()
  self:try_old("TLS 1.0", 0x301)
  self:try_old("TLS 1.1", 0x302)
  for _, read in ipairs(operations) do
    self:try_slots(read)
  end
end


--- Audits a running service.
-- @param list  the findings, to which this adds
-- @param opts  { url (of M.url), certificate, key, ca, ca_key (PEM), rate, max,
--              document = { name =, text = }, unsafe }
-- @return { checks, requests }; or nil and why it could not begin
function M.run(list, opts)
  local self = setmetatable({
    list = list, checks = {}, requests = 0, next_at = 0, url = opts.url,
    base = opts.url.base, certificate = opts.certificate, key = opts.key,
    ca = opts.ca, ca_key = opts.ca_key, rate = opts.rate, max = opts.max,
    plain_request = { method = "GET", target = opts.url.target },
  }, Live)
  self.good = self:client(self)
  local why
  self.answer, why = self:ask(self.plain_request)
  if not self.answer then
    return nil, strings.for_json(("%s: no answer with the good certificate:"
      .. " %s"):format(self.url.at, why))
  end
  local operations = {}
  if opts.document then
    operations, why = self:read_document(opts.document.name,
      opts.document.text, opts.unsafe)
    if not operations then
      return nil, why
    end
  end
  local ok, problem = pcall(self.try_all, self, operations)
  if not ok and problem ~= STOP then
    error(problem, 0)
  elseif not ok then
    self:add("live.incomplete", self.url.at, "stopped after "
      .. options.count(self.requests, "request"))
  end
  self.good:close()
  return { checks = core.array(self.checks), requests = self.requests }
end


-- ---- the command line ------------------------------------------------------

--- The options of `gateway audit` that are for --live.
M.OPTIONS = {
  { "live", "URL", "audit a running service: is mTLS enforced, and, with"
    .. " --openapi, do its inputs reach files or programs? Harmless probes; no"
    .. " other host. The document's paths are below the URL's" },
  { "cert", "FILE", "--live: a client certificate that the service takes" },
  { "key", "FILE", "--live: its key" },
  { "cacert", "FILE", "--live: the CA of the service's own certificate" },
  { "ca-key", "FILE", "--live: the key (EC P-256) of the test CA that issued"
    .. " --cert, to try expired certificates, too" },
  { "rate", "N", "--live: requests a second at most (default 20)" },
  { "max", "N", "--live: requests in all at most (default 2000)" },
  { "unsafe-methods", nil, "--live: also call operations that may change"
    .. " something (POST, PUT, DELETE, …)" },
  { "verbose", nil, "--live: tell what was found to be fine, too" },
}

local FILES <const> = { cert = "certificate", key = "key", cacert = "ca",
  ["ca-key"] = "ca_key" }


local function number_of(opts, name, default, most)
  local text = opts[name]
  local number = text and text:find "^%d+$" and math.tointeger(tonumber(text))
  if text and not (number and number >= 1 and number <= most) then
    return nil, ("--%s: must be a whole number of 1 to %d"):format(name, most)
  end
  return number or default
end


--- What is wrong with the options, or nil.
function M.misused(opts, operand)
  local wrong
  if not opts.live then
    for _, option in ipairs(M.OPTIONS) do
      if opts[option[1]] then
        return ("--%s is for --live"):format(option[1])
      end
    end
    return nil
  elseif operand or opts.policy or opts.trace then
    return "--live looks at a service: give no policy, and no --trace"
  end
  for _, name in ipairs { "cert", "key", "cacert" } do
    if not opts[name] then
      return ("--live needs --%s FILE"):format(name)
    end
  end
  for name, most in pairs { rate = 1000, max = 1000000 } do
    wrong = wrong or select(2, number_of(opts, name, 1, most))
  end
  local _, why = M.url(opts.live)
  return wrong or why and ("--live %s: %s"):format(opts.live, why)
end


local function print_checks(result, verbose, hint)
  for _, check in ipairs(result.checks) do
    if verbose or check.state == "not checked" then
      core.print(("%s: %s: %s"):format(check.state, check.what, check.why))
    end
  end
  core.print(("%s sent%s"):format(
    options.count(result.requests, "request"), hint and "; give"
    .. " --openapi FILE to probe the inputs, too" or ""))
end


--- Runs with the options of the command line, once misused() has nothing to
-- say. @return the exit code
function M.main(opts)
  local read = { url = M.url(opts.live), rate = number_of(opts, "rate", 20,
    1000), max = number_of(opts, "max", 2000, 1000000),
    unsafe = opts["unsafe-methods"] }
  local message
  for option, name in pairs(FILES) do
    if opts[option] then
      read[name], message = core.read_file(opts[option])
      if not read[name] then
        core.warn(("gateway audit: --%s: %s"):format(option, message))
        return 1
      end
    end
  end
  if opts.openapi then
    local text
    text, message = core.read_file(opts.openapi)
    if not text then
      core.warn("gateway audit: --openapi: " .. message)
      return 1
    end
    read.document = { name = opts.openapi, text = text }
  end
  local list = finding.new()
  local result
  result, message = M.run(list, read)
  if not result then
    core.warn("gateway audit: " .. message)
    return 1
  elseif opts.format == "text" then
    print_checks(result, opts.verbose, not opts.openapi)
  end
  return list:report(opts, result)
end


return M
