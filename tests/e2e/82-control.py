"""The control socket: gateway status, reload, drain, stop; and bad callers."""

import hashlib
import json
import os
import signal
import socket
import stat
import struct
import threading

import gw
from gw import (PKI, SLOW, Gateway, Skip, alive, equal, gateway_cli, shutil,
                until, write)

SOMEBODY = 1234
POLICY = """
gateway.admin { address = "127.0.0.1:@ADMIN@" }
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "@WORD@" end })
gateway.get("/slow", { authorize = id.anyone,
  handle = function() gateway.sleep(@SLEEP@) return gateway.text "late" end })
"""


def setup():
    return gateway()


def gateway(text=POLICY, **keys):
    keys.setdefault("WORD", "old")
    keys.setdefault("SLEEP", 3600)
    return Gateway(text, **keys)


def path_of(g):
    return [r for r in g.log() if r.get("event") == "ready"][-1]["control"]


def cli(g, word, *more, **keys):
    return gateway_cli(word, "--policy", g.policy, *more, **keys)


def status(g):
    return json.loads(cli(g, "status", "--json").out)


def reach(s, path):
    try:
        s.connect(path)
        return True
    except BlockingIOError:  # many do
        return False


def call(g, data=None, path=None):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10 * SLOW)
    until(lambda: reach(s, path or path_of(g)), "there is room to call")
    if data:
        s.sendall(data)
    return s


def answer(s):
    """Everything until the other side hangs up."""
    got = b""
    while True:
        try:
            part = s.recv(65536)
        except ConnectionResetError:
            break
        if not part:
            break
        got += part
    s.close()
    return got


# ---- what the commands say -------------------------------------------------

def test_status(g):
    for _ in range(3):
        g.get("/ok")
    with g.connect() as c:
        c.request("GET", "/ok")
        s = status(g)
    equal((s["ok"], s["pid"], s["state"], s["generation"]),
          (True, g.pid, "serving", 1))
    equal([w["pid"] for w in s["workers"]], g.workers())
    equal((s["workers"][0]["connections"], s["workers"][0]["requests"]), (1, 4))
    equal(s["requests"], 4)
    equal(s["policy"], g.policy)
    equal(len(s["policy_sha256"]), 64)
    equal(s["listeners"], ["127.0.0.1:%d" % g.port])
    equal(s["last_load"]["ok"], True)
    equal(s["missing_layers"], [r for r in g.log() if r.get("event") == "ready"]
          [0]["missing_layers"])
    text = cli(g, "status").out
    for word in (str(g.pid), "serving", "server.crt", "clients.pem",
                 "days left", "worker 1", "fine"):
        assert word in text, "%r is not in:\n%s" % (word, text)


def test_status_knows_when_certificates_expire(g):
    found = {c["file"]: c for c in status(g)["certificates"]}
    for name in ("server.crt", "clients.pem"):
        path = os.path.join(PKI, name)
        ends = []
        for block in gw.read(path).decode().split("-----BEGIN CERT")[1:]:
            out = gw.sh("openssl", "x509", "-noout", "-enddate", "-dateopt",
                        "iso_8601", input=("-----BEGIN CERT" + block).encode())
            ends.append(out.out.strip().split("=")[1].replace(" ", "T"))
            if name == "server.crt":
                break  # the leaf comes first
        equal(found[path]["not_after"], min(ends), name)


def test_the_file_is_ours_alone(g):
    path = path_of(g)
    equal(stat.S_IMODE(os.lstat(path).st_mode), 0o600)
    folder = os.lstat(os.path.dirname(path))
    equal((folder.st_uid, folder.st_mode & 0o022), (os.geteuid(), 0))


def test_reload_and_its_verdict():
    with gateway() as g:
        before = status(g)["policy_sha256"]
        g.tokens["WORD"] = "new"
        g.write(POLICY)
        done = cli(g, "reload")
        equal((done.returncode, done.out),
              (0, "reloaded: generation 2 serves\n"))
        until(lambda: g.get("/ok").text == "new", "new connections see it")
        assert status(g)["policy_sha256"] != before, "the hash did not change"
        g.write(POLICY + "gateway.gett()\n")
        line = POLICY.count("\n") + gw.HEAD.count("\n") + 1
        done = cli(g, "reload")
        equal(done.returncode, 1)
        where = "%s:%d: gateway.gett: " % (g.policy, line)
        assert where in done.err, done.err
        equal(done.err.count("\n"), 1, "lines")
        last = status(g)["last_load"]
        assert not last["ok"] and where in last["error"], last
        assert "REFUSED" in cli(g, "status").out
        equal(g.get("/ok").text, "new")


def test_reload_of_certificates_leaves_the_policy():
    with gateway() as g:
        g.tokens["WORD"] = "new"
        g.write(POLICY)
        equal(cli(g, "reload", "--certificates").returncode, 0)
        equal(g.get("/ok").text, "old")
        g.write("error 'boom'")
        equal(cli(g, "reload", "--certificates").returncode, 0)
        equal(status(g)["generation"], 3)


def test_a_reload_under_way_is_not_taken_for_the_answer():
    """Each caller is answered by a load that began after it asked."""
    with gateway() as g:
        callers = []
        for n in range(6):
            g.tokens["WORD"] = "w%d" % n
            whole = g.policy
            g.policy += ".new"
            g.write(POLICY)
            os.rename(g.policy, whole)  # the load under way sees all or none
            g.policy = whole
            callers.append(call(g, b"reload\n"))
            if n == 2:
                equal(json.loads(answer(call(g, b"status\n")))["ok"], True)
        answers = [json.loads(answer(s)) for s in callers]
        equal([a["ok"] for a in answers], [True] * 6)
        generations = [a["generation"] for a in answers]
        equal(generations, sorted(generations))
        equal(status(g)["generation"], generations[-1])
        equal(g.get("/ok").text, "w5")


def test_drain_waits_for_what_is_served():
    with gateway(SLEEP=1) as g:
        with g.connect() as c:
            c.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
            until(lambda: g.metric("gateway_requests_in_progress") == 1,
                  "the request is there")
            done = cli(g, "drain")
            equal((done.returncode, done.out.splitlines()[-1]),
                  (0, "the gateway has ended"))
            equal(c.response().text, "late")
        equal(g.process.wait(5 * SLOW), 0)
        assert not os.path.exists(path_of(g)), "the file is still there"


def test_a_policy_is_found_however_it_is_spelt():
    with gateway() as g:
        folder, name = os.path.split(g.policy)
        up = os.path.relpath(g.policy)
        for spelt in (folder + "//" + name, folder + "/./" + name,
                      folder + "/../" + os.path.basename(folder) + "/" + name,
                      up, "./" + up, "/.." + g.policy):
            done = gateway_cli("status", "--policy", spelt)
            equal(done.returncode, 0, spelt + ": " + done.err)
        done = gateway_cli("status", "--policy", folder + "/../" + name)
        equal(done.returncode, 1)
        done = gateway_cli("status", g.policy)
        equal(done.returncode, 2)
        assert "write --policy " + g.policy in done.err, done.err


def test_while_it_drains():
    with gateway() as g:
        path = path_of(g)
        with g.connect() as c:
            c.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
            until(lambda: g.metric("gateway_requests_in_progress") == 1,
                  "the request is there")
            equal(cli(g, "drain", "--no-wait").returncode, 0)
            equal(status(g)["state"], "draining")
            done = cli(g, "reload")
            equal(done.returncode, 1)
            assert "it drains" in done.err, done.err
            done = cli(g, "stop")
            equal((done.returncode, done.out), (0, "the gateway has ended\n"))
        g.process.wait(5 * SLOW)
        equal(g.lines('"level":"error"'), [], "what it is told to is no error")
        assert not os.path.exists(path), "the file is still there"


def test_one_that_is_stopped():
    """It is not waited for for ever."""
    with gateway() as g:
        os.kill(g.pid, signal.SIGSTOP)
        try:
            done = cli(g, "status")
        finally:
            os.kill(g.pid, signal.SIGCONT)
        equal(done.returncode, 1)
        assert "silent" in done.err, done.err
        equal(cli(g, "status").returncode, 0)


test_one_that_is_stopped.timeout = 60


def test_no_gateway():
    folder = gw.tmpdir("none")
    policy = write(folder + "/policy.lua", "local g = require 'gateway'\n")
    done = gateway_cli("status", "--policy", policy)
    equal(done.returncode, 1)
    assert "no gateway runs " + policy in done.err, done.err
    done = gateway_cli("stop", "--control", folder + "/none")
    equal(done.returncode, 1)
    assert "No such file" in done.err, done.err
    equal(gateway_cli("stop", "extra").returncode, 2)


# ---- where it is -----------------------------------------------------------

NAMED = POLICY.replace("gateway.admin",
                       'gateway.process { control = @CONTROL@ }\n'
                       'gateway.admin', 1)
BARE = """local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen { address = "127.0.0.1:@PORT@",
  certificate = "@PKI@/server.crt", key = "@PKI@/server.key",
  client_ca = "@PKI@/clients.pem" }
"""


def named(control, **keys):
    return gateway(BARE + NAMED, head=False, CONTROL=control, **keys)


def test_a_place_that_the_policy_names():
    folder = gw.tmpdir("ctl")
    with named('"unix:%s/a"' % folder) as g:
        equal(path_of(g), folder + "/a")
        equal(status(g)["pid"], g.pid)
        equal(gateway_cli("status", "--control", folder + "/a").returncode, 0)
        g.write("oops(")
        done = cli(g, "status")  # the name is in a policy that does not load
        equal(done.returncode, 1)
        assert "--control" in done.err, done.err
        g.tokens["CONTROL"] = '"unix:%s/b"' % folder
        g.write(BARE + NAMED)
        done = gateway_cli("reload", "--control", "unix:%s/a" % folder)
        equal((done.returncode, done.err), (0, ""))
        equal(path_of(g), folder + "/b")
        until(lambda: not os.path.exists(folder + "/a"), "the old one is gone")
        equal(status(g)["generation"], 2)
        g.tokens["CONTROL"] = "false"
        g.write(BARE + NAMED)
        equal(gateway_cli("reload", "--control", folder + "/b").returncode, 0)
        equal(path_of(g), "")
        until(lambda: not os.listdir(folder), "no socket is left")
        g.tokens["CONTROL"] = '"unix:/nowhere/at/all"'
        g.write(BARE + NAMED)
        g.reload(good=False)
        assert g.lines("control: /nowhere/at/all", "No such file")


def test_what_is_no_socket_is_left_alone():
    folder = gw.tmpdir("ctl")
    write(folder + "/file", "precious")
    with named('"unix:%s/file"' % folder, wait=False) as g:
        equal(g.process.wait(10 * SLOW), 1)
        assert g.lines("is not a socket"), g.tail()
    equal(gw.read(folder + "/file"), b"precious")


def test_one_that_died_is_taken_over():
    folder = gw.tmpdir("ctl")
    control = '"unix:%s/a"' % folder
    with named(control) as g:
        children = gw.children(g.pid)
        os.kill(g.pid, signal.SIGKILL)
        g.process.wait()
        until(lambda: not any(map(alive, children)), "its children end")
        assert os.path.exists(folder + "/a"), "the file is left"
    with named(control) as g:
        equal(status(g)["pid"], g.pid)
    equal(os.listdir(folder), [])


# ---- bad callers -----------------------------------------------------------

def refused(g, **labels):
    return g.metric("gateway_control_calls_total", **labels)


def test_rubbish(g):
    for data in (b"\n", b"Status\n", b"status \n", b"status\nstop\n", b"stop\0\n",
                 b"GET / HTTP/1.1\r\n\r\n", b"x" * 4096, b"\0" * 16,
                 b"certificatesXXXX", b"status\r\n"):
        s = call(g)
        try:
            s.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        got = answer(s)
        assert got == b"" or not json.loads(got)["ok"], (data, got)
    for _ in range(3):
        call(g, b"stat").close()  # half a word, and gone
        call(g, b"reload\n").close()
    s = call(g, b"sta")
    s.shutdown(socket.SHUT_WR)
    equal(answer(s), b"")
    s = call(g, b"sta")
    s.sendall(b"tus\n")
    equal(json.loads(answer(s))["pid"], g.pid)
    equal(g.get("/ok").text, "old")


def test_those_who_say_nothing(g):
    late = refused(g, result="timeout")
    busy = refused(g, result="busy")
    idle = [call(g) for _ in range(40)]
    until(lambda: refused(g, result="busy") >= busy + 24, "some are turned away")
    done = cli(g, "status")  # comes again until there is room
    equal(done.returncode, 0, done.err)
    until(lambda: refused(g, result="timeout") >= late + 1, "the rest is let go")
    for s in idle:
        assert answer(s) in (b"", b'{"ok":false,"error":"busy"}\n')
    equal(g.get("/ok").text, "old")


def test_a_thousand_at_once(g):
    """Who ask for everything, and never read."""
    fds = len(os.listdir("/proc/%d/fd" % g.pid))
    callers = []
    for n in range(1000):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(10 * SLOW)
        until(lambda: reach(s, path_of(g)), "there is room to call")
        try:
            s.sendall((b"status\n", b"reload\n", b"rubbish!\n")[n % 3])
        except (BrokenPipeError, ConnectionResetError):
            pass
        callers.append(s)
    equal(g.get("/ok").text, "old")
    for s in callers:
        s.close()
    equal(cli(g, "status").returncode, 0)
    until(lambda: len(os.listdir("/proc/%d/fd" % g.pid)) <= fds + 2,
          "their descriptors are closed", 15)
    equal(cli(g, "reload").returncode, 0)


test_a_thousand_at_once.timeout = 60


def test_another_user_may_not(g):
    """Whom the file's mode would keep out; here he comes as if it did not."""
    if os.geteuid() != 0:
        raise Skip("only root can become somebody else")
    before = refused(g, result="refused")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            folder = os.open(os.path.dirname(path_of(g)), os.O_PATH)
            os.fchdir(folder)
            os.chmod(os.path.basename(path_of(g)), 0o666)
            os.setresgid(SOMEBODY, SOMEBODY, SOMEBODY)
            os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)
            os.write(writer, answer(call(g, b"stop\n",
                                         os.path.basename(path_of(g)))))
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    got = os.read(reader, 4096)
    os.close(reader)
    os.waitpid(pid, 0)
    os.chmod(path_of(g), 0o600)
    assert got == b"" or b"own user" in got, got
    equal(refused(g, result="refused"), before + (1 if got else 0))
    equal(g.get("/ok").text, "old")


def test_a_stranger_does_not_pass_for_a_gateway():
    """A user's status does not talk to another user's process."""
    if os.geteuid() != 0:
        raise Skip("only root can become somebody else")
    folder = gw.tmpdir("ctl")
    os.chmod(folder, 0o777)
    listener = socket.socket(socket.AF_UNIX)
    os.seteuid(SOMEBODY)
    listener.bind(folder + "/x")
    listener.listen(1)
    os.chmod(folder + "/x", 0o777)
    os.seteuid(0)
    binary = folder + "/gateway"
    shutil.copyfile(gw.BIN, binary)
    os.chmod(binary, 0o755)
    # listen() was called as SOMEBODY: that is who answers
    done = gw.sh("setpriv", "--reuid", str(SOMEBODY + 1), "--clear-groups",
                 binary, "stop", "--control", folder + "/x", check=False)
    equal(done.returncode, 1)
    assert "user %d answers there" % SOMEBODY in done.err, done.err


def stand_in(folder, name, line):
    """A socket where SOMEBODY answers with a line."""
    def serve():
        while True:
            s, _ = listener.accept()
            s.recv(64)
            s.sendall(line)
            s.close()
    os.makedirs(folder, exist_ok=True)
    os.chown(folder, SOMEBODY, SOMEBODY)
    listener = socket.socket(socket.AF_UNIX)
    os.seteuid(SOMEBODY)  # listen() says who it is
    try:
        listener.bind(os.path.join(folder, name))
        listener.listen(5)
    finally:
        os.seteuid(0)
    threading.Thread(target=serve, daemon=True).start()
    return os.path.join(folder, name)


def test_a_place_that_somebody_else_made():
    """Root takes nobody's word but a gateway's: a folder of somebody else
    is no place of its own, and one that the policy names is not theirs."""
    if os.geteuid() != 0:
        raise Skip("only root can become somebody else")
    folder = gw.tmpdir("ctl")
    os.chmod(folder, 0o755)
    with named('"unix:%s/c"' % folder) as g:
        name = hashlib.sha256(g.policy.encode()).hexdigest()[:16]
        lie = b'{"ok":true,"generation":77}\n'
        stand_in(folder + "/gateway", name, lie)
        os.environ["XDG_RUNTIME_DIR"] = folder
        try:
            done = cli(g, "reload")
        finally:
            del os.environ["XDG_RUNTIME_DIR"]
        equal(done.out, "reloaded: generation 2 serves\n", done.err)
    os.chmod(folder, 0o1777)
    write(g.policy, open(g.policy).read().replace("/c\"", "/d\""))
    path = stand_in(folder + "/x", "d", lie)
    os.rename(path, folder + "/d")
    done = cli(g, "reload")
    equal(done.returncode, 1, done.out)
    assert "user %d answers there" % SOMEBODY in done.err, done.err


def test_answers_that_are_none():
    """Whoever answers, nothing of it reaches the terminal as it came."""
    if os.geteuid() != 0:
        raise Skip("only root can become somebody else")
    folder = gw.tmpdir("ctl")
    os.chmod(folder, 0o755)
    bad = "\x1b]0;x\x07\u009b31m"
    for i, line in enumerate((
            {"ok": True}, [1], {"ok": True, "generation": "7"}, {"ok": False},
            {"ok": True, "at_most_ms": {}}, {"ok": False, "error": bad},
            {"ok": True, "pid": 1, "version": bad, "state": bad, "uptime": 1,
             "requests": 1, "policy": bad, "listeners": [bad], "workers": [],
             "last_load": None})):
        path = stand_in(folder + "/%d" % i, "x", json.dumps(line).encode() + b"\n")
        for word in ("status", "reload", "drain"):
            done = gateway_cli(word, "--control", path)
            assert "lua:" not in done.err, done.err
            for text in (done.out, done.err):
                assert "\x1b" not in text and "\x9b" not in text, repr(text)


HOSTILE = """
gateway.upstream { "http+unix:/run/app.sock" }  -- so it has Unix sockets
local function bytes(hex)
  return (hex:gsub("..", function(h) return string.char(tonumber(h, 16)) end))
end
gateway.post("/call", { authorize = id.anyone,
  validate = { json = { type = "array" } },
  handle = function(request)
    local args = {}
    for i, v in ipairs(request.json) do
      args[i] = math.type(v) and math.tointeger(v) or bytes(v)
    end
    return gateway.json { r = string.hostile_call(table.unpack(args)) }
  end })
"""
CALLS = {"x86_64": {"socket": 41, "connect": 42, "sendto": 44}}


def test_a_worker_may_not():
    """In a container all are one user, and a worker can reach the file."""
    binary = os.path.join(gw.ROOT, "build", "hostile", "gateway")
    numbers = CALLS.get(os.uname().machine)
    if os.geteuid() != 0 or not numbers or not os.path.exists(binary):
        raise Skip("needs root, x86_64 and make build/hostile/gateway")
    folder = gw.tmpdir("ctl")
    shutil.copyfile(binary, folder + "/gateway")
    os.chmod(folder + "/gateway", 0o755)
    for name in ("server.crt", "server.key"):
        shutil.copyfile(os.path.join(PKI, name), os.path.join(folder, name))
        os.chmod(os.path.join(folder, name), 0o600)
        os.chown(os.path.join(folder, name), SOMEBODY, SOMEBODY)
    os.chown(folder, SOMEBODY, SOMEBODY)
    text = (BARE + HOSTILE).replace("@PKI@/server", folder + "/server")
    text = text.replace('local id ', 'gateway.process { control = "unix:%s/c" }'
                        '\nlocal id ' % folder, 1)
    with gateway(text, head=False, binary=folder + "/gateway", wrap=[
            "setpriv", "--reuid", str(SOMEBODY), "--regid", str(SOMEBODY),
            "--clear-groups"]) as g:
        g.expected.append("hostile")
        address = struct.pack("=H", socket.AF_UNIX) + path_of(g).encode() + b"\0"

        def do(name, *args):
            args = [a.hex() if isinstance(a, bytes) else a for a in args]
            return g.post_json("/call", [numbers[name], *args]).json()["r"]

        fd = do("socket", socket.AF_UNIX, socket.SOCK_STREAM |
                socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        assert fd > 0, fd
        equal(do("connect", fd, address, len(address)), 0, "it gets there")
        do("sendto", fd, b"stop\n", 5, socket.MSG_NOSIGNAL, 0, 0)
        g.wait_line("the control socket was called", "started itself")
        assert g.alive(), "it was stopped by its own worker"
        pid = g.workers()[0]
        equal(status(g)["workers"][0]["pid"], pid)
