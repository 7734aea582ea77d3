// Runs named cases on the official Node client and prints one JSON line for each.
//
// Usage: node main.js NAMESERVER PREFIX CASE...; the topics PREFIX-CASE exist already.
'use strict';

const { Consumer, Message, Producer } = require('ali-ons');

const WAIT_MS = 60_000;
const LATE_MS = 3_000;
const COUNT = 50;
const KILL_COUNT = 600;
const KILL_AT = 200;
const KILL_LIMIT_MS = 120_000;
const PAUSE_MS = 10;

const silent = { debug() {}, info() {}, warn: console.error, error: console.error };
let instances = 0;

class NotInClientError extends Error {}

const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));

// Only whole lines go out: one write for each.
const output = record => process.stdout.write(JSON.stringify(record) + '\n');

function check(condition, otherwise) {
  if (!condition) throw new Error(otherwise);
}

async function until(what, condition, limitMs = WAIT_MS) {
  const deadline = Date.now() + limitMs;
  while (!condition()) {
    check(Date.now() < deadline, `not within ${limitMs} ms: ${what}`);
    await sleep(20);
  }
}

function absent(why) {
  return async () => {
    throw new NotInClientError(why);
  };
}

// What a case works with: names of its own, and clients that are closed after it.
class Setting {
  constructor(nameserver, prefix, name) {
    this.nameserver = nameserver;
    this.topic = `${prefix}-${name}`;
    this.group = `${this.topic}-group`;
    this.clients = [];
  }

  // The client's defaults, but for names that must differ. It asks for an HTTP client even though
  // it is told the nameserver.
  options(more) {
    instances += 1;
    return {
      nameSrv: this.nameserver,
      httpclient: {},
      logger: silent,
      instanceName: `${process.pid}-${instances}`,
      ...more,
    };
  }

  async producer() {
    const producer = new Producer(this.options({ producerGroup: `${this.group}-producer` }));
    producer.on('error', error => console.error(error));
    await producer.ready();
    this.clients.push(producer);
    return producer;
  }

  async consume(expression, handler, more = {}) {
    const consumer = new Consumer(
      this.options({
        consumerGroup: this.group,
        consumeFromWhere: 'CONSUME_FROM_FIRST_OFFSET',
        ...more,
      })
    );
    consumer.on('error', error => console.error(error));
    this.clients.push(consumer);
    consumer.subscribe(more.topic || this.topic, expression, handler);
    await consumer.ready();
  }

  message(body, tag = '') {
    return new Message(this.topic, tag, body);
  }

  async close() {
    for (const client of this.clients) {
      await Promise.race([ client.close().catch(error => console.error(error)), sleep(5_000) ]);
    }
  }
}

// A handler that counts bodies.
function collecting(seen) {
  return async message => {
    const body = message.body.toString();
    seen.set(body, (seen.get(body) || 0) + 1);
  };
}

async function sendAll(producer, setting, count) {
  for (let at = 0; at < count; at++) {
    const result = await producer.send(setting.message(`m${at}`));
    check(result.sendStatus === 'SEND_OK', JSON.stringify(result));
  }
}

async function sendSync(setting) {
  const producer = await setting.producer();
  await sendAll(producer, setting, COUNT);
  return await readBack(setting);
}

// All are under way at once: the client knows no other way of not waiting.
async function sendAsync(setting) {
  const producer = await setting.producer();
  const sends = [];
  for (let at = 0; at < COUNT; at++) sends.push(producer.send(setting.message(`m${at}`)));
  for (const result of await Promise.all(sends)) {
    check(result.sendStatus === 'SEND_OK', JSON.stringify(result));
  }
  return await readBack(setting);
}

async function readBack(setting) {
  const seen = new Map();
  await setting.consume('*', collecting(seen));
  await until('all messages read back', () => seen.size >= COUNT);
  for (let at = 0; at < COUNT; at++) check(seen.has(`m${at}`), `m${at} is missing`);
  return `${COUNT} sent and read back`;
}

async function consumePush(setting) {
  const seen = [ new Map(), new Map() ];
  for (const mine of seen) await setting.consume('*', collecting(mine));
  const producer = await setting.producer();
  const deadline = Date.now() + WAIT_MS;
  let sent = 0;
  // The queues are divided when both get something.
  while (sent < COUNT || seen.some(mine => mine.size === 0)) {
    check(Date.now() < deadline, 'one member gets nothing');
    await producer.send(setting.message(`m${sent++}`));
    await sleep(50);
  }
  const all = () => new Set([ ...seen[0].keys(), ...seen[1].keys() ]).size === sent;
  await until('all', all);
  return `${sent} messages, two members: ${seen[0].size} and ${seen[1].size}`;
}

async function consumeBroadcast(setting) {
  const seen = [ new Map(), new Map() ];
  for (const mine of seen) await setting.consume('*', collecting(mine), { isBroadcast: true });
  // It begins at the newest message, wherever it is told to: both must be there first.
  await sleep(2_000);
  const producer = await setting.producer();
  await sendAll(producer, setting, COUNT);
  await until('everything at both', () => seen.every(mine => mine.size === COUNT));
  return `${COUNT} messages at both members`;
}

async function filterTag(setting) {
  const seen = new Map();
  await setting.consume('red || blue', collecting(seen));
  const producer = await setting.producer();
  for (const tag of [ 'red', 'green', 'blue', 'redder' ]) {
    await producer.send(setting.message(tag, tag));
  }
  await producer.send(setting.message('last', 'blue'));
  await until('three', () => seen.size >= 3);
  const found = [ ...seen.keys() ].sort().join();
  check(found === 'blue,last,red', found);
  return 'red and blue of four';
}

async function filterSql(setting) {
  const seen = new Map();
  const subString = "amount BETWEEN 10 AND 20 AND country IN ('CH', 'FR')";
  await setting.consume({ expressionType: 'SQL92', subString }, collecting(seen));
  const producer = await setting.producer();
  const data = [[ '5', 'CH' ], [ '15', 'CH' ], [ '15', 'DE' ], [ '20', 'FR' ], [ '21', 'FR' ]];
  for (const [ amount, country ] of data) {
    const message = setting.message(amount + country);
    Object.assign(message.properties, { amount, country });
    await producer.send(message);
  }
  await until('two', () => seen.size >= 2);
  await sleep(1_000);
  const found = [ ...seen.keys() ].sort().join();
  check(found === '15CH,20FR', found);
  return 'two of five';
}

async function delayLevels(setting) {
  const came = new Map();
  await setting.consume('*', async message => {
    came.set(message.body.toString(), Date.now());
  });
  const producer = await setting.producer();
  const due = new Map();
  for (const [ index, delayMs ] of [ 1_000, 5_000, 10_000 ].entries()) {
    const message = setting.message(`level${index + 1}`);
    message.delayTimeLevel = index + 1;
    due.set(`level${index + 1}`, Date.now() + delayMs);
    await producer.send(message);
  }
  await until('all delivered', () => came.size === due.size);
  const late = [];
  for (const [ body, at ] of due) {
    const lateMs = came.get(body) - at;
    check(lateMs >= 0 && lateMs < LATE_MS, `${body}: ${lateMs} ms from its time`);
    late.push(`${body} +${lateMs} ms`);
  }
  return late.join(', ');
}

async function retryDlq(setting) {
  const tries = [];
  await setting.consume('*', async message => {
    tries.push(message.body.toString() + message.reconsumeTimes);
    // Of a message that came again the client takes only an exception for a failure.
    if (message.body.toString() === 'never' || message.reconsumeTimes === 0) {
      throw new Error('not this time');
    }
  }, { maxReconsumeTimes: 1 });
  const producer = await setting.producer();
  await producer.send(setting.message('never'));
  await producer.send(setting.message('second'));
  await until('the second time', () => tries.includes('second1') && tries.includes('never1'));
  const dead = new Map();
  await setting.consume('*', collecting(dead), {
    consumerGroup: `${setting.group}-undertaker`,
    topic: `%DLQ%${setting.group}`,
  });
  await until('the dead letter', () => dead.has('never'));
  check(dead.size === 1, [ ...dead.keys() ].join());
  return 'retried, and a dead letter after 2 tries';
}

// The group is set back while it consumes. The runner does it.
async function resetOffset(setting) {
  const seen = new Map();
  await setting.consume('*', collecting(seen));
  const producer = await setting.producer();
  await sendAll(producer, setting, COUNT);
  await until('all once', () => seen.size === COUNT);
  // Offsets are committed every five seconds; a reset is one whether or not they are.
  await sleep(6_000);
  output({ event: 'reset', topic: setting.topic, group: setting.group });
  await until('all twice', () => [ ...seen.values() ].every(times => times >= 2));
  return `${COUNT} messages came again`;
}

async function leaderKilled(setting) {
  const seen = new Map();
  await setting.consume('*', collecting(seen));
  const producer = await setting.producer();
  const acknowledged = [];
  let failures = 0;
  const deadline = Date.now() + KILL_LIMIT_MS;
  for (let at = 0; acknowledged.length < KILL_COUNT; at++) {
    check(Date.now() < deadline, `only ${acknowledged.length} sent`);
    if (at === KILL_AT) output({ event: 'kill-leader' });
    try {
      const result = await producer.send(setting.message(`m${at}`));
      if (result.sendStatus === 'SEND_OK') acknowledged.push(`m${at}`);
    } catch (error) {
      failures += 1;
    }
    await sleep(PAUSE_MS);
  }
  await until('all consumed', () => acknowledged.every(body => seen.has(body)), KILL_LIMIT_MS);
  return `${KILL_COUNT} acknowledged, all consumed; ${failures} sends failed`;
}

// Tells of every send and every message, until the runner closes our standard input.
async function standstill(setting) {
  await setting.consume('*', async (message, queue) => {
    const began = Number(message.body.toString());
    output({ event: 'consumed', began, ended: Date.now(), broker: queue.brokerName });
  });
  const producer = await setting.producer();
  let isOver = false;
  process.stdin.on('end', () => {
    isOver = true;
  });
  process.stdin.resume();
  while (!isOver) {
    const began = Date.now();
    try {
      const result = await producer.send(setting.message(String(began)));
      const broker = result.messageQueue.brokerName;
      output({ event: 'sent', began, ended: Date.now(), broker });
    } catch (error) {
      output({ event: 'failed', began, ended: Date.now(), why: error.message });
    }
    await sleep(PAUSE_MS);
  }
  return 'measured';
}

const CASES = {
  'send-sync': sendSync,
  'send-async': sendAsync,
  'send-oneway': absent('every send waits for its answer'),
  'send-batch': absent('no batches'),
  'consume-push': consumePush,
  'consume-orderly': absent('no queue locks'),
  'consume-broadcast': consumeBroadcast,
  'filter-tag': filterTag,
  'filter-sql': filterSql,
  'delay-levels': delayLevels,
  'delay-timers': absent("only the ONS service's own property"),
  transaction: absent('no transaction producer'),
  'retry-dlq': retryDlq,
  'reset-offset': resetOffset,
  'request-reply': absent('no requests'),
  'query-id': absent('no queries'),
  'query-key': absent('no queries'),
  pop: absent('no pop'),
  'leader-killed': leaderKilled,
  standstill,
};

async function run(name, setting) {
  let verdict = 'yes';
  let detail;
  try {
    detail = await (CASES[name] || absent('the program has no such case'))(setting);
  } catch (error) {
    verdict = error instanceof NotInClientError ? 'absent' : 'no';
    detail = error.message;
  }
  output({ case: name, verdict, detail });
  await setting.close();
}

async function main() {
  const [ nameserver, prefix, ...names ] = process.argv.slice(2);
  if (!names.length) {
    console.error('usage: node main.js NAMESERVER PREFIX CASE...');
    process.exit(2);
  }
  await Promise.all(names.map(name => run(name, new Setting(nameserver, prefix, name))));
  process.exit(0);
}

main();
