"""`gateway certs` makes certificates that other tools accept."""

import stat
import os

from gw import PKI, equal, gateway_cli, read, sh, tmpdir


def made(*argv, want=0):
    done = gateway_cli("certs", *argv)
    assert done.returncode == want, "exit %d: %s%s" % (
        done.returncode, done.out, done.err)
    return done


def init():
    folder = os.path.join(tmpdir("certs"), "ca")
    made("init", folder)
    return folder


def text(folder, name):
    return sh("openssl", "x509", "-in", "%s/%s.crt" % (folder, name), "-noout",
              "-text").out


def test_openssl_verifies_what_it_made():
    folder = init()
    made("server", folder, "server", "--dns", "gw.example.org", "--ip",
         "127.0.0.1")
    made("client", folder, "alice", "--ou", "ops", "--ou", "night", "--o",
         "Example", "--uri", "spiffe://example.org/alice", "--email",
         "alice@example.org")
    for name, purpose in (("server", "sslserver"), ("alice", "sslclient")):
        sh("openssl", "verify", "-x509_strict", "-CAfile", folder + "/ca.crt",
           "-purpose", purpose, "%s/%s.crt" % (folder, name))
        key = sh("openssl", "pkey", "-in", "%s/%s.key" % (folder, name),
                 "-pubout").out
        crt = sh("openssl", "x509", "-in", "%s/%s.crt" % (folder, name),
                 "-noout", "-pubkey").out
        equal(key, crt, "public key of " + name)
    alice = text(folder, "alice")
    for want in ("OU = ops", "OU = night", "CN = alice", "O = Example",
                 "URI:spiffe://example.org/alice", "email:alice@example.org",
                 "TLS Web Client Authentication", "CA:FALSE"):
        assert want in alice, "no %r in %s" % (want, alice)
    server = text(folder, "server")
    for want in ("DNS:gw.example.org", "IP Address:127.0.0.1",
                 "TLS Web Server Authentication"):
        assert want in server, "no %r in %s" % (want, server)


def test_keys_are_private():
    folder = init()
    made("client", folder, "alice")
    for name in ("ca", "alice"):
        mode = stat.S_IMODE(os.stat("%s/%s.key" % (folder, name)).st_mode)
        equal(oct(mode), oct(0o600), "mode of %s.key" % name)


def test_nothing_is_overwritten_without_force():
    folder = init()
    made("client", folder, "alice")
    before = [read("%s/%s" % (folder, f)) for f in sorted(os.listdir(folder))]
    made("init", folder, want=1)
    made("client", folder, "alice", want=1)
    after = [read("%s/%s" % (folder, f)) for f in sorted(os.listdir(folder))]
    equal(after, before, "files")
    made("client", folder, "alice", "--force")


def test_serials_differ_and_are_positive():
    folder = init()
    made("client", folder, "a")
    made("client", folder, "b")
    serials = [sh("openssl", "x509", "-in", "%s/%s.crt" % (folder, n),
                  "-noout", "-serial").out for n in ("ca", "a", "b")]
    equal(len(set(serials)), 3, "different serials")
    assert not any("-" in s for s in serials), serials


def test_mistakes_are_answered_with_a_sentence():
    folder = init()
    made("init", want=2)
    made("client", folder, want=2)
    made("client", folder, "x", "--colour", "red", want=2)
    made("frobnicate", folder, want=2)
    for bad in ("../x", "a/b", ""):
        done = gateway_cli("certs", "client", folder, bad)
        assert done.returncode in (1, 2), "name %r was taken" % bad
    done = gateway_cli("certs", "client", folder + "-not-there", "x")
    equal(done.returncode, 1, "exit without a CA")
    assert "-not-there" in done.err + done.out, done.err
    for option, value in (("--ip", "300.1.1.1"), ("--uri", "not a uri"),
                          ("--days", "-3"), ("--dns", "a b")):
        done = gateway_cli("certs", "client", folder, "y", option, value)
        assert done.returncode in (1, 2), "%s %s was taken" % (option, value)
        assert not os.path.exists(folder + "/y.crt"), "half done"


def test_the_shared_folder_was_made_by_it():
    assert "Issuer" in text(PKI, "ops"), "no certificate"
    assert "gateway test CA" not in text(PKI, "ca"), (
        "run.py had to fall back to openssl")
