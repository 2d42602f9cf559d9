const { OpenAI } = require("openai");

async function main(model) {
  const client = new OpenAI({ apiKey: "placeholder" });
  const messages = [{ role: "user", content: "Say hello." }];
  const whole = await client.chat.completions.create({ model, messages });
  console.log(whole.choices[0].message.content);
  const stream = await client.chat.completions.create({ model, messages, stream: true });
  for await (const part of stream) console.log("part:", part.choices[0].delta.content);
}

main(process.argv[2]);
