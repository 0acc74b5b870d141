--- Audit rules about hooks: what their source says that no schema shows.

local config <const> = require "gateway.audit_config"
local core <const> = require "gateway.core"
local finding <const> = require "gateway.finding"
local flow <const> = require "gateway.flow"
local luasource <const> = require "gateway.luasource"
local policy <const> = require "gateway.policy"
local shape <const> = require "gateway.shape"
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

local function calls(node, name)
  return node.kind == "call" and node.func.kind == "name"
    and node.func.name == name
end


-- May a block refuse by an error?
local function may_raise(body)
  local found = false
  luasource.walk(body, function(node)
    found = found or calls(node, "error") or calls(node, "assert")
  end)
  return found
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
  elseif last.kind == "give" or calls(last, "error") then
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


-- Do two expressions say the same constant?
local function equal(a, b)
  return a.value ~= nil and a.kind == b.kind and a.value == b.value
    and (a.kind == "number" or a.kind == "text" or a.kind == "constant")
end


-- Is it the parameter that is always there, compared with nil?
local function compares_with_nil(node, params)
  return node.left.kind == "name" and node.left.name == params[1]
    and node.right.kind == "constant" and node.right.value == "nil"
end


-- Is an expression surely true, or surely false? Nil: it cannot be told.
local function truth(node, params)
  if node.kind == "constant" then
    return node.value == "true"
  elseif node.kind == "unary" and node.op == "not" then
    local inner = truth(node.value, params)
    return inner == false or inner == nil and nil
  elseif node.kind ~= "binary" then
    return nil
  end
  local same = equal(node.left, node.right)
  if node.op == "==" or node.op == "~=" then
    if same or compares_with_nil(node, params) then
      return (node.op == "==") == same
    end
    return nil
  end
  local left, right = truth(node.left, params), truth(node.right, params)
  if node.op == "or" then
    return left or right or left == false and right
  end
  return node.op == "and" and left and right or nil
end

-- Methods of texts that give no boolean.
local TEXTS <const> = { find = true, match = true, sub = true, gsub = true,
  len = true, lower = true, upper = true, byte = true, format = true,
  rep = true, gmatch = true }


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
    or kind == "number" or kind == "table" or kind == "func"
    or kind == "method" and TEXTS[node.name] then
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
    only_true = only_true and first and truth(first, node.params)
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
  elseif what == "authorize" and only_true and returns > 0
    and not may_raise(node.body) then
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


-- ---- hooks of routes -------------------------------------------------------

-- Of functions that share their lines, those that hold none of the others: one
-- that is made by another, on the same line, is the hook.
local function innermost(nodes)
  local outer, list = {}, {}
  for _, node in ipairs(nodes) do
    luasource.walk(node.body, function(inner)
      for _, other in ipairs(nodes) do
        outer[node] = outer[node] or inner == other
      end
    end)
  end
  for _, node in ipairs(nodes) do
    list[#list + 1] = not outer[node] and node or nil
  end
  return list
end


-- The hooks that decide, wherever they were written: as a field that is set
-- later, in a module, by a function that makes them.
local function check_deciding(audit, flows, book, route)
  local function check(number, what)
    local file, first, last = core.test_span(book.hooks[number])
    local nodes = flows[file] and innermost(flows[file]:find(first, last)) or {}
    if #nodes == 1 then
      check_decision(audit, file, nodes[1], what)
    end
  end
  for _, who in ipairs(route.authorize) do
    if who.text:find("^a function at ") then
      check(who.hook, "authorize")
    end
  end
  for _, number in ipairs(route.check) do
    check(number, "check")
  end
end


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
  for _, number in ipairs(route.check) do
    follow(audit, flows, book, number, request, into)
  end
  for _, list in ipairs { route.respond, route.log } do
    for _, number in ipairs(list) do
      follow(audit, flows, book, number, { "request", "response" }, into)
    end
  end
  if into.gave_up then
    audit:add("hook.unseen", route.at, policy.title(route) .. ": its hooks do"
      .. " too much to be followed to the end")
  end
  return into
end


-- Numbers, and one of some values, need no encoding.
local function is_bound(schema)
  local kind = type(schema) == "table" and schema.type
  return type(schema) == "table" and shape.is_narrow(schema)
    or kind == "integer" or kind == "number" or kind == "boolean"
end


local function check_path(audit, sink)
  for input in pairs(sink.inputs) do
    if input.where == "identity" then
      audit:add("hook.built-path", sink.at, ("a path is put together with"
        .. " identity.%s, which may hold what its CA lets it"):format(
        input.name))
    elseif not is_bound(input.schema) then
      audit:add("hook.built-path", sink.at,
        "a path is put together with a client's text")
    end
  end
end


local function check_sinks(audit, into)
  for _, sink in ipairs(into.sinks) do
    if sink.kind == "raw" then
      audit:add("hook.raw", sink.at, "request.raw is read")
    elseif sink.kind == "path" and sink.glued then
      check_path(audit, sink)
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
  local flows, begun, closures = {}, {}, {}
  local function get(file)
    local source = sources[file]
    if source and not begun[file] then
      begun[file] = true
      local folder = source.folder
      flows[file] = flow.new(file, source.body, function(module)
        local path = folder .. module:gsub("%.", "/")
        local other = get(path .. ".lua") or get(path .. "/init.lua")
        return other and other.value
      end, closures)
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
    for _, at in ipairs(flows[file].bare_groups) do
      audit:add("identity.group", at, "gateway.group without authorize")
    end
    if flows[file].gave_up then
      audit:add("hook.unseen", file .. ":1", "what this file does at its top"
        .. " level is too much to follow")
    end
  end
  for _, route in ipairs(book.routes) do
    local into = follow_route(audit, flows, book, route)
    found[route] = into
    check_deciding(audit, flows, book, route)
    check_sinks(audit, into)
    check_commands(audit, route, into)
    check_forwards(audit, route, into)
  end
  return found
end


return M
