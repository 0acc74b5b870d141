--- The outcome of `gateway test`: as text, as JUnit's XML, as JSON.
--
-- A result is { file =, name =, ok =, seconds =, message = why it failed,
-- as_is = true: the message is not for one line, threshold = true: no case, but
-- what is asked of coverage }.

local core <const> = require "gateway.core"
local coverage <const> = require "gateway.coverage"
local strings <const> = require "gateway.strings"
local M = {}

local ENTITIES <const> = {
  ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;",
  ["'"] = "&apos;", ["\n"] = "&#10;", ["\t"] = "&#9;", ["\r"] = "&#13;",
}


-- A text as XML may hold it, in an attribute, too. What XML has no way to
-- write becomes '?'.
local function xml(text)
  if not utf8.len(text) then
    text = text:gsub("[\x80-\xff]", "?")
  end
  text = text:gsub("\xef\xbf[\xbe\xbf]", "?")
  return (text:gsub("[%c\x7f&<>\"']", function(char)
    return ENTITIES[char] or "?"
  end))
end


-- An error of a test as one line that begins with file:line.
local function one_line(message)
  return (message:gsub("%s*\n%s*", " | "))
end


-- Results in order, those of one file together.
local function by_file(results)
  local files, known = {}, {}
  for _, result in ipairs(results) do
    local file = known[result.file]
    if not file then
      file = { name = result.file, failed = 0, seconds = 0 }
      known[result.file], files[#files + 1] = file, file
    end
    file[#file + 1] = result
    file.failed = file.failed + (result.ok and 0 or 1)
    file.seconds = file.seconds + result.seconds
  end
  return files
end


local function count_failed(results)
  local failed = 0
  for _, result in ipairs(results) do
    failed = failed + (result.ok and 0 or 1)
  end
  return failed
end


local writers = {}


--- A line for each failure, with `verbose` also for each success, and the sum.
function writers.text(results, covered, verbose)
  local failed, cases, low = 0, 0, ""
  for _, result in ipairs(results) do
    if not result.threshold then
      cases = cases + 1
      failed = failed + (result.ok and 0 or 1)
    elseif not result.ok then
      low = "; coverage is too low"
    end
    if not result.ok then
      core.print(result.as_is and ("FAIL %s: %s\n%s\n"):format(result.file,
        result.name, result.message) or "FAIL " .. one_line(result.message))
    elseif verbose and not result.threshold then
      core.print("ok   " .. result.file .. ": " .. result.name)
    end
  end
  for _, line in ipairs(covered and coverage.text(covered) or {}) do
    core.print(line)
  end
  core.print(("%d passed, %d failed%s"):format(cases - failed, failed, low))
end


-- One case of JUnit's XML.
local function xml_case(result)
  local begin = ('    <testcase classname="%s" name="%s" file="%s"'
    .. ' time="%.6f"'):format(xml(result.file), xml(result.name),
    xml(result.file), result.seconds)
  if result.ok then
    return begin .. "/>"
  end
  return ('%s>\n      <failure type="failure" message="%s">%s</failure>\n'
    .. "    </testcase>"):format(begin, xml(one_line(result.message)),
    xml(result.message))
end


--- JUnit's XML, as Jenkins and GitLab read it. A <testsuite> for each file.
function writers.junit(results, covered)
  local sum = 0
  for _, result in ipairs(results) do
    sum = sum + result.seconds
  end
  core.print('<?xml version="1.0" encoding="UTF-8"?>')
  core.print(('<testsuites name="gateway test" tests="%d" failures="%d"'
    .. ' errors="0" time="%.6f">'):format(#results, count_failed(results), sum))
  for _, file in ipairs(by_file(results)) do
    core.print(('  <testsuite name="%s" tests="%d" failures="%d" errors="0"'
      .. ' skipped="0" time="%.6f">'):format(xml(file.name), #file,
      file.failed, file.seconds))
    for _, result in ipairs(file) do
      core.print(xml_case(result))
    end
    if covered and file.name == "coverage" then
      core.print(("    <system-out>%s</system-out>"):format(
        xml(table.concat(coverage.text(covered), "\n"))))
    end
    core.print("  </testsuite>")
  end
  core.print("</testsuites>")
end


--- One JSON object.
function writers.json(results, covered)
  local cases, failed = core.array {}, count_failed(results)
  for i, result in ipairs(results) do
    cases[i] = {
      file = strings.for_json(result.file),
      name = strings.for_json(result.name),
      ok = result.ok, seconds = result.seconds,
      message = result.message and strings.for_json(result.message),
    }
  end
  core.print(core.encode {
    passed = #results - failed, failed = failed, cases = cases,
    coverage = covered,
  })
end


--- True where there is such a format.
function M.knows(format)
  return writers[format] ~= nil
end


--- Prints results.
-- @param format   "text", "junit" or "json"
-- @param covered  what coverage.result() returned, or nil
function M.print(format, results, covered, verbose)
  writers[format](results, covered, verbose)
end


return M
