"""A server that speaks first, says back what it hears, and tells at its end how much that was.

Usage: greeter.py ADDRESS PORT...
"""
import socket
import sys
import threading


def serve(connection):
    with connection:
        connection.sendall(b"220 welcome\n")
        heard = 0
        while True:
            part = connection.recv(65536)
            if not part:
                break
            heard += len(part)
            connection.sendall(part)
        connection.sendall(f"221 heard {heard}\n".encode())


def guarded(connection):
    try:
        serve(connection)
    except OSError:
        pass


def accept(listener):
    while True:
        connection, _ = listener.accept()
        print("accepted", flush=True)
        threading.Thread(target=guarded, args=(connection,), daemon=True).start()


listeners = [socket.create_server((sys.argv[1], int(port)), backlog=64) for port in sys.argv[2:]]
print("ready", flush=True)
for listener in listeners[1:]:
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
accept(listeners[0])
