-- A JSON API, as its OpenAPI document has it, and nothing besides.
--
-- For: an API that is written down already. Each operation of json_api.yaml is
-- a route, each schema in it is checked, and what the document does not name is
-- refused: other paths, parameters and members. Who may call is said here, for
-- all of it and for single operations; what is not handled is not served.
-- Change: the document (it lies beside the policy), who, and the service.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.listen {
  address = "*:8443",
  certificate = "certs/server.crt", key = "certs/server.key",
  client_ca = "certs/ca.crt",
}

local workshop = gateway.upstream { "http://127.0.0.1:8080", name = "workshop" }
local desk = id.ou "desk"

gateway.openapi {
  file = "json_api.yaml",
  authorize = id.any(desk, id.ou "members"),
  upstream = workshop,
  handlers = {
    createBooking = {
      check = function(request, identity)
        return identity:has("ou", "desk") or request.json.bench <= 6,
          "benches from 7 on are booked at the desk"
      end,
      handle = workshop:to "/v1/bookings",
    },
    cancelBooking = {
      authorize = desk,
      handle = workshop:to "/v1/bookings/{id}",
    },
  },
}
