//! Micro benchmarks of the sans-IO parts, with the allocations per iteration: on the hot paths there are none.

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, black_box};
use parhelion::mirror::ledger::{Fate, Ledger, LedgerSnapshot};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
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
