--- Requests of `gateway test --fuzz`: a plain description of each, a model.
--
-- A model is texts of the path, query and headers, a body, and perhaps one
-- thing that is wrong by construction (fuzz_change), such as an encoded slash.
-- gateway.oracle says whether it is valid.

local core <const> = require "gateway.core"
local generate <const> = require "gateway.generate"
local options <const> = require "gateway.options"
local oracle <const> = require "gateway.oracle"
local strings <const> = require "gateway.strings"
local M = {}

local TEXT_MAX <const> = 2000     -- of a text in a URL or a header
local BODY_MAX <const> = 65536    -- of a body that is made
local REPEATS_MAX <const> = 40    -- of one query parameter
local TRIES <const> = 20          -- to make something valid

M.BODY_MAX = BODY_MAX


-- ---- models ----------------------------------------------------------------

--- The captures of a path, as a list of { name, rest }.
function M.captures(path)
  local list = {}
  for name, dots in path:gmatch("{([%w_]+)(%.*)}") do
    list[#list + 1] = { name = name, rest = dots ~= "" }
  end
  return list
end


-- Commas stay as they are where a list is told apart by them.
local function commas_of(route)
  for _, input in pairs(route.query) do
    if input.commas then
      return ","
    end
  end
  return ""
end


--- The request target of a model.
function M.target(model)
  local path = model.route.path:gsub("{([%w_]+)(%.*)}", function(name, dots)
    if model.segment and model.segment.name == name then
      return model.segment.text
    end
    return strings.percent(model.path[name], dots ~= "" and "/" or nil)
  end)
  local pieces = {}
  for _, one in ipairs(model.query) do
    pieces[#pieces + 1] = strings.percent(one.name) .. "="
      .. strings.percent(one.text, commas_of(model.route))
  end
  pieces[#pieces + 1] = model.extra_query
  return path .. (#pieces > 0 and "?" .. table.concat(pieces, "&") or "")
end


local function texts_of(list, name)
  local texts = {}
  for _, one in ipairs(list) do
    if one.name == name then
      texts[#texts + 1] = one.text
    end
  end
  return texts
end


-- ---- is a model valid? -----------------------------------------------------

-- Can a text stand in a path as a capture? False: never. Nil: where the route
-- allows it, or as another route's path, perhaps.
local function path_carries(route, text, rest)
  if text:find("[%c\\]") or not utf8.len(text) then
    return false
  end
  for segment in (text .. "/"):gmatch("([^/]*)/") do
    if segment:find("^%.%.?$") or segment:find("^%.%.?;") then
      return false
    end
  end
  if text == "" or text:find("/$") or #(route.allow or {}) > 0
    and text:find("[/;]") then
    return nil
  end
  return not (text:find(rest and "//" or "/") or text:find("^/")
    or text:find(";"))
end


local function judge_path(model)
  local verdict = true
  for _, capture in ipairs(M.captures(model.route.path)) do
    local text = model.path[capture.name]
    local one = path_carries(model.route, text, capture.rest)
    if one then
      one = oracle.text(model.route.path_schemas[capture.name], { text })
    end
    verdict = oracle.both(verdict, one)
  end
  return verdict
end


-- One declared input and the texts that came for it.
local function judge_input(input, texts)
  if #texts == 0 then
    return input.optional
  elseif input.commas then
    if #texts > 1 then
      return false
    end
    local items = {}
    for item in (texts[1] .. ","):gmatch("([^,]*),") do
      items[#items + 1] = item
    end
    texts = items
  end
  return oracle.text(input.schema, texts)
end


local function judge_query(model)
  local route, verdict = model.route, true
  for _, one in ipairs(model.query) do
    if one.text:find("%c") or one.name:find("%c") then
      return false
    elseif not route.query[one.name] and not route.query_unchecked then
      return false
    end
  end
  for name, input in pairs(route.query) do
    local one = judge_input(input, texts_of(model.query, name))
    verdict = oracle.both(verdict, one)
  end
  return verdict
end


-- A header's text arrives without blanks around it, and is not an array.
local function judge_headers(model)
  local verdict = true
  for name, input in pairs(model.route.headers) do
    local texts = texts_of(model.headers, name)
    local one
    if #texts > 1 then
      one = false
    else
      one = judge_input(input, texts)
      if texts[1] and (texts[1]:find("^%s") or texts[1]:find("%s$")
        or texts[1]:find("[^ -~]") or texts[1] == "") then
        one = nil
      end
    end
    verdict = oracle.both(verdict, one)
  end
  return verdict
end


local function judge_body(model)
  local body, route = model.body, model.route
  if body.wrong then
    return false
  elseif route.body.kind == "none" then
    return body.text == nil
  elseif route.body.kind == "json" then
    return oracle.valid(route.body.schema, body.value)
  end
  return true
end


--- valid(model) -> true, false, or nil: not sure.
function M.valid(model)
  if model.segment or model.extra_query then
    return false
  end
  local verdict = true
  for _, judge in ipairs { judge_path, judge_query, judge_headers,
    judge_body } do
    local one = judge(model)
    verdict = oracle.both(verdict, one)
  end
  return verdict
end


-- ---- making models ---------------------------------------------------------

local function good_texts(schema, random)
  local value = generate.good(schema, random)
  if not oracle.is_array(value) then
    return { generate.text(value) }
  end
  local texts = {}
  for i, one in ipairs(value) do
    texts[i] = generate.text(one)
  end
  return texts
end


-- Tries for a good text that is valid for sure.
local function sure_texts(schema, random, accepts)
  local texts
  for _ = 1, TRIES do
    texts = good_texts(schema, random)
    if #texts > 0 and oracle.text(schema, texts)
      and (not accepts or accepts(texts[1])) then
      break
    end
  end
  return texts
end


local function good_body(route, random)
  local kind = route.body.kind
  if kind == "none" then
    return {}
  elseif kind == "json" then
    local value
    for _ = 1, TRIES do
      value = generate.good(route.body.schema, random)
      if oracle.valid(route.body.schema, value) then
        break
      end
    end
    return { value = value, text = core.encode(value),
      type = route.body.types[1] }
  end
  local max = math.min(route.body.max or BODY_MAX, BODY_MAX)
  return {
    text = ("x"):rep(random(3) == 1 and max or math.min(max, random(9))),
    type = route.body.types[1] or "application/octet-stream",
  }
end


local function add_inputs(list, inputs, random, all)
  for _, name in ipairs(options.sorted_keys(inputs)) do
    local input = inputs[name]
    if all or not input.optional or random(2) == 1 then
      local texts = sure_texts(input.schema, random)
      if input.commas and #texts > 0 then
        texts = { table.concat(texts, ",") }
      end
      for _, text in ipairs(texts) do
        list[#list + 1] = { name = name, text = text }
      end
    end
  end
end


--- good(route, method, random): a request that is probably valid.
-- @param all  true: with every optional input
function M.good(route, method, random, all)
  local model = {
    route = route, method = method, path = {}, query = {}, headers = {},
    body = good_body(route, random),
  }
  for _, capture in ipairs(M.captures(route.path)) do
    local schema = route.path_schemas[capture.name]
    model.path[capture.name] = sure_texts(schema, random, function(text)
      return path_carries(route, text, capture.rest)
    end)[1]
  end
  add_inputs(model.query, route.query, random, all)
  add_inputs(model.headers, route.headers, random, all)
  return model
end


--- A copy of a model that can be changed.
function M.copy(model)
  local new = {}
  for key, value in pairs(model) do
    new[key] = value
  end
  for _, key in ipairs { "path", "query", "headers", "body" } do
    new[key] = {}
    for name, value in pairs(model[key]) do
      new[key][name] = value
    end
  end
  return new
end


--- Can it be sent at all?
function M.is_sendable(model)
  local counts = {}
  for _, text in pairs(model.path) do
    if #text > TEXT_MAX then
      return false
    end
  end
  for _, one in ipairs(model.query) do
    counts[one.name] = (counts[one.name] or 0) + 1
    if #one.text > TEXT_MAX or counts[one.name] > REPEATS_MAX then
      return false
    end
  end
  for _, one in ipairs(model.headers) do
    if #one.text > TEXT_MAX or one.text:find("[%c\x7f-\xff]") then
      return false
    end
  end
  return #(model.body.text or "") <= 2 * BODY_MAX
end


-- ---- sending ---------------------------------------------------------------

-- The headers of a model, several of one name as a list.
local function headers_of(model)
  local headers = {}
  for _, one in ipairs(model.headers) do
    local texts = texts_of(model.headers, one.name)
    headers[one.name] = #texts > 1 and texts or texts[1]
  end
  if model.body.text then
    headers["content-type"] = model.body.type
    headers["content-encoding"] = model.body.encoding
  end
  if model.route.host ~= "" then
    headers.host = model.route.host
  end
  return headers
end


--- What t.request() takes for a model, but for the identity.
function M.options(model)
  local opts = { body = model.body.text }
  local headers = headers_of(model)
  if next(headers) then
    opts.headers = headers
  end
  if model.route.listener ~= "" then
    opts.listener = model.route.listener
  end
  return opts
end


return M
