"""Programs that no policy may declare: refused at load, with the mend."""

import os
import shutil

from gw import (PKI, equal, gateway_cli, hashlib, read, sh, tmpdir, witness,
                write)


def check(program, more=""):
    folder = tmpdir("check")
    path = write(folder + "/policy.lua", """
local gateway = require "gateway"
local id = require "gateway.identity"
gateway.listen { address = "127.0.0.1:8443", certificate = "%s/server.crt",
  key = "%s/server.key", client_ca = "%s/clients.pem" }
local c = gateway.command { name = "c", program = "%s", %s }
gateway.get("/x", { authorize = id.anyone, handle = function()
  return gateway.json(c:run {}) end })
""" % (PKI, PKI, PKI, program, more))
    return gateway_cli("check", path)


def refused(program, words=(), more=""):
    done = check(program, more)
    said = done.out + done.err
    if done.returncode != 1:
        return ["%s: exit %d" % (program, done.returncode)]
    out = []
    if "policy.lua:6" not in said:
        out.append("%s: no line in: %s" % (program, said))
    if os.path.basename(program) not in said:
        out.append("%s: not named in: %s" % (program, said))
    if words and not any(w in said for w in words):
        out.append("%s: none of %r in: %s" % (program, words, said))
    return out


def test_shells_and_their_like():
    wrong = []
    for name in ("sh", "bash", "dash", "env", "xargs", "find", "perl",
                 "python3", "awk", "mawk", "gawk", "sed", "su", "ssh", "nice",
                 "nohup", "timeout", "setsid", "stdbuf", "flock", "unshare",
                 "nsenter", "chroot", "script", "busybox", "vi", "make", "gdb",
                 "strace", "watch", "sudo", "setpriv"):
        path = shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")
        if not path:
            continue
        wrong += refused(path)
    assert not wrong, "\n".join(wrong)


def test_good_programs_are_good():
    for program in ("/bin/true", "/usr/bin/tail", "/usr/bin/sha256sum",
                    "/bin/cat"):
        done = check(program)
        equal(done.returncode, 0, program + ": " + done.out + done.err)


def trusted_folder():
    """A folder that only root can change, all the way up; root only."""
    base = "/var/lib"
    if os.geteuid() != 0 or os.stat(base).st_mode & 0o022:
        return None
    path = "%s/gateway-e2e-%d" % (base, os.getpid())
    os.mkdir(path, 0o755)
    return path


def test_files_that_are_not_what_they_should_be():
    wrong = []
    wrong += refused("/no/such/program")
    wrong += refused("/etc/passwd")
    wrong += refused("/usr/bin")
    wrong += refused("/dev/null")
    wrong += refused("bin/true", ("absolute",))
    folder = trusted_folder()
    if folder:
        try:
            wrong += in_folder(folder)
        finally:
            shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong)


def in_folder(folder):
    def copy(name, source, mode):
        path = folder + "/" + name
        shutil.copy(source, path)
        os.chmod(path, mode)
        return path
    out = []
    done = check(copy("fine", "/bin/true", 0o755))
    if done.returncode:
        out.append("a fine one: " + done.err)
    out += refused(copy("setuid", "/bin/true", 0o4755), ("set-uid", "setuid"))
    out += refused(copy("setgid", "/bin/true", 0o2755), ("set-gid", "setgid",
                                                         "set-uid"))
    out += refused(copy("groupw", "/bin/true", 0o775), ("writable", "write"))
    out += refused(copy("otherw", "/bin/true", 0o757), ("writable", "write"))
    out += refused(copy("noexec", "/bin/true", 0o644), ("execut",))
    script = write(folder + "/script", "#!/bin/sh\necho hello\n", 0o755)
    out += refused(script, ("#!", "script"))
    os.symlink("/bin/sh", folder + "/innocent")
    out += refused(folder + "/innocent", ("sh",))
    os.symlink("/bin/true", folder + "/link")
    if check(folder + "/link").returncode != 0:
        out.append("a link to /bin/true was refused")
    os.chmod(folder, 0o777)
    out += refused(folder + "/fine", ("writable", "write"))
    os.chmod(folder, 0o755)
    return out


def test_a_program_below_a_folder_of_everybody():
    """/tmp is sticky, and still anybody's; a pin lifts the rule."""
    path, sha = witness()
    wrong = refused(path, ("writable", "write", "sha256"))
    done = check(path, 'sha256 = "%s"' % sha)
    if done.returncode:
        wrong.append("pinned, and refused: " + done.out + done.err)
    wrong += refused(path, ("sha256",), 'sha256 = "%s"' % ("0" * 64))
    done = check(path, 'sha256 = "short"')
    if done.returncode != 1 or "sha256" not in done.err + done.out:
        wrong.append("a short hash: " + done.out + done.err)
    assert not wrong, "\n".join(wrong)


def test_a_pin_does_not_make_a_shell_welcome():
    sha = hashlib.sha256(read("/bin/sh")).hexdigest()
    assert not refused("/bin/sh", (), 'sha256 = "%s"' % sha)
    mine = tmpdir("shell") + "/innocent"
    shutil.copy("/bin/sh", mine)
    sh("test", "-x", mine)
