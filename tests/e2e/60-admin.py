"""/healthz and /metrics on the admin address, and nowhere else."""

import re

from gw import Client, Gateway, equal, one_of, socket, tmpdir, until

POLICY = """
gateway.admin { address = "127.0.0.1:@ADMIN@" }
gateway.admin { address = "unix:@SOCK@" }
local app = gateway.upstream { "http://127.0.0.1:1" }
gateway.get("/ok", { authorize = id.ou "ops",
  handle = function() return gateway.text "fine" end })
gateway.get("/item/{n}", { authorize = id.anyone,
  validate = { path = { n = gateway.integer(1, 9) } },
  handle = function() return gateway.text "fine" end })
gateway.get("/gone", { authorize = id.anyone, handle = app })
"""


def setup():
    return Gateway(POLICY, workers=2, SOCK=tmpdir("admin") + "/sock")


def test_healthz(g):
    r = g.admin("/healthz")
    equal(r.status, 200)


def test_over_a_unix_socket(g):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    s.connect(g.tokens["SOCK"])
    with Client(sock=s) as c:
        equal(c.get("/healthz").status, 200)
        equal(c.get("/metrics").status, 200)


def test_metrics_are_prometheus_text(g):
    g.get("/ok")
    r = g.admin("/metrics")
    equal(r.status, 200)
    assert r.get("content-type").startswith("text/plain"), r
    typed = set()
    for line in r.text.splitlines():
        if line.startswith("# TYPE "):
            name = line.split()[2]
            assert name not in typed, "two TYPE lines of " + name
            typed.add(name)
        elif line and not line.startswith("#"):
            m = re.fullmatch(r'([a-zA-Z_:][\w:]*)(\{.*\})? -?[\d.e+-]+', line)
            assert m, "not a sample: " + line
            base = re.sub(r"_(bucket|sum|count)$", "", m.group(1))
            assert base in typed or m.group(1) in typed, "no TYPE: " + line


def test_counts_of_all_workers(g):
    before = g.metric("gateway_requests_total")
    for _ in range(20):
        equal(g.get("/ok").status, 200)
    until(lambda: g.metric("gateway_requests_total") >= before + 20,
          "twenty requests are counted")
    before = g.metric("gateway_denials_total", stage="authorize")
    equal(g.get("/ok", who="guest").status, 403)
    until(lambda: g.metric("gateway_denials_total", stage="authorize")
          == before + 1, "the denial is counted")
    assert g.metric("gateway_tls_handshakes_total", result="ok") >= 21
    assert g.metric("gateway_connections") <= 1
    before = g.metric("http_server_request_duration_seconds_count",
                      route="GET /item/{n}")
    equal(g.get("/item/3").status, 200)
    until(lambda: g.metric("http_server_request_duration_seconds_count",
                           route="GET /item/{n}") == before + 1,
          "the route is counted")


def test_labels_are_patterns_not_paths(g):
    g.get("/item/7")
    text = g.admin("/metrics").text
    assert "/item/{n}" in text and "/item/7" not in text, "a path is a label"
    assert "ops" not in text, "an identity is a label"


def test_nothing_else_is_there(g):
    for path in ("/", "/ok", "/healthz/", "/metrics/..", "/../metrics",
                 "/healthz?x=1", "/debug"):
        one_of(g.admin(path).status, (200, 404, 400)
               if "?" in path else (404, 400), path)
    s = socket.create_connection(("127.0.0.1", g.admin_port), 10)
    with Client(sock=s) as c:
        one_of(c.request("POST", "/metrics", body=b"x").status,
               (405, 400, 404, 413))
    s = socket.create_connection(("127.0.0.1", g.admin_port), 10)
    with Client(sock=s) as c:
        equal(c.request("HEAD", "/healthz").status, 200)


def test_not_on_the_listener(g):
    equal(g.get("/metrics").status, 404)
    equal(g.get("/healthz").status, 404)


def test_rubbish_on_the_admin_address(g):
    for data in (b"\x16\x03\x01\x00\x05hello\r\n\r\n", b"GET /healthz\r\n\r\n",
                 b"GET /healthz HTTP/1.1\r\n\r\n",
                 b"GET /" + b"x" * 100000 + b" HTTP/1.1\r\n\r\n",
                 b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
                 b"A: b\nc\r\n\r\n"):
        s = socket.create_connection(("127.0.0.1", g.admin_port), 10)
        with Client(sock=s) as c:
            c.send(data)
            answers, closed = c.drain()
            assert closed, "still open"
            for r in answers:
                assert r.status >= 400, r
    equal(g.admin("/healthz").status, 200)
