//! Cancel keys of clients that share connections: a client's key leads to the connection that it has at the moment.

use std::sync::Arc;

use crate::proxy::postgres::cancel::CancelSlot;
use crate::proxy::postgres::handshake::Hello;
use crate::proxy::postgres::terminate;
use crate::proxy::services::Shared;

/// Length of the cancel keys issued here: 4 bytes is what protocol 3.0 has; 3.2 takes more.
const KEY_LEN: usize = 4;
const KEY_LEN_3_2: usize = 32;

/// The client's own cancel key, and where it leads.
pub(super) struct CancelKey {
    shared: Arc<Shared>,
    pub(super) pid: u32,
    pub(super) key: Vec<u8>,
    pub(super) slot: Arc<CancelSlot>,
}

impl CancelKey {
    pub(super) fn issue(shared: &Arc<Shared>, hello: &Hello) -> std::io::Result<CancelKey> {
        let slot = Arc::<CancelSlot>::default();
        let len = match hello.startup.minor {
            0 | 1 => KEY_LEN,
            _ => KEY_LEN_3_2,
        };
        loop {
            // A process id is positive where clients show it.
            let pid = u32::from_be_bytes(terminate::random()?) >> 1;
            let key = terminate::random::<KEY_LEN_3_2>()?[..len].to_vec();
            if shared.cancels.issue(pid, &key, &slot) {
                return Ok(CancelKey {
                    shared: shared.clone(),
                    pid,
                    key,
                    slot,
                });
            }
        }
    }
}

impl Drop for CancelKey {
    fn drop(&mut self) {
        self.shared.cancels.remove(self.pid, &self.key);
    }
}
