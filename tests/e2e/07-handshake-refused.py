"""No certificate, wrong CA, expired …: no handshake, and one line says why."""

import json
import os
import socket
import ssl
import subprocess

from gw import (PKI, SOCKET_S, Gateway, OpensslCa, build, cert, cert_serial,
                equal, refused, sh, until, write)

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)

# who, a word of the reason
STRANGERS = [
    ("wrong-ops", ("unknown", "issuer", "signer", "trusted", "anchor", "CA")),
    ("twin-ops", ("unknown", "issuer", "signer", "trusted", "anchor",
                  "signature", "CA")),
    ("lonely", ("unknown", "issuer", "signer", "trusted", "anchor", "self",
                "CA")),
    ("self-signed", ("unknown", "issuer", "signer", "trusted", "anchor",
                     "self", "CA")),
    ("expired", ("expired",)),
    ("future", ("not yet", "not valid yet")),
    ("server-auth", ("clientAuth", "usage", "EKU")),
    ("bare-ops", ("unknown", "issuer", "signer", "trusted", "anchor", "CA")),
]


def setup():
    return Gateway("""
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
""", listen="limits = { handshake = 2 }")


def test_strangers(g):
    wrong = []
    for who, words in STRANGERS:
        for version in VERSIONS:
            mark = g.mark()
            if refused(g.port, who, version) is None:
                wrong.append("%s was answered over %s" % (who, version.name))
                continue
            serial = cert_serial(who)
            try:
                lines = until(lambda: g.lines(serial, since=mark),
                              "a line with serial " + serial, 2)
            except AssertionError as problem:
                wrong.append("%s: %s" % (who, problem))
                continue
            line = lines[0]
            if len(lines) != 1:
                wrong.append("%s: %d lines: %r" % (who, len(lines), lines))
            if not any(w.lower() in line.lower() for w in words):
                wrong.append("%s: no reason in %s" % (who, line))
            name = {"self-signed": "ops"}.get(who, who)
            if "CN=" + name not in line:
                wrong.append("%s: no subject in %s" % (who, line))
    assert not wrong, "\n".join(wrong)


def test_each_is_told_why_by_the_alert(g):
    """RFC 8446 section 6.2, as Python and openssl name them."""
    wrong = []
    for who, name, number in (
            ("wrong-ops", "unknown ca", 48), ("twin-ops", "unknown ca", 48),
            ("bare-ops", "unknown ca", 48),
            ("lonely", "unsupported certificate", 43),
            # each is a certificate of a CA
            ("self-signed", "unsupported certificate", 43),
            ("expired", "certificate expired", 45),
            ("future", "certificate expired", 45),
            ("server-auth", "unsupported certificate", 43)):
        for version in VERSIONS:
            why = refused(g.port, who, version)
            if not why or name not in why.lower().replace("_", " "):
                wrong.append("%s, %s: %s" % (who, version.name, why))
        out = g.s_client("-tls1_2", who=who)
        if "SSL alert number %d" % number not in out.out + out.err:
            wrong.append("%s: %s" % (who, (out.out + out.err)[-300:]))
    assert not wrong, "\n".join(wrong)


def test_no_certificate(g):
    for version in VERSIONS:
        mark = g.mark()
        assert refused(g.port, None, version), "answered without a certificate"
        line = g.wait_line("handshake", "no certificate", since=mark)
        equal(len(line), 1, "lines: %r" % line)


def test_s_client_without_and_with_a_wrong_one(g):
    for who in (None, "wrong-ops", "expired"):
        done = g.s_client(who=who)
        assert "HTTP/1.1" not in done.out, "%s: %s" % (who, done.out)


def test_old_versions_are_refused(g):
    for option in ("-tls1", "-tls1_1"):
        done = g.s_client(option, "-cipher", "ALL:@SECLEVEL=0")
        assert "HTTP/1.1" not in done.out, option


def test_weak_suites_are_refused(g):
    for suite in ("AES128-SHA", "AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA",
                  "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES128-SHA256",
                  "DHE-RSA-AES128-GCM-SHA256", "NULL-SHA256"):
        done = g.s_client("-tls1_2", "-cipher", suite + ":@SECLEVEL=0")
        assert "HTTP/1.1" not in done.out, suite


def test_key_exchange_groups(g):
    """TLS 1.3 by itself; TLS 1.2 needs the curve of the certificate, too."""
    for groups, good in (("X25519", True), ("P-256", True), ("P-384", True),
                         ("P-521", True), ("ffdhe2048", False),
                         ("P-224", False), ("X448", False),
                         ("X448:P-384", True), ("ffdhe2048:X25519", True),
                         ("ffdhe3072:P-256", True)):
        done = g.s_client("-tls1_3", "-groups", groups)
        equal("fine" in done.out, good, groups)
        if "P-256" in groups:
            done = g.s_client("-tls1_2", "-groups", groups)
            equal("fine" in done.out, good, "TLS 1.2, " + groups)


def test_good_clients_go_on(g):
    equal(g.get("/ok").status, 200)


def test_alpn_mismatch(g):
    """A client that speaks another protocol only is told so, and let go."""
    for version in VERSIONS:
        mark = g.mark()
        why = refused(g.port, "ops", version, alpn=["h2"])
        assert why and "no application protocol" in str(why), why
        equal(len(g.wait_line("handshake", since=mark)), 1)
    equal(g.get("/ok").status, 200)


def test_raw_public_keys(g):
    """A key without a certificate is no certificate."""
    crt, key = cert("ops")
    pub = sh("openssl", "pkey", "-in", key, "-pubout").out
    write(g.dir + "/raw.pem", pub)
    for kinds in ("", ":+CTYPE-CLI-RAWPK", ":-CTYPE-ALL:+CTYPE-CLI-RAWPK:"
                  "+CTYPE-SRV-X509"):
        mark = g.mark()
        done = sh("gnutls-cli", "--port", str(g.port), "127.0.0.1",
                  "--no-ca-verification", "--rawpkkeyfile", key, "--rawpkfile",
                  g.dir + "/raw.pem", "--priority", "NORMAL" + kinds,
                  check=False, timeout=15,
                  input=b"GET /ok HTTP/1.1\r\nHost: a\r\n\r\n")
        assert "HTTP/1.1" not in done.out, kinds + done.out
        assert done.returncode != 0, kinds
        g.wait_line("handshake", "no certificate", since=mark)
    equal(g.get("/ok").status, 200)


def test_rubbish_instead_of_tls(g):
    for data in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\0" * 600,
                 b"\x16\x03\x01\xff\xff" + b"\x01" * 70000, b"\x80\x2e\x01"):
        raw = socket_of(g)
        try:
            raw.sendall(data)
            raw.settimeout(15)
            got = raw.recv(4096)
            assert b"HTTP/1.1 200" not in got, got
        except ConnectionError:
            pass
        finally:
            raw.close()
    equal(g.get("/ok").status, 200)


def socket_of(g):
    return socket.create_connection(("127.0.0.1", g.port), SOCKET_S)


class Commanded:
    """openssl s_client, told by lines on its standard input."""

    def __init__(self, g, *options):
        crt, key = cert("ops")
        self.process = subprocess.Popen(
            ["openssl", "s_client", "-connect", "127.0.0.1:%d" % g.port,
             "-cert", crt, "-key", key, "-crlf", *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.output, self.ended = b"", False

    def says(self, word, times=1):
        """Waits for its output; False when it has given up."""
        def heard():
            part = self.process.stdout.read()
            self.ended = self.ended or part == b""
            self.output += part or b""
            return self.ended or self.output.count(word) >= times
        until(heard, "s_client says %r; it said %r" % (word,
                                                       self.output[-300:]))
        return self.output.count(word) >= times

    def tell(self, text):
        try:
            self.process.stdin.write(text)
            self.process.stdin.flush()
        except BrokenPipeError:
            self.ended = True


def test_renegotiation_and_key_updates(g):
    """A key update is fine, a second handshake on a connection is not."""
    worker = g.workers()
    for option, command, word in (("-tls1_2", b"R\n", b"RENEGOTIATING"),
                                  ("-tls1_3", b"K\n", b"KEYUPDATE"),
                                  ("-tls1_3", b"k\n", b"KEYUPDATE")):
        client = Commanded(g, option)
        client.says(b"Verify return code")
        for n in range(3):
            client.tell(command)
            client.says(word, n + 1)
        client.tell(b"GET /ok HTTP/1.1\nHost: localhost\n\n")
        answered = client.says(b"fine")
        client.process.kill()
        client.process.wait(5)
        equal(answered, option == "-tls1_3", option)
    equal(g.get("/ok").status, 200)
    equal(g.workers(), worker, "the worker")


def test_big_and_odd_certificates(g):
    """Whatever it makes of them: it answers or refuses, and lives on."""
    ca = OpensslCa.__new__(OpensslCa)
    ca.folder, ca.name, ca.chain = PKI, "second-ca", b""
    ca.crt, ca.key = PKI + "/second-ca.crt", PKI + "/second-ca.key"
    worker = g.workers()
    for n, (subject, san) in enumerate((
            ("/CN=many", ",".join("DNS:n%d.example.org" % i
                                  for i in range(300))),
            ("/CN=toomany", ",".join("DNS:n%d.%s.example.org" % (i, "x" * 50)
                                     for i in range(400))),
            ("".join("/OU=unit %d" % i for i in range(60)) + "/CN=units", None),
            ("/CN=" + "\u00e9" * 60, None), ("/CN=\U0001f600", None),
            ("/", "URI:spiffe://example.org/only-a-san"),
            ("/CN=two", "URI:spiffe://example.org/a,URI:spiffe://b.org/b"),
            ("/CN=control\x07bell", None), ("/CN=\u202eevil", None))):
        name = "odd%d" % n
        try:
            ca.leaf(name, subject, san)
        except AssertionError:
            continue  # this openssl does not make such a one
        refused(g.port, name)
        for line in g.lines("handshake")[-3:]:
            assert json.loads(line), line
    equal(g.get("/ok").status, 200)
    equal(g.workers(), worker, "the worker")
