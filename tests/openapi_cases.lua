-- What tests/openapi_cases.py runs by `gateway test`: OpenAPI documents, a JSON
-- text in each line of the file that GATEWAY_TEST_CASES names, become schemas
-- as gateway.openapi makes them for a policy. A line for each is printed: {
-- "schema": … } or { "refused": "file:line: why" }.

local core = require "gateway.core"
local gateway = require "gateway"
local id = require "gateway.identity"
local openapi = require "gateway.openapi"
local options = require "gateway.options"
local policy = require "gateway.policy"
local t = require "gateway.test"

t.policy "scripts/gateway.lua"

local OPTIONS <const> = options.read("cases:1", "gateway.openapi", {
  file = "cases.json", authorize = id.anyone, upstream = function() end,
  open = true,
}, openapi.SPEC)


-- The configuration of a policy that is nothing but the document.
local function configuration(text)
  return policy.aside(function()
    gateway.listen {
      address = "127.0.0.1:0", certificate = "c", key = "k", client_ca = "a",
    }
    openapi.declare_text("cases:1", OPTIONS, "cases.json", text)
    return (policy.finish "cases")
  end)
end


t.case("every document is read", function()
  local text = assert(core.read_file(core.env "GATEWAY_TEST_CASES"))
  for line in text:gmatch "[^\n]+" do
    local ok, result = configuration(core.decode(line).document)
    local route = ok and core.decode(result).routes[1]
    core.print(core.encode(ok and { schema = route.body.schema }
      or { refused = tostring(result) }))
  end
end)
