-- A webhook starts a program, which gets the checked document to read.
--
-- For: build servers and forges that tell of an event. What comes is checked
-- member by member, and handed to the program as JSON on its standard input: no
-- value becomes an argument. The caller gets 202, and asks how it went.
-- Change: the schema of the event, the program, who may call.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.listen {
  address = "*:8443",
  certificate = "certs/server.crt", key = "certs/server.key",
  client_ca = "certs/ca.crt",
}

local EVENT = gateway.object {
  event = gateway.enum { "push", "tag" },
  repository = gateway.string {
    pattern = "^[a-z0-9][a-z0-9-]{0,38}/[a-z0-9][a-z0-9-]{0,98}$",
    maxLength = 140,
  },
  commit = gateway.string { pattern = "^[0-9a-f]{40}$", maxLength = 40 },
}
local forge = id.dns "forge.example.org"

gateway.jobs { keep = 3600, per_identity = 4, authorize = forge }

-- Stands for your deploy program: it reads the event, and prints its size.
local deploy = gateway.command {
  name = "deploy",
  program = "/usr/bin/wc",
  args = { "-c" },
  stdin = "4K", timeout = 300, concurrency = 1,
}

gateway.post("/hooks/deploy", {
  authorize = forge,
  validate = { json = EVENT },
  limits = { body_size = 4096 },
  handle = function(request)
    return deploy:job({}, { stdin = gateway.encode(request.json) })
  end,
})
