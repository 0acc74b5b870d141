/* Fuzzes rooms 20 and 22: what a hostile worker may send the broker. The
 * command table is a real one; its places are all taken, so that every run is
 * checked, queued and given its arguments, but no program is started. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

static const char fuzz_cfg[] =
    "{\"commands\":["
    "{\"name\":\"true\",\"program\":\"/bin/true\",\"args\":[],\"slots\":[],"
    "\"at\":\"f:1\"},"
    "{\"name\":\"cat\",\"program\":\"/bin/cat\",\"args\":[{\"text\":\"-A\"},"
    "{\"slot\":\"a\"},{\"slot\":\"b\",\"prefix\":\"--b=\"}],\"slots\":["
    "{\"name\":\"a\",\"schema\":{\"type\":\"string\",\"pattern\":\"^[a-z-]+$\"}"
    "},"
    "{\"name\":\"b\",\"schema\":{\"type\":\"integer\"},\"secret\":true}],"
    "\"queue\":4,\"at\":\"f:2\"},"
    "{\"name\":\"tail\",\"program\":\"/bin/cat\",\"args\":[{\"slot\":\"f\"}],"
    "\"slots\":[{\"name\":\"f\",\"schema\":{\"type\":\"string\"},\"file\":"
    "{\"below\":\"/usr\",\"stdin\":false}}],\"at\":\"f:3\"}]}";

static uv_loop_t fuzz_loop;
static struct exec_broker fuzz_broker;

static void
fuzz_begin(void)
{
    struct exec_broker *b = &fuzz_broker;
    struct err e;

    log_out.fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
    must(log_out.fd >= 0 && uv_loop_init(&fuzz_loop) == 0);
    if (!exec_broker_init(b, &fuzz_loop, geteuid(), str_of(fuzz_cfg), &e)) {
        fprintf(stderr, "%s\n", e.msg);
        abort();
    }
    for (size_t i = 0; i < b->cfg.commands_n; i++)
        b->commands[i].running = b->cfg.commands[i].concurrency;
}

/* What would have been started: one argument per declared one, no more. */
static void
fuzz_check_run(struct exec_run *r)
{
    const struct cfg_command *c = r->command->cfg;
    struct exec_start s = {.stdin_file = -1, .theirs = {-1, -1, -1}};
    struct err e;
    char **argv;
    size_t n = 0;

    if (r->state != EXEC_WAITING)
        return;
    if (exec_files_open(r, &s, &e)) {
        argv = exec_argv(r, &s);
        while (argv[n])
            n++;
        must(n == c->args_n + 1 &&
             !strcmp(argv[0], r->command->cfg->program.p));
        for (size_t i = 1; i < n; i++)
            must(argv[i][0] && (argv[i][0] != '-' || !c->args[i - 1].is_slot ||
                                c->args[i - 1].text.n));
    }
    exec_start_free(&s);
}

static void
fuzz_feed(struct exec_worker *w, const uint8_t *data, size_t n)
{
    size_t step = n ? 1 + data[0] * 8u : 1, take;
    struct err e;

    for (size_t i = 0; i < n && !w->chan.closing; i += take) {
        take = n - i < step ? n - i : step;
        mem_buf_add(&w->chan.in, data + i, take);
        if (!msg_chan_feed(&w->chan, &e)) {
            must(e.msg[0]);
            return;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct exec_broker *b = &fuzz_broker;
    struct exec_worker *w;
    struct exec_run *r;
    struct err e;
    int fd[2];

    if (!b->magic)
        fuzz_begin();
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) == 0);
    w = exec_worker_new(b, fd[0], &e);
    must(w != NULL);
    fuzz_feed(w, data, n);
    for (r = b->runs; r; r = r->next)
        fuzz_check_run(r);
    msg_chan_close(&w->chan);
    while (b->workers_n || b->runs)
        uv_run(&fuzz_loop, UV_RUN_NOWAIT);
    uv_run(&fuzz_loop, UV_RUN_NOWAIT);  // the last handles
    close(fd[1]);
    for (size_t i = 0; i < b->cfg.commands_n; i++)
        must(!b->commands[i].waiting && !b->commands[i].first &&
             b->commands[i].running == b->cfg.commands[i].concurrency);
    return 0;
}
