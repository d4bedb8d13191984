//! The data ring: one io_uring per core, with sockets, listeners and timers as an async interface for
//! tasks on that core's executor.
//!
//! It owns the submission and completion queues, the slabs that the kernel receives into, and every
//! socket of the core. All `unsafe` code of the crate lives here. It knows no protocol but TLS, as a layer that a socket
//! may have.
//!
//! The plan: multishot accept and receive fill slabs that the kernel picks from a provided-buffer ring; a
//! [`Chunk`] is a refcounted piece of a slab, so forwarding copies nothing in user space. Writes of one turn
//! of the loop to one socket leave as one send. One driver task per executor ([`Ring::drive`]) submits,
//! waits and wakes; while it waits, it waits in this ring, so a completion is the wake-up. Peers that nobody waits for may live on a second io_uring,
//! which is set up with the first of them and in which nobody waits ([`Ring::connect_aside`]).
//!
//! Memory is bounded by construction: a socket whose received bytes are not taken stops receiving
//! ([`crate::limits::SOCKET_RECEIVE_BYTES`]); a writer asks [`Socket::drained`] before it writes on.

#![allow(unsafe_code)]

mod aside;
mod chunk;
mod core;
mod doorbell;
mod driver;
mod hint;
mod listener;
mod op;
mod out;
mod secure;
mod slabs;
mod socket;
mod state;
mod task;
mod thread_time;
mod timer;

pub use chunk::Chunk;
pub use core::{Ring, RingOptions, RingStats};
pub use doorbell::{Doorbell, Ringer};
pub use driver::drive;
pub use hint::prefetch;
pub use listener::Listener;
pub use out::BY_REFERENCE_BYTES;
pub use secure::Secured;
pub use socket::{Address, Socket, WeakSocket};
pub use task::{Notify, Queue, Queues, WaitQueue, Waiting};
pub use thread_time::thread_cpu_ns;
pub use timer::{Elapsed, Sleep};
