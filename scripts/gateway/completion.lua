--- `gateway completion`: what a shell needs to complete commands, their options
-- and their first words, from the tables that the commands are made of.

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local reference <const> = require "gateway.reference"
local tool <const> = require "gateway.tool"
local M = {}


-- The words that an operand may be: "init|server DIR ..." -> "init server".
local function first_words(command)
  local words = {}
  for word in command.operands:gmatch("[^%s|]+") do
    if word:find("^%l+$") then
      words[#words + 1] = word
    end
  end
  return words
end


-- The options of a command, as words.
local function option_words(command)
  local words = {}
  for i, option in ipairs(command.options) do
    words[i] = "--" .. option[1]
  end
  words[#words + 1] = "--help"
  return words
end


local function names_of(commands)
  local names = {}
  for i, command in ipairs(commands) do
    names[i] = command.name
  end
  return table.concat(names, " ")
end


-- Text between single quotes.
local function quoted(s)
  return "'" .. s:gsub("'", "'\\''") .. "'"
end


local BASH <const> = [[
# bash completion of gateway: eval "$(gateway completion bash)"
_gateway() {
    local word=${COMP_WORDS[COMP_CWORD]} words=
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="%s help"
    else
        case ${COMP_WORDS[1]} in
%s        esac
        case $word in
        -*) ;;
        *) words=${words#*:} ;;
        esac
        words=${words%%:*}
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _gateway gateway
]]


-- In the table, a command's options come before a colon, its words after it.
local function bash(commands)
  local cases = {}
  for i, command in ipairs(commands) do
    cases[i] = ("        %s) words='%s:%s' ;;\n"):format(command.name,
      table.concat(option_words(command), " "),
      table.concat(first_words(command), " "))
  end
  return BASH:format(names_of(commands), table.concat(cases))
end


local ZSH <const> = [[
#compdef gateway
# zsh completion of gateway: a file _gateway in a folder of $fpath
_gateway() {
    local -a commands
    commands=(
%s    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    case $words[2] in
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
  return (s:gsub("[%[%]:]", "\\%0"))
end


local function zsh(commands)
  local names, cases = {}, {}
  for i, command in ipairs(commands) do
    names[i] = ("        %s\n"):format(quoted(command.name .. ":"
      .. zsh_text(command.help:match("^(.-)%.%f[%s\0]") or command.help)))
    local arguments = {}
    for _, option in ipairs(command.options) do
      local spec = ("--%s%s[%s]"):format(option[1],
        option[2] ~= "" and "=" or "", zsh_text(option[3]))
      if option[2] ~= "" then
        spec = spec .. ":" .. option[2] .. (option[2]:find("^FILE$")
          and ":_files" or ":")
      end
      arguments[#arguments + 1] = quoted(spec)
    end
    local words = first_words(command)
    arguments[#arguments + 1] = quoted(#words > 0
      and ("2:word:(%s)"):format(table.concat(words, " ")) or "*:file:_files")
    arguments[#arguments + 1] = #words > 0 and quoted("*:file:_files") or nil
    cases[i] = ("    %s)\n        _arguments %s\n        ;;\n"):format(
      command.name, table.concat(arguments, " \\\n            "))
  end
  return ZSH:format(table.concat(names), table.concat(cases))
end


local function fish(commands)
  local lines = {
    "# fish completion of gateway: ~/.config/fish/completions/gateway.fish",
  }
  for _, command in ipairs(commands) do
    lines[#lines + 1] = ("complete -c gateway -n __fish_use_subcommand -a %s"
      .. " -d %s"):format(command.name,
      quoted(command.help:match("^(.-)%.%f[%s\0]") or command.help))
    local here = ("complete -c gateway -n '__fish_seen_subcommand_from %s'")
      :format(command.name)
    for _, option in ipairs(command.options) do
      lines[#lines + 1] = ("%s -l %s%s -d %s"):format(here, option[1],
        option[2] ~= "" and " -r" or "", quoted(option[3]))
    end
    local words = first_words(command)
    if #words > 0 then
      lines[#lines + 1] = ("%s -a %s"):format(here,
        quoted(table.concat(words, " ")))
    end
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
    core.write(write(reference.commands(commands)))
    return 0
  end,
}


--- The command `gateway completion`.
function M.main(argv)
  commands = argv.commands
  return main(argv)
end


return M
