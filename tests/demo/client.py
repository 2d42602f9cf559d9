"""A program that keeps running: Python's requests, one session, a command per line of JSON."""

import errno
import json
import socket
import sys
import time

import requests

session = requests.Session()


def call(command):
    answer = session.request(
        command["method"], command["url"], json=command.get("body"), timeout=10
    )
    return {"status": answer.status_code, "body": answer.text}


def connect(command):
    """Connects to an address, so that no DNS is involved, and measures only that."""
    with socket.socket() as plain:
        plain.settimeout(5)
        began = time.perf_counter()
        failure = plain.connect_ex((command["connect"], command["port"]))
        took = (time.perf_counter() - began) * 1000
    return {"errno": errno.errorcode.get(failure, failure), "connect_ms": round(took, 3)}


def datagram(command):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        try:
            udp.sendto(b"hello", (command["udp"], command["port"]))
        except OSError as fault:
            return {"errno": errno.errorcode.get(fault.errno, fault.errno)}
    return {"errno": 0}


def raw(command):
    """Speaks something that is not HTTP and says what comes back."""
    with socket.create_connection((command["raw"], command["port"]), timeout=5) as plain:
        plain.sendall(command["say"].encode())
        try:
            return {"heard": plain.recv(4096).decode("latin-1")}
        except OSError as fault:
            return {"heard": "", "errno": errno.errorcode.get(fault.errno, fault.errno)}


def act(command):
    for name, action in (("connect", connect), ("udp", datagram), ("raw", raw)):
        if name in command:
            return action(command)
    return call(command)


for line in sys.stdin:
    began = time.perf_counter()
    try:
        result = act(json.loads(line))
    except (requests.RequestException, OSError) as fault:
        result = {"error": f"{type(fault).__name__}: {fault}"}
    result["ms"] = round((time.perf_counter() - began) * 1000, 3)
    print(json.dumps(result), flush=True)
