--- What a policy may write: option names, types, sizes, times.
--
-- Every declaration (`gateway.listen { … }`) is read here, once, at load. A
-- mistake raises an error that begins with the policy's own file:line and says
-- what was meant:
--
--     scripts/gateway.lua:8: gateway.listen: unknown option 'adress': did you
--     mean 'address'?
--
-- A *reader* is a function(value) that returns the value as the plain
-- configuration wants it, or nil and what it should have been. A *spec* maps
-- option names to rows: { reader, required = true | default = value }, or
-- { later = "why" } for a name that a later version will bring.

local core <const> = require "gateway.core"
local M = {}

--- Every spec by name, for what writes about them: `gateway docs`. A row's
-- `help` says what the option is for; `type`, what it takes, where the reader
-- does not say it.
M.specs = {}

local MAX_LEVELS <const> = 60
local MAX_SECONDS <const> = 24 * 3600
local UNITS <const> = { [""] = 1, K = 2 ^ 10, M = 2 ^ 20, G = 2 ^ 30 }


--- "file:line" of the innermost caller that is not this library.
function M.where()
  for level = 2, MAX_LEVELS do
    local at = core.where(level)
    if not at then
      break
    end
    local file = at:match("^(.*):%d+$")
    if file and not core.built_in(file) then
      return at
    end
  end
  return "policy"
end


--- Raises a declaration error: "file:line: what: message".
-- @param at  where the declaration stands, or nil for the caller's own place
function M.fail(at, what, message)
  error(("%s: %s: %s"):format(at or M.where(), what, message), 0)
end


--- Notes a spec under the name of its declaration: "gateway.listen".
-- @return the spec
function M.spec(name, spec)
  M.specs[name] = spec
  return spec
end


--- The keys of a table as sorted strings: errors and JSON come out the same
-- way every time.
function M.sorted_keys(table_)
  local keys = {}
  for key in pairs(table_) do
    keys[#keys + 1] = key
  end
  table.sort(keys, function(a, b)
    return tostring(a) < tostring(b)
  end)
  return keys
end


--- "1 request", "2 requests": a number of things, for a message.
function M.count(n, thing)
  return ("%d %s%s"):format(n, thing, n == 1 and "" or "s")
end


--- A value as an error message shows it, a string cut at `max` bytes.
function M.show(value, max)
  local kind = type(value)
  max = max or 60
  if kind == "string" then
    local short = #value > max and value:sub(1, max - 3) .. "..." or value
    return '"' .. short:gsub("%c", "?"):gsub('"', "'") .. '"'
  end
  if kind == "number" or kind == "boolean" or kind == "nil" then
    return tostring(value)
  end
  core.no_raw(value, "an option")
  return "a " .. kind
end


--- The first of several values, as a message shows them.
function M.show_list(values)
  local shown = {}
  for i, value in ipairs(values) do
    if i > 4 then
      shown[i] = "…"
      break
    end
    shown[i] = M.show(value)
  end
  return table.concat(shown, ", ")
end


--- What stands between the slashes of a path, as it is written.
function M.segments(path)
  local list = {}
  for segment in path:gmatch("/([^/]*)") do
    list[#list + 1] = segment
  end
  return list
end


--- Edit distance of two short names; a swap of neighbours counts as one edit.
function M.distance(a, b)
  local before, last, row = {}, {}, {}
  for j = 0, #b do
    last[j] = j
  end
  for i = 1, #a do
    row[0] = i
    for j = 1, #b do
      local same = a:byte(i) == b:byte(j)
      row[j] = math.min(last[j] + 1, row[j - 1] + 1,
        last[j - 1] + (same and 0 or 1))
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1)
        and a:byte(i - 1) == b:byte(j) then
        row[j] = math.min(row[j], before[j - 2] + 1)
      end
    end
    before, last, row = last, row, before
  end
  return last[#b]
end


-- The names of a spec or set that may be suggested: those of today.
local function names_of(known)
  local names = {}
  for _, name in ipairs(M.sorted_keys(known)) do
    local row = known[name]
    if type(name) == "string" and not (type(row) == "table" and row.later) then
      names[#names + 1] = name
    end
  end
  return names
end


--- ": did you mean 'address'?", or the list of what there is, or nothing.
-- @param name   what was written
-- @param known  table whose keys are the names there are
function M.suggest(name, known)
  local names = names_of(known)
  local best, best_distance
  for _, candidate in ipairs(names) do
    if #candidate < 64 and #name < 64 then
      local edits = M.distance(name:lower(), candidate:lower())
      if edits <= math.max(1, #name // 3)
        and (not best or edits < best_distance) then
        best, best_distance = candidate, edits
      end
    end
  end
  if best then
    return (": did you mean '%s'?"):format(best)
  end
  if #names == 0 or #names > 24 then
    return ""
  end
  return ": there is " .. table.concat(names, ", ")
end


--- Raises an error for a key of `given` that is not one of `known`.
-- @param what  whose fields they are: "t.request"
function M.fields(what, given, known)
  for name in pairs(given) do
    if not known[name] then
      M.fail(nil, what, ("unknown field '%s'%s"):format(tostring(name),
        M.suggest(tostring(name), known)))
    end
  end
end


-- One option of read(): checked, converted, or its default.
local function read_one(at, what, name, value, row)
  if value == nil then
    if row.required then
      M.fail(at, what, ("option '%s' is missing"):format(name))
    end
    return row.default
  end
  if row.later then
    M.fail(at, what, ("option '%s' %s"):format(name, row.later))
  end
  local result, wanted = row[1](value)
  if result == nil then
    M.fail(at, what, ("option '%s' must be %s, not %s"):format(
      name, wanted, M.show(value)))
  end
  return result
end


--- Reads a table of options by a spec.
-- @return a new table with every option read, defaults filled in
function M.read(at, what, given, spec)
  if type(given) ~= "table" then
    M.fail(at, what, "takes a table of options, not " .. M.show(given))
  end
  for _, key in ipairs(M.sorted_keys(given)) do
    if not spec[key] then
      local name = type(key) == "string" and "'" .. key .. "'"
        or "[" .. tostring(key) .. "]"
      M.fail(at, what, ("unknown option %s%s"):format(name,
        type(key) == "string" and M.suggest(key, spec) or ""))
    end
  end
  local read = {}
  for _, name in ipairs(M.sorted_keys(spec)) do
    read[name] = read_one(at, what, name, given[name], spec[name])
  end
  return read
end


--- Reader: what it is given, to be read further by whoever asked.
function M.anything(value)
  return value
end


--- Reader: a string that is not empty and holds no control bytes.
function M.text(value)
  if type(value) == "string" and value ~= "" and not value:find("%c") then
    return value
  end
  return nil, "a string"
end


--- Reader: true or false, nothing that is merely like them.
function M.boolean(value)
  if type(value) == "boolean" then
    return value
  end
  return nil, "true or false"
end


--- Reader: a table, read further by whoever asked.
function M.table(value)
  if type(value) == "table" then
    return value
  end
  return nil, "a table"
end


--- Makes a reader of whole numbers from `min` to `max`.
function M.integer(min, max)
  return function(value)
    local number = math.type(value) and math.tointeger(value)
    if number and number >= min and number <= max then
      return number
    end
    return nil, ("a whole number from %d to %d"):format(min, max)
  end
end


--- Reader: seconds, as a number; returns milliseconds.
function M.seconds(value)
  if math.type(value) and value > 0 and value <= MAX_SECONDS then
    return math.max(1, math.floor(value * 1000 + 0.5))
  end
  return nil, "a number of seconds, such as 2.5, and at most a day"
end


--- Reader: a size in bytes, or with a unit ("16K", "64M", "2G").
function M.size(value)
  local number, unit = value, ""
  if type(value) == "string" then
    number, unit = value:match("^(%d+)([KMG]?)$")
  end
  number = number and math.tointeger(tonumber(number))
  if number and number >= 0 and number < 2 ^ 32 then
    return number * math.tointeger(UNITS[unit])
  end
  return nil, 'a size such as 512, "16K", "64M" or "2G"'
end


--- Makes a reader of one of the given words.
function M.one_of(...)
  local words = { ... }
  return function(value)
    for _, word in ipairs(words) do
      if value == word then
        return value
      end
    end
    return nil, "one of " .. table.concat(words, ", ")
  end
end


--- Reader: a list of strings, marked as an array for JSON.
function M.texts(value)
  if type(value) ~= "table" then
    return nil, "a list of strings"
  end
  local list = {}
  for key in pairs(value) do
    if math.type(key) ~= "integer" or not M.text(value[key]) then
      return nil, "a list of strings"
    end
  end
  for i, text in ipairs(value) do
    list[i] = text
  end
  return core.array(list)
end


--- Reader: a file or folder, or a list of them.
function M.files(value)
  local list = M.texts(M.text(value) and { value } or value)
  return list and list[1] and list, "a file, a folder, or a list of them"
end


--- Rows of a listener and an upstream: its lists of revoked certificates.
M.CRL = {
  crl = { M.files, default = core.array {},
    help = "lists of revoked certificates: files, or folders of *.crl" },
  crl_missing = { M.one_of("deny", "allow"), default = "deny",
    help = "a certificate that no list covers" },
  crl_expired = { M.one_of("deny", "allow"), default = "deny",
    help = "a list past its nextUpdate" },
}


--- Turns what crl_missing and crl_expired say into what C takes.
function M.read_crl(read)
  read.crl_missing_ok = read.crl_missing == "allow"
  read.crl_expired_ok = read.crl_expired == "allow"
  read.crl_missing, read.crl_expired = nil, nil
end


--- Reader: a table from names to strings.
function M.text_map(value)
  if type(value) ~= "table" then
    return nil, "a table of names and strings"
  end
  local map = {}
  for name, text in pairs(value) do
    core.no_raw(text, "an option")
    if not M.text(name) or type(text) ~= "string" or text:find("%c") then
      return nil, "a table of names and strings"
    end
    map[name] = text
  end
  return map
end


return M
