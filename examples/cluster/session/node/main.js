// SPDX-License-Identifier: Apache-2.0

// A client of etcd for Node, unchanged, that works on several servers of one log for a while: locks, elections, puts, a
// watch and a lease that is kept alive. It prints each error, and at the end what it did and what is there.
//
//     node main.js 127.0.0.1:2379 127.0.0.1:22379 127.0.0.1:32379
import { Etcd3 } from 'etcd3';

const LENGTH_MS = 40_000;
const CALL_MS = 8_000;

const client = new Etcd3({ hosts: process.argv.slice(2), dialTimeout: 3_000 });
const until = Date.now() + LENGTH_MS;
const under = (prefix) => `node/${prefix}`; // other programs may run beside this one

// Whether a step has succeeded; says why not.
async function did(step, work) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer in ${CALL_MS} ms`)), CALL_MS);
  });
  try {
    await Promise.race([work(), late]);
    return true;
  } catch (error) {
    console.log(`${step}: ${error.message}`);
    return false;
  } finally {
    clearTimeout(timer);
  }
}

let events = 0;
let last = 0;
const watcher = await client.watch().prefix(under('n/')).create();
watcher.on('data', (response) => {
  for (const event of response.events) {
    const revision = Number(event.kv.mod_revision);
    if (revision <= last) console.log('an event out of order:', revision, 'after', last);
    last = revision;
    events += 1;
  }
});

const lease = client.lease(4);
let renewals = 0;
lease.on('keepaliveSucceeded', () => { renewals += 1; });
lease.on('lost', (error) => console.log('the lease is lost:', error.message));
await lease.put(under('leased')).value('v');

const election = client.election(under('election'), 5);
let locks = 0;
let terms = 0;
let puts = 0;
let slowest = 0;
while (Date.now() < until) {
  const began = Date.now();
  const locked = await did('lock', async () => {
    const lock = client.lock(under('lock')).ttl(5);
    await lock.acquire();
    await lock.release();
  });
  if (locked) locks += 1;
  const led = await did('election', async () => {
    const campaign = election.campaign('me');
    await campaign.wait();
    await campaign.resign();
  });
  if (led) terms += 1;
  if (await did('put', () => client.put(under(`n/${puts}`)).value('v'))) puts += 1;
  slowest = Math.max(slowest, Date.now() - began);
}

await new Promise((done) => { setTimeout(done, 1_000); }); // for the last events
const there = await client.getAll().prefix(under('n/')).count();
const leased = await client.get(under('leased')).string();
console.log(
  `${locks} locks, ${terms} terms, ${puts} puts; ${there} keys are there, ${events} events came; `
  + `${renewals} renewals, the leased key is there: ${leased === 'v'}`,
);
console.log(`the slowest round: ${(slowest / 1_000).toFixed(3)}s`);
process.exit(0);
