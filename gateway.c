/* gateway: a Lua-scriptable mutual-TLS gateway in one file.
 *
 * Copyright (C) 2026 the gateway authors. GPL-3.0-or-later, see LICENSE.
 *
 * It sits in front of a service. Every client must present a certificate; every
 * request meets a policy written in Lua, which says who may call which route
 * with which input; the route then forwards to an upstream, answers from Lua,
 * or runs a program out of a frozen table, never through a shell. What no route
 * allows is refused.
 *
 * The processes
 *
 *   supervisor (sup)    reads scripts and certificates, binds the sockets,
 *      |                starts and watches the others; runs no Lua, parses
 *      |                nothing from the network
 *      |- check         for a moment, at each start and reload: evaluates the
 *      |                policy and writes the plain configuration (cfg)
 *      |- verify        for a moment, after that: do schemas, certificates and
 *      |                programs load?
 *      |- broker (exec) only where a command is declared: the only process that
 *      |                may start programs; holds no key and no script
 *      `- worker 1..N   one loop, one Lua state, unprivileged; accepts on the
 *                       sockets it has inherited, opens nothing by name (but
 *                       what c-ares reads to look a name up)
 *
 *   Every child is fork + exec of this binary (`--role`), so that it starts
 *   from clean memory: channel at descriptor 3, sealed bundle (boot) at 4,
 *   sockets from 5 on.
 *
 * The life of a request
 *
 *    1  conn_accept()        a client connects; limits. conn_hello(): its first
 *                            bytes take a slot for the handshake
 *    2  tls_feed()           handshake; tls_on_verify() sees the chain, pki_
 *                            makes the identity
 *    3  h1_server_feed()     bytes become a head; h1_scan(), llhttp and
 *                            h1_framing() must agree, or it is refused
 *    4  serve_on_head()      route_match() finds the route
 *    5  serve_step_authorize()  who: conditions on the identity
 *    6  serve_step_validate()   what: path, query, headers by schema
 *    7  serve_step_body()       the body is read only now; JSON by schema
 *    8  serve_step_check()      hooks, for what a schema cannot say
 *    9  serve_step_handle()     Lua (vm_run), an upstream (proxy_start) or,
 *                               from Lua, a program (exec_start); a hook that
 *                               waits comes back by vm_wake(), serve_on_hook()
 *   10  serve_step_respond(), serve_step_log(), serve_finish()
 *   11  conn_run_later()     bytes go out, the next request may begin
 *
 * Contents: each room is a prefix, and uses only rooms above it in this list
 *
 *    1  mem     arenas, growable buffers, magic-checked objects
 *    2  str     byte slices
 *    3  log     one event, one line
 *    4  err     the one error value
 *    5  met     counters and histograms
 *    6  json    yyjson behind our limits
 *    7  uri     request targets
 *    8  hdr     header fields
 *    9  schema  JSON Schema 2020-12, compiled
 *   10  route   which route a request is for
 *   11  cfg     the plain configuration
 *   12  boot    what a child starts from
 *   13  req     one exchange
 *   14  pki     certificates: parsing, identities, making them
 *   15  tls     wolfSSL over two buffers
 *   16  h1      HTTP/1.1, both sides
 *   17  sock    a stream with an output queue and deadlines
 *   18  conn    one client connection
 *   19  up      upstream connections
 *   20  proxy   a request, carried to an upstream and back
 *   21  msg     typed frames between our processes
 *   22  jail    giving up rights, and starting a program without any
 *   23  exec    programs, and nothing but the declared ones
 *   24  vm      the Lua state
 *   25  lib     string and table functions that cannot run away
 *   26  bind    what scripts can see
 *   27  serve   from request to answer
 *   28  admin   health and metrics
 *   29  work    a worker
 *   30  sup     the supervisor
 *   31  try     policy tests
 *   32  cli     the commands, and main
 *
 * Rooms 1 to 12 are words: functions on memory (log writes lines, and boot its
 * bundle). 13 to 16 are protocols: bytes in, calls out, no descriptor, so that
 * two of them can be tested back to back (pki also writes the files of `gateway
 * certs`). Everything is static and defined before use, so a call upwards does
 * not compile. The only stairs up are function pointers, declared in the lower
 * room and filled in by the upper one:
 *
 *   req_ops        h1 -> serve, admin      req_wire       req -> h1
 *   h1_io          h1 -> conn, try         h1_client_ops  h1 -> up, try
 *   tls_ops        tls -> conn             sock_ops       sock -> conn, up
 *   conn_ops       conn -> work            up_ops         up -> proxy, bind
 *   proxy_ops      proxy -> serve          msg_ops        msg -> exec, work,
 *                                                         sup
 *   exec_done      exec -> bind            vm_call        vm -> serve
 *   bind_stubs     bind -> try             serve_set      serve -> try
 *   (and mem_last_words: a failed must() first writes what log still holds)
 *
 * House rules
 *
 *   Ownership  Boot memory lives for ever. A connection is one object, freed in
 *              its last on_closed. A request is one arena, freed whole. Each
 *              pointer in a struct says owned, borrowed or lent.
 *   Errors     `struct err *` comes last; err_set() returns false. The message
 *              is for the log, the client sees the status. Boot code dies with
 *              a sentence. must() is for our own bugs, never for input.
 *   Calling up After a call up, touch nothing that it may have ended.
 *
 * To read on: start at main(), at serve_go(), or at the room you came for.
 */
#include <arpa/inet.h>
#include <assert.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <glob.h>
#include <grp.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/openat2.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include <ares.h>
#include <llhttp.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <uv.h>
#include <wolfssl/options.h>
#include <wolfssl/ssl.h>
#include <wolfssl/wolfcrypt/asn_public.h>
#include <wolfssl/wolfcrypt/ecc.h>
#include <wolfssl/wolfcrypt/ed25519.h>
#include <wolfssl/wolfcrypt/hash.h>
#include <wolfssl/wolfcrypt/random.h>
#include <wolfssl/wolfcrypt/rsa.h>
#include <wolfssl/wolfcrypt/sha256.h>
#include <yyjson.h>

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#if defined(OPENSSL_EXTRA) || defined(OPENSSL_COMPATIBLE_DEFAULTS) ||          \
    defined(WOLFSSL_TRUST_PEER_CERT)
#error "this wolfSSL skips the chain check for a forged peer (CVE-2026-93302)"
#endif
#if !defined(WOLFSSL_ALWAYS_VERIFY_CB)
#error "build wolfSSL with -DWOLFSSL_ALWAYS_VERIFY_CB: see deps.mk"
#endif

struct req;
struct conn;

/* What all rooms of one process share; main() owns it. Opaque pointers: a room
 * looks only into its own. */
struct env {
    uv_loop_t *loop;
    const struct boot *boot;
    const struct cfg *cfg;
    struct conn_set *conns;
    struct pki_cache *identities;
    struct up_set *upstreams;
    struct exec *exec;  // NULL: no command is declared
    struct vm *vm;
    struct serve_set *serve;
    struct bind_set *binds;
    const struct bind_stubs *stubs;  // NULL but under `gateway test`
    bool draining;
};

/* ==== 1 mem: arenas, growable buffers, magic-checked objects ================
 *
 * Three lifetimes cover the program. Boot memory lives for ever. A connection
 * is one object with a magic number. A request is one arena, freed whole.
 * malloc() returning NULL ends the process: the supervisor replaces a worker,
 * and no caller needs a branch for it.
 *
 * Entry   mem_arena_new  mem_alloc  mem_defer  mem_buf_add  obj_new  OBJ  must
 */

/* An assertion about our own code, never about input; always compiled in. */
#define must(cond) ((cond) ? (void)0 : mem_panic(#cond, __FILE__, __LINE__))

/* Set by log: what it still holds must not be lost. */
static void (*mem_last_words)(void);

_Noreturn static void
mem_panic(const char *what, const char *file, int line)
{
    if (mem_last_words)
        mem_last_words();
    fprintf(stderr, "{\"level\":\"fatal\",\"msg\":\"bug: %s at %s:%d\"}\n",
            what, file, line);
    abort();
}

static void *
mem_xmalloc(size_t n)
{
    void *p = malloc(n ? n : 1);

    must(p != NULL);
    return p;
}

static void *
mem_xcalloc(size_t n)
{
    void *p = calloc(1, n ? n : 1);

    must(p != NULL);
    return p;
}

static void *
mem_xrealloc(void *old, size_t n)
{
    void *p = realloc(old, n ? n : 1);

    must(p != NULL);
    return p;
}

struct mem_chunk {
    struct mem_chunk *next;
    size_t used, cap;  // bytes of data[]
    _Alignas(16) char data[];
};

struct mem_defer {
    struct mem_defer *next;
    void (*fn)(void *);
    void *data;
};

/* Owned by whoever called mem_arena_new(). The header sits in the first chunk,
 * so that a small request costs one malloc and one free. */
struct mem_arena {
    struct mem_chunk *head;   // the chunk that is being filled
    struct mem_defer *defer;  // run newest first by mem_arena_free()
    size_t total, max;        // bytes handed out, and the proven bound
};

enum { MEM_CHUNK = 4096 - sizeof(struct mem_chunk) };

static struct mem_chunk *
mem_chunk_new(size_t cap)
{
    struct mem_chunk *c = mem_xmalloc(sizeof *c + cap);

    c->next = NULL;
    c->used = 0;
    c->cap = cap;
    return c;
}

/* Uninitialised memory, aligned for any type, that lives as long as the arena.
 * Passing `max` is our bug: the doors into an arena have limits of their
 * own. */
static void *
mem_alloc_raw(struct mem_arena *a, size_t n)
{
    struct mem_chunk *c = a->head;
    void *p;

    must(n <= a->max && a->total <= a->max - n);
    n = (n + 15) & ~(size_t)15;
    if (c->cap - c->used < n) {
        c = mem_chunk_new(n > MEM_CHUNK ? n : MEM_CHUNK);
        c->next = a->head;
        a->head = c;
    }
    p = c->data + c->used;
    c->used += n;
    a->total += n;
    return p;
}

static void *
mem_alloc(struct mem_arena *a, size_t n)
{
    return memset(mem_alloc_raw(a, n), 0, n);
}

static struct mem_arena *
mem_arena_new(size_t max)
{
    struct mem_chunk *c = mem_chunk_new(MEM_CHUNK);
    struct mem_arena *a = (struct mem_arena *)(void *)c->data;

    c->used = (sizeof *a + 15) & ~(size_t)15;
    *a = (struct mem_arena){.head = c, .max = max};
    return a;
}

/* Runs `fn(data)` when the arena is freed. */
static void
mem_defer(struct mem_arena *a, void (*fn)(void *), void *data)
{
    struct mem_defer *d = mem_alloc(a, sizeof *d);

    *d = (struct mem_defer){a->defer, fn, data};
    a->defer = d;
}

static void
mem_arena_free(struct mem_arena *a)
{
    struct mem_chunk *c, *next;

    if (!a)
        return;
    for (struct mem_defer *d = a->defer; d; d = d->next)
        d->fn(d->data);
    for (c = a->head; c; c = next) {
        next = c->next;
        free(c);  // the last one holds `a` itself
    }
}

static char *
mem_dup(struct mem_arena *a, const void *p, size_t n)
{
    char *d = mem_alloc_raw(a, n + 1);

    if (n)
        memcpy(d, p, n);
    d[n] = 0;
    return d;
}

__attribute__((format(printf, 2, 3))) static char *
mem_printf(struct mem_arena *a, const char *fmt, ...)
{
    va_list ap;
    char *p;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    must(n >= 0);
    p = mem_alloc_raw(a, (size_t)n + 1);
    va_start(ap, fmt);
    vsnprintf(p, (size_t)n + 1, fmt, ap);
    va_end(ap);
    return p;
}

/* A byte queue: bytes are added at the end and taken from the front.
 * Zero-initialised is empty. The live bytes are p[off] .. p[n-1]. */
struct mem_buf {
    char *p;  // owned
    size_t off, n, cap;
};

static size_t
mem_buf_len(const struct mem_buf *b)
{
    return b->n - b->off;
}

static const char *
mem_buf_ptr(const struct mem_buf *b)
{
    return b->p ? b->p + b->off : "";
}

/* Room for `n` more bytes at the end; write there, then add `n` to b->n. */
static char *
mem_buf_room(struct mem_buf *b, size_t n)
{
    if (b->cap - b->n >= n)
        return b->p + b->n;
    if (b->off >= n && b->off >= (b->n - b->off) / 2) {
        memmove(b->p, b->p + b->off, b->n - b->off);
        b->n -= b->off;
        b->off = 0;
    }
    if (b->cap - b->n < n) {
        size_t cap = b->cap ? b->cap : 256;

        while (cap - b->n < n) {
            must(cap < SIZE_MAX / 2);
            cap *= 2;
        }
        b->p = mem_xrealloc(b->p, cap);
        b->cap = cap;
    }
    return b->p + b->n;
}

static void
mem_buf_add(struct mem_buf *b, const void *p, size_t n)
{
    if (!n)
        return;
    memcpy(mem_buf_room(b, n), p, n);
    b->n += n;
}

__attribute__((format(printf, 2, 3))) static void
mem_buf_printf(struct mem_buf *b, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    must(n >= 0);
    va_start(ap, fmt);
    vsnprintf(mem_buf_room(b, (size_t)n + 1), (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->n += (size_t)n;
}

static void
mem_buf_take(struct mem_buf *b, size_t n)
{
    must(n <= mem_buf_len(b));
    b->off += n;
    if (b->off == b->n)
        b->off = b->n = 0;
}

static void
mem_buf_free(struct mem_buf *b)
{
    free(b->p);
    *b = (struct mem_buf){0};
}

/* A heap object that knows what it is. Every struct reached through a void *
 * starts with `unsigned magic`; OBJ() checks it on the way back. */
static void *
obj_new(size_t n, unsigned magic)
{
    unsigned *p = mem_xcalloc(n);

    *p = magic;
    return p;
}

static void *
obj_check(void *p, unsigned magic)
{
    must(p && *(unsigned *)p == magic);
    return p;
}

static void
obj_free(void *p)
{
    if (p)
        *(unsigned *)p = 0;
    free(p);
}

#define OBJ(type, kind, p) ((type *)obj_check((p), kind##_MAGIC))

/* ==== 2 str: byte slices ====================================================
 *
 * A struct str borrows: it points into memory somebody else owns, and is not
 * NUL-terminated. Copy with str_dup() or str_c() to keep it.
 *
 * Entry   S  str_of  str_eq  str_cut  str_u64  str_hex  str_utf8  str_b64
 */
struct str {
    const char *p;
    size_t n;
};

#define S(literal) ((struct str){"" literal, sizeof(literal) - 1})
#define STR_FMT(s) (int)(s).n, (s).p  // for "%.*s"

static struct str
str_of(const char *c)
{
    return (struct str){c ? c : "", c ? strlen(c) : 0};
}

static bool
str_eq(struct str a, struct str b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

static unsigned char
str_lower_byte(unsigned char c)
{
    return c >= 'A' && c <= 'Z' ? (unsigned char)(c | 0x20) : c;
}

/* ASCII only: the locale never changes what a header name means. */
static bool
str_eqi(struct str a, struct str b)
{
    if (a.n != b.n)
        return false;
    for (size_t i = 0; i < a.n; i++)
        if (str_lower_byte((unsigned char)a.p[i]) !=
            str_lower_byte((unsigned char)b.p[i]))
            return false;
    return true;
}

static bool
str_starts(struct str s, struct str with)
{
    return s.n >= with.n && (with.n == 0 || memcmp(s.p, with.p, with.n) == 0);
}

static bool
str_ends(struct str s, struct str with)
{
    return s.n >= with.n &&
           (with.n == 0 || memcmp(s.p + s.n - with.n, with.p, with.n) == 0);
}

/* Everything from byte `from` on. */
static struct str
str_from(struct str s, size_t from)
{
    must(from <= s.n);
    return (struct str){s.p + from, s.n - from};
}

/* Splits at the first `sep`: true and both sides, or false and `head` = s. */
static bool
str_cut(struct str s, char sep, struct str *head, struct str *rest)
{
    const char *at = s.n ? memchr(s.p, sep, s.n) : NULL;

    if (!at) {
        *head = s;
        *rest = (struct str){s.p + s.n, 0};
        return false;
    }
    *head = (struct str){s.p, (size_t)(at - s.p)};
    *rest = str_from(s, head->n + 1);
    return true;
}

/* Without leading and trailing SP and HTAB (OWS, RFC 9110 section 5.6.3). */
static struct str
str_trim(struct str s)
{
    while (s.n && (s.p[0] == ' ' || s.p[0] == '\t'))
        s.p++, s.n--;
    while (s.n && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\t'))
        s.n--;
    return s;
}

/* Decimal digits and nothing else; false on overflow. */
static bool
str_u64(struct str s, uint64_t *out)
{
    uint64_t v = 0;

    if (!s.n)
        return false;
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < '0' || s.p[i] > '9')
            return false;
        if (__builtin_mul_overflow(v, 10u, &v) ||
            __builtin_add_overflow(v, (uint64_t)(s.p[i] - '0'), &v))
            return false;
    }
    *out = v;
    return true;
}

static int
str_hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)str_lower_byte((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static struct str
str_dup(struct mem_arena *a, struct str s)
{
    return (struct str){mem_dup(a, s.p, s.n), s.n};
}

/* A NUL-terminated copy; the caller has made sure that no NUL is inside. */
static char *
str_c(struct mem_arena *a, struct str s)
{
    return mem_dup(a, s.p, s.n);
}

/* Lower-case hexadecimal of `n` bytes. */
static struct str
str_hex(struct mem_arena *a, const void *bytes, size_t n)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *b = bytes;
    char *p = mem_alloc_raw(a, 2 * n + 1);

    for (size_t i = 0; i < n; i++) {
        p[2 * i] = digits[b[i] >> 4];
        p[2 * i + 1] = digits[b[i] & 15];
    }
    p[2 * n] = 0;
    return (struct str){p, 2 * n};
}

/* Base64 with padding (RFC 4648 section 4). */
static struct str
str_b64(struct mem_arena *a, struct str s)
{
    static const char abc[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrst"
                              "uvwxyz0123456789+/";
    const unsigned char *b = (const unsigned char *)s.p;
    char *p = mem_alloc_raw(a, (s.n + 2) / 3 * 4 + 1), *w = p;

    for (size_t i = 0; i < s.n; i += 3) {
        unsigned v = (unsigned)b[i] << 16;

        if (i + 1 < s.n)
            v |= (unsigned)b[i + 1] << 8;
        if (i + 2 < s.n)
            v |= b[i + 2];
        *w++ = abc[v >> 18];
        *w++ = abc[v >> 12 & 63];
        *w++ = i + 1 < s.n ? abc[v >> 6 & 63] : '=';
        *w++ = i + 2 < s.n ? abc[v & 63] : '=';
    }
    *w = 0;
    return (struct str){p, (size_t)(w - p)};
}

/* The length of the UTF-8 sequence at p (RFC 3629: no surrogates, no overlong
 * form, at most U+10FFFF), or 0. */
static size_t
str_utf8_len(const unsigned char *p, size_t n)
{
    unsigned char c = p[0];
    size_t len = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;

    if (len == 0 || c > 0xf4 || len > n)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((c == 0xe0 && p[1] < 0xa0) || (c == 0xed && p[1] > 0x9f) ||
        (c == 0xf0 && p[1] < 0x90) || (c == 0xf4 && p[1] > 0x8f))
        return 0;
    return len;
}

static bool
str_utf8(struct str s)
{
    size_t i = 0, len;

    while (i < s.n) {
        len = str_utf8_len((const unsigned char *)s.p + i, s.n - i);
        if (!len)
            return false;
        i += len;
    }
    return true;
}

/* True if every byte is 0x20 or above and not DEL. */
static bool
str_no_control(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if ((unsigned char)s.p[i] < 0x20 || s.p[i] == 0x7f)
            return false;
    return true;
}

/* ==== 3 log: one event, one line ============================================
 *
 * JSON lines on stderr. A reader that stalls never blocks a loop: the
 * supervisor reopens stderr non-blocking for all of us, lines gather in one
 * buffer, and what does not fit is dropped and counted. Only an exec record
 * waits, because a run without a record must not happen.
 *
 * A line is at most LOG_LINE bytes, which a pipe takes whole (PIPE_BUF): a
 * long field is cut and ends in "...". Untrusted bytes are escaped.
 *
 * Entry   log_at  log_begin  log_str  log_int  log_end  log_flush  log_sync
 */
enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_FATAL };

enum { LOG_LINE = 4096, LOG_TAIL = 16, LOG_SYNC_MS = 1000 };

/* The one piece of file-scope state: a process has one stderr. */
static struct log_sink {
    int fd;
    enum log_level level;  // lines below it are not written
    bool batch;            // lines wait for log_flush(): set inside a loop
    bool stalled;          // log_sync() has waited in vain
    uint64_t dropped;      // lines lost because the reader stalled
    size_t n;
    char buf[4 * LOG_LINE];
} log_out = {.fd = 2, .level = LOG_INFO};

struct log_line {
    enum log_level level;
    bool open;      // a field came before: write a comma first
    bool cut;       // a field was left out
    unsigned skip;  // nested objects that were
    size_t n;
    char p[LOG_LINE];
};

/* Writes what is buffered; keeps what the reader does not take. Whole lines go
 * into one write: other processes write to the same pipe. */
static void
log_flush(void)
{
    ssize_t n;

    while (log_out.n) {
        size_t step = log_out.n < LOG_LINE ? log_out.n : LOG_LINE;
        const char *end = memrchr(log_out.buf, '\n', step);

        n = write(log_out.fd, log_out.buf,
                  end ? (size_t)(end - log_out.buf) + 1 : step);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return;
        log_out.n -= (size_t)n;
        memmove(log_out.buf, log_out.buf + n, log_out.n);
    }
}

static void
log_raw(struct log_line *l, const char *p, size_t n)
{
    if (n > LOG_LINE - LOG_TAIL - l->n)
        n = LOG_LINE - LOG_TAIL - l->n;
    memcpy(l->p + l->n, p, n);
    l->n += n;
}

/* One string, escaped; cut with "..." where the line ends. */
static void
log_escape(struct log_line *l, struct str s)
{
    char e[8];
    size_t len, cut = LOG_LINE - LOG_TAIL - 16;

    for (size_t i = 0; i < s.n; i += len) {
        unsigned char c = (unsigned char)s.p[i];

        if (l->n > cut) {
            log_raw(l, "...", 3);
            return;
        }
        len = str_utf8_len((const unsigned char *)s.p + i, s.n - i);
        if (c == '"' || c == '\\')
            log_raw(l, (char[]){'\\', (char)c}, 2);
        else if (len == 0)
            log_raw(l, e, (size_t)snprintf(e, sizeof e, "\\\\x%02x", c));
        else if (c < 0x20 || c == 0x7f)
            log_raw(l, e, (size_t)snprintf(e, sizeof e, "\\u%04x", c));
        else
            log_raw(l, s.p + i, len);
        len += len == 0;
    }
}

/* False: no room for this field, which is left out; the line stays JSON, and
 * ends in "cut":true. */
static bool
log_key(struct log_line *l, const char *key)
{
    size_t need = strlen(key) + 32;  // the punctuation, a number, or "..."

    if (l->skip || l->n + need > LOG_LINE - LOG_TAIL) {
        l->cut = true;
        return false;
    }
    log_raw(l, ",\"", l->open ? 2 : 0);
    if (!l->open)
        log_raw(l, "\"", 1);
    l->open = true;
    log_raw(l, key, strlen(key));
    log_raw(l, "\":", 2);
    return true;
}

static void
log_str(struct log_line *l, const char *key, struct str s)
{
    if (!log_key(l, key))
        return;
    log_raw(l, "\"", 1);
    log_escape(l, s);
    log_raw(l, "\"", 1);
}

static void
log_int(struct log_line *l, const char *key, int64_t v)
{
    char t[24];

    if (log_key(l, key))
        log_raw(l, t, (size_t)snprintf(t, sizeof t, "%" PRId64, v));
}

static void
log_bool(struct log_line *l, const char *key, bool v)
{
    if (log_key(l, key))
        log_raw(l, v ? "true" : "false", v ? 4 : 5);
}

/* Opens a nested object ("slots":{) that log_close() ends. */
static void
log_object(struct log_line *l, const char *key)
{
    if (!log_key(l, key)) {
        l->skip++;
        return;
    }
    log_raw(l, "{", 1);
    l->open = false;
}

static void
log_close(struct log_line *l)
{
    if (l->skip) {
        l->skip--;
        return;
    }
    must(l->n < LOG_LINE - 13);  // LOG_TAIL has room for three of them
    l->p[l->n++] = '}';
    l->open = true;
}

static const char *
log_level_name(enum log_level level)
{
    static const char *const names[] = {"debug", "info", "warn", "error",
                                        "fatal"};
    return names[level];
}

/* UTC with milliseconds (RFC 3339). The text of a second is made once. */
static void
log_time(struct log_line *l)
{
    static _Thread_local time_t second;
    static _Thread_local char text[24];
    struct timespec t;
    char ms[8];
    struct tm tm;

    clock_gettime(CLOCK_REALTIME, &t);
    if (t.tv_sec != second || !text[0]) {
        second = t.tv_sec;
        gmtime_r(&second, &tm);
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
    }
    log_key(l, "ts");
    log_raw(l, "\"", 1);
    log_raw(l, text, strlen(text));
    snprintf(ms, sizeof ms, ".%03dZ\"", (int)(t.tv_nsec / 1000000));
    log_raw(l, ms, 6);
}

/* False: this level is not written, and the caller may skip the rest. */
static bool
log_begin(struct log_line *l, enum log_level level, const char *event)
{
    l->level = level;
    l->open = l->cut = false;
    l->skip = 0;
    l->n = 0;
    if (level < log_out.level)
        return false;
    log_raw(l, "{", 1);
    log_time(l);
    log_str(l, "level", str_of(log_level_name(level)));
    log_str(l, "event", str_of(event));
    return true;
}

static void
log_end(struct log_line *l)
{
    if (l->level < log_out.level)
        return;
    if (l->cut) {
        memcpy(l->p + l->n, ",\"cut\":true", 11);
        l->n += 11;
    }
    memcpy(l->p + l->n, "}\n", 2);
    l->n += 2;
    if (log_out.n + l->n > sizeof log_out.buf)
        log_flush();
    if (log_out.n + l->n > sizeof log_out.buf) {
        log_out.dropped++;
        return;
    }
    memcpy(log_out.buf + log_out.n, l->p, l->n);
    log_out.n += l->n;
    if (!log_out.batch || l->level >= LOG_ERROR)
        log_flush();
}

/* Like log_end(), but waits for the reader. False: not written within
 * LOG_SYNC_MS, and so the caller must not do what it meant to record. */
static bool
log_sync(struct log_line *l)
{
    struct pollfd p = {.fd = log_out.fd, .events = POLLOUT};

    if (log_out.stalled && poll(&p, 1, 0) == 0)
        return false;      // it did not read a second ago, and does not now
    l->level = LOG_FATAL;  // an exec record has no level to be filtered by
    log_flush();
    if (log_out.n + l->n + LOG_TAIL > sizeof log_out.buf)
        return false;
    log_end(l);
    for (int i = 0; log_out.n && i < LOG_SYNC_MS / 10; i++) {
        if (poll(&p, 1, 10) < 0 && errno != EINTR)
            break;
        log_flush();
    }
    log_out.stalled = log_out.n != 0;
    return !log_out.stalled;
}

/* The short form: log_at(LOG_WARN, "sup", "worker %d died", n). */
__attribute__((format(printf, 3, 4))) static void
log_at(enum log_level level, const char *room, const char *fmt, ...)
{
    struct log_line l;
    char msg[1024];
    va_list ap;
    int n;

    if (!log_begin(&l, level, "error"))
        return;
    va_start(ap, fmt);
    n = vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    must(n >= 0);
    if ((size_t)n >= sizeof msg)
        n = sizeof msg - 1;
    log_str(&l, "room", str_of(room));
    log_str(&l, "msg", (struct str){msg, (size_t)n});
    log_end(&l);
}

/* ==== 4 err: the one error value ============================================
 *
 * A fallible function takes a `struct err *` last and returns false (or NULL)
 * after err_set(). One kind per *reaction*, not per cause: a row gives the
 * HTTP status, log level and label that client, log, metrics and script share.
 * The message is for the log; the client sees the status.
 *
 * Entry   err_set  err_prefix  err_status  err_name  err_log
 */

// clang-format off
/*   kind               status  level      label              the answer's title */
#define ERR_LIST(X)                                                              \
    X(ERR_PEER_GONE,         0, LOG_DEBUG, "peer_gone",        "")               \
    X(ERR_NET,               0, LOG_INFO,  "network",          "")               \
    X(ERR_TLS,               0, LOG_WARN,  "tls",              "")               \
    X(ERR_SYNTAX,          400, LOG_INFO,  "syntax",           "Bad Request")    \
    X(ERR_DENIED,          403, LOG_INFO,  "denied",           "Forbidden")      \
    X(ERR_NO_ROUTE,        404, LOG_INFO,  "no_route",         "Not Found")      \
    X(ERR_METHOD,          405, LOG_INFO,  "method",           "Method Not Allowed") \
    X(ERR_TIMEOUT,         408, LOG_INFO,  "timeout",          "Request Timeout") \
    X(ERR_BODY_LIMIT,      413, LOG_INFO,  "body_limit",       "Content Too Large") \
    X(ERR_URI_LIMIT,       414, LOG_INFO,  "uri_limit",        "URI Too Long")   \
    X(ERR_MEDIA,           415, LOG_INFO,  "media_type",       "Unsupported Media Type") \
    X(ERR_EXPECT,          417, LOG_INFO,  "expectation",      "Expectation Failed") \
    X(ERR_SCHEMA,          422, LOG_INFO,  "schema",           "Unprocessable Content") \
    X(ERR_RATE,            429, LOG_INFO,  "rate",             "Too Many Requests") \
    X(ERR_HEAD_LIMIT,      431, LOG_INFO,  "head_limit",       "Request Header Fields Too Large") \
    X(ERR_HOOK,            500, LOG_ERROR, "hook",             "Internal Server Error") \
    X(ERR_CONFIG,          500, LOG_ERROR, "config",           "Internal Server Error") \
    X(ERR_NOT_IMPLEMENTED, 501, LOG_INFO,  "not_implemented",  "Not Implemented") \
    X(ERR_UPSTREAM,        502, LOG_WARN,  "upstream",         "Bad Gateway")    \
    X(ERR_EXEC,            502, LOG_WARN,  "exec",             "Bad Gateway")    \
    X(ERR_BUSY,            503, LOG_WARN,  "busy",             "Service Unavailable") \
    X(ERR_UPSTREAM_TIME,   504, LOG_WARN,  "upstream_timeout", "Gateway Timeout") \
    X(ERR_VERSION,         505, LOG_INFO,  "http_version",     "HTTP Version Not Supported")
// clang-format on

enum err_kind {
#define X(kind, status, level, label, title) kind,
    ERR_LIST(X)
#undef X
        ERR_KINDS
};

struct err {
    enum err_kind kind;
    char msg[480];
};

static const struct err_row {
    int status;  // 0: there is nobody to answer
    enum log_level level;
    const char *label, *title;
} err_rows[] = {
#define X(kind, status, level, label, title) {status, level, label, title},
    ERR_LIST(X)
#undef X
};

__attribute__((format(printf, 3, 4))) static void
err_put(struct err *e, enum err_kind kind, const char *fmt, ...)
{
    va_list ap;

    e->kind = kind;
    va_start(ap, fmt);
    vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
}

static inline bool
err_false(void)
{
    return false;
}

/* False, so that a failing function can `return err_set(...)`. A macro, so that
 * compilers and analysers see that it is. */
#define err_set(e, ...) (err_put((e), __VA_ARGS__), err_false())

__attribute__((format(printf, 2, 3))) static void
err_put_before(struct err *e, const char *fmt, ...)
{
    char was[sizeof e->msg];
    va_list ap;
    int n;

    memcpy(was, e->msg, sizeof was);
    va_start(ap, fmt);
    n = vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof e->msg)
        snprintf(e->msg + n, sizeof e->msg - (size_t)n, "%s", was);
}

/* Puts "file:line: " or "limits: " before what a lower room said. */
#define err_prefix(e, ...) (err_put_before((e), __VA_ARGS__), err_false())

static int
err_status(const struct err *e)
{
    return err_rows[e->kind].status;
}

static const char *
err_name(const struct err *e)
{
    return err_rows[e->kind].label;
}

/* One error line about connection `conn`, which was `doing` something. */
static void
err_log(const struct err *e, const char *room, uint64_t conn, const char *doing,
        const char *peer)
{
    struct log_line l;

    if (!log_begin(&l, err_rows[e->kind].level, "error"))
        return;
    log_str(&l, "room", str_of(room));
    log_int(&l, "conn", (int64_t)conn);
    log_str(&l, "peer", str_of(peer));
    log_str(&l, "doing", str_of(doing));
    log_str(&l, "kind", str_of(err_name(e)));
    log_str(&l, "msg", str_of(e->msg));
    log_end(&l);
}

/* ==== 5 met: counters and histograms ========================================
 *
 * Each process writes its own row of a shared slab, and whoever is scraped
 * sums all rows: no locks, no messages. A row is leased by the supervisor and
 * keeps its counts when a worker is replaced; gauges start again at zero.
 *
 * Entry   met_attach  met_inc  met_add  met_route_done  met_render
 *         met_route_sum  met_render_durations  met_render_classes
 */

/* To add a metric: one row here, one met_inc() where it happens. Rows of one
 * family stand together. G is a gauge, C a counter. */
// clang-format off
#define MET_LIST(X)                                                              \
    X(CONNS_OPEN, G, "gateway_connections", "", "Open client connections.")      \
    X(HANDSHAKES_OPEN, G, "gateway_tls_handshakes_in_progress", "", "TLS handshakes under way.") \
    X(REQUESTS_OPEN, G, "gateway_requests_in_progress", "", "Requests being served.") \
    X(LUA_BYTES, G, "gateway_lua_memory_bytes", "", "Memory of the Lua states.") \
    X(CONNS, C, "gateway_connections_total", "{result=\"accepted\"}", "Client connections by result.") \
    X(CONNS_OVER, C, "gateway_connections_total", "{result=\"over_worker_limit\"}", "") \
    X(CONNS_OVER_HANDSHAKES, C, "gateway_connections_total", "{result=\"over_handshake_limit\"}", "") \
    X(CONNS_OVER_IDENTITY, C, "gateway_connections_total", "{result=\"over_identity_limit\"}", "") \
    X(CONNS_EXPIRED, C, "gateway_connections_total", "{result=\"certificate_expired\"}", "") \
    X(HS_OK, C, "gateway_tls_handshakes_total", "{result=\"ok\"}", "TLS handshakes by result.") \
    X(HS_NO_CERT, C, "gateway_tls_handshakes_total", "{result=\"no_certificate\"}", "") \
    X(HS_BAD_CERT, C, "gateway_tls_handshakes_total", "{result=\"bad_certificate\"}", "") \
    X(HS_FAILED, C, "gateway_tls_handshakes_total", "{result=\"failed\"}", "") \
    X(HS_TIMEOUT, C, "gateway_tls_handshakes_total", "{result=\"timeout\"}", "") \
    X(LIMIT_URI, C, "gateway_limits_total", "{limit=\"uri\"}", "Requests and connections ended by a limit.") \
    X(LIMIT_HEAD, C, "gateway_limits_total", "{limit=\"head\"}", "")             \
    X(LIMIT_HEAD_TIME, C, "gateway_limits_total", "{limit=\"head_time\"}", "")   \
    X(LIMIT_BODY, C, "gateway_limits_total", "{limit=\"body\"}", "")             \
    X(LIMIT_BODY_TIME, C, "gateway_limits_total", "{limit=\"body_time\"}", "")   \
    X(LIMIT_IDLE, C, "gateway_limits_total", "{limit=\"idle\"}", "")             \
    X(LIMIT_WRITE_TIME, C, "gateway_limits_total", "{limit=\"write_time\"}", "") \
    X(LIMIT_REQUESTS, C, "gateway_limits_total", "{limit=\"requests_per_connection\"}", "") \
    X(LIMIT_HOOK_CPU, C, "gateway_limits_total", "{limit=\"hook_cpu\"}", "")     \
    X(LIMIT_HOOK_TIME, C, "gateway_limits_total", "{limit=\"hook_time\"}", "")   \
    X(LIMIT_LUA_MEMORY, C, "gateway_limits_total", "{limit=\"lua_memory\"}", "") \
    X(LIMIT_UP_CONNECT, C, "gateway_limits_total", "{limit=\"upstream_connect_time\"}", "") \
    X(LIMIT_UP_HEAD, C, "gateway_limits_total", "{limit=\"upstream_head_time\"}", "") \
    X(LIMIT_UP_IDLE, C, "gateway_limits_total", "{limit=\"upstream_idle_time\"}", "") \
    X(REQUESTS, C, "gateway_requests_total", "", "Requests whose head was complete.") \
    X(DENIED_SYNTAX, C, "gateway_denials_total", "{stage=\"syntax\"}", "Requests refused, by stage.") \
    X(DENIED_ROUTE, C, "gateway_denials_total", "{stage=\"route\"}", "")         \
    X(DENIED_AUTHORIZE, C, "gateway_denials_total", "{stage=\"authorize\"}", "") \
    X(DENIED_VALIDATE, C, "gateway_denials_total", "{stage=\"validate\"}", "")   \
    X(DENIED_BODY, C, "gateway_denials_total", "{stage=\"body\"}", "")           \
    X(DENIED_CHECK, C, "gateway_denials_total", "{stage=\"check\"}", "")         \
    X(HOOK_ERRORS, C, "gateway_hook_errors_total", "", "Hooks that threw or broke the contract.") \
    X(UP_CONNECTS, C, "gateway_upstream_connections_total", "{result=\"opened\"}", "Upstream connections by result.") \
    X(UP_REUSED, C, "gateway_upstream_connections_total", "{result=\"reused\"}", "") \
    X(UP_FAILED, C, "gateway_upstream_connections_total", "{result=\"failed\"}", "") \
    X(UP_BAD, C, "gateway_upstream_errors_total", "{reason=\"malformed\"}", "Upstream answers that were not passed on whole.") \
    X(UP_EARLY, C, "gateway_upstream_errors_total", "{reason=\"closed_early\"}", "") \
    X(EXEC_OK, C, "gateway_exec_runs_total", "{result=\"ok\"}", "Program runs by result.") \
    X(EXEC_FAILED, C, "gateway_exec_runs_total", "{result=\"failed\"}", "")      \
    X(EXEC_TIMEOUT, C, "gateway_exec_runs_total", "{result=\"timeout\"}", "")    \
    X(EXEC_REFUSED, C, "gateway_exec_runs_total", "{result=\"refused\"}", "")    \
    X(EXEC_BUSY, C, "gateway_exec_runs_total", "{result=\"queue_full\"}", "")    \
    X(LOG_DROPPED, C, "gateway_log_lines_dropped_total", "", "Log lines lost because the reader stalled.")
// clang-format on

enum met_id {
#define X(id, type, name, labels, help) MET_##id,
    MET_LIST(X)
#undef X
        MET_N
};

enum { MET_BUCKETS = 13, MET_CLASSES = 5 };

/* Upper bounds of the duration histogram; one bucket more is +Inf. */
static const uint32_t met_bucket_us[MET_BUCKETS] = {
    250,   500,    1000,   2500,   5000,    10000,   25000,
    50000, 100000, 250000, 500000, 1000000, 10000000};

struct met_row {
    uint64_t v[MET_N];
};

/* Per route and worker; the label is the route's pattern, never a path. */
struct met_route {
    uint64_t by_class[MET_CLASSES];  // 1xx .. 5xx
    uint64_t bucket[MET_BUCKETS + 1];
    uint64_t sum_us;
};

/* Rows before met_attach() are our own, so that counting is always safe. */
static struct met_row met_private;
static struct met_row *met_mine = &met_private;

static void
met_add(enum met_id id, int64_t n)
{
    uint64_t *v = &met_mine->v[id];

    __atomic_store_n(v, *v + (uint64_t)n, __ATOMIC_RELAXED);
}

static void
met_inc(enum met_id id)
{
    met_add(id, 1);
}

/* Leases row `slot` of a slab that was mapped shared: keeps counters, clears
 * gauges. */
static void
met_attach(struct met_row *slab, unsigned slot)
{
    met_mine = &slab[slot];
#define G(id) met_mine->v[MET_##id] = 0;
#define C(id)
#define X(id, type, name, labels, help) type(id)
    MET_LIST(X)
#undef X
#undef C
#undef G
}

static void
met_route_done(struct met_route *r, int status, uint64_t us)
{
    int class = status / 100 - 1;
    unsigned b = 0;

    if (class >= 0 && class < MET_CLASSES)
        r->by_class[class]++;
    while (b < MET_BUCKETS && us > met_bucket_us[b])
        b++;
    r->bucket[b]++;
    r->sum_us += us;
}

/* Prometheus text format 0.0.4 of all counters, summed over `rows` rows. */
static void
met_render(struct mem_buf *out, const struct met_row *slab, unsigned rows)
{
    static const struct {
        const char *name, *labels, *help, *type;
    } m[] = {
#define G "gauge"
#define C "counter"
#define X(id, type, name, labels, help) {name, labels, help, type},
        MET_LIST(X)
#undef X
#undef C
#undef G
    };

    for (unsigned id = 0; id < MET_N; id++) {
        uint64_t sum = 0;

        for (unsigned i = 0; i < rows; i++)
            sum += __atomic_load_n(&slab[i].v[id], __ATOMIC_RELAXED);
        if (id == 0 || strcmp(m[id].name, m[id - 1].name) != 0)
            mem_buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", m[id].name,
                           m[id].help, m[id].name, m[id].type);
        mem_buf_printf(out, "%s%s %" PRId64 "\n", m[id].name, m[id].labels,
                       (int64_t)sum);
    }
}

/* One route's counts over all workers, whose rows lie `stride` apart. */
static struct met_route
met_route_sum(const struct met_route *first, size_t stride, unsigned workers)
{
    struct met_route r = {0};

    for (unsigned w = 0; w < workers; w++) {
        const struct met_route *one = first + w * stride;

        for (unsigned i = 0; i < MET_CLASSES; i++)
            r.by_class[i] += one->by_class[i];
        for (unsigned i = 0; i <= MET_BUCKETS; i++)
            r.bucket[i] += one->bucket[i];
        r.sum_us += one->sum_us;
    }
    return r;
}

/* `route` is a label's value, escaped already. */
static void
met_render_durations(struct mem_buf *out, const char *route,
                     const struct met_route *r)
{
    static const char name[] = "http_server_request_duration_seconds";
    uint64_t below = 0;

    for (unsigned i = 0; i < MET_BUCKETS; i++) {
        below += r->bucket[i];
        mem_buf_printf(out, "%s_bucket{route=\"%s\",le=\"%g\"} %" PRIu64 "\n",
                       name, route, met_bucket_us[i] / 1e6, below);
    }
    below += r->bucket[MET_BUCKETS];
    mem_buf_printf(out,
                   "%s_bucket{route=\"%s\",le=\"+Inf\"} %" PRIu64 "\n"
                   "%s_sum{route=\"%s\"} %.6f\n"
                   "%s_count{route=\"%s\"} %" PRIu64 "\n",
                   name, route, below, name, route, (double)r->sum_us / 1e6,
                   name, route, below);
}

static void
met_render_classes(struct mem_buf *out, const char *route,
                   const struct met_route *r)
{
    for (unsigned i = 0; i < MET_CLASSES; i++)
        mem_buf_printf(out,
                       "gateway_responses_total{route=\"%s\",class=\"%uxx\"} "
                       "%" PRIu64 "\n",
                       route, i + 1, r->by_class[i]);
}

/* ==== 6 json: yyjson behind our limits ======================================
 *
 * What json_parse() lets through has one meaning for every reader after us: no
 * duplicate keys, no lone surrogates, no number that another parser rounds to
 * infinity or cuts to 64 bits, no nesting that overruns somebody's stack. The
 * text itself is forwarded unchanged, so it is copied, never parsed in place.
 *
 * Values of one document lie in one array, in reading order: a container is
 * followed by its members, and json_next() steps over it.
 *
 * Entry   json_parse  json_get  json_cmp  json_equal  json_hash
 *         json_write_str  json_write_real
 */
enum {
    JSON_DEPTH_MAX = 64,
    JSON_ON_HEAP = 16384,  // value arrays above this do not live in the arena
    JSON_FEW_KEYS = 8,     // objects up to this are searched pair by pair
    JSON_STACK_KEYS = 128  // slots of a hash table that need no malloc()
};

/* Values that a hash is made of cannot be chosen to collide: the key is drawn
 * once per document or schema. */
struct json_key {
    uint64_t k0, k1;
};

/* The allocator of one document. Small arrays come from the arena; a large one
 * is grown by realloc() and freed with the arena. `most` is what a document of
 * this length can need, and stops "[[[[..." early. */
struct json_pool {
    struct mem_arena *arena;  // borrowed
    void *heap;               // owned until json_pool_free()
    size_t most;
};

static void *
json_pool_malloc(void *ctx, size_t n)
{
    struct json_pool *p = ctx;

    if (n > p->most)
        return NULL;
    if (n <= JSON_ON_HEAP)
        return mem_alloc_raw(p->arena, n);
    must(!p->heap);
    p->heap = mem_xmalloc(n);
    return p->heap;
}

static void *
json_pool_realloc(void *ctx, void *old, size_t old_n, size_t n)
{
    struct json_pool *p = ctx;
    void *fresh;

    if (n > p->most)
        return NULL;
    if (old == p->heap) {
        p->heap = mem_xrealloc(old, n);
        return p->heap;
    }
    fresh = json_pool_malloc(ctx, n);
    if (fresh)
        memcpy(fresh, old, old_n < n ? old_n : n);
    return fresh;
}

static void
json_pool_release(void *ctx, void *old)
{
    struct json_pool *p = ctx;

    if (old == p->heap) {
        free(old);
        p->heap = NULL;
    }
}

static void
json_pool_free(void *data)
{
    struct json_pool *p = data;

    free(p->heap);
    p->heap = NULL;
}

static struct str
json_str(const yyjson_val *v)
{
    return (struct str){v->uni.str, (size_t)(v->tag >> YYJSON_TAG_BIT)};
}

/* Members of an object, items of an array. */
static size_t
json_count(const yyjson_val *v)
{
    return (size_t)(v->tag >> YYJSON_TAG_BIT);
}

static unsigned
json_type(const yyjson_val *v)
{
    return (unsigned)(v->tag & YYJSON_TYPE_MASK);
}

static bool
json_is_real(const yyjson_val *v)
{
    return (v->tag & YYJSON_TAG_MASK) ==
           (YYJSON_TYPE_NUM | YYJSON_SUBTYPE_REAL);
}

static bool
json_is_sint(const yyjson_val *v)
{
    return (v->tag & YYJSON_TAG_MASK) ==
           (YYJSON_TYPE_NUM | YYJSON_SUBTYPE_SINT);
}

/* A negative integer. "-0" is none. */
static bool
json_is_negative(const yyjson_val *v)
{
    return json_is_sint(v) && v->uni.i64 < 0;
}

/* The value after `v` and all that is inside it. */
static yyjson_val *
json_next(yyjson_val *v)
{
    return unsafe_yyjson_get_next(v);
}

/* How many values `v` is made of, itself and keys included. */
static size_t
json_span(yyjson_val *v)
{
    return (size_t)(json_next(v) - v);
}

static uint64_t
json_rotl(uint64_t x, unsigned n)
{
    return x << n | x >> (64 - n);
}

/* One round of SipHash (Aumasson and Bernstein, 2012). */
static void
json_sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[1] = json_rotl(v[1], 13) ^ v[0];
    v[0] = json_rotl(v[0], 32);
    v[2] += v[3];
    v[3] = json_rotl(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = json_rotl(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = json_rotl(v[1], 17) ^ v[2];
    v[2] = json_rotl(v[2], 32);
}

/* SipHash-1-3 of `n` bytes; `kind` keeps "1" and 1 apart. */
static uint64_t
json_sip(const struct json_key *k, uint64_t kind, const void *bytes, size_t n)
{
    uint64_t v[4] = {
        k->k0 ^ UINT64_C(0x736f6d6570736575) ^ kind,
        k->k1 ^ UINT64_C(0x646f72616e646f6d),
        k->k0 ^ UINT64_C(0x6c7967656e657261),
        k->k1 ^ UINT64_C(0x7465646279746573),
    };
    const unsigned char *p = bytes;
    uint64_t word, last = (uint64_t)n << 56;

    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&word, p, 8);
        v[3] ^= word;
        json_sip_round(v);
        v[0] ^= word;
    }
    for (size_t i = 0; i < n; i++)
        last |= (uint64_t)p[i] << (8 * i);
    v[3] ^= last;
    json_sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for (int i = 0; i < 3; i++)
        json_sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* The system call by its number: its wrapper's header is not everywhere. */
static void
json_key_draw(struct json_key *k)
{
    must(syscall(SYS_getrandom, k, sizeof *k, 0) == (long)sizeof *k);
}

/* Equal values hash equally: 1 and 1.0, and members in any order. Recursion is
 * bounded by the depth that json_parse() allows. */
static uint64_t
json_hash(const struct json_key *k, yyjson_val *v)
{
    unsigned type = json_type(v);
    uint64_t h, sum = 0, pair[2];
    double d;

    if (type == YYJSON_TYPE_STR)
        return json_sip(k, type, v->uni.str, json_count(v));
    if (type == YYJSON_TYPE_NUM) {
        if (!json_is_real(v))
            return json_sip(k, json_is_negative(v) ? 64 : 65, &v->uni.u64, 8);
        d = v->uni.f64;
        if (d == floor(d) && d >= -0x1p63 && d < 0x1p64) {
            h = d < 0 ? (uint64_t)(int64_t)d : (uint64_t)d;
            return json_sip(k, d < 0 ? 64 : 65, &h, 8);
        }
        return json_sip(k, 66, &d, 8);
    }
    if (type == YYJSON_TYPE_ARR) {
        yyjson_val *item = v + 1;

        for (size_t i = json_count(v); i; i--, item = json_next(item)) {
            pair[0] = sum;
            pair[1] = json_hash(k, item);
            sum = json_sip(k, type, pair, sizeof pair);
        }
        return json_sip(k, type, &sum, 8);
    }
    if (type == YYJSON_TYPE_OBJ) {
        yyjson_val *key = v + 1;

        for (size_t i = json_count(v); i; i--, key = json_next(key + 1)) {
            pair[0] = json_hash(k, key);
            pair[1] = json_hash(k, key + 1);
            sum += json_sip(k, type, pair, sizeof pair);
        }
        return json_sip(k, type, &sum, 8);
    }
    return json_sip(k, v->tag & YYJSON_TAG_MASK, NULL, 0);
}

static int
json_cmp_u64(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

/* A double against an integer given as sign and magnitude, exactly. */
static int
json_cmp_real(double d, bool negative, uint64_t magnitude)
{
    double whole;
    int c;

    if ((d < 0) != negative && d != 0)
        return d < 0 ? -1 : 1;
    if (d == 0)
        return magnitude == 0 ? 0 : negative ? 1 : -1;
    d = fabs(d);
    whole = floor(d);
    if (whole >= 0x1p64)
        c = 1;
    else if ((c = json_cmp_u64((uint64_t)whole, magnitude)) == 0)
        c = d > whole;
    return negative ? -c : c;
}

/* Two numbers, exactly, whatever they are stored as: -1, 0 or 1. */
static int
json_cmp(const yyjson_val *a, const yyjson_val *b)
{
    bool an = json_is_negative(a), bn = json_is_negative(b);
    uint64_t am = an ? 0 - a->uni.u64 : a->uni.u64;
    uint64_t bm = bn ? 0 - b->uni.u64 : b->uni.u64;

    if (json_is_real(a) && json_is_real(b))
        return a->uni.f64 < b->uni.f64 ? -1 : a->uni.f64 > b->uni.f64;
    if (json_is_real(a))
        return json_cmp_real(a->uni.f64, bn, bm);
    if (json_is_real(b))
        return -json_cmp_real(b->uni.f64, an, am);
    if (an != bn)
        return an ? -1 : 1;
    return an ? json_cmp_u64(bm, am) : json_cmp_u64(am, bm);
}

/* The member `key` of an object, or NULL. */
static yyjson_val *
json_find(yyjson_val *obj, struct str key)
{
    yyjson_val *k = obj + 1;

    for (size_t i = json_count(obj); i; i--, k = json_next(k + 1))
        if (str_eq(json_str(k), key))
            return k + 1;
    return NULL;
}

/* Equality of JSON Schema. `a` is ours (from a schema) and small; `b` may be an
 * attacker's: the work is bounded by the size of `a` squared. */
static bool
json_equal(yyjson_val *a, yyjson_val *b)
{
    unsigned type = json_type(a);
    yyjson_val *other;

    if (type != json_type(b))
        return false;
    if (type == YYJSON_TYPE_NUM)
        return json_cmp(a, b) == 0;
    if (type == YYJSON_TYPE_STR)
        return str_eq(json_str(a), json_str(b));
    if (type < YYJSON_TYPE_ARR)
        return (a->tag & YYJSON_TAG_MASK) == (b->tag & YYJSON_TAG_MASK);
    if (json_count(a) != json_count(b))
        return false;
    if (type == YYJSON_TYPE_ARR) {
        size_t n = json_count(a);

        for (a++, b++; n; n--, a = json_next(a), b = json_next(b))
            if (!json_equal(a, b))
                return false;
        return true;
    }
    yyjson_val *key = a + 1;
    for (size_t i = json_count(a); i; i--, key = json_next(key + 1)) {
        other = json_find(b, json_str(key));
        if (!other || !json_equal(key + 1, other))
            return false;
    }
    return true;
}

/* The second of two equal keys among at most JSON_FEW_KEYS, or NULL. */
static yyjson_val *
json_duplicate_few(yyjson_val *obj)
{
    yyjson_val *keys[JSON_FEW_KEYS], *k = obj + 1;
    size_t n = json_count(obj);

    for (size_t i = 0; i < n; i++, k = json_next(k + 1)) {
        struct str s = json_str(k);

        keys[i] = k;
        for (size_t j = 0; j < i; j++)
            if (str_eq(json_str(keys[j]), s))
                return k;
    }
    return NULL;
}

/* The same for any number, in time proportional to it. */
static yyjson_val *
json_duplicate_many(yyjson_val *obj, struct json_key *secret)
{
    size_t n = json_count(obj), cap = 16, at;
    yyjson_val *small[JSON_STACK_KEYS] = {0}, **table = small, *k = obj + 1,
               *found = NULL;

    if (!secret->k0 && !secret->k1)
        json_key_draw(secret);
    while (cap < 2 * n)
        cap *= 2;
    if (cap > JSON_STACK_KEYS)
        table = mem_xcalloc(cap * sizeof(void *));
    for (size_t i = 0; i < n && !found; i++, k = json_next(k + 1)) {
        at = (size_t)json_hash(secret, k) & (cap - 1);
        while (table[at] && !str_eq(json_str(table[at]), json_str(k)))
            at = (at + 1) & (cap - 1);
        if (table[at])
            found = k;
        table[at] = k;
    }
    if (table != small)
        free(table);
    return found;
}

/* A key as a message may show it: short, and cut between characters. */
static struct str
json_brief(struct str s)
{
    size_t n = s.n < 40 ? s.n : 40;

    while (n < s.n && n && ((unsigned char)s.p[n] & 0xc0) == 0x80)
        n--;
    return (struct str){s.p, n};
}

/* The rules of ours that yyjson does not have. One pass in reading order; the
 * stack holds where each open container ends. */
static bool
json_check(yyjson_val *root, struct err *e)
{
    yyjson_val *ends[JSON_DEPTH_MAX], *end = json_next(root), *twice;
    struct json_key secret = {0, 0};
    unsigned depth = 0;

    for (yyjson_val *v = root; v < end; v++) {
        unsigned type = json_type(v);

        while (depth && v >= ends[depth - 1])
            depth--;
        if (type == YYJSON_TYPE_RAW)
            return err_set(e, ERR_SYNTAX,
                           "JSON: a number does not fit 64 bits: send it as a "
                           "string");
        if (type < YYJSON_TYPE_ARR)
            continue;
        if (depth == JSON_DEPTH_MAX)
            return err_set(e, ERR_SYNTAX, "JSON: nested more than %d deep",
                           JSON_DEPTH_MAX);
        ends[depth++] = json_next(v);
        if (type == YYJSON_TYPE_ARR)
            continue;
        twice = json_count(v) <= JSON_FEW_KEYS
                    ? json_duplicate_few(v)
                    : json_duplicate_many(v, &secret);
        if (twice)
            return err_set(e, ERR_SYNTAX, "JSON: duplicate key \"%.*s\"",
                           STR_FMT(json_brief(json_str(twice))));
    }
    return true;
}

/* Strict RFC 8259 in UTF-8. The document lives as long as the arena, of which
 * it takes at most the text's length and 64 KiB. */
static bool
json_parse(struct mem_arena *a, struct str text, yyjson_val **root,
           struct err *e)
{
    struct json_pool *pool = mem_alloc(a, sizeof *pool);
    yyjson_alc alc = {json_pool_malloc, json_pool_realloc, json_pool_release,
                      pool};
    yyjson_read_err why;
    yyjson_doc *doc;
    char *copy;

    *root = NULL;
    if (!text.n)
        return err_set(e, ERR_SYNTAX, "JSON: nothing there");
    if (text.n > UINT32_MAX / 2)
        return err_set(e, ERR_SYNTAX, "JSON: more than 2 GiB");
    copy = mem_alloc_raw(a, text.n + YYJSON_PADDING_SIZE);
    memcpy(copy, text.p, text.n);
    memset(copy + text.n, 0, YYJSON_PADDING_SIZE);
    pool->arena = a;
    pool->most = 12 * text.n + 256;
    mem_defer(a, json_pool_free, pool);
    doc = yyjson_read_opts(copy, text.n,
                           YYJSON_READ_INSITU | YYJSON_READ_BIGNUM_AS_RAW, &alc,
                           &why);
    if (!doc && why.code == YYJSON_READ_ERROR_MEMORY_ALLOCATION)
        return err_set(e, ERR_SYNTAX, "JSON: opens more than it closes");
    if (!doc)
        return err_set(e, ERR_SYNTAX, "JSON: byte %zu: %s", why.pos + 1,
                       why.msg);
    if (!json_check(doc->root, e))
        return false;
    *root = doc->root;
    return true;
}

/* The same by a C string; NULL also where `obj` is NULL or no object. */
static yyjson_val *
json_get(yyjson_val *obj, const char *key)
{
    if (!obj || json_type(obj) != YYJSON_TYPE_OBJ)
        return NULL;
    return json_find(obj, str_of(key));
}

/* Quoted and escaped; what is not UTF-8 becomes U+FFFD. DEL and the two line
 * separators of JavaScript pass as they are: RFC 8259 allows them. */
static void
json_write_str(struct mem_buf *b, struct str s)
{
    static const char letters[] = "btn\0fr";
    size_t from = 0, len;

    mem_buf_add(b, "\"", 1);
    for (size_t i = 0; i < s.n; i += len) {
        unsigned char c = (unsigned char)s.p[i];

        len = c < 0x80 ? 1
                       : str_utf8_len((const unsigned char *)s.p + i, s.n - i);
        if (c >= 0x20 && c != '"' && c != '\\' && len)
            continue;
        mem_buf_add(b, s.p + from, i - from);
        if (!len)
            mem_buf_add(b, "\xef\xbf\xbd", 3);
        else if (c >= 0x20)
            mem_buf_add(b, (char[]){'\\', (char)c}, 2);
        else if (c >= 8 && c <= 13 && letters[c - 8])
            mem_buf_add(b, (char[]){'\\', letters[c - 8]}, 2);
        else
            mem_buf_printf(b, "\\u%04x", c);
        len += !len;
        from = i + len;
    }
    mem_buf_add(b, s.p + from, s.n - from);
    mem_buf_add(b, "\"", 1);
}

/* The shortest decimal that reads back as the same double, marked as a real
 * number: 1.0 stays 1.0. */
static void
json_write_real(struct mem_buf *b, double d)
{
    char t[40];
    int n = 0;

    if (!isfinite(d)) {
        mem_buf_add(b, "null", 4);
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        n = snprintf(t, sizeof t, "%.*g", digits, d);
        if (strtod(t, NULL) == d)
            break;
    }
    mem_buf_add(b, t, (size_t)n);
    if (!strpbrk(t, ".e"))
        mem_buf_add(b, ".0", 2);
}

static void
json_write_num(struct mem_buf *b, const yyjson_val *v)
{
    if (json_is_real(v))
        json_write_real(b, v->uni.f64);
    else if (json_is_sint(v))
        mem_buf_printf(b, "%" PRId64, v->uni.i64);
    else
        mem_buf_printf(b, "%" PRIu64, v->uni.u64);
}

/* ==== 7 uri: request targets ================================================
 *
 * Bytes from the request line in, one meaning out. Whatever two parsers might
 * read in two ways is refused, never repaired: an encoded slash, dot segments,
 * empty segments, path parameters, stray bytes. Percent signs are decoded once;
 * "%252e" is the three characters "%2e" from then on, and is written to an
 * upstream as "%252e" again.
 *
 * A path or a value with nothing to decode borrows from the input, so the
 * input must live as long as the arena.
 *
 * Entry   uri_parse  uri_query  uri_authority  uri_write_path  uri_write_query
 */
struct uri {
    struct str path;       // decoded, starts with '/', no dot or empty segments
    struct str query;      // raw, without the '?'
    struct str authority;  // "host:port" of an absolute target, else empty
    bool absolute;
};

struct uri_param {
    struct str name, value;  // decoded
};

/* What a byte may be. RFC 3986: pchar is unreserved, sub-delims, ':' and '@';
 * the ';' is left out of URI_PATH and URI_QUERY because we refuse it there. */
enum {
    URI_PATH = 1,   // stands for itself in a path, '/' included
    URI_QUERY = 2,  // stands for itself in a query
    URI_PLAIN = 4,  // unreserved: never needs encoding
    URI_HOST = 8,   // in a registered name or IPv4 address
    URI_WORD = URI_PATH | URI_QUERY | URI_PLAIN | URI_HOST,
    URI_MARK = URI_PATH | URI_QUERY,
};

static const unsigned char uri_bytes[256] = {
    ['0' ... '9'] = URI_WORD,
    ['A' ... 'Z'] = URI_WORD,
    ['a' ... 'z'] = URI_WORD,
    ['-'] = URI_WORD,
    ['.'] = URI_WORD,
    ['_'] = URI_WORD,
    ['~'] = URI_PATH | URI_QUERY | URI_PLAIN,
    ['!'] = URI_MARK,
    ['$'] = URI_MARK,
    ['&'] = URI_MARK,
    ['\''] = URI_MARK,
    ['('] = URI_MARK,
    [')'] = URI_MARK,
    ['*'] = URI_MARK,
    ['+'] = URI_MARK,
    [','] = URI_MARK,
    ['='] = URI_MARK,
    [':'] = URI_MARK,
    ['@'] = URI_MARK,
    ['/'] = URI_MARK,
    ['?'] = URI_QUERY,
};

static bool
uri_byte_is(char c, unsigned what)
{
    return (uri_bytes[(unsigned char)c] & what) != 0;
}

/* The byte that "%XY" at `i` stands for, or -1. */
static int
uri_unescape(struct str s, size_t i)
{
    int hi, lo;

    if (s.n - i < 3)
        return -1;
    hi = str_hex_digit(s.p[i + 1]);
    lo = str_hex_digit(s.p[i + 2]);
    return hi < 0 || lo < 0 ? -1 : hi << 4 | lo;
}

/* Decodes `s` once into *out. The bytes named in `never` are refused when they
 * come encoded, and so is every control byte: none of them has a use that is
 * worth the doubt. '+' becomes a space where `plus` says so. */
static bool
uri_decode(struct mem_arena *a, struct str s, const char *never, bool plus,
           struct str *out, struct err *e)
{
    char *p = mem_alloc_raw(a, s.n + 1);
    bool ascii = true;
    size_t n = 0;

    for (size_t i = 0; i < s.n; i++) {
        int c = (unsigned char)s.p[i];

        if (c == '+' && plus)
            c = ' ';
        if (c == '%') {
            c = uri_unescape(s, i);
            if (c < 0)
                return err_set(e, ERR_SYNTAX,
                               "'%%' without two hexadecimal digits");
            if (c < 0x20 || c == 0x7f || strchr(never, c))
                return err_set(e, ERR_SYNTAX, "%%%02x is not allowed here",
                               (unsigned)c);
            ascii = ascii && c < 0x80;
            i += 2;
        }
        p[n++] = (char)c;
    }
    p[n] = 0;
    *out = (struct str){p, n};
    if (!ascii && !str_utf8(*out))
        return err_set(e, ERR_SYNTAX, "not UTF-8 when decoded");
    return true;
}

/* Segments of a path that starts with '/'. An empty last one is a trailing
 * slash, and fine. */
static bool
uri_check_segments(struct str path, struct err *e)
{
    const char *p = path.p, *end = path.p + path.n;

    while (p < end) {
        const char *s = ++p;
        size_t n;

        while (p < end && *p != '/')
            p++;
        n = (size_t)(p - s);
        if (n == 0 && p < end)
            return err_set(e, ERR_SYNTAX, "path: an empty segment ('//')");
        if (n && n <= 2 && s[0] == '.' && s[n - 1] == '.')
            return err_set(e, ERR_SYNTAX, "path: a segment of dots ('%.*s')",
                           (int)n, s);
    }
    return true;
}

/* The path as it was sent, to the one form every later check works on. */
static bool
uri_path(struct mem_arena *a, struct str raw, struct str *path, struct err *e)
{
    bool encoded = false;

    for (size_t i = 0; i < raw.n; i++) {
        if (uri_byte_is(raw.p[i], URI_PATH))
            continue;
        if (raw.p[i] != '%')
            return err_set(e, ERR_SYNTAX, "path: byte 0x%02x is not allowed",
                           (unsigned char)raw.p[i]);
        encoded = true;
    }
    *path = raw;
    if (encoded && !uri_decode(a, raw, "/\\;", false, path, e))
        return err_prefix(e, "path: ");
    return uri_check_segments(*path, e);
}

/* Only that each byte may stand in a query; uri_query() reads it. */
static bool
uri_check_query(struct str raw, struct err *e)
{
    for (size_t i = 0; i < raw.n; i++)
        if (!uri_byte_is(raw.p[i], URI_QUERY) && raw.p[i] != '%')
            return err_set(e, ERR_SYNTAX,
                           "query: byte 0x%02x must be percent-encoded",
                           (unsigned char)raw.p[i]);
    return true;
}

static bool
uri_port(struct str s, uint16_t *port)
{
    uint64_t v;

    if (s.n > 5 || !str_u64(s, &v) || v == 0 || v > 65535)
        return false;
    *port = (uint16_t)v;
    return true;
}

/* Reads "host", "host:port" or "[IPv6]:port", of a Host field as well. The host
 * borrows from the text, brackets dropped; a port that is absent is 0. No user
 * name, no percent signs, no empty host. */
static bool
uri_authority(struct str text, struct str *host, uint16_t *port)
{
    struct in6_addr unused;
    struct str rest = {0};
    char v6[INET6_ADDRSTRLEN];
    bool more;

    *port = 0;
    if (text.n && text.p[0] == '[') {
        if (!str_cut(str_from(text, 1), ']', host, &rest) || !host->n ||
            host->n >= sizeof v6)
            return false;
        memcpy(v6, host->p, host->n);
        v6[host->n] = 0;
        if (strlen(v6) != host->n || inet_pton(AF_INET6, v6, &unused) != 1)
            return false;
        if (!rest.n)
            return true;
        return rest.p[0] == ':' && uri_port(str_from(rest, 1), port);
    }
    more = str_cut(text, ':', host, &rest);
    if (!host->n || host->n > 255 || (more && !uri_port(rest, port)))
        return false;
    for (size_t i = 0; i < host->n; i++)
        if (!uri_byte_is(host->p[i], URI_HOST))
            return false;
    return true;
}

/* Takes "http://authority" off the front of an absolute target. */
static bool
uri_cut_authority(struct str *target, struct uri *u, struct err *e)
{
    struct str host;
    uint16_t port;
    size_t n = 0;

    if (target->n >= 7 && str_eqi((struct str){target->p, 7}, S("http://")))
        *target = str_from(*target, 7);
    else if (target->n >= 8 &&
             str_eqi((struct str){target->p, 8}, S("https://")))
        *target = str_from(*target, 8);
    else
        return err_set(e, ERR_SYNTAX, "target: neither a path nor http(s)://");
    while (n < target->n && target->p[n] != '/' && target->p[n] != '?')
        n++;
    u->absolute = true;
    u->authority = (struct str){target->p, n};
    if (!uri_authority(u->authority, &host, &port))
        return err_set(e, ERR_SYNTAX, "target: not a host and port");
    *target = str_from(*target, n);
    return true;
}

/* Origin form ("/a?b") and absolute form ("http://host/a?b"). The caller
 * compares u->authority with Host. */
static bool
uri_parse(struct mem_arena *a, struct str target, struct uri *u, struct err *e)
{
    struct str raw;

    *u = (struct uri){.authority = S("")};
    if ((!target.n || target.p[0] != '/') && !uri_cut_authority(&target, u, e))
        return false;
    str_cut(target, '?', &raw, &u->query);
    if (!raw.n)
        raw = S("/");  // "http://host" and "http://host?a=b"
    return uri_path(a, raw, &u->path, e) && uri_check_query(u->query, e);
}

/* One side of "name=value". */
static bool
uri_query_text(struct mem_arena *a, struct str raw, struct str *out,
               struct err *e)
{
    bool encoded = false;

    for (size_t i = 0; i < raw.n; i++) {
        if (raw.p[i] == '%' || raw.p[i] == '+')
            encoded = true;
        else if (!uri_byte_is(raw.p[i], URI_QUERY))
            return err_set(e, ERR_SYNTAX, "byte 0x%02x must be percent-encoded",
                           (unsigned char)raw.p[i]);
    }
    *out = raw;
    return !encoded || uri_decode(a, raw, "", true, out, e);
}

/* The parameters in order. Only '&' separates; an empty piece ("a=1&") is
 * nothing, a piece without '=' has an empty value. Says which limit it hit. */
static bool
uri_query(struct mem_arena *a, struct str raw, size_t max,
          struct uri_param **params, size_t *n, struct err *e)
{
    struct str piece, name, value, rest = raw;
    size_t pieces = raw.n != 0;

    *n = 0;
    *params = NULL;
    for (size_t i = 0; i < raw.n; i++)
        pieces += raw.p[i] == '&';
    if (pieces > max)
        return err_set(e, ERR_SYNTAX, "query: more than %zu parameters", max);
    if (pieces)
        *params = mem_alloc_raw(a, pieces * sizeof **params);
    while (rest.n) {
        struct uri_param *p = &(*params)[*n];

        str_cut(rest, '&', &piece, &rest);
        if (!piece.n)
            continue;
        str_cut(piece, '=', &name, &value);
        if (!name.n)
            return err_set(e, ERR_SYNTAX, "query: a parameter without a name");
        if (!uri_query_text(a, name, &p->name, e) ||
            !uri_query_text(a, value, &p->value, e))
            return err_prefix(e, "query: ");
        ++*n;
    }
    return true;
}

/* Text with every byte encoded that is not of kind `keep`. */
static void
uri_write(struct mem_buf *b, struct str s, unsigned keep, const char *also)
{
    static const char digits[] = "0123456789ABCDEF";
    char *start = mem_buf_room(b, 3 * s.n), *w = start;

    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];

        if (uri_byte_is(s.p[i], keep) || (c && strchr(also, c))) {
            *w++ = s.p[i];
            continue;
        }
        *w++ = '%';
        *w++ = digits[c >> 4];
        *w++ = digits[c & 15];
    }
    b->n += (size_t)(w - start);
}

/* One path segment: a '/' in it is encoded. Nothing here can make "." or ".."
 * harmless, so whoever joins segments runs uri_parse() over the result. */
static void
uri_write_segment(struct mem_buf *b, struct str s)
{
    uri_write(b, s, URI_PLAIN, "!$&'()*+,=:@");
}

/* A path, or the rest of one: '/' separates. */
static void
uri_write_path(struct mem_buf *b, struct str s)
{
    uri_write(b, s, URI_PATH, "");
}

/* "a=1&b", without the '?'. An empty value is written without its '=', so that
 * "?flag" stays what it was. */
static void
uri_write_query(struct mem_buf *b, const struct uri_param *v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (i)
            mem_buf_add(b, "&", 1);
        uri_write(b, v[i].name, URI_PLAIN, "/:@,");
        if (!v[i].value.n)
            continue;
        mem_buf_add(b, "=", 1);
        uri_write(b, v[i].value, URI_PLAIN, "/:@,");
    }
}

/* ==== 8 hdr: header fields ==================================================
 *
 * Ordered, several values a name, names lower case from the door on: every
 * comparison after that is a length and a memcmp. Questions that are asked of
 * each field of each request (is it hop by hop? does it speak of identity?)
 * look at length and first byte before they compare anything.
 *
 * Entry   hdr_add  hdr_get  hdr_remove  hdr_list_has  hdr_hop_by_hop
 *         hdr_identity
 */
struct hdr {
    struct str name;  // lower case
    struct str value;
};

/* Zero-initialised is empty. The array lies in the arena of the first add. */
struct hdr_list {
    struct hdr *v;
    unsigned n, cap;
};

static void
hdr_grow(struct mem_arena *a, struct hdr_list *l)
{
    unsigned cap = l->cap ? 2 * l->cap : 16;
    struct hdr *v;

    must(cap > l->cap);
    v = mem_alloc_raw(a, cap * sizeof *v);
    if (l->n)
        memcpy(v, l->v, l->n * sizeof *v);
    l->v = v;
    l->cap = cap;
}

/* Borrows both; the name is lower case already. */
static void
hdr_add_ref(struct mem_arena *a, struct hdr_list *l, struct str name,
            struct str value)
{
    if (l->n == l->cap)
        hdr_grow(a, l);
    l->v[l->n++] = (struct hdr){name, value};
}

/* Copies both, and makes the name lower case. */
static void
hdr_add(struct mem_arena *a, struct hdr_list *l, struct str name,
        struct str value)
{
    char *p = mem_alloc_raw(a, name.n + value.n + 1);

    for (size_t i = 0; i < name.n; i++)
        p[i] = (char)str_lower_byte((unsigned char)name.p[i]);
    if (value.n)
        memcpy(p + name.n, value.p, value.n);
    p[name.n + value.n] = 0;
    hdr_add_ref(a, l, (struct str){p, name.n},
                (struct str){p + name.n, value.n});
}

/* The first value of a (lower-case) name, or NULL. */
static const struct str *
hdr_get(const struct hdr_list *l, struct str name)
{
    for (unsigned i = 0; i < l->n; i++)
        if (str_eq(l->v[i].name, name))
            return &l->v[i].value;
    return NULL;
}

static unsigned
hdr_count(const struct hdr_list *l, struct str name)
{
    unsigned n = 0;

    for (unsigned i = 0; i < l->n; i++)
        n += str_eq(l->v[i].name, name);
    return n;
}

/* Takes out every field of that name; the others keep their order. */
static void
hdr_remove(struct hdr_list *l, struct str name)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < l->n; i++)
        if (!str_eq(l->v[i].name, name))
            l->v[kept++] = l->v[i];
    l->n = kept;
}

/* token of RFC 9110 section 5.6.2: true for the bytes it is made of. */
static const bool hdr_token_byte[256] = {
    ['0' ... '9'] = true, ['A' ... 'Z'] = true, ['a' ... 'z'] = true,
    ['!'] = true,         ['#'] = true,         ['$'] = true,
    ['%'] = true,         ['&'] = true,         ['\''] = true,
    ['*'] = true,         ['+'] = true,         ['-'] = true,
    ['.'] = true,         ['^'] = true,         ['_'] = true,
    ['`'] = true,         ['|'] = true,         ['~'] = true,
};

static bool
hdr_name_ok(struct str name)
{
    for (size_t i = 0; i < name.n; i++)
        if (!hdr_token_byte[(unsigned char)name.p[i]])
            return false;
    return name.n != 0;
}

static bool
hdr_value_byte(unsigned char c)
{
    return c == '\t' || (c >= 0x20 && c != 0x7f);
}

/* Could one of eight bytes be a control byte? Exact but for HTAB. */
static bool
hdr_maybe_control(const char *p)
{
    const uint64_t ones = 0x0101010101010101, tops = 0x8080808080808080;
    uint64_t x, del;

    memcpy(&x, p, sizeof x);
    del = x ^ ones * 0x7f;
    return (((x - ones * 0x20) & ~x) | ((del - ones) & ~del)) & tops;
}

/* No control byte but HTAB. */
static bool
hdr_value_ok(struct str value)
{
    size_t i = 0;

    while (i < value.n) {
        if (value.n - i >= 8 && !hdr_maybe_control(value.p + i)) {
            i += 8;
            continue;
        }
        if (!hdr_value_byte((unsigned char)value.p[i++]))
            return false;
    }
    return true;
}

/* Is `token` an element of the comma-separated list, in any case? */
static bool
hdr_list_has(struct str value, struct str token)
{
    struct str one;

    while (value.n) {
        str_cut(value, ',', &one, &value);
        if (str_eqi(str_trim(one), token))
            return true;
    }
    return false;
}

/* Fields that end here and are never forwarded (RFC 9110 section 7.6.1, and
 * what older proxies used). Those that Connection names are hop by hop too:
 * see hdr_list_has(). The name is lower case. */
static bool
hdr_hop_by_hop(struct str name)
{
    switch (name.n) {
    case 2:
        return str_eq(name, S("te"));
    case 7:
        return str_eq(name, S("upgrade")) || str_eq(name, S("trailer"));
    case 10:
        return str_eq(name, S("connection")) || str_eq(name, S("keep-alive"));
    case 14:
        return str_eq(name, S("http2-settings"));
    case 16:
        return str_eq(name, S("proxy-connection"));
    case 17:
        return str_eq(name, S("transfer-encoding"));
    case 18:
        return str_eq(name, S("proxy-authenticate"));
    case 19:
        return str_eq(name, S("proxy-authorization"));
    case 25:
        return str_eq(name, S("proxy-authentication-info"));
    default:
        return false;
    }
}

/* Does `name`, from byte `from` on, begin with `with`? Everything that is not
 * a letter or digit is read as '-': CGI, WSGI and FastCGI servers fold '_', and
 * some any such byte, into the same variable name. */
static bool
hdr_folds_to(struct str name, size_t from, const char *with)
{
    for (size_t i = from; *with; i++, with++) {
        unsigned char c;

        if (i >= name.n)
            return false;
        c = str_lower_byte((unsigned char)name.p[i]);
        if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9'))
            c = '-';
        if (c != (unsigned char)*with)
            return false;
    }
    return true;
}

/* The X- half of hdr_identity(). */
static bool
hdr_identity_x(struct str name)
{
    switch (str_lower_byte((unsigned char)name.p[2])) {
    case 'a':
        return hdr_folds_to(name, 1, "-amzn-mtls-") ||
               hdr_folds_to(name, 1, "-arr-clientcert");
    case 'c':
        return hdr_folds_to(name, 1, "-client-cert") ||
               hdr_folds_to(name, 1, "-client-dn") ||
               hdr_folds_to(name, 1, "-client-ip") ||
               hdr_folds_to(name, 1, "-client-s-dn") ||
               hdr_folds_to(name, 1, "-client-verify") ||
               hdr_folds_to(name, 1, "-certificate") ||
               hdr_folds_to(name, 1, "-cluster-client-ip");
    case 'e':
        return hdr_folds_to(name, 1, "-envoy-");
    case 'f':
        return hdr_folds_to(name, 1, "-forwarded");
    case 'h':
        return hdr_folds_to(name, 1, "-http-method") ||
               (name.n == 6 && hdr_folds_to(name, 1, "-host"));
    case 'm':
        return hdr_folds_to(name, 1, "-method-override");
    case 'o':
        return hdr_folds_to(name, 1, "-original-");
    case 'r':
        return (name.n == 9 && hdr_folds_to(name, 1, "-real-ip")) ||
               (name.n == 13 && hdr_folds_to(name, 1, "-rewrite-url")) ||
               hdr_folds_to(name, 1, "-remote-user");
    case 's':
        return hdr_folds_to(name, 1, "-ssl-") ||
               hdr_folds_to(name, 1, "-sslclientcert");
    case 't':
        return hdr_folds_to(name, 1, "-tls-client-");
    default:
        return false;
    }
}

/* Fields by which a proxy tells an upstream who the client is or what it asked
 * for (also the ones by which frameworks let a client change its method). A
 * client's own are always removed, or any client could be anybody. */
static bool
hdr_identity(struct str name)
{
    if (name.n < 5)
        return false;  // shorter than "proxy"
    switch (str_lower_byte((unsigned char)name.p[0])) {
    case 'c':
        if (hdr_folds_to(name, 1, "f-connecting-ip"))
            return true;
        return (name.n == 11 || name.n == 17) &&
               hdr_folds_to(name, 1, "lient-cert") &&
               (name.n == 11 || hdr_folds_to(name, 11, "-chain"));
    case 'p':
        return name.n == 5 && hdr_folds_to(name, 1, "roxy");  // httpoxy
    case 'r':
        return hdr_folds_to(name, 1, "emote-user");
    case 't':
        return hdr_folds_to(name, 1, "rue-client-ip");
    case 'f':
        return name.n == 9 && hdr_folds_to(name, 1, "orwarded");
    case 's':
        return hdr_folds_to(name, 1, "sl-client-");
    case 'x':
        return hdr_identity_x(name);
    default:
        return false;
    }
}

/* ==== 9 schema: JSON Schema 2020-12, compiled ===============================
 *
 * A schema becomes a graph of nodes at load, and a check walks the instance and
 * the graph together. What the draft calls annotations (which members and items
 * some schema has spoken about) is a trail: an evaluated member pushes its
 * place in the document, and a branch that fails takes its entries back.
 *
 * Closed by default: at an instance location where a schema that speaks of
 * objects was applied, a member that nobody evaluated is refused, as if by
 * `unevaluatedProperties: false` on all schemas there together. So allOf
 * composes. Where a location is known to have one schema and no branches (mode
 * ALONE, most of every real schema), the member loop decides at once and keeps
 * no trail.
 *
 * Work is bounded: steps in proportion to the instance, nesting, and PCRE2's
 * own limits. Whatever gives up denies, also below `not` (`dead`).
 *
 * Entry   schema_compile  schema_check  schema_text  schema_is_array
 */
enum {
    SCHEMA_DEPTH_MAX = 128,       // nodes within nodes while checking
    SCHEMA_NODES_MAX = 50000,     // subschemas of one schema
    SCHEMA_NAMES_MAX = 1024,      // names that one object schema mentions
    SCHEMA_ENUM_LINEAR = 16,      // longer enums are looked up by hash
    SCHEMA_MATCH_MAX = 200000,    // PCRE2's steps for one match
    SCHEMA_HEAP_KIB = 8192,       // PCRE2's memory for one match
    SCHEMA_HEAP_KEEP = 65536,     // and what is kept of it, in bytes
    SCHEMA_STEPS_BASE = 1000000,  // for any instance
    SCHEMA_STEPS_EACH = 64,       // and for each value in it
    SCHEMA_TRAIL_BASE = 1000000,  // evaluated marks, for any instance
    SCHEMA_TRAIL_EACH = 8,        // and for each value in it
    SCHEMA_FORMAT_REGEX_MAX = 256
};

enum {
    SCHEMA_NULL = 1,
    SCHEMA_BOOL = 2,
    SCHEMA_INT = 4,
    SCHEMA_REAL = 8,  // "number" is INT and REAL
    SCHEMA_STR = 16,
    SCHEMA_ARR = 32,
    SCHEMA_OBJ = 64,
    SCHEMA_ANY = 127
};

/* How a node meets a value. */
enum schema_mode {
    SCHEMA_ALONE,  // the only schema that can reach this instance location
    SCHEMA_OUTER,  // entered from a parent value; others may come here too
    SCHEMA_INNER   // through allOf, $ref, ...: an OUTER or ALONE one is above
};

struct schema_node;

/* All `owned` by the boot arena and constant after schema_compile(). */
struct schema_re {
    pcre2_code *code;
    struct str text;
};

struct schema_format {
    const char *name;
    bool (*ok)(struct str);           // NULL: strings pass
    bool (*num)(const yyjson_val *);  // NULL: numbers pass
};

struct schema_step {
    const yyjson_val *v;  // multipleOf as written; NULL: none
    uint64_t m;           // = m * 10^e
    int e;
};

struct schema_num {
    yyjson_val *min, *max, *above, *below;
    struct schema_step step;
};

struct schema_string {
    uint64_t min, max;  // code points
    struct schema_re *re;
};

struct schema_list {
    struct schema_node **v;
    size_t n;
};

struct schema_arr {
    uint64_t min, max;
    uint64_t contains_min, contains_max;
    struct schema_list prefix;
    struct schema_node *items, *contains, *unevaluated;
    bool unique;
};

/* A name that `properties`, `required` or a dependent keyword mentions. */
struct schema_name {
    struct str name;
    struct schema_node *schema;  // NULL: mentioned only
};

struct schema_pattern {
    struct schema_re *re;
    struct schema_node *schema;
};

/* What the presence of one name asks for. */
struct schema_dep {
    unsigned on;       // index into names
    const char *word;  // the keyword
    unsigned *needs;   // indices into names
    size_t needs_n;
    struct schema_node *schema;
};

struct schema_obj {
    uint64_t min, max;
    struct schema_name *names;
    unsigned names_n, names_cap;
    uint16_t *slots;  // hash table: index into names plus one, 0 is free
    uint32_t mask;
    uint64_t seed;
    uint64_t *required;  // bit per name
    unsigned words;      // of `required`
    struct schema_pattern *patterns;
    size_t patterns_n;
    struct schema_node *additional, *unevaluated, *key;
    bool same;  // `additional` was written unevaluatedProperties
    struct schema_dep *deps;
    size_t deps_n;
};

/* What applies to the same value. */
struct schema_mix {
    struct schema_list all, any, one;
    struct schema_node *ref, *no, *cond, *yes, *other;
};

struct schema_enum {
    const char *word;  // "enum" or "const"
    yyjson_val **v;
    size_t n;
    uint64_t *hashes;  // sorted, beside `v`; NULL for a short one
};

struct schema_node {
    uint8_t types;       // accepted
    uint8_t text_types;  // what a text may be read as
    bool typed;          // `type` was written
    bool never;          // the schema `false`
    bool inplace;        // some schema below applies to the same value and
                         //   tells what it evaluated
    bool speaks;         // an object here is closed
    bool shares;         // two children may meet at one place
    uint8_t state;       // of schema_settle()
    struct schema_node *alias;  // nothing but a $ref
    struct schema_enum *value;
    struct schema_num *num;
    struct schema_string *str;
    struct schema_arr *arr;
    struct schema_obj *obj;
    struct schema_mix *mix;
    const struct schema_format *format;
    yyjson_val *at;  // where it was written, for messages
};

/* PCRE2's working memory, shared by the patterns of one schema: a process has
 * one thread. */
struct schema_engine {
    pcre2_match_data *match;
    pcre2_match_context *limits;
};

struct schema {
    struct schema_node *root;
    bool open;
    bool marks;  // the trail is needed at all
    struct json_key key;
    struct schema_engine *engine;  // owned
};

/* The first failure. Never holds a value of the instance, only member names. */
struct schema_why {
    char path[160];       // JSON pointer
    const char *keyword;  // static
    char msg[240];
};

/* One check under way. */
struct schema_run {
    const struct schema *s;
    yyjson_val *root;
    struct schema_why *why;
    int64_t steps;
    unsigned depth;
    unsigned quiet;   // above 0: a failure here is not the answer
    bool dead;        // gave up: nothing may turn this into success
    uint32_t *trail;  // place in the document * 2, + 1: an object to close
    size_t trail_n, trail_cap, trail_max;
    uint32_t small[64];
};

/* ---- where in a document ---- */

/* The child of container `at` that `v` is or is in; *key its key or NULL. */
static yyjson_val *
schema_child(yyjson_val *at, yyjson_val *v, yyjson_val **key, size_t *index)
{
    bool obj = json_type(at) == YYJSON_TYPE_OBJ;
    yyjson_val *child = at + 1, *next;

    *key = NULL;
    for (*index = 0; *index < json_count(at); ++*index, child = next) {
        if (obj)
            *key = child++;
        next = json_next(child);
        if (v < next)
            return child;
    }
    return NULL;
}

static size_t
schema_path_byte(char *out, size_t n, size_t cap, char c)
{
    if (n + 1 < cap)
        out[n] = c;
    return n + 1;
}

static size_t
schema_path_key(char *out, size_t n, size_t cap, struct str key)
{
    for (size_t i = 0; i < key.n; i++) {
        if (key.p[i] == '~' || key.p[i] == '/')
            n = schema_path_byte(out, n, cap, '~');
        n = schema_path_byte(out, n, cap,
                             key.p[i] == '~'   ? '0'
                             : key.p[i] == '/' ? '1'
                                               : key.p[i]);
    }
    return n;
}

/* The JSON pointer from `root` to `v`, found by stepping down: nothing has to
 * be remembered while all is well. Too long a one ends in "...". */
static void
schema_path(yyjson_val *root, yyjson_val *v, char *out, size_t cap)
{
    yyjson_val *at = root, *key;
    size_t n = 0, index, cut = cap - 4;
    char number[24];

    while (at && at != v && json_type(at) >= YYJSON_TYPE_ARR) {
        at = schema_child(at, v, &key, &index);
        n = schema_path_byte(out, n, cap, '/');
        if (key) {
            n = schema_path_key(out, n, cap, json_str(key));
            if (v == key)
                break;
            continue;
        }
        snprintf(number, sizeof number, "%zu", index);
        n = schema_path_key(out, n, cap, str_of(number));
    }
    if (n < cap) {
        out[n] = 0;
        return;
    }
    while (cut && ((unsigned char)out[cut] & 0xc0) == 0x80)
        cut--;
    memcpy(out + cut, "...", 4);
}

/* ---- names ---- */

/* Enough of a name to tell names apart: both ends and the length. The table's
 * seed is chosen so that its own names do not collide; a stranger's name costs
 * one probe and one comparison. */
static uint32_t
schema_name_hash(struct str s, uint64_t seed)
{
    uint64_t a = 0, b = 0;

    if (s.n >= 8) {
        memcpy(&a, s.p, 8);
        memcpy(&b, s.p + s.n - 8, 8);
    } else if (s.n >= 4) {
        memcpy(&a, s.p, 4);
        memcpy(&b, s.p + s.n - 4, 4);
    } else if (s.n) {
        a = (unsigned char)s.p[0] | (uint64_t)(unsigned char)s.p[s.n / 2] << 8;
        b = (unsigned char)s.p[s.n - 1];
    }
    a = (a ^ seed) * UINT64_C(0x9e3779b97f4a7c15);
    a ^= a >> 29;
    a = (a + b + s.n) * (seed | 1);
    return (uint32_t)(a >> 32);
}

static const struct schema_name *
schema_name_find(const struct schema_obj *o, struct str s)
{
    uint32_t at;

    if (!o->names_n)
        return NULL;
    for (at = schema_name_hash(s, o->seed) & o->mask; o->slots[at];
         at = (at + 1) & o->mask)
        if (str_eq(o->names[o->slots[at] - 1].name, s))
            return &o->names[o->slots[at] - 1];
    return NULL;
}

/* Fills the table for one seed; says how many names were pushed aside. */
static unsigned
schema_names_place(struct schema_obj *o)
{
    unsigned aside = 0;

    memset(o->slots, 0, (o->mask + 1) * sizeof *o->slots);
    for (unsigned i = 0; i < o->names_n; i++) {
        uint32_t at = schema_name_hash(o->names[i].name, o->seed) & o->mask;

        for (; o->slots[at]; at = (at + 1) & o->mask)
            aside++;
        o->slots[at] = (uint16_t)(i + 1);
    }
    return aside;
}

static void
schema_names_hash(struct mem_arena *a, struct schema_obj *o)
{
    uint32_t cap = 4;
    uint64_t best = 0;
    unsigned aside, least = UINT_MAX;

    while (cap < 3 * o->names_n)
        cap *= 2;
    o->slots = mem_alloc(a, cap * sizeof *o->slots);
    o->mask = cap - 1;
    for (unsigned i = 1; i <= 200 && least; i++) {
        o->seed = i * UINT64_C(0xd1342543de82ef95);
        aside = schema_names_place(o);
        if (aside < least) {
            least = aside;
            best = o->seed;
        }
    }
    o->seed = best;
    schema_names_place(o);
}

/* ---- numbers ---- */

/* A double as the shortest decimal that means it: digits * 10^exponent. */
static void
schema_decimal(double d, uint64_t *m, int *e)
{
    char t[40];
    int n = 0;

    d = fabs(d);
    for (int digits = 14; digits <= 16; digits++) {
        n = snprintf(t, sizeof t, "%.*e", digits, d);
        if (strtod(t, NULL) == d)
            break;
    }
    must(n > 0 && (size_t)n < sizeof t);
    *m = 0;
    *e = 0;
    for (char *p = t; *p && *p != 'e'; p++)
        if (*p >= '0' && *p <= '9') {
            *m = *m * 10 + (uint64_t)(*p - '0');
            *e -= p > t;
        }
    *e += atoi(strchr(t, 'e') + 1);
    while (*m && *m % 10 == 0) {
        *m /= 10;
        ++*e;
    }
}

/* (a * 10) mod m without leaving 64 bits. */
static uint64_t
schema_times_ten(uint64_t a, uint64_t m)
{
    uint64_t sum = 0;

    for (int i = 0; i < 10; i++)
        sum = sum >= m - a ? sum - (m - a) : sum + a;
    return sum;
}

/* Is `v` a whole multiple of `step`, in decimal arithmetic? 0.3 is one of 0.1,
 * which in binary it is not. */
static bool
schema_multiple(const yyjson_val *v, const struct schema_step *step)
{
    uint64_t m, unit = step->m;
    int e = 0;

    if (json_is_real(v))
        schema_decimal(v->uni.f64, &m, &e);
    else
        m = json_is_negative(v) ? 0 - v->uni.u64 : v->uni.u64;
    if (m == 0)
        return true;
    e -= step->e;
    for (; e < 0; e++)
        if (__builtin_mul_overflow(unit, 10u, &unit))
            return false;  // longer than any m
    m %= unit;
    for (; e > 0 && m; e--)
        m = schema_times_ten(m, unit);
    return m == 0;
}

/* A double that is a whole number is an integer: 1.0 is 1. */
static bool
schema_integral(const yyjson_val *v)
{
    return !json_is_real(v) || floor(v->uni.f64) == v->uni.f64;
}

static size_t
schema_code_points(struct str s)
{
    size_t n = 0;

    for (size_t i = 0; i < s.n; i++)
        n += ((unsigned char)s.p[i] & 0xc0) != 0x80;
    return n;
}

/* ---- formats ---- */

static bool
schema_is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool
schema_is_alpha(char c)
{
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'z';
}

/* Exactly `n` digits at the front of *s, taken off. */
static bool
schema_digits(struct str *s, size_t n, unsigned *out)
{
    *out = 0;
    if (s->n < n)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (!schema_is_digit(s->p[i]))
            return false;
        *out = *out * 10 + (unsigned)(s->p[i] - '0');
    }
    *s = str_from(*s, n);
    return true;
}

static bool
schema_take(struct str *s, char c)
{
    if (!s->n || s->p[0] != c)
        return false;
    *s = str_from(*s, 1);
    return true;
}

static bool
schema_take_date(struct str *s)
{
    static const unsigned char days[] = {31, 29, 31, 30, 31, 30,
                                         31, 31, 30, 31, 30, 31};
    unsigned y, m, d;
    bool leap;

    if (!schema_digits(s, 4, &y) || !schema_take(s, '-') ||
        !schema_digits(s, 2, &m) || !schema_take(s, '-') ||
        !schema_digits(s, 2, &d))
        return false;
    leap = (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
    return m >= 1 && m <= 12 && d >= 1 && d <= days[m - 1] &&
           (m != 2 || d < 29 || leap);
}

/* A leap second is only ever at 23:59:60 UTC. */
static bool
schema_take_time(struct str *s)
{
    unsigned h, m, sec, oh = 0, om = 0;
    bool west = false;

    if (!schema_digits(s, 2, &h) || !schema_take(s, ':') ||
        !schema_digits(s, 2, &m) || !schema_take(s, ':') ||
        !schema_digits(s, 2, &sec) || h > 23 || m > 59 || sec > 60)
        return false;
    if (schema_take(s, '.')) {
        if (!s->n || !schema_is_digit(s->p[0]))
            return false;
        while (s->n && schema_is_digit(s->p[0]))
            *s = str_from(*s, 1);
    }
    if (!schema_take(s, 'Z') && !schema_take(s, 'z')) {
        west = schema_take(s, '-');
        if (!west && !schema_take(s, '+'))
            return false;
        if (!schema_digits(s, 2, &oh) || !schema_take(s, ':') ||
            !schema_digits(s, 2, &om) || oh > 23 || om > 59)
            return false;
    }
    if (sec < 60)
        return true;
    oh = oh * 60 + om;
    m += h * 60 + 1440;
    m = west ? m + oh : m - oh;
    return m % 1440 == 23 * 60 + 59;
}

static bool
schema_format_date(struct str s)
{
    return schema_take_date(&s) && !s.n;
}

static bool
schema_format_time(struct str s)
{
    return schema_take_time(&s) && !s.n;
}

static bool
schema_format_date_time(struct str s)
{
    return schema_take_date(&s) &&
           (schema_take(&s, 'T') || schema_take(&s, 't')) &&
           schema_take_time(&s) && !s.n;
}

/* "1Y2M3D": units in this order without a gap, each with its digits. */
static bool
schema_take_units(struct str *s, const char *units)
{
    const char *at = NULL, *unit;
    struct str was = *s;

    for (;;) {
        while (s->n && schema_is_digit(s->p[0]))
            *s = str_from(*s, 1);
        if (s->n == was.n)
            return at != NULL;
        if (!s->n || !(unit = strchr(units, s->p[0])) || !*unit ||
            (at && unit != at + 1))
            return false;
        at = unit;
        *s = was = str_from(*s, 1);
    }
}

/* RFC 3339 appendix A. */
static bool
schema_format_duration(struct str s)
{
    struct str week;

    if (!schema_take(&s, 'P') || !s.n || memchr(s.p, 0, s.n))
        return false;
    week = s;
    if (schema_take_units(&week, "W") && !week.n)
        return true;
    if (s.p[0] != 'T' && !schema_take_units(&s, "YMD"))
        return false;
    return !s.n ||
           (schema_take(&s, 'T') && schema_take_units(&s, "HMS") && !s.n);
}

static bool
schema_host(struct str s, bool wide)
{
    size_t label = 0;

    if (!s.n || s.n > 253)
        return false;
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];
        bool edge = label == 0 || i + 1 == s.n || s.p[i + 1] == '.';

        if (c == '.') {
            if (!label || i + 1 == s.n)
                return false;
            label = 0;
            continue;
        }
        if (!schema_is_alpha(c) && !schema_is_digit(c) &&
            !(c == '-' && !edge) && !(wide && (unsigned char)c >= 0x80))
            return false;
        if (++label > 63)
            return false;
    }
    return true;
}

static bool
schema_format_hostname(struct str s)
{
    return schema_host(s, false);
}

static bool
schema_ip(struct str s, int family)
{
    char text[INET6_ADDRSTRLEN];
    unsigned char bytes[16];

    if (s.n >= sizeof text || memchr(s.p, 0, s.n))
        return false;
    memcpy(text, s.p, s.n);
    text[s.n] = 0;
    return inet_pton(family, text, bytes) == 1;
}

static bool
schema_format_ipv4(struct str s)
{
    return schema_ip(s, AF_INET);
}

static bool
schema_format_ipv6(struct str s)
{
    return schema_ip(s, AF_INET6);
}

static bool
schema_is_atext(char c, bool wide)
{
    return schema_is_alpha(c) || schema_is_digit(c) ||
           (c && strchr("!#$%&'*+-/=?^_`{|}~", c)) ||
           (wide && (unsigned char)c >= 0x80);
}

/* The quoted form of RFC 5321: qtextSMTP and quoted pairs. */
static bool
schema_quoted_local(struct str s, bool wide)
{
    if (s.n < 2 || s.p[0] != '"' || s.p[s.n - 1] != '"')
        return false;
    for (size_t i = 1; i < s.n - 1; i++) {
        if (s.p[i] == '"')
            return false;
        if (s.p[i] == '\\' && ++i == s.n - 1)
            return false;
        if ((unsigned char)s.p[i] < 32 || s.p[i] == 127 ||
            ((unsigned char)s.p[i] >= 0x80 && !wide))
            return false;
    }
    return true;
}

static bool
schema_local(struct str s, bool wide)
{
    if (!s.n || s.n > 64)
        return false;
    if (s.p[0] == '"')
        return schema_quoted_local(s, wide);
    for (size_t i = 0; i < s.n; i++)
        if (s.p[i] == '.' ? i == 0 || i + 1 == s.n || s.p[i + 1] == '.'
                          : !schema_is_atext(s.p[i], wide))
            return false;
    return true;
}

static bool
schema_mail(struct str s, bool wide)
{
    size_t at = s.n;
    struct str host;

    while (at && s.p[at - 1] != '@')
        at--;
    if (!at || !schema_local((struct str){s.p, at - 1}, wide))
        return false;
    host = str_from(s, at);
    if (host.n > 2 && host.p[0] == '[' && host.p[host.n - 1] == ']') {
        host = (struct str){host.p + 1, host.n - 2};
        if (host.n > 5 && str_eqi((struct str){host.p, 5}, S("IPv6:")))
            return schema_format_ipv6(str_from(host, 5));
        return schema_format_ipv4(host);
    }
    return schema_host(host, wide);
}

static bool
schema_format_email(struct str s)
{
    return schema_mail(s, false);
}

static bool
schema_format_idn_email(struct str s)
{
    return schema_mail(s, true);
}

static bool
schema_format_uuid(struct str s)
{
    if (s.n != 36)
        return false;
    for (size_t i = 0; i < 36; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;

        if (dash ? s.p[i] != '-' : str_hex_digit(s.p[i]) < 0)
            return false;
    }
    return true;
}

static bool
schema_format_json_pointer(struct str s)
{
    if (s.n && s.p[0] != '/')
        return false;
    for (size_t i = 0; i < s.n; i++)
        if (s.p[i] == '~' &&
            (i + 1 == s.n || (s.p[i + 1] != '0' && s.p[i + 1] != '1')))
            return false;
    return true;
}

/* "0", "12#", "1/a", and "0+1/a" of the newer drafts. */
static bool
schema_take_count(struct str *s)
{
    struct str was = *s;

    while (s->n && schema_is_digit(s->p[0]))
        *s = str_from(*s, 1);
    return s->n < was.n && (was.p[0] != '0' || was.n - s->n == 1);
}

static bool
schema_format_relative_pointer(struct str s)
{
    if (!schema_take_count(&s))
        return false;
    if ((schema_take(&s, '+') || schema_take(&s, '-')) &&
        !(s.n && s.p[0] != '0' && schema_take_count(&s)))
        return false;
    return str_eq(s, S("#")) || schema_format_json_pointer(s);
}

/* One component of a URI: unreserved, sub-delims, percent-encodings and what
 * `more` lists; `wide` lets RFC 3987's characters in. */
static bool
schema_uri_chars(struct str s, const char *more, bool wide)
{
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];

        if (c == '%') {
            if (s.n - i < 3 || str_hex_digit(s.p[i + 1]) < 0 ||
                str_hex_digit(s.p[i + 2]) < 0)
                return false;
            i += 2;
        } else if (!schema_is_alpha(c) && !schema_is_digit(c) &&
                   !(c && strchr("-._~!$&'()*+,;=", c)) &&
                   !(c && strchr(more, c)) &&
                   !(wide && (unsigned char)c >= 0x80)) {
            return false;
        }
    }
    return true;
}

/* "v1.x" between the brackets of an IP literal. */
static bool
schema_uri_future(struct str s)
{
    struct str version, rest;

    if (!s.n || (s.p[0] | 0x20) != 'v' ||
        !str_cut(str_from(s, 1), '.', &version, &rest) || !version.n || !rest.n)
        return false;
    for (size_t i = 0; i < version.n; i++)
        if (str_hex_digit(version.p[i]) < 0)
            return false;
    return !memchr(rest.p, '%', rest.n) && schema_uri_chars(rest, ":", false);
}

static bool
schema_uri_authority(struct str s, bool wide)
{
    struct str user, host = s, port = {s.p, 0};

    if (s.n && memchr(s.p, '@', s.n)) {
        str_cut(s, '@', &user, &host);
        if (!schema_uri_chars(user, ":", wide))
            return false;
    }
    if (host.n && host.p[0] == '[') {
        struct str literal;

        if (!str_cut(str_from(host, 1), ']', &literal, &port) ||
            !(schema_format_ipv6(literal) || schema_uri_future(literal)))
            return false;
        if (port.n && !schema_take(&port, ':'))
            return false;
    } else {
        str_cut(host, ':', &host, &port);
        if (!schema_uri_chars(host, "", wide))
            return false;
    }
    for (size_t i = 0; i < port.n; i++)
        if (!schema_is_digit(port.p[i]))
            return false;
    return true;
}

/* The length of "scheme", where `s` begins with "scheme:"; or 0. */
static size_t
schema_uri_scheme(struct str s)
{
    size_t i = 0;

    if (!s.n || !schema_is_alpha(s.p[0]))
        return 0;
    while (i < s.n && (schema_is_alpha(s.p[i]) || schema_is_digit(s.p[i]) ||
                       s.p[i] == '+' || s.p[i] == '-' || s.p[i] == '.'))
        i++;
    return i < s.n && s.p[i] == ':' ? i : 0;
}

/* A URI of RFC 3986 in its five parts; a part that is absent has p == NULL. */
struct schema_uri {
    struct str scheme, authority, path, query, fragment;
};

static void
schema_uri_split(struct str s, struct schema_uri *u)
{
    size_t n = schema_uri_scheme(s);
    struct str tail;

    *u = (struct schema_uri){0};
    if (n) {
        u->scheme = (struct str){s.p, n};
        s = str_from(s, n + 1);
    }
    if (str_cut(s, '#', &s, &tail))
        u->fragment = tail;
    if (str_cut(s, '?', &s, &tail))
        u->query = tail;
    if (str_starts(s, S("//"))) {
        s = str_from(s, 2);
        n = 0;
        while (n < s.n && s.p[n] != '/')
            n++;
        u->authority = (struct str){s.p, n};
        s = str_from(s, n);
    }
    u->path = s;
}

static bool
schema_uri_ok(struct str s, bool relative, bool wide)
{
    struct schema_uri u;
    struct str first, rest;

    if (wide && !str_utf8(s))
        return false;
    schema_uri_split(s, &u);
    if (!u.scheme.p) {
        if (!relative)
            return false;
        str_cut(u.path, '/', &first, &rest);
        if (!u.authority.p && first.n && memchr(first.p, ':', first.n))
            return false;
    }
    return (!u.authority.p || schema_uri_authority(u.authority, wide)) &&
           schema_uri_chars(u.path, ":@/", wide) &&
           (!u.query.p || schema_uri_chars(u.query, ":@/?", wide)) &&
           (!u.fragment.p || schema_uri_chars(u.fragment, ":@/?", wide));
}

static bool
schema_format_uri(struct str s)
{
    return schema_uri_ok(s, false, false);
}

static bool
schema_format_uri_reference(struct str s)
{
    return schema_uri_ok(s, true, false);
}

static bool
schema_format_iri(struct str s)
{
    return schema_uri_ok(s, false, true);
}

static bool
schema_format_iri_reference(struct str s)
{
    return schema_uri_ok(s, true, true);
}

static bool
schema_format_byte(struct str s)
{
    size_t pad = 0;

    if (s.n % 4)
        return false;
    while (pad < 2 && s.n && s.p[s.n - 1] == '=')
        s.n--, pad++;
    for (size_t i = 0; i < s.n; i++)
        if (!schema_is_alpha(s.p[i]) && !schema_is_digit(s.p[i]) &&
            s.p[i] != '+' && s.p[i] != '/')
            return false;
    return true;
}

/* What every pattern is compiled with: close to ECMA-262 in Unicode mode. There
 * \d and \w are ASCII and \s is not. */
static pcre2_code *
schema_re_compile(struct str s, int *error, size_t *offset)
{
    pcre2_compile_context *c = pcre2_compile_context_create(NULL);
    pcre2_code *code;

    must(c);
    pcre2_set_newline(c, PCRE2_NEWLINE_ANYCRLF);
    pcre2_set_compile_extra_options(
        c, PCRE2_EXTRA_ALT_BSUX | PCRE2_EXTRA_ASCII_BSD |
               PCRE2_EXTRA_ASCII_BSW | PCRE2_EXTRA_ASCII_POSIX);
    code = pcre2_compile((PCRE2_SPTR)s.p, s.n,
                         PCRE2_UTF | PCRE2_UCP | PCRE2_DOLLAR_ENDONLY |
                             PCRE2_ALLOW_EMPTY_CLASS | PCRE2_NEVER_BACKSLASH_C,
                         error, offset, c);
    pcre2_compile_context_free(c);
    return code;
}

/* A stranger's expression is compiled and thrown away, and so kept short. */
static bool
schema_format_regex(struct str s)
{
    pcre2_code *code;
    size_t offset;
    int error;

    if (s.n > SCHEMA_FORMAT_REGEX_MAX)
        return false;
    code = schema_re_compile(s, &error, &offset);
    pcre2_code_free(code);
    return code != NULL;
}

static bool
schema_num_between(const yyjson_val *v, int64_t min, uint64_t max)
{
    yyjson_val low = {YYJSON_TYPE_NUM | YYJSON_SUBTYPE_SINT, {.i64 = min}};
    yyjson_val high = {YYJSON_TYPE_NUM, {.u64 = max}};

    return schema_integral(v) && json_cmp(v, &low) >= 0 &&
           json_cmp(v, &high) <= 0;
}

static bool
schema_format_int32(const yyjson_val *v)
{
    return schema_num_between(v, INT32_MIN, INT32_MAX);
}

static bool
schema_format_int64(const yyjson_val *v)
{
    return schema_num_between(v, INT64_MIN, INT64_MAX);
}

static const struct schema_format schema_formats[] = {
    {"date-time", schema_format_date_time, NULL},
    {"date", schema_format_date, NULL},
    {"time", schema_format_time, NULL},
    {"duration", schema_format_duration, NULL},
    {"email", schema_format_email, NULL},
    {"idn-email", schema_format_idn_email, NULL},
    {"hostname", schema_format_hostname, NULL},
    {"ipv4", schema_format_ipv4, NULL},
    {"ipv6", schema_format_ipv6, NULL},
    {"uri", schema_format_uri, NULL},
    {"uri-reference", schema_format_uri_reference, NULL},
    {"iri", schema_format_iri, NULL},
    {"iri-reference", schema_format_iri_reference, NULL},
    {"uuid", schema_format_uuid, NULL},
    {"json-pointer", schema_format_json_pointer, NULL},
    {"relative-json-pointer", schema_format_relative_pointer, NULL},
    {"regex", schema_format_regex, NULL},
    {"byte", schema_format_byte, NULL},
    {"int32", NULL, schema_format_int32},
    {"int64", NULL, schema_format_int64},
};

/* ---- checking ---- */

/* Records the first failure that counts. Always false. */
__attribute__((format(printf, 4, 5), cold, noinline)) static bool
schema_fail(struct schema_run *r, yyjson_val *v, const char *keyword,
            const char *fmt, ...)
{
    va_list ap;

    if (!r->why || r->quiet || r->why->keyword)
        return false;
    r->why->keyword = keyword;
    schema_path(r->root, v, r->why->path, sizeof r->why->path);
    va_start(ap, fmt);
    vsnprintf(r->why->msg, sizeof r->why->msg, fmt, ap);
    va_end(ap);
    return false;
}

/* The check cannot be finished, so it ends as a failure whatever is above. */
__attribute__((cold, noinline)) static bool
schema_give_up(struct schema_run *r, yyjson_val *v, const char *keyword,
               const char *what)
{
    r->quiet = 0;
    r->dead = true;
    return schema_fail(r, v, keyword, "%s", what);
}

static void
schema_engine_free(void *data)
{
    struct schema_engine *g = data;

    pcre2_match_data_free(g->match);
    pcre2_match_context_free(g->limits);
}

static void
schema_engine_init(struct schema_engine *g)
{
    g->match = pcre2_match_data_create(1, NULL);
    g->limits = pcre2_match_context_create(NULL);
    must(g->match && g->limits);
    pcre2_set_depth_limit(g->limits, SCHEMA_MATCH_MAX / 2);
    pcre2_set_heap_limit(g->limits, SCHEMA_HEAP_KIB);
}

/* Backtracking grows the memory, which PCRE2 would keep for ever. */
static void
schema_engine_trim(struct schema_engine *g)
{
    if (pcre2_get_match_data_heapframes_size(g->match) <= SCHEMA_HEAP_KEEP)
        return;
    pcre2_match_data_free(g->match);
    g->match = pcre2_match_data_create(1, NULL);
    must(g->match);
}

/* Does the pattern match somewhere in `s`? Steps in proportion to the text are
 * free; a pattern that wants more of them pays, and at last gives up. There is
 * no JIT: a worker must never own a page that is writable and executable. */
static bool
schema_match(struct schema_run *r, const struct schema_re *re, yyjson_val *v)
{
    struct schema_engine *g = r->s->engine;
    struct str s = json_str(v);
    uint32_t limit = SCHEMA_MATCH_MAX;
    int n;

    if (s.n < SCHEMA_MATCH_MAX / 8)
        limit = 100 + 4 * (uint32_t)s.n;
    r->steps -= (int64_t)(s.n / 16);
    for (;;) {
        pcre2_set_match_limit(g->limits, limit);
        n = pcre2_match(re->code, (PCRE2_SPTR)s.p, s.n, 0, 0, g->match,
                        g->limits);
        if (n != PCRE2_ERROR_MATCHLIMIT || limit >= SCHEMA_MATCH_MAX)
            break;
        limit = limit < SCHEMA_MATCH_MAX / 10 ? limit * 10 : SCHEMA_MATCH_MAX;
        r->steps -= limit;
        if (r->steps < 0)
            break;
    }
    schema_engine_trim(g);
    if (n >= 0)
        return true;
    if (n != PCRE2_ERROR_NOMATCH)
        schema_give_up(r, v, "pattern", "the pattern takes too many steps");
    return false;
}

static bool
schema_push(struct schema_run *r, yyjson_val *v, bool close)
{
    uint32_t entry = (uint32_t)(v - r->root) << 1 | close;

    if (r->trail_n == r->trail_cap) {
        if (--r->steps < 0 || r->trail_cap > r->trail_max)
            return schema_give_up(r, v, "schema", "too much work to check");
        r->trail_cap *= 2;
        if (r->trail == r->small) {
            r->trail = mem_xmalloc(r->trail_cap * sizeof *r->trail);
            memcpy(r->trail, r->small, sizeof r->small);
        } else {
            r->trail = mem_xrealloc(r->trail, r->trail_cap * sizeof *r->trail);
        }
    }
    r->steps--;
    r->trail[r->trail_n++] = entry;
    return true;
}

/* One bit per value below `base`: evaluated since `from`. Free it. */
static uint64_t *
schema_trail_bits(struct schema_run *r, size_t from, yyjson_val *base)
{
    size_t span = json_span(base), off = (size_t)(base - r->root);
    uint64_t *bits = mem_xcalloc((span / 64 + 1) * 8);

    r->steps -= (int64_t)((r->trail_n - from) + span / 8);
    for (size_t i = from; i < r->trail_n; i++) {
        size_t at = (r->trail[i] >> 1) - off;

        if (!(r->trail[i] & 1) && at < span)
            bits[at / 64] |= UINT64_C(1) << at % 64;
    }
    return bits;
}

static bool schema_eval(struct schema_run *, const struct schema_node *,
                        yyjson_val *, enum schema_mode);

/* Tries a schema without letting its failure be the answer. What it evaluated
 * stays on the trail only if it holds. */
static bool
schema_try(struct schema_run *r, const struct schema_node *n, yyjson_val *v,
           enum schema_mode mode)
{
    size_t was = r->trail_n;
    bool ok;

    r->quiet++;
    ok = schema_eval(r, n, v, mode);
    if (r->dead)
        return false;
    r->quiet--;
    if (!ok)
        r->trail_n = was;
    return ok;
}

static const char *
schema_types_text(unsigned types, char *out, size_t n)
{
    static const struct {
        unsigned bits;
        const char *name;
    } names[] = {{SCHEMA_OBJ, "object"},  {SCHEMA_ARR, "array"},
                 {SCHEMA_STR, "string"},  {SCHEMA_INT | SCHEMA_REAL, "number"},
                 {SCHEMA_INT, "integer"}, {SCHEMA_BOOL, "boolean"},
                 {SCHEMA_NULL, "null"}};
    size_t at = 0;

    *out = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names && at < n; i++) {
        if ((types & names[i].bits) != names[i].bits)
            continue;
        at += (size_t)snprintf(out + at, n - at, "%s%s", at ? " or " : "",
                               names[i].name);
        types &= ~names[i].bits;
    }
    return out;
}

/* The bit of a value's type, by the low five bits of its tag. */
static unsigned
schema_type_of(const yyjson_val *v)
{
    static const uint8_t bits[32] = {
        [YYJSON_TYPE_NULL] = SCHEMA_NULL,
        [YYJSON_TYPE_BOOL] = SCHEMA_BOOL,
        [YYJSON_TYPE_BOOL | YYJSON_SUBTYPE_TRUE] = SCHEMA_BOOL,
        [YYJSON_TYPE_NUM | YYJSON_SUBTYPE_UINT] = SCHEMA_INT,
        [YYJSON_TYPE_NUM | YYJSON_SUBTYPE_SINT] = SCHEMA_INT,
        [YYJSON_TYPE_NUM | YYJSON_SUBTYPE_REAL] = SCHEMA_REAL,
        [YYJSON_TYPE_STR] = SCHEMA_STR,
        [YYJSON_TYPE_STR | YYJSON_SUBTYPE_NOESC] = SCHEMA_STR,
        [YYJSON_TYPE_ARR] = SCHEMA_ARR,
        [YYJSON_TYPE_OBJ] = SCHEMA_OBJ,
    };
    return bits[v->tag & 31];
}

__attribute__((cold, noinline)) static bool
schema_wrong_type(struct schema_run *r, const struct schema_node *n,
                  yyjson_val *v)
{
    char wanted[80];

    if (schema_type_of(v) == SCHEMA_REAL && (n->types & SCHEMA_INT) &&
        schema_integral(v))
        return true;
    if (n->never)
        return schema_fail(r, v, "false", "nothing is allowed here");
    return schema_fail(r, v, "type", "must be %s",
                       schema_types_text(n->types, wanted, sizeof wanted));
}

/* First place in the sorted hashes that is not below `h`. */
static size_t
schema_enum_at(const struct schema_enum *en, uint64_t h)
{
    size_t low = 0, high = en->n;

    while (low < high) {
        size_t mid = low + (high - low) / 2;

        if (en->hashes[mid] < h)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static bool
schema_check_enum(struct schema_run *r, const struct schema_enum *en,
                  yyjson_val *v)
{
    size_t i = 0;

    if (en->hashes) {
        uint64_t h = json_hash(&r->s->key, v);

        r->steps -= (int64_t)json_span(v);
        for (i = schema_enum_at(en, h); i < en->n && en->hashes[i] == h; i++)
            if (json_equal(en->v[i], v))
                return true;
    } else {
        for (; i < en->n; i++)
            if (json_equal(en->v[i], v))
                return true;
    }
    return schema_fail(r, v, en->word,
                       en->n == 1 ? "must be the one allowed value"
                                  : "must be one of the allowed values");
}

static bool
schema_limit_fail(struct schema_run *r, yyjson_val *v, const char *keyword,
                  const char *how, const yyjson_val *limit)
{
    struct mem_buf b = {0};

    if (r->why && !r->quiet) {
        json_write_num(&b, limit);
        schema_fail(r, v, keyword, "must be %s %.*s", how, (int)b.n,
                    mem_buf_ptr(&b));
    }
    mem_buf_free(&b);
    return false;
}

static bool
schema_check_num(struct schema_run *r, const struct schema_num *n,
                 yyjson_val *v)
{
    if (n->min && json_cmp(v, n->min) < 0)
        return schema_limit_fail(r, v, "minimum", "at least", n->min);
    if (n->max && json_cmp(v, n->max) > 0)
        return schema_limit_fail(r, v, "maximum", "at most", n->max);
    if (n->above && json_cmp(v, n->above) <= 0)
        return schema_limit_fail(r, v, "exclusiveMinimum", "above", n->above);
    if (n->below && json_cmp(v, n->below) >= 0)
        return schema_limit_fail(r, v, "exclusiveMaximum", "below", n->below);
    if (n->step.v && !schema_multiple(v, &n->step))
        return schema_limit_fail(r, v, "multipleOf", "a multiple of",
                                 n->step.v);
    return true;
}

/* Lengths are in code points, which are counted only where bytes do not tell:
 * a code point is 1 to 4 bytes. */
static bool
schema_check_str(struct schema_run *r, const struct schema_string *t,
                 yyjson_val *v)
{
    struct str s = json_str(v);
    uint64_t n = s.n;

    if (n > t->max || (n / 4 < t->min && (t->min > 1 || !n))) {
        r->steps -= (int64_t)(n / 64);
        n = schema_code_points(s);
        if (n < t->min)
            return schema_fail(r, v, "minLength",
                               "must have at least %" PRIu64 " characters",
                               t->min);
        if (n > t->max)
            return schema_fail(r, v, "maxLength",
                               "must have at most %" PRIu64 " characters",
                               t->max);
    }
    if (t->re && !schema_match(r, t->re, v))
        return schema_fail(r, v, "pattern", "must match %.*s",
                           STR_FMT(t->re->text));
    return true;
}

static bool
schema_check_format(struct schema_run *r, const struct schema_format *f,
                    yyjson_val *v, unsigned type)
{
    bool ok = true;

    if (type == SCHEMA_STR && f->ok) {
        r->steps -= (int64_t)(json_count(v) / 16);
        ok = f->ok(json_str(v));
    } else if ((type & (SCHEMA_INT | SCHEMA_REAL)) && f->num) {
        ok = f->num(v);
    }
    return ok ||
           schema_fail(r, v, "format", "must be in the format %s", f->name);
}

/* Unique by keyed hash: two different items that hash alike are refused, which
 * nobody can bring about and which would only refuse too much. */
static bool
schema_check_unique(struct schema_run *r, yyjson_val *v)
{
    size_t n = json_count(v), cap = 4, at;
    uint64_t small[32] = {0}, *table = small, h;
    yyjson_val *item = v + 1, *twice = NULL;

    while (cap < 2 * n)
        cap *= 2;
    r->steps -= (int64_t)(json_span(v) + cap / 8);
    if (r->steps < 0)
        return schema_give_up(r, v, "uniqueItems", "too much work to check");
    if (cap > sizeof small / sizeof *small)
        table = mem_xcalloc(cap * sizeof *table);
    for (; n && !twice; n--, item = json_next(item)) {
        h = json_hash(&r->s->key, item) | 1;  // 0 is a free slot
        for (at = (size_t)(h >> 1) & (cap - 1); table[at] && table[at] != h;)
            at = (at + 1) & (cap - 1);
        if (table[at])
            twice = item;
        table[at] = h;
    }
    if (table != small)
        free(table);
    return !twice || schema_fail(r, twice, "uniqueItems",
                                 "is there already: items must be unique");
}

/* `contains`: counts, and marks the items that fit as evaluated. */
static bool
schema_check_contains(struct schema_run *r, const struct schema_arr *a,
                      yyjson_val *v, bool mark)
{
    yyjson_val *item = v + 1;
    uint64_t hits = 0;

    for (size_t i = json_count(v); i; i--, item = json_next(item)) {
        bool ok = schema_try(r, a->contains, item, SCHEMA_OUTER);

        if (r->dead)
            return false;
        hits += ok;
        if (ok && mark && !schema_push(r, item, false))
            return false;
    }
    if (hits < a->contains_min)
        return schema_fail(
            r, v, a->contains_min == 1 ? "contains" : "minContains",
            "must have at least %" PRIu64 " items that fit", a->contains_min);
    if (hits > a->contains_max)
        return schema_fail(r, v, "maxContains",
                           "must have at most %" PRIu64 " items that fit",
                           a->contains_max);
    return true;
}

static bool
schema_check_items(struct schema_run *r, const struct schema_arr *a,
                   yyjson_val *v, enum schema_mode mode, bool mark)
{
    size_t n = json_count(v);
    yyjson_val *item = v + 1;

    for (size_t i = 0; i < n; i++, item = json_next(item)) {
        const struct schema_node *s =
            i < a->prefix.n ? a->prefix.v[i] : a->items;

        if (!s)
            break;
        if (!schema_eval(r, s, item, mode))
            return false;
        if (mark && !schema_push(r, item, false))
            return false;
    }
    return true;
}

static bool
schema_check_arr(struct schema_run *r, const struct schema_node *n,
                 yyjson_val *v, enum schema_mode mode)
{
    const struct schema_arr *a = n->arr;
    bool mark =
        r->s->marks && (mode != SCHEMA_ALONE || n->inplace || a->unevaluated);
    enum schema_mode below = mode == SCHEMA_ALONE && !n->inplace && !n->shares
                                 ? SCHEMA_ALONE
                                 : SCHEMA_OUTER;

    if (json_count(v) < a->min)
        return schema_fail(r, v, "minItems",
                           "must have at least %" PRIu64 " items", a->min);
    if (json_count(v) > a->max)
        return schema_fail(r, v, "maxItems",
                           "must have at most %" PRIu64 " items", a->max);
    if ((a->prefix.n || a->items) && !schema_check_items(r, a, v, below, mark))
        return false;
    if (a->contains && !schema_check_contains(r, a, v, mark))
        return false;
    return !a->unique || schema_check_unique(r, v);
}

/* The members of an object, one after the other. */
struct schema_walk {
    const struct schema_obj *o;
    enum schema_mode below;
    bool mark;   // keep the trail
    bool close;  // a member that nobody knows is refused here
    uint64_t *seen;
};

static bool
schema_unknown(struct schema_run *r, yyjson_val *member, bool unevaluated)
{
    return schema_fail(r, member,
                       unevaluated ? "unevaluatedProperties"
                                   : "additionalProperties",
                       "is not a member that the schema knows");
}

/* A member that `patternProperties` or `additionalProperties` may speak of;
 * `known` if `properties` did. */
static bool
schema_check_other(struct schema_run *r, const struct schema_walk *w,
                   yyjson_val *key, bool known)
{
    const struct schema_obj *o = w->o;

    for (size_t i = 0; i < o->patterns_n; i++) {
        if (!schema_match(r, o->patterns[i].re, key)) {
            if (r->dead)
                return false;
            continue;
        }
        known = true;
        if (!schema_eval(r, o->patterns[i].schema, key + 1, w->below))
            return false;
    }
    if (known)
        return !w->mark || schema_push(r, key + 1, false);
    if (!o->additional)
        return !w->close || schema_unknown(r, key + 1, true);
    if (o->additional->never)
        return schema_unknown(r, key + 1, o->same);
    return schema_eval(r, o->additional, key + 1, w->below) &&
           (!w->mark || schema_push(r, key + 1, false));
}

static bool
schema_check_members(struct schema_run *r, const struct schema_walk *w,
                     yyjson_val *v)
{
    const struct schema_obj *o = w->o;
    yyjson_val *key = v + 1;

    for (size_t i = json_count(v); i; i--, key = json_next(key + 1)) {
        const struct schema_name *name = schema_name_find(o, json_str(key));
        bool known = name && name->schema;

        if (--r->steps < 0)
            return schema_give_up(r, v, "schema", "too much work to check");
        if (name)
            w->seen[(name - o->names) / 64] |= UINT64_C(1)
                                               << (name - o->names) % 64;
        if (known && !schema_eval(r, name->schema, key + 1, w->below))
            return false;
        if (o->key && !schema_eval(r, o->key, key, SCHEMA_OUTER))
            return false;
        if (!o->patterns_n && known) {
            if (w->mark && !schema_push(r, key + 1, false))
                return false;
        } else if (!schema_check_other(r, w, key, known)) {
            return false;
        }
    }
    return true;
}

static bool
schema_seen(const uint64_t *seen, unsigned i)
{
    return seen[i / 64] >> i % 64 & 1;
}

static bool
schema_check_required(struct schema_run *r, const struct schema_obj *o,
                      yyjson_val *v, const uint64_t *seen)
{
    for (unsigned w = 0; w < o->words; w++) {
        uint64_t missing = o->required[w] & ~seen[w];

        if (missing)
            return schema_fail(
                r, v, "required", "lacks the member %.*s",
                STR_FMT(json_brief(
                    o->names[w * 64 + (unsigned)__builtin_ctzll(missing)]
                        .name)));
    }
    return true;
}

static bool
schema_check_deps(struct schema_run *r, const struct schema_obj *o,
                  yyjson_val *v, const uint64_t *seen)
{
    for (size_t i = 0; i < o->deps_n; i++) {
        const struct schema_dep *d = &o->deps[i];

        if (!schema_seen(seen, d->on))
            continue;
        for (size_t k = 0; k < d->needs_n; k++)
            if (!schema_seen(seen, d->needs[k]))
                return schema_fail(
                    r, v, d->word, "lacks the member %.*s, which %.*s needs",
                    STR_FMT(json_brief(o->names[d->needs[k]].name)),
                    STR_FMT(json_brief(o->names[d->on].name)));
        if (d->schema && !schema_eval(r, d->schema, v, SCHEMA_INNER))
            return false;
    }
    return true;
}

static bool
schema_check_obj(struct schema_run *r, const struct schema_node *n,
                 yyjson_val *v, enum schema_mode mode)
{
    const struct schema_obj *o = n->obj;
    bool alone = mode == SCHEMA_ALONE && !n->inplace;
    uint64_t seen[SCHEMA_NAMES_MAX / 64];
    struct schema_walk w = {
        .o = o,
        .below = alone && !n->shares ? SCHEMA_ALONE : SCHEMA_OUTER,
        .mark = r->s->marks && !alone,
        .close = alone && n->speaks && !r->s->open && !o->unevaluated,
        .seen = seen,
    };

    for (unsigned i = 0; i < o->words; i++)
        seen[i] = 0;
    if (json_count(v) < o->min)
        return schema_fail(r, v, "minProperties",
                           "must have at least %" PRIu64 " members", o->min);
    if (json_count(v) > o->max)
        return schema_fail(r, v, "maxProperties",
                           "must have at most %" PRIu64 " members", o->max);
    if (o->unevaluated)
        w.mark = true;
    return schema_check_members(r, &w, v) &&
           schema_check_required(r, o, v, seen) &&
           (!o->deps_n || schema_check_deps(r, o, v, seen));
}

/* Says more than "no alternative fits" where only one could have: the one
 * whose type is right. */
static bool
schema_none_fits(struct schema_run *r, const struct schema_list *list,
                 yyjson_val *v, const char *keyword)
{
    const struct schema_node *only = NULL;
    size_t was = r->trail_n, fit = 0;

    for (size_t i = 0; i < list->n && !r->quiet; i++)
        if (list->v[i]->text_types & schema_type_of(v)) {
            only = list->v[i];
            fit++;
        }
    if (fit == 1 && r->why && !r->quiet) {
        schema_eval(r, only, v, SCHEMA_INNER);
        r->trail_n = was;
    }
    return schema_fail(r, v, keyword, "fits none of the %zu alternatives",
                       list->n);
}

static bool
schema_check_any(struct schema_run *r, const struct schema_list *any,
                 yyjson_val *v)
{
    bool ok = false;

    for (size_t i = 0; i < any->n && !r->dead; i++) {
        ok |= schema_try(r, any->v[i], v, SCHEMA_INNER);
        if (ok && !r->s->marks)
            break;  // nobody asks what the others would evaluate
    }
    return (ok && !r->dead) || schema_none_fits(r, any, v, "anyOf");
}

static bool
schema_check_one(struct schema_run *r, const struct schema_list *one,
                 yyjson_val *v)
{
    size_t hits = 0;

    for (size_t i = 0; i < one->n && hits < 2 && !r->dead; i++)
        hits += schema_try(r, one->v[i], v, SCHEMA_INNER);
    if (r->dead)
        return false;
    if (hits > 1)
        return schema_fail(r, v, "oneOf", "fits more than one alternative");
    return hits == 1 || schema_none_fits(r, one, v, "oneOf");
}

/* `not` tells nobody what it evaluated, whichever way it ends. */
static bool
schema_check_not(struct schema_run *r, const struct schema_node *no,
                 yyjson_val *v)
{
    size_t was = r->trail_n;
    bool hit = schema_try(r, no, v, SCHEMA_INNER);

    r->trail_n = was;
    if (r->dead)
        return false;
    return !hit || schema_fail(r, v, "not", "is what the schema rules out");
}

static bool
schema_check_if(struct schema_run *r, const struct schema_mix *m, yyjson_val *v)
{
    const struct schema_node *next =
        schema_try(r, m->cond, v, SCHEMA_INNER) ? m->yes : m->other;

    return !r->dead && (!next || schema_eval(r, next, v, SCHEMA_INNER));
}

static bool
schema_check_mix(struct schema_run *r, const struct schema_mix *m,
                 yyjson_val *v)
{
    if (m->ref && !schema_eval(r, m->ref, v, SCHEMA_INNER))
        return false;
    for (size_t i = 0; i < m->all.n; i++)
        if (!schema_eval(r, m->all.v[i], v, SCHEMA_INNER))
            return false;
    return (!m->any.n || schema_check_any(r, &m->any, v)) &&
           (!m->one.n || schema_check_one(r, &m->one, v)) &&
           (!m->no || schema_check_not(r, m->no, v)) &&
           (!m->cond || schema_check_if(r, m, v));
}

/* `unevaluatedProperties` and `unevaluatedItems`: what the keywords and
 * branches of this very schema left over since `from`. */
static bool
schema_check_rest(struct schema_run *r, const struct schema_node *rest,
                  yyjson_val *v, size_t from)
{
    bool obj = json_type(v) == YYJSON_TYPE_OBJ, ok = true;
    uint64_t *bits = schema_trail_bits(r, from, v);
    yyjson_val *child = v + 1 + obj;

    for (size_t i = json_count(v); i && ok;
         i--, child = json_next(child) + obj) {
        if (bits[(child - v) / 64] >> (child - v) % 64 & 1)
            continue;
        if (rest->never)
            ok = obj ? schema_unknown(r, child, true)
                     : schema_fail(r, child, "unevaluatedItems",
                                   "is not an item that the schema knows");
        else
            ok = schema_eval(r, rest, child, SCHEMA_OUTER) &&
                 schema_push(r, child, false);
    }
    free(bits);
    return ok;
}

/* What depends on the value: everything but `type`. */
static bool
schema_eval_value(struct schema_run *r, const struct schema_node *n,
                  yyjson_val *v, unsigned type, enum schema_mode mode)
{
    size_t from = r->trail_n;

    if (n->value && !schema_check_enum(r, n->value, v))
        return false;
    if (type & (SCHEMA_INT | SCHEMA_REAL)) {
        if (n->num && !schema_check_num(r, n->num, v))
            return false;
    } else if (type == SCHEMA_STR) {
        if (n->str && !schema_check_str(r, n->str, v))
            return false;
    } else if (type == SCHEMA_ARR) {
        if (n->arr && !schema_check_arr(r, n, v, mode))
            return false;
    } else if (type == SCHEMA_OBJ) {
        if (mode != SCHEMA_INNER && n->speaks && !r->s->open &&
            (mode != SCHEMA_ALONE || n->inplace || !n->obj) &&
            !schema_push(r, v, true))
            return false;
        if (n->obj && !schema_check_obj(r, n, v, mode))
            return false;
    }
    if (n->format && !schema_check_format(r, n->format, v, type))
        return false;
    if (n->mix && !schema_check_mix(r, n->mix, v))
        return false;
    if (type == SCHEMA_OBJ && n->obj && n->obj->unevaluated)
        return schema_check_rest(r, n->obj->unevaluated, v, from);
    if (type == SCHEMA_ARR && n->arr && n->arr->unevaluated)
        return schema_check_rest(r, n->arr->unevaluated, v, from);
    return true;
}

static bool
schema_eval(struct schema_run *r, const struct schema_node *n, yyjson_val *v,
            enum schema_mode mode)
{
    unsigned type = schema_type_of(v);
    bool ok;

    if (n->alias)
        n = n->alias;
    if (r->dead)
        return false;
    if (!(n->types & type) && !schema_wrong_type(r, n, v))
        return false;
    if (--r->steps < 0)
        return schema_give_up(r, v, "schema", "too much work to check");
    if (r->depth == SCHEMA_DEPTH_MAX)
        return schema_give_up(r, v, "$ref", "nested too deep to check");
    r->depth++;
    ok = schema_eval_value(r, n, v, type, mode);
    r->depth--;
    return ok && !r->dead;
}

/* The end of a check that kept a trail: closed objects may hold only what was
 * evaluated by a schema that held. */
static bool
schema_close_all(struct schema_run *r)
{
    uint64_t *bits;
    bool ok = true;

    if (!r->trail_n || r->s->open)
        return true;
    bits = schema_trail_bits(r, 0, r->root);
    for (size_t i = 0; i < r->trail_n && ok; i++) {
        yyjson_val *v = r->root + (r->trail[i] >> 1), *child = v + 2;

        if (!(r->trail[i] & 1))
            continue;
        for (size_t k = json_count(v); k && ok;
             k--, child = json_next(child) + 1) {
            size_t at = (size_t)(child - r->root);

            if (--r->steps < 0)
                ok = schema_give_up(r, v, "schema", "too much work to check");
            else if (!(bits[at / 64] >> at % 64 & 1))
                ok = schema_unknown(r, child, true);
        }
    }
    free(bits);
    return ok;
}

static bool
schema_check_node(const struct schema *s, const struct schema_node *n,
                  yyjson_val *instance, struct schema_why *why)
{
    struct schema_run r;
    bool ok;

    must(json_span(instance) <= UINT32_MAX / 2);
    r = (struct schema_run){.s = s, .root = instance, .why = why};
    r.steps =
        SCHEMA_STEPS_BASE + (int64_t)json_span(instance) * SCHEMA_STEPS_EACH;
    r.trail = r.small;
    r.trail_cap = sizeof r.small / sizeof *r.small;
    r.trail_max = SCHEMA_TRAIL_BASE + json_span(instance) * SCHEMA_TRAIL_EACH;
    if (why)
        *why = (struct schema_why){.keyword = NULL};
    ok = schema_eval(&r, n, instance, SCHEMA_ALONE) && schema_close_all(&r);
    if (r.trail != r.small)
        free(r.trail);
    return ok;
}

static bool
schema_check(const struct schema *s, yyjson_val *instance,
             struct schema_why *why)
{
    return schema_check_node(s, s->root, instance, why);
}

/* ---- compiling ---- */

/* A place in the document that holds a schema. In reading order, and so sorted
 * by address. */
struct schema_spot {
    yyjson_val *v;
    struct schema_node *node;
    unsigned base;  // index into `resources`
};

/* The document, or a part with an `$id` of its own. */
struct schema_resource {
    struct str uri;  // without fragment; empty for a document without $id
    yyjson_val *v;
};

struct schema_anchor {
    unsigned base;
    struct str name;
    yyjson_val *v;
};

struct schema_build {
    struct mem_arena *arena;  // borrowed: what the schema will live in
    struct mem_arena *scrap;  // owned: the lists below
    struct schema *s;
    yyjson_val *doc;
    struct err *e;
    struct schema_spot *spots;
    size_t spots_n, spots_cap;
    struct schema_resource *resources;
    size_t resources_n, resources_cap;
    struct schema_anchor *anchors;
    size_t anchors_n, anchors_cap;
    bool unevaluated;  // some unevaluatedX is there
    unsigned depth;    // of schema_settle()
};

/* How a keyword's value holds subschemas. */
enum schema_kind {
    SCHEMA_KIND_NOTE,   // says nothing about instances
    SCHEMA_KIND_VALUE,  // no subschema
    SCHEMA_KIND_ONE,
    SCHEMA_KIND_LIST,
    SCHEMA_KIND_MAP
};

enum schema_part {
    SCHEMA_NODE,
    SCHEMA_NUMS,
    SCHEMA_STRS,
    SCHEMA_ARRS,
    SCHEMA_OBJS,
    SCHEMA_MIXES
};

struct schema_word {
    const char *name;
    enum schema_kind kind;
    enum schema_part part;
    size_t at;  // offset of the field in the part's struct
    bool (*fill)(struct schema_build *, struct schema_node *, yyjson_val *,
                 const struct schema_word *);
};

/* "schema at #/properties/a: pattern: ...". Always false. */
__attribute__((format(printf, 4, 5))) static bool
schema_bad(struct schema_build *b, yyjson_val *v, const char *word,
           const char *fmt, ...)
{
    char path[160], msg[300];
    va_list ap;

    schema_path(b->doc, v, path, sizeof path);
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    return err_set(b->e, ERR_CONFIG, "schema at #%s: %s%s%s", path,
                   word ? word : "", word ? ": " : "", msg);
}

/* A list that doubles in the scrap arena. */
static void *
schema_grow(struct schema_build *b, void *old, size_t n, size_t *cap,
            size_t each)
{
    void *fresh;

    if (n < *cap)
        return old;
    *cap = *cap ? 2 * *cap : 16;
    fresh = mem_alloc(b->scrap, *cap * each);
    if (n)
        memcpy(fresh, old, n * each);
    return fresh;
}

static const struct schema_spot *
schema_spot_find(const struct schema_build *b, const yyjson_val *v)
{
    size_t low = 0, high = b->spots_n;

    while (low < high) {
        size_t mid = low + (high - low) / 2;

        if (b->spots[mid].v < v)
            low = mid + 1;
        else
            high = mid;
    }
    return low < b->spots_n && b->spots[low].v == v ? &b->spots[low] : NULL;
}

/* The node of a subschema that schema_survey() has found. */
static struct schema_node *
schema_sub(const struct schema_build *b, const yyjson_val *v)
{
    const struct schema_spot *spot = schema_spot_find(b, v);

    must(spot);
    return spot->node;
}

/* The struct that a keyword's field is in, made when first needed. */
static void *
schema_part(struct schema_build *b, struct schema_node *n, enum schema_part p)
{
    struct mem_arena *a = b->arena;

    switch (p) {
    case SCHEMA_NUMS:
        n->num = n->num ? n->num : mem_alloc(a, sizeof *n->num);
        return n->num;
    case SCHEMA_STRS:
        if (!n->str) {
            n->str = mem_alloc(a, sizeof *n->str);
            n->str->max = UINT64_MAX;
        }
        return n->str;
    case SCHEMA_ARRS:
        if (!n->arr) {
            n->arr = mem_alloc(a, sizeof *n->arr);
            n->arr->max = n->arr->contains_max = UINT64_MAX;
            n->arr->contains_min = 1;
        }
        return n->arr;
    case SCHEMA_OBJS:
        if (!n->obj) {
            n->obj = mem_alloc(a, sizeof *n->obj);
            n->obj->max = UINT64_MAX;
        }
        return n->obj;
    case SCHEMA_MIXES:
        n->mix = n->mix ? n->mix : mem_alloc(a, sizeof *n->mix);
        return n->mix;
    case SCHEMA_NODE:
        break;
    }
    return n;
}

static void *
schema_field(struct schema_build *b, struct schema_node *n,
             const struct schema_word *w)
{
    return (char *)schema_part(b, n, w->part) + w->at;
}

static unsigned
schema_type_bit(struct str s)
{
    static const struct {
        const char *name;
        unsigned bits;
    } types[] = {{"null", SCHEMA_NULL},   {"boolean", SCHEMA_BOOL},
                 {"integer", SCHEMA_INT}, {"number", SCHEMA_INT | SCHEMA_REAL},
                 {"string", SCHEMA_STR},  {"array", SCHEMA_ARR},
                 {"object", SCHEMA_OBJ}};

    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (str_eq(s, str_of(types[i].name)))
            return types[i].bits;
    return 0;
}

static bool
schema_fill_type(struct schema_build *b, struct schema_node *n, yyjson_val *v,
                 const struct schema_word *w)
{
    bool list = json_type(v) == YYJSON_TYPE_ARR;
    size_t count = list ? json_count(v) : 1;
    unsigned bits, types = 0;

    for (yyjson_val *t = v + list; count; count--, t = json_next(t)) {
        bits =
            json_type(t) == YYJSON_TYPE_STR ? schema_type_bit(json_str(t)) : 0;
        if (!bits)
            return schema_bad(b, v, w->name,
                              "must be null, boolean, integer, number, string, "
                              "array or object, or a list of these");
        types |= bits;
    }
    if (!types)
        return schema_bad(b, v, w->name, "the list is empty");
    n->types = (uint8_t)types;
    n->typed = true;
    return true;
}

/* Sorted by hash, so that a long enum costs no more than a short one. */
static void
schema_enum_sort(struct schema_build *b, struct schema_enum *en)
{
    en->hashes = mem_alloc(b->arena, en->n * sizeof *en->hashes);
    for (size_t i = 0; i < en->n; i++) {
        uint64_t h = json_hash(&b->s->key, en->v[i]);
        yyjson_val *v = en->v[i];
        size_t at = i;

        for (; at && en->hashes[at - 1] > h; at--) {
            en->hashes[at] = en->hashes[at - 1];
            en->v[at] = en->v[at - 1];
        }
        en->hashes[at] = h;
        en->v[at] = v;
    }
}

/* `const` and `enum` are one thing; a schema with both wants both. */
static bool
schema_fill_enum(struct schema_build *b, struct schema_node *n, yyjson_val *v,
                 const struct schema_word *w)
{
    bool list = strcmp(w->name, "enum") == 0;
    struct schema_enum *en;

    if (list && (json_type(v) != YYJSON_TYPE_ARR || !json_count(v)))
        return schema_bad(b, v, w->name,
                          "must be a list of at least one value");
    if (list && json_count(v) > 10000)
        return schema_bad(b, v, w->name, "more than 10000 values");
    if (n->value)
        return schema_bad(b, v, w->name,
                          "beside const or enum: one of them is enough");
    n->value = en = mem_alloc(b->arena, sizeof *en);
    en->word = w->name;
    en->n = list ? json_count(v) : 1;
    en->v = mem_alloc(b->arena, en->n * sizeof(void *));
    v += list;
    for (size_t i = 0; i < en->n; i++, v = json_next(v))
        en->v[i] = v;
    if (en->n > SCHEMA_ENUM_LINEAR)
        schema_enum_sort(b, en);
    return true;
}

static bool
schema_fill_limit(struct schema_build *b, struct schema_node *n, yyjson_val *v,
                  const struct schema_word *w)
{
    if (json_type(v) != YYJSON_TYPE_NUM)
        return schema_bad(b, v, w->name, "must be a number");
    *(yyjson_val **)schema_field(b, n, w) = v;
    return true;
}

static bool
schema_fill_step(struct schema_build *b, struct schema_node *n, yyjson_val *v,
                 const struct schema_word *w)
{
    static const yyjson_val zero = {YYJSON_TYPE_NUM, {.u64 = 0}};
    struct schema_step *step = schema_field(b, n, w);

    if (json_type(v) != YYJSON_TYPE_NUM || json_cmp(v, &zero) <= 0)
        return schema_bad(b, v, w->name, "must be a number above 0");
    step->v = v;
    step->e = 0;
    if (json_is_real(v))
        schema_decimal(v->uni.f64, &step->m, &step->e);
    else
        step->m = v->uni.u64;
    return true;
}

static bool
schema_fill_count(struct schema_build *b, struct schema_node *n, yyjson_val *v,
                  const struct schema_word *w)
{
    uint64_t *out = schema_field(b, n, w);

    if (json_type(v) != YYJSON_TYPE_NUM || !schema_integral(v) ||
        (json_is_real(v) ? v->uni.f64 < 0 || v->uni.f64 >= 0x1p63
                         : json_is_negative(v)))
        return schema_bad(b, v, w->name, "must be a whole number, 0 or more");
    *out = json_is_real(v) ? (uint64_t)v->uni.f64 : v->uni.u64;
    return true;
}

static bool
schema_fill_bool(struct schema_build *b, struct schema_node *n, yyjson_val *v,
                 const struct schema_word *w)
{
    if (json_type(v) != YYJSON_TYPE_BOOL)
        return schema_bad(b, v, w->name, "must be true or false");
    *(bool *)schema_field(b, n, w) = unsafe_yyjson_is_true(v);
    return true;
}

static void
schema_re_free(void *code)
{
    pcre2_code_free(code);
}

static struct schema_re *
schema_re_new(struct schema_build *b, yyjson_val *at, const char *word,
              struct str text)
{
    struct schema_re *re = mem_alloc(b->arena, sizeof *re);
    PCRE2_UCHAR why[120];
    size_t offset;
    int error;

    re->text = text;
    re->code = schema_re_compile(text, &error, &offset);
    if (!re->code) {
        pcre2_get_error_message(error, why, sizeof why);
        schema_bad(b, at, word, "%.*s: character %zu: %s",
                   STR_FMT(json_brief(text)), offset + 1, (char *)why);
        return NULL;
    }
    mem_defer(b->arena, schema_re_free, re->code);
    return re;
}

static bool
schema_fill_pattern(struct schema_build *b, struct schema_node *n,
                    yyjson_val *v, const struct schema_word *w)
{
    struct schema_string *t = schema_part(b, n, SCHEMA_STRS);

    if (json_type(v) != YYJSON_TYPE_STR)
        return schema_bad(b, v, w->name, "must be a string");
    t->re = schema_re_new(b, v, w->name, json_str(v));
    return t->re != NULL;
}

static bool
schema_fill_format(struct schema_build *b, struct schema_node *n, yyjson_val *v,
                   const struct schema_word *w)
{
    if (json_type(v) != YYJSON_TYPE_STR)
        return schema_bad(b, v, w->name, "must be a string");
    for (size_t i = 0; i < sizeof schema_formats / sizeof *schema_formats; i++)
        if (str_eq(json_str(v), str_of(schema_formats[i].name)))
            n->format = &schema_formats[i];
    if (!n->format)
        return schema_bad(b, v, w->name,
                          "\"%.*s\" is not known: say it with a pattern",
                          STR_FMT(json_brief(json_str(v))));
    return true;
}

static bool
schema_fill_one(struct schema_build *b, struct schema_node *n, yyjson_val *v,
                const struct schema_word *w)
{
    *(struct schema_node **)schema_field(b, n, w) = schema_sub(b, v);
    if (w->name[0] == 'u')
        b->unevaluated = true;
    return true;
}

static bool
schema_fill_list(struct schema_build *b, struct schema_node *n, yyjson_val *v,
                 const struct schema_word *w)
{
    struct schema_list *list = schema_field(b, n, w);

    list->n = json_count(v);
    if (!list->n)
        return schema_bad(b, v, w->name, "the list is empty");
    list->v = mem_alloc(b->arena, list->n * sizeof(void *));
    v++;
    for (size_t i = 0; i < list->n; i++, v = json_next(v))
        list->v[i] = schema_sub(b, v);
    return true;
}

/* The index of a name in the object's table, added if it is new; UINT_MAX and
 * an error where there are too many. */
static unsigned
schema_name_add(struct schema_build *b, struct schema_obj *o, yyjson_val *at)
{
    struct str name = json_str(at);

    for (unsigned i = 0; i < o->names_n; i++)
        if (str_eq(o->names[i].name, name))
            return i;
    if (o->names_n == SCHEMA_NAMES_MAX) {
        schema_bad(b, at, NULL, "more than %d names in one schema",
                   SCHEMA_NAMES_MAX);
        return UINT_MAX;
    }
    if (o->names_n == o->names_cap) {
        struct schema_name *old = o->names;

        o->names_cap = o->names_cap ? 2 * o->names_cap : 8;
        o->names = mem_alloc(b->arena, o->names_cap * sizeof *o->names);
        if (o->names_n)
            memcpy(o->names, old, o->names_n * sizeof *old);
    }
    o->names[o->names_n].name = name;
    return o->names_n++;
}

static bool
schema_fill_properties(struct schema_build *b, struct schema_node *n,
                       yyjson_val *v, const struct schema_word *w)
{
    struct schema_obj *o = schema_part(b, n, w->part);
    yyjson_val *key = v + 1;
    unsigned at;

    for (size_t i = json_count(v); i; i--, key = json_next(key + 1)) {
        at = schema_name_add(b, o, key);
        if (at == UINT_MAX)
            return false;
        o->names[at].schema = schema_sub(b, key + 1);
    }
    return true;
}

static bool
schema_fill_patterns(struct schema_build *b, struct schema_node *n,
                     yyjson_val *v, const struct schema_word *w)
{
    struct schema_obj *o = schema_part(b, n, w->part);
    yyjson_val *key = v + 1;

    o->patterns_n = json_count(v);
    o->patterns = mem_alloc(b->arena, o->patterns_n * sizeof *o->patterns);
    for (size_t i = 0; i < o->patterns_n; i++, key = json_next(key + 1)) {
        o->patterns[i].schema = schema_sub(b, key + 1);
        o->patterns[i].re = schema_re_new(b, v, w->name, json_str(key));
        if (!o->patterns[i].re)
            return false;
    }
    return true;
}

/* Names from a list of strings, as indices. */
static bool
schema_names_of(struct schema_build *b, struct schema_obj *o, yyjson_val *list,
                const char *word, unsigned **out, size_t *n)
{
    yyjson_val *item = list + 1;

    if (json_type(list) != YYJSON_TYPE_ARR)
        return schema_bad(b, list, word, "must be a list of names");
    *n = json_count(list);
    *out = mem_alloc(b->arena, *n * sizeof **out);
    for (size_t i = 0; i < *n; i++, item = json_next(item)) {
        if (json_type(item) != YYJSON_TYPE_STR)
            return schema_bad(b, list, word, "must be a list of names");
        (*out)[i] = schema_name_add(b, o, item);
        if ((*out)[i] == UINT_MAX)
            return false;
    }
    return true;
}

/* Kept as a dependency on nothing until all names are known. */
static bool
schema_fill_required(struct schema_build *b, struct schema_node *n,
                     yyjson_val *v, const struct schema_word *w)
{
    struct schema_obj *o = schema_part(b, n, w->part);
    unsigned *names;
    size_t count;

    o->required = mem_alloc(b->arena, SCHEMA_NAMES_MAX / 8);
    if (!schema_names_of(b, o, v, w->name, &names, &count))
        return false;
    for (size_t i = 0; i < count; i++)
        o->required[names[i] / 64] |= UINT64_C(1) << names[i] % 64;
    return true;
}

/* `dependentRequired` and `dependentSchemas`. */
static bool
schema_fill_deps(struct schema_build *b, struct schema_node *n, yyjson_val *v,
                 const struct schema_word *w)
{
    struct schema_obj *o = schema_part(b, n, w->part);
    yyjson_val *key = v + 1;
    struct schema_dep *d;

    if (json_type(v) != YYJSON_TYPE_OBJ)
        return schema_bad(b, v, w->name, "must be an object");
    d = mem_alloc(b->arena, (o->deps_n + json_count(v)) * sizeof *d);
    if (o->deps_n)
        memcpy(d, o->deps, o->deps_n * sizeof *d);
    o->deps = d;
    for (size_t i = json_count(v); i; i--, key = json_next(key + 1)) {
        d = &o->deps[o->deps_n++];
        d->word = w->name;
        d->on = schema_name_add(b, o, key);
        if (d->on == UINT_MAX)
            return false;
        if (w->kind == SCHEMA_KIND_MAP)
            d->schema = schema_sub(b, key + 1);
        else if (!schema_names_of(b, o, key + 1, w->name, &d->needs,
                                  &d->needs_n))
            return false;
    }
    return true;
}

static bool schema_fill_ref(struct schema_build *, struct schema_node *,
                            yyjson_val *, const struct schema_word *);

/* An annotation; what names a place is read by schema_survey(). */
static bool
schema_fill_string(struct schema_build *b, struct schema_node *n, yyjson_val *v,
                   const struct schema_word *w)
{
    (void)n;
    return json_type(v) == YYJSON_TYPE_STR ||
           schema_bad(b, v, w->name, "must be a string");
}

static bool
schema_fill_draft(struct schema_build *b, struct schema_node *n, yyjson_val *v,
                  const struct schema_word *w)
{
    (void)n;
    if (json_type(v) == YYJSON_TYPE_STR &&
        (str_eq(json_str(v),
                S("https://json-schema.org/draft/2020-12/schema")) ||
         str_eq(json_str(v),
                S("https://json-schema.org/draft/2020-12/schema#"))))
        return true;
    return schema_bad(b, v, w->name,
                      "only https://json-schema.org/draft/2020-12/schema is "
                      "spoken here");
}

/* To add a keyword: one row here. The columns: name, what subschemas it holds,
 * where its value is kept, and who reads it. */
#define SCHEMA_AT(part, field) offsetof(struct schema_##part, field)
static const struct schema_word schema_words[] = {
    {"type", SCHEMA_KIND_VALUE, SCHEMA_NODE, 0, schema_fill_type},
    {"enum", SCHEMA_KIND_VALUE, SCHEMA_NODE, 0, schema_fill_enum},
    {"const", SCHEMA_KIND_VALUE, SCHEMA_NODE, 0, schema_fill_enum},
    {"format", SCHEMA_KIND_VALUE, SCHEMA_NODE, 0, schema_fill_format},
    {"minimum", SCHEMA_KIND_VALUE, SCHEMA_NUMS, SCHEMA_AT(num, min),
     schema_fill_limit},
    {"maximum", SCHEMA_KIND_VALUE, SCHEMA_NUMS, SCHEMA_AT(num, max),
     schema_fill_limit},
    {"exclusiveMinimum", SCHEMA_KIND_VALUE, SCHEMA_NUMS, SCHEMA_AT(num, above),
     schema_fill_limit},
    {"exclusiveMaximum", SCHEMA_KIND_VALUE, SCHEMA_NUMS, SCHEMA_AT(num, below),
     schema_fill_limit},
    {"multipleOf", SCHEMA_KIND_VALUE, SCHEMA_NUMS, SCHEMA_AT(num, step),
     schema_fill_step},
    {"minLength", SCHEMA_KIND_VALUE, SCHEMA_STRS, SCHEMA_AT(string, min),
     schema_fill_count},
    {"maxLength", SCHEMA_KIND_VALUE, SCHEMA_STRS, SCHEMA_AT(string, max),
     schema_fill_count},
    {"pattern", SCHEMA_KIND_VALUE, SCHEMA_STRS, 0, schema_fill_pattern},
    {"minItems", SCHEMA_KIND_VALUE, SCHEMA_ARRS, SCHEMA_AT(arr, min),
     schema_fill_count},
    {"maxItems", SCHEMA_KIND_VALUE, SCHEMA_ARRS, SCHEMA_AT(arr, max),
     schema_fill_count},
    {"uniqueItems", SCHEMA_KIND_VALUE, SCHEMA_ARRS, SCHEMA_AT(arr, unique),
     schema_fill_bool},
    {"items", SCHEMA_KIND_ONE, SCHEMA_ARRS, SCHEMA_AT(arr, items),
     schema_fill_one},
    {"prefixItems", SCHEMA_KIND_LIST, SCHEMA_ARRS, SCHEMA_AT(arr, prefix),
     schema_fill_list},
    {"contains", SCHEMA_KIND_ONE, SCHEMA_ARRS, SCHEMA_AT(arr, contains),
     schema_fill_one},
    {"minContains", SCHEMA_KIND_VALUE, SCHEMA_ARRS,
     SCHEMA_AT(arr, contains_min), schema_fill_count},
    {"maxContains", SCHEMA_KIND_VALUE, SCHEMA_ARRS,
     SCHEMA_AT(arr, contains_max), schema_fill_count},
    {"unevaluatedItems", SCHEMA_KIND_ONE, SCHEMA_ARRS,
     SCHEMA_AT(arr, unevaluated), schema_fill_one},
    {"properties", SCHEMA_KIND_MAP, SCHEMA_OBJS, 0, schema_fill_properties},
    {"patternProperties", SCHEMA_KIND_MAP, SCHEMA_OBJS, 0,
     schema_fill_patterns},
    {"additionalProperties", SCHEMA_KIND_ONE, SCHEMA_OBJS,
     SCHEMA_AT(obj, additional), schema_fill_one},
    {"unevaluatedProperties", SCHEMA_KIND_ONE, SCHEMA_OBJS,
     SCHEMA_AT(obj, unevaluated), schema_fill_one},
    {"propertyNames", SCHEMA_KIND_ONE, SCHEMA_OBJS, SCHEMA_AT(obj, key),
     schema_fill_one},
    {"required", SCHEMA_KIND_VALUE, SCHEMA_OBJS, 0, schema_fill_required},
    {"minProperties", SCHEMA_KIND_VALUE, SCHEMA_OBJS, SCHEMA_AT(obj, min),
     schema_fill_count},
    {"maxProperties", SCHEMA_KIND_VALUE, SCHEMA_OBJS, SCHEMA_AT(obj, max),
     schema_fill_count},
    {"dependentRequired", SCHEMA_KIND_VALUE, SCHEMA_OBJS, 0, schema_fill_deps},
    {"dependentSchemas", SCHEMA_KIND_MAP, SCHEMA_OBJS, 0, schema_fill_deps},
    {"allOf", SCHEMA_KIND_LIST, SCHEMA_MIXES, SCHEMA_AT(mix, all),
     schema_fill_list},
    {"anyOf", SCHEMA_KIND_LIST, SCHEMA_MIXES, SCHEMA_AT(mix, any),
     schema_fill_list},
    {"oneOf", SCHEMA_KIND_LIST, SCHEMA_MIXES, SCHEMA_AT(mix, one),
     schema_fill_list},
    {"not", SCHEMA_KIND_ONE, SCHEMA_MIXES, SCHEMA_AT(mix, no), schema_fill_one},
    {"if", SCHEMA_KIND_ONE, SCHEMA_MIXES, SCHEMA_AT(mix, cond),
     schema_fill_one},
    {"then", SCHEMA_KIND_ONE, SCHEMA_MIXES, SCHEMA_AT(mix, yes),
     schema_fill_one},
    {"else", SCHEMA_KIND_ONE, SCHEMA_MIXES, SCHEMA_AT(mix, other),
     schema_fill_one},
    {"$ref", SCHEMA_KIND_VALUE, SCHEMA_MIXES, SCHEMA_AT(mix, ref),
     schema_fill_ref},
    {"$defs", SCHEMA_KIND_MAP, SCHEMA_NODE, 0, NULL},
    {"$id", SCHEMA_KIND_NOTE, SCHEMA_NODE, 0, schema_fill_string},
    {"$anchor", SCHEMA_KIND_NOTE, SCHEMA_NODE, 0, schema_fill_string},
    {"$schema", SCHEMA_KIND_NOTE, SCHEMA_NODE, 0, schema_fill_draft},
    {"$comment", SCHEMA_KIND_NOTE, SCHEMA_NODE, 0, schema_fill_string},
    {"title", SCHEMA_KIND_NOTE, SCHEMA_NODE, 0, schema_fill_string},
    {"description", SCHEMA_KIND_NOTE, SCHEMA_NODE, 0, schema_fill_string},
    {"default", SCHEMA_KIND_NOTE, SCHEMA_NODE, 0, NULL},
    {"examples", SCHEMA_KIND_NOTE, SCHEMA_NODE, 0, NULL},
    {"deprecated", SCHEMA_KIND_NOTE, SCHEMA_NODE, 0, NULL},
    {"readOnly", SCHEMA_KIND_NOTE, SCHEMA_NODE, 0, NULL},
    {"writeOnly", SCHEMA_KIND_NOTE, SCHEMA_NODE, 0, NULL},
};
#undef SCHEMA_AT

/* Words of other drafts and dialects, and what to write instead. */
static const struct {
    const char *name, *mend;
} schema_foreign[] = {
    {"$dynamicRef", "not supported: use $ref"},
    {"$dynamicAnchor", "not supported: use $anchor"},
    {"$recursiveRef", "not supported: use $ref"},
    {"$vocabulary", "not supported: leave it out"},
    {"definitions", "write $defs"},
    {"dependencies", "write dependentRequired or dependentSchemas"},
    {"additionalItems", "write prefixItems for the first items and items for "
                        "the others"},
    {"id", "write $id"},
    {"nullable", "write type: [..., \"null\"]"},
    {"example", "write examples: [...]"},
    {"optional", "a member is optional unless `required` names it"},
};

static const struct schema_word *
schema_word_find(struct str name)
{
    for (size_t i = 0; i < sizeof schema_words / sizeof *schema_words; i++)
        if (str_eq(name, str_of(schema_words[i].name)))
            return &schema_words[i];
    return NULL;
}

/* How many single-byte edits lie between two short words. */
static unsigned
schema_distance(struct str a, const char *b)
{
    unsigned row[33], n = (unsigned)strlen(b), corner, up;

    if (a.n > 32 || n > 32)
        return UINT_MAX;
    for (unsigned j = 0; j <= n; j++)
        row[j] = j;
    for (unsigned i = 1; i <= a.n; i++) {
        corner = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= n; j++) {
            up = row[j];
            corner += a.p[i - 1] != b[j - 1];
            row[j] = corner < up + 1 ? corner : up + 1;
            if (row[j - 1] + 1 < row[j])
                row[j] = row[j - 1] + 1;
            corner = up;
        }
    }
    return row[n];
}

static bool
schema_unknown_word(struct schema_build *b, yyjson_val *key)
{
    struct str name = json_str(key);
    const char *near = NULL;
    unsigned best = 3, d;

    for (size_t i = 0; i < sizeof schema_foreign / sizeof *schema_foreign; i++)
        if (str_eq(name, str_of(schema_foreign[i].name)))
            return schema_bad(b, key, NULL, "%s", schema_foreign[i].mend);
    for (size_t i = 0; i < sizeof schema_words / sizeof *schema_words; i++) {
        d = schema_distance(name, schema_words[i].name);
        if (d < best) {
            best = d;
            near = schema_words[i].name;
        }
    }
    return schema_bad(b, key, NULL,
                      near ? "this keyword is not known: did you mean %s?"
                           : "this keyword is not known: take it out%s",
                      near ? near : "");
}

/* `ref` against `base` (RFC 3986 section 5.2), without the fragment. */
static void
schema_dots(struct mem_buf *out, struct str path)
{
    bool rooted = path.n && path.p[0] == '/', last;
    struct str part, rest;
    size_t floor_n = mem_buf_len(out) + rooted;

    if (rooted) {
        mem_buf_add(out, "/", 1);
        path = str_from(path, 1);
    }
    do {
        last = !str_cut(path, '/', &part, &rest);
        path = rest;
        if (str_eq(part, S("..")) && out->n > floor_n) {
            out->n--;
            while (out->n > floor_n && out->p[out->n - 1] != '/')
                out->n--;
        } else if (!str_eq(part, S(".")) && !str_eq(part, S(".."))) {
            mem_buf_add(out, part.p, part.n);
            mem_buf_add(out, "/", !last);
        }
    } while (!last);
}

static struct str
schema_resolve(struct schema_build *b, struct str base, struct str ref)
{
    struct schema_uri r, u;
    struct mem_buf out = {0};
    struct str done;

    schema_uri_split(base, &u);
    schema_uri_split(ref, &r);
    if (!r.scheme.p && !r.authority.p && !r.path.n && !r.query.p)
        return base;
    if (r.scheme.p || !u.scheme.p) {
        u.scheme = r.scheme.p ? r.scheme : u.scheme;
    }
    if (u.scheme.p)
        mem_buf_printf(&out, "%.*s:", STR_FMT(u.scheme));
    if (r.scheme.p || r.authority.p)
        u.authority = r.authority;
    if (u.authority.p)
        mem_buf_printf(&out, "//%.*s", STR_FMT(u.authority));
    if (r.scheme.p || r.authority.p || (r.path.n && r.path.p[0] == '/')) {
        schema_dots(&out, r.path);
    } else if (!r.path.n) {
        mem_buf_add(&out, u.path.p, u.path.n);
    } else {
        char *joined;

        while (u.path.n && u.path.p[u.path.n - 1] != '/')
            u.path.n--;
        joined =
            mem_printf(b->scrap, "%.*s%.*s", STR_FMT(u.path), STR_FMT(r.path));
        schema_dots(&out, str_of(joined));
    }
    if (r.query.p)
        mem_buf_printf(&out, "?%.*s", STR_FMT(r.query));
    done = str_dup(b->scrap, (struct str){mem_buf_ptr(&out), out.n});
    mem_buf_free(&out);
    return done;
}

/* `$id` opens a resource; *base becomes its index. */
static bool
schema_survey_id(struct schema_build *b, yyjson_val *v, unsigned *base)
{
    yyjson_val *id = json_get(v, "$id");
    struct schema_resource *r;
    struct schema_uri u;

    if (!id && b->resources_n)
        return true;
    if (id && json_type(id) != YYJSON_TYPE_STR)
        return schema_bad(b, id, NULL, "must be a string");
    b->resources = schema_grow(b, b->resources, b->resources_n,
                               &b->resources_cap, sizeof *b->resources);
    r = &b->resources[b->resources_n];
    r->v = v;
    r->uri = (struct str){"", 0};
    if (id) {
        schema_uri_split(json_str(id), &u);
        if (u.fragment.n)
            return schema_bad(b, id, NULL,
                              "must have no fragment: use $anchor");
        if (b->resources_n)
            r->uri = b->resources[*base].uri;
        r->uri = schema_resolve(b, r->uri, json_str(id));
        for (size_t i = 0; i < b->resources_n; i++)
            if (str_eq(b->resources[i].uri, r->uri))
                return schema_bad(b, id, NULL, "another schema has it already");
    }
    *base = (unsigned)b->resources_n++;
    return true;
}

static bool
schema_survey_anchor(struct schema_build *b, yyjson_val *v, unsigned base)
{
    yyjson_val *anchor = json_get(v, "$anchor");

    if (!anchor)
        return true;
    if (json_type(anchor) != YYJSON_TYPE_STR || !json_count(anchor))
        return schema_bad(b, anchor, NULL, "must be a name");
    for (size_t i = 0; i < b->anchors_n; i++)
        if (b->anchors[i].base == base &&
            str_eq(b->anchors[i].name, json_str(anchor)))
            return schema_bad(b, anchor, NULL, "another schema has it already");
    b->anchors = schema_grow(b, b->anchors, b->anchors_n, &b->anchors_cap,
                             sizeof *b->anchors);
    b->anchors[b->anchors_n++] =
        (struct schema_anchor){base, json_str(anchor), v};
    return true;
}

static bool schema_survey(struct schema_build *, yyjson_val *, unsigned);

/* The subschemas inside one keyword's value. */
static bool
schema_survey_word(struct schema_build *b, yyjson_val *v,
                   const struct schema_word *w, unsigned base)
{
    bool map = w->kind == SCHEMA_KIND_MAP;
    unsigned want = map ? YYJSON_TYPE_OBJ : YYJSON_TYPE_ARR;
    yyjson_val *item = v + 1;

    if (w->kind < SCHEMA_KIND_ONE)
        return true;
    if (w->kind == SCHEMA_KIND_ONE)
        return schema_survey(b, v, base);
    if (json_type(v) != want)
        return schema_bad(b, v, NULL, "must be %s of schemas",
                          map ? "an object" : "a list");
    for (size_t i = json_count(v); i; i--, item = json_next(item)) {
        item += map;
        if (!schema_survey(b, item, base))
            return false;
    }
    return true;
}

/* First pass: every place that holds a schema gets a node, so that the second
 * can point at any of them. Recursion is bounded by json_parse(). */
static bool
schema_survey(struct schema_build *b, yyjson_val *v, unsigned base)
{
    yyjson_val *key = v + 1;
    struct schema_node *n;

    if (json_type(v) != YYJSON_TYPE_OBJ && json_type(v) != YYJSON_TYPE_BOOL)
        return schema_bad(b, v, NULL,
                          "a schema must be an object, true or false");
    if (b->spots_n == SCHEMA_NODES_MAX)
        return schema_bad(b, v, NULL, "more than %d schemas in one document",
                          SCHEMA_NODES_MAX);
    if (!schema_survey_id(b, v, &base) || !schema_survey_anchor(b, v, base))
        return false;
    n = mem_alloc(b->arena, sizeof *n);
    n->types = SCHEMA_ANY;
    n->at = v;
    b->spots =
        schema_grow(b, b->spots, b->spots_n, &b->spots_cap, sizeof *b->spots);
    must(!b->spots_n || b->spots[b->spots_n - 1].v < v);
    b->spots[b->spots_n++] = (struct schema_spot){v, n, base};
    if (json_type(v) == YYJSON_TYPE_BOOL) {
        n->never = !unsafe_yyjson_is_true(v);
        n->types = n->never ? 0 : SCHEMA_ANY;
        return true;
    }
    for (size_t i = json_count(v); i; i--, key = json_next(key + 1)) {
        const struct schema_word *w = schema_word_find(json_str(key));

        if (!w)
            return schema_unknown_word(b, key);
        if (!schema_survey_word(b, key + 1, w, base))
            return false;
    }
    return true;
}

/* One token of a JSON pointer in a URI fragment, decoded; *fragment goes on. */
static bool
schema_pointer_token(struct schema_build *b, struct str *fragment,
                     struct str *token)
{
    struct str raw;
    char *out;
    size_t n = 0;

    str_cut(str_from(*fragment, 1), '/', &raw, fragment);
    if (fragment->n || (fragment->p > raw.p && fragment->p[-1] == '/'))
        *fragment = (struct str){fragment->p - 1, fragment->n + 1};
    out = mem_alloc(b->scrap, raw.n + 1);
    for (size_t i = 0; i < raw.n; i++) {
        out[n] = raw.p[i];
        if (raw.p[i] == '%') {
            int high = raw.n - i < 3 ? -1 : str_hex_digit(raw.p[i + 1]);
            int low = high < 0 ? -1 : str_hex_digit(raw.p[i + 2]);

            if (low < 0)
                return false;
            out[n] = (char)((unsigned)high << 4 | (unsigned)low);
            i += 2;
        }
        n++;
    }
    *token = (struct str){out, 0};
    for (size_t i = 0; i < n; i++) {
        if (out[i] == '~' && (i + 1 == n || (out[i + 1] | 1) != '1'))
            return false;
        if (out[i] == '~')
            out[token->n++] = out[++i] == '0' ? '~' : '/';
        else
            out[token->n++] = out[i];
    }
    return true;
}

static yyjson_val *
schema_pointer(struct schema_build *b, yyjson_val *v, struct str fragment)
{
    struct str token;
    uint64_t index;

    while (v && fragment.n) {
        if (!schema_pointer_token(b, &fragment, &token))
            return NULL;
        if (json_type(v) == YYJSON_TYPE_OBJ) {
            v = json_find(v, token);
        } else if (json_type(v) == YYJSON_TYPE_ARR && str_u64(token, &index) &&
                   index < json_count(v) &&
                   (token.n == 1 || token.p[0] != '0')) {
            for (v++; index; index--)
                v = json_next(v);
        } else {
            return NULL;
        }
    }
    return v;
}

static yyjson_val *
schema_anchored(struct schema_build *b, size_t base, struct str name)
{
    for (size_t i = 0; i < b->anchors_n; i++)
        if (b->anchors[i].base == base && str_eq(b->anchors[i].name, name))
            return b->anchors[i].v;
    return NULL;
}

static bool
schema_fill_ref(struct schema_build *b, struct schema_node *n, yyjson_val *v,
                const struct schema_word *w)
{
    const struct schema_spot *here = schema_spot_find(b, n->at), *there;
    struct schema_node **out = schema_field(b, n, w);
    yyjson_val *target = NULL;
    struct schema_uri u;
    struct str uri;
    size_t i = 0;

    if (json_type(v) != YYJSON_TYPE_STR)
        return schema_bad(b, v, w->name, "must be a string");
    must(here);
    schema_uri_split(json_str(v), &u);
    uri = schema_resolve(b, b->resources[here->base].uri, json_str(v));
    while (i < b->resources_n && !str_eq(b->resources[i].uri, uri))
        i++;
    if (i == b->resources_n)
        return schema_bad(b, v, w->name,
                          "\"%.*s\" is not in this schema: nothing is fetched, "
                          "so put it under $defs",
                          STR_FMT(json_brief(json_str(v))));
    if (!u.fragment.n)
        target = b->resources[i].v;
    else if (u.fragment.p[0] == '/')
        target = schema_pointer(b, b->resources[i].v, u.fragment);
    else
        target = schema_anchored(b, i, u.fragment);
    there = target ? schema_spot_find(b, target) : NULL;
    if (!there)
        return schema_bad(b, v, w->name, "\"%.*s\" leads to no schema",
                          STR_FMT(json_brief(json_str(v))));
    *out = there->node;
    return true;
}

/* An object schema once all its keywords are read. */
static void
schema_finish_obj(struct schema_build *b, struct schema_node *n)
{
    struct schema_obj *o = n->obj;

    o->words = (o->names_n + 63) / 64;
    if (!o->required)
        o->required = mem_alloc(b->arena, o->words * 8 + 8);
    if (o->names_n)
        schema_names_hash(b->arena, o);
    n->shares = o->patterns_n > 1 || (o->patterns_n && o->names_n);
    for (size_t i = 0; i < o->deps_n; i++)
        n->inplace |= o->deps[i].schema != NULL;
}

/* A keyword that can never apply is a check that its author believes in and
 * nobody makes: `maximum` beside `type: string`, `then` without `if`. */
static bool
schema_check_idle(struct schema_build *b, const struct schema_spot *spot)
{
    static const uint8_t about[] = {
        [SCHEMA_NODE] = SCHEMA_ANY, [SCHEMA_NUMS] = SCHEMA_INT | SCHEMA_REAL,
        [SCHEMA_STRS] = SCHEMA_STR, [SCHEMA_ARRS] = SCHEMA_ARR,
        [SCHEMA_OBJS] = SCHEMA_OBJ, [SCHEMA_MIXES] = SCHEMA_ANY,
    };
    const struct schema_node *n = spot->node;
    yyjson_val *key = spot->v + 1;
    char types[80];

    for (size_t i = json_count(spot->v); i; i--, key = json_next(key + 1)) {
        const struct schema_word *w = schema_word_find(json_str(key));

        if (n->typed && !(n->types & about[w->part]))
            return schema_bad(b, key, NULL,
                              "says nothing about %s: mend this or the type",
                              schema_types_text(n->types, types, sizeof types));
    }
    if (n->mix && !n->mix->cond && (n->mix->yes || n->mix->other))
        return schema_bad(b, spot->v, n->mix->yes ? "then" : "else",
                          "says nothing without if");
    if (n->arr && !n->arr->contains &&
        (json_get(spot->v, "minContains") || json_get(spot->v, "maxContains")))
        return schema_bad(b, spot->v, "minContains",
                          "and maxContains say nothing without contains");
    return true;
}

/* Second pass: the keywords of one schema. */
static bool
schema_fill(struct schema_build *b, const struct schema_spot *spot)
{
    struct schema_node *n = spot->node;
    yyjson_val *key = spot->v + 1;
    struct schema_mix *m;

    if (json_type(spot->v) == YYJSON_TYPE_BOOL)
        return true;
    for (size_t i = json_count(spot->v); i; i--, key = json_next(key + 1)) {
        const struct schema_word *w = schema_word_find(json_str(key));

        if (w->fill && !w->fill(b, n, key + 1, w))
            return false;
    }
    if (!schema_check_idle(b, spot))
        return false;
    m = n->mix;
    n->inplace = m && (m->ref || m->all.n || m->any.n || m->one.n || m->cond);
    if (n->obj)
        schema_finish_obj(b, n);
    if (n->arr)
        n->shares |= n->arr->contains && (n->arr->prefix.n || n->arr->items);
    if (n->obj && !n->inplace && !n->obj->additional) {
        n->obj->additional = n->obj->unevaluated;  // here they are the same
        n->obj->unevaluated = NULL;
        n->obj->same = true;
    }
    return true;
}

/* What a text may stand for, by the keywords of this schema alone. */
static unsigned
schema_own_types(const struct schema_node *n)
{
    unsigned types = 0;

    if (n->typed || n->never)
        return n->types;
    if (n->value) {
        for (size_t i = 0; i < n->value->n; i++)
            types |= schema_type_of(n->value->v[i]);
        return types;
    }
    if (n->num)
        types |= SCHEMA_INT | SCHEMA_REAL;
    if (n->str || (n->format && n->format->ok))
        types |= SCHEMA_STR;
    if (n->arr)
        types |= SCHEMA_ARR;
    return types ? types : SCHEMA_ANY;
}

static bool schema_settle(struct schema_build *, struct schema_node *);

/* One schema that applies where `n` does; `asks` if its types narrow those of
 * `n`. */
static bool
schema_settle_sub(struct schema_build *b, struct schema_node *n,
                  struct schema_node *sub, bool tells, bool narrows)
{
    if (!sub)
        return true;
    if (!schema_settle(b, sub))
        return false;
    if (tells)
        n->speaks |= sub->speaks;
    if (narrows)
        n->text_types &= sub->text_types;
    return true;
}

static bool
schema_settle_list(struct schema_build *b, struct schema_node *n,
                   const struct schema_list *list, bool all)
{
    unsigned types = 0;

    for (size_t i = 0; i < list->n; i++) {
        if (!schema_settle_sub(b, n, list->v[i], true, all))
            return false;
        types |= list->v[i]->text_types;
    }
    if (list->n && !all)
        n->text_types &= (uint8_t)types;
    return true;
}

static bool
schema_settle_mix(struct schema_build *b, struct schema_node *n)
{
    const struct schema_mix *m = n->mix;

    return schema_settle_sub(b, n, m->ref, true, true) &&
           schema_settle_list(b, n, &m->all, true) &&
           schema_settle_list(b, n, &m->any, false) &&
           schema_settle_list(b, n, &m->one, false) &&
           schema_settle_sub(b, n, m->no, false, false) &&
           schema_settle_sub(b, n, m->cond, true, false) &&
           schema_settle_sub(b, n, m->yes, true, false) &&
           schema_settle_sub(b, n, m->other, true, false);
}

/* Third pass, depth first through what applies to the same value: does it speak
 * of objects, what may a text be read as, and is there a circle without end? */
static bool
schema_settle(struct schema_build *b, struct schema_node *n)
{
    const struct schema_mix *m = n->mix;
    bool bare = m && m->ref && !n->typed && !n->value && !n->num && !n->str &&
                !n->arr && !n->obj && !n->format && !m->all.n && !m->any.n &&
                !m->one.n && !m->no && !m->cond;

    if (n->state == 2)
        return true;
    if (n->state == 1)
        return schema_bad(
            b, n->at, "$ref",
            "comes back here without going into a member or item");
    if (b->depth == SCHEMA_DEPTH_MAX - 8)
        return schema_bad(b, n->at, "$ref", "more than %d references deep",
                          SCHEMA_DEPTH_MAX - 8);
    n->state = 1;
    b->depth++;
    n->text_types = (uint8_t)schema_own_types(n);
    n->speaks = n->obj || (n->typed && (n->types & SCHEMA_OBJ));
    if (m && !schema_settle_mix(b, n))
        return false;
    for (size_t i = 0; n->obj && i < n->obj->deps_n; i++)
        if (!schema_settle_sub(b, n, n->obj->deps[i].schema, true, false))
            return false;
    if (n->value)
        n->speaks = false;  // the value is pinned: nothing unknown gets in
    if (bare)
        n->alias = m->ref->alias ? m->ref->alias : m->ref;
    b->depth--;
    n->state = 2;
    return true;
}

static bool
schema_build_all(struct schema_build *b)
{
    if (!schema_survey(b, b->doc, 0))
        return false;
    for (size_t i = 0; i < b->spots_n; i++)
        if (!schema_fill(b, &b->spots[i]))
            return false;
    for (size_t i = 0; i < b->spots_n; i++)
        if (!schema_settle(b, b->spots[i].node))
            return false;
    return true;
}

/* `doc` must live as long as the arena: names, limits and constants stay where
 * they are. NULL and ERR_CONFIG with the place, the keyword and the mend. */
static struct schema *
schema_compile(struct mem_arena *boot, yyjson_val *doc, bool open,
               struct err *e)
{
    struct schema_build b = {.arena = boot, .doc = doc, .e = e};
    bool ok;

    b.scrap = mem_arena_new(SIZE_MAX);
    b.s = mem_alloc(boot, sizeof *b.s);
    b.s->open = open;
    b.s->engine = mem_alloc(boot, sizeof *b.s->engine);
    json_key_draw(&b.s->key);
    schema_engine_init(b.s->engine);
    mem_defer(boot, schema_engine_free, b.s->engine);
    ok = schema_build_all(&b);
    if (ok)
        b.s->root = b.spots[0].node;
    b.s->marks = !open || b.unevaluated;
    mem_arena_free(b.scrap);
    return ok ? b.s : NULL;
}

/* ---- text: a path segment, a query value, a header, a slot ---- */

static const struct schema_node *
schema_unalias(const struct schema_node *n)
{
    return n->alias ? n->alias : n;
}

static bool
schema_is_array(const struct schema *s)
{
    unsigned types = schema_unalias(s->root)->text_types;

    return types != SCHEMA_ANY && (types & SCHEMA_ARR);
}

/* The schema of item `i`, looked for through $ref and allOf. */
static const struct schema_node *
schema_item(const struct schema_node *n, size_t i)
{
    const struct schema_node *found = NULL;

    n = schema_unalias(n);
    if (n->arr && i < n->arr->prefix.n)
        return n->arr->prefix.v[i];
    if (n->arr && n->arr->items)
        return n->arr->items;
    if (n->mix && n->mix->ref)
        found = schema_item(n->mix->ref, i);
    for (size_t k = 0; n->mix && !found && k < n->mix->all.n; k++)
        found = schema_item(n->mix->all.v[k], i);
    return found;
}

/* "-?(0|[1-9][0-9]*)", and with `real` also a fraction and an exponent. */
static bool
schema_number_text(struct str s, bool real)
{
    size_t i = s.n && s.p[0] == '-', from = i;

    while (i < s.n && schema_is_digit(s.p[i]))
        i++;
    if (i == from || (s.p[from] == '0' && i > from + 1))
        return false;
    if (real && i < s.n && s.p[i] == '.') {
        from = ++i;
        while (i < s.n && schema_is_digit(s.p[i]))
            i++;
        if (i == from)
            return false;
    }
    if (real && i < s.n && (s.p[i] | 0x20) == 'e') {
        i++;
        i += i < s.n && (s.p[i] == '+' || s.p[i] == '-');
        from = i;
        while (i < s.n && schema_is_digit(s.p[i]))
            i++;
        if (i == from)
            return false;
    }
    return i == s.n;
}

/* Reads `s` as the one type in `type`; false if it is not written like one. */
static bool
schema_text_as(struct mem_arena *a, struct str s, unsigned type,
               yyjson_val *out)
{
    yyjson_val *number;
    struct err e;

    if (type == SCHEMA_STR) {
        out->tag = (uint64_t)s.n << YYJSON_TAG_BIT | YYJSON_TYPE_STR;
        out->uni.str = mem_dup(a, s.p, s.n);
        return str_utf8(s);
    }
    if (type == SCHEMA_BOOL) {
        out->tag = YYJSON_TYPE_BOOL |
                   (s.n == 4 ? YYJSON_SUBTYPE_TRUE : YYJSON_SUBTYPE_FALSE);
        return str_eq(s, S("true")) || str_eq(s, S("false"));
    }
    if (s.n > 400 || !schema_number_text(s, type == SCHEMA_REAL) ||
        !json_parse(a, s, &number, &e))
        return false;
    must(number);
    *out = *number;
    return true;
}

/* One scalar: the first of integer, number, boolean and string that `n` allows,
 * that `s` is written like, and that holds. Where none does, the first that is
 * written right, so that the schema says why not. */
static bool
schema_text_one(const struct schema *s, const struct schema_node *n,
                struct mem_arena *a, struct str text, yyjson_val *out)
{
    static const unsigned order[] = {SCHEMA_INT, SCHEMA_REAL, SCHEMA_BOOL,
                                     SCHEMA_STR};
    unsigned types = n ? schema_unalias(n)->text_types : SCHEMA_ANY;
    yyjson_val v;
    bool some = false;

    if (types == SCHEMA_ANY)
        types = SCHEMA_STR;
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        if (!(types & order[i]) || !schema_text_as(a, text, order[i], &v))
            continue;
        if (!some)
            *out = v;
        some = true;
        if (!n || schema_check_node(s, n, &v, NULL)) {
            *out = v;
            return true;
        }
    }
    return some;
}

static yyjson_val *
schema_text_fail(const struct schema_node *n, struct schema_why *why,
                 const char *keyword, const char *path, const char *msg)
{
    char wanted[80];

    *why = (struct schema_why){.keyword = keyword};
    snprintf(why->path, sizeof why->path, "%s", path);
    if (msg)
        snprintf(why->msg, sizeof why->msg, "%s", msg);
    else
        snprintf(
            why->msg, sizeof why->msg, "must be written as %s",
            schema_types_text(n ? schema_unalias(n)->text_types : SCHEMA_STR,
                              wanted, sizeof wanted));
    return NULL;
}

/* Text from a URL, a header or a slot becomes a value of the schema's type and
 * is checked. Several texts are the items of an array. */
static yyjson_val *
schema_text(const struct schema *s, struct mem_arena *a,
            const struct str *values, size_t n, struct schema_why *why)
{
    bool array = schema_is_array(s);
    yyjson_val *v = mem_alloc(a, (n + 1) * sizeof *v);
    char path[24];

    if (!array && n != 1)
        return schema_text_fail(s->root, why, "type", "",
                                n ? "must be given once" : "must be given");
    if (!array) {
        if (!schema_text_one(s, s->root, a, values[0], v))
            return schema_text_fail(s->root, why, "type", "", NULL);
        return schema_check(s, v, why) ? v : NULL;
    }
    v->tag = (uint64_t)n << YYJSON_TAG_BIT | YYJSON_TYPE_ARR;
    v->uni.ofs = (n + 1) * sizeof *v;
    for (size_t i = 0; i < n; i++) {
        const struct schema_node *item = schema_item(s->root, i);

        if (schema_text_one(s, item, a, values[i], v + 1 + i))
            continue;
        snprintf(path, sizeof path, "/%zu", i);
        return schema_text_fail(item, why, "type", path, NULL);
    }
    return schema_check(s, v, why) ? v : NULL;
}

/* ==== 10 route: which route a request is for ================================
 *
 * A tree of path segments. At each segment a literal beats a capture, and a
 * capture beats a tail; if what follows does not fit, the next best is tried.
 * Every node stands for one sequence of segments, so that a search visits it at
 * most once: the worst request costs the size of the table, never more.
 *
 * Routes of one shape share a node. There the one with a host beats the one
 * without, then the one with a listener; two of equal rank that share a method
 * are a mistake, found at load. GET answers HEAD unless a route names HEAD.
 * A route whose method, host or listener differs is passed over, not final.
 *
 * Entry   route_new  route_add  route_match  route_method  route_allow
 *         route_capture_name
 */

/* CONNECT and TRACE are not here: nobody may route them. */
// clang-format off
#define ROUTE_METHODS(X)                                                       \
    X(GET) X(HEAD) X(POST) X(PUT) X(PATCH) X(DELETE) X(OPTIONS) X(QUERY)       \
    X(SEARCH) X(REPORT) X(PROPFIND) X(PROPPATCH) X(MKCOL) X(COPY) X(MOVE)      \
    X(LOCK) X(UNLOCK)
// clang-format on

enum route_bit {
#define X(name) ROUTE_BIT_##name,
    ROUTE_METHODS(X)
#undef X
        ROUTE_BITS
};

enum {
#define X(name) ROUTE_##name = 1u << ROUTE_BIT_##name,
    ROUTE_METHODS(X)
#undef X
        ROUTE_ANY = (1u << ROUTE_BITS) - 1
};

static const struct str route_method_names[ROUTE_BITS] = {
#define X(name) {#name, sizeof #name - 1},
    ROUTE_METHODS(X)
#undef X
};

enum {
    ROUTE_CAPTURES = 16,
    ROUTE_SEGMENTS = 32,     // in one pattern
    ROUTE_PATTERN = 1024,    // bytes of one pattern
    ROUTE_ID_MAX = 1 << 16,  // ids index an array
};

struct route {
    struct route *next;  // of the same node, lower rank
    const char *pattern;
    unsigned id, methods, listener;  // UINT_MAX: any listener
    struct str host;                 // empty: any
    unsigned names_n;
    const char *names[ROUTE_CAPTURES];
};

struct route_node {
    struct str text;           // literal: the segment
    struct route_node **kids;  // literals, by length and bytes
    unsigned kids_n, kids_cap;
    struct route_node *capture;
    struct route *here, *tail;  // the path ends here; "{rest...}" from here on
};

struct route_table {
    struct mem_arena *arena;  // borrowed: boot memory
    struct route_node root;
    struct route **by_id;
    unsigned by_id_n;
};

enum route_verdict { ROUTE_FOUND, ROUTE_NONE, ROUTE_WRONG_METHOD };

struct route_hit {
    unsigned id;
    struct str captures[ROUTE_CAPTURES];  // borrowed from the path
    unsigned n;
    unsigned allow;  // methods that would have fitted, for 405 and Allow
};

static struct route_table *
route_new(struct mem_arena *boot)
{
    struct route_table *t = mem_alloc(boot, sizeof *t);

    t->arena = boot;
    return t;
}

/* The bit of a method, or 0. Methods are case-sensitive. */
static unsigned
route_method(struct str s)
{
    if (str_eq(s, S("GET")))
        return ROUTE_GET;
    for (unsigned i = 1; i < ROUTE_BITS; i++)
        if (str_eq(s, route_method_names[i]))
            return 1u << i;
    return 0;
}

/* "GET, HEAD": the value of an Allow field. */
static struct str
route_allow(struct mem_arena *a, unsigned methods)
{
    char *p = mem_alloc_raw(a, 16 * (size_t)ROUTE_BITS), *w = p;

    for (unsigned i = 0; i < ROUTE_BITS; i++) {
        if (!(methods & 1u << i))
            continue;
        if (w > p)
            *w++ = ',', *w++ = ' ';
        memcpy(w, route_method_names[i].p, route_method_names[i].n);
        w += route_method_names[i].n;
    }
    return (struct str){p, (size_t)(w - p)};
}

/* ---- load: patterns into the tree -------------------------------------- */

static int
route_cmp(struct str a, struct str b)
{
    if (a.n != b.n)
        return a.n < b.n ? -1 : 1;
    return a.n ? memcmp(a.p, b.p, a.n) : 0;
}

/* Where `text` is among the literals of `n`, or where it belongs. */
static unsigned
route_find(const struct route_node *n, struct str text, bool *found)
{
    unsigned lo = 0, hi = n->kids_n;

    *found = false;
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;
        int c = route_cmp(n->kids[mid]->text, text);

        if (c == 0) {
            *found = true;
            return mid;
        }
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static struct route_node *
route_literal(struct route_table *t, struct route_node *n, struct str text)
{
    struct route_node *kid, **kids;
    bool found;
    unsigned at = route_find(n, text, &found);

    if (found)
        return n->kids[at];
    if (n->kids_n == n->kids_cap) {
        n->kids_cap = n->kids_cap ? 2 * n->kids_cap : 4;
        kids = mem_alloc(t->arena, n->kids_cap * sizeof(struct route_node *));
        if (n->kids_n)
            memcpy(kids, n->kids, n->kids_n * sizeof(struct route_node *));
        n->kids = kids;
    }
    kid = mem_alloc(t->arena, sizeof *kid);
    kid->text = text;
    memmove(n->kids + at + 1, n->kids + at,
            (n->kids_n - at) * sizeof(struct route_node *));
    n->kids[at] = kid;
    n->kids_n++;
    return kid;
}

/* A literal segment is the text a decoded path will hold, byte for byte. */
static bool
route_literal_ok(const struct route *r, struct str s, struct err *e)
{
    for (size_t i = 0; i < s.n; i++)
        if (s.p[i] == '{' || s.p[i] == '}')
            return err_set(e, ERR_CONFIG,
                           "path \"%s\": a capture is a whole segment, "
                           "like /{name}/",
                           r->pattern);
        else if (strchr("%?#;\\", s.p[i]))
            return err_set(e, ERR_CONFIG,
                           "path \"%s\": '%c' cannot be in a path; %s",
                           r->pattern, s.p[i],
                           s.p[i] == '%' ? "write the character itself"
                                         : "use a capture and its schema");
    if (str_eq(s, S(".")) || str_eq(s, S("..")))
        return err_set(e, ERR_CONFIG,
                       "path \"%s\": a segment of dots never matches; "
                       "leave it out",
                       r->pattern);
    return true;
}

/* "{name}" or "{name...}" into r->names. */
static bool
route_name(struct route_table *t, struct route *r, struct str s, bool *tail,
           struct err *e)
{
    struct str name = {s.p + 1, s.n - 2};
    bool ok;

    *tail = str_ends(name, S("..."));
    if (*tail)
        name.n -= 3;
    ok = name.n && name.n <= 64 && !(name.p[0] >= '0' && name.p[0] <= '9');
    for (size_t i = 0; ok && i < name.n; i++)
        ok = name.p[i] == '_' || (name.p[i] >= '0' && name.p[i] <= '9') ||
             ((name.p[i] | 0x20) >= 'a' && (name.p[i] | 0x20) <= 'z');
    if (!ok)
        return err_set(e, ERR_CONFIG,
                       "path \"%s\": \"%.*s\" is not a capture; a name is a "
                       "letter or '_', then letters, digits, '_'",
                       r->pattern, STR_FMT(s));
    for (unsigned i = 0; i < r->names_n; i++)
        if (str_eq(str_of(r->names[i]), name))
            return err_set(e, ERR_CONFIG,
                           "path \"%s\": two captures are called \"%.*s\"",
                           r->pattern, STR_FMT(name));
    if (r->names_n == ROUTE_CAPTURES)
        return err_set(e, ERR_CONFIG, "path \"%s\": more than %d captures",
                       r->pattern, ROUTE_CAPTURES);
    r->names[r->names_n++] = str_c(t->arena, name);
    return true;
}

/* Walks one segment down from *n, making nodes as needed. */
static bool
route_step(struct route_table *t, struct route *r, struct route_node **n,
           struct str seg, bool *tail, struct err *e)
{
    if (seg.n < 2 || seg.p[0] != '{' || seg.p[seg.n - 1] != '}') {
        if (!route_literal_ok(r, seg, e))
            return false;
        *n = route_literal(t, *n, seg);
        return true;
    }
    if (!route_name(t, r, seg, tail, e))
        return false;
    if (*tail)
        return true;
    if (!(*n)->capture)
        (*n)->capture = mem_alloc(t->arena, sizeof **n);
    *n = (*n)->capture;
    return true;
}

/* The list (of a node) that the pattern of `r` leads to, or NULL. */
static struct route **
route_walk(struct route_table *t, struct route *r, struct err *e)
{
    struct str seg, rest = str_of(r->pattern);
    struct route_node *n = &t->root;
    bool more, tail = false;

    if (!rest.n || rest.p[0] != '/' || rest.n > ROUTE_PATTERN ||
        !str_utf8(rest) || !str_no_control(rest)) {
        err_set(e, ERR_CONFIG,
                "path \"%s\": it must start with '/', be printable UTF-8 and "
                "at most %d bytes",
                r->pattern, ROUTE_PATTERN);
        return NULL;
    }
    rest = str_from(rest, 1);
    for (unsigned i = 0;; i++) {
        more = str_cut(rest, '/', &seg, &rest);
        if (i == ROUTE_SEGMENTS || (more && (!seg.n || tail))) {
            err_set(e, ERR_CONFIG, "path \"%s\": %s", r->pattern,
                    i == ROUTE_SEGMENTS ? "more than 32 segments"
                                        : "'//' never matches");
            return NULL;
        }
        if (!route_step(t, r, &n, seg, &tail, e))
            return NULL;
        if (tail && more) {
            err_set(e, ERR_CONFIG,
                    "path \"%s\": \"{name...}\" takes the rest of the path, "
                    "so it must come last",
                    r->pattern);
            return NULL;
        }
        if (!more)
            return tail ? &n->tail : &n->here;
    }
}

/* Higher is tried first. */
static int
route_rank(const struct route *r)
{
    return (r->host.n ? 2 : 0) + (r->listener != UINT_MAX ? 1 : 0);
}

/* Could one request be for both, with nothing to choose by? */
static bool
route_clash(const struct route *a, const struct route *b)
{
    return route_rank(a) == route_rank(b) && (a->methods & b->methods) &&
           a->listener == b->listener && str_eqi(a->host, b->host);
}

/* Keeps the form that uri_authority() gives: no brackets around IPv6. */
static bool
route_host(struct route *r, struct str text, struct err *e)
{
    uint16_t port;

    r->host = text;
    if (!text.n || (uri_authority(text, &r->host, &port) && !port))
        return true;
    return err_set(e, ERR_CONFIG,
                   "host \"%.*s\": not a host name (no port, no wildcard)",
                   STR_FMT(text));
}

static bool
route_insert(struct route **at, struct route *r, struct err *e)
{
    for (struct route *o = *at; o; o = o->next)
        if (route_clash(o, r))
            return err_set(e, ERR_CONFIG,
                           "routes %u (\"%s\") and %u (\"%s\") match the same "
                           "requests; change the path, methods, host or "
                           "listener of one",
                           o->id, o->pattern, r->id, r->pattern);
    while (*at && route_rank(*at) >= route_rank(r))
        at = &(*at)->next;
    r->next = *at;
    *at = r;
    return true;
}

static void
route_index(struct route_table *t, struct route *r)
{
    if (r->id >= t->by_id_n) {
        unsigned n = r->id + 1 > 2 * t->by_id_n ? r->id + 1 : 2 * t->by_id_n;
        struct route **v = mem_alloc(t->arena, n * sizeof(struct route *));

        if (t->by_id_n)
            memcpy(v, t->by_id, t->by_id_n * sizeof(struct route *));
        t->by_id = v;
        t->by_id_n = n;
    }
    must(!t->by_id[r->id]);
    t->by_id[r->id] = r;
}

/* `id` is the caller's number for the route, each used once. `listener` is an
 * index, or UINT_MAX for all. Copies what it keeps. */
static bool
route_add(struct route_table *t, const char *pattern, unsigned methods,
          struct str host, unsigned listener, unsigned id, struct err *e)
{
    struct route *r = mem_alloc(t->arena, sizeof *r);
    struct route **at;

    must(id < ROUTE_ID_MAX && methods && methods <= ROUTE_ANY);
    r->pattern = str_c(t->arena, str_of(pattern));
    r->id = id;
    r->methods = methods;
    r->listener = listener;
    if (!route_host(r, str_dup(t->arena, host), e))
        return false;
    at = route_walk(t, r, e);
    if (!at || !route_insert(at, r, e))
        return false;
    route_index(t, r);
    return true;
}

/* The name of capture `i` of a route, or NULL beyond the last. */
static const char *
route_capture_name(const struct route_table *t, unsigned id, unsigned i)
{
    must(id < t->by_id_n && t->by_id[id]);
    return i < t->by_id[id]->names_n ? t->by_id[id]->names[i] : NULL;
}

/* ---- serve: a path down the tree --------------------------------------- */

struct route_search {
    struct str host;
    unsigned listener, method;
    struct route_hit *hit;
};

/* The first route of the list that takes this host, listener and method. Notes
 * the methods of those that fit but for the method. */
static bool
route_pick(struct route_search *s, const struct route *r)
{
    const struct route *head = NULL;

    for (; r; r = r->next) {
        unsigned methods = r->methods;

        if (r->listener != UINT_MAX && r->listener != s->listener)
            continue;
        if (r->host.n && !str_eqi(r->host, s->host))
            continue;
        if (head && route_rank(r) < route_rank(head))
            break;
        if (methods & s->method) {
            s->hit->id = r->id;
            return true;
        }
        if (methods & ROUTE_GET)
            methods |= ROUTE_HEAD;
        if (!head && (methods & s->method))
            head = r;  // GET, unless a HEAD of the same rank follows
        s->hit->allow |= methods;
    }
    if (head)
        s->hit->id = head->id;
    return head != NULL;
}

/* Recursion is bounded by ROUTE_SEGMENTS, the depth of the tree: a longer path
 * runs out of nodes. */
static bool
route_descend(struct route_search *s, const struct route_node *n,
              struct str path)
{
    struct route_hit *hit = s->hit;
    unsigned depth = hit->n, at;
    struct str seg, rest;
    bool found, more;

    must(depth < ROUTE_CAPTURES || (!n->capture && !n->tail));
    more = str_cut(path, '/', &seg, &rest);
    if (n->kids_n) {
        at = route_find(n, seg, &found);
        if (found && (more ? route_descend(s, n->kids[at], rest)
                           : route_pick(s, n->kids[at]->here)))
            return true;
    }
    if (n->capture && seg.n) {
        hit->captures[hit->n++] = seg;
        if (more ? route_descend(s, n->capture, rest)
                 : route_pick(s, n->capture->here))
            return true;
        hit->n = depth;
    }
    if (n->tail && path.n && route_pick(s, n->tail)) {
        hit->captures[hit->n++] = path;
        return true;
    }
    return false;
}

/* `path` is uri.path; `host` has no port; `method` is one bit, or 0 for one we
 * do not know. Allocates nothing; the captures borrow from `path`. */
static enum route_verdict
route_match(const struct route_table *t, struct str host, unsigned listener,
            unsigned method, struct str path, struct route_hit *hit)
{
    struct route_search s = {host, listener, method, hit};

    hit->n = 0;
    hit->allow = 0;
    must(path.n && path.p[0] == '/');
    if (route_descend(&s, &t->root, str_from(path, 1)))
        return ROUTE_FOUND;
    return hit->allow ? ROUTE_WRONG_METHOD : ROUTE_NONE;
}

/* ==== 11 cfg: the plain configuration =======================================
 *
 * A policy is Lua, and evaluates once to one JSON document: listeners, routes,
 * commands, limits, with every default written out. Supervisor, workers and
 * broker all read that document here and never the script, so they cannot
 * disagree. A member we do not know is our own bug, and stops the load.
 *
 * Messages begin with the "file:line" of the declaration (its `at`), and end
 * with what to write instead. Schemas stay JSON: whoever checks compiles them.
 *
 * Entry   cfg_load  cfg_check_schemas  cfg_print
 */
enum {
    CFG_CAPTURES_MAX = 16,  // as many as a struct route_hit holds
    CFG_ROUTES_MAX = 4096,
    CFG_ITEMS_MAX = 1024,  // of any other list
    CFG_WORKERS_MAX = 256,
    CFG_JSON_MAX = 64 << 20,  // bytes: a request's arena has room for it
};

struct cfg_strs {
    struct str *v;
    size_t n;
};

/* Where a listener or the admin page is bound. */
struct cfg_addr {
    bool is_unix;
    struct sockaddr_storage sa;
    socklen_t len;
    struct str text;  // as written
};

/* One server of an upstream. */
struct cfg_target {
    bool is_unix, numeric;  // numeric or is_unix: `sa` is filled in
    struct str host;        // a name for c-ares unless numeric
    uint16_t port;
    struct str path;  // of the Unix socket
    struct str text;  // as written
    struct sockaddr_storage sa;
    socklen_t len;
};

struct cfg_limits {
    uint32_t handshake_ms, head_ms;
    uint32_t body_ms;   // between two bytes of a request body
    uint32_t write_ms;  // the client does not read
    uint32_t idle_ms;
    uint32_t head_bytes, head_fields, uri_bytes;
    uint32_t body_bytes;               // of a body that is buffered
    uint32_t connections, handshakes;  // per worker
    uint32_t per_identity;
    uint32_t requests;  // per connection; 0: no limit
    uint32_t query_params;
    uint32_t hook_cpu_ms, hook_time_ms;
};

struct cfg_process {
    unsigned workers;  // 0: auto; struct boot has the number
    struct str user, group;
    bool access_log;
    enum log_level log_level;
    uint64_t lua_memory;  // bytes, per worker
    uint32_t drain_ms;
    bool clock_floor;  // an unset clock reads as the day of the build
    struct cfg_strs accept_missing, must_have;  // names of cfg_layers
    struct str at;
};

struct cfg_listener {
    struct str name;
    struct cfg_addr address;
    struct str certificate, key, client_ca;  // file names
    bool explain;
    bool eku_any;    // a client need not be issued for clientAuth
    uint32_t depth;  // certificates above a client's, at most
    struct cfg_limits limits;
    struct str at;
};

struct cfg_admin {
    struct cfg_addr address;
    struct str at;
};

struct cfg_upstream {
    struct str name;
    struct cfg_target *targets;
    size_t targets_n;
    uint32_t connect_ms, head_ms, idle_ms, keepalive_ms;
    uint32_t keepalive;  // idle connections kept, per worker
    bool identity_headers;
    struct str at;
};

/* One argument: `text` as is, or `text` (a prefix) and then a slot's value. */
struct cfg_arg {
    bool is_slot;
    unsigned slot;  // index into slots
    struct str text;
};

struct cfg_slot {
    struct str name;
    yyjson_val *schema;
    bool dash;    // the value may begin with '-'
    bool secret;  // logged as a hash
    bool is_file;
    bool on_stdin;     // the file becomes stdin, not an argument
    struct str below;  // the folder it lies in
};

struct cfg_pair {
    struct str name, value;
};

struct cfg_command {
    struct str name, program;
    struct cfg_arg *args;
    size_t args_n;
    struct cfg_slot *slots;
    size_t slots_n;
    struct cfg_pair *env;
    size_t env_n;
    struct str cwd;
    uint32_t timeout_ms, kill_ms, cpu_ms;
    uint64_t memory, file_size;                  // bytes
    uint64_t stdin_max, stdout_max, stderr_max;  // bytes; JSON: "stdin" …
    uint32_t files, processes;  // processes 0: the limit is left alone
    uint32_t concurrency, queue;
    struct str sha256;  // hex, or empty
    struct str at;
};

/* A hook is a 1-based index into the array the policy library keeps. */
struct cfg_hooks {
    unsigned *v;
    size_t n;
};

struct cfg_who {
    unsigned hook;
    struct str text;  // `ou "ops"`, for people
};

/* In the order of the pattern. */
struct cfg_capture {
    struct str name;
    bool tail;  // "{rest...}": may hold '/'
    yyjson_val *schema;
};

/* A declared query parameter or header (header names are lower case). */
struct cfg_input {
    struct str name;
    yyjson_val *schema;
    bool optional;
    yyjson_val *fallback;  // "default"; NULL: none
};

enum cfg_body_kind {
    CFG_BODY_NONE,
    CFG_BODY_JSON,
    CFG_BODY_BYTES,
    CFG_BODY_STREAM,
};

struct cfg_body {
    enum cfg_body_kind kind;
    uint64_t max;
    struct cfg_strs types;  // lower case; none: any
    yyjson_val *schema;     // JSON only
};

enum cfg_piece_kind {
    CFG_PIECE_TEXT,
    CFG_PIECE_CAPTURE,
    CFG_PIECE_IDENTITY,
    CFG_PIECE_REQUEST_ID,
};

struct cfg_piece {
    enum cfg_piece_kind kind;
    struct str text;   // the text; or the identity's field
    unsigned capture;  // index into the route's captures
    bool in_query;     // after the '?' of a target: encode as a query value
};

/* "/x/{name}" taken apart. */
struct cfg_template {
    struct str text;
    struct cfg_piece *v;
    size_t n;
};

struct cfg_set {
    struct str name;
    struct cfg_template value;
};

struct cfg_sets {
    struct cfg_set *v;
    size_t n;
};

enum cfg_handle_kind { CFG_HANDLE_LUA, CFG_HANDLE_PROXY };

struct cfg_handle {
    enum cfg_handle_kind kind;
    unsigned hook;               // LUA
    unsigned upstream;           // PROXY, and all below
    struct cfg_template target;  // n == 0: the request's own target
    bool literal;                // target is no template but a path
    struct cfg_sets set, respond_set;
    struct cfg_strs remove, respond_remove;
};

/* 0: the listener's limit holds. */
struct cfg_route_limits {
    uint32_t hook_cpu_ms, hook_time_ms, body_ms, write_ms;
};

struct cfg_route {
    struct cfg_strs methods;  // as written; "*": any
    unsigned method_mask;     // the same, as ROUTE_ bits
    struct str path, host;    // host empty: any
    unsigned listener;        // index; UINT_MAX: all
    struct cfg_who *authorize;
    size_t authorize_n;
    struct cfg_capture *captures;
    size_t captures_n;
    struct cfg_input *query;
    size_t query_n;
    bool query_unchecked;
    struct cfg_input *headers;
    size_t headers_n;
    struct cfg_body body;
    struct cfg_hooks check, respond, log;
    struct cfg_handle handle;
    struct cfg_route_limits limits;
    struct str at;
};

struct cfg_warning {
    struct str at, text;
};

struct cfg {
    struct str text;  // the JSON itself
    struct cfg_process process;
    struct cfg_strs env;
    struct cfg_strs cas;  // files of CAs that identities are asked for
    struct cfg_listener *listeners;
    size_t listeners_n;
    struct cfg_admin *admin;
    size_t admin_n;
    struct cfg_upstream *upstreams;
    size_t upstreams_n;
    struct cfg_command *commands;
    size_t commands_n;
    struct cfg_route *routes;
    size_t routes_n;
    struct route_table *table;  // all routes, by index
    struct cfg_warning *warnings;
    size_t warnings_n;
};

/* ---- the reader: one table of members per kind of object ---- */

struct cfg_read {
    struct mem_arena *a;
    struct cfg *cfg;  // what is filled
    struct err *e;
    struct str at;   // "file:line" of the declaration we are in
    char what[120];  // "listener 127.0.0.1:8443"
};

enum cfg_type {
    CFG_BOOL,
    CFG_U32,
    CFG_U64,
    CFG_STR,   // lo .. hi bytes, no control bytes
    CFG_TEXT,  // the same, but any byte except NUL
    CFG_STRS,  // at most hi strings of CFG_STR
    CFG_VAL,   // any value, kept as JSON
    CFG_FN,    // `read` fills in the whole object
    CFG_LATER  // known; the caller reads it
};

struct cfg_field {
    const char *name;
    enum cfg_type type;
    size_t offset;
    uint64_t lo, hi;
    bool (*read)(struct cfg_read *, yyjson_val *, void *object);
    bool must;  // may not be left out
};

#define CFG_AT(type, member) offsetof(struct type, member)

enum {
    CFG_MS_MAX = 24 * 3600 * 1000,
    CFG_NAME_MAX = 128,
    CFG_PATH_MAX = 4096,
    CFG_DEPTH_MAX = 9,  // certificates above a leaf
};

/* Puts "file:line: listener x: " before the message that is in r->e. */
static bool
cfg_blame(struct cfg_read *r)
{
    if (r->what[0])
        err_prefix(r->e, "%s: ", r->what);
    if (r->at.n)
        err_prefix(r->e, "%.*s: ", STR_FMT(r->at));
    return false;
}

__attribute__((format(printf, 2, 3))) static bool
cfg_fail(struct cfg_read *r, const char *fmt, ...)
{
    char msg[sizeof r->e->msg];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    err_set(r->e, ERR_CONFIG, "%s", msg);
    return cfg_blame(r);
}

static struct str
cfg_val_str(yyjson_val *v)
{
    return (struct str){yyjson_get_str(v), yyjson_get_len(v)};
}

static bool
cfg_read_str(struct cfg_read *r, const struct cfg_field *f, yyjson_val *v,
             struct str *out)
{
    struct str s;

    if (!yyjson_is_str(v))
        return cfg_fail(r, "%s must be a string", f->name);
    s = cfg_val_str(v);
    if (s.n < f->lo)
        return cfg_fail(r, "%s is empty: give it a value", f->name);
    if (s.n > f->hi)
        return cfg_fail(r, "%s is longer than %" PRIu64 " bytes", f->name,
                        f->hi);
    if (s.n && memchr(s.p, 0, s.n))
        return cfg_fail(r, "%s holds a NUL byte", f->name);
    if (f->type != CFG_TEXT && !str_no_control(s))
        return cfg_fail(r, "%s holds a control character", f->name);
    *out = s;
    return true;
}

static bool
cfg_read_strs(struct cfg_read *r, const struct cfg_field *f, yyjson_val *v,
              struct cfg_strs *out)
{
    const struct cfg_field item = {f->name,      CFG_STR, 0,    1,
                                   CFG_PATH_MAX, NULL,    false};
    yyjson_arr_iter it = yyjson_arr_iter_with(v);
    size_t i;
    yyjson_val *one;

    // an empty Lua table may arrive as {}
    if (yyjson_is_obj(v) && yyjson_obj_size(v) == 0)
        return true;
    if (!yyjson_is_arr(v))
        return cfg_fail(r, "%s must be a list of strings", f->name);
    if (yyjson_arr_size(v) > f->hi)
        return cfg_fail(r, "%s has more than %" PRIu64 " entries", f->name,
                        f->hi);
    out->n = yyjson_arr_size(v);
    out->v = mem_alloc(r->a, out->n * sizeof *out->v);
    for (i = 0; (one = yyjson_arr_iter_next(&it)); i++)
        if (!cfg_read_str(r, &item, one, &out->v[i]))
            return false;
    return true;
}

static bool
cfg_read_number(struct cfg_read *r, const struct cfg_field *f, yyjson_val *v,
                uint64_t *out)
{
    if (!yyjson_is_int(v))
        return cfg_fail(r, "%s must be a whole number", f->name);
    if (!yyjson_is_uint(v))
        return cfg_fail(
            r, "%s is %" PRId64 ", and must be %" PRIu64 " to %" PRIu64,
            f->name, yyjson_get_sint(v), f->lo, f->hi);
    *out = yyjson_get_uint(v);
    if (*out < f->lo || *out > f->hi)
        return cfg_fail(
            r, "%s is %" PRIu64 ", and must be %" PRIu64 " to %" PRIu64,
            f->name, *out, f->lo, f->hi);
    return true;
}

static bool
cfg_read_field(struct cfg_read *r, const struct cfg_field *f, yyjson_val *v,
               void *object)
{
    void *out = (char *)object + f->offset;
    uint64_t n;

    switch (f->type) {
    case CFG_BOOL:
        if (!yyjson_is_bool(v))
            return cfg_fail(r, "%s must be true or false", f->name);
        *(bool *)out = yyjson_get_bool(v);
        return true;
    case CFG_U32:
        if (!cfg_read_number(r, f, v, &n))
            return false;
        must(f->hi <= UINT32_MAX);
        *(uint32_t *)out = (uint32_t)n;
        return true;
    case CFG_U64:
        return cfg_read_number(r, f, v, out);
    case CFG_STR:
    case CFG_TEXT:
        return cfg_read_str(r, f, v, out);
    case CFG_STRS:
        return cfg_read_strs(r, f, v, out);
    case CFG_VAL:
        *(yyjson_val **)out = v;
        return true;
    case CFG_FN:
        return f->read(r, v, object);
    case CFG_LATER:
        return true;
    }
    return false;
}

/* Fills `object` from the members of `v`; what is left out keeps the value the
 * caller put there. The table ends with a row without a name. */
static bool
cfg_read_object(struct cfg_read *r, yyjson_val *v,
                const struct cfg_field *table, void *object)
{
    const struct cfg_field *f;
    yyjson_val *key, *val;
    yyjson_obj_iter it = yyjson_obj_iter_with(v);

    // an empty Lua table may arrive as []
    if (!yyjson_is_obj(v) && !(yyjson_is_arr(v) && !yyjson_arr_size(v)))
        return cfg_fail(r, "an object was expected");
    while ((key = yyjson_obj_iter_next(&it))) {
        val = yyjson_obj_iter_get_val(key);
        for (f = table; f->name; f++)
            if (str_eq(cfg_val_str(key), str_of(f->name)))
                break;
        if (!f->name)
            return cfg_fail(r, "unknown member \"%.*s\"",
                            STR_FMT(cfg_val_str(key)));
        if (!cfg_read_field(r, f, val, object))
            return false;
    }
    for (f = table; f->name; f++)
        if (f->must && !yyjson_obj_get(v, f->name))
            return cfg_fail(r, "%s is missing", f->name);
    return true;
}

typedef bool cfg_each(struct cfg_read *, yyjson_val *, void *item);

/* A list of objects of `size` bytes. */
static bool
cfg_read_list(struct cfg_read *r, yyjson_val *v, const char *name, size_t max,
              size_t size, cfg_each *each, void *out, size_t *count)
{
    char *items;
    yyjson_val *one;
    yyjson_arr_iter it = yyjson_arr_iter_with(v);
    size_t i;

    *count = 0;
    if (!v || (yyjson_is_obj(v) && yyjson_obj_size(v) == 0))
        return true;
    if (!yyjson_is_arr(v))
        return cfg_fail(r, "%s must be a list", name);
    if (yyjson_arr_size(v) > max)
        return cfg_fail(r, "%s has more than %zu entries", name, max);
    *count = yyjson_arr_size(v);
    items = mem_alloc(r->a, *count * size);
    memcpy(out, &items, sizeof items);
    for (i = 0; (one = yyjson_arr_iter_next(&it)); i++)
        if (!each(r, one, items + i * size))
            return false;
    return true;
}

/* Begins a declaration: what follows is blamed on its `at`. */
static void
cfg_enter(struct cfg_read *r, yyjson_val *v, const char *kind, const char *name)
{
    yyjson_val *at = yyjson_obj_get(v, "at"), *id = yyjson_obj_get(v, name);

    r->at = yyjson_is_str(at) ? cfg_val_str(at) : S("");
    if (!str_no_control(r->at))
        r->at = S("?");
    snprintf(r->what, sizeof r->what, "%s", kind);
    if (yyjson_is_str(id) && str_no_control(cfg_val_str(id)))
        snprintf(r->what, sizeof r->what, "%s %.90s", kind, yyjson_get_str(id));
}

static void
cfg_leave(struct cfg_read *r)
{
    r->at = S("");
    r->what[0] = 0;
}

/* ---- words: names, addresses, targets ---- */

/* A letter or '_', then letters, digits and the bytes of `more`. */
static bool
cfg_is_name(struct str s, const char *more)
{
    if (!s.n || s.n > CFG_NAME_MAX)
        return false;
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i], low = str_lower_byte(c);
        bool letter = (low >= 'a' && low <= 'z') || c == '_';

        if (!letter && (i == 0 || !((c >= '0' && c <= '9') || strchr(more, c))))
            return false;
    }
    return true;
}

static bool
cfg_port_parse(struct str s, uint16_t *port, struct err *e)
{
    uint64_t n;

    if (!str_u64(s, &n) || n > 65535 || s.n > 5)
        return err_set(e, ERR_CONFIG,
                       "\"%.*s\" is not a port: write a number "
                       "from 0 to 65535",
                       STR_FMT(s));
    *port = (uint16_t)n;
    return true;
}

/* Splits "host:port" and "[v6]:port"; the brackets are taken off. */
static bool
cfg_host_port(struct str s, struct str *host, struct str *port, bool *v6)
{
    const char *end;

    *v6 = s.n && s.p[0] == '[';
    if (*v6) {
        end = memchr(s.p, ']', s.n);
        if (!end)
            return false;
        *host = (struct str){s.p + 1, (size_t)(end - s.p - 1)};
        *port = str_from(s, host->n + 2);
        if (port->n && port->p[0] != ':')
            return false;
        *port = str_from(*port, port->n > 0);
        return host->n > 0;
    }
    str_cut(s, ':', host, port);
    return host->n > 0 && !(port->n && memchr(port->p, ':', port->n));
}

/* A numeric address into `sa`; false: it is not one. */
static bool
cfg_ip_parse(struct str host, bool v6, uint16_t port,
             struct sockaddr_storage *sa, socklen_t *len)
{
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)(void *)sa;
    struct sockaddr_in *four = (struct sockaddr_in *)(void *)sa;
    char text[INET6_ADDRSTRLEN];

    memset(sa, 0, sizeof *sa);
    if (host.n >= sizeof text || (host.n && memchr(host.p, 0, host.n)))
        return false;
    snprintf(text, sizeof text, "%.*s", STR_FMT(host));
    if (v6) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons(port);
        *len = sizeof *six;
        return inet_pton(AF_INET6, text, &six->sin6_addr) == 1;
    }
    four->sin_family = AF_INET;
    four->sin_port = htons(port);
    *len = sizeof *four;
    return inet_pton(AF_INET, text, &four->sin_addr) == 1;
}

static bool
cfg_unix_parse(struct str path, struct sockaddr_storage *sa, socklen_t *len,
               struct err *e)
{
    struct sockaddr_un *un = (struct sockaddr_un *)(void *)sa;

    memset(sa, 0, sizeof *sa);
    if (!path.n || path.p[0] != '/' || memchr(path.p, 0, path.n))
        return err_set(e, ERR_CONFIG,
                       "a Unix socket needs an absolute path, "
                       "as in unix:/run/gateway/admin");
    if (path.n >= sizeof un->sun_path)
        return err_set(e, ERR_CONFIG,
                       "the path of a Unix socket may have at "
                       "most %zu bytes",
                       sizeof un->sun_path - 1);
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, path.p, path.n);
    *len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + path.n + 1);
    return true;
}

/* "127.0.0.1:8443", "[::1]:8443", "localhost:8443", "*:8443" (all addresses of
 * both families), "unix:/path". Port 0 lets the kernel choose. */
static bool
cfg_addr_parse(struct str s, struct cfg_addr *out, struct err *e)
{
    struct str host, port;
    uint16_t n = 0;
    bool v6;

    *out = (struct cfg_addr){.text = s};
    if (str_starts(s, S("unix:"))) {
        out->is_unix = true;
        return cfg_unix_parse(str_from(s, 5), &out->sa, &out->len, e);
    }
    if (!cfg_host_port(s, &host, &port, &v6) || !port.n)
        return err_set(e, ERR_CONFIG,
                       "\"%.*s\" is not an address: write "
                       "\"127.0.0.1:8443\", \"[::1]:8443\", \"*:8443\" or "
                       "\"unix:/path\"",
                       STR_FMT(s));
    if (!cfg_port_parse(port, &n, e))
        return false;
    if (str_eq(host, S("*")) && !v6)
        return cfg_ip_parse(S("::"), true, n, &out->sa, &out->len);
    if (str_eq(host, S("localhost")) && !v6)
        host = S("127.0.0.1");
    if (!cfg_ip_parse(host, v6, n, &out->sa, &out->len))
        return err_set(e, ERR_CONFIG,
                       "\"%.*s\" is not a numeric address: names "
                       "are not looked up here, write 127.0.0.1, [::1] or *",
                       STR_FMT(host));
    return true;
}

/* Letters, digits, '-' and '_' in labels of 1 to 63; not all digits and dots,
 * which would be a misspelt address. */
static bool
cfg_is_host(struct str s)
{
    size_t label = 0;
    bool letter = false;

    if (!s.n || s.n > 253)
        return false;
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = str_lower_byte((unsigned char)s.p[i]);

        if (c == '.') {
            if (label == 0)
                return false;
            label = 0;
            continue;
        }
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
              (c == '-' && label) || c == '_') ||
            ++label > 63)
            return false;
        letter |= c > '9';
    }
    return letter && label;
}

static bool
cfg_target_tcp(struct str s, struct cfg_target *t, struct err *e)
{
    struct str authority, path, port;
    bool v6, slash = str_cut(s, '/', &authority, &path);

    if (authority.n && memchr(authority.p, '@', authority.n))
        return err_set(e, ERR_CONFIG,
                       "a user name in an upstream is not "
                       "supported: write http://host:port");
    if ((slash && path.n) ||
        (s.n && (memchr(s.p, '?', s.n) || memchr(s.p, '#', s.n))))
        return err_set(e, ERR_CONFIG,
                       "an upstream is a server, without a path: "
                       "write http://host:port, and the path in :to \"/...\"");
    if (!cfg_host_port(authority, &t->host, &port, &v6))
        return err_set(e, ERR_CONFIG, "\"%.*s\" is not host:port",
                       STR_FMT(authority));
    t->port = 80;
    if (port.n && !cfg_port_parse(port, &t->port, e))
        return false;
    if (t->port == 0 || (!port.n && authority.p[authority.n - 1] == ':'))
        return err_set(e, ERR_CONFIG, "the port is missing after \":\"");
    if (str_eq(t->host, S("localhost")))
        t->host = S("127.0.0.1");
    t->numeric = cfg_ip_parse(t->host, v6, t->port, &t->sa, &t->len);
    if (!t->numeric && (v6 || !cfg_is_host(t->host)))
        return err_set(e, ERR_CONFIG, "\"%.*s\" is not a host name or address",
                       STR_FMT(t->host));
    return true;
}

/* "http://host[:port]" or "http+unix:/path". */
static bool
cfg_target_parse(struct str s, struct cfg_target *t, struct err *e)
{
    *t = (struct cfg_target){.text = s};
    if (str_starts(s, S("https:")))
        return err_set(e, ERR_CONFIG,
                       "upstream TLS comes with a later version: "
                       "use http:// or http+unix:");
    if (str_starts(s, S("http+unix:"))) {
        t->is_unix = true;
        t->path = str_from(s, 10);
        if (str_starts(t->path, S("//")))
            t->path = str_from(t->path, 2);
        return cfg_unix_parse(t->path, &t->sa, &t->len, e);
    }
    if (str_starts(s, S("http://")))
        return cfg_target_tcp(str_from(s, 7), t, e);
    return err_set(e, ERR_CONFIG,
                   "\"%.*s\" is not an upstream: write "
                   "http://host:port or http+unix:/path",
                   STR_FMT(s));
}

/* ---- process, listeners, admin, upstreams ---- */

static bool
cfg_read_level(struct cfg_read *r, yyjson_val *v, void *object)
{
    struct cfg_process *p = object;

    if (!yyjson_is_str(v))
        return cfg_fail(r, "log_level must be a string");
    for (int i = LOG_DEBUG; i <= LOG_ERROR; i++)
        if (str_eq(cfg_val_str(v), str_of(log_level_name((enum log_level)i)))) {
            p->log_level = (enum log_level)i;
            return true;
        }
    return cfg_fail(r,
                    "log_level is \"%.40s\", and must be debug, info, warn "
                    "or error",
                    yyjson_get_str(v));
}

/* What our processes give up, or are shut into. */
static const struct cfg_layer {
    const char *name;
    bool later;  // known, and given by a later version
} cfg_layers[] = {
    {"no_new_privs", false}, {"dumpable", false},    {"rlimits", false},
    {"descriptors", false},  {"environment", false}, {"uid", false},
    {"seccomp", true},       {"landlock", true},     {"namespaces", true},
    {"cgroup", true},        {"processes", true},
};

static const size_t cfg_layers_n = sizeof cfg_layers / sizeof *cfg_layers;

static const struct cfg_layer *
cfg_layer_find(struct str name)
{
    for (size_t i = 0; i < cfg_layers_n; i++)
        if (str_eq(name, str_of(cfg_layers[i].name)))
            return &cfg_layers[i];
    return NULL;
}

/* The names, with commas; of this version only, or of later ones too. */
static const char *
cfg_layer_names(struct mem_arena *a, bool later)
{
    const char *all = "";

    for (size_t i = 0; i < cfg_layers_n; i++)
        if (later || !cfg_layers[i].later)
            all = mem_printf(a, "%s%s%s", all, *all ? ", " : "",
                             cfg_layers[i].name);
    return all;
}

/* Whoever asks for a layer gets it, or is told that it is not there: `must`
 * for must_have. "uid" depends on who starts us, which sup knows. */
static bool
cfg_check_layers(struct cfg_read *r, const char *key, struct cfg_strs names,
                 bool must)
{
    for (size_t i = 0; i < names.n; i++) {
        const struct cfg_layer *l = cfg_layer_find(names.v[i]);

        if (!l)
            return cfg_fail(r, "%s: there is no layer \"%.40s\": write %s", key,
                            str_c(r->a, names.v[i]),
                            cfg_layer_names(r->a, true));
        if (must && l->later)
            return cfg_fail(r,
                            "%s: %s comes with a later version: this one can "
                            "promise %s",
                            key, l->name, cfg_layer_names(r->a, false));
    }
    return true;
}

static bool
cfg_read_process(struct cfg_read *r, yyjson_val *v, void *object)
{
    static const struct cfg_field table[] = {
        {"workers", CFG_U32, CFG_AT(cfg_process, workers), 0, CFG_WORKERS_MAX,
         NULL, false},
        {"user", CFG_STR, CFG_AT(cfg_process, user), 0, CFG_NAME_MAX, NULL,
         false},
        {"group", CFG_STR, CFG_AT(cfg_process, group), 0, CFG_NAME_MAX, NULL,
         false},
        {"access_log", CFG_BOOL, CFG_AT(cfg_process, access_log), 0, 0, NULL,
         false},
        {"log_level", CFG_FN, 0, 0, 0, cfg_read_level, false},
        {"lua_memory", CFG_U64, CFG_AT(cfg_process, lua_memory), 1 << 20,
         (uint64_t)1 << 36, NULL, false},
        {"drain_ms", CFG_U32, CFG_AT(cfg_process, drain_ms), 0, CFG_MS_MAX,
         NULL, false},
        {"clock_floor", CFG_BOOL, CFG_AT(cfg_process, clock_floor), 0, 0, NULL,
         false},
        {"accept_missing", CFG_STRS, CFG_AT(cfg_process, accept_missing), 0, 64,
         NULL, false},
        {"must_have", CFG_STRS, CFG_AT(cfg_process, must_have), 0, 64, NULL,
         false},
        {"at", CFG_STR, CFG_AT(cfg_process, at), 0, CFG_PATH_MAX, NULL, false},
        {0},
    };
    struct cfg *c = object;
    bool ok;

    cfg_enter(r, v, "process", "");
    ok = cfg_read_object(r, v, table, &c->process) &&
         cfg_check_layers(r, "accept_missing", c->process.accept_missing,
                          false) &&
         cfg_check_layers(r, "must_have", c->process.must_have, true);
    cfg_leave(r);
    return ok;
}

static bool
cfg_read_env(struct cfg_read *r, yyjson_val *v, void *object)
{
    static const struct cfg_field f = {"env",         CFG_STRS, 0,    0,
                                       CFG_ITEMS_MAX, NULL,     false};
    struct cfg *c = object;

    if (!cfg_read_strs(r, &f, v, &c->env))
        return false;
    for (size_t i = 0; i < c->env.n; i++)
        if (!cfg_is_name(c->env.v[i], ""))
            return cfg_fail(r, "env: \"%.*s\" is not the name of a variable",
                            STR_FMT(c->env.v[i]));
    return true;
}

static bool
cfg_read_cas(struct cfg_read *r, yyjson_val *v, void *object)
{
    static const struct cfg_field f = {"cas",         CFG_STRS, 0,    0,
                                       CFG_ITEMS_MAX, NULL,     false};

    return cfg_read_strs(r, &f, v, &((struct cfg *)object)->cas);
}

static const struct cfg_limits cfg_limits_default = {
    .handshake_ms = 10000,
    .head_ms = 10000,
    .body_ms = 30000,
    .write_ms = 30000,
    .idle_ms = 75000,
    .head_bytes = 16384,
    .head_fields = 100,
    .uri_bytes = 8192,
    .body_bytes = 1048576,
    .connections = 10000,
    .handshakes = 100,
    .per_identity = 200,
    .requests = 10000,
    .query_params = 100,
    .hook_cpu_ms = 100,
    .hook_time_ms = 30000,
};

static bool
cfg_read_limits(struct cfg_read *r, yyjson_val *v, void *object)
{
#define LIMIT(name, lo, hi)                                                    \
    {                                                                          \
#name, CFG_U32, CFG_AT(cfg_limits, name), lo, hi, NULL, false          \
    }
    static const struct cfg_field table[] = {
        LIMIT(handshake_ms, 1, CFG_MS_MAX),
        LIMIT(head_ms, 1, CFG_MS_MAX),
        LIMIT(body_ms, 1, CFG_MS_MAX),
        LIMIT(write_ms, 1, CFG_MS_MAX),
        LIMIT(idle_ms, 1, CFG_MS_MAX),
        LIMIT(head_bytes, 256, 1 << 20),
        LIMIT(head_fields, 1, 10000),
        LIMIT(uri_bytes, 16, 1 << 20),
        LIMIT(body_bytes, 0, 1 << 30),
        LIMIT(connections, 1, 10000000),
        LIMIT(handshakes, 1, 1000000),
        LIMIT(per_identity, 1, 10000000),
        LIMIT(requests, 0, UINT32_MAX),
        LIMIT(query_params, 0, 10000),
        LIMIT(hook_cpu_ms, 1, CFG_MS_MAX),
        LIMIT(hook_time_ms, 1, CFG_MS_MAX),
        {0},
    };
#undef LIMIT
    struct cfg_limits *l = &((struct cfg_listener *)object)->limits;

    if (!cfg_read_object(r, v, table, l))
        return false;
    if (l->uri_bytes > l->head_bytes)
        return cfg_fail(r,
                        "uri_size (%u) is larger than head_size (%u), which "
                        "includes it",
                        l->uri_bytes, l->head_bytes);
    return true;
}

static bool
cfg_read_addr(struct cfg_read *r, yyjson_val *v, struct cfg_addr *out)
{
    if (!yyjson_is_str(v))
        return cfg_fail(r, "address must be a string");
    if (!str_no_control(cfg_val_str(v)))
        return cfg_fail(r, "address holds a control character");
    return cfg_addr_parse(cfg_val_str(v), out, r->e) || cfg_blame(r);
}

static bool
cfg_read_listener_addr(struct cfg_read *r, yyjson_val *v, void *object)
{
    return cfg_read_addr(r, v, &((struct cfg_listener *)object)->address);
}

static bool
cfg_read_listener(struct cfg_read *r, yyjson_val *v, void *item)
{
    static const struct cfg_field table[] = {
        {"name", CFG_STR, CFG_AT(cfg_listener, name), 1, CFG_NAME_MAX, NULL,
         true},
        {"address", CFG_FN, 0, 0, 0, cfg_read_listener_addr, true},
        {"certificate", CFG_STR, CFG_AT(cfg_listener, certificate), 1,
         CFG_PATH_MAX, NULL, true},
        {"key", CFG_STR, CFG_AT(cfg_listener, key), 1, CFG_PATH_MAX, NULL,
         true},
        {"client_ca", CFG_STR, CFG_AT(cfg_listener, client_ca), 1, CFG_PATH_MAX,
         NULL, true},
        {"explain", CFG_BOOL, CFG_AT(cfg_listener, explain), 0, 0, NULL, false},
        {"eku_any", CFG_BOOL, CFG_AT(cfg_listener, eku_any), 0, 0, NULL, false},
        {"depth", CFG_U32, CFG_AT(cfg_listener, depth), 1, CFG_DEPTH_MAX, NULL,
         false},
        {"limits", CFG_FN, 0, 0, 0, cfg_read_limits, false},
        {"at", CFG_STR, CFG_AT(cfg_listener, at), 0, CFG_PATH_MAX, NULL, false},
        {0},
    };
    struct cfg_listener *l = item;

    l->limits = cfg_limits_default;
    l->depth = CFG_DEPTH_MAX;
    cfg_enter(r, v, "listener", "name");
    return cfg_read_object(r, v, table, l);
}

static bool
cfg_read_admin_addr(struct cfg_read *r, yyjson_val *v, void *object)
{
    return cfg_read_addr(r, v, &((struct cfg_admin *)object)->address);
}

static bool
cfg_read_admin(struct cfg_read *r, yyjson_val *v, void *item)
{
    static const struct cfg_field table[] = {
        {"address", CFG_FN, 0, 0, 0, cfg_read_admin_addr, true},
        {"at", CFG_STR, CFG_AT(cfg_admin, at), 0, CFG_PATH_MAX, NULL, false},
        {0},
    };

    cfg_enter(r, v, "admin", "address");
    return cfg_read_object(r, v, table, item);
}

static bool
cfg_read_targets(struct cfg_read *r, yyjson_val *v, void *object)
{
    static const struct cfg_field f = {"targets", CFG_STRS, 0,    0,
                                       64,        NULL,     false};
    struct cfg_upstream *u = object;
    struct cfg_strs s = {0};

    if (!cfg_read_strs(r, &f, v, &s))
        return false;
    if (!s.n)
        return cfg_fail(r, "it has no server: write gateway.upstream "
                           "{ \"http://127.0.0.1:8080\" }");
    u->targets = mem_alloc(r->a, s.n * sizeof *u->targets);
    u->targets_n = s.n;
    for (size_t i = 0; i < s.n; i++)
        if (!cfg_target_parse(s.v[i], &u->targets[i], r->e))
            return cfg_blame(r);
    return true;
}

static bool
cfg_read_upstream(struct cfg_read *r, yyjson_val *v, void *item)
{
    static const struct cfg_field table[] = {
        {"name", CFG_STR, CFG_AT(cfg_upstream, name), 1, CFG_NAME_MAX, NULL,
         true},
        {"targets", CFG_FN, 0, 0, 0, cfg_read_targets, true},
        {"connect_ms", CFG_U32, CFG_AT(cfg_upstream, connect_ms), 1, CFG_MS_MAX,
         NULL, false},
        {"head_ms", CFG_U32, CFG_AT(cfg_upstream, head_ms), 1, CFG_MS_MAX, NULL,
         false},
        {"idle_ms", CFG_U32, CFG_AT(cfg_upstream, idle_ms), 1, CFG_MS_MAX, NULL,
         false},
        {"keepalive_ms", CFG_U32, CFG_AT(cfg_upstream, keepalive_ms), 1,
         CFG_MS_MAX, NULL, false},
        {"keepalive", CFG_U32, CFG_AT(cfg_upstream, keepalive), 0, 100000, NULL,
         false},
        {"identity_headers", CFG_BOOL, CFG_AT(cfg_upstream, identity_headers),
         0, 0, NULL, false},
        {"at", CFG_STR, CFG_AT(cfg_upstream, at), 0, CFG_PATH_MAX, NULL, false},
        {0},
    };
    struct cfg_upstream *u = item;

    *u = (struct cfg_upstream){
        .connect_ms = 1000,
        .head_ms = 30000,
        .idle_ms = 30000,
        .keepalive_ms = 60000,
        .keepalive = 64,
        .identity_headers = true,
    };
    cfg_enter(r, v, "upstream", "name");
    return cfg_read_object(r, v, table, u);
}

/* ---- commands ---- */

static bool
cfg_read_file(struct cfg_read *r, yyjson_val *v, void *object)
{
    static const struct cfg_field table[] = {
        {"below", CFG_STR, CFG_AT(cfg_slot, below), 1, CFG_PATH_MAX, NULL,
         true},
        {"stdin", CFG_BOOL, CFG_AT(cfg_slot, on_stdin), 0, 0, NULL, false},
        {0},
    };
    struct cfg_slot *s = object;

    if (yyjson_is_null(v))
        return true;
    s->is_file = true;
    if (!cfg_read_object(r, v, table, s))
        return false;
    if (s->below.p[0] != '/')
        return cfg_fail(r, "file_below needs an absolute folder, not \"%.*s\"",
                        STR_FMT(s->below));
    return true;
}

static bool
cfg_is_schema(yyjson_val *v)
{
    return yyjson_is_obj(v) || yyjson_is_bool(v);
}

static bool
cfg_read_slot(struct cfg_read *r, yyjson_val *v, void *item)
{
    static const struct cfg_field table[] = {
        {"name", CFG_STR, CFG_AT(cfg_slot, name), 1, CFG_NAME_MAX, NULL, true},
        {"schema", CFG_VAL, CFG_AT(cfg_slot, schema), 0, 0, NULL, true},
        {"dash", CFG_BOOL, CFG_AT(cfg_slot, dash), 0, 0, NULL, false},
        {"secret", CFG_BOOL, CFG_AT(cfg_slot, secret), 0, 0, NULL, false},
        {"file", CFG_FN, 0, 0, 0, cfg_read_file, false},
        {0},
    };
    struct cfg_slot *s = item;

    if (!cfg_read_object(r, v, table, s))
        return false;
    if (!cfg_is_name(s->name, ""))
        return cfg_fail(r, "\"%.*s\" is not a slot name: letters, digits and _",
                        STR_FMT(s->name));
    if (!cfg_is_schema(s->schema))
        return cfg_fail(r, "slot %.*s: the schema must be an object",
                        STR_FMT(s->name));
    return true;
}

static bool
cfg_read_slots(struct cfg_read *r, yyjson_val *v, void *object)
{
    struct cfg_command *c = object;

    return cfg_read_list(r, v, "slots", 64, sizeof *c->slots, cfg_read_slot,
                         &c->slots, &c->slots_n);
}

/* An argument names its slot; the index is filled in once all are known. */
struct cfg_arg_raw {
    yyjson_val *text, *prefix, *slot;
};

static bool
cfg_read_arg(struct cfg_read *r, struct cfg_command *c, yyjson_val *v,
             struct cfg_arg *out)
{
    static const struct cfg_field table[] = {
        {"text", CFG_VAL, CFG_AT(cfg_arg_raw, text), 0, 0, NULL, false},
        {"slot", CFG_VAL, CFG_AT(cfg_arg_raw, slot), 0, 0, NULL, false},
        {"prefix", CFG_VAL, CFG_AT(cfg_arg_raw, prefix), 0, 0, NULL, false},
        {0},
    };
    static const struct cfg_field text = {"args", CFG_TEXT, 0,    0,
                                          65536,  NULL,     false};
    struct cfg_arg_raw raw = {0};
    yyjson_val *words;

    if (!cfg_read_object(r, v, table, &raw))
        return false;
    if (!raw.slot == !raw.text || (raw.prefix && raw.text))
        return cfg_fail(r, "an argument is either a text or a slot with a "
                           "prefix");
    words = raw.text ? raw.text : raw.prefix;
    if (words && !cfg_read_str(r, &text, words, &out->text))
        return false;
    if (raw.text)
        return true;
    out->is_slot = true;
    for (unsigned i = 0; i < c->slots_n; i++)
        if (yyjson_is_str(raw.slot) &&
            str_eq(c->slots[i].name, cfg_val_str(raw.slot))) {
            out->slot = i;
            return true;
        }
    return cfg_fail(r, "args name the slot \"%.60s\", which is not in slots",
                    yyjson_is_str(raw.slot) ? yyjson_get_str(raw.slot) : "?");
}

/* Each slot must reach the program exactly once: an argument, or stdin. */
static bool
cfg_read_args(struct cfg_read *r, yyjson_val *v, struct cfg_command *c)
{
    unsigned *used = mem_alloc(r->a, c->slots_n * sizeof *used), inputs = 0;
    yyjson_val *one;
    yyjson_arr_iter it = yyjson_arr_iter_with(v);
    size_t i;

    if (v && !yyjson_is_arr(v) && yyjson_obj_size(v) > 0)
        return cfg_fail(r, "args must be a list");
    if (yyjson_arr_size(v) > 256)
        return cfg_fail(r, "args has more than 256 entries");
    c->args_n = yyjson_arr_size(v);
    c->args = mem_alloc(r->a, c->args_n * sizeof *c->args);
    for (i = 0; (one = yyjson_arr_iter_next(&it)); i++) {
        if (!cfg_read_arg(r, c, one, &c->args[i]))
            return false;
        if (c->args[i].is_slot)
            used[c->args[i].slot]++;
    }
    for (i = 0; i < c->slots_n; i++) {
        const struct cfg_slot *s = &c->slots[i];

        inputs += s->on_stdin;
        if (s->on_stdin && used[i])
            return cfg_fail(r,
                            "slot %.*s is given on stdin: take it out of "
                            "args",
                            STR_FMT(s->name));
        if (!s->on_stdin && used[i] != 1)
            return cfg_fail(r,
                            "slot %.*s is used %u times in args: use it "
                            "once",
                            STR_FMT(s->name), used[i]);
    }
    if (inputs > 1)
        return cfg_fail(r, "only one slot can be given on stdin");
    return true;
}

static bool
cfg_read_command_env(struct cfg_read *r, yyjson_val *v, void *object)
{
    static const struct cfg_field text = {"env", CFG_TEXT, 0,    0,
                                          65536, NULL,     false};
    struct cfg_command *c = object;
    yyjson_val *key, *val;
    yyjson_obj_iter it = yyjson_obj_iter_with(v);
    size_t i;

    if (yyjson_is_arr(v) && yyjson_arr_size(v) == 0)
        return true;
    if (!yyjson_is_obj(v) || yyjson_obj_size(v) > 256)
        return cfg_fail(r, "env must map at most 256 names to strings");
    c->env_n = yyjson_obj_size(v);
    c->env = mem_alloc(r->a, c->env_n * sizeof *c->env);
    for (i = 0; (key = yyjson_obj_iter_next(&it)); i++) {
        val = yyjson_obj_iter_get_val(key);
        c->env[i].name = cfg_val_str(key);
        if (!cfg_is_name(c->env[i].name, ""))
            return cfg_fail(r, "env: \"%.60s\" is not the name of a variable",
                            yyjson_get_str(key));
        // the loader would run what these name, before the program starts
        if (str_starts(c->env[i].name, S("LD_")) ||
            str_eq(c->env[i].name, S("GCONV_PATH")))
            return cfg_fail(r,
                            "env: %.60s loads code into the program, and "
                            "cannot be set",
                            yyjson_get_str(key));
        if (!cfg_read_str(r, &text, val, &c->env[i].value))
            return false;
    }
    return true;
}

static bool
cfg_check_command(struct cfg_read *r, const struct cfg_command *c)
{
    if (!cfg_is_name(c->name, "-."))
        return cfg_fail(r, "a command's name is letters, digits, - _ and .");
    if (c->program.p[0] != '/')
        return cfg_fail(r,
                        "program is \"%.*s\", and must be an absolute path, "
                        "as in \"/usr/bin/tail\"",
                        STR_FMT(c->program));
    if (c->cwd.p[0] != '/')
        return cfg_fail(r, "cwd must be an absolute path");
    if (c->sha256.n && c->sha256.n != 64)
        return cfg_fail(r, "sha256 must be 64 hexadecimal digits");
    for (size_t i = 0; i < c->sha256.n; i++)
        if (str_hex_digit(c->sha256.p[i]) < 0)
            return cfg_fail(r, "sha256 must be 64 hexadecimal digits");
    for (size_t i = 0; i < c->slots_n; i++)
        for (size_t j = 0; j < i; j++)
            if (str_eq(c->slots[i].name, c->slots[j].name))
                return cfg_fail(r, "two slots are called \"%.*s\"",
                                STR_FMT(c->slots[i].name));
    return true;
}

static bool
cfg_read_command(struct cfg_read *r, yyjson_val *v, void *item)
{
#define NUMBER(name, type, member, lo, hi)                                     \
    {                                                                          \
        name, type, CFG_AT(cfg_command, member), lo, hi, NULL, false           \
    }
    static const struct cfg_field table[] = {
        {"name", CFG_STR, CFG_AT(cfg_command, name), 1, 64, NULL, true},
        {"program", CFG_STR, CFG_AT(cfg_command, program), 1, CFG_PATH_MAX - 1,
         NULL, true},
        {"args", CFG_LATER, 0, 0, 0, NULL, false},
        {"slots", CFG_FN, 0, 0, 0, cfg_read_slots, false},
        {"env", CFG_FN, 0, 0, 0, cfg_read_command_env, false},
        {"cwd", CFG_STR, CFG_AT(cfg_command, cwd), 1, CFG_PATH_MAX - 1, NULL,
         false},
        NUMBER("timeout_ms", CFG_U32, timeout_ms, 1, CFG_MS_MAX),
        NUMBER("kill_ms", CFG_U32, kill_ms, 0, CFG_MS_MAX),
        NUMBER("memory", CFG_U64, memory, 1 << 20, (uint64_t)1 << 40),
        NUMBER("cpu_ms", CFG_U32, cpu_ms, 1, CFG_MS_MAX),
        NUMBER("files", CFG_U32, files, 4, 65536),
        NUMBER("processes", CFG_U32, processes, 0, 1000000),
        NUMBER("file_size", CFG_U64, file_size, 0, (uint64_t)1 << 40),
        NUMBER("stdin", CFG_U64, stdin_max, 0, 1 << 28),
        NUMBER("stdout", CFG_U64, stdout_max, 0, 1 << 28),
        NUMBER("stderr", CFG_U64, stderr_max, 0, 1 << 28),
        NUMBER("concurrency", CFG_U32, concurrency, 1, 1024),
        NUMBER("queue", CFG_U32, queue, 0, 65536),
        {"sha256", CFG_STR, CFG_AT(cfg_command, sha256), 0, 64, NULL, false},
        {"at", CFG_STR, CFG_AT(cfg_command, at), 0, CFG_PATH_MAX, NULL, false},
        {0},
    };
#undef NUMBER
    struct cfg_command *c = item;

    *c = (struct cfg_command){
        .cwd = S("/"),
        .timeout_ms = 10000,
        .kill_ms = 2000,
        .cpu_ms = 10000,
        .memory = 268435456,
        .file_size = 16777216,
        .stdin_max = 1048576,
        .stdout_max = 1048576,
        .stderr_max = 65536,
        .files = 64,
        .concurrency = 4,
        .queue = 16,
    };
    cfg_enter(r, v, "command", "name");
    return cfg_read_object(r, v, table, c) && cfg_check_command(r, c) &&
           cfg_read_args(r, yyjson_obj_get(v, "args"), c);
}

/* ---- routes ---- */

static bool
cfg_read_hook(struct cfg_read *r, yyjson_val *v, const char *name,
              unsigned *out)
{
    if (!yyjson_is_uint(v) || yyjson_get_uint(v) == 0 ||
        yyjson_get_uint(v) > 1000000)
        return cfg_fail(r, "%s: a hook is a number from 1", name);
    *out = (unsigned)yyjson_get_uint(v);
    return true;
}

static bool
cfg_read_hooks(struct cfg_read *r, yyjson_val *v, const char *name,
               struct cfg_hooks *out)
{
    yyjson_val *one;
    yyjson_arr_iter it = yyjson_arr_iter_with(v);
    size_t i;

    if (!v || (yyjson_is_obj(v) && yyjson_obj_size(v) == 0))
        return true;
    if (!yyjson_is_arr(v) || yyjson_arr_size(v) > CFG_ITEMS_MAX)
        return cfg_fail(r, "%s must be a list of hooks", name);
    out->n = yyjson_arr_size(v);
    out->v = mem_alloc(r->a, out->n * sizeof *out->v);
    for (i = 0; (one = yyjson_arr_iter_next(&it)); i++)
        if (!cfg_read_hook(r, one, name, &out->v[i]))
            return false;
    return true;
}

static bool
cfg_read_check(struct cfg_read *r, yyjson_val *v, void *object)
{
    return cfg_read_hooks(r, v, "check", &((struct cfg_route *)object)->check);
}

static bool
cfg_read_respond(struct cfg_read *r, yyjson_val *v, void *object)
{
    return cfg_read_hooks(r, v, "respond",
                          &((struct cfg_route *)object)->respond);
}

static bool
cfg_read_log(struct cfg_read *r, yyjson_val *v, void *object)
{
    return cfg_read_hooks(r, v, "log", &((struct cfg_route *)object)->log);
}

static bool
cfg_read_who_hook(struct cfg_read *r, yyjson_val *v, void *object)
{
    return cfg_read_hook(r, v, "authorize", &((struct cfg_who *)object)->hook);
}

static bool
cfg_read_who(struct cfg_read *r, yyjson_val *v, void *item)
{
    static const struct cfg_field table[] = {
        {"hook", CFG_FN, 0, 0, 0, cfg_read_who_hook, true},
        {"text", CFG_STR, CFG_AT(cfg_who, text), 0, CFG_PATH_MAX, NULL, false},
        {0},
    };

    return cfg_read_object(r, v, table, item);
}

static bool
cfg_read_authorize(struct cfg_read *r, yyjson_val *v, void *object)
{
    struct cfg_route *t = object;

    return cfg_read_list(r, v, "authorize", CFG_ITEMS_MAX, sizeof *t->authorize,
                         cfg_read_who, &t->authorize, &t->authorize_n);
}

/* {"lines": {"schema": …, "optional": true, "default": 100}, …} */
static bool
cfg_read_inputs(struct cfg_read *r, yyjson_val *v, const char *kind,
                struct cfg_input **out, size_t *count)
{
    static const struct cfg_field table[] = {
        {"schema", CFG_VAL, CFG_AT(cfg_input, schema), 0, 0, NULL, true},
        {"optional", CFG_BOOL, CFG_AT(cfg_input, optional), 0, 0, NULL, false},
        {"default", CFG_VAL, CFG_AT(cfg_input, fallback), 0, 0, NULL, false},
        {0},
    };
    struct cfg_input *in;
    yyjson_val *key, *val;
    yyjson_obj_iter it = yyjson_obj_iter_with(v);
    size_t i;

    if (yyjson_is_arr(v) && yyjson_arr_size(v) == 0)
        return true;
    if (!yyjson_is_obj(v) || yyjson_obj_size(v) > 256)
        return cfg_fail(r, "%s must map at most 256 names to schemas", kind);
    *count = yyjson_obj_size(v);
    *out = mem_alloc(r->a, *count * sizeof **out);
    for (i = 0; (key = yyjson_obj_iter_next(&it)); i++) {
        val = yyjson_obj_iter_get_val(key);
        in = &(*out)[i];
        in->name = cfg_val_str(key);
        if (!in->name.n || in->name.n > CFG_NAME_MAX ||
            !str_no_control(in->name))
            return cfg_fail(r, "%s: a name is empty, too long or not printable",
                            kind);
        if (!cfg_read_object(r, val, table, in))
            return false;
        if (!cfg_is_schema(in->schema))
            return cfg_fail(r, "%s %.60s: the schema must be an object", kind,
                            in->name.p);
        if (in->fallback && !in->optional)
            return cfg_fail(r,
                            "%s %.60s has a default but is required: wrap it "
                            "in gateway.optional",
                            kind, in->name.p);
    }
    return true;
}

static bool
cfg_read_query(struct cfg_read *r, yyjson_val *v, void *object)
{
    struct cfg_route *t = object;

    return cfg_read_inputs(r, v, "query", &t->query, &t->query_n);
}

/* What may be declared as an input: not framing, not what we set ourselves. */
static bool
cfg_check_input_header(struct cfg_read *r, struct str name)
{
    for (size_t i = 0; i < name.n; i++)
        if ((unsigned char)name.p[i] !=
            str_lower_byte((unsigned char)name.p[i]))
            return cfg_fail(r, "header %.60s: write the name in lower case",
                            name.p);
    if (!hdr_name_ok(name))
        return cfg_fail(r, "header \"%.60s\" is not a header name", name.p);
    if (hdr_identity(name))
        return cfg_fail(r,
                        "header %.60s is always removed from requests, as a "
                        "client could claim to be anyone with it: use identity",
                        name.p);
    if (hdr_hop_by_hop(name) || str_eq(name, S("content-length")))
        return cfg_fail(r,
                        "header %.60s belongs to the connection, and cannot "
                        "be an input",
                        name.p);
    return true;
}

static bool
cfg_read_headers(struct cfg_read *r, yyjson_val *v, void *object)
{
    struct cfg_route *t = object;

    if (!cfg_read_inputs(r, v, "header", &t->headers, &t->headers_n))
        return false;
    for (size_t i = 0; i < t->headers_n; i++)
        if (!cfg_check_input_header(r, t->headers[i].name))
            return false;
    return true;
}

static bool
cfg_read_body_kind(struct cfg_read *r, yyjson_val *v, void *object)
{
    static const char *const names[] = {
        [CFG_BODY_NONE] = "none",
        [CFG_BODY_JSON] = "json",
        [CFG_BODY_BYTES] = "bytes",
        [CFG_BODY_STREAM] = "stream",
    };
    struct cfg_body *b = object;

    for (int i = CFG_BODY_NONE; i <= CFG_BODY_STREAM; i++)
        if (yyjson_equals_str(v, names[i])) {
            b->kind = (enum cfg_body_kind)i;
            return true;
        }
    return cfg_fail(r, "body.kind must be none, json, bytes or stream");
}

static bool
cfg_read_body(struct cfg_read *r, yyjson_val *v, void *object)
{
    static const struct cfg_field table[] = {
        {"kind", CFG_FN, 0, 0, 0, cfg_read_body_kind, true},
        {"max", CFG_U64, CFG_AT(cfg_body, max), 0, (uint64_t)1 << 50, NULL,
         false},
        {"types", CFG_STRS, CFG_AT(cfg_body, types), 0, 64, NULL, false},
        {"schema", CFG_VAL, CFG_AT(cfg_body, schema), 0, 0, NULL, false},
        {0},
    };
    struct cfg_body *b = &((struct cfg_route *)object)->body;

    b->max = cfg_limits_default.body_bytes;
    if (!cfg_read_object(r, v, table, b))
        return false;
    if (yyjson_is_null(b->schema))
        b->schema = NULL;
    if ((b->kind == CFG_BODY_JSON) != (b->schema != NULL))
        return cfg_fail(r, "a json body needs a schema, and no other body can "
                           "have one");
    if (b->schema && !cfg_is_schema(b->schema))
        return cfg_fail(r, "the schema of the body must be an object");
    if (b->kind == CFG_BODY_JSON && b->max > CFG_JSON_MAX)
        return cfg_fail(r,
                        "a JSON body of more than %d MiB cannot be checked "
                        "in memory: lower body_size",
                        CFG_JSON_MAX >> 20);
    if (b->kind == CFG_BODY_BYTES && b->max > 1 << 30)
        return cfg_fail(r, "a body of more than 1 GiB cannot be buffered: use "
                           "gateway.stream");
    for (size_t i = 0; i < b->types.n; i++)
        if (!memchr(b->types.v[i].p, '/', b->types.v[i].n))
            return cfg_fail(r,
                            "\"%.*s\" is not a media type, as in "
                            "\"application/json\"",
                            STR_FMT(b->types.v[i]));
    return true;
}

/* The fields of an identity that fit into one header or path segment. */
static bool
cfg_is_identity_field(struct str s)
{
    static const char *const names[] = {
        "cn",    "o",          "ou",        "c",           "l",      "st",
        "dc",    "uid",        "dn",        "uri",         "dns",    "ip",
        "email", "spiffe",     "serial",    "fingerprint", "issuer", "spki",
        "key",   "not_before", "not_after",
    };

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (str_eq(s, str_of(names[i])))
            return true;
    return false;
}

/* One "{name}" of a template. */
static bool
cfg_read_piece(struct cfg_read *r, const struct cfg_route *t, struct str name,
               struct cfg_piece *p)
{
    if (str_eq(name, S("request.id"))) {
        p->kind = CFG_PIECE_REQUEST_ID;
        return true;
    }
    if (str_starts(name, S("identity."))) {
        p->kind = CFG_PIECE_IDENTITY;
        p->text = str_from(name, 9);
        if (cfg_is_identity_field(p->text))
            return true;
        return cfg_fail(r,
                        "{%.*s}: an identity has no such field; it has cn, "
                        "o, ou, dn, uri, dns, email, spiffe, serial, "
                        "fingerprint, ...",
                        STR_FMT(name));
    }
    p->kind = CFG_PIECE_CAPTURE;
    for (unsigned i = 0; i < t->captures_n; i++)
        if (str_eq(t->captures[i].name, name)) {
            p->capture = i;
            return true;
        }
    return cfg_fail(r,
                    "{%.*s} is neither a capture of the path, nor "
                    "identity.FIELD, nor request.id",
                    STR_FMT(name));
}

static bool
cfg_read_template(struct cfg_read *r, const struct cfg_route *t, struct str s,
                  struct cfg_template *out)
{
    bool in_query = false;
    struct str text, name, rest = s;
    size_t max = 1;

    for (size_t i = 0; i < s.n; i++)
        max += s.p[i] == '{' ? 2 : 0;
    out->text = s;
    out->v = mem_alloc(r->a, max * sizeof *out->v);
    while (rest.n) {
        bool brace = str_cut(rest, '{', &text, &rest);

        if (text.n && memchr(text.p, '}', text.n))
            return cfg_fail(r, "\"%.*s\": a } without its {", STR_FMT(s));
        if (text.n)
            out->v[out->n++] =
                (struct cfg_piece){CFG_PIECE_TEXT, text, 0, in_query};
        in_query |= text.n && memchr(text.p, '?', text.n);
        if (!brace)
            break;
        if (!str_cut(rest, '}', &name, &rest) || !name.n)
            return cfg_fail(r, "\"%.*s\": a { without a name and its }",
                            STR_FMT(s));
        out->v[out->n].in_query = in_query;
        if (!cfg_read_piece(r, t, name, &out->v[out->n++]))
            return false;
    }
    return true;
}

/* Where requests go: "/internal/{name}?as={identity.cn}". */
static bool
cfg_read_target(struct cfg_read *r, const struct cfg_route *t, yyjson_val *v,
                struct cfg_template *out)
{
    struct str s = cfg_val_str(v);

    if (!v || (yyjson_is_str(v) && s.n == 0))
        return true;
    if (!yyjson_is_str(v) || s.n > CFG_PATH_MAX || s.p[0] != '/')
        return cfg_fail(r, "target must be a string that begins with /");
    for (size_t i = 0; i < s.n; i++)
        if ((unsigned char)s.p[i] <= ' ' || (unsigned char)s.p[i] >= 0x7f ||
            strchr("#\\\"<>^`|", s.p[i]))
            return cfg_fail(r,
                            "target \"%.*s\" holds a byte that no URL may "
                            "hold",
                            STR_FMT(s));
    return cfg_read_template(r, t, s, out);
}

/* What a route may not set or remove: framing and the connection. */
static bool
cfg_check_set_header(struct cfg_read *r, const char *what, struct str name)
{
    char low[CFG_NAME_MAX + 1];

    if (!hdr_name_ok(name) || name.n >= sizeof low)
        return cfg_fail(r, "%s: \"%.*s\" is not a header name", what,
                        STR_FMT(name));
    for (size_t i = 0; i < name.n; i++)
        low[i] = (char)str_lower_byte((unsigned char)name.p[i]);
    low[name.n] = 0;
    if (hdr_hop_by_hop(str_of(low)) || strcmp(low, "content-length") == 0 ||
        strcmp(low, "host") == 0)
        return cfg_fail(r,
                        "%s: %s belongs to the connection, and cannot be "
                        "changed",
                        what, low);
    return true;
}

/* Header names are lower case from here on. */
static struct str
cfg_lower(struct mem_arena *a, struct str s)
{
    char *p = str_c(a, s);

    for (size_t i = 0; i < s.n; i++)
        p[i] = (char)str_lower_byte((unsigned char)p[i]);
    return (struct str){p, s.n};
}

static bool
cfg_read_sets(struct cfg_read *r, const struct cfg_route *t, const char *what,
              yyjson_val *v, struct cfg_sets *out)
{
    yyjson_val *key, *val;
    yyjson_obj_iter it = yyjson_obj_iter_with(v);
    size_t i;

    if (!v || (yyjson_is_arr(v) && yyjson_arr_size(v) == 0))
        return true;
    if (!yyjson_is_obj(v) || yyjson_obj_size(v) > 64)
        return cfg_fail(r, "%s must map at most 64 header names to texts",
                        what);
    out->n = yyjson_obj_size(v);
    out->v = mem_alloc(r->a, out->n * sizeof *out->v);
    for (i = 0; (key = yyjson_obj_iter_next(&it)); i++) {
        val = yyjson_obj_iter_get_val(key);
        out->v[i].name = cfg_lower(r->a, cfg_val_str(key));
        if (!cfg_check_set_header(r, what, out->v[i].name))
            return false;
        if (!yyjson_is_str(val) || !hdr_value_ok(cfg_val_str(val)) ||
            yyjson_get_len(val) > CFG_PATH_MAX)
            return cfg_fail(r, "%s: the value of %.60s is not a header value",
                            what, yyjson_get_str(key));
        if (!cfg_read_template(r, t, cfg_val_str(val), &out->v[i].value))
            return false;
    }
    return true;
}

static bool
cfg_read_removes(struct cfg_read *r, const char *what, yyjson_val *v,
                 struct cfg_strs *out)
{
    const struct cfg_field f = {what, CFG_STRS, 0, 0, 64, NULL, false};

    if (v && !cfg_read_strs(r, &f, v, out))
        return false;
    for (size_t i = 0; i < out->n; i++) {
        out->v[i] = cfg_lower(r->a, out->v[i]);
        if (!cfg_check_set_header(r, what, out->v[i]))
            return false;
    }
    return true;
}

/* The members of "handle" as they are, before `kind` says what they mean. */
struct cfg_handle_raw {
    yyjson_val *kind, *hook, *upstream, *target;
    yyjson_val *set, *remove, *respond_set, *respond_remove;
};

static bool
cfg_read_proxy(struct cfg_read *r, const struct cfg_handle_raw *raw,
               struct cfg_route *t)
{
    struct cfg_handle *h = &t->handle;

    h->kind = CFG_HANDLE_PROXY;
    if (raw->hook)
        return cfg_fail(r, "handle: a proxy has no hook");
    if (!yyjson_is_uint(raw->upstream) ||
        yyjson_get_uint(raw->upstream) >= r->cfg->upstreams_n)
        return cfg_fail(r, "handle: there is no such upstream");
    h->upstream = (unsigned)yyjson_get_uint(raw->upstream);
    return cfg_read_target(r, t, raw->target, &h->target) &&
           cfg_read_sets(r, t, "set", raw->set, &h->set) &&
           cfg_read_sets(r, t, "respond_set", raw->respond_set,
                         &h->respond_set) &&
           cfg_read_removes(r, "remove", raw->remove, &h->remove) &&
           cfg_read_removes(r, "respond_remove", raw->respond_remove,
                            &h->respond_remove);
}

static bool
cfg_read_handle(struct cfg_read *r, yyjson_val *v, struct cfg_route *t)
{
#define RAW(name)                                                              \
    {                                                                          \
#name, CFG_VAL, CFG_AT(cfg_handle_raw, name), 0, 0, NULL, false        \
    }
    static const struct cfg_field table[] = {
        RAW(kind), RAW(hook),   RAW(upstream),    RAW(target),
        RAW(set),  RAW(remove), RAW(respond_set), RAW(respond_remove),
        {0},
    };
#undef RAW
    struct cfg_handle_raw raw = {0};

    if (!v)
        return cfg_fail(r, "handle is missing: say what answers the request");
    if (!cfg_read_object(r, v, table, &raw))
        return false;
    if (yyjson_equals_str(raw.kind, "proxy"))
        return cfg_read_proxy(r, &raw, t);
    if (!yyjson_equals_str(raw.kind, "lua"))
        return cfg_fail(r, "handle.kind must be lua or proxy");
    t->handle.kind = CFG_HANDLE_LUA;
    if (raw.upstream || raw.target || raw.set || raw.remove ||
        raw.respond_set || raw.respond_remove)
        return cfg_fail(r, "handle: only a proxy has upstream, target, set and "
                           "remove");
    return cfg_read_hook(r, raw.hook, "handle", &t->handle.hook);
}

static bool
cfg_read_route_limits(struct cfg_read *r, yyjson_val *v, void *object)
{
#define LIMIT(name)                                                            \
    {                                                                          \
#name, CFG_U32, CFG_AT(cfg_route_limits, name), 1, CFG_MS_MAX, NULL,   \
            false                                                              \
    }
    static const struct cfg_field table[] = {
        LIMIT(hook_cpu_ms),
        LIMIT(hook_time_ms),
        LIMIT(body_ms),
        LIMIT(write_ms),
        {0},
    };
#undef LIMIT

    return cfg_read_object(r, v, table, &((struct cfg_route *)object)->limits);
}

static bool
cfg_read_methods(struct cfg_read *r, struct cfg_route *t)
{
    unsigned one;

    if (!t->methods.n)
        return cfg_fail(r, "it has no method");
    for (size_t i = 0; i < t->methods.n; i++) {
        one = str_eq(t->methods.v[i], S("*")) ? ROUTE_ANY
                                              : route_method(t->methods.v[i]);
        if (!one)
            return cfg_fail(r,
                            "\"%.*s\" is not a method that can be routed: "
                            "write GET, POST, ... in capitals",
                            STR_FMT(t->methods.v[i]));
        t->method_mask |= one;
    }
    return true;
}

static bool
cfg_read_route_listener(struct cfg_read *r, yyjson_val *v, void *object)
{
    struct cfg_route *t = object;

    t->listener = UINT_MAX;
    if (!yyjson_is_str(v))
        return cfg_fail(r, "listener must be the name of a listener");
    if (yyjson_get_len(v) == 0)
        return true;
    for (unsigned i = 0; i < r->cfg->listeners_n; i++)
        if (str_eq(r->cfg->listeners[i].name, cfg_val_str(v))) {
            t->listener = i;
            return true;
        }
    return cfg_fail(r, "there is no listener \"%.60s\"", yyjson_get_str(v));
}

/* The captures, as the pattern names them, each with its schema. */
static bool
cfg_read_captures(struct cfg_read *r, struct cfg_route *t, unsigned id,
                  yyjson_val *schemas)
{
    const struct route_table *table = r->cfg->table;
    const char *name;

    while (route_capture_name(table, id, (unsigned)t->captures_n))
        t->captures_n++;
    t->captures = mem_alloc(r->a, t->captures_n * sizeof *t->captures);
    for (unsigned i = 0; i < t->captures_n; i++) {
        name = route_capture_name(table, id, i);
        t->captures[i].name = str_of(name);
        t->captures[i].tail =
            i + 1 == t->captures_n && str_ends(t->path, S("...}"));
        t->captures[i].schema = yyjson_obj_get(schemas, name);
        if (!cfg_is_schema(t->captures[i].schema))
            return cfg_fail(r,
                            "the capture {%s} has no schema: write validate "
                            "= { path = { %s = ... } }",
                            name, name);
    }
    if (yyjson_obj_size(schemas) != t->captures_n)
        return cfg_fail(r, "validate.path names a capture that the path does "
                           "not have");
    return true;
}

/* The parts that need others to be read first. */
static bool
cfg_finish_route(struct cfg_read *r, struct cfg_route *t, yyjson_val *v)
{
    unsigned id = (unsigned)(t - r->cfg->routes);

    if (!t->authorize_n)
        return cfg_fail(r, "authorize is missing: say who may call it "
                           "(id.anyone for every client with a certificate)");
    if (!cfg_read_methods(r, t))
        return false;
    if (!route_add(r->cfg->table, str_c(r->a, t->path), t->method_mask, t->host,
                   t->listener, id, r->e))
        return cfg_blame(r);
    return cfg_read_captures(r, t, id, yyjson_obj_get(v, "path_schemas")) &&
           cfg_read_handle(r, yyjson_obj_get(v, "handle"), t);
}

static bool
cfg_read_route(struct cfg_read *r, yyjson_val *v, void *item)
{
    static const struct cfg_field table[] = {
        {"methods", CFG_STRS, CFG_AT(cfg_route, methods), 0, 32, NULL, true},
        {"path", CFG_STR, CFG_AT(cfg_route, path), 1, CFG_PATH_MAX, NULL, true},
        {"host", CFG_STR, CFG_AT(cfg_route, host), 0, 255, NULL, false},
        {"listener", CFG_FN, 0, 0, 0, cfg_read_route_listener, false},
        {"authorize", CFG_FN, 0, 0, 0, cfg_read_authorize, true},
        {"path_schemas", CFG_LATER, 0, 0, 0, NULL, false},
        {"query", CFG_FN, 0, 0, 0, cfg_read_query, false},
        {"query_unchecked", CFG_BOOL, CFG_AT(cfg_route, query_unchecked), 0, 0,
         NULL, false},
        {"headers", CFG_FN, 0, 0, 0, cfg_read_headers, false},
        {"body", CFG_FN, 0, 0, 0, cfg_read_body, false},
        {"check", CFG_FN, 0, 0, 0, cfg_read_check, false},
        {"handle", CFG_LATER, 0, 0, 0, NULL, true},
        {"respond", CFG_FN, 0, 0, 0, cfg_read_respond, false},
        {"log", CFG_FN, 0, 0, 0, cfg_read_log, false},
        {"limits", CFG_FN, 0, 0, 0, cfg_read_route_limits, false},
        {"at", CFG_STR, CFG_AT(cfg_route, at), 0, CFG_PATH_MAX, NULL, false},
        {0},
    };
    struct cfg_route *t = item;

    t->listener = UINT_MAX;
    cfg_enter(r, v, "route", "path");
    return cfg_read_object(r, v, table, t) && cfg_finish_route(r, t, v);
}

static bool
cfg_read_warning(struct cfg_read *r, yyjson_val *v, void *item)
{
    static const struct cfg_field table[] = {
        {"at", CFG_STR, CFG_AT(cfg_warning, at), 0, CFG_PATH_MAX, NULL, false},
        {"text", CFG_TEXT, CFG_AT(cfg_warning, text), 0, 65536, NULL, true},
        {0},
    };

    return cfg_read_object(r, v, table, item);
}

/* ---- the whole ---- */

/* Blames declaration `at` for being called as another is already. */
static bool
cfg_twice(struct cfg_read *r, struct str at, const char *what, struct str name)
{
    cfg_leave(r);
    r->at = at;
    return cfg_fail(r, "%s \"%.*s\" is declared twice: give each its own", what,
                    STR_FMT(name));
}

static bool
cfg_same_addr(const struct cfg_addr *a, const struct cfg_addr *b)
{
    const struct sockaddr_in *four =
        (const struct sockaddr_in *)(const void *)&a->sa;
    const struct sockaddr_in6 *six =
        (const struct sockaddr_in6 *)(const void *)&a->sa;

    if ((four->sin_family == AF_INET && four->sin_port == 0) ||
        (four->sin_family == AF_INET6 && six->sin6_port == 0))
        return false;  // the kernel gives each another port
    return a->len == b->len && memcmp(&a->sa, &b->sa, a->len) == 0;
}

static bool
cfg_check_listeners(struct cfg_read *r, const struct cfg *c)
{
    for (size_t i = 0; i < c->listeners_n; i++)
        for (size_t j = 0; j < i; j++) {
            if (str_eq(c->listeners[i].name, c->listeners[j].name))
                return cfg_twice(r, c->listeners[i].at, "listener",
                                 c->listeners[i].name);
            if (cfg_same_addr(&c->listeners[i].address,
                              &c->listeners[j].address))
                return cfg_twice(r, c->listeners[i].at, "the address",
                                 c->listeners[i].address.text);
        }
    for (size_t i = 0; i < c->admin_n; i++) {
        const struct cfg_addr *a = &c->admin[i].address;

        for (size_t j = 0; j < c->listeners_n; j++)
            if (cfg_same_addr(a, &c->listeners[j].address))
                return cfg_twice(r, c->admin[i].at, "the address", a->text);
        for (size_t j = 0; j < i; j++)
            if (cfg_same_addr(a, &c->admin[j].address))
                return cfg_twice(r, c->admin[i].at, "the address", a->text);
    }
    return true;
}

static bool
cfg_check_names(struct cfg_read *r, const struct cfg *c)
{
    for (size_t i = 0; i < c->upstreams_n; i++)
        for (size_t j = 0; j < i; j++)
            if (str_eq(c->upstreams[i].name, c->upstreams[j].name))
                return cfg_twice(r, c->upstreams[i].at, "upstream",
                                 c->upstreams[i].name);
    for (size_t i = 0; i < c->commands_n; i++)
        for (size_t j = 0; j < i; j++)
            if (str_eq(c->commands[i].name, c->commands[j].name))
                return cfg_twice(r, c->commands[i].at, "command",
                                 c->commands[i].name);
    return cfg_check_listeners(r, c);
}

/* The lists, in the order in which they refer to each other. */
static bool
cfg_read_lists(struct cfg_read *r, yyjson_val *root, struct cfg *c)
{
    return cfg_read_list(r, yyjson_obj_get(root, "listeners"), "listeners", 64,
                         sizeof *c->listeners, cfg_read_listener, &c->listeners,
                         &c->listeners_n) &&
           cfg_read_list(r, yyjson_obj_get(root, "admin"), "admin", 16,
                         sizeof *c->admin, cfg_read_admin, &c->admin,
                         &c->admin_n) &&
           cfg_read_list(r, yyjson_obj_get(root, "upstreams"), "upstreams",
                         CFG_ITEMS_MAX, sizeof *c->upstreams, cfg_read_upstream,
                         &c->upstreams, &c->upstreams_n) &&
           cfg_read_list(r, yyjson_obj_get(root, "commands"), "commands",
                         CFG_ITEMS_MAX, sizeof *c->commands, cfg_read_command,
                         &c->commands, &c->commands_n) &&
           cfg_read_list(r, yyjson_obj_get(root, "routes"), "routes",
                         CFG_ROUTES_MAX, sizeof *c->routes, cfg_read_route,
                         &c->routes, &c->routes_n) &&
           cfg_read_list(r, yyjson_obj_get(root, "warnings"), "warnings",
                         CFG_ROUTES_MAX, sizeof *c->warnings, cfg_read_warning,
                         &c->warnings, &c->warnings_n);
}

/* Everything in `c` borrows from `boot`, where the JSON is kept too. */
static bool
cfg_load(struct mem_arena *boot, struct str json, struct cfg *c, struct err *e)
{
    static const struct cfg_field table[] = {
        {"process", CFG_FN, 0, 0, 0, cfg_read_process, false},
        {"env", CFG_FN, 0, 0, 0, cfg_read_env, false},
        {"cas", CFG_FN, 0, 0, 0, cfg_read_cas, false},
        {"listeners", CFG_LATER, 0, 0, 0, NULL, false},
        {"admin", CFG_LATER, 0, 0, 0, NULL, false},
        {"upstreams", CFG_LATER, 0, 0, 0, NULL, false},
        {"commands", CFG_LATER, 0, 0, 0, NULL, false},
        {"routes", CFG_LATER, 0, 0, 0, NULL, false},
        {"warnings", CFG_LATER, 0, 0, 0, NULL, false},
        {0},
    };
    struct cfg_read r = {.a = boot, .cfg = c, .e = e, .at = S("")};
    yyjson_val *root;
    bool ok;

    *c = (struct cfg){
        .text = str_dup(boot, json),
        .process = {.workers = 1,
                    .user = S("nobody"),
                    .group = S(""),
                    .access_log = true,
                    .log_level = LOG_INFO,
                    .lua_memory = 67108864,
                    .drain_ms = 30000},
        .table = route_new(boot),
    };
    if (!json_parse(boot, c->text, &root, e)) {
        e->kind = ERR_CONFIG;
        return err_prefix(e, "the plain configuration: ");
    }
    ok = cfg_read_object(&r, root, table, c) && cfg_read_lists(&r, root, c);
    return ok && cfg_check_names(&r, c);
}

/* ---- schemas ---- */

static bool
cfg_check_schema(struct cfg_read *r, const char *what, struct str name,
                 yyjson_val *schema)
{
    if (schema_compile(r->a, schema, false, r->e))
        return true;
    err_prefix(r->e, "%s %.*s: ", what, STR_FMT(name));
    return cfg_blame(r);
}

static bool
cfg_check_route_schemas(struct cfg_read *r, const struct cfg_route *t)
{
    for (size_t i = 0; i < t->captures_n; i++)
        if (!cfg_check_schema(r, "path parameter", t->captures[i].name,
                              t->captures[i].schema))
            return false;
    for (size_t i = 0; i < t->query_n; i++)
        if (!cfg_check_schema(r, "query parameter", t->query[i].name,
                              t->query[i].schema))
            return false;
    for (size_t i = 0; i < t->headers_n; i++)
        if (!cfg_check_schema(r, "header", t->headers[i].name,
                              t->headers[i].schema))
            return false;
    return !t->body.schema ||
           cfg_check_schema(r, "body", S("json"), t->body.schema);
}

/* Compiles every schema, only to see whether it can be. */
static bool
cfg_check_schemas(const struct cfg *c, struct err *e)
{
    struct cfg_read r = {.e = e, .at = S("")};
    bool ok = true;

    r.a = mem_arena_new((size_t)1 << 30);
    for (size_t i = 0; ok && i < c->routes_n; i++) {
        r.at = c->routes[i].at;
        ok = cfg_check_route_schemas(&r, &c->routes[i]);
    }
    for (size_t i = 0; ok && i < c->commands_n; i++) {
        r.at = c->commands[i].at;
        snprintf(r.what, sizeof r.what, "command %.64s", c->commands[i].name.p);
        for (size_t k = 0; ok && k < c->commands[i].slots_n; k++)
            ok = cfg_check_schema(&r, "slot", c->commands[i].slots[k].name,
                                  c->commands[i].slots[k].schema);
    }
    mem_arena_free(r.a);
    return ok;
}

/* ---- print ---- */

/* Control bytes never reach the terminal, whatever a policy holds. */
static void
cfg_print_str(FILE *f, struct str s)
{
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];

        if (c < 0x20 || c == 0x7f)
            fprintf(f, "\\x%02x", c);
        else
            fputc(c, f);
    }
}

static void
cfg_print_size(FILE *f, uint64_t n)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB"};
    unsigned u = 0;

    while (u < 3 && n >= 1024 && n % 1024 == 0)
        n /= 1024, u++;
    fprintf(f, "%" PRIu64 " %s", n, units[u]);
}

static void
cfg_print_inputs(FILE *f, const char *what, const struct cfg_input *in,
                 size_t n, bool unchecked)
{
    if (!n && !unchecked)
        return;
    fprintf(f, "      %-9s", what);
    for (size_t i = 0; i < n; i++) {
        fputc(' ', f);
        cfg_print_str(f, in[i].name);
        if (in[i].optional)
            fputc('?', f);
    }
    fprintf(f, "%s\n", unchecked ? " (not checked)" : "");
}

static void
cfg_print_body(FILE *f, const struct cfg_body *b)
{
    static const char *const kinds[] = {"none", "json", "bytes",
                                        "stream, not validated"};

    if (b->kind == CFG_BODY_NONE)
        return;
    fprintf(f, "      body      %s, at most ", kinds[b->kind]);
    cfg_print_size(f, b->max);
    for (size_t i = 0; i < b->types.n; i++) {
        fputs(i ? " " : ", ", f);
        cfg_print_str(f, b->types.v[i]);
    }
    fputc('\n', f);
}

static void
cfg_print_route(FILE *f, const struct cfg *c, const struct cfg_route *t)
{
    fputs("  ", f);
    for (size_t i = 0; i < t->methods.n; i++) {
        if (i)
            fputc(',', f);
        cfg_print_str(f, t->methods.v[i]);
    }
    fputc(' ', f);
    cfg_print_str(f, t->path);
    if (t->host.n)
        fprintf(f, "  host %.*s", STR_FMT(t->host));
    if (t->listener != UINT_MAX)
        fprintf(f, "  listener %.*s", STR_FMT(c->listeners[t->listener].name));
    fprintf(f, "    (%.*s)\n      who      ", STR_FMT(t->at));
    for (size_t i = 0; i < t->authorize_n; i++) {
        fputs(i ? " and " : " ", f);
        cfg_print_str(f, t->authorize[i].text.n ? t->authorize[i].text
                                                : S("a function"));
    }
    fputc('\n', f);
    cfg_print_inputs(f, "query", t->query, t->query_n, t->query_unchecked);
    cfg_print_inputs(f, "headers", t->headers, t->headers_n, false);
    cfg_print_body(f, &t->body);
    if (t->check.n)
        fprintf(f, "      check     %zu hook%s\n", t->check.n,
                t->check.n == 1 ? "" : "s");
    if (t->handle.kind == CFG_HANDLE_LUA) {
        fputs("      handle    Lua\n", f);
        return;
    }
    fprintf(f, "      handle    upstream %.*s ",
            STR_FMT(c->upstreams[t->handle.upstream].name));
    cfg_print_str(f, t->handle.target.n ? t->handle.target.text : S("as is"));
    fputc('\n', f);
}

static void
cfg_print_command(FILE *f, const struct cfg_command *c)
{
    fprintf(f, "  %-10.*s ", STR_FMT(c->name));
    cfg_print_str(f, c->program);
    for (size_t i = 0; i < c->args_n; i++) {
        fputc(' ', f);
        cfg_print_str(f, c->args[i].text);
        if (c->args[i].is_slot)
            fprintf(f, "{%.*s}", STR_FMT(c->slots[c->args[i].slot].name));
    }
    for (size_t i = 0; i < c->slots_n; i++)
        if (c->slots[i].on_stdin)
            fprintf(f, " < {%.*s}", STR_FMT(c->slots[i].name));
    fprintf(f, "    (%.*s)\n      at most   %g s, memory ", STR_FMT(c->at),
            c->timeout_ms / 1e3);
    cfg_print_size(f, c->memory);
    fputs(", stdout ", f);
    cfg_print_size(f, c->stdout_max);
    fprintf(f, ", %u at once, %u waiting\n", c->concurrency, c->queue);
}

static void
cfg_print_doors(const struct cfg *c, FILE *f)
{
    fputs("listeners\n", f);
    for (size_t i = 0; i < c->listeners_n; i++) {
        const struct cfg_listener *l = &c->listeners[i];

        fprintf(f, "  %.*s  certificate %.*s  client CA %.*s%s    (%.*s)\n",
                STR_FMT(l->address.text), STR_FMT(l->certificate),
                STR_FMT(l->client_ca), l->explain ? "  explain" : "",
                STR_FMT(l->at));
    }
    for (size_t i = 0; i < c->admin_n; i++)
        fprintf(f, "  %.*s  admin    (%.*s)\n",
                STR_FMT(c->admin[i].address.text), STR_FMT(c->admin[i].at));
    fputs(c->upstreams_n ? "upstreams\n" : "", f);
    for (size_t i = 0; i < c->upstreams_n; i++) {
        fprintf(f, "  %.*s ", STR_FMT(c->upstreams[i].name));
        for (size_t j = 0; j < c->upstreams[i].targets_n; j++)
            fprintf(f, " %.*s", STR_FMT(c->upstreams[i].targets[j].text));
        fprintf(f, "    (%.*s)\n", STR_FMT(c->upstreams[i].at));
    }
}

/* For people; `gateway check --json` is for machines. */
static void
cfg_print(const struct cfg *c, FILE *f)
{
    cfg_print_doors(c, f);
    fputs("routes\n", f);
    for (size_t i = 0; i < c->routes_n; i++)
        cfg_print_route(f, c, &c->routes[i]);
    fputs(c->commands_n ? "commands\n" : "", f);
    for (size_t i = 0; i < c->commands_n; i++)
        cfg_print_command(f, &c->commands[i]);
    fputs(c->warnings_n ? "warnings\n" : "", f);
    for (size_t i = 0; i < c->warnings_n; i++) {
        fprintf(f, "  %.*s: ", STR_FMT(c->warnings[i].at));
        cfg_print_str(f, c->warnings[i].text);
        fputc('\n', f);
    }
}

/* ==== 12 boot: what a child starts from ====================================
 *
 * The supervisor hands each child one sealed memory file: the scripts as they
 * were read once, the plain configuration, the certificates, the variables the
 * policy asked for. A child opens nothing by name. What a role does not need
 * is not in its bundle: the broker gets no key and no script.
 *
 * Numbers are u32 in native order (both ends are this binary), a string is its
 * length and its bytes, and the fields come in the order of boot_format().
 *
 * Entry   boot_write  boot_read  boot_forget_keys  boot_settle
 */
enum boot_role {
    BOOT_CHECK,  // evaluates the policy: scripts, nothing else
    BOOT_WORKER,
    BOOT_BROKER,  // commands
    BOOT_VERIFY,  // looks at certificates and programs
};

struct boot_file {
    struct str name, bytes;
};

struct boot_env {
    struct str name, value;
    bool set;
};

/* The bytes of one listener's files (PEM), and its listening socket. */
struct boot_listener {
    int fd;
    struct str certificate, key, client_ca;
};

struct boot {
    enum boot_role role;
    struct boot_file *scripts;
    size_t scripts_n;
    struct str policy;  // the name of the main script, one of `scripts`
    struct str cfg_json;
    struct boot_env *env;
    size_t env_n;
    struct boot_listener *listeners;
    size_t listeners_n;
    struct str *cas;  // PEM, in the order of cfg.cas
    size_t cas_n;
    int *admin_fds;
    size_t admin_n;
    unsigned index, workers;  // this worker, and how many there are
    unsigned generation;      // one more with every reload
    int broker_fd;            // a worker's end to the broker; -1: none
    int met_fd;               // the slab of struct met_row; -1: none
    unsigned met_slot, met_rows;
    int route_met_fd;  // met_rows × routes of struct met_route; -1: none
    uid_t uid;
    gid_t gid;
    bool drop;  // change to uid and gid
};

enum {
    BOOT_CHANNEL_FD = 3,  // to the supervisor
    BOOT_FD = 4,          // where a child finds its bundle
    BOOT_FIRST_FD = 5,    // then: listeners, admin, met, route_met, broker
    BOOT_SCRIPTS = 512,   // files
    BOOT_SCRIPT_BYTES = 8 << 20,  // of all scripts together
    BOOT_ENV = 1024,
    BOOT_LISTENERS = 64,
    BOOT_ADMINS = 16,
    BOOT_BYTES = 64 << 20,
    BOOT_SEALS = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE,
};

static const struct str boot_magic = {"GWBOOT1\n", 8};

static void
boot_put_u32(struct mem_buf *b, size_t n)
{
    uint32_t v = (uint32_t)n;

    must(n <= UINT32_MAX);
    mem_buf_add(b, &v, sizeof v);
}

static void
boot_put_str(struct mem_buf *b, struct str s)
{
    boot_put_u32(b, s.n);
    mem_buf_add(b, s.p, s.n);
}

/* `index`, `met_slot` and the descriptors are not in it: one bundle serves all
 * workers of a generation, and those differ or are known by their place. */
static void
boot_format(const struct boot *b, struct mem_buf *out)
{
    mem_buf_add(out, boot_magic.p, boot_magic.n);
    boot_put_u32(out, b->role);
    boot_put_u32(out, b->workers);
    boot_put_u32(out, b->generation);
    boot_put_u32(out, b->uid);
    boot_put_u32(out, b->gid);
    boot_put_u32(out, b->drop);
    boot_put_u32(out, b->admin_n);
    boot_put_u32(out, b->met_fd >= 0);
    boot_put_u32(out, b->met_rows);
    boot_put_u32(out, b->route_met_fd >= 0);
    boot_put_u32(out, b->broker_fd >= 0);
    boot_put_str(out, b->policy);
    boot_put_str(out, b->cfg_json);
    boot_put_u32(out, b->scripts_n);
    for (size_t i = 0; i < b->scripts_n; i++) {
        boot_put_str(out, b->scripts[i].name);
        boot_put_str(out, b->scripts[i].bytes);
    }
    boot_put_u32(out, b->env_n);
    for (size_t i = 0; i < b->env_n; i++) {
        boot_put_str(out, b->env[i].name);
        boot_put_u32(out, b->env[i].set);
        boot_put_str(out, b->env[i].value);
    }
    boot_put_u32(out, b->listeners_n);
    for (size_t i = 0; i < b->listeners_n; i++) {
        boot_put_str(out, b->listeners[i].certificate);
        boot_put_str(out, b->listeners[i].key);
        boot_put_str(out, b->listeners[i].client_ca);
    }
    boot_put_u32(out, b->cas_n);
    for (size_t i = 0; i < b->cas_n; i++)
        boot_put_str(out, b->cas[i]);
}

static bool
boot_write_all(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t w = write(fd, p, n);

        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return false;
        p += w;
        n -= (size_t)w;
    }
    return true;
}

/* A sealed memory file with the bundle: nobody can change it any more, whoever
 * inherits it. -1 on failure. */
static int
boot_write(const struct boot *b, struct err *e)
{
    struct mem_buf out = {0};
    int fd = memfd_create("gateway boot", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    bool ok;

    if (fd < 0) {
        err_set(e, ERR_CONFIG, "memory file: %s", strerror(errno));
        return -1;
    }
    boot_format(b, &out);
    ok = mem_buf_len(&out) <= BOOT_BYTES;
    if (!ok)
        err_set(e, ERR_CONFIG,
                "scripts, certificates and configuration are "
                "together larger than %d MiB",
                BOOT_BYTES >> 20);
    else if (!boot_write_all(fd, mem_buf_ptr(&out), mem_buf_len(&out)) ||
             fcntl(fd, F_ADD_SEALS, BOOT_SEALS) != 0)
        ok = err_set(e, ERR_CONFIG, "memory file: %s", strerror(errno));
    explicit_bzero(out.p, out.n);  // it held the keys
    mem_buf_free(&out);
    if (!ok)
        close(fd);
    return ok ? fd : -1;
}

/* What is left to read; `bad` once something did not fit. */
struct boot_in {
    struct str left;
    bool bad;
};

/* Numbers above `max` are bad. */
static uint32_t
boot_get_u32(struct boot_in *in, uint32_t max)
{
    uint32_t v = 0;

    if (in->left.n < sizeof v) {
        in->bad = true;
        return 0;
    }
    memcpy(&v, in->left.p, sizeof v);
    in->left = str_from(in->left, sizeof v);
    if (v > max) {
        in->bad = true;
        return 0;
    }
    return v;
}

static struct str
boot_get_str(struct boot_in *in)
{
    struct str s = {in->left.p, boot_get_u32(in, BOOT_BYTES)};

    s.p = in->left.p;
    if (s.n > in->left.n || in->bad) {
        in->bad = true;
        return S("");
    }
    in->left = str_from(in->left, s.n);
    return s;
}

static void
boot_get_scripts(struct boot_in *in, struct mem_arena *a, struct boot *b)
{
    b->scripts_n = boot_get_u32(in, BOOT_SCRIPTS);
    b->scripts = mem_alloc(a, b->scripts_n * sizeof *b->scripts);
    for (size_t i = 0; i < b->scripts_n; i++) {
        b->scripts[i].name = boot_get_str(in);
        b->scripts[i].bytes = boot_get_str(in);
    }
}

static void
boot_get_env(struct boot_in *in, struct mem_arena *a, struct boot *b)
{
    b->env_n = boot_get_u32(in, BOOT_ENV);
    b->env = mem_alloc(a, b->env_n * sizeof *b->env);
    for (size_t i = 0; i < b->env_n; i++) {
        b->env[i].name = boot_get_str(in);
        b->env[i].set = boot_get_u32(in, 1);
        b->env[i].value = boot_get_str(in);
    }
}

static void
boot_get_listeners(struct boot_in *in, struct mem_arena *a, struct boot *b)
{
    b->listeners_n = boot_get_u32(in, BOOT_LISTENERS);
    b->listeners = mem_alloc(a, b->listeners_n * sizeof *b->listeners);
    for (size_t i = 0; i < b->listeners_n; i++) {
        b->listeners[i].certificate = boot_get_str(in);
        b->listeners[i].key = boot_get_str(in);
        b->listeners[i].client_ca = boot_get_str(in);
    }
}

static void
boot_get_cas(struct boot_in *in, struct mem_arena *a, struct boot *b)
{
    b->cas_n = boot_get_u32(in, CFG_ITEMS_MAX);
    b->cas = mem_alloc(a, b->cas_n * sizeof *b->cas);
    for (size_t i = 0; i < b->cas_n; i++)
        b->cas[i] = boot_get_str(in);
}

/* Gives each descriptor its number, in the order of the contract: a role that
 * listens has the sockets, then the slabs, then its end to the broker. */
static void
boot_number_fds(struct mem_arena *a, struct boot *b, bool met, bool route_met,
                bool broker)
{
    int fd = BOOT_FIRST_FD;

    b->admin_fds = mem_alloc(a, b->admin_n * sizeof *b->admin_fds);
    for (size_t i = 0; i < b->listeners_n; i++)
        b->listeners[i].fd = b->role == BOOT_WORKER ? fd++ : -1;
    for (size_t i = 0; i < b->admin_n; i++)
        b->admin_fds[i] = b->role == BOOT_WORKER ? fd++ : -1;
    b->met_fd = met ? fd++ : -1;
    b->route_met_fd = route_met ? fd++ : -1;
    b->broker_fd = broker ? fd++ : -1;
}

/* Borrows from `text`. */
static bool
boot_parse(struct str text, struct mem_arena *a, struct boot *b, struct err *e)
{
    struct boot_in in = {text, false};
    bool met, route_met, broker;

    *b = (struct boot){0};
    if (!str_starts(text, boot_magic))
        return err_set(e, ERR_CONFIG, "not a boot bundle");
    in.left = str_from(text, boot_magic.n);
    b->role = (enum boot_role)boot_get_u32(&in, BOOT_VERIFY);
    b->workers = boot_get_u32(&in, CFG_WORKERS_MAX);
    b->generation = boot_get_u32(&in, UINT32_MAX);
    b->uid = boot_get_u32(&in, UINT32_MAX);
    b->gid = boot_get_u32(&in, UINT32_MAX);
    b->drop = boot_get_u32(&in, 1);
    b->admin_n = boot_get_u32(&in, BOOT_ADMINS);
    met = boot_get_u32(&in, 1);
    b->met_rows = boot_get_u32(&in, 1 << 16);
    route_met = boot_get_u32(&in, 1);
    broker = boot_get_u32(&in, 1);
    b->policy = boot_get_str(&in);
    b->cfg_json = boot_get_str(&in);
    boot_get_scripts(&in, a, b);
    boot_get_env(&in, a, b);
    boot_get_listeners(&in, a, b);
    boot_get_cas(&in, a, b);
    boot_number_fds(a, b, met, route_met, broker);
    if (in.bad || in.left.n)
        return err_set(e, ERR_CONFIG, "malformed boot bundle");
    return true;
}

/* The number of the first descriptor that is not in the contract. */
static unsigned
boot_fds_end(const struct boot *b)
{
    size_t n = BOOT_FIRST_FD;

    if (b->role == BOOT_WORKER)
        n += b->listeners_n + b->admin_n;
    n += b->met_fd >= 0 ? 1 : 0;
    n += b->route_met_fd >= 0 ? 1 : 0;
    n += b->broker_fd >= 0 ? 1 : 0;
    return (unsigned)n;
}

/* Reads and closes the bundle. Its descriptor is shared with all that inherit
 * it, so nothing may depend on the offset. */
static bool
boot_read(int fd, struct mem_arena *a, struct boot *b, struct err *e)
{
    int seals = fcntl(fd, F_GET_SEALS);
    struct stat st;
    char *text;
    size_t n, got = 0;

    if (seals < 0 || (seals & F_SEAL_WRITE) == 0 || fstat(fd, &st) != 0 ||
        st.st_size < 0 || st.st_size > BOOT_BYTES)
        return err_set(e, ERR_CONFIG,
                       "descriptor %d is no boot bundle: this "
                       "process is started by gateway run only",
                       fd);
    n = (size_t)st.st_size;
    text = mem_alloc_raw(a, n);
    while (got < n) {
        ssize_t r = pread(fd, text + got, n - got, (off_t)got);

        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return err_set(e, ERR_CONFIG, "boot bundle: read: %s",
                           r < 0 ? strerror(errno) : "end of file");
        got += (size_t)r;
    }
    close(fd);
    return boot_parse((struct str){text, n}, a, b, e);
}

/* Wipes the private keys, for a child that has handed them to TLS. */
static void
boot_forget_keys(struct boot *b)
{
    for (size_t i = 0; i < b->listeners_n; i++) {
        struct str *key = &b->listeners[i].key;

        if (key->n)
            explicit_bzero((void *)(uintptr_t)key->p, key->n);
        *key = S("");
    }
}

/* glibc keeps what is freed until it is told; others have no such call. */
__attribute__((weak)) extern int malloc_trim(size_t);
/* The start is over: gives back the memory that was freed. */
static void
boot_settle(void)
{
    if (malloc_trim)
        malloc_trim(0);
}

/* ==== 13 req: one exchange ==================================================
 *
 * A request and its answer, the same for every HTTP version. The codec that
 * made it (h1) fills the request half and owns the object; the room that
 * answers (serve) calls the req_ functions, which go down to the wire.
 *
 *   codec --on_head--> serve --req_read--> codec --on_body*, on_end--> serve
 *   serve --req_head, req_body*, req_end--> codec       either side: abort
 *
 * Owner   the codec: it frees the arena, and the req with it, some time after
 *         req_end() or req_reset(). After either of them, touch nothing.
 * Entry   req_new  req_head  req_body  req_end  req_reset  req_read
 */
struct req_wire;
struct pki_identity;

enum { REQ_MAGIC = 0x72657121, REQ_ARENA_MAX = 1 << 30, REQ_ID = 32 };

/* What the codec tells whoever answers. */
struct req_ops {
    void (*on_head)(struct req *);
    void (*on_bad)(struct req *, const struct err *);  // only to be refused
    void (*on_body)(struct req *, const char *, size_t);
    void (*on_end)(struct req *);    // the request is complete
    void (*on_drain)(struct req *);  // the client takes bytes again
    void (*on_abort)(struct req *, const struct err *);  // gone: do not answer
    void (*on_time)(struct req *);  // req_deadline() has passed
};

/* Who sends the requests of a connection; lives as long as that. */
struct req_from {
    struct pki_identity *identity;  // borrowed; NULL on the admin address
    const char *peer;               // borrowed: "192.0.2.1:50000"
    uint64_t conn;                  // the connection's number in the logs
    unsigned listener;
    struct str listener_name;
    bool explain;  // refusals may tell the client why
    bool over;     // its identity has too many connections: refuse
    const struct cfg_limits *limits;       // borrowed
    const char *tls_version, *tls_cipher;  // NULL: no TLS
    struct str sni;
    uint8_t *allowed;  // owned by the connection: one bit for each route that
                       //   authorize has allowed; NULL before the first
};

struct req {
    unsigned magic;
    struct mem_arena *arena;  // owned; this struct lives in it
    const struct req_wire *wire;
    void *codec;                // borrowed: what the wire functions work on
    const struct req_ops *ops;  // borrowed
    struct req_from *from;      // borrowed
    void *up;                   // lent to whoever answers
    char id[REQ_ID + 1];        // hexadecimal
    uint64_t started_us;        // uv_hrtime() / 1000 when its head was whole

    /* The request, complete when on_head() is called. */
    struct str method, target;
    struct hdr_list headers;
    struct str host;      // of the Host field, or of an absolute target
    int64_t length;       // Content-Length; -1: none
    bool chunked;         // the body is chunked
    bool http10;          // HTTP/1.0: no chunks, no 1xx
    bool expect;          // the client waits for 100 Continue
    bool complete;        // on_end() was or will be called without more input
    uint64_t body_bytes;  // received so far

    /* The answer. */
    int status;
    struct hdr_list out;  // lower-case names; framing fields are the wire's
    int64_t out_length;   // -1: not known before the end
    bool head_sent, ended;
    bool close;           // the connection ends after this answer
    uint64_t sent_bytes;  // of the body
};

/* What a codec does for its exchanges. */
struct req_wire {
    void (*head)(struct req *);
    void (*body)(struct req *, const char *, size_t);
    void (*end)(struct req *);
    void (*reset)(struct req *);
    void (*read)(struct req *, bool on);
    void (*go_on)(struct req *);  // 100 Continue
    void (*deadline)(struct req *, uint32_t ms);
    void (*limits)(struct req *, uint32_t body_ms, uint32_t write_ms);
    size_t (*queued)(struct req *);
};

static struct req *
req_new(const struct req_wire *wire, void *codec, const struct req_ops *ops,
        struct req_from *from)
{
    struct mem_arena *a = mem_arena_new(REQ_ARENA_MAX);
    struct req *r = mem_alloc(a, sizeof *r);

    r->magic = REQ_MAGIC;
    r->arena = a;
    r->wire = wire;
    r->codec = codec;
    r->ops = ops;
    r->from = from;
    r->length = r->out_length = -1;
    return r;
}

static bool
req_has_body(const struct req *r)
{
    return r->chunked || r->length > 0;
}

/* Sends status, `out` and framing; once. The body follows, or req_end(). */
static void
req_head(struct req *r)
{
    must(!r->head_sent && !r->ended && r->status >= 200);
    r->head_sent = true;
    r->wire->head(r);
}

static void
req_body(struct req *r, const char *p, size_t n)
{
    must(r->head_sent && !r->ended);
    r->sent_bytes += n;
    if (n)
        r->wire->body(r, p, n);
}

/* The answer is complete. The codec may free `r` from now on. */
static void
req_end(struct req *r)
{
    must(r->head_sent && !r->ended);
    r->ended = true;
    r->wire->end(r);
}

/* Cuts the answer so that the client sees it as broken, never as complete. */
static void
req_reset(struct req *r)
{
    if (r->ended)
        return;
    r->ended = true;
    r->wire->reset(r);
}

/* Lets the request's body flow, or holds it back. */
static void
req_read(struct req *r, bool on)
{
    if (on && r->expect && !r->head_sent) {
        r->expect = false;
        r->wire->go_on(r);
    }
    r->wire->read(r, on);
}

/* on_time() is called unless something else happens within `ms`; 0: never. */
static void
req_deadline(struct req *r, uint32_t ms)
{
    r->wire->deadline(r, ms);
}

/* The route's own limits for this exchange; 0: the listener's. */
static void
req_limits(struct req *r, uint32_t body_ms, uint32_t write_ms)
{
    r->wire->limits(r, body_ms, write_ms);
}

/* Bytes of the answer that the client has not taken yet. */
static size_t
req_queued(struct req *r)
{
    return r->wire->queued(r);
}

/* ==== 14 pki: certificates ==================================================
 *
 * DER in, identity out; and, for development and tests, certificates made.
 * The reader is our own and strict: one value has one encoding, so that what
 * we decide on is what the issuer signed. It copies nothing: a pki_cert is
 * slices of the DER it came from. An identity is a copy, made once for each
 * certificate and shared by its connections through the cache.
 *
 *   DER --> pki_cert (slices) --> pki_identity (text, reference-counted)
 *                                      ^-- pki_cache, by SHA-256
 *
 * Refused here is what is malformed, or what no text can say safely: control
 * bytes in names, two extensions of one kind, a SPIFFE ID that is none. What
 * is well-formed but not trusted is the business of whoever verifies.
 *
 * Entry   pki_cert_parse  pki_identity_parse  pki_identity_put  pki_verify
 *         pki_cache_verify  pki_describe  pki_pem_read  pki_command
 */
enum {
    PKI_CERT_MAX = 16384,  // bytes of one certificate
    PKI_CHAIN_MAX = 9,     // issuers above a leaf
    PKI_ITEMS_MAX = 64,    // extensions; names of one kind; parts of a subject
    PKI_PEM_MAX = 1024,    // blocks in one file
    PKI_PEM_BYTES = 4 << 20,  // and its size
    PKI_CACHE_MAX = 1024,  // identities, and the bytes they may hold together
    PKI_CACHE_BYTES = 16 << 20,
    PKI_CACHE_SLOTS = 2048,  // a power of two
    /* Leaf and chain are copied, the leaf once more as Base64; names grow at
     * most nine-fold (UTF-8 of BMP text, escaped, in two strings). */
    PKI_ARENA_MAX = 1 << 20,
    PKI_RSA_BITS_MAX = 4096,
    PKI_DIGEST_INFO_MAX = 19 + 64,  // DigestInfo of SHA-512
    PKI_SUBTREES_MAX = 256,         // name constraints of one certificate
    PKI_NAMES_MAX = 2 * PKI_ITEMS_MAX + 1,  // SANs, subject, parts of it
    PKI_WORK_MAX = 32,  // signatures checked for one verdict
    PKI_WHO_MAX = 64,   // bytes of a subject in a message
    PKI_ANCHORS_ARENA = 16 << 20,
    PKI_VERIFY_ARENA = 4 << 20,
};

/* Universal tags, and the context tags that a certificate uses. */
enum {
    PKI_BOOLEAN = 0x01,
    PKI_INTEGER = 0x02,
    PKI_BITS = 0x03,
    PKI_OCTETS = 0x04,
    PKI_OID = 0x06,
    PKI_UTF8 = 0x0c,
    PKI_NUMERIC = 0x12,
    PKI_PRINTABLE = 0x13,
    PKI_T61 = 0x14,
    PKI_IA5 = 0x16,
    PKI_UTC_TIME = 0x17,
    PKI_TIME = 0x18,
    PKI_VISIBLE = 0x1a,
    PKI_UNIVERSAL = 0x1c,
    PKI_BMP = 0x1e,
    PKI_SEQUENCE = 0x30,
    PKI_SET = 0x31,
    PKI_CONTEXT = 0x80,      // primitive [0]
    PKI_CONSTRUCTED = 0xa0,  // constructed [0]
};

/* GeneralName choices (RFC 5280 section 4.2.1.6), as their tags. */
enum {
    PKI_SAN_OTHER = 0xa0,
    PKI_SAN_EMAIL = 0x81,
    PKI_SAN_DNS = 0x82,
    PKI_SAN_X400 = 0xa3,
    PKI_SAN_DIRECTORY = 0xa4,
    PKI_SAN_EDI = 0xa5,
    PKI_SAN_URI = 0x86,
    PKI_SAN_IP = 0x87,
    PKI_SAN_RID = 0x88,
};

/* ---- the DER reader ---- */

struct pki_tlv {
    unsigned tag;
    struct str whole, body;  // with and without tag and length
};

/* "certificate: serial number: length is not minimal" */
static bool
pki_bad(struct err *e, const char *what, const char *why)
{
    return err_set(e, ERR_TLS, "certificate: %s: %s", what, why);
}

static unsigned
pki_byte(struct str s, size_t i)
{
    return (unsigned char)s.p[i];
}

/* Reads the length that starts at in[1]: NULL, or what is wrong with it.
 * `head` becomes the bytes of tag and length together. */
static const char *
pki_length(struct str in, size_t *head, size_t *len)
{
    unsigned first = pki_byte(in, 1), n = first & 0x7f;

    *head = 2;
    *len = first;
    if (first < 0x80)
        return NULL;
    if (n == 0)
        return "indefinite length, which DER does not have";
    if (n > 4)
        return "length of more than four bytes";
    if (in.n < 2 + n)
        return "ends early";
    *head = 2 + n;
    *len = 0;
    for (size_t i = 2; i < *head; i++)
        *len = *len << 8 | pki_byte(in, i);
    if (pki_byte(in, 2) == 0 || *len < 0x80)
        return "length is not minimal";
    return NULL;
}

/* Takes the next value from the front of `in`. */
static bool
pki_next(struct str *in, const char *what, struct pki_tlv *t, struct err *e)
{
    const char *why;
    size_t head, len;

    if (in->n < 2)
        return pki_bad(e, what, in->n ? "ends early" : "is missing");
    if ((pki_byte(*in, 0) & 0x1f) == 0x1f)
        return pki_bad(e, what, "tag number above 30");
    why = pki_length(*in, &head, &len);
    if (why)
        return pki_bad(e, what, why);
    if (len > in->n - head)
        return pki_bad(e, what, "ends early");
    t->tag = pki_byte(*in, 0);
    t->whole = (struct str){in->p, head + len};
    t->body = (struct str){in->p + head, len};
    *in = str_from(*in, head + len);
    return true;
}

/* The same, where only one tag will do. */
static bool
pki_take(struct str *in, const char *what, unsigned tag, struct pki_tlv *t,
         struct err *e)
{
    if (!pki_next(in, what, t, e))
        return false;
    if (t->tag != tag)
        return err_set(e, ERR_TLS,
                       "certificate: %s: found tag %02x, expected %02x", what,
                       t->tag, tag);
    return true;
}

static bool
pki_at(struct str in, unsigned tag)
{
    return in.n && pki_byte(in, 0) == tag;
}

static bool
pki_end(struct str in, const char *what, struct err *e)
{
    return in.n == 0 || pki_bad(e, what, "bytes after the end");
}

/* An INTEGER in its one shortest form; `v` keeps the sign byte. */
static bool
pki_take_int(struct str *in, const char *what, struct str *v, struct err *e)
{
    struct pki_tlv t;

    if (!pki_take(in, what, PKI_INTEGER, &t, e))
        return false;
    *v = t.body;
    if (v->n == 0)
        return pki_bad(e, what, "integer without a byte");
    if (v->n > 1 && (pki_byte(*v, 0) == 0 || pki_byte(*v, 0) == 0xff) &&
        (pki_byte(*v, 0) >> 7) == (pki_byte(*v, 1) >> 7))
        return pki_bad(e, what, "integer is not minimal");
    return true;
}

/* A small non-negative INTEGER, such as a version or a path length. */
static bool
pki_take_small(struct str *in, const char *what, int *out, struct err *e)
{
    struct str v;

    if (!pki_take_int(in, what, &v, e))
        return false;
    if (v.n > 1 || pki_byte(v, 0) > 0x7f)
        return pki_bad(e, what, "integer is not between 0 and 127");
    *out = (int)pki_byte(v, 0);
    return true;
}

/* DER leaves a default FALSE out; certificates in use write it all the same,
 * and it can mean only one thing, so both are read. */
static bool
pki_take_bool(struct str *in, const char *what, bool *out, struct err *e)
{
    struct pki_tlv t;

    *out = false;
    if (!pki_at(*in, PKI_BOOLEAN))
        return true;
    if (!pki_take(in, what, PKI_BOOLEAN, &t, e))
        return false;
    if (t.body.n != 1 ||
        (pki_byte(t.body, 0) != 0 && pki_byte(t.body, 0) != 0xff))
        return pki_bad(e, what, "boolean is neither 00 nor ff");
    *out = pki_byte(t.body, 0) != 0;
    return true;
}

/* A BIT STRING; `unused` counts the padding bits, which must be zero. */
static bool
pki_take_bits(struct str *in, const char *what, struct str *bits,
              unsigned *unused, struct err *e)
{
    struct pki_tlv t;

    if (!pki_take(in, what, PKI_BITS, &t, e))
        return false;
    if (t.body.n == 0)
        return pki_bad(e, what, "bit string without a byte");
    *unused = pki_byte(t.body, 0);
    *bits = str_from(t.body, 1);
    if (*unused > 7 || (*unused && !bits->n))
        return pki_bad(e, what, "bit string with wrong padding");
    if (*unused && (pki_byte(*bits, bits->n - 1) & ((1u << *unused) - 1)) != 0)
        return pki_bad(e, what, "bit string with padding that is not zero");
    return true;
}

/* A BIT STRING that holds bytes: a key, a signature. */
static bool
pki_take_bytes(struct str *in, const char *what, struct str *bytes,
               struct err *e)
{
    unsigned unused;

    if (!pki_take_bits(in, what, bytes, &unused, e))
        return false;
    return unused == 0 || pki_bad(e, what, "is not whole bytes");
}

/* An OBJECT IDENTIFIER whose every arc is minimal and below 2^63. */
static bool
pki_oid_check(struct str oid, const char *what, struct err *e)
{
    size_t arc = 0;

    for (size_t i = 0; i < oid.n; i++) {
        if (arc == 0 && pki_byte(oid, i) == 0x80)
            return pki_bad(e, what, "object identifier is not minimal");
        if (++arc > 9)
            return pki_bad(e, what, "object identifier with an arc too large");
        if (pki_byte(oid, i) < 0x80)
            arc = 0;
    }
    if (oid.n == 0 || arc != 0)
        return pki_bad(e, what, "object identifier ends early");
    return true;
}

static bool
pki_take_oid(struct str *in, const char *what, struct str *oid, struct err *e)
{
    struct pki_tlv t;

    if (!pki_take(in, what, PKI_OID, &t, e))
        return false;
    *oid = t.body;
    return pki_oid_check(t.body, what, e);
}

/* "1.2.840.113549": only for an identifier that pki_oid_check() passed. */
static struct str
pki_oid_text(struct mem_arena *a, struct str oid)
{
    struct mem_buf b = {0};
    uint64_t arc = 0;
    bool first = true;
    struct str s;

    for (size_t i = 0; i < oid.n; i++) {
        arc = arc << 7 | (pki_byte(oid, i) & 0x7f);
        if (pki_byte(oid, i) >= 0x80)
            continue;
        if (first) {  // two arcs in one: 40 * x + y, where x is at most 2
            uint64_t x = arc < 80 ? arc / 40 : 2;

            mem_buf_printf(&b, "%" PRIu64 ".%" PRIu64, x, arc - 40 * x);
        } else {
            mem_buf_printf(&b, ".%" PRIu64, arc);
        }
        first = false;
        arc = 0;
    }
    s = str_dup(a, (struct str){mem_buf_ptr(&b), mem_buf_len(&b)});
    mem_buf_free(&b);
    return s;
}

/* ---- time ---- */

/* Days from 1970-01-01 in the Gregorian calendar; years 1 to 9999. */
static int64_t
pki_days(int year, int month, int day)
{
    int y = month <= 2 ? year - 1 : year;
    int m = month <= 2 ? month + 9 : month - 3;  // March is month 0

    return 365 * (int64_t)y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 +
           day - 719469;
}

static int
pki_month_days(int year, int month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;

    return days[month - 1] + (month == 2 && leap);
}

/* Calendar fields to Unix seconds; false where there is no such moment. */
static bool
pki_seconds(const int f[6], int64_t *out)
{
    if (f[0] < 1 || f[1] < 1 || f[1] > 12 || f[2] < 1 ||
        f[2] > pki_month_days(f[0], f[1]) || f[3] > 23 || f[4] > 59 ||
        f[5] > 59)
        return false;
    *out = pki_days(f[0], f[1], f[2]) * 86400 + f[3] * 3600 + f[4] * 60 + f[5];
    return true;
}

/* UTCTime YYMMDDHHMMSSZ or GeneralizedTime YYYYMMDDHHMMSSZ, nothing else. */
static bool
pki_take_time(struct str *in, const char *what, int64_t *out, struct err *e)
{
    struct pki_tlv t;
    size_t year, at = 0;
    int f[6];

    if (!pki_next(in, what, &t, e))
        return false;
    if (t.tag != PKI_UTC_TIME && t.tag != PKI_TIME)
        return pki_bad(e, what, "is not a time");
    year = t.tag == PKI_TIME ? 4 : 2;
    if (t.body.n != year + 11 || t.body.p[year + 10] != 'Z')
        return pki_bad(e, what, "time is not in the form YYMMDDHHMMSSZ");
    for (size_t i = 0; i < 6; i++) {
        f[i] = 0;
        for (size_t k = i == 0 ? year : 2; k > 0; k--, at++) {
            if (t.body.p[at] < '0' || t.body.p[at] > '9')
                return pki_bad(e, what, "time holds more than digits");
            f[i] = f[i] * 10 + (t.body.p[at] - '0');
        }
    }
    if (year == 2)
        f[0] += f[0] < 50 ? 2000 : 1900;
    return pki_seconds(f, out) || pki_bad(e, what, "no such time");
}

/* A time before this program was made is no time: a device without a battery
 * for its clock starts in 1970, where everything is valid that once was. */
static bool pki_clock_floor;  // set at start: such a time reads as that day

/* Unix seconds; -1: nobody knows. */
static int64_t
pki_now(int64_t clock)
{
    return clock >= GATEWAY_EPOCH ? clock
           : pki_clock_floor      ? GATEWAY_EPOCH
                                  : -1;
}

/* ---- text ---- */

static void
pki_add_utf8(struct mem_buf *b, uint32_t c)
{
    char *p = mem_buf_room(b, 4);
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;

    for (size_t i = n; i-- > 1; c >>= 6)
        p[i] = (char)(0x80 | (c & 0x3f));
    p[0] = (char)(n == 1 ? c : (0xf00u >> n & 0xf0u) | c);
    b->n += n;
}

/* BMPString and UniversalString: 2 or 4 bytes a character, big-endian. */
static const char *
pki_wide_text(struct mem_arena *a, struct str body, size_t width,
              struct str *out)
{
    struct mem_buf b = {0};

    if (body.n % width)
        return "text of half a character";
    for (size_t i = 0; i < body.n; i += width) {
        uint32_t c = 0;

        for (size_t k = 0; k < width; k++)
            c = c << 8 | pki_byte(body, i + k);
        if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) {
            mem_buf_free(&b);
            return "text with a code point that is none";
        }
        pki_add_utf8(&b, c);
    }
    *out = str_dup(a, (struct str){mem_buf_ptr(&b), mem_buf_len(&b)});
    mem_buf_free(&b);
    return NULL;
}

static bool
pki_ascii(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if (pki_byte(s, i) >= 0x80)
            return false;
    return true;
}

/* Control characters, C1 (U+0080 to U+009F) included: they end or forge lines
 * in logs and headers, and a NUL ends a name for whoever reads it in C. */
static bool
pki_has_control(struct str s)
{
    if (!str_no_control(s))
        return true;
    for (size_t i = 0; i + 1 < s.n; i++)
        if (pki_byte(s, i) == 0xc2 && pki_byte(s, i + 1) < 0xa0)
            return true;
    return false;
}

static bool
pki_is_text(unsigned tag)
{
    return tag == PKI_UTF8 || tag == PKI_NUMERIC || tag == PKI_PRINTABLE ||
           tag == PKI_T61 || tag == PKI_IA5 || tag == PKI_VISIBLE ||
           tag == PKI_UNIVERSAL || tag == PKI_BMP;
}

/* A name's string as UTF-8. The one-byte types must be ASCII: beyond it they
 * mean what each reader likes (T61String: Latin-1 or T.61). Within it, '@' or
 * '*' in a PrintableString is wrong but common, and means what it says. */
static bool
pki_text(struct mem_arena *a, const struct pki_tlv *t, const char *what,
         struct str *out, struct err *e)
{
    const char *why = NULL;

    *out = t->body;
    if (t->tag == PKI_BMP)
        why = pki_wide_text(a, t->body, 2, out);
    else if (t->tag == PKI_UNIVERSAL)
        why = pki_wide_text(a, t->body, 4, out);
    else if (t->tag == PKI_UTF8)
        why = str_utf8(*out) ? NULL : "text is not UTF-8";
    else if (!pki_ascii(*out))
        why = "text of a one-byte type is not ASCII";
    if (!why && out->n == 0)
        why = "empty text";
    if (!why && pki_has_control(*out))
        why = "text with a control character";
    return !why || pki_bad(e, what, why);
}

/* ---- distinguished names ---- */

/* What an attribute is called: `key` in policies, `name` in RFC 4514 text. */
struct pki_type {
    struct str oid;
    const char *key, *name;
};

#define PKI_AT(x) S("\x55\x04" x)  // 2.5.4.x
static const struct pki_type pki_types[] = {
    {PKI_AT("\x03"), "cn", "CN"},
    {PKI_AT("\x0b"), "ou", "OU"},
    {PKI_AT("\x0a"), "o", "O"},
    {PKI_AT("\x06"), "c", "C"},
    {PKI_AT("\x07"), "l", "L"},
    {PKI_AT("\x08"), "st", "ST"},
    {PKI_AT("\x09"), "street", "STREET"},
    {S("\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x19"), "dc", "DC"},
    {S("\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x01"), "uid", "UID"},
    {S("\x2a\x86\x48\x86\xf7\x0d\x01\x09\x01"), "emailAddress", "emailAddress"},
    {PKI_AT("\x04"), "sn", "sn"},
    {PKI_AT("\x05"), "serialNumber", "serialNumber"},
    {PKI_AT("\x0c"), "title", "title"},
    {PKI_AT("\x0d"), "description", "description"},
    {PKI_AT("\x0f"), "businessCategory", "businessCategory"},
    {PKI_AT("\x11"), "postalCode", "postalCode"},
    {PKI_AT("\x29"), "name", "name"},
    {PKI_AT("\x2a"), "givenName", "givenName"},
    {PKI_AT("\x2b"), "initials", "initials"},
    {PKI_AT("\x2c"), "generationQualifier", "generationQualifier"},
    {PKI_AT("\x2e"), "dnQualifier", "dnQualifier"},
    {PKI_AT("\x41"), "pseudonym", "pseudonym"},
    {PKI_AT("\x61"), "organizationIdentifier", "organizationIdentifier"},
};

static const struct pki_type *
pki_type_find(struct str oid)
{
    for (size_t i = 0; i < sizeof pki_types / sizeof *pki_types; i++)
        if (str_eq(pki_types[i].oid, oid))
            return &pki_types[i];
    return NULL;
}

struct pki_name {
    size_t n;
    struct pki_name_part {
        const struct pki_type *known;  // NULL: only its number is known
        struct str oid;
        struct pki_tlv value;
        struct str text;  // UTF-8; empty where the value is no string
        unsigned rdn;     // parts with one number stand together: "A=x+B=y"
    } part[PKI_ITEMS_MAX];
};

/* One AttributeTypeAndValue. */
static bool
pki_name_part(struct mem_arena *a, struct str *in, const char *what,
              struct pki_name_part *p, struct err *e)
{
    struct pki_tlv pair;

    if (!pki_take(in, what, PKI_SEQUENCE, &pair, e) ||
        !pki_take_oid(&pair.body, what, &p->oid, e) ||
        !pki_next(&pair.body, what, &p->value, e) ||
        !pki_end(pair.body, what, e))
        return false;
    p->known = pki_type_find(p->oid);
    if (pki_is_text(p->value.tag))
        return pki_text(a, &p->value, what, &p->text, e);
    p->text = (struct str){"", 0};
    return !p->known || pki_bad(e, what, "value is not a string");
}

/* The members of a SET OF stand in ascending order of their bytes; a shorter
 * one comes before those that it begins. */
static bool
pki_set_order(struct str before, struct str after)
{
    size_t n = before.n < after.n ? before.n : after.n;
    int d = memcmp(before.p, after.p, n);

    return d < 0 || (d == 0 && before.n < after.n);
}

/* One RelativeDistinguishedName: a set of one or more attributes. */
static bool
pki_name_rdn(struct mem_arena *a, struct str *in, const char *what,
             unsigned rdn, struct pki_name *name, struct err *e)
{
    struct pki_tlv set;
    struct str last = {0};

    if (!pki_take(in, what, PKI_SET, &set, e))
        return false;
    if (set.body.n == 0)
        return pki_bad(e, what, "empty part");
    while (set.body.n) {
        struct pki_name_part *p = &name->part[name->n];
        const char *start = set.body.p;
        struct str now;

        if (name->n == PKI_ITEMS_MAX)
            return pki_bad(e, what, "more than 64 parts");
        if (!pki_name_part(a, &set.body, what, p, e))
            return false;
        p->rdn = rdn;
        name->n++;
        now = (struct str){start, (size_t)(set.body.p - start)};
        if (last.n && !pki_set_order(last, now))
            return pki_bad(e, what, "set is not in order");
        last = now;
    }
    return true;
}

/* `whole` is the Name with tag and length. Text that had to be converted
 * lies in the arena, the rest in `whole`. */
static bool
pki_name_parse(struct mem_arena *a, struct str whole, const char *what,
               struct pki_name *name, struct err *e)
{
    struct pki_tlv seq;

    name->n = 0;
    if (!pki_take(&whole, what, PKI_SEQUENCE, &seq, e) ||
        !pki_end(whole, what, e))
        return false;
    for (unsigned rdn = 0; seq.body.n; rdn++)
        if (!pki_name_rdn(a, &seq.body, what, rdn, name, e))
            return false;
    return true;
}

/* RFC 4514 section 2.4, with the pair of hex digits where it leaves a choice:
 * then no quote and no doubled backslash is ever in the text, and whatever
 * puts it between quotes (XFCC) cannot be talked out of them. `ascii` writes
 * the bytes of other characters so too, for use in a header. */
static void
pki_dn_value(struct mem_buf *b, struct str v, bool ascii)
{
    for (size_t i = 0; i < v.n; i++) {
        unsigned char c = (unsigned char)v.p[i];

        if (c == '"' || c == '\\' || (ascii && c >= 0x80))
            mem_buf_printf(b, "\\%02X", c);
        else if (strchr("+,;<>", c) || (c == '#' && i == 0) ||
                 (c == ' ' && (i == 0 || i + 1 == v.n)))
            mem_buf_add(b, (char[]){'\\', (char)c}, 2);
        else
            mem_buf_add(b, &v.p[i], 1);
    }
}

static void
pki_dn_part(struct mem_arena *a, struct mem_buf *b,
            const struct pki_name_part *p, bool ascii)
{
    struct str hex;

    if (p->known) {
        mem_buf_printf(b, "%s=", p->known->name);
        pki_dn_value(b, p->text, ascii);
        return;
    }
    hex = pki_oid_text(a, p->oid);
    mem_buf_printf(b, "%.*s=#", STR_FMT(hex));
    hex = str_hex(a, p->value.whole.p, p->value.whole.n);
    mem_buf_add(b, hex.p, hex.n);
}

/* The name as RFC 4514 writes it: the last part first. */
static struct str
pki_dn(struct mem_arena *a, const struct pki_name *name, bool ascii)
{
    struct mem_buf b = {0};
    size_t from, to;
    struct str s;

    for (to = name->n; to > 0; to = from) {
        for (from = to - 1;
             from > 0 && name->part[from - 1].rdn == name->part[from].rdn;)
            from--;
        if (to != name->n)
            mem_buf_add(&b, ",", 1);
        for (size_t i = from; i < to; i++) {
            if (i != from)
                mem_buf_add(&b, "+", 1);
            pki_dn_part(a, &b, &name->part[i], ascii);
        }
    }
    s = str_dup(a, (struct str){mem_buf_ptr(&b), mem_buf_len(&b)});
    mem_buf_free(&b);
    return s;
}

/* ---- names, compared ---- */

static void
pki_canon_size(struct mem_buf *b, size_t n)
{
    must(n <= UINT16_MAX);
    mem_buf_add(b, (char[]){(char)(n >> 8), (char)n}, 2);
}

/* Lower case; blanks at the ends go, and one stands for several. */
static struct str
pki_canon_text(struct mem_arena *a, struct str s)
{
    char *out = mem_alloc(a, s.n + 1);
    size_t n = 0;

    for (size_t i = 0; i < s.n; i++)
        if (s.p[i] != ' ')
            out[n++] = (char)str_lower_byte((unsigned char)s.p[i]);
        else if (n && out[n - 1] != ' ')
            out[n++] = ' ';
    if (n && out[n - 1] == ' ')
        n--;
    return (struct str){out, n};
}

static struct str
pki_canon_attr(struct mem_arena *a, const struct pki_name_part *p)
{
    bool text = p->text.n != 0;
    struct str v = text ? pki_canon_text(a, p->text) : p->value.whole, s;
    struct mem_buf b = {0};

    pki_canon_size(&b, p->oid.n);
    mem_buf_add(&b, p->oid.p, p->oid.n);
    mem_buf_add(&b, text ? "t" : "d", 1);
    pki_canon_size(&b, v.n);
    mem_buf_add(&b, v.p, v.n);
    s = str_dup(a, (struct str){mem_buf_ptr(&b), mem_buf_len(&b)});
    mem_buf_free(&b);
    return s;
}

static int
pki_canon_order(const void *a, const void *b)
{
    const struct str *x = a, *y = b;
    int d = memcmp(x->p, y->p, x->n < y->n ? x->n : y->n);

    return d ? d : (x->n > y->n) - (x->n < y->n);
}

/* What two names must share to be one name (RFC 5280 section 7.1): types of
 * string, case of ASCII letters and runs of blanks do not count, nor does the
 * order within one part. Each part begins with its length, so that the text of
 * a name that begins another is a prefix of the other's.
 * `whole` is a Name; the result lies in the arena. */
static bool
pki_name_canon(struct mem_arena *a, struct str whole, const char *what,
               struct str *out, struct err *e)
{
    struct str attr[PKI_ITEMS_MAX];
    struct mem_buf all = {0};
    struct pki_name name;

    if (!pki_name_parse(a, whole, what, &name, e))
        return false;
    for (size_t i = 0, n; i < name.n; i += n) {
        size_t bytes = 0;

        for (n = 0; i + n < name.n && name.part[i + n].rdn == name.part[i].rdn;
             n++) {
            attr[n] = pki_canon_attr(a, &name.part[i + n]);
            bytes += attr[n].n;
        }
        qsort(attr, n, sizeof *attr, pki_canon_order);
        pki_canon_size(&all, bytes);
        for (size_t k = 0; k < n; k++)
            mem_buf_add(&all, attr[k].p, attr[k].n);
    }
    *out = str_dup(a, (struct str){mem_buf_ptr(&all), mem_buf_len(&all)});
    mem_buf_free(&all);
    return true;
}

/* Whole Names, both; what cannot be parsed equals nothing but itself. */
static bool
pki_name_equal(struct str a, struct str b)
{
    struct mem_arena *arena;
    struct str x, y;
    struct err e;
    bool same;

    if (str_eq(a, b))
        return true;
    arena = mem_arena_new(PKI_ARENA_MAX);
    same = pki_name_canon(arena, a, "name", &x, &e) &&
           pki_name_canon(arena, b, "name", &y, &e) && str_eq(x, y);
    mem_arena_free(arena);
    return same;
}

/* ---- the certificate ---- */

/* The extensions whose bytes a pki_cert keeps apart. */
enum pki_ext {
    PKI_EXT_SKID,
    PKI_EXT_KEY_USAGE,
    PKI_EXT_SAN,
    PKI_EXT_BASIC,
    PKI_EXT_CONSTRAINTS,
    PKI_EXT_AKID,
    PKI_EXT_EKU,
    PKI_EXTS
};

static const struct str pki_ext_oids[PKI_EXTS] = {
    [PKI_EXT_SKID] = {"\x55\x1d\x0e", 3},
    [PKI_EXT_KEY_USAGE] = {"\x55\x1d\x0f", 3},
    [PKI_EXT_SAN] = {"\x55\x1d\x11", 3},
    [PKI_EXT_BASIC] = {"\x55\x1d\x13", 3},
    [PKI_EXT_CONSTRAINTS] = {"\x55\x1d\x1e", 3},
    [PKI_EXT_AKID] = {"\x55\x1d\x23", 3},
    [PKI_EXT_EKU] = {"\x55\x1d\x25", 3},
};

/* Critical ones that ask nothing of who names no policy: certificatePolicies and
 * inhibitAnyPolicy. policyConstraints does (it may demand one), so we refuse. */
static const struct str pki_ext_passive[] = {S("\x55\x1d\x20"),
                                             S("\x55\x1d\x36")};

/* keyUsage, bit n of RFC 5280 as bit n here. */
enum {
    PKI_USE_SIGN = 1 << 0,
    PKI_USE_CERT_SIGN = 1 << 5,
    PKI_USE_CRL_SIGN = 1 << 6,
};

/* One certificate as slices of its DER: borrowed, nothing to free. */
struct pki_cert {
    struct str der, tbs, algorithm, signature;  // tbs and algorithm are whole
    int version;                                // 1 to 3
    struct str serial;                          // without a leading 00
    struct str issuer, subject, spki;           // whole
    struct str key_algorithm, key;              // inside spki; the first whole
    int64_t not_before, not_after;              // Unix seconds
    struct str ext[PKI_EXTS];  // what is in the octets; p == NULL: not there
    unsigned critical;         // 1 << enum pki_ext
    struct str unknown;        // the first critical OID not in pki_ext_oids
    bool ca;
    int path_len;   // -1: none
    unsigned uses;  // PKI_USE_…; 0 where the extension is not there
};

static bool
pki_cert_version(struct str *tbs, struct pki_cert *c, struct err *e)
{
    struct pki_tlv t;
    int v;

    c->version = 1;
    if (!pki_at(*tbs, PKI_CONSTRUCTED))
        return true;
    if (!pki_take(tbs, "version", PKI_CONSTRUCTED, &t, e) ||
        !pki_take_small(&t.body, "version", &v, e) ||
        !pki_end(t.body, "version", e))
        return false;
    c->version = v + 1;
    return (v == 1 || v == 2) || pki_bad(e, "version", "is not 2 or 3");
}

/* Zero is no serial number to RFC 5280, but it names a certificate as well
 * as another; a negative one has no agreed text. */
static bool
pki_cert_serial(struct str *tbs, struct pki_cert *c, struct err *e)
{
    const char *what = "serial number";

    if (!pki_take_int(tbs, what, &c->serial, e))
        return false;
    if (pki_byte(c->serial, 0) & 0x80)
        return pki_bad(e, what, "is negative");
    if (c->serial.n > 20)
        return pki_bad(e, what, "is longer than 20 bytes");
    if (c->serial.n > 1 && pki_byte(c->serial, 0) == 0)
        c->serial = str_from(c->serial, 1);
    return true;
}

static bool
pki_cert_validity(struct str *tbs, struct pki_cert *c, struct err *e)
{
    struct pki_tlv t;

    if (!pki_take(tbs, "validity", PKI_SEQUENCE, &t, e) ||
        !pki_take_time(&t.body, "not before", &c->not_before, e) ||
        !pki_take_time(&t.body, "not after", &c->not_after, e) ||
        !pki_end(t.body, "validity", e))
        return false;
    return c->not_before <= c->not_after ||
           pki_bad(e, "validity", "ends before it begins");
}

/* AlgorithmIdentifier: an OID, and parameters that we keep as they are. */
static bool
pki_algorithm_check(struct str seq, const char *what, struct err *e)
{
    struct pki_tlv t;
    struct str oid;

    if (!pki_take_oid(&seq, what, &oid, e))
        return false;
    return seq.n == 0 || (pki_next(&seq, what, &t, e) && pki_end(seq, what, e));
}

static bool
pki_cert_key(struct str *tbs, struct pki_cert *c, struct err *e)
{
    const char *what = "public key";
    struct pki_tlv t, alg;

    if (!pki_take(tbs, what, PKI_SEQUENCE, &t, e) ||
        !pki_take(&t.body, what, PKI_SEQUENCE, &alg, e) ||
        !pki_algorithm_check(alg.body, what, e) ||
        !pki_take_bytes(&t.body, what, &c->key, e) || !pki_end(t.body, what, e))
        return false;
    c->spki = t.whole;
    c->key_algorithm = alg.whole;
    return true;
}

/* issuerUniqueID [1] and subjectUniqueID [2]: passed over where they may be. */
static bool
pki_cert_unique_ids(struct str *tbs, struct pki_cert *c, struct err *e)
{
    struct pki_tlv t;

    for (unsigned tag = PKI_CONTEXT + 1; tag <= PKI_CONTEXT + 2; tag++) {
        if (!pki_at(*tbs, tag))
            continue;
        if (c->version < 2)
            return pki_bad(e, "unique id", "is not allowed in version 1");
        if (!pki_next(tbs, "unique id", &t, e))
            return false;
    }
    return true;
}

static bool
pki_ext_basic(struct pki_cert *c, struct err *e)
{
    const char *what = "basicConstraints";
    struct str in = c->ext[PKI_EXT_BASIC];
    struct pki_tlv seq;

    c->path_len = -1;
    if (!in.p)
        return true;
    if (!pki_take(&in, what, PKI_SEQUENCE, &seq, e) || !pki_end(in, what, e) ||
        !pki_take_bool(&seq.body, what, &c->ca, e))
        return false;
    if (seq.body.n && !pki_take_small(&seq.body, what, &c->path_len, e))
        return false;
    if (c->path_len >= 0 && !c->ca)
        return pki_bad(e, what, "path length without CA");
    return pki_end(seq.body, what, e);
}

static bool
pki_ext_key_usage(struct pki_cert *c, struct err *e)
{
    const char *what = "keyUsage";
    struct str in = c->ext[PKI_EXT_KEY_USAGE], bits;
    unsigned unused;

    if (!in.p)
        return true;
    if (!pki_take_bits(&in, what, &bits, &unused, e) || !pki_end(in, what, e))
        return false;
    if (bits.n > 2)
        return pki_bad(e, what, "more than nine bits");
    for (unsigned i = 0; i < bits.n * 8; i++)
        if (pki_byte(bits, i / 8) & (0x80u >> i % 8))
            c->uses |= 1u << i;
    return c->uses != 0 || pki_bad(e, what, "is empty");
}

/* Puts one extension where it belongs; `seen` are the OIDs before it. */
static bool
pki_ext_keep(struct pki_cert *c, const struct str *seen, size_t n,
             struct str oid, bool critical, struct str value, struct err *e)
{
    for (size_t i = 0; i < n; i++)
        if (str_eq(seen[i], oid))
            return pki_bad(e, "extensions", "one extension is there twice");
    for (unsigned i = 0; i < PKI_EXTS; i++)
        if (str_eq(pki_ext_oids[i], oid)) {
            c->ext[i] = value;
            c->critical |= critical ? 1u << i : 0;
            return true;
        }
    for (size_t i = 0; i < sizeof pki_ext_passive / sizeof *pki_ext_passive;
         i++)
        if (str_eq(pki_ext_passive[i], oid))
            return true;
    if (critical && !c->unknown.p)
        c->unknown = oid;
    return true;
}

static bool
pki_cert_extensions(struct str in, struct pki_cert *c, struct err *e)
{
    const char *what = "extensions";
    struct str seen[PKI_ITEMS_MAX];
    struct pki_tlv seq, one, value;
    bool critical;

    if (!pki_take(&in, what, PKI_SEQUENCE, &seq, e) || !pki_end(in, what, e))
        return false;
    if (seq.body.n == 0)
        return pki_bad(e, what, "is empty");
    for (size_t n = 0; seq.body.n; n++) {
        if (n == PKI_ITEMS_MAX)
            return pki_bad(e, what, "more than 64");
        if (!pki_take(&seq.body, what, PKI_SEQUENCE, &one, e) ||
            !pki_take_oid(&one.body, what, &seen[n], e) ||
            !pki_take_bool(&one.body, what, &critical, e) ||
            !pki_take(&one.body, what, PKI_OCTETS, &value, e) ||
            !pki_end(one.body, what, e) ||
            !pki_ext_keep(c, seen, n, seen[n], critical, value.body, e))
            return false;
    }
    return pki_ext_basic(c, e) && pki_ext_key_usage(c, e);
}

/* TBSCertificate, field by field (RFC 5280 section 4.1). */
static bool
pki_cert_tbs(struct str in, struct pki_cert *c, struct err *e)
{
    struct pki_tlv t;

    if (!pki_cert_version(&in, c, e) || !pki_cert_serial(&in, c, e) ||
        !pki_take(&in, "signature algorithm", PKI_SEQUENCE, &t, e))
        return false;
    if (!str_eq(t.whole, c->algorithm))
        return pki_bad(e, "signature algorithm", "differs inside and outside");
    if (!pki_take(&in, "issuer", PKI_SEQUENCE, &t, e))
        return false;
    c->issuer = t.whole;
    if (!pki_cert_validity(&in, c, e) ||
        !pki_take(&in, "subject", PKI_SEQUENCE, &t, e))
        return false;
    c->subject = t.whole;
    if (!pki_cert_key(&in, c, e) || !pki_cert_unique_ids(&in, c, e))
        return false;
    c->path_len = -1;
    if (pki_at(in, PKI_CONSTRUCTED + 3)) {
        if (c->version != 3)
            return pki_bad(e, "extensions", "need version 3");
        if (!pki_take(&in, "extensions", PKI_CONSTRUCTED + 3, &t, e) ||
            !pki_cert_extensions(t.body, c, e))
            return false;
    }
    return pki_end(in, "certificate", e);
}

/* `der` must outlive `c`. */
static bool
pki_cert_parse(struct str der, struct pki_cert *c, struct err *e)
{
    struct pki_tlv outer, tbs, alg;
    struct str in = der;

    *c = (struct pki_cert){.der = der};
    if (der.n > PKI_CERT_MAX)
        return pki_bad(e, "size", "is over 16 KiB");
    if (!pki_take(&in, "certificate", PKI_SEQUENCE, &outer, e) ||
        !pki_end(in, "certificate", e) ||
        !pki_take(&outer.body, "certificate", PKI_SEQUENCE, &tbs, e) ||
        !pki_take(&outer.body, "signature algorithm", PKI_SEQUENCE, &alg, e) ||
        !pki_algorithm_check(alg.body, "signature algorithm", e) ||
        !pki_take_bytes(&outer.body, "signature", &c->signature, e) ||
        !pki_end(outer.body, "certificate", e))
        return false;
    c->tbs = tbs.whole;
    c->algorithm = alg.whole;
    return pki_cert_tbs(tbs.body, c, e);
}

/* ---- what a key is called ---- */

struct pki_key_name {
    struct str oid;
    const char *name;
};

static const struct pki_key_name pki_curves[] = {
    {S("\x2a\x86\x48\xce\x3d\x03\x01\x07"), "EC P-256"},
    {S("\x2b\x81\x04\x00\x22"), "EC P-384"},
    {S("\x2b\x81\x04\x00\x23"), "EC P-521"},
    {S("\x2a\x86\x48\xce\x3d\x03\x01\x01"), "EC P-192"},
    {S("\x2b\x81\x04\x00\x21"), "EC P-224"},
    {S("\x2b\x81\x04\x00\x0a"), "EC secp256k1"},
    {S("\x2b\x24\x03\x03\x02\x08\x01\x01\x07"), "EC brainpoolP256r1"},
    {S("\x2b\x24\x03\x03\x02\x08\x01\x01\x0b"), "EC brainpoolP384r1"},
    {S("\x2b\x24\x03\x03\x02\x08\x01\x01\x0d"), "EC brainpoolP512r1"},
};

static const struct pki_key_name pki_keys[] = {
    {S("\x2b\x65\x70"), "Ed25519"},
    {S("\x2b\x65\x71"), "Ed448"},
    {S("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01"), "RSA"},
    {S("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a"), "RSA-PSS"},
    {S("\x2a\x86\x48\xce\x3d\x02\x01"), "EC"},
};

#define PKI_KEY_NAME(table, oid)                                               \
    pki_key_name((table), sizeof(table) / sizeof *(table), (oid))

static const char *
pki_key_name(const struct pki_key_name *v, size_t n, struct str oid)
{
    for (size_t i = 0; i < n; i++)
        if (str_eq(v[i].oid, oid))
            return v[i].name;
    return NULL;
}

/* The bits of the modulus of an RSAPublicKey. */
static bool
pki_rsa_bits(struct str key, size_t *bits, struct err *e)
{
    const char *what = "RSA key";
    struct pki_tlv seq;
    struct str n, exponent;

    if (!pki_take(&key, what, PKI_SEQUENCE, &seq, e) ||
        !pki_end(key, what, e) || !pki_take_int(&seq.body, what, &n, e) ||
        !pki_take_int(&seq.body, what, &exponent, e) ||
        !pki_end(seq.body, what, e))
        return false;
    if ((pki_byte(n, 0) | pki_byte(exponent, 0)) & 0x80)
        return pki_bad(e, what, "is negative");
    if (pki_byte(n, 0) == 0)
        n = str_from(n, 1);
    if (n.n == 0)
        return pki_bad(e, what, "modulus is zero");
    *bits = n.n * 8;
    for (unsigned top = pki_byte(n, 0); top < 0x80; top <<= 1)
        --*bits;
    return true;
}

/* "EC P-256", "RSA 2048", "Ed25519", or the number of what has no name here. */
static bool
pki_key_text(struct mem_arena *a, const struct pki_cert *c, struct str *out,
             struct err *e)
{
    struct str in = c->key_algorithm, oid, curve;
    struct pki_tlv seq;
    const char *name;
    size_t bits = 0;

    if (!pki_take(&in, "public key", PKI_SEQUENCE, &seq, e) ||
        !pki_take_oid(&seq.body, "public key", &oid, e))
        return false;
    name = PKI_KEY_NAME(pki_keys, oid);
    if (!name) {
        *out = pki_oid_text(a, oid);
    } else if (name[0] == 'R') {
        if (!pki_rsa_bits(c->key, &bits, e))
            return false;
        *out = str_of(mem_printf(a, "%s %zu", name, bits));
    } else if (strcmp(name, "EC") == 0) {
        if (!pki_take_oid(&seq.body, "curve", &curve, e))
            return false;
        name = PKI_KEY_NAME(pki_curves, curve);
        *out = name ? str_of(name)
                    : str_of(mem_printf(a, "EC %.*s",
                                        STR_FMT(pki_oid_text(a, curve))));
    } else {
        *out = str_of(name);
    }
    return true;
}

/* ---- signatures ---- */

enum pki_key_kind { PKI_KEY_RSA, PKI_KEY_EC, PKI_KEY_ED25519 };

/* A key that may sign: strong enough, and of a kind that we can check. */
struct pki_public {
    enum pki_key_kind kind;
    bool pss_only;           // an RSA key whose OID is RSASSA-PSS
    struct str n, exponent;  // RSA, without a leading 00
    struct str point;        // EC, uncompressed; Ed25519
    int curve;               // EC
    size_t bits;             // RSA: of n
};

static const struct pki_curve {
    struct str oid;
    int id;
    size_t bytes;  // of a coordinate
} pki_good_curves[] = {
    {S("\x2a\x86\x48\xce\x3d\x03\x01\x07"), ECC_SECP256R1, 32},
    {S("\x2b\x81\x04\x00\x22"), ECC_SECP384R1, 48},
    {S("\x2b\x81\x04\x00\x23"), ECC_SECP521R1, 66},
};

/* NULL, or why not. */
static const char *
pki_public_rsa(struct str key, struct pki_public *k)
{
    struct pki_tlv seq;
    struct err e;

    if (!pki_rsa_bits(key, &k->bits, &e))
        return "its RSA key is malformed";
    if (k->bits < 2048)
        return "its RSA key is too small: use 2048 bits or more, or EC P-256";
    if (k->bits > PKI_RSA_BITS_MAX)
        return "its RSA key is larger than 4096 bits: use a smaller one, or EC";
    must(pki_take(&key, "", PKI_SEQUENCE, &seq, &e) &&
         pki_take_int(&seq.body, "", &k->n, &e) &&
         pki_take_int(&seq.body, "", &k->exponent, &e));
    if (pki_byte(k->n, 0) == 0)
        k->n = str_from(k->n, 1);
    if (pki_byte(k->exponent, 0) == 0 && k->exponent.n > 1)
        k->exponent = str_from(k->exponent, 1);
    // an exponent of 1 lets a signature be its own message; large ones are slow
    if (!(pki_byte(k->exponent, k->exponent.n - 1) & 1) || k->exponent.n > 4 ||
        (k->exponent.n == 1 && pki_byte(k->exponent, 0) < 3))
        return "its RSA key has an unusual public exponent: use 65537";
    if (!(pki_byte(k->n, k->n.n - 1) & 1))
        return "its RSA key is malformed";
    return NULL;
}

static const char *
pki_public_ec(struct str params, struct str key, struct pki_public *k)
{
    struct str curve;
    struct err e;

    if (!pki_take_oid(&params, "curve", &curve, &e) || params.n)
        return "its EC key names no curve";
    k->point = key;
    for (size_t i = 0; i < sizeof pki_good_curves / sizeof *pki_good_curves;
         i++) {
        const struct pki_curve *c = &pki_good_curves[i];

        if (!str_eq(c->oid, curve))
            continue;
        k->curve = c->id;
        if (key.n != 1 + 2 * c->bytes || pki_byte(key, 0) != 4)
            return "its EC key is not an uncompressed point";
        return NULL;
    }
    return "its EC key is too small or of an unusual curve: use P-256, P-384 "
           "or P-521";
}

/* `spki` is a whole SubjectPublicKeyInfo. NULL, or why the key will not do. */
static const char *
pki_public_read(struct str spki, struct pki_public *k)
{
    struct pki_tlv seq, alg;
    struct str oid, key;
    struct err e;
    const char *name;

    *k = (struct pki_public){0};
    if (!pki_take(&spki, "key", PKI_SEQUENCE, &seq, &e) ||
        !pki_take(&seq.body, "key", PKI_SEQUENCE, &alg, &e) ||
        !pki_take_oid(&alg.body, "key", &oid, &e) ||
        !pki_take_bytes(&seq.body, "key", &key, &e))
        return "its key is malformed";
    name = PKI_KEY_NAME(pki_keys, oid);
    if (name && strcmp(name, "EC") == 0) {
        k->kind = PKI_KEY_EC;
        return pki_public_ec(alg.body, key, k);
    }
    if (name && strcmp(name, "Ed25519") == 0) {
        k->kind = PKI_KEY_ED25519;
        k->point = key;
        return key.n == 32 && !alg.body.n ? NULL
                                          : "its Ed25519 key is malformed";
    }
    if (name && name[0] == 'R') {
        k->kind = PKI_KEY_RSA;
        k->pss_only = strcmp(name, "RSA-PSS") == 0;
        return pki_public_rsa(key, k);
    }
    return "its key is of a kind that we do not know: use EC P-256, RSA or "
           "Ed25519";
}

enum pki_scheme { PKI_PKCS1, PKI_PSS, PKI_ECDSA, PKI_EDDSA, PKI_WEAK };

static const struct pki_sig {
    struct str oid;
    enum pki_scheme scheme;
    enum wc_HashType hash;
    const char *name;
} pki_sigs[] = {
#define PKI_SIG_RSA(x) S("\x2a\x86\x48\x86\xf7\x0d\x01\x01" x)
#define PKI_SIG_EC(x) S("\x2a\x86\x48\xce\x3d\x04" x)
    {PKI_SIG_RSA("\x0b"), PKI_PKCS1, WC_HASH_TYPE_SHA256, "SHA-256"},
    {PKI_SIG_RSA("\x0c"), PKI_PKCS1, WC_HASH_TYPE_SHA384, "SHA-384"},
    {PKI_SIG_RSA("\x0d"), PKI_PKCS1, WC_HASH_TYPE_SHA512, "SHA-512"},
    {PKI_SIG_RSA("\x0a"), PKI_PSS, WC_HASH_TYPE_NONE, "RSA-PSS"},
    {PKI_SIG_EC("\x03\x02"), PKI_ECDSA, WC_HASH_TYPE_SHA256, "SHA-256"},
    {PKI_SIG_EC("\x03\x03"), PKI_ECDSA, WC_HASH_TYPE_SHA384, "SHA-384"},
    {PKI_SIG_EC("\x03\x04"), PKI_ECDSA, WC_HASH_TYPE_SHA512, "SHA-512"},
    {S("\x2b\x65\x70"), PKI_EDDSA, WC_HASH_TYPE_NONE, "Ed25519"},
    {PKI_SIG_RSA("\x02"), PKI_WEAK, WC_HASH_TYPE_NONE, "MD2"},
    {PKI_SIG_RSA("\x04"), PKI_WEAK, WC_HASH_TYPE_NONE, "MD5"},
    {PKI_SIG_RSA("\x05"), PKI_WEAK, WC_HASH_TYPE_NONE, "SHA-1"},
    {PKI_SIG_EC("\x01"), PKI_WEAK, WC_HASH_TYPE_NONE, "SHA-1"},
    {PKI_SIG_RSA("\x0e"), PKI_WEAK, WC_HASH_TYPE_NONE, "SHA-224"},
    {PKI_SIG_EC("\x03\x01"), PKI_WEAK, WC_HASH_TYPE_NONE, "SHA-224"},
};

static const struct pki_sig *
pki_sig_find(struct str oid)
{
    for (size_t i = 0; i < sizeof pki_sigs / sizeof *pki_sigs; i++)
        if (str_eq(pki_sigs[i].oid, oid))
            return &pki_sigs[i];
    return NULL;
}

/* What RSASSA-PSS-params say: one hash for message and mask (RFC 4055
 * section 3.1; all of its defaults mean SHA-1). */
struct pki_pss {
    enum wc_HashType hash;
    int salt;
};

/* AlgorithmIdentifier of a hash, its parameters NULL or absent. */
static bool
pki_pss_hash(struct str *in, enum wc_HashType *hash)
{
    static const struct str sha2 = S("\x60\x86\x48\x01\x65\x03\x04\x02");
    struct pki_tlv alg;
    struct str oid;
    struct err e;

    if (!pki_take(in, "hash", PKI_SEQUENCE, &alg, &e) ||
        !pki_take_oid(&alg.body, "hash", &oid, &e) ||
        (alg.body.n && !str_eq(alg.body, S("\x05\x00"))) || oid.n != 9 ||
        !str_starts(oid, sha2))
        return false;
    switch (pki_byte(oid, 8)) {
    case 1:
        *hash = WC_HASH_TYPE_SHA256;
        return true;
    case 2:
        *hash = WC_HASH_TYPE_SHA384;
        return true;
    case 3:
        *hash = WC_HASH_TYPE_SHA512;
        return true;
    }
    return false;
}

static bool
pki_pss_mask(struct str in, enum wc_HashType *hash)
{
    static const struct str mgf1 = S("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08");
    struct pki_tlv alg;
    struct str oid;
    struct err e;

    return pki_take(&in, "mask", PKI_SEQUENCE, &alg, &e) && !in.n &&
           pki_take_oid(&alg.body, "mask", &oid, &e) && str_eq(oid, mgf1) &&
           pki_pss_hash(&alg.body, hash) && !alg.body.n;
}

static const char *
pki_pss_read(struct str params, struct pki_pss *p)
{
    const char *why = "its RSA-PSS parameters are not SHA-256, SHA-384 or "
                      "SHA-512 for both message and mask";
    enum wc_HashType mask = WC_HASH_TYPE_NONE;
    struct pki_tlv seq, t;
    int trailer = 1;
    struct err e;

    p->salt = 20;
    if (!pki_take(&params, "", PKI_SEQUENCE, &seq, &e) || params.n ||
        !pki_take(&seq.body, "", PKI_CONSTRUCTED, &t, &e) ||
        !pki_pss_hash(&t.body, &p->hash) || t.body.n ||
        !pki_take(&seq.body, "", PKI_CONSTRUCTED + 1, &t, &e) ||
        !pki_pss_mask(t.body, &mask) || mask != p->hash)
        return why;
    if (pki_at(seq.body, PKI_CONSTRUCTED + 2) &&
        (!pki_take(&seq.body, "", PKI_CONSTRUCTED + 2, &t, &e) ||
         !pki_take_small(&t.body, "", &p->salt, &e) || t.body.n))
        return "its RSA-PSS salt length is malformed";
    if (pki_at(seq.body, PKI_CONSTRUCTED + 3) &&
        (!pki_take(&seq.body, "", PKI_CONSTRUCTED + 3, &t, &e) ||
         !pki_take_small(&t.body, "", &trailer, &e) || t.body.n))
        return "its RSA-PSS trailer is malformed";
    return seq.body.n == 0 && trailer == 1 ? NULL : why;
}

struct pki_digest {
    unsigned char v[WC_MAX_DIGEST_SIZE];
    word32 n;
};

static void
pki_digest_of(enum wc_HashType hash, struct str data, struct pki_digest *d)
{
    d->n = (word32)wc_HashGetDigestSize(hash);
    must(data.n <= UINT32_MAX &&
         wc_Hash(hash, (const byte *)data.p, (word32)data.n, d->v, d->n) == 0);
}

/* PKCS #1 v1.5: the one encoding that the digest has, compared as bytes. */
static bool
pki_verify_pkcs1(RsaKey *rsa, enum wc_HashType hash, struct str data,
                 struct str sig)
{
    byte out[PKI_RSA_BITS_MAX / 8], want[PKI_DIGEST_INFO_MAX];
    struct pki_digest d;
    word32 n;
    int rc;

    pki_digest_of(hash, data, &d);
    n = wc_EncodeSignature(want, d.v, d.n, wc_HashGetOID(hash));
    rc = wc_RsaSSL_Verify((const byte *)sig.p, (word32)sig.n, out, sizeof out,
                          rsa);
    return n && rc == (int)n && memcmp(out, want, n) == 0;
}

static bool
pki_verify_pss(RsaKey *rsa, const struct pki_pss *p, size_t bits,
               struct str data, struct str sig)
{
    int mgf = p->hash == WC_HASH_TYPE_SHA256   ? WC_MGF1SHA256
              : p->hash == WC_HASH_TYPE_SHA384 ? WC_MGF1SHA384
                                               : WC_MGF1SHA512;
    byte out[PKI_RSA_BITS_MAX / 8];
    struct pki_digest d;
    int rc;

    pki_digest_of(p->hash, data, &d);
    rc = wc_RsaPSS_Verify_ex((byte *)(uintptr_t)sig.p, (word32)sig.n, out,
                             sizeof out, p->hash, mgf, p->salt, rsa);
    return rc > 0 &&
           wc_RsaPSS_CheckPadding_ex(d.v, d.n, out, (word32)rc, p->hash,
                                     p->salt, (int)bits) == 0;
}

static bool
pki_verify_rsa(const struct pki_public *k, const struct pki_sig *s,
               const struct pki_pss *p, struct str data, struct str sig)
{
    RsaKey rsa;
    bool ok;

    if (sig.n != k->n.n)
        return false;
    must(wc_InitRsaKey(&rsa, NULL) == 0);
    ok = wc_RsaPublicKeyDecodeRaw((const byte *)k->n.p, (word32)k->n.n,
                                  (const byte *)k->exponent.p,
                                  (word32)k->exponent.n, &rsa) == 0 &&
         (s->scheme == PKI_PSS ? pki_verify_pss(&rsa, p, k->bits, data, sig)
                               : pki_verify_pkcs1(&rsa, s->hash, data, sig));
    wc_FreeRsaKey(&rsa);
    return ok;
}

static bool
pki_verify_ec(const struct pki_public *k, enum wc_HashType hash,
              struct str data, struct str sig)
{
    struct pki_digest d;
    int good = 0;
    ecc_key ec;
    bool ok;

    pki_digest_of(hash, data, &d);
    must(wc_ecc_init(&ec) == 0);
    ok = wc_ecc_import_x963_ex2((const byte *)k->point.p, (word32)k->point.n,
                                &ec, k->curve, 1) == 0 &&
         wc_ecc_verify_hash((const byte *)sig.p, (word32)sig.n, d.v, d.n, &good,
                            &ec) == 0;
    wc_ecc_free(&ec);
    return ok && good == 1;
}

static bool
pki_verify_ed25519(const struct pki_public *k, struct str data, struct str sig)
{
    ed25519_key ed;
    int good = 0;
    bool ok;

    must(wc_ed25519_init(&ed) == 0);
    ok = wc_ed25519_import_public((const byte *)k->point.p, (word32)k->point.n,
                                  &ed) == 0 &&
         wc_ed25519_verify_msg((const byte *)sig.p, (word32)sig.n,
                               (const byte *)data.p, (word32)data.n, &good,
                               &ed) == 0;
    wc_ed25519_free(&ed);
    return ok && good == 1;
}

/* Is this way of signing one that we take? NULL, or why not. */
static const char *
pki_sig_read(struct str algorithm, const struct pki_sig **s, struct pki_pss *p)
{
    struct pki_tlv alg;
    struct str oid;
    struct err e;

    *p = (struct pki_pss){0};
    if (!pki_take(&algorithm, "", PKI_SEQUENCE, &alg, &e) ||
        !pki_take_oid(&alg.body, "", &oid, &e))
        return "its signature algorithm is malformed";
    *s = pki_sig_find(oid);
    if (!*s)
        return "its signature algorithm is not one that we know: sign with "
               "ECDSA, RSA or Ed25519";
    switch ((*s)->scheme) {
    case PKI_WEAK:
        return strcmp((*s)->name, "SHA-1") == 0
                   ? "it is signed with SHA-1, which can be forged: sign with "
                     "SHA-256"
               : strcmp((*s)->name, "MD5") == 0
                   ? "it is signed with MD5, which can be forged: sign with "
                     "SHA-256"
                   : "it is signed with a weak hash: sign with SHA-256";
    case PKI_PSS:
        return pki_pss_read(alg.body, p);
    case PKI_PKCS1:
        return !alg.body.n || str_eq(alg.body, S("\x05\x00"))
                   ? NULL
                   : "its signature algorithm is malformed";
    case PKI_ECDSA:
    case PKI_EDDSA:
        break;
    }
    return alg.body.n ? "its signature algorithm is malformed" : NULL;
}

static bool
pki_sig_fits(const struct pki_sig *s, const struct pki_public *k)
{
    switch (k->kind) {
    case PKI_KEY_RSA:
        return s->scheme == PKI_PSS || (s->scheme == PKI_PKCS1 && !k->pss_only);
    case PKI_KEY_EC:
        return s->scheme == PKI_ECDSA;
    case PKI_KEY_ED25519:
        return s->scheme == PKI_EDDSA;
    }
    return false;
}

static const char pki_other_key[] =
    "its signature does not match its issuer's key";

/* Did the key of `spki` sign `tbs`? Both that key and the way of signing must
 * be strong. `algorithm` and `spki` are whole, with tag and length. */
static bool
pki_signature_check(struct str algorithm, struct str tbs, struct str signature,
                    struct str spki, struct err *e)
{
    const struct pki_sig *s;
    struct pki_public k;
    struct pki_pss pss;
    const char *why = pki_sig_read(algorithm, &s, &pss);
    bool ok = false;

    if (why)
        return err_set(e, ERR_TLS, "%s", why);
    why = pki_public_read(spki, &k);
    if (why)
        return err_set(e, ERR_TLS, "its issuer: %s", why);
    if (pki_sig_fits(s, &k)) {
        if (k.kind == PKI_KEY_RSA)
            ok = pki_verify_rsa(&k, s, &pss, tbs, signature);
        else if (k.kind == PKI_KEY_EC)
            ok = pki_verify_ec(&k, s->hash, tbs, signature);
        else
            ok = pki_verify_ed25519(&k, tbs, signature);
    }
    return ok ||
           err_set(e, ERR_TLS, "its signature does not match its issuer's key");
}

/* ---- names in subjectAltName ---- */

/* Labels of letters, digits, '-' and '_', at most 63 bytes each and 253 in
 * all. A first label "*" is well-formed; whether it may be is not asked
 * here. */
static const char *
pki_dns_why(struct str s)
{
    size_t label = 0;

    if (s.n == 0 || s.n > 253)
        return "DNS name is empty or longer than 253 bytes";
    if (str_starts(s, S("*.")))
        s = str_from(s, 2);
    for (size_t i = 0; i <= s.n; i++) {
        if (i == s.n || s.p[i] == '.') {
            if (label == 0 || label > 63)
                return "DNS name with an empty label or one above 63 bytes";
            label = 0;
        } else if (!isalnum(pki_byte(s, i)) && s.p[i] != '-' && s.p[i] != '_') {
            return "DNS name holds more than letters, digits, '-' and '.'";
        } else {
            label++;
        }
    }
    return NULL;
}

/* scheme ":" and one or more of the bytes of RFC 3986, percent signs in order.
 * Neither quote nor backslash nor blank is among them. */
static const char *
pki_uri_why(struct str s)
{
    size_t i = 0;

    while (i < s.n &&
           (isalnum(pki_byte(s, i)) || (i && strchr("+-.", s.p[i]) && s.p[i])))
        i++;
    if (i == 0 || !isalpha(pki_byte(s, 0)) || i + 1 >= s.n || s.p[i] != ':')
        return "URI without a scheme or with nothing after it";
    for (; i < s.n; i++) {
        if (s.p[i] == '%' && (i + 2 >= s.n || str_hex_digit(s.p[i + 1]) < 0 ||
                              str_hex_digit(s.p[i + 2]) < 0))
            return "URI with a '%' that begins no percent-encoding";
        if (!isalnum(pki_byte(s, i)) &&
            (!s.p[i] || !strchr("-._~:/?#[]@!$&'()*+,;=%", s.p[i])))
            return "URI with a byte that must be percent-encoded";
    }
    return NULL;
}

static const char *
pki_email_why(struct str s)
{
    const char *at = s.n ? memchr(s.p, '@', s.n) : NULL;

    for (size_t i = 0; i < s.n; i++)
        if (pki_byte(s, i) <= ' ' || pki_byte(s, i) >= 0x7f)
            return "email address with a blank, control or non-ASCII byte";
    if (!at || at == s.p || at == s.p + s.n - 1)
        return "email address without a name before and after '@'";
    return NULL;
}

static bool
pki_spiffe_scheme(struct str uri)
{
    return uri.n >= 7 && str_eqi((struct str){uri.p, 7}, S("spiffe:"));
}

static bool
pki_spiffe_segment_ok(struct str s, bool domain)
{
    for (size_t i = 0; i < s.n; i++) {
        unsigned c = pki_byte(s, i);

        if (!isdigit(c) && !islower(c) && !(isupper(c) && !domain) &&
            c != '.' && c != '-' && c != '_')
            return false;
    }
    return s.n > 0 && (domain || (!str_eq(s, S(".")) && !str_eq(s, S(".."))));
}

/* The SPIFFE ID of a workload: "spiffe://" trust domain, then one segment or
 * more (SPIFFE-ID 2, X509-SVID 5.2). No port, user, query or fragment, no
 * percent-encoding, no empty or dotted segment: none of their bytes passes. */
static const char *
pki_spiffe_why(struct str uri)
{
    struct str rest, one;
    bool more;

    if (uri.n > 2048 || !str_starts(uri, S("spiffe://")))
        return "SPIFFE ID is too long or does not begin with spiffe://";
    more = str_cut(str_from(uri, 9), '/', &one, &rest);
    if (!pki_spiffe_segment_ok(one, true) || one.n > 255)
        return "SPIFFE ID with a malformed trust domain";
    if (!more)
        return "SPIFFE ID without a path names no workload";
    while (more) {
        more = str_cut(rest, '/', &one, &rest);
        if (!pki_spiffe_segment_ok(one, false))
            return "SPIFFE ID with an empty or malformed path segment";
    }
    return NULL;
}

/* ---- identity ---- */

struct pki_attr {
    struct str type;   // "cn", "ou", … or a dotted OID
    struct str value;  // UTF-8, or "#" and the DER in hex where it is no text
};

struct pki_strs {
    struct str *v;
    size_t n;
};

/* Who holds a certificate, as text. Immutable; shared by reference count.
 * Everything in it, itself included, lives in its arena. */
struct pki_identity {
    unsigned magic;  // PKI_IDENTITY_MAGIC while alive
    unsigned refs;
    struct mem_arena *arena;  // owned
    struct str der;
    struct str *chain;  // issuers as verified, the leaf's first
    size_t chain_n;
    struct pki_attr *subject;  // in the certificate's order
    size_t subject_n;
    struct str dn, issuer_dn;  // RFC 4514
    struct str serial;         // lower-case hex, an even number of digits
    struct str fingerprint;    // SHA-256 of the DER, hex
    struct str spki;           // "sha256:" and Base64 (RFC 7469)
    struct str spiffe;         // the SPIFFE ID, or empty
    struct str key;            // "EC P-256"
    struct pki_strs uri, dns, ip, email;
    struct pki_strs eku;  // names or OIDs; empty: the extension is not there
    struct pki_strs ca;   // those of pki_cas that the path goes through
    int64_t not_before, not_after;
    int64_t from, until;     // while the whole path holds
    struct str client_cert;  // RFC 9440, ":BASE64:"
    struct str xfcc;         // "Hash=…;Subject=\"…\";URI=…;DNS=…"

    unsigned char cache_key[32];
    bool cached;                         // the cache holds one of the refs
    struct pki_identity *next;           // of the same slot
    struct pki_identity *newer, *older;  // in order of use
};

enum { PKI_IDENTITY_MAGIC = 0x69646e74 };

static void
pki_identity_free(struct pki_identity *id)
{
    if (!id)
        return;
    must(id->magic == PKI_IDENTITY_MAGIC && !id->cached);
    id->magic = 0;
    mem_arena_free(id->arena);
}

/* One more owner. */
static struct pki_identity *
pki_identity_ref(struct pki_identity *id)
{
    must(id->magic == PKI_IDENTITY_MAGIC && id->refs < UINT_MAX);
    id->refs++;
    return id;
}

/* One owner less; the last one frees it. */
static void
pki_identity_put(struct pki_identity *id)
{
    if (!id)
        return;
    must(id->magic == PKI_IDENTITY_MAGIC && id->refs > 0);
    if (--id->refs == 0)
        pki_identity_free(id);
}

static void
pki_sha256(const void *p, size_t n, unsigned char out[32])
{
    must(n <= UINT32_MAX && wc_Sha256Hash(p, (word32)n, out) == 0);
}

static struct pki_strs
pki_strs_dup(struct mem_arena *a, const struct str *v, size_t n)
{
    struct pki_strs s = {mem_alloc(a, n * sizeof *v), n};

    for (size_t i = 0; i < n; i++)
        s.v[i] = v[i];
    return s;
}

/* The lists of subjectAltName while they are being filled. */
struct pki_sans {
    struct pki_san_list {
        size_t n;
        struct str v[PKI_ITEMS_MAX];
    } uri, dns, ip, email;
};

static const char *
pki_san_ip(struct mem_arena *a, struct str raw, struct str *out)
{
    char text[INET6_ADDRSTRLEN];

    if (raw.n != 4 && raw.n != 16)
        return "IP address is not 4 or 16 bytes";
    must(inet_ntop(raw.n == 4 ? AF_INET : AF_INET6, raw.p, text, sizeof text));
    *out = str_dup(a, str_of(text));
    return NULL;
}

/* DNS names are compared without case: lower case is the one form of them. */
static struct str
pki_dns_dup(struct mem_arena *a, struct str s)
{
    char *p = mem_dup(a, s.p, s.n);

    for (size_t i = 0; i < s.n; i++)
        p[i] = (char)str_lower_byte((unsigned char)p[i]);
    return (struct str){p, s.n};
}

/* One GeneralName: NULL, or why not. Kinds that no policy can name are
 * counted by the caller and passed over. */
static const char *
pki_san_one(struct mem_arena *a, const struct pki_tlv *t, struct pki_sans *s)
{
    struct pki_san_list *list;
    const char *why = NULL;

    switch (t->tag) {
    case PKI_SAN_URI:
        list = &s->uri;
        why = pki_uri_why(t->body);
        if (!why && pki_spiffe_scheme(t->body))
            why = pki_spiffe_why(t->body);
        list->v[list->n] = t->body;
        break;
    case PKI_SAN_DNS:
        list = &s->dns;
        why = pki_dns_why(t->body);
        list->v[list->n] = pki_dns_dup(a, t->body);
        break;
    case PKI_SAN_IP:
        list = &s->ip;
        why = pki_san_ip(a, t->body, &list->v[list->n]);
        break;
    case PKI_SAN_EMAIL:
        list = &s->email;
        why = pki_email_why(t->body);
        list->v[list->n] = t->body;
        break;
    case PKI_SAN_OTHER:
    case PKI_SAN_X400:
    case PKI_SAN_DIRECTORY:
    case PKI_SAN_EDI:
    case PKI_SAN_RID:
        return t->body.n ? NULL : "empty name";
    default:
        return "name of an unknown kind";
    }
    list->n++;
    return why;
}

/* `ext` is the content of a subjectAltName extension. */
static bool
pki_san_parse(struct mem_arena *a, struct str ext, struct pki_sans *s,
              struct err *e)
{
    const char *what = "subjectAltName", *why;
    struct pki_tlv seq, t;

    if (!pki_take(&ext, what, PKI_SEQUENCE, &seq, e) || !pki_end(ext, what, e))
        return false;
    if (seq.body.n == 0)
        return pki_bad(e, what, "is empty");
    for (size_t n = 0; seq.body.n; n++) {
        if (n == PKI_ITEMS_MAX)
            return pki_bad(e, what, "more than 64 names");
        if (!pki_next(&seq.body, what, &t, e))
            return false;
        why = pki_san_one(a, &t, s);
        if (why)
            return pki_bad(e, what, why);
    }
    return true;
}

/* A SPIFFE certificate has exactly one URI: with two, the policy and the next
 * reader might not look at the same one. And it signs neither certificates nor
 * lists (X509-SVID 5.2). */
static bool
pki_identity_san(struct pki_identity *id, const struct pki_cert *c,
                 struct err *e)
{
    struct mem_arena *a = id->arena;
    struct pki_sans s;

    s.uri.n = s.dns.n = s.ip.n = s.email.n = 0;
    if (c->ext[PKI_EXT_SAN].p && !pki_san_parse(a, c->ext[PKI_EXT_SAN], &s, e))
        return false;
    id->uri = pki_strs_dup(a, s.uri.v, s.uri.n);
    id->dns = pki_strs_dup(a, s.dns.v, s.dns.n);
    id->ip = pki_strs_dup(a, s.ip.v, s.ip.n);
    id->email = pki_strs_dup(a, s.email.v, s.email.n);
    id->spiffe = S("");
    for (size_t i = 0; i < id->uri.n; i++)
        if (pki_spiffe_scheme(id->uri.v[i]))
            id->spiffe = id->uri.v[i];
    if (id->spiffe.n && id->uri.n != 1)
        return pki_bad(e, "subjectAltName", "a second URI beside a SPIFFE ID");
    if (id->spiffe.n && (c->uses & (PKI_USE_CERT_SIGN | PKI_USE_CRL_SIGN)))
        return pki_bad(e, "keyUsage",
                       "keyCertSign or cRLSign beside a SPIFFE ID");
    return true;
}

static const struct pki_key_name pki_purposes[] = {
    {S("\x2b\x06\x01\x05\x05\x07\x03\x01"), "serverAuth"},
    {S("\x2b\x06\x01\x05\x05\x07\x03\x02"), "clientAuth"},
    {S("\x2b\x06\x01\x05\x05\x07\x03\x03"), "codeSigning"},
    {S("\x2b\x06\x01\x05\x05\x07\x03\x04"), "emailProtection"},
    {S("\x2b\x06\x01\x05\x05\x07\x03\x08"), "timeStamping"},
    {S("\x2b\x06\x01\x05\x05\x07\x03\x09"), "OCSPSigning"},
    {S("\x55\x1d\x25\x00"), "anyExtendedKeyUsage"},
};

static bool
pki_identity_eku(struct pki_identity *id, const struct pki_cert *c,
                 struct err *e)
{
    const char *what = "extendedKeyUsage", *name;
    struct str in = c->ext[PKI_EXT_EKU], oid = S(""), v[PKI_ITEMS_MAX];
    struct pki_tlv seq;
    size_t n = 0;

    v[0] = S("");  // for a compiler that cannot see that n says enough

    if (!in.p)
        return true;
    if (!pki_take(&in, what, PKI_SEQUENCE, &seq, e) || !pki_end(in, what, e))
        return false;
    for (; seq.body.n; n++) {
        if (n == PKI_ITEMS_MAX)
            return pki_bad(e, what, "more than 64");
        if (!pki_take_oid(&seq.body, what, &oid, e))
            return false;
        name = PKI_KEY_NAME(pki_purposes, oid);
        v[n] = name ? str_of(name) : pki_oid_text(id->arena, oid);
    }
    id->eku = pki_strs_dup(id->arena, v, n);
    return n > 0 || pki_bad(e, what, "is empty");
}

static struct str
pki_attr_value(struct mem_arena *a, const struct pki_name_part *p)
{
    struct str hex;

    if (p->text.n)
        return p->text;
    hex = str_hex(a, p->value.whole.p, p->value.whole.n);
    return str_of(mem_printf(a, "#%.*s", STR_FMT(hex)));
}

/* XFCC's values that hold its own separators go between quotes. The URI's
 * bytes (pki_uri_why) and the DN's (pki_dn_value) include no quote. */
static void
pki_xfcc_value(struct mem_buf *b, const char *key, struct str v)
{
    bool quote = false;

    for (size_t i = 0; i < v.n; i++)
        quote |= v.p[i] == ',' || v.p[i] == ';' || v.p[i] == '=';
    mem_buf_printf(b, quote ? ";%s=\"" : ";%s=", key);
    mem_buf_add(b, v.p, v.n);
    mem_buf_add(b, "\"", quote ? 1 : 0);
}

/* What goes upstream: made once here, and not once a request. */
static void
pki_identity_headers(struct pki_identity *id, const struct pki_name *subject)
{
    struct mem_arena *a = id->arena;
    struct str dn = pki_dn(a, subject, true), b64 = str_b64(a, id->der);
    struct mem_buf b = {0};

    id->client_cert = str_of(mem_printf(a, ":%.*s:", STR_FMT(b64)));
    mem_buf_printf(&b, "Hash=%.*s;Subject=\"%.*s\"", STR_FMT(id->fingerprint),
                   STR_FMT(dn));
    for (size_t i = 0; i < id->uri.n; i++)
        pki_xfcc_value(&b, "URI", id->uri.v[i]);
    for (size_t i = 0; i < id->dns.n; i++)
        pki_xfcc_value(&b, "DNS", id->dns.v[i]);
    id->xfcc = str_dup(a, (struct str){mem_buf_ptr(&b), mem_buf_len(&b)});
    mem_buf_free(&b);
}

static bool
pki_identity_names(struct pki_identity *id, const struct pki_cert *c,
                   struct err *e)
{
    struct mem_arena *a = id->arena;
    struct pki_name name;

    if (!pki_name_parse(a, c->issuer, "issuer", &name, e))
        return false;
    if (name.n == 0)
        return pki_bad(e, "issuer", "is empty");
    id->issuer_dn = pki_dn(a, &name, false);
    if (!pki_name_parse(a, c->subject, "subject", &name, e))
        return false;
    if (name.n == 0 && !c->ext[PKI_EXT_SAN].p)
        return pki_bad(e, "subject", "is empty, and so is subjectAltName");
    id->dn = pki_dn(a, &name, false);
    id->subject_n = name.n;
    id->subject = mem_alloc(a, name.n * sizeof *id->subject);
    for (size_t i = 0; i < name.n; i++) {
        const struct pki_name_part *p = &name.part[i];

        id->subject[i].type =
            p->known ? str_of(p->known->key) : pki_oid_text(a, p->oid);
        id->subject[i].value = pki_attr_value(a, p);
    }
    pki_identity_headers(id, &name);
    return true;
}

static void
pki_identity_hashes(struct pki_identity *id, const struct pki_cert *c)
{
    struct mem_arena *a = id->arena;
    unsigned char hash[32];
    struct str b64;

    pki_sha256(id->der.p, id->der.n, hash);
    id->fingerprint = str_hex(a, hash, sizeof hash);
    pki_sha256(c->spki.p, c->spki.n, hash);
    b64 = str_b64(a, (struct str){(const char *)hash, sizeof hash});
    id->spki = str_of(mem_printf(a, "sha256:%.*s", STR_FMT(b64)));
    id->serial = str_hex(a, c->serial.p, c->serial.n);
}

/* Copies the issuers; they must each be one DER value of allowed size. */
static bool
pki_identity_chain(struct pki_identity *id, const struct str *chain, size_t n,
                   struct err *e)
{
    struct pki_tlv t;

    if (n > PKI_CHAIN_MAX)
        return pki_bad(e, "chain", "more than 9 issuers");
    id->chain = mem_alloc(id->arena, n * sizeof *chain);
    for (size_t i = 0; i < n; i++) {
        struct str in = chain[i];

        if (in.n > PKI_CERT_MAX)
            return pki_bad(e, "chain", "an issuer is over 16 KiB");
        if (!pki_take(&in, "chain", PKI_SEQUENCE, &t, e) ||
            !pki_end(in, "chain", e))
            return false;
        id->chain[i] = str_dup(id->arena, chain[i]);
    }
    id->chain_n = n;
    return true;
}

static bool
pki_identity_fill(struct pki_identity *id, struct str leaf,
                  const struct str *chain, size_t n, struct err *e)
{
    struct pki_cert c;

    if (leaf.n > PKI_CERT_MAX)
        return pki_bad(e, "size", "is over 16 KiB");
    id->der = str_dup(id->arena, leaf);
    if (!pki_cert_parse(id->der, &c, e))
        return false;
    if (c.version != 3)
        return pki_bad(e, "version", "is not 3, as a client's must be");
    id->not_before = c.not_before;
    id->not_after = c.not_after;
    pki_identity_hashes(id, &c);
    return pki_key_text(id->arena, &c, &id->key, e) &&
           pki_identity_san(id, &c, e) && pki_identity_eku(id, &c, e) &&
           pki_identity_names(id, &c, e) && pki_identity_chain(id, chain, n, e);
}

/* `chain` holds the issuers that were verified, the leaf not among them. The
 * caller owns the one reference, and gives it back with pki_identity_put(). */
static bool
pki_identity_parse(struct str leaf, const struct str *chain, size_t n,
                   struct pki_identity **out, struct err *e)
{
    struct mem_arena *a = mem_arena_new(PKI_ARENA_MAX);
    struct pki_identity *id = mem_alloc(a, sizeof *id);

    id->magic = PKI_IDENTITY_MAGIC;
    id->refs = 1;
    id->arena = a;
    if (!pki_identity_fill(id, leaf, chain, n, e)) {
        mem_arena_free(a);
        return false;
    }
    *out = id;
    return true;
}

/* ---- the cache ---- */

/* Identities by the SHA-256 of rules, leaf and chain, the least recently used
 * thrown out. Bounded in number and in bytes: a CA's clients may be many, and
 * large. One thrown out lives on where a connection still holds it. */
struct pki_cache {
    unsigned magic;
    size_t n, bytes;
    struct pki_identity *newest, *oldest;
    struct pki_identity *slot[PKI_CACHE_SLOTS];
};

enum { PKI_CACHE_MAGIC = 0x706b6963 };

static struct pki_cache *
pki_cache_new(void)
{
    return obj_new(sizeof(struct pki_cache), PKI_CACHE_MAGIC);
}

static struct pki_identity **
pki_cache_slot(struct pki_cache *c, const unsigned char key[32])
{
    return &c->slot[(key[0] | (unsigned)key[1] << 8) & (PKI_CACHE_SLOTS - 1)];
}

/* Takes `id` out of the order of use. */
static void
pki_cache_unlink(struct pki_cache *c, struct pki_identity *id)
{
    *(id->newer ? &id->newer->older : &c->newest) = id->older;
    *(id->older ? &id->older->newer : &c->oldest) = id->newer;
    id->newer = id->older = NULL;
}

static void
pki_cache_link(struct pki_cache *c, struct pki_identity *id)
{
    id->older = c->newest;
    *(c->newest ? &c->newest->newer : &c->oldest) = id;
    c->newest = id;
}

static void
pki_cache_drop(struct pki_cache *c, struct pki_identity *id)
{
    struct pki_identity **at = pki_cache_slot(c, id->cache_key);

    while (*at != id) {
        must(*at != NULL);
        at = &(*at)->next;
    }
    *at = id->next;
    pki_cache_unlink(c, id);
    c->n--;
    c->bytes -= id->arena->total;
    id->cached = false;
    pki_identity_put(id);
}

static void
pki_cache_free(struct pki_cache *c)
{
    if (!c)
        return;
    while (c->oldest)
        pki_cache_drop(c, c->oldest);
    obj_free(c);
}

/* Each length goes before its bytes, so that no two lists hash alike. */
static void
pki_cache_hash(struct str leaf, const struct str *chain, size_t n,
               unsigned char key[32])
{
    wc_Sha256 sha;

    must(wc_InitSha256(&sha) == 0);
    for (size_t i = 0; i <= n; i++) {
        struct str s = i == 0 ? leaf : chain[i - 1];
        uint32_t len = (uint32_t)s.n;

        must(s.n <= UINT32_MAX);
        must(wc_Sha256Update(&sha, (const byte *)&len, sizeof len) == 0);
        must(wc_Sha256Update(&sha, (const byte *)s.p, len) == 0);
    }
    must(wc_Sha256Final(&sha, key) == 0);
    wc_Sha256Free(&sha);
}

static void
pki_cache_add(struct pki_cache *c, struct pki_identity *id,
              const unsigned char key[32])
{
    struct pki_identity **slot = pki_cache_slot(c, key);

    memcpy(id->cache_key, key, sizeof id->cache_key);
    id->next = *slot;
    *slot = id;
    pki_cache_link(c, id);
    pki_identity_ref(id);
    id->cached = true;
    c->n++;
    c->bytes += id->arena->total;
    while (c->n > PKI_CACHE_MAX || c->bytes > PKI_CACHE_BYTES)
        pki_cache_drop(c, c->oldest);
}

/* Borrowed; NULL: not there. */
static struct pki_identity *
pki_cache_find(struct pki_cache *c, const unsigned char key[32])
{
    struct pki_identity *id;

    must(c->magic == PKI_CACHE_MAGIC);
    id = *pki_cache_slot(c, key);
    while (id && memcmp(id->cache_key, key, sizeof id->cache_key) != 0)
        id = id->next;
    if (id) {
        pki_cache_unlink(c, id);
        pki_cache_link(c, id);
    }
    return id;
}

/* ---- for a log line, from a file ---- */

/* "CN=bob,OU=ops serial 0a12": for a certificate that was perhaps refused, so
 * it reads what it can and never fails hard. False: unreadable. */
static bool
pki_describe(struct str der, char *out, size_t n)
{
    struct mem_arena *a = mem_arena_new(PKI_ARENA_MAX);
    struct str dn = S("(subject unreadable)"), serial;
    struct pki_name name;
    struct pki_cert c;
    struct err e;
    bool ok = pki_cert_parse(der, &c, &e);

    if (!ok) {
        snprintf(out, n, "unreadable certificate");
    } else {
        if (pki_name_parse(a, c.subject, "subject", &name, &e))
            dn = name.n ? pki_dn(a, &name, false) : S("(no subject)");
        serial = str_hex(a, c.serial.p, c.serial.n);
        if (dn.n > n / 2)
            dn.n = n / 2;
        snprintf(out, n, "%.*s serial %.*s", STR_FMT(dn), STR_FMT(serial));
    }
    mem_arena_free(a);
    return ok;
}

static int
pki_b64_digit(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Base64 with line ends and blanks between; padding only at the end, and the
 * bits it leaves over are zero. */
static bool
pki_b64_decode(struct mem_arena *a, struct str in, struct str *out)
{
    char *p = mem_alloc_raw(a, in.n / 4 * 3 + 3);
    size_t n = 0, digits = 0, pad = 0;
    unsigned v = 0;

    for (size_t i = 0; i < in.n; i++) {
        int d = pki_b64_digit(in.p[i]);

        if (in.p[i] && strchr(" \t\r\n", in.p[i]))
            continue;
        if (in.p[i] == '=') {
            pad++;
            continue;
        }
        if (d < 0 || pad)
            return false;
        v = v << 6 | (unsigned)d;
        if (digits++ % 4)
            p[n++] = (char)(v >> (6 - 2 * ((digits - 1) % 4)) & 0xff);
    }
    *out = (struct str){p, n};
    if (digits % 4 == 0)
        return pad == 0 && n > 0;
    return digits % 4 != 1 && pad == 4 - digits % 4 &&
           (v & (digits % 4 == 2 ? 15u : 3u)) == 0;
}

/* Where a line that is exactly `line` begins; SIZE_MAX: nowhere. */
static size_t
pki_pem_find(struct str s, const char *line)
{
    size_t len = strlen(line);
    const char *p = s.p, *at;
    size_t left = s.n;

    while (left >= len && (at = memmem(p, left, line, len)) != NULL) {
        const char *end = at + len;

        if ((at == s.p || at[-1] == '\n') &&
            (end == s.p + s.n || strchr(" \t\r\n", *end)))
            return (size_t)(at - s.p);
        left -= (size_t)(end - p);
        p = end;
    }
    return SIZE_MAX;
}

/* "no CERTIFICATE in it", and what is there instead if that is of use. */
static bool
pki_pem_none(struct str pem, const char *label, struct err *e)
{
    static const char mark[] = "-----BEGIN ";
    const char *at = memmem(pem.p, pem.n, mark, sizeof mark - 1);
    struct str found, rest;

    if (at) {
        found = str_from(pem, (size_t)(at - pem.p) + sizeof mark - 1);
        found.n = found.n < 40 ? found.n : 40;
        if (str_cut(found, '-', &found, &rest) && !pki_has_control(found) &&
            pki_ascii(found))
            return err_set(e, ERR_CONFIG,
                           "no -----BEGIN %s----- block; the first one is %.*s",
                           label, STR_FMT(found));
    }
    return err_set(e, ERR_CONFIG,
                   "no -----BEGIN %s----- block: is it a PEM file?", label);
}

/* All blocks of one label, in order; text around them and other blocks are
 * passed over. One bad block spoils the file. The messages leave the file's
 * name to the caller (err_prefix). */
static bool
pki_pem_read(struct mem_arena *a, struct str pem, const char *label,
             struct str **ders, size_t *n, struct err *e)
{
    const char *begin = mem_printf(a, "-----BEGIN %s-----", label);
    const char *end = mem_printf(a, "-----END %s-----", label);
    struct str v[PKI_PEM_MAX], body, all = pem;
    size_t at, len;

    if (pem.n > PKI_PEM_BYTES)
        return err_set(e, ERR_CONFIG, "is over 4 MiB");
    for (*n = 0; (at = pki_pem_find(pem, begin)) != SIZE_MAX; ++*n) {
        if (*n == PKI_PEM_MAX)
            return err_set(e, ERR_CONFIG, "more than %d %s blocks", PKI_PEM_MAX,
                           label);
        body = str_from(pem, at + strlen(begin));
        len = pki_pem_find(body, end);
        if (len == SIZE_MAX)
            return err_set(e, ERR_CONFIG, "%s block %zu has no line %s", label,
                           *n + 1, end);
        pem = str_from(body, len + strlen(end));
        body.n = len;
        if (memchr(body.p, ':', body.n))
            return err_set(e, ERR_CONFIG,
                           "%s block %zu has headers (encrypted?): gateway "
                           "reads plain ones only",
                           label, *n + 1);
        if (!pki_b64_decode(a, body, &v[*n]))
            return err_set(e, ERR_CONFIG, "%s block %zu is not Base64", label,
                           *n + 1);
    }
    if (*n == 0)
        return pki_pem_none(all, label, e);
    *ders = pki_strs_dup(a, v, *n).v;
    return true;
}

/* ---- name constraints (RFC 5280 section 4.2.1.10) ---- */

struct pki_subtrees {
    size_t n;
    struct pki_subtree {
        unsigned tag;  // PKI_SAN_…
        bool excluded;
        struct str base;  // canonical where it is a directory name
    } v[PKI_SUBTREES_MAX];
};

/* All names of a certificate that a constraint may speak of. */
struct pki_names {
    size_t n;
    struct pki_general_name {
        unsigned tag;
        struct str v;  // canonical where it is a directory name
    } v[PKI_NAMES_MAX];
};

static const char *
pki_subtree_ip_why(struct str base)
{
    size_t half = base.n / 2;
    bool zero = false;

    if (base.n != 8 && base.n != 32)
        return "an address without its mask";
    for (size_t i = 0; i < half * 8; i++) {
        bool bit = pki_byte(base, half + i / 8) & (0x80u >> i % 8);

        if (bit && zero)
            return "a mask with a hole";
        zero |= !bit;
    }
    return NULL;
}

/* A host, or ".domain"; the empty name stands for all. */
static const char *
pki_subtree_host_why(struct str base)
{
    if (base.n && base.p[0] == '.')
        base = str_from(base, 1);
    if (base.n && memchr(base.p, '*', base.n))
        return "a name with a '*'";
    return base.n ? pki_dns_why(base) : NULL;
}

static const char *
pki_subtree_email_why(struct str base)
{
    return base.n && memchr(base.p, '@', base.n) ? pki_email_why(base)
                                                 : pki_subtree_host_why(base);
}

static const char *
pki_subtree_why(struct mem_arena *a, struct pki_subtree *t)
{
    struct err e;

    switch (t->tag) {
    case PKI_SAN_IP:
        return pki_subtree_ip_why(t->base);
    case PKI_SAN_DNS:
    case PKI_SAN_URI:
        return pki_subtree_host_why(t->base);
    case PKI_SAN_EMAIL:
        return pki_subtree_email_why(t->base);
    case PKI_SAN_DIRECTORY:
        return pki_name_canon(a, t->base, "", &t->base, &e)
                   ? NULL
                   : "a malformed directory name";
    case PKI_SAN_OTHER:
    case PKI_SAN_X400:
    case PKI_SAN_EDI:
    case PKI_SAN_RID:
        return NULL;
    }
    return "a name of an unknown kind";
}

/* One list: [0] what is permitted, [1] what is excluded. NULL, or why not. */
static const char *
pki_subtrees_list(struct mem_arena *a, struct str in, bool excluded,
                  struct pki_subtrees *s)
{
    struct pki_tlv one, base;
    const char *why;
    struct err e;

    if (!in.n)
        return "an empty list";
    while (in.n) {
        struct pki_subtree *t = &s->v[s->n];

        if (s->n == PKI_SUBTREES_MAX)
            return "more than 256 names";
        if (!pki_take(&in, "", PKI_SEQUENCE, &one, &e) ||
            !pki_next(&one.body, "", &base, &e))
            return "a broken list";
        if (one.body.n)
            return "a minimum or maximum";
        *t = (struct pki_subtree){base.tag, excluded, base.body};
        why = pki_subtree_why(a, t);
        if (why)
            return why;
        s->n++;
    }
    return NULL;
}

/* NULL, or what it holds that it must not. */
static const char *
pki_subtrees_read(struct mem_arena *a, struct str ext, struct pki_subtrees *s)
{
    struct pki_tlv seq, list;
    const char *why = NULL;
    struct err e;

    s->n = 0;
    if (!pki_take(&ext, "", PKI_SEQUENCE, &seq, &e) || ext.n || !seq.body.n)
        return "nothing";
    for (unsigned i = 0; i < 2 && !why; i++)
        if (pki_at(seq.body, PKI_CONSTRUCTED + i))
            why = pki_next(&seq.body, "", &list, &e)
                      ? pki_subtrees_list(a, list.body, i == 1, s)
                      : "a broken list";
    return why ? why : seq.body.n ? "bytes after the end" : NULL;
}

/* PKI_UNCLEAR: nobody can say, so it is neither permitted nor kept out. */
enum pki_within { PKI_OUTSIDE, PKI_WITHIN, PKI_UNCLEAR };

static bool
pki_ends_with(struct str s, struct str end)
{
    return s.n >= end.n && str_eqi(str_from(s, s.n - end.n), end);
}

/* ".example.org" is what is below it; `exact`: "example.org" is only itself,
 * as for the hosts of URIs and email, and not what is below it, too. */
static bool
pki_host_within(struct str host, struct str base, bool exact)
{
    if (!base.n)
        return true;
    if (base.p[0] == '.')
        return host.n > base.n && pki_ends_with(host, base);
    if (str_eqi(host, base))
        return true;
    return !exact && host.n > base.n && pki_ends_with(host, base) &&
           host.p[host.n - base.n - 1] == '.';
}

/* "*.example.org" also stands for names that only a part of it is within: it
 * counts as kept out if any of them is. */
static enum pki_within
pki_dns_within(struct str name, const struct pki_subtree *t)
{
    struct str base = t->base;

    if (pki_host_within(name, base, false))
        return PKI_WITHIN;
    if (!t->excluded || !str_starts(name, S("*.")))
        return PKI_OUTSIDE;
    if (base.n && base.p[0] == '.')
        base = str_from(base, 1);
    return pki_host_within(base, str_from(name, 2), false) ? PKI_WITHIN
                                                           : PKI_OUTSIDE;
}

static enum pki_within
pki_email_within(struct str name, struct str base)
{
    const char *at = memchr(name.p, '@', name.n);
    struct str host = str_from(name, (size_t)(at - name.p) + 1), local, domain;

    if (memchr(host.p, '@', host.n))
        return PKI_UNCLEAR;
    if (!str_cut(base, '@', &local, &domain))
        return pki_host_within(host, base, true) ? PKI_WITHIN : PKI_OUTSIDE;
    name.n -= host.n + 1;
    return str_eq(name, local) && str_eqi(host, domain) ? PKI_WITHIN
                                                        : PKI_OUTSIDE;
}

/* A URI whose host is no name (an address, none at all, one that is encoded)
 * cannot be constrained, and is refused where there is a constraint. */
static enum pki_within
pki_uri_within(struct str uri, struct str base)
{
    struct str scheme, rest, host, tail;
    bool letter = false;

    if (!str_cut(uri, ':', &scheme, &rest) || !str_starts(rest, S("//")))
        return PKI_UNCLEAR;
    host = str_from(rest, 2);
    for (size_t i = 0; i < host.n; i++)
        if (strchr("/?#", host.p[i])) {
            host.n = i;
            break;
        }
    if (str_cut(host, '@', &tail, &rest))
        host = rest;
    if (str_cut(host, ':', &tail, &rest))
        host = tail;
    for (size_t i = 0; i < host.n; i++)
        letter |= isalpha(pki_byte(host, i)) != 0;
    if (!letter || pki_dns_why(host) || host.p[0] == '*')
        return PKI_UNCLEAR;
    return pki_host_within(host, base, true) ? PKI_WITHIN : PKI_OUTSIDE;
}

static enum pki_within
pki_ip_within(struct str ip, struct str base)
{
    if (base.n != 2 * ip.n)
        return PKI_OUTSIDE;
    for (size_t i = 0; i < ip.n; i++)
        if ((pki_byte(ip, i) ^ pki_byte(base, i)) & pki_byte(base, ip.n + i))
            return PKI_OUTSIDE;
    return PKI_WITHIN;
}

static enum pki_within
pki_name_within(const struct pki_general_name *n, const struct pki_subtree *t)
{
    switch (t->tag) {
    case PKI_SAN_DNS:
        return pki_dns_within(n->v, t);
    case PKI_SAN_EMAIL:
        return pki_email_within(n->v, t->base);
    case PKI_SAN_URI:
        return pki_uri_within(n->v, t->base);
    case PKI_SAN_IP:
        return pki_ip_within(n->v, t->base);
    case PKI_SAN_DIRECTORY:
        return str_starts(n->v, t->base) ? PKI_WITHIN : PKI_OUTSIDE;
    }
    return PKI_UNCLEAR;
}

static bool
pki_name_allowed(const struct pki_general_name *n, const struct pki_subtrees *s)
{
    bool limited = false, permitted = false;

    for (size_t i = 0; i < s->n; i++) {
        const struct pki_subtree *t = &s->v[i];
        enum pki_within w;

        if (t->tag != n->tag)
            continue;
        w = pki_name_within(n, t);
        if (w == PKI_UNCLEAR || (t->excluded && w == PKI_WITHIN))
            return false;
        limited |= !t->excluded;
        permitted |= !t->excluded && w == PKI_WITHIN;
    }
    return permitted || !limited;
}

static bool
pki_names_add(struct pki_names *names, unsigned tag, struct str v)
{
    if (names->n == PKI_NAMES_MAX)
        return false;
    names->v[names->n++] = (struct pki_general_name){tag, v};
    return true;
}

/* Names in the subject that stand where a SAN should: an email address, and,
 * where the leaf has no DNS name, a CN that reads like one. */
static bool
pki_names_subject(struct mem_arena *a, const struct pki_cert *c, bool dns,
                  struct pki_names *names, struct err *e)
{
    struct pki_name name;

    if (!pki_name_parse(a, c->subject, "subject", &name, e))
        return false;
    for (size_t i = 0; i < name.n; i++) {
        const struct pki_type *t = name.part[i].known;
        struct str v = name.part[i].text;
        bool full = false;

        if (t && strcmp(t->key, "emailAddress") == 0 && !pki_email_why(v))
            full = !pki_names_add(names, PKI_SAN_EMAIL, v);
        else if (t && dns && strcmp(t->key, "cn") == 0 && !pki_dns_why(v) &&
                 memchr(v.p, '.', v.n))
            full = !pki_names_add(names, PKI_SAN_DNS, v);
        if (full)
            return pki_bad(e, "subject", "too many names");
    }
    return true;
}

static bool
pki_names_read(struct mem_arena *a, const struct pki_cert *c, struct str canon,
               struct pki_names *names, struct err *e)
{
    struct str san = c->ext[PKI_EXT_SAN];
    struct pki_sans sans;
    struct pki_tlv seq, t;
    bool dns = false;

    names->n = 0;
    sans.uri.n = sans.dns.n = sans.ip.n = sans.email.n = 0;
    if (canon.n)
        pki_names_add(names, PKI_SAN_DIRECTORY, canon);
    if (san.p) {
        if (!pki_san_parse(a, san, &sans, e))
            return false;
        must(pki_take(&san, "", PKI_SEQUENCE, &seq, e));
        while (seq.body.n) {
            must(pki_next(&seq.body, "", &t, e));
            if (t.tag == PKI_SAN_DIRECTORY &&
                !pki_name_canon(a, t.body, "subjectAltName", &t.body, e))
                return false;
            must(pki_names_add(names, t.tag, t.body));
            dns |= t.tag == PKI_SAN_DNS;
        }
    }
    return pki_names_subject(a, c, !dns && !c->ca, names, e);
}

/* ---- anchors, and the certificates of a chain ---- */

/* A certificate with what path building asks for again and again. */
struct pki_link {
    struct pki_cert cert;
    struct str subject, issuer;    // canonical
    struct str key_id, issuer_id;  // n == 0: not there
    bool self_issued;
};

static bool
pki_link_key_ids(struct pki_link *l, struct err *e)
{
    struct str in = l->cert.ext[PKI_EXT_SKID];
    struct pki_tlv t, seq;

    if (in.p) {
        if (!pki_take(&in, "subjectKeyIdentifier", PKI_OCTETS, &t, e) ||
            !pki_end(in, "subjectKeyIdentifier", e))
            return false;
        l->key_id = t.body;
    }
    in = l->cert.ext[PKI_EXT_AKID];
    if (!in.p)
        return true;
    if (!pki_take(&in, "authorityKeyIdentifier", PKI_SEQUENCE, &seq, e) ||
        !pki_end(in, "authorityKeyIdentifier", e))
        return false;
    if (pki_at(seq.body, PKI_CONTEXT)) {
        if (!pki_next(&seq.body, "authorityKeyIdentifier", &t, e))
            return false;
        l->issuer_id = t.body;
    }
    return true;
}

static bool
pki_link_read(struct mem_arena *a, struct str der, struct pki_link *l,
              struct err *e)
{
    *l = (struct pki_link){0};
    if (!pki_cert_parse(der, &l->cert, e) || !pki_link_key_ids(l, e) ||
        !pki_name_canon(a, l->cert.subject, "subject", &l->subject, e) ||
        !pki_name_canon(a, l->cert.issuer, "issuer", &l->issuer, e))
        return false;
    l->self_issued = str_eq(l->subject, l->issuer);
    return true;
}

/* May a certificate of this kind issue others at all? NULL, or why not. What
 * depends on the path (time, length, names) is asked elsewhere. */
static const char *
pki_issuer_why(const struct pki_cert *c)
{
    struct pki_public k;

    if (c->version != 3 || !c->ca)
        return "it is no CA certificate (basicConstraints without CA): issue "
               "it as a CA";
    if (c->ext[PKI_EXT_KEY_USAGE].p && !(c->uses & PKI_USE_CERT_SIGN))
        return "its key usage lacks keyCertSign: issue it as a CA";
    if (c->unknown.p)
        return "it has a critical extension that we do not know";
    return pki_public_read(c->spki, &k);
}

/* The CAs that a listener, or an upstream, trusts. */
struct pki_anchors {
    struct mem_arena *arena;  // owned; this struct lies in it, too
    size_t n;
    struct pki_link *v;
    unsigned char hash[32];  // of their DER, in order
};

static void
pki_anchors_free(struct pki_anchors *t)
{
    if (t)
        mem_arena_free(t->arena);
}

/* "CN=Example CA": for messages, cut short. */
static void
pki_subject_text(const struct pki_cert *c, char *out, size_t size)
{
    struct mem_arena *a = mem_arena_new(PKI_ARENA_MAX);
    struct str dn = S("(subject unreadable)");
    struct pki_name name;
    struct err e;

    if (pki_name_parse(a, c->subject, "subject", &name, &e))
        dn = pki_dn(a, &name, true);
    snprintf(out, size, "%.*s", STR_FMT(dn));
    mem_arena_free(a);
}

static bool
pki_anchor_add(struct pki_anchors *t, struct str der, size_t i, struct err *e)
{
    struct pki_link *l = &t->v[t->n];
    struct pki_subtrees *s = mem_xmalloc(sizeof *s);
    char who[PKI_WHO_MAX];
    const char *why;

    for (size_t k = 0; k < t->n; k++)
        if (str_eq(t->v[k].cert.der, der)) {
            free(s);
            return true;
        }
    if (!pki_link_read(t->arena, der, l, e)) {
        free(s);
        e->kind = ERR_CONFIG;
        return err_prefix(e, "number %zu: ", i + 1);
    }
    why = pki_issuer_why(&l->cert);
    if (!why && l->cert.ext[PKI_EXT_CONSTRAINTS].p &&
        pki_subtrees_read(t->arena, l->cert.ext[PKI_EXT_CONSTRAINTS], s))
        why = "its name constraints are malformed";
    free(s);
    pki_subject_text(&l->cert, who, sizeof who);
    if (why)
        return err_set(e, ERR_CONFIG, "number %zu, %s: %s", i + 1, who, why);
    t->n++;
    return true;
}

/* The CA certificates of a PEM file. One that cannot be an anchor spoils it;
 * one that has expired does not (old and new stand in one file for a while).
 * The messages leave the file's name to the caller (err_prefix). */
static bool
pki_anchors_new(struct str pem, struct pki_anchors **out, struct err *e)
{
    struct mem_arena *a = mem_arena_new(PKI_ANCHORS_ARENA);
    struct pki_anchors *t = mem_alloc(a, sizeof *t);
    struct str *der;
    bool ok;
    size_t n;

    t->arena = a;
    ok = pki_pem_read(a, pem, "CERTIFICATE", &der, &n, e);
    if (ok) {
        t->v = mem_alloc(a, n * sizeof *t->v);
        for (size_t i = 0; ok && i < n; i++)
            ok = pki_anchor_add(t, der[i], i, e);
    }
    if (!ok) {
        pki_anchors_free(t);
        return false;
    }
    pki_cache_hash(S("anchors"), der, n, t->hash);
    *out = t;
    return true;
}

/* Sets of CAs that a policy calls by the name of their file (id.ca). */
struct pki_cas {
    size_t n;
    struct pki_ca {
        struct str name;
        struct pki_anchors *anchors;  // owned
    } * v;                            // owned
};

static void
pki_cas_free(struct pki_cas *s)
{
    for (size_t i = 0; i < s->n; i++)
        pki_anchors_free(s->v[i].anchors);
    free(s->v);
    *s = (struct pki_cas){0};
}

/* `name` must outlive the set; the PEM text need not. */
static bool
pki_cas_add(struct pki_cas *s, struct str name, struct str pem, struct err *e)
{
    struct pki_anchors *anchors;

    if (!pki_anchors_new(pem, &anchors, e))
        return err_prefix(e, "%.*s: ", STR_FMT(name));
    s->v = realloc(s->v, (s->n + 1) * sizeof *s->v);
    must(s->v != NULL);
    s->v[s->n++] = (struct pki_ca){name, anchors};
    return true;
}

static bool
pki_anchors_hold(const struct pki_anchors *t, struct str der)
{
    struct pki_cert c;
    struct err e;

    if (!pki_cert_parse(der, &c, &e))
        return false;
    for (size_t i = 0; i < t->n; i++)
        if (str_eq(t->v[i].cert.spki, c.spki) &&
            pki_name_equal(t->v[i].cert.subject, c.subject))
            return true;
    return false;
}

/* ---- the verdict on a chain ---- */

enum pki_role { PKI_CLIENT, PKI_SERVER };

/* What a chain must satisfy; the same for a listener's life. */
struct pki_rules {
    enum pki_role role;                 // what the leaf is to be used as
    const struct pki_anchors *anchors;  // borrowed
    bool eku_any;                       // extended key usages are not asked for
    unsigned depth;                     // certificates above the leaf, at most
    unsigned char hash[32];             // of all that
    const struct pki_cas *cas;          // borrowed; NULL: none
};

static void
pki_rules_init(struct pki_rules *r, enum pki_role role,
               const struct pki_anchors *anchors, bool eku_any, unsigned depth)
{
    char text[3] = {(char)role, (char)eku_any, (char)depth};
    struct str part = {(const char *)anchors->hash, sizeof anchors->hash};

    *r = (struct pki_rules){role, anchors, eku_any, depth, {0}, NULL};
    pki_cache_hash((struct str){text, sizeof text}, &part, 1, r->hash);
}

/* The path that was found: whom it goes through, and while it holds. */
struct pki_path {
    size_t n;
    struct str issuer[PKI_CHAIN_MAX];  // DER, the leaf's first, the anchor last
    int64_t from, until;
};

struct pki_search {
    const struct pki_rules *rules;
    int64_t now;
    struct mem_arena *arena;  // owned
    size_t links;             // [0] is the leaf
    struct pki_link link[PKI_CHAIN_MAX + 1];
    size_t n;  // of the path so far
    const struct pki_link *path[PKI_CHAIN_MAX + 1];
    unsigned work;  // signatures checked
    int rank;       // of `why`: how far the path had come that failed so
    struct err why;
};

/* Keeps the reason of the attempt that came furthest. `c` is the certificate
 * that the sentence is about; a leaf is "it". */
static bool
pki_fault(struct pki_search *s, int rank, const struct pki_cert *c,
          const char *why)
{
    char who[PKI_WHO_MAX];

    rank += (int)s->n * 4;
    if (rank <= s->rank)
        return false;
    s->rank = rank;
    if (c == &s->link[0].cert)
        return err_set(&s->why, ERR_TLS, "%s", why);
    pki_subject_text(c, who, sizeof who);
    return err_set(&s->why, ERR_TLS, "its issuer %s: %s", who, why);
}

/* What a parser said of `c`: "certificate: keyUsage: is empty". */
static bool
pki_malformed(struct pki_search *s, const struct pki_cert *c,
              const struct err *e)
{
    char why[sizeof e->msg];
    struct str head, rest, msg = str_of(e->msg);

    if (!str_cut(msg, ' ', &head, &rest))
        rest = msg;
    snprintf(why, sizeof why, "it is malformed: %.*s", STR_FMT(rest));
    return pki_fault(s, 3, c, why);
}

static const char *
pki_date_why(const struct pki_cert *c, int64_t now)
{
    if (now > c->not_after)
        return "it has expired: renew it, or set this machine's clock";
    if (now < c->not_before)
        return "it is not valid yet: set this machine's clock, or wait";
    return NULL;
}

/* Is the purpose among the extended key usages? A CA may say any; a leaf
 * that does says nothing. NULL, or why not. */
static const char *
pki_eku_why(const struct pki_cert *c, enum pki_role role, bool leaf)
{
    struct str in = c->ext[PKI_EXT_EKU], oid;
    struct pki_tlv seq;
    const char *name;
    struct err e;
    bool found = false;

    if (!in.p)
        return !leaf ? NULL
               : role == PKI_CLIENT
                   ? "it has no extended key usage: issue it with clientAuth"
                   : "it has no extended key usage: issue it with serverAuth";
    if (!pki_take(&in, "", PKI_SEQUENCE, &seq, &e) || in.n || !seq.body.n)
        return "its extended key usage is malformed";
    while (seq.body.n) {
        if (!pki_take_oid(&seq.body, "", &oid, &e))
            return "its extended key usage is malformed";
        name = PKI_KEY_NAME(pki_purposes, oid);
        found |= name && strcmp(name, role == PKI_CLIENT ? "clientAuth"
                                                         : "serverAuth") == 0;
        found |= name && !leaf && strcmp(name, "anyExtendedKeyUsage") == 0;
    }
    if (found)
        return NULL;
    return role == PKI_CLIENT
               ? "its extended key usage lacks clientAuth: issue it with "
                 "clientAuth"
               : "its extended key usage lacks serverAuth: issue it with "
                 "serverAuth";
}

static const char *
pki_leaf_san_why(struct mem_arena *a, const struct pki_cert *c,
                 enum pki_role role)
{
    struct pki_sans sans;
    struct err e;

    sans.uri.n = sans.dns.n = sans.ip.n = sans.email.n = 0;
    if (!c->ext[PKI_EXT_SAN].p ||
        !pki_san_parse(a, c->ext[PKI_EXT_SAN], &sans, &e))
        return NULL;  // pki_identity_parse() says what is wrong with it
    for (size_t i = 0; role == PKI_CLIENT && i < sans.dns.n; i++)
        if (sans.dns.v[i].p[0] == '*')
            return "it has a wildcard DNS name, which names no client";
    return NULL;
}

static const char *
pki_leaf_why(struct pki_search *s)
{
    const struct pki_cert *c = &s->link[0].cert;
    const char *why;
    struct pki_public k;

    if (c->version != 3)
        return "it is not of X.509 version 3";
    if (c->ca)
        return "it is a CA certificate: give the peer a certificate of its own";
    if (c->ext[PKI_EXT_KEY_USAGE].p && !(c->uses & PKI_USE_SIGN))
        return "its key usage does not allow digitalSignature";
    if (c->uses & PKI_USE_CERT_SIGN)
        return "its key usage allows keyCertSign, though it is no CA";
    if (c->ext[PKI_EXT_CONSTRAINTS].p)
        return "it has name constraints, though it is no CA";
    if (c->unknown.p)
        return "it has a critical extension that we do not know";
    why = pki_date_why(c, s->now);
    if (!why)
        why = pki_public_read(c->spki, &k);
    if (!why && !s->rules->eku_any)
        why = pki_eku_why(c, s->rules->role, true);
    return why ? why : pki_leaf_san_why(s->arena, c, s->rules->role);
}

/* All names below a CA must be within its constraints; those of certificates
 * that a CA issued to itself are its own, and so are not asked for. */
static bool
pki_path_names_below(struct pki_search *s, struct mem_arena *a, size_t at)
{
    struct pki_subtrees *t = mem_alloc(a, sizeof *t);
    struct pki_names *names = mem_alloc(a, sizeof *names);
    struct str ext = s->path[at]->cert.ext[PKI_EXT_CONSTRAINTS];

    if (pki_subtrees_read(a, ext, t))
        return pki_fault(s, 3, &s->path[at]->cert,
                         "its name constraints are malformed");
    for (size_t i = 0; i < at; i++) {
        const struct pki_link *l = s->path[i];
        struct err e;

        if (i != 0 && l->self_issued)
            continue;
        if (!pki_names_read(a, &l->cert, l->subject, names, &e))
            return pki_malformed(s, &l->cert, &e);
        for (size_t k = 0; k < names->n; k++)
            if (!pki_name_allowed(&names->v[k], t))
                return pki_fault(s, 3, &s->path[at]->cert,
                                 "its name constraints do not allow a name of "
                                 "what is below it: issue within them");
    }
    return true;
}

static bool
pki_path_names(struct pki_search *s)
{
    bool ok = true;

    for (size_t at = 1; ok && at < s->n; at++) {
        struct mem_arena *a;

        if (!s->path[at]->cert.ext[PKI_EXT_CONSTRAINTS].p)
            continue;
        a = mem_arena_new(PKI_VERIFY_ARENA);
        ok = pki_path_names_below(s, a, at);
        mem_arena_free(a);
    }
    return ok;
}

/* Intermediates below the next issuer count, but not those that a CA issued
 * to itself (RFC 5280 section 6.1.4 (l)). */
static bool
pki_path_fits(const struct pki_search *s, const struct pki_cert *issuer)
{
    int below = 0;

    for (size_t i = 1; i < s->n; i++)
        below += !s->path[i]->self_issued;
    return issuer->path_len < 0 || below <= issuer->path_len;
}

static bool
pki_path_holds(const struct pki_search *s, const struct pki_link *l)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->path[i] == l || (str_eq(s->path[i]->cert.spki, l->cert.spki) &&
                                str_eq(s->path[i]->subject, l->subject)))
            return true;
    return false;
}

/* Does the key identifier that `below` was issued with point at `l`? A hint,
 * not a rule (RFC 5280 section 4.2.1.1). */
static enum pki_within
pki_hint(const struct pki_link *below, const struct pki_link *l)
{
    if (!below->issuer_id.n || !l->key_id.n)
        return PKI_UNCLEAR;
    return str_eq(below->issuer_id, l->key_id) ? PKI_WITHIN : PKI_OUTSIDE;
}

/* Did `l` issue the last certificate of the path, and was it allowed to? */
static bool
pki_issuer_check(struct pki_search *s, const struct pki_link *l)
{
    const struct pki_cert *below = &s->path[s->n - 1]->cert;
    const char *why = pki_issuer_why(&l->cert);
    struct err e;

    if (!why)
        why = pki_date_why(&l->cert, s->now);
    if (!why && !s->rules->eku_any)
        why = pki_eku_why(&l->cert, s->rules->role, false);
    if (!why && !pki_path_fits(s, &l->cert))
        why = "its path length does not allow a chain as long as this";
    if (why)
        return pki_fault(s, 2, &l->cert, why);
    if (s->work == PKI_WORK_MAX)
        return pki_fault(s, 3, below,
                         "its chain takes too many signatures to check");
    s->work++;
    if (pki_signature_check(below->algorithm, below->tbs, below->signature,
                            l->cert.spki, &e))
        return true;
    if (pki_hint(s->path[s->n - 1], l) == PKI_OUTSIDE &&
        strcmp(e.msg, pki_other_key) == 0)
        return pki_fault(s, 1, below,
                         "a CA of its issuer's name is there, but with another "
                         "key: add the CA that issued it");
    return pki_fault(s, 1, below, e.msg);
}

static bool pki_path_extend(struct pki_search *s);

/* Tries `l` as the next issuer; the path stays as it was if it fails. */
static bool
pki_path_try(struct pki_search *s, const struct pki_link *l, bool anchor)
{
    if (!pki_issuer_check(s, l))
        return false;
    s->path[s->n++] = l;
    if (anchor ? pki_path_names(s) : pki_path_extend(s))
        return true;
    s->n--;
    return false;
}

/* Candidates that a key identifier speaks against come last, and anchors before
 * what the peer sent. */
static bool
pki_path_extend(struct pki_search *s)
{
    const struct pki_link *last = s->path[s->n - 1];
    const struct pki_anchors *t = s->rules->anchors;
    bool any = false;

    if (s->n > s->rules->depth)
        return pki_fault(s, 3, &last->cert, "its chain is too long");
    for (int round = 0; round < 4; round++) {
        bool anchor = !(round & 1);
        size_t n = anchor ? t->n : s->links;

        for (size_t i = anchor ? 0 : 1; i < n; i++) {
            const struct pki_link *l = anchor ? &t->v[i] : &s->link[i];
            bool against = pki_hint(last, l) == PKI_OUTSIDE;

            if (against != (round >= 2) || !str_eq(l->subject, last->issuer) ||
                pki_path_holds(s, l))
                continue;
            any = true;
            if (pki_path_try(s, l, anchor))
                return true;
        }
    }
    return !any && pki_fault(s, 0, &last->cert,
                             s->rules->role == PKI_CLIENT
                                 ? "no CA of client_ca issued it: add its CA "
                                   "to client_ca, or let the client send its "
                                   "intermediates"
                                 : "no CA of `ca` issued it: add its CA to "
                                   "`ca`, or let the server send its "
                                   "intermediates");
}

/* Do wolfSSL, whose handshake proves that the peer has the leaf's key, and we,
 * who decide on the leaf, read the same key out of it? */
static bool
pki_same_key(const struct pki_cert *c)
{
    byte key[PKI_CERT_MAX];
    word32 n = sizeof key;

    return wc_GetSubjectPubKeyInfoDerFromCert((const byte *)c->der.p,
                                              (word32)c->der.n, key, &n) == 0 &&
           str_eq(c->spki, (struct str){(const char *)key, n});
}

static void
pki_path_found(const struct pki_search *s, struct pki_path *p)
{
    p->n = s->n - 1;
    p->from = s->link[0].cert.not_before;
    p->until = s->link[0].cert.not_after;
    for (size_t i = 1; i < s->n; i++) {
        const struct pki_cert *c = &s->path[i]->cert;

        p->issuer[i - 1] = c->der;
        p->from = c->not_before > p->from ? c->not_before : p->from;
        p->until = c->not_after < p->until ? c->not_after : p->until;
    }
}

/* The leaf and what the peer sent with it, in any order. What cannot be read
 * among the latter is passed over: only those on the path count. */
static bool
pki_search_init(struct pki_search *s, struct str leaf,
                const struct str *presented, size_t n)
{
    struct err e;

    if (!pki_link_read(s->arena, leaf, &s->link[0], &e))
        return pki_malformed(s, &s->link[0].cert, &e);
    s->links = 1;
    for (size_t i = 0; i < n && s->links <= PKI_CHAIN_MAX; i++)
        s->links +=
            pki_link_read(s->arena, presented[i], &s->link[s->links], &e);
    s->path[s->n++] = &s->link[0];
    return true;
}

/* Does a path lead from the leaf to an anchor, by the rules of RFC 5280
 * section 6 and of ours? `presented` is what else the peer sent. The path's
 * slices are those of `presented` and of the anchors. */
static bool
pki_verify(const struct pki_rules *rules, struct str leaf,
           const struct str *presented, size_t n, int64_t now,
           struct pki_path *path, struct err *e)
{
    struct pki_search *s = mem_xcalloc(sizeof *s);
    const char *why;
    bool ok;

    s->rules = rules;
    s->now = now;
    s->rank = -1;
    s->arena = mem_arena_new(PKI_VERIFY_ARENA);
    ok = pki_search_init(s, leaf, presented, n);
    if (ok) {
        why = pki_leaf_why(s);
        ok = why ? pki_fault(s, 3, &s->link[0].cert, why) : pki_path_extend(s);
    }
    if (ok && !pki_same_key(&s->link[0].cert))
        ok = pki_fault(s, 100, &s->link[0].cert, "its key is malformed");
    if (ok)
        pki_path_found(s, path);
    else
        *e = s->why;
    mem_arena_free(s->arena);
    free(s);
    return ok;
}

/* Which of the sets that the policy names does the path go through? */
static void
pki_identity_cas(struct pki_identity *id, const struct pki_cas *cas)
{
    id->ca =
        (struct pki_strs){mem_alloc(id->arena, cas->n * sizeof *id->ca.v), 0};
    for (size_t i = 0; i < cas->n; i++)
        for (size_t k = 0; k < id->chain_n; k++)
            if (pki_anchors_hold(cas->v[i].anchors, id->chain[k])) {
                id->ca.v[id->ca.n++] = str_dup(id->arena, cas->v[i].name);
                break;
            }
}

/* Who holds this leaf, if the rules let it in? A chain that was seen before
 * costs one hash, while its certificates are in date. The caller owns one
 * reference. */
static bool
pki_cache_verify(struct pki_cache *c, const struct pki_rules *rules,
                 struct str leaf, const struct str *presented, size_t n,
                 int64_t now, struct pki_identity **out, struct err *e)
{
    struct str all[PKI_CHAIN_MAX + 1] = {leaf};
    struct pki_identity *id;
    struct pki_path path;
    unsigned char key[32];

    if (n > PKI_CHAIN_MAX)
        return err_set(e, ERR_TLS, "its chain is too long");
    for (size_t i = 0; i < n; i++)
        all[i + 1] = presented[i];
    pki_cache_hash((struct str){(const char *)rules->hash, 32}, all, n + 1,
                   key);
    id = pki_cache_find(c, key);
    if (id && now >= id->from && now <= id->until) {
        *out = pki_identity_ref(id);
        return true;
    }
    if (id)
        pki_cache_drop(c, id);
    if (!pki_verify(rules, leaf, presented, n, now, &path, e) ||
        !pki_identity_parse(leaf, path.issuer, path.n, &id, e))
        return false;
    id->from = path.from;
    id->until = path.until;
    if (rules->cas)
        pki_identity_cas(id, rules->cas);
    pki_cache_add(c, id, key);
    *out = id;
    return true;
}

/* ---- the DER writer ---- */

/* Begins a value; pki_close() with what this returns ends it and puts its
 * length in. The buffer is only ever added to. */
static size_t
pki_open(struct mem_buf *b, unsigned tag)
{
    char t = (char)tag;

    mem_buf_add(b, &t, 1);
    return b->n;
}

static void
pki_close(struct mem_buf *b, size_t start)
{
    size_t len = b->n - start, head = 1;
    char *p;

    must(b->off == 0);
    for (size_t rest = len; len >= 0x80 && rest; rest >>= 8)
        head++;
    (void)mem_buf_room(b, head);
    p = b->p + start;
    memmove(p + head, p, len);
    if (head == 1)
        p[0] = (char)len;
    else
        p[0] = (char)(0x80 | (head - 1));
    for (size_t i = head; i-- > 1; len >>= 8)
        p[i] = (char)(len & 0xff);
    b->n += head;
}

static void
pki_put(struct mem_buf *b, unsigned tag, struct str body)
{
    size_t at = pki_open(b, tag);

    mem_buf_add(b, body.p, body.n);
    pki_close(b, at);
}

static void
pki_put_small(struct mem_buf *b, char v)
{
    pki_put(b, PKI_INTEGER, (struct str){&v, 1});
}

/* A BIT STRING of whole bytes. */
static void
pki_put_bytes(struct mem_buf *b, struct str bytes)
{
    size_t at = pki_open(b, PKI_BITS);

    mem_buf_add(b, "", 1);
    mem_buf_add(b, bytes.p, bytes.n);
    pki_close(b, at);
}

/* UTCTime through 2049, GeneralizedTime after (RFC 5280 section 4.1.2.5). */
static void
pki_put_time(struct mem_buf *b, int64_t seconds)
{
    time_t t = (time_t)seconds;
    char text[64];
    struct tm tm;
    bool utc;

    must(gmtime_r(&t, &tm) != NULL && tm.tm_year >= 50 && tm.tm_year < 8100);
    utc = tm.tm_year < 150;
    must(strftime(text, sizeof text, utc ? "%y%m%d%H%M%SZ" : "%Y%m%d%H%M%SZ",
                  &tm) > 0);
    pki_put(b, utc ? PKI_UTC_TIME : PKI_TIME, str_of(text));
}

/* One part of a name, on its own level: SET { SEQUENCE { type, text } }. */
static void
pki_put_rdn(struct mem_buf *b, struct str type, struct str text)
{
    size_t set = pki_open(b, PKI_SET), pair = pki_open(b, PKI_SEQUENCE);

    pki_put(b, PKI_OID, type);
    pki_put(b, PKI_UTF8, text);
    pki_close(b, pair);
    pki_close(b, set);
}

static void
pki_put_ext(struct mem_buf *b, struct str oid, bool critical, struct str value)
{
    size_t at = pki_open(b, PKI_SEQUENCE);

    pki_put(b, PKI_OID, oid);
    if (critical)
        pki_put(b, PKI_BOOLEAN, S("\xff"));
    pki_put(b, PKI_OCTETS, value);
    pki_close(b, at);
}

static void
pki_put_pem(struct mem_arena *a, struct mem_buf *b, const char *label,
            struct str der)
{
    struct str text = str_b64(a, der);

    mem_buf_printf(b, "-----BEGIN %s-----\n", label);
    for (size_t i = 0; i < text.n; i += 64)
        mem_buf_printf(b, "%.*s\n", (int)(text.n - i < 64 ? text.n - i : 64),
                       text.p + i);
    mem_buf_printf(b, "-----END %s-----\n", label);
    explicit_bzero((char *)(uintptr_t)text.p, text.n);  // it may be a key
}

/* ---- keys: EC P-256 ---- */

enum { PKI_POINT = 65, PKI_SCALAR = 32, PKI_KEY_ID = 20 };

#define PKI_OID_EC S("\x2a\x86\x48\xce\x3d\x02\x01")
#define PKI_OID_P256 S("\x2a\x86\x48\xce\x3d\x03\x01\x07")
#define PKI_OID_ECDSA_SHA256 S("\x2a\x86\x48\xce\x3d\x04\x03\x02")

/* A private key and the randomness that its use needs. */
struct pki_key {
    WC_RNG rng;
    ecc_key ecc;
    unsigned char point[PKI_POINT];  // the public key, uncompressed
};

static bool
pki_key_init(struct pki_key *k, struct err *e)
{
    if (wc_InitRng(&k->rng) != 0)
        return err_set(e, ERR_CONFIG, "the kernel gives no random numbers");
    must(wc_ecc_init(&k->ecc) == 0);
    must(wc_ecc_set_rng(&k->ecc, &k->rng) == 0);
    return true;
}

static void
pki_key_fini(struct pki_key *k)
{
    wc_ecc_free(&k->ecc);
    wc_FreeRng(&k->rng);
}

static bool
pki_key_point(struct pki_key *k)
{
    word32 n = sizeof k->point;

    return wc_ecc_export_x963(&k->ecc, k->point, &n) == 0 && n == PKI_POINT;
}

static bool
pki_key_make(struct pki_key *k, struct err *e)
{
    int r = wc_ecc_make_key_ex(&k->rng, PKI_SCALAR, &k->ecc, ECC_SECP256R1);

    if (r != 0 || !pki_key_point(k))
        return err_set(e, ERR_CONFIG, "cannot make a key: %s",
                       wc_GetErrorString(r));
    return true;
}

/* From PKCS#8 or SEC1. The public half is made anew where it is missing. */
static bool
pki_key_load(struct pki_key *k, struct str der, struct err *e)
{
    word32 at = 0;
    int r;

    must(der.n <= UINT32_MAX);
    r = wc_EccPrivateKeyDecode((const byte *)der.p, &at, &k->ecc,
                               (word32)der.n);
    if (r != 0 || wc_ecc_get_curve_id(k->ecc.idx) != ECC_SECP256R1)
        return err_set(e, ERR_CONFIG,
                       "is not an EC P-256 private key, as gateway certs init "
                       "makes them");
    if (k->ecc.type == ECC_PRIVATEKEY_ONLY)
        r = wc_ecc_make_pub_ex(&k->ecc, NULL, &k->rng);
    if (r != 0 || wc_ecc_check_key(&k->ecc) != 0 || !pki_key_point(k))
        return err_set(e, ERR_CONFIG, "is not a valid private key");
    return true;
}

static struct str
pki_key_public(const struct pki_key *k)
{
    return (struct str){(const char *)k->point, PKI_POINT};
}

static void
pki_put_key_algorithm(struct mem_buf *b)
{
    size_t at = pki_open(b, PKI_SEQUENCE);

    pki_put(b, PKI_OID, PKI_OID_EC);
    pki_put(b, PKI_OID, PKI_OID_P256);
    pki_close(b, at);
}

/* PKCS#8 around the ECPrivateKey of RFC 5915, as PEM. */
static void
pki_key_pem(struct mem_arena *a, struct pki_key *k, struct mem_buf *pem)
{
    struct mem_buf b = {.p = mem_xmalloc(512), .cap = 512};  // never moves
    unsigned char d[PKI_SCALAR];
    word32 n = sizeof d;
    size_t outer, octets, key, point;

    must(wc_ecc_export_private_only(&k->ecc, d, &n) == 0 && n == sizeof d);
    outer = pki_open(&b, PKI_SEQUENCE);
    pki_put_small(&b, 0);
    pki_put_key_algorithm(&b);
    octets = pki_open(&b, PKI_OCTETS);
    key = pki_open(&b, PKI_SEQUENCE);
    pki_put_small(&b, 1);
    pki_put(&b, PKI_OCTETS, (struct str){(const char *)d, sizeof d});
    point = pki_open(&b, PKI_CONSTRUCTED + 1);
    pki_put_bytes(&b, pki_key_public(k));
    pki_close(&b, point);
    pki_close(&b, key);
    pki_close(&b, octets);
    pki_close(&b, outer);
    pki_put_pem(a, pem, "PRIVATE KEY", (struct str){b.p, b.n});
    explicit_bzero(b.p, b.n);
    explicit_bzero(d, sizeof d);
    mem_buf_free(&b);
}

/* ---- making certificates ---- */

/* What a certificate is to say. */
struct pki_order {
    struct mem_arena *a;  // borrowed; everything here lives in it or longer
    bool ca;
    const char *eku;   // a name of pki_purposes; NULL: no extension
    struct str o, cn;  // empty: left out
    struct str ou[PKI_ITEMS_MAX];
    size_t ou_n;
    struct pki_tlv san[PKI_ITEMS_MAX];  // tag and body
    size_t san_n;
    int64_t not_before, not_after;

    /* how the command line put it */
    const char *command;  // "init", "server" or "client"
    const char *dir, *name;
    int64_t days;     // 0: the default of the command
    int64_t now;      // Unix seconds
    bool force;       // overwrite
    bool date_given;  // --not-after: taken as it is
    bool help;
};

static void
pki_put_subject(struct mem_buf *b, const struct pki_order *o)
{
    size_t at = pki_open(b, PKI_SEQUENCE);

    if (o->o.n)
        pki_put_rdn(b, PKI_AT("\x0a"), o->o);
    for (size_t i = 0; i < o->ou_n; i++)
        pki_put_rdn(b, PKI_AT("\x0b"), o->ou[i]);
    if (o->cn.n)
        pki_put_rdn(b, PKI_AT("\x03"), o->cn);
    pki_close(b, at);
}

static void
pki_put_public(struct mem_buf *b, const struct pki_key *k)
{
    size_t at = pki_open(b, PKI_SEQUENCE);

    pki_put_key_algorithm(b);
    pki_put_bytes(b, pki_key_public(k));
    pki_close(b, at);
}

/* The key identifier: SHA-256 of the key, cut to 20 bytes (RFC 7093 2.1). */
static void
pki_key_id(const struct pki_key *k, char id[PKI_KEY_ID])
{
    unsigned char hash[32];

    pki_sha256(k->point, sizeof k->point, hash);
    memcpy(id, hash, PKI_KEY_ID);
}

static void
pki_put_basic(struct mem_buf *b, const struct pki_order *o)
{
    /* The CA of a development folder makes leaves and no CAs: path length 0 */
    struct str ca = S("\x30\x06\x01\x01\xff\x02\x01\x00"), leaf = S("\x30\x00");
    struct str sign = S("\x03\x02\x07\x80"), certs = S("\x03\x02\x01\x06");

    pki_put_ext(b, pki_ext_oids[PKI_EXT_BASIC], true, o->ca ? ca : leaf);
    pki_put_ext(b, pki_ext_oids[PKI_EXT_KEY_USAGE], true, o->ca ? certs : sign);
}

static void
pki_put_eku(struct mem_buf *b, const char *name)
{
    struct mem_buf v = {0};
    size_t at = pki_open(&v, PKI_SEQUENCE);

    for (size_t i = 0; i < sizeof pki_purposes / sizeof *pki_purposes; i++)
        if (strcmp(pki_purposes[i].name, name) == 0)
            pki_put(&v, PKI_OID, pki_purposes[i].oid);
    pki_close(&v, at);
    pki_put_ext(b, pki_ext_oids[PKI_EXT_EKU], false, (struct str){v.p, v.n});
    mem_buf_free(&v);
}

/* Critical where there is no subject (RFC 5280 section 4.2.1.6). */
static void
pki_put_san(struct mem_buf *b, const struct pki_order *o)
{
    struct mem_buf v = {0};
    size_t at = pki_open(&v, PKI_SEQUENCE);

    for (size_t i = 0; i < o->san_n; i++)
        pki_put(&v, o->san[i].tag, o->san[i].body);
    pki_close(&v, at);
    pki_put_ext(b, pki_ext_oids[PKI_EXT_SAN], !o->cn.n && !o->o.n && !o->ou_n,
                (struct str){v.p, v.n});
    mem_buf_free(&v);
}

static void
pki_put_key_ids(struct mem_buf *b, const struct pki_key *subject,
                const struct pki_key *issuer)
{
    struct mem_buf v = {0};
    char id[PKI_KEY_ID];
    size_t at;

    pki_key_id(subject, id);
    pki_put(&v, PKI_OCTETS, (struct str){id, sizeof id});
    pki_put_ext(b, pki_ext_oids[PKI_EXT_SKID], false, (struct str){v.p, v.n});
    v.n = 0;
    pki_key_id(issuer, id);
    at = pki_open(&v, PKI_SEQUENCE);
    pki_put(&v, PKI_CONTEXT, (struct str){id, sizeof id});
    pki_close(&v, at);
    pki_put_ext(b, pki_ext_oids[PKI_EXT_AKID], false, (struct str){v.p, v.n});
    mem_buf_free(&v);
}

static void
pki_put_extensions(struct mem_buf *b, const struct pki_order *o,
                   const struct pki_key *subject, const struct pki_key *issuer)
{
    size_t outer = pki_open(b, PKI_CONSTRUCTED + 3);
    size_t list = pki_open(b, PKI_SEQUENCE);

    pki_put_basic(b, o);
    if (o->eku)
        pki_put_eku(b, o->eku);
    if (o->san_n)
        pki_put_san(b, o);
    pki_put_key_ids(b, subject, issuer);
    pki_close(b, list);
    pki_close(b, outer);
}

static void
pki_put_sign_algorithm(struct mem_buf *b)
{
    size_t at = pki_open(b, PKI_SEQUENCE);

    pki_put(b, PKI_OID, PKI_OID_ECDSA_SHA256);
    pki_close(b, at);
}

/* TBSCertificate. `issuer_name` is a whole Name. */
static bool
pki_make_tbs(struct mem_buf *b, const struct pki_order *o,
             struct pki_key *subject, struct pki_key *issuer,
             struct str issuer_name, struct err *e)
{
    unsigned char serial[16];
    size_t tbs, at;

    if (wc_RNG_GenerateBlock(&issuer->rng, serial, sizeof serial) != 0)
        return err_set(e, ERR_CONFIG, "the kernel gives no random numbers");
    serial[0] = (serial[0] & 0x3f) | 0x40;  // positive, always 16 bytes
    tbs = pki_open(b, PKI_SEQUENCE);
    at = pki_open(b, PKI_CONSTRUCTED);
    pki_put_small(b, 2);  // version 3
    pki_close(b, at);
    pki_put(b, PKI_INTEGER, (struct str){(const char *)serial, sizeof serial});
    pki_put_sign_algorithm(b);
    mem_buf_add(b, issuer_name.p, issuer_name.n);
    at = pki_open(b, PKI_SEQUENCE);
    pki_put_time(b, o->not_before);
    pki_put_time(b, o->not_after);
    pki_close(b, at);
    pki_put_subject(b, o);
    pki_put_public(b, subject);
    pki_put_extensions(b, o, subject, issuer);
    pki_close(b, tbs);
    return true;
}

/* The certificate that `o` asks for, over `subject`'s key, signed by
 * `issuer`. An empty issuer_name: it signs itself. */
static bool
pki_make(const struct pki_order *o, struct pki_key *subject,
         struct pki_key *issuer, struct str issuer_name, struct mem_buf *out,
         struct err *e)
{
    struct mem_buf tbs = {0}, own = {0};
    unsigned char hash[32], sig[ECC_MAX_SIG_SIZE];
    word32 sig_n = sizeof sig;
    size_t at;
    bool ok;

    pki_put_subject(&own, o);
    ok = pki_make_tbs(&tbs, o, subject, issuer,
                      issuer_name.n ? issuer_name : (struct str){own.p, own.n},
                      e);
    if (ok) {
        pki_sha256(tbs.p, tbs.n, hash);
        ok = wc_ecc_sign_hash(hash, sizeof hash, sig, &sig_n, &issuer->rng,
                              &issuer->ecc) == 0 ||
             err_set(e, ERR_CONFIG, "the CA's key does not sign");
    }
    if (ok) {
        at = pki_open(out, PKI_SEQUENCE);
        mem_buf_add(out, tbs.p, tbs.n);
        pki_put_sign_algorithm(out);
        pki_put_bytes(out, (struct str){(const char *)sig, sig_n});
        pki_close(out, at);
    }
    mem_buf_free(&tbs);
    mem_buf_free(&own);
    return ok;
}

/* ---- files of `gateway certs` ---- */

enum { PKI_FILE_MAX = 1 << 20, PKI_NOREPLACE = 1 /* RENAME_NOREPLACE */ };

struct pki_file {
    const char *name;
    char tmp[128];  // "" until it is there
    mode_t mode;
    struct mem_buf text;  // owned
};

static bool
pki_file_read(struct mem_arena *a, int dir, const char *name, struct str *out,
              struct stat *st, struct err *e)
{
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char *p;
    ssize_t n = -1;

    if (fd < 0)
        return err_set(e, ERR_CONFIG, "%s%s", strerror(errno),
                       errno == ENOENT ? ": first make a CA there with "
                                         "gateway certs init"
                                       : "");
    if (fstat(fd, st) == 0 && S_ISREG(st->st_mode) &&
        st->st_size <= PKI_FILE_MAX) {
        p = mem_alloc_raw(a, (size_t)st->st_size + 1);
        n = read(fd, p, (size_t)st->st_size);
        *out = (struct str){p, n > 0 ? (size_t)n : 0};
    }
    close(fd);
    return n >= 0 || err_set(e, ERR_CONFIG, "is not a file of at most 1 MiB");
}

/* Nothing is overwritten unasked, and nothing follows a link. */
static bool
pki_file_absent(const struct pki_order *o, int dir, const char *name,
                struct err *e)
{
    struct stat st;

    if (o->force || fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return true;
    return err_set(e, ERR_CONFIG,
                   "%s/%s is there already: give --force to replace it, or "
                   "another %s",
                   o->dir, name, o->ca ? "folder" : "name");
}

static bool
pki_file_write(int dir, struct pki_file *f, struct err *e)
{
    const char *p = mem_buf_ptr(&f->text);
    size_t left = mem_buf_len(&f->text);
    bool ok = true;
    int fd;

    snprintf(f->tmp, sizeof f->tmp, ".%s.%ld.tmp", f->name, (long)getpid());
    fd = openat(dir, f->tmp,
                O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, f->mode);
    if (fd < 0) {
        err_set(e, ERR_CONFIG, "%s: %s", f->tmp, strerror(errno));
        f->tmp[0] = 0;
        return false;
    }
    while (ok && left) {
        ssize_t n = write(fd, p, left);

        ok = n > 0 || (n < 0 && errno == EINTR);
        if (n > 0) {
            p += n;
            left -= (size_t)n;
        }
    }
    ok = ok && fsync(fd) == 0;
    if (!ok)
        err_set(e, ERR_CONFIG, "%s: %s", f->tmp, strerror(errno));
    close(fd);
    return ok;
}

/* Gives the file its name. Where the file system knows no RENAME_NOREPLACE,
 * the look before the rename has to do. */
static bool
pki_file_rename(const struct pki_order *o, int dir, struct pki_file *f,
                struct err *e)
{
    unsigned flags = o->force ? 0 : PKI_NOREPLACE;
    long r = syscall(SYS_renameat2, dir, f->tmp, dir, f->name, flags);

    if (r != 0 && (errno == EINVAL || errno == ENOSYS)) {
        if (!pki_file_absent(o, dir, f->name, e))
            return false;
        r = renameat(dir, f->tmp, dir, f->name);
    }
    if (r != 0)
        return err_set(e, ERR_CONFIG, "%s/%s: %s", o->dir, f->name,
                       strerror(errno));
    f->tmp[0] = 0;
    return true;
}

/* Both files or neither: they are written under other names first. */
static bool
pki_files_write(const struct pki_order *o, int dir, struct pki_file f[2],
                struct err *e)
{
    bool ok = pki_file_absent(o, dir, f[0].name, e) &&
              pki_file_absent(o, dir, f[1].name, e);

    if (ok)
        ok = (pki_file_write(dir, &f[0], e) && pki_file_write(dir, &f[1], e)) ||
             err_prefix(e, "%s/", o->dir);
    ok = ok && pki_file_rename(o, dir, &f[0], e);
    if (ok && !pki_file_rename(o, dir, &f[1], e)) {
        ok = false;
        if (!o->force)
            unlinkat(dir, f[0].name, 0);
    }
    for (int i = 0; i < 2; i++)
        if (f[i].tmp[0])
            unlinkat(dir, f[i].tmp, 0);
    return ok;
}

static void
pki_date_text(int64_t seconds, char out[32])
{
    time_t t = (time_t)seconds;
    struct tm tm;

    must(gmtime_r(&t, &tm) && strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm));
}

/* Writes key and certificate, and says so. What was made is first read as a
 * peer would read it: names that no gateway accepts are not handed out. */
static bool
pki_certs_save(const struct pki_order *o, int dir, struct pki_key *key,
               struct mem_buf *der, struct err *e)
{
    struct str leaf = {der->p, der->n};
    struct pki_file f[2] = {{.mode = 0600}, {.mode = 0644}};
    struct pki_identity *id;
    char until[32];
    bool ok;

    if (!pki_identity_parse(leaf, NULL, 0, &id, e)) {
        e->kind = ERR_SYNTAX;
        return false;
    }
    f[0].name = mem_printf(o->a, "%s.key", o->name);
    f[1].name = mem_printf(o->a, "%s.crt", o->name);
    pki_key_pem(o->a, key, &f[0].text);
    pki_put_pem(o->a, &f[1].text, "CERTIFICATE", leaf);
    ok = pki_files_write(o, dir, f, e);
    if (ok) {
        pki_date_text(o->not_after, until);
        printf("wrote %s/%s  %.*s  until %s\n", o->dir, f[1].name,
               STR_FMT(id->dn), until);
        printf("wrote %s/%s  its private key: show it to nobody\n", o->dir,
               f[0].name);
    }
    explicit_bzero(f[0].text.p, f[0].text.n);
    mem_buf_free(&f[0].text);
    mem_buf_free(&f[1].text);
    pki_identity_put(id);
    return ok;
}

/* ---- gateway certs ---- */

static bool
pki_dir_open(const struct pki_order *o, bool make, int *dir, struct err *e)
{
    if (make && mkdir(o->dir, 0755) != 0 && errno != EEXIST)
        return err_set(e, ERR_CONFIG, "%s: cannot make this folder: %s", o->dir,
                       strerror(errno));
    *dir = open(o->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*dir >= 0)
        return true;
    return err_set(e, ERR_CONFIG, "%s: %s%s%s", o->dir, strerror(errno),
                   errno == ENOENT ? ": make a CA with: gateway certs init "
                                   : "",
                   errno == ENOENT ? o->dir : "");
}

/* not_before and not_after from the options and the clock. A little of the
 * past is included for peers whose clock is behind. */
static bool
pki_certs_dates(struct pki_order *o, struct err *e)
{
    int64_t days = o->days ? o->days : o->ca ? 3650 : 90;

    if (o->not_before == 0) {
        if (o->now < 1700000000)
            return err_set(e, ERR_CONFIG,
                           "this machine's clock is before 2023: set it first");
        o->not_before = o->now - 300;
        if (!o->date_given)
            o->not_after = o->now + days * 86400;
    } else if (!o->date_given) {
        o->not_after = o->not_before + days * 86400;
    }
    if (o->not_after < o->not_before)
        return err_set(e, ERR_SYNTAX,
                       "it would end before it begins: look at --not-before "
                       "and --not-after");
    return true;
}

static bool
pki_certs_init(struct pki_order *o, struct err *e)
{
    struct pki_key key;
    struct mem_buf der = {0};
    int dir = -1;
    bool ok;

    o->ca = true;
    o->name = "ca";
    if (!o->cn.n)
        o->cn = S("gateway development CA");
    if (!pki_certs_dates(o, e) || !pki_dir_open(o, true, &dir, e))
        return false;
    ok = pki_file_absent(o, dir, "ca.key", e) &&
         pki_file_absent(o, dir, "ca.crt", e) && pki_key_init(&key, e);
    if (ok) {
        ok = pki_key_make(&key, e) &&
             pki_make(o, &key, &key, (struct str){0}, &der, e) &&
             pki_certs_save(o, dir, &key, &der, e);
        pki_key_fini(&key);
    }
    if (ok)
        printf("next: gateway certs server %s localhost\n"
               "      gateway certs client %s alice --ou ops\n",
               o->dir, o->dir);
    mem_buf_free(&der);
    close(dir);
    return ok;
}

/* The CA of the folder: its certificate as slices of the arena, its key. */
static bool
pki_ca_load(struct pki_order *o, int dir, struct pki_cert *ca,
            struct pki_key *key, struct err *e)
{
    struct mem_buf b = {0};
    struct str text, *v;
    struct stat st;
    size_t n;
    bool ok;

    if (!pki_file_read(o->a, dir, "ca.crt", &text, &st, e) ||
        !pki_pem_read(o->a, text, "CERTIFICATE", &v, &n, e) ||
        !pki_cert_parse(v[0], ca, e))
        return err_prefix(e, "%s/ca.crt: ", o->dir);
    if (n != 1 || !ca->ca)
        return err_set(e, ERR_CONFIG,
                       "%s/ca.crt: is not the one certificate of a CA", o->dir);
    if (!pki_file_read(o->a, dir, "ca.key", &text, &st, e) ||
        !pki_pem_read(o->a, text,
                      memmem(text.p, text.n, "BEGIN EC", 8) ? "EC PRIVATE KEY"
                                                            : "PRIVATE KEY",
                      &v, &n, e) ||
        !pki_key_load(key, v[0], e))
        return err_prefix(e, "%s/ca.key: ", o->dir);
    if (st.st_mode & 077)
        fprintf(stderr, "warning: others can read %s/ca.key: chmod 600 it\n",
                o->dir);
    pki_put_public(&b, key);
    ok = str_eq(ca->spki, (struct str){b.p, b.n});
    mem_buf_free(&b);
    return ok || err_set(e, ERR_CONFIG,
                         "%s/ca.key: is not the key of ca.crt: put the right "
                         "one back, or begin anew with gateway certs init %s "
                         "--force",
                         o->dir, o->dir);
}

static bool
pki_order_san(struct pki_order *o, unsigned tag, struct str body, struct err *e)
{
    if (o->san_n == PKI_ITEMS_MAX)
        return err_set(e, ERR_SYNTAX, "more than %d names", PKI_ITEMS_MAX);
    o->san[o->san_n].tag = tag;
    o->san[o->san_n++].body = body;
    return true;
}

/* A server that was given no name is called as its files are. */
static bool
pki_certs_server_names(struct pki_order *o, struct err *e)
{
    const char *why = pki_dns_why(str_of(o->name));

    if (o->san_n)
        return true;
    if (why)
        return err_set(e, ERR_SYNTAX,
                       "\"%s\" is no DNS name: say with --dns or --ip how "
                       "clients call this server",
                       o->name);
    if (!pki_order_san(o, PKI_SAN_DNS, str_of(o->name), e))
        return false;
    if (strcmp(o->name, "localhost") != 0)
        return true;
    return pki_order_san(o, PKI_SAN_IP, S("\x7f\x00\x00\x01"), e) &&
           pki_order_san(o, PKI_SAN_IP, S("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1"),
                         e);
}

/* A leaf does not outlive its CA, unless a test wants just that. */
static bool
pki_certs_clip(struct pki_order *o, const struct pki_cert *ca, struct err *e)
{
    if (o->date_given || o->not_after <= ca->not_after)
        return true;
    if (o->not_before > ca->not_after)
        return err_set(e, ERR_CONFIG,
                       "%s/ca.crt: has expired: make a new one with "
                       "gateway certs init %s --force",
                       o->dir, o->dir);
    o->not_after = ca->not_after;
    return true;
}

static bool
pki_certs_leaf(struct pki_order *o, struct err *e)
{
    struct pki_key issuer, key;
    struct mem_buf der = {0};
    struct pki_cert ca = {0};
    int dir = -1;
    bool ok = false;

    if (!o->cn.n)
        o->cn = str_of(o->name);
    if ((o->command[0] == 's' && !pki_certs_server_names(o, e)) ||
        !pki_certs_dates(o, e) || !pki_dir_open(o, false, &dir, e))
        return false;
    if (!pki_key_init(&issuer, e))
        goto out;
    if (pki_key_init(&key, e)) {
        ok = pki_ca_load(o, dir, &ca, &issuer, e) &&
             pki_certs_clip(o, &ca, e) && pki_key_make(&key, e) &&
             pki_make(o, &key, &issuer, ca.subject, &der, e) &&
             pki_certs_save(o, dir, &key, &der, e);
        pki_key_fini(&key);
    }
    pki_key_fini(&issuer);
out:
    mem_buf_free(&der);
    close(dir);
    return ok;
}

/* ---- its command line ---- */

#define PKI_HELP_DATES                                                         \
    "  --days N            valid for N days from now (1 to 36500)\n"           \
    "  --not-before DATE   for tests: 2026-01-31 or 2026-01-31T12:00:00Z\n"    \
    "  --not-after DATE\n"                                                     \
    "  --force             replace files that are there already\n"             \
    "  --help              this text\n"

#define PKI_HELP_LEAF                                                          \
    "  --cn TEXT           common name, if not NAME\n"                         \
    "  --o TEXT            organization\n"                                     \
    "  --ou TEXT           organizational unit; may be repeated\n"             \
    "  --dns NAME          subject alternative names; may be repeated\n"       \
    "  --ip ADDRESS\n"                                                         \
    "  --uri URI\n"                                                            \
    "  --email ADDRESS\n"                                                      \
    "  --eku PURPOSE       clientAuth, serverAuth or none\n" PKI_HELP_DATES

static const char pki_help[] =
    "usage: gateway certs init|server|client DIR ...\n"
    "       gateway certs doctor CERT.pem --ca CA.pem\n"
    "\n"
    "A development CA in a folder: EC P-256 keys, no openssl needed.\n"
    "\n"
    "  gateway certs init DIR              a CA: DIR/ca.crt and DIR/ca.key\n"
    "  gateway certs server DIR NAME       a server: DIR/NAME.crt and .key\n"
    "  gateway certs client DIR NAME       a client: DIR/NAME.crt and .key\n"
    "\n"
    "  gateway certs doctor CERT.pem ...   would this client be accepted?\n"
    "\n"
    "Whoever reads ca.key can make certificates that the gateway trusts.\n"
    "Each command has --help.\n"
    "\n"
    "examples:\n"
    "  gateway certs init certs\n"
    "  gateway certs server certs localhost\n"
    "  gateway certs client certs alice --ou ops\n";

static const char pki_help_init[] =
    "usage: gateway certs init DIR [options]\n"
    "\n"
    "Makes a CA: DIR/ca.crt, and DIR/ca.key (mode 0600). DIR is made if it\n"
    "is not there. Valid for ten years if nothing else is said.\n"
    "\n"
    "  --name TEXT         what the CA is called\n" PKI_HELP_DATES "\n"
    "examples:\n"
    "  gateway certs init certs\n"
    "  gateway certs init certs --name \"Lab CA\" --days 365\n";

static const char pki_help_server[] =
    "usage: gateway certs server DIR NAME [options]\n"
    "\n"
    "Makes DIR/NAME.crt and DIR/NAME.key (mode 0600), signed by DIR/ca.key,\n"
    "valid for 90 days if nothing else is said. Without --dns and --ip the\n"
    "server is called NAME; localhost is 127.0.0.1 and ::1 too.\n"
    "\n" PKI_HELP_LEAF "\n"
    "examples:\n"
    "  gateway certs server certs localhost\n"
    "  gateway certs server certs server --dns gw.example.org --ip 10.0.0.7\n";

static const char pki_help_client[] =
    "usage: gateway certs client DIR NAME [options]\n"
    "\n"
    "Makes DIR/NAME.crt and DIR/NAME.key (mode 0600), signed by DIR/ca.key,\n"
    "valid for 90 days if nothing else is said.\n"
    "\n" PKI_HELP_LEAF "\n"
    "examples:\n"
    "  gateway certs client certs alice --ou ops --ou dev\n"
    "  gateway certs client certs cam1 \\\n"
    "      --uri spiffe://example.org/ns/eu/sa/camera\n"
    "  gateway certs client certs old --not-before 2020-01-01 "
    "--not-after 2020-12-31\n";

static const struct pki_command {
    const char *name, *help;
    bool (*run)(struct pki_order *, struct err *);
    const char *eku;
    int words;  // DIR, or DIR and NAME
} pki_commands[] = {
    {"init", pki_help_init, pki_certs_init, NULL, 1},
    {"server", pki_help_server, pki_certs_leaf, "serverAuth", 2},
    {"client", pki_help_client, pki_certs_leaf, "clientAuth", 2},
};

enum { PKI_OPT_LEAF_ONLY = 7 };  // how many options `init` does not have

static const struct option pki_options[] = {
    {"ou", 1, NULL, 'u'},
    {"dns", 1, NULL, 'D'},
    {"ip", 1, NULL, 'I'},
    {"uri", 1, NULL, 'U'},
    {"email", 1, NULL, 'E'},
    {"eku", 1, NULL, 'k'},
    {"cn", 1, NULL, 'c'},
    {"name", 1, NULL, 'c'},
    {"o", 1, NULL, 'o'},
    {"days", 1, NULL, 'd'},
    {"not-before", 1, NULL, 'b'},
    {"not-after", 1, NULL, 'a'},
    {"force", 0, NULL, 'f'},
    {"help", 0, NULL, 'h'},
    {0},
};

/* "2026-01-31" (its first second) or "2026-01-31T12:00:00Z". */
static bool
pki_date_parse(const char *s, int64_t *out)
{
    static const char form[] = "0000-00-00T00:00:00Z";
    int f[6] = {0};
    size_t n = strlen(s), k = 0;

    if (n != 10 && n != 20)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (form[i] != '0') {
            if (s[i] != form[i])
                return false;
            k++;
        } else if (s[i] < '0' || s[i] > '9') {
            return false;
        } else {
            f[k] = f[k] * 10 + (s[i] - '0');
        }
    }
    return f[0] >= 1950 && pki_seconds(f, out);
}

static bool
pki_option_date(const char *option, const char *s, int64_t *out, struct err *e)
{
    if (pki_date_parse(s, out) && *out != 0)
        return true;
    return err_set(e, ERR_SYNTAX,
                   "--%s \"%s\": write a date as 2026-01-31 or "
                   "2026-01-31T12:00:00Z",
                   option, s);
}

/* Text of a subject: X.520 allows 64 characters. */
static bool
pki_option_text(const char *option, const char *s, struct str *out,
                struct err *e)
{
    size_t chars = 0;

    *out = str_of(s);
    if (!str_utf8(*out) || pki_has_control(*out))
        return err_set(e, ERR_SYNTAX,
                       "--%s: is not UTF-8, or holds a control character",
                       option);
    for (size_t i = 0; i < out->n; i++)
        chars += (pki_byte(*out, i) & 0xc0) != 0x80;
    return (chars > 0 && chars <= 64) ||
           err_set(e, ERR_SYNTAX, "--%s \"%s\": must have 1 to 64 characters",
                   option, s);
}

static bool
pki_option_san(struct pki_order *o, int code, const char *s, struct err *e)
{
    struct str v = str_of(s);
    const char *why = NULL;
    unsigned tag = PKI_SAN_EMAIL;
    char ip[16];

    if (code == 'D') {
        tag = PKI_SAN_DNS;
        why = pki_dns_why(v);
    } else if (code == 'U') {
        tag = PKI_SAN_URI;
        why = pki_uri_why(v);
    } else if (code == 'I') {
        tag = PKI_SAN_IP;
        if (inet_pton(AF_INET, s, ip) == 1)
            v = str_dup(o->a, (struct str){ip, 4});
        else if (inet_pton(AF_INET6, s, ip) == 1)
            v = str_dup(o->a, (struct str){ip, 16});
        else
            why = "is no IPv4 or IPv6 address";
    } else {
        why = pki_email_why(v);
    }
    if (why)
        return err_set(e, ERR_SYNTAX, "\"%s\": %s", s, why);
    return pki_order_san(o, tag, v, e);
}

static bool
pki_option_eku(struct pki_order *o, const char *s, struct err *e)
{
    if (strcmp(s, "none") == 0)
        o->eku = NULL;
    else if (strcmp(s, "clientAuth") == 0)
        o->eku = "clientAuth";
    else if (strcmp(s, "serverAuth") == 0)
        o->eku = "serverAuth";
    else
        return err_set(e, ERR_SYNTAX,
                       "--eku \"%s\": write clientAuth, serverAuth or none", s);
    return true;
}

static bool
pki_option_days(struct pki_order *o, const char *s, struct err *e)
{
    uint64_t days;

    if (!str_u64(str_of(s), &days) || days < 1 || days > 36500)
        return err_set(e, ERR_SYNTAX, "--days \"%s\": write 1 to 36500", s);
    o->days = (int64_t)days;
    return true;
}

static bool
pki_option(struct pki_order *o, int code, const char *s, struct err *e)
{
    switch (code) {
    case 'u':
        if (o->ou_n == PKI_ITEMS_MAX / 2)
            return err_set(e, ERR_SYNTAX, "more than %d times --ou",
                           PKI_ITEMS_MAX / 2);
        return pki_option_text("ou", s, &o->ou[o->ou_n++], e);
    case 'c':
        return pki_option_text(o->command[0] == 'i' ? "name" : "cn", s, &o->cn,
                               e);
    case 'o':
        return pki_option_text("o", s, &o->o, e);
    case 'k':
        return pki_option_eku(o, s, e);
    case 'd':
        return pki_option_days(o, s, e);
    case 'b':
        return pki_option_date("not-before", s, &o->not_before, e);
    case 'a':
        o->date_given = true;
        return pki_option_date("not-after", s, &o->not_after, e);
    case 'f':
        return o->force = true;
    case 'h':
        return o->help = true;
    default:
        return pki_option_san(o, code, s, e);
    }
}

/* NAME becomes two file names: one plain word, and not the CA's. */
static bool
pki_name_ok(const char *s)
{
    size_t n = strlen(s);

    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)s[i]) && !strchr("._-", s[i]))
            return false;
    return n > 0 && n <= 64 && s[0] != '.' && s[0] != '-' &&
           strcmp(s, "ca") != 0;
}

static bool
pki_args(const struct pki_command *c, int argc, char **argv,
         struct pki_order *o, struct err *e)
{
    const struct option *options =
        pki_options + (c->words == 1 ? PKI_OPT_LEAF_ONLY : 0);
    int code;

    optind = 0;  // glibc and musl: begin anew
    opterr = 0;
    while ((code = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        if (code == ':')
            return err_set(e, ERR_SYNTAX, "%s needs a value", argv[optind - 1]);
        if (code == '?')
            return err_set(e, ERR_SYNTAX, "unknown option %s",
                           argv[optind - 1]);
        if (!pki_option(o, code, optarg, e))
            return false;
        if (o->help)
            return true;
    }
    if (argc - optind != c->words)
        return err_set(e, ERR_SYNTAX, "expected %s",
                       c->words == 1 ? "one folder" : "a folder and a name");
    o->dir = argv[optind];
    if (c->words == 1)
        return true;
    o->name = argv[optind + 1];
    return pki_name_ok(o->name) ||
           err_set(e, ERR_SYNTAX,
                   "NAME \"%s\": it names files, so write letters, digits, "
                   "'.', '-' and '_' (and not \"ca\"); --cn takes any text",
                   o->name);
}

static int
pki_command_run(const struct pki_command *c, int argc, char **argv)
{
    struct mem_arena *a = mem_arena_new(8u << 20);
    struct pki_order *o = mem_alloc(a, sizeof *o);
    struct err e;
    bool ok;

    o->a = a;
    o->command = c->name;
    o->eku = c->eku;
    o->now = time(NULL);
    must(wolfCrypt_Init() == 0);
    ok = pki_args(c, argc, argv, o, &e);
    if (ok && o->help)
        fputs(c->help, stdout);
    else if (ok)
        ok = c->run(o, &e);
    if (!ok)
        fprintf(stderr, "gateway certs %s: %s\n%s%s%s", c->name, e.msg,
                e.kind == ERR_SYNTAX ? "try: gateway certs " : "",
                e.kind == ERR_SYNTAX ? c->name : "",
                e.kind == ERR_SYNTAX ? " --help\n" : "");
    mem_arena_free(a);
    return ok ? 0 : e.kind == ERR_SYNTAX ? 2 : 1;
}

/* ---- gateway certs doctor ---- */

static const char pki_help_doctor[] =
    "usage: gateway certs doctor CERT.pem --ca CA.pem [options]\n"
    "\n"
    "Would a listener whose client_ca is CA.pem accept this client, and if\n"
    "not, why? CERT.pem holds the client's certificate first, and then what\n"
    "the client sends with it. Exit code 0: accepted, 1: refused.\n"
    "\n"
    "  --ca FILE           the CAs that are trusted; may be repeated\n"
    "  --eku any           as `eku = \"any\"` of a listener\n"
    "  --depth N           as `depth` of a listener (1 to 9)\n"
    "  --server            judge a server's certificate, as an upstream's is\n"
    "  --at DATE           at another time: 2026-01-31 or "
    "2026-01-31T12:00:00Z\n"
    "  --help              this text\n"
    "\n"
    "examples:\n"
    "  gateway certs doctor alice.crt --ca certs/ca.crt\n"
    "  gateway certs doctor alice.crt --ca certs/ca.crt --at 2027-06-01\n";

static const struct option pki_doctor_options[] = {
    {"ca", 1, NULL, 'C'},
    {"eku", 1, NULL, 'k'},
    {"depth", 1, NULL, 'd'},
    {"server", 0, NULL, 's'},
    {"at", 1, NULL, 'a'},
    {"help", 0, NULL, 'h'},
    {0},
};

struct pki_doctor {
    struct mem_arena *a;
    const char *file;   // CERT.pem
    struct mem_buf ca;  // owned: all of --ca
    enum pki_role role;
    bool eku_any, help;
    uint64_t depth;
    int64_t at;
};

static bool
pki_doctor_file(struct pki_doctor *d, const char *file, struct str *out,
                struct err *e)
{
    struct stat st;
    int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return err_set(e, ERR_CONFIG, "%s: %s", file, strerror(errno));
    close(fd);
    return pki_file_read(d->a, AT_FDCWD, file, out, &st, e) ||
           err_prefix(e, "%s: ", file);
}

static bool
pki_doctor_option(struct pki_doctor *d, int code, const char *s, struct err *e)
{
    struct str text;

    switch (code) {
    case 'C':
        if (!pki_doctor_file(d, s, &text, e))
            return false;
        mem_buf_add(&d->ca, text.p, text.n);
        mem_buf_add(&d->ca, "\n", 1);
        return true;
    case 'k':
        d->eku_any = strcmp(s, "any") == 0;
        return d->eku_any || strcmp(s, "clientAuth") == 0 ||
               err_set(e, ERR_SYNTAX, "--eku \"%s\": write clientAuth or any",
                       s);
    case 'd':
        return (str_u64(str_of(s), &d->depth) && d->depth >= 1 &&
                d->depth <= PKI_CHAIN_MAX) ||
               err_set(e, ERR_SYNTAX, "--depth \"%s\": write 1 to 9", s);
    case 's':
        d->role = PKI_SERVER;
        return true;
    case 'a':
        return pki_option_date("at", s, &d->at, e);
    default:
        return d->help = true;
    }
}

static bool
pki_doctor_args(struct pki_doctor *d, int argc, char **argv, struct err *e)
{
    int code;

    optind = 0;
    opterr = 0;
    while ((code = getopt_long(argc, argv, ":h", pki_doctor_options, NULL)) !=
           -1) {
        if (code == ':' || code == '?')
            return err_set(e, ERR_SYNTAX,
                           code == ':' ? "%s needs a value"
                                       : "unknown option %s",
                           argv[optind - 1]);
        if (!pki_doctor_option(d, code, optarg, e))
            return false;
        if (d->help)
            return true;
    }
    if (argc - optind != 1 || !mem_buf_len(&d->ca))
        return err_set(e, ERR_SYNTAX, "expected CERT.pem and --ca CA.pem");
    d->file = argv[optind];
    return true;
}

/* False with ERR_TLS: refused. */
static bool
pki_doctor_ask(struct pki_doctor *d, struct pki_identity **id, struct err *e)
{
    struct str pem, *der, ca = {mem_buf_ptr(&d->ca), mem_buf_len(&d->ca)};
    struct pki_anchors *anchors = NULL;
    struct pki_rules rules;
    struct pki_path path;
    size_t n;
    bool ok;

    if (!pki_anchors_new(ca, &anchors, e))
        return err_prefix(e, "--ca: ");
    pki_rules_init(&rules, d->role, anchors, d->eku_any, (unsigned)d->depth);
    ok = pki_doctor_file(d, d->file, &pem, e) &&
         (pki_pem_read(d->a, pem, "CERTIFICATE", &der, &n, e) ||
          err_prefix(e, "%s: ", d->file)) &&
         (n <= PKI_CHAIN_MAX || err_set(e, ERR_TLS, "its chain is too long")) &&
         pki_verify(&rules, der[0], der + 1, n - 1, d->at, &path, e) &&
         pki_identity_parse(der[0], path.issuer, path.n, id, e);
    if (ok) {
        (*id)->from = path.from;
        (*id)->until = path.until;
    }
    pki_anchors_free(anchors);
    return ok;
}

static int
pki_doctor_run(struct pki_doctor *d)
{
    struct pki_identity *id;
    char until[32];
    struct err e;

    if (!pki_doctor_ask(d, &id, &e)) {
        if (e.kind != ERR_TLS) {
            fprintf(stderr, "gateway certs doctor: %s\n", e.msg);
            return 2;
        }
        printf("refused: %s\n", e.msg);
        return 1;
    }
    pki_date_text(id->until, until);
    printf("accepted: %.*s, issued by %.*s, until %s\n", STR_FMT(id->dn),
           STR_FMT(id->issuer_dn), until);
    pki_identity_put(id);
    return 0;
}

/* argv[0] is "doctor". Returns the exit code. */
static int
pki_doctor(int argc, char **argv)
{
    struct pki_doctor d = {.a = mem_arena_new(PKI_ANCHORS_ARENA),
                           .depth = PKI_CHAIN_MAX,
                           .at = time(NULL)};
    struct err e;
    int code = 0;

    must(wolfCrypt_Init() == 0);
    if (!pki_doctor_args(&d, argc, argv, &e)) {
        fprintf(stderr,
                "gateway certs doctor: %s\ntry: gateway certs doctor --help\n",
                e.msg);
        code = 2;
    } else if (d.help) {
        fputs(pki_help_doctor, stdout);
    } else {
        code = pki_doctor_run(&d);
    }
    mem_buf_free(&d.ca);
    mem_arena_free(d.a);
    return code;
}

/* `gateway certs …`: argv[0] is "certs". Returns the exit code. */
static int
pki_command(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";

    for (size_t i = 0; i < sizeof pki_commands / sizeof *pki_commands; i++)
        if (strcmp(pki_commands[i].name, name) == 0)
            return pki_command_run(&pki_commands[i], argc - 1, argv + 1);
    if (strcmp(name, "doctor") == 0)
        return pki_doctor(argc - 1, argv + 1);
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        fputs(pki_help, stdout);
        return 0;
    }
    fprintf(stderr, "gateway certs: %s%s\n%s",
            argc > 1 ? "no such command: " : "say which command", name,
            pki_help);
    return 2;
}

/* ==== 15 tls: wolfSSL over two buffers ======================================
 *
 * Sans-I/O: ciphertext in by tls_feed(), ciphertext out by tls_ops.on_cipher.
 * Mutual TLS 1.3 and 1.2 (ECDHE with AEAD): a client certificate is demanded,
 * and the identity is read from the DER that the verify callback sees, so that
 * wolfSSL need not keep it (KEEP_PEER_CERT costs 20 KB a connection).
 *
 * wolfSSL keeps the intermediates that clients send as if they were its own,
 * and so one client's chain would complete another's: they are unloaded after
 * each step of a handshake that saw certificates.
 *
 * Owner   conn makes and frees a struct tls; work a struct tls_ctx.
 * Down    wolfSSL pki        Up  struct tls_ops
 * Entry   tls_ctx_new  tls_new  tls_feed  tls_write  tls_bye
 */
enum {
    TLS_MAGIC = 0x746c7321,
    TLS_PLAIN = 64 << 10,     // what one call of on_plain() gets at most
    TLS_DEPTH_MAX = 9,        // certificates in a chain
    TLS_CERT_MAX = 16 << 10,  // bytes of one certificate
    TLS_LEAF_TEXT = 256,      // of a refused leaf in the log
};

struct tls_ops {
    void (*on_cipher)(void *, const char *, size_t);  // send this
    void (*on_open)(void *);                          // identity is known
    void (*on_plain)(void *, const char *, size_t);
};

/* What the sessions of one listener share. */
struct tls_ctx {
    WOLFSSL_CTX *ctx;             // owned
    struct pki_anchors *anchors;  // owned
    struct pki_rules rules;
    struct pki_cache *cache;  // borrowed
    char *plain;              // owned: scratch for one tls_feed() at a time
};

enum tls_state { TLS_HANDSHAKE, TLS_OPEN, TLS_PEER_CLOSED, TLS_BROKEN };

struct tls {
    unsigned magic;
    enum tls_state state;
    WOLFSSL *ssl;                   // owned
    const struct tls_ctx *ctx;      // borrowed
    const struct tls_ops *ops;      // borrowed
    void *data;                     // borrowed: the conn
    struct str in;                  // what is left of the bytes being fed
    bool saw_certs;                 // intermediates may have been loaded
    bool bad_cert, no_cert;         // why the handshake failed
    struct pki_identity *identity;  // a reference; NULL before the handshake
    char *leaf;    // owned: the leaf for the log, if it was refused
    char *reason;  // owned: why, and the mend
};

static const char tls_ciphers[] =
    "TLS13-AES128-GCM-SHA256:TLS13-AES256-GCM-SHA384:"
    "TLS13-CHACHA20-POLY1305-SHA256:"
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";

/* Why wolfSSL cannot go on with a leaf. */
static const char *
tls_cert_reason(int code)
{
    switch (code) {
    case ASN_CRIT_EXT_E:
        return "it has a critical extension that we do not know";
    case RSA_KEY_SIZE_E:
    case ECC_KEY_SIZE_E:
        return "its key is too small: use RSA 2048, P-256 or larger";
    }
    return "it is malformed";
}

static bool
tls_refuse(struct tls *t, const char *why)
{
    t->bad_cert = true;
    free(t->reason);
    t->reason = strdup(why);
    return false;
}

static const struct WOLFSSL_BUFFER_INFO *
tls_cert_at(const WOLFSSL_X509_STORE_CTX *store, int i)
{
    return &store->certs[i];
}

static struct str
tls_cert_str(const WOLFSSL_X509_STORE_CTX *store, int i)
{
    const struct WOLFSSL_BUFFER_INFO *b = tls_cert_at(store, i);

    return (struct str){(const char *)b->buffer, b->length};
}

/* Errors of wolfSSL's own verdict on the chain, which does not count. Any other
 * one leaves its session without a key to prove, or without a whole leaf. */
static bool
tls_is_opinion(int code)
{
    switch (code) {
    case 0:
    case ASN_NO_SIGNER_E:
    case ASN_SELF_SIGNED_E:
    case ASN_AFTER_DATE_E:
    case ASN_BEFORE_DATE_E:
    case ASN_SIG_CONFIRM_E:
    case ASN_SIG_HASH_E:
    case ASN_SIG_KEY_E:
    case ASN_SIG_OID_E:
    case ASN_NAME_INVALID_E:
    case ASN_PATHLEN_SIZE_E:
    case ASN_PATHLEN_INV_E:
    case ASN_VERSION_E:
    case EXTKEYUSE_AUTH_E:
    case KEYUSE_SIGNATURE_E:
        return true;
    }
    return false;
}

/* The leaf, and what came with it: who is it, and may it come in? */
static bool
tls_on_leaf(struct tls *t, const WOLFSSL_X509_STORE_CTX *store)
{
    struct str chain[TLS_DEPTH_MAX];
    int64_t now = pki_now(time(NULL));
    struct err e;
    size_t n = 0;

    if (store->totalCerts < 1 || store->totalCerts > TLS_DEPTH_MAX)
        return tls_refuse(t, "its chain is too long");
    if (!tls_is_opinion(store->error))
        return tls_refuse(t, tls_cert_reason(store->error));
    for (int i = 1; i < store->totalCerts; i++)
        chain[n++] = tls_cert_str(store, i);
    pki_identity_put(t->identity);
    t->identity = NULL;
    if (now < 0)
        return tls_refuse(t, "this machine's clock is not set, so nobody knows "
                             "whether it has expired: set the clock");
    if (!pki_cache_verify(t->ctx->cache, &t->ctx->rules, tls_cert_str(store, 0),
                          chain, n, now, &t->identity, &e))
        return tls_refuse(t, e.msg);
    return true;
}

/* wolfSSL asks for each certificate it has doubts about, and always for the
 * leaf, at depth 0, last. pki_ decides, once the leaf is there. */
static int
tls_on_verify(int good, WOLFSSL_X509_STORE_CTX *store)
{
    struct tls *t = OBJ(struct tls, TLS, store->userCtx);

    (void)good;
    t->saw_certs = true;
    if (store->error_depth != 0 || tls_on_leaf(t, store))
        return 1;
    if (store->totalCerts > 0 && !t->leaf) {
        t->leaf = mem_xmalloc(TLS_LEAF_TEXT);
        pki_describe(tls_cert_str(store, 0), t->leaf, TLS_LEAF_TEXT);
    }
    return 0;
}

static int
tls_on_recv(WOLFSSL *ssl, char *buf, int n, void *data)
{
    struct tls *t = OBJ(struct tls, TLS, data);
    size_t take = t->in.n < (size_t)n ? t->in.n : (size_t)n;

    (void)ssl;
    if (!take)
        return WOLFSSL_CBIO_ERR_WANT_READ;
    memcpy(buf, t->in.p, take);
    t->in = str_from(t->in, take);
    return (int)take;
}

static int
tls_on_send(WOLFSSL *ssl, char *buf, int n, void *data)
{
    struct tls *t = OBJ(struct tls, TLS, data);

    (void)ssl;
    t->ops->on_cipher(t->data, buf, (size_t)n);
    return n;
}

static void
tls_ctx_free(struct tls_ctx *c)
{
    if (!c)
        return;
    wolfSSL_CTX_free(c->ctx);
    pki_anchors_free(c->anchors);
    free(c->plain);
    free(c);
}

static bool
tls_ctx_load(WOLFSSL_CTX *ctx, const struct boot_listener *files, struct err *e)
{
    const unsigned char *cert = (const unsigned char *)files->certificate.p;
    const unsigned char *key = (const unsigned char *)files->key.p;
    int rc;

    rc = wolfSSL_CTX_use_certificate_chain_buffer(ctx, cert,
                                                  (long)files->certificate.n);
    if (rc != WOLFSSL_SUCCESS)
        return err_set(e, ERR_CONFIG,
                       "certificate: not usable (%s): give a PEM file with the "
                       "server's certificate first",
                       wolfSSL_ERR_reason_error_string((unsigned long)rc));
    rc = wolfSSL_CTX_use_PrivateKey_buffer(ctx, key, (long)files->key.n,
                                           WOLFSSL_FILETYPE_PEM);
    if (rc != WOLFSSL_SUCCESS)
        return err_set(e, ERR_CONFIG,
                       "key: not usable (%s): give the PEM private key, not "
                       "encrypted, of `certificate`",
                       wolfSSL_ERR_reason_error_string((unsigned long)rc));
    if (wolfSSL_CTX_check_private_key(ctx) != WOLFSSL_SUCCESS)
        return err_set(e, ERR_CONFIG,
                       "key: it does not belong to `certificate`");
    return true;
}

/* `files` are the listener's PEM texts; wolfSSL copies what it needs, and is
 * told of no CA: pki_ knows them. */
static struct tls_ctx *
tls_ctx_new(const struct cfg_listener *cfg, const struct boot_listener *files,
            struct pki_cache *cache, const struct pki_cas *cas, struct err *e)
{
    struct tls_ctx *c = mem_xcalloc(sizeof *c);

    c->cache = cache;
    c->ctx = wolfSSL_CTX_new(wolfSSLv23_server_method());
    must(c->ctx != NULL);
    must(wolfSSL_CTX_SetMinVersion(c->ctx, WOLFSSL_TLSV1_2) == WOLFSSL_SUCCESS);
    must(wolfSSL_CTX_set_cipher_list(c->ctx, tls_ciphers) == WOLFSSL_SUCCESS);
    wolfSSL_CTX_set_verify(
        c->ctx, WOLFSSL_VERIFY_PEER | WOLFSSL_VERIFY_FAIL_IF_NO_PEER_CERT,
        tls_on_verify);
    wolfSSL_CTX_set_session_cache_mode(c->ctx, WOLFSSL_SESS_CACHE_OFF);
    must(wolfSSL_CTX_NoTicketTLSv12(c->ctx) == WOLFSSL_SUCCESS);
    must(wolfSSL_CTX_no_ticket_TLSv13(c->ctx) == 0);
    wolfSSL_CTX_SetIORecv(c->ctx, tls_on_recv);
    wolfSSL_CTX_SetIOSend(c->ctx, tls_on_send);
    if (!pki_anchors_new(files->client_ca, &c->anchors, e)) {
        err_prefix(e, "client_ca: ");
        tls_ctx_free(c);
        return NULL;
    }
    if (!tls_ctx_load(c->ctx, files, e)) {
        tls_ctx_free(c);
        return NULL;
    }
    pki_rules_init(&c->rules, PKI_CLIENT, c->anchors, cfg->eku_any, cfg->depth);
    c->rules.cas = cas;
    c->plain = mem_xmalloc(TLS_PLAIN);
    return c;
}

/* Would this listener's certificate, key and client_ca be usable? */
static bool
tls_check(const struct cfg_listener *cfg, const struct boot_listener *files,
          struct err *e)
{
    struct tls_ctx *c = tls_ctx_new(cfg, files, NULL, NULL, e);

    tls_ctx_free(c);
    return c != NULL;
}

static struct tls *
tls_new(const struct tls_ctx *ctx, const struct tls_ops *ops, void *data)
{
    static char alpn[] = "http/1.1";
    struct tls *t = obj_new(sizeof *t, TLS_MAGIC);

    t->ctx = ctx;
    t->ops = ops;
    t->data = data;
    t->ssl = wolfSSL_new(ctx->ctx);
    must(t->ssl != NULL);
    wolfSSL_SetIOReadCtx(t->ssl, t);
    wolfSSL_SetIOWriteCtx(t->ssl, t);
    wolfSSL_SetCertCbCtx(t->ssl, t);
    must(wolfSSL_UseALPN(t->ssl, alpn, sizeof alpn - 1,
                         WOLFSSL_ALPN_FAILED_ON_MISMATCH) == WOLFSSL_SUCCESS);
    return t;
}

static void
tls_free(struct tls *t)
{
    if (!t)
        return;
    wolfSSL_free(t->ssl);
    pki_identity_put(t->identity);
    free(t->leaf);
    free(t->reason);
    obj_free(t);
}

/* Turns wolfSSL's last result into an error; the session is over. */
static bool
tls_fail(struct tls *t, int rc, struct err *e)
{
    int code = wolfSSL_get_error(t->ssl, rc);
    char text[WOLFSSL_MAX_ERROR_SZ];

    t->state = TLS_BROKEN;
    if (t->bad_cert)
        return err_set(e, ERR_TLS, "client certificate refused: %s", t->reason);
    t->no_cert = code == NO_PEER_CERT;
    if (t->no_cert)
        return err_set(e, ERR_TLS, "the client sent no certificate");
    if (code == UNKNOWN_RECORD_TYPE)
        return err_set(e, ERR_TLS, "this is not TLS: plain HTTP, perhaps");
    wolfSSL_ERR_error_string_n((unsigned long)code, text, sizeof text);
    return err_set(e, ERR_TLS,
                   "%s (it may be the client that refused our certificate)",
                   text);
}

/* False with e->kind ERR_KINDS: more bytes are needed. */
static bool
tls_handshake(struct tls *t, struct err *e)
{
    int rc = wolfSSL_accept(t->ssl);

    if (t->saw_certs) {
        wolfSSL_CertManagerUnloadIntermediateCerts(
            wolfSSL_CTX_GetCertManager(t->ctx->ctx));
        t->saw_certs = false;
    }
    if (rc == WOLFSSL_SUCCESS) {
        // both hold by construction; a handshake without them must not pass
        if (!t->identity || t->bad_cert)
            return err_set(e, ERR_TLS, "no client certificate was verified");
        t->state = TLS_OPEN;
        t->ops->on_open(t->data);
        return true;
    }
    if (wolfSSL_get_error(t->ssl, rc) == WOLFSSL_ERROR_WANT_READ) {
        e->kind = ERR_KINDS;
        return false;
    }
    return tls_fail(t, rc, e);
}

/* Fills the scratch buffer with what can be decrypted now. False: the peer
 * closed or broke the session. */
static bool
tls_decrypt(struct tls *t, size_t *n, struct err *e)
{
    int rc;

    for (*n = 0; *n < TLS_PLAIN; *n += (size_t)rc) {
        if (!t->in.n && !wolfSSL_pending(t->ssl))
            return true;
        rc = wolfSSL_read(t->ssl, t->ctx->plain + *n, (int)(TLS_PLAIN - *n));
        if (rc > 0)
            continue;
        switch (wolfSSL_get_error(t->ssl, rc)) {
        case WOLFSSL_ERROR_WANT_READ:
        case WOLFSSL_ERROR_WANT_WRITE:
            return true;
        case WOLFSSL_ERROR_ZERO_RETURN:
            t->state = TLS_PEER_CLOSED;
            return true;
        }
        return tls_fail(t, rc, e);
    }
    return true;
}

/* Ciphertext from the peer. Calls on_open() and on_plain(); they may close the
 * connection, but not free `t`. False: `e` says why the session is over. */
static bool
tls_feed(struct tls *t, const char *p, size_t n, struct err *e)
{
    size_t got;
    bool ok = true;

    t->in = (struct str){p, n};
    while (t->state == TLS_HANDSHAKE)
        if (!tls_handshake(t, e))
            return e->kind == ERR_KINDS;
    while (ok && t->state == TLS_OPEN) {
        ok = tls_decrypt(t, &got, e);
        if (got)
            t->ops->on_plain(t->data, t->ctx->plain, got);
        if (got < TLS_PLAIN)
            break;
    }
    t->in.n = 0;
    return ok;
}

static bool
tls_write(struct tls *t, const char *p, size_t n, struct err *e)
{
    while (n) {
        int step = n > INT_MAX ? INT_MAX : (int)n;
        int rc = wolfSSL_write(t->ssl, p, step);

        if (rc <= 0)
            return tls_fail(t, rc, e);
        p += rc;
        n -= (size_t)rc;
    }
    return true;
}

/* Sends close_notify, so that the client knows the answer is whole. */
static void
tls_bye(struct tls *t)
{
    if (t->state == TLS_OPEN || t->state == TLS_PEER_CLOSED)
        wolfSSL_shutdown(t->ssl);
}

static const char *
tls_version(const struct tls *t)
{
    return wolfSSL_get_version(t->ssl);
}

static const char *
tls_cipher(const struct tls *t)
{
    return wolfSSL_get_cipher_name(t->ssl);
}

/* The server name the client asked for, or empty. */
static struct str
tls_sni(const struct tls *t)
{
    void *name = NULL;
    unsigned short n =
        wolfSSL_SNI_GetRequest(t->ssl, WOLFSSL_SNI_HOST_NAME, &name);

    return (struct str){name ? name : "", name ? n : 0};
}

/* ==== 16 h1: HTTP/1.1, both sides ===========================================
 *
 * Sans-I/O: bytes in, calls out. llhttp parses with every lenient flag off;
 * before it sees a head, h1_scan() has refused what RFC 9112 lets a parser
 * repair (bare CR or LF, obs-fold, blanks before the colon, control bytes),
 * and h1_framing() what lets two parsers disagree about where a body ends.
 * Both must agree, on requests and on upstreams' answers.
 *
 *   server: IDLE --byte--> HEAD --CRLFCRLF--> SERVING (body flows while
 *           req_read() is on) --answer and request complete--> IDLE
 *
 * One request at a time: what a client pipelines waits in `in`, bounded by
 * H1_AHEAD, beyond which h1_wants() turns the socket's reading off.
 *
 * Down    llhttp uri hdr req        Up  struct h1_io, struct req_ops
 * Entry   h1_server_new  h1_server_feed  h1_client_init  h1_client_feed
 */
enum {
    H1_MAGIC = 0x68315f21,
    H1_AHEAD = 64 << 10,    // unparsed bytes we hold for a busy client
    H1_GAP_MAX = 4096,      // chunk lines, extensions, trailers between data
    H1_DIRECT = 8 << 10,    // body pieces from here on are not copied
    H1_UNSENT = 256 << 10,  // of answers: no request is begun above (SOCK_HIGH)
    H1_LINE_MORE = 32,      // method and version beside a target
    H1_TURN = 32,           // pipelined requests in one turn of the loop,
    H1_TURN_US = 2000,      // and microseconds
    H1_OPTIONS_MAX = 16,
    H1_GRACE_MS = 2000,  // for one more request while we drain
};

/* Up: what a server connection does for its codec. */
struct h1_io {
    void (*write)(void *, const char *, size_t);
    void (*later)(void *);  // call h1_server_resume() when the stack is flat
    void (*close)(void *);  // after what was written; lingers for the client
    void (*cut)(void *);    // at once, and so that nobody takes it for an end
    void (*deadline)(void *, uint32_t ms);
    void (*stall)(void *, uint32_t ms);  // for a client that takes no byte
    size_t (*queued)(void *);
};

/* ---- what both sides share ---- */

/* The scan of one head, kept between reads. */
struct h1_scan {
    size_t line;  // offset of the line that is being read
    size_t lines;
};

/* H1_OVER: the first line, or the head, is longer than allowed. */
enum h1_verdict { H1_MORE, H1_DONE, H1_BAD, H1_OVER };

static bool
h1_token_byte(unsigned char c)
{
    static const char more[] = "!#$%&'*+-.^_`|~";

    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') ||
           (c >= 'a' && c <= 'z') || (c && strchr(more, c));
}

/* One line without its CRLF: no control byte but HTAB, and from the second
 * line on a token right before the colon. */
static bool
h1_scan_line(struct str line, bool first, struct err *e)
{
    size_t colon = 0;

    for (size_t i = 0; i < line.n; i++) {
        unsigned char c = (unsigned char)line.p[i];

        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return err_set(e, ERR_SYNTAX, "control byte 0x%02x in the head", c);
    }
    if (first)
        return true;
    if (line.p[0] == ' ' || line.p[0] == '\t')
        return err_set(e, ERR_SYNTAX, "folded header line (obs-fold)");
    while (colon < line.n && h1_token_byte((unsigned char)line.p[colon]))
        colon++;
    if (colon == 0 || colon == line.n || line.p[colon] != ':')
        return err_set(e, ERR_SYNTAX, "malformed header line");
    return true;
}

/* Finds the empty line that ends a head. H1_DONE: *len is the head's length
 * with that line. Every line must end in CRLF. Bytes past a limit are not
 * looked at, so that the verdict does not depend on how they came. */
static enum h1_verdict
h1_scan(struct h1_scan *s, struct str in, size_t first_max, size_t max,
        size_t *len, struct err *e)
{
    for (;;) {
        size_t end = s->lines || first_max + 2 > max ? max : first_max + 2;
        size_t seen = in.n < end ? in.n : end;
        const char *lf = memchr(in.p + s->line, '\n', seen - s->line);
        struct str line;

        if (!lf)
            return in.n < end ? H1_MORE : H1_OVER;
        line = (struct str){in.p + s->line, (size_t)(lf - in.p) - s->line};
        if (!line.n || line.p[line.n - 1] != '\r') {
            err_set(e, ERR_SYNTAX, "line ended by a bare LF");
            return H1_BAD;
        }
        line.n--;
        s->line = (size_t)(lf - in.p) + 1;
        if (!line.n && s->lines) {
            *len = s->line;
            return H1_DONE;
        }
        if (!line.n) {
            err_set(e, ERR_SYNTAX, "empty line where a message begins");
            return H1_BAD;
        }
        if (!h1_scan_line(line, s->lines++ == 0, e))
            return H1_BAD;
    }
}

/* The bytes of a chunked body that are not data: chunk lines and trailers. */
struct h1_gap {
    const char *from;  // first byte not yet accounted for
    char last;
    size_t n;  // since the last data
};

static bool
h1_gap_check(struct h1_gap *g, const char *to, struct err *e)
{
    for (const char *p = g->from; p < to; p++) {
        unsigned char c = (unsigned char)*p;

        if ((c == '\n') != (g->last == '\r') ||
            (c < 0x20 && c != '\r' && c != '\n' && c != '\t') || c == 0x7f)
            return err_set(e, ERR_SYNTAX, "byte 0x%02x in the chunk framing",
                           c);
        g->last = (char)c;
    }
    g->n += (size_t)(to - g->from);
    g->from = to;
    if (g->n > H1_GAP_MAX)
        return err_set(e, ERR_SYNTAX, "chunk framing over %d bytes",
                       H1_GAP_MAX);
    return true;
}

/* What one llhttp instance reports, for either role. */
struct h1_message {
    llhttp_t parser;
    struct mem_arena *arena;  // borrowed: the message's
    struct hdr_list *fields;  // borrowed
    struct str target, name, value;
    bool head_done, done, chunked, bad;
    bool parser_chunked;    // how llhttp frames the body, to compare
    int64_t parser_length;  // -1: it saw no Content-Length
    struct h1_gap gap;
    void (*on_data)(struct h1_message *, const char *, size_t);
    struct err *err;  // borrowed during h1_message_feed()
};

static int
h1_on_url(llhttp_t *p, const char *at, size_t n)
{
    ((struct h1_message *)p->data)->target = (struct str){at, n};
    return 0;
}

static int
h1_on_name(llhttp_t *p, const char *at, size_t n)
{
    struct h1_message *m = p->data;

    m->name = (struct str){at, n};
    m->value = (struct str){at, 0};
    return 0;
}

/* A head lies in one piece, so pieces of a value are neighbours. */
static int
h1_on_value(llhttp_t *p, const char *at, size_t n)
{
    struct h1_message *m = p->data;

    if (m->head_done)
        return 0;
    if (!m->value.n)
        m->value.p = at;
    m->value.n = (size_t)(at + n - m->value.p);
    return 0;
}

/* Names become lower case in the head's own copy. Trailers are parsed and
 * dropped: nothing may arrive after the checks. */
static int
h1_on_field(llhttp_t *p)
{
    struct h1_message *m = p->data;
    char *name = (char *)(uintptr_t)m->name.p;

    if (m->head_done)
        return 0;
    for (size_t i = 0; i < m->name.n; i++)
        name[i] = (char)str_lower_byte((unsigned char)name[i]);
    hdr_add_ref(m->arena, m->fields, m->name, str_trim(m->value));
    return 0;
}

static int
h1_on_head_done(llhttp_t *p)
{
    struct h1_message *m = p->data;

    m->head_done = true;
    m->parser_chunked = (p->flags & F_CHUNKED) != 0;
    m->parser_length =
        p->flags & F_CONTENT_LENGTH && p->content_length <= INT64_MAX
            ? (int64_t)p->content_length
            : -1;
    p->upgrade = 0;  // an Upgrade we do not tunnel is an ordinary header
    return 0;
}

static int
h1_on_data(llhttp_t *p, const char *at, size_t n)
{
    struct h1_message *m = p->data;

    if (m->chunked) {
        if (!h1_gap_check(&m->gap, at, m->err)) {
            m->bad = true;
            return HPE_USER;
        }
        m->gap.from = at + n;
        m->gap.n = 0;
        m->gap.last = 0;
    }
    m->on_data(m, at, n);
    return 0;
}

static int
h1_on_done(llhttp_t *p)
{
    ((struct h1_message *)p->data)->done = true;
    return HPE_PAUSED;
}

static const llhttp_settings_t h1_settings = {
    .on_url = h1_on_url,
    .on_header_field = h1_on_name,
    .on_header_value = h1_on_value,
    .on_header_value_complete = h1_on_field,
    .on_headers_complete = h1_on_head_done,
    .on_body = h1_on_data,
    .on_message_complete = h1_on_done,
};

static void
h1_message_init(struct h1_message *m, llhttp_type_t type,
                struct mem_arena *arena, struct hdr_list *fields,
                void (*on_data)(struct h1_message *, const char *, size_t))
{
    memset(m, 0, sizeof *m);
    llhttp_init(&m->parser, type, &h1_settings);
    m->parser.data = m;
    m->arena = arena;
    m->fields = fields;
    m->on_data = on_data;
}

/* Feeds bytes; *used says how many belong to this message. */
static bool
h1_message_feed(struct h1_message *m, const char *p, size_t n, size_t *used,
                struct err *e)
{
    llhttp_errno_t rc;

    m->err = e;
    m->gap.from = p;
    rc = llhttp_execute(&m->parser, p, n);
    *used = n;
    if (rc == HPE_PAUSED && m->done) {
        *used = (size_t)(llhttp_get_error_pos(&m->parser) - p);
        llhttp_resume(&m->parser);
    } else if (rc != HPE_OK) {
        if (!m->bad)
            err_set(e, ERR_SYNTAX, "%s",
                    llhttp_get_error_reason(&m->parser)
                        ? llhttp_get_error_reason(&m->parser)
                        : llhttp_errno_name(rc));
        return false;
    }
    return !m->chunked || !m->head_done || h1_gap_check(&m->gap, p + *used, e);
}

/* Content-Length and Transfer-Encoding of one head (RFC 9112 section 6.3):
 * one length of digits, or one `chunked`, never both. */
static bool
h1_framing(const struct hdr_list *fields, int64_t *length, bool *chunked,
           struct err *e)
{
    unsigned lengths = hdr_count(fields, S("content-length"));
    unsigned codings = hdr_count(fields, S("transfer-encoding"));
    uint64_t v;

    *length = -1;
    *chunked = codings != 0;
    if (lengths > 1 || codings > 1 || (lengths && codings))
        return err_set(e, ERR_SYNTAX,
                       "several Content-Length or Transfer-Encoding fields");
    if (codings &&
        !str_eqi(*hdr_get(fields, S("transfer-encoding")), S("chunked")))
        return err_set(e, ERR_SYNTAX,
                       "a transfer coding other than one chunked");
    if (lengths) {
        if (!str_u64(*hdr_get(fields, S("content-length")), &v) ||
            v > INT64_MAX)
            return err_set(e, ERR_SYNTAX, "malformed Content-Length");
        *length = (int64_t)v;
    }
    return true;
}

/* Does llhttp see the same body as h1_framing()? If not, one of the two is
 * wrong, and nobody knows where the next message begins. */
static bool
h1_agree(const struct h1_message *m, int64_t length, bool chunked,
         struct err *e)
{
    if (m->parser_chunked != chunked || m->parser_length != length)
        return err_set(e, ERR_SYNTAX, "the body's end is ambiguous");
    return true;
}

static bool
h1_has_option(const struct hdr_list *fields, struct str option)
{
    for (unsigned i = 0; i < fields->n; i++)
        if (str_eq(fields->v[i].name, S("connection")) &&
            hdr_list_has(fields->v[i].value, option))
            return true;
    return false;
}

/* IMF-fixdate (RFC 9110 section 5.6.7), made once a second. */
static struct str
h1_date(void)
{
    static _Thread_local time_t second;
    static _Thread_local char text[32];
    time_t now = time(NULL);
    struct tm tm;

    if (now != second) {
        second = now;
        gmtime_r(&now, &tm);
        strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &tm);
    }
    return (struct str){text, 29};
}

static const char *
h1_reason(int status)
{
    switch (status) {
    case 200:
        return "OK";
    case 201:
        return "Created";
    case 202:
        return "Accepted";
    case 204:
        return "No Content";
    case 206:
        return "Partial Content";
    case 301:
        return "Moved Permanently";
    case 302:
        return "Found";
    case 303:
        return "See Other";
    case 304:
        return "Not Modified";
    case 307:
        return "Temporary Redirect";
    case 308:
        return "Permanent Redirect";
    case 401:
        return "Unauthorized";
    case 409:
        return "Conflict";
    case 410:
        return "Gone";
    case 411:
        return "Length Required";
    case 412:
        return "Precondition Failed";
    case 421:
        return "Misdirected Request";
    }
    for (size_t i = 0; i < ERR_KINDS; i++)
        if (err_rows[i].status == status)
            return err_rows[i].title;
    return "";
}

static void
h1_write_field(struct mem_buf *b, struct str name, struct str value)
{
    char *w = mem_buf_room(b, name.n + value.n + 4);

    memcpy(w, name.p, name.n);
    memcpy(w + name.n, ": ", 2);
    memcpy(w + name.n + 2, value.p, value.n);
    memcpy(w + name.n + 2 + value.n, "\r\n", 2);
    b->n += name.n + value.n + 4;
}

static void
h1_write_status(struct mem_buf *b, int status)
{
    struct str reason = str_of(h1_reason(status));
    char line[] = "HTTP/1.1 200 ";

    line[9] = (char)('0' + status / 100);
    line[10] = (char)('0' + status / 10 % 10);
    line[11] = (char)('0' + status % 10);
    mem_buf_add(b, line, 13);
    mem_buf_add(b, reason.p, reason.n);
    mem_buf_add(b, "\r\n", 2);
}

/* "name: number": the framing field of a message with a known length. */
static void
h1_write_length(struct mem_buf *b, uint64_t n)
{
    char t[24], *w = t + sizeof t;

    do
        *--w = (char)('0' + n % 10);
    while (n /= 10);
    h1_write_field(b, S("content-length"),
                   (struct str){w, (size_t)(t + sizeof t - w)});
}

/* One piece of a chunked body. */
static void
h1_write_chunk_size(struct mem_buf *b, size_t n)
{
    static const char digits[] = "0123456789abcdef";
    char t[24], *w = t + sizeof t;

    *--w = '\n';
    *--w = '\r';
    do
        *--w = digits[n & 15];
    while (n >>= 4);
    mem_buf_add(b, w, (size_t)(t + sizeof t - w));
}

/* ---- the server side ---- */

struct h1 {
    unsigned magic;
    const struct h1_io *io;           // borrowed
    void *io_data;                    // borrowed: the conn
    const struct req_ops *ops;        // borrowed
    struct req_from *from;            // borrowed
    const struct cfg_limits *limits;  // borrowed
    struct req *req;                  // owned; NULL between requests
    struct req *dead;                 // owned; freed when the stack is flat
    struct h1_message msg;
    struct h1_scan scan;
    struct mem_buf in;   // bytes that wait for the request before them
    struct mem_buf out;  // the answer's bytes until the next flush
    unsigned served;
    unsigned turn;     // requests begun since the last h1_server_resume(),
    uint64_t turn_us;  // and when the first of them was
    bool feeding;      // h1_server_run() is on the stack
    bool reading;      // the request's body may flow
    bool end_told;     // ops->on_end() was called, or never will be
    bool closing;      // no further request
    bool last;         // the next request is the last
    bool out_chunked, out_none;  // how the answer's body is framed
    uint32_t body_ms;            // between two bytes of this body
    uint32_t serve_ms;           // what serve asked for with req_deadline()
};

static void h1_server_run(struct h1 *h);

static struct h1 *
h1_server_new(const struct h1_io *io, void *io_data, const struct req_ops *ops,
              struct req_from *from)
{
    struct h1 *h = obj_new(sizeof *h, H1_MAGIC);

    h->io = io;
    h->io_data = io_data;
    h->ops = ops;
    h->from = from;
    h->limits = from->limits;
    io->deadline(io_data, h->limits->head_ms);
    return h;
}

static void
h1_req_free(struct req *r)
{
    if (r)
        mem_arena_free(r->arena);
}

static void
h1_server_free(struct h1 *h)
{
    if (!h)
        return;
    must(!h->req || h->req->ended);
    h1_req_free(h->req);
    h1_req_free(h->dead);
    mem_buf_free(&h->in);
    mem_buf_free(&h->out);
    obj_free(h);
}

/* False: hold the socket's reading until h1_server_resume() has run. */
static bool
h1_wants(const struct h1 *h)
{
    return mem_buf_len(&h->in) < H1_AHEAD;
}

static void
h1_flush_out(struct h1 *h)
{
    if (!h->out.n)
        return;
    h->io->write(h->io_data, mem_buf_ptr(&h->out), mem_buf_len(&h->out));
    if (h->out.cap > H1_AHEAD)
        mem_buf_free(&h->out);
    h->out.n = h->out.off = 0;
}

/* Whoever waits until this is low is woken by the socket: let it see the
 * bytes first. */
static size_t
h1_unsent(struct h1 *h)
{
    if (mem_buf_len(&h->out) > H1_DIRECT)
        h1_flush_out(h);
    return h->io->queued(h->io_data);
}

/* The timer of the phase we are in. */
static void
h1_rearm(struct h1 *h)
{
    uint32_t ms;

    if (!h->req)
        ms = h->scan.lines || mem_buf_len(&h->in) || !h->served
                 ? h->limits->head_ms
             : h->last ? H1_GRACE_MS
                       : h->limits->idle_ms;
    else if (h->reading && !h->end_told)
        ms = h->body_ms;
    else
        ms = h->serve_ms;
    h->io->deadline(h->io_data, ms);
}

static void
h1_wire_head(struct req *r)
{
    struct h1 *h = r->codec;
    struct mem_buf *b = &h->out;
    bool none = r->status == 204 || r->status == 304;

    if (!r->complete || h->closing)
        r->close = true;
    h->out_none = none || str_eq(r->method, S("HEAD"));
    h->out_chunked = r->out_length < 0 && !r->http10;
    if (r->out_length < 0 && r->http10)
        r->close = true;
    h1_write_status(b, r->status);
    for (unsigned i = 0; i < r->out.n; i++)
        h1_write_field(b, r->out.v[i].name, r->out.v[i].value);
    if (!hdr_get(&r->out, S("date")))
        h1_write_field(b, S("date"), h1_date());
    if (r->out_length >= 0 && !none)
        h1_write_length(b, (uint64_t)r->out_length);
    else if (h->out_chunked && !none)
        h1_write_field(b, S("transfer-encoding"), S("chunked"));
    if (r->close)
        h1_write_field(b, S("connection"), S("close"));
    else if (r->http10)
        h1_write_field(b, S("connection"), S("keep-alive"));
    mem_buf_add(b, "\r\n", 2);
    h->io->later(h->io_data);
}

static void
h1_wire_body(struct req *r, const char *p, size_t n)
{
    struct h1 *h = r->codec;

    if (h->out_none)
        return;
    if (h->out_chunked)
        h1_write_chunk_size(&h->out, n);
    if (n >= H1_DIRECT) {
        h1_flush_out(h);
        h->io->write(h->io_data, p, n);
    } else {
        mem_buf_add(&h->out, p, n);
    }
    if (h->out_chunked)
        mem_buf_add(&h->out, "\r\n", 2);
    h->io->later(h->io_data);
}

static void
h1_wire_end(struct req *r)
{
    struct h1 *h = r->codec;

    if (h->out_chunked && !h->out_none)
        mem_buf_add(&h->out, "0\r\n\r\n", 5);
    if (r->close || !r->complete)
        h->closing = true;
    h->io->later(h->io_data);
}

static void
h1_wire_reset(struct req *r)
{
    struct h1 *h = r->codec;

    h->closing = true;
    h->out.n = h->out.off = 0;
    h->io->cut(h->io_data);
}

static void
h1_wire_read(struct req *r, bool on)
{
    struct h1 *h = r->codec;

    if (h->reading == on)
        return;
    h->reading = on;
    h1_rearm(h);
    if (on && !h->feeding)
        h->io->later(h->io_data);
}

static void
h1_wire_go_on(struct req *r)
{
    struct h1 *h = r->codec;

    mem_buf_add(&h->out, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    h->io->later(h->io_data);
}

static void
h1_wire_deadline(struct req *r, uint32_t ms)
{
    struct h1 *h = r->codec;

    h->serve_ms = ms;
    h1_rearm(h);
}

static void
h1_wire_limits(struct req *r, uint32_t body_ms, uint32_t write_ms)
{
    struct h1 *h = r->codec;

    h->body_ms = body_ms ? body_ms : h->limits->body_ms;
    h->io->stall(h->io_data, write_ms ? write_ms : h->limits->write_ms);
}

static size_t
h1_wire_queued(struct req *r)
{
    return h1_unsent(r->codec);
}

static const struct req_wire h1_wire = {
    .head = h1_wire_head,
    .body = h1_wire_body,
    .end = h1_wire_end,
    .reset = h1_wire_reset,
    .read = h1_wire_read,
    .go_on = h1_wire_go_on,
    .deadline = h1_wire_deadline,
    .limits = h1_wire_limits,
    .queued = h1_wire_queued,
};

static void
h1_server_on_data(struct h1_message *m, const char *p, size_t n)
{
    struct h1 *h = (struct h1 *)(void *)((char *)m - offsetof(struct h1, msg));

    h->req->body_bytes += n;
    if (!h->req->ended)
        h->ops->on_body(h->req, p, n);
}

static struct req *
h1_begin(struct h1 *h)
{
    struct req *r = req_new(&h1_wire, h, h->ops, h->from);

    r->started_us = uv_hrtime() / 1000;
    h->req = r;
    h->reading = h->end_told = false;
    h->serve_ms = 0;
    h->body_ms = h->limits->body_ms;
    return r;
}

/* Refuses a request that cannot be read further: no byte of it goes up any
 * more, and none that follows is looked at. */
static void
h1_bad(struct h1 *h, const struct err *e)
{
    struct req *r = h->req ? h->req : h1_begin(h);

    h->closing = true;
    h->end_told = true;
    r->complete = false;
    if (r->ended)
        return;
    h1_rearm(h);
    if (!r->head_sent) {
        h->ops->on_bad(r, e);
        return;
    }
    r->ended = true;  // first: nothing may complete the answer
    h->ops->on_abort(r, e);
    h1_wire.reset(r);
}

/* METHOD SP target SP HTTP/1.x, and nothing else (RFC 9112 section 3). */
static bool
h1_request_line(struct req *r, struct str head, struct err *e)
{
    struct str line, rest, version;

    str_cut(head, '\r', &line, &rest);
    if (!str_cut(line, ' ', &r->method, &line) ||
        !str_cut(line, ' ', &r->target, &version) || !r->method.n ||
        !r->target.n)
        return err_set(e, ERR_SYNTAX, "malformed request line");
    if (version.n != 8 || !str_starts(version, S("HTTP/")) ||
        version.p[6] != '.' || version.p[5] < '0' || version.p[5] > '9' ||
        version.p[7] < '0' || version.p[7] > '9')
        return err_set(e, ERR_SYNTAX, "malformed HTTP version");
    r->http10 = str_eq(version, S("HTTP/1.0"));
    if (!r->http10 && !str_eq(version, S("HTTP/1.1")))
        return err_set(e, ERR_VERSION, "HTTP version %.*s", STR_FMT(version));
    return true;
}

/* Letters, digits and '-': CGI, WSGI and PHP read any other byte of a name as
 * '_' or '-', and so see another field than we do. */
static bool
h1_name_plain(struct str name)
{
    for (size_t i = 0; i < name.n; i++)
        if (!(name.p[i] >= 'a' && name.p[i] <= 'z') &&
            !(name.p[i] >= '0' && name.p[i] <= '9') && name.p[i] != '-')
            return false;
    return true;
}

/* Fields that upstreams read as one value: a second one is a second opinion.
 * Odd spellings of identity fields are not refused: they are removed. */
static bool
h1_names_ok(const struct hdr_list *fields, struct err *e)
{
    static const char *const single[] = {"authorization", "content-type",
                                         "expect", "x-request-id"};

    for (unsigned i = 0; i < fields->n; i++)
        if (!h1_name_plain(fields->v[i].name) &&
            !hdr_identity(fields->v[i].name))
            return err_set(e, ERR_SYNTAX,
                           "header name with a byte other than letters, "
                           "digits and '-'");
    for (size_t i = 0; i < sizeof single / sizeof *single; i++)
        if (hdr_count(fields, str_of(single[i])) > 1)
            return err_set(e, ERR_SYNTAX, "several %s fields", single[i]);
    return true;
}

/* Each field is looked up in the Connection options: few of them, then. */
static bool
h1_options_ok(const struct hdr_list *fields, struct err *e)
{
    unsigned n = 0;

    for (unsigned i = 0; i < fields->n; i++) {
        struct str v = fields->v[i].value, option;

        if (!str_eq(fields->v[i].name, S("connection")))
            continue;
        while (v.n && n <= H1_OPTIONS_MAX) {
            str_cut(v, ',', &option, &v);
            n++;
        }
    }
    return n <= H1_OPTIONS_MAX ||
           err_set(e, ERR_SYNTAX, "more than %d Connection options",
                   H1_OPTIONS_MAX);
}

/* What RFC 9112 asks of a request's head beyond its syntax. */
static bool
h1_request_check(struct h1 *h, struct req *r, struct err *e)
{
    const struct str *host = hdr_get(&r->headers, S("host"));
    const struct str *expect = hdr_get(&r->headers, S("expect"));
    unsigned hosts = hdr_count(&r->headers, S("host"));

    if (r->target.n > h->limits->uri_bytes) {
        met_inc(MET_LIMIT_URI);
        return err_set(e, ERR_URI_LIMIT, "target over %u bytes",
                       h->limits->uri_bytes);
    }
    if (r->headers.n > h->limits->head_fields) {
        met_inc(MET_LIMIT_HEAD);
        return err_set(e, ERR_HEAD_LIMIT, "more than %u header fields",
                       h->limits->head_fields);
    }
    if (!h1_framing(&r->headers, &r->length, &r->chunked, e) ||
        !h1_agree(&h->msg, r->length, r->chunked, e) ||
        !h1_names_ok(&r->headers, e) || !h1_options_ok(&r->headers, e))
        return false;
    if (r->http10 && r->chunked)
        return err_set(e, ERR_SYNTAX, "Transfer-Encoding in HTTP/1.0");
    if (hosts > 1 || (!hosts && !r->http10))
        return err_set(e, ERR_SYNTAX, "%s Host field",
                       hosts ? "several" : "no");
    r->host = host ? *host : (struct str){"", 0};
    if (expect && !str_eqi(*expect, S("100-continue")))
        return err_set(e, ERR_EXPECT, "unknown expectation");
    r->expect = expect && !r->http10 && req_has_body(r);
    r->close = h1_has_option(&r->headers, S("close")) ||
               (r->http10 && !h1_has_option(&r->headers, S("keep-alive")));
    return true;
}

/* A whole head is here: makes the request and hands it up. */
static void
h1_on_head(struct h1 *h, const char *p, size_t n)
{
    struct req *r = h1_begin(h);
    struct str head = str_dup(r->arena, (struct str){p, n});
    struct err e;
    size_t used;

    h->served++;
    if (!h->turn++)
        h->turn_us = r->started_us;
    h1_message_init(&h->msg, HTTP_REQUEST, r->arena, &r->headers,
                    h1_server_on_data);
    if (!h1_request_line(r, head, &e)) {
        h1_bad(h, &e);
        return;
    }
    if (!h1_message_feed(&h->msg, head.p, head.n, &used, &e)) {
        h1_bad(h, &e);
        return;
    }
    if (!h->msg.head_done || used != head.n)
        err_set(&e, ERR_SYNTAX, "malformed head");
    else if (!str_eq(h->msg.target, r->target))
        err_set(&e, ERR_SYNTAX, "malformed request target");
    else if (h1_request_check(h, r, &e))
        e.kind = ERR_KINDS;
    if (e.kind != ERR_KINDS) {
        h1_bad(h, &e);
        return;
    }
    h->msg.chunked = r->chunked;
    r->complete = h->msg.done;
    if (h->limits->requests && h->served >= h->limits->requests) {
        met_inc(MET_LIMIT_REQUESTS);
        r->close = true;
    }
    r->close = r->close || h->last;
    h->ops->on_head(r);
    if (!r->ended)
        h1_rearm(h);
}

/* Reads a head out of `in`. False: more bytes are needed. */
static bool
h1_read_head(struct h1 *h)
{
    struct str in = {mem_buf_ptr(&h->in), mem_buf_len(&h->in)};
    const struct cfg_limits *l = h->limits;
    struct err e;
    size_t len;

    switch (h1_scan(&h->scan, in, l->uri_bytes + H1_LINE_MORE, l->head_bytes,
                    &len, &e)) {
    case H1_MORE:
        return false;
    case H1_DONE:
        h->scan = (struct h1_scan){0};
        h1_on_head(h, in.p, len);
        mem_buf_take(&h->in, len);
        return true;
    case H1_OVER:
        met_inc(h->scan.lines ? MET_LIMIT_HEAD : MET_LIMIT_URI);
        if (h->scan.lines)
            err_set(&e, ERR_HEAD_LIMIT, "head over %u bytes", l->head_bytes);
        else
            err_set(&e, ERR_URI_LIMIT, "target over %u bytes", l->uri_bytes);
        break;
    case H1_BAD:
        break;
    }
    h1_bad(h, &e);
    return true;
}

/* Hands on body bytes; returns how many were the body's. What follows a broken
 * chunk is not looked at. */
static size_t
h1_read_body(struct h1 *h, const char *p, size_t n)
{
    struct err e;
    size_t used;

    if (!h1_message_feed(&h->msg, p, n, &used, &e)) {
        h1_bad(h, &e);
        return n;
    }
    h->req->complete = h->msg.done;
    return used;
}

/* Frees a request whose answer is out; then the next one may begin. */
static bool
h1_retire(struct h1 *h)
{
    h1_req_free(h->dead);
    h->dead = h->req;
    h->req = NULL;
    if (h->closing) {  // what was pipelined is never looked at
        mem_buf_free(&h->in);
        h->scan = (struct h1_scan){0};
        h->io->deadline(h->io_data, 0);
        h->io->close(h->io_data);
        return false;
    }
    h1_rearm(h);
    return true;
}

/* May the next request begin? Not after H1_TURN of them, or H1_TURN_US, in one
 * turn of the loop, for others wait, too; and not while a client that pipelines
 * does not take its answers: then the socket's own stall timer watches it. */
static bool
h1_may_begin(struct h1 *h)
{
    if (h->closing || !mem_buf_len(&h->in))
        return false;
    if (h->turn >= H1_TURN ||
        (h->turn && uv_hrtime() / 1000 - h->turn_us > H1_TURN_US))
        return false;
    if (h1_unsent(h) <= H1_UNSENT)
        return true;
    h->io->deadline(h->io_data, 0);
    return false;
}

/* Goes on as far as bytes and consumers allow. Never re-entered: what happens
 * in here and asks for more sets a flag that the loop reads. */
static void
h1_server_run(struct h1 *h)
{
    must(!h->feeding);
    h->feeding = true;
    for (;;) {
        if (h->req && h->req->ended) {
            if (!h1_retire(h))
                break;
        } else if (!h->req) {
            if (!h1_may_begin(h) || (!h1_read_head(h) && !h->req))
                break;
        } else if (h->end_told || !h->reading) {
            break;
        } else if (h->req->complete) {
            h->end_told = true;
            h1_rearm(h);
            h->ops->on_end(h->req);
        } else if (mem_buf_len(&h->in)) {
            mem_buf_take(&h->in, h1_read_body(h, mem_buf_ptr(&h->in),
                                              mem_buf_len(&h->in)));
        } else {
            break;
        }
    }
    h->feeding = false;
    if (h->in.cap && !mem_buf_len(&h->in))
        mem_buf_free(&h->in);
}

/* Will nothing that the client still sends be looked at? */
static bool
h1_deaf(const struct h1 *h)
{
    const struct req *r = h->req;

    return h->closing && (!r || r->ended || r->complete || h->end_told);
}

/* Bytes from the client. While a refused one still sends, they are dropped. */
static void
h1_server_feed(struct h1 *h, const char *p, size_t n)
{
    bool idle = !h->req && !mem_buf_len(&h->in);
    size_t used = 0;

    if (h1_deaf(h))
        return;
    if (idle)
        h->io->deadline(h->io_data, h->limits->head_ms);
    else if (h->req && h->reading && !h->end_told)
        h1_rearm(h);  // what is pipelined gives a hook no more time
    if (!idle && h->req && !h->req->ended && h->reading && !h->feeding &&
        !h->req->complete && !h->end_told && !mem_buf_len(&h->in)) {
        h->feeding = true;  // a body that flows is not copied
        used = h1_read_body(h, p, n);
        h->feeding = false;
    }
    if (!h1_deaf(h))
        mem_buf_add(&h->in, p + used, n - used);
    if (!h->feeding)
        h1_server_run(h);
}

/* From the flat stack, after io->later(). True: call again next turn. */
static bool
h1_server_resume(struct h1 *h)
{
    bool more;

    if (!h->feeding)
        h1_server_run(h);
    more = h->turn && !h->req && !h->closing && mem_buf_len(&h->in);
    h->turn = 0;
    h1_flush_out(h);
    h1_req_free(h->dead);
    h->dead = NULL;
    return more;
}

/* The deadline passed: who was too slow? */
static void
h1_server_on_time(struct h1 *h)
{
    struct err e;

    if (h->closing && !h->req)
        return;
    if (!h->req && !h->scan.lines && !mem_buf_len(&h->in)) {
        met_inc(MET_LIMIT_IDLE);
        h->closing = true;
        h->io->close(h->io_data);
    } else if (!h->req) {
        met_inc(MET_LIMIT_HEAD_TIME);
        err_set(&e, ERR_TIMEOUT, "no complete head within %u ms",
                h->limits->head_ms);
        h1_bad(h, &e);
    } else if (h->reading && !h->end_told) {
        met_inc(MET_LIMIT_BODY_TIME);
        err_set(&e, ERR_TIMEOUT, "no byte of the body for %u ms", h->body_ms);
        h1_bad(h, &e);
    } else if (!h->req->ended) {
        h->ops->on_time(h->req);
    }
}

/* The connection is gone: the request, if any, ends here. */
static void
h1_server_gone(struct h1 *h, const struct err *e)
{
    h->closing = true;
    if (h->req && !h->req->ended) {
        h->req->ended = true;
        h->ops->on_abort(h->req, e);
    }
}

static void
h1_server_drained(struct h1 *h)
{
    if (h->req && !h->req->ended)
        h->ops->on_drain(h->req);
    if (h->req || h->closing)
        return;
    h1_rearm(h);
    h->io->later(h->io_data);  // a request may wait for this
}

/* The client will send no more: what is being answered is answered. */
static void
h1_server_eof(struct h1 *h)
{
    struct err e;

    h->closing = true;
    if (!h->req) {
        h->io->close(h->io_data);
    } else if (!h->req->complete && !h->req->ended) {
        err_set(&e, ERR_SYNTAX, "the client closed in the middle of its body");
        h1_bad(h, &e);
    }
}

/* The worker leaves. A client may just be sending its next request: an idle
 * connection has a little time for one more, which is told to be the last. */
static void
h1_server_stop(struct h1 *h)
{
    h->last = true;
    if (!h->req && h->served && !mem_buf_len(&h->in))
        h->io->deadline(h->io_data, H1_GRACE_MS);
    else if (h->req && !h->req->head_sent)
        h->req->close = true;
}

/* ---- the client side: what an upstream answers ---- */

struct h1_answer {
    int status;
    struct hdr_list headers;
    int64_t length;  // -1: not announced
    bool chunked;
    bool keep;  // the connection may serve again, if nothing follows
};

/* Up: what becomes of an upstream's answer. */
struct h1_client_ops {
    void (*on_head)(void *, struct h1_answer *);
    void (*on_body)(void *, const char *, size_t);
};

struct h1_client {
    const struct h1_client_ops *ops;  // borrowed
    void *data;                       // borrowed
    struct mem_arena *arena;          // borrowed: the request's
    struct h1_message msg;
    struct h1_scan scan;
    struct h1_answer answer;
    struct mem_buf head;  // an incomplete head
    unsigned interims;    // 1xx answers so far
    bool to_head;         // the answer to a HEAD request has no body
    bool started;         // a first byte came
    bool in_body, done;
};

enum {
    H1_ANSWER_HEAD_MAX = 64 << 10,
    H1_ANSWER_FIELDS = 256,
    H1_INTERIM_MAX = 8,
};

static void
h1_client_init(struct h1_client *c, const struct h1_client_ops *ops, void *data,
               struct mem_arena *arena, bool to_head)
{
    memset(c, 0, offsetof(struct h1_client, msg));
    c->ops = ops;
    c->data = data;
    c->arena = arena;
    c->scan = (struct h1_scan){0};
    c->answer = (struct h1_answer){.length = -1};
    c->head = (struct mem_buf){0};
    c->interims = 0;
    c->to_head = to_head;
    c->started = c->in_body = c->done = false;
}

static void
h1_client_fini(struct h1_client *c)
{
    mem_buf_free(&c->head);
}

static void
h1_client_on_data(struct h1_message *m, const char *p, size_t n)
{
    struct h1_client *c =
        (struct h1_client *)(void *)((char *)m -
                                     offsetof(struct h1_client, msg));

    c->ops->on_body(c->data, p, n);
}

/* HTTP/1.x SP 3DIGIT [SP reason] (RFC 9112 section 4). */
static bool
h1_status_line(struct str head, int *status, bool *http10, struct err *e)
{
    struct str line, rest, version, code;
    uint64_t v;

    str_cut(head, '\r', &line, &rest);
    str_cut(line, ' ', &version, &rest);
    str_cut(rest, ' ', &code, &rest);
    *http10 = str_eq(version, S("HTTP/1.0"));
    if ((!*http10 && !str_eq(version, S("HTTP/1.1"))) || code.n != 3 ||
        !str_u64(code, &v) || v < 100 || v > 599)
        return err_set(e, ERR_UPSTREAM, "malformed status line");
    *status = (int)v;
    return true;
}

/* Interim answers (1xx) are dropped: a few, and only those without a body. */
static bool
h1_client_interim(struct h1_client *c, struct err *e)
{
    const struct h1_answer *a = &c->answer;

    if (a->status == 101)
        return err_set(e, ERR_UPSTREAM, "101 where no upgrade was asked for");
    if (a->chunked || a->length >= 0)
        return err_set(e, ERR_UPSTREAM, "a %d answer with a body", a->status);
    if (++c->interims > H1_INTERIM_MAX)
        return err_set(e, ERR_UPSTREAM, "more than %d interim answers",
                       H1_INTERIM_MAX);
    return true;
}

/* A whole head of an answer. */
static bool
h1_client_on_head(struct h1_client *c, const char *p, size_t n, struct err *e)
{
    struct str head = str_dup(c->arena, (struct str){p, n});
    struct h1_answer *a = &c->answer;
    bool http10;
    size_t used;

    *a = (struct h1_answer){.length = -1};
    if (!h1_status_line(head, &a->status, &http10, e))
        return false;
    h1_message_init(&c->msg, HTTP_RESPONSE, c->arena, &a->headers,
                    h1_client_on_data);
    if (!h1_message_feed(&c->msg, head.p, head.n, &used, e) ||
        !c->msg.head_done || used != head.n)
        return err_set(e, ERR_UPSTREAM, "malformed head");
    if (a->headers.n > H1_ANSWER_FIELDS)
        return err_set(e, ERR_UPSTREAM, "more than %d header fields",
                       H1_ANSWER_FIELDS);
    if (!h1_framing(&a->headers, &a->length, &a->chunked, e) ||
        !h1_agree(&c->msg, a->length, a->chunked, e) ||
        !h1_options_ok(&a->headers, e))
        return false;
    if (a->status < 200)
        return h1_client_interim(c, e);
    if (http10 && a->chunked)
        return err_set(e, ERR_UPSTREAM, "Transfer-Encoding in HTTP/1.0");
    a->keep = !http10 && !h1_has_option(&a->headers, S("close"));
    c->msg.chunked = a->chunked;
    c->in_body = true;
    if (c->to_head || a->status == 204 || a->status == 304) {
        if (a->status == 204 && (a->chunked || a->length > 0))
            a->keep = false;  // who announces a body may send one
        a->length = a->status == 204 ? -1 : a->length;
        c->msg.done = true;
    } else if (!a->chunked && a->length < 0) {
        a->keep = false;  // ends with the connection
    }
    c->ops->on_head(c->data, a);
    return true;
}

/* Takes heads out of c->head, up to the final answer's. */
static bool
h1_client_heads(struct h1_client *c, struct err *e)
{
    while (!c->in_body && mem_buf_len(&c->head)) {
        struct str in = {mem_buf_ptr(&c->head), mem_buf_len(&c->head)};
        size_t len;

        switch (h1_scan(&c->scan, in, H1_ANSWER_HEAD_MAX, H1_ANSWER_HEAD_MAX,
                        &len, e)) {
        case H1_MORE:
            return true;
        case H1_BAD:
            return false;
        case H1_OVER:
            return err_set(e, ERR_UPSTREAM, "head over %d bytes",
                           H1_ANSWER_HEAD_MAX);
        case H1_DONE:
            break;
        }
        c->scan = (struct h1_scan){0};
        if (!h1_client_on_head(c, in.p, len, e))
            return false;
        mem_buf_take(&c->head, len);
    }
    return true;
}

/* Bytes from an upstream. False: the answer is malformed, `e` says how. Bytes
 * past its end are never looked at, but forbid to use the connection again. */
static bool
h1_client_feed(struct h1_client *c, const char *p, size_t n, struct err *e)
{
    size_t used;

    c->started = true;
    if (!c->in_body) {
        mem_buf_add(&c->head, p, n);
        if (!h1_client_heads(c, e))
            return false;
        if (!c->in_body)
            return true;
        p = mem_buf_ptr(&c->head);  // the rest is body
        n = mem_buf_len(&c->head);
    }
    if (!c->msg.done && n) {
        if (!h1_message_feed(&c->msg, p, n, &used, e))
            return false;
        n -= used;
    }
    if (n)
        c->answer.keep = false;
    c->done = c->msg.done;
    return true;
}

/* The upstream closed. False: the answer is cut short. */
static bool
h1_client_eof(struct h1_client *c, struct err *e)
{
    if (c->done)
        return true;
    if (c->in_body && !c->answer.chunked && c->answer.length < 0) {
        c->done = true;
        return true;
    }
    return err_set(e, ERR_UPSTREAM, "closed %s",
                   c->in_body ? "in the middle of the body"
                              : "before its answer was complete");
}

/* ==== 17 sock: a stream with an output queue and deadlines ==================
 *
 * What client and upstream connections have in common: one libuv stream, TCP
 * or Unix, bytes gathered in `out` and sent by sock_flush(), a deadline that
 * is cheap to move, and one way out. Read buffer and spare output buffers
 * belong to the worker, so an idle connection holds neither.
 *
 * Owner   embedded in a conn or an up_conn; after sock_close() that must stay
 *         until on_closed(), the only place to free it.
 * Up      struct sock_ops
 * Entry   sock_init  sock_read  sock_add  sock_send  sock_flush  sock_deadline
 *         sock_close
 */
enum {
    SOCK_READ = 64 << 10,   // one read
    SOCK_HIGH = 256 << 10,  // above it, whoever makes bytes should wait
    SOCK_LOW = 64 << 10,    // below it, on_drain() says: go on
    SOCK_SPARE = 4,
};

/* Per worker. */
struct sock_pool {
    uv_loop_t *loop;  // borrowed
    char *scratch;    // owned: SOCK_READ bytes for the read under way
    struct mem_buf spare[SOCK_SPARE];
    unsigned spares;
};

struct sock_ops {
    void (*on_read)(void *, const char *, size_t);
    void (*on_gone)(void *, int uv_code);  // end of file or error
    void (*on_drain)(void *);              // queue below SOCK_LOW again
    void (*on_flushed)(void *);            // queue empty after it was not
    void (*on_time)(void *);               // the deadline passed
    void (*on_stall)(void *);              // the peer took no byte in stall_ms
    void (*on_closed)(void *);
};

union sock_handle {
    uv_handle_t handle;
    uv_stream_t stream;
    uv_tcp_t tcp;
    uv_pipe_t pipe;
};

struct sock {
    union sock_handle h;
    uv_timer_t timer;
    struct sock_pool *pool;      // borrowed
    const struct sock_ops *ops;  // borrowed
    void *data;                  // borrowed: who embeds us
    int handles;                 // open ones
    bool is_unix, reading, high, closing;
    uint32_t stall_ms;
    uint64_t deadline, stall, armed;  // ms of uv_now(); 0: none
    size_t unsent;                    // when `stall` was set
    struct mem_buf out, flying;       // flying: what `write` is sending
    uv_write_t *write;                // owned while in flight
};

static void sock_on_time(uv_timer_t *);

static void
sock_init(struct sock *s, struct sock_pool *pool, bool is_unix,
          const struct sock_ops *ops, void *data)
{
    *s = (struct sock){.pool = pool,
                       .ops = ops,
                       .data = data,
                       .is_unix = is_unix,
                       .handles = 2};
    if (is_unix)
        uv_pipe_init(pool->loop, &s->h.pipe, 0);
    else
        uv_tcp_init(pool->loop, &s->h.tcp);
    uv_timer_init(pool->loop, &s->timer);
    s->h.handle.data = s->timer.data = s;
}

/* ---- deadlines ---- */

/* Most deadlines move before they pass. So the timer is only started when it
 * would fire too late, and looks again when it has fired too early. */
static void
sock_arm(struct sock *s, uint64_t at)
{
    uint64_t now = uv_now(s->pool->loop);

    if (s->closing || !at || (s->armed && s->armed <= at))
        return;
    s->armed = at;
    uv_timer_start(&s->timer, sock_on_time, at > now ? at - now : 0, 0);
}

/* on_time() unless moved again within `ms`; 0: never. */
static void
sock_deadline(struct sock *s, uint32_t ms)
{
    s->deadline = ms ? uv_now(s->pool->loop) + ms : 0;
    sock_arm(s, s->deadline);
}

static size_t
sock_queued(const struct sock *s)
{
    return mem_buf_len(&s->out) + mem_buf_len(&s->flying);
}

/* The peer took bytes, or there are none to take. */
static void
sock_progress(struct sock *s)
{
    s->unsent = uv_stream_get_write_queue_size(&s->h.stream);
    s->stall = 0;
    if (!sock_queued(s) || !s->stall_ms)
        return;
    s->stall = uv_now(s->pool->loop) + s->stall_ms;
    sock_arm(s, s->stall);
}

static void
sock_on_time(uv_timer_t *timer)
{
    struct sock *s = timer->data;
    uint64_t now = uv_now(timer->loop);

    s->armed = 0;
    if (uv_stream_get_write_queue_size(&s->h.stream) < s->unsent)
        sock_progress(s);
    if (s->stall && s->stall <= now) {
        s->stall = 0;
        s->ops->on_stall(s->data);
    } else if (s->deadline && s->deadline <= now) {
        s->deadline = 0;
        s->ops->on_time(s->data);
    }
    sock_arm(s, s->deadline);
    sock_arm(s, s->stall);
}

static void
sock_pool_fini(struct sock_pool *p)
{
    while (p->spares)
        mem_buf_free(&p->spare[--p->spares]);
    free(p->scratch);
}

/* ---- reading ---- */

static void
sock_on_alloc(uv_handle_t *handle, size_t hint, uv_buf_t *buf)
{
    struct sock *s = handle->data;

    (void)hint;
    *buf = uv_buf_init(s->pool->scratch, SOCK_READ);
}

static void
sock_on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct sock *s = stream->data;

    if (n > 0)
        s->ops->on_read(s->data, buf->base, (size_t)n);
    else if (n < 0)  // 0 is libuv's EAGAIN
        s->ops->on_gone(s->data, (int)n);
}

static void
sock_read(struct sock *s, bool on)
{
    if (s->reading == on || s->closing)
        return;
    s->reading = on;
    if (on)
        uv_read_start(&s->h.stream, sock_on_alloc, sock_on_read);
    else
        uv_read_stop(&s->h.stream);
}

/* ---- writing ---- */

static void sock_add(struct sock *, const void *, size_t);
static void sock_flush(struct sock *);

static struct mem_buf
sock_buf_get(struct sock_pool *p)
{
    return p->spares ? p->spare[--p->spares] : (struct mem_buf){0};
}

static void
sock_buf_put(struct sock_pool *p, struct mem_buf *b)
{
    if (b->cap && b->cap <= 2 * SOCK_HIGH && p->spares < SOCK_SPARE)
        p->spare[p->spares++] = (struct mem_buf){b->p, 0, 0, b->cap};
    else
        free(b->p);
    *b = (struct mem_buf){0};
}

/* The queue, to be written into; sock_flush() sends it. */
static struct mem_buf *
sock_out(struct sock *s)
{
    if (!s->out.cap)
        s->out = sock_buf_get(s->pool);
    return &s->out;
}

/* Adds bytes that the socket may take at once, without a copy. */
static void
sock_send(struct sock *s, const char *p, size_t n)
{
    uv_buf_t b = uv_buf_init((char *)(uintptr_t)p, (unsigned)n);
    int sent = 0;

    if (!s->closing && !s->write && !mem_buf_len(&s->out))
        sent = uv_try_write(&s->h.stream, &b, 1);
    if (sent < 0)
        sent = 0;  // sock_flush() will be told why
    if ((size_t)sent < n)
        sock_add(s, p + sent, n - (size_t)sent);
    sock_flush(s);
}

static void
sock_add(struct sock *s, const void *p, size_t n)
{
    mem_buf_add(sock_out(s), p, n);
    if (mem_buf_len(&s->out) > SOCK_HIGH)
        sock_flush(s);
    s->high = s->high || sock_queued(s) > SOCK_HIGH;
}

static void
sock_on_written(uv_write_t *w, int status)
{
    struct sock *s = w->data;

    free(w);
    s->write = NULL;
    sock_buf_put(s->pool, &s->flying);
    if (s->closing)
        return;
    if (status < 0) {
        s->ops->on_gone(s->data, status);
        return;
    }
    sock_flush(s);
    sock_progress(s);
    if (s->high && sock_queued(s) <= SOCK_LOW) {
        s->high = false;
        s->ops->on_drain(s->data);
    }
    if (!s->closing && !sock_queued(s))
        s->ops->on_flushed(s->data);
}

/* Sends `out` as far as the socket takes it; the rest flies. */
static void
sock_flush(struct sock *s)
{
    uv_buf_t b;
    int n;

    if (s->closing || s->write)
        return;
    if (!mem_buf_len(&s->out)) {
        sock_buf_put(s->pool, &s->out);
        return;
    }
    must(mem_buf_len(&s->out) <= INT_MAX);
    b = uv_buf_init(s->out.p + s->out.off, (unsigned)mem_buf_len(&s->out));
    n = uv_try_write(&s->h.stream, &b, 1);
    if (n > 0)
        mem_buf_take(&s->out, (size_t)n);
    if (!mem_buf_len(&s->out)) {
        sock_buf_put(s->pool, &s->out);
        if (s->stall)
            sock_progress(s);
        return;
    }
    // an error, too, is told by uv_write(): in its callback, stack flat
    s->flying = s->out;
    s->out = (struct mem_buf){0};
    b = uv_buf_init(s->flying.p + s->flying.off,
                    (unsigned)mem_buf_len(&s->flying));
    s->write = mem_xmalloc(sizeof *s->write);
    s->write->data = s;
    must(uv_write(s->write, &s->h.stream, &b, 1, sock_on_written) == 0);
    sock_progress(s);
}

/* ---- the end ---- */

static void
sock_on_closed(uv_handle_t *handle)
{
    struct sock *s = handle->data;

    if (--s->handles)
        return;
    sock_buf_put(s->pool, &s->out);
    sock_buf_put(s->pool, &s->flying);
    s->ops->on_closed(s->data);
}

/* Safe from any callback, and safe twice. What is queued is lost. */
static void
sock_close(struct sock *s)
{
    if (s->closing)
        return;
    s->closing = true;
    uv_close((uv_handle_t *)&s->timer, sock_on_closed);
    uv_close(&s->h.handle, sock_on_closed);
}

/* ==== 18 conn: one client connection ========================================
 *
 * A socket, its TLS session (none on the admin address), and the codec. The
 * only room that touches a client's socket: below it, tls and h1 see bytes.
 *
 *   accept --> HANDSHAKE --> SERVING --> LINGER --> CLOSING --> freed
 *                  \____________\___ any error ___/
 *
 * What callbacks write gathers in the socket's queue; conn_run_later() sends
 * it when the callbacks of this turn of the loop are done and the stack is
 * flat. There, too, a finished request makes room for the next.
 *
 * LINGER: our side is shut; what the client still sends is read and dropped
 * for a while, so that a reset does not destroy the answer on its way.
 *
 * Owner   conn_accept() makes it; conn_on_closed(), and nothing else, frees.
 * Down    sock tls h1 err log met        Up  struct conn_ops
 * Entry   conn_listen  conn_run_later  conn_stop_all
 */
enum conn_state { CONN_HANDSHAKE, CONN_SERVING, CONN_LINGER, CONN_CLOSING };

enum {
    CONN_MAGIC = 0x636f6e21,
    CONN_BACKLOG = 4096,
    CONN_LINGER_MS = 2000,
    CONN_LINGER_BYTES = 1 << 20,
    CONN_STALE_MS = 1000,   // an older handshake gives way to one that waits
    CONN_EXPIRE_MS = 5000,  // for the last answer to an expired certificate
};

/* Up: work, which counts connections by identity. */
struct conn_ops {
    void (*on_open)(struct conn *);
    void (*on_gone)(struct conn *);
};

struct conn_queue {
    struct conn *first, *last;
    unsigned n;
};

/* A listening socket, and what its connections share. */
struct conn_listener {
    union sock_handle h;
    struct env *env;  // borrowed, like all pointers here but `tls`
    const struct cfg_limits *limits;
    const struct conn_ops *ops;
    const struct req_ops *req_ops;
    struct tls_ctx *tls;  // owned; NULL: plain (admin)
    struct str name;
    unsigned index;
    bool is_unix, explain;
    unsigned open;
    struct conn_queue shaking;  // handshakes under way, oldest first
    struct conn_queue waiting;  // sent their first bytes, and wait for a slot
};

struct conn {
    unsigned magic;
    enum conn_state state;
    uint64_t id;  // "conn" in the logs
    const char *doing;
    struct conn_listener *listener;  // borrowed
    struct sock sock;
    struct tls *tls;       // owned
    struct h1 *h1;         // owned
    struct req_from from;  // who sends the requests
    void *count;           // lent to work: the identity's connections
    size_t lingered;
    bool shut_asked, on_later;
    struct conn_queue *queue;  // shaking or waiting; NULL: in neither
    struct conn *queue_prev, *queue_next;
    uint64_t since;            // ms of uv_now(): accepted, or slot taken
    uint64_t expired;          // ms of uv_now() since when it may not go on
    struct mem_buf early;      // first bytes of one that waits
    bool admitted;             // took a slot; conn_begin_late() comes
    struct conn *prev, *next;  // all of a worker
    struct conn *later;        // valid while on_later
    char peer[56];
};

/* Per worker. */
struct conn_set {
    struct conn *first, *later;
    size_t n;
    uint64_t next_id;
    int64_t expires;  // Unix seconds: before this no open connection does
    struct sock_pool pool;
};

/* In the order of a connection's life; the bodies below keep this order. */
static void conn_slot_leave(struct conn *);
static void conn_refuse(struct conn *, struct err *);
static void conn_begin(struct conn *, const char *, size_t);
static void conn_on_open(void *);
static void conn_on_read(void *, const char *, size_t);
static void conn_shut(struct conn *);
static void conn_fail(struct conn *, const struct err *);
static void conn_on_closed(void *);

/* h1 stops at what makes sock call on_drain() later, or nobody wakes it. */
static_assert((int)H1_UNSENT == (int)SOCK_HIGH, "one limit for h1 and sock");

static struct conn_set *
conn_set_of(struct conn *c)
{
    return c->listener->env->conns;
}

static void
conn_enter(struct conn *c, enum conn_state to, const char *doing)
{
    enum conn_state from = c->state;

    must(to > from);
    c->state = to;
    c->doing = doing;
    if (from == CONN_HANDSHAKE && c->queue)
        conn_slot_leave(c);
}

/* Asks for conn_run_later(). */
static void
conn_later(void *data)
{
    struct conn *c = data;
    struct conn_set *set = conn_set_of(c);

    if (c->on_later)
        return;
    c->on_later = true;
    c->later = set->later;
    set->later = c;
}

/* ---- slots for handshakes ----
 *
 * A handshake costs memory and most of the CPU a client can make us spend, so
 * only `handshakes` of them are under way; a connection takes a slot with its
 * first bytes (one that says nothing takes none). In a burst, the others wait
 * with theirs. Where one waits, a handshake that is older than CONN_STALE_MS
 * gives way: its client had its time. */

static void
conn_queue_add(struct conn_queue *q, struct conn *c)
{
    c->queue = q;
    c->queue_next = NULL;
    c->queue_prev = q->last;
    if (q->last)
        q->last->queue_next = c;
    else
        q->first = c;
    q->last = c;
    q->n++;
}

static void
conn_queue_remove(struct conn *c)
{
    struct conn_queue *q = c->queue;

    if (c->queue_prev)
        c->queue_prev->queue_next = c->queue_next;
    else
        q->first = c->queue_next;
    if (c->queue_next)
        c->queue_next->queue_prev = c->queue_prev;
    else
        q->last = c->queue_prev;
    c->queue = NULL;
    q->n--;
}

static void
conn_slot_take(struct conn *c)
{
    conn_queue_add(&c->listener->shaking, c);
    c->since = uv_now(c->sock.pool->loop);
    met_add(MET_HANDSHAKES_OPEN, 1);
}

/* Whoever waits longest is next, with the stack flat. */
static void
conn_slot_leave(struct conn *c)
{
    struct conn_listener *l = c->listener;
    struct conn *next = l->waiting.first;
    bool had = c->queue == &l->shaking;

    conn_queue_remove(c);
    if (!had)
        return;
    met_add(MET_HANDSHAKES_OPEN, -1);
    if (!next || l->shaking.n >= l->limits->handshakes)
        return;
    conn_queue_remove(next);
    conn_slot_take(next);
    next->admitted = true;
    conn_later(next);
}

/* The oldest handshake gives way, if it is stale. */
static void
conn_slot_evict(struct conn_listener *l)
{
    struct conn *old = l->shaking.first;
    struct err e;

    if (!old || uv_now(l->env->loop) - old->since < CONN_STALE_MS)
        return;
    met_inc(MET_CONNS_OVER_HANDSHAKES);
    err_set(&e, ERR_TIMEOUT, "gave way to another handshake after %d ms",
            CONN_STALE_MS);
    conn_refuse(old, &e);
}

/* ---- what tls and h1 ask of their connection ---- */

static void
conn_on_cipher(void *data, const char *p, size_t n)
{
    struct conn *c = data;

    sock_add(&c->sock, p, n);
    conn_later(c);
}

static void
conn_write(void *data, const char *p, size_t n)
{
    struct conn *c = data;
    struct err e;

    if (c->state != CONN_SERVING)
        return;
    if (!c->tls)
        conn_on_cipher(c, p, n);
    else if (!tls_write(c->tls, p, n, &e))
        conn_fail(c, &e);
}

static void
conn_close_soon(void *data)
{
    struct conn *c = data;

    c->shut_asked = true;
    conn_later(c);
}

/* TLS that ends without close_notify: the client can tell it was cut. */
static void
conn_cut(void *data)
{
    struct err e;

    err_set(&e, ERR_PEER_GONE, "answer cut");
    conn_fail(data, &e);
}

static void
conn_deadline(void *data, uint32_t ms)
{
    struct conn *c = data;

    sock_deadline(&c->sock, ms);
}

static void
conn_stall(void *data, uint32_t ms)
{
    struct conn *c = data;

    c->sock.stall_ms = ms;
}

static size_t
conn_queued(void *data)
{
    struct conn *c = data;

    return sock_queued(&c->sock);
}

static const struct h1_io conn_io = {
    .write = conn_write,
    .later = conn_later,
    .close = conn_close_soon,
    .cut = conn_cut,
    .deadline = conn_deadline,
    .stall = conn_stall,
    .queued = conn_queued,
};

/* ---- step 1: a client is there ---- */

static void
conn_peer_name(struct conn *c)
{
    struct sockaddr_storage sa;
    int n = sizeof sa;
    char ip[INET6_ADDRSTRLEN] = "";

    snprintf(c->peer, sizeof c->peer, "unix:");
    if (c->listener->is_unix ||
        uv_tcp_getpeername(&c->sock.h.tcp, (struct sockaddr *)&sa, &n) != 0)
        return;
    uv_ip_name((struct sockaddr *)&sa, ip, sizeof ip);
    if (sa.ss_family == AF_INET6)
        snprintf(c->peer, sizeof c->peer, "[%s]:%u", ip,
                 ntohs(((struct sockaddr_in6 *)&sa)->sin6_port));
    else
        snprintf(c->peer, sizeof c->peer, "%s:%u", ip,
                 ntohs(((struct sockaddr_in *)&sa)->sin_port));
}

static void
conn_on_plain(void *data, const char *p, size_t n)
{
    struct conn *c = data;

    if (c->state == CONN_SERVING)
        h1_server_feed(c->h1, p, n);
}

static const struct tls_ops conn_tls_ops = {
    .on_cipher = conn_on_cipher,
    .on_open = conn_on_open,
    .on_plain = conn_on_plain,
};

static void
conn_on_gone(void *data, int code)
{
    struct conn *c = data;
    struct err e;

    err_set(&e, ERR_PEER_GONE, "the client closed: %s", uv_strerror(code));
    conn_fail(c, &e);
}

static void
conn_on_drain(void *data)
{
    struct conn *c = data;

    if (c->state == CONN_SERVING)
        h1_server_drained(c->h1);
}

static void
conn_on_flushed(void *data)
{
    conn_later(data);
}

/* Why a handshake ended, in one line that names the certificate. */
static void
conn_log_refusal(struct conn *c, const struct err *e)
{
    struct log_line l;

    met_inc(e->kind == ERR_TIMEOUT ? MET_HS_TIMEOUT
            : c->tls->bad_cert     ? MET_HS_BAD_CERT
            : c->tls->no_cert      ? MET_HS_NO_CERT
                                   : MET_HS_FAILED);
    if (!log_begin(&l, LOG_WARN, "handshake"))
        return;
    log_int(&l, "conn", (int64_t)c->id);
    log_str(&l, "peer", str_of(c->peer));
    log_str(&l, "listener", c->listener->name);
    if (c->tls && c->tls->leaf)
        log_str(&l, "certificate", str_of(c->tls->leaf));
    log_str(&l, "msg", str_of(e->msg));
    log_end(&l);
}

/* Ends a handshake, and tells both sides why: us in full, the client by TLS's
 * alert. */
static void
conn_refuse(struct conn *c, struct err *e)
{
    conn_log_refusal(c, e);
    sock_flush(&c->sock);
    e->kind = ERR_PEER_GONE;  // it is told
    conn_fail(c, e);
}

/* A connection that waits for a slot looks again every CONN_STALE_MS. */
static bool
conn_wait_on(struct conn *c)
{
    struct conn_listener *l = c->listener;

    if (c->queue != &l->waiting ||
        uv_now(l->env->loop) - c->since >= l->limits->handshake_ms)
        return false;
    sock_deadline(&c->sock, CONN_STALE_MS);
    conn_slot_evict(l);
    return true;
}

static void
conn_on_time(void *data)
{
    struct conn *c = data;
    struct err e;

    switch (c->state) {
    case CONN_HANDSHAKE:
        if (conn_wait_on(c))
            break;
        err_set(&e, ERR_TIMEOUT, "no complete handshake within %u ms",
                c->listener->limits->handshake_ms);
        conn_refuse(c, &e);
        break;
    case CONN_SERVING:
        h1_server_on_time(c->h1);
        break;
    case CONN_LINGER:
        err_set(&e, ERR_PEER_GONE, "lingered for %d ms", CONN_LINGER_MS);
        conn_fail(c, &e);
        break;
    case CONN_CLOSING:
        break;
    }
}

static void
conn_on_stall(void *data)
{
    struct conn *c = data;
    struct err e;

    met_inc(MET_LIMIT_WRITE_TIME);
    err_set(&e, ERR_TIMEOUT, "the client took no byte for %u ms",
            c->sock.stall_ms);
    conn_fail(c, &e);
}

static const struct sock_ops conn_sock_ops = {
    .on_read = conn_on_read,
    .on_gone = conn_on_gone,
    .on_drain = conn_on_drain,
    .on_flushed = conn_on_flushed,
    .on_time = conn_on_time,
    .on_stall = conn_on_stall,
    .on_closed = conn_on_closed,
};

static struct conn *
conn_new(struct conn_listener *l)
{
    struct conn_set *set = l->env->conns;
    struct conn *c = obj_new(sizeof *c, CONN_MAGIC);

    c->id = ++set->next_id;
    c->listener = l;
    c->doing = "TLS handshake";
    c->from = (struct req_from){.peer = c->peer,
                                .listener = l->index,
                                .listener_name = l->name,
                                .explain = l->explain,
                                .conn = c->id,
                                .limits = l->limits};
    sock_init(&c->sock, &set->pool, l->is_unix, &conn_sock_ops, c);
    c->sock.stall_ms = l->limits->write_ms;
    c->next = set->first;
    if (set->first)
        set->first->prev = c;
    set->first = c;
    set->n++;
    c->since = uv_now(l->env->loop);
    l->open++;
    if (l->tls)  // the admin address does not count itself
        met_add(MET_CONNS_OPEN, 1);
    return c;
}

/* The admin address stays reachable: its oldest connection gives way. */
static void
conn_evict_plain(struct conn_listener *l)
{
    struct conn *old = NULL;
    struct err e;

    for (struct conn *c = l->env->conns->first; c; c = c->next)
        if (c->listener == l && c->state < CONN_CLOSING)
            old = c;
    err_set(&e, ERR_PEER_GONE, "gave way to a newer connection");
    if (old)
        conn_fail(old, &e);
}

static void
conn_accept(struct conn_listener *l)
{
    bool over = l->open >= l->limits->connections && l->tls;
    struct conn *c;
    struct err e;

    if (!l->tls && l->open >= l->limits->connections)
        conn_evict_plain(l);
    c = conn_new(l);
    if (uv_accept(&l->h.stream, &c->sock.h.stream) != 0) {
        err_set(&e, ERR_NET, "accept failed");
        conn_fail(c, &e);
        return;
    }
    conn_peer_name(c);
    if (over) {
        met_inc(MET_CONNS_OVER);
        err_set(&e, ERR_BUSY, "more than %u connections",
                l->limits->connections);
        conn_fail(c, &e);
        return;
    }
    if (l->tls)
        met_inc(MET_CONNS);
    if (!l->is_unix)
        uv_tcp_nodelay(&c->sock.h.tcp, 1);
    if (l->tls)
        sock_deadline(&c->sock, l->limits->handshake_ms);
    else
        conn_on_open(c);
    sock_read(&c->sock, true);
}

/* Raised when a client waits, or could not be accepted (no descriptors). */
static void
conn_on_client(uv_stream_t *server, int status)
{
    struct conn_listener *l = server->data;

    if (status == 0)
        conn_accept(l);
    else
        log_at(LOG_ERROR, "conn", "%.*s: accept: %s", STR_FMT(l->name),
               uv_strerror(status));
}

/* The first bytes of a client: a slot is free, or becomes so, or it waits. */
static void
conn_hello(struct conn *c, const char *p, size_t n)
{
    struct conn_listener *l = c->listener;

    if (l->shaking.n >= l->limits->handshakes)
        conn_slot_evict(l);
    if (l->shaking.n < l->limits->handshakes) {
        conn_slot_take(c);
        conn_begin(c, p, n);
        return;
    }
    mem_buf_add(&c->early, p, n);
    sock_read(&c->sock, false);
    conn_queue_add(&l->waiting, c);
    sock_deadline(&c->sock, CONN_STALE_MS);
}

/* The handshake starts with the client's first bytes. */
static void
conn_begin(struct conn *c, const char *p, size_t n)
{
    c->tls = tls_new(c->listener->tls, &conn_tls_ops, c);
    sock_deadline(&c->sock, c->listener->limits->handshake_ms);
    conn_on_read(c, p, n);
}

/* The same, for a client that has waited for its slot. */
static void
conn_begin_late(struct conn *c)
{
    struct mem_buf early = c->early;

    c->early = (struct mem_buf){0};
    c->admitted = false;
    sock_read(&c->sock, true);
    conn_begin(c, mem_buf_ptr(&early), mem_buf_len(&early));
    mem_buf_free(&early);
}

static void
conn_expires_by(struct conn_set *set, int64_t until)
{
    if (until < set->expires)
        set->expires = until;
}

/* The handshake is done, or there is none: the codec may start. */
static void
conn_on_open(void *data)
{
    struct conn *c = data;

    conn_enter(c, CONN_SERVING, "serving");
    if (c->tls) {
        met_inc(MET_HS_OK);
        c->from.identity = c->tls->identity;
        conn_expires_by(conn_set_of(c), c->tls->identity->until);
        c->from.tls_version = tls_version(c->tls);
        c->from.tls_cipher = tls_cipher(c->tls);
        c->from.sni = tls_sni(c->tls);
    }
    c->h1 = h1_server_new(&conn_io, c, c->listener->req_ops, &c->from);
    c->listener->ops->on_open(c);
    if (c->listener->env->draining)
        h1_server_stop(c->h1);
}

/* ---- step 2, many times: bytes come and go ---- */

/* Not while a client does not take what we send: TLS itself answers, too. */
static bool
conn_wants(const struct conn *c)
{
    return h1_wants(c->h1) && sock_queued(&c->sock) <= SOCK_HIGH;
}

/* Ciphertext came in. tls_feed() calls the codec, which may call up into Lua,
 * which may close us: afterwards `c` is still memory. */
static void
conn_on_read(void *data, const char *p, size_t n)
{
    struct conn *c = OBJ(struct conn, CONN, data);
    struct err e;

    if (c->state == CONN_LINGER) {
        c->lingered += n;
        if (c->lingered > CONN_LINGER_BYTES)
            conn_on_gone(c, UV_EOF);
        return;
    }
    if (!c->listener->tls) {
        conn_on_plain(c, p, n);
    } else if (!c->tls) {
        conn_hello(c, p, n);
        return;
    } else if (!tls_feed(c->tls, p, n, &e)) {
        if (c->state == CONN_HANDSHAKE)
            conn_refuse(c, &e);
        else
            conn_fail(c, &e);
        return;
    }
    if (c->state != CONN_SERVING)
        return;
    if (c->tls && c->tls->state == TLS_PEER_CLOSED)
        h1_server_eof(c->h1);
    if (!conn_wants(c))
        sock_read(&c->sock, false);
}

/* True: once more in the next turn. */
static bool
conn_run_one(struct conn *c)
{
    bool more = false;

    if (c->state == CONN_HANDSHAKE && c->admitted)
        conn_begin_late(c);
    if (c->state == CONN_SERVING)
        more = h1_server_resume(c->h1);
    if (c->state == CONN_SERVING && conn_wants(c))
        sock_read(&c->sock, true);
    sock_flush(&c->sock);
    if (c->shut_asked && c->state == CONN_SERVING && !conn_queued(c))
        conn_shut(c);
    return more && c->state == CONN_SERVING;
}

/* Once the callbacks of a turn of the loop are done (see work). True: there is
 * more to do, so the loop must not sleep. */
static bool
conn_run_later(struct conn_set *set)
{
    struct conn *list = set->later;

    set->later = NULL;
    while (list) {
        struct conn *c = list;
        bool more = false;

        list = c->later;
        if (c->state != CONN_CLOSING)
            more = conn_run_one(c);
        c->on_later = false;  // what conn_run_one() itself asked for, it did
        if (more)
            conn_later(c);
    }
    return set->later != NULL;
}

/* ---- step 3: the end ---- */

static void
conn_shut(struct conn *c)
{
    uv_os_fd_t fd;

    conn_enter(c, CONN_LINGER, "lingering");
    if (c->tls) {
        tls_bye(c->tls);
        sock_flush(&c->sock);
    }
    if (uv_fileno(&c->sock.h.handle, &fd) == 0)
        shutdown(fd, SHUT_WR);
    sock_deadline(&c->sock, CONN_LINGER_MS);
    sock_read(&c->sock, true);
}

/* The one way out. Safe from any callback, and safe twice: the memory lives
 * until conn_on_closed(), so a caller may still return through us. */
static void
conn_fail(struct conn *c, const struct err *e)
{
    if (c->state == CONN_CLOSING)
        return;
    err_log(e, "conn", c->id, c->doing, c->peer);
    conn_enter(c, CONN_CLOSING, "closing");
    sock_close(&c->sock);
    if (c->h1)
        h1_server_gone(c->h1, e);
}

static void
conn_on_closed(void *data)
{
    struct conn *c = OBJ(struct conn, CONN, data);
    struct conn_set *set = conn_set_of(c);

    if (c->on_later)  // take it off the list; it is short
        for (struct conn **p = &set->later; *p; p = &(*p)->later)
            if (*p == c) {
                *p = c->later;
                break;
            }
    if (c->prev)
        c->prev->next = c->next;
    else
        set->first = c->next;
    if (c->next)
        c->next->prev = c->prev;
    set->n--;
    c->listener->open--;
    if (c->listener->tls)
        met_add(MET_CONNS_OPEN, -1);
    c->listener->ops->on_gone(c);
    h1_server_free(c->h1);
    tls_free(c->tls);
    mem_buf_free(&c->early);
    free(c->from.allowed);
    obj_free(c);
}

/* ---- the listener ---- */

/* Accepts on `fd`, which the supervisor has bound. */
static bool
conn_listen(struct conn_listener *l, int fd, struct err *e)
{
    int rc;

    if (l->is_unix) {
        uv_pipe_init(l->env->loop, &l->h.pipe, 0);
        rc = uv_pipe_open(&l->h.pipe, fd);
    } else {
        uv_tcp_init(l->env->loop, &l->h.tcp);
        rc = uv_tcp_open(&l->h.tcp, fd);
    }
    l->h.handle.data = l;
    if (rc == 0)
        rc = uv_listen(&l->h.stream, CONN_BACKLOG, conn_on_client);
    if (rc != 0)
        return err_set(e, ERR_CONFIG, "%.*s: %s", STR_FMT(l->name),
                       uv_strerror(rc));
    return true;
}

/* A certificate on its path is out of date, or a list of revoked ones: the
 * request under way is the last, and has CONN_EXPIRE_MS to end. */
static void
conn_expire_one(struct conn_set *set, struct conn *c, int64_t now)
{
    uint64_t ms = uv_now(c->listener->env->loop);
    struct err e;

    if (now <= c->from.identity->until) {
        conn_expires_by(set, c->from.identity->until);
        return;
    }
    conn_expires_by(set, now);
    if (!c->expired) {
        met_inc(MET_CONNS_EXPIRED);
        c->expired = ms;
        h1_server_stop(c->h1);
    } else if (ms - c->expired >= CONN_EXPIRE_MS) {
        err_set(&e, ERR_TLS,
                "the client's certificate, or a CA of it, has "
                "expired since it connected");
        conn_fail(c, &e);
    }
}

/* Once a second. `now` is Unix seconds. */
static void
conn_expire(struct conn_set *set, int64_t now)
{
    if (now <= set->expires)
        return;
    set->expires = INT64_MAX;
    for (struct conn *c = set->first; c; c = c->next)
        if (c->state == CONN_SERVING && c->from.identity)
            conn_expire_one(set, c, now);
}

/* Drain: what is being answered is answered, with Connection: close. */
static void
conn_stop_all(struct conn_set *set)
{
    for (struct conn *c = set->first; c; c = c->next)
        if (c->state == CONN_SERVING)
            h1_server_stop(c->h1);
}

/* ==== 19 up: upstream connections ===========================================
 *
 * A pool for each upstream and worker: resolve, connect, keep alive, pick the
 * target with the fewest calls. A call is one request and its answer over one
 * connection; whoever makes it gives the head's bytes and gets the answer in
 * pieces, with back-pressure both ways.
 *
 *   call: WAIT (resolve, connect) --> SEND --> HEAD --> BODY --> done
 *
 * One retry, on a fresh connection: when nothing was sent, or when a reused
 * connection of an idempotent request gave no byte back (RFC 9110, 9.2.2).
 *
 * Owner   up_call() makes a call; it ends by exactly one of on_end, on_fail,
 *         up_cancel(). up_on_closed() frees a connection.
 * Down    sock h1 c-ares        Up  struct up_ops
 * Entry   up_new  up_call  up_go  up_send  up_send_end  up_pause  up_cancel
 */
enum {
    UP_CALL_MAGIC = 0x75706361,
    UP_CONN_MAGIC = 0x7570636f,
    UP_NAME_TTL_MIN = 1,  // seconds a resolved name is used
    UP_NAME_TTL_MAX = 60,
    UP_DOWN_MS = 2000,  // a target that refused is tried last for so long
    UP_ADDRS = 8,       // of one name
};

/* Up: what becomes of a call. */
struct up_ops {
    void (*on_head)(void *, const struct h1_answer *);
    void (*on_body)(void *, const char *, size_t);
    void (*on_end)(void *);
    void (*on_fail)(void *, const struct err *);  // also in the middle
    void (*on_drain)(void *);                     // up_send() may go on
};

struct up_conn;

struct up_target {
    const struct cfg_target *cfg;  // borrowed
    struct up_pool *pool;          // borrowed
    struct up_conn *idle;          // newest first
    unsigned idle_n, calls;
    uint64_t down_until;  // ms of uv_now()
    uint64_t names_until;
    struct sockaddr_storage addrs[UP_ADDRS];
    unsigned addrs_n, next_addr;
    bool resolving;
    struct up_call *waiting, **waiting_end;  // for the name; oldest first
    uv_timer_t late;                         // for the oldest's connect_by
};

struct up_pool {
    const struct cfg_upstream *cfg;  // borrowed
    struct up_set *set;              // borrowed
    struct up_target *targets;
    size_t n;
};

/* Per worker. */
struct up_set {
    struct env *env;  // borrowed
    struct up_pool *pools;
    size_t n;
    ares_channel_t *ares;  // owned; NULL where no target has a name
    uv_timer_t ares_timer;
    struct up_poll *polls;  // sockets of c-ares
};

/* What up_call() is asked to do; the strings live in `arena`. */
struct up_request {
    struct str head;       // request line to empty line, framing included
    struct str body;       // sent after it
    bool stream, chunked;  // more body by up_send(), until up_send_end()
    bool to_head;          // the method is HEAD
    bool idempotent;
    uint32_t head_ms, idle_ms;
};

enum up_state { UP_WAIT, UP_SEND, UP_HEAD, UP_BODY };

struct up_call {
    unsigned magic;
    enum up_state state;
    struct up_pool *pool;      // borrowed
    struct up_target *target;  // borrowed; NULL before the first choice
    const struct up_ops *ops;
    void *data;
    struct mem_arena *arena;  // borrowed: the request's
    struct up_request want;
    struct up_conn *conn;  // while on a connection
    struct mem_buf early;  // streamed body that came before the connection
    bool early_end, sent_stream;
    bool feeding, dead;  // dead: freed when the parser has returned
    unsigned tries;
    uint64_t connect_by;   // ms of uv_now(): the name, and the connection
    struct up_call *next;  // waiting for the same name
    struct h1_client parser;
};

enum up_conn_state { UP_CONNECTING, UP_BUSY, UP_IDLE, UP_CLOSING };

struct up_conn {
    unsigned magic;
    enum up_conn_state state;
    struct sock sock;
    struct up_target *target;  // borrowed
    struct up_call *call;      // borrowed; NULL while idle
    uv_connect_t connect;
    bool reused, paused;
    struct up_conn *prev, *next;  // in target->idle
};

/* In the order of a call's life. */
static void up_go(struct up_call *);
static void up_on_names(struct up_target *, const struct err *);
static void up_on_late(uv_timer_t *);
static void up_connect(struct up_call *);
static void up_on_connect(uv_connect_t *, int);
static void up_start(struct up_call *, struct up_conn *);
static void up_on_read(void *, const char *, size_t);
static void up_done(struct up_conn *);
static void up_broken(struct up_conn *, const struct err *);
static void up_on_closed(void *);

static struct up_conn *
up_conn_check(void *data)
{
    return OBJ(struct up_conn, UP_CONN, data);
}

static uint64_t
up_now(const struct up_call *c)
{
    return uv_now(c->pool->set->env->loop);
}

/* ---- names, by c-ares on our loop ---- */

struct up_poll {
    uv_poll_t poll;
    ares_socket_t fd;
    struct up_set *set;
    struct up_poll *next;
};

static void
up_ares_on_timer(uv_timer_t *timer)
{
    struct up_set *set = timer->data;

    if (set->polls)
        ares_process_fd(set->ares, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
    else
        uv_timer_stop(timer);
}

static void
up_ares_on_poll(uv_poll_t *poll, int status, int events)
{
    struct up_poll *p = poll->data;
    bool in = status < 0 || (events & UV_READABLE);
    bool out = status < 0 || (events & UV_WRITABLE);

    ares_process_fd(p->set->ares, in ? p->fd : ARES_SOCKET_BAD,
                    out ? p->fd : ARES_SOCKET_BAD);
}

static void
up_ares_on_poll_closed(uv_handle_t *handle)
{
    free(handle->data);
}

/* c-ares says which of its sockets it waits for. */
static void
up_ares_on_socket(void *data, ares_socket_t fd, int in, int out)
{
    struct up_set *set = data;
    struct up_poll **at = &set->polls, *p;

    while (*at && (*at)->fd != fd)
        at = &(*at)->next;
    p = *at;
    if (p && !in && !out) {
        *at = p->next;
        uv_close((uv_handle_t *)&p->poll, up_ares_on_poll_closed);
        return;
    }
    if (!p && (in || out)) {
        p = mem_xcalloc(sizeof *p);
        p->fd = fd;
        p->set = set;
        p->poll.data = p;
        p->next = set->polls;
        set->polls = p;
        uv_poll_init_socket(set->env->loop, &p->poll, fd);
    }
    if (p)
        uv_poll_start(&p->poll,
                      (in ? UV_READABLE : 0) | (out ? UV_WRITABLE : 0),
                      up_ares_on_poll);
}

static bool
up_ares_open(struct up_set *set, struct err *e)
{
    struct ares_options o = {.sock_state_cb = up_ares_on_socket,
                             .sock_state_cb_data = set,
                             .timeout = 2000,
                             .tries = 2};
    int rc;

    if (set->ares)
        return true;
    rc = ares_init_options(&set->ares, &o,
                           ARES_OPT_SOCK_STATE_CB | ARES_OPT_TIMEOUTMS |
                               ARES_OPT_TRIES);
    if (rc != ARES_SUCCESS)
        return err_set(e, ERR_UPSTREAM, "c-ares: %s", ares_strerror(rc));
    return true;
}

static void
up_ares_on_names(void *data, int status, int timeouts,
                 struct ares_addrinfo *info)
{
    struct up_target *t = data;
    int ttl = UP_NAME_TTL_MAX;
    struct err e;

    (void)timeouts;
    t->resolving = false;
    t->addrs_n = 0;
    if (status != ARES_SUCCESS) {
        err_set(&e, ERR_UPSTREAM, "name %.*s: %s", STR_FMT(t->cfg->host),
                ares_strerror(status));
        if (status != ARES_EDESTRUCTION)
            up_on_names(t, &e);
        return;
    }
    for (struct ares_addrinfo_node *n = info->nodes; n && t->addrs_n < UP_ADDRS;
         n = n->ai_next) {
        memcpy(&t->addrs[t->addrs_n++], n->ai_addr, (size_t)n->ai_addrlen);
        if (n->ai_ttl < ttl)
            ttl = n->ai_ttl < UP_NAME_TTL_MIN ? UP_NAME_TTL_MIN : n->ai_ttl;
    }
    ares_freeaddrinfo(info);
    t->names_until = uv_now(t->pool->set->env->loop) + (uint64_t)ttl * 1000;
    t->next_addr = 0;
    if (!t->addrs_n)
        err_set(&e, ERR_UPSTREAM, "name %.*s: no address",
                STR_FMT(t->cfg->host));
    up_on_names(t, t->addrs_n ? NULL : &e);
}

static void
up_resolve(struct up_call *c)
{
    struct up_target *t = c->target;
    struct ares_addrinfo_hints hints = {.ai_family = AF_UNSPEC,
                                        .ai_socktype = SOCK_STREAM};
    char port[8];
    struct err e;

    *t->waiting_end = c;
    t->waiting_end = &c->next;
    if (t->waiting == c)
        uv_timer_start(&t->late, up_on_late, c->pool->cfg->connect_ms, 0);
    if (t->resolving)
        return;
    if (!up_ares_open(t->pool->set, &e)) {
        up_on_names(t, &e);
        return;
    }
    t->resolving = true;
    uv_timer_start(&t->pool->set->ares_timer, up_ares_on_timer, 500, 500);
    snprintf(port, sizeof port, "%u", t->cfg->port);
    ares_getaddrinfo(t->pool->set->ares, str_c(c->arena, t->cfg->host), port,
                     &hints, up_ares_on_names, t);
}

/* The call waits for its target's name no longer, if it did. */
static void
up_unwait(struct up_call *c)
{
    struct up_call **at = &c->target->waiting;

    while (*at && *at != c)
        at = &(*at)->next;
    if (!*at)
        return;
    *at = c->next;
    c->next = NULL;
    if (!*at)
        c->target->waiting_end = at;
}

/* ---- the end of a call ---- */

/* Takes the call out of everything that knows it. */
static void
up_call_detach(struct up_call *c)
{
    if (c->target) {
        up_unwait(c);
        c->target->calls--;
        c->target = NULL;
    }
    if (c->conn)
        c->conn->call = NULL;
    c->conn = NULL;
}

static void
up_call_free(struct up_call *c)
{
    up_call_detach(c);
    c->dead = true;
    if (c->feeding)
        return;
    h1_client_fini(&c->parser);
    mem_buf_free(&c->early);
    obj_free(c);
}

static void
up_fail(struct up_call *c, const struct err *e)
{
    const struct up_ops *ops = c->ops;
    void *data = c->data;

    met_inc(MET_UP_FAILED);
    up_call_free(c);
    ops->on_fail(data, e);
}

/* ---- step 1: a target, and a connection to it ---- */

/* The target with the fewest calls; one that just refused comes last. */
static struct up_target *
up_pick(struct up_pool *p, const struct up_target * not, uint64_t now)
{
    struct up_target *best = NULL;

    for (size_t i = 0; i < p->n; i++) {
        struct up_target *t = &p->targets[i];
        bool down = t->down_until > now, best_down;

        if (t == not &&p->n > 1)
            continue;
        best_down = best && best->down_until > now;
        if (!best || (best_down && !down) ||
            (best_down == down && t->calls < best->calls))
            best = t;
    }
    return best;
}

static void
up_idle_remove(struct up_conn *u)
{
    struct up_target *t = u->target;

    if (u->prev)
        u->prev->next = u->next;
    else
        t->idle = u->next;
    if (u->next)
        u->next->prev = u->prev;
    u->prev = u->next = NULL;
    t->idle_n--;
}

/* Closes a connection that no call is on. */
static void
up_conn_close(struct up_conn *u)
{
    must(!u->call);
    if (u->state == UP_CLOSING)
        return;
    if (u->state == UP_IDLE)
        up_idle_remove(u);
    u->state = UP_CLOSING;
    sock_close(&u->sock);
}

static void
up_go(struct up_call *c)
{
    struct up_target *t = up_pick(c->pool, c->target, up_now(c));
    struct up_conn *u = c->tries ? NULL : t->idle;

    up_call_detach(c);
    c->target = t;
    t->calls++;
    c->tries++;
    c->state = UP_WAIT;
    c->connect_by = up_now(c) + c->pool->cfg->connect_ms;
    if (u) {
        up_idle_remove(u);
        u->reused = true;
        met_inc(MET_UP_REUSED);
        up_start(c, u);
    } else if (t->cfg->is_unix || t->cfg->numeric ||
               (t->addrs_n && t->names_until > up_now(c))) {
        up_connect(c);
    } else {
        up_resolve(c);
    }
}

/* The first try's target refused, or its name has no address. */
static void
up_no_connection(struct up_call *c, const struct err *e)
{
    c->target->down_until = up_now(c) + UP_DOWN_MS;
    if (c->tries < 2 && c->pool->n > 1)
        up_go(c);
    else
        up_fail(c, e);
}

static void
up_on_names(struct up_target *t, const struct err *e)
{
    struct up_call *c;

    while ((c = t->waiting)) {
        up_unwait(c);
        if (e)
            up_no_connection(c, e);
        else
            up_connect(c);
    }
}

/* No name server answered in time. The search goes on, for the next call. */
static void
up_on_late(uv_timer_t *timer)
{
    struct up_target *t = timer->data;
    uint64_t now = uv_now(timer->loop);
    struct up_call *c;
    struct err e;

    // NOLINTNEXTLINE(clang-analyzer-unix.Malloc): up_unwait() takes c off
    while ((c = t->waiting) && c->connect_by <= now) {
        up_unwait(c);
        met_inc(MET_LIMIT_UP_CONNECT);
        err_set(&e, ERR_UPSTREAM_TIME, "name %.*s: no address within %u ms",
                STR_FMT(t->cfg->host), c->pool->cfg->connect_ms);
        up_no_connection(c, &e);
    }
    if (c)
        uv_timer_start(timer, up_on_late, c->connect_by - now, 0);
}

static void
up_on_gone(void *data, int code)
{
    struct up_conn *u = up_conn_check(data);
    struct up_call *c = u->call;
    struct err e;

    if (!c) {
        up_conn_close(u);
        return;
    }
    if (u->state == UP_BUSY && code == UV_EOF &&
        h1_client_eof(&c->parser, &e)) {
        up_done(u);  // it was the end of the body
        return;
    }
    if (code != UV_EOF || u->state != UP_BUSY)
        err_set(&e, ERR_UPSTREAM, "%.*s: %s", STR_FMT(u->target->cfg->text),
                uv_strerror(code));
    up_broken(u, &e);
}

static void
up_on_drain(void *data)
{
    struct up_conn *u = up_conn_check(data);

    if (u->call)
        u->call->ops->on_drain(u->call->data);
}

static void
up_on_flushed(void *data)
{
    (void)data;
}

static void
up_on_time(void *data)
{
    struct up_conn *u = up_conn_check(data);
    struct up_call *c = u->call;
    struct err e;

    if (!c) {
        up_conn_close(u);  // idle for keepalive_ms
        return;
    }
    if (u->state == UP_CONNECTING) {
        met_inc(MET_LIMIT_UP_CONNECT);
        err_set(&e, ERR_UPSTREAM_TIME, "%.*s: no connection within %u ms",
                STR_FMT(u->target->cfg->text), c->pool->cfg->connect_ms);
    } else if (c->state == UP_BODY) {
        met_inc(MET_LIMIT_UP_IDLE);
        err_set(&e, ERR_UPSTREAM_TIME, "%.*s: no byte for %u ms",
                STR_FMT(u->target->cfg->text), c->want.idle_ms);
    } else {
        met_inc(MET_LIMIT_UP_HEAD);
        err_set(&e, ERR_UPSTREAM_TIME, "%.*s: no answer within %u ms",
                STR_FMT(u->target->cfg->text), c->want.head_ms);
    }
    up_broken(u, &e);
}

static void
up_on_stall(void *data)
{
    struct up_conn *u = up_conn_check(data);
    struct err e;

    err_set(&e, ERR_UPSTREAM_TIME, "%.*s: took no byte for %u ms",
            STR_FMT(u->target->cfg->text), u->sock.stall_ms);
    if (u->call)
        up_broken(u, &e);
    else
        up_conn_close(u);
}

static const struct sock_ops up_sock_ops = {
    .on_read = up_on_read,
    .on_gone = up_on_gone,
    .on_drain = up_on_drain,
    .on_flushed = up_on_flushed,
    .on_time = up_on_time,
    .on_stall = up_on_stall,
    .on_closed = up_on_closed,
};

static void
up_connect(struct up_call *c)
{
    struct up_target *t = c->target;
    struct up_conn *u = obj_new(sizeof *u, UP_CONN_MAGIC);
    struct sockaddr *sa = (struct sockaddr *)(uintptr_t)&t->cfg->sa;
    uint64_t now = up_now(c);
    struct err e;
    int rc;

    u->target = t;
    u->call = c;
    c->conn = u;
    sock_init(&u->sock, &t->pool->set->env->conns->pool, t->cfg->is_unix,
              &up_sock_ops, u);
    u->sock.stall_ms = c->pool->cfg->idle_ms;
    sock_deadline(&u->sock,
                  c->connect_by > now ? (uint32_t)(c->connect_by - now) : 1);
    u->connect.data = u;
    if (!t->cfg->numeric && !t->cfg->is_unix)
        sa = (struct sockaddr *)&t->addrs[t->next_addr++ % t->addrs_n];
    if (t->cfg->is_unix) {
        rc = uv_pipe_connect2(&u->connect, &u->sock.h.pipe, t->cfg->path.p,
                              t->cfg->path.n, UV_PIPE_NO_TRUNCATE,
                              up_on_connect);
    } else {
        uv_tcp_nodelay(&u->sock.h.tcp, 1);
        rc = uv_tcp_connect(&u->connect, &u->sock.h.tcp, sa, up_on_connect);
    }
    if (rc != 0) {
        err_set(&e, ERR_UPSTREAM, "%.*s: %s", STR_FMT(t->cfg->text),
                uv_strerror(rc));
        up_broken(u, &e);
    }
}

static void
up_on_connect(uv_connect_t *req, int status)
{
    struct up_conn *u = up_conn_check(req->data);
    struct err e;

    if (status == UV_ECANCELED || u->state == UP_CLOSING)
        return;
    if (!u->call) {
        up_conn_close(u);
        return;
    }
    if (status < 0) {
        err_set(&e, ERR_UPSTREAM, "%.*s: %s", STR_FMT(u->target->cfg->text),
                uv_strerror(status));
        up_broken(u, &e);
        return;
    }
    met_inc(MET_UP_CONNECTS);
    up_start(u->call, u);
}

/* ---- step 2: the request ---- */

static void
up_on_head(void *data, struct h1_answer *a)
{
    struct up_call *c = OBJ(struct up_call, UP_CALL, data);

    c->state = UP_BODY;
    c->ops->on_head(c->data, a);
}

static void
up_on_body(void *data, const char *p, size_t n)
{
    struct up_call *c = OBJ(struct up_call, UP_CALL, data);

    if (!c->dead)
        c->ops->on_body(c->data, p, n);
}

static const struct h1_client_ops up_parser_ops = {
    .on_head = up_on_head,
    .on_body = up_on_body,
};

static void
up_start(struct up_call *c, struct up_conn *u)
{
    u->state = UP_BUSY;
    u->call = c;
    c->conn = u;
    c->state = UP_SEND;
    h1_client_fini(&c->parser);
    h1_client_init(&c->parser, &up_parser_ops, c, c->arena, c->want.to_head);
    sock_add(&u->sock, c->want.head.p, c->want.head.n);
    if (c->want.body.n)
        sock_add(&u->sock, c->want.body.p, c->want.body.n);
    if (mem_buf_len(&c->early)) {
        c->sent_stream = true;
        sock_add(&u->sock, mem_buf_ptr(&c->early), mem_buf_len(&c->early));
        mem_buf_free(&c->early);
    }
    if (!c->want.stream || c->early_end)
        c->state = UP_HEAD;
    sock_deadline(&u->sock, c->state == UP_HEAD ? c->want.head_ms : 0);
    u->paused = false;
    sock_read(&u->sock, true);
    sock_flush(&u->sock);
    if (c->want.stream && !c->early_end && sock_queued(&u->sock) <= SOCK_HIGH)
        c->ops->on_drain(c->data);
}

/* More of a streamed body. Returns false while the queue is long: wait for
 * on_drain(). */
static bool
up_send(struct up_call *c, const char *p, size_t n)
{
    struct mem_buf *b = c->conn && c->conn->state == UP_BUSY
                            ? sock_out(&c->conn->sock)
                            : &c->early;

    if (c->want.chunked)
        h1_write_chunk_size(b, n);
    if (b == &c->early) {
        mem_buf_add(b, p, n);
        if (c->want.chunked)
            mem_buf_add(b, "\r\n", 2);
        return false;
    }
    c->sent_stream = true;
    sock_send(&c->conn->sock, p, n);
    if (c->want.chunked)
        sock_send(&c->conn->sock, "\r\n", 2);
    return sock_queued(&c->conn->sock) <= SOCK_HIGH;
}

static void
up_send_end(struct up_call *c)
{
    c->early_end = true;
    if (!c->conn || c->conn->state != UP_BUSY) {
        if (c->want.chunked)
            mem_buf_add(&c->early, "0\r\n\r\n", 5);
        return;
    }
    c->sent_stream = true;  // an end alone, too, is not sent twice
    if (c->want.chunked)
        sock_add(&c->conn->sock, "0\r\n\r\n", 5);
    sock_flush(&c->conn->sock);
    if (c->state == UP_SEND) {
        c->state = UP_HEAD;
        sock_deadline(&c->conn->sock, c->want.head_ms);
    }
}

/* ---- step 3: the answer ---- */

/* Holds the answer back, or lets it flow again. */
static void
up_pause(struct up_call *c, bool on)
{
    if (!c->conn || c->conn->state != UP_BUSY || c->conn->paused == on)
        return;
    c->conn->paused = on;
    sock_read(&c->conn->sock, !on);
    sock_deadline(&c->conn->sock, on                    ? 0
                                  : c->state == UP_BODY ? c->want.idle_ms
                                                        : c->want.head_ms);
}

/* The answer is whole: the connection may serve again only if nothing is left
 * over in either direction. */
static void
up_done(struct up_conn *u)
{
    struct up_call *c = u->call;
    const struct up_ops *ops = c->ops;
    struct up_target *t = u->target;
    void *data = c->data;
    bool keep = c->parser.answer.keep && !sock_queued(&u->sock) &&
                (!c->want.stream || c->early_end) &&
                t->idle_n < c->pool->cfg->keepalive;

    t->down_until = 0;
    up_call_free(c);
    if (keep) {
        u->state = UP_IDLE;
        u->next = t->idle;
        if (t->idle)
            t->idle->prev = u;
        t->idle = u;
        t->idle_n++;
        sock_read(&u->sock, true);
        sock_deadline(&u->sock, t->pool->cfg->keepalive_ms);
    } else {
        up_conn_close(u);
    }
    ops->on_end(data);
}

static void
up_on_read(void *data, const char *p, size_t n)
{
    struct up_conn *u = up_conn_check(data);
    struct up_call *c = u->call;
    struct err e;
    bool ok;

    if (!c) {  // bytes nobody asked for
        up_conn_close(u);
        return;
    }
    c->feeding = true;
    ok = h1_client_feed(&c->parser, p, n, &e);
    c->feeding = false;
    if (c->dead) {
        up_call_free(c);  // cancelled from above
    } else if (!ok) {
        met_inc(MET_UP_BAD);
        e.kind = ERR_UPSTREAM;
        err_prefix(&e,
                   "%.*s: malformed answer: ", STR_FMT(u->target->cfg->text));
        up_broken(u, &e);
    } else if (c->parser.done)
        up_done(u);
    else if (c->state == UP_BODY && !u->paused)
        sock_deadline(&u->sock, c->want.idle_ms);
}

/* May the same request be sent once more? */
static bool
up_may_retry(const struct up_conn *u, const struct up_call *c)
{
    if (c->tries > 1 || c->sent_stream || c->parser.started)
        return false;
    return u->state == UP_BUSY && u->reused && c->want.idempotent;
}

/* A connection failed under its call. */
static void
up_broken(struct up_conn *u, const struct err *e)
{
    struct up_call *c = u->call;
    bool connecting = u->state == UP_CONNECTING;
    bool again = up_may_retry(u, c);

    c->conn = NULL;
    u->call = NULL;
    up_conn_close(u);
    if (connecting) {
        up_no_connection(c, e);
    } else if (again) {
        up_go(c);
    } else {
        if (c->state == UP_BODY)
            met_inc(MET_UP_EARLY);
        up_fail(c, e);
    }
}

static void
up_on_closed(void *data)
{
    struct up_conn *u = up_conn_check(data);

    obj_free(u);
}

/* The caller has lost interest; none of its ops is called any more. */
static void
up_cancel(struct up_call *c)
{
    struct up_conn *u = c->conn;

    up_call_free(c);
    if (u)
        up_conn_close(u);
}

/* Makes a call; up_go() starts it, and may call back at once. */
static struct up_call *
up_call(struct up_pool *pool, const struct up_request *want,
        struct mem_arena *arena, const struct up_ops *ops, void *data)
{
    struct up_call *c = obj_new(sizeof *c, UP_CALL_MAGIC);

    c->pool = pool;
    c->want = *want;
    c->arena = arena;
    c->ops = ops;
    c->data = data;
    return c;
}

/* ---- the pools of a worker ---- */

static void
up_target_init(struct up_target *t, struct up_pool *p,
               const struct cfg_target *cfg)
{
    uv_loop_t *loop = p->set->env->loop;
    struct err e;

    t->cfg = cfg;
    t->pool = p;
    t->waiting_end = &t->waiting;
    uv_timer_init(loop, &t->late);
    t->late.data = t;
    // c-ares reads its files now, not when a request is waiting
    if (!cfg->is_unix && !cfg->numeric && !up_ares_open(p->set, &e))
        log_at(LOG_ERROR, "up", "%s", e.msg);
}

static struct up_set *
up_new(struct env *env, struct mem_arena *boot)
{
    const struct cfg *cfg = env->cfg;
    struct up_set *set = mem_alloc(boot, sizeof *set);

    set->env = env;
    set->n = cfg->upstreams_n;
    set->pools = mem_alloc(boot, set->n * sizeof *set->pools);
    uv_timer_init(env->loop, &set->ares_timer);
    set->ares_timer.data = set;
    uv_unref((uv_handle_t *)&set->ares_timer);
    for (size_t i = 0; i < set->n; i++) {
        struct up_pool *p = &set->pools[i];

        p->cfg = &cfg->upstreams[i];
        p->set = set;
        p->n = p->cfg->targets_n;
        p->targets = mem_alloc(boot, p->n * sizeof *p->targets);
        for (size_t j = 0; j < p->n; j++)
            up_target_init(&p->targets[j], p, &p->cfg->targets[j]);
    }
    return set;
}

/* The worker leaves, and no call is under way. */
static void
up_free(struct up_set *set)
{
    for (size_t i = 0; i < set->n; i++)
        for (size_t j = 0; j < set->pools[i].n; j++) {
            struct up_target *t = &set->pools[i].targets[j];

            while (t->idle)
                up_conn_close(t->idle);
            uv_close((uv_handle_t *)&t->late, NULL);
        }
    if (set->ares)
        ares_destroy(set->ares);
    uv_close((uv_handle_t *)&set->ares_timer, NULL);
}

/* ==== 20 proxy: a request, carried to an upstream and back ==================
 *
 * Glue between a req and an up_call. Nothing is copied through: the request's
 * head is written afresh from what was parsed and checked, the answer's from
 * what was parsed. Bodies flow only as fast as the other side takes them.
 *
 *   req body --proxy_on_body--> up_send        full: req_read(false)
 *   answer   --proxy_on_answer_body--> req_body  full: up_pause(true)
 *
 * Owner   in the request's arena; ends with on_done or proxy_cancel().
 * Down    up req hdr pki        Up  struct proxy_ops
 * Entry   proxy_head  proxy_start  proxy_go  proxy_cancel
 */
struct proxy;

/* Up: serve, which may change the answer's head before it is sent. */
struct proxy_ops {
    bool (*on_head)(struct req *);  // false: wait for proxy_go()
    void (*on_done)(struct req *);  // the answer is sent; req_end() is next
    void (*on_fail)(struct req *, const struct err *);
};

struct proxy {
    struct req *req;       // borrowed
    struct up_call *call;  // owned; NULL when it has ended
    const struct proxy_ops *ops;
    bool stream;           // the request's body goes through us
    bool held;             // serve thinks about the head
    bool ended;            // the answer ended while it was held
    struct mem_buf early;  // body that came while it was held
};

/* ---- the request's head, written afresh ---- */

/* What the head is made of; the strings are borrowed. */
struct proxy_line {
    struct str target;
    bool identity_headers;
    const struct hdr *set;  // names lower case
    size_t set_n;
    const struct str *remove;  // lower case
    size_t remove_n;
    const struct cfg_input *checked;  // headers the route has checked
    size_t checked_n;
    const struct str *body;  // buffered, or NULL
};

static bool
proxy_named(const struct proxy_line *l, struct str name)
{
    for (size_t i = 0; i < l->remove_n; i++)
        if (str_eq(l->remove[i], name))
            return true;
    for (size_t i = 0; i < l->set_n; i++)
        if (str_eq(l->set[i].name, name))
            return true;
    return false;
}

/* A field of ours, unless the route sets or removes it: never twice. */
static void
proxy_write(struct mem_buf *b, const struct proxy_line *l, struct str name,
            struct str value)
{
    if (!proxy_named(l, name))
        h1_write_field(b, name, value);
}

/* Fields that were checked, or that say what the body is, cannot be taken away
 * by naming them in Connection: their absence would say something else. */
static bool
proxy_keeps(const struct proxy_line *l, struct str name)
{
    static const char *const always[] = {"authorization", "cookie",
                                         "content-type", "content-encoding"};

    for (size_t i = 0; i < sizeof always / sizeof *always; i++)
        if (str_eq(name, str_of(always[i])))
            return true;
    for (size_t i = 0; i < l->checked_n; i++)
        if (str_eq(name, l->checked[i].name))
            return true;
    return false;
}

/* Fields that we write ourselves, or that end at this hop. */
static bool
proxy_drops(const struct req *r, const struct proxy_line *l, struct str name,
            bool listed)
{
    if (hdr_hop_by_hop(name) || hdr_identity(name) ||
        (listed && !proxy_keeps(l, name) && h1_has_option(&r->headers, name)))
        return true;
    switch (name.n) {
    case 4:
        if (str_eq(name, S("host")))
            return true;
        break;
    case 6:
        if (str_eq(name, S("expect")))
            return true;
        break;
    case 11:
        if (str_eq(name, S("traceparent")))
            return true;
        break;
    case 12:
        if (str_eq(name, S("x-request-id")))
            return true;
        break;
    case 14:
        if (str_eq(name, S("content-length")))
            return true;
        break;
    }
    return proxy_named(l, name);
}

/* W3C Trace Context: the client's trace goes on with a span of ours. */
static void
proxy_trace(struct mem_buf *b, const struct proxy_line *l, const struct req *r)
{
    const struct str *was = hdr_get(&r->headers, S("traceparent"));
    const struct str none = S("00000000000000000000000000000000");
    bool ok = was && was->n == 55 && str_starts(*was, S("00-")) &&
              was->p[35] == '-' && was->p[52] == '-' &&
              !str_starts(str_from(*was, 3), none);
    char t[56];

    for (size_t i = 3; ok && i < 55; i++)
        if (i != 35 && i != 52)
            ok = str_hex_digit(was->p[i]) >= 0 && !isupper(was->p[i]);
    snprintf(t, sizeof t, "00-%.32s-%.16s-%.2s", ok ? was->p + 3 : r->id,
             r->id + 16, ok ? was->p + 53 : "00");
    proxy_write(b, l, S("traceparent"), str_of(t));
}

/* The peer's address without its port. */
static struct str
proxy_peer_ip(const struct req *r)
{
    struct str peer = str_of(r->from->peer);

    while (peer.n && peer.p[peer.n - 1] != ':')
        peer.n--;
    if (peer.n)
        peer.n--;
    if (peer.n && peer.p[0] == '[')
        peer = (struct str){peer.p + 1, peer.n - 2};
    return peer;
}

static void
proxy_forwarded(struct mem_buf *b, const struct proxy_line *l,
                const struct req *r)
{
    struct str ip = proxy_peer_ip(r);
    bool v6 = memchr(ip.p, ':', ip.n) != NULL;

    proxy_write(b, l, S("x-forwarded-for"), ip);
    proxy_write(b, l, S("x-forwarded-proto"),
                r->from->tls_version ? S("https") : S("http"));
    if (r->host.n)
        proxy_write(b, l, S("x-forwarded-host"), r->host);
    if (proxy_named(l, S("forwarded")))
        return;
    mem_buf_printf(b, "forwarded: for=%s%.*s%s;proto=%s", v6 ? "\"[" : "",
                   STR_FMT(ip), v6 ? "]\"" : "",
                   r->from->tls_version ? "https" : "http");
    if (r->host.n)
        mem_buf_printf(b, ";host=\"%.*s\"", STR_FMT(r->host));
    mem_buf_add(b, "\r\n", 2);
}

/* From request line to empty line, framing included. */
static struct str
proxy_head(const struct req *r, const struct proxy_line *l)
{
    const struct pki_identity *id = r->from->identity;
    struct mem_buf b = {0};
    bool listed = hdr_get(&r->headers, S("connection")) != NULL;
    struct str head;

    mem_buf_room(&b, 1024);
    mem_buf_add(&b, r->method.p, r->method.n);
    mem_buf_add(&b, " ", 1);
    mem_buf_add(&b, l->target.p, l->target.n);
    mem_buf_add(&b, " HTTP/1.1\r\n", 11);
    h1_write_field(&b, S("host"), r->host);
    for (unsigned i = 0; i < r->headers.n; i++)
        if (!proxy_drops(r, l, r->headers.v[i].name, listed))
            h1_write_field(&b, r->headers.v[i].name, r->headers.v[i].value);
    if (id && l->identity_headers) {
        proxy_write(&b, l, S("client-cert"), id->client_cert);
        proxy_write(&b, l, S("x-forwarded-client-cert"), id->xfcc);
    }
    proxy_forwarded(&b, l, r);
    proxy_write(&b, l, S("x-request-id"), (struct str){r->id, REQ_ID});
    proxy_trace(&b, l, r);
    for (size_t i = 0; i < l->set_n; i++)
        h1_write_field(&b, l->set[i].name, l->set[i].value);
    if (l->body)
        h1_write_length(&b, l->body->n);
    else if (r->chunked)
        h1_write_field(&b, S("transfer-encoding"), S("chunked"));
    else if (r->length >= 0 || str_eq(r->method, S("POST")) ||
             str_eq(r->method, S("PUT")) || str_eq(r->method, S("PATCH")))
        h1_write_length(&b, r->length > 0 ? (uint64_t)r->length : 0);
    mem_buf_add(&b, "\r\n", 2);
    head = str_dup(r->arena, (struct str){b.p, b.n});
    mem_buf_free(&b);
    return head;
}

/* RFC 9110, 9.2.2. */
static bool
proxy_idempotent(struct str method)
{
    static const char *const names[] = {"GET",    "HEAD",    "PUT",
                                        "DELETE", "OPTIONS", "TRACE"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (str_eq(method, str_of(names[i])))
            return true;
    return false;
}

/* ---- the answer ---- */

static void
proxy_answer_head(struct req *r, const struct h1_answer *a)
{
    bool listed = hdr_get(&a->headers, S("connection")) != NULL;

    r->status = a->status;
    r->out_length = a->length;
    for (unsigned i = 0; i < a->headers.n; i++) {
        struct hdr *h = &a->headers.v[i];

        if (hdr_hop_by_hop(h->name) || hdr_identity(h->name) ||
            str_eq(h->name, S("content-length")) ||
            (listed && h1_has_option(&a->headers, h->name)))
            continue;
        hdr_add_ref(r->arena, &r->out, h->name, h->value);
    }
}

static void
proxy_send(struct proxy *p, const char *bytes, size_t n)
{
    req_body(p->req, bytes, n);
    if (!p->req->ended && req_queued(p->req) > SOCK_HIGH && p->call)
        up_pause(p->call, true);
}

static void
proxy_on_answer(void *data, const struct h1_answer *a)
{
    struct proxy *p = data;

    proxy_answer_head(p->req, a);
    p->held = true;
    if (p->ops->on_head(p->req)) {
        p->held = false;
        req_head(p->req);
    } else if (p->held && p->call) {
        up_pause(p->call, true);
    }
}

static void
proxy_on_answer_body(void *data, const char *bytes, size_t n)
{
    struct proxy *p = data;

    if (p->held)
        mem_buf_add(&p->early, bytes, n);
    else if (p->req->head_sent && !p->req->ended)
        proxy_send(p, bytes, n);
}

static void
proxy_on_answer_end(void *data)
{
    struct proxy *p = data;

    p->call = NULL;
    p->ended = true;
    if (!p->held)
        p->ops->on_done(p->req);
}

static void
proxy_on_fail(void *data, const struct err *e)
{
    struct proxy *p = data;

    p->call = NULL;
    p->ops->on_fail(p->req, e);
}

/* The upstream takes bytes: let the client send. */
static void
proxy_on_drain(void *data)
{
    struct proxy *p = data;

    if (p->stream && !p->req->ended)
        req_read(p->req, true);
}

static const struct up_ops proxy_up_ops = {
    .on_head = proxy_on_answer,
    .on_body = proxy_on_answer_body,
    .on_end = proxy_on_answer_end,
    .on_fail = proxy_on_fail,
    .on_drain = proxy_on_drain,
};

/* serve has made up its mind about the head it was shown. */
static void
proxy_go(struct proxy *p)
{
    struct req *r = p->req;

    p->held = false;
    req_head(r);
    if (p->call)
        up_pause(p->call, false);
    if (mem_buf_len(&p->early))
        proxy_send(p, mem_buf_ptr(&p->early), mem_buf_len(&p->early));
    if (p->ended)
        p->ops->on_done(r);
}

/* ---- the request's body, and the ends ---- */

static void
proxy_on_body(struct proxy *p, const char *bytes, size_t n)
{
    if (p->call && p->stream && !up_send(p->call, bytes, n))
        req_read(p->req, false);
}

static void
proxy_on_body_end(struct proxy *p)
{
    if (p->call && p->stream)
        up_send_end(p->call);
}

static void
proxy_on_client_drain(struct proxy *p)
{
    if (p->call && !p->held)
        up_pause(p->call, false);
}

static void
proxy_cancel(struct proxy *p)
{
    if (p && p->call)
        up_cancel(p->call);
    if (p)
        p->call = NULL;
}

static void
proxy_on_free(void *data)
{
    struct proxy *p = data;

    must(!p->call);
    mem_buf_free(&p->early);
}

/* Carries `r` to `pool`. `body` is the buffered body, or NULL to stream. */
static struct proxy *
proxy_new(struct req *r, struct up_pool *pool, struct str head,
          const struct str *body, const struct proxy_ops *ops)
{
    struct proxy *p = mem_alloc(r->arena, sizeof *p);
    struct up_request want = {
        .head = head,
        .body = body ? *body : (struct str){"", 0},
        .stream = !body && req_has_body(r),
        .chunked = r->chunked,
        .to_head = str_eq(r->method, S("HEAD")),
        .idempotent = proxy_idempotent(r->method),
        .head_ms = pool->cfg->head_ms,
        .idle_ms = pool->cfg->idle_ms,
    };

    p->req = r;
    p->ops = ops;
    p->stream = want.stream;
    p->call = up_call(pool, &want, r->arena, &proxy_up_ops, p);
    mem_defer(r->arena, proxy_on_free, p);
    return p;
}

static void
proxy_start(struct proxy *p)
{
    up_go(p->call);
}

/* ==== 21 msg: typed frames between our processes ============================
 *
 * A channel is a socketpair that carries frames: a header, then its body.
 *
 *     u32 length of the body | u16 type | u16 flags | body
 *
 * Native order: both ends are this binary. A body is at most MSG_BODY_MAX
 * bytes, and whatever does not parse ends the channel: there is no way back
 * into step with a peer that broke the framing. A descriptor rides on a frame
 * that says so (MSG_F_FD), and only where the reader takes descriptors.
 *
 * Nothing here waits. What the socket does not take is queued up to
 * MSG_OUT_MAX; msg_chan_queued() shows the back-pressure.
 *
 * Entry   msg_chan_init  msg_send  msg_send_fd  msg_chan_close  msg_get_*
 */
enum msg_type {
    MSG_READY = 1,  // child -> supervisor: serving
    MSG_PING,       // worker -> supervisor, every second
    MSG_DRAIN,      // supervisor -> child: finish and leave
    MSG_WORKER,     // supervisor -> broker, with a channel to a worker

    MSG_EXEC_RUN,     // worker -> broker: run this, and the start of its stdin
    MSG_EXEC_STDIN,   // worker -> broker: more stdin
    MSG_EXEC_CANCEL,  // worker -> broker: nobody waits any more
    MSG_EXEC_CREDIT,  // either way: the sender may send that much more
    MSG_EXEC_OUT,     // broker -> worker: output while it runs
    MSG_EXEC_END,     // broker -> worker: how it went, and the last output
    MSG_TYPES
};

enum {
    MSG_F_MORE = 1,  // the stream that this frame carries goes on
    MSG_F_FD = 2,    // a descriptor comes with it
    MSG_FLAGS = MSG_F_MORE | MSG_F_FD,

    MSG_BODY_MAX = 256 << 10,
    MSG_OUT_MAX = 4 << 20,
    MSG_READ = 16 << 10,  // one read, where no larger frame is under way
    MSG_READS = 32,       // reads in one turn of the loop
    MSG_FDS = 4,          // descriptors that wait for their frame
};

struct msg_head {
    uint32_t length;
    uint16_t type, flags;
};

struct msg_frame {
    uint16_t type, flags;
    struct str body;  // borrowed until the callback returns
    int fd;           // -1, or the receiver's to close
};

/* ---- fields of a body ---------------------------------------------------- */

static void
msg_put_u8(struct mem_buf *b, uint8_t v)
{
    mem_buf_add(b, &v, sizeof v);
}

static void
msg_put_u32(struct mem_buf *b, uint32_t v)
{
    mem_buf_add(b, &v, sizeof v);
}

static void
msg_put_u64(struct mem_buf *b, uint64_t v)
{
    mem_buf_add(b, &v, sizeof v);
}

static void
msg_put_str(struct mem_buf *b, struct str s)
{
    must(s.n <= UINT32_MAX);
    msg_put_u32(b, (uint32_t)s.n);
    mem_buf_add(b, s.p, s.n);
}

/* What is left of a body. A read beyond the end sets `bad` and gives zeros, so
 * that a caller reads all fields and then asks once, with msg_get_end(). */
struct msg_in {
    struct str left;
    bool bad;
};

static struct str
msg_get_bytes(struct msg_in *in, size_t n)
{
    struct str s = {"", 0};

    if (in->bad || n > in->left.n) {
        in->bad = true;
        return s;
    }
    s = (struct str){in->left.p, n};
    in->left = str_from(in->left, n);
    return s;
}

static uint8_t
msg_get_u8(struct msg_in *in)
{
    struct str s = msg_get_bytes(in, 1);

    return s.n ? (uint8_t)s.p[0] : 0;
}

static uint32_t
msg_get_u32(struct msg_in *in)
{
    uint32_t v = 0;
    struct str s = msg_get_bytes(in, sizeof v);

    if (s.n)
        memcpy(&v, s.p, sizeof v);
    return v;
}

static uint64_t
msg_get_u64(struct msg_in *in)
{
    uint64_t v = 0;
    struct str s = msg_get_bytes(in, sizeof v);

    if (s.n)
        memcpy(&v, s.p, sizeof v);
    return v;
}

static struct str
msg_get_str(struct msg_in *in)
{
    return msg_get_bytes(in, msg_get_u32(in));
}

/* True if every field was there and nothing is left over. */
static bool
msg_get_end(const struct msg_in *in)
{
    return !in->bad && in->left.n == 0;
}

/* ---- a channel ----------------------------------------------------------- */

enum { MSG_CHAN_MAGIC = 0x4d534743 };

/* Filled in by the room above. After on_gone() the channel is not touched any
 * more, and its memory may be freed. */
struct msg_ops {
    bool takes_fds;
    bool (*on_frame)(void *data, const struct msg_frame *, struct err *);
    void (*on_drained)(void *data);  // the queue is empty again; may be NULL
    void (*on_gone)(void *data, const struct err *why);  // NULL: we closed it
};

/* Lives in its owner's memory. */
struct msg_chan {
    unsigned magic;
    uv_poll_t poll;
    int fd;  // owned
    const struct msg_ops *ops;
    void *data;
    struct mem_buf in, out;
    int fds[MSG_FDS];
    unsigned fds_n;
    bool writing;  // waits until the socket takes more
    bool closing, failed;
    struct err why;
};

/* In the order of a channel's life. */
static void msg_chan_on_poll(uv_poll_t *, int, int);
static void msg_chan_read(struct msg_chan *);
static void msg_chan_flush(struct msg_chan *);
static void msg_chan_end(struct msg_chan *);
static void msg_chan_on_closed(uv_handle_t *);

static void
msg_chan_watch(struct msg_chan *c)
{
    int events = UV_READABLE | (c->writing ? UV_WRITABLE : 0);

    must(uv_poll_start(&c->poll, events, msg_chan_on_poll) == 0);
}

/* Takes over `fd`, a connected Unix stream socket. False: it is not one. */
static bool
msg_chan_init(struct msg_chan *c, uv_loop_t *loop, int fd,
              const struct msg_ops *ops, void *data, struct err *e)
{
    int type = 0, r;
    socklen_t n = sizeof type;

    *c = (struct msg_chan){
        .magic = MSG_CHAN_MAGIC, .fd = fd, .ops = ops, .data = data};
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n) != 0 ||
        type != SOCK_STREAM)
        return err_set(e, ERR_NET, "descriptor %d is no channel", fd);
    r = uv_poll_init(loop, &c->poll, fd);
    if (r != 0)
        return err_set(e, ERR_NET, "channel: %s", uv_strerror(r));
    c->poll.data = c;
    msg_chan_watch(c);
    return true;
}

/* The one way out: what the peer did wrong, or that it left. */
static void
msg_chan_fail(struct msg_chan *c, const struct err *e)
{
    if (c->closing)
        return;
    c->why = *e;
    c->failed = true;
    msg_chan_end(c);
}

/* Frames that are still queued are lost. */
static void
msg_chan_close(struct msg_chan *c)
{
    if (!c->closing)
        msg_chan_end(c);
}

static size_t
msg_chan_queued(const struct msg_chan *c)
{
    return mem_buf_len(&c->out);
}

static void
msg_chan_on_poll(uv_poll_t *h, int status, int events)
{
    struct msg_chan *c = OBJ(struct msg_chan, MSG_CHAN, h->data);
    struct err e;

    if (events & UV_WRITABLE)
        msg_chan_flush(c);
    if (status < 0 || (events & UV_READABLE))
        msg_chan_read(c);
    if (status < 0 && !c->closing) {  // libuv has stopped the handle
        err_set(&e, ERR_NET, "channel: %s", uv_strerror(status));
        msg_chan_fail(c, &e);
    }
}

/* Descriptors that came with the bytes just read wait for their frame. */
static bool
msg_chan_take_fds(struct msg_chan *c, struct msghdr *m, struct err *e)
{
    bool ok = !(m->msg_flags & MSG_CTRUNC);

    for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h; h = CMSG_NXTHDR(m, h)) {
        size_t n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(h) + i * sizeof fd, sizeof fd);
            if (ok && c->fds_n < MSG_FDS) {
                c->fds[c->fds_n++] = fd;
            } else {
                close(fd);
                ok = false;
            }
        }
    }
    return ok || err_set(e, ERR_NET, "too many descriptors on a channel");
}

static bool
msg_frame_fd(struct msg_chan *c, struct msg_frame *f, struct err *e)
{
    f->fd = -1;
    if (!(f->flags & MSG_F_FD))
        return true;
    if (!c->ops->takes_fds || !c->fds_n)
        return err_set(e, ERR_NET, "a frame without its descriptor");
    f->fd = c->fds[0];
    c->fds_n--;
    memmove(c->fds, c->fds + 1, c->fds_n * sizeof c->fds[0]);
    return true;
}

/* Hands every complete frame in c->in to the owner. Sans I/O: the fuzzer and
 * the unit tests come in here. */
static bool
msg_chan_feed(struct msg_chan *c, struct err *e)
{
    struct msg_head h;
    struct msg_frame f;

    while (!c->closing && mem_buf_len(&c->in) >= sizeof h) {
        memcpy(&h, mem_buf_ptr(&c->in), sizeof h);
        if (h.length > MSG_BODY_MAX || h.type == 0 || h.type >= MSG_TYPES ||
            (h.flags & ~MSG_FLAGS))
            return err_set(e, ERR_NET,
                           "malformed frame: type %u, flags %u, %u bytes",
                           h.type, h.flags, h.length);
        if (mem_buf_len(&c->in) < sizeof h + h.length)
            break;
        f = (struct msg_frame){
            .type = h.type,
            .flags = h.flags,
            .body = {mem_buf_ptr(&c->in) + sizeof h, h.length}};
        if (!msg_frame_fd(c, &f, e) || !c->ops->on_frame(c->data, &f, e))
            return false;
        mem_buf_take(&c->in, sizeof h + h.length);
    }
    return true;
}

/* How much to ask the socket for: the rest of a large frame, if one is under
 * way, so that it is not moved about in the buffer. */
static size_t
msg_chan_wanted(const struct msg_chan *c)
{
    struct msg_head h;
    size_t have = mem_buf_len(&c->in), need;

    if (have < sizeof h)
        return MSG_READ;
    memcpy(&h, mem_buf_ptr(&c->in), sizeof h);
    need = sizeof h + h.length;
    return need > have + MSG_READ ? need - have : MSG_READ;
}

/* One read and the frames it completed. 1: there may be more; 0: that was
 * all; -1: the channel is over, and *e says why. */
static int
msg_chan_read_once(struct msg_chan *c, struct err *e)
{
    size_t want = msg_chan_wanted(c);
    struct iovec v = {mem_buf_room(&c->in, want), want};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(MSG_FDS * sizeof(int))];
    } control;
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    ssize_t n;

    if (c->ops->takes_fds) {  // else the kernel drops what is sent
        m.msg_control = control.bytes;
        m.msg_controllen = sizeof control.bytes;
    }
    n = recvmsg(c->fd, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR)
        return 1;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    if (n < 0)
        err_set(e, ERR_NET, "channel: %s", strerror(errno));
    if (n == 0)
        err_set(e, ERR_PEER_GONE, "the other end of the channel is gone");
    if (n <= 0)
        return -1;
    c->in.n += (size_t)n;
    if (c->ops->takes_fds && !msg_chan_take_fds(c, &m, e))
        return -1;
    if (!msg_chan_feed(c, e))
        return -1;
    return (size_t)n == want && !c->closing;
}

static void
msg_chan_read(struct msg_chan *c)
{
    struct err e;
    int r = c->closing ? 0 : 1;

    for (int i = 0; r == 1 && i < MSG_READS; i++)
        r = msg_chan_read_once(c, &e);
    if (r < 0)
        msg_chan_fail(c, &e);
    else if (!mem_buf_len(&c->in) && c->in.cap > 4 * MSG_READ)
        mem_buf_free(&c->in);  // a large frame went by
}

/* What of `v` the socket took. -1: the peer is gone, which the next read will
 * say; a send never calls the owner back. */
static ssize_t
msg_chan_write(struct msg_chan *c, struct iovec *v, size_t n, int fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr m = {.msg_iov = v, .msg_iovlen = n};
    ssize_t r;

    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        m.msg_control = control.bytes;
        m.msg_controllen = sizeof control.bytes;
        control.align = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)),
                                         .cmsg_level = SOL_SOCKET,
                                         .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.align), &fd, sizeof fd);
    }
    do
        r = sendmsg(c->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (r < 0 && errno == EINTR);
    if (r < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    return r;
}

static void
msg_chan_flush(struct msg_chan *c)
{
    ssize_t n = 1;

    while (!c->closing && mem_buf_len(&c->out) && n > 0) {
        struct iovec v = {c->out.p + c->out.off, mem_buf_len(&c->out)};

        n = msg_chan_write(c, &v, 1, -1);
        if (n > 0)
            mem_buf_take(&c->out, (size_t)n);
    }
    if (c->closing || !c->writing || (n == 0 && mem_buf_len(&c->out)))
        return;
    c->writing = false;
    msg_chan_watch(c);
    if (mem_buf_len(&c->out))  // n < 0: the peer is gone
        mem_buf_free(&c->out);
    else if (c->ops->on_drained)
        c->ops->on_drained(c->data);
}

/* Sends one frame, or queues what the socket does not take. False, and nothing
 * was sent, if the queue is full or the channel is over. */
static bool
msg_send_flags(struct msg_chan *c, enum msg_type type, unsigned flags,
               struct str body, int fd, struct err *e)
{
    struct msg_head h = {(uint32_t)body.n, (uint16_t)type, (uint16_t)flags};
    struct iovec v[2] = {{&h, sizeof h}, {(void *)(uintptr_t)body.p, body.n}};
    ssize_t n = 0;
    size_t sent;

    must(body.n <= MSG_BODY_MAX);
    if (c->closing)
        return err_set(e, ERR_NET, "the channel is closed");
    if (mem_buf_len(&c->out) + sizeof h + body.n > MSG_OUT_MAX)
        return err_set(e, ERR_BUSY, "the channel is congested");
    if (!mem_buf_len(&c->out))
        n = msg_chan_write(c, v, body.n ? 2 : 1, fd);
    if (n < 0 || (n == 0 && fd >= 0))
        return err_set(e, ERR_NET, "channel: %s",
                       n < 0 ? strerror(errno) : "full");
    sent = (size_t)n;
    if (sent < sizeof h)
        mem_buf_add(&c->out, (char *)&h + sent, sizeof h - sent);
    sent = sent < sizeof h ? 0 : sent - sizeof h;
    mem_buf_add(&c->out, body.p + sent, body.n - sent);
    if (mem_buf_len(&c->out) && !c->writing) {
        c->writing = true;
        msg_chan_watch(c);
    }
    return true;
}

static bool
msg_send(struct msg_chan *c, enum msg_type type, struct str body, struct err *e)
{
    return msg_send_flags(c, type, 0, body, -1, e);
}

/* A descriptor cannot be queued with its frame: if the socket is full, this
 * fails. `fd` stays the caller's. */
static bool
msg_send_fd(struct msg_chan *c, enum msg_type type, struct str body, int fd,
            struct err *e)
{
    must(fd >= 0);
    if (msg_chan_queued(c))
        return err_set(e, ERR_BUSY, "the channel is congested");
    return msg_send_flags(c, type, MSG_F_FD, body, fd, e);
}

static void
msg_chan_end(struct msg_chan *c)
{
    c->closing = true;
    uv_close((uv_handle_t *)&c->poll, msg_chan_on_closed);
}

static void
msg_chan_on_closed(uv_handle_t *h)
{
    struct msg_chan *c = OBJ(struct msg_chan, MSG_CHAN, h->data);

    close(c->fd);
    for (unsigned i = 0; i < c->fds_n; i++)
        close(c->fds[i]);
    mem_buf_free(&c->in);
    mem_buf_free(&c->out);
    c->magic = 0;
    c->ops->on_gone(c->data, c->failed ? &c->why : NULL);
}

/* ==== 22 jail: giving up rights, and starting a program without any =========
 *
 * Two halves. What each of our own processes gives up, in this order:
 * jail_early() before anything else, jail_drop() once it has read its bundle.
 * And jail_spawn(), which starts a program in its own session, with the
 * descriptors, limits and environment that it is handed and nothing else.
 *
 * The child of jail_spawn() runs in our memory until execveat() (that is what
 * makes a start cheap), so jail_child() only makes system calls, and everything
 * it needs is prepared before.
 *
 * seccomp, Landlock and namespaces belong here, and come with the cage.
 *
 * Entry   jail_early  jail_drop  jail_spawn  jail_orphans  jail_sweep
 */
enum {
    JAIL_FILE_FD = 10,    // a command's file slots are 10, 11, …
    JAIL_FILES_MAX = 16,  // of them
    JAIL_LIMITS_MAX = 6,
    JAIL_STACK = 32 << 10,
    JAIL_CLOEXEC = 1 << 2,     // CLOSE_RANGE_CLOEXEC, which old headers lack
    JAIL_CAP_V3 = 0x20080522,  // capset()'s version: two rows of 32 bits
};

/* Not dumpable: no process of our uid may ptrace us or read /proc/PID/mem.
 * Only the build for leak checks can be talked out of it. */
static bool
jail_undumpable(void)
{
#ifdef GATEWAY_TEST_DUMPABLE
    const char *leave = getenv("GATEWAY_DUMPABLE");

    if (leave && strcmp(leave, "1") == 0)
        return true;
#endif
    return prctl(PR_SET_DUMPABLE, 0L, 0L, 0L, 0L) == 0;
}

/* No capability, and none that comes back: ambient ones, which a service
 * manager may have given the supervisor for a port below 1024, go with the
 * inheritable ones, and an execve() adds none. */
static bool
jail_uncap(struct err *e)
{
    uint32_t head[2] = {JAIL_CAP_V3, 0};
    uint32_t none[6] = {0};  // effective, permitted, inheritable, twice

    if (syscall(SYS_capset, head, none) != 0)
        return err_set(e, ERR_CONFIG, "capabilities: %s", strerror(errno));
    return true;
}

/* Empties the bounding set, where we may: only with CAP_SETPCAP. */
static void
jail_uncap_bound(void)
{
    for (unsigned long cap = 0; prctl(PR_CAPBSET_DROP, cap, 0L, 0L, 0L) == 0;
         cap++)
        ;
}

/* The first call of every child. Descriptors from `first_unknown` on are not
 * in the child's contract, and are closed. Root keeps what it needs to become
 * somebody else: the rest is jail_drop()'s. */
static bool
jail_early(unsigned first_unknown, struct err *e)
{
    struct rlimit none = {0, 0};

    if (!jail_undumpable())
        return err_set(e, ERR_CONFIG, "dumpable: %s", strerror(errno));
    if (prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L) != 0)
        return err_set(e, ERR_CONFIG, "no_new_privs: %s", strerror(errno));
    if (setrlimit(RLIMIT_CORE, &none) != 0)
        return err_set(e, ERR_CONFIG, "core limit: %s", strerror(errno));
    if (syscall(SYS_close_range, first_unknown, ~0u, 0u) != 0)
        return err_set(e, ERR_CONFIG,
                       "close_range: %s: a kernel of 5.11 or later is needed",
                       strerror(errno));
    return geteuid() == 0 || jail_uncap(e);
}

/* Becomes `uid` and `gid` for good: no supplementary group, no way back, no
 * capability. */
static bool
jail_drop(uid_t uid, gid_t gid, struct err *e)
{
    if (uid == 0)
        return err_set(e, ERR_CONFIG, "cannot drop privileges to uid 0");
    jail_uncap_bound();
    if (setgroups(0, NULL) != 0 || setresgid(gid, gid, gid) != 0 ||
        setresuid(uid, uid, uid) != 0)
        return err_set(e, ERR_CONFIG, "cannot become uid %u, gid %u: %s", uid,
                       gid, strerror(errno));
    if (!jail_uncap(e))
        return false;
    if (setresuid((uid_t)-1, 0, (uid_t)-1) == 0 || geteuid() != uid ||
        getegid() != gid)
        return err_set(e, ERR_CONFIG, "uid %u could become root again", uid);
    if (!jail_undumpable())  // a change of uid may have reset it
        return err_set(e, ERR_CONFIG, "dumpable: %s", strerror(errno));
    return true;
}

/* The lower of what is wanted and what we may have: never asks for more. */
static rlim_t
jail_limit_fit(int resource, uint64_t want)
{
    struct rlimit now;

    must(getrlimit((unsigned)resource, &now) == 0);
    return want < now.rlim_max ? (rlim_t)want : now.rlim_max;
}

/* ---- a program ----------------------------------------------------------- */

struct jail_limit {
    int resource;
    struct rlimit value;
};

/* Everything a start needs, prepared by the caller; all borrowed. */
struct jail_spawn {
    int program;        // O_PATH, close-on-exec
    char *const *argv;  // as is, no shell, no PATH
    char *const *envp;
    int cwd;           // a folder; -1: stay in /
    int stdio[3];      // become 0, 1, 2
    const int *files;  // become 10, 11, …
    unsigned files_n;
    const struct jail_limit *limits;
    unsigned limits_n;
    char *stack;   // JAIL_STACK bytes
    pid_t parent;  // ourselves

    int error;         // out: errno, 0 if the program runs
    const char *step;  // out: what failed
};

/* Runs in the parent's memory on a stack of its own: no stdio, no malloc, and
 * no instrumentation, whose notes on that stack would outlive the child. */
#define JAIL_CHILD                                                             \
    __attribute__((noinline, no_sanitize("address"), no_sanitize("undefined")))

JAIL_CHILD static bool
jail_child_try(struct jail_spawn *s)
{
    sigset_t none;

    s->step = "setsid";
    if (setsid() < 0)
        return false;
    s->step = "parent death signal";
    if (prctl(PR_SET_PDEATHSIG, (long)SIGKILL, 0L, 0L, 0L) != 0)
        return false;
    if (getppid() != s->parent)  // died before that
        return false;
    s->step = "stdio";
    for (int i = 0; i < 3; i++)
        if (dup2(s->stdio[i], i) < 0)
            return false;
    s->step = "close_range";
    if (syscall(SYS_close_range, 3u, ~0u, (unsigned)JAIL_CLOEXEC) != 0)
        return false;
    s->step = "file slots";
    for (unsigned i = 0; i < s->files_n; i++)
        if (dup2(s->files[i], JAIL_FILE_FD + (int)i) < 0)
            return false;
    s->step = "working directory";
    if (s->cwd >= 0 && fchdir(s->cwd) != 0)
        return false;
    s->step = "resource limits";
    for (unsigned i = 0; i < s->limits_n; i++)
        if (setrlimit((unsigned)s->limits[i].resource, &s->limits[i].value))
            return false;
    s->step = "signal mask";
    sigemptyset(&none);
    if (sigprocmask(SIG_SETMASK, &none, NULL) != 0)
        return false;
    s->step = "execveat";
    syscall(SYS_execveat, s->program, "", s->argv, s->envp, AT_EMPTY_PATH);
    return false;
}

JAIL_CHILD static int
jail_child(void *arg)
{
    struct jail_spawn *s = arg;

    jail_child_try(s);
    s->error = errno ? errno : ECHILD;
    _exit(127);
}

/* The pid of the running program, leader of its own session and group. -1: it
 * does not run; s->step and s->error say why. */
static pid_t
jail_spawn(struct jail_spawn *s)
{
    pid_t pid;

    s->error = 0;
    s->step = "clone";
    errno = 0;
    pid = clone(jail_child, s->stack + JAIL_STACK,
                CLONE_VM | CLONE_VFORK | SIGCHLD, s);
    if (pid < 0)
        s->error = errno;
    if (pid < 0 || !s->error)
        return pid;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    return -1;
}

/* ---- what a program left behind ------------------------------------------ */

/* Says whether a child of ours is meant to live. */
typedef bool jail_known(void *data, pid_t pid);

static void
jail_orphan(pid_t pid, jail_known *known, void *data)
{
    if (pid > 1 && !known(data, pid))
        kill(pid, SIGKILL);
}

/* Text of pids; a last one that may be cut off is not looked at. */
static void
jail_orphans_in(char *text, jail_known *known, void *data)
{
    char *end;

    for (char *p = text;; p = end + 1) {
        long pid = strtol(p, &end, 10);

        if (end == p || *end != ' ')
            return;
        jail_orphan((pid_t)pid, known, data);
    }
}

/* The parent of `pid` out of /proc/PID/stat, or -1. The second field is the
 * program's name in brackets, and may hold anything, brackets too. */
static pid_t
jail_parent(int proc, const char *pid)
{
    char name[32], text[512], *p;
    ssize_t n;
    int fd;

    snprintf(name, sizeof name, "%.20s/stat", pid);
    fd = openat(proc, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    p = strrchr(text, ')');
    return p && strlen(p) > 4 ? (pid_t)strtol(p + 4, NULL, 10) : -1;
}

/* For kernels without /proc/PID/task/TID/children. */
static bool
jail_orphans_scan(jail_known *known, void *data)
{
    DIR *d = opendir("/proc");

    if (!d)
        return false;
    for (struct dirent *f; (f = readdir(d));)
        if (f->d_name[0] >= '1' && f->d_name[0] <= '9' &&
            jail_parent(dirfd(d), f->d_name) == getpid())
            jail_orphan((pid_t)strtol(f->d_name, NULL, 10), known, data);
    closedir(d);
    return true;
}

/* The list of our own children, or -1 where the kernel has none. Good for the
 * calling thread, as long as the process lives. */
static int
jail_children_open(void)
{
    return open("/proc/thread-self/children", O_RDONLY | O_CLOEXEC);
}

/* Kills every child that is not known. A process whose parent died becomes a
 * child of the nearest subreaper, which is us: so whatever a program started
 * and left ends here. To be called after each SIGCHLD; a killed orphan's own
 * children come to us in turn. `children` is from jail_children_open(). False:
 * there is no /proc to see them in. */
static bool
jail_orphans(int children, jail_known *known, void *data)
{
    char text[8192];
    ssize_t n;

    if (children < 0)
        return jail_orphans_scan(known, data);
    n = pread(children, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = 0;
    jail_orphans_in(text, known, data);
    return n >= 0;
}

static bool
jail_nobody(void *data, pid_t pid)
{
    (void)data, (void)pid;
    return false;
}

/* The last act of a subreaper: kills and reaps until no child is left, and so
 * nothing that a child left either; for at most `ms`. */
static bool
jail_sweep(int children, int ms)
{
    for (int waited = 0; waited <= ms; waited += 5) {
        pid_t pid;

        while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
            ;
        if (pid < 0 && errno == ECHILD)
            return true;
        jail_orphans(children, jail_nobody, NULL);
        poll(NULL, 0, 5);
    }
    return false;
}

/* ==== 23 exec: programs, and nothing but the declared ones ==================
 *
 *     worker                              broker
 *     exec_start --- MSG_EXEC_RUN ------> table, slots checked again, record
 *                <-- MSG_EXEC_OUT ------- pipes, limits, clock        |
 *     exec_done  <-- MSG_EXEC_END ------- record ---------------- program
 *
 * The broker is the only process that starts programs. It opens them when it
 * starts, and takes from a worker a number in its table and slot values, which
 * it trusts as little as the client they came from. The argument vector, the
 * environment and the limits are built here, from the table.
 *
 *   WAITING --> RUNNING --> DRAINING --> REPORTING --> closed
 *      \___________\____ worker gone: ended, recorded, told to nobody
 *
 * No record, no run: the "start" line is in the log's reader's hands before
 * the program is (log_sync), and an "end" line follows.
 *
 * Owner   a run belongs to the broker; a worker's channel only points at it
 * Down    jail msg schema cfg log err          Up  exec_done
 * Entry   exec_slot_check  exec_program_check  exec_main  exec_start
 */
enum {
    EXEC_VALUE_MAX = 4096,  // bytes of a slot value
    EXEC_SLOTS_MAX = 16,    // per command: their records fit one log line
    EXEC_ARGS_MAX = 256,
    EXEC_REQUEST_MAX = 128,    // bytes of a request id
    EXEC_WHO_MAX = 1024,       // bytes of an identity
    EXEC_CHUNK = 64 << 10,     // bytes of a stream in one frame
    EXEC_WINDOW = 256 << 10,   // bytes of output before the worker must ack
    EXEC_WORKERS_MAX = 1024,   // channels to one broker
    EXEC_PIN_MAX = 256 << 20,  // bytes of a program that is pinned
    EXEC_WATCH_MS = 5,         // before that, nobody looks at the pipes
    EXEC_LINGER_MS = 500,      // from the program's end to the pipe's
    EXEC_REPORT_MS = 10000,    // for the worker to take a result
    EXEC_STUCK_MS = 10000,     // between complaints about a process in SIGKILL
};

/* ---- slot values: the same rules in the worker and in the broker --------- */

/* A dash in all but the byte: a program that folds Unicode would see one. */
static bool
exec_lookalike_dash(struct str v)
{
    static const char *const dashes[] = {"\u00ad", "\u02d7", "\u06d4", "\u1806",
                                         "\u2010", "\u2011", "\u2012", "\u2013",
                                         "\u2014", "\u2015", "\u2043", "\u2212",
                                         "\ufe58", "\ufe63", "\uff0d"};

    for (size_t i = 0; i < sizeof dashes / sizeof *dashes; i++)
        if (str_starts(v, str_of(dashes[i])))
            return true;
    return false;
}

/* U+0080 to U+009F, which terminals obey like ESC sequences. */
static bool
exec_has_c1(struct str v)
{
    for (size_t i = 0; i + 1 < v.n; i++)
        if ((unsigned char)v.p[i] == 0xc2 && (unsigned char)v.p[i + 1] < 0xa0)
            return true;
    return false;
}

/* "a/b" and no other way to say it: no part is empty, "." or "..". */
static bool
exec_plain_name(struct str v)
{
    struct str part;
    bool more = true;

    while (more) {
        more = str_cut(v, '/', &part, &v);
        if (!part.n || str_eq(part, S(".")) || str_eq(part, S("..")))
            return false;
    }
    return true;
}

/* What holds for every value, whatever its schema says; NULL if it is fine.
 * `whole`: it becomes a whole argument, with no prefix in front. */
static const char *
exec_value_fault(const struct cfg_slot *s, bool whole, struct str v)
{
    if (!v.p)
        return "has no value";
    if (!v.n)
        return "is empty";
    if (v.n > EXEC_VALUE_MAX)
        return "is longer than 4096 bytes";
    if (!str_utf8(v))
        return "is not UTF-8";
    if (!str_no_control(v) || exec_has_c1(v))
        return "holds a control character";
    if (whole && !s->dash && v.p[0] == '-')
        return "begins with '-'";
    if (whole && !s->dash && exec_lookalike_dash(v))
        return "begins with a character that looks like '-'";
    if (s->is_file && v.p[0] == '/')
        return "is an absolute path: a file slot takes a relative name";
    if (s->is_file && !exec_plain_name(v))
        return "has an empty part, \".\" or \"..\" in its path";
    return NULL;
}

/* May `v` go into this slot? ERR_SCHEMA names the slot, never the value. */
static bool
exec_slot_check(const struct cfg_slot *s, bool whole,
                const struct schema *schema, struct mem_arena *a, struct str v,
                struct err *e)
{
    const char *fault = exec_value_fault(s, whole, v);
    struct schema_why why = {0};

    if (fault)
        return err_set(e, ERR_SCHEMA, "slot %.*s: %s", STR_FMT(s->name), fault);
    if (!schema_text(schema, a, &v, 1, &why))
        return err_set(e, ERR_SCHEMA, "slot %.*s: %s (%s)", STR_FMT(s->name),
                       why.msg, why.keyword);
    return true;
}

/* Is the slot's value an argument of its own? */
static bool
exec_slot_whole(const struct cfg_command *c, unsigned slot)
{
    for (size_t i = 0; i < c->args_n; i++)
        if (c->args[i].is_slot && c->args[i].slot == slot && c->args[i].text.n)
            return false;
    return true;
}

/* ---- programs: what does not load ---------------------------------------- */

/* Programs that would turn a slot value into another program, by name. A name
 * with a version behind it counts too: python3.11, vim.tiny, bash-5.2. */
static const struct exec_refused {
    const char *names, *why;
} exec_refused[] = {
    {"sh ash bash dash zsh ksh mksh pdksh oksh hush msh csh tcsh fish rc es "
     "yash sash rbash rksh rzsh posh elvish nu pwsh xonsh busybox toybox "
     "coreutils",
     "is a shell or holds one"},
    {"env xargs find fd fdfind parallel nice nohup timeout setsid stdbuf time "
     "ionice chrt taskset numactl prlimit choom uclampset flock chroot unshare "
     "nsenter bwrap firejail setarch linux32 linux64 i386 x86_64 systemd-run "
     "start-stop-daemon run-parts runcon setpriv capsh watch entr script "
     "scriptreplay unbuffer rlwrap dbus-run-session xvfb-run fakeroot proot "
     "chpst softlimit envdir setuidgid cttyhack openvt runsv runsvdir tcpsvd "
     "udpsvd inetd crond telnetd udhcpc tini dumb-init at batch crontab make "
     "gmake ninja cmake ld.so ld-* qemu-*",
     "starts a program that its arguments name"},
    {"sudo su doas pkexec runuser sg newgrp login getty machinectl docker "
     "podman nerdctl ctr crictl kubectl lxc lxc-attach",
     "acts with other rights, or in another system"},
    {"ssh scp sftp slogin rsh mosh telnet socat nc ncat netcat",
     "runs commands elsewhere, or connects its streams to them"},
    {"awk gawk mawk nawk original-awk m4 dc gnuplot sqlite psql mysql mariadb "
     "octave maxima ftp lftp git hg",
     "runs what its arguments or input say"},
    {"vim vi view vimdiff rvim nvim ed red ex emacs emacsclient nano pico joe "
     "mg less more most man screen tmux dialog mc mail mutt",
     "offers its user a shell"},
    {"gdb lldb strace ltrace perf bpftrace valgrind expect dtach",
     "starts and controls programs"},
};

/* Interpreters may run one declared script: its absolute path, as fixed text,
 * is the first argument after the harmless flags listed here. */
static const struct exec_interpreter {
    const char *names, *flags;
} exec_interpreters[] = {
    {"python pypy", "BEIPSsu"},
    {"perl", "TWXtw"},
    {"ruby irb lua luajit texlua node nodejs deno bun qjs php php-cgi tclsh "
     "wish expectk guile julia Rscript R racket raku scheme sbcl clisp ghci "
     "runghc erl escript elixir iex ocaml swipl groovy jshell dotnet",
     ""},
};

/* "python3.11" is "python": after the name only a version may follow. A '*'
 * stands for any end. */
static bool
exec_name_is(struct str name, struct str bad)
{
    unsigned char next;

    if (bad.p[bad.n - 1] == '*')
        return str_starts(name, (struct str){bad.p, bad.n - 1});
    if (!str_starts(name, bad))
        return false;
    if (name.n == bad.n)
        return true;
    next = (unsigned char)name.p[bad.n];
    return isdigit(next) || next == '.' ||
           (next == '-' && name.n > bad.n + 1 &&
            isdigit((unsigned char)name.p[bad.n + 1]));
}

static bool
exec_name_in(struct str name, const char *names)
{
    struct str left = str_of(names), one;

    while (left.n) {
        str_cut(left, ' ', &one, &left);
        if (exec_name_is(name, one))
            return true;
    }
    return false;
}

static struct str
exec_basename(const char *path)
{
    const char *slash = strrchr(path, '/');

    return str_of(slash ? slash + 1 : path);
}

/* Is this the file that is known by a refused name, under another one? */
static bool
exec_same_file(const struct stat *st, const char *names)
{
    static const char *const folders[] = {"/bin/", "/usr/bin/", "/usr/sbin/"};
    struct str left = str_of(names), one;
    struct stat other;
    char path[64];

    while (left.n) {
        str_cut(left, ' ', &one, &left);
        for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
            snprintf(path, sizeof path, "%s%.*s", folders[i], STR_FMT(one));
            if (stat(path, &other) == 0 && other.st_dev == st->st_dev &&
                other.st_ino == st->st_ino)
                return true;
        }
    }
    return false;
}

/* One binary with many programs in it: argv[0], the declared path, says which,
 * and no argument can change that. */
static const char exec_multicall[] = "busybox toybox coreutils";

static bool
exec_is_multicall(struct str name)
{
    return exec_name_in(name, exec_multicall);
}

/* The first fixed argument that is no harmless flag must be a script. */
static bool
exec_script_check(const struct cfg_command *c, const char *flags,
                  struct str *script, struct err *e)
{
    size_t i = 0;

    while (i < c->args_n && !c->args[i].is_slot && c->args[i].text.n == 2 &&
           c->args[i].text.p[0] == '-' && c->args[i].text.p[1] &&
           strchr(flags, c->args[i].text.p[1]))
        i++;
    if (i == c->args_n || c->args[i].is_slot || c->args[i].text.n < 2 ||
        c->args[i].text.p[0] != '/')
        return err_set(e, ERR_CONFIG,
                       "an interpreter runs the code its arguments carry: make "
                       "the absolute path of one script its first argument");
    *script = c->args[i].text;
    return true;
}

/* The two names a program goes by, and the file itself, against the lists.
 * `script` is filled in where an interpreter runs one. */
static bool
exec_name_check(const struct cfg_command *c, const char *given,
                const char *real, const struct stat *st, struct str *script,
                struct err *e)
{
    struct str names[2] = {exec_basename(given), exec_basename(real)};
    bool applet =
        !exec_is_multicall(names[0]) &&
        (exec_is_multicall(names[1]) || exec_same_file(st, exec_multicall));

    for (size_t i = 0; i < sizeof exec_refused / sizeof *exec_refused; i++) {
        const struct exec_refused *r = &exec_refused[i];

        if (exec_name_in(names[0], r->names) ||
            (!applet && (exec_name_in(names[1], r->names) ||
                         exec_same_file(st, r->names))))
            return err_set(e, ERR_CONFIG,
                           "%s: declare the program that does the work",
                           r->why);
    }
    if (exec_name_in(names[0], "sed") || exec_name_in(names[1], "sed")) {
        if (applet || !c->args_n || c->args[0].is_slot ||
            !str_eq(c->args[0].text, S("--sandbox")))
            return err_set(e, ERR_CONFIG,
                           "a sed script can run programs: make \"--sandbox\" "
                           "its first argument (GNU sed)");
    }
    for (size_t i = 0; i < sizeof exec_interpreters / sizeof *exec_interpreters;
         i++) {
        const struct exec_interpreter *p = &exec_interpreters[i];

        if (exec_name_in(names[0], p->names) ||
            exec_name_in(names[1], p->names))
            return exec_script_check(c, p->flags, script, e);
    }
    return true;
}

/* Could a process of `uid`, or anyone but root, change this file or folder? An
 * owner can, whatever the mode says today; so can anyone in a sticky folder. */
static bool
exec_writable(const char *path, uid_t uid, struct err *e)
{
    struct stat st;
    const char *who = NULL;

    if (stat(path, &st) != 0)
        return !err_set(e, ERR_CONFIG, "%s: %s", path, strerror(errno));
    if (uid != 0 && st.st_uid == uid)
        who = "the user that the command runs under";
    else if (st.st_mode & S_IWOTH)
        who = "everybody";
    else if (st.st_mode & S_IWGRP)
        who = "its group";
    if (who)
        err_set(e, ERR_CONFIG,
                "%s is writable by %s: let root own it and nobody else write "
                "to it (chown root, chmod go-w)",
                path, who);
    return who != NULL;
}

/* The file and every folder above it, as the path is written. */
static bool
exec_folders_check(const char *path, uid_t uid, struct err *e)
{
    char p[PATH_MAX];
    size_t n = strlen(path);

    must(n < sizeof p && path[0] == '/');
    memcpy(p, path, n + 1);
    if (exec_writable("/", uid, e))
        return false;
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i])
            continue;
        p[i] = 0;
        if (exec_writable(p, uid, e))
            return false;
        p[i] = path[i];
    }
    return true;
}

/* Follows the last part of `path` by one symbolic link: 1. 0: it is none. */
static int
exec_follow(char *path, size_t size, struct err *e)
{
    char link[PATH_MAX], next[2 * PATH_MAX];
    ssize_t n = readlink(path, link, sizeof link - 1);

    if (n < 0 && errno == EINVAL)
        return 0;
    if (n < 0) {
        err_set(e, ERR_CONFIG, "%s: %s", path, strerror(errno));
        return -1;
    }
    link[n] = 0;
    if (link[0] == '/')
        snprintf(next, sizeof next, "%s", link);
    else
        snprintf(next, sizeof next, "%.*s/%s", (int)(strrchr(path, '/') - path),
                 path, link);
    if (strlen(next) >= size) {
        err_set(e, ERR_CONFIG, "%s: the path is too long", path);
        return -1;
    }
    memcpy(path, next, strlen(next) + 1);
    return 1;
}

/* Nobody but root may be able to change what `path` stands for: neither along
 * the path, nor along each symbolic link, nor where it ends. */
static bool
exec_path_check(const char *path, uid_t uid, struct err *e)
{
    char p[PATH_MAX], real[PATH_MAX];
    int r = 1;

    if (!realpath(path, real))
        return err_set(e, ERR_CONFIG, "%s: %s", path, strerror(errno));
    if (strlen(path) >= sizeof p)
        return err_set(e, ERR_CONFIG, "the path is too long");
    memcpy(p, path, strlen(path) + 1);
    for (int i = 0; r == 1 && i < 40; i++) {
        if (!exec_folders_check(p, uid, e))
            return false;
        r = exec_follow(p, sizeof p, e);
    }
    return r == 0 && exec_folders_check(real, uid, e);
}

/* The file behind `fd`: a plain ELF program without rights of its own. */
static bool
exec_file_check(int fd, const struct stat *st, struct err *e)
{
    char magic[4] = "";
    ssize_t n;

    if (!S_ISREG(st->st_mode))
        return err_set(e, ERR_CONFIG, "not a regular file");
    if (!(st->st_mode & (S_IXUSR | S_IXGRP | S_IXOTH)))
        return err_set(e, ERR_CONFIG, "not executable");
    if (st->st_mode & (S_ISUID | S_ISGID))
        return err_set(e, ERR_CONFIG,
                       "set-uid or set-gid: name a copy without (chmod ug-s)");
    if (fgetxattr(fd, "security.capability", NULL, 0) > 0)
        return err_set(e, ERR_CONFIG,
                       "has file capabilities: setcap -r a copy");
    n = pread(fd, magic, sizeof magic, 0);
    if (n >= 2 && magic[0] == '#' && magic[1] == '!')
        return err_set(e, ERR_CONFIG,
                       "a script: name its interpreter's real program, and "
                       "make the script its first argument");
    if (n != sizeof magic || memcmp(magic, "\177ELF", sizeof magic) != 0)
        return err_set(e, ERR_CONFIG, "not an ELF program");
    return true;
}

/* Variables that make a program, its loader or its libraries run other code;
 * a '*' stands for any end. */
static const char exec_env_refused[] =
    "PATH IFS ENV BASH_ENV BASH_FUNC_* BASHOPTS SHELLOPTS SHELL PS4 CDPATH "
    "PROMPT_COMMAND EDITOR VISUAL PAGER MANPAGER BROWSER LESSOPEN LESSCLOSE "
    "LD_* GLIBC_TUNABLES GCONV_PATH LOCPATH NLSPATH HOSTALIASES MALLOC_TRACE "
    "PYTHON* PERL* RUBYOPT RUBYLIB NODE_* LUA_* TCLLIBPATH PHPRC PHP_* "
    "JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS CLASSPATH "
    "OPENSSL_CONF OPENSSL_MODULES OPENSSL_ENGINES "
    "GIT_* RSYNC_RSH TAR_OPTIONS CVS_RSH SVN_SSH";

static bool
exec_env_bad(struct str name)
{
    struct str left = str_of(exec_env_refused), one;

    if (!name.n || memchr(name.p, '=', name.n) || memchr(name.p, 0, name.n))
        return true;
    while (left.n) {
        str_cut(left, ' ', &one, &left);
        if (one.p[one.n - 1] == '*'
                ? str_starts(name, (struct str){one.p, one.n - 1})
                : str_eq(name, one))
            return true;
    }
    return false;
}

static bool
exec_env_check(const struct cfg_command *c, struct err *e)
{
    for (size_t i = 0; i < c->env_n; i++) {
        if (exec_env_bad(c->env[i].name))
            return err_set(e, ERR_CONFIG,
                           "env %.*s: may change which code runs: leave it out",
                           STR_FMT(c->env[i].name));
        if (c->env[i].value.n &&
            memchr(c->env[i].value.p, 0, c->env[i].value.n))
            return err_set(e, ERR_CONFIG, "env %.*s: holds a NUL byte",
                           STR_FMT(c->env[i].name));
    }
    return true;
}

static bool
exec_hash_text(struct str hex, const unsigned char sum[32])
{
    int hi, lo;

    if (hex.n != 64)
        return false;
    for (size_t i = 0; i < 32; i++) {
        hi = str_hex_digit(hex.p[2 * i]);
        lo = str_hex_digit(hex.p[2 * i + 1]);
        if (hi < 0 || lo < 0 || (hi << 4 | lo) != sum[i])
            return false;
    }
    return true;
}

/* Copies `from` into `to` and hashes what was copied. */
static bool
exec_pin_copy(int from, int to, unsigned char sum[32])
{
    char *buf = mem_xmalloc(EXEC_CHUNK);
    wc_Sha256 sha;
    ssize_t n = 0;
    size_t total = 0;
    bool ok = wc_InitSha256(&sha) == 0;

    while (ok && (n = pread(from, buf, EXEC_CHUNK, (off_t)total)) > 0) {
        total += (size_t)n;
        ok = total <= EXEC_PIN_MAX &&
             wc_Sha256Update(&sha, (const byte *)buf, (word32)n) == 0 &&
             write(to, buf, (size_t)n) == n;
    }
    ok = ok && n == 0 && wc_Sha256Final(&sha, sum) == 0;
    wc_Sha256Free(&sha);
    free(buf);
    return ok;
}

/* A sealed copy in memory of a program that has the declared hash: nobody can
 * change what runs, so it does not matter who may write to the file. */
static bool
exec_pin(const struct cfg_command *c, int file, int *program, struct err *e)
{
    enum { EXEC_MFD_EXEC = 0x10 };  // MFD_EXEC, Linux 6.3
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    unsigned char sum[32];
    char path[40];
    int fd = memfd_create("program", flags | EXEC_MFD_EXEC);
    bool ok;

    if (fd < 0)
        fd = memfd_create("program", flags);
    ok = fd >= 0 && exec_pin_copy(file, fd, sum) && fchmod(fd, 0555) == 0 &&
         fcntl(fd, F_ADD_SEALS,
               F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    *program = ok ? open(path, O_PATH | O_CLOEXEC) : -1;
    if (!ok || *program < 0)
        err_set(e, ERR_CONFIG, "cannot pin it in memory: %s", strerror(errno));
    if (fd >= 0)
        close(fd);  // while it is open for writing, it cannot be run
    if (*program < 0)
        return false;
    if (exec_hash_text(c->sha256, sum))
        return true;
    close(*program);
    return err_set(e, ERR_CONFIG, "its sha256 is not the declared one");
}

/* All the rules on the file, which stays open as `file`. */
static bool
exec_program_rules(const struct cfg_command *c, const char *given, int file,
                   uid_t uid, struct err *e)
{
    char real[PATH_MAX];
    struct str script = {0};
    struct stat st;

    if (!realpath(given, real) || fstat(file, &st) != 0)
        return err_set(e, ERR_CONFIG, "%s", strerror(errno));
    if (!exec_file_check(file, &st, e) ||
        !exec_name_check(c, given, real, &st, &script, e))
        return false;
    if (!c->sha256.n && !exec_path_check(given, uid, e))
        return false;
    if (script.n) {
        char path[PATH_MAX];

        snprintf(path, sizeof path, "%.*s", STR_FMT(script));
        return exec_path_check(path, uid, e);
    }
    return true;
}

/* The program as it will be run: an O_PATH descriptor on the file, or on its
 * pinned copy. Checked through one descriptor and opened by another; the two
 * must be one file. */
static bool
exec_program_try(const struct cfg_command *c, uid_t uid, int *program,
                 struct err *e)
{
    char given[PATH_MAX];
    struct stat a, b;
    int file;
    bool ok;

    if (c->program.n < 2 || c->program.n >= sizeof given ||
        c->program.p[0] != '/' || memchr(c->program.p, 0, c->program.n))
        return err_set(e, ERR_CONFIG, "not an absolute path");
    snprintf(given, sizeof given, "%.*s", STR_FMT(c->program));
    file = open(given, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (file < 0)
        return err_set(e, ERR_CONFIG, "cannot be read: %s", strerror(errno));
    ok = exec_program_rules(c, given, file, uid, e);
    if (ok && c->sha256.n) {
        ok = exec_pin(c, file, program, e);
    } else if (ok) {
        *program = open(given, O_PATH | O_CLOEXEC);
        ok = *program >= 0 && fstat(*program, &a) == 0 &&
             fstat(file, &b) == 0 && a.st_dev == b.st_dev &&
             a.st_ino == b.st_ino;
        if (!ok)
            err_set(e, ERR_CONFIG, "changed while it was opened");
        if (!ok && *program >= 0)
            close(*program);
    }
    close(file);
    return ok;
}

static bool
exec_program_open(const struct cfg_command *c, uid_t uid, int *program,
                  struct err *e)
{
    if (!exec_program_try(c, uid, program, e)) {
        err_prefix(e, "program %.*s: ", STR_FMT(c->program));
    } else if (exec_env_check(c, e)) {
        if (c->slots_n <= EXEC_SLOTS_MAX && c->args_n <= EXEC_ARGS_MAX)
            return true;
        err_set(e, ERR_CONFIG, "more than %d slots or %d arguments",
                EXEC_SLOTS_MAX, EXEC_ARGS_MAX);
        close(*program);
    } else {
        close(*program);
    }
    return err_prefix(e, "%.*s: command %.*s: ", STR_FMT(c->at),
                      STR_FMT(c->name));
}

/* Would the broker, running as `uid`, accept this command? */
static bool
exec_program_check(const struct cfg_command *c, uid_t uid, struct err *e)
{
    int program;

    if (!exec_program_open(c, uid, &program, e))
        return false;
    close(program);
    return true;
}

/* ---- the broker's table -------------------------------------------------- */

struct exec_slot {
    const struct cfg_slot *cfg;
    struct schema *schema;
    bool whole;
    int below;  // a file slot's folder, O_PATH; else -1
};

/* All of it lives as long as the broker. */
struct exec_command {
    const struct cfg_command *cfg;
    struct exec_slot *slots;
    int program;  // O_PATH
    int cwd;      // O_PATH; -1: /
    char **envp;
    struct jail_limit limits[JAIL_LIMITS_MAX];
    unsigned limits_n;
    bool file_on_stdin;  // a slot is its stdin, so a body is refused

    unsigned running, waiting;
    struct exec_run *first, *last;  // that wait, in order
};

static bool
exec_folder_open(struct str path, int *fd, struct err *e)
{
    char p[PATH_MAX];

    if (path.n >= sizeof p || !path.n || path.p[0] != '/' ||
        memchr(path.p, 0, path.n))
        return err_set(e, ERR_CONFIG, "folder %.*s: not an absolute path",
                       STR_FMT(path));
    snprintf(p, sizeof p, "%.*s", STR_FMT(path));
    *fd = open(p, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return *fd >= 0 ||
           err_set(e, ERR_CONFIG, "folder %s: %s", p, strerror(errno));
}

static bool
exec_slot_load(struct mem_arena *a, const struct cfg_command *c, unsigned i,
               struct exec_slot *s, struct err *e)
{
    *s = (struct exec_slot){
        .cfg = &c->slots[i], .whole = exec_slot_whole(c, i), .below = -1};
    s->schema = schema_compile(a, s->cfg->schema, false, e);
    if (!s->schema)
        return err_prefix(e, "slot %.*s: ", STR_FMT(s->cfg->name));
    if (s->cfg->is_file && !exec_folder_open(s->cfg->below, &s->below, e))
        return err_prefix(e, "slot %.*s: ", STR_FMT(s->cfg->name));
    return true;
}

static void
exec_limit_add(struct exec_command *x, int resource, uint64_t soft,
               uint64_t hard)
{
    struct rlimit v = {jail_limit_fit(resource, soft),
                       jail_limit_fit(resource, hard)};

    must(x->limits_n < JAIL_LIMITS_MAX);
    x->limits[x->limits_n++] = (struct jail_limit){resource, v};
}

/* SIGXCPU at the limit, SIGKILL a second later. */
static void
exec_limits_load(struct exec_command *x)
{
    const struct cfg_command *c = x->cfg;
    uint64_t cpu = ((uint64_t)c->cpu_ms + 999) / 1000;

    exec_limit_add(x, RLIMIT_CPU, cpu, cpu + 1);
    exec_limit_add(x, RLIMIT_AS, c->memory, c->memory);
    exec_limit_add(x, RLIMIT_NOFILE, c->files, c->files);
    exec_limit_add(x, RLIMIT_FSIZE, c->file_size, c->file_size);
    if (c->processes)
        exec_limit_add(x, RLIMIT_NPROC, c->processes, c->processes);
}

static bool
exec_command_load(struct mem_arena *a, const struct cfg_command *c,
                  struct exec_command *x, struct err *e)
{
    *x = (struct exec_command){.cfg = c, .cwd = -1, .program = -1};
    x->slots = mem_alloc(a, c->slots_n * sizeof *x->slots);
    x->envp = mem_alloc(a, (c->env_n + 1) * sizeof *x->envp);
    for (unsigned i = 0; i < c->slots_n; i++) {
        if (!exec_slot_load(a, c, i, &x->slots[i], e))
            return err_prefix(e, "%.*s: command %.*s: ", STR_FMT(c->at),
                              STR_FMT(c->name));
        x->file_on_stdin |= c->slots[i].is_file && c->slots[i].on_stdin;
    }
    for (size_t i = 0; i < c->env_n; i++)
        x->envp[i] = mem_printf(a, "%.*s=%.*s", STR_FMT(c->env[i].name),
                                STR_FMT(c->env[i].value));
    if (c->cwd.n && !str_eq(c->cwd, S("/")) &&
        !exec_folder_open(c->cwd, &x->cwd, e))
        return err_prefix(e, "%.*s: command %.*s: cwd: ", STR_FMT(c->at),
                          STR_FMT(c->name));
    exec_limits_load(x);
    return true;
}

/* ---- the broker's state -------------------------------------------------- */

enum {
    EXEC_BROKER_MAGIC = 0x45584252,
    EXEC_WORKER_MAGIC = 0x4558574b,
    EXEC_RUN_MAGIC = 0x4558524e,
    EXEC_MAGIC = 0x45584543,
};

struct exec_broker {
    unsigned magic;
    uv_loop_t *loop;
    struct mem_arena *arena;  // of the table
    uid_t uid;                // that programs run under
    struct cfg cfg;
    struct exec_command *commands;
    struct msg_chan sup;  // to the supervisor
    bool draining;        // ends when its last worker has
    bool ending;          // starts nothing any more
    unsigned workers_n;
    uint64_t worker_ids, run_ids;
    struct exec_run *runs;  // every one that is not closed
    uv_poll_t child_poll;
    int child_fd;           // signalfd of SIGCHLD
    int null;               // stdin where there is none
    int children;           // jail_children_open()
    char *stack;            // of jail_spawn()
    unsigned char key[32];  // for secrets in the log; never leaves us
    struct mem_buf frame;   // the one being written
};

/* A channel to one worker. */
struct exec_worker {
    unsigned magic;
    uint64_t id;
    struct exec_broker *broker;  // borrowed
    struct msg_chan chan;
};

enum exec_state {
    EXEC_WAITING,    // for one of the command's places
    EXEC_RUNNING,    // the program lives
    EXEC_DRAINING,   // it ended; its pipes may hold more
    EXEC_REPORTING,  // the result waits until the worker takes it
    EXEC_CLOSED,     // handles are closing, then it is freed
};

/* One pipe of a program. */
struct exec_stream {
    struct exec_run *run;  // borrowed: it is in there
    unsigned which;        // 0, 1, 2
    int fd;                // ours, -1 once closed
    bool watched, paused;
    uv_poll_t poll;      // if watched
    struct mem_buf buf;  // in: not written yet; out: not sent yet
    uint64_t total, max;
};

struct exec_run {
    unsigned magic;
    struct exec_broker *broker;     // borrowed
    struct exec_worker *worker;     // borrowed; NULL: nobody waits for it
    struct exec_command *command;   // borrowed
    struct exec_run *next, **link;  // of broker->runs
    struct exec_run *next_waiting;
    uint64_t ticket;  // the worker's name for it
    uint64_t id;      // ours
    enum exec_state state;

    struct mem_arena *arena;  // owned: what follows
    struct str request, who;
    struct str *values;  // one per slot

    pid_t pid;  // 0: none; also the group and the session
    struct exec_stream io[3];
    bool more;            // stdin goes on
    uint32_t in_credit;   // bytes the worker may still send
    uint32_t out_credit;  // bytes we may still send
    uv_timer_t timer;
    unsigned handles;  // open; the last one to close frees the run
    uint64_t start_ns;

    bool placed;    // counts in command->running
    bool stopping;  // SIGTERM was sent
    bool killed;    // SIGKILL was sent
    bool timed_out, truncated, cancelled;
    int status;  // as waitpid() has it
    uint64_t ms, cpu_us, rss_kib;
};

/* How a run came out: whether there was one. */
enum exec_how { EXEC_RAN, EXEC_REFUSED, EXEC_BUSY, EXEC_HOWS };

/* In the order of a run's life. */
static void exec_run_start(struct exec_run *);
static void exec_run_on_timer(uv_timer_t *);
static void exec_stream_on_poll(uv_poll_t *, int, int);
static void exec_run_stop(struct exec_run *);
static void exec_run_reaped(struct exec_run *, int, const struct rusage *);
static void exec_run_collect(struct exec_run *);
static void exec_run_report(struct exec_run *);
static void exec_run_close(struct exec_run *);

/* ---- the record ---------------------------------------------------------- */

/* SHA-256 in hex. With a key, 128 bits of a keyed hash: equal secrets show as
 * equal, but cannot be guessed from the log. */
static void
exec_digest(const unsigned char *key, struct str v, char hex[65])
{
    unsigned char sum[32];
    wc_Sha256 sha;

    must(wc_InitSha256(&sha) == 0);
    if (key)
        must(wc_Sha256Update(&sha, key, 32) == 0);
    must(wc_Sha256Update(&sha, (const byte *)v.p, (word32)v.n) == 0);
    must(wc_Sha256Final(&sha, sum) == 0);
    wc_Sha256Free(&sha);
    for (int i = 0; i < (key ? 16 : 32); i++)
        snprintf(hex + 2 * i, 3, "%02x", sum[i]);
}

/* A field that may take `max` bytes of the line; what does not fit is there as
 * its hash and length, so that a record is whole whatever a client sends. */
static void
exec_log_fit(struct log_line *l, const char *key, struct str v, size_t max)
{
    size_t n = l->n;
    bool open = l->open;
    char hex[65], text[120];

    log_str(l, key, v);
    if (l->n - n <= max)
        return;
    l->n = n;
    l->open = open;
    exec_digest(NULL, v, hex);
    snprintf(text, sizeof text, "sha256:%s, %zu bytes", hex, v.n);
    log_str(l, key, str_of(text));
}

static void
exec_log_slot(struct log_line *l, const struct exec_run *r, unsigned i,
              size_t max)
{
    const struct cfg_slot *s = &r->command->cfg->slots[i];
    char key[72], hex[65], text[80];

    snprintf(key, sizeof key, "%.*s", STR_FMT(s->name));
    if (!s->secret) {
        exec_log_fit(l, key, r->values[i], max);
        return;
    }
    exec_digest(r->broker->key, r->values[i], hex);
    snprintf(text, sizeof text, "keyed-sha256:%s", hex);
    log_str(l, key, str_of(text));
}

/* The last field, as large as the line allows. */
static void
exec_log_slots(struct log_line *l, const struct exec_run *r)
{
    size_t n = r->command->cfg->slots_n, was = l->n, end = LOG_LINE - 64;

    log_object(l, "slots");
    for (unsigned i = 0; i < n && l->n < end; i++)
        if (r->values[i].p)
            exec_log_slot(l, r, i, (end - l->n) / (n - i));
    log_close(l);
    if (l->n < end)
        return;
    l->n = was;  // many slots with long names: their hashes did not fit
    log_str(l, "slots_left_out", S("too long for one line"));
}

/* Begins a record, whatever level the log is at. */
static void
exec_log_begin(struct log_line *l, const struct exec_run *r, const char *phase)
{
    enum log_level level = log_out.level;
    char id[48];

    log_out.level = LOG_DEBUG;
    log_begin(l, LOG_INFO, "exec");
    log_out.level = level;
    snprintf(id, sizeof id, "%d.%" PRIu64, (int)getpid(), r->id);
    log_str(l, "phase", str_of(phase));
    log_str(l, "run", str_of(id));
    exec_log_fit(l, "request", r->request, 200);
    exec_log_fit(l, "command", r->command->cfg->name, 200);
    exec_log_fit(l, "identity", r->who, 800);
}

/* False: nobody took the record. */
static bool
exec_log_start(const struct exec_run *r)
{
    struct log_line l;

    exec_log_begin(&l, r, "start");
    exec_log_slots(&l, r);
    return log_sync(&l);
}

static void
exec_log_refused(const struct exec_run *r, const char *why)
{
    struct log_line l;

    exec_log_begin(&l, r, "refused");
    exec_log_fit(&l, "reason", str_of(why), 600);
    exec_log_slots(&l, r);
    if (!log_sync(&l))
        log_out.dropped++;
}

static const char *
exec_result_name(const struct exec_run *r)
{
    if (r->timed_out)
        return "timeout";
    if (r->cancelled)
        return "cancelled";
    if (r->truncated)
        return "truncated";
    return r->status == 0 ? "ok" : "failed";
}

static void
exec_log_end(const struct exec_run *r)
{
    struct log_line l;

    exec_log_begin(&l, r, "end");
    log_str(&l, "result", str_of(exec_result_name(r)));
    if (WIFSIGNALED(r->status))
        log_int(&l, "signal", WTERMSIG(r->status));
    else
        log_int(&l, "code", WEXITSTATUS(r->status));
    log_bool(&l, "timed_out", r->timed_out);
    log_bool(&l, "truncated", r->truncated);
    log_int(&l, "stdin", (int64_t)r->io[0].total);
    log_int(&l, "stdout", (int64_t)r->io[1].total);
    log_int(&l, "stderr", (int64_t)r->io[2].total);
    log_int(&l, "ms", (int64_t)r->ms);
    log_int(&l, "cpu_ms", (int64_t)((r->cpu_us + 500) / 1000));
    log_int(&l, "max_rss_kib", (int64_t)r->rss_kib);
    exec_log_slots(&l, r);
    if (!log_sync(&l))
        log_out.dropped++;
}

/* ---- a run: what goes into the program ----------------------------------- */

static void
exec_on_closed(uv_handle_t *h)
{
    struct exec_run *r = OBJ(struct exec_run, EXEC_RUN, h->data);

    must(r->handles > 0);
    if (--r->handles)
        return;
    must(r->state == EXEC_CLOSED);
    mem_arena_free(r->arena);
    obj_free(r);
}

static void
exec_on_stream_closed(uv_handle_t *h)
{
    h->data = ((struct exec_stream *)h->data)->run;
    exec_on_closed(h);
}

/* Starts to look at a pipe (which libuv makes non-blocking on our side). */
static void
exec_stream_watch(struct exec_stream *s)
{
    if (s->fd < 0)
        return;
    if (!s->watched) {
        must(uv_poll_init(s->run->broker->loop, &s->poll, s->fd) == 0);
        s->poll.data = s;
        s->watched = true;
        s->run->handles++;
    }
    s->paused = false;
    must(uv_poll_start(&s->poll, s->which ? UV_READABLE : UV_WRITABLE,
                       exec_stream_on_poll) == 0);
}

static void
exec_stream_pause(struct exec_stream *s)
{
    s->paused = true;
    if (s->watched && s->fd >= 0)
        uv_poll_stop(&s->poll);
}

static void
exec_stream_close(struct exec_stream *s)
{
    if (s->fd < 0)
        return;
    if (s->watched)
        uv_close((uv_handle_t *)&s->poll, exec_on_stream_closed);
    close(s->fd);
    s->fd = -1;
}

/* What the worker may send next. One chunk at a time: the next one is asked
 * for when the program has taken the last. */
static void
exec_in_grant(struct exec_run *r)
{
    struct mem_buf *b = &r->broker->frame;
    struct err e;

    if (!r->worker || r->in_credit)
        return;
    r->in_credit = EXEC_CHUNK;
    b->off = b->n = 0;
    msg_put_u64(b, r->ticket);
    msg_put_u32(b, r->in_credit);
    if (!msg_send(&r->worker->chan, MSG_EXEC_CREDIT,
                  (struct str){mem_buf_ptr(b), mem_buf_len(b)}, &e))
        msg_chan_fail(&r->worker->chan, &e);
}

/* Gives the program what it takes of its stdin. */
static void
exec_in_write(struct exec_run *r)
{
    struct exec_stream *s = &r->io[0];
    ssize_t n;

    while (s->fd >= 0 && mem_buf_len(&s->buf)) {
        n = write(s->fd, mem_buf_ptr(&s->buf), mem_buf_len(&s->buf));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            exec_stream_watch(s);
            return;
        }
        if (n < 0) {  // EPIPE: it does not want the rest
            exec_stream_close(s);
            mem_buf_free(&s->buf);
            return;
        }
        mem_buf_take(&s->buf, (size_t)n);
    }
    if (s->watched)
        exec_stream_pause(s);
    if (!r->more)
        exec_stream_close(s);
    else if (s->fd >= 0)
        exec_in_grant(r);
}

/* The file a slot names: below its folder, reached through no link, regular,
 * and with no other name that could lie elsewhere. */
static int
exec_file_open(const struct exec_slot *s, const char *name, struct err *e)
{
    struct open_how how = {.flags =
                               O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
                                      RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
    struct stat st;
    const char *fault = NULL;
    int fd = (int)syscall(SYS_openat2, s->below, name, &how, sizeof how);

    if (fd < 0 && errno == ELOOP)
        fault = "a symbolic link is on the way";
    else if (fd < 0 && errno == EXDEV)
        fault = "it leads out of its folder";
    else if (fd < 0 || fstat(fd, &st) != 0)
        fault = strerror(errno);
    else if (!S_ISREG(st.st_mode))
        fault = "not a regular file";
    else if (st.st_nlink != 1)
        fault = "the file has other names (hard links)";
    if (!fault)
        return fd;
    if (fd >= 0)
        close(fd);
    err_set(e, ERR_EXEC, "slot %.*s: %s", STR_FMT(s->cfg->name), fault);
    return -1;
}

/* What a start holds until the program has it. */
struct exec_start {
    int files[JAIL_FILES_MAX], argument[JAIL_FILES_MAX];  // by file, by slot
    unsigned files_n;
    int stdin_file;
    int theirs[3];  // the program's ends of its pipes
};

static bool
exec_files_open(struct exec_run *r, struct exec_start *s, struct err *e)
{
    for (unsigned i = 0; i < r->command->cfg->slots_n; i++) {
        const struct exec_slot *slot = &r->command->slots[i];
        int fd;

        if (!slot->cfg->is_file)
            continue;
        fd = exec_file_open(slot, str_c(r->arena, r->values[i]), e);
        if (fd < 0)
            return false;
        if (slot->cfg->on_stdin && s->stdin_file < 0) {
            s->stdin_file = fd;
        } else {
            must(s->files_n < JAIL_FILES_MAX);
            s->argument[i] = JAIL_FILE_FD + (int)s->files_n;
            s->files[s->files_n++] = fd;
        }
    }
    return true;
}

/* The argument vector: the table's texts, and each value as (part of) one
 * argument. Nothing is split, joined or expanded. */
static char **
exec_argv(struct exec_run *r, const struct exec_start *s)
{
    const struct cfg_command *c = r->command->cfg;
    char **argv = mem_alloc(r->arena, (c->args_n + 2) * sizeof *argv);

    argv[0] = str_c(r->arena, c->program);
    for (size_t i = 0; i < c->args_n; i++) {
        const struct cfg_arg *arg = &c->args[i];

        if (!arg->is_slot)
            argv[i + 1] = str_c(r->arena, arg->text);
        else if (c->slots[arg->slot].is_file)
            argv[i + 1] =
                mem_printf(r->arena, "%.*s/proc/self/fd/%d", STR_FMT(arg->text),
                           s->argument[arg->slot]);
        else
            argv[i + 1] = mem_printf(r->arena, "%.*s%.*s", STR_FMT(arg->text),
                                     STR_FMT(r->values[arg->slot]));
    }
    return argv;
}

/* stdin: the slot's file; else a pipe, if there is something to say; else
 * /dev/null. The program's end must block like any other. */
static bool
exec_stdin_open(struct exec_run *r, struct exec_start *s)
{
    int p[2];

    if (s->stdin_file >= 0 || (!r->more && !mem_buf_len(&r->io[0].buf)))
        return true;
    if (pipe2(p, O_CLOEXEC | O_NONBLOCK) != 0)
        return false;
    s->theirs[0] = p[0];
    r->io[0].fd = p[1];
    return fcntl(p[0], F_SETFL, 0) == 0;
}

static bool
exec_pipes_open(struct exec_run *r, struct exec_start *s, struct err *e)
{
    int p[2];
    bool ok = exec_stdin_open(r, s);

    for (int i = 1; ok && i < 3; i++) {
        ok = pipe2(p, O_CLOEXEC) == 0;
        if (!ok)
            break;
        r->io[i].fd = p[0];
        s->theirs[i] = p[1];
    }
    return ok || err_set(e, ERR_EXEC, "pipe: %s", strerror(errno));
}

static void
exec_start_free(struct exec_start *s)
{
    for (unsigned i = 0; i < s->files_n; i++)
        close(s->files[i]);
    for (int i = 0; i < 3; i++)
        if (s->theirs[i] >= 0)
            close(s->theirs[i]);
    if (s->stdin_file >= 0)
        close(s->stdin_file);
}

static bool
exec_spawn(struct exec_run *r, const struct exec_start *s, struct err *e)
{
    const struct exec_command *c = r->command;
    int in = s->stdin_file >= 0  ? s->stdin_file
             : s->theirs[0] >= 0 ? s->theirs[0]
                                 : r->broker->null;
    struct jail_spawn j = {.program = c->program,
                           .argv = exec_argv(r, s),
                           .envp = c->envp,
                           .cwd = c->cwd,
                           .stdio = {in, s->theirs[1], s->theirs[2]},
                           .files = s->files,
                           .files_n = s->files_n,
                           .limits = c->limits,
                           .limits_n = c->limits_n,
                           .stack = r->broker->stack,
                           .parent = getpid()};
    pid_t pid;

    r->start_ns = uv_hrtime();
    pid = jail_spawn(&j);
    if (pid < 0)
        return err_set(e, ERR_EXEC, "%s: %s", j.step, strerror(j.error));
    r->pid = pid;
    return true;
}

/* ---- a run: its end ------------------------------------------------------ */

static void
exec_command_next(struct exec_command *c)
{
    struct exec_run *r;

    while ((r = c->first) && c->running < c->cfg->concurrency) {
        c->first = r->next_waiting;
        if (!c->first)
            c->last = NULL;
        c->waiting--;
        exec_run_start(r);
    }
}

static void
exec_run_leave(struct exec_run *r)
{
    struct exec_run **at = &r->command->first, *before = NULL;

    must(r->state == EXEC_WAITING);
    while (*at != r) {
        before = *at;
        at = &before->next_waiting;
    }
    *at = r->next_waiting;
    if (r->command->last == r)
        r->command->last = before;
    r->command->waiting--;
}

/* Gives up a run's place, handles and memory. The next in line is started by
 * whoever asked, never from here: a run may be closed while one is started. */
static void
exec_run_close(struct exec_run *r)
{
    must(r->state != EXEC_CLOSED);
    r->state = EXEC_CLOSED;
    *r->link = r->next;
    if (r->next)
        r->next->link = r->link;
    if (r->placed)
        r->command->running--;
    for (int i = 0; i < 3; i++) {
        exec_stream_close(&r->io[i]);
        mem_buf_free(&r->io[i].buf);
    }
    uv_close((uv_handle_t *)&r->timer, exec_on_closed);
}

/* Why a run that was started is not ok; "" if it is. */
static void
exec_why(const struct exec_run *r, char *why, size_t n)
{
    int sig = WIFSIGNALED(r->status) ? WTERMSIG(r->status) : 0;

    if (r->timed_out)
        snprintf(why, n, "timeout");
    else if (r->cancelled)
        snprintf(why, n, "cancelled");
    else if (r->truncated)
        snprintf(why, n, "too much output");
    else if (sig == SIGXCPU)
        snprintf(why, n, "CPU time limit");
    else if (sig)
        snprintf(why, n, "signal %d (%s)", sig, strsignal(sig));
    else if (r->status)
        snprintf(why, n, "exit code %d", WEXITSTATUS(r->status));
    else
        snprintf(why, n, "%s", "");
}

/* The last frame of a run. False: the channel does not take it now. */
static bool
exec_send_end(struct exec_run *r, enum exec_how how, const char *why)
{
    struct mem_buf *b = &r->broker->frame;
    struct err e;

    b->off = b->n = 0;
    msg_put_u64(b, r->ticket);
    msg_put_u8(b, (uint8_t)how);
    msg_put_u8(b, r->timed_out);
    msg_put_u8(b, r->truncated);
    msg_put_u32(b, WIFEXITED(r->status) ? (uint32_t)WEXITSTATUS(r->status) : 0);
    msg_put_u32(b, WIFSIGNALED(r->status) ? (uint32_t)WTERMSIG(r->status) : 0);
    msg_put_u64(b, r->ms);
    msg_put_u64(b, r->cpu_us);
    msg_put_u64(b, r->rss_kib);
    msg_put_str(b, str_of(why));
    for (int i = 1; i < 3; i++)
        msg_put_str(b, (struct str){mem_buf_ptr(&r->io[i].buf),
                                    mem_buf_len(&r->io[i].buf)});
    return msg_send(&r->worker->chan, MSG_EXEC_END,
                    (struct str){mem_buf_ptr(b), mem_buf_len(b)}, &e);
}

/* Never started: recorded, answered, and gone. */
static void
exec_run_refuse(struct exec_run *r, enum exec_how how, const char *why)
{
    char text[560];

    snprintf(text, sizeof text, how == EXEC_BUSY ? "%s" : "refused: %s", why);
    exec_log_refused(r, why);
    if (r->worker && !exec_send_end(r, how, text)) {
        struct err e;

        err_set(&e, ERR_NET, "a worker does not take its results");
        msg_chan_fail(&r->worker->chan, &e);
    }
    exec_run_close(r);
}

/* Sends the oldest output of a stream, as far as there is credit. */
static bool
exec_send_out(struct exec_run *r, struct exec_stream *s)
{
    struct mem_buf *b = &r->broker->frame;
    size_t n = mem_buf_len(&s->buf);
    struct err e;

    if (!r->worker) {  // nobody wants it
        mem_buf_take(&s->buf, n);
        return true;
    }
    n = n < EXEC_CHUNK ? n : EXEC_CHUNK;
    if (!n || r->out_credit < n ||
        msg_chan_queued(&r->worker->chan) > EXEC_WINDOW)
        return false;
    b->off = b->n = 0;
    msg_put_u64(b, r->ticket);
    msg_put_u8(b, (uint8_t)s->which);
    msg_put_str(b, (struct str){mem_buf_ptr(&s->buf), n});
    if (!msg_send(&r->worker->chan, MSG_EXEC_OUT,
                  (struct str){mem_buf_ptr(b), mem_buf_len(b)}, &e))
        return false;
    r->out_credit -= (uint32_t)n;
    mem_buf_take(&s->buf, n);
    return true;
}

/* The result, once the worker takes it: what does not fit in the last frame
 * goes before it. Called again with every credit and every drained queue. */
static void
exec_run_report(struct exec_run *r)
{
    char why[96];

    must(r->state == EXEC_REPORTING);
    for (int i = 1; r->worker && i < 3; i++)
        while (mem_buf_len(&r->io[i].buf) > EXEC_CHUNK)
            if (!exec_send_out(r, &r->io[i]))
                return;
    exec_why(r, why, sizeof why);
    if (r->worker && (msg_chan_queued(&r->worker->chan) > EXEC_WINDOW ||
                      !exec_send_end(r, EXEC_RAN, why)))
        return;
    exec_run_close(r);
    exec_command_next(r->command);  // closed, but freed only by the loop
}

/* The program and its pipes are done with. */
static void
exec_run_done(struct exec_run *r)
{
    must(r->state == EXEC_DRAINING);
    for (int i = 0; i < 3; i++)
        exec_stream_close(&r->io[i]);
    exec_log_end(r);
    r->state = EXEC_REPORTING;
    uv_timer_start(&r->timer, exec_run_on_timer, EXEC_REPORT_MS, 0);
    exec_run_report(r);
}

/* SIGKILL to the program's group. Only while the program is not reaped: until
 * then nobody else can have its number. */
static void
exec_run_kill(struct exec_run *r)
{
    must(r->state == EXEC_RUNNING && r->pid > 1);
    r->stopping = r->killed = true;
    kill(-r->pid, SIGKILL);
    uv_timer_start(&r->timer, exec_run_on_timer, EXEC_STUCK_MS, 0);
}

/* Asks politely first. SIGCONT, for a group that was stopped. */
static void
exec_run_stop(struct exec_run *r)
{
    must(r->state == EXEC_RUNNING && r->pid > 1);
    if (r->stopping)
        return;
    r->stopping = true;
    if (!r->command->cfg->kill_ms) {
        exec_run_kill(r);
        return;
    }
    kill(-r->pid, SIGTERM);
    kill(-r->pid, SIGCONT);
    uv_timer_start(&r->timer, exec_run_on_timer, r->command->cfg->kill_ms, 0);
}

/* Nobody waits for this run any more. */
static void
exec_run_cancel(struct exec_run *r)
{
    r->worker = NULL;
    r->cancelled = r->state <= EXEC_RUNNING;
    if (r->state == EXEC_WAITING) {
        exec_run_leave(r);
        exec_run_refuse(r, EXEC_BUSY, "cancelled before it started");
    } else if (r->state == EXEC_RUNNING) {
        exec_run_stop(r);
        for (int i = 1; i < 3; i++)
            if (r->io[i].paused)
                exec_stream_watch(&r->io[i]);
    } else if (r->state == EXEC_REPORTING) {
        exec_run_report(r);
    }
}

/* ---- a run: from start to reaping ---------------------------------------- */

/* More output than the cap: keep what fits, and end the program. */
static void
exec_stream_over(struct exec_stream *s)
{
    struct exec_run *r = s->run;

    s->buf.n -= s->total - s->max;
    s->total = s->max;
    r->truncated = true;
    exec_stream_close(s);
    if (r->state == EXEC_RUNNING && !r->killed)
        exec_run_kill(r);
}

/* One read. 1: there may be more; 0: not now; -1: that was all of it. A live
 * program is held back while its output is not taken; what is left in the
 * pipes of a dead one is bounded, and taken in whole. */
static int
exec_stream_read_once(struct exec_stream *s)
{
    size_t want = EXEC_CHUNK;
    ssize_t n;

    if (s->run->state == EXEC_RUNNING && mem_buf_len(&s->buf) >= EXEC_CHUNK &&
        !exec_send_out(s->run, s)) {
        exec_stream_pause(s);
        return 0;
    }
    if (s->max - s->total < want)
        want = (size_t)(s->max - s->total) + 1;
    n = read(s->fd, mem_buf_room(&s->buf, want), want);
    if (n < 0 && errno == EINTR)
        return 1;
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n <= 0)
        return -1;
    s->buf.n += (size_t)n;
    s->total += (uint64_t)n;
    if (s->total <= s->max)
        return 1;
    exec_stream_over(s);
    return -1;
}

/* A few reads a turn, so that one program does not keep the others waiting. */
static void
exec_stream_read(struct exec_stream *s)
{
    int r = 1;

    for (int i = 0; s->fd >= 0 && r == 1 && i < 8; i++)
        r = exec_stream_read_once(s);
    if (r < 0)
        exec_stream_close(s);
}

static void
exec_stream_on_poll(uv_poll_t *h, int status, int events)
{
    struct exec_stream *s = h->data;
    struct exec_run *r = OBJ(struct exec_run, EXEC_RUN, s->run);

    (void)events;
    if (s->which == 0 && status < 0)
        exec_stream_close(s);  // the program closed its stdin
    else if (s->which == 0)
        exec_in_write(r);
    else if (status < 0)
        exec_stream_close(s);
    else
        exec_stream_read(s);
    if (r->state == EXEC_DRAINING && r->io[1].fd < 0 && r->io[2].fd < 0)
        exec_run_done(r);
}

static bool
exec_wanted(const struct exec_run *r)
{
    return r->worker && !r->worker->chan.closing && !r->broker->ending;
}

/* Starts a run that has a place, or refuses it. */
static void
exec_run_start(struct exec_run *r)
{
    struct exec_start s = {.stdin_file = -1, .theirs = {-1, -1, -1}};
    struct err e;
    bool recorded = false, ok;

    must(r->state == EXEC_WAITING);
    ok = exec_wanted(r) || err_set(&e, ERR_EXEC, "cancelled before it started");
    ok = ok && exec_files_open(r, &s, &e) && exec_pipes_open(r, &s, &e);
    if (ok && !(recorded = exec_log_start(r)))
        ok = err_set(&e, ERR_EXEC, "the log does not take its record");
    if (ok && !exec_spawn(r, &s, &e))
        ok = err_prefix(&e, "cannot start: ");
    exec_start_free(&s);
    if (!ok) {
        if (recorded)
            log_at(LOG_ERROR, "exec", "command %.*s: %s",
                   STR_FMT(r->command->cfg->name), e.msg);
        exec_run_refuse(r, EXEC_REFUSED, e.msg);
        return;
    }
    r->state = EXEC_RUNNING;
    r->placed = true;
    r->command->running++;
    exec_in_write(r);
    /* Most programs end before their pipes are worth a place in epoll. */
    uv_timer_start(&r->timer, exec_run_on_timer, EXEC_WATCH_MS, 0);
}

static void
exec_run_watch(struct exec_run *r)
{
    uint64_t ms = r->command->cfg->timeout_ms;

    exec_stream_watch(&r->io[1]);
    exec_stream_watch(&r->io[2]);
    if (!r->stopping)
        uv_timer_start(&r->timer, exec_run_on_timer,
                       ms > EXEC_WATCH_MS ? ms - EXEC_WATCH_MS : 1, 0);
}

static void
exec_run_on_timer(uv_timer_t *t)
{
    struct exec_run *r = OBJ(struct exec_run, EXEC_RUN, t->data);
    struct err e;

    if (r->state == EXEC_WAITING) {
        exec_run_leave(r);
        r->timed_out = true;
        exec_run_refuse(r, EXEC_BUSY, "timeout in the queue");
    } else if (r->state == EXEC_RUNNING && !r->stopping && !r->io[1].watched) {
        exec_run_watch(r);
    } else if (r->state == EXEC_RUNNING && !r->stopping) {
        r->timed_out = true;
        exec_run_stop(r);
    } else if (r->state == EXEC_RUNNING) {
        if (r->killed)
            log_at(LOG_ERROR, "exec", "command %.*s: process %d does not die",
                   STR_FMT(r->command->cfg->name), (int)r->pid);
        exec_run_kill(r);
    } else if (r->state == EXEC_DRAINING) {
        exec_run_done(r);  // somebody else holds the pipe: not our program
    } else if (r->state == EXEC_REPORTING && r->worker) {
        err_set(&e, ERR_NET, "a worker does not take its results");
        msg_chan_fail(&r->worker->chan, &e);
    }
}

/* The program ended, and its group was killed before it was reaped. */
static void
exec_run_reaped(struct exec_run *r, int status, const struct rusage *u)
{
    must(r->state == EXEC_RUNNING);
    r->ms = (uv_hrtime() - r->start_ns) / 1000000;
    r->state = EXEC_DRAINING;
    r->status = status;
    r->pid = 0;
    r->cpu_us = (uint64_t)(u->ru_utime.tv_sec + u->ru_stime.tv_sec) * 1000000 +
                (uint64_t)(u->ru_utime.tv_usec + u->ru_stime.tv_usec);
    r->rss_kib = (uint64_t)u->ru_maxrss;
    exec_stream_close(&r->io[0]);
    exec_run_collect(r);
}

/* Reads what the pipes still hold. POLLHUP says that nobody can write any
 * more, so that an empty pipe need not be read at all. */
static void
exec_run_collect(struct exec_run *r)
{
    struct pollfd p[2] = {{r->io[1].fd, POLLIN, 0}, {r->io[2].fd, POLLIN, 0}};

    if (poll(p, 2, 0) < 0)
        p[0].revents = p[1].revents = 0;
    for (int i = 0; i < 2; i++) {
        struct exec_stream *s = &r->io[i + 1];
        int more = 1;

        if (s->fd < 0 || !(p[i].revents & POLLHUP))
            continue;
        while (s->fd >= 0 && more == 1 && (p[i].revents & POLLIN))
            more = exec_stream_read_once(s);
        exec_stream_close(s);
    }
    if (r->io[1].fd < 0 && r->io[2].fd < 0) {
        exec_run_done(r);
        return;
    }
    /* A process that left the group holds them; exec_on_child() kills it. */
    exec_stream_watch(&r->io[1]);
    exec_stream_watch(&r->io[2]);
    uv_timer_start(&r->timer, exec_run_on_timer, EXEC_LINGER_MS, 0);
}

/* ---- the broker: children ------------------------------------------------ */

static struct exec_run *
exec_by_pid(struct exec_broker *b, pid_t pid)
{
    struct exec_run *r = b->runs;

    while (r && r->pid != pid)
        r = r->next;
    return r;
}

/* A child may live if it is a program of ours or in the session of one. */
static bool
exec_known(void *data, pid_t pid)
{
    struct exec_broker *b = OBJ(struct exec_broker, EXEC_BROKER, data);
    pid_t session;

    if (exec_by_pid(b, pid))
        return true;
    session = getsid(pid);
    return session > 1 && exec_by_pid(b, session);
}

/* Reaps all that ended. A zombie keeps its number, so its group is killed
 * first: afterwards the number may be somebody else's. */
static void
exec_reap(struct exec_broker *b)
{
    struct exec_run *r;
    struct rusage u;
    siginfo_t si;
    int status;

    for (;;) {
        si.si_pid = 0;
        if (waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT) != 0)
            return;  // ECHILD: nobody is left
        if (!si.si_pid)
            break;
        r = exec_by_pid(b, si.si_pid);
        if (r)
            kill(-si.si_pid, SIGKILL);
        if (wait4(si.si_pid, &status, 0, &u) == si.si_pid && r)
            exec_run_reaped(r, status, &u);
    }
    if (!jail_orphans(b->children, exec_known, b))
        log_at(LOG_WARN, "exec",
               "no /proc: what a program leaves behind "
               "cannot be found");
}

static void
exec_on_child(uv_poll_t *h, int status, int events)
{
    struct exec_broker *b = OBJ(struct exec_broker, EXEC_BROKER, h->data);
    char info[4 * 128];  // of struct signalfd_siginfo; only that it came counts

    (void)status, (void)events;
    while (read(b->child_fd, info, sizeof info) < 0 && errno == EINTR)
        ;
    exec_reap(b);
}

/* ---- the broker: what a worker may ask ----------------------------------- */

static struct exec_run *
exec_by_ticket(struct exec_worker *w, uint64_t ticket)
{
    struct exec_run *r = w->broker->runs;

    while (r && (r->worker != w || r->ticket != ticket))
        r = r->next;
    return r;
}

static struct exec_run *
exec_run_new(struct exec_worker *w, struct exec_command *c, uint64_t ticket)
{
    struct exec_broker *b = w->broker;
    struct exec_run *r = obj_new(sizeof *r, EXEC_RUN_MAGIC);

    r->broker = b;
    r->worker = w;
    r->command = c;
    r->ticket = ticket;
    r->id = ++b->run_ids;
    r->arena = mem_arena_new(1 << 20);
    r->out_credit = EXEC_WINDOW;
    for (unsigned i = 0; i < 3; i++) {
        r->io[i].run = r;
        r->io[i].which = i;
        r->io[i].fd = -1;
    }
    r->io[0].max = c->cfg->stdin_max;
    r->io[1].max = c->cfg->stdout_max;
    r->io[2].max = c->cfg->stderr_max;
    r->next = b->runs;
    r->link = &b->runs;
    if (r->next)
        r->next->link = &r->next;
    b->runs = r;
    must(uv_timer_init(b->loop, &r->timer) == 0);
    r->timer.data = r;
    r->handles = 1;
    return r;
}

/* Reads a run out of its frame. False: no honest worker sent this. */
static bool
exec_run_parse(struct exec_worker *w, const struct msg_frame *f,
               struct exec_run **out, struct err *e)
{
    struct msg_in in = {f->body, false};
    uint64_t ticket = msg_get_u64(&in);
    uint32_t command = msg_get_u32(&in), slots;
    struct str request = msg_get_str(&in), who = msg_get_str(&in);
    struct str values[EXEC_SLOTS_MAX], text;
    struct exec_run *r;

    slots = msg_get_u32(&in);
    if (in.bad || command >= w->broker->cfg.commands_n ||
        slots != w->broker->commands[command].cfg->slots_n)
        return err_set(e, ERR_NET, "run: no such command, or not its slots");
    must(slots <= EXEC_SLOTS_MAX);
    for (uint32_t i = 0; i < slots; i++)
        values[i] = msg_get_u8(&in) ? msg_get_str(&in) : (struct str){0};
    text = msg_get_str(&in);
    if (!msg_get_end(&in) || request.n > EXEC_REQUEST_MAX ||
        who.n > EXEC_WHO_MAX || text.n > EXEC_CHUNK)
        return err_set(e, ERR_NET, "run: malformed");
    if (exec_by_ticket(w, ticket))
        return err_set(e, ERR_NET, "run: a ticket that is in use");
    r = exec_run_new(w, &w->broker->commands[command], ticket);
    r->request = str_dup(r->arena, request);
    r->who = str_dup(r->arena, who);
    r->values = mem_alloc(r->arena, (slots + 1) * sizeof *r->values);
    for (uint32_t i = 0; i < slots; i++)
        if (values[i].p)
            r->values[i] = str_dup(r->arena, values[i]);
    r->more = f->flags & MSG_F_MORE;
    r->io[0].total = text.n;
    mem_buf_add(&r->io[0].buf, text.p, text.n);
    *out = r;
    return true;
}

/* The broker's own look at the values, from its own table. */
static bool
exec_run_check(struct exec_run *r, struct err *e)
{
    const struct exec_command *c = r->command;

    for (unsigned i = 0; i < c->cfg->slots_n; i++)
        if (!exec_slot_check(&c->cfg->slots[i], c->slots[i].whole,
                             c->slots[i].schema, r->arena, r->values[i], e))
            return false;
    if (c->file_on_stdin && (r->more || r->io[0].total))
        return err_set(e, ERR_SCHEMA, "its stdin is a slot's file");
    if (r->io[0].total > r->io[0].max)
        return err_set(e, ERR_SCHEMA, "stdin is over its limit");
    return true;
}

static void
exec_run_queue(struct exec_run *r)
{
    struct exec_command *c = r->command;

    if (c->last)
        c->last->next_waiting = r;
    else
        c->first = r;
    c->last = r;
    c->waiting++;
    uv_timer_start(&r->timer, exec_run_on_timer, c->cfg->timeout_ms, 0);
}

static bool
exec_answer_run(void *self, const struct msg_frame *f, struct err *e)
{
    struct exec_worker *w = OBJ(struct exec_worker, EXEC_WORKER, self);
    struct exec_run *r = NULL;
    struct exec_command *c;
    struct err why;

    if (!exec_run_parse(w, f, &r, e))
        return false;
    c = r->command;
    if (!exec_run_check(r, &why))
        exec_run_refuse(r, EXEC_REFUSED, why.msg);
    else if (c->running < c->cfg->concurrency && !c->waiting)
        exec_run_start(r);
    else if (c->waiting < c->cfg->queue)
        exec_run_queue(r);
    else
        exec_run_refuse(r, EXEC_BUSY, "queue full");
    return true;
}

/* More stdin. A run that has ended meanwhile is no offence; bytes beyond the
 * credit are. */
static bool
exec_answer_stdin(void *self, const struct msg_frame *f, struct err *e)
{
    struct exec_worker *w = OBJ(struct exec_worker, EXEC_WORKER, self);
    struct msg_in in = {f->body, false};
    struct exec_run *r = exec_by_ticket(w, msg_get_u64(&in));
    struct str text = msg_get_str(&in);
    struct exec_stream *s;

    if (!msg_get_end(&in))
        return err_set(e, ERR_NET, "stdin: malformed");
    if (!r || r->state > EXEC_RUNNING)
        return true;
    s = &r->io[0];
    if (!r->more || text.n > r->in_credit)
        return err_set(e, ERR_NET, "stdin: more than was asked for");
    r->in_credit = 0;
    r->more = f->flags & MSG_F_MORE;
    s->total += text.n;
    if (s->total > s->max)  // which the worker knows too
        return err_set(e, ERR_NET, "stdin: over its limit");
    if (s->fd < 0)  // the program has closed it
        return true;
    mem_buf_add(&s->buf, text.p, text.n);
    exec_in_write(r);
    return true;
}

static void
exec_run_resume(struct exec_run *r)
{
    if (r->state == EXEC_REPORTING)
        exec_run_report(r);
    else if (r->state == EXEC_RUNNING)
        for (int i = 1; i < 3; i++)
            if (r->io[i].paused)
                exec_stream_watch(&r->io[i]);
}

static bool
exec_answer_credit(void *self, const struct msg_frame *f, struct err *e)
{
    struct exec_worker *w = OBJ(struct exec_worker, EXEC_WORKER, self);
    struct msg_in in = {f->body, false};
    struct exec_run *r = exec_by_ticket(w, msg_get_u64(&in));
    uint32_t n = msg_get_u32(&in);

    if (!msg_get_end(&in) || (r && n > EXEC_WINDOW - r->out_credit))
        return err_set(e, ERR_NET, "credit: malformed");
    if (!r)
        return true;
    r->out_credit += n;
    exec_run_resume(r);
    return true;
}

static bool
exec_answer_cancel(void *self, const struct msg_frame *f, struct err *e)
{
    struct exec_worker *w = OBJ(struct exec_worker, EXEC_WORKER, self);
    struct msg_in in = {f->body, false};
    struct exec_run *r = exec_by_ticket(w, msg_get_u64(&in));

    if (!msg_get_end(&in))
        return err_set(e, ERR_NET, "cancel: malformed");
    if (r)
        exec_run_cancel(r);
    return true;
}

static bool exec_answer_worker(void *, const struct msg_frame *, struct err *);
static bool exec_answer_drain(void *, const struct msg_frame *, struct err *);

/* Who may ask for what. Anything else ends the channel it came on. */
enum exec_from { EXEC_FROM_SUPERVISOR, EXEC_FROM_WORKER };

static const struct exec_rule {
    enum msg_type type;
    enum exec_from from;
    unsigned flags;  // that it may have
    bool (*answer)(void *self, const struct msg_frame *, struct err *);
} exec_rules[] = {
    {MSG_WORKER, EXEC_FROM_SUPERVISOR, MSG_F_FD, exec_answer_worker},
    {MSG_DRAIN, EXEC_FROM_SUPERVISOR, 0, exec_answer_drain},
    {MSG_EXEC_RUN, EXEC_FROM_WORKER, MSG_F_MORE, exec_answer_run},
    {MSG_EXEC_STDIN, EXEC_FROM_WORKER, MSG_F_MORE, exec_answer_stdin},
    {MSG_EXEC_CREDIT, EXEC_FROM_WORKER, 0, exec_answer_credit},
    {MSG_EXEC_CANCEL, EXEC_FROM_WORKER, 0, exec_answer_cancel},
};

static bool
exec_dispatch(enum exec_from from, void *self, const struct msg_frame *f,
              struct err *e)
{
    for (size_t i = 0; i < sizeof exec_rules / sizeof *exec_rules; i++) {
        const struct exec_rule *r = &exec_rules[i];

        if (r->type == f->type && r->from == from && !(f->flags & ~r->flags))
            return r->answer(self, f, e);
    }
    return err_set(e, ERR_NET, "frame %u with flags %u is not allowed here",
                   f->type, f->flags);
}

/* ---- the broker: its channels -------------------------------------------- */

static bool
exec_worker_on_frame(void *data, const struct msg_frame *f, struct err *e)
{
    return exec_dispatch(EXEC_FROM_WORKER, data, f, e);
}

/* The worker reads again: on with the runs that waited for that. A run may be
 * closed, and others started, while we go: ids only grow, so look from the
 * front for the newest that is older than the last one seen. */
static void
exec_worker_on_drained(void *data)
{
    struct exec_worker *w = OBJ(struct exec_worker, EXEC_WORKER, data);
    uint64_t before = UINT64_MAX;

    for (struct exec_run *r = w->broker->runs; r;) {
        if (r->id >= before || r->worker != w) {
            r = r->next;
            continue;
        }
        before = r->id;
        exec_run_resume(r);
        r = w->broker->runs;
    }
}

/* Its runs end with a worker. */
static void
exec_worker_on_gone(void *data, const struct err *why)
{
    struct exec_worker *w = OBJ(struct exec_worker, EXEC_WORKER, data);
    struct exec_broker *b = w->broker;
    struct exec_run *r = b->runs;

    if (why && why->kind != ERR_PEER_GONE)
        log_at(LOG_ERROR, "exec", "channel to worker %" PRIu64 " closed: %s",
               w->id, why->msg);
    while (r) {
        if (r->worker != w) {
            r = r->next;
            continue;
        }
        exec_run_cancel(r);
        r = b->runs;
    }
    obj_free(w);
    b->workers_n--;
    if (b->draining && !b->workers_n)
        uv_stop(b->loop);
}

static const struct msg_ops exec_worker_ops = {
    .on_frame = exec_worker_on_frame,
    .on_drained = exec_worker_on_drained,
    .on_gone = exec_worker_on_gone,
};

/* NULL: `fd` was no channel, and is closed. */
static struct exec_worker *
exec_worker_new(struct exec_broker *b, int fd, struct err *e)
{
    struct exec_worker *w = obj_new(sizeof *w, EXEC_WORKER_MAGIC);

    w->broker = b;
    w->id = ++b->worker_ids;
    if (!msg_chan_init(&w->chan, b->loop, fd, &exec_worker_ops, w, e)) {
        close(fd);
        obj_free(w);
        return NULL;
    }
    b->workers_n++;
    return w;
}

static bool
exec_answer_worker(void *self, const struct msg_frame *f, struct err *e)
{
    struct exec_broker *b = OBJ(struct exec_broker, EXEC_BROKER, self);

    if (f->fd < 0)
        return err_set(e, ERR_NET, "a worker without its channel");
    if (b->workers_n < EXEC_WORKERS_MAX)
        return exec_worker_new(b, f->fd, e) != NULL;
    close(f->fd);
    return err_set(e, ERR_NET, "more than %d workers", EXEC_WORKERS_MAX);
}

static bool
exec_answer_drain(void *self, const struct msg_frame *f, struct err *e)
{
    struct exec_broker *b = OBJ(struct exec_broker, EXEC_BROKER, self);

    (void)f, (void)e;
    b->draining = true;
    if (!b->workers_n)
        uv_stop(b->loop);
    return true;
}

static bool
exec_sup_on_frame(void *data, const struct msg_frame *f, struct err *e)
{
    return exec_dispatch(EXEC_FROM_SUPERVISOR, data, f, e);
}

/* Without a supervisor nobody would restart or stop us. */
static void
exec_sup_on_gone(void *data, const struct err *why)
{
    struct exec_broker *b = OBJ(struct exec_broker, EXEC_BROKER, data);

    if (why && why->kind != ERR_PEER_GONE)
        log_at(LOG_ERROR, "exec", "channel to the supervisor: %s", why->msg);
    uv_stop(b->loop);
}

static const struct msg_ops exec_sup_ops = {
    .takes_fds = true,
    .on_frame = exec_sup_on_frame,
    .on_gone = exec_sup_on_gone,
};

/* ---- the broker: its life ------------------------------------------------ */

/* The table, and programs opened. Part of exec_main(), and all that the tests
 * need of it. */
static bool
exec_table_load(struct exec_broker *b, struct str cfg_json, struct err *e)
{
    struct cfg *c = &b->cfg;

    if (!cfg_load(b->arena, cfg_json, c, e))
        return false;
    b->commands =
        mem_alloc(b->arena, (c->commands_n + 1) * sizeof *b->commands);
    for (size_t i = 0; i < c->commands_n; i++)
        if (!exec_program_open(&c->commands[i], b->uid, &b->commands[i].program,
                               e))
            return false;
    for (size_t i = 0; i < c->commands_n; i++) {
        int program = b->commands[i].program;

        if (!exec_command_load(b->arena, &c->commands[i], &b->commands[i], e))
            return false;
        b->commands[i].program = program;
    }
    return true;
}

/* Signals reach the broker through a descriptor, or not at all: ^C at the
 * terminal is for the supervisor, which drains. What this process ignores, its
 * programs would ignore too, so nothing is. Faults stay deadly. */
static bool
exec_signals(struct exec_broker *b, struct err *e)
{
    static const int faults[] = {SIGSEGV, SIGBUS,  SIGFPE,
                                 SIGILL,  SIGABRT, SIGTRAP};
    struct sigaction old;
    sigset_t all, child;

    for (int s = 1; s < NSIG; s++)
        if (sigaction(s, NULL, &old) == 0 && old.sa_handler == SIG_IGN)
            signal(s, SIG_DFL);
    sigfillset(&all);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&all, faults[i]);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    if (sigprocmask(SIG_SETMASK, &all, NULL) != 0)
        return err_set(e, ERR_CONFIG, "signal mask: %s", strerror(errno));
    b->child_fd = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    return b->child_fd >= 0 ||
           err_set(e, ERR_CONFIG, "signalfd: %s", strerror(errno));
}

/* Descriptors 3 to 3+N stay taken, so that no pipe of ours can lie where a
 * command's file slots go. */
static bool
exec_reserve(struct exec_broker *b, struct err *e)
{
    b->null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (b->null < 0)
        return err_set(e, ERR_CONFIG, "/dev/null: %s", strerror(errno));
    for (int fd = 3; fd < JAIL_FILE_FD + JAIL_FILES_MAX; fd++)
        if (fcntl(fd, F_GETFD) < 0 && dup3(b->null, fd, O_CLOEXEC) < 0)
            return err_set(e, ERR_CONFIG, "descriptor %d: %s", fd,
                           strerror(errno));
    return true;
}

static bool
exec_broker_process(struct exec_broker *b, struct err *e)
{
    struct rlimit n;

    if (getrlimit(RLIMIT_NOFILE, &n) == 0) {
        n.rlim_cur = n.rlim_max;
        setrlimit(RLIMIT_NOFILE, &n);
    }
    umask(077);
    if (chdir("/") != 0)
        return err_set(e, ERR_CONFIG, "/: %s", strerror(errno));
    /* Should the supervisor be killed, we live on to end our programs: its
     * end of the channel says so, and no signal need. */
    if (prctl(PR_SET_CHILD_SUBREAPER, 1L, 0L, 0L, 0L) != 0 ||
        prctl(PR_SET_PDEATHSIG, 0L, 0L, 0L, 0L) != 0)
        return err_set(e, ERR_CONFIG, "subreaper: %s", strerror(errno));
    if (syscall(SYS_getrandom, b->key, sizeof b->key, 0) != sizeof b->key)
        return err_set(e, ERR_CONFIG, "random: %s", strerror(errno));
    b->children = jail_children_open();
    return exec_signals(b, e);
}

/* A broker without a channel yet. */
static bool
exec_broker_init(struct exec_broker *b, uv_loop_t *loop, uid_t uid,
                 struct str cfg_json, struct err *e)
{
    *b = (struct exec_broker){.magic = EXEC_BROKER_MAGIC,
                              .loop = loop,
                              .uid = uid,
                              .child_fd = -1,
                              .null = -1,
                              .children = -1};
    b->arena = mem_arena_new(SIZE_MAX);
    b->stack = mem_xmalloc(JAIL_STACK);
    return exec_reserve(b, e) && exec_table_load(b, cfg_json, e);
}

/* Ends every program, and records that, within two seconds: the kernel (parent
 * death signal) and the supervisor (subreaper) see to what is left. */
static void
exec_broker_end(struct exec_broker *b)
{
    struct exec_run *r, *next;
    siginfo_t si;

    b->ending = true;
    for (int i = 0; i < 200; i++) {
        for (r = b->runs; r; r = r->next)
            if (r->state == EXEC_RUNNING) {
                r->cancelled = true;
                exec_run_kill(r);
            }
        exec_reap(b);
        if (waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT) != 0)
            break;
        poll(NULL, 0, 10);
    }
    for (r = b->runs; r; r = next) {
        next = r->next;
        if (r->state == EXEC_DRAINING)
            exec_run_done(r);
    }
}

static bool
exec_broker_run(struct exec_broker *b, struct err *e)
{
    must(uv_poll_init(b->loop, &b->child_poll, b->child_fd) == 0);
    b->child_poll.data = b;
    must(uv_poll_start(&b->child_poll, UV_READABLE, exec_on_child) == 0);
    if (!msg_chan_init(&b->sup, b->loop, BOOT_CHANNEL_FD, &exec_sup_ops, b,
                       e) ||
        !msg_send(&b->sup, MSG_READY, S(""), e))
        return false;
    uv_run(b->loop, UV_RUN_DEFAULT);
    exec_broker_end(b);
    return true;
}

/* A drained broker gives everything back, so that the leak checker has a
 * say. */
static void
exec_broker_free(struct exec_broker *b)
{
    uv_close((uv_handle_t *)&b->child_poll, NULL);
    msg_chan_close(&b->sup);
    while (uv_loop_alive(b->loop))
        uv_run(b->loop, UV_RUN_ONCE);
    must(uv_loop_close(b->loop) == 0);
    free(b->stack);
    mem_buf_free(&b->frame);
    mem_arena_free(b->arena);
}

/* The broker process. Descriptor 3 is its channel to the supervisor. */
static int
exec_main(struct boot *boot)
{
    static struct exec_broker broker, *b = &broker;
    static uv_loop_t loop;
    struct err e;
    uid_t uid = boot->drop ? boot->uid : geteuid();

    // programs and folders are opened while we still may: they are the policy's
    // word, and may lie where the user we become cannot go
    bool ok = jail_early(4, &e) &&
              exec_broker_init(b, &loop, uid, boot->cfg_json, &e) &&
              (!boot->drop || jail_drop(boot->uid, boot->gid, &e)) &&
              exec_broker_process(b, &e);

    if (ok) {
        must(uv_loop_init(&loop) == 0);
        ok = exec_broker_run(b, &e);
    }
    if (!ok)
        log_at(LOG_FATAL, "exec", "%s", e.msg);
    log_flush();
    if (ok && !b->workers_n && !b->runs)
        exec_broker_free(b);
    return ok ? 0 : 1;
}

/* ---- the worker's client ------------------------------------------------- */

/* All strings are borrowed, and good until the callback returns. */
struct exec_result {
    bool ok;             // exit code 0, in time, output whole
    const char *why;     // "" if ok; else "exit code 3", "refused: slot …"
    bool refused, busy;  // it never ran
    int code, signal;
    struct str out, err;
    bool timed_out, truncated;
    uint64_t ms, cpu_us, rss_kib;
};

typedef void exec_done(void *data, uint64_t ticket, const struct exec_result *);

/* A run that somebody waits for. */
struct exec_pending {
    uint32_t seq;   // odd while in use; the upper half of the ticket
    uint32_t next;  // of the free list
    exec_done *done;
    void *data;
    struct str left;        // of stdin; lent by the caller
    struct mem_buf out[2];  // what came before the last frame
    uint32_t unseen;        // bytes of output not yet acknowledged
};

struct exec {
    unsigned magic;
    struct msg_chan chan;
    const struct cfg *cfg;  // borrowed
    struct exec_pending *v;
    uint32_t n, cap, free;  // free: the first free one, n if there is none
    bool gone, leaving;
    struct mem_buf frame;
};

static struct exec_pending *
exec_pending_get(struct exec *x, uint64_t ticket)
{
    uint32_t i = (uint32_t)ticket, seq = (uint32_t)(ticket >> 32);

    return i < x->n && x->v[i].seq == seq && (seq & 1) ? &x->v[i] : NULL;
}

static uint64_t
exec_pending_new(struct exec *x, exec_done *done, void *data)
{
    uint32_t i = x->free, seq;

    if (i == x->n) {
        if (x->n == x->cap) {
            x->cap = x->cap ? 2 * x->cap : 16;
            x->v = mem_xrealloc(x->v, x->cap * sizeof *x->v);
        }
        x->v[i] = (struct exec_pending){.next = ++x->n};
    }
    x->free = x->v[i].next;
    seq = x->v[i].seq + 1;
    x->v[i] = (struct exec_pending){.seq = seq, .done = done, .data = data};
    return (uint64_t)seq << 32 | i;
}

static void
exec_pending_free(struct exec *x, struct exec_pending *p)
{
    mem_buf_free(&p->out[0]);
    mem_buf_free(&p->out[1]);
    p->seq++;
    p->next = x->free;
    x->free = (uint32_t)(p - x->v);
}

/* Forgets the run and then tells who waited, who may start the next one. */
static void
exec_pending_done(struct exec *x, struct exec_pending *p, uint64_t ticket,
                  struct exec_result *r)
{
    struct exec_pending was = *p;

    for (int i = 0; i < 2; i++) {
        struct str *s = i ? &r->err : &r->out;

        if (!mem_buf_len(&was.out[i]))
            continue;
        mem_buf_add(&was.out[i], s->p, s->n);
        *s = (struct str){mem_buf_ptr(&was.out[i]), mem_buf_len(&was.out[i])};
    }
    p->out[0] = p->out[1] = (struct mem_buf){0};
    exec_pending_free(x, p);
    was.done(was.data, ticket, r);
    mem_buf_free(&was.out[0]);
    mem_buf_free(&was.out[1]);
}

static bool
exec_on_end(struct exec *x, uint64_t ticket, struct msg_in *in, struct err *e)
{
    struct exec_pending *p = exec_pending_get(x, ticket);
    struct exec_result r = {0};
    unsigned how = msg_get_u8(in);
    struct str why;
    char text[600];

    r.timed_out = msg_get_u8(in);
    r.truncated = msg_get_u8(in);
    r.code = (int)msg_get_u32(in);
    r.signal = (int)msg_get_u32(in);
    r.ms = msg_get_u64(in);
    r.cpu_us = msg_get_u64(in);
    r.rss_kib = msg_get_u64(in);
    why = msg_get_str(in);
    r.out = msg_get_str(in);
    r.err = msg_get_str(in);
    if (!msg_get_end(in) || how >= EXEC_HOWS || why.n >= sizeof text)
        return err_set(e, ERR_NET, "the broker sent a malformed result");
    if (!p)  // cancelled meanwhile
        return true;
    snprintf(text, sizeof text, "%.*s", STR_FMT(why));
    r.why = text;
    r.refused = how == EXEC_REFUSED;
    r.busy = how == EXEC_BUSY;
    r.ok = how == EXEC_RAN && !why.n && !r.code && !r.signal && !r.timed_out &&
           !r.truncated;
    exec_pending_done(x, p, ticket, &r);
    return true;
}

/* Output while the program runs; half a window later the broker may go on. */
static bool
exec_on_out(struct exec *x, uint64_t ticket, struct msg_in *in, struct err *e)
{
    struct exec_pending *p = exec_pending_get(x, ticket);
    unsigned which = msg_get_u8(in);
    struct str text = msg_get_str(in);
    struct mem_buf *b = &x->frame;

    if (!msg_get_end(in) || which < 1 || which > 2)
        return err_set(e, ERR_NET, "the broker sent malformed output");
    if (!p)
        return true;
    mem_buf_add(&p->out[which - 1], text.p, text.n);
    p->unseen += (uint32_t)text.n;
    if (p->unseen < EXEC_WINDOW / 2)
        return true;
    b->off = b->n = 0;
    msg_put_u64(b, ticket);
    msg_put_u32(b, p->unseen);
    p->unseen = 0;
    return msg_send(&x->chan, MSG_EXEC_CREDIT,
                    (struct str){mem_buf_ptr(b), mem_buf_len(b)}, e);
}

/* The program took its stdin so far: the next chunk. */
static bool
exec_on_credit(struct exec *x, uint64_t ticket, struct msg_in *in,
               struct err *e)
{
    struct exec_pending *p = exec_pending_get(x, ticket);
    uint32_t n = msg_get_u32(in);
    struct mem_buf *b = &x->frame;

    if (!msg_get_end(in) || n > EXEC_CHUNK)
        return err_set(e, ERR_NET, "the broker sent malformed credit");
    if (!p || !p->left.n)
        return true;
    if (n > p->left.n)
        n = (uint32_t)p->left.n;
    b->off = b->n = 0;
    msg_put_u64(b, ticket);
    msg_put_str(b, (struct str){p->left.p, n});
    p->left = str_from(p->left, n);
    return msg_send_flags(&x->chan, MSG_EXEC_STDIN, p->left.n ? MSG_F_MORE : 0,
                          (struct str){mem_buf_ptr(b), mem_buf_len(b)}, -1, e);
}

static bool
exec_client_on_frame(void *data, const struct msg_frame *f, struct err *e)
{
    struct exec *x = OBJ(struct exec, EXEC, data);
    struct msg_in in = {f->body, false};
    uint64_t ticket = msg_get_u64(&in);

    if (f->flags == 0 && f->type == MSG_EXEC_END)
        return exec_on_end(x, ticket, &in, e);
    if (f->flags == 0 && f->type == MSG_EXEC_OUT)
        return exec_on_out(x, ticket, &in, e);
    if (f->flags == 0 && f->type == MSG_EXEC_CREDIT)
        return exec_on_credit(x, ticket, &in, e);
    return err_set(e, ERR_NET, "the broker sent frame %u", f->type);
}

/* Everybody who waits learns that nothing will come; or, after exec_free(),
 * nobody does, and the client is gone. */
static void
exec_client_on_gone(void *data, const struct err *why)
{
    struct exec *x = OBJ(struct exec, EXEC, data);
    uint32_t n = x->n;

    x->gone = true;
    if (why && !x->leaving)
        log_at(LOG_ERROR, "exec", "broker: %s", why->msg);
    for (uint32_t i = 0; i < n; i++) {
        struct exec_result r = {.why = "the broker is gone"};

        if (!(x->v[i].seq & 1))
            continue;
        if (x->leaving)
            exec_pending_free(x, &x->v[i]);
        else
            exec_pending_done(x, &x->v[i], (uint64_t)x->v[i].seq << 32 | i, &r);
    }
    if (!x->leaving)
        return;
    free(x->v);
    mem_buf_free(&x->frame);
    obj_free(x);
}

static const struct msg_ops exec_client_ops = {
    .on_frame = exec_client_on_frame,
    .on_gone = exec_client_on_gone,
};

/* The client of the broker at the other end of `fd`, which it takes over. */
static struct exec *
exec_new(uv_loop_t *loop, int fd, const struct cfg *cfg, struct err *e)
{
    struct exec *x = obj_new(sizeof *x, EXEC_MAGIC);

    x->cfg = cfg;
    if (msg_chan_init(&x->chan, loop, fd, &exec_client_ops, x, e))
        return x;
    close(fd);
    obj_free(x);
    return NULL;
}

/* No exec_done is called any more. */
static void
exec_free(struct exec *x)
{
    if (!x)
        return;
    x->leaving = true;
    if (x->gone)
        exec_client_on_gone(x, NULL);
    else
        msg_chan_close(&x->chan);
}

/* Asks for a run of a declared command. `slots` are in the table's order, .p
 * NULL where there is none. `text` becomes its stdin and is lent to us until
 * `done` is called, which is always later than this returns, and never after
 * exec_cancel(). 0: it was not asked for. */
static uint64_t
exec_start(struct exec *x, unsigned command, struct str request, struct str who,
           const struct str *slots, struct str text, exec_done *done,
           void *data, struct err *e)
{
    const struct cfg_command *c = &x->cfg->commands[command];
    struct mem_buf *b = &x->frame;
    struct exec_pending *p;
    uint64_t ticket;
    size_t first = text.n < EXEC_CHUNK ? text.n : EXEC_CHUNK;

    must(command < x->cfg->commands_n);
    if (x->gone || x->chan.closing)
        return err_set(e, ERR_EXEC, "the broker is gone");
    if (text.n > c->stdin_max)
        return err_set(e, ERR_EXEC, "command %.*s: stdin is over its limit",
                       STR_FMT(c->name));
    ticket = exec_pending_new(x, done, data);
    b->off = b->n = 0;
    msg_put_u64(b, ticket);
    msg_put_u32(b, command);
    request.n = request.n < EXEC_REQUEST_MAX ? request.n : EXEC_REQUEST_MAX;
    msg_put_str(b, request);
    who.n = who.n < EXEC_WHO_MAX ? who.n : EXEC_WHO_MAX;
    msg_put_str(b, who);
    msg_put_u32(b, (uint32_t)c->slots_n);
    for (size_t i = 0; i < c->slots_n; i++) {
        msg_put_u8(b, slots[i].p != NULL);
        if (slots[i].p)
            msg_put_str(b, slots[i]);
    }
    msg_put_str(b, (struct str){text.p, first});
    p = exec_pending_get(x, ticket);
    p->left = str_from(text, first);
    if (mem_buf_len(b) <= MSG_BODY_MAX &&
        msg_send_flags(&x->chan, MSG_EXEC_RUN, p->left.n ? MSG_F_MORE : 0,
                       (struct str){mem_buf_ptr(b), mem_buf_len(b)}, -1, e))
        return ticket;
    if (mem_buf_len(b) > MSG_BODY_MAX)
        err_set(e, ERR_EXEC, "command %.*s: its slots are too long",
                STR_FMT(c->name));
    exec_pending_free(x, p);
    return 0;
}

/* The client is gone: the broker ends the program, and `done` is not called. */
static void
exec_cancel(struct exec *x, uint64_t ticket)
{
    struct exec_pending *p = exec_pending_get(x, ticket);
    struct err e;

    if (!p)
        return;
    exec_pending_free(x, p);
    /* Should the channel be congested, the run ends by its own time limit. */
    msg_send(&x->chan, MSG_EXEC_CANCEL,
             (struct str){(const char *)&ticket, sizeof ticket}, &e);
}

/* ==== 24 vm: the Lua state ==================================================
 *
 * One lua_State a worker: boot, sandbox, memory cap, CPU budget. A request's
 * hooks run in a coroutine of their own, a task, one after the other, and may
 * wait: vm_await() is the one lua_yield, vm_wake() the one way back. Who wakes
 * holds a ticket, never a pointer, so a late answer for a dead request finds
 * nobody.
 *
 * Everything that may raise a Lua error runs inside lua_resume() or
 * lua_pcall(): arguments are pushed and results taken by functions that
 * vm_hook_call() calls in there. The memory cap holds only while a hook runs,
 * so our own bookkeeping outside never fails for want of memory.
 *
 * Down    Lua log        Up  struct vm_call
 * Entry   vm_new  vm_load  vm_task_new  vm_run  vm_await  vm_wake  vm_task_end
 */
enum {
    VM_MAGIC = 0x766d2121,
    VM_TASK_MAGIC = 0x7461736b,
    VM_STEP = 1000,             // instructions between looks at the clock
    VM_BIG = 64 << 10,          // an allocation from here on costs time, too:
    VM_BIG_STEP = 16 << 20,     //   after so many bytes of them, a look as well
    VM_SPARE = 64,              // coroutines kept for the next request
    VM_LOAD_CPU_MS = 5000,      // for the policy's top level
    VM_CHECK_BYTES = 64 << 20,  // memory while only checking
};

/* How a hook gets its arguments, and what becomes of its results. */
struct vm_call {
    int hook;                               // reference into vm->hooks
    int (*push)(lua_State *, void *data);   // returns how many
    void (*take)(lua_State *, void *data);  // results: from index 2 up
    void (*on_done)(void *data, bool ok);   // only after a wait
    void *data;
};

enum vm_result { VM_DONE, VM_WAITING, VM_FAILED };

struct vm_task {
    unsigned magic;
    struct vm *vm;  // borrowed
    void *owner;    // lent to bind: the exchange it works for
    lua_State *L;   // anchored in the registry by `ref`
    int ref;
    uint32_t slot, seq;
    struct vm_call call;
    uint32_t cpu_ms;       // budget of one hook
    uint64_t cpu_from_ns;  // thread time when the budget was first looked at
    size_t big;            // bytes of big allocations since the last look
    bool over;             // budget spent: every instruction raises
    bool waiting, resuming, failed, closed;
    int (*woken)(lua_State *, void *);  // pushes what the waiting call returns
    void *woken_data;
    void (*cancel)(void *);  // ends what the task waits for
    void *cancel_data;
    char *error;  // owned: message and traceback of the last failure
};

/* In the registry: what a policy's chunks see, and views of our modules. */
#define VM_GLOBALS "gateway.globals"
#define VM_VIEWS "gateway.views"

struct vm_script {
    const char *name;
    const unsigned char *bytes;
    size_t n;
};

struct vm {
    unsigned magic;
    lua_State *L;
    struct env *env;          // borrowed
    const struct boot *boot;  // borrowed: the scripts
    size_t bytes, bytes_max;
    struct vm_task *running;  // whose hook is on the stack; NULL: ours
    uint64_t load_until_ns;   // thread time; only while the policy loads
    struct vm_task **tasks;   // by slot
    uint32_t tasks_n, next_seq;
    uint32_t free_from;  // no slot below it is free
    struct {
        lua_State *L;
        int ref;
    } spare[VM_SPARE];
    unsigned spares;
    int hooks, pure;      // references to what finish() returned
    struct mem_buf text;  // scratch of bindings; reset by each
};

static const struct vm_script vm_builtin[] = {
#include "scripts.inc"
    {NULL, NULL, 0},
};

static struct vm *
vm_of(lua_State *L)
{
    return *(struct vm **)lua_getextraspace(L);
}

/* ---- memory and time ---- */

static void vm_on_count(lua_State *L, lua_Debug *ar);

/* One instruction can copy megabytes: those are counted by their memory, and
 * bring the next look at the clock forward. */
static void
vm_charge(struct vm_task *t, size_t n)
{
    t->big += n;
    if (t->big < VM_BIG_STEP)
        return;
    t->big = 0;
    lua_sethook(t->L, vm_on_count, LUA_MASKCOUNT, 1);
}

static void *
vm_alloc(void *data, void *p, size_t was, size_t n)
{
    struct vm *vm = data;
    void *q;

    if (!p)
        was = 0;
    if (!n) {
        free(p);
        vm->bytes -= was;
        return NULL;
    }
    if (n > was && (vm->running || vm->load_until_ns) &&
        vm->bytes + (n - was) > vm->bytes_max)
        return NULL;  // Lua collects, tries again, then raises
    if (n > VM_BIG && vm->running)
        vm_charge(vm->running, n);
    q = realloc(p, n);
    must(q != NULL);
    vm->bytes += n - was;
    return q;
}

static uint64_t
vm_cpu_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* From now on every instruction raises, in this coroutine and in the task's
 * own: pcall() catches one error and runs into the next. */
static void
vm_stop(lua_State *L, struct vm_task *t)
{
    lua_sethook(L, vm_on_count, LUA_MASKCOUNT, 1);
    if (t)
        lua_sethook(t->L, vm_on_count, LUA_MASKCOUNT, 1);
}

/* Every VM_STEP instructions. The first look only starts the clock, so that a
 * short hook never pays for reading it. */
static void
vm_on_count(lua_State *L, lua_Debug *ar)
{
    struct vm *vm = vm_of(L);
    struct vm_task *t = vm->running;
    uint64_t now = t && t->over ? 0 : vm_cpu_ns();

    (void)ar;
    if (!t) {
        if (!vm->load_until_ns || now < vm->load_until_ns)
            return;
        vm_stop(L, NULL);
        luaL_error(L, "the policy took more than %d ms of CPU to load",
                   VM_LOAD_CPU_MS);
        return;
    }
    if (!t->over)  // vm_charge() may have brought us here early
        lua_sethook(L, vm_on_count, LUA_MASKCOUNT, VM_STEP);
    if (!t->over && !t->cpu_from_ns) {
        t->cpu_from_ns = now;
        return;
    }
    if (!t->over && now - t->cpu_from_ns < (uint64_t)t->cpu_ms * 1000000)
        return;
    if (!t->over)
        met_inc(MET_LIMIT_HOOK_CPU);
    t->over = true;
    vm_stop(L, t);
    luaL_error(L, "hook used more than %d ms of CPU", (int)t->cpu_ms);
}

/* ---- the sandbox ---- */

/* setmetatable() without __gc: a finaliser would run outside any budget. */
static int
vm_base_setmetatable(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    if (!lua_isnil(L, 2)) {
        luaL_checktype(L, 2, LUA_TTABLE);
        lua_pushliteral(L, "__gc");
        if (lua_rawget(L, 2) != LUA_TNIL)
            return luaL_error(L, "setmetatable: __gc is not allowed here");
        lua_pop(L, 1);
    }
    if (luaL_getmetafield(L, 1, "__metatable") != LUA_TNIL)
        return luaL_error(L, "cannot change a protected metatable");
    lua_settop(L, 2);
    lua_setmetatable(L, 1);
    return 1;
}

/* rawset() not through a read-only view. */
static int
vm_base_rawset(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    luaL_checkany(L, 2);
    luaL_checkany(L, 3);
    if (luaL_getmetafield(L, 1, "__metatable") != LUA_TNIL)
        return luaL_error(L, "rawset: this table is protected");
    lua_settop(L, 3);
    lua_rawset(L, 1);
    return 1;
}

static int
vm_base_print(lua_State *L)
{
    luaL_Buffer b;
    int n = lua_gettop(L);

    luaL_buffinit(L, &b);
    for (int i = 1; i <= n; i++) {
        if (i > 1)
            luaL_addchar(&b, '\t');
        luaL_tolstring(L, i, NULL);
        luaL_addvalue(&b);
    }
    luaL_pushresult(&b);
    log_at(LOG_INFO, "policy", "%s", lua_tostring(L, -1));
    return 0;
}

static int
vm_base_collectgarbage(lua_State *L)
{
    const char *what = luaL_optstring(L, 1, "count");

    if (strcmp(what, "count") != 0)
        return luaL_error(L, "collectgarbage: only \"count\" is allowed here");
    lua_pushnumber(L, (double)vm_of(L)->bytes / 1024);
    return 1;
}

/* An error that the count hook raises finds hooks switched off, and Lua calls
 * message handlers before it switches them on again. So handlers must not be
 * the policy's: xpcall() calls its handler when the stack has been unwound, and
 * what runs in a coroutine is unwound inside it, not by whoever closes it. */

/* stack: handler, ok, results... */
static int
vm_xpcall_done(lua_State *L, int status, lua_KContext ctx)
{
    (void)ctx;
    if (status == LUA_OK || status == LUA_YIELD) {
        lua_pushboolean(L, 1);
        lua_replace(L, 1);
        return lua_gettop(L);
    }
    lua_pushboolean(L, 0);
    lua_insert(L, 1);     // false, handler, ..., error
    lua_pushvalue(L, 2);  // false, handler, ..., error, handler
    lua_insert(L, -2);    // false, handler, ..., handler, error
    lua_call(L, 1, 1);
    lua_replace(L, 2);
    lua_settop(L, 2);
    return 2;
}

/* xpcall(f, handler, ...) */
static int
vm_base_xpcall(lua_State *L)
{
    int n = lua_gettop(L);

    luaL_checktype(L, 2, LUA_TFUNCTION);
    lua_pushvalue(L, 1);
    lua_replace(L, 1);
    lua_pushvalue(L, 2);
    lua_insert(L, 1);  // handler, f, handler, args
    lua_remove(L, 3);  // handler, f, args
    return vm_xpcall_done(
        L, lua_pcallk(L, n - 2, LUA_MULTRET, 0, 0, vm_xpcall_done), 0);
}

static int
vm_co_over(lua_State *L)
{
    struct vm_task *t = vm_of(L)->running;

    if (t && t->over)
        return luaL_error(L, "hook used more than %d ms of CPU",
                          (int)t->cpu_ms);
    return 0;
}

static int
vm_co_body_done(lua_State *L, int status, lua_KContext ctx)
{
    (void)ctx;
    if (status != LUA_OK && status != LUA_YIELD)
        return lua_error(L);
    return lua_gettop(L);
}

/* What a coroutine runs instead of the function that is upvalue 1. */
static int
vm_co_body(lua_State *L)
{
    int n = lua_gettop(L);

    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    return vm_co_body_done(
        L, lua_pcallk(L, n, LUA_MULTRET, 0, 0, vm_co_body_done), 0);
}

/* A coroutine whose budget is spent fails in its resumer, too, before that
 * goes on. Upvalue 1 is Lua's own function. */
static int
vm_co_guard(lua_State *L)
{
    int n = lua_gettop(L);

    vm_co_over(L);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, n, LUA_MULTRET);
    vm_co_over(L);
    return lua_gettop(L);
}

/* create(f): upvalue 1 is Lua's own. */
static int
vm_co_create(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_settop(L, 1);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_pushcclosure(L, vm_co_body, 1);
    lua_call(L, 1, 1);
    return 1;
}

/* yield(...): to the policy's own resumer, never to us. */
static int
vm_co_yield(lua_State *L)
{
    struct vm_task *t = vm_of(L)->running;

    if (!t || t->L == L)
        return luaL_error(L, "coroutine.yield: only inside a coroutine of "
                             "your own");
    return lua_yield(L, lua_gettop(L));
}

/* wrap(f): the function it returns is guarded, too. */
static int
vm_co_wrap(lua_State *L)
{
    vm_co_create(L);
    lua_pushcclosure(L, vm_co_guard, 1);
    return 1;
}

/* Work inside one C function that no instruction count sees: `n` is about the
 * bytes it goes through. */
static void
vm_cost(lua_State *L, size_t n)
{
    struct vm *vm = vm_of(L);

    if (vm && vm->running)
        vm_charge(vm->running, n);
}

/* A library function that goes through its string arguments: upvalue 1. */
static int
vm_metered(lua_State *L)
{
    int n = lua_gettop(L);
    size_t cost = 0;

    for (int i = 1; i <= n; i++)
        if (lua_type(L, i) == LUA_TSTRING)
            cost += lua_rawlen(L, i);
    vm_cost(L, cost);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, n, LUA_MULTRET);
    return lua_gettop(L);
}

/* Meters every function of the table on top. */
static void
vm_meter(lua_State *L)
{
    for (lua_pushnil(L); lua_next(L, -2);) {
        if (!lua_isfunction(L, -1)) {
            lua_pop(L, 1);
            continue;
        }
        lua_pushcclosure(L, vm_metered, 1);
        lua_pushvalue(L, -2);
        lua_insert(L, -2);
        lua_rawset(L, -4);
    }
}

/* Sets the fields of the table on top to nil. */
static void
vm_strip(lua_State *L, const char *const *names)
{
    for (; *names; names++) {
        lua_pushnil(L);
        lua_setfield(L, -2, *names);
    }
}

/* Replaces field `name` of the table on top by `wrapper` around it. */
static void
vm_wrap_field(lua_State *L, const char *name, lua_CFunction wrapper)
{
    lua_getfield(L, -1, name);
    lua_pushcclosure(L, wrapper, 1);
    lua_setfield(L, -2, name);
}

static void
vm_open_libraries(lua_State *L)
{
    static const luaL_Reg libs[] = {
        {LUA_GNAME, luaopen_base},        {LUA_COLIBNAME, luaopen_coroutine},
        {LUA_TABLIBNAME, luaopen_table},  {LUA_OSLIBNAME, luaopen_os},
        {LUA_STRLIBNAME, luaopen_string}, {LUA_MATHLIBNAME, luaopen_math},
        {LUA_UTF8LIBNAME, luaopen_utf8},
    };
    static const char *const no_base[] = {"dofile",  "load", "loadfile",
                                          "require", "warn", NULL};
    static const char *const no_os[] = {"execute", "exit",   "getenv",
                                        "remove",  "rename", "setlocale",
                                        "tmpname", NULL};
    static const char *const no_string[] = {"dump", NULL};
    static const luaL_Reg base[] = {
        {"setmetatable", vm_base_setmetatable},
        {"print", vm_base_print},
        {"rawset", vm_base_rawset},
        {"xpcall", vm_base_xpcall},
        {"collectgarbage", vm_base_collectgarbage},
        {NULL, NULL},
    };

    for (size_t i = 0; i < sizeof libs / sizeof *libs; i++) {
        luaL_requiref(L, libs[i].name, libs[i].func, 1);
        lua_pop(L, 1);
    }
    lua_pushglobaltable(L);
    vm_strip(L, no_base);
    luaL_setfuncs(L, base, 0);
    lua_getfield(L, -1, "os");
    vm_strip(L, no_os);
    lua_getfield(L, -2, "string");
    vm_strip(L, no_string);
    vm_meter(L);
    lua_getfield(L, -3, "utf8");
    vm_meter(L);
    lua_getfield(L, -4, "coroutine");
    vm_wrap_field(L, "resume", vm_co_guard);
    vm_wrap_field(L, "close", vm_co_guard);
    vm_wrap_field(L, "create", vm_co_create);
    vm_wrap_field(L, "wrap", vm_co_wrap);
    vm_wrap_field(L, "yield", vm_co_yield);
    lua_settop(L, 0);
    lua_pushliteral(L, "");  // ("").__index is `string`; hide the metatable
    must(lua_getmetatable(L, -1));
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    lua_settop(L, 0);
}

/* ---- scripts ---- */

static bool
vm_builtin_find(const char *name, struct str *bytes)
{
    for (const struct vm_script *s = vm_builtin; s->name; s++)
        if (strcmp(s->name, name) == 0) {
            *bytes = (struct str){(const char *)s->bytes, s->n};
            return true;
        }
    return false;
}

/* A script of the policy's folder, by its bundle name. */
static bool
vm_bundle_find(const struct boot *b, struct str name, struct str *bytes)
{
    for (size_t i = 0; i < b->scripts_n; i++)
        if (str_eq(b->scripts[i].name, name)) {
            *bytes = b->scripts[i].bytes;
            return true;
        }
    return false;
}

static int
vm_on_global_write(lua_State *L)
{
    const char *name = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?";

    return luaL_error(L, "assignment to global '%s': use `local`", name);
}

static int
vm_on_library_write(lua_State *L)
{
    return luaL_error(L, "the library is read-only");
}

/* pairs() over a view goes over a copy. */
static int
vm_on_view_pairs(lua_State *L)
{
    luaL_getmetafield(L, 1, "__index");
    lua_getglobal(L, "next");
    lua_newtable(L);  // view, table, next, copy
    for (lua_pushnil(L); lua_next(L, 2);) {
        lua_pushvalue(L, -2);
        lua_insert(L, -2);
        lua_rawset(L, 4);
    }
    lua_pushnil(L);
    return 3;
}

/* Replaces the table on top by a view that cannot be written. */
static void
vm_read_only(lua_State *L, lua_CFunction on_write)
{
    lua_newtable(L);
    lua_newtable(L);
    lua_rotate(L, -3, 2);
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, on_write);
    lua_setfield(L, -2, "__newindex");
    lua_pushcfunction(L, vm_on_view_pairs);
    lua_setfield(L, -2, "__pairs");
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    lua_setmetatable(L, -2);
}

static int vm_require(lua_State *L);

/* A policy's require(): modules of ours come as read-only views. */
static int
vm_policy_require(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1);
    bool ours =
        strcmp(name, "gateway") == 0 || strncmp(name, "gateway.", 8) == 0;

    if (strcmp(name, "gateway.core") == 0)
        return luaL_error(L, "gateway.core is for the library alone");
    lua_settop(L, 1);
    lua_getfield(L, LUA_REGISTRYINDEX, VM_VIEWS);
    if (lua_getfield(L, 2, name) != LUA_TNIL)
        return 1;
    lua_settop(L, 1);
    vm_require(L);
    if (!ours || !lua_istable(L, -1))
        return 1;
    vm_read_only(L, vm_on_library_write);
    lua_getfield(L, LUA_REGISTRYINDEX, VM_VIEWS);
    lua_pushvalue(L, -2);
    lua_setfield(L, -2, name);
    lua_pop(L, 1);
    return 1;
}

/* What a policy sees as its globals: those of the state, its libraries as
 * read-only views, so that no hook changes what another one calls. */
static void
vm_make_policy_globals(lua_State *L)
{
    lua_newtable(L);
    lua_setfield(L, LUA_REGISTRYINDEX, VM_VIEWS);
    lua_newtable(L);
    lua_pushglobaltable(L);
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
        lua_pushvalue(L, -2);
        lua_pushvalue(L, -2);
        if (lua_istable(L, -1))
            vm_read_only(L, vm_on_library_write);
        lua_rawset(L, -6);
    }
    lua_pop(L, 1);
    lua_pushnil(L);
    lua_setfield(L, -2, "_G");
    lua_pushcfunction(L, vm_policy_require);
    lua_setfield(L, -2, "require");
    lua_setfield(L, LUA_REGISTRYINDEX, VM_GLOBALS);
}

/* Loads text (never bytecode) as a function whose globals cannot be written.
 * stack: ... -> ..., function */
static void
vm_load_chunk(lua_State *L, struct str bytes, const char *name, bool ours)
{
    if (luaL_loadbufferx(L, bytes.p, bytes.n, name, "t") != LUA_OK)
        lua_error(L);
    if (ours)
        lua_pushglobaltable(L);
    else
        lua_getfield(L, LUA_REGISTRYINDEX, VM_GLOBALS);
    vm_read_only(L, vm_on_global_write);
    must(lua_setupvalue(L, -2, 1) != NULL);
}

/* The folder of the policy, with its slash, as the bundle's names have it. */
static struct str
vm_policy_folder(const struct boot *b)
{
    struct str f = b->policy;

    while (f.n && f.p[f.n - 1] != '/')
        f.n--;
    return f;
}

/* The two files that "a/b" may be. */
static const char *const vm_module_forms[] = {"%s%s.lua", "%s%s/init.lua"};

/* A module of ours. Pushes its chunk name if it is there. */
static bool
vm_module_ours(lua_State *L, const char *path, struct str *bytes)
{
    for (int i = 0; i < 2; i++) {
        const char *file = lua_pushfstring(L, vm_module_forms[i], "", path);

        if (vm_builtin_find(file, bytes)) {
            lua_pushfstring(L, "@scripts/%s", file);
            return true;
        }
    }
    return false;
}

/* The same for one of the policy's, below its folder. */
static bool
vm_module_policys(lua_State *L, const char *folder, const char *path,
                  struct str *bytes)
{
    for (int i = 0; i < 2; i++) {
        const char *file = lua_pushfstring(L, vm_module_forms[i], folder, path);

        if (vm_bundle_find(vm_of(L)->boot, str_of(file), bytes)) {
            lua_pushfstring(L, "@%s", file);
            return true;
        }
    }
    return false;
}

/* require "a.b": the built-in a/b.lua or a/b/init.lua, then the same below the
 * policy's folder. */
static int
vm_require(lua_State *L)
{
    const char *name = luaL_checkstring(L, 1), *path, *folder;
    struct str dir = vm_policy_folder(vm_of(L)->boot), bytes;
    bool ours;

    lua_settop(L, 1);
    lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
    if (lua_getfield(L, 2, name) != LUA_TNIL)
        return 1;
    path = luaL_gsub(L, name, ".", "/");
    folder = lua_pushlstring(L, dir.p, dir.n);
    ours = vm_module_ours(L, path, &bytes);
    if (!ours && !vm_module_policys(L, folder, path, &bytes))
        return luaL_error(L,
                          "module '%s' not found: it is neither built in nor "
                          "below the policy's folder '%s'",
                          name, folder[0] ? folder : "./");
    vm_load_chunk(L, bytes, lua_tostring(L, -1), ours);
    lua_pushvalue(L, 1);
    lua_call(L, 1, 1);
    if (lua_isnil(L, -1)) {
        lua_pushboolean(L, 1);
        lua_replace(L, -2);
    }
    lua_pushvalue(L, -1);
    lua_setfield(L, 2, name);
    return 1;
}

/* ---- birth and load ---- */

/* `core` opens "gateway.core" (see bind). */
static int
vm_boot(lua_State *L)
{
    lua_CFunction core = lua_tocfunction(L, 1);

    lua_settop(L, 0);
    vm_open_libraries(L);
    lua_pushcfunction(L, vm_require);
    lua_setglobal(L, "require");
    luaL_requiref(L, "gateway.core", core, 0);
    lua_settop(L, 0);
    vm_make_policy_globals(L);
    return 0;
}

static struct vm *
vm_new(struct env *env, const struct boot *boot, size_t bytes_max,
       lua_CFunction core)
{
    struct vm *vm = obj_new(sizeof *vm, VM_MAGIC);

    vm->env = env;
    vm->boot = boot;
    vm->bytes_max = bytes_max;
    vm->L = lua_newstate(vm_alloc, vm);
    must(vm->L != NULL);
    *(struct vm **)lua_getextraspace(vm->L) = vm;
    lua_pushcfunction(vm->L, vm_boot);
    lua_pushcfunction(vm->L, core);
    if (lua_pcall(vm->L, 1, 0, 0) != LUA_OK) {
        fprintf(stderr, "%s\n", lua_tostring(vm->L, -1));
        abort();
    }
    return vm;
}

static void
vm_free(struct vm *vm)
{
    if (!vm)
        return;
    lua_close(vm->L);
    mem_buf_free(&vm->text);
    free(vm->tasks);
    obj_free(vm);
}

/* Runs `fn(L)` protected, within the load's budget and the memory cap. Its
 * error is put into `e` without traceback: for a policy that says file:line. */
static bool
vm_protect(struct vm *vm, lua_CFunction fn, void *arg, struct err *e)
{
    lua_State *L = vm->L;
    const char *msg;
    int rc;

    vm->load_until_ns = vm_cpu_ns() + VM_LOAD_CPU_MS * UINT64_C(1000000);
    lua_sethook(L, vm_on_count, LUA_MASKCOUNT, VM_STEP);
    lua_pushcfunction(L, fn);
    lua_pushlightuserdata(L, arg);
    rc = lua_pcall(L, 1, 0, 0);
    lua_sethook(L, NULL, 0, 0);
    vm->load_until_ns = 0;
    if (rc == LUA_OK)
        return true;
    msg = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1)
                                         : "(error is not a string)";
    err_set(e, ERR_CONFIG, "%s", msg);
    lua_settop(L, 0);
    return false;
}

struct vm_load {
    struct vm *vm;
    struct mem_arena *arena;
    struct str json;  // out: the plain configuration
};

/* Does hook `i` depend on the identity alone, so that its verdict holds for
 * the whole connection? */
static bool
vm_hook_pure(struct vm *vm, int hook)
{
    bool pure;

    lua_rawgeti(vm->L, LUA_REGISTRYINDEX, vm->pure);
    lua_rawgeti(vm->L, -1, hook);
    pure = lua_toboolean(vm->L, -1);
    lua_pop(vm->L, 2);
    return pure;
}

/* Runs the policy, then asks the library for what it declared. */
static int
vm_load_policy(lua_State *L)
{
    struct vm_load *l = lua_touserdata(L, 1);
    struct vm *vm = l->vm;
    struct str bytes;
    size_t n;
    const char *p;

    if (!vm_bundle_find(vm->boot, vm->boot->policy, &bytes))
        return luaL_error(
            L, "%s: not in the bundle",
            lua_pushlstring(L, vm->boot->policy.p, vm->boot->policy.n));
    lua_pushfstring(L, "@%s",
                    lua_pushlstring(L, vm->boot->policy.p, vm->boot->policy.n));
    vm_load_chunk(L, bytes, lua_tostring(L, -1), false);
    lua_call(L, 0, 0);
    lua_getglobal(L, "require");
    lua_pushliteral(L, "gateway.policy");
    lua_call(L, 1, 1);
    lua_getfield(L, -1, "finish");
    lua_pushlstring(L, vm->boot->policy.p, vm->boot->policy.n);
    lua_call(L, 1, 3);
    p = luaL_checklstring(L, -3, &n);
    l->json = str_dup(l->arena, (struct str){p, n});
    luaL_checktype(L, -2, LUA_TTABLE);
    luaL_checktype(L, -1, LUA_TTABLE);
    vm->pure = luaL_ref(L, LUA_REGISTRYINDEX);
    vm->hooks = luaL_ref(L, LUA_REGISTRYINDEX);
    return 0;
}

/* Evaluates the policy; *json is the plain configuration it declares. */
static bool
vm_load(struct vm *vm, struct mem_arena *arena, struct str *json, struct err *e)
{
    struct vm_load l = {.vm = vm, .arena = arena};

    if (!vm_protect(vm, vm_load_policy, &l, e))
        return false;
    lua_gc(vm->L, LUA_GCCOLLECT);  // what only the declarations needed
    *json = l.json;
    return true;
}

/* ---- tasks ---- */

static struct vm_task *
vm_task_new(struct vm *vm, uint32_t cpu_ms)
{
    struct vm_task *t = obj_new(sizeof *t, VM_TASK_MAGIC);
    uint32_t slot = vm->free_from;

    t->vm = vm;
    t->cpu_ms = cpu_ms;
    if (vm->spares) {
        t->L = vm->spare[--vm->spares].L;
        t->ref = vm->spare[vm->spares].ref;
    } else {
        t->L = lua_newthread(vm->L);
        t->ref = luaL_ref(vm->L, LUA_REGISTRYINDEX);
    }
    while (slot < vm->tasks_n && vm->tasks[slot])
        slot++;
    if (slot == vm->tasks_n) {
        uint32_t n = vm->tasks_n ? 2 * vm->tasks_n : 16;

        vm->tasks = mem_xrealloc(vm->tasks, n * sizeof *vm->tasks);
        memset(vm->tasks + vm->tasks_n, 0,
               (n - vm->tasks_n) * sizeof *vm->tasks);
        vm->tasks_n = n;
    }
    vm->tasks[slot] = t;
    vm->free_from = slot + 1;
    t->slot = slot;
    t->seq = ++vm->next_seq;
    return t;
}

/* Never 0, and never the same for two tasks. */
static uint64_t
vm_ticket(const struct vm_task *t)
{
    return (uint64_t)t->seq << 32 | t->slot;
}

static struct vm_task *
vm_task_find(struct vm *vm, uint64_t ticket)
{
    uint32_t slot = (uint32_t)ticket;
    struct vm_task *t = slot < vm->tasks_n ? vm->tasks[slot] : NULL;

    return t && t->seq == ticket >> 32 ? t : NULL;
}

/* Closes a coroutine that waits: its <close> variables run, within a budget of
 * their own. */
static void
vm_task_close(struct vm_task *t)
{
    struct vm_task *outer = t->vm->running;

    t->over = false;
    t->cpu_from_ns = 0;
    t->closed = true;  // a spent budget would leave it without hooks
    t->vm->running = t;
    lua_sethook(t->L, vm_on_count, LUA_MASKCOUNT, VM_STEP);
    lua_closethread(t->L, NULL);
    t->vm->running = outer;
}

/* Ends a task, wherever it is. */
static void
vm_task_end(struct vm_task *t)
{
    struct vm *vm;

    if (!t)
        return;
    vm = t->vm;
    must(!t->resuming);
    if (t->cancel)
        t->cancel(t->cancel_data);
    vm->tasks[t->slot] = NULL;
    if (t->slot < vm->free_from)
        vm->free_from = t->slot;
    if (lua_status(t->L) == LUA_YIELD)
        vm_task_close(t);
    if (vm->spares < VM_SPARE && lua_status(t->L) == LUA_OK && !t->closed) {
        vm->spare[vm->spares].L = t->L;
        vm->spare[vm->spares++].ref = t->ref;
    } else {
        luaL_unref(vm->L, LUA_REGISTRYINDEX, t->ref);
    }
    free(t->error);
    obj_free(t);
}

/* Message handler: the error with its traceback. Calls nothing of the policy's
 * (no __tostring): hooks may be switched off here. */
static int
vm_on_error(lua_State *L)
{
    const char *msg = lua_type(L, 1) == LUA_TSTRING ? lua_tostring(L, 1) : NULL;

    if (!msg)
        msg = lua_pushfstring(L, "(the error is a %s, not a string)",
                              luaL_typename(L, 1));
    luaL_traceback(L, L, msg, 1);
    return 1;
}

/* The hook has returned. stack: task, results... */
static int
vm_hook_done(lua_State *L, int status, lua_KContext ctx)
{
    struct vm_task *t = lua_touserdata(L, 1);

    (void)status;
    (void)ctx;
    t->call.take(L, t->call.data);
    return 0;
}

/* Pushes hook and arguments, calls it, takes its results. */
static int
vm_hook_call(lua_State *L)
{
    struct vm_task *t = lua_touserdata(L, 1);
    int n;

    lua_rawgeti(L, LUA_REGISTRYINDEX, t->vm->hooks);
    lua_rawgeti(L, 2, t->call.hook);
    lua_remove(L, 2);
    n = t->call.push(L, t->call.data);
    lua_callk(L, n, LUA_MULTRET, 0, vm_hook_done);
    return vm_hook_done(L, LUA_OK, 0);
}

/* stack: task, handler [, error] */
static int
vm_leave(lua_State *L, int status, lua_KContext ctx)
{
    struct vm_task *t = lua_touserdata(L, 1);

    (void)ctx;
    t->failed = status != LUA_OK && status != LUA_YIELD;
    if (!t->failed)
        return 0;
    if (status == LUA_ERRMEM)
        met_inc(MET_LIMIT_LUA_MEMORY);
    free(t->error);
    t->error =
        strdup(lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1)
                                              : "error in error handling");
    return 0;
}

/* The whole of a hook's run, inside its coroutine. Errors are caught here, not
 * by lua_resume(): only so are hooks on again when <close> variables run. */
static int
vm_enter(lua_State *L)
{
    lua_pushcfunction(L, vm_on_error);
    lua_pushcfunction(L, vm_hook_call);
    lua_pushvalue(L, 1);
    return vm_leave(L, lua_pcallk(L, 1, 0, 2, 0, vm_leave), 0);
}

static enum vm_result
vm_resume(struct vm_task *t, int nargs)
{
    struct vm *vm = t->vm;
    struct vm_task *outer = vm->running;
    int rc, nres;

    must(!t->resuming);
    vm->running = t;
    t->resuming = true;
    t->waiting = false;
    rc = lua_resume(t->L, NULL, nargs, &nres);
    t->resuming = false;
    vm->running = outer;
    if (rc == LUA_YIELD)
        return VM_WAITING;
    t->waiting = false;
    t->cancel = NULL;
    must(rc == LUA_OK);  // vm_enter() has caught everything
    if (t->failed && t->vm->bytes > t->vm->bytes_max / 2)
        lua_gc(t->vm->L, LUA_GCCOLLECT);
    return t->failed ? VM_FAILED : VM_DONE;
}

/* Runs one hook. VM_WAITING: call.on_done() will tell. */
static enum vm_result
vm_run(struct vm_task *t, const struct vm_call *call)
{
    lua_State *L = t->L;

    t->call = *call;
    t->over = false;
    t->cpu_from_ns = 0;
    lua_settop(L, 0);
    lua_sethook(L, vm_on_count, LUA_MASKCOUNT, VM_STEP);
    lua_pushcfunction(L, vm_enter);
    lua_pushlightuserdata(L, t);
    return vm_resume(t, 1);
}

/* The task on whose behalf a binding is called; raises outside a hook. */
static struct vm_task *
vm_task_here(lua_State *L, const char *what)
{
    struct vm_task *t = vm_of(L)->running;

    if (!t)
        return luaL_error(L, "%s: only inside a hook", what), NULL;
    if (t->L != L)
        luaL_error(L, "%s: cannot wait inside a coroutine of your own", what);
    if (!lua_isyieldable(L))
        luaL_error(L,
                   "%s: cannot wait inside table.sort, string.gsub or the "
                   "like",
                   what);
    return t;
}

static int
vm_awake(lua_State *L, int status, lua_KContext ctx)
{
    struct vm_task *t = vm_of(L)->running;

    (void)status;
    (void)ctx;
    t->cancel = NULL;
    return t->woken(L, t->woken_data);
}

/* The only way to sleep: `return vm_await(...)` as the last thing a binding
 * does. `cancel(data)` ends what is waited for if the task is ended first. */
static int
vm_await(lua_State *L, struct vm_task *t, void (*cancel)(void *), void *data)
{
    t->waiting = true;
    t->cancel = cancel;
    t->cancel_data = data;
    lua_settop(L, 0);
    return lua_yieldk(L, 0, 0, vm_awake);
}

/* What a task waited for has come: `push` runs inside the coroutine, and what
 * it pushes is what the waiting call returns. False: nobody waits. */
static bool
vm_wake(struct vm *vm, uint64_t ticket, int (*push)(lua_State *, void *),
        void *data)
{
    struct vm_task *t = vm_task_find(vm, ticket);
    struct vm_call call;
    enum vm_result rc;

    if (!t || !t->waiting)
        return false;
    t->woken = push;
    t->woken_data = data;
    call = t->call;
    rc = vm_resume(t, 0);
    if (rc != VM_WAITING)
        call.on_done(call.data, rc == VM_DONE);
    return true;
}

/* ==== 25 lib: string and table functions that cannot run away ===============
 *
 * A debug hook does not fire inside a C function, so one string.find() with an
 * unlucky pattern could hold the loop for ever. These replace the functions of
 * the Lua library that loop in C: the same results (Lua 5.4 manual, sections
 * 6.4 to 6.6), with a bound on the work of each call.
 *
 * A pattern is compiled first, so a malformed one always raises, not only when
 * the match happens to get that far. Matching is backtracking, and every item
 * tried is a step; LIB_STR_STEPS of them take some ten milliseconds.
 *
 * The table functions work on plain tables only: a metatable with __len,
 * __index or __newindex would put Lua code into our loops.
 *
 * Entry   lib_str_functions  lib_tab_functions
 */
enum {
    LIB_STR_STEPS = 1000000,   // of one call
    LIB_STR_RESULT = 8 << 20,  // bytes that one call may build
    LIB_STR_CAPTURES = 32,     // as LUA_MAXCAPTURES
    LIB_STR_PATTERN = 65536,   // bytes of a pattern
    LIB_STR_DEPTH = 200,       // repeats inside one another
    LIB_STR_ITEMS = 64,        // a pattern of this size needs no allocation
    LIB_STR_SETS = 8,
    LIB_TAB_RANGE = 1000000,  // elements that one call may touch
    LIB_TAB_SORT = 100000,    // and sort: this is 1.7 million comparisons
};

/* luaL_error(), declared as what it is: it does not come back. */
_Noreturn static void
lib_str_raise(lua_State *L, const char *fmt, ...)
{
    va_list ap;

    luaL_where(L, 1);
    va_start(ap, fmt);
    lua_pushvfstring(L, fmt, ap);
    va_end(ap);
    lua_concat(L, 2);
    lua_error(L);
    abort();
}

/* ---- patterns: text to items ------------------------------------------- */

enum lib_str_op {
    LIB_STR_DONE,      // the pattern is at its end: a match
    LIB_STR_OPEN,      // "(" of capture a
    LIB_STR_CLOSE,     // ")" of capture a
    LIB_STR_POSITION,  // "()" as capture a
    LIB_STR_LAST,      // "$" at the end
    LIB_STR_AGAIN,     // "%1": the text of capture a
    LIB_STR_BALANCE,   // "%bxy" with x in a, y in b
    LIB_STR_FRONTIER,  // "%f[set]"
    LIB_STR_BYTE,      // from here on: items that match one byte (and repeat)
    LIB_STR_ANY,
    LIB_STR_CLASS,  // arg: bits of lib_str_bytes
    LIB_STR_NOT_CLASS,
    LIB_STR_SET,  // arg: index into sets
};

struct lib_str_item {
    unsigned char op, a, b;
    char times;    // 0 (once), or one of * + - ?
    unsigned arg;  // class bits or set index
};

struct lib_str_set {
    unsigned char bits[32];
};

struct lib_str_pattern {
    struct lib_str_item *items;  // borrowed: the caller's frame, or a userdata
    struct lib_str_set *sets;
    unsigned n, sets_n, captures;
    uint32_t positions;  // bit i: capture i is "()"
    bool anchored;
};

/* The usual home of a pattern: in the frame of the function that uses it. */
struct lib_str_room {
    struct lib_str_item items[LIB_STR_ITEMS];
    struct lib_str_set sets[LIB_STR_SETS];
};

/* A pattern while it is read. */
struct lib_str_reader {
    lua_State *L;
    const char *p, *end;
    struct lib_str_pattern *out;
    unsigned open[LIB_STR_CAPTURES], open_n;  // captures that wait for ")"
    uint32_t closed;                          // bit i: "%i" may be used
};

enum {
    LIB_STR_A = 1,     // %a letters
    LIB_STR_C = 2,     // %c control bytes
    LIB_STR_D = 4,     // %d digits
    LIB_STR_G = 8,     // %g printable but space
    LIB_STR_L = 16,    // %l lower case
    LIB_STR_P = 32,    // %p punctuation
    LIB_STR_S = 64,    // %s white space
    LIB_STR_U = 128,   // %u upper case
    LIB_STR_W = 256,   // %w letters and digits
    LIB_STR_X = 512,   // %x hexadecimal digits
    LIB_STR_Z = 1024,  // %z the zero byte (old, but Lua still knows it)
};

#define LIB_STR_UPPER (LIB_STR_A | LIB_STR_G | LIB_STR_U | LIB_STR_W)
#define LIB_STR_LOWER (LIB_STR_A | LIB_STR_G | LIB_STR_L | LIB_STR_W)

/* The classes of each byte, in the C locale whatever the process thinks. */
static const uint16_t lib_str_bytes[256] = {
    [0] = LIB_STR_C | LIB_STR_Z,
    [1 ... 8] = LIB_STR_C,
    [9 ... 13] = LIB_STR_C | LIB_STR_S,
    [14 ... 31] = LIB_STR_C,
    [' '] = LIB_STR_S,
    ['!' ... '/'] = LIB_STR_G | LIB_STR_P,
    ['0' ... '9'] = LIB_STR_D | LIB_STR_G | LIB_STR_W | LIB_STR_X,
    [':' ... '@'] = LIB_STR_G | LIB_STR_P,
    ['A' ... 'F'] = LIB_STR_UPPER | LIB_STR_X,
    ['G' ... 'Z'] = LIB_STR_UPPER,
    ['[' ... '`'] = LIB_STR_G | LIB_STR_P,
    ['a' ... 'f'] = LIB_STR_LOWER | LIB_STR_X,
    ['g' ... 'z'] = LIB_STR_LOWER,
    ['{' ... '~'] = LIB_STR_G | LIB_STR_P,
    [127] = LIB_STR_C,
};

/* The class that the letter after '%' names, in either case, or 0. */
static unsigned
lib_str_class(unsigned char c)
{
    static const char letters[] = "acdglpsuwxz";
    const char *at = c ? strchr(letters, str_lower_byte(c)) : NULL;

    return at ? 1u << (at - letters) : 0;
}

static bool
lib_str_upper(unsigned char c)
{
    return c >= 'A' && c <= 'Z';
}

static bool
lib_str_in_set(const struct lib_str_set *s, unsigned char c)
{
    return s->bits[c >> 3] >> (c & 7) & 1;
}

static void
lib_str_set_add(struct lib_str_set *s, unsigned lo, unsigned hi)
{
    for (unsigned c = lo; c <= hi; c++)
        s->bits[c >> 3] |= (unsigned char)(1u << (c & 7));
}

/* "%x" inside a set: a class, or the byte itself. */
static void
lib_str_set_class(struct lib_str_set *s, unsigned char x)
{
    unsigned class = lib_str_class(x);

    if (!class)
        lib_str_set_add(s, x, x);
    for (unsigned c = 0; class && c < 256; c++)
        if (((lib_str_bytes[c] & class) != 0) != lib_str_upper(x))
            lib_str_set_add(s, c, c);
}

/* The ']' that ends the set whose first element is at `p`; that element may be
 * a ']' itself. */
static const char *
lib_str_set_end(struct lib_str_reader *r, const char *p)
{
    for (bool first = true; p < r->end; first = false) {
        if (*p == ']' && !first)
            return p;
        p += *p == '%' && p + 1 < r->end ? 2 : 1;
    }
    lib_str_raise(r->L, "malformed pattern (missing ']')");
}

/* Reads a set from its '[' on; returns its index. */
static unsigned
lib_str_read_set(struct lib_str_reader *r)
{
    struct lib_str_set *s = &r->out->sets[r->out->sets_n];
    const char *p = r->p + 1;
    bool negated = p < r->end && *p == '^';
    const char *end = lib_str_set_end(r, p += negated);

    memset(s, 0, sizeof *s);
    while (p < end) {
        unsigned char c = (unsigned char)*p;

        if (c == '%' && p + 1 < end) {
            lib_str_set_class(s, (unsigned char)p[1]);
            p += 2;
        } else if (p + 2 < end && p[1] == '-') {
            lib_str_set_add(s, c, (unsigned char)p[2]);
            p += 3;
        } else {
            lib_str_set_add(s, c, c);
            p++;
        }
    }
    for (size_t i = 0; negated && i < sizeof s->bits; i++)
        s->bits[i] = (unsigned char)~s->bits[i];
    r->p = end + 1;
    return r->out->sets_n++;
}

static void
lib_str_read_open(struct lib_str_reader *r, struct lib_str_item *i)
{
    struct lib_str_pattern *out = r->out;

    if (out->captures == LIB_STR_CAPTURES)
        lib_str_raise(r->L, "too many captures");
    i->a = (unsigned char)out->captures++;
    r->p++;
    if (r->p < r->end && *r->p == ')') {
        r->p++;
        i->op = LIB_STR_POSITION;
        out->positions |= 1u << i->a;
        r->closed |= 1u << i->a;
        return;
    }
    i->op = LIB_STR_OPEN;
    r->open[r->open_n++] = i->a;
}

static void
lib_str_read_close(struct lib_str_reader *r, struct lib_str_item *i)
{
    if (!r->open_n)
        lib_str_raise(r->L, "invalid pattern capture");
    i->op = LIB_STR_CLOSE;
    i->a = (unsigned char)r->open[--r->open_n];
    r->closed |= 1u << i->a;
    r->p++;
}

/* "%" and what follows. True if it matches one byte and so may repeat. */
static bool
lib_str_read_escape(struct lib_str_reader *r, struct lib_str_item *i)
{
    unsigned char c;

    if (r->end - r->p < 2)
        lib_str_raise(r->L, "malformed pattern (ends with '%%')");
    c = (unsigned char)r->p[1];
    r->p += 2;
    if (c == 'b') {
        if (r->end - r->p < 2)
            lib_str_raise(r->L,
                          "malformed pattern (missing arguments to '%%b')");
        i->op = LIB_STR_BALANCE;
        i->a = (unsigned char)r->p[0];
        i->b = (unsigned char)r->p[1];
        r->p += 2;
        return false;
    }
    if (c == 'f') {
        if (r->p == r->end || *r->p != '[')
            lib_str_raise(r->L, "missing '[' after '%%f' in pattern");
        i->op = LIB_STR_FRONTIER;
        i->arg = lib_str_read_set(r);
        return false;
    }
    if (c >= '0' && c <= '9') {
        if (c == '0' || !(r->closed >> (c - '1') & 1))
            lib_str_raise(r->L, "invalid capture index %%%d in pattern",
                          c - '0');
        i->op = LIB_STR_AGAIN;
        i->a = (unsigned char)(c - '1');
        return false;
    }
    i->arg = lib_str_class(c);
    i->op = !i->arg            ? LIB_STR_BYTE
            : lib_str_upper(c) ? LIB_STR_NOT_CLASS
                               : LIB_STR_CLASS;
    i->a = c;
    return true;
}

/* One item; the reader is not at its end. */
static void
lib_str_read_item(struct lib_str_reader *r, struct lib_str_item *i)
{
    *i = (struct lib_str_item){0};
    switch (*r->p) {
    case '(':
        lib_str_read_open(r, i);
        return;
    case ')':
        lib_str_read_close(r, i);
        return;
    case '%':
        if (!lib_str_read_escape(r, i))
            return;
        break;
    case '[':
        i->op = LIB_STR_SET;
        i->arg = lib_str_read_set(r);
        break;
    case '.':
        i->op = LIB_STR_ANY;
        r->p++;
        break;
    default:
        if (*r->p == '$' && r->p + 1 == r->end) {
            i->op = LIB_STR_LAST;
            r->p++;
            return;
        }
        i->op = LIB_STR_BYTE;
        i->a = (unsigned char)*r->p++;
    }
    if (r->p < r->end && *r->p && strchr("*+-?", *r->p))
        i->times = *r->p++;
}

/* Fills out->items and out->sets, with room for lib_str_sizes(). A leading
 * '^' anchors where `anchor` allows it, and is a plain byte elsewhere. */
static void
lib_str_read(lua_State *L, struct str text, bool anchor,
             struct lib_str_pattern *out)
{
    struct lib_str_reader r = {L, text.p, text.p + text.n, out, {0}, 0, 0};

    out->n = out->sets_n = out->captures = 0;
    out->positions = 0;
    out->anchored = anchor && text.n && text.p[0] == '^';
    r.p += out->anchored;
    while (r.p < r.end)
        lib_str_read_item(&r, &out->items[out->n++]);
    if (r.open_n)
        lib_str_raise(L, "unfinished capture");
    out->items[out->n] = (struct lib_str_item){.op = LIB_STR_DONE};
}

/* At most so many items and sets are in the text. */
static void
lib_str_sizes(lua_State *L, struct str text, size_t *items, size_t *sets)
{
    if (text.n > LIB_STR_PATTERN)
        lib_str_raise(L, "pattern too long (more than %d bytes)",
                      LIB_STR_PATTERN);
    *items = text.n + 1;
    *sets = 0;
    for (size_t i = 0; i < text.n; i++)
        *sets += text.p[i] == '[';
}

/* Compiles into the room that `out` points to where it fits, else into a
 * userdata that stays on the stack for the rest of the call. */
static void
lib_str_compile(lua_State *L, struct str text, struct lib_str_pattern *out)
{
    size_t items, sets;

    lib_str_sizes(L, text, &items, &sets);
    if (items > LIB_STR_ITEMS || sets > LIB_STR_SETS) {
        out->items = lua_newuserdatauv(
            L, items * sizeof *out->items + sets * sizeof *out->sets, 0);
        out->sets = (struct lib_str_set *)(void *)(out->items + items);
    }
    lib_str_read(L, text, true, out);
}

/* ---- patterns: the match ----------------------------------------------- */

struct lib_str_match {
    lua_State *L;
    const char *name;  // "string.find", for the error
    const struct lib_str_pattern *pattern;
    const char *src, *end;  // the whole subject
    unsigned steps, depth;
    struct str captures[LIB_STR_CAPTURES];
};

static const char *lib_str_run(struct lib_str_match *, const char *,
                               const struct lib_str_item *);

static void
lib_str_begin(struct lib_str_match *m, lua_State *L, const char *name,
              struct str subject, const struct lib_str_pattern *pattern)
{
    must(subject.p != NULL);
    m->L = L;
    m->name = name;
    m->pattern = pattern;
    m->src = subject.p;
    m->end = subject.p + subject.n;
    m->steps = m->depth = 0;
    for (unsigned i = 0; i < pattern->captures; i++)
        m->captures[i] = (struct str){subject.p, 0};
}

static void
lib_str_steps(struct lib_str_match *m, size_t n)
{
    if (n > LIB_STR_STEPS - m->steps)
        lib_str_raise(m->L, "%s: pattern took too long", m->name);
    if ((m->steps ^ (m->steps + n)) >> 12)  // each 4096 steps
        vm_cost(m->L, 64 << 10);
    m->steps += (unsigned)n;
}

/* Does the item, one that stands for a single byte, match `c`? */
static inline bool
lib_str_one(const struct lib_str_match *m, const struct lib_str_item *i,
            unsigned char c)
{
    switch (i->op) {
    case LIB_STR_BYTE:
        return c == i->a;
    case LIB_STR_ANY:
        return true;
    case LIB_STR_CLASS:
        return (lib_str_bytes[c] & i->arg) != 0;
    case LIB_STR_NOT_CLASS:
        return (lib_str_bytes[c] & i->arg) == 0;
    default:
        return lib_str_in_set(&m->pattern->sets[i->arg], c);
    }
}

/* After "%bxy" at `s`, or NULL. */
static const char *
lib_str_balance(struct lib_str_match *m, const char *s,
                const struct lib_str_item *i)
{
    const char *start = s;
    size_t depth = 1;

    if (s == m->end || (unsigned char)*s != i->a)
        return NULL;
    while (++s < m->end && depth) {
        unsigned char c = (unsigned char)*s;

        if (c == i->b)  // first: x and y may be the same
            depth--;
        else if (c == i->a)
            depth++;
    }
    lib_str_steps(m, (size_t)(s - start) / 8);
    return depth ? NULL : s;
}

/* After another copy of capture a at `s`, or NULL. A position has no text that
 * could come again. */
static const char *
lib_str_again(struct lib_str_match *m, const char *s,
              const struct lib_str_item *i)
{
    struct str was = m->captures[i->a];

    if (m->pattern->positions >> i->a & 1 || was.n > (size_t)(m->end - s))
        return NULL;
    lib_str_steps(m, was.n / 8);
    return memcmp(s, was.p, was.n) == 0 ? s + was.n : NULL;
}

/* Between two bytes: what comes before is not in the set, what follows is. Both
 * ends of the subject count as a zero byte. */
static bool
lib_str_frontier(const struct lib_str_match *m, const char *s,
                 const struct lib_str_item *i)
{
    const struct lib_str_set *set = &m->pattern->sets[i->arg];
    unsigned char before = s == m->src ? 0 : (unsigned char)s[-1];
    unsigned char after = s == m->end ? 0 : (unsigned char)*s;

    return !lib_str_in_set(set, before) && lib_str_in_set(set, after);
}

/* "x*" and "x+": as many as there are, then fewer, until the rest matches. */
static const char *
lib_str_most(struct lib_str_match *m, const char *s,
             const struct lib_str_item *i)
{
    size_t least = i->times == '+', n = 0, max = (size_t)(m->end - s);
    const char *e;

    while (n < max && lib_str_one(m, i, (unsigned char)s[n]))
        n++;
    lib_str_steps(m, n / 8);
    if (n < least)
        return NULL;
    for (;; n--) {
        e = lib_str_run(m, s + n, i + 1);
        if (e || n == least)
            return e;
    }
}

/* "x-": none, then more, until the rest matches. */
static const char *
lib_str_least(struct lib_str_match *m, const char *s,
              const struct lib_str_item *i)
{
    for (;; s++) {
        const char *e = lib_str_run(m, s, i + 1);

        if (e || s == m->end || !lib_str_one(m, i, (unsigned char)*s))
            return e;
    }
}

/* A repeated item and all that follows it. */
static const char *
lib_str_repeat(struct lib_str_match *m, const char *s,
               const struct lib_str_item *i)
{
    const char *e;

    if (++m->depth > LIB_STR_DEPTH)
        lib_str_raise(m->L, "pattern too complex");
    e = i->times == '-'   ? lib_str_least(m, s, i)
        : i->times == '?' ? lib_str_run(m, s + 1, i + 1)
                          : lib_str_most(m, s, i);
    m->depth--;
    return e;
}

/* The end of the match of item `i` and all that follow it at `s`, or NULL.
 * Captures need no undoing: a path that matches has passed, and written, each
 * of them after every path that failed. */
static const char *
lib_str_run(struct lib_str_match *m, const char *s,
            const struct lib_str_item *i)
{
    const char *e;

    for (;; i++) {
        lib_str_steps(m, 1);
        switch (i->op) {
        case LIB_STR_DONE:
            return s;
        case LIB_STR_OPEN:
        case LIB_STR_POSITION:
            m->captures[i->a].p = s;
            continue;
        case LIB_STR_CLOSE:
            m->captures[i->a].n = (size_t)(s - m->captures[i->a].p);
            continue;
        case LIB_STR_LAST:
            if (s != m->end)
                return NULL;
            continue;
        case LIB_STR_FRONTIER:
            if (!lib_str_frontier(m, s, i))
                return NULL;
            continue;
        case LIB_STR_BALANCE:
        case LIB_STR_AGAIN:
            s = i->op == LIB_STR_AGAIN ? lib_str_again(m, s, i)
                                       : lib_str_balance(m, s, i);
            if (!s)
                return NULL;
            continue;
        default:
            break;
        }
        if (i->times == 0) {
            if (s == m->end || !lib_str_one(m, i, (unsigned char)*s))
                return NULL;
            s++;
            continue;
        }
        if (i->times != '?')
            return lib_str_repeat(m, s, i);
        if (s < m->end && lib_str_one(m, i, (unsigned char)*s) &&
            (e = lib_str_repeat(m, s, i)))
            return e;
    }
}

/* The first match at or after *s: where it ends, with *s where it begins. A
 * match that ends at `ended`, the end of the one before, does not count. */
static const char *
lib_str_search(struct lib_str_match *m, const char **s, const char *ended)
{
    for (;; ++*s) {
        const char *e = lib_str_run(m, *s, m->pattern->items);

        if (e && e != ended)
            return e;
        if (m->pattern->anchored || *s == m->end)
            return NULL;
    }
}

/* Pushes capture `i` of a match that is [s, e): the whole where the pattern has
 * no captures and i is 0. */
static void
lib_str_push_one(struct lib_str_match *m, unsigned i, const char *s,
                 const char *e)
{
    if (i >= m->pattern->captures) {
        must(i == 0);
        lua_pushlstring(m->L, s, (size_t)(e - s));
    } else if (m->pattern->positions >> i & 1) {
        lua_pushinteger(m->L, m->captures[i].p - m->src + 1);
    } else {
        lua_pushlstring(m->L, m->captures[i].p, m->captures[i].n);
    }
}

/* All captures, or the whole match where there are none and `whole` is set. */
static int
lib_str_push(struct lib_str_match *m, const char *s, const char *e, bool whole)
{
    unsigned n = m->pattern->captures;

    if (n == 0 && whole)
        n = 1;
    luaL_checkstack(m->L, (int)n, "too many captures");
    for (unsigned i = 0; i < n; i++)
        lib_str_push_one(m, i, s, e);
    return (int)n;
}

/* ---- string.find match gmatch gsub rep --------------------------------- */

static struct str
lib_str_arg(lua_State *L, int arg)
{
    struct str s;

    s.p = luaL_checklstring(L, arg, &s.n);
    return s;
}

/* An optional start position as an offset: 1 is the first byte, -1 the last.
 * May be beyond the end. */
static size_t
lib_str_start(lua_State *L, int arg, size_t n)
{
    lua_Integer i = luaL_optinteger(L, arg, 1);

    if (i > 0)
        return (size_t)i - 1;
    if (i == 0 || i < -(lua_Integer)n)
        return 0;
    return n - (size_t)-i;
}

/* True if nothing in the text is more than itself, as find() sees it. */
static bool
lib_str_is_plain(struct str text)
{
    for (size_t i = 0; i < text.n; i++)
        if (text.p[i] && strchr("^$*+?.([%-", text.p[i]))
            return false;
    return true;
}

/* memmem() is linear, so it needs no step limit. */
static int
lib_str_find_plain(lua_State *L, struct str s, struct str what, size_t start)
{
    const char *at = s.p + start;

    vm_cost(L, s.n - start);
    if (what.n)
        at = memmem(at, s.n - start, what.p, what.n);
    if (!at) {
        luaL_pushfail(L);
        return 1;
    }
    lua_pushinteger(L, at - s.p + 1);
    lua_pushinteger(L, at - s.p + (lua_Integer)what.n);
    return 2;
}

static int
lib_str_find_or_match(lua_State *L, const char *name, bool find)
{
    struct str subject = lib_str_arg(L, 1), text = lib_str_arg(L, 2);
    size_t start = lib_str_start(L, 3, subject.n);
    struct lib_str_room room;
    struct lib_str_pattern pattern = {.items = room.items, .sets = room.sets};
    struct lib_str_match m;
    const char *s, *e;

    if (start > subject.n) {
        luaL_pushfail(L);
        return 1;
    }
    if (find && (lua_toboolean(L, 4) || lib_str_is_plain(text)))
        return lib_str_find_plain(L, subject, text, start);
    lib_str_compile(L, text, &pattern);
    lib_str_begin(&m, L, name, subject, &pattern);
    s = subject.p + start;
    e = lib_str_search(&m, &s, NULL);
    if (!e) {
        luaL_pushfail(L);
        return 1;
    }
    if (!find)
        return lib_str_push(&m, s, e, true);
    lua_pushinteger(L, s - subject.p + 1);
    lua_pushinteger(L, e - subject.p);
    return 2 + lib_str_push(&m, s, e, false);
}

static int
lib_str_find(lua_State *L)
{
    return lib_str_find_or_match(L, "string.find", true);
}

static int
lib_str_match(lua_State *L)
{
    return lib_str_find_or_match(L, "string.match", false);
}

/* What gmatch() remembers; items and sets follow it in the same userdata. */
struct lib_str_gmatch {
    struct lib_str_pattern pattern;
    size_t next;        // where to search on; beyond the end: finished
    const char *ended;  // the end of the match before, in the subject
};

/* Upvalues: the subject, and what gmatch() remembers. */
static int
lib_str_gmatch_next(lua_State *L)
{
    struct lib_str_gmatch *g = lua_touserdata(L, lua_upvalueindex(2));
    struct lib_str_match m;
    struct str subject;
    const char *s, *e;

    subject.p = lua_tolstring(L, lua_upvalueindex(1), &subject.n);
    if (g->next > subject.n)
        return 0;
    lib_str_begin(&m, L, "string.gmatch", subject, &g->pattern);
    s = subject.p + g->next;
    e = lib_str_search(&m, &s, g->ended);
    if (!e) {
        g->next = subject.n + 1;
        return 0;
    }
    g->next = (size_t)(e - subject.p);
    g->ended = e;
    return lib_str_push(&m, s, e, true);
}

static int
lib_str_gmatch(lua_State *L)
{
    struct str subject = lib_str_arg(L, 1), text = lib_str_arg(L, 2);
    size_t start = lib_str_start(L, 3, subject.n), items, sets;
    struct lib_str_gmatch *g;

    lib_str_sizes(L, text, &items, &sets);
    lua_pushvalue(L, 1);
    g = lua_newuserdatauv(L,
                          sizeof *g + items * sizeof(struct lib_str_item) +
                              sets * sizeof(struct lib_str_set),
                          0);
    *g = (struct lib_str_gmatch){.next = start};
    g->pattern.items = (struct lib_str_item *)(void *)(g + 1);
    g->pattern.sets = (struct lib_str_set *)(void *)(g->pattern.items + items);
    lib_str_read(L, text, false, &g->pattern);
    lua_pushcclosure(L, lib_str_gmatch_next, 2);
    return 1;
}

/* A result that grows, up to LIB_STR_RESULT. */
struct lib_str_out {
    luaL_Buffer b;
    const char *name;  // "string.gsub", for the error
    size_t n;
};

static void
lib_str_out_grow(lua_State *L, struct lib_str_out *o, size_t n)
{
    if (n > LIB_STR_RESULT - o->n)
        lib_str_raise(L, "%s: the result is larger than %d bytes", o->name,
                      LIB_STR_RESULT);
    o->n += n;
}

static void
lib_str_out_add(lua_State *L, struct lib_str_out *o, const char *p, size_t n)
{
    lib_str_out_grow(L, o, n);
    luaL_addlstring(&o->b, p, n);
}

/* Adds the string or number on top of the stack, and pops it. */
static void
lib_str_out_value(lua_State *L, struct lib_str_out *o)
{
    size_t n;

    lua_tolstring(L, -1, &n);
    lib_str_out_grow(L, o, n);
    luaL_addvalue(&o->b);
}

/* Adds the replacement text for the match [s, e): "%1" is a capture, "%0" the
 * whole match, "%%" a percent sign. */
static void
lib_str_expand(struct lib_str_match *m, struct lib_str_out *o, struct str repl,
               const char *s, const char *e)
{
    const char *p = repl.p, *end = repl.p + repl.n, *at;

    while ((at = memchr(p, '%', (size_t)(end - p)))) {
        char c = at + 1 < end ? at[1] : 0;

        lib_str_steps(m, 1);
        lib_str_out_add(m->L, o, p, (size_t)(at - p));
        p = at + 2;
        if (c == '%') {
            lib_str_out_add(m->L, o, "%", 1);
        } else if (c == '0') {
            lib_str_out_add(m->L, o, s, (size_t)(e - s));
        } else if (c >= '1' && c <= '9') {
            unsigned i = (unsigned)(c - '1');

            if (i > 0 && i >= m->pattern->captures)
                lib_str_raise(
                    m->L, "invalid capture index %%%d in replacement string",
                    (int)i + 1);
            lib_str_push_one(m, i, s, e);
            lib_str_out_value(m->L, o);
        } else {
            lib_str_raise(m->L, "invalid use of '%%' in replacement string");
        }
    }
    lib_str_out_add(m->L, o, p, (size_t)(end - p));
}

/* Adds what replaces the match [s, e); argument 3 says how. False if the match
 * stays as it was. */
static bool
lib_str_replace(struct lib_str_match *m, struct lib_str_out *o, const char *s,
                const char *e)
{
    lua_State *L = m->L;
    struct str repl;
    int n;

    switch (lua_type(L, 3)) {
    case LUA_TFUNCTION:
        lua_pushvalue(L, 3);
        n = lib_str_push(m, s, e, true);
        lua_call(L, n, 1);
        break;
    case LUA_TTABLE:
        lib_str_push_one(m, 0, s, e);
        lua_gettable(L, 3);
        break;
    default:
        repl.p = lua_tolstring(L, 3, &repl.n);
        lib_str_expand(m, o, repl, s, e);
        return true;
    }
    if (!lua_toboolean(L, -1)) {
        lua_pop(L, 1);
        lib_str_out_add(L, o, s, (size_t)(e - s));
        return false;
    }
    if (!lua_isstring(L, -1))
        lib_str_raise(L, "invalid replacement value (a %s)",
                      luaL_typename(L, -1));
    lib_str_out_value(L, o);
    return true;
}

static int
lib_str_gsub(lua_State *L)
{
    struct str subject = lib_str_arg(L, 1), text = lib_str_arg(L, 2);
    int type = lua_type(L, 3);
    lua_Integer n = 0, max = luaL_optinteger(L, 4, (lua_Integer)subject.n + 1);
    const char *s = subject.p, *done = s, *ended = NULL, *e;
    struct lib_str_out o = {.name = "string.gsub"};
    struct lib_str_room room;
    struct lib_str_pattern pattern = {.items = room.items, .sets = room.sets};
    struct lib_str_match m;
    bool changed = false;

    if (type != LUA_TNUMBER && type != LUA_TSTRING && type != LUA_TTABLE &&
        type != LUA_TFUNCTION)
        return luaL_typeerror(L, 3, "string/function/table");
    lib_str_compile(L, text, &pattern);
    lib_str_begin(&m, L, o.name, subject, &pattern);
    luaL_buffinit(L, &o.b);
    while (n < max && (e = lib_str_search(&m, &s, ended))) {
        n++;
        lib_str_out_add(L, &o, done, (size_t)(s - done));
        changed = lib_str_replace(&m, &o, s, e) || changed;
        s = done = ended = e;
        if (pattern.anchored)
            break;
    }
    if (changed) {
        lib_str_out_add(L, &o, done, (size_t)(m.end - done));
        luaL_pushresult(&o.b);
    } else {
        lua_pushvalue(L, 1);
    }
    lua_pushinteger(L, n);
    return 2;
}

static int
lib_str_rep(lua_State *L)
{
    struct str s = lib_str_arg(L, 1), sep = {"", 0};
    lua_Integer n = luaL_checkinteger(L, 2);
    luaL_Buffer b;
    size_t one;

    if (!lua_isnoneornil(L, 3))
        sep = lib_str_arg(L, 3);
    one = s.n + sep.n;
    if (n <= 0 || one == 0) {
        lua_pushliteral(L, "");
        return 1;
    }
    if (one > LIB_STR_RESULT || n > (lua_Integer)(LIB_STR_RESULT / one))
        lib_str_raise(L, "string.rep: the result is larger than %d bytes",
                      LIB_STR_RESULT);
    luaL_buffinitsize(L, &b, (size_t)n * one);
    while (n-- > 0) {
        luaL_addlstring(&b, s.p, s.n);
        if (n > 0)
            luaL_addlstring(&b, sep.p, sep.n);
    }
    luaL_pushresult(&b);
    return 1;
}

static const luaL_Reg lib_str_functions[] = {
    {"find", lib_str_find},     {"match", lib_str_match},
    {"gmatch", lib_str_gmatch}, {"gsub", lib_str_gsub},
    {"rep", lib_str_rep},       {NULL, NULL},
};

/* ---- table.insert remove move concat unpack sort ----------------------- */

/* Argument `arg` is a table on which raw access means the same as any other. */
static void
lib_tab_arg(lua_State *L, int arg)
{
    static const char *const fields[] = {"__len", "__index", "__newindex"};

    luaL_checktype(L, arg, LUA_TTABLE);
    if (!lua_getmetatable(L, arg))
        return;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        lua_pushstring(L, fields[i]);
        if (lua_rawget(L, -2) != LUA_TNIL)
            luaL_argerror(L, arg,
                          lua_pushfstring(L, "a table with %s is not allowed",
                                          fields[i]));
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

static lua_Integer
lib_tab_len(lua_State *L, int arg)
{
    return (lua_Integer)lua_rawlen(L, arg);
}

/* How many elements [from, to] holds, or an error naming the function. */
static lua_Integer
lib_tab_range(lua_State *L, const char *name, lua_Integer from, lua_Integer to)
{
    if (from > to)
        return 0;
    if ((lua_Unsigned)to - (lua_Unsigned)from >= LIB_TAB_RANGE)
        lib_str_raise(L, "table.%s: more than %d elements", name,
                      LIB_TAB_RANGE);
    vm_cost(L, 16 * (size_t)(to - from + 1));
    return to - from + 1;
}

/* t[to] = t[from], raw. */
static void
lib_tab_copy(lua_State *L, int to_arg, lua_Integer to, int from_arg,
             lua_Integer from)
{
    lua_rawgeti(L, from_arg, from);
    lua_rawseti(L, to_arg, to);
}

static int
lib_tab_insert(lua_State *L)
{
    lua_Integer end, at;

    lib_tab_arg(L, 1);
    end = lib_tab_len(L, 1) + 1;
    switch (lua_gettop(L)) {
    case 2:
        lua_rawseti(L, 1, end);
        return 0;
    case 3:
        at = luaL_checkinteger(L, 2);
        luaL_argcheck(L, at >= 1 && at <= end, 2, "position out of bounds");
        lib_tab_range(L, "insert", at, end - 1);
        for (lua_Integer i = end; i > at; i--)
            lib_tab_copy(L, 1, i, 1, i - 1);
        lua_rawseti(L, 1, at);
        return 0;
    default:
        lib_str_raise(L, "wrong number of arguments to 'insert'");
    }
}

static int
lib_tab_remove(lua_State *L)
{
    lua_Integer n, at;

    lib_tab_arg(L, 1);
    n = lib_tab_len(L, 1);
    at = luaL_optinteger(L, 2, n);
    luaL_argcheck(L, at == n || (at >= 1 && at <= n + 1), 2,
                  "position out of bounds");
    lib_tab_range(L, "remove", at, n);
    lua_rawgeti(L, 1, at);
    for (; at < n; at++)
        lib_tab_copy(L, 1, at, 1, at + 1);
    lua_pushnil(L);
    lua_rawseti(L, 1, at);
    return 1;
}

static int
lib_tab_move(lua_State *L)
{
    lua_Integer from = luaL_checkinteger(L, 2), to = luaL_checkinteger(L, 3);
    lua_Integer at = luaL_checkinteger(L, 4), n;
    int dest = lua_isnoneornil(L, 5) ? 1 : 5;

    lib_tab_arg(L, 1);
    lib_tab_arg(L, dest);
    n = lib_tab_range(L, "move", from, to);
    luaL_argcheck(L, n == 0 || at <= LUA_MAXINTEGER - n + 1, 4,
                  "destination wrap around");
    if (at > to || at <= from || !lua_rawequal(L, 1, dest))
        for (lua_Integer i = 0; i < n; i++)
            lib_tab_copy(L, dest, at + i, 1, from + i);
    else  // they overlap: from the end, so that nothing is lost
        for (lua_Integer i = n; i-- > 0;)
            lib_tab_copy(L, dest, at + i, 1, from + i);
    lua_pushvalue(L, dest);
    return 1;
}

static int
lib_tab_concat(lua_State *L)
{
    struct lib_str_out o = {.name = "table.concat"};
    struct str sep = {"", 0};
    lua_Integer from, n;

    lib_tab_arg(L, 1);
    if (!lua_isnoneornil(L, 2))
        sep = lib_str_arg(L, 2);
    from = luaL_optinteger(L, 3, 1);
    n = lib_tab_range(L, "concat", from,
                      lua_isnoneornil(L, 4) ? lib_tab_len(L, 1)
                                            : luaL_checkinteger(L, 4));
    luaL_buffinit(L, &o.b);
    for (lua_Integer i = 0; i < n; i++) {
        lua_rawgeti(L, 1, from + i);
        if (!lua_isstring(L, -1))
            lib_str_raise(L,
                          "invalid value (at index %I) in table for "
                          "'concat'",
                          (LUAI_UACINT)(from + i));
        lib_str_out_value(L, &o);
        if (i + 1 < n)
            lib_str_out_add(L, &o, sep.p, sep.n);
    }
    luaL_pushresult(&o.b);
    return 1;
}

static int
lib_tab_unpack(lua_State *L)
{
    lua_Integer from, n;

    lib_tab_arg(L, 1);
    from = luaL_optinteger(L, 2, 1);
    n = lib_tab_range(L, "unpack", from,
                      lua_isnoneornil(L, 3) ? lib_tab_len(L, 1)
                                            : luaL_checkinteger(L, 3));
    if (!lua_checkstack(L, (int)n))
        lib_str_raise(L, "too many results to unpack");
    for (lua_Integer i = 0; i < n; i++)
        lua_rawgeti(L, 1, from + i);
    return (int)n;
}

/* Is the value at stack index `a` to come before the one at `b`? */
static bool
lib_tab_before(lua_State *L, int a, int b)
{
    bool before;

    if (lua_isnil(L, 2))
        return lua_compare(L, a, b, LUA_OPLT);
    lua_pushvalue(L, 2);
    lua_pushvalue(L, a);
    lua_pushvalue(L, b);
    lua_call(L, 2, 1);
    before = lua_toboolean(L, -1);
    lua_pop(L, 1);
    return before;
}

/* Merges [lo, mid) and [mid, hi) of the table at `from` into that at `to`. */
static void
lib_tab_merge(lua_State *L, int to, int from, lua_Integer lo, lua_Integer mid,
              lua_Integer hi)
{
    lua_Integer l = lo, r = mid, out = lo;
    int left, right;

    while (l < mid && r < hi) {
        lua_rawgeti(L, from, l);
        lua_rawgeti(L, from, r);
        left = lua_gettop(L) - 1;
        right = left + 1;
        if (lib_tab_before(L, right, left)) {
            lua_rawseti(L, to, out++);
            lua_pop(L, 1);
            r++;
        } else {
            lua_pop(L, 1);
            lua_rawseti(L, to, out++);
            l++;
        }
    }
    while (l < mid)
        lib_tab_copy(L, to, out++, from, l++);
    while (r < hi)
        lib_tab_copy(L, to, out++, from, r++);
}

/* A merge sort in two tables of our own (stack: list, function, one, other):
 * n log n whatever the order function says, and if it raises, the list is as
 * it was. */
static int
lib_tab_sort(lua_State *L)
{
    lua_Integer n;
    int from = 3, to = 4;

    lib_tab_arg(L, 1);
    n = lib_tab_len(L, 1);
    if (!lua_isnoneornil(L, 2))
        luaL_checktype(L, 2, LUA_TFUNCTION);
    if (n < 2)
        return 0;
    if (n > LIB_TAB_SORT)
        lib_str_raise(L, "table.sort: more than %d elements", LIB_TAB_SORT);
    vm_cost(L, 256 * (size_t)n);
    lua_settop(L, 2);
    lua_createtable(L, (int)n, 0);
    lua_createtable(L, (int)n, 0);
    for (lua_Integer i = 1; i <= n; i++)
        lib_tab_copy(L, from, i, 1, i);
    for (lua_Integer w = 1; w < n; w *= 2) {
        for (lua_Integer lo = 1; lo <= n; lo += 2 * w) {
            lua_Integer mid = lo + w <= n ? lo + w : n + 1;
            lua_Integer hi = lo + 2 * w <= n ? lo + 2 * w : n + 1;

            lib_tab_merge(L, to, from, lo, mid, hi);
        }
        from = 7 - from;
        to = 7 - to;
    }
    for (lua_Integer i = 1; i <= n; i++)
        lib_tab_copy(L, 1, i, from, i);
    return 0;
}

static const luaL_Reg lib_tab_functions[] = {
    {"insert", lib_tab_insert},
    {"remove", lib_tab_remove},
    {"move", lib_tab_move},
    {"concat", lib_tab_concat},
    {"unpack", lib_tab_unpack},
    {"sort", lib_tab_sort},
    {NULL, NULL},
};

/* ==== 26 bind: what scripts can see =========================================
 *
 * "gateway.core", the functions that the Lua library is built on, and the
 * objects that hooks are given: request, identity, raw values. Objects are
 * userdata whose fields are made when they are first read; when its exchange
 * is over, a request that a script has kept says so instead of lying.
 *
 * A binding holds nothing that only C can free when it may raise: Lua's errors
 * are longjmps. Memory comes from an arena, or is a userdata.
 *
 * Down    vm schema json exec up pki        Up  struct bind_stubs
 * Entry   bind_open  bind_push_request  bind_take_answer  bind_take_verdict
 */
enum {
    BIND_DEPTH = 64,           // of a value turned into JSON
    BIND_BODY_MAX = 16 << 20,  // of an answer that a script makes
    BIND_FETCH_MAX = 8 << 20,  // of an answer that a script fetches
    BIND_FETCH_MS = 30000,
    BIND_SLEEP_MAX = 3600,  // seconds
    BIND_FIELDS_MAX = 128,  // header fields of an answer
    BIND_FIELD_BYTES = 16 << 10,
};

/* ---- values: Lua, JSON, yyjson ---- */

/* The addresses mark things; what is stored there does not matter. */
static const char bind_array_mark, bind_identity_mark, bind_stub_mark;

static void
bind_mark_array(lua_State *L)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &bind_array_mark);
    lua_setmetatable(L, -2);
}

static bool
bind_is_array(lua_State *L, int at)
{
    bool marked;

    if (!lua_getmetatable(L, at))
        return false;
    lua_rawgetp(L, LUA_REGISTRYINDEX, &bind_array_mark);
    marked = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    return marked;
}

/* A JSON value as a Lua value; arrays are marked, null is core.null. */
static void
bind_push_value(lua_State *L, yyjson_val *v)
{
    yyjson_val *key, *item;
    size_t i, n;

    luaL_checkstack(L, 4, "value too deep");
    switch (yyjson_get_type(v)) {
    case YYJSON_TYPE_NULL:
        lua_pushlightuserdata(L, NULL);
        return;
    case YYJSON_TYPE_BOOL:
        lua_pushboolean(L, yyjson_get_bool(v));
        return;
    case YYJSON_TYPE_NUM:
        if (yyjson_is_real(v))
            lua_pushnumber(L, yyjson_get_real(v));
        else if (yyjson_is_uint(v) && yyjson_get_uint(v) > INT64_MAX)
            lua_pushnumber(L, (double)yyjson_get_uint(v));
        else
            lua_pushinteger(L, yyjson_get_sint(v));
        return;
    case YYJSON_TYPE_STR:
        lua_pushlstring(L, yyjson_get_str(v), yyjson_get_len(v));
        return;
    case YYJSON_TYPE_ARR:
        lua_createtable(L, (int)yyjson_arr_size(v), 0);
        yyjson_arr_foreach(v, i, n, item)
        {
            bind_push_value(L, item);
            lua_rawseti(L, -2, (lua_Integer)i + 1);
        }
        bind_mark_array(L);
        return;
    default:
        lua_createtable(L, 0, (int)yyjson_obj_size(v));
        yyjson_obj_foreach(v, i, n, key, item)
        {
            lua_pushlstring(L, yyjson_get_str(key), yyjson_get_len(key));
            bind_push_value(L, item);
            lua_rawset(L, -3);
        }
    }
}

static void bind_encode_value(lua_State *, int at, struct mem_buf *, int depth);

/* The scratch buffer of this state, empty. It outlives an error that is raised
 * while it is filled, so nothing leaks. */
static struct mem_buf *
bind_text(lua_State *L)
{
    struct mem_buf *b = &vm_of(L)->text;

    if (b->cap > 1 << 20)
        mem_buf_free(b);
    b->n = b->off = 0;
    return b;
}

static int
bind_key_compare(const void *a, const void *b)
{
    const struct str *x = a, *y = b;
    int d = memcmp(x->p, y->p, x->n < y->n ? x->n : y->n);

    return d ? d : (x->n > y->n) - (x->n < y->n);
}

static void
bind_encode_string(lua_State *L, struct mem_buf *b, struct str s)
{
    if (!str_utf8(s))
        luaL_error(L, "encode: a string is not UTF-8");
    json_write_str(b, s);
}

/* Keys are sorted: the same value is always the same text. */
static void
bind_encode_object(lua_State *L, int at, struct mem_buf *b, int depth)
{
    struct str *keys;
    size_t n = 0, i = 0;

    for (lua_pushnil(L); lua_next(L, at); lua_pop(L, 1), n++)
        if (lua_type(L, -2) != LUA_TSTRING)
            luaL_error(L, "encode: a table mixes list items and names");
    keys = lua_newuserdatauv(L, (n + 1) * sizeof *keys, 0);
    for (lua_pushnil(L); lua_next(L, at) && i < n; lua_pop(L, 1), i++)
        keys[i].p = lua_tolstring(L, -2, &keys[i].n);
    qsort(keys, i, sizeof *keys, bind_key_compare);
    mem_buf_add(b, "{", 1);
    for (n = 0; n < i; n++) {
        if (n)
            mem_buf_add(b, ",", 1);
        bind_encode_string(L, b, keys[n]);
        mem_buf_add(b, ":", 1);
        lua_pushlstring(L, keys[n].p, keys[n].n);
        lua_rawget(L, at);
        bind_encode_value(L, lua_gettop(L), b, depth);
        lua_pop(L, 1);
    }
    mem_buf_add(b, "}", 1);
    lua_pop(L, 1);
}

static void
bind_encode_table(lua_State *L, int at, struct mem_buf *b, int depth)
{
    lua_Integer n = (lua_Integer)lua_rawlen(L, at);

    if (depth > BIND_DEPTH)
        luaL_error(L, "encode: more than %d levels, or a cycle", BIND_DEPTH);
    if (mem_buf_len(b) > BIND_BODY_MAX)
        luaL_error(L, "encode: more than %d bytes", BIND_BODY_MAX);
    luaL_checkstack(L, 8, "encode: too deep");
    if (!n && !bind_is_array(L, at)) {
        bind_encode_object(L, at, b, depth + 1);
        return;
    }
    mem_buf_add(b, "[", 1);
    for (lua_Integer i = 1; i <= n; i++) {
        if (i > 1)
            mem_buf_add(b, ",", 1);
        lua_rawgeti(L, at, i);
        bind_encode_value(L, lua_gettop(L), b, depth + 1);
        lua_pop(L, 1);
    }
    mem_buf_add(b, "]", 1);
    for (lua_pushnil(L); lua_next(L, at); lua_pop(L, 1))
        if (!lua_isinteger(L, -2) || lua_tointeger(L, -2) < 1 ||
            lua_tointeger(L, -2) > n)
            luaL_error(L, "encode: a table mixes list items and names");
}

static void
bind_encode_number(lua_State *L, int at, struct mem_buf *b)
{
    double d;

    if (lua_isinteger(L, at)) {
        mem_buf_printf(b, "%lld", (long long)lua_tointeger(L, at));
        return;
    }
    d = lua_tonumber(L, at);
    if (!isfinite(d))
        luaL_error(L, "encode: a number is not finite");
    json_write_real(b, d);
}

static void
bind_encode_value(lua_State *L, int at, struct mem_buf *b, int depth)
{
    struct str s;

    switch (lua_type(L, at)) {
    case LUA_TNIL:
        mem_buf_add(b, "null", 4);
        return;
    case LUA_TLIGHTUSERDATA:
        if (lua_touserdata(L, at))
            break;
        mem_buf_add(b, "null", 4);
        return;
    case LUA_TBOOLEAN:
        mem_buf_printf(b, "%s", lua_toboolean(L, at) ? "true" : "false");
        return;
    case LUA_TNUMBER:
        bind_encode_number(L, at, b);
        return;
    case LUA_TSTRING:
        s.p = lua_tolstring(L, at, &s.n);
        bind_encode_string(L, b, s);
        return;
    case LUA_TTABLE:
        bind_encode_table(L, at, b, depth);
        return;
    }
    luaL_error(L, "encode: a %s has no JSON form", luaL_typename(L, at));
}

static struct str
bind_str(lua_State *L, int at)
{
    struct str s;

    s.p = luaL_checklstring(L, at, &s.n);
    return s;
}

static void
bind_push_str(lua_State *L, struct str s)
{
    lua_pushlstring(L, s.p, s.n);
}

static void
bind_set_str(lua_State *L, const char *field, struct str s)
{
    bind_push_str(L, s);
    lua_setfield(L, -2, field);
}

static void
bind_push_list(lua_State *L, const struct str *v, size_t n)
{
    lua_createtable(L, (int)n, 0);
    for (size_t i = 0; i < n; i++) {
        bind_push_str(L, v[i]);
        lua_rawseti(L, -2, (lua_Integer)i + 1);
    }
}

/* An arena that the garbage collector frees, whatever happens. It stays alive
 * while it is on the stack. */
static int
bind_arena_gc(lua_State *L)
{
    struct mem_arena **a = lua_touserdata(L, 1);

    mem_arena_free(*a);
    *a = NULL;
    return 0;
}

static struct mem_arena *
bind_arena(lua_State *L)
{
    struct mem_arena **a = lua_newuserdatauv(L, sizeof *a, 0);

    *a = NULL;
    if (luaL_newmetatable(L, "gateway.arena")) {
        lua_pushcfunction(L, bind_arena_gc);
        lua_setfield(L, -2, "__gc");
    }
    lua_setmetatable(L, -2);
    *a = mem_arena_new(REQ_ARENA_MAX);
    return *a;
}

/* Read-only objects: a write says what they are. Upvalue 1: the name. */
static int
bind_on_write(lua_State *L)
{
    return luaL_error(L, "%s is read-only",
                      lua_tostring(L, lua_upvalueindex(1)));
}

static void
bind_class(lua_State *L, const char *name, lua_CFunction index,
           lua_CFunction gc)
{
    if (!luaL_newmetatable(L, name)) {
        lua_pop(L, 1);
        return;
    }
    lua_pushcfunction(L, index);
    lua_setfield(L, -2, "__index");
    lua_pushstring(L, strrchr(name, '.') + 1);
    lua_pushcclosure(L, bind_on_write, 1);
    lua_setfield(L, -2, "__newindex");
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    if (gc) {
        lua_pushcfunction(L, gc);
        lua_setfield(L, -2, "__gc");
    }
    lua_pop(L, 1);
}

/* The table of fields already made, kept as the userdata's user value.
 * stack: ... -> ..., cache */
static void
bind_cache(lua_State *L, int at)
{
    if (lua_getiuservalue(L, at, 1) == LUA_TTABLE)
        return;
    lua_pop(L, 1);
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, at, 1);
}

/* ---- identity ---- */

static struct pki_identity *
bind_identity_of(lua_State *L, int at)
{
    return *(struct pki_identity **)luaL_checkudata(L, at, "gateway.identity");
}

static int
bind_identity_gc(lua_State *L)
{
    struct pki_identity **id = lua_touserdata(L, 1);

    pki_identity_put(*id);
    *id = NULL;
    return 0;
}

static struct pki_strs
bind_identity_list(const struct pki_identity *id, struct str field)
{
    if (str_eq(field, S("uri")))
        return id->uri;
    if (str_eq(field, S("dns")))
        return id->dns;
    if (str_eq(field, S("ip")))
        return id->ip;
    if (str_eq(field, S("email")))
        return id->email;
    if (str_eq(field, S("eku")))
        return id->eku;
    if (str_eq(field, S("ca")))
        return id->ca;
    return (struct pki_strs){NULL, 0};
}

/* A field that is one string, by its Lua name. */
static bool
bind_identity_text(const struct pki_identity *id, struct str field,
                   struct str *out)
{
    const struct {
        struct str name, value;
    } v[] = {
        {S("spiffe"), id->spiffe},
        {S("serial"), id->serial},
        {S("issuer"), id->issuer_dn},
        {S("fingerprint"), id->fingerprint},
        {S("spki"), id->spki},
        {S("key"), id->key},
        {S("dn"), id->dn},
    };

    for (size_t i = 0; i < sizeof v / sizeof *v; i++)
        if (str_eq(v[i].name, field)) {
            *out = v[i].value;
            return true;
        }
    return false;
}

/* identity:has(field, value): is `value` one of the certificate's? */
static int
bind_identity_has(lua_State *L)
{
    struct pki_identity *id = bind_identity_of(L, 1);
    struct str field = bind_str(L, 2), value = bind_str(L, 3), one;
    struct pki_strs list = bind_identity_list(id, field);
    bool found = false, known = list.v || bind_identity_text(id, field, &one);

    for (size_t i = 0; i < list.n; i++)
        found = found || str_eq(list.v[i], value);
    for (size_t i = 0; i < id->subject_n; i++)
        if (str_eq(id->subject[i].type, field))
            found = found || str_eq(id->subject[i].value, value);
    if (!list.v && known)
        found = found || (one.n && str_eq(one, value));
    lua_pushboolean(L, found);
    return 1;
}

static void
bind_push_subject(lua_State *L, const struct pki_identity *id)
{
    lua_newtable(L);
    bind_set_str(L, "dn", id->dn);
    for (size_t i = 0; i < id->subject_n; i++) {
        bind_push_str(L, id->subject[i].type);
        lua_pushvalue(L, -1);
        if (lua_rawget(L, -3) != LUA_TTABLE) {
            lua_pop(L, 1);
            lua_newtable(L);
            lua_pushvalue(L, -2);
            lua_pushvalue(L, -2);
            lua_rawset(L, -5);
        }
        bind_push_str(L, id->subject[i].value);
        lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
        lua_pop(L, 2);
    }
    for (const char *const *f = (const char *const[]){"cn", "o", "ou", NULL};
         *f; f++) {
        if (lua_getfield(L, -1, *f) == LUA_TNIL) {
            lua_newtable(L);
            lua_setfield(L, -3, *f);
        }
        lua_pop(L, 1);
    }
}

static void
bind_push_san(lua_State *L, const struct pki_identity *id)
{
    static const char *const names[] = {"uri", "dns", "ip", "email"};

    lua_newtable(L);
    for (int i = 0; i < 4; i++) {
        struct pki_strs l = bind_identity_list(id, str_of(names[i]));

        bind_push_list(L, l.v, l.n);
        lua_setfield(L, -2, names[i]);
    }
}

static void
bind_push_identity_field(lua_State *L, const struct pki_identity *id,
                         struct str field)
{
    struct str text;

    if (str_eq(field, S("subject")))
        bind_push_subject(L, id);
    else if (str_eq(field, S("san")))
        bind_push_san(L, id);
    else if (str_eq(field, S("eku")))
        bind_push_list(L, id->eku.v, id->eku.n);
    else if (str_eq(field, S("ca")))
        bind_push_list(L, id->ca.v, id->ca.n);
    else if (str_eq(field, S("chain")))
        bind_push_list(L, id->chain, id->chain_n);
    else if (str_eq(field, S("not_before")))
        lua_pushinteger(L, id->not_before);
    else if (str_eq(field, S("not_after")))
        lua_pushinteger(L, id->not_after);
    else if (str_eq(field, S("resumed")))
        lua_pushboolean(L, 0);
    else if (str_eq(field, S("has")))
        lua_pushcfunction(L, bind_identity_has);
    else if (bind_identity_text(id, field, &text) && text.n)
        bind_push_str(L, text);
    else
        lua_pushnil(L);
}

static int
bind_identity_index(lua_State *L)
{
    struct pki_identity *id = bind_identity_of(L, 1);
    struct str field = bind_str(L, 2);

    bind_cache(L, 1);
    lua_pushvalue(L, 2);
    if (lua_rawget(L, 3) != LUA_TNIL)
        return 1;
    lua_pop(L, 1);
    bind_push_identity_field(L, id, field);
    if (lua_istable(L, -1))
        return 1;  // a copy each time: other hooks must not see it changed
    lua_pushvalue(L, 2);
    lua_pushvalue(L, -2);
    lua_rawset(L, 3);
    return 1;
}

/* One object per certificate and worker, as long as a script holds it. */
static void
bind_push_identity(lua_State *L, struct pki_identity *id)
{
    struct pki_identity **box;

    if (!id) {
        lua_pushnil(L);
        return;
    }
    lua_rawgetp(L, LUA_REGISTRYINDEX, &bind_identity_mark);
    if (lua_rawgetp(L, -1, id) == LUA_TUSERDATA) {
        lua_remove(L, -2);
        return;
    }
    lua_pop(L, 1);
    box = lua_newuserdatauv(L, sizeof *box, 1);
    *box = NULL;
    luaL_setmetatable(L, "gateway.identity");
    *box = pki_identity_ref(id);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, -3, id);
    lua_remove(L, -2);
}

/* ---- request ---- */

/* What a hook may read of an exchange. serve fills it; checked values only,
 * but for what `raw` opens. */
struct bind_request {
    struct req *req;                // borrowed; NULL: over
    const struct cfg_route *route;  // borrowed; NULL before there is one
    struct uri uri;
    struct str captures[CFG_CAPTURES_MAX];  // raw
    struct uri_param *params;               // raw
    size_t params_n;
    yyjson_val **path, **query, **headers;  // checked, by the route's order;
                                            //   NULL: not given
    yyjson_val *json;
    struct str body;
    bool has_body;              // `body` is complete
    struct bind_request **box;  // the userdata that scripts hold; NULL: none
};

static struct bind_request *
bind_request_of(lua_State *L, int at)
{
    struct bind_request **box = luaL_checkudata(L, at, "gateway.request");

    if (!*box)
        luaL_error(L, "this request is over: do not keep it between hooks");
    return *box;
}

static void
bind_push_inputs(lua_State *L, const struct cfg_input *in, yyjson_val **v,
                 size_t n)
{
    lua_createtable(L, 0, (int)n);
    for (size_t i = 0; v && i < n; i++) {
        yyjson_val *one = v[i] ? v[i] : in[i].fallback;

        if (!one)
            continue;
        bind_push_str(L, in[i].name);
        bind_push_value(L, one);
        lua_rawset(L, -3);
    }
}

static void
bind_push_path(lua_State *L, const struct bind_request *r)
{
    size_t n = r->route ? r->route->captures_n : 0;

    lua_createtable(L, 0, (int)n);
    for (size_t i = 0; r->path && i < n; i++) {
        bind_push_str(L, r->route->captures[i].name);
        bind_push_value(L, r->path[i]);
        lua_rawset(L, -3);
    }
}

static void
bind_push_tls(lua_State *L, const struct req_from *f)
{
    lua_newtable(L);
    if (!f->tls_version)
        return;
    bind_set_str(L, "version", str_of(f->tls_version));
    bind_set_str(L, "cipher", str_of(f->tls_cipher));
    if (f->sni.n)
        bind_set_str(L, "server_name", f->sni);
}

/* A value that no schema has seen: it can only be opened by :check(schema).
 * Anything else that is done with it raises. */
static int
bind_raw_misuse(lua_State *L)
{
    return luaL_error(L, "a raw value has not been checked: open it with "
                         "value:check(schema)");
}

/* raw:check(schema) -> value, or nil and why not. User value 1: the text. */
static int
bind_raw_check(lua_State *L)
{
    struct schema_why why;
    struct mem_arena *a;
    struct schema *s;
    yyjson_val *doc, *v;
    struct str text, schema;
    struct err e;

    luaL_checkudata(L, 1, "gateway.raw");
    lua_settop(L, 2);
    a = bind_arena(L);  // 3
    lua_getglobal(L, "require");
    lua_pushliteral(L, "gateway.schema");
    lua_call(L, 1, 1);
    lua_getfield(L, -1, "text");
    lua_pushvalue(L, 2);
    lua_call(L, 1, 1);
    schema = bind_str(L, -1);
    lua_getiuservalue(L, 1, 1);
    text = bind_str(L, -1);
    if (!json_parse(a, schema, &doc, &e) ||
        !(s = schema_compile(a, doc, false, &e)))
        return luaL_error(L, "check: %s", e.msg);
    v = schema_text(s, a, &text, 1, &why);
    if (!v) {
        lua_pushnil(L);
        lua_pushstring(L, why.msg);
        return 2;
    }
    bind_push_value(L, v);
    return 1;
}

static int
bind_raw_index(lua_State *L)
{
    if (str_eq(bind_str(L, 2), S("check"))) {
        lua_pushcfunction(L, bind_raw_check);
        return 1;
    }
    return bind_raw_misuse(L);
}

static void
bind_push_raw(lua_State *L, struct str text)
{
    static const char *const never[] = {
        "__concat", "__tostring", "__eq",    "__lt",  "__le",
        "__len",    "__call",     "__add",   "__sub", "__mul",
        "__div",    "__unm",      "__close", NULL};

    lua_newuserdatauv(L, 0, 1);
    bind_push_str(L, text);
    lua_setiuservalue(L, -2, 1);
    bind_class(L, "gateway.raw", bind_raw_index, NULL);
    luaL_getmetatable(L, "gateway.raw");
    for (const char *const *m = never; *m; m++) {
        lua_pushcfunction(L, bind_raw_misuse);
        lua_setfield(L, -2, *m);
    }
    lua_setmetatable(L, -2);
}

/* request.raw: everything undeclared, by kind; the first of several. */
static void
bind_push_raws(lua_State *L, const struct bind_request *r)
{
    lua_newtable(L);
    lua_newtable(L);
    for (size_t i = r->params_n; i-- > 0;) {
        bind_push_str(L, r->params[i].name);
        bind_push_raw(L, r->params[i].value);
        lua_rawset(L, -3);
    }
    lua_setfield(L, -2, "query");
    lua_newtable(L);
    for (unsigned i = r->req->headers.n; i-- > 0;) {
        bind_push_str(L, r->req->headers.v[i].name);
        bind_push_raw(L, r->req->headers.v[i].value);
        lua_rawset(L, -3);
    }
    lua_setfield(L, -2, "headers");
    bind_push_raw(L, r->uri.path);
    lua_setfield(L, -2, "path");
    if (r->has_body) {
        bind_push_raw(L, r->body);
        lua_setfield(L, -2, "body");
    }
}

static void
bind_push_request_field(lua_State *L, const struct bind_request *r,
                        struct str f)
{
    const struct cfg_route *route = r->route;

    if (str_eq(f, S("path")))
        bind_push_path(L, r);
    else if (str_eq(f, S("query")))
        bind_push_inputs(L, route ? route->query : NULL, r->query,
                         route ? route->query_n : 0);
    else if (str_eq(f, S("headers")))
        bind_push_inputs(L, route ? route->headers : NULL, r->headers,
                         route ? route->headers_n : 0);
    else if (str_eq(f, S("json")) && r->json)
        bind_push_value(L, r->json);
    else if (str_eq(f, S("body")) && r->has_body)
        bind_push_str(L, r->body);
    else if (str_eq(f, S("method")))
        bind_push_str(L, r->req->method);
    else if (str_eq(f, S("id")))
        lua_pushlstring(L, r->req->id, REQ_ID);
    else if (str_eq(f, S("target")))
        bind_push_str(L, r->req->target);
    else if (str_eq(f, S("remote")))
        lua_pushstring(L, r->req->from->peer);
    else if (str_eq(f, S("tls")))
        bind_push_tls(L, r->req->from);
    else if (str_eq(f, S("route")) && route)
        bind_push_str(L, route->path);
    else if (str_eq(f, S("identity")))
        bind_push_identity(L, r->req->from->identity);
    else if (str_eq(f, S("raw")))
        bind_push_raws(L, r);
    else
        lua_pushnil(L);
}

static int
bind_request_index(lua_State *L)
{
    struct bind_request *r = bind_request_of(L, 1);
    struct str field = bind_str(L, 2);

    bind_cache(L, 1);
    lua_pushvalue(L, 2);
    if (lua_rawget(L, 3) != LUA_TNIL)
        return 1;
    lua_pop(L, 1);
    bind_push_request_field(L, r, field);
    if (lua_isnil(L, -1))
        return 1;
    lua_pushvalue(L, 2);
    lua_pushvalue(L, -2);
    lua_rawset(L, 3);
    return 1;
}

/* The object of an exchange: the same one for each of its hooks. */
static void
bind_push_request(lua_State *L, struct bind_request *r)
{
    if (r->box) {
        lua_rawgetp(L, LUA_REGISTRYINDEX, r);
        return;
    }
    *(struct bind_request **)lua_newuserdatauv(L, sizeof r, 1) = NULL;
    luaL_setmetatable(L, "gateway.request");
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, r);
    r->box = lua_touserdata(L, -1);
    *r->box = r;
}

/* The exchange is over: what a script has kept of it says so. */
static void
bind_request_end(struct vm *vm, struct bind_request *r)
{
    if (!r->box)
        return;
    *r->box = NULL;
    r->box = NULL;
    lua_pushnil(vm->L);
    lua_rawsetp(vm->L, LUA_REGISTRYINDEX, r);
}

/* ---- what hooks return ---- */

struct bind_verdict {
    bool allowed, bug;           // bug: not a verdict at all
    struct str reason;           // for the log
    struct bind_answer *answer;  // of `false, gateway.problem(...)`, or NULL
};

struct bind_answer {
    int status;
    struct hdr_list headers;
    struct str body;
    bool is_problem;
    struct str title, detail;
    bool is_forward;
    bool literal;  // made by a hook: nothing in it is a template
    unsigned upstream;
    struct str target;    // template; empty: as is
    struct hdr_list set;  // values are templates
    struct pki_strs remove;
    struct hdr_list respond_set;
    struct pki_strs respond_remove;
};

static struct str
bind_field_str(lua_State *L, int at, const char *field, struct mem_arena *a)
{
    struct str s = {"", 0};
    int type = lua_getfield(L, at, field);

    if (type == LUA_TSTRING || type == LUA_TNUMBER) {
        s = str_dup(a, bind_str(L, -1));
    } else if (type != LUA_TNIL) {
        luaL_error(L, "answer: field '%s' must be a string, not a %s", field,
                   luaL_typename(L, -1));
    }
    lua_pop(L, 1);
    return s;
}

/* One field of an answer; framing is ours, so a script cannot write it. */
static void
bind_add_header(lua_State *L, struct mem_arena *a, struct hdr_list *l,
                struct str name, int at)
{
    struct str value;

    if (lua_type(L, at) != LUA_TSTRING && lua_type(L, at) != LUA_TNUMBER)
        luaL_error(L, "answer: header '%s' must be a string", name.p);
    value = bind_str(L, at);
    if (l->n >= BIND_FIELDS_MAX || name.n + value.n > BIND_FIELD_BYTES)
        luaL_error(L, "answer: over %d header fields, or one over %d bytes",
                   BIND_FIELDS_MAX, BIND_FIELD_BYTES);
    if (!hdr_name_ok(name) || !hdr_value_ok(value))
        luaL_error(L, "answer: header '%s' has a byte that may not be there",
                   name.p);
    hdr_add(a, l, name, value);
    name = l->v[l->n - 1].name;  // lower case now
    if (hdr_hop_by_hop(name) || str_eq(name, S("content-length")))
        luaL_error(L, "answer: header '%s' is written by the gateway itself",
                   l->v[l->n - 1].name.p);
}

/* Table at `at`: name -> value or list of values. */
static void
bind_take_headers(lua_State *L, int at, struct mem_arena *a, struct hdr_list *l)
{
    struct str name;

    for (lua_pushnil(L); lua_next(L, at); lua_pop(L, 1)) {
        if (lua_type(L, -2) != LUA_TSTRING)
            luaL_error(L, "answer: headers is a table of name = value");
        name.p = lua_tolstring(L, -2, &name.n);
        if (!lua_istable(L, -1)) {
            bind_add_header(L, a, l, name, lua_gettop(L));
            continue;
        }
        for (lua_Integer i = 1; i <= (lua_Integer)lua_rawlen(L, -1); i++) {
            lua_rawgeti(L, -1, i);
            bind_add_header(L, a, l, name, lua_gettop(L));
            lua_pop(L, 1);
        }
    }
}

static void
bind_take_strs(lua_State *L, int at, const char *field, struct mem_arena *a,
               struct pki_strs *out)
{
    if (lua_getfield(L, at, field) == LUA_TTABLE) {
        out->n = lua_rawlen(L, -1);
        if (out->n > BIND_FIELDS_MAX)
            luaL_error(L, "forward: %s has more than %d names", field,
                       BIND_FIELDS_MAX);
        out->v = mem_alloc(a, (out->n + 1) * sizeof *out->v);
        for (size_t i = 0; i < out->n; i++) {
            lua_rawgeti(L, -1, (lua_Integer)i + 1);
            out->v[i] = str_dup(a, bind_str(L, -1));
            lua_pop(L, 1);
        }
    }
    lua_pop(L, 1);
}

static void
bind_take_forward(lua_State *L, int at, struct mem_arena *a,
                  struct bind_answer *out)
{
    out->is_forward = true;
    lua_getfield(L, at, "literal");
    out->literal = lua_toboolean(L, -1);
    lua_getfield(L, at, "upstream");
    out->upstream = (unsigned)luaL_checkinteger(L, -1);
    out->target = bind_field_str(L, at, "target", a);
    if (lua_getfield(L, at, "set") == LUA_TTABLE)
        bind_take_headers(L, lua_gettop(L), a, &out->set);
    if (hdr_get(&out->set, S("host")))
        luaL_error(L, "forward: host cannot be set");
    if (lua_getfield(L, at, "respond_set") == LUA_TTABLE)
        bind_take_headers(L, lua_gettop(L), a, &out->respond_set);
    bind_take_strs(L, at, "remove", a, &out->remove);
    bind_take_strs(L, at, "respond_remove", a, &out->respond_remove);
}

/* The answer table at `at`, copied into the arena; raises on what is none. */
static struct bind_answer *
bind_take_answer(lua_State *L, int at, struct mem_arena *a)
{
    struct bind_answer *out;
    struct str type;
    int top = lua_gettop(L);

    if (!lua_istable(L, at))
        luaL_error(L,
                   "a handler returns an answer (gateway.text, .json, "
                   ".problem, .response) or an upstream, not %s",
                   luaL_typename(L, at));
    out = mem_alloc(a, sizeof *out);
    if (lua_getfield(L, at, "forward") == LUA_TTABLE) {
        bind_take_forward(L, lua_gettop(L), a, out);
        lua_settop(L, top);
        return out;
    }
    if (lua_getfield(L, at, "status") != LUA_TNUMBER)
        luaL_error(L, "answer: no status");
    out->status = (int)luaL_checkinteger(L, -1);
    if (out->status < 200 || out->status > 599)
        luaL_error(L, "answer: status %d is not from 200 to 599", out->status);
    if (lua_getfield(L, at, "headers") == LUA_TTABLE)
        bind_take_headers(L, lua_gettop(L), a, &out->headers);
    type = bind_field_str(L, at, "type", a);
    if (type.n && !hdr_get(&out->headers, S("content-type"))) {
        lua_pushlstring(L, type.p, type.n);
        bind_add_header(L, a, &out->headers, S("content-type"), lua_gettop(L));
    }
    if (lua_getfield(L, at, "problem") == LUA_TTABLE) {
        out->is_problem = true;
        out->title = bind_field_str(L, lua_gettop(L), "title", a);
        out->detail = bind_field_str(L, lua_gettop(L), "detail", a);
    }
    if (lua_getfield(L, at, "body") == LUA_TSTRING &&
        lua_rawlen(L, -1) > BIND_BODY_MAX)
        luaL_error(L, "answer: body over %d bytes: let an upstream serve it",
                   BIND_BODY_MAX);
    out->body = bind_field_str(L, at, "body", a);
    lua_settop(L, top);
    return out;
}

/* What an authorize or check hook returned: exactly `true` allows. */
static struct bind_verdict
bind_take_verdict(lua_State *L, int at, struct mem_arena *a)
{
    struct bind_verdict v = {.reason = S("")};
    int type = lua_type(L, at);

    if (type != LUA_TBOOLEAN) {
        v.bug = true;
        v.reason = str_of(
            mem_printf(a, "the hook returned %s, not true or false",
                       type == LUA_TNONE ? "nothing" : lua_typename(L, type)));
        return v;
    }
    v.allowed = lua_toboolean(L, at);
    if (v.allowed)
        return v;
    if (lua_type(L, at + 1) == LUA_TSTRING)
        v.reason = str_dup(a, bind_str(L, at + 1));
    else if (lua_istable(L, at + 1)) {
        v.answer = bind_take_answer(L, at + 1, a);
        v.reason = v.answer->detail;
    }
    return v;
}

/* ---- gateway.core: while the policy loads ---- */

static struct env *
bind_env_of(lua_State *L)
{
    return vm_of(L)->env;
}

/* core.env(name) -> string or nil. In the check role it reads the environment;
 * elsewhere what the supervisor handed on. */
static int
bind_core_env(lua_State *L)
{
    const struct boot *b = vm_of(L)->boot;
    struct str name = bind_str(L, 1);
    const char *v;

    if (b->role == BOOT_CHECK) {
        v = getenv(lua_tostring(L, 1));
        v ? (void)lua_pushstring(L, v) : lua_pushnil(L);
        return 1;
    }
    for (size_t i = 0; i < b->env_n; i++)
        if (b->env[i].set && str_eq(b->env[i].name, name)) {
            bind_push_str(L, b->env[i].value);
            return 1;
        }
    lua_pushnil(L);
    return 1;
}

/* core.where(level) -> "file:line" of that caller; "" for C; nil past the
 * end */
static int
bind_core_where(lua_State *L)
{
    lua_Debug ar;

    if (!lua_getstack(L, (int)luaL_checkinteger(L, 1), &ar)) {
        lua_pushnil(L);
        return 1;
    }
    lua_getinfo(L, "Sl", &ar);
    if (ar.currentline > 0)
        lua_pushfstring(L, "%s:%d", ar.short_src, ar.currentline);
    else
        lua_pushliteral(L, "");
    return 1;
}

/* core.source(name) -> text of a script of the bundle, or nil */
static int
bind_core_source(lua_State *L)
{
    struct str bytes;

    if (vm_bundle_find(vm_of(L)->boot, bind_str(L, 1), &bytes))
        bind_push_str(L, bytes);
    else
        lua_pushnil(L);
    return 1;
}

/* core.absolute(path): from the working directory; no look at the disk */
static int
bind_core_absolute(lua_State *L)
{
    const char *path = luaL_checkstring(L, 1);
    char cwd[PATH_MAX];

    if (path[0] == '/' || !getcwd(cwd, sizeof cwd))
        lua_pushstring(L, path);
    else
        lua_pushfstring(L, "%s/%s", strcmp(cwd, "/") == 0 ? "" : cwd,
                        strncmp(path, "./", 2) == 0 ? path + 2 : path);
    return 1;
}

/* core.schema_check(json) -> true, or nil and why
 * core.schema_test(json, value) -> the same, for one instance */
static int
bind_core_schema_check(lua_State *L)
{
    bool test = lua_gettop(L) > 1;
    struct mem_arena *a = bind_arena(L);
    struct schema_why why;
    struct schema *s = NULL;
    yyjson_val *doc, *v = NULL;
    struct err e;

    if (!json_parse(a, bind_str(L, 1), &doc, &e) ||
        !(s = schema_compile(a, doc, false, &e)) ||
        (test && !json_parse(a, bind_str(L, 2), &v, &e))) {
        lua_pushnil(L);
        lua_pushstring(L, e.msg);
        return 2;
    }
    if (test && !schema_check(s, v, &why)) {
        lua_pushnil(L);
        lua_pushstring(L, why.msg);
        return 2;
    }
    lua_pushboolean(L, 1);
    return 1;
}

/* core.encode(value) -> JSON text */
static int
bind_core_encode(lua_State *L)
{
    struct mem_buf *b = bind_text(L);

    luaL_checkany(L, 1);
    lua_settop(L, 1);
    bind_encode_value(L, 1, b, 0);
    lua_pushlstring(L, mem_buf_ptr(b), mem_buf_len(b));
    return 1;
}

/* core.decode(text) -> value, or nil and why */
static int
bind_core_decode(lua_State *L)
{
    struct str text = bind_str(L, 1);
    struct mem_arena *a = bind_arena(L);
    yyjson_val *v;
    struct err e;

    if (!json_parse(a, text, &v, &e)) {
        lua_pushnil(L);
        lua_pushstring(L, e.msg);
        return 2;
    }
    bind_push_value(L, v);
    return 1;
}

/* core.array(t) -> t, marked as a JSON array */
static int
bind_core_array(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    bind_mark_array(L);
    return 1;
}

/* ---- gateway.core: in hooks ---- */

/* Up: under `gateway test`, programs and upstreams are stood in for. Both
 * leave on the stack what the real binding returns. */
struct bind_stubs {
    int (*exec)(lua_State *, const struct cfg_command *, int slots, int opts);
    int (*fetch)(lua_State *, const struct cfg_upstream *, int spec);
};

/* The compiled schemas of a command's slots, in table order. */
struct bind_command {
    const struct cfg_command *cfg;  // borrowed
    struct schema **slots;
};

/* Per worker: what bindings need of the configuration. */
struct bind_set {
    struct bind_command *commands;
};

static int
bind_core_now(lua_State *L)
{
    lua_pushnumber(L, (double)uv_hrtime() / 1e9);
    return 1;
}

static int
bind_core_time(lua_State *L)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    lua_pushnumber(L, (double)t.tv_sec + (double)t.tv_nsec / 1e9);
    return 1;
}

/* core.log(level, message) */
static int
bind_core_log(lua_State *L)
{
    static const char *const levels[] = {"debug", "info", "warn", "error",
                                         NULL};
    int level = luaL_checkoption(L, 1, "info", levels);
    struct str msg = bind_str(L, 2);

    log_at((enum log_level)level, "policy", "%.*s", STR_FMT(msg));
    return 0;
}

/* core.random(n) -> n hexadecimal digits of the kernel's randomness */
static int
bind_core_random(lua_State *L)
{
    lua_Integer n = luaL_checkinteger(L, 1);
    unsigned char bytes[128];
    struct mem_arena *a;
    struct str hex;

    luaL_argcheck(L, n >= 1 && n <= 256, 1, "from 1 to 256 digits");
    a = bind_arena(L);
    must(getentropy(bytes, sizeof bytes) == 0);
    hex = str_hex(a, bytes, sizeof bytes);
    lua_pushlstring(L, hex.p, (size_t)n);
    return 1;
}

/* What a waiting binding leaves with whoever will wake it. */
struct bind_wait {
    struct vm *vm;
    uint64_t ticket;
};

struct bind_sleep {
    uv_timer_t timer;
    struct bind_wait wait;
};

static void
bind_sleep_free(uv_handle_t *timer)
{
    free(timer->data);
}

static void
bind_sleep_cancel(void *data)
{
    struct bind_sleep *s = data;

    uv_close((uv_handle_t *)&s->timer, bind_sleep_free);
}

static int
bind_push_nothing(lua_State *L, void *data)
{
    (void)L;
    (void)data;
    return 0;
}

static void
bind_sleep_done(uv_timer_t *timer)
{
    struct bind_sleep *s = timer->data;
    struct bind_wait w = s->wait;

    bind_sleep_cancel(s);
    vm_wake(w.vm, w.ticket, bind_push_nothing, NULL);
}

/* core.sleep(seconds) */
static int
bind_core_sleep(lua_State *L)
{
    lua_Number sec = luaL_checknumber(L, 1);
    struct vm_task *t = vm_task_here(L, "gateway.sleep");
    struct bind_sleep *s;

    luaL_argcheck(L, sec >= 0 && sec <= BIND_SLEEP_MAX, 1,
                  "from 0 to 3600 seconds");
    if (bind_env_of(L)->stubs)
        return 0;
    s = mem_xcalloc(sizeof *s);
    s->wait = (struct bind_wait){t->vm, vm_ticket(t)};
    s->timer.data = s;
    uv_timer_init(t->vm->env->loop, &s->timer);
    uv_timer_start(&s->timer, bind_sleep_done, (uint64_t)(sec * 1000), 0);
    return vm_await(L, t, bind_sleep_cancel, s);
}

/* ---- programs ---- */

/* The result table of a run, on top. */
static void
bind_push_run(lua_State *L, const struct exec_result *r)
{
    lua_createtable(L, 0, 10);
    lua_pushboolean(L, r->ok);
    lua_setfield(L, -2, "ok");
    bind_set_str(L, "why", str_of(r->why));
    lua_pushinteger(L, r->code);
    lua_setfield(L, -2, "code");
    lua_pushinteger(L, r->signal);
    lua_setfield(L, -2, "signal");
    bind_set_str(L, "stdout", r->out);
    bind_set_str(L, "stderr", r->err);
    lua_pushboolean(L, r->timed_out);
    lua_setfield(L, -2, "timed_out");
    lua_pushboolean(L, r->truncated);
    lua_setfield(L, -2, "truncated");
    lua_createtable(L, 0, 3);
    lua_pushinteger(L, (lua_Integer)r->ms);
    lua_setfield(L, -2, "ms");
    lua_pushnumber(L, (double)r->cpu_us / 1000);
    lua_setfield(L, -2, "cpu_ms");
    lua_pushinteger(L, (lua_Integer)r->rss_kib);
    lua_setfield(L, -2, "rss");
    lua_setfield(L, -2, "usage");
}

/* A run that a hook waits for; lives in an arena of its own. */
struct bind_run {
    struct bind_wait wait;
    struct mem_arena *arena;  // owned
    uint64_t ticket;          // of exec
};

static int
bind_push_run_result(lua_State *L, void *data)
{
    bind_push_run(L, data);
    return 1;
}

/* Who the records name. */
static struct str
bind_who(const struct bind_request *r)
{
    const struct pki_identity *id = r ? r->req->from->identity : NULL;

    return !id ? S("") : id->spiffe.n ? id->spiffe : id->dn;
}

/* The broker never hears of it, so the record of the attempt is ours. */
static int
bind_run_refused(lua_State *L, const struct cfg_command *c,
                 const struct bind_request *from, const char *why)
{
    struct exec_result r = {
        .why = why, .code = -1, .refused = true, .out = S(""), .err = S("")};
    struct log_line l;

    met_inc(MET_EXEC_REFUSED);
    if (log_begin(&l, LOG_WARN, "exec")) {
        log_str(&l, "phase", S("refused"));
        log_str(&l, "request", (struct str){from->req->id, REQ_ID});
        log_str(&l, "command", c->name);
        log_str(&l, "identity", bind_who(from));
        log_str(&l, "why", str_of(why));
        log_end(&l);
    }
    bind_push_run(L, &r);
    return 1;
}

static void
bind_run_done(void *data, uint64_t ticket, const struct exec_result *r)
{
    struct bind_run *run = data;
    struct bind_wait w = run->wait;

    (void)ticket;
    met_inc(r->ok          ? MET_EXEC_OK
            : r->busy      ? MET_EXEC_BUSY
            : r->refused   ? MET_EXEC_REFUSED
            : r->timed_out ? MET_EXEC_TIMEOUT
                           : MET_EXEC_FAILED);
    mem_arena_free(run->arena);
    vm_wake(w.vm, w.ticket, bind_push_run_result, (void *)(uintptr_t)r);
}

static void
bind_run_cancel(void *data)
{
    struct bind_run *run = data;

    exec_cancel(run->wait.vm->env->exec, run->ticket);
    mem_arena_free(run->arena);
}

/* A slot's value as the text that would be the argument. */
static struct str
bind_slot_text(lua_State *L, int at, struct mem_arena *a, const char *slot)
{
    switch (lua_type(L, at)) {
    case LUA_TSTRING:
        return str_dup(a, bind_str(L, at));
    case LUA_TBOOLEAN:
        return lua_toboolean(L, at) ? S("true") : S("false");
    case LUA_TNUMBER:
        if (lua_isinteger(L, at))
            return str_of(
                mem_printf(a, "%lld", (long long)lua_tointeger(L, at)));
        return str_of(mem_printf(a, "%.14g", lua_tonumber(L, at)));
    }
    luaL_error(L, "slot '%s': a %s cannot be an argument", slot,
               luaL_typename(L, at));
    return S("");
}

/* Checks the slots by the schemas the broker will check them by again. Returns
 * why not, or NULL; raises on names that are no slots. */
static const char *
bind_take_slots(lua_State *L, const struct bind_command *c, int at,
                struct mem_arena *a, struct str *slots)
{
    size_t given = 0, known = 0;
    struct err e;

    for (lua_pushnil(L); lua_next(L, at); lua_pop(L, 1))
        given++;
    for (size_t i = 0; i < c->cfg->slots_n; i++) {
        const struct cfg_slot *s = &c->cfg->slots[i];

        bind_push_str(L, s->name);
        if (lua_gettable(L, at) == LUA_TNIL)
            return mem_printf(a, "refused: slot %.*s: no value",
                              STR_FMT(s->name));
        known++;
        slots[i] = bind_slot_text(L, lua_gettop(L), a, s->name.p);
        if (!exec_slot_check(s, exec_slot_whole(c->cfg, (unsigned)i),
                             c->slots[i], a, slots[i], &e))
            return mem_printf(a, "refused: %s", e.msg);
        lua_pop(L, 1);
    }
    if (given != known)
        luaL_error(L, "command %s: a value for something that is not a slot",
                   c->cfg->name.p);
    return NULL;
}

/* core.exec(command, slots [, { stdin = ... }]) -> result table */
static int
bind_core_exec(lua_State *L)
{
    struct env *env = bind_env_of(L);
    size_t index = (size_t)luaL_checkinteger(L, 1);
    struct vm_task *t = vm_task_here(L, "command:run");
    const struct bind_command *c;
    struct bind_request *r = t->owner;
    struct mem_arena **own, *a;
    struct str *slots, text = {"", 0};
    const char *why;
    struct bind_run *run;
    struct err e;

    luaL_argcheck(L, index < env->cfg->commands_n, 1, "no such command");
    luaL_checktype(L, 2, LUA_TTABLE);
    c = &env->binds->commands[index];
    lua_settop(L, 3);
    a = bind_arena(L);  // 4
    own = lua_touserdata(L, 4);
    if (lua_istable(L, 3))
        text = bind_field_str(L, 3, "stdin", a);
    slots = mem_alloc(a, (c->cfg->slots_n + 1) * sizeof *slots);
    why = bind_take_slots(L, c, 2, a, slots);
    if (why)
        return bind_run_refused(L, c->cfg, r, why);
    if (env->stubs)
        return env->stubs->exec(L, c->cfg, 2, 3);
    run = mem_alloc(a, sizeof *run);
    run->wait = (struct bind_wait){t->vm, vm_ticket(t)};
    run->arena = a;
    run->ticket =
        !env->exec ? 0
                   : exec_start(env->exec, (unsigned)index,
                                (struct str){r->req->id, REQ_ID}, bind_who(r),
                                slots, text, bind_run_done, run, &e);
    if (!run->ticket)
        return bind_run_refused(L, c->cfg, r,
                                env->exec ? mem_dup(a, e.msg, strlen(e.msg))
                                          : "no broker");
    *own = NULL;  // from here on it is bind_run_done()'s or the cancel's
    return vm_await(L, t, bind_run_cancel, run);
}

/* ---- fetch ---- */

/* A call to an upstream on behalf of a hook; in an arena of its own. */
struct bind_fetch {
    struct bind_wait wait;
    struct mem_arena *arena;  // owned
    struct up_call *call;     // NULL when it has ended
    uv_timer_t *timer;        // of the whole call
    size_t max;
    int status;
    struct hdr_list headers;
    struct mem_buf body;
    bool returned;  // the binding has gone to sleep
    bool failed;
    struct err err;
};

static void
bind_fetch_free_timer(uv_handle_t *timer)
{
    free(timer);
}

static void
bind_fetch_free(struct bind_fetch *f)
{
    if (f->call)
        up_cancel(f->call);
    uv_close((uv_handle_t *)f->timer, bind_fetch_free_timer);
    mem_buf_free(&f->body);
    mem_arena_free(f->arena);
}

static void
bind_fetch_cancel(void *data)
{
    bind_fetch_free(data);
}

/* -> { status, headers, body }, or nil, message, code */
static int
bind_push_fetched(lua_State *L, void *data)
{
    struct bind_fetch *f = data;

    if (f->failed) {
        lua_pushnil(L);
        lua_pushstring(L, f->err.msg);
        lua_pushstring(L, err_name(&f->err));
        return 3;
    }
    lua_createtable(L, 0, 3);
    lua_pushinteger(L, f->status);
    lua_setfield(L, -2, "status");
    lua_newtable(L);
    for (unsigned i = f->headers.n; i-- > 0;) {
        bind_push_str(L, f->headers.v[i].name);
        bind_push_str(L, f->headers.v[i].value);
        lua_rawset(L, -3);
    }
    lua_setfield(L, -2, "headers");
    bind_set_str(L, "body",
                 (struct str){mem_buf_ptr(&f->body), mem_buf_len(&f->body)});
    return 1;
}

static void
bind_fetch_done(struct bind_fetch *f)
{
    if (!f->returned)
        return;  // the binding itself will see it
    vm_wake(f->wait.vm, f->wait.ticket, bind_push_fetched, f);
    bind_fetch_free(f);
}

static void
bind_fetch_on_head(void *data, const struct h1_answer *a)
{
    struct bind_fetch *f = data;

    f->status = a->status;
    for (unsigned i = 0; i < a->headers.n; i++)
        if (!hdr_hop_by_hop(a->headers.v[i].name))
            hdr_add_ref(f->arena, &f->headers, a->headers.v[i].name,
                        a->headers.v[i].value);
}

static void
bind_fetch_on_fail(void *data, const struct err *e)
{
    struct bind_fetch *f = data;

    f->call = NULL;
    f->failed = true;
    f->err = *e;
    bind_fetch_done(f);
}

static void
bind_fetch_on_body(void *data, const char *p, size_t n)
{
    struct bind_fetch *f = data;
    struct err e;

    if (mem_buf_len(&f->body) + n <= f->max) {
        mem_buf_add(&f->body, p, n);
        return;
    }
    up_cancel(f->call);
    err_set(&e, ERR_BODY_LIMIT, "answer over %zu bytes", f->max);
    bind_fetch_on_fail(f, &e);
}

static void
bind_fetch_on_end(void *data)
{
    struct bind_fetch *f = data;

    f->call = NULL;
    bind_fetch_done(f);
}

static void
bind_fetch_on_drain(void *data)
{
    (void)data;
}

static void
bind_fetch_on_time(uv_timer_t *timer)
{
    struct bind_fetch *f = timer->data;
    struct err e;

    if (f->call)
        up_cancel(f->call);
    err_set(&e, ERR_UPSTREAM_TIME, "no complete answer in time");
    bind_fetch_on_fail(f, &e);
}

static const struct up_ops bind_fetch_ops = {
    .on_head = bind_fetch_on_head,
    .on_body = bind_fetch_on_body,
    .on_end = bind_fetch_on_end,
    .on_fail = bind_fetch_on_fail,
    .on_drain = bind_fetch_on_drain,
};

/* The path and query of a fetch, encoded afresh; raises on dot segments. */
static void
bind_fetch_target(lua_State *L, int at, struct mem_arena *a, struct mem_buf *b)
{
    struct str path = bind_field_str(L, at, "path", a);
    struct uri u;
    struct uri_param p;
    struct err e;
    const char *sep = "?";
    size_t from = b->n;

    if (!path.n || path.p[0] != '/')
        luaL_error(L, "gateway.fetch: path must begin with '/'");
    uri_write_path(b, path);
    if (!uri_parse(a, (struct str){b->p + from, b->n - from}, &u, &e))
        luaL_error(L, "gateway.fetch: path: %s", e.msg);
    if (lua_getfield(L, at, "query") == LUA_TTABLE)
        for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
            if (lua_type(L, -2) != LUA_TSTRING)
                luaL_error(L, "gateway.fetch: query is name = value");
            p.name = bind_str(L, -2);
            p.value = bind_slot_text(L, lua_gettop(L), a, p.name.p);
            mem_buf_add(b, sep, 1);
            uri_write_query(b, &p, 1);
            sep = "&";
        }
    lua_pop(L, 1);
}

/* The request's bytes up to the empty line, built in the scratch buffer. */
static void
bind_fetch_request(lua_State *L, const struct cfg_upstream *up, int at,
                   struct mem_arena *a, struct up_request *want)
{
    struct mem_buf *b = bind_text(L);
    struct str method = bind_field_str(L, at, "method", a);
    const struct cfg_target *t = &up->targets[0];
    struct hdr_list headers = {0};

    if (!method.n)
        method = S("GET");
    if (!route_method(method))
        luaL_error(L, "gateway.fetch: method '%s' is not one we know",
                   method.p);
    mem_buf_printf(b, "%.*s ", STR_FMT(method));
    bind_fetch_target(L, at, a, b);
    mem_buf_add(b, " HTTP/1.1\r\n", 11);
    if (lua_getfield(L, at, "headers") == LUA_TTABLE)
        bind_take_headers(L, lua_gettop(L), a, &headers);
    lua_pop(L, 1);
    if (!hdr_get(&headers, S("host")))
        mem_buf_printf(b, "host: %.*s\r\n",
                       STR_FMT(t->is_unix ? S("localhost") : t->host));
    for (unsigned i = 0; i < headers.n; i++)
        h1_write_field(b, headers.v[i].name, headers.v[i].value);
    want->body = bind_field_str(L, at, "body", a);
    if (want->body.n || str_eq(method, S("POST")) || str_eq(method, S("PUT")))
        h1_write_length(b, want->body.n);
    mem_buf_add(b, "\r\n", 2);
    want->head = str_dup(a, (struct str){b->p, b->n});
    want->to_head = str_eq(method, S("HEAD"));
    want->idempotent = proxy_idempotent(method);
    want->head_ms = up->head_ms;
    want->idle_ms = up->idle_ms;
}

static uint64_t
bind_fetch_number(lua_State *L, int at, const char *field, double fallback,
                  double scale, double max)
{
    double v = fallback;

    if (lua_getfield(L, at, field) != LUA_TNIL)
        v = luaL_checknumber(L, -1) * scale;
    lua_pop(L, 1);
    if (!(v > 0 && v <= max))
        luaL_error(L, "gateway.fetch: %s is out of range", field);
    return (uint64_t)v;
}

/* core.fetch(upstream, { method, path, query, headers, body, timeout, max })
 *   -> { status, headers, body }, or nil, message, code */
static int
bind_core_fetch(lua_State *L)
{
    struct env *env = bind_env_of(L);
    size_t index = (size_t)luaL_checkinteger(L, 1);
    struct vm_task *t = vm_task_here(L, "gateway.fetch");
    struct mem_arena **own, *a;
    struct up_request want = {0};
    struct bind_fetch *f;
    uint64_t ms;

    luaL_argcheck(L, index < env->cfg->upstreams_n, 1, "no such upstream");
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    if (env->stubs)
        return env->stubs->fetch(L, &env->cfg->upstreams[index], 2);
    a = bind_arena(L);  // 3
    own = lua_touserdata(L, 3);
    f = mem_alloc(a, sizeof *f);
    ms = bind_fetch_number(L, 2, "timeout", BIND_FETCH_MS, 1000, 3.6e6);
    f->max = bind_fetch_number(L, 2, "max", BIND_FETCH_MAX, 1, BIND_BODY_MAX);
    bind_fetch_request(L, &env->cfg->upstreams[index], 2, a, &want);
    f->wait = (struct bind_wait){t->vm, vm_ticket(t)};
    f->arena = a;
    *own = NULL;
    f->timer = mem_xmalloc(sizeof *f->timer);
    uv_timer_init(env->loop, f->timer);
    f->timer->data = f;
    uv_timer_start(f->timer, bind_fetch_on_time, ms, 0);
    f->call =
        up_call(&env->upstreams->pools[index], &want, a, &bind_fetch_ops, f);
    up_go(f->call);
    if (f->failed) {
        struct err e = f->err;

        bind_fetch_free(f);
        lua_pushnil(L);
        lua_pushstring(L, e.msg);
        lua_pushstring(L, err_name(&e));
        return 3;
    }
    f->returned = true;
    return vm_await(L, t, bind_fetch_cancel, f);
}

/* ---- opening it all ---- */

static const luaL_Reg bind_core[] = {
    {"env", bind_core_env},
    {"where", bind_core_where},
    {"source", bind_core_source},
    {"absolute", bind_core_absolute},
    {"schema_check", bind_core_schema_check},
    {"schema_test", bind_core_schema_check},
    {"encode", bind_core_encode},
    {"decode", bind_core_decode},
    {"array", bind_core_array},
    {"now", bind_core_now},
    {"time", bind_core_time},
    {"log", bind_core_log},
    {"random", bind_core_random},
    {"sleep", bind_core_sleep},
    {"exec", bind_core_exec},
    {"fetch", bind_core_fetch},
    {NULL, NULL},
};

/* luaopen of "gateway.core". */
static int
bind_open(lua_State *L)
{
    lua_newtable(L);
    lua_pushboolean(L, 0);
    lua_setfield(L, -2, "__metatable");
    lua_rawsetp(L, LUA_REGISTRYINDEX, &bind_array_mark);
    lua_newtable(L);  // identities, held weakly
    lua_newtable(L);
    lua_pushliteral(L, "v");
    lua_setfield(L, -2, "__mode");
    lua_setmetatable(L, -2);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &bind_identity_mark);
    lua_getglobal(L, "string");
    luaL_setfuncs(L, lib_str_functions, 0);
    lua_getglobal(L, "table");
    luaL_setfuncs(L, lib_tab_functions, 0);
    lua_pop(L, 2);
    bind_class(L, "gateway.identity", bind_identity_index, bind_identity_gc);
    bind_class(L, "gateway.request", bind_request_index, NULL);
    luaL_newlib(L, bind_core);
    lua_pushlightuserdata(L, NULL);
    lua_setfield(L, -2, "null");
    return 1;
}

/* Compiles what bindings check by. */
static bool
bind_set_new(struct env *env, struct mem_arena *boot, struct err *e)
{
    struct bind_set *set = mem_alloc(boot, sizeof *set);
    size_t n = env->cfg->commands_n;

    set->commands = mem_alloc(boot, (n + 1) * sizeof *set->commands);
    for (size_t i = 0; i < n; i++) {
        struct bind_command *c = &set->commands[i];

        c->cfg = &env->cfg->commands[i];
        c->slots = mem_alloc(boot, (c->cfg->slots_n + 1) * sizeof *c->slots);
        for (size_t j = 0; j < c->cfg->slots_n; j++) {
            c->slots[j] =
                schema_compile(boot, c->cfg->slots[j].schema, false, e);
            if (!c->slots[j])
                return err_prefix(e, "%.*s: slot %.*s: ", STR_FMT(c->cfg->at),
                                  STR_FMT(c->cfg->slots[j].name));
        }
    }
    env->binds = set;
    return true;
}

/* ==== 27 serve: from request to answer ======================================
 *
 * The order of a request, and nothing else. Each step either goes on, waits
 * for something that calls serve_go() again, or ends the exchange.
 *
 *   route -> authorize -> validate -> body -> check -> handle -> respond -> log
 *
 * The body is read only after identity, path, query and headers were accepted;
 * what a hook reads has been validated. Whatever is not allowed is refused.
 *
 * Owner   a struct serve lives in its request's arena.
 * Down    route schema vm bind proxy req        Up  nothing
 * Entry   serve_set_new  serve_go
 */
enum serve_stage {
    SERVE_SYNTAX,
    SERVE_ROUTE,
    SERVE_AUTHORIZE,
    SERVE_VALIDATE,
    SERVE_BODY,
    SERVE_CHECK,
    SERVE_HANDLE,
    SERVE_RESPOND,
    SERVE_LOG,
    SERVE_OVER,
};

static const char *const serve_stage_names[] = {
    "syntax", "route",  "authorize", "validate", "body",
    "check",  "handle", "respond",   "log",      "over",
};

enum {
    SERVE_MAGIC = 0x73727621,
    SERVE_LOG_TARGET = 1024,  // bytes of a target in a log line
};

/* A route with its schemas compiled; boot memory. */
struct serve_route {
    const struct cfg_route *cfg;               // borrowed
    struct schema **path, **query, **headers;  // in the configuration's order
    struct schema *body;
    bool pure;  // all of authorize: its verdict holds for the connection
    struct met_route *met;
};

struct serve;

/* Per worker. */
struct serve_set {
    struct req_ops ops;  // first: a req finds its set by them
    struct env *env;     // borrowed
    struct serve_route *routes;
    uint64_t random[2];  // for request ids
    // under `gateway test`: stands in for upstreams, and sees what happened
    void (*forward)(struct serve *, const struct cfg_upstream *,
                    const struct proxy_line *);
    void (*on_over)(struct serve *);
};

struct serve {
    unsigned magic;
    struct serve_set *set;            // borrowed
    struct req *req;                  // borrowed; we live in its arena
    const struct serve_route *route;  // NULL before there is one
    enum serve_stage stage;
    size_t hook;               // how many of the stage's hooks have run
    struct bind_request view;  // what scripts may read
    struct mem_buf body;       // a buffered body as it comes in
    struct vm_task *task;      // NULL before the first hook
    struct bind_verdict verdict;
    struct bind_answer *answer;
    struct proxy *proxy;
    const struct cfg_handle *forward;  // what the proxy was made of
    enum serve_stage ended_at;         // for the log: the stage that refused
    const char *where, *name;          // for the log: what it was about
    struct str reason;                 // for the log: why
};

static void serve_go(struct serve *);
static void serve_finish(struct serve *);
static void serve_answer(struct serve *, const struct bind_answer *);

static struct serve *
serve_of(struct req *r)
{
    return OBJ(struct serve, SERVE, r->up);
}

static struct serve_set *
serve_set_of(struct req *r)
{
    return (struct serve_set *)(uintptr_t)r->ops;
}

static const struct cfg_route_limits *
serve_limits(const struct serve *s)
{
    return &s->route->cfg->limits;
}

/* ---- the records ---- */

static void
serve_log_who(struct log_line *l, const struct req_from *f)
{
    if (!f->identity)
        return;
    log_str(l, "identity",
            f->identity->spiffe.n ? f->identity->spiffe : f->identity->dn);
    log_str(l, "serial", f->identity->serial);
}

static void
serve_log_head(struct log_line *l, const struct serve *s)
{
    const struct req *r = s->req;
    struct str target = r->target;

    log_str(l, "id", (struct str){r->id, REQ_ID});
    log_int(l, "conn", (int64_t)r->from->conn);
    log_str(l, "peer", str_of(r->from->peer));
    log_str(l, "listener", r->from->listener_name);
    serve_log_who(l, r->from);
    log_str(l, "method", r->method);
    if (target.n > SERVE_LOG_TARGET)  // so that what follows fits, too
        target.n = SERVE_LOG_TARGET;
    log_str(l, "target", target);
    if (s->route)
        log_str(l, "route", s->route->cfg->path);
}

/* A refusal, with everything that the client is not told. */
static void
serve_log_decision(const struct serve *s, int status)
{
    struct log_line l;

    if (!log_begin(&l, LOG_INFO, "decision"))
        return;
    serve_log_head(&l, s);
    log_bool(&l, "allowed", false);
    log_str(&l, "stage", str_of(serve_stage_names[s->stage]));
    if (s->where)
        log_str(&l, "where", str_of(s->where));
    if (s->name)
        log_str(&l, "name", str_of(s->name));
    log_str(&l, "reason", s->reason);
    if (s->route)
        log_str(&l, "at", s->route->cfg->at);
    log_int(&l, "status", status);
    log_end(&l);
}

static void
serve_log_access(const struct serve *s, uint64_t us)
{
    const struct req *r = s->req;
    struct log_line l;

    if (!s->set->env->cfg->process.access_log ||
        !log_begin(&l, LOG_INFO, "access"))
        return;
    serve_log_head(&l, s);
    log_int(&l, "status", r->status);
    log_int(&l, "received", (int64_t)r->body_bytes);
    log_int(&l, "sent", (int64_t)r->sent_bytes);
    log_int(&l, "us", (int64_t)us);
    log_end(&l);
}

/* A hook threw, or did not keep the contract: our users want the traceback. */
static void
serve_log_hook_error(const struct serve *s, struct str msg)
{
    struct log_line l;

    met_inc(MET_HOOK_ERRORS);
    if (!log_begin(&l, LOG_ERROR, "error"))
        return;
    log_str(&l, "room", S("hook"));
    serve_log_head(&l, s);
    log_str(&l, "stage", str_of(serve_stage_names[s->stage]));
    if (s->route)
        log_str(&l, "at", s->route->cfg->at);
    log_str(&l, "msg", msg);
    log_end(&l);
}

/* ---- refusals ---- */

static enum met_id
serve_denied_metric(enum serve_stage stage)
{
    switch (stage) {
    case SERVE_SYNTAX:
        return MET_DENIED_SYNTAX;
    case SERVE_ROUTE:
        return MET_DENIED_ROUTE;
    case SERVE_AUTHORIZE:
        return MET_DENIED_AUTHORIZE;
    case SERVE_VALIDATE:
        return MET_DENIED_VALIDATE;
    case SERVE_BODY:
        return MET_DENIED_BODY;
    default:
        return MET_DENIED_CHECK;
    }
}

/* A problem (RFC 9457) with the request id; the detail only where given. */
static struct bind_answer *
serve_problem(const struct serve *s, int status, struct str title,
              struct str detail)
{
    struct mem_arena *a = s->req->arena;
    struct bind_answer *out = mem_alloc(a, sizeof *out);

    out->status = status;
    out->is_problem = true;
    out->title = title.n ? title : str_of(h1_reason(status));
    out->detail = detail;
    return out;
}

static struct str
serve_problem_body(const struct serve *s, const struct bind_answer *a)
{
    struct mem_buf b = {0};
    struct str text;

    mem_buf_printf(&b, "{\"type\":\"about:blank\",\"title\":");
    json_write_str(&b, a->title.n ? a->title : str_of(h1_reason(a->status)));
    mem_buf_printf(&b, ",\"status\":%d,\"request_id\":\"%s\"", a->status,
                   s->req->id);
    if (a->detail.n) {
        mem_buf_printf(&b, ",\"detail\":");
        json_write_str(&b, a->detail);
    }
    mem_buf_add(&b, "}\n", 2);
    text = str_dup(s->req->arena, (struct str){b.p, b.n});
    mem_buf_free(&b);
    return text;
}

/* Ends the exchange with a refusal at the current stage. `reason` goes to the
 * log, and to the client only where the listener says `explain`. */
static void
serve_refuse(struct serve *s, const struct bind_answer *a, struct str reason)
{
    s->reason = reason;
    s->ended_at = s->stage;
    if (s->stage == SERVE_SYNTAX)
        s->req->close = true;  // nothing that follows can be trusted
    met_inc(serve_denied_metric(s->stage));
    serve_log_decision(s, a->status);
    serve_answer(s, a);
}

static void
serve_refuse_with(struct serve *s, const char *where, const struct err *e,
                  const struct hdr_list *headers)
{
    struct str why = str_dup(s->req->arena, str_of(e->msg));
    struct bind_answer *a = serve_problem(s, err_status(e), S(""),
                                          s->req->from->explain ? why : S(""));

    if (headers)
        a->headers = *headers;
    s->where = where;
    serve_refuse(s, a, why);
}

static void
serve_refuse_err(struct serve *s, const char *where, const struct err *e)
{
    serve_refuse_with(s, where, e, NULL);
}

/* Lets go of upstream and waiting hook; the exchange goes another way. */
static void
serve_drop_work(struct serve *s)
{
    proxy_cancel(s->proxy);
    s->proxy = NULL;
    if (s->task && s->task->waiting) {
        vm_task_end(s->task);
        s->task = NULL;
    }
}

/* A bug of the policy: 500, and the story in the log. */
static void
serve_hook_bug(struct serve *s, struct str msg)
{
    serve_log_hook_error(s, msg);
    serve_drop_work(s);
    s->reason = msg;
    s->ended_at = s->stage;
    if (s->req->head_sent) {
        req_reset(s->req);
        serve_finish(s);
        return;
    }
    serve_answer(s, serve_problem(s, 500, S(""), S("")));
}

/* ---- hooks ---- */

static int
serve_push_identity(lua_State *L, void *data)
{
    struct serve *s = data;

    bind_push_identity(L, s->req->from->identity);
    return 1;
}

static int
serve_push_request(lua_State *L, void *data)
{
    struct serve *s = data;

    bind_push_request(L, &s->view);
    bind_push_identity(L, s->req->from->identity);
    return 2;
}

/* A table of header fields; several of one name become a list. */
static void
serve_push_headers(lua_State *L, const struct hdr_list *l)
{
    lua_newtable(L);
    for (unsigned i = 0; i < l->n; i++) {
        bind_push_str(L, l->v[i].name);
        if (lua_rawget(L, -2) == LUA_TNIL) {
            lua_pop(L, 1);
            bind_push_str(L, l->v[i].name);
            bind_push_str(L, l->v[i].value);
            lua_rawset(L, -3);
            continue;
        }
        if (!lua_istable(L, -1)) {
            lua_createtable(L, 2, 0);
            lua_insert(L, -2);
            lua_rawseti(L, -2, 1);
        }
        bind_push_str(L, l->v[i].value);
        lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
        bind_push_str(L, l->v[i].name);
        lua_insert(L, -2);
        lua_rawset(L, -3);
    }
}

/* What respond and log hooks are shown of the answer. */
static int
serve_push_response(lua_State *L, void *data)
{
    struct serve *s = data;
    const struct hdr_list *h = s->answer ? &s->answer->headers : &s->req->out;
    int n = 2;

    bind_push_request(L, &s->view);
    lua_createtable(L, 0, 3);
    lua_pushinteger(L, s->answer ? s->answer->status : s->req->status);
    lua_setfield(L, -2, "status");
    serve_push_headers(L, h);
    lua_setfield(L, -2, "headers");
    if (s->answer && !s->answer->is_problem)
        bind_set_str(L, "body", s->answer->body);
    if (s->stage == SERVE_LOG) {
        lua_createtable(L, 0, 4);
        lua_pushboolean(L, s->ended_at == SERVE_OVER);
        lua_setfield(L, -2, "allowed");
        bind_set_str(L, "stage", str_of(serve_stage_names[s->ended_at]));
        bind_set_str(L, "reason", s->reason);
        n = 3;
    }
    return n;
}

static void
serve_take_verdict(lua_State *L, void *data)
{
    struct serve *s = data;

    s->verdict = bind_take_verdict(L, 2, s->req->arena);
}

static void
serve_take_answer(lua_State *L, void *data)
{
    struct serve *s = data;

    s->answer = bind_take_answer(L, 2, s->req->arena);
}

/* A respond hook may return nil: the answer stays. */
static void
serve_take_response(lua_State *L, void *data)
{
    if (!lua_isnoneornil(L, 2))
        serve_take_answer(L, data);
}

static void
serve_take_nothing(lua_State *L, void *data)
{
    (void)L;
    (void)data;
}

static void serve_on_hook(void *data, bool ok);

/* A hook threw. A log hook's answer is on its way already: that stays. */
static bool
serve_hook_failed(struct serve *s)
{
    struct str msg = str_dup(s->req->arena, str_of(s->task->error));

    if (s->stage != SERVE_LOG) {
        serve_hook_bug(s, msg);
        return false;
    }
    serve_log_hook_error(s, msg);
    return true;
}

/* Runs one hook of this stage. True: it is done, look at what it left. */
static bool
serve_hook(struct serve *s, unsigned hook, int (*push)(lua_State *, void *),
           void (*take)(lua_State *, void *))
{
    struct vm_call call = {.hook = (int)hook,
                           .push = push,
                           .take = take,
                           .on_done = serve_on_hook,
                           .data = s};
    const struct cfg_limits *l = s->req->from->limits;
    uint32_t cpu = serve_limits(s)->hook_cpu_ms;
    uint32_t time = serve_limits(s)->hook_time_ms;

    if (!s->task) {
        s->task = vm_task_new(s->set->env->vm, cpu ? cpu : l->hook_cpu_ms);
        s->task->owner = &s->view;
    }
    switch (vm_run(s->task, &call)) {
    case VM_DONE:
        return true;
    case VM_FAILED:
        return serve_hook_failed(s);
    case VM_WAITING:
        req_deadline(s->req, time ? time : l->hook_time_ms);
        return false;
    }
    return false;
}

/* Would the answer of this hook let the request go on? Ends it if not. */
static bool
serve_allowed(struct serve *s)
{
    const struct bind_verdict *v = &s->verdict;

    if (v->bug) {
        serve_hook_bug(s, v->reason);
        return false;
    }
    if (v->allowed)
        return true;
    if (v->answer)
        serve_refuse(s, v->answer, v->reason);
    else
        serve_refuse(s,
                     serve_problem(s, 403, S(""),
                                   s->req->from->explain ? v->reason : S("")),
                     v->reason);
    return false;
}

/* ---- route ---- */

/* 128 bits that name the exchange in logs and headers; unique, not secret. */
static void
serve_request_id(struct serve_set *set, char out[REQ_ID + 1])
{
    static const char digits[] = "0123456789abcdef";
    uint64_t v[2];

    v[0] = set->random[0] += UINT64_C(0x9e3779b97f4a7c15);
    v[0] = (v[0] ^ v[0] >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    v[0] = (v[0] ^ v[0] >> 27) * UINT64_C(0x94d049bb133111eb);
    v[0] ^= v[0] >> 31;
    v[1] = v[0] ^ set->random[1];
    for (int i = 0; i < REQ_ID; i++)
        out[i] = digits[v[i / 16] >> (i % 16 * 4) & 15];
    out[REQ_ID] = 0;
}

static struct serve *
serve_new(struct serve_set *set, struct req *r)
{
    struct serve *s = mem_alloc(r->arena, sizeof *s);

    s->magic = SERVE_MAGIC;
    s->set = set;
    s->req = r;
    s->view.req = r;
    s->ended_at = SERVE_OVER;
    s->reason = S("");
    r->up = s;
    serve_request_id(set, r->id);
    met_add(MET_REQUESTS_OPEN, 1);
    met_inc(MET_REQUESTS);
    return s;
}

static void
serve_no_route(struct serve *s, enum route_verdict v, unsigned allow)
{
    struct mem_arena *a = s->req->arena;
    struct hdr_list headers = {0};
    struct err e;

    if (v == ROUTE_NONE) {
        err_set(&e, ERR_NO_ROUTE, "no route has this path");
    } else {
        err_set(&e, ERR_METHOD, "no route takes this method on this path");
        hdr_add(a, &headers, S("allow"), route_allow(a, allow));
    }
    serve_refuse_with(s, "route", &e, &headers);
}

/* Target, Host and method, down to a route. */
static bool
serve_find_route(struct serve *s)
{
    struct req *r = s->req;
    const struct cfg *cfg = s->set->env->cfg;
    unsigned method = route_method(r->method);
    enum route_verdict v;
    struct route_hit hit;
    struct str host;
    uint16_t port;
    struct err e;

    if (!method || str_eq(r->method, S("CONNECT")) ||
        str_eq(r->method, S("TRACE"))) {
        err_set(&e, ERR_NOT_IMPLEMENTED, "method %.*s", STR_FMT(r->method));
        serve_refuse_err(s, "method", &e);
        return false;
    }
    if (!uri_parse(r->arena, r->target, &s->view.uri, &e)) {
        serve_refuse_err(s, "path", &e);
        return false;
    }
    if (s->view.uri.absolute && r->host.n &&
        !str_eqi(s->view.uri.authority, r->host)) {
        err_set(&e, ERR_SYNTAX, "Host differs from the target's authority");
        serve_refuse_err(s, "headers", &e);
        return false;
    }
    if (s->view.uri.absolute)
        r->host = s->view.uri.authority;
    if ((r->host.n || !r->http10) && !uri_authority(r->host, &host, &port)) {
        err_set(&e, ERR_SYNTAX, "malformed Host");
        serve_refuse_err(s, "headers", &e);
        return false;
    }
    s->stage = SERVE_ROUTE;
    v = route_match(cfg->table, r->host.n ? host : S(""), r->from->listener,
                    method, s->view.uri.path, &hit);
    if (v != ROUTE_FOUND) {
        serve_no_route(s, v, hit.allow);
        return false;
    }
    s->route = &s->set->routes[hit.id];
    s->view.route = s->route->cfg;
    req_limits(r, serve_limits(s)->body_ms, serve_limits(s)->write_ms);
    memcpy(s->view.captures, hit.captures, hit.n * sizeof *hit.captures);
    return true;
}

/* ---- authorize ---- */

static bool
serve_known(const struct serve *s)
{
    size_t i = (size_t)(s->route - s->set->routes);
    const uint8_t *bits = s->req->from->allowed;

    return s->route->pure && bits && (bits[i / 8] >> i % 8 & 1);
}

static void
serve_know(struct serve *s)
{
    size_t i = (size_t)(s->route - s->set->routes);
    struct req_from *f = s->req->from;

    if (!s->route->pure)
        return;
    if (!f->allowed)
        f->allowed = mem_xcalloc((s->set->env->cfg->routes_n + 7) / 8);
    f->allowed[i / 8] = (uint8_t)(f->allowed[i / 8] | 1u << i % 8);
}

/* ---- validate ---- */

static bool
serve_input_bad(struct serve *s, const char *where, struct str name,
                const struct schema_why *why)
{
    struct err e;

    s->name = str_c(s->req->arena, name);
    err_set(&e, ERR_SCHEMA, "%s %s%s%s: %s%s%s%s", where, s->name,
            why->path[0] ? " at " : "", why->path, why->msg,
            why->keyword[0] ? " (" : "", why->keyword,
            why->keyword[0] ? ")" : "");
    serve_refuse_err(s, where, &e);
    return false;
}

static bool
serve_input_wrong(struct serve *s, const char *where, struct str name,
                  const char *what)
{
    struct schema_why why = {.keyword = ""};

    snprintf(why.msg, sizeof why.msg, "%s", what);
    return serve_input_bad(s, where, name, &why);
}

static bool
serve_check_path(struct serve *s)
{
    const struct cfg_route *c = s->route->cfg;
    struct schema_why why;

    if (!c->captures_n)
        return true;
    s->view.path =
        mem_alloc(s->req->arena, c->captures_n * sizeof *s->view.path);
    for (size_t i = 0; i < c->captures_n; i++) {
        s->view.path[i] = schema_text(s->route->path[i], s->req->arena,
                                      &s->view.captures[i], 1, &why);
        if (!s->view.path[i])
            return serve_input_bad(s, "path", c->captures[i].name, &why);
    }
    return true;
}

/* All values that the request gives `in`, in order. */
static size_t
serve_params_of(const struct serve *s, struct str name, struct str *out)
{
    size_t n = 0;

    for (size_t i = 0; i < s->view.params_n; i++)
        if (str_eq(s->view.params[i].name, name))
            out[n++] = s->view.params[i].value;
    return n;
}

static bool
serve_check_query(struct serve *s)
{
    const struct cfg_route *c = s->route->cfg;
    struct req *r = s->req;
    struct schema_why why;
    struct str *values;
    size_t n, used = 0;
    struct err e;

    if (s->view.uri.query.n &&
        !uri_query(r->arena, s->view.uri.query, r->from->limits->query_params,
                   &s->view.params, &s->view.params_n, &e)) {
        serve_refuse_err(s, "query", &e);
        return false;
    }
    if (c->query_unchecked || (!c->query_n && !s->view.params_n))
        return true;
    values = mem_alloc(r->arena, (s->view.params_n + 1) * sizeof *values);
    s->view.query = mem_alloc(r->arena, c->query_n * sizeof *s->view.query);
    for (size_t i = 0; i < c->query_n; i++) {
        n = serve_params_of(s, c->query[i].name, values);
        used += n;
        if (!n && c->query[i].optional)
            continue;
        if (!n)
            return serve_input_wrong(s, "query", c->query[i].name,
                                     "is missing");
        if (n > 1 && !schema_is_array(s->route->query[i]))
            return serve_input_wrong(s, "query", c->query[i].name,
                                     "is given more than once");
        s->view.query[i] =
            schema_text(s->route->query[i], r->arena, values, n, &why);
        if (!s->view.query[i])
            return serve_input_bad(s, "query", c->query[i].name, &why);
    }
    if (used != s->view.params_n)
        for (size_t i = 0; i < s->view.params_n; i++) {
            size_t j = 0;

            while (j < c->query_n &&
                   !str_eq(c->query[j].name, s->view.params[i].name))
                j++;
            if (j == c->query_n)
                return serve_input_wrong(s, "query", s->view.params[i].name,
                                         "is not declared");
        }
    return true;
}

static bool
serve_check_headers(struct serve *s)
{
    const struct cfg_route *c = s->route->cfg;
    struct req *r = s->req;
    struct schema_why why;

    if (!c->headers_n)
        return true;
    s->view.headers =
        mem_alloc(r->arena, c->headers_n * sizeof *s->view.headers);
    for (size_t i = 0; i < c->headers_n; i++) {
        const struct cfg_input *in = &c->headers[i];
        const struct str *v = hdr_get(&r->headers, in->name);

        if (!v && in->optional)
            continue;
        if (!v)
            return serve_input_wrong(s, "headers", in->name, "is missing");
        if (hdr_count(&r->headers, in->name) > 1)
            return serve_input_wrong(s, "headers", in->name,
                                     "is given more than once");
        s->view.headers[i] =
            schema_text(s->route->headers[i], r->arena, v, 1, &why);
        if (!s->view.headers[i])
            return serve_input_bad(s, "headers", in->name, &why);
    }
    return true;
}

/* ---- body ---- */

/* The media type without its parameters; parameters other than a UTF-8 charset
 * are refused for JSON. */
static bool
serve_media_ok(const struct req *r, const struct cfg_body *b)
{
    const struct str *field = hdr_get(&r->headers, S("content-type"));
    struct str type, rest, name, value;
    bool found = b->types.n == 0;

    if (!field)
        return found;
    if (hdr_count(&r->headers, S("content-type")) > 1)
        return false;
    str_cut(*field, ';', &type, &rest);
    type = str_trim(type);
    for (size_t i = 0; i < b->types.n && !found; i++)
        found = str_eqi(type, b->types.v[i]);
    rest = str_trim(rest);
    if (!found || b->kind != CFG_BODY_JSON || !rest.n)
        return found;
    str_cut(rest, '=', &name, &value);
    return str_eqi(str_trim(name), S("charset")) &&
           (str_eqi(str_trim(value), S("utf-8")) ||
            str_eqi(str_trim(value), S("\"utf-8\"")));
}

static bool
serve_body_over(struct serve *s, uint64_t max)
{
    struct err e;

    met_inc(MET_LIMIT_BODY);
    err_set(&e, ERR_BODY_LIMIT, "body over %" PRIu64 " bytes", max);
    serve_refuse_err(s, "body", &e);
    return false;
}

static bool
serve_no_body_here(struct serve *s)
{
    struct err e;

    err_set(&e, ERR_SCHEMA, "this route takes no body");
    serve_refuse_err(s, "body", &e);
    return false;
}

/* RFC 9110, 9.3.1: a body has no meaning there. An upstream that does not read
 * it takes it for the next request, of whoever comes next on that connection.
 * DELETE may have one only where the route names it. */
static bool
serve_body_odd(const struct serve *s)
{
    unsigned m = route_method(s->req->method);

    return (m & (ROUTE_GET | ROUTE_HEAD | ROUTE_OPTIONS)) ||
           (m == ROUTE_DELETE && s->route->cfg->method_mask != ROUTE_DELETE);
}

/* May this body be read at all? */
static bool
serve_check_body(struct serve *s)
{
    const struct cfg_body *b = &s->route->cfg->body;
    struct req *r = s->req;
    struct err e;

    if (req_has_body(r) && serve_body_odd(s)) {
        r->close = true;
        err_set(&e, ERR_SYNTAX, "a body on %.*s", STR_FMT(r->method));
        serve_refuse_err(s, "body", &e);
        return false;
    }

    if (b->kind == CFG_BODY_NONE)
        return !req_has_body(r) || serve_no_body_here(s);
    if (!req_has_body(r) && b->kind != CFG_BODY_JSON)
        return true;
    if (!serve_media_ok(r, b)) {
        err_set(&e, ERR_MEDIA, "no or another Content-Type than declared");
        serve_refuse_err(s, "body", &e);
        return false;
    }
    if (hdr_get(&r->headers, S("content-encoding")) &&
        b->kind == CFG_BODY_JSON) {
        err_set(&e, ERR_MEDIA, "a Content-Encoding is not declared");
        serve_refuse_err(s, "body", &e);
        return false;
    }
    if (r->length > 0 && (uint64_t)r->length > b->max)
        return serve_body_over(s, b->max);
    return true;
}

/* The whole body is here: JSON is parsed and checked. */
static bool
serve_check_json(struct serve *s)
{
    const struct cfg_body *b = &s->route->cfg->body;
    struct schema_why why;
    struct err e;

    s->view.body = (struct str){mem_buf_ptr(&s->body), mem_buf_len(&s->body)};
    s->view.has_body = true;
    if (b->kind != CFG_BODY_JSON)
        return true;
    if (!json_parse(s->req->arena, s->view.body, &s->view.json, &e)) {
        serve_refuse_err(s, "json", &e);
        return false;
    }
    if (schema_check(s->route->body, s->view.json, &why))
        return true;
    err_set(&e, ERR_SCHEMA, "json%s%s: %s (%s)", why.path[0] ? " at " : "",
            why.path, why.msg, why.keyword);
    s->name = mem_dup(s->req->arena, why.path, strlen(why.path));
    serve_refuse_err(s, "json", &e);
    return false;
}

/* ---- forward ---- */

/* One piece of a template as text; false: there is no such value. */
static bool
serve_piece(const struct serve *s, const struct cfg_piece *p, struct str *out)
{
    const struct pki_identity *id = s->req->from->identity;
    bool found = false;

    switch (p->kind) {
    case CFG_PIECE_TEXT:
        *out = p->text;
        return true;
    case CFG_PIECE_CAPTURE:
        *out = s->view.captures[p->capture];
        return true;
    case CFG_PIECE_REQUEST_ID:
        *out = (struct str){s->req->id, REQ_ID};
        return true;
    case CFG_PIECE_IDENTITY:
        break;
    }
    if (!id)
        return false;
    if (bind_identity_text(id, p->text, out))
        return out->n != 0;
    for (size_t i = 0; i < id->subject_n && !found; i++)
        if (str_eq(id->subject[i].type, p->text)) {
            *out = id->subject[i].value;
            found = true;
        }
    return found && hdr_value_ok(*out);
}

/* Where the request goes: the template's text, captures encoded afresh, and
 * the query that was checked. The result must be a path we would accept. */
static bool
serve_target(struct serve *s, const struct cfg_handle *h, struct str *out,
             struct err *e)
{
    const struct cfg_template *t = &h->target;
    struct mem_buf b = {0};
    struct uri u;
    struct str v;
    bool has_query = false, ok = true;

    if (h->literal)  // a path that a hook has put together: all of it is data
        uri_write_path(&b, t->text);
    for (size_t i = 0; i < t->n && ok && !h->literal; i++) {
        const struct cfg_piece *p = &t->v[i];

        ok = serve_piece(s, p, &v);
        if (!ok)
            err_set(e, ERR_DENIED, "the certificate has no %.*s for {%.*s}",
                    STR_FMT(p->text), STR_FMT(p->text));
        else if (p->kind == CFG_PIECE_TEXT)
            mem_buf_add(&b, v.p, v.n);
        else if (p->in_query)
            uri_write_query(&b, &(struct uri_param){v, S("")}, 1);
        else if (p->kind == CFG_PIECE_CAPTURE &&
                 s->route->cfg->captures[p->capture].tail)
            uri_write_path(&b, v);
        else
            uri_write_segment(&b, v);
        has_query = has_query || (ok && p->kind == CFG_PIECE_TEXT &&
                                  memchr(v.p, '?', v.n) != NULL);
    }
    if (!t->n && !h->literal)
        uri_write_path(&b, s->view.uri.path);
    if (s->view.params_n) {
        mem_buf_add(&b, has_query ? "&" : "?", 1);
        uri_write_query(&b, s->view.params, s->view.params_n);
    }
    *out = str_dup(s->req->arena, (struct str){mem_buf_ptr(&b), b.n});
    mem_buf_free(&b);
    return ok && uri_parse(s->req->arena, *out, &u, e);
}

/* Values of `set`, by their templates; one without a value is left out. */
static struct hdr *
serve_sets(struct serve *s, const struct cfg_sets *sets, size_t *n)
{
    struct hdr *v = mem_alloc(s->req->arena, (sets->n + 1) * sizeof *v);
    struct mem_buf b = {0};
    struct str piece;

    *n = 0;
    for (size_t i = 0; i < sets->n; i++) {
        bool ok = true;

        b.n = b.off = 0;
        for (size_t j = 0; j < sets->v[i].value.n && ok; j++) {
            ok = serve_piece(s, &sets->v[i].value.v[j], &piece) &&
                 hdr_value_ok(piece);
            if (ok)
                mem_buf_add(&b, piece.p, piece.n);
        }
        v[*n].name = sets->v[i].name;
        v[*n].value =
            str_dup(s->req->arena, (struct str){mem_buf_ptr(&b), b.n});
        if (ok)
            ++*n;
    }
    mem_buf_free(&b);
    return v;
}

static void
serve_edit_answer(struct serve *s, const struct cfg_handle *h)
{
    struct hdr_list *out = &s->req->out;
    size_t n;
    struct hdr *set = serve_sets(s, &h->respond_set, &n);

    for (size_t i = 0; i < h->respond_remove.n; i++)
        hdr_remove(out, h->respond_remove.v[i]);
    for (size_t i = 0; i < n; i++) {
        hdr_remove(out, set[i].name);
        hdr_add_ref(s->req->arena, out, set[i].name, set[i].value);
    }
}

static const struct cfg_handle *
serve_handle_of(const struct serve *s)
{
    return &s->route->cfg->handle;
}

/* The upstream's head is here; respond hooks may change it. */
static bool
serve_on_proxy_head(struct req *r)
{
    struct serve *s = serve_of(r);

    if (s->forward)
        serve_edit_answer(s, s->forward);
    s->stage = SERVE_RESPOND;
    s->hook = 0;
    if (!s->route->cfg->respond.n)
        return true;
    serve_go(s);
    return false;
}

static void
serve_on_proxy_done(struct req *r)
{
    struct serve *s = serve_of(r);

    if (s->stage == SERVE_OVER)
        return;
    s->stage = SERVE_LOG;
    s->hook = 0;
    serve_go(s);
}

static void
serve_log_upstream_error(const struct serve *s, const struct err *e)
{
    struct log_line l;

    if (!log_begin(&l, err_rows[e->kind].level, "error"))
        return;
    log_str(&l, "room", S("proxy"));
    serve_log_head(&l, s);
    log_str(&l, "kind", str_of(err_name(e)));
    log_str(&l, "msg", str_of(e->msg));
    log_end(&l);
}

static void
serve_on_proxy_fail(struct req *r, const struct err *e)
{
    struct serve *s = serve_of(r);

    serve_drop_work(s);
    serve_log_upstream_error(s, e);
    s->reason = str_dup(r->arena, str_of(e->msg));
    s->ended_at = SERVE_HANDLE;
    if (r->head_sent) {
        req_reset(r);
        serve_finish(s);
        return;
    }
    serve_answer(
        s, serve_problem(s, err_status(e) ? err_status(e) : 502, S(""), S("")));
}

static const struct proxy_ops serve_proxy_ops = {
    .on_head = serve_on_proxy_head,
    .on_done = serve_on_proxy_done,
    .on_fail = serve_on_proxy_fail,
};

/* A template that a handler returned. One made by a hook is taken as it is:
 * braces in it may be a client's. */
static bool
serve_template(struct serve *s, struct str text, bool literal,
               struct cfg_template *out, struct err *e)
{
    struct cfg_read r = {.a = s->req->arena, .cfg = NULL, .e = e};

    if (!literal)
        return cfg_read_template(&r, s->route->cfg, text, out);
    out->text = text;
    out->v = mem_alloc(s->req->arena, sizeof *out->v);
    out->v[0] = (struct cfg_piece){CFG_PIECE_TEXT, text, 0, false};
    out->n = text.n != 0;
    return true;
}

static bool
serve_templates(struct serve *s, const struct hdr_list *from, bool literal,
                struct cfg_sets *to, struct err *e)
{
    to->v = mem_alloc(s->req->arena, (from->n + 1) * sizeof *to->v);
    for (to->n = 0; to->n < from->n; to->n++) {
        to->v[to->n].name = from->v[to->n].name;
        if (!serve_template(s, from->v[to->n].value, literal,
                            &to->v[to->n].value, e))
            return false;
    }
    return true;
}

/* What a forward is made of, whether the configuration or a handler made it. */
static bool
serve_forward_of(struct serve *s, const struct bind_answer *a,
                 struct cfg_handle *h, struct err *e)
{
    *h = (struct cfg_handle){
        .kind = CFG_HANDLE_PROXY,
        .literal = a->literal && a->target.n,
        .upstream = a->upstream,
        .remove = {a->remove.v, a->remove.n},
        .respond_remove = {a->respond_remove.v, a->respond_remove.n}};
    if (a->upstream >= s->set->env->cfg->upstreams_n)
        return err_set(e, ERR_HOOK, "no such upstream");
    return serve_template(s, a->target, a->literal, &h->target, e) &&
           serve_templates(s, &a->set, a->literal, &h->set, e) &&
           serve_templates(s, &a->respond_set, a->literal, &h->respond_set, e);
}

static void
serve_forward(struct serve *s, const struct cfg_handle *h)
{
    struct req *r = s->req;
    const struct cfg_upstream *up = &s->set->env->cfg->upstreams[h->upstream];
    struct proxy_line line = {.identity_headers = up->identity_headers,
                              .remove = h->remove.v,
                              .remove_n = h->remove.n,
                              .checked = s->route->cfg->headers,
                              .checked_n = s->route->cfg->headers_n};
    struct err e;

    if (!serve_target(s, h, &line.target, &e)) {
        serve_refuse_err(s, "target", &e);
        return;
    }
    line.set = serve_sets(s, &h->set, &line.set_n);
    if (s->view.has_body)
        line.body = &s->view.body;
    s->forward = h;
    if (s->set->forward) {
        s->set->forward(s, up, &line);
        return;
    }
    req_deadline(r, 0);
    s->proxy = proxy_new(r, &s->set->env->upstreams->pools[h->upstream],
                         proxy_head(r, &line), line.body, &serve_proxy_ops);
    proxy_start(s->proxy);
}

/* ---- the steps ---- */

/* Each returns true where the next step may follow at once. */

static bool
serve_step_authorize(struct serve *s)
{
    const struct cfg_route *c = s->route->cfg;

    if (serve_known(s))
        s->hook = c->authorize_n;
    while (s->hook < c->authorize_n) {
        if (!serve_hook(s, c->authorize[s->hook].hook, serve_push_identity,
                        serve_take_verdict) ||
            !serve_allowed(s))
            return false;
        s->hook++;
    }
    serve_know(s);
    s->stage = SERVE_VALIDATE;
    return true;
}

static bool
serve_step_validate(struct serve *s)
{
    if (!serve_check_path(s) || !serve_check_query(s) ||
        !serve_check_headers(s))
        return false;
    s->stage = SERVE_BODY;
    return true;
}

/* A body that is buffered is read now; serve_on_end() goes on. */
static bool
serve_step_body(struct serve *s)
{
    const struct cfg_body *b = &s->route->cfg->body;
    bool buffered = b->kind == CFG_BODY_JSON || b->kind == CFG_BODY_BYTES;

    if (!serve_check_body(s))
        return false;
    s->hook = 0;
    if (buffered && req_has_body(s->req)) {
        req_deadline(s->req, 0);
        req_read(s->req, true);
        return false;
    }
    if (buffered && !serve_check_json(s))
        return false;
    s->stage = SERVE_CHECK;
    return true;
}

static bool
serve_step_check(struct serve *s)
{
    const struct cfg_hooks *h = &s->route->cfg->check;

    while (s->hook < h->n) {
        if (!serve_hook(s, h->v[s->hook], serve_push_request,
                        serve_take_verdict) ||
            !serve_allowed(s))
            return false;
        s->hook++;
    }
    s->stage = SERVE_HANDLE;
    s->hook = 0;
    return true;
}

/* What the handler made: an answer, or a request to forward. */
static bool
serve_handled(struct serve *s)
{
    struct cfg_handle *h;
    struct err e;

    if (s->answer->is_forward) {
        h = mem_alloc(s->req->arena, sizeof *h);
        if (serve_forward_of(s, s->answer, h, &e)) {
            s->answer = NULL;
            serve_forward(s, h);
        } else {
            s->answer = NULL;
            serve_hook_bug(s, str_dup(s->req->arena, str_of(e.msg)));
        }
        return false;
    }
    s->stage = SERVE_RESPOND;
    s->hook = 0;
    return true;
}

static bool
serve_step_handle(struct serve *s)
{
    const struct cfg_handle *h = serve_handle_of(s);

    if (h->kind == CFG_HANDLE_PROXY) {
        serve_forward(s, h);
        return false;
    }
    if (!s->answer &&
        !serve_hook(s, h->hook, serve_push_request, serve_take_answer))
        return false;
    return serve_handled(s);
}

static bool
serve_step_respond(struct serve *s)
{
    const struct cfg_hooks *h = &s->route->cfg->respond;

    while (s->hook < h->n) {
        if (!serve_hook(s, h->v[s->hook], serve_push_response,
                        serve_take_response))
            return false;
        s->hook++;
    }
    if (s->proxy && !s->answer) {
        proxy_go(s->proxy);
        return false;
    }
    if (s->proxy) {  // a hook has replaced the upstream's answer
        proxy_cancel(s->proxy);
        s->proxy = NULL;
    }
    serve_answer(s, s->answer);
    return false;
}

/* The client has its answer; log hooks see what became of it. */
static bool
serve_step_log(struct serve *s)
{
    const struct cfg_hooks *h = s->route ? &s->route->cfg->log : NULL;

    while (h && s->hook < h->n) {
        if (!serve_hook(s, h->v[s->hook], serve_push_response,
                        serve_take_nothing))
            return false;
        s->hook++;
    }
    serve_finish(s);
    return false;
}

/* Goes on from the current stage until something has to be waited for. */
static void
serve_go(struct serve *s)
{
    static bool (*const steps[])(struct serve *) = {
        [SERVE_AUTHORIZE] = serve_step_authorize,
        [SERVE_VALIDATE] = serve_step_validate,
        [SERVE_BODY] = serve_step_body,
        [SERVE_CHECK] = serve_step_check,
        [SERVE_HANDLE] = serve_step_handle,
        [SERVE_RESPOND] = serve_step_respond,
        [SERVE_LOG] = serve_step_log,
    };

    while (steps[s->stage](s))
        ;
}

/* A hook that had to wait is done: look at what it left, then go on. */
static void
serve_on_hook(void *data, bool ok)
{
    struct serve *s = OBJ(struct serve, SERVE, data);

    req_deadline(s->req, 0);
    if (!ok && !serve_hook_failed(s))
        return;
    switch (s->stage) {
    case SERVE_AUTHORIZE:
    case SERVE_CHECK:
        if (!serve_allowed(s))
            return;
        s->hook++;
        break;
    case SERVE_HANDLE:
        break;  // serve_step_handle() finds the answer
    default:
        s->hook++;
    }
    serve_go(s);
}

/* ---- the answer ---- */

/* Sends a whole answer; then the log hooks, then the end. */
static void
serve_answer(struct serve *s, const struct bind_answer *a)
{
    struct req *r = s->req;
    struct str body = a->body;

    r->out.n = 0;  // of an upstream's answer that this one replaces
    r->status = a->status;
    for (unsigned i = 0; i < a->headers.n; i++)
        hdr_add_ref(r->arena, &r->out, a->headers.v[i].name,
                    a->headers.v[i].value);
    if (a->is_problem) {
        body = serve_problem_body(s, a);
        if (!hdr_get(&r->out, S("content-type")))
            hdr_add_ref(r->arena, &r->out, S("content-type"),
                        S("application/problem+json"));
    }
    r->out_length = (int64_t)body.n;
    if (s->set->env->draining)
        r->close = true;
    req_head(r);
    req_body(r, body.p, body.n);
    if (s->stage == SERVE_OVER)
        return;  // the connection broke while it was written
    s->stage = SERVE_LOG;
    s->hook = 0;
    serve_go(s);
}

/* Frees what lives outside the request's arena. Safe twice. */
static void
serve_release(struct serve *s)
{
    if (s->stage == SERVE_OVER)
        return;
    s->stage = SERVE_OVER;
    met_add(MET_REQUESTS_OPEN, -1);
    vm_task_end(s->task);
    s->task = NULL;
    bind_request_end(s->set->env->vm, &s->view);
    proxy_cancel(s->proxy);
    mem_buf_free(&s->body);
}

/* Everything is said: records, and the end of the exchange. */
static void
serve_finish(struct serve *s)
{
    struct req *r = s->req;
    uint64_t us = uv_hrtime() / 1000 - r->started_us;

    if (s->route)
        met_route_done(s->route->met, r->status, us);
    serve_log_access(s, us);
    if (s->set->on_over)
        s->set->on_over(s);
    serve_release(s);
    if (!r->ended)
        req_end(r);
}

/* ---- what the codec tells us ---- */

static void
serve_on_head(struct req *r)
{
    struct serve *s = serve_new(serve_set_of(r), r);
    struct err e;

    if (r->from->identity && time(NULL) > r->from->identity->not_after) {
        r->close = true;
        err_set(&e, ERR_DENIED,
                "the certificate has expired since it was "
                "presented");
        serve_refuse_err(s, "connection", &e);
        return;
    }
    if (r->from->over) {
        r->close = true;
        err_set(&e, ERR_RATE, "more than %u connections of this identity",
                r->from->limits->per_identity);
        serve_refuse_err(s, "connection", &e);
        return;
    }
    if (!serve_find_route(s))
        return;
    s->stage = SERVE_AUTHORIZE;
    serve_go(s);
}

static void
serve_on_bad(struct req *r, const struct err *e)
{
    struct serve *s = r->up ? serve_of(r) : serve_new(serve_set_of(r), r);

    if (!s->route)
        s->stage = SERVE_SYNTAX;
    serve_drop_work(s);
    serve_refuse_err(s, "head", e);
}

static void
serve_on_body(struct req *r, const char *p, size_t n)
{
    struct serve *s = serve_of(r);
    const struct cfg_body *b = &s->route->cfg->body;

    if (s->stage == SERVE_OVER || s->stage == SERVE_LOG)
        return;
    if (r->body_bytes > b->max) {
        if (r->head_sent) {
            met_inc(MET_LIMIT_BODY);
            req_reset(r);
            serve_finish(s);
            return;
        }
        serve_drop_work(s);
        serve_body_over(s, b->max);
        return;
    }
    if (s->proxy)
        proxy_on_body(s->proxy, p, n);
    else
        mem_buf_add(&s->body, p, n);
}

static void
serve_on_end(struct req *r)
{
    struct serve *s = serve_of(r);

    if (s->proxy) {
        proxy_on_body_end(s->proxy);
        return;
    }
    if (s->stage != SERVE_BODY || !serve_check_json(s))
        return;
    s->stage = SERVE_CHECK;
    serve_go(s);
}

static void
serve_on_drain(struct req *r)
{
    struct serve *s = serve_of(r);

    if (s->proxy)
        proxy_on_client_drain(s->proxy);
}

/* The client is gone, or broke the rules in the middle of its body. */
static void
serve_on_abort(struct req *r, const struct err *e)
{
    struct serve *s = serve_of(r);

    if (s->stage == SERVE_OVER)
        return;
    s->reason = str_dup(r->arena, str_of(e->msg));
    if (!r->status)
        r->status = 499;  // nginx's "client closed request": for the log alone
    serve_finish(s);
}

/* A hook waits for longer than it may. */
static void
serve_on_time(struct req *r)
{
    struct serve *s = serve_of(r);
    const char *why = "the hook took longer than hook_time";

    if (s->stage == SERVE_OVER || !s->task || !s->task->waiting)
        return;
    met_inc(MET_LIMIT_HOOK_TIME);
    serve_drop_work(s);
    if (s->stage == SERVE_LOG) {
        serve_finish(s);
        return;
    }
    serve_hook_bug(s, str_of(why));
}

/* ---- birth ---- */

static bool
serve_compile(struct mem_arena *boot, struct schema **out, yyjson_val *doc,
              const struct cfg_route *c, struct str name, struct err *e)
{
    *out = schema_compile(boot, doc, false, e);
    if (!*out)
        err_prefix(e, "%.*s: %.*s: ", STR_FMT(c->at), STR_FMT(name));
    return *out != NULL;
}

static bool
serve_compile_inputs(struct mem_arena *boot, struct schema ***out,
                     const struct cfg_input *in, size_t n,
                     const struct cfg_route *c, struct err *e)
{
    *out = mem_alloc(boot, (n + 1) * sizeof **out);
    for (size_t i = 0; i < n; i++)
        if (!serve_compile(boot, &(*out)[i], in[i].schema, c, in[i].name, e))
            return false;
    return true;
}

static bool
serve_route_new(struct serve_route *r, const struct cfg_route *c, struct vm *vm,
                struct mem_arena *boot, struct err *e)
{
    r->cfg = c;
    r->pure = true;
    for (size_t i = 0; i < c->authorize_n; i++)
        r->pure = r->pure && vm_hook_pure(vm, (int)c->authorize[i].hook);
    r->path = mem_alloc(boot, (c->captures_n + 1) * sizeof *r->path);
    for (size_t i = 0; i < c->captures_n; i++)
        if (!serve_compile(boot, &r->path[i], c->captures[i].schema, c,
                           c->captures[i].name, e))
            return false;
    if (c->body.kind == CFG_BODY_JSON &&
        !serve_compile(boot, &r->body, c->body.schema, c, S("json"), e))
        return false;
    return serve_compile_inputs(boot, &r->query, c->query, c->query_n, c, e) &&
           serve_compile_inputs(boot, &r->headers, c->headers, c->headers_n, c,
                                e);
}

static const struct req_ops serve_req_ops = {
    .on_head = serve_on_head,
    .on_bad = serve_on_bad,
    .on_body = serve_on_body,
    .on_end = serve_on_end,
    .on_drain = serve_on_drain,
    .on_abort = serve_on_abort,
    .on_time = serve_on_time,
};

/* `met` is this worker's row of route metrics; its policy is loaded. */
static struct serve_set *
serve_set_new(struct env *env, struct mem_arena *boot, struct met_route *met,
              struct err *e)
{
    struct serve_set *set = mem_alloc(boot, sizeof *set);
    size_t n = env->cfg->routes_n;

    set->ops = serve_req_ops;
    set->env = env;
    must(getentropy(set->random, sizeof set->random) == 0);
    set->routes = mem_alloc(boot, (n + 1) * sizeof *set->routes);
    for (size_t i = 0; i < n; i++) {
        set->routes[i].met = &met[i];
        if (!serve_route_new(&set->routes[i], &env->cfg->routes[i], env->vm,
                             boot, e))
            return NULL;
    }
    return set;
}

/* ==== 28 admin: health and metrics ==========================================
 *
 * Plain HTTP on an address that the policy declares; any worker answers for
 * all, from the shared slab.
 *
 * Entry   admin_ops
 */
struct admin {
    struct req_ops ops;  // first: a req finds us by them
    struct env *env;     // borrowed
    const struct met_row *rows;
    unsigned rows_n;
    const struct met_route *routes;  // rows_n × routes
};

static void
admin_answer(struct req *r, int status, struct str type, struct str body)
{
    r->status = status;
    r->out_length = (int64_t)body.n;
    hdr_add_ref(r->arena, &r->out, S("content-type"), type);
    hdr_add_ref(r->arena, &r->out, S("cache-control"), S("no-store"));
    req_head(r);
    req_body(r, body.p, body.n);
    req_end(r);
}

/* "GET /path" as a label's value: backslash and quote escaped. */
static const char *
admin_label(struct mem_arena *a, const struct cfg_route *r)
{
    char *p = mem_alloc(a, 2 * r->path.n + 16), *w = p;
    struct str method = r->methods.n ? r->methods.v[0] : S("*");

    w += snprintf(w, 16, "%.10s ", method.p);
    for (size_t i = 0; i < r->path.n; i++) {
        if (r->path.p[i] == '\\' || r->path.p[i] == '"')
            *w++ = '\\';
        *w++ = r->path.p[i];
    }
    return p;
}

/* A family's lines stand together, as the format asks. */
static void
admin_route_metrics(struct admin *a, struct mem_arena *arena, struct mem_buf *b,
                    void (*render)(struct mem_buf *, const char *,
                                   const struct met_route *))
{
    const struct cfg *cfg = a->env->cfg;

    for (size_t i = 0; i < cfg->routes_n; i++) {
        struct met_route r =
            met_route_sum(a->routes + i, cfg->routes_n, a->rows_n);

        render(b, admin_label(arena, &cfg->routes[i]), &r);
    }
}

static void
admin_metrics(struct admin *a, struct req *r)
{
    struct mem_buf b = {0};
    struct str text;

    met_render(&b, a->rows, a->rows_n);
    mem_buf_printf(
        &b, "# HELP http_server_request_duration_seconds Time to the answer.\n"
            "# TYPE http_server_request_duration_seconds histogram\n");
    admin_route_metrics(a, r->arena, &b, met_render_durations);
    mem_buf_printf(&b, "# HELP gateway_responses_total Answers by class.\n"
                       "# TYPE gateway_responses_total counter\n");
    admin_route_metrics(a, r->arena, &b, met_render_classes);
    text = str_dup(r->arena, (struct str){b.p, b.n});
    mem_buf_free(&b);
    admin_answer(r, 200, S("text/plain; version=0.0.4"), text);
}

static void
admin_on_head(struct req *r)
{
    struct admin *a = (struct admin *)(uintptr_t)r->ops;
    bool get = str_eq(r->method, S("GET")) || str_eq(r->method, S("HEAD"));
    struct str text = S("text/plain");

    if (get && str_eq(r->target, S("/metrics")))
        admin_metrics(a, r);
    else if (get && str_eq(r->target, S("/healthz")))
        admin_answer(r, 200, text, S("ok\n"));
    else if (get && str_eq(r->target, S("/readyz")) && a->env->draining)
        admin_answer(r, 503, text, S("draining\n"));
    else if (get && str_eq(r->target, S("/readyz")) && pki_now(time(NULL)) < 0)
        admin_answer(r, 503, text, S("the clock is not set\n"));
    else if (get && str_eq(r->target, S("/readyz")))
        admin_answer(r, 200, text, S("ready\n"));
    else
        admin_answer(r, get ? 404 : 405, text, S("no such page\n"));
}

static void
admin_on_bad(struct req *r, const struct err *e)
{
    admin_answer(r, err_status(e), S("text/plain"), S("refused\n"));
}

static void
admin_on_body(struct req *r, const char *p, size_t n)
{
    (void)r;
    (void)p;
    (void)n;
}

static void
admin_on_nothing(struct req *r)
{
    (void)r;
}

static void
admin_on_abort(struct req *r, const struct err *e)
{
    (void)r;
    (void)e;
}

static const struct req_ops admin_ops = {
    .on_head = admin_on_head,
    .on_bad = admin_on_bad,
    .on_body = admin_on_body,
    .on_end = admin_on_nothing,
    .on_drain = admin_on_nothing,
    .on_abort = admin_on_abort,
    .on_time = admin_on_nothing,
};

/* ==== 29 work: a worker =====================================================
 *
 * Inherits listening sockets, scripts and certificates, opens nothing by name
 * (but what c-ares reads), serves until it is told to drain. One loop, one Lua
 * state, no threads.
 *
 * In each turn of the loop the sockets are read first; then, in the check
 * phase (and once more before the loop sleeps), answers are sent and log lines
 * written in one go.
 *
 * Entry   work_check_policy  work_main
 */
enum {
    WORK_PING_MS = 1000,  // the supervisor kills what is silent for ten
    WORK_COUNTS = 256,    // slots of the table of identities
};

/* How many connections an identity has open. */
struct work_count {
    struct work_count *next;
    unsigned n;
    char fingerprint[65];
};

struct work {
    struct env env;
    uv_loop_t loop;
    struct mem_arena *boot_arena;
    struct cfg cfg;
    struct conn_set conns;
    struct pki_cas cas;
    struct conn_listener *listeners;  // the policy's, then admin
    size_t listeners_n;
    struct admin admin;
    struct cfg_limits admin_limits;
    struct work_count *counts[WORK_COUNTS];
    uv_prepare_t prepare;
    uv_check_t check;
    uv_idle_t idle;
    uv_timer_t ping;
    struct msg_chan chan;  // to the supervisor
    bool leaving;
};

/* ---- the policy ---- */

/* Evaluates the scripts in a fresh Lua state; what they declare, as JSON. */
static bool
work_check_policy(struct mem_arena *a, const struct boot *boot,
                  struct str *json, struct err *e)
{
    struct env env = {.boot = boot};
    struct vm *vm = vm_new(&env, boot, VM_CHECK_BYTES, bind_open);
    bool ok;

    env.vm = vm;
    ok = vm_load(vm, a, json, e);
    vm_free(vm);
    return ok;
}

/* The same policy must declare the same thing here as it did for `check`: the
 * supervisor has bound sockets and frozen commands by that. */
static bool
work_load_policy(struct work *w, struct err *e)
{
    struct str json;

    w->env.vm =
        vm_new(&w->env, w->env.boot, w->cfg.process.lua_memory, bind_open);
    if (!vm_load(w->env.vm, w->boot_arena, &json, e))
        return false;
    if (!str_eq(json, w->cfg.text))
        return err_set(e, ERR_CONFIG,
                       "the policy declares something else each time it is "
                       "loaded: take time, random numbers and the order of "
                       "pairs() out of its declarations");
    return true;
}

/* ---- connections by identity ---- */

static struct work_count **
work_count_at(struct work *w, struct str fingerprint)
{
    uint64_t slot = 0;

    for (size_t i = 0; i < 8 && i < fingerprint.n; i++)
        slot = slot << 4 | (unsigned)str_hex_digit(fingerprint.p[i]);
    struct work_count **at = &w->counts[slot % WORK_COUNTS];

    while (*at && !str_eq(str_of((*at)->fingerprint), fingerprint))
        at = &(*at)->next;
    return at;
}

static struct work *
work_of(struct conn *c)
{
    return (struct work *)(void *)((char *)c->listener->env -
                                   offsetof(struct work, env));
}

/* One connection too many is told so in the answer to its first request. */
static void
work_on_open(struct conn *c)
{
    struct pki_identity *id = c->from.identity;
    struct work_count **at, *one;

    if (!id)
        return;
    at = work_count_at(work_of(c), id->fingerprint);
    if (!*at) {
        *at = mem_xcalloc(sizeof **at);
        snprintf((*at)->fingerprint, sizeof(*at)->fingerprint, "%.*s",
                 STR_FMT(id->fingerprint));
    }
    one = *at;
    one->n++;
    c->count = one;
    if (one->n <= c->listener->limits->per_identity)
        return;
    met_inc(MET_CONNS_OVER_IDENTITY);
    c->from.over = true;
}

static void
work_on_gone(struct conn *c)
{
    struct work_count *one = c->count, **at;

    if (!one || --one->n)
        return;
    at = work_count_at(work_of(c), str_of(one->fingerprint));
    must(*at == one);
    *at = one->next;
    free(one);
}

static const struct conn_ops work_conn_ops = {
    .on_open = work_on_open,
    .on_gone = work_on_gone,
};

/* ---- listeners ---- */

static bool
work_listen(struct work *w, struct err *e)
{
    const struct boot *b = w->env.boot;
    size_t n = b->listeners_n;

    w->listeners_n = n + b->admin_n;
    w->listeners =
        mem_alloc(w->boot_arena, (w->listeners_n + 1) * sizeof *w->listeners);
    for (size_t i = 0; i < w->listeners_n; i++) {
        struct conn_listener *l = &w->listeners[i];
        const struct cfg_listener *c = i < n ? &w->cfg.listeners[i] : NULL;
        const struct cfg_addr *addr =
            c ? &c->address : &w->cfg.admin[i - n].address;

        l->env = &w->env;
        l->ops = &work_conn_ops;
        l->index = (unsigned)i;
        l->is_unix = addr->is_unix;
        l->name = c ? c->name : addr->text;
        l->limits = c ? &c->limits : &w->admin_limits;
        l->req_ops = c ? &w->env.serve->ops : &w->admin.ops;
        l->explain = c && c->explain;
        if (c) {
            l->tls =
                tls_ctx_new(c, &b->listeners[i], w->env.identities, &w->cas, e);
            if (!l->tls)
                return err_prefix(e, "%.*s: ", STR_FMT(c->at));
        }
        if (!conn_listen(l, c ? b->listeners[i].fd : b->admin_fds[i - n], e))
            return false;
    }
    return true;
}

/* ---- the supervisor ---- */

static void
work_maybe_leave(struct work *w)
{
    if (w->env.draining && !w->conns.n)
        uv_stop(&w->loop);
}

/* MSG_DRAIN: no new client; answer what is under way; leave. */
static void
work_drain(struct work *w)
{
    if (w->env.draining)
        return;
    w->env.draining = true;
    for (size_t i = 0; i < w->listeners_n; i++)
        uv_close(&w->listeners[i].h.handle, NULL);
    conn_stop_all(&w->conns);
    work_maybe_leave(w);
}

static bool
work_on_frame(void *data, const struct msg_frame *f, struct err *e)
{
    if (f->type != MSG_DRAIN)
        return err_set(e, ERR_CONFIG, "frame of type %d from the supervisor",
                       (int)f->type);
    work_drain(data);
    return true;
}

/* Without a supervisor nobody watches us. */
static void
work_on_supervisor_gone(void *data, const struct err *e)
{
    struct work *w = data;

    if (!e)
        return;  // it was us
    w->leaving = true;
    uv_stop(&w->loop);
}

static const struct msg_ops work_msg_ops = {
    .on_frame = work_on_frame,
    .on_gone = work_on_supervisor_gone,
};

static void
work_on_ping(uv_timer_t *timer)
{
    struct work *w = timer->data;
    struct err e;

    met_add(MET_LUA_BYTES,
            (int64_t)w->env.vm->bytes - (int64_t)met_mine->v[MET_LUA_BYTES]);
    msg_send(&w->chan, MSG_PING, S(""), &e);
    conn_expire(&w->conns, pki_now(time(NULL)));
}

/* While it is started, the loop does not sleep. */
static void
work_on_idle(uv_idle_t *h)
{
    (void)h;
}

static void
work_end_of_turn(struct work *w)
{
    if (conn_run_later(&w->conns))
        uv_idle_start(&w->idle, work_on_idle);
    else
        uv_idle_stop(&w->idle);
    log_flush();
    if (log_out.dropped) {
        met_add(MET_LOG_DROPPED, (int64_t)log_out.dropped);
        log_out.dropped = 0;
    }
    work_maybe_leave(w);
}

static void
work_on_prepare(uv_prepare_t *h)
{
    work_end_of_turn(h->data);
}

static void
work_on_check(uv_check_t *h)
{
    work_end_of_turn(h->data);
}

/* ---- birth ---- */

/* As many descriptors as we may have; two a connection at the most. */
static void
work_descriptors(void)
{
    struct rlimit r;

    if (getrlimit(RLIMIT_NOFILE, &r) != 0)
        return;
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
}

static bool
work_map_metrics(struct work *w, struct met_route **mine, struct err *e)
{
    const struct boot *b = w->env.boot;
    size_t routes = w->cfg.routes_n;
    void *p, *q;

    if (b->met_fd < 0 || b->route_met_fd < 0)
        return err_set(e, ERR_CONFIG, "no metrics slab");
    p = mmap(NULL, b->met_rows * sizeof(struct met_row), PROT_READ | PROT_WRITE,
             MAP_SHARED, b->met_fd, 0);
    q = mmap(NULL, (b->met_rows * routes + 1) * sizeof(struct met_route),
             PROT_READ | PROT_WRITE, MAP_SHARED, b->route_met_fd, 0);
    if (p == MAP_FAILED || q == MAP_FAILED)
        return err_set(e, ERR_CONFIG, "metrics slab: %s", strerror(errno));
    close(b->met_fd);
    close(b->route_met_fd);
    met_attach(p, b->met_slot);
    *mine = (struct met_route *)q + b->met_slot * routes;
    w->admin = (struct admin){.ops = admin_ops,
                              .env = &w->env,
                              .rows = p,
                              .rows_n = b->met_rows,
                              .routes = q};
    w->admin_limits = (struct cfg_limits){.head_ms = 5000,
                                          .body_ms = 5000,
                                          .write_ms = 5000,
                                          .idle_ms = 30000,
                                          .head_bytes = 8192,
                                          .head_fields = 50,
                                          .uri_bytes = 1024,
                                          .connections = 32,
                                          .handshakes = 32};
    return true;
}

static bool
work_open(struct work *w, struct err *e)
{
    struct boot *b = (struct boot *)(uintptr_t)w->env.boot;
    struct met_route *route_met = NULL;

    if (!cfg_load(w->boot_arena, b->cfg_json, &w->cfg, e) ||
        !work_map_metrics(w, &route_met, e) || !work_load_policy(w, e))
        return false;
    log_out.level = w->cfg.process.log_level;
    pki_clock_floor = w->cfg.process.clock_floor;
    if (time(NULL) < GATEWAY_EPOCH)
        log_at(LOG_WARN, "work",
               "this machine's clock is not set (it reads a "
               "time before this program was built): %s",
               pki_clock_floor ? "taking the day of the build for today"
                               : "no client is let in until it is");
    w->env.upstreams = up_new(&w->env, w->boot_arena);
    if (!bind_set_new(&w->env, w->boot_arena, e))
        return false;
    w->env.serve = serve_set_new(&w->env, w->boot_arena, route_met, e);
    if (!w->env.serve)
        return false;
    if (b->broker_fd >= 0) {
        w->env.exec = exec_new(&w->loop, b->broker_fd, &w->cfg, e);
        if (!w->env.exec)
            return false;
    }
    for (size_t i = 0; i < b->cas_n; i++)
        if (!pki_cas_add(&w->cas, w->cfg.cas.v[i], b->cas[i], e))
            return false;
    if (!work_listen(w, e))
        return false;
    boot_forget_keys(b);
    boot_settle();
    return msg_chan_init(&w->chan, &w->loop, BOOT_CHANNEL_FD, &work_msg_ops, w,
                         e) &&
           msg_send(&w->chan, MSG_READY, S(""), e);
}

/* A drained worker gives everything back, so that the leak checker has a say.
 * One that lost its supervisor just ends. */
static void
work_close(struct work *w)
{
    up_free(w->env.upstreams);
    exec_free(w->env.exec);
    msg_chan_close(&w->chan);
    uv_close((uv_handle_t *)&w->prepare, NULL);
    uv_close((uv_handle_t *)&w->check, NULL);
    uv_close((uv_handle_t *)&w->idle, NULL);
    uv_close((uv_handle_t *)&w->ping, NULL);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    vm_free(w->env.vm);
    pki_cache_free(w->env.identities);
    for (size_t i = 0; i < w->listeners_n; i++)
        tls_ctx_free(w->listeners[i].tls);
    pki_cas_free(&w->cas);
    sock_pool_fini(&w->conns.pool);
    if (uv_loop_close(&w->loop) != 0)
        log_at(LOG_WARN, "work", "a handle was still open at the end");
    wolfSSL_Cleanup();
    mem_arena_free(w->boot_arena);
    free(w);
}

static int
work_main(struct boot *boot)
{
    struct work *w = mem_xcalloc(sizeof *w);
    struct err e;

    work_descriptors();
    must(uv_loop_init(&w->loop) == 0);
    must(wolfSSL_Init() == WOLFSSL_SUCCESS);
    w->boot_arena = mem_arena_new((size_t)1 << 30);
    w->env = (struct env){.loop = &w->loop,
                          .boot = boot,
                          .cfg = &w->cfg,
                          .conns = &w->conns,
                          .identities = pki_cache_new()};
    w->conns.expires = INT64_MAX;
    w->conns.pool =
        (struct sock_pool){.loop = &w->loop, .scratch = mem_xmalloc(SOCK_READ)};
    if (!work_open(w, &e)) {
        log_at(LOG_FATAL, "work", "%s", e.msg);
        return 1;
    }
    uv_prepare_init(&w->loop, &w->prepare);
    uv_check_init(&w->loop, &w->check);
    uv_idle_init(&w->loop, &w->idle);
    uv_timer_init(&w->loop, &w->ping);
    w->prepare.data = w->check.data = w->ping.data = w;
    uv_prepare_start(&w->prepare, work_on_prepare);
    uv_check_start(&w->check, work_on_check);
    uv_timer_start(&w->ping, work_on_ping, WORK_PING_MS, WORK_PING_MS);
    log_out.batch = true;
    mem_last_words = log_flush;
    uv_run(&w->loop, UV_RUN_DEFAULT);
    if (!w->leaving)
        work_close(w);
    log_flush();
    return 0;
}

/* ==== 30 sup: the supervisor ================================================
 *
 * Reads scripts and certificates, binds the sockets, starts the others, and
 * watches them. It runs no Lua and parses nothing that came from the network;
 * where it was started as root, it alone stays root.
 *
 * A generation is one configuration and the processes that serve it. It comes
 * to life in steps, each a throw-away process or a wait, and only the last step
 * touches the generation that serves now:
 *
 *   CHECKING --> VERIFYING --> STARTING --> UP     (start, and each reload)
 *   evaluate     certificates  all workers
 *   the policy   and programs  said "ready"
 *
 * What goes wrong before the last step is one error line and nothing else. The
 * listening sockets are ours: a worker that dies, and a generation that goes,
 * leave the queue of new connections as it is.
 *
 * Entry   sup_main  sup_read_scripts  sup_read_certificates  sup_verify
 */
enum sup_state {
    SUP_CHECKING,
    SUP_VERIFYING,
    SUP_STARTING,
    SUP_UP,
    SUP_DRAINING,  // told all to finish
    SUP_STOPPING,  // killed all
    SUP_STATES
};

enum sup_event {
    SUP_EV_HUP,
    SUP_EV_TERM,
    SUP_EV_PASSED,  // the throw-away process of this step is content
    SUP_EV_READY,   // every worker of the next generation is ready
    SUP_EV_FAILED,  // the next generation is not to be: s->why
    SUP_EV_TIME,    // s->deadline is over
    SUP_EV_EMPTY,   // the last child is gone
    SUP_EVENTS
};

enum {
    SUP_CHILD_MAGIC = 0x53555043,
    SUP_STEP_MS = 10000,    // for each step of a load
    SUP_SILENT_MS = 10000,  // a worker that says nothing is stuck
    SUP_SWEEP_MS = 2000,    // for what programs left behind, at the end
    SUP_BACK_MIN_MS = 100,
    SUP_BACK_MAX_MS = 10000,
    SUP_ALIVE_MS = 10000,      // who lived that long begins at MIN again
    SUP_FILE_BYTES = 1 << 20,  // a certificate, key or CA file
    SUP_RESULT_BYTES = 16 << 20,
    SUP_DEPTH = 8,        // folders below the policy's
    SUP_ENTRIES = 20000,  // names looked at while searching for scripts
    SUP_BACKLOG = 4096,
    SUP_ROWS = 64,  // of the metrics slab, at least
    SUP_FDS = BOOT_FIRST_FD + BOOT_LISTENERS + BOOT_ADMINS + 3,
};

/* A bound socket. Lives for as long as a generation wants its address. Its
 * file, if it has one, is ours for as long as `fd` is open. */
struct sup_socket {
    struct sup_socket *next;
    struct cfg_addr addr;  // as asked for; text is owned
    struct str bound;      // as it is: port 0 became a number; owned
    int fd;                // -1: shut
    bool admin;
};

/* How long to wait before a process is started again. */
struct sup_back {
    uint64_t delay;  // ms
    uint64_t at;     // 0: nothing to start
};

struct sup_gen {
    unsigned number, workers;
    uint32_t drain_ms;
    enum log_level log_level;
    int worker_boot, broker_boot, verify_boot;  // broker_boot -1: no commands
    struct sup_socket **sockets;                // borrowed from s->sockets
    size_t listeners_n, sockets_n;              // listeners first, then admin
    int route_met_fd;
    uint64_t route_shape;      // equal shapes share a slab
    struct sup_child *broker;  // borrowed
    struct sup_back *respawn;  // per worker
    unsigned ready;            // workers
    unsigned children;         // alive or with an open channel
    bool told;                 // MSG_DRAIN was sent
};

/* Freed when it is reaped and its channel is closed. */
struct sup_child {
    unsigned magic;
    struct sup_child *next;
    struct sup *sup;
    struct sup_gen *gen;  // NULL for a check
    enum boot_role role;
    char name[24];  // "worker 1"
    pid_t pid;      // 0: reaped
    struct msg_chan chan;
    bool chan_open, ready, killed;
    int result;      // what a check wrote; -1: none
    unsigned index;  // of a worker, from 1
    int slot;        // its row of the metrics slab, or -1
    uint64_t born, heard;
    uint64_t deadline;  // of its draining; 0: none
};

/* What a load holds while it goes on; all of it is given back after. */
struct sup_load {
    struct mem_arena *arena;
    struct boot boot;
};

struct sup {
    uv_loop_t *loop;
    uv_signal_t signals[5];
    uv_timer_t timer;  // armed for the earliest deadline of all
    uint64_t timer_at;
    enum sup_state state;
    uint64_t deadline;  // of the state; 0: none
    const char *policy;
    struct sup_load *load;
    struct sup_gen *current, *next;
    struct sup_child *children, *checker;
    struct sup_socket *sockets;
    struct sup_back renew;  // of a generation whose broker died
    struct err why;
    int null_fd, met_fd;
    int children_fd;  // for jail_orphans()
    unsigned met_rows;
    bool *slots;  // which rows are leased
    unsigned number;
    bool reload_again;
    bool policy_too;  // the next load reads the scripts, and not files alone
    int exit_code;
};

/* Called upwards, in the order of a generation's life. */
static void sup_do(struct sup *, enum sup_event);
static void sup_arm(struct sup *);
static void sup_settle(struct sup *);

/* ---- files --------------------------------------------------------------- */

/* A whole regular file. A FIFO or device is refused and never waited for. */
static bool
sup_read_file(struct mem_arena *a, const char *path, size_t max,
              struct str *out, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;
    size_t got = 0;
    ssize_t n = 1;
    char *p;

    if (fd < 0 || fstat(fd, &st) != 0) {
        err_set(e, ERR_CONFIG, "%s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return false;
    }
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > max) {
        close(fd);
        return err_set(e, ERR_CONFIG,
                       S_ISREG(st.st_mode) ? "%s: larger than %zu bytes"
                                           : "%s: not a regular file",
                       path, max);
    }
    p = mem_alloc_raw(a, (size_t)st.st_size + 1);
    while (got < (size_t)st.st_size && n > 0) {
        n = read(fd, p + got, (size_t)st.st_size - got);
        if (n < 0 && errno == EINTR)
            n = 1;
        else if (n > 0)
            got += (size_t)n;
    }
    close(fd);
    if (n < 0)
        return err_set(e, ERR_CONFIG, "%s: %s", path, strerror(errno));
    p[got] = 0;
    *out = (struct str){p, got};
    return true;
}

/* The scripts found so far. */
struct sup_scripts {
    struct mem_arena *a;
    struct boot_file *v;  // BOOT_SCRIPTS of them
    size_t n, bytes, entries;
};

static bool
sup_add_script(struct sup_scripts *s, const char *path, struct err *e)
{
    struct boot_file *f = &s->v[s->n];

    for (size_t i = 0; i < s->n; i++)
        if (str_eq(s->v[i].name, str_of(path)))
            return true;  // the policy itself came first
    if (s->n == BOOT_SCRIPTS)
        return err_set(e, ERR_CONFIG,
                       "%s: more than %d scripts beside the "
                       "policy: give the policy a folder of its own",
                       path, BOOT_SCRIPTS);
    if (!sup_read_file(s->a, path, BOOT_SCRIPT_BYTES, &f->bytes, e))
        return false;
    s->bytes += f->bytes.n;
    if (s->bytes > BOOT_SCRIPT_BYTES)
        return err_set(e, ERR_CONFIG,
                       "%s: the scripts are together larger "
                       "than %d MiB",
                       path, BOOT_SCRIPT_BYTES >> 20);
    f->name = str_dup(s->a, str_of(path));
    s->n++;
    return true;
}

static int
sup_cmp_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The names in a folder, sorted, without hidden ones. */
static bool
sup_list(struct sup_scripts *s, const char *dir, char ***names, size_t *n,
         struct err *e)
{
    DIR *d = opendir(dir);
    size_t cap = 0;
    char **more;

    *n = 0;
    *names = NULL;
    if (!d)
        return err_set(e, ERR_CONFIG, "%s: %s", dir, strerror(errno));
    for (struct dirent *f; (f = readdir(d));) {
        if (++s->entries > SUP_ENTRIES)
            break;
        if (f->d_name[0] == '.')
            continue;
        if (*n == cap) {
            cap = cap ? 2 * cap : 16;
            more = mem_alloc(s->a, cap * sizeof *more);
            if (*n)
                memcpy(more, *names, *n * sizeof *more);
            *names = more;
        }
        (*names)[(*n)++] = str_c(s->a, str_of(f->d_name));
    }
    closedir(d);
    if (s->entries > SUP_ENTRIES)
        return err_set(e, ERR_CONFIG,
                       "%s: more than %d files beside the "
                       "policy: give the policy a folder of its own",
                       dir, SUP_ENTRIES);
    if (*n)
        qsort(*names, *n, sizeof **names, sup_cmp_names);
    return true;
}

/* All *.lua below `dir`. A linked file is followed (a ConfigMap is made of
 * them), a linked folder is not (it could lead in circles). */
static bool
sup_scan(struct sup_scripts *s, const char *dir, int depth, struct err *e)
{
    char **names, *path;
    size_t n;
    struct stat st;

    if (!sup_list(s, dir, &names, &n, e))
        return false;
    for (size_t i = 0; i < n; i++) {
        path = strcmp(dir, ".") == 0
                   ? names[i]
                   : mem_printf(s->a, "%s%s%s", dir,
                                strcmp(dir, "/") ? "/" : "", names[i]);
        if (lstat(path, &st) != 0)
            continue;  // gone again
        if (S_ISDIR(st.st_mode)) {
            if (depth < SUP_DEPTH && !sup_scan(s, path, depth + 1, e))
                return false;
        } else if (str_ends(str_of(names[i]), S(".lua"))) {
            if (!sup_add_script(s, path, e))
                return false;
        }
    }
    return true;
}

/* The policy and every *.lua in its folder and below. */
static bool
sup_read_scripts(struct mem_arena *a, const char *policy, struct boot *b,
                 struct err *e)
{
    struct sup_scripts s = {.a = a};
    const char *slash;
    char *dir;

    while (strncmp(policy, "./", 2) == 0 && policy[2] && policy[2] != '/')
        policy += 2;
    slash = strrchr(policy, '/');
    s.v = mem_alloc(a, BOOT_SCRIPTS * sizeof *s.v);
    if (!sup_add_script(&s, policy, e))
        return err_prefix(e, "policy: ");
    dir = slash == policy ? str_c(a, S("/"))
          : slash ? str_c(a, (struct str){policy, (size_t)(slash - policy)})
                  : str_c(a, S("."));
    if (!sup_scan(&s, dir, 0, e))
        return false;
    b->policy = str_dup(a, str_of(policy));
    b->scripts = s.v;
    b->scripts_n = s.n;
    return true;
}

/* The scripts that serve now, out of the bundle of their workers: a policy that
 * is being edited does not keep new certificates out. */
static bool
sup_keep_scripts(struct sup *s, struct mem_arena *a, struct boot *b)
{
    int fd = s->current->worker_boot;
    struct boot old;
    struct stat st;
    char *p;

    must(fstat(fd, &st) == 0);
    p = mem_alloc_raw(a, (size_t)st.st_size);
    must(pread(fd, p, (size_t)st.st_size, 0) == st.st_size &&
         boot_parse((struct str){p, (size_t)st.st_size}, a, &old, &s->why));
    b->policy = old.policy;
    b->scripts = old.scripts;
    b->scripts_n = old.scripts_n;
    return true;
}

/* Certificates, keys and CAs: read here, as root where we are root. */
static bool
sup_read_certificates(struct mem_arena *a, const struct cfg *c, struct boot *b,
                      struct err *e)
{
    b->listeners_n = c->listeners_n;
    b->listeners = mem_alloc(a, c->listeners_n * sizeof *b->listeners);
    for (size_t i = 0; i < c->listeners_n; i++) {
        const struct cfg_listener *l = &c->listeners[i];
        struct boot_listener *to = &b->listeners[i];

        to->fd = -1;
        if (!sup_read_file(a, str_c(a, l->certificate), SUP_FILE_BYTES,
                           &to->certificate, e) ||
            !sup_read_file(a, str_c(a, l->key), SUP_FILE_BYTES, &to->key, e) ||
            !sup_read_file(a, str_c(a, l->client_ca), SUP_FILE_BYTES,
                           &to->client_ca, e))
            return err_prefix(e, "%.*s: listener %.*s: ", STR_FMT(l->at),
                              STR_FMT(l->name));
    }
    b->cas_n = c->cas.n;
    b->cas = mem_alloc(a, c->cas.n * sizeof *b->cas);
    for (size_t i = 0; i < c->cas.n; i++)
        if (!sup_read_file(a, str_c(a, c->cas.v[i]), SUP_FILE_BYTES, &b->cas[i],
                           e))
            return err_prefix(e, "id.ca, or client_ca of a route: ");
    return true;
}

/* ---- users --------------------------------------------------------------- */

/* A number that can be an id; the highest means "none" to the kernel. */
static bool
sup_id(const char *text, uint32_t *id)
{
    uint64_t n;

    if (!str_u64(str_of(text), &n) || n >= UINT32_MAX)
        return false;
    *id = (uint32_t)n;
    return true;
}

/* Reads /etc/passwd itself: the C library's lookup may load modules and talk
 * to daemons, and none of that belongs into a supervisor. */
static bool
sup_find_user(const char *name, uid_t *uid, gid_t *gid)
{
    FILE *f = fopen("/etc/passwd", "re");
    bool found = sup_id(name, uid) && sup_id(name, gid);

    for (struct passwd *p; f && (p = fgetpwent(f));)
        if (strcmp(p->pw_name, name) == 0) {
            *uid = p->pw_uid;
            *gid = p->pw_gid;
            found = true;
            break;
        }
    if (f)
        fclose(f);
    return found;
}

static bool
sup_find_group(const char *name, gid_t *gid)
{
    FILE *f = fopen("/etc/group", "re");
    bool found = sup_id(name, gid);

    for (struct group *g; f && (g = fgetgrent(f));)
        if (strcmp(g->gr_name, name) == 0) {
            *gid = g->gr_gid;
            found = true;
            break;
        }
    if (f)
        fclose(f);
    return found;
}

/* must_have = { "uid" } is kept only where the children change their user. */
static bool
sup_check_uid(const struct cfg_process *p, bool drop, struct err *e)
{
    for (size_t i = 0; !drop && i < p->must_have.n; i++)
        if (str_eq(p->must_have.v[i], S("uid"))) {
            err_set(e, ERR_CONFIG,
                    "process: must_have: uid needs a start as root, and a "
                    "process.user that is not root");
            return p->at.n ? err_prefix(e, "%.*s: ", STR_FMT(p->at)) : false;
        }
    return true;
}

/* Whom the children become. Only root can become somebody else. */
static bool
sup_user(struct mem_arena *a, const struct cfg_process *p, struct boot *b,
         struct err *e)
{
    b->uid = geteuid();
    b->gid = getegid();
    b->drop = false;
    if (b->uid != 0)
        return sup_check_uid(p, false, e);
    if (!sup_find_user(str_c(a, p->user.n ? p->user : S("nobody")), &b->uid,
                       &b->gid))
        return err_set(e, ERR_CONFIG,
                       "process.user: there is no user \"%.*s\" "
                       "in /etc/passwd: name one, or a number",
                       STR_FMT(p->user));
    if (p->group.n && !sup_find_group(str_c(a, p->group), &b->gid))
        return err_set(e, ERR_CONFIG,
                       "process.group: there is no group "
                       "\"%.*s\" in /etc/group: name one, or a number",
                       STR_FMT(p->group));
    b->drop = b->uid != 0;
    if (!b->drop)
        log_at(LOG_WARN, "sup",
               "process.user is root: workers that parse the "
               "network run as root; name another user");
    return sup_check_uid(p, b->drop, e);
}

/* ---- sockets ------------------------------------------------------------- */

/* A socket file that nobody answers on was left by a process that died. */
static bool
sup_clear_stale(const struct cfg_addr *a, struct err *e)
{
    const struct sockaddr_un *un = (const void *)&a->sa;
    struct stat st;
    int fd, r;

    if (lstat(un->sun_path, &st) != 0)
        return true;
    if (!S_ISSOCK(st.st_mode))
        return err_set(e, ERR_CONFIG, "%s exists, and is not a socket",
                       un->sun_path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    r = connect(fd, (const struct sockaddr *)&a->sa, a->len);
    if (fd >= 0)
        close(fd);
    if (r == 0 || errno != ECONNREFUSED)
        return err_set(e, ERR_CONFIG, "%s: another process listens on it",
                       un->sun_path);
    unlink(un->sun_path);
    return true;
}

/* "*" is both families where there is IPv6, and IPv4 where there is none. */
static int
sup_open_socket(const struct cfg_addr *a, struct sockaddr_storage *sa,
                socklen_t *len)
{
    bool any = str_starts(a->text, S("*:"));
    int type = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, on = 1, off = 0;
    int fd = socket(a->sa.ss_family, type, 0);
    const struct sockaddr_in6 *six = (const void *)&a->sa;

    *sa = a->sa;
    *len = a->len;
    if (fd < 0 && errno == EAFNOSUPPORT && any) {
        struct sockaddr_in four = {.sin_family = AF_INET,
                                   .sin_port = six->sin6_port};

        fd = socket(AF_INET, type, 0);
        memset(sa, 0, sizeof *sa);
        memcpy(sa, &four, sizeof four);
        *len = sizeof four;
    }
    if (fd >= 0 && !a->is_unix)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd >= 0 && sa->ss_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, any ? &off : &on, sizeof on);
    return fd;
}

/* The address a socket really has, as "host:port". */
static struct str
sup_bound(int fd, const struct cfg_addr *a)
{
    struct sockaddr_storage sa = {0};
    socklen_t len = sizeof sa;
    char host[INET6_ADDRSTRLEN] = "?", text[INET6_ADDRSTRLEN + 16];
    const struct sockaddr_in *four = (const void *)&sa;
    const struct sockaddr_in6 *six = (const void *)&sa;

    snprintf(text, sizeof text, "%s", "");
    getsockname(fd, (struct sockaddr *)&sa, &len);
    if (sa.ss_family == AF_INET) {
        inet_ntop(AF_INET, &four->sin_addr, host, sizeof host);
        snprintf(text, sizeof text, "%s:%u", host, ntohs(four->sin_port));
    } else if (sa.ss_family == AF_INET6) {
        inet_ntop(AF_INET6, &six->sin6_addr, host, sizeof host);
        snprintf(text, sizeof text, "[%s]:%u", host, ntohs(six->sin6_port));
    } else {
        return (struct str){
            memcpy(mem_xmalloc(a->text.n), a->text.p, a->text.n), a->text.n};
    }
    return (struct str){memcpy(mem_xmalloc(strlen(text)), text, strlen(text)),
                        strlen(text)};
}

static bool
sup_bind(const struct cfg_addr *a, int *out, struct err *e)
{
    struct sockaddr_storage sa;
    socklen_t len;
    mode_t mask;
    int fd, r;

    if (a->is_unix && !sup_clear_stale(a, e))
        return false;
    fd = sup_open_socket(a, &sa, &len);
    mask = umask(0177);  // a Unix socket is for our own user
    r = fd < 0 ? -1 : bind(fd, (struct sockaddr *)&sa, len);
    umask(mask);
    if (r == 0)
        r = listen(fd, SUP_BACKLOG);
    if (r != 0) {
        err_set(e, ERR_CONFIG, "cannot listen on %.*s: %s%s", STR_FMT(a->text),
                strerror(errno),
                errno == EACCES && !a->is_unix
                    ? ": a port below 1024 needs root or CAP_NET_BIND_SERVICE"
                : errno == EADDRINUSE ? ": another process has it"
                                      : "");
        if (fd >= 0)
            close(fd);
        return false;
    }
    *out = fd;
    return true;
}

static bool
sup_same_addr(const struct cfg_addr *a, const struct cfg_addr *b)
{
    return a->len == b->len && memcmp(&a->sa, &b->sa, a->len) == 0 &&
           str_starts(a->text, S("*:")) == str_starts(b->text, S("*:"));
}

/* The socket of an address: the one that is there, or a new one. Two listeners
 * on port 0 are two sockets, so one that `g` has already does not count. */
static struct sup_socket *
sup_socket_get(struct sup *s, const struct sup_gen *g, const struct cfg_addr *a,
               bool admin, struct err *e)
{
    struct sup_socket *k;
    int fd;

    for (k = s->sockets; k; k = k->next) {
        bool taken = false;

        for (size_t i = 0; i < g->sockets_n; i++)
            taken |= g->sockets[i] == k;
        if (!taken && k->admin == admin && sup_same_addr(&k->addr, a))
            return k;
    }
    if (!sup_bind(a, &fd, e))
        return NULL;
    k = mem_xcalloc(sizeof *k);
    k->addr = *a;
    k->addr.text.p = memcpy(mem_xmalloc(a->text.n), a->text.p, a->text.n);
    k->bound = sup_bound(fd, a);
    k->fd = fd;
    k->admin = admin;
    k->next = s->sockets;
    s->sockets = k;
    return k;
}

static bool
sup_gen_has(const struct sup_gen *g, const struct sup_socket *k)
{
    for (size_t i = 0; g && i < g->sockets_n; i++)
        if (g->sockets[i] == k)
            return true;
    return false;
}

/* Nobody new finds us there: the path is free for the next instance, and what
 * stands there later is not ours. */
static void
sup_socket_shut(struct sup_socket *k)
{
    const struct sockaddr_un *un = (const void *)&k->addr.sa;

    if (k->fd < 0)
        return;
    if (k->addr.is_unix)
        unlink(un->sun_path);
    close(k->fd);
    k->fd = -1;
}

static void
sup_socket_free(struct sup_socket *k)
{
    sup_socket_shut(k);
    free((void *)(uintptr_t)k->addr.text.p);
    free((void *)(uintptr_t)k->bound.p);
    free(k);
}

/* Closes what neither the current nor the next generation listens on. */
static void
sup_sockets_trim(struct sup *s)
{
    struct sup_socket **at = &s->sockets, *k;

    while ((k = *at)) {
        if (sup_gen_has(s->current, k) || sup_gen_has(s->next, k)) {
            at = &k->next;
            continue;
        }
        *at = k->next;
        sup_socket_free(k);
    }
}

/* ---- metrics slabs ------------------------------------------------------- */

static int
sup_slab_new(const char *name, size_t bytes, struct err *e)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
        err_set(e, ERR_CONFIG, "memory file: %s", strerror(errno));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}

/* One slab for the life of the supervisor, made with the first generation: rows
 * for its workers, and for those of earlier ones that still drain. */
static bool
sup_slab(struct sup *s, unsigned workers, struct err *e)
{
    if (s->met_fd < 0) {
        s->met_rows = 8 * workers < SUP_ROWS ? SUP_ROWS : 8 * workers;
        s->met_fd = sup_slab_new("gateway metrics",
                                 s->met_rows * sizeof(struct met_row), e);
        if (s->met_fd < 0)
            return false;
        s->slots = mem_xcalloc(s->met_rows * sizeof *s->slots);
    }
    return workers <= s->met_rows / 2 ||
           err_set(e, ERR_CONFIG,
                   "process.workers is %u, and a reload can go "
                   "up to %u: start gateway again",
                   workers, s->met_rows / 2);
}

static int
sup_slot_lease(struct sup *s)
{
    for (unsigned i = 0; i < s->met_rows; i++)
        if (!s->slots[i]) {
            s->slots[i] = true;
            return (int)i;
        }
    return -1;
}

/* FNV-1a over what the rows of the slab stand for. */
static uint64_t
sup_route_shape(const struct cfg *c, unsigned rows)
{
    uint64_t h = UINT64_C(14695981039346656037) ^ rows;

    for (size_t i = 0; i < c->routes_n; i++) {
        const struct cfg_route *t = &c->routes[i];

        h = (h ^ t->method_mask) * UINT64_C(1099511628211);
        for (size_t j = 0; j < t->path.n; j++)
            h = (h ^ (unsigned char)t->path.p[j]) * UINT64_C(1099511628211);
        for (size_t j = 0; j < t->host.n; j++)
            h = (h ^ (unsigned char)t->host.p[j]) * UINT64_C(1099511628211);
        h = (h ^ 0x100) * UINT64_C(1099511628211);
    }
    return h;
}

/* Routes that did not change keep their counts through a reload. */
static bool
sup_route_slab(struct sup *s, const struct cfg *c, struct sup_gen *g,
               struct err *e)
{
    size_t rows = s->met_rows * c->routes_n + 1;  // never empty

    g->route_shape = sup_route_shape(c, s->met_rows);
    if (s->current && s->current->route_shape == g->route_shape) {
        g->route_met_fd = fcntl(s->current->route_met_fd, F_DUPFD_CLOEXEC, 0);
        return g->route_met_fd >= 0 ||
               err_set(e, ERR_CONFIG, "dup: %s", strerror(errno));
    }
    g->route_met_fd = sup_slab_new("gateway route metrics",
                                   rows * sizeof(struct met_route), e);
    return g->route_met_fd >= 0;
}

/* ---- generations --------------------------------------------------------- */

static void
sup_close(int fd)
{
    if (fd >= 0)
        close(fd);
}

static struct sup_gen *
sup_gen_new(struct sup *s)
{
    struct sup_gen *g = mem_xcalloc(sizeof *g);

    g->number = ++s->number;
    g->worker_boot = g->broker_boot = g->verify_boot = g->route_met_fd = -1;
    return g;
}

static void
sup_gen_free(struct sup_gen *g)
{
    if (!g)
        return;
    must(g->children == 0);
    sup_close(g->worker_boot);
    sup_close(g->broker_boot);
    sup_close(g->verify_boot);
    sup_close(g->route_met_fd);
    free(g->sockets);
    free(g->respawn);
    free(g);
}

/* The same configuration for new processes: after its broker died. */
static struct sup_gen *
sup_gen_clone(struct sup *s, const struct sup_gen *old)
{
    struct sup_gen *g = mem_xcalloc(sizeof *g);
    size_t bytes = old->sockets_n * sizeof(struct sup_socket *);

    *g = *old;
    g->number = ++s->number;
    g->worker_boot = fcntl(old->worker_boot, F_DUPFD_CLOEXEC, 0);
    g->broker_boot = fcntl(old->broker_boot, F_DUPFD_CLOEXEC, 0);
    g->verify_boot = -1;
    g->route_met_fd = fcntl(old->route_met_fd, F_DUPFD_CLOEXEC, 0);
    g->sockets = memcpy(mem_xmalloc(bytes), old->sockets, bytes);
    g->respawn = mem_xcalloc(g->workers * sizeof *g->respawn);
    g->broker = NULL;
    g->ready = g->children = 0;
    g->told = false;
    return g;
}

static void
sup_load_free(struct sup *s)
{
    struct sup_load *l = s->load;

    s->load = NULL;
    if (!l)
        return;
    boot_forget_keys(&l->boot);
    mem_arena_free(l->arena);
    free(l);
}

static bool
sup_gen_sockets(struct sup *s, struct sup_gen *g, const struct cfg *c,
                struct err *e)
{
    g->sockets = mem_xcalloc((c->listeners_n + c->admin_n) *
                             sizeof(struct sup_socket *));
    for (size_t i = 0; i < c->listeners_n + c->admin_n; i++) {
        bool admin = i >= c->listeners_n;
        const struct cfg_addr *a = admin ? &c->admin[i - c->listeners_n].address
                                         : &c->listeners[i].address;
        struct str at =
            admin ? c->admin[i - c->listeners_n].at : c->listeners[i].at;

        g->sockets[i] = sup_socket_get(s, g, a, admin, e);
        if (!g->sockets[i])
            return err_prefix(e, "%.*s: ", STR_FMT(at));
        g->sockets_n++;
    }
    g->listeners_n = c->listeners_n;
    return true;
}

/* The values of the variables that the policy asked for, and no others. */
static void
sup_boot_env(struct mem_arena *a, const struct cfg *c, struct boot *b)
{
    b->env_n = c->env.n;
    b->env = mem_alloc(a, c->env.n * sizeof *b->env);
    for (size_t i = 0; i < c->env.n; i++) {
        const char *v = getenv(str_c(a, c->env.v[i]));

        b->env[i] = (struct boot_env){c->env.v[i], str_of(v), v != NULL};
    }
}

/* One bundle per role, each with what that role needs and nothing more. */
static bool
sup_gen_bundles(struct sup_gen *g, const struct cfg *c, const struct boot *all,
                struct err *e)
{
    struct boot b = *all;

    b.role = BOOT_WORKER;
    b.broker_fd = c->commands_n ? 0 : -1;
    g->worker_boot = boot_write(&b, e);
    if (g->worker_boot < 0)
        return false;
    b.scripts_n = b.env_n = b.admin_n = 0;
    b.met_fd = b.route_met_fd = b.broker_fd = -1;
    b.role = BOOT_VERIFY;
    g->verify_boot = boot_write(&b, e);
    if (g->verify_boot < 0)
        return false;
    if (!c->commands_n)
        return true;
    b.listeners_n = 0;
    b.role = BOOT_BROKER;
    g->broker_boot = boot_write(&b, e);
    return g->broker_boot >= 0;
}

static unsigned
sup_workers(const struct cfg *c)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);

    if (c->process.workers)
        return c->process.workers;
    return n < 1 ? 1 : n > CFG_WORKERS_MAX ? CFG_WORKERS_MAX : (unsigned)n;
}

/* What `run` demands beyond what `cfg_load` does. */
static bool
sup_servable(const struct cfg *c, struct err *e)
{
    if (!c->listeners_n)
        return err_set(e, ERR_CONFIG,
                       "the policy declares no listener: add "
                       "gateway.listen { address = ..., certificate = ..., key "
                       "= ..., client_ca = ... }");
    return true;
}

/* From the plain configuration to a generation that could be started. */
static bool
sup_configure(struct sup *s, struct str json, struct err *e)
{
    struct sup_load *l = s->load;
    struct boot *b = &l->boot;
    struct sup_gen *g;
    struct cfg c;

    if (!cfg_load(l->arena, json, &c, e) || !sup_servable(&c, e))
        return false;
    g = s->next = sup_gen_new(s);
    g->workers = sup_workers(&c);
    g->drain_ms = c.process.drain_ms;
    g->log_level = c.process.log_level;
    g->respawn = mem_xcalloc(g->workers * sizeof *g->respawn);
    b->cfg_json = c.text;
    b->workers = g->workers;
    b->generation = g->number;
    b->admin_n = c.admin_n;
    if (!sup_user(l->arena, &c.process, b, e) ||
        !sup_read_certificates(l->arena, &c, b, e) ||
        !sup_gen_sockets(s, g, &c, e) || !sup_slab(s, g->workers, e) ||
        !sup_route_slab(s, &c, g, e))
        return false;
    sup_boot_env(l->arena, &c, b);
    b->met_fd = s->met_fd;
    b->met_rows = s->met_rows;
    b->route_met_fd = g->route_met_fd;
    return sup_gen_bundles(g, &c, b, e);
}

/* ---- children ------------------------------------------------------------ */

/* Sanitizers are told what to do through the environment; the product's
 * children get none. */
static const char *const sup_env_kept[] = {
#if defined(__SANITIZE_ADDRESS__) || defined(GATEWAY_TEST_DUMPABLE)
    "ASAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS", "GATEWAY_DUMPABLE",
#endif
    NULL,
};

/* In the child: descriptors, session and signals as the contract says, then
 * this binary again. */
static _Noreturn void
sup_exec(char *const *argv, char *const *env, const int *fds, size_t n,
         pid_t parent)
{
    int high[SUP_FDS];
    sigset_t none;

    for (size_t i = 0; i < n; i++)  // out of the way of each other
        if ((high[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, SUP_FDS)) < 0)
            _exit(126);
    for (size_t i = 0; i < n; i++)
        if (dup2(high[i], (int)i) < 0)
            _exit(126);
    if (syscall(SYS_close_range, (unsigned)n, ~0u, 0u) != 0)
        _exit(126);
    // a session of its own: ^C at a terminal is for the supervisor alone
    setsid();
    prctl(PR_SET_PDEATHSIG, (long)SIGKILL, 0L, 0L, 0L);
    if (getppid() != parent)
        _exit(126);
    for (int i = 1; i < NSIG; i++)
        signal(i, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve("/proc/self/exe", argv, env);
    _exit(127);
}

/* Signals stay blocked until the child has taken our handlers off: they would
 * write to pipes that it shares with us. */
static pid_t
sup_fork(char *const *argv, char *const *env, const int *fds, size_t n)
{
    sigset_t all, old;
    pid_t pid, parent = getpid();

    must(n <= SUP_FDS);
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &old);
    pid = fork();
    if (pid == 0)
        sup_exec(argv, env, fds, n, parent);
    sigprocmask(SIG_SETMASK, &old, NULL);
    return pid;
}

static const char *
sup_role_name(enum boot_role role)
{
    static const char *const names[] = {
        [BOOT_CHECK] = "check",
        [BOOT_WORKER] = "worker",
        [BOOT_BROKER] = "broker",
        [BOOT_VERIFY] = "verify",
    };

    return names[role];
}

/* Starts this binary in a role. Only the evaluation of a policy sees our
 * environment. */
static pid_t
sup_spawn(enum boot_role role, const char *name, unsigned index, int slot,
          const int *fds, size_t n)
{
    char title[48], number[16], row[16];
    char *kept[8] = {NULL}, text[8][256];
    char *argv[] = {title,  (char[]){"--role"}, NULL, (char[]){"--index"},
                    number, (char[]){"--slot"}, row,  NULL};
    char role_name[16];
    size_t k = 0;

    snprintf(title, sizeof title, "gateway: %s", name);
    snprintf(role_name, sizeof role_name, "%s", sup_role_name(role));
    snprintf(number, sizeof number, "%u", index);
    snprintf(row, sizeof row, "%d", slot < 0 ? 0 : slot);
    argv[2] = role_name;
    for (size_t i = 0; sup_env_kept[i]; i++) {
        const char *v = getenv(sup_env_kept[i]);

        if (v && snprintf(text[k], sizeof text[k], "%s=%s", sup_env_kept[i],
                          v) < (int)sizeof text[k]) {
            kept[k] = text[k];
            k++;
        }
    }
    return sup_fork(argv, role == BOOT_CHECK ? environ : kept, fds, n);
}

static void sup_child_over(struct sup_child *);

static bool
sup_all_ready(const struct sup_gen *g)
{
    return g->ready == g->workers &&
           (g->broker_boot < 0 || (g->broker && g->broker->ready));
}

static bool
sup_on_frame(void *data, const struct msg_frame *f, struct err *e)
{
    struct sup_child *c = OBJ(struct sup_child, SUP_CHILD, data);
    struct sup *s = c->sup;

    if (f->body.n || (f->type != MSG_READY && f->type != MSG_PING))
        return err_set(e, ERR_NET, "%s sent frame %u, which it may not",
                       c->name, f->type);
    c->heard = uv_now(s->loop);
    if (f->type == MSG_PING || c->ready)
        return true;
    c->ready = true;
    c->gen->ready += c->role == BOOT_WORKER;
    if (c->gen == s->next && sup_all_ready(c->gen))
        sup_do(s, SUP_EV_READY);
    return true;
}

/* A child that broke its channel is not trusted any further. */
static void
sup_on_gone(void *data, const struct err *why)
{
    struct sup_child *c = OBJ(struct sup_child, SUP_CHILD, data);

    c->chan_open = false;
    if (c->pid && why && why->kind != ERR_PEER_GONE) {
        log_at(LOG_ERROR, "sup", "%s is killed: %s", c->name, why->msg);
        c->killed = true;
    }
    // nobody can tell it anything any more; one that drains is about to leave
    if (c->pid && (!c->gen || !c->gen->told || c->killed))
        kill(c->pid, SIGKILL);
    sup_child_over(c);
}

static const struct msg_ops sup_ops = {
    .on_frame = sup_on_frame,
    .on_gone = sup_on_gone,
};

static struct sup_child *
sup_child_new(struct sup *s, struct sup_gen *g, enum boot_role role,
              unsigned index)
{
    struct sup_child *c = obj_new(sizeof *c, SUP_CHILD_MAGIC);

    c->sup = s;
    c->gen = g;
    c->role = role;
    c->index = index;
    c->result = c->slot = -1;
    c->born = c->heard = uv_now(s->loop);
    snprintf(c->name, sizeof c->name, role == BOOT_WORKER ? "%s %u" : "%s",
             sup_role_name(role), index);
    c->next = s->children;
    s->children = c;
    if (g)
        g->children++;
    return c;
}

/* Frees a child of which nothing is left, and its generation with the last. */
static void
sup_child_over(struct sup_child *c)
{
    struct sup *s = c->sup;
    struct sup_child **at = &s->children;
    struct sup_gen *g = c->gen;

    if (c->pid || c->chan_open)
        return;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    sup_close(c->result);
    if (c->slot >= 0)
        s->slots[c->slot] = false;
    if (g && g->broker == c)
        g->broker = NULL;
    obj_free(c);
    if (g && --g->children == 0 && g != s->current && g != s->next)
        sup_gen_free(g);
    if (!s->children)
        sup_do(s, SUP_EV_EMPTY);
}

/* Starts `c` with the first `n` descriptors of `fds`; [3] is our end's partner
 * for a child with a channel. */
static bool
sup_child_start(struct sup_child *c, int *fds, size_t n, struct err *e)
{
    struct sup *s = c->sup;
    int pair[2] = {-1, -1};
    bool channel = c->result < 0;

    if (channel &&
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
                   pair) != 0)
        return err_set(e, ERR_CONFIG, "socketpair: %s", strerror(errno));
    fds[0] = s->null_fd;
    fds[1] = channel ? log_out.fd : c->result;
    fds[2] = log_out.fd;
    fds[3] = channel ? pair[1] : s->null_fd;
    c->pid = sup_spawn(c->role, c->name, c->index, c->slot, fds, n);
    if (c->pid < 0)
        err_set(e, ERR_CONFIG, "%s: fork: %s", c->name, strerror(errno));
    sup_close(pair[1]);
    if (c->pid < 0) {
        c->pid = 0;
        sup_close(pair[0]);
        return false;
    }
    if (!channel)
        return true;
    if (!msg_chan_init(&c->chan, s->loop, pair[0], &sup_ops, c, e)) {
        close(pair[0]);
        kill(c->pid, SIGKILL);
        return false;
    }
    c->chan_open = true;
    return true;
}

/* A throw-away process that leaves its answer in a memory file. */
static bool
sup_start_check(struct sup *s, enum boot_role role, int boot_fd, struct err *e)
{
    struct sup_child *c = sup_child_new(s, NULL, role, 0);
    int fds[SUP_FDS];

    c->result = memfd_create("gateway result", MFD_CLOEXEC);
    fds[BOOT_FD] = boot_fd;
    if (c->result < 0 || !sup_child_start(c, fds, BOOT_FIRST_FD, e)) {
        if (c->result < 0)
            err_set(e, ERR_CONFIG, "memory file: %s", strerror(errno));
        sup_child_over(c);
        return false;
    }
    s->checker = c;
    return true;
}

static bool
sup_start_broker(struct sup *s, struct sup_gen *g, struct err *e)
{
    struct sup_child *c = sup_child_new(s, g, BOOT_BROKER, 0);
    int fds[SUP_FDS];

    fds[BOOT_FD] = g->broker_boot;
    if (!sup_child_start(c, fds, BOOT_FIRST_FD, e)) {
        sup_child_over(c);
        return false;
    }
    g->broker = c;
    return true;
}

/* The worker's end of a new channel to the broker, which gets the other. */
static bool
sup_connect_broker(struct sup_gen *g, int *end, struct err *e)
{
    int pair[2];
    bool ok;

    if (!g->broker || !g->broker->chan_open)
        return err_set(e, ERR_CONFIG, "the broker is gone");
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
                   pair) != 0)
        return err_set(e, ERR_CONFIG, "socketpair: %s", strerror(errno));
    ok = msg_send_fd(&g->broker->chan, MSG_WORKER, S(""), pair[1], e);
    close(pair[1]);
    *end = pair[0];
    if (!ok)
        close(pair[0]);
    return ok;
}

static bool
sup_start_worker(struct sup *s, struct sup_gen *g, unsigned index,
                 struct err *e)
{
    struct sup_child *c = sup_child_new(s, g, BOOT_WORKER, index);
    int fds[SUP_FDS], broker = -1;
    size_t n = BOOT_FIRST_FD;
    bool ok;

    c->slot = sup_slot_lease(s);
    ok =
        c->slot >= 0 || err_set(e, ERR_CONFIG,
                                "too many workers of earlier generations still "
                                "drain: try again when they are done");
    ok = ok && (g->broker_boot < 0 || sup_connect_broker(g, &broker, e));
    fds[BOOT_FD] = g->worker_boot;
    for (size_t i = 0; i < g->sockets_n; i++)
        fds[n++] = g->sockets[i]->fd;
    fds[n++] = s->met_fd;
    fds[n++] = g->route_met_fd;
    if (broker >= 0)
        fds[n++] = broker;
    ok = ok && sup_child_start(c, fds, n, e);
    sup_close(broker);
    if (!ok)
        sup_child_over(c);
    return ok;
}

static void
sup_kill(struct sup_child *c)
{
    c->killed = true;
    if (c->pid)
        kill(c->pid, SIGKILL);
}

/* Kills every child of `g`, or of all where `g` is NULL. */
static void
sup_kill_all(struct sup *s, const struct sup_gen *g)
{
    for (struct sup_child *c = s->children; c; c = c->next)
        if (!g || c->gen == g)
            sup_kill(c);
}

/* Tells the workers of `g` to finish. Its broker follows when they are gone. */
static void
sup_tell_drain(struct sup *s, struct sup_gen *g)
{
    struct err e;

    g->told = true;
    for (struct sup_child *c = s->children; c; c = c->next) {
        if (c->gen != g || c->role != BOOT_WORKER || c->deadline)
            continue;
        c->deadline = uv_now(s->loop) + g->drain_ms + 1;
        if (!c->chan_open || !msg_send(&c->chan, MSG_DRAIN, S(""), &e))
            sup_kill(c);
    }
    for (unsigned i = 0; i < g->workers; i++)
        g->respawn[i].at = 0;
}

/* A broker whose last worker is gone has nobody to run programs for. */
static void
sup_release_broker(struct sup *s, struct sup_gen *g)
{
    struct err e;

    if (!g->told || !g->broker || g->broker->deadline)
        return;
    for (struct sup_child *c = s->children; c; c = c->next)
        if (c->gen == g && c->role == BOOT_WORKER && c->pid)
            return;
    g->broker->deadline = uv_now(s->loop) + SUP_STEP_MS;
    if (!g->broker->chan_open ||
        !msg_send(&g->broker->chan, MSG_DRAIN, S(""), &e))
        sup_kill(g->broker);
}

/* ---- what a load does, step by step -------------------------------------- */

static void
sup_enter(struct sup *s, enum sup_state state, uint64_t ms)
{
    s->state = state;
    s->deadline = ms ? uv_now(s->loop) + ms : 0;
    sup_arm(s);
}

/* Step 1: the scripts are read, once, and a throw-away process evaluates
 * them. */
static void
sup_begin(struct sup *s)
{
    struct sup_load *l = s->load = mem_xcalloc(sizeof *l);
    int fd = -1;
    bool ok;

    s->reload_again = false;
    l->arena = mem_arena_new((size_t)256 << 20);
    l->boot = (struct boot){
        .role = BOOT_CHECK, .met_fd = -1, .route_met_fd = -1, .broker_fd = -1};
    sup_enter(s, SUP_CHECKING, SUP_STEP_MS);
    ok = s->policy_too || !s->current
             ? sup_read_scripts(l->arena, s->policy, &l->boot, &s->why)
             : sup_keep_scripts(s, l->arena, &l->boot);
    s->policy_too = false;
    if (ok) {
        fd = boot_write(&l->boot, &s->why);
        ok = fd >= 0 && sup_start_check(s, BOOT_CHECK, fd, &s->why);
    }
    sup_close(fd);
    if (!ok)
        sup_do(s, SUP_EV_FAILED);
}

/* What a throw-away process wrote. */
static bool
sup_result(struct sup *s, int fd, struct mem_arena *a, struct str *out)
{
    struct stat st;
    ssize_t n;
    char *p;

    if (fstat(fd, &st) != 0 || st.st_size > SUP_RESULT_BYTES)
        return err_set(&s->why, ERR_CONFIG,
                       "the plain configuration is larger "
                       "than %d MiB",
                       SUP_RESULT_BYTES >> 20);
    p = mem_alloc_raw(a, (size_t)st.st_size + 1);
    n = pread(fd, p, (size_t)st.st_size, 0);
    if (n < 0 || n != st.st_size)
        return err_set(&s->why, ERR_CONFIG,
                       "the result of the check cannot be "
                       "read");
    p[n] = 0;
    *out = (struct str){p, (size_t)n};
    return true;
}

/* Step 2: the policy was evaluated; now sockets and certificates, and a
 * process that has a look at them. */
static void
sup_checked(struct sup *s)
{
    struct str json;
    bool ok;

    ok = sup_result(s, s->checker->result, s->load->arena, &json) &&
         sup_configure(s, json, &s->why) &&
         sup_start_check(s, BOOT_VERIFY, s->next->verify_boot, &s->why);
    sup_load_free(s);
    if (!ok) {
        sup_do(s, SUP_EV_FAILED);
        return;
    }
    sup_enter(s, SUP_VERIFYING, SUP_STEP_MS);
}

static bool
sup_start_all(struct sup *s, struct sup_gen *g, struct err *e)
{
    if (g->broker_boot >= 0 && !sup_start_broker(s, g, e))
        return false;
    for (unsigned i = 1; i <= g->workers; i++)
        if (!sup_start_worker(s, g, i, e))
            return false;
    return true;
}

/* Step 3: all is well on paper; start the processes. */
static void
sup_verified(struct sup *s)
{
    sup_close(s->next->verify_boot);
    s->next->verify_boot = -1;
    sup_enter(s, SUP_STARTING, SUP_STEP_MS);
    if (!sup_start_all(s, s->next, &s->why))
        sup_do(s, SUP_EV_FAILED);
}

static void
sup_log_addresses(struct log_line *l, const char *key, const struct sup_gen *g,
                  size_t from, size_t to)
{
    if (!log_key(l, key))
        return;
    for (size_t i = from; i < to; i++) {
        if (i > from && l->n > LOG_LINE - LOG_TAIL - 32) {
            l->cut = true;  // no room for another
            break;
        }
        log_raw(l, i == from ? "[\"" : ",\"", 2);
        log_escape(l, g->sockets[i]->bound);
        log_raw(l, "\"", 1);
    }
    log_raw(l, from == to ? "[]" : "]", from == to ? 2 : 1);
}

/* sd_notify(3): tells a service manager that asked for it. */
static void
sup_notify(const char *text)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    socklen_t len;
    int fd;

    if (!path || (path[0] != '/' && path[0] != '@') ||
        strlen(path) >= sizeof un.sun_path)
        return;
    memcpy(un.sun_path, path, strlen(path));
    len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    if (path[0] == '@')
        un.sun_path[0] = 0;
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&un, len);
    close(fd);
}

static void
sup_log_ready(const struct sup_gen *g)
{
    struct log_line l;

    if (!log_begin(&l, LOG_INFO, "ready"))
        return;
    log_int(&l, "pid", getpid());
    log_int(&l, "generation", g->number);
    log_int(&l, "workers", g->workers);
    sup_log_addresses(&l, "listeners", g, 0, g->listeners_n);
    sup_log_addresses(&l, "admin", g, g->listeners_n, g->sockets_n);
    log_end(&l);
}

/* Step 4: every worker is ready. From here on the new generation serves. */
static void
sup_switch(struct sup *s)
{
    struct sup_gen *old = s->current;

    s->current = s->next;
    s->next = NULL;
    log_out.level = s->current->log_level;
    if (old) {
        sup_tell_drain(s, old);
        sup_release_broker(s, old);
    }
    sup_sockets_trim(s);
    if (old && !old->children)
        sup_gen_free(old);
    sup_log_ready(s->current);
    sup_notify("READY=1");
    sup_settle(s);
}

/* Gives the next generation up: nothing of it stays. */
static void
sup_drop_next(struct sup *s)
{
    struct sup_gen *g = s->next;

    sup_load_free(s);
    if (s->checker)
        sup_kill(s->checker);
    s->checker = NULL;
    s->next = NULL;
    if (!g)
        return;
    sup_kill_all(s, g);
    sup_sockets_trim(s);
    if (!g->children)
        sup_gen_free(g);
}

static void
sup_abandon(struct sup *s)
{
    if (s->current) {
        log_at(LOG_ERROR, "sup", "reload failed, generation %u serves on: %s",
               s->current->number, s->why.msg);
    } else {
        log_at(LOG_ERROR, "sup", "cannot start: %s", s->why.msg);
        s->exit_code = 1;
    }
    sup_drop_next(s);
    if (s->current) {
        sup_settle(s);
        return;
    }
    sup_enter(s, SUP_STOPPING, 0);
    if (!s->children)
        sup_do(s, SUP_EV_EMPTY);
}

static void
sup_step_late(struct sup *s)
{
    static const char *const what[SUP_STATES] = {
        [SUP_CHECKING] = "the policy was not evaluated",
        [SUP_VERIFYING] = "certificates and programs were not checked",
        [SUP_STARTING] = "not every worker was ready",
    };

    err_set(&s->why, ERR_TIMEOUT, "%s within %d s", what[s->state],
            SUP_STEP_MS / 1000);
    sup_do(s, SUP_EV_FAILED);
}

/* ---- the broker died ----------------------------------------------------- */

/* A worker's channel to its broker cannot be replaced while requests wait on
 * it, so the whole generation is: new broker, new workers, and the old workers
 * drain. Until then commands fail and everything else is served. */
static void
sup_renew(struct sup *s)
{
    s->renew.at = 0;
    s->next = sup_gen_clone(s, s->current);
    sup_enter(s, SUP_STARTING, SUP_STEP_MS);
    if (!sup_start_all(s, s->next, &s->why))
        sup_do(s, SUP_EV_FAILED);
}

static void
sup_back_off(struct sup *s, struct sup_back *b, uint64_t lived)
{
    if (!b->delay || lived >= SUP_ALIVE_MS)
        b->delay = SUP_BACK_MIN_MS;
    else
        b->delay =
            b->delay * 2 > SUP_BACK_MAX_MS ? SUP_BACK_MAX_MS : b->delay * 2;
    b->at = uv_now(s->loop) + b->delay;
}

/* The state between loads: begin what had to wait until now. */
static void
sup_settle(struct sup *s)
{
    sup_enter(s, SUP_UP, 0);
    if (s->reload_again) {
        sup_begin(s);
        return;
    }
    if (s->current->broker_boot >= 0 && !s->current->broker && !s->renew.at)
        sup_back_off(s, &s->renew, 0);
    sup_arm(s);
    boot_settle();  // idle, perhaps for months
}

/* ---- stopping ------------------------------------------------------------ */

static void
sup_drain(struct sup *s)
{
    uint32_t ms = s->current ? s->current->drain_ms : 0;
    struct log_line l;

    if (log_begin(&l, LOG_INFO, "drain")) {
        log_int(&l, "at_most_ms", ms);
        log_end(&l);
    }
    sup_notify("STOPPING=1");
    sup_drop_next(s);
    if (s->current)
        sup_tell_drain(s, s->current);
    if (s->current)
        sup_release_broker(s, s->current);
    sup_enter(s, s->current ? SUP_DRAINING : SUP_STOPPING,
              s->current ? ms + 1 : 0);
    // the workers have their own copies: they finish the queue, then close
    for (struct sup_socket *k = s->sockets; k; k = k->next)
        sup_socket_shut(k);
    if (!s->children)
        sup_do(s, SUP_EV_EMPTY);
}

static void
sup_stop(struct sup *s)
{
    sup_enter(s, SUP_STOPPING, 0);
    sup_kill_all(s, NULL);
}

static void
sup_drain_late(struct sup *s)
{
    log_at(LOG_WARN, "sup",
           "process.drain is over: what is still served is "
           "cut off");
    sup_stop(s);
}

static void
sup_finish(struct sup *s)
{
    uv_stop(s->loop);
    s->deadline = 0;
}

static void
sup_again(struct sup *s)
{
    s->reload_again = true;
}

/* ---- the table ----------------------------------------------------------- */

/* What is not here is ignored: a hang-up while draining, a late verdict. */
static void (*const sup_table[SUP_STATES][SUP_EVENTS])(struct sup *) = {
    [SUP_CHECKING] =
        {
            [SUP_EV_HUP] = sup_again,
            [SUP_EV_TERM] = sup_drain,
            [SUP_EV_PASSED] = sup_checked,
            [SUP_EV_FAILED] = sup_abandon,
            [SUP_EV_TIME] = sup_step_late,
        },
    [SUP_VERIFYING] =
        {
            [SUP_EV_HUP] = sup_again,
            [SUP_EV_TERM] = sup_drain,
            [SUP_EV_PASSED] = sup_verified,
            [SUP_EV_FAILED] = sup_abandon,
            [SUP_EV_TIME] = sup_step_late,
        },
    [SUP_STARTING] =
        {
            [SUP_EV_HUP] = sup_again,
            [SUP_EV_TERM] = sup_drain,
            [SUP_EV_READY] = sup_switch,
            [SUP_EV_FAILED] = sup_abandon,
            [SUP_EV_TIME] = sup_step_late,
        },
    [SUP_UP] =
        {
            [SUP_EV_HUP] = sup_begin,
            [SUP_EV_TERM] = sup_drain,
        },
    [SUP_DRAINING] =
        {
            [SUP_EV_TERM] = sup_stop,
            [SUP_EV_TIME] = sup_drain_late,
            [SUP_EV_EMPTY] = sup_finish,
        },
    [SUP_STOPPING] =
        {
            [SUP_EV_EMPTY] = sup_finish,
        },
};

static void
sup_do(struct sup *s, enum sup_event event)
{
    void (*act)(struct sup *) = sup_table[s->state][event];

    if (act)
        act(s);
}

/* ---- children that end --------------------------------------------------- */

static void
sup_status_text(int status, char *out, size_t n)
{
    if (WIFSIGNALED(status))
        snprintf(out, n, "signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status) >= 126)
        snprintf(out, n, "it could not be started (exit code %d)",
                 WEXITSTATUS(status));
    else
        snprintf(out, n, "exit code %d", WEXITSTATUS(status));
}

/* The verdict of a throw-away process: exit code 0, or its words in the
 * result. */
static void
sup_check_ended(struct sup *s, struct sup_child *c, int status)
{
    struct mem_arena *a;
    struct str said = S("");
    char how[80];

    if (c != s->checker)
        return;  // given up before
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        sup_do(s, SUP_EV_PASSED);
        if (s->checker == c)
            s->checker = NULL;
        return;
    }
    a = mem_arena_new((size_t)2 * SUP_RESULT_BYTES);
    sup_status_text(status, how, sizeof how);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 1 &&
        sup_result(s, c->result, a, &said) && said.n)
        err_set(&s->why, ERR_CONFIG, "%.*s", STR_FMT(said));
    else
        err_set(&s->why, ERR_CONFIG, "the %s process ended: %s", c->name, how);
    mem_arena_free(a);
    s->checker = NULL;
    sup_do(s, SUP_EV_FAILED);
}

/* A worker or broker that was not told to go. */
static void
sup_lost(struct sup *s, struct sup_child *c, pid_t pid, int status)
{
    uint64_t lived = uv_now(s->loop) - c->born;
    char how[80];

    sup_status_text(status, how, sizeof how);
    if (c->gen == s->next) {
        err_set(&s->why, ERR_CONFIG,
                "%s of the new generation ended before all "
                "were ready: %s",
                c->name, how);
        sup_do(s, SUP_EV_FAILED);
        return;
    }
    log_at(LOG_ERROR, "sup", "%s (pid %d) ended: %s", c->name, (int)pid, how);
    if (c->gen != s->current || s->state >= SUP_DRAINING)
        return;
    if (c->role == BOOT_WORKER) {
        sup_back_off(s, &c->gen->respawn[c->index - 1], lived);
        return;
    }
    c->gen->broker = NULL;
    sup_back_off(s, &s->renew, lived);
}

static void
sup_on_exit(struct sup *s, struct sup_child *c, int status)
{
    struct sup_gen *g = c->gen;
    pid_t pid = c->pid;

    c->pid = 0;  // reaped: the number may be another's by now
    if (c->role == BOOT_CHECK || c->role == BOOT_VERIFY)
        sup_check_ended(s, c, status);
    else if (g->told || g == s->current || g == s->next)
        if (!(c->deadline && WIFEXITED(status) && !WEXITSTATUS(status)) &&
            !(c->killed && (g->told || s->state == SUP_STOPPING)))
            sup_lost(s, c, pid, status);
    if (g && g->told)
        sup_release_broker(s, g);
    if (c->chan_open)
        msg_chan_close(&c->chan);  // sup_on_gone() goes on
    else
        sup_child_over(c);
}

static struct sup_child *
sup_find(struct sup *s, pid_t pid)
{
    for (struct sup_child *c = s->children; c; c = c->next)
        if (c->pid == pid)
            return c;
    return NULL;
}

/* jail_orphans() asks whether a child of ours is meant to live. */
static bool
sup_known(void *data, pid_t pid)
{
    return sup_find(data, pid) != NULL;
}

/* We are a subreaper (or process 1): what a dead broker's programs left behind
 * comes to us, and ends here. */
static void
sup_reap(struct sup *s)
{
    struct sup_child *c;
    int status;
    pid_t pid;
    bool stray = false;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        c = sup_find(s, pid);
        stray |= !c || c->role == BOOT_BROKER;
        if (c)
            sup_on_exit(s, c, status);  // frees it
    }
    if (stray)
        jail_orphans(s->children_fd, sup_known, s);
    sup_arm(s);
}

/* ---- time ---------------------------------------------------------------- */

static void
sup_earlier(uint64_t *at, uint64_t t)
{
    if (t && t < *at)
        *at = t;
}

/* When a child has to be looked at again. */
static uint64_t
sup_child_deadline(const struct sup_child *c)
{
    if (c->deadline)
        return c->deadline;
    return c->role == BOOT_WORKER && !c->killed ? c->heard + SUP_SILENT_MS : 0;
}

static void sup_on_timer(uv_timer_t *);

/* One timer for all: the earliest of what is to come. */
static void
sup_arm(struct sup *s)
{
    uint64_t at = UINT64_MAX, now = uv_now(s->loop);

    sup_earlier(&at, s->deadline);
    if (s->state == SUP_UP)
        sup_earlier(&at, s->renew.at);
    for (struct sup_child *c = s->children; c; c = c->next)
        sup_earlier(&at, sup_child_deadline(c));
    for (unsigned i = 0; s->current && i < s->current->workers; i++)
        sup_earlier(&at, s->current->respawn[i].at);
    s->timer_at = at;
    if (at == UINT64_MAX)
        uv_timer_stop(&s->timer);
    else
        uv_timer_start(&s->timer, sup_on_timer, at > now ? at - now : 0, 0);
}

/* Whoever said nothing for too long is stuck. If it is us who were stopped,
 * what they said meanwhile is not read yet: then nobody is blamed. */
static void
sup_watch_children(struct sup *s, uint64_t now)
{
    bool late = now > s->timer_at + 2000;

    for (struct sup_child *c = s->children; c; c = c->next) {
        uint64_t at = sup_child_deadline(c);

        if (late && !c->deadline)
            c->heard = now;
        else if (at && at <= now && c->deadline) {
            log_at(LOG_WARN, "sup",
                   "%s (pid %d) did not finish in time and is "
                   "killed",
                   c->name, (int)c->pid);
            c->deadline = now + SUP_STEP_MS;
            sup_kill(c);
        } else if (at && at <= now) {
            log_at(LOG_ERROR, "sup",
                   "%s (pid %d) said nothing for %d s and is "
                   "killed",
                   c->name, (int)c->pid, SUP_SILENT_MS / 1000);
            sup_kill(c);
        }
    }
}

static void
sup_respawn(struct sup *s, uint64_t now)
{
    struct sup_gen *g = s->current;
    struct err e;

    for (unsigned i = 0; g && i < g->workers; i++) {
        struct sup_back *b = &g->respawn[i];

        if (!b->at || b->at > now)
            continue;
        b->at = 0;
        if (g->broker_boot >= 0 && !g->broker)
            continue;  // sup_renew() replaces it
        if (sup_start_worker(s, g, i + 1, &e)) {
            log_at(LOG_WARN, "sup", "worker %u is replaced", i + 1);
            continue;
        }
        log_at(LOG_ERROR, "sup", "worker %u: %s", i + 1, e.msg);
        sup_back_off(s, b, 0);
    }
}

static void
sup_on_timer(uv_timer_t *t)
{
    struct sup *s = t->data;
    uint64_t now = uv_now(s->loop);

    sup_watch_children(s, now);
    if (s->state < SUP_DRAINING)
        sup_respawn(s, now);
    if (s->state == SUP_UP && s->renew.at && s->renew.at <= now)
        sup_renew(s);
    if (s->deadline && s->deadline <= now) {
        s->deadline = 0;
        sup_do(s, SUP_EV_TIME);
    }
    sup_arm(s);
}

static void
sup_on_signal(uv_signal_t *h, int signum)
{
    struct sup *s = h->data;

    if (signum == SIGCHLD)
        sup_reap(s);
    else if (signum == SIGHUP || signum == SIGUSR1) {
        s->policy_too |= signum == SIGHUP;
        sup_do(s, SUP_EV_HUP);
    } else
        sup_do(s, SUP_EV_TERM);
}

/* ---- start and end ------------------------------------------------------- */

/* A log nobody reads must not stop us: stderr becomes non-blocking. Opened
 * anew, because the flag belongs to the open file, which we share with whoever
 * started us. Where it cannot be (a socket, another user's), it stays. */
static void
sup_reopen_log(void)
{
    int fd = open("/proc/self/fd/2",
                  O_WRONLY | O_APPEND | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

    if (fd < 0)
        return;
    dup2(fd, 2);
    close(fd);
}

static bool
sup_init(struct sup *s, struct err *e)
{
    static const int signals[] = {SIGCHLD, SIGHUP, SIGUSR1, SIGTERM, SIGINT};

    signal(SIGPIPE, SIG_IGN);
    sup_reopen_log();
    if (!jail_undumpable())
        return err_set(e, ERR_CONFIG, "dumpable: %s", strerror(errno));
    prctl(PR_SET_CHILD_SUBREAPER, 1L, 0L, 0L, 0L);
    s->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (s->null_fd < 0)
        return err_set(e, ERR_CONFIG, "/dev/null: %s", strerror(errno));
    s->met_fd = -1;
    s->children_fd = jail_children_open();
    s->loop = uv_default_loop();
    if (!s->loop)
        return err_set(e, ERR_CONFIG, "no event loop: %s", strerror(errno));
    must(uv_timer_init(s->loop, &s->timer) == 0);
    s->timer.data = s;
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        must(uv_signal_init(s->loop, &s->signals[i]) == 0);
        s->signals[i].data = s;
        must(uv_signal_start(&s->signals[i], sup_on_signal, signals[i]) == 0);
    }
    return true;
}

static void
sup_fini(struct sup *s)
{
    struct sup_gen *g = s->current;

    s->current = NULL;
    sup_sockets_trim(s);
    sup_gen_free(g);
    sup_close(s->met_fd);
    sup_close(s->null_fd);
    jail_sweep(s->children_fd, SUP_SWEEP_MS);
    sup_close(s->children_fd);
    free(s->slots);
    uv_close((uv_handle_t *)&s->timer, NULL);
    for (size_t i = 0; i < sizeof s->signals / sizeof *s->signals; i++)
        uv_close((uv_handle_t *)&s->signals[i], NULL);
    uv_run(s->loop, UV_RUN_DEFAULT);
    uv_loop_close(s->loop);
    log_flush();
}

/* `gateway run`: returns the exit code when all children are gone. */
static int
sup_main(const char *policy)
{
    struct sup *s = mem_xcalloc(sizeof *s);
    struct err e;
    int code;

    s->policy = policy;
    if (!sup_init(s, &e)) {
        log_at(LOG_ERROR, "sup", "cannot start: %s", e.msg);
        free(s);
        return 1;
    }
    sup_begin(s);
    uv_run(s->loop, UV_RUN_DEFAULT);
    code = s->exit_code;
    sup_fini(s);
    free(s);
    return code;
}

/* ---- what the throw-away processes do ------------------------------------ */

static bool
sup_verify_cas(const struct cfg *c, const struct boot *b, struct err *e)
{
    struct pki_cas cas = {0};
    bool ok = true;

    for (size_t i = 0; ok && i < b->cas_n; i++)
        ok = pki_cas_add(&cas, c->cas.v[i], b->cas[i], e) ||
             err_prefix(e, "id.ca, or client_ca of a route: ");
    pki_cas_free(&cas);
    return ok;
}

/* Everything about a configuration that takes more than reading it: schemas,
 * certificates, programs. */
static bool
sup_verify(const struct cfg *c, const struct boot *b, struct err *e)
{
    if (!cfg_check_schemas(c, e) || !sup_verify_cas(c, b, e))
        return false;
    for (size_t i = 0; i < c->listeners_n; i++)
        if (!tls_check(&c->listeners[i], &b->listeners[i], e))
            return err_prefix(
                e, "%.*s: listener %.*s: ", STR_FMT(c->listeners[i].at),
                STR_FMT(c->listeners[i].name));
    for (size_t i = 0; i < c->commands_n; i++)
        if (!exec_program_check(&c->commands[i], b->uid, e))
            return false;
    return true;
}

/* ==== 31 try: policy tests ==================================================
 *
 * `gateway test`: the real hooks, schemas, routes and parser, without network,
 * clock or certificates on disk. A test's request is bytes that go through the
 * codec; identities are real certificates, made in memory; only upstreams and
 * programs are stood in for, by what the test gives.
 *
 * Down    all rooms below; the runner itself is scripts/gateway/test.lua
 * Entry   try_main
 */
enum { TRY_MAGIC = 0x74727921, TRY_LIFE = 3600 };

/* What one request has left behind. */
struct try_story {
    bool over;
    const char *stage, *where, *name;
    char *reason, *at;   // owned
    struct mem_buf out;  // the answer's bytes
};

struct
try {
    unsigned magic;
    struct env env;
    uv_loop_t loop;
    struct mem_arena *arena;
    struct boot boot;
    struct cfg cfg;
    const char *policy;  // the one that is loaded; NULL: none
    struct met_route *met;
    struct pki_key key;            // of every test identity
    struct str ca[PKI_ITEMS_MAX];  // of the one that is being made
    size_t ca_n;
    struct try_story *story;
};

static struct try *
try_of(lua_State *L)
{
    struct env *env = vm_of(L)->env;

    return OBJ(struct try, TRY, (char *)env - offsetof(struct try, env));
}

/* ---- stand-ins ---- */

/* The field `name` of the table that core.test_request() has set up. */
static void
try_push_field(lua_State *L, const char *name)
{
    lua_rawgetp(L, LUA_REGISTRYINDEX, &bind_stub_mark);
    lua_getfield(L, -1, name);
    lua_remove(L, -2);
}

/* Appends the table on top to a list of the story. stack: record -> */
static void
try_record(lua_State *L, const char *list)
{
    try_push_field(L, list);
    lua_insert(L, -2);
    lua_rawseti(L, -2, (lua_Integer)lua_rawlen(L, -2) + 1);
    lua_pop(L, 1);
}

/* What the test gives for `name`: a function is called with the `n` values on
 * top, anything else stands for itself. stack: n values -> result */
static void
try_call_stub(lua_State *L, const char *name, int n)
{
    try_push_field(L, "stub");
    lua_getfield(L, -1, name);
    lua_remove(L, -2);
    if (lua_isfunction(L, -1)) {
        lua_insert(L, -n - 1);
        lua_call(L, n, 1);
        return;
    }
    lua_insert(L, -n - 1);
    lua_pop(L, n);
}

static int
try_stub_exec(lua_State *L, const struct cfg_command *c, int slots, int opts)
{
    lua_createtable(L, 0, 2);
    bind_set_str(L, "command", c->name);
    lua_newtable(L);
    for (lua_pushnil(L); lua_next(L, slots); lua_pop(L, 1)) {
        lua_pushvalue(L, -2);
        lua_pushvalue(L, -2);
        lua_rawset(L, -5);
    }
    lua_setfield(L, -2, "slots");
    try_record(L, "runs");
    lua_pushvalue(L, slots);
    lua_pushvalue(L, opts);
    try_call_stub(L, c->name.p, 2);
    return 1;
}

static int
try_stub_fetch(lua_State *L, const struct cfg_upstream *up, int spec)
{
    lua_createtable(L, 0, 6);
    bind_set_str(L, "upstream", up->name);
    if (lua_getfield(L, spec, "method") == LUA_TNIL) {
        lua_pop(L, 1);
        lua_pushliteral(L, "GET");
    }
    lua_setfield(L, -2, "method");
    lua_getfield(L, spec, "path");
    lua_setfield(L, -2, "target");
    lua_getfield(L, spec, "headers");
    lua_setfield(L, -2, "headers");
    lua_getfield(L, spec, "body");
    lua_setfield(L, -2, "body");
    lua_pushvalue(L, -1);
    try_record(L, "forwards");
    try_call_stub(L, up->name.p, 1);
    return 1;
}

static const struct bind_stubs try_stubs = {
    .exec = try_stub_exec,
    .fetch = try_stub_fetch,
};

/* A forward under way, for the protected call. */
struct try_forward {
    struct serve *s;
    const struct cfg_upstream *up;
    const struct proxy_line *line;
    struct bind_answer *answer;
};

/* The fields of a written head as a table. stack: -> headers */
static void
try_push_head(lua_State *L, struct str head)
{
    struct str line, name;

    lua_newtable(L);
    str_cut(head, '\n', &line, &head);
    while (str_cut(head, '\n', &line, &head) && line.n > 1) {
        line.n--;
        str_cut(line, ':', &name, &line);
        bind_push_str(L, name);
        bind_push_str(L, str_trim(line));
        lua_rawset(L, -3);
    }
}

static int
try_forward_call(lua_State *L)
{
    struct try_forward *f = lua_touserdata(L, 1);
    struct req *r = f->s->req;

    lua_createtable(L, 0, 6);
    bind_set_str(L, "upstream", f->up->name);
    bind_set_str(L, "method", r->method);
    bind_set_str(L, "target", f->line->target);
    try_push_head(L, proxy_head(r, f->line));
    lua_setfield(L, -2, "headers");
    if (f->line->body)
        bind_set_str(L, "body", *f->line->body);
    lua_pushvalue(L, -1);
    try_record(L, "forwards");
    try_call_stub(L, f->up->name.p, 1);
    f->answer = bind_take_answer(L, lua_gettop(L), r->arena);
    return 0;
}

/* Stands in for proxy_start(): the stub's answer is the upstream's. */
static void
try_on_forward(struct serve *s, const struct cfg_upstream *up,
               const struct proxy_line *line)
{
    struct try_forward f = {.s = s, .up = up, .line = line};
    lua_State *L = s->set->env->vm->L;
    int top = lua_gettop(L);

    lua_pushcfunction(L, try_forward_call);
    lua_pushlightuserdata(L, &f);
    if (lua_pcall(L, 1, 0, 0) != LUA_OK) {
        serve_hook_bug(s, str_dup(s->req->arena, str_of(lua_tostring(L, -1))));
        lua_settop(L, top);
        return;
    }
    s->stage = SERVE_RESPOND;
    s->hook = 0;
    s->answer = f.answer;
    serve_go(s);
}

/* ---- one request ---- */

static void
try_on_over(struct serve *s)
{
    struct try_story *t = ((struct try *)(void *)((char *)s->set->env -
                                                  offsetof(struct try, env)))
                              ->story;

    t->over = true;
    t->stage = serve_stage_names[s->ended_at == SERVE_OVER ? SERVE_HANDLE
                                                           : s->ended_at];
    t->where = s->where;
    t->name = s->name ? strdup(s->name) : NULL;
    t->reason = strndup(s->reason.p, s->reason.n);
    t->at = s->route ? strndup(s->route->cfg->at.p, s->route->cfg->at.n) : NULL;
}

static void
try_io_write(void *data, const char *p, size_t n)
{
    struct try_story *t = data;

    mem_buf_add(&t->out, p, n);
}

static void
try_io_nothing(void *data)
{
    (void)data;
}

static void
try_io_deadline(void *data, uint32_t ms)
{
    (void)data;
    (void)ms;
}

static size_t
try_io_queued(void *data)
{
    (void)data;
    return 0;
}

static const struct h1_io try_io = {
    .write = try_io_write,
    .later = try_io_nothing,
    .close = try_io_nothing,
    .cut = try_io_nothing,
    .deadline = try_io_deadline,
    .stall = try_io_deadline,
    .queued = try_io_queued,
};

/* The request as bytes, from the fields of the table at `at`. */
static struct str
try_request_text(lua_State *L, int at, struct mem_arena *a)
{
    struct mem_buf b = {0};
    struct str raw = bind_field_str(L, at, "raw", a);
    struct str method = bind_field_str(L, at, "method", a);
    struct str target = bind_field_str(L, at, "target", a);
    struct str body = bind_field_str(L, at, "body", a);
    struct hdr_list headers = {0};

    if (raw.n)
        return raw;
    if (lua_getfield(L, at, "headers") == LUA_TTABLE)
        bind_take_headers(L, lua_gettop(L), a, &headers);
    lua_pop(L, 1);
    mem_buf_printf(&b, "%.*s %.*s HTTP/1.1\r\n", STR_FMT(method),
                   STR_FMT(target));
    if (!hdr_get(&headers, S("host")))
        h1_write_field(&b, S("host"), S("localhost"));
    for (unsigned i = 0; i < headers.n; i++)
        h1_write_field(&b, headers.v[i].name, headers.v[i].value);
    if (body.n)
        h1_write_length(&b, body.n);
    mem_buf_add(&b, "\r\n", 2);
    mem_buf_add(&b, body.p, body.n);
    raw = str_dup(a, (struct str){b.p, b.n});
    mem_buf_free(&b);
    return raw;
}

/* The answer as our own client reads it. */
struct try_answer {
    struct h1_answer head;
    bool has_head;
    struct mem_buf body;
};

static void
try_on_answer(void *data, struct h1_answer *a)
{
    struct try_answer *t = data;

    t->head = *a;
    t->has_head = true;
}

static void
try_on_answer_body(void *data, const char *p, size_t n)
{
    struct try_answer *t = data;

    mem_buf_add(&t->body, p, n);
}

static const struct h1_client_ops try_client_ops = {
    .on_head = try_on_answer,
    .on_body = try_on_answer_body,
};

/* Status, headers and body into the table on top. */
static void
try_push_answer(lua_State *L, struct mem_arena *a, struct str bytes,
                bool to_head)
{
    struct try_answer t = {.has_head = false};
    struct h1_client c;
    struct err e;

    h1_client_init(&c, &try_client_ops, &t, a, to_head);
    if (!h1_client_feed(&c, bytes.p, bytes.n, &e))
        t.has_head = false;
    h1_client_fini(&c);
    lua_pushinteger(L, t.has_head ? t.head.status : 0);
    lua_setfield(L, -2, "status");
    serve_push_headers(L, &t.head.headers);
    lua_setfield(L, -2, "headers");
    bind_set_str(L, "body",
                 (struct str){mem_buf_ptr(&t.body), mem_buf_len(&t.body)});
    mem_buf_free(&t.body);
}

static void
try_set_text(lua_State *L, const char *field, const char *text)
{
    lua_pushstring(L, text ? text : "");
    lua_setfield(L, -2, field);
}

static unsigned
try_listener(lua_State *L, struct try *t, int at, struct mem_arena *a)
{
    struct str name = bind_field_str(L, at, "listener", a);
    unsigned i = 0;

    while (name.n && i < t->cfg.listeners_n &&
           !str_eq(t->cfg.listeners[i].name, name))
        i++;
    if (i >= t->cfg.listeners_n)
        luaL_error(L, "t.request: no listener '%s'", name.p);
    return i;
}

/* Runs the bytes through codec and hooks, to the end. */
static void
try_run(struct try *t, struct try_story *story, struct req_from *from,
        struct str text)
{
    struct h1 *h = h1_server_new(&try_io, story, &t->env.serve->ops, from);
    struct err e;

    t->story = story;
    h1_server_feed(h, text.p, text.n);
    h1_server_resume(h);
    err_set(&e, ERR_PEER_GONE, "the request is not complete");
    h1_server_gone(h, &e);
    h1_server_free(h);
    free(from->allowed);
    t->story = NULL;
}

/* core.test_request(identity, spec) -> what became of it */
static int
try_core_request(lua_State *L)
{
    struct try *t = try_of(L);
    struct pki_identity *id = lua_isnil(L, 1) ? NULL : bind_identity_of(L, 1);
    struct try_story story = {.stage = "syntax"};
    struct req_from from = {.identity = id,
                            .peer = "192.0.2.1:50000",
                            .tls_version = "TLSv1.3",
                            .tls_cipher = "TLS_AES_128_GCM_SHA256"};
    struct mem_arena *a;
    struct str text;

    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    if (!t->policy)
        return luaL_error(L, "t.request: no policy is loaded");
    a = bind_arena(L);  // 3
    from.listener = try_listener(L, t, 2, a);
    from.listener_name = t->cfg.listeners[from.listener].name;
    from.limits = &t->cfg.listeners[from.listener].limits;
    from.explain = t->cfg.listeners[from.listener].explain;
    text = try_request_text(L, 2, a);
    lua_createtable(L, 0, 12);  // 4: the result
    lua_newtable(L);
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_setfield(L, 4, "runs");
    lua_setfield(L, 5, "runs");
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_setfield(L, 4, "forwards");
    lua_setfield(L, 5, "forwards");
    lua_getfield(L, 2, "stub");
    lua_setfield(L, 5, "stub");
    lua_rawsetp(L, LUA_REGISTRYINDEX, &bind_stub_mark);
    try_run(t, &story, &from, text);
    try_push_answer(
        L, a, (struct str){mem_buf_ptr(&story.out), mem_buf_len(&story.out)},
        str_starts(text, S("HEAD ")));
    try_set_text(L, "stage", story.stage);
    try_set_text(L, "where", story.where);
    try_set_text(L, "name", story.name);
    try_set_text(L, "reason", story.reason);
    try_set_text(L, "route", story.at);
    free((void *)(uintptr_t)story.name);
    free(story.reason);
    free(story.at);
    mem_buf_free(&story.out);
    return 1;
}

/* ---- identities ---- */

/* Calls `add(o, value)` for each string of field `name`, one or a list. */
static void
try_each(lua_State *L, int at, const char *name, struct pki_order *o,
         void (*add)(lua_State *, struct pki_order *, const char *, struct str))
{
    int type = lua_getfield(L, at, name);

    if (type == LUA_TSTRING)
        add(L, o, name, str_dup(o->a, bind_str(L, -1)));
    for (lua_Integer i = 1;
         type == LUA_TTABLE && i <= (lua_Integer)lua_rawlen(L, -1); i++) {
        lua_rawgeti(L, -1, i);
        add(L, o, name, str_dup(o->a, bind_str(L, -1)));
        lua_pop(L, 1);
    }
    lua_pop(L, 1);
}

static void
try_add_name(lua_State *L, struct pki_order *o, const char *name, struct str v)
{
    if (strcmp(name, "cn") == 0)
        o->cn = v;
    else if (strcmp(name, "o") == 0)
        o->o = v;
    else if (o->ou_n == PKI_ITEMS_MAX)
        luaL_error(L, "t.identity: too many ou");
    else
        o->ou[o->ou_n++] = v;
}

static void
try_add_san(lua_State *L, struct pki_order *o, const char *name, struct str v)
{
    unsigned char ip[16];
    unsigned tag = strcmp(name, "dns") == 0     ? 2
                   : strcmp(name, "email") == 0 ? 1
                   : strcmp(name, "ip") == 0    ? 7
                                                : 6;
    struct err e;

    if (tag == 7) {
        size_t n = inet_pton(AF_INET, v.p, ip) == 1    ? 4
                   : inet_pton(AF_INET6, v.p, ip) == 1 ? 16
                                                       : 0;
        if (!n)
            luaL_error(L, "t.identity: ip '%s' is not an address", v.p);
        v = str_dup(o->a, (struct str){(const char *)ip, n});
    }
    if (!pki_order_san(o, PKI_CONTEXT + tag, v, &e))
        luaL_error(L, "t.identity: %s", e.msg);
}

static void
try_add_eku(lua_State *L, struct pki_order *o, const char *name, struct str v)
{
    struct err e;

    (void)name;
    if (!pki_option_eku(o, v.p, &e))
        luaL_error(L, "t.identity: eku: %s", e.msg);
}

static void
try_add_ca(lua_State *L, struct pki_order *o, const char *name, struct str v)
{
    struct try *t = try_of(L);

    (void)o;
    (void)name;
    if (t->ca_n == PKI_ITEMS_MAX)
        luaL_error(L, "t.identity: too many ca");
    t->ca[t->ca_n++] = v;
}

/* core.test_identity{ cn, o, ou, uri, dns, email, ip, spiffe, eku, ca }: a real
 * certificate, made and parsed here; `ca` are the files its CA would be in. */
static int
try_core_identity(lua_State *L)
{
    struct try *t = try_of(L);
    struct mem_arena *a;
    struct pki_order *o;
    struct pki_identity *id = NULL;
    struct mem_buf der = {0};
    struct err e;
    bool ok;

    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    a = bind_arena(L);
    o = mem_alloc(a, sizeof *o);
    o->a = a;
    o->not_before = time(NULL) - TRY_LIFE;
    o->not_after = time(NULL) + TRY_LIFE;
    try_each(L, 1, "cn", o, try_add_name);
    try_each(L, 1, "o", o, try_add_name);
    try_each(L, 1, "ou", o, try_add_name);
    try_each(L, 1, "uri", o, try_add_san);
    try_each(L, 1, "spiffe", o, try_add_san);
    try_each(L, 1, "dns", o, try_add_san);
    try_each(L, 1, "email", o, try_add_san);
    try_each(L, 1, "ip", o, try_add_san);
    try_each(L, 1, "eku", o, try_add_eku);
    t->ca_n = 0;
    try_each(L, 1, "ca", o, try_add_ca);
    ok = pki_make(o, &t->key, &t->key, S(""), &der, &e) &&
         pki_identity_parse((struct str){der.p, der.n}, NULL, 0, &id, &e);
    mem_buf_free(&der);
    if (!ok)
        return luaL_error(L, "t.identity: %s", e.msg);
    for (size_t i = 0; i < t->ca_n; i++)
        t->ca[i] = str_dup(id->arena, t->ca[i]);
    id->ca = pki_strs_dup(id->arena, t->ca, t->ca_n);
    bind_push_identity(L, id);
    pki_identity_put(id);
    return 1;
}

/* ---- policies and test files ---- */

/* Forgets the policy's own modules; the library stays. */
static void
try_forget_modules(lua_State *L)
{
    const char *name;
    bool keep;

    lua_getfield(L, LUA_REGISTRYINDEX, LUA_LOADED_TABLE);
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
        name = lua_tostring(L, -2);
        keep = strncmp(name, "gateway", 7) == 0 ||
               lua_getglobal(L, name) != LUA_TNIL;
        lua_settop(L, lua_gettop(L) - (strncmp(name, "gateway", 7) != 0));
        if (keep)
            continue;
        lua_pushnil(L);
        lua_setfield(L, -4, name);
    }
    lua_pop(L, 1);
}

/* Evaluates policy `name` and makes it the one that requests meet. */
static int
try_core_policy(lua_State *L)
{
    struct try *t = try_of(L);
    const char *name = luaL_checkstring(L, 1);
    struct vm_load load = {.vm = t->env.vm, .arena = t->arena};
    struct err e;
    bool ok;

    if (t->policy && strcmp(t->policy, name) == 0) {
        lua_pushboolean(L, 1);
        return 1;
    }
    t->policy = NULL;
    t->boot = (struct boot){
        .role = BOOT_CHECK, .broker_fd = -1, .met_fd = -1, .route_met_fd = -1};
    ok = sup_read_scripts(t->arena, name, &t->boot, &e);
    if (ok) {
        lua_getglobal(L, "require");
        lua_pushliteral(L, "gateway.policy");
        lua_call(L, 1, 1);
        lua_getfield(L, -1, "reset");
        lua_call(L, 0, 0);
        try_forget_modules(L);
        lua_pushcfunction(L, vm_load_policy);
        lua_pushlightuserdata(L, &load);
        if (lua_pcall(L, 1, 0, 0) != LUA_OK) {
            lua_pushnil(L);
            lua_insert(L, -2);
            return 2;
        }
        ok = cfg_load(t->arena, load.json, &t->cfg, &e);
    }
    if (ok) {
        t->met = mem_alloc(t->arena, (t->cfg.routes_n + 1) * sizeof *t->met);
        t->cfg.process.access_log = false;
        ok = bind_set_new(&t->env, t->arena, &e) &&
             (t->env.serve = serve_set_new(&t->env, t->arena, t->met, &e));
    }
    if (!ok) {
        lua_pushnil(L);
        lua_pushstring(L, e.msg);
        return 2;
    }
    t->env.serve->forward = try_on_forward;
    t->env.serve->on_over = try_on_over;
    t->policy = mem_dup(t->arena, name, strlen(name));
    lua_pushboolean(L, 1);
    return 1;
}

/* core.test_load(file) -> function, or nil and why */
static int
try_core_load(lua_State *L)
{
    struct try *t = try_of(L);
    const char *name = luaL_checkstring(L, 1);
    struct str bytes;
    struct err e;

    if (!sup_read_file(t->arena, name, BOOT_SCRIPT_BYTES, &bytes, &e)) {
        lua_pushnil(L);
        lua_pushstring(L, e.msg);
        return 2;
    }
    if (luaL_loadbufferx(L, bytes.p, bytes.n, lua_pushfstring(L, "@%s", name),
                         "t") != LUA_OK) {
        lua_pushnil(L);
        lua_insert(L, -2);
        return 2;
    }
    return 1;
}

/* core.print(text): standard output, where `print` goes to the log */
static int
try_core_print(lua_State *L)
{
    puts(luaL_checkstring(L, 1));
    return 0;
}

static const luaL_Reg try_core[] = {
    {"test_request", try_core_request}, {"test_identity", try_core_identity},
    {"test_policy", try_core_policy},   {"test_load", try_core_load},
    {"print", try_core_print},          {NULL, NULL},
};

static int
try_open(lua_State *L)
{
    bind_open(L);
    luaL_setfuncs(L, try_core, 0);
    return 1;
}

/* ---- the command ---- */

struct try_args {
    char **files;
    int files_n;
    const char *policy, *run;
    bool verbose;
    int failed;
};

static int
try_run_files(lua_State *L)
{
    struct try_args *a = lua_touserdata(L, 1);

    lua_getglobal(L, "require");
    lua_pushliteral(L, "gateway.test");
    lua_call(L, 1, 1);
    lua_getfield(L, -1, "run");
    lua_createtable(L, a->files_n, 0);
    for (int i = 0; i < a->files_n; i++) {
        lua_pushstring(L, a->files[i]);
        lua_rawseti(L, -2, i + 1);
    }
    lua_createtable(L, 0, 3);
    lua_pushstring(L, a->policy);
    lua_setfield(L, -2, "policy");
    if (a->run) {
        lua_pushstring(L, a->run);
        lua_setfield(L, -2, "run");
    }
    lua_pushboolean(L, a->verbose);
    lua_setfield(L, -2, "verbose");
    lua_call(L, 2, 1);
    a->failed = (int)luaL_checkinteger(L, -1);
    return 0;
}

static const char try_usage[] =
    "usage: gateway test [--policy FILE] [--run TEXT] [--verbose] [TEST.lua "
    "...]\n\n"
    "Runs policy tests: real hooks and schemas, real certificates made in\n"
    "memory; no network, no waiting. Exit code 1 if one fails or none ran.\n\n"
    "  --policy FILE  the policy of tests that name none\n"
    "                 (default scripts/gateway.lua)\n"
    "  --run TEXT     only cases whose name contains TEXT\n"
    "  --verbose      a line for each case, not only for failures\n\n"
    "Without files: scripts/tests/*_test.lua.\n\n"
    "examples:\n"
    "  gateway test\n"
    "  gateway test --run traversal scripts/tests/gateway_test.lua\n";

static bool
try_options(struct try_args *a, int argc, char **argv, int *code)
{
    static const struct option options[] = {
        {"policy", required_argument, NULL, 'p'},
        {"run", required_argument, NULL, 'r'},
        {"verbose", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int c;

    *code = 2;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
        switch (c) {
        case 'p':
            a->policy = optarg;
            break;
        case 'r':
            a->run = optarg;
            break;
        case 'v':
            a->verbose = true;
            break;
        case 'h':
            fputs(try_usage, stdout);
            *code = 0;
            return false;
        default:
            fputs("Try `gateway test --help`.\n", stderr);
            return false;
        }
    a->files = argv + optind;
    a->files_n = argc - optind;
    return true;
}

static struct try *
try_new(void)
{
    struct try *t = obj_new(sizeof *t, TRY_MAGIC);
    struct err e;

    t->arena = mem_arena_new((size_t)1 << 30);
    must(uv_loop_init(&t->loop) == 0);
    t->env = (struct env){.loop = &t->loop,
                          .boot = &t->boot,
                          .cfg = &t->cfg,
                          .stubs = &try_stubs};
    must(pki_key_init(&t->key, &e) && pki_key_make(&t->key, &e));
    t->env.vm = vm_new(&t->env, &t->boot, VM_CHECK_BYTES, try_open);
    return t;
}

static void
try_free(struct try *t)
{
    vm_free(t->env.vm);
    pki_key_fini(&t->key);
    uv_loop_close(&t->loop);
    mem_arena_free(t->arena);
    obj_free(t);
}

/* `gateway test`; argv[0] is "test". */
static int
try_main(int argc, char **argv)
{
    struct try_args a = {.policy = "scripts/gateway.lua"};
    struct try *t;
    glob_t found = {0};
    const char *msg;
    int code;

    if (!try_options(&a, argc, argv, &code))
        return code;
    if (!a.files_n && glob("scripts/tests/*_test.lua", 0, NULL, &found) == 0) {
        a.files = found.gl_pathv;
        a.files_n = (int)found.gl_pathc;
    }
    log_out.level = LOG_FATAL;
    t = try_new();
    lua_pushcfunction(t->env.vm->L, try_run_files);
    lua_pushlightuserdata(t->env.vm->L, &a);
    code = lua_pcall(t->env.vm->L, 1, 0, 0);
    if (code != LUA_OK) {
        msg = lua_tostring(t->env.vm->L, -1);
        fprintf(stderr, "gateway: %s\n", msg ? msg : "error");
    }
    try_free(t);
    globfree(&found);
    fflush(stdout);
    return code != LUA_OK || a.failed ? 1 : 0;
}

/* ==== 32 cli: the commands, and main ========================================
 *
 * One table of commands and one of options; parsing, usage and --help all come
 * from them. To add a command: one row and one function. Exit codes: 0 fine, 1
 * the thing asked about is not fine, 2 wrong usage.
 *
 * Entry   main
 */
#ifndef GATEWAY_VERSION
#define GATEWAY_VERSION "unknown"
#endif

enum cli_option_bit {
    CLI_POLICY = 1 << 0,
    CLI_JSON = 1 << 1,
    CLI_STDIN = 1 << 2,
};

static const struct cli_option {
    unsigned bit;
    const char *name, *value, *help;
} cli_options[] = {
    {CLI_POLICY, "--policy", "FILE",
     "the policy (default scripts/gateway.lua)"},
    {CLI_JSON, "--json", NULL, "for machines"},
    {CLI_STDIN, "--stdin", NULL, "pass standard input on to the program"},
};

struct cli {
    const char *policy;
    bool json, pass_stdin;
    char **args;  // what is left: operands
    int args_n;
};

struct cli_command {
    const char *name, *operands, *help, *examples;
    unsigned options;
    int max;  // operands; -1: any number
    int (*run)(const struct cli *);
    int (*raw)(int argc, char **argv);  // reads its own options instead
};

__attribute__((format(printf, 1, 2))) static int
cli_fail(const char *fmt, ...)
{
    va_list ap;

    fputs("gateway: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    return 1;
}

/* ---- run ----------------------------------------------------------------- */

static int
cli_run(const struct cli *c)
{
    return sup_main(c->policy);
}

/* ---- check --------------------------------------------------------------- */

/* Evaluates the policy in this process and checks what `run` would check,
 * except that nothing is bound. */
static bool
cli_load(struct mem_arena *a, const char *policy, struct boot *b, struct cfg *c,
         struct err *e)
{
    *b = (struct boot){
        .role = BOOT_CHECK, .broker_fd = -1, .met_fd = -1, .route_met_fd = -1};
    return sup_read_scripts(a, policy, b, e) &&
           work_check_policy(a, b, &b->cfg_json, e) &&
           cfg_load(a, b->cfg_json, c, e);
}

static int
cli_check(const struct cli *cli)
{
    struct mem_arena *a = mem_arena_new((size_t)512 << 20);
    struct boot b;
    struct cfg c;
    struct err e;
    bool ok;

    ok = cli_load(a, cli->policy, &b, &c, &e) && sup_servable(&c, &e) &&
         sup_user(a, &c.process, &b, &e) &&
         sup_read_certificates(a, &c, &b, &e) && sup_verify(&c, &b, &e);
    if (ok && cli->json) {
        fwrite(b.cfg_json.p, 1, b.cfg_json.n, stdout);
        putchar('\n');
    } else if (ok) {
        cfg_print(&c, stdout);
        printf("\nfine: %.*s, %zu listener%s, %zu route%s, %zu command%s\n",
               STR_FMT(b.policy), c.listeners_n, c.listeners_n == 1 ? "" : "s",
               c.routes_n, c.routes_n == 1 ? "" : "s", c.commands_n,
               c.commands_n == 1 ? "" : "s");
    } else {
        cli_fail("%s", e.msg);
    }
    if (ok && fflush(stdout) != 0)
        ok = cli_fail("standard output: %s", strerror(errno)) == 0;
    boot_forget_keys(&b);
    mem_arena_free(a);
    return ok ? 0 : 1;
}

/* ---- exec ---------------------------------------------------------------- */

/* One run through a real broker, as a worker would do it. */
struct cli_exec {
    struct mem_arena *a;
    struct cfg cfg;
    const struct cfg_command *command;
    unsigned index;
    struct str *slots;
    uv_loop_t loop;
    struct exec *exec;
    pid_t broker;
    int sup_fd;  // what the broker takes for its supervisor
    int code;
};

static bool
cli_exec_slots(struct cli_exec *x, const struct cli *cli, struct err *e)
{
    const struct cfg_command *c = x->command;

    x->slots = mem_alloc(x->a, (c->slots_n + 1) * sizeof *x->slots);
    for (int i = 1; i < cli->args_n; i++) {
        struct str name, value;
        size_t k = 0;

        if (!str_cut(str_of(cli->args[i]), '=', &name, &value))
            return err_set(e, ERR_SYNTAX, "\"%s\": write slot=value",
                           cli->args[i]);
        while (k < c->slots_n && !str_eq(c->slots[k].name, name))
            k++;
        if (k == c->slots_n)
            return err_set(e, ERR_SYNTAX, "command %.*s has no slot \"%.*s\"",
                           STR_FMT(c->name), STR_FMT(name));
        if (x->slots[k].p)
            return err_set(e, ERR_SYNTAX, "slot %.*s is given twice",
                           STR_FMT(name));
        x->slots[k] = value;
    }
    return true;
}

static bool
cli_exec_find(struct cli_exec *x, const char *name, struct err *e)
{
    for (unsigned i = 0; i < x->cfg.commands_n; i++)
        if (str_eq(x->cfg.commands[i].name, str_of(name))) {
            x->command = &x->cfg.commands[i];
            x->index = i;
            return true;
        }
    return err_set(e, ERR_SYNTAX,
                   "the policy declares no command \"%s\"; "
                   "gateway check lists them",
                   name);
}

/* Starts a broker, and gives it one end of a channel. -1: *e says why. */
static int
cli_exec_broker(struct cli_exec *x, const struct boot *all, struct err *e)
{
    struct boot b = *all;
    struct iovec v;
    struct msg_head h = {0, MSG_WORKER, MSG_F_FD};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr m = {.msg_iov = &v,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof control.bytes};
    int sup[2], worker[2], fds[BOOT_FIRST_FD], type = SOCK_STREAM;

    b.role = BOOT_BROKER;
    b.scripts_n = b.env_n = b.admin_n = b.listeners_n = 0;
    fds[BOOT_FD] = boot_write(&b, e);
    if (fds[BOOT_FD] < 0)
        return -1;
    type |= SOCK_CLOEXEC | SOCK_NONBLOCK;
    if (socketpair(AF_UNIX, type, 0, sup) != 0 ||
        socketpair(AF_UNIX, type, 0, worker) != 0) {
        err_set(e, ERR_EXEC, "socketpair: %s", strerror(errno));
        return -1;
    }
    fds[0] = open("/dev/null", O_RDWR | O_CLOEXEC);
    fds[1] = fds[2] = 2;
    fds[3] = sup[1];
    x->broker = sup_spawn(BOOT_BROKER, "broker", 0, -1, fds, BOOT_FIRST_FD);
    v = (struct iovec){&h, sizeof h};
    control.align = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)),
                                     .cmsg_level = SOL_SOCKET,
                                     .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.align), &worker[1], sizeof(int));
    if (x->broker < 0 || sendmsg(sup[0], &m, MSG_NOSIGNAL) != sizeof h) {
        err_set(e, ERR_EXEC, "broker: %s", strerror(errno));
        return -1;
    }
    close(sup[1]);
    close(worker[1]);
    close(fds[0]);
    close(fds[BOOT_FD]);
    x->sup_fd = sup[0];
    return worker[0];
}

static void
cli_exec_done(void *data, uint64_t ticket, const struct exec_result *r)
{
    struct cli_exec *x = data;

    (void)ticket;
    fwrite(r->out.p, 1, r->out.n, stdout);
    fwrite(r->err.p, 1, r->err.n, stderr);
    x->code = r->ok ? 0 : 1;
    if (!r->ok)
        cli_fail("%.*s: %s", STR_FMT(x->command->name), r->why);
    fflush(stdout);
    uv_stop(&x->loop);
}

/* Standard input, where --stdin asks for it, up to what the command takes. */
static bool
cli_exec_stdin(struct cli_exec *x, const struct cli *cli, struct str *out,
               struct err *e)
{
    size_t max = x->command->stdin_max, n = 0, r = 1;
    char *p;

    *out = S("");
    if (!cli->pass_stdin)
        return true;
    p = mem_alloc_raw(x->a, max + 1);
    while (r && n <= max) {
        r = fread(p + n, 1, max + 1 - n, stdin);
        n += r;
    }
    *out = (struct str){p, n};
    return n <= max || err_set(e, ERR_EXEC,
                               "standard input is larger than the "
                               "%zu bytes that the command takes",
                               max);
}

static bool
cli_exec_start(struct cli_exec *x, const struct cli *cli, struct boot *b,
               struct err *e)
{
    struct str in;
    int fd;

    if (!sup_user(x->a, &x->cfg.process, b, e) ||
        !exec_program_check(x->command, b->uid, e) ||
        !cli_exec_stdin(x, cli, &in, e))
        return false;
    fd = cli_exec_broker(x, b, e);
    if (fd < 0)
        return false;
    must(uv_loop_init(&x->loop) == 0);
    x->exec = exec_new(&x->loop, fd, &x->cfg, e);
    return x->exec &&
           exec_start(x->exec, x->index, S("gateway-exec"), S("command line"),
                      x->slots, in, cli_exec_done, x, e) != 0;
}

static int
cli_exec(const struct cli *cli)
{
    struct cli_exec x = {.sup_fd = -1, .code = 1};
    struct boot b;
    struct err e;
    bool ok;

    if (!cli->args_n)
        return cli_fail("say which command: gateway exec COMMAND slot=value "
                        "...") +
               1;
    x.a = mem_arena_new((size_t)1 << 30);
    signal(SIGPIPE, SIG_IGN);
    ok = cli_load(x.a, cli->policy, &b, &x.cfg, &e) &&
         cli_exec_find(&x, cli->args[0], &e) && cli_exec_slots(&x, cli, &e) &&
         cli_exec_start(&x, cli, &b, &e);
    if (ok)
        uv_run(&x.loop, UV_RUN_DEFAULT);
    else
        cli_fail("%s", e.msg);
    if (x.exec) {
        exec_free(x.exec);
        uv_run(&x.loop, UV_RUN_DEFAULT);
        uv_loop_close(&x.loop);
    }
    if (x.broker > 0) {
        kill(x.broker, SIGKILL);
        waitpid(x.broker, NULL, 0);
    }
    mem_arena_free(x.a);
    return ok ? x.code : e.kind == ERR_SYNTAX ? 2 : 1;
}

/* ---- version ------------------------------------------------------------- */

struct cli_fact {
    const char *name, *value;
};

/* What is linked in, as the libraries themselves say at run time. */
static size_t
cli_facts(struct cli_fact *f, char text[][64])
{
    int landlock = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, 1);
    struct utsname u;
    size_t n = 0;

    snprintf(text[0], 64, "%d.%d.%d", LLHTTP_VERSION_MAJOR,
             LLHTTP_VERSION_MINOR, LLHTTP_VERSION_PATCH);
    pcre2_config(PCRE2_CONFIG_VERSION, text[1]);
    text[1][strcspn(text[1], " ")] = 0;  // without the date
    snprintf(text[2], 64, "%d", landlock < 0 ? 0 : landlock);
    uname(&u);
    snprintf(text[3], 64, "%.10s %.50s", u.sysname, u.release);
    f[n++] = (struct cli_fact){"gateway", GATEWAY_VERSION};
    f[n++] = (struct cli_fact){"libuv", uv_version_string()};
    f[n++] = (struct cli_fact){"wolfssl", wolfSSL_lib_version()};
    f[n++] = (struct cli_fact){"lua", LUA_VERSION_MAJOR
                               "." LUA_VERSION_MINOR "." LUA_VERSION_RELEASE};
    f[n++] = (struct cli_fact){"llhttp", text[0]};
    f[n++] = (struct cli_fact){"yyjson", YYJSON_VERSION_STRING};
    f[n++] = (struct cli_fact){"pcre2", text[1]};
    f[n++] = (struct cli_fact){"c-ares", ares_version(NULL)};
    f[n++] = (struct cli_fact){"tls", "1.3, 1.2; X25519, P-256; ECDSA, RSA, "
                                      "Ed25519; client certificate required"};
    f[n++] = (struct cli_fact){"kernel", text[3]};
    f[n++] = (struct cli_fact){"landlock_abi", text[2]};
    return n;
}

static int
cli_version(const struct cli *cli)
{
    struct cli_fact f[16];
    char text[4][64];
    size_t n = cli_facts(f, text);
    struct mem_buf out = {0};

    if (!cli->json) {
        for (size_t i = 0; i < n; i++)
            printf("%-13s %s\n", f[i].name, f[i].value);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        mem_buf_add(&out, i ? "," : "{", 1);
        json_write_str(&out, str_of(f[i].name));
        mem_buf_add(&out, ":", 1);
        json_write_str(&out, str_of(f[i].value));
    }
    printf("%.*s}\n", (int)mem_buf_len(&out), mem_buf_ptr(&out));
    mem_buf_free(&out);
    return 0;
}

/* ---- the table ----------------------------------------------------------- */

static const struct cli_command cli_commands[] = {
    {"run", "[POLICY]",
     "Serves. SIGHUP reloads; SIGUSR1 reloads certificates, keys and CAs, but "
     "not the policy; SIGTERM drains, a second one stops at once.",
     "  gateway run\n"
     "  gateway run /etc/gateway/gateway.lua\n",
     CLI_POLICY, 1, cli_run, NULL},
    {"check", "[POLICY]",
     "Loads everything, and prints listeners, routes and "
     "commands. Nothing is bound.",
     "  gateway check\n"
     "  gateway check --json my.lua > plain.json\n",
     CLI_POLICY | CLI_JSON, 1, cli_check, NULL},
    {"test", "[TEST.lua ...]",
     "Runs policy tests: no network, no certificates, "
     "no waiting.",
     "  gateway test scripts/tests/*_test.lua\n", CLI_POLICY, -1, NULL,
     try_main},
    {"certs", "init|server|client DIR ...",
     "Makes a development CA and "
     "certificates.",
     "  gateway certs init certs\n"
     "  gateway certs client certs alice --ou ops\n",
     0, -1, NULL, pki_command},
    {"exec", "COMMAND [slot=value ...]",
     "Runs one declared command, through a "
     "broker as requests do.",
     "  gateway exec tail lines=10 file=app.log\n"
     "  gateway exec --policy my.lua --stdin wc < notes\n",
     CLI_POLICY | CLI_STDIN, -1, cli_exec, NULL},
    {"version", "", "Everything that is linked in, and what the kernel offers.",
     "  gateway version --json\n", CLI_JSON, 0, cli_version, NULL},
};

static const size_t cli_commands_n = sizeof cli_commands / sizeof *cli_commands;

static void
cli_usage(FILE *f)
{
    fputs("usage: gateway COMMAND [options]\n\n", f);
    for (size_t i = 0; i < cli_commands_n; i++)
        fprintf(f, "  %-8s %-28s %s\n", cli_commands[i].name,
                cli_commands[i].operands, cli_commands[i].help);
    fputs("\ngateway COMMAND --help says more. Exit codes: 0 fine, 1 not fine, "
          "2 wrong usage.\n",
          f);
}

static void
cli_help(const struct cli_command *c, FILE *f)
{
    const size_t n = sizeof cli_options / sizeof *cli_options;

    fprintf(f, "usage: gateway %s%s %s\n\n%s\n", c->name,
            c->options ? " [options]" : "", c->operands, c->help);
    fputs(c->options ? "\noptions\n" : "", f);
    for (size_t i = 0; i < n; i++)
        if (c->options & cli_options[i].bit)
            fprintf(f, "  %-9s %-5s  %s\n", cli_options[i].name,
                    cli_options[i].value ? cli_options[i].value : "",
                    cli_options[i].help);
    fprintf(f, "\nexamples\n%s", c->examples);
}

static int
cli_misused(const struct cli_command *c, const char *what, const char *arg)
{
    fprintf(stderr, "gateway %s: %s%s\n\n", c->name, what, arg);
    cli_help(c, stderr);
    return 2;
}

/* The option that `arg` names, and its value where that follows a '='. */
static const struct cli_option *
cli_option_find(const struct cli_command *c, const char *arg,
                const char **value)
{
    struct str name, rest;
    bool has = str_cut(str_of(arg), '=', &name, &rest);

    *value = has ? rest.p : NULL;
    for (size_t i = 0; i < sizeof cli_options / sizeof *cli_options; i++)
        if ((c->options & cli_options[i].bit) &&
            str_eq(name, str_of(cli_options[i].name)))
            return &cli_options[i];
    return NULL;
}

static void
cli_option_set(struct cli *cli, unsigned bit, const char *value)
{
    if (bit == CLI_POLICY)
        cli->policy = value;
    cli->json |= bit == CLI_JSON;
    cli->pass_stdin |= bit == CLI_STDIN;
}

/* Options and operands in any order; "--" ends the options. */
static int
cli_parse(const struct cli_command *c, int argc, char **argv, struct cli *cli)
{
    bool options = true;

    cli->args = argv;  // operands move to the front
    for (int i = 0; i < argc; i++) {
        const struct cli_option *o;
        const char *value;

        if (!options || argv[i][0] != '-' || !argv[i][1]) {
            cli->args[cli->args_n++] = argv[i];
            continue;
        }
        if (strcmp(argv[i], "--") == 0) {
            options = false;
            continue;
        }
        o = cli_option_find(c, argv[i], &value);
        if (!o)
            return cli_misused(c, "unknown option ", argv[i]);
        if (!o->value != !value && !o->value)
            return cli_misused(c, "this option takes no value: ", argv[i]);
        if (o->value && !value && ++i < argc)
            value = argv[i];
        if (o->value && !value)
            return cli_misused(c, "a value is missing after ", o->name);
        cli_option_set(cli, o->bit, value);
    }
    if (c->max >= 0 && cli->args_n > c->max)
        return cli_misused(c, "one too many: ", cli->args[c->max]);
    return 0;
}

static int
cli_command_run(const struct cli_command *c, int argc, char **argv)
{
    struct cli cli = {.policy = "scripts/gateway.lua"};
    int code;

    for (int i = 1; i < argc && !(c->raw && i > 1); i++) {
        if (strcmp(argv[i], "--") == 0)
            break;
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            cli_help(c, stdout);
            return 0;
        }
    }
    if (c->raw)
        return c->raw(argc, argv);
    code = cli_parse(c, argc - 1, argv + 1, &cli);
    if (code)
        return code;
    if (c->max == 1 && cli.args_n == 1)
        cli.policy = cli.args[0];
    return c->run(&cli);
}

/* ---- the roles ----------------------------------------------------------- */

/* A throw-away process writes its answer, or what is wrong, on descriptor 1,
 * which is a memory file. */
static int
cli_answer(bool ok, struct str json, const struct err *e)
{
    struct str s = ok ? json : str_of(e->msg);

    return boot_write_all(1, s.p, s.n) && ok ? 0 : 1;
}

static int
cli_role_check(struct mem_arena *a, struct boot *b)
{
    struct str json = S("");
    uid_t uid = 65534;
    gid_t gid = 65534;
    struct err e;
    bool ok = true;

    // a policy is only evaluated here: it needs no file, and no rights
    if (geteuid() == 0) {
        sup_find_user("nobody", &uid, &gid);
        ok = jail_drop(uid, gid, &e);
    }
    ok = ok && work_check_policy(a, b, &json, &e);
    log_flush();
    return cli_answer(ok, json, &e);
}

static int
cli_role_verify(struct mem_arena *a, struct boot *b)
{
    struct cfg c;
    struct err e;
    bool ok = cfg_load(a, b->cfg_json, &c, &e) && sup_verify(&c, b, &e);

    log_flush();
    return cli_answer(ok, S(""), &e);
}

/* The death of the supervisor ends us, also where it had no time to say so. A
 * change of user clears this, so it is set again. */
static bool
cli_role_enter(struct boot *b, struct err *e)
{
    if (b->role == BOOT_BROKER)
        return true;  // exec_main() opens programs first, and then does this
    if (!jail_early(boot_fds_end(b), e))
        return false;
    if (b->role == BOOT_WORKER && b->drop && !jail_drop(b->uid, b->gid, e))
        return false;
    prctl(PR_SET_PDEATHSIG, (long)SIGKILL, 0L, 0L, 0L);
    return true;
}

static int
cli_role_run(struct mem_arena *a, struct boot *b)
{
    switch (b->role) {
    case BOOT_CHECK:
        return cli_role_check(a, b);
    case BOOT_VERIFY:
        return cli_role_verify(a, b);
    case BOOT_BROKER:
        return exec_main(b);
    case BOOT_WORKER:
        return work_main(b);
    }
    return 1;
}

/* gateway --role ROLE --index N --slot N, as sup_spawn() writes it. */
static int
cli_role(int argc, char **argv)
{
    struct mem_arena *a;
    struct boot b;
    struct err e;
    uint64_t index, slot;
    int code = 1;

    if (argc != 7 || !str_u64(str_of(argv[4]), &index) ||
        index > CFG_WORKERS_MAX || !str_u64(str_of(argv[6]), &slot) ||
        !jail_undumpable())
        return cli_fail("--role is for the supervisor's own children") + 1;
    prctl(PR_SET_NAME, "gateway", 0L, 0L, 0L);
    signal(SIGPIPE, SIG_IGN);
    a = mem_arena_new((size_t)1 << 30);
    if (!boot_read(BOOT_FD, a, &b, &e) || !cli_role_enter(&b, &e)) {
        log_at(LOG_FATAL, "cli", "%s: %s", argv[2], e.msg);
    } else if (strcmp(argv[2], sup_role_name(b.role)) != 0 ||
               (b.met_fd >= 0 && slot >= b.met_rows)) {
        log_at(LOG_FATAL, "cli", "%s: this bundle is another's", argv[2]);
    } else {
        b.index = (unsigned)index;
        b.met_slot = (unsigned)slot;
        code = cli_role_run(a, &b);
    }
    mem_arena_free(a);
    return code;
}

#ifndef GATEWAY_NO_MAIN
int
main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    struct cli version = {0};

    if (strcmp(name, "--role") == 0)
        return cli_role(argc, argv);
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 ||
        strcmp(name, "help") == 0) {
        cli_usage(stdout);
        return 0;
    }
    if (strcmp(name, "--version") == 0)
        return cli_version(&version);
    for (size_t i = 0; i < cli_commands_n; i++)
        if (strcmp(name, cli_commands[i].name) == 0)
            return cli_command_run(&cli_commands[i], argc - 1, argv + 1);
    if (name[0])
        fprintf(stderr, "gateway: there is no command \"%s\"\n\n", name);
    cli_usage(stderr);
    return 2;
}
#endif
