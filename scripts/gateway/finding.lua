--- Findings: what `gateway audit` has to say, sorted, printed and counted.
--
--     finding.rules {
--       ["input.pattern-missing"] = { "medium", "a text without a pattern",
--         "add pattern = \"^…$\"" },
--     }
--     local found = finding.new()
--     found:add { rule = "input.pattern-missing", at = "gateway.lua:14",
--       what = "query parameter 'q' takes any text" }
--     return found:report { format = "text", ["fail-on"] = "high" }
--
-- A finding is { rule =, severity =, at = "file:line", what =, mend = };
-- severity and mend are the rule's own where they are not given.

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local strings <const> = require "gateway.strings"
local M = {}

local SEVERITIES <const> = { "high", "medium", "low", "info" }
local RANKS <const> = { high = 1, medium = 2, low = 3, info = 4, never = 0 }

-- What others call these: a level of SARIF, and CVSS points, which some
-- readers of SARIF sort by.
local LEVELS <const> = {
  high = "error", medium = "warning", low = "note", info = "note",
}
local POINTS <const> = { high = "8.0", medium = "5.5", low = "3.0",
  info = "0.0" }

local known = {}

--- The options of a command that reports findings, for tool.main.
M.OPTIONS = {
  { "format", "text|json|sarif", "how it is told; sarif is SARIF 2.1.0",
    default = "text" },
  { "fail-on", "high|medium|low|info|never", "exit code 1 from this on",
    default = "high" },
}


--- Makes rules known. @param rules  { [id] = { severity, what, mend } }
function M.rules(rules)
  for id, row in pairs(rules) do
    known[id] = { severity = row[1], what = row[2], mend = row[3] }
  end
end


--- Prints every known rule, and how to mend what it finds.
function M.print_rules()
  for _, id in ipairs(options.sorted_keys(known)) do
    local rule = known[id]
    core.print(("%s (%s)\n    %s\n    mend: %s"):format(id, rule.severity,
      rule.what, rule.mend))
  end
end


--- True where a rule of that name is known. Else false, and a suggestion.
function M.is_rule(id)
  return known[id] ~= nil, options.suggest(id, known)
end


-- "gateway.lua:14" -> "gateway.lua", 14
local function place(at)
  local file, line = at:match("^(.*):(%d+)$")
  return file or at, tonumber(line)
end


local function before(a, b)
  if RANKS[a.severity] ~= RANKS[b.severity] then
    return RANKS[a.severity] < RANKS[b.severity]
  end
  local a_file, a_line = place(a.at)
  local b_file, b_line = place(b.at)
  if a_file ~= b_file then
    return a_file < b_file
  elseif a_line ~= b_line then
    return (a_line or 0) < (b_line or 0)
  elseif a.rule ~= b.rule then
    return a.rule < b.rule
  end
  return a.what < b.what
end

local List = {}
List.__index = List


--- new(): an empty list of findings.
function M.new()
  return setmetatable({ seen = {} }, List)
end


--- Adds a finding, once: the same rule, place and words are one.
function List:add(found)
  local rule = known[found.rule]
  found.severity = found.severity or rule and rule.severity
  found.mend = found.mend or rule and rule.mend
  assert(RANKS[found.severity] and found.at and found.what and found.mend,
    "not a finding: " .. tostring(found.rule))
  local key = found.rule .. "\0" .. found.at .. "\0" .. found.what
  if not self.seen[key] then
    self.seen[key] = true
    self[#self + 1] = found
  end
end


-- ---- printing --------------------------------------------------------------

local function print_text(list, counts)
  for _, found in ipairs(list) do
    if not found.suppressed then
      core.print(("%s: %s: %s (%s)\n    mend: %s"):format(found.at,
        found.severity, found.what, found.rule, found.mend))
    end
  end
  local parts = {}
  for _, severity in ipairs(SEVERITIES) do
    parts[#parts + 1] = counts[severity] .. " " .. severity
  end
  core.print(("%s; %d suppressed"):format(table.concat(parts, ", "),
    counts.suppressed))
end


local function print_json(list, counts, more)
  local findings = {}
  for i, found in ipairs(list) do
    local file, line = place(found.at)
    findings[i] = {
      rule = found.rule, severity = found.severity, at = found.at, file = file,
      line = line, what = found.what, mend = found.mend,
      suppressed = found.suppressed,
    }
  end
  local report = { findings = core.array(findings), counts = counts }
  for name, value in pairs(more or {}) do
    report[name] = value
  end
  core.print(core.encode(report))
end


-- A file's name as a URI reference; a service's URL is one.
local function uri_of(file)
  if file:find("^https://") then
    return file
  end
  return (file:find("^/") and "file://" or "") .. strings.percent(file, "/")
end


-- The rules that SARIF speaks of, and the index of each by its id.
local function sarif_rules(list)
  local ids, rules, index = {}, {}, {}
  for _, found in ipairs(list) do
    ids[found.rule] = found
  end
  for i, id in ipairs(options.sorted_keys(ids)) do
    local rule = known[id] or ids[id]
    index[id] = i - 1
    rules[i] = {
      id = id, shortDescription = { text = rule.what },
      help = { text = rule.mend },
      defaultConfiguration = { level = LEVELS[rule.severity] },
      properties = { ["security-severity"] = POINTS[rule.severity],
        tags = core.array { "security" } },
    }
  end
  return core.array(rules), index
end


local function sarif_result(found, index)
  local file, line = place(found.at)
  return {
    ruleId = found.rule, ruleIndex = index[found.rule],
    level = LEVELS[found.severity],
    message = { text = ("%s. Mend: %s"):format(found.what, found.mend) },
    locations = core.array { { physicalLocation = {
      artifactLocation = { uri = uri_of(file) },
      region = line and line > 0 and { startLine = line } or nil,
    } } },
    suppressions = found.suppressed and core.array {
      { kind = "inSource", justification = found.suppressed },
    } or nil,
  }
end


local function print_sarif(list)
  local rules, index = sarif_rules(list)
  local results = {}
  for i, found in ipairs(list) do
    results[i] = sarif_result(found, index)
  end
  core.print(core.encode {
    ["$schema"] = "https://json.schemastore.org/sarif-2.1.0.json",
    version = "2.1.0",
    runs = core.array { {
      tool = { driver = { name = "gateway audit", rules = rules } },
      results = core.array(results),
    } },
  })
end

local FORMATS <const> = {
  text = print_text, json = print_json, sarif = print_sarif,
}


-- The severity that may have been meant, or all of them, the worst first.
local function suggest_severity(name)
  local text = options.suggest(name, RANKS)
  return text:find("did you mean", 1, true) and text
    or ": there is " .. table.concat(SEVERITIES, ", ") .. ", never"
end


--- What is wrong with the options of a report, or nil.
function M.misused(opts)
  if not FORMATS[opts.format] then
    return ("--format: no format '%s'%s"):format(opts.format,
      options.suggest(opts.format, FORMATS))
  elseif not RANKS[opts["fail-on"]] then
    return ("--fail-on: no severity '%s'%s"):format(opts["fail-on"],
      suggest_severity(opts["fail-on"]))
  end
  return nil
end


--- Prints the findings, the worst first.
-- @param opts  { format =, ["fail-on"] = }, as misused() has checked them
-- @param more  what the JSON says besides, by name
-- @return the exit code: 1 where one that is not suppressed is so severe
function List:report(opts, more)
  local sorted, counts, code = {}, { suppressed = 0 }, 0
  for _, severity in ipairs(SEVERITIES) do
    counts[severity] = 0
  end
  for i, found in ipairs(self) do
    sorted[i] = found
    local key = found.suppressed and "suppressed" or found.severity
    counts[key] = counts[key] + 1
    if not found.suppressed and RANKS[found.severity] <= RANKS[opts["fail-on"]]
    then
      code = 1
    end
  end
  table.sort(sorted, before)
  FORMATS[opts.format](sorted, counts, more)
  return code
end


return M
