"""What the end-to-end tests share: a gateway, certificates, clients, witnesses.

A test file is NN-name.py with functions `test_...`.  If it defines `setup`, its
result (usually a Gateway) is handed to every test that takes an argument, and
is made anew when a test killed it.  Policies are Lua text in which @NAME@
stands for a value given to Gateway(); @PORT@, @PKI@ and @DIR@ always exist.

Nothing here sleeps to wait for something: until() polls a condition, and every
socket has a time limit.
"""

import base64
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
from upstream import Upstream  # noqa: E402,F401  (the witness)

BIN = os.path.abspath(os.environ.get("E2E_BIN", "build/gateway"))
TMP = os.environ.get("E2E_TMP") or tempfile.mkdtemp(prefix="gateway-e2e-")
PKI = os.path.join(TMP, "pki")
ROOT = os.path.dirname(os.path.dirname(HERE))
NGINX = os.environ.get("NGINX") or shutil.which(
    "nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
ASAN = os.environ.get("E2E_ASAN") == "1"
# how much longer everything may take
SLOW = (4 if ASAN else 1) * int(os.environ.get("E2E_SLOW", "1"))
SOCKET_S = 10 * SLOW


class Skip(Exception):
    """Raised by a test that cannot run here; says why."""


def is_asan(binary):
    """Whether the binary was linked with AddressSanitizer."""
    with open(binary, "rb") as f:
        return b"__asan_init" in f.read()


class Listener:
    """A server on a port of its own: one(socket), a thread a connection."""

    def listen(self):
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(64)
        self.port = self.sock.getsockname()[1]
        self.to = "tcp://127.0.0.1:%d" % self.port
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                sock, _ = self.sock.accept()
            except OSError:
                return
            sock.settimeout(SOCKET_S)
            threading.Thread(target=self.one, args=(sock,),
                             daemon=True).start()


# ---- waiting ---------------------------------------------------------------

def until(condition, what, seconds=5):
    """Polls until condition() is true and returns its value."""
    end = time.monotonic() + seconds * SLOW
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("waited %g s in vain: %s" % (seconds * SLOW,
                                                              what))
        time.sleep(0.01)


def equal(got, want, what=""):
    if got != want:
        raise AssertionError("%s: got %r, want %r" % (what or "value", got,
                                                      want))


def one_of(got, want, what=""):
    if got not in want:
        raise AssertionError("%s: got %r, want one of %r" % (what or "value",
                                                             got, want))


TAKEN = []  # what says, until we end, that a port is ours


def free_port():
    """A port below the ephemeral range, so that no client takes it first; and
    ours until we end, so that no other test does."""
    while True:
        port = random.randint(10000, 31000)
        claim = socket.socket(socket.AF_UNIX)
        with socket.socket() as s:
            try:
                claim.bind("\0gateway-test-port-%d" % port)
                s.bind(("127.0.0.1", port))  # not even one in TIME_WAIT
            except OSError:
                claim.close()
                continue
        TAKEN.append(claim)
        return port


def tmpdir(name):
    """A folder of its own that also an unprivileged worker may enter."""
    path = tempfile.mkdtemp(prefix=name + "-", dir=TMP)
    os.chmod(path, 0o755)
    return path


def write(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(text if isinstance(text, bytes) else text.encode())
    os.chmod(path, mode)
    return path


def manual():
    """README.md and what docs/ has, one after the other."""
    names = ["README.md"] + ["docs/" + n for n in
                             sorted(os.listdir(os.path.join(ROOT, "docs")))]
    return "\n".join(read(os.path.join(ROOT, n)).decode() for n in names)


def read(path):
    try:
        with open(path, "rb") as f:
            return f.read()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def sh(*argv, check=True, timeout=30, input=None, env=None, cwd=None):
    """Runs a program, returns the finished process with text output."""
    done = subprocess.run(argv, capture_output=True, input=input, env=env,
                          timeout=timeout * SLOW, cwd=cwd)
    done.out = done.stdout.decode("utf-8", "replace")
    done.err = done.stderr.decode("utf-8", "replace")
    if check and done.returncode != 0:
        raise AssertionError("%s: exit %d: %s%s" % (
            " ".join(argv), done.returncode, done.out[-800:], done.err[-800:]))
    return done


def gateway_cli(*argv, **keys):
    """Runs `gateway …` to its end; never raises on its exit code."""
    return sh(BIN, *argv, check=False, **keys)


def sarif_schema():
    """The text of the published schema of SARIF 2.1.0; None: not here."""
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    path = os.path.join(cache, "gateway", "sarif-2.1.0.json")
    return read(path).decode() if os.path.exists(path) else None


def check_sarif(log):
    """A parsed SARIF log is right by the published schema (where it is here),
    for python3-jsonschema and for `gateway schema`."""
    text = sarif_schema()
    if text is None:
        return
    try:
        import jsonschema
    except ImportError:  # another python3 than Debian's
        sys.path.append("/usr/lib/python3/dist-packages")
        import jsonschema
    schema = json.loads(text)
    wrong = jsonschema.Draft4Validator(schema).iter_errors(log)
    equal([e.message[:300] for e in wrong], [], "SARIF's schema")
    # what draft 4 and 2020-12 call differently
    text = text.replace("#/definitions/", "#/$defs/")
    schema = json.loads(text.replace('"definitions":', '"$defs":'))
    del schema["$schema"], schema["id"]
    line = json.dumps({"schema": schema, "instance": log}) + "\n"
    equal(gateway_cli("schema", "--open", input=line.encode()).out, "valid\n")


# ---- processes -------------------------------------------------------------

def proc_stat(pid):
    """(state, parent, group, session) or None when it is gone."""
    try:
        with open("/proc/%d/stat" % pid) as f:
            words = f.read().rpartition(")")[2].split()
        return words[0], int(words[1]), int(words[2]), int(words[3])
    except (OSError, ProcessLookupError):
        return None


def alive(pid):
    stat = proc_stat(pid)
    return stat is not None and stat[0] not in "ZX"


def cmdline(pid):
    return read("/proc/%d/cmdline" % pid).replace(b"\0", b" ").decode().strip()


def children(pid):
    out = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = proc_stat(int(name))
            if stat and stat[1] == pid and stat[0] not in "ZX":
                out.append(int(name))
    return sorted(out)


def programs(broker):
    """The children of a broker, but for the keeper, which is a copy of it."""
    return [p for p in children(broker) if "gateway: broker" not in cmdline(p)]


def status_kib(pid, key):
    """VmRSS, VmHWM … of a process in KiB."""
    for line in read("/proc/%d/status" % pid).decode().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return 0


def spawn(argv, **keys):
    """Starts a process that dies with this one, whatever happens."""
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL"] + argv, **keys)


# ---- certificates ----------------------------------------------------------

def cert(name):
    """(certificate, key) of a client in the shared folder."""
    return (os.path.join(PKI, name + ".crt"), os.path.join(PKI, name + ".key"))


class OpensslCa:
    """A CA by the openssl program: certificates of another tool's making."""

    def __init__(self, folder, name, key="ec", issuer=None, pathlen=None,
                 cn=None):
        self.folder, self.name = folder, name
        os.makedirs(folder, exist_ok=True)
        self.crt = os.path.join(folder, name + ".crt")
        self.key = os.path.join(folder, name + ".key")
        self.chain = b""
        constraint = "critical,CA:TRUE" + (
            ",pathlen:%d" % pathlen if pathlen is not None else "")
        extensions = ["basicConstraints=" + constraint,
                      "keyUsage=critical,keyCertSign,cRLSign",
                      "subjectKeyIdentifier=hash"]
        subject = "/O=Gateway tests/CN=" + (cn or name)
        self.csr(name, key, subject)
        (issuer or self).sign(name, extensions, self_sign=issuer is None)
        if issuer:
            self.chain = read(self.crt) + issuer.chain

    def csr(self, name, key, subject):
        kind = {"ec": ["-algorithm", "EC", "-pkeyopt",
                       "ec_paramgen_curve:P-256"],
                "p384": ["-algorithm", "EC", "-pkeyopt",
                         "ec_paramgen_curve:P-384"],
                "rsa": ["-algorithm", "RSA", "-pkeyopt",
                        "rsa_keygen_bits:2048"],
                "ed25519": ["-algorithm", "ED25519"]}[key]
        path = os.path.join(self.folder, name)
        sh("openssl", "genpkey", *kind, "-out", path + ".key")
        sh("openssl", "req", "-new", "-utf8", "-key", path + ".key", "-subj",
           subject, "-out", path + ".csr")

    def sign(self, name, extensions, self_sign=False, start=None, end=None):
        """`openssl ca`: the one command of it that can date a certificate."""
        work = tempfile.mkdtemp(dir=self.folder)
        write(work + "/index.txt", "")
        write(work + "/ext", "[ext]\n" + "\n".join(
            extensions + ([] if self_sign else
                          ["authorityKeyIdentifier=keyid"])) + "\n")
        write(work + "/conf", "\n".join([
            "[ca]", "default_ca = it", "[it]", "database = %s/index.txt" % work,
            "new_certs_dir = " + work, "rand_serial = yes",
            "default_md = sha256", "policy = any", "unique_subject = no",
            "preserve = yes", "email_in_dn = yes", "string_mask = utf8only",
            "[any]", "commonName = optional", ""]))
        path = os.path.join(self.folder, name)
        day = 86400
        start = stamp(time.time() - day if start is None else start)
        end = stamp(time.time() + 30 * day if end is None else end)
        sh("openssl", "ca", "-batch", "-notext", "-utf8", "-preserveDN",
           "-config", work + "/conf", "-in", path + ".csr", "-out",
           path + ".crt", "-startdate", start, "-enddate", end, "-extfile",
           work + "/ext", "-extensions", "ext", "-keyfile", self.key,
           *(["-selfsign"] if self_sign else ["-cert", self.crt]))
        shutil.rmtree(work)

    def leaf(self, name, subject=None, san=None, key="ec", eku="clientAuth",
             **dates):
        """NAME.crt (with this CA's chain behind it) and NAME.key."""
        extensions = ["basicConstraints=critical,CA:FALSE",
                      "keyUsage=critical,digitalSignature",
                      "subjectKeyIdentifier=hash"]
        if eku:
            extensions.append("extendedKeyUsage=" + eku)
        if san:
            extensions.append("subjectAltName=" + san)
        self.csr(name, key, subject or "/CN=" + name)
        self.sign(name, extensions, **dates)
        path = os.path.join(self.folder, name + ".crt")
        write(path, read(path) + self.chain)
        return path, path[:-4] + ".key"


def stamp(seconds):
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(seconds))


CLIENTS = {
    "ops": ["--ou", "ops"],
    "boss": ["--ou", "ops", "--ou", "managers"],
    "camera": ["--uri", "spiffe://example.org/ns/eu/sa/camera"],
    "shop": ["--uri", "spiffe://example.org/ns/shop/sa/till"],
    "guest": ["--ou", "guests"],
}


def make_pki():
    """Once a run: the CA of `gateway certs`, and others by openssl.

    Returns a note when `gateway certs` could not be used."""
    note = None
    try:
        sh(BIN, "certs", "init", PKI)
        sh(BIN, "certs", "server", PKI, "server", "--dns", "localhost", "--ip",
           "127.0.0.1")
        for name, options in CLIENTS.items():
            sh(BIN, "certs", "client", PKI, name, *options)
    except (AssertionError, OSError, subprocess.TimeoutExpired) as problem:
        note = str(problem)
        shutil.rmtree(PKI, ignore_errors=True)
        make_pki_by_openssl()
    make_foreign()
    return note


def make_pki_by_openssl():
    ca = OpensslCa(PKI, "ca", cn="gateway test CA")
    ca.leaf("server", san="DNS:localhost,IP:127.0.0.1", eku="serverAuth")
    for name, options in CLIENTS.items():
        pairs = list(zip(options[::2], options[1::2]))
        subject = "".join("/OU=" + v for k, v in pairs if k == "--ou")
        uris = ",".join("URI:" + v for k, v in pairs if k == "--uri")
        ca.leaf(name, subject + "/CN=" + name, uris or None)


def make_foreign():
    """Certificates by openssl: a second trusted CA, an RSA one, strangers."""
    second = OpensslCa(PKI, "second-ca")
    second.leaf("second-ops", "/OU=ops/CN=second-ops",
                "URI:spiffe://example.org/ns/eu/sa/camera,DNS:a.example.org,"
                "email:ops@example.org,IP:192.0.2.7")
    second.leaf("server-auth", "/OU=ops/CN=server-auth", eku="serverAuth")
    day = 86400
    now = time.time()
    second.leaf("expired", "/OU=ops/CN=expired", start=now - 3 * day,
                end=now - day)
    second.leaf("future", "/OU=ops/CN=future", start=now + day,
                end=now + 3 * day)
    middle = OpensslCa(PKI, "middle-ca", issuer=second, pathlen=0)
    middle.leaf("middle-ops", "/OU=ops/CN=middle-ops")
    middle.leaf("bare-ops", "/OU=ops/CN=bare-ops")
    bare = os.path.join(PKI, "bare-ops.crt")
    write(bare, read(bare)[:len(read(bare)) - len(middle.chain)])

    rsa = OpensslCa(PKI, "rsa-ca", key="rsa")
    rsa.leaf("rsa-ops", "/OU=ops/CN=rsa-ops", key="rsa")
    rsa.leaf("rsa-server", san="DNS:localhost,IP:127.0.0.1", key="rsa",
             eku="serverAuth")
    second.leaf("p384-ops", "/OU=ops/CN=p384-ops", key="p384")
    second.leaf("ed25519-ops", "/OU=ops/CN=ed25519-ops", key="ed25519")

    wrong = OpensslCa(PKI, "wrong-ca")
    wrong.leaf("wrong-ops", "/OU=ops/CN=wrong-ops")
    twin = OpensslCa(os.path.join(PKI, "twin"), "second-ca", cn="second-ca")
    twin.leaf("twin-ops", "/OU=ops/CN=twin-ops")  # same issuer name, other key
    for end in (".crt", ".key"):
        shutil.copy(os.path.join(PKI, "twin", "twin-ops" + end), PKI)
    lone = OpensslCa(PKI, "self-signed", cn="ops")  # its own CA, not a leaf
    del lone
    sh("openssl", "req", "-x509", "-key", os.path.join(PKI, "wrong-ops.key"),
       "-subj", "/OU=ops/CN=lonely", "-days", "9", "-out",
       os.path.join(PKI, "lonely.crt"))
    shutil.copy(os.path.join(PKI, "wrong-ops.key"),
                os.path.join(PKI, "lonely.key"))
    write(os.path.join(PKI, "clients.pem"), b"".join(
        read(os.path.join(PKI, n + ".crt"))
        for n in ("ca", "second-ca", "rsa-ca")))
    write(os.path.join(PKI, "servers.pem"), b"".join(
        read(os.path.join(PKI, n + ".crt")) for n in ("ca", "rsa-ca")))


def cert_der(name):
    """The leaf's DER."""
    return ssl.PEM_cert_to_DER_cert(
        re.search(r"-----BEGIN CERT.*?-----END CERTIFICATE-----",
                  read(cert(name)[0]).decode(), re.S).group(0))


def cert_serial(name):
    """Serial in lower-case hex, as `openssl x509 -serial` says it."""
    out = sh("openssl", "x509", "-in", cert(name)[0], "-noout", "-serial").out
    return out.strip().partition("=")[2].lower()


# ---- the gateway -----------------------------------------------------------

HEAD = """\
local gateway = require "gateway"
local id = require "gateway.identity"

gateway.process { workers = @WORKERS@ }
gateway.listen {
  address = "127.0.0.1:@PORT@",
  certificate = "@PKI@/server.crt", key = "@PKI@/server.key",
  client_ca = "@PKI@/clients.pem", @LISTEN@
}
"""

started = []  # every Gateway of this test file, for log tails


class Gateway:
    """A real `gateway run` on loopback.

    `policy` is Lua text that follows HEAD (head=False: the whole text);
    `prepare` is called with the gateway's folder before it starts, and `wrap`
    is a command line that starts another: ["setpriv", …]."""

    def __init__(self, policy, workers=1, head=True, listen="", wait=True,
                 env=None, args=(), port=None, prepare=None, wrap=(),
                 binary=BIN, **tokens):
        self.dir = tmpdir("gw")
        self.port = port or free_port()
        self.tokens = dict(tokens, PORT=self.port, PKI=PKI, DIR=self.dir,
                           WORKERS=workers, LISTEN=listen)
        # what a witness may write to, as a Lua list
        self.tokens["WRITES"] = "{ %s }" % ", ".join(
            '"%s"' % os.path.dirname(tokens[k]) for k in ("RECORD", "PIDS")
            if k in tokens)
        self.admin_port = None
        if "@ADMIN@" in policy:
            self.tokens["ADMIN"] = self.admin_port = free_port()
        self.head = head
        self.policy = os.path.join(self.dir, "policy.lua")
        self.write(policy)
        if prepare:
            prepare(self.dir)
        self.log_path = os.path.join(self.dir, "log")
        self.expected = []  # patterns of alarming lines that a test provokes
        started.append(self)
        with open(self.log_path, "ab") as log:
            self.process = spawn([*wrap, binary, "run", self.policy, *args],
                                 stdin=subprocess.DEVNULL, stdout=log,
                                 stderr=log, env=env, cwd=self.dir)
        self.pid = self.process.pid
        if wait:
            self.wait_ready()

    def write(self, policy):
        """(Re)writes the policy file; SIGHUP is up to the caller."""
        text = (HEAD if self.head else "") + policy
        for name, value in self.tokens.items():
            text = text.replace("@%s@" % name, str(value))
        left = re.search(r"@[A-Z]+@", text)
        assert not left, "policy still has " + str(left)
        write(self.policy, text)

    def wait_ready(self, generation=0):
        def ready():
            if self.process.poll() is not None:
                raise AssertionError("gateway ended with %d before it was ready"
                                     % self.process.returncode)
            return [r for r in self.log() if r.get("event") == "ready"
                    ][generation:]
        return until(ready, "the log line of event ready", 10)

    # the log

    def log(self):
        """Every JSON line so far; others as {"text": line}."""
        out = []
        for line in read(self.log_path).split(b"\n")[:-1]:
            try:
                record = json.loads(line)
                out.append(record if isinstance(record, dict)
                           else {"text": line.decode("utf-8", "replace")})
            except ValueError:
                out.append({"text": line.decode("utf-8", "replace")})
        return out

    def lines(self, *needles, since=0):
        """Raw log lines that contain every needle (case-insensitive)."""
        out = []
        for line in read(self.log_path)[since:].decode(
                "utf-8", "replace").split("\n"):
            if all(n.lower() in line.lower() for n in needles):
                out.append(line)
        return [line for line in out if line]

    def mark(self):
        """Where the log ends now: for lines(since=)."""
        return len(read(self.log_path))

    def wait_line(self, *needles, since=0, seconds=5):
        return until(lambda: self.lines(*needles, since=since),
                     "a log line with %r" % (needles,), seconds)

    def wait_record(self, seconds=5, **want):
        """The first log record that has all these members."""
        def found():
            return [r for r in self.log()
                    if all(r.get(k) == v for k, v in want.items())]
        return until(found, "a log record with %r" % want, seconds)[0]

    def tail(self, count=30):
        lines = read(self.log_path).decode("utf-8", "replace").split("\n")
        return "\n".join(line[:600] for line in lines[-count - 1:])

    def alarms(self):
        """Lines that must never be in a log, whatever the test did."""
        words = ("AddressSanitizer", "runtime error:", "LeakSanitizer",
                 '"fatal"', "bug:", "Assertion", "core dumped")
        return [line for line in self.lines()
                if any(w in line for w in words)
                and not any(re.search(p, line) for p in self.expected)]

    # the processes

    def role(self, word):
        return [p for p in children(self.pid) if word in cmdline(p)]

    def workers(self):
        return self.role("worker")

    def broker(self):
        return self.role("broker")[0]

    def alive(self):
        return self.process.poll() is None

    def signal(self, number):
        os.kill(self.pid, number)

    def reload(self, policy=None, good=True):
        """SIGHUP; waits for the new generation, or for the error line."""
        if policy is not None:
            self.write(policy)
        count = len([r for r in self.log() if r.get("event") == "ready"])
        mark = self.mark()
        self.signal(signal.SIGHUP)
        if good:
            self.wait_ready(count)
        else:
            self.wait_line('"error"', since=mark, seconds=12)

    def stop(self, drain=6 if ASAN else 2):
        """TERM; once more after `drain` seconds, for what would go on; and KILL
        for one that does not end.  Did the first do?"""
        if not self.alive():
            return True
        for first, seconds in (True, drain), (False, 5 * SLOW):
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
                return first
            except subprocess.TimeoutExpired:
                pass
        for pid in [self.pid] + children(self.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(5)
        return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    # clients

    def connect(self, who="ops", **keys):
        return Client(self.port, who, **keys)

    def request(self, method, target, headers=(), body=None, who="ops", **keys):
        """One request on a connection of its own."""
        with self.connect(who, **keys) as c:
            return c.request(method, target, headers, body)

    def get(self, target, headers=(), **keys):
        return self.request("GET", target, headers, **keys)

    def post_json(self, target, value, headers=(), **keys):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.request("POST", target, [
            ("Content-Type", "application/json")] + list(headers), body, **keys)

    def raw(self, data, who="ops", **keys):
        """Sends bytes, returns (responses, closed)."""
        with self.connect(who, **keys) as c:
            c.send(data)
            return c.drain()

    def curl(self, *argv, who="ops", check=True, **keys):
        crt, key = cert(who)
        return sh("curl", "-sS", "--max-time", str(60 * SLOW), "--cacert",
                  PKI + "/servers.pem", "--cert", crt, "--key", key, *argv,
                  check=check, timeout=90, **keys)

    def url(self, path):
        return "https://localhost:%d%s" % (self.port, path)

    def s_client(self, *argv, who="ops", data=b"GET /ok HTTP/1.1\r\n"
                 b"Host: localhost\r\nConnection: close\r\n\r\n"):
        """openssl s_client: the finished process, whatever happened."""
        crt, key = cert(who) if who else (None, None)
        mine = ["-cert", crt, "-key", key] if who else []
        if who and read(crt).count(b"BEGIN CERT") > 1:
            mine += ["-cert_chain", crt]
        return sh("openssl", "s_client", "-connect", "127.0.0.1:%d" % self.port,
                  "-servername", "localhost", "-CAfile", PKI + "/servers.pem",
                  "-verify_return_error", "-quiet", *mine, *argv,
                  check=False, input=data, timeout=15)

    def admin(self, path):
        """GET on the admin address, which speaks plain HTTP."""
        sock = socket.create_connection(("127.0.0.1", self.admin_port),
                                        SOCKET_S)
        with Client(sock=sock) as c:
            return c.request("GET", path)

    def metric(self, name, **labels):
        """Sum of all samples of a metric that carry these labels."""
        total, found = 0.0, False
        for line in self.admin("/metrics").text.splitlines():
            m = re.match(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", line)
            if m and m.group(1) == name and all(
                    '%s="%s"' % pair in (m.group(2) or "")
                    for pair in labels.items()):
                total, found = total + float(m.group(3)), True
        assert found, "no metric %s %r" % (name, labels)
        return total


# ---- clients ---------------------------------------------------------------

class Response:
    """One parsed answer; `complete` is False where it was cut."""

    def __init__(self, status, fields):
        self.status, self.fields = status, fields
        self.body, self.complete, self.chunked = b"", False, False

    def get(self, name):
        found = [v for n, v in self.fields if n.lower() == name.lower()]
        return ", ".join(found) if found else None

    def all(self, name):
        return [v for n, v in self.fields if n.lower() == name.lower()]

    @property
    def text(self):
        return self.body.decode("utf-8", "replace")

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return "<%d %r %r%s>" % (self.status, self.fields, self.body[:300],
                                 "" if self.complete else " CUT")


class Client:
    """A connection that can say anything, and reads answers strictly."""

    def __init__(self, port=None, who="ops", version=None, sock=None, alpn=None,
                 timeout=None, rcvbuf=None, name="localhost"):
        self.buffer, self.closed = b"", None
        if sock:
            self.sock = sock
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.options &= ~0x80  # some Pythons ignore a cut: IGNORE_UNEXPECTED
        context.load_verify_locations(PKI + "/servers.pem")
        if who:
            context.load_cert_chain(*cert(who))
        if version:
            context.minimum_version = context.maximum_version = version
        if alpn:
            context.set_alpn_protocols(alpn)
        raw = socket.socket()
        raw.settimeout(timeout or SOCKET_S)
        if rcvbuf:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        try:
            raw.connect(("127.0.0.1", port))
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock = context.wrap_socket(raw, server_hostname=name,
                                            suppress_ragged_eofs=False)
        except BaseException:
            raw.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def send(self, data):
        """Sends what the other side still takes."""
        try:
            self.sock.sendall(data)
            return True
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            return False

    def fill(self):
        """Reads some; False at the end, and `closed` says which kind."""
        try:
            data = self.sock.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            data, self.closed = b"", "reset"
        except ssl.SSLEOFError:
            data, self.closed = b"", "cut"
        except ssl.SSLError as problem:
            if isinstance(problem, TimeoutError) or "timed out" in str(problem):
                raise
            data, self.closed = b"", ("cut" if "EOF" in str(problem) else
                                      "alert: " + str(problem))
        if not data:
            self.closed = self.closed or "end"
            return False
        self.buffer += data
        return True

    def line(self):
        while b"\r\n" not in self.buffer:
            if not self.fill():
                raise EOFError("the connection ended (%s) after %r"
                               % (self.closed, self.buffer[:200]))
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line

    def head(self):
        first = self.line().decode("latin-1")
        m = re.fullmatch(r"HTTP/1\.[01] (\d{3})(?: .*)?", first)
        assert m, "not a status line: %r" % first
        fields = []
        while True:
            line = self.line().decode("latin-1")
            if not line:
                return Response(int(m.group(1)), fields)
            name, colon, value = line.partition(":")
            assert colon and re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name), line
            fields.append((name, value.strip(" \t")))

    def exactly(self, count, response):
        while count > 0:
            if not self.buffer and not self.fill():
                return False
            part = self.buffer[:count]
            self.buffer = self.buffer[count:]
            response.body += part
            count -= len(part)
        return True

    def response(self, method="GET"):
        """The next answer, 1xx ones left out."""
        response = self.head()
        while 100 <= response.status < 200:
            response = self.head()
        return self.body_of(response, method)

    def body_of(self, response, method):
        if method == "HEAD" or response.status in (204, 304):
            response.complete = True
        elif (response.get("transfer-encoding") or "").lower() == "chunked":
            response.chunked = True
            response.complete = self.chunks(response)
        elif response.get("content-length") is not None:
            response.complete = self.exactly(
                int(response.get("content-length")), response)
        else:
            while self.fill():
                pass
            response.body, self.buffer = self.buffer, b""
            response.complete = self.closed == "end"
        return response

    def chunks(self, response):
        try:
            while True:
                count = int(self.line(), 16)
                if not self.exactly(count, response):
                    return False
                if self.line():
                    return False  # a last chunk has no trailers from us
                if count == 0:
                    return True
        except EOFError:
            return False

    def request(self, method, target, headers=(), body=None):
        self.send(build(method, target, headers, body))
        return self.response(method)

    def get(self, target, headers=()):
        return self.request("GET", target, headers)

    def drain(self, limit=50):
        """Every answer until the other side closes: (answers, how it closed).
        None as the second value: still open."""
        out = []
        self.sock.settimeout(min(SOCKET_S, 5 * SLOW))
        try:
            while len(out) < limit:
                out.append(self.response())
        except EOFError:
            pass
        except (socket.timeout, TimeoutError):
            return out, None
        return out, self.closed

    def is_closed(self, seconds=5):
        """Whether the other side closes within that time, saying nothing."""
        self.sock.settimeout(seconds * SLOW)
        try:
            return not self.fill()
        except (socket.timeout, TimeoutError):
            return False


def build(method, target, headers=(), body=None, host="localhost"):
    """The bytes of a well-made request."""
    lines = ["%s %s HTTP/1.1" % (method, target)]
    names = [n.lower() for n, _ in headers]
    if "host" not in names:
        lines.append("Host: " + host)
    lines += ["%s: %s" % h for h in headers]
    if body is not None and "content-length" not in names and (
            "transfer-encoding" not in names):
        lines.append("Content-Length: %d" % len(body))
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8") + (body or b"")


def refused(port, who, version=None, **keys):
    """Why the handshake failed; None when an answer came back."""
    try:
        with Client(port, who, version, **keys) as c:
            c.send(build("GET", "/ok"))
            c.response()
            return None
    except ssl.SSLError as problem:
        return str(problem)
    except EOFError as problem:
        return str(problem)
    except ConnectionError as problem:
        return str(problem)


class Load:
    """Threads that ask one thing again and again, each on one connection."""

    def __init__(self, gateway, target="/ok", clients=4, method="GET",
                 headers=(), body=None, who="ops", reconnect=True):
        self.gateway, self.reconnect = gateway, reconnect
        self.data = build(method, target, headers, body)
        self.method, self.who = method, who
        self.good, self.bad = 0, []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.run, daemon=True)
                        for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def run(self):
        client = None
        while not self.stopping.is_set():
            try:
                client = client or self.gateway.connect(self.who)
                client.send(self.data)
                response = client.response(self.method)
                if response.status == 200 and response.complete:
                    self.good += 1
                else:
                    self.bad.append(repr(response))
                if (response.get("connection") or "").lower() == "close":
                    client.close()
                    client = None
            except (OSError, EOFError, AssertionError) as problem:
                self.bad.append(repr(problem))
                if client:
                    client.close()
                client = None

    def wait(self, more, seconds=20):
        """Until that many more answers were good."""
        goal = self.good + more
        until(lambda: self.good >= goal or len(self.bad) > 1000,
              "%d good answers under load" % more, seconds)
        assert self.good >= goal, "under load: %r" % self.bad[:3]

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(SOCKET_S + 5)
        return self.bad


# ---- upstreams -------------------------------------------------------------

class Nginx:
    """A real nginx with a configuration of its own; `targets()` is its log."""

    def __init__(self, locations=None):
        if not NGINX:
            raise Skip("nginx is not installed")
        self.dir = tmpdir("nginx")
        self.port = free_port()
        write(self.dir + "/www/hello.txt", "hello from nginx\n")
        conf = """
%(user)s
daemon off; master_process off; pid %(dir)s/pid;
error_log %(dir)s/error.log warn;
events { worker_connections 512; }
http {
  log_format witness '$request|$http_host|$connection|$connection_requests';
  access_log %(dir)s/access.log witness;
  client_body_temp_path %(dir)s/body; proxy_temp_path %(dir)s/proxy;
  fastcgi_temp_path %(dir)s/f; uwsgi_temp_path %(dir)s/u;
  scgi_temp_path %(dir)s/s; keepalive_requests 100000;
  server {
    listen 127.0.0.1:%(port)d; merge_slashes off; root %(dir)s/www;
    %(locations)s
  }
}
""" % {"dir": self.dir, "port": self.port,
            "user": "user root;" if os.geteuid() == 0 else "",
            "locations": locations or
            "location / { return 200 \"nginx $request_uri\\n\"; }"}
        self.conf = write(self.dir + "/nginx.conf", conf)
        self.process = spawn([NGINX, "-p", self.dir, "-c", self.conf],
                             stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
        until(self.up, "nginx listens")

    def up(self):
        if self.process.poll() is not None:
            raise AssertionError("nginx ended: %s" % read(
                self.dir + "/error.log").decode()[-500:])
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def log(self):
        return read(self.dir + "/access.log").decode(
            "utf-8", "replace").splitlines()

    def targets(self):
        return [line.split("|")[0].split(" ")[1] for line in self.log()
                if line.count(" ") >= 2]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)  # QUIT waits for clients
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)


class UpstreamProcess:
    """tests/upstream.py on its own, for bodies too big to share a GIL with."""

    def __init__(self):
        self.process = spawn([sys.executable, os.path.join(
            os.path.dirname(HERE), "upstream.py"), "--port", "0", "--quiet"],
            stdout=subprocess.PIPE)
        line = self.process.stdout.readline().decode()
        self.port = int(line.rsplit(":", 1)[1])

    def stop(self):
        self.process.kill()
        self.process.wait(5)


# ---- the witness program ---------------------------------------------------

def program_for_all():
    """The gateway, where every user can start it."""
    path = os.path.join(TMP, "gateway-of-all")
    if not os.path.exists(path):
        part = path + ".%d" % os.getpid()
        shutil.copyfile(BIN, part)
        os.chmod(part, 0o755)
        os.rename(part, path)
    return path


def own_pki(folder, owner):
    """The server's certificate and key, and the CAs, as files of a user."""
    for name in ("server.crt", "server.key", "clients.pem"):
        path = os.path.join(folder, name)
        shutil.copyfile(os.path.join(PKI, name), path)
        os.chmod(path, 0o600 if name.endswith("key") else 0o644)
        os.chown(path, owner, owner)


def build_c(name, *flags):
    """Compiles a C file of the tests once a run: (path, sha256).

    Policies pin it: below a temp folder nothing else may be a command."""
    path = os.path.join(TMP, name + "".join(flags))
    source = os.path.join(HERE, name + ".c")
    if not os.path.exists(source):
        source = os.path.join(os.path.dirname(HERE), name + ".c")
    if not os.path.exists(path):
        part = path + ".%d" % os.getpid()
        sh(os.environ.get("CC", "cc").split()[0], "-O1", *flags, "-o", part,
           source)
        os.rename(part, path)
    return path, hashlib.sha256(read(path)).hexdigest()


def witness():
    return build_c("witness")


def witness_log():
    """A file that also an unprivileged witness can append to."""
    folder = tmpdir("witness")
    os.chmod(folder, 0o777)
    return os.path.join(folder, "log")


def witness_runs(path):
    """What the witness wrote: one record a run."""
    return [json.loads(line) for line in read(path).splitlines()]


def inner_pid(pid):
    """The number of a process in its own pid namespace."""
    for line in read("/proc/%d/status" % pid).splitlines():
        if line.startswith(b"NSpid:"):
            return int(line.split()[-1])
    return pid


def witness_left(path):
    """Those who wrote their number (as they see it) to `path`, and live."""
    wrote = {p for r in witness_runs(path) for p in r.values()}
    return [p for p in map(int, filter(str.isdigit, os.listdir("/proc")))
            if path in cmdline(p) and alive(p) and inner_pid(p) in wrote]


def b64(data):
    return base64.b64encode(data).decode()
