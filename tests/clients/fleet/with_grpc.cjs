// Each of the four kinds of call; messages are plain bytes, so that no generated code is needed.
const grpc = require("@grpc/grpc-js");

const bytes = (value) => value;
const method = (name, requestStream, responseStream) => ({
  path: `/greet.Greeter/${name}`,
  requestStream,
  responseStream,
  requestSerialize: bytes,
  requestDeserialize: bytes,
  responseSerialize: bytes,
  responseDeserialize: bytes,
});
const Greeter = grpc.makeGenericClientConstructor({
  unary: method("Unary", false, false),
  down: method("Down", false, true),
  up: method("Up", true, false),
  both: method("Both", true, true),
  forget: method("Forget", false, false),
});
const client = new Greeter("greeter.example:443", grpc.credentials.createSsl());
const names = ["Ann", "Bob"].map((name) => Buffer.from(name));
const once = (start) =>
  new Promise((done, fail) => start((error, answer) => (error ? fail(error) : done(`${answer}`))));
const all = async (stream) => {
  const parts = [];
  for await (const part of stream) parts.push(`${part}`);
  return parts;
};
const send = (stream) => {
  for (const name of names) stream.write(name);
  stream.end();
  return stream;
};

async function main(denied) {
  if (denied) await once((done) => client[denied](names[0], done));
  console.log(await once((done) => client.unary(names[0], done)));
  console.log(await all(client.down(names[0])));
  console.log(await once((done) => send(client.up(done))));
  console.log(await all(send(client.both())));
  client.close();
}

main(process.argv[2]);
