//! The memory of all rings of one core.

use std::cell::Cell;
use std::rc::Rc;

/// What all rings of one core may hold together. A unit that several mirrors wait for counts once,
/// from the first ring that takes it to the last that lets it go.
#[derive(Clone, Debug)]
pub struct MemoryBudget(Rc<BudgetCells>);

#[derive(Debug)]
struct BudgetCells {
    limit: Cell<usize>,
    used: Cell<usize>,
}

impl MemoryBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        MemoryBudget(Rc::new(BudgetCells {
            limit: Cell::new(limit),
            used: Cell::new(0),
        }))
    }

    /// Takes `bytes` if they are left; sessions charge what they hold of unsealed units here too.
    pub fn try_charge(&self, bytes: usize) -> bool {
        let used = self.0.used.get().saturating_add(bytes);
        let fits = used <= self.0.limit.get();
        if fits {
            self.0.used.set(used);
        }
        fits
    }

    /// Gives back what was charged.
    pub fn release(&self, bytes: usize) {
        debug_assert!(bytes <= self.used(), "released more than was charged");
        self.0.used.set(self.0.used.get().saturating_sub(bytes));
    }

    /// Bytes charged.
    pub fn used(&self) -> usize {
        self.0.used.get()
    }

    /// The bound.
    pub fn limit(&self) -> usize {
        self.0.limit.get()
    }

    /// Changes the bound; what is charged beyond it stays until it is released.
    pub fn set_limit(&self, limit: usize) {
        self.0.limit.set(limit);
    }
}
