"""Revoked clients do not get in, and a list that cannot be trusted lets nobody
in: lists of `gateway certs revoke` and of openssl."""

import os
import signal
import ssl
import threading
import time

from gw import (PKI, SLOW, Gateway, OpensslCa, cert_serial, equal,
                gateway_cli, read, refused, sh, shutil, stamp, tmpdir, until,
                write)

DAY = 86400
POLICY = """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen { address = "127.0.0.1:@PORT@",
  certificate = "@PKI@/server.crt", key = "@PKI@/server.key",
  client_ca = @CA@, @LISTEN@ }
gateway.admin { address = "127.0.0.1:@ADMIN@" }
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text "fine" end })
"""


def certs(*argv, want=0):
    done = gateway_cli("certs", *argv)
    equal(done.returncode, want, "exit of certs %s: %s" % (argv, done.err))
    return done


def folder():
    """A CA with two clients and an empty list."""
    ca = os.path.join(tmpdir("crl"), "ca")
    certs("init", ca)
    for name in ("alice", "bob"):
        certs("client", ca, name)
    certs("revoke", ca)
    return ca


def gateway(ca, listen, **keys):
    """`ca` is a file, as in the policy."""
    return Gateway(POLICY, head=False, listen=listen, CA='"%s"' % ca, **keys)


def own(ca, more=""):
    return gateway(ca + "/ca.crt", 'crl = "%s/ca.crl", %s' % (ca, more))


def let_in(g, who, version=None):
    return refused(g.port, who, version) is None


def told(g, who, version, name, number):
    """By the alert, as Python and openssl name it."""
    why = refused(g.port, who, version).lower().replace("_", " ")
    assert name in why, "%s instead of %s" % (why, name)
    if version == ssl.TLSVersion.TLSv1_2:
        done = sh("openssl", "s_client", "-connect", "127.0.0.1:%d" % g.port,
                  "-tls1_2", "-cert", who + ".crt", "-key", who + ".key",
                  check=False, input=b"")
        text = done.out + done.err
        assert "SSL alert number %d" % number in text, text[-400:]


def check(ca, crl, more=""):
    """`gateway check` with that list: the finished process."""
    policy = POLICY
    for name, value in (("PORT", 1), ("ADMIN", 2), ("PKI", PKI),
                        ("CA", '"%s"' % ca),
                        ("LISTEN", 'crl = "%s", %s' % (crl, more))):
        policy = policy.replace("@%s@" % name, str(value))
    return gateway_cli("check", write(tmpdir("check") + "/policy.lua", policy))


def expect(done, *words):
    """No words: it is fine."""
    equal(done.returncode, 1 if words else 0, done.err)
    for word in words:
        assert word in done.err, "no %r in %s" % (word, done.err)


# ---- lists of openssl ------------------------------------------------------

def openssl_list(ca, out, number=1, revoked=(), extensions=(), start=None,
                 end=None, more="", der=False):
    """A list of an OpensslCa; `number` None: of version 1."""
    work = tmpdir("list")
    write(work + "/index.txt", "".join(
        "R\t%s\t%s,keyCompromise\t%s\tunknown\t/CN=x\n" % (
            stamp(time.time() + DAY)[2:], stamp(time.time() - 60)[2:], serial)
        for serial in revoked))
    conf = ["[ca]", "default_ca = it", "[it]",
            "database = %s/index.txt" % work, "default_md = sha256"]
    if number is not None:
        write(work + "/number", "%02x\n" % number)
        conf += ["crlnumber = %s/number" % work, "crl_extensions = ext",
                 "[ext]", "authorityKeyIdentifier = keyid", *extensions]
    write(work + "/conf", "\n".join(conf + [more, ""]))
    now = time.time()
    sh("openssl", "ca", "-gencrl", "-config", work + "/conf", "-keyfile",
       ca.key, "-cert", ca.crt, "-out", out, "-crl_lastupdate",
       stamp(now - 60 if start is None else start), "-crl_nextupdate",
       stamp(now + DAY if end is None else end))
    if der:
        sh("openssl", "crl", "-in", out, "-outform", "DER", "-out", out)
    return out


def serial(path):
    return cert_serial(path).upper()


class Tree:
    """root > middle > inside, and root > leaf; made once."""

    def __init__(self):
        d = self.dir = tmpdir("tree")
        self.root = OpensslCa(d, "root", cn="Tree root")
        self.middle = OpensslCa(d, "middle", issuer=self.root, cn="Tree middle")
        self.leaf = self.root.leaf("leaf")[0][:-4]
        self.inside = self.middle.leaf("inside")[0][:-4]
        self.other = self.middle.leaf("other")[0][:-4]
        self.point = OpensslCa(d, "point", cn="Point CA")
        self.twin = OpensslCa(d + "/twin", "root", cn="Tree root")

    def crl(self, name):
        return os.path.join(tmpdir("lists"), name)


TREE = []


def tree():
    if not TREE:
        TREE.append(Tree())
    return TREE[0]


# ---- revoke, reload, refused -----------------------------------------------

def test_revoke_and_reload():
    ca = folder()
    with own(ca) as g:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            assert let_in(g, ca + "/alice", version), "alice at first"
        certs("revoke", ca, "alice")
        assert let_in(g, ca + "/alice"), "the old list is still in force"
        g.reload()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            mark = g.mark()
            until(lambda: not let_in(g, ca + "/alice", version), "refused")
            told(g, ca + "/alice", version, "certificate revoked", 44)
            line = g.wait_line('"handshake"', "it was revoked at", since=mark)
            assert "CN=alice" in line[0] and "ca.crl" in line[0], line
            assert let_in(g, ca + "/bob", version), "bob is not revoked"
        revoked = g.metric("gateway_tls_handshakes_total", result="revoked")
        assert revoked >= 2, revoked
        assert not let_in(g, "wrong-ops"), "a stranger"
        equal(g.metric("gateway_tls_handshakes_total",
                       result="bad_certificate"), 1)
        equal(g.metric("gateway_tls_handshakes_total", result="revoked"),
              revoked, "revoked ones after a stranger")
        # a new worker, which knows no more than the list
        old = g.workers()[0]
        os.kill(old, signal.SIGKILL)
        g.expected.append("signal 9")
        until(lambda: g.workers() and g.workers() != [old], "a new worker", 10)
        until(lambda: let_in(g, ca + "/bob"), "it serves", 10)
        assert not let_in(g, ca + "/alice"), "forgotten"


test_revoke_and_reload.timeout = 60


def test_files_alone_and_connections():
    """SIGUSR1 takes the new list, and who is connected has to come again."""
    ca = folder()
    with own(ca) as g:
        with g.connect(ca + "/alice") as c:
            equal(c.get("/ok").status, 200)
            certs("revoke", ca, "alice")
            g.signal(signal.SIGUSR1)
            g.wait_ready(1)
            assert c.is_closed(20), "it outlived the old list"
        assert not let_in(g, ca + "/alice"), "alice comes again"


def test_an_older_list_does_not_come_back():
    ca = folder()
    shutil.copy(ca + "/ca.crl", ca + "/old")
    certs("revoke", ca, "alice")
    with own(ca) as g:
        assert not let_in(g, ca + "/alice"), "alice is revoked"
        shutil.copy(ca + "/old", ca + "/ca.crl")
        mark = g.mark()
        g.reload(good=False)
        line = g.wait_line("reload failed", since=mark)[0]
        for word in ("ca.crl", "number 0x01", "0x02 is in force"):
            assert word in line, line
        assert not let_in(g, ca + "/alice"), "the older list is in force"
        assert let_in(g, ca + "/bob"), "bob"
        # not by way of no list, either
        listen, g.tokens["LISTEN"] = g.tokens["LISTEN"], ""
        g.reload(POLICY)
        until(lambda: let_in(g, ca + "/alice"), "nobody is revoked")
        g.tokens["LISTEN"] = listen
        mark = g.mark()
        g.reload(POLICY, good=False)
        g.wait_line("reload failed", "0x02 is in force", since=mark)
        # a newer one is fine
        certs("revoke", ca)
        certs("revoke", ca, "bob")
        g.reload()
        until(lambda: not let_in(g, ca + "/bob"), "bob is revoked")
        assert let_in(g, ca + "/alice"), "alice was not in the older list"


test_an_older_list_does_not_come_back.timeout = 60


def test_broken_lists_change_nothing():
    ca = folder()
    certs("revoke", ca, "alice")
    good = read(ca + "/ca.crl")
    with own(ca) as g:
        for bad in (b"", b"rubbish", good[:-40], None,
                    good.replace(b"\nM", b"\nN", 1), read(ca + "/ca.crt")):
            if bad is None:
                os.unlink(ca + "/ca.crl")
            else:
                write(ca + "/ca.crl", bad)
            mark = g.mark()
            g.reload(good=False)
            g.wait_line("reload failed", "ca.crl", since=mark)
            assert not let_in(g, ca + "/alice"), "alice, with %r" % bad
            assert let_in(g, ca + "/bob"), "bob, with %r" % bad


test_broken_lists_change_nothing.timeout = 60


# ---- missing, expired ------------------------------------------------------

def both(ca):
    """One file of this CA and of second-ca."""
    return write(ca + "/both.pem",
                 read(ca + "/ca.crt") + read(PKI + "/second-ca.crt"))


def test_missing():
    ca = folder()
    with gateway(both(ca), 'crl = "%s/ca.crl"' % ca) as g:
        assert let_in(g, ca + "/alice"), "alice"
        why = refused(g.port, "second-ops")  # its CA has no list
        assert why and "certificate unknown" in why.lower().replace(
            "_", " "), why
        g.wait_line('"handshake"', "no CRL of CN=second-ca", "covers it")
        equal(g.metric("gateway_tls_handshakes_total", result="crl_missing"), 1)
    certs("revoke", ca, "alice")
    with gateway(both(ca),
                 'crl = "%s/ca.crl", crl_missing = "allow"' % ca) as g:
        assert let_in(g, "second-ops"), "allowed"
        assert not let_in(g, ca + "/alice"), "revoked all the same"


def test_expired_at_load():
    ca = folder()
    certs("revoke", ca, "alice", "--not-before", "2026-01-01", "--not-after",
          "2026-01-31")
    crt, crl = ca + "/ca.crt", ca + "/ca.crl"
    expect(check(crt, crl), "crl: the CRL of CN=gateway development CA",
           "expired at 2026-01-31T00:00:00Z")
    expect(check(crt, crl, 'crl_expired = "allow"'))
    with own(ca, 'crl_expired = "allow"') as g:
        assert let_in(g, ca + "/bob"), "bob"
        assert not let_in(g, ca + "/alice"), "an old list still revokes"
    certs("revoke", ca, "--not-before", "2126-01-01")
    for more in ("", 'crl_expired = "allow"'):
        expect(check(crt, crl, more), "is not valid before 2126-01-01")


def test_expires_while_it_runs():
    ca = folder()
    with own(ca) as g:
        soon = time.gmtime(time.time() + 4 * SLOW)
        certs("revoke", ca, "--not-after",
              time.strftime("%Y-%m-%dT%H:%M:%SZ", soon))
        g.reload()
        end = g.metric("gateway_crl_next_update_seconds")
        assert abs(end - time.time()) < 600, end
        with g.connect(ca + "/bob") as c:
            assert c.is_closed(20), "a connection outlived the list"
        # also who is known already, and a worker that starts afterwards
        until(lambda: not let_in(g, ca + "/bob"), "it expired", 10)
        g.wait_line('"handshake"', "the CRL of", "expired at")
        assert g.metric("gateway_tls_handshakes_total", result="crl_expired")
        old = g.workers()[0]
        os.kill(old, signal.SIGKILL)
        g.expected.append("signal 9")
        until(lambda: g.workers() and g.workers() != [old], "a new worker", 10)
        until(lambda: g.admin("/healthz").status == 200, "it lives", 10)
        assert not let_in(g, ca + "/bob"), "expired all the same"
        certs("revoke", ca)
        g.reload()
        until(lambda: let_in(g, ca + "/bob"), "there is a new list")


test_expires_while_it_runs.timeout = 60


# ---- trees, folders, formats -----------------------------------------------

def test_every_link_of_a_chain():
    t = tree()
    lists = tmpdir("lists")
    openssl_list(t.root, lists + "/root.crl", 1)
    openssl_list(t.middle, lists + "/middle.crl", 1, [serial(t.other)],
                 der=True)
    write(lists + "/notes.txt", "no list")
    with gateway(t.root.crt, 'crl = "%s"' % lists) as g:
        assert let_in(g, t.leaf) and let_in(g, t.inside), "nobody is revoked"
        assert not let_in(g, t.other), "by the middle CA's list"
        openssl_list(t.root, lists + "/root.crl", 2, [serial(t.middle.crt[:-4])])
        g.reload()
        until(lambda: not let_in(g, t.inside), "below a revoked CA")
        g.wait_line('"handshake"', "its issuer", "Tree middle", "was revoked",
                    "keyCompromise")
        assert let_in(g, t.leaf), "beside it"
        os.unlink(lists + "/middle.crl")
        openssl_list(t.root, lists + "/root.crl", 3)
        g.reload()
        mark = g.mark()
        until(lambda: g.lines("no CRL of CN=Tree middle", since=mark)
              or not let_in(g, t.inside) and None, "its CA has no list")
        assert let_in(g, t.leaf), "leaf"


test_every_link_of_a_chain.timeout = 60


def test_the_newest_of_several():
    t = tree()
    lists = tmpdir("lists")
    old = openssl_list(t.root, lists + "/b-old.crl", 9)
    new = openssl_list(t.root, lists + "/a-new.crl", 10, [serial(t.leaf)])
    both_in_one = write(lists + "/one.pem", read(old) + read(new) + read(old))
    for crl in ('"%s"' % lists, '{ "%s", "%s" }' % (old, new),
                '"%s"' % both_in_one):
        with gateway(t.root.crt, "crl = %s" % crl) as g:
            assert not let_in(g, t.leaf), crl
    same = openssl_list(t.root, lists + "/c-same.crl", 10)
    expect(check(t.root.crt, lists), "two different CRLs of CN=Tree root",
           "have the same number", "a-new.crl", "c-same.crl")
    os.unlink(same)
    shutil.copy(new, same)  # the same list twice is one
    expect(check(t.root.crt, lists))
    expect(check(t.root.crt, tmpdir("empty")), "no *.crl file in this folder")


def test_who_signed_it():
    t = tree()
    out = t.crl("x.crl")
    openssl_list(t.twin, out, 1)
    expect(check(t.root.crt, out))  # of another CA, as its key id says
    with gateway(t.root.crt, 'crl = "%s"' % out) as g:
        assert not let_in(g, t.leaf), "another CA's list covers nobody here"
        g.wait_line('"handshake"', "no CRL of")
    theirs = read(openssl_list(t.twin, t.crl("t"), 1, der=True))
    mine = read(openssl_list(t.root, t.crl("m"), 1, der=True))
    write(out, join(split(mine)[0], split(theirs)[1]))
    expect(check(t.root.crt, out), "is not signed by the", "Tree root",
           "fetch it again")
    write(out, join(*split(mine)))
    expect(check(t.root.crt, out))
    # of a CA that is no anchor it is seen when a client comes
    lists = tmpdir("lists")
    openssl_list(t.root, lists + "/root.crl", 1)
    middle = read(openssl_list(t.middle, t.crl("m"), 1, der=True))
    write(lists + "/middle.crl", join(split(middle)[0], split(theirs)[1]))
    with gateway(t.root.crt, 'crl = "%s"' % lists) as g:
        assert let_in(g, t.leaf), "beside it"
        assert not let_in(g, t.inside), "nobody signed its CA's list"
        g.wait_line('"handshake"', "the CRL of CN=Tree middle",
                    "is not signed by the CA")
        equal(g.metric("gateway_tls_handshakes_total", result="crl_unusable"),
              1)


def split(der):
    """What is signed and how, and the signature, of a list in DER."""
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    at = der.rindex(algorithm) + len(algorithm)
    return der[4 if der[1] == 0x82 else 3:at], der[at:]


def join(signed, signature):
    body = signed + signature
    size = (b"\x81" + bytes([len(body)]) if len(body) < 256 else
            b"\x82" + len(body).to_bytes(2, "big"))
    return b"\x30" + size + body


def test_what_is_no_list_for_us():
    t = tree()
    out = t.crl("x.crl")
    idp = "[idp]\nfullname = URI:http://example.org/a\n"
    scope = ["issuingDistributionPoint = critical,@idp"]
    for extensions, more, words in (
            ([], "", ()),
            (["2.5.29.27 = critical,DER:020101"], "", ("delta list", "complete")),
            (scope, idp, ()),
            (scope, idp + "indirectCRL = TRUE", ("indirect", "each CA")),
            (scope, idp + "onlyAA = TRUE", ("attribute certificates",)),
            (scope, idp + "onlysomereasons = keyCompromise",
             ("some reasons only",)),
            (scope, idp + "onlyuser = TRUE", ()),
            (scope, idp + "onlyCA = TRUE", ()),
            (["1.2.3.4 = critical,DER:0500"], "", ("1.2.3.4",)),
            (["1.2.3.4 = DER:0500"], "", ())):
        openssl_list(t.root, out, 1, extensions=extensions, more=more)
        expect(check(t.root.crt, out), *words)
    openssl_list(t.root, out, None)
    expect(check(t.root.crt, out), "version: is 1", "crlNumber")


test_what_is_no_list_for_us.timeout = 60


def test_scopes():
    """A list speaks of what it covers, and is silent on the rest."""
    t = tree()
    point = t.point
    point.csr("pointed", "ec", "/CN=pointed")
    point.sign("pointed", ["basicConstraints=critical,CA:FALSE",
                           "keyUsage=critical,digitalSignature",
                           "extendedKeyUsage=clientAuth",
                           "crlDistributionPoints=URI:http://example.org/a"])
    pointed = point.folder + "/pointed"
    plain = point.leaf("plain")[0][:-4]
    out = t.crl("x.crl")
    idp = "[idp]\nfullname = URI:http://example.org/%s\n"
    scope = ["issuingDistributionPoint = critical,@idp"]

    def verdicts(number, more, revoked=()):
        openssl_list(point, out, number, revoked, scope, more=more)
        with gateway(point.crt, 'crl = "%s"' % out) as g:
            return let_in(g, pointed), let_in(g, plain)

    equal(verdicts(1, idp % "a"), (True, False), "its point")
    equal(verdicts(2, idp % "a", [serial(pointed)]), (False, False), "revoked")
    equal(verdicts(3, idp % "b"), (False, False), "another point")
    equal(verdicts(4, "[idp]\nonlyuser = TRUE"), (True, True), "users")
    equal(verdicts(5, "[idp]\nonlyCA = TRUE"), (False, False), "CAs")


test_scopes.timeout = 60


def test_limits():
    ca = folder()
    for count, size, words in ((1, (16 << 20) + 1, "larger than 16777216"),
                               (4, 13 << 20, "together larger than 48 MiB"),
                               (257, 1, "more than 256 files of CRLs")):
        lists = tmpdir("lists")
        for n in range(count):
            os.truncate(write("%s/%d.crl" % (lists, n), ""), size)
        expect(check(ca + "/ca.crt", lists), "crl: ", words)
    expect(check(ca + "/ca.crt", ca + "/none.crl"), "none.crl", "No such file")


# ---- the command -----------------------------------------------------------

def numbers(ca):
    """(number, serials) as openssl reads the list, its signature checked."""
    done = sh("openssl", "crl", "-in", ca + "/ca.crl", "-CAfile",
              ca + "/ca.crt", "-noout", "-text", "-crlnumber")
    assert "verify OK" in done.err + done.out, done.err
    number = int(done.out.split("crlNumber=")[1].split()[0], 16)
    return number, sorted(
        line.split(":")[1].strip().lower() for line in done.out.split("\n")
        if "Serial Number:" in line)


def test_the_command():
    ca = folder()
    alice, bob = (cert_serial(ca + "/" + n) for n in ("alice", "bob"))
    equal(numbers(ca), (1, []))
    certs("revoke", ca, "alice")
    equal(numbers(ca), (2, [alice]))
    certs("revoke", ca, "alice", "alice")
    equal(numbers(ca), (3, [alice]), "once is enough")
    certs("revoke", ca, "bob", "--serial", "0ABC", "--days", "3")
    equal(numbers(ca), (4, sorted([alice, bob, "0abc"])))
    for name, ok in (("alice", False), ("bob", False)):
        done = sh("openssl", "verify", "-crl_check", "-CAfile", ca + "/ca.crt",
                  "-CRLfile", ca + "/ca.crl", ca + "/%s.crt" % name,
                  check=False)
        equal(done.returncode == 0, ok, name)
        assert "revoked" in done.err + done.out, done.err
    before = read(ca + "/ca.crl")
    certs("revoke", ca, "alice", "nobody", want=1)
    certs("revoke", ca, "../ca/alice", want=2)
    shutil.copy(PKI + "/ops.crt", ca + "/foreign.crt")
    done = certs("revoke", ca, "foreign", want=1)
    assert "was not issued by" in done.err, done.err
    equal(read(ca + "/ca.crl"), before, "a mistake changes nothing")
    certs("init", ca, "--force")
    done = certs("revoke", ca, want=1)
    assert "is not the one list of ca.crt" in done.err, done.err
    equal([f for f in os.listdir(ca) if f.startswith(".")], [], "left over")


def test_the_doctor_reads_lists():
    ca = folder()
    certs("revoke", ca, "alice")
    more = ("--ca", ca + "/ca.crt", "--crl", ca + "/ca.crl")
    done = certs("doctor", ca + "/alice.crt", *more, want=1)
    assert "refused: it was revoked at" in done.out, done.out
    done = certs("doctor", ca + "/bob.crt", *more)
    assert "accepted: CN=bob" in done.out, done.out
    assert "no list" not in done.out, done.out
    done = certs("doctor", ca + "/alice.crt", "--ca", ca + "/ca.crt")
    assert "no list was asked" in done.out and "--crl" in done.out, done.out
    certs("revoke", ca, "--days", "1")
    at = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 3 * DAY))
    done = certs("doctor", ca + "/bob.crt", *more, "--at", at, want=1)
    assert "the CRL of" in done.out and "expired at" in done.out, done.out
    certs("doctor", ca + "/bob.crt", "--ca", ca + "/ca.crt", "--crl",
          ca + "/ca.crt", want=2)


def test_many_at_once():
    """Each adds one, and none is lost."""
    ca = folder()
    threads = [threading.Thread(target=certs, args=(
        "revoke", ca, "--serial", "4%x" % n)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal(numbers(ca), (13, ["4%x" % n for n in range(12)]))
