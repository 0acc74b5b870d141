--- The stages of a request, as the log and core.test_request name them.

local M = {}

local ORDER <const> = {
  syntax = 1, route = 2, authorize = 3, validate = 4, body = 5, check = 6,
  handle = 7, respond = 8, log = 9,
}


--- True where `stage` comes after `other`, false where they are the same, nil
-- where it comes before.
function M.is_past(stage, other)
  if stage == other then
    return false
  end
  return ORDER[stage] > ORDER[other] or nil
end


--- True where a request that ended at `stage` had passed validation.
function M.passed_validation(stage)
  return ORDER[stage] >= ORDER.check
end


--- True where it was let through to its handler.
function M.was_allowed(stage)
  return ORDER[stage] >= ORDER.handle
end


return M
