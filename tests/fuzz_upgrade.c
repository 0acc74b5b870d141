/* What an upstream answers to an upgrade: a tunnel begins only where 101 agrees
 * to what was asked for, however the bytes come; all that follows is handed up,
 * and nothing else. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

enum { FUZZ_MAX = 8192 };

struct fuzz_answer {
    struct mem_arena *arena;
    struct h1_client client;
    struct mem_buf body;
    int status;
    bool upgraded, bad;
};

static void
fuzz_on_head(void *data, struct h1_answer *a)
{
    struct fuzz_answer *f = data;

    must(!f->status);
    f->status = a->status;
    f->upgraded = a->upgraded;
    must((a->status == 101) == a->upgraded);
    if (!a->upgraded)
        return;
    must(!a->chunked && a->length < 0 && !a->keep);
    must(hdr_count(&a->headers, S("upgrade")) == 1);
    must(str_eqi(*hdr_get(&a->headers, S("upgrade")), S("websocket")));
}

static void
fuzz_on_body(void *data, const char *p, size_t n)
{
    struct fuzz_answer *f = data;

    must(n && f->status);
    mem_buf_add(&f->body, p, n);
}

static const struct h1_client_ops fuzz_ops = {.on_head = fuzz_on_head,
                                              .on_body = fuzz_on_body};

/* In two reads, the second of which begins at `at`; 0: one byte each. */
static void
fuzz_run(struct fuzz_answer *f, struct str in, size_t at)
{
    struct err e;
    size_t n;

    *f = (struct fuzz_answer){.arena = mem_arena_new(1 << 20)};
    h1_client_init(&f->client, &fuzz_ops, f, f->arena, false);
    f->client.upgrade = S("websocket");
    for (size_t i = 0; i < in.n && !f->bad && !f->client.done; i += n) {
        char *copy;

        n = !at ? 1 : i ? in.n - i : at;
        copy = mem_xmalloc(n);
        memcpy(copy, in.p + i, n);
        f->bad = !h1_client_feed(&f->client, copy, n, &e);
        free(copy);
    }
    if (f->upgraded)  // all that follows the head, and no byte more
        must(!f->bad && f->body.n < in.n &&
             memcmp(f->body.p ? f->body.p : "", in.p + in.n - f->body.n,
                    f->body.n) == 0);
}

static void
fuzz_end(struct fuzz_answer *f)
{
    h1_client_fini(&f->client);
    mem_arena_free(f->arena);
    mem_buf_free(&f->body);
}

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    struct fuzz_answer whole, two, bytes;
    struct str in;

    if (n < 3 || n > FUZZ_MAX)
        return 0;
    in = (struct str){(const char *)p + 2, n - 2};
    fuzz_run(&whole, in, in.n);
    fuzz_run(&two, in, 1 + (p[0] * 256u + p[1]) % in.n);
    fuzz_run(&bytes, in, 0);
    must(whole.status == two.status && whole.status == bytes.status);
    must(whole.upgraded == two.upgraded && whole.upgraded == bytes.upgraded);
    must(whole.body.n == two.body.n && whole.body.n == bytes.body.n);
    fuzz_end(&whole);
    fuzz_end(&two);
    fuzz_end(&bytes);
    return 0;
}
