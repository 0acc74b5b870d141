"""A worker that was taken over: a build of the gateway whose worker makes any
system call, and sends the broker any bytes, when a request says so."""

import json
import os
import platform
import re
import signal
import socket
import struct
import threading

import gw
from gw import Gateway, Skip, alive, equal, read, until, witness

NUMBERS = {
    "x86_64": {"getpid": 39, "openat": 257, "socket": 41, "connect": 42,
               "bind": 49, "execve": 59, "execveat": 322, "fork": 57,
               "clone": 56, "clone3": 435, "memfd_create": 319, "kill": 62,
               "ptrace": 101, "process_vm_readv": 310, "mmap": 9,
               "mprotect": 10, "unlinkat": 263, "setuid": 105,
               "unshare": 272, "mount": 165, "bpf": 321, "pidfd_open": 434,
               "io_uring_setup": 425, "prctl": 157, "rename": 82,
               "tgkill": 234, "socketpair": 53, "listen": 50,
               "shutdown": 48, "sendto": 44, "fcntl": 72, "lseek": 8, "write": 1},
}.get(platform.machine())

POLICY = """
local function bytes(hex)
  return (hex:gsub("..", function(h) return string.char(tonumber(h, 16)) end))
end
gateway.post("/call", { authorize = id.anyone, validate = { json = { type = "array" } },
  handle = function(request)
    local args = {}
    for i, v in ipairs(request.json) do
      args[i] = math.type(v) and math.tointeger(v) or bytes(v)
    end
    return gateway.json { r = string.hostile_call(table.unpack(args)) }
  end })
gateway.post("/send", { authorize = id.anyone, validate = { json = { type = "string" } },
  handle = function(request)
    return gateway.json { r = string.hostile_send(bytes(request.json)) }
  end })
local command = gateway.command { name = "wait", program = "@PROGRAM@",
  sha256 = "@SHA@", args = { "wait", gateway.slot "s" }, timeout = 20,
  concurrency = 4, slots = { s = { type = "string", maxLength = 5,
    pattern = "^[0-9]{1,5}$" } } }
gateway.post("/run", { authorize = id.anyone, validate = { json = { type = "string" } },
  handle = function(request)
    local r = command:run { s = request.json }
    return gateway.json { ok = r.ok, why = r.why } end })
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
gateway.admin { address = "127.0.0.1:@ADMIN@" }
@MORE@
"""


class Hostile(Gateway):
    def __init__(self, **keys):
        binary = os.path.join(gw.ROOT, "build", "hostile", "gateway")
        if not os.path.exists(binary):
            raise Skip("make build/hostile/gateway has not been run")
        if not NUMBERS:
            raise Skip("no system call numbers for this machine")
        path, sha = witness()
        keys.setdefault("MORE", "")
        super().__init__(POLICY, binary=binary, PROGRAM=path, SHA=sha, **keys)

    def post(self, path, value, client=None):
        """Throws where the worker died of it."""
        fields = [("Content-Type", "application/json")]
        return (client or self).request("POST", path, fields,
                                        json.dumps(value).encode())

    def call(self, name, *args, client=None):
        """What the call gave, or minus errno; None: the worker died."""
        args = [a.hex() if isinstance(a, bytes) else a for a in args]
        try:
            return self.post("/call", [NUMBERS[name], *args],
                             client).json()["r"]
        except (OSError, EOFError):
            return None

    def send(self, data, client=None):
        try:
            self.post("/send", data.hex(), client)
        except (OSError, EOFError):
            pass

    def run(self, s="0"):
        try:
            r = self.post("/run", s)
            return r.status == 200 and r.json()["ok"]
        except (OSError, EOFError, ValueError):
            return False

    def run_on(self, client, s):
        try:
            self.post("/run", s, client)
        except (OSError, EOFError):
            pass

    def serves(self):
        until(self.run, "programs run again", 15)
        equal(self.get("/ok").status, 200)


def types():
    """The numbers of frames, as this source has them."""
    text = read(os.path.join(gw.ROOT, "gateway.c")).decode()
    body = re.search(r"enum msg_type \{(.*?)MSG_TYPES", text, re.S).group(1)
    body = re.sub(r"//.*", "", body)
    names = re.findall(r"MSG_(\w+)", body)
    return {name: i + 1 for i, name in enumerate(names)}


def frame(kind, body=b"", flags=0, length=None):
    number = types()[kind] if isinstance(kind, str) else kind
    return struct.pack("=IHH", len(body) if length is None else length, number,
                       flags) + body


def text(s):
    return struct.pack("=I", len(s)) + s


def run(ticket, command=0, values=(b"0",), request=b"hostile"):
    return struct.pack("=QI", ticket, command) + text(request) + text(
        b"CN=nobody") + struct.pack("=I", len(values)) + b"".join(
            b"\1" + text(v) for v in values) + text(b"")


# ---- system calls ----------------------------------------------------------

def deadly(g):
    pid = g.workers()[0]
    path = b"/bin/sh\0"
    yield "execve", path, 0, 0
    yield "execveat", -100, path, 0, 0, 0
    yield "fork",
    yield "clone", signal.SIGCHLD, 0, 0, 0, 0
    yield "memfd_create", b"x\0", 0
    yield "kill", g.pid, signal.SIGTERM
    yield "kill", g.broker(), signal.SIGKILL
    yield "ptrace", 16, g.broker(), 0, 0
    yield "process_vm_readv", pid, 0, 0, 0, 0, 0
    yield "mmap", 0, 4096, 5, 0x22, -1, 0
    yield "mprotect", 0, 0, 4
    yield "setuid", 0
    yield "unshare", 0x10000000
    yield "mount", path, path, 0, 0, 0
    yield "bpf", 0, 0, 0
    yield "pidfd_open", g.broker(), 0


def test_calls_that_end_the_worker():
    """Each in a gateway of its own, for workers come back ever more slowly."""
    with Hostile() as g:
        cases = list(deadly(g))
    for i in range(len(cases)):
        with Hostile() as g:
            case = list(deadly(g))[i]
            worker, broker = g.workers()[0], g.broker()
            equal(g.call(*case), None, "%r" % (case,))
            g.wait_line("worker 1", "no honest one makes")
            assert not alive(worker), case
            assert g.alive() and alive(broker), case
            g.serves()


test_calls_that_end_the_worker.timeout = 120


def test_calls_that_are_refused_and_told():
    with Hostile() as g:
        before = g.workers()
        for case in (("socket", 16, 3, 0), ("socket", 2, 3, 17),
                     ("socket", 38, 5, 0), ("socketpair", 1, 1, 0, 0),
                     ("bind", 0, b"\2\0" + bytes(14), 16),
                     ("unlinkat", -100, b"/tmp/x\0", 0),
                     ("rename", b"/tmp/x\0", b"/tmp/y\0"),
                     ("tgkill", g.pid, g.pid, signal.SIGKILL),
                     ("prctl", 4, 1, 0, 0, 0)):
            equal(g.call(*case), -1, "%r" % (case,))
        unbound = g.call("socket", 2, 1, 0)
        assert unbound > 2, unbound
        equal(g.call("listen", unbound, 5), -1)
        for name in ("socket", "socketpair", "bind", "unlinkat", "rename",
                     "tgkill", "prctl", "listen"):
            g.wait_line("called %s (" % name, "it was refused")
        assert g.metric("gateway_sandbox_refused_calls_total") >= 10
        equal(g.call("clone3", 0, 0), -38)
        equal(g.call("io_uring_setup", 1, 0), -38)
        g.serves()
        equal(g.workers(), before)


def test_files_and_ports():
    with socket.socket() as other, Hostile() as g:
        other.bind(("127.0.0.1", 0))
        other.listen()
        read_only, create = 0, 0o101
        for path in ("/etc/passwd", g.policy, os.path.join(gw.PKI, "server.key"),
                     "/proc/self/maps", "/proc/%d/mem" % g.pid, "/bin/sh", "/"):
            equal(g.call("openat", -100, path.encode() + b"\0", read_only),
                  -13, path)
        equal(g.call("openat", -100, b"/tmp/x\0", create), -1)
        fd = g.call("openat", -100, b"/dev/null\0", read_only)
        assert fd > 2, fd
        fd = g.call("socket", 2, 1, 0)
        assert fd > 2, fd
        to = struct.pack("=H", socket.AF_INET) + struct.pack(
            ">H", other.getsockname()[1]) + socket.inet_aton("127.0.0.1")
        equal(g.call("connect", fd, to + bytes(8), 16), -13)
        fast_open = 0x20000000  # connects without connect()
        equal(g.call("sendto", fd, b"x", 1, fast_open, to + bytes(8), 16), -1)
        other.settimeout(0.2)
        try:
            other.accept()
            raise AssertionError("a connection past Landlock")
        except socket.timeout:
            pass
        # no upstream has a name, nor is one behind a Unix socket
        for family, kind in ((2, 2), (10, 2), (1, 1), (1, 2)):
            equal(g.call("socket", family, kind, 0), -1, (family, kind))
        g.serves()


def test_sockets_that_upstreams_need():
    with Hostile(MORE="""gateway.upstream { "http+unix:/tmp/none.sock" }
                         gateway.upstream { "http://name.example:80" }""") as g:
        for family, kind in ((1, 1), (2, 2), (10, 2)):
            assert g.call("socket", family, kind, 0) > 2, (family, kind)
        equal(g.call("socket", 1, 2, 0), -1)  # no datagrams to Unix sockets
        equal(g.call("socket", 2, 2, 1), -1)  # no ping


def test_the_log_is_not_gone_back_in():
    """It is a file here, opened to append; all processes share that."""
    f_setfl, seek_set = 4, 0
    with Hostile() as g:
        before = read(g.log_path)
        equal(g.call("fcntl", 2, f_setfl, 0), -1)
        equal(g.call("fcntl", 2 | 1 << 32, f_setfl, 0), -1)
        equal(g.call("lseek", 2, 0, seek_set), -1)
        equal(g.call("write", 2, b"mine\n", 5), 5)
        g.serves()
        assert read(g.log_path).startswith(before), "the log was overwritten"


def test_a_socket_that_is_shut_down():
    """It is one for all workers: none of them would ever accept again."""
    with Hostile(workers=2) as g:
        before = g.workers()
        client = g.connect()
        done = [g.call("shutdown", fd, 2, client=client) for fd in (5, 6)]
        assert 0 in done, done
        g.wait_line("shut down the socket of", "all workers are killed")
        until(lambda: not any(map(alive, before)), "the workers are gone")
        client.close()
        until(g.run, "it serves again", 15)


# ---- frames ----------------------------------------------------------------

BROKEN = {
    "an unknown type": (frame(999), "malformed frame"),
    "type zero": (frame(0), "malformed frame"),
    "unknown flags": (frame("EXEC_RUN", run(7), 64), "malformed frame"),
    "oversize": (frame("EXEC_RUN", b"", length=(256 << 10) + 1),
                 "malformed frame"),
    "the supervisor's": (frame("DRAIN"), "is not allowed here"),
    "a worker of its own": (frame("WORKER", flags=2), "a frame without its"),
    "expelling another": (frame("EXPEL", bytes(8)), "is not allowed here"),
    "the broker's": (frame("EXEC_END", bytes(64)), "is not allowed here"),
    "no such command": (frame("EXEC_RUN", run(7, command=1)),
                        "no such command"),
    "command -1": (frame("EXEC_RUN", run(7, command=0xffffffff)),
                   "no such command"),
    "no slots": (frame("EXEC_RUN", run(7, values=())), "or not its slots"),
    "a slot too many": (frame("EXEC_RUN", run(7, values=(b"0", b"0"))),
                        "or not its slots"),
    "a length beyond the end": (
        frame("EXEC_RUN", run(7)[:12] + b"\xff\xff\xff\x7f"), "run: "),
    "bytes left over": (frame("EXEC_RUN", run(7) + b"x"), "run: malformed"),
    "a request id without end": (
        frame("EXEC_RUN", run(7, request=b"x" * 5000)), "run: malformed"),
    "a ticket twice": (frame("EXEC_RUN", run(7, values=(b"9",))) * 2,
                       "a ticket that is in use"),
    "credit beyond the window": (
        frame("EXEC_RUN", run(7, values=(b"9",))) +
        frame("EXEC_CREDIT", struct.pack("=QI", 7, 0xffffffff)), "credit"),
    "stdin nobody asked for": (
        frame("EXEC_RUN", run(7, values=(b"9",))) +
        frame("EXEC_STDIN", struct.pack("=Q", 7) + text(b"x" * 9)), "stdin"),
}


def test_broken_frames():
    for what, (data, why) in BROKEN.items():
        with Hostile() as g:
            worker, broker = g.workers()[0], g.broker()
            g.send(data)
            g.wait_line("channel to worker 1 closed", why)
            g.wait_line("worker 1 is killed", "no honest worker sends")
            until(lambda: not alive(worker), what)
            assert alive(broker), what
            g.serves()
            equal(g.broker(), broker, what)


test_broken_frames.timeout = 120


def test_values_that_the_worker_would_have_refused():
    """No offence: refused by the broker's own table, with its record."""
    with Hostile() as g:
        for value in (b"-1", b"12x", b"", b"1\n", b"\xff", b"9" * 5000):
            mark = g.mark()
            g.send(frame("EXEC_RUN", run(7, values=(value,))))
            until(lambda: g.lines('"exec"', "hostile", "refused", since=mark),
                  "a record of %r" % value)
        assert not g.lines("closed", "channel to worker")
        g.serves()


def two_workers(g):
    """A connection to each."""
    first = g.connect()
    pid = g.call("getpid", client=first)
    for _ in range(100):
        second = g.connect()
        if g.call("getpid", client=second) != pid:
            return first, second
        second.close()
    raise AssertionError("all connections came to one worker")


def test_half_a_frame():
    """The broker waits for the rest, and serves others meanwhile."""
    with Hostile(workers=2) as g:
        bad, good = two_workers(g)
        pid = g.call("getpid", client=bad)
        g.send(frame("EXEC_RUN", run(7))[:20], client=bad)
        equal(g.post("/run", "0", good).json()["ok"], True)
        assert alive(pid), "half a frame is no offence"
        try:
            g.post("/run", "0", bad)  # which nobody understands any more
        except (OSError, EOFError):
            pass
        g.wait_line("is killed", "no honest worker sends")
        until(lambda: not alive(pid), "it is gone")
        equal(g.post("/run", "0", good).json()["ok"], True)
        bad.close()
        good.close()


def ends_well(g, ticket, runs, other):
    """A run on one connection, which the other worker tries to end."""
    result = []
    mark = g.mark()
    thread = threading.Thread(target=lambda: result.append(
        g.post("/run", "1", runs).json()["ok"]))
    thread.start()
    g.wait_line('"exec"', '"start"', since=mark)
    body = struct.pack("=Q", ticket)
    g.send(frame("EXEC_STDIN", body + text(b"")) +
           frame("EXEC_CREDIT", body + bytes(4)) +
           frame("EXEC_CANCEL", body), client=other)
    thread.join()
    return result == [True]


def test_another_workers_ticket():
    """Tickets are numbers that can be guessed: slot 0, first use."""
    with Hostile(workers=2) as g:
        mine, other = two_workers(g)
        assert ends_well(g, 1 << 32, mine, other)
        assert not g.lines("channel to worker", "closed")
        pid = g.call("getpid", client=mine)
        for _ in range(100):  # the control: from the worker itself it works
            third = g.connect()
            if g.call("getpid", client=third) == pid:
                break
            third.close()
        mark = g.mark()
        thread = threading.Thread(target=lambda: g.run_on(mine, "9"),
                                  daemon=True)
        thread.start()
        g.wait_line('"exec"', '"start"', since=mark)
        g.send(frame("EXEC_CANCEL", struct.pack("=Q", 3 << 32)), client=third)
        g.wait_line('"exec"', '"result":"cancelled"', since=mark)
        mine.close()
        third.close()
        other.close()


# ---- what is not there -----------------------------------------------------

def memory(pid):
    """All that a process has in memory and can be read."""
    with open("/proc/%d/maps" % pid) as maps, open("/proc/%d/mem" % pid,
                                                   "rb", 0) as mem:
        for line in maps:
            m = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if not m or "[vvar" in line or "[vsyscall" in line:
                continue
            start, end = (int(x, 16) for x in m.groups())
            try:
                mem.seek(start)
                yield mem.read(end - start)
            except (OSError, OverflowError):
                pass


def test_the_broker_holds_no_key_and_no_script():
    if os.geteuid():
        raise Skip("only root can look into another process")
    der = gw.sh("openssl", "ec", "-in", os.path.join(gw.PKI, "server.key"),
                "-text", "-noout").out
    key = bytes.fromhex("".join(re.search(
        r"priv:\n(.*?)pub:", der, re.S).group(1).split()).replace(":", ""))
    key = key[-32:]
    pem = read(os.path.join(gw.PKI, "server.key")).split(b"\n")[1][:40]
    script = b"string.hostile_send(bytes(request.json))"
    with Hostile() as g:
        assert g.run()
        broker = b"".join(memory(g.broker()))
        worker = b"".join(memory(g.workers()[0]))
        assert len(broker) > 1 << 20 and b"wait" in broker, len(broker)
        assert script in worker, "the worker has no script"
        assert key in worker or key[::-1] in worker, "the worker has no key"
        for what, secret in (("key", key), ("key, reversed", key[::-1]),
                             ("key as PEM", pem), ("script", script)):
            assert secret not in broker, "the broker holds the " + what
        with open("/proc/%d/status" % g.broker()) as f:
            status = f.read()
        assert "Seccomp:\t2" in status and "NoNewPrivs:\t1" in status, status
