/* Fuzzes room 23a: the first byte says how long the pattern is, the rest is
 * pattern and subject. No input may hang; where ours comes to an answer, the
 * Lua library must come to the same. */
#define GATEWAY_NO_MAIN
#include "../gateway.c"

/* Calls str[name](subject, pattern, ...) in a protected call; the results stay
 * on the stack above `top`. True if it did not raise. */
static bool
fuzz_call(lua_State *L, const char *lib, const char *name, struct str subject,
          struct str pattern, const char *repl)
{
    lua_getglobal(L, lib);
    lua_getfield(L, -1, name);
    lua_remove(L, -2);
    lua_pushlstring(L, subject.p, subject.n);
    lua_pushlstring(L, pattern.p, pattern.n);
    if (repl)
        lua_pushstring(L, repl);
    return lua_pcall(L, repl ? 3 : 2, LUA_MULTRET, 0) == LUA_OK;
}

static void
fuzz_compare(lua_State *L, const char *name, struct str subject,
             struct str pattern, const char *repl)
{
    int top = lua_gettop(L), n;

    if (fuzz_call(L, "ours", name, subject, pattern, repl)) {
        n = lua_gettop(L) - top;
        // A class at the end of a range means nothing in particular.
        if (!memmem(pattern.p, pattern.n, "-%", 2)) {
            must(fuzz_call(L, "string", name, subject, pattern, repl));
            must(lua_gettop(L) - top == 2 * n);
            for (int i = 1; i <= n; i++)
                must(lua_rawequal(L, top + i, top + n + i));
        }
    }
    lua_settop(L, top);
}

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static lua_State *L;
    struct str pattern, subject;

    if (!L) {
        L = luaL_newstate();
        *(void **)lua_getextraspace(L) = NULL;  // no vm
        luaL_openlibs(L);
        luaL_newlib(L, lib_str_functions);
        lua_setglobal(L, "ours");
    }
    if (!n)
        return 0;
    pattern = (struct str){(const char *)data + 1, data[0]};
    if (pattern.n > n - 1)
        pattern.n = n - 1;
    subject = (struct str){pattern.p + pattern.n, n - 1 - pattern.n};
    fuzz_compare(L, "find", subject, pattern, NULL);
    fuzz_compare(L, "match", subject, pattern, NULL);
    fuzz_compare(L, "gsub", subject, pattern, "<%0>");
    fuzz_compare(L, "gsub", subject, pattern, "%1%%");
    if (fuzz_call(L, "ours", "gmatch", subject, pattern, NULL))
        while (lua_pushvalue(L, 1),
               lua_pcall(L, 0, 1, 0) == LUA_OK && !lua_isnil(L, -1))
            lua_settop(L, 1);
    lua_settop(L, 0);
    return 0;
}
