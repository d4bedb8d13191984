//! From requests and replies to units: what the mirrors and an observer get, and what is counted. The same for
//! commands on a lane and on a client's own connection.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use super::collect::Frame;
use super::observe::{Answered, Backend};
use super::outcome::is_write;
use super::{RedisOutcome, SharedSource};
use crate::limits::REDIS_COMPARE_BYTES;
use crate::metrics::ErrorWord;
use crate::mirror::ledger::DropReason;
use crate::mirror::payload::Payload;
use crate::mirror::unit::{Class, ClientId, Draft, MirrorSet};
use crate::protocol::resp::tracker::{Disposition, UnitEnd};
use crate::protocol::resp::{Request, command};
use crate::proxy::Context;
use crate::proxy::mirrors::append;
use crate::ring::{Chunk, prefetch};

/// A request that waits for its reply.
pub(super) struct Pending {
    pub arrived_ns: u64,
    pub command: Option<&'static command::Command>,
    content: Content,
    exposed: MirrorSet,
    /// The observer wants it.
    observed: bool,
}

impl Pending {
    /// Nobody wants its bytes, so far.
    pub fn new(arrived_ns: u64, command: Option<&'static command::Command>) -> Pending {
        Pending {
            arrived_ns,
            command,
            content: Content::default(),
            exposed: MirrorSet::EMPTY,
            observed: false,
        }
    }

    /// Its reply comes in a moment.
    pub fn prefetch(&self) {
        if let Some(draft) = &self.content.draft {
            prefetch(&**draft);
        }
    }
}

/// The bytes of a request, as far as somebody wants them.
#[derive(Default)]
pub(super) struct Content {
    draft: Option<Draft<Chunk, RedisOutcome>>,
    oversize: bool,
}

/// A transaction that MULTI has opened.
pub(super) struct Transaction {
    exposed: MirrorSet,
    /// Commands of it that the observer wants.
    wanted: u32,
    /// The database in which it began.
    db: u32,
    class: Class,
    command: Option<&'static command::Command>,
    content: Content,
    commands: u32,
    began_ns: u64,
}

/// What the connection was like that a reply came over.
#[derive(Clone, Copy)]
pub(super) struct Over {
    pub db: u32,
    pub resp: u8,
    pub backend: Backend,
    /// The connection.
    pub stream: u64,
}

/// The units of one client.
pub(super) struct Units {
    pub context: Rc<Context>,
    pub source: SharedSource,
    pub id: ClientId,
    /// Somebody may want the bytes of requests.
    kept: Cell<bool>,
}

impl Units {
    pub fn new(context: &Rc<Context>, source: SharedSource) -> Units {
        Units {
            context: context.clone(),
            id: context.new_client(),
            kept: Cell::new(wanted(&source)),
            source,
        }
    }

    /// Whether somebody wants the bytes of requests now who did not before, or the other way round.
    pub fn is_behind(&self) -> bool {
        self.kept.get() != wanted(&self.source)
    }

    /// Begins or ends to keep the bytes of requests. Only between transactions: half of one is worth nothing.
    pub fn follow(&self) {
        self.kept.set(wanted(&self.source));
    }

    /// Whether nobody wants the bytes of requests.
    pub fn is_idle(&self) -> bool {
        !self.kept.get()
    }

    /// Decides who wants a request, whose bytes are `content` and then `rest`.
    pub fn admit(
        &self,
        pending: &mut Pending,
        request: &Request<'_>,
        disposition: Disposition,
        mut content: Content,
        rest: Option<Bytes<'_>>,
        db: u32,
    ) {
        if !self.kept.get() {
            return;
        }
        let source = &self.source;
        let member = disposition == Disposition::TxnMember;
        match disposition {
            Disposition::Mirror => pending.exposed = source.mirrors.expose(&self.context.random),
            Disposition::TxnMember => {}
            Disposition::NotMirrored(_) => source.mirrors.exclude(),
        }
        pending.observed = source
            .observer
            .as_ref()
            .is_some_and(|observer| observer.wants(pending.command, request, db));
        let wanted = member || pending.observed || !pending.exposed.is_empty();
        if !wanted {
            return self.discard(content);
        }
        if let Some(rest) = rest {
            self.keep(&mut content, rest);
        }
        pending.content = content;
    }

    /// Appends bytes to what somebody may want of a request.
    pub fn keep(&self, content: &mut Content, bytes: Bytes<'_>) {
        if !self.kept.get() || content.oversize {
            return;
        }
        let bytes_max = self.source.bytes_max();
        let now_ns = self.context.ring.now_ns();
        let draft = content.draft.get_or_insert_with(|| {
            let units = &self.source.mirrors.units;
            let draft = units.draft(self.id, now_ns);
            units.look_ahead(prefetch);
            draft
        });
        if draft.payload.len() + bytes.len() > bytes_max {
            content.oversize = true;
            self.discard_draft(content.draft.take());
            return;
        }
        match bytes {
            Bytes::Received(chunk, range) => {
                append(&self.context.ring, draft, chunk, range);
            }
            Bytes::Held(bytes) => draft.payload.push_copy(bytes),
        }
    }

    /// Counts a reply.
    pub fn count(&self, pending: &Pending, frame: &Frame<'_>, backend: Backend, now_ns: u64) {
        let latency_ns = now_ns.saturating_sub(pending.arrived_ns);
        let metrics = &self.source.metrics;
        metrics.requests.add(1);
        metrics.latency.record(latency_ns);
        let failed = frame
            .bytes()
            .first()
            .is_some_and(|kind| matches!(kind, b'-' | b'!'));
        if failed {
            metrics.errors.count(ErrorWord::of_redis(frame.bytes()));
            self.fail(pending.command);
        }
        let commands = match backend {
            Backend::Primary => &metrics.commands,
            Backend::Secondary => &metrics.secondary_commands,
        };
        commands.of(pending.command).record(!failed, latency_ns);
    }

    /// Counts a command that the primary refused or did not answer.
    fn fail(&self, command: Option<&'static command::Command>) {
        let metrics = &self.source.metrics;
        if command.is_some_and(command::Command::is_readonly) {
            metrics.read_errors.add(1);
        } else if is_write(command) {
            metrics.write_errors.add(1);
        }
    }

    /// What the reply makes of the unit that its request belongs to.
    pub fn step(
        &self,
        transaction: &mut Option<Transaction>,
        pending: Pending,
        end: UnitEnd,
        frame: &Frame<'_>,
        over: Over,
    ) {
        if !self.kept.get() {
            return self.discard(pending.content);
        }
        match end {
            UnitEnd::NotAUnit => self.show_one(pending, frame, over),
            UnitEnd::Complete { .. } => self.seal(Transaction::of(pending, over.db), frame, over),
            UnitEnd::Open | UnitEnd::Misjudged => self.join(transaction, pending, over.db),
            UnitEnd::Committed => {
                self.join(transaction, pending, over.db);
                if let Some(transaction) = transaction.take() {
                    self.seal(transaction, frame, over);
                }
            }
            UnitEnd::Excluded(_) => {
                self.join(transaction, pending, over.db);
                if let Some(transaction) = transaction.take() {
                    if transaction.wanted > 0 {
                        self.show(&transaction, frame, over);
                    }
                    self.discard(transaction.content);
                }
                self.source.mirrors.exclude();
            }
            UnitEnd::Discarded(_) => {
                self.dismiss(u32::from(pending.observed));
                self.discard(pending.content);
                if let Some(transaction) = transaction.take() {
                    self.dismiss(transaction.wanted);
                    self.discard(transaction.content);
                }
                self.source.mirrors.exclude();
            }
            UnitEnd::Stray { .. } => {
                self.show_one(pending, frame, over);
                self.source.mirrors.exclude();
            }
        }
    }

    /// Adds a request to the transaction under way, which its MULTI opens.
    fn join(&self, transaction: &mut Option<Transaction>, pending: Pending, db: u32) {
        let Some(transaction) = transaction else {
            let exposed = self.source.mirrors.expose(&self.context.random);
            *transaction = Some(Transaction {
                exposed,
                ..Transaction::of(pending, db)
            });
            return;
        };
        transaction.commands += 1;
        transaction.class |= class_of(pending.command);
        transaction.wanted += u32::from(pending.observed);
        let bytes_max = self.source.bytes_max();
        let whole = &mut transaction.content;
        whole.oversize |= pending.content.oversize;
        match (&mut whole.draft, pending.content.draft) {
            (Some(draft), Some(mut more))
                if !whole.oversize && draft.payload.len() + more.payload.len() <= bytes_max =>
            {
                draft.payload.append(std::mem::take(&mut more.payload));
                self.discard_draft(Some(more));
            }
            (_, more) => {
                whole.oversize = true;
                self.discard_draft(more);
                self.discard_draft(whole.draft.take());
            }
        }
    }

    fn seal(&self, transaction: Transaction, frame: &Frame<'_>, over: Over) {
        if transaction.wanted > 0 {
            self.show(&transaction, frame, over);
        }
        let Transaction {
            exposed,
            class,
            content,
            command,
            commands,
            began_ns,
            db,
            ..
        } = transaction;
        let mirrors = &self.source.mirrors;
        if content.oversize {
            return mirrors.refuse(exposed, class, DropReason::Oversize);
        }
        let Some(mut draft) = content.draft else {
            return mirrors.leave_out(class);
        };
        if exposed.is_empty() {
            self.discard_draft(Some(draft));
            return mirrors.leave_out(class);
        }
        let now_ns = self.context.ring.now_ns();
        draft.class = class;
        draft.outcome.replies = commands;
        draft.outcome.db = db;
        draft.outcome.command = command;
        draft.outcome.resp = over.resp;
        draft.outcome.latency_ns = now_ns.saturating_sub(began_ns);
        if frame.is_whole() && frame.bytes().len() <= REDIS_COMPARE_BYTES {
            draft.outcome.reply.extend_from_slice(frame.bytes());
        }
        mirrors.seal(draft, exposed, now_ns);
    }

    /// A command that is no unit for the mirrors.
    fn show_one(&self, pending: Pending, frame: &Frame<'_>, over: Over) {
        let transaction = Transaction::of(pending, over.db);
        if transaction.wanted > 0 {
            self.show(&transaction, frame, over);
        }
        self.discard(transaction.content);
    }

    /// Shows the observer what was answered.
    fn show(&self, transaction: &Transaction, frame: &Frame<'_>, over: Over) {
        let Some(observer) = &self.source.observer else {
            return;
        };
        let empty = Payload::default();
        observer.answered(&Answered {
            client: self.id,
            backend: over.backend,
            stream: over.stream,
            wanted: transaction.wanted,
            command: transaction.command,
            commands: transaction.commands,
            request: transaction
                .content
                .draft
                .as_ref()
                .map_or(&empty, |draft| &draft.payload),
            oversize: transaction.content.oversize,
            reply: frame.bytes(),
            whole: frame.is_whole(),
            db: transaction.db,
            resp: over.resp,
            arrived_ns: transaction.began_ns,
            answered_ns: self.context.ring.now_ns(),
        });
    }

    /// The connection is gone: what has no reply has no outcome and is no unit.
    pub fn abandon(&self, pending: Pending, db: u32) {
        self.fail(pending.command);
        self.lose(&pending.content, db, u32::from(pending.observed));
        self.abandon_content(pending.content);
    }

    /// The same for a transaction of which nobody knows whether it was executed.
    pub fn abandon_transaction(&self, transaction: Transaction, db: u32) {
        self.lose(&transaction.content, db, transaction.wanted);
        self.abandon_content(transaction.content);
    }

    /// A request that gets no reply.
    pub fn silent(
        &self,
        request: &Request<'_>,
        content: Content,
        rest: Option<Bytes<'_>>,
        db: u32,
    ) {
        let mut content = content;
        let command = command::lookup_request(request);
        let observer = self.source.observer.as_ref();
        if observer.is_some_and(|observer| observer.wants(command, request, db)) {
            if let Some(rest) = rest {
                self.keep(&mut content, rest);
            }
            self.lose(&content, db, 1);
        }
        self.discard(content);
    }

    fn lose(&self, content: &Content, db: u32, wanted: u32) {
        if wanted > 0
            && let Some(observer) = &self.source.observer
        {
            let empty = Payload::default();
            let request = content
                .draft
                .as_ref()
                .map_or(&empty, |draft| &draft.payload);
            observer.lost(request, db, wanted);
        }
    }

    fn dismiss(&self, wanted: u32) {
        if wanted > 0
            && let Some(observer) = &self.source.observer
        {
            observer.dismissed(wanted);
        }
    }

    fn abandon_content(&self, content: Content) {
        if content.draft.is_some() || content.oversize {
            self.source.mirrors.exclude();
        }
        self.discard(content);
    }

    /// Gives the bytes up.
    pub fn discard(&self, content: Content) {
        self.discard_draft(content.draft);
    }

    fn discard_draft(&self, draft: Option<Draft<Chunk, RedisOutcome>>) {
        if let Some(draft) = draft {
            self.source.mirrors.units.discard(draft);
        }
    }
}

impl Transaction {
    /// The unit of one command, or what MULTI begins.
    fn of(pending: Pending, db: u32) -> Transaction {
        Transaction {
            exposed: pending.exposed,
            wanted: u32::from(pending.observed),
            db,
            class: class_of(pending.command),
            command: pending.command,
            content: pending.content,
            commands: 1,
            began_ns: pending.arrived_ns,
        }
    }
}

/// Bytes of a request: as they were received, or from a buffer.
#[derive(Clone)]
pub(super) enum Bytes<'a> {
    Received(&'a Chunk, Range<usize>),
    Held(&'a [u8]),
}

impl<'a> Bytes<'a> {
    /// The bytes, wherever they are.
    pub fn as_slice(&self) -> &'a [u8] {
        match self {
            Bytes::Received(chunk, range) => &chunk[range.clone()],
            Bytes::Held(bytes) => bytes,
        }
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        match self {
            Bytes::Received(_, range) => range.len(),
            Bytes::Held(bytes) => bytes.len(),
        }
    }
}

fn wanted(source: &SharedSource) -> bool {
    !source.mirrors.is_empty() || source.observer.is_some()
}

fn class_of(command: Option<&'static command::Command>) -> Class {
    match command {
        Some(command) if command.is_readonly() => Class::READS,
        Some(command) if command.is_write() => Class::WRITES,
        // MULTI and EXEC themselves do nothing.
        Some(command) if command.category() == command::CommandCategory::Txn => Class::NONE,
        _ => Class::UNKNOWN,
    }
}
