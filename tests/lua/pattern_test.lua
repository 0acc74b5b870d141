-- Tests of the analysis of patterns. What it computes is compared with the
-- engine that checks requests, on patterns and values made at random (from a
-- fixed seed, so that a failure can be had again).

local automaton = require "gateway.automaton"
local charset = require "gateway.charset"
local core = require "gateway.core"
local pattern = require "gateway.pattern"
local t = require "gateway.test"

t.policy "scripts/gateway.lua"

local JUDGED <const> = 40


-- A generator of numbers 1 … n.
local function new_random(seed)
  return function(n)
    seed = seed * 6364136223846793005 + 1442695040888963407
    return (seed >> 33) % n + 1
  end
end


-- What the engine says; where it gives up, it says what is expected.
local function taken(text, value, expected)
  local ok, why = core.schema_test(core.encode { pattern = text },
    core.encode(value))
  if why and why:find("too many steps", 1, true) then
    return expected
  end
  return ok == true
end


local function analysed(text, lengths)
  local p = assert(pattern.new(text, lengths))
  t.equal({ text, p.why }, { text })
  return p
end


-- ---- questions -------------------------------------------------------------

-- Each row: a pattern, a text, the shortest value that contains it and the
-- shortest that begins with it; false: there is none.
local ADMITS <const> = {
  { "^[a-z./-]{1,20}$", "..", "..", ".." },
  { "^[a-z]+$", "..", false, false },
  { "^[a-z]+", "..", "a..", false },
  { "[a-z]+$", "/", "/a", "/a" },
  { "^[a-z0-9][a-z0-9-]*$", "-", "a-", false },
  { "^a|b$", "\0", "\0b", "\0b" },
  { "^.*$", "\n", false, false },
  { "^(?s:.*)$", "\n", "\n", "\n" },
  { "^[^/]+$", "|", "|", "|" },
  { "^(?!.*[.][.])[a-z./]{1,9}$", "..", false, false },
  { "^(?!-)[a-z-]{1,9}$", "-", "a-", false },
  { "^(?=.{3,4}$)[a-z]*b$", "a", "aab", "aab" },
  { "^(?:a{3}|[/]b)$", "/", "/b", "/b" },
  { "^\\w+:\\w+$", ":", "a:a", false },
  { "^\\bfoo\\b.?$", "-", "foo-", false },
  { "", "x", "x", "x" },
  { "^$", "x", false, false },
  { "^[]$", "x", false, false },
}


t.case("admits: the shortest example, or none", function()
  for _, row in ipairs(ADMITS) do
    local p = analysed(row[1])
    local got = { row[1], p:admits(row[2]) or false,
      p:admits_first(row[2]) or false }
    t.equal(got, { row[1], row[3], row[4] })
  end
end)


t.case("lengths of the schema count", function()
  local p = analysed("^[a-z]*(/[a-z]{3})?$", { minLength = 2, maxLength = 4 })
  t.equal({ p:admits "/", p:admits "x", p:shortest(), p:longest() },
    { "/aaa", "ax", "aa", 4 })
  p = analysed("^[a-z]*(/[a-z]{3})?$", { maxLength = 3 })
  t.equal({ p:admits "/" }, {})
  t.equal({ p:accepts "", p:accepts "abcd" }, { true, false })
end)


t.case("meets: a value that two patterns take", function()
  local climbs = analysed "(^|/)[.][.](/|$)"
  t.equal({ analysed "^[a-z./]+$":meets(climbs),
    analysed "^[a-z]+/[a-z.]+$":meets(climbs) }, { "..", "a/.." })
  t.equal({ analysed "^[a-z./]+[a-z]$":meets(climbs) }, { "../a" })
  t.equal({ analysed "^[a-z.]+[a-z]$":meets(climbs) }, {})
end)


t.case("anchored: every alternative is bound on both sides", function()
  for text, anchored in pairs {
    ["^[a-z]+$"] = true, ["^a|b$"] = false, ["^(a|b)$"] = true,
    ["^a$|^b$"] = true, ["a"] = false, ["^a"] = false, ["a$"] = false,
    [".*"] = false, ["^(?!x)[a-z]$"] = true, ["(^|x)a$"] = false,
    ["\\Aa\\z"] = true, ["^a\\$"] = false,
  } do
    t.equal({ text, analysed(text):anchored() }, { text, anchored })
  end
end)


t.case("longest: in code points", function()
  for text, longest in pairs {
    ["^[a-z]{2,5}$"] = 5, ["^(\u{e9}|ab)?c$"] = 3, ["^$"] = 0, ["^a*$"] = false,
    ["a"] = false, ["^(a|bb|ccc){3}$"] = 9, ["^(?=.{1,4}$)a*$"] = 4,
  } do
    t.equal({ text, analysed(text):longest() or false }, { text, longest })
  end
end)


t.case("what is not regular cannot be judged, so it lets everything through",
  function()
    for _, text in ipairs {
      "^(a)\\1$", "^a(?=b)b$", "(?<=a)b", "^(?>a+)b$", "^a++b$", "(?x) a",
      "^(a|(?R)b)$", "^\\Qa\\E$", "^(?|a|b)$", "^([a-z]{200}){200}$",
      "^(?m)a$",
    } do
      local p = assert(pattern.new(text))
      local example, why = p:admits ".."
      t.equal({ text, example, why ~= nil, p:anchored(), p:sample(math.random),
        p:redos() }, { text, "..", true, false })
    end
    local p, why = pattern.new "("
    t.equal({ p == nil, type(why) }, { true, "string" })
  end)


t.case("redos: what makes the engine give up", function()
  for text, kind in pairs {
    ["^(a+)+$"] = "exponential", ["^(a*)*$"] = "exponential",
    ["^(\\w+\\s?)*$"] = "exponential",
    ["^(.*)x(.*)x(.*)x(.*)x$"] = "polynomial",
    ["^(a?)*$"] = false, ["^[a-z]+$"] = false, ["^(a|b)*$"] = false,
    ["^([a-z]{1,63}[.])*[a-z]{1,63}$"] = false, ["^(ab)*$"] = false,
  } do
    local found, attack = analysed(text):redos()
    t.equal({ text, found or false }, { text, kind })
    if attack then
      local _, why = core.schema_test(core.encode { pattern = text },
        core.encode(attack))
      t.equal({ why, why:find("too many steps", 1, true) ~= nil },
        { why, true })
    end
  end
  t.equal({ analysed("^(a+)+$", { maxLength = 8 }):redos() }, {})
end)


-- ---- sets and automata -----------------------------------------------------

t.case("sets", function()
  local set = charset.new { 97, 99, 98, 105, 48, 57, 106, 106 }
  t.equal(set, { 48, 57, 97, 106 })
  t.equal(charset.negate(charset.negate(set)), set)
  t.equal(charset.intersect(set, charset.negate(set)), {})
  t.equal(charset.ask("[[:digit:]]", ""), { 48, 57 })
  t.equal({ charset.has(set, 57), charset.has(set, 58), charset.pick(set) },
    { true, false, 97 })
end)


t.case("redos: optional and counted parts, and lookaheads", function()
  for text, expected in pairs {
    ["^(a?b?)*c$"] = true, ["^([a-z]?\\d?)*x$"] = true, ["^(a|b?)*c$"] = false,
    ["^(a{1,30}){1,30}$"] = true, ["^([01]?\\d{0,9}){1,9}!$"] = true,
    ["^(\\d{1,3}[.]){3}\\d{1,3}$"] = false, ["^(\\d{1,3}){1,3}$"] = false,
    ["^([a-z]{1,63}[.]){1,8}[a-z]{2,63}$"] = false,
    ["^(?=([a-z]+)+$)[a-z0-9]{1,90}$"] = true,
  } do
    t.equal({ text, analysed(text, { maxLength = 200 }):redos() ~= nil },
      { text, expected })
  end
end)


-- What is larger took minutes, and a case has seconds.
t.case("redos: the work is bounded, and what it does not reach is said",
  function()
    local words = {}
    for i = 1, 3000 do
      words[i] = "item" .. i
    end
    local many = table.concat(words, "|")
    for text, expected in pairs {
      ["^(" .. many .. ")$"] = { nil, nil, nil },
      ["^([a-z]{600}[0-9]{600})*$"] = { nil, nil, "its size" },
    } do
      local found = { analysed(text):redos() }
      t.equal({ text:sub(1, 40), found[1], found[2] or false, found[3] },
        { text:sub(1, 40), expected[1], expected[2] or false, expected[3] })
    end
    local one, other = analysed(many), analysed("^(" .. many .. ")-$")
    t.equal({ one:meets(other) }, { "item1-", "its size" })
  end)


t.case("(?i) makes classes of cased letters one", function()
  for _, text in ipairs { "(?i)^\\p{Lu}$", "^(?i:\\p{Lt})$",
    "(?i)^[\\p{Lu}]$" } do
    t.equal({ text, analysed(text):accepts "b", taken(text, "b") },
      { text, true, true })
  end
end)


t.case("a complement takes what the automaton does not", function()
  local a = automaton.text({ 97, 98 }, false)
  local other = automaton.complement(a)
  for text, has in pairs { ab = true, xabx = true, ba = false, [""] = false } do
    t.equal({ text, a:accepts(text), other:accepts(text) },
      { text, has, not has })
  end
  t.equal({ automaton.product(a, other):shortest() }, {})
end)


-- ---- random patterns -------------------------------------------------------

local ATOMS <const> = {
  "a", "b", "-", "/", "[.]", ".", "[ab]", "[^a]", "[a-c/]", "\\d", "\\w", "\\W",
  "\\s", "[^\\w]", "\\b", "\\B", "^", "$", "\\.", "\u{e9}", "[\\d.-]", "\\n",
  "\\x41", "\\u0062", "[]a]", "[^]", "\\S", "{", "[a-]", "[\\b]", "\\-", ":",
  "(?i)", "(?i:aB)", "\\p{Lu}", "(?i:\\p{Lu})", "\\P{Ll}", "(?s:.)",
  "\\0", "\\cA", "a{,2}", "[[:digit:]]", "\\101",
  "\\p{Greek}", "\\/", "\\x4", "\\u{62}", "k", "(?-i)", "\\z", "\\A",
  "\\ud83d\\ude00", "[\\uD83D\\uDE00-\\u{1f602}]", "\\v", "[\\S-]", "[^\\s]",
}
local SIGNS <const> = {
  "*", "+", "?", "{2}", "{1,3}", "{0,2}", "*?", "{2,}", "{ 1 , 2 }", "{,1}",
}


local function random_pattern(random, depth)
  local parts = {}
  for i = 1, random(4) do
    local part
    local kind = random(10)
    if kind <= 6 or depth == 0 then
      part = ATOMS[random(#ATOMS)]
    elseif kind <= 8 then
      part = (random(2) == 1 and "(" or "(?:")
        .. random_pattern(random, depth - 1) .. ")"
    else
      part = "(" .. random_pattern(random, depth - 1) .. "|"
        .. random_pattern(random, depth - 1) .. ")"
    end
    if random(3) == 1 then
      part = part .. SIGNS[random(#SIGNS)]
    end
    parts[i] = part
  end
  local text = table.concat(parts)
  if depth == 2 and random(2) == 1 then
    local look = random(4) == 1 and ("(?%s%s)"):format(
      random(2) == 1 and "!" or "=", random_pattern(random, 1)) or ""
    text = "^" .. look .. "(" .. text .. ")$"
  end
  return text
end

local BITS <const> = {
  "a", "b", "c", "-", "/", ".", "..", "A", "B", "1", "_", " ", "\n", "\r",
  "\u{e9}", "\u{212a}", "k", "{", "]", "\0", "\1", ":", "x4", "\u{85}", "\8",
  "\u{1f600}", "\u{1f601}", "\u{feff}", "\v",
}


local function random_value(random)
  local parts = {}
  for i = 1, random(6) - 1 do
    parts[i] = BITS[random(#BITS)]
  end
  return table.concat(parts)
end


-- What is wrong with the analysis of one pattern, or nil.
local function mistake(text, p, random)
  for _ = 1, 12 do
    local value = random_value(random)
    if p:accepts(value) ~= taken(text, value, p:accepts(value)) then
      return "accepts", value
    end
    local part = BITS[random(#BITS)]
    for _, name in ipairs { "admits", "admits_first" } do
      local example, why = p[name](p, part)
      local first = example and example:find(part, 1, true)
      if why or example and (not taken(text, example, true) or not first
        or name == "admits_first" and first ~= 1) then
        return name .. " " .. core.encode(part), example or why
      elseif not example and taken(text, value, false)
        and value:find(part, 1, true)
        and (name == "admits" or value:sub(1, #part) == part) then
        return name .. " none, but", value
      end
    end
    local sample, miss = p:sample(random), p:near_miss(random)
    if sample and not taken(text, sample, true) then
      return "sample", sample
    elseif miss and taken(text, miss, false) then
      return "near_miss", miss
    end
  end
  return nil
end


t.case("random patterns: every answer is the engine's", function()
  local random, judged, samples, misses = new_random(20261126), 0, 0, 0
  while judged < JUDGED do
    local text = random_pattern(random, 2)
    local p = pattern.new(text)
    if p and not p.why then
      judged = judged + 1
      t.equal({ text, mistake(text, p, random) }, { text })
      samples = samples + (p:sample(random) and 1 or 0)
      misses = misses + (p:near_miss(random) and 1 or 0)
    end
  end
  t.equal({ samples > JUDGED / 2, misses > JUDGED / 3 }, { true, true })
end)
