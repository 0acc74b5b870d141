/* Fuzzes room 15, the client side: what an upstream answers. The first byte
 * says whether HEAD was asked and where a second read begins. However the bytes
 * come, the answer is the same; a body is never longer than announced. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"
#include "fake_h1.inc"

enum { FUZZ_MAX = 8192 };

static void
fuzz_check(const struct fake_answer *f, bool to_head)
{
    const struct h1_answer *a = &f->client.answer;
    struct str events = fake_text(&f->events), head, body;

    if (!f->client.in_body) {
        must(str_eq(events, S("bad")));  // nothing went up
        return;
    }
    must(a->status >= 200 && a->status <= 599);
    must(!a->chunked || a->length < 0);
    must(a->headers.n <= H1_ANSWER_FIELDS);
    for (unsigned i = 0; i < a->headers.n; i++)
        must(hdr_name_ok(a->headers.v[i].name) &&
             hdr_value_ok(a->headers.v[i].value));
    must(f->client.interims <= H1_INTERIM_MAX);
    must(!f->in_body || (!to_head && a->status != 204 && a->status != 304));
    if (!str_ends(events, S("\ndone keep")) || !f->in_body || a->length < 0)
        return;
    must(str_cut(events, '\n', &head, &body));
    must(body.n == 2 + (size_t)a->length + sizeof "\ndone keep" - 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    struct fake_answer whole, two, bytes;
    bool to_head;
    struct str in;
    size_t at;

    if (n < 3 || n > FUZZ_MAX)
        return 0;
    to_head = p[0] & 1;
    in = (struct str){(const char *)p + 2, n - 2};
    at = 1 + (p[0] / 2 * 256u + p[1]) % in.n;
    fake_answer_run(&whole, in, in.n, to_head);
    fake_answer_run(&two, in, at, to_head);
    fake_answer_run(&bytes, in, 0, to_head);
    fuzz_check(&whole, to_head);
    must(str_eq(fake_text(&whole.events), fake_text(&two.events)));
    must(str_eq(fake_text(&whole.events), fake_text(&bytes.events)));
    fake_answer_fini(&whole);
    fake_answer_fini(&two);
    fake_answer_fini(&bytes);
    return 0;
}
