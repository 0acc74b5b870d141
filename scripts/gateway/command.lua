--- Commands: programs that hooks may run, declared once and named ever after.
--
--     local tail = gateway.command {
--       name = "tail", program = "/usr/bin/tail",
--       args = { "-n", gateway.slot "lines", gateway.slot "file" },
--       slots = { lines = gateway.integer(1, 1000),
--                 file  = gateway.file_below "/var/log/app" },
--     }
--     local run = tail:run { lines = 10, file = "app.log" }
--
-- run waits for the result; tail:stream { … } is an answer whose body the
-- program writes while it runs; tail:job { … } is an answer that does not wait,
-- see gateway.jobs.
--
-- No shell is ever involved: each slot is one whole argument. The worker checks
-- a slot's value against its schema, and the broker checks it again.

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local response <const> = require "gateway.response"
local schema <const> = require "gateway.schema"
local M = {}

local SPEC <const> = options.spec("gateway.command", {
  name = { options.text, required = true,
    help = "what hooks, logs and tests call it" },
  program = { options.text, required = true,
    help = "an absolute path; no shell, no set-uid" },
  args = { options.table, default = {},
    help = 'strings and gateway.slot "name"' },
  slots = { options.table, default = {},
    help = "a schema for each slot" },
  env = { options.text_map, default = {},
    help = "the whole environment" },
  cwd = { options.text, default = "/",
    help = "working directory" },
  read = { options.files, default = core.array {},
    help = "more files and folders that it may read" },
  write = { options.files, default = core.array {},
    help = "folders that it may write in" },
  network = { options.boolean, default = false,
    help = "it may have sockets, and the machine's network" },
  timeout = { options.seconds, default = 10000,
    help = "then SIGTERM" },
  kill_after = { options.seconds, default = 2000,
    help = "then SIGKILL" },
  memory = { options.size, default = 268435456,
    help = "of each process" },
  memory_total = { options.size,
    help = "of all processes of a run together, where cgroups are" },
  cpu = { options.seconds, default = 10000,
    help = "computing time of each process" },
  files = { options.integer(4, 65536), default = 64,
    help = "open ones of each process" },
  processes = { options.integer(1, 65536), default = 128,
    help = "at a time" },
  file_size = { options.size, default = 16777216,
    help = "of each file that it writes" },
  stdin = { options.size, default = 1048576,
    help = "bytes, at most" },
  stdout = { options.size, default = 1048576,
    help = "bytes that are kept" },
  stderr = { options.size, default = 65536,
    help = "bytes that are kept" },
  concurrency = { options.integer(1, 1024), default = 4,
    help = "runs at a time" },
  queue = { options.integer(0, 65536), default = 16,
    help = "runs that wait for their turn" },
  sha256 = { options.text, default = "",
    help = "of the program: it is copied at start, and that copy runs" },
})

local SLOT_SPEC <const> = options.spec("gateway.slot", {
  prefix = { options.text, default = "",
    help = 'in front of the value: "--size="' },
  dash = { options.boolean, default = false,
    help = 'the value may begin with "-"' },
  secret = { options.boolean, default = false,
    help = "only its hash is logged" },
})

-- Variables by which a loader or an interpreter can be made to run something.
-- A '*' stands for any end.
local REFUSED_ENV <const> = [[
  PATH IFS ENV BASH_ENV BASH_FUNC_* BASHOPTS SHELLOPTS SHELL PS4 CDPATH
  FPATH ZDOTDIR PROMPT_COMMAND EDITOR VISUAL PAGER MANPAGER BROWSER
  LESSOPEN LESSCLOSE SSH_ASKPASS* SUDO_ASKPASS LD_* GLIBC_TUNABLES
  GCONV_PATH GETCONF_DIR LOCPATH MUSL_LOCPATH NLSPATH HOSTALIASES
  LOCALDOMAIN RES_OPTIONS RESOLV_HOST_CONF NIS_PATH MALLOC_*
  ASAN_OPTIONS LSAN_OPTIONS MSAN_OPTIONS TSAN_OPTIONS UBSAN_OPTIONS
  GCOV_* PYTHON* PERL* RUBY* NODE_* LUA_* TCLLIBPATH PHPRC PHP_*
  AWKPATH AWKLIBPATH GUILE_* JULIA_* R_PROFILE* ERL_* JAVA_TOOL_OPTIONS
  _JAVA_OPTIONS JDK_JAVA_OPTIONS CLASSPATH DOTNET_* CORECLR_*
  OPENSSL_CONF OPENSSL_MODULES OPENSSL_ENGINES SSLKEYLOGFILE MAGICK_*
  GIO_* GTK_* QT_* GST_* GIT_* RSYNC_* TAR_OPTIONS CVS_RSH SVN_SSH
  CURL_HOME WGETRC GNUPGHOME
]]

local Slot = {}
local Command = {}


--- slot(name [, "--size=" | options]): the place of a value in `args`: one
-- whole argument, or what stands before the value in it.
function M.slot(name, opts)
  local what <const> = "gateway.slot"
  if not options.text(name) then
    options.fail(nil, what, 'takes a name: gateway.slot "lines"')
  end
  if type(opts) == "string" then
    opts = { prefix = opts }
  end
  local slot = options.read(nil, what, opts or {}, SLOT_SPEC)
  slot.name = name
  return setmetatable(slot, Slot)
end


-- Where an alternative of a pattern stands free of parentheses, "^a|b$" binds
-- each anchor to one side only.
local function has_free_bar(pattern)
  local code = pattern:gsub("\\.", "  "):gsub("%[%^?%]?[^%]]*%]", " ")
  local depth = 0
  for char in code:gmatch("[()|]") do
    if char == "(" then
      depth = depth + 1
    elseif char == ")" then
      depth = depth - 1
    elseif depth == 0 then
      return true
    end
  end
  return false
end


-- True where a pattern says what the whole value is, from ^ to $; "(?m)" would
-- make these the ends of a line.
local function holds_whole(pattern)
  return pattern:find("^%^") and pattern:find("%$$")
    and not pattern:find("\\%$$") and not pattern:find("%(%?%^?[%a-]*m")
    and not has_free_bar(pattern)
end


-- A text that reaches a program must be narrow. Nil, or what is missing.
local function too_wide(plain)
  if type(plain) ~= "table" then
    return plain and "true allows any value" or nil
  end
  if not schema.may_be_string(plain) or plain.enum or plain.const ~= nil
    or schema.NARROW_FORMATS[plain.format] then
    return nil
  end
  if not plain.pattern and (plain.anyOf or plain.oneOf) then
    for _, part in ipairs(plain.anyOf or plain.oneOf) do
      local wide = too_wide(part)
      if wide then
        return wide
      end
    end
    return nil
  end
  if not plain.pattern then
    return "a string that reaches a program needs a pattern, or an enum"
  end
  if not holds_whole(plain.pattern) then
    return ("the pattern %s must hold the whole value: write ^(…)$"):format(
      options.show(plain.pattern))
  end
  if not plain.maxLength then
    return "a string that reaches a program needs maxLength"
  end
  return nil
end


-- The slots a command's `args` use, in order; and args as the table wants them.
local function read_args(at, what, read)
  local args, used, order = {}, {}, {}
  for i, arg in ipairs(read.args) do
    if getmetatable(arg) == Slot then
      if not read.slots[arg.name] then
        options.fail(at, what, ("args: slot '%s' is not in slots%s"):format(
          arg.name, options.suggest(arg.name, read.slots)))
      end
      if used[arg.name] then
        options.fail(at, what, ("args: slot '%s' is used twice"):format(
          arg.name))
      end
      used[arg.name] = arg
      order[#order + 1] = arg.name
      args[i] = { slot = arg.name, prefix = arg.prefix ~= "" and arg.prefix
        or nil }
    elseif type(arg) == "string" and not arg:find("\0", 1, true) then
      args[i] = { text = arg }
    else
      options.fail(at, what, ("args: number %d is %s: write a string or"
        .. ' gateway.slot "name"'):format(i, options.show(arg)))
    end
  end
  if #args ~= #options.sorted_keys(read.args) then
    options.fail(at, what, "args must be a list, without names or holes")
  end
  return args, used, order
end


-- Slots that no argument uses: right for a file on standard input, else a
-- mistake.
local function read_stdin_slots(at, what, read, used, order)
  local on_stdin
  for _, name in ipairs(options.sorted_keys(read.slots)) do
    local value = read.slots[name]
    local to_stdin = schema.is_file(value) and value.stdin
    if to_stdin and used[name] then
      options.fail(at, what, ("slot '%s' is standard input, so it cannot be an"
        .. " argument too"):format(name))
    end
    if not to_stdin and not used[name] then
      options.fail(at, what, ("slot '%s' is in no argument: add gateway.slot"
        .. " %q to args"):format(name, name))
    end
    if to_stdin then
      if on_stdin then
        options.fail(at, what, ("slots '%s' and '%s' cannot both be standard"
          .. " input"):format(on_stdin, name))
      end
      on_stdin = name
      order[#order + 1] = name
    end
  end
end


local function read_slot(at, what, name, value, arg)
  local label = ("%s: slot '%s'"):format(what, name)
  if schema.is_optional(value) then
    options.fail(at, label, "is always given: gateway.optional belongs in"
      .. " validate, beside the default")
  end
  local plain = schema.read_text(at, label, value, false)
  local wide = too_wide(plain)
  if wide then
    options.fail(at, label, wide)
  end
  return {
    name = name, schema = plain,
    dash = arg and arg.dash or false, secret = arg and arg.secret or false,
    file = schema.is_file(value)
      and { below = value.below, stdin = value.stdin } or nil,
  }
end


local function check_env(at, what, env)
  for _, name in ipairs(options.sorted_keys(env)) do
    if not name:find("^[%a_][%w_]*$") then
      options.fail(at, what, ("env: no variable name %s"):format(
        options.show(name)))
    end
    for word in REFUSED_ENV:gmatch("%S+") do
      local start = word:match("^(.*)%*$")
      if name == word or start and name:sub(1, #start) == start then
        options.fail(at, what, ("env: %s can make a program run another one:"
          .. " leave it out"):format(name))
      end
    end
  end
end


local function check_paths(at, what, read)
  if not read.program:find("^/") then
    options.fail(at, what, ("program must be an absolute path, not %s: there is"
      .. " no search through PATH"):format(options.show(read.program)))
  end
  if not read.cwd:find("^/") then
    options.fail(at, what, "cwd must be an absolute path")
  end
  for _, key in ipairs { "read", "write" } do
    for _, path in ipairs(read[key]) do
      if not path:find("^/") then
        options.fail(at, what, ("%s: %s is not an absolute path"):format(key,
          options.show(path)))
      end
    end
  end
  if not read.name:find("^[%w_][%w_.-]*$") then
    options.fail(at, what, ("name %s: use letters, digits, '_', '.' and '-'")
      :format(options.show(read.name)))
  end
  if read.sha256 ~= "" and not read.sha256:lower():find("^" .. ("%x"):rep(64)
    .. "$") then
    options.fail(at, what, "sha256 takes 64 hexadecimal digits")
  end
end


--- command { name =, program =, args =, slots =, limits … }: declares a
-- program.
function M.declare(given)
  local what = "gateway.command"
  local at = policy.declare(what)
  local read = options.read(at, what, given, SPEC)
  what = what .. " " .. read.name
  policy.unique(at, what, "commands", read.name)
  check_paths(at, what, read)
  check_env(at, what, read.env)
  local args, used, order = read_args(at, what, read)
  read_stdin_slots(at, what, read, used, order)
  local slots = {}
  for i, name in ipairs(order) do
    slots[i] = read_slot(at, what, name, read.slots[name], used[name])
  end
  local index = policy.add("commands", {
    name = read.name, program = read.program, args = core.array(args),
    slots = core.array(slots), env = read.env, cwd = read.cwd,
    read = read.read, write = read.write, network = read.network,
    timeout_ms = read.timeout, kill_ms = read.kill_after,
    memory = read.memory, memory_total = read.memory_total or read.memory,
    cpu_ms = read.cpu, files = read.files, processes = read.processes,
    file_size = read.file_size,
    stdin = read.stdin, stdout = read.stdout, stderr = read.stderr,
    concurrency = read.concurrency, queue = read.queue,
    sha256 = read.sha256:lower(), at = at,
  })
  return setmetatable({ name = read.name, index = index, slots = read.slots },
    Command)
end


-- ---- what hooks call -------------------------------------------------------

local STDIN <const> = { type = "a string",
  help = "its standard input, at most the command's stdin" }

-- The options of each way to run a command.
local OPTIONS <const> = {
  run = options.spec("command:run", { stdin = STDIN }),
  job = options.spec("command:job", { stdin = STDIN }),
  stream = options.spec("command:stream", {
    stdin = { type = "a string, or request.stream",
      help = "its standard input; request.stream where the route's body is"
        .. " gateway.stream(max)" },
    status = { type = "a whole number", shown = "200",
      help = "of the answer" },
    content_type = { type = "a string", shown = "application/octet-stream",
      help = "of the answer" },
    headers = { type = "a table of names and strings",
      help = "more header fields of the answer" },
  }),
}

local NO_BODY <const> = { [204] = true, [205] = true, [304] = true }
local RETRY <const> = { ["retry-after"] = "1" }


-- A name that is no slot is a typo, whatever else is wrong with the call.
local function check_slots(self, what, slots)
  if type(slots) ~= "table" then
    options.fail(nil, what, "takes a table of slots, not "
      .. options.show(slots))
  end
  local known = rawget(self, "slots")
  for name in pairs(slots) do
    if known[name] == nil then
      options.fail(nil, what, ("command %s has no slot '%s'%s"):format(
        rawget(self, "name"), tostring(name),
        options.suggest(tostring(name), known)))
    end
  end
end


local function check_call(self, way, slots, opts)
  local what = "command:" .. way
  if getmetatable(self) ~= Command then
    options.fail(nil, what, ("is called with a colon: tail:%s { … }"):format(
      way))
  end
  if slots ~= nil then
    check_slots(self, what, slots)
  end
  if opts ~= nil and type(opts) ~= "table" then
    options.fail(nil, what, "takes options as a table, not "
      .. options.show(opts))
  end
  for name in pairs(opts or {}) do
    if not OPTIONS[way][name] then
      options.fail(nil, what, ("unknown option '%s'%s"):format(tostring(name),
        options.suggest(tostring(name), OPTIONS[way])))
    end
  end
end


--- command:run(slots [, { stdin = "…" }]): runs it and waits. Always a table,
-- also where it could not be run: see `gateway docs result`.
local function run(self, slots, opts)
  check_call(self, "run", slots, opts)
  return core.exec(self.index, slots or {}, opts)
end


-- The answer to a request for a program that was not started.
local function not_started(result)
  if result.over then
    return response.problem(429, nil, RETRY)
  end
  return response.problem(result.busy and 503 or 502, nil,
    result.busy and RETRY or nil)
end


--- command:stream(slots [, { stdin =, status =, content_type =, headers = }]):
-- an answer whose body is what the program writes, while it runs.
local function stream(self, slots, opts)
  check_call(self, "stream", slots, opts)
  opts = opts or {}
  local status = opts.status or 200
  if math.type(status) ~= "integer" or status < 200 or status > 599
    or NO_BODY[status] then
    options.fail(nil, "command:stream", "status must be one of an answer with"
      .. " a body, not " .. options.show(status))
  end
  if opts.content_type and not options.text(opts.content_type) then
    options.fail(nil, "command:stream", "content_type must be a string")
  end
  local program, refused = core.stream(self.index, slots or {}, opts)
  if not program then
    return not_started(refused)
  end
  return {
    stream = program, status = status, headers = opts.headers,
    type = opts.content_type or "application/octet-stream",
  }
end


--- command:job(slots [, { stdin = "…" }]): starts it and does not wait. The
-- answer is 202, and its Location is where gateway.jobs tells how it is.
local function job(self, slots, opts)
  check_call(self, "job", slots, opts)
  local path = policy.jobs_path()
  if not path then
    options.fail(nil, "command:job", "declare gateway.jobs {} first: it says"
      .. " where clients can ask about their jobs")
  end
  local begun, refused = core.job(self.index, slots or {}, opts)
  if not begun then
    return not_started(refused)
  end
  return response.json({ id = begun.id, command = self.name,
    state = begun.state }, 202, { location = path .. "/" .. begun.id })
end

local METHODS <const> = { run = run, stream = stream, job = job }
local FIELDS <const> = {
  run = true, stream = true, job = true, name = true, slots = true,
}


function Command.__index(self, key)
  local method = METHODS[key]
  if method then
    return method
  end
  options.fail(nil, "command " .. rawget(self, "name"),
    ("has no '%s'%s"):format(tostring(key),
      options.suggest(tostring(key), FIELDS)))
end


return M
