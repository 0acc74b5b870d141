"""HTTP/1.1 as RFC 9112 has it: keep-alive, pipelining, chunks, HEAD, Expect."""

import ssl

from gw import Gateway, Upstream, build, equal, one_of

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.any("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path },
               body = gateway.stream "4M" },
  handle = app:to "/internal/{path}" })
gateway.get("/n/{n}", { authorize = id.anyone,
  validate = { path = { n = gateway.integer(0, 10000) } },
  handle = function(request) return gateway.text(request.path.n .. "") end })
gateway.get("/slow/{n}", { authorize = id.anyone,
  validate = { path = { n = gateway.integer(0, 10000) } },
  handle = function(request) gateway.sleep(0.2)
    return gateway.text(request.path.n .. "") end })
gateway.post("/bytes", { authorize = id.anyone,
  validate = { body = gateway.bytes "64K" },
  handle = function(request) return gateway.text(request.body) end })
gateway.post("/ops", { authorize = id.ou "ops",
  validate = { body = gateway.stream "64K" },
  handle = app:to "/internal/x" })
gateway.get("/big/{n}", { authorize = id.anyone,
  validate = { path = { n = gateway.integer(0, 4000000) } },
  handle = function(request)
    return gateway.text(("x"):rep(request.path.n)) end })
"""


class Both(Gateway):
    def __init__(self):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port)

    def stop(self):
        self.up.stop()
        return super().stop()


def setup():
    return Both()


def test_keep_alive(g):
    with g.connect() as c:
        for n in range(50):
            equal(c.get("/n/%d" % n).text, str(n))
        for n in range(20):
            equal(c.get("/p/x%d" % n).json()["path"], "/internal/x%d" % n)


def test_pipelining_keeps_the_order(g):
    with g.connect() as c:
        c.send(b"".join(build("GET", ("/slow/%d" if n % 5 == 0 else "/n/%d")
                              % n) for n in range(20)))
        for n in range(20):
            equal(c.response().text, str(n))


def test_pipelining_of_many_small_ones(g):
    with g.connect() as c:
        c.send(b"".join(build("GET", "/n/%d" % n) for n in range(2000)))
        for n in range(2000):
            equal(c.response().text, str(n))


def test_pipelining_with_bodies(g):
    with g.connect() as c:
        c.send(b"".join(
            build("POST", "/bytes", body=b"a%d" % n) +
            build("POST", "/p/x", [("Transfer-Encoding", "chunked")],
                  b"2\r\nbb\r\n0\r\n\r\n") for n in range(10)))
        for n in range(10):
            equal(c.response().text, "a%d" % n)
            equal(c.response().json()["body"], "bb")


def test_an_error_ends_the_pipeline(g):
    answers, closed = g.raw(build("GET", "/n/1") + b"GET /n/2 HTTP/1.1\r\n\r\n"
                            + build("GET", "/n/3"))
    equal([r.status for r in answers], [200, 400])
    equal(answers[1].get("connection"), "close")
    assert closed, "still open"


def test_a_refusal_does_not_end_the_pipeline(g):
    with g.connect("guest") as c:
        c.send(build("GET", "/n/1") + build("GET", "/nothing") +
               build("POST", "/ops", body=b"hello") + build("GET", "/n/4"))
        equal([c.response().status for _ in range(2)], [200, 404])
        r = c.response()
        equal(r.status, 403)
        if r.get("connection") != "close":  # its body was skipped
            equal(c.response().text, "4")


def test_chunks_in(g):
    body = b"5\r\nhello\r\n1;x=y\r\n \r\n5\r\nworld\r\n0\r\n\r\n"
    for target in ("/p/x", "/bytes"):
        with g.connect() as c:
            r = c.request("POST", target, [("Transfer-Encoding", "chunked")],
                          body)
            text = r.json()["body"] if target == "/p/x" else r.text
            equal(text, "hello world", target)
            equal(c.get("/n/1").status, 200)


def test_chunks_in_one_byte_at_a_time(g):
    data = build("POST", "/p/x", [("Transfer-Encoding", "chunked")],
                 b"5\r\nhello\r\n6\r\n world\r\n0\r\nA: b\r\n\r\n")
    with g.connect() as c:
        for n in range(len(data)):
            c.send(data[n:n + 1])
        equal(c.response().json()["body"], "hello world")


def test_chunks_out(g):
    with g.connect() as c:
        for total, step in ((100000, 1000), (5, 1), (0, 1), (300000, 100000)):
            r = c.get("/p/chunked/%d/%d" % (total, step))
            assert r.complete and r.chunked, r
            equal(len(r.body), total)
        equal(c.get("/n/1").status, 200)


def test_an_upstream_body_that_ends_with_the_connection(g):
    with g.connect() as c:
        r = c.get("/p/raw/close")
        assert r.complete, r
        equal(r.text, "until the end")
        equal(c.get("/n/1").status, 200)


def test_head(g):
    with g.connect() as c:
        for target in ("/n/7", "/p/x", "/p/chunked/100", "/p/big/1000"):
            r = c.request("HEAD", target)
            equal(r.status, 200, target)
            equal(c.get("/n/8").text, "8", "after HEAD " + target)
        equal(c.request("HEAD", "/n/7").get("content-length"), "1")
        equal(c.request("HEAD", "/nothing").status, 404)
        equal(c.get("/n/8").text, "8")


def test_no_body_with_204_and_304(g):
    with g.connect() as c:
        r = c.get("/p/raw/no-body")
        equal((r.status, r.body), (204, b""))
        assert r.get("content-length") is None, r
        r = c.get("/p/raw/not-modified")
        equal((r.status, r.get("etag")), (304, '"x"'))
        equal(c.get("/n/1").status, 200)


def test_expect_100_continue(g):
    for target in ("/p/x", "/bytes"):
        with g.connect() as c:
            c.send(build("POST", target, [("Expect", "100-continue"),
                                          ("Content-Length", "5")]))
            equal(c.head().status, 100, target)
            c.send(b"hello")
            equal(c.response().status, 200, target)
            equal(c.get("/n/1").status, 200)


def test_expect_is_answered_without_the_body_when_refused(g):
    """The identity, the route, the type and the length: known before."""
    for who, target, fields, want in (
            ("guest", "/ops", [("Content-Length", "5")], 403),
            ("ops", "/nothing", [("Content-Length", "5")], 404),
            ("ops", "/n/1", [("Content-Length", "5")], 405),
            ("ops", "/bytes", [("Content-Length", "70000")], 413),
            ("ops", "/ops", [("Content-Length", "70000")], 413)):
        before = len(g.up.requests)
        with g.connect(who) as c:
            c.send(build("POST", target, [("Expect", "100-continue")] + fields))
            r = c.head()
            equal(r.status, want, target)
            c.body_of(r, "POST")
            equal(len(g.up.requests), before, "requests at the upstream")


def test_a_refused_body_is_not_taken_for_a_request(g):
    """After a refusal without reading the body: skipped whole, or closed."""
    with g.connect("guest") as c:
        evil = build("GET", "/n/666")
        c.send(build("POST", "/ops", body=evil))
        equal(c.response().status, 403)
        c.send(build("GET", "/n/1"))
        try:
            equal(c.response().text, "1")
        except EOFError:
            pass


def test_curl_expects_too(g):
    done = g.curl("-H", "Expect: 100-continue", "--data-binary", "@-",
                  g.url("/bytes"), input=b"z" * 60000)
    equal(len(done.out), 60000)


def test_connection_close(g):
    with g.connect() as c:
        r = c.get("/n/1", [("Connection", "close")])
        equal((r.status, r.get("connection")), (200, "close"))
        assert c.is_closed() and c.closed == "end", c.closed
    with g.connect() as c:
        r = c.get("/p/x", [("Connection", "close, x-y")])
        equal((r.status, r.get("connection")), (200, "close"))
        assert c.is_closed() and c.closed == "end", c.closed


def test_http_1_0(g):
    answers, closed = g.raw(b"GET /n/1 HTTP/1.0\r\nHost: localhost\r\n\r\n")
    equal([(r.status, r.text) for r in answers], [(200, "1")])
    equal(closed, "end")
    with g.connect() as c:
        c.send(b"GET /n/1 HTTP/1.0\r\nHost: localhost\r\n"
               b"Connection: keep-alive\r\n\r\n")
        r = c.response()
        equal(r.status, 200)
        if r.get("connection") == "keep-alive":
            equal(c.get("/n/2").text, "2")


def test_http_1_0_gets_no_chunks(g):
    with g.connect() as c:
        c.send(b"GET /p/chunked/100000 HTTP/1.0\r\nHost: localhost\r\n\r\n")
        r = c.response()
        equal(r.get("transfer-encoding"), None)
        assert r.complete, r
        equal(len(r.body), 100000)
        equal(c.closed, "end")


def test_http_1_0_gets_no_100(g):
    with g.connect() as c:
        c.send(b"POST /bytes HTTP/1.0\r\nHost: localhost\r\n"
               b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi")
        equal(c.head().status, 200)


def test_a_request_one_byte_at_a_time(g):
    with g.connect() as c:
        for byte in build("GET", "/n/5", [("A", "b" * 100)]):
            c.send(bytes([byte]))
        equal(c.response().text, "5")


def test_methods_of_any_arrive(g):
    with g.connect() as c:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            r = c.request(method, "/p/x", body=b"" if method in (
                "POST", "PUT", "PATCH") else None)
            equal(r.status, 200, method)
            equal(r.json()["method"], method)


def test_options_star_and_other_methods(g):
    for data in (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
                 b"PURGE /n/1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
                 b"TRACE /p/x HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        answers, _ = g.raw(data + build("GET", "/n/1",
                                        [("Connection", "close")]))
        one_of(answers[0].status, (200, 204, 400, 404, 405, 501), repr(data))


def test_big_answers_from_lua(g):
    with g.connect() as c:
        for size in (0, 1, 16383, 16384, 16385, 65536, 1000000, 4000000):
            r = c.get("/big/%d" % size)
            assert r.complete, r
            equal(len(r.body), size)


def test_date_and_no_server_version(g):
    r = g.get("/n/1")
    assert r.get("date", ), r
    assert not any(ch.isdigit() for ch in r.get("server") or ""), r


def test_a_client_that_closes_its_half(g):
    """Everything was asked; the answer still comes (RFC 9112 9.6)."""
    with g.connect() as c:
        c.send(build("GET", "/slow/3", [("Connection", "close")]))
        try:
            raw = c.sock.unwrap()
            raw.close()
        except (ssl.SSLError, OSError):
            pass
    equal(g.get("/n/1").status, 200)
