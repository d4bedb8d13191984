//! Micro benchmarks of the sans-IO parts, with the allocations per iteration: on the hot paths there are none.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use divan::counter::{BytesCount, ItemsCount};
use divan::{AllocProfiler, Bencher, black_box};
use parhelion::limits::RESP_BULK_BYTES_MAX;
use parhelion::load::Kind;
use parhelion::mirror::dispatch::{Bounds, Dispatcher, MemoryBudget};
use parhelion::mirror::exposure::Exposure;
use parhelion::mirror::ledger::{Fate, Ledger, LedgerSnapshot};
use parhelion::mirror::unit::{ClientId, Unit, UnitPool};
use parhelion::protocol::postgres::framer::MessageFramer;
use parhelion::protocol::postgres::sql;
use parhelion::protocol::resp::command::{lookup, lookup_request};
use parhelion::protocol::resp::{
    ReplyFramer, Request, RequestFramer, compare, compare_at_a_glance,
};
use parhelion::proxy::redis::RedisOutcome;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

/// Frames in the input of a framer.
const FRAMES: usize = 100;

fn main() {
    divan::main();
}

/// What finding the ends of a hundred pipelined GETs costs.
#[divan::bench]
fn resp_request_framer(bencher: Bencher<'_, '_>) {
    let mut input = Vec::new();
    for key in 0..FRAMES as u64 {
        Kind::Get.write(key, FRAMES as u64, 64, &mut input);
    }
    let mut framer = RequestFramer::new();
    framer.set_authenticated(true);
    bencher
        .counter(ItemsCount::new(FRAMES))
        .counter(BytesCount::new(input.len()))
        .bench_local(|| {
            let (mut rest, mut frames) = (black_box(input.as_slice()), 0);
            while !rest.is_empty() {
                let advance = framer.advance(rest).expect("commands");
                frames += usize::from(advance.done);
                rest = &rest[advance.consumed..];
            }
            assert_eq!(frames, FRAMES);
        });
}

/// The same for a hundred replies with a value of this size.
#[divan::bench(args = [16, 1024, 65_536])]
fn resp_reply_framer(bencher: Bencher<'_, '_>, size: usize) {
    let mut input = Vec::new();
    for _ in 0..FRAMES {
        input.extend(format!("${size}\r\n").bytes());
        input.resize(input.len() + size, b'x');
        input.extend(b"\r\n");
    }
    let mut framer = ReplyFramer::new(RESP_BULK_BYTES_MAX);
    bencher
        .counter(ItemsCount::new(FRAMES))
        .counter(BytesCount::new(input.len()))
        .bench_local(|| {
            let (mut rest, mut frames) = (black_box(input.as_slice()), 0);
            while !rest.is_empty() {
                let advance = framer.advance(rest).expect("replies");
                frames += usize::from(advance.done);
                rest = &rest[advance.consumed..];
            }
            assert_eq!(frames, FRAMES);
        });
}

/// What finding the ends of a hundred rows of Postgres costs.
#[divan::bench(args = [16, 1024])]
fn postgres_framer(bencher: Bencher<'_, '_>, size: usize) {
    let mut input = Vec::new();
    for _ in 0..FRAMES {
        input.push(b'D');
        input.extend((size as u32 + 4).to_be_bytes());
        input.resize(input.len() + size, 0);
    }
    let mut framer = MessageFramer::server();
    bencher
        .counter(ItemsCount::new(FRAMES))
        .counter(BytesCount::new(input.len()))
        .bench_local(|| {
            let (mut rest, mut frames) = (black_box(input.as_slice()), 0);
            while !rest.is_empty() {
                let advance = framer.advance(rest).expect("messages");
                frames += usize::from(advance.done);
                rest = &rest[advance.consumed..];
            }
            assert_eq!(frames, FRAMES);
        });
}

/// What knowing a command costs.
#[divan::bench(args = ["GET", "set", "ZRANGEBYSCORE", "NOSUCHCOMMAND"])]
fn command_lookup(bencher: Bencher<'_, '_>, name: &str) {
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench_local(|| lookup(black_box(name.as_bytes()), None));
}

/// What it costs to read a SET's arguments and know it.
#[divan::bench]
fn request_parse_and_lookup(bencher: Bencher<'_, '_>) {
    let mut input = Vec::new();
    Kind::Set.write(7, 100, 64, &mut input);
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench_local(|| lookup_request(&Request::parse(black_box(&input))).is_some());
}

/// What it costs to say what a Postgres statement may do.
#[divan::bench(args = [
    "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;",
    "INSERT INTO t (a, b, c) SELECT x, y, z FROM u WHERE x > 1 AND y = 'text' ORDER BY z LIMIT 10;",
])]
fn postgres_classify(bencher: Bencher<'_, '_>, text: &str) {
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench_local(|| sql::classify(black_box(text.as_bytes())));
}

/// The unit of one small command.
fn unit(pool: &UnitPool<Bytes, ()>, payload: &[u8]) -> Rc<Unit<Bytes, ()>> {
    let mut draft = pool.draft(ClientId(1), 1);
    draft.begin_group(1);
    draft.payload.push_copy(payload);
    draft.seal(2)
}

/// What it costs to make a unit of a client's bytes and give it back.
#[divan::bench(args = [64, 1024])]
fn unit_seal(bencher: Bencher<'_, '_>, size: usize) {
    let pool = UnitPool::default();
    let payload = vec![b'x'; size];
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench_local(|| pool.recycle(unit(&pool, black_box(&payload))));
}

/// The whole way of a unit through its client's ring: sealed, offered, handed out, settled.
#[divan::bench(args = [1, 64, 1000])]
fn ring_push_and_pop(bencher: Bencher<'_, '_>, clients: u64) {
    let pool = UnitPool::<Bytes, ()>::default();
    let bounds = Bounds {
        units: 256,
        bytes: 1 << 20,
    };
    let ledger = Arc::new(Ledger::default());
    let budget = MemoryBudget::new(1 << 30);
    let mut dispatcher = Dispatcher::new(ledger, budget, pool.clone(), bounds);
    for client in 0..clients {
        dispatcher.attach(ClientId(client), bounds);
    }
    let payload = [b'x'; 64];
    let mut client = 0;
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
        client = (client + 1) % clients;
        let mut draft = pool.draft(ClientId(client), 1);
        draft.payload.push_copy(black_box(&payload));
        let unit = draft.seal(2);
        black_box(dispatcher.offer(&unit));
        pool.recycle(unit);
        let ticket = dispatcher.next().expect("a unit waits");
        dispatcher.settle(ticket, Fate::Delivered);
    });
}

/// The way of a unit when many are in the air at once, as behind deep pipelines: memory, not instructions.
#[divan::bench(args = [50, 800, 10_000])]
fn units_in_the_air(bencher: Bencher<'_, '_>, units: usize) {
    const CLIENTS: u64 = 50;
    let pool = UnitPool::<Bytes, RedisOutcome>::default();
    let bounds = Bounds {
        units,
        bytes: 1 << 24,
    };
    let ledger = Arc::new(Ledger::default());
    let budget = MemoryBudget::new(1 << 30);
    let mut dispatcher = Dispatcher::new(ledger, budget, pool.clone(), bounds);
    dispatcher.set_window(units);
    let mut tickets = VecDeque::new();
    bencher.counter(ItemsCount::new(units)).bench_local(|| {
        for n in 0..units {
            let mut draft = pool.draft(ClientId(n as u64 / 16 % CLIENTS), 1);
            draft.begin_group(1);
            draft.payload.push_copy(black_box(&[b'x'; 40]));
            draft
                .outcome
                .reply
                .extend_from_slice(black_box(b"$3\r\nxxx\r\n"));
            draft.outcome.replies = 1;
            let unit = draft.seal(2);
            black_box(dispatcher.offer(&unit));
            pool.recycle(unit);
        }
        while let Some(ticket) = dispatcher.next() {
            tickets.push_back(ticket);
        }
        for ticket in tickets.drain(..) {
            assert_eq!(
                ticket.unit.outcome.reply.as_slice(),
                black_box(b"$3\r\nxxx\r\n")
            );
            dispatcher.settle(ticket, Fate::Delivered);
        }
    });
}

/// What the draw costs that decides whether a unit is mirrored.
#[divan::bench]
fn exposure_draw(bencher: Bencher<'_, '_>) {
    let exposure = Exposure::new(0.25).expect("a share");
    let mut rng = fastrand::Rng::with_seed(1);
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench_local(|| black_box(&exposure).admits(rng.f64()));
}

fn array(elements: usize, last: &str) -> Vec<u8> {
    let mut reply = format!("*{elements}\r\n").into_bytes();
    for n in 1..elements {
        reply.extend(format!("$8\r\n{n:08}\r\n").bytes());
    }
    reply.extend(format!("$8\r\n{last:>8}\r\n").bytes());
    reply
}

/// Equal replies, as nearly all are.
#[divan::bench(args = [1, 100])]
fn compare_equal(bencher: Bencher<'_, '_>, elements: usize) {
    let (ours, theirs) = (array(elements, "a"), array(elements, "a"));
    let command = lookup(b"LRANGE", None).expect("known");
    bencher
        .counter(BytesCount::new(ours.len()))
        .bench_local(|| compare_at_a_glance(command, black_box(&ours), black_box(&theirs)));
}

/// Replies that differ at their end.
#[divan::bench(args = [1, 100])]
fn compare_different(bencher: Bencher<'_, '_>, elements: usize) {
    let (ours, theirs) = (array(elements, "a"), array(elements, "b"));
    let command = lookup(b"LRANGE", None);
    let request = Request::parse(b"*4\r\n$6\r\nLRANGE\r\n$1\r\nl\r\n$1\r\n0\r\n$2\r\n-1\r\n");
    bencher
        .counter(BytesCount::new(ours.len()))
        .bench_local(|| compare(command, &request, black_box(&ours), black_box(&theirs)));
}

/// What one mirrored unit costs in the books.
#[divan::bench]
fn ledger_offer_and_settle(bencher: Bencher<'_, '_>) {
    let ledger = Ledger::default();
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
        black_box(&ledger).offer();
        black_box(&ledger).settle(Fate::Delivered);
    });
}

/// What a unit costs that the draw left out: the price of exposure 0.
#[divan::bench]
fn ledger_leave_unexposed(bencher: Bencher<'_, '_>) {
    let ledger = Ledger::default();
    bencher
        .counter(ItemsCount::new(1_u32))
        .bench_local(|| black_box(&ledger).leave_unexposed());
}

/// What the control thread does per scrape and core.
#[divan::bench(args = [1, 16, 128])]
fn ledger_merge_cores(bencher: Bencher<'_, '_>, cores: usize) {
    let ledgers: Vec<Ledger> = (0..cores).map(|_| Ledger::default()).collect();
    bencher.counter(ItemsCount::new(cores)).bench_local(|| {
        let mut sum = LedgerSnapshot::default();
        for ledger in black_box(&ledgers) {
            sum.merge(&ledger.snapshot());
        }
        sum
    });
}
