"""Programs whose output is the answer: back-pressure, caps, cuts, and ends."""

import hashlib
import json
import os
import signal
import threading
import time

from gw import (ASAN, Gateway, SLOW, alive, build, cmdline, equal,
                gateway_cli, one_of, programs, read, status_kib, tmpdir,
                until, write)

POLICY = """
gateway.admin { address = "127.0.0.1:@ADMIN@" }
local function command(name, program, options)
  options.name, options.program = name, program
  options.timeout = options.timeout or 60
  options.concurrency = options.concurrency or 8
  return gateway.command(options)
end
local cat = command("cat", "/bin/cat", { stdin = "1G", stdout = "1G" })
local small = command("small", "/bin/cat", { stdin = "64K", stdout = "64K" })
local sum = command("sum", "/usr/bin/sha256sum", { stdin = "1G" })
local seq = command("seq", "/usr/bin/seq", { args = { gateway.slot "n" },
  slots = { n = gateway.integer(0, 100000000) }, stdout = "1G" })
local yes = command("yes", "/usr/bin/yes", { stdout = "1M" })
local endless = command("endless", "/usr/bin/yes", { stdout = "64G" })
local late = command("late", "/usr/bin/yes", { stdout = "64G", timeout = 1,
  kill_after = 0.5 })
local sleep = command("sleep", "/bin/sleep", { args = { gateway.slot "s" },
  slots = { s = gateway.integer(0, 600) }, timeout = 60 })
local short = command("short", "/bin/sleep", { args = { "50" }, timeout = 0.3 })
local single = command("single", "/bin/cat", { concurrency = 1, queue = 0 })
local none = command("none", "/bin/false", {})
local half = command("half", "/bin/cat", {
  args = { "/etc/passwd", "/does/not/exist" }, read = "/etc/passwd" })
local tail = command("tail", "/usr/bin/tail", {
  args = { "-n", "+1", "-f", "/etc/passwd" }, read = "/etc/passwd" })
local first = command("first", "/usr/bin/head", { args = { "-c", "5" },
  stdin = "1G" })
local deaf = command("deaf", "/bin/sleep", { args = { "50" }, stdin = "1G",
  timeout = 5 })
local file = command("file", "/bin/cat", { args = { gateway.slot "f" },
  slots = { f = gateway.file_below("/etc", {
    pattern = "^[a-z]{1,30}$", maxLength = 30 }) } })

local function get(path, handle, more)
  local route = more or {}
  route.authorize, route.handle = id.anyone, handle
  gateway.get(path, route)
end
local function post(path, command, body, options)
  gateway.post(path, { authorize = id.anyone,
    validate = { body = body or gateway.stream "1G" },
    handle = function(request)
      return command:stream({}, { stdin = request.body or request.stream,
        content_type = "text/plain", headers = { ["x-from"] = "program" } })
    end })
end
post("/cat", cat)
post("/buffered", cat, gateway.bytes "2M")
post("/small", small)
post("/sum", sum)
post("/single", single)
post("/first", first)
post("/deaf", deaf)
gateway.get("/seq/{n}", { authorize = id.anyone,
  validate = { path = { n = gateway.integer(0, 100000000) } },
  handle = function(request) return seq:stream { n = request.path.n } end })
gateway.get("/bad-seq", { authorize = id.anyone,
  handle = function() return seq:stream { n = "100000001" } end })
get("/yes", function() return yes:stream {} end)
get("/endless", function() return endless:stream {} end)
get("/late", function() return late:stream {} end)
get("/short", function() return short:stream {} end)
get("/none", function() return none:stream {} end)
get("/half", function() return half:stream {} end)
get("/tail", function() return tail:stream {} end)
get("/sleep", function() return sleep:stream { s = 55 } end)
get("/created", function()
  return seq:stream({ n = 3 }, { status = 201, content_type = "text/csv" }) end)
get("/file/{f}", function(request)
  return file:stream { f = request.path.f } end,
  { validate = { path = { f = file.slots.f } } })
local function note(_, response)
  local run = response.run
  gateway.log("note " .. response.status .. " " .. (run
    and ("code=%d ok=%s why=%s out=%d"):format(run.code, run.ok, run.why,
      #run.stdout) or "no run"))
end
get("/noted/none", function() return none:stream {} end, { log = note })
get("/noted/half", function() return half:stream {} end, { log = note })
get("/noted/seq", function() return seq:stream { n = 2 } end, { log = note })
get("/respond/none", function() return none:stream {} end,
  { respond = function(_, response)
    if response.run and response.run.code == 1 then
      return gateway.text("no such thing", 404)
    end
  end })
get("/respond/seq", function() return seq:stream { n = 3 } end,
  { respond = function(_, response)
    gateway.sleep(0.2)
    return nil
  end })
get("/respond/over", function() return endless:stream {} end,
  { respond = function() return gateway.text "instead" end })
get("/respond/start", function() return gateway.text "x" end,
  { respond = function() return yes:stream {} end })
get("/wrong/option", function()
  return yes:stream({}, { contenttype = "x" }) end)
get("/wrong/status", function() return yes:stream({}, { status = 204 }) end)
get("/wrong/slot", function() return yes:stream { no = 1 } end)
gateway.post("/wrong/read", { authorize = id.anyone,
  validate = { body = gateway.stream "1K" },
  handle = function(request) return gateway.text("" .. request.stream) end })
gateway.post("/wrong/run", { authorize = id.anyone,
  validate = { body = gateway.stream "1K" },
  handle = function(request)
    return gateway.text(cat:run({}, { stdin = request.stream }).stdout)
  end })
gateway.get("/check", { authorize = id.anyone,
  check = function() return false, yes:stream {} end,
  handle = function() return gateway.text "fine" end })
get("/ok", function() return gateway.text "fine" end)
"""


class Streams(Gateway):
    def __init__(self, workers=1, listen=""):
        super().__init__(POLICY, workers=workers, listen=listen)

    def programs(self, name=""):
        return [p for p in programs(self.broker()) if name in cmdline(p)]


def setup():
    return Streams()


def quiet(g):
    until(lambda: not g.programs(), "no program is left", 10)


# ---- what comes out --------------------------------------------------------

def test_output_is_the_answer(g):
    r = g.get("/seq/5")
    equal((r.status, r.complete, r.chunked), (200, True, True))
    equal(r.body, b"1\n2\n3\n4\n5\n")
    equal(r.get("content-type"), "application/octet-stream")
    equal(g.get("/seq/0").body, b"", "a program that says nothing")


def test_large_output_is_whole(g):
    out = g.curl(g.url("/seq/3000000"), "-o", g.dir + "/out").err
    want = b"".join(b"%d\n" % i for i in range(1, 3000001))
    equal(hashlib.sha256(read(g.dir + "/out")).hexdigest(),
          hashlib.sha256(want).hexdigest(), out)


def test_status_type_and_headers(g):
    r = g.get("/created")
    equal((r.status, r.get("content-type")), (201, "text/csv"))
    r = g.request("POST", "/cat", [], b"abc")
    equal((r.get("content-type"), r.get("x-from")), ("text/plain", "program"))


def test_output_comes_while_it_runs(g):
    """tail -f never ends, and yet the first line is here."""
    with g.connect() as c:
        c.send(build("GET", "/tail"))
        equal(c.head().status, 200)
        until(lambda: b"root:" in c.buffer or not c.fill(), "a line")
        equal(len(g.programs("tail")), 1, "it runs")
    quiet(g)


def test_head_starts_nothing(g):
    mark = g.mark()
    r = g.request("HEAD", "/seq/5")
    equal((r.status, r.get("content-type"), r.get("content-length")),
          (200, "application/octet-stream", None))
    equal(g.get("/ok").status, 200)
    equal(g.lines('"event":"exec"', since=mark), [])


def test_range_means_nothing(g):
    r = g.get("/seq/5", [("Range", "bytes=0-1")])
    equal((r.status, r.body), (200, b"1\n2\n3\n4\n5\n"))


def test_requests_behind_it_are_answered(g):
    with g.connect() as c:
        c.send(build("GET", "/seq/3") + build("GET", "/none") +
               build("POST", "/cat", [], b"x" * 100000) + build("GET", "/ok"))
        equal(c.response().body, b"1\n2\n3\n")
        equal(c.response().status, 502)
        equal(c.response().body, b"x" * 100000)
        equal(c.response().text, "fine")


def test_http_1_0_is_ended_by_the_connection(g):
    with g.connect() as c:
        c.send(b"GET /seq/4 HTTP/1.0\r\nHost: localhost\r\n\r\n")
        r = c.response()
        equal((r.status, r.body, r.complete), (200, b"1\n2\n3\n4\n", True))
        equal(r.get("transfer-encoding"), None)


# ---- what goes in ----------------------------------------------------------

def test_the_body_is_stdin(g):
    for body in (b"", b"hello", bytes(range(256)) * 3000):
        for path in ("/cat", "/buffered"):
            r = g.request("POST", path, [("Content-Type", "a/b")], body)
            equal((r.status, r.complete, r.body == body), (200, True, True))


def test_a_chunked_body(g):
    with g.connect() as c:
        c.send(b"POST /cat HTTP/1.1\r\nHost: localhost\r\n"
               b"Transfer-Encoding: chunked\r\n\r\n")
        for i in range(50):
            c.send(b"3e8\r\n" + b"%c" % (65 + i % 26) * 1000 + b"\r\n")
        c.send(b"0\r\n\r\n")
        r = c.response()
        equal((r.complete, len(r.body)), (True, 50000))


def test_expect_100(g):
    """The body is asked for when the program is there to take it."""
    with g.connect() as c:
        c.send(b"POST /sum HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
               b"Expect: 100-continue\r\n\r\n")
        equal(c.head().status, 100)
        c.send(b"abc")
        equal(c.response().body.split()[0],
              hashlib.sha256(b"abc").hexdigest().encode())


def test_it_answers_while_the_body_comes(g):
    with g.connect() as c:
        c.send(b"POST /cat HTTP/1.1\r\nHost: localhost\r\n"
               b"Content-Length: 10\r\n\r\nfirst")
        head = c.head()
        until(lambda: b"first" in c.buffer or not c.fill(), "the first half")
        c.send(b"later")
        r = c.body_of(head, "POST")
        equal((r.body, r.complete), (b"firstlater", True))


def test_64_mib_through_a_program(g):
    block = os.urandom(1 << 20)
    sha = hashlib.sha256()
    with g.connect(timeout=60) as c:
        c.send(b"POST /sum HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d"
               b"\r\n\r\n" % (64 << 20))
        for _ in range(64):
            assert c.send(block)
            sha.update(block)
        equal(c.response().body.split()[0], sha.hexdigest().encode())
    for pid in (g.broker(), g.workers()[0]):
        assert ASAN or status_kib(pid, "VmHWM") < 100000, "it was buffered"


test_64_mib_through_a_program.timeout = 120


def test_a_program_that_does_not_want_it_all(g):
    with g.connect() as c:
        c.send(b"POST /first HTTP/1.1\r\nHost: localhost\r\n"
               b"Content-Length: 50000000\r\n\r\n" + b"abcdefgh" * 1000)
        r = c.response()
        equal((r.status, r.body, r.complete), (200, b"abcde", True))
        equal(r.get("connection"), "close")


def test_stdin_over_its_limit(g):
    r = g.request("POST", "/small", [], b"x" * 65536)
    equal((r.status, len(r.body)), (200, 65536))
    with g.connect() as c:  # it says so beforehand
        c.send(b"POST /small HTTP/1.1\r\nHost: localhost\r\n"
               b"Content-Length: 65537\r\n\r\n")
        equal(c.response().status, 413)
    with g.connect() as c:  # or it just sends
        c.send(b"POST /small HTTP/1.1\r\nHost: localhost\r\n"
               b"Transfer-Encoding: chunked\r\n\r\n" +
               b"8000\r\n" + b"x" * 32768 + b"\r\n" +
               b"8001\r\n" + b"x" * 32769 + b"\r\n")
        try:
            r = c.response()
            assert r.status == 413 or not r.complete, r
        except EOFError:
            pass
    quiet(g)
    equal(g.get("/seq/1").body, b"1\n", "the channel to the broker lives")


def test_a_broken_body_ends_the_program(g):
    with g.connect() as c:
        c.send(b"POST /cat HTTP/1.1\r\nHost: localhost\r\n"
               b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        equal(c.head().status, 200)
        c.send(b"zz\r\n")
        until(lambda: not c.fill(), "the connection is cut")
        one_of(c.closed, ("cut", "reset"))
    quiet(g)


# ---- how it ends -----------------------------------------------------------

def test_failure_before_the_first_byte(g):
    r = g.get("/none")
    equal((r.status, r.get("content-type")), (502, "application/problem+json"))
    equal("exit" in r.text, False, "the client is not told why")
    g.wait_line('"error"', "exit code 1", '"command":"none"')


def test_failure_after_it_is_a_cut(g):
    r = g.get("/half")
    equal((r.status, r.complete, b"root:" in r.body), (200, False, True))
    with g.connect() as c:
        c.send(b"GET /half HTTP/1.0\r\nHost: localhost\r\n\r\n")
        r = c.response()
        equal((r.status, r.complete), (200, False))
        one_of(c.closed, ("cut", "reset"))
    with g.connect() as c:  # nothing behind a cut
        c.send(build("GET", "/half") + build("GET", "/ok"))
        equal(c.response().complete, False)
        equal(c.closed in ("cut", "reset"), True, c.closed)


def test_more_output_than_allowed_is_a_cut(g):
    r = g.get("/yes")
    equal((r.status, r.complete), (200, False))
    assert len(r.body) <= 1 << 20, len(r.body)
    g.wait_line('"error"', "too much output")
    quiet(g)


def test_the_commands_time_is_the_deadline(g):
    r = g.get("/late")
    equal((r.status, r.complete), (200, False))
    r = g.get("/short")
    equal(r.status, 504)
    quiet(g)


def test_a_slot_out_of_its_schema(g):
    equal(g.get("/bad-seq").status, 502)
    g.wait_line('"exec_refused"', "slot n")
    equal(g.get("/file/hostname").status, 200)
    equal(g.get("/file/nothing").status, 502)


def test_no_place_and_no_queue(g):
    with g.connect() as c:
        c.send(b"POST /single HTTP/1.1\r\nHost: localhost\r\n"
               b"Content-Length: 4\r\n\r\nab")
        until(lambda: g.programs("cat"), "it runs")
        r = g.request("POST", "/single", [], b"x")
        equal((r.status, r.get("retry-after")), (503, "1"))
        c.send(b"cd")
        equal(c.response().body, b"abcd")
    until(lambda: g.request("POST", "/single", [], b"x").status == 200,
          "a place")


def test_hooks_see_how_it_went(g):
    for path, want in (("/noted/none", "note 502 code=1 ok=false why=exit"),
                       ("/noted/half", "note 200 code=1 ok=false why=exit"),
                       ("/noted/seq", "note 200 code=0 ok=true why= out=0")):
        mark = g.mark()
        g.get(path)
        g.wait_line(want, since=mark)
    r = g.get("/respond/none")
    equal((r.status, r.text), (404, "no such thing"))
    r = g.get("/respond/seq")
    equal((r.status, r.body, r.complete), (200, b"1\n2\n3\n", True))
    equal(g.get("/respond/over").text, "instead")
    quiet(g)


def test_an_audit_record(g):
    mark = g.mark()
    g.get("/seq/5")
    line = json.loads(g.wait_line('"exec"', '"end"', since=mark)[0])
    equal((line["command"], line["result"], line["stdout"]),
          ("seq", "ok", 10))


def test_mistakes_of_a_policy(g):
    for path, why in (("/wrong/option", "did you mean 'content_type'?"),
                      ("/wrong/status", "status must be"),
                      ("/wrong/slot", "has no slot"),
                      ("/respond/start", "only handle can answer"),
                      ("/check", "only handle can answer")):
        mark = g.mark()
        equal(g.get(path).status, 500, path)
        g.wait_line(why, since=mark)
    for path in ("/wrong/read", "/wrong/run"):
        mark = g.mark()
        equal(g.request("POST", path, [], b"x").status, 500, path)
        g.wait_line("a body that flows", since=mark)


def test_metrics(g):
    def count(result):
        return g.metric("gateway_exec_streams_total", result=result)
    before = [count(r) for r in ("complete", "cut", "problem")]
    g.get("/seq/2")
    g.get("/half")
    g.get("/none")
    equal([count(r) for r in ("complete", "cut", "problem")],
          [b + 1 for b in before])


# ---- clients that are slow, or gone ----------------------------------------

def test_a_slow_client_holds_the_program_back(g):
    with g.connect(rcvbuf=4096) as c:
        c.send(build("GET", "/endless"))
        equal(c.head().status, 200)
        pid = until(lambda: g.programs("yes"), "it runs")[0]

        def written():
            for line in open("/proc/%d/io" % pid):
                if line.startswith("wchar"):
                    return int(line.split()[1])
        last = [written(), time.monotonic()]

        def still():
            if written() != last[0]:
                last[:] = [written(), time.monotonic()]
            return time.monotonic() - last[1] > 0.5 * SLOW
        until(still, "it is held back", 20)
        assert written() < 16 << 20, written()
        equal(g.get("/seq/3").body, b"1\n2\n3\n", "others go on")
        got = len(c.buffer)
        while got < 4 << 20:
            c.buffer = b""
            assert c.fill()
            got += len(c.buffer)
        assert alive(pid)
    quiet(g)


def test_a_program_that_does_not_read_holds_its_client_back(g):
    with g.connect(timeout=0.5 * SLOW) as c:
        c.send(b"POST /deaf HTTP/1.1\r\nHost: localhost\r\n"
               b"Content-Length: 500000000\r\n\r\n")
        until(lambda: g.programs("sleep"), "it runs")
        sent = 0
        try:
            while sent < 64 << 20:
                c.sock.sendall(b"x" * 16384)
                sent += 16384
        except (TimeoutError, OSError):
            pass
        assert sent < 32 << 20, "it took %d bytes" % sent
        for pid in (g.broker(), g.workers()[0]):
            assert ASAN or status_kib(pid, "VmRSS") < 60000, "it was buffered"
    quiet(g)


def test_many_slow_clients_cost_bounded_memory(g):
    before = [status_kib(p, "VmRSS") for p in (g.broker(), g.workers()[0])]
    clients = [g.connect(rcvbuf=4096) for _ in range(8)]
    for c in clients:
        c.send(build("GET", "/endless"))
    for c in clients:
        equal(c.head().status, 200)
    time.sleep(0.5)
    after = [status_kib(p, "VmRSS") for p in (g.broker(), g.workers()[0])]
    for c in clients:
        c.close()
    quiet(g)
    grown = [a - b for a, b in zip(after, before)]
    assert ASAN or max(grown) < 8 * 2000, "KiB for 8 clients: %r" % grown


def test_a_client_that_goes_ends_the_program(g):
    for path, name in (("/sleep", "sleep"), ("/endless", "yes"),
                       ("/tail", "tail")):
        c = g.connect()
        c.send(build("GET", path))
        pid = until(lambda: g.programs(name), "it runs")[0]
        c.close()
        until(lambda: not alive(pid), "%s ends" % name, 10)
    mark = g.mark()
    with g.connect() as c:  # while it uploads
        c.send(b"POST /cat HTTP/1.1\r\nHost: localhost\r\n"
               b"Content-Length: 100\r\n\r\nabc")
        pid = until(lambda: g.programs("cat"), "it runs")[0]
    until(lambda: not alive(pid), "cat ends", 10)
    g.wait_line('"exec"', '"result":"cancelled"', since=mark)


def test_many_at_once(g):
    wrong = []

    def one(i):
        with g.connect() as c:
            for k in range(5):
                n = 1000 * i + k
                r = c.get("/seq/%d" % n)
                want = b"".join(b"%d\n" % j for j in range(1, n + 1))
                if r.status != 503 and r.body != want:
                    wrong.append((n, r.status, len(r.body)))
    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong[:3]
    quiet(g)


test_many_at_once.timeout = 60


# ---- when processes die ----------------------------------------------------

def test_the_broker_is_killed_while_it_streams():
    with Streams() as g:
        with g.connect() as c, g.connect() as d:
            c.send(build("GET", "/tail"))
            equal(c.head().status, 200)
            d.send(build("GET", "/sleep"))
            pids = until(lambda: len(g.programs()) == 2 and g.programs(),
                         "both run")
            os.kill(g.broker(), signal.SIGKILL)
            until(lambda: not c.fill(), "the stream is cut")
            one_of(c.closed, ("cut", "reset"))
            equal(d.response().status, 502)
            until(lambda: not any(alive(p) for p in pids), "programs end")

        def works():
            try:
                return g.get("/seq/2").body == b"1\n2\n"
            except (OSError, EOFError):
                return False
        until(works, "programs run again", 15)


test_the_broker_is_killed_while_it_streams.timeout = 60


def test_a_broker_that_hangs():
    """Nobody waits for ever: three times the timeout, and some seconds."""
    with Streams() as g:
        broker = g.broker()
        os.kill(broker, signal.SIGSTOP)
        try:
            with g.connect(timeout=40) as c:
                equal(c.get("/short").status, 504)
        finally:
            os.kill(broker, signal.SIGCONT)
        g.wait_line("the broker does not answer")
        equal(g.get("/seq/1").body, b"1\n")


test_a_broker_that_hangs.timeout = 60


def test_two_workers():
    with Streams(workers=2) as g:
        for i in range(12):
            equal(g.get("/seq/3").body, b"1\n2\n3\n")
        with g.connect() as c:
            c.send(build("GET", "/endless"))
            equal(c.head().status, 200)
            pid = until(lambda: g.programs("yes"), "it runs")[0]
            for worker in g.workers():
                os.kill(worker, signal.SIGKILL)
            until(lambda: not alive(pid), "it ends with its worker", 10)


def test_a_reload_does_not_cut_it():
    with Streams() as g:
        with g.connect() as c:
            c.send(b"POST /cat HTTP/1.1\r\nHost: localhost\r\n"
                   b"Content-Length: 6\r\n\r\nabc")
            head = c.head()
            g.reload()
            c.send(b"def")
            r = c.body_of(head, "POST")
            equal((r.body, r.complete), (b"abcdef", True))


# ---- policy tests ----------------------------------------------------------

TRIED = """
local gateway, id = require "gateway", require "gateway.identity"
gateway.listen { address = "127.0.0.1:0", certificate = "c", key = "k",
  client_ca = "a" }
gateway.jobs {}
local cat = gateway.command { name = "cat", program = "/bin/cat",
  args = { gateway.slot "n" }, slots = { n = gateway.integer(1, 9) } }
gateway.post("/stream/{n}", { authorize = id.anyone,
  validate = { path = { n = gateway.integer(1, 99) },
               body = gateway.stream "1K" },
  handle = function(request)
    return cat:stream({ n = request.path.n }, { content_type = "text/csv",
      stdin = request.stream, status = 201 })
  end })
gateway.get("/text", { authorize = id.anyone,
  handle = function() return cat:stream({ n = 1 }, { stdin = "abc" }) end })
gateway.get("/unused", { authorize = id.anyone, handle = function()
  local _ = cat:stream { n = 1 }
  return gateway.text "not run" end })
gateway.post("/job", { authorize = id.anyone,
  handle = function() return cat:job { n = 2 } end })
"""

TESTS = """
local t = require "gateway.test"
t.policy "@POLICY@"
local ops = t.identity { cn = "ops" }
local function same(a, b)
  if a ~= b then error(tostring(a) .. " is not " .. tostring(b), 2) end
end
t.case("a stream is what its stand-in writes", function()
  local r = t.request(ops, "POST", "/stream/3", { body = "x",
    stub = { cat = { stdout = "a,b" } } })
  t.allowed(r)
  t.ran(r, "cat", { n = 3 })
  same(r.status, 201)
  same(r.body, "a,b")
  same(r.headers["content-type"], "text/csv")
end)
t.case("the stand-in sees the slots and stdin", function()
  local r = t.request(ops, "GET", "/text", { stub = {
    cat = function(slots, opts)
      return { stdout = slots.n .. opts.stdin } end } })
  same(r.body, "1abc")
end)
t.case("a failure before the first byte", function()
  local r = t.request(ops, "GET", "/text", { stub = { cat = { code = 1 } } })
  same(r.status, 502)
  same(r.cut, false)
  same(r.reason, "exit code 1")
end)
t.case("a failure after it", function()
  local r = t.request(ops, "GET", "/text", { stub = {
    cat = { code = 1, stdout = "half" } } })
  same(r.cut, true)
  same(pcall(t.allowed, r), false)
end)
t.case("a slot out of its schema", function()
  local r = t.request(ops, "POST", "/stream/10", { body = "x" })
  same(r.status, 502)
  same(#r.runs, 0)
end)
t.case("a stream that is not answered with does not run", function()
  same(#t.request(ops, "GET", "/unused").runs, 0)
end)
t.case("a HEAD starts nothing", function()
  local r = t.request(ops, "HEAD", "/text")
  same(r.status, 200)
  same(#r.runs, 0)
end)
t.case("a job begins", function()
  local r = t.request(ops, "POST", "/job")
  t.allowed(r)
  t.ran(r, "cat", { n = 2 })
  same(r.status, 202)
  same(r.headers.location, "/jobs/" .. ("0"):rep(32))
  same(t.request(ops, "GET", r.headers.location).status, 404)
end)
"""


def test_policy_tests():
    folder = tmpdir("tried")
    policy = write(folder + "/policy.lua", TRIED)
    tests = write(folder + "/it_test.lua", TESTS.replace("@POLICY@", policy))
    done = gateway_cli("test", tests, cwd=folder)
    equal(done.returncode, 0, done.out + done.err)
    assert "8 passed, 0 failed" in done.out, done.out
