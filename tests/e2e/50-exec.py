"""Running a program: results, codes, caps, standard input, queues."""

import hashlib
import json
import os
import shutil
import threading
import time

from gw import (SLOW, Gateway, equal, gateway_cli, one_of, programs,
                read, tmpdir, until, witness, witness_left, witness_log,
                witness_runs)

POLICY = """
local function command(name, options)
  options.name, options.program, options.sha256 = name, "@PROGRAM@", "@SHA@"
  options.write, options.read = @WRITES@, "/proc"
  return gateway.command(options)
end
local small = gateway.integer(0, 255)
local record = command("record", { args = { "record", "@RECORD@", "fixed",
  gateway.slot "n", gateway.slot("m", "--size=") },
  slots = { n = gateway.integer(1, 999), m = gateway.integer(1, 999) } })
local exit = command("exit", { args = { "exit", gateway.slot "code" },
  slots = { code = small } })
local abort = command("abort", { args = { "abort" } })
local spew = command("spew", { args = { "spew", gateway.slot "n" },
  slots = { n = gateway.integer(0, 10000000) }, stdout = "64K" })
local wait = command("wait", { args = { "wait", gateway.slot "s" },
  slots = { s = gateway.integer(0, 60) }, timeout = 0.5, kill_after = 0.5 })
local single = command("single", { args = { "wait", "1" }, concurrency = 1,
  queue = 1 })
local long = command("long", { args = { "wait", "60" }, timeout = 60 })
local stubborn = command("stubborn", { args = { "stubborn", "@PIDS@" },
  timeout = 0.5, kill_after = 0.5 })
local orphan = command("orphan", { args = { "orphan", "@PIDS@" } })
local sum = gateway.command { name = "sum", program = "/usr/bin/sha256sum",
  stdin = "1M" }
local yes = gateway.command { name = "true", program = "/bin/true" }
local hungry = command("hungry", { args = { "spew", "100" }, cpu = 1,
  memory = "64M", files = 16 })

local function run(path, command, slots)
  gateway.get(path, { authorize = id.anyone,
    validate = { query = slots or {} },
    handle = function(request)
      local values = {}
      for name in pairs(slots or {}) do values[name] = request.query[name] end
      local r = command:run(values)
      return gateway.json { ok = r.ok, why = r.why, code = r.code,
        signal = r.signal, out = #r.stdout, err = r.stderr,
        text = #r.stdout < 1000 and r.stdout or "", timed_out = r.timed_out,
        truncated = r.truncated, usage = r.usage ~= nil }
    end })
end
run("/record", record, { n = gateway.integer(1, 99999),
                         m = gateway.integer(1, 99999) })
run("/exit", exit, { code = small })
run("/abort", abort)
run("/spew", spew, { n = gateway.integer(0, 10000000) })
run("/wait", wait, { s = gateway.integer(0, 60) })
run("/single", single)
run("/long", long)
run("/stubborn", stubborn)
run("/orphan", orphan)
run("/true", yes)
run("/hungry", hungry)
gateway.post("/sum", { authorize = id.anyone,
  validate = { body = gateway.bytes "8M" }, limits = { body_size = nil },
  handle = function(request)
    local r = sum:run({}, { stdin = request.body })
    return gateway.json { ok = r.ok, why = r.why, out = r.stdout } end })
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""


class Witnessed(Gateway):
    def __init__(self):
        self.record, self.pids = witness_log(), witness_log()
        path, sha = witness()
        super().__init__(POLICY, PROGRAM=path, SHA=sha, RECORD=self.record,
                         PIDS=self.pids)

    def left(self):
        """Pids that the stubborn program wrote and that still live."""
        return witness_left(self.pids)


def setup():
    return Witnessed()


def test_a_run(g):
    before = len(witness_runs(g.record))
    r = g.get("/record?n=7&m=42")
    equal(r.status, 200, r.text)
    got = r.json()
    equal((got["ok"], got["why"], got["code"], got["timed_out"],
           got["truncated"], got["usage"]), (True, "", 0, False, False, True))
    argv = [bytes.fromhex(a).decode()
            for a in witness_runs(g.record)[before]["argv"]]
    equal(argv[1:], ["record", g.record, "fixed", "7", "--size=42"])
    assert '"argv"' in got["text"] or got["out"] > 900, got


def test_a_program_of_the_system(g):
    equal(g.get("/true").json()["ok"], True)


def test_a_slot_out_of_its_schema_does_not_run(g):
    before = read(g.record)
    r = g.get("/record?n=1000&m=1").json()
    equal((r["ok"], r.get("code") in (None, 0, -1)), (False, True))
    assert "n" in r["why"], r
    equal(read(g.record), before, "runs")


def test_exit_codes(g):
    for code in (0, 1, 3, 127, 255):
        r = g.get("/exit?code=%d" % code).json()
        equal((r["ok"], r["code"]), (code == 0, code))
        if code:
            assert str(code) in r["why"], r


def test_a_signal(g):
    r = g.get("/abort").json()
    equal((r["ok"], r["signal"]), (False, 6))
    assert r["why"], r


def test_stdout_is_capped(g):
    equal(g.get("/spew?n=65536").json()["ok"], True)
    r = g.get("/spew?n=5000000").json()
    equal((r["ok"], r["truncated"]), (False, True))
    assert 65000 <= r["out"] <= 65536, r["out"]
    equal(g.get("/spew?n=0").json()["out"], 0)


def test_stdin_from_the_body(g):
    for body in (b"", b"hello", bytes(range(256)) * 4000, b"x" * (1 << 20)):
        r = g.request("POST", "/sum", [], body).json()
        equal(r["ok"], True, r["why"])
        equal(r["out"].split()[0], hashlib.sha256(body).hexdigest())
    r = g.request("POST", "/sum", [], b"x" * ((1 << 20) + 1))
    if r.status == 200:
        equal(r.json()["ok"], False)


def test_a_timeout(g):
    begin = time.monotonic()
    r = g.get("/wait?s=30").json()
    equal((r["ok"], r["timed_out"]), (False, True))
    assert "timeout" in r["why"] or "time" in r["why"], r
    assert time.monotonic() - begin < 4 * SLOW, "too late"
    equal(g.get("/wait?s=0").json()["ok"], True)


def test_one_that_ignores_term_is_killed_with_all_it_started(g):
    begin = time.monotonic()
    r = g.get("/stubborn").json()
    equal((r["ok"], r["timed_out"]), (False, True))
    assert time.monotonic() - begin < 5 * SLOW, "too late"
    equal(len(witness_runs(g.pids)) >= 3, True, "it had children")
    until(lambda: not g.left(), "nothing is left behind")


def test_what_it_leaves_behind_is_killed(g):
    r = g.get("/orphan").json()
    equal(r["ok"], True, r["why"])
    until(lambda: not g.left(), "nothing is left behind")


def test_a_queue_that_is_full(g):
    """One runs, one waits, the third is told at once."""
    results = []

    def one():
        begin = time.monotonic()
        results.append((g.get("/single").json(), time.monotonic() - begin))
    threads = [threading.Thread(target=one) for _ in range(5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    good = [r for r, _ in results if r["ok"]]
    full = [(r, s) for r, s in results if not r["ok"]]
    equal((len(good), len(full)), (2, 3))
    for r, seconds in full:
        assert "queue" in r["why"] or "busy" in r["why"], r
        assert seconds < 0.9 * SLOW, "it waited %.1f s" % seconds


def test_a_client_that_goes_away_ends_the_program(g):
    c = g.connect()
    c.send(b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n")
    broker = g.broker()
    until(lambda: programs(broker), "it runs")
    c.close()
    until(lambda: not programs(broker), "it is ended", 10)


def test_many_at_once(g):
    wrong = []

    def one():
        with g.connect() as c:
            for _ in range(10):
                r = c.get("/true").json()
                if not r["ok"] and "queue" not in r["why"]:
                    wrong.append(r)
    threads = [threading.Thread(target=one) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong[:3]
    until(lambda: not programs(g.broker()), "no zombie is left")


test_many_at_once.timeout = 40


def test_others_go_on_meanwhile(g):
    with g.connect() as c:
        c.send(b"GET /single HTTP/1.1\r\nHost: localhost\r\n\r\n")
        begin = time.monotonic()
        for _ in range(10):
            equal(g.get("/ok").status, 200)
        assert time.monotonic() - begin < 1 * SLOW, "held up"
        equal(c.response().status, 200)


def test_an_audit_record_for_each_run(g):
    mark = g.mark()
    g.get("/record?n=77&m=78", who="camera")
    lines = until(lambda: len(g.lines('"exec"', "record", since=mark)) >= 2
                  and g.lines('"exec"', "record", since=mark), "two records")
    records = [json.loads(line) for line in lines]
    equal([r["phase"] for r in records], ["start", "end"])
    equal(records[0]["command"], "record")
    for r in records[:1]:
        text = json.dumps(r)
        assert "77" in text and "78" in text, r
        assert "camera" in text, r
    g.wait_line('"access"', records[0]["request"], since=mark)
    mark = g.mark()
    g.get("/exit?code=3")
    line = g.wait_line('"exec"', '"end"', since=mark)[0]
    equal(json.loads(line)["code"], 3)


def test_the_command_line_runs_one_too(g):
    done = gateway_cli("exec", "--policy", g.policy, "record", "n=5", "m=6")
    equal(done.returncode, 0, done.err)
    assert '"argv"' in done.out, done.out
    argv = [bytes.fromhex(a).decode()
            for a in witness_runs(g.record)[-1]["argv"]]
    equal(argv[-2:], ["5", "--size=6"])
    before = read(g.record)
    for argv in (("record", "n=;id", "m=6"), ("record", "n=5"),
                 ("record", "n=5", "m=6", "x=7"), ("nothing", "n=5"),
                 ("exit", "code=3")):
        done = gateway_cli("exec", "--policy", g.policy, *argv)
        one_of(done.returncode, (1, 2), repr(argv))
        assert done.err, "nothing is said: %r" % (argv,)
    equal(read(g.record), before, "runs")


def test_without_a_command_there_is_no_broker():
    with Gateway("""
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
""") as g:
        equal(g.role("broker"), [])


def test_replacing_the_program_changes_nothing():
    """Pinned and opened at start: what lies there later is not run."""
    path, sha = witness()
    folder = tmpdir("moving")
    mine = folder + "/program"
    shutil.copy(path, mine)
    record = witness_log()
    with Gateway("""
local c = gateway.command { name = "c", program = "@MINE@", sha256 = "@SHA@",
  args = { "record", "@RECORD@" }, write = @WRITES@ }
gateway.get("/run", { authorize = id.anyone, handle = function()
  local r = c:run {} return gateway.json { ok = r.ok, why = r.why } end })
""", MINE=mine, SHA=sha, RECORD=record) as g:
        equal(g.get("/run").json()["ok"], True)
        shutil.copy("/bin/true", folder + "/other")
        os.rename(folder + "/other", mine)
        equal(g.get("/run").json()["ok"], True)
        with open(mine, "wb") as f:
            f.write(read("/bin/false"))
        equal(g.get("/run").json()["ok"], True)
        equal(len(witness_runs(record)), 3, "runs")
        g.reload(good=False)  # its hash is another one now
        equal(g.get("/run").json()["ok"], True)
