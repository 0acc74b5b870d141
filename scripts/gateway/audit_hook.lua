--- Audit rules about hooks: what their source says that no schema shows.

local config <const> = require "gateway.audit_config"
local core <const> = require "gateway.core"
local finding <const> = require "gateway.finding"
local flow <const> = require "gateway.flow"
local luasource <const> = require "gateway.luasource"
local policy <const> = require "gateway.policy"
local M = {}

finding.rules {
  ["hook.may-return-nothing"] = { "medium", "a hook that decides may end"
    .. " without a decision: the request is then denied with 500",
    "end it with return false, \"why not\"" },
  ["hook.not-boolean"] = { "medium", "a hook that decides returns something"
    .. " else than true or false: the request is then denied with 500",
    "compare: return x ~= nil, or identity:has(…)" },
  ["hook.always-true"] = { "medium", "an authorize function lets everybody in",
    "write a condition, or id.anyone, which says so" },
  ["hook.raw"] = { "low", "a hook reads what no schema has checked",
    "declare it in validate, or open it with :check(schema) at once" },
  ["hook.built-path"] = { "low", "a hook builds a path of an upstream from a"
    .. " client's text", "use app:to \"/x/{name}\", whose captures are encoded,"
    .. " or an enum" },
  ["hook.unseen"] = { "info", "a hook could not be followed through the source",
    "declare routes at the top level, or in functions that are called there" },
  ["identity.command"] = { "high", "every client of the CA can run a program",
    "say in authorize who needs it, such as id.spiffe or id.ou" },
  ["identity.group"] = { "low", "a group says nothing about who may enter, so a"
    .. " route in it stands by its own authorize alone",
    "give the group an authorize" },
}


-- ---- hooks that decide -----------------------------------------------------

local function calls_error(node)
  return node.kind == "call" and node.func.kind == "name"
    and node.func.name == "error"
end


local function has_leave(body)
  local found = false
  luasource.walk(body, function(node)
    found = found or node.kind == "leave" or node.kind == "jump"
  end)
  return found
end


-- Does a block always return, or raise an error?
local function always_ends(body)
  local last = body[#body]
  if not last then
    return false
  elseif last.kind == "give" or calls_error(last) then
    return true
  elseif last.kind == "block" then
    return always_ends(last.body)
  elseif last.kind == "loop" then
    return last.cond.value == "true" and not has_leave(last.body)
      or last.once and always_ends(last.body) or false
  elseif last.kind == "choice" then
    for _, branch in ipairs(last.branches) do
      if not always_ends(branch.body) then
        return false
      end
    end
    return last.otherwise ~= nil and always_ends(last.otherwise)
  end
  return false
end


-- Is an expression surely no boolean, or surely one? Nil: it cannot be told.
local function is_boolean(node)
  local kind = node.kind
  if kind == "constant" then
    return node.value ~= "nil"
  elseif kind == "unary" then
    return node.op == "not"
  elseif kind == "binary" and node.op:find("^[<>=~]=?$") and node.op ~= "~" then
    return true
  elseif kind == "binary" and (node.op == "and" or node.op == "or") then
    local left, right = is_boolean(node.left), is_boolean(node.right)
    if left == false and node.op == "and" or right == false then
      return false
    end
    return left and right or nil
  elseif kind == "index" or kind == "binary" or kind == "text"
    or kind == "number" or kind == "table" or kind == "func" then
    return false
  end
  return nil
end


-- Each return of a function, not those of functions within it.
local function each_return(body, each)
  for _, node in ipairs(body) do
    if node.kind == "give" then
      each(node)
    end
    each_return(node.body or {}, each)
    for _, branch in ipairs(node.branches or {}) do
      each_return(branch.body, each)
    end
    each_return(node.otherwise or {}, each)
  end
end


local function check_decision(audit, file, node, what)
  local only_true, returns = true, 0
  each_return(node.body, function(give)
    returns = returns + 1
    local first = give.values[1]
    only_true = only_true and first and first.kind == "constant"
      and first.value == "true"
    local at = ("%s:%d"):format(file, give.line)
    if not first or first.value == "nil" and first.kind == "constant" then
      audit:add("hook.may-return-nothing", at, what .. " returns nothing here")
    elseif is_boolean(first) == false then
      audit:add("hook.not-boolean", at, what
        .. " returns what need not be true or false")
    end
  end)
  if not always_ends(node.body) then
    audit:add("hook.may-return-nothing", ("%s:%d"):format(file, node.line), what
      .. " may reach its end without a return")
  elseif what == "authorize" and only_true and returns > 0 then
    audit:add("hook.always-true", ("%s:%d"):format(file, node.line),
      "authorize returns true, whoever asks")
  end
end

local DECIDING <const> = { authorize = true, check = true }


-- The functions that an expression names or is.
local function functions_in(node, named, each)
  if node.kind == "func" then
    each(node)
  elseif node.kind == "name" and named[node.name] then
    each(named[node.name])
  elseif node.kind == "call" then
    for _, arg in ipairs(node.args) do
      functions_in(arg, named, each)
    end
  elseif node.kind == "table" then
    for _, item in ipairs(node.items) do
      functions_in(item.value, named, each)
    end
  end
end


local function check_decisions(audit, file, body)
  local named = {}
  luasource.walk(body, function(node)
    if node.kind == "locals" and node.values[1]
      and node.values[1].kind == "func" then
      named[node.names[1]] = node.values[1]
    end
  end)
  luasource.walk(body, function(node)
    for _, item in ipairs(node.kind == "table" and node.items or {}) do
      local word = item.key and item.key.kind == "text" and item.key.value
      if DECIDING[word] then
        functions_in(item.value, named, function(func)
          check_decision(audit, file, func, word)
        end)
      end
    end
  end)
end


-- gateway.group("/v1", {}) and v1:group("/x").
local function check_groups(audit, file, body)
  luasource.walk(body, function(node)
    local is_group = node.kind == "call" and node.func.kind == "index"
      and node.func.object.kind == "name" and node.func.object.name == "gateway"
      and node.func.key.value == "group"
    local opts = is_group and node.args[2]
    local has = false
    for _, item in ipairs(opts and opts.kind == "table" and opts.items or {}) do
      local word = item.key and item.key.value
      has = has or word == "authorize" or word == "client_ca"
    end
    if is_group and not has and (not opts or opts.kind == "table") then
      audit:add("identity.group", ("%s:%d"):format(file, node.line),
        "gateway.group without authorize")
    end
  end)
end


-- ---- hooks of routes -------------------------------------------------------

local function follow(audit, flows, book, number, kinds, into)
  local func = book.hooks[number]
  local file, first, last = core.test_span(func)
  local file_flow = flows[file]
  local nodes = file_flow and file_flow:find(first, last) or {}
  for _, node in ipairs(nodes) do
    file_flow:follow(node, kinds, into)
  end
  if file_flow and #nodes == 0 then
    audit:add("hook.unseen", ("%s:%d"):format(file, first), "this hook could"
      .. " not be followed through the source")
  end
end

-- What the hooks of a route do with its inputs.
local function follow_route(audit, flows, book, route)
  local into = { config = route, inputs = {}, sinks = {}, commands = {} }
  local request = { "request", "identity" }
  if route.handle.hook then
    follow(audit, flows, book, route.handle.hook, request, into)
  end
  for _, list in ipairs { route.check, route.respond, route.log } do
    for _, number in ipairs(list) do
      follow(audit, flows, book, number, request, into)
    end
  end
  return into
end


local function check_sinks(audit, into)
  for _, sink in ipairs(into.sinks) do
    if sink.kind == "raw" then
      audit:add("hook.raw", sink.at, "request.raw is read")
    elseif sink.kind == "path" and sink.glued and next(sink.inputs) then
      audit:add("hook.built-path", sink.at,
        "a path is put together with a client's text")
    end
  end
end


local function check_commands(audit, route, into)
  for name in pairs(config.open(route) and into.commands or {}) do
    audit:add("identity.command", route.at, ("%s: anyone with a certificate can"
      .. " run %s"):format(policy.title(route), name))
  end
end


-- A handler that returns app or app:to(…).
local function check_forwards(audit, route, into)
  if config.open(route) and (into.forwards or into.fetches)
    and route.handle.kind == "lua" then
    audit:add("identity.anyone", route.at, ("%s: anyone with a certificate"
      .. " reaches an upstream, by a hook"):format(policy.title(route)))
  end
end


-- The flow of each file; a file that requires another is given what that one
-- returns.
local function flows_of(sources)
  local flows, begun = {}, {}
  local function get(file)
    local source = sources[file]
    if source and not begun[file] then
      begun[file] = true
      local folder = source.folder
      flows[file] = flow.new(file, source.body, function(module)
        local path = folder .. module:gsub("%.", "/")
        local other = get(path .. ".lua") or get(path .. "/init.lua")
        return other and other.value
      end)
    end
    return flows[file]
  end
  for file in pairs(sources) do
    get(file)
  end
  return flows
end


--- Applies the rules.
-- @param sources  [file] = { body =, folder = where its modules are }
-- @return [route] = { inputs =, sinks =, commands = }: what its hooks do
function M.check(audit, book, sources)
  local flows, found = flows_of(sources), {}
  for file, source in pairs(sources) do
    check_decisions(audit, file, source.body)
    check_groups(audit, file, source.body)
  end
  for _, route in ipairs(book.routes) do
    local into = follow_route(audit, flows, book, route)
    found[route] = into
    check_sinks(audit, into)
    check_commands(audit, route, into)
    check_forwards(audit, route, into)
  end
  return found
end


return M
