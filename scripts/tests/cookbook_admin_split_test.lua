-- Tests of scripts/cookbook/admin_split.lua.

local t = require "gateway.test"

t.policy "scripts/cookbook/admin_split.lua"

local shop = t.identity { cn = "till", ou = "shops", ca = "certs/ca.crt" }
local operator = t.identity { cn = "olga", ou = "operators",
  ca = "certs/operators/ca.crt" }
local ITEM <const> = "/v1/items/0b9fd6a3-6f0f-4c43-9f0d-3c1a5b0c7d11"


t.case("a shop reads items", function()
  local r = t.request(shop, "GET", ITEM, { listener = "public" })
  t.allowed(r)
  t.forwarded(r, { upstream = "app", method = "GET", target = ITEM })
end)

t.case("a shop removes none, wherever it asks", function()
  for _, listener in ipairs { "public", "operators" } do
    local r = t.request(shop, "DELETE", ITEM, { listener = listener })
    t.equal(r.status >= 403, true)
    t.not_forwarded(r)
  end
  t.denied(t.request(shop, "DELETE", ITEM, { listener = "operators" }),
    "authorize")
end)

t.case("an operator of the other CA is none", function()
  local fake = t.identity { cn = "olga", ou = "operators", ca = "certs/ca.crt" }
  t.denied(t.request(fake, "DELETE", ITEM, { listener = "operators" }),
    "authorize")
end)

t.case("an operator removes items, and is no shop", function()
  t.forwarded(t.request(operator, "DELETE", ITEM, { listener = "operators" }),
    { upstream = "app", method = "DELETE", target = ITEM })
  t.denied(t.request(operator, "GET", ITEM, { listener = "public" }),
    "authorize")
end)

t.case("an item is a UUID", function()
  t.refused(t.request(shop, "GET", "/v1/items/..%2fkeys",
    { listener = "public" }), "path")
  t.refused(t.request(operator, "DELETE", "/v1/items/*",
    { listener = "operators" }), "path")
end)
