--- Answers: what a handler or a respond hook returns.
--
-- A response is a plain table { status, type, headers, body }; `type` is the
-- Content-Type, kept apart from `headers` so that the usual answer costs one
-- small table. These run once a request, so they check nothing that the C side
-- checks anyway.

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local M = {}

local encode <const> = core.encode
local TEXT <const> = "text/plain; charset=utf-8"
local JSON <const> = "application/json"
local FIELDS <const> = options.spec("gateway.response", {
  status = { type = "a whole number", shown = "200",
    help = "the status" },
  type = { type = "a string",
    help = "its Content-Type" },
  headers = { type = "a table of names and strings",
    help = "header fields" },
  body = { type = "a string", shown = '""',
    help = "the body" },
})


--- text(body [, status [, headers]]): a plain text answer.
function M.text(body, status, headers)
  return { status = status or 200, type = TEXT, body = body, headers = headers }
end


--- json(value [, status [, headers]]): a value as JSON.
function M.json(value, status, headers)
  return {
    status = status or 200, type = JSON, body = encode(value),
    headers = headers,
  }
end


--- response { status =, type =, headers =, body = }: any answer.
function M.response(fields)
  options.fields("gateway.response", fields, FIELDS)
  return {
    status = fields.status or 200, type = fields.type,
    body = fields.body or "", headers = fields.headers,
  }
end


--- problem(status [, detail [, headers]]): an RFC 9457 problem with the request
-- id. `detail` is what the client reads, or a table { title =, detail = }.
function M.problem(status, detail, headers)
  if math.type(status) ~= "integer" or status < 400 or status > 599 then
    options.fail(nil, "gateway.problem", ("takes a status from 400 to 599,"
      .. " not %s"):format(options.show(status)))
  end
  local problem = type(detail) == "table" and detail or { detail = detail }
  return { status = status, headers = headers, problem = problem }
end


return M
