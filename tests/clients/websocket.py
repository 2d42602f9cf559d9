"""A WebSocket client that sends exactly the frames it is told to: one JSON command a line, one JSON answer a line.

Text stands for bytes, one character each (latin-1).
"""
import json
import os
import socket
import ssl
import struct
import sys

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
stream, held = None, b""


def open_(host, path, headers=None, early=""):
    """Asks for a WebSocket; `headers` replaces the usual ones, `early` goes right behind."""
    global stream, held
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    stream = context.wrap_socket(socket.create_connection((host, 443), timeout=10), server_hostname=host)
    held = b""
    usual = {
        "Host": host, "Upgrade": "websocket", "Connection": "keep-alive, Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY, "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
        "Cookie": "a=b", "Authorization": "Bearer mine",
    }
    for name, value in (headers or {}).items():
        usual[name] = value
    lines = "".join(f"{name}: {value}\r\n" for name, value in usual.items() if value is not None)
    stream.sendall(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + early.encode("latin-1"))
    while b"\r\n\r\n" not in held:
        part = stream.recv(65536)
        if not part:
            return {"head": held.decode("latin-1"), "end": "closed"}
        held += part
    head, held = held.split(b"\r\n\r\n", 1)
    lines = head.decode("latin-1").split("\r\n")
    fields = {line.split(": ", 1)[0].lower(): line.split(": ", 1)[1] for line in lines[1:]}
    answer = {"status": int(lines[0].split(" ")[1]), "headers": fields}
    if answer["status"] != 101:
        length = int(fields.get("content-length", 0))
        while len(held) < length:
            held += stream.recv(65536)
        answer["body"], held = held[:length].decode("latin-1"), held[length:]
    return answer


def encoded(opcode, data, fin=True, mask=True, rsv=0):
    raw = data.encode("latin-1")
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 128 if mask else 0
    if len(raw) < 126:
        head += bytes([bit | len(raw)])
    elif len(raw) < 1 << 16:
        head += struct.pack(">BH", bit | 126, len(raw))
    else:
        head += struct.pack(">BQ", bit | 127, len(raw))
    if not mask:
        return head + raw
    key = os.urandom(4)
    return head + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(raw))


def send(frames):
    stream.sendall(b"".join(encoded(**frame) for frame in frames))
    return {}


def more(count):
    global held
    while len(held) < count:
        part = stream.recv(65536)
        if not part:
            raise EOFError
        held += part
    data, held = held[:count], held[count:]
    return data


def read(count=1, wait=5):
    """So many frames, or those that came before the end, or before `wait` seconds without a byte."""
    stream.settimeout(wait)
    frames, end = [], None
    try:
        while len(frames) < count:
            first, second = more(2)
            length = second & 127
            if length == 126:
                (length,) = struct.unpack(">H", more(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", more(8))
            data = more(length)
            found = {"opcode": first & 15, "rsv": first >> 4 & 7, "masked": second >> 7}
            if first & 15 == 8:
                found["code"] = struct.unpack(">H", data[:2])[0] if data else None
                data = data[2:]
            found["data"] = data.decode("latin-1")
            frames.append(found)
    except EOFError:
        end = "closed"
    except (TimeoutError, socket.timeout):
        end = "silent"
    except OSError as error:
        end = f"reset: {error}"
    return {"frames": frames, "end": end}


def close():
    stream.close()
    return {}


VERBS = {"open": open_, "send": send, "read": read, "close": close}
for line in sys.stdin:
    command = json.loads(line)
    try:
        answer = VERBS[command.pop("do")](**command)
    except Exception as error:  # noqa: BLE001 - every failure is an answer
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
