"""gateway completion: keys are typed into real shells on a terminal, and what
stands on the line then is what runs."""

import fcntl
import os
import pty
import re
import shutil
import signal
import termios
import threading

import gw
from gw import Skip, equal, gateway_cli, sh, until, write

SHELLS = ("bash", "zsh", "fish")
# How each loads its completions, and what types all that there is (Ctrl-X a).
START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "-i"],
}
SETUP = {
    "bash": """eval "$(%(bin)s completion bash)"
bind '"\\C-xa": insert-completions'
gateway() { printf '%%s\\n' "$@" >out.new; mv out.new out; }
""",
    "zsh": """%(load)s
zle -C everything complete-word _generic
zstyle ':completion:everything::::' completer _all_matches _complete
zstyle ':completion:everything:*' insert yes
bindkey '^Xa' everything
gateway() { printf '%%s\\n' "$@" >out.new; command mv out.new out; }
""",
    "fish": """function gateway
    printf '%%s\\n' $argv >out.new; command mv out.new out
end
""",
}
# zsh's two ways: as a file of $fpath, and evaluated
ZSH = {
    "file": "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D",
    "eval": 'autoload -Uz compinit; compinit -u -D; '
            'eval "$(%(bin)s completion zsh)"',
}
# What is typed after "gateway ", and the words that run; \t is the TAB key.
TYPED = (
    ("au\t--fo\tsa\t", "audit --format sarif"),
    ("audit --format js\t", "audit --format json"),
    ("audit --format=js\t", "audit --format json"),
    ("audit --fail-on=me\t", "audit --fail-on medium"),
    ("test --format ju\t", "test --format junit"),
    ("docs --format lu\t", "docs --format luals"),
    ("docs lim\t", "docs limits"),
    ("docs --format markdown not_fo\t", "docs --format markdown not_forwarded"),
    ("wh\t--format c\t", "whoami --format csv"),
    ("explain -X POST --header a --format te\t",
     "explain -X POST --header a --format text"),
    ("run pol\t", "run policy.lua"),
    ("run --wa\tpol\t", "run --watch policy.lua"),
    ("run --policy pol\t", "run --policy policy.lua"),
    ("run --policy=pol\t", "run --policy policy.lua"),
    ("replay --against pol\t", "replay --against policy.lua"),
    ("explain --identity pol\t", "explain --identity policy.lua"),
    ("cer\tini\tpol\t", "certs init policy.lua"),
    ("log ver\tpol\t", "log verify policy.lua"),
    ("compl\tfi\t", "completion fish"),
    ("exec version --lea\t", "exec version --learn"),
    ("he\t", "help"),
    # where no file can stand, none is offered
    ("explain --method pol\t", "explain --method pol"),
    ("test --format pol\t", "test --format pol"),
    ("status pol\t", "status pol"),
    ("completion pol\t", "completion pol"),
    ("schema pol\t", "schema pol"),
    ("pol\t", "pol"),
)


def commands():
    return re.findall(r"^  (\w+) ", gateway_cli("--help").out, re.M)


def options_of(command):
    """What --help lists."""
    out = gateway_cli(command, "--help").out
    names = re.findall(r"^  (?:-\w, )?(--[\w-]+)", out, re.M)
    for sub in (("init", "client", "revoke", "doctor") if command == "certs"
                else ()):
        out = gateway_cli(command, sub, "--help").out
        names += re.findall(r"^  (--[\w-]+)", out, re.M)
    return set(names) | {"--help"}


class Shell:
    """One shell on a terminal of its own."""

    def __init__(self, name, load="file"):
        if not shutil.which(name):
            raise Skip(name + " is not installed")
        self.name, self.screen = name, b""
        self.folder = gw.tmpdir(name)
        names = {"bin": gw.BIN}
        names["load"] = ZSH[load] % names
        setup = SETUP[name] % names
        write(self.folder + "/policy.lua", "")
        write(self.folder + "/setup", setup)
        write(self.folder + "/_gateway", gateway_cli("completion", "zsh").out)
        write(self.folder + "/.config/fish/completions/gateway.fish",
              gateway_cli("completion", "fish").out)
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(self.folder)
            os.execvpe(START[name][0], START[name], {
                "PATH": os.environ["PATH"], "HOME": self.folder,
                "TERM": "xterm", "LC_ALL": "C.UTF-8", "SHELL": name})
        size = b"\x32\x00\xc8\x00\x00\x00\x00\x00"  # 50 lines of 200
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, size)
        threading.Thread(target=self.watch, daemon=True).start()
        self.keys(". ./setup\r")
        equal(self.types("ready"), "ready")

    def watch(self):
        try:
            while True:
                self.screen += os.read(self.terminal, 65536)
        except OSError:
            pass  # it has ended

    def keys(self, keys):
        os.write(self.terminal, keys.encode())

    def types(self, keys):
        """The words that run when `gateway KEYS` and return are typed."""
        out = self.folder + "/out"
        self.keys("gateway " + keys + "\r")
        try:
            until(lambda: os.path.exists(out), "nothing ran", 10)
        except AssertionError as problem:
            raise AssertionError("%s, %r: %s: %r" % (
                self.name, keys, problem, self.screen[-800:])) from None
        words = gw.read(out).decode().split("\n")[:-1]
        os.unlink(out)
        return " ".join(words).replace("=", " ").rstrip()

    def offers(self, line):
        """All that it offers at the end of `gateway LINE`."""
        before = (line + ".").split()[:-1]
        return set(self.types(line + "\x18a").split()) - set(before)

    def stop(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def each_keys(name, load="file"):
    shell = Shell(name, load)
    try:
        for keys, words in TYPED:
            equal(shell.types(keys), words, "%s, %r" % (name, keys))
    finally:
        shell.stop()


def test_keys_in_bash():
    each_keys("bash")


def test_keys_in_zsh():
    each_keys("zsh")


def test_keys_in_zsh_evaluated():
    each_keys("zsh", "eval")


def test_keys_in_fish():
    each_keys("fish")


def all_offers(offers):
    """Every command and option is offered; `offers` gives those for a line."""
    equal(offers(""), set(commands()) | {"help"})
    for name in commands():
        equal(offers(name + " --"), options_of(name), name)
    equal(offers("certs "), {"init", "server", "client", "revoke", "doctor"})
    equal(offers("log --running v"), {"verify"})
    equal(offers("audit --format "), {"text", "json", "sarif"})
    equal(offers("audit --fail-on "), {"high", "medium", "low", "info",
                                       "never"})
    equal(offers("routes --format "), {"table", "csv", "json"})
    equal(offers("nothing "), set())


def test_all_in_bash():
    shell = Shell("bash")
    try:
        all_offers(shell.offers)
    finally:
        shell.stop()


def test_all_in_zsh():
    shell = Shell("zsh")
    try:
        all_offers(shell.offers)
    finally:
        shell.stop()


def test_all_in_fish():
    if not shutil.which("fish"):
        raise Skip("fish is not installed")
    script = gateway_cli("completion", "fish").out

    def offers(line):
        out = sh("fish", "--no-config", "-c", script + "complete -C 'gateway "
                 + line + "'").out
        return {row.split("\t")[0] for row in out.splitlines()}
    all_offers(offers)


def test_other_words():
    done = gateway_cli("completion", "tcsh")
    equal((done.returncode, done.out), (2, ""))
    equal(gateway_cli("completion").returncode, 2)
