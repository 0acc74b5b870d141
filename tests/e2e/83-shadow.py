"""gateway.shadow: a candidate is asked beside the policy in force."""

import os
import signal

import gw
from gw import Gateway, equal, one_of, sh, until, write

LIVE = """
gateway.admin { address = "127.0.0.1:@ADMIN@" }
gateway.shadow { "./next/next.lua", cpu = 1.0, @OPTIONS@ }
gateway.get("/open", { authorize = id.anyone,
  handle = function() return gateway.text "open" end })
gateway.get("/ops", { authorize = id.ou "ops",
  handle = function() return gateway.text "ops" end })
gateway.post("/set", { authorize = id.anyone,
  validate = { json = gateway.object { n = gateway.integer(0, 100) } },
  handle = function() return gateway.text "set" end })
gateway.post("/closed", { authorize = id.ou "nobody",
  validate = { json = gateway.object { n = gateway.integer(0, 100) } },
  handle = function() return gateway.text "no" end })
gateway.post("/any", { authorize = id.anyone,
  validate = { body = gateway.stream "1M" },
  handle = function() return gateway.text "flows" end })
"""

NEXT = """
local gateway = require "gateway"
local id = require "gateway.identity"
local rules = require "rules"
gateway.listen { name = "main", address = "127.0.0.1:1", certificate = "-",
  key = "-", client_ca = "-" }
local app = gateway.upstream { "http://127.0.0.1:1", name = "app" }
local run = gateway.command { name = "true", program = "/bin/true" }
gateway.get("/open", { authorize = id.ou "staff",
  handle = function() gateway.log("HANDLED") end,
  log = function() gateway.log("LOGGED") end })
gateway.get("/ops", { authorize = id.any(id.ou "ops", rules.also),
  handle = function() gateway.log("HANDLED") end,
  log = function() gateway.log("LOGGED") end })
gateway.post("/set", { authorize = id.anyone,
  validate = { json = gateway.object { n = gateway.integer(0, 50) } },
  check = function(request)
    gateway.log("CHECKED")
    local n = request.json.n
    if n == 13 then error "thirteen" end
    if n == 14 then gateway.fetch(app, { path = "/" }) end
    if n == 15 then while true do end end
    if n == 16 then run:run {} end
    if n == 17 then string.rep("x", 1 << 26) end
    gateway.sleep(60)
    return true
  end,
  handle = function() gateway.log("HANDLED") end })
gateway.post("/closed", { authorize = id.anyone,
  validate = { json = gateway.object { n = gateway.integer(0, 100) } },
  handle = function() gateway.log("HANDLED") end })
gateway.post("/any", { authorize = id.anyone,
  validate = { json = gateway.object { n = gateway.integer(0, 100) } },
  handle = function() gateway.log("HANDLED") end })
"""

RULES = 'return { also = require("gateway.identity").cn "%s" }\n'


def policy(options=""):
    return LIVE.replace("@OPTIONS@", options)


def start(options="", candidate=NEXT, also="guest", **keys):
    def prepare(folder):
        write(os.path.join(folder, "next", "next.lua"), candidate)
        write(os.path.join(folder, "next", "rules.lua"), RULES % also)
    return Gateway(policy(options), listen='name = "main",', prepare=prepare, **keys)


def setup():
    return start()


def shadows(g):
    return [r for r in g.log() if r.get("event") == "shadow"]


def asked(g, count):
    """Waits until the candidate was asked so often, in all."""
    until(lambda: g.metric("gateway_shadow_requests_total") == count,
          "%d requests asked about" % count)


def counts(g):
    return {result: int(g.metric("gateway_shadow_requests_total",
                                 result=result))
            for result in ("same", "changed", "failed", "not_told",
                           "over_budget")}


def test_only_differences_are_logged(g):
    equal(g.get("/ops", who="ops").status, 200)
    equal(g.get("/nothing", who="ops").status, 404)
    equal(g.post_json("/set", {"n": 7}).status, 200)
    equal(shadows(g), [])
    equal(g.get("/open", who="ops").status, 200)
    record = g.wait_record(event="shadow")
    equal(record["live"]["allowed"], True, "live")
    equal(record["shadow"]["allowed"], False, "shadow")
    equal(record["shadow"]["stage"], "authorize")
    equal(record["shadow"]["status"], 403)
    assert 'ou is "ops", not "staff"' in record["shadow"]["reason"], record
    assert record["shadow"]["at"].startswith("next/next.lua:"), record
    assert record["live"]["at"].startswith(g.policy), record
    equal((record["method"], record["target"]), ("GET", "/open"))
    equal(record["candidate"], "next/next.lua")
    access = g.wait_record(event="access", id=record["id"])
    equal(access["status"], 200, "what the client got")
    asked(g, 4)
    equal(counts(g), {"same": 3, "changed": 1, "failed": 0, "not_told": 0,
                      "over_budget": 0})


def test_what_would_be_let_in(g):
    mark = len(shadows(g))
    equal(g.get("/ops", who="guest").status, 403)
    equal(g.post_json("/closed", {"n": 7}).status, 403)
    until(lambda: len(shadows(g)) == mark + 2, "two lines")
    first, second = shadows(g)[mark:]
    equal((first["live"]["status"], first["live"]["stage"]),
          (403, "authorize"))
    equal(first["shadow"]["allowed"], True)
    equal(second["shadow"]["stage"], "body", "as far as it can be told")
    assert "allowed" not in second["shadow"], second


def test_bodies(g):
    mark = len(shadows(g))
    equal(g.post_json("/set", {"n": 51}).status, 200)
    until(lambda: len(shadows(g)) == mark + 1, "a line")
    record = shadows(g)[mark]
    equal(record["shadow"]["status"], 422)
    assert "maximum" in record["shadow"]["reason"], record
    before = counts(g)
    equal(g.post_json("/set", {"n": 101}).status, 422)
    equal(g.post_json("/any", {"n": 101}).status, 200)  # it flowed past
    until(lambda: counts(g)["not_told"] == before["not_told"] + 1, "one")
    equal(counts(g)["same"], before["same"] + 1, "422 by both")
    equal(len(shadows(g)), mark + 1)


def test_no_effects_and_no_harm(g):
    """Hooks that fail, loop, fetch, run, eat memory: the answer stays."""
    mark = len(shadows(g))
    hook_errors = g.metric("gateway_hook_errors_total")
    before = counts(g)["failed"]
    for n, why in ((13, "thirteen"), (14, "asks no upstream: app"),
                   (15, "more than 20 ms of CPU"), (16, "runs no program: true"),
                   (17, "")):
        equal(g.post_json("/set", {"n": n}).status, 200, "n = %d" % n)
        until(lambda: len(shadows(g)) == mark + 1, "the line of %d" % n)
        record = shadows(g)[mark]
        equal(record["shadow"]["status"], 500)
        assert why in record["shadow"]["reason"], record
        mark += 1
    equal(counts(g)["failed"], before + 5)
    equal(g.metric("gateway_hook_errors_total"), hook_errors)
    for word in ("HANDLED", "LOGGED", "CHECKED", '"room":"hook"'):
        equal(g.lines(word), [], word)
    equal(len(g.workers()), 1)
    equal(g.get("/ops").status, 200)


def test_metrics_are_of_what_happened(g):
    denials = g.metric("gateway_denials_total")
    requests = g.metric("gateway_requests_total")
    for _ in range(5):
        equal(g.get("/open").status, 200)
    equal(g.metric("gateway_requests_total"), requests + 5)
    equal(g.metric("gateway_denials_total"), denials)
    equal(g.metric("gateway_requests_in_progress"), 0)


def test_a_candidate_that_takes_too_long_to_load():
    """The worker goes on without it, and without a word of its own."""
    for line in ("while true do end", "for i = 1, 4000 do gateway.get('/' .. i,"
                 " { authorize = id.anyone, handle = print }) end\n"
                 "while true do end"):
        slow = NEXT.replace("local app", 'print "SPOKEN"\n%s\nlocal app' % line)
        with start(candidate=slow) as g:
            record = g.wait_record(event="shadow")
            assert "loading the policy took more than 1000 ms of CPU" in record["msg"], record
            equal(g.get("/ops", who="ops").status, 200)
            equal(g.lines("SPOKEN"), [])


def test_a_reload_brings_the_new_candidate():
    with start() as g:
        equal(g.get("/ops", who="guest").status, 403)
        g.wait_record(event="shadow")
        write(os.path.join(g.dir, "next", "rules.lua"), RULES % "nobody")
        g.reload()
        before = len(shadows(g))
        equal(g.get("/ops", who="guest").status, 403)
        until(lambda: counts(g)["same"] >= 1, "asked again")
        equal(len(shadows(g)), before)


def test_lines_are_limited():
    with start() as g:
        with g.connect("ops") as c:
            for _ in range(60):
                equal(c.get("/open").status, 200)
        until(lambda: counts(g)["changed"] == 60, "60 differences")
        assert 10 <= len(shadows(g)) < 60, len(shadows(g))


def test_sample():
    with start("sample = 0.000001") as g:
        with g.connect("ops") as c:
            for _ in range(20):
                equal(c.get("/open").status, 200)
        one_of(sum(counts(g).values()), (0, 1), "asked about")


def test_budget():
    """Spinning in each hook spends more time than there is."""
    spin = NEXT.replace('if n == 15', 'if n < 50')
    with start("hook_cpu = 0.2", candidate=spin) as g:
        g.write(policy("hook_cpu = 0.2").replace("cpu = 1.0", "cpu = 0.001"))
        g.reload()
        with g.connect("ops") as c:
            for _ in range(8):
                equal(c.request("POST", "/set", [
                    ("Content-Type", "application/json")],
                    b'{"n":1}').status, 200)
        until(lambda: counts(g)["over_budget"] >= 5, "some left out")
        equal(counts(g)["failed"] + counts(g)["over_budget"], 8)


def test_a_candidate_that_does_not_load():
    """It is named, and the policy in force serves."""
    broken = NEXT.replace("gateway.listen", "gateway.listenn")
    with start(candidate=broken) as g:
        record = g.wait_record(event="shadow")
        assert "next/next.lua:5" in record["msg"], record
        assert "did you mean 'listen'?" in record["msg"], record
        equal(g.get("/ops").status, 200)
        run = sh(gw.BIN, "check", g.policy, check=False, cwd=g.dir)
        equal(run.returncode, 0, run.err)
        assert "gateway.shadow: next/next.lua does not load" in run.err, run
        write(os.path.join(g.dir, "next", "next.lua"),
              NEXT.replace('id.ou "staff"', 'id.ca "other.crt"'))
        run = sh(gw.BIN, "check", g.policy, check=False, cwd=g.dir)
        assert "the policy in force does not ask for this file" in run.err, run
        write(os.path.join(g.dir, "next", "next.lua"), NEXT)
        run = sh(gw.BIN, "check", g.policy, check=False, cwd=g.dir)
        assert "shadow" not in run.err, run
        assert "next/next.lua" in run.out and "of requests" in run.out, run
        os.unlink(os.path.join(g.dir, "next", "next.lua"))
        run = sh(gw.BIN, "check", g.policy, check=False, cwd=g.dir)
        equal(run.returncode, 1, "a file that is not there")
        assert "gateway.shadow" in run.err and "next.lua" in run.err, run
        g.reload(good=False)
        equal(g.get("/ops").status, 200)
        mark = len([r for r in g.log() if r.get("event") == "ready"])
        g.signal(signal.SIGUSR1)  # certificates alone: the scripts are kept
        g.wait_ready(mark)
        equal(g.get("/ops").status, 200)
