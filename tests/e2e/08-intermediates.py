"""One client's intermediate does not complete another client's chain."""

import ssl
import threading

from gw import Gateway, equal, refused


def setup():
    return Gateway("""
gateway.get("/ok", { authorize = id.ou "ops",
  handle = function() return gateway.text "fine" end })
""")


def test_nothing_is_kept(g):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        assert refused(g.port, "bare-ops", version), "the leaf alone was enough"
        equal(g.get("/ok", who="middle-ops", version=version).status, 200)
        assert refused(g.port, "bare-ops", version), (
            "middle-ops lent its intermediate")


def test_not_while_the_other_is_connected(g):
    with g.connect("middle-ops") as c:
        equal(c.get("/ok").status, 200)
        assert refused(g.port, "bare-ops"), "middle-ops lent its intermediate"
        equal(c.get("/ok").status, 200)


def test_not_while_the_other_is_in_its_handshake(g):
    """Many of both kinds at once."""
    answers = {"middle-ops": [], "bare-ops": []}

    def one(who):
        for _ in range(10):
            answers[who].append(refused(g.port, who) is None)

    threads = [threading.Thread(target=one, args=(w,)) for w in answers
               for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    equal(set(answers["bare-ops"]), {False}, "the bare leaf")
    equal(set(answers["middle-ops"]), {True}, "the whole chain")
