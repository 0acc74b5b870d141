--- `gateway docs`: the reference of the policy API and of the commands, as
-- text, Markdown, a manual page, or (luals) annotations for an editor.

local core <const> = require "gateway.core"
local luals <const> = require "gateway.luals"
local options <const> = require "gateway.options"
local reference <const> = require "gateway.reference"
local tool <const> = require "gateway.tool"
local M = {}

local WIDTH <const> = 78


-- Words in lines of at most WIDTH, each behind `indent` blanks.
local function wrap(text, indent)
  local lines, line = {}, ""
  local left = (" "):rep(indent)
  for word in text:gmatch("%S+") do
    if line ~= "" and indent + utf8.len(line) + 1 + utf8.len(word) > WIDTH then
      lines[#lines + 1] = left .. line
      line = word
    else
      line = line == "" and word or line .. " " .. word
    end
  end
  lines[#lines + 1] = left .. line
  return table.concat(lines, "\n")
end


-- "a whole number from 1 to 9; default 9".
local function type_text(option)
  return option.type .. (option.required and "; required" or "")
    .. (option.default and "; default " .. option.default or "")
end


local function command_option(option)
  local text = option[3]
  if option[4] then
    text = ("%s (default %s)"):format(text, option[4])
  end
  return (option.short and "-" .. option.short .. ", " or "") .. "--"
    .. option[1] .. (option[2] ~= "" and " " .. option[2] or ""), text
end


local function command_line(command)
  return ("gateway %s%s%s"):format(command.name,
    #command.options > 0 and " [options]" or "",
    command.operands ~= "" and " " .. command.operands or "")
end


-- ---- a format is a few functions, each of which returns text ----------------

local text <const> = {
  title = function(what, how)
    return what:upper() .. "\n\n" .. (how and "    " .. how .. "\n\n" or "")
  end,
  head = function(head)
    return head .. "\n"
  end,
  para = function(what)
    return wrap(what, 4) .. "\n\n"
  end,
  group = function(name)
    return "    " .. name .. "\n"
  end,
  row = function(name, what, more)
    return ("      %s\n%s\n"):format(name, wrap(
      what .. (more and " (" .. more .. ")" or ""), 10))
  end,
  rows_end = "\n",
  code = function(lines)
    return "    " .. table.concat(lines, "\n    ") .. "\n\n"
  end,
  examples = function(lines)
    return "    examples\n      " .. table.concat(lines, "\n      ") .. "\n\n"
  end,
}


local function md(s)
  return (s:gsub("[|<*_]", "\\%0"))
end

local markdown <const> = {
  title = function(what, how)
    return ("## %s\n\n%s"):format(what, how and "    " .. how .. "\n\n" or "")
  end,
  head = function(head)
    return ("### `%s`\n\n"):format(head)
  end,
  para = function(what)
    return md(what) .. "\n\n"
  end,
  group = function(name)
    return ("**%s**\n\n| | | |\n|---|---|---|\n"):format(md(name))
  end,
  row = function(name, what, more)
    return ("| `%s` | %s | %s |\n"):format(name, md(what), md(more or ""))
  end,
  rows_end = "\n",
  code = text.code,
  examples = text.code,
}


-- Text for groff: what it would take for commands, or for other signs.
local function roff(s)
  return (s:gsub("\\", "\\e"):gsub("%-", "\\-"):gsub("^([.'])", "\\&%1"))
end

-- One sentence may fill several lines, none of which is a request.
local function roff_text(s)
  return (roff(s):gsub("\n([.'])", "\n\\&%1"))
end

local man <const> = {
  title = function(what, how)
    return (".SH \"%s\"\n"):format(roff(what:upper()))
      .. (how and ".PP\n.EX\n" .. roff(how) .. "\n.EE\n" or "")
  end,
  head = function(head)
    return (".SS \"%s\"\n"):format((roff(head):gsub('"', '\\(dq')))
  end,
  para = function(what)
    return ".PP\n" .. roff_text(what) .. "\n"
  end,
  group = function(name)
    return (".PP\n%s:\n"):format(roff((name:gsub("^%l", string.upper))))
  end,
  row = function(name, what, more)
    return (".TP\n.B %s\n%s\n"):format(roff(name), roff_text(
      what .. (more and " (" .. more .. ")" or "")))
  end,
  rows_end = "",
  code = function(lines)
    return (".PP\n.RS\n.EX\n%s\n.EE\n.RE\n"):format(
      roff_text(table.concat(lines, "\n")))
  end,
}

function man.examples(lines)
  return man.group("examples") .. man.code(lines)
end

local FORMATS <const> = { text = text, markdown = markdown, man = man }


-- ---- pages, in any of these ------------------------------------------------

-- The options of an item; those of a spec that stands above are not said twice.
local function write_specs(f, out, specs)
  for _, spec in ipairs(specs) do
    if out.seen[spec.name] then
      out[#out + 1] = f.para(("The options of %s are those above."):format(
        spec.name))
    else
      out.seen[spec.name] = true
      out[#out + 1] = f.group("options of " .. spec.name)
      for _, option in ipairs(spec.options) do
        out[#out + 1] = f.row(option.name, option.help, type_text(option))
      end
      out[#out + 1] = f.rows_end
    end
  end
end


local function item_head(item)
  return table.concat(item.names, ", ") .. item.signature
end


-- The text of an item, as sentences begin; a name keeps its small letter.
local function item_text(item)
  local name = item.text:match("^[%w_]+[.:(]")
  return name and item.text or (item.text:gsub("^%l", string.upper))
end


local function write_item(f, out, item)
  out[#out + 1] = f.head(item_head(item))
  out[#out + 1] = f.para(item_text(item))
  if #item.params > 0 then
    out[#out + 1] = f.group("arguments")
    for _, param in ipairs(item.params) do
      out[#out + 1] = f.row(param[1], param[2])
    end
    out[#out + 1] = f.rows_end
  end
  write_specs(f, out, item.specs)
end


local function write_object(f, out, object)
  out[#out + 1] = f.head(object.name)
  out[#out + 1] = f.para(object.text)
  out[#out + 1] = f.group("fields")
  for _, field in ipairs(object.fields) do
    out[#out + 1] = f.row(field[1], field[3], field[2])
  end
  out[#out + 1] = f.rows_end
end


local function write_topic(f, out, topic)
  out[#out + 1] = f.head(topic.name)
  for _, paragraph in ipairs(topic.text) do
    out[#out + 1] = f.para(paragraph)
  end
  if #topic.code > 0 then
    out[#out + 1] = f.code(topic.code)
  end
  write_specs(f, out, topic.specs)
  if topic.items and not out.whole then
    out[#out + 1] = f.group(topic.items.title:lower())
    for _, item in ipairs(topic.items) do
      out[#out + 1] = f.row(item_head(item), item_text(item))
    end
    out[#out + 1] = f.rows_end
  end
  if #topic.see > 0 then
    out[#out + 1] = f.para("See also: " .. table.concat(topic.see, ", ") .. ".")
  end
end


local function write_command(f, out, command)
  out[#out + 1] = f.head(command_line(command))
  out[#out + 1] = f.para(command.help)
  if #command.options > 0 then
    out[#out + 1] = f.group("options")
    for _, option in ipairs(command.options) do
      out[#out + 1] = f.row(command_option(option))
    end
    out[#out + 1] = f.rows_end
  end
  if #command.examples > 0 then
    out[#out + 1] = f.examples(command.examples)
  end
end


-- How a module is had.
local function required(section)
  return ('local %s = require "%s"'):format(section.name == "test" and "t"
    or section.name, section.module)
end


local function topics_of(api)
  for _, topic in ipairs(api.topics) do
    for _, section in ipairs(api.sections) do
      if section.name == topic.list then
        topic.items = section.items
        topic.items.title = section.title
      end
    end
  end
  return api.topics
end


-- What there is to write: { section, title, how, write, thing, names }, in its
-- order.
local function pages(api, commands)
  local list = {}
  local function add(section, title, how, write, things)
    for _, thing in ipairs(things) do
      local name = write == write_command and "gateway " .. thing.name
        or thing.name
      list[#list + 1] = {
        section = section, title = title, how = how, write = write,
        thing = thing, names = thing.names or { name },
      }
    end
  end
  add("commands", "Commands", nil, write_command, commands)
  add("topics", "Topics", nil, write_topic, topics_of(api))
  for _, section in ipairs(api.sections) do
    add(section.name, section.title, required(section), write_item,
      section.items)
  end
  add("objects", "What hooks and tests are given", nil, write_object,
    api.objects)
  return list
end


-- ---- topics ----------------------------------------------------------------

-- The last part of a name: "listen" of "gateway.listen".
local function short(name)
  return name:match("[^.: ]+$")
end


-- Is `topic` the page's section, one of its names, or the last part of one?
local function is_about(page, topic)
  for _, name in ipairs(page.names) do
    if name == topic or short(name) == topic then
      return true
    end
  end
  return page.section == topic
end


-- As a policy may write it: t.ran, gateway.identity.cn, gateway.test.ran; and
-- the modules themselves.
local function full_name(topic)
  if topic == "t" or topic == "gateway.test" then
    return "test"
  end
  return (topic:gsub("^gateway%.identity%.", "id."):gsub("^gateway%.test%.",
    "t."):gsub("^identity%.", "id."):gsub("^test%.", "t."))
end


-- The tables of options of a page about a function.
local function specs_of(page)
  return page.write == write_item and page.thing.specs or {}
end


local function fields_of(page)
  return page.write == write_object and page.thing.fields or {}
end


-- Those rows of a page that are called `name`: its options, its fields.
local function part_of(page, name)
  local thing, found = page.thing, false
  local part = setmetatable({ specs = {}, params = {} }, { __index = thing })
  for _, spec in ipairs(specs_of(page)) do
    for _, option in ipairs(spec.options) do
      if option.name == name then
        part.specs[#part.specs + 1] = { name = spec.name, options = { option } }
        found = true
      end
    end
  end
  for _, field in ipairs(fields_of(page)) do
    if field[1] == name then
      part.fields, found = { field }, true
    end
  end
  return found and setmetatable({ thing = part }, { __index = page }) or nil
end


-- Every name that there may be a question about, as a set.
local function all_names(list)
  local known = {}
  for _, page in ipairs(list) do
    known[page.section] = true
    for _, name in ipairs(page.names) do
      known[short(name)] = true
    end
    for _, spec in ipairs(specs_of(page)) do
      for _, option in ipairs(spec.options) do
        known[option.name] = true
      end
    end
    for _, field in ipairs(fields_of(page)) do
      known[field[1]] = true
    end
  end
  return known
end


-- A topic's pages; else those that have an option or a field of that name; nil
-- and a message where there are none.
local function choose(list, topic)
  if not topic then
    return list
  end
  local chosen, name = {}, full_name(topic)
  for _, page in ipairs(list) do
    chosen[#chosen + 1] = is_about(page, name) and page or nil
  end
  if #chosen > 0 then
    return chosen
  end
  for _, page in ipairs(list) do
    chosen[#chosen + 1] = part_of(page, name)
  end
  if #chosen > 0 then
    return chosen
  end
  local mend = options.suggest(short(name) or name, all_names(list))
  return nil, ("there is nothing about '%s'%s"):format(topic,
    mend ~= "" and mend or ": `gateway docs` prints all there is")
end


local function write_pages(f, list, whole)
  local out, section = { seen = {}, whole = whole }, nil
  for _, page in ipairs(list) do
    if page.section ~= section then
      section = page.section
      out[#out + 1] = f.title(page.title, page.how)
    end
    page.write(f, out, page.thing)
  end
  return table.concat(out)
end


--- What `gateway docs` takes as TOPIC, sorted: for completion.
-- @param commands  reference.commands()
function M.words(commands)
  local known = {}
  for _, page in ipairs(pages(reference.api(), commands)) do
    known[page.section] = true
    for _, name in ipairs(page.names) do
      known[short(name)] = true
    end
  end
  return options.sorted_keys(known)
end


local MAN_HEAD <const> = [[
.TH GATEWAY 1 "%s" "gateway %s" "User Commands"
.SH NAME
gateway \- a mutual\-TLS gateway with policies in Lua
.SH SYNOPSIS
.B gateway
.I COMMAND
[options]
.SH DESCRIPTION
Every client must present a certificate. Every request meets a policy, a Lua
script that says who may call which route with which input. Then the route
forwards to an upstream, answers from Lua, or runs a program out of a table that
was frozen at start. What no route allows is refused.
]]
local MAN_TAIL <const> = [[
.SH "EXIT STATUS"
0: fine. 1: what was asked about is not fine. 2: wrong usage.
.SH ENVIRONMENT
.TP
.B XDG_RUNTIME_DIR
Where the control socket is, if /run/gateway cannot be used.
.SH FILES
.TP
.I scripts/gateway.lua
The policy, where none is named.
.TP
.I scripts/tests/*_test.lua
Its tests, where none are named.
.TP
.I /run/gateway
Where the control socket is, where root starts it.
.SH EXAMPLES
A first policy, its certificates, and what it says:
.PP
.RS
.EX
gateway certs init certs
gateway certs server certs server
gateway certs client certs alice \-\-ou ops
gateway check site.lua
gateway run \-\-watch site.lua
.EE
.RE
.PP
where site.lua is
.PP
.RS
.EX
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen {
  address = "127.0.0.1:8443", client_ca = "certs/ca.crt",
  certificate = "certs/server.crt", key = "certs/server.key",
}
gateway.get("/hello", {
  authorize = id.ou "ops",
  handle = function() return gateway.text "hello\en" end,
})
.EE
.RE
.SH "SEE ALSO"
.BR curl (1),
.BR openssl (1),
.BR landlock (7)
]]


-- ---- the command -----------------------------------------------------------

local function run(operands, opts, argv)
  local api, topic = reference.api(), operands[1]
  if opts.format == "luals" then
    local page, message = luals.write(api, topic or "gateway")
    if not page then
      return nil, message
    end
    core.write(page)
    return 0
  end
  local format = FORMATS[opts.format]
  if not format then
    return nil, ("there is no format '%s'%s"):format(opts.format,
      options.suggest(opts.format, { text = true, markdown = true, man = true,
        luals = true }))
  end
  local list, message = choose(pages(api, reference.commands(argv.commands)),
    topic)
  if not list then
    return nil, message
  end
  local page = write_pages(format, list, not topic)
  if format == man then
    local version, date = core.version()
    page = MAN_HEAD:format(date, roff(version)) .. page .. MAN_TAIL
  end
  core.write(page)
  return 0
end


--- The command `gateway docs`.
M.main = tool.main {
  name = "docs", operands = "[TOPIC]", most = 1,
  help = "The reference of what policies, tests and commands may say. TOPIC:"
    .. " gateway, id, test, objects, commands, topics (limits, validate,"
    .. " authorize, hooks, raw), or any name or option: listen, t.ran,"
    .. " keepalive.",
  options = {
    { "format", "text|markdown|man|luals", "luals: annotations for"
      .. " lua-language-server, one file for each of gateway, id and test",
      default = "text" },
  },
  examples = {
    "gateway docs listen",
    "gateway docs limits",
    "gateway docs --format man >gateway.1",
    "gateway docs --format luals >.luals/gateway.lua",
    "gateway docs --format luals id >.luals/gateway/identity.lua",
  },
  run = run,
}


return M
