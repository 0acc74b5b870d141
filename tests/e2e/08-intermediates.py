"""One client's intermediate does not complete another client's chain."""

import socket
import ssl
import threading

from gw import PKI, SOCKET_S, Gateway, cert, equal, refused, until


def setup():
    return Gateway("""
gateway.get("/ok", { authorize = id.ou "ops",
  handle = function() return gateway.text "fine" end })
""")


def test_nothing_is_kept(g):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        assert refused(g.port, "bare-ops", version), "the leaf alone was enough"
        equal(g.get("/ok", who="middle-ops", version=version).status, 200)
        assert refused(g.port, "bare-ops", version), (
            "middle-ops lent its intermediate")


def test_not_while_the_other_is_connected(g):
    with g.connect("middle-ops") as c:
        equal(c.get("/ok").status, 200)
        assert refused(g.port, "bare-ops"), "middle-ops lent its intermediate"
        equal(c.get("/ok").status, 200)


def test_not_while_the_other_is_in_its_handshake(g):
    """Many of both kinds at once."""
    answers = {"middle-ops": [], "bare-ops": []}

    def one(who):
        for _ in range(10):
            answers[who].append(refused(g.port, who) is None)

    threads = [threading.Thread(target=one, args=(w,)) for w in answers
               for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    equal(set(answers["bare-ops"]), {False}, "the bare leaf")
    equal(set(answers["middle-ops"]), {True}, "the whole chain")


class Stalled:
    """A handshake as middle-ops that stops after its Certificate message."""

    def __init__(self, g, version):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(PKI + "/servers.pem")
        context.load_cert_chain(*cert("middle-ops"))
        context.minimum_version = context.maximum_version = version
        self.read, self.write = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.read, self.write,
                                    server_hostname="localhost")
        self.sock = socket.create_connection(("127.0.0.1", g.port), SOCKET_S)
        self.step()
        self.sock.sendall(self.write.read())  # ClientHello
        flight = b""
        while not flight:
            self.read.write(self.sock.recv(65536))
            self.step()
            flight = self.write.read()
        first, self.rest = self.split(flight, version)
        self.sock.sendall(first)

    def step(self):
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass

    @staticmethod
    def split(flight, version):
        """Up to the record with the certificate, and what is behind it."""
        kind = 23 if version == ssl.TLSVersion.TLSv1_3 else 22
        at = 0
        while flight[at] != kind:
            at += 5 + int.from_bytes(flight[at + 3:at + 5], "big")
        at += 5 + int.from_bytes(flight[at + 3:at + 5], "big")
        return flight[:at], flight[at:]

    def finish(self):
        """Whether the handshake, and a request, still go through."""
        self.sock.sendall(self.rest)
        if self.tls.version() != "TLSv1.3":
            self.read.write(self.sock.recv(65536))
            self.step()
        self.tls.write(b"GET /ok HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.sock.sendall(self.write.read())
        while True:
            self.read.write(self.sock.recv(65536))
            try:
                return b" 200 " in self.tls.read(4096)
            except ssl.SSLWantReadError:
                pass


def test_not_from_a_handshake_that_stalls(g):
    """One that has sent its chain and proves nothing must not lend it."""
    for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
        before = len(g.log())
        stalled = Stalled(g, version)
        until(lambda: refused(g.port, "wrong-ops"), "a stranger is refused")
        for _ in range(3):
            assert refused(g.port, "bare-ops", version), (
                "the stalled one lent its intermediate over " + version.name)
        assert stalled.finish(), "the stalled one cannot go on"
        stalled.sock.close()
        assert len(g.log()) > before, "nothing was logged"
