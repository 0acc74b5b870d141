/* Revocation lists: whatever the bytes, no crash; and in what is read, every
 * entry is found again, in order, and says when and why. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

static void
fuzz_list(const struct pki_crl *c)
{
    struct str last = {0};

    must(c->name.n && c->number.n && c->number.n <= 20);
    must(c->this_update <= c->next_update && !(c->users && c->cas));
    for (size_t i = 0; i < c->revoked_n; i++) {
        struct str serial = pki_crl_serial(c->revoked[i]);

        must(serial.n && serial.n <= 20 && pki_crl_find(c, serial));
        must(!last.n || pki_number_cmp(last, serial) <= 0);
        last = serial;
    }
}

/* The set's questions, of a certificate that has the first serial number. */
static void
fuzz_set(struct pki_crls *s, struct str der)
{
    struct pki_cert issuer = {.der = der, .subject = s->v[0].issuer};
    struct pki_cert cert = {.serial = S("\x05")};
    struct err e;

    if (s->v[0].revoked_n)
        cert.serial = pki_crl_serial(s->v[0].revoked[0]);
    if (s->v[0].points.p)
        cert.ext[PKI_EXT_CRL_POINTS] = der;
    must(!pki_crl_check(s, &issuer, &cert, s->v[0].this_update, &e));
    must(s->last == PKI_CRL_MISSING || s->last == PKI_CRL_UNUSABLE);
    // as if the issuer had signed it
    for (size_t i = 0; i < PKI_CRL_ISSUERS; i++)
        for (size_t k = 0; s->seen[i].v && k < s->seen[i].n; k++)
            s->seen[i].v[k].good = s->seen[i].v[k].known = true;
    pki_crl_check(s, &issuer, &cert, s->v[0].this_update, &e);
}

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str in = {(const char *)data, size};
    struct mem_arena *a = mem_arena_new(64 << 20);
    struct pki_crls *s = pki_crls_new();
    struct pki_crl c;
    struct err e;

    if (pki_crl_parse(a, in, &c, &e))
        fuzz_list(&c);
    if (pki_crls_add(s, S("f"), in, &e) && pki_crls_settle(s, &e)) {
        must(s->n > 0);
        fuzz_set(s, in);
    }
    pki_crls_free(s);
    mem_arena_free(a);
    return 0;
}
