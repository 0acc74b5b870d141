--- `gateway audit --trace`: sends canaries through the real hooks, and tells
-- where each arrives and what checked it. Programs and upstreams are stood in
-- for, so nothing is run and nobody is asked.
--
-- An input that arrives where its schema's freedom is dangerous is tried once
-- more, with a value that the schema takes and that holds the danger. Only if
-- that arrives too, as it was sent, is there a finding: a hook that refuses it,
-- and an encoding, count.

local canary <const> = require "gateway.canary"
local client_for <const> = require "gateway.client_for"
local core <const> = require "gateway.core"
local finding <const> = require "gateway.finding"
local input_rules <const> = require "gateway.audit_input"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local shape <const> = require "gateway.shape"
local stage <const> = require "gateway.stage"
local test <const> = require "gateway.test"
local who <const> = require "gateway.who"
local M = {}

finding.rules {
  ["trace.slot"] = { "medium", "a dangerous text went from a request into a"
    .. " program's argument", "narrow the schema, or refuse it in check" },
  ["trace.path"] = { "medium", "a dangerous text went from a request into an"
    .. " upstream's path", "narrow the schema, or refuse it in check" },
  ["trace.not-reached"] = { "info", "no canary reached the handler of a route,"
    .. " so nothing is known about it", "write a case for it: gateway test" },
}


-- ---- one request -----------------------------------------------------------

-- Stand-ins that succeed, and note what goes into standard input.
local function stand_ins(seen)
  local stub = {}
  for name in pairs(policy.names("commands")) do
    stub[name] = function(_, opts)
      local text = type(opts) == "table" and opts.stdin
      if type(text) == "string" then
        table.insert(seen.stdin, { command = name, text = text })
      end
      return { stdout = "{}" }
    end
  end
  for name in pairs(policy.names("upstreams")) do
    stub[name] = { body = "{}", headers = {
      ["content-type"] = "application/json" } }
  end
  return stub
end


-- Sends it; what came back, with what was logged. Nil and why: it could not be.
local function send(identity, method, target, opts)
  local seen = { stdin = {}, log = {} }
  local log = core.log
  opts.stub = stand_ins(seen)
  core.log = function(_, text)
    table.insert(seen.log, text)
  end
  local ok, result = pcall(test.request, identity, method, target, opts)
  core.log = log
  if not ok then
    return nil, tostring(result)
  end
  result.seen = seen
  return result
end


-- ---- where a marker is -----------------------------------------------------

local function text_of(value)
  return type(value) == "string" and value
    or math.type(value) and tostring(value) or ""
end


-- Every text that left the gateway: { place, what it is called, text }.
local function texts_of(r)
  local list = {}
  local function add(place, label, text)
    list[#list + 1] = { place = place, label = label, text = text_of(text) }
  end
  for _, run in ipairs(r.runs or {}) do
    for _, slot in ipairs(options.sorted_keys(run.slots)) do
      add("slot", ("slot %s of %s"):format(slot, run.command), run.slots[slot])
    end
  end
  for _, row in ipairs(r.seen.stdin) do
    add("stdin", "standard input of " .. row.command, row.text)
  end
  for _, forward in ipairs(r.forwards or {}) do
    local path, query = text_of(forward.target):match("^([^?]*)%??(.*)$")
    add("path", "path of upstream " .. forward.upstream, path)
    add("query", "query of upstream " .. forward.upstream, query)
    add("body", "body of upstream " .. forward.upstream, forward.body)
    for _, value in pairs(forward.query or {}) do
      add("query", "query of upstream " .. forward.upstream, value)
    end
    for name, value in pairs(forward.headers or {}) do
      add("header", ("header %s of upstream %s"):format(name,
        forward.upstream), value)
    end
  end
  for _, text in ipairs(r.seen.log) do
    add("log", "the log", text)
  end
  add("answer", "the answer", r.body)
  for name, value in pairs(r.headers or {}) do
    add("answer header", "header " .. name .. " of the answer", value)
  end
  return list
end


-- The places where an input arrived.
local function arrivals(input, texts)
  local found, seen = {}, {}
  for _, row in ipairs(texts) do
    local here = input.mark and row.text:find(input.mark, 1, true)
      or not input.mark and row.place == "slot"
      and row.text == text_of(input.value)
    if here and not seen[row.label] then
      seen[row.label] = true
      found[#found + 1] = { place = row.place, label = row.label }
    end
  end
  table.sort(found, function(a, b)
    return a.label < b.label
  end)
  return found
end


-- What the schema asks of an input, in a few words.
local function check_of(schema)
  if schema.enum or schema.const ~= nil then
    return "enum"
  elseif schema.pattern then
    return "pattern " .. schema.pattern
  elseif schema.format then
    return "format " .. schema.format
  end
  local kind = type(schema.type) == "table" and table.concat(schema.type, "|")
    or schema.type or "anything"
  local low, high = schema.minimum or schema.minLength,
    schema.maximum or schema.maxLength
  return kind .. ((low or high) and (" %s…%s"):format(low or "", high or "")
    or "")
end


-- "file:line" of the hooks that every request to a route passes.
local function hooks_of(book, route)
  local list = {}
  for _, number in ipairs(route.check) do
    local file, line = core.test_span(book.hooks[number])
    list[#list + 1] = ("hook at %s:%d"):format(file, line)
  end
  return list
end


-- ---- dangers ---------------------------------------------------------------

-- A value with the danger and, where there is room, the marker in it.
local function dangerous(input, danger)
  local p = canary.analyse(input.schema)
  local other = shape.danger_pattern(danger)
  if p.why then
    return nil
  end
  local value = p:meets(other, input.mark) or p:meets(other)
  local whole = core.encode(input.schema)
  return value and core.schema_test(whole, core.encode(value)) == true and value
    or nil
end


-- Does a value stand in a place as it was sent, is the danger there too, and
-- was it not there before?
local function stands(value, danger, label, r, before)
  local function there(texts)
    for _, row in ipairs(texts) do
      if row.label == label and shape.holds(danger, row.text)
        and (row.text == value or #value > 3
        and row.text:find(value, 1, true)) then
        return true
      end
    end
    return false
  end
  return there(texts_of(r)) and not there(before)
end


local function is_tail(route, input, danger)
  return danger.id == "slash" and input.where == "path"
    and route.path:find("{" .. input.name .. "...}", 1, true)
end


-- Tries each danger of a place where an input has arrived. A header takes none:
-- what would be one there is refused on the way.
local function try_dangers(audit, route, identity, input, arrival, before)
  local place = arrival.place
  local severities = place ~= "header" and input_rules.SEVERITY[place]
  if not severities or not input.mark or shape.is_narrow(input.schema) then
    return
  end
  for _, danger in ipairs(shape.DANGERS) do
    local value = severities[danger.id] and not is_tail(route, input, danger)
      and dangerous(input, danger)
    if value then
      local maker = canary.new { [input.key] = value }
      local r = send(identity, maker:request(route))
      if r and r.status ~= 500
        and stands(value, danger, arrival.label, r, before) then
        audit:add("trace." .. place, route.at, ("%s: %s sent %s, which holds"
          .. " %s, and it stood in %s"):format(policy.title(route),
          input_rules.label_of(input), shape.show(value), danger.text,
          arrival.label), severities[danger.id])
      end
    end
  end
end


-- ---- routes ----------------------------------------------------------------

-- The canary request of a route, with an identity that it lets in.
local function reach(route)
  local result, why, maker
  for _, fields in ipairs(client_for.route(route, "canary")) do
    local made, client = pcall(who.make, fields)
    if made then
      maker = canary.new()
      result, why = send(client, maker:request(route))
    end
    if result and result.stage ~= "authorize" then
      return result, maker, client
    end
  end
  return result, maker, nil, why
end


local function trace_route(audit, book, route)
  local r, maker, identity, why = reach(route)
  local row = { at = route.at, route = policy.title(route), inputs = {} }
  if not r or not identity or not stage.was_allowed(r.stage) then
    row.refused = not r and (why or "no identity can be made for it")
      or ("%d at %s: %s"):format(r.status, r.stage,
        (r.reason or ""):match("^[^\n]*"))
    audit:add("trace.not-reached", route.at, ("%s: %s"):format(row.route,
      row.refused))
    return row
  end
  local before, hooks = texts_of(r), hooks_of(book, route)
  for i, input in ipairs(maker.inputs) do
    local found = arrivals(input, before)
    local labels = {}
    for j, arrival in ipairs(found) do
      labels[j] = arrival.label
      try_dangers(audit, route, identity, input, arrival, before)
    end
    row.inputs[i] = {
      input = input_rules.label_of(input), value = input.value,
      arrives = core.array(labels), hooks = core.array(hooks),
      schema = check_of(input.schema),
    }
  end
  row.inputs = core.array(row.inputs)
  return row
end


--- Traces every route of the loaded policy. Findings go to `audit`.
-- @return a list of { at, route, refused or inputs of { input, value, arrives,
--         schema, hooks } }
function M.run(audit, book)
  local rows = {}
  for _, route in ipairs(book.routes) do
    if route.path ~= "*" then
      rows[#rows + 1] = trace_route(audit, book, route)
    end
  end
  return core.array(rows)
end


--- Prints the trace for people.
function M.print(rows)
  for _, row in ipairs(rows) do
    core.print(("%s: %s"):format(row.at, row.route))
    if row.refused then
      core.print("    not reached: " .. row.refused)
    elseif #row.inputs == 0 then
      core.print("    no input")
    end
    for _, input in ipairs(row.inputs) do
      local checks = { input.schema, table.unpack(input.hooks) }
      core.print(("    %s = %s\n        checked by %s\n        %s"):format(
        input.input, shape.show(input.value), table.concat(checks, ", "),
        #input.arrives > 0 and "arrives in " .. table.concat(input.arrives,
          ", ") or "arrives nowhere"))
    end
  end
end


return M
