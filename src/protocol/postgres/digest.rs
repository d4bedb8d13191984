//! Digests of result sets, computed while the bytes pass: columns (names and types) and rows (ordered and unordered).
//!
//! Nothing is held but hash states; a row of any size is digested in constant memory.

use std::fmt;

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Types with an OID from here on belong to the user and have another OID in every database.
const FIRST_USER_OID: u32 = 16_384;
/// Odd 128-bit multiplier that makes the ordered digest depend on the order (the golden ratio's bits).
const ORDER_STEP: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

/// The rows of one statement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowsDigest {
    /// Equal for the same rows in the same order.
    pub ordered: u128,
    /// Equal for the same rows in any order.
    pub unordered: u128,
}

impl RowsDigest {
    /// Adds one row's hash.
    pub fn add(&mut self, row: u128) {
        self.ordered = self.ordered.wrapping_mul(ORDER_STEP).wrapping_add(row);
        self.unordered = self.unordered.wrapping_add(row);
    }
}

/// Hashes row bodies that arrive in parts.
#[derive(Default)]
pub(super) struct RowHasher {
    /// Made for the first row that comes in parts (half a KiB), then kept.
    state: Option<Box<Xxh3>>,
}

impl RowHasher {
    /// Takes the next part of a row; gives its hash with the last.
    #[inline]
    pub fn feed(&mut self, offset: usize, part: &[u8], done: bool) -> Option<u128> {
        if offset == 0 && done {
            return Some(xxh3_128(part));
        }
        let state = self.state.get_or_insert_with(|| Box::new(Xxh3::new()));
        if offset == 0 {
            state.reset();
        }
        state.update(part);
        done.then(|| state.digest128())
    }
}

/// Reads a RowDescription in parts and hashes what two databases can be compared by: each column's name, its type and its
/// format. Table OIDs and the OIDs of user-defined types differ between databases and are left out.
pub(super) struct ColumnsHasher {
    state: Box<Xxh3>,
    at: ColumnPart,
}

#[derive(Debug, Clone, Copy)]
enum ColumnPart {
    /// The number of fields, two bytes; this many were seen.
    Count(u8),
    Name,
    /// Table OID 4, attribute 2, type OID 4, type length 2, type modifier 4, format 2.
    Fixed {
        seen: u8,
        type_oid: u32,
    },
}

impl ColumnsHasher {
    pub fn new() -> Self {
        Self {
            state: Box::new(Xxh3::new()),
            at: ColumnPart::Count(0),
        }
    }

    /// Takes the next part of the body; gives the digest (never 0) with the last.
    pub fn feed(&mut self, offset: usize, part: &[u8], done: bool) -> Option<u64> {
        if offset == 0 {
            self.state.reset();
            self.at = ColumnPart::Count(0);
        }
        let mut rest = part;
        while let Some((&byte, tail)) = rest.split_first() {
            if matches!(self.at, ColumnPart::Name) {
                rest = self.name(rest);
                continue;
            }
            self.at = self.step(byte);
            rest = tail;
        }
        done.then(|| self.state.digest().max(1))
    }

    /// Takes as much of a name as there is.
    fn name<'a>(&mut self, rest: &'a [u8]) -> &'a [u8] {
        match memchr::memchr(0, rest) {
            Some(end) => {
                self.state.update(&rest[..=end]);
                self.at = ColumnPart::Fixed {
                    seen: 0,
                    type_oid: 0,
                };
                &rest[end + 1..]
            }
            None => {
                self.state.update(rest);
                &[]
            }
        }
    }

    fn step(&mut self, byte: u8) -> ColumnPart {
        match self.at {
            ColumnPart::Count(0) => ColumnPart::Count(1),
            ColumnPart::Count(_) | ColumnPart::Name => ColumnPart::Name,
            ColumnPart::Fixed { seen, mut type_oid } => {
                match seen {
                    6..=9 => type_oid = type_oid << 8 | u32::from(byte),
                    16 | 17 => self.state.update(&[byte]),
                    _ => {}
                }
                if seen == 9 {
                    let comparable = if type_oid < FIRST_USER_OID {
                        type_oid
                    } else {
                        u32::MAX
                    };
                    self.state.update(&comparable.to_be_bytes());
                }
                if seen == 17 {
                    ColumnPart::Name
                } else {
                    ColumnPart::Fixed {
                        seen: seen + 1,
                        type_oid,
                    }
                }
            }
        }
    }
}

impl fmt::Debug for RowHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RowHasher")
    }
}

impl fmt::Debug for ColumnsHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ColumnsHasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(fields: &[(&str, u32, u32)]) -> Vec<u8> {
        let mut body = (fields.len() as u16).to_be_bytes().to_vec();
        for (name, table, oid) in fields {
            body.extend(name.as_bytes());
            body.push(0);
            body.extend(table.to_be_bytes());
            body.extend([0, 1]);
            body.extend(oid.to_be_bytes());
            body.extend([0, 4, 0, 0, 0, 0, 0, 0]);
        }
        body
    }

    fn columns(fields: &[(&str, u32, u32)]) -> u64 {
        ColumnsHasher::new()
            .feed(0, &description(fields), true)
            .unwrap()
    }

    #[test]
    fn columns_differ_by_name_type_and_number_but_not_by_table_or_user_type_oid() {
        let base = columns(&[("a", 20_000, 23), ("b", 20_000, 25)]);
        assert_eq!(base, columns(&[("a", 30_000, 23), ("b", 0, 25)]));
        assert_ne!(base, columns(&[("x", 20_000, 23), ("b", 20_000, 25)]));
        assert_ne!(base, columns(&[("a", 20_000, 20), ("b", 20_000, 25)]));
        assert_ne!(base, columns(&[("a", 20_000, 23)]));
        assert_eq!(columns(&[("e", 1, 16_500)]), columns(&[("e", 1, 17_900)]));
    }

    #[test]
    fn a_description_in_parts_has_the_same_digest() {
        let body = description(&[("alpha", 20_000, 23), ("beta", 20_000, 1043)]);
        let whole = ColumnsHasher::new().feed(0, &body, true);
        for cut in 1..body.len() {
            let mut hasher = ColumnsHasher::new();
            assert_eq!(hasher.feed(0, &body[..cut], false), None);
            assert_eq!(hasher.feed(cut, &body[cut..], true), whole);
        }
    }

    #[test]
    fn the_ordered_digest_sees_the_order_and_the_unordered_one_does_not() {
        let rows = [xxh3_128(b"1"), xxh3_128(b"2"), xxh3_128(b"3")];
        let (mut up, mut down) = (RowsDigest::default(), RowsDigest::default());
        rows.iter().for_each(|row| up.add(*row));
        rows.iter().rev().for_each(|row| down.add(*row));
        assert_ne!(up.ordered, down.ordered);
        assert_eq!(up.unordered, down.unordered);
    }
}
