"""The wrong identity gets 403 as a problem; each condition means its field."""

from gw import (PKI, Gateway, cert_der, cert_serial, equal, hashlib, read,
                shutil, write)

CONDITIONS = [
    # condition, who may, who may not
    ('id.ou "ops"', ["ops", "boss", "second-ops"], ["guest", "camera"]),
    ('id.ou "managers"', ["boss"], ["ops", "guest"]),
    ('id.cn "camera"', ["camera"], ["ops"]),
    ('id.spiffe "spiffe://example.org/ns/*/sa/camera"',
     ["camera", "second-ops"], ["shop", "ops"]),
    ('id.spiffe "spiffe://example.org/ns/shop/**"', ["shop"], ["camera"]),
    ('id.spiffe "spiffe://example.org/ns/*"', [], ["shop", "camera"]),
    ('id.any(id.ou "guests", id.cn "camera")', ["guest", "camera"], ["ops"]),
    ('id.all(id.ou "ops", id.ou "managers")', ["boss"], ["ops"]),
    ('id.none(id.ou "ops")', ["guest", "camera"], ["ops", "boss"]),
    ('id.dns "a.example.org"', ["second-ops"], ["ops"]),
    ('id.email "ops@example.org"', ["second-ops"], ["ops"]),
    ('id.fingerprint "@FINGER@"', ["ops"], ["boss"]),
    ('id.eku "clientAuth"', ["ops"], []),
    ('id.ca "@PKI@/second-ca.crt"', ["second-ops", "middle-ops"],
     ["ops", "rsa-ops"]),
    ('id.ca "@PKI@/middle-ca.crt"', ["middle-ops"], ["second-ops", "ops"]),
    ("id.anyone", ["guest", "ops"], []),
    ("function(i) return i:has('ou', 'ops') end", ["ops"], ["guest"]),
    ("function(i) return i.serial == '@SERIAL@' end", ["ops"], ["boss"]),
]


def setup():
    routes = "".join(
        'gateway.get("/c%d", { authorize = %s, handle = function() '
        'return gateway.text "in" end })\n' % (n, c[0])
        for n, c in enumerate(CONDITIONS))
    g = Gateway(routes + """
gateway.get("/me", { authorize = id.anyone, handle = function(_, i)
  return gateway.json { cn = i.subject.cn, ou = i.subject.ou,
    dn = i.subject.dn, uri = i.san.uri, dns = i.san.dns, email = i.san.email,
    ip = i.san.ip, spiffe = i.spiffe, serial = i.serial, issuer = i.issuer,
    fingerprint = i.fingerprint, spki = i.spki, key = i.key, eku = i.eku,
    chain = #i.chain, resumed = i.resumed,
    dates = i.not_after > i.not_before } end })
local v1 = gateway.group("/v1", { authorize = id.ou "ops" })
gateway.get("/tenant", { client_ca = "@PKI@/second-ca.crt",
  authorize = id.ou "ops", handle = function(_, i)
    return gateway.json(i.ca) end })
v1:get("/both", { authorize = id.ou "managers",
  handle = function() return gateway.text "in" end })
""", FINGER=hashlib.sha256(cert_der("ops")).hexdigest(),
                SERIAL=cert_serial("ops"))
    return g


def test_each_condition(g):
    wrong = []
    for n, (condition, may, may_not) in enumerate(CONDITIONS):
        for who, want in [(w, 200) for w in may] + [(w, 403) for w in may_not]:
            got = g.get("/c%d" % n, who=who).status
            if got != want:
                wrong.append("%s for %s: %d" % (condition, who, got))
    assert not wrong, "\n".join(wrong)


def test_403_is_a_problem_with_the_request_id(g):
    mark = g.mark()
    r = g.get("/c1", who="guest")
    equal(r.status, 403)
    equal(r.get("content-type"), "application/problem+json")
    problem = r.json()
    equal(problem["status"], 403)
    assert problem.get("title"), problem
    assert len(problem["request_id"]) >= 16, problem
    g.wait_line("decision", problem["request_id"], "403", since=mark)


def test_the_reason_is_in_the_log_only(g):
    mark = g.mark()
    r = g.get("/c1", who="guest")
    assert "managers" not in r.text, r
    g.wait_line("decision", "managers", since=mark)


def test_a_denied_request_keeps_the_connection(g):
    with g.connect("guest") as c:
        equal(c.get("/c1").status, 403)
        equal(c.get("/c6").status, 200)


def test_a_group_adds_and_never_replaces(g):
    equal(g.get("/v1/both", who="boss").status, 200)
    equal(g.get("/v1/both", who="ops").status, 403)
    equal(g.get("/v1/both", who="guest").status, 403)


def test_a_route_with_its_own_ca(g):
    equal(g.get("/tenant", who="second-ops").json(), [PKI + "/second-ca.crt"])
    equal(g.get("/tenant", who="middle-ops").json(),
          [PKI + "/second-ca.crt", PKI + "/middle-ca.crt"])
    mark = g.mark()
    equal(g.get("/tenant", who="ops").status, 403)
    g.wait_line("goes through no CA of", "second-ca.crt", since=mark)


def test_deny_by_default(g):
    r = g.get("/not-declared")
    equal(r.status, 404)
    equal(r.get("content-type"), "application/problem+json")
    with g.connect() as c:
        r = c.request("POST", "/me", body=b"")
        equal(r.status, 405)
        assert "GET" in (r.get("allow") or ""), r


def test_the_identity_is_what_openssl_says(g):
    me = g.get("/me", who="second-ops").json()
    equal(me["cn"], ["second-ops"])
    equal(me["ou"], ["ops"])
    equal(me["uri"], ["spiffe://example.org/ns/eu/sa/camera"])
    equal(me["spiffe"], "spiffe://example.org/ns/eu/sa/camera")
    equal(me["dns"], ["a.example.org"])
    equal(me["email"], ["ops@example.org"])
    equal(me["ip"], ["192.0.2.7"])
    equal(me["eku"], ["clientAuth"])
    equal(me["fingerprint"],
          hashlib.sha256(cert_der("second-ops")).hexdigest())
    equal(me["serial"].lstrip("0"), cert_serial("second-ops").lstrip("0"))
    equal(me["resumed"], False)
    equal(me["dates"], True)
    assert "CN=second-ca" in me["issuer"], me
    equal(me["dn"], "CN=second-ops,OU=ops")
    equal(g.get("/me", who="boss").json()["ou"], ["ops", "managers"])


def test_the_chain_has_issuers_only(g):
    """What a client sends beside its path must not be in it."""
    assert g.get("/me", who="middle-ops").json()["chain"] in (1, 2)
    write(PKI + "/chatty.crt", read(PKI + "/ops.crt")
          + read(PKI + "/wrong-ca.crt"))
    shutil.copy(PKI + "/ops.key", PKI + "/chatty.key")
    try:
        chain = g.get("/me", who="chatty").json()["chain"]
    except (OSError, EOFError):
        return  # refused altogether: as good
    assert chain <= 1, "%d issuers" % chain
