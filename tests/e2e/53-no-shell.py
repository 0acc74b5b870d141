"""strace sees every program that is started, from the first process on: the
gateway itself, what is declared, and no shell."""

import json
import os
import re
import shutil

import gw
from gw import Gateway, Skip, equal, gateway_cli, read, sh, until, write

# A run of each command that scripts/gateway.lua declares.
DEMO = {"tail": ["lines=2", "file=boiler.log"]}

POLICY = """
local echo = gateway.command { name = "echo", program = "/usr/bin/printf",
  args = { "%s", gateway.slot "v" },
  slots = { v = { type = "string", maxLength = 99,
    pattern = "^(?s:.*)$" } } }
gateway.post("/echo", { authorize = id.anyone,
  validate = { json = { type = "string" } },
  handle = function(request)
    local run = echo:run { v = request.json }
    return gateway.json { out = run.stdout, why = run.why } end })
"""

ATTACKS = ["; sh -c id", "$(sh)", "`sh`", "| sh", "&& sh", "sh\tsh", "${IFS}sh",
           "'; sh #", '"; sh #', "() { :;}; sh", "%s%n", "/bin/sh"]


def strace(log, *argv):
    if not shutil.which("strace"):
        raise Skip("strace is not installed")
    return ["strace", "-D", "-f", "-qq", "-y", "-s", "200", "-o", log, "-e",
            "trace=execve,execveat", *argv]


def started(log):
    """(program, call) of each start that the kernel let through."""
    out = []
    text = read(log).decode("utf-8", "replace")
    # a start ends in another line where something came in between
    for pid, call in re.findall(r"^(\d+) +(exec\w+\(.*)$", text, re.M):
        if call.endswith("<unfinished ...>"):
            rest = re.search(r"^%s +<\.\.\. exec\w+ resumed>(.*)$" % pid, text,
                             re.M)
            call += rest.group(1) if rest else " = ?"
        if not re.search(r"\) = 0$", call):
            continue
        m = re.match(r'execve\("([^"]*)"', call) or re.match(
            r'execveat\(\d+<([^>]*)>, "", .*AT_EMPTY_PATH', call)
        assert m, "neither by path nor by descriptor: " + call
        out.append((m.group(1), call))
    return out


def only(log, binary, program):
    """Checks the log of strace; the number of programs."""
    seen = started(log)
    ours = [c for p, c in seen if p in (binary, "/proc/self/exe")]
    programs = [(p, c) for p, c in seen
                if p not in (binary, "/proc/self/exe")]
    assert len(ours) >= 2, seen
    for call in ours[1:]:
        assert '"--role"' in call, call
    for path, call in programs:
        equal(os.path.realpath(path), os.path.realpath(program), call)
        assert call.startswith("execveat("), call
    return len(programs)


def test_the_control():
    """That strace would see one."""
    folder = gw.tmpdir("strace")
    log = os.path.join(folder, "trace")
    sh(*strace(log, "/bin/sh", "-c", "/bin/true; /bin/true"))
    until(lambda: len(started(log)) == 3, "what sh starts")


def test_the_commands_of_the_demo():
    folder = gw.tmpdir("demo")
    shutil.copytree(os.path.join(gw.ROOT, "scripts"),
                    os.path.join(folder, "scripts"))
    certs = os.path.join(folder, "certs")
    sh(gw.BIN, "certs", "init", certs)
    sh(gw.BIN, "certs", "server", certs, "server", "--dns", "localhost")
    plain = json.loads(gateway_cli("check", "--json", cwd=folder).out)
    names = re.findall(r'"program": *"([^"]*)"', json.dumps(plain))
    equal(len(names), len(DEMO), "commands of the demo, with a run in DEMO")
    for name, slots in DEMO.items():
        log = os.path.join(folder, name)
        done = sh(*strace(log, gw.BIN, "exec", name, *slots), cwd=folder)
        assert done.out.strip(), done.err
        program = [n for n in names if os.path.basename(n) == name][0]
        until(lambda: only(log, gw.BIN, program) == 1, "its one program")


def test_a_gateway_under_attack():
    folder = gw.tmpdir("strace")
    log = os.path.join(folder, "trace")
    wrapper = write(os.path.join(folder, "gateway"), "#!/bin/sh\nexec %s\n" % (
        " ".join(strace(log, gw.BIN, '"$@"'))), 0o755)
    with Gateway(POLICY, binary=wrapper) as g:
        for value in ATTACKS:
            r = g.post_json("/echo", value)
            if "\t" in value:
                assert r.status != 200 or r.json()["why"], r
                continue
            equal(r.json(), {"out": value, "why": ""})
        g.reload()
    until(lambda: only(log, gw.BIN, "/usr/bin/printf") == len(ATTACKS) - 1,
          "a program a request, and nothing else")


test_a_gateway_under_attack.timeout = 60
