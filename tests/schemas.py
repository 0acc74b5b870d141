#!/usr/bin/env python3
"""Verdicts of `gateway schema`: own cases, and random ones beside jsonschema.

    tests/schemas.py [--bin build/gateway] [--seed N] [--cases N]

A line of schema_cases.jsonl is one schema and instances: `valid` ones,
`invalid` ones with the path and the keyword that the message must name, and
`closed`, which are valid in an open schema only.  `refused` names the keyword
for which the schema does not load, `refused_closed` where only a closed one
does not; `open` lines are for open schemas alone.

Of the official suite, which tests/setup.sh unpacks from a Debian package, each
required case must get its verdict, or an error that names a keyword of it.  So
must those about formats, in a closed schema.

Then random schemas and instances meet `gateway schema --open`.
python3-jsonschema is an independent reading of JSON Schema 2020-12, so each
different verdict is a mistake of one of the two, and printed whole.  Numbers
are such that binary floating point (jsonschema's) and decimal arithmetic
(ours) agree.  Every keyword must have decided some case: a generator that
forgets one fails.  The last line is `N passed, N failed`.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import random
import subprocess
import sys

try:
    from jsonschema import Draft202012Validator
except ImportError:  # another python3 than Debian's
    sys.path.append("/usr/lib/python3/dist-packages")
    from jsonschema import Draft202012Validator

NAMES = ["a", "b", "c", "aa", "", "é"]
VALUES = [None, True, False, 0, 1, -1, 1.0, 2, 1.5, 3, 10, 0.5, "", "a", "aa",
          "abc", "é", "😀", [], [1], [1, 1], [1, "a"], [[]], [{}], {},
          {"a": 1}, {"a": "x", "b": 2}]
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]
BOUNDS = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]
COUNTS = ["minLength", "maxLength", "minItems", "maxItems", "minProperties",
          "maxProperties"]
ONE = ["items", "contains", "additionalProperties", "propertyNames", "not",
       "if", "then", "else", "unevaluatedItems", "unevaluatedProperties"]
SOME = ["prefixItems", "allOf", "anyOf", "oneOf"]
MEMBERS = ["properties", "dependentSchemas"]
OTHERS = ["type", "enum", "const", "multipleOf", "minContains", "maxContains",
          "pattern", "uniqueItems", "patternProperties", "required",
          "dependentRequired", "$ref"]
# drawn more often: what meets other keywords at the same place
OFTEN = ["properties", "items", "allOf", "anyOf", "if", "$ref",
         "unevaluatedProperties", "unevaluatedItems"]

# jsonschema before 4.20 (Debian 12 has 4.10) is wrong on these, or dies
VERSION = importlib.metadata.version("jsonschema").split(".")
if [int(part) for part in VERSION[:2]] < [4, 20]:
    ONE = [w for w in ONE if not w.startswith("unevaluated")]
    OFTEN = [w for w in OFTEN if not w.startswith("unevaluated")]
KEYWORDS = BOUNDS + COUNTS + ONE + SOME + MEMBERS + OTHERS


class Maker:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def some(self, make, least, most):
        return [make() for _ in range(self.random.randint(least, most))]

    def name(self):
        return self.random.choice(NAMES)

    def names(self):
        return sorted(set(self.some(self.name, 0, 2)))

    def instance(self, depth=0):
        pick = self.random.random()
        if depth > 3 or pick < 0.5:
            return self.random.choice(VALUES)
        if pick < 0.72:
            return self.some(lambda: self.instance(depth + 1), 0, 4)
        return {name: self.instance(depth + 1)
                for name in self.some(self.name, 0, 4)}

    def value(self, word, sub, schema, refs):
        choice = self.random.choice
        if word == "type":
            return choice([choice(TYPES), sorted(self.random.sample(TYPES, 2))])
        if word == "enum":
            values = self.some(lambda: self.instance(2), 1, 3)
            return [v for i, v in enumerate(values) if v not in values[:i]]
        if word == "const":
            return self.instance(2)
        if word in BOUNDS:
            return choice([0, 1, 2, 3, -1, 1.5, 0.5, 10])
        if word == "multipleOf":
            return choice([1, 2, 0.5, 3, 10, 1.5])
        if word in ("minContains", "maxContains"):
            schema.setdefault("contains", sub())
            return choice([0, 1, 2, 3])
        if word in COUNTS:
            return choice([0, 1, 2, 3, 2.0])
        if word == "pattern":
            return choice(["^a", "a$", "^$", "b", "^[a-c]*$", "^é$"])
        if word == "uniqueItems":
            return choice([True, False])
        if word in ONE:
            return sub()
        if word in SOME:
            return self.some(sub, 1, 3)
        if word in MEMBERS:
            return {name: sub() for name in self.some(self.name, 0, 3)}
        if word == "patternProperties":
            return {choice(["^a", "b$", "^.?$"]): sub()}
        if word == "required":
            return self.names()
        if word == "dependentRequired":
            return {name: self.names() for name in self.names()}
        return choice(refs)

    def schema(self, depth, refs):
        if self.random.random() < 0.12:
            return self.random.choice([True, False])
        schema = {}

        def sub():
            if depth < 3:
                return self.schema(depth + 1, refs)
            return self.random.choice(
                [True, False, {"type": "string"}, {"minimum": 1}])

        for _ in range(self.random.randint(0, 3 if depth else 4)):
            word = self.random.choice(KEYWORDS + OFTEN)
            if word != "$ref" or refs:
                schema[word] = self.value(word, sub, schema, refs)
        return schema

    def document(self):
        schema = self.schema(0, ["#/$defs/x", "#/$defs/y"])
        if isinstance(schema, dict):
            schema["$defs"] = {"x": self.schema(2, []), "y": self.schema(2, [])}
        return schema


def expectations(line, is_open):
    """The instances of a line, and how the answer to each must begin and end;
    an error names its keyword somewhere."""
    refused = line.get("refused") or (
        not is_open and line.get("refused_closed"))
    if refused:
        return [(None, "error: schema at #", refused)]
    wrong = line.get("invalid", [])
    fine = line.get("valid", [])
    if is_open:
        fine = fine + [case[0] for case in line.get("closed", [])]
    else:
        wrong = wrong + line.get("closed", [])
    return [(value, "valid", "valid") for value in fine] + [
        (value, "invalid: %s" % (path and path + ": "), "(%s)" % keyword)
        for value, path, keyword in wrong]


def own_cases(binary, is_open):
    """Runs schema_cases.jsonl in one mode; how many passed and failed."""
    cases = []
    text = pathlib.Path(__file__).with_name("schema_cases.jsonl").read_text()
    for line in map(json.loads, text.splitlines()):
        if is_open or not line.get("open"):
            cases += [(line, *want) for want in expectations(line, is_open)]
    lines = [json.dumps({"schema": line["schema"], "instance": value})
             for line, value, _, _ in cases]
    answers = ask(binary, is_open, lines)
    bad = abs(len(answers) - len(lines))
    for (line, value, begin, end), answer in zip(cases, answers):
        if not answer.startswith(begin) or end not in (
                answer if begin.startswith("error") else
                (answer[-len(end):],)):
            bad += 1
            print("FAIL %s (%s): %s\n     wanted %s...%s, got %s" % (
                line["about"], "open" if is_open else "closed",
                json.dumps(value), begin, end, answer))
    return len(lines) - bad, bad


def official_cases(binary, pattern, is_open):
    """Runs files of the official suite; how many cases passed and failed.
    Most must get a verdict."""
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    folder = pathlib.Path(cache, "gateway/suite/usr/share/perl5/auto/share/"
                          "dist/Test-JSON-Schema-Acceptance/tests/draft2020-12")
    groups = [group for path in sorted(folder.glob(pattern))
              for group in json.loads(path.read_text())]
    cases = [(group["schema"], test) for group in groups
             for test in group["tests"]]
    if not cases:
        print("the official suite is not here: tests/setup.sh suite")
        return 0, 0
    answers = ask(binary, is_open, [
        json.dumps({"schema": schema, "instance": test["data"]})
        for schema, test in cases])
    bad = errors = abs(len(answers) - len(cases))
    for (schema, test), answer in zip(cases, answers):
        verdict = answer.split(":")[0]
        good = verdict == ("valid" if test["valid"] else "invalid")
        if verdict == "error":
            errors += 1
            good = any(": %s: " % word in answer for word in words(schema))
        if not good:
            bad += 1
            print("FAIL official: %s: %s\n     %s" % (
                test["description"], answer, json.dumps(schema)))
    print("official suite, %s: %d cases, %d of them do not load" % (
        pattern, len(cases), errors))
    bad += errors > len(cases) / 4
    return len(cases) - bad, bad


def ask(binary, is_open, lines):
    """The answers of `gateway schema` to some lines."""
    done = subprocess.run([binary, "schema"] + ["--open"] * is_open, text=True,
                          input="\n".join(lines) + "\n", capture_output=True)
    return done.stdout.split("\n")[:-1]


def words(schema):
    """Every keyword in a schema, and some names of members too."""
    found = set()
    if isinstance(schema, dict):
        found.update(schema)
        schema = list(schema.values())
    for part in schema if isinstance(schema, list) else []:
        found |= words(part)
    return found


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--bin", default="build/gateway")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--cases", type=int, default=6000)
    options = options.parse_args()
    maker = Maker(options.seed)
    lines, wanted, used = [], [], {True: set(), False: set()}
    while len(lines) < options.cases:
        schema = maker.document()
        validator = Draft202012Validator(schema)
        for _ in range(6):
            instance = maker.instance()
            wanted.append(validator.is_valid(instance))
            used[wanted[-1]] |= words(schema)
            lines.append(json.dumps({"schema": schema, "instance": instance}))
    answers = ask(options.bin, True, lines)
    bad = abs(len(answers) - len(lines))
    for line, want, answer in zip(lines, wanted, answers):
        if answer.split(":")[0] != ("valid" if want else "invalid"):
            bad += 1
            print("FAIL jsonschema says %s, gateway %s\n     %s" % (
                "valid" if want else "invalid", answer, line))
    for verdict, seen in used.items():
        for word in sorted(set(KEYWORDS) - seen):
            bad += 1
            print("FAIL no %s case has %s" % (
                "valid" if verdict else "invalid", word))
    own = (own_cases(options.bin, True), own_cases(options.bin, False),
           official_cases(options.bin, "*.json", True),
           official_cases(options.bin, "optional/format/*.json", False))
    good = len(lines) - bad + sum(passed for passed, _ in own)
    bad += sum(failed for _, failed in own)
    print("%d passed, %d failed" % (good, bad))
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
