"""An HTTPS server that opens WebSockets as the path says, and prints every message that it is sent.

Usage: websocket.py ADDRESS PORT CERTIFICATE KEY
"""
import base64
import hashlib
import json
import socket
import ssl
import struct
import sys
import threading

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def exactly(stream, count):
    data = b""
    while len(data) < count:
        part = stream.recv(count - len(data))
        if not part:
            raise OSError("ended")
        data += part
    return data


def frame(opcode, data, fin=True):
    head = bytes([(0x80 if fin else 0) | opcode])
    if len(data) < 126:
        return head + bytes([len(data)]) + data
    if len(data) < 1 << 16:
        return head + struct.pack(">BH", 126, len(data)) + data
    return head + struct.pack(">BQ", 127, len(data)) + data


def read(stream):
    first, second = exactly(stream, 2)
    length = second & 127
    if length == 126:
        (length,) = struct.unpack(">H", exactly(stream, 2))
    elif length == 127:
        (length,) = struct.unpack(">Q", exactly(stream, 8))
    if not second & 128:
        raise OSError("a frame without a mask")
    mask = exactly(stream, 4)
    data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(exactly(stream, length)))
    return first & 15, bool(first & 128), data


def head(stream):
    data = b""
    while b"\r\n\r\n" not in data:
        part = stream.recv(4096)
        if not part:
            raise OSError("ended")
        data += part
    raw, rest = data.split(b"\r\n\r\n", 1)
    # Nothing may come before the answer.
    print(json.dumps({"early": len(rest)}), flush=True)
    lines = raw.decode("latin-1").split("\r\n")
    return lines[0], [line.split(": ", 1) for line in lines[1:]]


def opening(fields, path):
    key = fields["sec-websocket-key"].encode()
    accept = base64.b64encode(hashlib.sha1(key + MAGIC).digest()).decode()
    more = ""
    if path == "/wrong-accept":
        accept = base64.b64encode(b"x" * 20).decode()
    if path == "/extended":
        more += "Sec-WebSocket-Extensions: permessage-deflate\r\n"
    if path == "/another":
        more += "Sec-WebSocket-Protocol: unasked\r\n"
    if path == "/chat":
        more += "Sec-WebSocket-Protocol: chat.v2\r\n"
    upgrade = "h2c" if path == "/h2c" else "websocket"
    return (
        f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: {upgrade}\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n{more}\r\n"
    ).encode()


def told(line, pairs):
    """What was asked; the credential backwards too, since an echo of it is overwritten."""
    given = [value for name, value in pairs if name.lower() == "authorization"]
    return {"line": line, "headers": pairs, "backwards": "".join(given)[::-1]}


def talk(stream, path):
    if path == "/drop":
        return
    if path == "/flood":
        stream.sendall(frame(2, b"x" * (1 << 20)))
    if path == "/pushed":
        stream.sendall(frame(1, b"first") + frame(9, b"are you there") + frame(8, struct.pack(">H", 4000) + b"bye"))
    while True:
        opcode, fin, data = read(stream)
        print(json.dumps({"opcode": opcode, "fin": fin, "data": data.decode("latin-1")}), flush=True)
        if opcode == 8:
            stream.sendall(frame(8, data[:2]))
            return
        if opcode == 9:
            stream.sendall(frame(10, data))
        if path == "/says" and opcode == 1:
            # What it is asked to say, be it text or `{"binary": TEXT}`.
            said = data.decode()
            binary = said.startswith('{"binary"')
            stream.sendall(frame(2 if binary else 1, said.encode()))
            continue
        if opcode in (1, 2):
            stream.sendall(frame(opcode, data))


def serve(stream):
    with stream:
        line, pairs = head(stream)
        path = line.split(" ")[1].split("?")[0]
        fields = {name.lower(): value for name, value in pairs}
        if path == "/plain" or path == "/no-upgrade":
            text = json.dumps(told(line, pairs)).encode()
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
            stream.recv(1)
            return
        stream.sendall(opening(fields, path))
        stream.sendall(frame(1, json.dumps(told(line, pairs)).encode()))
        talk(stream, path)


def guarded(plain, context):
    try:
        serve(context.wrap_socket(plain, server_side=True))
    except OSError:
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[3], sys.argv[4])
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=64)
print("ready", flush=True)
while True:
    plain, _ = listener.accept()
    threading.Thread(target=guarded, args=(plain, context), daemon=True).start()
