// What an application does with ioredis and node-redis; every result is asserted. Arguments: host, port.
const assert = require('node:assert');
const Redis = require('ioredis');
const { createClient } = require('redis');
const [host, port] = [process.argv[2], Number(process.argv[3])];

async function ioredis() {
  const client = new Redis({ host, port, connectionName: 'app' });
  const binary = Buffer.from([0, 255, 13, 10, 36]);
  assert.equal(await client.set('io:k', binary), 'OK');
  assert.deepEqual(await client.getBuffer('io:k'), binary);
  assert.equal(await client.get('io:none'), null);
  const many = await Promise.all(Array.from({ length: 2000 }, () => client.incr('io:n')));
  assert.deepEqual(many, Array.from({ length: 2000 }, (_, i) => i + 1));
  const piped = await client.pipeline().set('io:p', 1).incr('io:p').get('io:p').exec();
  assert.deepEqual(piped, [[null, 'OK'], [null, 2], [null, '2']]);
  const block = await client.multi().set('io:t', 1).incr('io:t').exec();
  assert.deepEqual(block, [[null, 'OK'], [null, 2]]);
  await assert.rejects(client.lpush('io:k', 1), /WRONGTYPE/);
  assert.equal(await client.eval("return redis.call('INCRBY', KEYS[1], ARGV[1])", 1, 'io:lua', 5), 5);
  const [popper, subscriber] = [client.duplicate(), client.duplicate()];
  const popped = popper.blpop('io:queue', 20);
  await client.rpush('io:queue', 'job');
  assert.deepEqual(await popped, ['io:queue', 'job']);
  assert.equal(await popper.get('io:t'), '2');
  const message = new Promise((done) => subscriber.on('message', (channel, text) => done([channel, text])));
  await subscriber.subscribe('io:c');
  assert.equal(await client.publish('io:c', 'hello'), 1);
  assert.deepEqual(await message, ['io:c', 'hello']);
  await Promise.all([client.quit(), popper.quit(), subscriber.quit()]);
}

async function nodeRedis(RESP) {
  const client = createClient({ socket: { host, port }, RESP, name: 'app' });
  await client.connect();
  await client.set('node:k', 'v');
  assert.equal(await client.get('node:k'), 'v');
  assert.equal(await client.clientGetName(), 'app');
  await client.del(['node:n', 'node:h']);
  await client.hSet('node:h', { a: '1', b: '2' });
  assert.deepEqual({ ...(await client.hGetAll('node:h')) }, { a: '1', b: '2' });
  const many = await Promise.all(Array.from({ length: 2000 }, () => client.incr('node:n')));
  assert.deepEqual(many, Array.from({ length: 2000 }, (_, i) => i + 1));
  assert.deepEqual(await client.multi().set('node:t', '1').incr('node:t').exec(), ['OK', 2]);
  const subscriber = client.duplicate();
  await subscriber.connect();
  const message = new Promise((done) => subscriber.subscribe('node:c', done));
  await client.publish('node:c', 'lost or early');
  for (let sent = 0; sent < 100; sent += 1) {
    if ((await client.publish('node:c', 'hello')) === 1) break;
  }
  assert.ok(['hello', 'lost or early'].includes(await message));
  await subscriber.close();
  await client.close();
}

(async () => {
  await ioredis();
  await nodeRedis(2);
  await nodeRedis(3);
  console.log('fine');
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
