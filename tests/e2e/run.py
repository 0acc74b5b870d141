#!/usr/bin/env python3
"""Runs the end-to-end tests: every test_… of every NN-name.py beside it.

    tests/e2e/run.py [--bin build/gateway] [--only REGEX] [--jobs N]
                     [--list] [--keep]

Each file runs in a process of its own, at most two files a processor at a time
(tests wait more than they compute), long files first.  A file that says ALONE =
True has the machine to itself.  Each test has a time limit
(20 s, or its attribute `timeout`).  A failure is printed with the end of the
log of every gateway its file started.  Files end what they start, by pid.
The last line is `N passed, N failed`; exit 1 if anything failed or nothing ran.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
TEST_S = 20
sys.dont_write_bytecode = True  # outputs go to build/ and nowhere else


def files():
    return sorted(f for f in os.listdir(HERE)
                  if re.fullmatch(r"\d\d-[\w-]+\.py", f))


def source(name):
    with open(os.path.join(HERE, name)) as f:
        return f.read()


def tests_of(name):
    return re.findall(r"^def (test_\w+)", source(name), re.M)


def label(name, test):
    return name[:-3] + " " + test[5:].replace("_", " ")


# ---- one file, in its own process ------------------------------------------

class Child:
    """Runs the chosen tests of one file and reports each as a JSON line."""

    def __init__(self, name, chosen):
        sys.path.insert(0, HERE)
        self.gw = __import__("gw")
        spec = importlib.util.spec_from_file_location("e2e_file", os.path.join(
            HERE, name))
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.name, self.chosen, self.fixture = name, chosen, None
        signal.signal(signal.SIGALRM, self.on_alarm)

    @staticmethod
    def on_alarm(*_):
        raise TimeoutError("the test took too long")

    def run(self):
        for test in self.chosen:
            report = {"test": test}
            begin = time.monotonic()
            self.one(test, report)
            report["ms"] = int(1000 * (time.monotonic() - begin))
            print(json.dumps(report), flush=True)
        self.end()

    def one(self, test, report):
        function = getattr(self.module, test)
        limit = getattr(function, "timeout", TEST_S) * self.gw.SLOW
        mark = len(self.gw.started)
        signal.alarm(int(limit))
        try:
            self.call(function)
            self.check_alarms()
            report["ok"] = True
        except self.gw.Skip as why:
            report.update(ok=True, skip=str(why))
        except BaseException as problem:  # also the alarm, also a failed setup
            if isinstance(problem, KeyboardInterrupt):
                raise
            signal.alarm(0)
            report.update(ok=False, why=self.story(problem, mark))
            self.drop_fixture()
        finally:
            signal.alarm(0)

    def call(self, function):
        if function.__code__.co_argcount == 0:
            function()
            return
        if self.fixture is not None and not self.usable():
            self.drop_fixture()
        if self.fixture is None:
            self.fixture = self.module.setup()
        function(self.fixture)

    def usable(self):
        alive = getattr(self.fixture, "alive", None)
        return alive is None or alive()

    def drop_fixture(self):
        try:
            self.stop(self.fixture)
        except BaseException:
            pass
        self.fixture = None

    @staticmethod
    def stop(thing):
        if thing is not None and hasattr(thing, "stop"):
            thing.stop()

    def check_alarms(self):
        for g in self.gw.started:
            found = g.alarms()
            if found and not getattr(g, "told", False):
                g.told = True
                raise AssertionError("in the gateway's log: " + found[0][:500])

    def story(self, problem, mark):
        lines = traceback.format_exception(problem)
        text = "".join(lines[-6:])
        mine = self.gw.started[mark:]
        if self.fixture in self.gw.started and self.fixture not in mine:
            mine = [self.fixture] + mine
        for g in mine[-3:]:
            text += "--- log of the gateway on port %d ---\n%s\n" % (
                g.port, g.tail())
        return text

    def end(self):
        signal.alarm(int(30 * self.gw.SLOW))
        self.drop_fixture()
        for g in self.gw.started:
            g.stop()
        signal.alarm(0)
        report = {"test": "end", "ok": True, "ms": 0}
        try:
            self.check_alarms()
        except AssertionError as problem:
            report.update(ok=False, why=str(problem))
            print(json.dumps(report), flush=True)
        os._exit(0)  # threads of upstreams may still be about


# ---- all files -------------------------------------------------------------

class Runner:
    def __init__(self, options, env):
        self.options, self.env = options, env
        self.passed = self.failed = self.skipped = 0
        self.lock = threading.Lock()

    def run(self, plan):
        alone = [p for p in plan if "\nALONE = True" in source(p[0])]
        queue = sorted((p for p in plan if p not in alone),
                       key=lambda p: -len(source(p[0])))
        threads = [threading.Thread(target=self.work, args=(queue,))
                   for _ in range(self.options.jobs)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.work(alone)

    def work(self, queue):
        while True:
            with self.lock:
                if not queue:
                    return
                name, chosen = queue.pop(0)
            self.file(name, chosen)

    def file(self, name, chosen):
        errors = tempfile.TemporaryFile()
        child = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "run.py"), "--child", name,
             ",".join(chosen)], env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=errors)
        slow = 4 if self.env.get("E2E_ASAN") == "1" else 1
        watch = threading.Timer((60 + 60 * len(chosen)) * slow, child.kill)
        watch.start()
        left = list(chosen)
        for line in child.stdout:
            report = json.loads(line)
            if report["test"] in left:
                left.remove(report["test"])
            self.told(name, report)
        child.wait()
        watch.cancel()
        errors.seek(0)
        noise = errors.read().decode("utf-8", "replace")[-3000:]
        for test in left:
            self.told(name, {"test": test, "ok": False, "ms": 0, "why":
                             "the test process ended early (%d)\n%s" % (
                                 child.returncode, noise)})

    def told(self, name, report):
        with self.lock:
            if not report["ok"]:
                self.failed += 1
                word = "FAIL"
            elif "skip" in report:
                self.skipped += 1
                word = "skip"
            else:
                self.passed += 1
                word = "ok  "
            print("%s %s (%d ms)%s" % (
                word, label(name, report["test"]), report["ms"],
                " " + report["skip"] if "skip" in report else ""), flush=True)
            if not report["ok"]:
                print("     " + report["why"].rstrip().replace(
                    "\n", "\n     "), flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bin", default="build/gateway")
    parser.add_argument("--only", metavar="REGEX", default="")
    parser.add_argument("--jobs", type=int, default=2 * os.cpu_count())
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--keep", action="store_true",
                        help="leave the temporary folder behind")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        Child(options.child[0], options.child[1].split(",")).run()
        return
    plan = [(f, [t for t in tests_of(f)
                 if re.search(options.only, label(f, t))]) for f in files()]
    plan = [p for p in plan if p[1]]
    if options.list:
        for name, chosen in plan:
            print("\n".join(label(name, t) for t in chosen))
        return
    sys.exit(run_all(options, plan))


def run_all(options, plan):
    if not os.access(options.bin, os.X_OK):
        print("run.py: %s is not a program; build it or say --bin PATH"
              % options.bin)
        print("0 passed, 1 failed")
        return 1
    folder = tempfile.mkdtemp(prefix="gateway-e2e-")
    os.chmod(folder, 0o755)
    binary = shutil.copy(options.bin, os.path.join(folder, "gateway"))
    os.environ.update(E2E_BIN=binary, E2E_TMP=folder)  # a rebuild is no matter
    sys.path.insert(0, HERE)
    import gw
    if gw.is_asan(options.bin):
        os.environ["E2E_ASAN"] = "1"
        os.environ.setdefault("ASAN_OPTIONS", "detect_leaks=0")
    begin = time.monotonic()
    try:
        note = gw.make_pki()
        if note:
            print("note: certificates by openssl, since `gateway certs` did "
                  "not work:\n     " + note.strip())
        runner = Runner(options, dict(os.environ))
        runner.run(plan)
    finally:
        if options.keep:
            print("kept " + folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print("%d skipped, %.0f s" % (runner.skipped, time.monotonic() - begin))
    print("%d passed, %d failed" % (runner.passed, runner.failed))
    return 0 if runner.failed == 0 and runner.passed else 1


if __name__ == "__main__":
    main()
