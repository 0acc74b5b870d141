-- A console that can look, and nothing else.
--
-- For: support staff who need to know how a device is. A handful of programs
-- with fixed arguments; what a client chooses is which of them, by its path.
-- Change: the programs. `gateway exec --learn NAME` says what one has to read.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.listen {
  address = "*:8443",
  certificate = "certs/server.crt", key = "certs/server.key",
  client_ca = "certs/ca.crt",
}

local console = gateway.group("/console", {
  authorize = id.any(id.ou "support", id.ou "operators"),
})

local function look(name, program, args, read)
  local command = gateway.command {
    name = name, program = program, args = args, read = read,
    timeout = 5, memory = "32M", stdout = "64K", concurrency = 2,
  }
  console:get("/" .. name, {
    handle = function()
      local run = command:run {}
      if not run.ok then
        return gateway.problem(502)  -- why is in the log
      end
      return gateway.text(run.stdout)
    end,
  })
end

look("memory", "/bin/cat", { "/proc/meminfo" }, { "/proc/meminfo" })
look("load", "/bin/cat", { "/proc/loadavg" }, { "/proc/loadavg" })
look("kernel", "/bin/uname", { "-a" })
look("release", "/bin/cat", { "/etc/os-release" },
  { "/etc/os-release", "/usr/lib/os-release" })
