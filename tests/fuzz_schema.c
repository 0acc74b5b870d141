/* The input is one JSON array: [schema, instance, ...]. What does not load says
 * why; an instance that fails says where; `open` never refuses more; and each
 * instance is tried as text, too. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void
fuzz_instance(struct mem_arena *a, const struct schema *closed,
              const struct schema *open, yyjson_val *v)
{
    struct schema_why why, why_open;
    struct str text[2];
    bool ok = schema_check(closed, v, &why);

    must(ok || (why.keyword && why.msg[0] && strlen(why.path) < 160));
    must(!ok || !why.keyword);
    must(schema_check(closed, v, NULL) == ok);
    must(schema_check(open, v, &why_open) || !ok ||
         strcmp(why_open.keyword, "schema") == 0);
    if (json_type(v) != YYJSON_TYPE_STR)
        return;
    text[0] = text[1] = json_str(v);
    if (!schema_text(closed, a, text, 1, &why))
        must(why.keyword && why.msg[0]);
    schema_text(closed, a, text, 2, &why);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct mem_arena *a = mem_arena_new(SIZE_MAX);
    struct schema *closed, *open;
    yyjson_val *v, *item;
    struct err e;

    if (!json_parse(a, (struct str){(const char *)data, n}, &v, &e) ||
        json_type(v) != YYJSON_TYPE_ARR || !json_count(v)) {
        mem_arena_free(a);
        return 0;
    }
    item = v + 1;
    closed = schema_compile(a, item, false, &e);
    open = schema_compile(a, item, true, &e);
    must((closed == NULL) == (open == NULL));
    if (!closed)
        must(e.kind == ERR_CONFIG && e.msg[0]);
    for (size_t i = json_count(v); closed && i > 1; i--) {
        item = json_next(item);
        fuzz_instance(a, closed, open, item);
    }
    mem_arena_free(a);
    return 0;
}
