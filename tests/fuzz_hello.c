/* The first bytes of a connection: whatever they are, no crash; what is taken
 * holds a name that may stand in a log line, and lists of whole numbers. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

static void
fuzz_list(struct str list)
{
    must(list.n % 2 == 0);
    for (unsigned n = 0; n < 65536; n += 4099)
        tls_list_has(list, n);
}

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tls_site sites[] = {
        {.name = S("")}, {.name = S("a.example")}, {.name = S("*.b.example")}};
    static const struct cfg_listener cfg = {.sni_strict = true};
    static const struct tls_ctx ctx = {
        .cfg = &cfg, .sites = sites, .sites_n = 3};
    struct str in = {(const char *)data, size}, body;
    struct mem_buf join = {0};
    struct tls_hello h;
    const char *why = NULL;
    enum tls_found found = tls_hello_find(in, &join, &body, &why);

    must(found != TLS_BAD || why);
    must(mem_buf_len(&join) <= size);
    if (found == TLS_WHOLE) {
        must(body.n <= TLS_HELLO_MAX);
        if (!tls_hello_parse(body, &h)) {
            must(strlen(h.name) <= TLS_NAME_MAX &&
                 str_no_control(str_of(h.name)) && !strchr(h.name, '"'));
            fuzz_list(h.suites);
            fuzz_list(h.sigs);
            fuzz_list(h.groups);
            tls_site_for(&ctx, h.name);
            for (size_t i = 0; i < sizeof tls_kinds / sizeof *tls_kinds; i++)
                tls_kind_fits(&tls_kinds[i], &h);
        }
    }
    mem_buf_free(&join);
    return 0;
}
