"""Host must be the name that TLS was made for; headers that a listener strips;
limits on what a client sends ahead."""

from gw import Client, Gateway, Upstream, build, equal, until

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.any("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path },
               body = gateway.stream "64M" },
  handle = app:to "/internal/{path}" })
gateway.get("/raw", { authorize = id.anyone, handle = function(request)
  return gateway.text(tostring(request.raw.headers["x-user"] ~= nil)) end })
gateway.get("/slow", { authorize = id.anyone, handle = function()
  gateway.sleep(0.5)
  return gateway.text "slow" end })
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
gateway.admin { address = "127.0.0.1:@ADMIN@" }
"""


class Both(Gateway):
    def __init__(self, listen=""):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port, listen=listen)

    def stop(self):
        self.up.stop()
        return super().stop()


def setup():
    return Both()


def ask(g, host, name="localhost", target="/ok"):
    with Client(g.port, "ops", name=name) as c:
        c.send(build("GET", target, host=host))
        r = c.response()
        if r.get("connection") != "close":  # it may ask again, rightly
            equal(c.get("/ok", [("Host", name)]).status, 200)
        return r.status


def test_host_unlike_sni(g):
    for host, want in (("localhost", 200), ("LocalHost", 200),
                       ("localhost:9", 200), ("localhost.", 200),
                       ("localhost:", 200), ("other", 421),
                       ("localhost.evil", 421), ("evil.localhost", 421),
                       ("127.0.0.1", 421), ("[::1]", 421), ("localhos", 421)):
        equal(ask(g, host), want, host)
    equal(ask(g, "other", target="https://other/ok"), 421)
    equal(ask(g, "localhost", target="https://localhost/ok"), 200)


def test_misdirected_before_any_route(g):
    """421 for a path without a route, too: it tells nothing of them."""
    mark = g.mark()
    equal(ask(g, "other", target="/nothing"), 421)
    line = g.wait_record(event="decision", status=421)
    equal((line["stage"], line["where"]), ("route", "headers"))
    del mark


def test_without_sni_any_host_is_right(g):
    for host in ("localhost", "other", "127.0.0.1:8443"):
        with Client(g.port, "ops", name="127.0.0.1") as c:  # an IP: no SNI
            c.send(build("GET", "/ok", host=host))
            equal(c.response().status, 200, host)
    with Client(g.port, "ops") as c:  # HTTP/1.0 need not say a host
        c.send(b"GET /ok HTTP/1.0\r\n\r\n")
        equal(c.response().status, 200)


def test_a_listener_may_leave_it_out():
    with Both("host_check = false") as g:
        equal(ask(g, "other"), 200)


def test_headers_that_a_listener_strips():
    with Both('strip_headers = { "X-User", "x-team-*", "X-Kept" }') as g:
        for name in ("X-User", "x-user", "X_User", "x.user", "X-Team-A",
                     "X_TEAM_", "x-team-a-b"):
            r = g.get("/p/x", [(name, "forged-value")])
            equal((r.status, "forged-value" in r.text), (200, False), name)
            with g.connect() as c:
                r = c.request("POST", "/p/x", [
                    ("Transfer-Encoding", "chunked")],
                    b"1\r\nx\r\n0\r\n%s: forged-value\r\n\r\n" % name.encode())
                equal((r.status, "forged-value" in r.text), (200, False), name)
        seen = g.get("/p/x", [("X-Users", "1"), ("X-Use", "2"),
                              ("X-Team", "3")]).json()["headers"]
        equal((seen["x-users"], seen["x-use"], seen["x-team"]),
              ("1", "2", "3"))
        equal(g.get("/raw", [("X-User", "a")]).text, "false")
        equal(g.get("/p/headers").get("x-kept"), None, "from an upstream")


def test_what_is_sent_ahead_is_limited():
    """Beyond `pipeline`, reading waits; nothing is lost."""
    for limit in ("0", "1000", '"64K"'):
        with Both("limits = { pipeline = %s }" % limit) as g:
            with g.connect() as c:
                data = build("GET", "/slow")
                for n in range(300):
                    data += build("GET", "/ok", [("A", "b" * 500)])
                c.send(data)
                equal(c.response().text, "slow")
                for n in range(300):
                    equal(c.response().text, "fine")
                c.send(build("POST", "/p/x", body=b"x" * 3000000))
                equal(c.response().json()["bytes"], 3000000)
            assert g.metric("gateway_limits_total", limit="pipeline") >= 1


def test_a_client_that_leaves_is_noticed_all_the_same():
    with Both("limits = { pipeline = 0 }") as g:
        c = g.connect()
        c.send(build("GET", "/p/hang"))
        until(lambda: g.up.open, "the upstream is asked")
        c.close()
        until(lambda: not g.up.open or g.metric(
            "gateway_requests_in_progress") == 0, "it is given up")


def test_a_big_head_fits_where_little_may_be_pipelined():
    with Both('limits = { pipeline = 0, head_size = "200K" }') as g:
        with g.connect() as c:
            for n in range(3):
                equal(c.get("/ok", [("A", "b" * 190000)]).status, 200)


def test_one_request_behind_an_error_is_not_served(g):
    for bad in (b"GET /p/a;b HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"GET /p/x HTTP/1.1\r\nHost: localhost\r\nA_b: c\r\n\r\n",
                b"GET /p/x HTTP/1.1\r\nHost: a b\r\n\r\n",
                b"GET /p/x HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Length: 3\r\n\r\nabc",
                b"FROB /p/x HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        before = len(g.up.requests)
        answers, closed = g.raw(bad + build("GET", "/p/after"))
        equal((len(answers), len(g.up.requests)), (1, before), repr(bad))
        assert closed and answers[0].status in (400, 501), answers


def test_chunk_extensions_are_limited_in_all(g):
    before = g.metric("gateway_limits_total", limit="chunk_framing")
    with g.connect() as c:
        c.send(build("POST", "/p/x", [("Transfer-Encoding", "chunked")]))
        for _ in range(30):
            if not c.send(b"1;" + b"a" * 4000 + b"\r\nx\r\n"):
                break
        answers, closed = c.drain()
    equal([r.status for r in answers], [400])
    assert closed, "still open"
    equal(g.metric("gateway_limits_total", limit="chunk_framing"), before + 1)
    with g.connect(timeout=40) as c:  # chunks of one byte: dear, and allowed
        r = c.request("POST", "/p/x", [("Transfer-Encoding", "chunked")],
                      b"1\r\nx\r\n" * 100000 + b"0\r\n\r\n")
        equal((r.status, r.json()["bytes"]), (200, 100000))


test_chunk_extensions_are_limited_in_all.timeout = 60


def test_too_many_parameters_are_counted(g):
    before = g.metric("gateway_limits_total", limit="query_params")
    target = "/ok?" + "&".join("a%d" % n for n in range(101))
    equal(g.get(target).status, 400)
    until(lambda: g.metric("gateway_limits_total",
                           limit="query_params") == before + 1, "counted")


def counted(g, limit, name="gateway_limits_total", label="limit"):
    until(lambda: g.metric(name, **{label: limit}) >= 1,
          "%s is counted" % limit)


def test_each_limit_answers_and_counts():
    """What a client runs into is told to it, and shows in the metrics."""
    limits = ("head_size = 2000, uri_size = 500, head_fields = 20,"
              " head = 0.5, body_idle = 0.5, idle = 0.7, write_idle = 0.5,"
              " requests = 3, query_params = 3, per_identity = 2")
    with Both("limits = { %s }" % limits) as g:
        for limit, status, data in (
                ("uri", 414, build("GET", "/p/" + "x" * 500)),
                ("head", 431, build("GET", "/ok", [("A", "b" * 2000)])),
                ("head", 431, build("GET", "/ok", [("A", "b")] * 20)),
                ("head_time", 408, b"GET /ok HTTP/1.1\r\nHost: local"),
                ("body", 413, build("POST", "/p/x", [
                    ("Content-Length", str(65 << 20))])),
                ("body_time", 408, build("POST", "/p/x", [
                    ("Content-Length", "5")]) + b"abc"),
                ("query_params", 400, build("GET", "/ok?a&b&c&d", [
                    ("Connection", "close")]))):
            answers, closed = g.raw(data)
            equal([r.status for r in answers], [status], limit)
            assert closed, "%s: still open" % limit
            counted(g, limit)
        with g.connect() as c:
            equal(c.get("/ok").status, 200)
            assert c.is_closed(), "idle: still open"
        counted(g, "idle")
        with g.connect() as c:
            equal([c.get("/ok").get("connection") for _ in range(3)],
                  [None, None, "close"])
        counted(g, "requests_per_connection")
        held = [g.connect(), g.connect()]
        equal([c.get("/ok").status for c in held], [200, 200])
        equal(g.get("/ok").status, 429)
        counted(g, "over_identity_limit", "gateway_connections_total",
                "result")
        for c in held:
            c.close()
        until(lambda: g.metric("gateway_connections") == 0, "all are gone")
        with g.connect(rcvbuf=4096) as c:
            c.send(build("GET", "/p/big/64M"))
            counted(g, "write_time")


test_each_limit_answers_and_counts.timeout = 40
