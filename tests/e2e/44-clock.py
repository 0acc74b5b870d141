"""A machine without a clock: here, a gateway that was built in the year 2100."""

import os
import urllib.error
import urllib.request

import gw
from gw import Gateway, Skip, equal, refused

ROUTES = """
gateway.admin { address = "127.0.0.1:@ADMIN@" }
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""


class Later(Gateway):
    """The same program, whose day of build is still to come."""

    def __init__(self, policy):
        binary = os.path.join(gw.ROOT, "build", "clock", "gateway")
        if not os.path.exists(binary):
            raise Skip("make build/clock/gateway has not been run")
        super().__init__(policy, binary=binary)


def readyz(g):
    try:
        with urllib.request.urlopen(
                "http://127.0.0.1:%d/readyz" % g.admin_port, timeout=5) as r:
            return r.status, r.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def test_nobody_comes_in_and_it_is_not_ready():
    with Later(ROUTES) as g:
        g.wait_line("clock is not set", "no client is let in")
        equal((readyz(g)[0], readyz(g)[1].split("\n")[0]),
              (503, "the clock is not set"))
        assert refused(g.port, "ops"), "a client came in without a clock"
        g.wait_line('"handshake"', "clock is not set")


def test_floor_takes_the_day_of_the_build():
    """In 2100, all that these tests make has expired."""
    with Later(ROUTES) as g:
        g.tokens["WORKERS"] = '1, clock = "floor"'
        g.reload(ROUTES)
        g.wait_line("taking the day of the build for today")
        equal(readyz(g)[0], 200)
        assert refused(g.port, "ops"), "an expired client came in"
        g.wait_line('"handshake"', "it has expired")


def test_a_clock_that_is_set_is_used():
    with Gateway(ROUTES) as g:
        equal((readyz(g)[0], readyz(g)[1].split("\n")[0]), (200, "ready"))
        equal(g.get("/ok").status, 200)
        equal(g.lines("clock is not set"), [])
