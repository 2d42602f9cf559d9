import sys

import anthropic

client = anthropic.Anthropic(api_key="placeholder")
words = [{"role": "user", "content": "Say hello."}]
whole = client.messages.create(model=sys.argv[1], max_tokens=64, messages=words)
print(whole.content[0].text)
with client.messages.stream(model=sys.argv[1], max_tokens=64, messages=words) as stream:
    for part in stream.text_stream:
        print("part:", part)
