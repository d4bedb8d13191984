use super::*;
use crate::protocol::resp::command::lookup_request;

fn check(line: &str, primary: &str, mirror: &str) -> Comparison {
    let line = format!("{line}\r\n");
    let request = Request::parse(line.as_bytes());
    compare(
        lookup_request(&request),
        &request,
        primary.as_bytes(),
        mirror.as_bytes(),
    )
}

#[test]
fn sets_and_maps_have_no_order() {
    let (ab, ba) = (
        "*2\r\n$1\r\na\r\n$1\r\nb\r\n",
        "*2\r\n$1\r\nb\r\n$1\r\na\r\n",
    );
    assert_eq!(check("SMEMBERS k", ab, ba), Equal);
    assert_eq!(
        check("SMEMBERS k", ab, "~2\r\n$1\r\nb\r\n$1\r\na\r\n"),
        Equal
    );
    assert_eq!(check("LRANGE k 0 -1", ab, ba), Different(DataMismatch));
    assert_eq!(check("HGETALL k", ab, ba), Different(DataMismatch));
    let map = "%2\r\n$1\r\nc\r\n$1\r\nd\r\n$1\r\na\r\n$1\r\nb\r\n";
    let pairs = "*4\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\nd\r\n";
    assert_eq!(check("HGETALL k", pairs, map), Equal);
    assert_eq!(
        check("SMEMBERS k", ab, "*2\r\n$1\r\na\r\n$1\r\na\r\n"),
        Different(DataMismatch)
    );
}

#[test]
fn emptiness_tells_a_gap_from_a_mismatch() {
    for (line, data, nothing) in [
        ("GET k", "$1\r\nx\r\n", "$-1\r\n"),
        ("GET k", "$0\r\n\r\n", "_\r\n"),
        ("LRANGE k 0 -1", "*1\r\n$1\r\na\r\n", "*0\r\n"),
        ("EXISTS k", ":1\r\n", ":0\r\n"),
        ("LLEN k", ":9\r\n", ":0\r\n"),
        ("TYPE k", "+list\r\n", "+none\r\n"),
        ("TTL k", ":100\r\n", ":-2\r\n"),
        ("GETRANGE k 0 1", "$1\r\na\r\n", "$0\r\n\r\n"),
        (
            "MGET a b",
            "*2\r\n$1\r\na\r\n$-1\r\n",
            "*2\r\n$-1\r\n$-1\r\n",
        ),
        (
            "MGET a b",
            "*2\r\n$1\r\na\r\n$1\r\nb\r\n",
            "*2\r\n$-1\r\n$1\r\nb\r\n",
        ),
        (
            "GEOPOS k a b",
            "*2\r\n*2\r\n$1\r\n1\r\n$1\r\n2\r\n*-1\r\n",
            "*2\r\n*-1\r\n*-1\r\n",
        ),
    ] {
        assert_eq!(
            check(line, data, nothing),
            Different(MigrationGap),
            "{line}"
        );
        assert_eq!(check(line, nothing, data), Different(ExtraData), "{line}");
    }
    assert_eq!(check("GET k", "$-1\r\n", "_\r\n"), Equal);
    assert_eq!(
        check("GET k", "$1\r\nx\r\n", "$1\r\ny\r\n"),
        Different(DataMismatch)
    );
    assert_eq!(check("INCR k", ":1\r\n", ":0\r\n"), Different(DataMismatch));
    let mixed = ("*2\r\n$1\r\na\r\n$-1\r\n", "*2\r\n$-1\r\n$1\r\na\r\n");
    assert_eq!(check("MGET a b", mixed.0, mixed.1), Different(DataMismatch));
}

#[test]
fn a_list_of_nils_is_as_long_on_both_sides() {
    let nils = |count: usize| format!("*{count}\r\n{}", "$-1\r\n".repeat(count));
    assert_eq!(check("MGET a b", &nils(2), "*2\r\n_\r\n_\r\n"), Equal);
    for (ours, theirs) in [(2, 1), (1, 2), (1, 0), (0, 1)] {
        let found = check("MGET a b", &nils(ours), &nils(theirs));
        assert_eq!(found, Different(DataMismatch), "{ours} {theirs}");
    }
    assert_eq!(check("XREAD STREAMS k 0", "*-1\r\n", "*0\r\n"), Equal);
}

#[test]
fn an_error_of_the_mirror_is_never_a_gap() {
    assert_eq!(
        check("GET k", "$-1\r\n", "-ERR x\r\n"),
        Different(SecondaryError)
    );
    assert_eq!(
        check("GET k", "$1\r\nx\r\n", "!5\r\nERR x\r\n"),
        Different(SecondaryError)
    );
    assert_eq!(
        check("GET k", "-WRONGTYPE a\r\n", "-WRONGTYPE b\r\n"),
        Equal
    );
    assert_eq!(
        check("GET k", "-WRONGTYPE a\r\n", "-ERR b\r\n"),
        Different(DataMismatch)
    );
    assert_eq!(
        check("GET k", "-WRONGTYPE a\r\n", "$1\r\nx\r\n"),
        Different(TypeMismatch)
    );
}

#[test]
fn types_differ_even_if_the_text_is_the_same() {
    assert_eq!(
        check("GET k", "$2\r\nOK\r\n", "+OK\r\n"),
        Different(TypeMismatch)
    );
    assert_eq!(
        check("GET k", "$1\r\n1\r\n", ":1\r\n"),
        Different(TypeMismatch)
    );
    assert_eq!(check("SISMEMBER k a", ":1\r\n", "#t\r\n"), Equal);
}

#[test]
fn floats_count_by_value_only_where_they_are_floats() {
    assert_eq!(
        check("ZSCORE k a", "$3\r\n1.5\r\n", "$4\r\n1.50\r\n"),
        Equal
    );
    assert_eq!(check("ZSCORE k a", "$3\r\n1.5\r\n", ",1.5\r\n"), Equal);
    assert_eq!(
        check("ZSCORE k a", "$3\r\n1.5\r\n", "$3\r\n1.6\r\n"),
        Different(DataMismatch)
    );
    assert_eq!(
        check("GET k", "$1\r\n1\r\n", "$3\r\n1.0\r\n"),
        Different(DataMismatch)
    );
    let flat = "*4\r\n$1\r\n1\r\n$1\r\n1\r\n$1\r\nb\r\n$1\r\n2\r\n";
    let pairs = "*2\r\n*2\r\n$1\r\n1\r\n,1\r\n*2\r\n$1\r\nb\r\n,2\r\n";
    assert_eq!(check("ZRANGE k 0 -1 WITHSCORES", flat, pairs), Equal);
    let other = "*4\r\n$3\r\n1.0\r\n$1\r\n1\r\n$1\r\nb\r\n$1\r\n2\r\n";
    assert_eq!(
        check("ZRANGE k 0 -1 WITHSCORES", flat, other),
        Different(DataMismatch)
    );
    assert_eq!(check("ZRANGE k 0 -1", flat, pairs), Different(DataMismatch));
}

#[test]
fn a_ttl_may_differ_by_the_tolerance() {
    assert_eq!(check("TTL k", ":100\r\n", ":99\r\n"), Equal);
    assert_eq!(
        check("TTL k", ":100\r\n", ":90\r\n"),
        Different(DataMismatch)
    );
    assert_eq!(check("TTL k", ":0\r\n", ":-1\r\n"), Different(DataMismatch));
    assert_eq!(check("PTTL k", ":100000\r\n", ":99500\r\n"), Equal);
    assert_eq!(
        check("PTTL k", ":100000\r\n", ":9000\r\n"),
        Different(DataMismatch)
    );
}

#[test]
fn what_chance_or_the_server_decides_is_not_compared() {
    for line in [
        "SCAN 0",
        "RANDOMKEY",
        "SRANDMEMBER k",
        "TIME",
        "DUMP k",
        "OBJECT FREQ k",
        "INFO",
        "SPOP k",
    ] {
        assert_eq!(
            check(line, "$1\r\na\r\n", "$1\r\nb\r\n"),
            NotCompared,
            "{line}"
        );
    }
    assert_eq!(
        check("XADD k MAXLEN ~ 5 * a b", "$3\r\n1-1\r\n", "$3\r\n2-1\r\n"),
        NotCompared
    );
    assert_eq!(
        check(
            "XADD k MAXLEN ~ 5 1-1 a *",
            "$3\r\n1-1\r\n",
            "$3\r\n2-1\r\n"
        ),
        Different(DataMismatch)
    );
}

#[test]
fn places_have_no_order_unless_one_was_asked_for() {
    let ab = "*2\r\n*2\r\n$1\r\na\r\n$3\r\n1.0\r\n*2\r\n$1\r\nb\r\n$1\r\n2\r\n";
    let ba = "*2\r\n*2\r\n$1\r\nb\r\n$1\r\n2\r\n*2\r\n$1\r\na\r\n$1\r\n1\r\n";
    let search = "GEOSEARCH k FROMMEMBER a BYRADIUS 1 km WITHDIST";
    assert_eq!(check(search, ab, ba), Equal);
    assert_eq!(
        check(&format!("{search} ASC"), ab, ba),
        Different(DataMismatch)
    );
}

#[test]
fn a_transaction_is_compared_member_by_member() {
    let unit = b"MULTI\r\nSMEMBERS k\r\nTIME\r\nGET a\r\nEXEC\r\n";
    let primary = b"*3\r\n*2\r\n+a\r\n+b\r\n*1\r\n+1\r\n$1\r\nx\r\n";
    let mirror = b"*3\r\n*2\r\n+b\r\n+a\r\n*1\r\n+2\r\n$1\r\nx\r\n";
    assert_eq!(compare_transaction(unit, primary, mirror), Equal);
    let gap = b"*3\r\n*2\r\n+b\r\n+a\r\n*1\r\n+2\r\n$-1\r\n";
    assert_eq!(
        compare_transaction(unit, primary, gap),
        Different(MigrationGap)
    );
    let error = b"-EXECABORT no\r\n";
    assert_eq!(
        compare_transaction(unit, primary, error),
        Different(SecondaryError)
    );
}

#[test]
fn deep_nesting_needs_no_stack() {
    let deep = |leaf: &str| "*1\r\n".repeat(100_000) + leaf;
    assert_eq!(
        check("EVAL x 0", &deep(":1\r\n"), &deep(":2\r\n")),
        Different(DataMismatch)
    );
    assert_eq!(check("SMEMBERS k", &deep(":1\r\n"), &deep("#t\r\n")), Equal);
}
