#!/usr/bin/env python3
"""A small HTTP/1.1 upstream for `make run` and for the tests.

    tests/upstream.py [--host 127.0.0.1] [--port 8080] [--unix PATH] [--quiet]

It answers every path below /internal/ with what it received, as JSON:
method, path, headers, the length, CRC-32 and (if short) the text of the body,
and which connection and which request on it this was.  The first segments
after /internal/ may ask for trouble:

    slow/S            wait S seconds, then answer
    hang              read the request, never answer
    drip/N/S          N bytes, one every S seconds
    big/N             N bytes with a Content-Length (64K, 10M, 2G are fine too)
    chunked/N[/C]     N bytes in chunks of C
    status/CODE       that status
    early             answer before the body is read
    die/N             promise twice N bytes, send N, close
    die-chunked/N     the same without the last chunk
    reset/N           the same, but with a TCP reset
    drop              close without a byte
    bye               answer and say Connection: close
    hangup            answer, then close without having said so
    stale             answer; the *next* request on this connection is dropped
    headers           an answer with hop-by-hop and identity headers
    raw/NAME          an answer that breaks the rules: see RAW below
    raw-open/NAME     the same, and the connection stays open

Only the standard library is used.  Nothing here is meant for production.
"""

import argparse
import json
import os
import socket
import struct
import sys
import threading
import time
import zlib

HEAD_MAX = 65536
TEXT_MAX = 65536
BLOCK = bytes(range(256)) * 1024  # 256 KiB, the pattern of every big body

RAW = {
    "cl-te": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"
             b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nhello",
    "two-cl": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"
              b"Content-Length: 6\r\n\r\nhello!",
    "bad-cl": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
    "te-twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n"
                b"\r\n0\r\n\r\n",
    "te-tab": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\t\r\n\r\n"
              b"0\r\n\r\n",
    "te-gzip": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
    "bare-lf": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "bare-cr": b"HTTP/1.1 200 OK\r\nX-A: a\rb\r\nContent-Length: 5\r\n"
               b"\r\nhello",
    "fold": b"HTTP/1.1 200 OK\r\nX-A: a\r\n b\r\nContent-Length: 5\r\n"
            b"\r\nhello",
    "space-colon": b"HTTP/1.1 200 OK\r\nX-A : a\r\nContent-Length: 5\r\n"
                   b"\r\nhello",
    "nul": b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 5\r\n\r\nhello",
    "two-cl-alike": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"
                    b"Content-Length: 5\r\n\r\nhello",
    "cl-list": b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
    "cl-huge": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n"
               b"\r\nhello",
    "te-identity": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nx",
    "te-two": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
              b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "te-1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
              b"0\r\n\r\n",
    "te-empty": b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\nx",
    "cl-empty": b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nx",
    "control": b"HTTP/1.1 200 OK\r\nX-A: a\x01b\r\nContent-Length: 5\r\n"
               b"\r\nhello",
    "del": b"HTTP/1.1 200 OK\r\nX-A: a\x7fb\r\nContent-Length: 5\r\n"
           b"\r\nhello",
    "control-reason": b"HTTP/1.1 200 O\x1bK\r\nContent-Length: 5\r\n"
                      b"\r\nhello",
    "no-colon": b"HTTP/1.1 200 OK\r\nX-A\r\nContent-Length: 5\r\n\r\nhello",
    "no-name": b"HTTP/1.1 200 OK\r\n: a\r\nContent-Length: 5\r\n\r\nhello",
    "odd-name": b"HTTP/1.1 200 OK\r\nX A: a\r\nContent-Length: 5\r\n"
                b"\r\nhello",
    "status-2": b"HTTP/1.1 20 OK\r\nContent-Length: 5\r\n\r\nhello",
    "status-4": b"HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nhello",
    "status-0": b"HTTP/1.1 099 OK\r\nContent-Length: 5\r\n\r\nhello",
    "status-6": b"HTTP/1.1 600 OK\r\nContent-Length: 5\r\n\r\nhello",
    "status-text": b"HTTP/1.1 2x0 OK\r\nContent-Length: 5\r\n\r\nhello",
    "status-sign": b"HTTP/1.1 +20 OK\r\nContent-Length: 5\r\n\r\nhello",
    "no-status": b"HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    "two-blanks": b"HTTP/1.1  200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "blank-first": b" HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "crlf-first": b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "lower-case": b"http/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "version-2": b"HTTP/2 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "icy": b"ICY 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "http-0.9": b"<html>hello</html>",
    "no-head": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
    "flood": b"HTTP/1.1 100 Continue\r\n\r\n" * 50 +
             b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "interim-body": b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n"
                    b"hello",
    "interim-chunks": b"HTTP/1.1 103 Early Hints\r\n"
                      b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "interim-alone": b"HTTP/1.1 100 Continue\r\n\r\n",
    "many-fields": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 +
                   b"Content-Length: 5\r\n\r\nhello",
    "many-options": b"HTTP/1.1 200 OK\r\nConnection: " + b"a," * 40 +
                    b"b\r\nContent-Length: 5\r\n\r\nhello",
    "chunk-lf": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"5\nhello\r\n0\r\n\r\n",
    "chunk-long": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                  b"5\r\nhelloworld\r\n0\r\n\r\n",
    "chunk-sign": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                  b"-5\r\nhello\r\n0\r\n\r\n",
    "chunk-size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                  b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "chunk-extension": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
                       b"\r\n5;" + b"a" * 9000 + b"\r\nhello\r\n0\r\n\r\n",
    "chunk-trailer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                     b"5\r\nhello\r\n0\r\nA b\r\n\r\n",
    "more": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, evil",
    "more-chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                   b"5\r\nhello\r\n0\r\n\r\nevil",
    "more-204": b"HTTP/1.1 204 No Content\r\n\r\nevil",
    "more-204-length": b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n"
                       b"evil",
    "more-304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil",
    "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"5\r\nhello\r\n0\r\nClient-Cert: :evil:\r\nX-A: evil\r\n"
                b"\r\n",
    "no-reason": b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello",
    "obs-text": b"HTTP/1.1 200 \xe4\r\nX-A: \xe4\r\nContent-Length: 5\r\n"
                b"\r\nhello",
    "empty-value": b"HTTP/1.1 200 OK\r\nX-A:\r\nContent-Length: 5\r\n"
                   b"\r\nhello",
    "1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "bad-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                 b"zz\r\nhello\r\n0\r\n\r\n",
    "junk": b"220 mail.example.org ESMTP\r\n",
    "version": b"HTTP/3.7 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "big-head": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 1000000 + b"\r\n\r\n",
    "switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n"
              b"Connection: upgrade\r\n\r\nfree bytes",
    "continue": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n"
                b"Link: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n"
                b"\r\nhello",
    "two": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
           b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    "close": b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    "no-body": b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n",
    "not-modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n"
                    b"ETag: \"x\"\r\n\r\n",
}


def size(text):
    """'64K' -> 65536."""
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper())
    return int(text[:-1]) * unit if unit else int(text)


def pattern(total):
    """Yields `total` bytes of the pattern, block by block."""
    for _ in range(total // len(BLOCK)):
        yield BLOCK
    if total % len(BLOCK):
        yield BLOCK[:total % len(BLOCK)]


class Gone(Exception):
    """The peer went away, or spoke no HTTP."""


class Request:
    """One parsed request; `body_bytes` and `crc` once the body is read."""

    def __init__(self, line, fields):
        self.method, self.target, self.version = line.split(" ", 2)
        self.fields = fields
        self.body_bytes = 0
        self.crc = 0
        self.text = b""
        self.connection = self.number = 0
        self.done = False  # the whole body arrived

    def get(self, name):
        """The value of one header, None if it is not there."""
        found = [v for n, v in self.fields if n.lower() == name]
        return ", ".join(found) if found else None

    def headers(self):
        """Lower-case names; a list where a header was repeated."""
        out = {}
        for name, value in self.fields:
            name = name.lower()
            if name not in out:
                out[name] = value
            elif isinstance(out[name], list):
                out[name].append(value)
            else:
                out[name] = [out[name], value]
        return out

    def took(self, data):
        self.body_bytes += len(data)
        self.crc = zlib.crc32(data, self.crc)
        if len(self.text) + len(data) <= TEXT_MAX:
            self.text += data

    def echo(self):
        out = {"method": self.method, "path": self.target,
               "headers": self.headers(), "bytes": self.body_bytes,
               "crc32": self.crc, "connection": self.connection,
               "request": self.number}
        if self.body_bytes <= TEXT_MAX:
            out["body"] = self.text.decode("utf-8", "replace")
        return out


class Connection:
    """One client: reads requests in turn, answers each."""

    def __init__(self, server, sock, number):
        self.server, self.sock, self.number = server, sock, number
        self.buffer = b""
        self.close = self.stale = False

    def run(self):
        try:
            self.secure()
            count = 0
            while not self.close:
                request = self.read_head()
                count += 1
                request.connection, request.number = self.number, count
                self.server.seen(request)
                if self.stale:
                    break
                self.answer(request)
            self.goodbye()
        except (Gone, OSError, ValueError):  # ssl.SSLError is an OSError
            pass
        finally:
            self.server.gone(self)

    def secure(self):
        """The TLS handshake, where there is one."""
        if self.server.tls:
            self.sock = self.server.tls.wrap_socket(self.sock, server_side=True)
            with self.server.lock:
                self.server.sessions.append({
                    "reused": self.sock.session_reused,
                    "version": self.sock.version(),
                    "peer": self.sock.getpeercert() or {}})

    def goodbye(self):
        """close_notify, so that the other side knows it has everything."""
        if self.server.tls and self.server.notify:
            self.sock.settimeout(2)
            self.sock.unwrap()

    def fill(self):
        data = self.sock.recv(262144)
        if not data:
            raise Gone
        self.buffer += data

    def read_head(self):
        while b"\r\n\r\n" not in self.buffer:
            if len(self.buffer) > HEAD_MAX:
                raise Gone
            self.fill()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        fields = []
        for line in lines[1:]:
            name, _, value = line.partition(":")
            fields.append((name, value.strip(" \t")))
        return Request(lines[0], fields)

    def read_body(self, request):
        if (request.get("expect") or "").lower() == "100-continue":
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in (request.get("transfer-encoding") or ""):
            self.read_chunks(request)
        else:
            self.read_bytes(request, int(request.get("content-length") or 0))
        request.done = True

    def read_bytes(self, request, left):
        while left > 0:
            if not self.buffer:
                self.fill()
            data, self.buffer = self.buffer[:left], self.buffer[left:]
            request.took(data)
            left -= len(data)
            while self.server.hold and not self.server.stopping.is_set():
                time.sleep(0.01)

    def read_line(self):
        while b"\r\n" not in self.buffer:
            self.fill()
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line

    def read_chunks(self, request):
        while True:
            left = int(self.read_line().split(b";")[0], 16)
            if left == 0:
                break
            self.read_bytes(request, left)
            self.read_line()
        while self.read_line():
            pass  # trailers

    def head(self, status, fields):
        lines = ["HTTP/1.1 %d %s" % (status, "Whatever")]
        lines += ["%s: %s" % field for field in fields]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def reply(self, request, status=200, fields=(), body=None):
        """An answer of known length; the echo unless `body` is given."""
        if body is None:
            body = json.dumps(request.echo(), indent=1).encode() + b"\n"
        fields = [("Content-Type", "application/json"),
                  ("Content-Length", str(len(body)))] + list(fields)
        data = self.head(status, fields)
        if request.method != "HEAD":
            data += body
        self.sock.sendall(data)

    def answer(self, request):
        path = request.target.split("?")[0]
        words = [w for w in path.split("/") if w]
        if words[:1] != ["internal"]:
            self.read_body(request)
            self.reply(request, 404, body=b'{"error": "not found"}\n')
            return
        verb = words[1] if len(words) > 1 else ""
        do = getattr(self, "do_" + verb.replace("-", "_"), None)
        if verb != "early":
            self.read_body(request)
        if do:
            do(request, words[2:])
        else:
            self.reply(request)

    # What a path may ask for, in the order of the page above.

    def do_slow(self, request, words):
        self.server.wait(float(words[0]))
        self.reply(request)

    def do_hang(self, _request, _words):
        self.server.wait(3600)
        self.close = True

    def do_drip(self, _request, words):
        count, pause = int(words[0]), float(words[1])
        self.sock.sendall(self.head(200, [("Content-Length", str(count))]))
        for _ in range(count):
            self.sock.sendall(b"x")
            self.server.wait(pause)

    def do_big(self, request, words):
        total = size(words[0])
        self.sock.sendall(self.head(200, [("Content-Length", str(total))]))
        if request.method == "HEAD":
            return
        for block in pattern(total):
            self.sock.sendall(block)
            self.server.sent += len(block)

    def do_chunked(self, request, words):
        total = size(words[0])
        step = size(words[1]) if len(words) > 1 else 1000
        self.sock.sendall(self.head(200, [("Transfer-Encoding", "chunked")]))
        if request.method == "HEAD":
            return
        whole = b"".join(pattern(total)) if total < 1 << 24 else None
        for at in range(0, total, step):
            data = (whole[at:at + step] if whole
                    else b"x" * min(step, total - at))
            self.sock.sendall(b"%x\r\n" % len(data) + data + b"\r\n")
        self.sock.sendall(b"0\r\n\r\n")

    def do_status(self, request, words):
        self.reply(request, int(words[0]))

    def do_early(self, request, _words):
        self.reply(request, 409, [("Connection", "close")])
        self.sock.shutdown(socket.SHUT_WR)  # and linger: a reset would
        self.sock.settimeout(5)             # take the answer away
        while self.sock.recv(262144):
            pass
        self.close = True

    def do_die(self, _request, words):
        total = size(words[0])
        self.sock.sendall(self.head(200, [("Content-Length", str(2 * total))]))
        for block in pattern(total):
            self.sock.sendall(block)
        self.close = True

    def do_die_chunked(self, _request, words):
        total = size(words[0])
        self.sock.sendall(self.head(200, [("Transfer-Encoding", "chunked")]))
        for block in pattern(total):
            self.sock.sendall(b"%x\r\n" % len(block) + block + b"\r\n")
        self.close = True

    def do_reset(self, request, words):
        self.do_die(request, words)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                             struct.pack("ii", 1, 0))

    def do_drop(self, _request, _words):
        self.close = True

    def do_bye(self, request, _words):
        self.reply(request, fields=[("Connection", "close")])
        self.close = True

    def do_hangup(self, request, _words):
        self.reply(request)
        self.close = True

    def do_stale(self, request, _words):
        self.reply(request)
        self.stale = True

    def do_headers(self, request, _words):
        self.reply(request, fields=[
            ("Connection", "keep-alive, X-Private"),
            ("Keep-Alive", "timeout=9"),
            ("X-Private", "for this hop"), ("Proxy-Authenticate", "Basic"),
            ("Upgrade", "h2c"), ("X-Forwarded-Client-Cert", "Hash=1"),
            ("Client-Cert", ":AAAA:"), ("X-Kept", "yes"),
            ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Server", "demo")])

    def do_raw_open(self, _request, words):
        self.sock.sendall(RAW[words[0]])

    def do_raw(self, _request, words):
        self.sock.sendall(RAW[words[0]])
        self.close = True


class Upstream:
    """The server: a listening socket, and a thread for each connection.

    `requests` and `connections` are the witness that tests ask. With an
    ssl.SSLContext in `tls` it speaks TLS, and `sessions` tells of each
    handshake; `notify = False` leaves out close_notify."""

    def __init__(self, host="127.0.0.1", port=0, unix=None, on_request=None,
                 tls=None):
        self.requests, self.open = [], set()
        self.tls, self.sessions, self.notify = tls, [], True
        self.connections = self.sent = 0
        self.on_request = on_request
        self.hold = False  # while true, bodies are not read
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        if unix:
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(unix)
            os.chmod(unix, 0o666)
        else:
            self.listener = socket.socket()
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind((host, port))
        self.listener.listen(512)
        self.port = None if unix else self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.accept, daemon=True)

    def start(self):
        self.thread.start()
        return self

    def accept(self):
        while not self.stopping.is_set():
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.connections += 1
                connection = Connection(self, sock, self.connections)
                self.open.add(connection)
            threading.Thread(target=connection.run, daemon=True).start()

    def seen(self, request):
        with self.lock:
            self.requests.append(request)
            del self.requests[:-10000]
        if self.on_request:
            self.on_request(request)

    def gone(self, connection):
        with self.lock:
            self.open.discard(connection)
        connection.sock.close()

    def wait(self, seconds):
        """Sleeps, but not past stop()."""
        if self.stopping.wait(seconds):
            raise Gone

    def stop(self):
        self.stopping.set()
        for sock in [self.listener] + [c.sock for c in list(self.open)]:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.listener.close()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--unix", metavar="PATH")
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()

    def show(request):
        if not options.quiet:
            print("upstream: %s %s" % (request.method, request.target),
                  flush=True)

    try:
        server = Upstream(options.host, options.port, options.unix, show)
    except OSError as problem:
        sys.exit("upstream.py: cannot listen on %s: %s"
                 % (options.unix or options.port, problem.strerror))
    print("upstream: listening on %s" % (options.unix or "%s:%d" % (
        options.host, server.port)), flush=True)
    server.start()
    try:
        server.thread.join()
    except KeyboardInterrupt:
        server.stop()


if __name__ == "__main__":
    main()
