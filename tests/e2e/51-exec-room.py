"""What a program finds around it: next to nothing."""

import os

from gw import (ASAN, Gateway, equal, read, witness, witness_log, witness_runs)

POLICY = """
local function record(name, options)
  options.name, options.program, options.sha256 = name, "@PROGRAM@", "@SHA@"
  options.args = { "record", "@RECORD@" }
  options.write, options.read = @WRITES@, "/proc"
  local command = gateway.command(options)
  gateway.get("/" .. name, { authorize = id.anyone, handle = function()
    local r = command:run {}
    return gateway.json { ok = r.ok, why = r.why } end })
end
record("plain", {})
record("dressed", { env = { LANG = "C", COLOUR = "red blue" }, cwd = "/usr",
  memory = "128M", files = 20, file_size = "1M", cpu = 3 })
"""


class Witnessed(Gateway):
    def __init__(self):
        self.record = witness_log()
        path, sha = witness()
        env = dict(os.environ, SECRET_TOKEN="do-not-leak", LD_DEBUG_X="1")
        super().__init__(POLICY, PROGRAM=path, SHA=sha, RECORD=self.record,
                         env=env)

    def seen(self, path):
        before = len(witness_runs(self.record))
        r = self.get(path).json()
        equal(r["ok"], True, r["why"])
        return witness_runs(self.record)[before]


def setup():
    return Witnessed()


def test_an_empty_environment(g):
    equal(g.seen("/plain")["env"], [])


def test_the_declared_environment(g):
    env = sorted(bytes.fromhex(e).decode() for e in g.seen("/dressed")["env"])
    equal(env, ["COLOUR=red blue", "LANG=C"])


def test_three_descriptors(g):
    equal(g.seen("/plain")["fds"], [0, 1, 2])
    with g.connect() as c:  # not those of a connection either
        equal(c.get("/plain").status, 200)
        equal(witness_runs(g.record)[-1]["fds"], [0, 1, 2])


def test_a_session_of_its_own(g):
    seen = g.seen("/plain")
    equal((seen["session"], seen["group"]), (seen["pid"], seen["pid"]))


def test_no_privileges(g):
    seen = g.seen("/plain")
    equal(seen["no_new_privs"], 1)
    if os.geteuid() == 0:
        assert seen["uid"] != 0 and seen["euid"] != 0 and seen["gid"] != 0, (
            seen)
        equal(seen["groups"], 0, "supplementary groups")


def test_limits(g):
    seen = g.seen("/plain")
    equal(seen["core"], 0)
    assert 0 < seen["files"] <= 64, seen
    assert seen["memory"] > 0 and seen["cpu"] > 0, seen
    seen = g.seen("/dressed")
    equal((seen["files"], seen["memory"], seen["cpu"], seen["file_size"]),
          (20, 128 << 20, 3, 1 << 20))


def test_signals_are_as_at_birth(g):
    seen = g.seen("/plain")
    equal((seen["blocked"], seen["sigpipe_ignored"]), (0, 0))


def test_the_working_directory(g):
    equal(bytes.fromhex(g.seen("/plain")["cwd"]), b"/")
    equal(bytes.fromhex(g.seen("/dressed")["cwd"]), b"/usr")


def test_argv_0_is_the_program(g):
    name = bytes.fromhex(g.seen("/plain")["argv"][0]).decode()
    assert "witness" in name or name == "plain", name


def test_our_own_processes_are_bare_too(g):
    """Workers and broker: empty environment, unprivileged, not dumpable."""
    for pid in g.workers() + [g.broker()]:
        status = read("/proc/%d/status" % pid).decode()
        fields = dict(line.split(":\t", 1) for line in status.splitlines()
                      if ":\t" in line)
        equal(fields["NoNewPrivs"].strip(), "1")
        if os.geteuid() == 0:
            uids = fields["Uid"].split()
            assert "0" not in uids, "uid of %d: %r" % (pid, uids)
            equal(fields["Groups"].strip(), "", "groups of %d" % pid)
            equal(int(fields["CapEff"], 16), 0, "capabilities")
            equal(int(fields["CapPrm"], 16), 0, "capabilities")
            names = [v.split(b"=")[0] for v in read(
                "/proc/%d/environ" % pid).split(b"\0") if v]
            equal([n for n in names if not (ASAN and b"SAN_OPTIONS" in n)], [])
        # a process that is not dumpable belongs to root in /proc
        equal(os.stat("/proc/%d/mem" % pid).st_uid, 0)
    if os.geteuid() == 0:
        fds = os.listdir("/proc/%d/fd" % g.broker())
        for fd in fds:
            target = os.readlink("/proc/%d/fd/%s" % (g.broker(), fd))
            assert ".key" not in target and "policy" not in target, target
