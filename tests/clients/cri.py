"""Pods by CRI, as a kubelet asks a runtime for them; messages are written here, field by field (runtime.v1, api.proto).

cri.py SOCKET run NAME NAMESPACE IMAGE PARENT OUT LABELS COMMAND…   prints the container's id and its pod's; OUT is /out in it
cri.py SOCKET image ARCHIVE NAME                                    writes an image of busybox
cri.py SOCKET end                                                   ends and removes all pods
"""
import hashlib, io, json, sys, tarfile
import grpc


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number, content):
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def labels(number, all):
    return b"".join(field(number, field(1, k) + field(2, v)) for k, v in all.items())


def texts(message, number):
    """What a message without numbers has in these fields."""
    found, at = [], 0
    while at < len(message):
        tag, length, shift, at = message[at], 0, 0, at + 1
        while True:
            byte, at = message[at], at + 1
            length, shift = length | (byte & 127) << shift, shift + 7
            if tag & 7 == 0 and byte < 128:
                length = 0
            if byte < 128:
                break
        if tag == number << 3 | 2:
            found.append(message[at:at + length])
        at += length
    return found


socket, action, *rest = sys.argv[1:]
channel = grpc.insecure_channel("unix:" + socket)


def call(method, message):
    return channel.unary_unary("/runtime.v1.RuntimeService/" + method)(message, timeout=60, wait_for_ready=True)


def run(name, namespace, image, parent, out, labelled, *command):
    # The host's network (NODE), which needs no plugin.
    node = field(1, b"\x08\x02")
    known = {"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.uid": "uid-" + name}
    pod = field(1, field(1, name) + field(2, "uid-" + name) + field(3, namespace))
    pod += labels(6, {**json.loads(labelled), **known}) + field(8, field(1, parent) + field(2, node))
    sandbox = texts(call("RunPodSandbox", field(1, pod)), 1)[0]
    container = field(1, field(1, "main")) + field(2, field(1, image))
    container += b"".join([field(3, command[0])] + [field(4, argument) for argument in command[1:]])
    container += field(7, field(1, "/out") + field(2, out)) + labels(9, {**known, "io.kubernetes.container.name": "main"})
    container += field(15, field(2, field(3, b"\x08\x02")))
    made = texts(call("CreateContainer", field(1, sandbox) + field(2, container) + field(3, pod)), 1)[0]
    call("StartContainer", field(1, made))
    print(made.decode(), sandbox.decode())


def image(archive, name):
    def packed(files):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.mode, info.size = 0o755, len(content)
                tar.addfile(info, io.BytesIO(content))
        return out.getvalue()

    layer = packed({"bin/busybox": open("/usr/bin/busybox", "rb").read(), "bin/sh": b""})
    # The name within makes each image another.
    config = {"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/bin/busybox", "sleep", "99999"], "Labels": {"image": name}},
              "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]}}
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {"config.json": json.dumps(config).encode(), "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()}
    open(archive, "wb").write(packed(files))


def end():
    for pod in texts(call("ListPodSandbox", b""), 1):
        # Its id is its first field.
        call("StopPodSandbox", pod[:66])
        call("RemovePodSandbox", pod[:66])


{"run": run, "image": image, "end": end}[action](*rest)
