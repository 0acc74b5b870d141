"""What could be an injection never reaches the program: it keeps a record."""

from gw import (Gateway, equal, one_of, read, witness, witness_log,
                witness_runs)

POLICY = """
local strict = gateway.command { name = "strict", program = "@PROGRAM@",
  sha256 = "@SHA@", write = @WRITES@, args = { "record", "@RECORD@", gateway.slot "v",
                             gateway.slot("w", { prefix = "--size=" }) },
  slots = { v = { type = "string", pattern = "^[a-z0-9.]{1,32}$",
            maxLength = 32 },
            w = { type = "string", pattern = "^[a-z0-9.]{1,32}$",
            maxLength = 32 } } }
local loose = gateway.command { name = "loose", program = "@PROGRAM@",
  sha256 = "@SHA@", write = @WRITES@, args = { "record", "@RECORD@", gateway.slot "v" },
  slots = { v = { type = "string", pattern = "^(?s:.*)$",
                  maxLength = 300000 } } }

-- The routes let everything through: the slots have the last word.
local function runs(command)
  return function(request)
    local slots = { v = request.json.v, w = command == strict and "m" or nil }
    local run = command:run(slots)
    if not run.ok then return gateway.problem(502, run.why) end
    return gateway.text(run.stdout)
  end
end
for _, command in ipairs { strict, loose } do
  gateway.post("/" .. command.name, { authorize = id.anyone,
    validate = { json = { type = "object", required = { "v" },
                          properties = { v = true } } },
    handle = runs(command) })
end
gateway.get("/query", { authorize = id.anyone,
  validate = { query = { v = strict.slots.v } },
  handle = function(request)
    local run = strict:run({ v = request.query.v, w = request.query.v })
    return gateway.json { ok = run.ok, why = run.why } end })
gateway.get("/path/{v}", { authorize = id.anyone,
  validate = { path = { v = strict.slots.v } },
  handle = function(request)
    local run = strict:run({ v = request.path.v, w = request.path.v })
    return gateway.json { ok = run.ok, why = run.why } end })
"""

EVIL = [
    ";id", "a;id", "$(id)", "a$(id)", "`id`", "|id", "a|id", "&id", "a&&id",
    "a\nid", "\nid", "a\n", "\n", "a\rid", "a\0b", "\0", "-", "-x", "--help",
    "-exec", "a b", " ", "", "a'b", 'a"b', "a\\b", "*", "?", "~", "$HOME",
    "${IFS}", "a>b", "<a", "!a", "#a", "(a)", "{a,b}", "a\tb", "\u2028",
    "\u2013x", "\uff0dx", "\u0430", "A", "a" * 33, "../a", "/etc/passwd",
    "a\u0000", "\u007f", "a=b", "%00", "%0a", "\U0001f600",
]
NOT_TEXT = [-1, None, [], ["a"], {}, {"a": "b"}, [["-x"]]]


class Witnessed(Gateway):
    def __init__(self):
        self.record = witness_log()
        path, sha = witness()
        super().__init__(POLICY, PROGRAM=path, SHA=sha, RECORD=self.record)

    def runs(self):
        return [[bytes.fromhex(a).decode("utf-8", "surrogateescape")
                 for a in r["argv"][3:]] for r in witness_runs(self.record)]


def setup():
    return Witnessed()


def test_a_good_value_arrives(g):
    before = g.runs()
    r = g.post_json("/strict", {"v": "abc.1"})
    equal(r.status, 200, r.text)
    equal(g.runs()[len(before):], [["abc.1", "--size=m"]])


def test_evil_values_never_arrive(g):
    before = g.runs()
    wrong = []
    for value in EVIL + NOT_TEXT:
        status = g.post_json("/strict", {"v": value}).status
        if status not in (422, 502, 500):
            wrong.append("%r: %d" % (value, status))
    assert not wrong, "\n".join(wrong)
    equal(g.runs(), before, "runs")


test_evil_values_never_arrive.timeout = 40


def test_evil_values_in_a_query(g):
    before = g.runs()
    for value in EVIL:
        quoted = "".join("%%%02x" % b for b in value.encode())
        one_of(g.get("/query?v=" + quoted).status, (400, 422), repr(value))
    for query in ("?v=a&v=b", "?v[]=a", "?", "", "?v", "?V=a", "?v=a&x=1",
                  "?v=a%", "?v=a;v=b", "?v=%ff"):
        one_of(g.get("/query" + query).status, (400, 422), query)
    equal(g.runs(), before, "runs")
    equal(g.get("/query?v=good").json()["ok"], True)
    equal(g.runs()[len(before):], [["good", "--size=good"]])


test_evil_values_in_a_query.timeout = 40


def test_evil_values_in_a_path(g):
    before = g.runs()
    for value in EVIL:
        quoted = "".join("%%%02x" % b for b in value.encode())
        one_of(g.get("/path/" + quoted).status, (400, 404, 422), repr(value))
    equal(g.runs(), before, "runs")
    equal(g.get("/path/good").json()["ok"], True)


test_evil_values_in_a_path.timeout = 40


def test_a_slot_that_takes_any_text(g):
    """No shell: what arrives is one argument, byte for byte.  A leading
    hyphen, control bytes and nothing at all do not arrive even here."""
    wrong = []
    for value in ("$(id)", ";id", "`id`", "a b", "a'b\"c", "*", "~", "${IFS}",
                  "a|b>c", "\u00e4", "\U0001f600", "%00", "a" * 4000):
        before = g.runs()
        r = g.post_json("/loose", {"v": value})
        got = g.runs()[len(before):]
        if r.status != 200 or got != [[value]]:
            wrong.append("%r: %d %r" % (value[:40], r.status, got))
    before = g.runs()
    for value in ("-x", "--", "-", "a\nb", "a\0b", "\0", "a\x01", "\x7f", "",
                  "a\r", "a" * 200000):
        r = g.post_json("/loose", {"v": value})
        if r.status == 200 or g.runs() != before:
            wrong.append("%r arrived" % value[:40])
            before = g.runs()
    assert not wrong, "\n".join(wrong)


def test_why_is_in_the_audit_record(g):
    mark = g.mark()
    r = g.post_json("/strict", {"v": ";id"})
    equal(r.status, 502, r.text)
    assert ";id" not in r.text, "the value went back to the client"
    g.wait_line("slot v", "pattern", since=mark)


def test_a_handler_cannot_smuggle_a_slot():
    """Misuse of command:run is an error, not a run."""
    record = witness_log()
    path, sha = witness()
    g = Gateway(POLICY.split("-- The routes")[0] + """
local function try(slots)
  return function()
    local ok, run = pcall(strict.run, strict, slots)
    return gateway.json { ok = ok and type(run) == "table" and run.ok } end
end
for n, slots in ipairs { { v = "a" }, { v = "a", w = "b", x = "c" },
    { v = "a", w = { "b" } }, { "a", "b" }, { v = "a", w = -1 },
    { v = "a", w = "b\\0c" }, "ab", { v = "a", w = function() end } } do
  gateway.get("/try" .. n, { authorize = id.anyone, handle = try(slots) })
end
gateway.get("/good", { authorize = id.anyone,
  handle = try { v = "a", w = "b" } })
gateway.get("/frozen", { authorize = id.anyone, handle = function()
  local ok = pcall(function() strict.program = "/bin/sh" end)
  local ok2 = pcall(function() strict.args[1] = "x" end)
  local late = pcall(gateway.command, { name = "late", program = "/bin/true" })
  strict:run({ v = "a", w = "frozen" })
  return gateway.json { set = ok, args = ok2, late = late } end })
""", PROGRAM=path, SHA=sha, RECORD=record)
    with g:
        for n in range(1, 9):
            r = g.get("/try%d" % n)
            if r.status == 200:
                equal(r.json()["ok"], False, "/try%d" % n)
        equal(read(record), b"", "runs")
        equal(g.get("/good").json()["ok"], True)
        r = g.get("/frozen")
        last = witness_runs(record)[-1]
        equal(bytes.fromhex(last["argv"][1]), b"record", "argv[1]")
        if r.status == 200:
            equal(r.json()["late"], False, "a command declared by a hook")


def test_duplicate_keys_do_not_hide_a_value(g):
    before = g.runs()
    for body in (b'{"v":"a","v":";id"}', b'{"v":";id","v":"a"}',
                 b'{"v":"a","\\u0076":"-x"}'):
        equal(g.post_json("/strict", body).status, 400, body)
    equal(g.runs(), before, "runs")
