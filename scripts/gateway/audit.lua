--- `gateway audit`: looks for holes in a policy, without running it.
--
-- The policy is loaded as `gateway check` loads it. Rules then look at what it
-- has declared (audit_config), at the texts its schemas let through
-- (audit_input, by exact analysis of patterns), and at the source of its hooks
-- (audit_hook, by following inputs through it). A comment on the line of a
-- finding, or alone on the line before, keeps it quiet:
--
--     gateway.get("/x", {  -- audit: allow input.stream because it is a note

local config <const> = require "gateway.audit_config"
local core <const> = require "gateway.core"
local finding <const> = require "gateway.finding"
local hook <const> = require "gateway.audit_hook"
local input <const> = require "gateway.audit_input"
local live <const> = require "gateway.audit_live"
local luasource <const> = require "gateway.luasource"
local openapi <const> = require "gateway.audit_openapi"
local policy <const> = require "gateway.policy"
local scan <const> = require "gateway.scan"
local tool <const> = require "gateway.tool"
local trace <const> = require "gateway.trace"
local M = {}

finding.rules {
  ["audit.allow-without-reason"] = { "medium", "a finding is allowed without a"
    .. " reason, so it counts", "write: -- audit: allow RULE because …" },
  ["audit.allow-unknown"] = { "medium", "a comment allows a rule that there is"
    .. " not", "see gateway audit --rules" },
  ["audit.allow-unused"] = { "low", "a comment allows what was not found",
    "delete the comment" },
}

local DEFAULT <const> = "scripts/gateway.lua"

local Audit = {}
Audit.__index = Audit


--- Adds a finding.
-- @param severity  instead of the rule's own
function Audit:add(rule, at, what, severity)
  self.list:add { rule = rule, at = at, what = what, severity = severity }
end


-- ---- what comments allow ---------------------------------------------------

-- The comments that allow something: { [file:line] = { { rule, why, at } } }.
local function read_allowed(self, file, comments)
  for _, comment in ipairs(comments) do
    local rule, rest = comment.text:match("^%s*audit:%s*allow%s+(%S+)%s*(.*)$")
    local at = ("%s:%d"):format(file, comment.line)
    if rule then
      local why = rest:match("^because%s+(%S.*)$")
      local known, suggestion = finding.is_rule(rule)
      if not known then
        self:add("audit.allow-unknown", at, ("no rule %s%s"):format(rule,
          suggestion))
      elseif not why then
        self:add("audit.allow-without-reason", at, ("%s is allowed without a"
          .. " reason"):format(rule))
      end
      local line = ("%s:%d"):format(file, comment.line
        + (comment.alone and 1 or 0))
      self.allowed[line] = self.allowed[line] or {}
      table.insert(self.allowed[line], { rule = rule, why = why, at = at,
        used = not known or not why })
    end
  end
end


-- Marks what comments allow, and reports those that allow nothing.
local function suppress(self)
  for _, found in ipairs(self.list) do
    for _, row in ipairs(self.allowed[found.at] or {}) do
      if row.rule == found.rule and row.why then
        found.suppressed, row.used = row.why, true
      end
    end
  end
  for _, rows in pairs(self.allowed) do
    for _, row in ipairs(rows) do
      if not row.used then
        self:add("audit.allow-unused", row.at, ("nothing here is %s"):format(
          row.rule))
      end
    end
  end
end


-- ---- the whole -------------------------------------------------------------

local function read_sources(self, name, book)
  local sources = {}
  for _, script in ipairs(scan.check(name, book.files)) do
    local body, comments = luasource.read(script.name, script.source)
    sources[script.name] = { body = body, folder = name:match("^(.*/)") or "" }
    read_allowed(self, script.name, comments)
  end
  return sources
end


--- Audits a policy.
-- @param opts  { trace = true: also send canaries through its hooks }
-- @return the findings (finding.lua), and the trace; or nil and why the policy
--         does not load
function M.run(name, opts)
  local ok, message = core.test_policy(name)
  if not ok then
    return nil, message
  end
  local self = setmetatable({ list = finding.new(), allowed = {} }, Audit)
  local book = policy.declared()
  local sources = read_sources(self, name, book)
  config.check(self, book)
  local flows = hook.check(self, book, sources)
  input.check(self, book, flows)
  local rows = opts.trace and trace.run(self, book) or nil
  suppress(self)
  return self.list, rows
end


-- What the command looks at: a policy, an OpenAPI document, or both.
-- @return the findings, and what --trace adds; or nil and why it cannot
local function look(name, opts)
  local list, rows = finding.new(), nil
  if name or not opts.openapi then
    list, rows = M.run(name or DEFAULT, opts)
  end
  if not list or not opts.openapi then
    return list, rows
  end
  local text, message = core.read_file(opts.openapi)
  if not text then
    return nil, message
  end
  openapi.audit(list, opts.openapi, text, name and policy.declared().routes)
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
    { "host", nil, "look at what is around the gateway instead; see gateway"
      .. " audit --host --help" },
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
    "gateway audit --live https://127.0.0.1:8443 --cert a.crt --key a.key \\\n"
      .. "      --cacert ca.crt --openapi api.yaml",
  },
  run = function(operands, opts)
    local misused = finding.misused(opts) or live.misused(opts, operands[1])
    if misused then
      return nil, misused
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
