--- `gateway audit --host`: what is around the gateway, as findings.
--
-- Each layer of the sandbox that is not here, and each thing around us that is
-- not as it should be, is a finding of the rule `host.NAME`. The names are
-- those of accept_missing and must_have in gateway.process.

local core <const> = require "gateway.core"
local finding <const> = require "gateway.finding"
local M = {}

local PLACE <const> = "host"


-- How bad it is that a layer is missing: by what the policy says of it, or
-- else by whether a start without it would be refused.
local function missing(layer)
  if layer.policy == "accepted if missing" then
    return "medium"
  elseif layer.floor or layer.policy == "needed" or layer.policy == "must have"
  then
    return "high"
  end
  return "info"
end


-- The findings of a report of core.host().
local function judge(report)
  local list = finding.new()
  for _, layer in ipairs(report.layers) do
    if not layer.have then
      list:add { rule = "host." .. layer.name, at = PLACE, mend = layer.mend,
        severity = missing(layer), what = ("the layer %s is missing: %s;"
          .. " without it, %s"):format(layer.name, layer.why, layer.lost) }
    end
  end
  for _, one in ipairs(report.posture) do
    if one.severity ~= "fine" then
      list:add { rule = "host." .. one.name, at = PLACE, mend = one.mend,
        severity = one.severity == "note" and "info" or one.severity,
        what = one.what }
    end
  end
  return list
end


local function print_layers(layers)
  local here = {}
  for _, layer in ipairs(layers) do
    if layer.have then
      here[#here + 1] = layer.name
    end
  end
  core.print("sandbox layers here: " .. (#here > 0 and table.concat(here, ", ")
    or "none"))
end


--- Looks, and reports.
-- @param policy  nil, or the policy whose use of this machine is judged
-- @param opts    of finding.OPTIONS
-- @return the exit code
function M.main(policy, opts)
  local text, problem = core.host(policy)
  if not text then
    core.warn("gateway: " .. problem)
    return 1
  end
  local report = core.decode(text)
  if opts.format == "text" then
    print_layers(report.layers)
  end
  local code = judge(report):report(opts, report)
  if problem then  -- a start would be refused
    core.warn("gateway: " .. problem)
    return 1
  end
  return code
end


return M
