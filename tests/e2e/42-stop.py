"""SIGTERM drains; a second one stops at once; nothing is left behind."""

import signal
import time

from gw import (SLOW, Client, Gateway, Upstream, alive, children, equal, socket,
                tmpdir, until)

POLICY = """
gateway.process { drain = @DRAIN@ }
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.listen { address = "127.0.0.1:@PORT@",
  certificate = "@PKI@/server.crt", key = "@PKI@/server.key",
  client_ca = "@PKI@/clients.pem" }
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
gateway.get("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path } },
  handle = app:to "/internal/{path}" })
"""

OK = """
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""

SLOWLY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.get("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path } },
  handle = app:to "/internal/{path}" })
"""


def gateway(drain=30):
    up = Upstream().start()
    g = Gateway('local gateway = require "gateway"\n'
                'local id = require "gateway.identity"\n' + POLICY, head=False,
                UP=up.port, DRAIN=drain)
    g.up = up
    return g


def in_flight(g, target="/p/slow/1.5"):
    c = g.connect()
    before = len(g.up.requests)
    c.send(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % target.encode())
    until(lambda: len(g.up.requests) > before, "it is in flight")
    return c


def test_term_lets_requests_finish():
    g = gateway()
    pids = [g.pid] + children(g.pid)
    with in_flight(g) as c, g.connect() as idle:
        equal(idle.get("/ok").status, 200)
        g.signal(signal.SIGTERM)
        assert idle.is_closed(10), "an idle connection stays"
        r = c.response()
        equal((r.status, r.get("connection")), (200, "close"))
    equal(g.process.wait(10 * SLOW), 0, "exit code")
    until(lambda: not any(alive(p) for p in pids), "no process is left")
    g.up.stop()


def test_no_new_connections_while_draining():
    g = gateway()
    with in_flight(g) as c:
        g.signal(signal.SIGTERM)

        def closed():
            try:
                g.connect().close()
                return False
            except OSError:
                return True
        until(closed, "the listening socket is closed")
        equal(c.response().status, 200)
    equal(g.process.wait(10 * SLOW), 0, "exit code")
    g.up.stop()


def test_a_long_body_is_finished():
    g = gateway()
    with in_flight(g, "/p/drip/10/0.1") as c:
        g.signal(signal.SIGTERM)
        r = c.response()
        assert r.complete and len(r.body) == 10, r
    equal(g.process.wait(10 * SLOW), 0, "exit code")
    g.up.stop()


def test_draining_has_an_end():
    g = gateway(drain=1)
    with in_flight(g, "/p/hang"):
        begin = time.monotonic()
        g.signal(signal.SIGTERM)
        g.process.wait(8 * SLOW)
        assert time.monotonic() - begin < 6 * SLOW, "too late"
    g.up.stop()


def test_a_second_term_stops_at_once():
    g = gateway()
    pids = [g.pid] + children(g.pid)
    with in_flight(g, "/p/hang"):
        g.signal(signal.SIGTERM)
        until(lambda: g.lines("drain") or not g.alive(), "it drains")
        begin = time.monotonic()
        g.signal(signal.SIGTERM)
        g.process.wait(5 * SLOW)
        assert time.monotonic() - begin < 3 * SLOW, "too late"
    until(lambda: not any(alive(p) for p in pids), "no process is left")
    g.up.stop()


def test_int_is_the_same():
    g = gateway()
    g.signal(signal.SIGINT)
    equal(g.process.wait(5 * SLOW), 0, "exit code")
    g.up.stop()


def test_the_address_is_free_again():
    g = gateway()
    port = g.port
    g.stop()
    again = Gateway(OK, port=port)
    with again:
        equal(again.get("/ok").status, 200)
    g.up.stop()


def test_the_next_instance_keeps_its_unix_socket():
    path = tmpdir("admin") + "/sock"
    admin = '\ngateway.admin { address = "unix:%s" }\n' % path

    def healthy():
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(10 * SLOW)
        s.connect(path)
        with Client(sock=s) as c:
            equal(c.get("/healthz").status, 200)

    up = Upstream().start()
    first = Gateway(admin + SLOWLY, UP=up.port)
    first.up = up
    healthy()
    with in_flight(first) as c:
        first.signal(signal.SIGTERM)
        until(lambda: first.lines('"drain"'), "it drains")
        with Gateway(admin + OK):  # a rolling restart
            healthy()
            equal(c.response().status, 200)
            equal(first.process.wait(10 * SLOW), 0, "exit code")
            healthy()
    up.stop()


def test_an_address_that_is_taken_is_named():
    first = gateway()
    with first:
        second = Gateway(OK, port=first.port, wait=False)
        equal(second.process.wait(10 * SLOW), 1, "exit code")
        assert second.lines(str(first.port)), second.tail()
        equal(first.get("/ok").status, 200)
    first.up.stop()
