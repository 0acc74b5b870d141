"""An upstream behind a Unix socket."""

import os

from gw import Gateway, Upstream, equal, tmpdir, until

POLICY = """
local app = gateway.upstream { "http+unix:@SOCK@" }
gateway.any("/p/{path...}", { authorize = id.anyone,
  validate = { path = { path = gateway.relative_path },
               body = gateway.stream "8M" },
  handle = app:to "/internal/{path}" })
"""


def both():
    folder = tmpdir("unix")
    os.chmod(folder, 0o755)
    path = folder + "/app.sock"
    up = Upstream(unix=path).start()
    return Gateway(POLICY, SOCK=path), up, path


def test_requests_and_bodies():
    g, up, _ = both()
    with g:
        with g.connect() as c:
            equal(c.get("/p/x").json()["path"], "/internal/x")
            equal(c.request("POST", "/p/x", body=b"y" * 3000000)
                  .json()["bytes"], 3000000)
            r = c.get("/p/big/5M")
            assert r.complete and len(r.body) == 5 << 20, r.status
        equal(up.connections, 1, "connections")
        assert "client-cert" in g.get("/p/x").json()["headers"], "no identity"
    up.stop()


def test_a_socket_that_is_not_there():
    g, up, path = both()
    with g:
        up.stop()
        os.unlink(path)
        equal(g.get("/p/x").status, 502)
        up = Upstream(unix=path).start()
        until(lambda: g.get("/p/x").status == 200, "it is found again")
    up.stop()
