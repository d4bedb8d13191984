//! A connection of our own to a backend, with the login of its `[[databases]]` entry.

use std::io;

use crate::config::Database;
use crate::limits::REDIS_MIRROR_REPLY_BYTES_MAX;
use crate::mirror::dual::repair;
use crate::protocol::resp::ReplyFramer;
use crate::protocol::resp::effects::encode;
use crate::proxy::Context;
use crate::proxy::redis::LOADING;
use crate::ring::Socket;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it closed the connection")]
    Closed,
    #[error("it sent what is no reply: {0}")]
    Protocol(String),
    #[error("it refused {0}")]
    Refused(&'static str),
    #[error("it sent a reply that nobody asked for")]
    Unsolicited,
    #[error("it did not answer in time")]
    Late,
    #[error("it is loading its data and executes nothing")]
    Loading,
}

/// See the module.
pub(super) struct Link {
    pub socket: Socket,
    pub framer: ReplyFramer,
    /// The database in force; `None`: not known.
    pub db: Option<u32>,
    /// Which process answers, if it says so.
    pub run_id: Option<Box<[u8]>>,
    /// Major and minor, if it says so.
    pub version: Option<(u32, u32)>,
}

impl Link {
    /// Connects and logs in within `connect_timeout`.
    pub async fn open(context: &Context, database: &Database) -> Result<Link, Broken> {
        let mut link = Link {
            socket: context.connect(database).await?,
            framer: ReplyFramer::new(REDIS_MIRROR_REPLY_BYTES_MAX),
            db: Some(0),
            run_id: None,
            version: None,
        };
        let mut out = Vec::new();
        let logs_in = database.password.is_some();
        if let Some(password) = &database.password {
            let user = database.user.as_deref().unwrap_or("default");
            encode(
                &mut out,
                [b"AUTH", user.as_bytes(), password.expose().as_bytes()],
            );
        }
        // While it loads its data it answers INFO and refuses the rest, up to the middle of a transaction.
        encode(&mut out, ["PING"]);
        encode(&mut out, ["INFO", "server"]);
        let limit = context.config.borrow().general.connect_timeout;
        let replies = link
            .call(context, &out, 2 + usize::from(logs_in), limit)
            .await?;
        if logs_in && replies[0].first() != Some(&b'+') {
            return Err(Broken::Refused("the login"));
        }
        if replies[usize::from(logs_in)].starts_with(LOADING) {
            return Err(Broken::Loading);
        }
        link.run_id = replies.last().and_then(|info| repair::run_id(info));
        link.version = replies.last().and_then(|info| repair::version(info));
        Ok(link)
    }

    /// Sends commands and reads their replies. Nothing else may be on its way.
    pub async fn call(
        &mut self,
        context: &Context,
        bytes: &[u8],
        replies: usize,
        limit: std::time::Duration,
    ) -> Result<Vec<Vec<u8>>, Broken> {
        self.socket.write(bytes);
        match context.ring.timeout(limit, self.replies(replies)).await {
            Ok(replies) => replies,
            Err(_) => Err(Broken::Late),
        }
    }

    /// Moves to a database.
    pub async fn select(
        &mut self,
        context: &Context,
        db: u32,
        limit: std::time::Duration,
    ) -> Result<(), Broken> {
        if self.db == Some(db) {
            return Ok(());
        }
        let mut out = Vec::new();
        encode(&mut out, ["SELECT", &db.to_string()]);
        let replies = self.call(context, &out, 1, limit).await?;
        match replies[0].first() {
            Some(b'+') => {
                self.db = Some(db);
                Ok(())
            }
            _ => Err(Broken::Refused("SELECT")),
        }
    }

    async fn replies(&mut self, count: usize) -> Result<Vec<Vec<u8>>, Broken> {
        let mut replies = Vec::with_capacity(count.min(1024));
        let mut current = Vec::new();
        while replies.len() < count {
            let Some(chunk) = self.socket.recv().await? else {
                return Err(Broken::Closed);
            };
            let mut offset = 0;
            while offset < chunk.len() {
                let advance = self
                    .framer
                    .advance(&chunk[offset..])
                    .map_err(|error| Broken::Protocol(error.to_string()))?;
                current.extend_from_slice(&chunk[offset..offset + advance.consumed]);
                offset += advance.consumed;
                if advance.done {
                    if replies.len() == count {
                        return Err(Broken::Unsolicited);
                    }
                    replies.push(std::mem::take(&mut current));
                }
            }
        }
        Ok(replies)
    }
}
