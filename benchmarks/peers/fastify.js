// Fastify with @fastify/http-proxy, which forwards by undici's pool: a bare proxy, without a session look-up.
// Arguments: port to listen on, address of the upstream.
'use strict';

const app = require('fastify')({ logger: false });

app.register(require('@fastify/http-proxy'), {
  upstream: process.argv[3],
  http2: false,
  undici: { connections: 64, pipelining: 1 },
});

app.listen({ port: Number(process.argv[2]), host: '127.0.0.1' }).then(() => console.log('ready'));
process.on('SIGTERM', () => process.exit(0));
