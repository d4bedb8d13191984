//! Digests of replies, for comparisons that do not look at the order.

use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::{Class, Scalar, class, next};
use crate::protocol::resp::reply::{Item, Reply};

/// The elements, taken `group` at a time, are the same in any order.
///
/// Each group is digested to 128 bits and the digests are added up: no memory, and two unequal multisets of honest
/// data agree with a probability of about 2^-128.
pub(super) fn same_multiset(primary: Reply<'_>, mirror: Reply<'_>, group: usize) -> bool {
    multiset(primary, group, false) == multiset(mirror, group, false)
}

/// The same for places: each begins with a name, and everything behind it is a float.
pub(super) fn same_multiset_of_places(primary: Reply<'_>, mirror: Reply<'_>) -> bool {
    multiset(primary, 1, true) == multiset(mirror, 1, true)
}

fn multiset(reply: Reply<'_>, group: usize, places: bool) -> (u64, u128) {
    let (mut count, mut sum) = (0, 0_u128);
    let mut elements = reply.elements();
    while let Some(first) = elements.next() {
        let mut digest = element(first, places);
        for _ in 1..group {
            let Some(other) = elements.next() else { break };
            digest = mix(digest, element(other, places));
        }
        sum = sum.wrapping_add(digest);
        count += 1;
    }
    (count, sum)
}

fn element(reply: Reply<'_>, place: bool) -> u128 {
    let mut cursor = reply.cursor();
    let mut digest = 0;
    let mut scalars = 0;
    while let Some(item) = next(&mut cursor) {
        let item = match item {
            Item::Scalar(kind, text) => {
                scalars += 1;
                scalar((kind, text), place && scalars > 1)
            }
            Item::Nil => 1,
            Item::Open(_, count) => 2 + u128::from(count.unwrap_or(u64::MAX)),
            Item::Close => 3,
        };
        digest = mix(digest, item);
    }
    digest
}

/// An odd multiplier with mixed bits: the golden ratio of 2^128.
const MULTIPLIER: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

fn mix(digest: u128, item: u128) -> u128 {
    (digest.rotate_left(41) ^ item).wrapping_mul(MULTIPLIER)
}

fn scalar(item: Scalar<'_>, is_float: bool) -> u128 {
    if (is_float || item.0 == b',')
        && let Some(number) = number(item.1)
    {
        return xxh3_128_with_seed(&number.to_bits().to_le_bytes(), 1);
    }
    let (class, text) = canonical(item);
    xxh3_128_with_seed(text, class as u64 + 2)
}

/// The form in which equal scalars of both RESP versions are equal.
pub(super) fn canonical<'a>(item: Scalar<'a>) -> (Class, &'a [u8]) {
    match item {
        (b'#', b"t") => (Class::Integer, b"1"),
        (b'#', b"f") => (Class::Integer, b"0"),
        (kind, text) => (class(kind), text),
    }
}

/// Both texts are numbers of the same value.
pub(super) fn same_number(a: &[u8], b: &[u8]) -> bool {
    matches!((number(a), number(b)), (Some(a), Some(b)) if a == b)
}

/// Two scalars of different types with the same numeric value.
pub(super) fn same_float(a: Reply<'_>, b: Reply<'_>) -> bool {
    matches!((a.text(), b.text()), (Some(a), Some(b)) if same_number(a, b))
}

fn number(text: &[u8]) -> Option<f64> {
    // Longer texts are no numbers that a server prints.
    let text = std::str::from_utf8(text)
        .ok()
        .filter(|text| text.len() <= 400)?;
    // Rust reads inf, infinity and nan in any case, as C does.
    let number: f64 = text.parse().ok()?;
    // Minus zero equals zero, and must have the same digest.
    Some(if number == 0.0 { 0.0 } else { number })
}
