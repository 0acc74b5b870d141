"""A cgroup for each run: what holds for all processes of a program together.

Most of it needs a cgroup v2 that hands memory and pids down, and root to make
one in it: tests/vm.sh has that."""

import json
import os
import signal
import time

from gw import (HERE, Gateway, Skip, children, equal, free_port, own_pki,
                program_for_all, read, sh, spawn, tmpdir, until, witness,
                witness_left, witness_log, write)

SOMEBODY = 4321
POLICY = """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.process { workers = 1, @PROCESS@ }
gateway.listen { address = "127.0.0.1:@PORT@", certificate = "@DIR@/server.crt",
  key = "@DIR@/server.key", client_ca = "@DIR@/clients.pem" }
gateway.admin { address = "127.0.0.1:@ADMIN@" }
gateway.get("/ok", { authorize = id.anyone, handle = function()
  return gateway.text "ok" end })
local function command(name, args, options)
  options.name, options.args = name, args
  options.program, options.sha256 = "@PROGRAM@", "@SHA@"
  options.write, options.read = @WRITES@, "/proc"
  local c = gateway.command(options)
  gateway.get("/" .. name, { authorize = id.anyone, handle = function()
    local r = c:run {}
    return gateway.json { ok = r.ok, why = r.why, signal = r.signal,
      out = r.stdout, starved = r.out_of_memory } end })
end
command("where", { "show", "/proc/self/cgroup" }, {})
command("fits", { "hold", "2" }, { memory = "64M", memory_total = "48M" })
command("bursts", { "hold", "8" }, { memory = "64M", memory_total = "48M" })
command("fork", { "fork", "40" }, { processes = 10 })
command("stay", { "stubborn", "@PIDS@" }, { timeout = 60 })
command("slow", { "stubborn", "@PIDS@" }, { timeout = 0.3, kill_after = 0.1 })
"""


def ours(name="gateway-e2e", owner=0):
    """A cgroup for a gateway of ours: as a service manager makes one."""
    root = "/sys/fs/cgroup"
    if not os.path.exists(root + "/cgroup.controllers"):
        root += "/unified"
    try:
        has = read(root + "/cgroup.subtree_control").decode().split()
    except OSError:
        has = []
    if not {"memory", "pids"} <= set(has):
        raise Skip("cgroup v2 hands no memory and pids down here")
    if os.geteuid() != 0:
        raise Skip("only root can make a cgroup")
    path = "%s/%d-%s" % (root, free_port(), name)
    os.mkdir(path)
    for file in ("", "/cgroup.procs", "/cgroup.subtree_control"):
        os.chown(path + file, owner, owner)
    return path


def inside(path, *more):
    return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', path, *more]


class Own(Gateway):
    """A gateway in a cgroup `own`; None: where we are."""

    def __init__(self, own, process="", wrap=(), owner=0, **keys):
        self.own, self.owner = own, owner
        self.pids = witness_log()
        path, sha = witness()
        super().__init__(POLICY, head=False, prepare=self.files, PROGRAM=path,
                         SHA=sha, PIDS=self.pids, binary=program_for_all(),
                         PROCESS=process,
                         wrap=inside(own, *wrap) if own else wrap, **keys)

    def files(self, folder):
        own_pki(folder, self.owner)

    def run(self, name):
        r = self.get("/" + name)
        equal(r.status, 200, name + ": " + r.text)
        return r.json()

    def begin(self, name):
        """Asks for a run without waiting for its end."""
        c = self.waits = self.connect()
        c.send(b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % name.encode())

    def stopped(self):
        """Ends, and gives its cgroup back as it was."""
        self.stop()
        equal(branches(self.own), [], "cgroups that are left")
        equal(read(self.own + "/cgroup.subtree_control").split(), [])
        remove(self.own)


def branches(path):
    return sorted(e.name for e in os.scandir(path) if e.is_dir())


def boxes(path):
    """The cgroups of runs."""
    return sorted(b for branch in branches(path) if "programs" in branch
                  for b in branches(os.path.join(path, branch)) if b != "self")


def remove(path):
    def gone():
        try:
            os.rmdir(path)
        except OSError:
            return False
        return True
    until(gone, "the cgroup is empty")


def ready(g):
    return [r for r in g.log() if r.get("event") == "ready"][-1]


def test_limits_of_a_tree():
    own = ours()
    with Own(own, 'must_have = { "cgroup" }') as g:
        equal("cgroup" in ready(g)["missing_layers"], False)
        equal(g.metric("gateway_sandbox_layer", layer="cgroup"), 1)
        equal("cgroup" in g.admin("/readyz").text, False)
        equal(branches(own), ["gateway.programs.1", "gateway.self"])
        r = g.run("where")
        equal(r["ok"], True, r)
        place = r["out"].split("::")[1].strip()
        equal(os.path.basename(os.path.dirname(place)), "gateway.programs.1")
        equal(g.run("where")["out"], r["out"], "a clean one is used again")
        # eight processes, each within `memory`, all of them not
        r = g.run("fits")
        equal((r["ok"], r["out"]), (True, "2\n"), r)
        r = g.run("bursts")
        equal((r["ok"], r["starved"], r["signal"]), (False, True, 9), r)
        equal(r["why"], "out of memory (memory_total)")
        until(lambda: len(boxes(own)) == 2, "where memory ran out is gone")
        equal(g.run("fits")["ok"], True)
        ends = {r["command"]: r for r in g.log()
                if r.get("event") == "exec" and r.get("phase") == "end"}
        equal(ends["bursts"]["result"], "out_of_memory")
        assert 20 << 10 < ends["fits"]["peak_kib"] <= 48 << 10, ends["fits"]
        equal(g.metric("gateway_exec_runs_total", result="out_of_memory"), 1)
        # the program itself is one of ten
        equal(g.run("fork")["out"], "9\n")
        r = g.run("slow")
        equal((r["why"], r["signal"]), ("timeout", 9), r)
        until(lambda: not witness_left(g.pids), "its processes are gone")
        equal(g.get("/ok").status, 200)
        g.stopped()


test_limits_of_a_tree.timeout = 60


def test_processes_of_root():
    """Root has no other limit of processes."""
    own = ours()
    with Own(own, 'user = "root"') as g:
        equal("processes" in ready(g)["missing_layers"], False)
        equal(g.run("fork")["out"], "9\n")
        g.stopped()


def test_an_ordinary_user():
    own = ours(owner=SOMEBODY)
    with Own(own, 'must_have = { "cgroup" }', owner=SOMEBODY,
             wrap=["setpriv", "--reuid", str(SOMEBODY), "--regid",
                   str(SOMEBODY), "--clear-groups"]) as g:
        equal(g.run("fork")["out"], "9\n")
        equal(g.run("bursts")["starved"], True)
        g.stopped()


def test_a_broker_that_is_killed():
    own = ours()
    with Own(own) as g:
        g.begin("stay")
        until(lambda: os.path.exists(g.pids)
              and len(witness_left(g.pids)) == 3, "three processes", 10)
        os.kill(g.broker(), signal.SIGKILL)
        until(lambda: not witness_left(g.pids), "they are gone", 10)
        until(lambda: branches(own) == ["gateway.programs.2", "gateway.self"],
              "its cgroups, too", 20)
        g.wait_ready(1)
        equal(g.run("where")["ok"], True)
        g.stopped()


test_a_broker_that_is_killed.timeout = 60


def test_a_supervisor_that_is_killed():
    """Its next one in the same cgroup ends what it left."""
    own = ours()
    with Own(own) as g:
        g.begin("stay")
        until(lambda: os.path.exists(g.pids)
              and len(witness_left(g.pids)) == 3, "three processes", 10)
        os.kill(g.pid, signal.SIGKILL)
        g.process.wait()
        until(lambda: not read(own + "/cgroup.events").startswith(
            b"populated 1"), "nobody is left", 20)
    equal(branches(own), ["gateway.programs.1", "gateway.self"])
    # nobody may enter a cgroup that hands controllers down
    for path in (own + "/gateway.programs.1", own):
        write(path + "/cgroup.subtree_control", "-memory -pids")
    os.mkdir(own + "/gateway.programs.77")
    process = spawn(["sleep", "60"])
    write(own + "/gateway.programs.77/cgroup.procs", str(process.pid))
    with Own(own, 'must_have = { "cgroup" }') as g:
        equal(process.wait(10), -signal.SIGKILL)
        equal(branches(own), ["gateway.programs.1", "gateway.self"])
        equal(g.run("where")["ok"], True)
        g.stopped()


test_a_supervisor_that_is_killed.timeout = 60


def test_a_container_without_clone3():
    """Then a child goes into its cgroup itself."""
    own = ours()
    refuse = os.path.join(tmpdir("refuse"), "refuse")
    sh(os.environ.get("CC", "cc").split()[0], "-O1", "-o", refuse,
       os.path.join(HERE, "refuse.c"))
    with Own(own, 'must_have = { "cgroup" }',
             wrap=[refuse, "clone3"]) as g:
        equal(g.run("fork")["out"], "9\n")
        equal(g.run("bursts")["starved"], True)
        g.stopped()


def layer(own, *wrap):
    done = sh(*inside(own, *wrap), program_for_all(), "version", "--json",
              check=False)
    return {x["name"]: x for x in json.loads(done.out)["layers"]}["cgroup"]


def test_whose_cgroup_it_is():
    own = ours()
    equal(layer(own)["have"], True)
    equal(branches(own), [], "a look changes nothing")
    # somebody else is in it
    process = spawn(["sleep", "60"])
    write(own + "/cgroup.procs", str(process.pid))
    said = layer(own)
    equal((said["have"], said["why"]),
          (False, "other processes are in our cgroup"))
    process.kill()
    process.wait()
    # not ours to write
    said = layer(own, "setpriv", "--reuid", str(SOMEBODY), "--clear-groups")
    equal((said["have"], said["why"]),
          (False, "our cgroup: Permission denied"))
    remove(own)
    # systemd's, until it says that it is not
    own = ours("x.service")
    said = layer(own)
    equal((said["have"], said["why"]),
          (False, "our cgroup is the service manager's: Delegate= is off"))
    os.setxattr(own, "user.delegate", b"1")
    equal(layer(own)["have"], True)
    remove(own)


def test_it_is_demanded():
    own = ours()
    process = spawn(["sleep", "60"])
    write(own + "/cgroup.procs", str(process.pid))
    with Own(own, 'must_have = { "cgroup" }', wait=False) as g:
        equal(g.process.wait(20), 1)
        assert "must_have: cgroup is missing here (other processes are in " \
            "our cgroup)" in g.tail(), g.tail()
        equal(branches(own), [])
    with Own(own) as g:
        equal("cgroup" in ready(g)["missing_layers"], True)
        equal(g.run("fits")["ok"], True)
        equal(g.run("bursts")["ok"], True, "nothing counts them together")
        equal(branches(own), [])
    process.kill()
    process.wait()
    remove(own)


test_it_is_demanded.timeout = 40


def test_exec_on_the_command_line():
    own = ours()
    with Own(None) as g:
        done = sh(*inside(own), program_for_all(), "exec", "--json", "--policy",
                  g.policy, "bursts", check=False)
        r = json.loads(done.out)
        equal((r["ok"], r["out_of_memory"]), (False, True), r)
    equal(branches(own), [])
    equal(read(own + "/cgroup.subtree_control").split(), [])
    remove(own)


def test_a_program_ends_before_us():
    """Where memory runs out, with a cgroup or without."""
    def score(pid):
        return int(read("/proc/%d/oom_score_adj" % pid))

    with Own(None) as g:
        own = score(g.pid)
        g.begin("stay")
        until(lambda: os.path.exists(g.pids)
              and len(witness_left(g.pids)) == 3, "three processes", 10)
        for pid in witness_left(g.pids):
            equal(score(pid), own + (1000 - own) // 2)
        for pid in (g.pid, *children(g.pid)):
            equal(score(pid), own)


def test_room_that_a_run_leaves_to_the_next():
    """What lies in memory after a run is not counted for the next."""
    own = ours()
    with Own(own) as g:
        for _ in range(20):
            equal(g.run("where")["ok"], True)
        assert len(boxes(own)) <= 2, boxes(own)
        g.stopped()
