-- Tests of scripts/cookbook/tenant_ca.lua.

local t = require "gateway.test"

t.policy "scripts/cookbook/tenant_ca.lua"

local client <const> = {
  red = t.identity { cn = "rita", ca = "certs/red/ca.crt" },
  blue = t.identity { cn = "bert", ca = "certs/blue/ca.crt" },
}


local function ask(who, tenant, file)
  return t.request(who, "GET", "/files/" .. file,
    { headers = { Host = tenant .. ".example" } })
end


t.case("each tenant reads its own files", function()
  for tenant, who in pairs(client) do
    local r = ask(who, tenant, "plans/hall.pdf")
    t.allowed(r)
    t.forwarded(r, { upstream = tenant,
      target = "/" .. tenant .. "/plans/hall.pdf" })
  end
end)

t.case("and nobody else's", function()
  for tenant, other in pairs { red = "blue", blue = "red" } do
    local r = ask(client[other], tenant, "plans/hall.pdf")
    t.denied(r, "authorize")
    t.not_forwarded(r)
  end
end)

t.case("no path leaves a tenant's folder", function()
  for tenant, who in pairs(client) do
    for _, file in ipairs { "..%2fblue%2fx", "%2e%2e/x", "a//b", ".git/x" } do
      local r = ask(who, tenant, file)
      t.refused(r, "path")
      t.not_forwarded(r)
    end
  end
end)

t.case("there is no third tenant", function()
  t.refused(ask(client.red, "green", "plans/hall.pdf"), "route")
end)
