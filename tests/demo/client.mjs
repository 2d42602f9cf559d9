// A program that keeps running: Node's fetch, a command per line of JSON.
import { createInterface } from "node:readline";

for await (const line of createInterface({ input: process.stdin })) {
  const { method, url, body } = JSON.parse(line);
  const began = performance.now();
  let result;
  try {
    const answer = await fetch(url, {
      method,
      body: body === undefined ? undefined : JSON.stringify(body),
      headers: body === undefined ? {} : { "content-type": "application/json" },
    });
    result = { status: answer.status, body: await answer.text() };
  } catch (fault) {
    result = { error: `${fault.message}: ${fault.cause?.code ?? fault.cause}` };
  }
  result.ms = Math.round((performance.now() - began) * 1000) / 1000;
  console.log(JSON.stringify(result));
}
