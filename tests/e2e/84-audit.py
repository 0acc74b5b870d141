"""gateway audit: each rule finds a policy that has the hole, and none that has
not; formats, exit codes, what comments allow."""

import json
import os

from gw import (BIN, Skip, check_sarif, equal, manual, sarif_schema, sh,
                tmpdir, write)

POLICY = """local gateway = require "gateway"
local id = require "gateway.identity"
gateway.process { @PROCESS@ }
gateway.listen { address = "127.0.0.1:1", certificate = "c", key = "k",
  client_ca = "a", crl = "l", @LISTEN@ }
gateway.admin { address = "@ADMIN@" }
local ops = id.ou "ops"
local app = gateway.upstream { "http://127.0.0.1:1", name = "app" }
@MORE@
"""

CLEAN = {"listen": "", "process": 'audit_key = "k"', "admin": "127.0.0.1:2",
         "more": 'gateway.get("/", { authorize = ops, handle = app })'}


def process(text):
    return {"process": 'audit_key = "k", ' + text}


def listen(text):
    return {"listen": text}


def route(options, path="/x/{name}", word="get"):
    """A route of `options`, by default with a narrow capture."""
    return 'gateway.%s("%s", { %s })' % (word, path, options)


def proxy(schema, more="", target="/i/{name}", path="/x/{name}"):
    return route("authorize = ops, validate = { path = { name = %s } }, "
                 'handle = app:to("%s", { %s })' % (schema, target, more), path)


def hooked(body, validate="query = { q = gateway.string { pattern = "
           '"^[a-z]{1,9}$" } }', who="ops", word="get"):
    return ("gateway.%s(\"/h\", {\n  authorize = %s,\n  validate = { %s },\n"
            "  handle = function(request, identity)\n    %s\n  end,\n})"
            % (word, who, validate, body))


def query(schema, body="return gateway.text(request.query.q)"):
    return hooked(body, "query = { q = %s }" % schema)


def posted(schema, body='return gateway.text "ok"'):
    return hooked(body, "json = %s" % schema, word="post")


def command(options="", slots="", args="", who="ops", run="x:run {}"):
    return ("local x = gateway.command { name = \"x\", program = \"/bin/x\", "
            "args = { %s }, slots = { %s }, %s }\n" % (args, slots, options) +
            hooked("return gateway.json(%s)" % run, "", who))


def slot(schema, arg='gateway.slot "s"'):
    return command(slots="s = " + schema, args=arg, run='x:run { s = "a" }')


def text(pattern):
    return 'gateway.string { pattern = "%s", maxLength = 64 }' % pattern


def decides(body, word="authorize"):
    return ('gateway.get("/d", { authorize = ops, %s = function(identity)\n'
            "  %s\nend, handle = app })" % (word, body)).replace(
                "authorize = ops, authorize", "authorize")


FETCH = "return gateway.json(gateway.fetch(app, { path = %s }))"
PATH = 'return app:to("/a/" .. request.query.q)'

# rule: (its severity here, a policy with the hole, one without)
RULES = {
    "tls.no-crl": ("low", {"listen": 'name = "two" }\n'
                           'gateway.listen { address = "127.0.0.1:3", '
                           'certificate = "c", key = "k", client_ca = "a"'},
                   ""),
    "tls.crl-missing": ("medium", listen('crl_missing = "allow"'),
                        listen('crl_missing = "deny"')),
    "tls.crl-expired": ("medium", listen('crl_expired = "allow"'),
                        listen('crl_expired = "deny"')),
    "tls.eku-any": ("medium", listen('eku = "any"'),
                    listen('eku = "clientAuth"')),
    "tls.explain": ("medium", listen("explain = true"),
                    listen("explain = false")),
    "tls.host-check": ("low", listen("host_check = false"),
                       listen("host_check = true")),
    "tls.proxy-from-anywhere": (
        "medium", listen('proxy_protocol = { from = { "0.0.0.0/0" } }'),
        listen('proxy_protocol = { from = { "10.0.0.1/32" } }')),
    "tls.plain-upstream": (
        "medium", 'gateway.upstream { "http://10.0.0.1:80" }',
        'gateway.upstream { "https://10.0.0.1", ca = "a", certificate = "c",'
        ' key = "k" }\ngateway.upstream { "http+unix:/x" }'),
    "sandbox.accept-missing": (
        "high", process('accept_missing = { "landlock" }'),
        process('must_have = { "landlock" }')),
    "sandbox.root": ("high", process('user = "root"'),
                     process('user = "nobody"')),
    "sandbox.clock-floor": ("low", process('clock = "floor"'),
                            process('clock = "wait"')),
    "sandbox.admin-exposed": ("medium", {"admin": "0.0.0.0:2"},
                              {"admin": "unix:/run/x"}),
    "sandbox.no-access-log": ("low", process("access_log = false"),
                              process("access_log = true")),
    "command.network": ("medium", command("network = true"), command()),
    "command.write": ("low", command('write = { "/var/x" }'), command()),
    "command.no-audit-key": ("info", dict(process=" ", more=command()),
                             command()),
    "limits.loose": ("low", listen('limits = { handshake = 300 }'),
                     listen('limits = { handshake = 20 }')),
    "identity.anyone": (
        "medium", route("authorize = id.anyone, handle = app", "/x"),
        route("authorize = id.anyone, handle = function() return "
              'gateway.text "x" end', "/x")),
    "identity.any-method": ("low", route("authorize = ops, handle = app", "/x",
                                         "any"),
                            route("authorize = ops, handle = app", "/x")),
    "identity.denylist": (
        "medium", route('authorize = id.none(id.ou "x"), handle = app', "/x"),
        route('authorize = id.all(ops, id.none(id.ou "x")), handle = app',
              "/x")),
    "identity.whole-domain": (
        "low", route('authorize = id.spiffe "spiffe://e.org/**", handle = app',
                     "/x"),
        route('authorize = id.spiffe "spiffe://e.org/ns/**", handle = app',
              "/x")),
    "identity.command": ("high", command(who="id.any(ops, id.anyone)"),
                         command(who="id.any(ops, ops)")),
    "identity.group": ("low", 'gateway.group("/g", {})',
                       'gateway.group("/g", { authorize = ops })'),
    "route.falls-through": (
        "medium", route("authorize = ops, handle = app", "/admin") + "\n" +
        route("authorize = id.anyone, validate = { path = { p = "
              "gateway.relative_path } }, handle = function() return "
              'gateway.text "x" end', "/{p...}", "any"),
        route("authorize = ops, handle = app", "/admin", "any") + "\n" +
        route("authorize = id.anyone, validate = { path = { p = "
              "gateway.relative_path } }, handle = function() return "
              'gateway.text "x" end', "/{p...}", "any")),
    "route.shadowed": (
        "medium", route("authorize = ops, handle = app", "/x/a") + "\n" +
        proxy('gateway.enum { "a" }'),
        route("authorize = ops, handle = app", "/x/a") + "\n" +
        proxy('gateway.enum { "a", "b" }')),
    "policy.warning": (
        "low", 'gateway.upstream { "http://10.0.0.1:80" }',
        'gateway.upstream { "http://10.0.0.1:80", identity_headers = false }'),
    "input.no-pattern": ("low", query("gateway.string(1, 9)"),
                         query(text("^[a-z]+$"))),
    "input.unanchored": ("medium", query(text("[a-z]+")),
                         query(text("^[a-z]+$"))),
    "input.no-max-length": (
        "low", query('gateway.string { pattern = "^[a-z]+$" }'),
        query('gateway.string { pattern = "^[a-z]{1,5}$" }')),
    "input.no-max-items": ("low", posted("gateway.array(gateway.integer)"),
                           posted("gateway.array(gateway.integer, 0, 9)")),
    "input.open-object": (
        "low", posted('gateway.object({}, { additionalProperties = true })'),
        posted("gateway.object {}")),
    "input.redos": ("medium", query(text("^([a-z]+)+$")),
                    query(text("^[a-z]+$"))),
    "input.unjudged": ("low", query(text("^(a)\\\\1$")), query(text("^aa$"))),
    "input.unchecked-query": (
        "medium", route("authorize = ops, validate = { query = "
                        "gateway.unchecked }, handle = app", "/x"),
        route("authorize = ops, handle = app", "/x")),
    "input.stream": (
        "low", route('authorize = ops, validate = { body = gateway.stream("1K")'
                     " }, handle = app", "/x", "post"),
        route('authorize = ops, validate = { body = gateway.bytes("1K")'
              " }, handle = app", "/x", "post")),
    "input.odd": ("low", route('authorize = ops, allow = { "semicolon" }, '
                               "handle = app", "/x"),
                  route("authorize = ops, handle = app", "/x")),
    "slot.dash": (
        "medium", slot(text("^[a-z-]+$"),
                       'gateway.slot("s", { dash = true })'),
        slot(text("^[a-z][a-z-]+$"), 'gateway.slot("s", { dash = true })')),
    "slot.dot-dot": ("medium", slot(text("^[a-z.]+$")),
                     slot('gateway.file_below("/x", { pattern = "^[a-z.]+$",'
                          " maxLength = 9 })")),
    "slot.slash": ("low", slot(text("^[a-z/]+$")), slot(text("^[a-z]+$"))),
    "slot.backslash": ("low", slot(text("^[a-z\\\\\\\\]+$")),
                       slot(text("^[a-z]+$"))),
    "slot.leading-dash": ("low", slot(text("^[a-z-]+$")),
                          slot(text("^[a-z][a-z-]*$"))),
    "slot.at": ("medium", slot(text("^[a-z@]+$")),
                slot(text("^[a-z@]+$"), 'gateway.slot("s", "--who=")')),
    "slot.pipe": ("medium", slot(text("^[a-z|]+$")), slot(text("^[a-z]+$"))),
    "slot.colon": ("low", slot(text("^[a-z:]+$")), slot(text("^[a-z]+$"))),
    "slot.blank": ("low", slot(text("^[a-z ]+$")), slot(text("^[a-z]+$"))),
    "slot.newline": ("low", slot(text("^[a-z\\\\s]+$")),
                     slot(text("^[a-z\\t]+$"))),
    "slot.nul": ("low", slot(text("^[^a-z]+$")), slot(text("^[^a-z\\\\x00]+$"))),
    "path.slash": ("high", hooked(PATH, "query = { q = %s }"
                                  % text("^[a-z/]+$")),
                   hooked(PATH, "query = { q = %s }" % text("^[a-z.]+$"))),
    "path.dot-dot": ("medium", hooked(PATH, "query = { q = %s }"
                                      % text("^[a-z.]+$")),
                     hooked(PATH, "query = { q = %s }" % text("^[a-z]+$"))),
    "path.backslash": ("medium",
                       query(text("^[a-z\\\\\\\\]+$"),
                             FETCH % '("/a/%s"):format(request.query.q)'),
                       query(text("^[a-z]+$"),
                             FETCH % '("/a/%s"):format(request.query.q)')),
    "path.newline": ("low", query(text("^[a-z\\n]+$"), PATH),
                     proxy(text("^[a-z\\n]+$"))),
    "path.nul": ("low", query(text("^[a-z\\\\x00]+$"), PATH),
                 proxy(text("^[a-z\\\\x00]+$"))),
    "header.newline": (
        "low", query(text("^[a-z\\n]+$"), 'return app:to("/x", { set = { ["X-Y"'
                        "] = request.query.q } })"),
        query(text("^[a-z]+$"), 'return app:to("/x", { set = { ["X-Y"'
              "] = request.query.q } })")),
    "header.nul": (
        "low", query(text("^[a-z\\\\x00]+$"), 'return gateway.text("x", 200, '
                     "{ location = request.query.q })"),
        query(text("^[a-z\\\\x00]+$"), 'return gateway.text("x", 200)')),
    "hook.may-return-nothing": (
        "medium", decides('if identity:has("ou", "x") then return true end'),
        decides('return identity:has("ou", "x"), "no"')),
    "hook.not-boolean": ("medium", decides("return identity.spiffe"),
                         decides('return identity.spiffe == "x", "no"')),
    "hook.always-true": ("medium", decides("return true"),
                         decides('if identity.spiffe then return true end '
                                 'return false, "no"')),
    "hook.raw": ("low", hooked("return gateway.text(request.raw.query)"),
                 hooked("return gateway.text(request.query.q)")),
    "hook.built-path": ("low", hooked(PATH),
                        hooked('return app:to("/a/" .. request.id)')),
    "hook.unseen": (
        "info", "setmetatable({}, { __call = function() %s end })()"
        % hooked(PATH), "pcall(function() %s end)" % hooked(PATH)),
    "audit.allow-without-reason": (
        "medium", "-- audit: allow input.stream", ""),
    "audit.allow-unknown": (
        "medium", "-- audit: allow input.streem because it is so", ""),
    "audit.allow-unused": (
        "low", "-- audit: allow input.stream because it is so", ""),
}

TRACED = {
    "trace.slot": (
        "medium", slot(text("^[a-z@]+$")).split("gateway.get")[0] + query(
            text("^[a-z@]+$"),
            "return gateway.json(x:run { s = request.query.q })"),
        slot(text("^[a-z@]+$")).split("gateway.get")[0] + query(
            text("^[a-z]+$"),
            "return gateway.json(x:run { s = request.query.q })")),
    "trace.path": ("high", query(text("^[a-z/]+$"), PATH),
                   query(text("^[a-z/]+$"), 'return app:to("/a/" .. '
                         'request.query.q:gsub("/", "_"))')),
    "trace.not-reached": (
        "info", 'gateway.get("/n", { authorize = function(identity) return '
        'identity.serial == "1", "no" end, handle = app })',
        'gateway.get("/n", { authorize = function(identity) return '
        'identity.serial ~= "1", "no" end, handle = app })'),
}

FOLDER = tmpdir("audit")


def policy_of(part):
    fields = dict(CLEAN)
    for name, value in (part if isinstance(part, dict)
                        else {"more": part}).items():
        fields[name] = fields[name] + "\n" + value if name == "more" else value
    out = POLICY
    for name, value in fields.items():
        out = out.replace("@%s@" % name.upper(), value)
    return out


def audit(part, *args):
    """(findings, exit code) of a policy."""
    path = write(os.path.join(FOLDER, "p.lua"), policy_of(part))
    done = sh(BIN, "audit", "--format", "json", *args, path, check=False)
    assert done.out.startswith("{"), done.err + policy_of(part)
    return json.loads(done.out)["findings"], done.returncode


def of_rule(part, rule):
    return [f for f in audit(part)[0] if f["rule"] == rule]


def check_rules(names):
    for rule in names:
        severity, hole, clean = RULES[rule]
        found = of_rule(hole, rule)
        assert found, "%s: not found in\n%s" % (rule, policy_of(hole))
        equal((rule, found[0]["severity"]), (rule, severity))
        assert found[0]["file"].endswith("p.lua") and found[0]["line"] > 0, found
        assert found[0]["what"] and found[0]["mend"], found
        equal((rule, of_rule(clean, rule)), (rule, []))


def test_rules_about_settings():
    check_rules(r for r in RULES if r.split(".")[0] in (
        "tls", "sandbox", "command", "limits", "policy"))


def test_rules_about_identities_and_routes():
    check_rules(r for r in RULES if r.split(".")[0] in ("identity", "route"))


def test_rules_about_inputs():
    check_rules(r for r in RULES if r.split(".")[0] == "input")


def test_rules_about_slots():
    check_rules(r for r in RULES if r.split(".")[0] == "slot")


def test_rules_about_paths_and_headers():
    check_rules(r for r in RULES if r.split(".")[0] in ("path", "header"))


def test_rules_about_hooks_and_comments():
    check_rules(r for r in RULES if r.split(".")[0] in ("hook", "audit"))


def test_each_rule_is_tested():
    listed = [line.split()[0] for line in sh(BIN, "audit", "--rules").out
              .splitlines() if not line.startswith(" ")]
    missing = [r for r in listed if r not in RULES and r not in TRACED
               and not r.startswith(("openapi.", "live."))]
    equal(missing, [])
    text = manual()
    equal([r for r in RULES if "`%s`" % r not in text], [])


def check_traced(names):
    for rule in names:
        severity, hole, clean = TRACED[rule]
        found = [f for f in audit(hole, "--trace")[0] if f["rule"] == rule]
        assert found, "%s: not found in\n%s" % (rule, policy_of(hole))
        equal((rule, found[0]["severity"]), (rule, severity))
        found = [f for f in audit(clean, "--trace")[0] if f["rule"] == rule]
        equal((rule, found), (rule, []))


def test_rules_of_the_trace():
    check_traced(TRACED)


def traced(part):
    path = write(os.path.join(FOLDER, "t.lua"), policy_of(part))
    done = sh(BIN, "audit", "--trace", "--format", "json", path, check=False)
    rows = json.loads(done.out)["trace"]
    equal(len(rows), 2, rows)  # the first is that of every policy here
    return {i["input"]: i for i in rows[1]["inputs"]}, rows[1]


def test_the_trace_says_where_each_input_arrives():
    part = ("""local x = gateway.command { name = "x", program = "/bin/x",
  args = { gateway.slot "s" }, slots = { s = %(word)s } }
gateway.post("/t/{p}", {
  authorize = id.all(id.any(id.spiffe "spiffe://e.org/*/**", ops),
    id.none(id.cn "eve")),
  validate = { path = { p = %(word)s }, query = { n = gateway.integer(3, 9),
    u = gateway.uuid }, headers = { ["X-H"] = %(upper)s },
    json = gateway.object { a = gateway.array(%(word)s, 1, 2),
      digits = gateway.string { pattern = "^[0-9]{5,9}$" } } },
  check = function(request)
    return request.query.n > 2, "no"
  end,
  handle = function(request)
    x:run({ s = request.path.p }, { stdin = request.json.digits })
    gateway.log("header " .. request.headers["x-h"])
    local got = gateway.fetch(app, { path = "/f", query = {
      u = request.query.u }, headers = { ["X-N"] = tostring(request.query.n) },
      body = request.json.a[1] })
    return gateway.text(got.body, 200, { ["X-Out"] = request.json.digits })
  end,
})""" % {"word": text("^[a-z]{1,9}$"), "upper": text("^[A-Z]{4,9}$")})
    inputs, row = traced(part)
    arrives = {name: i["arrives"] for name, i in inputs.items()}
    equal(arrives, {
        "capture {p}": ["slot s of x"],
        "query parameter 'n'": ["header X-N of upstream app"],
        "query parameter 'u'": ["query of upstream app"],
        "header 'x-h'": ["the log"],
        "'a[]' of the JSON body": ["body of upstream app"],
        "'digits' of the JSON body": ["header x-out of the answer",
                                         "standard input of x"]})
    equal(inputs["capture {p}"]["schema"], "pattern ^[a-z]{1,9}$")
    hook = inputs["capture {p}"]["hooks"]
    assert len(hook) == 1 and hook[0].startswith("hook at "), hook
    assert row["at"].endswith("t.lua:12"), row


def test_what_arrives_in_another_form_is_found():
    part = ("""local x = gateway.command { name = "x", program = "/bin/x",
  args = { gateway.slot "s" }, slots = { s = gateway.string { pattern =
  "^[A-Z0-9@_/]+$", maxLength = 90 } } }
gateway.post("/t", { authorize = ops, validate = { json = gateway.object {
    a = %(word)s, b = %(word)s, c = %(word)s, d = gateway.boolean,
    e = gateway.enum { "up", "down" }, f = %(word)s } },
  handle = function(request)
    local j = request.json
    x:run({ s = j.a:gsub("q", "_"):upper() }, { stdin = tostring(#j.b) })
    gateway.log(j.e == "up" and "1" or "0")
    gateway.fetch(app, { path = "/f", body = tostring(j.d) .. gateway.now() })
    return gateway.text("x", 200, { ["X-Hex"] = j.c:gsub(".", function(c)
      return ("%%x"):format(c:byte()) end) })
  end,
})""" % {"word": text("^[a-z@]{1,9}$")})
    inputs = traced(part)[0]
    equal({n[1]: (i["arrives"], i["changed"]) for n, i in inputs.items()}, {
        "a": ([], ["slot s of x"]), "b": ([], ["standard input of x"]),
        "c": ([], ["header x-hex of the answer"]), "d": ([], []),
        "e": ([], ["the log"]), "f": ([], [])})
    found = [f for f in audit(part, "--trace")[0] if f["rule"] == "trace.slot"]
    equal(len(found), 1, found)
    assert "'a' of the JSON body sent \"@qz" in found[0]["what"], found


REACH = """gateway.post("/t/{p}", { authorize = ops, validate = {
  path = { p = gateway.uuid }, types = { "application/merge-patch+json" },
  query = { n = gateway.integer(1, 100), tags = gateway.array(
    gateway.enum { "a", "b" }, 1, 3) },
  json = { type = "object", ["$ref"] = "#/$defs/all", maxProperties = 4,
    ["$defs"] = { all = { type = "object", required = { "kind" }, properties = {
      kind = { oneOf = {
        { type = "object", required = { "t", "a" }, properties = {
          t = { const = "a" }, a = { type = "string", pattern = "^a+$",
          maxLength = 9 } } },
        { type = "object", required = { "t", "b" }, properties = {
          t = { const = "b" }, b = { type = "string", format = "date" } } } } },
      even = { type = "integer", multipleOf = 2, minimum = 3, maximum = 9 },
      map = { type = "object", minProperties = 2, maxProperties = 3,
        propertyNames = { pattern = "^[a-z]{2,4}$" },
        additionalProperties = { type = "string", maxLength = 5 } },
      pair = { type = "array", prefixItems = { { type = "boolean" }, { type =
        "null" } }, items = false, minItems = 2 },
      odd = { type = "integer", minimum = 0, maximum = 9, ["not"] = { multipleOf =
        2 } } } } } } },
  check = function(request) return request.query.n == 100, "not 100" end,
  handle = app })"""


def test_routes_are_reached_whatever_their_schemas_ask():
    inputs, row = traced(REACH)
    assert "refused" not in row, row
    equal(row["missing"], [])
    for name in ("kind.t", "kind.a", "kind.b", "even", "map.*", "pair[]", "odd"):
        assert "'%s' of the JSON body" % name in inputs, (name, row)


def test_what_no_canary_reached_is_said():
    part = REACH.replace('"not 100"', '"no"').replace("n == 100", "n == 43")
    row = traced(part)[1]
    assert "403 at check: no" in row["refused"], row
    never = REACH.replace('t = { const = "b" }', "t = false")
    equal(traced(never)[1]["missing"], ["'kind.b' of the JSON body"])
    fails = traced(REACH.replace("handle = app", "handle = function() error "
                                 '"boom" end'))[1]
    assert "boom" in fails["failed"], fails
def test_a_reference_within_a_parameter_is_followed():
    inputs, row = traced("""gateway.get("/r", { authorize = ops,
  validate = { query = { q = { type = "string", ["$ref"] = "#/$defs/w",
    ["$defs"] = { w = { type = "string", pattern = "^[a-z]{9}-[0-9]{3}$",
      maxLength = 13 } } } } },
  handle = function(request)
    return gateway.text(request.query.q)
  end,
})""")
    equal(inputs["query parameter 'q'"]["arrives"], ["the answer"], row)


def test_a_hook_that_refuses_counts():
    body = 'return gateway.json(x:run { s = request.query.q })'
    for check, found in (("", 1), (
            "check = function(r) return not r.query.q:find('..', 1, true), "
            "'no' end,", 0)):
        part = slot(text("^[a-z.]+$")).split("gateway.get")[0] + (
            'gateway.get("/h", { authorize = ops, validate = { query = { q = '
            "%s } }, %s\n handle = function(request) %s end })"
            % (text("^[a-z.]+$"), check, body))
        got = [f for f in audit(part, "--trace")[0]
               if f["rule"] == "trace.slot" and "'..'" in f["what"]]
        equal(len(got), found, got)


def test_the_trace_of_the_shipped_policy():
    done = sh(BIN, "audit", "--trace", "--fail-on", "medium", check=False)
    equal(done.returncode, 0, done.out)
    assert "arrives in slot file of tail" in done.out, done.out
    assert "not reached" not in done.out, done.out


def test_the_clean_policy_has_nothing():
    equal(audit(""), ([], 0))


def test_the_shipped_policy_is_clean():
    done = sh(BIN, "audit", "--fail-on", "medium", check=False)
    equal(done.returncode, 0, done.out)


def test_examples_are_the_shortest():
    found = of_rule(slot(text("^[a-z.]+$")), "slot.dot-dot")[0]
    assert 'such as ".."' in found["what"], found
    found = of_rule(query(text("^ab+/[a-z]+$"), PATH), "path.slash")[0]
    assert 'such as "ab/a"' in found["what"], found


def test_an_input_is_followed_through_functions_and_branches():
    body = ("local n = request.query.q\n if identity.spiffe then n = n:lower() "
            'else n = "x" end\n return app:to(build(n))')
    start = 'local function build(v) return "/a/" .. v .. "/b" end\n'
    part = start + query(text("^[a-z/]+$"), body)
    found = of_rule(part, "path.slash")
    equal(len(found), 1, found)
    assert "query parameter 'q'" in found[0]["what"], found
    equal(of_rule(start + query(text("^[a-z/]+$"), body.replace(
        "build(n)", 'build("x")')), "path.slash"), [])


# What people write: what stands before the route, and what its hook does with
# request.query.q, which may hold "/". All arrive in a path.
WAYS = [
    ("", 'return app:to(string.format("/a/%s", request.query.q))'),
    ("local f = string.format\n", 'return app:to(f("/%s", request.query.q))'),
    ("", 'local p = { "/a" } table.insert(p, request.query.q) return '
     'app:to(table.concat(p, "/"))'),
    ("", 'local p = "/a" for _, v in pairs(request.query) do p = p .. v end '
     "return app:to(p)"),
    ("", 'return app:to("/a/" .. request.query[("Q"):lower()])'),
    ("local C = {}\nC.__index = C\nfunction C:path(x) return self.at .. x end\n"
     'local c = setmetatable({ at = "/a/" }, C)\n',
     "return app:to(c:path(request.query.q))"),
    ("local C = {}\nC.__index = C\nfunction C.new(up) return setmetatable({ up ="
     ' up }, C) end\nfunction C:get(x) return self.up:to("/a/" .. x) end\n'
     "local c = C.new(app)\n", "return c:get(request.query.q)"),
    ('local function all(...) return table.concat({ ... }, "/") end\n',
     'return app:to(all("/a", request.query.q))'),
    ("local function last(...) return (select(-1, ...)) end\n",
     'return app:to("/a/" .. last(1, request.query.q))'),
    ('local function a(x) return x end\nlocal function b() return "" end\n',
     'local f = identity.cn and a or b return app:to("/a/" .. '
     "f(request.query.q))"),
    ('local function f0(x) return app:to("/" .. x) end\n' + "".join(
        "local function f%d(x) return f%d(x) end\n" % (i, i - 1)
        for i in range(1, 13)), "return f12(request.query.q)"),
    ("local m = {}\n", 'rawset(m, "q", request.query.q) return app:to("/" .. '
     "m.q)"),
    ("", 'return app:to("/" .. table.unpack { request.query.q })'),
]


def test_an_input_is_followed_whatever_way_it_goes():
    parts = []
    for i, (start, body) in enumerate(WAYS):
        parts.append("do\n%s%s\nend" % (start, query(text("^[a-z/]+$"), body)
                                        .replace('"/h"', '"/h%d"' % i)))
    found = of_rule("\n".join(parts), "path.slash")
    equal(len(found), len(WAYS), found)


def test_a_hook_that_a_module_makes_is_followed():
    write(os.path.join(FOLDER, "makes.lua"), """local gateway = require "gateway"
local M = {}
function M.forward(up)
  return function(request)
    return up:to("/a/" .. request.query.q)
  end
end
function M.who(identity)
  if identity.cn == "a" then return true end
end
return M
""")
    found = audit('local makes = require "makes"\ngateway.get("/h", { '
                  "authorize = makes.who, validate = { query = { q = %s } }, "
                  "handle = makes.forward(app) })" % text("^[a-z/]+$"))[0]
    equal([(f["rule"], f["severity"], os.path.basename(f["at"]))
           for f in found if not f["rule"].startswith("path.dot")],
          [("path.slash", "high", "makes.lua:5"),
           ("hook.may-return-nothing", "medium", "makes.lua:8"),
           ("hook.built-path", "low", "makes.lua:5")])


def test_what_is_no_text_of_a_client_builds_no_path():
    body = 'return app:to("/a/" .. %s)'
    for schema, value, count in (
            ('gateway.enum { "a", "b" }', "request.query.q", 0),
            ("gateway.integer(1, 9)", "request.query.q", 0),
            (text("^[a-z]+$"), "#request.query.q", 0),
            (text("^[a-z]+$"), "identity.cn", 1),
            (text("^[a-z]+$"), "request.query.q", 1)):
        found = of_rule(query(schema, body % value), "hook.built-path")
        equal((value, len(found)), (value, count), found)


def test_authorize_functions_wherever_they_are_written():
    if_a = 'if identity.cn == "a" then return true end'
    for start, who, rule in (
            ("local function made(n) return function(identity) %s end end\n"
             % if_a, "made(1)", "hook.may-return-nothing"),
            ("local w = {}\nw.ok = function(identity) %s end\n" % if_a, "w.ok",
             "hook.may-return-nothing"),
            ("", "function(identity) return identity ~= nil end",
             "hook.always-true"),
            ("", "function(identity) return not (identity == nil) end",
             "hook.always-true"),
            ("", 'function(identity) return identity.cn == "a" or true end',
             "hook.always-true"),
            ("", "function(identity) return 1 == 1 end", "hook.always-true"),
            ("", 'function(identity) return identity.cn:find "a" end',
             "hook.not-boolean"),
            ("", 'function(identity) return identity.cn == nil, "no" end', ""),
            ("", 'function(identity) return 1 == 2, "no" end', ""),
            ("", "function(identity) %s error 'no' end" % if_a, ""),
            ("", 'function(identity) assert(identity.cn == "a") return true '
             "end", "")):
        found = [f["rule"] for f in audit(
            start + 'gateway.get("/d", { authorize = %s, handle = app })'
            % who)[0] if f["rule"].startswith("hook.")]
        equal((who, found), (who, [rule] if rule else []))


def test_a_body_and_names_of_members_are_texts():
    body = 'return app:to("/a/" .. request.body)'
    part = hooked(body, "body = gateway.bytes(99)", word="post")
    equal(len(of_rule(part, "path.slash")), 1, part)
    names = posted('{ type = "object", maxProperties = 3, patternProperties = '
                   '{ ["^[a-z/]+$"] = { type = "integer" } } }',
                   'for k in pairs(request.json) do return app:to("/a/" .. k) '
                   "end")
    equal(len(of_rule(names, "path.slash")), 1, names)
    equal(of_rule(names.replace("a-z/", "a-z"), "path.slash"), [])


def test_what_stands_beside_counts():
    """allOf and $ref hold together; what only one alternative asks does not."""
    wide = '{ type = "string", maxLength = 9 }'
    word = '{ type = "string", pattern = "^[a-z]+$" }'
    one = 'properties = { t = { const = "a" }, n = %s }' % word
    for schema, count in (
            ("{ allOf = { %s, %s } }" % (wide, word), 0),
            ("{ anyOf = { %s, %s } }" % (word, word), 0),
            ("{ anyOf = { %s, %s } }" % (word, wide), 1),
            ('{ type = "string", maxLength = 9, oneOf = { { pattern = "^a+$" },'
             ' { pattern = "^b+$" } } }', 0),
            (wide, 1)):
        part = posted('{ type = "object", properties = { n = %s } }' % schema,
                      "return app:to(request.json.n)")
        equal((schema, len(of_rule(part, "input.no-pattern"))), (schema, count))
    for second, count in (("properties = { t = { const = \"b\" } }", 1), (one, 0)):
        part = posted('{ type = "object", properties = { n = %s, t = { type = '
                      '"string", maxLength = 1, pattern = "^.$" } }, anyOf = { '
                      "{ %s }, { %s } } }" % (wide, one, second),
                      "return app:to(request.json.n)")
        found = [f for f in of_rule(part, "input.no-pattern")
                 if "'n'" in f["what"]]
        equal((second, len(found)), (second, count))


def test_a_respond_hook_writes_headers():
    part = ('gateway.get("/r", { authorize = ops, validate = { query = { q = '
            '%s } }, handle = app, respond = function(request, response) '
            'response.headers["x-q"] = request.query.q return response end })')
    equal(len(of_rule(part % text("^[^a]+$"), "header.newline")), 1)
    equal(of_rule(part % text("^[a-z]+$"), "header.newline"), [])


def test_a_group_by_another_name():
    part = 'local g = gateway.group\nlocal v1 = g("/v1"%s)'
    equal(len(of_rule(part % "", "identity.group")), 1)
    equal(len(of_rule(part % ", { listener = \"x\" }", "identity.group")), 1)
    equal(of_rule(part % ", { authorize = ops }", "identity.group"), [])


def test_a_wide_pattern_may_be_slow_too():
    part = query('gateway.string { pattern = "^.*.*.*.*.*=$", maxLength = 2000'
                 " }")
    equal(len(of_rule(part, "input.redos")), 1)


def test_how_long_a_large_pattern_takes_is_unjudged():
    part = query('gateway.string { pattern = "^([a-z]{600}[0-9]{600})*$",'
                 " maxLength = 2400 }")
    found = of_rule(part, "input.unjudged")
    equal(len(found), 1, found)
    assert "takes cannot be told, for its size" in str(found), found


def test_a_command_in_a_helper_counts_for_its_route():
    part = ('local x = gateway.command { name = "x", program = "/bin/x" }\n'
            "local function go(c) return c:run {} end\n"
            + hooked("return gateway.json(go(x))", "", "id.anyone"))
    found = of_rule(part, "identity.command")
    equal(len(found), 1, found)


def test_commands_in_tables_and_loops_count():
    make = 'gateway.command { name = %s, program = "/bin/x" }'
    for part in (
            "local t = { a = %s }\n" % make % '"a"' + hooked(
                "return gateway.json(t[identity.spiffe]:run {})", "",
                "id.anyone"),
            'local t = {}\nfor _, n in ipairs { "a", "b" } do t[n] = %s end\n'
            % make % "n" + hooked("return gateway.json(t.a:run {})", "",
                                  "id.anyone"),
            "local t = { %s }\nfor _, c in ipairs(t) do %s end" % (
                make % '"a"', hooked("return gateway.json(c:run {})", "",
                                     "id.anyone"))):
        found = of_rule(part, "identity.command")
        equal(len(found), 1, part)


def test_a_handler_that_returns_an_upstream_counts():
    for body, count in (("return app", 1), ('return app:to "/x"', 1),
                        ('return gateway.text "x"', 0)):
        found = of_rule(hooked(body, "", "id.anyone"), "identity.anyone")
        equal((body, len(found)), (body, count))


def test_a_command_of_a_module_is_known():
    write(os.path.join(FOLDER, "tools.lua"), """local gateway = require "gateway"
local M = {}
M.x = gateway.command { name = "x", program = "/bin/x" }
function M.path(name)
  return "/a/" .. name
end
return M
""")
    found = of_rule('local tools = require "tools"\n' + hooked(
        "return gateway.json(tools.x:run {})", "", "id.anyone"),
        "identity.command")
    equal(len(found), 1, found)
    found = of_rule('local tools = require "tools"\n' + query(
        text("^[a-z/]+$"), "return app:to(tools.path(request.query.q))"),
        "path.slash")
    equal(len(found), 1, found)


def test_a_pattern_that_takes_anything_is_none():
    for pattern, found in (("^.*$", 1), ("^[^a]+$", 1), ("^[^/]+$", 0),
                           (".*", 0), ("^[ -~]*$", 1), ("^(?!-).*$", 0)):
        got = of_rule(query(text(pattern)), "input.no-pattern")
        equal((pattern, len(got)), (pattern, found))


def test_what_a_path_cannot_carry_is_no_finding():
    wide = text("^.+$")
    rules = {f["rule"] for f in audit(proxy(wide))[0]}
    assert not rules & {"path.dot-dot", "path.slash", "path.nul"}, rules


def test_allowed_with_a_reason():
    part = route("authorize = id.anyone, handle = app", "/x")
    found, code = audit(part, "--fail-on", "medium")
    equal(([f["rule"] for f in found], code), (["identity.anyone"], 1))
    for allowed in (part + "  -- audit: allow identity.anyone because it is all",
                    "-- audit: allow identity.anyone because it is all\n" + part):
        found, code = audit(allowed, "--fail-on", "info")
        equal(([f["suppressed"] for f in found], code), (["it is all"], 0))


def test_allowed_without_a_reason_counts():
    part = (route("authorize = id.anyone, handle = app", "/x")
            + "  -- audit: allow identity.anyone")
    found, code = audit(part, "--fail-on", "medium")
    equal(sorted(f["rule"] for f in found),
          ["audit.allow-without-reason", "identity.anyone"])
    equal(code, 1)
    assert not any("suppressed" in f for f in found), found


def test_fail_on():
    part = route("authorize = id.anyone, handle = app", "/x")
    equal([audit(part, "--fail-on", level)[1] for level in
           ("high", "medium", "low", "info", "never")], [0, 1, 1, 1, 0])


def test_sarif():
    path = write(os.path.join(FOLDER, "s.lua"), policy_of(
        route("authorize = id.anyone, handle = app", "/x")))
    done = sh(BIN, "audit", "--format=sarif", path)
    log = json.loads(done.out)
    equal(log["version"], "2.1.0")
    run = log["runs"][0]
    equal(run["tool"]["driver"]["name"], "gateway audit")
    for result in run["results"]:
        rule = run["tool"]["driver"]["rules"][result["ruleIndex"]]
        equal(rule["id"], result["ruleId"])
        assert result["message"]["text"] and result["level"] in (
            "none", "note", "warning", "error"), result
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"].endswith("s.lua"), place
        assert place["region"]["startLine"] >= 1, place
    equal([r["ruleId"] for r in run["results"]], ["identity.anyone"])
    check_names(log, SARIF)


def test_sarif_by_its_schema():
    """Of no finding, of many, of suppressed ones, of --trace; and a log that
    is wrong is refused, so the schema says something."""
    if sarif_schema() is None:
        raise Skip("the schema of SARIF is not here: tests/setup.sh sarif")
    open_to_all = route("authorize = id.anyone, handle = app", "/x")
    logs = []
    for name, part in (
            ("few.lua", query(text("^[a-z]+$"))),
            ("many one.lua", query(text(".*")) + open_to_all
             + "  -- audit: allow identity.anyone because it is all")):
        path = write(os.path.join(FOLDER, name), policy_of(part))
        for more in (), ("--trace",):
            done = sh(BIN, "audit", "--format=sarif", *more, path, check=False)
            logs.append(json.loads(done.out))
            check_sarif(logs[-1])
    results = [len(log["runs"][0]["results"]) for log in logs]
    equal(results, [0, 0, 2, 2])
    assert any("suppressions" in r for r in logs[2]["runs"][0]["results"])
    for spoil in (lambda run: run.pop("tool"),
                  lambda run: run["results"][0].update(level="high"),
                  lambda run: run["results"][0].update(severity="error")):
        log = json.loads(json.dumps(logs[2]))
        spoil(log["runs"][0])
        try:
            check_sarif(log)
        except AssertionError:
            continue
        raise AssertionError("a wrong log is right by the schema")


# The members that SARIF 2.1.0 knows, of those objects that we write.
SARIF = {"$schema": 1, "version": 1, "runs": {
    "tool": {"driver": {"name": 1, "rules": {
        "id": 1, "shortDescription": {"text": 1}, "help": {"text": 1},
        "defaultConfiguration": {"level": 1},
        "properties": {"security-severity": 1, "tags": 1}}}},
    "results": {
        "ruleId": 1, "ruleIndex": 1, "level": 1, "message": {"text": 1},
        "locations": {"physicalLocation": {"artifactLocation": {"uri": 1},
                                           "region": {"startLine": 1}}},
        "suppressions": {"kind": 1, "justification": 1}}}}


def check_names(value, known):
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict):
            equal(sorted(set(one) - set(known)), [])
            for name, inner in one.items():
                check_names(inner, known[name])


def test_mistakes():
    done = sh(BIN, "audit", "--format", "xml", check=False)
    equal(done.returncode, 2)
    assert "there is json, sarif, text" in done.err, done.err
    equal(sh(BIN, "audit", "--fail-on", "x", check=False).returncode, 2)
    done = sh(BIN, "audit", "/no/such.lua", check=False)
    equal(done.returncode, 1)
    assert "/no/such.lua" in done.err, done.err
    path = write(os.path.join(FOLDER, "b.lua"), "local x = ")
    done = sh(BIN, "audit", path, check=False)
    equal(done.returncode, 1)
    assert "b.lua:1" in done.err, done.err
