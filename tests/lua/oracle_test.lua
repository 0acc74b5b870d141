-- The second opinion on schemas agrees with the engine that serves.
-- `gateway test --library tests/lua/oracle_test.lua`

local core = require "gateway.core"
local gateway = require "gateway"
local generate = require "gateway.generate"
local oracle = require "gateway.oracle"
local schema = require "gateway.schema"
local t = require "gateway.test"
local strings = require "gateway.strings"

local ROUNDS <const> = 150


local SCHEMAS <const> = {
  gateway.string, gateway.string(2, 5), gateway.integer(1, 100),
  gateway.integer, gateway.number(-1, 1.5), gateway.number, gateway.boolean,
  gateway.enum { "a", "b", "A" }, gateway.enum { 1, 2, "1", true },
  gateway.const "v1", gateway.filename, gateway.relative_path, gateway.uuid,
  gateway.date, gateway.datetime, { type = "string", format = "ipv4" },
  { type = "string", format = "email" }, { type = "string", format = "time" },
  { type = "string", format = "hostname" }, { type = "integer",
    format = "int32" }, { type = "integer", multipleOf = 7, minimum = 3 },
  { type = "integer", exclusiveMinimum = 3, exclusiveMaximum = 9 },
  { type = { "integer", "null" } }, { type = { "string", "integer" },
    maxLength = 2, maximum = 20 },
  { type = "string", pattern = "^[a-z]{2,4}([.]log)?$" },
  { type = "string", pattern = "b" }, { type = "string", pattern = "^a|b$" },
  gateway.array(gateway.integer(0, 9), 1, 4),
  gateway.array(gateway.string(0, 3), { uniqueItems = true }),
  { type = "array", prefixItems = { { type = "string" }, { type = "boolean" } },
    items = false },
  { type = "array", contains = { type = "integer", minimum = 5 },
    minContains = 1, maxContains = 2, items = { type = "integer" } },
  gateway.object {
    room = gateway.enum { "kitchen", "bath" }, celsius = gateway.number(5, 30),
    note = gateway.optional(gateway.string(0, 4)),
    tags = gateway.optional(gateway.array(gateway.filename, 0, 3)),
  },
  gateway.object({ a = gateway.boolean }, { additionalProperties = true }),
  gateway.object({ a = gateway.boolean },
    { additionalProperties = { type = "integer" } }),
  gateway.object({ inner = gateway.object { x = gateway.integer(0, 3) } }),
  { type = "object", patternProperties = { ["^x-"] = { type = "string" } },
    propertyNames = { maxLength = 4 }, minProperties = 1 },
  { type = "object", properties = { a = true, b = true },
    dependentRequired = { a = { "b" } }, maxProperties = 1 },
  { allOf = { { properties = { a = { type = "integer" } } },
    { properties = { b = { type = "string" } }, required = { "b" } } } },
  gateway.one_of { gateway.integer(0, 10), gateway.integer(5, 20) },
  gateway.any_of { gateway.string(3, 4), gateway.integer },
  { type = "string", ["not"] = { const = "abc" } },
  { type = "object", properties = { kind = { enum = { "a", "b" } }, n = true },
    ["if"] = { properties = { kind = { const = "a" } } },
    ["then"] = { required = { "n" } } },
  { type = "object", properties = { next = { ["$ref"] = "#" },
    v = { ["$ref"] = "#/$defs/v" } },
    ["$defs"] = { v = { type = "integer" } } },
}

local function shown(value)
  return core.encode(value)
end


-- What both say of one value; raises where they differ. Counts the verdicts.
local function compare(plain, json, value, counts)
  local verdict = oracle.valid(plain, value)
  local text = shown(value)
  local engine = core.schema_test(json, text) == true
  local name = verdict == nil and "unsure" or verdict and "valid" or "invalid"
  counts[name] = counts[name] + 1
  if verdict ~= nil and verdict ~= engine then
    error(("%s: %s is %s, says the engine; %s, says the oracle"):format(json,
      text, engine and "valid" or "invalid", name))
  end
end


for i, given in ipairs(SCHEMAS) do
  local plain = schema.read("here", "a schema", given)
  local json = core.encode(plain)
  t.case("oracle and engine agree about " .. json:sub(1, 60), function()
    local counts = { valid = 0, invalid = 0, unsure = 0 }
    local random = strings.sequence(i)
    for _ = 1, ROUNDS do
      local value = generate.good(plain, random)
      compare(plain, json, value, counts)
      compare(plain, json, generate.near(plain, value, random), counts)
    end
    t.equal({ counts.valid > 10, counts.invalid > 3 }, { true, true })
    t.equal(counts.unsure < ROUNDS, true)
  end)
end


t.case("a text is the value that its schema names", function()
  local number, either = { type = "integer", minimum = 1 },
    { type = { "integer", "string" }, maxLength = 2, maximum = 5 }
  for text, verdict in pairs {
    ["1"] = true, ["0"] = false, ["01"] = false, ["+1"] = false,
    ["1.0"] = false, [""] = false, ["1e3"] = false, [" 1"] = false,
  } do
    t.equal(oracle.text(number, { text }), verdict)
  end
  t.equal(oracle.text(number, { "1", "2" }), false)
  t.equal(oracle.text(number, { "99999999999999999999" }), nil)
  t.equal(oracle.text(either, { "5" }), true)
  t.equal(oracle.text(either, { "77" }), true)
  t.equal(oracle.text(either, { "777" }), false)
  t.equal(oracle.text({ type = "boolean" }, { "true" }), true)
  t.equal(oracle.text({ type = "boolean" }, { "True" }), false)
  t.equal(oracle.text({ type = "number" }, { "-1.5e3" }), true)
  t.equal(oracle.text({ type = "number" }, { "1." }), false)
  t.equal(oracle.text({ type = "string" }, { "\xff" }), false)
  local list = { type = "array", items = { type = "integer" }, maxItems = 2 }
  t.equal(oracle.text(list, { "1", "2" }), true)
  t.equal(oracle.text(list, { "1", "x" }), false)
  t.equal(oracle.text(list, { "1", "2", "3" }), false)
end)

t.case("a member that no schema names is invalid, also further down",
  function()
    local inner = { type = "object",
      properties = { a = { type = "integer" } } }
    t.equal(oracle.valid(inner, { a = 1 }), true)
    t.equal(oracle.valid(inner, { a = 1, b = 2 }), false)
    t.equal(oracle.valid({ type = "object", properties = { inner = inner } },
      { inner = { b = 2 } }), false)
  end)

t.case("what hangs on a pattern that nobody can judge is not judged", function()
  local rest = { unevaluatedProperties = false, anyOf = {
    { properties = { a = { type = "string", pattern = "(a)\\1" } } },
    { properties = { b = { type = "string" } } },
  } }
  t.equal(oracle.valid(rest, { a = "aa" }), nil)
  t.equal(oracle.valid(rest, { b = "x" }), true)
end)

t.case("a fraction is no int64", function()
  t.equal(oracle.valid({ type = "number", format = "int64" }, 1.5), false)
  t.equal(oracle.valid({ type = "number", format = "int64" }, 7), true)
end)
