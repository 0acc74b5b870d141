--- Probes of `gateway audit --live`: one input of a running service at a time.
--
-- A probe is a value that does no harm: it reads what every machine has
-- (/proc/version), prints a product, waits two seconds, asks for help. Nothing
-- is written, deleted or fetched. What it shows is told from how the service
-- answers a valid value, and a control: a word like any other.

local finding <const> = require "gateway.finding"
local input <const> = require "gateway.audit_live_input"
local options <const> = require "gateway.options"
local M = {}

finding.rules {
  ["live.file-reached"] = { "high", "an input makes the service read another"
    .. " file", "take names from a list, or open them below one folder; let the"
    .. " schema's pattern have no '/' and no '..'" },
  ["live.program-reached"] = { "high", "an input is an option of a program"
    .. " that the service runs", "put '--' before it, and let its pattern not"
    .. " begin with '-'" },
  ["live.shell-reached"] = { "high", "an input is run by a shell",
    "run the program without a shell, with a list of arguments" },
  ["live.header-injected"] = { "high", "an input writes a header of the answer",
    "refuse CR and LF in it" },
  ["live.suspicious"] = { "medium", "an input changes the answer as if it"
    .. " reached a file, a program or a shell", "see what the service does with"
    .. " it, and give it a narrow pattern" },
  ["live.forbidden-accepted"] = { "medium", "the service takes what its"
    .. " document forbids", "check inputs by the document's schemas" },
  ["live.server-error"] = { "low", "an input makes the service fail",
    "refuse it with a 4xx" },
}

local FACTOR <const>, OTHER <const> = 7919, 7907
local PRODUCT <const> = tostring(FACTOR * OTHER)
local SUM <const> = ("$((%d*%d))"):format(FACTOR, OTHER)
local WAIT <const> = 2      -- seconds that a probe sleeps
local MARGIN <const> = 1.5  -- seconds that count as such a sleep
local TIMES <const> = 3     -- how often it must
local LONG <const> = 5000

local UP <const> = ("../"):rep(10)
local PROC <const> = "Linux version "
local OS <const> = "PRETTY_NAME="

-- { how a value becomes a probe, what the answer then holds }
local FILES <const> = {
  { function() return UP .. "proc/version" end, PROC },
  { function() return "/proc/version" end, PROC },
  { function(value) return value .. "/" .. UP .. "proc/version" end, PROC },
  { function() return "/proc/self/root/proc/version" end, PROC },
  { function() return ("....//"):rep(10) .. "proc/version" end, PROC },
  { function() return UP .. "proc/version\0" end, PROC },
  { function() return "file:///proc/version" end, PROC },
  { function() return ("..%2f"):rep(10) .. "proc%2fversion" end, PROC },
  { function() return UP .. "etc/os-release" end, OS },
  { function() return "/etc/os-release" end, OS },
}
-- The same in a path, as no client should send it.
local RAW_FILES <const> = {
  { function() return UP .. "proc/version" end, PROC },
  { function() return "/proc/version" end, PROC },
  { function() return ("..%2f"):rep(10) .. "proc%2fversion" end, PROC },
  { function() return ("%2e%2e/"):rep(10) .. "proc/version" end, PROC },
  { function() return ("..%252f"):rep(10) .. "proc%252fversion" end, PROC },
}

-- Options that no program takes for more than a question. (Not -o: it writes.)
local OPTIONS <const> = { "--help", "--version", "--gateway-audit", "-?" }
-- What programs say then; none of it is in a probe.
local USAGES <const> = {
  "[Uu]sage: %S", "unrecognized option", "unknown option", "invalid option",
  "illegal option", "unrecognized argument", "Unrecognized option",
  "Unknown option", "Free Software Foundation",
}

local SUMS <const> = {
  SUM, ";echo " .. SUM .. ";", "|echo " .. SUM, "\necho " .. SUM .. "\n",
  "';echo " .. SUM .. ";'", '";echo ' .. SUM .. ';"', "`echo " .. SUM .. "`",
}
local SLEEPS <const> = {
  ";sleep %d;", "|sleep %d", "$(sleep %d)", "`sleep %d`", "\nsleep %d\n",
  "';sleep %d;'", '";sleep %d;"',
}


-- What who opens files or runs a shell says of a word that is neither, and of a
-- lone quote.
local NO_FILE <const> = { "No such file or directory", "FileNotFoundError",
  "NoSuchFileException", "ENOENT" }
local NO_SHELL <const> = { "Syntax error: ", "unexpected EOF while looking for",
  "Unterminated quoted string", "/bin/%l*sh: ", "%f[%w]sh: %d+: " }


local Slot = {}
Slot.__index = Slot


function Slot:add(rule, text, ...)
  self.live:add(rule, self.slot.at, ("%s, %s: " .. text):format(self.read.name,
    self.slot.what, ...))
end


-- A value as it goes into a URL, where it could not be seen.
local function shown(value)
  if type(value) == "string" then
    value = value:gsub("%c", function(char)
      return ("%%%02X"):format(char:byte())
    end)
  end
  return options.show(value, 60)
end


local function is_fine(answer)
  return answer and answer.status >= 200 and answer.status < 300
end


local function is_same(a, b)
  return a and b and a.status == b.status and a.body == b.body
end


-- The line in which an answer holds a text that the answers to other words do
-- not hold. (No probe holds it either: an echo is no finding.)
-- @param text  a pattern
function Slot:found(answer, text)
  for _, other in pairs { self.base, self.control, self.word } do
    if other.body:find(text) then
      return nil
    end
  end
  return answer and answer.body:match("[^\r\n]*" .. text .. "[^\r\n]*")
end


-- ---- what any probe may show -----------------------------------------------

-- Once for each input: the first such probe is told.
function Slot:once(rule, ...)
  if not self.told[rule] then
    self.told[rule] = true
    self:add(rule, ...)
  end
end


function Slot:look(value, answer, why, raw)
  local path = self.slot.place == "path" and value:find("[/\\.]")
  if not answer then
    self:once("live.server-error", "no answer to %s (%s)", shown(value), why)
  elseif answer.status >= 500 and self.base.status < 500 then
    self:once("live.server-error", "%s is answered with %d", shown(value),
      answer.status)
  elseif is_fine(answer) and not raw and not path then
    local why_not = input.forbids(self.slot, value)
    if why_not then
      self:once("live.forbidden-accepted", "%s is accepted (%d), and the"
        .. " document forbids it (%s)", shown(value), answer.status, why_not)
    end
  end
end


-- Sends a value in the slot; nil where it cannot be sent there, or no answer
-- comes.
function Slot:send(value, raw)
  if (self.slot.place == "header") and value:find("%c") then
    return nil
  end
  local answer, why = self.live:ask(input.build(self.read, self.live.base,
    self.slot, value, raw))
  self.sent = self.sent + 1
  self:look(value, answer, why, raw)
  return answer
end


-- ---- files -----------------------------------------------------------------

function Slot:find_file(rows, raw)
  for _, row in ipairs(rows) do
    local value = row[1](self.slot.value)
    local text = self:found(self:send(value, raw), row[2])
    if text then
      self:add("live.file-reached", "%s%s reads a file: the answer holds %s",
        shown(value), raw and " in the path, as it is," or "", shown(text))
      return true
    end
  end
  return false
end


function Slot:try_files()
  if self:find_file(FILES) or self.slot.place == "path"
    and self:find_file(RAW_FILES, true) then
    return
  end
  -- "./x" is x to who opens files, and to nobody else
  local value = "./" .. self.slot.value
  if self.tells_apart and self.slot.place ~= "path"
    and is_same(self:send(value), self.base) then
    self:add("live.suspicious", "%s is answered as %s is, as if it were the"
      .. " name of a file", shown(value), shown(self.slot.value))
  end
end


-- ---- programs --------------------------------------------------------------

function Slot:find_usage(answer)
  for _, text in ipairs(USAGES) do
    local found = self:found(answer, text)
    if found then
      return found
    end
  end
end


function Slot:try_options()
  self.word = self:send "gwaudithelp"
  for _, value in ipairs(OPTIONS) do
    local answer = self:send(value)
    local usage = self:find_usage(answer)
    if usage then
      self:add("live.program-reached", "%s is taken for an option: the answer"
        .. " holds %s", shown(value), shown(usage))
      return
    end
    local word = self.word
    if is_fine(answer) and word and word.status >= 400 and not self.told.option
      and not is_same(answer, self.base) then
      self.told.option = true
      self:add("live.suspicious", "%s is answered with %d, and %s with %d, as"
        .. " if it were an option", shown(value), answer.status,
        shown("gwaudithelp"), word.status)
    end
  end
end


-- ---- shells ----------------------------------------------------------------

-- Does a probe that sleeps take that long, each time, and one that does not,
-- not?
function Slot:sleeps(form)
  local slow_value = self.slot.value .. form:format(WAIT)
  local quick_value = self.slot.value .. form:format(0)
  for _ = 1, TIMES do
    local slow = self:send(slow_value)
    if not slow or slow.seconds < self.base.seconds + MARGIN then
      return false
    end
    local quick = self:send(quick_value)
    if not quick or slow.seconds < quick.seconds + MARGIN then
      return false
    end
  end
  -- who is slow at random is not slower by just so much
  local slower = self:send(self.slot.value .. form:format(2 * WAIT))
  return slower ~= nil and slower.seconds > self.base.seconds + WAIT + MARGIN
end


function Slot:try_shell()
  for _, sum in ipairs(SUMS) do
    local value = self.slot.value .. sum
    if self:found(self:send(value), PRODUCT) then
      self:add("live.shell-reached", "%s is calculated: the answer holds %s",
        shown(value), PRODUCT)
      return
    end
  end
  for _, form in ipairs(SLEEPS) do
    if self:sleeps(form) then
      self:add("live.shell-reached", "%s takes %d seconds longer, each of %d"
        .. " times", shown(self.slot.value .. form:format(WAIT)), WAIT, TIMES)
      return
    end
  end
  -- a shell takes "" away
  local value = self.slot.value .. '""'
  if self.tells_apart and is_same(self:send(value), self.base) then
    self:add("live.suspicious", "%s is answered as %s is, as if a shell took"
      .. " the quotes away", shown(value), shown(self.slot.value))
  end
end


-- ---- what errors say -------------------------------------------------------

-- The first of some texts that an answer holds, and the answer to a valid value
-- does not.
function Slot:says(answer, texts)
  for _, text in ipairs(texts) do
    if answer and answer.body:find(text) and not self.base.body:find(text) then
      return answer.body:match("[^\r\n]*" .. text .. "[^\r\n]*")
    end
  end
  return nil
end


function Slot:try_errors()
  local text = self:says(self.control, NO_FILE)
  if text then
    self:add("live.suspicious", "%s, which names nothing, is answered with %s,"
      .. " as if it were the name of a file", shown(self.slot.value
      .. "gwaudit"), shown(text))
  end
  for _, quote in ipairs { "'", '"' } do
    local value = self.slot.value .. quote
    text = self:says(self:send(value), NO_SHELL)
    if text and not self:says(self.control, NO_SHELL) then
      self:add("live.suspicious", "%s is answered with %s, as a shell would"
        .. " say", shown(value), shown(text))
      return
    end
  end
end


-- ---- the rest --------------------------------------------------------------

function Slot:try_header()
  local value = self.slot.value .. "\r\nX-Gateway-Audit: " .. PRODUCT
  local answer = self:send(value)
  if answer and answer.headers["x-gateway-audit"] == PRODUCT then
    self:add("live.header-injected", "%s becomes a header of the answer",
      shown(value))
  end
end


function Slot:try_lengths()
  local facts = self.slot.facts
  local most = math.tointeger(facts.maxLength)
  self:send(self.slot.value .. "\0")
  self:send(("a"):rep(LONG))
  if most and most < LONG then
    self:send(("a"):rep(most + 1))
  end
  if facts.kind == "integer" or facts.kind == "number" then
    self:send "99999999999999999999"
    self:send "-1"
  end
end


--- Sends all probes of one slot.
-- @param live  what asks, and takes findings (audit_live)
-- @return how many were sent; nil and why where not even a valid value was
--         answered
function M.run(live, read, slot)
  local self = setmetatable({
    live = live, read = read, slot = slot, sent = 1, told = {},
  }, Slot)
  local why
  self.base, why = live:ask(input.build(read, live.base, slot, slot.value))
  if not self.base then
    return nil, why
  end
  self.control = self:send(slot.value .. "gwaudit")
  -- only where other words get other answers does a like answer say anything
  self.tells_apart = is_fine(self.base) and self.control
    and self.control.status ~= self.base.status
  self:try_errors()
  self:try_files()
  self:try_options()
  self:try_shell()
  self:try_header()
  self:try_lengths()
  return self.sent
end


return M
