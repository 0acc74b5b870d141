#!/usr/bin/env python3
"""The same raw requests to gateway, nginx and HAProxy, before one backend.

    tests/differential.py [--bin build/gateway] [--show] [--write]

Each request is sent to each of the three, with one more behind it (/end), and
the backend records what arrives.  What became of a request is its *reading*:

    refused            an error, or the connection closed; nothing arrived
    waits              the rest of a message is awaited: /end was taken for it
    GET /x 'body' …    what arrived, with the fields whose value says "mark";
                       "(closed)" where /end was not served any more

Where the three readings differ, tests/differential.md must say why: it is
written (--write) from WHY below and tests/differential.json, which holds the
readings.  A difference that is not there, and a reading of gateway that has
changed, is a failure.  --show prints all readings.
The last line is `N passed, N failed`.
"""

import argparse
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
E2E = os.path.join(HERE, "e2e")
sys.dont_write_bytecode = True
sys.path.insert(0, E2E)
READINGS = os.path.join(HERE, "differential.json")
TABLE = os.path.join(HERE, "differential.md")
PEERS = ("gateway", "nginx", "haproxy")
END = b"GET /end HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
WAIT_S = 1.5  # for an answer that will not come

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.any("/", { authorize = id.anyone, handle = app,
  validate = { query = gateway.unchecked } })
gateway.any("/{path...}", { authorize = id.anyone, handle = app,
  validate = { path = { path = { type = "string" } },
               query = gateway.unchecked, body = gateway.stream "1M" } })
gateway.options("*", { authorize = id.anyone, handle = app })
"""

NGINX_CONF = """
%(user)s
daemon off; master_process off; pid %(dir)s/pid;
error_log %(dir)s/error.log emerg;
events { worker_connections 64; }
http {
  access_log off; merge_slashes off;
  client_body_temp_path %(dir)s/body; proxy_temp_path %(dir)s/proxy;
  fastcgi_temp_path %(dir)s/f; uwsgi_temp_path %(dir)s/u;
  scgi_temp_path %(dir)s/s;
  server {
    listen 127.0.0.1:%(port)d;
    location / {
      proxy_pass http://127.0.0.1:%(up)d;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Connection "";
    }
  }
}
"""

HAPROXY_CONF = """
defaults
  mode http
  timeout connect 2s
  timeout client 5s
  timeout server 5s
frontend f
  bind 127.0.0.1:%(port)d
  default_backend b
backend b
  server s 127.0.0.1:%(up)d
"""


# ---- the requests ----------------------------------------------------------

def load(name):
    """A file of the end-to-end tests: its tables are used here, too."""
    spec = importlib.util.spec_from_file_location("t", os.path.join(E2E, name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get(target, fields="", version="1.1"):
    return ("GET %s HTTP/%s\r\nHost: localhost\r\n%s\r\n"
            % (target, version, fields)).encode("latin-1")


FIELDS = {
    "a header with an underscore": "X_Mark: mark\r\n",
    "a header with a dot": "X.Mark: mark\r\n",
    "a header with many symbols": "X!#$%&'*+^`|~: mark\r\n",
    "an empty header": "X-Mark:\r\n",
    "blanks around a value": "X-Mark: \t mark \t \r\n",
    "obs-text in a value": "X-Mark: mark\xe4\r\n",
    "a header named by Connection": "Connection: X-Mark\r\nX-Mark: mark\r\n",
    "Content-Type named by Connection":
        "Connection: Content-Type\r\nContent-Type: mark/x\r\n",
    "Host named by Connection": "Connection: Host\r\n",
    "Proxy-Connection": "Proxy-Connection: mark\r\n",
    "Proxy-Authorization": "Proxy-Authorization: mark\r\n",
    "Keep-Alive": "Keep-Alive: mark\r\n",
    "TE": "TE: mark\r\n",
    "Trailer": "Trailer: mark\r\n",
    "Upgrade without Connection": "Upgrade: mark\r\n",
    "Upgrade with Connection": "Connection: upgrade\r\nUpgrade: mark\r\n",
    "a WebSocket": "Connection: upgrade\r\nUpgrade: websocket\r\n"
                   "Sec-WebSocket-Key: mark\r\nSec-WebSocket-Version: 13\r\n",
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
           "HTTP2-Settings: mark\r\n",
    "a forged Client-Cert": "Client-Cert: mark\r\n",
    "a forged X-Forwarded-For": "X-Forwarded-For: mark\r\n",
    "a forged X-Forwarded-Client-Cert": "X-Forwarded-Client-Cert: mark\r\n",
    "a forged Forwarded": "Forwarded: for=mark\r\n",
    "a forged X_Forwarded_For": "X_Forwarded_For: mark\r\n",
    "a forged X-SSL-Client-Verify": "X-SSL-Client-Verify: mark\r\n",
    "a forged X-Real-IP": "X-Real-IP: mark\r\n",
    "a forged X-Original-URL": "X-Original-URL: mark\r\n",
    "X-HTTP-Method-Override": "X-HTTP-Method-Override: mark\r\n",
    "Proxy (httpoxy)": "Proxy: mark\r\n",
    "X-Request-Id": "X-Request-Id: mark\r\n",
    "two Authorization": "Authorization: mark\r\nAuthorization: mark2\r\n",
    "two Content-Type": "Content-Type: mark/a\r\nContent-Type: mark/b\r\n",
    "two Cookies": "Cookie: mark=1\r\nCookie: mark=2\r\n",
    "Range": "Range: bytes=0-1,2-3,mark\r\n",
    "Expect without a body": "Expect: 100-continue\r\n",
    "Max-Forwards": "Max-Forwards: 0\r\n",
    "Content_Length": "Content_Length: 5\r\n",
    "Transfer_Encoding": "Transfer_Encoding: chunked\r\n",
}


def cases():
    """(name, bytes) in order; names are unique."""
    smuggling, odd = load("12-smuggling.py"), load("28-allowed-oddities.py")
    out = {}
    for kind, table in (("framing", smuggling.FRAMING),
                        ("line", smuggling.LINES),
                        ("chunk", smuggling.CHUNKS),
                        ("other", smuggling.OTHER), ("legal", odd.LEGAL)):
        for name, data in table.items():
            data = data[0] if isinstance(data, tuple) else data
            out["%s: %s" % (kind, name)] = data.encode("latin-1")
    for name, fields in FIELDS.items():
        out["field: " + name] = get("/x", fields)
    for target in odd.NEVER:
        out["path: " + target.replace("/%s", "")] = get(
            target.replace("/%s", ""))
    for word, requests in odd.ODD.items():
        for n, request in enumerate(requests):
            out["odd: %s %d" % (word, n + 1)] = (
                request % "r").encode("latin-1")
    return out


# ---- the backend -----------------------------------------------------------

class Backend:
    """Records whole requests, as strictly as it can, and answers each."""

    def __init__(self):
        self.seen, self.lock = [], threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            sock, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(sock,),
                             daemon=True).start()

    def serve(self, sock):
        try:
            with sock, sock.makefile("rb") as f:
                while True:
                    request = self.read(f, sock)
                    with self.lock:
                        self.seen.append(request)
                    body = b"" if request.startswith("HEAD ") else b"ok"
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
                                 b"\r\n" + body)
        except (EOFError, OSError, ValueError):
            pass

    @staticmethod
    def line(f):
        data = f.readline(1 << 20)
        if not data.endswith(b"\n"):
            raise EOFError
        return data[:-1].removesuffix(b"\r")

    def read(self, f, sock):
        method, _, rest = self.line(f).decode("latin-1").partition(" ")
        target = rest.rpartition(" ")[0]
        fields = []
        while line := self.line(f):
            name, _, value = line.decode("latin-1").partition(":")
            fields.append((name.lower(), value.strip(" \t")))
        have = dict(fields)
        if have.get("expect"):
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self.body(f, have)
        if len(target) > 60:
            target = "%s… (%d)" % (target[:20], len(target))
        text = "%s %s" % (method, target)
        if body:
            text += " %r" % body.decode("latin-1")
        for name, value in sorted(fields):
            if "mark" in value:
                text += " %s=%s" % (name, value)
        return text

    def body(self, f, have):
        if "transfer-encoding" not in have:
            data = f.read(int(have.get("content-length", "0")))
            if len(data) < int(have.get("content-length", "0")):
                raise EOFError
            return data
        data = b""
        while size := int(self.line(f).split(b";")[0], 16):
            data += f.read(size)
            self.line(f)
        while self.line(f):
            pass
        return data

    def take(self):
        with self.lock:
            seen, self.seen = self.seen, []
        return seen


# ---- who is compared -------------------------------------------------------

def spawn(argv):
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL"] + argv,
                            stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)


class Plain:
    """A process that listens on a port, without TLS."""

    def __init__(self, gw, argv, port):
        self.port, self.process = port, spawn(argv)
        gw.until(self.up, "%s listens" % argv[0], 5)

    def up(self):
        if self.process.poll() is not None:
            raise AssertionError("%s ended" % self.process.args)
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), 5)

    def stop(self):
        self.process.kill()
        self.process.wait(5)


def start_nginx(gw, up):
    folder, port = gw.tmpdir("nginx"), gw.free_port()
    conf = gw.write(folder + "/nginx.conf", NGINX_CONF % {
        "dir": folder, "port": port, "up": up,
        "user": "user root;" if os.geteuid() == 0 else ""})
    return Plain(gw, [gw.NGINX, "-p", folder, "-c", conf], port)


def start_haproxy(gw, up):
    folder, port = gw.tmpdir("haproxy"), gw.free_port()
    conf = gw.write(folder + "/haproxy.cfg",
                    HAPROXY_CONF % {"port": port, "up": up})
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    program = shutil.which("haproxy", path=path)
    if not program:
        sys.exit("differential: haproxy is missing: tests/setup.sh"
                 " /usr/sbin/haproxy:haproxy installs it")
    return Plain(gw, [program, "-db", "-f", conf], port)


class Ours:
    def __init__(self, gw, up):
        gw.sh(gw.BIN, "certs", "init", gw.PKI)
        gw.sh(gw.BIN, "certs", "server", gw.PKI, "server", "--dns", "localhost")
        gw.sh(gw.BIN, "certs", "client", gw.PKI, "ops", "--ou", "ops")
        for name in ("clients.pem", "servers.pem"):
            shutil.copy(gw.PKI + "/ca.crt", os.path.join(gw.PKI, name))
        self.gw = gw
        self.gateway = gw.Gateway(POLICY, UP=up, listen="host_check = false")

    def connect(self):
        return self.gw.Client(self.gateway.port, "ops").sock

    def stop(self):
        self.gateway.stop()


# ---- one reading -----------------------------------------------------------

def ask(peer, data):
    """Sends; the client's side of it: "closed", "open" or "silent"."""
    sock = peer.connect()
    got = b""
    with sock:
        try:
            sock.sendall(data + END)
        except OSError:
            pass  # it had heard enough
        sock.settimeout(WAIT_S)
        try:
            while piece := sock.recv(65536):
                got += piece
        except TimeoutError:
            return "waits", got
        except OSError:
            pass
    return "closed", got


def reading(peer, backend, data):
    backend.take()
    how, got = ask(peer, data)
    seen = backend.take()
    ended = bool(seen) and seen[-1].startswith("GET /end")
    seen = seen[:-1] if ended else seen
    if not seen and how == "waits" and not got.replace(
            b"HTTP/1.1 100 Continue\r\n\r\n", b""):
        return "waits"
    if not seen:
        return "refused"
    return ", ".join(seen) + ("" if ended else " (closed)")


def read_all(peer, backend, requests, out):
    for name, data in requests.items():
        out[name] = reading(peer, backend, data)


def run(gw, requests):
    """{peer: {name: reading}}: the three of them side by side."""
    backends = {peer: Backend() for peer in PEERS}
    peers = {
        "gateway": Ours(gw, backends["gateway"].port),
        "nginx": start_nginx(gw, backends["nginx"].port),
        "haproxy": start_haproxy(gw, backends["haproxy"].port)}
    out = {peer: {} for peer in PEERS}
    threads = [threading.Thread(target=read_all, args=(
        peers[p], backends[p], requests, out[p])) for p in PEERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for peer in peers.values():
        peer.stop()
    return out


# ---- the table -------------------------------------------------------------
# Why the three differ: (class, why gateway does what it does, the requests; a
# '*' at the end of a name stands for any end).

WHY = [
    ("length and coding together, or a coding that is not one plain chunked",
     "RFC 9112 6.1 and 6.3 allow to refuse; HAProxy repairs or forwards them."
     " Whoever repairs must be sure that everybody before it read the same",
     ["framing: *"]),
    ("lines that end in a bare LF", "RFC 9112 2.2 lets a recipient take them,"
     " and it is one of the oldest ways to smuggle: refused",
     ["line: bare LF*", "chunk: bare LF*"]),
    ("folded lines", "obs-fold, RFC 9112 5.2: a server must refuse or unfold;"
     " refused", ["line: obs-fold*", "chunk: folded trailer"]),
    ("malformed header lines", "nginx drops what it cannot read and goes on:"
     " then the next one may read it. Refused",
     ["line: no colon", "line: name with*", "chunk: malformed trailer",
      "chunk: space before a trailer's colon"]),
    ("control bytes in values", "RFC 9110 5.5 lets a recipient refuse CR, LF and"
     " NUL; the others have no use either",
     ["line: NUL in a value", "line: control byte in a value",
      "line: DEL in a value", "chunk: NUL in an extension"]),
    ("no Host, several, or one that is no host and port",
     "RFC 9112 3.2: a server must answer 400. Neither of the others looks at"
     " all of it",
     ["line: no Host*", "line: two Hosts", "line: Host *"]),
    ("an absolute target that disagrees with Host, or has a user in it",
     "RFC 9112 3.2.2: the target wins, but a client must send both alike:"
     " refused, as a policy by host must not depend on who reads it",
     ["line: absolute-form*"]),
    ("request lines that are not METHOD SP target SP version",
     "RFC 9112 3: should be 400; nginx forgives blanks, any byte in the target"
     " and HTTP/0.9",
     ["line: HTTP/0.9", "line: two spaces", "line: tab between",
      "line: trailing space", "line: fragment", "line: quote in the target",
      "line: byte over 127 in the target"]),
    ("versions that do not exist", "only 1.0 and 1.1 have ever been; 505",
     ["line: version 1.10", "other: version *"]),
    ("chunk lines with blanks, endless extensions or trailers",
     "RFC 9112 7.1.1 has no blank there, and asks to limit extensions",
     ["chunk: space behind", "chunk: tab behind", "chunk: a long extension",
      "chunk: trailers without end"]),
    ("methods that no route can have", "501; TRACE echoes what others must not"
     " see, and CONNECT is no gateway's business",
     ["other: lower-case method", "other: unknown method", "other: CONNECT",
      "other: TRACE"]),
    ("an unknown expectation", "417, as RFC 9110 10.1.1 allows",
     ["other: Expect of another kind"]),
    ("limits", "each server has its own",
     ["other: a hundred and one fields", "other: 16 KiB of head in many lines",
      "other: a long target", "other: a long query"]),
    ("absolute targets", "an upstream is sent a path and Host, as it expects;"
     " HAProxy passes the form on, and takes none without a path",
     ["legal: absolute-form*"]),
    ("tabs around a value", "legal (RFC 9110 5.6.3), and read; nginx knows"
     " blanks alone", ["legal: tabs *", "legal: a coding behind a tab"]),
    ("OPTIONS *", "legal, and served where a route is for it; nginx says 400",
     ["legal: OPTIONS *"]),
    ("written afresh", "what goes upstream is written from what was parsed and"
     " checked: escapes that say nothing are decoded, others in capitals; of a"
     " query, every byte but letters, digits and -._~/:@, is encoded",
     ["legal: an empty query", "legal: ? in the query",
      "legal: encoded unreserved bytes", "legal: encoded bytes of every kind",
      "legal: lower and upper case escapes"]),
    ("legal, and refused unless the route allows it (allow = { … })",
     "two servers read it in two ways: see docs, and"
     " tests/e2e/28-allowed-oddities.py, where the same is served",
     ["odd: *", "legal: every sub-delim in the path",
      "legal: every sub-delim in the query", "legal: encoded reserved bytes",
      "legal: bytes that are not UTF-8", "legal: empty segments",
      "legal: a nameless parameter", "legal: every token byte in a name",
      "legal: a body on *", "legal: a Content-Encoding", "field: a header with*", "field: Content_Length",
      "field: Transfer_Encoding"]),
    ("fields that end here", "hop by hop (RFC 9110 7.6.1), or named by"
     " Connection; nginx and HAProxy pass most of them on",
     ["field: a header named by Connection", "field: Proxy-*",
      "field: Keep-Alive", "field: Trailer", "field: Upgrade*",
      "field: h2c"]),
    ("a WebSocket", "no route here has asked for tunnels: without Upgrade it is"
     " a request like any other; HAProxy waits for a tunnel that the backend"
     " does not open", ["field: a WebSocket"]),
    ("fields by which a proxy names the client", "a client's own are always"
     " removed, in every spelling; the others pass them on unless told not to",
     ["field: a forged *", "field: X-HTTP-Method-Override",
      "field: Proxy (httpoxy)", "field: X-Request-Id"]),
    ("fields of one value, twice", "a second one is a second opinion",
     ["field: two Authorization", "field: two Content-Type"]),
    ("paths that climb, hide a slash or hold control bytes",
     "refused in every encoding, and before every ';'; what no route may"
     " allow", ["path: *"]),
]


def class_of(name):
    for n, (_, _, patterns) in enumerate(WHY):
        if any(name == p or p.endswith("*") and name.startswith(p[:-1])
               for p in patterns):
            return n
    return None


def code(text):
    """For a cell of the table."""
    text = text.replace("|", "\\|").replace("\n", "\\n")
    return "`` %s ``" % text if "`" in text else "`%s`" % text


def differs(found, name):
    return len({found[p][name] for p in PEERS}) > 1


def table(requests, found):
    """tests/differential.md."""
    out = ["# Where gateway, nginx and HAProxy differ", "",
           "Written by `tests/differential.py --write`, which also says what a"
           " reading is; do not edit.", ""]
    for n, (title, why, _) in enumerate(WHY):
        names = [r for r in requests
                 if class_of(r) == n and differs(found, r)]
        if not names:
            continue
        out += ["## " + title[0].upper() + title[1:], "", why + ".", "",
                "| request | gateway | nginx | haproxy |", "|---|---|---|---|"]
        out += ["| %s | %s |" % (code(name), " | ".join(
            code(found[p][name]) for p in PEERS)) for name in names] + [""]
    return "\n".join(out)


def judge(requests, found, known):
    """The problems, by request."""
    problems = {}
    for name in requests:
        readings = " | ".join(found[p][name] for p in PEERS)
        if known["gateway"].get(name) != found["gateway"][name]:
            problems[name] = "gateway was %r: %s" % (
                known["gateway"].get(name), readings)
        elif differs(found, name) and class_of(name) is None:
            problems[name] = "nobody says why: " + readings
    return problems


def read_json():
    try:
        with open(READINGS) as f:
            return json.load(f)
    except FileNotFoundError:
        return {peer: {} for peer in PEERS}


def keep(requests, found):
    with open(READINGS, "w") as f:
        json.dump(found, f, indent=0, ensure_ascii=True)
        f.write("\n")
    with open(TABLE, "w") as f:
        f.write(table(requests, found))


def stale(requests, known):
    """The table is what WHY and the kept readings say."""
    with open(TABLE) as f:
        return f.read() != table(requests, known)


def collect(binary):
    os.environ["E2E_BIN"] = os.path.abspath(binary)
    os.environ["E2E_TMP"] = tmp = tempfile.mkdtemp(prefix="gateway-diff-")
    os.chmod(tmp, 0o755)
    try:
        import gw
        requests = cases()
        return requests, run(gw, requests)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", default="build/gateway")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    begin = time.monotonic()
    requests, found = collect(options.bin)
    if options.show:
        for name in requests:
            print("%-50s %s" % (name, " | ".join(
                found[p][name] for p in PEERS)))
    if options.write:
        keep(requests, found)
    known = read_json()
    problems = judge(requests, found, known)
    if set(known["gateway"]) != set(requests) or stale(requests, known):
        problems["tests/differential.md"] = "is not what WHY and" \
            " differential.json say: run tests/differential.py --write"
    for name, problem in problems.items():
        print("FAIL %s: %s" % (name, problem))
    print("%d requests, %d of them read differently, %.1f s" % (
        len(requests), sum(differs(found, r) for r in requests),
        time.monotonic() - begin))
    print("%d passed, %d failed" % (len(requests) + 1 - len(problems),
                                    len(problems)))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
