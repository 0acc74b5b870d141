-- Tests of scripts/cookbook/firmware_upload.lua.

local t = require "gateway.test"

t.policy "scripts/cookbook/firmware_upload.lua"

local updater = t.identity { uri = "spiffe://plant.example/ns/eu/sa/updater" }
local sensor = t.identity { uri = "spiffe://plant.example/ns/eu/sa/sensor" }


t.case("the updater hands an image over", function()
  local r = t.request(updater, "PUT", "/v1/firmware",
    { body = "image", stub = { flash = { stdout = "written\n" } } })
  t.allowed(r)
  t.ran(r, "flash")
  t.equal(r.body, "written\n")
end)

t.case("nobody else does", function()
  for _, who in ipairs { sensor, t.identity { cn = "updater" } } do
    local r = t.request(who, "PUT", "/v1/firmware", { body = "image" })
    t.denied(r, "authorize")
    t.not_ran(r)
  end
end)

t.case("another kind of body is refused before the program starts", function()
  local r = t.request(updater, "PUT", "/v1/firmware",
    { body = "image", headers = { ["Content-Type"] = "text/html" } })
  t.refused(r, "body")
  t.status(r, 415)
  t.not_ran(r)
end)

t.case("an upload that is too long is refused by its length", function()
  local r = t.request(updater, "PUT", "/v1/firmware", { raw = table.concat({
    "PUT /v1/firmware HTTP/1.1", "Host: gw",
    "Content-Type: application/octet-stream",
    "Content-Length: 300000000", "", "",
  }, "\r\n") })
  t.status(r, 413)
  t.not_ran(r)
end)

t.case("an image that the program does not like is no success", function()
  local r = t.request(updater, "PUT", "/v1/firmware",
    { body = "image", stub = { flash = { code = 1 } } })
  t.equal(r.status >= 500 or r.cut, true)
end)
