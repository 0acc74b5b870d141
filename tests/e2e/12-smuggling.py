"""Requests that two parsers could read in two ways are refused and closed."""

from gw import Gateway, Upstream, build, equal, until

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.any("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path },
               body = gateway.stream "1M" },
  handle = app:to "/internal/{path}" })
gateway.get("/g/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path } },
  handle = app:to "/internal/{path}" })
gateway.post("/local", { authorize = id.anyone,
  validate = { body = gateway.bytes "1M" },
  handle = function(request) return gateway.text(#request.body .. "\\n") end })
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""


class Both(Gateway):
    def __init__(self):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port, listen="host_check = false")

    def stop(self):
        self.up.stop()
        return super().stop()


def setup():
    return Both()


POST = "POST /p/x HTTP/1.1\r\nHost: localhost\r\n"
GET = "GET /g/x HTTP/1.1\r\nHost: localhost\r\n"
EVIL = "GET /g/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


def chunked(body):
    return POST + "Transfer-Encoding: chunked\r\n\r\n" + body


def framing(fields, body="0\r\n\r\n"):
    return POST + fields + "\r\n" + body + EVIL


FRAMING = {
    "CL and TE": framing("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
    "TE and CL": framing("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
    "CL 0 and TE": framing(
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"),
    "two CL": framing("Content-Length: 5\r\nContent-Length: 6\r\n"),
    "two CL alike": framing("Content-Length: 5\r\nContent-Length: 5\r\n"),
    "CL list": framing("Content-Length: 5, 5\r\n"),
    "CL +": framing("Content-Length: +5\r\n"),
    "CL -": framing("Content-Length: -5\r\n"),
    "CL hex": framing("Content-Length: 0x5\r\n"),
    "CL blank inside": framing("Content-Length: 5 5\r\n"),
    "CL empty": framing("Content-Length: \r\n"),
    "CL fraction": framing("Content-Length: 5.0\r\n"),
    "CL letters": framing("Content-Length: 5a\r\n"),
    "CL overflow": framing("Content-Length: 18446744073709551621\r\n"),
    "CL minus zero": framing("Content-Length: -0\r\n"),
    "TE chunked twice": framing("Transfer-Encoding: chunked, chunked\r\n"),
    "two TE": framing(
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    "TE gzip, chunked": framing("Transfer-Encoding: gzip, chunked\r\n"),
    "TE chunked, gzip": framing("Transfer-Encoding: chunked, gzip\r\n"),
    "TE identity": framing("Transfer-Encoding: identity\r\n"),
    "TE xchunked": framing("Transfer-Encoding: xchunked\r\n"),
    "TE chunkedx": framing("Transfer-Encoding: chunkedx\r\n"),
    "TE empty": framing("Transfer-Encoding:\r\n"),
    "TE chunked<TAB>": framing("Transfer-Encoding: chunked\t\r\n"),
    "TE chunked,": framing("Transfer-Encoding: chunked,\r\n"),
    "TE ,chunked": framing("Transfer-Encoding: ,chunked\r\n"),
    "TE parameter": framing("Transfer-Encoding: chunked;a=b\r\n"),
    "TE quoted": framing('Transfer-Encoding: "chunked"\r\n'),
    "TE VT": framing("Transfer-Encoding: \x0bchunked\r\n"),
    "TE folded": framing("Transfer-Encoding:\r\n chunked\r\n"),
    "TE and bare CR": framing("Transfer-Encoding: chunked\rX: y\r\n"),
    "space TE": framing("Transfer-Encoding : chunked\r\n"),
    "1.0 and TE": "POST /p/x HTTP/1.0\r\nHost: localhost\r\n"
                  "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "1.0 and TE, keep-alive":
        "POST /p/x HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n"
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
}

LINES = {
    "bare LF everywhere": GET.replace("\r\n", "\n") + "\n",
    "bare LF after the request line":
        "GET /g/x HTTP/1.1\nHost: localhost\r\n\r\n",
    "bare LF after a header":
        "GET /g/x HTTP/1.1\r\nHost: localhost\nA: b\r\n\r\n",
    "bare LF at the end": GET + "\n",
    "bare CR in a value": GET + "A: b\rc\r\n\r\n",
    "bare CR in the request line":
        "GET /g/x\rHTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bare CR ends a line": "GET /g/x HTTP/1.1\rHost: localhost\r\n\r\n",
    "CR CR LF": "GET /g/x HTTP/1.1\r\r\nHost: localhost\r\n\r\n",
    "obs-fold SP": GET + "A: b\r\n c\r\n\r\n",
    "obs-fold TAB": GET + "A: b\r\n\tc\r\n\r\n",
    "fold right after the request line":
        "GET /g/x HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "space before colon": GET + "A : b\r\n\r\n",
    "tab before colon": GET + "A\t: b\r\n\r\n",
    "space before Host colon": "GET /g/x HTTP/1.1\r\nHost : a\r\n\r\n",
    "no colon": GET + "Abc\r\n\r\n",
    "empty name": GET + ": b\r\n\r\n",
    "name with a space": GET + "A B: c\r\n\r\n",
    "name with a bracket": GET + "A[1]: c\r\n\r\n",
    "name with a byte over 127": GET + "A\xe4: c\r\n\r\n",
    "NUL in a value": GET + "A: b\0c\r\n\r\n",
    "NUL in a name": GET + "A\0: b\r\n\r\n",
    "NUL in the target": "GET /g/x\0y HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "control byte in a value": GET + "A: b\x01c\r\n\r\n",
    "DEL in a value": GET + "A: b\x7fc\r\n\r\n",
    "no Host": "GET /g/x HTTP/1.1\r\nA: b\r\n\r\n",
    "no Host and no header": "GET /g/x HTTP/1.1\r\n\r\n",
    "two Hosts": GET + "Host: localhost\r\n\r\n",
    "two Hosts that differ": GET + "Host: other\r\n\r\n",
    "Host list": "GET /g/x HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "Host with a path": "GET /g/x HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "Host with a user": "GET /g/x HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "Host with a space": "GET /g/x HTTP/1.1\r\nHost: a b\r\n\r\n",
    "Host with a bad port": "GET /g/x HTTP/1.1\r\nHost: a:b\r\n\r\n",
    "Host empty": "GET /g/x HTTP/1.1\r\nHost:\r\n\r\n",
    "absolute-form unlike Host":
        "GET https://other/g/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "absolute-form, another port":
        "GET https://localhost:1/g/x HTTP/1.1\r\nHost: localhost:2\r\n\r\n",
    "absolute-form with a user":
        "GET https://u@localhost/g/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "absolute-form without Host":
        "GET https://localhost/g/x HTTP/1.1\r\nA: b\r\n\r\n",
    "HTTP/0.9": "GET /g/x\r\n\r\n",
    "two spaces": "GET  /g/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tab between": "GET\t/g/x\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
    "trailing space": "GET /g/x HTTP/1.1 \r\nHost: localhost\r\n\r\n",
    "space first": " GET /g/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "space in the target": "GET /g/x y HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "lower-case version": "GET /g/x http/1.1\r\nHost: localhost\r\n\r\n",
    "version 1.10": "GET /g/x HTTP/1.10\r\nHost: localhost\r\n\r\n",
    "no version number": "GET /g/x HTTP/\r\nHost: localhost\r\n\r\n",
    "fragment": "GET /g/x#y HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "byte over 127 in the target":
        "GET /g/\xe4 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "quote in the target": 'GET /g/"x HTTP/1.1\r\nHost: localhost\r\n\r\n',
    "not HTTP at all": "\x16\x03\x01\x00\x05hello\r\n\r\n",
}

# More than one answer is right; each closes the connection.
OTHER = {
    "version 2.0": ("GET /g/x HTTP/2.0\r\nHost: localhost\r\n\r\n",
                    (400, 505)),
    "version 1.2": ("GET /g/x HTTP/1.2\r\nHost: localhost\r\n\r\n",
                    (400, 505)),
    "version 0.9": ("GET /g/x HTTP/0.9\r\nHost: localhost\r\n\r\n",
                    (400, 505)),
    "HTTP/2 preface": ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 505)),
    "lower-case method": ("get /g/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
                          (501,)),
    "unknown method": ("FROB /g/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
                       (501,)),
    "CONNECT": ("CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n",
                (400, 405, 501)),
    "CONNECT to a path": ("CONNECT /p/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
                          (400, 405, 501)),
    "Expect of another kind": (POST + "Expect: 200-maybe\r\nContent-Length: 1"
                               "\r\n\r\nx", (417, 400)),
    "a hundred and one fields": (
        GET + "".join("A%d: b\r\n" % n for n in range(100)) + "\r\n", (431,)),
    "16 KiB of head": (GET + "A: " + "b" * 16384 + "\r\n\r\n", (431,)),
    "16 KiB of head in many lines": (
        GET + "".join("A%d: %s\r\n" % (n, "b" * 300) for n in range(60))
        + "\r\n", (431,)),
    "a long target": ("GET /g/%s HTTP/1.1\r\nHost: localhost\r\n\r\n"
                      % ("x" * 8300), (414,)),
    "a long query": ("GET /g/x?%s HTTP/1.1\r\nHost: localhost\r\n\r\n"
                     % ("x" * 8300), (414,)),
    "a target without end": ("GET /" + "x" * 40000, (414, 431)),
    "a header without end": (GET + "A: " + "b" * 40000, (431,)),
    "a name without end": (GET + "A" * 40000, (431, 400)),
    "TRACE": ("TRACE /g/x HTTP/1.1\r\nHost: localhost\r\nConnection: close"
              "\r\n\r\n", (400, 405, 501)),
}

# Framing of a body whose head was fine: the upstream may have seen a begin,
# but nothing that is complete, and never what comes behind.
CHUNKS = {
    "not hexadecimal": chunked("zz\r\nhello\r\n0\r\n\r\n"),
    "minus": chunked("-5\r\nhello\r\n0\r\n\r\n"),
    "plus": chunked("+5\r\nhello\r\n0\r\n\r\n"),
    "0x": chunked("0x5\r\nhello\r\n0\r\n\r\n"),
    "empty size": chunked("\r\nhello\r\n0\r\n\r\n"),
    "space first": chunked(" 5\r\nhello\r\n0\r\n\r\n"),
    "space behind": chunked("5 \r\nhello\r\n0\r\n\r\n"),
    "tab behind": chunked("5\t\r\nhello\r\n0\r\n\r\n"),
    "overflow": chunked("fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    "overflow to 5": chunked("10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "bare LF after the size": chunked("5\nhello\r\n0\r\n\r\n"),
    "bare LF after the data": chunked("5\r\nhello\n0\r\n\r\n"),
    "bare CR after the size": chunked("5\rhello\r\n0\r\n\r\n"),
    "no CRLF after the data": chunked("5\r\nhello0\r\n\r\n"),
    "more data than said": chunked("5\r\nhelloworld\r\n0\r\n\r\n"),
    "bare LF at the very end": chunked("5\r\nhello\r\n0\r\n\n"),
    "bare LF after the last size": chunked("5\r\nhello\r\n0\n\r\n"),
    "NUL in an extension": chunked("5;a=\0\r\nhello\r\n0\r\n\r\n"),
    "CR in an extension": chunked("5;a=\rb\r\nhello\r\n0\r\n\r\n"),
    "LF in an extension": chunked("5;a=\nb\r\nhello\r\n0\r\n\r\n"),
    "a long extension": chunked("5;" + "a" * 20000 + "\r\nhello\r\n0\r\n\r\n"),
    "trailers without end": chunked(
        "5\r\nhello\r\n0\r\n" + "A: %s\r\n" % ("b" * 900) * 40 + "\r\n"),
    "folded trailer": chunked("5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n"),
    "malformed trailer": chunked("5\r\nhello\r\n0\r\nA b\r\n\r\n"),
    "space before a trailer's colon":
        chunked("5\r\nhello\r\n0\r\nA : b\r\n\r\n"),
}


def refuse(g, table, want=(400,)):
    """Each entry: one answer of that status, the connection closed, nothing
    complete at the upstream, and nothing of what was behind it."""
    wrong = []
    for name, data in table.items():
        statuses = want
        if isinstance(data, tuple):
            data, statuses = data
        before = len(g.up.requests)
        answers, closed = g.raw(data.encode("latin-1"))
        got = [r.status for r in answers]
        problem = None
        if len(got) != 1 or got[0] not in statuses:
            problem = "got %r, want one of %r" % (got, statuses)
        elif not closed:
            problem = "still open after %r" % got
        elif answers[0].get("content-type") != "application/problem+json":
            problem = "no problem: %r" % answers[0]
        seen = [r.target for r in g.up.requests[before:]
                if r.done or "smuggled" in r.target]
        if seen:
            problem = "%s; the upstream saw %r" % (problem or "", seen)
        if problem:
            wrong.append("%s: %s" % (name, problem))
    assert not wrong, "%d of %d:\n%s" % (len(wrong), len(table),
                                         "\n".join(wrong))


def test_ambiguous_framing(g):
    refuse(g, FRAMING)


def test_malformed_lines(g):
    refuse(g, LINES)


def test_other_refusals(g):
    refuse(g, OTHER)


def test_malformed_chunks(g):
    refuse(g, CHUNKS, (400, 413, 431))


def test_malformed_chunks_of_a_buffered_body(g):
    refuse(g, {k: v.replace("/p/x", "/local") for k, v in CHUNKS.items()},
           (400, 413, 431))


for _test in (test_ambiguous_framing, test_malformed_lines, test_other_refusals,
              test_malformed_chunks, test_malformed_chunks_of_a_buffered_body):
    _test.timeout = 60


def test_the_same_byte_by_byte(g):
    """No check may depend on where the reads fall."""
    wrong = []
    for name in ("CL and TE", "TE chunked<TAB>", "two CL"):
        wrong += slowly(g, name, FRAMING[name])
    for name in ("bare LF after a header", "bare CR in a value", "obs-fold SP",
                 "bare LF at the end", "CR CR LF"):
        wrong += slowly(g, name, LINES[name])
    for name in ("bare LF after the size", "not hexadecimal",
                 "bare LF after the data", "no CRLF after the data",
                 "bare LF at the very end", "CR in an extension"):
        wrong += slowly(g, name, CHUNKS[name])
    assert not wrong, "\n".join(wrong)


test_the_same_byte_by_byte.timeout = 60


def slowly(g, name, data):
    before = len(g.up.requests)
    with g.connect() as c:
        for n in range(len(data)):
            if not c.send(data[n:n + 1].encode("latin-1")):
                break
        answers, closed = c.drain()
    got = [r.status for r in answers]
    seen = [r.target for r in g.up.requests[before:] if r.done]
    if got != [400] or not closed or seen:
        return ["%s: %r, closed: %r, seen: %r" % (name, got, closed, seen)]
    return []


def test_a_flood_of_chunk_extensions(g):
    """Small chunks, each with an extension: refused; as the client goes on
    sending, it may not see the answer."""
    mark = g.mark()
    with g.connect() as c:
        c.send(chunked("").encode())
        piece = b"1;" + b"a" * 4000 + b"\r\nx\r\n"
        for _ in range(600):
            if not c.send(piece):
                break
        c.send(b"0\r\n\r\n")
        answers, _ = c.drain(1)
    equal([r.status for r in answers], [400][:len(answers)])
    g.wait_line("chunk framing over", since=mark)
    equal(g.get("/ok").status, 200)


def test_good_requests_in_odd_clothes(g):
    """The table must not be refused for the wrong reason."""
    good = {
        "plain": GET + "\r\n",
        "absolute-form": "GET https://localhost/g/x HTTP/1.1\r\n"
                         "Host: localhost\r\n\r\n",
        "no blank after the colon":
            "GET /g/x HTTP/1.1\r\nHost:localhost\r\n\r\n",
        "blanks around a value": GET + "A: \t b \t \r\n\r\n",
        "Chunked in capitals": POST + "Transfer-Encoding: CHUNKED\r\n\r\n"
                               "5\r\nhello\r\n0\r\n\r\n",
        "an extension": chunked("5;a=b\r\nhello\r\n0\r\n\r\n"),
        "a trailer": chunked("5\r\nhello\r\n0\r\nA: b\r\n\r\n"),
        "capital size": chunked("A\r\n0123456789\r\n0\r\n\r\n"),
        "leading zeros": chunked("0005\r\nhello\r\n0000\r\n\r\n"),
        "length 0": POST + "Content-Length: 0\r\n\r\n",
        "ninety fields": GET + "".join("A%d: b\r\n" % n for n in range(90))
                         + "\r\n",
        "byte over 127 in a value": GET + "A: \xe4\r\n\r\n",
        "Host with a port": "GET /g/x HTTP/1.1\r\nHost: localhost:1\r\n\r\n",
        "Host in IPv6": "GET /g/x HTTP/1.1\r\nHost: [::1]:1\r\n\r\n",
    }
    wrong = []
    for name, data in good.items():
        with g.connect() as c:
            c.send(data.encode("latin-1"))
            try:
                status = c.response().status
                again = c.get("/ok").status
            except EOFError as problem:
                status, again = problem, None
        if (status, again) != (200, 200):
            wrong.append("%s: %r, then %r" % (name, status, again))
    assert not wrong, "\n".join(wrong)


def test_nothing_behind_an_error_is_answered(g):
    before = len(g.up.requests)
    answers, closed = g.raw(
        (GET + "\r\n" + GET + "A : b\r\n\r\n" + EVIL + EVIL).encode())
    equal([r.status for r in answers], [200, 400])
    assert closed, "still open"
    equal([r.target for r in g.up.requests[before:]], ["/internal/x"])


def test_trailers_do_not_become_headers(g):
    before = len(g.up.requests)
    with g.connect() as c:
        c.send(chunked("5\r\nhello\r\n0\r\nX-Admin: yes\r\nContent-Length: 3"
                       "\r\nClient-Cert: :AAAA:\r\n\r\n").encode())
        r = c.response()
    if r.status == 200:
        until(lambda: len(g.up.requests) > before, "the request arrives")
        fields = [n.lower() for n, _ in g.up.requests[-1].fields]
        assert "x-admin" not in fields, fields


def test_upgrade_is_stripped(g):
    with g.connect() as c:
        r = c.get("/g/x", [("Connection", "Upgrade, HTTP2-Settings"),
                           ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABk")])
        equal(r.status, 200)
        seen = r.json()["headers"]
        for name in ("upgrade", "http2-settings"):
            assert name not in seen, seen
        equal(c.get("/ok").status, 200)


def test_a_body_on_get_is_not_forwarded(g):
    before = len(g.up.requests)
    answers, _ = g.raw(build("GET", "/g/x", body=b"hello") + EVIL.encode())
    assert answers and answers[0].status in (400, 413, 415, 422), answers
    assert not any(r.body_bytes for r in g.up.requests[before:]), "forwarded"
