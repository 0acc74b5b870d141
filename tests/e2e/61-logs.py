"""Logs: one JSON object a line, no secrets, and a stalled reader harms none."""

import fcntl
import json
import os
import subprocess

from gw import (BIN, Client, Gateway, build, equal, free_port, read, signal,
                spawn, tmpdir, until, write, PKI, HEAD)

POLICY = """
gateway.post("/x", { authorize = id.ou "ops",
  validate = { json = { type = "object", properties = {
    password = { type = "string", maxLength = 20 } } } },
  handle = function() return gateway.text "fine" end })
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""


def setup():
    return Gateway(POLICY)


def test_every_line_is_one_object(g):
    for target in ("/ok", "/nothing", "/%ff", "/ok?\"x\"=1", "/ok%0a"):
        g.get(target)
    g.raw(b"GET /\xff\x01 HTTP/1.1\r\n\r\n")
    g.raw(b"\x00\"\\\r\n\r\n")
    until(lambda: len(g.log()) > 5, "lines")
    for line in read(g.log_path).split(b"\n")[:-1]:
        record = json.loads(line)
        for name in ("ts", "level", "event"):
            assert name in record, line


def test_no_bodies_headers_or_keys(g):
    g.post_json("/x", {"password": "hunter2-secret"},
                [("Authorization", "Bearer abcdef-secret"),
                 ("Cookie", "sid=cookie-secret")])
    g.post_json("/x", {"password": "hunter2-secret-too-long-for-it"})
    g.post_json("/x", b'{"password":"hunter2-secret')
    g.get("/ok", [("Authorization", "Bearer abcdef-secret")])
    until(lambda: len([r for r in g.log() if r["event"] == "access"]) >= 2,
          "access lines")
    text = read(g.log_path).decode()
    for word in ("hunter2", "abcdef-secret", "cookie-secret", "PRIVATE KEY"):
        assert word not in text, word


def test_a_denial_is_a_decision(g):
    mark = g.mark()
    equal(g.post_json("/x", {}, who="guest").status, 403)
    line = json.loads(g.wait_line('"decision"', since=mark)[0])
    text = json.dumps(line)
    assert "authorize" in text and "/x" in text and "guest" in text, line


def test_a_reader_that_stalls():
    """A full pipe nobody reads: requests go on, lines are dropped."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, 1031, 4096)  # F_SETPIPE_SZ
    folder = tmpdir("stall")
    port = free_port()
    text = HEAD + POLICY
    for name, value in (("PORT", port), ("PKI", PKI), ("WORKERS", 1),
                        ("LISTEN", "")):
        text = text.replace("@%s@" % name, str(value))
    path = write(folder + "/policy.lua", text)
    process = spawn([BIN, "run", path], stdin=subprocess.DEVNULL,
                    stdout=writing, stderr=writing)
    try:
        def up():
            try:
                Client(port).close()
                return True
            except OSError:
                return False
        until(up, "it listens", 10)
        with Client(port) as c:
            for n in range(600):
                c.send(build("GET", "/ok"))
                equal(c.response().status, 200)
        flags = fcntl.fcntl(writing, fcntl.F_GETFL)
        assert not flags & os.O_NONBLOCK, "O_NONBLOCK leaked to our descriptor"
    finally:
        os.close(writing)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        os.close(reading)
