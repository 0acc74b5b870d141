"""Sandbox layers and posture: found out, told, and never silently less.

Each level of privilege is made here: root, an ordinary user, and containers
without privileges (bubblewrap; nothing needs Docker)."""

import json
import os
import re
import shutil
import signal
import socket

from gw import (BIN, HERE, TMP, Client, Gateway, Skip, children, equal,
                own_pki, program_for_all, read, sh, tmpdir, until)

FLOOR = {"no_new_privs", "seccomp", "landlock", "rlimits", "descriptors",
         "environment"}
NAMESPACES = {"user_namespace", "pid_namespace", "network_namespace",
              "ipc_namespace", "mount_namespace"}
EXTRA = NAMESPACES | {"uid", "cgroup", "scopes", "processes"}
SOMEBODY = 4321  # not 65534, which is how a namespace shows all others

POLICY = """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.process { workers = 1, @PROCESS@ }
gateway.listen { address = "127.0.0.1:@PORT@", certificate = "@DIR@/server.crt",
  key = "@DIR@/server.key", client_ca = "@DIR@/clients.pem" }
gateway.admin { address = "127.0.0.1:@ADMIN@" }
gateway.get("/ok", { authorize = id.anyone, handle = function()
  return gateway.text "ok" end })
@MORE@
"""

COMMAND = """
local c = gateway.command { name = "c", program = "/bin/true" }
gateway.get("/run", { authorize = id.anyone, handle = function()
  return gateway.json(c:run {}) end })
"""

USER = ["setpriv", "--reuid", str(SOMEBODY), "--regid", str(SOMEBODY),
        "--clear-groups"]
CONTAINER = ["bwrap", "--die-with-parent", "--ro-bind", "/", "/", "--proc",
             "/proc", "--dev", "/dev", "--unshare-pid", "--unshare-ipc",
             "--unshare-uts", "--cap-drop", "ALL"]
OWN = ["unshare", "-r", "-p", "--fork", "--mount-proc"]  # with all rights
LEVELS = {
    "root": [],
    "user": USER,
    # docker run --read-only --cap-drop ALL --security-opt no-new-privileges
    "container, root": CONTAINER,
    # the same with --user, and no user namespaces
    "container, user": USER + CONTAINER + ["--unshare-user", "--disable-userns"],
}


def level(name):
    if os.geteuid() != 0:
        raise Skip("only root can make the other levels")
    for program in ("setpriv", "bwrap"):
        if not shutil.which(program):
            raise Skip("%s is not installed" % program)
    return LEVELS[name]


def refuse(*names):
    """The launcher of a machine that lacks something."""
    path = os.path.join(TMP, "refuse")
    if not os.path.exists(path):
        part = path + ".%d" % os.getpid()
        sh(os.environ.get("CC", "cc").split()[0], "-O1", "-o", part,
           os.path.join(HERE, "refuse.c"))
        os.rename(part, path)
    return [path, ",".join(names)]


class Layered(Gateway):
    """A gateway below a chain of other programs, as another user perhaps."""

    def __init__(self, wrap=(), process="", more="", **keys):
        self.wrap = list(wrap)
        super().__init__(POLICY, head=False, prepare=self.own,
                         binary=program_for_all(), wrap=self.wrap,
                         PROCESS=process, MORE=more, **keys)

    def own(self, folder):
        own_pki(folder, SOMEBODY if "setpriv" in self.wrap else os.geteuid())

    def supervisor(self):
        """Below bubblewrap, which has two processes of its own."""
        pid = self.pid
        while b"bwrap" in read("/proc/%d/cmdline" % pid):
            pid = children(pid)[0]
        return pid

    def stop(self):
        if self.alive() and "bwrap" in self.wrap:
            os.kill(self.supervisor(), signal.SIGTERM)
            self.process.wait(20)
        return super().stop()

    def cli(self, command, *args):
        return sh(*self.wrap, program_for_all(), command, *args, self.policy,
                  check=False)

    def ended(self):
        """It did not start: the log."""
        equal(self.process.wait(20), 1, "exit (%s)" % self.tail())
        equal([r for r in self.log() if r.get("event") == "ready"], [])
        return self.tail()


def layers_of(done):
    return {x["name"]: x for x in json.loads(done.out)["layers"]}


def posture_of(done):
    return {x["name"]: x for x in json.loads(done.out)["posture"]}


def ready_as_json(g):
    sock = socket.create_connection(("127.0.0.1", g.admin_port), 10)
    with Client(sock=sock) as c:
        r = c.request("GET", "/readyz", [("Accept", "application/json")])
        equal(r.status, 200)
        return r.json()


# ---- each level ----

def told(name, missing, there):
    """One story from check, the log, /readyz, /metrics; and it serves."""
    with Layered(level(name), 'accept_missing = { "processes" }',
                 COMMAND) as g:
        lacks = set(g.wait_ready()[0]["missing_layers"])
        assert missing <= lacks, "%s: not missing: %r" % (name, missing - lacks)
        assert not there & lacks, "%s: missing: %r" % (name, there & lacks)
        seen = layers_of(g.cli("check", "--json"))
        equal(set(seen), FLOOR | EXTRA)
        equal({n for n in seen if not seen[n]["have"]}, lacks)
        equal({n for n in seen if seen[n]["floor"]}, FLOOR)
        for n in lacks:
            assert seen[n]["why"] and seen[n]["lost"] and seen[n]["mend"], n
        text = g.cli("check").out
        for n in lacks:
            assert any(line.split()[:1] == [n] and "missing: " in line
                       for line in text.split("\n")), text
        first, *rest = g.admin("/readyz").text.split("\n")
        equal(first, "ready")
        told = rest[0].partition("missing layers: ")[2] if rest[0] else ""
        equal(set(filter(None, told.split(", "))), lacks)
        equal(set(ready_as_json(g)["missing"]), lacks)
        for n in FLOOR | EXTRA:
            equal(g.metric("gateway_sandbox_layer", layer=n),
                  0 if n in lacks else 1, n)
        equal(g.get("/ok").text, "ok")
        equal(g.get("/run").json()["ok"], True, g.tail())


def test_as_root():
    told("root", set(), FLOOR | {"uid", "processes"})


def test_as_a_user():
    told("user", {"uid"}, FLOOR | {"processes"})


def test_as_root_in_a_container():
    told("container, root", NAMESPACES | {"uid", "cgroup", "processes"}, FLOOR)


def test_as_a_user_in_a_container():
    told("container, user", NAMESPACES | {"uid", "cgroup"},
         FLOOR | {"processes"})


def test_version_says_what_is_here():
    done = sh(*refuse("landlock"), BIN, "version", "--json")
    seen = layers_of(done)
    equal(set(seen), FLOOR | EXTRA)
    equal(seen["landlock"]["have"], False)
    equal(seen["landlock"]["why"],
          "landlock_create_ruleset: Function not implemented")
    equal(json.loads(done.out)["landlock_abi"], "0")
    text = sh(*refuse("unshare"), BIN, "version").out
    assert "missing: unshare(CLONE_NEWPID): Function not impl" in text, text


# ---- less than the floor ----

REFUSED = {"landlock": "every file", "seccomp": "every system call"}


def test_a_missing_floor_stops_the_start():
    for name, lost in REFUSED.items():
        g = Layered(refuse(name), wait=False)
        log = g.ended()
        for word in ("policy.lua:4: process: %s is missing here (" % name,
                     "Function not implemented", lost, "; run on",
                     "accept_missing = {", name):
            assert word in log, "%s: no %r in %s" % (name, word, log)
        done = g.cli("check")
        equal(done.returncode, 1, name)
        assert "process: %s is missing here" % name in done.err, done.err


def test_another_one_accepted_does_not_help():
    Layered(refuse("landlock"), 'accept_missing = { "seccomp", "cgroup" }',
            wait=False).ended()


def test_without_the_vital_ones_nothing_starts():
    for call, name in (("close_range", "descriptors"),
                       ("execveat", "environment"),
                       ("no_new_privs", "no_new_privs")):
        g = Layered(refuse(call), 'accept_missing = { "%s" }' % name,
                    wait=False)
        for said in (g.ended(), g.cli("check").err):
            assert "process: %s is missing here (" % name in said, said
            assert "Function not implemented): without it, " in said, said
            assert "accept_missing" not in said, said


def test_accepted_it_starts_with_a_warning():
    for name in REFUSED:
        with Layered(refuse(name), 'accept_missing = { "%s" }' % name,
                     COMMAND) as g:
            for generation in (1, 2):
                found = [r for r in g.log() if r.get("event") ==
                         "layer_missing" and r["layer"] == name]
                equal(len(found), generation, name + ": " + g.tail())
                equal(found[0]["level"], "warn")
                assert found[0]["lost"] and found[0]["mend"], found
                if generation == 1:
                    g.reload()
            assert name in g.wait_ready(1)[0]["missing_layers"]
            equal(g.metric("gateway_sandbox_layer", layer=name), 0)
            assert "(accepted if missing)" in g.cli("check").out
            equal(g.get("/ok").text, "ok")
            equal(g.get("/run").json()["ok"], True, g.tail())


def test_accepted_but_there_is_said_by_check():
    with Layered((), 'accept_missing = { "landlock" }') as g:
        equal([r for r in g.log() if r.get("event") == "layer_missing"], [])
        line = [x for x in g.cli("check").out.split("\n")
                if x.split()[:1] == ["landlock"]]
        assert line and "yes (accepted if missing)" in line[0], line
        equal(layers_of(g.cli("check", "--json"))["landlock"]["policy"],
              "accepted if missing")


def test_must_have_makes_an_extra_fatal():
    for wrap, name in ((level("user"), "uid"),
                       (refuse("unshare"), "pid_namespace"),
                       (refuse("landlock"), "scopes")):
        more = ', accept_missing = { "landlock" }'
        log = Layered(wrap, 'must_have = { "%s" }' % name + more,
                      wait=False).ended()
        assert "must_have: %s is missing here" % name in log, log
    log = Layered(refuse("landlock"), 'must_have = { "landlock" }, '
                  'accept_missing = { "landlock" }', wait=False).ended()
    assert "must_have: landlock is missing here" in log, log
    with Layered((), 'must_have = { "landlock", "uid" }') as g:
        equal(g.get("/ok").text, "ok")


def test_a_command_without_a_limit_of_processes():
    wrap = level("container, root")
    log = Layered(wrap, "", COMMAND, wait=False).ended()
    assert "process: processes is missing here" in log, log
    with Layered(wrap) as g:  # and no command
        equal(g.get("/ok").text, "ok")


def test_a_process_that_runs_as_root_has_no_other_uid():
    level("root")
    with Layered((), 'user = "root", accept_missing = { "processes" }') as g:
        assert "uid" in g.wait_ready()[0]["missing_layers"]
    log = Layered((), 'user = "root", must_have = { "uid" }',
                  wait=False).ended()
    assert "must_have: uid is missing here (process.user is root)" in log, log


def test_unknown_names():
    for key, name, hint in (
            ("accept_missing", "landlok", "did you mean landlock?"),
            ("accept_missing", "read_only_root", "write no_new_privs, seccomp"),
            ("must_have", "read_only_rot", "did you mean read_only_root?"),
            ("must_have", "everything", "masked_proc")):
        log = Layered((), '%s = { "%s" }' % (key, name), wait=False).ended()
        for word in ("policy.lua:4", key, name, hint):
            assert word in log, "no %r in %s" % (word, log)


# ---- posture ----

def audit(wrap, *args):
    done = sh(*wrap, program_for_all(), "audit", "--host", "--format", "json",
              *args, check=False)
    assert done.returncode in (0, 1), done.err
    return posture_of(done), done.returncode


def test_audit_reports_findings():
    """In the form of all audits: text, JSON and SARIF, and an exit code."""
    root, box = level("root"), level("container, root")
    found = json.loads(sh(*box, program_for_all(), "audit", "--host",
                          "--format", "json", check=False).out)
    by_rule = {f["rule"]: f for f in found["findings"]}
    mine = by_rule["host.not_root"]
    equal((mine["severity"], mine["at"], mine["suppressed"] if "suppressed"
           in mine else None), ("high", "host", None))
    assert mine["mend"].startswith("start as an ordinary user"), mine
    for layer in found["layers"]:
        rule = "host." + layer["name"]
        equal(rule in by_rule, not layer["have"], rule)
    equal(found["counts"]["high"], len([f for f in found["findings"]
                                        if f["severity"] == "high"]))

    lacks = refuse("landlock")
    done = sh(*lacks, program_for_all(), "audit", "--host", check=False)
    equal(done.returncode, 1, "a floor layer is missing")
    assert re.search(r"^host: high: the layer landlock is missing: .*; without"
                     r" it, .* \(host\.landlock\)\n    mend: run on Linux",
                     done.out, re.M), done.out
    assert done.out.startswith("sandbox layers here: "), done.out
    assert "landlock" not in done.out.splitlines()[0], done.out
    assert re.search(r"^\d+ high, \d+ medium, \d+ low, \d+ info;",
                     done.out.splitlines()[-1]), done.out

    sarif = json.loads(sh(*lacks, program_for_all(), "audit", "--host",
                          "--format", "sarif", check=False).out)
    results = sarif["runs"][0]["results"]
    assert "host.landlock" in [r["ruleId"] for r in results], results
    for level_, code in (("low", 1), ("never", 0)):
        done = sh(*root, program_for_all(), "audit", "--host", "--fail-on",
                  level_, check=False)
        equal(done.returncode, code, level_ + done.err)


def test_audit_of_a_policy_says_what_it_needs():
    """A layer that is accepted counts less; one that is not refuses."""
    lacks = refuse("landlock")
    with Layered(lacks, 'accept_missing = { "landlock" }') as g:
        done = g.cli("audit", "--host", "--format", "json")
        rows = {f["rule"]: f["severity"]
                for f in json.loads(done.out)["findings"]}
        equal(rows["host.landlock"], "medium")
        g.write(POLICY.replace("@PROCESS@", ""))
        done = g.cli("audit", "--host", "--format", "json")
        rows = {f["rule"]: f["severity"]
                for f in json.loads(done.out)["findings"]}
        equal((rows["host.landlock"], done.returncode), ("high", 1))
        assert "landlock" in done.err, done.err


def severity(wrap, name):
    return audit(wrap)[0][name]["severity"]


def test_who_we_are():
    equal(severity(level("root"), "not_root"), "low")
    equal(severity(level("user"), "not_root"), "fine")
    equal(severity(level("container, root"), "not_root"), "high")
    equal(severity(["unshare", "-U"], "not_root"), "fine")
    equal(severity(level("root"), "few_capabilities") != "fine", True)
    equal(severity(level("user"), "few_capabilities"), "fine")
    equal(severity(level("container, root"), "few_capabilities"), "fine")
    equal(severity(OWN, "few_capabilities"), "high")


def test_what_is_around_us():
    root, box = level("root"), level("container, user")
    equal(severity(root, "outer_seccomp"), "low")
    equal(severity(refuse("landlock"), "outer_seccomp"), "fine")
    equal(severity(root, "outer_no_new_privs"), "low")
    equal(severity(["setpriv", "--no-new-privs"], "outer_no_new_privs"), "fine")
    equal(severity(root, "read_only_root"), "low")
    equal(severity(box, "read_only_root"), "fine")
    equal(severity(box, "own_pids"), "fine")
    equal(severity(box, "masked_proc"), "fine")
    equal(severity(OWN, "read_only_root"), "medium")
    found, code = audit(level("container, root"))
    equal(found["masked_proc"]["severity"], "high")
    equal(code, 1)
    assert found["masked_proc"]["mend"], found


def test_doors_to_the_host():
    box, folder = level("container, user"), tmpdir("doors")
    equal(severity(box, "no_container_socket"), "fine")
    equal(severity(box, "no_host_mounts"), "fine")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(folder + "/s")
        found, code = audit(box + ["--tmpfs", "/run", "--bind", folder + "/s",
                                   "/run/docker.sock"])
    equal(found["no_container_socket"]["severity"], "high")
    equal(code, 1)
    found, code = audit(box + ["--tmpfs", "/mnt", "--bind", "/proc",
                               "/mnt/proc"])
    equal(found["no_host_mounts"]["severity"], "high")
    assert "/mnt/proc: another /proc" in found["no_host_mounts"]["what"], found


def test_what_everybody_can_write():
    g = Layered(())
    with g:
        equal(posture_of(g.cli("check", "--json"))["unshared_files"]
              ["severity"], "fine")
        os.chmod(g.dir, 0o777)
        found = posture_of(g.cli("check", "--json"))["unshared_files"]
        equal(found["severity"], "high")
        assert g.dir in found["what"] and found["mend"], found
        equal(audit((), g.policy)[0]["unshared_files"]["severity"], "high")
        mark = g.mark()
        g.reload()
        assert g.lines('"posture"', "unshared_files", since=mark), g.tail()
        g.write(POLICY.replace("@PROCESS@", 'must_have = {"unshared_files"}'))
        done = g.cli("check")
        equal(done.returncode, 1)
        assert "must_have: unshared_files: everybody" in done.err, done.err
        g.reload(good=False)
        os.chmod(g.dir, 0o755)


def test_the_log_and_check_say_it():
    with Layered(level("container, root")) as g:
        found = [r for r in g.log() if r.get("event") == "posture"]
        high = [r for r in found if r["name"] == "not_root"]
        equal([(r["severity"], r["level"]) for r in high], [("high", "warn")])
        assert high[0]["what"] and high[0]["mend"], high
        text = g.cli("check").out
        assert "posture" in text and "all processes are root" in text, text
        assert "mend: start as an ordinary user" in text, text


def test_must_have_makes_posture_fatal():
    root, box = level("root"), level("container, user")
    for wrap, name in ((root, "not_root"), (root, "outer_seccomp"),
                       (level("user"), "read_only_root")):
        log = Layered(wrap, 'must_have = { "%s" }' % name, wait=False).ended()
        assert "policy.lua:4: process: must_have: %s: " % name in log, log
        assert "; mend: " in log, log
    with Layered(box, 'must_have = { "not_root", "read_only_root", '
                 '"few_capabilities", "no_container_socket", '
                 '"outer_no_new_privs" }') as g:
        equal(g.get("/ok").text, "ok")
        assert "(must have)" in g.cli("check").out


def test_audit_is_told_what_to_look_at():
    equal(sh(BIN, "audit", "--host", "--colour", check=False).returncode, 2)
    done = sh(BIN, "audit", "--host", "/no/such.lua", check=False)
    equal(done.returncode, 1)
    assert "/no/such.lua" in done.err, done.err


def running(argument):
    """The processes of our copy of the gateway that were given this."""
    out = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        words = read("/proc/%s/cmdline" % pid).split(b"\0")
        if words[0] == program_for_all().encode() and argument in words:
            out.append(pid)
    return out


def test_the_tries_leave_nothing_behind():
    """No process, and no cgroup."""
    sh(program_for_all(), "version")
    until(lambda: not running(b"version"), "the end of the last try")
    for root, folders, _ in os.walk("/sys/fs/cgroup"):
        assert not [f for f in folders if f.startswith("gateway-try")], root
