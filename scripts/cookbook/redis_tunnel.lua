-- Redis behind mutual TLS, and a WebSocket beside it.
--
-- For: services that speak a protocol of their own, and know no certificates.
-- The tunnel is opened for whom the policy names, and ends with the
-- certificate.
-- Change: who, and where to. A web page may open a WebSocket with its visitor's
-- certificate: so the Origin is checked.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.tcp {
  listen = {
    address = "*:6380",
    certificate = "certs/server.crt", key = "certs/server.key",
    client_ca = "certs/ca.crt",
  },
  authorize = id.spiffe "spiffe://shop.example/ns/cart/**",
  to = "tcp://127.0.0.1:6379",
  idle = 300,
}

gateway.listen {
  address = "*:8443",
  certificate = "certs/server.crt", key = "certs/server.key",
  client_ca = "certs/ca.crt",
}

local chat = gateway.upstream { "http://127.0.0.1:8080", name = "chat" }

gateway.get("/chat/{room}", {
  authorize = id.ou "staff",
  upgrade = "websocket",
  validate = {
    path = { room = gateway.filename },
    headers = { Origin = gateway.enum { "https://chat.example.org" } },
  },
  handle = chat:to "/rooms/{room}",
})
