"""Clients, upstreams and programs that do whatever, whenever: the worker stays,
nothing is left in progress, nothing leaks."""

import os
import random
import socket
import ssl
import struct
import threading
import time

from gw import (ASAN, PKI, SOCKET_S, Gateway, Upstream, build, cert, programs,
                equal, status_kib, until, witness)

ALONE = True
POLICY = """
gateway.admin { address = "127.0.0.1:@ADMIN@" }
local app = gateway.upstream { "http://127.0.0.1:@UP@", head_timeout = 1,
                               idle_timeout = 1, keepalive = 4 }
local wait = gateway.command { name = "wait", program = "@PROGRAM@",
  sha256 = "@SHA@", args = { "spew", "100000" }, timeout = 1, queue = 4 }
gateway.any("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path },
               body = gateway.stream "1M" },
  handle = app:to "/internal/{path}" })
gateway.post("/json", { authorize = id.anyone,
  validate = { json = { type = "object", properties = {
    a = { type = "integer" } } } },
  check = function(request) gateway.sleep(0.01)
    return request.json.a ~= 7, "seven" end,
  handle = function(request) return gateway.json { a = request.json.a } end })
gateway.get("/fetch", { authorize = id.ou "ops", handle = function()
  local got = gateway.fetch(app, { path = "/internal/chunked/5000" })
  return gateway.text(got and #got.body .. "" or "none") end })
gateway.get("/run", { authorize = id.anyone, handle = function()
  local r = wait:run {} return gateway.text(r.stdout) end })
gateway.get("/throw", { authorize = id.anyone, handle = function()
  gateway.sleep(0.005) error { "x" } end })
gateway.get("/big", { authorize = id.anyone, handle = function()
  return gateway.text(("x"):rep(300000)) end })
"""


class Both(Gateway):
    def __init__(self):
        self.up = Upstream().start()
        path, sha = witness()
        super().__init__(POLICY, UP=self.up.port, PROGRAM=path, SHA=sha,
                         listen="limits = { per_identity = 1000, head = 1, "
                         "body_idle = 1, handshake = 1, idle = 2 }")

    def stop(self):
        self.up.stop()
        return super().stop()

    def quiet(self):
        """Nothing is in progress any more."""
        until(lambda: self.metric("gateway_requests_in_progress") <= 1
              and self.metric("gateway_connections") <= 1
              and self.metric("gateway_tls_handshakes_in_progress") == 0
              and not programs(self.broker()), "all is quiet", 15)

    def kept(self):
        """Upstream connections that the gateway has not closed."""
        count = 0
        for c in list(self.up.open):
            try:
                end = c.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                count += end != b""
            except BlockingIOError:
                count += 1
            except OSError:
                pass
        return count


def setup():
    return Both()


TARGETS = ["/p/x", "/p/big/200K", "/p/chunked/50000/999", "/p/die/5000",
           "/p/die-chunked/300K", "/p/reset/100", "/p/drop", "/p/stale",
           "/p/hangup", "/p/slow/0.02", "/p/drip/3/0.01", "/p/early", "/fetch",
           "/p/raw/two-cl", "/p/raw/bad-chunk", "/p/raw/two", "/p/raw/close",
           "/p/raw/continue", "/run", "/throw", "/big", "/nothing", "/p/../x",
           "/p/hang", "/p/status/204", "/json"]


def some_request(r):
    target = r.choice(TARGETS)
    kind = r.random()
    if kind < 0.5:
        return build(r.choice(["GET", "GET", "HEAD", "DELETE"]), target)
    if kind < 0.7:
        return build("POST", target, [], os.urandom(r.choice([0, 9, 90000])))
    if kind < 0.8:
        return build("POST", "/json", [("Content-Type", "application/json")],
                     b'{"a":%d}' % r.randrange(9))
    chunks = b"".join(b"%x\r\n%s\r\n" % (n, b"y" * n) for n in (
        r.randrange(1, 5000) for _ in range(r.randrange(5))))
    end = r.choice([b"0\r\n\r\n", b"0\r\n\r\n", b"", b"zz\r\n", b"0\n\n"])
    return build("POST", target, [("Transfer-Encoding", "chunked")],
                 chunks + end)


def mutate(r, data):
    data = bytearray(data)
    for _ in range(r.randrange(1, 4)):
        at = r.randrange(len(data))
        data[at:at + r.randrange(3)] = os.urandom(r.randrange(3))
    return bytes(data)


def context():
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(PKI + "/servers.pem")
    made.load_cert_chain(*cert("ops"))
    return made


def one_client(g, r, tls):
    """One connection that does something and ends somehow."""
    raw = socket.create_connection(("127.0.0.1", g.port), SOCKET_S)
    if r.random() < 0.3:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                       struct.pack("ii", 1, 0))
    kind = r.random()
    if kind < 0.1:  # never gets to TLS
        raw.sendall(os.urandom(r.randrange(1, 600)))
        raw.close()
        return
    s = tls.wrap_socket(raw, server_hostname="localhost",
                        do_handshake_on_connect=kind > 0.15)
    try:
        if kind < 0.15:
            return
        s.settimeout(0.3 * r.random() + 0.01)
        data = b"".join(some_request(r) for _ in range(r.randrange(1, 4)))
        if r.random() < 0.3:
            data = mutate(r, data)
        if r.random() < 0.3:
            data = data[:r.randrange(len(data)) + 1]
        while data:
            step = r.choice([1, 7, 100, 20000, 100000])
            s.sendall(data[:step])
            data = data[step:]
            if step < 10 and r.random() < 0.2:
                break
        if r.random() < 0.7:
            while s.recv(r.choice([10, 1000, 65536])):
                if r.random() < 0.05:
                    break
        if r.random() < 0.05:
            raw = s.detach()
            os.write(raw, os.urandom(100))  # rubbish between TLS records
            os.close(raw)
    finally:
        s.close()


def storm(g, seconds, seed):
    end = time.monotonic() + seconds

    def run(number):
        r, tls = random.Random("%s %d" % (seed, number)), context()
        while time.monotonic() < end:
            try:
                one_client(g, r, tls)
            except (OSError, ValueError):
                pass
    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    return threads


def test_a_storm(g):
    seed = os.environ.get("E2E_SEED") or str(random.randrange(10 ** 9))
    worker, broker = g.workers(), g.broker()
    for t in storm(g, float(os.environ.get("E2E_STORM", "6")), seed):
        t.join()
    equal(g.workers(), worker, "the worker after seed %s" % seed)
    equal(g.broker(), broker, "the broker after seed %s" % seed)
    g.quiet()
    equal(g.get("/p/x").status, 200)
    until(lambda: g.kept() <= 4, "the pool is within its size", 10)


test_a_storm.timeout = 120


def test_a_storm_with_reloads(g):
    threads = storm(g, 4, "reload")
    while any(t.is_alive() for t in threads):
        g.reload()
        time.sleep(0.3)
    assert g.alive(), "it died"
    until(lambda: len(g.workers()) == 1, "the old workers are gone", 40)
    equal(g.get("/p/x").status, 200)
    lines = g.lines("ended: signal")
    assert not lines, lines


test_a_storm_with_reloads.timeout = 120


def test_memory_comes_back(g):
    """The same work twice: the second round needs no more."""
    if ASAN:
        return  # freed memory is kept in quarantine

    def work():
        for n in range(300):
            with g.connect() as c:
                for target in ("/p/x", "/fetch", "/throw", "/nothing"):
                    c.get(target)
                c.request("POST", "/json", [
                    ("Content-Type", "application/json")], b'{"a":%d}' % n)
                if n % 50 == 0:
                    c.get("/run")
                    c.get("/p/big/2M")
                    c.send(build("POST", "/p/x", [("Content-Length", "9999")]))
        g.quiet()
        return status_kib(g.workers()[0], "VmRSS")
    first = work()
    second = work()
    assert second < first + 2048, "%d KiB, then %d" % (first, second)


test_memory_comes_back.timeout = 120
