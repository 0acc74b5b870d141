-- Tests of scripts/cookbook/spiffe_proxy.lua.

local t = require "gateway.test"

t.policy "scripts/cookbook/spiffe_proxy.lua"

local frontend = t.identity { uri = "spiffe://shop.example/ns/web/sa/frontend" }
local report = t.identity { uri = "spiffe://shop.example/ns/reports/sa/daily" }
local checkout = t.identity { uri = "spiffe://shop.example/ns/web/sa/checkout" }
local stranger = t.identity {
  uri = "spiffe://other.example/ns/web/sa/checkout",
}
local ORDER <const> = { article = "A-17", pieces = 2 }


t.case("those who read, read", function()
  for _, who in ipairs { frontend, report, checkout } do
    local r = t.request(who, "GET", "/orders/7",
      { stub = { orders = { body = "seven" } } })
    t.allowed(r)
    t.equal(r.body, "seven")
    t.forwarded(r, { upstream = "orders", method = "GET",
      target = "/orders/7" })
  end
end)

t.case("the same name in another trust domain is somebody else", function()
  local r = t.request(stranger, "GET", "/orders/7")
  t.denied(r, "authorize")
  t.not_forwarded(r)
end)

t.case("an order is a number, and nothing else", function()
  for _, order in ipairs { "0", "07", "-1", "7.0", "9007199254740993", "x",
    "..%2f7" } do
    local r = t.request(frontend, "GET", "/orders/" .. order)
    t.refused(r, "path")
    t.not_forwarded(r)
  end
end)

t.case("only the checkout writes", function()
  t.forwarded(t.request(checkout, "POST", "/orders", { json = ORDER }),
    { upstream = "orders", method = "POST", target = "/orders" })
  for _, who in ipairs { frontend, report, stranger } do
    local r = t.request(who, "POST", "/orders", { json = ORDER })
    t.denied(r, "authorize")
    t.not_forwarded(r)
  end
end)

t.case("an order is what the schema says", function()
  for _, order in ipairs {
    { article = "A-17" }, { article = "A-17", pieces = 0 },
    { article = "a 17", pieces = 1 },
    { article = "A-17", pieces = 1, price = 0 },
  } do
    local r = t.request(checkout, "POST", "/orders", { json = order })
    t.refused(r, "json")
    t.not_forwarded(r)
  end
end)

t.case("who asks is said by the gateway alone", function()
  local r = t.request(frontend, "GET", "/orders/7",
    { headers = { ["X-Forwarded-Client-Cert"] = "URI=spiffe://a/b" } })
  local said = r.forwards[1].headers["x-forwarded-client-cert"]
  t.equal(said:find("spiffe://a/b", 1, true), nil)
  t.equal(said:find("spiffe://shop.example/ns/web/sa/frontend", 1, true) ~= nil,
    true)
end)
