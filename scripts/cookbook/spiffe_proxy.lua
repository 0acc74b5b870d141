-- An allow-list in front of a service, by SPIFFE ID.
--
-- For: a service in a mesh whose sidecar you want to do without. Who may call
-- it is written down by SPIFFE ID, for reading and for writing apart; the
-- service learns from X-Forwarded-Client-Cert and Client-Cert who asks.
-- Change: the trust domain, the IDs, the paths, and where the service is.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.listen {
  address = "*:8443",
  certificate = "certs/server.crt", key = "certs/server.key",
  client_ca = "certs/ca.crt",
}
gateway.admin { address = "127.0.0.1:9443" }

local orders = gateway.upstream { "http://127.0.0.1:8080", name = "orders" }

local readers = id.any(
  id.spiffe "spiffe://shop.example/ns/web/sa/frontend",
  id.spiffe "spiffe://shop.example/ns/reports/**"
)
local writers = id.spiffe "spiffe://shop.example/ns/web/sa/checkout"
local ORDER = gateway.integer(1, 2 ^ 53)

gateway.get("/orders/{order}", {
  authorize = id.any(readers, writers),
  validate = { path = { order = ORDER } },
  handle = orders:to "/orders/{order}",
})

gateway.post("/orders", {
  authorize = writers,
  validate = { json = gateway.object {
    article = gateway.string { pattern = "^[A-Z0-9-]{1,20}$", maxLength = 20 },
    pieces = gateway.integer(1, 1000),
  } },
  handle = orders:to "/orders",
})
