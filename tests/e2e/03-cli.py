"""The command line: help, versions, exit codes."""

import json
import os
import re

from gw import BIN, ROOT, equal, gateway_cli, manual, read, sh

COMMANDS = ("run", "check", "audit", "test", "certs", "exec", "log", "schema",
            "version")


def test_help_fits_a_terminal():
    """In 80 columns; and a slip is told from a command."""
    out = gateway_cli("help").out
    assert len(re.findall(r"^  \w+ +\S", out, re.M)) >= 18, out
    for command in ((), ("schema",), ("log",), ("exec",), ("run",)):
        out = gateway_cli(*command, "--help").out
        prose = out.split("\nexamples\n")[0]
        equal([x for x in prose.split("\n") if len(x) > 80], [])
    done = gateway_cli("rnu")
    equal((done.returncode, done.out), (2, ""))
    assert 'there is no command "rnu": did you mean "run"?' in done.err, done.err


def test_help_of_each_command_has_an_example():
    top = gateway_cli("--help")
    equal(top.returncode, 0, "exit of --help")
    for name in COMMANDS:
        assert name in top.out, "%s is not in --help" % name
        done = gateway_cli(name, "--help")
        equal(done.returncode, 0, "exit of %s --help" % name)
        assert "gateway " + name in done.out, done.out
        assert "xample" in done.out, "no example in: " + done.out


def test_help_goes_to_stdout_and_errors_to_stderr():
    equal(gateway_cli("--help").err, "", "stderr of --help")
    done = gateway_cli("frobnicate")
    equal(done.out, "", "stdout of a mistake")
    assert done.err, "nothing on stderr"


def test_usage_mistakes_exit_2():
    for argv in ((), ("frobnicate",), ("--frobnicate",), ("run", "--colour"),
                 ("check", "a", "b"), ("check", "--policy"), ("exec",),
                 ("version", "x"), ("schema", "x"), ("schema", "--json")):
        done = gateway_cli(*argv)
        equal(done.returncode, 2, "exit of %r (%s)" % (argv, done.err[:200]))
        assert len(done.err) < 3000, "a wall of text: " + done.err


def test_an_unknown_command_lists_the_known():
    done = gateway_cli("frobnicate")
    for name in COMMANDS:
        assert name in done.err, "%s is not in: %s" % (name, done.err)


def test_version_names_what_is_linked_in():
    done = gateway_cli("version")
    equal(done.returncode, 0, "exit")
    for name in ("gateway", "wolfSSL", "libuv", "Lua", "llhttp", "yyjson",
                 "PCRE2", "c-ares", "libseccomp"):
        assert name.lower() in done.out.lower(), "no %s in: %s" % (name,
                                                                   done.out)
    plain = json.loads(gateway_cli("version", "--json").out)
    assert isinstance(plain, dict) and plain, plain


def test_a_missing_policy_is_named():
    for name in ("run", "check"):
        done = gateway_cli(name, "/no/such/policy.lua")
        equal(done.returncode, 1, "exit of " + name)
        assert "/no/such/policy.lua" in done.err + done.out, done.err


def test_the_default_policy_is_named_when_missing():
    done = gateway_cli("check", cwd="/")
    equal(done.returncode, 1, "exit")
    assert "scripts/gateway.lua" in done.err + done.out, done.err


def test_stdout_that_is_closed_does_no_harm():
    sh("python3", "-c", "import subprocess, sys\n"
       "p = subprocess.Popen([sys.argv[1], '--help'], stdout=subprocess.PIPE)\n"
       "p.stdout.close()\np.wait(10)", BIN)


def test_schema_answers_line_by_line():
    closed = {"properties": {"a": {"type": "string"}}}
    rows = (({"type": "integer"}, 1, "valid"),
            ({"type": "integer"}, "1", "invalid: must be integer (type)"),
            (closed, {"a": 1}, "invalid: /a: must be string (type)"),
            (closed, {"a": "x", "b": 1}, "invalid: "),
            ({"typ": "integer"}, 1, "error: schema at #/typ"))
    lines = [json.dumps({"schema": s, "instance": i}) for s, i, _ in rows]
    lines += ["", "[1]", '{"schema": true}', '{"schema": true,']
    for options, b in (((), "invalid: "), (("--open",), "valid")):
        done = gateway_cli("schema", *options,
                           input=("\n".join(lines) + "\n").encode())
        got = done.out.splitlines()
        equal(len(got), len(lines), "answers")
        for (_, _, want), line in zip(rows, got):
            assert line.startswith(b if want == "invalid: " else want), line
        assert all(line.startswith("error: ") for line in got[len(rows):]), got
        equal(done.returncode, 1, "exit")
    done = gateway_cli("schema", input=b'{"schema": {}, "instance": 1}')
    equal((done.out, done.returncode), ("valid\n", 0))


# ---- the manual says what there is -----------------------------------------

SUBCOMMANDS = {"certs": ("init", "server", "client", "revoke", "doctor")}
NO_OPTIONS = {"--help"}  # each has it


def source(name="gateway.c"):
    return read(os.path.join(ROOT, name)).decode()


def section(title):
    """From a heading to the next one of its level."""
    text = manual()
    level, _ = title.split(" ", 1)
    return re.search(r"^%s$(.*?)(^%s |\Z)" % (re.escape(title), level), text,
                     re.M | re.S).group(1)


def commands():
    found = re.findall(r"^  (\w+) ", gateway_cli("--help").out, re.M)
    assert len(found) > 15, found
    return found


def options_of(name):
    """What --help lists, for the command and what is below it."""
    found = set()
    for sub in ((),) + tuple((s,) for s in SUBCOMMANDS.get(name, ())):
        out = gateway_cli(name, *sub, "--help").out
        found |= set(re.findall(r"^ +(?:-\w, )?(--[a-z][\w-]*)", out, re.M))
        found |= set(re.findall(r"(--[a-z][\w-]*)", out.split("\n\n")[0]))
    return found - NO_OPTIONS


def mentions(text, word):
    return re.search(r"(?<![\w-])%s(?![\w-])" % re.escape(word), text)


def test_the_manual_has_every_command_and_option():
    text, lines = manual(), section("### Command line")
    missing = []
    for name in commands():
        if not re.search(r"\bgateway %s\b|\| %s\b" % (name, name), lines):
            missing.append("gateway " + name)
        missing += ["gateway %s %s" % (name, option)
                    for option in sorted(options_of(name))
                    if not mentions(text, option)]
    equal(missing, [])


def test_the_manual_has_no_other_options():
    """What stands after `gateway COMMAND` in a code span or line."""
    wrong, seen = [], 0
    known = {name: options_of(name) for name in commands()}
    for line in manual().splitlines():
        code = [line] if line.startswith("    ") else re.findall(
            r"`([^`]+)`", line)
        for part in code:
            for name, rest in re.findall(r"\bgateway (\w+)\b((?:(?!gateway "
                                         r"\w|[|#]).)*)", part):
                for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", rest):
                    seen += 1
                    if name in known and option not in known[name] \
                            | NO_OPTIONS:
                        wrong.append("gateway %s %s" % (name, option))
    assert seen > 30, "only %d options were looked at" % seen
    equal(wrong, [])


def test_the_manual_has_every_metric_and_no_other():
    there = set(re.findall(r'"((?:gateway|http_server)_\w+)"', source()))
    there |= set(re.findall(r"# HELP (http_server_\w+|gateway_\w+) ",
                            source()))
    assert len(there) > 25, there
    told = set(re.findall(r"`((?:gateway|http_server)_\w+?)`", manual()))
    equal((sorted(there - told), sorted(told - there)), ([], []))


def test_the_manual_has_every_label_of_a_metric():
    text, missing, seen = section("## Metrics and health"), [], 0
    for name, value in re.findall(r'"(gateway_\w+)", "\{\w+=\\"(\w+)\\"\}"',
                                  source()):
        seen += 1
        row = re.search(r"^\|.*`%s`.*$" % name, text, re.M).group(0)
        if not mentions(row, value):
            missing.append("%s: %s" % (name, value))
    assert seen > 60, seen
    equal(missing, [])


def test_the_manual_has_every_event():
    code = source()
    events = set(re.findall(r'(?<!\w)log_begin\(&?\w+,[^";]*?"(\w+)"', code))
    assert {"ready", "posture", "access"} < events, events
    text = section("## Logs")
    equal(sorted(e for e in events if "`%s`" % e not in text), [])


def test_the_manual_has_every_limit_and_no_other():
    spec = re.search(r'options\.spec\("gateway\.listen: limits", \{\n(.*?)^\}',
                     source("scripts/gateway/init.lua"), re.M | re.S).group(1)
    there = set(re.findall(r"^  (\w+) = ", spec, re.M))
    assert len(there) > 15, there
    table = section("## Limits").split("| elsewhere |")[0]
    told = {name for name, more in re.findall(r"^\| `(\w+)`(.*?) \|", table,
                                              re.M)
            if "routes alone" not in more}
    equal((sorted(there - told), sorted(told - there)), ([], []))
