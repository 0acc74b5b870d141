"""The PROXY protocol: from a load balancer to us, and from us to an upstream.

HAProxy is both sides of it where it is installed; headers by hand are the rest.
"""

import shutil
import socket
import ssl
import struct
import subprocess

from gw import (PKI, SOCKET_S, Client, Gateway, Listener, Skip, Upstream, build,
                cert, equal, free_port, gateway_cli, spawn, tmpdir, until, write)

POLICY = """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.process { workers = 1, drain = 2 }
gateway.admin { address = "127.0.0.1:@ADMIN@" }
gateway.listen {
  address = "127.0.0.1:@PORT@",
  certificate = "@PKI@/server.crt", key = "@PKI@/server.key",
  client_ca = "@PKI@/clients.pem",
  proxy_protocol = { from = { @FROM@ } }, limits = { handshake = 1.5 },
}
gateway.get("/ok", { authorize = id.ou "ops",
  handle = function(request) return gateway.text(request.remote) end })
"""
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V1 = b"PROXY TCP4 192.0.2.9 198.51.100.1 5555 443\r\n"


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def v2(src="2001:db8::9", dst="2001:db8::1", ports=(6666, 443), command=1,
       tlvs=b"", crc=False):
    v6 = ":" in src
    family = socket.AF_INET6 if v6 else socket.AF_INET
    body = (socket.inet_pton(family, src) + socket.inet_pton(family, dst)
            + struct.pack("!HH", *ports) + tlvs)
    if crc:
        body += b"\x03\0\4\0\0\0\0"
    head = SIGNATURE + bytes([0x20 | command, 0x21 if v6 else 0x11])
    head += struct.pack("!H", len(body)) + body
    return head[:-4] + struct.pack("!I", crc32c(head)) if crc else head


def connect(port, header, who="ops", pieces=False):
    """A gw.Client that says `header` before its TLS."""
    raw = socket.create_connection(("127.0.0.1", port), SOCKET_S)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(0, len(header), 1 if pieces else len(header) or 1):
        raw.sendall(header[at:at + (1 if pieces else len(header))])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.options &= ~0x80
    context.load_verify_locations(PKI + "/servers.pem")
    context.load_cert_chain(*cert(who))
    return Client(sock=context.wrap_socket(raw, server_hostname="localhost",
                                           suppress_ragged_eofs=False))


def remote(port, header, **keys):
    with connect(port, header, **keys) as c:
        return c.get("/ok").text


def setup():
    return Gateway(POLICY, head=False, FROM='"10.0.0.0/8", "127.0.0.1/32"')


# ---- in --------------------------------------------------------------------

def test_the_peer_is_the_one_of_the_header(g):
    for header, want in (
            (V1, "192.0.2.9:5555"),
            (b"PROXY TCP6 2001:db8::7 ::1 77 443\r\n", "[2001:db8::7]:77"),
            (v2(), "[2001:db8::9]:6666"),
            (v2("192.0.2.8", "192.0.2.1"), "192.0.2.8:6666"),
            (v2("192.0.2.8", "192.0.2.1", tlvs=b"\x05\0\3abc\xee\0\0"),
             "192.0.2.8:6666"),
            (v2("192.0.2.8", "192.0.2.1", crc=True), "192.0.2.8:6666")):
        equal(remote(g.port, header), want, header)
        equal(remote(g.port, header, pieces=True), want, header)
    record = g.wait_record(event="access", peer="192.0.2.9:5555")
    assert record["via"].startswith("127.0.0.1:"), record


def test_header_and_handshake_in_one_write(g):
    """A first segment that holds both is cut at the right byte."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(PKI + "/servers.pem")
    context.load_cert_chain(*cert("ops"))
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(into, out, server_hostname="localhost")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    with socket.create_connection(("127.0.0.1", g.port), SOCKET_S) as raw:
        raw.sendall(v2() + out.read())
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                raw.sendall(out.read())
                into.write(raw.recv(65536))
        tls.write(build("GET", "/ok"))
        raw.sendall(out.read())
        got = b""
        while b"2001:db8::9" not in got:
            try:
                got += tls.read()
            except ssl.SSLWantReadError:
                data = raw.recv(65536)
                assert data, got
                into.write(data)


def test_local_and_unknown_keep_the_real_peer(g):
    for header in (b"PROXY UNKNOWN\r\n", v2(command=0),
                   SIGNATURE + b"\x20\0\0\0", SIGNATURE + b"\x21\0\0\0"):
        assert remote(g.port, header).startswith("127.0.0.1:"), header


def test_decisions_and_refusals_name_it(g):
    with connect(g.port, V1, "guest") as c:
        equal(c.get("/ok").status, 403)
    record = g.wait_record(event="decision", peer="192.0.2.9:5555")
    assert record["via"].startswith("127.0.0.1:"), record
    try:
        with connect(g.port, V1.replace(b"5555", b"4444"), "wrong-ops") as c:
            c.get("/ok")
    except (ssl.SSLError, EOFError, OSError, AssertionError):
        pass
    record = g.wait_record(event="handshake", peer="192.0.2.9:4444")
    assert record["via"].startswith("127.0.0.1:"), record


def test_malformed_headers(g):
    before = g.metric("gateway_connections_total", result="bad_proxy_header")
    bad = [b"", b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 1.2.3.4\r\n",
           b"PROXY " + b"x" * 200, V1.replace(b"\r\n", b"\n"),
           V1.replace(b"5555", b"05555"), v2(command=2),
           v2(tlvs=b"\x05\0\x09abc"),
           SIGNATURE + b"\x21\x11\xff\xff" + b"\0" * 100,
           v2(crc=True)[:-1] + b"\0", SIGNATURE + b"\x21\x12\0\x0c" + b"\0" * 12]
    for header in bad:
        try:
            with connect(g.port, header) as c:
                c.get("/ok")
            raise AssertionError("served after %r" % header)
        except (ssl.SSLError, OSError, EOFError):
            pass
    equal(g.metric("gateway_connections_total", result="bad_proxy_header")
          - before, len(bad))
    g.wait_record(event="handshake", msg="no PROXY header, which a connection"
                  " from there must begin with")


def test_a_header_counts_towards_the_handshake(g):
    with socket.create_connection(("127.0.0.1", g.port), SOCKET_S) as raw:
        raw.sendall(V1[:20])
        equal(raw.recv(10), b"", "what the client got")
    g.wait_line("no complete handshake within 1500 ms")


def test_a_second_header_is_not_one(g):
    try:
        with connect(g.port, V1 + V1) as c:
            c.get("/ok")
        raise AssertionError("served")
    except (ssl.SSLError, OSError, EOFError):
        pass


def test_from_elsewhere_nobody_connects():
    with Gateway(POLICY, head=False, FROM='"192.0.2.0/24"') as g:
        for header in (b"", V1):
            try:
                with connect(g.port, header) as c:
                    c.get("/ok")
                raise AssertionError("served")
            except (ssl.SSLError, OSError, EOFError):
                pass
        equal(g.metric("gateway_connections_total", result="not_from_proxy"),
              2)
        g.wait_line("not one of proxy_protocol.from")


def test_forwarded_headers():
    up = Upstream().start()
    with Gateway(POLICY + """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.get("/p/{x}", { authorize = id.anyone,
  validate = { path = { x = gateway.filename } },
  handle = app:to "/internal/{x}" })
""", head=False, FROM='"127.0.0.1"', UP=up.port) as g:
        with connect(g.port, V1) as c:
            headers = c.get("/p/a").json()["headers"]
        equal(headers["x-forwarded-for"], "192.0.2.9")
        assert headers["forwarded"].startswith("for=192.0.2.9;"), headers
    up.stop()


def test_mistakes():
    folder = tmpdir("pp-bad")
    for what, want in (
            ("{}", "option 'from' is missing"), ("{ from = {} }", "nobody"),
            ('{ from = { "10.0.0.1/8" } }', "bits beyond its length"),
            ('{ from = { "lb.example.org" } }', "not a network"),
            ('{ form = { "10.0.0.0/8" } }', "did you mean 'from'?")):
        text = POLICY.replace("{ from = { @FROM@ } }", what).replace(
            "@ADMIN@", "1").replace("@PORT@", "2")
        done = gateway_cli("check", write(folder + "/p.lua", text))
        equal(done.returncode, 1, what)
        assert want in done.err + done.out, (want, done.err + done.out)


# ---- out -------------------------------------------------------------------

OUT = """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.process { workers = 1, drain = 2 }
gateway.tcp {
  listen = { address = "127.0.0.1:@PORT@",
    certificate = "@PKI@/@CERT@.crt", key = "@PKI@/@CERT@.key",
    client_ca = "@PKI@/clients.pem", @LISTEN@ },
  authorize = id.any(id.ou "ops",
    id.spiffe "spiffe://example.org/ns/eu/sa/camera"),
  alpn = { "echo" },
  to = gateway.upstream { "@TO@", proxy_protocol = "@PROXY@" },
}
"""


class Reader(Listener):
    """Keeps all that each connection sends, until it ends."""

    def __init__(self):
        self.seen = []
        self.listen()

    def one(self, sock):
        data = b""
        with sock:
            try:
                while part := sock.recv(65536):
                    data += part
            except OSError:
                pass
        self.seen.append(data)

    def wait(self, count):
        until(lambda: len(self.seen) >= count, "%d connections" % count)
        return self.seen[count - 1]


def fields(data):
    out = {}
    while data:
        kind, n = data[0], struct.unpack("!H", data[1:3])[0]
        assert len(data) >= 3 + n, data
        out[kind], data = data[3:3 + n], data[3 + n:]
    return out


def test_version_2_with_what_tls_says():
    reader, count = Reader(), 0
    for cert_name, key_alg, sig_alg in (("server", b"EC256", b"SHA256"),
                                        ("rsa-server", b"RSA2048", b"SHA256")):
        with Gateway(OUT, head=False, TO=reader.to, PROXY="v2",
                     CERT=cert_name) as g:
            with Client(g.port, alpn=["echo"]) as c:
                mine = c.sock.getsockname()
                version, cipher = c.sock.version(), c.sock.cipher()[0]
                c.send(b"hello")
                c.sock.unwrap()
            count += 1
            data = reader.wait(count)
        assert data.startswith(SIGNATURE + b"\x21\x11"), data[:20]
        n, = struct.unpack("!H", data[14:16])
        equal(data[16 + n:], b"hello", "what follows")
        equal(data[16:24], socket.inet_aton("127.0.0.1") * 2)
        equal(struct.unpack("!HH", data[24:28]), (mine[1], g.port))
        tlv = fields(data[28:16 + n])
        equal(tlv[0x01], b"echo", "ALPN")
        equal(tlv[0x02], b"localhost", "authority")
        equal(tlv[0x20][:5], b"\x07\0\0\0\0", "client and verify")
        inner = fields(tlv[0x20][5:])
        equal(inner[0x21].decode(), version)
        equal(inner[0x22], b"ops", "CN")
        equal(inner[0x23].decode(), cipher)
        equal(inner[0x24], sig_alg)
        equal(inner[0x25], key_alg)
    reader.sock.close()


def test_version_1():
    reader = Reader()
    with Gateway(OUT, head=False, TO=reader.to, PROXY="v1",
                 CERT="server") as g:
        with Client(g.port) as c:
            mine = c.sock.getsockname()
            c.send(b"hello")
            c.sock.unwrap()
        equal(reader.wait(1), b"PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\nhello"
              % (mine[1], g.port))
    reader.sock.close()


def test_in_and_out():
    """What came in goes out: the address is the client's, not the balancer's."""
    reader = Reader()
    with Gateway(OUT, head=False, TO=reader.to, PROXY="v2", CERT="server",
                 listen='proxy_protocol = { from = { "127.0.0.1" } },') as g:
        with connect(g.port, v2(), "camera") as c:
            c.send(b"hello")
            c.sock.unwrap()
        data = reader.wait(1)
        equal(data[12:14], b"\x21\x21")
        equal(data[16:48], socket.inet_pton(socket.AF_INET6, "2001:db8::9")
              + socket.inet_pton(socket.AF_INET6, "2001:db8::1"))
        equal(struct.unpack("!HH", data[48:52]), (6666, 443))
        record = g.wait_record(event="access", peer="[2001:db8::9]:6666")
        assert record["via"].startswith("127.0.0.1:")
    reader.sock.close()


# ---- HAProxy on both sides ---------------------------------------------------

class Haproxy:
    def __init__(self, text):
        if not shutil.which("haproxy"):
            raise Skip("haproxy is not installed")
        folder = tmpdir("haproxy")
        path = write(folder + "/cfg", "global\n maxconn 100\ndefaults\n"
                     " timeout connect 5s\n timeout client 20s\n"
                     " timeout server 20s\n" + text)
        self.process = spawn(["haproxy", "-q", "-db", "-f", path],
                             stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)

    def stop(self):
        self.process.kill()
        self.process.wait(5)


def listening(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def test_haproxy_before_us(g):
    for word in ("send-proxy", "send-proxy-v2",
                 "send-proxy-v2 proxy-v2-options crc32c"):
        port = free_port()
        proxy = Haproxy("listen l\n mode tcp\n bind 127.0.0.1:%d\n"
                        " server s 127.0.0.1:%d %s\n" % (port, g.port, word))
        until(lambda: listening(port), "haproxy listens", 10)
        with Client(port) as c:
            mine = c.sock.getsockname()
            equal(c.get("/ok").text, "127.0.0.1:%d" % mine[1], word)
        proxy.stop()


def test_haproxy_behind_us():
    port, up = free_port(), free_port()
    proxy = Haproxy(
        "frontend f\n mode http\n bind 127.0.0.1:%d accept-proxy\n"
        " http-request return status 200 content-type text/plain lf-string"
        " \"%%[src]:%%[src_port] %%[fc_pp_authority]\"\n" % up)
    until(lambda: listening(up), "haproxy listens", 10)
    with Gateway(OUT.replace('alpn = { "echo" },', ""), head=False, port=port,
                 TO="tcp://127.0.0.1:%d" % up, PROXY="v2", CERT="server") as g:
        with Client(g.port) as c:
            mine = c.sock.getsockname()
            equal(c.get("/").text, "127.0.0.1:%d localhost" % mine[1])
    proxy.stop()
