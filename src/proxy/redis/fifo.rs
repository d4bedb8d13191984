//! A queue whose entries are filled in where they lie.
//!
//! A value that is built on the stack and then moved is written word by word and read back in larger pieces. The processor cannot
//! serve such a read from what it has not yet written to the cache: it waits for every write before it, those to units that have
//! left the cache too. With deep pipelines that was a tenth of a mirrored command.

/// First in, first out. A place that was left holds the default value.
#[derive(Debug)]
pub(super) struct Fifo<T> {
    /// As many as a power of two, or none.
    places: Vec<T>,
    head: usize,
    len: usize,
}

/// Places of a queue that is used at all.
const PLACES_MIN: usize = 16;

impl<T> Default for Fifo<T> {
    fn default() -> Fifo<T> {
        Fifo {
            places: Vec::new(),
            head: 0,
            len: 0,
        }
    }
}

impl<T: Default> Fifo<T> {
    /// Entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a default value that `fill` has made an entry of. If that panics nothing is added.
    pub fn push(&mut self, fill: impl FnOnce(&mut T)) {
        if self.len == self.places.len() {
            self.grow();
        }
        let place = self.place(self.len);
        let mut filling = Filling(&mut self.places[place], false);
        fill(filling.0);
        filling.1 = true;
        drop(filling);
        self.len += 1;
    }

    /// The oldest entry.
    pub fn front(&self) -> Option<&T> {
        self.get(0)
    }

    /// The oldest entry, to be changed.
    pub fn front_mut(&mut self) -> Option<&mut T> {
        match self.len {
            0 => None,
            _ => Some(&mut self.places[self.head]),
        }
    }

    /// The entry with so many older ones before it.
    pub fn get(&self, at: usize) -> Option<&T> {
        (at < self.len).then(|| &self.places[self.place(at)])
    }

    /// Takes the oldest entry.
    pub fn pop(&mut self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let entry = std::mem::take(&mut self.places[self.head]);
        self.len -= 1;
        self.head = match self.len {
            // Begins anew at the front of its memory, which is in the cache, instead of walking through all of it.
            0 => 0,
            _ => (self.head + 1) & (self.places.len() - 1),
        };
        Some(entry)
    }

    /// The entries, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.len).map(|at| &self.places[self.place(at)])
    }

    fn place(&self, at: usize) -> usize {
        (self.head + at) & (self.places.len() - 1)
    }

    #[cold]
    fn grow(&mut self) {
        let places = (2 * self.places.len()).max(PLACES_MIN);
        self.places.rotate_left(self.head);
        self.head = 0;
        self.places.resize_with(places, T::default);
    }
}

/// A place, and whether it was filled. Otherwise it holds the default value again.
struct Filling<'a, T: Default>(&'a mut T, bool);

impl<T: Default> Drop for Filling<'_, T> {
    fn drop(&mut self) {
        if !self.1 {
            *self.0 = T::default();
        }
    }
}

impl<T: Default> Iterator for Fifo<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.pop()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn an_entry_that_was_begun_only_is_none() {
        let mut fifo = Fifo::<u64>::default();
        fifo.push(|entry| *entry = 1);
        let begun = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            fifo.push(|entry| {
                *entry = 2;
                panic!("on purpose");
            });
        }));
        assert!(begun.is_err());
        assert_eq!((fifo.len(), fifo.front()), (1, Some(&1)));
        fifo.push(|entry| assert_eq!(*entry, 0));
        assert!(fifo.eq([1, 0]));
    }

    #[test]
    fn does_what_a_deque_does() {
        let mut rng = fastrand::Rng::with_seed(11);
        for _ in 0..200 {
            let (mut ours, mut theirs) = (Fifo::<u64>::default(), VecDeque::new());
            let pushes = rng.f64();
            for n in 1..300 {
                if rng.f64() < pushes {
                    ours.push(|entry| {
                        assert_eq!(*entry, 0, "a place that was left keeps nothing");
                        *entry = n;
                    });
                    theirs.push_back(n);
                } else {
                    assert_eq!(ours.pop(), theirs.pop_front());
                }
                assert_eq!(
                    (ours.len(), ours.is_empty()),
                    (theirs.len(), theirs.is_empty())
                );
                assert_eq!(ours.front(), theirs.front());
                let at = rng.usize(0..20);
                assert_eq!(ours.get(at), theirs.get(at));
                assert!(ours.iter().eq(&theirs));
            }
            assert!(ours.eq(theirs));
        }
    }
}
