-- Slips in names, each behind a word: what a hook asks for that is declared
-- nowhere.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.listen { address = "127.0.0.1:1", certificate = "-", key = "-",
  client_ca = "-" }

local A <const> = gateway.enum { "a" }
local touch = gateway.command {
  name = "touch", program = "/usr/bin/touch",
  args = { gateway.slot "word" }, slots = { word = A },
}

local slips = {
  path = function(request) return request.path.albun end,
  query = function(request) return request.query.wrod end,
  headers = function(request) return request.headers["X-Tenent"] end,
  json = function(request) return request.json.txet end,
  deep = function(request) return request.json.deep.moer end,
  item = function(request) return request.json.list[1].number end,
  request = function(request) return request.qurey end,
  identity = function(_, identity) return identity.spife end,
  run = function() return touch:run { wrod = "a" } end,
  stream = function() return touch:stream { word = "a", more = "b" } end,
  slots = function() return touch:run "a" end,
}


-- What is declared and was not given, and what a schema leaves open.
local function fine(request)
  return gateway.json {
    request.query.word == nil, request.headers["x-tenant"] == nil,
    request.headers["X-TENANT"] == nil, request.json.text == nil,
    request.json.deep.more == nil, request.json.list[1].n,
    request.json.list[2] == nil, request.json.open.anything == nil,
    request.json, request.query, request.path,
  }
end

slips.fine = fine

local OPEN <const> = { type = "object", additionalProperties = true }

gateway.post("/q/{album}", {
  authorize = id.anyone,
  validate = {
    path = { album = A },
    query = { word = gateway.optional(A), slip = gateway.string {
      pattern = "^[a-z]{1,9}$", maxLength = 9 } },
    headers = { ["X-Tenant"] = gateway.optional(A) },
    json = gateway.object {
      text = gateway.optional(A), open = OPEN,
      deep = gateway.object { more = gateway.optional(gateway.boolean) },
      list = gateway.array(gateway.object { n = gateway.integer(1, 3) }, 1, 3),
    },
  },
  handle = function(request, identity)
    local made = slips[request.query.slip](request, identity)
    return type(made) == "table" and made or gateway.text(tostring(made))
  end,
})
