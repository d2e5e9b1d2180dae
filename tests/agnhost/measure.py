"""A node that gets a program of 136 MB: how often it is compiled, what that takes, and how other pods start meanwhile.

Usage: measure.py WASILET AGNHOST_WASM SLEEPER_WASM WORK_DIR. Two pods of the large image appear at the same moment on a node
that runs small ones; small ones go on appearing, one a second, until the baseline compiler has made the code that both start
with and the optimising one has made that of later starts. Then the agent is started again. Fails when the program is
compiled more than once by either, outside a process of its own, or beyond that process's limit of memory; when a small pod takes
longer than PATIENCE to its first line; when the server does not answer.
"""

import datetime
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

# Until a small pod's first line; a person would wait no longer.
PATIENCE = 10.0
# Until the large program runs: its compiler has 15 minutes of CPU, on cores that others may use too.
LONG = 5400.0
# The baseline one and the optimising one.
COMPILERS = 2
POD = """apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: main, image: "{image}", args: {args}}}
"""


def fail(what):
    sys.exit(f"error: {what}")


def status(pid, *fields):
    """MiB of some lines of /proc/PID/status; None once it is gone."""
    try:
        lines = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
        return [int(lines[field].split()[0]) / 1024 for field in fields]
    except (OSError, KeyError, ValueError):
        return None


class Node:
    def __init__(self, wasilet, work):
        self.wasilet, self.work = wasilet, work
        self.manifests = work / "manifests"
        self.agent = None

    def run(self, *args):
        done = subprocess.run([self.wasilet, "--root-dir", self.work / "root", *args], capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else None

    def start(self, log):
        # Without the toolbox, which would be compiled beside.
        command = [self.wasilet, "--root-dir", self.work / "root", "run", "--node-name", "node", "--toolbox", ""]
        self.agent = subprocess.Popen([*command, "--manifests", self.manifests], stdout=log, stderr=log)
        self.until(lambda: self.run("ps") is not None, 60, "the node does not answer")

    def stop(self):
        if self.agent and self.agent.poll() is None:
            self.agent.send_signal(signal.SIGTERM)
            self.agent.wait(timeout=60)

    def until(self, condition, patience, complaint):
        deadline = time.monotonic() + patience
        while not condition():
            if self.agent.poll() is not None:
                fail("the agent ended")
            if time.monotonic() > deadline:
                fail(complaint)
            time.sleep(0.05)

    def add(self, name, image, args):
        new = self.work / "new.yaml"
        new.write_text(POD.format(name=name, image=image, args=json.dumps(args)))
        begin = time.time()
        new.rename(self.manifests / f"{name}.yaml")
        return begin

    def pods(self):
        return {pod["metadata"]["name"]: pod for pod in json.loads(self.run("ps", "--output", "json") or '{"items": []}')["items"]}

    def phase(self, name):
        return self.pods().get(f"{name}-node", {}).get("status", {}).get("phase")

    def small(self, name):
        """Seconds from the manifest of a small pod to the time stamp of its first line."""
        begin = self.add(name, "test/sleeper:v1", [name])
        while time.time() - begin < PATIENCE:
            words = (self.run("logs", "--timestamps", f"{name}-node") or "").split()
            if words:
                # Nanoseconds are more than this parser reads.
                stamp, fraction = words[0].rstrip("Z").split(".")
                whole = datetime.datetime.fromisoformat(stamp).replace(tzinfo=datetime.timezone.utc).timestamp()
                return max(0.0, whole + float(f"0.{fraction}") - begin)
            time.sleep(0.02)
        fail(f"{name} has no line after {PATIENCE:.0f} s")

    def compilers(self):
        """Pids of the agent's compile subprocesses."""
        children = pathlib.Path(f"/proc/{self.agent.pid}/task").glob("*/children")
        pids = []
        for path in children:
            try:
                pids += [int(pid) for pid in path.read_text().split()]
            except OSError:
                pass
        return [pid for pid in pids if "__compile" in cmdline(pid)]


def cmdline(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def address_space(pid):
    """The limit in MiB."""
    for line in pathlib.Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max address space"):
            value = line.split()[3]
            return None if value == "unlimited" else int(value) / 2**20
    return None


def spread(seconds):
    seconds = sorted(seconds)
    milli = [seconds[len(seconds) // 2] * 1000, seconds[len(seconds) * 9 // 10] * 1000, seconds[-1] * 1000]
    return f"{len(seconds)} pods: median {milli[0]:.0f} ms, p90 {milli[1]:.0f} ms, longest {milli[2]:.0f} ms"


def first_start(node):
    """Both large pods appear; gives what was seen of the compilers, the starts of small ones meanwhile, and the seconds until
    both ran and until nothing was compiled any more."""
    begin = time.monotonic()
    node.add("server", "test/agnhost:v1", ["netexec", "--http-port=8080", "--udp-port=-1"])
    node.add("second", "test/agnhost:v1", ["pause"])
    seen, starts, running = {}, [], None
    while running is None or len(seen) < COMPILERS or node.compilers():
        if running is None and {node.phase("server"), node.phase("second")} == {"Running"}:
            running = time.monotonic() - begin
        if time.monotonic() - begin > LONG:
            fail(f"after {LONG:.0f} s: {node.phase('server')}, {node.phase('second')}")
        if node.agent.poll() is not None:
            fail("the agent ended")
        pids = node.compilers()
        if pids:
            starts.append(node.small(f"small-{len(starts)}"))
        # Between two small pods, several looks: the peak is soon followed by the end.
        for _ in range(10):
            for pid in node.compilers():
                figures = status(pid, "VmHWM", "VmPeak")
                if figures:
                    limit = seen[pid][2] if pid in seen else address_space(pid)
                    seen[pid] = (*figures, limit)
            time.sleep(0.1)
    return seen, starts, running, time.monotonic() - begin


def main():
    wasilet, agnhost, sleeper, work = (pathlib.Path(argument).resolve() for argument in sys.argv[1:5])
    shutil.rmtree(work, ignore_errors=True)
    (work / "manifests").mkdir(parents=True)
    node = Node(wasilet, work)
    for wasm, image in ((agnhost, "test/agnhost:v1"), (sleeper, "test/sleeper:v1")):
        if node.run("image", "load", str(wasm), image) is None:
            fail(f"{wasm} cannot be loaded")
    with open(work / "agent.log", "w") as log:
        try:
            measure(node, agnhost, log)
        finally:
            node.stop()


def measure(node, agnhost, log):
    node.start(log)
    node.add("warm", "test/sleeper:v1", ["warm"])
    node.until(lambda: node.phase("warm") == "Running", 600, "the first small pod does not run")
    before = [node.small(f"before-{n}") for n in range(10)]
    print(f"small pods before:    {spread(before)}")
    seen, starts, seconds, optimised = first_start(node)
    size = os.path.getsize(agnhost) / 1e6
    for resident, space, limit in seen.values():
        print(f"compiler of {size:.0f} MB:   {resident:.0f} MiB resident at its peak, {space:.0f} MiB of address space of {limit and round(limit)} MiB allowed")
        if limit is None or space > limit:
            fail("the compiler is not bounded")
    if len(seen) != COMPILERS:
        fail(f"{len(seen)} compilers ran for two pods of one image")
    print(f"both large pods run:  {seconds:.0f} s after they appeared (load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)")
    if len(starts) < 3:
        fail(f"only {len(starts)} small pods started meanwhile")
    print(f"optimised:            {optimised:.0f} s after they appeared")
    print(f"small pods meanwhile: {spread(starts)}")
    agent = status(node.agent.pid, "VmHWM", "VmRSS")
    print(f"the agent:            {agent[0]:.0f} MiB resident at its peak, {agent[1]:.0f} MiB now, both servers and all small pods in it")
    answers(node)

    node.stop()
    begin = time.monotonic()
    node.start(log)
    compiled = set()

    def again():
        compiled.update(node.compilers())
        return node.phase("server") == "Running" and node.phase("second") == "Running"

    node.until(again, 120, "the large pods do not run again")
    print(f"after a restart:      both run {time.monotonic() - begin:.1f} s later, without a compiler")
    if compiled:
        fail("the restarted agent compiled again")
    answers(node)


def answers(node):
    def asked():
        address = node.pods()["server-node"]["status"].get("podIP")
        try:
            with urllib.request.urlopen(f"http://{address}:8080/hostname", timeout=5) as answer:
                return answer.read().decode() == "server-node"
        except OSError:
            return False

    node.until(asked, 60, "the server does not answer with its name")


main()
