-- Tests of scripts/cookbook/two_persons.lua.

local gateway = require "gateway"
local t = require "gateway.test"

t.policy "scripts/cookbook/two_persons.lua"

local supervisor = t.identity { cn = "susan", ou = "supervisors" }
local operator = t.identity { cn = "olga", ou = "operators" }
local both = t.identity { cn = "max", ou = { "supervisors", "operators" } }
local LOST <const> = "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


-- What a POST of /pumps/north/stop comes to where the service's note says that.
local function stop(who, status, note)
  return t.request(who, "POST", "/pumps/north/stop", {
    stub = { plant = function(request)
      if request.method == "POST" then
        return { body = "stopped" }
      end
      return { status = status, body = gateway.encode(note) }
    end },
  })
end


t.case("a supervisor allows, and the service learns who", function()
  t.forwarded(t.request(supervisor, "PUT", "/pumps/north/allowance"),
    { method = "PUT", target = "/allow/north",
      headers = { ["x-by"] = "susan" } })
end)

t.case("an operator allows nothing, even as a supervisor", function()
  for _, who in ipairs { operator, both } do
    local r = t.request(who, "PUT", "/pumps/north/allowance")
    t.denied(r, "authorize")
    t.not_forwarded(r)
  end
end)

t.case("what was allowed five minutes ago is done", function()
  local r = stop(operator, 200, { at = gateway.time() - 300 })
  t.allowed(r)
  t.equal(r.body, "stopped")
end)

t.case("what nobody allowed is not", function()
  local now = gateway.time()
  for _, r in ipairs {
    stop(operator, 404, { at = now }), stop(operator, 200, { at = now - 700 }),
    stop(operator, 200, { at = now + 700 }), stop(operator, 200, {}),
    stop(operator, 200, "yes"),
  } do
    t.denied(r, "check", "ten minutes")
  end
end)

t.case("a supervisor stops nothing", function()
  t.denied(stop(supervisor, 200, { at = gateway.time() }), "authorize")
end)

t.case("a lost key opens nothing", function()
  local thief = t.identity { cn = "olga", ou = "operators", spki = LOST }
  t.denied(stop(thief, 200, { at = gateway.time() }), "authorize")
end)

t.case("there are two pumps", function()
  t.refused(t.request(supervisor, "PUT", "/pumps/all/allowance"), "path")
  t.refused(t.request(operator, "POST", "/pumps/all/stop"), "path")
end)
