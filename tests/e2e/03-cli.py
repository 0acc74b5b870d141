"""The command line: help, versions, exit codes."""

import json

from gw import equal, gateway_cli, sh, BIN

COMMANDS = ("run", "check", "audit", "test", "certs", "exec", "log", "schema",
            "version")


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
