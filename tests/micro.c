/* micro.c: what it costs to parse and check one document.
 *
 *     build/micro [ROUNDS]       nanoseconds, the best of 15 times ROUNDS
 *     valgrind --tool=callgrind build/micro 200     instructions, of 3000 times
 *
 * Document and schema are those of scenario S5 in shared/bench: 1 KiB, 18
 * objects in an array. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

static const char micro_schema[] =
    "{\"type\":\"object\",\"properties\":{"
    "\"device\":{\"type\":\"string\",\"pattern\":\"^sensor-\\\\d+$\","
    "\"maxLength\":32},"
    "\"ts\":{\"type\":\"integer\",\"minimum\":1},"
    "\"seq\":{\"type\":\"integer\",\"minimum\":0},\"ok\":{\"type\":\"boolean\"}"
    ","
    "\"readings\":{\"type\":\"array\",\"minItems\":1,\"maxItems\":64,\"items\":"
    "{"
    "\"type\":\"object\",\"properties\":{"
    "\"id\":{\"type\":\"string\",\"minLength\":1,\"maxLength\":16},"
    "\"value\":{\"type\":\"number\"},"
    "\"unit\":{\"type\":\"string\",\"minLength\":1,\"maxLength\":8}},"
    "\"required\":[\"id\",\"value\",\"unit\"]}},"
    "\"tags\":{\"type\":\"object\",\"maxProperties\":16,"
    "\"additionalProperties\":"
    "{\"type\":\"string\",\"minLength\":1,\"maxLength\":64}}},"
    "\"required\":[\"device\",\"ts\",\"seq\",\"ok\",\"readings\",\"tags\"]}";

static struct str
micro_document(struct mem_buf *b)
{
    mem_buf_printf(b, "{\"device\": \"sensor-0042\", \"ts\": 1700000000, "
                      "\"seq\": 17, \"ok\": true, \"readings\": [");
    for (int i = 0; i < 18; i++)
        mem_buf_printf(b,
                       "%s{\"id\": \"probe-%02d\", \"value\": %.*g, "
                       "\"unit\": \"C\"}",
                       i ? ", " : "", i, 6, 20.5 + i / 8.0);
    mem_buf_printf(b,
                   "], \"tags\": {\"site\": \"north yard\", \"rack\": \"b7\", "
                   "\"firmware\": \"4.11.2-rc1\", \"owner\": \"ops\"}}");
    return (struct str){mem_buf_ptr(b), mem_buf_len(b)};
}

static double
micro_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Both must say yes, or the figures mean nothing. */
static yyjson_val *
micro_parse(struct mem_arena *a, struct str text)
{
    yyjson_val *v;
    struct err e;

    must(json_parse(a, text, &v, &e));
    return v;
}

static double
micro_parses(struct str text, long rounds)
{
    double start = micro_now();

    for (long i = 0; i < rounds; i++) {
        struct mem_arena *a = mem_arena_new(SIZE_MAX);

        micro_parse(a, text);
        mem_arena_free(a);
    }
    return (micro_now() - start) / (double)rounds;
}

static double
micro_checks(const struct schema *s, yyjson_val *v, long rounds)
{
    double start = micro_now();
    struct schema_why why;

    for (long i = 0; i < rounds; i++)
        must(schema_check(s, v, &why));
    return (micro_now() - start) / (double)rounds;
}

int
main(int argc, char **argv)
{
    long rounds = argc > 1 ? atol(argv[1]) : 20000;
    struct mem_arena *a = mem_arena_new(SIZE_MAX);
    double parse = INFINITY, check = INFINITY;
    struct mem_buf b = {0};
    struct str text = micro_document(&b);
    struct schema *s;
    struct err e;

    s = schema_compile(a, micro_parse(a, str_of(micro_schema)), false, &e);
    must(s != NULL);
    for (int i = 0; i < 15; i++) {
        parse = fmin(parse, micro_parses(text, rounds));
        check = fmin(check, micro_checks(s, micro_parse(a, text), rounds));
    }
    printf("%zu bytes: parse %.0f ns, check %.0f ns\n", text.n, parse, check);
    mem_buf_free(&b);
    mem_arena_free(a);
    return 0;
}
