SELECT 1
SELECT 1; SELECT 2; SELECT 'three'
;
-- only a comment
SELECT
SELECT NULL, true, 1.5::float8, 'text', '\x00ff'::bytea, ARRAY[1,2,NULL], '{"a": [1, 2]}'::jsonb
SELECT 'ünïcödé', U&'\+01F600', E'tab\t newline\n'
SELECT $$dollar ; quoted$$, $tag$ with $$ inside $tag$
SELECT repeat('x', 100000)
SELECT generate_series(1, 2000)
SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 500) i
SELECT * FROM nosuch
SELECT 1/0
SELEKT 1
SELECT 'unterminated
SELECT 1; SELECT 1/0; SELECT 2
SELECT "no such column"
SELECT nosuchfunction(1)
CREATE TABLE t (id int PRIMARY KEY, name text NOT NULL, amount numeric(10,2) DEFAULT 0, at timestamptz, data bytea)
CREATE TABLE t (id int)
CREATE TABLE IF NOT EXISTS t (id int)
INSERT INTO t VALUES (1, 'one', 1.5, '2020-01-01 00:00:00+00', '\xdeadbeef'), (2, 'two', 2.5, NULL, NULL)
INSERT INTO t VALUES (1, 'again')
INSERT INTO t (id) VALUES (3)
INSERT INTO t VALUES (3, 'three') RETURNING *
INSERT INTO t VALUES (3, 'drei') ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name RETURNING name
SELECT * FROM t ORDER BY id
SELECT count(*), sum(amount), avg(amount), max(at) FROM t
UPDATE t SET name = upper(name) WHERE id > 1
UPDATE t SET id = 1 WHERE id = 2
UPDATE t SET name = NULL
DELETE FROM t WHERE id = 99
DELETE FROM t WHERE id = 3 RETURNING id, name
WITH moved AS (DELETE FROM t WHERE id = 2 RETURNING *) INSERT INTO t SELECT id + 10, name FROM moved RETURNING id
MERGE INTO t USING (VALUES (1, 'm'), (50, 'n')) AS s(id, name) ON t.id = s.id WHEN MATCHED THEN UPDATE SET name = s.name WHEN NOT MATCHED THEN INSERT (id, name) VALUES (s.id, s.name)
SELECT id, name FROM t ORDER BY id
TABLE t
VALUES (1, 'a'), (2, 'b')
SELECT id AS "a ""quoted"" name", name "ü" FROM t ORDER BY id LIMIT 1 OFFSET 1
EXPLAIN (COSTS off) SELECT * FROM t WHERE id = 1
SELECT EXISTS (SELECT 1 FROM t WHERE id = 1), (SELECT name FROM t WHERE id = 1)
CREATE INDEX t_name ON t (name)
CREATE UNIQUE INDEX t_amount ON t (amount)
CREATE VIEW v AS SELECT id FROM t
SELECT * FROM v ORDER BY 1
DROP TABLE t
ALTER TABLE t ADD COLUMN extra int DEFAULT 7
SELECT id, extra FROM t ORDER BY id
BEGIN
INSERT INTO t (id, name) VALUES (100, 'tx')
SAVEPOINT a
INSERT INTO t (id, name) VALUES (100, 'dup')
SELECT 1
ROLLBACK TO a
INSERT INTO t (id, name) VALUES (101, 'tx2')
RELEASE a
COMMIT
SELECT count(*) FROM t WHERE id >= 100
BEGIN; INSERT INTO t (id, name) VALUES (200, 'x'); SELECT 1/0; COMMIT
SELECT 1
ROLLBACK
SELECT count(*) FROM t WHERE id = 200
COMMIT
BEGIN
BEGIN
ROLLBACK
ROLLBACK
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY
DELETE FROM t
ROLLBACK
START TRANSACTION; SELECT 1; COMMIT
BEGIN
DECLARE c CURSOR FOR SELECT generate_series(1, 100)
FETCH 10 FROM c
MOVE 50 IN c
FETCH ALL FROM c
CLOSE c
COMMIT
PREPARE p (int, text) AS SELECT $1 + 1, $2 || '!'
EXECUTE p (1, 'a')
EXECUTE p (1)
EXECUTE nosuch
DEALLOCATE p
DEALLOCATE ALL
SET search_path = pg_catalog, public
SHOW search_path
SET timezone = 'Asia/Tokyo'
SHOW timezone
SELECT '2020-01-01 00:00:00+00'::timestamptz
SET datestyle = 'German'
SELECT '2020-01-02'::date
SET client_encoding = 'LATIN1'
SELECT 'ü'
SET client_encoding = 'UTF8'
SET application_name = 'corpus'
SET nosuch.parameter = 'fine'
SET nosuch_parameter = 1
RESET ALL
SET LOCAL work_mem = '1MB'
SET extra_float_digits = 0
SELECT 0.1::float8 + 0.2::float8
RESET extra_float_digits
SET ROLE nosuch
DO $$ BEGIN RAISE NOTICE 'notice %', 1; RAISE WARNING 'warning'; END $$
DO $$ BEGIN RAISE EXCEPTION 'custom' USING ERRCODE = 'P1234', DETAIL = 'detail', HINT = 'hint'; END $$
DO $$ BEGIN FOR i IN 1..200 LOOP RAISE NOTICE 'number %', i; END LOOP; END $$
CREATE FUNCTION f(a int) RETURNS TABLE (x int, y text) LANGUAGE sql AS 'SELECT a, ''y'' UNION ALL SELECT a + 1, ''z'''
SELECT * FROM f(5)
SELECT f(5)
CREATE PROCEDURE pr() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t (id, name) VALUES (300, 'p'); COMMIT; END $$
CALL pr()
CREATE FUNCTION bad() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1/0; END $$
SELECT bad()
DROP TABLE IF EXISTS nosuch
DROP FUNCTION nosuch()
LISTEN channel_a
NOTIFY channel_a, 'payload'
SELECT pg_notify('channel_a', repeat('x', 7000))
NOTIFY channel_b, 'nobody'
BEGIN; NOTIFY channel_a, 'in transaction'; NOTIFY channel_a, 'twice'; COMMIT
UNLISTEN *
LOCK TABLE t
SELECT pg_advisory_lock(1), pg_advisory_unlock(1)
SELECT pg_advisory_unlock(1)
CREATE TEMP TABLE tmp (a int) ON COMMIT DROP
SELECT * FROM tmp
CREATE TYPE mood AS ENUM ('sad', 'happy')
SELECT 'happy'::mood, 'angry'::mood
SELECT 'happy'::mood
CREATE SEQUENCE s
SELECT nextval('s'), nextval('s'), currval('s'), lastval()
SELECT * FROM generate_series('2020-01-01'::date, '2020-01-03', '1 day') d
SELECT row(1, 'a', NULL), row(t.*) FROM (VALUES (1, 2)) t(a, b)
SELECT interval '1 day 02:03:04', '12:34'::time, point(1,2), int4range(1,5), '192.168.0.1/24'::inet, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid
SELECT 'NaN'::float8, 'Infinity'::float4, 12345678901234567890.123456789::numeric, (-32768)::int2
SELECT xmlelement(name a, 'b')
SELECT decode('00010203', 'hex'), encode('\xff00'::bytea, 'base64')
SELECT length(convert_from('\xc3bc', 'UTF8')), chr(252)
SELECT convert_from('\xff', 'UTF8')
SELECT rank() OVER (ORDER BY id), id FROM t ORDER BY id
SELECT DISTINCT ON (name) name FROM t ORDER BY name
SELECT * FROM t FOR UPDATE NOWAIT
WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 50) SELECT sum(n) FROM r
SELECT id INTO copied FROM t
SELECT count(*) FROM copied
CREATE TABLE parts (a int) PARTITION BY RANGE (a)
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)
INSERT INTO parts VALUES (5)
INSERT INTO parts VALUES (50)
ANALYZE t
VACUUM t
BEGIN; VACUUM t; COMMIT
ROLLBACK
CHECKPOINT
TRUNCATE copied
COMMENT ON TABLE t IS 'comment'
GRANT SELECT ON t TO nosuch
SET statement_timeout = '50ms'
SELECT pg_sleep(5)
RESET statement_timeout
SELECT set_config('work_mem', '8MB', false)
DISCARD ALL
DROP VIEW v
DROP TABLE t, copied, parts CASCADE
