"""A hook that loops is ended by its CPU budget; other clients go on."""

import threading
import time

from gw import SLOW, Gateway, equal, until

ALONE = True
LOOPS = [
    "while true do end",
    "while true do pcall(function() while true do end end) end",
    "repeat until pcall(error) and false",
    "local function f() return f() end return f()",
    "local co = coroutine.wrap(function() while true do end end) co()",
    "while true do coroutine.wrap(function() pcall(function() while true do "
    "end end) end)() end",
    "local t = {} for n = 1, 1e5 do t[n] = n end table.sort(t, function() "
    "while true do end end)",
    "return setmetatable({}, { __index = function() while true do end end }).x",
    "xpcall(function() while true do end end, function() while true do end "
    "end) while true do end",
    "for _ in function() return 1 end do end",
    "local ok <close> = setmetatable({}, { __close = function() while true do "
    "end end }) error 'x'",
    "goto a ::a:: goto a",
    "local s = ('a'):rep(50000) return s:find(('a*'):rep(30) .. 'b')",
    "local s = ('a'):rep(100000) return s:find('.-.-.-.-b')",
    "local s = ('a'):rep(100000) return s:gsub('.-b', 'x')",
    "local s = ('x'):rep(1000000) while true do s:find('y', 1, true) end",
    "while true do string.format('%99.99f', 1e308) end",
    "return select('#', table.unpack({}, 1, 1e7))",
    "table.concat({}, 'x', 1, 1e9)",
    "table.move({}, 1, 1e9, 2)",
    "while true do gateway.json({ 1, 2, 3 }) end",
    "while true do pcall(string.rep, 'x', 1e6) end",
    "return ('x'):rep(1e9)",
    "return ('x'):rep(1e8, ',')",
    "local t = setmetatable({}, { __len = function() return 1e9 end }) "
    "table.insert(t, 1, 1)",
    "local t = {} for n = 1, 2e5 do t[n] = n end while true do table.remove(t, "
    "1) table.insert(t, 1, 1) end",
    "return utf8.len(('x'):rep(1e6)) and utf8.char(table.unpack({}, 1, 1e6))",
    "while true do local _ = tostring({}) .. '' end",
]


def setup():
    text = """
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""
    for n, body in enumerate(LOOPS):
        text += """
gateway.get("/check%d", { authorize = id.anyone,
  check = function() %s end,
  handle = function() return gateway.text "in" end })
gateway.get("/handle%d", { authorize = id.anyone,
  handle = function() %s end })
""" % (n, body, n, body)
    text += """
gateway.get("/who", { authorize = function() while true do end end,
  handle = function() return gateway.text "in" end })
gateway.get("/respond", { authorize = id.anyone,
  handle = function() return gateway.text "in" end,
  respond = function() while true do end end })
gateway.get("/log", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end,
  log = function() while true do end end })
gateway.get("/short", { authorize = id.anyone, limits = { hook_cpu = 0.01 },
  handle = function() while true do end end })
gateway.get("/busy", { authorize = id.anyone, limits = { hook_cpu = 5 },
  handle = function() local n = 0 for i = 1, 3e6 do n = n + i end
    return gateway.text "done" end })
"""
    return Gateway(text)


def each(g, kind):
    wrong, pid = [], g.workers()
    for n, body in enumerate(LOOPS):
        begin = time.monotonic()
        try:
            status = g.get("/%s%d" % (kind, n)).status
        except (OSError, EOFError) as problem:
            status = repr(problem)
        took = time.monotonic() - begin
        if status not in (500, 503):
            wrong.append("%s: %s" % (body, status))
        if took > 2 * SLOW:
            wrong.append("%s: took %.1f s" % (body, took))
    assert not wrong, "\n".join(wrong)
    equal(g.workers(), pid, "the worker lives on")


def test_in_check(g):
    each(g, "check")


def test_in_handle(g):
    each(g, "handle")


for _test in (test_in_check, test_in_handle):
    _test.timeout = 90


def test_in_the_other_hooks(g):
    equal(g.get("/who").status, 500)
    equal(g.get("/respond").status, 500)
    equal(g.get("/log").status, 200)
    equal(g.get("/ok").status, 200)


def test_the_log_names_the_line(g):
    mark = g.mark()
    g.get("/who")
    g.wait_line("policy.lua:", "CPU", since=mark)


def test_others_go_on(g):
    """Loops on four connections; a fifth client is served all the while."""
    stop = threading.Event()

    def loop():
        while not stop.is_set():
            try:
                g.get("/check0")
            except (OSError, EOFError):
                pass
    threads = [threading.Thread(target=loop) for _ in range(4)]
    for t in threads:
        t.start()
    try:
        with g.connect() as c:
            worst = 0
            for _ in range(15):
                begin = time.monotonic()
                equal(c.get("/ok").status, 200)
                worst = max(worst, time.monotonic() - begin)
        assert worst < 2 * SLOW, "a request took %.1f s" % worst
    finally:
        stop.set()
        for t in threads:
            t.join()


def test_a_budget_of_its_own(g):
    begin = time.monotonic()
    equal(g.get("/short").status, 500)
    assert time.monotonic() - begin < 0.5 * SLOW, "took too long"
    equal(g.get("/busy").status, 200)


def test_the_metric_counts():
    with Gateway("""
gateway.admin { address = "127.0.0.1:@ADMIN@" }
gateway.get("/loop", { authorize = id.anyone,
  handle = function() while true do end end })
""") as g:
        g.get("/loop")
        until(lambda: g.metric("gateway_limits_total", limit="hook_cpu") == 1,
              "the metric counts")
