"""What an application does with redis-py; every result is asserted. Arguments: host, port."""
import sys
import threading

import redis

host, port = sys.argv[1], int(sys.argv[2])
for protocol in (2, 3):
    r = redis.Redis(host=host, port=port, protocol=protocol, client_name="app", socket_timeout=20)
    assert r.ping() is True
    r.flushall()
    assert r.set("k", b"\x00\xffbin\r\n") is True
    assert r.get("k") == b"\x00\xffbin\r\n"
    assert r.get("missing") is None
    assert r.hset("h", mapping={"a": 1, "b": 2}) == 2
    assert r.hgetall("h") == {b"a": b"1", b"b": b"2"}
    assert r.sadd("s", 1, 2, 3) == 3 and r.smembers("s") == {b"1", b"2", b"3"}
    assert r.zadd("z", {"x": 1.5}) == 1 and r.zscore("z", "x") == 1.5
    assert r.client_getname() in (b"app", "app")
    assert isinstance(r.info()["redis_version"], str)

    with r.pipeline(transaction=False) as pipe:
        for i in range(1000):
            pipe.incr("n")
        assert pipe.execute() == list(range(1, 1001))
    with r.pipeline() as pipe:
        pipe.set("t", 1).incr("t").get("t")
        assert pipe.execute() == [True, 2, b"2"]

    def bump(pipe):
        value = int(pipe.get("counter") or 0)
        pipe.multi()
        pipe.set("counter", value + 1)

    def many():
        for _ in range(20):
            r.transaction(bump, "counter")

    threads = [threading.Thread(target=many) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert r.get("counter") == b"80", r.get("counter")

    try:
        r.lpush("k", 1)
        raise AssertionError("WRONGTYPE expected")
    except redis.ResponseError as error:
        assert "WRONGTYPE" in str(error)

    script = r.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    assert script(keys=["lua"], args=[5]) == 5
    assert script(keys=["lua"], args=[5]) == 10

    pubsub = r.pubsub()
    pubsub.subscribe("c")
    assert pubsub.get_message(timeout=10)["type"] == "subscribe"
    assert r.publish("c", "hello") == 1
    assert pubsub.get_message(timeout=10)["data"] == b"hello"
    pubsub.close()

    popped = []
    waiter = threading.Thread(target=lambda: popped.append(r.blpop("queue", timeout=20)))
    waiter.start()
    r.rpush("queue", "job")
    waiter.join()
    assert [list(p) for p in popped] == [[b"queue", b"job"]], popped

    assert sorted(r.scan_iter(match="nosuch*")) == []
    db3 = redis.Redis(host=host, port=port, db=3, protocol=protocol)
    assert db3.get("k") is None and db3.set("k", "three") and r.get("k") != b"three"
    with redis.Redis(host=host, port=port, single_connection_client=True) as one, one.monitor() as monitor:
        r.set("seen", 1)
        assert "SET" in monitor.next_command()["command"].upper()
    r.close()
print("fine")
