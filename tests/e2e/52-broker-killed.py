"""The broker dies: programs die with it, and everything recovers."""

import os
import signal

from gw import (Gateway, alive, equal, until, witness, witness_left,
                witness_log)

POLICY = """
local function command(name, options)
  options.name, options.program, options.sha256 = name, "@PROGRAM@", "@SHA@"
  options.write, options.read = @WRITES@, "/proc"
  return gateway.command(options)
end
local exit = command("exit", { args = { "exit", "0" } })
local stubborn = command("stubborn", { args = { "stubborn", "@PIDS@" },
  timeout = 60 })
local function run(path, command)
  gateway.get(path, { authorize = id.anyone, handle = function()
    local r = command:run {}
    return gateway.json { ok = r.ok, why = r.why } end })
end
run("/exit", exit)
run("/stubborn", stubborn)
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""


def gateway():
    pids = witness_log()
    path, sha = witness()
    g = Gateway(POLICY, PROGRAM=path, SHA=sha, PIDS=pids)
    g.pids = pids
    return g


def left(g):
    return witness_left(g.pids)


def works(g):
    try:
        r = g.get("/exit")
        return r.status == 200 and r.json()["ok"]
    except (OSError, EOFError):
        return False


def test_it_comes_back():
    with gateway() as g:
        for _ in range(3):
            until(lambda: works(g), "programs run", 15)
            os.kill(g.broker(), signal.SIGKILL)
        until(lambda: works(g), "programs run again", 15)
        equal(g.get("/ok").status, 200)


test_it_comes_back.timeout = 60


def test_a_request_that_waits_is_told():
    with gateway() as g:
        with g.connect() as c:
            c.send(b"GET /stubborn HTTP/1.1\r\nHost: localhost\r\n\r\n")
            until(lambda: len(left(g)) == 3, "it runs")
            os.kill(g.broker(), signal.SIGKILL)
            try:
                r = c.response()
                if r.status == 200:
                    equal(r.json()["ok"], False)
            except EOFError:
                pass
        until(lambda: not left(g), "nothing is left behind", 10)
        until(lambda: works(g), "programs run again", 15)


def test_nothing_is_left_when_all_is_stopped():
    g = gateway()
    with g.connect() as c:
        c.send(b"GET /stubborn HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: len(left(g)) == 3, "it runs")
        g.signal(signal.SIGTERM)
        until(lambda: g.lines("drain") or not g.alive(), "it drains")
        g.signal(signal.SIGTERM)
        g.process.wait(10)
    until(lambda: not left(g), "nothing is left behind", 10)


def test_nothing_is_left_when_the_worker_dies():
    with gateway() as g:
        with g.connect() as c:
            c.send(b"GET /stubborn HTTP/1.1\r\nHost: localhost\r\n\r\n")
            until(lambda: len(left(g)) == 3, "it runs")
            os.kill(g.workers()[0], signal.SIGKILL)
            until(lambda: not left(g), "nothing is left behind", 10)
        until(lambda: works(g), "programs run again", 15)


def test_reload_while_a_program_runs():
    with gateway() as g:
        with g.connect() as c:
            c.send(b"GET /stubborn HTTP/1.1\r\nHost: localhost\r\n\r\n")
            until(lambda: len(left(g)) == 3, "it runs")
            old = g.broker()
            g.reload()
            until(lambda: works(g), "the new broker works")
            assert left(g), "the running program was ended by the reload"
        until(lambda: not left(g), "it ends with its client", 10)
        until(lambda: not alive(old), "the old broker ends", 15)


def test_a_broker_that_cannot_start_says_why_in_the_last_line():
    """It opens every program at its start, and here there is no room."""
    many = "".join('command("c%d", { args = { "exit", "0" } })\n' % i
                   for i in range(150))
    path, sha = witness()
    g = Gateway(POLICY + many, PROGRAM=path, SHA=sha, PIDS=witness_log(),
                wait=False, wrap=["prlimit", "--nofile=128:128"])
    with g:
        g.expected.append("fatal")
        equal(g.process.wait(20), 1, "exit (%s)" % g.tail())
        fatal = [r for r in g.log() if r.get("level") == "fatal"]
        equal(len(fatal), 1, g.tail())
        last = [r for r in g.log() if r.get("room") == "sup"][-1]
        equal(last["msg"], "cannot start: broker: " + fatal[0]["msg"])
        assert "Too many open files" in last["msg"], last
