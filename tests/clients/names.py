"""A client that asks for names: one JSON command a line, one JSON answer a line."""
import json
import socket
import struct
import sys
import time

SERVER = [line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver")][0]


def lookup(host):
    """As programs do it: the C library, with whatever it does on the way."""
    try:
        found = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
        return {"addresses": sorted({entry[4][0] for entry in found})}
    except socket.gaierror as fault:
        return {"failed": [name for name in dir(socket) if name.startswith("EAI_") and getattr(socket, name) == fault.errno][0]}


def reverse(address):
    try:
        return {"name": socket.gethostbyaddr(address)[0]}
    except OSError as fault:
        return {"failed": type(fault).__name__}


def query(name, kind, edns, case):
    labels = name.split(".") if name else []
    wire = b"".join(bytes([len(label)]) + label.encode("latin-1") for label in labels) + b"\0"
    message = struct.pack(">HHHHHH", 0x4D2, 0x0100, 1, 0, 0, 1 if edns else 0) + wire + struct.pack(">HH", kind, 1)
    if edns:
        message += b"\0" + struct.pack(">HHIH", 41, edns, 0, 0)
    return message.swapcase() if case else message


def raw(name="", kind=1, over="udp", server=SERVER, edns=0, port=53, wait=5, hex=None):
    """One query, byte by byte; what comes back, and from whom."""
    message = bytes.fromhex(hex) if hex else query(name, kind, edns, False)
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    if over == "tcp":
        with socket.create_connection((server, port), timeout=wait) as stream:
            stream.sendall(struct.pack(">H", len(message)) + message)
            (length,) = struct.unpack(">H", exactly(stream, 2))
            return answer(exactly(stream, length), stream.getpeername())
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        udp.settimeout(wait)
        if over == "connected":
            udp.connect((server, port))
            udp.send(message)
        else:
            udp.sendto(message, (server, port))
        return answer(*udp.recvfrom(65535))


def exactly(stream, length):
    data = b""
    while len(data) < length:
        part = stream.recv(length - len(data))
        if not part:
            raise OSError("the connection ended")
        data += part
    return data


def answer(data, sender):
    identity, flags, questions, answers, _, _ = struct.unpack(">HHHHHH", data[:12])
    ttls, at = [], 12
    while questions and data[at]:
        at += data[at] + 1
    at += 5
    for _ in range(answers):
        assert data[at] & 0xC0 == 0xC0
        ttl, length = struct.unpack(">IH", data[at + 6 : at + 12])
        ttls.append(ttl)
        at += 12 + length
    return {
        "id": identity, "code": flags & 15, "cut": bool(flags & 0x200), "answers": answers, "ttl": max(ttls, default=0),
        "from": list(sender[:2]), "length": len(data), "text": data.decode("latin-1"),
    }


for line in sys.stdin:
    command = json.loads(line)
    verb = {"lookup": lookup, "reverse": reverse, "raw": raw}[command.pop("do")]
    began = time.monotonic()
    try:
        result = verb(**command)
    except (OSError, struct.error) as fault:
        result = {"error": f"{type(fault).__name__}: {fault}"}
    result["ms"] = round((time.monotonic() - began) * 1000, 3)
    print(json.dumps(result), flush=True)
