"""JSON bodies: closed schemas, strict syntax, and the bytes go on unchanged."""

import gzip
import json
import time

from gw import Gateway, Upstream, build, equal

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
local ORDER = { type = "object", required = { "item", "total" }, properties = {
  item = { type = "string", minLength = 1, maxLength = 20 },
  total = { type = "integer", minimum = 0, maximum = 1000 },
  price = { type = "number", multipleOf = 0.01 },
  tags = { type = "array", items = { type = "string" }, maxItems = 3,
           uniqueItems = true },
  nested = { type = "object", properties = { a = { type = "boolean" } } },
  big = { type = "integer" } } }
gateway.post("/orders", { authorize = id.anyone, validate = { json = ORDER },
  check = function(request)
    return request.json.total <= 500, "over the limit" end,
  handle = app:to "/internal/orders" })
gateway.post("/local", { authorize = id.anyone,
  validate = { json = ORDER }, limits = { body_size = "2K" },
  handle = function(request)
    local j = request.json
    return gateway.json { item = j.item, kind = math.type(j.total),
      tags = j.tags, big = j.big, nested = j.nested } end })
gateway.post("/bare", { authorize = id.anyone,
  handle = function() return gateway.text "no body" end })
"""
GOOD = {"item": "tea", "total": 3}


class Both(Gateway):
    def __init__(self):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port)

    def stop(self):
        self.up.stop()
        return super().stop()


def setup():
    return Both()


def refuse(g, bodies, want):
    before, wrong = len(g.up.requests), []
    for body in bodies:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        r = g.post_json("/orders", body)
        if r.status != want:
            wrong.append("%r: got %d, want %d" % (body[:80], r.status, want))
    assert not wrong, "\n".join(wrong)
    equal(len(g.up.requests), before, "requests at the upstream")


def test_the_bytes_go_on_unchanged(g):
    body = b'{ "total" : 3,\n "item":"t\\u00e9a", "price": 1.10 }'
    r = g.post_json("/orders", body)
    equal(r.status, 200)
    seen = r.json()
    equal((seen["body"], seen["bytes"]), (body.decode(), len(body)))
    equal(seen["headers"]["content-type"], "application/json")
    equal(seen["headers"]["content-length"], str(len(body)))


def test_broken_schemas_are_422(g):
    refuse(g, [
        {}, {"item": "tea"}, {"item": "tea", "total": "3"},
        {"item": "tea", "total": 3.5}, {"item": "tea", "total": -1},
        {"item": "tea", "total": 1001}, {"item": "", "total": 3},
        {"item": "x" * 21, "total": 3}, {"item": None, "total": 3},
        dict(GOOD, extra=1), dict(GOOD, tags=["a", "a"]),
        dict(GOOD, tags=["a", "b", "c", "d"]), dict(GOOD, tags=[1]),
        dict(GOOD, tags="a"), dict(GOOD, nested={"b": True}),
        dict(GOOD, nested={"a": 1}), dict(GOOD, price=0.001),
        [], [GOOD], "tea", 3, None, True, dict(GOOD, Total=3),
        dict(GOOD, __proto__={}), dict(GOOD, **{"": 1})], 422)


def test_broken_syntax_is_400(g):
    refuse(g, [
        b"", b" ", b"{", b"}", b'{"item":"tea","total":3', b'{"item":"tea",}',
        b'{"item":"tea","total":3}x', b'{"item":"tea","total":3}{}',
        b'\xef\xbb\xbf{"item":"tea","total":3}',
        b'{"item":"tea","total":3,"total":3}',
        b'{"item":"tea","total":3,"tot\\u0061l":4}',
        b'{"item":"tea","total":3,"nested":{"a":true,"a":false}}',
        b'{"item":"tea","total":03}', b'{"item":"tea","total":+3}',
        b'{"item":"tea","total":NaN}', b'{"item":"tea","total":0x3}',
        b'{"item":"tea","total":1e999}', b"{'item':'tea','total':3}",
        b'{"item":"te\xff","total":3}', b'{"item":"\\ud800","total":3}',
        b'{"item":"a\nb","total":3}', b'{"item":"tea","total":3} // x',
        b'{"item":"tea","total":3,"big":18446744073709551616}',
        b'{"item":"tea","total":3,"tags":' + b"[" * 70 + b"]" * 70 + b"}",
        b"[" * 100000, b'{"item":"tea","total":3}\0'], 400)


def test_types_in_lua(g):
    r = g.post_json("/local", dict(GOOD, tags=["a"], nested={"a": True},
                                   big=9007199254740993))
    equal(r.json(), {"item": "tea", "kind": "integer", "tags": ["a"],
                     "nested": {"a": True}, "big": 9007199254740993})


def test_numbers_are_exact(g):
    equal(g.post_json("/orders", b'{"item":"a","total":3.0}').status, 200)
    equal(g.post_json("/orders", b'{"item":"a","total":3e0}').status, 200)
    equal(g.post_json("/orders", dict(GOOD, price=0.07)).status, 200)
    equal(g.post_json("/orders", dict(GOOD, price=4.35)).status, 200)


def test_check_has_the_last_word(g):
    mark = g.mark()
    before = len(g.up.requests)
    r = g.post_json("/orders", {"item": "tea", "total": 501})
    equal(r.status, 403)
    assert "over the limit" not in r.text, r
    g.wait_line("over the limit", since=mark)
    equal(len(g.up.requests), before, "requests at the upstream")


def test_the_content_type(g):
    body = json.dumps(GOOD).encode()
    before = len(g.up.requests)
    for value in (None, "text/plain", "application/x-www-form-urlencoded",
                  "application/jsonx", "application/json, text/plain",
                  "text/json", "application/json; charset=latin1",
                  "multipart/form-data; boundary=x", "*/*", ""):
        fields = [("Content-Type", value)] if value is not None else []
        r = g.request("POST", "/orders", fields, body)
        equal(r.status, 415, "Content-Type: %s" % value)
    r = g.request("POST", "/orders", [("Content-Type", "application/json"),
                                      ("Content-Type", "text/plain")], body)
    assert r.status in (400, 415), r
    equal(len(g.up.requests), before, "requests at the upstream")
    for value in ("application/json", "Application/JSON",
                  "application/json;charset=utf-8",
                  "application/json; charset=\"UTF-8\""):
        r = g.request("POST", "/orders", [("Content-Type", value)], body)
        equal(r.status, 200, value)


def test_a_content_encoding_is_refused(g):
    r = g.post_json("/orders", gzip.compress(json.dumps(GOOD).encode()),
                    [("Content-Encoding", "gzip")])
    equal(r.status, 415)


def test_too_big_is_413(g):
    body = json.dumps(dict(GOOD, item="x" * 3000)).encode()
    equal(g.post_json("/local", body).status, 413)
    data = build("POST", "/local", [
        ("Content-Type", "application/json"),
        ("Transfer-Encoding", "chunked")], b"bb8\r\n" + b" " * 3000 + b"\r\n")
    answers, closed = g.raw(data)
    equal([r.status for r in answers], [413])
    assert closed, "still open"
    head = build("POST", "/orders", [("Content-Type", "application/json"),
                                     ("Content-Length", "99999999999")])
    answers, closed = g.raw(head)
    equal([r.status for r in answers], [413])
    assert closed, "still open"


def test_exactly_the_limit_fits(g):
    body = json.dumps(GOOD).encode()
    equal(g.post_json("/local", body + b" " * (2048 - len(body))).status, 200)
    equal(g.post_json("/local", body + b" " * (2049 - len(body))).status, 413)


def test_an_undeclared_body(g):
    equal(g.request("POST", "/bare", body=b"").text, "no body")
    equal(g.request("POST", "/bare").text, "no body")
    r = g.request("POST", "/bare", [("Content-Type", "text/plain")], b"x")
    assert r.status in (400, 413, 415, 422), r
    r = g.request("POST", "/bare", [("Transfer-Encoding", "chunked")],
                  b"1\r\nx\r\n0\r\n\r\n")
    assert r.status in (400, 413, 415, 422), r


def test_chunked_json(g):
    text = json.dumps(GOOD).encode()
    body = b"".join(b"1\r\n%c\r\n" % b for b in text) + b"0\r\n\r\n"
    r = g.request("POST", "/orders", [("Content-Type", "application/json"),
                                      ("Transfer-Encoding", "chunked")], body)
    equal(r.status, 200)
    equal(r.json()["body"], text.decode())
    equal(r.json()["headers"].get("content-length"), str(len(text)))


def test_many_keys_cost_little(g):
    """No quadratic attack through duplicate-key detection."""
    keys = {"k%d" % n: 0 for n in range(60000)}
    body = json.dumps(keys).encode()
    begin = time.monotonic()
    equal(g.post_json("/orders", body).status, 422)
    assert time.monotonic() - begin < 2, "took too long"
