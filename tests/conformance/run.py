#!/usr/bin/env python3
"""Runs the suite against a cluster of two Wasilet nodes and keeps each spec's newest result.

In: specs.tsv, the built binaries and images (scripts/conformance.sh makes them and the namespaces this runs in), the
choice of specs in the environment. Out: a line a spec, the table, target/conformance/results.json, and on request
the set's results.md. Changes nothing of the suite: it starts the upstream binary with a focus, one process a
spec, so that a spec that hangs costs itself alone.
"""

import datetime
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import threading
import time

import images
import report
from cluster import REPO, REGISTRY, Cluster

OUT = pathlib.Path(os.environ["CONFORMANCE_OUT"])
UPSTREAM = pathlib.Path(os.environ["CONFORMANCE_UPSTREAM"])


class Suite:
    """The upstream binary, one spec at a time."""

    def __init__(self, cluster, binary, logs, limit):
        self.cluster, self.binary, self.logs, self.limit = cluster, binary, logs, limit
        self.repositories = logs / "repositories.yaml"
        self.repositories.write_text(
            f"promoterE2eRegistry: {REGISTRY}/{images.E2E}\ngcRegistry: {REGISTRY}\n"
            f"dockerLibraryRegistry: {REGISTRY}/library\nsigStorageRegistry: {REGISTRY}/sig-storage\n")

    def run(self, number, spec):
        """Runs it to its end or its time limit; its result."""
        log, written = self.logs / f"{number:03}.log", self.logs / f"{number:03}.json"
        command = [
            self.binary, f"--kubeconfig={self.cluster.kubeconfig}", "--provider=local",
            f"--kubectl-path={self.cluster.binaries}/kubectl", "--num-nodes=2",
            rf"-ginkgo.focus=^Kubernetes e2e suite \Q{spec.name}\E$",
            "-ginkgo.no-color", "-ginkgo.v", f"-ginkgo.timeout={self.limit}s", f"-ginkgo.json-report={written}",
        ]
        begin = time.monotonic()
        with log.open("wb") as output:
            output.write(f"{spec.name}\n{spec.source}\n".encode())
            output.flush()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=self.logs,
                # Seven thousand specs are made to run one: collecting that garbage is half of what a short one costs.
                env={"GOGC": "400", **os.environ, "KUBE_TEST_REPO_LIST": str(self.repositories)}, start_new_session=True)
            try:
                # The suite ends itself at its limit and cleans up; this is for one that does not.
                process.wait(self.limit + 120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        result = {"state": "failed", "message": "the suite wrote no report", "seconds": round(time.monotonic() - begin)}
        try:
            specs = json.loads(written.read_text())[0]["SpecReports"]
        except (OSError, ValueError, IndexError):
            return result
        for one in specs or ():
            # Nodes of the suite's own (BeforeSuite) have no containers; a failure there is the spec's.
            failed = one["State"] not in ("passed", "skipped")
            if one["LeafNodeType"] != "It" and not failed:
                continue
            if one["LeafNodeType"] == "It" and one["State"] == "skipped" and not one.get("Failure", {}).get("Message"):
                continue  # Not the one in focus.
            result = {"state": one["State"], "seconds": round(one.get("RunTime", 0) / 1e9)}
            if one["State"] != "passed":
                failure = one.get("Failure", {})
                where = failure.get("Location", {})
                result["message"] = failure.get("Message", "")[:2000]
                result["location"] = f"{where.get('FileName', '').split('/test/e2e/')[-1]}:{where.get('LineNumber', 0)}"
            if failed:
                break
        written.unlink()
        return result


def choose(specs, results, environment):
    """The specs that are wanted: FOCUS and SKIP (a group such as common/node, a source path, or a regular expression),
    ONLY (passed, failed or new, by their newest result), LIST (a file of names), CLASSES."""
    def matcher(pattern):
        place = [spec for spec in specs if spec.group == pattern or spec.source.startswith(f"test/e2e/{pattern}")]
        if place:
            return place.__contains__
        return lambda spec: re.search(pattern, spec.name) is not None
    wanted = [spec for spec in specs if spec.kind in set(environment.get("CLASSES", "A,An,B").split(","))]
    if environment.get("FOCUS"):
        wanted = list(filter(matcher(environment["FOCUS"]), wanted))
    if environment.get("SKIP"):
        skipped = matcher(environment["SKIP"])
        wanted = [spec for spec in wanted if not skipped(spec)]
    if environment.get("LIST"):
        names = set(pathlib.Path(environment["LIST"]).read_text().splitlines())
        wanted = [spec for spec in wanted if spec.name in names]
    only = environment.get("ONLY")
    if only:
        state = {"passed": ("passed",), "failed": ("failed", "timedout", "panicked", "interrupted", "skipped"), "new": (None,)}[only]
        wanted = [spec for spec in wanted if results.get(spec.name, {}).get("state") in state]
    return wanted


def run_all(suite, wanted, processes, done):
    """Runs what may run beside others by several processes, then the rest alone; `done` takes each result."""
    number = iter(range(1, 1_000_000))
    for batch, workers in (([s for s in wanted if not s.serial], processes), ([s for s in wanted if s.serial], 1)):
        todo = queue.SimpleQueue()
        for spec in batch:
            todo.put((next(number), spec))

        def work():
            while True:
                try:
                    index, spec = todo.get_nowait()
                except queue.Empty:
                    return
                done(index, spec, suite.run(index, spec))

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(batch)))]
        for thread in threads:
            thread.start()
            # Their starts read much and wait little: not all in one second.
            time.sleep(0.3)
        for thread in threads:
            thread.join()


def main():
    chosen_set = os.environ.get("SET") or "conformance"
    specs = report.read_specs(chosen_set)
    store = OUT / "results.json"
    results = json.loads(store.read_text()) if store.exists() else {}
    environment = os.environ
    wanted = choose(specs, results, environment)
    repeat = int(environment.get("REPEAT", "1"))
    hold = environment.get("HOLD")
    if not wanted and not hold:
        raise SystemExit("error: no spec is chosen")
    begin = datetime.datetime.now(datetime.timezone.utc)
    name = begin.strftime("%m%d-%H%M%S")
    logs, state = OUT / "logs" / name, OUT / f"run-{os.getpid()}-{name}"
    wasilet = pathlib.Path(environment["WASILET_BIN"])
    version = subprocess.run([wasilet, "version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
    # Which sources it was built from, as far as this checkout tells.
    commit = subprocess.run(["git", "-C", REPO, "describe", "--always", "--dirty"], capture_output=True, text=True)
    version += f" ({environment.get('WASILET_COMMIT') or commit.stdout.strip() or 'no commit known'})"
    cluster = Cluster(pathlib.Path(environment["CONFORMANCE_CONTROL_PLANE"]),
                      pathlib.Path(environment["CONFORMANCE_REGISTRY"]), wasilet, state, logs,
                      (UPSTREAM, pathlib.Path(environment["CONFORMANCE_SUITE"]).parent))

    def fill(address):
        pushed, missing = images.push_all(address, OUT / "guests", UPSTREAM / "test/images")
        print(f"images: {len(pushed)}" + (f"; no wasm build here of {', '.join(missing)}" if missing else ""), flush=True)

    stopping = []

    def interrupted(*_):
        # What ends from here on ends because of us; asked once more, cleaning up goes on.
        stopping.append(True)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise SystemExit(130)
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGINT, interrupted)
    failures, counts = [], {}
    lock = threading.Lock()

    def done(index, spec, result):
        with lock:
            if stopping:
                return
            result.update(when=begin.strftime("%Y-%m-%d"), version=version)
            ended = cluster.ended()
            if ended:
                result["message"] = f"{ended.name} ended meanwhile; " + result.get("message", "")
                print(f"error: {ended.name} has ended:\n{ended.log}", flush=True)
                cluster.again(ended)
            # Another run of the same checkout may have written since.
            kept = json.loads(store.read_text()) if store.exists() else {}
            kept[spec.name] = result
            temporary = store.with_suffix(".new")
            temporary.write_text(json.dumps(kept, indent=0, sort_keys=True))
            temporary.replace(store)
            counts[result["state"]] = counts.get(result["state"], 0) + 1
            word = "PASS" if result["state"] == "passed" else result["state"].upper()
            print(f"{word} {result['seconds']:4}s [{index}] {spec.name}", flush=True)
            if result["state"] != "passed":
                failures.append(spec.name)
                lines = [line for line in result.get("message", "").splitlines() if line.strip()]
                print(f"      {result.get('location', '')}: {' | '.join(lines[:3])[:300]}", flush=True)

    try:
        cluster.up(fill)
        seconds = (datetime.datetime.now(datetime.timezone.utc) - begin).seconds
        print(f"cluster: 2 nodes of {version}, after {seconds} s; logs in {logs}", flush=True)
        if hold:
            print(f"held until Ctrl-C; inside: nsenter --target {os.environ.get('CONFORMANCE_PID', '?')} --net --mount --pid "
                  f"env KUBECONFIG={cluster.kubeconfig} bash", flush=True)
            signal.pause()
        suite = Suite(cluster, pathlib.Path(environment["CONFORMANCE_SUITE"]), logs,
                      int(environment.get("SPEC_SECONDS", "900")))
        for _ in range(repeat):
            run_all(suite, wanted, int(environment.get("PROCESSES", "4")), done)
    finally:
        cluster.down()
    results = json.loads(store.read_text()) if store.exists() else {}
    print()
    print(report.table(specs, results))
    passed = counts.get("passed", 0)
    # What the suite itself leaves out is no failure of a set that is chosen by labels; of the conformance specs none may be.
    skipped = counts.get("skipped", 0) if chosen_set != "conformance" else 0
    failed = sum(counts.values()) - passed - skipped
    minutes = (datetime.datetime.now(datetime.timezone.utc) - begin).seconds / 60
    print(f"\n{passed} passed, {failed} failed{f', {skipped} skipped by the suite' if skipped else ''} in {minutes:.1f} minutes (this run; the table has each spec's newest result)")
    if environment.get("WRITE"):
        report.results_file(chosen_set).write_text(report.markdown(chosen_set, specs, results))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
