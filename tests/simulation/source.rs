//! Where the simulated clients' units come from. A protocol plugs in here: it draws units that its
//! sessions would seal, and recognises them in what a mirror receives.

use std::rc::Rc;

use fastrand::Rng;
use parhelion::mirror::unit::Class;

use super::Mistake;

pub type Slice = Rc<[u8]>;

/// A stretch of a unit, as a session would push it.
pub enum Piece {
    Copied(Vec<u8>),
    Shared(Slice),
}

/// A unit: its message groups, each with the pause before it.
pub struct Drawn {
    pub class: Class,
    pub groups: Vec<(u64, Vec<Piece>)>,
}

/// What stands at the start of the bytes that a mirror received since the last whole unit.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// A unit from its first byte to its last.
    Whole { client: u64, seq: u64, len: usize },
    /// The beginning of a unit; whose, if that much has come.
    Part(Option<(u64, u64)>),
    /// Not the beginning of a unit.
    Foreign,
}

pub trait UnitSource {
    /// Makes this mistake from now on, if it is one of sessions.
    fn plant(&mut self, _mistake: Mistake) {}

    /// Unit number `seq` of `client`.
    fn draw(&mut self, rng: &mut Rng, client: u64, seq: u64) -> Drawn;

    fn recognise(&self, stream: &[u8]) -> Seen;
}

/// Units that say who they are: mark, client, number, length, then bytes that follow from them.
pub struct Numbered;

const MARK: u8 = b'U';
const HEAD_LEN: usize = 21;

fn body(client: u64, seq: u64, len: usize) -> impl Iterator<Item = u8> {
    let seed = (client.wrapping_mul(31) ^ seq).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..len as u64).map(move |i| (seed.wrapping_add(i * 7) >> 11) as u8)
}

impl UnitSource for Numbered {
    fn draw(&mut self, rng: &mut Rng, client: u64, seq: u64) -> Drawn {
        let len = match rng.u8(0..20) {
            0 => rng.usize(8_000..40_000),
            1..=4 => rng.usize(500..4_000),
            _ => rng.usize(0..120),
        };
        let mut bytes = vec![MARK];
        bytes.extend(client.to_be_bytes());
        bytes.extend(seq.to_be_bytes());
        bytes.extend((len as u32).to_be_bytes());
        bytes.extend(body(client, seq, len));
        let mut groups = Vec::new();
        let mut rest = bytes.as_slice();
        for left in (0..rng.usize(1..=4)).rev() {
            let len = if left == 0 {
                rest.len()
            } else {
                rng.usize(0..=rest.len())
            };
            let (group, tail) = rest.split_at(len);
            rest = tail;
            if group.is_empty() {
                continue;
            }
            let (head, tail) = group.split_at(rng.usize(0..=group.len()));
            let gap_ns = rng.u64(0..3) * rng.u64(0..4_000_000);
            let pieces = vec![Piece::Copied(head.to_vec()), Piece::Shared(tail.into())];
            groups.push((gap_ns, pieces));
        }
        let class = *rng
            .choice(&[Class::READS, Class::WRITES, Class::UNKNOWN])
            .unwrap();
        Drawn { class, groups }
    }

    fn recognise(&self, stream: &[u8]) -> Seen {
        if stream.first().is_some_and(|mark| *mark != MARK) {
            return Seen::Foreign;
        }
        let Some(head) = stream.get(..HEAD_LEN) else {
            return Seen::Part(None);
        };
        let client = u64::from_be_bytes(head[1..9].try_into().unwrap());
        let seq = u64::from_be_bytes(head[9..17].try_into().unwrap());
        let len = u32::from_be_bytes(head[17..21].try_into().unwrap()) as usize;
        let got = &stream[HEAD_LEN..];
        if !got
            .iter()
            .copied()
            .zip(body(client, seq, len))
            .all(|(a, b)| a == b)
        {
            Seen::Foreign
        } else if got.len() >= len {
            let len = HEAD_LEN + len;
            Seen::Whole { client, seq, len }
        } else {
            Seen::Part(Some((client, seq)))
        }
    }
}
