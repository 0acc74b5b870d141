--- Policy tests: cases that `gateway test` runs without network or sleep.
--
--     local t = require "gateway.test"
--     t.policy "scripts/gateway.lua"
--     local alice = t.identity { cn = "alice", ou = "ops" }
--
--     t.case("alice reads a log", function()
--       local r = t.request(alice, "GET", "/v1/logs/app.log?lines=3",
--         { stub = { tail = { stdout = "ok" } } })
--       t.allowed(r)
--       t.ran(r, "tail", { lines = 3 })
--     end)
--
-- A request passes through the very code that serves: only the network, the
-- upstreams and the programs are stood in for, by `stub`.

local core <const> = require "gateway.core"
local coverage <const> = require "gateway.coverage"
local fuzz <const> = require "gateway.fuzz"
local fuzz_failure <const> = require "gateway.fuzz_failure"
local fuzz_model <const> = require "gateway.fuzz_model"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local results <const> = require "gateway.results"
local stage <const> = require "gateway.stage"
local stub <const> = require "gateway.stub"
local tool <const> = require "gateway.tool"
local who <const> = require "gateway.who"
local M = {}

-- The file being read, and its cases so far: { policy =, cases = { … } }.
local file = { cases = {}, identities = {} }

-- Of the case that runs: has it sent a request, and asked anything of what came
-- of it?
local sent, asked = false, false

local MANY <const> = "a string, or a list"

local function many(help)
  return { type = MANY, help = help }
end

local function one(help)
  return { type = "a string", help = help }
end

local IDENTITY_FIELDS <const> = options.spec("test.identity", {
  cn = many "common names of the subject", o = many "its organizations",
  ou = many "its organizational units", c = many "its countries",
  l = many "its localities", st = many "its states or provinces",
  dc = many "its domain components", uid = many "its user ids",
  uri = many "URIs among its other names",
  dns = many "DNS names among its other names",
  email = many "e-mail addresses among its other names",
  ip = many "addresses among its other names",
  spiffe = one "its SPIFFE ID",
  eku = { type = MANY, shown = "clientAuth",
    help = "what the certificate is issued for" },
  serial = one "the serial number in hexadecimal",
  issuer = one "the issuer's name, as RFC 4514 writes it",
  fingerprint = one "SHA-256 of the certificate",
  spki = one "SHA-256 of the public key, as id.spki takes it",
  ca = many "files that id.ca names, which its chain goes through",
})
local REQUEST_FIELDS <const> = options.spec("test.request", {
  headers = { type = "a table of names and strings",
    help = "header fields" },
  body = { type = "a string",
    help = "the body" },
  json = { type = "any value",
    help = "the same, written as JSON, with that Content-Type" },
  raw = { type = "a string",
    help = "the whole request as text, instead of the rest" },
  stub = { type = "a table",
    help = "by name, what commands (fields of `result`) and upstreams (of"
      .. " `answer`) give: a table, or a function that returns one" },
  listener = { type = "a string",
    help = "by which listener it comes in; else the first" },
})


-- A failed expectation, told from a bug in the test by its metatable.
local Failure = { __tostring = function(self) return self.text end }

local function fail(message)
  error(setmetatable({ text = options.where() .. ": " .. message }, Failure), 0)
end


local function misuse(what, message)
  error(("%s: %s: %s"):format(options.where(), what, message), 0)
end


-- ---- what a test file says -------------------------------------------------

--- policy "scripts/gateway.lua": the policy this file is about; without it, the
-- one that --policy names.
function M.policy(name)
  if not options.text(name) then
    misuse("t.policy", 'takes a file: t.policy "scripts/gateway.lua"')
  end
  file.policy = name
end


--- identity { cn =, ou =, uri =, … }: a client. Every field takes a string or a
-- list; eku is clientAuth unless given.
function M.identity(fields)
  if type(fields) ~= "table" then
    misuse("t.identity", 'takes a table: t.identity { cn = "alice" }')
  end
  options.fields("t.identity", fields, IDENTITY_FIELDS)
  file.identities[#file.identities + 1] = fields
  local ok, made = pcall(who.make, fields)
  if not ok then
    misuse("t.identity", (tostring(made):gsub("^.-t%.identity: ", "")))
  end
  return made
end


--- case(name, function): one test. It fails at its first failed expectation.
function M.case(name, body)
  if not options.text(name) or type(body) ~= "function" then
    misuse("t.case", 't.case("what should be", function() … end)')
  end
  file.cases[#file.cases + 1] = { name = name, body = body,
    at = options.where() }
end


-- ---- requests --------------------------------------------------------------

-- Fields of the connection: the test's own side of it writes them.
local OF_CONNECTION <const> = {
  connection = "it is kept", upgrade = "an upgrade is tried with a running"
    .. " gateway", ["transfer-encoding"] = "give body",
  ["content-length"] = "give body", ["keep-alive"] = "it is kept",
  ["proxy-connection"] = "it is kept", te = "there are no trailers",
  trailer = "there are no trailers",
}


-- The names of a request's headers in lower case, as a set.
local function header_names(headers)
  local names = {}
  for name in pairs(headers) do
    local lower = tostring(name):lower()
    if OF_CONNECTION[lower] then
      misuse("t.request", ("headers: %s is of the connection: %s; for a request"
        .. " as it stands, give raw"):format(name, OF_CONNECTION[lower]))
    end
    names[lower] = true
  end
  return names
end


--- request(identity, method, target [, options]): sends one request.
-- @return what came back, for the expectations below: see `gateway docs r`
function M.request(identity, method, target, opts)
  opts = opts or {}
  if type(identity) ~= "userdata" and type(identity) ~= "table" then
    misuse("t.request",
      'takes an identity first: t.identity { cn = "alice" }')
  end
  options.fields("t.request", opts, REQUEST_FIELDS)
  local headers, body = {}, opts.body
  for name, value in pairs(opts.headers or {}) do
    headers[name] = value
  end
  local names = header_names(headers)
  if opts.json ~= nil then
    body = core.encode(opts.json)
  end
  if body and not names["content-type"] then
    headers["content-type"] = opts.json ~= nil and "application/json"
      or "application/octet-stream"
  end
  local r = core.test_request(identity, {
    method = method, target = target, headers = headers, body = body,
    raw = opts.raw, stub = stub.all(opts.stub), listener = opts.listener,
  })
  coverage.note(method, target, r)
  sent = true
  return r
end


-- ---- expectations ----------------------------------------------------------

-- What became of a request, in a few words.
local function outcome(r)
  local text = ("%d at %s"):format(r.status, r.stage)
  if r.where and r.where ~= "" then
    text = text .. " (" .. r.where
      .. (r.name and r.name ~= "" and " " .. r.name or "") .. ")"
  end
  if r.reason and r.reason ~= "" then
    text = text .. ": " .. r.reason
  end
  return r.cut and text .. " (the answer is cut)" or text
end


local function check_reason(r, reason)
  if reason and not (r.reason or ""):find(reason, 1, true) then
    fail(("expected the reason to contain %q, got %s"):format(reason,
      outcome(r)))
  end
end


--- allowed(r): the request reached its handler, which did not fail.
function M.allowed(r)
  if not stage.was_allowed(r.stage) or r.status == 500 or r.cut then
    fail("expected allowed, got " .. outcome(r))
  end
end


--- denied(r [, stage [, reason]]): authorize or check refused the identity.
-- @param stage   "authorize" or "check"; either where nil
-- @param reason  text that the logged reason contains
function M.denied(r, at, reason)
  if at ~= nil and at ~= "authorize" and at ~= "check" then
    misuse("t.denied", ('takes "authorize" or "check", not %s; for an input'
      .. " write t.refused"):format(options.show(at)))
  end
  local there = at and r.stage == at
    or not at and (r.stage == "authorize" or r.stage == "check")
  if not there or r.status < 400 or r.status == 500 then
    fail(("expected denied%s, got %s"):format(at and " at " .. at or "",
      outcome(r)))
  end
  check_reason(r, reason)
end


--- refused(r [, where [, reason]]): the input was refused before any handler.
-- @param where   "path" "query" "headers" "body" "json" "route" …, or the
--                stage, or the input's name
function M.refused(r, where, reason)
  local place = where == nil or where == r.where or where == r.stage
    or where == r.name
  if stage.was_allowed(r.stage) or r.stage == "authorize"
    or r.stage == "check" or r.status < 400 or r.status == 500 or not place then
    fail(("expected refused%s, got %s"):format(
      where and " at " .. where or "", outcome(r)))
  end
  check_reason(r, reason)
end


--- failed(r [, reason]): a hook raised an error or answered with what is no
-- answer, for a reason that contains this text.
function M.failed(r, reason)
  if r.status ~= 500 then
    fail("expected a hook that fails, got " .. outcome(r))
  end
  check_reason(r, reason)
end


-- True where each field of `wanted` is in `found`, numbers as text or not.
local function contains(found, wanted)
  for name, value in pairs(wanted or {}) do
    local got = found[name]
    if type(value) == "table" then
      if type(got) ~= "table" or not contains(got, value) then
        return false
      end
    elseif tostring(got) ~= tostring(value) then
      return false
    end
  end
  return true
end


-- A value for an error message: tables with sorted keys.
local function picture(value, depth)
  if type(value) ~= "table" then
    return options.show(value, 240)
  end
  if (depth or 0) > 3 then
    return "{…}"
  end
  local parts = {}
  for _, key in ipairs(options.sorted_keys(value)) do
    parts[#parts + 1] = ("%s = %s"):format(tostring(key),
      picture(value[key], (depth or 0) + 1))
  end
  return "{ " .. table.concat(parts, ", ") .. " }"
end


-- Why a command was not run, though a handler asked for it; or nil.
local function refusal(r, command)
  for _, refused in ipairs(r.refusals or {}) do
    if refused.command == command then
      return ("none: %s; "):format(refused.why)
    end
  end
  return nil
end


--- ran(r, command [, slots]): a handler ran the command, with these slots.
function M.ran(r, command, slots)
  if not policy.names("commands")[command] then
    misuse("t.ran", ("no command is named %s%s"):format(options.show(command),
      options.suggest(tostring(command), policy.names("commands"))))
  end
  local seen = {}
  for _, run in ipairs(r.runs or {}) do
    if run.command == command and contains(run.slots, slots) then
      return
    end
    seen[#seen + 1] = run.command .. " " .. picture(run.slots)
  end
  fail(("expected a run of %s %s, got %s"):format(command, picture(slots or {}),
    #seen > 0 and table.concat(seen, "; ")
      or (refusal(r, command) or "none; ") .. outcome(r)))
end


--- not_ran(r): no program was run.
function M.not_ran(r)
  local run = (r.runs or {})[1]
  if run then
    fail(("expected no run, got %s %s"):format(run.command,
      picture(run.slots)))
  end
end


-- The same expectation, its header names in lower case, as records have them.
local function folded(wanted)
  if type(wanted) ~= "table" or type(wanted.headers) ~= "table" then
    return wanted
  end
  local copy = {}
  for name, value in pairs(wanted) do
    copy[name] = value
  end
  copy.headers = {}
  for name, value in pairs(wanted.headers) do
    copy.headers[type(name) == "string" and name:lower() or name] = value
  end
  return copy
end


-- Of what was forwarded, what an expectation speaks of, and where it went.
local function compared(forward, wanted)
  local part = { upstream = forward.upstream, method = forward.method,
    target = forward.target }
  for name, value in pairs(wanted or {}) do
    part[name] = forward[name]
    if type(value) == "table" and type(forward[name]) == "table" then
      part[name] = {}
      for key in pairs(value) do
        part[name][key] = forward[name][key]
      end
    end
  end
  return part
end


--- forwarded(r [, wanted]): an upstream was asked; `wanted` has any of
-- upstream, method, target, headers, body.
function M.forwarded(r, wanted)
  local seen = {}
  wanted = folded(wanted)
  for _, forward in ipairs(r.forwards or {}) do
    if contains(forward, wanted) then
      return
    end
    seen[#seen + 1] = picture(compared(forward, wanted))
  end
  fail(("expected forwarded %s, got %s"):format(picture(wanted or {}),
    #seen > 0 and table.concat(seen, "; ") or "nothing; " .. outcome(r)))
end


--- not_forwarded(r): no upstream was asked.
function M.not_forwarded(r)
  local forward = (r.forwards or {})[1]
  if forward then
    fail("expected nothing forwarded, got " .. picture(forward))
  end
end


--- not_failed(r): no hook raised an error or answered with what is no answer.
function M.not_failed(r)
  if r.status == 500 then
    fail("expected no hook that fails, got " .. outcome(r))
  end
end


--- status(r, number): the answer's status.
function M.status(r, number)
  if r.status ~= number then
    fail(("expected status %s, got %s"):format(tostring(number), outcome(r)))
  end
end


-- Deep equality; the field where two values first differ, or nil.
local function difference(a, b, path)
  if type(a) ~= "table" or type(b) ~= "table" then
    return a ~= b and path or nil
  end
  for key in pairs(a) do
    local where = difference(a[key], b[key], path .. "." .. tostring(key))
    if where then
      return where
    end
  end
  for key in pairs(b) do
    if a[key] == nil then
      return path .. "." .. tostring(key)
    end
  end
  return nil
end


--- equal(got, wanted): two values are the same, tables by content.
function M.equal(got, wanted)
  local where = difference(got, wanted, "")
  if where then
    fail(("expected %s, got %s%s"):format(picture(wanted), picture(got),
      where ~= "" and " (they differ in " .. where:sub(2) .. ")" or ""))
  end
end


local EXPECTATIONS <const> = {
  "allowed", "denied", "refused", "failed", "not_failed", "ran", "not_ran",
  "forwarded", "not_forwarded", "status", "equal",
}

for _, name in ipairs(EXPECTATIONS) do
  local expect = M[name]
  M[name] = function(...)
    asked = true
    return expect(...)
  end
end


-- ---- running ---------------------------------------------------------------

-- Reads one test file, which sees what a policy sees; with opts.library the
-- library's own modules, too, and with them files and running gateways. Nil and
-- a message where it does not load.
local function read_file(name, opts)
  file = { name = name, cases = {}, identities = {} }
  local chunk, message = core.test_load(name, opts.library)
  if not chunk then
    return nil, message
  end
  core.test_printer(name)
  local ok, problem = core.test_within(chunk, "reading the file", opts.cpu,
    opts.memory)
  core.test_printer(nil)
  if not ok then
    return nil, problem
  end
  if #file.cases == 0 then
    return nil, name .. ': no case in this file: t.case("…", function() … end)'
  end
  return file
end


-- A case that asks nothing of the answers it got cannot fail, unless its file
-- asks in a way of its own.
local function check_asked(case)
  local text = sent and not asked and core.read_file(file.name) or ""
  if not sent or asked or text:find "%f[%w_]assert%f[^%w_]"
    or text:find "%f[%w_]error%f[^%w_]" then
    return nil
  end
  return ("%s: %s: it asks nothing of the answer, so it cannot fail: write"
    .. " t.allowed(r), t.refused(r), …"):format(case.at, case.name)
end


-- Runs one case, on a policy that no other case has used. Nil, or why it
-- failed; and true where the policy does not even load.
local function run_case(case, policy_name, opts)
  local ok, message = core.test_policy(policy_name, opts.cpu)
  if not ok then
    return tostring(message), true
  end
  coverage.note_routes()
  sent, asked = false, false
  core.test_printer(case.name)
  ok, message = core.test_within(case.body, "the case", opts.cpu, opts.memory)
  core.test_printer(nil)
  if ok then
    return check_asked(case)
  end
  if getmetatable(message) == Failure then
    local at, rest = message.text:match("^(.-:%d+: )(.*)$")
    return (at or "") .. case.name .. ": " .. (rest or message.text)
  end
  message = tostring(message)
  if not message:find("^[^\n]-:%d+: ") then
    message = case.at .. ": " .. message
  end
  return ("%s (in case %q)"):format(message, case.name)
end


-- Runs the cases of one file; adds what came of them to `list`.
local function run_file(name, opts, list)
  local function add(case, seconds, problem)
    list[#list + 1] = {
      file = name, name = case, ok = not problem, seconds = seconds,
      message = problem,
    }
  end
  local began = core.now()
  local read, message = read_file(name, opts)
  if not read then
    add("(reading the file)", core.now() - began, tostring(message))
    return
  end
  for _, case in ipairs(read.cases) do
    if not opts.run or case.name:find(opts.run, 1, true) then
      began = core.now()
      local problem, unloadable = run_case(case, read.policy or opts.policy,
        opts)
      add(unloadable and "(loading the policy)" or case.name,
        core.now() - began, problem)
      if unloadable then
        return  -- for the same reason every time: said once
      end
    end
  end
end


-- What a threshold adds to the results: a case for each kind of coverage.
local function judge_coverage(covered, threshold, list)
  for _, kind in ipairs { "lines", "policy" } do
    local found = covered[kind].percent
    list[#list + 1] = {
      file = "coverage", name = kind, ok = found >= threshold, seconds = 0,
      threshold = true,
      message = found < threshold and ("coverage of %s is %.1f%%, below the"
        .. " threshold of %s%%"):format(
        kind == "lines" and "lines" or "the policy", found,
        tostring(threshold)) or nil,
    }
  end
end


--- Runs test files and prints what came of it.
-- @param names  list of test files
-- @param opts   { policy = default policy, run = text that a case's name must
--               contain, verbose = true: also a line for each that passes,
--               format = "text", "junit" or "json", coverage = true,
--               threshold = of both kinds of coverage, in percent }
-- @return the number of failures; 1 where no case ran at all
function M.run(names, opts)
  local list, tests, failed = {}, {}, 0
  coverage.start(opts.coverage)
  for _, name in ipairs(names) do
    tests[name] = true
    run_file(name, opts, list)
  end
  if #list == 0 then
    list[1] = {
      file = "gateway test", name = "at least one case runs", ok = false,
      seconds = 0, message = "no case ran: nothing was tested",
    }
  end
  local covered = opts.coverage and coverage.result(tests)
  if opts.threshold then
    judge_coverage(covered, opts.threshold, list)
  end
  for _, result in ipairs(list) do
    failed = failed + (result.ok and 0 or 1)
  end
  results.print(opts.format or "text", list, covered, opts.verbose)
  return failed
end


-- ---- fuzzing ---------------------------------------------------------------

-- The policies to fuzz, and the identities that tests of each use. Files that
-- do not load are reported where they were named.
local function fuzz_targets(names, opts, named, list)
  local policies, known = {}, {}
  local function target(name)
    if not known[name] then
      known[name] = { name = name, identities = {} }
      policies[#policies + 1] = known[name]
    end
    return known[name]
  end
  if not named then
    target(opts.policy)
  end
  for _, name in ipairs(names) do
    local read, message = read_file(name, opts)
    if not read and named then
      list[#list + 1] = { file = name, name = "(reading the file)", ok = false,
        seconds = 0, message = tostring(message) }
    end
    local about = read and (read.policy or opts.policy)
    if read and (named or about == opts.policy) then
      local identities = target(about).identities
      table.move(read.identities, 1, #read.identities, #identities + 1,
        identities)
    end
  end
  return policies
end


-- Fuzzes one policy. Nil and why, where it does not load.
local function fuzz_one(target, seconds, seed)
  local function fresh()  -- as if it had seen no request
    return core.test_policy(target.name)
  end
  local ok, message = fresh()
  if not ok then
    return nil, message
  end
  return fuzz.run {
    seconds = seconds, seed = seed, identities = target.identities,
    identity = who.make, fresh = fresh,
    request = function(client, model)
      local spec = fuzz_model.options(model)
      spec.headers = spec.headers or {}
      spec.method, spec.target = model.method, fuzz_model.target(model)
      spec.stub = stub.all()
      return core.test_request(client.identity, spec)
    end,
  }
end


-- A word on what was done, on standard error: the results are on the other.
local function tell_of_fuzzing(name, run)
  core.warn(("fuzz %s: seed %d: %s to %s: %d valid, %d invalid, %d that could"
    .. " not be told"):format(name, run.seed,
    options.count(run.sent, "request"), options.count(run.goals, "route"),
    run.valid, run.invalid, run.unsure))
  for _, place in ipairs(run.stood_in) do
    core.warn(("  %s: authorize was stood in for: no identity of a test or of"
      .. " its conditions is let in"):format(place))
  end
end


--- Fuzzes the policies of test files and prints what came of it.
-- @param names  list of test files, whose identities are used
-- @param opts   { policy =, fuzz = seconds, seed =, format = }
-- @param named  true: the policies of these files; else opts.policy alone
-- @return the number of failures
function M.fuzz(names, opts, named)
  local list, failed = {}, 0
  local policies = fuzz_targets(names, opts, named, list)
  for _, target in ipairs(policies) do
    local began = core.now()
    local run, message = fuzz_one(target, opts.fuzz / #policies, opts.seed)
    local result = { file = target.name, name = "fuzz", ok = run ~= nil
      and #run.failures == 0 and #run.closed == 0
      and run.valid + run.invalid > 0,
      seconds = core.now() - began }
    if not run then
      result.message = tostring(message)
    elseif #run.closed > 0 then
      result.message = table.concat(run.closed, "\n")
    elseif not result.ok and #run.failures == 0 then
      result.message = target.name .. ": no request was judged: nothing was"
        .. " fuzzed"
    end
    if run then
      tell_of_fuzzing(target.name, run)
    end
    for i, failure in ipairs(run and run.failures or {}) do
      list[#list + 1] = { file = target.name, ok = false, seconds = 0,
        name = ("fuzz, failure %d"):format(i),
        message = fuzz_failure.case(failure), as_is = true }
    end
    if result.ok or result.message then
      list[#list + 1] = result
    end
  end
  for _, result in ipairs(list) do
    failed = failed + (result.ok and 0 or 1)
  end
  results.print(opts.format, list, nil, opts.verbose)
  return failed
end


-- ---- the command -----------------------------------------------------------

local function percentage(text)
  local number = tonumber(text)
  return number and number >= 0 and number <= 100 and number or nil
end


local function duration(text)
  local number = tonumber(text)
  return number and number > 0 and number <= 86400 and number or nil
end


local function whole(text)
  return text:find("^%d+$") and math.tointeger(tonumber(text)) or nil
end


local function amount(text)
  local number = whole(text)
  return number and number >= 1 and number <= 100000 and number or nil
end

-- What each option's value must be.
local VALUES <const> = {
  threshold = { percentage, "a percentage from 0 to 100" },
  fuzz = { duration, "a number of seconds" },
  seed = { whole, "a whole number" },
  cpu = { amount, "a whole number of seconds, from 1 to 100000" },
  memory = { amount, "a whole number of MiB, from 1 to 100000" },
}


-- Reads the options. Returns what is wrong with them, or nil.
local function misuse_of_options(opts)
  for name, row in pairs(VALUES) do
    if opts[name] then
      local value = row[1](opts[name])
      if not value then
        return ("--%s takes %s, not '%s'"):format(name, row[2], opts[name])
      end
      opts[name] = value
    end
  end
  if opts.seed and not opts.fuzz then
    return "--seed goes with --fuzz"
  elseif opts.fuzz and (opts.run or opts.coverage or opts.threshold) then
    return "--fuzz runs no cases: leave out --run, --coverage, --threshold"
  elseif not results.knows(opts.format) then
    return ("--format takes text, junit or json, not '%s'"):format(opts.format)
  end
  opts.coverage = opts.coverage or opts.threshold ~= nil
  opts.seed = opts.seed or opts.fuzz and tonumber(core.random(8), 16)
end


--- The command `gateway test`.
M.main = tool.main {
  name = "test", operands = "[TEST.lua ...]",
  help = "Runs policy tests: real hooks and schemas, real certificates made in "
    .. "memory; no network, no waiting. Without files: "
    .. "scripts/tests/*_test.lua. Exit code 1 if one fails or none ran.",
  options = {
    { "policy", "FILE", "the policy of tests that name none",
      default = "scripts/gateway.lua" },
    { "run", "TEXT", "only cases whose name contains TEXT" },
    { "coverage", nil, "which lines of the policy ran, and which decisions of"
      .. " each route no case has seen" },
    { "threshold", "PERCENT", "exit code 1 where a coverage is below it" },
    { "fuzz", "SECONDS", "instead of the cases: requests made from the schemas"
      .. " of each route, valid and invalid ones" },
    { "seed", "NUMBER", "makes the same requests as that run of --fuzz" },
    { "cpu", "SECONDS", "what a case, or reading a file, may compute; a policy"
      .. " at most 5",
      default = "10" },
    { "memory", "MIB", "the memory it may use, of the whole Lua state",
      default = "256" },
    { "format", "text|junit|json", "how it is told", default = "text" },
    { "verbose", nil, "a line for each case, not only for failures" },
    { "library", nil, "the tests may require the library's inner modules, and"
      .. " do what those can: read files, stop a gateway" },
  },
  examples = {
    "gateway test",
    "gateway test --run traversal scripts/tests/gateway_test.lua",
    "gateway test --threshold 90 --format junit > report.xml",
    "gateway test --fuzz 10 --policy policy.lua",
  },
  run = function(operands, opts)
    local wrong = misuse_of_options(opts)
    if wrong then
      return nil, wrong
    end
    local files = #operands > 0 and operands
      or core.glob("scripts/tests/*_test.lua")
    local failed = opts.fuzz and M.fuzz(files, opts, #operands > 0)
      or not opts.fuzz and M.run(files, opts)
    return failed == 0 and 0 or 1
  end,
}


-- Slips: t.alowed(r). The tools' own functions are not for test files.
local FOR_FILES <const> = { policy = true, identity = true, case = true,
  request = true }

for _, name in ipairs(EXPECTATIONS) do
  FOR_FILES[name] = true
end


return setmetatable(M, { __index = function(_, name)
  options.fail(nil, "t." .. tostring(name), "there is no such function"
    .. options.suggest(tostring(name), FOR_FILES))
end })
