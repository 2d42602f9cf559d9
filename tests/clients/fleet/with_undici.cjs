const { Agent, request } = require("undici");

const dispatcher = new Agent({ allowH2: true });
request(process.argv[2], { dispatcher, throwOnError: true })
  .then((answer) => answer.body.json())
  .then(console.log);
