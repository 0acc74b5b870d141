-- Tests of the reader of Lua source, and of following inputs through it.

local core = require "gateway.core"
local flow = require "gateway.flow"
local luasource = require "gateway.luasource"
local t = require "gateway.test"

t.policy "scripts/gateway.lua"


local function read(source)
  return luasource.read("x.lua", source)
end


-- An expression written out again, with every operation in parentheses.
local WRITE = {}

local function written(node)
  return WRITE[node.kind](node)
end


function WRITE.name(node)
  return node.name
end


function WRITE.text(node)
  return ("%q"):format(node.value)
end


function WRITE.number(node)
  return tostring(node.value)
end


function WRITE.constant(node)
  return node.value
end


function WRITE.binary(node)
  return ("(%s %s %s)"):format(written(node.left), node.op, written(node.right))
end


function WRITE.unary(node)
  return ("(%s %s)"):format(node.op, written(node.value))
end


function WRITE.index(node)
  return ("%s[%s]"):format(written(node.object), written(node.key))
end


local function all(nodes)
  local parts = {}
  for i, node in ipairs(nodes) do
    parts[i] = written(node)
  end
  return table.concat(parts, ", ")
end


function WRITE.call(node)
  return ("%s(%s)"):format(written(node.func), all(node.args))
end


function WRITE.method(node)
  return ("%s:%s(%s)"):format(written(node.object), node.name, all(node.args))
end


function WRITE.func(node)
  return ("function(%s) %d"):format(table.concat(node.params, ", "),
    #node.body)
end


function WRITE.table(node)
  local parts = {}
  for i, item in ipairs(node.items) do
    parts[i] = (item.key and "[" .. written(item.key) .. "] = " or "")
      .. written(item.value)
  end
  return "{" .. table.concat(parts, ", ") .. "}"
end

local EXPRESSIONS <const> = {
  ["1 + 2 * 3 ^ 2 ^ -1"] = "(1 + (2 * (3 ^ (2 ^ (- 1)))))",
  ["a .. b .. c"] = "(a .. (b .. c))",
  ["not a == b and c or d"] = "((((not a) == b) and c) or d)",
  ["-x ^ 2"] = "(- (x ^ 2))",
  ["a | b ~ c & d << 1"] = "(a | (b ~ (c & (d << 1))))",
  ["f{1, x = 2; [3] = 4}"] = 'f({1, ["x"] = 2, [3] = 4})',
  ['f"a":g [[b]].c'] = 'f("a"):g("b")["c"]',
  ["(a or b).c[1]"] = '(a or b)["c"][1]',
  ["#t // 2 % 3"] = "(((# t) // 2) % 3)",
  ["function(a, ...) return a end"] = "function(a, ...) 1",
  ["0x1p4 + .5e1 + 3."] = "((16.0 + 5.0) + 3.0)",
  ['"\\65\\x42\\u{43}\\z  D\\n"'] = '"ABCD\\\n"',
  ["[==[a]]b]==]"] = '"a]]b"',
}


t.case("expressions: strength, calls, strings", function()
  for source, wanted in pairs(EXPRESSIONS) do
    t.equal({ source, written(read("return " .. source)[1].values[1]) },
      { source, wanted })
  end
end)


t.case("statements: their kinds and lines", function()
  local body, comments = read([[
local a <const>, b <close> = 1, 2 -- one
function a.b:c(x) end
if a then b() elseif c then else d = 1 end
for i = 1, 2 do break end for k, v in pairs(t) do goto out end
while a do end repeat local x = 1 until x
::out:: ;;; do end
--[=[ two
]=] return a, b;]])
  local kinds = {}
  for i, node in ipairs(body) do
    kinds[i] = node.kind .. " " .. node.line
  end
  t.equal(kinds, { "locals 1", "assign 2", "choice 3", "each 4", "each 4",
    "loop 5", "loop 5", "jump 6", "block 6", "give 8" })
  t.equal(body[2].values[1].params, { "self", "x" })
  t.equal(read("function a.b(x) end")[1].values[1].params, { "x" })
  t.equal(comments, {
    { line = 1, text = " one", alone = false },
    { line = 7, text = " two\n", alone = true },
  })
end)


t.case("the scripts of this library can be read", function()
  local functions = 0
  for _, name in ipairs(core.glob("scripts/gateway/[a-p]*.lua")) do
    local body = luasource.read(name, assert(core.read_file(name)))
    luasource.walk(body, function(node)
      functions = functions + (node.kind == "func" and 1 or 0)
    end)
  end
  t.equal(functions > 300, true)
end)


t.case("what is no Lua is an error with its place", function()
  for _, source in ipairs { "local = 1", "x = ", "f(", "return 1 2", "a = [[b",
    "x = $", "if a then", ("("):rep(400) } do
    local ok, message = pcall(read, "\n" .. source)
    t.equal({ source, ok, tostring(message):find("^x.lua:%d+: ") ~= nil },
      { source, false, true })
  end
end)


-- ---- following inputs ------------------------------------------------------

local START <const> = [[
local gateway = require "gateway"
local app = gateway.upstream { "http://127.0.0.1:1" }
local tool = gateway.command { name = "tool" }
local function id(x) return x end
local function hook(request, identity)
  %s
end]]


-- Where inputs arrive: "path query.q" and the like, sorted.
local function followed(source)
  local body = luasource.read("x.lua", START:format(source))
  local one = flow.new("x.lua", body, function() end)
  local route = { inputs = {}, sinks = {}, commands = {} }
  local last = select(2, START:format(source):gsub("\n", "")) + 1
  local nodes = one:find(5, last)
  t.equal({ source, #nodes }, { source, 1 })
  one:follow(nodes[1], { "request", "identity" }, route)
  local list = {}
  for _, sink in ipairs(route.sinks) do
    for input in pairs(sink.inputs) do
      list[#list + 1] = ("%s%s %s.%s"):format(sink.glued and "glued " or "",
        sink.kind, input.where, input.name)
    end
  end
  table.sort(list)
  return table.concat(list, "; ")
end

local FLOWS <const> = {
  ["return app:to(request.query.q)"] = "path query.q",
  ['return app:to("/" .. request.query.q)'] = "glued path query.q",
  ['local q = ("/%%s"):format(request.query.q) return app:to(q)'] =
    "glued path query.q",
  ["local q = request.query local p = q.a if x then p = q.b end"
    .. " return app:to(p)"] = "path query.a; path query.b",
  ["return app:to(id(request.path.p):lower())"] = "path path.p",
  ["tool:run(request.json)"] = "slot json.body",
  ["tool:run { s = request.json.a.b }"] = "slot json.body.a.b",
  ["for _, v in ipairs(request.json.list) do tool:run { s = v } end"] =
    "slot json.body.list; slot json.body.list",
  ["local t = {} t.x = request.query.q tool:run(t)"] = "slot query.q",
  ["local t = {} t[request.query.q] = 1 app:fetch { path = '/', body = t.z }"] =
    "body query.q",
  ["gateway.fetch(app, { path = request.target, headers = { a ="
    .. " request.headers['X-A'] } })"] =
    "header headers.x-a; path target.target",
  ["local ok, p = pcall(function() return request.query.q end)"
    .. " return app:to(p)"] = "path query.q",
  ["return request.query.q == 'x' and app:to('/x') or app:to('/y')"] = "",
  ["gateway.log(request.query.q) return gateway.text(identity.spiffe)"] =
    "log query.q; response body identity.spiffe",
  ["return { status = 200, body = request.query.q }"] = "response body query.q",
  ["while true do id(1) break end return app:to(identity.spiffe)"] =
    "path identity.spiffe",
}


t.case("inputs are followed through locals, calls, tables and loops", function()
  for source, wanted in pairs(FLOWS) do
    t.equal({ source, followed(source) }, { source, wanted })
  end
end)

t.case("a string is what Lua makes of it", function()
  for text, value in pairs {
    [ [["a\\x41b"]] ] = "a\\x41b",
    [ [["\x41\065\u{41}\n\\n\"'"]] ] = "\x41\065\u{41}\n\\n\"'",
    [ "'\\\\u{41}\\z\n   x\\''" ] = "\\u{41}x'",
    [ [["\\065\65a\\\\z  b"]] ] = "\\065Aa\\\\z  b",
    [ '"a\\\nb"' ] = "a\nb", [ '""' ] = "",
  } do
    t.equal(read("return " .. text)[1].values[1].value, value)
  end
end)
