//! The control: a mirror of the primary's own kind that tells volatile results from wrong ones.
//!
//! A mismatch of another mirror on a unit that the control has taken is a [`Suspect`] until the control has answered: where the control
//! differs from the primary in the same statement it is noise, else it is a difference. A unit that the control loses
//! after all says nothing, and the mismatch counts.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use crate::metrics::{DivergenceKind, MirrorMetrics};
use crate::proxy::Context;
use crate::proxy::context::{DivergenceReport, Event};

/// What the control makes of one unit.
#[derive(Debug, Default)]
pub struct Control(RefCell<State>);

#[derive(Debug, Default)]
enum State {
    /// No control has the unit.
    #[default]
    None,
    /// It has not answered; these wait for it.
    Expected(Vec<Suspect>),
    /// It differs from the primary in these statements.
    Known(Vec<usize>),
}

/// A mismatch that may be noise. Dropped unjudged, it counts as what it looks like.
pub(super) struct Suspect {
    pub context: Rc<Context>,
    pub metrics: Arc<MirrorMetrics>,
    /// Which statement of the unit.
    pub statement: usize,
    /// Where the query stands among the fingerprints; `None`: it is not known.
    pub query: Option<Option<usize>>,
    /// Taken when it is judged.
    pub report: Option<Box<DivergenceReport>>,
}

impl Control {
    /// The control has taken the unit.
    pub fn expect(&self) {
        *self.0.borrow_mut() = State::Expected(Vec::new());
    }

    /// The control has answered and differs in these statements.
    pub fn answered(&self, differing: Vec<usize>) {
        let before = self.0.replace(State::Known(differing.clone()));
        if let State::Expected(suspects) = before {
            for suspect in suspects {
                suspect.judge(&differing);
            }
        }
    }

    /// Judges a mismatch now, or when the control has answered.
    pub(super) fn judge(&self, suspect: Suspect) {
        match &mut *self.0.borrow_mut() {
            State::None => drop(suspect),
            State::Expected(suspects) => suspects.push(suspect),
            State::Known(differing) => suspect.judge(differing),
        }
    }
}

impl Suspect {
    fn judge(mut self, control: &[usize]) {
        if control.contains(&self.statement) {
            self.report = None;
            self.metrics.diverge(DivergenceKind::Noise);
        }
    }
}

impl Drop for Suspect {
    fn drop(&mut self) {
        let Some(report) = self.report.take() else {
            return;
        };
        self.metrics.diverge(report.kind);
        if let Some(slot) = self.query {
            self.metrics.queries.at(slot).divergences.add(1);
        }
        self.context.tell(Event::Divergence(report));
    }
}

impl fmt::Debug for Suspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suspect")
            .field("statement", &self.statement)
            .finish_non_exhaustive()
    }
}
