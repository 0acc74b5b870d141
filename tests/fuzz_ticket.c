/* The input three times over: as a ticket, which must not open; as changes to
 * one that we sealed, which must not open either; as a file of ticket keys. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

enum { FUZZ_STATE = 140, FUZZ_TICKET = 64 + FUZZ_STATE + TLS_NOTE };

static bool
fuzz_open(const struct tls *t, const unsigned char *p, size_t n)
{
    unsigned char copy[1024];

    if (n < 64 || n > sizeof copy)
        return false;
    memcpy(copy, p, n);
    return tls_ticket_unseal(t, copy, copy + 16, copy + 32, copy + 64,
                             (int)n - 64);
}

/* name, iv, mac, state and note; sealed as tls_ticket_seal() does it. */
static void
fuzz_seal(const struct tls *t, unsigned char *p)
{
    const struct tls_seal *s = &t->site->ring.seals[0];
    unsigned char key[32];

    memset(p, 0, FUZZ_TICKET);
    memcpy(p, s->name, 16);
    memset(p + 16, 5, 16);
    memset(p + 64, 9, FUZZ_STATE + TLS_NOTE);
    tls_ticket_key(t, s, p + 16, key);
    must(wc_ChaCha20Poly1305_Encrypt(key, tls_nonce, p, 16, p + 64,
                                     FUZZ_STATE + TLS_NOTE, p + 64,
                                     p + 32) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct cfg_listener cfg = {.tickets = {true, 28800, 28800}};
    static const struct tls_ctx ctx = {.cfg = &cfg};
    static struct tls_site site = {.ring = {.roots_n = 1, .rotate_s = 28800}};
    struct tls t = {
        .magic = TLS_MAGIC, .site = &site, .ctx = &ctx, .name = (char[]){""}};
    unsigned char sealed[FUZZ_TICKET], bad[FUZZ_TICKET];
    struct mem_arena *a = mem_arena_new(1 << 20);
    struct boot b = {.ticket_rotate = false};
    struct err e;

    tls_ring_turn(&site.ring, 28800, 28800);
    must(!fuzz_open(&t, data, size));
    fuzz_seal(&t, sealed);
    must(fuzz_open(&t, sealed, sizeof sealed));
    memcpy(bad, sealed, sizeof bad);
    for (size_t i = 0; i + 1 < size; i += 2)
        bad[data[i] % sizeof bad] ^= data[i + 1];
    must(fuzz_open(&t, bad, sizeof bad) ==
         (memcmp(bad, sealed, sizeof bad) == 0));
    sup_parse_ticket_keys(a, (struct str){(const char *)data, size}, &b, &e);
    must(b.ticket_keys_n <= BOOT_TICKET_KEYS);
    mem_arena_free(a);
    return 0;
}
