--- What `gateway docs` tells that no one function is about: what hooks are
-- given and what comes back to them, and topics such as limits and validate.

local M = {}

--- Things that hooks and tests are given: { name, class = of the annotations,
-- text, fields = { { name, type, help } } }. Where the C side has the fields
-- (request, identity), they are asked for.
M.objects = {
  {
    name = "request", class = "request",
    text = "What a client asks for, as hooks are given it. It holds what was"
      .. " declared, and has been validated; a name that is declared nowhere"
      .. " raises an error.",
  },
  {
    name = "identity", class = "identity",
    text = "Who asks: the client's certificate. An object of these fields;"
      .. " read-only, and the same for all requests of a connection.",
  },
  {
    name = "response", class = "gateway.response",
    text = "The answer, as respond and log hooks are given it. A respond hook"
      .. " returns it, changed, or another one.",
    fields = {
      { "status", "integer", "200, …" },
      { "headers", "table<string, string|string[]>", "header fields, names in"
        .. " lower case; a list where one came several times" },
      { "body", "string?", "where Lua made it" },
      { "run", "gateway.result?", "of command:stream, once the program has"
        .. " ended: its result, without stdout" },
    },
  },
  {
    name = "decision", class = "gateway.decision",
    text = "How it went, as log hooks are given it.",
    fields = {
      { "allowed", "boolean", "was the request let through?" },
      { "stage", "string", "where it ended: syntax, route, authorize, validate,"
        .. " body, check, handle, respond, log or over" },
      { "reason", "string", "why it was refused, for the log" },
    },
  },
  {
    name = "result", class = "gateway.result",
    text = "What command:run returns: always a table, also where the program"
      .. " could not be run.",
    fields = {
      { "ok", "boolean", "it ran, and ended with exit code 0, within its"
        .. " limits" },
      { "why", "string", "why not, for the log: a client has no use for it" },
      { "code", "integer?", "its exit code; nil where it did not run" },
      { "signal", "integer?", "the signal that ended it, or 0; nil where it did"
        .. " not run" },
      { "stdout", "string", "what it wrote" },
      { "stderr", "string", "what it wrote there" },
      { "timed_out", "boolean", "it was ended at its timeout" },
      { "truncated", "boolean", "it wrote more than its limit" },
      { "out_of_memory", "boolean", "it used more than memory_total" },
      { "busy", "boolean", "no place was free: a reason to answer 503" },
      { "usage", "gateway.usage", "ms, cpu_ms (of computing) and rss (KiB of"
        .. " memory)" },
    },
  },
  {
    name = "answer", class = "gateway.answer",
    text = "What gateway.fetch returns; or nil, a message and a code.",
    fields = {
      { "status", "integer", "200, …" },
      { "headers", "table<string, string>", "header fields, names in lower"
        .. " case; the first one where one came several times" },
      { "body", "string", "the body, whole" },
    },
  },
  {
    name = "r", class = "test.r",
    text = "What a request came to: t.request of a policy test returns it, and"
      .. " the expectations (t.allowed, t.denied, …) take it.",
    fields = {
      { "status", "integer", "the answer's status" },
      { "headers", "table<string, string|string[]>", "its header fields, names"
        .. " in lower case; a list where one came several times" },
      { "body", "string", "its body" },
      { "stage", "string", "where the request ended: syntax, route, authorize,"
        .. " validate, body, check, handle, respond, log or over" },
      { "where", "string?", "which input was refused: path, query, headers,"
        .. " json, …" },
      { "name", "string?", "… and its name" },
      { "reason", "string?", "why, as the log has it" },
      { "runs", "table[]", "commands that were run: { command =, slots = }" },
      { "refusals", "table[]", "runs that were refused: { command =, why = }" },
      { "forwards", "table[]", "upstreams that were asked: { upstream =,"
        .. " method =, target =, headers =, body = }" },
      { "cut", "boolean?", "the answer of command:stream broke off" },
    },
  },
}


--- Topics: { name, names = by which it is found, text = paragraphs, code =
-- lines, specs = names of option tables that belong here, list = a section
-- whose names do, see = pages }.
M.topics = {
  {
    name = "hooks", names = { "hooks", "check", "handle", "respond" },
    text = {
      "Functions that a policy gives to routes run for each request, in this"
        .. " order: authorize(identity), check(request, identity),"
        .. " handle(request, identity), respond(request, response),"
        .. " log(request, response, decision).",
      "authorize and check: only exactly `true` allows. `false, \"reason\"`"
        .. " refuses with 403; the reason is for the log. `false,"
        .. " gateway.problem(…)` refuses with that answer. Anything else, and"
        .. " any error, is a bug of the policy: 500.",
      "handle returns an answer: gateway.text, json, response or problem, an"
        .. " upstream, app:to(…), command:stream(…) or command:job(…).",
    },
    see = { "request", "identity", "response", "decision", "result", "answer" },
  },
  {
    name = "authorize", names = { "authorize", "conditions" },
    text = {
      "Who may call a route: a condition, or a function(identity) that returns"
        .. " true, or false and a reason. Every route must say it, itself or by"
        .. " its group; what both say must both hold. A condition can be called"
        .. " in a hook, too: `local ok, why = ops(identity)`.",
    },
    code = {
      'gateway.get("/logs", { authorize = id.all(id.ou "ops", id.o "Example"),'
        .. " … })",
    },
    list = "id", see = { "identity" },
  },
  {
    name = "validate",
    text = {
      "What a route takes: a schema for each input. What is not declared is"
        .. " refused: query parameters, a body, members of an object. What is"
        .. " declared is required, unless it is gateway.optional. Hooks read"
        .. " the values in request.path, .query, .headers, .json, .body.",
    },
    code = {
      "validate = {",
      "  path  = { id = gateway.uuid },",
      "  query = { n = gateway.optional(gateway.integer(1, 100), 10) },",
      "  json  = gateway.object { name = gateway.string(1, 64) },",
      "}",
    },
    specs = { "route: validate" },
    see = { "string", "integer", "number", "boolean", "enum", "const", "array",
      "object", "optional", "commas", "any_of", "filename", "relative_path",
      "uuid", "date", "datetime", "schema", "bytes", "stream", "unchecked",
      "raw" },
  },
  {
    name = "raw",
    text = {
      "What was not declared is only in request.raw: raw.query.x,"
        .. " raw.headers[\"x-y\"], raw.path, raw.body. Each is an object, or"
        .. " nil where nothing came; it cannot be used by accident: to"
        .. " concatenate, compare, index, measure or log it, or to hand it to a"
        .. " command or an upstream, raises an error.",
      "raw:check(schema) opens it: a value, or nil and why not. An input that"
        .. " came several times fits a gateway.array only.",
    },
    code = {
      "local raw = request.raw.query.n",
      "local n, why = nil, \"is missing\"",
      "if raw then",
      "  n, why = raw:check(gateway.integer(1, 100))",
      "end",
    },
    see = { "request", "validate" },
  },
  {
    name = "limits",
    text = {
      "Everything has a limit. A listener sets those of its connections and of"
        .. " all its routes; a route, or a group, its own of these. Sizes are"
        .. " bytes or text (\"16K\", \"64M\", \"2G\"), times seconds (2.5).",
    },
    code = {
      'gateway.listen { name = "api", …, limits = { per_identity = 20 } }',
      'gateway.post("/files", { …, limits = { body_size = "8M" } })',
    },
    specs = { "gateway.listen: limits", "route: limits" },
    see = { "process", "upstream", "command", "jobs", "tcp" },
  },
}


--- What the options of `gateway certs` are for: the C side has them for each of
-- its subcommands, in words of their own.
M.certs = {
  { "ou", "TEXT", "organizational unit; may be repeated" },
  { "dns", "NAME", "a DNS name among the other names; may be repeated" },
  { "ip", "ADDRESS", "an address among them; may be repeated" },
  { "uri", "URI", "a URI among them, such as a SPIFFE ID; may be repeated" },
  { "email", "ADDRESS", "an e-mail address among them; may be repeated" },
  { "eku", "PURPOSE", "clientAuth, serverAuth or none; doctor: what it must be"
    .. " for, clientAuth or any" },
  { "cn", "TEXT", "common name, if not NAME" },
  { "name", "TEXT", "init: what the CA is called" },
  { "o", "TEXT", "organization" },
  { "days", "N", "valid for N days from now (1 to 36500)" },
  { "not-before", "DATE", "for tests: 2026-01-31 or 2026-01-31T12:00:00Z" },
  { "not-after", "DATE", "for tests: the same" },
  { "force", "", "replace files that are there already" },
  { "serial", "HEX", "revoke: one whose file is lost; may be repeated" },
  { "ca", "FILE", "doctor: the CAs that are trusted; may be repeated" },
  { "crl", "FILE", "doctor: as crl of a listener; may be repeated" },
  { "depth", "N", "doctor: as depth of a listener (1 to 9)" },
  { "server", "", "doctor: judge a server's certificate, as an upstream's is" },
  { "at", "DATE", "doctor: at another time" },
}


return M
