// SPDX-License-Identifier: Apache-2.0
// The Node client etcd3 doing what bench/client_speed.py has ours do: node client_peer.js PORT SECONDS EVENTS,
// with NODE_PATH naming the node_modules that has it. Prints a JSON object of rates.
const { Etcd3 } = require('etcd3');
const [port, seconds, events] = process.argv.slice(2).map(Number);
const PARALLEL = 16;
const KEY = 'bench/key';
const VALUE = 'x'.repeat(32);
const now = () => performance.now() / 1000;

async function rate(call, parallel = 1) {
  for (let i = 0; i < 20; i++) await call();
  const start = now();
  const end = start + seconds;
  let total = 0;
  const work = async () => { while (now() < end) { await call(); total += 1; } };
  await Promise.all(Array.from({ length: parallel }, work));
  return total / (now() - start);
}

(async () => {
  const client = new Etcd3({ hosts: `127.0.0.1:${port}` });
  const lease = client.lease(60, { autoKeepAlive: false });
  await lease.grant();
  const put = () => client.put(KEY).value(VALUE).exec();
  const get = () => client.get(KEY).exec();
  const rates = {
    put: await rate(put), put_parallel: await rate(put, PARALLEL),
    get: await rate(get), get_parallel: await rate(get, PARALLEL),
    keepalive: await rate(() => lease.keepaliveOnce()),
  };
  const start = now();
  let count = 0;
  await new Promise((resolve) => {
    const watch = client.watch().prefix('bench/history/').startRevision('1').watcher();
    watch.on('data', (data) => { count += data.events.length; if (count >= events) resolve(); });
  });
  rates.events = events / (now() - start);
  console.log(JSON.stringify(rates));
  process.exit(0);
})().catch((error) => { console.error(error); process.exit(1); });
