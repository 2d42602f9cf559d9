"""An issuer of JWTs, as far as who verifies them sees it: serves the files of a directory over TLS.

Usage: issuer.py ADDRESS PORT CERTIFICATE KEY DIRECTORY
"""
import functools
import http.server
import ssl
import sys

address, port, certificate, key, directory = sys.argv[1:]
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=directory)
server = http.server.ThreadingHTTPServer((address, int(port)), handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print("ready", flush=True)
server.serve_forever()
