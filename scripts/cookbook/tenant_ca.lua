-- Each tenant has a CA of its own, and reaches nobody else's data.
--
-- For: a service that several customers share, where each issues certificates
-- to its people itself. By the server name, a client must show a certificate of
-- that tenant's CA; each route asks again whose client it is.
-- Change: the names, the CA files, where each tenant's service is.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.listen {
  address = "*:8443",
  certificate = "certs/server.crt", key = "certs/server.key",
  client_ca = "certs/ca.crt",
  sni = {
    ["red.example"] = { client_ca = "certs/red/ca.crt" },
    ["blue.example"] = { client_ca = "certs/blue/ca.crt" },
  },
  sni_strict = true,
}

local function tenant(name, target)
  local app = gateway.upstream { target, name = name }
  gateway.get("/files/{path...}", {
    host = name .. ".example",
    client_ca = "certs/" .. name .. "/ca.crt",
    authorize = id.ca("certs/" .. name .. "/ca.crt"),
    validate = { path = { path = gateway.relative_path } },
    handle = app:to("/" .. name .. "/{path}"),
  })
end

tenant("red", "http://127.0.0.1:8081")
tenant("blue", "http://127.0.0.1:8082")
