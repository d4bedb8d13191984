//! What operators changed, and who: the latest, for people who come to it later. The log has them all.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::commands::{CommandError, Operation, Who};
use super::divergences::truncate;
use crate::limits::{CHANGE_FIELD_BYTES_MAX, CHANGES_KEPT_MAX};

/// One change, or the refusal of one.
#[derive(Clone, Debug)]
struct Change {
    at_unix_ms: u64,
    who: Who,
    operation: &'static str,
    subject: String,
    is_done: bool,
    answer: String,
}

/// The latest changes, oldest first.
#[derive(Debug, Default)]
pub struct Changes {
    kept: Mutex<VecDeque<Change>>,
}

impl Changes {
    /// Keeps one; the oldest goes if there are too many.
    pub fn note(
        &self,
        at_unix_ms: u64,
        who: &Who,
        operation: &Operation,
        result: &Result<Value, CommandError>,
    ) {
        let mut change = Change {
            at_unix_ms,
            who: who.clone(),
            operation: operation.name(),
            subject: operation.subject().to_owned(),
            is_done: result.is_ok(),
            answer: match result {
                Ok(answer) => answer.to_string(),
                Err(error) => error.to_string(),
            },
        };
        // Names come from outside and may be of any length.
        for text in [
            &mut change.who.name,
            &mut change.subject,
            &mut change.answer,
        ] {
            truncate(text, CHANGE_FIELD_BYTES_MAX);
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == CHANGES_KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(change);
    }

    /// `/api/changes`: newest first.
    pub fn shown(&self) -> Value {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let list: Vec<Value> = kept.iter().rev().map(shown).collect();
        json!({"changes": list})
    }
}

fn shown(change: &Change) -> Value {
    json!({
        "at_unix_ms": change.at_unix_ms,
        "via": change.who.via,
        "who": change.who.name,
        "operation": change.operation,
        "subject": change.subject,
        "outcome": if change.is_done { "done" } else { "refused" },
        "answer": change.answer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_stay_and_none_is_long() {
        let changes = Changes::default();
        let who = Who::new("http", "10.0.0.9:5000");
        for at in 0..=CHANGES_KEPT_MAX as u64 {
            let pause = Operation::Pause {
                mirror: "m".repeat(100_000),
            };
            changes.note(at, &who, &pause, &Err(CommandError::Failed("no".into())));
        }
        let shown = changes.shown();
        let list = shown["changes"].as_array().unwrap();
        assert_eq!(list.len(), CHANGES_KEPT_MAX);
        assert_eq!(list[0]["at_unix_ms"], CHANGES_KEPT_MAX);
        assert_eq!(list[0]["outcome"], "refused");
        let longest = CHANGES_KEPT_MAX * 2 * CHANGE_FIELD_BYTES_MAX;
        assert!(shown.to_string().len() < longest);
    }
}
