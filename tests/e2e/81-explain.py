"""gateway explain, whoami, routes: what a policy decides, and why."""

import csv
import io
import json
import os

from gw import PKI, equal, gateway_cli, tmpdir, write

POLICY = """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen { name = "main", address = "127.0.0.1:1",
  certificate = "-", key = "-", client_ca = "@PKI@/ca.crt" }
gateway.listen { name = "second", address = "127.0.0.1:2",
  certificate = "-", key = "-", client_ca = "@PKI@/second-ca.crt" }
gateway.tcp { listen = { name = "redis", address = "127.0.0.1:3",
    certificate = "-", key = "-", client_ca = "@PKI@/ca.crt" },
  authorize = id.ou "managers", to = "tcp://127.0.0.1:6379" }
local app = gateway.upstream { "http://127.0.0.1:4", name = "app" }
local tail = gateway.command { name = "tail", program = "/usr/bin/tail",
  args = { "-n", gateway.slot "n" }, slots = { n = gateway.integer(1, 9) } }
local function run(request)
  return gateway.text(tail:run({ n = request.query.n }).stdout)
end
gateway.get("/tail", { authorize = id.ou "ops",
  validate = { query = { n = gateway.optional(gateway.integer(1, 9), 3) } },
  handle = function(request) return run(request) end })
gateway.get("/photos/{name}", {
  authorize = id.spiffe "spiffe://example.org/ns/*/sa/camera",
  validate = { path = { name = gateway.filename } },
  handle = app:to "/internal/{name}" })
gateway.post("/orders", {
  authorize = function(identity)
    return identity:has("ou", "ops"), "not of ops"
  end,
  validate = { json = gateway.object { total = gateway.integer(0, 1000) },
    headers = { ["X-Tenant"] = gateway.enum { "a", "b" } } },
  check = function(request) return request.json.total < 500, "too much" end,
  handle = function() error "broken" end })
gateway.get("/second", { authorize = id.anyone, listener = "second",
  handle = function() return gateway.text "x" end })
gateway.get("/waits", { authorize = function(identity)
    gateway.sleep(60)
    return identity:has("ou", "ops")
  end, handle = function() return gateway.text "x" end })
"""


class Policy:
    def __init__(self):
        self.dir = tmpdir("explain")
        self.file = write(os.path.join(self.dir, "policy.lua"),
                          POLICY.replace("@PKI@", PKI))
        lines = POLICY.split("\n")
        self.line = lambda text: next(
            "%s:%d" % (self.file, i) for i, line in enumerate(lines, 1)
            if text in line)

    def run(self, command, *argv):
        return gateway_cli(command, "--policy", self.file, *argv)

    def explain(self, who, *argv):
        return self.run("explain", "--identity", who, *argv)

    def told(self, who, *argv):
        return json.loads(self.explain(who, "--format", "json", *argv).out)


def setup():
    return Policy()


def crt(name):
    return os.path.join(PKI, name + ".crt")


def holds(text, *parts):
    for part in parts:
        assert part in text, "%r is not in:\n%s" % (part, text)


def test_allowed(p):
    run = p.explain(crt("ops"), "/tail?n=5")
    equal(run.returncode, 0, run.out + run.err)
    holds(run.out, "GET /tail?n=5", 'authorize  yes  ou "ops"',
          p.line('gateway.get("/tail"'), 'query      yes  n = "5"',
          "would run /usr/bin/tail -n 5", "allowed (answer 200")
    holds(run.out, p.line("function(request) return run"))
    run = p.explain(crt("ops"), "/tail")
    holds(run.out, "n (not given)", "tail -n 3")


def test_refused_names_the_nearest_part(p):
    run = p.explain("spiffe=spiffe://example.org/ns/eu/sa/reader",
                    "/photos/a.jpg")
    equal(run.returncode, 1)
    holds(run.out, 'spiffe id differs in segment 4: "reader" instead of '
          '"camera"', "refused with 403 at authorize",
          "path       -    name", p.line('gateway.get("/photos'))


def test_inputs(p):
    run = p.explain("ou=ops", "/tail?n=10")
    equal(run.returncode, 1)
    holds(run.out, 'query      NO   n = "10"', "must be at most 9 (maximum)",
          '"maximum":9', "refused with 422 at validate")
    run = p.explain("ou=ops", "/tail?m=1")
    holds(run.out, 'query      NO   m = "1"', "is not declared")
    told = p.told("ou=ops", "/tail?n=10")
    equal((told["allowed"], told["status"], told["where"], told["name"]),
          (False, 422, "query", "n"))
    equal([s["stage"] for s in told["steps"]],
          ["route", "authorize", "query"])


def test_bodies_headers_and_hooks(p):
    body = ("-H", "X-Tenant: a", "--json", '{"total":%d}')
    run = p.explain("ou=ops", *body[:3], body[3] % 700, "/orders")
    equal(run.returncode, 1)
    holds(run.out, "POST /orders", "check      NO   function(request",
          "too much", p.line("check = function"),
          "authorize  yes  function(identity)",
          p.line("authorize = function(identity)\n".strip()))
    run = p.explain("ou=ops", *body[:3], body[3] % 7000, "/orders")
    holds(run.out, "json at /total: must be at most 1000 (maximum)",
          "check      -    function")
    run = p.explain("ou=ops", "--json", '{"total":1}', "/orders")
    holds(run.out, "headers    NO   x-tenant", "is missing")
    run = p.explain("ou=dev", "--json", '{"total":1}', "/orders")
    holds(run.out, "not of ops", "403 at authorize")
    # the handler fails, but the policy lets it come so far
    run = p.explain("ou=ops", *body[:3], body[3] % 7, "/orders")
    equal(run.returncode, 0)
    holds(run.out, "let through, but handle failed: 500", "broken")
    name = write(os.path.join(p.dir, "body.json"), '{"total":7}')
    run = p.explain("ou=ops", "-H", "X-Tenant: a", "--json", "@" + name,
                    "/orders")
    equal(run.returncode, 0, run.out)
    run = p.explain("ou=ops", "-H", "X-Tenant: a", "-H",
                    "Content-Type: text/plain", "-d", "x", "/orders")
    holds(run.out, "415 at body")


def test_no_route(p):
    run = p.explain("ou=ops", "/tial")
    equal(run.returncode, 1)
    holds(run.out, "404 at route", "nearest: GET /tail", 'is "tial", not '
          '"tail"')
    run = p.explain("ou=ops", "-X", "DELETE", "/tail")
    holds(run.out, "405 at route", "the method is DELETE, not GET")
    run = p.explain("ou=ops", "/second")
    holds(run.out, 'it is on listener "second", not "main"')
    run = p.explain("ou=ops", "/photos/..%2fx")
    holds(run.out, "400 at syntax")
    told = p.told("ou=ops", "/tial")
    equal(told["steps"][0]["nearest"][0]["at"], p.line('gateway.get("/tail"'))


def test_forwards(p):
    told = p.told(crt("camera"), "/photos/a.jpg")
    equal(told["allowed"], True)
    forward = told["steps"][-1]["forwards"][0]
    equal((forward["upstream"], forward["target"]),
          ("app", "/internal/a.jpg"))


def test_certificates_are_judged(p):
    run = p.explain(crt("wrong-ops"), "/tail")
    equal(run.returncode, 1)
    holds(run.out, "refused in the handshake:")
    assert "authorize" not in run.out, run.out
    run = p.explain(crt("second-ops"), "/second")
    holds(run.out, "refused in the handshake:")
    run = p.explain(crt("second-ops"), "--listener", "second", "/second")
    equal(run.returncode, 0, run.out)
    run = p.explain(crt("expired"), "--listener", "second", "/second")
    holds(run.out, "expired")


def test_a_pasted_url(p):
    run = p.explain(crt("ops"), "https://localhost:24443/tail?n=5#top")
    equal(run.returncode, 0, run.out + run.err)
    holds(run.out, "GET /tail?n=5", 'query      yes  n = "5"')
    run = p.explain(crt("ops"), "https://other.example")
    holds(run.out, "GET /\n", "404 at route")


def test_what_no_log_has_is_no_refusal(p):
    name = write(os.path.join(p.dir, "a.log"), json.dumps({
        "event": "access", "id": "ab" * 16, "method": "POST",
        "target": "/orders", "status": 422,
        "listener": "main", "identity": "OU=ops", "serial": "01"},
        separators=(",", ":")) + "\n")
    argv = ("--id", "ab" * 16, "--log", name)
    run = p.run("explain", *argv)
    holds(run.out, "headers    ?    x-tenant", "why: it is not in the log",
          "not to be told here")
    assert " NO " not in run.out, run.out
    steps = json.loads(p.run("explain", *argv, "--format", "json").out)["steps"]
    equal([s for s in steps if s.get("ok") is False], [])


def test_wrong_use(p):
    for argv, word in (
            (("--identity", "ou=ops"), "a path is missing"),
            (("/tail",), "--identity is missing"),
            (("--identity", "oo=ops", "/tail"), "did you mean 'o'"),
            (("--identity", "ou=ops", "-H", "x", "/tail"), "Name: value"),
            (("--identity", "ou=ops", "--listener", "mian", "/"),
             "did you mean 'main'"),
            (("--identity", "ou=ops", "--listener", "redis", "/"),
             "gateway.tcp"),
            (("--identity", "ou=ops", "--format", "xml", "/"), "--format"),
            (("--identity", crt("none"), "/"), "none.crt"),
            (("--id", "x"), "--log FILE is missing"),
            (("-Z", "/"), "-Z")):
        run = p.run("explain", *argv)
        equal(run.returncode, 2, " ".join(argv) + ": " + run.err)
        holds(run.err, word)
    run = gateway_cli("explain", "--policy", "none.lua", "--identity", "cn=a",
                      "/")
    equal(run.returncode, 1)
    holds(run.err, "none.lua")
    for command in ("explain", "whoami", "routes", "replay"):
        run = gateway_cli(command, "--help")
        equal(run.returncode, 0)
        holds(run.out, "usage: gateway " + command, "examples")


def verdicts(p, who):
    run = p.run("whoami", "--format", "json", who)
    told = json.loads(run.out)
    return {r["route"]: r["verdict"] for r in told["routes"]}, told, run


def test_whoami(p):
    got, told, run = verdicts(p, crt("ops"))
    equal(run.returncode, 0)
    equal(got, {"GET /tail": "yes", "GET /photos/{name}": "no",
                "POST /orders": "maybe", "GET /second": "no",
                "GET /waits": "yes", "tcp redis": "no"})
    equal(told["commands"], ["tail"])
    got, told, run = verdicts(p, crt("camera"))
    equal([r for r, v in got.items() if v != "no"], ["GET /photos/{name}"])
    equal(told["commands"], [])
    got, told, run = verdicts(p, crt("boss"))
    equal(got["tcp redis"], "yes")
    got, told, run = verdicts(p, crt("wrong-ops"))
    equal(run.returncode, 1)
    equal(told["accepted"], False)
    equal(set(got.values()), {"no"})
    got, told, run = verdicts(p, crt("second-ops"))
    equal(run.returncode, 0, "the second listener lets it in")
    equal(got["GET /second"], "yes")
    run = p.run("whoami", crt("ops"))
    holds(run.out, "yes    GET /tail", "runs tail", "commands: tail",
          "maybe  POST /orders", "check hooks decide")
    rows = list(csv.DictReader(io.StringIO(
        p.run("whoami", "--format", "csv", crt("ops")).out)))
    equal(rows[0]["route"], "GET /tail")
    equal(rows[0]["commands"], "tail")


def test_routes(p):
    run = p.run("routes")
    equal(run.returncode, 0)
    holds(run.out, 'GET /tail', 'ou "ops"', p.line('gateway.get("/tail"'),
          "tcp redis", "and check")
    folder = os.path.join(p.dir, "ids")
    os.makedirs(folder, exist_ok=True)
    for name in ("ops", "camera", "wrong-ops"):
        write(os.path.join(folder, name + ".crt"),
              open(crt(name), "rb").read())
    write(os.path.join(folder, "rubbish.pem"), "rubbish")
    run = p.run("routes", "--identities", folder, "--format", "csv", "ou=ops")
    equal(run.returncode, 0)
    holds(run.err, "left out", "rubbish.pem")
    rows = {r["route"]: r for r in csv.DictReader(io.StringIO(run.out))}
    equal(rows["GET /tail"]["ou=ops"], "yes")
    equal(rows["GET /tail"][folder + "/ops.crt"], "yes")
    equal(rows["GET /tail"][folder + "/wrong-ops.crt"], "no")
    equal(rows["GET /photos/{name}"][folder + "/camera.crt"], "yes")
    run = p.run("routes", "--format", "json", crt("ops"))
    told = {r["route"]: r["verdicts"][0]["verdict"]
            for r in json.loads(run.out)["routes"]}
    equal(told["POST /orders"], "maybe")
    run = p.run("routes", crt("ops"), crt("camera"))
    holds(run.out, "1  " + crt("ops"), "GET /tail")
    equal(p.run("routes", "--identities", p.dir).returncode, 2)
    run = p.run("routes", folder)
    equal(run.returncode, 2)
    holds(run.err, "of a folder: --identities " + folder)
