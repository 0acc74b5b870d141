"""Which certificate a client is shown, and whose clients are let in: by server
name, and by what the client can check."""

import os
import re
import shutil
import socket
import ssl
import struct
import time

from gw import (PKI, SOCKET_S, Gateway, OpensslCa, build, cert, equal,
                gateway_cli, read, refused, sh, tmpdir, until, write)

WHO = r"""
gateway.get("/ok", { authorize = id.anyone, handle = function(request)
  return gateway.text(("%s %s\n"):format(request.identity.subject.cn[1],
    request.tls.server_name or "-"))
end })
"""

HEAD = """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen {
  address = "127.0.0.1:@PORT@", host_check = false,
  certificate = { "@PKI@/rsa-server.crt", "@PKI@/server.crt" },
  key = { "@PKI@/rsa-server.key", "@PKI@/server.key" },
  client_ca = "@PKI@/ca.crt",
  sni = {
    ["a.example"] = { client_ca = "@PKI@/second-ca.crt" },
    ["b.example"] = { certificate = "@SITES@/b.crt", key = "@SITES@/b.key" },
    ["*.C.example"] = { certificate = "@SITES@/c.crt", key = "@SITES@/c.key",
                        client_ca = "@PKI@/second-ca.crt" },
    ["x.c.example"] = { certificates = {
      { certificate = "@SITES@/b.crt", key = "@SITES@/b.key" } } },
  },@STRICT@
}
"""


def sites():
    """Server certificates of names of their own."""
    folder = os.path.join(PKI, "sites")
    if not os.path.isdir(folder):
        ca = OpensslCa(folder, "sites-ca")
        for name in "bc":
            ca.leaf(name, san="DNS:%s.example" % name, eku="serverAuth")
    return folder


def gateway(strict=""):
    return Gateway(HEAD + WHO, head=False, SITES=sites(), STRICT=strict)


def setup():
    return gateway()


def shown(g, name, *argv, who="ops"):
    """Subject of the server's certificate, and what was answered."""
    crt, key = cert(who)
    done = sh("openssl", "s_client", "-connect", "127.0.0.1:%d" % g.port,
              *(["-servername", name] if name else ["-noservername"]),
              "-cert", crt, "-key", key, "-ign_eof", *argv, check=False,
              input=build("GET", "/ok", [("Connection", "close")], host=name or "a"),
              timeout=15)
    subject = re.search(r"^subject=.*?CN ?= ?(\S+)", done.out, re.M)
    text = re.search(r"^(\w[\w-]*) (\S+)$", done.out.rpartition("HTTP/1.1")[2],
                     re.M)
    answered = "HTTP/1.1 200" in done.out
    return (subject.group(1) if subject else None,
            text.group(0) if answered and text else None)


def test_the_certificate_fits_the_client(g):
    ec, rsa = "server", "rsa-server"
    for argv, want in (
            ((), ec), (("-tls1_2",), ec),
            (("-sigalgs", "ECDSA+SHA256"), ec),
            (("-sigalgs", "RSA-PSS+SHA256"), rsa),
            (("-sigalgs", "RSA-PSS+SHA256:ECDSA+SHA256"), ec),
            (("-sigalgs", "ECDSA+SHA384:RSA-PSS+SHA256"), rsa),
            (("-tls1_2", "-sigalgs", "RSA+SHA256"), rsa),
            (("-tls1_2", "-sigalgs", "ECDSA+SHA384:RSA+SHA256"), ec),
            (("-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"), rsa),
            (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"), ec),
            (("-tls1_2", "-curves", "X25519", "-cipher", "ECDHE+AESGCM"), rsa),
            (("-tls1_2", "-cipher",
              "ECDHE-RSA-CHACHA20-POLY1305"), rsa)):
        equal(shown(g, None, *argv)[0], want, " ".join(argv))


def test_the_name_picks_certificate_and_ca(g):
    for name, who, want in (
            (None, "ops", ("server", "ops -")),
            ("localhost", "ops", ("server", "ops localhost")),
            ("localhost", "second-ops", ("server", None)),
            ("a.example", "second-ops", ("server", "second-ops a.example")),
            ("A.EXAMPLE", "second-ops", ("server", "second-ops a.example")),
            ("a.example", "ops", ("server", None)),
            ("b.example", "ops", ("b", "ops b.example")),
            ("b.example", "second-ops", ("b", None)),
            ("y.c.example", "second-ops", ("c", "second-ops y.c.example")),
            ("y.c.example", "ops", ("c", None)),
            ("x.c.example", "ops", ("b", "ops x.c.example")),
            ("x.c.example", "second-ops", ("b", None)),
            ("c.example", "ops", ("server", "ops c.example")),
            ("z.y.c.example", "ops", ("server", "ops z.y.c.example")),
            ("z.y.c.example", "second-ops", ("server", None))):
        for version in ("-tls1_2", "-tls1_3"):
            equal(shown(g, name, version, who=who), want,
                  "%s as %s, %s" % (name, who, version))


def test_a_ticket_is_of_one_name(g):
    """Mallory of a.example's CA does not resume at the listener's own."""
    path = os.path.join(g.dir, "session")
    equal(shown(g, "a.example", "-sess_out", path, who="second-ops")[1],
          "second-ops a.example")
    until(lambda: read(path), "a session")
    equal(shown(g, "a.example", "-sess_in", path, who="second-ops")[1],
          "second-ops a.example")
    equal(shown(g, "localhost", "-sess_in", path, who="second-ops")[1], None)
    equal(shown(g, None, "-sess_in", path, who="second-ops")[1], None)


def test_strict_names():
    with gateway("sni_strict = true") as g:
        equal(shown(g, None), ("server", "ops -"))
        equal(shown(g, "b.example"), ("b", "ops b.example"))
        mark = g.mark()
        equal(shown(g, "other.example"), (None, None))
        line = g.wait_line("handshake", "other.example", since=mark)
        equal(len(line), 1)
        done = g.s_client("-servername", "other.example")
        assert "unrecognized name" in done.err, done.err


REVOKED = """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen {
  address = "127.0.0.1:@PORT@", host_check = false,
  certificate = "@PKI@/server.crt",
  key = "@PKI@/server.key", client_ca = "@CA@/ca.crt", crl = "@CA@/ca.crl",
  sni = {
    ["same.example"] = { certificate = "@SITES@/b.crt", key = "@SITES@/b.key" },
    ["other.example"] = { client_ca = "@OTHER@/ca.crt", crl = "@OTHER@/ca.crl" },
    ["free.example"] = { client_ca = "@OTHER@/ca.crt", crl = false },
  },
}
"""


def test_lists_by_name():
    """A name has the listener's lists, or those of its own CA."""
    tree = {}
    for name in ("CA", "OTHER"):
        folder = tree[name] = os.path.join(tmpdir("crl"), "ca")
        for argv in (["init", folder], ["client", folder, "good"],
                     ["client", folder, "bad"], ["revoke", folder, "bad"]):
            equal(gateway_cli("certs", *argv).returncode, 0, argv)
    with Gateway(REVOKED + WHO, head=False, SITES=sites(), **tree) as g:
        for name, folder, good, bad in (
                (None, "CA", True, False),
                ("same.example", "CA", True, False),
                ("other.example", "OTHER", True, False),
                ("free.example", "OTHER", True, True),
                ("same.example", "OTHER", False, False)):
            for who, want in (("good", good), ("bad", bad)):
                said = shown(g, name, who=os.path.join(tree[folder], who))[1]
                equal(said is not None, want, "%s of %s at %s" % (
                    who, folder, name))


# ---- the ClientHello itself ----

def hello(name=b"localhost", extra=b"", sigs=b"\x04\x03", suites=b"\x13\x01"):
    """A ClientHello message of TLS 1.3 with an X25519 share of rubbish."""
    def ext(kind, body):
        return struct.pack(">HH", kind, len(body)) + body

    def vec(body, size):
        return len(body).to_bytes(size, "big") + body
    extensions = b"".join((
        ext(0, vec(b"\0" + vec(name, 2), 2)) if name is not None else b"",
        ext(10, vec(b"\0\x1d", 2)), ext(13, vec(sigs, 2)),
        ext(43, vec(b"\x03\x04", 1)), ext(45, b"\x01\x01"),
        ext(51, vec(b"\0\x1d" + vec(b"\x09" + bytes(31), 2), 2)), extra))
    body = (b"\x03\x03" + bytes(range(32)) + vec(bytes(32), 1)
            + vec(suites, 2) + b"\x01\0" + vec(extensions, 2))
    return b"\x01" + len(body).to_bytes(3, "big") + body


def records(message, size=16384):
    return [b"\x16\x03\x01" + struct.pack(">H", len(message[i:i + size]))
            + message[i:i + size] for i in range(0, len(message), size)]


def say(g, *parts):
    """The first bytes that come back."""
    with socket.create_connection(("127.0.0.1", g.port), SOCKET_S) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for part in parts:
                s.sendall(part)
            return s.recv(4096)
        except ConnectionError:
            return b""


SERVER_HELLO = b"\x16\x03\x03"
DECODE_ERROR = b"\x15\x03\x03\x00\x02\x02\x32"


def test_a_hello_in_pieces(g):
    whole = hello()
    for size in (16384, 100, 50, 4):
        assert say(g, b"".join(records(whole, size))).startswith(
            SERVER_HELLO), size
    one = records(whole)[0]
    assert say(g, *[one[i:i + 1] for i in range(len(one))]).startswith(
        SERVER_HELLO), "byte by byte"
    for cut in (1, 5, 6, 9, 60):
        assert say(g, one[:cut], one[cut:]).startswith(SERVER_HELLO), cut
    padded = hello(extra=struct.pack(">HH", 21, 15000) + bytes(15000))
    assert say(g, b"".join(records(padded))).startswith(SERVER_HELLO), "15 KB"
    assert say(g, b"".join(records(padded, 300))).startswith(SERVER_HELLO)


def test_bad_hellos(g):
    one = records(hello())[0]
    long = hello(extra=struct.pack(">HH", 21, 17000) + bytes(17000))
    for what, said, word in (
            ("too many records", b"".join(records(
                hello(extra=struct.pack(">HH", 21, 300) + bytes(300)), 5)),
             "64 records"),
            ("too long", b"".join(records(long)), "over 16 KiB"),
            ("two names", records(hello(extra=b"\0\0\0\x06\0\x04\0\0\x01a"))[0],
             "twice"),
            ("name with a NUL", records(hello(b"a\0b"))[0], "no host name"),
            ("name with a slash", records(hello(b"a/b"))[0], "no host name"),
            ("empty name", records(hello(b""))[0], "empty"),
            ("a dot", records(hello(b"."))[0], "empty"),
            ("long name", records(hello(b"a" * 256))[0], "too long"),
            ("odd list", records(hello(sigs=b"\x04\x03\x05"))[0],
             "malformed"),
            ("cut extension", records(hello(extra=b"\0\x99\0\x09a"))[0],
             "malformed"),
            ("no suite", records(hello(suites=b""))[0], "malformed"),
            ("a short record", b"".join(records(hello(), 3)), "too short"),
            ("empty record", b"\x16\x03\x01\0\0" + one, "records"),
            ("a record between", records(hello(), 100)[0]
             + b"\x17\x03\x03\0\x01a", "records"),
            ("bytes behind", records(hello() + b"\x01")[0], "bytes follow"),
            ("another message", records(b"\x02" + hello()[1:])[0],
             "no ClientHello")):
        mark = g.mark()
        equal(say(g, said), DECODE_ERROR, what)
        g.wait_line("handshake", "ClientHello refused", word, since=mark)
    equal(shown(g, None)[1], "ops -")


def test_a_trailing_dot_is_no_part_of_the_name(g):
    equal(shown(g, "b.example."), ("b", "ops b.example"))


# ---- what does not load ----

def check(listen, prepare=None):
    folder = tmpdir("check")
    shutil.copy(PKI + "/server.key", folder)
    if prepare:
        prepare(folder)
    text = ('local gateway = require "gateway"\n'
            'local id = require "gateway.identity"\n'
            'gateway.listen { address = "127.0.0.1:20001", %s }\n' % listen
            + WHO).replace("@PKI@", PKI).replace("@DIR@", folder).replace(
                "@SITES@", sites())
    return gateway_cli("check", write(folder + "/p.lua", text))


CA = 'client_ca = "@PKI@/ca.crt"'
PAIR = 'certificate = "@PKI@/server.crt", key = "@PKI@/server.key"'
BOTH = '{ certificate = "@PKI@/server.crt", key = "@PKI@/server.key" }'


def test_what_loads():
    for listen in (
            "%s, %s" % (CA, PAIR),
            "%s, certificates = { %s, %s }" % (CA, BOTH, BOTH),
            '%s, %s, sni = { ["a_b.x"] = { %s } }' % (CA, PAIR, CA),
            '%s, %s, sni_strict = true, tickets = false' % (CA, PAIR)):
        done = check(listen)
        equal(done.returncode, 0, listen + done.err)
    done = check('%s, %s, sni = { ["*.b.x"] = { %s } }' % (CA, PAIR, CA))
    assert re.search(r"server name \*\.b\.x .*ca\.crt", done.out), done.out


def test_what_does_not_load():
    for listen, says in (
            (CA, "option 'certificate' is missing"),
            (CA + ', certificate = "a"', "option 'key' is missing"),
            (CA + ', key = "a"', "option 'certificate' is missing"),
            (CA + ', certificate = { "a", "b" }, key = "k"', "one key for each"),
            (CA + ", certificates = {}", "certificates must be a list"),
            ("%s, %s, certificates = { %s }" % (CA, PAIR, BOTH), "either"),
            (CA + ', certificates = { { certificate = "a" } }', "'key'"),
            ("%s, %s, sni = { a = {} }" % (CA, PAIR), "says nothing"),
            ('%s, %s, sni = { ["a b"] = { %s } }' % (CA, PAIR, CA),
             "is not a server name"),
            ('%s, %s, sni = { ["a.*"] = { %s } }' % (CA, PAIR, CA),
             "is not a server name"),
            ('%s, %s, sni = { A = { %s }, a = { %s } }' % (CA, PAIR, CA, CA),
             "there twice"),
            ('%s, %s, sni = { { %s } }' % (CA, PAIR, CA),
             "table of server names"),
            ('%s, %s, crl = "x.crl", sni = { a = { %s } }' % (CA, PAIR, CA),
             "the lists of the listener do not cover it"),
            ('%s, %s, sni = { a = { certificate = "x", key = "y", '
             'crl = false } }' % (CA, PAIR), "needs a client_ca of its own"),
            ('%s, %s, sni = { a = { %s, crl = "none.crl" } }' % (CA, PAIR, CA),
             'sni "a": crl: none.crl: No such file'),
            ('%s, %s, sni = { a = { client_cert = "x" } }' % (CA, PAIR),
             "did you mean 'client_ca'?"),
            ('%s, %s, sni = { a = { client_ca = "none" } }' % (CA, PAIR),
             'sni "a": none: No such file'),
            ('%s, %s, sni = { a = { certificate = "@PKI@/server.crt", '
             'key = "@SITES@/b.key" } }' % (CA, PAIR),
             'sni "a": key: it does not belong'),
            ("%s, %s, tickets = 5" % (CA, PAIR), "true, false or"),
            ("%s, %s, tickets = { lifetim = 5 }" % (CA, PAIR), "lifetime"),
            ("%s, %s, tickets = { lifetime = 0 }" % (CA, PAIR), "seconds")):
        done = check(listen)
        equal(done.returncode, 1, listen)
        assert says in done.err, "%s: %s" % (listen, done.err)


def test_the_modes_of_keys():
    own = CA + ', certificate = "@PKI@/server.crt", key = "@DIR@/server.key"'
    for mode, loads, says in ((0o600, True, None), (0o400, True, None),
                              (0o640, True, "its group may read"),
                              (0o440, True, "its group may read"),
                              (0o644, False, "chmod 600"),
                              (0o604, False, "chmod 600"),
                              (0o602, False, "chmod 600"),
                              (0o620, False, "chmod 600")):
        done = check(own, lambda d, m=mode: os.chmod(d + "/server.key", m))
        equal(done.returncode, 0 if loads else 1, "%o %s" % (mode, done.err))
        if says:
            assert says in done.err and "server.key" in done.err, done.err
        else:
            equal(done.err, "", "%o" % mode)


def test_another_names_clients_are_kept_apart(g):
    """Whom the listener's CA vouches for does not reach a.example, whose clients
    come from another CA; and theirs do not reach the listener's own names."""
    for sni, who, host, status in (
            (None, "ops", "a.example", 421), (None, "ops", "A.Example.", 421),
            (None, "ops", "a.example:443", 421), (None, "ops", "other", 200),
            ("b.example", "ops", "a.example", 421),
            ("b.example", "ops", "y.c.example", 421),
            ("b.example", "ops", "other", 200),
            ("a.example", "second-ops", "a.example", 200),
            ("a.example", "second-ops", "b.example", 421),
            ("a.example", "second-ops", "other", 421),
            ("a.example", "second-ops", "y.c.example", 421)):
        crt, key = cert(who)
        done = sh("openssl", "s_client", "-connect", "127.0.0.1:%d" % g.port,
                  *(["-servername", sni] if sni else ["-noservername"]),
                  "-cert", crt, "-key", key, "-ign_eof", check=False,
                  input=build("GET", "/ok", [("Connection", "close")],
                              host=host), timeout=15)
        assert "HTTP/1.1 %d" % status in done.out, (sni, who, host,
                                                    done.out[-300:])


def test_http_1_0_without_host_is_for_the_tls_server_name():
    """It does not get by the routes of that name to those of none."""
    routes = """
gateway.get("/x", { host = "localhost", authorize = id.ou "nobody",
  handle = function() return gateway.text "named" end })
gateway.get("/x", { authorize = id.anyone,
  handle = function() return gateway.text "hostless" end })
"""
    with Gateway(routes) as g:
        for head in ("GET /x HTTP/1.0\r\n\r\n",
                     "GET /x HTTP/1.0\r\nHost: localhost\r\n\r\n"):
            with g.connect() as c:
                c.send(head.encode())
                equal(c.response().status, 403, head)
