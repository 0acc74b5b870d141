"""File slots: only a regular file beneath the folder, by descriptor."""

import os
import threading

from gw import Gateway, build, equal, tmpdir, witness, write

POLICY = """
local anything = "^(?s:.*)$"
local show = gateway.command { name = "show", program = "@PROGRAM@",
  sha256 = "@SHA@", args = { "show", gateway.slot("file", { dash = true }) },
  slots = { file = gateway.file_below("@LOGS@", { pattern = anything,
                                                  maxLength = 4000 }) } }
local cat = gateway.command { name = "cat", program = "/bin/cat",
  slots = { file = gateway.file_below("@LOGS@", { stdin = true }) } }
local tail = gateway.command { name = "tail", program = "/usr/bin/tail",
  args = { "-n", gateway.slot "lines", gateway.slot "file" },
  slots = { lines = gateway.integer(1, 1000),
            file = gateway.file_below("@LOGS@",
              { pattern = "^[a-z0-9-]{1,64}[.]log$", maxLength = 68 }) } }
local function route(path, command, lines)
  gateway.post(path, { authorize = id.anyone,
    validate = { json = { type = "object", required = { "f" },
                          properties = { f = { type = "string" } } } },
    handle = function(request)
      local r = command:run({ file = request.json.f, lines = lines })
      return gateway.json { ok = r.ok, why = r.why, out = r.stdout,
                            err = r.stderr } end })
end
route("/show", show)
route("/cat", cat)
route("/tail", tail, 2)
"""


class Files(Gateway):
    def __init__(self):
        self.logs = tmpdir("logs")
        write(self.logs + "/app.log", "one\ntwo\nthree\n")
        write(self.logs + "/sub/deep.log", "deep\n")
        write(self.logs + "/-n.log", "dash\n")
        os.chmod(self.logs + "/sub", 0o755)
        secret = write(tmpdir("secret") + "/secret", "SECRET\n")
        os.symlink(secret, self.logs + "/link.log")
        os.symlink("app.log", self.logs + "/inner.log")
        os.symlink(os.path.dirname(secret), self.logs + "/dirlink")
        os.symlink("sub", self.logs + "/sublink")
        os.symlink("/proc/self/root", self.logs + "/magic")
        os.link(secret, self.logs + "/hard.log")
        os.mkfifo(self.logs + "/fifo.log")
        os.chmod(self.logs + "/fifo.log", 0o666)
        self.secret = secret
        path, sha = witness()
        super().__init__(POLICY, PROGRAM=path, SHA=sha, LOGS=self.logs)

    def run(self, path, name):
        r = self.post_json(path, {"f": name})
        equal(r.status, 200, r.text)
        return r.json()


def setup():
    return Files()


def test_good_files(g):
    equal(g.run("/show", "app.log")["out"], "one\ntwo\nthree\n")
    equal(g.run("/show", "sub/deep.log")["out"], "deep\n")
    equal(g.run("/cat", "app.log")["out"], "one\ntwo\nthree\n")
    equal(g.run("/tail", "app.log")["out"], "two\nthree\n")


def test_everything_else_is_refused(g):
    wrong = []
    for name in ("link.log", "inner.log", "dirlink/secret",
                 "sublink/deep.log", "hard.log", "fifo.log", "sub", ".", "..",
                 "../" + os.path.basename(g.logs) + "/app.log",
                 "sub/../app.log", "sub/../../secret", g.secret,
                 g.logs + "/app.log", "/etc/passwd", "/proc/self/environ",
                 "/proc/self/root/etc/passwd", "magic/etc/passwd",
                 "/dev/fd/0", "/dev/stdin", "nothing.log", "", "/", "app.log/",
                 "app.log\0x", "\0", "sub//../link.log", "a" * 3000,
                 "app.log\n"):
        r = g.run("/show", name)
        if r["ok"] or r["out"]:
            wrong.append("%r: %r" % (name, r))
        if "SECRET" in str(r) or "root:" in str(r):
            wrong.append("%r leaked" % name)
    assert not wrong, "\n".join(wrong)


def test_the_pattern_comes_first(g):
    for name in ("sub/deep.log", "APP.log", "app.log.", "app.txt", "-n.log",
                 "x.log\n"):
        equal(g.run("/tail", name)["ok"], False, name)


def test_a_name_is_never_passed(g):
    """The program gets a descriptor: a name that begins with - is harmless."""
    r = g.run("/show", "-n.log")
    if r["ok"]:
        equal(r["out"], "dash\n")
    for name in ("-n.log", "--help"):
        r = g.run("/show", name)
        assert "--help" not in r["err"], r


def test_a_file_exchanged_for_a_link(g):
    """Many tries at the race: never the secret."""
    stop = threading.Event()
    path = g.logs + "/race.log"

    def swap():
        while not stop.is_set():
            for make in (lambda: write(path + ".1", "fine\n"),
                         lambda: os.symlink(g.secret, path + ".1")):
                make()
                os.rename(path + ".1", path)
    write(path, "fine\n")
    t = threading.Thread(target=swap)
    t.start()
    try:
        with g.connect() as c:
            for _ in range(60):
                c.send(build_post("/show", b'{"f":"race.log"}'))
                r = c.response().json()
                assert "SECRET" not in r["out"], r
                assert r["out"] in ("", "fine\n"), r
    finally:
        stop.set()
        t.join()


def build_post(path, body):
    return build("POST", path, [("Content-Type", "application/json")], body)
