"""gateway.openapi: what a document says is let in, and nothing else."""

import json
import os
import shutil

from gw import (Gateway, Upstream, check_sarif, equal, gateway_cli, one_of, read,
                tmpdir, write)

DOCUMENTS = os.path.join(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))), "openapi")
POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@", name = "app" }
gateway.openapi {
  file = "orders-3.0.yaml", upstream = app:to "/internal/all", authorize = id.ou "ops",
  handlers = {
    listOrders = function(request)
      local q = request.query
      return gateway.json { limit = q.limit, status = q.status,
        since = q.since, exact = q.exact, fields = q.fields,
        parts = request.headers["x-parts"], tenant = request.headers["x-tenant"] }
    end,
    getOrder = { handle = function(request)
      return gateway.text(request.path.order_id) end },
    changeOrder = app:to "/internal/{order_id}",
    deleteOrder = { authorize = id.ou "managers" },
  },
}
gateway.openapi { file = "more/devices-3.1.yaml", upstream = app:to "/internal/all",
  authorize = id.anyone, handlers = { postFirmware = false } }
gateway.openapi { file = "pets-2.0.json", authorize = id.anyone,
  prefix = "/zoo", missing = "refuse",
  handlers = {
    findPets = function(request)
      return gateway.json(request.query.tags or gateway.list {}) end,
    addPet = function(request) return gateway.json(request.json) end,
    ["DELETE /pets/{id}"] = function(request)
      return gateway.text(math.type(request.path.id)) end,
  } }
"""
STRICT = """\
openapi: 3.1.0
info: {title: t, version: "1"}
servers: [{url: https://a.example}]
security: [{m: []}]
paths:
  /a/{id}:
    get:
      operationId: getA
      parameters:
        - name: id
          in: path
          schema: {type: string, pattern: '^[a-z]{1,9}$', maxLength: 9}
components: {securitySchemes: {m: {type: mutualTLS}}}
"""
ID = "0b6d3a52-7f7e-4b2c-9b0e-3e5a3f0d9c11"
ORDER = {"customer": {"email": "a@example.org"},
         "lines": [{"sku": "AB-1234", "count": 1}]}
TENANT = [("X-Tenant", "acme")]


class Both(Gateway):
    def __init__(self):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port, prepare=documents)

    def stop(self):
        self.up.stop()
        return super().stop()


def documents(folder):
    shutil.copy(os.path.join(DOCUMENTS, "orders-3.0.yaml"), folder)
    shutil.copy(os.path.join(DOCUMENTS, "pets-2.0.json"), folder)
    os.mkdir(os.path.join(folder, "more"))
    shutil.copy(os.path.join(DOCUMENTS, "devices-3.1.yaml"),
                os.path.join(folder, "more"))
    # nobody names this one: it is not even opened
    write(os.path.join(folder, "other.yaml"), "a: [", 0o000)


def setup():
    return Both()


def order(**changes):
    made = json.loads(json.dumps(ORDER))
    for name, value in changes.items():
        made[name] = value
    return made


def test_parameters_reach_the_hook(g):
    r = g.request("GET", "/v1/orders?limit=3&status=new&status=paid"
                  "&since=2026-02-28&exact=true", TENANT)
    equal(r.json(), {"limit": 3, "status": ["new", "paid"],
                     "since": "2026-02-28", "exact": True, "tenant": "acme"})
    r = g.request("GET", "/v1/orders", TENANT)
    equal(r.json(), {"limit": 20, "tenant": "acme"})


def test_parameters_refused(g):
    for target in ("?limit=0", "?limit=101", "?limit=x", "?limit=1&limit=2",
                   "?status=lost", "?status=new&status=new&status=new&status=new",
                   "?status=new,paid", "?since=2026-02-30", "?exact=yes",
                   "?unknown=1", "?limit="):
        r = g.request("GET", "/v1/orders" + target, TENANT)
        equal(r.status, 422, target)
    for value in ("ACME", "ab", "acme ", "acme\tx", "a" * 13):
        r = g.request("GET", "/v1/orders", [("X-Tenant", value)])
        one_of(r.status, (422, 200) if value == "acme " else (422,), value)
    equal(g.request("GET", "/v1/orders").status, 422)
    equal(g.request("GET", "/orders", TENANT).status, 404)
    equal(g.request("PUT", "/v1/orders", TENANT).status, 405)


def test_lists_between_commas(g):
    for target, parts, want in (
            ("?fields=a,bc", "7", {"fields": ["a", "bc"], "parts": [7]}),
            ("?fields=a", "7,-8,9", {"fields": ["a"], "parts": [7, -8, 9]})):
        r = g.request("GET", "/v1/orders" + target,
                      TENANT + [("X-Parts", parts)])
        equal(r.json(), dict(want, limit=20, tenant="acme"))
    for bad in ("?fields=a,b,c,d", "?fields=", "?fields=a,,b", "?fields=a,",
                "?fields=,", "?fields=a&fields=b", "?fields=a%2Cb",
                "?fields=a%2cb", "?fields=a;b", "?fields=a,B"):
        one_of(g.request("GET", "/v1/orders" + bad, TENANT).status,
               (400, 422), bad)
    for bad in ("", ",", "1,2,3,4", "1, 2", "1,x", "1;2", "1,2,"):
        r = g.request("GET", "/v1/orders", TENANT + [("X-Parts", bad)])
        equal(r.status, 422, bad)
    r = g.request("GET", "/v1/orders",
                  TENANT + [("X-Parts", "1"), ("X-Parts", "2")])
    equal(r.status, 422)


def test_who(g):
    equal(g.request("GET", "/v1/orders", TENANT, who="guest").status,
          403)
    equal(g.request("DELETE", "/v1/orders/" + ID, TENANT).status, 403)
    equal(g.request("DELETE", "/v1/orders/" + ID, TENANT,
                    who="boss").status, 200)


def test_paths(g):
    equal(g.request("GET", "/v1/orders/" + ID, TENANT).text, ID)
    for bad in ("1", ID + "0", ID.replace("-", "_"), "..", "%2e%2e", ID + "%2f",
                ID + "%0a"):
        r = g.request("GET", "/v1/orders/" + bad, TENANT)
        one_of(r.status, (400, 404, 422), bad)


def test_bodies(g):
    before = len(g.up.requests)
    for good in (order(), order(lines=[{"sku": "AB-1234", "count": 99,
                                     "price": 0.07, "parts": [
                                         {"sku": "ZZ-0000", "count": 1}]}]),
                 order(payment={"kind": "card", "number": "1" * 12}),
                 order(payment={"kind": "Invoice", "days": 14}),
                 order(note=None)):
        r = g.post_json("/v1/orders", good, TENANT)
        equal(r.status, 200, json.dumps(good))
        equal(json.loads(r.json()["body"]), good)
    equal(len(g.up.requests), before + 5, "requests at the upstream")


def test_bodies_refused(g):
    before, wrong = len(g.up.requests), []
    line = ORDER["lines"][0]
    for bad in ({}, {"lines": []}, order(lines=None), order(lines=[]), order(lines=[line] * 6),
                order(id=ID), order(extra=1),
                order(customer={"email": "nobody"}),
                order(customer={"email": "a@example.org", "role": "admin"}),
                order(customer={"email": "a@example.org",
                                "born": "1999-02-29"}),
                order(lines=[dict(line, count=0)]),
                order(lines=[dict(line, count=100)]),
                order(lines=[dict(line, count="1")]),
                order(lines=[dict(line, price=0.001)]),
                order(lines=[dict(line, sku="AB-12345")]),
                order(lines=[dict(line, sku="AB-1234\n")]),
                order(lines=[dict(line, parts=[{"sku": "x", "count": 1}])]),
                order(note="x" * 81), order(note=7),
                # another kind than its members are of
                order(payment={"kind": "Invoice", "number": "1" * 12}),
                order(payment={"kind": "Card", "number": "1" * 12}),
                order(payment={"kind": "card", "days": 14}),
                order(payment={"kind": "x"}), order(payment={}),
                order(payment=None), [], "x", None):
        r = g.post_json("/v1/orders", json.dumps(bad).encode(), TENANT)
        if r.status != 422:
            wrong.append("%s: %d" % (json.dumps(bad), r.status))
    assert not wrong, "\n".join(wrong)
    equal(len(g.up.requests), before, "requests at the upstream")


def patch(g, body, media="application/merge-patch+json"):
    return g.request("PATCH", "/v1/orders/" + ID,
                     TENANT + [("Content-Type", media)],
                     json.dumps(body).encode())


def test_another_media_type_of_json(g):
    r = patch(g, {"status": "paid", "note": "x"})
    equal((r.status, r.json()["path"]), (200, "/internal/" + ID))
    equal(patch(g, {"status": "paid"}, "application/json").status, 415)
    for bad in ({}, {"status": "lost"}, {"note": 1}, {"other": 1}):
        equal(patch(g, bad).status, 422, json.dumps(bad))


def test_bytes(g):
    path = "/v1/orders/%s/label" % ID
    for media in ("image/png", "image/jpeg"):
        r = g.request("PUT", path, [("Content-Type", media)], b"\x89" * 1000)
        equal((r.status, r.json()["bytes"]), (200, 1000))
    r = g.request("PUT", path, [("Content-Type", "image/png")], b"\x89" * 1001)
    equal(r.status, 413)
    r = g.request("PUT", path, [("Content-Type", "text/html")], b"x")
    equal(r.status, 415)


def put(g, body, serial="0123ABCD"):
    return g.request("PUT", "/api/v2/devices/%s/settings" % serial,
                     [("Content-Type", "application/json")],
                     json.dumps(body).encode(), who="camera")


def test_openapi_31(g):
    for good in ({"mode": "off"}, {"mode": "manual", "celsius": None},
                 {"mode": "auto", "celsius": 4.5, "window":
                  ["12:00:00Z", 255], "key": "AAEC"},
                 {"mode": "off", "labels": {"a": "x"}}):
        equal(put(g, good).status, 200, json.dumps(good))
    for bad in ({}, {"mode": False}, {"mode": "manual"},
                {"mode": "auto", "celsius": 4}, {"mode": "off", "x": 1},
                {"mode": "off", "window": ["12:00:00Z", 256]},
                {"mode": "off", "window": ["12:00:00Z", 1, 1]},
                {"mode": "off", "key": "A"}, {"mode": "off", "labels":
                                              {"A": "x"}},
                {"mode": "off", "labels": {"a": 1}},
                {"mode": "off", "celsius": 5, "key": "AAEC", "labels": {},
                 "window": ["12:00:00Z", 1]}):
        equal(put(g, bad).status, 422, json.dumps(bad))
    equal(put(g, {"mode": "off"}, "0123abcd").status, 422)


def test_an_operation_that_is_refused_is_not_there(g):
    r = g.request("POST", "/api/v2/devices/0123ABCD/firmware",
                  [("Content-Type", "application/octet-stream")], b"x")
    equal(r.status, 404)


def test_swagger_20(g):
    equal(g.request("GET", "/zoo/pets?tags=a&tags=b&limit=1").json(),
          ["a", "b"])
    for bad in ("?limit=0", "?limit=51", "?tags=A", "?tags=a,b",
                "?tags=a&tags=b&tags=c"):
        equal(g.request("GET", "/zoo/pets" + bad).status, 422, bad)
    equal(g.post_json("/zoo/pets", {"name": "x", "tag": "cat"}).status, 200)
    for bad in ({"name": "x", "id": 1}, {"name": "x", "tag": None},
                {"name": ""}, {}, {"name": "x", "tag": "cow"}):
        equal(g.post_json("/zoo/pets", bad).status, 422, json.dumps(bad))
    equal(g.request("DELETE", "/zoo/pets/9223372036854775807").text, "integer")
    for bad in ("0", "9223372036854775808", "1.0", "x"):
        equal(g.request("DELETE", "/zoo/pets/" + bad).status, 422, bad)


def test_check_shows_the_lines_of_the_document(g):
    out = gateway_cli("check", g.policy, cwd=g.dir).out
    lines = read(os.path.join(g.dir, "orders-3.0.yaml")).decode().split("\n")
    number = lines.index("    post:") + 1
    assert "POST /v1/orders    (%s/orders-3.0.yaml:%d)" % (g.dir, number) \
        in out, out


def test_a_reload_takes_the_new_document(g):
    path = os.path.join(g.dir, "pets-2.0.json")
    old = read(path).decode()
    write(path, old.replace('"cat", "dog"', '"cat", "cow"'))
    g.reload()
    equal(g.post_json("/zoo/pets", {"name": "x", "tag": "cow"}).status, 200)
    equal(g.post_json("/zoo/pets", {"name": "x", "tag": "dog"}).status, 422)
    write(path, old.replace('"enum"', '"enun"'))
    mark = g.mark()
    g.reload(good=False)
    number = old[:old.index('"enum"')].count("\n") + 1
    g.wait_line("pets-2.0.json:%d: enun: there is no such keyword: did you mean"
                " 'enum'?" % number, since=mark)
    equal(g.post_json("/zoo/pets", {"name": "x", "tag": "cow"}).status, 200)
    write(path, old)


def test_fuzzed(g):
    """Requests from the schemas of the documents, judged by a second opinion:
    every invalid one is refused, every valid one is served."""
    path = write(os.path.join(g.dir, "empty_test.lua"), """
local t = require "gateway.test"
t.case("nothing", function() end)
""")
    done = gateway_cli("test", "--policy", g.policy, "--fuzz", "2", "--seed",
                       "7", path, cwd=g.dir)
    equal(done.returncode, 0, done.err + done.out)
    assert " valid, " in done.err + done.out, done.err + done.out


def checked(policy, document, name="api.yaml"):
    """What `gateway check` says of a policy with one document."""
    folder = tmpdir("openapi")
    write(os.path.join(folder, name), document)
    write(os.path.join(folder, "p.lua"), """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen { address = "127.0.0.1:1", certificate = "c", key = "k",
  client_ca = "a" }
""" + policy)
    done = gateway_cli("check", "p.lua", cwd=folder)
    return done.err + done.out


def test_what_does_not_load():
    good = read(os.path.join(DOCUMENTS, "orders-3.0.yaml")).decode()
    rows = (
        ('gateway.openapi "api.yaml"', good,
         "p.lua:6: gateway.openapi: nothing handles GET /orders (listOrders,"
         " at api.yaml:15)"),
        ('gateway.openapi "apis.yaml"', good,
         'p.lua:6: gateway.openapi: "apis.yaml" was not found: keep it in the'),
        ('gateway.openapi("api" .. ".yaml")', good, "was not found: keep it"),
        ('gateway.openapi { file = "api.yaml", missing = "refuse",'
         ' handlers = { getOrder = function() end } }', good,
         "p.lua:6: gateway.openapi: option 'authorize' is missing, for all or"
         " for GET /orders/{order-id} (at api.yaml:"),
        ('gateway.openapi { file = "api.yaml", handlers = { getOrders ='
         ' function() end } }', good,
         "handlers: api.yaml has no operation \"getOrders\": did you mean"
         " 'getOrder'?"),
        ('gateway.openapi { file = "api.yaml", authorize = id.anyone,'
         ' missing = "refuse", handlers = { getOrder = 5 } }', good,
         "gateway.openapi (p.lua:6) GET /orders/{order-id}: handle must be"),
        ('gateway.openapi { file = "api.yaml", fil = 1 }', good,
         "p.lua:6: gateway.openapi: unknown option 'fil': did you mean 'file'"),
        ('gateway.openapi "api.yaml"', good.replace("maxItems: 3", "maxItems: [", 1),
         "api.yaml:29: did not find expected ',' or ']'"),
        ('gateway.openapi "api.yaml"', good.replace("operationId", "operationID",
                                                    1),
         "api.yaml:16: operationID: there is no such field: did you mean"
         " 'operationId'?"),
    )
    for policy, document, want in rows:
        out = checked(policy, document)
        assert want in out, "%s\n%s" % (want, out)


def audited(*argv, folder=None):
    done = gateway_cli("audit", *argv, cwd=folder)
    return done.returncode, done.out, done.err


def test_audit_of_a_document():
    code, out, _ = audited("--openapi",
                           os.path.join(DOCUMENTS, "orders-3.0.yaml"))
    assert "body.note takes any text (openapi.text-unchecked)" in out, out
    equal(code, 0)
    code, out, _ = audited("--fail-on=medium", "--openapi",
                           os.path.join(DOCUMENTS, "orders-3.0.yaml"))
    equal(code, 1)
    code, out, _ = audited("--openapi",
                           os.path.join(DOCUMENTS, "pets-2.0.json"))
    assert "pets-2.0.json:10: high: GET /pets: anybody may call it" in out, out
    equal(code, 1)
    code, out, err = audited("--openapi", "no-such-file.yaml")
    equal((code, out), (1, ""))
    assert "no-such-file.yaml: No such file" in err, err


def test_audit_of_a_document_that_is_strict():
    folder = tmpdir("openapi")
    write(os.path.join(folder, "api.yaml"), STRICT)
    equal(audited("--openapi", "api.yaml", "--fail-on", "info",
                  folder=folder)[:2],
          (0, "0 high, 0 medium, 0 low, 0 info; 0 suppressed\n"))
    out = json.loads(audited("--openapi", "api.yaml", "--format=json",
                             folder=folder)[1])
    equal(out["findings"], [])
    write(os.path.join(folder, "api.yaml"), STRICT.replace("$'", "'"))
    out = json.loads(audited("--openapi", "api.yaml", "--format=sarif",
                             folder=folder)[1])
    check_sarif(out)
    result = out["runs"][0]["results"][0]
    equal((result["ruleId"], result["level"]),
          ("openapi.pattern-unanchored", "error"))
    equal(result["locations"][0]["physicalLocation"]["region"]["startLine"], 12)


def test_audit_of_a_document_beside_a_policy():
    folder = tmpdir("openapi")
    write(os.path.join(folder, "api.yaml"), STRICT)
    head = """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen { address = "127.0.0.1:1", certificate = "c", key = "k",
  client_ca = "a" }
"""
    rows = (
        ('gateway.openapi { file = "api.yaml", authorize = id.ou "ops",'
         ' upstream = function() return true end }', ()),
        ('gateway.get("/a", { authorize = id.ou "ops", handle = function()'
         ' return gateway.text "x" end })',
         ("api.yaml:7: medium: GET /a/{id}: the policy has no route for it",
          "p.lua:6: medium: api.yaml does not know GET /a ")),
        ('gateway.get("/a", { authorize = id.ou "ops", handle = function()'
         ' return gateway.text "x" end })'
         ' -- audit: allow openapi.undocumented because it is so',
         ("api.yaml:7: medium: GET /a/{id}: the policy has no route for it",)),
    )
    for policy, wanted in rows:
        write(os.path.join(folder, "p.lua"), head + policy)
        code, out, err = audited("--openapi", "api.yaml", "p.lua",
                                 folder=folder)
        equal(err, "")
        equal(out.count("(openapi."), len(wanted), out)
        for want in wanted:
            assert want in out, "%s\n%s" % (want, out)
