-- Tests of gateway.pointer: what "#/a/b" stands for.

local t = require "gateway.test"
local pointer = require "gateway.pointer"

t.policy "scripts/gateway.lua"

local ROOT <const> = {
  ["$defs"] = { ["a/b"] = 1, ["m~n"] = 2, ["é"] = 3, list = { 10, 20 } },
}

t.case("pointers are followed as RFC 6901 says", function()
  t.equal(pointer.find(ROOT, "#"), ROOT)
  t.equal(pointer.find(ROOT, "#/$defs/a~1b"), 1)
  t.equal(pointer.find(ROOT, "#/$defs/m~0n"), 2)
  t.equal(pointer.find(ROOT, "#/$defs/%C3%A9"), 3)
  t.equal(pointer.find(ROOT, "#/$defs/list/1"), 20)
  t.equal(pointer.find({ no = false }, "#/no"), false)
end)

t.case("what is not there, or not local, is nil", function()
  for _, reference in ipairs {
    "#/x", "#/$defs/x/y", "#/$defs/list/2", "other.json#/$defs", "$defs", "",
  } do
    t.equal(pointer.find(ROOT, reference), nil)
  end
end)
