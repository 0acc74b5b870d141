--- The command `gateway replay`: which recorded decisions would change.
--
-- Each request of a log is run again, up to its handler, as far as the log has
-- it: neither headers nor bodies are there, and of a client only its name.
-- Where the verdict hangs on what is not there, that is said and counted.

local core <const> = require "gateway.core"
local decisions <const> = require "gateway.decisions"
local identity <const> = require "gateway.identity"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local stage <const> = require "gateway.stage"
local strings <const> = require "gateway.strings"
local stub <const> = require "gateway.stub"
local tool <const> = require "gateway.tool"
local who <const> = require "gateway.who"
local M = {}

local BATCH <const> = 10000        -- requests between two loads of policies
local MAX_CLIENTS <const> = 20000  -- known at once
local MAX_HOSTS <const> = 16       -- names that are tried where Host is asked

-- The stages of gateway.stage, and within "validate" what is looked at.
local REACH <const> = {
  syntax = 1, route = 2, authorize = 3, path = 4, query = 5, headers = 6,
  body = 7, check = 8, handle = 9,
}


-- ---- clients ---------------------------------------------------------------

-- Certificates by serial number, of the folders that --identities names.
local function read_certificates(folders)
  local by_serial = {}
  for _, folder in ipairs(folders) do
    for _, file in ipairs(who.files_in(folder)) do
      local client = who.of(file, who.listener())
      if client then
        by_serial[client.identity.serial] = client
      end
    end
  end
  return by_serial
end


-- Clients as the log tells them, kept by their name and number.
local Clients = {}
Clients.__index = Clients


function Clients.new(by_serial)
  return setmetatable({ by_serial = by_serial, known = {}, n = 0,
    whole = {} }, Clients)
end


-- A line that has all of a certificate.
function Clients:learn(line)
  local key = line.identity .. "\0" .. line.serial
  if not line.cut and not self.whole[key] then
    self.whole[key] = line
    self.known[key] = nil
  end
end


function Clients:of(record)
  local key = record.identity .. "\0" .. record.serial
  local client = self.known[key]
  if client then
    return client
  end
  if self.n >= MAX_CLIENTS then
    self.known, self.n = {}, 0
  end
  client = self.by_serial[record.serial]
    or decisions.client(record, nil, self.whole[key])
  self.known[key] = client
  self.n = self.n + 1
  return client
end


-- ---- one request against one policy ----------------------------------------

-- What is said of the policy that is loaded: names that routes ask for in Host,
-- and by route whether an absent field can only make it refuse.
local function survey()
  local hosts, seen, certain = { false }, {}, {}
  for i, route in ipairs(policy.all("routes")) do
    if route.host ~= "" and not seen[route.host] and #hosts < MAX_HOSTS then
      hosts[#hosts + 1], seen[route.host] = route.host, true
    end
    certain[i] = #route.check == 0
    for _, item in ipairs(route.authorize) do
      local condition = identity.condition_of(policy.hook_of(item.hook))
      certain[i] = certain[i] and condition ~= nil
        and identity.monotone(condition)
    end
  end
  local only
  for _, listener in ipairs(policy.all("listeners")) do
    if not listener.tcp then
      only = only == nil and listener.name
    end
  end
  return { hosts = hosts, certain = certain, only = only,
    stub = stub.all() }
end


-- Runs a request once. Returns { place =, allowed =, open = what is missing,
-- unknown = why nothing can be said, … }.
local function run_once(client, spec, about, host)
  spec.headers.host = host or nil
  local asked = client.asked
  for i = #(asked or {}), 1, -1 do
    asked[i] = nil
  end
  local r = core.test_request(client.identity, spec)
  local place = r.stage == "validate" and r.where or r.stage
  local out = {
    place = REACH[place] or REACH.handle, stage = r.stage, status = r.status,
    reason = r.reason, at = r.route, allowed = stage.was_allowed(r.stage),
  }
  if asked and asked[1] and (not out.allowed and out.place >= REACH.authorize
    or out.allowed and not about.certain[r.number]) then
    out.unknown = "the client's " .. asked[1] .. " is not in the log"
  elseif r.runs[1] or r.forwards[1] then
    out.unknown = "a hook asks a program or an upstream"
  elseif place == "headers" then
    out.open = "headers"
  elseif place == "body" then
    out.open = "the body"
  end
  return out
end


-- Two runs say the same.
local function agree(a, b)
  return a.allowed == b.allowed and a.status == b.status and a.open == b.open
    and not a.unknown == not b.unknown
end


-- Runs a request against the policy that is loaded. Host is not logged, so each
-- one that a route asks for is tried.
local function run(client, record, about)
  local spec, why = decisions.request(record)
  if not spec then
    return { unknown = why }
  end
  spec.ask, spec.stub = true, about.stub
  spec.listener = spec.listener or about.only
  if not spec.listener then
    return { unknown = "the policy has no listener of its name" }
  end
  local first
  for _, host in ipairs(about.hosts) do
    local one = run_once(client, spec, about, host)
    if first and not agree(first, one) then
      return { unknown = "Host is not in the log, and decides" }
    end
    first = first or one
  end
  return first
end


-- What the log says became of a request, in the same form.
local function recorded(record)
  if not record.refused and not record.bug then
    return { allowed = true, place = REACH.handle, stage = "handle",
      status = record.status }
  end
  local place = record.stage == "validate" and record.where or record.stage
  return {
    place = REACH[place] or REACH.handle, stage = record.stage,
    allowed = (REACH[place] or REACH.handle) >= REACH.handle,
    status = record.bug and 500 or record.status, reason = record.reason,
    at = record.at,
  }
end


-- ---- the difference --------------------------------------------------------

--- How a verdict changes: "same", "partly" (the same, as far as it can be
-- told), "changed" or "unknown"; and what is missing.
-- @param old, new  { place =, allowed =, status =, open =, unknown = }
function M.compare(old, new)
  if old.unknown or new.unknown then
    return "unknown", old.unknown or new.unknown
  end
  local open = old.open or new.open
  if not open then
    local same = old.allowed == new.allowed
      and (old.allowed or old.status == new.status)
    return same and "same" or "changed"
  end
  -- the one that is open went on to `open`: did the other one come so far?
  local far = old.open and old.place or new.place
  local other = old.open and new or old
  if other.open or other.allowed or other.place >= far then
    return "partly", open
  end
  return "changed"
end


--- A verdict in words.
function M.words(verdict)
  if verdict.open then
    return "goes on to " .. verdict.open
  elseif verdict.allowed then
    return "allowed"
  end
  return ("%s with %s at %s: %s"):format(
    verdict.status == 500 and "failed" or "refused", tostring(verdict.status),
    verdict.stage, strings.first_line(verdict.reason))
end


-- ---- the command -----------------------------------------------------------

local Report = {}
Report.__index = Report


function Report:changed(record, old, new)
  if self.json then
    core.print(core.encode {
      event = "changed", id = record.id, ts = record.ts,
      identity = record.identity, serial = record.serial,
      method = record.method, target = record.target,
      old = { verdict = M.words(old), at = old.at, status = old.status },
      new = { verdict = M.words(new), at = new.at, status = new.status },
    })
    return
  end
  core.print(("%s %s %s as %s\n  was   %s\n  now   %s%s"):format(
    record.id, record.method, record.target, record.identity, M.words(old),
    M.words(new), new.at and new.at ~= "" and " (" .. new.at .. ")" or ""))
end


function Report:count(kind, why)
  self[kind] = self[kind] + 1
  if kind == "unknown" or kind == "partly" then
    local key = kind == "partly" and "after that, " .. why .. " would be read"
      or why
    self.whys[key] = (self.whys[key] or 0) + 1
  end
end


-- Why something could not be told, the most frequent first.
function Report:reasons()
  local list = {}
  for why, n in pairs(self.whys) do
    list[#list + 1] = { why = why, n = n }
  end
  table.sort(list, function(a, b)
    return a.n > b.n or a.n == b.n and a.why < b.why
  end)
  return list
end


function Report:finish()
  local sum = self.same + self.partly + self.count_changed + self.unknown
  if self.json then
    core.print(core.encode {
      event = "summary", requests = sum, same = self.same,
      partly = self.partly, changed = self.count_changed,
      unknown = self.unknown, reasons = core.array(self:reasons()),
    })
  else
    core.print(("%s: %d changed, %d the same, %d the same as far as the log"
      .. " tells, %d not told"):format(options.count(sum, "request"),
      self.count_changed, self.same, self.partly, self.unknown))
    for _, one in ipairs(self:reasons()) do
      core.print(("  %d  %s"):format(one.n, one.why))
    end
  end
  if sum == 0 then
    core.warn("gateway replay: there is no request in this log")
  end
  return sum > 0 and self.count_changed == 0 and 0 or 1
end


-- The verdicts of a policy for a batch. Nil and why.
local function judge(name, batch, clients)
  local ok, message = core.test_policy(name)
  if not ok then
    return nil, message
  end
  local about, verdicts = survey(), {}
  for i, record in ipairs(batch) do
    verdicts[i] = record.identity and run(clients:of(record), record, about)
      or { unknown = "the log does not say who sent it" }
  end
  return verdicts
end


-- Old and new verdict of each request of a batch. Nil and why.
local function compare_batch(batch, clients, opts, report)
  local old, message
  if opts.policy then
    old, message = judge(opts.policy, batch, clients)
    if not old then
      return nil, message
    end
  end
  local new
  new, message = judge(opts.against, batch, clients)
  if not new then
    return nil, message
  end
  for i, record in ipairs(batch) do
    local before = old and old[i] or recorded(record)
    local kind, why = M.compare(before, new[i])
    if kind == "changed" then
      report.count_changed = report.count_changed + 1
      report:changed(record, before, new[i])
    else
      report:count(kind, why)
    end
  end
  return true
end


local function replay(lines, opts)
  local report = setmetatable({ same = 0, partly = 0, unknown = 0,
    count_changed = 0, whys = {}, json = opts.format == "json" }, Report)
  local ok, message = core.test_policy(opts.against)
  if not ok then
    return nil, message
  end
  local clients = Clients.new(read_certificates(opts.identities))
  local next_request = decisions.requests(lines, function(line)
    clients:learn(line)
  end)
  repeat
    local batch = {}
    for record in next_request do
      batch[#batch + 1] = record
      if #batch == BATCH then
        break
      end
    end
    ok, message = compare_batch(batch, clients, opts, report)
    if not ok then
      return nil, message
    end
  until #batch < BATCH
  return report:finish()
end


--- The command `gateway replay`.
M.main = tool.main {
  name = "replay", operands = nil, most = 0,
  help = "Runs the requests of a log against another policy, up to their "
    .. "handlers, and names each whose decision would change, with the reason. "
    .. "Neither headers nor bodies are in a log, and of a client only its "
    .. "name, unless the listener says log_identity: what hangs on them is "
    .. "counted, not guessed. Exit code 1: some would change.",
  options = {
    { "log", "FILE", "the log (-: standard input)" },
    { "against", "NEW", "the policy that is tried" },
    { "policy", "OLD", "what it is compared with; else what the log says" },
    { "identities", "DIR", "certificates of clients (*.crt, *.pem), found by "
      .. "serial number; may be repeated", many = true },
    { "format", "text|json", "json: a line for each change, and one for the "
      .. "sums", default = "text" },
  },
  examples = {
    "gateway replay --log gateway.log --against next.lua",
    "journalctl -o cat -u gateway | gateway replay --log - --against next.lua "
      .. "--identities certs",
  },
  run = function(_, opts)
    if not opts.log then
      return nil, "--log FILE is missing"
    elseif not opts.against then
      return nil, "--against NEW is missing: the policy that is tried"
    elseif opts.format ~= "text" and opts.format ~= "json" then
      return nil, ("--format %s: write text or json"):format(opts.format)
    end
    local lines, message = core.lines(opts.log)
    local code
    if lines then
      code, message = replay(lines, opts)
    end
    if not code then
      core.warn("gateway replay: " .. message)
    end
    return code or 1
  end,
}


return M
