/* Fuzzes room 15, the server side. The first byte says who answers, and where
 * a second read begins; the rest is what a client sends. However the bytes
 * come, the same happens; what is refused hands up nothing more (fake_h1.inc
 * checks it); nothing hangs. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"
#include "fake_h1.inc"

enum { FUZZ_MAX = 8192 };

static void
fuzz_run(struct fake *f, uint8_t how, struct str in, size_t at)
{
    fake_init(f, (enum fake_when)(how % (FAKE_HOLD + 1)));
    f->limits.requests = 9;
    f->bad_waits = how & 0x20;
    if (how & 0x40)
        h1_server_stop(f->h1);
    fake_feed(f, in, at);
}

static void
fuzz_same(const struct fake *f, const struct fake *g)
{
    must(str_eq(fake_text(&f->events), fake_text(&g->events)));
    must(f->cut || str_eq(fake_text(&f->wire), fake_text(&g->wire)));
    must(f->closed == g->closed && f->cut == g->cut);
    must(f->aborts == g->aborts);
}

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    struct fake whole, two, bytes;
    struct str in;
    size_t at;

    if (n < 3 || n > FUZZ_MAX)
        return 0;
    in = (struct str){(const char *)p + 2, n - 2};
    at = 1 + (p[0] / 8 * 256u + p[1]) % in.n;
    log_out.level = LOG_FATAL;
    fuzz_run(&whole, p[0], in, in.n);
    fuzz_run(&two, p[0], in, at);
    fuzz_run(&bytes, p[0], in, 0);
    fuzz_same(&whole, &two);
    fuzz_same(&whole, &bytes);
    if (p[0] & 0x80)  // the deadline passes, wherever it is
        h1_server_on_time(two.h1);
    fake_turn(&two);
    if (whole.req && whole.when == FAKE_HOLD && !whole.cut) {
        req_read(whole.req, true);
        fake_turn(&whole);
    }
    fake_fini(&whole);
    fake_fini(&two);
    fake_fini(&bytes);
    return 0;
}
