//! Who meets what a client leaves in the session of a mirror's connection, by `mirror_pool_mode`.

use super::support::pg_pair::{Pair, PairOptions, ok};

/// `mirror_pool_mode = "session"`.
#[test]
fn in_session_mode_temporary_tables_and_locks_live_as_long_as_the_client() {
    let pair = Pair::with(
        PairOptions {
            general: "mirror_pool_mode = \"session\"".into(),
            mirror_database: "pool_size = 2".into(),
            ..PairOptions::default()
        }
        .logged(),
    );
    pair.both("CREATE TABLE t(id int)");
    for round in 0..3 {
        let mut clients = [pair.client(), pair.client()];
        for client in &mut clients {
            ok(client, "CREATE TEMP TABLE mine(id int)");
            ok(client, &format!("INSERT INTO mine VALUES ({round})"));
        }
        for client in &mut clients {
            ok(client, "INSERT INTO t SELECT id FROM mine");
        }
        pair.clean();
        let api = pair.api("staging_db");
        assert_eq!(api["connections"]["open"], 2, "{api:#}");
    }
    pair.mirror_shows("SELECT count(*) FROM t", "6");
}

/// Without session mode another client never meets what one client left behind.
#[test]
fn in_unit_mode_no_client_meets_the_temporary_table_of_another() {
    let pair = Pair::with(PairOptions {
        mirror_database: "pool_size = 1".into(),
        ..PairOptions::default()
    });
    for _ in 0..3 {
        let mut client = pair.client();
        ok(&mut client, "CREATE TEMP TABLE mine(id int)");
        ok(&mut client, "INSERT INTO mine VALUES (1)");
        ok(&mut client, "SELECT set_config('work_mem', '7MB', false)");
        ok(&mut client, "SELECT pg_advisory_lock(7)");
        pair.clean();
        let mut other = pair.client();
        assert_eq!(
            ok(
                &mut other,
                "SELECT count(*) FROM pg_class WHERE relname = 'mine' AND pg_table_is_visible(oid)"
            ),
            ["0"]
        );
        ok(&mut other, "SHOW work_mem");
        pair.clean();
        assert_eq!(
            pair.api("staging_db")["divergences_total"],
            0,
            "{:#}",
            pair.api("staging_db")
        );
        ok(&mut client, "SELECT pg_advisory_unlock_all()");
        pair.settled();
    }
}
