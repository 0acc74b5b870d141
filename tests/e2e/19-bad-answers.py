"""An upstream's answer is parsed with the same distrust as a request."""

from gw import Gateway, Upstream, build, equal, until

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.get("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path } },
  handle = app:to "/internal/{path}" })
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
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


def test_malformed_heads_are_502(g):
    wrong = []
    for name in ("cl-te", "two-cl", "bad-cl", "te-twice", "te-tab", "te-gzip",
                 "bare-lf", "bare-cr", "fold", "space-colon", "nul", "junk",
                 "version", "big-head", "switch", "two-cl-alike", "cl-list",
                 "cl-huge", "cl-empty", "te-identity", "te-two", "te-1.0",
                 "te-empty", "control", "del", "control-reason", "no-colon",
                 "no-name", "odd-name", "status-2", "status-4", "status-0",
                 "status-6", "status-text", "status-sign", "no-status",
                 "two-blanks", "blank-first", "crlf-first", "lower-case",
                 "version-2", "icy", "http-0.9", "no-head", "flood",
                 "interim-body", "interim-chunks", "interim-alone",
                 "many-fields", "many-options"):
        with g.connect() as c:
            r = c.get("/p/raw/" + name)
            if r.status != 502 or not r.complete:
                wrong.append("%s: %r" % (name, r))
            elif r.get("connection") != "close" and (
                    c.get("/ok").status != 200):
                wrong.append("%s: the connection is spoilt" % name)
    assert not wrong, "\n".join(wrong)


def test_malformed_chunks_are_a_cut(g):
    """What was good may have gone on; the client must see that it is broken."""
    for name in ("bad-chunk", "chunk-lf", "chunk-long", "chunk-sign",
                 "chunk-size", "chunk-extension", "chunk-trailer"):
        with g.connect() as c:
            c.send(build("GET", "/p/raw/" + name))
            try:
                r = c.response()
                assert r.status == 502 or not r.complete, "%s: %r" % (name, r)
            except EOFError:
                pass


def test_good_answers_in_odd_clothes(g):
    for name, status, text in (
            ("no-reason", 200, "hello"), ("obs-text", 200, "hello"),
            ("empty-value", 200, "hello"), ("1.0", 200, "hello"),
            ("close", 200, "until the end"), ("trailers", 200, "hello"),
            ("no-body", 204, ""), ("not-modified", 304, ""),
            ("continue", 200, "hello")):
        with g.connect() as c:
            r = c.get("/p/raw/" + name)
            equal((r.status, r.text, r.complete), (status, text, True), name)
            assert "evil" not in repr(r), r
            equal(c.get("/ok").status, 200, name)


def test_an_untidy_connection_is_not_used_again(g):
    """More bytes than promised, or after an answer without a body: cut off,
    and the next request goes over another connection."""
    for name, method in (("more", "GET"), ("more-chunks", "GET"),
                         ("more-204", "GET"), ("more-204-length", "GET"),
                         ("more-304", "GET"), ("two", "GET"), ("more", "HEAD"),
                         ("1.0", "GET"), ("two-cl", "GET"), ("flood", "GET"),
                         ("bad-chunk", "GET"), ("interim-body", "GET"),
                         ("switch", "GET")):
        before = len(g.up.requests)
        with g.connect() as c:
            c.send(build(method, "/p/raw-open/" + name))
            try:
                r = c.response(method)
                assert b"evil" not in r.body, "%s: %r" % (name, r)
            except EOFError:
                pass
        until(lambda: len(g.up.requests) > before, "the upstream was asked")
        used = g.up.requests[before].connection
        for who in ("ops", "guest"):
            r = g.get("/p/x", who=who)
            equal((r.status, r.json()["path"]), (200, "/internal/x"), name)
            assert r.json()["connection"] != used, "%s: used again" % name


def test_a_tidy_connection_is_used_again(g):
    for name in ("empty-value", "no-body", "not-modified", "continue",
                 "trailers"):
        before = len(g.up.requests)
        with g.connect() as c:
            c.get("/p/raw-open/" + name)
            used = g.up.requests[before].connection
            equal(c.get("/p/x").json()["connection"], used, name)


def test_what_follows_an_answer_is_nobodys(g):
    """Bytes behind one answer must not become the next client's answer."""
    for _ in range(3):
        with g.connect() as c:
            r = c.get("/p/raw/two")
            if r.status == 200:
                equal(r.text, "hello")
            for _ in range(3):
                again = c.get("/p/x")
                equal(again.status, 200)
                assert b"evil" not in again.body, again
            equal(g.get("/p/x", who="guest").json()["path"], "/internal/x")


def test_interim_answers_are_skipped(g):
    with g.connect() as c:
        c.send(b"GET /p/raw/continue HTTP/1.1\r\nHost: localhost\r\n\r\n")
        r = c.response()
        equal((r.status, r.text), (200, "hello"))
        equal(c.get("/ok").status, 200)


def test_what_went_wrong_is_in_the_log_only(g):
    mark = g.mark()
    r = g.get("/p/raw/two-cl")
    equal(r.status, 502)
    equal(r.get("content-type"), "application/problem+json")
    assert "malformed" not in r.text, r
    g.wait_line("upstream", "malformed", since=mark)
