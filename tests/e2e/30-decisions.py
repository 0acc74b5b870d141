"""Only exactly true allows; everything else is a refusal or a bug (500)."""

from gw import Gateway, Upstream, equal

# what a hook does, the status as a check hook, words in the log
ROWS = [
    ("return true", 200, ()),
    ("return true, 'why'", 200, ()),
    ("return false", 403, ()),
    ("return false, 'not today'", 403, ("not today",)),
    ("return false, gateway.problem(429, 'slow down')", 429, ()),
    ("return false, gateway.problem(451, { title = 'Law', detail = 'x' })",
     451, ()),
    ("return", 500, ("not true or false",)),
    ("return nil", 500, ("nil",)),
    ("return 1", 500, ("number",)),
    ("return 0", 500, ("number",)),
    ("return 'true'", 500, ("string",)),
    ("return ''", 500, ("string",)),
    ("return {}", 500, ("table",)),
    ("return { true }", 500, ("table",)),
    ("return setmetatable({}, { __eq = function() return true end })", 500,
     ("table",)),
    ("return function() return true end", 500, ("function",)),
    ("return coroutine.create(function() end)", 500, ("thread",)),
    ("error 'thrown'", 500, ("thrown",)),
    ("error({ a = 1 })", 500, ()),
    ("error(nil)", 500, ()),
    ("error()", 500, ()),
    ("local x = nil; return x.y", 500, ("policy.lua",)),
    ("return nil + 1", 500, ("policy.lua",)),
    ("local function f() return f() + 1 end return f()", 500, ("policy.lua",)),
    ("return false, {}", (403, 500), ()),
    ("return false, 7", (403, 500), ()),
    ("coroutine.yield(true)", 500, ()),
    ("return coroutine.wrap(function() coroutine.yield(true) end)()", 200, ()),
    ("return pcall(error, 'x')", 403, ()),
    ("return not nil", 200, ()),
]


def setup():
    text = ""
    for n, (body, _, _) in enumerate(ROWS):
        text += """
gateway.get("/check%d", { authorize = id.anyone,
  check = function(request, identity) %s end,
  handle = function() return gateway.text "in" end })
gateway.get("/who%d", { authorize = function(identity) %s end,
  handle = function() return gateway.text "in" end })
""" % (n, body, n, body)
    return Gateway(text)


def rows(g, kind):
    wrong = []
    for n, (body, want, words) in enumerate(ROWS):
        mark = g.mark()
        r = g.get("/%s%d" % (kind, n))
        if r.status not in (want if isinstance(want, tuple) else (want,)):
            wrong.append("%s: got %d, want %r" % (body, r.status, want))
            continue
        if (r.text == "in") != (want == 200):
            wrong.append("%s: the handler ran" % body)
        if want != 200 and (
                r.get("content-type") != "application/problem+json"):
            wrong.append("%s: no problem" % body)
        for word in words:
            if word in r.text:
                wrong.append("%s: %r went to the client" % (body, word))
            try:
                g.wait_line(word, since=mark, seconds=1)
            except AssertionError as problem:
                wrong.append("%s: %s" % (body, problem))
    assert not wrong, "\n".join(wrong)


def test_check_hooks(g):
    rows(g, "check")


def test_authorize_hooks(g):
    rows(g, "who")


for _test in (test_check_hooks, test_authorize_hooks):
    _test.timeout = 60


def test_a_problem_of_ours_reaches_the_client(g):
    r = g.get("/check4")
    equal(r.json()["detail"], "slow down")
    equal(r.json()["status"], 429)


def test_a_traceback_is_in_the_log(g):
    mark = g.mark()
    equal(g.get("/check21").status, 500)
    g.wait_line("policy.lua:", "traceback", since=mark)


def test_both_of_two_checks_must_allow():
    g = Gateway("""
local function yes() return true end
local function no() return false, "no" end
for n, list in ipairs { { yes, yes }, { yes, no }, { no, yes } } do
  gateway.get("/" .. n, { authorize = id.anyone, check = list,
    handle = function() return gateway.text "in" end })
end
""")
    with g:
        equal([g.get("/%d" % n).status for n in (1, 2, 3)], [200, 403, 403])


def test_the_order_of_the_stages():
    """Each stage runs only when the one before let the request through."""
    up = Upstream().start()
    g = Gateway("""
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
local function say(word, value) return function()
  print("stage-" .. word) return value end end
gateway.post("/x/{n}", {
  authorize = function(identity) print "stage-authorize"
    return identity:has("ou", "ops") end,
  validate = { path = { n = gateway.integer(1, 9) },
               query = { q = gateway.integer(1, 9) },
               json = { type = "object", properties = {
                 a = { type = "integer" } } } },
  check = function(request) print "stage-check"
    return request.query.q < 5, "q" end,
  handle = app:to "/internal/x" })
""", UP=up.port)
    rows = [  # target, body, who, status, stages
        ("/x/1?q=1", b'{"a":1}', "ops", 200, "authorize check"),
        ("/x/1?q=6", b'{"a":1}', "ops", 403, "authorize check"),
        ("/x/1?q=1", b'{"a":"1"}', "ops", 422, "authorize"),
        ("/x/0?q=1", b'{"a":1}', "ops", 422, "authorize"),
        ("/x/1", b'{"a":1}', "ops", 422, "authorize"),
        ("/x/0", b'{', "guest", 403, "authorize"),
    ]
    with g:
        for target, body, who, want, stages in rows:
            before = len(up.requests)
            g.mark()
            r = g.post_json(target, body, who=who)
            equal(r.status, want, target)
            equal(len(up.requests) - before, 1 if want == 200 else 0, target)
        equal(len(g.lines("stage-check")), 2, "runs of check")
    up.stop()


def test_handlers_that_return_rubbish():
    bodies = ["return", "return 1", "return 'text'", "return true",
              "return {}", "return { status = 'x' }", "return { status = 99 }",
              "return { status = 200, body = {} }", "return { status = 1000 }",
              "return { status = 200, headers = { ['a b'] = 'c' } }",
              "return { status = 200, headers = { a = 'b\\r\\nc: d' } }",
              "return { status = 200, headers = { a = function() end } }",
              "error 'x'", "return gateway.text({})",
              "return gateway.json(print)", "return { forward = {} }",
              "return { forward = { upstream = 7 } }",
              "return { status = 100 }", "return { status = 101 }"]
    g = Gateway("".join(
        'gateway.get("/h%d", { authorize = id.anyone, handle = function() '
        '%s end })\n' % (n, body) for n, body in enumerate(bodies)))
    with g:
        wrong = []
        for n, body in enumerate(bodies):
            status = g.get("/h%d" % n).status
            if status != 500:
                wrong.append("%s: %d" % (body, status))
        assert not wrong, "\n".join(wrong)


def test_respond_and_log_hooks():
    g = Gateway("""
gateway.get("/respond", { authorize = id.anyone,
  handle = function() return gateway.text("a", 200, { ["x-a"] = "1" }) end,
  respond = function(request, response)
    response.headers["x-b"] = request.id return response end })
gateway.get("/throws", { authorize = id.anyone,
  handle = function() return gateway.text "secret" end,
  respond = function() error "thrown in respond" end })
gateway.get("/log", { authorize = id.anyone,
  handle = function() return gateway.text("a", 201) end,
  log = function(request, response, decision)
    print("logged " .. request.id .. " " .. response.status) end })
gateway.get("/logthrows", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end,
  log = function() error "thrown in log" end })
""")
    with g:
        r = g.get("/respond")
        equal((r.status, r.text, r.get("x-a")), (200, "a", "1"))
        assert r.get("x-b"), r
        r = g.get("/throws")
        equal(r.status, 500)
        assert "secret" not in r.text, r
        g.wait_line("thrown in respond")
        equal(g.get("/log").status, 201)
        g.wait_line("logged ", " 201")
        equal(g.get("/logthrows").status, 200)
        g.wait_line("thrown in log")


def test_what_hooks_see_is_read_only():
    g = Gateway("""
gateway.get("/x", { authorize = id.anyone, handle = function(request, identity)
  local tries = {
    request = pcall(function() request.method = "POST" end),
    identity = pcall(function() identity.serial = "0" end),
    ou = pcall(function() identity.subject.ou[1] = "root" end),
    subject = pcall(function() identity.subject = {} end),
    global = pcall(function() colour = "red" end),
    lib = pcall(function() gateway.text = nil end),
    string = pcall(function() string.format = nil end),
    raw = pcall(rawset or error, identity.subject, "cn", { "root" }) }
  return gateway.json { tries = tries, ou = identity.subject.ou,
    cn = identity.subject.cn } end })
""")
    with g:
        r = g.get("/x")
        equal(r.status, 200)
        for name, worked in r.json()["tries"].items():
            if name not in ("raw", "ou"):  # lists are copies: see below
                equal(worked, False, name)
        equal(r.json()["ou"], ["ops"])
        equal(g.get("/x").json()["cn"], ["ops"], "after the tries")
        equal(g.get("/x", who="guest").json()["ou"], ["guests"])


def test_a_handler_cannot_touch_the_framing():
    """Hop-by-hop fields of a hook, in any spelling: dropped, or a 500."""
    up = Upstream().start()
    names = ["Transfer-Encoding", "transfer-encoding", "Content-Length",
             "Connection", "KEEP-ALIVE", "Upgrade", "Trailer", "TE"]
    g = Gateway("""
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
for n, name in ipairs { %s } do
  gateway.get("/h" .. n, { authorize = id.anyone, handle = function()
    return gateway.text("hello", 200, { [name] = "chunked" }) end })
  gateway.get("/f" .. n, { authorize = id.anyone, handle = function()
    local ok, got = pcall(gateway.fetch, app, { method = "POST",
      path = "/internal/x", body = "hello", headers = { [name] = "chunked" } })
    return gateway.text(ok and got and got.body or "none") end })
end
""" % ", ".join('"%s"' % n for n in names), UP=up.port)
    with g:
        for n, name in enumerate(names):
            with g.connect() as c:
                r = c.get("/h%d" % (n + 1))
                assert r.complete, "%s: %r" % (name, r)
                if r.status == 200:
                    equal(r.text, "hello", name)
                    assert "chunked" not in str(r.fields), "%s: %r" % (name, r)
                equal(c.get("/nothing").status, 404, "after " + name)
            before = len(up.requests)
            g.get("/f%d" % (n + 1))
            for seen in up.requests[before:]:
                values = [v for f, v in seen.fields if f.lower() in (
                    "transfer-encoding", "content-length")]
                equal(values, ["5"], "framing upstream after " + name)
    up.stop()
