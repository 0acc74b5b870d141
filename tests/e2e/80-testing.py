"""gateway test, as a user runs it: cases, coverage, formats, fuzzing."""

import json
import re
import subprocess
import xml.etree.ElementTree as xml

import gw
from gw import equal, gateway_cli, tmpdir, write

HEAD = """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen { address = "127.0.0.1:1", certificate = "-", key = "-",
  client_ca = "-" }
"""

# The example of the design, word for word but for `limit`.
FIRMWARE = HEAD + """
local flash = gateway.command {
  name = "flash", program = "/usr/bin/flash", args = { gateway.slot "slot" },
  slots = { slot = gateway.enum { "a", "b" } }, stdin = "16M",
}
gateway.post("/v1/firmware/{slot}", {
  authorize = id.all(id.spiffe "spiffe://plant.example/ns/*/sa/updater", id.eku "clientAuth"),
  validate  = { path = { slot = gateway.enum { "a", "b" } },
                body = gateway.bytes("16M", "application/octet-stream") },
  handle    = function(request)
    return flash:stream({ slot = request.path.slot }, { stdin = request.body })   -- chunked, capped
  end,
})
"""

FIRMWARE_TEST = """
-- scripts/tests/firmware_test.lua
local t = require "gateway.test"
local updater = t.identity { uri = "spiffe://plant.example/ns/eu/sa/updater", eku = { "clientAuth" } }
t.case("updater may flash slot a", function()
  local r = t.request(updater, "POST", "/v1/firmware/a", { body = "x", stub = { flash = { stdout = "ok" } } })
  t.allowed(r); t.ran(r, "flash", { slot = "a" })
end)
t.case("a guest may not", function()
  t.denied(t.request(t.identity { cn = "guest" }, "POST", "/v1/firmware/a", { body = "x" }), "authorize")
end)
t.case("an encoded slash is no slot", function()
  t.refused(t.request(updater, "POST", "/v1/firmware/..%2fb", { body = "x" }), "path")
end)
"""

# Line 6 is the first below HEAD; the handler of /half has a way never taken.
HALF = HEAD + """gateway.get("/half", {
  authorize = id.ou "ops",
  handle = function(request)
    if request.method == "HEAD" then
      return gateway.text "never"
    end
    return gateway.text "half"
  end,
})
gateway.get("/all/{n}", {
  authorize = id.anyone,
  validate = { path = { n = gateway.integer(1, 9) } },
  handle = function() return gateway.text "all" end,
})
"""

HALF_TEST = """
local t = require "gateway.test"
t.case("ops may", function()
  t.allowed(t.request(t.identity { ou = "ops" }, "GET", "/half"))
end)
t.case("one & <two> of \\"three\\" '\\xff' do", function()
  t.allowed(t.request(t.identity { cn = "a" }, "GET", "/all/1"))
end)
"""

COUNTER = HEAD + """
local count = 0
gateway.get("/count", { authorize = id.anyone, handle = function()
  count = count + 1
  return gateway.text(tostring(count))
end })
"""

COUNTER_TEST = """
local t = require "gateway.test"
local a = t.identity { cn = "a" }
for i = 1, 3 do
  t.case("nobody was here before, " .. i, function()
    t.equal(t.request(a, "GET", "/count").body, "1")
    t.equal(t.request(a, "GET", "/count").body, "2")
  end)
end
"""

FAULTY = HEAD + """
local app = gateway.upstream { "http://127.0.0.1:9", name = "app" }
gateway.get("/a/{name}", {
  authorize = id.all(id.spiffe "spiffe://example.org/ns/*/sa/cam", id.ou "ops"),
  validate = { path = { name = gateway.filename },
    query = { n = gateway.optional(gateway.integer(1, 100)) } },
  handle = function(request)
    if @GUARD@ request.query.n > 40 then return gateway.text "big" end
    return gateway.text "small"
  end })
gateway.post("/b", {
  authorize = function(identity) return identity:has("cn", "bo"), "no" end,
  validate = { json = gateway.object { room = gateway.string(1, 8) } },
  handle = app })
"""


def folder(**files):
    path = tmpdir("testing")
    for name, text in files.items():
        write(path + "/" + name + ".lua", text)
    return path


def run(path, *argv, code=0, policy="policy"):
    result = gateway_cli("test", "--policy", path + "/" + policy + ".lua",
                         *argv)
    result.stdout = result.stdout.decode("utf-8", "replace")
    result.stderr = result.stderr.decode("utf-8", "replace")
    equal(result.returncode, code, result.stdout + result.stderr)
    return result


def test_the_example_of_the_design():
    path = folder(policy=FIRMWARE, some_test=FIRMWARE_TEST)
    out = run(path, path + "/some_test.lua").stdout
    equal(out, "3 passed, 0 failed\n")
    out = run(path, "--coverage", path + "/some_test.lua").stdout
    assert "policy: 100.0% (3 of 3)" in out, out


def test_each_case_has_a_policy_of_its_own():
    path = folder(policy=COUNTER, some_test=COUNTER_TEST)
    equal(run(path, path + "/some_test.lua").stdout, "3 passed, 0 failed\n")


ENDLESS_TEST = """
local t = require "gateway.test"
t.case("runs for ever", function()
  while true do
    pcall(string.rep, "x", 3)
  end
end)
t.case("in a coroutine", function()
  coroutine.wrap(function()
    while true do end
  end)()
end)
t.case("grows", function()
  local list = {}
  while true do
    list[#list + 1] = { #list }
  end
end)
t.case("grows in few steps", function()
  local text = "x"
  while true do text = text .. text end
end)
t.case("is one of many", function()
  t.denied(t.request(t.identity { cn = "a" }, "GET", "/half"), "authorize")
end)
"""


def test_no_case_runs_for_ever_or_eats_the_machine():
    path = folder(policy=HALF, some_test=ENDLESS_TEST)
    name = path + "/some_test.lua"
    out = run(path, "--cpu", "1", "--memory", "64", name, code=1).stdout
    for line, what in (
            ("[45]", "the case took more than 1000 ms of CPU .in case .runs"),
            ("10", "the case took more than 1000 ms of CPU .in case .in a co"),
            ("1[56]", "the case took more than 64 MiB of memory .in case"),
            ("(19|21)", "the case took more than 64 MiB of memory .in case")):
        assert re.search(f"FAIL {name}:{line}: {what}", out), (what, out)
    assert "1 passed, 4 failed" in out, out


def test_nor_does_a_file_or_a_policy():
    endless = "\nwhile true do end\n"
    path = folder(policy=HALF, loop_test=endless, endless=HEAD + endless,
                  list_test="local l = {}\nwhile true do l[#l + 1] = {} end",
                  half_test=HALF_TEST)
    out = run(path, "--cpu", "1", "--memory", "64", path + "/loop_test.lua",
              path + "/list_test.lua", path + "/half_test.lua", code=1).stdout
    for text in ("loop_test.lua:2: reading the file took more than 1000 ms of",
                 "list_test.lua:2: reading the file took more than 64 MiB of",
                 "2 passed, 2 failed"):
        assert text in out, (text, out)
    out = run(path, "--cpu", "1", path + "/half_test.lua", policy="endless",
              code=1).stdout
    assert re.search(r"endless.lua:\d+: loading the policy took more", out), out
    for argv in (["--cpu", "0"], ["--memory", "x"]):
        wrong = gateway_cli("test", *argv, path + "/half_test.lua")
        assert b"takes a whole number of" in wrong.stderr, wrong.stderr


SLOTS = HEAD + """
gateway.jobs { authorize = id.anyone }
local say = gateway.command { name = "say", program = "/bin/echo",
  args = { gateway.slot "what" },
  slots = { what = gateway.enum { "yes", "no" } } }
gateway.get("/say/{what}", { authorize = id.anyone,
  validate = { path = { what = gateway.string(1, 9) } },
  handle = function(request)
    return gateway.text(say:run({ what = request.path.what }).why) end })
gateway.get("/stream/{what}", { authorize = id.anyone,
  validate = { path = { what = gateway.string(1, 9) } },
  handle = function(request)
    return say:stream { what = request.path.what } end })
gateway.get("/job/{what}", { authorize = id.anyone,
  validate = { path = { what = gateway.string(1, 9) } },
  handle = function(request)
    local job, why = say:job { what = request.path.what }
    return gateway.text(tostring(job or why)) end })
"""

SLOTS_TEST = """
local t = require "gateway.test"
local a = t.identity { cn = "a" }
for _, way in ipairs { "say", "stream", "job" } do
  t.case(way, function()
    local r = t.request(a, "GET", "/" .. way .. "/maybe")
    t.equal(#r.refusals, 1)
    t.ran(r, "say", { what = "maybe" })
  end)
end
"""


def test_a_refused_run_says_why():
    path = folder(policy=SLOTS, some_test=SLOTS_TEST)
    out = run(path, path + "/some_test.lua", code=1).stdout
    lines = [line for line in out.splitlines() if line.startswith("FAIL")]
    equal(len(lines), 3, out)
    for line in lines:
        assert re.search("got none: refused: slot what: must be .*; (200|5..)"
                         " at", line), line


def test_runs_do_not_meet():
    path = folder(policy=COUNTER, some_test=COUNTER_TEST)
    runs = [subprocess.Popen(
        [gw.BIN, "test", "--policy", path + "/policy.lua",
         path + "/some_test.lua"], stdout=subprocess.PIPE, text=True)
        for _ in range(4)]
    for one in runs:
        equal((one.communicate()[0], one.returncode),
              ("3 passed, 0 failed\n", 0))


def test_coverage_names_what_is_missing():
    path = folder(policy=HALF, some_test=HALF_TEST)
    out = run(path, "--coverage", path + "/some_test.lua").stdout
    policy = path + "/policy.lua"
    for line in (
            "lines: 92.3% (12 of 13)",
            "  %s: never run: 10" % policy,
            "policy: 40.0% (2 of 5)",
            "  %s:6: GET /half: no case in which an identity is refused" %
            policy,
            "  %s:6: GET /half: no case in which an input is refused" % policy,
            "  %s:15: GET /all/{n}: no case in which an input is refused" %
            policy):
        assert line + "\n" in out, out
    assert out.count("/all/{n}") == 1, "id.anyone refuses nobody: " + out
    assert "some_test" not in out, "tests are no part of the policy: " + out


def test_a_refused_path_counts_for_the_route_it_is_near():
    path = folder(policy=HALF, some_test=HALF_TEST + """
t.case("no dots", function()
  t.refused(t.request(t.identity { cn = "a" }, "GET", "/all/%2e%2e"), "path")
end)""")
    out = run(path, "--coverage", path + "/some_test.lua").stdout
    assert "/all/{n}" not in out, out


def test_modules_are_covered_as_well():
    path = folder(policy=HEAD + """
local helper = require "helper"
gateway.get("/x", { authorize = id.anyone, handle = helper.answer })
""", helper="""local gateway = require "gateway"
return {
  answer = function() return gateway.text "x" end,
  other = function()
    return gateway.text "y"
  end,
}
""", unused="return { 1 }\n", some_test="""
local t = require "gateway.test"
t.case("x", function()
  t.allowed(t.request(t.identity { cn = "a" }, "GET", "/x"))
end)""")
    out = run(path, "--coverage", path + "/some_test.lua").stdout
    assert "  %s/helper.lua: never run: 5\n" % path in out, out
    assert "unused" not in out, out


def test_a_threshold_is_for_both():
    path = folder(policy=HALF, some_test=HALF_TEST)
    test = path + "/some_test.lua"
    run(path, "--threshold", "40", test)
    out = run(path, "--threshold", "41", test, code=1).stdout
    assert "FAIL coverage of the policy is 40.0%, below the threshold of 41%" \
        in out and "coverage of lines" not in out, out
    out = run(path, "--threshold", "99.5", test, code=1).stdout
    assert "FAIL coverage of lines is 92.3%, below the threshold of 99.5%" \
        in out, out


def test_thresholds_are_no_cases():
    path = folder(policy=HALF, some_test=HALF_TEST)
    out = run(path, "--threshold", "99.5", path + "/some_test.lua",
              code=1).stdout
    assert out.endswith("2 passed, 0 failed; coverage is too low\n"), out
    assert "policy: 40.0% (2 of 5)" in out, out


def test_slips_in_a_test_file():
    path = folder(policy=HALF, some_test="""
local t = require "gateway.test"
local a = t.identity { cn = "a" }
t.case("slip", function() t.alowed(t.request(a, "GET", "/all/1")) end)
t.case("asks nothing", function() t.request(a, "GET", "/all/1") end)
t.case("runs", function() t.not_failed(t.request(a, "GET", "/all/1")) end)
""")
    out = run(path, path + "/some_test.lua", code=1).stdout
    assert "some_test.lua:4: t.alowed: there is no such function: did you " \
        "mean 'allowed'?" in out, out
    assert "some_test.lua:5: asks nothing: it asks nothing of the answer" \
        in out, out
    assert "1 passed, 2 failed" in out, out
    write(path + "/some_test.lua", """
local t = require "gateway.test"
t.case("asks in its own way", function()
  assert(t.request(t.identity { cn = "a" }, "GET", "/all/1").status == 200)
end)
""")
    run(path, path + "/some_test.lua")


def test_a_policy_that_does_not_load_is_said_once():
    path = folder(policy=HEAD + "x = 1\n", some_test=HALF_TEST)
    out = run(path, path + "/some_test.lua", code=1).stdout
    equal(out.count("assignment to global"), 1, out)


def test_what_was_forwarded_is_shown_as_far_as_it_was_asked_for():
    path = folder(policy=HEAD + """
local app = gateway.upstream { "http://127.0.0.1:1", name = "app" }
gateway.get("/f", { authorize = id.anyone, handle = app:to "/g" })
""", some_test="""
local t = require "gateway.test"
t.case("elsewhere", function()
  t.forwarded(t.request(t.identity { cn = "a" }, "GET", "/f"),
    { target = "/h", headers = { host = "127.0.0.1:1" } })
end)
""")
    out = run(path, path + "/some_test.lua", code=1).stdout
    assert "target = /g" in out.replace('"', ""), out
    assert "client-cert" not in out.lower(), out


def test_junit():
    path = folder(policy=HALF, some_test=HALF_TEST + """
t.case("wrong", function()
  t.denied(t.request(t.identity { cn = "a" }, "GET", "/all/1"))
end)
t.case("a bug", function() local x = nil; return x.y end)""")
    out = run(path, "--format", "junit", "--threshold", "100",
              path + "/some_test.lua", code=1).stdout
    root = xml.fromstring(out)
    equal((root.tag, root.get("tests"), root.get("failures"),
           root.get("errors")), ("testsuites", "6", "4", "0"))
    suites = root.findall("testsuite")
    equal([s.get("name") for s in suites],
          [path + "/some_test.lua", "coverage"])
    for suite in suites:
        cases = suite.findall("testcase")
        equal(suite.get("tests"), str(len(cases)))
        equal(suite.get("failures"),
              str(len([c for c in cases if c.find("failure") is not None])))
        assert all(float(c.get("time")) >= 0 for c in [suite] + cases)
    cases = suites[0].findall("testcase")
    equal(cases[1].get("name"), "one & <two> of \"three\" '?' do")
    equal([c.get("classname") for c in cases], [path + "/some_test.lua"] * 4)
    assert "expected denied" in cases[2].find("failure").get("message")
    assert re.search(r"/some_test\.lua:\d+: .*'x'",
                     cases[3].find("failure").text)
    assert "never run: 10" in suites[1].find("system-out").text


def test_json():
    path = folder(policy=HALF, some_test=HALF_TEST)
    out = json.loads(run(path, "--format", "json", "--coverage",
                         path + "/some_test.lua").stdout)
    equal((out["passed"], out["failed"]), (2, 0))
    equal([c["ok"] for c in out["cases"]], [True, True])
    equal(out["coverage"]["lines"]["percent"], 92.3)
    equal(out["coverage"]["lines"]["files"][0]["missing"], ["10"])
    equal(out["coverage"]["policy"]["routes"][1]["missing"],
          ["no case in which an input is refused"])


FETCHES = HEAD + """
local app = gateway.upstream { "http://127.0.0.1:9", name = "app" }
local wrong = {
  { { path = "/", timeout = "x" }, "timeout must be a number" },
  { { path = "/", tiemout = 1 }, "unknown field \\"tiemout\\": did you mean 'timeout'?" },
  { { path = {} }, "path must be a string, not a table" },
  { { path = "/", query = "a=b" }, "query must be a table" },
  { { path = "/", headers = "x" }, "headers must be a table" },
  { { path = "/", headers = { ["a b"] = "c" } }, "headers: no header name" },
  { { path = "/", headers = { "c" } }, "headers: no header name" },
  { { path = "/", body = {} }, "body must be a string" },
  { { path = "/", headers = { Upgrade = "x" } }, "header 'Upgrade' is written by the gateway itself", true },
  { { path = "/", max = "9X" }, "max takes" },
  { 7, "takes a path or" },
  { nil, "takes a path or" },
}
gateway.get("/all", { authorize = id.anyone, handle = function()
  local bad = {}
  for i = 1, 12 do
    local row = wrong[i]
    local ok, why = pcall(gateway.fetch, app, row[1])
    why = tostring(why)
    if ok or not why:find(row[2], 1, true)
      or not row[3] and not why:find("^.-policy%.lua:%d+: gateway%.fetch: ")
      or why:find "bad argument" then
      bad[#bad + 1] = why
    end
  end
  return gateway.text(table.concat(bad, "\\n"))
end })
"""


def test_mistakes_in_a_fetch_name_the_place_and_the_mend():
    path = folder(policy=FETCHES, some_test="""
local t = require "gateway.test"
t.case("all are told", function()
  t.equal(t.request(t.identity { cn = "a" }, "GET", "/all").body, "")
end)""")
    run(path, path + "/some_test.lua")


def test_headers_of_the_connection_are_not_a_tests():
    """The message names the header, and what to do instead."""
    for name, mend in (("Upgrade", "running gateway"), ("TE", "trailers"),
                       ("Content-Length", "give body")):
        path = folder(policy=HALF, some_test="""
local t = require "gateway.test"
t.case("one", function()
  t.request(t.identity { ou = "ops" }, "GET", "/half",
    { headers = { ["%s"] = "x" } })
end)""" % name)
        out = run(path, path + "/some_test.lua", code=1).stdout
        for word in ("some_test.lua:4: t.request: headers: %s is of the"
                     % name, mend):
            assert word in out, out


def test_print_is_heard_and_says_of_which_case():
    """What a case, its policy's hooks and the file itself print."""
    path = folder(policy=HEAD + """
gateway.get("/x", { authorize = id.anyone, handle = function(request)
  print("the hook", request.method)
  return gateway.text "x" end })
""", some_test="""
local t = require "gateway.test"
print("read", 1, nil)
t.case("first", function()
  print("a case", { 1 } ~= nil)
  t.allowed(t.request(t.identity { cn = "a" }, "GET", "/x"))
end)
t.case("second", function() t.equal(1, 1) end)""")
    result = run(path, path + "/some_test.lua")
    equal(result.stderr.splitlines(), [
        path + "/some_test.lua: read\t1\tnil", "first: a case\ttrue",
        "first: the hook\tGET"])
    assert "2 passed" in result.stdout, result.stdout


def test_nothing_ran():
    path = folder(policy=HALF, some_test=HALF_TEST)
    test = path + "/some_test.lua"
    out = run(path, "--run", "no such case", test, code=1).stdout
    assert "no case ran" in out, out
    root = xml.fromstring(run(path, "--run", "no such case", "--format",
                              "junit", test, code=1).stdout)
    equal(root.get("failures"), "1")
    out = run(path, path + "/none.lua", code=1).stdout
    assert "none.lua" in out, out


def test_wrong_usage():
    path = folder(policy=HALF, some_test=HALF_TEST)
    for argv, text in (
            (["--threshold", "101"], "--threshold takes a percentage"),
            (["--threshold", "x"], "--threshold takes a percentage"),
            (["--format", "html"], "--format takes text, junit or json"),
            (["--fuzz", "0"], "--fuzz takes a number of seconds"),
            (["--fuzz", "1", "--coverage"], "--fuzz runs no cases"),
            (["--fuzz", "1", "--seed", "-1"], "--seed takes a whole number"),
            (["--seed", "1"], "--seed goes with --fuzz")):
        err = run(path, *argv, path + "/some_test.lua", code=2).stderr
        assert text in err, err


# ---- fuzzing ---------------------------------------------------------------

def cases_of(out):
    return re.findall(r"^-- .*?^end\)$", out, re.M | re.S)


def test_a_hook_that_raises_is_found_and_made_small():
    path = folder(policy=FAULTY.replace("@GUARD@", ""))
    result = run(path, "--fuzz", "3", "--seed", "5", code=1)
    found = cases_of(result.stdout)
    equal(len(found), 1, result.stdout)
    assert "policy.lua:13: attempt to compare number with nil" in found[0]
    assert '"GET", "/a/a")' in found[0], "not the smallest: " + found[0]
    assert "seed 5: " in result.stderr, result.stderr
    assert "policy.lua:16: POST /b: authorize was stood in for" in \
        result.stderr, result.stderr
    # the case is ready to be used, and passes when the policy is mended
    write(path + "/found_test.lua",
          'local t = require "gateway.test"\n' + found[0])
    out = run(path, path + "/found_test.lua", code=1).stdout
    assert "0 passed, 1 failed" in out, out
    write(path + "/mended.lua",
          FAULTY.replace("@GUARD@", "request.query.n and"))
    run(path, path + "/found_test.lua", policy="mended")
    run(path, "--fuzz", "1", policy="mended")


def test_identities_of_the_tests_are_used():
    path = folder(policy=FAULTY.replace("@GUARD@", "request.query.n and"),
                  some_test="""
local t = require "gateway.test"
local bo = t.identity { cn = "bo" }
t.case("bo", function()
  t.allowed(t.request(bo, "POST", "/b", { json = { room = "a" } }))
end)""")
    err = run(path, "--fuzz", "0.5", path + "/some_test.lua").stderr
    assert "stood in" not in err, err


def test_fuzzing_reports_as_junit():
    path = folder(policy=FAULTY.replace("@GUARD@", ""))
    root = xml.fromstring(run(path, "--fuzz", "2", "--seed", "5", "--format",
                              "junit", code=1).stdout)
    equal(root.get("failures"), "1")
    assert "t.case(" in root.find(".//failure").text


def test_fuzzing_a_broken_policy_fails():
    path = folder(policy=HEAD + "x = 1\n")
    out = run(path, "--fuzz", "1", code=1).stdout
    assert "policy.lua:6: assignment to global 'x'" in out, out
    path = folder(policy=HEAD)
    out = run(path, "--fuzz", "0.2", code=1).stdout
    assert "no request was judged" in out, out


CLOSED = HEAD + """
for _, name in ipairs { "red", "blue" } do
  gateway.get("/tenant/{n}", {
    authorize = id.anyone, host = name .. ".example",
    validate = { path = { n = gateway.integer(1, 9) } },
    handle = function() return gateway.text "x" end,
  })
end
gateway.get("/never/{n}", {
  authorize = id.anyone,
  validate = { path = { n = gateway.string {
    pattern = "^[a-z]{5}$", maxLength = 3 } } },
  handle = function() return gateway.text "x" end,
})
"""


def test_a_route_that_lets_nothing_in_fails():
    path = folder(policy=CLOSED)
    out = run(path, "--fuzz", "2", code=1).stdout
    assert "policy.lua:14: GET /never/{n}: none of " in out, out
    # two routes of one line are two: each is sent what it takes
    assert "/tenant" not in out, out


def test_the_demo_policy_stands_fuzzing():
    result = run("scripts", "--fuzz", "2", policy="gateway")
    valid, invalid = re.search(r"(\d+) valid, (\d+) invalid",
                               result.stderr).groups()
    assert int(valid) > 10 and int(invalid) > 10, result.stderr


def test_strangers_tests_and_policies_see_no_inner_modules():
    """`gateway test`, audit and explain run what a stranger wrote: it reads no
    file, calls nobody, and stops no gateway."""
    folder = tmpdir("testing")
    secret = write(folder + "/secret", "SECRET")
    reach = """
local tried = {}
for _, name in ipairs { "core", "control", "http_client", "who", "document",
  "tool", "policy", "options", "audit_live", "replay", "decisions" } do
  tried[#tried + 1] = select(2, pcall(require, "gateway." .. name))
end
for _, it in ipairs(tried) do
  if type(it) == "table" and it.read_file then
    error("READ " .. tostring(it.read_file("%s")))
  end
  if type(it) == "table" then error "REACHED" end
end
if debug or io or load or os.execute then error "REACHED" end
""" % secret
    policy = write(folder + "/policy.lua", HEAD + reach
                   + 'gateway.get("/a", { authorize = id.anyone,\n'
                   '  handle = function() return gateway.text "a" end })\n')
    cases = reach + """
local t = require "gateway.test"
t.case("reaches", function() %s
  t.allowed(t.request(t.identity { cn = "a" }, "GET", "/a"))
end)
""" % reach
    tests = write(folder + "/a_test.lua", cases)
    for argv in (("audit", policy), ("routes", "--policy",
                                                   policy), ("explain", "--policy", policy, "--identity", "cn=a",
                           "/a"), ("test", "--policy", policy, tests)):
        done = gateway_cli(*argv)
        assert "SECRET" not in done.out + done.err, done.out + done.err
        assert "REACHED" not in done.out + done.err, done.out + done.err
        equal(done.returncode, 0, argv[0] + done.out + done.err)
    inner = write(folder + "/b_test.lua", 'require "gateway.core"\n' + cases)
    done = gateway_cli("test", "--policy", policy, inner)
    equal(done.returncode, 1)
    assert "for the library alone (and for gateway test --library)" in (
        done.out), done.out


def test_nothing_reaches_the_terminal_as_it_came():
    """Names, messages and inputs of strangers may hold escape sequences."""
    folder = tmpdir("testing")
    policy = write(folder + "/policy.lua", HEAD + """
gateway.post("/a", { authorize = id.anyone,
  validate = { json = gateway.object { a = gateway.string {} } },
  check = function(request) return false, "no " .. request.json.a end,
  handle = function() return gateway.text "a" end })
""")
    text = '"\\27]0;x\\7\\u{9b}31m\\u{202e}"'
    broken = write(folder + "/broken.lua", "error(%s)" % text)
    odd = write(folder + "/odd.lua", """
local gateway, id = require "gateway", require "gateway.identity"
gateway.listen { address = "127.0.0.1:1", client_ca = "%s/clients.pem",
  certificate = "%s/server.crt", key = "%s/server.key" }
gateway.get("/\\u{9b}31m\\u{202e}", { authorize = id.anyone,
  handle = function() return gateway.text "a" end })
""" % (gw.PKI, gw.PKI, gw.PKI))
    done = gateway_cli("check", odd)
    assert "GET /\\u009b31m\\u202e" in done.out, done.out + done.err
    tests = write(folder + "/a_test.lua", """
local t = require "gateway.test"
t.case("fails", function() error(%s) end)
t.case("differs", function() t.equal(%s, "a") end)
""" % (text, text))
    body = '{"a":"\\u001b]0;x\\u0007\\u009b31m\\u202e"}'
    for argv in (("test", "--policy", policy, tests),
                 ("test", "--format", "json", "--policy", policy, tests),
                 ("test", "--format", "junit", "--policy", policy, tests),
                 ("check", broken), ("audit", broken),
                 ("explain", "--policy", policy, "--identity", "cn=a", "-X",
                  "POST", "--json", body, "/a"),
                 ("explain", "--policy", policy, "--identity", "cn=a",
                  "--format", "json", "-X", "POST", "--json", body, "/a"),
                 ("explain", "--policy", policy, "--identity", "cn=a",
                  "/\x1b[2J\u009b")):
        done = gateway_cli(*argv)
        equal(done.returncode != 0, True, argv)
        for character in "\x1b\x07\u009b\u202e":
            assert character not in done.out + done.err, (argv, done.out,
                                                          done.err)
        if "json" in argv[2:4]:
            json.loads(done.out)
