//! Which commands or statements are slow on the mirror, and which of them are slower than at the primary.

use serde_json::Value;

use super::html::{escape, number, put};
use crate::control::table::{count, nanos};

/// Lines per table.
const ROWS_MAX: usize = 10;
/// Replies that a mean must rest on before it is called a regression.
const REPLIES_MIN: u64 = 50;
/// How many times the primary's mean a mean must be.
const RATIO_MIN: f64 = 1.1;

struct Row<'a> {
    name: &'a str,
    replies: u64,
    errors: u64,
    diverged: u64,
    mirror: [u64; 2],
    primary: Option<[u64; 2]>,
}

impl<'a> Row<'a> {
    fn of((name, command): (&'a String, &Value)) -> Row<'a> {
        let times = |side: &Value| [number(&side["mean_ns"]), number(&side["p99_ns"])];
        let kinds = command["divergences"].as_object();
        Row {
            name,
            replies: number(&command["ok"]) + number(&command["errors"]),
            errors: number(&command["errors"]),
            diverged: kinds.map_or(0, |kinds| kinds.values().map(number).sum()),
            mirror: times(command),
            primary: command["primary"]
                .is_object()
                .then(|| times(&command["primary"])),
        }
    }

    /// How many times the primary's mean the mirror's is.
    fn ratio(&self) -> Option<f64> {
        let [primary, _] = self.primary?;
        (primary > 0).then(|| self.mirror[0] as f64 / primary as f64)
    }
}

/// The two tables; nothing where nothing is known by command.
pub(super) fn commands_part(html: &mut String, mirror: &Value) {
    let Some(commands) = mirror["commands"].as_object() else {
        return;
    };
    let mut rows: Vec<Row<'_>> = commands.iter().map(Row::of).collect();
    rows.retain(|row| row.replies > 0);
    if rows.is_empty() {
        return;
    }
    rows.sort_by_key(|row| std::cmp::Reverse(row.mirror[1]));
    html.push_str("<h3>Slowest commands and statements</h3>");
    table(html, rows.iter().take(ROWS_MAX));
    let is_slower = |row: &&Row<'_>| {
        row.replies >= REPLIES_MIN && row.ratio().is_some_and(|ratio| ratio >= RATIO_MIN)
    };
    let mut slower: Vec<&Row<'_>> = rows.iter().filter(is_slower).collect();
    slower.sort_by(|a, b| {
        b.ratio()
            .unwrap_or(0.0)
            .total_cmp(&a.ratio().unwrap_or(0.0))
    });
    html.push_str("<h3>Most regressed commands and statements</h3>");
    if slower.is_empty() {
        put(
            html,
            format_args!(
                "<p class=\"quiet\">None with at least {REPLIES_MIN} replies takes {RATIO_MIN} times as long as \
                 at the primary.</p>\n"
            ),
        );
        return;
    }
    table(html, slower.into_iter().take(ROWS_MAX));
}

fn table<'a>(html: &mut String, rows: impl Iterator<Item = &'a Row<'a>>) {
    html.push_str(
        "<div class=\"wide\"><table><thead><tr><th>command<th class=n>replies<th class=n>mean\
         <th class=n>primary<th class=n>p99<th class=n>primary<th class=n>ratio<th class=n>errors<th class=n>diverged\
         </tr></thead><tbody>",
    );
    for row in rows {
        let [mean, p99] = row.primary.unwrap_or_default();
        let ratio = row
            .ratio()
            .map_or("-".to_owned(), |ratio| format!("{ratio:.2} ×"));
        put(
            html,
            format_args!(
                "<tr><td class=\"query\">{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{ratio}\
                 <td class=n>{}<td class=n>{}</tr>",
                escape(row.name),
                count(row.replies),
                nanos(row.mirror[0]),
                nanos(mean),
                nanos(row.mirror[1]),
                nanos(p99),
                count(row.errors),
                count(row.diverged),
            ),
        );
    }
    html.push_str("</tbody></table></div>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_slower_than_at_the_primary_stands_first_and_rests_on_enough() {
        let command = |mean: u64, primary: u64, replies: u64| {
            json!({"ok": replies, "errors": 0, "mean_ns": mean, "p99_ns": 2 * mean, "divergences": {},
                "primary": {"mean_ns": primary, "p99_ns": 2 * primary}})
        };
        let mirror = json!({"commands": {
            "GET": command(110_000, 100_000, 1_000),
            "SORT": command(900_000, 300_000, 1_000),
            "KEYS": command(9_000_000, 100_000, 3),
            "<i>": command(1, 1, 1),
        }});
        let mut html = String::new();
        commands_part(&mut html, &mirror);
        let (slow, regressed) = html.split_once("Most regressed").unwrap();
        let at = |part: &str, name: &str| part.find(name).unwrap_or(usize::MAX);
        assert!(at(slow, "KEYS") < at(slow, "SORT") && at(slow, "SORT") < at(slow, "GET"));
        assert!(at(regressed, "SORT") < at(regressed, "GET") && regressed.contains("3.00 ×"));
        assert!(!regressed.contains("KEYS"), "three replies are no evidence");
        assert!(html.contains("&lt;i&gt;") && !html.contains("<i>"));
        let mut none = String::new();
        commands_part(&mut none, &json!({"commands": {}}));
        assert_eq!(none, "");
    }
}
