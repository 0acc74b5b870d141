"""gateway run --watch: what is saved is served; a bad edit changes nothing."""

import os
import shutil

import gw
from gw import PKI, Gateway, equal, refused, sh, until, write

POLICY = """
local lib = require "lib.word"
gateway.get("/ok", { authorize = id.anyone,
  handle = function() return gateway.text(lib) end })
"""
BARE = """local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen { address = "127.0.0.1:@PORT@",
  certificate = "tls/server.crt", key = "tls/server.key",
  client_ca = "clients.pem", @MORE@ }
"""


class Watched(Gateway):
    """Its certificates are its own: tls/, clients.pem, lib/word.lua."""

    def __init__(self, text=POLICY, more="", before=None, **keys):
        self.before = before
        super().__init__(BARE + text, head=False, args=["--watch"], MORE=more,
                         prepare=self.own, **keys)

    def own(self, folder):
        os.mkdir(folder + "/tls")
        for end in (".crt", ".key"):
            shutil.copy(PKI + "/server" + end, folder + "/tls/server" + end)
        shutil.copy(PKI + "/clients.pem", folder)
        write(folder + "/lib/word.lua", "return 'one'\n")
        if self.before:
            self.before(folder)

    def generation(self):
        return [r for r in self.log() if r.get("event") == "ready"][-1][
            "generation"]

    def says(self, text):
        until(lambda: self.get("/ok").text == text, "/ok says " + text, 10)

    def told(self):
        """The lines for people."""
        return [r["text"] for r in self.log()
                if r.get("text", "").startswith("gateway: ")]

    def wait_told(self, *needles):
        def found():
            return [line for line in self.told()
                    if all(n in line for n in needles)]
        return until(found, "a line with %r" % (needles,), 10)[-1]


def save_by_rename(path, text):
    """As editors do."""
    write(path + ".new", text, 0o600 if path.endswith(".key") else 0o644)
    os.rename(path + ".new", path)


def served(g):
    with g.connect() as c:
        return c.sock.getpeercert(binary_form=True)


def test_save_and_the_next_request_sees_it():
    with Watched() as g:
        g.says("one")
        write(g.dir + "/lib/word.lua", "return 'two'\n")
        g.says("two")
        save_by_rename(g.dir + "/lib/word.lua", "return 'three'\n")
        g.says("three")
        g.write(BARE + POLICY.replace("text(lib)", "text 'four'"))
        g.says("four")
        equal(g.get("/new").status, 404)
        g.write(BARE + POLICY + POLICY.replace("/ok", "/new").replace(
            "local lib", "lib", 1).replace("lib =", "local _ =", 1))
        until(lambda: g.get("/new").status == 200, "the new route")
        line = g.wait_told("+ GET /new")
        assert "- " not in line, line
        g.write(BARE + POLICY.replace("gateway.get", "gateway.any"))
        line = g.wait_told("+ * /ok")
        assert "- GET /ok" in line and "- GET /new" in line, line


def test_a_bad_edit_changes_nothing():
    with Watched() as g:
        g.says("one")
        write(g.dir + "/lib/word.lua", "return 'two\n")
        line = g.wait_told("lib/word.lua:1:")
        assert "unfinished string" in line, line
        assert line.endswith("(generation 1 serves on)"), line
        g.says("one")
        equal(g.generation(), 1)
        write(g.dir + "/lib/word.lua", "return 'two'\n")
        g.says("two")
        g.write(BARE + POLICY.replace("authorize", "authorise"))
        line = g.wait_told("policy.lua:8:", "did you mean 'authorize'?")
        g.says("two")
        os.rename(g.policy, g.policy + "~")
        g.wait_told("policy.lua: No such file")
        os.rename(g.policy + "~", g.policy)
        g.write(BARE + POLICY)
        until(lambda: g.generation() == 3, "it serves the mended one")


def test_nothing_new_is_no_reload():
    with Watched() as g:
        write(g.dir + "/notes.txt", "x")
        write(g.dir + "/lib/word.lua", "return 'one'\n")  # the same
        os.utime(g.policy)
        write(g.dir + "/.hidden.lua", "x(")
        write(g.dir + "/lib/word.lua", "return 'two'\n")
        g.says("two")
        equal(g.generation(), 2)
        equal(len(g.told()), 2, "lines")


def test_a_new_module_in_a_new_folder():
    with Watched() as g:
        os.mkdir(g.dir + "/more")
        write(g.dir + "/more/deep/x.lua", "return 'deep'\n")
        g.write(BARE + POLICY.replace("lib.word", "more.deep.x"))
        g.says("deep")
        write(g.dir + "/more/deep/x.lua", "return 'deeper'\n")
        g.says("deeper")
        shutil.rmtree(g.dir + "/more")
        g.wait_told("more.deep.x")
        write(g.dir + "/more/deep/x.lua", "return 'again'\n")
        g.says("again")


def test_certificates_alone_leave_the_policy():
    with Watched() as g:
        before = served(g)
        save_by_rename(g.dir + "/tls/server.key",
                       gw.read(PKI + "/rsa-server.key"))
        save_by_rename(g.dir + "/tls/server.crt",
                       gw.read(PKI + "/rsa-server.crt"))
        until(lambda: served(g) != before, "the new certificate is served", 10)
        assert refused(g.port, "second-ops") is None, "second-ops is known"
        shutil.copy(PKI + "/ca.crt", g.dir + "/clients.pem")
        until(lambda: refused(g.port, "second-ops"), "second-ops is refused")
        write(g.dir + "/tls/server.crt", "not one")
        g.wait_told("certificate")
        assert served(g) != before
        equal(g.get("/ok").status, 200)


def test_a_certificate_comes_in_while_the_policy_is_bad():
    with Watched() as g:
        before = served(g)
        g.write("oops(")
        g.wait_told("policy.lua:1:")
        for end in (".key", ".crt"):
            save_by_rename(g.dir + "/tls/server" + end,
                           gw.read(PKI + "/rsa-server" + end))
        until(lambda: served(g) != before, "the new certificate is served", 10)
        g.says("one")


def test_a_key_that_others_may_read():
    with Watched() as g:
        os.chmod(g.dir + "/tls/server.key", 0o644)
        g.wait_told("others may read")
        os.chmod(g.dir + "/tls/server.key", 0o600)
        until(lambda: g.generation() > 1, "it is taken again")


def test_lists_in_a_folder():
    def before(where):
        os.mkdir(where + "/crls")
        sh(gw.BIN, "certs", "init", where + "/ca")
        sh(gw.BIN, "certs", "client", where + "/ca", "eve")
        sh(gw.BIN, "certs", "revoke", where + "/ca")
        shutil.copy(where + "/ca/ca.crl", where + "/crls/a.crl")
        shutil.copy(where + "/ca/ca.crt", where + "/clients.pem")

    with Watched(more='crl = "crls"', before=before) as g:
        for end in (".crt", ".key"):
            shutil.copy(g.dir + "/ca/eve" + end, PKI + "/watch-eve" + end)
        assert refused(g.port, "watch-eve") is None, "eve may"
        sh(gw.BIN, "certs", "revoke", g.dir + "/ca", "eve")
        save_by_rename(g.dir + "/crls/a.crl", gw.read(g.dir + "/ca/ca.crl"))
        until(lambda: refused(g.port, "watch-eve"), "eve is revoked", 10)


def config_map(folder, number, word):
    """A volume as Kubernetes makes it: files are links into a folder that a
    link names, and that link is replaced."""
    real = "..data_%d" % number
    os.mkdir(os.path.join(folder, real))
    write(os.path.join(folder, real, "word.lua"), "return '%s'\n" % word)
    link = os.path.join(folder, "..data")
    os.symlink(real, link + "_tmp")
    os.rename(link + "_tmp", link)
    if number > 1:
        shutil.rmtree(os.path.join(folder, "..data_%d" % (number - 1)))


def test_a_config_map_is_swapped():
    def before(folder):
        shutil.rmtree(folder + "/lib")
        os.mkdir(folder + "/lib")
        config_map(folder + "/lib", 1, "first")
        os.symlink("..data/word.lua", folder + "/lib/word.lua")

    with Watched(before=before) as g:
        g.says("first")
        for n, word in ((2, "second"), (3, "third")):
            config_map(g.dir + "/lib", n, word)
            g.says(word)


def test_a_release_link_is_swapped():
    """tls -> releases/1/tls, by a link in the middle of the path."""
    def before(folder):
        os.makedirs(folder + "/releases/1")
        os.rename(folder + "/tls", folder + "/releases/1/tls")
        os.symlink("1", folder + "/releases/current")
        os.symlink("releases/current/tls", folder + "/tls")

    with Watched(before=before) as g:
        old = served(g)
        os.makedirs(g.dir + "/releases/2/tls")
        for end in (".key", ".crt"):
            shutil.copy(PKI + "/rsa-server" + end,
                        g.dir + "/releases/2/tls/server" + end)
        os.symlink("2", g.dir + "/releases/next")
        os.rename(g.dir + "/releases/next", g.dir + "/releases/current")
        until(lambda: served(g) != old, "the new release is served", 10)


def test_without_watches_it_looks():
    """No inotify to be had: the user's limit is used up."""
    if os.geteuid() != 0:
        raise gw.Skip("only root can lower the limit")
    if sh("unshare", "-U", "true", check=False).returncode != 0:
        raise gw.Skip("no user namespaces")
    # a user namespace of its own, with no instances left in it
    wrap = ["unshare", "-r", "sh", "-c",
            'echo 0 >/proc/sys/user/max_inotify_instances && exec "$@"', "sh"]
    with Watched(wrap=wrap) as g:
        assert g.lines("--watch: inotify", "looking every"), g.tail()
        write(g.dir + "/lib/word.lua", "return 'two'\n")
        g.says("two")
        write(g.dir + "/lib/word.lua", "return 'two\n")
        g.wait_told("lib/word.lua:1:")
        write(g.dir + "/lib/word.lua", "return 'three'\n")
        g.says("three")


def test_without_the_option_nothing_happens():
    with Watched() as g, Gateway(BARE + POLICY, head=False, MORE="",
                                 prepare=g.own) as plain:
        for one in (plain, g):
            write(one.dir + "/lib/word.lua", "return 'two'\n")
        g.says("two")
        equal(plain.get("/ok").text, "one")
