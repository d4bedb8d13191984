// What an application does with node-postgres; every result is asserted.
// Arguments: folder with node_modules, host, port, database, user (password: PGPASSWORD).
const assert = require("assert");
const [modules, host, port, database, user] = process.argv.slice(2);
const { Client, Pool } = require(modules + "/node_modules/pg");
const options = { host, port: Number(port), database, user };

async function main() {
  const client = new Client(options);
  await client.connect();
  await client.query("DROP TABLE IF EXISTS node_app");
  await client.query("CREATE TABLE node_app (id serial PRIMARY KEY, name text, data bytea)");
  const inserted = await client.query("INSERT INTO node_app (name, data) VALUES ($1, $2) RETURNING id", [
    "\u00fcn\u00ef",
    Buffer.from([0, 255]),
  ]);
  assert.strictEqual(inserted.rows[0].id, 1);
  for (let i = 0; i < 20; i++) {
    const answer = await client.query({ name: "add", text: "SELECT $1::int + 1 AS sum", values: [i] });
    assert.strictEqual(answer.rows[0].sum, i + 1);
  }
  await assert.rejects(client.query("INSERT INTO node_app (id) VALUES (1)"), { code: "23505" });
  await client.query("BEGIN");
  await client.query("DELETE FROM node_app");
  await client.query("ROLLBACK");
  const count = await client.query("SELECT count(*)::int AS n FROM node_app");
  assert.strictEqual(count.rows[0].n, 1);
  const heard = new Promise((resolve) => client.on("notification", (message) => resolve(message.payload)));
  await client.query("LISTEN ch_node");
  const pool = new Pool({ ...options, max: 8 });
  await pool.query("NOTIFY ch_node, 'hi'");
  assert.strictEqual(await heard, "hi");
  const answers = await Promise.all(
    Array.from({ length: 200 }, (_, i) =>
      pool.query({ name: "twice" + (i % 7), text: `SELECT $1::int * 2 AS x, ${i % 7} AS y`, values: [i] }),
    ),
  );
  answers.forEach((answer, i) => assert.deepStrictEqual(answer.rows[0], { x: 2 * i, y: i % 7 }));
  await pool.end();
  await client.end();
  console.log("fine");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
