-- Tests of scripts/cookbook/operator_command.lua.

local t = require "gateway.test"

t.policy "scripts/cookbook/operator_command.lua"

local operator = t.identity { cn = "olga", ou = "operators" }
local guest = t.identity { cn = "guest", ou = "guests" }
local server = t.identity { cn = "server", ou = "operators",
  eku = { "serverAuth" } }
local SUM <const> = ("ab"):rep(32)


t.case("an operator reads a checksum", function()
  local r = t.request(operator, "GET", "/sums/boiler.log",
    { stub = { sum = { stdout = SUM .. "  /dev/fd/7\n" } } })
  t.allowed(r)
  t.ran(r, "sum", { file = "boiler.log" })
  t.equal(r.body, '{"sha256":"' .. SUM .. '"}')
end)

t.case("others do not, nor does a server's certificate", function()
  for _, who in ipairs { guest, server } do
    local r = t.request(who, "GET", "/sums/boiler.log")
    t.denied(r, "authorize")
    t.not_ran(r)
  end
end)

t.case("no name leaves the folder, or is an option", function()
  for _, name in ipairs { "..%2fboiler.log", "%2e%2e", "-c.log", "boiler.txt",
    "Boiler.log", "boiler.log%0a", "boiler.log%00", "$(id).log" } do
    local r = t.request(operator, "GET", "/sums/" .. name)
    t.refused(r, "path")
    t.not_ran(r)
  end
end)

t.case("what the program complains of stays here", function()
  local r = t.request(operator, "GET", "/sums/boiler.log",
    { stub = { sum = { code = 1, stderr = "secret", why = "exit code 1" } } })
  t.status(r, 502)
  t.equal(r.body:find("secret", 1, true), nil)
end)
