--- The command `gateway routes`: who may do what, route by route.

local core <const> = require "gateway.core"
local reach <const> = require "gateway.reach"
local tool <const> = require "gateway.tool"
local who <const> = require "gateway.who"
local M = {}


-- ---- without certificates: the conditions ----------------------------------

local function conditions_table(rows)
  local cells = {}
  for i, row in ipairs(rows) do
    cells[i] = { row.what, row.who .. (row.checks > 0 and ", and check" or ""),
      row.at }
  end
  reach.print_table(cells)
end


local function conditions_csv(rows)
  local cells = { { "route", "at", "who", "checks", "commands", "upstreams" } }
  for _, row in ipairs(rows) do
    cells[#cells + 1] = { row.what, row.at, row.who, row.checks,
      table.concat(row.commands, " "), table.concat(row.upstreams, " ") }
  end
  reach.print_csv(cells)
end


-- ---- with certificates: a matrix -------------------------------------------

-- The certificates that the words name; a folder is all that is in it.
local function read_clients(words, folders)
  local files = table.move(words, 1, #words, 1, {})
  for _, folder in ipairs(folders) do
    local found = who.files_in(folder)
    table.move(found, 1, #found, #files + 1, files)
  end
  local clients = {}
  for i, file in ipairs(files) do
    local client, message = reach.client(file)
    if client then
      clients[#clients + 1] = client
    elseif i <= #words then
      return nil, message:find("not a regular file", 1, true)
        and ("%s; of a folder: --identities %s"):format(message, file)
        or message
    else
      core.warn("gateway routes: left out: " .. message)
    end
  end
  if #clients == 0 and #folders > 0 then
    return nil, ("no certificate in %s"):format(table.concat(folders, ", "))
  end
  return clients
end


-- For each row the verdict for each client.
local function judge(rows, clients)
  for _, row in ipairs(rows) do
    row.verdicts = {}
    for i, client in ipairs(clients) do
      local verdict, reason = reach.ask(row, client)
      row.verdicts[i] = { verdict = verdict, reason = reason }
    end
  end
end


local function matrix_table(rows, clients)
  local head = { "" }
  for i, client in ipairs(clients) do
    head[i + 1] = ("%d"):format(i)
    core.print(("%d  %s: %s%s"):format(i, client.name, client.title,
      not client.accepted and " (no listener lets it in)" or ""))
  end
  core.print("")
  local cells = { head }
  for _, row in ipairs(rows) do
    local line = { row.what }
    for i, one in ipairs(row.verdicts) do
      line[i + 1] = one.verdict == "no" and "-" or one.verdict
    end
    cells[#cells + 1] = line
  end
  reach.print_table(cells)
end


local function matrix_csv(rows, clients)
  local head = { "route", "at", "who" }
  for i, client in ipairs(clients) do
    head[i + 3] = client.name
  end
  local cells = { head }
  for _, row in ipairs(rows) do
    local line = { row.what, row.at, row.who }
    for i, one in ipairs(row.verdicts) do
      line[i + 3] = one.verdict
    end
    cells[#cells + 1] = line
  end
  reach.print_csv(cells)
end


local function print_json(rows, clients)
  local routes = {}
  for i, row in ipairs(rows) do
    local verdicts = {}
    for j, one in ipairs(row.verdicts or {}) do
      verdicts[j] = { certificate = clients[j].name,
        identity = clients[j].title, verdict = one.verdict,
        reason = one.reason }
    end
    routes[i] = { route = row.what, at = row.at, who = row.who,
      checks = row.checks, commands = core.array(row.commands),
      upstreams = core.array(row.upstreams),
      verdicts = core.array(verdicts) }
  end
  core.print(core.encode { routes = core.array(routes) })
end

local CONDITIONS <const> = { table = conditions_table, csv = conditions_csv,
  json = print_json }
local MATRIX <const> = { table = matrix_table, csv = matrix_csv,
  json = print_json }


--- The command `gateway routes`.
M.main = tool.main {
  name = "routes", operands = "[CERT.pem|cn=alice,ou=ops ...]",
  help = "Who may do what: each route with its conditions; with certificates, "
    .. "the verdict for each of them (- is no; maybe: check hooks decide).",
  options = {
    { "policy", "FILE", "the policy", default = "scripts/gateway.lua" },
    { "identities", "DIR", "all certificates (*.crt, *.pem) of a folder; may "
      .. "be repeated", many = true },
    { "format", "table|csv|json", "how it is told", default = "table" },
  },
  examples = {
    "gateway routes",
    "gateway routes --identities certs",
    "gateway routes --format csv certs/alice.crt cn=bob",
  },
  run = function(operands, opts)
    if not MATRIX[opts.format] then
      return nil, ("--format %s: write table, csv or json"):format(opts.format)
    end
    if not tool.load_policy("routes", opts.policy) then
      return 1
    end
    local rows = reach.rows()
    local clients, wrong = read_clients(operands, opts.identities)
    if not clients then
      return nil, wrong
    elseif #clients == 0 then
      CONDITIONS[opts.format](rows, clients)
      return 0
    end
    judge(rows, clients)
    MATRIX[opts.format](rows, clients)
    return 0
  end,
}


return M
