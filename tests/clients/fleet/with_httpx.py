import sys

import httpx

with httpx.Client(http2=True) as client:
    answer = client.get(sys.argv[1])
    answer.raise_for_status()
    print(answer.http_version, answer.json())
