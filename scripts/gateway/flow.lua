--- Where a client's input goes in a hook: followed through the source.
--
-- A hook's tree (luasource.lua) is evaluated with abstract values: the request,
-- its inputs, commands, upstreams, and "some value made of these inputs". Both
-- sides of every branch are taken, functions of the policy are followed into,
-- and what a function of a library makes of an input still counts as that
-- input. So what is reported may in truth be checked on the way; what is not
-- reported went through something that cannot be followed (a coroutine, a
-- metatable's __call, a field that is set in another request).

local M = {}

local MAX_CALLS <const> = 40   -- within each other
local MAX_TURNS <const> = 2    -- of one function within itself
local MAX_STEPS <const> = 200000
local MAX_OTHERS <const> = 64  -- values that one may be in place of another

-- Fields of a request that a schema has seen.
local PLACES <const> = { path = true, query = true, headers = true }
-- And those that none has.
local BARE <const> = { target = true, body = true }
local RUNS <const> = { run = true, stream = true, job = true }
local UNKNOWN <const> = { kind = "unknown", inputs = {} }

local Flow = {}
Flow.__index = Flow


local function value(kind, fields)
  fields = fields or {}
  fields.kind, fields.inputs = kind, fields.inputs or {}
  return fields
end


-- All inputs that are in a value, also inside a table.
local function inputs_of(from, into, depth)
  into, depth = into or {}, depth or 0
  for input in pairs(from.inputs) do
    into[input] = true
  end
  for _, field in pairs(from.fields and depth < 5 and from.fields or {}) do
    inputs_of(field, into, depth + 1)
  end
  return into
end


local function made_of(...)
  local inputs, glued = {}, false
  for _, part in ipairs { ... } do
    inputs_of(part, inputs)
    glued = glued or part.glued
  end
  return value("text", { inputs = inputs, glued = glued })
end


-- What a value may be: itself, and those that were joined to it.
local function each_of(one)
  return function(_, last)
    if last == nil then
      return one
    end
    return last.also
  end
end


local function may_be(one, kind)
  for other in each_of(one) do
    if other.kind == kind then
      return other
    end
  end
  return nil
end

-- Kinds of which it matters which one it is.
local DISTINCT <const> = { func = true, command = true, upstream = true,
  builtin = true, library = true, table = true }

local join


-- The fields that either of two tables has.
local function joined_fields(a, b)
  local fields = {}
  for _, from in ipairs { a, b } do
    for key, field in pairs(from) do
      fields[key] = join(fields[key], field)
    end
  end
  return fields
end


function join(a, b)
  if not a or a == UNKNOWN then
    return b
  elseif b == UNKNOWN or a == b then
    return a
  end
  local both = made_of(a, b)
  local joined = value(b.kind)
  for key, field in pairs(b) do
    joined[key] = field
  end
  joined.inputs, joined.glued = both.inputs, a.glued or b.glued
  joined.others = (a.others or 0) + 1 + (b.others or 0)
  if a.kind == "table" and b.kind == "table" then
    joined.fields = joined_fields(a.fields, b.fields)
    joined.any = a.any and b.any and join(a.any, b.any) or a.any or b.any
    joined.meta, joined.also = a.meta or b.meta, a.also or b.also
  elseif DISTINCT[a.kind] and joined.others < MAX_OTHERS and not b.also then
    joined.also = a
  end
  return joined
end


-- ---- names -----------------------------------------------------------------

local function scope(outer)
  return { names = {}, outer = outer }
end


local function find(env, name)
  while env do
    if env.names[name] then
      return env.names[name], env
    end
    env = env.outer
  end
  return nil
end


-- ---- inputs ----------------------------------------------------------------

-- The one object that stands for an input of the route.
function Flow:input(where, name, schema)
  local key = where .. "\0" .. name
  local inputs = self.route.inputs
  if not inputs[key] then
    inputs[key] = { where = where, name = name, schema = schema }
  end
  return value("input", { inputs = { [inputs[key]] = true } })
end


-- A member of a JSON document.
function Flow:member(object, key)
  local schema = object.schema
  local inner
  if type(schema) == "table" and type(schema.properties) == "table" and key then
    inner = schema.properties[key]
  end
  local name = object.name .. (key and "." .. key or "[]")
  if inner == nil and type(schema) == "table" then
    inner = key == nil and schema.items or nil
  end
  local got = self:input("json", name, inner == nil and true or inner)
  got.kind, got.schema, got.name = "json", inner, name
  return got
end


-- request.path, .query or .headers: as a whole, all that is declared in it.
function Flow:place(where)
  local config = self.route.config
  local got = value("place", { where = where })
  local rows = config and (where == "path" and config.path_schemas
    or config[where]) or {}
  for name, row in pairs(rows) do
    local schema = row
    if where ~= "path" then
      schema = row.schema
    end
    inputs_of(self:input(where, name, schema), got.inputs)
  end
  return got
end


function Flow:field_of_request(name, line)
  local route = self.route
  if PLACES[name] then
    return self:place(name)
  elseif name == "json" then
    local schema = route.config and route.config.body.schema
    local got = self:input("json", "body", schema)
    got.kind, got.schema, got.name = "json", schema, "body"
    return got
  elseif name == "raw" then
    self:sink("raw", UNKNOWN, line)
    return value("raw")
  elseif BARE[name] then
    return self:input(name, name, true)
  end
  return UNKNOWN
end


local function schema_of(route, where, name)
  local config = route.config
  if not config then
    return nil
  elseif where == "path" then
    return config.path_schemas[name]
  end
  local row = config[where][name]
  return row and row.schema
end


-- What a table may hold under a key that is not known: any of its values.
local function any_field(object)
  local any = object.any
  for _, field in pairs(object.fields) do
    any = join(any, field)
  end
  return any and join(made_of(object), any) or made_of(object)
end


-- The field of a table, or of what its metatable leads to; or nil.
local function field_of(object, key, depth)
  depth = depth or 0
  if object.fields and object.fields[key] then
    return object.fields[key]
  end
  local meta = object.meta and object.meta.fields
  local class = meta and meta.__index
  return class and depth < 8 and field_of(class, key, depth + 1) or nil
end


function Flow:index(object, key, line)
  if object.kind == "request" then
    return key and self:field_of_request(key, line) or UNKNOWN
  elseif object.kind == "place" then
    local name = key and object.where == "headers" and key:lower() or key
    return name and self:input(object.where, name,
      schema_of(self.route, object.where, name)) or made_of(object)
  elseif object.kind == "json" then
    return self:member(object, key)
  elseif object.kind == "table" then
    return key and field_of(object, key) or any_field(object)
  elseif object.kind == "gateway" then
    return value("builtin", { name = key })
  elseif object.kind == "library" then
    return value("library", { name = object.name .. "." .. (key or "?") })
  elseif object.kind == "identity" then
    return key and self:input("identity", key, true) or UNKNOWN
  elseif object.kind == "response" and key == "headers" then
    return value("response headers")
  elseif object.kind == "raw" then
    return object
  end
  return made_of(object)
end


-- Sets a field of a table; `key` is nil where it is not known.
local function put(object, key, got)
  if object.kind ~= "table" then
    return
  elseif key then
    object.fields[key] = join(object.fields[key], got)
  else
    object.any = join(object.any, got)
    inputs_of(got, object.inputs)
  end
end


-- ---- where inputs arrive ---------------------------------------------------

function Flow:sink(kind, from, line, fields)
  local sink = fields or {}
  sink.kind, sink.inputs = kind, inputs_of(from)
  sink.glued = from.glued or false
  sink.at = ("%s:%d"):format(self.file, line)
  table.insert(self.route.sinks, sink)
end


local function text_field(from, name)
  return from.kind == "table" and from.fields[name] or nil
end


-- The fields of a request to an upstream, or of a response.
function Flow:fields(from, line, kinds)
  for name, kind in pairs(kinds) do
    local field = text_field(from, name)
    if field then
      self:sink(kind, field, line)
    end
  end
end


function Flow:run(command, args, line)
  if args[1] and not args[1].fields then
    self:sink("slot", args[1], line, { command = command.name, slot = "?" })
  end
  for slot, field in pairs(args[1] and args[1].fields or {}) do
    self:sink("slot", field, line, { command = command.name, slot = slot })
  end
  local stdin = args[2] and text_field(args[2], "stdin")
  if stdin then
    self:sink("stdin", stdin, line, { command = command.name })
  end
  self.route.commands[command.name] = true
  return value("result")
end

local FETCHED <const> = {
  path = "path", query = "query", headers = "header", body = "body",
}
local SET <const> = { set = "header", respond_set = "response header" }


function Flow:ask(spec, line)
  self.route.fetches = true
  if spec and spec.kind == "table" then
    self:fields(spec, line, FETCHED)
  elseif spec then
    self:sink("path", spec, line)
  end
  return value("result")
end

local BUILTINS <const> = {
  fetch = function(self, args, line)
    return self:ask(args[2], line)
  end,
  log = function(self, args, line)
    self:sink("log", made_of(table.unpack(args)), line)
    return UNKNOWN
  end,
  response = function(self, args, line)
    self:fields(args[1] or UNKNOWN, line, { body = "response body",
      headers = "response header", type = "response header" })
    return UNKNOWN
  end,
  command = function(_, args)
    local name = args[1] and text_field(args[1], "name")
    return value("command", { name = name and name.text or "?",
      fields = { slots = UNKNOWN } })
  end,
  upstream = function()
    return value("upstream")
  end,
  group = function(self, args, line)
    local opts = args[2]
    if not opts or opts.kind == "table" and not opts.any
      and not opts.fields.authorize and not opts.fields.client_ca then
      table.insert(self.bare_groups, ("%s:%d"):format(self.file, line))
    end
    return UNKNOWN
  end,
}

for _, name in ipairs { "text", "json", "problem" } do
  BUILTINS[name] = function(self, args, line)
    self:sink("response body", made_of(args[1] or UNKNOWN, args[2] or UNKNOWN),
      line)
    if args[3] then
      self:sink("response header", args[3], line)
    end
    return UNKNOWN
  end
end


local function glue(_, args)
  local made = made_of(table.unpack(args))
  made.glued = true
  return made
end


local function same(_, args)
  return args[1]
end


local function insert(_, args)
  put(args[1] or UNKNOWN, nil, args[#args])
  return UNKNOWN
end

-- Functions of Lua that do more than make a value of their arguments.
local LIBRARY <const> = {
  ["string.format"] = glue, ["table.concat"] = glue, ["string.rep"] = glue,
  ipairs = same, pairs = same, assert = same, ["table.insert"] = insert,
  rawset = function(_, args)
    put(args[1] or UNKNOWN, args[2] and args[2].text, args[3] or UNKNOWN)
    return args[1]
  end,
  rawget = function(self, args, line)
    return self:index(args[1] or UNKNOWN, args[2] and args[2].text, line)
  end,
  setmetatable = function(_, args)
    local object, meta = args[1] or UNKNOWN, args[2]
    if object.kind == "table" then
      object.meta = meta
    end
    return object
  end,
  ["table.unpack"] = function(_, args)
    local object = args[1] or UNKNOWN
    return object.kind == "table" and any_field(object) or made_of(object)
  end,
  ["table.move"] = function(_, args)
    local from, to = args[1] or UNKNOWN, args[5] or args[1] or UNKNOWN
    put(to, nil, from.kind == "table" and any_field(from) or made_of(from))
    return to
  end,
}


-- ---- expressions -----------------------------------------------------------

local EVAL <const> = {}


function Flow:eval(node, env)
  self.steps = self.steps + 1
  local eval = EVAL[node.kind]
  if self.steps > MAX_STEPS then
    self.route.gave_up = true
    return UNKNOWN
  elseif not eval then
    return UNKNOWN
  end
  return eval(self, node, env) or UNKNOWN
end


local MANY <const> = { call = true, method = true, vararg = true }


-- The values of a list; `rest` is what those after the last may be.
function Flow:eval_all(nodes, env)
  local values = {}
  for i, node in ipairs(nodes) do
    values[i] = self:eval(node, env)
  end
  local last = nodes[#nodes]
  values.rest = last and MANY[last.kind] and values[#nodes] or nil
  return values
end


function EVAL.name(_, node, env)
  return find(env, node.name) or value("library", { name = node.name })
end


function EVAL.vararg(_, _, env)
  return find(env, "...")
end


function EVAL.text(_, node)
  return value("text", { text = node.value })
end


function EVAL.func(self, node, env)
  local closure = value("func", { node = node, env = env, file = self.file })
  self.closures[node] = self.closures[node] or {}
  table.insert(self.closures[node], closure)
  return closure
end


function EVAL.table(self, node, env)
  local made, count = value("table", { fields = {} }), 0
  for _, item in ipairs(node.items) do
    local got = self:eval(item.value, env)
    local key
    if item.key then
      local name = self:eval(item.key, env)
      key = name.text
      for input in pairs(inputs_of(name)) do
        made.inputs[input] = true
      end
    else
      count = count + 1
      key = count
    end
    if key then
      made.fields[key] = got
    else
      made.any = join(made.any, got)
      inputs_of(got, made.inputs)
    end
  end
  return made
end


function EVAL.index(self, node, env)
  local key = self:eval(node.key, env)
  return self:index(self:eval(node.object, env), key.text, node.line)
end


function EVAL.binary(self, node, env)
  local left, right = self:eval(node.left, env), self:eval(node.right, env)
  if node.op == "or" or node.op == "and" then
    return join(left, right)
  elseif node.op == ".." then
    local made = made_of(left, right)
    made.glued = true
    return made
  elseif node.op:find("[<>=]") then
    return UNKNOWN
  end
  return made_of(left, right)
end


function EVAL.unary(self, node, env)
  local inner = self:eval(node.value, env)
  return node.op == "-" and made_of(inner) or UNKNOWN
end


-- What a function sees as its parameters.
local function parameters(func, args)
  local env = scope(func.env)
  for i, name in ipairs(func.node.params) do
    if name == "..." then
      local all = args.rest
      for j = i, #args do
        all = join(all, args[j])
      end
      env.names[name] = all or UNKNOWN
    else
      env.names[name] = args[i] or args.rest or UNKNOWN
    end
  end
  return env
end


-- Calls a function of the policy. The value it returns, all returns joined.
function Flow:call(func, args)
  local turns = self.turns[func.node] or 0
  if self.calls >= MAX_CALLS or turns >= MAX_TURNS then
    return made_of(table.unpack(args))
  end
  self.calls, self.turns[func.node] = self.calls + 1, turns + 1
  local kept, file = self.returned, self.file
  self.returned, self.file = nil, func.file
  self:block(func.node.body, parameters(func, args))
  local returned = self.returned
  self.returned, self.file, self.calls = kept, file, self.calls - 1
  self.turns[func.node] = turns
  return returned or UNKNOWN
end


-- What a function that is not the policy's makes of its arguments: it may call
-- those that are functions.
function Flow:foreign(args)
  local made = made_of(table.unpack(args))
  for _, arg in ipairs(args) do
    if arg.kind == "func" then
      made = join(made, self:call(arg, { made, made }))
    end
  end
  return made_of(made)
end


-- Calls whatever a value may be.
function Flow:apply(func, args, line)
  local result
  for one in each_of(func) do
    local got
    if one.kind == "func" then
      got = self:call(one, args)
    elseif one.kind == "builtin" and BUILTINS[one.name] then
      got = BUILTINS[one.name](self, args, line)
    elseif one.kind == "library" and LIBRARY[one.name] then
      got = LIBRARY[one.name](self, args, line)
    else
      got = self:foreign(args)
    end
    result = join(result, got or UNKNOWN)
  end
  return result
end


function EVAL.call(self, node, env)
  if node.func.kind == "name" and node.func.name == "require" then
    local module = node.args[1] and node.args[1].value
    return module == "gateway" and value("gateway")
      or module and self.require(module)
  end
  local func, args = self:eval(node.func, env), self:eval_all(node.args, env)
  return self:apply(func, args, node.line)
end


-- A method of the policy's own: of an object that is a table.
function Flow:own_method(object, node, args)
  local func = object.kind == "table" and field_of(object, node.name)
  if func and may_be(func, "func") then
    local with_self = table.move(args, 1, #args, 2, { object })
    with_self.rest = args.rest
    return self:apply(func, with_self, node.line)
  end
  return nil
end


function Flow:method(object, node, args)
  if object.kind == "command" and RUNS[node.name] then
    return self:run(object, args, node.line)
  elseif object.kind == "upstream" and node.name == "fetch" then
    return self:ask(args[1], node.line)
  elseif object.kind == "upstream" and node.name == "to" then
    self.route.forwards = true
    local opts = args[1] and args[1].kind == "table" and args[1] or args[2]
    if args[1] and args[1] ~= opts then
      self:sink("path", args[1], node.line)
    end
    self:fields(opts or UNKNOWN, node.line, SET)
    return UNKNOWN
  elseif object.kind == "raw" then
    if node.name == "check" and args[1] then
      return self:input("raw", "raw", true)
    end
    return object
  end
  local made = made_of(object, table.unpack(args))
  made.glued = made.glued or node.name == "format" or node.name == "rep"
  return made
end


function EVAL.method(self, node, env)
  local object = self:eval(node.object, env)
  local args, result = self:eval_all(node.args, env), nil
  for one in each_of(object) do
    result = join(result, self:own_method(one, node, args)
      or self:method(one, node, args) or UNKNOWN)
  end
  return result
end


-- ---- statements ------------------------------------------------------------

local EXECUTE <const> = {}


function Flow:block(body, env)
  for _, statement in ipairs(body) do
    local execute = EXECUTE[statement.kind]
    if execute then
      execute(self, statement, env)
    end
  end
end


function EXECUTE.locals(self, node, env)
  local values = {}
  for i, name in ipairs(node.names) do
    local from = node.values[i]
    if from and from.kind == "func" then
      env.names[name] = UNKNOWN  -- so that it can call itself
    end
    values[i] = from and self:eval(from, env)
  end
  for i, name in ipairs(node.names) do
    local last = node.values[#node.values]
    env.names[name] = values[i] or last and MANY[last.kind]
      and values[#node.values] or UNKNOWN
  end
end


local ANSWER <const> = {
  body = "response body", headers = "response header", type = "response header",
}


function Flow:set_field(object, key, got, line)
  for one in each_of(object) do
    if one.kind == "response headers" then
      self:sink("response header", got, line)
    elseif one.kind == "response" and ANSWER[key.text] then
      self:sink(ANSWER[key.text], got, line)
    elseif one.kind == "table" then
      put(one, key.text, got)
      inputs_of(key, one.inputs)
    end
  end
end


function EXECUTE.assign(self, node, env)
  for i, target in ipairs(node.targets) do
    local from = node.values[i]
    local got = from and self:eval(from, env) or UNKNOWN
    if target.kind == "name" then
      local old, where = find(env, target.name)
      if where then
        where.names[target.name] = join(old, got)
      end
    elseif target.kind == "index" then
      local object = self:eval(target.object, env)
      local key = self:eval(target.key, env)
      self:set_field(object, key, got, target.line)
    end
  end
end


function EXECUTE.call(self, node, env)
  self:eval(node, env)
end

EXECUTE.method = EXECUTE.call


function EXECUTE.block(self, node, env)
  self:block(node.body, scope(env))
end


-- Twice, so that what one turn sets, the next one sees.
function EXECUTE.loop(self, node, env)
  local inner = scope(env)
  self:eval(node.cond, inner)
  self:block(node.body, inner)
  self:block(node.body, inner)
end


function EXECUTE.choice(self, node, env)
  for _, branch in ipairs(node.branches) do
    self:eval(branch.cond, env)
    self:block(branch.body, scope(env))
  end
  self:block(node.otherwise or {}, scope(env))
end


function EXECUTE.each(self, node, env)
  local inner = scope(env)
  local values = self:eval_all(node.values, env)
  local all = made_of(table.unpack(values))
  local each = values[1] and values[1].kind == "table"
    and any_field(values[1]) or all
  for i, name in ipairs(node.names) do
    inner.names[name] = i == 1 and all or each
  end
  self:block(node.body, inner)
  self:block(node.body, inner)
end


function EXECUTE.give(self, node, env)
  for _, got in ipairs(self:eval_all(node.values, env)) do
    self.returned = join(self.returned, got)
  end
end


-- ---- the whole -------------------------------------------------------------

--- A file's flow: its top level has been evaluated, so that its hooks can be
-- asked about.
-- @param body      its tree, as luasource.read() gives it
-- @param require_  require_(module) -> what a module of the policy returns, as
--                  `self.value` of its flow; or nil
-- @param closures  the functions of all files, or nil; is filled: one that is
--                  made in a module may be another file's hook
function M.new(file, body, require_, closures)
  local self = setmetatable({
    file = file, steps = 0, calls = 0, turns = {}, closures = closures or {},
    require = require_, bare_groups = {},
    route = { inputs = {}, sinks = {}, commands = {} },
  }, Flow)
  self:block(body, scope(nil))
  self.value, self.returned = self.returned, nil
  self.gave_up = self.route.gave_up
  return self
end


--- The nodes of the functions that begin and end on these lines: where several
-- share a line, all of them.
function Flow:find(first, last)
  local found = {}
  for node, closures in pairs(self.closures) do
    if node.line == first and node.last == last
      and closures[1].file == self.file then
      found[#found + 1] = node
    end
  end
  return found
end


--- Follows a hook.
-- @param node   as find() gave it
-- @param kinds  what its parameters are: { "request", "identity" }
-- @param route  { config = the route, inputs = {}, sinks = {}, commands = {} },
--               which is filled
function Flow:follow(node, kinds, route)
  for _, closure in ipairs(self.closures[node]) do
    local args = {}
    for i, kind in ipairs(kinds) do
      args[i] = value(kind)
    end
    self.route, self.steps, self.calls = route, 0, 0
    local result = self:call(closure, args)
    route.forwards = route.forwards or may_be(result, "upstream") ~= nil
    if kinds[1] == "request" and next(inputs_of(result)) then
      self:sink("response body", result, node.line)
    end
  end
end


return M
