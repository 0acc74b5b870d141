--- `gateway audit`: looks for holes in a policy, without running it.
--
-- The policy is loaded as `gateway check` loads it. Rules then look at what it
-- has declared (audit_config), at the texts its schemas let through
-- (audit_input, by exact analysis of patterns), and at the source of its hooks
-- (audit_hook, by following inputs through it). Comments keep findings quiet
-- (audit_allow).

local allow <const> = require "gateway.audit_allow"
local config <const> = require "gateway.audit_config"
local core <const> = require "gateway.core"
local finding <const> = require "gateway.finding"
local hook <const> = require "gateway.audit_hook"
local host <const> = require "gateway.audit_host"
local input <const> = require "gateway.audit_input"
local live <const> = require "gateway.audit_live"
local luasource <const> = require "gateway.luasource"
local openapi <const> = require "gateway.audit_openapi"
local policy <const> = require "gateway.policy"
local scan <const> = require "gateway.scan"
local tool <const> = require "gateway.tool"
local trace <const> = require "gateway.audit_trace"
local M = {}

local DEFAULT <const> = "scripts/gateway.lua"

local Audit = {}
Audit.__index = Audit


--- Adds a finding.
-- @param severity  instead of the rule's own
function Audit:add(rule, at, what, severity)
  self.list:add { rule = rule, at = at, what = what, severity = severity }
end


-- The policy's sources, for what looks at hooks; and their comments.
local function read_sources(self, name, book)
  local sources = {}
  for _, script in ipairs(scan.check(name, book.files)) do
    local body, comments = luasource.read(script.name, script.source)
    sources[script.name] = { body = body, folder = name:match("^(.*/)") or "" }
    self.allowed:read(script.name, comments)
  end
  return sources
end


-- Audits a policy.
-- @param tracing  true: also sends canaries through its hooks
-- @return true, and the trace; or nil and why the policy does not load
function Audit:policy(name, tracing)
  local ok, message = core.test_policy(name)
  if not ok then
    return nil, message
  end
  local book = policy.declared()
  local sources = read_sources(self, name, book)
  config.check(self, book)
  local flows = hook.check(self, book, sources)
  input.check(self, book, flows)
  return true, tracing and trace.run(self, book) or nil
end


-- Audits an OpenAPI document.
-- @param routes  those of the policy beside it; or nil
-- @return true; or nil and why it cannot be read
function Audit:openapi(name, routes)
  local text, message = core.read_file(name)
  if not text then
    return nil, message
  end
  openapi.audit(self.list, name, text, routes)
  self.allowed:read_yaml(name, text)
  return true
end


-- What the command looks at: a policy, an OpenAPI document, or both.
-- @return the findings, and what --trace adds; or nil and why it cannot
local function look(name, opts)
  local list = finding.new()
  local self = setmetatable({ list = list, allowed = allow.new(list) }, Audit)
  local ok, rows = true, nil
  if name or not opts.openapi then
    ok, rows = self:policy(name or DEFAULT, opts.trace)
  end
  if ok and opts.openapi then
    local message
    ok, message = self:openapi(opts.openapi, name and policy.declared().routes)
    rows = ok and rows or message
  end
  if not ok then
    return nil, rows
  end
  self.allowed:apply()
  return list, rows
end


local function options_of()
  local list = {
    { "policy", "FILE", ("the policy (default %s; beside --openapi, none)")
      :format(DEFAULT) },
    { "openapi", "FILE", "audit an OpenAPI document (3.0, 3.1, Swagger 2.0) in"
      .. " place of a policy; with a policy, also what one knows and the other"
      .. " does not" },
    { "trace", nil, "also send canaries through the real hooks, and tell where"
      .. " each arrives and what checked it" },
    { "rules", nil, "list all rules, and how to mend what they find" },
    { "host", nil, "instead, look at what is around the gateway: sandbox"
      .. " layers and posture; with a policy, as that one needs them" },
  }
  table.move(live.OPTIONS, 1, #live.OPTIONS, #list + 1, list)
  return table.move(finding.OPTIONS, 1, #finding.OPTIONS, #list + 1, list)
end


--- The command `gateway audit`.
M.main = tool.main {
  name = "audit", operands = "[POLICY]", most = 1,
  help = "Looks for holes in a policy: inputs that are wider than where they "
    .. "go, routes that are wider than who may call them, hooks without a "
    .. "decision, weak settings. Each finding has its place and its mend.",
  options = options_of(),
  examples = {
    "gateway audit", "gateway audit --trace my.lua",
    "gateway audit --fail-on medium my.lua",
    "gateway audit --openapi api.yaml",
    "gateway audit --openapi api.yaml my.lua",
    "gateway audit --format sarif my.lua >audit.sarif",
    "gateway audit --host",
    "gateway audit --host --fail-on medium my.lua",
    "gateway audit --live https://127.0.0.1:8443 --cert a.crt --key a.key \\\n"
      .. "      --cacert ca.crt --openapi api.yaml",
  },
  run = function(operands, opts)
    local misused = finding.misused(opts) or live.misused(opts, operands[1])
    if misused then
      return nil, misused
    elseif opts.host then
      return host.main(operands[1] or opts.policy, opts)
    elseif opts.rules then
      finding.print_rules()
      return 0
    elseif opts.live then
      return live.main(opts)
    end
    local list, rows = look(operands[1] or opts.policy, opts)
    if not list then
      core.warn("gateway: " .. rows)
      return 1
    end
    if rows and opts.format == "text" then
      trace.print(rows)
    end
    return list:report(opts, { trace = rows })
  end,
}


return M
