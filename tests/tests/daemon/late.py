"""Serves one program at sys.argv[1]/program over FUSE, read from sys.argv[2], to who runs it. Who opens it without wanting to wait, as
the agent does, waits for ever, or fails for the first sys.argv[3] times; if that is "flush", who closes it does, and only root if it is "root"; if it is "slow",
who closes it waits for a little less than the agent does; if it is "read", who reads it waits for ever. Ends with its standard input."""
import ctypes
import os
import select
import struct
import sys
import time

FORGET, BATCH_FORGET, INTERRUPT = 2, 42, 36  # Have no answer.
LOOKUP, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, OPENDIR, RELEASEDIR = 1, 3, 14, 15, 18, 25, 26, 27, 29
ENOENT, EIO, ENOSYS = 2, 5, 38
LONG = 3600  # Seconds that the kernel may believe what it was told.
SLOW = 0.18

mount, program = sys.argv[1], open(sys.argv[2], "rb").read()
never_closed = sys.argv[3] if sys.argv[3:] in (["flush"], ["root"], ["slow"], ["read"]) else None
failures = int(sys.argv[3]) if sys.argv[3:] and not never_closed else None
device = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"late", mount.encode(), b"fuse", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))


def attributes(node):
    size, mode, links = (0, 0o40755, 2) if node == 1 else (len(program), 0o100755, 1)
    times = struct.pack("<QQQIII", 1, 1, 1, 0, 0, 0)
    return struct.pack("<QQQ", node, size, (size + 511) // 512) + times + struct.pack("<IIIIIII", mode, links, 0, 0, 0, 4096, 0)


def answer(opcode, node, user, body):
    """What to say; a number is an error, None is no answer."""
    global failures
    if opcode == INIT:
        return struct.pack("<IIIIHHIIHHII24x", 7, 31, 1 << 17, 0, 16, 12, 1 << 17, 1, 32, 0, 0, 0)
    if opcode == LOOKUP:
        if body.rstrip(b"\0") != b"program":
            return ENOENT
        return struct.pack("<QQQQII", 2, 1, LONG, LONG, 0, 0) + attributes(2)
    if opcode == GETATTR:
        return struct.pack("<QII", LONG, 0, 0) + attributes(node)
    if opcode in (OPEN, OPENDIR):
        if opcode == OPEN and not never_closed and struct.unpack_from("<I", body)[0] & os.O_NONBLOCK:
            print("waits", flush=True)
            if failures is None:
                return None
            failures -= 1
            if failures >= 0:
                return EIO
        # FOPEN_KEEP_CACHE: who opens it waits for no page that another reads.
        return struct.pack("<QII", 1, 2, 0)
    if opcode == READ and never_closed == "read":
        print("reads", flush=True)
        return None
    if opcode == READ:
        at, size = struct.unpack_from("<QI", body, 8)
        return program[at : at + size]
    if opcode == FLUSH and (never_closed == "flush" or never_closed == "root" and user == 0):
        print("closes", flush=True)
        return None
    return b"" if opcode in (RELEASE, RELEASEDIR, FLUSH) else ENOSYS


def say(unique, said):
    error, said = (-said, b"") if isinstance(said, int) else (0, said)
    try:
        os.write(device, struct.pack("<IiQ", 16 + len(said), error, unique) + said)
    except FileNotFoundError:
        pass  # Who asked was killed.


print("serves", flush=True)
late = []
while True:
    while late and late[0][0] <= time.monotonic():
        say(late.pop(0)[1], b"")
    left = max(0, late[0][0] - time.monotonic()) if late else None
    ready = select.select([device, 0], [], [], left)[0]
    if 0 in ready:
        break
    if device not in ready:
        continue
    try:
        request = os.read(device, 1 << 18)
    except (BlockingIOError, FileNotFoundError):
        continue  # Who asked was killed.
    _, opcode, unique, node, user = struct.unpack_from("<IIQQI", request)
    if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
        continue
    if opcode == FLUSH and never_closed == "slow":
        late.append((time.monotonic() + SLOW, unique))
        continue
    said = answer(opcode, node, user, request[40:])
    if said is not None:
        say(unique, said)
libc.umount2(mount.encode(), 2)
