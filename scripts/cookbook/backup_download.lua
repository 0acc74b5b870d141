-- Backups are packed while they are fetched.
--
-- For: a backup server that fetches what a device has to keep, with no login
-- there. The program's output is the answer, at the pace of the slower side:
-- one at a time, two may wait, and the next are told to come again. If the
-- program fails, the answer breaks off, so half a backup is never taken for a
-- whole one.
-- Change: the folder, the pattern of its files, the backup server's name.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.listen {
  address = "*:8443",
  certificate = "certs/server.crt", key = "certs/server.key",
  client_ca = "certs/ca.crt",
}

local server = id.all(id.dns "backup.example.org", id.eku "clientAuth")

local pack = gateway.command {
  name = "pack",
  program = "/usr/bin/gzip",
  args = { "-c", "--", gateway.slot "file" },
  slots = {
    file = gateway.file_below("scripts/demo", {
      pattern = "^[a-z0-9][a-z0-9-]{0,40}[.]log$",
    }),
  },
  stdout = "4G", timeout = 3600, cpu = 1800, memory = "64M",
  concurrency = 1, queue = 2,
}

gateway.get("/backup/{name}", {
  authorize = server,
  validate = { path = { name = pack.slots.file } },
  handle = function(request)
    return pack:stream({ file = request.path.name },
      { content_type = "application/gzip" })
  end,
})
