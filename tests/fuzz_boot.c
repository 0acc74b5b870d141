/* The bundle reader. The seeds in tests/corpus/boot are whole bundles. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct mem_arena *a = mem_arena_new((size_t)64 << 20);
    struct mem_buf again = {0};
    struct str text = {(const char *)data, n};
    struct boot b;
    struct err e;

    if (boot_parse(text, a, &b, &e)) {
        boot_format(&b, &again);  // one way to write a bundle, and no other
        must(str_eq(text,
                    (struct str){mem_buf_ptr(&again), mem_buf_len(&again)}));
        must(boot_fds_end(&b) >= BOOT_FIRST_FD);
    }
    mem_buf_free(&again);
    mem_arena_free(a);
    return 0;
}
