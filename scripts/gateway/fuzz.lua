--- `gateway test --fuzz`: requests made from the schemas of each route.
--
-- A request is a plain description (a model): texts of the path, query and
-- headers, a body, and perhaps one thing that is wrong by construction, such as
-- an encoded slash. gateway.oracle says whether it is valid; the engine that
-- serves must agree. An invalid request must be refused before any check or
-- handler, a valid one must pass validation, and no hook may raise. What goes
-- wrong is made as small as it can be, and printed as a test case.

local client_for <const> = require "gateway.client_for"
local core <const> = require "gateway.core"
local generate <const> = require "gateway.generate"
local oracle <const> = require "gateway.oracle"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local stage <const> = require "gateway.stage"
local strings <const> = require "gateway.strings"
local M = {}

local TEXT_MAX <const> = 2000     -- of a text in a URL or a header
local BODY_MAX <const> = 65536    -- of a body that is made
local REPEATS_MAX <const> = 40    -- of one query parameter
local TRIES <const> = 20          -- to change something, or to make it valid
local SHRINKS <const> = 400       -- requests to make one failure small
local WRONG <const> = 10000       -- how large what is wrong counts as
local RUN_MIN <const> = 40        -- of one character, to be written shorter
local FAILURES_MAX <const> = 20
local LIMITS <const> = {
  [413] = true, [414] = true, [429] = true, [431] = true,
}


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


-- ---- models ----------------------------------------------------------------

-- The captures of a path, as a list of { name, rest }.
local function captures_of(path)
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
  for _, capture in ipairs(captures_of(model.route.path)) do
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

-- The methods that a route is tried with.
local function methods_of(route)
  if route.methods[1] ~= "*" then
    return route.methods
  end
  return route.body.kind == "none" and { "GET", "POST" } or { "POST" }
end


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
  for _, capture in ipairs(captures_of(route.path)) do
    local schema = route.path_schemas[capture.name]
    model.path[capture.name] = sure_texts(schema, random, function(text)
      return path_carries(route, text, capture.rest)
    end)[1]
  end
  add_inputs(model.query, route.query, random, all)
  add_inputs(model.headers, route.headers, random, all)
  return model
end


local function copied(model)
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

-- Ways to change a good model. Each returns true where it could.
local changes = {}


function changes.path(model, random)
  local captures = captures_of(model.route.path)
  if #captures == 0 then
    return false
  end
  local name = captures[random(#captures)].name
  model.path[name] = generate.near_text(model.route.path_schemas[name],
    model.path[name], random)
  return true
end


function changes.segment(model, random)
  local captures = captures_of(model.route.path)
  local wrong = SEGMENTS[random(#SEGMENTS)]
  if #captures == 0 or wrong.allow and #(model.route.allow or {}) > 0 then
    return false
  end
  model.segment = { name = captures[random(#captures)].name, text = wrong[1] }
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


function changes.query(model, random)
  return change_input(model.query, model.route.query, random)
end


function changes.headers(model, random)
  return change_input(model.headers, model.route.headers, random)
end


function changes.extra_query(model, random)
  local wrong = QUERIES[random(#QUERIES)]
  if wrong.declared and model.route.query_unchecked
    or wrong.allow and #(model.route.allow or {}) > 0 then
    return false
  end
  model.extra_query = wrong[1]
  return true
end


function changes.json(model, random)
  if model.route.body.kind ~= "json" then
    return false
  end
  local value = generate.near(model.route.body.schema, model.body.value, random)
  model.body.value, model.body.text = value, core.encode(value)
  return true
end


function changes.document(model, random)
  if model.route.body.kind ~= "json" then
    return false
  end
  local text = DOCUMENTS[random(#DOCUMENTS)](model.body.text)
  if not text then
    return false
  end
  model.body.text, model.body.wrong = text, "not JSON"
  return true
end


-- A body of another type, too large a body, or one where there is none.
function changes.body(model, random)
  local body, route = model.body, model.route
  if route.body.kind == "none" then
    body.text, body.type, body.wrong = "{}", "application/json", "a body"
    return model.method ~= "GET" or not allows(route, "body_on_get")
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


-- Can it be sent at all?
local function is_sendable(model)
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


--- changed(model, random): a copy with one thing changed, or nil.
function M.changed(model, random)
  for _ = 1, TRIES do
    local new = copied(model)
    if changes[CHANGES[random(#CHANGES)]](new, random) and is_sendable(new) then
      return new
    end
  end
  return nil
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
function M.options_of(model)
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


-- Did the request go to another route than the one it was made for?
local function is_elsewhere(r, model)
  local route = r.number and policy.all("routes")[r.number]
  return route and route ~= model.route
    and route.at .. route.path ~= model.route.at .. model.route.path
end


-- Is the request refused for a reason that says nothing about its inputs?
local function is_beside(r, model)
  return is_elsewhere(r, model) or LIMITS[r.status] or r.stage == "authorize"
end


--- What is wrong with an outcome, or nil.
-- @param verdict  what valid() said of the model
-- @return a word for the kind of failure, and a sentence
function M.judge(model, verdict, r)
  local passed = stage.passed_validation(r.stage)
  if r.status == 500 then
    return "raises", ("a hook raised at %s: %s"):format(r.stage, r.reason)
  elseif verdict == nil or is_beside(r, model) then
    return nil
  elseif verdict == false and passed then
    return "passes", ("an invalid request passed validation: %d at %s"):format(
      r.status, r.stage)
  elseif verdict == true and not passed then
    return "refused", ("a valid request was refused: %d at %s: %s"):format(
      r.status, r.stage, r.reason)
  end
  return nil
end


-- ---- shrinking -------------------------------------------------------------

local function shorter_texts(text)
  local list = { "", text:sub(1, #text // 2), text:sub(#text // 2 + 1),
    ("a"):rep(#text), ("a"):rep(utf8.len(text) or 0) }
  for i = 1, math.min(#text, 24) do
    list[#list + 1] = text:sub(1, i - 1) .. text:sub(i + 1)
  end
  for i = 1, math.min(#text, 24) do
    if text:sub(i, i):find("[%w]") and text:sub(i, i) ~= "a" then
      list[#list + 1] = text:sub(1, i - 1) .. "a" .. text:sub(i + 1)
    end
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
local function smaller_models(model)
  local list = {}
  local function add(change)
    local new = copied(model)
    change(new)
    list[#list + 1] = new
  end
  for _, wrong in ipairs { "segment", "extra_query" } do
    if model[wrong] then
      add(function(new) new[wrong] = nil end)
    end
  end
  if model.body.value ~= nil and model.body.wrong then
    add(function(new)
      new.body = { value = model.body.value, type = model.route.body.types[1],
        text = core.encode(model.body.value) }
    end)
  elseif model.body.value ~= nil then
    for _, value in ipairs(smaller_values(model.body.value)) do
      add(function(new)
        new.body.value, new.body.text = value, core.encode(value)
      end)
    end
  end
  for _, where in ipairs { "query", "headers" } do
    for i, one in ipairs(model[where]) do
      add(function(new) table.remove(new[where], i) end)
      for _, text in ipairs(shorter_texts(one.text)) do
        add(function(new)
          new[where][i] = { name = one.name, text = text }
        end)
      end
    end
  end
  for name, text in pairs(model.path) do
    for _, short in ipairs(shorter_texts(text)) do
      add(function(new) new.path[name] = short end)
    end
  end
  return list
end


-- How large a model is: what shrinking makes less.
local function size_of(model)
  local letters = M.target(model) .. (model.body.text or "")
  for _, one in ipairs(model.headers) do
    letters = letters .. one.name .. one.text
  end
  local wrong = model.segment or model.extra_query or model.body.wrong
  return (wrong and WRONG or 0) + #letters * 100
    + select(2, letters:gsub("[^a0]", ""))
end


--- shrink(model, fails): the smallest model found for which fails(model) holds.
function M.shrink(model, fails)
  local tries = 0
  local again = true
  while again and tries < SHRINKS do
    again = false
    for _, smaller in ipairs(smaller_models(model)) do
      if size_of(smaller) < size_of(model) and is_sendable(smaller) then
        tries = tries + 1
        if fails(smaller) then
          model, again = smaller, true
          break
        end
        if tries >= SHRINKS then
          break
        end
      end
    end
  end
  return model
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
  raises = "t.equal(r.status ~= 500, true)",
}


--- case(failure): a failure as the text of a test case.
-- @param failure  { model, kind, why, seed, fields = of the identity,
--                 stood_in }
function M.case(failure)
  local model = failure.model
  local name = ("fuzz %s: %s %s"):format(failure.seed, model.method,
    model.route.path)
  local lines = {
    ("-- %s: %s"):format(model.route.at, (failure.why:gsub("%s*\n.*", ""))),
  }
  if failure.stood_in then
    lines[#lines + 1] = "-- No identity is known that authorize lets in: it was"
      .. " stood in for. Give one."
  end
  local opts = M.options_of(model)
  local more = next(opts) and ",\n    " .. literal(opts) or ""
  lines[#lines + 1] = ("t.case(%s, function()"):format(quoted(name))
  lines[#lines + 1] = ("  local r = t.request(t.identity %s,\n    %s, %s%s)")
    :format(literal(failure.fields), quoted(model.method),
      quoted(M.target(model)), more)
  lines[#lines + 1] = "  " .. EXPECTATIONS[failure.kind]
  lines[#lines + 1] = "end)"
  return table.concat(lines, "\n")
end


-- ---- the run ---------------------------------------------------------------

local Run = {}
Run.__index = Run


local function yes()
  return true
end


-- Sends a model. Where no identity is known, authorize is stood in for.
function Run:send(model, who)
  local hooks, kept = policy.all("hooks"), {}
  for _, one in ipairs(who.stood_in and model.route.authorize or {}) do
    kept[one.hook] = hooks[one.hook]
    hooks[one.hook] = yes
  end
  self.sent = self.sent + 1
  local r = self.request(who, model)
  for number, hook in pairs(kept) do
    hooks[number] = hook
  end
  return r
end


-- Does the route let a client in? Some requests may go to another route.
function Run:lets_in(route, method, who)
  for _ = 1, TRIES do
    local model = M.good(route, method, self.random, true)
    local r = self:send(model, who)
    if not is_elsewhere(r, model) then
      return r.stage ~= "authorize"
    end
  end
  return false
end


-- The first identity that the route lets in; or one for whom authorize is
-- stood in.
function Run:who_for(route, method)
  local list = client_for.route(route, "fuzz")
  table.move(self.identities, 1, #self.identities, #list + 1, list)
  for _, fields in ipairs(list) do
    local made, client = pcall(self.identity, fields)
    if made then
      local who = { fields = fields, identity = client }
      if self:lets_in(route, method, who) then
        return who
      end
    end
  end
  return { fields = { cn = "fuzz" }, stood_in = true,
    identity = self.identity { cn = "fuzz" } }
end


-- A model's failure on a policy that has seen nothing else.
function Run:fails_afresh(model, who, kind)
  local verdict = M.valid(model)
  if not self.fresh() then
    return false
  end
  local at = model.route.at .. model.route.path
  for _, route in ipairs(policy.all("routes")) do
    if route.at .. route.path == at then
      model.route = route
    end
  end
  local found, why = M.judge(model, verdict, self:send(model, who))
  return found == kind, why
end


function Run:failed(model, who, kind, why)
  local key = model.route.at .. model.route.path .. kind
    .. why:gsub("%d+", ""):sub(1, 60)
  if self.known[key] or #self.failures >= FAILURES_MAX then
    return
  end
  self.known[key] = true
  local again = self:fails_afresh(model, who, kind)
  if again then
    model = M.shrink(model, function(smaller)
      return self:fails_afresh(smaller, who, kind)
    end)
    why = select(2, self:fails_afresh(model, who, kind)) or why
  else
    why = why .. " (only after other requests)"
  end
  self.failures[#self.failures + 1] = {
    model = model, kind = kind, why = why, fields = who.fields,
    stood_in = who.stood_in, seed = self.seed,
  }
end


function Run:try(model, who)
  local verdict = M.valid(model)
  local r = self:send(model, who)
  local name = verdict == nil and "unsure" or verdict and "valid" or "invalid"
  self[name] = self[name] + 1
  local kind, why = M.judge(model, verdict, r)
  if kind then
    self:failed(model, who, kind, why)
  end
end


-- One route and method that is tried.
function Run:goal(route, method)
  local who = self:who_for(route, method)
  if who.stood_in then
    self.stood_in[#self.stood_in + 1] = ("%s: %s %s"):format(route.at, method,
      route.path)
  end
  return { at = route.at, path = route.path, method = method, who = who }
end


-- The route of a goal in the policy as it is loaded now.
local function route_of(goal)
  for _, route in ipairs(policy.all("routes")) do
    if route.at == goal.at and route.path == goal.path
      and policy.takes(route, goal.method) then
      return route
    end
  end
  return nil
end


function Run:round(goals)
  for _, goal in ipairs(goals) do
    local route = route_of(goal)
    if route then
      local model = M.good(route, goal.method, self.random)
      local new = self.random(5) > 1 and M.changed(model, self.random) or model
      if is_sendable(new) then
        self:try(new, goal.who)
      end
    end
    if core.now() > self.until_time then
      return
    end
  end
end


--- run(spec): fuzzes the policy that is loaded.
-- @param spec  { seconds, seed, identities = list of fields,
--              request = function(who, model) -> r, fresh = function() that
--              loads the policy again, identity = function(fields) that makes
--              a client, most = of requests }
-- @return { sent, valid, invalid, unsure, failures, stood_in, goals }
function M.run(spec)
  local run = setmetatable({
    random = strings.sequence(spec.seed), seed = spec.seed, known = {},
    identities = spec.identities or {}, request = spec.request,
    fresh = spec.fresh, identity = spec.identity,
    sent = 0, valid = 0, invalid = 0, unsure = 0, failures = {}, stood_in = {},
    until_time = core.now() + spec.seconds,
  }, Run)
  local goals = {}
  for _, route in ipairs(policy.all("routes")) do
    for _, method in ipairs(route.path ~= "*" and methods_of(route) or {}) do
      goals[#goals + 1] = run:goal(route, method)
    end
  end
  while #goals > 0 and core.now() < run.until_time
    and run.sent < (spec.most or math.huge) do
    run:round(goals)
  end
  run.goals = #goals
  return run
end


return M
