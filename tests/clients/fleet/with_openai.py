import sys

import openai

client = openai.OpenAI(api_key="placeholder")
words = [{"role": "user", "content": "Say hello."}]
whole = client.chat.completions.create(model=sys.argv[1], messages=words)
print(whole.choices[0].message.content)
for part in client.chat.completions.create(model=sys.argv[1], messages=words, stream=True):
    print("part:", part.choices[0].delta.content)
