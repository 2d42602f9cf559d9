"""A client that sends exactly the bytes it is told to: one JSON command a line, one JSON answer a line.

Text stands for bytes, one character each (latin-1).
"""
import json
import socket
import ssl
import sys

stream = None


def open_(host, port=443, sni=None, tls=True, alpn=None, wait=10, address=None, ca=None):
    global stream
    plain = socket.create_connection((address or host, port), timeout=wait)
    stream = plain
    if not tls:
        return {}  # The peer is not asked for: who was reset meanwhile has none.
    context = ssl.create_default_context(cafile=ca)
    if alpn:
        context.set_alpn_protocols(alpn)
    if sni is None:
        sni = host
    if sni == "":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        stream = context.wrap_socket(plain)
    else:
        stream = context.wrap_socket(plain, server_hostname=sni)
    return {"alpn": stream.selected_alpn_protocol(), "version": stream.version()}


def send(data, slowly=0):
    raw = data.encode("latin-1")
    if slowly:
        for start in range(0, len(raw), slowly):
            stream.sendall(raw[start : start + slowly])
    else:
        stream.sendall(raw)
    return {}


def read(wait=5, until=None, most=1 << 20):
    """Reads until the peer closes, `until` was seen, or `wait` seconds passed without a byte."""
    stream.settimeout(wait)
    data, end = b"", "open"
    while len(data) < most:
        if until is not None and until.encode("latin-1") in data:
            break
        try:
            part = stream.recv(65536)
        except (TimeoutError, socket.timeout):
            end = "silent"
            break
        except ssl.SSLError as error:
            end = f"tls: {error}"
            break
        except OSError as error:
            end = f"reset: {error}"
            break
        if not part:
            end = "closed"
            break
        data += part
    return {"data": data.decode("latin-1"), "end": end}


def end():
    """Says that no more will be sent, and goes on reading."""
    # Of the connection: `SSLSocket.shutdown` would also forget how to read what comes.
    socket.socket.shutdown(stream, socket.SHUT_WR)
    return {}


def close():
    stream.close()
    return {}


VERBS = {"open": open_, "send": send, "read": read, "end": end, "close": close}
for line in sys.stdin:
    command = json.loads(line)
    try:
        answer = VERBS[command.pop("do")](**command)
    except Exception as error:  # noqa: BLE001 - every failure is an answer
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
