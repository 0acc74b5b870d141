"""`gateway check`: what it prints, and how it answers mistakes."""

import json
import os

from gw import (HEAD, PKI, equal, gateway_cli, tmpdir, write)

GOOD = HEAD.replace("@WORKERS@", "1").replace("@LISTEN@", "").replace(
    "@PORT@", "8443").replace("@PKI@", PKI)
FINE = """
local app = gateway.upstream { "http://127.0.0.1:8080" }
local yes = gateway.command { name = "yes", program = "/bin/true",
  args = { "-n", gateway.slot "n" }, slots = { n = gateway.integer(1, 9) } }
gateway.get("/hello/{name}", {
  authorize = id.ou "ops",
  validate = { path = { name = gateway.string { maxLength = 9 } } },
  handle = app,
})
gateway.post("/run", { authorize = id.anyone,
  handle = function() return gateway.text(yes:run({ n = 3 }).why) end })
"""
LINE = len(GOOD.splitlines()) + 1  # where the text after GOOD begins


def check(text, *argv, head=GOOD, timeout=30):
    folder = tmpdir("check")
    path = write(os.path.join(folder, "policy.lua"), head + text)
    return gateway_cli("check", path, *argv, cwd=folder, timeout=timeout)


def test_a_good_policy_is_listed():
    done = check(FINE)
    equal(done.returncode, 0, "exit (%s)" % (done.out + done.err))
    for want in ("127.0.0.1:8443", "/hello/{name}", "GET", "/run", "POST",
                 "yes", "/bin/true"):
        assert want in done.out, "no %r in %s" % (want, done.out)


def test_json_is_one_document():
    done = check(FINE, "--json")
    equal(done.returncode, 0, "exit (%s)" % done.err)
    plain = json.loads(done.out)
    equal([r["path"] for r in plain["routes"]], ["/hello/{name}", "/run"])
    equal(plain["commands"][0]["program"], "/bin/true")


# What is wrong, on the first line of the text; words of the message (any of
# those in a tuple).  Every message must name policy.lua and the line.
ROUTE = 'gateway.get("/x", { authorize = id.anyone, handle = function() end, '
COMMAND = 'gateway.command { name = "c", program = "/bin/true", '
MISTAKES = [
    ("syntax error", "gateway.get(", ()),
    ("runtime error", "error 'boom'", ("boom",)),
    ("nil call", "gateway.frobnicate()", ("frobnicate",)),
    ("global", "colour = 1", ("colour", "local")),
    ("no authorize", 'gateway.get("/x", { handle = function() end })',
     ("authorize",)),
    ("no handle", 'gateway.get("/x", { authorize = id.anyone })', ("handle",)),
    ("unknown route key", ROUTE + "handel = 1 })", ("handel",)),
    ("authorize of wrong type",
     'gateway.get("/x", { authorize = true, handle = function() end })',
     ("authorize",)),
    ("route without slash",
     'gateway.get("x", { authorize = id.anyone, handle = function() end })',
     ("x",)),
    ("undeclared capture",
     'gateway.get("/x/{a}", { authorize = id.anyone, '
     "handle = function() end })",
     ("a", "path")),
    ("schema of no capture",
     ROUTE + "validate = { path = { zz = gateway.integer(1, 2) } } })",
     ("zz",)),
    ("tail not last",
     'gateway.get("/{a...}/b", { authorize = id.anyone, handle = function() '
     'end, validate = { path = { a = gateway.relative_path } } })', ("...",)),
    ("two routes alike", ROUTE + "}) " + ROUTE + "})", ("/x",)),
    ("unknown validate key", ROUTE + "validate = { qurey = {} } })",
     ("qurey",)),
    ("unknown keyword", ROUTE + "validate = { query = { q = "
     "{ type = 'string', maxLenght = 3 } } } })", ("maxLenght",)),
    ("unknown type", ROUTE + "validate = { query = { q = "
     "{ type = 'strnig' } } } })", ("strnig",)),
    ("bad pattern", ROUTE + "validate = { query = { q = "
     "{ type = 'string', pattern = '(' } } } })", ("pattern",)),
    ("remote ref", ROUTE + "validate = { query = { q = "
     "{ ['$ref'] = 'http://example.org/x' } } } })", ("$ref",)),
    ("dynamic ref", ROUTE + "validate = { query = { q = "
     "{ ['$dynamicRef'] = '#a' } } } })", ("$dynamicRef",)),
    ("unknown format", ROUTE + "validate = { query = { q = "
     "{ type = 'string', format = 'colour' } } } })", ("colour",)),
    ("default breaks schema", ROUTE + "validate = { query = { q = "
     "gateway.optional(gateway.integer(1, 9), 100) } } })",
     (("default", "maximum"),)),
    ("json on get", ROUTE + "validate = { json = { type = 'object' } } })",
     (("GET", "get", "body"),)),
    ("two bodies", 'gateway.post("/x", { authorize = id.anyone, handle = '
     "function() end, validate = { json = { type = 'object' }, "
     "body = gateway.bytes('1K') } })", ("body",)),
    ("bad size", 'gateway.post("/x", { authorize = id.anyone, handle = '
     "function() end, validate = { body = gateway.bytes('12Q') } })",
     ("12Q",)),
    ("upstream without scheme", 'gateway.upstream { "127.0.0.1:80" }',
     ("127.0.0.1:80",)),
    ("upstream https", 'gateway.upstream { "https://127.0.0.1:80" }',
     ("needs ca",)),
    ("upstream key", 'gateway.upstream { "http://127.0.0.1:80", '
     "conect_timeout = 1 }", ("conect_timeout",)),
    ("upstream port", 'gateway.upstream { "http://127.0.0.1:99999" }',
     ("99999",)),
    ("listener key", 'gateway.listen { adress = "127.0.0.1:1" }', ("adress",)),
    ("limit name", 'gateway.listen { address = "127.0.0.1:1", certificate = '
     '"a", key = "b", client_ca = "c", limits = { hedd = 1 } }', ("hedd",)),
    ("limit type", 'gateway.listen { address = "127.0.0.1:1", certificate = '
     '"a", key = "b", client_ca = "c", limits = { head = "soon" } }',
     ("head",)),
    ("process key", "gateway.process { wrokers = 1 }", ("wrokers",)),
    ("spiffe wildcard domain", 'local _ = id.spiffe "spiffe://*/x"',
     ("spiffe",)),
    ("not a spiffe", 'local _ = id.spiffe "http://a/b"', ("spiffe",)),
    ("ou of wrong type", "local _ = id.ou(7)", ("ou",)),
    ("command without name", 'gateway.command { program = "/bin/true" }',
     ("name",)),
    ("relative program", 'gateway.command { name = "c", program = "true" }',
     ("absolute",)),
    ("missing program",
     'gateway.command { name = "c", program = "/no/such/program" }',
     ("/no/such/program",)),
    ("unknown slot", COMMAND + 'args = { gateway.slot "a" } }', ("a", "slot")),
    ("unused slot", COMMAND + "slots = { a = gateway.integer(1, 2) } }",
     ("a", "slot")),
    ("slot twice", COMMAND + 'args = { gateway.slot "a", gateway.slot "a" }, '
     "slots = { a = gateway.integer(1, 2) } }", ("a",)),
    ("command key", COMMAND + "timout = 3 }", ("timout",)),
    ("command env LD_PRELOAD", COMMAND + 'env = { LD_PRELOAD = "x" } }',
     ("LD_PRELOAD",)),
    ("command env PATH", COMMAND + 'env = { PATH = "/bin" } }', ("PATH",)),
    ("two commands alike", COMMAND + "} " + COMMAND + "}", ("c",)),
    ("require of nothing", 'require "not.there"', ("not.there",)),
    ("require upward", 'require "../x"', ()),
    ("io", 'io.open "/etc/passwd"', ("io",)),
    ("os.execute", 'os.execute "id"', ("execute",)),
    ("os.getenv", 'os.getenv "HOME"', ("getenv",)),
    ("load", 'load "return 1"', ("load",)),
    ("dofile", 'dofile "/etc/passwd"', ("dofile",)),
    ("debug", "debug.getregistry()", ("debug",)),
    ("gc metamethod", "setmetatable({}, { __gc = function() end })",
     ("__gc",)),
]


def test_every_mistake_is_named_with_file_and_line():
    wrong = []
    for name, text, words in MISTAKES:
        done = check(text)
        said = done.out + done.err
        if done.returncode != 1:
            wrong.append("%s: exit %d: %s" % (name, done.returncode,
                                              said[-200:]))
            continue
        if "policy.lua:%d" % LINE not in said and name != "syntax error":
            wrong.append("%s: no policy.lua:%d in: %s" % (name, LINE,
                                                          said[:300]))
        for word in words:
            if not any(w in said for w in ([word] if isinstance(word, str)
                                           else word)):
                wrong.append("%s: no %r in: %s" % (name, word, said[:300]))
    assert not wrong, "%d of %d:\n" % (len(wrong), len(MISTAKES)) + "\n".join(
        wrong)


test_every_mistake_is_named_with_file_and_line.timeout = 60


def test_a_mistake_deep_in_a_file_names_its_line():
    done = check("\n" * 40 + "gateway.get('/x', { authorise = id.anyone,\n"
                 "  handle = function() end })\n")
    equal(done.returncode, 1, "exit")
    assert "policy.lua:%d" % (LINE + 40) in done.out + done.err, done.err


def test_a_module_beside_the_policy_is_found():
    folder = tmpdir("check")
    write(folder + "/lib/who.lua", 'local id = require "gateway.identity"\n'
          'return { ops = id.ou "ops" }\n')
    path = write(folder + "/policy.lua", GOOD + 'local who = require "lib.who"'
                 '\ngateway.get("/x", { authorize = who.ops, handle = '
                 'function() return gateway.text "x" end })\n')
    done = gateway_cli("check", path)
    equal(done.returncode, 0, "exit (%s)" % (done.out + done.err))
    write(folder + "/lib/who.lua", "return {\n  ops = = 3 }\n")
    done = gateway_cli("check", path)
    equal(done.returncode, 1, "exit")
    assert "who.lua:2" in done.out + done.err, done.out + done.err


def files_check(**files):
    """Checks a policy whose certificate files are as given."""
    folder = tmpdir("check")
    names = {"certificate": PKI + "/server.crt", "key": PKI + "/server.key",
             "client_ca": PKI + "/clients.pem"}
    for name, text in files.items():
        names[name] = text if text.startswith("/") else write(
            folder + "/" + name, text)
    return check("""
gateway.listen { address = "127.0.0.1:8443", certificate = "%(certificate)s",
  key = "%(key)s", client_ca = "%(client_ca)s" }
gateway.get("/x", { authorize = id.anyone, handle = function()
  return gateway.text "x" end })
""" % names, head='local gateway = require "gateway"\n'
        'local id = require "gateway.identity"\n')


def test_certificate_files_are_tried():
    done = files_check()
    equal(done.returncode, 0, "exit (%s)" % (done.out + done.err))
    for files in ({"certificate": "/no/such.crt"}, {"key": "/no/such.key"},
                  {"client_ca": "/no/such.ca"}, {"certificate": "junk"},
                  {"key": "junk"}, {"client_ca": "junk"}, {"client_ca": " "},
                  {"key": PKI + "/ops.key"}):
        done = files_check(**files)
        said = done.out + done.err
        equal(done.returncode, 1, "exit with %r: %s" % (files, said[-300:]))
        assert "policy.lua:4" in said, "%r: no line in: %s" % (files, said)
        name = list(files.values())[0]
        if name.startswith("/no"):
            assert name in said, "%r is not named in: %s" % (name, said)


def test_no_policy_file():
    done = gateway_cli("check", "/no/such/policy.lua")
    equal(done.returncode, 1, "exit")
    assert "/no/such/policy.lua" in done.out + done.err, done.err


def test_a_policy_that_loops_is_ended():
    done = check("while true do end", timeout=90)
    equal(done.returncode, 1, "exit")


test_a_policy_that_loops_is_ended.timeout = 100


def test_a_policy_that_eats_memory_is_ended():
    done = check("local t = {} while true do t[#t + 1] = ('x'):rep(1e6) end")
    equal(done.returncode, 1, "exit")
    assert "memory" in (done.out + done.err).lower(), done.err


def test_no_listener_and_no_route():
    done = check("", head='local gateway = require "gateway"\n')
    equal(done.returncode, 1, "exit (%s)" % (done.out + done.err))
    assert "listen" in done.out + done.err, done.err


def test_layers_are_promised_only_if_they_are_there():
    def process(text):
        done = check(ROUTE + "})", head=GOOD.replace(
            "workers = 1", "workers = 1, " + text))
        return done.returncode, done.out + done.err

    for text, words in (
            ('must_have = { "no-such-layer" }',
             ("must_have", "no-such-layer", "no_new_privs", "seccomp")),
            ('accept_missing = { "landlok" }',
             ("accept_missing", "landlok", "did you mean landlock?")),
            ('user = "root", must_have = { "uid" }',
             ("must_have: uid is missing here",))):
        code, said = process(text)
        equal(code, 1, "exit with %s: %s" % (text, said[-300:]))
        for word in words:
            assert word in said, "no %r in: %s" % (word, said)
    for text in ('must_have = { "no_new_privs", "rlimits", '
                 '"descriptors", "environment" }',
                 'accept_missing = { "seccomp", "uid" }'):
        code, said = process(text)
        equal(code, 0, "exit with %s: %s" % (text, said[-300:]))


def test_run_says_the_same():
    folder = tmpdir("check")
    path = write(folder + "/policy.lua", GOOD + "gateway.frobnicate()\n")
    done = gateway_cli("run", path)
    equal(done.returncode, 1, "exit")
    assert "policy.lua:%d" % LINE in done.out + done.err, done.err


def test_env_is_read_only_by_name():
    text = ROUTE + "}) print(gateway.env('E2E_COLOUR', 'none'))"
    done = check(text)
    equal(done.returncode, 0, "exit (%s)" % (done.out + done.err))
    done = check(ROUTE + "}) local _ = gateway.env('E2E_NOT_SET') .. 'x'")
    equal(done.returncode, 1, "exit of a variable that is not set")
    assert "E2E_NOT_SET" in done.out + done.err, done.err
