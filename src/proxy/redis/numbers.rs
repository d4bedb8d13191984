//! The numbers of databases.
//!
//! A client begins in the database that the configuration names for its backend, which may be another one at a mirror or
//! at the secondary. Everything in here calls that one 0, on every backend; what a client selects by its number keeps the
//! number, but for a 0 that is not the configured one.

/// Database 0 of a backend whose configuration names another one.
pub const REAL_ZERO: u32 = u32::MAX;

/// What a database of a backend is called in here; clients of that backend begin in `home`.
pub fn called(database: u32, home: u32) -> u32 {
    match database {
        database if database == home => 0,
        0 => REAL_ZERO,
        database => database,
    }
}

/// The database of a backend that is called `name` in here.
pub fn database(name: u32, home: u32) -> u32 {
    match name {
        0 => home,
        REAL_ZERO => 0,
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_database_has_one_name() {
        for home in [0, 3] {
            for number in 0..20 {
                assert_eq!(database(called(number, home), home), number);
            }
            assert_eq!(called(home, home), 0);
        }
        assert_eq!(called(0, 3), REAL_ZERO);
        assert_eq!(database(called(0, 3), 5), 0);
        assert_eq!(database(called(3, 3), 5), 5);
    }
}
