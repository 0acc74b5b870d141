"""A hostile program as a declared command, at each level of privilege.

tests/hostile.c tries to get out, and says how each attempt ended.  Whatever
the layers are that the place allows: every attempt fails, leaves a record, and
the gateway serves on."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile

from gw import (PKI, SLOW, TMP, Gateway, Skip, alive, build_c, cmdline,
                equal, free_port, gateway_cli, read, tmpdir, until, write)

UID = 12345  # of the ordinary user
POLICY = """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.process { @PROCESS@ }
gateway.listen {
  address = "127.0.0.1:@PORT@",
  certificate = "@KEYS@/server.crt", key = "@KEYS@/server.key",
  client_ca = "@KEYS@/clients.pem",
}
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })

local function attempt(name, options)
  local args = { name }
  for _, arg in ipairs(options) do args[#args + 1] = arg end
  for i = #options, 1, -1 do options[i] = nil end
  options.args, options.name = args, options.name or name
  options.program, options.sha256 = "@PROGRAM@", "@SHA@"
  options.memory = options.memory or "64M"
  local command = gateway.command(options)
  gateway.get("/" .. options.name, { authorize = id.anyone,
    handle = function()
      local r = command:run {}
      return gateway.json { ok = r.ok, why = r.why, code = r.code,
                            signal = r.signal, out = r.stdout } end })
end
attempt("files", { "@KEYS@/server.key", "@OTHER@/secret", "@POLICY@" })
attempt("metadata", { "@KEYS@/server.key" })
attempt("folder", { "@MINE@", write = "@MINE@" })
attempt("devices", { "@OTHER@/node" })
attempt("network", { "@TCP@", "@ABSTRACT@", "@OTHER@/socket" })
attempt("network", { "@TCP@", "@ABSTRACT@", "@OTHER@/socket",
  name = "files_by_socket", read = "@OTHER@" })
attempt("kernel", {})
attempt("processes", { @PIDS@ })
attempt("programs", {})
attempt("rights", {})
attempt("bomb", { processes = 200 })
attempt("disk", { "@MINE@/big", write = "@MINE@", file_size = "1M" })
attempt("eat", {})
attempt("stay", { timeout = 0.5, kill_after = 0.3 })
attempt("leave", {})
attempt("flood", { stdout = "100K" })
attempt("files", { name = "reader", "@OTHER@/secret", read = "@OTHER@" })
local slot = gateway.command { name = "slot", program = "@PROGRAM@",
  sha256 = "@SHA@", args = { "slot", gateway.slot "file" },
  slots = { file = gateway.file_below "@OTHER@" } }
gateway.get("/slot", { authorize = id.anyone, handle = function()
  local r = slot:run { file = "secret" }
  return gateway.json { ok = r.ok, why = r.why, out = r.stdout } end })
@MORE@
"""

REFUSED = {"EACCES", "EPERM", "ENOENT", "EROFS", "ENOSYS", "ENXIO", "ESRCH",
           "EBADF", "EAFNOSUPPORT", "ENETUNREACH", "EADDRNOTAVAIL", "ELOOP",
           "EXDEV", "ECONNREFUSED", "EINVAL", "ENODEV", "EISDIR"}


class Ways:
    """What there is to reach: files, ports, sockets, and a device node."""

    def __init__(self, uid):
        self.keys = tmpdir("keys")
        for name in ("server.crt", "server.key", "clients.pem"):
            shutil.copy(os.path.join(PKI, name), self.keys)
        self.other, self.mine = tmpdir("other"), tmpdir("mine")
        write(self.other + "/secret", "SECRET")
        for name in (self.other + "/node", self.mine + "/node"):
            try:
                os.mknod(name, 0o020666, os.makedev(1, 1))  # /dev/mem
                os.chmod(name, 0o666)
            except PermissionError:
                write(name, "")
        os.chmod(self.mine, 0o777)
        self.tcp = self.listen(socket.AF_INET, ("127.0.0.1", free_port()))
        self.abstract = "hostile-%d" % self.tcp[1]
        self.listen(socket.AF_UNIX, "\0" + self.abstract)
        self.listen(socket.AF_UNIX, self.other + "/socket")
        os.chmod(self.other + "/socket", 0o777)
        self.datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datagrams.bind(self.other + "/socket.dgram")
        os.chmod(self.other + "/socket.dgram", 0o777)
        for folder in (self.keys, self.other, self.mine):
            for name in [folder] + [os.path.join(folder, n)
                                    for n in os.listdir(folder)]:
                os.chown(name, uid, uid)

    def listen(self, family, where):
        s = socket.socket(family)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(where)
        s.listen(8)
        self.__dict__.setdefault("sockets", []).append(s)
        return where


class Cage(Gateway):
    def __init__(self, around=(), uid=0, more="", process="", pids=(),
                 wait=True):
        self.ways = w = Ways(uid)
        path, sha = build_c("hostile")
        self.program = path
        super().__init__(POLICY, head=False, wrap=around, wait=wait, MORE=more,
                         KEYS=w.keys, OTHER=w.other, MINE=w.mine, TCP=w.tcp[1],
                         ABSTRACT=w.abstract, PROGRAM=path, SHA=sha,
                         POLICY=w.keys + "/server.crt", PROCESS=process,
                         PIDS=", ".join('"%d"' % p for p in pids))
        if wait:  # not that of what is around
            self.pid = self.wait_ready()[-1]["pid"]

    def stop(self):
        if self.alive():
            os.kill(self.pid, signal.SIGTERM)
            try:
                self.process.wait(5 * SLOW)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        return True

    def attempt(self, name):
        r = self.get("/" + name)
        equal(r.status, 200, name + ": " + r.text)
        return r.json()

    def said(self, name):
        """[(what, how)]: one that did not end well has said enough."""
        out = self.attempt(name)["out"]
        assert out, name + " said nothing: " + self.tail(3)
        return [tuple(line.rsplit(": ", 1)) for line in out.splitlines()]

    def left(self):
        return [p for p in map(int, filter(str.isdigit, os.listdir("/proc")))
                if cmdline(p).startswith(self.program) and alive(p)]


def without_scopes(g):
    """What a kernel lets through whose Landlock knows no scopes, and we say
    so: signals to processes of one's pid namespace, whose first ignores
    them."""
    ready = [r for r in g.log() if r.get("event") == "ready"]
    if "scopes" not in ready[-1]["missing_layers"]:
        return []
    return [("signals to others", "DONE"), ("kill 1", "DONE")]


def refused(g, name, but=()):
    for what, how in g.said(name):
        if how not in REFUSED and (what, how) not in (*but, *without_scopes(g)):
            raise AssertionError("%s: %s: %s" % (name, what, how))


def try_all(g):
    refused(g, "files")
    for what, how in g.said("files")[:4]:
        assert how in ("EACCES", "ENOENT"), (what, how)
    refused(g, "metadata")
    equal(len(read(g.ways.keys + "/server.key")) > 100, True, "the key")
    mode = os.stat(g.ways.keys + "/server.key").st_mode & 0o777
    equal(mode, os.stat(PKI + "/server.key").st_mode & 0o777, "its mode")
    refused(g, "folder", [(w, "DONE") for w in (
        "file", "folder", "move", "remove", "remove folder", "mode")])
    said = dict(g.said("folder"))
    equal(said["file"], "DONE", "a declared folder can be written")
    refused(g, "devices")
    refused(g, "network")
    refused(g, "files_by_socket")
    refused(g, "kernel")
    refused(g, "processes")
    refused(g, "slot", [("read", "DONE")])
    refused(g, "programs", [("/lib64/ld-linux-x86-64.so.2", "ELIBACC")])
    said = dict(g.said("rights"))
    for what, how in (("capabilities", "0"), ("bounding", "0"),
                      ("no_new_privs", "1"), ("seccomp", "2"),
                      ("environment", "0"), ("more files", "EPERM"),
                      ("more processes", "EPERM"), ("own signal", "DONE"),
                      ("own group", "DONE")):
        equal(said[what], how, what)
    said = dict(g.said("reader"))
    equal(said[g.ways.other + "/secret"], "DONE", "what may be read")
    resources(g)
    equal(g.get("/ok").status, 200)
    records(g)


def resources(g):
    said = dict(g.said("bomb"))
    equal(said["fork"], "EAGAIN", "a fork bomb")
    assert int(said["children"]) < 250, said
    equal(dict(g.said("disk"))["write"], "EFBIG")
    equal(os.path.getsize(g.ways.mine + "/big") <= 1 << 20, True)
    eaten = g.attempt("eat")
    assert eaten["signal"] or "malloc: ENOMEM" in eaten["out"], eaten
    stayed = g.attempt("stay")
    equal((stayed["ok"], stayed["signal"]), (False, int(signal.SIGKILL)))
    equal(dict(g.said("leave"))["left"], "DONE")
    flood = g.attempt("flood")
    equal((flood["ok"], len(flood["out"])), (False, 100 << 10))
    until(lambda: not g.left(), "no process is left")


def records(g):
    lines = [r for r in g.log() if r.get("event") == "exec"]
    for name in ("files", "metadata", "folder", "devices", "network", "kernel",
                 "processes", "programs", "rights", "bomb", "disk", "eat",
                 "stay", "leave", "flood"):
        for phase in ("start", "end"):
            assert [r for r in lines if r["command"] == name
                    and r["phase"] == phase], (name, phase)


def others():
    """Processes of another gateway of ours: as good as a worker of this."""
    return [os.getpid(), os.getppid()]


def user(*more):
    if os.geteuid() != 0:
        raise Skip("only root can become somebody else")
    return ["setpriv", "--reuid", str(UID), "--regid", str(UID),
            "--clear-groups", "--pdeathsig", "KILL", *more]


def container(*more):
    if not shutil.which("bwrap"):
        raise Skip("no bubblewrap")
    return user("bwrap", "--unshare-user", "--die-with-parent", "--cap-drop",
                "ALL", "--ro-bind", "/", "/", "--dev", "/dev", "--proc",
                "/proc", "--bind", TMP, TMP, *more)


def missing(g, *names):
    """The broker says which namespaces it has."""
    line = g.wait_line("cage: landlock")[0]
    for name in ("user_namespace", "pid_namespace", "network_namespace",
                 "ipc_namespace", "mount_namespace"):
        has = name + " yes" in line
        equal(has, name not in names, name + " in: " + line)


NAMESPACES = ("user_namespace", "pid_namespace", "network_namespace",
              "ipc_namespace", "mount_namespace")


def test_as_root():
    if os.geteuid() != 0:
        raise Skip("not root")
    with Cage(pids=others()) as g:
        try_all(g)
        missing(g)


def test_as_an_ordinary_user():
    with Cage(user(), UID, pids=others()) as g:
        try_all(g)
        missing(g)


def test_in_a_container():
    with Cage(container(), UID, pids=others()) as g:
        try_all(g)
        missing(g)


def test_in_a_container_without_user_namespaces():
    with Cage(container("--disable-userns"), UID, pids=others()) as g:
        try_all(g)
        missing(g, *NAMESPACES)


MIXED = """
attempt("network", { name = "online", network = true, "@TCP@", "@ABSTRACT@",
                     "@OTHER@/socket" })
"""


def test_network_where_it_is_declared():
    for around, uid in (((), 0), (user(), UID)):
        with Cage(around, uid, more=MIXED) as g:
            said = dict(g.said("online"))
            equal((said["connect"], said["udp"]), ("DONE", "DONE"))
            for what in ("raw", "ping", "packet", "netlink", "vsock", "alg") + (
                    () if without_scopes(g) else ("abstract",)):
                assert said[what] in REFUSED, (what, said[what])
            refused(g, "network")
            missing(g)


def test_as_uid_0():
    """Root without another user: no limit of processes holds, so it must be
    accepted; the rest of the cage stands."""
    if os.geteuid() != 0:
        raise Skip("not root")
    g = Cage(process='user = "root"', wait=False)
    g.process.wait(10 * SLOW)
    equal(g.process.returncode, 1)
    g.wait_line("processes is missing", "accept_missing")
    with Cage(process='user = "root", accept_missing = { "processes" }',
              pids=others()) as g:
        for name in ("files", "metadata", "devices", "network", "kernel",
                     "processes"):
            refused(g, name, [("setuid", "DONE")])  # it is uid 0 already
        refused(g, "slot", [("read", "DONE")])
        made = [how for what, how in g.said("folder") if "set-" in what]
        assert len(made) == 10 and "DONE" not in made, made
        said = dict(g.said("rights"))
        equal((said["capabilities"], said["bounding"], said["no_new_privs"]),
              ("0", "0", "1"))
        missing(g)


def test_signals_where_no_layer_keeps_them_in():
    """Neither Landlock nor a pid namespace: all of its user's processes, and so
    the gateway, would be in a program's reach."""
    refuse = build_c("refuse")[0]
    bystander = subprocess.Popen(user("sleep", "60"))
    try:
        with Cage(user(refuse, "landlock,unshare,clone3"), UID,
                  process='accept_missing = { "landlock" }',
                  pids=[bystander.pid]) as g:
            missing(g, *NAMESPACES)
            said = dict(g.said("processes"))
            for what in ("signals to others", "kill", "kill the parent"):
                equal(said[what], "EPERM", what)
            said = dict(g.said("rights"))
            for what in ("own signal", "own group"):
                equal(said[what], "DONE", what)
            equal(g.get("/ok").status, 200)
        equal(bystander.poll(), None, "the bystander lives")
    finally:
        bystander.kill()
        bystander.wait()


def library():
    """A file below a library folder."""
    for line in read("/proc/self/maps").decode().splitlines():
        path = line.split()[-1]
        if path.startswith(("/lib/", "/usr/lib/")) and ".so" in path:
            return path
    raise Skip("no library is loaded")


def test_a_static_program_needs_no_libraries():
    path, sha = build_c("witness", "-static")
    more = """
local function shows(name, program, sha)
  local show = gateway.command { name = name, program = program, sha256 = sha,
    args = { "show", "%s" } }
  gateway.get("/" .. name, { authorize = id.anyone, handle = function()
    local r = show:run {}
    return gateway.json { ok = r.ok, out = r.stderr } end })
end
shows("static", "%s", "%s")
shows("dynamic", "%s", "%s")
""" % (library(), path, sha, *build_c("witness"))
    with Cage(more=more) as g:
        static = g.get("/static").json()
        equal(static["ok"], False)
        assert "No such file" in static["out"] or "denied" in static["out"]
        # its output is cut: it could be read
        assert g.get("/dynamic").json()["out"] == "", "libraries are readable"


def test_an_interpreter_and_its_script():
    folder = tempfile.mkdtemp(dir="/var/lib", prefix="gateway-test-")
    try:
        os.chmod(folder, 0o755)
        script = write(folder + "/script.py", "\n".join([
            "import os, json, threading", "print(os.getcwd(), os.getpid() > 1)",
            "t = threading.Thread(target=print, args=('thread',))",
            "t.start()", "t.join()"]))
        python = os.path.realpath("/usr/bin/python3")
        if not os.path.exists(python):
            raise Skip("no /usr/bin/python3")
        more = """
local python = gateway.command { name = "python", program = "%s",
  args = { "-I", "%s" }, cwd = "%s", memory = "1G" }
gateway.get("/python", { authorize = id.anyone, handle = function()
  local r = python:run {}
  return gateway.text((r.stdout or "") .. (r.stderr or "")) end })
""" % (python, script, folder)
        with Cage(more=more) as g:
            equal(g.get("/python").text, folder + " True\nthread\n")
    finally:
        shutil.rmtree(folder)


def test_a_script_by_another_name_of_its_interpreter():
    """`write` may not hold it, and the cage lets it be read."""
    folder = tempfile.mkdtemp(dir="/var/lib", prefix="gateway-test-")
    try:
        os.chmod(folder, 0o755)
        python = os.path.realpath("/usr/bin/python3")
        if not os.path.exists(python):
            raise Skip("no /usr/bin/python3")
        os.symlink(python, folder + "/runapp")
        script = write(folder + "/app.py", "print('ran')")
        declared = """
local app = gateway.command { name = "app", program = "%s/runapp",
  args = { "-I", "%s" }, memory = "1G", %%s }
gateway.get("/app", { authorize = id.anyone, handle = function()
  local r = app:run {}
  return gateway.text((r.stdout or "") .. (r.stderr or "")) end })
""" % (folder, script)
        with Cage(more=declared % "") as g:
            equal(g.get("/app").text, "ran\n")
            policy = read(g.policy).decode()
        done = gateway_cli("check", write(
            tmpdir("p") + "/policy.lua", policy.replace(
                declared % "", declared % ('write = "%s"' % folder))))
        equal(done.returncode, 1)
        assert "which it could change" in done.err, done.err
    finally:
        shutil.rmtree(folder)


def test_a_path_out_of_reach_is_left_out():
    """Root declares a path that the command's user cannot come to."""
    if os.geteuid() != 0:
        raise Skip("only root becomes somebody else")
    secret = tmpdir("secret")
    write(secret + "/in", "x")
    os.chmod(secret, 0o700)
    more = """
local reach = gateway.command { name = "reach", program = "/bin/cat",
  args = { "/proc/meminfo" }, read = { "/proc/meminfo", "%s/in" } }
gateway.get("/reach", { authorize = id.anyone, handle = function()
  return gateway.text(reach:run({}).stdout) end })
""" % secret
    with Cage(more=more) as g:
        assert "MemTotal" in g.get("/reach").text


def test_declarations_that_do_not_load():
    for option, why in (
            ('read = "/nonexistent/x"', "read: /nonexistent/x"),
            ('write = "/usr"', "which it could change"),
            ('write = "/"', "which it could change"),
            ('read = "etc"', "not an absolute path"),
            ("processes = 0", "processes"),
            ('env = { MALLOC_CHECK_ = "3" }', "MALLOC_CHECK_"),
            ('env = { RUBYOPT = "-rx" }', "RUBYOPT")):
        policy = os.path.join(tmpdir("load"), "policy.lua")
        write(policy, """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen { address = "127.0.0.1:1", certificate = "%(p)s/server.crt",
  key = "%(p)s/server.key", client_ca = "%(p)s/clients.pem" }
gateway.command { name = "x", program = "/bin/true", %(o)s }
gateway.get("/", { authorize = id.anyone,
  handle = function() return gateway.text "" end })
""" % {"p": PKI, "o": option})
        done = gateway_cli("check", policy)
        equal(done.returncode, 1, option)
        assert why in done.err + done.out, (option, done.err)


for test in (test_as_root, test_as_an_ordinary_user, test_in_a_container,
             test_in_a_container_without_user_namespaces,
             test_network_where_it_is_declared):
    test.timeout = 60
