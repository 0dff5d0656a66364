// The usual way to build this gateway on Node: Express and http-proxy-middleware with a keep-alive agent, and a
// look-up of the session in PostgreSQL for each request (a pool of `pg`, the SHA-256 of the cookie).
// Arguments: port to listen on. Environment: PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE.
'use strict';

const { createHash } = require('node:crypto');
const http = require('node:http');
const express = require('express');
const { createProxyMiddleware } = require('http-proxy-middleware');
const { Pool } = require('pg');

const SESSION = {
  name: 'session',
  text: `select u.id as user_id, s.host, s.port
           from gateway.sessions x
           join gateway.users u on u.id = x.user_id
           join gateway.slices s on s.id = u.slice_id
          where x.id = $1 and x.expires_at > now()`,
};
const COOKIE = /(?:^|;\s*)session=([0-9a-f]{64})(?:;|$)/;

const pool = new Pool({ max: 10 });
const app = express();
app.disable('x-powered-by');
app.disable('etag');

app.use('/api', async (request, answer, next) => {
  const found = COOKIE.exec(request.headers.cookie || '');
  if (!found) return answer.status(401).json({ error: 'Log in first.' });
  const hash = createHash('sha256').update(found[1]).digest('hex');
  const { rows } = await pool.query({ ...SESSION, values: [hash] });
  if (rows.length === 0) return answer.status(401).json({ error: 'Log in first.' });
  request.target = `http://${rows[0].host}:${rows[0].port}`;
  return next();
});

app.use(
  createProxyMiddleware({
    pathFilter: '/api',
    router: (request) => request.target,
    target: 'http://127.0.0.1:9',
    agent: new http.Agent({ keepAlive: true, maxSockets: Infinity }),
    xfwd: true,
  }),
);

const server = app.listen(Number(process.argv[2]), '127.0.0.1', () => console.log('ready'));
process.on('SIGTERM', () => {
  server.closeAllConnections();
  process.exit(0);
});
