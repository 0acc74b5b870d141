-- Tests of the WebSocket of scripts/cookbook/redis_tunnel.lua. A tunnel has no
-- requests: tests/e2e/88-cookbook.py opens it with redis-cli.

local t = require "gateway.test"

t.policy "scripts/cookbook/redis_tunnel.lua"

local staff = t.identity { cn = "stan", ou = "staff" }
local guest = t.identity { cn = "guest" }


-- How a browser opens a WebSocket from a page of that origin.
local function open(who, target, origin)
  return t.request(who, "GET", target, { raw = table.concat({
    "GET " .. target .. " HTTP/1.1", "Host: localhost",
    "Connection: Upgrade", "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13",
    "Origin: " .. (origin or "https://chat.example.org"), "", "",
  }, "\r\n") })
end


t.case("staff come in from the page", function()
  local r = open(staff, "/chat/lobby")
  t.allowed(r)
  t.forwarded(r, { upstream = "chat", target = "/rooms/lobby" })
end)

t.case("others do not", function()
  local r = open(guest, "/chat/lobby")
  t.denied(r, "authorize")
  t.not_forwarded(r)
end)

t.case("another page cannot borrow a visitor's certificate", function()
  for _, origin in ipairs { "https://evil.example", "null",
    "https://chat.example.org.evil.example" } do
    local r = open(staff, "/chat/lobby", origin)
    t.refused(r, "headers")
    t.not_forwarded(r)
  end
end)

t.case("a room is a plain name", function()
  t.refused(open(staff, "/chat/..%2fadmin"), "path")
end)
