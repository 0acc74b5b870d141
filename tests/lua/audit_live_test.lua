-- Tests of what `gateway audit --live` makes of URLs and documents; that it
-- finds holes is shown by tests/e2e/87-live.py.
-- `gateway test --library tests/lua/audit_live_test.lua`

local document = require "gateway.document"
local input = require "gateway.audit_live_input"
local live = require "gateway.audit_live"
local openapi_read = require "gateway.openapi_read"
local t = require "gateway.test"

t.policy "scripts/gateway.lua"


for text, wanted in pairs {
  ["https://h"] = { "h", "443", "/", "", "https://h/" },
  ["https://h:8443/"] = { "h", "8443", "/", "", "https://h:8443/" },
  ["https://h/v1/?x=/"] = { "h", "443", "/v1/?x=/", "/v1", "https://h/v1/" },
  ["https://[::1]:1/a"] = { "::1", "1", "/a", "/a", "https://[::1]:1/a" },
  ["https://h?x"] = { "h", "443", "/?x", "", "https://h/" },
} do
  t.case("URL " .. text, function()
    local url = live.url(text)
    t.equal({ url.host, url.port, url.target, url.base, url.at }, wanted)
  end)
end

for i, text in ipairs { "http://h", "h", "https://", "https:///x",
  "https://u@h", "https://h:x", "https://h/#a", "https://h/a b",
  "https://h/a\r\nX: y", "https://[::1", "https://h:1:2" } do
  t.case("no URL " .. i, function()
    local url, why = live.url(text)
    t.equal({ url, type(why) }, { nil, "string" })
  end)
end


-- A GET operation with one query parameter of this schema, and its slot.
local function slot_of(schema, version)
  local text = ('{"openapi": "%s.0", "info": {"title": "t", "version": "1"},'
    .. ' "paths": {"/a": {"get": {"parameters": [{"name": "q", "in": "query",'
    .. ' "schema": %s}], "responses": {}}}}, "components": {"schemas": {"S":'
    .. ' {"type": "string", "minLength": 3}}}}'):format(version or "3.0",
    schema)
  local doc = assert(document.read("a.json", text))
  local read = input.read(openapi_read.read(doc), openapi_read.read(doc)
    .operations[1])
  return read.slots[1], read
end

-- { a schema, a value it is sent, one that it forbids and why; version }
for _, row in ipairs {
  { '{"type": "string"}', "a" },
  { '{"type": "string", "minLength": 3, "maxLength": 4}', "aaa", "aaaaa",
    "maxLength" },
  { '{"$ref": "#/components/schemas/S"}', "aaa" },
  { '{"allOf": [{"$ref": "#/components/schemas/S"}, {"maxLength": 5}]}', "aaa",
    "aaaaaa", "maxLength" },
  { '{"oneOf": [{"type": "integer"}, {"type": "string"}]}', "1" },
  { '{"type": "string", "pattern": "^x[0-9]$"}', nil, "x10", "pattern" },
  { '{"type": "string", "enum": ["b", "a"]}', "b", "c", "enum" },
  { '{"type": "string", "format": "uuid"}',
    "0b6d3a52-7f7e-4b2c-9b0e-3e5a3f0d9c11", "../", "format: uuid" },
  { '{"type": "string", "format": "date"}', "2024-02-29", "2024-2-29",
    "format: date" },
  { '{"type": "integer", "minimum": 4}', "4", "3", "its bounds" },
  { '{"type": "integer", "minimum": 4, "exclusiveMinimum": true}', "5", "4",
    "its bounds" },
  { '{"type": "integer", "exclusiveMaximum": 0}', "-1", "0", "its bounds",
    "3.1" },
  { '{"type": "integer", "maximum": 9}', "9", "x", "type: integer" },
  { '{"type": "integer"}', "1", "1.5", "type: integer" },
  { '{"type": "number", "minimum": 0, "maximum": 1, "exclusiveMinimum": true}',
    "0.5", "0", "its bounds" },
  { '{"type": "boolean"}', "true", "yes", "type: boolean" },
  { '{"type": ["null", "integer"]}', "1", "x", "type: integer", "3.1" },
  { '{"type": "array", "items": {"type": "integer", "minimum": 7}}', "7", "6",
    "its bounds" },
  { '{"type": "string", "default": "d"}', "d" },
  { '{"type": "string", "example": "e", "default": "d"}', "e" },
  { '{"const": "c"}', "c", "d", "const", "3.1" },
} do
  t.case(row[1], function()
    local slot = slot_of(row[1], row[5])
    t.equal(slot.value, row[2] or slot.value)
    t.equal(input.forbids(slot, slot.value), nil)
    t.equal(row[3] and input.forbids(slot, row[3]), row[4])
  end)
end


t.case("circles end", function()
  local text = [[{"openapi": "3.1.0", "info": {"title": "t", "version": "1"},
    "paths": {"/a": {"post": {"requestBody": {"content": {"application/json":
    {"schema": {"$ref": "#/components/schemas/N"}}}}, "responses": {}}}},
    "components": {"schemas": {"N": {"type": "object", "required": ["next",
    "name"], "properties": {"next": {"$ref": "#/components/schemas/N"},
    "name": {"type": "string"}}}}}}]]
  local api = openapi_read.read(assert(document.read("a.json", text)))
  local read = input.read(api, api.operations[1])
  t.equal(read.slots[1].what:sub(1, 11), "body field ")
  t.equal(read.full.next.name, "a")
end)


t.case("a request, and one slot of it changed", function()
  local text = [[{"openapi": "3.0.0", "info": {"title": "t", "version": "1"},
    "paths": {"/a/{i-d}": {"post": {"parameters": [
      {"name": "i-d", "in": "path", "required": true,
        "schema": {"type": "string"}, "example": "x%y"},
      {"name": "q", "in": "query", "schema": {"type": "integer"}},
      {"name": "X-H", "in": "header", "schema": {"type": "string"}},
      {"name": "c", "in": "cookie", "schema": {"type": "string"}}],
      "requestBody": {"content": {"application/json": {"schema": {
        "type": "object", "required": ["b"], "properties": {
          "b": {"type": "array", "items": {"type": "string"}},
          "n": {"type": "integer"}}}}}},
      "responses": {}}}}}]]
  local api = openapi_read.read(assert(document.read("a.json", text)))
  local read = input.read(api, api.operations[1])
  local full = input.build(read, "/v1")
  t.equal(full.target, "/v1/a/x%25y?q=1")
  t.equal(full.headers, { { "X-H", "a" }, { "Cookie", "c=a" },
    { "Content-Type", "application/json" } })
  t.equal(full.body, '{"b":["a"],"n":1}')
  read.all = false
  t.equal(input.build(read, "").target, "/a/x%25y")
  local changed = input.build(read, "", read.slots[1], "../b c")
  t.equal(changed.target, "/a/..%2Fb%20c")
  t.equal(changed.body, '{"b":["a"]}')
  t.equal(input.build(read, "", read.slots[1], "../%2f", true).target,
    "/a/../%2f")
  t.equal(input.build(read, "", read.slots[5], ";").body, '{"b":[";"]}')
  t.equal(read.full.b[1], "a")
end)
