--- Clients that a route lets in, as far as its conditions tell: for the tools
-- that send requests of their own.
--
-- What a function(identity) wants nobody can tell. Whether a client is let in,
-- the route says itself.

local identity <const> = require "gateway.identity"
local policy <const> = require "gateway.policy"
local M = {}

local MAX_ALTERNATIVES <const> = 16


-- "CN=alice,OU=ops" as fields, as far as that is simple.
local function fields_of_dn(dn)
  local fields = {}
  for name, value in dn:gmatch("(%a+)=([^,+\\]*)") do
    name = name:lower()
    fields[name] = fields[name] or {}
    table.insert(fields[name], 1, value)
  end
  return fields
end


-- The fields of a client that has what one condition wants.
local function fields_for(name, wanted)
  if name == "dn" then
    return fields_of_dn(wanted)
  elseif name == "spiffe" or name == "uri" then
    return { uri = { (wanted:gsub("%*+", "x")) } }
  elseif name == "dns" then
    return { dns = { (wanted:gsub("^%*", "x")) } }
  end
  return { [name] = { wanted } }
end


local function merged(a, b)
  local fields = {}
  for _, from in ipairs { a, b } do
    for name, values in pairs(from) do
      fields[name] = fields[name] or {}
      table.move(values, 1, #values, #fields[name] + 1, fields[name])
    end
  end
  return fields
end


-- Every way to satisfy both.
local function cross(left, right)
  local list = {}
  for _, a in ipairs(left) do
    for _, b in ipairs(right) do
      if #list < MAX_ALTERNATIVES then
        list[#list + 1] = merged(a, b)
      end
    end
  end
  return list
end


-- The clients that satisfy a condition; of what cannot be told, one of whom
-- nothing is said.
local function alternatives(condition)
  if condition and condition.kind == "any" then
    local list = {}
    for _, part in ipairs(condition.parts) do
      local more = alternatives(part)
      table.move(more, 1, #more, #list + 1, list)
    end
    return list
  elseif condition and condition.kind == "all" then
    local list = { {} }
    for _, part in ipairs(condition.parts) do
      list = cross(list, alternatives(part))
    end
    return list
  elseif condition and condition.name then
    return { fields_for(condition.name, condition.wanted) }
  end
  return { {} }
end


--- The clients that a route may let in.
-- @param cn  the name of those that no condition names
-- @return a list of fields, as who.make and t.identity take them
function M.route(route, cn)
  local list = { {} }
  for _, who in ipairs(route.authorize) do
    list = cross(list,
      alternatives(identity.condition_of(policy.hook_of(who.hook))))
  end
  for i = #list, MAX_ALTERNATIVES + 1, -1 do
    list[i] = nil
  end
  for _, fields in ipairs(list) do
    fields.cn = fields.cn or { cn }
    for name, values in pairs(fields) do
      fields[name] = #values == 1 and values[1] or values
    end
  end
  return list
end


return M
