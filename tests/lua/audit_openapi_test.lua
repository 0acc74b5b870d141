-- Tests of `gateway audit --openapi`: for each rule a document with the hole,
-- and one without. `gateway test --library tests/lua/audit_openapi_test.lua`

local allow = require "gateway.audit_allow"
local audit = require "gateway.audit_openapi"
local finding = require "gateway.finding"
local t = require "gateway.test"

t.policy "scripts/gateway.lua"


local function expect(condition, message)
  if not condition then
    error(message, 2)
  end
end


-- What is found in a document: "rule line severity: what", a line each.
local function findings(text, routes)
  local found, lines = finding.new(), {}
  audit.audit(found, "api.yaml", text, routes)
  for i, one in ipairs(found) do
    lines[i] = ("%s %s %s: %s"):format(one.rule, one.at, one.severity, one.what)
  end
  return table.concat(lines, "\n")
end


local function indent(text, by)
  return (" "):rep(by) .. text:gsub("\n", "\n" .. (" "):rep(by))
end


-- A document in which all is well but what `text` says of POST /a/{id}.
local function operation(text, rest, version)
  return ('openapi: %s\ninfo: {title: t, version: "1"}\nservers: [{url:'
    .. " 'https://h/v1'}]\nsecurity: [{m: []}]\npaths:\n  /a/{id}:\n"
    .. "    post:\n      operationId: x\n      parameters:\n"
    .. "        - {name: id, in: path, required: true,"
    .. " schema: {type: string, format: uuid}}\n"
    .. "%s\n%s"):format(version or "3.0.3", indent(text, 6),
    rest or "components: {securitySchemes: {m: {type: mutualTLS}}}")
end


local function query(schema, rest)
  return operation("  - name: q\n    in: query\n    schema: " .. schema, rest)
end


local function header(schema)
  return operation("  - name: X-Q\n    in: header\n    schema: " .. schema)
end


local function member(schema, version)
  return operation("requestBody:\n  content:\n    application/json:\n"
    .. "      schema:\n        type: object\n        additionalProperties:"
    .. " false\n        properties:\n          m: " .. schema, nil, version)
end


local function content(text)
  return operation("requestBody:\n  content:\n" .. indent(text, 4))
end

local NO_RULE <const> = ""

-- Each row: a document, and the beginning of the one finding; or none.
local ROWS <const> = {
  { operation(""), NO_RULE },
  { "a: [", "openapi.broken api.yaml:2 high: did not find" },
  { "openapi: 4.0.0", "openapi.broken api.yaml:1 high: openapi: which" },
  { operation("requestBdy: {}"),
    "openapi.broken api.yaml:11 high: requestBdy: there is no such field" },
  { operation("  - {name: q, in: cookie, schema: {type: boolean}}"),
    "openapi.not-strict api.yaml:11 medium: in: cookies are not checked" },
  { query "{type: array, maxItems: 3, items: {type: boolean}}", NO_RULE },
  { operation("  - {name: q, in: query, style: pipeDelimited, schema: {type:"
    .. " array, maxItems: 3, items: {type: boolean}}}"),
    "openapi.not-strict api.yaml:11 medium: style: \"pipeDelimited\" is not" },

  -- texts
  { query "{minimum: 3}", "openapi.any-value api.yaml:13 high: query parameter"
    .. ' "q" has no type' },
  { query "{type: string, maxLength: 3}", "openapi.text-unchecked api.yaml:13"
    .. ' high: query parameter "q" takes any text' },
  { member "{type: string, maxLength: 3}", "openapi.text-unchecked"
    .. " api.yaml:18 medium: POST /a/{id}: body.m takes any text" },
  { query "{type: string, enum: [a, b]}", NO_RULE },
  { query "{enum: [a, 1]}", NO_RULE },
  { query "{type: string, format: date}", NO_RULE },
  { query "{type: string, pattern: '^[a-z]{1,9}$'}", NO_RULE },
  { query "{allOf: [{type: string}, {pattern: '^[a-z]{1,9}$'}]}", NO_RULE },
  { query "{type: string, oneOf: [{enum: [a]}, {pattern: '^b[c-e]{3}$'}]}",
    NO_RULE },
  { query "{type: string, maxLength: 9, oneOf: [{enum: [a]}, {minLength: 3}]}",
    "openapi.text-unchecked api.yaml:13 high" },
  { query "{type: string, pattern: '^[a-z]+$'}", "openapi.text-unbounded"
    .. ' api.yaml:13 medium: query parameter "q" has no maxLength' },
  { query "{type: string, pattern: '^[a-z]+$', maxLength: 9}", NO_RULE },
  { query "{type: string, format: email}", "openapi.text-unbounded" },
  { query "{type: string, format: email, maxLength: 99}", NO_RULE },
  { member("{type: string, contentEncoding: base64}", "3.1.0"),
    "openapi.text-unbounded" },
  { member("{type: string, contentEncoding: base64, maxLength: 9}", "3.1.0"),
    NO_RULE },

  -- patterns
  { query "{type: string, maxLength: 9, pattern: '^a('}",
    "openapi.pattern-broken api.yaml:13 high" },
  { query "{type: string, maxLength: 9, pattern: '^(a)\\1$'}",
    "openapi.pattern-opaque api.yaml:13 low" },
  { query "{type: string, maxLength: 9, pattern: '[a-z]'}",
    "openapi.pattern-unanchored api.yaml:13 high: query parameter \"q\":"
    .. ' "[a-z]" is looked for anywhere' },
  { member "{type: string, maxLength: 9, pattern: '^[a-z]'}",
    "openapi.pattern-unanchored api.yaml:18 medium" },
  { query "{type: string, pattern: '^[a-z.]{1,9}$'}",
    'openapi.pattern-dangerous api.yaml:13 medium: query parameter "q": \'..\''
    .. ' passes "^[a-z.]{1,9}$", as in ".."' },
  { query "{type: string, pattern: '^[a-z.]$'}", NO_RULE },
  { query "{type: string, pattern: '^[a-z-]{1,9}$'}",
    "openapi.pattern-dangerous api.yaml:13 low: query parameter \"q\": a"
    .. " leading '-' passes" },
  { query "{type: string, pattern: '^[a-z][a-z-]{1,9}$'}", NO_RULE },
  { header "{type: string, pattern: '^[^a]{1,9}$', maxLength: 1}",
    "newline passes" },
  { member "{type: string, pattern: '^[^a]$'}", "NUL passes" },
  { member "{type: string, pattern: '^[^a\\x00-\\x1f]$'}", NO_RULE },
  { query "{type: string, pattern: '^(a|a)*$', maxLength: 99}",
    "openapi.pattern-redos api.yaml:13 medium: query parameter \"q\":"
    .. ' "^(a|a)*$" takes exponential time' },
  { query "{type: string, pattern: '^([a-z]{600}[0-9]{600})*$'}",
    "openapi.pattern-opaque api.yaml:13 low: query parameter \"q\": how long"
    .. ' "^([a-z]{600}[0-9]{600})*$" takes cannot be told, for its size' },

  -- what is reachable in a branch alone
  { member("{type: object, unevaluatedProperties: false, properties: {k: {enum:"
    .. " [a]}}, if: {required: [k]}, then: {properties: {c: {type: string,"
    .. " maxLength: 9}}}}", "3.1.0"),
    "openapi.text-unchecked api.yaml:18 medium: POST /a/{id}: body.m.c takes" },
  { member("{type: object, unevaluatedProperties: false, if: {required: [k]},"
    .. " else: {properties: {c: {type: string, format: date}, d: {}}}}",
    "3.1.0"), "openapi.any-value api.yaml:18 high: POST /a/{id}: body.m.d" },
  { member("{type: object, unevaluatedProperties: false, properties: {k: {enum:"
    .. " [a]}}, dependentSchemas: {k: {properties: {c: {type: array, items:"
    .. " {type: boolean}}}}}}", "3.1.0"),
    "openapi.list-unbounded api.yaml:18 medium: POST /a/{id}: body.m.c has" },
  { member("{type: object, additionalProperties: false, properties: {k: {enum:"
    .. " [a, b]}}, if: {required: [k]}, then: {properties: {k: {type: string}}}"
    .. "}", "3.1.0"), NO_RULE },
  { member("{type: string, maxLength: 9, if: {minLength: 3}, then: {pattern:"
    .. " '^a$'}, else: {enum: [b]}}", "3.1.0"), NO_RULE },
  { member("{type: string, maxLength: 9, if: {minLength: 3}, then: {pattern:"
    .. " '^a$'}}", "3.1.0"), "openapi.text-unchecked api.yaml:18 medium" },
  { member("{type: object, maxProperties: 3, propertyNames: {maxLength: 9},"
    .. " additionalProperties: {type: boolean}}", "3.1.0"),
    "openapi.text-unchecked api.yaml:18 medium: POST /a/{id}: body.m: names of"
    .. " members takes any text" },
  { member("{type: object, maxProperties: 3, propertyNames: {pattern:"
    .. " '^[a-z]{1,9}$'}, additionalProperties: {type: boolean}}", "3.1.0"),
    NO_RULE },
  { member("{type: array, maxItems: 3, prefixItems: [{type: boolean}],"
    .. " contains: {type: string, maxLength: 9}, unevaluatedItems: false}",
    "3.1.0"),
    "openapi.text-unchecked api.yaml:18 medium: POST /a/{id}: body.m[] takes" },
  { member("{oneOf: [{oneOf: [{type: boolean}, {type: string,"
    .. " maxLength: 9}]}]}", "3.1.0"),
    "openapi.text-unchecked api.yaml:18 medium: POST /a/{id}: body" },
  { member("{type: string, maxLength: 9, oneOf: [{pattern: '^a$'}, {enum: [b]}"
    .. "], anyOf: [{minLength: 1}, {maxLength: 2}]}", "3.1.0"), NO_RULE },

  -- numbers, lists, objects
  { query "{type: integer}", "openapi.number-unbounded api.yaml:13 low: query"
    .. ' parameter "q" has no minimum and no maximum' },
  { query "{type: integer, minimum: 1}", "has no maximum" },
  { query "{type: integer, minimum: 1, maximum: 9}", NO_RULE },
  { query "{type: integer, format: int32}", NO_RULE },
  { member("{type: number, exclusiveMinimum: 1, exclusiveMaximum: 9}",
    "3.1.0"), NO_RULE },
  { query "{type: array, items: {type: boolean}}", "openapi.list-unbounded"
    .. ' api.yaml:13 medium: query parameter "q" has no maxItems' },
  { query "{type: array, maxItems: 2, items: {type: integer, minimum: 1}}",
    'openapi.number-unbounded api.yaml:13 low: query parameter "q"[] has no' },
  { member "{type: array, maxItems: 2}", "openapi.any-value api.yaml:18 high" },
  { member "{type: object, properties: {a: {type: boolean}}}",
    "openapi.object-open api.yaml:18 medium: POST /a/{id}: body.m takes members"
    .. " of any name (gateway.openapi closes it)" },
  { member("{type: object, properties: {a: {type: boolean}},\n"
    .. "            additionalProperties: true}"),
    "openapi.object-open api.yaml:19 high" },
  { member("{type: object, properties: {a: {type: boolean}},"
    .. " additionalProperties: false}"), NO_RULE },
  { member("{type: object, allOf: [{type: object, properties: {a: {type:"
    .. " boolean}}}], unevaluatedProperties: false}", "3.1.0"), NO_RULE },
  { member("{type: object, patternProperties: {'^a': {type: integer}},"
    .. " additionalProperties: false}", "3.1.0"), "body.m.^a has no minimum" },
  { member("{type: object, maxProperties: 3, additionalProperties: {type:"
    .. " boolean}}"), NO_RULE },
  { member "{type: object, additionalProperties: {type: boolean}}",
    "openapi.map-unbounded api.yaml:18 low" },
  { member("{type: object, maxProperties: 3, additionalProperties: {type:"
    .. " integer, minimum: 1}}"), "body.m.* has no maximum" },

  -- bodies
  { content "multipart/form-data: {schema: {type: object}}",
    "openapi.body-unchecked api.yaml:13 medium: POST /a/{id}: body:"
    .. " multipart/form-data: forms are not checked" },
  { content "image/png: {schema: {type: string, format: binary}}",
    "openapi.body-unbounded api.yaml:13 medium" },
  { content "image/png: {schema: {type: string, format: binary, maxLength: 9}}",
    NO_RULE },
  { content "application/json: {}",
    "openapi.not-strict api.yaml:13 medium: a JSON body needs a schema" },

  -- security
  { operation("security: []"), "openapi.no-security api.yaml:7 high: POST"
    .. " /a/{id}: anybody may call it" },
  { operation("security: [{m: []}, {}]"), "one of its ways in asks for" },
  { operation("security: [{n: []}]"), "openapi.security-unknown api.yaml:11"
    .. ' high: "n" is declared nowhere' },
  { operation("", "components: {securitySchemes: {m: {type: http, scheme:"
    .. " bearer}}}"), "openapi.security-no-mtls api.yaml:4 low" },
  { operation("", "components: {securitySchemes: {m: {type: apiKey, in: query,"
    .. " name: k}}}"), "openapi.security-weak api.yaml:12 medium: an API key" },
  { operation("", "components: {securitySchemes: {m: {type: http, scheme:"
    .. " basic}}}"), "openapi.security-weak api.yaml:12 medium: a password" },
  { (operation(""):gsub("https:", "http:")),
    "openapi.server-plain api.yaml:3 medium" },
  { (operation(""):gsub(" +operationId: x\n", "")),
    "openapi.no-operation-id api.yaml:7 info" },
}

for i, row in ipairs(ROWS) do
  t.case(("finding %d: %s"):format(i, row[2]), function()
    local got = findings(row[1])
    if row[2] == NO_RULE then
      expect(got == "", row[1] .. "\n  found " .. got)
    else
      expect(got:find(row[2], 1, true), ("%s\n  wanted %s\n  found  %s"):format(
        row[1], row[2], got))
    end
  end)
end

t.case("a schema that is referred to twice is reported once", function()
  local text = operation("requestBody:\n  content:\n    application/json:\n"
    .. "      schema:\n        type: object\n        additionalProperties:"
    .. " false\n        properties:\n"
    .. "          a: {$ref: '#/components/schemas/A'}\n"
    .. "          b: {$ref: '#/components/schemas/A'}", [[
components:
  securitySchemes: {m: {type: mutualTLS}}
  schemas:
    A: {type: integer}]])
  t.equal(findings(text), "openapi.number-unbounded api.yaml:23 low:"
    .. " POST /a/{id}: body.a has no minimum and no maximum")
end)

t.case("a comment with a reason allows a finding", function()
  local function counted(comment, before)
    local found, list = finding.new(), {}
    local text = query(("{type: integer} %s"):format(comment)):gsub(
      "    schema:", (before or "") .. "    schema:")
    audit.audit(found, "api.yaml", text)
    local allowed = allow.new(found)
    allowed:read_yaml("api.yaml", text)
    allowed:apply()
    for _, one in ipairs(found) do
      list[#list + 1] = not one.suppressed and one.rule or nil
    end
    table.sort(list)
    return table.concat(list, " ")
  end
  local number = "openapi.number-unbounded"
  local comment = "# audit: allow " .. number
  t.equal(counted(""), number)
  t.equal(counted(comment .. " because it is a counter"), "")
  t.equal(counted("", comment .. " because it is a counter\n      "), "")
  t.equal(counted(comment), "audit.allow-without-reason " .. number)
  t.equal(counted("# audit: allow openapi.any-value because x"),
    "audit.allow-unused " .. number)
  t.equal(counted("# audit: allow openapi.number-unbound because x"),
    "audit.allow-unknown " .. number)
end)

t.case("circles end", function()
  local text = query("{$ref: '#/components/schemas/A'}", [[
components:
  securitySchemes: {m: {type: mutualTLS}}
  schemas:
    A: {allOf: [{$ref: '#/components/schemas/B'}]}
    B: {oneOf: [{$ref: '#/components/schemas/A'}]}]])
  expect(findings(text):find("openapi.any-value", 1, true), findings(text))
end)


local function route(method, path)
  return { methods = { method }, path = path, at = "p.lua:9" }
end

-- Each row: the routes of a policy, and what is found of POST /a/{id}.
local POLICIES <const> = {
  { { route("POST", "/a/{x}") }, NO_RULE },
  { { route("POST", "/v1/a/{x}") }, NO_RULE },
  { { { methods = { "GET" }, path = "/x", at = "./api.yaml:7" } }, NO_RULE },
  { {}, "openapi.uncovered api.yaml:7 medium: POST /a/{id}: the policy has" },
  { { route("GET", "/a/{x}") }, "openapi.uncovered api.yaml:7" },
  { { route("GET", "/a/{x}") }, "openapi.undocumented p.lua:9 medium: api.yaml"
    .. " does not know GET /a/{x}" },
  { { route("POST", "/a/b") }, "openapi.uncovered api.yaml:7" },
  { { route("*", "/a/{x}") }, "openapi.undocumented p.lua:9 medium: api.yaml"
    .. " does not know every method of /a/{x}" },
  { { route("POST", "/{rest...}") }, "openapi.undocumented p.lua:9" },
  { { route("POST", "/a/{x}"), { methods = { "GET" }, path = "/b",
    at = "other.yaml:3" } }, NO_RULE },
  { { route("POST", "/a/{x}"), route("POST", "/b") },
    "does not know POST /b" },
}

for i, row in ipairs(POLICIES) do
  t.case(("beside a policy %d: %s"):format(i, row[2]), function()
    local got = findings(operation(""), row[1])
    expect(row[2] == NO_RULE and got == "" or row[2] ~= NO_RULE
      and got:find(row[2], 1, true), got)
  end)
end

t.case("every rule is found by one of these cases", function()
  local text = {}
  for i, row in ipairs(ROWS) do
    text[i] = findings(row[1])
  end
  for _, row in ipairs(POLICIES) do
    text[#text + 1] = findings(operation(""), row[1])
  end
  local all = table.concat(text, "\n")
  for rule in pairs(audit.RULES) do
    expect(all:find(rule .. " ", 1, true), rule)
  end
end)
