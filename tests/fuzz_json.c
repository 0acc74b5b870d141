/* Whatever json_parse() lets through can be written, read again, and is equal
 * to itself; and it refuses nothing for want of memory. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"
#include "json_write.inc"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct mem_arena *a = mem_arena_new(4 * n + (1 << 20));
    yyjson_doc *plain =
        yyjson_read((const char *)data, n, YYJSON_READ_BIGNUM_AS_RAW);
    struct json_key key = {1, 2};
    yyjson_val *v, *again;
    struct mem_buf b = {0};
    struct err e;

    if (json_parse(a, (struct str){(const char *)data, n}, &v, &e)) {
        json_test_write_val(&b, v);
        must(json_parse(a, (struct str){mem_buf_ptr(&b), b.n}, &again, &e));
        must(json_hash(&key, v) == json_hash(&key, again));
        must(n > 4096 || json_equal(v, again));
    } else {
        must(v == NULL && e.kind == ERR_SYNTAX && e.msg[0]);
        must(!plain || !strstr(e.msg, "opens more"));
    }
    yyjson_doc_free(plain);
    b.n = 0;
    json_write_str(&b, (struct str){(const char *)data, n});
    must(json_parse(a, (struct str){mem_buf_ptr(&b), b.n}, &v, &e));
    mem_buf_free(&b);
    mem_arena_free(a);
    return 0;
}
