# Hears what arrives at its port, whatever the protocol, and tells each name once when its input closes.
import select, socket, sys

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
            sniffer = bound(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800), ("lo", 0x0800))
            return port, [first, listener(V6, "::1", port)], datagrams, sniffer
        except OSError:
            continue


def note(data):
    """A name stands between `<` and `>`; headers may be before it."""
    begin, end = data.rfind(b"<"), data.rfind(b">")
    if 0 <= begin < end:
        heard.add(data[begin + 1 : end].decode("ascii", "replace"))


def sniff(frame):
    """What is no socket's: UDP from the port that only frames made by hand come from."""
    if frame[23:24] == b"\x11" and frame[34:36] == MADE:
        note(frame)


MADE = (4242).to_bytes(2, "big")
port, listeners, datagrams, sniffer = open_all()
streams = []
print(port, flush=True)
ending = False
while True:
    ready, _, _ = select.select([sys.stdin] * (not ending) + listeners + datagrams + streams + pings + [sniffer], [], [], 0.3)
    if ending and not ready:
        break
    for s in ready:
        if s is sys.stdin:
            ending = True
        elif s in listeners:
            streams.append(s.accept()[0])
        elif s in pings:
            ping(s)
        elif s is sniffer:
            sniff(s.recv(2048))
        elif s in datagrams:
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
