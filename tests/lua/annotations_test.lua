-- Tests of `gateway docs --format luals`: each line is an annotation that
-- lua-language-server knows, each name in it is defined, and it would find
-- nothing to say about the policies here.

local core = require "gateway.core"
local luals = require "gateway.luals"
local luasource = require "gateway.luasource"
local reference = require "gateway.reference"
local t = require "gateway.test"

t.policy "scripts/gateway.lua"


-- ---- types -----------------------------------------------------------------

local BUILT_IN <const> = {}
for name in ("any nil boolean string number integer function table")
  :gmatch "%a+"
do
  BUILT_IN[name] = true
end

local read_type  -- (text, at, names) -> the place behind a type; or an error


local function expect(text, at, sign)
  if text:sub(at, at + #sign - 1) ~= sign then
    error(("no '%s' at column %d of: %s"):format(sign, at, text), 0)
  end
  return at + #sign
end


-- "type, type".
local function read_types(text, at, names)
  at = read_type(text, at, names)
  while text:sub(at, at + 1) == ", " do
    at = read_type(text, at + 2, names)
  end
  return at
end


-- "(name: type, name?: type, ...: type)" and what it returns.
local function read_fun(text, at, names)
  while text:sub(at, at) ~= ")" do
    local after = text:match("^[%a_][%w_]*%??()", at) or text:match("^%.%.%.()",
      at)
    at = expect(text, after or at, ": ")
    at = read_type(text, at, names)
    if text:sub(at, at) ~= ")" then
      at = expect(text, at, ", ")
    end
  end
  at = at + 1
  return text:sub(at, at + 1) == ": " and read_types(text, at + 2, names) or at
end


local function read_one(text, at, names)
  local quoted = text:match('^"[^"]*"()', at)
  local inside = text:match("^fun%(()", at)
  if quoted then
    return quoted
  elseif inside then
    return read_fun(text, inside, names)
  elseif text:sub(at, at) == "(" then
    return expect(text, read_type(text, at + 1, names), ")")
  end
  local name, after = text:match("^([%a_][%w_.]*)()", at)
  if not name then
    error(("no type at column %d of: %s"):format(at, text), 0)
  end
  names[#names + 1] = name
  if text:sub(after, after) == "<" then
    after = expect(text, read_types(text, after + 1, names), ">")
  end
  return after
end


function read_type(text, at, names)
  at = read_one(text, at, names)
  while true do
    local suffix = text:match("^%[%]()", at) or text:match("^%?()", at)
    if suffix then
      at = suffix
    elseif text:sub(at, at) == "|" then
      at = read_one(text, at + 1, names)
    else
      return at
    end
  end
end


-- A type that stands alone, or before a blank and free text.
local function whole_type(text, at, names)
  local after = read_type(text, at, names)
  local rest = text:sub(after)
  if rest ~= "" and not rest:find("^ %S") then
    error(("what is behind the type in: %s"):format(text), 0)
  end
  return text:sub(at, after - 1), rest
end


-- ---- a file of annotations -------------------------------------------------

-- What a file says: { classes = { [name] = { fields } }, functions = { [name] =
-- { params, returns, … } }, used = { names of types } }.
local Page = {}
Page.__index = Page


function Page:field(rest)
  local name, at = rest:match("^([%a_][%w_]*)%?? ()")
  assert(name, rest)
  assert(not self.class[name], "twice: " .. rest)
  self.class[name] = whole_type(rest, at, self.used)
end


function Page:param(rest)
  local name, optional, at = rest:match("^([%a_][%w_]*)(%??) ()")
  if not name then
    name, optional, at = rest:match("^(%.%.%.)() ()")
  end
  assert(name, rest)
  local params = self.params
  params[#params + 1] = {
    name = name, optional = optional == "?" or name == "...",
    type = whole_type(rest, at, self.used),
  }
end


local TAGS <const> = {
  meta = function(page, rest)
    assert(not page.module and rest:find("^[%a.]+$"), rest)
    page.module = rest
  end,
  class = function(page, rest)
    assert(rest:find("^[%a_][%w_.]*$"), rest)
    page.class = page.classes[rest] or {}
    page.classes[rest] = page.class
    page.last, page.overload = rest, nil
  end,
  field = Page.field,
  param = Page.param,
  ["return"] = function(page, rest)
    local returns = whole_type(rest, 1, page.used)
    page.returns = page.returns or returns
  end,
  type = function(page, rest)
    page.is_value = whole_type(rest, 1, page.used)
  end,
  overload = function(page, rest)
    assert(rest:find("^fun%("), rest)
    local _, count = rest:gsub("[%w_]+%??: ", "")
    page.overload = count
    assert(whole_type(rest, 1, page.used) == rest, rest)
  end,
}


function Page:fun(full, list)
  local names = {}
  for i, param in ipairs(self.params) do
    names[i] = param.name
    local before = self.params[i - 1]
    assert(param.optional or not (before and before.optional), full)
  end
  assert(table.concat(names, ", ") == list, full .. ": " .. list)
  assert(self.returns, full .. " has no @return")
  assert(not self.functions[full], "twice: " .. full)
  self.functions[full] = {
    params = self.params, returns = self.returns, overload = self.overload,
    text = self.text,
  }
  assert(self.text, full .. " has no text")
  self.params, self.returns, self.overload, self.text = {}, nil, nil, nil
end


function Page:line(line)
  local tag, rest = line:match("^%-%-%-@(%a+) (.+)$")
  local full, list = line:match("^function ([%a_][%w_]*[.:][%a_][%w_]*)%((.-)%)"
    .. " end$")
  local value = line:match("^([%a_][%w_]*%.[%a_][%w_]*) = nil$")
  if tag then
    assert(TAGS[tag], line)(self, rest)
  elseif full then
    self:fun(full, list)
  elseif value then
    assert(self.is_value and self.text, line)
    self.functions[value] = { value = self.is_value }
    self.is_value, self.text = nil, nil
  elseif line:find("^%-%-%-[^@%s]") then
    self.text = line
  elseif line:find "^local [%a_]+ = {}$" then
    self.variables[line:match "^local ([%a_]+)"] = self.last
  else
    assert(line == "" or line:find "^return [%a_]+$", line)
  end
end


local function read_page(name)
  local page = setmetatable({
    classes = {}, functions = {}, used = {}, params = {}, variables = {},
  }, Page)
  local text = assert(luals.write(reference.api(), name))
  for line in text:gmatch("(.-)\n") do
    page:line(line)
  end
  return page
end

local PAGES <const> = {
  ["gateway"] = read_page "gateway", ["gateway.identity"] = read_page "id",
  ["gateway.test"] = read_page "test",
}


t.case("each annotation is well-formed, and each type is defined", function()
  local classes, count = {}, 0
  for module, page in pairs(PAGES) do
    t.equal(page.module, module)
    for name in pairs(page.classes) do
      classes[name] = true
      count = count + 1
    end
  end
  t.equal(count > 25, true)
  for module, page in pairs(PAGES) do
    for _, name in ipairs(page.used) do
      if not BUILT_IN[name] and not classes[name] then
        error(("%s: there is no class %s"):format(module, name))
      end
    end
  end
end)


-- What takes, or is, anything at all.
local ANYTHING <const> = {
  "equal.got", "equal.wanted", "const.value", "encode.value", "json.value",
  "null", "optional.default",
}


t.case("parameters and results have types", function()
  local found = {}
  for _, page in pairs(PAGES) do
    for full, fun in pairs(page.functions) do
      local name = full:match("[%w_]+$")
      found[#found + 1] = fun.value == "any" and name or nil
      for _, param in ipairs(fun.params or {}) do
        found[#found + 1] = param.type == "any" and name .. "." .. param.name
          or nil
      end
    end
  end
  table.sort(found)
  local wanted = table.move(ANYTHING, 1, #ANYTHING, 1, {})
  table.sort(wanted)
  t.equal(found, wanted)
end)


t.case("tables of options and results can be completed", function()
  local gateway, test = PAGES.gateway, PAGES["gateway.test"]
  local function param(page, full, i)
    return page.functions[full].params[i].type
  end
  t.equal(param(gateway, "gateway.fetch", 2), "string|gateway.fetch.options")
  t.equal(param(gateway, "app:fetch", 1), "string|gateway.fetch.options")
  t.equal(param(gateway, "gateway.shadow", 1), "string|gateway.shadow.options")
  t.equal(param(gateway, "gateway.openapi", 1),
    "string|gateway.openapi.options")
  t.equal(param(gateway, "group:get", 2), "gateway.route.options")
  t.equal(param(test, "test.request", 4), "gateway.test.request.options")
  t.equal(gateway.classes["gateway.fetch.options"].timeout, "number")
  t.equal(gateway.classes["gateway.openapi.options"].missing,
    '"error"|"refuse"')
  t.equal(gateway.functions["command:run"].returns, "gateway.result")
  t.equal(gateway.classes["gateway.result"].busy, "boolean")
  t.equal(gateway.functions["gateway.fetch"].returns, "gateway.answer?")
  t.equal(gateway.classes["gateway.answer"].status, "integer")
  t.equal(test.functions["test.request"].returns, "test.r")
  t.equal(test.classes["test.r"].reason, "string?")
  for _, name in ipairs { "check", "respond", "log", "handle" } do
    local type_ = gateway.classes["gateway.route.options"][name]
    t.equal({ name, type_:find("fun(request: request", 1, true) ~= nil },
      { name, true })
  end
end)


t.case("mistakes in annotations are found", function()
  local function says(line)
    local page = setmetatable({
      classes = {}, class = {}, functions = {}, used = {}, params = {},
      variables = {}, text = "x", returns = "any",
    }, Page)
    return (pcall(page.line, page, line))
  end
  for _, line in ipairs {
    "---@field a string what", '---@field a? "x"|"y"|(fun(a?: b): c, d)[] what',
    "---@param ... any", "---@return table<string, a.b[]>? what",
    "function a.b() end",
  } do
    t.equal({ line, says(line) }, { line, true })
  end
  for _, line in ipairs {
    "---@field a", "---@field a string|", "---@field a table<string", "--x",
    "---@feld a string", "---@field a-b string", "---@param a string[",
    "---@return fun(a string)", "function a.b(c) end", "x = 1",
  } do
    t.equal({ line, says(line) }, { line, false })
  end
end)


-- ---- policies --------------------------------------------------------------

-- What an editor with these annotations would underline in a file.
local Reader = {}
Reader.__index = Reader


function Reader:says(node, what)
  self.list[#self.list + 1] = ("%s:%d: %s"):format(self.file, node.line, what)
end


-- The name of a function or value as the annotations write it, and its page:
-- `gateway.get` with `local gateway = require "gateway"`.
function Reader:named(node)
  if node.kind ~= "index" or node.object.kind ~= "name"
    or node.key.kind ~= "text"
  then
    return nil
  end
  local module = self.modules[node.object.name]
  local page = PAGES[module]
  return page and module:match("%a+$") .. "." .. node.key.value, page
end


-- May it be called with these arguments?
function Reader:arguments(node, full, fun)
  local least, most = 0, #fun.params
  for i, param in ipairs(fun.params) do
    least = param.optional and least or i
    most = param.name == "..." and math.huge or most
  end
  least = fun.overload or least  -- a form with fewer
  local last = node.args[#node.args]
  local open = last and (last.kind == "call" or last.kind == "method"
    or last.kind == "vararg")
  local count = #node.args
  if count > most and not (open and count == most + 1) then
    self:says(node, ("%s takes %d arguments, not %d"):format(full, most, count))
  elseif count < least and not open then
    self:says(node, ("%s needs %d arguments, not %d"):format(full, least,
      count))
  end
end


function Reader:see_index(node)
  local full, page = self:named(node)
  if full and not page.functions[full] then
    self:says(node, full .. " is not known")
  end
  local class = node.object.kind == "name" and node.key.kind == "text"
    and not self.modules[node.object.name]
    and PAGES.gateway.classes[node.object.name]
  if class and not class[node.key.value] then
    self:says(node, ("a %s has no %s"):format(node.object.name, node.key.value))
  end
end


function Reader:see_call(node)
  local full, page = self:named(node.func)
  local fun = full and page.functions[full]
  if fun and fun.params then
    self:arguments(node, full, fun)
    self.calls = self.calls + 1
  end
end


function Reader:see_method(node)
  local class = node.object.kind == "name" and self.objects[node.object.name]
  local full = class and class:match("%a+$") .. ":" .. node.name
  local fun = full and PAGES.gateway.functions[full]
  if full and not fun then
    self:says(node, full .. " is not known")
  elseif full then
    self:arguments(node, full, fun)
    self.methods = self.methods + 1
  end
end


-- Classes that have methods.
local WITH_METHODS <const> = {}
for full in pairs(PAGES.gateway.functions) do
  local object = full:match("^(%a+):")
  WITH_METHODS["gateway." .. (object or "")] = object ~= nil or nil
end


-- `local x = require "gateway"`, `local app = gateway.upstream …`.
function Reader:see_locals(node)
  for i, name in ipairs(node.names) do
    local value = node.values[i]
    local func = value and value.kind == "call" and value.func
    local full, page = nil, nil
    if func then
      full, page = self:named(func)
    end
    if func and func.kind == "name" and func.name == "require" then
      self.modules[name] = value.args[1].value
    elseif full and page.functions[full] then
      local returns = page.functions[full].returns
      self.objects[name] = page == PAGES.gateway and WITH_METHODS[returns]
        and returns or nil
    end
  end
end


local SEE <const> = {
  index = Reader.see_index, call = Reader.see_call, method = Reader.see_method,
}


local function read_policy(file, source)
  local reader = setmetatable({
    file = file, modules = {}, objects = {}, list = {}, calls = 0, methods = 0,
  }, Reader)
  local body = luasource.read(file, source)
  luasource.walk(body, function(node)
    return node.kind == "locals" and reader:see_locals(node)
  end)
  luasource.walk(body, function(node)
    return SEE[node.kind] and SEE[node.kind](reader, node)
  end)
  return reader
end


t.case("an editor finds nothing in the demo, the cookbook and their tests",
  function()
    local calls, methods, list = 0, 0, {}
    local files = core.glob "scripts/cookbook/*.lua"
    table.move(core.glob "scripts/tests/cookbook_*.lua", 1, 99, #files + 1,
      files)
    files[#files + 1] = "scripts/gateway.lua"
    files[#files + 1] = "scripts/tests/gateway_test.lua"
    for _, file in ipairs(files) do
      local reader = read_policy(file, core.read_file(file))
      calls, methods = calls + reader.calls, methods + reader.methods
      table.move(reader.list, 1, #reader.list, #list + 1, list)
    end
    t.equal(list, {})
    t.equal({ #files > 20, calls > 300, methods > 10 }, { true, true, true })
  end)


t.case("it finds mistakes", function()
  local function says(line)
    return read_policy("x.lua", [[local gateway = require "gateway"
      local id = require "gateway.identity"
      local app = gateway.upstream {}
      local run = gateway.command {}
    ]] .. line).list[1]
  end
  t.equal(says 'gateway.gte("/")', "x.lua:5: gateway.gte is not known")
  t.equal(says 'x = id.nobody', "x.lua:5: identity.nobody is not known")
  t.equal(says 'gateway.get("/")',
    "x.lua:5: gateway.get needs 2 arguments, not 1")
  t.equal(says "gateway.sleep(1, 2)",
    "x.lua:5: gateway.sleep takes 1 arguments, not 2")
  t.equal(says "app:too()", "x.lua:5: app:too is not known")
  t.equal(says "run:run()", "x.lua:5: command:run needs 1 arguments, not 0")
  t.equal(says "function f(request) return request.querry end",
    "x.lua:5: a request has no querry")
  t.equal(says 'gateway.log "x" gateway.log("info", "x") app:to() app:to("/")',
    nil)
  t.equal(says 'gateway.shadow "next.lua" gateway.bytes("text/plain")', nil)
end)
