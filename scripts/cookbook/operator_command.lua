-- One command for operators, with a file as its argument.
--
-- For: letting operators read checksums of what lies on a device, without a
-- login. The name must match, and the file is opened below the folder,
-- following no link, before the program starts; the program gets nothing else.
-- Change: the folder, the pattern, the program.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.listen {
  address = "*:8443",
  certificate = "certs/server.crt", key = "certs/server.key",
  client_ca = "certs/ca.crt",
}

local sum = gateway.command {
  name = "sum",
  program = "/usr/bin/sha256sum",
  args = { "--", gateway.slot "file" },
  slots = {
    file = gateway.file_below("scripts/demo", {
      pattern = "^[a-z0-9][a-z0-9-]{0,40}[.]log$",
    }),
  },
  timeout = 10, memory = "32M", stdout = "4K", concurrency = 2,
}

gateway.get("/sums/{name}", {
  authorize = id.all(id.ou "operators", id.eku "clientAuth"),
  validate = { path = { name = sum.slots.file } },
  handle = function(request)
    local run = sum:run { file = request.path.name }
    if not run.ok then
      return gateway.problem(502)  -- why is in the log
    end
    return gateway.json { sha256 = run.stdout:match "^%x+" }
  end,
})
