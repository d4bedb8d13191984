"""libpq's pipeline mode: many transactions of one statement on their way at once. Arguments: port, database, user, how many."""

import sys

import psycopg

port, database, user, count = sys.argv[1:5]
conninfo = f"host=127.0.0.1 port={port} dbname={database} user={user}"
with psycopg.connect(conninfo, autocommit=True) as conn:
    with conn.pipeline() as pipeline, conn.cursor() as cursor:
        for number in range(int(count)):
            cursor.execute("INSERT INTO t VALUES (%s)", (number,))
            pipeline.sync()
print("fine")
