--- A small HTTP/1.1 client for tools, over core.dial.
--
--     local client = http_client.new { host = "127.0.0.1", port = "8443",
--       authority = "127.0.0.1:8443", ca =, certificate =, key = }  -- PEM
--     local answer, why, step = client:ask { method = "GET", target = "/x" }
--     print(answer.status, answer.headers["content-type"], answer.body)
--
-- It keeps the connection where the answer lets it, follows nothing, and writes
-- targets and header values as they are given. Where no answer comes, `step`
-- says how far it got: "connect", "files" (ours are not usable), "handshake" or
-- "answer".

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local M = {}

local SECONDS <const> = 10      -- for connecting, and again for an answer
local HEAD_MAX <const> = 64 << 10
local BODY_MAX <const> = 1 << 20  -- what is longer is cut

local Client = {}
Client.__index = Client


--- new(where): a client of one server. `plain = true` is without TLS.
function M.new(where)
  return setmetatable({ where = where }, Client)
end


-- Raised, and caught by ask(); anything else that is raised is a bug of ours.
local function fail(why)
  error({ why = why }, 0)
end


-- What messages about connections say for policies, and for a command line.
local WORDS <const> = {
  { "certificate, key", "--cert, --key" },
  { ": set server_name, or issue it for that name",
    ": name it in the URL as its certificate does" },
  { "give certificate and key", "give --cert and --key" },
  { "of `certificate`", "of --cert" }, { "to `certificate`", "to --cert" },
}


--- A message about a connection, its mend in options of the command line.
function M.in_words_of_tools(why)
  for _, pair in ipairs(WORDS) do
    local from, to = why:find(pair[1], 1, true)
    if from then
      why = why:sub(1, from - 1) .. pair[2] .. why:sub(to + 1)
    end
  end
  return why
end


-- ---- reading ---------------------------------------------------------------

local Reader = {}
Reader.__index = Reader


-- Waits for more bytes.
function Reader:more()
  local left = self.until_ - core.now()
  if left <= 0 then
    fail "timeout"
  end
  local bytes, why = self.dial:receive(left)
  if not bytes then
    fail(why)
  end
  self.text, self.came = self.text .. bytes, true
end


-- The next line, without its end.
function Reader:line()
  local at = self.text:find("\n", 1, true)
  while not at do
    if #self.text > HEAD_MAX then
      fail "a line without end"
    end
    self:more()
    at = self.text:find("\n", 1, true)
  end
  local line = self.text:sub(1, at - 1):gsub("\r$", "")
  self.text = self.text:sub(at + 1)
  return line
end


-- The next `n` bytes.
function Reader:bytes(n)
  while #self.text < n do
    self:more()
  end
  local bytes = self.text:sub(1, n)
  self.text = self.text:sub(n + 1)
  return bytes
end


-- All until the server closes, or as much as is kept.
function Reader:rest()
  while #self.text <= BODY_MAX do
    local ok, problem = pcall(self.more, self)
    if not ok and type(problem) == "table" and problem.why == "closed" then
      break
    elseif not ok then
      error(problem, 0)
    end
  end
  return self.text:sub(1, BODY_MAX)
end


local function read_head(reader)
  local line = reader:line()
  local minor, status = line:match("^HTTP/1%.(%d) (%d%d%d)%f[%s\0]")
  if not status then
    fail("no HTTP/1.1 answer: " .. options.show(line))
  end
  local answer = { status = tonumber(status), headers = {}, minor = minor }
  local size = 0
  for row in function() return reader:line() end do
    if row == "" then
      break
    end
    size = size + #row
    if size > HEAD_MAX then
      fail "a head of more than 64 KiB"
    end
    local name, value = row:match("^([^:]+):%s*(.-)%s*$")
    if name then
      name = name:lower()
      local old = answer.headers[name]
      answer.headers[name] = old and old .. ", " .. value or value
    end
  end
  return answer
end


-- A body in chunks, and whether it is whole.
local function read_chunks(reader)
  local parts, size = {}, 0
  while true do
    local hex = reader:line():match("^%s*(%x+)%s*;?")
    local n = hex and #hex <= 8 and tonumber(hex, 16)
    if not n then
      fail "a chunk without a size"
    elseif n == 0 then
      break
    elseif size + n > BODY_MAX then
      return table.concat(parts), false
    end
    parts[#parts + 1] = reader:bytes(n)
    size = size + n
    reader:line()
  end
  for row in function() return reader:line() end do
    if row == "" then
      break
    end
  end
  return table.concat(parts), true
end


-- The body, and whether another request may follow on the connection.
local function read_body(reader, method, answer)
  local coding = answer.headers["transfer-encoding"]
  local length = answer.headers["content-length"]
  if method == "HEAD" or answer.status == 204 or answer.status == 304 then
    return "", true
  elseif coding and coding:lower():find "chunked%s*$" then
    return read_chunks(reader)
  elseif coding or not length then
    return reader:rest(), false
  end
  local n = length:find "^%d+$" and #length <= 15 and tonumber(length)
  if not n then
    fail "a Content-Length that is no number"
  elseif n > BODY_MAX then
    return reader:bytes(BODY_MAX), false
  end
  return reader:bytes(n), true
end


-- An answer that is no 1xx; its seconds are until its head was whole.
local function read_answer(reader, method, sent)
  local answer
  repeat
    answer = read_head(reader)
  until answer.status >= 200 or answer.status == 101
  answer.seconds = core.now() - sent
  answer.body, answer.whole = read_body(reader, method, answer)
  local connection = (answer.headers.connection or ""):lower()
  answer.keep = answer.whole and #reader.text == 0 and answer.minor == "1"
    and not connection:find("close", 1, true)
  return answer
end


-- ---- asking ----------------------------------------------------------------

local function head_of(self, request)
  local lines = {
    ("%s %s HTTP/1.1"):format(request.method, request.target),
    "Host: " .. self.where.authority,
    "User-Agent: gateway-audit",
    "Accept: */*",
  }
  for _, field in ipairs(request.headers or {}) do
    lines[#lines + 1] = field[1] .. ": " .. field[2]
  end
  if request.body then
    lines[#lines + 1] = "Content-Length: " .. #request.body
  end
  return table.concat(lines, "\r\n") .. "\r\n\r\n" .. (request.body or "")
end


--- Ends the connection, if there is one.
function Client:close()
  if self.dial then
    self.dial:close()
    self.dial = nil
  end
end


-- One request on the connection there is, or on a new one.
function Client:try(request)
  local reused = self.dial ~= nil
  if not reused then
    local where = self.where
    local dial, why, step = core.dial {
      host = where.host, port = where.port, plain = where.plain, ca = where.ca,
      certificate = where.certificate, key = where.key, seconds = SECONDS,
    }
    if not dial then
      return nil, M.in_words_of_tools(why), step
    end
    self.dial = dial
  end
  local sent = core.now()
  local reader = setmetatable({
    dial = self.dial, text = "", until_ = sent + SECONDS,
  }, Reader)
  local ok, result = pcall(function()
    -- a server may answer, and close, before it has read everything
    local _, why = self.dial:send(head_of(self, request), SECONDS)
    local read, answer = pcall(read_answer, reader, request.method, sent)
    if not read and why and not reader.came and type(answer) == "table" then
      fail(why)
    elseif not read then
      error(answer, 0)
    end
    return answer
  end)
  if not (ok and result.keep) then
    self:close()
  end
  if ok then
    return result
  elseif type(result) ~= "table" then
    error(result, 0)
  end
  return nil, result.why, "answer",
    reused and not reader.came and result.why ~= "timeout"
end


--- ask { method, target, headers = list of { name, value }, body }.
-- @return the answer { status, headers (names in lower case), body, seconds };
--         or nil, why, and the step that failed
function Client:ask(request)
  local answer, why, step, stale = self:try(request)
  if stale then  -- the server closed a connection that was kept
    answer, why, step = self:try(request)
  end
  return answer, why, step
end


return M
