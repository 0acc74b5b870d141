-- The policy of the benchmark (shared/bench, peers/gateway): the same work as
-- its other peers do. Every route is for the client whose CN is alice.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.process { workers = 1, access_log = false }

gateway.listen {
  address = "127.0.0.1:" .. gateway.env "BENCH_PORT",
  certificate = gateway.env "BENCH_CERT",
  key = gateway.env "BENCH_KEY",
  client_ca = gateway.env "BENCH_CA",
  tickets = gateway.env("BENCH_RESUME", "0") == "1",
  limits = {
    connections = 100000, handshakes = 10000, per_identity = 100000,
    requests = 0, idle = 300,
  },
}

local upstream = gateway.upstream {
  "http://127.0.0.1:" .. gateway.env "BENCH_UPSTREAM",
  name = "bench", keepalive = 128, identity_headers = false,
}

local DOCUMENT = gateway.object {
  device = gateway.string { pattern = "^sensor-\\d+$", maxLength = 32 },
  ts = gateway.integer(1),
  seq = gateway.integer(0),
  ok = gateway.boolean,
  readings = gateway.array(gateway.object {
    id = gateway.string(1, 16),
    value = gateway.number,
    unit = gateway.string(1, 8),
  }, 1, 64),
  tags = gateway.object({}, {
    additionalProperties = gateway.string(1, 64), maxProperties = 16,
  }),
}

local run_true = gateway.command {
  name = "true", program = "/bin/true", concurrency = 64, queue = 1024,
}

local alice = id.cn "alice"

gateway.get("/hello", {
  authorize = alice,
  handle = function()
    return gateway.text "hello gateway"
  end,
})

gateway.any("/proxy/{path...}", {
  authorize = alice,
  validate = {
    path = { path = gateway.relative_path },
    query = gateway.unchecked,
    body = gateway.stream "4G",
  },
  handle = upstream:to("/{path}", {
    set = { ["X-Client-Id"] = "{identity.cn}" },
  }),
})

gateway.post("/json", {
  authorize = alice,
  validate = { json = DOCUMENT },
  handle = function()
    return gateway.text "valid\n"
  end,
})

gateway.get("/run", {
  authorize = alice,
  handle = function()
    return gateway.text(run_true:run().code .. "\n")
  end,
})
