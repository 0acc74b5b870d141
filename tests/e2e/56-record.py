"""The audit records: a chain in which everything that is missing shows."""

import glob
import hashlib
import hmac
import json
import os
import re
import signal

from gw import (SLOW, Gateway, Load, Skip, alive, build, children, equal,
                gateway_cli, read, tmpdir, until, witness, write)

POLICY = """
gateway.process { workers = 2, @PROCESS@ @AUDIT@ }
gateway.listen {
  address = "127.0.0.1:@PORT@",
  certificate = "@PKI@/server.crt", key = "@PKI@/server.key",
  client_ca = "@PKI@/clients.pem",
}
local function command(name, args, slots)
  return gateway.command { name = name, program = "@PROGRAM@",
    sha256 = "@SHA@", args = args, slots = slots, timeout = 60 }
end
local exit = command("exit", { "exit", gateway.slot "code" },
  { code = gateway.integer(0, 255) })
local wait = command("wait", { "wait", "60" })
local small = gateway.optional(gateway.integer(0, 255), 0)
gateway.get("/exit", { authorize = id.anyone,
  validate = { query = { code = small } }, handle = function(request)
    local r = exit:run { code = request.query.code }
    return gateway.text(r.ok and "ok" or r.why) end })
gateway.get("/wait", { authorize = id.anyone, handle = function()
    return gateway.text(wait:run({}).why) end })
gateway.get("/large", { authorize = id.anyone, handle = function()
    return gateway.text(exit:run({ code = 256 }).why) end })
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""
HEAD = """local gateway = require "gateway"
local id = require "gateway.identity"
"""


def gateway(keyed=True, **keys):
    path, sha = witness()
    key = write(os.path.join(tmpdir("key"), "audit.key"),
                os.urandom(32).hex() + "\n", 0o600)
    keys.setdefault("PROCESS", "")
    g = Gateway(HEAD + POLICY, head=False, PROGRAM=path, SHA=sha,
                AUDIT='audit_key = "%s"' % key if keyed
                else "", **keys)
    g.key = key
    return g


def verify(text, *argv):
    """(exit code, the summary) of what is said of these bytes."""
    path = write(os.path.join(tmpdir("log"), "log"), text)
    done = gateway_cli("log", "verify", "--json", path, *argv)
    equal(done.err, "", "stderr")
    found = json.loads(done.out)
    equal(found["whole"], done.returncode == 0, "exit code and whole")
    return done.returncode, found


def kinds(found):
    return sorted({f["kind"] for f in found["faults"]})


def is_record(line):
    return b'"event":"exec"' in line or b'"event":"audit"' in line


def a_log(keyed=True):
    """The log of a gateway that ran five programs, and has ended."""
    with gateway(keyed) as g:
        for code in (0, 1, 2, 3, 4):
            g.get("/exit?code=%d" % code)
        g.get("/ok")
        g.stop()
        return read(g.log_path), g.key


def test_a_stopped_one_is_whole():
    """An operator's stop does not look like a kill."""
    with gateway() as g, g.connect() as c:
        c.send(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: g.lines('"phase":"start"'), "the program runs")
        done = gateway_cli("stop", "--policy", g.policy)
        equal((done.returncode, done.out), (0, "the gateway has ended\n"))
        equal(g.process.wait(10 * SLOW), 0, "exit code")
        text = read(g.log_path)
        code, found = verify(text, "--key", g.key)
        equal((code, found["runs"], found["runs_without_end"]), (0, 1, 0),
              found)
        assert b'"phase":"end"' in text.splitlines()[-1], text[-900:]
        assert g.lines('"event":"stop"'), g.tail()
        equal(g.lines('"level":"error"'), [], "what it is told to is no error")


def test_it_is_whole():
    text, key = a_log()
    for argv in ((), ("--key", key)):
        code, found = verify(text, *argv)
        equal((code, found["chains"], found["runs"], found["records"],
               found["runs_without_end"]), (0, 1, 5, 12, 0))
    equal(verify(text)[1]["macs"], "unchecked")
    equal(verify(text, "--key", key)[1]["macs"], "checked")
    times = [json.loads(line)["ts"] for line in text.splitlines()
             if is_record(line)]
    equal((found["first"], found["last"]), (times[0], times[-1]))
    path = write(os.path.join(tmpdir("log"), "log"), text)
    done = gateway_cli("log", "verify", path)
    assert done.returncode == 0 and "whole" in done.out, done.out
    done = gateway_cli("log", "verify", "-", input=text)
    equal(done.returncode, 0, done.out)


def test_the_format_is_as_the_manual_says():
    """Hashes and MACs by another program than ours."""
    text, key = a_log()
    secret = hmac.new(read(key).strip(), b"gateway audit 1", "sha256").digest()
    previous, k = "0" * 64, None
    for n, line in enumerate(filter(is_record, text.splitlines())):
        r = json.loads(line)
        k = k or hmac.new(secret, b"chain" + bytes.fromhex(r["chain"]),
                          "sha256").digest()
        equal((r["seq"], r["prev"]), (n, previous))
        before = line[:line.rindex(b',"hash"')]
        equal(r["hash"], hashlib.sha256(before).hexdigest(), "hash")
        before = line[:line.rindex(b',"mac"')]
        equal(r["mac"], hmac.new(k, before, "sha256").hexdigest(), "MAC")
        previous, k = r["hash"], hmac.new(k, b"next", "sha256").digest()
    equal(n, 11)


def test_a_line_that_is_missing_moved_doubled_or_changed():
    text, key = a_log()
    lines = text.splitlines(True)
    ours = [i for i, line in enumerate(lines) if is_record(line)]
    for argv in ((), ("--key", key)):
        for n, i in enumerate(ours):
            without = lines[:i] + lines[i + 1:]
            code, found = verify(b"".join(without), *argv)
            equal((code, kinds(found)), (
                1, ["missing" if n < len(ours) - 1 else "unended"]), n)
            if n < len(ours) - 1:
                equal(found["faults"][0]["line"], ours[n + 1], "where")
                assert "record %d of" % n in found["faults"][0]["text"], found
            code, found = verify(b"".join(lines[:i + 1] + lines[i:]), *argv)
            equal((code, kinds(found)), (1, ["doubled"]))
            other = lines[i].replace(b"2", b"3") if b"2" in lines[i] else (
                lines[i].replace(b"1", b"4"))
            code, found = verify(b"".join(lines[:i] + [other] + lines[i + 1:]),
                                 *argv)
            equal(code, 1)
            assert "changed" in kinds(found), found
        for a, b in zip(ours, ours[1:]):
            swapped = list(lines)
            swapped[a], swapped[b] = lines[b], lines[a]
            code, found = verify(b"".join(swapped), *argv)
            equal((code, kinds(found)), (1, ["moved"]))
        code, found = verify(b"".join(lines[:ours[6]]), *argv)
        equal((code, kinds(found)), (1, ["unended"]), "cut at its end")
        code, found = verify(b"".join(lines[ours[6]:]), *argv)
        equal((code, kinds(found)), (1, ["missing"]), "cut at its start")


test_a_line_that_is_missing_moved_doubled_or_changed.timeout = 120


def forge(text):
    """A log with one run taken out, and hashes that fit: no key is needed."""
    out, last, n = [], "0" * 64, 0
    for line in filter(is_record, text.splitlines()):
        if b'.3"' in line:
            continue
        r = json.loads(line)
        line = line[:line.rindex(b',"hash"')]
        line = line.replace(b'"seq":%d' % r["seq"], b'"seq":%d' % n)
        line = line.replace(r["prev"].encode(), last.encode())
        last, n = hashlib.sha256(line).hexdigest(), n + 1
        out.append(line + b',"hash":"%s"' % last.encode()
                   + (b',"mac":"%s"' % r["mac"].encode() if "mac" in r else b"")
                   + b"}\n")
    return b"".join(out)


def test_what_a_forger_without_the_key_can_do():
    text, key = a_log(keyed=False)
    equal(verify(forge(text))[0], 0, "hashes alone can be made by anybody")
    equal(kinds(verify(text, "--key", key)[1]), ["changed"], "no MACs")
    text, key = a_log()
    equal(verify(forge(text))[0], 0)
    code, found = verify(forge(text), "--key", key)
    equal((code, kinds(found)), (1, ["changed"]))
    other = write(os.path.join(tmpdir("key"), "k"), "x" * 32, 0o600)
    equal(verify(text, "--key", other)[0], 1, "another key")


def test_lines_of_others_and_what_collectors_put_before():
    text, key = a_log()
    mixed = b"words\n{ no\n"
    for line in text.splitlines():
        mixed += b"Nov 26 09:12:01 box gateway[7]: " + line + b"\r\n"
        mixed += b'{"event":"access","target":"{\\"event\\":\\"exec\\"}"}\n'
    code, found = verify(mixed, "--key", key)
    equal((code, found["runs"]), (0, 5), repr(found))


def test_no_log_and_no_key():
    equal(verify(b"")[0], 1, "an empty log is not whole")
    equal(verify(b"words\n")[0], 1)
    for text in (b"", b"words\n"):
        done = gateway_cli("log", "verify", "-", input=text)
        equal(done.returncode, 1, "a log without records is no proof")
        last = done.out.splitlines()[-1]
        assert last.startswith("no audit record in it: no program ran, or"), last
        assert "(null)" not in done.out + done.err, done.out
    for argv in (("log",), ("log", "verify"), ("log", "frob", "x"),
                 ("log", "verify", "x", "--frob")):
        equal(gateway_cli(*argv).returncode, 2, repr(argv))
    done = gateway_cli("log", "verify", "/no/such/log")
    equal(done.returncode, 1)
    assert "/no/such/log" in done.err, done.err
    short = write(os.path.join(tmpdir("key"), "k"), "short\n", 0o600)
    done = gateway_cli("log", "verify", "/dev/null", "--key", short)
    equal(done.returncode, 1)
    assert "openssl rand" in done.err, done.err


def test_two_workers_and_a_load():
    with gateway() as g:
        load = Load(g, "/exit", clients=4)
        load.wait(40)
        equal(load.stop(), [])
        g.stop()
        code, found = verify(read(g.log_path), "--key", g.key)
        equal((code, found["chains"]), (0, 1), repr(found))
        assert found["runs"] >= 40, found


def test_reloads():
    """Each broker has a chain of its own; the next one knows how it ended."""
    with gateway() as g:
        load = Load(g, "/exit", clients=2)
        for _ in range(3):
            load.wait(5)
            g.reload()
        load.wait(5)
        equal(load.stop(), [])
        until(lambda: len(g.lines('"audit"', '"other"')) == 3,
              "three chains have ended")
        g.stop()
        text = read(g.log_path)
        code, found = verify(text, "--key", g.key)
        equal((code, found["chains"], found["runs_without_end"]), (0, 4, 0),
              repr(found))
        # a whole chain cannot go, nor its end
        lines = text.splitlines(True)
        first = json.loads(next(filter(is_record, lines)))["chain"].encode()
        mine = [i for i, line in enumerate(lines)
                if b'"chain":"' + first in line]
        code, found = verify(b"".join(
            line for i, line in enumerate(lines) if i not in mine))
        equal((code, kinds(found)), (1, ["missing"]))
        code, found = verify(b"".join(
            line for i, line in enumerate(lines) if i not in mine[-3:]))
        equal((code, kinds(found)), (1, ["missing"]))
        # two files are one log, in the order of their age
        half = len(lines) // 2
        old = write(os.path.join(tmpdir("log"), "old"), b"".join(lines[:half]))
        new = write(os.path.join(tmpdir("log"), "new"), b"".join(lines[half:]))
        equal(gateway_cli("log", "verify", "--key", g.key, old,
                          new).returncode, 0)
        equal(gateway_cli("log", "verify", "--key", g.key, new).returncode, 1)
        equal(gateway_cli("log", "verify", "--key", g.key, new,
                          old).returncode, 1)


test_reloads.timeout = 60


def test_a_broker_that_is_killed():
    with gateway() as g:
        g.get("/exit")
        with g.connect() as c:
            c.send(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
            g.wait_line('"exec"', '"start"', '"wait"')
            os.kill(g.broker(), signal.SIGKILL)
            until(lambda: g.lines('"audit"', '"other"', "signal 9"),
                  "the next broker says so", 15)
        g.stop()
        text = read(g.log_path)
        code, found = verify(text, "--key", g.key)
        equal((code, kinds(found), found["runs_without_end"]),
              (0, ["note"], 1), repr(found))
        assert "signal 9" in found["faults"][0]["text"], found
        lines = text.splitlines(True)
        cut = [line for line in lines if b'"wait"' not in line]
        code, found = verify(b"".join(cut))
        equal((code, kinds(found)), (1, ["missing"]), "its last record is gone")


test_a_broker_that_is_killed.timeout = 60


def test_what_the_worker_refuses_is_no_record():
    """A client may provoke it, and must not be able to break the chain."""
    with gateway() as g:
        g.get("/exit")
        assert g.get("/large").text.startswith("refused: slot code")
        g.wait_line('"exec_refused"', '"command":"exit"', "slot code")
        g.stop()
        code, found = verify(read(g.log_path), "--key", g.key)
    equal((code, found["runs"]), (0, 1), repr(found))


def test_a_drain_that_is_over():
    """Programs are asked to end, that is recorded, and so is the end."""
    with gateway(PROCESS="drain = 0.2,") as g:
        with g.connect() as c:
            c.send(build("GET", "/wait"))
            g.wait_line('"exec"', '"phase":"start"')
            g.expected = ["process.drain is over"]
            g.stop()
        text = read(g.log_path)
    code, found = verify(text, "--key", g.key)
    equal((code, found["runs"], found["runs_without_end"]), (0, 1, 0),
          repr(found))
    assert b'"result":"cancelled"' in text and b'"signal":15' in text, text


def test_a_reload_whose_drain_is_over():
    """The old broker's program gets its `kill_after`, too."""
    with gateway(PROCESS="drain = 0.2,") as g:
        with g.connect() as c:
            c.send(build("GET", "/wait"))
            g.wait_line('"exec"', '"phase":"start"')
            mark = g.mark()
            g.reload()
            g.wait_line('"exec"', '"phase":"end"', '"signal":15', since=mark)
            g.wait_line('"audit"', '"phase":"other"', "exit code 0",
                        since=mark)


def test_a_stop_while_the_next_broker_starts():
    """A broker that never served ends its chain all the same."""
    with gateway() as g:
        g.get("/exit")
        os.kill(g.broker(), signal.SIGKILL)
        until(lambda: len(g.lines('"audit"', '"begin"')) == 2, "the next")
        g.stop()  # perhaps before it serves
        text = read(g.log_path)
    code, found = verify(text, "--key", g.key)
    equal((code, kinds(found)), (0, ["note"]), repr(found))


def test_all_is_killed():
    with gateway() as g:
        g.get("/exit")
        os.kill(g.pid, signal.SIGSTOP)  # or a broker ends its chain in time
        pids = [g.broker()] + g.workers() + [g.pid]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not any(alive(p) for p in pids[:-1]), "all are gone")
        text = read(g.log_path)
    code, found = verify(text, "--key", g.key)
    equal((code, kinds(found)), (1, ["unended"]))
    equal(verify(text, "--running", "--key", g.key)[0], 0)


def test_a_key_that_others_may_read():
    g = gateway()
    g.stop()
    for mode, text in ((0o644, "x" * 32), (0o600, "short")):
        write(g.key, text, mode)
        done = gateway_cli("check", g.policy)
        equal(done.returncode, 1)
        assert g.key in done.err and "audit_key" in done.err, done.err
        assert re.search(r"policy\.lua:\d+", done.err), done.err


def memory_of(pid):
    """All that the process has in memory; nothing where we may not look."""
    out = []
    try:
        with open("/proc/%d/mem" % pid, "rb", 0) as memory:
            for line in read("/proc/%d/maps" % pid).decode().splitlines():
                a, b = (int(n, 16) for n in line.split()[0].split("-"))
                if b - a > 2 ** 28:
                    continue  # shadows of AddressSanitizer
                try:
                    memory.seek(a)
                    out.append(memory.read(b - a))
                except (OSError, OverflowError, ValueError):
                    pass  # [vvar], [vsyscall]
    except PermissionError:
        raise Skip("only root may look into processes")
    return b"".join(out)


def test_a_used_key_is_forgotten():
    """Whoever takes over a broker cannot forge what it has recorded."""
    with gateway() as g:
        g.get("/exit")
        begin = json.loads(g.lines('"audit"', '"begin"')[0])
        records = [k for k in g.lines('"chain":"%s"' % begin["chain"])]
        master = hmac.new(read(g.key).strip(), b"gateway audit 1",
                          "sha256").digest()
        keys = [hmac.new(master, b"chain" + bytes.fromhex(begin["chain"]),
                         "sha256").digest()]
        for _ in records:
            keys.append(hmac.new(keys[-1], b"next", "sha256").digest())
        broker = memory_of(g.broker())
        assert keys.pop() in broker, "the key of the next record is there"
        for pid in [g.broker()] + children(g.broker()):  # the keeper, too
            memory = memory_of(pid)
            for n, key in enumerate([master] + keys):
                assert key not in memory, (pid, n - 1)


def test_the_key_is_in_no_process_but_the_supervisor():
    """Nor is it in the descriptors of others, or in a broker's memory file."""
    with gateway() as g:
        g.get("/exit")
        slabs = [p for p in glob.glob("/proc/%d/fd/*" % g.pid)
                 if "gateway audit" in os.readlink(p)]
        equal(len(slabs), 1)
        slab = read(slabs[0])
        master = hmac.new(read(g.key).strip(), b"gateway audit 1",
                          "sha256").digest()
        first = hmac.new(master, b"chain" + slab[:16], "sha256").digest()
        assert master not in slab and first not in slab
        equal(slab[16:48], bytes(32), "K(0) is wiped")
        for pid in g.workers() + [g.broker()]:
            for fd in glob.glob("/proc/%d/fd/*" % pid):
                assert "gateway audit" not in os.readlink(fd), fd
