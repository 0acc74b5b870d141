--- `gateway test --fuzz`: requests made from the schemas of each route.
--
-- A request is a model (fuzz_model), made valid and then changed (fuzz_change).
-- An invalid one must be refused before any check or handler, a valid one must
-- pass validation, and no hook may raise. What goes wrong is made as small as
-- it can be, and printed as a test case (fuzz_failure).

local change <const> = require "gateway.fuzz_change"
local client_for <const> = require "gateway.client_for"
local core <const> = require "gateway.core"
local failure <const> = require "gateway.fuzz_failure"
local model <const> = require "gateway.fuzz_model"
local policy <const> = require "gateway.policy"
local stage <const> = require "gateway.stage"
local strings <const> = require "gateway.strings"
local M = {}

local TRIES <const> = 20          -- to reach the route that was meant
local FAILURES_MAX <const> = 20
local ENOUGH <const> = 40         -- requests, one of which should have got in
local NO_WAY_IN <const> = "none of %d requests passed validation, so nothing"
  .. " behind it was tried: its schemas may let nothing in (look at required,"
  .. " and at pattern beside minLength and maxLength), or are beyond what is"
  .. " made here: write cases by hand"
local NO_VERDICT <const> = "none of %d requests came to its validation: another"
  .. " route takes them, or authorize or a limit refuses them all"
local LIMITS <const> = {
  [413] = true, [414] = true, [429] = true, [431] = true,
}


-- ---- what came of a request ------------------------------------------------

-- The same route each time the policy is loaded; a loop, or a function, makes
-- several of one line.
local function key_of(route)
  return table.concat({ route.at, table.concat(route.methods, ","), route.path,
    route.host, route.listener }, " ")
end


-- Did the request go to another route than the one it was made for?
local function is_elsewhere(r, request)
  local route = r.number and policy.all("routes")[r.number]
  return route and route ~= request.route
    and key_of(route) ~= key_of(request.route)
end


-- Is the request refused for a reason that says nothing about its inputs?
local function is_beside(r, request)
  return is_elsewhere(r, request) or LIMITS[r.status] or r.stage == "authorize"
end


--- What is wrong with an outcome, or nil.
-- @param verdict  what valid() said of the request
-- @return a word for the kind of failure, and a sentence
function M.judge(request, verdict, r)
  local passed = stage.passed_validation(r.stage)
  if r.status == 500 then
    return "raises", ("a hook raised at %s: %s"):format(r.stage, r.reason)
  elseif verdict == nil or is_beside(r, request) then
    return nil
  elseif verdict == false and passed then
    return "passes", ("an invalid request passed validation: %d at %s"):format(
      r.status, r.stage)
  elseif verdict == true and not passed then
    return "refused", ("a valid request was refused: %d at %s: %s"):format(
      r.status, r.stage, r.reason)
  end
  return nil
end


-- ---- the run ---------------------------------------------------------------

-- The methods that a route is tried with.
local function methods_of(route)
  if route.methods[1] ~= "*" then
    return route.methods
  end
  return route.body.kind == "none" and { "GET", "POST" } or { "POST" }
end


local Run = {}
Run.__index = Run


local function yes()
  return true
end


-- Sends a request. Where no identity is known, authorize is stood in for.
function Run:send(request, who)
  local hooks, kept = policy.all("hooks"), {}
  for _, one in ipairs(who.stood_in and request.route.authorize or {}) do
    kept[one.hook] = hooks[one.hook]
    hooks[one.hook] = yes
  end
  self.sent = self.sent + 1
  local r = self.request(who, request)
  for number, hook in pairs(kept) do
    hooks[number] = hook
  end
  return r
end


-- Does the route let a client in? Some requests may go to another route.
function Run:lets_in(route, method, who)
  for _ = 1, TRIES do
    local request = model.good(route, method, self.random, true)
    local r = self:send(request, who)
    if not is_elsewhere(r, request) then
      return r.stage ~= "authorize"
    end
  end
  return false
end


-- The first identity that the route lets in; or one for whom authorize is
-- stood in.
function Run:who_for(route, method)
  local list = client_for.route(route, "fuzz")
  table.move(self.identities, 1, #self.identities, #list + 1, list)
  for _, fields in ipairs(list) do
    local made, client = pcall(self.identity, fields)
    if made then
      local who = { fields = fields, identity = client }
      if self:lets_in(route, method, who) then
        return who
      end
    end
  end
  return { fields = { cn = "fuzz" }, stood_in = true,
    identity = self.identity { cn = "fuzz" } }
end


-- A model's failure on a policy that has seen nothing else.
function Run:fails_afresh(request, who, kind)
  local verdict = model.valid(request)
  if not self.fresh() then
    return false
  end
  local key = key_of(request.route)
  for _, route in ipairs(policy.all("routes")) do
    if key_of(route) == key then
      request.route = route
    end
  end
  local found, why = M.judge(request, verdict, self:send(request, who))
  return found == kind, why
end


-- What makes two failures one: the route, the kind and the reason, whatever its
-- numbers and members.
local function failure_key(request, kind, why)
  local reason = why:gsub("%d+", ""):gsub("( at /[^/%s:]*)[^%s:]*", "%1")
  return key_of(request.route) .. kind .. reason:sub(1, 60)
end


function Run:failed(request, who, kind, why)
  local first = failure_key(request, kind, why)
  if #self.failures >= FAILURES_MAX or self.known[first] then
    return
  end
  self.known[first] = true
  local again = self:fails_afresh(request, who, kind)
  if again then
    request = failure.shrink(request, function(smaller)
      return self:fails_afresh(smaller, who, kind)
    end)
    why = select(2, self:fails_afresh(request, who, kind)) or why
  else
    why = why .. " (only after other requests)"
  end
  -- what was made small may be what another one was made to
  local last = failure_key(request, kind, why)
  if last ~= first and self.known[last] then
    return
  end
  self.known[last] = true
  self.failures[#self.failures + 1] = {
    model = request, kind = kind, why = why, fields = who.fields,
    stood_in = who.stood_in, seed = self.seed,
  }
end


function Run:try(request, goal)
  local who, verdict = goal.who, model.valid(request)
  local r = self:send(request, who)
  goal.sent = goal.sent + 1
  goal.passed = goal.passed or stage.passed_validation(r.stage)
    and not is_elsewhere(r, request)
  goal.judged = goal.judged or not is_beside(r, request)
  local name = verdict == nil and "unsure" or verdict and "valid" or "invalid"
  self[name] = self[name] + 1
  local kind, why = M.judge(request, verdict, r)
  if kind then
    self:failed(request, who, kind, why)
  end
end


-- One route and method that is tried.
function Run:goal(route, method)
  local who = self:who_for(route, method)
  if who.stood_in then
    self.stood_in[#self.stood_in + 1] = ("%s: %s %s"):format(route.at, method,
      route.path)
  end
  return { key = key_of(route), at = route.at, path = route.path,
    method = method, who = who, sent = 0 }
end


-- The route of a goal in the policy as it is loaded now.
local function route_of(goal)
  for _, route in ipairs(policy.all("routes")) do
    if key_of(route) == goal.key then
      return route
    end
  end
  return nil
end


function Run:round(goals)
  for _, goal in ipairs(goals) do
    local route = route_of(goal)
    if route then
      local request = model.good(route, goal.method, self.random)
      if self.random(5) > 1 then
        request = change.changed(request, self.random) or request
      end
      if model.is_sendable(request) then
        self:try(request, goal)
      end
    end
    if core.now() > self.until_time then
      return
    end
  end
end


-- The goals of which no request passed validation, though enough were sent:
-- what lies behind it is untried, and perhaps out of reach for everybody.
local function closed_goals(goals)
  local closed = {}
  for _, goal in ipairs(goals) do
    if goal.sent >= ENOUGH and not goal.passed then
      closed[#closed + 1] = ("%s: %s %s: %s"):format(goal.at, goal.method,
        goal.path, goal.judged and NO_WAY_IN:format(goal.sent)
          or NO_VERDICT:format(goal.sent))
    end
  end
  return closed
end


--- run(spec): fuzzes the policy that is loaded.
-- @param spec  { seconds, seed, identities = list of fields,
--              request = function(who, request) -> r, fresh = function() that
--              loads the policy again, identity = function(fields) that makes
--              a client, most = of requests }
-- @return { sent, valid, invalid, unsure, failures, stood_in, goals = how many
--         routes and methods, closed = those that nothing got into, in words }
function M.run(spec)
  local run = setmetatable({
    random = strings.sequence(spec.seed), seed = spec.seed, known = {},
    identities = spec.identities or {}, request = spec.request,
    fresh = spec.fresh, identity = spec.identity,
    sent = 0, valid = 0, invalid = 0, unsure = 0, failures = {}, stood_in = {},
    until_time = core.now() + spec.seconds,
  }, Run)
  local goals = {}
  for _, route in ipairs(policy.all("routes")) do
    for _, method in ipairs(route.path ~= "*" and methods_of(route) or {}) do
      goals[#goals + 1] = run:goal(route, method)
    end
  end
  while #goals > 0 and core.now() < run.until_time
    and run.sent < (spec.most or math.huge) do
    run:round(goals)
  end
  run.goals, run.closed = #goals, closed_goals(goals)
  return run
end


return M
