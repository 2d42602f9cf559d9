import sys

import requests

answer = requests.get(sys.argv[1])
answer.raise_for_status()
print(answer.json())
