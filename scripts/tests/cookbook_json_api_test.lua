-- Tests of scripts/cookbook/json_api.lua and its document.

local gateway = require "gateway"
local t = require "gateway.test"

t.policy "scripts/cookbook/json_api.lua"

local desk = t.identity { cn = "dora", ou = "desk" }
local member = t.identity { cn = "mia", ou = "members" }
local guest = t.identity { cn = "guest", ou = "guests" }
local ID <const> = "0b9fd6a3-6f0f-4c43-9f0d-3c1a5b0c7d11"


local function booking(changes)
  local made = { day = "2026-11-26", bench = 3, tools = gateway.list { "saw" } }
  for key, value in pairs(changes or {}) do
    made[key] = value
  end
  return { json = made }
end


t.case("desk and members read and book", function()
  for _, who in ipairs { desk, member } do
    t.forwarded(t.request(who, "GET", "/v1/bookings?day=2026-11-26&limit=5"),
      { method = "GET", target = "/v1/bookings?day=2026-11-26&limit=5" })
    t.forwarded(t.request(who, "GET", "/v1/bookings/" .. ID),
      { target = "/v1/bookings/" .. ID })
    t.forwarded(t.request(who, "POST", "/v1/bookings", booking()),
      { method = "POST", target = "/v1/bookings" })
  end
end)

t.case("others do neither", function()
  for _, r in ipairs {
    t.request(guest, "GET", "/v1/bookings?day=2026-11-26"),
    t.request(guest, "GET", "/v1/bookings/" .. ID),
    t.request(guest, "POST", "/v1/bookings", booking()),
  } do
    t.denied(r, "authorize")
    t.not_forwarded(r)
  end
end)

t.case("only the desk cancels", function()
  local r = t.request(desk, "DELETE", "/v1/bookings/" .. ID)
  t.forwarded(r, { method = "DELETE", target = "/v1/bookings/" .. ID })
  r = t.request(member, "DELETE", "/v1/bookings/" .. ID)
  t.denied(r, "authorize")
  t.not_forwarded(r)
end)

t.case("the benches at the back are booked at the desk", function()
  t.denied(t.request(member, "POST", "/v1/bookings", booking { bench = 7 }),
    "check", "at the desk")
  t.allowed(t.request(desk, "POST", "/v1/bookings", booking { bench = 7 }))
end)

t.case("what the document does not allow is refused", function()
  for _, query in ipairs { "", "?day=today", "?day=2026-02-30",
    "?day=2026-11-26&limit=0", "?day=2026-11-26&day=2026-11-27",
    "?day=2026-11-26&debug=1" } do
    t.refused(t.request(desk, "GET", "/v1/bookings" .. query), "query")
  end
  for _, method in ipairs { "GET", "DELETE" } do
    t.refused(t.request(desk, method, "/v1/bookings/..%2fkeys"), "path")
  end
  for _, changes in ipairs { { bench = 13 }, { bench = "3" }, { owner = "me" },
    { tools = gateway.list { "saw", "saw" } }, { tools = "saw" } } do
    local r = t.request(desk, "POST", "/v1/bookings", booking(changes))
    t.refused(r, "json")
    t.not_forwarded(r)
  end
end)

t.case("what the document does not name is not there", function()
  t.status(t.request(desk, "GET", "/v1/keys"), 404)
  t.status(t.request(desk, "PUT", "/v1/bookings", booking()), 405)
end)
