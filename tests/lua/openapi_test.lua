-- Tests of gateway.openapi: what a document comes to, and each construct that
-- is refused, with its line. Run it by `gateway test --library FILE`.

local gateway = require "gateway"
local audit = require "gateway.audit_openapi"
local core = require "gateway.core"
local document = require "gateway.document"
local finding = require "gateway.finding"
local id = require "gateway.identity"
local openapi = require "gateway.openapi"
local options = require "gateway.options"
local policy = require "gateway.policy"
local t = require "gateway.test"

t.policy "scripts/gateway.lua"

local LISTEN <const> = {
  address = "127.0.0.1:0", certificate = "c", key = "k", client_ca = "a",
}


local function nothing() end


local function expect(condition, message)
  if not condition then
    error(message, 2)
  end
end


-- The routes that a document makes, as the configuration has them; or nil and
-- why not.
local function routes(name, text, given)
  local ok, result = policy.aside(function()
    gateway.listen(LISTEN)
    local full = { file = name, authorize = id.anyone, upstream = nothing }
    for key, value in pairs(given or {}) do
      full[key] = value
    end
    openapi.declare_text("p.lua:1",
      options.read("p.lua:1", "gateway.openapi", full, openapi.SPEC), name,
      text)
    return (policy.finish "p.lua")
  end)
  if not ok then
    return nil, result
  end
  return gateway.decode(result).routes
end


-- The line of "@" in a text, and the text without it.
local function marked(text)
  local before = text:match("^(.-)@") or ""
  local _, newlines = before:gsub("\n", "")
  return newlines + 1, (text:gsub("@", ""))
end


local function indent(text, by)
  return (" "):rep(by) .. text:gsub("\n", "\n" .. (" "):rep(by))
end


-- A document of one operation, POST /a/{id}.
local function operation(version, text, rest)
  return ('%s\ninfo: {title: t, version: "1"}\npaths:\n  /a/{id}:\n    post:\n'
    .. "%s\n%s"):format(version, indent(text, 6), rest or "")
end

local V20 <const>, V30 <const>, V31 <const> =
  'swagger: "2.0"', "openapi: 3.0.3", "openapi: 3.1.0"
local ID30 <const> =
  "- {name: id, in: path, required: true, schema: {type: integer}}"
local ID20 <const> = "- {name: id, in: path, required: true, type: integer}"


local function parameter(version, text, rest)
  return operation(version, ("parameters:\n%s\n- %s"):format(
    version == V20 and ID20 or ID30, text), rest)
end


-- A JSON body of this schema.
local function body(version, schema, rest)
  if version == V20 then
    return parameter(V20, "{name: b, in: body, schema: " .. schema .. "}", rest)
  end
  return operation(version, ("parameters:\n%s\nrequestBody:\n  content:\n"
    .. "    application/json:\n      schema:\n%s"):format(ID30,
    indent(schema, 8)), rest)
end


local function content(version, text)
  return operation(version, ("parameters:\n%s\nrequestBody:\n  content:\n%s")
    :format(ID30, indent(text, 4)))
end


-- A member of this schema, on a line of its own.
local function member(version, schema, rest)
  return body(version, "{type: object, properties: {\n  m: " .. schema .. "}}",
    rest)
end


-- Each row: a document with "@" in the line of the mistake, and what the
-- message is after "file:line: ".
local REFUSED <const> = {
  -- documents
  { "[@]", "is no OpenAPI document: it must be a map" },
  { "info: {}@", "which version?" },
  { "@openapi: 3.2.0\npaths: {}", "openapi: which version?" },
  { "@openapi: 3.0\npaths: {}", 'must be a text: write openapi: "3.0.3"' },
  { "@swagger: 2.0\npaths: {}", 'must be a text: write swagger: "2.0"' },
  { '@swagger: "1.2"\npaths: {}', "swagger: which version?" },
  { "openapi: 3.0.3\n@path: {}\npaths: {}",
    "path: there is no such field: did you mean 'paths'?" },
  { "openapi: 3.0.3@", "paths is missing" },
  { "openapi: 3.0.3\n@paths: []", "paths: must be a map, not a list" },
  { "openapi: 3.0.3\npaths:\n  @a: {}", "a: a path begins with '/'" },
  { "openapi: 3.0.3\npaths:\n  /a:\n    @gett: {}",
    "gett: there is no such field: did you mean 'get'?" },
  { "openapi: 3.0.3\npaths:\n  /a:\n    @$ref: other.yaml#/a",
    '$ref: "other.yaml#/a": only what is in this file is read' },
  { "openapi: 3.0.3\npaths:\n  /a:\n    @servers: [{url: /b}]",
    "servers: a path with servers of its own is not read" },
  { operation(V30, "@servers: [{url: /b}]"),
    "servers: an operation with servers of its own is not read" },
  { operation(V30, "@requestBdy: {}"),
    "requestBdy: there is no such field: did you mean 'requestBody'?" },
  { operation(V30, "@requestBody: []"), "requestBody: must be a map" },
  { operation(V20, "@requestBody: {}"), "requestBody: there is no such field" },
  { "openapi: 3.0.3\npaths:\n  /a:\n    get: {operationId: x}\n    put: {\n"
    .. "      @operationId: x}", 'operationId: "x" is that of GET /a, too' },
  { "openapi: 3.1.0\n@jsonSchemaDialect: http://x\npaths: {}",
    "jsonSchemaDialect: another dialect" },
  { "openapi: 3.0.3\npaths:\n  /a:\n    trace: {@}", "TRACE is never served" },
  { "openapi: 3.0.3\npaths:\n  /a/{b-c}/{b_c}:\n    get: {@}",
    "two parts of /a/{b-c}/{b_c} are named {b_c}" },

  -- parameters
  { operation(V30, "@description: x"),
    "no parameter describes {id} of /a/{id}" },
  { parameter(V30, "{@nam: x, in: query, schema: {type: string}}"),
    "nam: there is no such field: did you mean 'name'?" },
  { parameter(V30, "{@name: x}"), "a parameter needs name and in" },
  { parameter(V30, "{name: x, @in: querry, schema: {type: string}}"),
    'in: there is no "querry": did you mean \'query\'?' },
  { parameter(V30, "{name: x, @in: body, schema: {type: string}}"),
    'in: there is no "body"' },
  { parameter(V30, "{name: x, @in: cookie, schema: {type: string}}"),
    "in: cookies are not checked" },
  { parameter(V30, "{name: x, in: query,\n  @content: {a/b: {}}}"),
    "content: JSON within a text is not checked" },
  { parameter(V30, "{@name: x, in: query}"), "a parameter needs a schema" },
  { parameter(V30,
    "{name: x, in: query, schema: {type: string},\n  @style: deepObject}"),
    'style: "deepObject" is not checked: in the query only form is' },
  { parameter(V30, "{name: X, in: header, schema: {type: string},\n"
    .. "  @style: form}"), 'style: "form" is not checked' },
  { parameter(V30, "{name: x, in: query, explode: false, schema: {@\n"
    .. "  oneOf: [{type: array, items: {type: integer}}, {type: string}]}}"),
    "a list in one text can be nothing else beside" },
  { operation(V30, "parameters:\n- {name: id, in: path, required: true,\n"
    .. "  schema: {@type: array, items: {type: string}}}"),
    "a list in a path is not checked" },
  { parameter(V30, "{name: x, in: query, schema: {@\n  type: object,"
    .. " properties: {a: {type: string}}}}"),
    "an object in one text is not checked" },
  { parameter(V30, "{name: x, in: query, schema: {type: array, items: {@\n"
    .. "  type: array, items: {type: string}}}}"),
    "a list of lists in one text is not checked" },
  { parameter(V30, "{name: x, in: query, schema: {type: string},\n"
    .. "  @allowEmptyValue: true}"), "allowEmptyValue: lets an empty text in" },
  { parameter(V30, "{@name: y, in: path, required: true,"
    .. " schema: {type: string}}"), "name: there is no {y} in /a/{id}" },
  { parameter(V30, "{name: x, in: query, schema: {type: string}}\n"
    .. "- {@name: x, in: query, schema: {type: integer}}"),
    'name: a second query parameter "x"' },
  { parameter(V30, "{name: X-A, in: header, schema: {type: string}}\n"
    .. "- {@name: x-a, in: header, schema: {type: string}}"),
    'name: a second header parameter "x-a"' },
  { parameter(V30, "{@name: 'x y', in: header, schema: {type: string}}"),
    "name: is no name of a header" },
  { parameter(V30, "{name: x, in: query, schema: {@minimum: 1}}"),
    '"schema" has no type, so it lets any value in' },
  { parameter(V30, "{name: x, in: query,\n  @required: yes, schema: {type:"
    .. " string}}"), 'required: must be true or false, not "yes"' },
  { parameter(V30, "{@$ref: '#/components/parameters/no'}"),
    '$ref: "#/components/parameters/no" leads nowhere' },
  { parameter(V20, "{name: x, in: query, type: array, items: {type: string},\n"
    .. "  @collectionFormat: pipes}"),
    'collectionFormat: "pipes" is not checked: write csv or multi' },
  { parameter(V20, "{name: X, in: header, type: array, items: {type: string},\n"
    .. "  @collectionFormat: multi}"),
    'collectionFormat: "multi" is not checked: write csv' },
  { parameter(V20, "{name: x, in: query, type: string,\n  @schema: {type:"
    .. " string}}"), "schema: is for a body: write type beside name" },
  { parameter(V20, "{@name: x, in: query}"), "a parameter needs a type" },
  { parameter(V20, "{name: x, @in: formData, type: file}"),
    "in: forms are not checked: send JSON" },

  -- bodies
  { operation(V30, "parameters: [" .. ID30:sub(3) .. "]\n"
    .. "requestBody: {@description: x}"), "content is missing" },
  { content(V30, "application/json: {@}"), "a JSON body needs a schema" },
  { content(V30, "@'*/*': {}"), '*/*: no media type "*/*"' },
  { content(V30, "@application/json; charset=latin1: {}"),
    "of its parameters only charset=utf-8 is read" },
  { content(V30, "@multipart/form-data: {schema: {type: object}}"),
    "multipart/form-data: forms are not checked" },
  { content(V30, "@application/x-www-form-urlencoded: {}"),
    "forms are not checked" },
  { content(V30, "application/json: {schema: {type: string}}\n"
    .. "@application/xml: {schema: {type: string}}"),
    'say media = "application/json" in gateway.openapi' },
  { content(V30, "@text/plain: {schema: {type: string, maxLength: 9}}"),
    "text/plain: only JSON, and bytes (format: binary), are checked" },
  { content(V30, "@application/xml: {schema: {type: object}}"),
    "application/xml: only JSON" },
  { content(V30, "application/json: {schema: {type: string}}\n"
    .. "@application/merge-patch+json: {schema: {type: integer}}"),
    "a second body with another schema: choose one" },
  { content(V30, "application/octet-stream: {}\n@image/png: {schema: {type:"
    .. " string, format: binary, maxLength: 9}}"),
    "a second body with another schema" },
  { content(V30, "@text/plain: {}"), "text/plain: only JSON" },
  { content(V31, "@image/svg+xml: {}"), "image/svg+xml: only JSON" },
  { content(V31, "@application/yaml: {schema: {type: string,"
    .. " contentMediaType: application/yaml}}"), "application/yaml: only" },
  { operation(V20, "parameters:\n" .. ID20 .. "\n"
    .. "- {name: a, in: body, schema: {type: string}}\n"
    .. "- {name: b, @in: body, schema: {type: integer}}"),
    "in: a second body" },
  { member(V30, "{oneOf: [{type: string},\n  {type: integer,"
    .. " @readOnly: true}]}"), "readOnly: is not read in one of several" },
  { content(V30, "application/json:\n  @schem: {}"),
    "schem: there is no such field: did you mean 'schema'?" },

  -- schemas: what lets anything in
  { member(V30, "{@}"), '"m" has no type, so it lets any value in' },
  { member(V30, "{@properties: {a: {type: string}}}"), "write type: object" },
  { member(V30, "{@items: {type: string}}"), "write type: array" },
  { member(V30, "{@type: object}"),
    "type: an object of which nothing is said lets any member in" },
  { member(V30, "{@type: array}"), "type: an array without items" },
  { member(V30, "{type: array,\n  items: {@}}"), '"items" has no type' },
  { member(V30, "{type: object,\n  @additionalProperties: true}"),
    "additionalProperties: lets any member in" },
  { member(V30, "{type: object,\n  @additionalProperties: {}}"),
    "additionalProperties: lets any member in" },
  { member(V30, "{type: object,\n  additionalProperties: {@minLength: 1}}"),
    '"additionalProperties" has no type' },
  { member(V30, "{@allOf: [{minLength: 1}]}"), '"m" has no type' },
  { member(V30, "{@anyOf: [{type: string}, {minLength: 1}]}"),
    '"m" has no type' },
  { member(V30, "{@not: {type: string}}"), '"m" has no type' },
  { member(V30, "{$ref: '#/components/schemas/A'}",
    "components: {schemas: {\n  A: {@minLength: 1}}}"), '"m" has no type' },
  { member(V30, "{$ref: '#/components/schemas/A'}",
    "components: {schemas: {\n  A: {@type: object}}}"),
    "type: an object of which nothing is said" },
  { member(V31, "true@"), "m: lets any value in" },
  { member(V31, "{type: object,\n  @unevaluatedProperties: true}"),
    "unevaluatedProperties: lets any member in" },
  { member(V31, "{@type: [object, string]}"), "type: an object of which" },
  { member(V30, "{@allOf: [{type: array}]}"), "an array without items" },
  { member(V30, "{@type: array, allOf: [{minItems: 1}]}"),
    "type: an array without items" },
  { member(V30, "{@oneOf: [{type: string}, {type: array}]}"),
    "an array without items" },
  { member(V31, "{@$ref: '#/components/schemas/A', description: d}",
    "components: {schemas: {A: {type: array}}}"), "an array without items" },
  { member(V30, "{@$ref: '#/components/schemas/A', x-d: d}",
    "components: {schemas: {A: {type: array}}}"), "an array without items" },
  { member(V31, "{@type: array, prefixItems: [{type: string}]}"),
    "type: an array with prefixItems alone lets any further item in" },
  { member(V31, "{@type: array, prefixItems: [{type: string}], maxItems: 2}"),
    "type: an array with prefixItems alone lets any further item in" },

  -- schemas: words
  { member(V30, "{type: string,\n  @maxLenght: 9}"),
    "maxLenght: there is no such keyword: did you mean 'maxLength'?" },
  { member(V30, "{@type: [string]}"), "type: a list of types is of 3.1" },
  { member(V30, "{@type: 'null'}"), "type: there is no type null before 3.1" },
  { member(V30, "{@type: text}"), "type: there is no type \"text\"" },
  { member(V30, "{@type: integr}"), "did you mean 'integer'?" },
  { member(V20, "{@type: file}"), "type: file: no JSON holds a file" },
  { member(V30, "{type: string,\n  @const: a}"),
    "const: is of 3.1: write enum with one value" },
  { member(V20, "{\n  @oneOf: [{type: string}], type: string}"),
    "oneOf: is not in Swagger 2.0" },
  { member(V20, "{type: string,\n  @nullable: true}"), "nullable: is of 3.0" },
  { member(V31, "{type: string,\n  @nullable: true}"), "nullable: is of 3.0" },
  { member(V30, "{type: string,\n  @nullable: 'yes'}"),
    "nullable: must be true or false" },
  { member(V30, "{enum: [a],\n  @nullable: true}"),
    "nullable: does nothing without a type beside it" },
  { member(V30, "{type: integer,\n  @exclusiveMinimum: 1}"),
    "exclusiveMinimum: must be true or false in 3.0, beside minimum" },
  { member(V30, "{type: integer,\n  @exclusiveMinimum: true}"),
    "exclusiveMinimum: needs minimum beside it" },
  { member(V31, "{type: integer,\n  @exclusiveMinimum: true}"),
    "exclusiveMinimum: must be a number" },
  { member(V31, "{type: string,\n  @$dynamicRef: '#a'}"), "$dynamicRef:" },
  { member(V31, "{type: string,\n  @$id: 'http://a/b'}"), "$id: is not read" },
  { member(V31, "{type: string,\n  @contentSchema: {}}"), "contentSchema:" },
  { member(V31, "{type: string,\n  @contentEncoding: quoted-printable}"),
    "contentEncoding: only base64" },
  { member(V30, "{type: string,\n  @pattern: 'a('}"), "pattern: a(" },
  { member(V30, "{type: string,\n  @maxLength: -1}"),
    "maxLength: must be a whole number" },
  { member(V30, "{type: string,\n  @enum: []}"), "enum: must be a list of" },
  { member(V30, "{type: object, properties: {a: {type: string}},\n"
    .. "  @required: true}"), "required: must be a list of names" },
  { member(V30, "{\n  @allOf: [], type: string}"), "allOf: the list is empty" },
  { member(V30, "{\n  @allOf: {}, type: string}"),
    "allOf: must be a list of schemas" },
  { member(V30, "{type: array,\n  @items: [{type: string}]}"),
    "items: must be a schema, which is a map" },
  { member(V30, "{$ref: '#/components/schemas/A',\n  @maxLength: 3}",
    "components: {schemas: {A: {type: string}}}"),
    "maxLength: is ignored beside $ref: write it where $ref leads" },
  { member(V30, "{@$ref: 'a.yaml'}"), '$ref: "a.yaml": only what is in this' },
  { member(V30, "{@$ref: '#/components/schemas/B'}"), "leads nowhere" },

  -- schemas: what would do nothing
  { member(V30, "{type: integer,\n  @pattern: '^1$'}"),
    "pattern: is about strings, so it does nothing beside this type" },
  { member(V30, "{type: integer,\n  @maxLength: 3}"), "is about strings" },
  { member(V30, "{type: string,\n  @maximum: 3}"), "is about numbers" },
  { member(V30, "{type: string,\n  @maxItems: 3}"), "is about arrays" },
  { member(V30, "{type: string,\n  @required: [a]}"), "is about objects" },
  { member(V30, "{type: string,\n  @format: int64}"),
    'format: "int64" is a format of numbers: write a pattern' },
  { member(V30, "{type: integer,\n  @format: date}"),
    'format: "date" is a format of strings: write type: string' },
  { member(V30, "{type: string,\n  @format: phone}"),
    'format: "phone" is not known: say it with a pattern' },
  { member(V30, "{type: string,\n  @format: binary}"),
    "format: binary: no JSON holds bytes" },

  -- discriminators
  { member(V30, "{type: object, properties: {k: {type: string}},\n"
    .. "  @discriminator: {propertyName: k}}"),
    "discriminator: is only read beside oneOf or anyOf" },
  { member(V20, "{type: object, properties: {k: {type: string}},\n"
    .. "  @discriminator: k}"), "discriminator: must be a map" },
  { member(V30, "{oneOf: [\n  @{type: object, properties: {k: {type:"
    .. " string}}}],\n  discriminator: {propertyName: k}}"),
    "oneOf: item 1 must be a $ref, for its name, beside a discriminator" },
  { member(V30, "{oneOf: [{$ref: '#/components/schemas/A'}],\n"
    .. "  @discriminator: {propertyName: k, mapping: {b: B}}}", "components:"
    .. " {schemas: {A: {type: object, properties: {k: {type: string}}}}}"),
    "discriminator: its mapping names #/components/schemas/B" },
}

for i, row in ipairs(REFUSED) do
  t.case(("refused %d: %s"):format(i, row[2]), function()
    local line, text = marked(row[1])
    local made, why = routes("api.yaml", text)
    expect(not made, "it loads:\n" .. text)
    local begin = ("api.yaml:%d: "):format(line)
    expect(why:sub(1, #begin) == begin and why:find(row[2], 1, true),
      ("%s\n  wanted %s%s\n  got    %s"):format(text, begin, row[2], why))
  end)
end


-- ---- what is let in --------------------------------------------------------

-- The one body schema of a document.
local function schema_of(text, given)
  local made, why = routes("api.yaml", text, given)
  expect(made, why)
  return made[1].body.schema
end


local function same(got, want)
  t.equal(gateway.encode(got), gateway.encode(want))
end


t.case("nullable, exclusive limits, ranges, own formats", function()
  same(schema_of(body(V30, [[
{type: object, required: [a], properties: {
  a: {type: string, nullable: true, maxLength: 3},
  b: {type: integer, minimum: 1, exclusiveMinimum: true,
      maximum: 9, exclusiveMaximum: false},
  c: {type: integer, format: uint8, minimum: -5, maximum: 7},
  d: {type: string, format: phone}, e: {type: string, format: password},
  f: {type: number, format: double}, g: {type: integer, format: int64}}}]]),
    { formats = { phone = "^[+][0-9]{5}$" } }), {
    type = "object", required = gateway.list { "a" }, properties = {
      a = { type = gateway.list { "string", "null" }, maxLength = 3 },
      b = { type = "integer", exclusiveMinimum = 1, maximum = 9 },
      c = { type = "integer", minimum = 0, maximum = 7 },
      d = { type = "string",
            allOf = gateway.list { { pattern = "^[+][0-9]{5}$" } } },
      e = { type = "string" }, f = { type = "number" },
      g = { type = "integer", format = "int64" },
    },
  })
end)

t.case("references become definitions, once, and may be circles", function()
  same(schema_of(body(V30, "{$ref: '#/components/schemas/A/B'}", [[
components:
  schemas:
    A/B: {type: string}
    A:
      B: {type: object, properties: {
        next: {$ref: "#/components/schemas/A/B"},
        more: {$ref: "#/components/schemas/A~1B"},
        same: {$ref: "#/components/schemas/A~1B"}}}
]])), {
    ["$ref"] = "#/$defs/B",
    ["$defs"] = {
      B = { type = "object", properties = {
        next = { ["$ref"] = "#/$defs/B" }, more = { ["$ref"] = "#/$defs/A_B" },
        same = { ["$ref"] = "#/$defs/A_B" },
      } },
      A_B = { type = "string" },
    },
  })
end)

t.case("a reference that leads to itself is refused", function()
  local _, why = routes("api.yaml", body(V30,
    "{$ref: '#/components/schemas/A'}", "components:\n  schemas:\n"
    .. "    A: {$ref: '#/components/schemas/B'}\n"
    .. "    B: {$ref: '#/components/schemas/A'}"))
  expect(why and why:find("^api%.yaml:%d+: "), tostring(why))
end)

t.case("what is read only cannot be sent", function()
  same(schema_of(body(V30, "{type: object, required: [id, a], properties: {"
    .. " id: {$ref: '#/components/schemas/Id'}, a: {type: string}}}",
    "components: {schemas: {Id: {type: string, readOnly: true}}}")), {
    type = "object", required = gateway.list { "a" },
    properties = { id = false, a = { type = "string" } },
  })
end)

t.case("what is read only by another schema cannot be sent either", function()
  same(schema_of(body(V31, "{type: object, properties: {"
    .. " a: {allOf: [{$ref: '#/components/schemas/Id'}]},"
    .. " b: {type: string, allOf: [{readOnly: true}]}},"
    .. " patternProperties: {^c: {type: string, readOnly: true}},"
    .. " additionalProperties: {$ref: '#/components/schemas/Id'}}",
    "components: {schemas: {Id: {type: string, readOnly: true}}}")), {
    type = "object", properties = { a = false, b = false },
    patternProperties = { ["^c"] = false }, additionalProperties = false,
  })
end)

t.case("lists whose items are all said, by whatever way", function()
  for _, text in ipairs {
    "{type: array, prefixItems: [{type: string}], maxItems: 1}",
    "{type: array, prefixItems: [{type: string}], items: false}",
    "{allOf: [{type: array}, {items: {type: string}}]}",
    "{anyOf: [{type: string}, {type: array, items: {type: string}}]}",
    "{type: array, enum: [[1]]}",
  } do
    expect(routes("api.yaml", member(V31, text)))
  end
end)

t.case("formats of integers let no fraction in, and nothing beyond", function()
  same(schema_of(body(V30, "{type: number, format: uint16}")), {
    type = "number", minimum = 0, maximum = 65535,
    allOf = gateway.list { { multipleOf = 1 } } })
  same(schema_of(body(V30, "{type: integer, format: uint64}")), {
    type = "integer", minimum = 0,
    allOf = gateway.list { { multipleOf = 1, exclusiveMaximum = 2.0 ^ 64 } } })
end)

t.case("media types of equal schemas are one body", function()
  local made, why = routes("api.yaml", content(V30,
    "application/json: {schema: {type: object, properties: {a: &a {type:"
    .. " string}}}}\ntext/json: {schema: {properties: {a: *a},"
    .. " type: object}}"))
  expect(made, why)
  same(made[1].body.types, gateway.list { "application/json", "text/json" })
end)

t.case("open = true lets members in where the document says so", function()
  local text = body(V30, "{type: object, additionalProperties: true}")
  same(schema_of(text, { open = true }),
    { type = "object", additionalProperties = true })
end)

t.case("media chooses between bodies", function()
  local text = content(V30, "application/json: {schema: {type: string}}\n"
    .. "application/merge-patch+json: {schema: {type: integer}}")
  local made = routes("api.yaml", text, { media = "application/json" })
  same(made[1].body.types, gateway.list { "application/json" })
  same(made[1].body.schema, { type = "string" })
  local _, why = routes("api.yaml", text, { media = "text/plain" })
  expect(why:find('none of its media types is "text/plain"', 1, true), why)
end)

t.case("a handler may say how a body is checked", function()
  local text = content(V30, "multipart/form-data: {schema: {type: object}}")
  local made, why = routes("api.yaml", text, { handlers = {
    ["POST /a/{id}"] = { body = gateway.bytes("2K", "multipart/form-data") },
  } })
  expect(made, why)
  same({ made[1].body.kind, made[1].body.max }, { "bytes", 2048 })
end)

t.case("bytes", function()
  local made = routes("api.yaml", content(V30, "application/octet-stream:"
    .. " {schema: {type: string, format: binary, maxLength: 77}}"))
  same({ made[1].body.kind, made[1].body.max }, { "bytes", 77 })
  made = routes("api.yaml", content(V31, "application/octet-stream: {}"))
  same({ made[1].body.kind, made[1].body.max }, { "bytes", 1048576 })
end)

t.case("parameters of a path, and of an operation in their place", function()
  local made, why = routes("api.yaml", [[
openapi: 3.1.0
servers: [{url: "https://a.example/base/"}, {url: /base}]
paths:
  /a/{b-c}:
    parameters:
      - {name: b-c, in: path, required: true, schema: {type: integer}}
      - {name: q, in: query, schema: {type: integer}}
      - {name: Accept, in: header, schema: {type: integer}}
    get:
      parameters:
        - {name: q, in: query, required: true, schema: {enum: [a, 1, null]}}
        - {name: r, in: query, schema: {anyOf: [{type: integer},
           {type: string}], default: 7}}
]])
  expect(made, why)
  local r = made[1]
  t.equal(r.path, "/base/a/{b_c}")
  t.equal(r.at, "api.yaml:9")
  same(r.path_schemas, { b_c = { type = "integer" } })
  same(r.query.q, { optional = false, schema = {
    type = gateway.list { "integer", "string" },
    enum = gateway.list { "a", 1, gateway.null },
  } })
  same({ r.query.r.default, r.query.r.optional }, { 7, true })
  t.equal(next(r.headers), nil)
end)

t.case("a header with '_' must be allowed", function()
  local text = parameter(V30,
    "{name: api_key, in: header, schema: {type: string}}")
  local _, why = routes("api.yaml", text)
  expect(why and why:find("^api%.yaml:5: .*allow = { \"underscore\" }"), why)
  local made, other = routes("api.yaml", text, { allow = { "underscore" } })
  expect(made and made[1].headers.api_key, other)
end)

t.case("lists between commas", function()
  local made, why = routes("api.yaml", parameter(V30,
    "{name: x, in: query, explode: false, schema: {type: array, items: {type:"
    .. " integer}, default: [1, 2]}}\n- {name: X-B, in: header, required: true,"
    .. " schema: {type: array, items: {type: string}}}"))
  expect(made, why)
  same({ made[1].query.x.commas, made[1].query.x.default,
    made[1].headers["x-b"].commas }, { true, gateway.list { 1, 2 }, true })
  made, why = routes("api.yaml", parameter(V20,
    "{name: x, in: query, type: array, items: {type: integer}}\n- {name: y, in:"
    .. " query, type: array, items: {type: integer}, collectionFormat: multi}"))
  expect(made, why)
  same({ made[1].query.x.commas, made[1].query.y.commas or false },
    { true, false })
end)

t.case("a default breaks its own schema", function()
  local _, why = routes("api.yaml", parameter(V30,
    "{name: x, in: query, schema: {type: integer, maximum: 3, default: 7}}"))
  expect(why and why:find("default 7 breaks its own schema", 1, true), why)
end)

t.case("where it is served", function()
  local function path(servers, given)
    local made, why = routes("api.yaml", "openapi: 3.0.3\n" .. servers
      .. "\npaths: {/a: {get: {}}}", given)
    return made and made[1].path or why
  end
  t.equal(path(""), "/a")
  t.equal(path("servers: [{url: 'https://h.example'}]"), "/a")
  t.equal(path("servers: [{url: '//h.example/x/'}]"), "/x/a")
  t.equal(path("servers: [{url: '{scheme}://{host}:{port}/x'}]"), "/x/a")
  t.equal(path("servers: [{url: 'https://h.example/x'}]", { prefix = "" }),
    "/a")
  t.equal(path("servers: [{url: 'https://h/{v}'}]", { prefix = "/v1" }),
    "/v1/a")
  for _, servers in ipairs { "[{url: v1}]", "[{url: 'https://h/{v}'}]",
    "[{url: '{base}/v1'}]" } do
    local why = path("servers: " .. servers)
    expect(why:find('say prefix = "/v1"', 1, true), why)
  end
  local why = path "servers: [{url: /api/v2}, {url: /b}]"
  expect(why:find('say prefix = "/api/v2"', 1, true), why)
end)

-- ---- broken at random ------------------------------------------------------

-- Numbers that are the same each time.
local function generator(seed)
  return function(n)
    seed = (seed * 1103515245 + 12345) % 2147483648
    return seed // 65536 % n + 1
  end
end


-- All places of a document: { table, key }.
local function places(value, list)
  for _, key in ipairs(options.sorted_keys(value)) do
    list[#list + 1] = { value, key }
    if type(value[key]) == "table" then
      places(value[key], list)
    end
  end
  return list
end

local ODD <const> = {
  gateway.null, true, false, 0, -1, 2.5, "", "x", "#/components",
  gateway.list {}, gateway.list { gateway.null }, gateway.list { "a", 1 },
  { a = 1 },
  { ["$ref"] = "#/components/schemas/Line" }, { ["$ref"] = "#/paths" },
  { ["$ref"] = 7 }, { type = "object" }, { ["$ref"] = "#" },
}


-- Puts something else into one place, or takes it away.
local function mutate(root, random)
  local list = places(root, {})
  local place = list[random(#list)]
  local odd = random(#ODD + 2)
  if odd == #ODD + 1 and not document.is_list(place[1]) then
    place[1][place[2]] = nil
  elseif odd > #ODD then
    place[1][place[2]] = list[random(#list)][1]
  else
    place[1][place[2]] = ODD[odd]
  end
end

t.case("whatever is wrong with a document, its line is told", function()
  local random = generator(7)
  for _, name in ipairs { "orders-3.0.yaml", "devices-3.1.yaml",
    "pets-2.0.json" } do
    local text = core.read_file("tests/openapi/" .. name)
    for _ = 1, 150 do
      local root = document.read(name, text).value
      mutate(root, random)
      local encoded, broken = pcall(gateway.encode, root)
      local made, why
      if encoded then
        made, why = routes("t.json", broken)
        audit.audit(finding.new(), "t.json", broken, {})
      end
      expect(not encoded or made or why:find("^t%.json:%d+: ")
        or why:find("^p%.lua:1: "), ("%s\n  %s"):format(broken, why))
    end
  end
end)

t.case("a document in JSON has its lines, too", function()
  local made, why = routes("api.json", [[{
  "openapi": "3.0.3",
  "paths": {
    "/a": {
      "get": {}
    }
  }
}]])
  expect(made, why)
  t.equal(made[1].at, "api.json:5")
  local _, broken = document.read("api.json", '{\n"a": 1,\n"a": 2}')
  t.equal(broken, 'api.json:3: "a" is there twice: first in line 2')
end)
