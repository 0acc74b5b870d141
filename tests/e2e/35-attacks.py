"""What an attack on the gateway found once stays mended: each test is one way
in that a client with a valid certificate had."""

import time

from gw import (PKI, Gateway, OpensslCa, Upstream, equal, status_kib)

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.any("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path },
               body = gateway.stream "1M" },
  handle = app:to("/internal/{path}", { set = { ["X-Cn"] = "{identity.cn}" } }) })
gateway.post("/role", { authorize = id.anyone,
  validate = { headers = { ["X-Role"] = gateway.enum { "user", "admin" } },
               body = gateway.bytes "1K" },
  handle = app:to "/internal/role" })
gateway.get("/late", { authorize = id.anyone,
  validate = { query = { note = gateway.string(0, 100) } },
  handle = function(request)
    return app:to("/internal/" .. request.query.note,
                  { set = { ["X-Note"] = request.query.note } })
  end })
gateway.get("/big", { authorize = id.anyone,
  handle = function() return gateway.text(("x"):rep(200000)) end })
gateway.get("/slow", { authorize = id.anyone,
  handle = function()
    local n = 0
    for i = 1, 200000 do n = n + i end
    return gateway.text "slow"
  end })
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "ok" end })
gateway.get("/framing", { authorize = id.anyone,
  handle = function()
    return gateway.text("x", 200, { ["Transfer-Encoding"] = "chunked" })
  end })
gateway.get("/tables", { authorize = id.anyone,
  handle = function()
    local tries = { pcall(rawset, string, "format", nil),
                    pcall(rawset, gateway, "text", nil),
                    pcall(require, "gateway.core") }
    return gateway.json { raw = pcall(rawset, string, "x", 1),
                          ours = pcall(rawset, gateway, "x", 1),
                          core = pcall(require, "gateway.core"),
                          pairs = next(string) ~= nil or pairs(string) ~= nil }
  end })
"""


class Both(Gateway):
    def __init__(self):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port, listen="explain = true")

    def stop(self):
        self.up.stop()
        return super().stop()


def setup():
    return Both()


def test_a_body_on_get_goes_nowhere(g):
    for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        inner = b"GET /internal/evil HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answers, closed = g.raw(
            b"%s /p/x HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: %d\r\n\r\n%s"
            % (method.encode(), len(inner), inner))
        equal(answers[0].status, 400, method)
        assert closed, "the connection stays open after " + method
    assert not g.up.requests, g.up.requests


def test_odd_names_do_not_shadow(g):
    for name in ("X.Cn", "X!Cn", "X_Cn", "X~Cn"):
        answers, closed = g.raw(("GET /p/headers HTTP/1.1\r\n"
                                 "Host: localhost\r\n%s: "
                                 "EVIL\r\n\r\n" % name).encode())
        equal(answers[0].status, 400, name)
        assert closed


def test_connection_does_not_take_what_was_checked(g):
    r = g.request("POST", "/role", [
        ("X-Role", "user"), ("Content-Type", "application/octet-stream"),
        ("Connection", "x-role, content-type")], b"x")
    equal(r.status, 200)
    headers = {k.lower(): v for k, v in r.json()["headers"].items()}
    equal(headers.get("x-role"), "user")
    assert "content-type" in headers, headers


def test_many_connection_options_are_refused(g):
    answers, _ = g.raw(b"GET /ok HTTP/1.1\r\nHost: localhost\r\nConnection: "
                       + b"a," * 100 + b"b\r\n\r\n")
    equal(answers[0].status, 400)


def test_a_handler_does_not_expand_client_data(g):
    r = g.get("/late?note=%7Bidentity.cn%7D")
    equal(r.status, 200, r.text)
    headers = {k.lower(): v for k, v in r.json()["headers"].items()}
    equal(headers.get("x-note"), "{identity.cn}")
    assert "identity.cn" in r.json()["path"], r.json()["path"]
    r = g.get("/late?note=a%3Fx%3D1")
    equal(r.status, 200, r.text)
    assert "x=1" not in (r.json().get("query") or ""), r.text


def test_a_client_that_pipelines_and_does_not_read(g):
    worker = g.workers()[0]
    before = status_kib(worker, "VmRSS")
    with g.connect() as c:
        for _ in range(60):
            try:
                c.sock.settimeout(0.2)
                c.send(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
            except OSError:
                break  # the gateway reads no further: that is the mend
        equal(g.get("/ok").status, 200)
        grown = status_kib(worker, "VmRSS") - before
    assert grown < 16 << 10, "the worker grew by %d KiB" % grown


def test_pipelined_hooks_leave_others_their_turn(g):
    with g.connect() as c:
        c.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n" * 300)
        begun = time.monotonic()
        equal(g.get("/ok").status, 200)
        took = time.monotonic() - begun
        answers, _ = c.drain(10)
    assert answers, "the pipelined ones are answered, too"
    assert took < 2, "another client waited %.1f s" % took


def test_a_script_cannot_frame(g):
    equal(g.get("/framing").status, 500)


def test_library_tables_cannot_be_written(g):
    r = g.get("/tables").json()
    equal((r["raw"], r["ours"], r["core"]), (False, False, False))
    equal(g.get("/ok").text, "ok")


def test_a_certificate_that_expires_on_a_connection(g):
    ca = OpensslCa(PKI, "second-ca-copy")
    g2 = Gateway("""
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "ok" end })
""", listen='client_ca = "%s"' % ca.crt)
    with g2:
        ca.leaf("brief", "/CN=brief", start=time.time() - 60,
                end=time.time() + 3)
        with g2.connect("brief") as c:
            equal(c.get("/ok").status, 200)
            end = time.time() + 8
            while time.time() < end:
                r = c.get("/ok")
                if r.status != 200:
                    break
                time.sleep(0.2)
            equal(r.status, 403, "after it has expired")
            assert c.is_closed()


def test_silent_connections_take_no_handshake_slot():
    import socket
    with Gateway("""
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "ok" end })
""", listen="limits = { handshakes = 5 }") as g:
        held = [socket.create_connection(("127.0.0.1", g.port))
                for _ in range(50)]
        begun = time.monotonic()
        equal(g.get("/ok").status, 200)
        assert time.monotonic() - begun < 2, "it had to wait"
        for sock in held:
            sock.close()
