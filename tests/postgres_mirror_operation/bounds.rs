//! What units may hold in memory: one transaction, one COPY, all clients together, several mirrors.

use parhelion::testing::wait::eventually;

use super::support::pg::{PgClient, wire};
use super::support::pg_pair::{PATIENCE, Pair, PairOptions, SHOP, ok};

const MIB: u64 = 1 << 20;

/// Row 12, a transaction.
#[test]
fn an_open_transaction_of_80_mb_is_held_within_the_byte_bound() {
    let pair = Pair::new();
    pair.both("CREATE TABLE t(id int, pad text)");
    let mut client = pair.client();
    ok(&mut client, "INSERT INTO t VALUES (0, '')");
    pair.clean();
    let before = pair.resident_bytes();
    let pad = "x".repeat(100_000);
    ok(&mut client, "BEGIN");
    let mut most = before;
    for id in 1..=800 {
        ok(
            &mut client,
            &format!("INSERT INTO t VALUES ({id}, '{pad}')"),
        );
        if id % 50 == 0 {
            most = most.max(pair.resident_bytes());
        }
    }
    assert!(memory_used(&pair) <= MIB);
    ok(&mut client, "COMMIT");
    ok(&mut client, "INSERT INTO t VALUES (-1, '')");
    let ledger = pair.settled();
    assert_eq!(
        (ledger.delivered, ledger.dropped_for("oversize")),
        (2, 1),
        "{ledger:?}"
    );
    assert!(most - before < 24 * MIB, "{before} {most}");
    pair.mirror_shows("SELECT count(*) FROM t", "2");
    // What unsealed units held is given back.
    let free = eventually(PATIENCE, || (memory_used(&pair) == 0).then_some(()));
    assert!(free.is_some(), "{}", memory_used(&pair));
}

/// Row 12, a COPY.
#[test]
fn a_copy_of_208_mb_is_held_within_the_byte_bound() {
    let pair = Pair::new();
    pair.both("CREATE UNLOGGED TABLE t(id int, pad text)");
    let mut client = pair.client();
    ok(&mut client, "INSERT INTO t VALUES (0, '')");
    pair.clean();
    let before = pair.resident_bytes();
    let line = format!("1\t{}\n", "y".repeat(1000));
    let piece = wire::message(b'd', line.repeat(64).as_bytes());
    client.send(&wire::query("COPY t FROM STDIN"));
    client.until(b'G');
    let mut most = before;
    let pieces = 208 * MIB as usize / piece.len();
    for at in 0..pieces {
        client.send(&piece);
        if at % (pieces / 8) == 0 {
            most = most.max(pair.resident_bytes());
        }
    }
    client.send(&wire::message(b'c', b""));
    client.until_ready();
    most = most.max(pair.resident_bytes());
    let ledger = pair.settled();
    assert_eq!(
        (ledger.delivered, ledger.dropped_for("oversize")),
        (1, 1),
        "{ledger:?}"
    );
    assert!(most - before < 24 * MIB, "{before} {most}");
    assert_eq!(
        pair.primary.sql(SHOP, "SELECT count(*) FROM t").unwrap(),
        (pieces * 64 + 1).to_string()
    );
}

/// What open transactions of many clients hold together is bounded too.
#[test]
fn open_transactions_beyond_the_cores_memory_are_dropped_whole_as_memory() {
    let pair = Pair::with(PairOptions::general("mirror_memory = \"1MiB\""));
    pair.both("CREATE TABLE t(id int, pad text)");
    let pad = "x".repeat(200_000);
    let mut clients: Vec<PgClient> = (0..12).map(|_| pair.client()).collect();
    for (id, client) in clients.iter_mut().enumerate() {
        ok(client, "BEGIN");
        ok(client, &format!("INSERT INTO t VALUES ({id}, '{pad}')"));
    }
    for client in &mut clients {
        ok(client, "COMMIT");
    }
    let ledger = pair.clean_but_dropped();
    assert!(ledger.dropped_for("memory") >= 6, "{ledger:?}");
    assert!(ledger.delivered >= 1, "{ledger:?}");
    pair.mirror_shows("SELECT count(*) FROM t", &ledger.delivered.to_string());
}

/// Units that wait for several mirrors are in memory once.
#[test]
fn several_mirrors_hold_the_bytes_once() {
    let more: String = (1..=3)
        .map(|n| {
            format!(
                "[[databases]]\nname = \"more{n}\"\nhost = \"127.0.0.1\"\nport = {{mirror}}\ndatabase_name = \"{SHOP}\"\nuser = \"postgres\"\n\
                 [[mirroring]]\nsource_db = \"prod\"\ndestination_db = \"more{n}\"\n"
            )
        })
        .collect();
    let pair = Pair::with(PairOptions {
        more,
        ..PairOptions::default()
    });
    let mut client = pair.client();
    ok(&mut client, "SELECT 1");
    for name in ["staging_db", "more1", "more2", "more3"] {
        pair.settled_at(name);
    }
    pair.mirror.pause().unwrap();
    let pad = "x".repeat(50_000);
    for _ in 0..10 {
        ok(&mut client, &format!("SELECT length('{pad}')"));
    }
    // Published ten times a second.
    let used = eventually(PATIENCE, || {
        Some(memory_used(&pair)).filter(|used| *used >= 500_000)
    });
    pair.mirror.resume().unwrap();
    for name in ["staging_db", "more1", "more2", "more3"] {
        assert_eq!(pair.settled_at(name).delivered, 11, "{name}");
    }
    assert!(used.is_some_and(|used| used < 800_000), "{used:?}");
}

/// What the mirrors' units hold, as last published.
fn memory_used(pair: &Pair) -> u64 {
    let text = pair.proxy.get("/api/status").unwrap();
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    status["totals"]["mirror_memory_used"].as_u64().unwrap()
}
