"""gateway audit --live: finds the holes of a service that has them, and none
in ours; asks nobody but the host it was given."""

import email
import http.server
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.parse

from gw import (BIN, NGINX, PKI, Gateway, Listener, Skip, Upstream, cert,
                check_sarif, equal, free_port, sh, spawn, tmpdir, until, write)

DOCUMENTS = os.path.join(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))), "openapi")


def audit(url, *more, who="ops", check=None, openapi=None):
    crt, key = cert(who)
    argv = [BIN, "audit", "--live", url, "--cert", crt, "--key", key,
            "--cacert", os.path.join(PKI, "ca.crt"), "--rate", "1000", *more]
    if openapi:
        argv += ["--openapi", openapi]
    done = sh(*argv, check=False, timeout=120)
    if check is not None:
        equal(done.returncode, check, done.out[-2000:] + done.err)
    return done


def report(url, *more, **keys):
    done = audit(url, "--format", "json", *more, **keys)
    assert done.returncode in (0, 1) and done.out, done.out + done.err
    return json.loads(done.out)


def rules(found):
    """What was found, but for notes, as sorted (rule, input) pairs."""
    out = set()
    for one in found["findings"]:
        if one["severity"] != "info":
            name = one["what"].split('"')[1] if one["rule"] not in TLS else ""
            out.add((one["rule"], name))
    return sorted(out)


TLS = {"live.no-certificate", "live.self-signed", "live.other-ca",
       "live.expired", "live.server-certificate", "live.plain-http",
       "live.old-tls", "live.unsure"}


def states(found):
    return {c["what"]: c["state"] for c in found["checks"]}


# ---- ours ------------------------------------------------------------------

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@", name = "app" }
gateway.openapi {
  file = "orders-3.0.yaml", upstream = app:to "/internal/all",
  authorize = id.ou "ops",
}
"""


class Ours(Gateway):
    def __init__(self):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port, prepare=lambda folder:
                         shutil.copy(DOCUMENTS + "/orders-3.0.yaml", folder))

    def stop(self):
        self.up.stop()
        return super().stop()


CERTIFICATES = ["no certificate", "a certificate that signs itself",
                "a certificate of another CA of the same name"]
BY_KEY = ["an expired certificate", "a certificate for servers"]
OTHERS = ["plain HTTP on the TLS port", "a ClientHello of TLS 1.0",
          "a ClientHello of TLS 1.1"]


def test_ours_has_no_hole():
    g = Ours()
    found = report("https://127.0.0.1:%d/v1" % g.port, "--unsafe-methods",
                   "--ca-key", PKI + "/ca.key",
                   openapi=DOCUMENTS + "/orders-3.0.yaml")
    equal(rules(found), [], json.dumps(found["findings"])[:2000])
    seen = states(found)
    for what in CERTIFICATES + BY_KEY + OTHERS:
        equal(seen.get(what), "ok", what + " " + json.dumps(found["checks"]))
    equal(seen['GET /orders, query parameter "limit"'], "ok")
    equal(seen['POST /orders, body field "customer.email"'], "ok")
    assert not [f for f in found["findings"] if f["rule"] == "live.baseline"], \
        "every valid request is let in: %r" % found["findings"]
    assert found["requests"] > 300, found["requests"]
    # and it is still there
    equal(g.get("/v1/orders", [("X-Tenant", "acme")]).status, 200)
    g.stop()


# ---- one that has them -----------------------------------------------------

API = """openapi: 3.0.3
info: {title: holes, version: "1"}
servers: [{url: "https://127.0.0.1:@OTHER@/"}]
paths:
  /file:
    get:
      parameters:
        - {name: file, in: query, required: true, schema: {type: string}, example: a.txt}
      responses: {"200": {description: ok}}
  /tail:
    get:
      parameters:
        - {name: tail, in: query, required: true, schema: {type: string}, example: a.txt}
      responses: {"200": {description: ok}}
  /echo/{echo}:
    get:
      parameters:
        - {name: echo, in: path, required: true, schema: {type: string}, example: a}
      responses: {"200": {description: ok}}
  /blind:
    get:
      parameters:
        - {name: X-Blind, in: header, required: true, schema: {type: string}, example: a}
      responses: {"200": {description: ok}}
  /lax:
    get:
      parameters:
        - {name: lax, in: query, schema: {type: integer, minimum: 1, maximum: 9}}
        - {name: strict, in: query, schema: {type: integer, minimum: 1, maximum: 9}}
      responses: {"200": {description: ok}}
  /fail:
    get:
      parameters:
        - {name: fail, in: query, schema: {type: string}, example: a}
      responses: {"200": {description: ok}}
  /dot:
    get:
      parameters:
        - {name: dot, in: query, required: true, schema: {type: string}, example: a.txt}
      responses: {"200": {description: ok}}
  /words:
    get:
      parameters:
        - {name: words, in: query, required: true, schema: {type: string}, example: a.txt}
      responses: {"200": {description: ok}}
  /dash:
    get:
      parameters:
        - {name: dash, in: query, required: true, schema: {type: string}, example: a.txt}
      responses: {"200": {description: ok}}
  /static/{static}:
    get:
      parameters:
        - {name: static, in: path, required: true, schema: {type: string}, example: a.txt}
      responses: {"200": {description: ok}}
  /cookie:
    get:
      parameters:
        - {name: cookie, in: cookie, required: true, schema: {type: string}, example: a.txt}
      responses: {"200": {description: ok}}
  /mirror/{mirror}:
    get:
      parameters:
        - {name: mirror, in: path, required: true, schema: {type: string}, example: a}
        - {name: again, in: query, required: true, schema: {type: string}, example: a}
      responses: {"200": {description: ok}}
  /split:
    get:
      parameters:
        - {name: split, in: query, schema: {type: string}, example: a}
      responses: {"200": {description: ok}}
  /away:
    get:
      parameters:
        - {name: away, in: query, schema: {type: string}, example: a}
      responses: {"302": {description: elsewhere}}
  /body:
    post:
      requestBody:
        content:
          application/json:
            schema:
              type: object
              required: [name]
              properties: {name: {type: string, example: a.txt}}
      responses: {"200": {description: ok}}
"""

HOLES = [
    ("live.file-reached", "cookie"), ("live.file-reached", "file"),
    ("live.file-reached", "static"), ("live.forbidden-accepted", "lax"),
    ("live.header-injected", "split"), ("live.program-reached", "tail"),
    ("live.server-error", "fail"), ("live.shell-reached", "X-Blind"),
    ("live.shell-reached", "echo"), ("live.suspicious", "dash"),
    ("live.suspicious", "dot"), ("live.suspicious", "tail"),
    ("live.suspicious", "words"),
]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        self.request.settimeout(30)
        self.request.do_handshake()
        super().setup()

    def log_message(self, *args):
        pass

    def answer(self, status, text, headers=""):
        body = text if isinstance(text, bytes) else text.encode()
        self.wfile.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%s\r\n" % (
            status, len(body), headers.encode("latin-1", "replace")) + body)

    def do_GET(self):
        self.server.asked += 1
        self.server.times.append(time.monotonic())
        url = urllib.parse.urlsplit(self.path)
        query = {k: v[0] for k, v in urllib.parse.parse_qs(
            url.query, keep_blank_values=True).items()}
        parts = url.path.split("/")
        try:
            getattr(self, "at_" + (parts[1] or "root"), self.at_nothing)(
                query, urllib.parse.unquote(parts[-1]))
        except (OSError, ValueError):
            self.answer(404, "no such thing")

    def do_form(self, body):
        """What stands in a form: a shell runs the one, the other is a file."""
        kind = self.headers["Content-Type"]
        if kind == "application/x-www-form-urlencoded":
            return self.at_echo({}, urllib.parse.parse_qs(body.decode())
                                ["echo"][0])
        fields = email.message_from_bytes(
            b"Content-Type: %s\r\n\r\n" % kind.encode() + body)
        for part in fields.get_payload():
            name = part.get_param("name", header="Content-Disposition")
            if name == "file" and not part.get_filename():
                self.at_file({"file": part.get_payload()}, None)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            if self.path.startswith("/form"):
                return self.do_form(body)
            self.at_file({"file": json.loads(body)["name"]}, None)
        except (OSError, ValueError):
            self.answer(404, "no such thing")

    def at_root(self, query, last):
        self.answer(200, "hello")

    def at_nothing(self, query, last):
        self.answer(404, "no such thing")

    def at_file(self, query, last):
        with open(os.path.join(self.server.folder, query["file"]), "rb") as f:
            self.answer(200, f.read(65536))

    def at_dot(self, query, last):
        """A file, and the worst is kept out."""
        if ".." in query["dot"] or query["dot"].startswith("/"):
            raise ValueError
        self.at_file({"file": query["dot"]}, last)

    def at_words(self, query, last):
        """Takes quotes away, as a shell does, and nothing more."""
        if "/" in query["words"]:
            raise ValueError
        self.at_file({"file": query["words"].replace('"', "")}, last)

    def at_dash(self, query, last):
        """Something takes an option, and says nothing of it."""
        if query["dash"] in ("--help", "--version"):
            self.answer(200, "")
        elif query["dash"] == "a.txt":
            self.answer(200, "hello")
        else:
            raise ValueError

    def at_static(self, query, last):
        """Takes the path as it came: no client normalises it for us."""
        self.at_file({"file": self.path.partition("/static/")[2]}, last)

    def at_cookie(self, query, last):
        self.at_file({"file": urllib.parse.unquote(
            self.headers["Cookie"].partition("=")[2])}, last)

    def at_tail(self, query, last):
        """The option hole alone: no '/', and no shell."""
        if "/" in query["tail"]:
            return self.answer(400, "no")
        done = subprocess.run(["tail", "-n", "1", query["tail"]], timeout=20,
                              cwd=self.server.folder, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.answer(200 if done.returncode == 0 else 404, done.stdout)

    def at_echo(self, query, last):
        done = subprocess.run("echo " + last, shell=True, timeout=20,
                              stdin=subprocess.DEVNULL, capture_output=True)
        self.answer(200, done.stdout)

    def at_blind(self, query, last):
        subprocess.run("true '" + self.headers["X-Blind"] + "'", shell=True,
                       timeout=20, stdin=subprocess.DEVNULL,
                       capture_output=True)
        self.answer(200, "done")

    def at_lax(self, query, last):
        if not 1 <= int(query.get("strict", "1")) <= 9:
            raise ValueError
        self.answer(200, "fine")

    def at_fail(self, query, last):
        self.answer(500 if "'" in query.get("fail", "") else 200, "x")

    def at_mirror(self, query, last):
        """Says all it was given, in every way: that is no hole."""
        again = query["again"]
        self.answer(200 if again == "a" else 404, "Not found: %s %r %s %s %s"
                    % (last, again, self.path, again.encode(), again))

    def at_nofile(self, query, last):
        """Says what went wrong, but only names of letters are opened."""
        name = query["nofile"]
        if not name.replace(".", "").isalnum():
            return self.answer(400, "no")
        try:
            self.at_file({"file": name}, last)
        except OSError as e:
            self.answer(404, str(e))

    def at_noshell(self, query, last):
        """A shell reads it, but nothing is seen of what it does."""
        word = query["noshell"]
        if not word.rstrip("'\"").replace(".", "").isalnum():
            return self.answer(400, "no")
        done = subprocess.run("true " + word, shell=True, timeout=20,
                              capture_output=True)
        self.answer(200 if done.returncode == 0 else 500, done.stderr)

    def at_says(self, query, last):
        """Says such a thing of all it does not know: a valid value, too."""
        self.answer(200, "No such file or directory, Syntax error: "
                    + query["says"])

    def at_split(self, query, last):
        self.answer(200, "x", "X-Name: %s\r\n" % query.get("split", ""))

    def at_away(self, query, last):
        self.answer(302, "", "Location: https://127.0.0.1:%d/\r\n"
                    % self.server.other)


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = allow_reuse_address = True
    request_queue_size = 128

    def handle_error(self, request, client):
        pass  # a refused handshake is no error here

    def __init__(self, context, other=0):
        self.folder, self.asked, self.other = tmpdir("live"), 0, other
        self.times = []
        write(self.folder + "/a.txt", "hello\n")
        super().__init__(("127.0.0.1", 0), Handler)
        self.port = self.server_address[1]
        self.url = "https://127.0.0.1:%d" % self.port
        self.socket = context.wrap_socket(self.socket, server_side=True,
                                          do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()


def strict_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*cert("server"))
    context.load_verify_locations(PKI + "/ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


class Witness:
    """A port to which nobody may connect."""

    def __init__(self):
        self.sock = socket.socket()
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(8)
        self.sock.setblocking(False)
        self.port = self.sock.getsockname()[1]

    def was_asked(self):
        try:
            self.sock.accept()
            return True
        except BlockingIOError:
            return False


def api(folder, other=1):
    return write(os.path.join(folder, "api.yaml"),
                 API.replace("@OTHER@", str(other)))


def test_holes_are_found_and_nothing_else():
    witness = Witness()
    server = Server(strict_context(), witness.port)
    found = report(server.url, openapi=api(server.folder, witness.port))
    equal(rules(found), HOLES, json.dumps(found["findings"], indent=1))
    seen = states(found)
    for what in CERTIFICATES + OTHERS:
        equal(seen.get(what), "ok", what)
    for what in BY_KEY + ["POST /body"]:
        equal(seen.get(what), "not checked", what)
    equal(seen['GET /lax, query parameter "strict"'], "ok")
    for what in 'path parameter "mirror"', 'query parameter "again"':
        equal(seen["GET /mirror/{mirror}, " + what], "ok")
    equal(seen['GET /away, query parameter "away"'], "ok")
    assert not witness.was_asked(), "a redirect or a server was followed"
    places = [f["at"].rpartition("/")[2] for f in found["findings"]
              if '"file"' in f["what"]]
    equal(places, ["api.yaml:8"])
    equal(sorted(os.listdir(server.folder)), ["a.txt", "api.yaml"])
    equal([f["severity"] for f in found["findings"]
           if f["rule"] == "live.shell-reached"], ["high", "high"])
    server.stop()


test_holes_are_found_and_nothing_else.timeout = 120


def test_unsafe_methods_only_when_asked():
    server = Server(strict_context())
    text = API.partition("paths:")[0] + "paths:\n  /body" + \
        API.partition("  /body")[2]
    path = write(server.folder + "/body.yaml", text.replace("@OTHER@", "1"))
    found = report(server.url, openapi=path)
    equal(rules(found), [])
    equal(states(found)["POST /body"], "not checked")
    found = report(server.url, "--unsafe-methods", openapi=path)
    equal(rules(found), [("live.file-reached", "name")])
    server.stop()


FORMS = """openapi: 3.0.3
info: {title: forms, version: "1"}
paths:
  /form:
    post:
      requestBody:
        content:
          application/x-www-form-urlencoded:
            schema: {type: object, required: [echo], properties: {
              echo: {type: string, example: a.txt}, more: {type: integer}}}
      responses: {"200": {description: ok}}
  /form/parts:
    post:
      requestBody:
        content:
          multipart/form-data:
            schema: {type: object, required: [file, data], properties: {
              file: {type: string, example: a.txt},
              data: {type: string, format: binary}}}
      responses: {"200": {description: ok}}
"""
OLD_FORMS = json.dumps({"swagger": "2.0", "info": {"title": "f",
                                                   "version": "1"}, "paths": {
    "/form": {"post": {"parameters": [
        {"name": "echo", "in": "formData", "type": "string", "required": True,
         "default": "a.txt"}], "responses": {"200": {"description": "ok"}}}},
    "/form/parts": {"post": {"parameters": [
        {"name": "data", "in": "formData", "type": "file"},
        {"name": "file", "in": "formData", "type": "string", "required": True,
         "default": "a.txt"}], "responses": {"200": {"description": "ok"}}}}}})


def test_fields_of_forms_are_probed():
    server = Server(strict_context())
    for name, text in ("forms.yaml", FORMS), ("forms.json", OLD_FORMS):
        path = write(server.folder + "/" + name, text)
        found = report(server.url, "--unsafe-methods", openapi=path)
        equal([r for r in rules(found) if r[0].endswith("-reached")],
              [("live.file-reached", "file"), ("live.shell-reached", "echo")],
              json.dumps(found["findings"], indent=1))
        equal([f["at"].rpartition("/")[2].partition(":")[0]
               for f in found["findings"]], [name] * len(found["findings"]))
        equal([f for f in found["findings"] if f["rule"] == "live.baseline"],
              [])
    server.stop()


test_fields_of_forms_are_probed.timeout = 120


def test_errors_that_tell():
    """Nothing is read or run that can be seen, but the errors say enough."""
    server = Server(strict_context())
    paths = "paths:\n" + "".join("""  /%s:
    get:
      parameters:
        - {name: %s, in: query, required: true, schema: {type: string}, example: a.txt}
      responses: {"200": {description: ok}}
""" % (name, name) for name in ("nofile", "noshell", "says"))
    path = write(server.folder + "/e.yaml", API.partition("paths:")[0].replace(
        "@OTHER@", "1") + paths)
    found = report(server.url, openapi=path)
    equal([r for r in rules(found) if r[0] != "live.server-error"],
          [("live.suspicious", "nofile"), ("live.suspicious", "noshell")],
          json.dumps(found["findings"], indent=1))
    server.stop()


test_errors_that_tell.timeout = 120


def test_no_certificate_needed():
    context = strict_context()
    context.verify_mode = ssl.CERT_OPTIONAL
    server = Server(context)
    found = report(server.url)
    # OpenSSL verifies those that are sent
    equal(rules(found), [("live.no-certificate", "")])
    server.stop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*cert("server"))
    server = Server(context)  # asks for none, and looks at none
    found = report(server.url, "--ca-key", PKI + "/ca.key")
    equal(rules(found), [("live.expired", ""), ("live.no-certificate", ""),
                         ("live.other-ca", ""), ("live.self-signed", ""),
                         ("live.server-certificate", "")])
    equal(states(found)["plain HTTP on the TLS port"], "ok")
    server.stop()


def test_old_tls():
    context = strict_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    server = Server(context)
    found = report(server.url)
    equal(rules(found), [("live.old-tls", "")])
    seen = states(found)
    equal([seen[w] for w in OTHERS[1:]], ["found", "found"])
    server.stop()


class PlainToo(Listener):
    """A port that answers HTTP without TLS, and hands TLS on."""

    def __init__(self, behind):
        self.behind = behind
        self.listen()
        self.url = "https://127.0.0.1:%d" % self.port

    def one(self, client):
        first = client.recv(65536)
        if first.startswith(b"GET "):
            client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
                           b"\r\n2;x=y\r\nok\r\n0\r\nX: y\r\n\r\n")
            client.close()
            return
        server = socket.create_connection(("127.0.0.1", self.behind))
        server.sendall(first)
        threading.Thread(target=self.pipe, args=(server, client),
                         daemon=True).start()
        self.pipe(client, server)

    @staticmethod
    def pipe(a, b):
        try:
            while True:
                data = a.recv(65536)
                if not data:
                    break
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def test_plain_http():
    server = Server(strict_context())
    found = report(PlainToo(server.port).url)
    equal(rules(found), [("live.plain-http", "")])
    server.stop()


def test_expired_alone():
    """What --ca-key signs is like the good one, but for its dates."""
    context = strict_context()
    context.verify_flags |= 0x200000  # X509_V_FLAG_NO_CHECK_TIME
    server = Server(context)
    found = report(server.url, "--ca-key", PKI + "/ca.key")
    equal(rules(found), [("live.expired", "")])
    server.stop()


def test_certificate_for_servers_alone():
    g = Gateway("""gateway.get("/", { authorize = id.ou "ops",
      handle = function() return gateway.text "hello" end })""",
                listen='eku = "any",')
    found = report("https://127.0.0.1:%d" % g.port, "--ca-key", PKI + "/ca.key")
    equal(rules(found), [("live.server-certificate", "")])
    g.stop()


class Babble(Listener):
    """A TLS server that sends these bytes to whoever asks."""

    def __init__(self, text):
        self.text, self.context = text, strict_context()
        self.listen()
        self.url = "https://127.0.0.1:%d" % self.port

    def one(self, client):
        try:
            client = self.context.wrap_socket(client, server_side=True)
            client.recv(65536)
            client.sendall(self.text)
            client.unwrap()
        except OSError:
            pass
        client.close()


OK = b"HTTP/1.1 200 OK\r\n"


def test_bad_answers_end():
    for text, words in (
            (b"\x1b[2J\xff\r\n\r\n", 'no HTTP/1.1 answer: "?[2J?"'),
            (b"HTTP/1.1 2000 OK\r\n\r\n", "no HTTP/1.1 answer"),
            (b"HTTP/2 200\r\n\r\n", "no HTTP/1.1 answer"),
            (b"", "closed"), (OK + b"X: y\r\n", "closed"),
            (OK + b"X: " + b"y" * 70000, "a line without end"),
            (OK + b"X: yyyyyyyy\r\n" * 9000, "a head of more than 64 KiB"),
            (OK + b"Content-Length: 5\r\n\r\nhell", "closed"),
            (OK + b"Content-Length: -5\r\n\r\nhell", "is no number"),
            (OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
             "a chunk without a size"),
            (OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
             "a chunk without a size"),
            (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello", "closed")):
        done = audit(Babble(text).url, check=1)
        assert words in done.err, (text[:50], done.err)


class Tired(Babble):
    """Lets one in, and nobody after that."""

    tired = False

    def one(self, client):
        if not self.tired:
            self.tired = True
            super().one(client)
        else:
            client.close()


def test_no_refusal_where_nobody_is_let_in():
    found = report(Tired(OK + b"Content-Length: 0\r\n\r\n").url)
    for what in CERTIFICATES + ["plain HTTP on the TLS port"]:
        equal(states(found)[what], "not checked", what)


def test_answers_that_are_read():
    for text in (OK + b"\r\nuntil it closes",
                 b"HTTP/1.1 103 Early\r\nX: y\r\n\r\n" + OK + b"\r\n",
                 OK + b"Content-Length: 3000000\r\n\r\n" + b"x" * 3000000,
                 OK + b"Transfer-Encoding: gzip, Chunked\r\n\r\n5 ; a\r\n"
                      b"hello\r\n00\r\nT: u\r\n\r\n",
                 b"HTTP/1.0 204\r\n\r\n"):
        audit(Babble(text).url, check=0)


NGINX_CONF = """daemon off; master_process off; pid {dir}/pid;
error_log {dir}/error.log;
events {{}}
http {{
  access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;
  fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {pki}/server.crt; ssl_certificate_key {pki}/server.key;
    ssl_client_certificate {pki}/ca.crt; ssl_verify_client {verify};
    location / {{ return 200 "hello"; }}
  }}
}}
"""


class TlsNginx:
    def __init__(self, verify):
        if not NGINX:
            raise Skip("no nginx here")
        folder, port = tmpdir("nginx"), free_port()
        self.url = "https://127.0.0.1:%d" % port
        conf = write(folder + "/conf", NGINX_CONF.format(
            dir=folder, port=port, pki=PKI, verify=verify))
        self.process = spawn([NGINX, "-c", conf, "-p", folder, "-e",
                              folder + "/error.log"],
                             stdin=subprocess.DEVNULL)
        until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0,
              "nginx listens")

    def stop(self):
        self.process.terminate()
        self.process.wait()


def test_nginx():
    """It refuses with 400, after the handshake."""
    server = TlsNginx("on")
    found = report(server.url, "--ca-key", PKI + "/ca.key")
    equal(rules(found), [])
    whys = {c["what"]: (c["state"], c["why"]) for c in found["checks"]}
    for what in CERTIFICATES + BY_KEY[:1] + OTHERS[:1]:
        equal(whys[what], ("ok", "refused with status 400"), what)
    server.stop()
    server = TlsNginx("optional_no_ca")  # the handler is to look, and does not
    found = report(server.url)
    equal(rules(found), [("live.no-certificate", ""), ("live.other-ca", ""),
                         ("live.self-signed", "")])
    server.stop()


# ---- the command -----------------------------------------------------------

def test_unsure_where_the_good_one_is_refused_too():
    context = strict_context()
    context.verify_mode = ssl.CERT_OPTIONAL
    server = Server(context)
    found = report(server.url + "/nothing")
    equal(rules(found), [("live.unsure", "")])
    # with a document, a path that the good one may GET is found
    found = report(server.url, openapi=api(server.folder))
    assert ("live.no-certificate", "") in rules(found), found
    server.stop()


test_unsure_where_the_good_one_is_refused_too.timeout = 120


def test_ca_key_of_another_ca():
    server = Server(strict_context())
    found = report(server.url, "--ca-key", PKI + "/second-ca.key")
    seen = states(found)
    for what in BY_KEY + ["certificates by --ca-key"]:
        equal(seen.get(what), "not checked", what)
    equal(rules(found), [])
    server.stop()


def test_bounded():
    server = Server(strict_context())
    found = report(server.url, "--max", "30", openapi=api(server.folder))
    equal(found["requests"], 30)
    assert server.asked <= 30, server.asked
    equal([f["rule"] for f in found["findings"]
           if f["rule"] == "live.incomplete"], ["live.incomplete"])
    server.stop()


def test_rate():
    server = Server(strict_context())
    report(server.url, "--max", "40", "--rate", "20", openapi=api(server.folder))
    # some are TLS only; not faster than that, however slow this machine is
    assert len(server.times) > 25, len(server.times)
    assert server.times[-1] - server.times[0] > 1, server.times
    server.stop()


def test_formats():
    server = Server(strict_context())
    done = audit(server.url, check=0)
    assert "give --openapi FILE" in done.out, done.out
    assert "not checked: an expired certificate: give --ca-key" in done.out
    assert "ok: no certificate" not in done.out
    assert "0 high, 0 medium, 0 low, 0 info" in done.out
    done = audit(server.url, "--verbose", check=0)
    assert "ok: no certificate: refused: " in done.out, done.out
    server.stop()
    context = strict_context()
    context.verify_mode = ssl.CERT_OPTIONAL
    server = Server(context)
    done = audit(server.url, check=1)
    assert "%s/: high: no certificate: GET / is answered with 200" \
        % server.url in done.out, done.out
    audit(server.url, "--fail-on", "never", check=0)
    done = audit(server.url, "--format", "sarif", check=1)
    check_sarif(json.loads(done.out))
    result = json.loads(done.out)["runs"][0]["results"][0]
    equal(result["locations"][0]["physicalLocation"]["artifactLocation"],
          {"uri": server.url + "/"})
    server.stop()


def test_cannot_begin():
    port = free_port()
    done = audit("https://127.0.0.1:%d" % port, check=1)
    assert "no answer with the good certificate" in done.err, done.err
    assert "refused" in done.err, done.err
    server = Server(strict_context())
    done = audit(server.url, who="wrong-ops", check=1)
    assert "no answer with the good certificate" in done.err, done.err
    # its certificate must be of --cacert
    done = audit(server.url, "--cacert", PKI + "/second-ca.crt", check=1)
    equal(server.asked, 0)
    done = audit(server.url, check=1, openapi=write(
        server.folder + "/bad.yaml", "openapi: 3.0.3\npaths: [\n"))
    assert "bad.yaml:" in done.err, done.err
    server.stop()


def test_misused():
    crt, key = cert("ops")
    good = {"--live": "https://127.0.0.1:1", "--cert": crt, "--key": key,
            "--cacert": PKI + "/ca.crt"}
    for change, words in (
            ({"--live": "http://127.0.0.1:1"}, "must be https://"),
            ({"--live": "https://a@127.0.0.1:1"}, "no user"),
            ({"--live": "https://127.0.0.1:x"}, "no host"),
            ({"--cert": None}, "--live needs --cert FILE"),
            ({"--key": None}, "--live needs --key FILE"),
            ({"--cacert": None}, "--live needs --cacert FILE"),
            ({"--live": None}, "--cert is for --live"),
            ({"--rate": "0"}, "--rate: must be a whole number"),
            ({"--max": "many"}, "--max: must be a whole number"),
            ({"--policy": "x.lua"}, "give no policy"),
            ({"--format": "xml"}, "no format 'xml'")):
        argv = [word for name, value in dict(good, **change).items()
                if value is not None for word in (name, value)]
        done = sh(BIN, "audit", *argv, check=False)
        equal(done.returncode, 2, "%r: %s" % (change, done.out + done.err))
        assert words in done.err, (change, done.err)


def test_rules_are_listed():
    out = sh(BIN, "audit", "--rules").out
    for rule, _ in HOLES:
        assert "\n" + rule + " (" in out, rule
    for rule in TLS:
        assert "\n" + rule + " (" in out, rule
