--- JSON Pointers in fragments: what "#/$defs/name" stands for (RFC 6901).

local M = {}


--- The value below `root` that a local reference names, which may be false; nil
-- where it is no local reference, or nothing is there.
-- @param root       a decoded document
-- @param reference  "#" or "#/a/b", percent-encoded
function M.find(root, reference)
  if reference == "#" then
    return root
  end
  local path = reference:match("^#(/.*)$")
  local at = root
  for key in (path or ""):gmatch("/([^/]*)") do
    key = key:gsub("%%(%x%x)", function(hex)
      return string.char(tonumber(hex, 16))
    end):gsub("~1", "/"):gsub("~0", "~")
    if type(at) ~= "table" then
      return nil
    end
    local index = at[key] == nil and math.tointeger(tonumber(key))
    at = at[index and index + 1 or key]
  end
  if not path then
    return nil
  end
  return at
end


return M
