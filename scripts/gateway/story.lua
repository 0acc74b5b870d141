--- What becomes of one request, decision by decision.
--
--     local story = require "gateway.story"
--     local r = story.run(identity, { method = "GET", target = "/x" })
--     for _, step in ipairs(r.steps) do … end
--
-- The request passes through the very code that serves (core.test_request);
-- here it is only told in words what each step had before it. A policy must be
-- loaded (core.test_policy).

local core <const> = require "gateway.core"
local identity <const> = require "gateway.identity"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local stage <const> = require "gateway.stage"
local stub <const> = require "gateway.stub"
local M = {}

local KINDS <const> = { path = 1, query = 2, headers = 3 }
local NEAREST <const> = 3  -- routes that are named where none matches


-- Where a function of the policy begins; of the library: where its route is.
local function place_of(func, route)
  local at = core.test_function(func)
  return at ~= "" and not core.built_in(at:match("^(.*):%d+$")) and at
    or route.at
end


-- ---- conditions ------------------------------------------------------------

-- What the certificate has of the kind that a condition asks for.
local function values_of(condition, who)
  local values = {}
  for i, value in ipairs(condition.values and condition.values(who) or {}) do
    values[i] = value
  end
  return values
end


--- A condition and its parts, each with its verdict.
-- @return { what =, ok =, reason =, values = { … }, parts = { … } }
function M.condition(condition, who)
  local ran, ok, reason = pcall(condition.test, who)
  local step = { what = condition.text }
  if not ran then
    step.reason = "cannot be asked alone: " .. tostring(ok)
    return step
  end
  step.ok, step.reason = ok == true, reason
  step.values = condition.values and values_of(condition, who)
  for i, part in ipairs(condition.parts or {}) do
    step.parts = step.parts or {}
    step.parts[i] = M.condition(part, who)
  end
  return step
end


-- ---- the nearest route -----------------------------------------------------

-- A path's segments, decoded.
local function segments_of(path)
  local list = options.segments(path)
  for i, segment in ipairs(list) do
    list[i] = segment:gsub("%%(%x%x)", function(hex)
      return string.char(tonumber(hex, 16))
    end)
  end
  return list
end


-- How far a segment is from what a pattern has in its place: 0 to 1.
local function segment_cost(wanted, got)
  if wanted:find("^{") then
    return got == "" and 1 or 0.05
  end
  if #wanted > 64 or #got > 64 then
    return wanted == got and 0 or 1
  end
  return options.distance(wanted, got) / math.max(#wanted, #got, 1)
end


-- How many edits of segments lead from one path to the other.
local function path_cost(wanted, got)
  local last = {}
  for j = 0, #got do
    last[j] = j
  end
  for _, segment in ipairs(wanted) do
    local tail = segment:find("...}", 1, true)
    local absent = tail and 0.5 or 1
    local row = { [0] = last[0] + absent }
    for j = 1, #got do
      row[j] = math.min(last[j] + absent, row[j - 1] + (tail and 0.05 or 1),
        last[j - 1] + segment_cost(segment, got[j]))
    end
    last = row
  end
  return last[#got]
end


-- The first segment in which two paths differ, in words; nil: none.
local function path_difference(wanted, got)
  for i, segment in ipairs(wanted) do
    if segment:find("...}", 1, true) then
      return #got < i and "the path ends before " .. segment or nil
    end
    if not got[i] then
      return ("segment %d is missing: %s"):format(i, options.show(segment))
    end
    if segment_cost(segment, got[i]) >= (segment:find("^{") and 1 or 0.001) then
      return ("segment %d is %s, not %s"):format(i, options.show(got[i]),
        options.show(segment))
    end
  end
  if #got > #wanted then
    return ("the path has %s, not %d"):format(options.count(#got,
      "segment"), #wanted)
  end
  return nil
end


-- How far a request is from a route, and the first thing that differs.
local function compare(route, request)
  local wanted, got = segments_of(route.path), request.segments
  local cost = path_cost(wanted, got)
  local why = path_difference(wanted, got)
  local others = {
    { policy.takes(route, request.method), 0.6,
      ("the method is %s, not %s"):format(request.method,
        table.concat(route.methods, " or ")) },
    { route.host == "" or route.host == request.host, 0.7,
      ("Host is %s, not %s"):format(options.show(request.host),
        options.show(route.host)) },
    { route.listener == "" or route.listener == request.listener, 0.5,
      ("it is on listener %s, not %s"):format(options.show(route.listener),
        options.show(request.listener)) },
  }
  for _, other in ipairs(others) do
    if not other[1] then
      cost = cost + other[2]
      why = why or other[3]
    end
  end
  return cost, why
end


--- The routes that a request comes nearest to, where none takes it.
-- @return list of { at =, what =, reason = the first thing that differs }
function M.nearest(spec)
  local path = (spec.target or ""):gsub("^https?://[^/]*", "")
    :gsub("[?#].*$", "")
  local request = {
    segments = segments_of(path), method = spec.method,
    host = (M.header(spec, "host") or "localhost"):lower():gsub(":%d+$", ""),
    listener = spec.listener or policy.all("listeners")[1].name,
  }
  local found = {}
  for i, route in ipairs(policy.all("routes")) do
    local cost, why = compare(route, request)
    if cost <= 1 + #request.segments / 2 then
      found[#found + 1] = { cost = cost, order = i, at = route.at,
        what = policy.title(route), reason = why }
    end
  end
  table.sort(found, function(a, b)
    return a.cost < b.cost or a.cost == b.cost and a.order < b.order
  end)
  for i = #found, NEAREST + 1, -1 do
    found[i] = nil
  end
  return found
end


--- A header of a request to be run, its name in any case.
function M.header(spec, name)
  for key, value in pairs(spec.headers or {}) do
    if key:lower() == name then
      return value
    end
  end
  return nil
end


-- ---- the steps -------------------------------------------------------------

-- How far a request came, and what is told of a step before, at or after that.
local Walk = {}
Walk.__index = Walk


function Walk:add(step)
  self.steps[#self.steps + 1] = step
  return step
end


-- True where the request went past a stage, false where it ended there, nil
-- where it did not come that far.
function Walk:passed(name)
  return stage.is_past(self.result.stage, name)
end


function Walk:route()
  local r = self.result
  if r.number then
    local route = policy.all("routes")[r.number]
    self:add { stage = "route", at = route.at, what = policy.title(route),
      ok = true }
    return route
  end
  local step = self:add { stage = r.stage, ok = false, reason = r.reason,
    what = r.stage == "route" and ("%s %s"):format(self.spec.method or "",
      self.spec.target or "") or r.where ~= "" and r.where or "request" }
  if r.stage == "route" then
    step.nearest = M.nearest(self.spec)
  end
end


function Walk:authorize(route, who)
  local passed = self:passed "authorize"
  for i, item in ipairs(route.authorize) do
    local func = policy.hook_of(item.hook)
    local condition = identity.condition_of(func)
    local step = { stage = "authorize", what = item.text, at = route.at }
    if not condition then
      step.what, step.at = "function(identity)", place_of(func, route)
    end
    if passed == nil or passed == false and i > self.result.hook then
      step.skipped = true
    else
      step.ok = passed or i < self.result.hook
      local told = condition and M.condition(condition, who) or {}
      step.parts, step.values = told.parts, told.values
      step.reason = not step.ok and self.result.reason or nil
    end
    self:add(step)
  end
end


-- The values that a request gives an input.
function Walk:given(kind, name)
  local values = {}
  if kind == "headers" then
    values[1] = M.header(self.spec, name)
    return values
  end
  for _, pair in ipairs(kind == "path" and self.result.captures
    or self.result.params) do
    if pair[1] == name then
      values[#values + 1] = pair[2]
    end
  end
  return values
end


-- One declared input: `order` is its place in its kind, `failed` that of the
-- one that was refused.
function Walk:input(route, kind, name, schema, state)
  local step = { stage = kind, at = route.at, what = name,
    values = self:given(kind, name), schema = core.encode(schema) }
  if state == "after" then
    step.skipped = true
  else
    step.ok = state == "before"
    step.reason = not step.ok and self.result.reason or nil
    step.absent = step.ok and #step.values == 0 or nil
  end
  self:add(step)
end


-- Where an input stands to the one that was refused.
function Walk:state(kind, name)
  local passed = self:passed "validate"
  if passed ~= false then
    return passed and "before" or "after"
  end
  local failed = KINDS[self.result.where] or 0
  if KINDS[kind] ~= failed then
    return KINDS[kind] < failed and "before" or "after"
  end
  if self.seen then
    return "after"
  end
  self.seen = name == self.result.name
  return self.seen and "at" or "before"
end


function Walk:validate(route)
  for _, pair in ipairs(self.result.captures) do
    local name = pair[1]
    self:input(route, "path", name, route.path_schemas[name],
      self:state("path", name))
  end
  for _, kind in ipairs { "query", "headers" } do
    for _, name in ipairs(options.sorted_keys(route[kind])) do
      self:input(route, kind, name, route[kind][name].schema,
        self:state(kind, name))
    end
  end
  if self:passed "validate" == false and not self.seen then
    self:add { stage = self.result.where, at = route.at, ok = false,
      what = self.result.name, reason = self.result.reason,
      values = self:given(self.result.where, self.result.name) }
  end
end


function Walk:body(route)
  local kind, passed = route.body.kind, self:passed "body"
  if kind == "none" and passed ~= false then
    return
  end
  self:add { stage = "body", at = route.at,
    what = kind == "none" and "no body" or kind, ok = passed,
    skipped = passed == nil or nil,
    schema = route.body.schema and core.encode(route.body.schema),
    reason = passed == false and self.result.reason or nil }
end


function Walk:check(route)
  local passed = self:passed "check"
  for i, number in ipairs(route.check) do
    local step = { stage = "check", what = "function(request, identity)",
      at = place_of(policy.hook_of(number), route) }
    if passed == nil or passed == false and i > self.result.hook then
      step.skipped = true
    else
      step.ok = passed or i < self.result.hook
      step.reason = not step.ok and self.result.reason or nil
    end
    self:add(step)
  end
end


-- The words that a program would be given.
local function argv(name, slots)
  local command = policy.find("commands", name)
  local words = { command.program }
  for i, arg in ipairs(command.args) do
    words[i + 1] = arg.text
      or (arg.prefix or "") .. tostring(slots[arg.slot] or "")
  end
  return words
end


function Walk:handle(route)
  if self:passed "handle" == nil then
    return
  end
  local handle = route.handle
  local step = { stage = "handle", at = route.at, ok = true }
  if handle.kind == "lua" then
    step.what = "function(request, identity)"
    step.at = place_of(policy.hook_of(handle.hook), route)
  else
    step.what = "upstream " .. policy.all("upstreams")[handle.upstream + 1].name
  end
  for _, run in ipairs(self.result.runs) do
    run.argv = argv(run.command, run.slots)
  end
  step.reason = self.result.reason ~= "" and self.result.reason or nil
  step.ok = not step.reason
  step.runs, step.forwards = self.result.runs, self.result.forwards
  self:add(step)
end


--- Runs a request and tells its steps.
-- @param spec  as core.test_request takes it; `stub` is filled in
-- @return what core.test_request returns, and `steps`, `allowed`
function M.run(who, spec)
  spec.stub = spec.stub or stub.all()
  local result = core.test_request(who, spec)
  local walk = setmetatable({ result = result, spec = spec, steps = {} }, Walk)
  local route = walk:route()
  if route then
    walk:authorize(route, who)
    walk:validate(route)
    walk:body(route)
    walk:check(route)
    walk:handle(route)
  end
  result.steps = walk.steps
  result.allowed = stage.was_allowed(result.stage)
  return result
end


return M
