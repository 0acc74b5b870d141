--- `gateway audit --openapi FILE`: what an OpenAPI document leaves open.
--
-- Each parameter and each field of a body is looked at as an attacker would:
-- which texts pass, how long, how many, how large; members that nobody listed;
-- operations without security. With a policy, what one knows and the other does
-- not. Schemas are judged with all that applies to the same value: what $ref
-- and allOf say there counts, and each branch of anyOf and oneOf by itself, as
-- do then and else, and what depends on a member.

local beside <const> = require "gateway.audit_openapi_policy"
local document <const> = require "gateway.document"
local finding <const> = require "gateway.finding"
local openapi <const> = require "gateway.openapi"
local openapi_read <const> = require "gateway.openapi_read"
local openapi_schema <const> = require "gateway.openapi_schema"
local options <const> = require "gateway.options"
local pattern <const> = require "gateway.pattern"
local M = {}

local MAX_DEPTH <const> = 40
local MAX_CHOICES <const> = 200  -- of branches that may hold for one value
local NOTHING <const> = {}

M.RULES = {
  ["openapi.broken"] = { "high", "the document is not valid there, so nobody"
    .. " knows what it lets in", "correct it" },
  ["openapi.not-strict"] = { "medium", "gateway.openapi cannot check this as"
    .. " the document means it, and does not load it", "say it otherwise" },
  ["openapi.any-value"] = { "high", "a value of no type: anything passes",
    "give it a type" },
  ["openapi.text-unchecked"] = { "high", "a text without pattern, enum or"
    .. " format", 'add pattern: "^[a-z0-9-]{1,64}$", an enum, or a format' },
  ["openapi.text-unbounded"] = { "medium", "a text of any length",
    "add maxLength" },
  ["openapi.pattern-broken"] = { "high", "a pattern that does not compile",
    "correct it" },
  ["openapi.pattern-opaque"] = { "low", "a pattern that cannot be judged",
    "write it without backreferences and lookarounds" },
  ["openapi.pattern-unanchored"] = { "high", "a pattern that is looked for"
    .. " anywhere in the text", "begin it with ^ and end it with $" },
  ["openapi.pattern-dangerous"] = { "medium", "a pattern that lets dangerous"
    .. " characters in", "take them out of the pattern" },
  ["openapi.pattern-redos"] = { "medium", "a pattern that takes very long for"
    .. " some texts", "avoid repetition within repetition; add maxLength" },
  ["openapi.number-unbounded"] = { "low", "a number without limits",
    "add minimum and maximum, or format: int32" },
  ["openapi.list-unbounded"] = { "medium", "a list of any length",
    "add maxItems" },
  ["openapi.object-open"] = { "medium", "an object with members of any name",
    "add additionalProperties: false (with allOf, 3.1's"
    .. " unevaluatedProperties: false)" },
  ["openapi.map-unbounded"] = { "low", "a map with any number of members",
    "add maxProperties (and, in 3.1, propertyNames)" },
  ["openapi.body-unchecked"] = { "medium", "a body that no schema checks",
    "send JSON with a schema" },
  ["openapi.body-unbounded"] = { "medium", "bytes of any number",
    "add maxLength to the body's schema" },
  ["openapi.no-security"] = { "high", "an operation that anybody may call",
    "add security; from OpenAPI 3.1 on, with a scheme of type mutualTLS" },
  ["openapi.security-unknown"] = { "high", "a security scheme that is declared"
    .. " nowhere", "declare it among the securitySchemes" },
  ["openapi.security-no-mtls"] = { "low", "an operation that wants no client"
    .. " certificate", "add a scheme of type mutualTLS, which OpenAPI has from"
    .. " 3.1 on, to its security" },
  ["openapi.security-weak"] = { "medium", "a secret that is easily lost",
    "use mutualTLS (OpenAPI 3.1), or a header over TLS" },
  ["openapi.server-plain"] = { "medium", "a server without TLS",
    "write https://" },
  ["openapi.no-operation-id"] = { "info", "an operation without operationId",
    "give it one: handlers are named by it" },
  ["openapi.uncovered"] = { "medium", "an operation for which the policy has no"
    .. " route", "declare a route, or take it out of the document" },
  ["openapi.undocumented"] = { "medium", "a route that the document does not"
    .. " know", "document it, or take it out of the policy" },
}
finding.rules(M.RULES)

-- Formats after which no pattern is missed; those with `true` have an end.
local FORMATS <const> = {
  date = true, time = true, ["date-time"] = true, duration = true, uuid = true,
  ipv4 = true, ipv6 = true, hostname = true, byte = false, email = false,
  ["idn-email"] = false, uri = false, ["uri-reference"] = false, iri = false,
  ["iri-reference"] = false, ["json-pointer"] = false, regex = true,
  ["relative-json-pointer"] = false,
}

-- Formats of numbers that have limits enough.
local BOUNDED <const> = {
  int8 = true, uint8 = true, int16 = true, uint16 = true, int32 = true,
  uint32 = true,
}

-- What may do harm, by where the text comes from.
local DANGERS <const> = {
  { "..", "'..'", path = true, query = true, header = true },
  { "/", "'/'", path = true },
  { "\\", "a backslash", path = true, query = true },
  { "\n", "a newline", path = true, query = true, header = true, body = true },
  { "\0", "NUL", path = true, query = true, header = true, body = true },
}


local Audit = {}
Audit.__index = Audit


-- "file:line: message" as place and message.
local function split(message)
  local at, rest = message:match("^(.-:%d+): (.*)$")
  return at, rest or message
end


-- What gateway.openapi would say of the same line in other words.
local SAME <const> = {
  ["openapi.any-value"] = true, ["openapi.object-open"] = true,
  ["openapi.pattern-broken"] = true, ["openapi.body-unchecked"] = true,
  ["openapi.broken"] = true, ["openapi.not-strict"] = true,
}


function Audit:add(rule, at, what, severity)
  self.found:add { rule = rule, at = at, what = what, severity = severity }
  self.places[at] = self.places[at] or SAME[rule]
end


-- Calls `func`; what it raises becomes a finding, unless it was found in that
-- line already.
function Audit:try(rule, func)
  local ok, message = pcall(func)
  if ok then
    return
  end
  local at, what = split(tostring(message))
  if not at then
    error(message, 0)
  elseif not self.places[at] then
    self:add(rule, at, what)
  end
end


-- ---- all that is said about one value --------------------------------------

-- Words of which the first one found counts.
local WORDS <const> = {
  "type", "enum", "const", "pattern", "format", "minLength", "maxLength",
  "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "maxItems",
  "items", "prefixItems", "maxProperties", "propertyNames", "contentEncoding",
  "contains", "unevaluatedItems",
}
local OPEN <const> = { "additionalProperties", "unevaluatedProperties" }


-- What may hold besides, of a schema: lists of which one each time does.
local function choices_of(source)
  local list = {}
  for _, word in ipairs { "oneOf", "anyOf" } do
    if document.is_list(source[word]) then
      list[#list + 1] = { of = source[word] }
    end
  end
  if source["if"] ~= nil then
    list[#list + 1] = { narrows = true, of = { source["then"] or NOTHING,
      source["else"] or NOTHING } }
  end
  if document.is_map(source.dependentSchemas) then
    local branches = { NOTHING }
    for _, key in ipairs(options.sorted_keys(source.dependentSchemas)) do
      branches[#branches + 1] = source.dependentSchemas[key]
    end
    list[#list + 1] = { narrows = true, of = branches }
  end
  return list
end


-- Takes what a schema says into `facts`, and what $ref and allOf lead to.
-- `narrows`: it holds for a part of what the schema around it lets in.
function Audit:gather(source, facts, depth, narrows)
  if not document.is_map(source) or depth > MAX_DEPTH or facts.seen[source] then
    return facts
  end
  facts.seen[source] = true
  for _, word in ipairs(WORDS) do
    if source[word] ~= nil and facts[word] == nil then
      facts[word], facts.owner[word] = source[word], source
    end
  end
  for _, word in ipairs(OPEN) do
    if source[word] ~= nil and facts.rest ~= false then
      facts.rest, facts.owner.rest, facts.rest_word = source[word], source, word
    end
  end
  for _, word in ipairs { "properties", "patternProperties" } do
    if document.is_map(source[word]) then
      table.insert(facts[narrows and "narrowed" or "properties"], source[word])
    end
  end
  table.move(choices_of(source), 1, MAX_CHOICES, #facts.choices + 1,
    facts.choices)
  if source["$ref"] ~= nil then
    self:gather(self.api.doc:target(source), facts, depth + 1, narrows)
  end
  for _, branch in ipairs(document.items(source.allOf)) do
    self:gather(branch, facts, depth + 1, narrows)
  end
  return facts
end


local function no_facts()
  return { owner = {}, properties = {}, narrowed = {}, seen = {},
    choices = {} }
end


local function copy_facts(facts)
  local copy = no_facts()
  for key, value in pairs(facts) do
    if copy[key] == nil then
      copy[key] = value
    end
  end
  for _, part in ipairs { "owner", "properties", "narrowed", "seen", "choices" }
  do
    for key, value in pairs(facts[part]) do
      copy[part][key] = value
    end
  end
  return copy
end


-- The types of the facts as a set, or nil.
local function types_of(facts)
  local list = facts.type
  if list == nil then
    if facts.enum == nil and facts.const == nil then
      return nil
    end
    return {}  -- its values say it all
  end
  local set = {}
  for _, name in ipairs(document.is_list(list) and list or { list }) do
    set[name] = true
  end
  return set
end


-- ---- texts -----------------------------------------------------------------

-- A field of a body is further from harm than what a URL is made of.
local function by_place(place, near, far)
  return place == "body" and far or near
end


function Audit:check_dangers(p, facts, name, place, at)
  for _, danger in ipairs(DANGERS) do
    local example = danger[place] and p:admits(danger[1])
    if example then
      self:add("openapi.pattern-dangerous", at, ("%s: %s passes %s, as in %s")
        :format(name, danger[2], options.show(facts.pattern),
          options.show(example)), place == "body" and "low" or nil)
    end
  end
  local dashed = place ~= "body" and p:admits_first("-")
  if dashed then
    self:add("openapi.pattern-dangerous", at, ("%s: a leading '-' passes %s, as"
      .. " in %s"):format(name, options.show(facts.pattern),
      options.show(dashed)), "low")
  end
end


function Audit:check_steps(p, name, at)
  local slow, attack, unknown = p:redos()
  if unknown then
    self:add("openapi.pattern-opaque", at, ("%s: how long %s takes cannot be"
      .. " told, for %s"):format(name, options.show(p.text), unknown))
  elseif slow then
    self:add("openapi.pattern-redos", at, ("%s: %s takes %s time, as for %s")
      :format(name, options.show(p.text), slow, options.show(attack, 40)))
  end
end


-- Judges a pattern. Returns it, or nil where it cannot be judged.
function Audit:check_pattern(facts, name, place)
  local at = self.api.doc:at(facts.owner.pattern, "pattern")
  local p, why = pattern.new(facts.pattern, {
    minLength = math.tointeger(facts.minLength),
    maxLength = math.tointeger(facts.maxLength),
  })
  if not p then
    self:add("openapi.pattern-broken", at, ("%s: %s"):format(name, why))
    return nil
  elseif p.why then
    self:add("openapi.pattern-opaque", at, ("%s: %s"):format(name, p.why))
    return nil
  elseif not p:anchored() then
    self:add("openapi.pattern-unanchored", at, ("%s: %s is looked for anywhere"
      .. " in the text%s"):format(name, options.show(facts.pattern),
      place == "body" and "" or ", and " .. options.show(p:admits("../")
        or p:admits("\n") or "") .. " passes"),
      by_place(place, "high", "medium"))
  else
    self:check_dangers(p, facts, name, place, at)
  end
  self:check_steps(p, name, at)
  return p
end


function Audit:check_text(facts, name, place, at)
  local format = FORMATS[facts.format]
  if facts.contentEncoding == "base64" then
    format = false
  end
  local p
  if type(facts.pattern) == "string" then
    p = self:check_pattern(facts, name, place)
  elseif format == nil then
    self:add("openapi.text-unchecked", at, ("%s takes any text"):format(name),
      by_place(place, "high", "medium"))
  end
  if facts.maxLength == nil and format ~= true and not (p and p:longest()) then
    self:add("openapi.text-unbounded", at, ("%s has no maxLength"):format(name))
  end
end


-- ---- values ----------------------------------------------------------------

function Audit:check_number(facts, name, at)
  local low = facts.minimum ~= nil or type(facts.exclusiveMinimum) == "number"
  local high = facts.maximum ~= nil or type(facts.exclusiveMaximum) == "number"
  if not BOUNDED[facts.format] and not (low and high) then
    self:add("openapi.number-unbounded", at, ("%s has no %s"):format(name,
      not (low or high) and "minimum and no maximum"
        or low and "maximum" or "minimum"))
  end
end


function Audit:check_list(facts, name, place, at)
  if facts.maxItems == nil and facts.items ~= false then
    self:add("openapi.list-unbounded", at, ("%s has no maxItems"):format(name))
  end
  for i in ipairs(document.items(facts.prefixItems)) do
    self:visit(facts.prefixItems, i, name .. "[" .. i - 1 .. "]", place)
  end
  if facts.items ~= nil then
    self:visit(facts.owner.items, "items", name .. "[]", place)
  elseif facts.unevaluatedItems ~= nil then
    for _, word in ipairs { "contains", "unevaluatedItems" } do
      if facts[word] ~= nil then  -- what it contains has been evaluated
        self:visit(facts.owner[word], word, name .. "[]", place)
      end
    end
  elseif facts.prefixItems == nil then
    self:add("openapi.any-value", at, ("%s has no items: a list of anything"
      .. " passes"):format(name))
  end
end


function Audit:check_rest(facts, name, place, at)
  local rest = facts.rest
  local anything = rest == true
    or document.is_map(rest) and next(rest) == nil
  if rest == false then
    return
  elseif rest == nil or anything then
    self:add("openapi.object-open", rest == nil and at
      or self.api.doc:at(facts.owner.rest, facts.rest_word),
      ("%s takes members of any name%s"):format(name, rest == nil
        and " (gateway.openapi closes it)" or ", and of any value"),
      anything and "high" or nil)
    return
  end
  self:visit(facts.owner.rest, facts.rest_word, name .. ".*", place)
  if facts.maxProperties == nil then
    self:add("openapi.map-unbounded", at, ("%s has no maxProperties"):format(
      name))
  end
end


-- The names of members; those of a closed object are listed anyway.
function Audit:check_names(facts, name)
  local source = facts.propertyNames
  if facts.rest == false or not document.is_map(source) then
    return
  end
  local at = self.api.doc:at(facts.owner.propertyNames, "propertyNames")
  self:each_choice(self:gather(source, no_facts(), 0), at, function(names)
    if names.enum == nil and names.const == nil then
      self:check_text(names, name .. ": names of members", "body", at)
    end
  end)
end


-- Is a member of this name declared whatever else holds?
local function is_declared(facts, key)
  for _, properties in ipairs(facts.properties) do
    if properties[key] ~= nil then
      return true
    end
  end
  return false
end


-- Members that then, else or a dependency brings: they narrow one that is
-- declared anyway, or are declared there alone.
function Audit:check_narrowed(facts, name, place)
  for _, properties in ipairs(facts.narrowed) do
    for _, key in ipairs(options.sorted_keys(properties)) do
      if not is_declared(facts, key) then
        self:visit(properties, key, name .. "." .. key, place)
      end
    end
  end
end


function Audit:check_object(facts, name, place, at)
  for _, properties in ipairs(facts.properties) do
    for _, key in ipairs(options.sorted_keys(properties)) do
      local property = properties[key]
      if not (document.is_map(property) and property.readOnly == true) then
        self:visit(properties, key, name .. "." .. key, place)
      end
    end
  end
  self:check_narrowed(facts, name, place)
  self:check_names(facts, name)
  self:check_rest(facts, name, place, at)
end


function Audit:check_facts(facts, name, place, at)
  local types = types_of(facts)
  if not types then
    self:add("openapi.any-value", at, ("%s has no type: anything passes")
      :format(name))
    return
  elseif facts.enum ~= nil or facts.const ~= nil then
    return
  end
  if types.string then
    self:check_text(facts, name, place, at)
  end
  if types.integer or types.number then
    self:check_number(facts, name, at)
  end
  if types.array then
    self:check_list(facts, name, place, at)
  end
  if types.object then
    self:check_object(facts, name, place, at)
  end
end


-- Where a schema that is nothing but a $ref leads.
function Audit:leads_to(source)
  for _ = 1, MAX_DEPTH do
    if next(source) ~= "$ref" or next(source, "$ref") ~= nil then
      break
    end
    source = self.api.doc:target(source)
  end
  return source
end


-- Calls each(facts, at) for every combination of what may hold for a value.
function Audit:each_choice(facts, at, each, budget)
  local choice = table.remove(facts.choices)
  budget = budget or { left = MAX_CHOICES, at = at }
  if not choice then
    return each(facts, at)
  end
  for i, branch in ipairs(choice.of) do
    budget.left = budget.left - 1
    if budget.left < 0 then
      if budget.left == -1 then
        self:add("openapi.not-strict", budget.at, ("more than %d combinations"
          .. " of branches: not all of them were looked at"):format(
          MAX_CHOICES))
      end
      return
    end
    local there = choice.narrows and at or document.is_map(branch)
      and self.api.doc:at(self:leads_to(branch))
      or self.api.doc:at(choice.of, i)
    self:each_choice(self:gather(branch, copy_facts(facts), 0, choice.narrows),
      there, each, budget)
  end
end


-- Looks at the schema owner[key]; each one once, and once more where it is
-- nearer to harm.
function Audit:visit(owner, key, name, place)
  local source, doc = owner[key], self.api.doc
  local near = place == "body" and "body" or "text"
  if source == true then
    self:add("openapi.any-value", doc:at(owner, key), ("%s: anything passes")
      :format(name))
  end
  if not document.is_map(source) or self.seen[near][source] then
    return
  end
  self.seen[near][source] = true
  self:try("openapi.broken", function()
    local target = self:leads_to(source)
    if target ~= source and self.seen[near][target] then
      return
    end
    self.seen[near][target] = true
    self:each_choice(self:gather(source, no_facts(), 0), doc:at(target),
      function(facts, at)
        self:check_facts(facts, name, place, at)
      end)
  end)
end


-- ---- operations ------------------------------------------------------------

function Audit:check_parameters(operation, converter)
  for _, parameter in ipairs(operation.parameters) do
    local place = parameter.place == "cookie" and "header" or parameter.place
    local name = ("%s parameter %s"):format(parameter.place,
      options.show(parameter.name))
    local source = parameter.source
    if self.api.version == "2.0" then
      self:visit({ it = source }, "it", name, place)
    elseif source.schema ~= nil then
      self:visit(source, "schema", name, place)
    end
    self:try("openapi.not-strict", function()
      openapi.input(self.api, converter, parameter)
    end)
  end
end


function Audit:check_bytes(media, name)
  local schema = media.schema
  if not (document.is_map(schema) and schema.maxLength) then
    self:add("openapi.body-unbounded", self.api.doc:at(media.owner, media.key),
      ("%s: %s of any number of bytes"):format(name, media.type))
  end
end


function Audit:check_body(operation, converter)
  local body = operation.body
  for _, media in ipairs(body and body.media or {}) do
    local name = ("%s %s: body"):format(operation.method, operation.path)
    local kind, why = openapi.body_kind(self.api, media)
    if not kind then
      self:add("openapi.body-unchecked", self.api.doc:at(media.owner,
        media.key), ("%s: %s: %s"):format(name, media.type, why))
    elseif kind == "bytes" then
      self:check_bytes(media, name)
    else
      self:visit(media.holder, "schema", name, "body")
    end
    self:try("openapi.not-strict", function()
      openapi.body(self.api, converter, body, media.type, {})
    end)
  end
end


-- ---- security --------------------------------------------------------------

function Audit:scheme(name)
  local doc = self.api.doc
  local root = doc.value
  local components = document.is_map(root.components) and root.components or {}
  local all = self.api.version == "2.0" and root.securityDefinitions
    or components.securitySchemes
  local scheme = document.is_map(all) and all[name]
  return document.is_map(scheme) and doc:follow(scheme) or nil
end


function Audit:check_scheme(scheme)
  local doc, weak = self.api.doc, nil
  if scheme.type == "apiKey" and scheme["in"] == "query" then
    weak = "an API key in the query ends in logs and histories"
  elseif scheme.type == "basic" or scheme.scheme == "basic" then
    weak = "a password with every request"
  elseif scheme.flow == "implicit" or document.is_map(scheme.flows)
    and scheme.flows.implicit then
    weak = "the implicit flow puts tokens into URLs"
  end
  if weak then
    self:add("openapi.security-weak", doc:at(scheme), weak)
  end
end


-- Does every way in want a client certificate?
function Audit:check_requirements(operation, at)
  local all = true
  for i, requirement in ipairs(operation.security) do
    local mutual = false
    if not document.is_map(requirement) then
      self.api.doc:fail(operation.security, i, "must be a map of schemes")
    end
    for _, name in ipairs(options.sorted_keys(requirement)) do
      local scheme = self:scheme(name)
      if not scheme then
        self:add("openapi.security-unknown", self.api.doc:at(
          operation.security, i), ("%s is declared nowhere"):format(
          options.show(name)))
      else
        self:check_scheme(scheme)
        mutual = mutual or scheme.type == "mutualTLS"
      end
    end
    if next(requirement) == nil then
      self:add("openapi.no-security", at, ("%s %s: one of its ways in asks for"
        .. " nothing"):format(operation.method, operation.path))
    end
    all = all and mutual
  end
  return all
end


function Audit:check_security(operation)
  local at = operation.at
  if not operation.security or #operation.security == 0 then
    self:add("openapi.no-security", at, ("%s %s: anybody may call it"):format(
      operation.method, operation.path))
  elseif not self:check_requirements(operation, at) then
    local own = operation.security_owner ~= self.api.doc.value
    self:add("openapi.security-no-mtls", own and at
      or self.api.doc:at(self.api.doc.value, "security"), ("%s can be called"
        .. " without a client certificate"):format(own and operation.method
        .. " " .. operation.path or "what has no security of its own"))
  end
end


function Audit:check_servers()
  local doc, root = self.api.doc, self.api.doc.value
  for _, server in ipairs(doc:list(root, "servers") or {}) do
    if type(server.url) == "string" and server.url:find("^http:") then
      self:add("openapi.server-plain", doc:at(server, "url"),
        options.show(server.url) .. " is not encrypted")
    end
  end
  for _, scheme in ipairs(doc:list(root, "schemes") or {}) do
    if scheme == "http" or scheme == "ws" then
      self:add("openapi.server-plain", doc:at(root, "schemes"),
        scheme .. " is not encrypted")
    end
  end
end


-- ---- the whole -------------------------------------------------------------

function Audit:check_operation(operation)
  local converter = openapi_schema.converter(self.api, { formats = {} })
  self:check_parameters(operation, converter)
  self:check_body(operation, converter)
  self:check_security(operation)
  self:try("openapi.not-strict", function()
    openapi.operation(self.api, {}, operation, true)
  end)
  if not operation.id then
    self:add("openapi.no-operation-id", operation.at, ("%s %s has no"
      .. " operationId"):format(operation.method, operation.path))
  end
end


--- Looks at a document.
-- @param found   a list of gateway.finding, to which this adds
-- @param name    the document's file name
-- @param text    what is in it
-- @param routes  the routes of a policy's plain configuration; or nil
function M.audit(found, name, text, routes)
  local self = setmetatable({
    found = found, places = {}, seen = { body = {}, text = {} },
  }, Audit)
  local doc, message = document.read(name, text)
  if not doc then
    local at, what = split(message)
    return self:add("openapi.broken", at or name .. ":1", what)
  end
  self:try("openapi.broken", function()
    self.api = openapi_read.read(doc, function(func)
      self:try("openapi.broken", func)
    end)
    self:check_servers()
    for _, operation in ipairs(self.api.operations) do
      self:try("openapi.broken", function()
        self:check_operation(operation)
      end)
    end
    if routes then
      beside.compare(self.api, routes, function(...)
        self:add(...)
      end)
    end
  end)
end


return M
