#!/usr/bin/env python3
"""Keeps the preface of gateway.c true. Run by `make rooms`.

One check a line, `ok` or `FAIL` with where and what; `N passed, N failed` last.
It reads the file as clang-format leaves it: a definition begins in column 0,
and a function's name stands at the beginning of a line of its own.
"""

import glob
import os
import re
import sys

FILE = sys.argv[1] if len(sys.argv) > 1 else "gateway.c"
COLUMNS = 80
FUNCTION_LINES = 70

# Names of a room begin with its name, or with one of these.
PREFIXES = {
    "mem": ["obj"],  # magic-checked objects
    "cli": ["main"],
}

# Functions above FUNCTION_LINES, and why each may be.
LONG = {
}

# Rooms that any may use without saying so.
GROUND = ("mem", "str", "log", "err", "met")

# Names that C, a library or all rooms give.
EVERYWHERE = {
    "X": "a row of a table",
    "GATEWAY_VERSION": "comes from the Makefile",
    "S": "makes a str of a literal",
    "STR_FMT": "prints a str",
    "BIND": "declares a function that scripts see",
    "must": "our own bugs end here",
}


class Room:
    def __init__(self, number, name, line):
        self.number, self.name, self.line = number, name, line


class Source:
    """The file, and what is defined where."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as f:
            self.text = f.read()
        self.lines = self.text.split("\n")
        self.rooms = []
        self.functions = {}   # name -> (first line, last line)
        self.prototypes = []  # (line, name)
        self.names = []       # (line, kind, name)
        self.read_rooms()
        self.read_definitions()
        self.preface = self.lines[:self.text[:self.text.index("*/")]
                                  .count("\n") + 1]

    def read_rooms(self):
        for n, line in enumerate(self.lines, 1):
            m = re.match(r"/\* ==== (\S+) (\w+):", line)
            if m:
                self.rooms.append(Room(m[1], m[2], n))

    def room_of(self, line):
        found = None
        for room in self.rooms:
            if room.line <= line:
                found = room
        return found

    def read_definitions(self):
        for n, line in enumerate(self.lines, 1):
            self.read_line(n, line)

    def read_line(self, n, line):
        m = re.match(r"(struct|enum|union) (\w+)$|"
                     r"(struct|enum|union) (\w+) \{", line)
        if m:
            self.names.append((n, m[1] or m[3], m[2] or m[4]))
            return
        m = re.match(r"typedef .*?(\w+)\(.*\);|typedef .*?(\w+);", line)
        if m:
            self.names.append((n, "typedef", m[1] or m[2]))
            return
        m = re.match(r"BIND\((\w+)", line)
        if m:
            self.function(n, m[1])
            return
        m = re.match(r"(\w+)\(", line)
        if m and re.match(r"[A-Za-z_].*[\w*)]$", self.lines[n - 2]):
            self.function(n, m[1])
            return
        m = re.match(r"static [^=;]*?(\w+)\(", line)
        if m and "=" not in line:
            self.static_call(n, m[1])
            return
        m = re.match(r"static (?:const )?struct (\w+) \{$", line)
        if m:
            self.names.append((n, "struct", m[1]))
            return
        m = re.match(r"\} (\w+)(?:\[.*\])*(?: =.*|;)$", line)
        if m:  # what a `static const struct {` is called
            self.names.append((n, "static", m[1]))
            return
        m = re.match(r"static .*?(\w+)(\[.*?\])* (= |=$)|"
                     r"static .*?(\w+)(\[.*?\])*;", line)
        if m:
            self.names.append((n, "static", m[1] or m[4]))

    def static_call(self, n, name):
        """`static int x(...` on one line: a prototype, or a short function."""
        for end in range(n, min(n + 12, len(self.lines))):
            if self.lines[end - 1].endswith(";"):
                self.prototypes.append((n, name))
                return
            if self.lines[end - 1].endswith("{") or self.lines[end] == "{":
                self.function(n, name)
                return

    def function(self, n, name):
        for end in range(n, len(self.lines)):
            line = self.lines[end - 1]
            if line.endswith(");") and end - n < 12 and "{" not in "".join(
                    self.lines[n - 1:end]):
                self.prototypes.append((n, name))
                return
            if line == "}":
                self.functions[name] = (n, end)
                self.names.append((n, "function", name))
                return


def banners(s):
    for want, room in enumerate(s.rooms, 1):
        if room.number != str(want):
            yield room.line, "room %s is number %s, not %d" % (
                room.name, room.number, want)
    for n, line in enumerate(s.lines, 1):
        if line.startswith("/* ====") and not re.match(
                r"/\* ==== \d+ \w+: .* =+$", line):
            yield n, "not a banner: /* ==== N name: text ===="
    if not s.rooms:
        yield 1, "no room at all"


def contents(s):
    listed = []
    for n, line in enumerate(s.preface, 1):
        m = re.match(r" \* +(\d+)  (\w+) +\S", line)
        if m:
            listed.append((n, m[1], m[2]))
    there = [(r.number, r.name) for r in s.rooms]
    for at, (n, number, name) in enumerate(listed):
        if at >= len(there) or (number, name) != there[at]:
            yield n, "the contents say '%s %s', the file %s" % (
                number, name,
                "'%s %s'" % there[at] if at < len(there) else "ends before")
            return
    if len(listed) != len(there):
        yield 1, "the contents list %d rooms, the file has %d" % (
            len(listed), len(there))


def prefixes(s):
    for n, kind, name in s.names:
        room = s.room_of(n)
        if room is None or name in EVERYWHERE:
            continue
        allowed = [room.name] + PREFIXES.get(room.name, [])
        if not any(name == p or name.startswith(p + "_") for p in allowed):
            yield n, "%s %s in room %s" % (kind, name, room.name)


def constants(s):
    """Enumerators and macros, in capitals, as names are; a macro that stands
    for a function may be named like one."""
    inside = False
    for n, line in enumerate(s.lines, 1):
        room = s.room_of(n)
        m = re.match(r"#define (\w+)(\(?)", line)
        if m and room and not (m[2] and m[1].startswith(room.name + "_")):
            yield from constant(s, room, n, m[1])
        m = re.match(r"enum(?: \w+)? \{(.*)", line)
        if m or inside:
            body = re.sub(r"/\*.*?\*/|//.*|\(.*?\)", "",
                          m[1] if m else line)
            for part in body.split("}")[0].split(","):
                m = re.match(r" *([A-Z]\w*)(?: *=|$| *$)", part)
                if m and room:
                    yield from constant(s, room, n, m[1])
            inside = "}" not in body


def constant(s, room, n, name):
    allowed = [room.name.upper()] + [
        p.upper() for p in PREFIXES.get(room.name, [])]
    if name in EVERYWHERE or re.search(r"^#undef %s$" % name, s.text, re.M):
        return
    if not any(
            name == p or name.startswith(p + "_") for p in allowed):
        yield n, "%s in room %s" % (name, room.name)


def preface_names(s):
    """Every name() of the preface is a function or macro of the file."""
    for n, line in enumerate(s.preface, 1):
        for name in re.findall(r"\b(\w+)\(\)", line):
            if name not in s.functions and not re.search(
                    r"^#define %s\(" % name, s.text, re.M):
                yield n, "the preface names %s(), which is not there" % name


def stairs(s):
    """`req_ops  h1 -> serve, admin`: the type and the rooms are there."""
    rooms = {r.name for r in s.rooms}
    types = {name for _, kind, name in s.names
             if kind in ("struct", "typedef")}
    for n, line in enumerate(s.preface, 1):
        for name, tail in re.findall(
                r"(\w+) +(\w+ -> \w+(?:, \w+)*)", line):
            if name not in types:
                yield n, "the preface names %s, which is no type" % name
            for room in re.findall(r"\w+", tail):
                if room not in rooms:
                    yield n, "the preface names a room %s" % room


def entries(s):
    """`Entry   a_b  a_c` in a banner: the names are in the file."""
    for room in s.rooms:
        n, on = room.line, False
        while not s.lines[n - 1].endswith("*/"):
            line = s.lines[n - 1]
            m = re.match(r" \* Entry +(.*)| \* {9,}(\S.*)", line)
            on = bool(m and (m[1] or on))
            for name in re.findall(r"\b[a-z]\w*_\w+\b(?![*])", (m[1] or m[2]) if on
                                   else ""):
                if not re.search(r"^(?:static .*|struct |enum |#define |"
                                 r"BIND\()?\b%s\b" % name, s.text, re.M):
                    yield n, "room %s has no %s" % (room.name, name)
            n += 1


def bare(text):
    """C without comments and strings, line for line."""
    return re.sub(
        r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'',
        lambda m: "\n" * m[0].count("\n"), text, flags=re.S)


def uses(s):
    """{ room: { another room that it uses: { names } } }."""
    lines, home, types = bare(s.text).split("\n"), {}, {}
    inside = False
    for n, line in enumerate(lines, 1):
        room = s.room_of(n)
        m = re.match(r"#define (\w+)", line)
        if m and room:
            home[m[1]] = room.name
        inside = inside or line.startswith("enum")
        if inside and room:
            for name in re.findall(r"\b[A-Z]\w+", line):
                home.setdefault(name, room.name)
        inside = inside and "}" not in line
    for n, kind, name in s.names:
        if s.room_of(n):
            (types if kind in ("struct", "enum", "union") else home)[name] = (
                s.room_of(n).name)
    found = {room.name: {} for room in s.rooms}
    for n, line in enumerate(lines, 1):
        room = s.room_of(n)
        for kind, name in re.findall(r"\b(struct |enum |union )?(\w+)", line
                                     if room else ""):
            other = (types if kind else home).get(name, room.name)
            # a variable may be called as a room is: path, conn, route
            if other != room.name and name not in EVERYWHERE and (
                    kind or name != other):
                found[room.name].setdefault(other, set()).add(name)
    return found


def banner_of(s, room):
    """{ "Down": (line, words), "Entry": … }"""
    n, found, last = room.line, {}, None
    while not s.lines[n - 1].endswith("*/"):
        m = re.match(r" \* (Owner|Down|Up|Entry) +(.*)| \* {9}(\S.*)",
                     s.lines[n - 1])
        last = m and (m[1] or last)
        if last:
            found.setdefault(last, (n, []))[1].extend(
                re.findall(r"[\w*-]+", m[2] or m[3]))
        n += 1
    return found


def downs(s):
    """`Down    tls h1`: the rooms before it that it uses, all of them, and no
    more; but not those of the ground. Other words are libraries."""
    rooms, found = [r.name for r in s.rooms], uses(s)
    for at, room in enumerate(s.rooms):
        n, words = banner_of(s, room).get("Down", (room.line, []))
        wanted = [r for r in rooms[:at]
                  if r in found[room.name] and r not in GROUND]
        for name in wanted:
            if name not in words:
                yield n, "room %s uses %s: %s" % (room.name, name, ", ".join(
                    sorted(found[room.name][name])[:3]))
        for name in words:
            if name in rooms and name not in wanted:
                yield n, "room %s uses no %s" % (room.name, name)


def entry_use(s):
    """`Entry   a_b  a_c`: names of this room that a room after it uses."""
    above = {}
    for name, others in uses(s).items():
        for other, names in others.items():
            above.setdefault(other, set()).update(names)
    for room in s.rooms:
        n, words = banner_of(s, room).get("Entry", (room.line, []))
        for name in words:
            if "_" in name and "*" not in name and (
                    name not in above.get(room.name, ())):
                yield n, "no room after %s uses its %s" % (room.name, name)


def lengths(s):
    for name, (first, last) in sorted(s.functions.items()):
        if last - first + 1 > FUNCTION_LINES and name not in LONG:
            yield first, "%s has %d lines" % (name, last - first + 1)
    for name in LONG:
        if name not in s.functions:
            yield 1, "LONG excuses %s, which is not there" % name
        elif s.functions[name][1] - s.functions[name][0] < FUNCTION_LINES:
            yield s.functions[name][0], "%s needs no excuse" % name


def prototypes(s):
    for n, name in s.prototypes:
        if name not in s.functions:
            yield n, "%s is declared, not defined" % name
        elif s.room_of(n) is not s.room_of(s.functions[name][0]):
            yield n, "%s is of room %s" % (
                name, s.room_of(s.functions[name][0]).name)


def columns(s):
    """A table of X(...) rows, and the comment that heads it, may be wider."""
    table = False
    for n, line in enumerate(s.lines, 1):
        start = r"#define \w+\(X\w*\)"
        table = (table and s.lines[n - 2].endswith("\\")) or bool(
            re.match(start, line) or
            line.startswith("/*") and re.match(start, s.lines[n]))
        if len(line) > COLUMNS and not table:
            yield n, "%d columns" % len(line)


def leftovers(s):
    for n, line in enumerate(s.lines, 1):
        m = re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line)
        if m:
            yield n, m[1]
        if line != line.rstrip() or "\t" in line:
            yield n, "a tab, or space at the end"


def library(_):
    """The map in init.lua has every module of the Lua library once, and each
    module uses its own part and those above it."""
    text = {}
    for path in glob.glob("scripts/gateway/*.lua"):
        with open(path, encoding="utf-8") as f:
            text[os.path.basename(path)[:-4]] = f.read()
    part, parts = {}, 0
    for n, line in enumerate(text["init"].split("\n"), 1):
        m = re.match(r"--   (?:\w+ +| {11})(\w+(?:, \w+)*)(?:,$|: |$)", line)
        parts += bool(re.match(r"--   \w+ {2,}\w", line))
        for name in m[1].split(", ") if m and parts else ():
            if name not in text or name in part:
                yield n, "init.lua: %s is %s" % (
                    name, "there twice" if name in part else "no module")
            part[name] = parts
        if not line.startswith("--"):
            break
    for name in sorted(text):
        if name not in part:
            yield 1, "the map of scripts/gateway/init.lua has no %s" % name
        for other in re.findall(r'require "gateway\.(\w+)"', text[name]):
            above = part.get(other, 0) <= part.get(name, 0)
            if other != "core" and not above:
                yield 1, "scripts/gateway/%s.lua uses %s, of a part below" % (
                    name, other)


def refusals(_):
    """tests/refusals.md names tests that are there."""
    here = set()
    for path in glob.glob("tests/e2e/*.py") + glob.glob("tests/unit_*.inc"):
        with open(path) as f:
            names = re.findall(r"^(?:def )?test_(\w+)\(", f.read(), re.M)
        file = os.path.basename(path)[:-3]
        here |= {"unit test_" + name if path.endswith(".inc")
                 else file + " " + name.replace("_", " ") for name in names}
    with open("tests/refusals.md") as f:
        for n, line in enumerate(f, 1):
            for name in re.findall(r"`(\d\d-[\w-]+ [^`]+|unit \w+)`", line):
                if name not in here:
                    yield n, "refusals.md: there is no test %r" % name


CHECKS = [
    ("refusals.md names tests that are there", refusals),
    ("the map of the Lua library is true", library),
    ("banners are numbered from 1 without a gap", banners),
    ("the table of contents is what is there", contents),
    ("names begin with their room", prefixes),
    ("constants and macros do, too", constants),
    ("functions named in the preface are there", preface_names),
    ("stairs of the preface are there", stairs),
    ("entries named in banners are there", entries),
    ("banners name the rooms that a room uses", downs),
    ("entries are used by rooms after", entry_use),
    ("no function is longer than %d lines" % FUNCTION_LINES, lengths),
    ("no prototype of another room's function", prototypes),
    ("no line is longer than %d columns" % COLUMNS, columns),
    ("nothing is left to do", leftovers),
]


def main():
    s = Source(FILE)
    failed = 0
    for name, check in CHECKS:
        wrong = list(check(s))
        failed += bool(wrong)
        print("%s %s" % ("FAIL" if wrong else "ok  ", name))
        for line, what in wrong[:20]:
            print("       %s:%d: %s" % (FILE, line, what))
        if len(wrong) > 20:
            print("       and %d more" % (len(wrong) - 20))
    print("%d passed, %d failed" % (len(CHECKS) - failed, failed))
    return 1 if failed else 0


sys.exit(main())
