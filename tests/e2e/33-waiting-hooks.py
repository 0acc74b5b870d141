"""Hooks may wait: sleep, fetch; nothing blocks the loop, nothing leaks."""

import threading
import time

from gw import SLOW, Gateway, Upstream, equal, one_of, until

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@", head_timeout = 1 }
gateway.admin { address = "127.0.0.1:@ADMIN@" }
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
gateway.get("/sleep", { authorize = id.anyone, handle = function()
  gateway.sleep(0.5) return gateway.text "slept" end })
gateway.get("/checksleep", { authorize = id.anyone, check = function()
  gateway.sleep(0.05) return true end,
  handle = function() return gateway.text "slept" end })
gateway.get("/long", { authorize = id.anyone, handle = function()
  gateway.sleep(60) return gateway.text "slept" end })
gateway.get("/limit", { authorize = id.anyone, limits = { hook_time = 0.5 },
  handle = function() gateway.sleep(60) return gateway.text "slept" end })
gateway.get("/pcall", { authorize = id.anyone, handle = function()
  local ok = pcall(function() gateway.sleep(0.05) error "x" end)
  return gateway.text(tostring(ok)) end })
gateway.get("/fetch/{what...}", { authorize = id.anyone,
  validate = { path = { what = gateway.relative_path } },
  handle = function(request)
    local got, why, code = gateway.fetch(app, {
      path = "/internal/" .. request.path.what, timeout = 1, max = 100000 })
    if not got then return gateway.problem(502, "fetch: " .. tostring(why)) end
    return gateway.json { status = got.status, bytes = #got.body,
      body = utf8.len(got.body) and got.body,
      type = got.headers["content-type"] } end })
gateway.get("/post", { authorize = id.anyone, handle = function()
  local got = gateway.fetch(app, { method = "POST", path = "/internal/x",
    query = { a = "b c" }, headers = { ["X-A"] = "1" }, body = "hello" })
  return gateway.text(got.body) end })
gateway.get("/split", { authorize = id.anyone, handle = function()
  local ok, got = pcall(gateway.fetch, app, { path = "/internal/x",
    headers = { ["X-A"] = "1\\r\\nX-Evil: 1" } })
  local ok2, got2 = pcall(gateway.fetch, app, {
    path = "/internal/x HTTP/1.1\\r\\nX-Evil: 1\\r\\n" })
  return gateway.json { a = ok and got ~= nil, b = ok2 and got2 ~= nil } end })
gateway.get("/both", { authorize = id.anyone,
  check = function()
    local got = gateway.fetch(app, { path = "/internal/x" })
    return got ~= nil and got.status == 200, "no" end,
  handle = app:to "/internal/y" })
"""


class Both(Gateway):
    def __init__(self):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port,
                         listen="limits = { per_identity = 1000 }")

    def stop(self):
        self.up.stop()
        return super().stop()


def setup():
    return Both()


def test_sleep(g):
    begin = time.monotonic()
    equal(g.get("/sleep").text, "slept")
    assert time.monotonic() - begin > 0.45, "it did not sleep"
    equal(g.get("/checksleep").text, "slept")
    equal(g.get("/pcall").text, "false")


def test_many_sleep_at_once(g):
    """200 half seconds take about half a second."""
    clients = [g.connect() for _ in range(200)]
    begin = time.monotonic()
    for c in clients:
        c.send(b"GET /sleep HTTP/1.1\r\nHost: localhost\r\n\r\n")
    equal(g.get("/ok").status, 200)
    for c in clients:
        equal(c.response().text, "slept")
        c.close()
    assert time.monotonic() - begin < 5 * SLOW, "one after the other?"


test_many_sleep_at_once.timeout = 40


def test_a_client_that_does_not_wait(g):
    """Its coroutine is ended; nothing is left in progress."""
    before = g.metric("gateway_requests_in_progress")
    clients = [g.connect() for _ in range(20)]
    for c in clients:
        c.send(b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until(lambda: g.metric("gateway_requests_in_progress") >= before + 20,
          "twenty sleep")
    for c in clients:
        c.close()
    until(lambda: g.metric("gateway_requests_in_progress") <= before,
          "none is left")


def test_time_limit_of_a_hook(g):
    begin = time.monotonic()
    one_of(g.get("/limit").status, (500, 503, 504))
    assert time.monotonic() - begin < 4 * SLOW, "took too long"


def test_fetch(g):
    r = g.get("/fetch/x")
    equal(r.status, 200, r.text)
    equal(r.json()["status"], 200)
    equal(r.json()["type"], "application/json")
    assert '"path": "/internal/x"' in r.json()["body"], r


def test_fetch_with_everything(g):
    seen = g.get("/post").json()
    equal((seen["method"], seen["body"]), ("POST", "hello"))
    equal(seen["path"], "/internal/x?a=b%20c")
    equal(seen["headers"]["x-a"], "1")


def test_fetch_that_fails(g):
    for what in ("drop", "hang", "raw/two-cl", "die/1000", "big/200000",
                 "raw/junk", "drip/100/2"):
        begin = time.monotonic()
        r = g.get("/fetch/" + what)
        equal(r.status, 502, what)
        assert time.monotonic() - begin < 5 * SLOW, what + " took too long"
    equal(g.get("/fetch/status/404").json()["status"], 404)
    equal(g.get("/fetch/chunked/1000").json()["status"], 200)


def test_fetch_cannot_be_split(g):
    before = len(g.up.requests)
    r = g.get("/split")
    if r.status == 200:
        equal(r.json(), {"a": False, "b": False})
    seen = [n for r in g.up.requests[before:] for n, _ in r.fields]
    assert "X-Evil" not in seen, seen


def test_fetch_in_check_then_forward(g):
    before = len(g.up.requests)
    equal(g.get("/both").json()["path"], "/internal/y")
    equal([r.target for r in g.up.requests[before:]],
          ["/internal/x", "/internal/y"])


def test_fetch_under_load(g):
    wrong = []

    def one():
        with g.connect() as c:
            for n in range(20):
                r = c.get("/fetch/x%d" % n)
                if r.status != 200 or "/internal/x%d\"" % n not in (
                        r.json()["body"]):
                    wrong.append(r)
    threads = [threading.Thread(target=one) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong[:2]


test_fetch_under_load.timeout = 40
