"""Routes by host and by listener; several listeners, IPv6, several workers."""

import socket

from gw import Client, Gateway, build, equal, free_port, until

POLICY = """
gateway.listen { name = "second", address = "127.0.0.1:@SECOND@",
  certificate = "@PKI@/rsa-server.crt", key = "@PKI@/rsa-server.key",
  client_ca = "@PKI@/second-ca.crt", explain = true }
gateway.get("/who", { authorize = id.anyone, host = "a.example.org",
  handle = function() return gateway.text "a" end })
gateway.get("/who", { authorize = id.anyone, host = "b.example.org",
  handle = function() return gateway.text "b" end })
gateway.get("/who", { authorize = id.anyone,
  handle = function() return gateway.text "any" end })
gateway.get("/only", { authorize = id.anyone, listener = "second",
  handle = function() return gateway.text "second" end })
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""


class Two(Gateway):
    def __init__(self):
        self.second = free_port()
        super().__init__(POLICY, workers=2, listen="host_check = false",
                         SECOND=self.second)


def setup():
    return Two()


def test_routes_by_host(g):
    for host, want in (("a.example.org", "a"), ("A.Example.ORG", "a"),
                       ("a.example.org:8443", "a"), ("a.example.org.", "a"),
                       ("a.example.org.:8443", "a"), ("a.example.org:", "a"),
                       ("b.example.org", "b"),
                       ("c.example.org", "any"), ("localhost", "any"),
                       ("a.example.org.evil", "any")):
        equal(g.get("/who", [("Host", host)]).text, want, host)


def test_the_target_names_the_host_too(g):
    with g.connect() as c:
        c.send(build("GET", "https://b.example.org/who",
                     host="b.example.org"))
        equal(c.response().text, "b")


def test_routes_by_listener(g):
    equal(g.get("/only").status, 404)
    with Client(g.second, "second-ops") as c:
        equal(c.get("/only").text, "second")
        equal(c.get("/ok").text, "fine")


def test_each_listener_has_its_own_ca(g):
    equal(g.get("/ok", who="ops").status, 200)
    try:
        with Client(g.second, "ops") as c:
            c.send(build("GET", "/ok"))
            assert not c.response(), "the second listener knows that CA"
    except (OSError, EOFError):
        pass


def test_every_worker_serves(g):
    """Both workers take connections from the same socket."""
    clients = [g.connect() for _ in range(40)]
    for c in clients:
        equal(c.get("/ok").status, 200)
        c.close()


def test_ipv6_and_any_address():
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(("::1", 0))
    except OSError:
        return  # a machine without IPv6 has nothing to show
    port = free_port()
    with Gateway("""
gateway.listen { address = "[::1]:@SIX@", certificate = "@PKI@/server.crt",
  key = "@PKI@/server.key", client_ca = "@PKI@/clients.pem" }
gateway.get("/ok", { authorize = id.anyone,
  handle = function(request) return gateway.text(request.remote) end })
""", SIX=port) as g:
        out = g.curl("--resolve", "localhost:%d:[::1]" % port,
                     "https://localhost:%d/ok" % port).out
        assert "::1" in out, out
        assert "127.0.0.1" in g.get("/ok").text, "remote"


def test_port_0_is_said_in_the_log():
    with Gateway("""
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen { address = "127.0.0.1:0", certificate = "@PKI@/server.crt",
  key = "@PKI@/server.key", client_ca = "@PKI@/clients.pem" }
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
""", head=False) as g:
        record = g.wait_record(event="ready")
        text = str(record)
        ports = [int(w) for w in text.replace("'", " ").replace(
            ":", " ").replace(",", " ").replace("]", " ").split()
            if w.isdigit() and 1024 < int(w) < 65536 and int(w) != g.pid]

        def served():
            for port in ports:
                try:
                    with Client(port) as c:
                        return c.get("/ok").status == 200
                except OSError:
                    pass
        until(served, "the port is in %s" % text, 3)
