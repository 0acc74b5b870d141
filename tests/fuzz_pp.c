/* PROXY headers: whatever the bytes, no crash and no read past their end; what
 * is whole stays whole, and what it says can be written and read again. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

/* In pieces, a header is neither refused nor done before its last byte. */
static void
fuzz_pieces(struct str head)
{
    struct pp_ends ends;
    struct err e;
    size_t len;

    for (size_t n = 0; n < head.n; n++)
        must(pp_read((struct str){head.p, n}, &len, &ends, &e) == PP_MORE);
}

static void
fuzz_again(const struct pp_ends *ends)
{
    struct pp_tls tls = {S("v"), S("c"), S("s"), S("a"), S("n"), S(""), S("k")};
    struct pp_ends got[2];
    struct mem_buf b = {0};
    struct err e;
    size_t len;

    pp_write_v2(&b, *ends, &tls);
    must(pp_read((struct str){b.p, b.n}, &len, &got[0], &e) == PP_DONE);
    must(len == b.n);
    b.n = 0;
    pp_write_v1(&b, *ends);
    must(pp_read((struct str){b.p, b.n}, &len, &got[1], &e) == PP_DONE);
    must(len == b.n && memcmp(&got[0], &got[1], sizeof *got) == 0);
    mem_buf_free(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str in = {(const char *)data, size};
    struct pp_ends ends;
    struct err e;
    size_t len;

    switch (pp_read(in, &len, &ends, &e)) {
    case PP_DONE:
        must(len > 0 && len <= size && len <= PP_MAX);
        fuzz_pieces((struct str){in.p, len});
        fuzz_again(&ends);
        break;
    case PP_MORE:
        must(size < PP_MAX);
        break;
    case PP_BAD:
        break;
    }
    return 0;
}
