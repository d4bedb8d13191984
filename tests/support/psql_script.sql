DROP TABLE IF EXISTS ps;
CREATE TABLE ps (a int PRIMARY KEY, b text);
COPY ps FROM STDIN;
1	one
2	two
3	\N
\.
SELECT * FROM ps ORDER BY a;
\d ps
\dt
\x on
SELECT * FROM ps WHERE a = 1;
\x off
\copy (SELECT a FROM ps ORDER BY a) TO STDOUT
SELECT 1/0;
BEGIN;
INSERT INTO ps VALUES (4, 'four');
SELECT nosuch;
SELECT 1;
ROLLBACK;
SELECT count(*) FROM ps \gdesc
SELECT 'SELECT ' || g FROM generate_series(1, 3) g \gexec
SELECT 1 \; SELECT 2;
\set FETCH_COUNT 2
SELECT a FROM ps ORDER BY a;
\set FETCH_COUNT 0
SELECT $1::int + 1 \bind 41 \g
DO $$ BEGIN RAISE NOTICE 'noted'; END $$;
\encoding
SELECT 1 AS "one", 'x' AS "ü" \gset
\echo :one
DROP TABLE ps;
