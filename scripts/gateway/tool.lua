--- The command line of a tool that is written in Lua (`gateway test`, …).
--
--     local tool = require "gateway.tool"
--     M.main = tool.main {
--       name = "test", operands = "[TEST.lua ...]",
--       help = "Runs policy tests.",
--       options = {
--         { "policy", "FILE", "the policy", default = "scripts/gateway.lua" },
--         { "verbose", nil, "a line for each case", short = "v" },
--       },
--       examples = { "gateway test" },
--       run = function(operands, opts) return 0 end,
--     }
--
-- Exit codes: 0 fine, 1 not fine, 2 wrong usage.

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local M = {}

--- Every tool that was required, by its name: what main() was given.
M.specs = {}

local COLUMN <const> = 18  -- where the help of an option begins
local WIDTH <const> = 80


-- Words in lines of at most WIDTH, those after the first indented.
local function wrapped(text, indent)
  local lines, line = {}, ""
  for word in text:gmatch("%S+") do
    if line ~= "" and indent + #line + 1 + #word > WIDTH then
      lines[#lines + 1] = line
      line = word
    else
      line = line == "" and word or line .. " " .. word
    end
  end
  lines[#lines + 1] = line
  return table.concat(lines, "\n" .. (" "):rep(indent))
end


--- What `--help` says of a tool.
function M.usage(spec)
  local parts = {
    ("usage: gateway %s%s%s\n\n%s\n"):format(spec.name,
      #spec.options > 0 and " [options]" or "",
      spec.operands and " " .. spec.operands or "", wrapped(spec.help, 0)),
  }
  if #spec.options > 0 then
    parts[#parts + 1] = "\noptions\n"
  end
  for _, option in ipairs(spec.options) do
    local name = (option.short and "-" .. option.short .. ", " or "") .. "--"
      .. option[1] .. (option[2] and " " .. option[2] or "")
    local help = option[3]
    if option.default then
      help = ("%s (default %s)"):format(help, option.default)
    end
    parts[#parts + 1] = ("  %s%s%s\n"):format(name,
      #name + 2 < COLUMN and (" "):rep(COLUMN - #name - 2)
        or "\n" .. (" "):rep(COLUMN),
      wrapped(help, COLUMN))
  end
  parts[#parts + 1] = "\nexamples\n"
  for _, example in ipairs(spec.examples) do
    parts[#parts + 1] = "  " .. example .. "\n"
  end
  return table.concat(parts)
end


-- Says what is wrong with the command line.
local function misused(spec, message)
  core.warn(("gateway %s: %s\nTry `gateway %s --help`."):format(spec.name,
    message, spec.name))
  return 2
end


-- The option that `word` names, or nil and what to say.
local function find_option(spec, word)
  local names = {}
  for _, option in ipairs(spec.options) do
    if word == option[1] or word == option.short then
      return option
    end
    names[option[1]] = true
  end
  return nil, ("unknown option '--%s'%s"):format(word,
    options.suggest(word, names))
end


--- Reads a command line.
-- @param spec  as in main()
-- @param argv  list of words
-- @return operands (list), options (table by name: a string, true, or, of one
--         with `many = true`, a list); or nil and what is wrong
function M.parse(spec, argv)
  local operands, opts, at = {}, {}, 1
  for _, option in ipairs(spec.options) do
    opts[option[1]] = option.many and {} or option.default
  end
  while at <= #argv do
    local word = argv[at]
    local name, value = word:match("^%-%-([^=]+)=?(.*)$")
    name = name or word:match("^%-(%a)$")
    if word == "--" then
      table.move(argv, at + 1, #argv, #operands + 1, operands)
      break
    elseif not name then
      if word:find("^%-.") then
        return nil, ("unknown option '%s'"):format(word)
      end
      operands[#operands + 1] = word
    else
      local option, message = find_option(spec, name)
      if not option then
        return nil, message
      elseif not option[2] and word:find("=", 1, true) then
        return nil, ("--%s takes no value"):format(name)
      elseif option[2] and not word:find("=", 1, true) then
        at = at + 1
        value = argv[at]
        if not value then
          return nil, ("a value is missing after --%s"):format(name)
        end
      end
      name = option[1]
      value = not option[2] or value
      if option.many then
        table.insert(opts[name], value)
      else
        opts[name] = value
      end
    end
    at = at + 1
  end
  return operands, opts
end


--- Loads the policy that a tool is about. False: it has said why not.
function M.load_policy(name, file)
  local ok, message = core.test_policy(file)
  if not ok then
    core.warn(("gateway %s: %s"):format(name, message))
  end
  return ok == true
end


-- What to say of a word that is no operand: a policy has an option.
local function one_too_many(spec, word)
  for _, option in ipairs(spec.options) do
    if option[1] == "policy" and word:find("%.lua$") then
      return ("one too many: '%s': write --policy %s"):format(word, word)
    end
  end
  return ("one too many: '%s'"):format(word)
end


--- A tool's main(argv) -> exit code, as the C side calls it. Beside its words,
-- argv has `command` and `commands`: JSON, what the C side knows of all.
-- @param spec  { name, operands, help, options, examples, most = of operands,
--              run = function(operands, opts, argv) that returns an exit code,
--              or nil and what is wrong with the command line }
function M.main(spec)
  M.specs[spec.name] = spec
  return function(argv)
    for _, word in ipairs(argv) do
      if word == "--" then
        break
      elseif word == "--help" or word == "-h" then
        core.write(M.usage(spec))
        return 0
      end
    end
    local operands, opts = M.parse(spec, argv)
    if not operands then
      return misused(spec, opts)
    elseif spec.most and #operands > spec.most then
      return misused(spec, one_too_many(spec, operands[spec.most + 1]))
    end
    local code, message = spec.run(operands, opts, argv)
    return code or misused(spec, message)
  end
end


return M
