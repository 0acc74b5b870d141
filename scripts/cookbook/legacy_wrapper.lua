-- Strict checks in front of a service that has none, and cannot be changed.
--
-- For: old services that trust whatever comes. Each input has a schema, and the
-- path is written afresh; the service learns who asks from a header that no
-- client can send. What the service says of itself is taken out of its answers.
-- Change: the routes, and what the service calls the header.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.listen {
  address = "*:8443",
  certificate = "certs/server.crt", key = "certs/server.key",
  client_ca = "certs/ca.crt",
  strip_headers = { "X-Remote-User" },
}

local legacy = gateway.upstream {
  "http://127.0.0.1:8080", name = "legacy",
  head_timeout = 20, keepalive = 4,
}
local NAME = gateway.string { pattern = "^[a-z][a-z0-9_]{0,30}$",
  maxLength = 31 }
local PUBLIC <const> = {
  set = { ["X-Remote-User"] = "{identity.cn}" },
  respond_remove = { "Server", "X-Powered-By" },
}

local old = gateway.group("/app", { authorize = id.ou "clerks" })

old:get("/report", {
  validate = { query = {
    name = NAME,
    from = gateway.date,
    page = gateway.optional(gateway.integer(1, 500), 1),
  } },
  handle = legacy:to("/cgi-bin/report", PUBLIC),
})

old:post("/entry/{ledger}", {
  validate = {
    path = { ledger = NAME },
    headers = { ["X-Idempotency-Key"] = gateway.uuid },
    json = gateway.object {
      amount = gateway.integer(-1000000, 1000000),
      text = gateway.string { pattern = "^[\\p{L}\\p{N} .,-]{0,80}$",
        maxLength = 80 },
    },
  },
  handle = legacy:to("/cgi-bin/entry/{ledger}", PUBLIC),
})
