--- Changes to a request of `gateway test --fuzz`: one at a time, which makes it
-- invalid for sure, or perhaps.

local core <const> = require "gateway.core"
local generate <const> = require "gateway.generate"
local model <const> = require "gateway.fuzz_model"
local M = {}

local BODY_MAX <const> = model.BODY_MAX
local TRIES <const> = 20  -- to change something


-- ---- what is wrong by construction -----------------------------------------

-- What no path segment may hold, as it stands in the target; `allow`: what a
-- route may say to let it in.
local SEGMENTS <const> = {
  { ".." }, { "." }, { "%2e%2e" }, { ".%2e" }, { "..;a" }, { "a%00b" },
  { "a%0ab" }, { "a%7fb" }, { "%5c" }, { "a%5cb" }, { "a\\b" }, { "%" },
  { "%zz" }, { "a%2" }, { "a\"b" }, { "a<b" }, { "\xc3\xa9" },
  { "a%2fb", allow = "encoded_slash" }, { "..%2fb" },
  { "a;b", allow = "semicolon" }, { "a%3bb", allow = "semicolon" },
  { "%ff", allow = "non_utf8" }, { "%c0%af", allow = "non_utf8" },
  { "a//b", allow = "empty_segment" },
}

local QUERIES <const> = {
  { "undeclared_by_anyone=1", declared = true },
  { "a%00b=1" }, { "%" }, { "a=%zz" }, { "a=%0a" }, { "a b=1" },
  { "a;b", allow = "semicolon" }, { "=1", allow = "nameless_param" },
  { "a=%ff", allow = "non_utf8" },
}

-- Bodies that are no JSON, or none that we take; each is made of one that is,
-- or nil. No parser is asked: they are wrong by construction.
local DOCUMENTS <const> = {
  function(text) return text .. "x" end,
  function(text) return text:find("^[{%[\"]") and text .. text end,
  function(text) return text:find("^[{%[\"]") and text:sub(1, -2) end,
  function(text) return "\xef\xbb\xbf" .. text end,
  function(text)
    return text:find("^{\"") and (text:gsub("^{", '{"a":1,"a":1,'))
  end,
  function(text)
    local name, value = text:match('^{("[%w_]+"):([%w.]+)[,}]')
    return name and ("{%s:%s,%s"):format(name, value, text:sub(2))
  end,
  function(text)
    return text:find("^{\"") and (text:gsub("^{", '{"\\ud800":1,'))
  end,
  function() return '"\xff"' end,
  function() return ("["):rep(65) .. ("]"):rep(65) end,
  function() return "NaN" end,
  function() return "'a'" end,
  function() return "{a:1}" end,
  function() return "[1,]" end,
  function() return "/**/{}" end,
  function() return "01" end,
  function() return "" end,
}


-- Content types that are not the JSON we take.
local TYPES <const> = {
  "text/x-fuzz", "text/json", "application/jsonx", "application/json-seq",
  "application/json; charset=utf-16", "application/json; version=1",
  "application/json, text/plain", "json", "/",
}


local function allows(route, name)
  for _, allowed in ipairs(route.allow or {}) do
    if allowed == name then
      return true
    end
  end
  return false
end


-- ---- changes ---------------------------------------------------------------

-- Ways to change a good request. Each returns true where it could.
local changes = {}


function changes.path(request, random)
  local captures = model.captures(request.route.path)
  if #captures == 0 then
    return false
  end
  local name = captures[random(#captures)].name
  request.path[name] = generate.near_text(request.route.path_schemas[name],
    request.path[name], random)
  return true
end


function changes.segment(request, random)
  local captures = model.captures(request.route.path)
  local wrong = SEGMENTS[random(#SEGMENTS)]
  if #captures == 0 or wrong.allow and #(request.route.allow or {}) > 0 then
    return false
  end
  request.segment = { name = captures[random(#captures)].name, text = wrong[1] }
  return true
end


-- One text of a list of inputs: changed, doubled, or left out.
local function change_input(list, inputs, random)
  if #list == 0 then
    return false
  end
  local i, how = random(#list), random(6)
  local schema = inputs[list[i].name].schema
  if how == 1 then
    table.insert(list, random(#list + 1),
      { name = list[i].name, text = list[i].text })
  elseif how == 2 then
    table.remove(list, i)
  else
    list[i] = { name = list[i].name,
      text = generate.near_text(schema, list[i].text, random) }
  end
  return true
end


function changes.query(request, random)
  return change_input(request.query, request.route.query, random)
end


function changes.headers(request, random)
  return change_input(request.headers, request.route.headers, random)
end


function changes.extra_query(request, random)
  local wrong = QUERIES[random(#QUERIES)]
  if wrong.declared and request.route.query_unchecked
    or wrong.allow and #(request.route.allow or {}) > 0 then
    return false
  end
  request.extra_query = wrong[1]
  return true
end


function changes.json(request, random)
  if request.route.body.kind ~= "json" then
    return false
  end
  local value = generate.near(request.route.body.schema, request.body.value,
    random)
  request.body.value, request.body.text = value, core.encode(value)
  return true
end


function changes.document(request, random)
  if request.route.body.kind ~= "json" then
    return false
  end
  local text = DOCUMENTS[random(#DOCUMENTS)](request.body.text)
  if not text then
    return false
  end
  request.body.text, request.body.wrong = text, "not JSON"
  return true
end


-- A body of another type, too large a body, or one where there is none.
function changes.body(request, random)
  local body, route = request.body, request.route
  if route.body.kind == "none" then
    body.text, body.type, body.wrong = "{}", "application/json", "a body"
    return request.method ~= "GET" or not allows(route, "body_on_get")
  elseif random(2) == 1 and (route.body.max or BODY_MAX) < BODY_MAX then
    body.text = (body.text or "") .. (" "):rep(route.body.max + 1)
    body.wrong = "too large"
    return true
  elseif route.body.kind == "json" and random(4) == 1
    and not allows(route, "content_encoding") then
    body.encoding, body.wrong = "gzip", "encoded"
    return true
  elseif #route.body.types > 0 then
    body.type = route.body.kind == "json" and TYPES[random(#TYPES)] or TYPES[1]
    body.wrong = "of another type"
    return true
  end
  return false
end

local CHANGES <const> = { "path", "segment", "query", "headers", "extra_query",
  "json", "document", "body", "json", "path", "query" }


--- changed(request, random): a copy of a model with one thing changed, or nil.
function M.changed(request, random)
  for _ = 1, TRIES do
    local new = model.copy(request)
    if changes[CHANGES[random(#CHANGES)]](new, random)
      and model.is_sendable(new) then
      return new
    end
  end
  return nil
end


return M
