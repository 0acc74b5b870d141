--- The command `gateway explain`: one request through the policy, decision by
-- decision, each with file and line.

local core <const> = require "gateway.core"
local decisions <const> = require "gateway.decisions"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local story <const> = require "gateway.story"
local strings <const> = require "gateway.strings"
local tool <const> = require "gateway.tool"
local who <const> = require "gateway.who"
local M = {}

local BODY_BYTES <const> = 64 << 20
local SCHEMA_BYTES <const> = 200
local INDENT <const> = (" "):rep(18)


-- ---- as text ---------------------------------------------------------------

-- A schema, cut to a line.
local function short(schema)
  if #schema <= SCHEMA_BYTES then
    return schema
  end
  return schema:sub(1, SCHEMA_BYTES):gsub("[\x80-\xff]+$", "") .. "…"
end


local function verdict(step)
  if step.skipped then
    return "-"
  end
  return step.ok and "yes" or step.ok == false and "NO" or "?"
end


-- A condition's parts, below it.
local function print_parts(parts, indent)
  for _, part in ipairs(parts or {}) do
    local line = ("%s%s: %s"):format((" "):rep(indent), part.what,
      verdict(part))
    if part.reason then
      line = line .. ": " .. part.reason
    elseif part.values and #part.values > 0 then
      line = line .. " (" .. options.show_list(part.values) .. ")"
    end
    core.print(line)
    print_parts(part.parts, indent + 2)
  end
end


local function input_line(step)
  local given = step.values and #step.values > 0 and " = "
    .. options.show_list(step.values) or ""
  if step.absent then
    given = " (not given)"
  end
  return step.what .. given
end


-- The schema that an input breaks, what a condition was asked of, its parts.
local function print_grounds(step)
  if step.reason then
    core.print(INDENT .. "why: " .. strings.first_line(step.reason))
  end
  if step.schema and step.ok == false then
    core.print(INDENT .. "wanted: " .. short(step.schema))
  end
  if step.stage == "authorize" and not step.parts and step.values
    and #step.values > 0 then
    core.print(INDENT .. "the certificate has "
      .. options.show_list(step.values))
  end
  print_parts(step.parts, #INDENT)
end


local function print_step(step)
  local text = step.stage == "authorize" and step.what or input_line(step)
  core.print(("  %-10s %-4s %s%s"):format(step.stage, verdict(step), text,
    step.at and "    (" .. step.at .. ")" or ""))
  print_grounds(step)
end


-- Words as a person would type them.
local function command_line(words)
  local list = {}
  for i, word in ipairs(words) do
    list[i] = word:find("^[%w_@%%+=:,./-]+$") and word or options.show(word)
  end
  return table.concat(list, " ")
end


local function print_effects(step)
  for _, run in ipairs(step.runs or {}) do
    core.print(INDENT .. "would run " .. command_line(run.argv))
  end
  for _, forward in ipairs(step.forwards or {}) do
    core.print(("%swould ask %s: %s %s"):format(INDENT, forward.upstream,
      forward.method, forward.target or ""))
  end
end


local function print_nearest(nearest)
  for i, near in ipairs(nearest or {}) do
    core.print(("%s%s %s (%s): %s"):format(INDENT,
      i == 1 and "nearest:" or "or      ", near.what, near.at,
      near.reason or "it fits, but for what is said above"))
  end
end


local function print_text(told)
  core.print(("%s %s\n  as              %s"):format(told.method, told.target,
    told.identity))
  for _, note in ipairs(told.notes) do
    core.print("  note            " .. note)
  end
  for _, step in ipairs(told.steps) do
    print_step(step)
    print_effects(step)
    print_nearest(step.nearest)
  end
  if told.handshake then
    core.print("\nrefused in the handshake: " .. told.handshake)
  elseif told.failed then
    core.print(("\nlet through, but %s failed: 500: %s"):format(told.stage,
      strings.first_line(told.reason)))
  elseif told.undecided then
    core.print(("\nnot to be told here: %s; %s"):format(told.undecided,
      told.notes[1]))
  elseif told.allowed then
    core.print(("\nallowed (answer %d, with stand-ins for programs and"
      .. " upstreams)"):format(told.status))
  else
    core.print(("\nrefused with %d at %s: %s"):format(told.status, told.stage,
      strings.first_line(told.reason)))
  end
end


-- ---- as JSON ---------------------------------------------------------------

local function plain_step(step)
  local plain = {}
  for name, value in pairs(step) do
    plain[name] = value
  end
  plain.values = step.values and core.array(step.values)
  for _, list in ipairs { "parts", "nearest" } do
    if step[list] then
      local items = {}
      for i, item in ipairs(step[list]) do
        items[i] = plain_step(item)
      end
      plain[list] = core.array(items)
    end
  end
  plain.cost, plain.order = nil, nil
  plain.runs = step.runs and core.array(step.runs)
  plain.forwards = step.forwards and core.array(step.forwards)
  for _, run in ipairs(plain.runs or {}) do
    run.argv = core.array(run.argv)
  end
  return plain
end


local function print_json(told)
  local plain = {}
  for name, value in pairs(told) do
    plain[name] = value
  end
  plain.notes = core.array(told.notes)
  local steps = {}
  for i, step in ipairs(told.steps) do
    steps[i] = plain_step(step)
  end
  plain.steps = core.array(steps)
  core.print(core.encode(plain))
end


-- ---- the request -----------------------------------------------------------

-- "Name: value" of each -H.
local function read_headers(list)
  local headers = {}
  for _, line in ipairs(list) do
    local name, value = line:match("^([^:%s]+):%s*(.-)%s*$")
    if not name then
      return nil, ("-H %s: write 'Name: value'"):format(options.show(line))
    end
    headers[name] = value
  end
  return headers
end


-- What -d and --json give: the body and its type.
local function read_body(opts)
  local body = opts.json or opts.data
  if opts.json and opts.data then
    return nil, "give -d or --json, not both"
  end
  if body and body:find("^@") then
    local bytes, message = core.read_file(body:sub(2), BODY_BYTES)
    if not bytes then
      return nil, message
    end
    body = bytes
  end
  return body or "", opts.json and "application/json"
    or opts.data and "application/x-www-form-urlencoded" or nil
end


-- A whole URL, as it is pasted: its host is what a client would say in Host.
-- Returns what is asked for there.
local function take_host(url, headers)
  local host, rest = url:match("^%a[%w+.-]*://([^/?#]*)([^#]*)")
  if not story.header({ headers = headers }, "host") then
    headers.host = host
  end
  return rest:find("^/") and rest or "/" .. rest
end


-- The request that the command line describes.
local function read_request(target, opts)
  local headers, message = read_headers(opts.header)
  if not headers then
    return nil, message
  end
  if target:find("^%a[%w+.-]*://") then
    target = take_host(target, headers)
  end
  local body, media = read_body(opts)
  if not body then
    return nil, media
  end
  local spec = {
    method = opts.method or body ~= "" and "POST" or "GET", target = target,
    headers = headers, listener = opts.listener,
    body = body ~= "" and body or nil,
  }
  if media and not story.header(spec, "content-type") then
    headers["content-type"] = media
  end
  return spec
end


-- ---- the command -----------------------------------------------------------

-- The listener that is asked, by number. Nil and why.
local function find_listener(name)
  local number, message = who.listener(name)
  if not number then
    return nil, message
  end
  if policy.all("listeners")[number].tcp then
    return nil, ("listener %s is of gateway.tcp: it has no requests"):format(
      options.show(policy.all("listeners")[number].name))
  end
  return number
end


-- The step that ends the story failed for want of what no log has: it is not
-- the request's fault, and no verdict.
local function leave_open(steps)
  local last
  for _, step in ipairs(steps) do
    last = step.ok == false and step or last
  end
  if last then
    last.ok, last.reason, last.absent = nil, "it is not in the log", nil
  end
end


-- Runs it and tells all of it. `record`: what a log has of it; nil: all is on
-- the command line.
local function explain(client, spec, opts, record)
  local told = { method = spec.method, target = spec.target,
    identity = who.title(client.identity), notes = { client.note },
    steps = {}, handshake = client.refused, allowed = false }
  if not client.refused then
    local result = story.run(client.identity, spec)
    told.steps, told.allowed = result.steps, result.allowed
    told.status, told.stage, told.reason = result.status, result.stage,
      result.reason
    told.where = result.where ~= "" and result.where or nil
    told.name = result.name ~= "" and result.name or nil
    if record then
      told.notes = decisions.missing(result, client)
      table.insert(told.notes, 1, "logged: " .. decisions.outcome(record))
      told.undecided = decisions.undecided(result)
      if told.undecided then
        leave_open(told.steps)
      end
      told.logged = not (record.refused or record.bug)
    end
    told.failed = told.allowed and told.status == 500
      and told.reason ~= nil and told.reason ~= ""
  end
  if opts.format == "json" then
    print_json(told)
  else
    print_text(told)
  end
  if told.undecided then
    return told.logged and 0 or 1
  end
  return told.allowed and 0 or 1
end


local function from_command_line(operands, opts)
  if not opts.identity then
    return nil, "--identity is missing: a certificate, or cn=alice,ou=ops"
  elseif not operands[1] then
    return nil, "a path is missing: /path?query"
  end
  if not tool.load_policy("explain", opts.policy) then
    return 1
  end
  local number, message = find_listener(opts.listener)
  if not number then
    return nil, message
  end
  local spec, client
  spec, message = read_request(operands[1], opts)
  if not spec then
    return nil, message
  end
  client, message = who.of(opts.identity, number)
  if not client then
    return nil, message
  end
  return explain(client, spec, opts)
end


-- What a log holds of one request, as one to be run again.
local function from_log(operands, opts)
  if not opts.log then
    return nil, "--log FILE is missing: where --id is looked for"
  elseif operands[1] then
    return nil, ("%s: the log says what the request was"):format(operands[1])
  end
  if not tool.load_policy("explain", opts.policy) then
    return 1
  end
  local record, whole = decisions.find(opts.log, opts.id)
  if not record then
    core.warn("gateway explain: " .. whole)
    return 1
  end
  local spec, why = decisions.request(record)
  if not spec then
    core.warn(("gateway explain: request %s cannot be run again: %s; logged:"
      .. " %s"):format(opts.id, why, decisions.outcome(record)))
    return 1
  end
  local client, message = decisions.client(record, opts.identity, whole)
  if not client then
    return nil, message
  end
  return explain(client, spec, opts, record)
end


--- The command `gateway explain`.
M.main = tool.main {
  name = "explain", operands = "/path?query|URL", most = 1,
  help = "Sends one request through the policy, with programs and upstreams "
    .. "stood in for, and tells each decision with its file and line; where no "
    .. "route takes it, the nearest ones. Exit code 0: it would be allowed, 1: "
    .. "refused.",
  options = {
    { "policy", "FILE", "the policy", default = "scripts/gateway.lua" },
    { "identity", "WHO", "a certificate (PEM), judged as its listener would; "
      .. "or cn=alice,ou=ops,spiffe=spiffe://…,dns=…,ca=FILE" },
    { "method", "NAME", "the method: GET, or POST with a body", short = "X" },
    { "header", "'N: V'", "a header; may be repeated", short = "H",
      many = true },
    { "data", "TEXT", "the body; @FILE: what is in a file", short = "d" },
    { "json", "TEXT", "the same, as application/json" },
    { "listener", "NAME", "the listener it comes in by; else the first" },
    { "id", "ID", "instead of a path and all that: the request of that id …"
      .. " (--identity: who asked, where the log does not tell enough)" },
    { "log", "FILE", "… in this log (-: standard input), as far as it is "
      .. "there" },
    { "format", "text|json", "how it is told", default = "text" },
  },
  examples = {
    "gateway explain --identity certs/alice.crt '/v1/logs/app.log?lines=3'",
    "gateway explain --identity cn=bob,ou=guests -X DELETE /v1/orders/7",
    "gateway explain --identity alice.crt --json @order.json /v1/orders",
    "gateway explain --id b160e47d4bda9959cfc45a90e99bf464 --log gateway.log",
  },
  run = function(operands, opts)
    if opts.format ~= "text" and opts.format ~= "json" then
      return nil, ("--format %s: write text or json"):format(opts.format)
    end
    return (opts.id and from_log or from_command_line)(operands, opts)
  end,
}


return M
