#!/usr/bin/env python3
"""The official suites of JSON Schema, through OpenAPI documents.

    tests/openapi_cases.py [--bin build/gateway] [--verbose]

Each required case of draft 7 and draft 4 is put into an OpenAPI 3.0 document,
each of 2020-12 into one of 3.1: its schema as a component, in an operation
whose body says `allOf` with that component, beside the type of this case's
value, since gateway.openapi takes no body without a type.  Members of any name
are allowed where the suite's schemas do not say (additionalProperties: true,
which gateway.openapi takes with open = true): JSON Schema has it so.

gateway.openapi makes a policy of the document (tests/openapi_cases.lua), and
`gateway schema`, which closes objects as a policy does, judges the value by
the schema that this policy has.  The verdict must be the suite's.  A document
may be refused, since 3.0 and our strictness say less than JSON Schema does:
with its line, and there, a keyword of the case.  The last line is `N passed, N
failed`.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
ONE = {"items", "additionalItems", "contains", "additionalProperties",
       "propertyNames", "not", "if", "then", "else", "unevaluatedItems",
       "unevaluatedProperties"}
SOME = {"items", "prefixItems", "allOf", "anyOf", "oneOf"}
MEMBERS = {"properties", "patternProperties", "dependentSchemas", "definitions",
           "$defs"}
OF_OBJECTS = {"properties", "patternProperties", "propertyNames", "required",
              "minProperties", "maxProperties", "dependencies",
              "dependentRequired", "dependentSchemas"}
COMPONENTS = "#/components/schemas/"
# draft, its OpenAPI, and how many of its cases must get a verdict at least
DRAFTS = (("draft7", "3.0.3", 380), ("draft4", "3.0.3", 330),
          ("draft2020-12", "3.1.0", 780))


def suite(draft):
    """The required cases of a draft: (schema, data, valid, description)."""
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    folder = pathlib.Path(cache, "gateway/suite/usr/share/perl5/auto/share/"
                          "dist/Test-JSON-Schema-Acceptance/tests", draft)
    for path in sorted(folder.glob("*.json")):
        for group in json.loads(path.read_text()):
            if "contentEncoding" in words(group["schema"]):
                continue  # a note in 2020-12, checked in our documents
            for test in group["tests"]:
                yield (group["schema"], test["data"], test["valid"], "%s: %s" % (
                    group["description"], test["description"]))


def words(schema):
    return schema if isinstance(schema, dict) else ()


def moved(ref):
    """Where a reference leads in the document."""
    for root in "#/definitions/", "#/$defs/":
        if ref.startswith(root):
            return COMPONENTS + ref[len(root):]
    if ref == "#" or ref.startswith("#/"):
        return COMPONENTS + "Root" + ref[1:]
    return ref


def rewritten(schema, is_open):
    """A schema as a component: its references moved, and, where no keyword
    asks which members others have seen, said to be open."""
    if not isinstance(schema, dict):
        return schema
    made = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str):
            value = moved(value)
        elif key in MEMBERS and isinstance(value, dict):
            value = {name: rewritten(part, is_open) for name, part in value.items()}
        elif key in SOME and isinstance(value, list):
            value = [rewritten(part, is_open) for part in value]
        elif key in ONE:
            value = rewritten(value, is_open)
        made[key] = value
    if is_open and not {"additionalProperties", "$ref"} & set(made) and (
            made.get("type") == "object" or OF_OBJECTS & set(made)):
        made["additionalProperties"] = True
    return made


def type_of(value, version):
    """The least that makes a body strict and lets this value in."""
    if value is None:
        return {"type": "null"} if version > "3.1" else {
            "type": "string", "nullable": True}
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, (int, float)):
        return {"type": "number"}
    if isinstance(value, str):
        return {"type": "string"}
    if isinstance(value, dict):
        return {"type": "object", "additionalProperties": True}
    items = []
    for item in value:
        shape = type_of(item, version)
        if shape not in items:
            items.append(shape)
    return {"type": "array", "items": {"anyOf": items} if items
            else {"type": "string"}}


def document(schema, data, version):
    is_open = "unevaluatedProperties" not in json.dumps(schema)
    root = rewritten(schema, is_open)
    components = {"Root": root}
    if isinstance(root, dict):
        for key in "definitions", "$defs":
            components.update(root.pop(key, {}))
        root.pop("$schema", None)
    body = type_of(data, version)
    if not is_open:
        body.pop("additionalProperties", None)
    body["allOf"] = [{"$ref": COMPONENTS + "Root"}]
    return {
        "openapi": version, "info": {"title": "t", "version": "1"},
        "paths": {"/a": {"post": {
            "requestBody": {"required": True, "content": {
                "application/json": {"schema": body}}},
            "responses": {"200": {"description": "ok"}}}}},
        "components": {"schemas": components}}


def made_schemas(binary, documents):
    """What gateway.openapi makes of each document."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for text in documents:
            file.write(json.dumps({"document": text}) + "\n")
        file.flush()
        done = subprocess.run(
            [binary, "test", "--library", str(HERE / "openapi_cases.lua")], text=True,
            cwd=HERE.parent, env=dict(os.environ, GATEWAY_TEST_CASES=file.name),
            capture_output=True)
    made = [json.loads(line) for line in done.stdout.splitlines()
            if line.startswith("{")]
    if len(made) != len(documents):
        sys.exit("%d answers to %d documents\n%s%s\n0 passed, 1 failed" % (
            len(made), len(documents), done.stdout[-2000:], done.stderr[-2000:]))
    return made


def verdicts(binary, lines):
    done = subprocess.run([binary, "schema"], text=True, capture_output=True,
                          input="\n".join(lines) + "\n")
    return done.stdout.split("\n")[:-1]


def is_refusal(why, text):
    """Does it name a line, and a keyword that stands there?"""
    match = re.match(r"cases\.json:(\d+): (.+)", why)
    lines = text.split("\n")
    if not match or not 1 < int(match[1]) <= len(lines):
        return False
    near = lines[max(0, int(match[1]) - 3):int(match[1])]
    keys = re.findall(r'"([^"]*)":', "\n".join(near))
    if match[2].endswith(("write type: object", "write type: array",
                          "write type: …")):
        return "{" in near[-1]  # where the schema begins that has none
    if match[2].endswith("write items"):
        return "array" in near[-1] or "{" in near[-1]
    return any(re.search(r"(?<!\w)%s(?!\w)" % re.escape(key), match[2])
               for key in keys)


def judge(binary, draft, version, least, verbose):
    cases = list(suite(draft))
    if not cases:
        print("the official suite is not here: tests/setup.sh suite")
        return 0, 0
    documents = [json.dumps(document(schema, data, version), indent=1,
                            ensure_ascii=False)
                 for schema, data, _, _ in cases]
    made = made_schemas(binary, documents)
    answers = iter(verdicts(binary, [
        json.dumps({"schema": result["schema"], "instance": case[1]})
        for result, case in zip(made, cases) if "schema" in result]))
    good, refused, reasons = 0, 0, collections.Counter()
    for (schema, data, valid, about), text, result in zip(
            cases, documents, made):
        if "refused" in result:
            answer = result["refused"]
            right = is_refusal(answer, text)
            refused += right
            reasons[re.sub(r"^cases.json:\d+: ", "", answer)[:70]] += 1
        else:
            answer = next(answers, "no answer")
            right = answer.split(":")[0] == ("valid" if valid else "invalid")
        good += right
        if not right:
            print("FAIL %s: %s: %s\n     %s, value %s" % (
                draft, about, answer, json.dumps(schema), json.dumps(data)))
    if verbose:
        for reason, count in reasons.most_common():
            print("%5d %s" % (count, reason))
    bad = len(cases) - good
    print("%s through OpenAPI %s: %d cases, %d of them refused" % (
        draft, version, len(cases), refused))
    if good - refused < least:
        print("FAIL only %d cases of %s got a verdict" % (good - refused, draft))
        bad += 1
    return good, bad


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--bin", default="build/gateway")
    options.add_argument("--verbose", action="store_true",
                         help="count the refusals by their words")
    options = options.parse_args()
    sums = [judge(os.path.abspath(options.bin), *draft, options.verbose)
            for draft in DRAFTS]
    good, bad = (sum(part) for part in zip(*sums))
    print("%d passed, %d failed" % (good, bad))
    return bad != 0 or good == 0


if __name__ == "__main__":
    sys.exit(main())
