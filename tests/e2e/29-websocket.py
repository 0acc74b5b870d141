"""Upgrade: WebSocket through a route, and everything that must not become one.

Server and client are small, and real: RFC 6455 with masks, lengths, ping,
fragments and close, on the standard library alone.
"""

import base64
import hashlib
import os
import socket
import ssl
import struct
import threading

from gw import (ASAN, PKI, Gateway, Listener, build, equal, free_port,
                status_kib, until)

GROWN_KIB = (96 if ASAN else 16) << 10  # ASan keeps what is freed

POLICY = """
gateway.process { workers = 1, drain = 2 }
gateway.admin { address = "127.0.0.1:@ADMIN@" }
gateway.listen {
  address = "127.0.0.1:@PORT@",
  certificate = "@PKI@/server.crt", key = "@PKI@/server.key",
  client_ca = "@PKI@/clients.pem", @LISTEN@
}
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.get("/chat/{room}", { authorize = id.ou "ops", upgrade = "websocket",
  validate = { path = { room = gateway.filename },
               query = { n = gateway.optional(gateway.integer(1, 9), 1) } },
  check = function(request) return request.path.room ~= "closed", "closed" end,
  handle = app:to "/ws/{room}", @ROUTE@ })
gateway.get("/plain", { authorize = id.anyone, handle = app:to "/ws/plain" })
gateway.get("/lua", { authorize = id.anyone, upgrade = "websocket",
  handle = function() return gateway.text "no tunnel" end })
gateway.get("/hook", { authorize = id.anyone, upgrade = { "websocket", "foo" },
  handle = function() return app:to "/ws/hook" end,
  respond = function(request, response)
    if request.headers["x-deny"] then return gateway.problem(403, "no") end
  end, validate = { headers = { ["X-Deny"] = gateway.optional(
    gateway.string(1, 9)) } } })
"""
HEAD = """
local gateway = require "gateway"
local id = require "gateway.identity"
"""
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


# ---- RFC 6455 --------------------------------------------------------------

def accept_of(key):
    return base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()
                            ).decode()


def frame(op, data=b"", mask=False, fin=True):
    head = bytes([op | (0x80 if fin else 0)])
    bit = 0x80 if mask else 0
    if len(data) < 126:
        head += bytes([bit | len(data)])
    elif len(data) < 65536:
        head += struct.pack("!BH", bit | 126, len(data))
    else:
        head += struct.pack("!BQ", bit | 127, len(data))
    if not mask:
        return head + data
    key = os.urandom(4)
    return head + key + xor(data, key)


def xor(data, key):
    n = len(data)
    key = (key * (n // 4 + 1))[:n]
    return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(
        n, "big") if n else b""


class Frames:
    """Reads frames: `read(n)` gives exactly n bytes or raises EOFError."""

    def __init__(self, read):
        self.read = read

    def next(self):
        a, b = self.read(2)
        n = b & 0x7f
        if n == 126:
            n, = struct.unpack("!H", self.read(2))
        elif n == 127:
            n, = struct.unpack("!Q", self.read(8))
        key = self.read(4) if b & 0x80 else None
        data = self.read(n)
        return a & 0x0f, bool(a & 0x80), xor(data, key) if key else data

    def message(self, pong):
        """(op, data) of a whole message; pings are answered on the way."""
        first, data = None, b""
        while True:
            op, fin, part = self.next()
            if op == 9:
                pong(part)
                continue
            if op >= 8:
                return op, part
            first = first or op
            data += part
            if fin:
                return first, data


class Server(Listener):
    """A WebSocket server: echoes messages; `heads` are the requests it saw.

    `answer`, if set, is sent instead of the handshake's answer."""

    def __init__(self, tls=None):
        self.tls = tls
        self.heads, self.after, self.answer = [], [], None
        self.behind = []  # bytes that came with a head that `answer` answered
        self.after_101 = b""
        self.listen()

    def one(self, sock):
        try:
            if self.tls:
                sock = self.tls.wrap_socket(sock, server_side=True,
                                            suppress_ragged_eofs=False)
            with sock:
                while self.serve(sock):
                    pass
                if self.tls:
                    sock.unwrap()
        except (OSError, EOFError) as problem:
            self.after.append(problem)

    def serve(self, sock):
        buffer = b""
        while b"\r\n\r\n" not in buffer:
            part = sock.recv(65536)
            if not part:
                return False
            buffer += part
        head, _, buffer = buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            fields.setdefault(name.lower(), []).append(value.strip())
        self.heads.append((lines[0], fields))
        answer = self.answer  # the test may be on to its next
        if answer is not None:
            self.behind.append(buffer)
            sock.sendall(answer)
            if b"101" in answer[:16]:
                self.behind.append(sock.recv(100))
                return False
            return True
        if "upgrade" not in fields:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain")
            return True
        sock.sendall(("HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket"
                      "\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n"
                      "\r\n" % accept_of(fields["sec-websocket-key"][0])
                      ).encode() + self.after_101)
        self.talk(sock, buffer)
        return False

    def talk(self, sock, buffer):
        def read(n):
            nonlocal buffer
            while len(buffer) < n:
                part = sock.recv(65536)
                if not part:
                    raise EOFError("the other side ended")
                buffer += part
            data, buffer = buffer[:n], buffer[n:]
            return data

        frames = Frames(read)
        while True:
            op, data = frames.message(lambda d: sock.sendall(frame(10, d)))
            sock.sendall(frame(op, data))
            if op == 8:
                self.after.append("closed well")
                return

    def stop(self):
        self.sock.close()


class Socket:
    """A WebSocket client over a gw.Client."""

    def __init__(self, c, target="/chat/a", headers=(), extra=b""):
        self.c, self.key = c, base64.b64encode(os.urandom(16)).decode()
        c.send(self.request(target, headers) + extra)
        self.response = c.head()
        if self.response.status == 101:
            equal(self.response.get("sec-websocket-accept"),
                  accept_of(self.key))
            equal(self.response.get("upgrade"), "websocket")
            equal(self.response.get("connection"), "upgrade")
        self.frames = Frames(self.read)

    def request(self, target, headers=()):
        return build("GET", target, [
            ("Upgrade", "websocket"), ("Connection", "keep-alive, Upgrade"),
            ("Sec-WebSocket-Key", self.key), ("Sec-WebSocket-Version", "13"),
            ("Origin", "https://a.example.org")] + list(headers))

    def read(self, n):
        while len(self.c.buffer) < n:
            if not self.c.fill():
                raise EOFError(self.c.closed)
        data, self.c.buffer = self.c.buffer[:n], self.c.buffer[n:]
        return data

    def say(self, data, op=2):
        self.c.send(frame(op, data, mask=True))

    def hear(self):
        return self.frames.message(lambda d: self.say(d, 10))

    def echo(self, data, op=2):
        self.say(data, op)
        equal(self.hear(), (op, data))


class Both(Gateway):
    def __init__(self, route="", listen=""):
        self.server = Server()
        super().__init__(HEAD + POLICY, head=False, UP=self.server.port,
                         ROUTE=route, listen=listen)

    def stop(self):
        self.server.stop()
        return super().stop()


def setup():
    return Both()


# ---- tunnels ---------------------------------------------------------------

def test_messages_of_all_sizes(g):
    with g.connect() as c:
        ws = Socket(c)
        equal(ws.response.status, 101)
        for n in (0, 1, 125, 126, 65535, 65536, 3 << 20):
            ws.echo(os.urandom(n))
        ws.echo("für alle".encode(), 1)
        ws.say(b"ping", 9)
        equal(ws.hear(), (10, b"ping"))
        c.send(frame(1, b"in ", True, False) + frame(0, b"two", True))
        equal(ws.hear(), (1, b"in two"))
        ws.say(struct.pack("!H", 1000), 8)
        equal(ws.hear(), (8, struct.pack("!H", 1000)))
        assert not c.fill()
        equal(c.closed, "end", "a tunnel's end is an end, not a cut")
    until(lambda: "closed well" in g.server.after, "the server sees the close")
    record = g.wait_record(event="access", tunnel="websocket", status=101)
    equal(record["route"], "/chat/{room}")
    assert record["received"] > 3 << 20 and record["sent"] > 3 << 20, record
    until(lambda: g.metric("gateway_tunnels") == 0, "no tunnel is left")
    assert g.metric("gateway_tunnels_total", kind="upgrade") >= 1


def test_what_goes_upstream(g):
    with g.connect() as c:
        ws = Socket(c, "/chat/b?n=3", [("X-Forwarded-For", "6.6.6.6"),
                                       ("Sec-WebSocket-Protocol", "chat")])
        equal(ws.response.status, 101)
        ws.echo(b"x")
    line, fields = g.server.heads[-1]
    equal(line, "GET /ws/b?n=3 HTTP/1.1")
    equal(fields["upgrade"], ["websocket"])
    equal(fields["connection"], ["upgrade"])
    equal(fields["sec-websocket-protocol"], ["chat"])
    equal(fields["origin"], ["https://a.example.org"])
    equal(fields["x-forwarded-for"], ["127.0.0.1"])
    assert fields["client-cert"] and "sec-websocket-key" in fields


def test_bytes_right_after_either_head(g):
    """With the 101, and (against the RFC) with the request: nothing is lost."""
    g.server.after_101 = frame(1, b"welcome")
    try:
        with g.connect() as c:
            ws = Socket(c, extra=frame(1, b"eager", True))
            equal(ws.hear(), (1, b"welcome"))
            equal(ws.hear(), (1, b"eager"))
    finally:
        g.server.after_101 = b""


def test_refused_before_the_upstream_hears(g):
    count = len(g.server.heads)
    for who, target, status in (("guest", "/chat/a", 403),
                                ("ops", "/chat/a?n=99", 422),
                                ("ops", "/chat/closed", 403),
                                ("ops", "/chat/..%2fa", 400)):
        with g.connect(who) as c:
            ws = Socket(c, target, extra=build("GET", "/plain"))
            equal(ws.response.status, status, target)
            answers, closed = c.drain()
            assert closed == "end", closed
            if status != 400:
                equal(ws.response.get("connection"), "close")
    equal(len(g.server.heads), count, "heads upstream")


def test_a_hook_may_forward_and_refuse(g):
    with g.connect() as c:
        ws = Socket(c, "/hook")
        equal(ws.response.status, 101)
        ws.echo(b"x" * 70000)
    with g.connect() as c:
        ws = Socket(c, "/hook", [("X-Deny", "yes")])
        equal(ws.response.status, 403, "a respond hook takes the 101 back")
        equal(ws.response.get("connection"), "close")
        assert ws.response.get("upgrade") is None


# ---- no tunnel: smuggling through an upgrade that fails ----------------------

def test_a_route_without_upgrade_is_plain_http(g):
    """The token is ignored and stripped; what follows is ordinary pipelining."""
    for token in ("websocket", "h2c", "TLS/1.0", "HTTP/2.0"):
        with g.connect() as c:
            c.send(build("GET", "/plain", [
                ("Upgrade", token), ("Connection", "Upgrade, HTTP2-Settings"),
                ("HTTP2-Settings", "AAMAAABkAAQAAP__")])
                + build("GET", "/plain"))
            for _ in range(2):
                r = c.response()
                equal((r.status, r.text), (200, "plain"), token)
        for line, fields in g.server.heads[-2:]:
            for name in ("upgrade", "connection", "http2-settings"):
                assert name not in fields, (token, fields)


def test_other_tokens_on_an_upgrade_route(g):
    for value in ("h2c", "websocket/13", "websockets", "", "h2c, x"):
        with g.connect() as c:
            c.send(build("GET", "/chat/a", [("Upgrade", value),
                                            ("Connection", "Upgrade")]))
            equal(c.response().text, "plain", value)
            equal(c.get("/chat/a").text, "plain", "it stays open")
        assert "upgrade" not in g.server.heads[-1][1]
    with g.connect() as c:  # one of several
        ws = Socket(c, headers=[("Upgrade", "h2c, WebSocket")])
        equal(ws.response.status, 101)
        equal(g.server.heads[-1][1]["upgrade"], ["websocket"])


def test_without_the_connection_option_it_is_no_upgrade(g):
    with g.connect() as c:
        c.send(build("GET", "/chat/a", [("Upgrade", "websocket")]))
        equal(c.response().text, "plain")
        assert "upgrade" not in g.server.heads[-1][1]


def test_http_1_0_and_head_are_no_upgrade(g):
    for first in ("GET /chat/a HTTP/1.0", "HEAD /chat/a HTTP/1.1"):
        with g.connect() as c:
            c.send((first + "\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                    "Connection: Upgrade\r\n\r\n").encode())
            equal(c.head().status, 200, first)
        assert "upgrade" not in g.server.heads[-1][1], first


def test_an_answer_other_than_101_ends_the_connection(g):
    """The smuggling case: what a client sent as tunnel bytes is never read as
    a request, neither by us nor by the upstream."""
    g.server.answer = b"HTTP/1.1 426 Upgrade Required\r\n" \
                      b"Content-Length: 2\r\n\r\nno"
    try:
        with g.connect() as c:
            ws = Socket(c, extra=build("GET", "/plain?smuggled=1"))
            r = c.body_of(ws.response, "GET")
            equal((r.status, r.text, r.get("connection")), (426, "no", "close"))
            equal(c.drain(), ([], "end"))
        equal(g.server.behind, [b""], "bytes upstream behind the request")
    finally:
        g.server.answer = None
    assert not any("smuggled" in line for line, _ in g.server.heads)
    with g.connect() as c:
        ws = Socket(c, "/lua", extra=build("GET", "/plain?smuggled=2"))
        equal(c.body_of(ws.response, "GET").text, "no tunnel")
        equal(c.drain(), ([], "end"))
    assert not any("smuggled" in line for line, _ in g.server.heads)


def test_a_101_that_was_not_agreed(g):
    bad = (b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
           b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\n\r\n",
           b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\n\r\n",
           b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n"
           b"Connection: Upgrade\r\n\r\n",
           b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           b"Content-Length: 5\r\n\r\nhello",
           b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           b"Transfer-Encoding: chunked\r\n\r\n")
    try:
        for answer in bad:
            g.server.answer = answer
            with g.connect() as c:
                ws = Socket(c, extra=build("GET", "/plain?smuggled=3"))
                equal(ws.response.status, 502, answer)
                equal(ws.response.get("connection"), "close")
                c.body_of(ws.response, "GET")
                equal(c.drain(), ([], "end"))
        g.server.answer = bad[0].replace(b"h2c", b"websocket")
        equal(g.get("/plain").status, 502, "101 where nobody asked")
        equal([b for b in g.server.behind if b], [], "bytes upstream")
    finally:
        g.server.answer = None
    assert not any("smuggled" in line for line, _ in g.server.heads)


def test_a_body_is_no_upgrade(g):
    with g.connect() as c:
        c.send(build("GET", "/chat/a", [("Upgrade", "websocket"),
                                        ("Connection", "Upgrade")], b"body"))
        equal(c.response().status, 400)


# ---- ends ------------------------------------------------------------------

def test_idle():
    with Both('limits = { upgrade_idle = 0.6 }') as g:
        with g.connect() as c:
            ws = Socket(c)
            for _ in range(8):  # longer than the limit, but never idle
                ws.echo(b"x")
                threading.Event().wait(0.1)
            assert c.is_closed()
            equal(c.closed, "cut")
        record = g.wait_record(event="access", tunnel="websocket")
        assert "no byte for 600 ms" in record["ended"], record
        equal(g.metric("gateway_limits_total", limit="tunnel_idle"), 1)


def test_listener_limits_do_not_end_a_tunnel():
    """Neither a head's time nor a body's size or time is a tunnel's."""
    with Both(listen="limits = { head = 0.3, body_idle = 0.3, idle = 0.3,"
              " write_idle = 0.3, body_size = 10, requests = 1 }") as g:
        with g.connect() as c:
            ws = Socket(c)
            until(lambda: g.metric("gateway_tunnels") == 1, "it is open")
            threading.Event().wait(0.7)
            ws.echo(b"y" * 100000)


def test_a_slow_reader_bounds_memory():
    with Both() as g:
        worker = g.workers()[0]
        with g.connect(rcvbuf=4096) as c:
            ws = Socket(c)
            before = status_kib(worker, "VmRSS")
            c.sock.settimeout(1)
            sent, data = 0, frame(2, b"z" * (1 << 20), True)
            try:
                while sent < 256 << 20:
                    sent += c.sock.send(data)
            except (OSError, socket.timeout):
                pass
            assert sent < 64 << 20, "%d bytes" % sent
            grown = status_kib(worker, "VmRSS") - before
            assert grown < GROWN_KIB, "%d KiB" % grown
            del ws


def test_reload_and_drain():
    with Both() as g:
        with g.connect() as c:
            ws = Socket(c)
            ws.echo(b"1")
            g.reload()
            ws.echo(b"2")
            assert not c.fill(), "the drain is over"
            equal(c.closed, "cut")
        record = g.wait_record(event="access", tunnel="websocket")
        assert "stops" in record["ended"], record


def test_the_upstream_is_down_or_dies():
    with Both() as g:
        with g.connect() as c:
            ws = Socket(c)
            ws.echo(b"1")
            g.tokens["UP"] = free_port()
            ws.say(struct.pack("!H", 1001), 8)
            equal(ws.hear()[0], 8)
            assert not c.fill()
        g.reload(HEAD + POLICY)
        with g.connect() as c:
            equal(Socket(c).response.status, 502)


def test_an_upstream_over_tls():
    """Through https: whole, ended by close_notify, and cut without it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PKI + "/server.crt", PKI + "/server.key")
    server = Server(context)
    policy = HEAD + POLICY.replace('"http://127.0.0.1:@UP@"',
                                   '"https://127.0.0.1:@UP@",'
                                   ' ca = "@PKI@/ca.crt"')
    with Gateway(policy, head=False, UP=server.port, ROUTE="") as g:
        with g.connect() as c:
            ws = Socket(c)
            equal(ws.response.status, 101)
            for n in (1, 70000, 3 << 20):
                ws.echo(os.urandom(n))
            ws.say(struct.pack("!H", 1000), 8)
            equal(ws.hear()[0], 8)
            assert not c.fill()
            equal(c.closed, "end")
        until(lambda: "closed well" in server.after, "the server's close")
        with g.connect() as c:
            Socket(c).echo(b"x")
        until(lambda: len(server.after) > 1, "the server sees its client go")
        assert isinstance(server.after[1], OSError), server.after[1]
        until(lambda: g.metric("gateway_tunnels") == 0, "no tunnel is left")
    server.stop()
