--- Talks to a running gateway: `gateway status`, `reload`, `drain`, `stop`.
--
-- The gateway has a Unix socket. Where it is, `gateway.process { control = … }`
-- says, or the place follows from the policy's path. A call is one word, and
-- the answer one line of JSON.

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local tool <const> = require "gateway.tool"
local M = {}

local PATIENCE <const> = 50  -- calls, while the gateway says that it is busy
local DAY <const> = 86400

-- How long an answer may take; a load that is under way comes first.
local SECONDS <const> = { status = 10, reload = 120, certificates = 120 }


-- What an answer must have to be one.
local ENDING <const> = { at_most_ms = "integer" }
local LOADED <const> = { generation = "integer" }
local FORMS <const> = {
  status = { version = "string", pid = "integer", state = "string",
    uptime = "integer", requests = "integer", policy = "string",
    workers = "table" },
  reload = LOADED, certificates = LOADED, drain = ENDING, stop = ENDING,
}


local function is_whole(answer, form)
  for name, kind in pairs(form) do
    local value = answer[name]
    if type(value) ~= kind and math.type(value) ~= kind then
      return false
    end
  end
  return true
end


-- The socket that the policy names; nil: none. Nil and why, where the policy
-- does not load.
local function named_by(name)
  local ok, message = core.test_policy(name)
  if not ok then
    return nil, message
  end
  return (policy.control():match("^unix:(.+)$"))
end


-- Calls the gateway of a policy. Nil and why not.
local function call(opts, word)
  local seconds = SECONDS[word] or 0
  if opts.control then
    return core.control((opts.control:gsub("^unix:", "")), word, seconds)
  end
  local looked = core.control_places(opts.policy)
  for _, path in ipairs(looked) do
    local lines = core.control(path, word, seconds)
    if lines then
      return lines
    end
  end
  local path, why = named_by(opts.policy)
  if path then
    return core.control(path, word, seconds)
  end
  return nil, ("no gateway runs %s (looked for %s)%s: start it, or give"
    .. " --policy as `gateway run` was given it, or --control PATH, as its"
    .. " `ready` line has it (another user's is in that user's folder)"):format(
    opts.policy, table.concat(looked, ", "), why
      and "; a place that the policy names is not known, for it does not load ("
        .. why .. ")" or "")
end


-- The first line of the answer, as a table; and the rest. Nil and why.
local function ask(opts, word)
  for _ = 1, PATIENCE do
    local lines, why = call(opts, word)
    if not lines then
      return nil, why
    end
    local line = lines()
    local ok, answer = pcall(core.decode, line or "")
    if not ok or type(answer) ~= "table" then
      return nil, line and "the gateway's answer is no JSON"
        or "the gateway hung up, or was silent for too long"
    elseif answer.ok and is_whole(answer, FORMS[word]) then
      return answer, lines, line
    elseif answer.ok or type(answer.error) ~= "string" then
      return nil, "the answer is none of a gateway of this version"
    elseif answer.error ~= "busy" then
      return nil, answer.error
    end
    core.pause(0.1)
  end
  return nil, "the gateway is busy with other callers: try again"
end


local function failed(why)
  core.warn("gateway: " .. why)
  return 1
end


-- ---- status ----------------------------------------------------------------

-- Seconds as people say it: "3 d 4 h".
local function span(seconds)
  local units = { { "d", DAY }, { "h", 3600 }, { "min", 60 }, { "s", 1 } }
  for i, unit in ipairs(units) do
    if seconds >= unit[2] or i == #units then
      local text = ("%d %s"):format(seconds // unit[2], unit[1])
      local rest = i < #units and seconds % unit[2] // units[i + 1][2] or 0
      return rest > 0 and ("%s %d %s"):format(text, rest, units[i + 1][1])
        or text
    end
  end
end


-- Days since 1970 of "2027-01-31T…".
local function day_number(date)
  local y, m, d = date:match("^(%d+)%-(%d+)%-(%d+)")
  y, m, d = math.tointeger(y), math.tointeger(m), math.tointeger(d)
  if m <= 2 then
    y, m = y - 1, m + 12
  end
  return 365 * y + y // 4 - y // 100 + y // 400 + (153 * (m - 3) + 2) // 5 + d
    - 719469
end


local function days_left(date)
  local left = day_number(date) - core.time() // DAY
  if left < 0 then
    return "EXPIRED"
  end
  return ("%d day%s left"):format(left, left == 1 and "" or "s")
end


local function say_workers(workers)
  table.sort(workers, function(a, b)
    return a.generation > b.generation
      or a.generation == b.generation and a.index < b.index
  end)
  for _, w in ipairs(workers) do
    core.print(("  worker %d   pid %d, %s, %s%s"):format(w.index, w.pid,
      options.count(w.connections, "connection"),
      options.count(w.requests, "request"),
      w.draining and (" (drains, generation %d)"):format(w.generation)
        or not w.ready and " (starts)" or ""))
  end
end


-- What `gateway status` prints.
local function say_status(s)
  core.print(("gateway %s, pid %d, %s for %s, generation %s, %s")
    :format(s.version, s.pid, s.state, span(s.uptime),
      tostring(s.generation or "none"), options.count(s.requests, "request")))
  core.print(("  policy     %s%s"):format(s.policy, s.policy_sha256
    and " (sha256 " .. s.policy_sha256:sub(1, 16) .. "…)" or ""))
  core.print("  listeners  " .. table.concat(s.listeners or {}, ", "))
  if s.admin and #s.admin > 0 then
    core.print("  admin      " .. table.concat(s.admin, ", "))
  end
  say_workers(s.workers)
  local last = s.last_load
  if last ~= core.null then
    core.print(("  last load  %s, %s"):format(last.at,
      last.ok and "fine" or "REFUSED: " .. last.error))
  end
  local missing = s.missing_layers or {}
  core.print("  missing    "
    .. (#missing > 0 and table.concat(missing, ", ") or "no layer"))
  for _, c in ipairs(s.certificates or {}) do
    core.print(("  %s until %s, %s: %s (%s of %s)"):format(c.file,
      c.not_after:sub(1, 10), days_left(c.not_after), c.subject, c.of, c.name))
  end
end


local function status(_, opts)
  local answer, why, line = ask(opts, "status")
  if not answer then
    return failed(why)
  elseif opts.json then
    core.print(line)
  else
    say_status(answer)
  end
  return 0
end


-- ---- reload, drain, stop ---------------------------------------------------

local function reload(_, opts)
  local answer, why = ask(opts,
    opts.certificates and "certificates" or "reload")
  if not answer then
    return failed(why .. " (what ran before runs on)")
  end
  core.print(("reloaded: generation %d serves"):format(answer.generation))
  return 0
end


-- Both end the gateway, and the connection with it.
local function ending(word)
  return function(_, opts)
    local answer, lines = ask(opts, word)
    if not answer then
      return failed(lines)
    elseif opts["no-wait"] then
      return 0
    elseif answer.at_most_ms > 0 then
      core.print(("drains, for at most %d s"):format(
        answer.at_most_ms // 1000))
      core.flush()
    end
    while lines() do
      -- there is no other line: this waits for the end
    end
    core.print("the gateway has ended")
    return 0
  end
end


-- ---- the commands ----------------------------------------------------------

local POLICY <const> = { "policy", "FILE", "the policy that it runs",
  default = "scripts/gateway.lua" }
local CONTROL <const> = { "control", "PATH",
  "its control socket; if not given, what the policy says, or the usual place" }
local NO_WAIT <const> = { "no-wait", nil, "do not wait until it has ended" }

local mains <const> = {
  status = tool.main {
    name = "status", most = 0,
    help = "Says how a running gateway is: its workers, how the last reload"
      .. " went, which layers are missing, when certificates expire.",
    options = { POLICY, CONTROL, { "json", nil, "for machines" } },
    examples = {
      "gateway status --policy /etc/gateway/gateway.lua",
      "gateway status --control /run/gateway/control --json",
    },
    run = status,
  },
  reload = tool.main {
    name = "reload", most = 0,
    help = "Has a running gateway load its policy, certificates, CAs and CRLs"
      .. " anew, and waits for the verdict. Exit code 1: they were refused, for"
      .. " the printed reason, and the old ones serve on.",
    options = { POLICY, CONTROL, { "certificates", nil,
      "only the files; the policy stays as it was loaded" } },
    examples = {
      "gateway reload",
      "gateway reload --certificates --control /run/gateway/control",
    },
    run = reload,
  },
  drain = tool.main {
    name = "drain", most = 0,
    help = "Has a running gateway take no new connections, finish its requests"
      .. " within process.drain, and end; waits for that.",
    options = { POLICY, CONTROL, NO_WAIT },
    examples = { "gateway drain", "gateway drain --no-wait" },
    run = ending "drain",
  },
  stop = tool.main {
    name = "stop", most = 0,
    help = "Has a running gateway end at once: what it serves is cut off.",
    options = { POLICY, CONTROL, NO_WAIT },
    examples = { "gateway stop" },
    run = ending "stop",
  },
}


--- The four commands.
function M.main(argv)
  return mains[argv.command](argv)
end


return M
