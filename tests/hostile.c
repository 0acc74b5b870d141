/* A hostile program, to be declared as a command: each argument is one way
 * out, and it says what became of it. For each attempt one line, "what: EPERM"
 * or "what: DONE"; the test knows which errors are right.
 *
 *   hostile ATTEMPT [PATH | PORT | PID]…
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

extern char **environ;

static int argn;
static char **arg;

static const char *
at(int i)
{
    return i < argn ? arg[i] : "";
}

/* `result` is what a system call returned. */
static void
say(const char *what, long result)
{
    printf("%s: %s\n", what, result < 0 ? strerrorname_np(errno) : "DONE");
    fflush(stdout);
}

static void
try_open(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK, 0600);
    char byte;

    if (fd >= 0 && !(flags & (O_WRONLY | O_DIRECTORY)))
        say(path, read(fd, &byte, 1));
    else
        say(path, fd);
}

static void
files(void)
{
    for (int i = 0; i < argn; i++)
        try_open(at(i), O_RDONLY);
    try_open("/etc/passwd", O_RDONLY);
    try_open("/etc", O_RDONLY | O_DIRECTORY);
    try_open("/", O_RDONLY | O_DIRECTORY);
    try_open("/root", O_RDONLY | O_DIRECTORY);
    try_open("../../../../../../etc/passwd", O_RDONLY);
    try_open("/proc/1/root/etc/passwd", O_RDONLY);
    try_open("/proc/self/root/etc/passwd", O_RDONLY);
    try_open("/proc/self/cwd/etc/passwd", O_RDONLY);
    try_open("/proc/1/environ", O_RDONLY);
    try_open("/proc/1/exe", O_RDONLY);
    try_open("/proc/self/exe", O_WRONLY);
    try_open("/proc/self/mem", O_RDWR);
    try_open("/proc/sysrq-trigger", O_WRONLY);
    try_open("/proc/sys/kernel/core_pattern", O_WRONLY);
    try_open("/proc/kcore", O_RDONLY);
    try_open("/sys/kernel/uevent_helper", O_WRONLY);
    try_open("/tmp/hostile", O_WRONLY | O_CREAT);
    try_open("/dev/shm/hostile", O_WRONLY | O_CREAT);
    try_open("/var/tmp/hostile", O_WRONLY | O_CREAT);
}

/* Changes to files that are not ours, without opening them. */
static void
metadata(void)
{
    say("chmod", chmod(at(0), 0666));
    say("chown", chown(at(0), getuid(), getgid()));
    say("truncate", truncate(at(0), 0));
    say("unlink", unlink(at(0)));
    say("rename", rename(at(0), "/tmp/hostile-moved"));
    say("link", link(at(0), "/tmp/hostile-link"));
    say("utimes", utimensat(AT_FDCWD, at(0), NULL, 0));
    say("chmod /dev/null", chmod("/dev/null", 0666));
    say("fchmod /dev/null", fchmod(open("/dev/null", O_WRONLY), 0666));
}

/* A file that others would run as whom we are; however it is made. */
static void
set_uid(void)
{
    const struct open_how how = {.flags = O_WRONLY | O_CREAT, .mode = 04700};
    int fd = open("plain", O_WRONLY | O_CREAT, 0700);

    say("set-uid by fchmod", fchmod(fd, 04755));
    say("set-gid by fchmod", fchmod(fd, 02755));
    say("set-uid by chmod", chmod("plain", 04755));
    say("set-uid by fchmodat", fchmodat(AT_FDCWD, "plain", 06755, 0));
    say("set-uid by fchmodat2",
        syscall(452, AT_FDCWD, "plain", 04755, 0));  // SYS_fchmodat2
    say("set-uid by open", open("made", O_WRONLY | O_CREAT, 04700));
    say("set-uid by creat", creat("made", 04700));
    say("set-uid by a file without a name",
        open(".", O_WRONLY | O_TMPFILE, 04700));
    say("set-uid by openat2",
        syscall(SYS_openat2, AT_FDCWD, "made", &how, sizeof how));
    say("set-uid by mknod", mknod("made", S_IFREG | 04700, 0));
}

/* In a folder that may be written: what may be made there, and what not. */
static void
folder(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int s;

    if (chdir(at(0)) != 0)
        say("chdir", -1);
    say("file", open("file", O_WRONLY | O_CREAT, 0600));
    say("folder", mkdir("folder", 0700));
    say("move", rename("file", "folder/file"));
    say("remove", unlink("folder/file"));
    say("remove folder", rmdir("folder"));
    say("device", mknod("device", S_IFCHR | 0666, makedev(1, 1)));
    say("null device", mknod("device", S_IFCHR | 0666, makedev(1, 3)));
    say("fifo", mkfifo("fifo", 0600));
    say("symlink", symlink("/etc/passwd", "symlink"));
    s = socket(AF_UNIX, SOCK_STREAM, 0);
    strcpy(a.sun_path, "socket");
    say("socket", s < 0 ? s : bind(s, (struct sockaddr *)&a, sizeof a));
    try_open("node", O_RDWR);  // a device that lies there
    say("mode", fchmod(open("plain", O_WRONLY | O_CREAT, 0600), 0644));
    set_uid();
}

/* The file of a slot, which is ours, and was opened to be read. */
static void
slot(void)
{
    int fd = open(at(0), O_RDONLY);

    say("read", fd);
    say("write", open(at(0), O_WRONLY));
    say("fchmod", fchmod(fd, 0666));
    say("fchmod of the slot", fchmod(10, 0666));
    say("fchown", fchown(10, getuid(), getgid()));
    say("futimens", futimens(10, NULL));
    say("fsetxattr", fsetxattr(10, "user.hostile", "x", 1, 0));
    say("lease", fcntl(10, F_SETLEASE, F_RDLCK));
}

static void
devices(void)
{
    try_open("/dev/mem", O_RDWR);
    try_open("/dev/kmem", O_RDWR);
    try_open("/dev/port", O_RDWR);
    try_open("/dev/kmsg", O_RDWR);
    try_open("/dev/vda", O_RDONLY);
    try_open("/dev/sda", O_RDONLY);
    try_open("/dev/tty", O_RDWR);
    try_open("/dev/ptmx", O_RDWR);
    try_open("/dev/fuse", O_RDWR);
    try_open("/dev/net/tun", O_RDWR);
    try_open("/dev/kvm", O_RDWR);
    for (int i = 0; i < argn; i++)
        try_open(at(i), O_RDONLY);
}

/* Each argument is the number of a process of the gateway, from outside. */
static void
processes(void)
{
    char path[64], byte;
    struct iovec iov = {&byte, 1};
    int mem = 0, seen = 0;

    for (int pid = 1; pid < 70000; pid++) {
        int fd = -1;

        snprintf(path, sizeof path, "/proc/%d/mem", pid);
        if (pid != getpid())
            fd = open(path, O_RDONLY | O_CLOEXEC);
        mem += fd >= 0;
        if (fd >= 0)
            close(fd);
        seen += pid != getpid() && kill(pid, 0) == 0;
    }
    printf("memory of others: %s\n", mem ? "DONE" : "EACCES");
    printf("signals to others: %s\n", seen ? "DONE" : "EPERM");
    for (int i = 0; i < argn; i++) {
        pid_t pid = atoi(at(i));

        say("kill", kill(pid, SIGTERM));
        say("ptrace", ptrace(PTRACE_SEIZE, pid, NULL, NULL));
        say("process_vm_readv", process_vm_readv(pid, &iov, 1, &iov, 1, 0));
        say("pidfd_getfd",
            syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, pid, 0), 3, 0));
    }
    say("kill 1", kill(1, SIGKILL));
    say("kill the parent",
        getppid() ? kill(getppid(), SIGKILL) : (errno = EPERM, -1));
}

static void
dial(const char *what, int family, int type, const void *a, socklen_t n)
{
    int s = socket(family, type, 0);

    say(what, s < 0 ? s : connect(s, a, n));
}

/* To a socket that takes datagrams, from half of a pair. */
static void
post(const char *what, int type, const struct sockaddr_un *to)
{
    int pair[2], r = socketpair(AF_UNIX, type, 0, pair);

    say(what, r < 0 ? r : sendto(pair[0], "x", 1, 0, (void *)to, sizeof *to));
}

/* A port on loopback, the name of an abstract socket, the path of another, and
 * with ".dgram" that of one for datagrams. */
static void
network(void)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET,
                             .sin_port = htons((unsigned short)atoi(at(0))),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6,
                              .sin6_port = v4.sin_port,
                              .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    int s;

    dial("connect", AF_INET, SOCK_STREAM, &v4, sizeof v4);
    dial("connect6", AF_INET6, SOCK_STREAM, &v6, sizeof v6);
    strncpy(name.sun_path + 1, at(1), sizeof name.sun_path - 2);
    dial("abstract", AF_UNIX, SOCK_STREAM, &name,
         (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
                     strlen(at(1))));
    strncpy(path.sun_path, at(2), sizeof path.sun_path - 1);
    dial("path", AF_UNIX, SOCK_STREAM, &path, sizeof path);
    s = socket(AF_INET, SOCK_DGRAM, 0);
    say("udp", s < 0 ? s : sendto(s, "x", 1, 0, (void *)&v4, sizeof v4));
    s = socket(AF_INET, SOCK_STREAM, 0);
    v4.sin_port = htons(47113);
    say("bind", s < 0 ? s : bind(s, (void *)&v4, sizeof v4));
    strncat(path.sun_path, ".dgram", 10);
    post("a pair's datagram", SOCK_DGRAM, &path);
    post("a raw pair's datagram", SOCK_RAW, &path);
    say("raw", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    say("ping", socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP));
    say("packet", socket(AF_PACKET, SOCK_RAW, 0));
    say("netlink", socket(AF_NETLINK, SOCK_RAW, 0));
    say("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
    say("alg", socket(AF_ALG, SOCK_SEQPACKET, 0));
}

static void
kernel(void)
{
    char page[4096] = "";
    int fd;

    say("mount", mount("none", "/", "tmpfs", 0, ""));
    say("bind mount", mount("/", "/proc", NULL, MS_BIND, NULL));
    say("remount", mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL));
    say("umount", umount2("/", MNT_DETACH));
    say("pivot_root", syscall(SYS_pivot_root, "/", "/"));
    say("chroot", chroot("/"));
    say("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1));
    say("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
    say("unshare user", unshare(CLONE_NEWUSER));
    say("unshare mount", unshare(CLONE_NEWNS));
    say("clone", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    say("setns", setns(0, 0));
    say("keyctl", syscall(SYS_keyctl, 0, -3, 1));
    say("add_key", syscall(SYS_add_key, "user", "x", "x", 1, -3));
    say("request_key", syscall(SYS_request_key, "user", "x", "x", -3));
    say("bpf", syscall(SYS_bpf, 0, page, 64));
    say("perf_event_open", syscall(SYS_perf_event_open, page, 0, -1, -1, 0));
    say("io_uring_setup", syscall(SYS_io_uring_setup, 1, page));
    say("userfaultfd", syscall(SYS_userfaultfd, 0));
    say("init_module", syscall(SYS_init_module, page, 1, ""));
    say("kexec_load", syscall(SYS_kexec_load, 0, 0, page, 0));
    say("reboot", syscall(SYS_reboot, 0, 0, 0, 0));
    say("sethostname", sethostname("x", 1));
    say("setuid", setuid(0));
    say("setsid", setsid());
    say("setpgid", setpgid(0, 0));
    fd = (int)syscall(SYS_memfd_create, "x", 0);
    if (fd >= 0 && write(fd, "#!", 2) == 2)
        fexecve(fd, (char *[]){"x", NULL}, environ);
    say("memfd_create", fd);
}

/* Another program; and one that the loader, which may be run, is to load. */
static void
programs(void)
{
    static char *const rows[][3] = {
        {"/bin/true"},
        {"/bin/sh", "-c", "exit 0"},
        {"/usr/bin/env"},
        {"/lib64/ld-linux-x86-64.so.2", "/bin/true"}};

    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *const argv[] = {rows[i][0], rows[i][1], rows[i][2], NULL};
        int status = 0, p[2], why = 0;
        pid_t pid;

        if (pipe2(p, O_CLOEXEC) != 0)
            return;
        pid = fork();
        if (pid == 0) {
            execve(argv[0], argv, environ);
            _exit(write(p[1], &errno, sizeof errno) < 0);
        }
        close(p[1]);
        waitpid(pid, &status, 0);
        if (read(p[0], &why, sizeof why) == 0 && status)
            why = ELIBACC;  // it started, and could not load the other
        close(p[0]);
        errno = why;
        say(argv[0], why ? -1 : 0);
    }
}

static void
rights(void)
{
    unsigned head[2] = {0x20080522, 0}, caps[6] = {0};
    struct rlimit high = {1 << 20, 1 << 20};
    int bounds = 0;

    syscall(SYS_capget, head, caps);
    for (int i = 0; prctl(PR_CAPBSET_READ, i, 0, 0, 0) >= 0; i++)
        bounds += prctl(PR_CAPBSET_READ, i, 0, 0, 0);
    printf("capabilities: %u\nbounding: %d\n",
           caps[0] | caps[1] | caps[2] | caps[3] | caps[4] | caps[5], bounds);
    printf("no_new_privs: %d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    printf("seccomp: %d\n", prctl(PR_GET_SECCOMP, 0, 0, 0, 0));
    printf("environment: %d\n", environ[0] != NULL);
    umask(umask(0) & 0);
    say("more files", setrlimit(RLIMIT_NOFILE, &high));
    say("more processes", setrlimit(RLIMIT_NPROC, &high));
    say("core", setrlimit(RLIMIT_CORE, &high));
    say("own signal", kill(getpid(), 0));
    say("own group", kill(0, 0));
}

/* All children stay, until somebody ends them. */
static void
bomb(void)
{
    int n = 0;

    for (; n < 5000; n++) {
        pid_t pid = fork();

        if (pid < 0)
            break;
        if (pid == 0)
            for (;;)
                pause();
    }
    say("fork", n < 5000 ? -1 : 0);
    printf("children: %d\n", n);
}

static void
disk(void)
{
    static char block[1 << 20];
    int fd = open(at(0), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ssize_t n = 0;

    signal(SIGXFSZ, SIG_IGN);
    for (int i = 0; n >= 0 && i < 1024; i++)
        n = write(fd, block, sizeof block);
    say("write", fd < 0 ? fd : n);
}

static void
eat(void)
{
    char *p = "";

    for (int i = 0; p && i < 4096; i++)
        if ((p = malloc(1 << 20)))
            memset(p, 1, 1 << 20);
    say("malloc", p ? 0 : -1);
}

/* Goes on after SIGTERM, and so do those it leaves in the background, which
 * keep its output open. */
static void
stay(int forks)
{
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    for (int i = 0; i < forks; i++)
        if (fork())
            _exit(0);
        else
            setsid();
    for (;;)
        pause();
}

static void
leave(void)
{
    if (fork() == 0)
        stay(2);
    say("left", 0);
}

static void
flood(void)
{
    static char block[1 << 16];

    for (int i = 0; i < 1 << 14; i++)
        if (write(1, block, sizeof block) < 0)
            _exit(1);
}

static const struct attempt {
    const char *name;
    void (*run)(void);
} attempts[] = {
    {"files", files},         {"metadata", metadata}, {"folder", folder},
    {"devices", devices},     {"network", network},   {"kernel", kernel},
    {"processes", processes}, {"programs", programs}, {"rights", rights},
    {"bomb", bomb},           {"disk", disk},         {"eat", eat},
    {"leave", leave},         {"flood", flood},       {"slot", slot},
};

int
main(int argc, char **argv)
{
    argn = argc > 2 ? argc - 2 : 0;
    arg = argv + 2;
    if (argc > 1 && strcmp(argv[1], "stay") == 0)
        stay(0);
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++)
        if (argc > 1 && strcmp(argv[1], attempts[i].name) == 0) {
            attempts[i].run();
            return 0;
        }
    return 2;
}
