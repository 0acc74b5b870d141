"""Jobs: programs that go on when the request that started them is over."""

import base64
import os
import re
import shutil
import signal
import time

from gw import (Gateway, OpensslCa, PKI, alive, build, cmdline, equal,
                programs, read, tmpdir, until, write)

POLICY = """
gateway.admin { address = "127.0.0.1:@ADMIN@" }
gateway.jobs { @JOBS@ }
local function command(name, program, options)
  options.name, options.program = name, program
  options.timeout = options.timeout or 60
  return gateway.command(options)
end
local seq = command("seq", "/usr/bin/seq", { args = { gateway.slot "n" },
  slots = { n = gateway.integer(0, 1000000) }, stdout = "8M" })
local sleep = command("sleep", "/bin/sleep", { args = { gateway.slot "s" },
  slots = { s = gateway.integer(0, 600) }, concurrency = 20, queue = 0 })
local short = command("short", "/bin/sleep", { args = { "50" }, timeout = 0.3 })
local narrow = command("narrow", "/bin/sleep", { args = { "50" },
  concurrency = 1, queue = 1 })
local cat = command("cat", "/bin/cat", { stdin = "1M" })
local binary = command("binary", "/usr/bin/head", {
  args = { "-c", "3000", "/bin/ls" }, read = "/bin/ls" })
local bad = command("bad", "/bin/cat", { args = { "/does/not/exist" } })
local tail = command("tail", "/usr/bin/tail", {
  args = { "-n", "+1", "-f", "/etc/passwd" }, read = "/etc/passwd" })
local yes = command("yes", "/usr/bin/yes", { stdout = "100M" })
local file = command("file", "/bin/cat", { args = { gateway.slot "f" },
  slots = { f = gateway.file_below("/etc", {
    pattern = "^[a-z]{1,30}$", maxLength = 30 }) } })

local function post(path, run, more)
  local route = more or {}
  route.authorize, route.handle = id.anyone, run
  gateway.post(path, route)
end
post("/seq/{n}", function(request) return seq:job { n = request.path.n } end,
  { validate = { path = { n = gateway.integer(0, 2000000) } } })
post("/sleep/{s}", function(request) return sleep:job { s = request.path.s } end,
  { validate = { path = { s = gateway.integer(0, 600) } } })
post("/short", function() return short:job {} end)
post("/narrow", function() return narrow:job {} end)
post("/cat", function(request)
    return cat:job({}, { stdin = request.body }) end,
  { validate = { body = gateway.bytes "1M" } })
post("/flow", function(request)
    return cat:job({}, { stdin = request.stream }) end,
  { validate = { body = gateway.stream "1M" } })
post("/binary", function() return binary:job {} end)
post("/bad", function() return bad:job {} end)
post("/tail", function() return tail:job {} end)
post("/yes", function() return yes:job {} end)
post("/file/{f}", function(request) return file:job { f = request.path.f } end,
  { validate = { path = { f = file.slots.f } } })
post("/wrong", function() return short:job({}, { wait = true }) end)
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""

HEAD = """\
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen {
  address = "127.0.0.1:@PORT@",
  certificate = "@PKI@/server.crt", key = "@PKI@/server.key",
  client_ca = "@PKI@/clients.pem",
}
"""

ID = re.compile(r"/jobs/[0-9a-f]{32}")


class Jobs(Gateway):
    def __init__(self, jobs="", workers=1, policy=POLICY, **keys):
        # large jobs, told to many at once on a machine with much to do
        keys.setdefault("listen", "limits = { hook_cpu = 2 }")
        super().__init__(policy, workers=workers, JOBS=jobs, **keys)

    def post(self, path, body=None, **keys):
        headers = [("Content-Type", "a/b")] if body is not None else []
        return self.request("POST", path, headers, body, **keys)

    def begin(self, path, body=None, **keys):
        """Starts one, and returns where it is."""
        r = self.post(path, body, **keys)
        equal(r.status, 202, r.text)
        where = r.get("location")
        assert ID.fullmatch(where), where
        equal("/jobs/" + r.json()["id"], where)
        return where

    def ended(self, where, **keys):
        def look():
            job = self.get(where, **keys).json()
            return job if job["state"] == "ended" else None
        return until(look, "the job ends", 15)

    def delete(self, where, **keys):
        return self.request("DELETE", where, **keys)

    def clear(self, *places, **keys):
        for where in places:
            until(lambda: self.delete(where, **keys).status in (204, 404),
                  "it is gone", 15)

    def programs(self, name=""):
        return [p for p in programs(self.broker()) if name in cmdline(p)]


def setup():
    return Jobs('max = 30, per_identity = 6, output = "4M"')


def test_the_life_of_a_job(g):
    where = g.begin("/seq/3")
    job = g.ended(where)
    equal((job["id"], job["command"]), (where[6:], "seq"))
    equal((job["ok"], job["why"], job["code"], job["signal"],
           job["timed_out"], job["truncated"]), (True, "", 0, 0, False, False))
    equal((job["stdout"], job["stderr"]), ("1\n2\n3\n", ""))
    for name in ("created", "started", "ended"):
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",
                            job[name]), job
    assert job["created"] <= job["started"] <= job["ended"], job
    equal(set(job["usage"]), {"ms", "cpu_ms", "rss"})
    equal(g.get(where).get("cache-control"), "no-store")
    equal(g.delete(where).status, 204)
    equal(g.get(where).status, 404)
    equal(g.delete(where).status, 404)


def test_it_goes_on_without_its_client(g):
    with g.connect() as c:
        c.send(build("POST", "/sleep/1"))
        where = c.response("POST").get("location")
    equal(g.get(where).json()["state"], "running")
    equal(g.ended(where)["ok"], True)
    g.clear(where)


def test_output_so_far(g):
    where = g.begin("/tail")
    until(lambda: "root:" in g.get(where).json()["stdout"], "a line")
    job = g.get(where).json()
    equal((job["state"], "code" in job, "ended" in job),
          ("running", False, False))
    equal(g.delete(where).status, 202)
    job = g.ended(where)
    equal((job["ok"], job["why"], job["signal"]), (False, "cancelled", 15))
    assert "root:" in job["stdout"], job
    until(lambda: not g.programs("tail"), "the program is gone")
    g.clear(where)


def test_large_output_and_bytes_that_are_no_text(g):
    where = g.begin("/seq/300000")
    job = g.ended(where)
    equal(job["stdout"], "".join("%d\n" % i for i in range(1, 300001)))
    g.clear(where)
    where = g.begin("/binary")
    job = g.ended(where)
    with open("/bin/ls", "rb") as f:
        equal(base64.b64decode(job["stdout_base64"]), f.read(3000))
    equal("stdout" in job, False)
    g.clear(where)


def test_many_ask_at_once(g):
    """More than the channel holds: all get it, and it does not break."""
    where = g.begin("/seq/200000")
    want = g.ended(where)["stdout"]
    clients = [g.connect() for _ in range(40)]
    for c in clients:
        c.send(build("GET", where))
    for c in clients:
        r = c.response()
        equal(r.status, 200, r.text)
        equal(r.json()["stdout"] == want, True)
        c.close()
    equal(g.lines("congested"), [])
    g.clear(where)


test_many_ask_at_once.timeout = 60


def test_failures(g):
    where = g.begin("/bad")
    job = g.ended(where)
    equal((job["ok"], job["code"], job["why"]), (False, 1, "exit code 1"))
    assert "No such file" in job["stderr"], job
    late = g.begin("/short")
    job = g.ended(late)
    equal((job["ok"], job["timed_out"], job["why"]), (False, True, "timeout"))
    big = g.begin("/yes")
    job = g.ended(big)
    equal((job["ok"], job["truncated"], len(job["stdout"])),
          (False, True, 4 << 20))
    g.clear(where, late, big)


def test_stdin(g):
    where = g.begin("/cat", b"hello" * 1000)
    equal(g.ended(where)["stdout"], "hello" * 1000)
    g.clear(where)
    mark = g.mark()
    equal(g.post("/cat", b"x" * 65537).status, 502)
    g.wait_line("the stdin of a job is at most 65536 bytes", since=mark)
    equal(g.post("/flow", b"x").status, 500)


def test_what_is_not_started_is_no_job(g):
    mark = g.mark()
    equal(g.post("/seq/1000001").status, 502)
    g.wait_line("exec_refused", "slot n", since=mark)
    r = g.post("/file/nothing")
    equal((r.status, r.get("location")), (502, None))
    equal(g.post("/wrong").status, 500)


def test_one_that_waits(g):
    first, second = g.begin("/narrow"), g.begin("/narrow")
    equal(g.get(second).json()["state"], "waiting")
    r = g.post("/narrow")
    equal((r.status, r.get("retry-after")), (503, "1"))
    equal(g.delete(second).status, 204, "it had not begun")
    second = g.begin("/narrow")
    equal(g.delete(first).status, 202)
    g.ended(first)
    until(lambda: g.get(second).json()["state"] == "running", "it begins")
    g.delete(second)
    g.ended(second)
    g.clear(first, second)


def test_of_another_identity(g):
    where = g.begin("/sleep/30", who="camera")
    for who in ("ops", "boss", "shop", "guest"):
        equal(g.get(where, who=who).status, 404, who)
        equal(g.delete(where, who=who).status, 404, who)
    equal(g.get(where, who="camera").json()["state"], "running")
    equal(g.delete(where, who="camera").status, 202)
    g.ended(where, who="camera")
    g.clear(where, who="camera")


def test_a_name_is_worth_what_its_ca_is():
    """The same subject from another trusted CA is somebody else."""
    folder = tmpdir("other-ca")
    other = OpensslCa(folder, "other")
    for name in ("ops-of-other", "ops-again"):
        crt, key = other.leaf(name, "/OU=ops/CN=ops")
        shutil.copy(crt, os.path.join(PKI, name + ".crt"))
        shutil.copy(key, os.path.join(PKI, name + ".key"))
    write(folder + "/both.pem", read(PKI + "/ca.crt") + read(other.crt))
    with Jobs(policy=HEAD.replace("@PKI@/clients.pem", folder + "/both.pem") +
              POLICY, head=False) as g:
        where = g.begin("/sleep/30")
        mark = g.mark()
        equal(g.get(where, who="ops-of-other").status, 404)
        g.wait_line('"access"', '"identity":"CN=ops,OU=ops"', since=mark)
        equal(g.get(where).status, 200)
        where = g.begin("/sleep/30", who="ops-of-other")
        equal(g.get(where).status, 404)
        equal(g.get(where, who="ops-again").status, 200, "a renewed one")


def test_ids_that_are_none(g):
    for path, status in (("/jobs/" + "0" * 32, 404), ("/jobs/x", 422),
                         ("/jobs/" + "A" * 32, 422), ("/jobs", 404),
                         ("/jobs/" + "0" * 33, 422)):
        equal(g.get(path).status, status, path)
        equal(g.delete(path).status, status, path)
    equal(g.request("PUT", "/jobs/" + "0" * 32).status, 405)


def test_of_clients_without_a_subject():
    """Their names are elsewhere in their certificates: they are not all one."""
    folder = tmpdir("no-subject")
    ca = OpensslCa(folder, "nameless")
    for name in ("a", "b"):
        crt, key = ca.leaf("nameless-" + name, "/",
                           "critical,DNS:%s.example" % name)
        shutil.copy(crt, os.path.join(PKI, "nameless-%s.crt" % name))
        shutil.copy(key, os.path.join(PKI, "nameless-%s.key" % name))
    with Jobs(policy=HEAD.replace("@PKI@/clients.pem", ca.crt) + POLICY,
              head=False) as g:
        where = g.begin("/sleep/30", who="nameless-a")
        equal(g.get(where, who="nameless-b").status, 404)
        equal(g.get(where, who="nameless-a").status, 200)
        g.wait_line('"exec"', '"start"', '"identity":"a.example"')
        g.wait_line('"access"', '"identity":"b.example"')
        g.delete(where, who="nameless-a")
        g.clear(where, who="nameless-a")


def test_too_many_of_one_identity(g):
    before = g.metric("gateway_exec_runs_total", result="over_identity_limit")
    places = [g.begin("/sleep/30") for _ in range(6)]
    r = g.post("/sleep/30")
    equal((r.status, r.get("retry-after")), (429, "1"))
    equal(g.metric("gateway_exec_runs_total", result="over_identity_limit"),
          before + 1)
    other = g.begin("/sleep/30", who="camera")
    equal(len(g.programs("sleep")), 7)
    for where in places:
        equal(g.delete(where).status, 202)
    g.clear(*places)
    g.delete(other, who="camera")
    g.clear(other, who="camera")
    g.clear(g.begin("/seq/1"))
    equal(g.programs(), [])


def test_records(g):
    mark = g.mark()
    where = g.begin("/seq/2")
    g.ended(where)
    for phase in ("start", "end"):
        g.wait_line('"exec"', '"phase":"%s"' % phase,
                    '"job":"%s"' % where[6:], since=mark)
    before = g.metric("gateway_exec_jobs_total")
    g.clear(where, g.begin("/seq/2"))
    equal(g.metric("gateway_exec_jobs_total"), before + 1)


def test_the_store_is_full():
    with Jobs("max = 3, per_identity = 3") as g:
        places = [(g.begin("/sleep/30", who=who), who)
                  for who in ("ops", "camera", "shop")]
        r = g.post("/seq/1", who="guest")
        equal((r.status, r.get("retry-after")), (503, "1"))
        assert g.metric("gateway_exec_runs_total", result="queue_full") == 1
        where, who = places[0]
        g.delete(where, who=who)
        g.clear(where, who=who)
        g.begin("/seq/1", who="guest")


def test_they_are_forgotten():
    with Jobs("keep = 0.2") as g:
        where = g.begin("/seq/1")
        until(lambda: g.get(where).status == 404, "it is forgotten", 10)


def test_who_may_see_those_of_others():
    with Jobs('others = id.ou "managers"') as g:
        where = g.begin("/sleep/30", who="camera")
        equal(g.get(where, who="ops").status, 404)
        equal(g.get(where, who="boss").json()["command"], "sleep")
        equal(g.delete(where, who="ops").status, 404)
        equal(g.delete(where, who="boss").status, 202)
        equal(g.ended(where, who="camera")["why"], "cancelled")
    with Jobs('authorize = id.ou "ops", path = "/work/jobs"') as g:
        r = g.post("/seq/1")
        assert r.get("location").startswith("/work/jobs/"), r
        equal(g.get(r.get("location")).status, 200)
        equal(g.get(r.get("location"), who="camera").status, 403)


def test_a_worker_does_not_take_them_along():
    """The broker keeps them: any worker can be asked, and may die."""
    with Jobs(workers=2) as g:
        places = [g.begin("/sleep/50") for _ in range(4)]
        for _ in range(5):
            for where in places:
                equal(g.get(where).json()["state"], "running")
        for worker in g.workers():
            os.kill(worker, signal.SIGKILL)

        def seen():
            try:
                return g.get(places[0]).json()["state"] == "running"
            except (OSError, EOFError):
                return False
        until(seen, "another worker tells", 15)
        equal(len(g.programs("sleep")), 4)
        for where in places:
            equal(g.delete(where).status, 202)
            equal(g.ended(where)["why"], "cancelled")


def test_they_end_with_the_broker():
    with Jobs() as g:
        where = g.begin("/sleep/50")
        pids = g.programs("sleep")
        equal(len(pids), 1)
        os.kill(g.broker(), signal.SIGKILL)
        until(lambda: not alive(pids[0]), "the program ends")

        def gone():
            try:
                return g.get(where).status == 404
            except (OSError, EOFError):
                return False
        until(gone, "nobody knows it", 15)


def drained(policy):
    return POLICY.replace("gateway.admin", "gateway.process { workers = 1,"
                          " drain = %g }\ngateway.admin" % policy)


def test_a_reload_keeps_them():
    """The broker of the old policy answers for its jobs, until it forgets
    them; it runs nothing any more."""
    with Jobs("keep = 3", policy=HEAD + drained(0.3), head=False) as g:
        where = g.begin("/sleep/2")
        other = g.begin("/sleep/100")
        pid = g.programs("sleep")[0]
        mark = g.mark()
        for _ in range(2):  # the second policy has an elder's elder
            g.reload()
            equal(g.get(where).json()["state"], "running")
            until(lambda: len(g.role("worker")) == 1, "the old worker leaves")
        equal(g.get(where, who="camera").status, 404)
        until(lambda: len(g.role("broker")) == 2, "one without jobs leaves")
        equal(alive(pid), True)
        os.kill(g.role("worker")[0], signal.SIGKILL)  # the next knows them, too
        g.expected = ["worker 1 was killed"]
        until(lambda: g.get(where).status == 200, "the next worker serves")
        equal(g.delete(other).status, 202)
        g.wait_line('"exec"', '"phase":"end"', '"result":"ok"', since=mark,
                    seconds=10)
        until(lambda: g.get(where).json()["state"] == "ended", "it has ended")
        equal(g.get(where).json()["ok"], True)
        equal(g.get(other).json()["ok"], False)
        equal(g.delete(where).status, 204)
        equal(g.get(where).status, 404)
        until(lambda: len(g.role("broker")) == 1, "the old broker leaves", 10)
        equal(g.get(other).status, 404)


def test_a_stop_lets_them_end_within_the_drain():
    with Jobs(policy=HEAD + drained(10), head=False) as g:
        g.begin("/sleep/1")
        g.signal(signal.SIGTERM)
        equal(g.process.wait(15), 0)
        g.wait_line('"exec"', '"phase":"end"', '"result":"ok"')
    with Jobs(policy=HEAD + drained(0.5), head=False) as g:
        where = g.begin("/sleep/50")
        waits = [g.begin("/narrow"), g.begin("/narrow")]
        pids = g.programs("sleep")
        begin = time.monotonic()
        g.expected = ["drain is over"]
        g.signal(signal.SIGTERM)
        g.process.wait(20)
        assert time.monotonic() - begin < 15, "it waited for %s" % where
        until(lambda: not any(alive(p) for p in pids), "all programs end")
        g.wait_line('"phase":"refused"', "cancelled before it started")
        equal(len(waits), 2)


def test_without_a_declaration():
    with Gateway("""
local c = gateway.command { name = "c", program = "/bin/true" }
gateway.get("/run", { authorize = id.anyone,
  handle = function() return c:job {} end })
""") as g:
        equal(g.get("/run").status, 500)
        g.wait_line("declare gateway.jobs {} first")
        equal(g.get("/jobs/" + "0" * 32).status, 404)
