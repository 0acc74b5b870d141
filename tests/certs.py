#!/usr/bin/env python3
"""Runs the table of certcases.py: the verdict must be the one of the rules.

Three ways in, which must agree:

  doctor  every case, from files:   gateway certs doctor CHAIN.pem --ca …
  check   anchors and CRLs that are refused when they are read: gateway check
  tls     every case that a TLS library can be made to present, by real
          handshakes with Python's ssl (OpenSSL), TLS 1.2 and 1.3; the named
          ones with `openssl s_client` and `gnutls-cli` too

The last line is `N passed, N failed`.
"""

import argparse
import collections
import concurrent.futures
import copy
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "e2e"))
import certcases  # noqa: E402
import certgen as g  # noqa: E402

LISTENERS_MAX = 64  # of one policy
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

# What other programs present too: the known holes of wolfSSL 5.9.2 first, then
# the legal chains that it refuses, then some of every kind.
NAMED = """
uri constraint of the grandparent: broken
uri constraint of the grandparent: kept
ECDSA with SHA-1
RSA with sha1 on the leaf
RSA with sha1 on the intermediate
no extendedKeyUsage
two URI SANs under a SPIFFE policy
a SPIFFE ID
a clientAuth leaf under a serverAuth-only CA
a CA with clientAuth
an extra certificate behind
an extra certificate between
two intermediates out of order
issuer as PrintableString
two anchors of one name without key ids, leaf of 1
two anchors of one name without key ids, leaf of 2
multi-valued RDN in the subject
multi-valued RDN in the issuer
serial 0
one intermediate
the intermediate is missing
a CA that nobody trusts
a leaf by the clone, presented
a leaf dressed as the anchor
a spoilt signature on the leaf
a spoilt signature on the intermediate
RSA-PSS with sha256
an expired leaf
a leaf not valid yet
a leaf with CA true
path length 0: broken
an unknown critical extension in the leaf
a revoked leaf
a revoked intermediate
CRLs that name nobody
the intermediate's CRL is missing
""".strip().split("\n")

# gnutls-cli sorts, or does not load, what these present.
NOT_GNUTLS = {"an extra certificate behind", "an extra certificate between",
              "two intermediates out of order"}


# wolfSSL refuses some certificates before it asks us, in its own words; what we
# would have said of them is pinned by doctor.
BEFORE_US = ("it is malformed|ASN parsing error|ASN object id error|Maximum "
             "Chain Depth|Buffer error|Bad function argument|Not a CA by")


class Runner:
    def __init__(self, options, folder):
        self.bin, self.folder = options.bin, folder
        self.passed, self.failed = 0, 0
        self.cases = [c for c in certcases.table()
                      if re.search(options.only, c.name)]
        for i, case in enumerate(self.cases):
            case.base = self.path("case%d" % i)
            self.write(case)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, case):
        case.ca, case.crl = self.files(case)
        with open(case.base + ".pem", "w") as f:
            f.write(g.chain_pem(case.chain))
        with open(case.base + ".key", "w") as f:
            f.write(g.key_pem(case.chain[0].key))

    def files(self, case):
        """Anchors and CRLs, the same files for the same contents."""
        out = []
        for text, end in (
                (g.chain_pem(case.anchors), "ca"),
                ("".join(g.pem(c.der, "X509 CRL") for c in case.crls), "crl")):
            name = self.path("%s-%s.pem" % (
                end, g.hashlib.sha256(text.encode()).hexdigest()[:16]))
            if text and not os.path.exists(name):
                with open(name, "w") as f:
                    f.write(text)
                os.chmod(name, 0o644)
            out.append(name if text else None)
        return out

    def told(self, way, case, problem):
        if problem is None:
            self.passed += 1
            return
        self.failed += 1
        print("FAIL %s %s: %s" % (way, getattr(case, "name", case), problem),
              flush=True)

    # certs doctor

    def doctor(self):
        cases = self.cases
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            for case, problem in zip(cases, threads.map(self.ask, cases)):
                self.told("doctor", case, problem)
        self.flips()

    def ask(self, case):
        # A search that goes round in circles is killed, not waited for.
        argv = ["prlimit", "--cpu=30", self.bin, "certs", "doctor",
                case.base + ".pem", "--ca", case.ca]
        argv += ["--crl", case.crl] if case.crl else []
        argv += ["--eku", case.eku] if case.eku else []
        argv += ["--depth", str(case.depth)] if case.depth else []
        done = subprocess.run(argv, capture_output=True, timeout=60)
        said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
        if case.words is None:
            good = done.returncode == 0 and said.startswith("accepted")
            return None if good else "want accepted, got %d %r" % (
                done.returncode, said)
        if case.load and done.returncode == 2:
            said = said.partition("\ntry: ")[0]
        elif done.returncode != 1:
            return "want refused, got %d %r" % (done.returncode, said)
        return self.reason(case, said)

    @staticmethod
    def reason(case, said):
        if "\n" in said.strip():
            return "more than one line: %r" % said
        if not re.search(case.words, said, re.I):
            return "want a reason with %r, got %r" % (case.words, said)
        return None

    def flips(self):
        """No byte of a leaf is idle: with one bit of it turned, no entry."""
        good = [c for c in self.cases if c.name == "one intermediate"]
        if not good:
            return
        case = good[0]
        whole, mid = (c.der for c in case.chain)

        def ask(at):
            data, other = whole, mid
            if at < len(whole):
                data = turn(whole, at)
            else:
                other = turn(mid, at - len(whole))
            path = case.base + ".flip%d" % at
            with open(path, "w") as f:
                f.write(g.pem(data) + g.pem(other))
            done = subprocess.run(
                [self.bin, "certs", "doctor", path, "--ca", case.ca],
                capture_output=True, timeout=60)
            os.unlink(path)
            return done.returncode != 1

        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            idle = [at for at, bad in enumerate(threads.map(
                ask, range(len(whole) + len(mid)))) if bad]
        self.told("doctor", "a bit turned in each byte",
                  "still accepted, or died: %r" % idle if idle else None)

    # gateway check

    def check(self):
        server = self.server()
        for case in self.cases:
            if not case.load:
                continue
            policy = case.base + ".lua"
            with open(policy, "w") as f:
                f.write(HEAD + listener(case, 20443, server) + ROUTES)
            done = subprocess.run([self.bin, "check", policy], timeout=60,
                                  capture_output=True)
            said = (done.stdout + done.stderr).decode("utf-8", "replace")
            problem = None
            if done.returncode != 1:
                problem = "want exit 1, got %d %r" % (done.returncode, said)
            elif not re.search(case.words, said, re.I):
                problem = "want %r, got %r" % (case.words, said)
            self.told("check", case, problem)

    # handshakes

    def server(self):
        ca = g.root("server root", exts={"ku": g.ku("keyCertSign")})
        cert = g.leaf(ca, "server", exts={
            "eku": g.eku("serverAuth"),
            "san": g.san(("dns", "localhost"), ("ip", "127.0.0.1"))})
        crt, key, root = (self.path("server" + e)
                          for e in (".crt", ".key", "-ca.pem"))
        for name, text, mode in ((crt, g.chain_pem([cert]), 0o644),
                                 (key, g.key_pem(cert.key), 0o600),
                                 (root, g.chain_pem([ca]), 0o644)):
            with open(name, "w") as f:
                f.write(text)
            os.chmod(name, mode)
        self.server_ca = root
        return crt, key

    def tls(self):
        """Few gateways of many listeners: one for each set of options."""
        groups = collections.defaultdict(list)
        for case in self.cases:
            if case.tls:
                groups[case.ca, case.crl, case.eku, case.depth].append(case)
        groups = list(groups.values())
        for i in range(0, len(groups), LISTENERS_MAX):
            self.serve(groups[i:i + LISTENERS_MAX])

    def serve(self, groups):
        server, gw, policy, ports = self.server(), self.gw(), HEAD, set()
        for group in groups:
            port = gw.free_port()
            while port in ports:
                port = gw.free_port()
            ports.add(port)
            policy += listener(group[0], port, server)
            for case in group:
                case.port = port
        cases = sum(groups, [])
        with gw.Gateway(policy + ROUTES, head=False, wait=False) as gateway:
            self.gateway = gateway
            try:
                gateway.wait_ready()
            except AssertionError as problem:
                self.told("tls", "start", "%s\n%s" % (problem,
                                                      gateway.tail()))
                return
            for case in cases:
                self.present(case)
            self.lent(cases)
            self.stolen(cases)
            for line in gateway.alarms()[:1]:
                self.told("tls", "log", line)

    def gw(self):
        os.environ.update(E2E_BIN=self.bin, E2E_TMP=self.folder)
        import gw
        return gw

    def present(self, case):
        clients = {"ssl": self.by_ssl}
        if case.name in NAMED:
            clients["s_client"] = self.by_s_client
            if case.name not in NOT_GNUTLS:
                clients["gnutls-cli"] = self.by_gnutls
        for client, how in clients.items():
            for version in VERSIONS:
                self.told("%s TLS %s" % (client, version), case,
                          self.one(case, how, version))

    def one(self, case, how, version):
        try:
            return self.handshake(case, how, version)
        except (OSError, AssertionError, subprocess.SubprocessError) as why:
            return repr(why)  # not presented, or not logged

    def handshake(self, case, how, version):
        mark = self.gateway.mark()
        answer = how(case, version)
        status = re.match(rb"HTTP/1\.1 (\d{3})", answer)
        if case.words is None:
            if not status:
                return "want accepted; log: " + "".join(
                    self.gateway.lines("handshake", since=mark))
            who = g.hashlib.sha256(case.chain[0].der).hexdigest()
            return None if who.encode() in answer else (
                "not taken for the first that it presented: %r" % answer)
        if status:
            return "want a refused handshake, got %r" % answer
        lines = self.logged(mark)
        if len(lines) != 1:
            return "%d lines: %r" % (len(lines), lines)
        said = json.loads(lines[0])["msg"]
        return (None if re.search(BEFORE_US, said) else
                self.reason(case, said))

    def logged(self, mark):
        """As wait_line() of gw.py, but a thousand times a run."""
        for _ in range(10000):
            lines = self.gateway.lines("handshake", since=mark)
            if lines:
                return lines
            time.sleep(0.001)
        raise AssertionError("nothing in the log")

    def by_ssl(self, case, version, key=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.server_ca)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.load_cert_chain(case.base + ".pem", key or case.base + ".key")
        context.minimum_version = context.maximum_version = VERSIONS[version]
        with socket.create_connection(("127.0.0.1", case.port), 30) as raw:
            try:
                with context.wrap_socket(raw, server_hostname="localhost"
                                         ) as sock:
                    sock.sendall(request(case))
                    answer = b""
                    while True:
                        more = sock.recv(4096)
                        if not more:
                            return answer
                        answer += more
            except (ssl.SSLError, ConnectionError):
                return b""

    def by_s_client(self, case, version):
        flag = "-tls" + version.replace(".", "_")
        done = subprocess.run(
            ["openssl", "s_client", "-connect", "127.0.0.1:%d" % case.port,
             "-servername", "localhost", "-CAfile", self.server_ca,
             "-verify_return_error", "-quiet", "-no_ign_eof", flag, "-cipher",
             "DEFAULT:@SECLEVEL=0", "-ign_eof", "-cert", case.base + ".pem",
             "-key", case.base + ".key", "-cert_chain", case.base + ".pem"],
            input=request(case), capture_output=True, timeout=60)
        return done.stdout

    def by_gnutls(self, case, version):
        process = subprocess.Popen(
            ["gnutls-cli", "--x509cafile", self.server_ca, "--x509certfile",
             case.base + ".pem", "--x509keyfile", case.base + ".key",
             "--priority", "NORMAL:-VERS-ALL:+VERS-TLS%s:+SIGN-RSA-SHA1:"
             "+SIGN-ECDSA-SHA1:%%VERIFY_ALLOW_SIGN_WITH_SHA1" % version,
             "--logfile", case.base + ".gnutls", "-p", str(case.port),
             "localhost"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        try:
            out = process.communicate(request(case), 60)[0]
        finally:
            process.kill()
        return out[out.index(b"HTTP/1.1 "):] if b"HTTP/1.1 " in out else b""

    def stolen(self, cases):
        """A certificate without its key, the thief's own behind it or not."""
        for name in ("one intermediate", "another client's leaf behind"):
            for case in (c for c in cases if c.name == name):
                key = case.base + ".forged"
                with open(key, "w") as f:
                    f.write(forged(case.chain[0].key, case.chain[-1].key))
                for version in VERSIONS:
                    mark = self.gateway.mark()
                    answer = self.by_ssl(case, version, key)
                    self.told("a stolen certificate, TLS " + version, case,
                              "let in: %r" % answer if answer else None)
                    if not answer:
                        self.logged(mark)

    def lent(self, cases):
        """One client's intermediate must not complete another's chain."""
        whole = [c for c in cases if c.name == "one intermediate"]
        bare = [c for c in cases if c.name == "the intermediate is missing"]
        if not whole or not bare:
            return
        for version in VERSIONS:
            for case in whole + bare + whole + bare:
                self.told("one client's intermediate, TLS " + version, case,
                          self.one(case, self.by_ssl, version))


def forged(owner, thief):
    """A key file that says it is the owner's and signs with the thief's."""
    made = copy.copy(owner)
    made.d = thief.d
    return g.key_pem(made)


def turn(data, at):
    return data[:at] + bytes([data[at] ^ 1 << at * 5 % 8]) + data[at + 1:]


def request(case):
    return ("GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            % case.route).encode()


HEAD = """\
local gateway = require "gateway"
local id = require "gateway.identity"
"""

ROUTES = """
local function fine(_, identity) return gateway.text(identity.fingerprint) end
gateway.get("/ok", { authorize = id.anyone, handle = fine })
gateway.get("/spiffe", { handle = fine,
  authorize = id.spiffe "spiffe://example.org/ns/eu/sa/camera" })
"""


def listener(case, port, server):
    rows = {"address": "127.0.0.1:%d" % port, "certificate": server[0],
            "key": server[1], "client_ca": case.ca, "crl": case.crl,
            "eku": case.eku, "depth": case.depth}
    return "gateway.listen { %s }\n" % ", ".join(
        "%s = %s" % (k, json.dumps(v)) for k, v in rows.items() if v)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bin", default="build/gateway")
    parser.add_argument("--only", metavar="REGEX", default="")
    parser.add_argument("--way", choices=["doctor", "check", "tls"])
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="gateway-certs-")
    os.chmod(folder, 0o755)
    try:
        options.bin = shutil.copy(options.bin, os.path.join(folder, "gateway"))
        runner = Runner(options, folder)
        if options.list:
            for case in runner.cases:
                print("%s  %s" % ("accept" if case.words is None else
                                  "refuse", case.name))
            return 0
        for way in [options.way] if options.way else ["doctor", "check",
                                                      "tls"]:
            getattr(runner, way)()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("%d passed, %d failed" % (runner.passed, runner.failed))
    return 0 if runner.passed and not runner.failed else 1


if __name__ == "__main__":
    sys.exit(main())
