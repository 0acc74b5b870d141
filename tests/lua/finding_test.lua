-- Tests of how findings are sorted, printed and counted.

local core = require "gateway.core"
local finding = require "gateway.finding"
local t = require "gateway.test"

t.policy "scripts/gateway.lua"

finding.rules {
  ["test.wide"] = { "high", "something is wide", "make it narrow" },
  ["test.odd"] = { "low", "something is odd", "make it even" },
}


-- What a report prints, and its exit code.
local function printed(list, format, fail_on)
  local lines, kept = {}, core.print
  core.print = function(text)
    lines[#lines + 1] = text
  end
  local ok, code = pcall(list.report, list, {
    format = format, ["fail-on"] = fail_on or "high",
  })
  core.print = kept
  assert(ok, code)
  return table.concat(lines, "\n"), code
end


local function two()
  local list = finding.new()
  list:add { rule = "test.odd", at = "a b.lua:9", what = "nine is odd" }
  list:add { rule = "test.odd", at = "a.lua:10", what = "ten is not" }
  list:add { rule = "test.wide", at = "a.lua:2", what = "two is wide" }
  list:add { rule = "test.wide", at = "a.lua:2", what = "two is wide" }
  return list
end


t.case("text: the worst first, with the mend, and the sum", function()
  local text, code = printed(two(), "text")
  t.equal({ text, code }, { [[
a.lua:2: high: two is wide (test.wide)
    mend: make it narrow
a b.lua:9: low: nine is odd (test.odd)
    mend: make it even
a.lua:10: low: ten is not (test.odd)
    mend: make it even
1 high, 0 medium, 2 low, 0 info; 0 suppressed]], 1 })
end)


t.case("--fail-on: from which severity on the exit code is 1", function()
  for fail_on, codes in pairs {
    high = { 1, 0 }, medium = { 1, 0 }, low = { 1, 1 }, info = { 1, 1 },
    never = { 0, 0 },
  } do
    local low = finding.new()
    low:add { rule = "test.odd", at = "a.lua", what = "odd" }
    local _, first = printed(two(), "text", fail_on)
    local _, second = printed(low, "text", fail_on)
    t.equal({ fail_on, first, second }, { fail_on, codes[1], codes[2] })
  end
end)


t.case("a suppressed finding fails nothing, and is in the JSON", function()
  local list = two()
  for _, found in ipairs(list) do
    found.suppressed = "it is meant so"
  end
  local text, code = printed(list, "json", "info")
  local value = core.decode(text)
  t.equal({ code, #value.findings, value.findings[1].suppressed,
    value.findings[1].line, value.counts.suppressed, value.counts.high },
    { 0, 3, "it is meant so", 2, 3, 0 })
  t.equal({ (printed(list, "text")) },
    { "0 high, 0 medium, 0 low, 0 info; 3 suppressed" })
end)


t.case("SARIF: rules, levels, places, suppressions", function()
  local list = two()
  list[1].suppressed = "it is meant so"
  local value = core.decode((printed(list, "sarif")))
  local run = value.runs[1]
  local results = run.results
  t.equal({ value.version, run.tool.driver.name, #run.tool.driver.rules,
    #results }, { "2.1.0", "gateway audit", 2, 3 })
  for _, result in ipairs(results) do
    t.equal(run.tool.driver.rules[result.ruleIndex + 1].id, result.ruleId)
  end
  local where = results[2].locations[1].physicalLocation
  t.equal({ results[1].level, results[2].level, where.artifactLocation.uri,
    where.region.startLine, results[2].suppressions[1].kind },
    { "error", "note", "a%20b.lua", 9, "inSource" })
end)


t.case("nothing found: empty lists, not objects", function()
  local json = printed(finding.new(), "json")
  local sarif = printed(finding.new(), "sarif")
  t.equal({ json:find('"findings":[]', 1, true) ~= nil,
    sarif:find('"results":[]', 1, true) ~= nil }, { true, true })
end)


t.case("options that are no format or severity", function()
  t.equal({ finding.misused { format = "xml", ["fail-on"] = "high" },
    finding.misused { format = "json", ["fail-on"] = "hihg" },
    finding.misused { format = "json", ["fail-on"] = "never" } }, {
      "--format: no format 'xml': there is json, sarif, text",
      "--fail-on: no severity 'hihg': did you mean 'high'?",
    })
end)
