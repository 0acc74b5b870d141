-- What one person asks for, another one has to allow.
--
-- For: switching something off that must not be switched off by one alone. A
-- supervisor's certificate opens the door for ten minutes, by a note that the
-- service keeps; the operator's request is then let through. Somebody whose key
-- was lost is kept out at once, by that key.
-- Change: the service that keeps the notes, the roles, the lost keys.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.listen {
  address = "*:8443",
  certificate = "certs/server.crt", key = "certs/server.key",
  client_ca = "certs/ca.crt",
  strip_headers = { "X-By" },
}

-- Public keys that were lost: openssl x509 -in X.crt -noout -pubkey | openssl
-- pkey -pubin -outform der | openssl dgst -sha256 -binary | base64
local LOST <const> = {
  "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
}
local lost = {}
for i, key in ipairs(LOST) do
  lost[i] = id.spki(key)
end
local known = #lost > 0 and id.none(table.unpack(lost)) or id.anyone

local plant = gateway.upstream { "http://127.0.0.1:8080", name = "plant" }
local ALLOWED_S <const> = 600
local PUMP = gateway.enum { "north", "south" }

gateway.put("/pumps/{pump}/allowance", {
  authorize = id.all(known, id.ou "supervisors", id.none(id.ou "operators")),
  validate = { path = { pump = PUMP } },
  handle = plant:to("/allow/{pump}", { set = { ["X-By"] = "{identity.cn}" } }),
})

gateway.post("/pumps/{pump}/stop", {
  authorize = id.all(known, id.ou "operators"),
  validate = { path = { pump = PUMP } },
  check = function(request)
    local answer = gateway.fetch(plant, {
      path = "/allow/" .. request.path.pump, timeout = 2, max = "1K",
    })
    local note = answer and answer.status == 200
      and gateway.decode(answer.body)
    local age = type(note) == "table" and type(note.at) == "number"
      and gateway.time() - note.at
    return age and age >= 0 and age <= ALLOWED_S,
      "no supervisor has allowed it in the last ten minutes"
  end,
  handle = plant:to "/pumps/{pump}/stop",
})
