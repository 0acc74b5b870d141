-- A firmware image is taken in, and a program reads it as it comes.
--
-- For: devices whose updater may be handed an image by one service. The image
-- flows into the program's standard input; nothing is kept by the gateway, and
-- the upload goes at the pace of the flash. Only one update runs at a time; the
-- answer is what the program printed, here the SHA-256 of what it was given.
-- Change: who, the size, and the program: it has to check the image's
-- signature, for a certificate says who sent an image, not that it is a good
-- one.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.listen {
  address = "*:8443",
  certificate = "certs/server.crt", key = "certs/server.key",
  client_ca = "certs/ca.crt",
}

local IMAGE_MAX <const> = "256M"

-- Stands for your flash program.
local flash = gateway.command {
  name = "flash",
  program = "/usr/bin/sha256sum",
  args = { "-b" },
  stdin = IMAGE_MAX, stdout = "4K",
  timeout = 600, cpu = 300, memory = "64M",
  concurrency = 1, queue = 0,
}

gateway.put("/v1/firmware", {
  authorize = id.all(
    id.spiffe "spiffe://plant.example/ns/*/sa/updater", id.eku "clientAuth"),
  validate = { body = gateway.stream(IMAGE_MAX, "application/octet-stream") },
  limits = { body_idle = 60 },
  handle = function(request)
    return flash:stream({}, { stdin = request.stream })
  end,
})
