"""gateway docs: nothing is left out, and each format is what it says."""

import os
import re
import shutil

import gw
from gw import Skip, equal, gateway_cli, sh, write

LIBRARY = os.path.join(gw.ROOT, "scripts", "gateway")
NOT_FOR_POLICIES = {"is_condition", "to_condition", "constructors", "run",
                    "main", "condition_of", "monotone", "fuzz"}


def docs(*argv):
    done = gateway_cli("docs", *argv)
    equal((done.returncode, done.err), (0, ""), "gateway docs")
    return done.out


def source(name):
    return gw.read(os.path.join(LIBRARY, name + ".lua")).decode()


def public(name):
    """The names that a module gives, as its source reads."""
    text = source(name)
    names = set(re.findall(r"^function M\.(\w+)|^M\.(\w+) =", text, re.M))
    names = {a or b for a, b in names}
    for block in re.findall(r"^for _, name in ipairs \{(.*?)\} do\n  M\[name\]",
                            text, re.M | re.S):
        names |= set(re.findall(r'"(\w+)"', block))
    return names - NOT_FOR_POLICIES


def specs():
    """Every option of every spec: (spec, option)."""
    found = []
    for name in sorted(os.listdir(LIBRARY)):
        text = source(name[:-4])
        for spec, body in re.findall(
                r'options\.spec\("([^"]+)", \{\n(.*?)^\}\)', text,
                re.M | re.S):
            for option, first in re.findall(r"^  (\w+) = (\{ later)?", body,
                                            re.M):
                if not first:
                    found.append((spec, option))
    return found


def commands():
    text = gateway_cli("--help").out
    return re.findall(r"^  (\w+) ", text, re.M)


def options_of(command):
    """What --help lists."""
    out = gateway_cli(command, "--help").out
    names = re.findall(r"^  (?:-\w, )?(--[\w-]+)", out, re.M)
    for sub in ("init", "client", "revoke") if command == "certs" else ():
        out = gateway_cli(command, sub, "--help").out
        names += re.findall(r"^  (--[\w-]+)", out, re.M)
    return set(names) - {"--help"}


# ---- nothing is missing ----------------------------------------------------

def test_every_public_name():
    text = docs()
    for module, prefix, least in (("init", "gateway.", 50),
                                  ("identity", "id.", 17),
                                  ("test", "test.", 13)):
        names = public(module)
        assert len(names) >= least, "only %d names in %s" % (len(names), module)
        for name in sorted(names):
            full = prefix + name
            assert re.search(r"^(\S.*, )?%s(\b|$)" % re.escape(full), text,
                             re.M), "%s is not in it" % full


def test_every_option():
    all_of_them = specs()
    assert len(all_of_them) > 120, len(all_of_them)
    text = docs()
    for spec, option in all_of_them:
        group = re.search(r"^    options of %s\n(.*?)\n\n" % re.escape(spec),
                          text, re.M | re.S)
        assert group, "the options of %s are not in it" % spec
        row = re.search(r"^      %s\n          (\S.*)" % option, group.group(1),
                        re.M)
        assert row, "%s of %s is not in it" % (option, spec)
        assert not row.group(1).startswith("("), "%s: %s has no help" % (
            spec, option)


def test_no_options_without_a_name():
    """A spec that `gateway docs` does not know would be left out of it."""
    for name in sorted(os.listdir(LIBRARY)):
        for line in source(name[:-4]).split("\n"):
            if re.match(r"(local \w*SPEC <const>|M\.\w*SPEC) = \{", line):
                raise AssertionError("%s: %s: write options.spec(…)" % (
                    name, line))


def test_types_and_defaults_are_those_of_the_readers():
    text = docs("listen")
    for want in ("one of deny, allow; default", "default 16K", "default 75 s",
                 "default 0.1 s", "a whole number from 1 to 9; default"):
        assert re.search(want.replace(" ", r"\s+"), text), want
    assert re.search(r"address\n\s+.*required", docs("admin"), re.S)


def test_every_field():
    text = docs("objects")
    binding = gw.read(os.path.join(gw.ROOT, "gateway.c")).decode()
    names = re.findall(r'^    X\((?:ID|RQ)_\w+,\s+"(\w+)"', binding, re.M)
    names += re.findall(r'^    X\((?:ID|RQ)_\w+,\s*\\\n\s*"(\w+)"', binding,
                        re.M)
    assert len(names) >= 30, names
    for name in names:
        assert "\n      %s\n" % name in text, name


def test_every_command_and_option():
    names = commands()
    assert {"run", "check", "status", "docs", "completion"} <= set(names)
    for name in names:
        text = docs("gateway " + name)
        assert text.split("\n")[2].startswith("gateway " + name), text
        for option in options_of(name) if name != "certs" else ():
            assert re.search(r"\n      (-\w, )?%s\b" % option, text), (
                name, option)


def test_topics():
    listen = docs("listen")
    assert listen == docs("gateway.listen") and "gateway.upstream" not in listen
    assert "a running gateway" in docs("reload")
    assert docs("to").count("\napp:to(") == 1
    done = gateway_cli("docs", "lissten")
    equal(done.returncode, 2)
    assert "did you mean 'listen'?" in done.err, done.err
    done = gateway_cli("docs", "--format", "pdf")
    equal(done.returncode, 2)


# ---- every format is what it says ------------------------------------------

def test_man():
    if not shutil.which("groff"):
        raise Skip("groff is not installed")
    page = docs("--format", "man")
    done = sh("groff", "-man", "-Tutf8", "-Kutf8", "-z", "-ww", "-rLL=78n",
              input=page.encode())
    equal((done.out, done.err), ("", ""), "groff's warnings")
    done = sh("groff", "-man", "-Tutf8", "-Kutf8", "-rLL=78n",
              input=page.encode())
    plain = re.sub(r"\x1b\[[\d;]*m|.\x08", "", done.out)
    for word in ("gateway.listen {", "accept_missing", "EXIT STATUS", "id.spiffe",
                 "--certificates", '"X-Team-*"', "gateway check --json my.lua >"):
        assert word in plain, word


def test_markdown():
    page = docs("--format", "markdown")
    for line in page.split("\n"):
        if line.startswith("|"):
            cells = re.sub(r"\\\||`[^`]*`", "", line).count("|")
            equal(cells, 4, line)
    equal(len(re.findall(r"^## ", page, re.M)), 5)


def test_luals():
    folder = gw.tmpdir("luals")
    everything = ""
    for name in ("gateway", "id", "test"):
        page = docs("--format", "luals", name)
        everything += page
        assert page.startswith("---@meta gateway"), page[:80]
        done = gateway_cli("test", write(folder + "/m.lua", page))
        assert "no case in this file" in done.out, done.out  # it is Lua
        for block in re.findall(r"((?:^---.*\n)+)function \S+\((.*)\) end$",
                                page, re.M):
            named = re.findall(r"^---@param (\S+?)\?? ", block[0], re.M)
            equal(named, block[1].split(", ") if block[1] else [], block[0])
    classes = set(re.findall(r"^---@class (\S+)", everything, re.M))
    for line in re.findall(r"^---@(?:field|param|return|type) .*", everything,
                           re.M):
        words = line.split(" ")
        for used in re.findall(r"gateway\.[\w.]+", " ".join(words[1:3])):
            assert used in classes, "%s is no class: %s" % (used, line)
    for name in public("init"):
        assert re.search(r"^(function )?gateway\.%s\b" % name, everything,
                         re.M), name
