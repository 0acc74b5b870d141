--- What comments allow: a finding in the line of such a comment counts for
-- nothing, or, where the comment is alone in its line, one in the next.
--
--     gateway.get("/x", {  -- audit: allow input.stream because it is a note

local finding <const> = require "gateway.finding"
local M = {}

finding.rules {
  ["audit.allow-without-reason"] = { "medium", "a finding is allowed without a"
    .. " reason, so it counts", "write: audit: allow RULE because …" },
  ["audit.allow-unknown"] = { "medium", "a comment allows a rule that there is"
    .. " not", "see gateway audit --rules" },
  ["audit.allow-unused"] = { "low", "a comment allows what was not found",
    "delete the comment" },
}

local Allowed = {}
Allowed.__index = Allowed


--- Comments that allow some of the findings of a list.
-- @param list  finding.new(); what is wrong with a comment is added to it
function M.new(list)
  return setmetatable({ list = list, rows = {}, at = {} }, Allowed)
end


function Allowed:add(rule, at, what)
  self.list:add { rule = rule, at = at, what = what }
end


--- Reads the comments of a file: { { line =, text =, alone = } … }.
function Allowed:read(file, comments)
  for _, comment in ipairs(comments) do
    local rule, rest = comment.text:match("^%s*audit:%s*allow%s+(%S+)%s*(.*)$")
    local at = ("%s:%d"):format(file, comment.line)
    if rule then
      local why = rest:match("^because%s+(%S.-)%s*$")
      local known, suggestion = finding.is_rule(rule)
      if not known then
        self:add("audit.allow-unknown", at, ("no rule %s%s"):format(rule,
          suggestion))
      elseif not why then
        self:add("audit.allow-without-reason", at, ("%s is allowed without a"
          .. " reason"):format(rule))
      else
        local line = ("%s:%d"):format(file, comment.line
          + (comment.alone and 1 or 0))
        local row = { rule = rule, why = why, at = at }
        self.rows[#self.rows + 1] = row
        self.at[line] = self.at[line] or {}
        table.insert(self.at[line], row)
      end
    end
  end
end


--- Reads the comments of a YAML document: "# audit: allow RULE because …".
function Allowed:read_yaml(name, text)
  local comments, line = {}, 0
  for row in (text .. "\n"):gmatch("(.-)\n") do
    line = line + 1
    comments[#comments + 1] = { line = line, text = row:match("#(.*)$") or "",
      alone = row:find("^%s*#") ~= nil }
  end
  self:read(name, comments)
end


--- Marks what is allowed, and reports the comments that allow nothing.
function Allowed:apply()
  for _, found in ipairs(self.list) do
    for _, row in ipairs(self.at[found.at] or {}) do
      if row.rule == found.rule then
        found.suppressed, row.used = row.why, true
      end
    end
  end
  for _, row in ipairs(self.rows) do
    if not row.used then
      self:add("audit.allow-unused", row.at, ("nothing here is %s"):format(
        row.rule))
    end
  end
end


return M
