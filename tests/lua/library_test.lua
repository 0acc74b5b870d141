-- Tests of the policy library itself: what it declares, and what it says about
-- mistakes. `gateway test --library tests/lua/library_test.lua`

local gateway = require "gateway"
local id = require "gateway.identity"
local options = require "gateway.options"
local policy = require "gateway.policy"
local scan = require "gateway.scan"
local schema = require "gateway.schema"
local t = require "gateway.test"

t.policy "scripts/gateway.lua"

local LISTEN <const> = {
  address = "127.0.0.1:0", certificate = "c", key = "k", client_ca = "a",
}


local function nothing() end


-- A copy of `base` with some fields changed.
local function with(base, changes)
  local copy = {}
  for key, value in pairs(base) do
    copy[key] = value
  end
  for key, value in pairs(changes) do
    copy[key] = value
  end
  return copy
end


local function listen(changes)
  return function()
    gateway.listen(with(LISTEN, changes))
  end
end


local function route(changes, path)
  return function()
    gateway.get(path or "/x", with({
      authorize = id.anyone, handle = nothing,
    }, changes))
  end
end


local function post(changes)
  return function()
    gateway.post("/x", with({
      authorize = id.anyone, handle = nothing,
    }, changes))
  end
end


local TLS <const> = {
  address = "127.0.0.1:1", certificate = "a", key = "b", client_ca = "c",
}


local function tcp(changes, listener)
  return function()
    gateway.tcp(with({
      listen = with(TLS, listener or {}), authorize = id.anyone,
      to = "tcp://127.0.0.1:6379",
    }, changes))
  end
end


local function jobs(given)
  return function()
    gateway.jobs(given)
  end
end


local function command(changes)
  return function()
    gateway.command(with({ name = "echo", program = "/bin/echo" }, changes))
  end
end


local function json(shape)
  return post { validate = { json = shape } }
end


local function upstream(target)
  return function()
    gateway.upstream { target }
  end
end


-- The declarations a function makes, as the configuration has them.
local function declared(func)
  local ok, text = policy.aside(function()
    gateway.listen(LISTEN)
    func()
    return (policy.finish "p.lua")
  end)
  if not ok then
    error(text, 0)
  end
  return gateway.decode(text)
end


-- Each row: what a policy does, and what the error must contain.
local MISTAKES <const> = {
  -- names and types
  { function() gateway.listen { adress = "x" } end,
    "gateway.listen: unknown option 'adress': did you mean 'address'?" },
  { function() gateway.listen "127.0.0.1:1" end, "takes a table of options" },
  { listen { key = 5 },
    "option 'key' must be a file name, or a list of them, not 5" },
  { listen { explain = "yes" }, "must be true or false, not \"yes\"" },
  { listen { crl = 5 }, "a file, a folder, or a list of them" },
  { listen { crl = {} }, "a file, a folder, or a list of them" },
  { listen { crl = { "a", 5 } }, "a file, a folder, or a list of them" },
  { listen { crl_missing = "refuse" }, "one of deny, allow" },
  { listen { crl_expire = "deny" }, "did you mean 'crl_expired'?" },
  { listen { limits = { head_sise = 1 } }, "did you mean 'head_size'?" },
  { listen { limits = { head_size = "16X" } }, 'a size such as' },
  { listen { limits = { idle = -1 } }, "a number of seconds" },
  { function() gateway.listen(LISTEN) gateway.listen(LISTEN) end,
    'the name "127.0.0.1:0" is taken' },
  { function() gateway.process { workers = 0 } end, "from 1 to 256" },
  { function() gateway.process {} gateway.process {} end, "already" },
  { function() gateway.admin {} end, "option 'address' is missing" },
  { function() gateway.env "NO_SUCH_VARIABLE_HERE" end, "is not set" },
  { function() gateway.env "A B" end, "no variable name" },
  { function() gateway.gett("/x", {}) end, "did you mean 'get'?" },
  { function() gateway.limit "x" end, "comes with a later version" },

  -- routes
  { function() gateway.commas(gateway.string) end, "takes a list" },
  { route { validate = { query = { a = gateway.array(gateway.commas(
    gateway.array(gateway.string))) } } },
    "gateway.commas goes around the whole schema" },
  { function() gateway.get("/x/{a}", { authorize = id.anyone, handle = nothing,
    validate = { path = { a = gateway.commas(gateway.array(gateway.string)) } },
    }) end, "gateway.commas goes around the whole schema" },
  { route { authorize = false }, "takes conditions" },
  { function() gateway.get("/x", { handle = nothing }) end,
    "gateway.get /x: option 'authorize' is missing" },
  { function() gateway.get("/x", { authorize = id.anyone }) end,
    "option 'handle' is missing" },
  { route { authorize = true }, "write id.anyone" },
  { route { authorize = "ops" }, "takes conditions" },
  { route { authorize = id.ou }, "id.ou needs a value" },
  { route { authorize = { id.ou "a", id.ou "b" } }, "id.any(…) or id.all(…)" },
  { route { handle = "text" }, "handle must be function" },
  { route { handle = gateway.text "x" }, "handle must be function" },
  { route { check = true }, "check must be a function" },
  { route { autorize = 1 }, "did you mean 'authorize'?" },
  { route { limit = {} }, "rate limits" },
  { route { limits = { hook_cpu = "1s" } }, "a number of seconds" },
  { route({}, "x"), "the path begins with '/'" },
  { route({}, "/a//b"), "empty segments" },
  { route({}, "/a/../b"), "'.' or '..'" },
  { route({}, "/a%20b"), "written decoded" },
  { route({}, "/a{b}"), "a capture is a whole segment" },
  { route({}, "/{a...}/b"), "must be the last segment" },
  { route({}, "/{a}/{a}"), "two captures are named {a}" },
  { route({}, "/{name}"), "capture {name} has no schema" },
  { route({ validate = { path = { nam = gateway.filename } } }, "/{name}"),
    "did you mean 'name'?" },
  { route({ validate = { path = {
      name = gateway.optional(gateway.filename),
    } } }, "/{name}"), "a capture is always there" },
  { route({ validate = { path = { a = gateway.unchecked } } }, "/{a}"),
    "gateway.unchecked is for validate.query alone" },
  { route { validate = { json = true } }, "a GET request has no body" },
  { route { validate = { body = gateway.bytes "1K" } }, "has no body" },
  { route { validate = { jsn = true } }, "did you mean 'json'?" },
  { function()
    gateway.any("/x", {
      authorize = id.anyone, handle = nothing, validate = { json = true },
    })
  end, "gateway.any takes GET too" },
  { post { validate = { json = true, body = gateway.bytes() } },
    "declared twice" },
  { post { validate = { body = gateway.integer } }, "validate.json" },
  { post { validate = { body = gateway.bytes "1K" },
    limits = { body_size = "2K" } }, "limit is declared twice" },
  { route { validate = { headers = { ["x y"] = gateway.string } } },
    "no header name" },
  { route { validate = { query = { a = gateway.object {} } } },
    "cannot be of type object" },
  { route { validate = { query = { a = { minimum = 1 } } } }, "needs a type" },
  { function() gateway.route("FETCH", "/x", {}) end, "no method \"FETCH\"" },
  { function() gateway.route({ "GET", "GET" }, "/x", {}) end, "named twice" },
  { function() declared(route { listener = "public" }) end,
    'no listener is named "public"' },
  { function() policy.finish("p.lua") end, "p.lua:1: policy: no listener" },
  { function()
    declared(function() end)
    declared(function() policy.finish "p.lua" gateway.get("/late", {}) end)
  end, "belongs at the top of the policy" },

  -- tunnels
  { tcp { to = "http://127.0.0.1:1" }, "tcp://HOST:PORT" },
  { tcp { to = "tcp://127.0.0.1" }, "tcp://HOST:PORT" },
  { function() tcp { to = gateway.upstream { "http://127.0.0.1:1" } }() end,
    "one of http:// targets" },
  { tcp { authorize = true }, "write id.anyone" },
  { tcp({}, { explain = true }), "no answer to explain" },
  { tcp({}, { adress = 1 }), "did you mean 'address'?" },
  { tcp({}, { proxy_protocol = {} }), "option 'from' is missing" },
  { tcp { idel = 1 }, "did you mean 'idle'?" },
  { function()
    gateway.tcp { listen = TLS, to = "unix:/x" }
  end, "option 'authorize' is missing" },
  { function() gateway.upstream { "tcp://a:1", "http://a" } end, "mixes" },
  { function() gateway.upstream { "tcp://a:1", head_timeout = 1 } end,
    "is for http:// targets" },
  { function() gateway.upstream { "http://a", proxy_protocol = "v2" } end,
    "shared by clients" },
  { route { upgrade = 1 }, 'upgrade must be "websocket"' },
  { post { upgrade = "websocket" }, "only a GET" },
  { function()
    declared(function()
      tcp({}, { name = "redis" })()
      route { listener = "redis" }()
    end)
  end, 'no listener is named "redis"' },

  -- groups
  { function() gateway.group("v1", {}) end, 'a prefix is as "/v1"' },
  { function() gateway.group("/v1/", {}) end, 'a prefix is as "/v1"' },
  { function() gateway.group("/v1", {}).get("/x", {}) end,
    "is called with a colon" },
  { function() gateway.group("/v1", {}):get("x", {}) end, "begins with '/'" },
  { function() gateway.group("/v1", {}):gett("/x", {}) end,
    "did you mean 'get'?" },
  { function()
    gateway.group("/v1", { host = "a" }):get("/x", {
      host = "b", authorize = id.anyone, handle = nothing,
    })
  end, "the group says" },

  -- schemas
  { json { type = "objct" }, "did you mean 'object'?" },
  { json { type = "string", minlength = 1 }, "did you mean 'minLength'?" },
  { json { type = "string", nullable = true }, 'write type = { "…", "null" }' },
  { json { properties = { a = { b = 1 } } },
    "validate.json at /properties/a: unknown keyword 'b'" },
  { json { type = "string", minLength = -1 }, "a whole number from 0" },
  { json { enum = { a = 1 } }, "must be a list" },
  { json { required = "a" }, "must be a list" },
  { json { items = { { type = "string" } } }, "not a list" },
  { json { anyOf = {} }, "at least one schema" },
  { json { const = nothing }, "is no JSON value" },
  { json(gateway.optional(gateway.integer)), "gateway.optional goes around" },
  { json(gateway.bytes "1K"), "validate.body" },
  { json "string", "must be a schema" },
  { function()
    local loop = { type = "array" }
    loop.items = loop
    json(loop)()
  end, "contains itself" },
  { function() gateway.integer(5, 1) end, "no value is from 5 to 1" },
  { function() gateway.integer(1, 2, 3) end, "takes minimum, maximum" },
  { function() gateway.filename(5) end, "takes only a table" },
  { function() gateway.enum() end, "takes a list" },
  { function() gateway.array() end, "the schema of its items" },
  { function() gateway.any_of(gateway.integer, gateway.boolean) end,
    "takes a list of schemas" },
  { function() gateway.object { a = gateway.optional(gateway.integer, 1) } end,
    "no default can be filled in" },
  { function() gateway.bytes("1M", "png") end, "no media type" },
  { function() gateway.stream() end, "takes its limit" },
  { function() gateway.schema "{" end, "gateway.schema" },
  { route { validate = { query = {
      a = gateway.optional(gateway.integer(1, 5), 9),
    } } }, "the default 9 breaks its own schema" },

  -- upstreams
  { upstream "https://127.0.0.1/api", "a target has no path" },
  { upstream "https://", "no target" },
  { function()
    route { handle = gateway.upstream "unix:/run/app.sock" }()
  end, "a route needs http://, https:// or http+unix: targets" },
  { upstream "http://127.0.0.1/api", "a target has no path" },
  { upstream "127.0.0.1:80", "no target" },
  { function() gateway.upstream {} end, "names no target" },
  { function() gateway.upstream { "http://a", timeout = 1 } end,
    "unknown option 'timeout'" },
  { function() gateway.upstream({ "http://a" }):to "x" end,
    "a target begins with '/'" },
  { function() gateway.upstream({ "http://a" }).to("/x") end, "with a colon" },
  { function()
    local app = gateway.upstream { "http://127.0.0.1:1" }
    route { handle = app:to "/y/{nam}" }()
  end, "nothing is named {nam}" },
  { function()
    local app = gateway.upstream { "http://127.0.0.1:1" }
    route { handle = app:to { set = { ["X-A"] = "{identity.spife}" } } }()
  end, "did you mean 'identity.spiffe'?" },
  { function()
    gateway.upstream({ "http://127.0.0.1:1" }):to { set = { ["a b"] = "x" } }
  end, "no header name" },

  -- commands
  { command { program = "echo" }, "must be an absolute path" },
  { command { name = "a b" }, "use letters" },
  { command { args = { gateway.slot "x" } }, "slot 'x' is not in slots" },
  { command { args = { gateway.slot "lins" },
    slots = { lines = gateway.integer } }, "did you mean 'lines'?" },
  { command { slots = { x = gateway.integer } }, "slot 'x' is in no argument" },
  { command { args = { gateway.slot "x", gateway.slot "x" },
    slots = { x = gateway.integer } }, "used twice" },
  { command { args = { 5 } }, "args: number 1 is 5" },
  { command { args = { a = "x" } }, "args must be a list" },
  { command { args = { gateway.slot "x" }, slots = { x = gateway.string } },
    "needs a pattern" },
  { command { args = { gateway.slot "x" },
    slots = { x = gateway.string { pattern = "[a-z]+" } } },
    "must hold the whole value" },
  { command { args = { gateway.slot "x" },
    slots = { x = gateway.string { pattern = "^a|b$", maxLength = 9 } } },
    "must hold the whole value" },
  { command { args = { gateway.slot "x" },
    slots = { x = gateway.string { pattern = "^(?m)a$", maxLength = 9 } } },
    "must hold the whole value" },
  { command { args = { gateway.slot "x" },
    slots = { x = gateway.any_of { gateway.integer, gateway.string } } },
    "needs a pattern" },
  { command { args = { gateway.slot "x" },
    slots = { x = gateway.string { format = "uri" } } }, "needs a pattern" },
  { command { args = { gateway.slot "x" },
    slots = { x = gateway.string { pattern = "^[a-z]+$" } } },
    "needs maxLength" },
  { command { args = { gateway.slot "x" },
    slots = { x = gateway.optional(gateway.integer) } }, "is always given" },
  { command { env = { LD_PRELOAD = "/x" } }, "LD_PRELOAD" },
  { command { env = { PATH = "/bin" } }, "leave it out" },
  { command { sha256 = "abc" }, "64 hexadecimal digits" },
  { command { network = 1 }, "network" },
  { command { read = "etc" }, 'read: "etc" is not an absolute path' },
  { command { write = { "/tmp", "x" } }, 'write: "x" is not an absolute' },
  { command { memory = "lots" }, "a size such as" },
  { function()
    local app = gateway.upstream { "http://127.0.0.1:1", name = "app" }
    gateway.fetch(app, { path = "/", max = "1T" })
  end, 'max takes a size such as 512, "16K"' },
  { jobs { path = "jobs" }, "path must be a path such as /jobs" },
  { jobs { path = "/jobs/{x}" }, "path must be a path such as /jobs" },
  { jobs { paths = "/jobs" }, "did you mean 'path'?" },
  { jobs { max = 0 }, "a whole number from 1 to 4096" },
  { jobs { per_identity = 5000 }, "a whole number from 1 to 4096" },
  { jobs { keep = 0 }, "a number of seconds" },
  { jobs { output = "1G" }, "at most 256M" },
  { jobs { others = "ops" }, "others takes conditions" },
  { jobs { others = id.ou }, "id.ou needs a value" },
  { jobs { authorize = 5 }, "authorize" },
  { function() gateway.jobs {} gateway.jobs {} end, "was declared already" },
  { function() gateway.slot("x", { prefx = "a" }) end, "'prefix'?" },
  { function() gateway.file_below() end, "takes a folder" },

  -- identity
  { function() id.spiffe "https://a/b" end, "begins with spiffe://" },
  { function() id.spiffe "spiffe://*/b" end, "never a wildcard" },
  { function() id.spiffe "spiffe://a/**/b" end, "only at the end" },
  { function() id.spiffe "spiffe://a/b*" end, "a whole segment" },
  { function() id.spiffe "spiffe://a//b" end, "segment 1" },
  { function() id.spiffe "spiffe://A/b" end, "lower-case" },
  { function() id.ou("a", "b") end, 'id.any(id.ou "a"' },
  { function() id.ou(5) end, "takes a string" },
  { function() id.any() end, "at least one" },
  { function() id.any(id.ou "a", "b") end, "takes conditions" },
  { function() id.all(id.cn) end, "id.cn needs a value" },
  { function() id.oo "x" end, "did you mean 'o'?" },
  { function() id.fingerprint "abcd" end, "64 hexadecimal digits, not 4" },
  { function() id.serial "xyz" end, "hexadecimal" },
  { function() id.spki "abc" end, "sha256:" },
  { function() id.dns "*.com" end, "two labels" },
  { function() id.ip "10.0.0.0/8" end, "a range is not supported" },
  { function() id.email "alice" end, "an address" },

  -- hooks
  { function() gateway.problem(200) end, "from 400 to 599" },
  { function() gateway.response { stauts = 1 } end, "did you mean 'status'?" },
  { function() gateway.log("loud", "x") end, "no level" },
}


t.case("a mistake is an error that names file, line and mend", function()
  for i, row in ipairs(MISTAKES) do
    local ok, message = policy.aside(row[1])
    local row_name = ("row %d, %s"):format(i, row[2])
    t.equal({ row_name, ok }, { row_name, false })
    if not tostring(message):find(row[2], 1, true) then
      t.equal(message, row[2])
    end
  end
end)

t.case("an error begins with the place in the policy", function()
  local _, message = policy.aside(listen { adress = 1 })
  t.equal(tostring(message):find("^[%w/._-]*library_test%.lua:%d+: ") ~= nil,
    true)
end)


-- Each row: a line of a policy, and the mend; or false where all is well.
local LINES <const> = {
  { 'if identity.subject.ou == "ops" then', 'identity:has("ou", "ops")' },
  { "if identity.subject.cn ~= 'x' then", "identity:has(\"cn\", 'x')" },
  { 'return "ops" == identity.subject.ou', 'identity:has("ou", "ops")' },
  { "return who == i.subject.ou", 'identity:has("ou", "…")' },
  { 'x = i.san.uri == "spiffe://a"', 'identity:has("uri", "spiffe://a")' },
  { 'x = i.eku == "clientAuth"', 'identity:has("eku", "clientAuth")' },
  { 'x = i.subject.ou[1] == "ops"', false },
  { 'x = "ops" == i.subject.ou[1]', false },
  { "x = #i.subject.ou == 2", false },
  { "x = i.subject.ou == nil", false },
  { 'x = i.subject.dn == "CN=a"', false },
  { 'x = "i.subject.ou == 1"', false },
  { '-- i.subject.ou == "x"', false },
  { '--[[ i.subject.ou == "x"\n]]', false },
  { 'x = [==[ i.subject.ou == "x" ]] ]==]', false },
  { 'x = "a\\"" -- " i.subject.ou == "x"', false },
}

t.case("comparing a list of the identity with a string is found", function()
  for _, row in ipairs(LINES) do
    local ok, message = pcall(scan.check_source, "p.lua", "\n" .. row[1])
    t.equal({ row[1], ok }, { row[1], not row[2] })
    if row[2] then
      t.equal(message:find("p.lua:2: ", 1, true), 1)
      t.equal(message:find(row[2], 1, true) ~= nil, true)
    end
  end
end)


local alice = t.identity {
  cn = "alice", ou = { "ops", "dev" }, dns = "a.example.org",
  uri = "spiffe://example.org/ns/demo/sa/alice", email = "alice@example.org",
}
local plain = t.identity { cn = "bob" }


-- Each row: condition, identity, true or (part of) the reason.
local CONDITIONS <const> = {
  { id.anyone, plain, true },
  { id.ou "dev", alice, true },
  { id.ou "qa", alice, 'ou is "ops", "dev", not "qa"' },
  { id.ou "qa", plain, "the certificate has no ou" },
  { id.cn "bob", plain, true },
  { id.dns "a.example.org", alice, true },
  { id.dns "*.example.org", alice, true },
  { id.dns "*.a.example.org", alice, "san.dns is" },
  { id.email "alice@example.org", alice, true },
  { id.eku "clientAuth", alice, true },
  { id.eku "serverAuth", alice, 'eku is "clientAuth", not "serverAuth"' },
  { id.spiffe "spiffe://example.org/ns/demo/sa/alice", alice, true },
  { id.spiffe "spiffe://example.org/ns/*/sa/alice", alice, true },
  { id.spiffe "spiffe://example.org/**", alice, true },
  { id.spiffe "spiffe://example.org/ns/demo/**", alice, true },
  { id.spiffe "spiffe://example.org/ns/demo/sa/alice/**", alice,
    "has 4 segments instead of at least 5" },
  { id.spiffe "spiffe://example.org/ns/demo", alice,
    "has 4 segments instead of 2" },
  { id.spiffe "spiffe://example.org/ns/*/sa/bob", alice,
    'differs in segment 4: "alice" instead of "bob"' },
  { id.spiffe "spiffe://example.com/ns/demo/sa/alice", alice,
    'is of "spiffe://example.org"' },
  { id.spiffe "spiffe://example.org/**", plain, "no spiffe id" },
  { id.uri "spiffe://example.org/ns/*/sa/*", alice, true },
  { id.uri "urn:x", alice, "san.uri is" },
  { id.any(id.ou "qa", id.ou "dev"), alice, true },
  { id.any(id.ou "qa", id.spiffe "spiffe://example.org/ns/demo/sa/bob"), alice,
    "differs in segment 4" },
  { id.all(id.ou "ops", id.cn "alice"), alice, true },
  { id.all(id.ou "ops", id.cn "bob"), alice, 'cn is "alice", not "bob"' },
  { id.none(id.ou "qa"), alice, true },
  { id.none(id.ou "qa", id.ou "dev"), alice, 'ou "dev" holds' },
  { id.any(function(i) return i:has("ou", "dev") end), alice, true },
  { id.any(function() return false, "no luck" end), alice, "no luck" },
}

t.case("conditions hold, or say the nearest failure", function()
  for _, row in ipairs(CONDITIONS) do
    local ok, reason = row[1](row[2])
    t.equal({ tostring(row[1]), ok }, { tostring(row[1]), row[3] == true })
    if not ok and not reason:find(row[3], 1, true) then
      t.equal(reason, row[3])
    end
  end
end)

t.case("a function that returns no boolean is a bug, not a verdict", function()
  for _, combine in ipairs { id.any, id.all, id.none } do
    for _, value in ipairs { 1, "yes", false } do
      local ok = pcall(combine(function()
        return value or nil
      end), alice)
      t.equal(ok, false)
    end
  end
end)


t.case("a route becomes plain configuration", function()
  local cfg = declared(function()
    local app = gateway.upstream { "http://127.0.0.1:1", name = "app" }
    gateway.route({ "PUT", "POST" }, "/v1/{id}", {
      authorize = id.ou "ops", host = "Example.org",
      validate = {
        path = { id = gateway.uuid },
        query = { n = gateway.optional(gateway.integer(1, 9), 3) },
        headers = { ["X-Tenant"] = gateway.enum { "a", "b" } },
        body = gateway.bytes("2K", "image/PNG"),
      },
      limits = { hook_cpu = 0.5 },
      handle = app:to("/i/{id}", { remove = { "X-Debug" } }),
    })
  end)
  local r = cfg.routes[1]
  t.equal(r.at:match("library_test") ~= nil, true)
  r.at = nil
  t.equal(r, {
    methods = { "PUT", "POST" }, path = "/v1/{id}", host = "example.org",
    listener = "", authorize = { { hook = 1, text = 'ou "ops"' } },
    path_schemas = {
      id = { type = "string", format = "uuid", maxLength = 36 },
    },
    query = { n = {
      schema = { type = "integer", minimum = 1, maximum = 9 },
      optional = true, default = 3,
    } },
    query_unchecked = false, allow = {},
    headers = { ["x-tenant"] = {
      schema = { type = "string", enum = { "a", "b" } }, optional = false,
    } },
    body = { kind = "bytes", max = 2048, types = { "image/png" } },
    check = {}, respond = {}, log = {}, limits = { hook_cpu_ms = 500 },
    handle = {
      kind = "proxy", upstream = 0, target = "/i/{id}", set = {},
      remove = { "X-Debug" }, respond_set = {}, respond_remove = {},
    },
  })
end)

t.case("gateway.tcp becomes a listener and an upstream", function()
  local cfg = declared(function()
    tcp({ idle = 5, alpn = { "redis" } }, {
      name = "redis", proxy_protocol = { from = { "10.0.0.0/8" } },
    })()
    gateway.get("/ws", {
      authorize = id.anyone, upgrade = "WebSocket", handle = nothing,
    })
  end)
  local listener = cfg.listeners[#cfg.listeners]
  local hook = listener.tcp.authorize[1].hook
  t.equal(listener.proxy_from, { "10.0.0.0/8" })
  t.equal(listener.tcp, {
    authorize = { { hook = hook, text = "anyone" } }, log = {}, upstream = 0,
    idle_ms = 5000, half_ms = 60000, alpn = { "redis" },
  })
  t.equal(cfg.upstreams[1].targets, { "tcp://127.0.0.1:6379" })
  t.equal(cfg.upstreams[1].proxy_protocol, 0)
  t.equal(cfg.routes[1].upgrade, { "websocket" })
end)

t.case("a WebSocket that no Origin is asked of is warned of", function()
  local function warnings(changes)
    local cfg = declared(route(with({ upgrade = "websocket" }, changes)))
    local count = 0
    for _, warning in ipairs(cfg.warnings) do
      count = count + (warning.text:find("Origin", 1, true) and 1 or 0)
    end
    return count
  end
  t.equal(warnings {}, 1)
  t.equal(warnings { check = nothing }, 0)
  t.equal(warnings {
    validate = { headers = { Origin = gateway.enum { "https://a" } } },
  }, 0)
end)

t.case("groups add conditions and never replace them", function()
  local function first() end
  local function second() end
  local cfg = declared(function()
    local v1 = gateway.group("/v1", { authorize = id.ou "a", check = first })
    local sub = v1:group("/sub", { authorize = id.ou "b" })
    sub:post("/x", {
      authorize = id.ou "c", check = second, handle = nothing,
    })
    v1:get("", { handle = nothing })
  end)
  local texts = {}
  for i, one in ipairs(cfg.routes[1].authorize) do
    texts[i] = one.text
  end
  t.equal(texts, { 'ou "a"', 'ou "b"', 'ou "c"' })
  t.equal(cfg.routes[1].path, "/v1/sub/x")
  t.equal(#cfg.routes[1].check, 2)
  t.equal(cfg.routes[2].path, "/v1")
  t.equal(#cfg.routes[2].authorize, 1)
end)

t.case("one condition used twice is one hook", function()
  local cfg = declared(function()
    local ops = id.ou "ops"
    gateway.get("/a", { authorize = ops, handle = nothing })
    gateway.get("/b", { authorize = ops, handle = nothing })
  end)
  t.equal(cfg.routes[1].authorize, cfg.routes[2].authorize)
end)

t.case("only conditions are pure", function()
  local _, pure = policy.aside(function()
    gateway.listen(LISTEN)
    gateway.get("/a", { authorize = id.ou "x", handle = nothing })
    gateway.get("/b", { authorize = nothing, handle = nothing })
    gateway.get("/c", { authorize = id.any(nothing), handle = nothing })
    local _, _, marks = policy.finish "p.lua"
    return marks
  end)
  t.equal(pure, { [1] = true })
end)

t.case("slots come in the order of the arguments", function()
  local cfg = declared(function()
    gateway.command {
      name = "x", program = "/bin/x",
      args = { gateway.slot("b", "--b="), "-", gateway.slot("a", {
        dash = true, secret = true,
      }) },
      slots = {
        a = gateway.integer(-5, 5), b = gateway.enum { "m" },
        f = gateway.file_below("/d", { stdin = true }),
      },
    }
  end)
  local made = cfg.commands[1]
  t.equal(made.args, {
    { slot = "b", prefix = "--b=" }, { text = "-" }, { slot = "a" },
  })
  t.equal({ made.slots[1].name, made.slots[2].name, made.slots[3].name },
    { "b", "a", "f" })
  t.equal({ made.slots[2].dash, made.slots[2].secret }, { true, true })
  t.equal(made.slots[3].file, { below = "/d", stdin = true })
end)

t.case("the keyword decides what is a list", function()
  local cases = {
    [gateway.object {}] =
      '{"properties":{},"required":[],"type":"object"}',
    [{ required = {} }] = '{"required":[]}',
    [gateway.array(gateway.integer, 1)] =
      '{"items":{"type":"integer"},"minItems":1,"type":"array"}',
    [gateway.any_of { gateway.integer, gateway.boolean }] =
      '{"anyOf":[{"type":"integer"},{"type":"boolean"}],'
      .. '"type":["integer","boolean"]}',
    [gateway.string(1, 5, { title = "t" })] =
      '{"maxLength":5,"minLength":1,"title":"t","type":"string"}',
    [{ additionalProperties = false }] = '{"additionalProperties":false}',
  }
  for shape, wanted in pairs(cases) do
    t.equal(gateway.decode(schema.text(shape)), gateway.decode(wanted))
  end
end)

t.case("a far upstream with identity headers is a warning", function()
  local cfg = declared(function()
    gateway.upstream { "http://10.0.0.1:80" }
    gateway.upstream { "http://127.0.0.1:80" }
    gateway.upstream { "http://10.0.0.2", identity_headers = false }
    gateway.get("/", { authorize = id.anyone, handle = nothing })
  end)
  t.equal(#cfg.warnings, 1)
  t.equal(cfg.warnings[1].text:find("10.0.0.1:80", 1, true) ~= nil, true)
end)

t.case("bodies without a limit take the listener's", function()
  local cfg = declared(function()
    gateway.listen(with(LISTEN, { name = "big", limits = {
      body_size = "8M",
    } }))
    gateway.post("/a", {
      authorize = id.anyone, handle = nothing, validate = { json = true },
    })
    gateway.post("/b", {
      authorize = id.anyone, handle = nothing, validate = { json = true },
      limits = { body_size = "4K" },
    })
  end)
  t.equal(cfg.routes[1].body.max, 8388608)
  t.equal(cfg.routes[2].body.max, 4096)
end)

t.case("suggestions are close, or the list of what there is", function()
  local known = { address = 1, key = 1 }
  t.equal(options.suggest("adress", known), ": did you mean 'address'?")
  t.equal(options.suggest("kye", known), ": did you mean 'key'?")
  t.equal(options.suggest("zzz", known), ": there is address, key")
end)

t.case("answers are small plain tables", function()
  t.equal(gateway.text "x", {
    status = 200, type = "text/plain; charset=utf-8", body = "x",
  })
  t.equal(gateway.json({ a = 1 }, 201, { b = "c" }), {
    status = 201, type = "application/json", body = '{"a":1}',
    headers = { b = "c" },
  })
  t.equal(gateway.problem(429, "slow down"), {
    status = 429, problem = { detail = "slow down" },
  })
end)

t.case("a client of a test has all that was said of it", function()
  local both = t.identity { cn = { "a", "b" }, uid = "u", dc = { "com", "ex" } }
  t.equal(both.subject.cn, { "a", "b" })
  t.equal(both.subject.uid, { "u" })
  t.equal(both.subject.dn, "CN=b,CN=a,UID=u,DC=ex,DC=com")
  for fields, wrong in pairs {
    [{ cn = "a", not_after = "2030-01-01" }] = "unknown field 'not_after'",
    [{ cn = "a", ou = 7 }] = "ou must be a string, or a list of strings, not 7",
  } do
    local ok, message = pcall(t.identity, fields)
    t.equal(ok, false)
    t.equal(tostring(message):find(wrong, 1, true) ~= nil, true)
  end
end)
