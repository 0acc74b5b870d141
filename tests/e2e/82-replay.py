"""gateway replay, and explain --id: what a real log holds, run again."""

import json
import os

from gw import (PKI, SLOW, Gateway, cert_serial, equal, gateway_cli, tmpdir,
                until, write)

OLD = """
local app = id.ou "ops"
gateway.get("/ops", { authorize = app,
  handle = function() return gateway.text "ops" end })
gateway.get("/photos/{name}", {
  authorize = id.spiffe "spiffe://example.org/ns/eu/sa/camera",
  validate = { path = { name = gateway.filename },
               query = { size = gateway.optional(gateway.integer(1, 100)) } },
  handle = function() return gateway.text "photo" end })
gateway.post("/orders", { authorize = id.anyone,
  validate = { json = gateway.object { n = gateway.integer(1, 9) } },
  check = function(request) return request.json.n ~= 5, "not five" end,
  handle = function() return gateway.text "ordered" end })
gateway.get("/head", { authorize = id.anyone,
  validate = { headers = { ["X-Secret-Token"] = gateway.string(1, 99) } },
  handle = function() return gateway.text "head" end })
gateway.get("/mail", { authorize = id.any(id.email "ops@example.org",
    id.cn "boss"),
  handle = function() return gateway.text "mail" end })
local back = gateway.upstream { "http://127.0.0.1:1", name = "back" }
gateway.get("/asks", { authorize = id.anyone,
  check = function() return gateway.fetch(back, { path = "/" }) ~= nil end,
  handle = function() return gateway.text "asks" end })
gateway.get("/bug", { authorize = function() error "bug" end,
  handle = function() return gateway.text "bug" end })
"""
# what NEW changes: (text, its replacement)
CHANGES = {
    "who": ('local app = id.ou "ops"', 'local app = id.ou "managers"'),
    "input": ("gateway.integer(1, 100)", "gateway.integer(1, 50)"),
    "gone": ('gateway.get("/head"', 'gateway.get("/heads"'),
    "body": ('gateway.post("/orders", { authorize = id.anyone',
             'gateway.post("/orders", { authorize = id.ou "guests"'),
    "open": ("sa/camera", "sa/*"),
    "fixed": ('function() error "bug" end', "id.anyone"),
    "mail": ("ops@example.org", "boss@example.org"),
}


class Logged:
    """A gateway's log of some requests, and policies to try it on."""

    def __init__(self, listen=""):
        self.g = g = Gateway(OLD, listen=listen)
        g.get("/ops", who="ops")
        g.get("/ops", who="boss")
        g.get("/ops", who="guest")
        g.get("/photos/a.jpg", who="camera")
        g.get("/photos/a.jpg?size=70", who="camera")
        g.get("/photos/a.jpg", who="shop")
        g.post_json("/orders", {"n": 1}, who="ops")
        g.post_json("/orders", {"n": 5}, who="guest")
        g.post_json("/orders", {"n": 10}, who="guest")
        g.get("/head", [("X-Secret-Token", "top-secret")])
        g.get("/mail", who="second-ops")
        g.get("/mail", who="ops")
        g.expected.append("bug")
        g.get("/bug", who="ops")
        g.get("/asks", who="ops")
        g.get("/nothing", who="ops")
        g.get("/%ff", who="ops")
        self.count = 16
        until(lambda: len(self.records()) == self.count, "access lines")
        g.stop()
        self.text = open(g.log_path).read()

    def records(self):
        return [r for r in self.g.log() if r.get("event") == "access"]

    def id_of(self, who, target):
        serial = cert_serial(who)
        return next(r["id"] for r in self.records()
                    if r["target"] == target and r["serial"] == serial)

    def policy(self, *names):
        text = open(self.g.policy).read()
        for name in names:
            assert CHANGES[name][0] in text, name
            text = text.replace(*CHANGES[name])
        return write(os.path.join(self.g.dir, "-".join(names) + "new.lua"),
                     text)

    def replay(self, *names, **keys):
        run = gateway_cli("replay", "--log", self.g.log_path, "--format",
                          "json", "--against", self.policy(*names),
                          *keys.get("args", ()))
        lines = [json.loads(line) for line in run.out.splitlines()]
        assert lines, run.err
        return lines[:-1], lines[-1], run


def setup():
    return Logged()


def targets(changed):
    return sorted(c["target"] for c in changed)


def test_the_same_policy_changes_nothing(p):
    changed, total, run = p.replay()
    equal(run.returncode, 0, run.out + run.err)
    equal(changed, [])
    equal(total["requests"], p.count)
    equal(total["same"] + total["partly"] + total["unknown"], p.count)
    # of /orders only that they come to the body; of /head, to the headers
    equal(total["partly"], 4, run.out)
    # /mail asks for an e-mail address, which no line has
    equal(total["unknown"], 3, run.out)
    assert {"n": 2, "why": "the client's san.email is not in the log"} in \
        total["reasons"], total


def test_each_change_is_found(p):
    changed, total, run = p.replay("who")
    equal(run.returncode, 1)
    equal([(c["target"], c["identity"].split(",")[0]) for c in changed],
          [("/ops", "CN=ops")])
    equal(changed[0]["old"]["verdict"], "allowed")
    assert 'ou is "ops", not "managers"' in changed[0]["new"]["verdict"]
    assert "new.lua:" in changed[0]["new"]["at"], changed
    equal(changed[0]["serial"], cert_serial("ops"))
    changed, total, run = p.replay("input")
    equal(targets(changed), ["/photos/a.jpg?size=70"])
    assert "422 at validate" in changed[0]["new"]["verdict"], changed
    changed, total, run = p.replay("gone")
    equal(targets(changed), ["/head"])
    assert "404 at route" in changed[0]["new"]["verdict"], changed
    changed, total, run = p.replay("open")
    equal([(c["target"], c["new"]["verdict"]) for c in changed],
          [], "shop is of another namespace")
    changed, total, run = p.replay("fixed")
    equal([(c["target"], c["new"]["verdict"]) for c in changed],
          [("/bug", "allowed")])
    changed, total, run = p.replay("body")
    equal([(c["target"], c["old"]["verdict"]) for c in changed],
          [("/orders", "allowed")])
    equal(total["changed"], 1)


def test_text(p):
    run = gateway_cli("replay", "--log", p.g.log_path, "--against",
                      p.policy("who"))
    equal(run.returncode, 1)
    for part in ("was   allowed", "now   refused with 403 at authorize:",
                 "new.lua:", "%d requests: 1 changed" % p.count):
        assert part in run.out, run.out


def test_against_an_old_policy(p):
    """Both are asked, with what the log has, and only they are compared."""
    old = p.policy("who")
    changed, total, run = p.replay("input", args=("--policy", old))
    equal(targets(changed), ["/ops", "/photos/a.jpg?size=70"])
    changed, total, run = p.replay("who", args=("--policy", old))
    equal((run.returncode, changed), (0, []))


def test_certificates_tell_the_rest(p):
    changed, total, run = p.replay("mail", args=("--identities", PKI))
    equal(total["unknown"], 1, run.out)  # the hook that asks an upstream
    assert any("asks a program or an upstream" in r["why"]
               for r in total["reasons"]), total
    equal([(c["target"], c["serial"]) for c in changed],
          [("/mail", cert_serial("second-ops"))])


def test_log_identity_tells_the_rest():
    p = Logged("log_identity = true,")
    line = next(r for r in p.g.log() if r.get("event") == "identity"
                and r["serial"] == cert_serial("second-ops"))
    equal(line["email"], ["ops@example.org"])
    equal(line["dns"], ["a.example.org"])
    equal(line["ip"], ["192.0.2.7"])
    equal(line["eku"], ["clientAuth"])
    equal(line["issuer"].split(",")[0], "CN=second-ca")
    changed, total, run = p.replay()
    equal((total["changed"], total["unknown"]), (0, 1), run.out)
    changed, total, run = p.replay("mail")
    equal(targets(changed), ["/mail"])
    run = gateway_cli("explain", "--policy", p.g.policy, "--log",
                      p.g.log_path, "--id", p.id_of("second-ops", "/mail"))
    equal(run.returncode, 0, run.out)
    assert 'email "ops@example.org": yes' in run.out, run.out


def test_explain_by_id(p):
    def explain(who, target, *argv):
        return gateway_cli("explain", "--policy", p.g.policy, "--log",
                           p.g.log_path, "--id", p.id_of(who, target), *argv)
    run = explain("guest", "/ops")
    equal(run.returncode, 1)
    for part in ("logged: refused with 403 at authorize", 'NO   ou "ops"',
                 'ou is "guests", not "ops"'):
        assert part in run.out, run.out
    run = explain("camera", "/photos/a.jpg?size=70")
    equal(run.returncode, 0, run.out)
    assert "logged: allowed, and answered with 200" in run.out, run.out
    run = explain("guest", "/orders")
    assert "bodies are not logged" in run.out, run.out
    run = explain("ops", "/head")
    assert "headers are not logged" in run.out, run.out
    run = explain("second-ops", "/mail")
    assert "the log does not have" in run.out, run.out
    run = explain("second-ops", "/mail", "--identity",
                  os.path.join(PKI, "second-ops.crt"))
    equal(run.returncode, 0, run.out)
    run = gateway_cli("explain", "--policy", p.g.policy, "--log",
                      p.g.log_path, "--id", "0" * 32)
    equal(run.returncode, 1)
    assert "no request has the id" in run.err, run.err


def test_secrets_stay_out(p):
    assert "top-secret" not in p.text


def test_odd_logs(p):
    folder = tmpdir("replay")
    empty = write(os.path.join(folder, "empty"), "")
    run = gateway_cli("replay", "--log", empty, "--against", p.g.policy)
    equal(run.returncode, 1)
    assert "no request" in run.err, run.err
    prefixed = "".join("Nov 26 12:00:00 host gateway[7]: %s\n" % line
                       for line in p.text.splitlines())
    lines = prefixed + "rubbish\n{\"event\":\"access\"\n\xff\xfe\n" + (
        '{"event":"access","id":"x","tunnel":"tcp","status":200,'
        '"identity":"CN=a","serial":"01"}\n')
    run = gateway_cli("replay", "--log", "-", "--against", p.g.policy,
                      input=lines.encode("latin-1"))
    equal(run.returncode, 0, run.out + run.err)
    assert "%d requests: 0 changed" % (p.count + 1) in run.out, run.out
    assert "it was no HTTP request" in run.out, run.out
    for name in ("id", "identity", "serial", "method", "target", "peer",
                 "listener", "status", "reason"):
        for value in ({"a": 1}, [1], True, None, 1.5):
            record = dict({"event": "access", "id": "x", "identity": "CN=a",
                           "serial": "01", "method": "GET", "target": "/",
                           "status": 200}, **{name: value})
            lines += json.dumps(record, separators=(",", ":")) + "\n"
    run = gateway_cli("replay", "--log", "-", "--against", p.g.policy,
                      input=lines.encode("latin-1"))
    assert "%d requests: 0 changed" % (p.count + 1) in run.out, (run.out,
                                                                 run.err)
    run = gateway_cli("replay", "--log", "none", "--against", p.g.policy)
    equal(run.returncode, 1)
    run = gateway_cli("replay", "--against", p.g.policy)
    equal(run.returncode, 2)


def test_host_is_not_in_the_log(p):
    """Where a name decides, nothing is said."""
    policy = p.policy("who") + ".host.lua"
    text = open(p.g.policy).read().replace(
        'gateway.get("/ops", {', 'gateway.get("/ops", { host = "a.example", ')
    write(policy, text)
    run = gateway_cli("replay", "--log", p.g.log_path, "--against", policy)
    assert "Host is not in the log, and decides" in run.out, run.out
    equal(run.returncode, 0, run.out)


def test_many_lines(p):
    """A long log passes through in batches; memory does not grow with it."""
    one = [line for line in p.text.splitlines() if '"access"' in line]
    big = write(os.path.join(tmpdir("replay"), "big"),
                "\n".join(one * 700) + "\n")
    run = gateway_cli("replay", "--log", big, "--against", p.policy("who"),
                      "--policy", p.g.policy, timeout=60 * SLOW)
    equal(run.returncode, 1)
    assert "%d requests: 700 changed" % (p.count * 700) in run.out, \
        run.out[-500:]
