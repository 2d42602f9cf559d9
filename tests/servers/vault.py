"""Vault's key-value engine, version 2, as its HTTP API says it answers to a read: over TLS, from a file that is read each time.

Usage: vault.py ADDRESS PORT CERTIFICATE KEY STATE

Ends with its standard input. STATE is JSON: `token`, `secrets` (path to fields), and `status` where every answer is to be that.
"""
import http.server
import json
import ssl
import sys
import threading

ADDRESS, PORT, CERTIFICATE, KEY, STATE = sys.argv[1:]
PREFIX = "/v1/secret/data/"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        state = json.load(open(STATE))
        status, answer = self.answered(state)
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answered(self, state):
        if "status" in state:
            return state["status"], {"errors": ["Vault is sealed"]}
        if self.headers.get("X-Vault-Request") != "true":
            return 400, {"errors": ["required request header missing"]}
        if self.headers.get("X-Vault-Token") != state["token"]:
            return 403, {"errors": ["permission denied"]}
        fields = state["secrets"].get(self.path.removeprefix(PREFIX))
        if not self.path.startswith(PREFIX) or fields is None:
            return 404, {"errors": []}
        metadata = {"created_time": "2026-01-01T00:00:00Z", "deletion_time": "", "destroyed": False, "version": 1}
        return 200, {"request_id": "0", "lease_duration": 0, "data": {"data": fields, "metadata": metadata}}

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer((ADDRESS, int(PORT)), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE, KEY)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
