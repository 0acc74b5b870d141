/* The program that the tests let the gateway run, and that testifies.
 *
 *   witness record FILE [ARG...]   append one JSON line to FILE: arguments (as
 *                                  hex), environment, descriptors, ids, limits;
 *                                  print the same line on stdout
 *   witness stubborn FILE          ignore SIGTERM, so does a child in (if it
 *                                  can) another session; write pids, stay
 *   witness orphan FILE            leave such a child behind, end at once
 *   witness spew N                 N bytes to stdout
 *   witness exit N                 end with that code
 *   witness wait SECONDS           sleep
 *   witness abort                  die by a signal
 *   witness show PATH              open that path, copy it to stdout
 *   witness hold N                 N children that hold 10 MiB each, at once
 *   witness fork N                 up to N children at once; say how many
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

extern char **environ;

static char line[262144];
static size_t used;

static void
put(const char *s)
{
    size_t n = strlen(s);

    if (used + n < sizeof line) {
        memcpy(line + used, s, n);
        used += n;
    }
}

static void
put_hex(const char *s)
{
    char two[3];

    put("\"");
    for (; *s; s++) {
        snprintf(two, sizeof two, "%02x", (unsigned char)*s);
        put(two);
    }
    put("\"");
}

static void
put_strings(const char *name, char **v)
{
    put("\"");
    put(name);
    put("\":[");
    for (int i = 0; v[i]; i++) {
        if (i)
            put(",");
        put_hex(v[i]);
    }
    put("],");
}

static void
put_number(const char *name, long long value)
{
    char text[64];

    snprintf(text, sizeof text, "\"%s\":%lld,", name, value);
    put(text);
}

static void
put_fds(void)
{
    char text[32];
    DIR *d = opendir("/proc/self/fd");
    struct dirent *e;

    put("\"fds\":[");
    if (d) {
        int first = 1;
        while ((e = readdir(d)) != NULL) {
            if (e->d_name[0] == '.' || atoi(e->d_name) == dirfd(d))
                continue;
            snprintf(text, sizeof text, "%s%d", first ? "" : ",",
                     atoi(e->d_name));
            put(text);
            first = 0;
        }
        closedir(d);
    }
    put("],");
}

static void
put_limit(const char *name, int which)
{
    struct rlimit r;

    if (getrlimit(which, &r) == 0)
        put_number(name, r.rlim_cur == RLIM_INFINITY ? -1
                                                     : (long long)r.rlim_cur);
}

static int
record(const char *file, char **argv)
{
    sigset_t set;
    char cwd[4096] = "";
    int fd;

    put("{");
    put_strings("argv", argv);
    put_strings("env", environ);
    put_fds();
    put_number("pid", getpid());
    put_number("group", getpgrp());
    put_number("session", getsid(0));
    put_number("uid", getuid());
    put_number("euid", geteuid());
    put_number("gid", getgid());
    put_number("groups", getgroups(0, NULL));
    put_number("no_new_privs", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    sigprocmask(SIG_SETMASK, NULL, &set);
    put_number("blocked", sigismember(&set, SIGTERM) ||
                              sigismember(&set, SIGCHLD) ||
                              sigismember(&set, SIGPIPE));
    put_number("sigpipe_ignored", signal(SIGPIPE, SIG_DFL) == SIG_IGN);
    put_limit("core", RLIMIT_CORE);
    put_limit("files", RLIMIT_NOFILE);
    put_limit("memory", RLIMIT_AS);
    put_limit("cpu", RLIMIT_CPU);
    put_limit("file_size", RLIMIT_FSIZE);
    if (getcwd(cwd, sizeof cwd))
        put("\"cwd\":"), put_hex(cwd);
    else
        put("\"cwd\":null");
    put("}\n");
    fd = open(file, O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (fd < 0 || write(fd, line, used) != (ssize_t)used) {
        perror(file);
        return 9;
    }
    close(fd);
    return write(1, line, used) == (ssize_t)used ? 0 : 8;
}

static void
linger(const char *file, const char *who)
{
    char text[64];
    int fd, n;

    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    n = snprintf(text, sizeof text, "{\"%s\":%d}\n", who, (int)getpid());
    fd = open(file, O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (fd < 0 || write(fd, text, (size_t)n) != n)
        _exit(9);
    close(fd);
    for (;;)
        pause();
}

static int
stubborn(const char *file, int stay)
{
    pid_t pid = fork();

    if (pid == 0) {
        if (fork() == 0) {
            setsid();
            linger(file, "grandchild");
        }
        setpgid(0, 0);
        linger(file, "child");
    }
    if (stay)
        linger(file, "parent");
    for (int tries = 0; tries < 200; tries++) { /* both have written */
        char seen[256] = "";
        int fd = open(file, O_RDONLY);
        if (fd >= 0 && read(fd, seen, sizeof seen - 1) > 0 &&
            strstr(seen, "grandchild") && strstr(seen, "\"child"))
            break;
        if (fd >= 0)
            close(fd);
        usleep(10000);
    }
    return 0;
}

static int
spew(long count)
{
    char block[4096];

    memset(block, 'x', sizeof block);
    while (count > 0) {
        ssize_t n = write(1, block, count < 4096 ? (size_t)count : 4096);
        if (n <= 0)
            return 7;
        count -= n;
    }
    return 0;
}

static int
show(const char *path)
{
    char block[4096];
    int fd = open(path, O_RDONLY);
    ssize_t n;

    if (fd < 0) {
        perror(path);
        return 6;
    }
    while ((n = read(fd, block, sizeof block)) > 0)
        if (write(1, block, (size_t)n) != n)
            return 7;
    return 0;
}

/* Each child says a byte when it is there, and stays until we have ended. */
static int
children(int most, size_t bytes)
{
    int n = 0, said[2], stay[2];
    char c;

    if (pipe(said) != 0 || pipe(stay) != 0)
        return 5;
    for (pid_t pid = 1; n < most && pid > 0; n += pid > 0) {
        pid = fork();
        if (pid == 0) {
            char *p = malloc(bytes);

            close(stay[1]);
            if (!p)
                _exit(1);
            for (size_t i = 0; i < bytes; i += 512)
                p[i] = 1;
            if (write(said[1], "", 1) != 1 || read(stay[0], &c, 1) != 0)
                _exit(1);
            _exit(0);
        }
    }
    for (int i = 0; i < n; i++)
        if (read(said[0], &c, 1) != 1)
            return 4;
    printf("%d\n", n);
    return 0;
}

int
main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    const char *arg = argc > 2 ? argv[2] : "";

    if (!strcmp(verb, "record"))
        return record(arg, argv);
    if (!strcmp(verb, "stubborn"))
        return stubborn(arg, 1);
    if (!strcmp(verb, "orphan"))
        return stubborn(arg, 0);
    if (!strcmp(verb, "spew"))
        return spew(atol(arg));
    if (!strcmp(verb, "exit"))
        return atoi(arg);
    if (!strcmp(verb, "wait"))
        return (int)sleep((unsigned)atoi(arg));
    if (!strcmp(verb, "abort"))
        abort();
    if (!strcmp(verb, "show"))
        return show(arg);
    if (!strcmp(verb, "hold"))
        return children(atoi(arg), 10 << 20);
    if (!strcmp(verb, "fork"))
        return children(atoi(arg), 1);
    fprintf(stderr, "witness: what is %s?\n", verb);
    return 2;
}
