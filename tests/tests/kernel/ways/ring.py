# io_uring: its operations are no system calls of their own. Stands before scripts that use it.
import ctypes, mmap, os, socket, struct

libc = ctypes.CDLL(None, use_errno=True)


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def sockaddr(family, ip, to):
    if family == socket.AF_INET:
        return struct.pack("=HH4s8x", socket.AF_INET, socket.htons(to), socket.inet_pton(socket.AF_INET, ip))
    return struct.pack("=HHI16sI", socket.AF_INET6, socket.htons(to), 0, socket.inet_pton(socket.AF_INET6, ip), 0)


ENTRIES, SQPOLL, ASYNC = 4, 2, 16
SOCKET, CONNECT, SEND, SENDMSG = 45, 16, 26, 9


class Ring:
    def __init__(self, flags=0):
        # struct io_uring_params: entries, flags, idle time, then where things are.
        params = ctypes.create_string_buffer(struct.pack("4I", 0, 0, flags, 0) + bytes(104), 120)
        self.fd = check(libc.syscall(425, ENTRIES, params))
        words = struct.unpack("30I", params.raw)
        self.sq, self.cq = words[10:16], words[20:26]
        entries, completions = words[0], words[1]
        self.array, self.flags = words[16], flags
        size = max(self.array + 4 * entries, self.cq[5] + 16 * completions)
        self.queue = mmap.mmap(self.fd, size, offset=0)
        self.entries = mmap.mmap(self.fd, 64 * entries, offset=0x10000000)

    def word(self, at, value=None):
        if value is not None:
            self.queue[at : at + 4] = struct.pack("I", value)
        return struct.unpack("I", self.queue[at : at + 4])[0]

    def do(self, opcode, fd, address=0, length=0, offset=0, more=0, flags=0):
        """One operation; returns its result."""
        _, tail, mask = self.sq[:3]
        entry = struct.pack("BBHiQQII", opcode, flags, 0, fd, offset, address, length, more) + bytes(32)
        at = self.word(tail)
        slot = at & self.word(mask)
        self.entries[64 * slot : 64 * slot + 64] = entry
        self.word(self.array + 4 * slot, slot)
        self.word(tail, at + 1)
        wake = 2 if self.flags & SQPOLL else 0  # IORING_ENTER_SQ_WAKEUP
        check(libc.syscall(426, self.fd, 1, 1, 1 | wake, None, 0))
        c_head, c_tail, c_mask = self.cq[:3]
        first = self.word(c_head)
        entry_at = self.cq[5] + 16 * (first & self.word(c_mask))
        result = struct.unpack("i", self.queue[entry_at + 8 : entry_at + 12])[0]
        self.word(c_head, first + 1)
        if result < 0:
            raise OSError(-result, "")
        return result


