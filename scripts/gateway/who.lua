--- Whom a tool asks about: a certificate on disk, or one told in words.
--
--     local who = require "gateway.who"
--     who.of("certs/alice.crt", listener)   -- judged as that listener would
--     who.of("cn=alice,ou=ops", listener)   -- made in memory
--     who.logged { identity =, serial = }   -- as much of one as a log says
--
-- A policy must be loaded (core.test_policy).

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local M = {}

-- What k=v may say; several values of one name are several entries.
local FIELDS <const> = {
  cn = true, o = true, ou = true, c = true, l = true, st = true, dc = true,
  uid = true, uri = true, dns = true, email = true, ip = true, eku = true,
  spiffe = true, serial = true, issuer = true, fingerprint = true, spki = true,
  ca = true,
}
-- Attributes of a subject, in the order in which certificates have them.
local SUBJECT <const> = { "c", "st", "l", "dc", "o", "ou", "uid", "cn" }
local TEXTS <const> = { "serial", "issuer", "fingerprint", "spki" }
local IN_SAN <const> = { uri = true, dns = true, email = true, ip = true }
local IN_SUBJECT <const> = {}
local EXAMPLE <const> = "cn=alice,ou=ops"

-- Fields of an identity that are lists.
local LISTS <const> = {
  cn = true, o = true, ou = true, uri = true, dns = true, ip = true,
  email = true, eku = true, ca = true, chain = true,
}

for _, name in ipairs(SUBJECT) do
  IN_SUBJECT[name] = true
end


-- The listeners that speak HTTP, by number.
local function listeners()
  local numbers = {}
  for i, listener in ipairs(policy.all("listeners")) do
    if not listener.tcp then
      numbers[#numbers + 1] = i
    end
  end
  return numbers
end


--- The number of a listener by its name; without one, of the first that speaks
-- HTTP, or else of the first. Nil and why.
function M.listener(name)
  if not name then
    return listeners()[1] or 1
  end
  local known = policy.names("listeners")
  for i, listener in ipairs(policy.all("listeners")) do
    if listener.name == name then
      return i
    end
  end
  return nil, ("no listener is named %s%s"):format(options.show(name),
    options.suggest(name, known))
end


-- A list, from its end.
local function reversed(list)
  local turned = {}
  for i, item in ipairs(list) do
    turned[#list + 1 - i] = item
  end
  return turned
end


-- Attributes as RFC 4514 writes them: the last one first, names in capitals.
local function write_dn(subject)
  local parts = {}
  for i, attribute in ipairs(reversed(subject)) do
    parts[i] = attribute[1]:upper() .. "=" .. attribute[2]
      :gsub('[,+"\\<>;]', "\\%0"):gsub("^[ #]", "\\%0"):gsub(" $", "\\ ")
  end
  return table.concat(parts, ",")
end


-- One value, up to the "," or "+" that ends it; and where that is.
local function read_value(text, at)
  local out = {}
  while at <= #text do
    local char = text:sub(at, at)
    if char == "," or char == "+" then
      break
    end
    local byte = text:match("^\\(%x%x)", at)
    if char == "\\" then
      char = byte and string.char(tonumber(byte, 16))
        or text:sub(at + 1, at + 1)
      at = at + (byte and 2 or 1)
    end
    out[#out + 1] = char
    at = at + 1
  end
  return table.concat(out), at
end


--- Reads a name as RFC 4514 and our logs write it, which is from the end: a
-- list of { type, value } in the order of the text; nil where it is none.
function M.read_dn(text)
  local list, at = {}, 1
  while at <= #text do
    local type, value = text:match("^([%w.]+)=()", at)
    if not type then
      return nil
    end
    local out
    out, at = read_value(text, value)
    list[#list + 1] = { type:lower(), out }
    if at == #text then
      return nil  -- a separator with nothing after it
    end
    at = at + 1
  end
  return list[1] and list
end


-- "cn=alice,ou=ops" as a table of lists; "\," is a comma within a value.
local function read_words(text)
  local fields = {}
  local parts = text:gsub("\\,", "\0")
  for part in parts:gmatch("[^,]+") do
    local name, value = part:gsub("%z", ","):match("^%s*([%w_]+)=(.*)$")
    if not name then
      return nil, ("%s is no name=value: write %s"):format(options.show(part),
        EXAMPLE)
    end
    if not FIELDS[name] then
      return nil, ("identity: unknown field '%s'%s"):format(name,
        options.suggest(name, FIELDS))
    end
    fields[name] = fields[name] or {}
    table.insert(fields[name], value)
  end
  return fields
end


-- One string or a list of them, as a list.
local function list_of(name, value)
  local list = type(value) == "table" and value or { value }
  for _, one in ipairs(list) do
    if type(one) ~= "string" then
      error(("%s must be a string, or a list of strings, not %s"):format(name,
        options.show(one)), 0)
    end
  end
  return list
end


-- Can a certificate of core.test_identity hold the subject? Those have one cn
-- and one o at most, any ou, and nothing else.
local function is_plain(fields)
  for _, name in ipairs { "c", "st", "l", "dc", "uid" } do
    if fields[name] then
      return false
    end
  end
  return #(fields.cn or {}) < 2 and #(fields.o or {}) < 2
end


--- An identity out of fields: strings, or lists of strings. Its eku is
-- clientAuth unless given. Raises where no certificate can be so.
function M.make(fields)
  local full, subject = { eku = { "clientAuth" } }, {}
  for name, value in pairs(fields) do
    full[name] = list_of(name, value)
  end
  for _, name in ipairs(TEXTS) do
    full[name] = full[name] and full[name][1]
  end
  if is_plain(full) then
    return core.test_identity(full)
  end
  for _, name in ipairs(SUBJECT) do
    for _, value in ipairs(full[name] or {}) do
      subject[#subject + 1] = { name, value }
    end
    full[name] = nil
  end
  full.cn = { "tool" }  -- what is made has a name, which `subject` replaces
  full.subject, full.dn = subject, write_dn(subject)
  return core.test_identity(full)
end


-- What a certificate in a file is to a listener.
local function from_file(file, number)
  local identity, why, refused = core.test_certificate(file, number)
  if identity then
    return { identity = identity, name = file, judged = true }
  end
  local read, unread = core.test_certificate(file)
  if not read then
    return nil, unread
  end
  return {
    identity = read, name = file, judged = refused, refused = refused and why,
    note = not refused and ("%s was not judged: %s"):format(file, why) or nil,
  }
end


--- Whom `word` names: a file of a certificate, or k=v,….
-- @param number  the listener that judges a certificate
-- @return { identity =, name =, refused = why the listener refuses it,
--         note = what could not be looked at }; or nil and why
function M.of(word, number)
  if word:find("^%a+=") then
    local fields, message = read_words(word)
    if not fields then
      return nil, message
    end
    local ok, identity = pcall(M.make, fields)
    if not ok then
      return nil, identity
    end
    return { identity = identity, name = word }
  end
  return from_file(word, number)
end


--- The files of certificates in a folder.
function M.files_in(folder)
  local files = {}
  for _, pattern in ipairs { "/*.crt", "/*.pem" } do
    local found = core.glob(folder .. pattern)
    table.move(found, 1, #found, #files + 1, files)
  end
  return files
end


--- A few words for an identity: its SPIFFE ID, or its subject.
function M.title(identity)
  local dn = identity.subject.dn
  if identity.spiffe and dn and dn ~= "" then
    return ("%s (%s)"):format(identity.spiffe, dn)
  end
  return identity.spiffe or dn and dn ~= "" and dn
    or "serial " .. tostring(identity.serial)
end


-- ---- out of a log ----------------------------------------------------------

-- The fields of `known`. Of others, those in `absent` are not in the
-- certificate; any more is noted in `asked`, and reads as if it were not there.
local function partial(known, asked, prefix, absent)
  return setmetatable({}, {
    __index = function(_, name)
      local value = known[name]
      if value ~= nil or absent[name] then
        return value
      end
      asked[#asked + 1] = prefix .. tostring(name)
      return LISTS[name] and {} or nil
    end,
    __newindex = function()
      error("identity is read-only", 2)
    end,
    __metatable = false,
  })
end


-- identity:has(field, value), of what is known.
local function has(self, field, value)
  local found = IN_SAN[field] and self.san[field]
    or (field == "dn" or IN_SUBJECT[field]) and self.subject[field]
    or not IN_SAN[field] and not IN_SUBJECT[field] and self[field]
  for _, one in ipairs(type(found) == "table" and found or { found }) do
    if one == value then
      return true
    end
  end
  return false
end


-- The subject as hooks read it.
local function subject_of(list, dn)
  local subject = { dn = dn, cn = {}, o = {}, ou = {} }
  for _, attribute in ipairs(list) do
    subject[attribute[1]] = subject[attribute[1]] or {}
    table.insert(subject[attribute[1]], attribute[2])
  end
  return subject
end


--- The client of a line of event identity, which has all of a certificate.
function M.whole(line)
  local made = { cn = { "tool" }, dn = line.dn,
    subject = reversed(M.read_dn(line.dn) or {}) }
  for _, name in ipairs { "serial", "issuer", "fingerprint", "spki", "uri",
    "dns", "email", "ip", "eku", "ca" } do
    made[name] = line[name]
  end
  return core.test_identity(made)
end


--- The client of a line of a log, with what such a line says: the SPIFFE ID or
-- else the subject or, where that is empty, some other name; the serial number.
-- @param line  { identity =, serial = }
-- @return identity, asked: a list that grows by each field that a hook has
--         asked for and the log does not have; and what the caller must hold
--         as long as the identity is used
function M.logged(line)
  local name, asked, absent = line.identity, {}, {}
  local known = { serial = line.serial, resumed = false, has = has }
  local made = { cn = { "tool" }, serial = line.serial, subject = {} }
  if name:find("^spiffe://") then
    made.uri = { name }
    known.spiffe = name
    known.subject = partial({}, asked, "subject.", {})
    known.san = partial({ uri = { name } }, asked, "san.", {})
  else
    made.subject = reversed(M.read_dn(name) or {})
    made.dn = made.subject[1] and name or ""
    known.subject = subject_of(made.subject, made.dn)
    known.san = partial({}, asked, "san.", {})
    absent.spiffe = true
  end
  local stand_in = partial(known, asked, "", absent)
  local identity = core.test_identity(made)
  core.test_stand_in(identity, stand_in)
  return identity, asked, stand_in
end


return M
