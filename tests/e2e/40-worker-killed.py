"""A worker killed under load: only what was in flight on it fails."""

import os
import signal

from gw import Gateway, Load, Upstream, alive, equal, until

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
gateway.get("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path } },
  handle = app:to "/internal/{path}" })
"""


def gateway(workers):
    up = Upstream().start()
    g = Gateway(POLICY, workers=workers, UP=up.port)
    g.up = up
    return g


def replaced(g, count, dead):
    def done():
        now = g.workers()  # looked at once: it changes between two looks
        return len(now) == count and dead not in now

    until(done, "a new worker", 10)


def test_under_load():
    with gateway(2) as g:
        load = Load(g, "/p/x", clients=8)
        load.wait(100)
        dead = g.workers()[0]
        os.kill(dead, signal.SIGKILL)
        replaced(g, 2, dead)
        load.wait(200)
        bad = load.stop()
        assert len(bad) <= 8, "%d failed: %r" % (len(bad), bad[:4])
        assert all("EOF" in b or "Reset" in b or "Broken" in b for b in bad), (
            bad)
        g.wait_line("worker", str(dead))
        g.up.stop()


def test_requests_on_the_other_worker_finish():
    with gateway(2) as g:
        clients = []
        for other in g.workers():  # while one stands still, its peer accepts
            os.kill(other, signal.SIGSTOP)
            clients += [g.connect() for _ in range(6)]
            os.kill(other, signal.SIGCONT)
        for c in clients:
            c.send(b"GET /p/slow/1.5 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: len(g.up.requests) == 12, "all are in flight")
        dead = g.workers()[0]
        os.kill(dead, signal.SIGKILL)
        good = bad = 0
        for c in clients:
            try:
                equal(c.response().status, 200)
                good += 1
            except EOFError:
                bad += 1
            c.close()
        equal((good, bad), (6, 6), "of the other worker, of the dead one")
        replaced(g, 2, dead)
        g.up.stop()


def test_the_only_worker():
    with gateway(1) as g:
        dead = g.workers()[0]
        os.kill(dead, signal.SIGKILL)
        replaced(g, 1, dead)
        with g.connect() as c:  # waited in the listening socket
            equal(c.get("/ok").status, 200)
        g.up.stop()


def test_again_and_again():
    """With back-off, but it always comes back."""
    with gateway(1) as g:
        for _ in range(4):
            until(g.workers, "a worker")
            dead = g.workers()[0]
            os.kill(dead, signal.SIGKILL)
            replaced(g, 1, dead)
        with g.connect(timeout=20) as c:
            equal(c.get("/ok").status, 200)
        equal(len(g.lines("ended: ")), 4, "only those we killed have ended")
        g.up.stop()


test_again_and_again.timeout = 40


def test_a_worker_that_hangs():
    """STOP is as good as a hang: it is killed, named and replaced."""
    with gateway(2) as g:
        dead = g.workers()[0]
        os.kill(dead, signal.SIGSTOP)
        until(lambda: dead not in g.workers(), "it is killed", 20)
        replaced(g, 2, dead)
        g.wait_line(str(dead))
        equal(g.get("/ok").status, 200)
        g.up.stop()


test_a_worker_that_hangs.timeout = 40


def test_the_supervisor_dies():
    """Nobody is left behind when it is killed."""
    g = gateway(2)
    pids = g.workers()
    assert len(pids) == 2, pids
    g.process.kill()
    g.process.wait(5)
    until(lambda: not any(alive(p) for p in pids), "the workers end too", 10)
    g.up.stop()
