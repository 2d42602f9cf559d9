"""An HTTPS server that misbehaves as the path says, and shows what it was sent.

Usage: odd.py ADDRESS PORT CERTIFICATE KEY [CLIENTS-CA] [tls12] [told]

With `told` it prints what it did, and what it dropped.
"""
import base64
import gzip
import json
import random
import socket
import ssl
import sys
import threading
import time
import zlib

OK = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"


def head(connection, held):
    while b"\r\n\r\n" not in held:
        part = connection.recv(65536)
        if not part:
            return None, b""
        held += part
    raw, rest = held.split(b"\r\n\r\n", 1)
    return raw.decode("latin-1"), rest


def swallow(connection, fields, rest):
    """Reads a body of any length and keeps how long it was."""
    if "content-length" in fields:
        length, left = int(fields["content-length"]), int(fields["content-length"]) - len(rest)
        while left > 0:
            left -= len(connection.recv(min(left, 1 << 20)))
        return str(length).encode(), b""
    length, reader = 0, connection.makefile("rb")
    if rest:
        raise OSError("the first chunk came with the head")
    while size := int(reader.readline(), 16):
        length += len(reader.read(size))
        reader.readline()
    reader.readline()
    return str(length).encode(), b""


def body(connection, fields, rest):
    length = int(fields.get("content-length", 0))
    while len(rest) < length:
        rest += connection.recv(65536)
    if fields.get("transfer-encoding") == "chunked":
        while not rest.endswith(b"0\r\n\r\n"):
            rest += connection.recv(65536)
        return rest, b""
    return rest[:length], rest[length:]


def answer(connection, target, request):
    path = target.split("?")[0]
    if path == "/cut":
        connection.sendall((OK + "content-length: 1000\r\n\r\nonly this").encode())
        return False
    if path == "/cut-chunked":
        connection.sendall((OK + "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").encode())
        return False
    if path in ("/until-close", "/until-cut"):
        # Its length is not said: it ends where TLS says so, or where the connection just stops.
        connection.sendall((OK + "connection: close\r\n\r\nall of it").encode())
        if path == "/until-close":
            connection.unwrap()
        return False
    if path.startswith("/silent-"):
        time.sleep(float(path.removeprefix("/silent-")))
    if path == "/hints":
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n")
    if path in ("/gzip", "/deflate", "/brotli"):
        # Compressed, whatever was asked for.
        text = json.dumps(request).encode()
        coded = {"/gzip": gzip.compress, "/deflate": zlib.compress, "/brotli": bytes}[path](text)
        name = {"/gzip": "gzip", "/deflate": "deflate", "/brotli": "br"}[path]
        connection.sendall(
            (OK + f"content-encoding: {name}\r\netag: \"1\"\r\ncontent-length: {len(coded)}\r\n\r\n").encode() + coded
        )
        return True
    if path.startswith("/gzip-noise/"):
        # Little of it is saved: it comes in several pieces.
        text = "".join(random.choices("xy", k=int(path.removeprefix("/gzip-noise/"))))
        coded = gzip.compress(text.encode())
        connection.sendall((OK + f"content-encoding: gzip\r\ncontent-length: {len(coded)}\r\n\r\n").encode() + coded)
        return True
    if path == "/ticks":
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(1, 4):
            event = 'data: {"email":"ann@acme.example","n":%d}\n\n' % number
            connection.sendall(f"{len(event):x}\r\n{event}\r\n".encode())
            print(f"tick {number}", flush=True)
            time.sleep(1.5)
        connection.sendall(b"0\r\n\r\n")
        return True
    if path.startswith("/zeroes/"):
        left = int(path.removeprefix("/zeroes/"))
        connection.sendall((OK + f"content-length: {left}\r\n\r\n").encode())
        part = bytes(1 << 20)
        while left:
            connection.sendall(part[:left])
            left -= min(left, len(part))
        return True
    if path == "/trailers":
        key = dict(request["headers"]).get("authorization", "")
        connection.sendall(
            (
                OK + "transfer-encoding: chunked\r\ntrailer: x-sum, x-echo\r\n\r\n"
                f"2\r\nok\r\n0\r\nx-sum: 7\r\nx-echo: {key}\r\nset-cookie: a=b\r\n\r\n"
            ).encode()
        )
        return True
    if path == "/unasked-upgrade":
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")
        return False
    if path == "/garbage":
        connection.sendall(b"\x00\x01\x02 not http at all\r\n\r\n")
        return False
    if path == "/close":
        return False
    if path == "/redirect":
        connection.sendall(b"HTTP/1.1 302 Found\r\nlocation: https://elsewhere.example/\r\ncontent-length: 0\r\n\r\n")
        return True
    if path == "/headers":
        connection.sendall(
            (
                OK + "alt-svc: h3=\":443\"\r\nset-cookie: a=b\r\nkeep-alive: timeout=5\r\n"
                "connection: x-hop\r\nx-hop: 1\r\nx-kept: 1\r\ncontent-length: 2\r\n\r\nok"
            ).encode()
        )
        return True
    kind, _, rest = path[1:].partition("/")
    if kind in ("say", "raw"):
        # The whole answer is in the path.
        connection.sendall(base64.urlsafe_b64decode(rest).rstrip(b" "))
        return True
    if kind == "half":
        # A JSON text of so many bytes, the second half so many seconds later.
        length, seconds = rest.split("/")
        text = '{"user":{"email":"ann@acme.example"},"pad":"'
        text += "x" * (int(length) - len(text) - 2) + '"}'
        whole = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{text}"
        connection.sendall(whole[: len(whole) // 2].encode())
        print("half", flush=True)
        time.sleep(float(seconds))
        connection.sendall(whole[len(whole) // 2 :].encode())
        return True
    if path == "/drip":
        connection.sendall((OK + "transfer-encoding: chunked\r\n\r\n").encode())
        while True:
            connection.sendall(b"5\r\ntick\n\r\n")
            time.sleep(0.1)
    if path == "/sized":
        connection.sendall((OK + "content-length: 5000\r\n\r\n" + "x" * 5000).encode())
        return True
    if path == "/unsized":
        chunk = "3e8\r\n" + "x" * 1000 + "\r\n"
        connection.sendall((OK + "transfer-encoding: chunked\r\n\r\n" + chunk * 5 + "0\r\n\r\n").encode())
        return True
    if path == "/last":
        # Looks reusable, and the next request on this connection is read and not answered.
        connection.sendall((OK + "content-length: 5\r\n\r\n{ok}\n").encode())
        raw, _ = head(connection, b"")
        if raw is not None and "told" in sys.argv:
            print(json.dumps({"dropped": raw.split("\r\n")[0]}), flush=True)
        return False
    if path == "/then-close":
        connection.sendall((OK + "content-length: 3\r\n\r\n{}\n").encode())
        return False
    if "told" in sys.argv:
        print(json.dumps({"did": request["line"], "body": len(request["body"])}), flush=True)
    text = (json.dumps(request) + "\n").encode()
    connection.sendall((OK + f"content-length: {len(text)}\r\n\r\n").encode() + text)
    return True


def serve(connection):
    rest = b""
    with connection:
        while True:
            raw, rest = head(connection, rest)
            if raw is None:
                return
            lines = raw.split("\r\n")
            pairs = [line.split(": ", 1) for line in lines[1:]]
            fields = {k.lower(): v for k, v in pairs}
            if lines[0].split(" ")[1] == "/unread":
                time.sleep(30)
                return
            read = swallow if lines[0].split(" ")[1] == "/sink" else body
            content, rest = read(connection, fields, rest)
            # The credential backwards too, since an echo of it is overwritten.
            given = "".join(value for name, value in pairs if name.lower() == "authorization")
            request = {
                "line": lines[0], "headers": pairs, "body": content.decode("latin-1"), "backwards": given[::-1],
                "peer": connection.getpeercert(), "resumed": connection.session_reused,
            }
            if not answer(connection, lines[0].split(" ")[1], request):
                return


def guarded(plain, context):
    try:
        serve(context.wrap_socket(plain, server_side=True))
    except OSError:
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[3], sys.argv[4])
if len(sys.argv) > 5 and sys.argv[5] != "-":
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(sys.argv[5])
if "tls12" in sys.argv:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=64)
print("ready", flush=True)
while True:
    plain, _ = listener.accept()
    threading.Thread(target=guarded, args=(plain, context), daemon=True).start()
