/* Chains: whatever the bytes, no crash and bounded work; and a path that is
 * found runs from the leaf to an anchor, each signed by the next. The input is
 * certificates, each behind its length in two bytes: the anchor, the leaf, what
 * is presented with it. All of it is also read as name constraints. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

enum { FUZZ_NOW = 1800000000 };  // within the seeds' dates

static size_t
fuzz_cut(struct str in, struct str v[PKI_CHAIN_MAX + 1])
{
    size_t n = 0;

    while (n <= PKI_CHAIN_MAX && in.n >= 2) {
        size_t len = pki_byte(in, 0) << 8 | pki_byte(in, 1);

        in = str_from(in, 2);
        len = len < in.n ? len : in.n;
        v[n++] = (struct str){in.p, len};
        in = str_from(in, len);
    }
    return n;
}

static void
fuzz_path(const struct pki_path *p, struct str leaf, struct str anchor)
{
    struct pki_cert below, above;
    struct err e;

    must(p->n >= 1 && str_eq(p->issuer[p->n - 1], anchor));
    must(p->from <= FUZZ_NOW && FUZZ_NOW <= p->until);
    must(pki_cert_parse(leaf, &below, &e));
    for (size_t i = 0; i < p->n; i++) {
        must(pki_cert_parse(p->issuer[i], &above, &e) && above.ca);
        must(pki_signature_check(below.algorithm, below.tbs, below.signature,
                                 above.spki, &e));
        below = above;
    }
}

static void
fuzz_verify(struct str *v, size_t n)
{
    struct mem_arena *a = mem_arena_new(16 << 20);
    struct pki_anchors t = {.arena = a,
                            .v = mem_alloc(a, sizeof(struct pki_link))};
    struct pki_rules rules;
    struct pki_path path;
    struct err e;

    if (pki_anchor_add(&t, v[0], 0, &e)) {
        for (int any = 0; any < 2; any++) {
            pki_rules_init(&rules, any ? PKI_SERVER : PKI_CLIENT, &t, any,
                           PKI_CHAIN_MAX);
            if (pki_verify(&rules, v[1], v + 2, n - 2, FUZZ_NOW, &path, &e))
                fuzz_path(&path, v[1], v[0]);
        }
    }
    mem_arena_free(a);
}

static void
fuzz_constraints(struct str in)
{
    struct mem_arena *a = mem_arena_new(16 << 20);
    struct pki_subtrees *t = mem_alloc(a, sizeof *t);
    static const struct pki_general_name names[] = {
        {PKI_SAN_DNS, S("a.example.org")},   {PKI_SAN_DNS, S("*.example.org")},
        {PKI_SAN_EMAIL, S("a@example.org")}, {PKI_SAN_EMAIL, S("a@b@c")},
        {PKI_SAN_URI, S("spiffe://a/b")},    {PKI_SAN_URI, S("https://u@h:1/")},
        {PKI_SAN_URI, S("urn:a")},           {PKI_SAN_IP, S("\x7f\0\0\1")},
        {PKI_SAN_DIRECTORY, S("")},          {PKI_SAN_OTHER, S("x")},
    };
    struct str canon;
    struct err e;

    if (!pki_subtrees_read(a, in, t))
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            pki_name_allowed(&names[i], t);
    if (pki_name_canon(a, in, "name", &canon, &e))
        must(pki_name_equal(in, in));
    mem_arena_free(a);
}

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str in = {(const char *)data, size}, v[PKI_CHAIN_MAX + 1];
    size_t n = fuzz_cut(in, v);

    if (n >= 2)
        fuzz_verify(v, n);
    fuzz_constraints(in);
    return 0;
}
