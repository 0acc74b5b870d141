-- A firmware image is taken in, and a program reads it as it comes.
--
-- For: devices whose updater may be handed an image by one service. The image
-- flows into the program's standard input; nothing is kept by the gateway, and
-- the upload goes at the pace of the flash. Only one update runs at a time.
-- Change: the program (here gzip checks the image), the sizes, the slots.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.listen {
  address = "*:8443",
  certificate = "certs/server.crt", key = "certs/server.key",
  client_ca = "certs/ca.crt",
}

local IMAGE_MAX <const> = "256M"

local flash = gateway.command {
  name = "flash",
  program = "/usr/bin/gzip",
  args = { "-d", "-c" },
  stdin = IMAGE_MAX, stdout = "1G",
  timeout = 600, cpu = 300, memory = "64M",
  concurrency = 1, queue = 0,
}

gateway.put("/v1/firmware/{slot}", {
  authorize = id.all(
    id.spiffe "spiffe://plant.example/ns/*/sa/updater", id.eku "clientAuth"),
  validate = {
    path = { slot = gateway.enum { "a", "b" } },
    body = gateway.stream(IMAGE_MAX, "application/gzip"),
  },
  limits = { body_idle = 60 },
  handle = function(request)
    return flash:stream({}, { stdin = request.stream })
  end,
})
