#!/usr/bin/env python3
"""What thousands of slow connections cost another client.

    tests/slowloris.py [--bin build/gateway] [--connections 5000]
                       [--requests 4000] [--kind head,body,read]

A real gateway with one worker, and a client that asks GET /ok again and again
on one connection: first alone, then beside that many connections which

    head   drip a request's head, a byte every two seconds (one that the
           limit `head` cuts off comes back)
    body   drip a body, a byte every two seconds
    read   ask for 64 KiB and do not read

Prints the client's p50 and p99 for each, the worker's memory, and how many of
the slow connections were open.  The attackers run at the lowest priority, for
they share the machine; `per_identity` is raised, or 200 were all they get.
Not part of `make test`.
"""

import argparse
import os
import resource
import selectors
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(HERE, "e2e"))

POLICY = """
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
gateway.post("/body", { authorize = id.anyone,
  validate = { body = gateway.bytes "1M" },
  handle = function() return gateway.text "fine" end })
local page = ("x"):rep(65536)
gateway.get("/big", { authorize = id.anyone,
  handle = function() return gateway.text(page) end })
gateway.admin { address = "127.0.0.1:@ADMIN@" }
"""
LIMITS = "limits = { per_identity = 100000, handshakes = 1000 }"
FIRST = {
    "head": b"GET /ok HTTP/1.1\r\nHost: localhost\r\nX: ",
    "body": b"POST /body HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 1000000\r\n\r\n",
    "read": b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2,
}


# ---- an attacker, in its own process ---------------------------------------

class Attacker:
    def __init__(self, kind, port, count):
        os.nice(19)
        self.kind, self.port, self.open = kind, port, []
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        pki = os.environ["E2E_TMP"] + "/pki"
        self.context.load_verify_locations(pki + "/ca.crt")
        self.context.load_cert_chain(pki + "/ops.crt", pki + "/ops.key")
        for _ in range(count):
            self.connect()
        print("ready", flush=True)

    def connect(self):
        raw = socket.socket()
        raw.settimeout(30)
        if self.kind == "read":
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", self.port))
        sock = self.context.wrap_socket(raw, server_hostname="localhost")
        sock.sendall(FIRST[self.kind])
        self.open.append(sock)

    def drip(self, sock):
        try:
            sock.sendall(b"x")
            return True
        except OSError:
            sock.close()
            return False

    def run(self):
        """Until standard input closes; a round takes two seconds."""
        keys = selectors.DefaultSelector()
        keys.register(sys.stdin, selectors.EVENT_READ)
        at = 0
        while not keys.select(0.02):
            for _ in range(len(self.open) // 100 + 1):
                at = (at + 1) % len(self.open)
                if self.kind != "read" and not self.drip(self.open[at]):
                    self.open[at] = self.open[-1]
                    self.open.pop()
                    self.connect()


# ---- the client that is measured -------------------------------------------

def measure(gw, gateway, requests):
    """(p50, p99, max) in milliseconds."""
    times = []
    with gateway.connect() as c:
        for _ in range(requests):
            begin = time.perf_counter()
            gw.equal(c.get("/ok").status, 200)
            times.append(1000 * (time.perf_counter() - begin))
    times.sort()
    return times[len(times) // 2], times[len(times) * 99 // 100], times[-1]


def row(name, figures, gw, gateway):
    worker = gateway.workers()[0]
    print("%-6s p50 %6.2f ms  p99 %6.2f ms  max %7.2f ms  worker %4d MiB,"
          " %d connections" % (name, *figures, gw.status_kib(
              worker, "VmRSS") >> 10, gateway.metric("gateway_connections")),
          flush=True)


def under_attack(gw, gateway, kind, options):
    """Two attackers share the work; they end with their standard input."""
    argv = [sys.executable, os.path.abspath(__file__), "--attack", kind,
            "--port", str(gateway.port), "--connections",
            str(options.connections // 2)]
    attackers = [subprocess.Popen(argv, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE) for _ in range(2)]
    for attacker in attackers:
        attacker.stdout.readline()
    row(kind, measure(gw, gateway, options.requests), gw, gateway)
    for attacker in attackers:
        attacker.stdin.close()
        attacker.wait(60)
    gw.until(lambda: gateway.metric("gateway_connections") == 0,
             "the attackers are gone", 60)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", default="build/gateway")
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--kind", default="head,body,read")
    parser.add_argument("--attack")
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.attack:
        Attacker(options.attack, options.port, options.connections).run()
        return
    os.environ["E2E_BIN"] = os.path.abspath(options.bin)
    os.environ["E2E_TMP"] = tmp = tempfile.mkdtemp(prefix="gateway-slow-")
    os.chmod(tmp, 0o755)
    try:
        import gw
        gw.sh(gw.BIN, "certs", "init", gw.PKI)
        gw.sh(gw.BIN, "certs", "server", gw.PKI, "server", "--dns", "localhost")
        gw.sh(gw.BIN, "certs", "client", gw.PKI, "ops", "--ou", "ops")
        for name in ("clients.pem", "servers.pem"):
            shutil.copy(gw.PKI + "/ca.crt", os.path.join(gw.PKI, name))
        with gw.Gateway(POLICY, listen=LIMITS) as gateway:
            row("alone", measure(gw, gateway, options.requests), gw, gateway)
            for kind in options.kind.split(","):
                under_attack(gw, gateway, kind, options)
            row("after", measure(gw, gateway, options.requests), gw, gateway)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


if __name__ == "__main__":
    main()
