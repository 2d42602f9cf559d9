# Hears what arrives at its port, whatever the protocol, and tells each name once when its input closes.
import ctypes, select, socket, struct, sys

V4, V6 = socket.AF_INET, socket.AF_INET6
heard = set()


def listener(family, ip, port):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((ip, port))
    s.listen(64)
    return s


def bound(family, kind, protocol, address):
    s = socket.socket(family, kind, protocol)
    s.bind(address)
    return s


def ping(s):
    """A call, not the kernel's answer to somebody, which quotes what it answers."""
    packet = s.recv(2048)
    if packet[:1] == b"\x80" or packet[20:21] == b"\x08":
        note(packet)


def sniffer(kind, protocol, source):
    """Hears what is no socket's: UDP from the port that only frames made by hand come from, and nothing else, however much
    others send. Where in a frame its protocol and its port are is told."""
    s = bound(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind), ("lo", kind))
    code = [(0x30, 0, 0, protocol), (0x15, 0, 3, 17), (0x28, 0, 0, source), (0x15, 0, 1, 4242), (6, 0, 0, 65535), (6, 0, 0, 0)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
    s.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxQ", 6, ctypes.addressof(code)))  # SO_ATTACH_FILTER
    return s


pings = []


def open_all():
    """One port that is free for every protocol and both families."""
    while True:
        first = listener(V4, "127.0.0.1", 0)
        port = first.getsockname()[1]
        try:
            datagrams = [
                bound(V4, socket.SOCK_DGRAM, 0, ("127.0.0.1", port)),
                bound(V6, socket.SOCK_DGRAM, 0, ("::1", port)),
            ]
            for family, ip in (V4, "127.0.0.1"), (V6, "::1"):
                try:
                    datagrams.append(bound(family, socket.SOCK_DGRAM, 136, (ip, port)))
                except OSError:
                    pass  # A kernel without UDP-Lite.
            for family, ip, icmp in (V4, "127.0.0.1", 1), (V6, "::1", 58):
                datagrams.append(bound(family, socket.SOCK_RAW, 253, (ip, 0)))
                pings.append(bound(family, socket.SOCK_RAW, icmp, (ip, 0)))
            sniffers = [sniffer(0x0800, 23, 34), sniffer(0x86DD, 20, 54)]
            return port, [first, listener(V6, "::1", port)], datagrams, sniffers
        except OSError:
            continue


def note(data):
    """A name stands between `<` and `>`; headers may be before it."""
    begin, end = data.rfind(b"<"), data.rfind(b">")
    if 0 <= begin < end:
        heard.add(data[begin + 1 : end].decode("ascii", "replace"))


port, listeners, datagrams, sniffers = open_all()
streams = []
print(port, flush=True)
ending = False
while True:
    ready, _, _ = select.select([sys.stdin] * (not ending) + listeners + datagrams + streams + pings + sniffers, [], [], 0.3)
    if ending and not ready:
        break
    for s in ready:
        if s is sys.stdin:
            ending = True
        elif s in listeners:
            streams.append(s.accept()[0])
        elif s in pings:
            ping(s)
        elif s in datagrams or s in sniffers:
            note(s.recv(2048))
        else:
            try:
                data = s.recv(2048)
            except OSError:
                data = b""
            if data:
                note(data)
            else:
                streams.remove(s)
print(" ".join(sorted(heard)), flush=True)
