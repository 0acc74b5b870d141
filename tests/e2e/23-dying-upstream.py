"""An upstream that dies: 502 before the head, a cut after it, never an end."""

import socket

from gw import Gateway, Upstream, build, equal, free_port, until

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
local nobody = gateway.upstream { "http://127.0.0.1:@NOBODY@" }
gateway.any("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path },
               body = gateway.stream "1M" },
  handle = app:to "/internal/{path}" })
gateway.get("/nobody", { authorize = id.anyone, handle = nobody })
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""


class Both(Gateway):
    def __init__(self):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port, NOBODY=free_port())

    def stop(self):
        self.up.stop()
        return super().stop()


def setup():
    return Both()


def test_in_the_middle_of_a_body(g):
    for verb in ("die", "die-chunked", "reset"):
        for size in ("1", "1000", "3M"):
            with g.connect() as c:
                c.send(b"GET /p/%s/%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (
                    verb.encode(), size.encode()))
                try:
                    r = c.response()
                except EOFError:
                    continue  # cut before the head: as good
                if r.status == 200:
                    assert not r.complete, "%s/%s looks whole" % (verb, size)
                    assert c.closed in ("cut", "reset"), (
                        "%s/%s ended like a whole one: %s" % (verb, size,
                                                              c.closed))
                else:
                    equal(r.status, 502, verb)


def test_http_1_0_clients_see_a_cut_too(g):
    """Where only the end of the connection tells the length, it must show."""
    with g.connect() as c:
        c.send(b"GET /p/die-chunked/100000 HTTP/1.0\r\nHost: localhost\r\n\r\n")
        r = c.response()
        assert not r.complete or r.status == 502, "looks whole: %s" % c.closed


def test_curl_notices(g):
    done = g.curl("-o", "/dev/null", g.url("/p/die/100000"), check=False)
    assert done.returncode in (18, 56, 92), (done.returncode, done.err)


def test_before_a_byte(g):
    with g.connect() as c:
        r = c.get("/p/drop")
        equal(r.status, 502)
        equal(r.get("content-type"), "application/problem+json")
        equal(c.get("/ok").status, 200, "the connection goes on")


def test_refused(g):
    with g.connect() as c:
        equal(c.get("/nobody").status, 502)
        equal(c.get("/nobody").status, 502)
        equal(c.get("/ok").status, 200)


def test_while_the_client_sends(g):
    with g.connect() as c:
        before = len(g.up.requests)
        c.send(build("POST", "/p/x", [("Content-Length", "100000")]) + b"half")
        until(lambda: len(g.up.requests) > before, "the upstream is asked")
        number = g.up.requests[-1].connection
        [x for x in g.up.open if x.number == number][0].sock.shutdown(
            socket.SHUT_RDWR)
        answers, closed = c.drain(1)
        if answers:
            equal(answers[0].status, 502)
    equal(g.get("/ok").status, 200)


def test_it_recovers(g):
    equal(g.get("/p/x").status, 200)


def test_a_reset_is_no_end_of_an_answer_without_length():
    """libuv calls a reset after a short read an end: the answer would pass for
    whole, since only the connection's end says where it ends."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        with Gateway(POLICY, UP=listener.getsockname()[1], NOBODY=1) as g:
            for _ in range(30):
                with g.connect() as c:
                    c.send(build("GET", "/p/x"))
                    sock, _ = listener.accept()
                    sock.recv(65536)
                    sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nhalf of i")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                    b"\1\0\0\0\0\0\0\0")
                    sock.close()
                    try:
                        r = c.response()
                        assert r.status == 502 or not r.complete, r
                    except EOFError:
                        pass  # cut before a byte of it went out
