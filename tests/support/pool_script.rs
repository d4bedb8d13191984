//! What clients that share connections may send: named and unnamed statements, errors in the middle of pipelines, settings,
//! transactions. Drawn from a seed; the same for a model of the server and for a real one.

use fastrand::Rng;
use parhelion::testing::pg_wire as wire;

/// The texts that a kind of server understands.
pub struct Texts {
    /// Statements that succeed, each with an answer of its own.
    pub good: &'static [&'static str],
    /// Does not parse.
    pub bad: &'static str,
    /// Parses and then fails.
    pub fails: &'static str,
    /// Two settings that each take the values 1 to 3, as `SET … = '1'`.
    pub settings: [&'static str; 2],
    /// The server takes a SET back whose transaction fails.
    pub undoes_settings: bool,
}

/// What a client sends in one go, up to where it waits for an answer. What may change prepared statements comes last: what a later
/// cycle finds of an earlier one that failed is not carried exactly.
pub fn script(texts: &Texts, rng: &mut Rng, in_transaction: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..rng.usize(0..4) {
        out.extend(simple(texts, rng, in_transaction));
    }
    match rng.u8(0..12) {
        0 => out.extend(wire::query("DEALLOCATE ALL")),
        1..8 => {
            let alone = out.is_empty();
            out.extend(extended(texts, rng, alone, in_transaction));
        }
        _ => out.extend(simple(texts, rng, in_transaction)),
    }
    out
}

fn simple(texts: &Texts, rng: &mut Rng, in_transaction: bool) -> Vec<u8> {
    match rng.u8(0..7) {
        0 if in_transaction => wire::query("commit"),
        1 if in_transaction => wire::query("rollback"),
        0 | 1 => wire::query("begin"),
        2 | 3 if texts.undoes_settings || !in_transaction => {
            let (name, value) = (texts.settings[rng.usize(0..2)], rng.u8(1..4));
            wire::query(&format!("set {name} = '{value}'"))
        }
        4 | 5 => wire::query(texts.good[rng.usize(..texts.good.len())]),
        _ => wire::query(texts.fails),
    }
}

/// Messages of the extended protocol up to a Sync. In a transaction that has failed, a statement without rows can be described only
/// where it was prepared before; and which of two errors comes first is not carried where the failure is not known yet.
fn extended(texts: &Texts, rng: &mut Rng, alone: bool, in_transaction: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..rng.usize(1..6) {
        let name = ["", "a", "b", "c"][rng.usize(0..4)];
        out.extend(match rng.u8(0..16) {
            0..6 => wire::parse(name, text(texts, rng, alone), &[]),
            6..11 => [wire::bind("", name, 0, &[], 0), wire::execute("", 0)].concat(),
            11..14 => wire::close(b'S', name),
            _ if alone && !in_transaction => wire::describe(b'S', name),
            _ => wire::flush(),
        });
    }
    out.extend(wire::sync());
    out
}

fn text(texts: &Texts, rng: &mut Rng, bad: bool) -> &'static str {
    match rng.u8(0..16) {
        0 | 1 if bad => texts.bad,
        2 | 3 => texts.fails,
        4 => "DEALLOCATE ALL",
        _ => texts.good[rng.usize(..texts.good.len())],
    }
}
