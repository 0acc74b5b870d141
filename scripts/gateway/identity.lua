--- Conditions on a client's identity: who may call a route.
--
--     local id = require "gateway.identity"
--     authorize = id.any(id.spiffe "spiffe://example.org/ns/*/sa/camera",
--                        id.ou "ops")
--
-- A condition is made once, at load, and is pure: it depends on the verified
-- certificate alone, so its verdict is kept with the connection. It can also be
-- called, in a hook: `ops(identity)` returns true, or false and a reason.
--
-- A reason says the nearest failure: "spiffe id differs in segment 4: \"bob\"
-- instead of \"alice\"". It goes to the log, not to the client.

local options <const> = require "gateway.options"
local policy <const> = require "gateway.policy"
local M = {}

local Condition = {}
Condition.__index = Condition


--- condition(identity) -> true, or false and a reason.
function Condition:__call(identity)
  local ok, reason = self.test(identity)
  return ok, reason
end


function Condition:__tostring()
  return self.text
end


-- Conditions by their `test`, for the tools that tell what one is made of.
local by_test <const> = setmetatable({}, { __mode = "k" })


-- A condition's `test(identity)` returns true; or false, a reason, and how near
-- it came (0 to 1), by which id.any picks the reason worth reading.
local function condition(text, test, pure)
  local new = setmetatable({ text = text, test = test, pure = pure ~= false },
    Condition)
  by_test[test] = new
  return new
end


--- True where a field that is taken away from a certificate can only make the
-- condition refuse it.
function M.monotone(condition_)
  if not condition_.parts then
    return condition_.pure
  end
  for _, part in ipairs(condition_.parts) do
    if not M.monotone(part) then
      return false
    end
  end
  return condition_.kind ~= "none"
end


-- A combination of conditions: `kind` is any, all or none.
local function combination(kind, parts, text, test, pure)
  local new = condition(text, test, pure)
  new.kind, new.parts = kind, parts
  return new
end


--- The condition that a hook of the policy is the test of; nil: it is a
-- function(identity). Fields: text, test, pure; of a combination kind ("any",
-- "all", "none") and parts; of others name ("ou"), wanted, and `values`,
-- function(identity) -> list.
function M.condition_of(test)
  return by_test[test]
end


--- True where `value` is a condition.
function M.is_condition(value)
  return getmetatable(value) == Condition
end


local function fail(name, message)
  options.fail(nil, "id." .. name, message)
end


-- The one string a condition is about.
local function one_text(name, example, value, ...)
  if select("#", ...) > 0 then
    fail(name, ("takes one value; for several write id.any(id.%s %q, …)")
      :format(name, tostring(value)))
  end
  if not options.text(value) then
    fail(name, ("takes a string: id.%s %q"):format(name, example))
  end
  return value
end


-- A certificate's value beside the wanted one: how many leading characters
-- they share, as a share of the wanted one.
local function likeness(value, wanted)
  local same = 0
  while same < #wanted and value:byte(same + 1) == wanted:byte(same + 1) do
    same = same + 1
  end
  return same / (#wanted + 1)
end


-- Why none of the identity's `values` is the wanted one.
local function why_not(label, values, wanted)
  if not values or #values == 0 then
    return ("the certificate has no %s"):format(label), 0
  end
  local near = 0
  for _, value in ipairs(values) do
    near = math.max(near, likeness(value, wanted))
  end
  return ("%s is %s, not %s"):format(label, options.show_list(values),
    options.show(wanted)), 0.1 + near * 0.8
end


-- ---- one field -------------------------------------------------------------

-- A condition on one field of the identity, for the value that is wanted.
local function on_field(name, wanted, values_of, test)
  local new = condition(("%s %s"):format(name, options.show(wanted)), test)
  new.values, new.name, new.wanted = values_of, name, wanted
  return new
end


-- A condition on one list of the identity: some entry is exactly `value`.
local function entry(name, label, value, values_of)
  return on_field(name, value, values_of, function(identity)
    local values = values_of(identity)
    for _, found in ipairs(values or {}) do
      if found == value then
        return true
      end
    end
    return false, why_not(label, values, value)
  end)
end


-- A constructor for one attribute of the subject.
local function subject(name, example)
  return function(...)
    return entry(name, name, one_text(name, example, ...), function(identity)
      return identity.subject[name]
    end)
  end
end

--- cn "alice": a common name of the subject.
M.cn = subject("cn", "alice")

--- ou "ops": an organizational unit of the subject, any of them.
M.ou = subject("ou", "ops")

--- o "Example Ltd": an organization of the subject.
M.o = subject("o", "Example Ltd")


--- dn "CN=alice,OU=ops": the whole subject, as RFC 4514 writes it.
function M.dn(...)
  local wanted = one_text("dn", "CN=alice,OU=ops", ...)
  return entry("dn", "the subject", wanted, function(identity)
    return { identity.subject.dn }
  end)
end


--- issuer "CN=Example CA": the issuer's whole name.
function M.issuer(...)
  local wanted = one_text("issuer", "CN=Example CA", ...)
  return entry("issuer", "the issuer", wanted, function(identity)
    return { identity.issuer }
  end)
end


--- email "alice@example.org": an e-mail address among the SANs.
function M.email(...)
  local wanted = one_text("email", "alice@example.org", ...)
  if not wanted:find("^[^@%s]+@[^@%s]+$") then
    fail("email", "takes an address such as alice@example.org")
  end
  return entry("email", "san.email", wanted, function(identity)
    return identity.san.email
  end)
end


--- ip "192.0.2.7": an address among the SANs.
function M.ip(...)
  local wanted = one_text("ip", "192.0.2.7", ...):lower()
  if not wanted:find("^%d+%.%d+%.%d+%.%d+$")
    and not wanted:find("^[%x:.]*:[%x:.]*$") then
    fail("ip", ("no address: %s; a range is not supported"):format(
      options.show(wanted)))
  end
  return entry("ip", "san.ip", wanted, function(identity)
    return identity.san.ip
  end)
end


--- eku "clientAuth": an extended key usage, by name or dotted number.
function M.eku(...)
  local wanted = one_text("eku", "clientAuth", ...)
  return entry("eku", "eku", wanted, function(identity)
    return identity.eku
  end)
end


-- Hex digits as the identity writes them: lower case, no colons.
local function hex(name, example, ...)
  local digits = one_text(name, example, ...):gsub(":", ""):lower()
  if not digits:find("^%x+$") then
    fail(name, "takes hexadecimal digits")
  end
  return digits
end


--- fingerprint "ab:cd:…": the SHA-256 of the certificate, colons or not.
function M.fingerprint(...)
  local wanted = hex("fingerprint", "e3b0c442…", ...)
  if #wanted ~= 64 then
    fail("fingerprint", ("takes the SHA-256 of the certificate, 64 hexadecimal"
      .. " digits, not %d"):format(#wanted))
  end
  return entry("fingerprint", "fingerprint", wanted, function(identity)
    return { identity.fingerprint }
  end)
end


--- serial "0a12": the serial number in hexadecimal, colons or not.
function M.serial(...)
  local wanted = hex("serial", "0a12", ...):gsub("^0+(%x)", "%1")
  if #wanted % 2 == 1 then
    wanted = "0" .. wanted
  end
  return entry("serial", "serial", wanted, function(identity)
    return { identity.serial }
  end)
end


--- spki "sha256:BASE64": the hash of the public key (RFC 7469).
function M.spki(...)
  local wanted = one_text("spki", "sha256:…", ...)
  if not wanted:find("^sha256:[%w+/]+=$") or #wanted ~= 51 then
    fail("spki", 'takes "sha256:" and 44 characters of base64')
  end
  return entry("spki", "spki", wanted, function(identity)
    return { identity.spki }
  end)
end


--- dns "db.example.org" or "*.example.org": a DNS name among the SANs; the
-- star stands for one label, on the left.
function M.dns(...)
  local wanted = one_text("dns", "db.example.org", ...):lower()
  local rest = wanted:match("^%*(%..+)$")
  if (rest or wanted):find("[^%w._-]") or (rest or wanted):find("..", 1, true)
    or rest and not rest:find("%..+%.") then
    fail("dns", ("no name %s: write a name, or *. and a name of two labels"
      .. " or more"):format(options.show(wanted)))
  end
  local function names(identity)
    return identity.san.dns
  end
  return on_field("dns", wanted, names, function(identity)
    for _, found in ipairs(names(identity) or {}) do
      local name = found:lower()
      if name == wanted or rest and name:match("^[^.*]+(%..+)$") == rest then
        return true
      end
    end
    return false, why_not("san.dns", names(identity), wanted)
  end)
end


--- ca "certs/tenant-a.crt": the chain goes through one of the CAs in that PEM
-- file. The listener's client_ca must lead to it.
function M.ca(...)
  local wanted = one_text("ca", "certs/tenant-a.crt", ...)
  policy.ask_ca(wanted)
  local function files(identity)
    return identity.ca
  end
  return on_field("ca", wanted, files, function(identity)
    for _, found in ipairs(files(identity)) do
      if found == wanted then
        return true
      end
    end
    return false, "the chain goes through no CA of " .. options.show(wanted), 0
  end)
end


-- ---- URIs with stars -------------------------------------------------------

-- Cuts "scheme://authority/a/b" into "scheme://authority" and { "a", "b" }.
local function cut(uri)
  local root, path = uri:match("^(%a[%w+.-]*://[^/?#]+)(.*)$")
  if not root or path:find("[?#]") then
    return nil
  end
  return root, options.segments(path)
end


-- Compiles a pattern: a segment "*" stands for one segment, a last "**" for
-- one or more.
local function compile(name, pattern)
  local root, segments = cut(pattern)
  if not root then
    fail(name, ("no such URI: %s; write scheme://authority/path, without ? and"
      .. " #"):format(options.show(pattern)))
  end
  if root:find("*", 1, true) then
    fail(name, "the trust domain is never a wildcard: write it out")
  end
  for i, segment in ipairs(segments) do
    if segment == "" or segment == "." or segment == ".." then
      fail(name, ("segment %d is %s: no identity has one"):format(i,
        options.show(segment)))
    end
    if segment == "**" and i < #segments then
      fail(name, "** stands for the rest, so only at the end")
    end
    if segment:find("*", 1, true) and segment ~= "*" and segment ~= "**" then
      fail(name, ("segment %d: a star stands for a whole segment"):format(i))
    end
  end
  return { root = root, segments = segments,
    open = segments[#segments] == "**" }
end


-- Why `uri` is not what the pattern says, and how near it came; nil where it
-- is.
local function mismatch(label, pattern, uri)
  local root, segments = cut(uri)
  if root ~= pattern.root then
    return ("%s is of %s, not of %s"):format(label,
      options.show(root or uri), options.show(pattern.root)), 0.1
  end
  local wanted = pattern.segments
  local count = pattern.open and #wanted - 1 or #wanted
  for i = 1, count do
    local segment = segments[i]
    if not segment then
      break
    end
    if segment ~= wanted[i] and (wanted[i] ~= "*" or segment == "") then
      return ("%s differs in segment %d: %s instead of %s"):format(label, i,
        options.show(segment), options.show(wanted[i])),
        0.2 + 0.7 * i / (#wanted + 1)
    end
  end
  local missing = pattern.open and #segments <= count
  local surplus = not pattern.open and #segments ~= count
  if missing or surplus then
    return ("%s has %s instead of %s%d"):format(label,
      options.count(#segments, "segment"), pattern.open and "at least " or "",
      #wanted), 0.9
  end
  for i = count + 1, #segments do
    if segments[i] == "" then
      return ("%s has an empty segment %d"):format(label, i), 0.9
    end
  end
  return nil
end


--- spiffe "spiffe://example.org/ns/*/sa/camera": the SPIFFE ID. `*` stands for
-- one segment, `**` at the end for the rest; never for the trust domain.
function M.spiffe(...)
  local text = one_text("spiffe", "spiffe://example.org/ns/*/sa/camera", ...)
  if not text:find("^spiffe://") then
    fail("spiffe", ("takes a SPIFFE ID, not %s: it begins with spiffe://")
      :format(options.show(text)))
  end
  local pattern = compile("spiffe", text)
  if pattern.root:find("[^a-z0-9._/:-]") then
    fail("spiffe", "the trust domain is written in lower-case letters, digits,"
      .. " '.', '-' and '_'")
  end
  local function id_of(identity)
    return { identity.spiffe }
  end
  return on_field("spiffe", text, id_of, function(identity)
    local uri = identity.spiffe
    if not uri or uri == "" then
      return false, "the certificate has no spiffe id", 0
    end
    local reason, near = mismatch("spiffe id", pattern, uri)
    if reason then
      return false, reason, near
    end
    return true
  end)
end


--- uri "https://example.org/devices/*": a URI among the SANs, with stars as in
-- spiffe; a URI without "//" is compared as it is.
function M.uri(...)
  local text = one_text("uri", "urn:example:camera-7", ...)
  local function uris(identity)
    return identity.san.uri
  end
  if not text:find("://", 1, true) then
    if text:find("*", 1, true) then
      fail("uri", "a star needs a URI with an authority: scheme://host/*")
    end
    return entry("uri", "san.uri", text, uris)
  end
  local pattern = compile("uri", text)
  return on_field("uri", text, uris, function(identity)
    local best, best_near = "the certificate has no san.uri", 0
    for _, uri in ipairs(uris(identity) or {}) do
      local reason, near = mismatch("uri", pattern, uri)
      if not reason then
        return true
      end
      if near > best_near then
        best, best_near = reason, near
      end
    end
    return false, best, best_near
  end)
end


-- ---- combinations ----------------------------------------------------------

--- anyone: every client with a certificate of the listener's CA.
M.anyone = condition("anyone", function()
  return true
end)


-- What an authorize function said, held to the rule that only `true` allows
-- and only `false` refuses: anything else is a bug in the policy.
local function verdict_of(func, text)
  return function(identity)
    local ok, reason = func(identity)
    if type(ok) ~= "boolean" then
      error(("%s returned %s: it must return true, or false and a reason")
        :format(text, options.show(ok)), 0)
    end
    if ok then
      return true
    end
    return false, reason or text .. " returned false without a reason", 0.5
  end
end


--- Makes a condition of what a policy may write as one: a condition, or a
-- function(identity). Nil and a message for anything else.
function M.to_condition(value)
  if M.is_condition(value) then
    return value
  end
  if M.constructors[value] then
    return nil, ("id.%s needs a value: id.%s %s"):format(
      M.constructors[value], M.constructors[value], '"…"')
  end
  if type(value) == "function" then
    local text = "a function"
    return condition(text, verdict_of(value, text), false)
  end
  return nil, "takes conditions (id.ou \"ops\") or a function(identity), not "
    .. options.show(value)
end


-- The parts of id.any, id.all, id.none, as conditions.
local function parts_of(name, ...)
  local parts, texts, pure = {}, {}, true
  for i = 1, select("#", ...) do
    local part, message = M.to_condition((select(i, ...)))
    if not part then
      fail(name, message)
    end
    parts[i], texts[i], pure = part, part.text, pure and part.pure
  end
  if #parts == 0 then
    fail(name, "needs at least one condition")
  end
  return parts, ("%s(%s)"):format(name, table.concat(texts, ", ")), pure
end


--- any(a, b, …): at least one of the conditions holds.
function M.any(...)
  local parts, text, pure = parts_of("any", ...)
  return combination("any", parts, text, function(identity)
    local best, best_near = nil, -1
    for _, part in ipairs(parts) do
      local ok, reason, near = part.test(identity)
      if ok then
        return true
      end
      if near > best_near then
        best, best_near = reason, near
      end
    end
    return false, best, best_near
  end, pure)
end


--- all(a, b, …): every one of the conditions holds.
function M.all(...)
  local parts, text, pure = parts_of("all", ...)
  return combination("all", parts, text, function(identity)
    for i, part in ipairs(parts) do
      local ok, reason, near = part.test(identity)
      if not ok then
        return false, reason, (i - 1 + near) / #parts
      end
    end
    return true
  end, pure)
end


--- none(a, b, …): not one of the conditions holds.
function M.none(...)
  local parts, text, pure = parts_of("none", ...)
  return combination("none", parts, text, function(identity)
    for _, part in ipairs(parts) do
      if part.test(identity) then
        return false, ("%s holds, which none(…) forbids"):format(part.text), 0.5
      end
    end
    return true
  end, pure)
end


-- Functions of this module that make no condition.
local OTHERS <const> = { is_condition = true, to_condition = true,
  condition_of = true, monotone = true }

-- The constructors by value, to catch `authorize = id.ou`.
M.constructors = {}
for name, value in pairs(M) do
  if type(value) == "function" and not OTHERS[name] then
    M.constructors[value] = name
  end
end


return setmetatable(M, {
  __index = function(_, name)
    local known = { anyone = true }
    for _, constructor in pairs(M.constructors) do
      known[constructor] = true
    end
    fail(tostring(name), "there is no such condition"
      .. options.suggest(tostring(name), known))
  end,
})
