"""A slow client is held back, not buffered; its slowness costs nobody else."""

import time

from gw import SLOW, Gateway, Upstream, build, equal, until

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.route({ "POST" }, "/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path },
               body = gateway.stream "1G" },
  handle = app:to "/internal/{path}" })
gateway.get("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path } },
  handle = app:to "/internal/{path}" })
gateway.post("/bytes", { authorize = id.anyone,
  validate = { body = gateway.bytes "64K" },
  handle = function(request) return gateway.text(#request.body .. "") end })
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""


class Both(Gateway):
    def __init__(self, listen=""):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port, listen=listen)

    def stop(self):
        self.up.stop()
        return super().stop()


def setup():
    return Both()


def settle(value):
    """Polls until the value has not changed for a while; returns it."""
    last = [value(), time.monotonic()]

    def still():
        now = value()
        if now != last[0]:
            last[0], last[1] = now, time.monotonic()
        return time.monotonic() - last[1] > 0.3 * SLOW
    until(still, "it settles", 10)
    return last[0]


def test_down_is_held_back(g):
    """The upstream can only be ahead by what buffers hold."""
    with g.connect(rcvbuf=4096) as c:
        g.up.sent = 0
        c.send(build("GET", "/p/big/256M"))
        equal(c.head().status, 200)
        ahead = settle(lambda: g.up.sent)
        assert ahead < 64 << 20, "the upstream was drained of %d" % ahead
        equal(g.get("/ok").status, 200, "another client")
        read = len(c.buffer)
        while read < ahead:
            c.buffer = b""
            c.fill()
            read += len(c.buffer)
        until(lambda: g.up.sent > ahead, "the upstream goes on")


def test_up_is_held_back(g):
    """An upstream that does not read holds the client back."""
    g.up.hold = True
    try:
        with g.connect() as c:
            c.sock.settimeout(1 * SLOW)
            c.send(build("POST", "/p/x", [("Content-Length", str(1 << 28))]))
            sent = 0
            try:
                while sent < 1 << 28:
                    sent += c.sock.send(b"x" * 65536)
            except (TimeoutError, OSError):
                pass
            assert sent < 64 << 20, "%d bytes were taken" % sent
            equal(g.get("/ok").status, 200, "another client")
    finally:
        g.up.hold = False


test_up_is_held_back.timeout = 40


def test_a_client_that_drips_is_served(g):
    data = build("POST", "/p/x", body=b"hello world")
    with g.connect() as c:
        for byte in data:
            c.send(bytes([byte]))
        equal(c.response().json()["body"], "hello world")


def test_a_slow_head_is_408():
    with Both("limits = { head = 0.5 }") as g:
        with g.connect() as c:
            c.send(b"GET /ok HTTP/1.1\r\nHost: loc")
            equal(c.response().status, 408)
            assert c.is_closed(), "still open"
        with g.connect() as c:  # one byte now and then does not help
            c.sock.settimeout(0.05)
            begin = time.monotonic()
            c.send(b"GET /ok HTTP/1.1\r\nHost: localhost\r\n")

            def ended():
                if not c.send(b"A: b\r\n"):
                    return True
                try:
                    return not c.fill() or b"408" in c.buffer
                except (TimeoutError, OSError):
                    return False
            until(ended, "the head is cut off", 4)
            assert time.monotonic() - begin < 4 * SLOW, "too late"


def test_a_slow_body_is_408():
    with Both("limits = { body_idle = 0.5 }") as g:
        for target in ("/bytes", "/p/x"):
            with g.connect() as c:
                c.send(build("POST", target, [("Content-Length", "10")])
                       + b"hel")
                equal(c.response().status, 408, target)
                assert c.is_closed(), "still open"


def test_an_idle_connection_is_closed():
    with Both("limits = { idle = 0.5 }") as g:
        with g.connect() as c:
            equal(c.get("/ok").status, 200)
            assert c.is_closed(), "still open"
            equal(c.closed, "end")


def test_a_new_connection_without_a_request_is_closed():
    with Both("limits = { head = 0.5, idle = 0.5 }") as g:
        with g.connect() as c:
            try:
                equal(c.response().status, 408)
            except EOFError:
                pass
            assert c.is_closed(), "still open"


def test_a_client_that_does_not_read_is_dropped():
    with Both("limits = { write_idle = 0.5 }") as g:
        c = g.connect(rcvbuf=4096)
        c.send(build("GET", "/p/big/64M"))
        until(lambda: g.up.connections == 1, "the upstream is asked")
        until(lambda: not g.up.open, "the upstream connection is given up", 10)
        c.sock.settimeout(5)
        try:
            while c.fill():
                c.buffer = b""
        except OSError:
            pass
        assert c.closed in ("cut", "reset"), c.closed
        c.close()


def test_slow_but_steady_is_not_idle():
    """body_idle counts between bytes, not for the whole body."""
    with Both("limits = { body_idle = 1 }") as g:
        with g.connect() as c:
            c.send(build("POST", "/p/x", [("Content-Length", "8")]))
            for _ in range(8):
                pause(0.2)
                c.send(b"x")
            equal(c.response().json()["bytes"], 8)


def pause(seconds):
    """The one place where time itself is what is tested."""
    time.sleep(seconds)
