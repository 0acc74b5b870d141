/* refuse NAME[,NAME...] PROGRAM ARG...: runs a program as on a machine that
 * lacks something: the system calls of each name answer ENOSYS, by a seccomp
 * filter. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAX = 32 };

static const struct {
    const char *name;
    unsigned call;
    int first;  // of its arguments; -1: any
} calls[] = {
    {"landlock", 444, -1},  // the same number on every machine since 5.x
    {"landlock", 446, -1},
    {"close_range", 436, -1},
    {"execveat", SYS_execveat, -1},
    {"seccomp", SYS_seccomp, -1},
    {"unshare", SYS_unshare, -1},
    {"clone3", 435, -1},
    {"no_new_privs", SYS_prctl, PR_SET_NO_NEW_PRIVS},
};

static struct sock_filter code[5 * MAX];
static unsigned short n;

static void
add(unsigned short op, unsigned k, unsigned char yes, unsigned char no)
{
    code[n++] = (struct sock_filter){op, yes, no, k};
}

static void
refuse(unsigned call, int first)
{
    add(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr), 0, 0);
    add(BPF_JMP | BPF_JEQ | BPF_K, call, 0, first < 0 ? 1 : 3);
    if (first >= 0) {
        add(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args), 0,
            0);
        add(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)first, 0, 1);
    }
    add(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS, 0, 0);
}

int
main(int argc, char **argv)
{
    struct sock_fprog filter;
    int known = 0;

    if (argc < 3)
        return 2;
    for (char *name = strtok(argv[1], ","); name; name = strtok(NULL, ",")) {
        known = 0;
        for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
            if (strcmp(calls[i].name, name) == 0) {
                refuse(calls[i].call, calls[i].first);
                known = 1;
            }
        if (!known || n > 4 * MAX) {
            fprintf(stderr, "refuse: what is %s?\n", name);
            return 2;
        }
    }
    add(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
    filter.len = n;
    filter.filter = code;
    // root may do this as it is; whoever else, only without set-uid programs
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0 &&
        (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)) {
        perror("refuse: seccomp");
        return 1;
    }
    execv(argv[2], argv + 2);
    perror(argv[2]);
    return 127;
}
