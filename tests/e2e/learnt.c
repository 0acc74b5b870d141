/* What `gateway exec --learn` is tried on.
 *
 *   learnt threads FILE...   open each in a thread of its own, all at once
 *   learnt fork DIR NAME     a child of a child opens NAME below DIR, by a
 *                            descriptor; another one by a relative path
 *   learnt write DIR         make, rename and remove files and folders there
 *   learnt untraced FILE     a child that no tracer gets; its pid into FILE
 *   learnt forbidden         calls that the cage refuses
 *   learnt stop              stops itself, and stays so
 *   learnt leave FILE        ends, and leaves a child that ignores SIGTERM
 *   learnt starts PROGRAM    a child that executes it
 *   learnt signals           gets two of its own, and counts them
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static pthread_barrier_t all;
static volatile int signals;

static void *
open_it(void *path)
{
    int fd = open(path, O_RDONLY);

    pthread_barrier_wait(&all);
    return (void *)(long)(fd < 0);
}

static int
threads(int n, char **paths)
{
    pthread_t t[16];
    void *bad;
    int sum = 0;

    pthread_barrier_init(&all, NULL, (unsigned)n);
    for (int i = 0; i < n; i++)
        if (pthread_create(&t[i], NULL, open_it, paths[i]) != 0)
            return 1;
    for (int i = 0; i < n; i++) {
        pthread_join(t[i], &bad);
        sum += bad != NULL;
    }
    return sum;
}

static int
forks(const char *dir, const char *name)
{
    int status = 1, fd = open(dir, O_PATH | O_DIRECTORY);
    char text[4096];

    if (fork() == 0) {
        if (fork() == 0)
            _exit(openat(fd, name, O_RDONLY) < 0);
        wait(&status);
        _exit(status != 0);
    }
    wait(&status);
    if (vfork() == 0) {
        snprintf(text, sizeof text, "%s/../%s", dir, strrchr(dir, '/') + 1);
        _exit(chdir(text) != 0 || open(name, O_RDONLY) < 0);
    }
    if (status == 0)
        wait(&status);
    return status != 0;
}

static int
writes(const char *dir)
{
    int fd;

    if (chdir(dir) != 0)
        return 1;
    fd = open("a", O_RDWR | O_CREAT | O_EXCL, 0600);
    return fd < 0 || mkdir("d", 0700) != 0 || rename("a", "d/b") != 0 ||
           link("d/b", "c") != 0 || truncate("c", 5) != 0 ||
           unlink("c") != 0 || unlink("d/b") != 0 || rmdir("d") != 0;
}

static void
note(const char *file, long pid)
{
    FILE *f = fopen(file, "w");

    fprintf(f, "%ld\n", pid);
    fclose(f);
}

static int
untraced(const char *file)
{
    long pid = syscall(SYS_clone, CLONE_UNTRACED | SIGCHLD, 0, 0, 0, 0);

    if (pid == 0)
        for (;;)
            pause();
    note(file, pid);
    return pid < 0;
}

static int
leave(const char *file)
{
    long pid = fork();

    if (pid == 0) {
        signal(SIGTERM, SIG_IGN);
        for (;;)
            pause();
    }
    note(file, pid);
    return 0;
}

static int
starts(char *program)
{
    char *argv[] = {program, "hi", NULL}, *none[] = {NULL};
    int status = 1;

    if (fork() == 0) {
        execve(program, argv, none);
        _exit(127);
    }
    wait(&status);
    return status != 0;
}

static int
forbidden(void)
{
    unshare(0);  // whatever it answers
    return setpgid(0, 0) != 0;
}

static void
count(int sig)
{
    (void)sig;
    signals++;
}

int
main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";

    if (strcmp(what, "threads") == 0)
        return threads(argc - 2, argv + 2);
    if (strcmp(what, "fork") == 0)
        return forks(argv[2], argv[3]);
    if (strcmp(what, "write") == 0)
        return writes(argv[2]);
    if (strcmp(what, "untraced") == 0)
        return untraced(argv[2]);
    if (strcmp(what, "leave") == 0)
        return leave(argv[2]);
    if (strcmp(what, "starts") == 0)
        return starts(argv[2]);
    if (strcmp(what, "forbidden") == 0)
        return forbidden();
    if (strcmp(what, "stop") == 0)
        return raise(SIGSTOP);
    if (strcmp(what, "signals") == 0) {
        signal(SIGUSR1, count);
        raise(SIGUSR1);
        raise(SIGUSR1);
        return signals != 2;
    }
    return 2;
}
