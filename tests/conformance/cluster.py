"""A cluster in the namespaces this process is in: the released control plane, a registry, and Wasilet nodes, each in a
network namespace of its own on one bridge.

In: the binaries, a directory for state and one for logs. Out: an administrator's kubeconfig and Ready nodes whose
podCIDRs are routed. Does not know the suite. Whoever starts it has put it into network, process and mount namespaces
of its own (scripts/conformance.sh): with that process everything here ends.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

REPO = pathlib.Path(__file__).resolve().parents[2]
HOST = "198.51.100.1"
REGISTRY = f"{HOST}:5000"
NODE_NAMES = ("node-a", "node-b")
# IPv4 and IPv6, or IPv4 alone: the specs of the suite that are about both say so by their label.
DUAL_STACK = os.environ.get("SET") == "dual-stack"
API_PORT = 6443

# What kubeadm gives the API server, and an administrator the cluster; the node's rights are by `wasilet rbac`.
RIGHTS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "kubeadm:apiserver-kubelet-client"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:kubelet-api-admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: kube-apiserver-kubelet-client}]
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: wasi}
handler: wasi
"""


def shell(script, *args):
    """Runs a piece of shell that must succeed."""
    done = subprocess.run(["sh", "-ec", script, "sh", *args], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {script.strip()}\n{done.stdout}{done.stderr}")
    return done.stdout


def wait_for(what, ready, processes=(), seconds=180):
    """Asks `ready` until it is true; a process that has ended meanwhile is named."""
    end = time.monotonic() + seconds
    while not ready():
        for process in processes:
            if process.poll() is not None:
                raise SystemExit(f"error: {process.name} has ended:\n{tail(process.log)}")
        if time.monotonic() > end:
            raise SystemExit(f"error: {what}: not after {seconds} seconds")
        time.sleep(0.2)


def tail(path, lines=20):
    """The end of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


# An empty /tmp for this mount namespace. What is used of the one before stays where it is: the arguments, up to `--`.
OWN_TMP = """
    mkdir /run/kept
    mount --rbind /tmp /run/kept
    mount -t tmpfs -o mode=1777 tmp /tmp
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        mkdir -p "$1"
        mount --rbind "/run/kept/${1#/tmp/}" "$1"
        shift
    done
    [ $# = 0 ] || shift
    umount -l /run/kept
    rmdir /run/kept
"""


class Cluster:
    """The running cluster."""

    def __init__(self, binaries, registry, wasilet, state, logs, read=()):
        """`read`: other directories that must stay in sight."""
        self.read = read
        self.binaries, self.registry, self.wasilet = binaries, registry, wasilet
        self.state, self.logs = state, logs
        self.processes, self.nodes = [], {}
        self.kubeconfig = state / "super-admin.conf"
        for directory in (state / "pki", logs):
            directory.mkdir(parents=True, exist_ok=True)

    # The parts.

    def start(self, name, command, machine=None, env=None):
        """Starts a process whose output is a log of its own, on a machine of the bridge or beside the control plane."""
        log = self.logs / f"{name}.log"
        prefix = ["ip", "netns", "exec", machine] if machine else []
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*prefix, *map(str, command)], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **(env or {})}, start_new_session=True)
        process.name, process.log = name, log
        process.again = lambda: self.start(name, command, machine, env)
        self.processes.append(process)
        return process

    def kubectl(self, *args, check=True, stdin=None):
        """Runs kubectl as the administrator."""
        done = subprocess.run(
            [self.binaries / "kubectl", "--kubeconfig", self.kubeconfig, *args],
            capture_output=True, text=True, input=stdin)
        if check and done.returncode:
            raise SystemExit(f"error: kubectl {' '.join(args)}: {done.stderr}")
        return done.stdout if done.returncode == 0 else None

    def filled(self, path):
        """A template of the cluster tests."""
        values = {
            "DIR": self.state, "PKI": self.state / "pki", "ADDRESS": HOST, "API_PORT": API_PORT, "ETCD_PORT": 2379,
            "ETCD_PEER_PORT": 2380, "CONTROLLER_MANAGER_PORT": 10257, "SCHEDULER_PORT": 10259,
            "SERVICE_RANGES": "10.96.0.0/16" + (",fd00:10:96::/112" if DUAL_STACK else ""),
            "POD_RANGES": "10.244.0.0/16" + (",fd00:10:244::/48" if DUAL_STACK else ""),
            # Nobody answers for the rest of the world's names.
            "DNS_PORT": 53, "EXTERNAL": "",
        }
        text = (REPO / "tests/cluster" / path).read_text()
        for key, value in values.items():
            text = text.replace(f"@{key}@", str(value))
        return text

    def flags(self, name):
        """The flags that the cluster tests start this part with."""
        return self.filled(f"flags/{name}").splitlines()

    def up(self, images):
        """Brings it up: control plane, registry filled by `images(address)`, nodes."""
        self.bridge()
        self.certificates()
        self.start("etcd", [self.binaries / "etcd", *self.flags("etcd")])
        self.start("kube-apiserver", [self.binaries / "kube-apiserver", *self.flags("kube-apiserver")])
        self.start_registry()
        images(REGISTRY)
        ready = lambda: self.kubectl("get", "--raw", "/readyz", check=False) is not None  # noqa: E731
        wait_for("the API server", ready, self.processes)
        for name in ("kube-controller-manager", "kube-scheduler"):
            self.start(name, [self.binaries / name, *self.flags(name)])
        wait_for("the controllers", lambda: self.kubectl("get", "serviceaccount", "default", check=False), self.processes)
        rights = subprocess.run([self.wasilet, "rbac"], capture_output=True, text=True, check=True).stdout
        for manifest in (RIGHTS, rights):
            self.kubectl("apply", "--filename", "-", stdin=manifest)
        shutil.copy(self.kubeconfig, self.state / "pki/coredns.kubeconfig")
        (self.state / "Corefile").write_text(self.filled("Corefile"))
        self.start("coredns", [self.binaries / "coredns", *self.flags("coredns")])
        self.kubectl("apply", "--filename", "-", stdin=self.filled("coredns.yaml"))
        for number, name in enumerate(NODE_NAMES):
            self.add_node(name, f"198.51.100.{10 + number}")
        for name in NODE_NAMES:
            self.finish_node(name)

    def bridge(self):
        """The switch that the machines are plugged into; this side of it is the control plane's address."""
        shell("""
            mount -t tmpfs -o mode=755 run /run
            mount -t tmpfs shm /dev/shm
            cp /etc/hosts /run/hosts
            mount --bind /run/hosts /etc/hosts
            ip link set lo up
            ip link add lan type bridge
            ip addr add "$1/24" dev lan
            ip link set lan up
            echo 1 >/proc/sys/net/ipv4/ip_forward
        """, HOST)
        shell(OWN_TMP, *self.below_tmp())
        if DUAL_STACK:
            shell("""
                ip addr add "$1/64" dev lan nodad
                echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
            """, sixth(HOST))

    def below_tmp(self):
        """The directories of /tmp that something of this run is in, none inside another."""
        used = {REPO, self.state, self.logs, self.binaries, self.wasilet.parent, self.registry.parent, *self.read}
        inside = sorted(str(path.resolve()) for path in used if path.resolve().is_relative_to("/tmp"))
        return [path for path in inside if not any(path != other and path.startswith(other + "/") for other in inside)]

    def certificates(self):
        """Authorities, certificates and kubeconfigs, by kubeadm as on a real control plane."""
        version = next(line.split()[1] for line in (REPO / "tests/cluster/go.mod").read_text().splitlines()
                       if line.split()[:1] == ["k8s.io/kubernetes"])
        self.kubeadm_config = self.state / "kubeadm.yaml"
        self.kubeadm_config.write_text(f"""\
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {{advertiseAddress: {HOST}, bindPort: {API_PORT}}}
nodeRegistration: {{criSocket: unix:///run/none.sock, name: control-plane}}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: {version}
certificatesDir: {self.state}/pki
controlPlaneEndpoint: {HOST}:{API_PORT}
networking: {{serviceSubnet: 10.96.0.0/16, podSubnet: 10.244.0.0/16}}
encryptionAlgorithm: ECDSA-P256
""")
        for phase in (["certs", "all"], ["kubeconfig", "all", "--kubeconfig-dir", self.state]):
            self.kubeadm("init", "phase", *phase, "--config", self.kubeadm_config)
        for name in ("controller-manager", "scheduler"):
            shutil.copy(self.state / f"{name}.conf", self.state / f"pki/{name}.kubeconfig")

    def kubeadm(self, *args):
        done = subprocess.run([self.binaries / "kubeadm", *map(str, args)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"error: kubeadm {' '.join(map(str, args))}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def start_registry(self):
        """The distribution registry; what was pushed before is still there."""
        data = self.state.parent / "registry"
        config = self.state / "registry.json"  # JSON is YAML.
        config.write_text(json.dumps({
            "version": "0.1", "log": {"level": "warn"}, "storage": {"filesystem": {"rootdirectory": str(data)}},
            "http": {"addr": REGISTRY},
        }))
        self.start("registry", [self.registry, "serve", config], env={"OTEL_TRACES_EXPORTER": "none"})
        wait_for("the registry", lambda: reachable(HOST, 5000), self.processes)
        hosts = self.state / "hosts" / REGISTRY
        hosts.mkdir(parents=True, exist_ok=True)
        (hosts / "hosts.toml").write_text(f'server = "http://{REGISTRY}"\n')

    # The nodes.

    def add_node(self, name, address):
        """A machine on the bridge, and the node's process on it."""
        shell("""
            ip netns add "$1"
            ip link add "v-$1" type veth peer name eth0 netns "$1"
            ip link set "v-$1" master lan up
            ip -n "$1" link set lo up
            ip -n "$1" addr add "$2/24" dev eth0
            ip -n "$1" link set eth0 up
            ip -n "$1" route add default via "$3"
            ip netns exec "$1" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
        """, name, address, HOST)
        if DUAL_STACK:
            shell("""
                ip -n "$1" addr add "$2/64" dev eth0 nodad
                ip -n "$1" route add default via "$3"
            """, name, sixth(address), sixth(HOST))
        root = self.state / name
        root.mkdir()
        kubeconfig = self.state / f"{name}.kubeconfig"
        kubeconfig.write_text(self.kubeadm(
            "kubeconfig", "user", "--config", self.kubeadm_config, "--client-name", f"system:node:{name}",
            "--org", "system:nodes"))
        (self.state / f"{name}.yaml").write_text(f"""\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
clusterDomain: cluster.local
clusterDNS: [10.96.0.10]
serverTLSBootstrap: true
registerWithTaints: []
# However full this machine's disk is.
evictionHard: {{memory.available: 50Mi}}
imageGCHighThresholdPercent: 100
podLogsDir: {self.logs}/{name}-pods
authentication: {{x509: {{clientCAFile: {self.state}/pki/ca.crt}}}}
---
apiVersion: wasilet.dev/v1alpha1
kind: NodeConfiguration
kubeconfig: {kubeconfig}
nodeIP: "{address}{"," + sixth(address) if DUAL_STACK else ""}"
nodeLabels: {{kubernetes.io/os: linux}}
registryHostsDir: {self.state}/hosts
# The suite's own specs of hostPath volumes use these.
hostPathAllowedPrefixes: [/tmp, /etc/hosts]
""")
        artifacts = self.state.parent / "artifacts"
        if artifacts.is_dir():
            # Compiled once, used by every later cluster; a link, since nobody changes an artifact in place.
            shell('cp -al "$1" "$2"', str(artifacts), str(root / "artifacts"))
        self.nodes[name] = address
        # No machine has its /tmp in common with the one that the suite runs on, which removes files there.
        own_tmp = ["sh", "-ec", OWN_TMP + 'exec "$@"', "sh", *self.below_tmp(), "--"]
        self.start(name, [*own_tmp, self.wasilet, "--root-dir", root, "run", "--config", self.state / f"{name}.yaml",
                          "--node-name", name], machine=name)

    def finish_node(self, name):
        """Waits for the node, routes its pods' addresses to it and approves its serving certificate."""
        def node_is_ready():
            text = self.kubectl("get", "node", name, "--output", "json", check=False)
            self.node = json.loads(text) if text else {}
            conditions = {c["type"]: c["status"] for c in self.node.get("status", {}).get("conditions", [])}
            return conditions.get("Ready") == "True" and self.node["spec"].get("podCIDR")
        wait_for(f"{name} is Ready", node_is_ready, self.processes)
        for cidr in self.node["spec"]["podCIDRs"]:
            address = sixth(self.nodes[name]) if ":" in cidr else self.nodes[name]
            shell('ip route replace "$1" via "$2"', cidr, address)
            for other in NODE_NAMES:
                if other != name:
                    shell('ip -n "$3" route replace "$1" via "$2"', cidr, address, other)
        def certified():
            listed = json.loads(self.kubectl("get", "csr", "--output", "json"))["items"]
            mine = [csr for csr in listed if csr["spec"]["username"] == f"system:node:{name}"]
            pending = [csr["metadata"]["name"] for csr in mine if not csr["status"].get("conditions")]
            if pending:
                self.kubectl("certificate", "approve", *pending)
            return any(csr["status"].get("certificate") for csr in mine)
        wait_for(f"the serving certificate of {name}", certified, self.processes)

    def ended(self):
        """A part that should run and does not."""
        return next((process for process in self.processes if process.poll() is not None), None)

    def again(self, process):
        """Starts a part that has ended once more."""
        self.processes.remove(process)
        process.again()

    def down(self):
        """Ends every part, the nodes first: they still have an API server to tell. Keeps what they compiled."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    process.kill()
        artifacts = self.state.parent / "artifacts"
        for name in NODE_NAMES:
            compiled = self.state / name / "artifacts"
            if compiled.is_dir():
                artifacts.mkdir(exist_ok=True)
                shell('cp -aln "$1"/*.sum "$1"/*.cwasm "$2"/ 2>/dev/null || true', str(compiled), str(artifacts))
        shutil.rmtree(self.state, ignore_errors=True)


def sixth(address):
    """The IPv6 address of a machine of the bridge, 198.51.100.7 being fd00:198:51:100::7."""
    first, second, third, last = address.split(".")
    return f"fd00:{first}:{second}:{third}::{last}"


def reachable(host, port):
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
