--- What a gateway's log holds of its requests, as far as they can be run again.
--
-- A request is in up to three lines: `decision` where it was refused, `error`
-- of room hook where a hook of the policy failed, `access` at its end. No line
-- has headers or bodies: what needs them cannot be told from the log.

local core <const> = require "gateway.core"
local policy <const> = require "gateway.policy"
local strings <const> = require "gateway.strings"
local who <const> = require "gateway.who"
local M = {}

local TARGET_BYTES <const> = 1024  -- of a target in a log line
local WAITING <const> = 4096       -- refusals whose access line may come
local EVENTS <const> = { decision = true, access = true, error = true,
  identity = true }


-- Fields that are texts, wherever they are; a line of somebody else may have
-- taken their names.
local TEXTS <const> = { "id", "identity", "serial", "method", "target", "peer",
  "listener", "route", "stage", "where", "name", "reason", "at", "msg",
  "tunnel", "dn", "issuer", "fingerprint", "spki" }
local LISTS <const> = { "uri", "dns", "email", "ip", "eku", "ca" }


-- Is a line such as a gateway writes?
local function is_ours(record)
  for _, name in ipairs(TEXTS) do
    if record[name] ~= nil and type(record[name]) ~= "string" then
      return false
    end
  end
  for _, name in ipairs(LISTS) do
    for _, value in ipairs(type(record[name]) == "table" and record[name]
      or { record[name] }) do
      if type(value) ~= "string" then
        return false
      end
    end
  end
  if record.event == "identity" then
    return record.identity and record.serial and record.dn ~= nil
  end
  return record.id and (record.status == nil or math.tointeger(record.status))
end


--- A line as a table; nil where it is none of those looked for. A collector may
-- have written something before its `{`.
function M.read(line)
  local _, at = line:find('"event":"', 1, true)
  local event = at and line:sub(at + 1, line:find('"', at + 1, true) - 1)
  if not EVENTS[event] then
    return nil
  end
  local begin = line:find("{", 1, true)
  local record = core.decode(begin == 1 and line or line:sub(begin or 1))
  if type(record) ~= "table" or record.event ~= event
    or event == "error" and record.room ~= "hook" or not is_ours(record) then
    return nil
  end
  return record
end


-- Adds what a line says to what is known of a request.
local function add(record, line)
  for name, value in pairs(line) do
    if record[name] == nil or name == "status" then
      record[name] = value
    end
  end
  if line.event == "access" then
    record.over = true
  else
    record.refused = line.event == "decision" or record.refused
    record.bug = line.event == "error" or record.bug
    record.reason = line.reason or line.msg
    record.stage, record.at = line.stage, line.at
    record.where, record.name = line.where, line.name
  end
end


-- Requests that were refused, and whose access line may still come: first in,
-- first out.
local Waiting = {}
Waiting.__index = Waiting


function Waiting:note(line)
  if not self.open[line.id] then
    self.open[line.id] = {}
    self.last = self.last + 1
    self.order[self.last] = line.id
  end
  add(self.open[line.id], line)
end


-- Takes a request out; nil where it does not wait.
function Waiting:take(id)
  local record = self.open[id]
  self.open[id] = nil
  return record
end


-- Takes the oldest one out, where more than `most` were noted since.
function Waiting:oldest(most)
  while self.last - self.first >= most do
    local id = self.order[self.first]
    self.order[self.first] = nil
    self.first = self.first + 1
    local record = self:take(id)
    if record then
      return record
    end
  end
  return nil
end


--- The requests of a log, one after the other, each once: at their access line,
-- or, where the log has none, some time later.
-- @param next_line  function that returns the next line or nil
-- @param on_identity  function(line) for each line of event identity; or nil
-- @return function that returns the next request or nil
function M.requests(next_line, on_identity)
  local waiting = setmetatable({ open = {}, order = {}, first = 1, last = 0 },
    Waiting)
  return function()
    for line in next_line do
      local read = M.read(line)
      local event = read and read.event
      if event == "identity" and on_identity then
        on_identity(read)
      elseif event == "access" then
        local record = waiting:take(read.id) or {}
        add(record, read)
        return record
      elseif event == "decision" or event == "error" then
        waiting:note(read)
        local record = waiting:oldest(WAITING)
        if record then
          return record
        end
      end
    end
    return waiting:oldest(0)
  end
end


--- The request of that id. Nil and why.
-- @return request, and the line of event identity about its client, if any
function M.find(file, id)
  local lines, message = core.lines(file)
  if not lines then
    return nil, message
  end
  local record, known
  for line in lines do
    local read = (line:find(id, 1, true) or not record
      and line:find('"event":"identity"', 1, true)) and M.read(line)
    if read and read.event == "identity" then
      known = known or {}
      known[read.identity .. "\0" .. read.serial] = not read.cut and read
    elseif read and read.id == id then
      record = record or {}
      add(record, read)
    end
  end
  if not record then
    return nil, ("%s: no request has the id %s"):format(file, id)
  end
  return record, known and record.identity
    and known[record.identity .. "\0" .. record.serial] or nil
end


--- What became of it, in a few words.
function M.outcome(record)
  if record.refused or record.bug then
    return ("%s with %s at %s: %s"):format(
      record.bug and "failed" or "refused", tostring(record.status or 500),
      record.stage, strings.first_line(record.reason))
  end
  return "allowed, and answered with " .. tostring(record.status)
end


--- The request to run again; nil and why not.
function M.request(record)
  if record.tunnel == "tcp" or not record.method then
    return nil, record.stage == "syntax" and "its head could not be read"
      or "it was no HTTP request"
  elseif record.where == "connection" then
    return nil, "the connection was refused, not the request"
  elseif not record.identity or not record.serial or not record.target then
    return nil, "the log does not say who sent it, or what"
  elseif #record.target >= TARGET_BYTES then
    return nil, "the log has only the beginning of its target"
  elseif record.where == "head" then
    return nil, "its head was refused, and headers are not logged"
  end
  local spec = { method = record.method, target = record.target,
    peer = record.peer, headers = {} }
  if policy.find("listeners", record.listener) then
    spec.listener = record.listener
  end
  return spec
end


--- Who sent it: as who.of says; of a client that only the log describes also
-- `asked`, a list of the fields that hooks asked for in vain.
-- @param given  WHO of the command line, instead of what the log says
-- @param whole  the line of event identity about this client, if there is one
function M.client(record, given, whole)
  if given then
    return who.of(given, who.listener(record.listener) or who.listener())
  end
  if whole then
    return { identity = who.whole(whole) }
  end
  local identity, asked, held = who.logged(record)
  return { identity = identity, asked = asked, held = held }
end


--- Why nothing follows from where a request out of a log ended, or nil: it was
-- at what the log does not have.
-- @param result  of core.test_request
function M.undecided(result)
  local route = result.number and policy.all("routes")[result.number]
  if not route or result.allowed then
    return nil
  elseif route.body.kind ~= "none" and (result.where == "body"
    or result.where == "json") then
    return "after that, the body would be read, and the log does not have it"
  elseif next(route.headers) and result.where == "headers" then
    return "after that, headers would be read, and the log does not have them"
  end
  return nil
end


--- What was not there to be looked at, a sentence each.
-- @param result  of core.test_request
-- @param client  of M.client
function M.missing(result, client)
  local lines = {}
  local route = result.number and policy.all("routes")[result.number]
  if client.asked and client.asked[1] then
    lines[1] = ("the log does not have the client's %s, which is taken for"
      .. " absent: give --identity CERT.pem"):format(client.asked[1])
  end
  if route and next(route.headers) then
    lines[#lines + 1] = "headers are not logged, and this route reads some"
  end
  if route and route.body.kind ~= "none" then
    lines[#lines + 1] = "bodies are not logged, and this route takes one"
  end
  return lines
end


return M
