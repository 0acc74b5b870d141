"""The cookbook: each policy as it stands, but for its addresses, with real
certificates, clients, programs and upstreams."""

import glob
import gzip
import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import ssl
import threading
import time

import gw
from gw import (ROOT, SOCKET_S, Client, Gateway, Listener, Nginx, Skip, build,
                equal, free_port, gateway_cli, one_of, read, sh, spawn, tmpdir,
                until, write)

NAMES = sorted(os.path.basename(f)[:-4]
               for f in glob.glob(ROOT + "/scripts/cookbook/*.lua"))
LOG = read(ROOT + "/scripts/demo/boiler.log")
ITEM = "/v1/items/0b9fd6a3-6f0f-4c43-9f0d-3c1a5b0c7d11"

# Who there is, by the CA that signed: its folder within certs/.
CLIENTS = {
    "": {
        "frontend": ["--uri", "spiffe://shop.example/ns/web/sa/frontend"],
        "cart": ["--uri", "spiffe://shop.example/ns/cart/sa/cart"],
        "updater": ["--uri", "spiffe://plant.example/ns/eu/sa/updater"],
        "forge": ["--dns", "forge.example.org"],
        "backup": ["--dns", "backup.example.org"],
        "olga": ["--ou", "operators"],
        "thief": ["--ou", "operators"],
        "susan": ["--ou", "supervisors"],
        "clara": ["--ou", "clerks"],
        "mia": ["--ou", "members"],
        "stan": ["--ou", "staff"],
        "till": ["--ou", "shops"],
        "guest": [],
    },
    "operators/": {"olga": ["--ou", "operators"]},
    "red/": {"rita": []},
    "blue/": {"bert": []},
}


def certs(made={}):
    """The folder certs/ of all policies, made once."""
    if not made:
        folder = os.path.join(tmpdir("cookbook"), "certs")
        for ca, clients in CLIENTS.items():
            sh(gw.BIN, "certs", "init", folder + "/" + ca)
            for name, options in clients.items():
                sh(gw.BIN, "certs", "client", folder + "/" + ca, name, *options)
        sh(gw.BIN, "certs", "server", folder, "server", "--dns", "localhost",
           "--dns", "red.example", "--dns", "blue.example")
        made["at"] = folder
    return made["at"]


def furnish(folder):
    """What the policies name: certs/, the demo's logs, the document."""
    os.symlink(certs(), folder + "/certs")
    shutil.copytree(ROOT + "/scripts/demo", folder + "/scripts/demo")
    shutil.copy(ROOT + "/scripts/cookbook/json_api.yaml", folder)


def start(name, *changes, **tokens):
    """A gateway with scripts/cookbook/NAME.lua. Each change is a pair of texts;
    the first must be there."""
    text = read("%s/scripts/cookbook/%s.lua" % (ROOT, name)).decode()
    for old, new in (('"*:8443"', '"127.0.0.1:@PORT@"'),) + changes:
        assert old in text, "%s.lua has no %s" % (name, old)
        text = text.replace(old, new)
    return Gateway(text, head=False, prepare=furnish, **tokens)


def to(port):
    return ("http://127.0.0.1:8080", "http://127.0.0.1:%d" % port)


def curl(g, who, target, *argv, name="localhost", port=None):
    """(status, body) by curl; (0, its exit code) where it got no answer."""
    port = port or g.port
    crt = "%s/%s.crt" % (certs(), who)
    done = sh("curl", "-sS", "--max-time", str(SOCKET_S), "--path-as-is",
              "--resolve", "%s:%d:127.0.0.1" % (name, port), "--cacert",
              certs() + "/ca.crt", "--cert", crt, "--key", crt[:-4] + ".key",
              "-w", "\n%{http_code}", *argv,
              "https://%s:%d%s" % (name, port, target), check=False)
    body, _, status = done.stdout.rpartition(b"\n")
    return (int(status), body) if int(status) else (0, done.returncode)


def post(g, who, target, value, *argv):
    return curl(g, who, target, "--json", json.dumps(value), *argv)


def status(answer, want):
    equal(answer[0], want, "status of %r" % (answer,))


def no_handshake(answer):
    equal(answer[0], 0, "status")
    one_of(answer[1], (16, 35, 55, 56), "exit code of curl")


# ---- all of them -----------------------------------------------------------

def test_there_are_twelve_and_the_readme_names_them():
    equal(len(NAMES), 12, "policies")
    readme = read(ROOT + "/README.md").decode()
    for name in NAMES:
        assert "`scripts/cookbook/%s.lua`" % name in readme, name
        assert "test_" + name in globals(), "no test of " + name


def test_all_load_as_they_stand():
    folder = tmpdir("load")
    furnish(folder)
    os.symlink(ROOT + "/scripts/cookbook", folder + "/cookbook")
    for name in NAMES:
        done = gateway_cli("check", "cookbook/%s.lua" % name, cwd=folder)
        assert done.returncode == 0 and "\nfine: " in done.out, done.err
        assert "warning" not in done.err, done.err


def test_their_tests_cover_them():
    for name in NAMES:
        done = gateway_cli("test", "--coverage", "--threshold", "100",
                           "scripts/tests/cookbook_%s_test.lua" % name,
                           cwd=ROOT)
        assert done.returncode == 0, done.out + done.err
        # two routes of one line are two
        assert name != "tenant_ca" or "(6 of 6)" in done.out, done.out


def test_the_audit_finds_nothing_of_weight():
    folder = tmpdir("audit")
    furnish(folder)
    os.symlink(ROOT + "/scripts/cookbook", folder + "/cookbook")
    for name in NAMES:
        done = gateway_cli("audit", "--fail-on", "medium",
                           "cookbook/%s.lua" % name, cwd=folder)
        assert done.returncode == 0, done.out + done.err
        assert "0 high, 0 medium" in done.out, done.out + done.err
    done = gateway_cli("audit", "--openapi", "json_api.yaml",
                       "cookbook/json_api.lua", "--fail-on", "medium",
                       cwd=folder)
    assert done.returncode == 0, done.out + done.err


# ---- one by one ------------------------------------------------------------

def test_spiffe_proxy():
    nginx = Nginx()
    with start("spiffe_proxy", to(nginx.port),
               ("127.0.0.1:9443", "127.0.0.1:@ADMIN@"),
               ADMIN=free_port()) as g:
        equal(curl(g, "frontend", "/orders/7"), (200, b"nginx /orders/7\n"))
        status(curl(g, "guest", "/orders/7"), 403)
        status(curl(g, "frontend", "/orders/0x7"), 422)
        status(post(g, "frontend", "/orders", {"article": "A", "pieces": 1}),
               403)
        equal(nginx.targets(), ["/orders/7"])


def test_operator_command():
    with start("operator_command") as g:
        code, body = curl(g, "olga", "/sums/boiler.log")
        equal((code, json.loads(body)),
              (200, {"sha256": hashlib.sha256(LOG).hexdigest()}))
        status(curl(g, "guest", "/sums/boiler.log"), 403)
        status(curl(g, "olga", "/sums/..%2fgateway.lua"), 400)
        status(curl(g, "olga", "/sums/none.log"), 502)


def test_firmware_upload():
    image = write(tmpdir("image") + "/image", os.urandom(3 << 20))
    kind = ["-H", "Content-Type: application/octet-stream"]
    with start("firmware_upload") as g:
        code, body = curl(g, "updater", "/v1/firmware", "-T", image, *kind)
        equal((code, body.split()[0].decode()),
              (200, hashlib.sha256(read(image)).hexdigest()))
        status(curl(g, "guest", "/v1/firmware", "-T", image, *kind), 403)
        status(curl(g, "updater", "/v1/firmware", "-T", image, "-H",
                    "Content-Type: text/html"), 415)


def test_json_api():
    nginx = Nginx()
    good = {"day": "2026-11-26", "bench": 3, "tools": ["saw"]}
    with start("json_api", to(nginx.port)) as g:
        equal(post(g, "mia", "/v1/bookings", good),
              (200, b"nginx /v1/bookings\n"))
        status(post(g, "mia", "/v1/bookings", dict(good, bench=7)), 403)
        status(post(g, "mia", "/v1/bookings", dict(good, owner="me")), 422)
        status(post(g, "guest", "/v1/bookings", good), 403)
        equal(len(nginx.targets()), 1, "requests at nginx")


def test_webhook_runner():
    event = {"event": "push", "repository": "alice/site", "commit": "a1" * 20}
    with start("webhook_runner") as g:
        code, body = post(g, "forge", "/hooks/deploy", event, "-i")
        equal(code, 202)
        job = re.search(rb"(?i)^location: (\S+)", body, re.M).group(1).decode()

        def ended():
            told = json.loads(curl(g, "forge", job)[1])
            return told["state"] == "ended" and told
        told = until(ended, "the job ended")
        equal((told["ok"], int(told["stdout"])),
              (True, len(json.dumps(event, separators=(",", ":")))))
        status(curl(g, "guest", job), 403)
        status(post(g, "guest", "/hooks/deploy", event), 403)
        status(post(g, "forge", "/hooks/deploy", dict(event, commit="HEAD")),
               422)


def test_tenant_ca():
    red, blue = Nginx(), Nginx()
    with start("tenant_ca", ("http://127.0.0.1:8081", to(red.port)[1]),
               ("http://127.0.0.1:8082", to(blue.port)[1])) as g:
        equal(curl(g, "red/rita", "/files/a.txt", name="red.example"),
              (200, b"nginx /red/a.txt\n"))
        equal(curl(g, "blue/bert", "/files/a.txt", name="blue.example"),
              (200, b"nginx /blue/a.txt\n"))
        for who in "red/rita", "guest":
            no_handshake(curl(g, who, "/files/a.txt", name="blue.example"))
        status(curl(g, "red/rita", "/files/a.txt", "-H", "Host: blue.example",
                    name="red.example"), 421)
        no_handshake(curl(g, "guest", "/files/a.txt"))
        equal((len(red.targets()), len(blue.targets())), (1, 1), "requests")


def test_device_console():
    with start("device_console") as g:
        for name, part in (("kernel", b"Linux"), ("memory", b"MemTotal:"),
                           ("load", b"/"), ("release", b"NAME=")):
            code, body = curl(g, "olga", "/console/" + name)
            assert code == 200 and part in body, (name, code, body)
        status(curl(g, "guest", "/console/kernel"), 403)
        status(curl(g, "olga", "/console/kernel?a=-r"), 422)


class Room(Listener):
    """A WebSocket server as far as its answer, then an echo."""

    def __init__(self):
        self.heads = []
        self.listen()

    def one(self, sock):
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(65536)
        self.heads.append(head)
        key = re.search(rb"(?i)sec-websocket-key: (\S+)", head).group(1)
        digest = hashlib.sha1(
            key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket"
                     b"\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s"
                     b"\r\n\r\n" % gw.b64(digest).encode())
        sock.sendall(sock.recv(100))
        sock.close()


def tls(g, who):
    """A client that can say anything, with a certificate of ours."""
    context = ssl.create_default_context(cafile=certs() + "/ca.crt")
    crt = "%s/%s.crt" % (certs(), who)
    context.load_cert_chain(crt, crt[:-4] + ".key")
    sock = socket.create_connection(("127.0.0.1", g.port), SOCKET_S)
    return Client(sock=context.wrap_socket(sock, server_hostname="localhost",
                                           suppress_ragged_eofs=False))


def redis():
    if not shutil.which("redis-server") or not shutil.which("redis-cli"):
        raise Skip("redis-server or redis-cli is not installed")
    port = free_port()
    server = spawn(["redis-server", "--port", str(port), "--bind", "127.0.0.1",
                    "--save", "", "--appendonly", "no", "--dir",
                    tmpdir("redis")], stdout=-3, stderr=-3)
    until(lambda: sh("redis-cli", "-p", str(port), "ping", check=False).out
          == "PONG\n", "redis answers", 10)
    return server, port


def test_redis_tunnel():
    server, port = redis()
    room, door = Room(), free_port()
    with start("redis_tunnel", to(room.port),
               ("tcp://127.0.0.1:6379", "tcp://127.0.0.1:%d" % port),
               ('"*:6380"', '"127.0.0.1:%d"' % door)) as g:
        def cli(who, *argv):
            crt = "%s/%s.crt" % (certs(), who)
            return sh("redis-cli", "-h", "localhost", "-p", str(door), "--tls",
                      "--cacert", certs() + "/ca.crt", "--cert", crt, "--key",
                      crt[:-4] + ".key", *argv, check=False)
        equal(cli("cart", "set", "basket", "3 pears").out, "OK\n")
        equal(cli("cart", "get", "basket").out, "3 pears\n")
        assert "pears" not in cli("guest", "get", "basket").out
        chat(g, room)
    server.kill()
    server.wait(5)


def chat(g, room):
    """A WebSocket from the right page, and from another one."""
    def ask(origin):
        return build("GET", "/chat/lobby", [
            ("Connection", "Upgrade"), ("Upgrade", "websocket"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Version", "13"), ("Origin", origin)])
    with tls(g, "stan") as c:
        c.send(ask("https://chat.example.org"))
        equal(c.head().status, 101)
        c.send(b"\x81\x85\0\0\0\0hello")
        while len(c.buffer) < 11 and c.fill():
            pass
        equal(c.buffer, b"\x81\x85\0\0\0\0hello")
    for who, origin, want in (("stan", "https://evil.example", 422),
                              ("guest", "https://chat.example.org", 403)):
        with tls(g, who) as c:
            c.send(ask(origin))
            equal(c.response().status, want)
    equal(len(room.heads), 1, "requests in the room")


def test_admin_split():
    nginx, operators = Nginx(), free_port()
    path = tmpdir("admin") + "/admin.sock"
    with start("admin_split", to(nginx.port),
               ("unix:/run/gateway-admin.sock", "unix:" + path),
               ("127.0.0.1:8444", "127.0.0.1:%d" % operators)) as g:
        equal(curl(g, "till", ITEM), (200, b"nginx %s\n" % ITEM.encode()))
        no_handshake(curl(g, "till", ITEM, port=operators))
        no_handshake(curl(g, "olga", ITEM, "-X", "DELETE", port=operators))
        status(curl(g, "operators/olga", ITEM, "-X", "DELETE", port=operators),
               200)
        no_handshake(curl(g, "operators/olga", ITEM))
        status(curl(g, "till", ITEM, "-X", "DELETE"), 405)
        for at, part in ("/readyz", ""), ("/metrics", "gateway_"):
            done = sh("curl", "-sSf", "--unix-socket", path, "http://x" + at)
            assert part in done.out, done.out
        assert g.stop(drain=SOCKET_S), "it drains"
        equal(g.process.returncode, 0)


def test_legacy_wrapper():
    nginx = Nginx("""location / {
      add_header X-Powered-By PHP/4;
      return 200 "$http_x_remote_user $request_uri"; }""")
    asked = "/app/report?name=sales&from=2026-01-31"
    with start("legacy_wrapper", to(nginx.port)) as g:
        code, body = curl(g, "clara", asked, "-i", "-H", "X-Remote-User: root")
        equal(code, 200)
        head, _, text = body.partition(b"\r\n\r\n")
        equal(text, b"clara /cgi-bin/report?name=sales&from=2026-01-31")
        assert b"php" not in head.lower() and b"nginx" not in head, head
        status(curl(g, "guest", asked), 403)
        status(curl(g, "clara", "/app/report?name=a'--&from=2026-01-31"), 422)
        status(curl(g, "clara", "/cgi-bin/report"), 404)


def test_backup_download():
    with start("backup_download") as g:
        code, body = curl(g, "backup", "/backup/boiler.log")
        equal((code, gzip.decompress(body)), (200, LOG))
        status(curl(g, "guest", "/backup/boiler.log"), 403)
        status(curl(g, "backup", "/backup/%2e%2e%2fx.log"), 400)


class Plant(http.server.ThreadingHTTPServer):
    """A service that keeps notes of what was allowed, and by whom."""

    def __init__(self):
        self.notes, self.stopped = {}, []
        super().__init__(("127.0.0.1", 0), PlantHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class PlantHandler(http.server.BaseHTTPRequestHandler):
    def answer(self, code, value):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        note = self.server.notes.get(self.path)
        self.answer(200 if note else 404, note)

    def do_PUT(self):
        self.server.notes[self.path] = {"at": time.time(),
                                        "by": self.headers["X-By"]}
        self.answer(200, "noted")

    def do_POST(self):
        self.server.stopped.append(self.path)
        self.answer(200, "stopped")

    def log_message(self, *_):
        pass


def spki(who):
    """The hash of a key, as the policy's comment says to make it."""
    key = sh("openssl", "x509", "-in", "%s/%s.crt" % (certs(), who), "-noout",
             "-pubkey").stdout
    der = sh("openssl", "pkey", "-pubin", "-outform", "der", input=key).stdout
    return "sha256:" + gw.b64(sh("openssl", "dgst", "-sha256", "-binary",
                                 input=der).stdout)


def test_two_persons():
    plant = Plant()
    stop, allow = "/pumps/north/stop", "/pumps/north/allowance"
    with start("two_persons", to(plant.server_address[1]),
               ("sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
                spki("thief"))) as g:
        status(curl(g, "olga", stop, "-X", "POST"), 403)
        status(curl(g, "olga", allow, "-X", "PUT"), 403)
        status(curl(g, "susan", allow, "-X", "PUT", "-H", "X-By: olga"), 200)
        equal(plant.notes["/allow/north"]["by"], "susan")
        equal(plant.stopped, [])
        status(curl(g, "thief", stop, "-X", "POST"), 403)
        status(curl(g, "olga", stop, "-X", "POST"), 200)
        status(curl(g, "olga", "/pumps/south/stop", "-X", "POST"), 403)
        equal(plant.stopped, [stop])
    plant.shutdown()
    plant.server_close()
