--- An OpenAPI document beside a policy: operations that no route takes, and
-- routes that no operation tells of.

local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local M = {}


local function segments_of(path)
  local list = options.segments(path)
  for i, segment in ipairs(list) do
    list[i] = segment:find("^{.*%.%.%.}$") and "..."
      or segment:find("{", 1, true) and "{}" or segment
  end
  return list
end


-- Is every path of `narrow` one of `wide`?
local function covers(wide, narrow)
  for i, segment in ipairs(wide) do
    if segment == "..." then
      return #narrow >= i
    elseif narrow[i] == nil or segment ~= "{}" and segment ~= narrow[i]
      or narrow[i] == "..." then
      return false
    end
  end
  return #wide == #narrow
end


-- "./api.yaml:3" and "api.yaml:3" are one place.
local function plain_place(at)
  return (at:gsub("^%./", ""))
end


-- The paths that an operation may have in a policy.
local function paths_of(api, operation)
  local list = { segments_of(operation.path) }
  if api.prefix and api.prefix ~= "" then
    list[2] = segments_of(api.prefix .. operation.path)
  end
  return list
end


local function is_covered(api, operation, route, path)
  if plain_place(route.at) == plain_place(operation.at) then
    return true
  elseif not policy.takes(route, operation.method) then
    return false
  end
  for _, one in ipairs(paths_of(api, operation)) do
    if covers(path, one) then
      return true
    end
  end
  return false
end


-- Does the document know of all that the route takes?
local function is_known(api, route, path)
  for _, operation in ipairs(api.operations) do
    if plain_place(route.at) == plain_place(operation.at) then
      return true
    end
    for _, one in ipairs(paths_of(api, operation)) do
      local only = { methods = { operation.method } }
      if covers(one, path) and #route.methods == 1
        and policy.takes(only, route.methods[1]) then
        return true
      end
    end
  end
  return false
end


-- One route for each method of a route.
local function by_method(route)
  local list = {}
  for i, method in ipairs(route.methods) do
    list[i] = { methods = { method }, path = route.path, at = route.at }
  end
  return list
end


-- Was it made from another document, which does know it?
local function from_another(route)
  local file = route.at:match("^(.*):%d+$") or ""
  return file:find("%.ya?ml$") or file:find("%.json$")
end


--- Adds what only the document has, and what only the policy has.
-- @param api     openapi_read.read()
-- @param routes  of the policy's plain configuration
-- @param add     function(rule, at, what)
function M.compare(api, routes, add)
  local covered = {}
  for _, whole in ipairs(routes) do
    local path = segments_of(whole.path)
    for _, route in ipairs(by_method(whole)) do
      for _, operation in ipairs(api.operations) do
        covered[operation] = covered[operation]
          or is_covered(api, operation, route, path)
      end
      if not is_known(api, route, path) and not from_another(route) then
        add("openapi.undocumented", route.at, ("%s does not know %s %s")
          :format(api.doc.name, route.methods[1] == "*"
            and "every method of" or route.methods[1], route.path))
      end
    end
  end
  for _, operation in ipairs(api.operations) do
    if not covered[operation] then
      add("openapi.uncovered", operation.at, ("%s %s: the policy has no"
        .. " route for it"):format(operation.method, operation.path))
    end
  end
end


return M
