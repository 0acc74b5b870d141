--- `gateway completion`: what a shell needs to complete commands, options, the
-- values of options, and operands, from the tables that the commands are made
-- of.

local core <const> = require "gateway.core"
local docs <const> = require "gateway.docs"
local options <const> = require "gateway.options"
local reference <const> = require "gateway.reference"
local tool <const> = require "gateway.tool"
local M = {}


-- The words that the first operand may be: "init|server DIR ..." -> { "init",
-- "server" }. Those of `docs` are in its reference.
local function first_words(command)
  local words = command.words or {}
  for word in command.operands:gmatch("[^%s|]+") do
    if word:find("^%l+$") then
      words[#words + 1] = word
    end
  end
  return words
end


-- May a value or an operand of this description be a file (or a folder)?
local function is_file(what)
  for _, sign in ipairs { "FILE", "DIR", "PATH", "POLICY", "^OLD$", "^NEW$",
    "^WHO$", "%.lua", "%.pem" } do
    if what:find(sign) then
      return true
    end
  end
  return false
end


-- The words that the value of an option may be: "text|json" -> "text json"; or
-- nil.
local function values(option)
  return option[2]:find("^%a+|[%a|]+$") and option[2]:gsub("|", " ") or nil
end


-- The names of an option as they are written: "--header", "-H".
local function written(option)
  return option.short and { "--" .. option[1], "-" .. option.short }
    or { "--" .. option[1] }
end


-- A field of each of a list, with blanks between.
local function joined(list, field, before)
  local words = {}
  for i, item in ipairs(list) do
    words[i] = (before or "") .. item[field]
  end
  return table.concat(words, " ")
end


-- Text between single quotes.
local function quoted(s)
  return "'" .. s:gsub("'", "'\\''") .. "'"
end


-- The first sentence of a command's help.
local function sentence(command)
  return command.help:match("^(.-)%.%f[%s\0]") or command.help
end


-- bash takes "--format=json" for three words.
local BASH <const> = [[
# bash completion of gateway: eval "$(gateway completion bash)"
_gateway() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
    local options= words= rest=nothing seen
    COMPREPLY=()
    [ "$before" != = ] || before=${COMP_WORDS[COMP_CWORD-2]}
    [ "$word" != = ] || word=
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="%s help"
    else
        case ${COMP_WORDS[1]} in
%s        esac
        for seen in "${COMP_WORDS[@]:2:COMP_CWORD-2}"; do
            case " $words " in
            *" $seen "*) words= ;;
            esac
        done
        case $word in
        -*) words=$options rest=nothing ;;
        esac
        case ${COMP_WORDS[1]}$before in
%s        esac
    fi
    [ "$rest" = files ] && [ -z "$words" ] || compopt +o default 2>/dev/null
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _gateway gateway
]]


-- The row of an option that takes a value.
local function bash_option(command, option)
  local names = written(option)
  for i, name in ipairs(names) do
    names[i] = command.name .. name
  end
  return ("        %s) words='%s' rest=%s ;;\n"):format(
    table.concat(names, "|"), values(option) or "",
    is_file(option[2]) and "files" or "nothing")
end


local function bash(commands)
  local cases, taking = {}, {}
  for i, command in ipairs(commands) do
    local first = table.concat(first_words(command), " ")
    cases[i] = ("        %s) options='%s --help' words='%s' rest=%s ;;\n")
      :format(command.name, joined(command.options, 1, "--"), first,
      is_file(command.operands) and "files" or "nothing")
    for _, option in ipairs(command.options) do
      taking[#taking + 1] = option[2] ~= "" and bash_option(command, option)
        or nil
    end
  end
  return BASH:format(joined(commands, "name"), table.concat(cases),
    table.concat(taking))
end


local ZSH <const> = [[
#compdef gateway
# zsh completion of gateway: a file _gateway in a folder of $fpath
_gateway() {
    local curcontext=$curcontext
    local -a commands
    commands=(
%s        'help:Says what there is'
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    shift words
    (( CURRENT-- ))
    case $words[1] in
%s    esac
}
if [ "$funcstack[1]" = _gateway ]; then
    _gateway "$@"
else
    compdef _gateway gateway
fi
]]


-- A description inside of '[…]' or after ':'.
local function zsh_text(s)
  return (s:gsub("[%[%]:\\]", "\\%0"))
end


-- What _arguments is told about one option: a spec for each way to write it.
local function zsh_option(option, specs)
  local taken = ""
  if option[2] ~= "" then
    local words = values(option)
    taken = (":%s:%s"):format(zsh_text(option[2]), words and "(" .. words .. ")"
      or is_file(option[2]) and "_files" or "")
  end
  for _, name in ipairs(written(option)) do
    local joint = taken == "" and "" or name:find("^%-%-") and "=" or "+"
    specs[#specs + 1] = quoted(("%s%s%s[%s]%s"):format(
      option.many and "*" or "", name, joint, zsh_text(option[3]), taken))
  end
end


local function zsh_command(command)
  local specs, words = {}, first_words(command)
  for _, option in ipairs(command.options) do
    zsh_option(option, specs)
  end
  specs[#specs + 1] = "'--help[says more]'"
  if #words > 0 then
    specs[#specs + 1] = quoted(("1:word:(%s)"):format(table.concat(words, " ")))
  end
  specs[#specs + 1] = is_file(command.operands) and "'*:file:_files'"
    or "'*:operand:()'"
  return ("    %s)\n        _arguments %s\n        ;;\n"):format(
    command.name, table.concat(specs, " \\\n            "))
end


local function zsh(commands)
  local names, cases = {}, {}
  for i, command in ipairs(commands) do
    names[i] = ("        %s\n"):format(quoted(command.name .. ":"
      .. zsh_text(sentence(command))))
    cases[i] = zsh_command(command)
  end
  return ZSH:format(table.concat(names), table.concat(cases))
end


local FISH <const> = [[
# fish completion of gateway: ~/.config/fish/completions/gateway.fish
function __gateway_in # COMMAND: is it this one?
    set -l words (commandline -opc)
    test (count $words) -ge 2; and test $words[2] = $argv[1]
end
function __gateway_first # COMMAND WORD...: ... and none of these is there yet?
    __gateway_in $argv[1]; or return 1
    set -l words (commandline -opc)
    set -e words[1..2] argv[1]
    for word in $words
        contains -- $word $argv; and return 1
    end
    return 0
end
complete -c gateway -f
complete -c gateway -n __fish_use_subcommand -a help -d 'Says what there is'
]]


-- The rows of a command's operands.
local function fish_operands(command, lines)
  local words = table.concat(first_words(command), " ")
  local here = "__gateway_in " .. command.name
  if words ~= "" then
    local first = ("__gateway_first %s %s"):format(command.name, words)
    lines[#lines + 1] = ("complete -c gateway -n '%s' -a '%s'"):format(first,
      words)
    here = ("%s; and not %s"):format(here, first)
  end
  if is_file(command.operands) then
    lines[#lines + 1] = ("complete -c gateway -n '%s' -F"):format(here)
  end
end


local function fish_option(command, option)
  local words = values(option)
  return ("complete -c gateway -n '__gateway_in %s'%s -l %s%s -d %s"):format(
    command.name, option.short and " -s " .. option.short or "", option[1],
    option[2] == "" and "" or words and " -x -a " .. quoted(words)
      or is_file(option[2]) and " -r -F" or " -x", quoted(option[3]))
end


local function fish(commands)
  local lines = { FISH:sub(1, -2) }
  for _, command in ipairs(commands) do
    lines[#lines + 1] = ("complete -c gateway -n __fish_use_subcommand -a %s"
      .. " -d %s"):format(command.name, quoted(sentence(command)))
    for _, option in ipairs(command.options) do
      lines[#lines + 1] = fish_option(command, option)
    end
    lines[#lines + 1] = ("complete -c gateway -n '__gateway_in %s' -l help"
      .. " -d 'says more'"):format(command.name)
    fish_operands(command, lines)
  end
  return table.concat(lines, "\n") .. "\n"
end

local SHELLS <const> = { bash = bash, zsh = zsh, fish = fish }
local commands  -- as the C side gave them to main()


local main <const> = tool.main {
  name = "completion", operands = "bash|zsh|fish", most = 1,
  help = "Prints what makes a shell complete commands and options.",
  options = {},
  examples = {
    'eval "$(gateway completion bash)"',
    "gateway completion zsh >~/.zfunc/_gateway",
    "gateway completion fish >~/.config/fish/completions/gateway.fish",
  },
  run = function(operands)
    local write = SHELLS[operands[1]]
    if not write then
      return nil, "name a shell" .. options.suggest(operands[1] or "", SHELLS)
    end
    local list = reference.commands(commands)
    for _, command in ipairs(list) do
      command.words = command.name == "docs" and docs.words(list) or nil
    end
    core.write(write(list))
    return 0
  end,
}


--- The command `gateway completion`.
function M.main(argv)
  commands = argv.commands
  return main(argv)
end


return M
