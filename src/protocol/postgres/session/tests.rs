use super::*;

fn client(params: &[(&str, &str)]) -> SessionState {
    let mut startup = StartupMessage::new(b"ann", b"shop");
    for (name, value) in params {
        startup.set(name.as_bytes(), value.as_bytes());
    }
    SessionState::from_startup(&startup)
}

fn run(state: &mut SessionState, sql: &str, committed: bool) {
    state.observe(sql.as_bytes(), 1);
    state.settle(1, committed);
}

fn diff(want: &SessionState, have: &SessionState) -> Vec<String> {
    want.diff(have)
        .into_iter()
        .map(|sql| String::from_utf8(sql).unwrap())
        .collect()
}

#[test]
fn the_scope_is_that_of_search_path_and_role() {
    let after = |sql: &[u8]| {
        let mut state = SessionState::default();
        state.observe(sql, 1);
        state.settle(1, true);
        state.scope()
    };
    assert_eq!(
        after(b"SET work_mem = '1MB'"),
        SessionState::default().scope()
    );
    let scopes = [
        &b"SET search_path = a"[..],
        b"SET search_path = b",
        b"SET ROLE a",
    ]
    .map(after);
    assert!(scopes[0] != scopes[1] && scopes[1] != scopes[2]);
    assert!(!scopes.contains(&SessionState::default().scope()));
}

#[test]
fn startup_parameters_and_options_are_brought_over_quoted() {
    let want = client(&[
        ("application_name", "o'hara\\"),
        (
            "options",
            "-c search_path=a\\ b,c --work-mem=4MB -cgeqo=off",
        ),
    ]);
    assert_eq!(
        diff(&want, &SessionState::default()),
        [
            "SELECT pg_catalog.set_config('application_name',  E'o''hara\\\\', false)",
            "SELECT pg_catalog.set_config('geqo', 'off', false)",
            "SELECT pg_catalog.set_config('search_path', 'a b,c', false)",
            "SELECT pg_catalog.set_config('work_mem', '4MB', false)",
        ]
    );
    let mut have = SessionState::default();
    have.adopt(&want);
    assert!(diff(&want, &have).is_empty());
}

#[test]
fn a_set_is_repeated_word_for_word_and_undone_by_reset() {
    let mut want = SessionState::default();
    run(
        &mut want,
        "SET statement_timeout TO '5s'; set my.Var = 'x'",
        true,
    );
    let mut have = SessionState::default();
    assert_eq!(
        diff(&want, &have),
        ["set my.Var = 'x'", "SET statement_timeout TO '5s'"]
    );
    have.adopt(&want);
    assert_eq!(
        diff(&SessionState::default(), &have),
        ["RESET \"my\".\"var\"", "RESET \"statement_timeout\""]
    );
    run(
        &mut want,
        "reset statement_timeout; set my.var to default",
        true,
    );
    assert!(diff(&want, &SessionState::default()).is_empty());
}

#[test]
fn only_what_a_transaction_commits_counts() {
    let mut state = SessionState::default();
    run(&mut state, "begin; set work_mem = '1MB'; rollback", false);
    run(&mut state, "set local work_mem = '2MB'", true);
    run(&mut state, "set transaction read only", true);
    assert!(diff(&state, &SessionState::default()).is_empty());
    run(
        &mut state,
        "begin; set geqo = on; savepoint a; set geqo = off; rollback to savepoint a; commit",
        true,
    );
    assert_eq!(diff(&state, &SessionState::default()), ["set geqo = on"]);
}

#[test]
fn roles_channels_and_prepared_statements_are_brought_over_and_taken_back() {
    let mut want = SessionState::default();
    run(&mut want, "set role bob", true);
    run(&mut want, "LISTEN \"My Chan\"; prepare p as select 1", true);
    let mut have = SessionState::default();
    assert_eq!(
        diff(&want, &have),
        [
            "LISTEN \"My Chan\"",
            "prepare p as select 1",
            "set role bob"
        ]
    );
    have.adopt(&want);
    assert_eq!(
        diff(&SessionState::default(), &have),
        ["RESET role", "UNLISTEN \"My Chan\"", "DEALLOCATE \"p\""]
    );
    run(&mut want, "discard all", true);
    assert_eq!(diff(&want, &have).len(), 3);
    run(&mut want, "set role bob", true);
    run(&mut want, "set role none", true);
    assert!(diff(&want, &SessionState::default()).is_empty());
}

#[test]
fn reported_values_win_where_both_sides_report() {
    let mut want = client(&[("timezone", "UTC")]);
    want.parameter_status(b"TimeZone", b"UTC");
    want.parameter_status(b"server_version", b"16.1");
    let mut have = SessionState::fresh([(&b"TimeZone"[..], &b"Asia/Tokyo"[..])].into_iter());
    assert_eq!(
        diff(&want, &have),
        ["SELECT pg_catalog.set_config('timezone', 'UTC', false)"]
    );
    have.adopt(&want);
    assert!(diff(&want, &have).is_empty());
    run(&mut want, "set time zone 'Europe/Oslo'", true);
    want.parameter_status(b"TimeZone", b"Europe/Oslo");
    assert_eq!(
        diff(&want, &have),
        ["SELECT pg_catalog.set_config('timezone', 'Europe/Oslo', false)"]
    );
}

#[test]
fn what_a_later_cycle_of_a_pipeline_changes_waits_for_that_cycle() {
    let (mut state, fresh) = (SessionState::default(), SessionState::default());
    state.observe(b"SELECT 1/0", 1);
    state.observe(b"SET work_mem = '1MB'", 2);
    state.observe(b"SET lock_timeout = 1", 3);
    state.settle(1, false);
    assert!(state.diff(&fresh).is_empty() && state.is_unsettled());
    state.settle(2, true);
    assert_eq!(state.diff(&fresh), [b"SET work_mem = '1MB'".to_vec()]);
    state.settle(3, false);
    assert_eq!(state.diff(&fresh).len(), 1);
    assert!(!state.is_unsettled());
}
