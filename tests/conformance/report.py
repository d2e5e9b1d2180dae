"""Counts and words: from the specs' classes and newest results to the table on the terminal and results.md.

In: a set's specs, results.json, causes.tsv (hand-written: a spec's name, why it fails). Out: text. Runs nothing.
Sets: `conformance` is specs.tsv, the others are sets/NAME.tsv (list.py writes them from the suite's own labels).
Classes: A (a container has to run), An (and talks over sockets), B (the node emulates something), C (excluded, with the
reason in the list) exercise a node and are counted; D and D2 run no container on it and are never counted with them.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
NODE_KINDS = ("A", "An", "B", "C")
GROUPS = {"apimachinery": "api-machinery", "kubectl": "cli"}


@dataclasses.dataclass(frozen=True)
class Spec:
    """One line of specs.tsv."""

    kind: str
    name: str
    source: str
    why: str

    @property
    def serial(self):
        return "[Serial]" in self.name

    @property
    def group(self):
        parts = self.source.split("/")
        return "/".join(parts[2:4]) if parts[2] == "common" else GROUPS.get(parts[2], parts[2])


def read_specs(name):
    """The specs of a set."""
    path = HERE / "specs.tsv" if name == "conformance" else HERE / "sets" / f"{name}.tsv"
    if not path.exists():
        known = ", ".join(["conformance", *sorted(other.stem for other in (HERE / "sets").glob("*.tsv"))])
        raise SystemExit(f"error: SET={name}: there is no {path.relative_to(HERE)}; sets are {known}")
    lines = [line for line in path.read_text().splitlines()[1:] if not line.startswith("#")]
    return [Spec(*line.split("\t")) for line in lines]


def results_file(name):
    """Where the results of a set are kept for a reader."""
    return HERE / ("results.md" if name == "conformance" else f"results-{name}.md")


def counts(specs, results):
    """{group: Counter of COLUMNS} of the specs that exercise a node."""
    groups = collections.defaultdict(collections.Counter)
    for spec in specs:
        if spec.kind not in NODE_KINDS:
            continue
        state = results.get(spec.name, {}).get("state")
        word = "excluded" if spec.kind == "C" else {None: "not run", "passed": "passed", "skipped": "skipped"}.get(state, "failed")
        for group in (spec.group, "total"):
            groups[group]["total"] += 1
            groups[group][word] += 1
    return groups


# Skipped: the suite itself says that a spec does not apply to this cluster.
COLUMNS = ("total", "passed", "failed", "skipped", "excluded", "not run")


def rows(specs, results):
    groups = counts(specs, results)
    order = sorted((g for g in groups if g != "total"), key=lambda g: (-groups[g]["total"], g))
    return [(g, *(groups[g][column] for column in COLUMNS)) for g in [*order, "total"]]


def apart(specs, results):
    """One line about those that run no container."""
    others = [spec for spec in specs if spec.kind not in NODE_KINDS]
    states = [results.get(spec.name, {}).get("state") for spec in others]
    ran = [state for state in states if state]
    if not ran:
        return f"apart from these: {len(others)} specs of the API alone, which say nothing about a node; not run"
    return f"apart from these: {len(others)} specs of the API alone, which say nothing about a node; {states.count('passed')} passed of {len(ran)} run"


def table(specs, results):
    lines = [f"{'group':16}" + "".join(f"{column:>10}" for column in COLUMNS)]
    lines += [f"{row[0]:16}" + "".join(f"{value:>10}" for value in row[1:]) for row in rows(specs, results)]
    if any(spec.kind not in NODE_KINDS for spec in specs):
        lines.append(apart(specs, results))
    return "\n".join(lines)


def causes():
    path = HERE / "causes.tsv"
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split("\t", 1) for line in lines if "\t" in line and not line.startswith("#"))


def cell(text):
    return " ".join(text.split()).replace("|", "\\|")


def title(name):
    """The set's labels, as list.py was given them: the first line of its list, behind the columns."""
    if name == "conformance":
        return "`[Conformance]`"
    head = (HERE / "sets" / f"{name}.tsv").read_text().splitlines()[1]
    return f"`{head.removeprefix('# ')}`"


def markdown(name, specs, results):
    known = causes()
    node = [spec for spec in specs if spec.kind in NODE_KINDS]
    ours = {spec.name: results[spec.name] for spec in node if spec.name in results}
    passed = sum(1 for result in ours.values() if result["state"] == "passed")
    digest = hashlib.sha256(json.dumps(ours, sort_keys=True).encode()).hexdigest()
    versions = sorted({result["version"] for result in ours.values()})
    dates = sorted({result["when"] for result in ours.values()})
    text = [
        f"node specs: {passed} / {len(node)}", "",
        f"Written by `make conformance {'' if name == 'conformance' else f'SET={name} '}WRITE=1`: each spec with its newest result.", "",
        f"- suite: Kubernetes e2e.test v1.36.3, {title(name)}, unmodified; {len(specs)} specs, of which {len(node)} exercise a node",
        f"- node: {', '.join(versions)}; two of them, control plane v1.36.3",
        "- images: upstream's programs built for WASI; agnhost is its own source with Linux's file for file system names, nginx is agnhost's "
        "web server, shells and utilities of base images are the node's toolbox; agnhost's /etc/os-release says that it is a WASI build "
        "of an image that is Alpine Linux upstream, which one spec reads",
        f"- run: {dates[0] + (' to ' + dates[-1] if dates[0] != dates[-1] else '') if dates else 'never'}",
        f"- digest of the results (JSON, sorted): sha256:{digest}", "",
        "| group | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS),
        *("| " + " | ".join(map(str, row)) + " |" for row in rows(specs, results)), "",
        *([apart(specs, results) + ".", ""] if len(specs) != len(node) else []),
    ]
    failed = [spec for spec in node if spec.kind != "C" and ours.get(spec.name, {}).get("state") not in (None, "passed", "skipped")]
    if failed:
        text += ["## Failed", "", "| spec | where | cause |", "|---|---|---|"]
        for spec in failed:
            result = ours[spec.name]
            cause = known.get(spec.name) or cell(result.get("message", ""))[:200]
            text.append(f"| {cell(spec.name.removesuffix(' [Conformance]'))} | {cell(result.get('location', ''))} | {cell(cause)} |")
        text.append("")
    skipped = [spec for spec in node if ours.get(spec.name, {}).get("state") == "skipped"]
    if skipped:
        text += ["## Skipped by the suite", "", "| spec | its reason |", "|---|---|"]
        text += [f"| {cell(spec.name)} | {cell(ours[spec.name].get('message', ''))[:200]} |" for spec in skipped]
        text.append("")
    excluded = [spec for spec in node if spec.kind == "C"]
    if excluded:
        text += ["## Excluded", "", "| spec | source | reason |", "|---|---|---|"]
        text += [f"| {cell(spec.name)} | {spec.source} | {cell(spec.why)} |" for spec in excluded]
    missing = [spec for spec in node if spec.kind != "C" and spec.name not in ours]
    if missing:
        text += ["", "## Not run", "", *(f"- {spec.name}" for spec in missing)]
    return "\n".join(text) + "\n"
