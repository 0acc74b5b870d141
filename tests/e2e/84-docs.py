"""gateway docs: nothing is left out, and each format is what it says."""

import os
import re
import shutil

import gw
from gw import Skip, equal, gateway_cli, sh, write

LIBRARY = os.path.join(gw.ROOT, "scripts", "gateway")
NOT_FOR_POLICIES = {"is_condition", "to_condition", "constructors", "run",
                    "main", "condition_of", "monotone", "fuzz"}

# Which parts of the manual speak of which options. An option of one must be in
# the other.
HEADINGS = {
    "gateway.process": ["Process and listeners"],
    "gateway.listen": ["Process and listeners", "Revocation",
                       "Certificates, server names, tickets"],
    "gateway.listen: certificates": ["Certificates, server names, tickets"],
    "gateway.listen: limits": ["Limits"],
    "gateway.listen: proxy_protocol": ["Tunnels"],
    "gateway.listen: sni": ["Certificates, server names, tickets"],
    "gateway.listen: tickets": ["Certificates, server names, tickets"],
    "gateway.tcp": ["Process and listeners"],
    "gateway.admin": ["Process and listeners"],
    "gateway.openapi": ["OpenAPI"],
    "gateway.fetch": ["Upstreams"],
    "route": ["What happens to a request", "Routes"],
    "route: validate": ["What: inputs", "What happens to a request"],
    "route: limits": ["Limits"],
    "gateway.group": ["Routes"],
    "gateway.upstream": ["Upstreams"],
    "app:to": ["Upstreams"],
    "gateway.slot": ["Commands"],
    "gateway.command": ["Commands"],
    "command:run": ["Commands"],
    "command:stream": ["Commands"],
    "command:job": ["Commands"],
    "gateway.jobs": ["Commands"],
    "gateway.response": ["In hooks"],
    "gateway.shadow": ["Process and listeners", "Before a change"],
    "test.identity": ["Policy tests"],
    "test.request": ["Policy tests"],
}
# Of the one that the reference gives a name of its own.
POSITIONAL = {("gateway.shadow", "policy")}


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
    return set(names) - {"--help"}


# ---- nothing is missing ----------------------------------------------------

def test_every_public_name():
    text = docs()
    for module, prefix, least in (("init", "gateway.", 50),
                                  ("identity", "id.", 17),
                                  ("test", "t.", 13)):
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
        for option in options_of(name):
            assert re.search(r"\n      (-\w, )?%s\b" % option, text), (
                name, option)


def test_certs():
    """Each option of each of its subcommands, with words of its own."""
    text = docs("gateway certs")
    assert "gateway certs client --help" in gateway_cli("certs", "--help").out
    for sub in ("init", "server", "client", "revoke", "doctor"):
        out = gateway_cli("certs", sub, "--help").out
        names = set(re.findall(r"^  --([\w-]+)", out, re.M)) - {"help"}
        assert len(names) >= 4, out
        for name in names:
            assert re.search(r"^      --%s\b.*\n          \w" % name, text,
                             re.M), (sub, name)


# ---- the manual and the reference say the same -----------------------------

def part(*headings):
    """What the manual has below these headings."""
    text = gw.manual()
    found = ""
    for heading in headings:
        at = re.search(r"^(#+) %s$" % re.escape(heading), text, re.M)
        assert at, "no heading " + heading
        end = re.search(r"^#{1,%d} " % len(at.group(1)), text[at.end():], re.M)
        found += text[at.end():at.end() + end.start() if end else len(text)]
    return found


def code(text):
    """What stands in it as code: spans, and blocks."""
    blocks = re.findall(r"^```lua\n(.*?)^```", text, re.M | re.S)
    text = re.sub(r"^```lua\n.*?^```", "", text, flags=re.M | re.S)
    return re.findall(r"`([^`]+)`", text) + blocks


def words(text):
    return set(re.findall(r"[A-Za-z_]\w*", " ".join(code(text))))


def heads():
    """The names of functions and values that the reference has."""
    found = set()
    for line in docs().split("\n"):
        first = re.match(r"(?:(?:gateway|id|t)\.\w+|(?:app|command|group):\w+)"
                         r"(?:, [a-z]+[.:]\w+)*", line)
        found |= set(first.group(0).split(", ")) if first else set()
    return found


def options_in(text):
    """spec -> its options, as the reference prints them."""
    return {spec: set(re.findall(r"^      (\w+)\n", rows, re.M))
            for spec, rows in re.findall(
                r"^    options of (.*)\n((?:      .*\n)+)", text, re.M)}


def fields_of(name):
    fields = re.search(r"^%s\n.*?^    fields\n(.*?)\n\n" % name,
                       docs("objects"), re.M | re.S)
    return set(re.findall(r"^      (\w+)\n", fields.group(1), re.M))


def row(start):
    """A row of a table of the manual that begins so, without its first cell."""
    line = re.search(r"^\| %s[^|]*\|(.*)\|$" % re.escape(start), gw.manual(),
                     re.M)
    assert line, start
    return line.group(1)


def test_every_name_of_the_manual():
    known = heads()
    assert len(known) > 100, known
    named = set()
    for span in code(gw.manual()):
        named |= set(re.findall(r"(?<![\w./-])(?:gateway|id|t)\.[a-z_]+"
                                r"(?![\w./])", span))
        named |= set(re.findall(r"(?<!\w)(?:app|command):[a-z]+(?=[ ({])",
                                span))
    named -= {"gateway.c", "gateway.identity", "gateway.test"}
    assert len(named) > 80, named
    equal(sorted(named - known), [], "not in the reference")


def test_every_name_of_the_reference():
    said = words(gw.manual())
    missing = [name for name in heads()
               if re.split("[.:]", name)[1] not in said]
    equal(sorted(missing), [], "not in the manual")


def test_every_option_of_the_manual():
    """Those that stand in a call, and in tables of options."""
    known = options_in(docs())
    count = 0
    for span in code(gw.manual()):
        call = re.match(r"((?:gateway|t)\.\w+|(?:app|command):\w+)[ (].*\{", span)
        for name in re.findall(r"(\w+)=[,} ]", span) if call else ():
            spec = re.sub(r"^t\.", "test.", call.group(1))
            spec = re.sub(r"^app:fetch", "gateway.fetch", spec)
            if spec == "gateway.file_below":
                assert name in docs("file_below") or name == "pattern"
                continue
            assert name in known[spec], "%s of %s" % (name, spec)
            count += 1
    assert count > 60, count
    for heading, spec in (("OpenAPI", "gateway.openapi"),
                          ("TLS to upstreams", "gateway.upstream"),
                          ("Jobs", "gateway.jobs"),
                          ("Before a change", "gateway.shadow")):
        table = re.search(r"^\| option .*?\n\n", part(heading), re.M | re.S)
        for cell in re.findall(r"^\| (`.*?) \|", table.group(0), re.M):
            for name in re.findall(r"`(\w+)`", cell):
                assert name in known[spec], "%s of %s" % (name, spec)
    starred = re.findall(r"^\| `(\w+)`( \*)?", part("Limits"), re.M)
    equal({n for n, star in starred if star} | {"upgrade_idle"},
          known["route: limits"])
    equal({n for n, _ in starred if n not in ("upgrade_idle", "shadow",
                                              "Connection")},
          known["gateway.listen: limits"])


def test_every_option_of_the_reference():
    known = options_in(docs())
    equal(sorted(known), sorted(HEADINGS), "which headings speak of each")
    for spec, names in known.items():
        said = words(part(*HEADINGS[spec]))
        missing = {n for n in names - said if (spec, n) not in POSITIONAL}
        equal(sorted(missing), [], spec + ": not in the manual")


def test_every_field_and_result():
    result = set(re.findall(r"`(\w+)`", row("`command:run("))) - {"nil"}
    equal(result, fields_of("result"), "of command:run")
    stub = re.search(r"`stub` says what a command \((.*?)\)", gw.manual(),
                     re.S).group(1)
    equal(set(re.findall(r"`(\w+)`", stub)) | {"usage"}, result, "of a stub")
    for name in result:  # and what really comes
        assert re.search(r'[" ]%s["]' % name, gw.read(os.path.join(
            gw.ROOT, "gateway.c")).decode()), name
    answer = re.search(r"`\{ ([\w, ]+) \}`", row("`gateway.fetch("))
    equal(set(answer.group(1).split(", ")), fields_of("answer"))
    decision = re.search(r"where the decision has (.*?)\.", gw.manual(), re.S)
    equal(set(re.findall(r"`(\w+)`", decision.group(1))),
          fields_of("decision"))
    equal(set(re.findall(r"`(\w+)`", row("`r` "))) | {"cut"}, fields_of("r"))
    said = words(part("What: inputs", "Who: conditions"))
    for name in ("request", "identity"):
        equal(sorted(fields_of(name) - said - {"identity", "dn"}), [], name)


# ---- topics ----------------------------------------------------------------

def test_topics():
    listen = docs("listen")
    assert listen == docs("gateway.listen") and "gateway.upstream" not in listen
    assert "a running gateway" in docs("reload")
    assert docs("to").count("\napp:to(") == 1
    for name in ("t.ran", "test.ran", "ran"):
        assert "\nt.ran(r, command" in docs(name), name
    assert "\nt.not_ran(r)" in docs("t")
    assert docs("conditions") == docs("authorize")
    assert docs("id.cn") == docs("gateway.identity.cn")
    assert "per_identity" in docs("limits") and "upgrade_idle" in docs("limits")
    for condition in public("identity"):
        assert "\n      id.%s" % condition in docs("authorize"), condition
    assert ":check(schema)" in docs("raw")
    for name in ("validate", "hooks"):
        assert docs(name).startswith("TOPICS\n\n%s\n" % name), name
    assert "\nhooks\n" in docs("respond") and "\nhooks\n" in docs("check")
    for line in re.findall(r"See also: (.*?)\.\n\n", docs(), re.S):
        for name in re.split(r",\s+", line):
            docs(name)  # each is a topic
    only = docs("keepalive_timeout")  # of an option, its row
    assert only.count("\n      keep") == 1 and "gateway.upstream" in only, only
    assert "integer" in docs("not_after")
    done = gateway_cli("docs", "lissten")
    equal(done.returncode, 2)
    assert "did you mean 'listen'?" in done.err, done.err
    done = gateway_cli("docs", "keepalve")
    equal((done.returncode, done.out), (2, ""))
    assert "did you mean 'keepalive'?" in done.err, done.err
    done = gateway_cli("docs", "xyzzyx")
    assert "`gateway docs` prints all" in done.err, done.err
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
    order = re.findall(r"^[A-Z][A-Z ]+$", plain, re.M)
    equal(order[:4], ["NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS"])
    equal(order[-4:], ["ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"])
    version = gateway_cli("version").out.split()[1]
    head = re.match(r'\.TH GATEWAY 1 "\d{4}-\d\d-\d\d" "gateway (\S+)"', page)
    assert head, page[:80]
    equal(head.group(1).replace("\\-", "-"), version)
    equal(page.count("\n.EX\n"), page.count("\n.EE\n"))
    assert page.count("\n.EX\n") > 20
    assert plain.count("Options of route:\n") == 1  # the others point to it


def test_markdown():
    page = docs("--format", "markdown")
    for line in page.split("\n"):
        if line.startswith("|"):
            cells = re.sub(r"\\\||`[^`]*`", "", line).count("|")
            equal(cells, 4, line)
    equal(len(re.findall(r"^## ", page, re.M)), 6)


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
