--- Reads the policy's own text for a mistake that no run would show.
--
-- `identity.subject.ou == "ops"` compares a list with a string: it is false
-- for everybody, and under a `not` true for everybody. Lua cannot object, so
-- the text is searched before the policy goes to work. The same goes for
-- `request.raw.query.x == "a"`, and for raw values as keys of a table: Lua asks
-- no metamethod there, so no object can object.

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local M = {}

-- Lists of the identity, as a pattern that captures the field's name.
local LISTS <const> = {
  "%.subject%.(%a[%w_]*)", "%.san%.(%a+)", "%.(eku)%f[^%w_]",
}
local TEXT_FIELDS <const> = { dn = true }


-- Where the comment or string that begins at `from` ends, or nil where none
-- begins there.
local function skip(source, from)
  local dashes = source:match("^%-%-", from)
  local open = dashes and from + 2 or from
  local level = source:match("^%[(=*)%[", open)
  if level then
    local _, last = source:find("]" .. level .. "]", open, true)
    return last or #source
  end
  if dashes then
    return (source:find("\n", from, true) or #source + 1) - 1
  end
  local quote = source:sub(from, from)
  if quote ~= '"' and quote ~= "'" then
    return nil
  end
  local at = from + 1
  while at <= #source and source:sub(at, at) ~= quote do
    at = at + (source:sub(at, at) == "\\" and 2 or 1)
  end
  return at
end


--- The source with the inside of comments and strings blanked out, every byte
-- of code in its old place.
function M.blank(source)
  local parts, from, at = {}, 1, 1
  while true do
    at = source:find("[%-\"'%[]", at)
    if not at then
      break
    end
    local last = skip(source, at)
    if last then
      local inside = source:sub(at + 1, last - 1):gsub("[^\n]", " ")
      parts[#parts + 1] = source:sub(from, at) .. inside
      from, at = math.max(last, at + 1), last
    end
    at = at + 1
  end
  parts[#parts + 1] = source:sub(from)
  return table.concat(parts)
end


local function line_of(source, position)
  local _, newlines = source:sub(1, position - 1):gsub("\n", "")
  return newlines + 1
end


local function complain(name, source, position, field, value)
  error(("%s:%d: identity field '%s' is a list, so comparing it with == is"
    .. " never true: write identity:has(\"%s\", %s)"):format(
    name, line_of(source, position), field, field, value or '"…"'), 0)
end


-- LIST == value, with nothing between; `#LIST == 2` and `LIST == nil` are fine.
local function check_left(name, source, code, list)
  local at = 1
  while true do
    local first, last, prefix, field =
      code:find("([#%w_%.]*)" .. list .. "%s*[=~]=", at)
    if not first then
      return
    end
    local rest = source:sub(last + 1, last + 200)
    if prefix:sub(1, 1) ~= "#" and not TEXT_FIELDS[field]
      and not rest:find("^%s*nil%f[^%w_]") then
      complain(name, source, first, field, rest:match("^%s*([\"'][^\n]-[\"'])"))
    end
    at = last + 1
  end
end


-- value == LIST, where no index or call follows.
local function check_right(name, source, code, list)
  local at = 1
  while true do
    local first, last, field =
      code:find("[=~]=%s*[%a_][%w_%.]*" .. list .. "%f[^%w_]", at)
    if not first then
      return
    end
    if not TEXT_FIELDS[field] and not code:find("^%s*[%[%.:(]", last + 1) then
      local before = source:sub(math.max(1, first - 200), first - 1)
      complain(name, source, first, field,
        before:match("([\"'][^\n\"']*[\"'])%s*$"))
    end
    at = last + 1
  end
end


-- ---- raw values ------------------------------------------------------------

local OPENS <const> = {
  ["function"] = true, ["do"] = true, ["if"] = true, ["repeat"] = true,
}
local CLOSES <const> = { ["end"] = true, ["until"] = true }


-- Where the indexes that follow `from` end: `.query.x`, `.headers["x-y"]`.
local function chain_end(code, from)
  while true do
    local last = select(2, code:find("^%s*%.%s*[%a_][%w_]*", from))
      or select(2, code:find("^%s*%b[]", from))
    if not last then
      return from - 1
    end
    from = last + 1
  end
end


-- Where the block ends that position `from` is in.
local function block_end(code, from)
  local depth = 0
  for word, after in code:gmatch("%f[%w_]([%a_][%w_]*)()", from) do
    if OPENS[word] then
      depth = depth + 1
    elseif CLOSES[word] then
      depth = depth - 1
      if depth < 0 then
        return after
      end
    end
  end
  return #code
end


-- What is wrong with what stands around code[first..last], a raw value.
local function misuse_of_raw(code, first, last)
  local before = code:sub(math.max(1, first - 40), first - 1)
  if code:find("^%s*[=~]=%s*", last + 1)
    and not code:find("^%s*[=~]=%s*nil%f[^%w_]", last + 1) then
    return "compared with == or ~=: that is never true, or always"
  elseif code:find("^%s*[:(]", last + 1) then
    return nil
  elseif before:find("[=~]=%s*$") and not before:find("nil%s*[=~]=%s*$") then
    return "compared with == or ~=: that is never true, or always"
  elseif before:find("[%w_%])]%s*%[%s*$")
    and code:find("^%s*%]", last + 1) then
    return "used as a key: it is never found"
  end
end


local function complain_of_raw(name, source, at, why)
  error(("%s:%d: a value of request.raw is unchecked and cannot be %s; open it"
    .. " first: local value, why = raw:check(schema)"):format(name,
    line_of(source, at), why), 0)
end


-- Every later use of a local that holds a raw value, or a table of them, as far
-- as its block goes and until it holds something else.
local function check_raw_local(name, source, code, variable, from)
  local word = "%f[%w_]" .. variable .. "%f[^%w_]"
  local stop, at = block_end(code, from), from
  while true do
    local first, last = code:find(word, at)
    if not first or first > stop
      or code:find("^%s*=[^=]", last + 1) then
      return
    end
    local field = code:find("^[%.:]", first - 1)
      and not code:find("^%.%.", first - 2)
    last = chain_end(code, last + 1)
    local why = not field and misuse_of_raw(code, first, last)
    if why then
      complain_of_raw(name, source, first, why)
    end
    at = last + 1
  end
end


-- The raw values of a script: `anything.raw.query.x`.
local function check_raw(name, source, code)
  local at = 1
  while true do
    local dot, last = code:find("%.raw%f[^%w_]", at)
    if not dot then
      return
    end
    local object = code:sub(math.max(1, dot - 80), dot - 1)
      :match("[%a_][%w_%.]*$") or ""
    local first = dot - #object
    last = chain_end(code, last + 1)
    local why = misuse_of_raw(code, first, last)
    if why then
      complain_of_raw(name, source, first, why)
    end
    local variable = code:sub(math.max(1, first - 80), first - 1)
      :match("local%s+([%a_][%w_]*)%s*=%s*$")
    if variable and not code:find("^%s*[:(]", last + 1) then
      check_raw_local(name, source, code, variable, last + 1)
    end
    at = last + 1
  end
end


--- Raises an error for the first such comparison in one script's text.
function M.check_source(name, source)
  local code = M.blank(source)
  for _, list in ipairs(LISTS) do
    check_left(name, source, code, list)
    check_right(name, source, code, list)
  end
  check_raw(name, source, code)
end


-- What each text requires that was found to be right: `gateway test` evaluates
-- a policy many times.
local known <const> = {}


-- Checks a text, once; the modules that it requires by a literal name.
local function modules_of(name, source)
  if not known[source] then
    M.check_source(name, source)
    local modules = {}
    for module in source:gmatch("require%s*%(?%s*[\"']([%w_%.]+)[\"']") do
      modules[#modules + 1] = module
    end
    known[source] = modules
  end
  return known[source]
end


--- Checks the policy, the other scripts that declare, and what they require.
-- @param main   the policy's script name
-- @param files  table whose keys are script names
-- @return the scripts: a list of { name, source }
function M.check(main, files)
  local names, seen, list = { main }, {}, {}
  for _, name in ipairs(options.sorted_keys(files)) do
    names[#names + 1] = name
  end
  local folder = main:match("^(.*/)") or ""
  local i = 1
  while names[i] do
    local name = names[i]
    local source = not seen[name] and core.source(name)
    seen[name] = true
    if source then
      list[#list + 1] = { name = name, source = source }
    end
    for _, module in ipairs(source and modules_of(name, source) or {}) do
      local path = folder .. module:gsub("%.", "/")
      names[#names + 1] = path .. ".lua"
      names[#names + 1] = path .. "/init.lua"
    end
    i = i + 1
  end
  return list
end


return M
