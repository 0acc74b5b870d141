/* unit.c: the tests of every room that needs no network.
 *
 *     build/unit [ROOM ...]      all rooms, or those named: build/unit uri hdr
 *
 * The program is compiled in, its main left out, so a test reaches every
 * static. unit_ROOM.inc holds the tests of a room and ends with unit_ROOM(),
 * which calls them all; a new one is added below, in two places. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

enum { UNIT_SECONDS = 120 };  // a room that hangs ends by SIGALRM

static unsigned long unit_passed, unit_failed;

static void
unit_check(bool ok, const char *what, const char *file, int line)
{
    if (ok) {
        unit_passed++;
        return;
    }
    unit_failed++;
    fprintf(stderr, "%s:%d: not so: %s\n", file, line, what);
}

#define CHECK(cond) unit_check((cond), #cond, __FILE__, __LINE__)

#include "unit_core.inc"
#include "unit_json.inc"  // before unit_schema.inc, which borrows from it
#include "unit_doc.inc"
#include "unit_uri.inc"
#include "unit_hdr.inc"
#include "unit_schema.inc"
#include "unit_route.inc"
#include "unit_cfg.inc"
#include "unit_boot.inc"
#include "unit_pki.inc"
#include "unit_tls.inc"
#include "unit_h1.inc"
#include "unit_pp.inc"
#include "unit_up.inc"
#include "unit_msg.inc"
#include "unit_jail.inc"
#include "unit_cgroup.inc"
#include "unit_exec.inc"
#include "unit_layers.inc"
#include "unit_guard.inc"  // after unit_exec.inc, which it borrows from
#include "unit_cli.inc"
#include "unit_lib.inc"
#include "unit_sup.inc"
#include "unit_ctl.inc"

static const struct {
    const char *room;
    void (*run)(void);
} unit_rooms[] = {
    {"core", unit_core}, {"json", unit_json},     {"doc", unit_doc},
    {"uri", unit_uri},
    {"hdr", unit_hdr},   {"schema", unit_schema}, {"route", unit_route},
    {"cfg", unit_cfg},   {"boot", unit_boot},     {"pki", unit_pki},
    {"tls", unit_tls},   {"h1", unit_h1},         {"pp", unit_pp},
    {"up", unit_up},     {"msg", unit_msg},       {"jail", unit_jail},
    {"cgroup", unit_cgroup},
    {"exec", unit_exec}, {"guard", unit_guard},   {"cli", unit_cli},
    {"lib", unit_lib},   {"sup", unit_sup},       {"layers", unit_layers},
    {"ctl", unit_ctl},
};

static bool
unit_wanted(const char *room, char **names)
{
    if (!*names)
        return true;
    for (; *names; names++)
        if (strcmp(*names, room) == 0)
            return true;
    return false;
}

/* A name that is no room must not pass for a run of everything asked for. */
static bool
unit_known(const char *name)
{
    for (size_t i = 0; i < sizeof unit_rooms / sizeof *unit_rooms; i++)
        if (strcmp(unit_rooms[i].room, name) == 0)
            return true;
    fprintf(stderr, "unit: no tests of a room '%s'\n", name);
    return false;
}

int
main(int argc, char **argv)
{
    (void)argc;
    for (char **name = argv + 1; *name; name++)
        if (!unit_known(*name))
            return 2;
    for (size_t i = 0; i < sizeof unit_rooms / sizeof *unit_rooms; i++) {
        unsigned long passed = unit_passed, failed = unit_failed;

        if (!unit_wanted(unit_rooms[i].room, argv + 1))
            continue;
        alarm(UNIT_SECONDS);
        unit_rooms[i].run();
        printf("%-8s %lu passed, %lu failed\n", unit_rooms[i].room,
               unit_passed - passed, unit_failed - failed);
        fflush(stdout);
    }
    printf("%lu passed, %lu failed\n", unit_passed, unit_failed);
    return unit_failed || !unit_passed;
}
