-- Tests of scripts/cookbook/legacy_wrapper.lua.

local t = require "gateway.test"

t.policy "scripts/cookbook/legacy_wrapper.lua"

local clerk = t.identity { cn = "clara", ou = "clerks" }
local guest = t.identity { cn = "guest" }
local REPORT <const> = "/app/report?name=sales&from=2026-01-31"
local KEY <const> = "0b9fd6a3-6f0f-4c43-9f0d-3c1a5b0c7d11"


local function entry(changes, headers)
  local made = { amount = 12, text = "Büro, Stühle" }
  for key, value in pairs(changes or {}) do
    made[key] = value
  end
  return { json = made, headers = headers or { ["X-Idempotency-Key"] = KEY } }
end


t.case("a clerk asks, and the service learns who", function()
  local r = t.request(clerk, "GET", REPORT,
    { headers = { ["X-Remote-User"] = "root" } })
  t.allowed(r)
  t.forwarded(r, { upstream = "legacy",
    target = "/cgi-bin/report?name=sales&from=2026-01-31",
    headers = { ["x-remote-user"] = "clara" } })
end)

t.case("what the service says of itself is kept", function()
  local r = t.request(clerk, "GET", REPORT, { stub = { legacy = {
    headers = { Server = "Old/1.2", ["X-Powered-By"] = "PHP/4", ETag = '"1"' },
  } } })
  t.equal(r.headers.etag, '"1"')
  t.equal(r.headers["x-powered-by"], nil)
  t.equal(r.headers.server, nil)
end)

t.case("a guest asks for nothing", function()
  for _, r in ipairs { t.request(guest, "GET", REPORT),
    t.request(guest, "POST", "/app/entry/main", entry()) } do
    t.denied(r, "authorize")
    t.not_forwarded(r)
  end
end)

t.case("a query is what the schema says", function()
  for _, query in ipairs { "name=sales", "name=a'--&from=2026-01-31",
    "name=sales&from=2026-01-31&page=0", "name=sales&from=2026-01-31&sort=x",
    "name=sales&name=x&from=2026-01-31" } do
    local r = t.request(clerk, "GET", "/app/report?" .. query)
    t.refused(r, "query")
    t.not_forwarded(r)
  end
end)

t.case("an entry goes into its ledger", function()
  local r = t.request(clerk, "POST", "/app/entry/main", entry())
  t.forwarded(r, { method = "POST", target = "/cgi-bin/entry/main",
    headers = { ["x-remote-user"] = "clara", ["x-idempotency-key"] = KEY } })
end)

t.case("an entry is what the schema says", function()
  for _, changes in ipairs { { amount = 1.5 }, { amount = 2000000 },
    { text = "<script>" }, { text = "a\nb" }, { user = "root" } } do
    local r = t.request(clerk, "POST", "/app/entry/main", entry(changes))
    t.refused(r, "json")
    t.not_forwarded(r)
  end
  t.refused(t.request(clerk, "POST", "/app/entry/..%2fx", entry()), "path")
  t.refused(t.request(clerk, "POST", "/app/entry/main",
    entry({}, { ["X-Idempotency-Key"] = "1" })), "headers")
end)
