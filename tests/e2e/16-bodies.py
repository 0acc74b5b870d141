"""Bodies that are not JSON: bytes are held and bounded, streams flow."""

from gw import Gateway, Upstream, build, equal, until

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.post("/bytes", { authorize = id.anyone,
  validate = { body = gateway.bytes("1K", "application/octet-stream") },
  handle = function(request) return gateway.text(#request.body .. "") end })
gateway.put("/any", { authorize = id.anyone,
  validate = { body = gateway.bytes "1K" }, handle = app:to "/internal/any" })
gateway.post("/stream", { authorize = id.anyone,
  validate = { body = gateway.stream "64K" },
  handle = app:to "/internal/stream" })
gateway.post("/early", { authorize = id.anyone,
  validate = { body = gateway.stream "64M" },
  handle = app:to "/internal/early" })
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""
BINARY = [("Content-Type", "application/octet-stream")]


class Both(Gateway):
    def __init__(self):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port)

    def stop(self):
        self.up.stop()
        return super().stop()


def setup():
    return Both()


def test_bytes(g):
    body = bytes(range(256)) * 4
    equal(g.request("POST", "/bytes", BINARY, body).text, "1024")
    equal(g.request("POST", "/bytes", BINARY, body + b"x").status, 413)
    equal(g.request("POST", "/bytes", BINARY, b"").text, "0")
    equal(g.request("POST", "/bytes", [("Content-Type", "text/plain")],
                    body).status, 415)
    equal(g.request("POST", "/bytes", [], body).status, 415)


def test_any_type(g):
    r = g.request("PUT", "/any", [("Content-Type", "x/y")], b"hello")
    equal((r.status, r.json()["body"]), (200, "hello"))
    equal(r.json()["headers"]["content-type"], "x/y")
    equal(g.request("PUT", "/any", [], b"hello").status, 200)


def test_a_stream_has_a_limit(g):
    equal(g.request("POST", "/stream", BINARY, b"x" * 65536).json()["bytes"],
          65536)
    before = len(g.up.requests)
    r = g.request("POST", "/stream", BINARY, b"x" * 65537)
    equal(r.status, 413)
    equal(len(g.up.requests), before, "requests at the upstream")


def test_a_chunked_stream_over_its_limit(g):
    """The upstream must see a cut, never a whole body."""
    before = len(g.up.requests)
    with g.connect() as c:
        c.send(build("POST", "/stream", [("Transfer-Encoding", "chunked")]))
        for _ in range(100):
            if not c.send(b"400\r\n" + b"x" * 1024 + b"\r\n"):
                break
        c.send(b"0\r\n\r\n")
        answers, closed = c.drain()
    equal([r.status for r in answers], [413])
    assert closed, "still open"
    until(lambda: all(not r.done for r in g.up.requests[before:]),
          "nothing complete at the upstream")


def test_a_stream_starts_before_it_ends(g):
    before = len(g.up.requests)
    with g.connect() as c:
        c.send(build("POST", "/stream", [("Content-Length", "10")]) + b"hello")
        until(lambda: len(g.up.requests) > before, "the upstream is asked")
        until(lambda: g.up.requests[-1].body_bytes == 5, "half has arrived")
        c.send(b"world")
        equal(c.response().json()["body"], "helloworld")


def test_a_client_that_goes_away_in_the_middle(g):
    before = len(g.up.requests)
    c = g.connect()
    c.send(build("POST", "/stream", [("Content-Length", "10")]) + b"hello")
    until(lambda: len(g.up.requests) > before, "the upstream is asked")
    c.close()
    until(lambda: not g.up.open or g.up.requests[-1].connection not in [
        x.number for x in g.up.open], "the upstream connection is closed")
    assert not g.up.requests[-1].done, "the upstream saw a whole body"


def test_a_chunked_client_that_goes_away(g):
    before = len(g.up.requests)
    c = g.connect()
    c.send(build("POST", "/stream", [("Transfer-Encoding", "chunked")])
           + b"5\r\nhello\r\n")
    until(lambda: len(g.up.requests) > before, "the upstream is asked")
    c.close()
    until(lambda: g.up.requests[-1].connection not in [
        x.number for x in g.up.open], "the upstream connection is closed")
    assert not g.up.requests[-1].done, "the upstream saw a whole body"


def test_an_upstream_that_answers_early(g):
    """Its answer arrives although the body was not read."""
    with g.connect() as c:
        c.send(build("POST", "/early", [("Content-Length", "30000000")])
               + b"x" * 1000)
        equal(c.response().status, 409)
    with g.connect() as c:
        c.sock.settimeout(20)
        c.send(build("POST", "/early", [("Content-Length", "8000000")]))
        for _ in range(800):
            if not c.send(b"x" * 10000):
                break
        equal(c.response().status, 409)
    equal(g.get("/ok").status, 200)
