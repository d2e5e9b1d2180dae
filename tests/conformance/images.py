"""The suite's images: for each name and tag a wasm build of the same program, packed as an ordinary image (gzip-free
layers, an OCI manifest) and pushed into a registry.

In: a directory of wasm files, a registry's address. Out: the names that were pushed, and those whose wasm file is
missing. What an image holds follows its upstream Dockerfile (k8s.io/kubernetes/test/images): entrypoint, arguments,
users, folders; a base image's shell and utilities are the toolbox.
"""

import hashlib
import http.client
import io
import json
import pathlib
import subprocess
import tarfile
import urllib.parse

E2E = "e2e-test-images"
PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"
PATH = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
# What upstream's image has by its base, Alpine; this one says what it is.
OS_RELEASE = 'NAME="Wasilet"\nID=wasilet\nID_LIKE=alpine\nPRETTY_NAME="WASI build of an image that is Alpine Linux upstream"\n'
OCI = "application/vnd.oci.image"
MANIFEST = f"{OCI}.manifest.v1+json"
GROUP = "root:x:0:\nnobody:x:65534:\n"


class Layer:
    """A tar that is the same every time, digest and all."""

    def __init__(self):
        self.buffer = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buffer, mode="w", format=tarfile.PAX_FORMAT)

    def _add(self, path, mode, owner, content=None, kind=tarfile.REGTYPE, target=""):
        info = tarfile.TarInfo(path.lstrip("/"))
        info.mode, info.type, info.linkname = mode, kind, target
        info.uid, info.gid = owner
        info.size = len(content) if content is not None else 0
        self.tar.addfile(info, io.BytesIO(content) if content is not None else None)
        return self

    def file(self, path, content, mode=0o644, owner=(0, 0)):
        return self._add(path, mode, owner, content.encode() if isinstance(content, str) else content)

    def directory(self, path, mode=0o755, owner=(0, 0)):
        return self._add(path, mode, owner, kind=tarfile.DIRTYPE)

    def link(self, path, target):
        return self._add(path, 0o777, (0, 0), kind=tarfile.SYMTYPE, target=target)

    def bytes(self):
        self.tar.close()
        return self.buffer.getvalue()


class Registry:
    """Pushes blobs and manifests by the distribution API."""

    def __init__(self, address):
        self.address = address

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(self.address, timeout=120)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        response.read()
        connection.close()
        return response

    def blob(self, name, content):
        digest = digest_of(content)
        if self.request("HEAD", f"/v2/{name}/blobs/{digest}").status != 200:
            place = self.request("POST", f"/v2/{name}/blobs/uploads/").getheader("Location")
            parts = urllib.parse.urlsplit(place)
            query = parts.query + ("&" if parts.query else "") + urllib.parse.urlencode({"digest": digest})
            done = self.request("PUT", f"{parts.path}?{query}", content, {"Content-Type": "application/octet-stream"})
            if done.status != 201:
                raise SystemExit(f"error: pushing a blob of {name}: {done.status}")

    def push(self, name, tag, layers, config):
        config, manifest = documents(layers, config)
        for content in (config, *layers):
            self.blob(name, content)
        done = self.request("PUT", f"/v2/{name}/manifests/{tag}", manifest, {"Content-Type": MANIFEST})
        if done.status != 201:
            raise SystemExit(f"error: pushing {name}:{tag}: {done.status}")


def digest_of(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def documents(layers, config):
    """The configuration and the manifest of an image."""
    config = json.dumps({"architecture": "wasm", "os": "wasip1", "config": config,
                         "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}}).encode()
    blob = lambda kind, content: {"mediaType": f"{OCI}.{kind}", "digest": digest_of(content), "size": len(content)}  # noqa: E731
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": blob("config.v1+json", config),
                "layers": [blob("layer.v1.tar", layer) for layer in layers]}
    return config, json.dumps(manifest).encode()


class Builder:
    """Makes every image that can be made of the wasm files in `wasm`."""

    def __init__(self, wasm, upstream):
        self.wasm, self.upstream = pathlib.Path(wasm), pathlib.Path(upstream)
        self.missing = set()

    def program(self, name):
        return (self.wasm / f"{name}.wasm").read_bytes()

    def has(self, *names):
        missing = {name for name in names if not (self.wasm / f"{name}.wasm").exists()}
        self.missing |= missing
        return not missing

    def base(self):
        """What alpine, Debian and busybox bring: a shell and its utilities, the usual folders."""
        layer = Layer()
        for path in ("/bin", "/etc", "/home", "/root", "/sbin", "/usr", "/usr/bin", "/usr/sbin", "/usr/local",
                     "/usr/local/bin", "/var", "/var/run", "/var/lib", "/var/log"):
            layer.directory(path)
        layer.directory("/tmp", 0o1777)
        layer.file("/bin/busybox", self.program("toolbox"), 0o755)
        for applet in (self.wasm / "toolbox.applets").read_text().split():
            if applet != "busybox":
                layer.link(f"/bin/{applet}", "/bin/busybox")
        return layer

    def agnhost(self):
        """test/images/agnhost/Dockerfile."""
        layer = Layer()
        layer.directory("/uploads")
        layer.file("/agnhost", self.program("agnhost"), 0o755)
        layer.link("/agnhost-2", "agnhost")
        layer.file("/etc/os-release", OS_RELEASE)
        for name in ("localhost.crt", "localhost.key"):
            layer.file(f"/{name}", (self.upstream / "agnhost/porter" / name).read_bytes())
        user = "user-defined-in-image"
        layer.directory(f"/home/{user}", 0o755, (1000, 1000))
        layer.file("/etc/passwd", PASSWD + f"{user}:x:1000:1000:Linux User,,,:/home/{user}:/bin/sh\n")
        layer.file("/etc/group", GROUP + f"{user}:x:1000:\ngroup-defined-in-image:x:50000:{user}\n")
        if self.has("pause"):
            self.fake_registry(layer)
        return layer

    def pause(self):
        """The layers and the configuration of the pause image."""
        layer = Layer().file("/pause", self.program("pause"), 0o755).bytes()
        return [layer], {**PATH, "Entrypoint": ["/pause"], "User": "65535:65535"}

    def fake_registry(self, layer):
        """What agnhost's own registry serves (fakeregistryserver/images.txt): pause, its tag `testing`."""
        layers, config = self.pause()
        config, manifest = documents(layers, config)
        for kind, contents in (("blobs", (config, *layers)), ("manifests", (manifest,))):
            for content in contents:
                digest = hashlib.sha256(content).hexdigest()
                layer.file(f"/var/registry/pause/{kind}/sha256/{digest[:2]}/{digest}/data", content)
        layer.file("/var/registry/pause/manifests/testing", digest_of(manifest))

    def accounts(self):
        return Layer().file("/etc/passwd", PASSWD).file("/etc/group", GROUP)

    def all(self):
        """(name, tags, layers, config) of each image."""
        if self.has("pause"):
            yield "pause", ["3.10.2"], *self.pause()
        if not self.has("toolbox"):
            # Enough for pods that bring their own arguments.
            base = []
        else:
            base = [self.base().bytes()]
            debian = [*base, self.accounts().bytes()]
            yield f"{E2E}/busybox", ["1.37.0-1"], debian, {**PATH, "Cmd": ["sh"]}
            yield f"{E2E}/nonroot", ["1.5"], debian, {**PATH, "Cmd": ["/bin/sh"], "User": "1234"}
            yield f"{E2E}/glibc-dns-testing", ["2.0.0"], debian, {**PATH, "Cmd": ["/bin/sh"]}
            yield f"{E2E}/ipc-utils", ["1.4"], debian, {**PATH, "Cmd": ["/bin/sh"]}
        if self.has("agnhost"):
            server = {**PATH, "Entrypoint": ["/agnhost"], "Cmd": ["pause"],
                      "ExposedPorts": {f"{port}/tcp": {} for port in (80, 8080, 8081, 9376, 5000)}}
            agnhost = [*base, self.agnhost().bytes()]
            if (self.wasm / "coredns.wasm").exists():
                # Upstream's image has it too. It is as large as the rest, and one spec runs it: not part of every build.
                agnhost.append(Layer().file("/coredns", self.program("coredns"), 0o755).bytes())
            yield f"{E2E}/agnhost", ["2.63.0", "2.55"], agnhost, server
            for animal in ("kitten", "nautilus"):
                page = Layer()
                for name in (f"{animal}.jpg", "data.json"):
                    page.file(f"/{name}", (self.upstream / animal / "html" / name).read_bytes())
                yield f"{E2E}/{animal}", ["1.8"], [*agnhost, page.bytes()], {**server, "Cmd": ["test-webserver"]}
            # A web server on port 80, as nginx is with its default configuration.
            nginx = {**PATH, "Entrypoint": ["/agnhost"], "Cmd": ["test-webserver"], "ExposedPorts": {"80/tcp": {}}}
            yield f"{E2E}/nginx", ["1.15-4", "1.27-0"], agnhost, nginx


def push_all(address, wasm, upstream):
    """Pushes what can be made; says what cannot."""
    registry, builder = Registry(address), Builder(wasm, upstream)
    pushed = []
    for name, tags, layers, config in builder.all():
        for tag in tags:
            registry.push(name, tag, layers, config)
            pushed.append(f"{name}:{tag}")
    return pushed, sorted(builder.missing)
