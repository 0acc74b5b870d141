-- Tests of scripts/cookbook/device_console.lua.

local t = require "gateway.test"

t.policy "scripts/cookbook/device_console.lua"

local support = t.identity { cn = "sam", ou = "support" }
local operator = t.identity { cn = "olga", ou = "operators" }
local guest = t.identity { cn = "guest" }
local LOOKS <const> = { "memory", "load", "kernel", "release" }


t.case("support and operators look", function()
  for _, name in ipairs(LOOKS) do
    for _, who in ipairs { support, operator } do
      local r = t.request(who, "GET", "/console/" .. name,
        { stub = { [name] = { stdout = "fine\n" } } })
      t.allowed(r)
      t.ran(r, name, {})
      t.equal(r.body, "fine\n")
    end
  end
end)

t.case("others do not", function()
  for _, name in ipairs(LOOKS) do
    local r = t.request(guest, "GET", "/console/" .. name)
    t.denied(r, "authorize")
    t.not_ran(r)
  end
end)

t.case("there is nothing to say but the path", function()
  for _, name in ipairs(LOOKS) do
    t.refused(t.request(support, "GET", "/console/" .. name .. "?x=1"), "query")
    t.status(t.request(support, "POST", "/console/" .. name), 405)
  end
  t.status(t.request(support, "GET", "/console/reboot"), 404)
end)

t.case("a program that fails is no answer", function()
  t.status(t.request(support, "GET", "/console/load",
    { stub = { load = { timed_out = true } } }), 502)
end)
