"""Paths and queries are what the route declared, or nothing happens."""

from gw import Gateway, Upstream, equal

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
local function show(request)
  return gateway.json { path = request.path, query = request.query }
end
gateway.get("/q", { authorize = id.anyone, validate = { query = {
    n = gateway.integer(1, 100),
    word = gateway.optional({ type = "string", pattern = "^[a-z]+$" }, "none"),
    maybe = gateway.optional(gateway.boolean),
    list = gateway.optional(gateway.array(gateway.integer(0, 9), 1, 3)),
    f = gateway.optional(gateway.number(0, 1)) } },
  handle = function(request)
    local q = request.query
    return gateway.json { n = q.n, word = q.word, maybe = q.maybe,
      list = q.list, f = q.f, kind = math.type(q.n) } end })
gateway.get("/none", { authorize = id.anyone, handle = function()
  return gateway.text "fine" end })
gateway.get("/as-is/{name}", { authorize = id.anyone,
  validate = { path = { name = gateway.string(1, 20) },
               query = { a = gateway.optional(gateway.string(0, 50)),
                         b = gateway.optional(gateway.array(
                           gateway.string(0, 50))) } }, handle = app })
gateway.get("/free/{name}", { authorize = id.anyone,
  validate = { path = { name = gateway.string(1, 20) },
               query = gateway.unchecked },
  handle = app:to "/internal/free" })
gateway.get("/p/{id}/{file}", { authorize = id.anyone,
  validate = { path = { id = gateway.integer(1, 99),
                        file = gateway.filename } },
  handle = function(request)
    return gateway.json { id = request.path.id, file = request.path.file,
                          kind = math.type(request.path.id) } end })
gateway.get("/u/{id}", { authorize = id.anyone,
  validate = { path = { id = gateway.uuid } },
  handle = function(request) return gateway.text(request.path.id) end })
gateway.get("/e/{v}", { authorize = id.anyone,
  validate = { path = { v = gateway.enum { "a", "b" } } },
  handle = function(request) return gateway.text(request.path.v) end })
gateway.get("/lit/fixed", { authorize = id.anyone,
  handle = function() return gateway.text "literal" end })
gateway.get("/lit/{name}", { authorize = id.anyone,
  validate = { path = { name = gateway.filename } },
  handle = function() return gateway.text "capture" end })
gateway.get("/lit/{rest...}", { authorize = id.anyone,
  validate = { path = { rest = gateway.relative_path } },
  handle = function() return gateway.text "tail" end })
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


def table(g, rows):
    wrong = []
    with g.connect() as c:
        for target, want in rows:
            r = c.get(target)
            if r.status != want:
                wrong.append("%s: got %d, want %d" % (target, r.status, want))
            if r.get("connection") == "close":
                c.close()
                c.__init__(g.port)
    assert not wrong, "\n".join(wrong)


def test_a_declared_query(g):
    equal(g.get("/q?n=5").json(), {"n": 5, "word": "none", "kind": "integer"})
    equal(g.get("/q?n=100&word=abc&maybe=true&list=1&list=2&f=0.5").json(),
          {"n": 100, "word": "abc", "maybe": True, "list": [1, 2], "f": 0.5,
           "kind": "integer"})
    equal(g.get("/q?maybe=false&n=1").json()["maybe"], False)
    equal(g.get("/q?n=%35").json()["n"], 5)


def test_schemas_of_a_query(g):
    table(g, [(q, 422) for q in (
        "/q", "/q?", "/q?n=", "/q?n=0", "/q?n=101", "/q?n=abc", "/q?n=05",
        "/q?n=%2B5", "/q?n=5.0", "/q?n=5e1", "/q?n=0x5", "/q?n=%205",
        "/q?n=5%20", "/q?n=5&n=6", "/q?n=5&n=5", "/q?n=5&word=",
        "/q?n=5&word=A", "/q?n=5&word=a&word=b",
        "/q?n=5&maybe=yes", "/q?n=5&maybe=1", "/q?n=5&maybe=TRUE",
        "/q?n=5&list=10", "/q?n=5&list=1&list=2&list=3&list=4",
        "/q?n=5&list=1,2", "/q?n=5&f=NaN", "/q?n=5&f=1.5", "/q?n=5&f=.5",
        "/q?n=99999999999999999999", "/q?n=5&x=1", "/q?n=5&N=5", "/q?N=5",
        "/none?x=1", "/none?x", "/p/1/a?x=1")])


def test_syntax_of_a_query(g):
    table(g, [(q, 400) for q in (
        "/q?n=%", "/q?n=%5", "/q?n=%zz", "/q?n=5&word=abc%0a", "/q?n=5&=1",
        "/q?n=5&n[]=1", "/q?n=5&word=%00", "/q?n=5&word=%ff",
        "/q?n=5&word=%c0%80", "/q?n=5&word=%ed%a0%80",
        "/none?" + "&".join("a%d=1" % n for n in range(101)))])


def test_an_empty_query_is_none(g):
    table(g, [("/none", 200), ("/q?n=5", 200)])


def test_a_semicolon_is_no_separator(g):
    table(g, [("/q?n=5;word=abc", 400)])


def test_typed_captures(g):
    equal(g.get("/p/7/a.txt").json(),
          {"id": 7, "file": "a.txt", "kind": "integer"})
    table(g, [("/p/%s/a" % v, 422) for v in (
        "0", "100", "abc", "07", "-1", "7.0", "%2D1", "%207", "1e1")])
    table(g, [("/p/7/" + v, 422) for v in (
        ".hidden", "-x", "a%20b", "%C3%A4", "a*", "x" * 256)])
    table(g, [("/p/7", 404), ("/p/7/", 404), ("/p//a", 400), ("/p/7/a/b", 404),
              ("/p/7/a/", 404)])


def test_constructors(g):
    table(g, [("/u/0f8fad5b-d9cb-469f-a165-70867728950e", 200),
              ("/u/0f8fad5b-d9cb-469f-a165-70867728950", 422),
              ("/u/0f8fad5bd9cb469fa16570867728950e", 422),
              ("/u/0f8fad5b-d9cb-469f-a165-70867728950g", 422),
              ("/e/a", 200), ("/e/b", 200), ("/e/c", 422), ("/e/A", 422),
              ("/e/a%0a", 400)])


def test_the_most_literal_route_wins(g):
    equal(g.get("/lit/fixed").text, "literal")
    equal(g.get("/lit/other").text, "capture")
    equal(g.get("/lit/a/b").text, "tail")
    equal(g.get("/lit/%66ixed").text, "literal")
    equal(g.get("/LIT/fixed").status, 404)


def test_what_the_upstream_gets_is_written_afresh(g):
    for target, want in (
            ("/as-is/a?a=1", "/as-is/a?a=1"),
            ("/as-is/a%62c", "/as-is/abc"),
            ("/as-is/a%20b?a=x+y", "/as-is/a%20b?a=x%20y"),
            ("/as-is/a?b=1&a=%26&b=2", "/as-is/a?b=1&a=%26&b=2"),
            ("/as-is/a?a=%3d", "/as-is/a?a=%3D")):
        before = len(g.up.requests)
        r = g.get(target)
        equal(r.status, 404, target)  # of the upstream: it is not /internal/
        equal(len(g.up.requests), before + 1, "requests")
        equal(g.up.requests[-1].target.replace("+", "%20"), want)


def test_unchecked_passes_through_re_encoded(g):
    before = len(g.up.requests)
    r = g.get("/free/a?x=1&x=2&y=%3Cb%3E&z")
    equal(r.status, 200)
    got = g.up.requests[before].target
    assert got.startswith("/internal/free?"), got
    for part in ("x=1", "x=2", "y=%3Cb%3E"):
        assert part in got, got
    equal(g.get("/free/a?x=%00").status, 400)


def test_the_answer_does_not_say_what_failed(g):
    mark = g.mark()
    r = g.get("/q?n=101&word=secret")
    equal(r.status, 422)
    for word in ("101", "secret", "at most"):
        assert word not in r.text.replace(r.json()["request_id"], ""), r
    g.wait_line("decision", "at most 100", since=mark)


def test_explain_tells_the_client():
    g = Gateway(POLICY, listen="explain = true", UP=1)
    with g:
        r = g.get("/q?n=101")
        equal(r.status, 422)
        assert "n" in r.text and "100" in r.text or "maximum" in r.text, r
