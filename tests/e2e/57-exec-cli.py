"""gateway exec: one command through a real broker; and what --learn says."""

import base64
import hashlib
import http.server
import json
import os
import re
import threading

import gw
from gw import (SLOW, alive, children, equal, gateway_cli, read, sh, tmpdir,
                until, witness, write)

POLICY = """
local gateway = require "gateway"
local id = require "gateway.identity"
@PROCESS@
gateway.listen { address = "127.0.0.1:1", certificate = "-", key = "-",
  client_ca = "-" }
gateway.get("/x", { authorize = id.anyone,
  handle = function() return gateway.text "x" end })
local function command(name, program, args, more)
  local options = more or {}
  options.name, options.program, options.args = name, program, args
  return gateway.command(options)
end
local function mine(name, args, more)
  more = more or {}
  more.sha256 = "@SHA@"
  return command(name, "@PROGRAM@", args, more)
end
local small = gateway.integer(0, 255)
mine("exit", { "exit", gateway.slot "code" }, { slots = { code = small } })
mine("wait", { "wait", "60" }, { timeout = 0.3, kill_after = 0.1 })
mine("spew", { "spew", "100000" }, { stdout = "4K" })
command("lines", "/usr/bin/tail", { "-n", gateway.slot "lines",
    gateway.slot "file" }, { slots = { lines = gateway.integer(1, 99),
    file = gateway.file_below("@DIR@/in") } })
command("sum", "/usr/bin/sha256sum", {}, { stdin = "1K" })
command("true", "/bin/true", {})
command("bytes", "/usr/bin/printf", { "\\\\377\\\\0\\\\303" })
command("cat", "/bin/cat", { "@DIR@/in/a", "/etc/passwd", gateway.slot "f" },
  { slots = { f = gateway.file_below("@DIR@/in") } })
command("catmany", "/bin/cat", { "@DIR@/in/many/1", "@DIR@/in/many/2",
  "@DIR@/in/many/3", "@DIR@/in/many/4", "@DIR@/in/many/5" })
command("tar", "/usr/bin/tar", { "-cf", "@DIR@/out/x.tar", "-C", "@DIR@",
  "in" })
command("curl", "/usr/bin/curl", { "-sS", "http://127.0.0.1:@HTTP@/" },
  { memory = "1G" })
command("python", "/usr/bin/python3", { "@ZIPFILE@", "-c", "@DIR@/out/x.zip",
  "@DIR@/in/a" }, { memory = "1G" })
local learnt = { memory = "1G", timeout = 30, sha256 = "@LEARNTSHA@" }
local function learn(name, ...)
  local options = {}
  for key, value in pairs(learnt) do options[key] = value end
  return command(name, "@LEARNT@", { name, ... }, options)
end
learn("threads", "/etc/passwd", "/etc/group", "/etc/hosts", "@DIR@/in/a")
learn("fork", "@DIR@/in", "a")
learn("write", "@DIR@/out")
learn("signals")
learn("forbidden")
learn("starts", "/bin/echo")
learnt.timeout = 0.5
learn("untraced", "@DIR@/out/pid")
learn("leave", "@DIR@/out/pid")
learn("stop")
"""


def compiled(name, *argv):
    path = os.path.join(gw.TMP, name)
    if not os.path.exists(path):
        part = path + ".%d" % os.getpid()
        sh(os.environ.get("CC", "cc").split()[0], "-O1", "-o", part,
           os.path.join(gw.HERE, name + ".c"), *argv)
        os.rename(part, path)
    return path, hashlib.sha256(read(path)).hexdigest()


class Policy:
    def __init__(self, process=""):
        self.dir = tmpdir("exec")
        for name, mode in (("in", 0o755), ("in/many", 0o755), ("out", 0o777)):
            os.makedirs(self.dir + "/" + name)
            os.chmod(self.dir + "/" + name, mode)
        write(self.dir + "/in/a", "one\ntwo\nthree\n")
        write(self.dir + "/in/b", "four\n")
        for i in range(1, 6):
            write(self.dir + "/in/many/%d" % i, "%d\n" % i)
        self.server = http.server.HTTPServer(
            ("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
        self.server.RequestHandlerClass.log_message = lambda *_: None
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        path, sha = witness()
        mine, mine_sha = compiled("learnt", "-pthread")
        stdlib = sh("/usr/bin/python3", "-c", "import sysconfig as s; "
                    "print(s.get_path('stdlib'))").out.strip()
        text = POLICY
        for key, value in dict(
                DIR=self.dir, PROGRAM=path, SHA=sha, LEARNT=mine,
                LEARNTSHA=mine_sha, HTTP=self.server.server_port,
                ZIPFILE=stdlib + "/zipfile.py", PROCESS=process).items():
            text = text.replace("@%s@" % key, str(value))
        self.path = write(self.dir + "/policy/policy.lua", text)

    def exec(self, *argv, **keys):
        return gateway_cli("exec", "--policy", self.path, *argv, **keys)

    def learn(self, *argv, code=0):
        """The options that --learn prints, and its standard error."""
        before = set(children(os.getpid()))
        done = self.exec("--learn", *argv)
        if code is not None:
            equal(done.returncode, code, done.err)
        equal(set(children(os.getpid())) - before, set(), "left behind")
        return Learnt(done)


class Learnt:
    def __init__(self, done):
        self.out, self.err = done.out, done.err
        self.network = "network = true," in self.out
        self.read, self.write = self.list("read"), self.list("write")

    def list(self, name):
        m = re.search(r"^%s = \{(.*?)\},$" % name, self.out, re.M | re.S)
        return json.loads("[%s]" % m[1].strip().rstrip(",")) if m else []


def setup():
    return Policy()


# ---- one command, through the broker ---------------------------------------

def test_output_and_exit_codes(p):
    done = p.exec("lines", "lines=2", "file=a")
    equal((done.returncode, done.out), (0, "two\nthree\n"))
    assert "gateway:" not in done.err, done.err
    done = p.exec("exit", "code=3")
    equal((done.returncode, done.out), (1, ""))
    assert "exit: exit code 3" in done.err, done.err
    done = p.exec("wait")
    equal(done.returncode, 1)
    assert "wait: timeout" in done.err, done.err
    done = p.exec("spew")
    equal((done.returncode, len(done.out)), (1, 4096))
    assert "too much output" in done.err, done.err


def test_mistakes_name_what_was_meant(p):
    for argv, want in ((("lnes",), 'did you mean "lines"?'),
                       (("nothing-like-it",), "there is exit, wait"),
                       (("lines", "line=2"), 'did you mean "lines"?'),
                       (("lines", "x=2"), "there is "),
                       (("lines", "lines=2"), "slot file is missing"),
                       (("lines", "lines=2", "lines=3"), "twice"),
                       (("lines", "2"), "write slot=value"),
                       ((), "which command"),
                       (("--learn", "--json", "true"), "--json"),
                       (("--learn", "lnes",), 'did you mean "lines"?')):
        done = p.exec(*argv)
        equal((done.returncode, done.out), (2, ""), repr(argv))
        assert want in done.err, (argv, done.err)


def test_values_are_checked_as_those_of_requests(p):
    for argv in (("lines", "lines=100", "file=a"), ("lines", "lines=1",
                 "file=../policy/policy.lua"), ("lines", "lines=1", "file=-x"),
                 ("lines", "lines=1", "file=nothing")):
        done = p.exec(*argv)
        equal((done.returncode, done.out), (1, ""), repr(argv))
        assert "refused" in done.err, done.err
        assert '"phase":"start"' not in done.err, done.err
        equal(p.exec("--learn", *argv).returncode, 1, "--learn, too")


def test_standard_input(p):
    want = hashlib.sha256(b"four\n").hexdigest()
    done = p.exec("sum", "--stdin", p.dir + "/in/b")
    equal((done.returncode, done.out), (0, want + "  -\n"))
    done = p.exec("sum", "--stdin", "-", input=b"four\n")
    equal((done.returncode, done.out), (0, want + "  -\n"))
    done = p.exec("sum", input=b"four\n")
    equal(done.out, hashlib.sha256(b"").hexdigest() + "  -\n", "not asked for")
    done = p.exec("sum", "--stdin", "-", input=b"x" * 1025)
    equal(done.returncode, 1)
    assert "1024 bytes" in done.err, done.err
    done = p.exec("sum", "--stdin", "/no/such")
    equal(done.returncode, 1)
    assert "/no/such" in done.err, done.err


def test_json(p):
    done = p.exec("--json", "lines", "lines=1", "file=a")
    r = json.loads(done.out)
    equal((r["ok"], r["why"], r["code"], r["stdout"], r["ran"]),
          (True, "", 0, "three\n", True))
    assert r["cpu_us"] > 0 and r["max_rss_kib"] > 0, r
    done = p.exec("--json", "lines", "lines=100", "file=a")
    r = json.loads(done.out)
    equal((done.returncode, r["ok"], r["ran"]), (1, False, False))
    assert "refused" in r["why"], r


def test_json_keeps_bytes_that_are_no_text(p):
    r = json.loads(p.exec("--json", "bytes").out)
    assert r["ok"] and "stdout" not in r, r
    equal(base64.b64decode(r["stdout_base64"]), b"\xff\0\xc3")
    equal(r["stderr"], "", "the other one stays a text")


def test_its_records_are_a_whole_chain():
    key = write(os.path.join(tmpdir("key"), "audit.key"), "k" * 40, 0o600)
    p = Policy('gateway.process { audit_key = "%s" }' % key)
    for argv in (("true",), ("exit", "code=3"), ("lines", "lines=100",
                                                 "file=a")):
        log = write(os.path.join(tmpdir("log"), "log"), p.exec(*argv).err)
        done = gateway_cli("log", "verify", "--json", "--key", key, log)
        r = json.loads(done.out)
        equal((done.returncode, r["chains"], r["runs_without_end"]),
              (0, 1, 0), repr(r))
        equal(r["runs"] + r["refused"], 1)
        out = gateway_cli("log", "verify", "--key", key, log).out
        assert re.search(r"^\d+ records of 1 chain in \d+ lines?, ", out), out
        assert re.search(r"^[01] (run|runs), 0 without an end", out,
                         re.M), out


# ---- what a program needs --------------------------------------------------

def test_learn_cat(p):
    got = p.learn("cat", "f=b")
    equal((got.read, got.write, got.network),
          (["/etc/passwd", p.dir + "/in/a"], [], False))
    size = int(re.search(r"stdout = .* (\d+) bytes seen", got.out)[1])
    equal(size, len(read(p.dir + "/in/a") + read("/etc/passwd")
                    + read(p.dir + "/in/b")))
    assert "executed" not in got.err and "network" not in got.err, got.err


def test_learn_folds_files_into_their_folder(p):
    equal(p.learn("catmany").read, [p.dir + "/in/many"])


def test_learn_tar(p):
    got = p.learn("tar")
    assert p.dir in got.read, got.out  # -C opens it, and Landlock asks for that
    equal(got.write, [p.dir + "/out"])
    assert "it wrote files" in got.err, got.err
    assert not any(r.startswith(("/lib", "/usr/lib")) for r in got.read), got


def test_learn_a_python_script(p):
    got = p.learn("python")
    assert p.dir + "/in/a" in got.read, got.out
    assert not [r for r in got.read if "python" in r and
                r.startswith("/usr/lib")], got.out
    equal((got.write, got.network), ([p.dir + "/out"], False))


def test_learn_curl(p):
    got = p.learn("curl")
    equal((got.network, got.write), (True, []))
    assert ("connect to 127.0.0.1:%d" % p.server.server_port) in got.err, (
        got.err)


def test_learn_a_program_that_starts_another(p):
    got = p.learn("starts")
    assert re.search(r"executed another program.*/bin/echo", got.err), got.err
    got = p.learn("true")
    assert "executed" not in got.err, got.err


def test_learn_follows_threads_and_children(p):
    got = p.learn("threads")
    equal(got.read, ["/etc/group", "/etc/hosts", "/etc/passwd",
                     p.dir + "/in/a"])
    assert "5 processes and threads" in got.out, got.out
    equal(p.learn("fork").read, [p.dir + "/in/a"])
    got = p.learn("write")
    equal((got.read, got.write), ([], [p.dir + "/out"]))
    p.learn("signals")


def test_learn_names_system_calls(p):
    got = p.learn("true")
    calls = got.err.partition("its system calls:")[2].split()
    assert "exit_group" in calls and "openat" in calls, got.err
    assert "which the cage refuses" not in got.err, got.err
    got = p.learn("forbidden", code=None)
    for name in ("unshare", "setpgid"):
        assert ("made the system call %s, which the cage refuses" % name
                ) in got.err, got.err


def test_learn_leaves_nothing_behind_and_does_not_hang(p):
    p.learn("leave")
    equal(alive(int(read(p.dir + "/out/pid"))), False)
    p.learn("untraced")
    equal(alive(int(read(p.dir + "/out/pid"))), False)
    got = p.learn("stop", code=1)
    assert "timeout" in got.err, got.err
    got = p.learn("wait", code=1)
    assert "timeout" in got.err and "memory" in got.out, got.err


def test_learn_says_how_the_program_ended(p):
    got = p.learn("exit", "code=7", code=1)
    assert "exit code 7" in got.err, got.err
    assert "memory" in got.out, got.out


def test_what_was_learnt_is_enough_for_the_cage(p):
    """Outside the cage it is learnt, and inside it works; not without it."""
    for name, argv in (("cat", ("f=b",)), ("tar", ()), ("python", ()),
                       ("curl", ())):
        for made in os.listdir(p.dir + "/out"):
            os.unlink(p.dir + "/out/" + made)
        equal(p.exec(name, *argv).returncode, 1, name + " without")
        got = p.learn(name, *argv)
        for made in os.listdir(p.dir + "/out"):
            os.unlink(p.dir + "/out/" + made)
        text = read(p.path).decode().replace(
            'command("%s", ' % name, 'caged("%s", ' % name)
        text = text.replace('local function mine', """
local function caged(name, program, args, more)
  local options = { @LEARNT@ }
  options.slots = more and more.slots
  options.name, options.program, options.args = name, program, args
  return gateway.command(options)
end
local function mine""".replace("@LEARNT@", "\n" + got.out), 1)
        caged = write(p.dir + "/policy/caged.lua", text)
        done = gateway_cli("exec", "--policy", caged, name, *argv)
        equal(done.returncode, 0, name + ": " + got.out + done.err)
        os.unlink(caged)
