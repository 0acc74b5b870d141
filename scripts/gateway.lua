-- The policy of `make run`: an example to read, try and change.
--
-- Who is there: `make run` makes a CA and two clients, both with certificates
-- that it signed. alice (spiffe://example.org/ns/demo/sa/alice, OU ops) may do
-- nearly everything below. bob (…/sa/bob, no OU) is the client that we do not
-- trust: he gets in only where the policy says "anyone".

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.listen {
  address = "127.0.0.1:8443",
  certificate = "certs/server.crt",
  key = "certs/server.key",
  client_ca = "certs/ca.crt",
}

-- Health and metrics, for loopback only.
gateway.admin { address = "127.0.0.1:9443" }

local alice = id.spiffe "spiffe://example.org/ns/demo/sa/alice"
local ops = id.ou "ops"


-- 1. An answer from Lua. Every client with a certificate may ask who it is.
gateway.get("/whoami", {
  authorize = id.anyone,
  handle = function(_, identity)
    return gateway.json { dn = identity.subject.dn, spiffe = identity.spiffe }
  end,
})


-- 2. A proxied route. The path is checked before the upstream sees it, and is
--    written afresh: no "..", no encoded slash, no hidden file.
local app = gateway.upstream { "http://127.0.0.1:8080", name = "app" }

gateway.get("/files/{path...}", {
  authorize = id.any(alice, id.spiffe "spiffe://example.org/ns/demo/files/**"),
  validate = { path = { path = gateway.relative_path } },
  handle = app:to("/internal/{path}", {
    set = { ["X-Client"] = "{identity.cn}" },
  }),
})


-- 3. A JSON route: the schema says what a document may be, `check` says what a
--    schema cannot: who may go how far.
local SETPOINT = gateway.object {
  room = gateway.enum { "kitchen", "bath", "attic" },
  celsius = gateway.number(5, 30),
  until_time = gateway.optional(gateway.datetime),
}

gateway.post("/v1/setpoint", {
  authorize = ops,
  validate = { json = SETPOINT },
  check = function(request, identity)
    return request.json.celsius <= 25 or identity:has("ou", "managers"),
      "above 25 degrees only managers may go"
  end,
  handle = function(request)
    return gateway.json { room = request.json.room, accepted = true }
  end,
})


-- 4. A command: the last lines of a log. No shell; the name must match, and the
--    file is opened below the folder, following no link, before tail starts.
local tail = gateway.command {
  name = "tail",
  program = "/usr/bin/tail",
  args = { "-n", gateway.slot "lines", gateway.slot "file" },
  slots = {
    lines = gateway.integer(1, 100),
    file = gateway.file_below("scripts/demo", {
      pattern = "^[a-z][a-z0-9-]{0,40}[.]log$",
    }),
  },
  timeout = 5.0,
  memory = "64M",
  stdout = "256K",
}

gateway.get("/v1/logs/{name}", {
  authorize = id.all(alice, ops),
  validate = {
    path = { name = tail.slots.file },
    query = { lines = gateway.optional(tail.slots.lines, 10) },
  },
  handle = function(request)
    local run = tail:run {
      lines = request.query.lines, file = request.path.name,
    }
    if not run.ok then
      return gateway.problem(502)  -- why is in the log
    end
    return gateway.text(run.stdout)
  end,
})
