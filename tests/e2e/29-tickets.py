"""Session tickets: who may resume does, as the same client; all else falls back
to a full handshake, never to an error."""

import base64
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time

from gw import (BIN, HEAD, PKI, SOCKET_S, Gateway, OpensslCa, Upstream, b64,
                build, cert, cert_der, equal, free_port, gateway_cli, read, sh,
                spawn, tmpdir, until, write)

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.get("/who", { authorize = id.anyone, handle = function(request)
  local i = request.identity
  return gateway.text(("%s %s %s"):format(i.resumed, i.subject.cn[1],
    request.tls.server_name or "-"))
end })
gateway.get("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path } },
  handle = app:to "/internal/{path}" })
gateway.admin { address = "127.0.0.1:@ADMIN@" }
"""


class Both(Gateway):
    def __init__(self, policy=POLICY, listen="", **keys):
        self.up = Upstream().start()
        super().__init__(policy, UP=self.up.port,
                         listen="host_check = false, " + listen, **keys)

    def stop(self):
        self.up.stop()
        return super().stop()


class Client:
    """A TLS client that keeps its last ticket."""

    def __init__(self, g, who="ops", name="localhost", version=None, alpn=None):
        self.port, self.name, self.session = g.port, name, None
        self.context = c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        c.check_hostname = False
        c.load_verify_locations(PKI + "/servers.pem")
        c.load_cert_chain(*cert(who))
        if version:
            c.minimum_version = c.maximum_version = version
        if alpn:
            c.set_alpn_protocols(alpn)

    def get(self, target="/who", session=False, port=None, name=None):
        """(was it resumed, the body); keeps the new ticket."""
        raw = socket.create_connection(("127.0.0.1", port or self.port),
                                       SOCKET_S)
        with self.context.wrap_socket(
                raw, server_hostname=name or self.name,
                session=self.session if session is False else session) as s:
            s.sendall(build("GET", target, [("Connection", "close")]))
            got = b""
            while True:
                part = s.recv(65536)
                if not part:
                    break
                got += part
            self.session = s.session
            head, _, body = got.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), got
            return s.session_reused, body.decode()


def setup():
    return Both()


def tickets(g, result):
    return g.metric("gateway_tls_tickets_total", result=result)


def test_resumed_is_the_same_client(g):
    before = tickets(g, "resumed")
    alice, guest = Client(g), Client(g, "guest")
    equal(alice.get(), (False, "false ops localhost"))
    equal(guest.get(), (False, "false guest localhost"))
    for _ in range(3):
        equal(alice.get(), (True, "true ops localhost"))
        equal(guest.get(), (True, "true guest localhost"))
    equal(tickets(g, "resumed") - before, 6)


def test_the_upstream_sees_the_same(g):
    alice = Client(g, "camera")
    heads = []
    for resumed in (False, True):
        equal(alice.get("/p/headers")[0], resumed)
        headers = {n.lower(): v for n, v in g.up.requests[-1].fields}
        heads.append({k: v for k, v in headers.items() if "client" in k})
    equal(heads[0], heads[1])
    assert heads[0]["client-cert"] == ":%s:" % b64(cert_der("camera")), heads


def test_a_chain_of_resumptions_goes_on(g):
    """wolfSSL as it is published ends it at 256, by an error."""
    alice = Client(g)
    alice.get()
    for n in range(600):
        equal(alice.get()[0], True, "link %d" % n)


test_a_chain_of_resumptions_goes_on.timeout = 90


def test_tls12_resumes_nothing(g):
    alice = Client(g, version=ssl.TLSVersion.TLSv1_2)
    for _ in range(3):
        equal(alice.get(), (False, "false ops localhost"))


def s_client(g, *argv, who="ops"):
    done = g.s_client(*argv, who=who, data=b"GET /who HTTP/1.1\r\nHost: a\r\n"
                      b"Connection: close\r\n\r\n")
    m = re.search(r"(true|false) (\w+) (\S+)", done.out)
    return m.group(0) if m else "refused: " + done.out + done.err


def ticket(g, *argv, **keys):
    """A session file of openssl, after a full handshake."""
    path = os.path.join(tempfile.mkdtemp(dir=g.dir), "session")
    assert "false" in s_client(g, "-sess_out", path, *argv, **keys)
    until(lambda: read(path), "openssl wrote its session")
    return path


def test_openssl_resumes(g):
    path = ticket(g)
    equal(s_client(g, "-sess_in", path), "true ops localhost")
    equal(s_client(g, "-sess_in", path), "true ops localhost", "once more")


def test_gnutls_resumes(g):
    crt, key = cert("ops")
    before = tickets(g, "resumed")
    done = sh("gnutls-cli", "--port", str(g.port), "127.0.0.1", "--resume",
              "--waitresumption", "--no-ca-verification", "--x509certfile", crt,
              "--x509keyfile", key, "--sni-hostname", "localhost", check=False,
              input=b"GET /who HTTP/1.1\r\nHost: a\r\nConnection: close"
              b"\r\n\r\n", timeout=20)
    assert "This is a resumed session" in done.out, done.out + done.err
    equal(tickets(g, "resumed") - before, 1)


def test_other_groups_and_suites(g):
    path = ticket(g, "-groups", "P-256", "-ciphersuites",
                  "TLS_AES_256_GCM_SHA384")
    for groups in ("P-256", "X25519", "P-384", "P-521:X25519"):
        equal(s_client(g, "-sess_in", path, "-groups", groups),
              "true ops localhost", groups)
    equal(s_client(g, "-sess_in", path, "-ciphersuites",
                   "TLS_CHACHA20_POLY1305_SHA256"), "false ops localhost")


def test_no_early_data(g):
    path = ticket(g)
    text = sh("openssl", "sess_id", "-in", path, "-noout", "-text").out
    assert re.search(r"Max Early Data: 0\b", text), text
    early = write(g.dir + "/early", "GET /who HTTP/1.1\r\nHost: e\r\n\r\n")
    said = s_client(g, "-sess_in", path, "-early_data", early)
    assert "true ops" in said or "refused" in said, said
    equal([r for r in g.log() if r.get("host") == "e"], [])


def der_of(path):
    return base64.b64decode(b"".join(read(path).split(b"\n")[1:-2]))


def damaged(path, change):
    """The session with its ticket changed by a function of bytes."""
    der = der_of(path)
    text = sh("openssl", "sess_id", "-in", path, "-noout", "-text").out
    dump = text.partition("TLS session ticket:")[2].partition("\n\n")[0]
    ticket_ = b"".join(
        bytes.fromhex(m.replace("-", " "))
        for m in re.findall(r"^ *[0-9a-f]{4} - ((?:[0-9a-f]{2}[ -])+)", dump,
                            re.M))
    assert len(ticket_) > 200 and ticket_ in der, len(ticket_)
    new = change(ticket_)
    assert len(new) == len(ticket_) and new != ticket_
    der = der.replace(ticket_, new)
    return write(path + "-bad", "-----BEGIN SSL SESSION PARAMETERS-----\n%s"
                 "-----END SSL SESSION PARAMETERS-----\n"
                 % base64.encodebytes(der).decode())


def flip(at):
    def change(t):
        i = at % len(t)
        return t[:i] + bytes([t[i] ^ 1]) + t[i + 1:]
    return change


def test_a_changed_ticket_is_a_full_handshake(g):
    path = ticket(g)
    for at in (0, 15, 16, 31, 32, 33, 34, 90, 160, 200, -33, -32, -17, -1):
        equal(s_client(g, "-sess_in", damaged(path, flip(at))),
              "false ops localhost", "byte %d" % at)
    equal(s_client(g, "-sess_in", damaged(path, lambda t: t[1:] + b"\0")),
          "false ops localhost", "shifted")
    equal(s_client(g, "-sess_in", damaged(path, lambda t: bytes(len(t)))),
          "false ops localhost", "zeros")
    assert tickets(g, "foreign") >= 12
    equal(s_client(g, "-sess_in", path), "true ops localhost", "unchanged")


def test_rubbish_tickets_are_full_handshakes(g):
    """Also longer and shorter ones: another server's, of TLS 1.2 even."""
    path = ticket(g)
    der = der_of(path)
    assert der[:1] == b"\x30"
    for length in (1, 32, 64, 200, 300, 2000):
        equal(s_client(g, "-sess_in", replaced(path, os.urandom(length))),
              "false ops localhost", "%d bytes" % length)


def replaced(path, new):
    """The session with quite another ticket; DER's lengths are set right."""
    der = der_of(path)
    out, body = b"", der[4 if der[1] == 0x82 else 3:]
    while body:
        tag, head = body[0], 2
        n = body[1]
        if n & 0x80:
            head = 2 + (n & 0x7f)
            n = int.from_bytes(body[2:head], "big")
        value = body[head:head + n]
        if tag == 0xaa:  # [10] ticket
            value = tlv(0x04, new)
        out += tlv(tag, value)
        body = body[head + n:]
    return write(path + "-new", "-----BEGIN SSL SESSION PARAMETERS-----\n%s"
                 "-----END SSL SESSION PARAMETERS-----\n"
                 % base64.encodebytes(tlv(0x30, out)).decode())


def tlv(tag, value):
    n = len(value)
    size = bytes([n]) if n < 128 else (
        b"\x81" + bytes([n]) if n < 256 else b"\x82" + n.to_bytes(2, "big"))
    return bytes([tag]) + size + value


def test_another_server_name(g):
    alice = Client(g)
    alice.get()
    equal(alice.get(name="other.example"), (False, "false ops other.example"))
    equal(alice.get(name="other.example"), (True, "true ops other.example"))
    equal(alice.get(name="localhost"), (False, "false ops localhost"))


TWO = """
gateway.listen { name = "second", host_check = false, address = "127.0.0.1:@SECOND@",
  certificate = "@PKI@/server.crt", key = "@PKI@/server.key",
  client_ca = "@PKI@/clients.pem" }
gateway.listen { name = "off", host_check = false, address = "127.0.0.1:@OFF@", tickets = false,
  certificate = "@PKI@/server.crt", key = "@PKI@/server.key",
  client_ca = "@PKI@/clients.pem" }
""" + POLICY


def test_another_listener():
    with Both(TWO, SECOND=free_port(), OFF=free_port()) as g:
        alice = Client(g)
        alice.get()
        equal(alice.get(port=g.tokens["SECOND"])[0], False, "second")
        equal(alice.get(port=g.tokens["SECOND"])[0], True, "second, its own")
        for _ in range(2):
            equal(alice.get(port=g.tokens["OFF"])[0], False, "off")
        equal(alice.get()[0], False, "off gives none")


def test_a_reload_makes_other_keys():
    with Both() as g:
        alice = Client(g)
        for change in ("same", "policy", "ca"):
            alice.get()
            equal(alice.get()[0], True, change)
            if change == "policy":
                g.reload(POLICY + "-- changed")
            elif change == "ca":
                path = g.dir + "/clients.pem"
                write(path, read(PKI + "/ca.crt"))
                g.head = False
                text = read(g.policy).decode()
                g.reload(text.replace(PKI + "/clients.pem", path))
            else:
                g.reload()
            kept = alice.session
            equal(alice.get(session=kept)[0], False, "after: " + change)
            equal(alice.get()[0], True, "and then")


def test_a_ca_that_is_gone_ends_it():
    with Both() as g:
        other = Client(g, "second-ops")
        other.get()
        equal(other.get()[0], True)
        g.head = False
        g.reload(read(g.policy).decode().replace("clients.pem", "ca.crt"))
        try:
            other.get()
            raise AssertionError("a client of the old CA was answered")
        except (ssl.SSLError, ConnectionError):
            pass


def test_who_is_revoked_does_not_resume():
    folder = os.path.join(tmpdir("crl"), "ca")
    for argv in (["init", folder], ["client", folder, "eve"],
                 ["revoke", folder]):
        equal(gateway_cli("certs", *argv).returncode, 0, argv)
    with Both(LOCALS + open_head().replace(
            "@PKI@/clients.pem", folder + "/ca.crt") + POLICY, head=False,
              listen='crl = "%s/ca.crl"' % folder) as g:
        eve = Client(g, os.path.join(folder, "eve"))
        eve.get()
        equal(eve.get()[0], True)
        kept = eve.session
        equal(gateway_cli("certs", "revoke", folder, "eve").returncode, 0)
        count = len([r for r in g.log() if r.get("event") == "ready"])
        g.signal(signal.SIGUSR1)
        g.wait_ready(count)
        try:
            eve.get(session=kept)
            raise AssertionError("a revoked client was answered")
        except (ssl.SSLError, ConnectionError):
            pass


def test_tickets_expire():
    with Both(listen="tickets = { lifetime = 1, rotate = 1 }") as g:
        alice = Client(g)
        alice.get()
        first = alice.session
        # OpenSSL itself drops one that is too old, so ask until we refuse it
        until(lambda: not alice.get(session=first)[0], "it is over", 8)
        equal(alice.get()[0], True, "a new one is good")
        assert tickets(g, "expired") + tickets(g, "foreign") >= 1


def test_a_forgotten_client_shows_its_certificate():
    """A worker resumes whom it knows; its cache holds 1024."""
    with Both(workers=1) as g:
        alice = Client(g)
        alice.get()
        worker = g.workers()[0]
        os.kill(worker, 9)
        g.expected.append("ended: signal 9")
        until(lambda: g.workers() and g.workers() != [worker], "a new worker")
        equal(alice.get()[0], False, "the new worker does not know it")
        equal(alice.get()[0], True)
        assert tickets(g, "unknown_client") >= 1


class Shared(Both):
    """With a file of ticket keys, which outlives the process."""

    def __init__(self, keys):
        self.keys = os.path.join(PKI, "ticket.keys")
        self.share(keys)
        super().__init__(
            LOCALS + "gateway.process { ticket_keys = %r }\n" % self.keys
            + open_head() + POLICY, head=False)

    def share(self, keys):
        write(self.keys, b"\n".join(base64.b64encode(k) for k in keys), 0o600)

    def restart(self):
        """What another replica is: the same files, a process of its own."""
        mark = len([r for r in self.log() if r.get("event") == "ready"])
        self.process.terminate()
        self.process.wait(10)
        with open(self.log_path, "ab") as log:
            self.process = spawn([BIN, "run", self.policy], stdout=log,
                                 stderr=log, stdin=subprocess.DEVNULL,
                                 cwd=self.dir)
        self.pid = self.process.pid
        self.wait_ready(mark)


def test_replicas_share_keys():
    old, new = os.urandom(80), os.urandom(48)
    with Shared([old]) as g:
        alice = Client(g)
        alice.get()
        kept = alice.session
        for keys, good in (([old], True), ([new, old], True), ([new], False)):
            g.share(keys)
            g.restart()
            equal(alice.get(session=kept)[0], False, "as yet unknown")
            equal(alice.get(session=kept)[0], good, "%d keys" % len(keys))


def test_without_shared_keys_nothing_outlives_a_restart():
    with Both() as g:
        alice = Client(g)
        alice.get()
        kept = alice.session
        Shared.restart(g)
        alice.get(session=kept)
        equal(alice.get(session=kept)[0], False)


LOCALS = "".join(HEAD.splitlines(True)[:2])


def open_head():
    """The listener alone."""
    return HEAD[HEAD.index("gateway.listen"):]


def test_key_files():
    """Whatever is not one or more keys does not load, and says the mend."""
    keys = os.path.join(PKI, "bad.keys")
    policy = (LOCALS + "gateway.process { ticket_keys = %r }\n" % keys
              + open_head())
    for text, mode, says in (
            (os.urandom(80), 0o600, None),
            (os.urandom(48), 0o600, None),
            (b"\n".join(base64.b64encode(os.urandom(80)) for _ in range(8)),
             0o600, None),
            (b"", 0o600, "there is no key in it"),
            (b"\n\n", 0o600, "there is no key in it"),
            (os.urandom(79), 0o600, "48 or 80 bytes"),
            (base64.b64encode(os.urandom(47)), 0o600,
             "line 1 is not 48 or 80 bytes"),
            (b"\n".join(base64.b64encode(os.urandom(80)) for _ in range(9)),
             0o600, "more than 8 keys"),
            (os.urandom(80), 0o644, "chmod 600"),
            (os.urandom(80), 0o640, None)):
        write(keys, text, mode)
        folder = tempfile.mkdtemp(dir=PKI)
        path = write(folder + "/p.lua", policy.replace("@PORT@", "20001")
                     .replace("@PKI@", PKI).replace("@LISTEN@", ""))
        done = gateway_cli("check", path)
        shutil.rmtree(folder)
        if says:
            equal(done.returncode, 1, says)
            assert says in done.err and "ticket_keys" in done.err, done.err
        else:
            equal(done.returncode, 0, done.err)


def test_an_expired_client_is_not_resumed():
    ca = OpensslCa.__new__(OpensslCa)
    ca.folder, ca.name, ca.chain = PKI, "second-ca", b""
    ca.crt, ca.key = PKI + "/second-ca.crt", PKI + "/second-ca.key"
    with Both() as g:
        ca.leaf("brief", "/CN=brief", end=time.time() + 6)
        brief = Client(g, "brief")
        brief.get()
        kept = brief.session

        def refused():
            try:
                brief.get(session=kept)
                return False
            except (ssl.SSLError, ConnectionError, AssertionError):
                return True
        until(refused, "it has expired", 12)
        assert tickets(g, "resumed") >= 1, "it was resumed until then"
