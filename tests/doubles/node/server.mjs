// The real Socket.IO server of Node.js as a slice would run it, steered by JSON lines on standard input; what it sees
// it tells as JSON lines on standard output, the first of them `{"port": n}`. It ends when its input does.
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { Server } from "socket.io";

const options = JSON.parse(process.argv[2] ?? "{}");
const http = createServer();
const io = new Server(http, { serveClient: false, ...options });
let refusal = null;
let greeting = [];

const tell = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);

// {"$bytes": "<base64>"} stands for binary data
const revive = (value) => {
  if (Array.isArray(value)) return value.map(revive);
  if (value === null || typeof value !== "object") return value;
  if ("$bytes" in value) return Buffer.from(value.$bytes, "base64");
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, revive(inner)]));
};

io.use((socket, next) => {
  if (refusal === null) next();
  else next(new Error(refusal));
});

io.on("connection", (socket) => {
  const key = socket.handshake.headers["x-slice-key"];
  tell({ connected: key, transport: socket.conn.transport.name });
  socket.on("disconnect", (reason) => tell({ disconnected: key, reason }));
  for (const [name, ...args] of greeting) socket.emit(name, ...args);
});

const deeds = {
  emit: ({ name, args = [] }) => io.emit(name, ...revive(args)),
  ask: ({ name, args = [] }) =>
    io.timeout(3000).emit(name, ...revive(args), (error, answers) => tell({ acked: error ? null : answers })),
  flood: ({ name, count }) => {
    for (let number = 1; number <= count; number += 1) io.emit(name, number);
  },
  big: ({ name, bytes }) => io.emit(name, "x".repeat(bytes)),
  raw: ({ text }) => {
    for (const socket of io.sockets.sockets.values()) socket.conn.transport.socket.send(text);
  },
  disconnect: () => io.disconnectSockets(false),
  close: () => io.disconnectSockets(true),
  refuse: ({ message }) => {
    refusal = message;
  },
  greet: ({ events }) => {
    greeting = events;
  },
  reset: () => {
    refusal = null;
    greeting = [];
    io.disconnectSockets(true);
  },
};

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const order = JSON.parse(line);
    deeds[order.do](order);
    tell({ done: order.do });
  })
  .on("close", () => process.exit(0));

http.listen(options.port ?? 0, "127.0.0.1", () => tell({ port: http.address().port }));
