-- Tests of the demo policy: `gateway test scripts/tests/gateway_test.lua`.

local t = require "gateway.test"

t.policy "scripts/gateway.lua"

local alice = t.identity {
  cn = "alice", ou = "ops", uri = "spiffe://example.org/ns/demo/sa/alice",
}
local manager = t.identity { cn = "mia", ou = { "ops", "managers" } }
local bob = t.identity {
  cn = "bob", uri = "spiffe://example.org/ns/demo/sa/bob",
}


t.case("anyone with a certificate may ask who they are", function()
  local r = t.request(bob, "GET", "/whoami")
  t.allowed(r)
  t.status(r, 200)
end)

t.case("nobody may ask for more than that", function()
  local r = t.request(bob, "GET", "/whoami?full=1")
  t.refused(r, "query")
end)

t.case("what no route names is not there", function()
  local r = t.request(alice, "GET", "/secret")
  t.refused(r, "route")
  t.status(r, 404)
end)

t.case("a route has only the methods it names", function()
  local r = t.request(alice, "POST", "/whoami")
  t.refused(r, "route")
  t.status(r, 405)
end)

t.case("alice reads files through the gateway", function()
  local r = t.request(alice, "GET", "/files/notes/today.txt",
    { stub = { app = { body = "hello" } } })
  t.allowed(r)
  t.equal(r.body, "hello")
  t.forwarded(r, {
    upstream = "app", method = "GET", target = "/internal/notes/today.txt",
    headers = { ["x-client"] = "alice" },
  })
end)

t.case("bob does not, and the log says why", function()
  local r = t.request(bob, "GET", "/files/notes/today.txt")
  t.denied(r, "authorize", "spiffe id differs in segment 4")
  t.status(r, 403)
  t.not_forwarded(r)
end)

t.case("no traversal reaches the upstream", function()
  for _, target in ipairs {
    "/files/../etc/passwd", "/files/%2e%2e/etc/passwd", "/files/..%2fetc",
    "/files/a/%2E%2E/b", "/files/a//b", "/files/.ssh/id", "/files/a%00b",
    "/files/a%5cb", "/files/-rf",
  } do
    local r = t.request(alice, "GET", target)
    t.refused(r, "path")
    t.not_forwarded(r)
  end
end)

t.case("an undeclared query parameter is refused", function()
  local r = t.request(alice, "GET", "/files/a.txt?debug=1")
  t.refused(r, "query")
  t.status(r, 422)
end)

t.case("ops may set a temperature", function()
  local r = t.request(alice, "POST", "/v1/setpoint",
    { json = { room = "bath", celsius = 22.5 } })
  t.allowed(r)
  t.status(r, 200)
end)

t.case("who is not of ops may not set one", function()
  local r = t.request(bob, "POST", "/v1/setpoint",
    { json = { room = "bath", celsius = 22.5 } })
  t.denied(r, "authorize", "has no ou")
end)

t.case("a document that breaks the schema is refused", function()
  for _, document in ipairs {
    { room = "cellar", celsius = 20 }, { room = "bath" },
    { room = "bath", celsius = "20" }, { room = "bath", celsius = 31 },
    { room = "bath", celsius = 20, admin = true },
  } do
    local r = t.request(alice, "POST", "/v1/setpoint", { json = document })
    t.refused(r, "json")
    t.status(r, 422)
  end
end)

t.case("above 25 degrees only managers may go", function()
  local hot = { json = { room = "bath", celsius = 28 } }
  t.denied(t.request(alice, "POST", "/v1/setpoint", hot), "check", "managers")
  t.allowed(t.request(manager, "POST", "/v1/setpoint", hot))
end)

t.case("the log route runs tail, with ten lines if not told", function()
  local stub = { tail = { stdout = "one\ntwo\n" } }
  local r = t.request(alice, "GET", "/v1/logs/boiler.log", { stub = stub })
  t.allowed(r)
  t.ran(r, "tail", { file = "boiler.log", lines = 10 })
  t.equal(r.body, "one\ntwo\n")
  r = t.request(alice, "GET", "/v1/logs/boiler.log?lines=3", { stub = stub })
  t.ran(r, "tail", { lines = 3 })
end)

t.case("no injection reaches tail", function()
  for _, name in ipairs {
    "-f", "boiler.log;id", "$(id)", "boiler.log%0a", "..%2fgateway.lua",
    "%2e%2e", "BOILER.LOG", "boiler.txt",
  } do
    local r = t.request(alice, "GET", "/v1/logs/" .. name)
    t.refused(r, "path")
    t.not_ran(r)
  end
end)

t.case("lines is a number from 1 to 100, once", function()
  for _, query in ipairs {
    "lines=0", "lines=101", "lines=1e1", "lines=-5", "lines=",
    "lines=1&lines=2",
  } do
    local r = t.request(alice, "GET", "/v1/logs/boiler.log?" .. query)
    t.refused(r, "query")
    t.not_ran(r)
  end
end)

t.case("a manager without alice's id reads no log", function()
  local r = t.request(manager, "GET", "/v1/logs/boiler.log")
  t.denied(r, "authorize", "no spiffe id")
  t.not_ran(r)
end)

t.case("a program that fails is a 502, not a 500", function()
  local r = t.request(alice, "GET", "/v1/logs/boiler.log",
    { stub = { tail = { code = 1 } } })
  t.allowed(r)
  t.status(r, 502)
end)
