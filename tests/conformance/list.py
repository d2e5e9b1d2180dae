#!/usr/bin/env python3
"""The specs of a set, by the suite's own labels: `list.py REPORT LABEL... > sets/NAME.tsv`.

In: the JSON report of a dry run of the suite (`e2e.test -ginkgo.dry-run -ginkgo.json-report=REPORT`), and labels, each of
which a spec must have; `!LABEL` ones it must not, `~TEXT` and `!~TEXT` are looked for in its name. Out: the list, each spec
of class A. Those that mean nothing on this node are made class C by hand, with the reason, and keep it when a list on
standard input has it.
"""

import json
import sys


def labels(spec):
    found = set(spec.get("LeafNodeLabels") or [])
    for more in spec.get("ContainerHierarchyLabels") or []:
        found |= set(more or [])
    return found


def wanted(condition, name, has):
    positive = not condition.startswith("!")
    condition = condition.removeprefix("!")
    there = condition[1:] in name if condition.startswith("~") else condition in has
    return there == positive


def main():
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    report, *conditions = sys.argv[1:]
    kept = {} if sys.stdin.isatty() else {
        line.split("\t")[1]: line for line in sys.stdin.read().splitlines() if line.startswith("C\t")}
    lines = []
    with open(report, encoding="utf-8") as file:
        specs = json.load(file)[0]["SpecReports"]
    for spec in specs:
        name = " ".join([*(spec["ContainerHierarchyTexts"] or []), spec["LeafNodeText"]])
        if spec["LeafNodeType"] != "It" or not all(wanted(c, name, labels(spec)) for c in conditions):
            continue
        where = spec["LeafNodeLocation"]
        source = f"test/e2e/{where['FileName'].split('/test/e2e/')[-1]}:{where['LineNumber']}"
        lines.append(kept.get(name, f"A\t{name}\t{source}\tby label"))
    print("class\tspec\tsource\twhy")
    print("# " + " ".join(conditions))
    print("\n".join(sorted(lines, key=lambda line: (line.split("\t")[2], line))))


if __name__ == "__main__":
    main()
