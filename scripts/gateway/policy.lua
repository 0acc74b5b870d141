--- The book of declarations: what a policy has said so far.
--
-- `gateway.listen`, `gateway.get` and the rest write here while the policy
-- runs; finish() closes the book and hands the C side the plain configuration
-- as JSON, and the functions ("hooks") that the configuration names by number.

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local scan <const> = require "gateway.scan"
local M = {}

local BODY_DEFAULT <const> = 1048576

local book
local default_process  -- where gateway.process is not declared


--- Forgets everything: `gateway test` reads several policies in one state.
function M.reset()
  book = {
    sealed = false,
    process = nil, process_at = nil,
    env = {}, cas = {}, listeners = {}, admin = {}, upstreams = {},
    commands = {}, routes = {}, warnings = {}, files = {},
    hooks = {}, hook_numbers = {}, pure = {},
  }
end

M.reset()


--- Runs a function with an empty book, then opens the old one again: how the
-- tests of this library try declarations.
-- @return what pcall(func) returns
function M.aside(func)
  local kept = book
  M.reset()
  local ok, result = pcall(func)
  book = kept
  return ok, result
end


--- All that has been declared, for tools that look at a policy.
function M.declared()
  return book
end


--- Opens a declaration: refuses it once the policy has loaded.
-- @return "file:line" of the declaration
function M.declare(what)
  local at = options.where()
  if book.sealed then
    options.fail(at, what, "belongs at the top of the policy, not in a hook:"
      .. " nothing can be declared once it has loaded")
  end
  local file = at:match("^(.*):%d+$")
  if file then
    book.files[file] = true
  end
  return at
end


--- Adds an item to one of the book's lists.
-- @param list  "listeners" "admin" "upstreams" "commands" or "routes"
-- @return its 0-based index, as the configuration counts
function M.add(list, item)
  local items = book[list]
  items[#items + 1] = item
  return #items - 1
end


--- The item of that name in a list, or nil.
function M.find(list, name)
  for _, item in ipairs(book[list]) do
    if item.name == name then
      return item
    end
  end
  return nil
end


--- A list of declarations, for the tools: read, never written.
-- @param list  as for add()
function M.all(list)
  return book[list]
end


--- Does a route take a method? GET answers HEAD, too.
function M.takes(route, method)
  for _, one in ipairs(route.methods) do
    if one == "*" or one == method or one == "GET" and method == "HEAD" then
      return true
    end
  end
  return false
end


--- "GET, PUT /files/{path...}": a route in a word.
function M.title(route)
  local methods = table.concat(route.methods, ", ")
  return (methods == "*" and "any" or methods) .. " " .. route.path
end


--- The function that the configuration calls by that number.
function M.hook_of(number)
  return book.hooks[number]
end


--- A table whose keys are the names in a list.
function M.names(list)
  local names = {}
  for _, item in ipairs(book[list]) do
    names[item.name] = true
  end
  return names
end


--- Refuses a second item of one name.
function M.unique(at, what, list, name)
  local other = M.find(list, name)
  if other then
    options.fail(at, what, ("the name %q is taken by %s"):format(
      name, other.at))
  end
end


--- Keeps a function for the C side.
-- @param pure  true where it depends on the identity alone and never waits:
--              then its verdict is kept with the connection
-- @return the number by which the configuration calls it
function M.hook(func, pure)
  local number = book.hook_numbers[func]
  if not number then
    number = #book.hooks + 1
    book.hooks[number] = func
    book.hook_numbers[func] = number
  end
  if pure then
    book.pure[number] = true
  end
  return number
end


--- What gateway.process says of the control socket: "", "off", "unix:/path".
function M.control()
  return (book.process or default_process).control
end


--- A remark that `gateway check` prints; it stops nothing.
function M.warn(at, text)
  book.warnings[#book.warnings + 1] = { at = at, text = text }
end


--- What counts where gateway.process is not declared: its defaults.
function M.set_default_process(process)
  default_process = process
end


--- Remembers the one gateway.process.
function M.set_process(at, process)
  if book.process then
    options.fail(at, "gateway.process", "was declared already, at "
      .. book.process_at)
  end
  book.process, book.process_at = process, at
end


--- Remembers the one gateway.shadow.
function M.set_shadow(at, shadow)
  if book.shadow then
    options.fail(at, "gateway.shadow", "was declared already, at "
      .. book.shadow.at)
  end
  book.shadow = shadow
end


--- Remembers the one gateway.jobs.
-- @param path  where clients ask about their jobs
function M.set_jobs(at, path, jobs)
  if book.jobs then
    options.fail(at, "gateway.jobs", "was declared already, at "
      .. book.jobs_at)
  end
  book.jobs, book.jobs_path, book.jobs_at = jobs, path, at
end


--- Where gateway.jobs answers; nil where it was not declared.
function M.jobs_path()
  return book.jobs_path
end


--- Remembers a variable's name, so that the workers get it too.
function M.ask_env(name)
  for _, known in ipairs(book.env) do
    if known == name then
      return
    end
  end
  book.env[#book.env + 1] = name
end


--- ask_ca(file): the CAs in it will be asked for.
function M.ask_ca(file)
  for _, known in ipairs(book.cas) do
    if known == file then
      return
    end
  end
  book.cas[#book.cas + 1] = file
end


-- A buffered body without a limit of its own takes the roomiest listener's.
local function fill_body_limits()
  local max = 0
  for _, listener in ipairs(book.listeners) do
    max = math.max(max, listener.limits.body_bytes)
  end
  for _, route in ipairs(book.routes) do
    route.body.max = route.body.max or (max > 0 and max or BODY_DEFAULT)
  end
end


-- Names that may be declared after their use, so they are looked up last.
local function check_names()
  local listeners = {}
  for _, listener in ipairs(book.listeners) do
    listeners[listener.name] = not listener.tcp or nil
  end
  for _, route in ipairs(book.routes) do
    if route.listener ~= "" and not listeners[route.listener] then
      options.fail(route.at, "listener", ("no listener is named %q%s"):format(
        route.listener, options.suggest(route.listener, listeners)))
    end
  end
end


local function check_complete(main)
  if #book.listeners == 0 then
    options.fail(main .. ":1", "policy", "no listener is declared: add"
      .. ' gateway.listen { address = "127.0.0.1:8443", certificate = …,'
      .. " key = …, client_ca = … }")
  end
  for _, listener in ipairs(book.listeners) do
    if #book.routes == 0 and not listener.tcp then
      M.warn(listener.at, "no route is declared: every request gets 404")
      break
    end
  end
end


-- Warnings in the order of the policy's lines.
local function sorted_warnings()
  local function place(warning)
    local file, line = warning.at:match("^(.*):(%d+)$")
    return file or warning.at, tonumber(line) or 0
  end
  table.sort(book.warnings, function(a, b)
    local a_file, a_line = place(a)
    local b_file, b_line = place(b)
    if a_file ~= b_file then
      return a_file < b_file
    end
    if a_line ~= b_line then
      return a_line < b_line
    end
    return a.text < b.text
  end)
  return core.array(book.warnings)
end


--- True once the policy has been read: what is made now is made by a hook.
function M.sealed()
  return book.sealed == true
end


--- Closes the book. Called by the C side once, after the policy has run.
-- @param main  the policy's script name
-- @return the plain configuration as JSON text
-- @return the list of hooks, which the configuration calls by number
-- @return a table: [number] = true for hooks that are pure in the identity
function M.finish(main)
  check_complete(main)
  check_names()
  fill_body_limits()
  scan.check(main, book.files)
  book.sealed = true
  local json = core.encode {
    process = book.process or default_process,
    env = core.array(book.env),
    cas = core.array(book.cas),
    listeners = core.array(book.listeners),
    admin = core.array(book.admin),
    upstreams = core.array(book.upstreams),
    commands = core.array(book.commands),
    jobs = book.jobs,
    shadow = book.shadow,
    routes = core.array(book.routes),
    warnings = sorted_warnings(),
  }
  return json, book.hooks, book.pure
end


return M
