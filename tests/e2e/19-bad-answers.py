"""An upstream's answer is parsed with the same distrust as a request."""

from gw import Gateway, Upstream, equal

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
                 "version", "big-head", "switch"):
        with g.connect() as c:
            r = c.get("/p/raw/" + name)
            if r.status != 502 or not r.complete:
                wrong.append("%s: %r" % (name, r))
            elif r.get("connection") != "close" and (
                    c.get("/ok").status != 200):
                wrong.append("%s: the connection is spoilt" % name)
    assert not wrong, "\n".join(wrong)


def test_a_malformed_chunk_is_a_cut(g):
    with g.connect() as c:
        c.send(b"GET /p/raw/bad-chunk HTTP/1.1\r\nHost: a\r\n\r\n")
        try:
            r = c.response()
            assert r.status == 502 or not r.complete, r
        except EOFError:
            pass


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
        c.send(b"GET /p/raw/continue HTTP/1.1\r\nHost: a\r\n\r\n")
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
