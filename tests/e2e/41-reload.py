"""SIGHUP: all or nothing, and no request fails."""

import os
import signal

from gw import (PKI, Client, Gateway, Load, Upstream, cert, equal, free_port,
                read, refused, shutil, until, write)

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "@WORD@" end })
gateway.get("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path } },
  handle = app:to "/internal/{path}" })
"""


def gateway(text=POLICY, workers=2, **tokens):
    up = Upstream().start()
    g = Gateway(text, workers=workers, UP=up.port, WORD="old", **tokens)
    g.up = up
    return g


def test_under_load_none_fails():
    with gateway() as g:
        loads = [Load(g, "/ok", clients=3), Load(g, "/p/x", clients=3)]
        for n in range(4):
            for load in loads:
                load.wait(30)
            g.reload()
        for load in loads:
            load.wait(30)
        bad = loads[0].stop() + loads[1].stop()
        equal(bad, [], "failures among %d" % sum(x.good for x in loads))
        until(lambda: len(g.workers()) == 2, "the old ones are gone", 10)
        g.up.stop()


test_under_load_none_fails.timeout = 60


def test_the_new_policy_rules():
    with gateway() as g:
        equal(g.get("/ok").text, "old")
        g.tokens["WORD"] = "new"
        g.reload(POLICY)
        until(lambda: g.get("/ok").text == "new", "new connections see it")
        g.up.stop()


def test_an_old_connection_is_let_go():
    """It finishes its request, then is told to close."""
    with gateway() as g:
        with g.connect() as slow, g.connect() as idle:
            equal(idle.get("/ok").text, "old")
            slow.send(b"GET /p/slow/1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            until(lambda: g.up.requests, "it is in flight")
            g.tokens["WORD"] = "new"
            g.reload(POLICY)
            r = slow.response()
            equal((r.status, r.get("connection")), (200, "close"))
            idle.send(b"GET /ok HTTP/1.1\r\nHost: localhost\r\n\r\n")
            try:
                equal(idle.response().get("connection"), "close")
            except EOFError:
                pass
        g.up.stop()


def test_a_broken_policy_changes_nothing():
    for broken in ("gateway.get(", "error 'boom'", "gateway.frobnicate()",
                   'gateway.get("/y", { handle = function() end })',
                   "colour = 1",
                   'gateway.command { name = "x", program = "/bin/sh" }'):
        with gateway(workers=1) as g:
            pids = g.workers()
            g.tokens["WORD"] = "new"
            g.reload(POLICY + broken, good=False)
            line = g.wait_line('"error"', "policy.lua")
            assert line, "no file in the log"
            equal(g.get("/ok").text, "old")
            equal(g.workers(), pids, "workers")
            g.tokens["WORD"] = "newer"
            g.reload(POLICY)
            until(lambda: g.get("/ok").text == "newer", "the mended one rules")
            g.up.stop()


test_a_broken_policy_changes_nothing.timeout = 60


def test_a_broken_one_under_load():
    with gateway() as g:
        load = Load(g, "/ok", clients=4)
        load.wait(50)
        g.reload(POLICY + "error 'boom'", good=False)
        load.wait(50)
        equal(load.stop(), [], "failures")
        g.up.stop()


def own(g_dir, name, source):
    """A copy of a certificate that the test may change."""
    for end in (".crt", ".key"):
        shutil.copy(os.path.join(PKI, source + end),
                    os.path.join(g_dir, name + end))


CERTIFICATES = """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen { address = "127.0.0.1:@PORT@",
  certificate = "server.crt", key = "server.key", client_ca = "clients.pem" }
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""


def copies(folder):
    own(folder, "server", "server")
    shutil.copy(PKI + "/clients.pem", folder)


def certificates():
    return Gateway(CERTIFICATES, head=False, prepare=copies)


def served_key(g):
    with g.connect() as c:
        return c.sock.getpeercert(binary_form=True)


def test_new_certificates_without_a_new_policy():
    with certificates() as g:
        before = served_key(g)
        own(g.dir, "server", "rsa-server")
        g.reload()
        until(lambda: served_key(g) != before, "the new certificate is served")


def test_a_new_client_ca():
    with certificates() as g:
        assert refused(g.port, "second-ops") is None, "second-ops is known"
        shutil.copy(PKI + "/ca.crt", g.dir + "/clients.pem")
        g.reload()
        until(lambda: refused(g.port, "second-ops"), "second-ops is refused")
        equal(g.get("/ok").status, 200)


def test_a_broken_certificate_changes_nothing():
    for name, text in (("server.crt", "rubbish"), ("server.key", "rubbish"),
                       ("clients.pem", ""), ("server.key", None),
                       ("server.key", read(cert("ops")[1]))):
        with certificates() as g:
            before = served_key(g)
            if text is None:
                os.unlink(g.dir + "/" + name)
            else:
                write(g.dir + "/" + name, text)
            g.reload(good=False)
            g.wait_line('"error"', name if text is None else "")
            equal(served_key(g), before, "certificate")
            equal(g.get("/ok").status, 200)


test_a_broken_certificate_changes_nothing.timeout = 60


def test_an_address_that_is_taken():
    import socket
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen(1)
    with gateway(workers=1) as g:
        g.reload(POLICY + 'gateway.admin { address = "127.0.0.1:%d" }'
                 % taken.getsockname()[1], good=False)
        equal(g.get("/ok").text, "old")
        g.up.stop()
    taken.close()


def test_listeners_come_and_go():
    with gateway(workers=1) as g:
        port = free_port()
        more = """
gateway.listen { address = "127.0.0.1:%d", certificate = "@PKI@/server.crt",
  key = "@PKI@/server.key", client_ca = "@PKI@/clients.pem" }
""" % port
        g.reload(POLICY + more)
        with Client(port, "ops") as c:
            equal(c.get("/ok").status, 200)
        g.reload(POLICY)

        def gone():
            try:
                Client(port, "ops").close()
                return False
            except OSError:
                return True
        until(gone, "the second listener is closed", 10)
        equal(g.get("/ok").status, 200)
        g.up.stop()


def test_many_hups_at_once():
    with gateway(workers=1) as g:
        for _ in range(20):
            g.signal(signal.SIGHUP)
        until(lambda: len(g.workers()) == 1 and g.get("/ok").status == 200,
              "it settles", 15)
        assert g.alive(), "it died"
        g.up.stop()


test_many_hups_at_once.timeout = 40
