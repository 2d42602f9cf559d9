const { WebSocket } = require("ws");

const socket = new WebSocket(process.argv[2]);
socket.on("open", () => socket.send("hello"));
socket.on("message", (message) => {
  console.log(`${message}`);
  socket.close();
});
