"""2 GiB up and down while the worker stays small (256 MiB under ASan)."""

import os
import zlib

from gw import (ASAN, Gateway, UpstreamProcess, equal, status_kib, tmpdir,
                until)

ALONE = True
SIZE = (256 << 20) if ASAN else (2 << 30)
LIMIT_KIB = 32 << 10
POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.route({ "POST", "PUT" }, "/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path },
               body = gateway.stream "3G" },
  handle = app:to "/internal/{path}" })
gateway.get("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path } },
  handle = app:to "/internal/{path}" })
"""


class Both(Gateway):
    def __init__(self):
        self.up = UpstreamProcess()
        super().__init__(POLICY, UP=self.up.port)

    def stop(self):
        self.up.stop()
        return super().stop()

    def small(self):
        peak = status_kib(self.workers()[0], "VmHWM")
        if not ASAN:
            assert peak < LIMIT_KIB, "the worker's peak is %d KiB" % peak


def setup():
    return Both()


def test_down(g):
    out = g.curl("-o", "/dev/null", "-w", "%{http_code} %{size_download}",
                 g.url("/p/big/%d" % SIZE)).out
    equal(out, "200 %d" % SIZE)
    g.small()


def test_up(g):
    path = os.path.join(tmpdir("big"), "body")
    with open(path, "wb") as f:
        f.truncate(SIZE)
    out = g.curl("-T", path, g.url("/p/up")).out
    assert '"bytes": %d,' % SIZE in out, out[:500]
    g.small()
    os.unlink(path)


def test_down_in_chunks(g):
    size = SIZE // 8
    out = g.curl("-o", "/dev/null", "-w", "%{http_code} %{size_download}",
                 g.url("/p/chunked/%d/65536" % size)).out
    equal(out, "200 %d" % size)
    g.small()


def test_up_in_chunks_is_whole(g):
    """Every byte, in order: the upstream's CRC-32 is that of the file."""
    path = os.path.join(tmpdir("big"), "body")
    block = os.urandom(1 << 20)
    crc = 0
    with open(path, "wb") as f:
        for n in range(64):
            part = block[n * 1000:] + block[:n * 1000]
            f.write(part)
            crc = zlib.crc32(part, crc)
    out = g.curl("-T", path, "-H", "Transfer-Encoding: chunked",
                 g.url("/p/up")).out
    assert '"crc32": %d,' % crc in out, out[:500]
    os.unlink(path)


def test_down_is_whole(g):
    path = os.path.join(tmpdir("big"), "body")
    size = 64 << 20
    g.curl("-o", path, g.url("/p/big/%d" % size))
    with open(path, "rb") as f:
        block = bytes(range(256)) * 4096
        for _ in range(size // len(block)):
            assert f.read(len(block)) == block, "other bytes"
    equal(os.path.getsize(path), size)
    os.unlink(path)


def test_many_at_once_stay_bounded(g):
    """Sixteen clients that do not read, each of a body of 64 MiB."""
    clients = [g.connect(rcvbuf=4096) for _ in range(16)]
    before = status_kib(g.workers()[0], "VmRSS")
    for c in clients:
        c.send(b"GET /p/big/64M HTTP/1.1\r\nHost: localhost\r\n\r\n")
    last = [0, 0]

    def settled():
        last[0], last[1] = last[1], status_kib(g.workers()[0], "VmRSS")
        return last[0] == last[1] and last[1] > before - 1000
    until(settled, "memory does not grow")
    g.small()
    for c in clients:
        c.close()


for _test in (test_down, test_up, test_down_in_chunks):
    _test.timeout = 90
