"""Upstream connections are kept, shared, bounded, and retried where safe."""

import threading

from gw import Gateway, Upstream, build, equal, until

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@", keepalive = 4,
                               keepalive_timeout = @KEEP@ }
gateway.any("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path },
               body = gateway.stream "1M" },
  handle = app:to "/internal/{path}" })
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""


class Both(Gateway):
    def __init__(self, keep="60"):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port, KEEP=keep)

    def stop(self):
        self.up.stop()
        return super().stop()


def setup():
    return Both()


def test_one_connection_serves_many_requests(g):
    before = g.up.connections
    for _ in range(5):
        with g.connect() as c:
            for _ in range(10):
                equal(c.get("/p/x").status, 200)
    assert g.up.connections - before <= 1, "%d connections" % (
        g.up.connections - before)


def test_bodies_do_not_end_the_reuse(g):
    before = g.up.connections
    with g.connect() as c:
        for target in ("/p/chunked/5000", "/p/big/100K", "/p/status/404"):
            c.get(target)
        c.request("POST", "/p/x", body=b"hello")
        c.request("HEAD", "/p/x")
        c.get("/p/x")
    assert g.up.connections - before <= 1, "a new connection"


def test_what_says_close_is_not_reused(g):
    with g.connect() as c:
        for _ in range(3):
            equal(c.get("/p/bye").status, 200)
            equal(c.get("/p/x").status, 200)


def test_no_more_than_keepalive_are_kept(g):
    threads = [threading.Thread(target=g.get, args=("/p/slow/0.5",))
               for _ in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    until(lambda: len(g.up.open) <= 4, "at most four are kept")


def test_idle_ones_are_closed_after_a_while():
    with Both("0.5") as g:
        equal(g.get("/p/x").status, 200)
        until(lambda: not g.up.open, "the idle connection is closed")


def test_a_closed_one_is_noticed(g):
    """The upstream closed it while it lay in the pool."""
    for _ in range(5):
        equal(g.get("/p/hangup").status, 200)
        equal(g.get("/p/x").status, 200)


def test_get_on_a_stale_connection_is_retried_once(g):
    for method in ("GET", "HEAD", "DELETE"):
        equal(g.get("/p/stale").status, 200)
        before = len(g.up.requests)
        r = g.request(method, "/p/x")
        equal(r.status, 200, method)
        seen = [x.method for x in g.up.requests[before:]]
        equal(seen, [method, method], "requests at the upstream")


def test_post_on_a_stale_connection_is_not_repeated(g):
    equal(g.get("/p/stale").status, 200)
    before = len(g.up.requests)
    r = g.request("POST", "/p/x", body=b"hello")
    equal(r.status, 502)
    equal(len(g.up.requests) - before, 1, "requests at the upstream")


def test_a_new_connection_that_drops_is_not_retried(g):
    for _ in range(8):  # empties the pool of what stale left there
        g.get("/p/bye")
    before = len(g.up.requests)
    equal(g.get("/p/drop").status, 502)
    seen = [r.target for r in g.up.requests[before:]]
    assert len(seen) <= 2, seen  # two only where the first was a reused one


def test_an_answer_cut_off_spoils_its_connection(g):
    """A client gone in the middle of a body: that connection is not reused."""
    c = g.connect(rcvbuf=4096)
    before = len(g.up.requests)
    c.send(build("GET", "/p/big/64M"))
    until(lambda: len(g.up.requests) > before, "the upstream is asked")
    number = g.up.requests[-1].connection
    c.close()
    until(lambda: number not in [x.number for x in list(g.up.open)],
          "it is closed", 10)
    for _ in range(5):
        r = g.get("/p/x")
        equal((r.status, r.json()["path"]), (200, "/internal/x"))


def test_pipelined_clients_share_fairly(g):
    with g.connect() as c:
        c.send(b"".join(build("GET", "/p/x%d" % n) for n in range(30)))
        for n in range(30):
            equal(c.response().json()["path"], "/internal/x%d" % n)
