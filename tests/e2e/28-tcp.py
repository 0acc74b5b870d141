"""gateway.tcp: any protocol over TCP behind mutual TLS, with real clients."""

import hashlib
import os
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time

from gw import (ASAN, PKI, SOCKET_S, Client, Gateway, Listener, OpensslCa,
                Skip, cert, equal, free_port, gateway_cli, read, sh, spawn,
                status_kib, tmpdir, until, write)

GROWN_KIB = (96 if ASAN else 16) << 10  # ASan keeps what is freed

POLICY = """
gateway.process { workers = @WORKERS@, drain = 2 }
gateway.admin { address = "127.0.0.1:@ADMIN@" }
gateway.tcp {
  listen = { name = "plain", address = "127.0.0.1:@PORT@",
    certificate = "@PKI@/server.crt", key = "@PKI@/server.key",
    client_ca = "@CA@", @LISTEN@ },
  authorize = id.ou "ops", to = "@TO@", @TCP@
}
"""
HEAD = """
local gateway = require "gateway"
local id = require "gateway.identity"
"""


def tcp(to, tcp="", listen="", ca=PKI + "/clients.pem", **tokens):
    return Gateway(HEAD + POLICY, head=False, TCP=tcp, TO=to, CA=ca,
                   listen=listen, **tokens)


class Server(Listener):
    """One thread a connection runs `serve(sock)`; nothing is closed before."""

    def __init__(self, serve):
        self.serve, self.seen, self.lock = serve, [], threading.Lock()
        self.listen()

    def one(self, sock):
        try:
            result = self.serve(sock)
        except OSError as problem:
            result = problem
        with self.lock:
            self.seen.append(result)
        sock.close()

    def stop(self):
        self.sock.close()

    def wait(self, count=1):
        until(lambda: len(self.seen) >= count, "%d connections ended" % count)
        return self.seen


def everything(sock):
    """All bytes until the other side ends."""
    data = b""
    while True:
        part = sock.recv(65536)
        if not part:
            return data
        data += part


def echo(sock):
    count = 0
    while True:
        part = sock.recv(65536)
        if not part:
            return count
        count += len(part)
        sock.sendall(part)


class Half:
    """A TLS client by memory BIOs: Python's sockets cannot half-close."""

    def __init__(self, port, who="ops"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(PKI + "/servers.pem")
        context.load_cert_chain(*cert(who))
        self.raw = socket.create_connection(("127.0.0.1", port), SOCKET_S)
        self.into, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.into, self.out,
                                    server_hostname="localhost")
        self.cut = False
        self.do(self.tls.do_handshake)

    def flush(self):
        data = self.out.read()
        if data:
            self.raw.sendall(data)

    def do(self, what, *args):
        while True:
            try:
                result = what(*args)
                self.flush()
                return result
            except ssl.SSLWantReadError:
                self.flush()
                data = self.raw.recv(65536)
                if data:
                    self.into.write(data)
                else:
                    self.into.write_eof()

    def send(self, data):
        for at in range(0, len(data), 16384):
            self.do(self.tls.write, data[at:at + 16384])

    def end(self, fin=True):
        """close_notify, and FIN: nothing more comes from us."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self.flush()
        if fin:
            self.raw.shutdown(socket.SHUT_WR)

    def read(self):
        """Some bytes; b"" after close_notify. A cut raises SSLEOFError."""
        try:
            return self.do(self.tls.read, 65536)
        except ssl.SSLZeroReturnError:
            return b""

    def rest(self):
        data = b""
        while True:
            part = self.read()
            if not part:
                return data
            data += part

    def close(self):
        self.raw.close()


def access(g, **want):
    return g.wait_record(event="access", tunnel="tcp", **want)


# ---- real programs ---------------------------------------------------------

class Redis:
    def __init__(self):
        if not shutil.which("redis-server") or not shutil.which("redis-cli"):
            raise Skip("redis-server or redis-cli is not installed")
        self.port = free_port()
        self.process = spawn(["redis-server", "--port", str(self.port),
                              "--bind", "127.0.0.1", "--save", "",
                              "--appendonly", "no", "--dir", tmpdir("redis")],
                             stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
        until(self.up, "redis-server listens", 10)

    def up(self):
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        self.process.kill()
        self.process.wait(5)


def redis_cli(g, *argv, who="ops", input=None):
    crt, key = cert(who)
    return sh("redis-cli", "-h", "localhost", "-p", str(g.port), "--tls",
              "--cert", crt, "--key", key, "--cacert", PKI + "/servers.pem",
              *argv, check=False, input=input)


def test_redis():
    redis = Redis()
    with tcp("tcp://127.0.0.1:%d" % redis.port) as g:
        equal(redis_cli(g, "set", "color", "green").out, "OK\n")
        equal(redis_cli(g, "get", "color").out, "green\n")
        value = os.urandom(3 << 20).hex()
        equal(redis_cli(g, "-x", "set", "big", input=value.encode()).out,
              "OK\n")
        equal(redis_cli(g, "get", "big").out, value + "\n")
        equal(redis_cli(g, "-r", "200", "incr", "n").out.split()[-1], "200")
        record = access(g, identity="CN=ops,OU=ops")
        equal(record["listener"], "plain")
        assert record["received"] > 10 and record["sent"] > 4, record
        refused = redis_cli(g, "get", "color", who="guest")
        assert "green" not in refused.out, refused.out
        denied = g.wait_record(event="decision", stage="authorize")
        equal(denied["allowed"], False)
        assert "guests" in denied["identity"], denied
        equal(g.metric("gateway_denials_total", stage="authorize"), 1)
        assert g.metric("gateway_tunnels_total", kind="tcp") >= 5
        assert g.metric("gateway_tunnel_bytes_total", direction="in") > 6 << 20
        until(lambda: g.metric("gateway_tunnels") == 0, "all tunnels ended")
    redis.stop()


def test_openssl_s_client():
    server = Server(lambda s: (s.sendall(b"welcome\n"), everything(s))[1])
    with tcp(server.to) as g:
        done = g.s_client("-no_ign_eof", data=b"hello\n")
        assert b"welcome" in done.stdout or done.returncode == 0, done.err
        equal(server.wait()[0], b"hello\n")
    server.stop()


# ---- who -------------------------------------------------------------------

def test_refused_before_a_byte_goes_upstream():
    server = Server(everything)
    with tcp(server.to) as g:
        with Client(g.port, "guest") as c:
            c.send(b"secret")
            assert not c.fill()
            equal(c.closed, "end", "a refusal closes with close_notify")
        g.wait_record(event="decision", stage="authorize", status=403)
        equal(server.seen, [])
        with Client(g.port) as c:
            c.send(b"secret")
            c.sock.unwrap()
        equal(server.wait(), [b"secret"], "only the allowed one arrived")
    server.stop()


def test_no_certificate_no_tunnel():
    server = Server(everything)
    with tcp(server.to) as g:
        context = ssl.create_default_context(cafile=PKI + "/servers.pem")
        try:
            with socket.create_connection(("127.0.0.1", g.port)) as raw:
                with context.wrap_socket(raw, server_hostname="localhost") as s:
                    s.sendall(b"x")
                    assert not s.recv(1), "served without a certificate"
        except (ssl.SSLError, OSError):
            pass
        g.wait_line("handshake", "no certificate")
        equal(server.seen, [])
    server.stop()


def test_a_function_may_wait_and_early_bytes_are_kept():
    server = Server(everything)
    with tcp(server.to, tcp="""
  log = function(request, response, decision)
    gateway.log("tunnel of " .. request.remote .. " ended, allowed "
      .. tostring(decision.allowed)) end, }
gateway.tcp {
  listen = { address = "127.0.0.1:@SLOW@", certificate = "@PKI@/server.crt",
    key = "@PKI@/server.key", client_ca = "@PKI@/clients.pem" },
  to = "@TO@",
  authorize = function(identity)
    gateway.sleep(0.3)
    return identity:has("ou", "ops"), "not one of us"
  end,
""", SLOW=free_port()) as g:
        with Client(g.tokens["SLOW"]) as c:
            c.send(b"a" * 40000)
            c.sock.unwrap()
        equal(server.wait(), [b"a" * 40000])
        with Client(g.tokens["SLOW"], "guest") as c:
            c.send(b"b" * 40000)
            assert not c.fill(), "served"
        g.wait_record(event="decision", reason="not one of us")
        with Client(g.port) as c:
            c.send(b"c")
            c.sock.unwrap()
        g.wait_line("tunnel of 127.0.0.1", "allowed true")
        equal(server.wait(2)[1:], [b"c"])
    server.stop()


def test_a_log_hook_may_read_all_there_is():
    server = Server(echo)
    with tcp(server.to, tcp="""log = function(request, response, decision)
    local seen = {}
    for _, name in ipairs { "id", "method", "target", "remote", "route", "path",
      "query", "headers", "json", "body", "tls", "identity", "raw" } do
      seen[#seen + 1] = name .. "=" .. tostring(request[name])
    end
    for _, name in ipairs { "path", "query", "headers", "body" } do
      pcall(function() return request.raw[name].x end)
      pcall(function() return request.raw[name]:check(gateway.string) end)
    end
    gateway.log(table.concat(seen, " ") .. " " .. request.tls.server_name ..
      " " .. response.status .. " " .. decision.stage .. " " ..
      request.identity.subject.dn .. tostring(next(response.headers)))
  end""") as g:
        with Client(g.port) as c:
            c.send(b"x")
            assert c.fill()
            c.sock.unwrap()
        line = g.wait_line("method= target= remote=")
        assert "localhost 200 over CN=ops,OU=opsnil" in line[0], line
        with Client(g.port, "guest") as c:
            assert not c.fill()
        g.wait_line("localhost 403 authorize CN=guest")
        assert not g.lines('"room":"hook"')
    server.stop()


def test_a_hook_that_throws_lets_nobody_in():
    server = Server(echo)
    with tcp(server.to, tcp="""}
gateway.tcp {
  listen = { address = "127.0.0.1:@SLOW@", certificate = "@PKI@/server.crt",
    key = "@PKI@/server.key", client_ca = "@PKI@/clients.pem",
    limits = { hook_time = 0.3 } },
  to = "@TO@",
  authorize = function(identity)
    if identity:has("ou", "guests") then gateway.sleep(5) end
    error "a bug"
  end,
""", SLOW=free_port()) as g:
        for who in ("ops", "guest"):
            with Client(g.tokens["SLOW"], who) as c:
                c.send(b"x")
                assert not c.fill(), "served"
        g.wait_line("a bug")
        g.wait_line("hook_time")
        equal(server.seen, [])
    server.stop()


def test_what_waits_for_authorize_is_bounded():
    """A client that floods while a hook thinks is not read any further."""
    server = Server(everything)
    with tcp(server.to, tcp="""}
gateway.tcp {
  listen = { address = "127.0.0.1:@SLOW@", certificate = "@PKI@/server.crt",
    key = "@PKI@/server.key", client_ca = "@PKI@/clients.pem" },
  to = "@TO@",
  authorize = function() gateway.sleep(2) return false, "no" end,
""", SLOW=free_port()) as g:
        with Client(g.tokens["SLOW"]) as c:
            c.sock.settimeout(0.5)
            sent = 0
            try:
                while sent < 64 << 20:
                    sent += c.sock.send(b"x" * 65536)
            except (socket.timeout, TimeoutError, OSError):
                pass
            assert sent < 32 << 20, "%d bytes were taken" % sent
            g.wait_record(event="decision", reason="no")
        equal(server.seen, [])
    server.stop()


def test_per_identity():
    server = Server(echo)
    with tcp(server.to, listen="limits = { per_identity = 2 }") as g:
        a, b = Client(g.port), Client(g.port)
        for c in (a, b):
            c.send(b"x")
            assert c.fill()
        with Client(g.port) as c:
            assert not c.fill(), "a third connection of one identity"
        g.wait_record(event="decision", status=429)
        for c in (a, b):
            c.send(b"x")
            assert c.fill(), "the first two go on"
            c.close()
    server.stop()


# ---- bytes -----------------------------------------------------------------

def test_big_transfers_both_ways_whole():
    data = random.Random(1).randbytes(24 << 20)
    digest = hashlib.sha256(data).hexdigest()
    got = []

    def both(sock):
        sender = threading.Thread(target=lambda: (
            sock.sendall(data), sock.shutdown(socket.SHUT_WR)), daemon=True)
        sender.start()
        got.append(hashlib.sha256(everything(sock)).hexdigest())
        sender.join()
        return "done"

    server = Server(both)
    with tcp(server.to) as g:
        c = Half(g.port)
        # one thread that writes first: neither direction waits for the other
        back, count = hashlib.sha256(), 0
        for at in range(0, len(data), 1 << 20):
            c.send(data[at:at + (1 << 20)])
        while count < len(data):
            part = c.read()
            assert part, "ended after %d bytes" % count
            back.update(part)
            count += len(part)
        c.end(fin=False)
        equal(c.rest(), b"")
        c.close()
        equal(server.wait(), ["done"])
        equal(got, [digest], "client to upstream")
        equal(back.hexdigest(), digest, "upstream to client")
        record = access(g)
        equal(record["ended"], "by both sides")
        equal((record["received"], record["sent"]), (len(data), len(data)))
    server.stop()


def test_half_close_by_the_client():
    """What the upstream says after the client's end still arrives."""
    server = Server(lambda s: (lambda d: (
        s.sendall(hashlib.sha256(d).hexdigest().encode()), len(d)))(
            everything(s))[1])
    with tcp(server.to) as g:
        for fin in (True, False):
            c = Half(g.port)
            c.send(b"abc" * 100000)
            c.end(fin)
            equal(c.rest(), hashlib.sha256(b"abc" * 100000).hexdigest()
                  .encode(), "fin=%s" % fin)
            c.close()
        equal(server.wait(2), [300000, 300000])
        equal(access(g)["ended"], "by both sides")
    server.stop()


def test_half_close_by_the_upstream():
    def first(sock):
        sock.sendall(b"all I say")
        sock.shutdown(socket.SHUT_WR)
        return everything(sock)

    server = Server(first)
    with tcp(server.to) as g:
        c = Half(g.port)
        equal(c.rest(), b"all I say")
        c.send(b"and yet " * 20000)
        c.end()
        equal(server.wait(), [b"and yet " * 20000])
        c.close()
        equal(access(g)["ended"], "by both sides")
    server.stop()


def test_a_cut_client_looks_cut_upstream():
    """Without close_notify the upstream sees a reset, never an end."""
    server = Server(everything)
    with tcp(server.to) as g:
        c = Half(g.port)
        c.send(b"half a mess")
        until(lambda: g.metric("gateway_tunnel_bytes_total",
                               direction="in") == 11, "the bytes are through")
        c.close()
        ended = server.wait()[0]
        assert isinstance(ended, ConnectionResetError), ended
        assert "client closed" in access(g)["ended"]
    server.stop()


def test_a_cut_upstream_looks_cut_to_the_client():
    def reset(sock):
        sock.recv(10)
        sock.sendall(b"half")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                        b"\x01\0\0\0\0\0\0\0")

    server = Server(reset)
    with tcp(server.to) as g:
        for _ in range(20):  # libuv may call a reset an end
            with Client(g.port) as c:
                c.send(b"x")
                while c.fill():
                    pass
                assert c.closed in ("cut", "reset"), c.closed
        g.wait_record(event="error", room="proxy")
    server.stop()


def test_a_slow_reader_bounds_memory():
    def flood(sock):
        sent = 0
        sock.settimeout(1)
        try:
            while sent < 256 << 20:
                sent += sock.send(b"x" * 65536)
        except (socket.timeout, TimeoutError):
            pass
        return sent

    server = Server(flood)
    with tcp(server.to) as g:
        worker = g.workers()[0]
        c = Client(g.port, rcvbuf=4096)
        before = status_kib(worker, "VmRSS")
        sent = server.wait()[0]
        assert sent < 64 << 20, "%d bytes were taken for a reader asleep" % sent
        grown = status_kib(worker, "VmRSS") - before
        assert grown < GROWN_KIB, "%d KiB for one slow reader" % grown
        c.close()
    server.stop()


def test_a_slow_upstream_bounds_memory():
    hold = threading.Event()
    server = Server(lambda s: hold.wait(SOCKET_S))
    with tcp(server.to) as g:
        worker = g.workers()[0]
        with Client(g.port) as c:
            before = status_kib(worker, "VmRSS")
            c.sock.settimeout(1)
            sent = 0
            try:
                while sent < 256 << 20:
                    sent += c.sock.send(b"x" * 65536)
            except (socket.timeout, TimeoutError, OSError):
                pass
            assert sent < 64 << 20, "%d bytes were taken" % sent
            grown = status_kib(worker, "VmRSS") - before
            assert grown < GROWN_KIB, "%d KiB" % grown
        hold.set()
    server.stop()


# ---- ends ------------------------------------------------------------------

def test_the_upstream_is_down():
    with tcp("tcp://127.0.0.1:%d" % free_port()) as g:
        with Client(g.port) as c:
            c.send(b"x")
            assert not c.fill()
        g.wait_record(event="error", room="proxy", kind="upstream")
        equal(g.wait_record(event="access", status=502)["sent"], 0)
        assert g.metric("gateway_upstream_connections_total",
                        result="failed") >= 1


def test_several_targets_and_one_is_down():
    server = Server(echo)
    with Gateway(HEAD + """
local both = gateway.upstream { "tcp://127.0.0.1:@DEAD@", "@TO@",
  connect_timeout = 2 }
""" + POLICY.replace('"@TO@"', "both"), head=False, TO=server.to, TCP="",
            CA=PKI + "/clients.pem", DEAD=free_port()) as g:
        for _ in range(4):
            with Client(g.port) as c:
                c.send(b"ping")
                assert c.fill() and c.buffer == b"ping", c.closed
    server.stop()


def test_unix_upstream():
    path = tmpdir("tcp-unix") + "/s"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    os.chmod(path, 0o777)
    sock.listen(5)
    with tcp("unix:" + path) as g:
        with Client(g.port) as c:
            c.send(b"hello")
            s, _ = sock.accept()
            s.settimeout(SOCKET_S)
            equal(s.recv(100), b"hello")
            s.sendall(b"hi")
            assert c.fill()
            equal(c.buffer, b"hi")
            s.close()
    sock.close()


def test_idle():
    server = Server(everything)
    with tcp(server.to, tcp="idle = 0.5") as g:
        with Client(g.port) as c:
            c.send(b"x")
            assert c.is_closed(), "still open"
            equal(c.closed, "cut")
        assert "no byte for 500 ms" in access(g)["ended"]
        equal(g.metric("gateway_limits_total", limit="tunnel_idle"), 1)
        assert isinstance(server.wait()[0], ConnectionResetError)
    server.stop()


def test_half_idle():
    """One side has ended, the other says nothing: not for ever."""
    hold = threading.Event()
    server = Server(lambda s: (everything(s), hold.wait(SOCKET_S)))
    with tcp(server.to, tcp="half_idle = 0.5") as g:
        c = Half(g.port)
        c.send(b"x")
        c.end()
        assert "after one side had ended" in access(g)["ended"]
        c.close()
        hold.set()
    server.stop()


def test_the_certificate_expires():
    """At notAfter the tunnel is cut, busy or not; others go on."""
    folder = tmpdir("short")
    ca = OpensslCa(folder, "short-ca")
    end = time.time() + 4
    pair = ca.leaf("brief", "/OU=ops/CN=brief", end=end)
    both = write(folder + "/both.pem", read(ca.crt) + read(PKI + "/ca.crt"))
    server = Server(echo)
    with tcp(server.to, ca=both) as g, Client(g.port) as other:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(PKI + "/servers.pem")
        context.load_cert_chain(*pair)
        raw = socket.create_connection(("127.0.0.1", g.port), SOCKET_S)
        with context.wrap_socket(raw, server_hostname="localhost") as sock:
            def cut():
                try:
                    sock.sendall(b"x")
                    return not sock.recv(1)
                except OSError:
                    return True
            until(cut, "it outlives its certificate", 20)
        assert time.time() >= end - 1, "cut before its time"
        assert "has expired since it connected" in access(g)["ended"]
        equal(g.metric("gateway_connections_total",
                       result="certificate_expired"), 1)
        other.send(b"still here")
        assert other.fill() and other.buffer == b"still here"
    server.stop()


def test_reload_drains_and_then_cuts():
    server = Server(echo)
    with tcp(server.to) as g:
        with Client(g.port) as c:
            c.send(b"1")
            assert c.fill()
            g.reload()
            c.send(b"2")
            assert c.fill() and c.buffer == b"12", "cut at once"
            with Client(g.port) as fresh:
                fresh.send(b"3")
                assert fresh.fill(), "the new generation serves"
            assert not c.fill(), "not cut when the drain was over"
        record = access(g, status=200, received=2)
        assert "stops" in record["ended"], record
    server.stop()


def test_stop_waits_for_a_tunnel():
    server = Server(echo)
    with tcp(server.to) as g:
        with Client(g.port) as c:
            c.send(b"1")
            assert c.fill()
            g.signal(15)
            g.wait_record(event="drain")
            c.send(b"2")
            assert c.fill() and c.buffer == b"12"
            c.sock.unwrap()
        until(lambda: not g.alive(), "it leaves with its last tunnel", 5)
    server.stop()


def test_anything_goes():
    """Ends of every kind, in any order, at once: nothing is left, nobody dies."""
    def odd(sock):
        dice = random.Random(sock.getpeername()[1])
        for _ in range(dice.randint(0, 6)):
            what = dice.randint(0, 3)
            if what == 0:
                sock.sendall(b"u" * dice.choice((1, 70000, 900000)))
            elif what == 1:
                sock.recv(dice.choice((1, 65536)))
            elif what == 2:
                sock.shutdown(socket.SHUT_WR)
                return everything(sock)
        if dice.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                            b"\1\0\0\0\0\0\0\0")

    def client(port, seed):
        dice = random.Random(seed)
        try:
            c = Half(port, dice.choice(("ops", "ops", "guest")))
            c.raw.settimeout(1)
            for _ in range(dice.randint(0, 6)):
                what = dice.randint(0, 3)
                if what == 0:
                    c.send(b"c" * dice.choice((1, 70000, 900000)))
                elif what == 1:
                    c.read()
                elif what == 2:
                    c.end(dice.random() < 0.5)
                    c.rest()
                    break
            c.close()
        except (OSError, ssl.SSLError):
            c.close()

    server = Server(odd)
    with tcp(server.to, tcp="idle = 3, half_idle = 1") as g:
        worker = g.workers()
        for turn in range(6):
            threads = [threading.Thread(target=client, daemon=True, args=(
                g.port, turn * 100 + i)) for i in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(SOCKET_S)
        until(lambda: g.metric("gateway_tunnels") == 0, "tunnels are left", 10)
        until(lambda: g.metric("gateway_connections") == 0, "connections", 10)
        equal(g.workers(), worker)
        with Client(g.port) as c:
            assert c.sock.version()
    server.stop()


# ---- declarations ----------------------------------------------------------

def test_alpn():
    server = Server(echo)
    with tcp(server.to, tcp='alpn = { "redis", "x" }') as g:
        with Client(g.port, alpn=["x"]) as c:
            equal(c.sock.selected_alpn_protocol(), "x")
        with Client(g.port) as c:
            c.send(b"1")
            assert c.fill(), "none is offered: none is needed"
        try:
            with Client(g.port, alpn=["h2"]) as c:
                c.send(b"1")
                assert not c.fill(), "an unknown protocol was accepted"
        except (ssl.SSLError, OSError):
            pass
    server.stop()


def test_browsers_stay_out():
    """What offers HTTP by ALPN is led by a web page, perhaps (ALPACA)."""
    server = Server(echo)
    for alpn, names, welcome in (
            ("", ["h2", "http/1.1"], False), ("", ["x", "http/1.0"], False),
            ("", ["x"], True), ('alpn = { "http/1.1" }', ["http/1.1"], True)):
        with tcp(server.to, tcp=alpn) as g:
            try:
                with Client(g.port, alpn=names) as c:
                    c.send(b"1")
                    assert c.fill() and welcome, names
            except (ssl.SSLError, OSError) as e:
                assert not welcome, (names, e)
                assert "no application protocol" in str(e), e
                g.wait_line("name its protocol in alpn")
    server.stop()


def test_mistakes():
    folder = tmpdir("tcp-bad")
    listen = ('listen = { address = "127.0.0.1:1", certificate = "a",'
              ' key = "b", client_ca = "c" }')
    for text, want in (
            ("gateway.tcp { %s, to = 'tcp://127.0.0.1:1' }" % listen,
             "'authorize' is missing"),
            ("gateway.tcp { %s, authorize = id.anyone }" % listen,
             "'to' is missing"),
            ("gateway.tcp { %s, authorize = id.anyone, to = 'http://a' }"
             % listen, "tcp://HOST:PORT"),
            ("gateway.tcp { %s, authorize = id.anyone, to = 'tcp://a' }"
             % listen, "tcp://HOST:PORT"),
            ("gateway.tcp { %s, authorize = id.anyone,"
             " to = gateway.upstream { 'http://127.0.0.1:1' } }" % listen,
             "of http:// targets"),
            ("gateway.upstream { 'tcp://127.0.0.1:1', 'http://127.0.0.1:2' }",
             "mixes"),
            ("gateway.upstream { 'http://127.0.0.1:2', proxy_protocol = 'v2' }",
             "shared by clients"),
            ("gateway.get('/x', { authorize = id.anyone,"
             " handle = gateway.upstream { 'tcp://127.0.0.1:1' } })",
             "a route needs http://"),
            ("gateway.get('/x', { authorize = id.anyone, upgrade = 'h2c',"
             " handle = gateway.upstream { 'http://127.0.0.1:1' } })"
             " gateway.listen { address = '127.0.0.1:2', certificate = 'a',"
             " key = 'b', client_ca = 'c' }", "past this policy"),
            ("gateway.post('/x', { authorize = id.anyone,"
             " upgrade = 'websocket', handle = gateway.upstream {"
             " 'http://127.0.0.1:1' } })", "only a GET")):
        done = gateway_cli("check", write(folder + "/p.lua", HEAD + text))
        equal(done.returncode, 1, text)
        assert want in done.err + done.out, (want, done.err + done.out)


def test_check_prints_it():
    server = Server(echo)
    with tcp(server.to) as g:
        out = gateway_cli("check", g.policy).out
        assert "tcp       upstream" in out and 'who       ou "ops"' in out, out
    server.stop()
