"""Attaches programs that do nothing at the hooks that a connection passes, until its standard input ends."""
import ctypes
import os
import struct
import sys

BPF = 321  # Of x86-64.
PROG_LOAD, LINK_CREATE = 5, 28
# Types of programs and of attachments, as <linux/bpf.h> numbers them.
HOOKS = {
    "connect4": (18, 10),
    "getpeername4": (18, 29),
    "sock_create": (9, 2),
    "sock_release": (9, 34),
    "ingress": (8, 0),
    "egress": (8, 1),
}
libc = ctypes.CDLL(None, use_errno=True)
# r0 = 1; exit: pass.
code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0), 16)
licence = ctypes.create_string_buffer(b"GPL")


def bpf(command, attributes):
    attributes = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    found = libc.syscall(BPF, command, attributes, 128)
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found


def load(program, attachment):
    head = struct.pack("<IIQQ", program, 2, ctypes.addressof(code), ctypes.addressof(licence))
    return bpf(PROG_LOAD, head + struct.pack("<IIQII16sII", 0, 0, 0, 0, 0, b"empty", 0, attachment))


cgroup = os.open(sys.argv[1], os.O_RDONLY)
# Links end with the process.
links = [
    bpf(LINK_CREATE, struct.pack("<IIII", load(program, attachment), cgroup, attachment, 0))
    for program, attachment in HOOKS.values()
]
print("attached", flush=True)
sys.stdin.read()
