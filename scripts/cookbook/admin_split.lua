-- What operates a service is apart from what it serves.
--
-- For: a service whose people and machines must not meet. Each has a listener,
-- a CA and routes of its own: a shop's certificate cannot even shake hands
-- where the operators are. Health and metrics are on a Unix socket; a stop
-- drains for 20 seconds, while /readyz says no.
-- Change: addresses, CAs, the service.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.process { drain = 20 }
gateway.admin { address = "unix:/run/gateway-admin.sock" }

gateway.listen {
  name = "public", address = "*:8443",
  certificate = "certs/server.crt", key = "certs/server.key",
  client_ca = "certs/ca.crt",
  limits = { connections = 2000, per_identity = 50 },
}
gateway.listen {
  name = "operators", address = "127.0.0.1:8444",
  certificate = "certs/server.crt", key = "certs/server.key",
  client_ca = "certs/operators/ca.crt",
  limits = { connections = 20 },
}

local app = gateway.upstream { "http://127.0.0.1:8080", name = "app" }

gateway.get("/v1/items/{item}", {
  listener = "public",
  authorize = id.ou "shops",
  validate = { path = { item = gateway.uuid } },
  handle = app:to "/v1/items/{item}",
})

gateway.delete("/v1/items/{item}", {
  listener = "operators",
  authorize = id.all(id.ca "certs/operators/ca.crt", id.ou "operators"),
  validate = { path = { item = gateway.uuid } },
  handle = app:to "/v1/items/{item}",
})
