--- Audit rules about what clients send: which texts the schemas let through,
-- and where these arrive.
--
-- A text is judged by where it goes. What a path or a header can carry at all
-- is known, so that a pattern is not blamed for bytes that the parser refuses
-- anyway.

local finding <const> = require "gateway.finding"
local policy <const> = require "gateway.policy"
local shape <const> = require "gateway.shape"
local M = {}

finding.rules {
  ["input.no-pattern"] = { "low", "a text has neither a pattern nor an enum",
    "add pattern = \"^[…]+$\", gateway.enum { … }, or a narrow constructor such"
    .. " as gateway.filename" },
  ["input.unanchored"] = { "medium", "a pattern binds only a part of the value:"
    .. " anything may stand beside it", "write ^(…)$ around the pattern" },
  ["input.no-max-length"] = { "low", "a text has no longest length",
    "add maxLength" },
  ["input.no-max-items"] = { "low", "a list has no longest length",
    "add maxItems" },
  ["input.open-object"] = { "low", "an object takes members that no schema"
    .. " names", "leave out additionalProperties and unevaluatedProperties" },
  ["input.redos"] = { "medium", "a value makes the pattern take so many steps"
    .. " that the engine gives up", "write the pattern so that no text can be"
    .. " read in two ways, and add maxLength" },
  ["input.unjudged"] = { "low", "a pattern cannot be judged, so it counts as"
    .. " one that lets everything through", "write it without backreferences,"
    .. " lookbehind and the like, or use an enum" },
  ["input.unchecked-query"] = { "medium", "query parameters pass unchecked",
    "declare them in validate.query" },
  ["input.stream"] = { "low", "a body flows through and is not validated",
    "let the upstream or program validate it; prefer gateway.bytes or json" },
  ["input.odd"] = { "low", "a route allows what servers read in two ways",
    "leave out what the upstream does not need from allow" },
  ["slot.dash"] = { "medium", "a slot's value may be an option of the program",
    "leave out dash = true, or give the slot an enum" },
}

local MENDS <const> = {
  path = "let the pattern name the characters that are needed, or encode the"
    .. " value and check it in the hook",
  slot = "let the pattern name the characters that are needed; for files use"
    .. " gateway.file_below",
  header = "let the pattern name the characters that are needed",
}

-- How bad a danger is in each place; what is not here is harmless there. Values
-- of slots that hold control characters or begin with "-" are refused when they
-- come, and so are dot segments in a path that a hook has put together, and
-- control characters in a header: then a request fails that should not have
-- got so far.
local SEVERITY <const> = {
  path = {
    ["dot-dot"] = "medium", slash = "high", backslash = "medium",
    newline = "low", nul = "low",
  },
  slot = {
    ["dot-dot"] = "medium", slash = "low", ["leading-dash"] = "low",
    at = "medium", pipe = "medium", colon = "low", blank = "low",
    newline = "low", nul = "low", backslash = "low",
  },
  header = { newline = "low", nul = "low" },
}

for place, dangers in pairs(SEVERITY) do
  for _, danger in ipairs(shape.DANGERS) do
    if dangers[danger.id] then
      finding.rules { [place .. "." .. danger.id] = { dangers[danger.id],
        ("a text that reaches a %s may hold %s"):format(
          place == "slot" and "program's argument" or place, danger.text),
        MENDS[place] } }
    end
  end
end


M.SEVERITY = SEVERITY


-- What cannot arrive by a place, whatever the schema says.
local function impossible(route, where, name, danger)
  local id = danger.id
  if where == "path" then
    local tail = route.path:find("{" .. name .. "...}", 1, true)
    local slash = tail
    for _, word in ipairs(route.allow) do
      slash = slash or word == "encoded_slash"
    end
    return id == "nul" or id == "newline" or id == "backslash"
      or id == "dot-dot" or id == "slash" and not slash
  end
  return where == "headers" and (id == "nul" or id == "newline")
end


-- ---- one text --------------------------------------------------------------

-- What a finding calls a text: "query parameter 'q'".
local LABELS <const> = {
  path = "capture {%s}", query = "query parameter '%s'",
  headers = "header '%s'",
  json = "'%s' of the JSON body", slot = "slot '%s'", raw = "request.raw",
  body = "the body", target = "request.target",
}

local function label_of(input)
  if input.where == "json" then
    local member = input.name:match("^body%.?(.+)$")
    return member and LABELS.json:format(member) or "the JSON body"
  end
  return LABELS[input.where]:format(input.name)
end

M.label_of = label_of


-- Is a pattern quick?
local function check_steps(audit, at, label, schema)
  local kind, attack, unknown = shape.analyse(schema):redos()
  if unknown then
    audit:add("input.unjudged", at, ("%s: how long pattern %s takes cannot be"
      .. " told, for %s"):format(label, shape.show(schema.pattern), unknown))
  elseif kind then
    audit:add("input.redos", at, ("%s: pattern %s gives up at %d characters,"
      .. " such as %s"):format(label, shape.show(schema.pattern),
      utf8.len(attack), shape.show(attack)), kind == "polynomial" and "low"
      or nil)
  end
end


-- A pattern by itself: bound, judged, quick?
local function check_pattern(audit, at, label, schema)
  local p = shape.analyse(schema)
  if p.why then
    audit:add("input.unjudged", at, ("%s: pattern %s holds %s"):format(label,
      shape.show(schema.pattern), p.why))
    return
  end
  if not p:anchored() then
    audit:add("input.unanchored", at, ("%s: pattern %s takes %s"):format(label,
      shape.show(schema.pattern), shape.show(p:admits("../") or p:admits(" ")
        or p:shortest() or "")))
  end
  check_steps(audit, at, label, schema)
end


-- True where a pattern is none in truth: whatever may do harm passes.
local function is_wide(schema)
  local p = shape.analyse(schema)
  if p.why or not p:anchored() then
    return false  -- which is reported as what it is
  end
  for _, danger in ipairs(shape.DANGERS) do
    if danger.id ~= "newline" and danger.id ~= "nul"
      and not shape.admits(schema, danger) then
      return false
    end
  end
  return true
end


-- A text by itself. `sinks`: true where it reaches more than an answer.
local function check_text(audit, at, label, schema, sinks)
  if shape.is_narrow(schema) then
    return
  end
  if not schema.pattern and schema.format ~= "byte" then
    audit:add("input.no-pattern", at, label .. (schema.format
      and (" takes all that format %s has room for"):format(schema.format)
      or " takes any text"), sinks and "medium" or nil)
  elseif schema.pattern and is_wide(schema) then
    audit:add("input.no-pattern", at, ("%s: pattern %s takes nearly any text")
      :format(label, shape.show(schema.pattern)), sinks and "medium" or nil)
    check_steps(audit, at, label, schema)
  elseif schema.pattern then
    check_pattern(audit, at, label, schema)
  end
  if not schema.maxLength and not (schema.pattern
    and shape.analyse(schema):longest()) then
    audit:add("input.no-max-length", at, label .. " may be of any length")
  end
end


-- A text in a place: each danger that it lets through.
-- @param how  " by gateway.fetch at x.lua:3"
local function check_dangers(audit, at, label, schema, place, how, cannot)
  for _, danger in ipairs(shape.DANGERS) do
    local severity = SEVERITY[place][danger.id]
    local value = severity and shape.is_text(schema) and not cannot(danger)
      and shape.admits(schema, danger)
    if value then
      audit:add(place .. "." .. danger.id, at, ("%s may hold %s, such as %s,"
        .. " and reaches %s"):format(label, danger.text, shape.show(value),
        how), severity)
    end
  end
end


-- ---- commands --------------------------------------------------------------

local function is_file_danger(danger)
  return danger.id == "slash" or danger.id == "dot-dot"
end


local function prefix_of(command, name)
  for _, arg in ipairs(command.args) do
    if arg.slot == name then
      return arg.prefix
    end
  end
  return nil
end


-- A slot behind "--x=" or in a file below a folder cannot begin an argument.
local function check_slot(audit, command, slot)
  local label = ("slot '%s' of command %s"):format(slot.name, command.name)
  local prefixed = prefix_of(command, slot.name) ~= nil
  local function cannot(danger)
    return slot.file and is_file_danger(danger)
      or prefixed and (danger.id == "leading-dash" or danger.id == "at")
  end
  for _, leaf in ipairs(shape.leaves(slot.schema, slot.name)) do
    if slot.dash and shape.admits(leaf.schema, shape.DANGERS[4]) then
      audit:add("slot.dash", command.at, label .. ": dash = true, and its"
        .. " values may begin with '-'")
    end
    if leaf.schema.pattern then
      check_pattern(audit, command.at, label, leaf.schema)
    end
    check_dangers(audit, command.at, label, leaf.schema, "slot",
      "an argument of " .. command.program, cannot)
  end
end


-- ---- routes ----------------------------------------------------------------

-- Captures in the templates of a route's upstream.
local function template_sinks(route)
  local sinks = {}
  local handle = route.handle
  if handle.kind == "proxy" then
    for name in handle.target:gmatch("{([^{}]+)}") do
      table.insert(sinks, { kind = "path", name = name,
        how = "the upstream's path " .. handle.target })
    end
    for header, template in pairs(handle.set) do
      for name in template:gmatch("{([^{}]+)}") do
        table.insert(sinks, { kind = "header", name = name,
          how = "the upstream's header " .. header })
      end
    end
  end
  return sinks
end

local HOW <const> = {
  path = "an upstream's path", query = "an upstream's query",
  header = "an upstream's header", body = "an upstream's body",
  stdin = "a program's standard input", log = "the log",
  ["response body"] = "the answer", ["response header"] = "a header of the"
    .. " answer",
}

-- Where dangers count, by kind of sink; a program's slots have their own rules.
local PLACE_OF <const> = {
  path = "path", header = "header", ["response header"] = "header",
}
local HARMLESS <const> = { ["response body"] = true, log = true }


-- Where an input goes: the sinks of the route's hooks and templates.
local function sinks_of(route, flow_route, where, name)
  local found = {}
  for _, sink in ipairs(where == "path" and template_sinks(route) or {}) do
    if sink.name == name then
      found[#found + 1] = sink
    end
  end
  for _, sink in ipairs(flow_route.sinks) do
    for input in pairs(sink.inputs) do
      local whole = input.where == "json" and where == "json"
        and name:sub(1, #input.name) == input.name
      if input.where == where and (input.name == name or whole)
        and HOW[sink.kind] then
        table.insert(found, { kind = sink.kind, glued = sink.glued,
          at = sink.at, how = ("%s at %s"):format(HOW[sink.kind], sink.at) })
      elseif input.where == where and input.name == name then
        table.insert(found, { kind = sink.kind })
      end
    end
  end
  return found
end


local function check_leaf(audit, route, flow_route, where, leaf)
  local label = label_of { where = where, name = leaf.name }
  local sinks = sinks_of(route, flow_route, where, leaf.name)
  local beyond = false
  for _, sink in ipairs(sinks) do
    beyond = beyond or not HARMLESS[sink.kind]
    local place = PLACE_OF[sink.kind]
    if place then
      check_dangers(audit, sink.at or route.at, label, leaf.schema, place,
        sink.how, function(danger)
          local tail = route.path:find("{" .. leaf.name .. "...}", 1, true)
          return impossible(route, where, leaf.name, danger)
            or danger.id == "slash" and (not sink.glued
              or where == "path" and tail ~= nil)
        end)
    end
  end
  if where ~= "json" then
    beyond = beyond or route.handle.kind == "proxy" and where ~= "path"
  end
  if not leaf.is_name or leaf.schema.pattern then
    check_text(audit, route.at, policy.title(route) .. ": " .. label,
      leaf.schema, beyond)
  end
end


-- Lists and objects of a JSON body, and lists of query parameters.
local function check_containers(audit, route, where, name, schema, depth)
  if type(schema) ~= "table" or depth > 16 then
    return
  end
  local label = ("%s: %s"):format(policy.title(route),
    label_of { where = where, name = name })
  local types = type(schema.type) == "table" and table.concat(schema.type, " ")
    or schema.type or ""
  if (types:find("array", 1, true) or schema.items) and not schema.maxItems
    and not schema.enum then
    audit:add("input.no-max-items", route.at, label
      .. " may have any number of items")
  end
  for _, key in ipairs { "additionalProperties", "unevaluatedProperties" } do
    if schema[key] == true then
      audit:add("input.open-object", route.at, ("%s: %s = true"):format(label,
        key))
    end
  end
  for key, part in pairs(schema.properties or {}) do
    check_containers(audit, route, where, name .. "." .. key, part, depth + 1)
  end
  for _, key in ipairs { "allOf", "anyOf", "oneOf", "prefixItems" } do
    for _, part in ipairs(schema[key] or {}) do
      check_containers(audit, route, where, name, part, depth + 1)
    end
  end
  check_containers(audit, route, where, name .. "[]", schema.items, depth + 1)
end


--- The inputs of a route: a list of { where, name, schema }.
function M.inputs(route)
  local list = {}
  local function add(where, name, schema)
    list[#list + 1] = { where = where, name = name, schema = schema }
  end
  for name, schema in pairs(route.path_schemas) do
    add("path", name, schema)
  end
  for _, where in ipairs { "query", "headers" } do
    for name, row in pairs(route[where]) do
      add(where, name, row.schema)
    end
  end
  if route.body.schema ~= nil then
    add("json", "body", route.body.schema)
  end
  table.sort(list, function(a, b)
    return a.where .. a.name < b.where .. b.name
  end)
  return list
end


-- A body that no schema checks is any text.
local function check_bare(audit, route, flow_route)
  if route.body.kind == "none" or route.body.schema ~= nil then
    return
  end
  for _, sink in ipairs(sinks_of(route, flow_route, "body", "body")) do
    local place = PLACE_OF[sink.kind]
    if place then
      check_dangers(audit, sink.at, "the body", { type = "string" }, place,
        sink.how, function()
          return false
        end)
    end
  end
end


local function check_route(audit, route, flow_route)
  for _, input in ipairs(M.inputs(route)) do
    for _, leaf in ipairs(shape.leaves(input.schema, input.name)) do
      leaf.name = input.where == "json" and leaf.name or input.name
      check_leaf(audit, route, flow_route, input.where, leaf)
    end
    check_containers(audit, route, input.where, input.name, input.schema, 0)
  end
  check_bare(audit, route, flow_route)
  local name = policy.title(route)
  if route.query_unchecked then
    audit:add("input.unchecked-query", route.at, name
      .. ": query = gateway.unchecked")
  end
  if route.body.kind == "stream" then
    audit:add("input.stream", route.at, name .. ": body = gateway.stream")
  end
  for _, word in ipairs(route.allow) do
    audit:add("input.odd", route.at, ("%s: allow = { %q }"):format(name, word))
  end
end


--- Applies the rules.
-- @param flows  [route] = what the flow of its hooks has found
function M.check(audit, book, flows)
  for _, command in ipairs(book.commands) do
    for _, slot in ipairs(command.slots) do
      check_slot(audit, command, slot)
    end
  end
  for _, route in ipairs(book.routes) do
    check_route(audit, route, flows[route])
  end
end


return M
