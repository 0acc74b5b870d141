"""Certificates that end while their client is connected; files that change
while the policy does not."""

import shutil
import signal
import time

from gw import (PKI, Gateway, Upstream, equal, gateway_cli, read, refused,
                tmpdir, write)

POLICY = """
gateway.admin { address = "127.0.0.1:@ADMIN@" }
local app = gateway.upstream { "http://127.0.0.1:@UP@", name = "app" }
gateway.get("/ok", { authorize = id.ou "ops",
  handle = function() return gateway.text "fine" end })
gateway.get("/hang", { authorize = id.ou "ops",
  handle = app:to "/internal/hang" })
"""


def short(name, seconds):
    """A client of the test CA whose certificate is about to end."""
    folder = tmpdir("short")
    for end in ("crt", "key"):
        shutil.copy("%s/ca.%s" % (PKI, end), folder)
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
    gateway_cli("certs", "client", folder, name, "--ou", "ops", "--not-before",
                "2026-01-01", "--not-after", end)
    for end in ("crt", "key"):
        shutil.copy("%s/%s.%s" % (folder, name, end), PKI)
    return name


def test_an_idle_connection_ends_with_its_certificate():
    with Gateway(POLICY, UP=1) as g:
        who = short("brief", 4)
        with g.connect(who) as c, g.connect("ops") as other:
            equal(c.get("/ok").status, 200)
            equal(other.get("/ok").status, 200)
            assert c.is_closed(20), "it outlived its certificate"
            equal(other.get("/ok").status, 200)
        equal(g.metric("gateway_connections_total",
                       result="certificate_expired"), 1)
        assert refused(g.port, who), "an expired certificate came in"


def test_a_request_under_way_is_cut_in_the_end():
    up = Upstream().start()
    with Gateway(POLICY, UP=up.port) as g:
        with g.connect(short("brief-hang", 3)) as c:
            c.send(b"GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert c.is_closed(20), "a hanging request kept it open"
        g.wait_line("has expired since it connected")
    up.stop()


def rewrite(path, old, new):
    text = read(path).decode()
    assert old in text
    write(path, text.replace(old, new).encode())


def test_usr1_reloads_files_and_not_the_policy():
    with Gateway(POLICY, UP=1) as g:
        ca = g.dir + "/some.pem"
        write(ca, read(PKI + "/clients.pem"))
        rewrite(g.policy, PKI + "/clients.pem", ca)
        g.signal(signal.SIGHUP)
        g.wait_ready(1)
        equal(g.get("/ok", who="second-ops").status, 200)
        write(ca, read(PKI + "/ca.crt"))  # the second CA goes
        good = read(g.policy)
        write(g.policy, b"this is no policy")
        g.signal(signal.SIGUSR1)
        g.wait_ready(2)
        assert refused(g.port, "second-ops"), "the CA that went still counts"
        equal(g.get("/ok").status, 200)
        mark = g.mark()
        g.signal(signal.SIGHUP)
        g.wait_line("reload failed", since=mark)
        write(g.policy, good)
        write(ca, b"no certificate")
        mark = g.mark()
        g.signal(signal.SIGUSR1)
        g.wait_line("reload failed", "client_ca", since=mark)
        equal(g.get("/ok").status, 200)
