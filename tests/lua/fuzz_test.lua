-- The fuzzer finds what it is for: here it is given engines that are wrong.
-- `gateway test --library tests/lua/fuzz_test.lua`

local client_for = require "gateway.client_for"
local fuzz = require "gateway.fuzz"
local fuzz_change = require "gateway.fuzz_change"
local fuzz_failure = require "gateway.fuzz_failure"
local fuzz_model = require "gateway.fuzz_model"
local id = require "gateway.identity"
local policy = require "gateway.policy"
local t = require "gateway.test"
local strings = require "gateway.strings"
local who = require "gateway.who"

t.policy "scripts/gateway.lua"

-- The number of a model's route, as an outcome names it.
local function number_of(model)
  for number, route in ipairs(policy.all("routes")) do
    if route == model.route then
      return number
    end
  end
end


-- Fuzzes with an engine of ours. `answer(model, valid)` is its outcome.
local function run(answer, seed, most)
  local targets = {}
  local found = fuzz.run {
    seconds = 60, most = most or 150, seed = seed or 7, identity = who.make,
    fresh = function() return true end,
    request = function(_, model)
      local valid = fuzz_model.valid(model)
      local r = answer(model, valid)
      r.number, r.reason = number_of(model), r.reason or ""
      targets[#targets + 1] = model.method .. " " .. fuzz_model.target(model)
        .. " " .. tostring(model.body.text)
      return r
    end,
  }
  return found, targets
end


local function let_in()
  return { status = 200, stage = "handle" }
end


local function keep_out()
  return { status = 422, stage = "validate" }
end


local function honest(_, valid)
  return valid and let_in() or keep_out()
end


t.case("an honest engine has no failure", function()
  local found = run(honest)
  t.equal(#found.failures, 0)
  t.equal({ found.valid > 20, found.invalid > 20 }, { true, true })
  t.equal(found.goals, 4)
end)

t.case("an engine that lets everything in is found out, route by route",
  function()
    local found = run(let_in, 7, 600)
    local routes = {}
    for _, failure in ipairs(found.failures) do
      t.equal(failure.kind, "passes")
      t.equal(fuzz_model.valid(failure.model), false)
      routes[failure.model.route.path] = true
    end
    t.equal(routes, { ["/whoami"] = true, ["/files/{path...}"] = true,
      ["/v1/setpoint"] = true, ["/v1/logs/{name}"] = true })
  end)

t.case("an engine that refuses everything is found out", function()
  local found = run(keep_out)
  for _, failure in ipairs(found.failures) do
    t.equal(failure.kind, "refused")
    t.equal(fuzz_model.valid(failure.model), true)
  end
  t.equal(#found.failures, 4)
end)

t.case("a check counts as passed validation", function()
  local found = run(function() return { status = 403, stage = "check" } end)
  t.equal(found.failures[1].kind, "passes")
end)

t.case("a refusal by authorize says nothing of the input", function()
  local found = run(function()
    return { status = 403, stage = "authorize" }
  end)
  t.equal(#found.failures, 0)
  t.equal(#found.stood_in, 4)
end)

t.case("a failure is made small", function()
  local found = run(function(model, valid)
    if fuzz_model.target(model):find("lines=1", 1, true) then
      return let_in()
    end
    return honest(model, valid)
  end, 3, 600)
  t.equal(#found.failures, 1)
  local target = fuzz_model.target(found.failures[1].model)
  t.equal(#target <= #"/v1/logs/?lines=1&lines=1", true)
  t.equal(target:find("^/v1/logs/[^?]*%?.*lines=1") ~= nil, true)
end)

t.case("one failure is printed once, whatever it looked like at first",
  function()
    local count = 0
    local found = run(function(model, valid)
      if not valid or model.route.path ~= "/v1/setpoint" then
        return honest(model, valid)
      end
      count = count + 1
      local reason = "json at /room/x" .. ("y"):rep(count) .. ": no, " .. count
      return { status = 422, stage = "body", reason = reason }
    end, 5, 400)
    t.equal({ #found.failures, count > 9 }, { 1, true })
  end)

t.case("texts beyond ASCII are made small, too", function()
  local failing = fuzz_failure.shrink({
    route = policy.all("routes")[3], method = "POST", path = {}, query = {},
    headers = {}, body = { value = { a = "İé／x" }, text = ("x"):rep(99) },
  }, function(model)
    return utf8.len(model.body.value.a or "\xff") ~= nil
      and model.body.value.a:find("é", 1, true) ~= nil
  end)
  t.equal(failing.body.value, { a = "é" })
end)

t.case("a document that raises is made small, too", function()
  local found = run(function(model, valid)
    local room = type(model.body.value) == "table" and model.body.value.room
    if room == "attic" then
      return { status = 500, stage = "handle", reason = "x.lua:1: boom" }
    end
    return honest(model, valid)
  end, 3, 600)
  t.equal(#found.failures, 1)
  t.equal(found.failures[1].kind, "raises")
  t.equal(found.failures[1].model.body.value, { room = "attic" })
  local text = fuzz_failure.case(found.failures[1])
  t.equal(text:find('t.case("fuzz 3: POST /v1/setpoint", function()', 1, true)
    ~= nil, true)
  t.equal(text:find('[[{\"room\":\"attic\"}]]', 1, true) == nil, true)
  t.equal(text:find([["{\"room\":\"attic\"}"]], 1, true) ~= nil, true)
end)

t.case("the same seed makes the same requests", function()
  local _, first = run(honest, 11)
  local _, second = run(honest, 11)
  local _, other = run(honest, 12)
  local same, differs = true, false
  for i = 1, math.min(#first, #second, #other, 60) do
    same = same and first[i] == second[i]
    differs = differs or first[i] ~= other[i]
  end
  t.equal({ same, differs, #first > 20 }, { true, true, true })
end)

t.case("clients are made of the conditions", function()
  local alice = "spiffe://example.org/ns/demo/sa/alice"
  local routes = policy.all("routes")
  t.equal(client_for.route(routes[1], "x"), { { cn = "x" } })
  t.equal(client_for.route(routes[2], "x"), { { cn = "x", uri = alice },
    { cn = "x", uri = "spiffe://example.org/ns/demo/files/x" } })
  t.equal(client_for.route(routes[4], "x"),
    { { cn = "x", ou = "ops", uri = alice } })
end)

t.case("of any, each; of all, every combination; a star is something",
  function()
    local any = id.all(id.any(id.spiffe "spiffe://e.org/*/**", id.ou "ops"),
      id.any(id.dn "CN=a,OU=b,OU=c", id.dns "*.e.org"), id.none(id.cn "eve"),
      function() return true end)
    local route = { authorize = { { hook = policy.hook(any.test) } } }
    local uri = "spiffe://e.org/x/x"
    t.equal(client_for.route(route, "x"), {
      { cn = "a", ou = { "c", "b" }, uri = uri },
      { cn = "x", dns = "x.e.org", uri = uri },
      { cn = "a", ou = { "ops", "c", "b" } },
      { cn = "x", dns = "x.e.org", ou = "ops" },
    })
  end)

t.case("wrong by construction is refused by the engine that serves", function()
  local alice = t.identity { cn = "alice", ou = "ops",
    uri = "spiffe://example.org/ns/demo/sa/alice" }
  local random, tried = strings.sequence(5), 0
  local route = policy.all("routes")[2]
  for _ = 1, 400 do
    local good = fuzz_model.good(route, "GET", random)
    local model = fuzz_change.changed(good, random)
    if model and (model.segment or model.extra_query) then
      local r = t.request(alice, "GET", fuzz_model.target(model))
      tried = tried + 1
      t.refused(r)
    end
  end
  t.equal(tried > 100, true)
end)

t.case("a path that no parser reads in one way is invalid by itself",
  function()
    local route
    for _, one in ipairs(policy.all("routes")) do
      route = one.path == "/files/{path...}" and one or route
    end
    local model = fuzz_model.good(route, "GET", strings.sequence(1))
    for text, verdict in pairs { ["a/b"] = true, ["a//b"] = false,
      ["/a"] = false, ["a;b"] = false, ["a/../b"] = false } do
      model.path.path = text
      t.equal(fuzz_model.valid(model), verdict)
    end
    model.path.path = "a/"
    t.equal(fuzz_model.valid(model), nil)
  end)

t.case("a route that nothing gets into is named", function()
  local found = run(function(model, valid)
    if model.route.path == "/whoami" then
      return { status = 422, stage = "validate" }
    end
    return honest(model, valid)
  end, 7, 600)
  t.equal(#found.closed, 1)
  t.equal(found.closed[1]:find("GET /whoami: none of %d+ requests passed")
    ~= nil, true)
end)

t.case("one that another route takes is told from one that lets nothing in",
  function()
    local found = run(function()
      return { status = 403, stage = "authorize" }
    end, 7, 600)
    t.equal(#found.closed, 4)
    t.equal(found.closed[1]:find("came to its validation", 1, true) ~= nil,
      true)
  end)

t.case("values of long patterns are made", function()
  local generate = require "gateway.generate"
  local value = generate.good({ type = "string", maxLength = 40,
    pattern = "^[0-9a-f]{40}$" }, strings.sequence(3))
  t.equal(#value, 40)
end)
