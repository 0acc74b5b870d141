-- Tests of scripts/cookbook/webhook_runner.lua.

local t = require "gateway.test"

t.policy "scripts/cookbook/webhook_runner.lua"

local forge = t.identity { cn = "forge", dns = "forge.example.org" }
local other = t.identity { cn = "forge", dns = "forge.example.com" }
local JOB <const> = "/jobs/" .. ("0"):rep(32)


local function event(changes)
  local made = { event = "push", repository = "alice/site",
    commit = ("a1"):rep(20) }
  for key, value in pairs(changes or {}) do
    made[key] = value
  end
  return { json = made, stub = { deploy = { stdout = "100\n" } } }
end


t.case("the forge tells of a push, and a job begins", function()
  local r = t.request(forge, "POST", "/hooks/deploy", event())
  t.allowed(r)
  t.status(r, 202)
  t.ran(r, "deploy")
  t.allowed(t.request(forge, "GET", r.headers.location))
  t.allowed(t.request(forge, "DELETE", r.headers.location))
end)

t.case("another host does not, and sees no job", function()
  local r = t.request(other, "POST", "/hooks/deploy", event())
  t.denied(r, "authorize")
  t.not_ran(r)
  t.denied(t.request(other, "GET", JOB), "authorize")
  t.denied(t.request(other, "DELETE", JOB), "authorize")
end)

t.case("an event is what the schema says", function()
  for _, changes in ipairs {
    { event = "rm" }, { repository = "../site" }, { repository = "-x/site" },
    { repository = "alice/site;id" }, { commit = "HEAD" },
    { commit = ("a1"):rep(20) .. "\n" }, { shell = "/bin/sh" },
  } do
    local r = t.request(forge, "POST", "/hooks/deploy", event(changes))
    t.refused(r, "json")
    t.not_ran(r)
  end
end)

t.case("the number of a job is one", function()
  for _, method in ipairs { "GET", "DELETE" } do
    t.refused(t.request(forge, method, "/jobs/..%2fhooks"), "path")
  end
end)
