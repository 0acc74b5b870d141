/* Fuzzes room 7: a target, and the same bytes as a query. What is accepted has
 * no second meaning, and survives being written and read again. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

static struct str
fuzz_text(const struct mem_buf *b)
{
    return (struct str){mem_buf_ptr(b), mem_buf_len(b)};
}

static void
fuzz_target(struct mem_arena *a, struct str text)
{
    struct mem_buf b = {0};
    struct uri u, again;
    struct err e;

    if (!uri_parse(a, text, &u, &e)) {
        must(e.kind == ERR_SYNTAX && e.msg[0]);
        return;
    }
    must(u.path.n && u.path.p[0] == '/');
    must(str_utf8(u.path) && str_no_control(u.path));
    must(!memchr(u.path.p, '\\', u.path.n) && !memchr(u.path.p, ';', u.path.n));
    must(!memmem(u.path.p, u.path.n, "//", 2));
    must(!memmem(u.path.p, u.path.n, "/./", 3));
    must(!memmem(u.path.p, u.path.n, "/../", 4));
    must(!str_ends(u.path, S("/.")) && !str_ends(u.path, S("/..")));
    must(u.absolute == (text.p[0] != '/'));
    uri_write_path(&b, u.path);
    must(uri_parse(a, fuzz_text(&b), &again, &e));
    must(str_eq(u.path, again.path) && !again.query.n);
    mem_buf_free(&b);
}

/* Nothing in a path that a decoder, or one who cuts ';' off, takes for "..". */
static void
fuzz_no_dots(struct str path)
{
    struct str seg, plain, rest = path;

    while (rest.n) {
        str_cut(rest, '/', &seg, &rest);
        str_cut(seg, ';', &plain, &seg);
        must(!str_eq(plain, S(".")) && !str_eq(plain, S("..")));
    }
}

/* What a route may allow: noted, kept apart, and goes on as it came. */
static void
fuzz_odd(struct mem_arena *a, struct str target)
{
    struct mem_buf b = {0};
    struct uri u, again;
    struct str text;
    struct err e;

    if (!uri_read(a, target, &u, &e)) {
        must(e.kind == ERR_SYNTAX && e.msg[0]);
        must(!uri_parse(a, target, &again, &e));
        return;
    }
    must(uri_allowed(u.odd, 0, &e) == (u.odd == 0));
    must(uri_parse(a, target, &again, &e) == (u.odd == 0));
    must(u.path.n && u.path.p[0] == '/');
    text = uri_text(a, u.path);
    must(str_utf8(text) && str_no_control(text));
    must(!memchr(text.p, '\\', text.n));
    must(u.odd || str_eq(text, u.path));
    fuzz_no_dots(text);
    uri_write_sent(&b, u.path);
    must(uri_read(a, fuzz_text(&b), &again, &e));
    must(str_eq(u.path, again.path) && !again.query.n);
    must((again.odd & ~u.odd) == 0);
    mem_buf_free(&b);
}

static void
fuzz_query_odd(struct mem_arena *a, struct str text)
{
    struct uri_param *v, *w;
    struct mem_buf b = {0};
    struct err e;
    size_t n, m;

    if (!uri_query(a, text, 100, ~0u, &v, &n, &e))
        return;
    uri_write_query(&b, v, n);
    must(uri_query(a, fuzz_text(&b), 100, ~0u, &w, &m, &e) && m == n);
    for (size_t i = 0; i < n; i++)
        must(str_eq(v[i].name, w[i].name) && str_eq(v[i].value, w[i].value));
    mem_buf_free(&b);
}

static void
fuzz_query(struct mem_arena *a, struct str text)
{
    struct uri_param *v, *w;
    struct mem_buf b = {0};
    struct err e;
    size_t n, m;

    if (!uri_query(a, text, 100, 0, &v, &n, &e)) {
        must(e.kind == ERR_SYNTAX && e.msg[0]);
        return;
    }
    must(n <= 100);
    uri_write_query(&b, v, n);
    must(uri_query(a, fuzz_text(&b), 100, 0, &w, &m, &e) && m == n);
    for (size_t i = 0; i < n; i++) {
        must(v[i].name.n && str_utf8(v[i].name) && str_utf8(v[i].value));
        must(str_no_control(v[i].name) && str_no_control(v[i].value));
        must(str_eq(v[i].name, w[i].name) && str_eq(v[i].value, w[i].value));
    }
    mem_buf_free(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct str text = {(const char *)data, n};
    struct mem_arena *a = mem_arena_new(1 << 26);
    struct str host;
    uint16_t port;

    fuzz_target(a, text);
    fuzz_odd(a, text);
    fuzz_query(a, text);
    fuzz_query_odd(a, text);
    if (uri_authority(text, &host, &port))
        must(host.n && !memchr(host.p, '@', host.n));
    mem_arena_free(a);
    return 0;
}
