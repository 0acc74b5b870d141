"""The right certificate, the right input: every client gets its answer."""

import ssl

from gw import Gateway, Nginx, equal, read, until

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@NGINX@" }
gateway.get("/ok", { authorize = id.ou "ops",
  handle = function() return gateway.text "fine\\n" end })
gateway.get("/json", { authorize = id.ou "ops",
  handle = function(request, identity)
    return gateway.json { method = request.method, target = request.target,
      cn = identity.subject.cn[1], id = request.id } end })
gateway.any("/files/{path...}", { authorize = id.ou "ops",
  validate = { path = { path = gateway.relative_path } },
  handle = app:to "/{path}" })
"""


class Both(Gateway):
    def __init__(self):
        self.nginx = Nginx("location / { }")
        super().__init__(POLICY, NGINX=self.nginx.port)

    def stop(self):
        self.nginx.stop()
        return super().stop()


def setup():
    return Both()


def test_text(g):
    r = g.get("/ok")
    equal((r.status, r.text), (200, "fine\n"))
    assert r.get("content-type").startswith("text/plain"), r


def test_json(g):
    r = g.get("/json")
    equal(r.status, 200)
    equal(r.get("content-type").split(";")[0], "application/json")
    equal(r.json()["cn"], "ops")
    assert len(r.json()["id"]) >= 16, r


def test_proxied_to_nginx(g):
    r = g.get("/files/hello.txt")
    equal((r.status, r.body), (200, read(g.nginx.dir + "/www/hello.txt")))
    until(lambda: "/hello.txt" in g.nginx.targets(), "nginx logs it")


def test_curl(g):
    equal(g.curl(g.url("/ok")).out, "fine\n")
    equal(g.curl(g.url("/files/hello.txt")).out, "hello from nginx\n")
    equal(g.curl("--http1.1", "--tls-max", "1.2", g.url("/ok")).out, "fine\n")


def test_openssl_s_client(g):
    for option in ("-tls1_2", "-tls1_3"):
        done = g.s_client(option)
        assert "HTTP/1.1 200" in done.out and "fine" in done.out, (
            option + done.out + done.err)


def test_python_on_tls_1_2_and_1_3(g):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        equal(g.get("/ok", version=version).status, 200, str(version))


def test_certificates_of_other_tools(g):
    """EC, P-384, Ed25519, RSA and an intermediate, all made by openssl."""
    for who in ("second-ops", "p384-ops", "ed25519-ops", "rsa-ops",
                "middle-ops", "boss"):
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            equal(g.get("/ok", who=who, version=version).status, 200,
                  "%s with %s" % (who, version))


def test_other_key_shares(g):
    for group in ("P-256", "X25519", "X25519:P-256", "P-384:X25519"):
        done = g.s_client("-tls1_3", "-groups", group)
        assert "HTTP/1.1 200" in done.out, group + done.out + done.err


def test_alpn_is_http_1_1_only(g):
    with g.connect(alpn=["h2", "http/1.1"]) as c:
        equal(c.sock.selected_alpn_protocol(), "http/1.1")
        equal(c.get("/ok").status, 200)


def test_an_rsa_server_certificate():
    g = Gateway("""
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen { address = "127.0.0.1:@PORT@",
  certificate = "@PKI@/rsa-server.crt", key = "@PKI@/rsa-server.key",
  client_ca = "@PKI@/clients.pem" }
gateway.get("/ok", { authorize = id.ou "ops",
  handle = function() return gateway.text "fine\\n" end })
""", head=False)
    with g:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            equal(g.get("/ok", version=version).status, 200, str(version))


def test_access_is_logged_as_one_json_line(g):
    mark = g.mark()
    r = g.get("/json?x")
    equal(r.status, 422)
    r = g.get("/json")
    line = g.wait_line(r.json()["id"], since=mark)
    equal(len(line), 1, "lines with the request id: %r" % line)
    assert '"GET"' in line[0] and "/json" in line[0] and "200" in line[0], line
