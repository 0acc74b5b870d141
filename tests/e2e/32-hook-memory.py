"""A hook that eats memory is ended; the worker and other requests go on."""

from gw import ASAN, Gateway, equal, status_kib

EATERS = [
    "local t = {} while true do t[#t + 1] = ('x'):rep(100000) .. #t end",
    "local s = 'x' while true do s = s .. s end",
    "local t = {} while true do t = { t } end",
    "local t = {} for n = 1, 1e9 do t[n] = n end",
    "local t = {} while true do local ok, s = pcall(string.rep, 'x', 4e6) "
    "if ok then t[#t + 1] = s .. #t end end",
    "local t = {} while true do t[#t + 1] = coroutine.wrap(print) end",
    "local t = {} while true do pcall(function() while true do "
    "t[#t + 1] = {} end end) end",
    "local function f(...) return f(1, ...) end return f()",
    "return table.concat(setmetatable({}, { __index = function() return "
    "('x'):rep(1000) end }), '', 1, 1000000)",
    "local t = {} for n = 1, 100000 do t[n] = ('x'):rep(1000) .. n end "
    "return gateway.json(t)",
    "local t = {} for n = 1, 200 do t = { t, t } end return gateway.json(t)",
    "return (('x'):rep(1000000):gsub('x', ('y'):rep(1000)))",
]


def setup():
    text = """
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""
    for n, body in enumerate(EATERS):
        text += """
gateway.get("/eat%d", { authorize = id.anyone, limits = { hook_cpu = 1 },
  handle = function() %s end })
""" % (n, body)
    return Gateway(text)


def test_each(g):
    wrong, pid = [], g.workers()
    for n, body in enumerate(EATERS):
        try:
            status = g.get("/eat%d" % n).status
        except (OSError, EOFError) as problem:
            status = repr(problem)
        if status not in (500, 503):
            wrong.append("%s: %s" % (body, status))
        if g.get("/ok").status != 200:
            wrong.append("%s: /ok fails" % body)
    assert not wrong, "\n".join(wrong)
    equal(g.workers(), pid, "the worker lives on")
    if not ASAN:
        peak = status_kib(pid[0], "VmHWM")
        assert peak < 160 << 10, "the worker's peak is %d KiB" % peak


test_each.timeout = 90


def test_a_client_in_the_middle_is_not_hurt(g):
    with g.connect() as c:
        equal(c.get("/ok").status, 200)
        for n in range(3):
            try:
                g.get("/eat%d" % n)
            except (OSError, EOFError):
                pass
            equal(c.get("/ok").status, 200)


test_a_client_in_the_middle_is_not_hurt.timeout = 40
