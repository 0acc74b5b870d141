--- A document of YAML or JSON that knows the line of everything in it.
--
-- What it holds are plain tables; `lines` is kept beside them. A complaint is
-- raised as "file:line: message", so it reads like one of the policy.

local core <const> = require "gateway.core"
local options <const> = require "gateway.options"
local pointer <const> = require "gateway.pointer"
local M = {}

local MAX_REFS <const> = 32  -- of references to references

local Document = {}
Document.__index = Document


--- Reads a document.
-- @param name  the file's, for complaints; JSON where it ends in ".json"
-- @return the document: name, value, lines; or nil and "file:line: why"
function M.read(name, text)
  local value, lines = core.yaml(text, name)
  if value == nil then
    return nil, lines
  end
  return setmetatable({ name = name, value = value, lines = lines }, Document)
end


--- "file:line" of a table of the document, or of the key of one.
function Document:at(table_, key)
  local lines = self.lines[table_] or {}
  return ("%s:%d"):format(self.name, key ~= nil and lines[key] or lines[0] or 1)
end


--- Raises a complaint about a table, or about one of its keys.
function Document:fail(table_, key, message)
  if key ~= nil then
    message = ("%s: %s"):format(tostring(key), message)
  end
  error(("%s: %s"):format(self:at(table_, key), message), 0)
end


--- Lets `copy` stand where `table_` stands.
function Document:alias(copy, table_)
  self.lines[copy] = self.lines[table_]
  return copy
end


local function show(value)
  if value == core.null then
    return "null"
  end
  return options.show(value)
end


--- True where `value` is a table that was written as a list.
function M.is_list(value)
  return type(value) == "table" and getmetatable(value) ~= nil
end


--- True where `value` is a table that was written as a map.
function M.is_map(value)
  return type(value) == "table" and getmetatable(value) == nil
end


--- The items of a list; none where it is no list.
function M.items(value)
  return M.is_list(value) and value or {}
end


-- The readers below return nil where the key is not there.

local function reader(test, wanted)
  return function(self, table_, key)
    local value = table_[key]
    if value ~= nil and not test(value) then
      self:fail(table_, key, ("must be %s, not %s"):format(wanted,
        M.is_list(value) and "a list" or show(value)))
    end
    return value
  end
end

local function is(kind)
  return function(value)
    return type(value) == kind
  end
end

Document.map = reader(M.is_map, "a map")
Document.list = reader(M.is_list, "a list")
Document.text = reader(is "string", "a text")
Document.boolean = reader(is "boolean", "true or false")


--- Raises a complaint where something that must be a map is none.
function Document:check_map(owner, key)
  if not self:map(owner, key) then
    self:fail(owner, nil, ("%s is missing"):format(key))
  end
  return owner[key]
end


--- Refuses keys that `known` does not have, but for extensions (x-…).
function Document:check_keys(table_, known)
  for _, key in ipairs(options.sorted_keys(table_)) do
    if not known[key] and not key:find("^x%-") then
      self:fail(table_, key, "there is no such field"
        .. options.suggest(key, known))
    end
  end
end


--- The target of a table's $ref.
-- @return the table it leads to, and its name
function Document:target(table_)
  local ref = self:text(table_, "$ref")
  if ref:sub(1, 2) ~= "#/" then
    self:fail(table_, "$ref", ("%s: only what is in this file is read: write"
      .. ' "#/…"'):format(options.show(ref)))
  end
  local found, name = pointer.find(self.value, ref)
  if not M.is_map(found) then
    self:fail(table_, "$ref", ("%s leads %s"):format(options.show(ref),
      found == nil and "nowhere" or "to no map"))
  end
  return found, name
end


--- The table itself, or what its $ref leads to in the end.
-- @param beside  which keys may stand beside a $ref
function Document:follow(table_, beside)
  for _ = 1, MAX_REFS do
    if table_["$ref"] == nil then
      return table_
    end
    for _, key in ipairs(options.sorted_keys(table_)) do
      if key ~= "$ref" and not (beside and beside[key])
        and not key:find("^x%-") then
        self:fail(table_, key, "is ignored beside $ref: write it where $ref"
          .. " leads")
      end
    end
    table_ = self:target(table_)
  end
  self:fail(table_, "$ref", "leads from reference to reference, or in a circle")
end


return M
