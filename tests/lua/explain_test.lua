-- What explain, replay, whoami and routes are made of.

local t = require "gateway.test"
local core = require "gateway.core"
local decisions = require "gateway.decisions"
local reach = require "gateway.reach"
local replay = require "gateway.replay"
local story = require "gateway.story"
local who = require "gateway.who"

t.policy "scripts/gateway.lua"

local ALICE <const> = "spiffe://example.org/ns/demo/sa/alice"


-- The steps of a request, as "stage what: verdict".
local function told(identity, spec)
  local lines, result = {}, story.run(identity, spec)
  for i, step in ipairs(result.steps) do
    lines[i] = ("%s %s: %s"):format(step.stage, step.what,
      step.skipped and "-" or tostring(step.ok))
  end
  return lines, result
end


t.case("names are read back from what the log writes", function()
  t.equal(who.read_dn "CN=alice,OU=ops", { { "cn", "alice" },
    { "ou", "ops" } })
  t.equal(who.read_dn [[CN=a\,b\\c\2Bd,1.2.3=#0401]],
    { { "cn", [[a,b\c+d]] }, { "1.2.3", "#0401" } })
  t.equal(who.read_dn "CN=a,", nil)
  t.equal(who.read_dn "alice", nil)
  t.equal(who.read_dn "", nil)
end)


t.case("an identity in words", function()
  local client = who.of("cn=a\\,b,ou=x,ou=y,spiffe=" .. ALICE
    .. ",serial=0a,issuer=CN=ca,l=Bonn")
  local identity = client.identity
  t.equal(identity.subject.cn, { "a,b" })
  t.equal(identity.subject.ou, { "x", "y" })
  t.equal(identity.subject.l, { "Bonn" })
  t.equal(identity.spiffe, ALICE)
  t.equal(identity.serial, "0a")
  t.equal(identity.issuer, "CN=ca")
  t.equal(identity.subject.dn, [[CN=a\,b,OU=y,OU=x,L=Bonn]])
  local nobody, message = who.of "cnn=a"
  t.equal(nobody, nil)
  t.equal(message, "identity: unknown field 'cnn': did you mean 'cn'?")
end)


t.case("subject and name go opposite ways, wherever a client comes from",
  function()
    local name = "CN=a,OU=y,OU=x,O=Ex"
    local certificate = t.identity { cn = "a", ou = { "x", "y" }, o = "Ex" }
    local whole = who.whole { dn = name, serial = "0a" }
    local logged, _, held = who.logged { identity = name, serial = "0a" }
    local words = who.of("cn=a,ou=x,ou=y,o=Ex,c=DE").identity
    for _, one in ipairs { certificate, whole, logged, held, words } do
      t.equal(one.subject.ou, { "x", "y" })
      t.equal(one.subject.dn:sub(1, #name), name)
    end
    t.equal(words.subject.dn, name .. ",C=DE")
    t.equal(who.of([[cn=#a ,l=x]]).identity.subject.dn, [[CN=\#a\ ,L=x]])
  end)


t.case("what the log does not say of a client is asked for in vain", function()
  local identity, asked, held = who.logged { identity = ALICE, serial = "0a" }
  t.equal(held.spiffe, ALICE)
  t.equal(held.san.uri, { ALICE })
  t.equal(asked, {})
  t.equal(held.subject.ou, {})
  t.equal(held.fingerprint, nil)
  t.equal(held:has("dns", "x"), false)
  t.equal(held:has("uri", ALICE), true)
  t.equal(asked, { "subject.ou", "fingerprint", "san.dns" })
  local r = core.test_request(identity, { method = "GET", stub = {},
    headers = {}, target = "/v1/logs/a.log", ask = true })
  t.equal(r.stage, "authorize")
  local _, unasked, named = who.logged { identity = "CN=bob", serial = "0b" }
  t.equal(named.spiffe, nil)
  t.equal(named.subject.ou, {})
  t.equal(unasked, {})
  local _, more, bare = who.logged { identity = "a.example", serial = "0c" }
  t.equal(bare.subject.dn, "")
  t.equal(bare.subject.cn, {})
  t.equal(more, {})
  t.equal(bare.san.dns, {})
  t.equal(more, { "san.dns" })
end)


t.case("the steps of a request that is allowed", function()
  local alice = t.identity { cn = "alice", ou = "ops", uri = ALICE }
  local lines, result = told(alice, { method = "GET", headers = {},
    target = "/v1/logs/app.log?lines=3" })
  t.equal(lines, {
    "route GET /v1/logs/{name}: true",
    ('authorize all(spiffe "%s", ou "ops"): true'):format(ALICE),
    "path name: true", "query lines: true",
    "handle function(request, identity): true",
  })
  t.equal(result.steps[5].runs[1].argv,
    { "/usr/bin/tail", "-n", "3", "app.log" })
  t.equal(result.steps[2].parts[2].values, { "ops" })
  t.equal(result.allowed, true)
end)


t.case("what comes after a refusal is not reached", function()
  local ops = t.identity { cn = "x", ou = "ops" }
  t.equal(told(ops, { method = "POST", target = "/v1/setpoint",
    headers = { ["content-type"] = "application/json" },
    body = '{"room":"bath","celsius":99}' }), {
    "route POST /v1/setpoint: true", 'authorize ou "ops": true',
    "body json: false", "check function(request, identity): -",
  })
  t.equal(told(ops, { method = "GET", headers = {},
    target = "/v1/logs/A?x=1" }), {
    "route GET /v1/logs/{name}: true",
    ('authorize all(spiffe "%s", ou "ops"): false'):format(ALICE),
    "path name: -", "query lines: -",
  })
end)


t.case("an input that nobody declared", function()
  local alice = t.identity { cn = "alice", ou = "ops", uri = ALICE }
  t.equal(told(alice, { method = "GET", headers = {},
    target = "/v1/logs/app.log?lines=3&colour=red" }), {
    "route GET /v1/logs/{name}: true",
    ('authorize all(spiffe "%s", ou "ops"): true'):format(ALICE),
    "path name: true", "query lines: true", "query colour: false",
  })
end)


-- The first of the nearest routes: what, and why not.
local function nearest(method, target)
  local one = story.nearest({ method = method, target = target })[1]
  return one and one.what, one and one.reason
end


t.case("the nearest route, and what differs first", function()
  t.equal({ nearest("GET", "/v1/log/app.log") },
    { "GET /v1/logs/{name}", 'segment 2 is "log", not "logs"' })
  t.equal({ nearest("PUT", "/v1/setpoint") },
    { "POST /v1/setpoint", "the method is PUT, not POST" })
  t.equal({ nearest("GET", "/whoami/") },
    { "GET /whoami", "the path has 2 segments, not 1" })
  t.equal({ nearest("GET", "/files") },
    { "GET /files/{path...}", "the path ends before {path...}" })
  t.equal({ nearest("GET", "/a/b/c/d/e/f/g/h/i") },
    { "GET /files/{path...}", 'segment 1 is "a", not "files"' })
end)


t.case("what a handler leads to", function()
  local rows = reach.rows()
  t.equal(rows[4].what, "GET /v1/logs/{name}")
  t.equal(rows[4].commands, { "tail" })
  t.equal(rows[4].upstreams, {})
  t.equal(rows[2].upstreams, { "app" })
  t.equal(rows[1].commands, {})
end)


t.case("how verdicts differ", function()
  local allowed = { allowed = true, place = 9, status = 200 }
  local denied = { allowed = false, place = 3, status = 403 }
  local unseen = { allowed = false, place = 2, status = 404 }
  local invalid = { allowed = false, place = 7, status = 422 }
  local to_body = { allowed = false, place = 7, open = "the body" }
  local to_headers = { allowed = false, place = 6, open = "headers" }
  for _, case in ipairs {
    { allowed, allowed, "same" }, { denied, denied, "same" },
    { allowed, denied, "changed" }, { denied, allowed, "changed" },
    { denied, unseen, "changed" }, { allowed, to_body, "partly" },
    { invalid, to_body, "partly" }, { denied, to_body, "changed" },
    { to_body, denied, "changed" }, { to_body, to_headers, "partly" },
    { to_body, allowed, "partly" }, { invalid, to_headers, "partly" },
    { { unknown = "x" }, allowed, "unknown" },
    { allowed, { unknown = "x" }, "unknown" },
  } do
    t.equal(replay.compare(case[1], case[2]), case[3])
  end
end)


-- A log of these lines.
local function requests(...)
  local lines, at = { ... }, 0
  local list = {}
  for record in decisions.requests(function()
    at = at + 1
    return lines[at]
  end) do
    list[#list + 1] = ("%s %s %s"):format(record.id, tostring(record.stage),
      tostring(record.status))
  end
  return list
end


t.case("the requests of a log", function()
  local refused = '{"event":"decision","id":"a","stage":"check","status":403}'
  t.equal(requests(
    "no JSON", '{"event":"ready"}', '{"event":"access"',
    '{"event":"access","id":7}',
    'Nov 26 host gateway[1]: {"event":"access","id":"x","status":200}',
    refused, '{"event":"error","room":"hook","id":"b","stage":"authorize"}',
    '{"event":"error","room":"sup","id":"c","stage":"authorize"}',
    '{"event":"access","id":"b","status":500}',
    '{"event":"access","id":"x","status":201}'),
    { "x nil 200", "b authorize 500", "x nil 201", "a check 403" })
  local many = {}
  for i = 1, 5000 do
    many[i] = refused:gsub('"a"', ('"%d"'):format(i))
  end
  t.equal(#requests(table.unpack(many)), 5000)
  t.equal(requests(), {})
end)
