/* Certificates and PEM files: whatever the bytes, no crash; and what is read
 * holds nothing that could leave its place in a log line or a header. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

static void
fuzz_safe(struct str s)
{
    must(str_utf8(s) && !pki_has_control(s));
}

static void
fuzz_identity(const struct pki_identity *id)
{
    size_t quotes = 0;

    for (size_t i = 0; i < id->subject_n; i++) {
        fuzz_safe(id->subject[i].type);
        fuzz_safe(id->subject[i].value);
    }
    for (size_t i = 0; i < id->uri.n; i++)
        fuzz_safe(id->uri.v[i]);
    for (size_t i = 0; i < id->dns.n; i++)
        fuzz_safe(id->dns.v[i]);
    for (size_t i = 0; i < id->email.n; i++)
        fuzz_safe(id->email.v[i]);
    fuzz_safe(id->dn);
    fuzz_safe(id->issuer_dn);
    fuzz_safe(id->client_cert);
    fuzz_safe(id->xfcc);
    must(pki_ascii(id->xfcc) && id->not_before <= id->not_after);
    must(!memchr(id->dn.p, '"', id->dn.n));
    for (size_t i = 0; i < id->xfcc.n; i++)
        quotes += id->xfcc.p[i] == '"';
    must(quotes >= 2 && quotes % 2 == 0);
    must(id->spiffe.n == 0 || id->uri.n == 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str in = {(const char *)data, size}, *v;
    struct mem_arena *a = mem_arena_new(16 << 20);
    struct pki_identity *id;
    char line[256];
    struct err e;
    size_t n;

    pki_describe(in, line, sizeof line);
    if (pki_identity_parse(in, &in, 1, &id, &e)) {
        fuzz_identity(id);
        pki_identity_put(id);
    }
    if (pki_pem_read(a, in, "CERTIFICATE", &v, &n, &e))
        must(n > 0 && v[0].n > 0);
    mem_arena_free(a);
    return 0;
}
