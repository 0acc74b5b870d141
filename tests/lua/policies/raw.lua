-- Everything that a hook must not do with a raw value, by name: the policy of
-- raw_test.lua.

local gateway = require "gateway"
local id = require "gateway.identity"

gateway.listen {
  address = "127.0.0.1:1", certificate = "-", key = "-", client_ca = "-",
}
local app = gateway.upstream { "http://127.0.0.1:9", name = "app" }
local echo = gateway.command {
  name = "echo", program = "/bin/echo", args = { gateway.slot "word" },
  slots = { word = gateway.enum { "a", "b" } }, stdin = "1K",
}

local function text(body)
  return gateway.text(tostring(body))
end

local USES <const> = {
  concat = function(raw) return text("a" .. raw) end,
  concat_left = function(raw) return text(raw .. "a") end,
  tostring = function(raw) return text(tostring(raw)) end,
  format = function(raw) return text(("%s"):format(raw)) end,
  quote = function(raw) return text(("%q"):format(raw)) end,
  equal = function(raw, other) return text(raw == other) end,
  less = function(raw) return text(raw < "b") end,
  at_most = function(raw) return text("b" <= raw) end,
  length = function(raw) return text(#raw) end,
  index = function(raw) return text(raw.text) end,
  index_number = function(raw) return text(raw[1]) end,
  write = function(raw) raw.text = "a" end,
  call = function(raw) return text(raw()) end,
  add = function(raw) return text(raw + 1) end,
  negate = function(raw) return text(-raw) end,
  band = function(raw) return text(raw & 1) end,
  upper = function(raw) return text(string.upper(raw)) end,
  find = function(raw) return text(string.find("a", raw)) end,
  find_in = function(raw) return text(string.find(raw, "a")) end,
  gsub = function(raw) return text(string.gsub("a", "a", raw)) end,
  join = function(raw) return text(table.concat { raw }) end,
  number = function(raw) return text(math.floor(raw)) end,
  pairs = function(raw) for _ in pairs(raw) do text "a" end end,
  ipairs = function(raw) for _ in ipairs(raw) do text "a" end end,
  iterate = function(raw) for _ in raw do text "a" end end,
  print = function(raw) print(raw) end,
  log = function(raw) gateway.log("info", raw) end,
  log_alone = function(raw) gateway.log(raw) end,
  throw = function(raw) error(raw) end,
  body = function(raw) return gateway.text(raw) end,
  json = function(raw) return gateway.json { raw } end,
  encode = function(raw) return text(gateway.encode(raw)) end,
  decode = function(raw) return text(gateway.decode(raw)) end,
  problem = function(raw) return gateway.problem(400, raw) end,
  status = function(raw) return gateway.problem(raw) end,
  header = function(raw) return gateway.text("a", 200, { ["x-a"] = raw }) end,
  headers = function(raw)
    return gateway.text("a", 200, { ["x-a"] = { "b", raw } })
  end,
  answer = function(raw) return raw end,
  forward = function(raw) return app:to(raw) end,
  forward_header = function(raw) return app:to("/x", { set = { A = raw } }) end,
  fetch = function(raw) return text(gateway.fetch(app, raw)) end,
  fetch_path = function(raw) return text(app:fetch { path = raw }) end,
  fetch_query = function(raw)
    return text(app:fetch { path = "/", query = { a = raw } })
  end,
  fetch_header = function(raw)
    return text(app:fetch { path = "/", headers = { a = raw } })
  end,
  fetch_body = function(raw)
    return text(app:fetch { path = "/", method = "POST", body = raw })
  end,
  argument = function(raw) return text(echo:run({ word = raw }).stdout) end,
  stream = function(raw) return echo:stream { word = raw } end,
  stdin = function(raw)
    return text(echo:run({ word = "a" }, { stdin = raw }))
  end,
  has = function(raw, _, identity) return text(identity:has("cn", raw)) end,
  sleep = function(raw) gateway.sleep(raw) end,
  schema = function(raw) return text(raw:check(raw)) end,
  convert = function(raw) return text(tonumber(raw)) end,
  same = function(raw) return text(rawequal(raw, "a")) end,
  whole = function(raw) return text(math.tointeger(raw)) end,
  all_headers = function(raw) return gateway.text("a", 200, raw) end,
  all_problem = function(raw) return { status = 400, problem = raw } end,
  all_fetch_headers = function(raw)
    return text(app:fetch { path = "/", headers = raw })
  end,
}

gateway.get("/use/{name}", {
  authorize = id.anyone,
  validate = { path = { name = gateway.string(1, 20) },
    query = gateway.unchecked },
  handle = function(request, identity)
    local raw, other = request.raw.query.x, request.raw.query.y
    return USES[request.path.name](raw, other, identity)
  end,
})

gateway.get("/any", {
  authorize = id.anyone,
  validate = { query = gateway.unchecked },
  handle = function(request)
    local _, raw = next(request.raw.query)
    return text("a" .. raw)
  end,
})

-- The reason of a refusal is text, too.
gateway.get("/reason", {
  authorize = id.anyone,
  validate = { query = gateway.unchecked },
  check = function(request)
    return false, request.raw.query.x
  end,
  handle = function() return gateway.text "a" end,
})

-- What may be done: open it.
gateway.post("/check/{kind}", {
  authorize = id.anyone,
  validate = {
    path = { kind = gateway.enum { "query", "headers", "body", "path" } },
    query = gateway.unchecked, body = gateway.bytes "1K",
  },
  handle = function(request)
    local raw = request.raw[request.path.kind]
    if request.path.kind == "query" then
      raw = raw.x
    elseif request.path.kind == "headers" then
      raw = raw["x-word"]
    end
    if raw == nil then
      return gateway.text "nothing"
    end
    local value, why = raw:check(gateway.string { maxLength = 12 })
    local list = raw:check(gateway.array(gateway.string))
    return gateway.json {
      value = value, why = why, list = list and #list or 0,
    }
  end,
})
