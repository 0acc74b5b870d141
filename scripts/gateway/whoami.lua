--- The command `gateway whoami`: what a certificate may do.

local core <const> = require "gateway.core"
local reach <const> = require "gateway.reach"
local tool <const> = require "gateway.tool"
local M = {}


-- What is said of a row besides its verdict.
local function remark(one)
  local parts = {}
  if one.reason then
    parts[1] = one.reason
  end
  if one.verdict ~= "no" then
    if #one.row.commands > 0 then
      parts[#parts + 1] = "runs " .. table.concat(one.row.commands, ", ")
    end
    if #one.row.upstreams > 0 then
      parts[#parts + 1] = "asks " .. table.concat(one.row.upstreams, ", ")
    end
  end
  return table.concat(parts, "; ")
end


-- The verdict of each row.
local function judge(client)
  local list = {}
  for i, row in ipairs(reach.rows()) do
    local verdict, reason = reach.ask(row, client)
    list[i] = { row = row, verdict = verdict, reason = reason }
  end
  return list
end


-- The commands that the client can come to.
local function commands_of(list)
  local names, seen = {}, {}
  for _, one in ipairs(list) do
    for _, name in ipairs(one.verdict ~= "no" and one.row.commands or {}) do
      if not seen[name] then
        names[#names + 1], seen[name] = name, true
      end
    end
  end
  table.sort(names)
  return names
end


local function print_text(client, list)
  core.print(("%s: %s"):format(client.name, client.title))
  if client.note then
    core.print("note: " .. client.note)
  end
  if client.refused then
    core.print((client.accepted and "not everywhere: " or "refused: ")
      .. client.refused)
  end
  local rows = {}
  for i, one in ipairs(list) do
    rows[i] = { "  " .. one.verdict, one.row.what, one.row.at, remark(one) }
  end
  reach.print_table(rows)
  local commands = commands_of(list)
  core.print("commands: " .. (#commands > 0 and table.concat(commands, ", ")
    or "none"))
end


local function print_csv(client, list)
  local rows = { { "certificate", "route", "at", "verdict", "reason",
    "commands", "upstreams" } }
  for _, one in ipairs(list) do
    rows[#rows + 1] = { client.name, one.row.what, one.row.at, one.verdict,
      one.reason or "", table.concat(one.row.commands, " "),
      table.concat(one.row.upstreams, " ") }
  end
  reach.print_csv(rows)
end


local function print_json(client, list)
  local routes = {}
  for i, one in ipairs(list) do
    routes[i] = {
      route = one.row.what, at = one.row.at, verdict = one.verdict,
      reason = one.reason, commands = core.array(one.row.commands),
      upstreams = core.array(one.row.upstreams),
    }
  end
  core.print(core.encode {
    certificate = client.name, identity = client.title,
    accepted = client.accepted, refused = client.refused, note = client.note,
    routes = core.array(routes), commands = core.array(commands_of(list)),
  })
end

local PRINTERS <const> = { table = print_text, csv = print_csv,
  json = print_json }


--- The command `gateway whoami`.
M.main = tool.main {
  name = "whoami", operands = "CERT.pem|cn=alice,ou=ops", most = 1,
  help = "Says which routes, tunnels and commands a certificate may use: each "
    .. "route's conditions are asked for real, its inputs are not known, so "
    .. "what a check hook decides is `maybe`. Exit code 1: no listener would "
    .. "let it in.",
  options = {
    { "policy", "FILE", "the policy", default = "scripts/gateway.lua" },
    { "format", "table|csv|json", "how it is told", default = "table" },
  },
  examples = {
    "gateway whoami certs/alice.crt",
    "gateway whoami --format csv cn=bob,ou=guests",
  },
  run = function(operands, opts)
    local printer = PRINTERS[opts.format]
    if not printer then
      return nil, ("--format %s: write table, csv or json"):format(opts.format)
    elseif not operands[1] then
      return nil, "say who: a certificate, or cn=alice,ou=ops"
    end
    if not tool.load_policy("whoami", opts.policy) then
      return 1
    end
    local client, message = reach.client(operands[1])
    if not client then
      return nil, message
    end
    printer(client, judge(client))
    return client.accepted and 0 or 1
  end,
}


return M
