"""What is legal but odd is refused, each by each, unless its route allows it;
what is never allowed stays refused; and with all allowed, whatever RFC 9112 and
RFC 3986 let a client say is served."""

import json
import os

from gw import Gateway, Upstream, build, equal, gateway_cli, tmpdir, write, PKI

# One route for each word, one for none, one for all; each as it came.
POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
local words = { "semicolon", "encoded_slash", "empty_segment", "non_utf8",
  "nameless_param", "underscore", "header_symbol", "body_on_get",
  "content_encoding" }
local function route(name, allow)
  gateway.any("/" .. name .. "/{path...}", { authorize = id.anyone,
    allow = allow, validate = { path = { path = { type = "string" } },
      query = gateway.unchecked, body = gateway.stream "1M" },
    handle = app:to "/internal/{path}" })
end
for _, word in ipairs(words) do
  route(word, { word })
end
route("none", {})
local all = gateway.group("/as-is", { allow = words, authorize = id.anyone })
all:any("/{path...}", { handle = app, validate = {
  path = { path = { type = "string" } }, query = gateway.unchecked,
  body = gateway.stream "1M" } })
gateway.any("/{path...}", { authorize = id.anyone, allow = words,
  validate = { path = { path = { type = "string" } },
    query = gateway.unchecked, body = gateway.stream "1M" },
  handle = app:to "/internal/{path}" })
gateway.any("/", { authorize = id.anyone, handle = app,
  validate = { query = gateway.unchecked } })
gateway.options("*", { authorize = id.anyone, handle = app })
gateway.get("/one/{name}/end", { authorize = id.anyone,
  allow = { "encoded_slash", "semicolon", "non_utf8" },
  validate = { path = { name = { type = "string", maxLength = 20 } } },
  handle = function(request)
    return gateway.json { name = request.path.name,
      raw = request.raw.path:check(gateway.string(0, 99)) } end })
gateway.get("/word/{name}", { authorize = id.anyone,
  allow = { "encoded_slash" },
  validate = { path = { name = gateway.filename } },
  handle = app:to("/internal/{name}", { set = { ["X-Name"] = "{name}" } }) })
gateway.get("/free/{name}", { authorize = id.anyone,
  allow = { "encoded_slash" },
  validate = { path = { name = gateway.string(1, 40) } },
  handle = app:to("/internal/{name}?n={name}",
                  { set = { ["X-Name"] = "{name}" } }) })
gateway.get("/q", { authorize = id.anyone,
  allow = { "non_utf8", "semicolon", "nameless_param" },
  validate = { query = { a = gateway.string(0, 20) } },
  handle = function(request) return gateway.text(request.query.a) end })
gateway.get("/tenant", { authorize = id.anyone,
  allow = { "underscore", "header_symbol" },
  validate = { headers = { ["X-Tenant"] = gateway.enum { "a", "b" } } },
  handle = app:to("/internal/x", { set = { ["X-Set"] = "ours" },
                                   remove = { "X-Gone" } }) })
gateway.get("/odd-checked", { authorize = id.anyone,
  allow = { "underscore", "header_symbol" },
  validate = { headers = { ["X_Role"] = gateway.enum { "user" } } },
  handle = app:to("/internal/x", { set = { ["X_Set"] = "ours" },
                                   remove = { "X_Gone" } }) })
gateway.post("/coded-json", { authorize = id.anyone,
  allow = { "content_encoding" }, validate = { json = gateway.object {} },
  handle = function() return gateway.text "fine" end })
gateway.get("/body", { authorize = id.anyone, allow = { "body_on_get" },
  validate = { json = gateway.object { n = gateway.integer(1, 9) } },
  handle = function(request) return gateway.text(request.json.n .. "") end })
"""


class Both(Gateway):
    def __init__(self):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port, listen="host_check = false")

    def stop(self):
        self.up.stop()
        return super().stop()

    def one(self, data):
        """(status, target at the upstream or None) of one raw request."""
        before = len(self.up.requests)
        if isinstance(data, str):
            data = data.encode("latin-1")
        with self.connect() as c:
            c.send(data)
            status = c.response(data.split(b" ")[0].decode()).status
        seen = self.up.requests[before:]
        return status, seen[0].target if seen else None


def setup():
    return Both()


def get(tail, fields="", host="localhost"):
    return "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (tail, host, fields)


# The word, and requests that need it: %s is the route's first segment.
ODD = {
    "semicolon": [get("/%s/a;b"), get("/%s/a;b=1;c/d"), get("/%s/a%%3bb"),
                  get("/%s/x?a=1;b=2"), get("/%s/;")],
    "encoded_slash": [get("/%s/a%%2fb"), get("/%s/a%%2F"), get("/%s/a/b%%2fc")],
    "empty_segment": [get("/%s//a"), get("/%s/a//b"), get("/%s/a///")],
    "non_utf8": [get("/%s/%%ff"), get("/%s/caf%%E9"), get("/%s/x?a=%%e9"),
                 get("/%s/%%c0%%ae")],
    "nameless_param": [get("/%s/x?=1"), get("/%s/x?a=1&=2"), get("/%s/x?=")],
    "underscore": [get("/%s/x", "X_Y: 1\r\n"), get("/%s/x", "_: 1\r\n")],
    "header_symbol": [get("/%s/x", "X.Y: 1\r\n"), get("/%s/x", "~x: 1\r\n"),
                      get("/%s/x", "A!#$&'*+^`|: 1\r\n")],
    "body_on_get": [get("/%s/x", "Content-Length: 1\r\n") + "x",
                    get("/%s/x", "Transfer-Encoding: chunked\r\n")
                    + "1\r\nx\r\n0\r\n\r\n",
                    "DELETE /%s/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1"
                    "\r\n\r\nx"],
}

# The one that is 415 without its word.
CODED = ("POST /%s/x HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\n"
         "Content-Length: 1\r\n\r\nx")

NEVER = """
/%s/..;/x
/%s/..;x=1/x
/%s/..%3b/x
/%s/.;/x
/%s/a%2f..%2fx
/%s/..%2fx
/%s/%2e%2e%2fx
/%s/a%2f%2e%2e
/%s/../x
/%s/%2e%2e/x
/%s//../x
/%s/a%5cb
/%s/..%5cx
/%s/a\\b
/%s/%00
/%s/a%2f%00
/%s/%0a
/%s/%1c
/%s/%1d
/%s/%7f
/%s/x?a=%00
/%s/x?a=%0d%0a
/%s/%
/%s/%2
/%s/%zz
""".split()


def test_each_needs_its_word(g):
    wrong = []
    for word, requests in ODD.items():
        for other in list(ODD) + ["none"]:
            for request in requests:
                want = 200 if other == word else 400
                status, seen = g.one(request % other)
                if status != want or (seen is None) != (want == 400):
                    wrong.append("%s on a route with %s: %r, %r"
                                 % (request[:30], other, status, seen))
    assert not wrong, "\n".join(wrong)


test_each_needs_its_word.timeout = 60


def test_content_encodings(g):
    """What a hook or an upstream would have to unpack may be a bomb."""
    for word in list(ODD) + ["none", "content_encoding"]:
        equal(g.one(CODED % word)[0],
              200 if word == "content_encoding" else 415, word)
    r = g.request("POST", "/coded-json", [
        ("Content-Type", "application/json"), ("Content-Encoding", "gzip")],
        b"{}")
    equal(r.status, 415)
    with g.connect() as c:
        r = c.request("POST", "/content_encoding/x",
                      [("Content-Encoding", "gzip")], b"x")
        equal(r.json()["headers"]["content-encoding"], "gzip")


def test_what_is_never_allowed(g):
    wrong = []
    for target in NEVER:
        for route in ("as-is", "semicolon", "encoded_slash", "non_utf8",
                      "empty_segment"):
            status, seen = g.one(get(target.replace("%s", route)))
            if status != 400 or seen is not None:
                wrong.append("%s on %s: %r, %r" % (target, route, status, seen))
    assert not wrong, "\n".join(wrong)


test_what_is_never_allowed.timeout = 60


def test_without_a_route_it_is_400():
    """An oddity does not tell whether there is a route."""
    with Gateway("""
gateway.get("/a", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
""") as bare:
        for target in ("/b;c", "/b%2fc", "//b", "/%ff", "/b?=1;"):
            equal(bare.raw(get(target).encode())[0][0].status, 400, target)
        equal(bare.raw(get("/b", "X_Y: 1\r\n").encode())[0][0].status, 400)
        equal(bare.get("/b").status, 404)


def test_it_goes_on_as_it_came(g):
    for target in ("/as-is/a;b=1;c/d", "/as-is/a%3Bb", "/as-is/a%2Fb/c",
                   "/as-is/a%2Fb%3Bc;d", "/as-is//a", "/as-is/a//",
                   "/as-is/%FF",
                   "/as-is/caf%E9", "/as-is/x?=1", "/as-is/x?a=%E9"):
        status, seen = g.one(get(target))
        equal((status, seen), (404, target))  # the upstream's 404
    equal(g.one(get("/all/a%2fb;c//d")),
          (200, "/internal/all/a%2Fb;c//d"))


def test_an_encoded_slash_in_a_capture(g):
    """Decoded once for the schema and the hook; encoded again upstream."""
    with g.connect() as c:
        r = c.get("/one/a%2Fb%3bc;d/end")
        equal(r.json(), {"name": "a/b;c;d", "raw": "/one/a/b;c;d/end"})
        equal(c.get("/one/a%252Fb/end").json()["name"], "a%2Fb")
        equal(c.get("/one/caf%e9%2fx/end").json()["name"], "caf%E9/x")
        r = c.get("/free/a%2Fb")
        equal((r.json()["path"], r.json()["headers"]["x-name"]),
              ("/internal/a%2Fb?n=a/b", "a/b"))
        equal(c.get("/word/ab").status, 200)
        before = len(g.up.requests)
        equal(c.get("/word/a%2Fb").status, 422)  # its schema says so
        equal(len(g.up.requests), before)
        equal(c.get("/one/a%2f/end").status, 400)  # an empty segment


def test_queries(g):
    with g.connect() as c:
        equal(c.get("/q?a=1;2").text, "1;2")
        equal(c.get("/q?a=%e9").text, "%E9")
        equal(c.get("/q?a=1;b=2").text, "1;b=2")  # no separator
        equal(c.get("/q?a=1&=2").status, 422)     # nobody declared it


def test_odd_names_are_no_way_round(g):
    """An upstream that folds names must not see a second X-Tenant."""
    r = g.get("/tenant", [
        ("X-Tenant", "a"), ("X_Tenant", "evil"), ("x.tenant", "evil"),
        ("X_Set", "evil"), ("X_Gone", "evil"), ("Content_Length", "evil"),
        ("Transfer_Encoding", "evil"), ("X_Request_Id", "evil"),
        ("Authorization_", "fine"), ("AUTHORIZATION", "fine"),
        ("Authoriz_ation", "fine"), ("Cookie", "fine"), ("X_Other", "fine"),
        ("Host_", "fine"), ("Content_Type", "evil"), ("Proxy_", "fine")])
    equal(r.status, 200, r.text)
    seen = r.json()["headers"]
    assert "evil" not in r.text, seen
    equal((seen["x-tenant"], seen["x-set"], seen["x_other"]),
          ("a", "ours", "fine"))


def test_an_odd_name_that_is_checked_or_set(g):
    """Then its plain spelling is the one that may not pass."""
    r = g.get("/odd-checked", [("X_Role", "user"), ("X-Role", "admin-evil"),
                               ("X.Role", "evil"), ("X-Set", "evil"),
                               ("X-Gone", "evil")])
    equal(r.status, 200, r.text)
    seen = r.json()["headers"]
    assert "evil" not in r.text, seen
    equal((seen["x_role"], seen["x_set"]), ("user", "ours"))
    equal(g.get("/odd-checked", [("X-Role", "user")]).status, 422)


FORGED = """
Client-Cert Client-Cert-Chain X-Forwarded-Client-Cert X-Forwarded-For
X-Forwarded-Tls-Client-Cert-Info X-SSL-Client-Cert X-Client-Cert SSL-Client-Cert
X-ARR-ClientCert X-Amzn-Mtls-Clientcert Forwarded X-Real-IP X-Original-URL
X-Envoy-Peer-Metadata
""".split()


def test_identity_headers_are_removed_in_every_spelling(g):
    """Removed, never refused: with the word and without, also in trailers."""
    for route in ("none", "underscore", "header_symbol"):
        for name in FORGED:
            for form in {name.replace("-", "_"), name.replace("-", "_", 1),
                         name.replace("-", "."), name.lower()}:
                r = g.get("/%s/x" % route, [(form, "forged-value")])
                equal((r.status, "forged-value" in r.text), (200, False),
                      "%s on %s" % (form, route))
                with g.connect() as c:
                    r = c.request("POST", "/%s/x" % route,
                                  [("Transfer-Encoding", "chunked")],
                                  b"1\r\nx\r\n0\r\n%s: forged-value\r\n\r\n"
                                  % form.encode())
                    equal((r.status, "forged-value" in r.text), (200, False),
                          "trailer %s on %s" % (form, route))


test_identity_headers_are_removed_in_every_spelling.timeout = 60


def test_a_body_on_get(g):
    with g.connect() as c:
        r = c.request("GET", "/body", [("Content-Type", "application/json")],
                      b'{"n":5}')
        equal((r.status, r.text), (200, "5"))
        r = c.request("GET", "/all/x", body=b"hello")
        equal((r.status, r.json()["body"]), (200, "hello"))
        equal(c.get("/all/y").json()["path"], "/internal/all/y")


# Odd, and as the RFCs have it: each must be served.
LEGAL = {
    "absolute-form": get("http://localhost/a/x"),
    "absolute-form, https": get("https://localhost/a/x"),
    "absolute-form, capitals": get("HTTPS://LOCALHOST/a/x", host="LOCALHOST"),
    "absolute-form without path": get("http://localhost?a=b"),
    "absolute-form with a port": get("http://localhost:443/a/x",
                                     host="localhost:443"),
    "OPTIONS *": "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an empty query": get("/a/x?"),
    "? in the query": get("/a/x?a=?b??"),
    "/ and : and @ in the query": get("/a/x?a=/b:c@d"),
    "every sub-delim in the path": get("/a/!$&'()*+,;="),
    "every sub-delim in the query": get("/a/x?!$&'()*+,;="),
    "every unreserved byte": get("/a/azAZ09-._~"),
    ": and @ in the path": get("/a/b:c@d"),
    "encoded unreserved bytes": get("/a/%41%7e%2D%2e%5F"),
    "encoded bytes of every kind": get("/a/%20%22%3c%3e%5b%5d%5e%60%7b%7c%7d"),
    "encoded reserved bytes": get("/a/%3a%2f%3f%23%5b%5d%40%21%24%26%27%28%29"
                                  "%2a%2b%2c%3b%3d"),
    "an encoded percent sign": get("/a/%25"),
    "lower and upper case escapes": get("/a/%c3%a4%C3%A4"),
    "bytes that are not UTF-8": get("/a/%ff%fe"),
    "empty segments": get("//a///b//"),
    "a trailing slash": get("/a/"),
    "dots that are no dot segments": get("/a/.../..b/c../.d"),
    "a query that looks like a path": get("/a/x?/../.."),
    "a nameless parameter": get("/a/x?=&=1&a"),
    "no header but Host": get("/a/x"),
    "Host last": "GET /a/x HTTP/1.1\r\nA: b\r\nHost: localhost\r\n\r\n",
    "Host with an empty port": get("/a/x", host="localhost:"),
    "Host with a port": get("/a/x", host="localhost:65535"),
    "Host an IPv4 address": get("/a/x", host="127.0.0.1"),
    "Host an IPv6 address": get("/a/x", host="[2001:db8::1]:8443"),
    "Host with a final dot": get("/a/x", host="localhost."),
    "names in odd case": "GET /a/x HTTP/1.1\r\nhOsT: localhost\r\n\r\n",
    "no blank after a colon": "GET /a/x HTTP/1.1\r\nHost:localhost\r\n\r\n",
    "blanks around a value": get("/a/x", "A: \t b \t \r\n"),
    "an empty value": get("/a/x", "A:\r\nB: \r\nC: \t\r\n"),
    "obs-text in a value": get("/a/x", "A: \x80\xe4\xff\r\n"),
    "a tab in a value": get("/a/x", "A: b\tc\r\n"),
    "every token byte in a name": get("/a/x", "!#$%&'*+-.^_`|~0aA: b\r\n"),
    "a field twice": get("/a/x", "Accept: a/b\r\nAccept: c/d\r\n"),
    "quotes and colons in a value": get("/a/x", 'A: "b:c;d=\\"e\r\n'),
    "a name of one letter, of many": get("/a/x", "A: b\r\n%s: c\r\n"
                                         % ("a" * 200)),
    "an empty line first": "\r\n" + get("/a/x"),
    "Connection: keep-alive": get("/a/x", "Connection: keep-alive\r\n"),
    "Connection with empty elements": get("/a/x", "Connection: ,keep-alive,,"
                                          "\r\n"),
    "Connection: close": get("/a/x", "Connection: close\r\n"),
    "an unknown Upgrade": get("/a/x", "Connection: Upgrade\r\n"
                              "Upgrade: a/1, b\r\n"),
    "TE: trailers": get("/a/x", "TE: trailers\r\nConnection: TE\r\n"),
    "a body on GET": get("/a/x", "Content-Length: 3\r\n") + "abc",
    "a body on DELETE": "DELETE /a/x HTTP/1.1\r\nHost: a\r\n"
                        "Content-Length: 3\r\n\r\nabc",
    "a body on OPTIONS": "OPTIONS /a/x HTTP/1.1\r\nHost: a\r\n"
                         "Content-Length: 3\r\n\r\nabc",
    "length 0 on GET": get("/a/x", "Content-Length: 0\r\n"),
    "a length with zeros before it": "POST /a/x HTTP/1.1\r\nHost: a\r\n"
                                     "Content-Length: 0003\r\n\r\nabc",
    "blanks around a length": "POST /a/x HTTP/1.1\r\nHost: a\r\n"
                              "Content-Length:  3 \r\n\r\nabc",
    "a Content-Encoding": "POST /a/x HTTP/1.1\r\nHost: a\r\n"
                          "Content-Encoding: gzip\r\nContent-Length: 1\r\n"
                          "\r\nx",
    "tabs around a length": "POST /a/x HTTP/1.1\r\nHost: a\r\n"
                            "Content-Length:\t3\t\r\n\r\nabc",
    "tabs around Host": "GET /a/x HTTP/1.1\r\nHost:\tlocalhost\t\r\n\r\n",
    "tabs in Connection": get("/a/x", "Connection:\tkeep-alive\t,\tx\t\r\n"),
    "a coding behind a tab": "POST /a/x HTTP/1.1\r\nHost: a\r\n"
                             "Transfer-Encoding:\tChunked \r\n\r\n0\r\n\r\n",
    "a length with forty zeros": "POST /a/x HTTP/1.1\r\nHost: a\r\n"
                                 "Content-Length: %s3\r\n\r\nabc" % ("0" * 40),
    "an Upgrade with a body": "POST /a/x HTTP/1.1\r\nHost: a\r\n"
                              "Connection: upgrade\r\nUpgrade: x\r\n"
                              "Content-Length: 3\r\n\r\nabc",
    "QUERY": "QUERY /a/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
             "\r\nabc",
    "PROPFIND": "PROPFIND /a/x HTTP/1.1\r\nHost: a\r\nDepth: 0\r\n\r\n",
    "Host with an underscore": get("/a/x", host="my_host"),
    "no length on POST": "POST /a/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "HEAD": "HEAD /a/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "PUT, PATCH": "PATCH /a/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
                  "\r\nx",
    "HTTP/1.0": "GET /a/x HTTP/1.0\r\n\r\n",
    "HTTP/1.0 with Host": "GET /a/x HTTP/1.0\r\nHost: a\r\n\r\n",
    "HTTP/1.0 with Expect": "POST /a/x HTTP/1.0\r\nHost: a\r\n"
                            "Expect: 100-continue\r\nContent-Length: 1\r\n"
                            "\r\nx",
    "HTTP/1.0 keep-alive": "GET /a/x HTTP/1.0\r\nConnection: keep-alive\r\n"
                           "\r\n",
    "Expect without a body": get("/a/x", "Expect: 100-continue\r\n"),
    "Expect in capitals": get("/a/x", "Expect: 100-CONTINUE\r\n"),
    "a long target": get("/a/" + "x" * 8000),
}
CHUNKED = "POST /a/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
for _name, _body in {
        "chunks": "3\r\nabc\r\n0\r\n\r\n", "no chunk": "0\r\n\r\n",
        "capitals and zeros": "00A\r\n0123456789\r\n000\r\n\r\n",
        "an extension": "1;a\r\nx\r\n0\r\n\r\n",
        "extensions": "1;a=b;c=\"d;e \\\"\t\"\r\nx\r\n0;f=g\r\n\r\n",
        "trailers": "1\r\nx\r\n0\r\nA: b\r\nC:\r\n\r\n",
        "obs-text in an extension": "1;a=\"\xe4\"\r\nx\r\n0\r\n\r\n",
        "thirty zeros": "0" * 30 + "1\r\nx\r\n0\r\n\r\n",
        "obs-text in a trailer": "1\r\nx\r\n0\r\nA: \xe4\r\n\r\n"}.items():
    LEGAL["chunked: " + _name] = CHUNKED + _body


def test_whatever_is_legal_is_served(g):
    """… with all words allowed. The connection goes on, too."""
    wrong = []
    for name, data in LEGAL.items():
        before = len(g.up.requests)
        with g.connect() as c:
            c.send(data.encode("latin-1"))
            try:
                r = c.response(data.strip().split(" ")[0])
                while r.status == 100:
                    r = c.response()
                seen = len(g.up.requests) - before
                if r.status not in (200, 404) or seen != 1:
                    wrong.append("%s: %r, %d at the upstream"
                                 % (name, r, seen))
                elif r.get("connection") != "close" and (
                        c.get("/a/again").status != 200):
                    wrong.append("%s: the connection is spoilt" % name)
            except EOFError as problem:
                wrong.append("%s: %s" % (name, problem))
    assert not wrong, "\n".join(wrong)


test_whatever_is_legal_is_served.timeout = 60


def test_options_star_needs_its_route(g):
    before = len(g.up.requests)
    r = g.request("OPTIONS", "*")
    equal((r.status, g.up.requests[before].target), (404, "*"))
    equal(g.one("GET * HTTP/1.1\r\nHost: a\r\n\r\n"), (400, None))
    with Gateway("""
gateway.any("/{path...}", { authorize = id.anyone,
  validate = { path = { path = { type = "string" } } },
  handle = function() return gateway.text "fine" end })
""") as bare:
        with bare.connect() as c:
            equal(c.request("OPTIONS", "*").status, 404)
            equal(c.request("OPTIONS", "/x").status, 200)


def test_connect_is_never_served(g):
    for data in ("CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n"
                 "\r\n", "TRACE /a/x HTTP/1.1\r\nHost: a\r\n\r\n"):
        equal(g.one(data), (501, None))


def check(text, *args):
    path = write(os.path.join(tmpdir("allow"), "p.lua"), """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen { address = "127.0.0.1:1", certificate = "%s/server.crt",
  key = "%s/server.key", client_ca = "%s/clients.pem", %s }
gateway.get("/x", { authorize = id.anyone, %s
  handle = function() return gateway.text "x" end })
""" % (PKI, PKI, PKI, args[0] if args else "", text))
    return gateway_cli("check", path), gateway_cli("check", path, "--json")


def test_check_shows_what_is_allowed(g):
    plain, machine = check('allow = { "semicolon", "underscore" },',
                           'strip_headers = { "X-User", "X-Team-*" }, '
                           'host_check = false')
    equal(plain.returncode, 0, plain.err)
    assert "allow     semicolon underscore" in plain.out, plain.out
    assert "X-User X-Team-*" in plain.out, plain.out
    doc = json.loads(machine.out)
    equal(doc["routes"][0]["allow"], ["semicolon", "underscore"])
    equal(doc["listeners"][0]["strip_headers"], ["X-User", "X-Team-*"])


def test_slips_are_found_at_load(g):
    for text, listen, want in (
            ('allow = { "semicolons" },', "", "did you mean 'semicolon'"),
            ('allow = "semicolon",', "", "option 'allow' must be a table"),
            ('allow = { semicolon = true },', "", "takes a list"),
            ('allow = { "dots" },', "", "there is"),
            ('validate = { json = { type = "object" } },', "", "body_on_get"),
            ('validate = { headers = { a_b = gateway.boolean } },', "",
             'add allow = { "underscore" }'),
            ("", 'strip_headers = { "Host" }', "reads itself"),
            ("", 'strip_headers = { "Content_*" }', "reads itself"),
            ("", 'strip_headers = { "a b" }', "no header name"),
            ("", 'strip_headers = { "*" }', "no header name")):
        plain, _ = check(text, listen)
        equal(plain.returncode, 1, text + listen)
        assert want in plain.err, "%s%s: %s" % (text, listen, plain.err)
