--- Stand-ins for programs and upstreams, by name: what core.test_request asks
-- instead. For policy tests, and for the tools that send requests of their own.

local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local M = {}

local PROGRAM_FIELDS <const> = {
  ok = true, why = true, code = true, signal = true, stdout = true,
  stderr = true, timed_out = true, truncated = true, out_of_memory = true,
  busy = true, usage = true,
}
local UPSTREAM_FIELDS <const> = { status = true, headers = true, body = true }


-- What a stand-in program gave back, every field filled in.
local function command_result(given)
  given = given or {}
  if type(given) ~= "table" then
    options.fail(nil, "stub", "a command's stub is a table: { stdout = \"…\" },"
      .. " or a function that returns one")
  end
  options.fields("stub", given, PROGRAM_FIELDS)
  local result = {
    code = given.code or 0, signal = given.signal or 0,
    stdout = given.stdout or "", stderr = given.stderr or "",
    timed_out = given.timed_out or false, truncated = given.truncated or false,
    out_of_memory = given.out_of_memory or false, busy = given.busy or false,
    usage = given.usage or { ms = 1, cpu_ms = 1, rss = 1024 },
  }
  result.why = given.why or result.timed_out and "timeout"
    or result.truncated and "output too long"
    or result.out_of_memory and "out of memory"
    or result.busy and "busy"
    or result.signal ~= 0 and "signal " .. result.signal
    or result.code ~= 0 and "exit code " .. result.code or ""
  result.ok = given.ok
  if given.ok == nil then
    result.ok = result.why == ""
  end
  return result
end


-- What a stand-in upstream answered.
local function upstream_answer(given)
  given = given or {}
  if type(given) == "string" then
    given = { body = given }
  end
  options.fields("stub", given, UPSTREAM_FIELDS)
  return {
    status = given.status or 200, headers = given.headers or {},
    body = given.body or "",
  }
end


local function completed(stub, complete)
  if type(stub) == "function" then
    return function(...)
      return complete(stub(...))
    end
  end
  return complete(stub)
end


--- A stand-in for each command and each upstream of the policy: the one that is
-- given, or one that succeeds and says nothing.
-- @param given  { [name] = result, or function that returns one }; or nil
function M.all(given)
  given = given or {}
  local commands, upstreams = policy.names("commands"),
    policy.names("upstreams")
  local all, known = {}, {}
  for name in pairs(upstreams) do
    all[name], known[name] = completed(given[name], upstream_answer), true
  end
  for name in pairs(commands) do
    all[name], known[name] = completed(given[name], command_result), true
  end
  options.fields("stub", given, known)
  return all
end


return M
