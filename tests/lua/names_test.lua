-- A name that is declared nowhere is a slip, and must not read as nil: what
-- follows from nil may let somebody in.
-- `gateway test --library tests/lua/names_test.lua`

local t = require "gateway.test"

t.policy "tests/lua/policies/names.lua"

local who = t.identity { cn = "a" }
local JSON <const> = '{"deep":{},"list":[{"n":1}],"open":{"x":1}}'


local function ask(slip)
  return t.request(who, "POST", "/q/a?slip=" .. slip, { body = JSON,
    headers = { ["content-type"] = "application/json" } })
end

local WORDS <const> = {
  path = "request.path has no 'albun': did you mean 'album'?",
  query = "request.query has no 'wrod': did you mean 'word'?",
  headers = "request.headers has no 'X-Tenent': did you mean 'x-tenant'?",
  json = "request.json has no 'txet': did you mean 'text'?",
  deep = "request.json has no 'moer': did you mean 'more'?",
  item = "request.json has no 'number': its schema knows no such member",
  request = "request has no 'qurey': did you mean 'query'?",
  identity = "identity has no 'spife': did you mean 'spiffe'?",
  run = "command:run: command touch has no slot 'wrod': did you mean 'word'?",
  stream = "command:stream: command touch has no slot 'more': there is word",
  slots = 'command:run: takes a table of slots, not "a"',
}

for slip, words in pairs(WORDS) do
  t.case("a slip raises, with its line: " .. slip, function()
    local r = ask(slip)
    t.failed(r, words)
    t.failed(r, "tests/lua/policies/names.lua:")
    t.not_ran(r)
  end)
end

t.case("what is declared and was not given is nil", function()
  local r = ask "fine"
  t.allowed(r)
  t.equal(r.body, '[true,true,true,true,true,1,true,true,' .. JSON
    .. ',{"slip":"fine"},{"album":"a"}]')
end)
