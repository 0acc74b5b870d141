-- Raw values cannot be used by accident.
-- `gateway test --library tests/lua/raw_test.lua`

local scan = require "gateway.scan"
local t = require "gateway.test"

t.policy "tests/lua/policies/raw.lua"

local client = t.identity { cn = "client" }
local SECRET <const> = "Sesame-Open-7"

-- Uses that stop at an error of Lua's own, which cannot name the mend.
local PLAIN <const> = {
  throw = "the error is a userdata",
  band = "attempt to perform bitwise operation",
  number = "unchecked input, to be opened with :check",
  find = "unchecked input, to be opened with :check",
  find_in = "unchecked input, to be opened with :check",
  gsub = "unchecked input",
  join = "invalid value",
  sleep = "unchecked input, to be opened with :check",
}

for _, name in ipairs {
  "concat", "concat_left", "tostring", "format", "quote", "equal", "less",
  "at_most", "length", "index", "index_number", "write", "call", "add",
  "negate", "band", "upper", "find", "find_in", "gsub", "join", "number",
  "pairs", "ipairs", "iterate", "print", "log", "log_alone", "throw", "body",
  "json", "encode", "decode", "problem", "status", "header", "headers",
  "answer", "forward", "forward_header", "fetch", "fetch_path", "fetch_query",
  "fetch_header", "fetch_body", "argument", "stream", "stdin", "has", "sleep",
  "schema", "convert", "same", "whole", "all_headers", "all_problem",
  "all_fetch_headers",
} do
  t.case("a raw value cannot be used: " .. name, function()
    local r = t.request(client, "GET",
      ("/use/%s?x=%s&y=%s"):format(name, SECRET, SECRET))
    t.status(r, 500)
    t.not_ran(r)
    t.not_forwarded(r)
    local expected = PLAIN[name] or "request.raw.query.x is unchecked input"
    t.failed(r, expected)
    t.failed(r, "tests/lua/policies/raw.lua:")
    t.equal((r.reason .. r.body):find(SECRET, 1, true), nil)
  end)
end

t.case("a raw value is no reason", function()
  local r = t.request(client, "GET", "/reason?x=" .. SECRET)
  t.failed(r, "tests/lua/policies/raw.lua:")
  t.failed(r, "request.raw.query.x is unchecked input")
end)

t.case("a name that a client chose is shown only where it is plain", function()
  local policy = "tests/lua/policies/raw.lua:"
  for target, shown in pairs {
    ["/any?a%0d"] = "", ["/any?x-y=1"] = [[.query["x-y"] is]],
    ["/any?a%22b=1"] = ".query[…] is", ["/any?%c3%a9=1"] = ".query[…] is",
    ["/any?" .. ("a"):rep(41)] = ".query[…] is",
  } do
    local r = t.request(client, "GET", target)
    if shown == "" then
      t.refused(r, "query")
    else
      t.failed(r, policy)
      t.failed(r, shown)
    end
  end
end)


local function check(kind, options)
  options.body = options.body or "b"
  local r = t.request(client, "POST", "/check/" .. kind, options)
  t.allowed(r)
  return r.body
end

local function check_query(query)
  return check("query" .. query, {})
end

t.case(":check(schema) opens a raw value", function()
  t.equal(check_query("?x=abc"), '{"list":1,"value":"abc"}')
  t.equal(check("headers", { headers = { ["X-Word"] = "abc" } }),
    '{"list":1,"value":"abc"}')
  t.equal(check("body", { body = "abc" }), '{"list":1,"value":"abc"}')
  t.equal(check("path", {}), '{"list":1,"value":"/check/path"}')
  t.equal(check_query("?y=abc"), "nothing")
  t.equal(check_query("?x=" .. ("a"):rep(13)),
    '{"list":1,"why":"must have at most 12 characters"}')
end)

t.case("several raw values are never taken for the first of them", function()
  t.equal(check_query("?x=a&x=b"),
    '{"list":2,"why":"is given more than once"}')
  t.equal(check("headers", { headers = { ["X-Word"] = { "a", "b" } } }),
    '{"list":2,"why":"is given more than once"}')
end)


-- What the text of a policy says of its raw values, or "".
local function scanned(source)
  local ok, message = pcall(scan.check_source, "p.lua", source)
  return ok and "" or message
end

t.case("what Lua asks nobody about, the policy's text is searched for",
  function()
    for _, source in ipairs {
      'return request.raw.query.x == "a"',
      'return request.raw.headers["x-y"] ~= "a"',
      'return r.raw.body=="a"',
      'return "a" == request.raw.query.x',
      'return BLOCKED[request.raw.query.x]',
      'return BLOCKED[request.raw.headers["x"]] == nil',
      'local x = request.raw.query.x\nif x == nil then return end\n'
        .. 'return x ~= "a"',
      'local x = request.raw.query.x\nif not BLOCKED[x] then return true end',
      'local x = request.raw.query.x\nif y then z() end return "a" == x',
      'local q = request.raw.query\nreturn q.x == "a"',
      'local q = request.raw.headers\nreturn BLOCKED[q["x-y"]]',
      'local raw = request.raw\nif raw.query.x ~= "a" then return true end',
    } do
      t.equal(scanned(source):match("^p%.lua:%d+: a value of request%.raw"),
        "p.lua:" .. select(2, source:gsub("\n", "")) + 1
          .. ": a value of request.raw")
    end
  end)

t.case("what is right about raw values is left alone", function()
  for _, source in ipairs {
    'return request.raw.query.x == nil',
    'return nil ~= request.raw.query.x',
    'if request.raw.query.x then return true end',
    'return request.raw.query.x:check(S) == "a"',
    'return "a" == request.raw.query.x:check(S)',
    'local x = request.raw.query.x:check(S)\nreturn x == "a"',
    'local x = request.raw.query.x\nx = x and x:check(S)\nreturn x == "a"',
    'do local x = request.raw.query.x y(x) end\nreturn x == "a"',
    'local x = request.raw.query.x\nreturn t.x == "a"',
    'local q = request.raw.query\nif q.x == nil then return q end',
    'local q = request.raw.query\nreturn q.x:check(S) == "a"',
    'local x = request.raw.query.x\nlocal y = { x }\nreturn y',
    'return drawn.rawest == "a"', 'return "request.raw.x == 1"',
    '-- request.raw.x == 1',
  } do
    t.equal(scanned(source), "")
  end
end)
