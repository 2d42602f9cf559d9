"""An HTTPS server that speaks HTTP/2 and does as the path says; prints a line when a stream is cancelled.

Usage: http2.py ADDRESS PORT CERTIFICATE KEY
"""
import base64
import json
import socket
import ssl
import sys
import threading
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions


class Served:
    def __init__(self, stream):
        self.stream = stream
        self.lock = threading.Lock()
        config = h2.config.H2Configuration(client_side=False, header_encoding="latin-1")
        self.connection = h2.connection.H2Connection(config)
        self.requests = {}
        self.cancelled = set()

    def flush(self):
        data = self.connection.data_to_send()
        if data:
            self.stream.sendall(data)

    def send(self, number, data, end=False):
        with self.lock:
            self.connection.send_data(number, data, end_stream=end)
            self.flush()

    def run(self):
        with self.lock:
            self.connection.initiate_connection()
            self.flush()
        while True:
            data = self.stream.recv(65536)
            if not data:
                for number in list(self.requests):
                    self.cancel(number)
                return
            with self.lock:
                for event in self.connection.receive_data(data):
                    self.note(event)
                self.flush()

    def cancel(self, number):
        request = self.requests.pop(number, None)
        if request is not None:
            self.cancelled.add(number)
            print(f"cancelled {dict(request['headers'])[':path']}", flush=True)

    def note(self, event):
        number = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.RequestReceived):
            self.requests[number] = {
                "headers": [list(pair) for pair in event.headers], "body": "", "trailers": None,
            }
        elif isinstance(event, h2.events.DataReceived):
            self.requests[number]["body"] += event.data.decode("latin-1")
            self.connection.acknowledge_received_data(event.flow_controlled_length, number)
        elif isinstance(event, h2.events.TrailersReceived):
            self.requests[number]["trailers"] = [list(pair) for pair in event.headers]
        elif isinstance(event, h2.events.StreamEnded):
            threading.Thread(target=self.answer, args=(number,), daemon=True).start()
        elif isinstance(event, h2.events.StreamReset):
            self.cancel(number)

    def head(self, number, kind, end=False):
        with self.lock:
            self.connection.send_headers(
                number, [(":status", "200"), ("content-type", kind)], end_stream=end
            )
            self.flush()

    def answer(self, number):
        request = self.requests[number]
        path = dict(request["headers"])[":path"]
        try:
            if path == "/silent":
                return
            if path == "/reset":
                self.head(number, "text/plain")
                self.send(number, b"only this")
                with self.lock:
                    self.connection.reset_stream(number, error_code=2)
                    self.flush()
                return
            if path == "/endless":
                self.head(number, "text/event-stream")
                while number not in self.cancelled:
                    self.send(number, b"data: tick\n\n")
                    time.sleep(0.05)
                return
            if path.startswith("/say/"):
                # The whole answer is in the path; the end of the stream comes in a frame of its own.
                answer = json.loads(base64.urlsafe_b64decode(path[5:]))
                with self.lock:
                    self.connection.send_headers(number, [tuple(pair) for pair in answer["headers"]])
                    self.connection.send_data(number, answer["body"].encode("latin-1"))
                    self.connection.send_data(number, b"", end_stream=True)
                    self.flush()
            elif path.startswith("/shop.Orders/"):
                self.head(number, "application/grpc")
                self.send(number, b"\0\0\0\0\2ok")
                key = dict(request["headers"]).get("authorization", "")
                with self.lock:
                    self.connection.send_headers(
                        number,
                        [("grpc-status", "0"), ("grpc-message", "fine"), ("set-cookie", "a=b"), ("x-echo", key)],
                        end_stream=True,
                    )
                    self.flush()
            else:
                self.head(number, "application/json")
                # The credential backwards too, since an echo of it is overwritten.
                given = "".join(value for name, value in request["headers"] if name == "authorization")
                self.send(number, json.dumps(request | {"backwards": given[::-1]}).encode(), end=True)
        except (h2.exceptions.H2Error, OSError):
            return
        self.requests.pop(number, None)


def guarded(plain, context):
    try:
        Served(context.wrap_socket(plain, server_side=True)).run()
    except OSError:
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[3], sys.argv[4])
context.set_alpn_protocols(["h2"])
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=64)
print("ready", flush=True)
while True:
    plain, _ = listener.accept()
    threading.Thread(target=guarded, args=(plain, context), daemon=True).start()
