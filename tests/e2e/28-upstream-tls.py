"""TLS to upstreams: who is let in, who is not, and what the log says of it."""

import os
import socket
import ssl
import threading
import time

from gw import (PKI, Gateway, OpensslCa, Upstream, cert, equal, read, sh,
                tmpdir, write)

ROUTE = """
gateway.any("/%(name)s/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path },
               body = gateway.stream "64M" },
  handle = %(name)s:to "/internal/{path}" })
"""
UPSTREAM = """
local %(name)s = gateway.upstream { "https://%(host)s:%(port)d",
  name = "%(name)s", ca = "%(ca)s", %(more)s }
"""


def policy(name, port, ca, more="", host="127.0.0.1"):
    values = {"name": name, "port": port, "ca": ca, "more": more, "host": host}
    return (UPSTREAM + ROUTE) % values


def context(pair, ca=None, versions=None, ciphers=None):
    """What a TLS server has: (certificate, key), and whose clients it wants."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.set_ciphers(ciphers or "DEFAULT:@SECLEVEL=0")
    if versions:
        tls.minimum_version, tls.maximum_version = versions
    tls.load_cert_chain(*pair)
    if ca:
        tls.verify_mode = ssl.CERT_REQUIRED
        tls.load_verify_locations(ca)
    return tls


NAMED = 'server_name = "app.internal"'
SPIFFE = 'server_spiffe = "spiffe://example.org/ns/eu/sa/app"'
DAY = 86400

# name: (issuer, leaf's options, upstream's options, host)
RIGHT = {
    "named": ("ca", {"san": "DNS:app.internal"}, NAMED, None),
    "upper": ("ca", {"san": "DNS:other.internal,DNS:APP.Internal"}, NAMED,
              None),
    "address": ("ca", {"san": "IP:127.0.0.1"}, "", None),
    "localhost": ("ca", {"san": "DNS:localhost"}, "", "localhost"),
    "wild": ("ca", {"san": "DNS:*.internal"}, NAMED, None),
    "rsa": ("ca", {"san": "DNS:app.internal", "key": "rsa"}, NAMED, None),
    "middle": ("middle", {"san": "DNS:app.internal"}, NAMED, None),
    "spiffe": ("ca", {"san": "URI:spiffe://example.org/ns/eu/sa/app"}, SPIFFE,
               None),
    "both": ("ca", {"san": "DNS:app.internal,"
                           "URI:spiffe://example.org/ns/eu/sa/app"},
             NAMED + ", " + SPIFFE, None),
}

# The same, and words that the log has for it.
WRONG = {
    "elsewhere": ("ca", {"san": "DNS:app.internal.evil"}, NAMED, None,
                  "not for app.internal"),
    "commonname": ("ca", {"subject": "/CN=app.internal"}, NAMED, None,
                   "no subjectAltName"),
    "namebeside": ("ca", {"subject": "/CN=app.internal",
                          "san": "DNS:other.internal"}, NAMED, None,
                   "DNS:other.internal"),
    "deep": ("ca", {"san": "DNS:*.internal"},
             'server_name = "a.app.internal"', None, "not for a.app.internal"),
    "bare": ("ca", {"san": "DNS:*.app.internal"}, NAMED, None,
             "not for app.internal"),
    "partial": ("ca", {"san": "DNS:a*.internal"}, NAMED, None, "refused"),
    "dnsaddress": ("ca", {"san": "DNS:127.0.0.1"}, "", None,
                   "not for 127.0.0.1"),
    "otheraddress": ("ca", {"san": "IP:127.0.0.2"}, "", None,
                     "not for 127.0.0.1"),
    "strange": ("strange", {"san": "DNS:app.internal"}, NAMED, None,
                "refused"),
    "twin": ("twin", {"san": "DNS:app.internal"}, NAMED, None, "refused"),
    "expired": ("ca", {"san": "DNS:app.internal", "start": -9 * DAY,
                       "end": -DAY}, NAMED, None, "expired"),
    "future": ("ca", {"san": "DNS:app.internal", "start": DAY,
                      "end": 9 * DAY}, NAMED, None, "not valid yet"),
    "nopurpose": ("ca", {"san": "DNS:app.internal", "eku": None}, NAMED, None,
                  "serverAuth"),
    "constrained": ("low", {"san": "DNS:app.internal"}, NAMED, None,
                    "name constraints"),
    "clientonly": ("ca", {"san": "DNS:app.internal", "eku": "clientAuth"},
                   NAMED, None, "serverAuth"),
    "otherspiffe": ("ca", {"san": "URI:spiffe://example.org/ns/eu/sa/apps"},
                    SPIFFE, None, "spiffe://example.org/ns/eu/sa/app"),
    "twospiffe": ("ca", {"san": "URI:spiffe://example.org/ns/eu/sa/app,"
                                "URI:https://example.org/"}, SPIFFE, None,
                  "refused"),
    "onlyname": ("ca", {"san": "DNS:app.internal"}, NAMED + ", " + SPIFFE,
                 None, "not for spiffe:"),
    "onlyspiffe": ("ca", {"san": "URI:spiffe://example.org/ns/eu/sa/app"},
                   NAMED + ", " + SPIFFE, None, "not for app.internal"),
}


# The same, but made by hand: see World.special().
BY_HAND = {"sha1": "SHA-1", "authority": "CA certificate", "lone": "no CA of",
           "small": "key"}


class World:
    """CAs, servers of every kind, and one gateway in front of them all."""

    def __init__(self):
        self.dir = tmpdir("uptls")
        self.cas = {"ca": OpensslCa(self.dir, "ca")}
        self.cas["strange"] = OpensslCa(self.dir, "strange")
        self.cas["twin"] = OpensslCa(self.dir + "/twin", "twin", cn="ca")
        self.cas["middle"] = OpensslCa(self.dir, "middle",
                                       issuer=self.cas["ca"])
        self.constrained()
        self.ca = self.cas["ca"].crt
        self.servers, self.names, self.stops = {}, {}, []
        self.text = ""
        for name, row in list(RIGHT.items()) + list(WRONG.items()):
            self.certified(name, *row[:4])
        self.special()
        self.gateway = Gateway("gateway.admin { address = \"127.0.0.1:@ADMIN@\""
                               " }\n" + self.text)

    def constrained(self):
        """ca -> high, which may name *.corp only -> low, which says nothing."""
        high = OpensslCa(self.dir, "high", issuer=self.cas["ca"])
        self.cas["ca"].sign("high", [
            "basicConstraints=critical,CA:TRUE", "subjectKeyIdentifier=hash",
            "keyUsage=critical,keyCertSign,cRLSign",
            "nameConstraints=critical,permitted;DNS:corp"])
        high.chain = read(high.crt)
        self.cas["low"] = OpensslCa(self.dir, "low", issuer=high)

    def by_hand(self):
        """Certificates that no CA should issue."""
        ca, folder = self.cas["ca"], self.dir
        ext = write(folder + "/ext", "subjectAltName=DNS:app.internal\n"
                    "extendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n")
        for name, options in (("sha1", ["-sha1"]), ("small", ["-sha256"])):
            ca.csr("s-" + name, "ec", "/CN=" + name)
            if name == "small":
                sh("openssl", "req", "-new", "-newkey", "rsa:1024", "-nodes",
                   "-keyout", folder + "/s-small.key", "-subj", "/CN=small",
                   "-out", folder + "/s-small.csr")
            sh("openssl", "x509", "-req", *options, "-in",
               "%s/s-%s.csr" % (folder, name), "-CA", ca.crt, "-CAkey", ca.key,
               "-CAcreateserial", "-days", "9", "-extfile", ext, "-out",
               "%s/s-%s.crt" % (folder, name))
        ca.csr("s-authority", "ec", "/CN=authority")
        ca.sign("s-authority", [
            "basicConstraints=critical,CA:TRUE", "extendedKeyUsage=serverAuth",
            "subjectAltName=DNS:app.internal"])
        sh("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
           "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=lone", "-days",
           "9", "-addext", "basicConstraints=critical,CA:FALSE", "-addext",
           "subjectAltName=DNS:app.internal", "-addext",
           "extendedKeyUsage=serverAuth", "-keyout", folder + "/s-lone.key",
           "-out", folder + "/s-lone.crt")
        for name in BY_HAND:
            path = "%s/s-%s" % (folder, name)
            self.serve(name, context((path + ".crt", path + ".key")))

    def leaf(self, name, issuer="ca", **options):
        for date in ("start", "end"):
            if date in options:
                options[date] += time.time()
        options.setdefault("eku", "serverAuth")
        return self.cas[issuer].leaf(name, **options)

    def serve(self, name, tls, more=NAMED, host="127.0.0.1"):
        tls.sni_callback = (
            lambda _s, wanted, _c: self.names.__setitem__(name, wanted))
        self.servers[name] = Upstream(tls=tls).start()
        self.text += policy(name, self.servers[name].port, self.ca, more, host)

    def certified(self, name, issuer, options, more, host):
        pair = self.leaf("s-" + name, issuer, **options)
        self.serve(name, context(pair), more, host or "127.0.0.1")

    def special(self):
        self.by_hand()
        pair = self.leaf("plain", san="DNS:app.internal")
        ours = 'certificate = "%s", key = "%s", ' % cert("ops") + NAMED
        theirs = 'certificate = "%s", key = "%s", ' % cert("wrong-ops") + NAMED
        V = ssl.TLSVersion
        clients = os.path.join(PKI, "clients.pem")
        self.serve("mutual", context(pair, clients), ours)
        self.serve("mutualold", context(pair, clients,
                                        (V.TLSv1_2, V.TLSv1_2)), ours)
        self.serve("without", context(pair, clients))
        self.serve("withoutold", context(pair, clients,
                                         (V.TLSv1_2, V.TLSv1_2)))
        self.serve("stranger", context(pair, clients), theirs)
        self.serve("old", context(pair, versions=(V.TLSv1_2, V.TLSv1_2)))
        self.serve("older", context(pair, versions=(V.TLSv1, V.TLSv1_1)))
        self.serve("cbc", context(pair, None, (V.TLSv1_2, V.TLSv1_2),
                                  "ECDHE-ECDSA-AES128-SHA256"))
        self.odd("plainhttp", lambda s: s.sendall(
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"))
        self.odd("hangsup", lambda s: s.recv(4096) and None)
        self.odd("silent", self.silent, more=NAMED + ", connect_timeout = 0.4")
        self.odd("garbage", lambda s: self.garbage(s, pair))

    def odd(self, name, act, more=NAMED):
        """A server that speaks no TLS: `act` gets each connection."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.stops.append(listener)
        threading.Thread(target=self.accept, args=(listener, act),
                         daemon=True).start()
        self.text += policy(name, listener.getsockname()[1], self.ca, more)

    @staticmethod
    def accept(listener, act):
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            try:
                act(sock)
            except OSError:
                pass
            sock.close()

    @staticmethod
    def silent(sock):
        while sock.recv(4096):
            pass

    @staticmethod
    def garbage(sock, pair):
        raw = socket.socket(fileno=os.dup(sock.fileno()))
        tls = context(pair).wrap_socket(sock, server_side=True)
        tls.recv(4096)
        raw.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil" * 20)
        raw.close()
        tls.close()

    def alive(self):
        return self.gateway.alive()

    def stop(self):
        for server in self.servers.values():
            server.stop()
        for listener in self.stops:
            listener.close()
        return self.gateway.stop()


def setup():
    return World()


def test_the_right_server_is_spoken_to(w):
    for name in RIGHT:
        r = w.gateway.get("/%s/x" % name)
        equal((name, r.status), (name, 200))
        equal(r.json()["path"], "/internal/x")
        equal(w.servers[name].sessions[-1]["version"], "TLSv1.3", name)


def test_the_wrong_server_is_not(w):
    """502; nothing of the request reached it; the log names certificate and
    reason, the client learns neither."""
    words = dict({name: row[4] for name, row in WRONG.items()}, **BY_HAND)
    for name, word in words.items():
        g, mark = w.gateway, w.gateway.mark()
        before = g.metric("gateway_upstream_errors_total", reason="tls")
        r = g.get("/%s/x" % name)
        equal((name, r.status), (name, 502))
        line = g.wait_line("server certificate", word, since=mark)[0]
        assert "serial" in line, line
        assert "serial" not in r.text and "internal" not in r.text, r
        equal(w.servers[name].requests, [], name)
        equal(g.metric("gateway_upstream_errors_total", reason="tls") - before,
              1, name)


def test_a_name_is_asked_for_and_an_address_is_not(w):
    for name, want in (("named", "app.internal"), ("address", None),
                       ("localhost", "localhost")):
        w.names[name] = "not asked"
        equal(w.gateway.get("/%s/bye" % name).status, 200)
        equal(w.gateway.get("/%s/bye" % name).status, 200)
        equal(w.names[name], want, name)


def test_our_certificate_is_shown_where_it_is_asked_for(w):
    for name in ("mutual", "mutualold"):
        equal(w.gateway.get("/%s/x" % name).status, 200, name)
        peer = w.servers[name].sessions[-1]["peer"]
        assert ("commonName", "ops") in [
            part[0] for part in peer["subject"]], peer


def test_without_a_certificate_that_it_wants_it_is_502(w):
    for name, words in (("without", "certificate and key"),
                        ("withoutold", "certificate"),
                        ("stranger", "does not accept our certificate")):
        mark = w.gateway.mark()
        equal(w.gateway.get("/%s/x" % name).status, 502, name)
        w.gateway.wait_line("TLS: ", "alert", words, since=mark)
        equal(w.servers[name].requests, [], name)


def test_versions_and_ciphers(w):
    equal(w.gateway.get("/old/x").status, 200)
    equal(w.servers["old"].sessions[-1]["version"], "TLSv1.2")
    for name in ("older", "cbc"):
        mark = w.gateway.mark()
        equal(w.gateway.get("/%s/x" % name).status, 502, name)
        w.gateway.wait_line("TLS: ", since=mark)
        equal(w.servers[name].requests, [], name)


def test_what_is_no_tls_is_502(w):
    for name, words in (("plainhttp", "does not speak TLS"), ("hangsup",
                                                                "handshake")):
        mark = w.gateway.mark()
        equal(w.gateway.get("/%s/x" % name).status, 502, name)
        w.gateway.wait_line("upstream", words, since=mark)


def test_a_handshake_that_never_ends_is_504(w):
    mark = w.gateway.mark()
    equal(w.gateway.get("/silent/x").status, 504)
    w.gateway.wait_line("no TLS handshake within 400 ms", since=mark)


def test_garbage_instead_of_records_is_502(w):
    r = w.gateway.get("/garbage/x")
    equal(r.status, 502)
    assert b"evil" not in r.body, r


def test_one_session_serves_many_requests(w):
    server = w.servers["named"]
    w.gateway.get("/named/x")
    before = len(server.sessions)
    for _ in range(5):
        with w.gateway.connect() as c:
            for _ in range(10):
                equal(c.get("/named/x").status, 200)
            equal(c.request("POST", "/named/x", body=b"y" * 70000).json()[
                "bytes"], 70000)
    equal(len(server.sessions), before, "handshakes")


def test_an_idle_session_that_ends_is_not_used(w):
    for verb in ("hangup", "bye"):
        for _ in range(4):
            equal(w.gateway.get("/named/" + verb).status, 200)
            equal(w.gateway.get("/named/x").status, 200)
    server = w.servers["named"]
    server.notify = False
    try:
        for _ in range(4):
            equal(w.gateway.get("/named/hangup").status, 200)
            equal(w.gateway.get("/named/x").status, 200)
    finally:
        server.notify = True


def test_an_answer_that_ends_with_the_session(w):
    """Whole with close_notify; without it, it may be cut: never complete."""
    server = w.servers["named"]
    r = w.gateway.get("/named/raw/close")
    equal((r.status, r.text, r.complete), (200, "until the end", True))
    server.notify = False
    try:
        mark = w.gateway.mark()
        with w.gateway.connect() as c:
            c.send(b"GET /named/raw/close HTTP/1.1\r\nHost: localhost\r\n\r\n")
            try:
                r = c.response()
                assert r.status == 502 or not r.complete, r
            except EOFError:
                pass
        w.gateway.wait_line("close_notify", since=mark)
        equal(w.gateway.get("/named/raw/no-body").status, 204)
    finally:
        server.notify = True


def test_answers_that_break_the_rules(w):
    for name in ("cl-te", "two-cl", "junk", "big-head", "nul"):
        equal(w.gateway.get("/named/raw/" + name).status, 502, name)
    for _ in range(3):
        r = w.gateway.get("/named/raw/two")
        assert r.status == 502 or r.text == "hello", r
        equal(w.gateway.get("/named/x").json()["path"], "/internal/x")
    for name in ("/named/die/100000", "/named/die-chunked/100000"):
        with w.gateway.connect() as c:
            c.send(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % name.encode())
            try:
                assert not c.response().complete, name
            except EOFError:
                pass


def test_bodies_both_ways(w):
    for size in (1, 16384, 65536, 3000000):
        r = w.gateway.get("/named/big/%d" % size)
        equal((len(r.body), r.complete), (size, True))
        r = w.gateway.get("/named/chunked/%d/4096" % size)
        equal((len(r.body), r.complete), (size, True))
        body = os.urandom(size)
        r = w.gateway.request("PUT", "/named/x", body=body)
        equal(r.json()["bytes"], size)
