--- gateway.shadow: a policy that is asked beside the one in force.
--
--     gateway.shadow "next.lua"
--     gateway.shadow { "next.lua", sample = 0.1 }
--
-- Each worker has it in a Lua state of its own, and asks it about requests that
-- have been answered: route, authorize, validate, check, never a handler. What
-- it would have decided otherwise is logged.

local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local M = {}

local MILLION <const> = 1000000


-- Reader: a share, above 0 and up to 1, as millionths.
local function share(value)
  if math.type(value) and value > 0 and value <= 1 then
    return math.max(1, math.floor(value * MILLION + 0.5))
  end
  return nil, "a number above 0 and up to 1"
end

local SPEC <const> = options.spec("gateway.shadow", {
  policy = { options.text,
    help = "its file, from the working directory; may stand without a name" },
  sample = { share, default = MILLION, shown = "1",
    help = "share of the requests that it is asked about" },
  cpu = { share, default = MILLION // 10, shown = "0.1",
    help = "share of a processor that it may take" },
  hook_cpu = { options.seconds, default = 20,
    help = "computing time of one hook" },
  memory = { options.size, default = 33554432,
    help = "of its scripts, in each worker" },
})


--- shadow "next.lua", shadow { file, sample =, cpu =, hook_cpu =, memory = }:
-- asks another policy beside this one, about requests that were answered, and
-- logs where it would decide otherwise. Only route, authorize, validate and
-- check are asked, never a handler. At most once.
function M.declare(given)
  local what <const> = "gateway.shadow"
  local at = policy.declare(what)
  local named = {}
  if type(given) == "string" then
    named.policy = given
  elseif type(given) == "table" then
    for key, value in pairs(given) do
      named[key == 1 and "policy" or key] = value
    end
  else
    options.fail(at, what, 'takes a file: gateway.shadow "next.lua"')
  end
  if not named.policy then
    options.fail(at, what, 'names no file: { "next.lua", sample = 0.1 }')
  end
  local read = options.read(at, what, named, SPEC)
  read.policy = read.policy:gsub("^%./", "")
  read.hook_cpu_ms, read.hook_cpu = read.hook_cpu, nil
  read.at = at
  policy.set_shadow(at, read)
end


return M
