"""S3 and another service of AWS as far as it takes to sign for them: every request is signed again by botocore, with the real
keys, and answered 403 where that gives another signature.

Usage: aws.py ADDRESS PORT CERTIFICATE KEY KEYS

KEYS is a file of JSON with `id`, `key` and `session`. Prints `ready`, and what it was sent: a line of JSON for each request.
"""
import hashlib
import http.server
import json
import ssl
import sys
import time
import urllib.parse
import zlib
from base64 import b64decode
from xml.sax.saxutils import escape

from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ADDRESS, PORT, CERTIFICATE, KEY, KEYS = sys.argv[1:]
KEYS = json.load(open(KEYS))
OBJECTS = {}


class Refused(Exception):
    pass


def must(holds, what):
    if not holds:
        raise Refused(what)


def claimed(authorization):
    """Access key, region, service, names of signed headers, and the signature."""
    kind, _, rest = authorization.partition(" ")
    must(kind == "AWS4-HMAC-SHA256", f"Authorization is {kind!r}")
    parts = dict(part.strip().split("=", 1) for part in rest.split(","))
    access, _, region, service, _ = parts["Credential"].split("/")
    return access, region, service, parts["SignedHeaders"].split(";"), parts["Signature"]


def signature(method, target, headers, names, region, service):
    """As botocore makes it; path and query are encoded here, from what is meant."""
    path, _, query = target.partition("?")
    if service == "s3":
        path = urllib.parse.quote(urllib.parse.unquote(path), safe="/~")
    signed = {name: headers[name] for name in names}
    pairs = urllib.parse.parse_qsl(query, keep_blank_values=True)
    request = AWSRequest(method, f"https://{headers['host']}{path}", signed, b"", params=pairs)
    request.context["timestamp"] = headers["x-amz-date"]
    kind = S3SigV4Auth if service == "s3" else SigV4Auth
    signer = kind(Credentials(KEYS["id"], KEYS["key"]), service, region)
    return signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)


def plain(body, headers):
    """The body without its chunks, whose trailer must have its checksum."""
    data, rest = b"", body
    while True:
        line, rest = rest.split(b"\r\n", 1)
        if size := int(line, 16):
            data, rest = data + rest[:size], rest[size + 2:]
        else:
            break
    name, value = rest.split(b"\r\n")[0].decode().split(":")
    must(name == headers["x-amz-trailer"] == "x-amz-checksum-crc32", f"trailer {name}")
    must(b64decode(value) == zlib.crc32(data).to_bytes(4, "big"), "the checksum behind the chunks")
    must(len(data) == int(headers["x-amz-decoded-content-length"]), "the length of the chunks")
    return data


def verify(method, target, headers, body):
    access, region, service, names, signed = claimed(headers.get("authorization", ""))
    must(access == KEYS["id"], "the access key")
    must("X-Amz-" not in target, "a second way to authenticate")
    own = {name for name in headers if name.startswith("x-amz-") or name == "host"}
    must(own <= set(names), f"not signed: {own - set(names)}")
    must(headers.get("x-amz-security-token") == KEYS["session"], "the session")
    at = time.strptime(headers["x-amz-date"] + "+0000", "%Y%m%dT%H%M%SZ%z")
    now = time.strptime(time.strftime("%Y%m%d%H%M%S", time.gmtime()), "%Y%m%d%H%M%S")
    must(abs(time.mktime(at) - time.mktime(now)) < 300, "the time")
    must(signature(method, target, headers, names, region, service) == signed, "SignatureDoesNotMatch")
    payload = headers["x-amz-content-sha256"]
    if payload == "STREAMING-UNSIGNED-PAYLOAD-TRAILER" and service == "s3":
        return plain(body, headers), service, region
    unhashed = payload == "UNSIGNED-PAYLOAD" and service == "s3"
    must(unhashed or payload == hashlib.sha256(body).hexdigest(), "XAmzContentSHA256Mismatch")
    return body, service, region


def listing(query):
    prefix = dict(urllib.parse.parse_qsl(query)).get("prefix", "")
    keys = [key for key in sorted(OBJECTS) if key.startswith(prefix)]
    contents = "".join(f"<Contents><Key>{escape(key)}</Key><Size>{len(OBJECTS[key][0])}</Size></Contents>" for key in keys)
    return f"<ListBucketResult><Name>reports</Name><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>".encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def read(self, headers):
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def any(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.read(headers)
        told = {"method": self.command, "target": self.path, "headers": headers, "length": len(body)}
        try:
            data, service, region = verify(self.command, self.path, headers, body)
            told.update(service=service, region=region, good=True)
            answer = self.s3(data, headers) if service == "s3" else self.other(data)
        except Refused as why:
            told.update(good=False, why=str(why))
            message = f"<Error><Code>SignatureDoesNotMatch</Code><Message>{escape(str(why))}</Message></Error>"
            answer = 403, message.encode(), {}
        print(json.dumps(told), flush=True)
        status, body, more = answer
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = any

    def s3(self, data, headers):
        path, _, query = self.path.partition("?")
        key = urllib.parse.unquote(path)[1:]
        if key == "leak":
            return 200, f"{KEYS['key']} {KEYS['session']} {KEYS['id']}".encode(), {}
        if not key:
            return 200, listing(query), {"content-type": "application/xml"}
        if self.command == "PUT":
            meta = {name: value for name, value in headers.items() if name.startswith("x-amz-meta-")}
            OBJECTS[key] = data, meta
            return 200, b"", {"etag": '"' + hashlib.md5(data).hexdigest() + '"'}
        if self.command == "DELETE":
            OBJECTS.pop(key, None)
            return 204, b"", {}
        if key not in OBJECTS:
            return 404, b"<Error><Code>NoSuchKey</Code></Error>", {}
        data, meta = OBJECTS[key]
        return 200, data, meta

    def other(self, data):
        asked = {"TableNames": ["length", str(len(data))]}
        return 200, json.dumps(asked).encode(), {"content-type": "application/x-amz-json-1.0"}

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer((ADDRESS, int(PORT)), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE, KEY)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print("ready", flush=True)
server.serve_forever()
