"""`make run`: the shipped policy loads, and its own tests pass."""

import os
import shutil
import signal
import subprocess

from gw import (ASAN, BIN, ROOT, Skip, equal, free_port, gateway_cli, read, sh,
                spawn, tmpdir, until, write)


def policy():
    path = os.path.join(ROOT, "scripts", "gateway.lua")
    if not os.path.exists(path):
        raise Skip("no scripts/gateway.lua yet")
    return path


# Nothing but Lua: for ASan there is nothing in them.
ALL_LUA = ("luasource_test.lua", "oracle_test.lua", "pattern_test.lua")


def lua_tests(folder):
    return sorted(os.path.join(folder, f)
                  for f in os.listdir(os.path.join(ROOT, folder))
                  if f.endswith("_test.lua") and f not in ALL_LUA)


def test_the_shipped_policy_is_tested():
    """Under ASan, all that tests/all.sh also has `gateway test` run without."""
    policy()
    runs = [["scripts/tests/gateway_test.lua"]]
    if ASAN:
        runs = [lua_tests("scripts/tests"),
                ["--library", "--cpu", "60", *lua_tests("tests/lua")]]
    for tests in runs:
        done = gateway_cli("test", *tests, cwd=ROOT, timeout=80)
        equal(done.returncode, 0, done.out[-1500:] + done.err[-500:])
        last = done.out.strip().splitlines()[-1]
        assert last.endswith(" passed, 0 failed") and not last.startswith(
            "0 "), last


def test_no_test_at_all_is_a_failure():
    done = gateway_cli("test", "/no/such_test.lua", cwd=ROOT)
    equal(done.returncode, 1, done.out + done.err)


def test_the_demo_upstream_explains_itself():
    out = sh("python3", os.path.join(ROOT, "tests", "upstream.py"),
             "--help").out
    assert "slow/S" in out and "--port" in out, out


def demo():
    """tests/demo.sh in a copy of the tree, on ports of its own."""
    folder = tmpdir("demo")
    for name in ("scripts", "tests"):
        shutil.copytree(os.path.join(ROOT, name), os.path.join(folder, name),
                        ignore=shutil.ignore_patterns("e2e", "corpus"))
    os.mkdir(os.path.join(folder, "build"))
    shutil.copy(BIN, os.path.join(folder, "build", "gateway"))
    ports = {port: str(free_port()) for port in ("8443", "8080", "9443")}
    for name in ("scripts/gateway.lua", "tests/demo.sh"):
        path = os.path.join(folder, name)
        text = read(path).decode()
        for old, new in ports.items():
            text = text.replace(old, new)
        write(path, text, os.stat(path).st_mode & 0o777)
    return folder


def test_the_printed_lines_work():
    policy()
    folder = demo()
    log = os.path.join(folder, "log")
    with open(log, "wb") as out:
        process = spawn(["bash", "tests/demo.sh"], cwd=folder,
                        stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        def printed():
            """[label, curl line]: a label stands on a line above its lines."""
            label, lines = "", []
            text = read(log).decode()
            for line in map(str.strip, text.splitlines()):
                if line.startswith("curl "):
                    lines.append((label, line))
                elif line.endswith(":"):
                    label = line
            return lines if "Ctrl-C stops it" in text else None
        lines = until(printed, "the curl lines; it said " + log, 20)
        assert len(lines) >= 4, lines
        wrong = []
        for label, line in lines:
            done = sh("bash", "-c", "curl -s -w ' [%{http_code}]' " +
                      line.removeprefix("curl "), check=False, cwd=folder)
            code = done.out.rpartition("[")[2][:3]
            want = "200"
            if label.startswith("refused"):
                want = label.split(",")[1].strip()
            elif label.startswith("no certificate"):
                want = "000"
            if code != want:
                wrong.append("%s %s -> %s %s" % (label, line, done.out,
                                                 done.err))
        assert not wrong, "\n".join(wrong)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


test_the_printed_lines_work.timeout = 60
test_the_shipped_policy_is_tested.timeout = 90
