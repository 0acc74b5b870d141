--- A failure of `gateway test --fuzz`: made as small as it can be, and written
-- as a test case.

local core <const> = require "gateway.core"
local model <const> = require "gateway.fuzz_model"
local options <const> = require "gateway.options"
local oracle <const> = require "gateway.oracle"
local M = {}

local SHRINKS <const> = 400       -- requests to make one failure small
local WRONG <const> = 10000       -- how large what is wrong counts as
local RUN_MIN <const> = 40        -- of one character, to be written shorter


-- ---- shrinking -------------------------------------------------------------

-- Of a text that is UTF-8 only such texts: JSON can hold no other.
local function shorter_texts(text)
  local all = { "", text:sub(1, #text // 2), text:sub(#text // 2 + 1),
    ("a"):rep(#text), ("a"):rep(utf8.len(text) or 0) }
  for i = 1, math.min(#text, 24) do
    all[#all + 1] = text:sub(1, i - 1) .. text:sub(i + 1)
  end
  for i = 1, math.min(#text, 24) do
    if text:sub(i, i):find("[%w]") and text:sub(i, i) ~= "a" then
      all[#all + 1] = text:sub(1, i - 1) .. "a" .. text:sub(i + 1)
    end
  end
  local list = {}
  for _, short in ipairs(all) do
    list[#list + 1] = (not utf8.len(text) or utf8.len(short)) and short or nil
  end
  return list
end


-- Values that are smaller than a JSON value, each a copy.
local function smaller_values(value)
  local list = {}
  if type(value) == "string" then
    return shorter_texts(value)
  elseif type(value) == "number" then
    return { 0, 1, math.tointeger(value // 2) }
  elseif type(value) ~= "table" then
    return list
  end
  local array = oracle.is_array(value)
  for _, key in ipairs(options.sorted_keys(value)) do
    local less = {}
    for other, one in pairs(value) do
      if array and other ~= key then
        less[#less + 1] = value[other]
      elseif other ~= key then
        less[other] = one
      end
    end
    list[#list + 1] = array and core.array(less) or less
    for _, small in ipairs(smaller_values(value[key])) do
      local new = {}
      for other, one in pairs(value) do
        new[other] = one
      end
      new[key] = small
      list[#list + 1] = array and core.array(new) or new
    end
  end
  return list
end


-- Models that are smaller than this one.
local function smaller_models(request)
  local list = {}
  local function add(change)
    local new = model.copy(request)
    change(new)
    list[#list + 1] = new
  end
  for _, wrong in ipairs { "segment", "extra_query" } do
    if request[wrong] then
      add(function(new) new[wrong] = nil end)
    end
  end
  if request.body.value ~= nil and request.body.wrong then
    add(function(new)
      new.body = { value = request.body.value,
        type = request.route.body.types[1],
        text = core.encode(request.body.value) }
    end)
  elseif request.body.value ~= nil then
    for _, value in ipairs(smaller_values(request.body.value)) do
      add(function(new)
        new.body.value, new.body.text = value, core.encode(value)
      end)
    end
  end
  for _, where in ipairs { "query", "headers" } do
    for i, one in ipairs(request[where]) do
      add(function(new) table.remove(new[where], i) end)
      for _, text in ipairs(shorter_texts(one.text)) do
        add(function(new)
          new[where][i] = { name = one.name, text = text }
        end)
      end
    end
  end
  for name, text in pairs(request.path) do
    for _, short in ipairs(shorter_texts(text)) do
      add(function(new) new.path[name] = short end)
    end
  end
  return list
end


-- How large a request is: what shrinking makes less.
local function size_of(request)
  local letters = model.target(request) .. (request.body.text or "")
  for _, one in ipairs(request.headers) do
    letters = letters .. one.name .. one.text
  end
  local wrong = request.segment or request.extra_query or request.body.wrong
  return (wrong and WRONG or 0) + #letters * 100
    + select(2, letters:gsub("[^a0]", ""))
end


--- shrink(request, fails): the smallest model found for which fails(model)
-- holds.
function M.shrink(request, fails)
  local tries = 0
  local again = true
  while again and tries < SHRINKS do
    again = false
    for _, smaller in ipairs(smaller_models(request)) do
      if size_of(smaller) < size_of(request) and model.is_sendable(smaller) then
        tries = tries + 1
        if fails(smaller) then
          request, again = smaller, true
          break
        end
        if tries >= SHRINKS then
          break
        end
      end
    end
  end
  return request
end


-- ---- as a test case --------------------------------------------------------

-- Where the first long run of one character is, or nil.
local function find_run(text)
  local first = 1
  for i = 2, #text + 1 do
    if text:byte(i) ~= text:byte(first) then
      if i - first >= RUN_MIN and text:byte(first) < 0x80 then
        return first, i - 1
      end
      first = i
    end
  end
  return nil
end


-- A text as Lua writes it, on one line, long runs of a character made short.
local function quoted(text)
  local first, last = find_run(text)
  if first then
    local middle = ("(%q):rep(%d)"):format(text:sub(first, first),
      last - first + 1)
    local left = first > 1 and quoted(text:sub(1, first - 1)) .. " .. " or ""
    local right = last < #text and " .. " .. quoted(text:sub(last + 1)) or ""
    return left .. middle .. right
  end
  return (("%q"):format(text):gsub("\\\n", "\\n"):gsub("\r", "\\r"))
end


-- A table or scalar as Lua writes it.
local function literal(value)
  if type(value) == "string" then
    return quoted(value)
  elseif type(value) ~= "table" then
    return tostring(value)
  end
  local parts = {}
  for i, one in ipairs(value) do
    parts[i] = literal(one)
  end
  if #parts == 0 then
    for _, key in ipairs(options.sorted_keys(value)) do
      parts[#parts + 1] = ("%s = %s"):format(key:find("^[%a_][%w_]*$") and key
        or "[" .. quoted(key) .. "]", literal(value[key]))
    end
  end
  return "{ " .. table.concat(parts, ", ") .. " }"
end

local EXPECTATIONS <const> = {
  passes = "t.refused(r)", refused = "t.allowed(r)",
  raises = "t.not_failed(r)",
}


--- case(failure): a failure as the text of a test case.
-- @param failure  { request, kind, why, seed, fields = of the identity,
--                 stood_in }
function M.case(failure)
  local request = failure.model
  local name = ("fuzz %s: %s %s"):format(failure.seed, request.method,
    request.route.path)
  local lines = {
    ("-- %s: %s"):format(request.route.at, (failure.why:gsub("%s*\n.*", ""))),
  }
  if failure.stood_in then
    lines[#lines + 1] = "-- No identity is known that authorize lets in: it was"
      .. " stood in for. Give one."
  end
  local opts = model.options(request)
  local more = next(opts) and ",\n    " .. literal(opts) or ""
  lines[#lines + 1] = ("t.case(%s, function()"):format(quoted(name))
  lines[#lines + 1] = ("  local r = t.request(t.identity %s,\n    %s, %s%s)")
    :format(literal(failure.fields), quoted(request.method),
      quoted(model.target(request)), more)
  lines[#lines + 1] = "  " .. EXPECTATIONS[failure.kind]
  lines[#lines + 1] = "end)"
  return table.concat(lines, "\n")
end


return M
