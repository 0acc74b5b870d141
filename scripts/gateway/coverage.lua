--- What policy tests have reached: lines of the policy, and its decisions.
--
-- Lines are those of the policy's own files that hold code; core.test_cover()
-- makes a debug hook count them, in this process only. Of each route, three
-- things are worth a case: an identity that is allowed, one that is refused,
-- and an input that is refused.

local core <const> = require "gateway.core"
local luadump <const> = require "gateway.luadump"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local stage <const> = require "gateway.stage"
local M = {}

local DEMANDS <const> = {
  { "allowed", "no case in which an identity is allowed" },
  { "denied", "no case in which an identity is refused" },
  { "refused", "no case in which an input is refused" },
}

-- Routes by key, in the order in which they were first seen.
local seen, order


--- Forgets what was seen. @param lines  true: counts lines from here on
function M.start(lines)
  seen, order = {}, {}
  if lines then
    core.test_cover()
  end
end

M.start(false)


-- ---- decisions -------------------------------------------------------------

-- The same route each time the policy is evaluated; a loop makes several of one
-- line.
local function key_of(route)
  return table.concat({ route.at, table.concat(route.methods, ","), route.path,
    route.host or "", route.listener or "" }, " ")
end


-- Nobody can be refused where every authorize is id.anyone.
local function lets_all_in(route)
  for _, who in ipairs(route.authorize) do
    if who.text ~= "anyone" then
      return false
    end
  end
  return true
end


--- Remembers the routes of the policy that is loaded.
function M.note_routes()
  for _, route in ipairs(policy.all("routes")) do
    local key = key_of(route)
    if not seen[key] then
      seen[key] = {
        at = route.at, path = route.path, methods = route.methods,
        anyone = lets_all_in(route), host = route.host,
      }
      order[#order + 1] = key
    end
  end
end


-- The route that a target is nearest to which was refused before a route was
-- looked for: that of the longest start without a capture.
local function nearest(method, target)
  local best, best_length
  for _, key in ipairs(order) do
    local route = seen[key]
    local start = route.path:match("^([^{]*){")
    local methods = table.concat(route.methods, " ")
    if start and target:sub(1, #start) == start
      and (methods == "*" or (" %s "):format(methods):find(
        (" %s "):format(method), 1, true))
      and (not best or #start > best_length) then
      best, best_length = route, #start
    end
  end
  return best
end


--- Remembers what became of a request.
function M.note(method, target, r)
  if r.status >= 500 and r.stage ~= "handle" then
    return
  end
  local number = r.number
  local route = number and seen[key_of(policy.all("routes")[number])]
  if not route then
    route = r.stage == "syntax" and r.where == "path" and method and target
      and nearest(method, target)
    if route then
      route.refused = true
    end
  elseif stage.was_allowed(r.stage) then
    route.allowed = route.allowed or r.status ~= 500
  elseif r.stage == "authorize" then
    route.denied = true
  elseif r.stage ~= "check" then
    route.refused = true
  end
end


local function percent(covered, total)
  return total == 0 and 100 or math.floor(covered * 1000 / total + 0.5) / 10
end


-- { covered, total, percent, routes = { { at, route, missing } … } }
local function decisions()
  local sum = { covered = 0, total = 0, routes = core.array {} }
  for _, key in ipairs(order) do
    local route = seen[key]
    local missing = core.array {}
    for _, demand in ipairs(DEMANDS) do
      local name, text = demand[1], demand[2]
      if name ~= "denied" or not route.anyone then
        sum.total = sum.total + 1
        sum.covered = sum.covered + (route[name] and 1 or 0)
        if not route[name] then
          missing[#missing + 1] = text
        end
      end
    end
    sum.routes[#sum.routes + 1] = {
      at = route.at, missing = missing, route = ("%s %s%s"):format(
        table.concat(route.methods, ","), route.host, route.path),
    }
  end
  sum.percent = percent(sum.covered, sum.total)
  return sum
end


-- ---- lines -----------------------------------------------------------------

-- "3, 7-9": lines next to each other, in the order of the lines with code.
local function ranges(lines, hits)
  local parts, first, last = {}, nil, nil
  local function close()
    if first then
      parts[#parts + 1] = first == last and tostring(first)
        or ("%d-%d"):format(first, last)
    end
    first = nil
  end
  for _, line in ipairs(lines) do
    if hits[line] then
      close()
    else
      first, last = first or line, line
    end
  end
  close()
  return core.array(parts)
end


-- { covered, total, percent, files = { { file, covered, total, missing } … } }
local function lines_run(tests)
  local sum = { covered = 0, total = 0, files = core.array {} }
  local run = core.test_lines()
  for _, name in ipairs(options.sorted_keys(run)) do
    local source = not tests[name] and core.read_file(name)
    if source then
      local lines, covered = luadump.code_lines(source), 0
      for _, line in ipairs(lines) do
        covered = covered + (run[name][line] and 1 or 0)
      end
      sum.covered, sum.total = sum.covered + covered, sum.total + #lines
      sum.files[#sum.files + 1] = {
        file = name, covered = covered, total = #lines,
        missing = ranges(lines, run[name]),
      }
    end
  end
  sum.percent = percent(sum.covered, sum.total)
  return sum
end


--- What was reached.
-- @param tests  table whose keys are the test files: not a part of a policy
-- @return { lines =, policy = }, each with covered, total and percent
function M.result(tests)
  return { lines = lines_run(tests), policy = decisions() }
end


--- The result as lines of text.
function M.text(result)
  local text = {}
  local function add(...)
    text[#text + 1] = string.format(...)
  end
  add("lines: %.1f%% (%d of %d)", result.lines.percent, result.lines.covered,
    result.lines.total)
  for _, file in ipairs(result.lines.files) do
    if #file.missing > 0 then
      add("  %s: never run: %s", file.file, table.concat(file.missing, ", "))
    end
  end
  add("policy: %.1f%% (%d of %d)", result.policy.percent,
    result.policy.covered, result.policy.total)
  for _, route in ipairs(result.policy.routes) do
    for _, missing in ipairs(route.missing) do
      add("  %s: %s: %s", route.at, route.route, missing)
    end
  end
  return text
end


return M
