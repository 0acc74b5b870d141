"""Upstreams by name: c-ares resolves on the loop."""

import time

from gw import SLOW, Gateway, Upstream, equal

POLICY = """
local app = gateway.upstream { "http://localhost:@UP@" }
local gone = gateway.upstream { "http://no-such-host.invalid:@UP@",
                                connect_timeout = 2 }
gateway.get("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path } },
  handle = app:to "/internal/{path}" })
gateway.get("/gone", { authorize = id.anyone, handle = gone })
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


def test_localhost(g):
    with g.connect() as c:
        for _ in range(5):
            equal(c.get("/p/x").status, 200)
    equal(g.up.connections, 1, "connections")


def test_a_name_that_is_not_there(g):
    with g.connect() as c:
        c.send(b"GET /gone HTTP/1.1\r\nHost: localhost\r\n\r\n")
        begin = time.monotonic()
        for _ in range(10):
            equal(g.get("/ok").status, 200)
        assert time.monotonic() - begin < 2 * SLOW, "others were held up"
        assert c.response().status in (502, 504), "found?"
