"""TLS to upstreams over time: resumption, reloads, other servers, `check`."""

import json
import os
import re
import signal
import socket
import ssl
import time

from gw import (ASAN, HEAD, NGINX, PKI, Gateway, Nginx, OpensslCa, Skip,
                Upstream, cert, equal, free_port, gateway_cli, sh, spawn,
                status_kib, tmpdir, until, write)

ADMIN = "gateway.admin { address = \"127.0.0.1:@ADMIN@\" }\n"
POLICY = ADMIN + """
local app = gateway.upstream { "https://127.0.0.1:@UP@", name = "app",
  ca = "@CA@", server_name = "app.internal", @MORE@ }
gateway.any("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path },
               body = gateway.stream "512M" },
  handle = app:to "/internal/{path}" })
"""


def server_context(pair):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*pair)
    return tls


class Both(Gateway):
    """A CA, a server that it vouches for, and a gateway that trusts it."""

    def __init__(self, more="", **dates):
        self.folder = tmpdir("upses")
        self.ca = OpensslCa(self.folder, "ca")
        self.pair = self.ca.leaf("app", san="DNS:app.internal",
                                 eku="serverAuth", **dates)
        self.tls = server_context(self.pair)
        self.up = Upstream(tls=self.tls).start()
        super().__init__(POLICY, UP=self.up.port, CA=self.ca.crt, MORE=more)

    def again(self, tls):
        """Another server at the same address."""
        port = self.up.port
        self.up.stop()
        until(lambda: not self.up.open, "the old server's connections end")
        self.up = Upstream(port=port, tls=tls).start()

    def handshakes(self, result):
        return self.metric("gateway_upstream_tls_handshakes_total",
                           result=result)

    def stop(self):
        self.up.stop()
        return super().stop()


def setup():
    return Both()


def test_a_second_connection_resumes():
    with Both() as g:
        for _ in range(6):
            equal(g.get("/p/bye").status, 200)
        equal([s["reused"] for s in g.up.sessions], [False] + 5 * [True])
        equal((g.handshakes("full"), g.handshakes("resumed")), (1, 5))


def test_no_resumption_with_tls_1_2():
    with Both() as g:
        tls = server_context(g.pair)
        tls.maximum_version = ssl.TLSVersion.TLSv1_2
        g.again(tls)
        for _ in range(3):
            equal(g.get("/p/bye").status, 200)
        equal([s["reused"] for s in g.up.sessions], 3 * [False])


def test_what_cannot_resume_shakes_hands_in_full():
    """A server that forgot its keys, and one that knows TLS 1.2 only."""
    with Both() as g:
        equal(g.get("/p/bye").status, 200)
        g.again(server_context(g.pair))
        equal(g.get("/p/bye").status, 200)
        equal(g.get("/p/bye").status, 200)
        equal([s["reused"] for s in g.up.sessions], [False, True])
        tls = server_context(g.pair)
        tls.maximum_version = ssl.TLSVersion.TLSv1_2
        g.again(tls)
        for method in ("GET", "POST"):
            equal(g.request(method, "/p/bye").status, 200, method)
        equal([(s["reused"], s["version"]) for s in g.up.sessions],
              2 * [(False, "TLSv1.2")])


def extensions(hello):
    """The types in a ClientHello that is one record."""
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at:at + 2], "big")
    at += 1 + hello[at] + 2
    found = []
    while at < len(hello):
        found.append(int.from_bytes(hello[at:at + 2], "big"))
        at += 4 + int.from_bytes(hello[at + 2:at + 4], "big")
    return found


class Picky:
    """In the place of a context: says `farewell` to all who would resume."""

    def __init__(self, tls, farewell):
        self.tls, self.farewell, self.offers = tls, farewell, 0

    def wrap_socket(self, sock, server_side):
        hello = sock.recv(16384, socket.MSG_PEEK)
        if 41 in extensions(hello):  # pre_shared_key
            self.offers += 1
            sock.recv(len(hello))
            sock.sendall(self.farewell)
            raise OSError("somebody would resume")
        return self.tls.wrap_socket(sock, server_side=server_side)


def test_a_refused_offer_is_followed_by_a_full_handshake():
    """Whatever the server does to who offers to resume, the call goes on;
    that of a POST, too: nothing was sent."""
    alert = b"\x15\x03\x03\x00\x02\x02\x33"  # decrypt_error
    for farewell in (b"", alert, b"nonsense"):
        with Both() as g:
            g.again(Picky(g.tls, farewell))
            for method in ("GET", "POST", "GET"):
                equal(g.request(method, "/p/bye").status, 200, farewell)
            equal(g.up.tls.offers, 2, farewell)
            equal([s["reused"] for s in g.up.sessions], 3 * [False], farewell)


def test_a_client_certificate_goes_with_the_session():
    clients = os.path.join(PKI, "clients.pem")
    with Both('certificate = "%s", key = "%s"' % cert("ops")) as g:
        tls = server_context(g.pair)
        tls.verify_mode = ssl.CERT_REQUIRED
        tls.load_verify_locations(clients)
        g.again(tls)
        for _ in range(3):
            equal(g.get("/p/bye").status, 200)
        equal([s["reused"] for s in g.up.sessions], [False, True, True])
        for s in g.up.sessions:
            assert ("commonName", "ops") in [p[0] for p in s["peer"][
                "subject"]], s


def test_no_resumption_with_somebody_else():
    """Who took over the address has the ticket but not the keys, and a
    certificate of its own: that is looked at."""
    with Both() as g:
        equal(g.get("/p/bye").status, 200)
        other = OpensslCa(g.folder, "other")
        pair = other.leaf("app2", san="DNS:app.internal", eku="serverAuth")
        g.again(server_context(pair))
        equal(g.get("/p/bye").status, 502)
        equal(g.up.requests, [])
        equal(g.handshakes("resumed"), 0)


def test_past_not_after_nothing_goes_on():
    """Neither the connection in the pool nor a session to resume."""
    end = int(time.time()) + 8
    with Both(end=end) as g:
        equal(g.get("/p/bye").status, 200)
        equal(g.get("/p/bye").status, 200)
        equal(g.up.sessions[-1]["reused"], True)
        equal(g.get("/p/x").status, 200)  # stays in the pool
        until(lambda: time.time() > end + 1, "the certificate expires", 15)
        for _ in range(2):
            mark = g.mark()
            equal(g.get("/p/x").status, 502)
            g.wait_line("has expired", since=mark)


def test_a_reload_takes_the_new_ca_and_shakes_hands_anew():
    with Both() as g:
        equal(g.get("/p/bye").status, 200)
        other = OpensslCa(g.folder, "other")
        pair = other.leaf("app2", san="DNS:app.internal", eku="serverAuth")
        kept = open(g.ca.crt, "rb").read()
        write(g.ca.crt, open(other.crt, "rb").read())
        g.reload()
        equal(g.get("/p/bye").status, 502, "the old server, by the new CA")
        g.again(server_context(pair))
        equal(g.get("/p/bye").status, 200, "the new server")
        write(g.ca.crt, "no certificate\n")
        g.reload(good=False)
        equal(g.get("/p/x").status, 200, "what was, serves on")
        write(g.ca.crt, kept)
        ready = len([r for r in g.log() if r.get("event") == "ready"])
        g.signal(signal.SIGUSR1)  # files only
        g.wait_ready(ready)
        equal(g.get("/p/x").status, 502, "back again")


def crl(ca, revoked=(), days=9):
    """The CA's list, as PEM."""
    work = tmpdir("upcrl")
    write(work + "/index.txt", "".join(
        "R\t360101000000Z\t260101000000Z\t%s\tunknown\t/CN=app\n" % serial
        for serial in revoked))
    write(work + "/number", "%02x\n" % (1 + len(revoked)))
    write(work + "/conf", "\n".join([
        "[ca]", "default_ca = it", "[it]", "database = %s/index.txt" % work,
        "crlnumber = %s/number" % work, "default_md = sha256",
        "default_crl_days = %d" % days, "crl_extensions = ext", "[ext]",
        "authorityKeyIdentifier = keyid", ""]))
    sh("openssl", "ca", "-gencrl", "-config", work + "/conf", "-keyfile",
       ca.key, "-cert", ca.crt, "-out", work + "/crl")
    return open(work + "/crl").read()


def test_a_revoked_server_is_refused():
    """Also one whose session could be resumed: a reload begins anew."""
    with Both() as g:
        path = os.path.join(g.folder, "list.crl")
        write(path, crl(g.ca))
        g.tokens["MORE"] = 'crl = "%s"' % path
        g.reload(POLICY)
        for _ in range(2):
            equal(g.get("/p/bye").status, 200)
        equal(g.up.sessions[-1]["reused"], True)
        serial = sh("openssl", "x509", "-in", g.pair[0], "-noout",
                    "-serial").out.strip().partition("=")[2]
        write(path, crl(g.ca, [serial]))
        ready = len([r for r in g.log() if r.get("event") == "ready"])
        g.signal(signal.SIGUSR1)
        g.wait_ready(ready)
        mark = g.mark()
        before = len(g.up.requests)
        equal(g.get("/p/bye").status, 502)
        g.wait_line("server certificate", "revoked", since=mark)
        equal(len(g.up.requests), before)
        write(path, crl(g.ca))  # an older one
        g.reload(good=False)
        write(path, crl(OpensslCa(g.folder, "other")))
        g.reload()
        mark = g.mark()
        equal(g.get("/p/bye").status, 502, "no list of its CA")
        g.wait_line("server certificate", since=mark)


def test_a_target_with_a_wrong_certificate_is_passed_over():
    with Both() as g:
        other = OpensslCa(g.folder, "other")
        tls = server_context(other.leaf("app2", san="DNS:app.internal",
                                        eku="serverAuth"))
        wrong = Upstream(tls=tls).start()
        g.tokens["MORE"] = '"https://127.0.0.1:%d"' % wrong.port
        g.reload(POLICY)
        for _ in range(4):
            equal(g.get("/p/bye").status, 200)
        equal(wrong.requests, [])
        wrong.stop()


def test_fetch_speaks_tls_too():
    with Both() as g:
        g.reload(POLICY + """
gateway.get("/fetched", { authorize = id.anyone, handle = function()
  local r, why = gateway.fetch(app, { path = "/internal/hello" })
  return gateway.text(r and r.body or why, r and r.status or 500) end })
""")
        r = g.get("/fetched")
        equal((r.status, r.json()["path"]), (200, "/internal/hello"))
        equal(len(g.up.sessions), 1)


def test_the_clock_of_connecting_covers_the_handshake(g):
    assert "connect_timeout" not in g.policy
    done = gateway_cli("check", g.policy, "--json", cwd=g.dir)
    equal(json.loads(done.out)["upstreams"][0]["connect_ms"], 2000)


def test_an_upload_waits_for_the_server(g):
    """Back-pressure through two TLS sessions: the worker stays small."""
    path = os.path.join(g.folder, "body")
    size = (16 if ASAN else 200) << 20
    with open(path, "wb") as f:
        f.truncate(size)
    before = len(g.up.requests)
    g.up.hold = True
    argv = ["curl", "-sS", "--max-time", "60", "--cacert", PKI + "/servers.pem",
            "--cert", cert("ops")[0], "--key", cert("ops")[1], "-T", path, "-o",
            path + ".out", g.url("/p/up")]
    curl = spawn(argv)
    until(lambda: len(g.up.requests) > before, "the request is there")
    until(lambda: g.up.requests[-1].body_bytes > 0, "a part of it came")
    g.up.hold = False
    equal(curl.wait(60), 0)
    assert '"bytes": %d,' % size in open(path + ".out").read()
    if not ASAN:
        peak = status_kib(g.workers()[0], "VmHWM")
        assert peak < 32 << 10, "the worker's peak is %d KiB" % peak


def test_a_download_waits_for_the_client(g):
    size = 200 << 20
    with g.connect(rcvbuf=4096) as c:
        sent = g.up.sent
        c.send(b"GET /p/big/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % size)
        seen = []

        def stands_still():
            seen.append(g.up.sent)
            return seen[-1] > sent and seen[-50:] == 50 * seen[-1:]

        until(stands_still, "the server is held back")
        assert seen[-1] - sent < 32 << 20, "%d bytes" % (seen[-1] - sent)
        equal(c.head().status, 200)
    if not ASAN:
        peak = status_kib(g.workers()[0], "VmHWM")
        assert peak < 32 << 10, "the worker's peak is %d KiB" % peak


# ---- servers of other makes ------------------------------------------------

def other(port, folder, more=""):
    return Gateway(ADMIN + """
local app = gateway.upstream { "https://localhost:@UP@", name = "app",
  ca = "@FOLDER@/ca.crt", @MORE@ }
gateway.any("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path },
               body = gateway.stream "64M" },
  handle = app:to "/{path}" })
""", UP=port, FOLDER=folder, MORE=more)


def made(folder, **options):
    ca = OpensslCa(folder, "ca")
    return ca.leaf("server", san="DNS:localhost", eku="serverAuth", **options)


def test_nginx():
    if not NGINX:
        raise Skip("nginx is not installed")
    folder = tmpdir("upnginx")
    crt, key = made(folder)
    port = free_port()
    clients = os.path.join(PKI, "clients.pem")
    nginx = Nginx("""
    location / { return 200 "$ssl_client_s_dn $ssl_server_name\\n"; }
    location /big { return 200 "%s"; }
    location /close { keepalive_timeout 0; return 200 "$ssl_session_reused"; }
    listen 127.0.0.1:%d ssl; ssl_certificate %s; ssl_certificate_key %s;
    ssl_client_certificate %s; ssl_verify_client on;
    ssl_session_cache shared:x:1m; ssl_session_timeout 1s; keepalive_timeout 60;
    """ % ("y" * 3000, port, crt, key, clients))
    pair = 'certificate = "%s", key = "%s"' % cert("ops")
    with other(port, folder, pair) as g:
        r = g.get("/p/x")
        equal((r.status, r.text.split()[-1]), (200, "localhost"))
        assert "CN=ops" in r.text, r
        for _ in range(5):
            equal(len(g.get("/p/big").body), 3000)
        equal(len({line.split("|")[2] for line in nginx.log()}), 1,
              "connections")
        end = time.time() + 3
        equal(g.get("/p/close").status, 200)
        until(lambda: time.time() > end, "the ticket's life of 1 s is over")
        equal(g.get("/p/close").text, ".")
    with other(port, folder) as g:
        equal(g.get("/p/x").status, 400)  # nginx says so in HTTP
    nginx.stop()


def openssl_server(folder, pair, *argv):
    port = free_port()
    log = open(os.path.join(folder, "s_server.log"), "wb")
    process = spawn(["openssl", "s_server", "-accept", "127.0.0.1:%d" % port,
                     "-cert", pair[0], "-key", pair[1], "-www", *argv],
                    stdout=log, stderr=log)
    until(lambda: sh("sh", "-c", "ss -ltn | grep -c 127.0.0.1:%d" % port,
                     check=False).out.strip() == "1", "s_server listens")
    return process, port


def test_openssl_s_server():
    """-www writes "Reused" or "New", the version and the cipher."""
    folder = tmpdir("upopenssl")
    pair = made(folder, key="rsa")
    for argv, version in ((["-tls1_3"], "TLSv1.3"), (["-tls1_2"], "TLSv1.2"),
                          (["-tls1_3", "-groups", "P-521"], "TLSv1.3"),
                          (["-tls1_3", "-groups", "X25519"], "TLSv1.3"),
                          (["-tls1_3", "-no_ticket"], "TLSv1.3"),
                          (["-tls1_3", "-num_tickets", "0"], None)):
        process, port = openssl_server(folder, pair, *argv)
        with other(port, folder) as g:
            text = [g.get("/p/x").text for _ in range(3)]
            assert all((version or "") in t for t in text), text[0][:500]
            wanted = ["New"] + (2 * ["Reused"] if version == "TLSv1.3"
                                else 2 * ["New"])
            equal([re.search("^(New|Reused)", t, re.M).group(1) for t in text],
                  wanted, version)
        process.kill()
        process.wait()


def test_weak_servers_of_openssl():
    folder = tmpdir("upweak")
    pair = made(folder, key="rsa")
    for argv in (["-tls1_2", "-cipher", "AES128-GCM-SHA256"],
                 ["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA"],
                 ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]):
        process, port = openssl_server(folder, pair, *argv)
        with other(port, folder) as g:
            equal(g.get("/p/x").status, 502, argv)
        process.kill()
        process.wait()


# ---- check -----------------------------------------------------------------

GOOD = HEAD.replace("@WORKERS@", "1").replace("@LISTEN@", "").replace(
    "@PORT@", "8443").replace("@PKI@", PKI)
CHECKED = """
gateway.get("/x", { authorize = id.anyone, handle = gateway.upstream {
  %s } })
"""


def check(options, *argv):
    folder = tmpdir("upcheck")
    path = write(os.path.join(folder, "policy.lua"), GOOD + CHECKED % (
        options.replace("@PKI@", PKI)))
    return gateway_cli("check", path, *argv, cwd=folder)


def test_check_finds_what_does_not_fit():
    ca = '"https://a.internal:8443", ca = "@PKI@/ca.crt", '
    wrong = []
    for options, words in (
            ('"https://a.internal:8443"', "needs ca"),
            ('"https://a.internal:8443", ca = "nowhere"', "nowhere"),
            ('"https://a.internal:8443", ca = "@PKI@/ops.key"', "ca: "),
            (ca + 'certificate = "@PKI@/ops.crt"', "belong together"),
            (ca + 'key = "@PKI@/ops.key"', "belong together"),
            (ca + 'certificate = "@PKI@/ops.crt", key = "@PKI@/guest.key"',
             "does not belong to"),
            (ca + 'certificate = "@PKI@/ops.key", key = "@PKI@/ops.key"',
             "certificate: not usable"),
            (ca + 'server_name = "a b"', "neither a host name"),
            (ca + 'server_name = "*.internal"', "neither a host name"),
            (ca + 'server_spiffe = "spiffe://a"', "server_spiffe: "),
            (ca + 'server_spiffe = "spiffe://a/*/../x"', "server_spiffe: "),
            (ca + '"http://127.0.0.1:8080"', "make two upstreams"),
            ('"http://127.0.0.1:8080", ca = "@PKI@/ca.crt"', "for https://"),
            ('"http://127.0.0.1:8080", server_name = "x"', "for https://"),
            ('"http+unix:/run/x", certificate = "@PKI@/ops.crt",'
             ' key = "@PKI@/ops.key"', "for https://"),
            (ca + 'crl = "nowhere"', "nowhere"),
            ('"http://127.0.0.1:8080", crl = "x"', "for https://"),
            (ca + 'verify = false', "unknown option 'verify'"),
            (ca + 'insecure = true', "unknown option 'insecure'"),
            ('"https://a.internal:8443/x", ca = "@PKI@/ca.crt"', "no path")):
        done = check(options)
        if done.returncode != 1 or words not in done.err or (
                "policy.lua:" not in done.err):
            wrong.append("%s: %s" % (options, done.err))
    assert not wrong, "\n".join(wrong)


def test_check_says_whom_it_wants():
    done = check('"https://A.internal:8443", ca = "@PKI@/ca.crt",'
                 ' server_spiffe = "spiffe://example.org/app",'
                 ' server_name = "B.internal"')
    equal(done.returncode, 0, done.err)
    assert "(b.internal, spiffe://example.org/app)" in done.out, done.out


def test_check_warns_of_identity_headers_on_the_network():
    own = ', certificate = "@PKI@/ops.crt", key = "@PKI@/ops.key"'
    tls = '"https://a.internal:8443", ca = "@PKI@/ca.crt"'
    for options, words in (
            ('"http://a.internal:8080"', "can forge them"),
            ('"http://192.0.2.1:8080"', "can forge them"),
            ('"http://127.0.0.1.evil.org:8080"', "can forge them"),
            ('"http://localhost.evil.org:8080"', "can forge them"),
            ('"http://127.0.0.1:1", "http://192.0.2.1:1"', "can forge them"),
            (tls, "cannot tell us from"),
            ('"http://a.internal:8080", identity_headers = false', None),
            (tls + ", identity_headers = false", None),
            (tls + own, None),
            ('"http://127.0.0.1:8080"', None), ('"http://localhost:80"', None),
            ('"http://[::1]:8080"', None), ('"http+unix:/run/x"', None),
            ('"https://127.0.0.1:8443", ca = "@PKI@/ca.crt"', None)):
        done = check(options)
        equal(done.returncode, 0, options + done.err)
        equal("warnings" in done.out, words is not None, options)
        assert words is None or words in done.out, done.out
        told = json.loads(check(options, "--json").out)["warnings"]
        equal(len(told), 0 if words is None else 1, options)
