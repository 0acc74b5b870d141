--- JSON Pointers: what "/$defs/name" stands for (RFC 6901).

local M = {}


--- The steps of a pointer, one by one: "/a~1b/0" has "a/b" and "0".
-- @param fragment  true: it is of a URI, and percent-encoded
function M.steps(pointer, fragment)
  local following = pointer:gmatch("/([^/]*)")
  return function()
    local step = following()
    if step and fragment then
      step = step:gsub("%%(%x%x)", function(hex)
        return string.char(tonumber(hex, 16))
      end)
    end
    return step and (step:gsub("~1", "/"):gsub("~0", "~"))
  end
end


--- What a step leads to from `at`, or nil. Lists begin with 0.
function M.child(at, step)
  if type(at) ~= "table" then
    return nil
  elseif at[step] == nil and step:find("^%d+$") then
    return at[tonumber(step) + 1]
  end
  return at[step]
end


--- The value below `root` that a local reference names, which may be false; nil
-- where it is no local reference, or nothing is there.
-- @param root       a decoded document
-- @param reference  "#" or "#/a/b", percent-encoded
-- @return the value, and the last step to it ("": none)
function M.find(root, reference)
  local path = reference:match("^#(/.*)$") or reference == "#" and ""
  local at, last = root, ""
  for step in M.steps(path or "", true) do
    at, last = M.child(at, step), step
  end
  if path then
    return at, last
  end
  return nil
end


return M
