"""A client as programs have one (httpx): one JSON command a line, one JSON answer a line.

Text stands for bytes, one character each (latin-1).
"""
import json
import sys

import httpx


def ask(method, url, headers=(), body=None, h2=False, chunked=False):
    content = None if body is None else body.encode("latin-1")
    if chunked:
        content = iter([content[:9], content[9:]])
    with httpx.Client(http1=not h2, http2=h2, timeout=20) as client:
        pairs = [tuple(pair) for pair in headers]
        with client.stream(method, url, headers=pairs, content=content) as response:
            data = b"".join(response.iter_raw())
            return {
                "status": response.status_code,
                "version": response.http_version,
                "headers": response.headers.multi_items(),
                "data": data.decode("latin-1"),
            }


VERBS = {"ask": ask}
for line in sys.stdin:
    command = json.loads(line)
    try:
        answer = VERBS[command.pop("do")](**command)
    except Exception as error:  # noqa: BLE001 - every failure is an answer
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
