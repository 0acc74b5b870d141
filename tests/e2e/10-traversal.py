"""Traversal in every encoding never reaches the upstream: its log says so."""

from gw import Gateway, Nginx, equal, until

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@NGINX@" }
gateway.any("/files/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path } },
  handle = app:to "/pub/{path}" })
gateway.get("/one/{name}", { authorize = id.anyone,
  validate = { path = { name = { type = "string" } } },
  handle = app:to "/one/{name}" })
gateway.get("/as-is/{path...}", { authorize = id.anyone,
  validate = { path = { path = { type = "string" } } }, handle = app })
gateway.get("/end", { authorize = id.anyone, handle = app:to "/end" })
"""

TAILS = """
../secret
..
.
./x
a/../../secret
a/./b
a//b
//a
/etc/passwd
%2e%2e/secret
%2E%2e/secret
.%2e/secret
%2e./secret
..%2fsecret
..%2Fsecret
%2e%2e%2fsecret
a%2fb
..%5csecret
..\\secret
a\\..\\..\\secret
%5c..%5csecret
..%c0%afsecret
..%c1%9csecret
%c0%ae%c0%ae/secret
..%e0%80%afsecret
%u002e%u002e/secret
..;/secret
..;x=1/secret
a;b/../../secret
a%00/../../secret
a%00.txt
a%0a
a%0d%0aX-Evil:%201
a%7f
a%01
%
%2
%zz
a%
a%2
%ff
%ed%a0%80
\xff
a#b
..#
%23/../x
a b
a\tb
"""

# What a second decoding would turn into traversal arrives as it was meant.
LITERAL = {
    "%252e%252e/secret": "%252e%252e/secret",
    "..%252fsecret": "..%252fsecret",
    "a%2525": "a%2525",
    "...": "...",
    "..a": "..a",
    "a..": "a..",
    "%61%62c": "abc",
    "%C3%A4": "%C3%A4",
    "a%20b": "a%20b",
}


class Both(Gateway):
    def __init__(self):
        self.nginx = Nginx()
        super().__init__(POLICY, NGINX=self.nginx.port)

    def stop(self):
        self.nginx.stop()
        return super().stop()

    def one(self, target):
        """The status, for bytes no client library would send."""
        data = b"GET " + target.encode("latin-1") + (
            b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answers, closed = self.raw(data)
        assert closed, "%r: still open" % target
        assert len(answers) == 1, "%r: %r" % (target, answers)
        return answers[0].status

    def reached(self):
        """What nginx has seen since the last time (/end marks the end)."""
        before = self.nginx.targets().count("/end")
        equal(self.get("/end").status, 200)
        until(lambda: self.nginx.targets().count("/end") > before,
              "nginx logs /end")
        seen = self.nginx.targets()
        ends = [i for i, t in enumerate(seen) if t == "/end"]
        first = ends[-2] + 1 if len(ends) > 1 else 0
        return seen[first:-1]


def setup():
    g = Both()
    g.reached()
    return g


def refuse(g, prefix, tails):
    wrong = []
    for tail in tails:
        status = g.one(prefix + tail)
        if status not in (400, 404, 422):
            wrong.append("%r: %d" % (prefix + tail, status))
    seen = g.reached()
    assert not wrong and not seen, "answered: %r\nreached nginx: %r" % (wrong,
                                                                        seen)


def tails():
    return [t.encode().decode("unicode_escape") if "\\x" in t or "\\t" in t
            else t.replace("\\\\", "\\") for t in TAILS.strip().split("\n")]


def test_below_a_tail_capture(g):
    refuse(g, "/files/", tails())


test_below_a_tail_capture.timeout = 60


def test_below_a_capture_of_one_segment(g):
    refuse(g, "/one/", tails())


test_below_a_capture_of_one_segment.timeout = 60


def test_where_the_path_goes_on_as_it_is(g):
    refuse(g, "/as-is/", tails())


test_where_the_path_goes_on_as_it_is.timeout = 60


def test_proc_self_root(g):
    refuse(g, "", [
        "/proc/self/root/etc/passwd", "//proc/self/root/etc/passwd",
        "/files/../proc/self/root/etc/passwd",
        "/files//proc/self/root/etc/passwd",
        "/files/%2fproc/self/root/etc/passwd",
        "/files/..%2f..%2fproc%2fself%2froot%2fetc%2fpasswd",
        "/files/%2e%2e/%2e%2e/proc/self/root/etc/passwd",
        "/%2e%2e/files/x", "/./files/x", "/files/../files/x",
        "/%66iles/..%2fx", "/..", "/.", "/../", "//", "/files//x", "files/x",
        "*", "../files/x", "?/files/x", "\\files\\x", ""])


def test_absolute_form_is_no_way_round(g):
    refuse(g, "", ["http://localhost/files/../secret",
                   "https://localhost/files/..%2fsecret",
                   "https://localhost//files/x", "ftp://localhost/files/x",
                   "https://localhost/files/%2e%2e/secret",
                   "https:/files/x", "https://"])


def test_a_curl_that_does_not_tidy_up(g):
    out = g.curl("--path-as-is", "-w", "%{http_code}", "-o", "/dev/null",
                 g.url("/files/../../etc/passwd")).out
    equal(out, "400")
    equal(g.reached(), [])


def test_what_looks_like_traversal_and_is_none(g):
    for tail, target in LITERAL.items():
        equal(g.one("/as-is/" + tail), 200, tail)
        got = g.reached()
        equal([t.lower() for t in got], ["/as-is/" + target.lower()], tail)
