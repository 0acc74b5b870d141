"""Limits below HTTP: handshakes, connections, connections of one client."""

import time
import socket

from gw import SOCKET_S, Client, Gateway, equal, one_of, until

OK = """
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
gateway.admin { address = "127.0.0.1:@ADMIN@" }
"""


def tcp(g):
    return socket.create_connection(("127.0.0.1", g.port), SOCKET_S)


def ends(sock):
    """Whether the other side closes (reset counts) within the time limit."""
    try:
        while sock.recv(4096):
            pass
        return True
    except ConnectionError:
        return True
    except (socket.timeout, TimeoutError):
        return False


def test_a_silent_client_is_closed():
    with Gateway(OK, listen="limits = { handshake = 0.5 }") as g:
        silent, half = tcp(g), tcp(g)
        half.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01")
        assert ends(silent), "still open"
        assert ends(half), "half a ClientHello: still open"
        equal(g.get("/ok").status, 200)
        assert g.metric("gateway_tls_handshakes_total", result="timeout") >= 2


def test_a_client_that_drips_its_handshake_is_closed():
    with Gateway(OK, listen="limits = { handshake = 0.5 }") as g:
        sock = tcp(g)
        sock.settimeout(0.05)
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")

        def closed():
            try:
                sock.sendall(b"\x01")
                return sock.recv(1) == b""
            except (socket.timeout, TimeoutError):
                return False
            except ConnectionError:
                return True
        until(closed, "the connection is closed", 5)


HELLO = bytes.fromhex("160301020001")  # the start of a ClientHello


def test_handshakes_under_way_are_limited():
    with Gateway(OK, listen="limits = { handshakes = 3, handshake = 30 }"
                 ) as g:
        with g.connect() as known:
            silent = [tcp(g) for _ in range(20)]  # these take no slot
            held = [tcp(g) for _ in range(3)]
            for sock in held:
                sock.sendall(HELLO)
            until(lambda: g.metric("gateway_tls_handshakes_in_progress") == 3,
                  "three handshakes are under way")
            equal(known.get("/ok").status, 200, "a known client")
            # a stale handshake gives way to one that waits
            begun = time.monotonic()
            equal(g.get("/ok").status, 200, "a new client")
            assert time.monotonic() - begun < 4, "it waited too long"
            assert g.metric("gateway_connections_total",
                            result="over_handshake_limit") >= 1
        for sock in held + silent:
            sock.close()
        until(lambda: g.metric("gateway_tls_handshakes_in_progress") == 0,
              "none is under way")


def test_connections_of_one_worker_are_limited():
    with Gateway(OK, listen="limits = { connections = 4 }") as g:
        held = [g.connect() for _ in range(4)]
        for c in held:
            equal(c.get("/ok").status, 200)
        over(g)
        held.pop().close()
        until(lambda: works(g), "a place is free again")
        for c in held:
            c.close()


def test_connections_of_one_identity_are_limited():
    with Gateway(OK, listen="limits = { per_identity = 2 }") as g:
        held = [g.connect("ops") for _ in range(2)]
        for c in held:
            equal(c.get("/ok").status, 200)
        over(g)
        equal(g.get("/ok", who="guest").status, 200, "another identity")
        held.pop().close()
        until(lambda: works(g), "a place is free again")
        assert g.metric("gateway_connections_total",
                        result="over_identity_limit") >= 1


def over(g):
    """One connection too many: closed, or told so and closed."""
    try:
        with g.connect("ops") as c:
            c.send(b"GET /ok HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answers, closed = c.drain()
            assert closed, "it stays open"
            for r in answers:
                one_of(r.status, (429, 503))
    except OSError:
        pass


def works(g):
    try:
        return g.get("/ok").status == 200
    except (OSError, EOFError):
        return False


def test_requests_of_one_connection_are_limited():
    with Gateway(OK, listen="limits = { requests = 3 }") as g:
        with g.connect() as c:
            for n in range(3):
                r = c.get("/ok")
                equal(r.status, 200)
            equal(r.get("connection"), "close", "the last answer")
            assert c.is_closed(), "still open"


def test_many_idle_connections_cost_little():
    with Gateway(OK, listen="limits = { per_identity = 1000 }") as g:
        held = [Client(g.port, "ops") for _ in range(300)]
        for c in held:
            equal(c.get("/ok").status, 200)
        one_of(g.metric("gateway_connections"), (300, 301))
        for c in held:
            c.close()
        until(lambda: g.metric("gateway_connections") <= 1, "all are gone")


test_many_idle_connections_cost_little.timeout = 40
