"""A slow upstream is 504 in time; a slow but living one is waited for."""

import socket
import time

from gw import SLOW, Gateway, Upstream, equal, until

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@", head_timeout = 0.6,
                               idle_timeout = 0.6, connect_timeout = 0.6 }
local patient = gateway.upstream { "http://127.0.0.1:@UP@", name = "patient" }
gateway.get("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path } },
  handle = app:to "/internal/{path}" })
gateway.get("/patient/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path } },
  handle = patient:to "/internal/{path}" })
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""


class Both(Gateway):
    def __init__(self):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port)

    def stop(self):
        self.up.stop()
        return super().stop()


def setup():
    return Both()


def test_no_head_is_504(g):
    begin = time.monotonic()
    with g.connect() as c:
        r = c.get("/p/hang")
        equal(r.status, 504)
        equal(r.get("content-type"), "application/problem+json")
        assert time.monotonic() - begin < 4 * SLOW, "too late"
        equal(c.get("/ok").status, 200, "the connection goes on")


def test_it_is_not_asked_twice(g):
    """What an upstream may have begun is not repeated."""
    before = len(g.up.requests)
    equal(g.get("/p/hang").status, 504)
    equal(len(g.up.requests) - before, 1, "requests at the upstream")


def test_a_body_that_stalls_is_cut(g):
    with g.connect() as c:
        c.send(b"GET /p/drip/10/3 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        r = c.response()
        equal(r.status, 200)
        assert not r.complete, "it looks whole: %r" % r


def test_slow_and_steady_arrives(g):
    r = g.get("/p/drip/8/0.2")
    assert r.complete and r.status == 200, r
    equal(len(r.body), 8)


def test_others_are_not_held_up(g):
    with g.connect() as slow:
        slow.send(b"GET /patient/slow/2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        begin = time.monotonic()
        for _ in range(20):
            equal(g.get("/ok").status, 200)
        assert time.monotonic() - begin < 2 * SLOW, "held up"
        equal(slow.response().status, 200)


def test_a_client_that_goes_away_ends_the_request(g):
    c = g.connect()
    before = len(g.up.requests)
    c.send(b"GET /patient/hang HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until(lambda: len(g.up.requests) > before, "the upstream is asked")
    number = g.up.requests[-1].connection
    c.close()
    sock = [x.sock for x in g.up.open if x.number == number][0]
    sock.settimeout(5 * SLOW)
    equal(sock.recv(1), b"", "end of the upstream connection")


def test_a_backlog_that_is_full_is_504_or_502():
    """Nobody accepts: the connection itself takes too long."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    fill = []
    for _ in range(4):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(("127.0.0.1", port))
        fill.append(s)
    g = Gateway(POLICY, UP=port)
    with g:
        assert g.get("/p/x").status in (502, 504), "connected?"
    for s in fill + [listener]:
        s.close()
