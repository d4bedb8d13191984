//! How another thread wakes a core.

use std::fs::File;
use std::future::poll_fn;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::task::Poll;

use io_uring::{opcode, types};

use super::core::Ring;
use super::op::{Key, Op};

/// Rings a core's doorbell from any thread; the message itself travels in a channel.
#[derive(Clone, Debug)]
pub struct Ringer(Arc<File>);

impl Ringer {
    /// Wakes the core. Never blocks: a bell that rings already is loud enough.
    pub fn ring(&self) {
        let _ = (&*self.0).write(&1u64.to_ne_bytes());
    }
}

/// The core's side of the bell.
pub struct Doorbell {
    ring: Ring,
    file: Arc<File>,
    /// Where the kernel writes the count that nobody needs.
    count: Box<[u8; 8]>,
}

impl Ring {
    /// Makes the doorbell of this core; one for each ring.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn doorbell(&self) -> io::Result<Doorbell> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made above and belongs to nobody else.
        let file = Arc::new(unsafe { File::from_raw_fd(fd) });
        let mut bell = Doorbell {
            ring: self.clone(),
            file,
            count: Box::new([0; 8]),
        };
        bell.listen();
        Ok(bell)
    }
}

impl Doorbell {
    /// The other threads' side.
    pub fn ringer(&self) -> Ringer {
        Ringer(self.file.clone())
    }

    /// Waits until somebody rang since the last call.
    pub async fn rung(&mut self) {
        poll_fn(|cx| {
            let mut state = self.ring.core.state.borrow_mut();
            if std::mem::take(&mut state.doorbell_rung) {
                return Poll::Ready(());
            }
            state.doorbell = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        self.listen();
    }

    fn listen(&mut self) {
        let fd = types::Fd(self.file.as_raw_fd());
        let read = opcode::Read::new(fd, self.count.as_mut_ptr(), 8).build();
        let key = Key {
            slot: 0,
            generation: 0,
        };
        // Not counted against a slot: the buffer lives as long as the core's runtime, which owns the doorbell.
        let mut state = self.ring.core.state.borrow_mut();
        state
            .pending
            .push(read.user_data(key.user_data(Op::Doorbell)));
    }
}
