--- What tools do with texts, and random numbers that come again.

local M = {}


--- The first line: of an error, the part that is not its traceback.
function M.first_line(text)
  return (tostring(text):gsub("\n.*$", ""))
end


--- Percent-encoded as a part of a URL.
-- @param keep  characters that may stand, besides those that always may
function M.percent(text, keep)
  return (text:gsub("[^%w._~" .. (keep or "") .. "-]", function(char)
    return ("%%%02X"):format(char:byte())
  end))
end


--- The text where JSON can hold it; else with '?' for what is not ASCII.
function M.for_json(text)
  return utf8.len(text) and text or (text:gsub("[\x80-\xff]", "?"))
end


--- A sequence of numbers that depends on the seed alone: random(n) -> 1 … n.
function M.sequence(seed)
  local state = seed
  return function(n)
    state = state * 6364136223846793005 + 1442695040888963407
    return (state >> 33) % n + 1
  end
end


return M
