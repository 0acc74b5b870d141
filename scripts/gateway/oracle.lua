--- Is a value valid? A second opinion on schemas, for `gateway test --fuzz`.
--
--     oracle.valid({ type = "integer", minimum = 1 }, 0)    --> false
--     oracle.text({ type = "integer", minimum = 1 }, { "7" })  --> true
--
-- Small, slow, and written apart from the engine that serves, so that the two
-- do not share a mistake. What it cannot tell for sure it does not judge: then
-- the verdict is nil.

local core <const> = require "gateway.core"
local pattern <const> = require "gateway.pattern"
local pointer <const> = require "gateway.pointer"
local M = {}

local DEPTH <const> = 60
local EXACT_WHOLE <const> = 2 ^ 53
local EXACT_DIGITS <const> = 15  -- of a number that a double holds for sure

-- Keywords that speak of objects: where one applies, unknown members are
-- refused.
local OBJECT_WORDS <const> = {
  "properties", "patternProperties", "additionalProperties", "propertyNames",
  "unevaluatedProperties", "required", "minProperties", "maxProperties",
  "dependentRequired", "dependentSchemas",
}


-- ---- three-valued logic -----------------------------------------------------

--- The verdict on two: false beats nil beats true.
local function both(a, b)
  if a == false or b == false then
    return false
  elseif a == nil or b == nil then
    return nil
  end
  return true
end


M.both = both


-- How many of a list of verdicts are true; and how many are not known.
local function tally(verdicts, count)
  local sure, unsure = 0, 0
  for i = 1, count do
    if verdicts[i] == nil then
      unsure = unsure + 1
    elseif verdicts[i] then
      sure = sure + 1
    end
  end
  return sure, unsure
end


-- ---- values -----------------------------------------------------------------

--- True where a table is a JSON array.
function M.is_array(value)
  return type(value) == "table" and getmetatable(value) == false
end


local function type_of(value)
  if value == core.null then
    return "null"
  elseif M.is_array(value) then
    return "array"
  elseif type(value) == "table" then
    return "object"
  end
  return type(value)
end


local function is_whole(value)
  return math.type(value) == "integer"
    or value == math.floor(value) and math.abs(value) < math.huge
end


local function has_type(value, wanted)
  local found = type_of(value)
  if wanted ~= "integer" then
    return found == wanted
  elseif found ~= "number" or not is_whole(value) then
    return false
  end
  return math.type(value) == "integer" or math.abs(value) < EXACT_WHOLE or nil
end


--- Deep equality of JSON values.
function M.equal(a, b)
  if type_of(a) ~= type_of(b) then
    return false
  elseif type(a) ~= "table" then
    return a == b
  end
  for key, value in pairs(a) do
    if b[key] == nil or not M.equal(value, b[key]) then
      return false
    end
  end
  for key in pairs(b) do
    if a[key] == nil then
      return false
    end
  end
  return true
end


-- ---- formats: true, false, or nil for what is at their edges ----------------

local function in_range(text, low, high)
  local number = tonumber(text)
  return number >= low and number <= high
end


local function is_date(text)
  local year, month, day = text:match("^(%d%d%d%d)%-(%d%d)%-(%d%d)$")
  if not year or not in_range(month, 1, 12) or not in_range(day, 1, 31) then
    return false
  end
  return in_range(day, 1, 28) or nil
end


local function is_time(text)
  local hour, minute, second, zone =
    text:match("^(%d%d):(%d%d):(%d%d)(.*)$")
  if not hour or not in_range(hour, 0, 23) or not in_range(minute, 0, 59)
    or not in_range(second, 0, 60) or zone == "" then
    return false
  end
  return zone == "Z" and in_range(second, 0, 59) or nil
end

local FORMATS <const> = {
  uuid = function(text)
    local parts = { text:match("^(%x+)%-(%x+)%-(%x+)%-(%x+)%-(%x+)$") }
    return #parts == 5 and #parts[1] == 8 and #parts[2] == 4
      and #parts[3] == 4 and #parts[4] == 4 and #parts[5] == 12
  end,
  date = is_date,
  time = is_time,
  ["date-time"] = function(text)
    local date, mark, time = text:match("^(..........)(.)(.*)$")
    if not date or is_date(date) == false or is_time(time) == false
      or not mark:find("[Tt ]") then
      return false
    end
    return mark == "T" and both(is_date(date), is_time(time)) or nil
  end,
  ipv4 = function(text)
    local parts = { text:match("^(%d+)%.(%d+)%.(%d+)%.(%d+)$") }
    for _, part in ipairs(parts) do
      if #part > 3 or not in_range(part, 0, 255) or part:find("^0.") then
        return false
      end
    end
    return #parts == 4
  end,
  email = function(text)
    if not text:find(".@.") or text:find("%s") then
      return false
    end
    return text:find("^%l+@%l+%.%l+$") and true or nil
  end,
  hostname = function(text)
    if text == "" or text:find("[^%w.-]") then
      return false
    end
    return text:find("^%l+$") and #text < 60 or nil
  end,
  byte = function(text)
    if text:find("[^%w+/=]") then
      return false
    end
    return #text % 4 == 0 and text:find("^%w*$") and true or nil
  end,
}

local NUMBER_FORMATS <const> = {
  int32 = function(value)
    return is_whole(value) and value >= -2147483648 and value <= 2147483647
  end,
  int64 = function(value)
    if math.type(value) == "integer" then
      return true
    elseif not is_whole(value) then
      return false
    end
    return nil
  end,
}


-- ---- keywords ---------------------------------------------------------------

local patterns = {}

--- The analysed pattern; nil where it cannot be judged.
function M.pattern(text)
  if patterns[text] == nil then
    local made = pattern.new(text)
    patterns[text] = made and not made.why and made or false
  end
  return patterns[text] or nil
end


local function matches(text, value)
  local made = M.pattern(text)
  if not made then
    return nil
  end
  return made:accepts(value)
end


local function limit(value, wanted, holds)
  return wanted == nil or holds(value, wanted)
end

local function at_least(value, wanted) return value >= wanted end
local function at_most(value, wanted) return value <= wanted end
local function above(value, wanted) return value > wanted end
local function below(value, wanted) return value < wanted end


-- A multiple, as far as whole numbers go.
local function is_multiple(value, step)
  if step == nil then
    return true
  elseif math.type(step) == "integer" and math.type(value) == "integer" then
    return value % step == 0
  elseif math.type(step) == "integer" and not is_whole(value) then
    return false
  end
  return nil
end


local function check_number(schema, value)
  local verdict = limit(value, schema.minimum, at_least)
    and limit(value, schema.maximum, at_most)
    and limit(value, schema.exclusiveMinimum, above)
    and limit(value, schema.exclusiveMaximum, below)
  local format = NUMBER_FORMATS[schema.format]
  if format then
    verdict = both(verdict, format(value))
  end
  return both(verdict, is_multiple(value, schema.multipleOf))
end


local function check_string(schema, value)
  local length = utf8.len(value)
  if not length then
    return false
  end
  local verdict = limit(length, schema.minLength, at_least)
    and limit(length, schema.maxLength, at_most)
  if verdict and schema.pattern then
    verdict = both(verdict, matches(schema.pattern, value))
  end
  if verdict ~= false and schema.format and not NUMBER_FORMATS[schema.format]
    then
    local format = FORMATS[schema.format]
    if not format then
      return nil
    end
    verdict = both(verdict, format(value))
  end
  return verdict
end


local check  -- check(schema, value, run) -> verdict: a location of its own


local function check_contains(schema, value, run)
  local verdicts = {}
  for i = 1, #value do
    verdicts[i] = check(schema.contains, value[i], run)
  end
  local sure, unsure = tally(verdicts, #value)
  local least, most = schema.minContains or 1, schema.maxContains or math.huge
  if sure + unsure < least or sure > most then
    return false
  elseif unsure > 0 then
    return nil
  end
  return true
end


local function is_unique(value)
  for i = 1, #value do
    for j = i + 1, #value do
      if M.equal(value[i], value[j]) then
        return false
      end
    end
  end
  return true
end


local function check_array(schema, value, run)
  local verdict = limit(#value, schema.minItems, at_least)
    and limit(#value, schema.maxItems, at_most)
    and (not schema.uniqueItems or is_unique(value))
  local prefix = schema.prefixItems or {}
  for i = 1, #value do
    local item = prefix[i] or i > #prefix and schema.items
    if prefix[i] ~= nil or i > #prefix and schema.items ~= nil then
      verdict = both(verdict, check(item, value[i], run))
    end
  end
  if schema.contains ~= nil then
    verdict = both(verdict, check_contains(schema, value, run))
  end
  if schema.unevaluatedItems ~= nil then
    verdict = both(verdict, nil)
  end
  return verdict
end


-- What properties, patternProperties and additionalProperties say about one
-- member: the verdict, and whether one of them spoke about it.
local function check_member(schema, name, value, run)
  local verdict, spoken = true, false
  local own = (schema.properties or {})[name]
  if own ~= nil then
    verdict, spoken = check(own, value, run), true
  end
  for text, sub in pairs(schema.patternProperties or {}) do
    local hit = matches(text, name)
    if hit == nil then
      return nil, true
    elseif hit then
      verdict, spoken = both(verdict, check(sub, value, run)), true
    end
  end
  if not spoken and schema.additionalProperties ~= nil then
    return check(schema.additionalProperties, value, run), true
  end
  return verdict, spoken
end


--- How many members an object has.
function M.count_members(value)
  local count = 0
  for _ in pairs(value) do
    count = count + 1
  end
  return count
end


local function has_all(value, names)
  for _, name in ipairs(names or {}) do
    if value[name] == nil then
      return false
    end
  end
  return true
end


-- @param spoken  in and out: names that some schema has spoken about
local function check_object(schema, value, run, spoken)
  local count = M.count_members(value)
  local verdict = limit(count, schema.minProperties, at_least)
    and limit(count, schema.maxProperties, at_most)
    and has_all(value, schema.required)
  for name, member in pairs(value) do
    local one, known = check_member(schema, name, member, run)
    verdict = both(verdict, one)
    spoken[name] = spoken[name] or known
    if schema.propertyNames ~= nil then
      verdict = both(verdict, check(schema.propertyNames, name, run))
    end
  end
  for name, wanted in pairs(schema.dependentRequired or {}) do
    if value[name] ~= nil then
      verdict = verdict and has_all(value, wanted)
    end
  end
  return verdict
end


-- ---- schemas of schemas -----------------------------------------------------

local evaluate  -- evaluate(schema, value, run) -> verdict, spoken, speaks


local function absorb(into, spoken)
  for name, known in pairs(spoken) do
    into[name] = into[name] or known
  end
end


-- One of allOf and its like: what it says of members counts where it holds.
local function branch(schema, value, run, state)
  run.inside = run.inside + 1
  local verdict, spoken, speaks = evaluate(schema, value, run)
  run.inside = run.inside - 1
  if verdict == nil then
    state.unsure = true
  elseif verdict then
    absorb(state.spoken, spoken)
    state.speaks = state.speaks or speaks
  end
  return verdict
end


local function check_lists(schema, value, run, state)
  local verdict = true
  for _, sub in ipairs(schema.allOf or {}) do
    verdict = both(verdict, branch(sub, value, run, state))
  end
  for word, most in pairs { anyOf = math.huge, oneOf = 1 } do
    if schema[word] then
      local verdicts = {}
      for i, sub in ipairs(schema[word]) do
        verdicts[i] = branch(sub, value, run, state)
      end
      local sure, unsure = tally(verdicts, #schema[word])
      if sure > most or sure + unsure == 0 then
        verdict = false
      elseif unsure > 0 then
        verdict = both(verdict, nil)
      end
    end
  end
  return verdict
end


local function check_conditions(schema, value, run, state)
  local verdict = true
  if schema["not"] ~= nil then
    local no = branch(schema["not"], value, run,
      { spoken = {}, unsure = false })
    verdict = no ~= nil and not no or nil
    if no then
      verdict = false
    end
  end
  if schema["if"] ~= nil then
    local yes = branch(schema["if"], value, run, state)
    local sub = schema[yes and "then" or "else"]
    if yes == nil then
      verdict = both(verdict, nil)
    elseif sub ~= nil then
      verdict = both(verdict, branch(sub, value, run, state))
    end
  end
  for name, sub in pairs(schema.dependentSchemas or {}) do
    if type(value) == "table" and not M.is_array(value)
      and value[name] ~= nil then
      verdict = both(verdict, branch(sub, value, run, state))
    end
  end
  return verdict
end


local function check_reference(schema, value, run, state)
  if not schema["$ref"] then
    return true
  end
  local target = pointer.find(run.root, schema["$ref"])
  if target == nil or run.root["$id"] then
    state.unsure = true
    return nil
  end
  return branch(target, value, run, state)
end


local function check_type(schema, value)
  local types = schema.type
  if types == nil then
    return true
  end
  local verdicts = {}
  types = type(types) == "table" and types or { types }
  for i, name in ipairs(types) do
    verdicts[i] = has_type(value, name)
  end
  local sure, unsure = tally(verdicts, #types)
  if sure > 0 then
    return true
  end
  return unsure > 0 and nil
end


local function check_values(schema, value)
  if schema.const ~= nil and not M.equal(schema.const, value) then
    return false
  end
  for _, one in ipairs(schema.enum or {}) do
    if M.equal(one, value) then
      return true
    end
  end
  return not schema.enum
end


local function speaks_of_objects(schema)
  if schema.enum or schema.const ~= nil then
    return false
  end
  for _, word in ipairs(OBJECT_WORDS) do
    if schema[word] ~= nil then
      return true
    end
  end
  local types = type(schema.type) == "table" and schema.type or { schema.type }
  for _, name in ipairs(types) do
    if name == "object" then
      return true
    end
  end
  return false
end


local function check_own(schema, value, run, state)
  local kind = type_of(value)
  if kind == "number" then
    return check_number(schema, value)
  elseif kind == "string" then
    return check_string(schema, value)
  elseif kind == "array" then
    return check_array(schema, value, run)
  elseif kind == "object" then
    return check_object(schema, value, run, state.spoken)
  end
  return true
end


-- Members that nobody has spoken of, by `unevaluatedProperties`.
local function check_rest(schema, value, run, state)
  local rest = schema.unevaluatedProperties
  if rest == nil or type_of(value) ~= "object" then
    return true
  end
  local verdict = true
  for name, member in pairs(value) do
    if not state.spoken[name] then
      local one
      if not state.unsure or rest == true then
        one = check(rest, member, run)
      end
      verdict = both(verdict, one)
      state.spoken[name] = true
    end
  end
  return verdict
end


-- A schema on a value, without the rule that objects are closed.
function evaluate(schema, value, run)
  if type(schema) == "boolean" then
    return schema, {}, false
  end
  run.depth = run.depth + 1
  if run.depth > DEPTH then
    run.depth = run.depth - 1
    return nil, {}, false
  end
  local state = {
    spoken = {}, speaks = speaks_of_objects(schema), unsure = false,
  }
  local verdict = both(check_type(schema, value), check_values(schema, value))
  if verdict ~= false then
    verdict = both(verdict, check_own(schema, value, run, state))
  end
  verdict = both(verdict, check_reference(schema, value, run, state))
  verdict = both(verdict, check_lists(schema, value, run, state))
  verdict = both(verdict, check_conditions(schema, value, run, state))
  verdict = both(verdict, check_rest(schema, value, run, state))
  if schema.enum or schema.const ~= nil then
    state.speaks = false
  end
  run.depth = run.depth - 1
  if state.unsure then
    verdict = both(verdict, nil)
  end
  return verdict, state.spoken, state.speaks
end


-- A schema on a value at a place of its own: closed. Several schemas of one
-- place close it together, so below a combination this one cannot judge it.
function check(schema, value, run)
  local verdict, spoken, speaks = evaluate(schema, value, run)
  if verdict == false or not speaks or type_of(value) ~= "object" then
    return verdict
  end
  for name in pairs(value) do
    if not spoken[name] then
      if run.inside > 0 or verdict == nil then
        return nil
      end
      return false
    end
  end
  return verdict
end


--- valid(schema, value) -> true, false, or nil: not sure.
-- @param schema  as policy declarations hold it: plain tables
-- @param value   a JSON value as core.decode() makes it
function M.valid(schema, value)
  return check(schema, value, { root = schema, depth = 0, inside = 0 })
end


-- ---- text -------------------------------------------------------------------

local READERS <const> = {
  integer = function(text)
    local digits = text:match("^%-?(%d+)$")
    if digits and (digits == "0" or not digits:find("^0")) then
      return math.tointeger(tonumber(text)) or tonumber(text)
    end
  end,
  number = function(text)
    local whole, rest = text:match("^%-?(%d+)(.*)$")
    if not whole or whole:find("^0.") or #text > 400 then
      return nil
    end
    local fraction, exponent = rest:match("^(%.?%d*)(.*)$")
    if fraction == "." or exponent ~= ""
      and not exponent:find("^[eE][+-]?%d+$") then
      return nil
    end
    return tonumber(text)
  end,
  boolean = function(text)
    if text == "true" or text == "false" then
      return text == "true"
    end
  end,
  string = function(text)
    return utf8.len(text) and text or nil
  end,
}
local ORDER <const> = { "integer", "number", "boolean", "string" }


-- The values that a text can stand for, in the order in which they are tried;
-- and whether one of them is too long for this judge.
local function readings(schema, text)
  local types = type(schema) == "table" and schema.type or "string"
  local list, wanted, long = {}, {}, false
  for _, name in ipairs(type(types) == "table" and types or { types }) do
    wanted[name] = true
  end
  for _, name in ipairs(ORDER) do
    local value
    if wanted[name] then
      value = READERS[name](text)
    end
    if value ~= nil then
      list[#list + 1] = value
      long = long or type(value) == "number" and #text > EXACT_DIGITS
    end
  end
  return list, long
end


local function text_of_one(schema, text)
  local list, long = readings(schema, text)
  local verdict = false
  for _, value in ipairs(list) do
    local one = M.valid(schema, value)
    if one and not long then
      return true
    elseif one ~= false then
      verdict = nil
    end
  end
  return verdict
end


-- The item schema of a list of texts.
local function item_schema(schema, i)
  local prefix = schema.prefixItems or {}
  if prefix[i] ~= nil then
    return prefix[i]
  end
  return schema.items
end


--- text(schema, texts) -> true, false, or nil: the texts of one input (a
-- capture, a parameter, a header) as the value that its schema names.
function M.text(schema, texts)
  local types = type(schema.type) == "table" and schema.type or { schema.type }
  local array = false
  for _, name in ipairs(types) do
    array = array or name == "array"
  end
  if not array then
    if #texts ~= 1 then
      return false
    end
    return text_of_one(schema, texts[1])
  end
  local list = core.array {}
  for i, text in ipairs(texts) do
    local item = item_schema(schema, i)
    local found, long = readings(item, text)
    if #found == 0 then
      return false
    elseif #found > 1 or long then
      return nil
    end
    list[i] = found[1]
  end
  return M.valid(schema, list)
end


return M
