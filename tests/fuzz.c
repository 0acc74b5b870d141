/* All fuzz targets in one program, so that gateway.c is compiled once; the
 * variable FUZZ names the target: `FUZZ=h1 build/fuzz/all tests/corpus/h1`. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

#include "fake_h1.inc"
#include "json_write.inc"

#include "fuzz_answer.inc"
#include "fuzz_boot.inc"
#include "fuzz_chain.inc"
#include "fuzz_crl.inc"
#include "fuzz_doc.inc"
#include "fuzz_elf.inc"
#include "fuzz_h1.inc"
#include "fuzz_hdr.inc"
#include "fuzz_hello.inc"
#include "fuzz_json.inc"
#include "fuzz_lib.inc"
#include "fuzz_log.inc"
#include "fuzz_mounts.inc"
#include "fuzz_msg.inc"
#include "fuzz_pki.inc"
#include "fuzz_pp.inc"
#include "fuzz_schema.inc"
#include "fuzz_slot.inc"
#include "fuzz_ticket.inc"
#include "fuzz_upgrade.inc"
#include "fuzz_uri.inc"

static const struct {
    const char *name;
    int (*run)(const uint8_t *, size_t);
} fuzz_targets[] = {
    {"answer", fuzz_target_answer}, {"boot", fuzz_target_boot},
    {"chain", fuzz_target_chain},   {"crl", fuzz_target_crl},
    {"doc", fuzz_target_doc},       {"elf", fuzz_target_elf},
    {"h1", fuzz_target_h1},         {"hdr", fuzz_target_hdr},
    {"hello", fuzz_target_hello},   {"json", fuzz_target_json},
    {"lib", fuzz_target_lib},       {"log", fuzz_target_log},
    {"mounts", fuzz_target_mounts}, {"msg", fuzz_target_msg},
    {"pki", fuzz_target_pki},       {"pp", fuzz_target_pp},
    {"schema", fuzz_target_schema}, {"slot", fuzz_target_slot},
    {"ticket", fuzz_target_ticket}, {"upgrade", fuzz_target_upgrade},
    {"uri", fuzz_target_uri},
};

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);
int LLVMFuzzerInitialize(int *, char ***);

static int (*fuzz_chosen)(const uint8_t *, size_t);

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *name = getenv("FUZZ");

    (void)argc;
    (void)argv;
    for (size_t i = 0; i < sizeof fuzz_targets / sizeof *fuzz_targets; i++)
        if (name && strcmp(fuzz_targets[i].name, name) == 0)
            fuzz_chosen = fuzz_targets[i].run;
    if (fuzz_chosen)
        return 0;
    fputs("FUZZ names no target; there are:", stderr);
    for (size_t i = 0; i < sizeof fuzz_targets / sizeof *fuzz_targets; i++)
        fprintf(stderr, " %s", fuzz_targets[i].name);
    fputc('\n', stderr);
    exit(2);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return fuzz_chosen(data, size);
}
