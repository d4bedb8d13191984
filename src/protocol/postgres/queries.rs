//! The queries of a unit, in the order in which a server answers them: which text ran, and how many endings it has.
//!
//! Reads the unit's own messages, as they were sent. Says nothing rather than something wrong: where a portal or a statement is
//! not known, or too many of them were opened in one unit, the unit is not broken down.

use smallvec::SmallVec;

use super::framer::MessageFramer;
use super::lexer::{Lexer, Token};
use super::startup::split_cstr;
use super::statements::Snapshot;

/// Statements and portals that one unit may open by itself and still be broken down; an ordinary one has one.
const OPENED_MAX: usize = 64;

/// One query of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'a> {
    /// Its text.
    pub sql: &'a [u8],
    /// Where in the unit the message begins that runs it.
    pub offset: usize,
    /// How many statements end in it if none fails: one for an Execute, any number for a simple query.
    pub statements: usize,
}

/// A name that the unit gave, and the text behind it.
type Opened<'a> = SmallVec<[(&'a [u8], &'a [u8]); 4]>;

/// The queries of a unit (whole messages), one after the other; `None` if they cannot be told. `names` are the client's statements
/// of when the unit began.
pub fn queries<'a>(unit: &'a [u8], names: &'a Snapshot) -> Option<SmallVec<[Query<'a>; 4]>> {
    let (mut statements, mut portals) = (Opened::new(), Opened::new());
    let mut found = SmallVec::new();
    let mut framer = MessageFramer::client();
    let mut at = 0;
    while at < unit.len() {
        let advance = framer.advance(&unit[at..]).ok().filter(|a| a.done)?;
        let (offset, body) = (at, &unit[at + advance.body_at..at + advance.consumed]);
        at += advance.consumed;
        let mut run = |sql, statements| {
            found.push(Query {
                sql,
                offset,
                statements,
            });
        };
        match framer.tag()? {
            b'Q' => {
                let (sql, _) = split_cstr(body)?;
                run(sql, count(sql));
            }
            b'P' => {
                let (name, rest) = split_cstr(body)?;
                let (sql, _) = split_cstr(rest)?;
                open(&mut statements, name, sql)?;
            }
            b'B' => {
                let (portal, rest) = split_cstr(body)?;
                let (name, _) = split_cstr(rest)?;
                let own = statements.iter().find(|(known, _)| *known == name);
                let sql = match own {
                    Some((_, sql)) => sql,
                    None => names.get(name)?.sql(),
                };
                open(&mut portals, portal, sql)?;
            }
            b'E' => {
                let (portal, _) = split_cstr(body)?;
                let (_, sql) = portals.iter().find(|(known, _)| *known == portal)?;
                run(sql, 1);
            }
            b'F' => run(b"(function call)", 1),
            _ => {}
        }
    }
    Some(found)
}

fn open<'a>(opened: &mut Opened<'a>, name: &'a [u8], sql: &'a [u8]) -> Option<()> {
    if let Some(known) = opened.iter_mut().find(|(known, _)| *known == name) {
        known.1 = sql;
        return Some(());
    }
    (opened.len() < OPENED_MAX).then(|| opened.push((name, sql)))
}

/// Statements of a simple query; an empty one has an ending too.
fn count(sql: &[u8]) -> usize {
    let (mut whole, mut begun) = (0, false);
    for token in Lexer::new(sql) {
        match token {
            Token::Op(b';') => whole += usize::from(std::mem::take(&mut begun)),
            _ => begun = true,
        }
    }
    (whole + usize::from(begun)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.extend((body.len() as u32 + 4).to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    fn texts(unit: &[u8]) -> Option<Vec<(String, usize)>> {
        let names = Snapshot::default();
        let found = queries(unit, &names)?;
        let text = |query: &Query<'_>| {
            let sql = String::from_utf8_lossy(query.sql).into_owned();
            (sql, query.statements)
        };
        Some(found.iter().map(text).collect())
    }

    #[test]
    fn simple_queries_count_their_statements() {
        for (sql, statements) in [
            ("select 1", 1),
            ("", 1),
            (" ; ; ", 1),
            ("select 1; select ';'; -- ;\n select 3;", 3),
            ("do $$ begin; end $$; select 2", 2),
        ] {
            let unit = message(b'Q', format!("{sql}\0").as_bytes());
            assert_eq!(texts(&unit), Some(vec![(sql.to_owned(), statements)]));
        }
    }

    #[test]
    fn an_execute_runs_what_its_portal_was_bound_to() {
        let unit = [
            message(b'P', b"a\0select 1\0\0\0"),
            message(b'P', b"\0select 2\0\0\0"),
            message(b'B', b"p\0a\0\0\0\0\0\0\0"),
            message(b'B', b"\0\0\0\0\0\0\0\0"),
            message(b'E', b"p\0\0\0\0\0"),
            message(b'E', b"\0\0\0\0\0"),
            message(b'S', b""),
        ];
        let wanted = vec![("select 1".to_owned(), 1), ("select 2".to_owned(), 1)];
        assert_eq!(texts(&unit.concat()), Some(wanted));
        let found = queries(&unit[..5].concat(), &Snapshot::default()).map(|found| found[0].offset);
        assert_eq!(found, Some(unit[..4].concat().len()));
    }

    #[test]
    fn what_cannot_be_told_is_not_guessed() {
        let unknown = message(b'B', b"\0nobody\0\0\0\0\0\0\0");
        assert_eq!(texts(&unknown), None);
        assert_eq!(texts(&message(b'E', b"p\0\0\0\0\0")), None);
        assert_eq!(texts(b"Q\0\0\0\x08sel"), None);
        let many: Vec<u8> = (0..=OPENED_MAX)
            .flat_map(|at| message(b'P', format!("s{at}\0select\0\0\0").as_bytes()))
            .collect();
        assert_eq!(texts(&many), None);
    }
}
