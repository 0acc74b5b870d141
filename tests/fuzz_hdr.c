/* Fuzzes room 8 and who reads header values above it: a name, a line feed, a
 * value. Quick ways agree with slow ones; a name means the same in each of its
 * spellings; what is written upstream is one line. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

static void
fuzz_name(struct mem_arena *a, struct str name)
{
    static const struct str list[] = {{"x-user", 6}, {"x-team-*", 8}};
    struct str low = cfg_lower(a, name), fold = hdr_fold(a, name);
    bool plain = true;

    for (size_t i = 0; i < low.n; i++)
        plain =
            plain && ((low.p[i] >= 'a' && low.p[i] <= 'z') ||
                      (low.p[i] >= '0' && low.p[i] <= '9') || low.p[i] == '-');
    must(plain == (hdr_odd_bits(low) == 0));
    must(hdr_odd_bits(fold) == 0 && fold.n == name.n);
    must(hdr_identity(name) == hdr_identity(fold));
    must(hdr_identity(name) == hdr_identity(low));
    must(hdr_listed(list, 2, name) == hdr_listed(list, 2, fold));
    must(hdr_listed(list, 2, name) ==
         (str_eq(fold, S("x-user")) || str_starts(fold, S("x-team-"))));
    must(!hdr_hop_by_hop(low) || hdr_name_ok(name));
}

/* Each element of a list is in the list, in any case; what is none is not. */
static void
fuzz_list(struct mem_arena *a, struct str value)
{
    struct str one, rest = value;
    char up[64];

    while (rest.n) {
        str_cut(rest, ',', &one, &rest);
        one = str_trim(one);
        must(!one.n || hdr_list_has(value, one));
        if (!one.n || one.n >= sizeof up)
            continue;
        for (size_t i = 0; i < one.n; i++)
            up[i] = (char)toupper((unsigned char)one.p[i]);
        must(hdr_list_has(value, (struct str){up, one.n}));
    }
    must(!hdr_list_has(value, S("a,b")));
    (void)a;
}

static void
fuzz_value(struct str value)
{
    bool ok = true;

    for (size_t i = 0; i < value.n; i++) {
        unsigned char c = (unsigned char)value.p[i];

        ok = ok && (c == '\t' || (c >= 0x20 && c != 0x7f));
    }
    must(ok == hdr_value_ok(value));
}

/* What a request's field becomes in rooms above. */
static void
fuzz_request(struct mem_arena *a, struct str name, struct str value)
{
    struct str json = S("application/json");
    struct cfg_body body = {.kind = CFG_BODY_JSON, .types = {&json, 1}};
    struct proxy_line line = {.target = S("/")};
    struct req_from from = {.peer = "192.0.2.1:1"};
    struct req r = {.arena = a,
                    .from = &from,
                    .method = S("GET"),
                    .host = S("a"),
                    .length = -1};
    struct str head, one, rest;
    unsigned lines = 0;

    memset(r.id, 'a', REQ_ID);
    hdr_add(a, &r.headers, S("traceparent"), value);
    hdr_add(a, &r.headers, S("connection"), value);
    hdr_add(a, &r.headers, S("content-type"), value);
    hdr_add(a, &r.headers, name, value);
    r.odd = hdr_odd_bits(r.headers.v[3].name);
    if (serve_media_ok(&r, &body))
        must(value.n >= json.n &&
             str_eqi((struct str){str_trim(value).p, 16}, json));
    head = proxy_head(&r, &line);
    for (rest = head; rest.n; lines++) {
        must(str_cut(rest, '\n', &one, &rest) && str_ends(one, S("\r")));
        must(hdr_value_ok((struct str){one.p, one.n - 1}));
    }
    must(lines <= 11 && str_ends(head, S("\r\n\r\n")));
}

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct mem_arena *a = mem_arena_new(1 << 26);
    struct str name, value;

    str_cut((struct str){(const char *)data, n}, '\n', &name, &value);
    fuzz_name(a, name);
    fuzz_value(value);
    fuzz_list(a, value);
    if (hdr_name_ok(name) && hdr_value_ok(value))
        fuzz_request(a, name, str_trim(value));
    mem_arena_free(a);
    return 0;
}
