--- `gateway audit --trace`: sends canaries through the real hooks, and tells
-- where each arrives and what checked it. Programs and upstreams are stood in
-- for, so nothing is run and nobody is asked.
--
-- An input that arrives where its schema's freedom is dangerous is tried once
-- more, with a value that the schema takes and that holds the danger. Only if
-- that arrives too, as it was sent, is there a finding: a hook that refuses it,
-- and an encoding, count. What arrives in another form (in base64, cut, summed
-- up) is found by sending another value, and looking at what changes.

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

local ROUNDS <const> = 8  -- of requests to one route, for what excludes others

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
    or (math.type(value) or type(value) == "boolean") and tostring(value) or ""
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


-- The texts of each place, one after the other.
local function by_label(texts)
  local found = {}
  for _, row in ipairs(texts) do
    found[row.label] = (found[row.label] or "") .. "\0" .. row.text
  end
  return found
end


-- What changes with the length of a text, or with the time, is not where it
-- arrives.
local function is_beside(label)
  return label:find("^header content%-length ") ~= nil
    or label == "header date of the answer"
end


-- The places that are not the same when another value is sent.
-- @param same  the texts of the same request, sent again
local function changed(texts, same, other)
  local first, again, then_ = by_label(texts), by_label(same), by_label(other)
  local labels = {}
  for label, text in pairs(first) do
    labels[label] = text == again[label] and then_[label] ~= nil
      and then_[label] ~= text and not is_beside(label) or nil
  end
  return labels
end


-- The places where an input arrived; `changed` where it is not there as it was
-- sent.
-- @param labels  what changed() says
local function arrivals(input, texts, labels)
  local found, by = {}, {}
  for _, row in ipairs(texts) do
    local as_is = row.text:find(input.mark or text_of(input.value), 1, true)
      and (input.mark or labels[row.label])
    if (as_is or labels[row.label]) and not by[row.label] then
      by[row.label] = { place = row.place, label = row.label, changed = true }
      found[#found + 1] = by[row.label]
    end
    if as_is then
      by[row.label].changed = false
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


-- Is the danger in a place where it was not before? There with the value as it
-- was sent, if that is how the input arrived.
local function stands(value, danger, arrival, r, before)
  local function there(texts, as_is)
    for _, row in ipairs(texts) do
      if row.label == arrival.label and shape.holds(danger, row.text)
        and (not as_is or row.text == value or #value > 3
        and row.text:find(value, 1, true)) then
        return true
      end
    end
    return false
  end
  return there(texts_of(r), not arrival.changed)
    and not there(before, not arrival.changed)
end


local function is_tail(route, input, danger)
  return danger.id == "slash" and input.where == "path"
    and route.path:find("{" .. input.name .. "...}", 1, true)
end


-- Tries each danger of a place where an input has arrived. A header takes none:
-- what would be one there is refused on the way.
local function try_dangers(audit, route, identity, maker, input, arrival,
  before)
  local place = arrival.place
  local severities = place ~= "header" and input_rules.SEVERITY[place]
  if not severities or not input.mark or shape.is_narrow(input.schema) then
    return
  end
  for _, danger in ipairs(shape.DANGERS) do
    local value = severities[danger.id] and not is_tail(route, input, danger)
      and dangerous(input, danger)
    if value then
      local r = send(identity, canary.new({ [input.key] = value }, maker)
        :request(route))
      if r and r.status ~= 500
        and stands(value, danger, arrival, r, before) then
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
local function reach(route, rounds)
  local result, why, maker
  for _, fields in ipairs(client_for.route(route, "canary")) do
    local made, client = pcall(who.make, fields)
    if made then
      maker = canary.new(nil, nil, rounds)
      result, why = send(client, maker:request(route))
    end
    if result and result.stage ~= "authorize" then
      return result, maker, client
    end
  end
  return result, maker, nil, why
end


-- What other values of an input change; nil: none of them was let in.
local function changes(route, identity, maker, input, before)
  local labels
  for _, value in ipairs(canary.others(input)) do
    local r = send(identity, canary.new({ [input.key] = value }, maker)
      :request(route))
    local again = r and stage.was_allowed(r.stage) and send(identity,
      canary.new(nil, maker):request(route))
    for label in pairs(again and changed(before, texts_of(again), texts_of(r))
      or {}) do
      labels = labels or {}
      labels[label] = true
    end
    labels = labels or again and {} or nil
  end
  return labels
end


local function trace_input(audit, book, route, reached, input)
  local maker, identity, before = reached.maker, reached.identity,
    reached.texts
  local labels = changes(route, identity, maker, input, before)
  local found = arrivals(input, before, labels or {})
  local row = {
    input = input_rules.label_of(input), value = input.value,
    arrives = core.array {}, changed = core.array {},
    hooks = core.array(hooks_of(book, route)), schema = check_of(input.schema),
    untold = not labels and not input.mark or nil,
  }
  for _, arrival in ipairs(found) do
    table.insert(arrival.changed and row.changed or row.arrives, arrival.label)
    try_dangers(audit, route, identity, maker, input, arrival, before)
  end
  return row
end


-- Traces the inputs of one request that have not been traced yet.
local function trace_request(audit, book, route, reached, row)
  reached.texts = texts_of(reached.result)
  for _, input in ipairs(reached.maker.inputs) do
    local label = input_rules.label_of(input)
    local known = row.known[label]
    if not known or known == reached.maker then
      row.known[label] = reached.maker
      table.insert(row.inputs, trace_input(audit, book, route, reached, input))
    end
  end
end


-- The texts that no request has held so far: alternatives that exclude each
-- other take several.
local function missing_of(route, known)
  local list = {}
  for _, input in ipairs(input_rules.inputs(route)) do
    for _, leaf in ipairs(shape.leaves(input.schema, input.name)) do
      local label = input_rules.label_of { where = input.where,
        name = leaf.name }
      if not leaf.is_name and not known[label] and not list[label] then
        list[#list + 1], list[label] = label, true
      end
    end
  end
  return core.array { table.unpack(list) }
end


local function trace_route(audit, book, route)
  local r, maker, identity, why = reach(route, {})
  for round = 1, ROUNDS do
    if r and identity and not stage.was_allowed(r.stage) then
      r, maker, identity, why = reach(route, { json = round,
        other = round })
    end
  end
  local row = { at = route.at, route = policy.title(route),
    inputs = core.array {}, known = {} }
  if not r or not identity or not stage.was_allowed(r.stage) then
    row.refused = not r and (why or "no identity can be made for it")
      or ("%d at %s: %s"):format(r.status, r.stage,
        (r.reason or ""):match("^[^\n]*"))
    audit:add("trace.not-reached", route.at, ("%s: %s"):format(row.route,
      row.refused))
    row.known = nil
    return row
  end
  row.failed = r.status == 500 and (r.reason or "?"):match("^[^\n]*") or nil
  trace_request(audit, book, route, { result = r, maker = maker,
    identity = identity }, row)
  for round = 1, ROUNDS do
    row.missing = missing_of(route, row.known)
    if #row.missing == 0 then
      break
    end
    r, maker, identity = reach(route, { json = round,
      other = maker.rounds.other })
    if r and identity and stage.was_allowed(r.stage) then
      trace_request(audit, book, route, { result = r, maker = maker,
        identity = identity }, row)
    end
  end
  row.missing, row.known = missing_of(route, row.known), nil
  return row
end


--- Traces every route of the loaded policy. Findings go to `audit`.
-- @return a list of { at, route, refused or inputs of { input, value, arrives,
--         changed, untold, schema, hooks }, missing }
function M.run(audit, book)
  local rows = {}
  for _, route in ipairs(book.routes) do
    if route.path ~= "*" then
      rows[#rows + 1] = trace_route(audit, book, route)
    end
  end
  return core.array(rows)
end


-- Where an input arrives, in words.
local function arrives(input)
  local parts = {}
  if #input.arrives > 0 then
    parts[1] = "arrives in " .. table.concat(input.arrives, ", ")
  end
  if #input.changed > 0 then
    parts[#parts + 1] = "arrives, changed, in "
      .. table.concat(input.changed, ", ")
  end
  if #parts == 0 then
    return input.untold and "where it arrives cannot be told: no other value of"
      .. " it was let in" or "arrives nowhere"
  end
  return table.concat(parts, "\n        ")
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
    if row.failed then
      core.print("    answered with 500, so what is after that is not seen: "
        .. row.failed)
    end
    if row.missing and #row.missing > 0 then
      core.print("    not sent: " .. table.concat(row.missing, ", "))
    end
    for _, input in ipairs(row.inputs) do
      local checks = { input.schema, table.unpack(input.hooks) }
      core.print(("    %s = %s\n        checked by %s\n        %s"):format(
        input.input, shape.show(input.value), table.concat(checks, ", "),
        arrives(input)))
    end
  end
end


return M
