"""Declared headers are checked; undeclared ones pass but cannot be read."""

from gw import Gateway, Upstream, equal

POLICY = """
local app = gateway.upstream { "http://127.0.0.1:@UP@" }
gateway.get("/h", { authorize = id.anyone,
  validate = { headers = {
    ["X-Tenant"] = { type = "string", pattern = "^[a-z]{1,8}$" },
    ["X-Count"] = gateway.optional(gateway.integer(1, 9), 1),
    ["X-List"] = gateway.optional(gateway.array(gateway.integer(0, 9))) } },
  handle = function(request)
    local h = request.headers
    return gateway.json { tenant = h["x-tenant"], count = h["x-count"],
      other = pcall(function() return h["x-other"] end), list = h["x-list"] } end })
gateway.get("/p", { authorize = id.anyone,
  validate = { headers = {
    ["X-Tenant"] = { type = "string", pattern = "^[a-z]{1,8}$" } } },
  handle = app:to "/internal/p" })
gateway.get("/raw", { authorize = id.anyone, handle = function(request)
  local raw = request.raw.headers["x-other"]
  local used = { concat = pcall(function() return "a" .. raw end),
    tostring = pcall(tostring, raw), format = pcall(string.format, "%s", raw),
    index = pcall(function() return raw.x end),
    length = pcall(function() return #raw end) }
  local ok, value = pcall(raw.check, raw, gateway.integer(1, 9))
  return gateway.json { used = used, checked = ok and value or nil } end })
"""


class Both(Gateway):
    def __init__(self):
        self.up = Upstream().start()
        super().__init__(POLICY, UP=self.up.port)

    def stop(self):
        self.up.stop()
        return super().stop()


def setup():
    return Both()


def test_declared_headers(g):
    equal(g.get("/h", [("X-Tenant", "acme"), ("X-Count", "5"),
                       ("X-Other", "b")]).json(),
          {"tenant": "acme", "count": 5, "other": False})
    equal(g.get("/h", [("x-TENANT", "acme")]).json()["count"], 1)


def test_schemas_of_headers(g):
    wrong = []
    for fields in ([], [("X-Tenant", "ACME")], [("X-Tenant", "")],
                   [("X-Tenant", "a b")], [("X-Tenant", "acme;id")],
                   [("X-Tenant", "acme"), ("X-Count", "0")],
                   [("X-Tenant", "acme"), ("X-Count", "five")],
                   [("X-Tenant", "acme"), ("X-Tenant", "acme")],
                   [("X-Tenant", "acme"), ("x-tenant", "evil")],
                   [("X-Tenant", "acme"), ("X-Count", "1"), ("X-Count", "2")]):
        for path in ("/h", "/p") if len(fields) < 2 else ("/h",):
            status = g.get(path, fields).status
            if status not in (400, 422):
                wrong.append("%s %r: %d" % (path, fields, status))
    assert not wrong, "\n".join(wrong)


def test_repeated_single_value_headers(g):
    """A rule must not see one value and the upstream another."""
    for name in ("Authorization", "Content-Type", "X-Request-Id"):
        before = len(g.up.requests)
        r = g.get("/p", [("X-Tenant", "acme"), (name, "a/a"), (name, "b/b")])
        equal((r.status, len(g.up.requests)), (400, before), name)


def test_undeclared_headers_are_forwarded(g):
    r = g.get("/p", [("X-Tenant", "acme"), ("X-Other", "b"),
                     ("Accept", "x/y"), ("Cookie", "a=1; b=2")])
    seen = r.json()["headers"]
    equal((seen["x-tenant"], seen["x-other"], seen["accept"], seen["cookie"]),
          ("acme", "b", "x/y", "a=1; b=2"))


def test_raw_values_cannot_be_used_by_accident(g):
    r = g.get("/raw", [("X-Other", "5")])
    equal(r.status, 200, r.text)
    equal(r.json()["checked"], 5)
    for name, worked in r.json()["used"].items():
        equal(worked, False, name)
