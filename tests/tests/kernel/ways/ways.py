# Every way out that is known, each under its name: tries to get that name to whoever listens at the port.
# Behind `ring.py`. Arguments: the cgroup to enter, or nothing; the port; a resolver's address, which may be sent DNS.
import array, ctypes, errno, os, signal, socket, struct, sys, threading, time

V4, V6 = socket.AF_INET, socket.AF_INET6
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
MPTCP = 262
FAST = 0x20000000  # MSG_FASTOPEN
LOCAL = {V4: "127.0.0.1", V6: "::1"}
ANY = {V4: "0.0.0.0", V6: "::"}
cgroup, port, resolver = sys.argv[1], int(sys.argv[2]), sys.argv[3]
ways = []


def way(*families):
    def register(function):
        for family in families:
            name = function.__name__.replace("_", "-") + ("4" if family == V4 else "6")
            ways.append((name, function, family))
        return function

    return register


both = way(V4, V6)


def stream(family, ip, text, s=None):
    with s or socket.socket(family, TCP) as s:
        s.settimeout(2)
        s.connect((ip, port))
        s.sendall(text)


def finish(s, text):
    """What fast open sent or not: a stream says it again where it is connected."""
    s.settimeout(2)
    s.sendall(text)
    s.close()


@both
def tcp(family, text):
    stream(family, LOCAL[family], text)


@both
def tcp_wildcard(family, text):
    stream(family, ANY[family], text)


@way(V4)
def tcp_mapped(family, text):
    stream(V6, "::ffff:127.0.0.1", text)


@way(V4)
def tcp_mapped_wildcard(family, text):
    stream(V6, "::ffff:0.0.0.0", text)


@both
def tcp_nonblocking(family, text):
    s = socket.socket(family, TCP)
    s.setblocking(False)
    try:
        s.connect((LOCAL[family], port))
    except BlockingIOError:
        pass
    finish(s, text)


@both
def fast_open_sendto(family, text):
    s = socket.socket(family, TCP)
    s.sendto(text, FAST, (LOCAL[family], port))
    finish(s, text)


@both
def fast_open_sendmsg(family, text):
    s = socket.socket(family, TCP)
    s.sendmsg([text], [], FAST, (LOCAL[family], port))
    finish(s, text)


@both
def fast_open_connect(family, text):
    s = socket.socket(family, TCP)
    s.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
    s.setsockopt(socket.IPPROTO_TCP, 34, 1)  # TCP_FASTOPEN_NO_COOKIE
    s.settimeout(2)
    s.connect((LOCAL[family], port))
    finish(s, text)


@both
def mptcp(family, text):
    stream(family, LOCAL[family], text, socket.socket(family, TCP, MPTCP))


@both
def disconnected_and_connected_again(family, text):
    s = socket.socket(family, TCP)
    s.connect((LOCAL[family], port))
    unspec = ctypes.create_string_buffer(16)
    check(libc.connect(s.fileno(), unspec, 16))
    stream(family, LOCAL[family], text, s)


@both
def marked(family, text):
    s = socket.socket(family, TCP)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x746F6C6C)
    s.setsockopt(socket.SOL_SOCKET, 25, b"lo\0")  # SO_BINDTODEVICE
    stream(family, LOCAL[family], text, s)


@both
def transparent(family, text):
    s = socket.socket(family, TCP)
    # IP_TRANSPARENT and IP_FREEBIND, and what IPv6 has for them; of its addresses only one leads back here.
    level, options, own = (0, (19, 15), "127.7.7.7") if family == V4 else (41, (75, 78), "::1")
    for option in options:
        s.setsockopt(level, option, 1)
    s.bind((own, 0))
    stream(family, LOCAL[family], text, s)


@both
def udp_sendto(family, text):
    with socket.socket(family, UDP) as s:
        s.sendto(text, (LOCAL[family], port))


@way(V4)
def udp_mapped(family, text):
    with socket.socket(V6, UDP) as s:
        s.sendto(text, ("::ffff:127.0.0.1", port))


@both
def udp_sendmsg(family, text):
    with socket.socket(family, UDP) as s:
        s.sendmsg([text], [], 0, (LOCAL[family], port))


@both
def udp_sendmmsg(family, text):
    with socket.socket(family, UDP) as s:
        name = ctypes.create_string_buffer(sockaddr(family, LOCAL[family], port))
        data = ctypes.create_string_buffer(text, len(text))
        iov = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(data), len(text)))
        header = struct.pack("QIxxxxQQQQIxxxxI4x", ctypes.addressof(name), len(name) - 1, ctypes.addressof(iov), 1, 0, 0, 0, 0)
        check(libc.sendmmsg(s.fileno(), ctypes.create_string_buffer(header), 1, 0))


@both
def udp_connected(family, text):
    with socket.socket(family, UDP) as s:
        s.connect((LOCAL[family], port))
        s.send(text)


@both
def udp_connected_elsewhere_then_here(family, text):
    with socket.socket(family, UDP) as s:
        s.connect((resolver if family == V4 else "::1", 53))
        s.connect((LOCAL[family], port))
        s.send(text)


@both
def udp_corked(family, text):
    with socket.socket(family, UDP) as s:
        s.connect((LOCAL[family], port))
        s.send(text[:1], socket.MSG_MORE)
        s.send(text[1:])


@both
def udp_address_that_flips(family, text):
    """Another thread writes to the address while the kernel reads it: all the time, since it lets go of Python's lock."""
    there, here = sockaddr(family, resolver if family == V4 else LOCAL[V6], 53), sockaddr(family, LOCAL[family], port)
    shared = ctypes.create_string_buffer(there, len(there))
    source = os.memfd_create("addresses")
    os.write(source, (there + here) * 512)
    each = struct.pack("QQ", ctypes.addressof(shared), len(there))
    vector = ctypes.create_string_buffer(each * 1023)
    going = True

    def flip():
        at = 0
        while going:
            check(libc.preadv(source, vector, 1023, ctypes.c_long(at)))
            at = len(there) - at  # Ends with the other one next time.

    flipping = threading.Thread(target=flip)
    flipping.start()
    refused, tried, end = 0, 0, time.monotonic() + 4
    with socket.socket(family, UDP) as s:
        # Whom nobody keeps from it need not go on: so many would be in the way of what is tried next.
        while tried < 40000 and time.monotonic() < end and (refused or tried < 2000):
            query = struct.pack("H", tried) + text  # Each with an id of its own, which lets it through to port 53.
            refused += libc.sendto(s.fileno(), query, len(query), 0, shared, len(there)) < 0
            tried += 1
            if not refused and tried % 100 == 0:
                time.sleep(0.01)  # The other thread has its turn, and whoever hears it.
    going = False
    flipping.join()
    if refused:
        print("%d-of-%d" % (refused, tried) if tried < 2000 or refused == tried else "", end="")
        raise PermissionError(errno.EPERM, "")


@both
def udp_lite(family, text):
    with socket.socket(family, UDP, 136) as s:
        s.sendto(text, (LOCAL[family], port))


@both
def raw(family, text):
    with socket.socket(family, socket.SOCK_RAW, 253) as s:
        s.sendto(text, (LOCAL[family], 0))


@both
def icmp(family, text):
    kind, protocol = (8, 1) if family == V4 else (128, 58)
    with socket.socket(family, socket.SOCK_RAW, protocol) as s:
        body = struct.pack("!BBHHH", kind, 0, 0, 1, 1) + text
        total = checksum(body) if family == V4 else bytes(2)
        s.sendto(body[:2] + total + body[4:], (LOCAL[family], 0))


@both
def raw_udp(family, text):
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        s.sendto(udp_packet(family, text), (LOCAL[family], 0))


def checksum(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xFFFF)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)


def udp_packet(family, text):
    length, ends = 8 + len(text), socket.inet_pton(family, LOCAL[family]) * 2
    udp = struct.pack("!HHHH", 4242, port, length, 0) + text
    if family == V6:
        udp = udp[:6] + checksum(ends + struct.pack("!II", length, 17) + udp) + udp[8:]
        return struct.pack("!IHBB", 6 << 28, length, 17, 64) + ends + udp
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1, 0, 64, 17, 0) + ends
    return head[:10] + checksum(head) + head[12:] + udp


@both
def packet(family, text):
    with packet_socket() as s:
        s.send(frame(family, text))


def packet_socket():
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    s.bind(("lo", 0))
    return s


def frame(family, text):
    return bytes(12) + (b"\x08\x00" if family == V4 else b"\x86\xdd") + udp_packet(family, text)


# What an outsider made and hands in.


def handed(what, family):
    outsider.send(("%s %d" % (what, family)).encode())
    _, fds, _, _ = socket.recv_fds(outsider, 16, 1)
    if not fds:
        raise OSError(errno.EPERM, "the kernel kept it")
    return socket.socket(fileno=fds[0])


def serve_outside(end):
    kept = []
    while True:
        asked = end.recv(64).decode()
        if not asked:
            os._exit(0)
        what, family = asked.split()
        if "packet" in what:
            s = packet_socket()
        else:
            s = socket.socket(int(family), TCP, MPTCP if "mptcp" in what else 0)
        if what.endswith("connected"):
            s.connect((LOCAL[int(family)], port))
        if what.startswith("passed"):
            socket.send_fds(end, [b"fd"], [s.fileno()])
        else:
            end.send(b"%d %d" % (os.getpid(), s.fileno()))
        kept.append(s)


@both
def inherited(family, text):
    stream(family, LOCAL[family], text, inherited_sockets[family])


@both
def inherited_mptcp(family, text):
    stream(family, LOCAL[family], text, inherited_mptcp_sockets[family])


@both
def inherited_connected(family, text):
    sent_by_another_program(connected_sockets[family], text)


@both
def inherited_mptcp_connected(family, text):
    sent_by_another_program(connected_mptcp_sockets[family], text)


@both
def inherited_packet(family, text):
    sent_by_another_program(inherited_packet_socket, frame(family, text))


@both
def passed_packet(family, text):
    handed("passed-packet", family).send(frame(family, text))


def sent_by_another_program(s, text):
    s.set_inheritable(True)
    program = """import socket, sys
try:
    socket.socket(fileno=int(sys.argv[1])).sendall(bytes.fromhex(sys.argv[2]))
except OSError as error:
    sys.exit(error.errno)"""
    words = [sys.executable, "-c", program, str(s.fileno()), text.hex()]
    child(lambda: os.execv(sys.executable, words))


@both
def inherited_and_asked_with(family, text):
    """That it asked for a name with the socket makes it no socket of its own."""
    s = connected_to_send[family]
    s.set_inheritable(True)
    program = """import socket, sys
s = socket.socket(fileno=int(sys.argv[1]))
try:
    s.sendto(b"query", (sys.argv[3], 53))
except OSError:
    pass
try:
    s.send(sys.argv[2].encode())
except OSError as error:
    sys.exit(error.errno)"""
    asked = resolver if family == V4 else LOCAL[V6]
    words = [sys.executable, "-c", program, str(s.fileno()), text.decode(), asked]
    child(lambda: os.execv(sys.executable, words))


@both
def passed(family, text):
    stream(family, LOCAL[family], text, handed("passed", family))


@both
def passed_mptcp(family, text):
    stream(family, LOCAL[family], text, handed("passed-mptcp", family))


@both
def passed_mptcp_connected(family, text):
    handed("passed-mptcp-connected", family).sendall(text)


@both
def passed_connected(family, text):
    handed("passed-connected", family).sendall(text)


def taken(what, family):
    outsider.send(("%s %d" % (what, family)).encode())
    pid, fd = map(int, outsider.recv(64).split())
    pidfd = check(libc.syscall(434, pid, 0))
    return socket.socket(fileno=check(libc.syscall(438, pidfd, fd, 0)))


@both
def taken_by_pidfd(family, text):
    stream(family, LOCAL[family], text, taken("taken", family))


@both
def taken_by_pidfd_connected(family, text):
    taken("taken-connected", family).sendall(text)


# Other processes and namespaces.


def child(work, fork=os.fork):
    pid = fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(status, "")


@both
def daemonised(family, text):
    def work():
        os.setsid()
        child(lambda: stream(family, LOCAL[family], text))

    child(work)


@both
def nested_cgroup(family, text):
    if cgroup:
        inner = cgroup + "/inner-%d" % os.getpid()
        os.mkdir(inner)
        with open(inner + "/cgroup.procs", "w") as file:
            file.write("0")
    stream(family, LOCAL[family], text)


@both
def cgroup_left_by_a_file_opened_before(family, text):
    # Whoever opened it had the right; who writes to it needs none.
    if cgroup:
        os.setresuid(65534, 65534, 65534)
        way_back.write("0")
        way_back.flush()
    stream(family, LOCAL[family], text)


@both
def born_outside_the_cgroup(family, text):
    # struct clone_args: flags (CLONE_INTO_CGROUP), exit_signal fifth, cgroup last.
    if not cgroup:
        return stream(family, LOCAL[family], text)
    directory = os.open(os.path.dirname(cgroup), os.O_RDONLY)
    arguments = struct.pack("11Q", 1 << 33, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, directory)
    clone = lambda: check(libc.syscall(435, arguments, len(arguments)))
    child(lambda: stream(family, LOCAL[family], text), clone)


@both
def user_namespace(family, text):
    check(libc.unshare(0x10000000))
    stream(family, LOCAL[family], text)


@both
def another_program(family, text):
    code = "import socket; s = socket.create_connection((%r, %d), 2); s.sendall(%r)"
    code += "\n"
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code % (LOCAL[family], port, text)], os.environ)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise OSError(errno.ECHILD, "")


# io_uring, by what stands before this.


def by_ring(family, text, ring, fd, flags=0):
    address = ctypes.create_string_buffer(sockaddr(family, LOCAL[family], port))
    data = ctypes.create_string_buffer(text, len(text))
    ring.do(CONNECT, fd, ctypes.addressof(address), 0, len(address) - 1, flags=flags)
    ring.do(SEND, fd, ctypes.addressof(data), len(text), flags=flags)


@both
def uring(family, text):
    with socket.socket(family, TCP) as s:
        by_ring(family, text, Ring(), s.fileno())


@both
def uring_async(family, text):
    with socket.socket(family, TCP) as s:
        by_ring(family, text, Ring(), s.fileno(), ASYNC)


@both
def uring_kernel_thread(family, text):
    with socket.socket(family, TCP) as s:
        by_ring(family, text, Ring(SQPOLL), s.fileno())


@both
def uring_socket(family, text):
    ring = Ring()
    by_ring(family, text, ring, ring.do(SOCKET, family, offset=TCP))


@both
def uring_datagram(family, text):
    name = ctypes.create_string_buffer(sockaddr(family, LOCAL[family], port))
    data = ctypes.create_string_buffer(text, len(text))
    iov = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(data), len(text)))
    header = ctypes.create_string_buffer(
        struct.pack("QIxxxxQQQQI4x", ctypes.addressof(name), len(name) - 1, ctypes.addressof(iov), 1, 0, 0, 0)
    )
    with socket.socket(family, UDP) as s:
        Ring(SQPOLL).do(SENDMSG, s.fileno(), ctypes.addressof(header), 1)


def attempt(name, function, family):
    """In a process of its own; tells the error's name, or `ok`."""
    print(name, end=" ", flush=True)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            function(family, b"<%s>" % name.encode())
            told = "ok"
        except TimeoutError:
            told = "timeout"
        except OSError as error:
            told = errno.errorcode.get(error.errno, str(error))
        except BaseException as error:
            told = repr(error).replace(" ", "_")
        print(told, flush=True)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        print("killed", flush=True)


outsider, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if os.fork() == 0:
    outsider.close()
    serve_outside(outside)
outside.close()
inherited_sockets, connected_sockets = ({family: socket.socket(family, TCP) for family in (V4, V6)} for _ in range(2))
inherited_packet_socket = packet_socket()
inherited_mptcp_sockets, connected_mptcp_sockets = ({family: socket.socket(family, TCP, MPTCP) for family in (V4, V6)} for _ in range(2))
for sockets in connected_sockets, connected_mptcp_sockets:
    for family, s in sockets.items():
        s.connect((LOCAL[family], port))
connected_to_send = {family: socket.socket(family, UDP) for family in (V4, V6)}
for family, s in connected_to_send.items():
    s.connect((LOCAL[family], port))
if cgroup:
    way_back = open(os.path.dirname(cgroup) + "/cgroup.procs", "w")
    with open(cgroup + "/cgroup.procs", "w") as file:
        file.write("0")
for each in ways:
    attempt(*each)
