// A plain SSE server on Node: http and response.write, the frame encoded once for all streams. Its events come from a
// timer in its own process, so unlike the gateway it reads nothing from a slice.
// Arguments: port to listen on.
//   GET /api/events                    a stream
//   POST /control?per_second=N&bytes=B the rate of events from now on
//   GET /control                       {emitted, open}
//   POST /control/collect              a full garbage collection (needs --expose-gc)
'use strict';

const http = require('node:http');

const HEAD = { 'Content-Type': 'text/event-stream; charset=utf-8', 'Cache-Control': 'no-cache' };
const TICK_AT_LEAST = 5; // milliseconds

const streams = new Set();
let emitted = 0;
let bytes = 150;
let perSecond = 0;
let timer = null;
let due = 0;

function emit() {
  emitted += 1;
  // The same bytes as the slice double's event: one tilde marks one event for who counts them.
  const data = { slice: '1', canary: 'a1b2c3d4e5f60718', n: emitted, mark: '~', body: '' };
  data.body = 'x'.repeat(Math.max(0, bytes - JSON.stringify(data).length));
  const frame = Buffer.from(`id: 1:${emitted}\nevent: wa:message\ndata: ${JSON.stringify(data)}\n\n`);
  for (const stream of streams) stream.write(frame);
}

function pace(rate) {
  clearInterval(timer);
  perSecond = rate;
  if (rate === 0) return;
  due = performance.now();
  timer = setInterval(() => {
    for (; due <= performance.now(); due += 1000 / perSecond) emit();
  }, Math.max(TICK_AT_LEAST, 1000 / rate));
}

function control(url, request, answer) {
  if (url.pathname === '/control/collect') global.gc?.();
  else if (request.method === 'POST') {
    bytes = Number(url.searchParams.get('bytes') || bytes);
    pace(Number(url.searchParams.get('per_second')));
  }
  answer.setHeader('Content-Type', 'application/json');
  answer.end(JSON.stringify({ emitted, open: streams.size }));
}

const server = http.createServer((request, answer) => {
  const url = new URL(request.url, 'http://localhost');
  if (url.pathname !== '/api/events') return control(url, request, answer);
  answer.writeHead(200, HEAD);
  answer.write('retry: 3000\n\nevent: wa:catchup\ndata: {"connectionState":"ready","gap":false}\n\n');
  streams.add(answer);
  answer.on('close', () => streams.delete(answer));
});

server.keepAliveTimeout = 0;
server.requestTimeout = 0;
server.listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 2048 }, () => console.log('ready'));
process.on('SIGTERM', () => process.exit(0));
