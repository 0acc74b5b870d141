--- What there is to say about the API, taken from where it is said: the doc
-- comments and option specs of this library, the bindings' list of fields, and
-- the tables of commands. `gateway docs` and `gateway completion` write it.
--
-- A doc comment belongs to a public name if it begins with that name:
--
--     --- sleep(seconds): waits; other requests go on.
--
-- Further names may stand before the signature, with commas between them. A
-- function whose comment does not begin so is for this library alone.

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local tool <const> = require "gateway.tool"
local topics <const> = require "gateway.topics"
require "gateway.openapi"  -- whose options a policy loads with it
local M = {}

-- Where the names of each module are documented, in the order of the pages.
local SECTIONS <const> = {
  { name = "gateway", title = "The policy", module = "gateway",
    files = { "init", "route", "schema", "upstream", "command", "jobs",
      "response", "shadow" } },
  { name = "id", title = "Conditions", module = "gateway.identity",
    files = { "identity" } },
  { name = "test", title = "Policy tests", module = "gateway.test",
    files = { "test" } },
}

-- What readers say, in fewer words: the topic `limits` has the rest.
local SHORTER <const> = {
  ["a number of seconds, such as 2.5, and at most a day"] = "seconds",
  ['a size such as 512, "16K", "64M" or "2G"'] = "a size",
}


-- ---- doc comments ----------------------------------------------------------

-- The position behind a signature that begins at `from`: that of its ": ".
local function signature_end(text, from)
  local depth, quoted = 0, false
  for at = from, #text do
    local char = text:sub(at, at)
    if char == '"' then
      quoted = not quoted
    elseif not quoted and char:find("[%(%[{]") then
      depth = depth + 1
    elseif not quoted and char:find("[%)%]}]") then
      depth = depth - 1
    elseif not quoted and depth == 0 and text:find("^:%s", at) then
      return at
    elseif not quoted and depth == 0 and text:find("^%.%s", at) then
      return nil  -- a sentence
    end
  end
end


-- "get, post(path): text" -> { "get", "post" }, "(path)", "text"; or nil.
local function take_head(text)
  local names, at = {}, 1
  while true do
    local name, rest = text:match("^([%a_][%w_]*:?[%a_]*)()", at)
    if not name then
      return nil
    end
    if name:sub(-1) == ":" then
      name, rest = name:sub(1, -2), rest - 1
    end
    names[#names + 1] = name
    local comma = text:match("^,%s()", rest)
    if not comma then
      at = rest
      break
    end
    at = comma
  end
  if not text:find("^[%(:]", at) and not text:find('^ [{"]', at) then
    return nil
  end
  local colon = signature_end(text, at)
  return colon and names, colon and text:sub(at, colon - 1),
    colon and text:sub(colon + 2)
end


-- One comment, taken apart; nil where it documents no name.
local function read_comment(lines)
  local text, params = {}, {}
  for _, line in ipairs(lines) do
    local tag, rest = line:match("^@(%a+)%s+(.*)$")
    if tag == "param" then
      local name, what = rest:match("^(%S+)%s*(.*)$")
      params[#params + 1] = { name, what }
    elseif tag then
      params[#params + 1] = { "returns", rest }
    elseif #params > 0 then
      local last = params[#params]
      last[2] = last[2] .. " " .. line:match("^%s*(.*)$")
    else
      text[#text + 1] = line:match("^%s*(.*)$")
    end
  end
  local names, signature, what = take_head(table.concat(text, " "))
  return names and {
    names = names, signature = signature, text = what, params = params,
  }
end


-- The documented names of a module's source, in their order.
local function read_source(source)
  local items, lines = {}, nil
  for line in (source .. "\n"):gmatch("(.-)\n") do
    local first, more = line:match("^%-%-%- ?(.*)$"), line:match("^%-%- ?(.*)$")
    if first then
      lines = { first }
    elseif lines and more then
      lines[#lines + 1] = more
    elseif lines then
      items[#items + 1] = read_comment(lines)
      lines = nil
    end
  end
  return items
end


-- ---- options ---------------------------------------------------------------

-- What a reader takes, in its own words: it says so when it is given something
-- that nobody could mean.
local function wanted_by(reader)
  local _, wanted = reader(print)
  return type(wanted) == "string" and (SHORTER[wanted] or wanted) or nil
end


local function size_text(bytes)
  for _, unit in ipairs { { "G", 30 }, { "M", 20 }, { "K", 10 } } do
    if bytes > 0 and bytes % (1 << unit[2]) == 0 then
      return ("%d%s"):format(bytes >> unit[2], unit[1])
    end
  end
  return tostring(bytes)
end


-- A default as a policy would write it; nil: nothing is worth saying.
local function default_text(row)
  local default = row.default
  if row.shown or default == nil or default == "" then
    return row.shown
  elseif type(default) == "table" then
    return nil
  elseif row[1] == options.seconds then
    return ("%g s"):format(default / 1000)
  elseif row[1] == options.size then
    return size_text(default)
  end
  return options.show(default)
end


-- The options of a spec, sorted, required ones first.
local function read_spec(name)
  local list = {}
  for _, key in ipairs(options.sorted_keys(options.specs[name])) do
    local row = options.specs[name][key]
    if not row.later then
      list[#list + 1] = {
        name = key, help = row.help, required = row.required or false,
        type = row.type or wanted_by(row[1]) or "any value",
        default = default_text(row),
      }
    end
  end
  table.sort(list, function(a, b)
    if a.required ~= b.required then
      return a.required
    end
    return a.name < b.name
  end)
  return list
end


-- The specs of an item: its own, and those of tables in it.
local function specs_of(base)
  local specs = {}
  for _, name in ipairs(options.sorted_keys(options.specs)) do
    if name == base or name:sub(1, #base + 2) == base .. ": " then
      specs[#specs + 1] = { name = name, options = read_spec(name) }
    end
  end
  return specs
end


-- ---- pages -----------------------------------------------------------------

-- Routes share one spec; so do a group's, which are named with a colon.
local function spec_base(section, name)
  if section == "gateway" and (name == "get" or name == "any"
    or name == "route") then
    return "route"
  elseif name == "app:fetch" then
    return "gateway.fetch"
  elseif name:find(":", 1, true) then
    return name
  end
  return section .. "." .. name
end


-- A signature as it is shown: "{ workers=, … }"; a second form with its whole
-- name.
local function shown(signature, section, first)
  return (signature:gsub("([%w_]) =,", "%1=,"):gsub("([%w_]) = }", "%1= }")
    :gsub(", " .. first .. " {", (", %s.%s {"):format(section, first)))
end


local function read_section(library, spec)
  local public, items = require(spec.module), {}
  local seen = {}
  for _, file in ipairs(spec.files) do
    for _, item in ipairs(read_source(library["gateway/" .. file .. ".lua"])) do
      local first = item.names[1]
      local method = spec.name == "gateway" and first:find(":", 1, true)
      if (method or rawget(public, first) ~= nil) and not seen[first] then
        for i, name in ipairs(item.names) do
          seen[name] = true
          item.names[i] = name:find(":", 1, true) and name
            or (spec.name == "test" and "t." or spec.name .. ".") .. name
        end
        item.signature = shown(item.signature, spec.name, first)
        item.specs = specs_of(spec_base(spec.name, first))
        items[#items + 1] = item
      end
    end
  end
  return {
    name = spec.name, title = spec.title, module = spec.module, items = items,
  }
end


--- Everything about the API.
-- @return { sections = { { name =, title =, module =, items = … } }, objects =
--         { { name =, class =, text =, fields = { { name, type, help } } } },
--         topics = as in gateway.topics }
function M.api()
  local library, sections = core.library(), {}
  for i, spec in ipairs(SECTIONS) do
    sections[i] = read_section(library, spec)
  end
  local objects, about = {}, {}
  for i, object in ipairs(topics.objects) do
    objects[i] = {
      name = object.name, class = object.class, text = object.text,
      fields = object.fields or core.fields(object.name),
    }
  end
  for i, topic in ipairs(topics.topics) do
    local specs = {}
    for k, name in ipairs(topic.specs or {}) do
      specs[k] = { name = name, options = read_spec(name) }
    end
    about[i] = {
      name = topic.name, names = topic.names, text = topic.text,
      code = topic.code or {}, specs = specs, list = topic.list,
      see = topic.see or {},
    }
  end
  return { sections = sections, objects = objects, topics = about }
end


-- Options without --help, which every command has.
local function without_help(list)
  local kept = {}
  for _, option in ipairs(list) do
    kept[#kept + 1] = option[1] ~= "help" and option or nil
  end
  return kept
end


--- Every command: what the C side knows, and what those in Lua say themselves.
-- @param text  JSON, as main() is given it: argv.commands
function M.commands(text)
  local list = core.decode(text)
  for _, command in ipairs(list) do
    if command.tool ~= "" then
      require(command.tool)
      local spec = tool.specs[command.name]
      command.help, command.operands = spec.help, spec.operands or ""
      command.options, command.examples = {}, {}
      for i, option in ipairs(spec.options) do
        command.options[i] = {
          option[1], option[2] or "", option[3], option.default,
          short = option.short, many = option.many,
        }
      end
      for i, example in ipairs(spec.examples) do
        command.examples[i] = example
      end
    else
      local examples = {}
      for line in command.examples:gmatch("[^\n]+") do
        examples[#examples + 1] = line:match("^%s*(.*)$")
      end
      command.examples = examples
      command.options = without_help(command.name == "certs" and topics.certs
        or command.options)
    end
  end
  return list
end


return M
