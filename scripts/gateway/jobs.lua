--- Jobs: programs that go on when the request that started them is over.
--
--     gateway.jobs { path = "/jobs", keep = 600 }
--     gateway.post("/reports", { authorize = id.ou "ops",
--       handle = function() return report:job {} end })
--
-- `command:job` answers 202 with a Location below `path`. There, GET tells how
-- the job is and what it has written, and DELETE ends it; for any other
-- identity than the one that started it, it is not there.

local core <const> = require "gateway.core"
local identity <const> = require "gateway.identity"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local response <const> = require "gateway.response"
local route <const> = require "gateway.route"
local M = {}

local SPEC <const> = options.spec("gateway.jobs", {
  path = { options.text, default = "/jobs",
    help = "GET path/ID tells, DELETE path/ID ends it" },
  keep = { options.seconds, default = 600000,
    help = "after its end" },
  max = { options.integer(1, 4096), default = 64,
    help = "kept at a time" },
  per_identity = { options.integer(1, 4096), default = 8,
    help = "of one client" },
  output = { options.size, default = 1048576,
    help = "of one job, at most 256M" },
  authorize = { options.anything,
    type = "condition or function(identity)",
    help = "who may ask; if not given, id.anyone" },
  others = { options.anything,
    type = "condition or function(identity)",
    help = "who may see and end the jobs of others; if not given, nobody" },
  host = { options.anything,
    type = "a string", help = "only for this Host" },
  listener = { options.anything,
    type = "a string", help = "only on this listener" },
})

local OUTPUT_MAX <const> = 2 ^ 28
local PAUSE <const> = 0.05


-- Text as it is; other bytes as Base64, under another name.
local function put_output(into, name, bytes)
  if utf8.len(bytes) then
    into[name] = bytes
  else
    into[name .. "_base64"] = core.base64(bytes)
  end
end


-- All output of a job that the first answer said there was. It comes in pieces;
-- an empty one says that the broker has much to do just now.
local function collect(job, ask)
  local out, err = { job.result.stdout }, { job.result.stderr }
  local got_out, got_err = #out[1], #err[1]
  while got_out < job.stdout_size or got_err < job.stderr_size do
    local more = ask(got_out, got_err)
    if not more then
      break
    end
    local piece, other = more.result.stdout, more.result.stderr
    if piece == "" and other == "" then
      core.sleep(PAUSE)
    end
    out[#out + 1], err[#err + 1] = piece, other
    got_out, got_err = got_out + #piece, got_err + #other
  end
  return table.concat(out), table.concat(err)
end


-- A job as its client reads it.
local function describe(job, ask)
  local result, ended = job.result, job.state == "ended"
  local text = {
    id = job.id, command = job.command, state = job.state,
    created = job.created, started = job.started, ended = job.ended,
  }
  if ended then
    text.ok, text.why = result.ok, result.why
    text.code, text.signal = result.code, result.signal
    text.timed_out, text.truncated = result.timed_out, result.truncated
    text.out_of_memory = result.out_of_memory
    text.usage = result.usage
  end
  local out, err = collect(job, ask)
  put_output(text, "stdout", out)
  put_output(text, "stderr", err)
  return text
end


-- A function that looks at the job that is asked for, or ends it: at this
-- policy's broker, then at those of earlier ones that still keep jobs.
local function make_ask(request, client, others)
  local any = others and others(client) == true or false
  local job_id, found = request.path.job, nil
  return function(stop, from_out, from_err)
    local unknown
    for _, broker in ipairs(found and { found } or core.job_brokers()) do
      local job, why = core.job_ask(broker, job_id, any, stop, from_out or 0,
        from_err or 0)
      if job then
        found = broker
        return job
      end
      if broker == 0 then  -- an older one that is gone took its jobs along
        unknown = why
      end
    end
    return nil, unknown
  end
end


local function no_job(unknown)
  return response.problem(unknown and 503 or 404)
end


local function look(request, client, others)
  local ask = make_ask(request, client, others)
  local job, unknown = ask(false)
  if not job then
    return no_job(unknown)
  end
  return response.json(describe(job, function(from_out, from_err)
    return (ask(false, from_out, from_err))
  end), 200, { ["cache-control"] = "no-store" })
end


-- Ends a job that runs (202: it takes a moment), forgets any other.
local function stop(request, client, others)
  local job, unknown = make_ask(request, client, others)(true)
  if not job then
    return no_job(unknown)
  end
  if job.state == "ended" then
    return response.response { status = 204 }
  end
  return response.json({ id = job.id, command = job.command,
    state = job.state }, 202)
end


local function declare_route(declare, read, handle, others)
  declare(read.path .. "/{job}", {
    authorize = read.authorize or identity.anyone,
    host = read.host, listener = read.listener,
    validate = { path = { job = {
      type = "string", pattern = "^[0-9a-f]{32}$", maxLength = 32,
    } } },
    handle = function(request, client)
      return handle(request, client, others)
    end,
  })
end


--- jobs { path =, keep =, max =, per_identity =, … }: where clients ask about
-- their jobs, and how many are kept for how long.
function M.declare(given)
  local what <const> = "gateway.jobs"
  local at = policy.declare(what)
  local read = options.read(at, what, given, SPEC)
  if read.output > OUTPUT_MAX then
    options.fail(at, what, "output: at most 256M of a job are kept")
  end
  if not read.path:find("^/[%w/_.-]*[%w_-]$") then
    options.fail(at, what, ("path must be a path such as /jobs, not %s")
      :format(options.show(read.path)))
  end
  local others, wrong
  if read.others ~= nil then
    others, wrong = identity.to_condition(read.others)
  end
  if wrong then
    options.fail(at, what, "others " .. wrong)
  end
  policy.set_jobs(at, read.path, {
    max = read.max, per_identity = read.per_identity, keep_ms = read.keep,
    output = read.output,
  })
  declare_route(route.get, read, look, others)
  declare_route(route.delete, read, stop, others)
end


return M
