--- Who reaches what: routes and commands by certificate.
--
-- The conditions of each route are asked for real, by a request that stands for
-- all of the route's: its inputs are not known. So the verdict of a route is
--
--   yes    authorize holds, and nothing but the input is asked after it
--   maybe  authorize holds, and check hooks decide
--   no     authorize refuses
--   error  a hook failed
--
-- A policy must be loaded (core.test_policy).

local core <const> = require "gateway.core"
local identity <const> = require "gateway.identity"
local policy <const> = require "gateway.policy"
local strings <const> = require "gateway.strings"
local stub <const> = require "gateway.stub"
local who <const> = require "gateway.who"
local M = {}

-- What no literal segment of a policy should be.
local PROBE <const> = "gateway-probe"
local MAX_VALUES <const> = 10000  -- looked at behind one handler


-- ---- what a handler can run ------------------------------------------------

-- Notes commands and upstreams among what a value leads to. The library's own
-- functions and tables lead everywhere, so they are passed over.
local function walk(value, found)
  local kind = type(value)
  if kind ~= "table" and kind ~= "function" or found.seen[value]
    or found.left == 0 then
    return
  end
  found.seen[value] = true
  found.left = found.left - 1
  if kind == "function" then
    local at, values = core.test_function(value)
    if at ~= "" and not core.built_in(at:match("^(.*):%d+$")) then
      for _, one in ipairs(values) do
        walk(one, found)
      end
    end
    return
  end
  local name = rawget(value, "name")
  local index = rawget(value, "index")
  local command = index and policy.all("commands")[index + 1]
  local upstream = rawget(value, "forward")
  if command and command.name == name then
    found.commands[name] = true
  elseif type(upstream) == "table" and upstream.upstream then
    found.upstreams[policy.all("upstreams")[upstream.upstream + 1].name] = true
  else
    for key, one in next, value do
      walk(key, found)
      walk(one, found)
    end
  end
end


local function sorted(set)
  local list = {}
  for name in pairs(set) do
    list[#list + 1] = name
  end
  table.sort(list)
  return list
end


--- The commands and upstreams that a route leads to: of a handler in Lua, those
-- that are within reach of its functions.
-- @return list of names, list of names
function M.uses(route)
  local found = { seen = {}, left = MAX_VALUES, commands = {}, upstreams = {} }
  if route.handle.upstream then
    local name = policy.all("upstreams")[route.handle.upstream + 1].name
    found.upstreams[name] = true
  else
    walk(policy.hook_of(route.handle.hook), found)
  end
  for _, list in ipairs { route.check, route.respond, route.log } do
    for _, number in ipairs(list) do
      walk(policy.hook_of(number), found)
    end
  end
  return sorted(found.commands), sorted(found.upstreams)
end


-- ---- the rows --------------------------------------------------------------

-- "POST /v1/orders": what, where, on which condition.
local function row_of_route(number, route)
  local texts = {}
  for i, item in ipairs(route.authorize) do
    texts[i] = item.text
  end
  local commands, upstreams = M.uses(route)
  return {
    what = policy.title(route), at = route.at, number = number, route = route,
    listener = route.listener, host = route.host,
    who = table.concat(texts, " and "), checks = #route.check,
    commands = commands, upstreams = upstreams,
  }
end


local function row_of_tunnel(listener)
  local upstream = policy.all("upstreams")[listener.tcp.upstream + 1]
  return {
    what = "tcp " .. listener.name, at = listener.at, tunnel = listener.tcp,
    listener = listener.name, host = "",
    who = listener.tcp.authorize[1].text, checks = 0, commands = {},
    upstreams = { upstream.name },
  }
end


--- What the policy has to offer: its routes, and its tunnels.
-- @return list of { what =, at =, who =, host =, listener =, checks =,
--         commands =, upstreams = }
function M.rows()
  local rows = {}
  for i, route in ipairs(policy.all("routes")) do
    rows[i] = row_of_route(i, route)
  end
  for _, listener in ipairs(policy.all("listeners")) do
    if listener.tcp then
      rows[#rows + 1] = row_of_tunnel(listener)
    end
  end
  return rows
end


-- ---- the verdicts ----------------------------------------------------------

--- Whom a word names, as each listener sees it.
-- @return { name =, title =, clients = { [listener's name] = as of who.of },
--         accepted = one of the listeners would let it in }; or nil and why
function M.client(word)
  local client = { name = word, clients = {}, accepted = false }
  for i, listener in ipairs(policy.all("listeners")) do
    local one, message = who.of(word, i)
    if not one then
      return nil, message
    end
    client.clients[listener.name] = one
    client.title = who.title(one.identity)
    client.accepted = client.accepted or not one.refused
    client.refused = client.refused or one.refused
    client.note = client.note or one.note
  end
  return client
end


-- The client as the listener of a row sees it; where any will do, as one that
-- lets it in.
local function seen_by(client, row)
  if row.listener ~= "" then
    return client.clients[row.listener]
  end
  local refused
  for _, listener in ipairs(policy.all("listeners")) do
    local one = client.clients[listener.name]
    if not listener.tcp and not one.refused then
      return one, listener.name
    end
    refused = refused or not listener.tcp and one
  end
  return refused
end


-- A request that stands for all of a route's.
local function ask_route(row, seen, listener)
  local route = row.route
  local method = route.methods[1]
  local result = core.test_request(seen.identity, {
    method = method == "*" and "GET" or method,
    target = route.path:gsub("{[^}]*}", PROBE), ask = true,
    headers = { host = route.host ~= "" and route.host or PROBE },
    listener = listener, stub = stub.all(),
  })
  if result.number ~= row.number then
    return "error", "no request of ours reaches this route: another one has"
      .. " its place"
  elseif result.stage == "authorize" then
    return result.status == 500 and "error" or "no", result.reason
  end
  return row.checks > 0 and "maybe" or "yes",
    row.checks > 0 and "check hooks decide" or nil
end


local function ask_tunnel(row, seen)
  for _, item in ipairs(row.tunnel.authorize) do
    local func = policy.hook_of(item.hook)
    local condition = identity.condition_of(func)
    local ran, ok, reason = pcall(condition and condition.test or func,
      seen.identity)
    if not ran then
      return "error", tostring(ok)
    elseif ok ~= true then
      return "no", reason
    end
  end
  return "yes"
end


--- May a client use a row?
-- @return "yes", "maybe", "no" or "error"; and why
function M.ask(row, client)
  local seen, listener = seen_by(client, row)
  if not seen or seen.refused then
    return "no", "not let in"
  end
  local verdict, reason
  if row.tunnel then
    verdict, reason = ask_tunnel(row, seen)
  else
    verdict, reason = ask_route(row, seen, listener or row.listener)
  end
  return verdict, reason and strings.first_line(reason)
end


-- ---- tables ----------------------------------------------------------------

--- Prints rows of cells under each other; the last column is as long as it is.
function M.print_table(rows)
  local width = {}
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row) do
      width[i] = math.max(width[i] or 0, utf8.len(cell) or #cell)
    end
  end
  for _, row in ipairs(rows) do
    local cells = {}
    for i, cell in ipairs(row) do
      cells[i] = i == #row and cell
        or cell .. (" "):rep(width[i] - (utf8.len(cell) or #cell))
    end
    core.print((table.concat(cells, "  "):gsub(" +$", "")))
  end
end


-- A cell of CSV (RFC 4180). What a spreadsheet would take for a formula is not
-- left at its beginning.
local function csv_cell(value)
  local text = tostring(value)
  if text:find("^[=+@\t\r-]") then
    text = "'" .. text
  end
  if text:find('[",\r\n]') then
    text = '"' .. text:gsub('"', '""') .. '"'
  end
  return text
end


--- Prints rows of cells as CSV.
function M.print_csv(rows)
  for _, row in ipairs(rows) do
    local cells = {}
    for i, cell in ipairs(row) do
      cells[i] = csv_cell(cell)
    end
    core.print(table.concat(cells, ","))
  end
end


return M
