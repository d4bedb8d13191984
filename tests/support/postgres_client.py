"""What an application does with psycopg; every result is asserted. Arguments: host, port, database, user (password: PGPASSWORD)."""
import sys
import threading
import time

import psycopg

host, port, database = sys.argv[1:4]
user = sys.argv[4] if len(sys.argv) > 4 else "postgres"
dsn = f"host={host} port={port} dbname={database} user={user} connect_timeout=20"

with psycopg.connect(dsn, autocommit=True) as c:
    assert c.execute("SELECT 1").fetchone() == (1,)
    c.execute("DROP TABLE IF EXISTS app")
    c.execute("CREATE TABLE app (id serial PRIMARY KEY, name text, data bytea)")

with psycopg.connect(dsn) as c:
    for binary in (False, True):
        with c.cursor(binary=binary) as cur:
            cur.execute("INSERT INTO app (name, data) VALUES (%s, %s) RETURNING id", ("ünï", b"\x00\xff"))
            (key,) = cur.fetchone()
            cur.execute("SELECT name, data FROM app WHERE id = %s", (key,))
            assert cur.fetchone() == ("ünï", b"\x00\xff")
    c.commit()
    # The fifth execution prepares the statement on the server.
    for i in range(20):
        assert c.execute("SELECT %s::int + 1", (i,)).fetchone() == (i + 1,)
    try:
        with c.transaction():
            c.execute("INSERT INTO app (id, name) VALUES (1, 'again')")
        raise AssertionError("unique violation expected")
    except psycopg.errors.UniqueViolation:
        pass
    with c.transaction():
        c.execute("SAVEPOINT s")
        c.execute("DELETE FROM app")
        c.execute("ROLLBACK TO s")
    assert c.execute("SELECT count(*) FROM app").fetchone() == (2,)
    with c.cursor() as cur:
        with cur.copy("COPY app (name) FROM STDIN") as copy:
            for i in range(10000):
                copy.write_row((f"row {i}",))
        with cur.copy("COPY app (id, name) TO STDOUT") as copy:
            assert sum(1 for _ in copy.rows()) == 10002
    with c.cursor(name="server_side") as cur:
        cur.itersize = 100
        assert sum(1 for _ in cur.execute("SELECT * FROM app")) == 10002
    with c.pipeline():
        results = [c.execute("SELECT %s::int", (i,)) for i in range(500)]
    assert [r.fetchone()[0] for r in results] == list(range(500))
    c.cursor().executemany("INSERT INTO app (name) VALUES (%s)", [(str(i),) for i in range(500)])
    c.commit()

with psycopg.connect(dsn, autocommit=True) as a, psycopg.connect(dsn, autocommit=True) as b:
    a.execute("LISTEN ch")
    b.execute("NOTIFY ch, 'hi'")
    assert [n.payload for n in a.notifies(timeout=10, stop_after=1)] == ["hi"]
    threading.Timer(0.3, a.cancel).start()
    started = time.monotonic()
    try:
        a.execute("SELECT pg_sleep(30)")
        raise AssertionError("cancel expected")
    except psycopg.errors.QueryCanceled:
        assert time.monotonic() - started < 15
    assert a.execute("SELECT 'usable'").fetchone() == ("usable",)
print("fine")
