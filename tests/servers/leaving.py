"""An HTTPS server that speaks HTTP/2 and leaves requests undone as the path says; prints what it saw and what it did.

Usage: leaving.py ADDRESS PORT CERTIFICATE KEY
"""
import json
import socket
import ssl
import sys
import threading
import time

import h2.config
import h2.connection
import h2.events

# How often each path has been asked for.
times = {}
connections = 0
lock = threading.Lock()
REFUSED_STREAM = 7


def tell(**what):
    print(json.dumps(what), flush=True)


class Served:
    def __init__(self, stream, number):
        self.stream, self.number = stream, number
        config = h2.config.H2Configuration(client_side=False, header_encoding="latin-1")
        self.connection = h2.connection.H2Connection(config)
        self.requests = {}
        self.held = []

    def flush(self):
        self.stream.sendall(self.connection.data_to_send())

    def run(self):
        self.connection.initiate_connection()
        self.flush()
        while data := self.stream.recv(65536):
            for event in self.connection.receive_data(data):
                if self.note(event) == "leave":
                    self.flush()
                    time.sleep(0.2)
                    return
            self.flush()

    def leave(self, last):
        self.connection.close_connection(error_code=0, last_stream_id=last)
        return "leave"

    def note(self, event):
        number = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.RequestReceived):
            headers = dict(event.headers)
            path = headers[":path"]
            with lock:
                times[path] = times.get(path, 0) + 1
                first = times[path] == 1
            tell(saw=path, connection=self.number)
            self.requests[number] = {"path": path, "method": headers[":method"], "body": 0, "first": first}
            if path == "/refused-at-once" and first:
                self.requests[number]["path"] = "/gone"
                self.connection.reset_stream(number, REFUSED_STREAM)
        elif isinstance(event, h2.events.DataReceived):
            self.requests[number]["body"] += len(event.data)
            self.connection.acknowledge_received_data(event.flow_controlled_length, number)
            if self.requests[number]["path"] == "/refused-half-way" and self.requests[number]["first"]:
                self.requests[number]["path"] = "/gone"
                self.connection.reset_stream(number, REFUSED_STREAM)
        elif isinstance(event, h2.events.StreamEnded):
            return self.whole(number, self.requests[number])
        return None

    def whole(self, number, request):
        path, first = request["path"], request["first"]
        if path == "/gone":
            return None
        if (path in ("/refused", "/refused-whole") and first) or path == "/refused-always":
            self.connection.reset_stream(number, REFUSED_STREAM)
        elif path == "/left" and first:
            return self.leave(number - 2)
        elif path.startswith("/broken") and first:
            # It may have been done: the last stream is this one.
            tell(did=path, method=request["method"], body=request["body"])
            return self.leave(number)
        elif path.startswith("/many/") and self.number == 1:
            self.held.append(number)
            if len(self.held) == 10:
                return self.leave(0)
        else:
            tell(did=path, method=request["method"], body=request["body"])
            self.connection.send_headers(number, [(":status", "200"), ("content-type", "application/json")])
            self.connection.send_data(number, json.dumps(request).encode() + b"\n", end_stream=True)
        return None


def guarded(plain, context, number):
    try:
        stream = context.wrap_socket(plain, server_side=True)
        with stream:
            Served(stream, number).run()
    except OSError:
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[3], sys.argv[4])
context.set_alpn_protocols(["h2"])
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=64)
print("ready", flush=True)
while True:
    plain, _ = listener.accept()
    connections += 1
    threading.Thread(target=guarded, args=(plain, context, connections), daemon=True).start()
