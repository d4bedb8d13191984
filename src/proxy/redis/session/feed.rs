//! Cuts what a client sends into commands and puts each where it belongs.

use std::ops::Range;
use std::rc::Rc;

use super::{Input, Placed, Session, Step};
use crate::limits::{REDIS_HEAD_BYTES, REDIS_HELD_BYTES_MAX};
use crate::protocol::resp::tracker::{Disposition, NotMirrored};
use crate::protocol::resp::{Request, RequestError, command};
use crate::proxy::redis::lane::Lane;
use crate::proxy::redis::own::Own;
use crate::proxy::redis::route::{self, Place};
use crate::proxy::redis::units::{Bytes, Content};
use crate::ring::Chunk;

impl Session {
    /// Sends on as much of `chunk` from `offset` as can be sent now.
    pub(super) fn feed(self: &Rc<Self>, chunk: &Chunk, offset: &mut usize) -> Step {
        let input = &mut *self.input.borrow_mut();
        if input.raw {
            return self.feed_raw(input, chunk, offset);
        }
        if input.whole
            && let Some(step) = self.place_held(input)
        {
            return step;
        }
        if input.held.len() > REDIS_HELD_BYTES_MAX
            && let Some(step) = self.begin_through(input)
        {
            return step;
        }
        let mut run = *offset..*offset;
        let step = loop {
            if *offset == chunk.len() {
                break Step::Done;
            }
            let start = *offset;
            let advance = match input.framer.advance(&chunk[start..]) {
                Ok(advance) => advance,
                Err(RequestError::CrossProtocol) => break Step::Foreign,
                Err(_) if input.through || self.own_is(Own::is_tied) => {
                    // The primary has the last word on a connection of its own.
                    input.raw = true;
                    self.flush(chunk, &mut run);
                    break self.feed_raw(input, chunk, offset);
                }
                Err(error) => break Step::Broken(error),
            };
            let piece = start..start + advance.consumed;
            if input.through {
                *offset = piece.end;
                self.go_through(input, chunk, piece, advance.done);
                continue;
            }
            if advance.empty {
                *offset = piece.end;
                input.held.clear();
                continue;
            }
            if !advance.done || !input.held.is_empty() {
                *offset = piece.end;
                self.flush(chunk, &mut run);
                if let Some(step) = self.hold(input, chunk, piece, advance.done) {
                    break step;
                }
                continue;
            }
            match self.place(Bytes::Received(chunk, piece.clone())) {
                Placed::Lane => {
                    if run.end != piece.start {
                        self.flush(chunk, &mut run);
                        run.start = piece.start;
                    }
                    run.end = piece.end;
                    *offset = piece.end;
                }
                Placed::Own(wait) => {
                    *offset = piece.end;
                    if wait {
                        break Step::Quiet;
                    }
                }
                Placed::Not(step) => break step,
            }
        };
        self.flush(chunk, &mut run);
        step
    }

    /// Finds the place of a complete command and sends it there, but for the writing onto a lane.
    fn place(self: &Rc<Self>, bytes: Bytes<'_>) -> Placed {
        let request = Request::parse(bytes.as_slice());
        if request.is_cross_protocol() {
            return Placed::Not(Step::Foreign);
        }
        let command = command::lookup_request(&request);
        let place = route::place(command, &request);
        let own = self.own.borrow();
        let tied = own.as_ref().is_some_and(|own| own.is_tied());
        if !tied && self.is_held() {
            return Placed::Not(Step::Held);
        }
        if !tied && self.backend.get() != self.units.source.front() {
            return Placed::Not(Step::Move);
        }
        let free = !tied && !self.sticky.get() && self.heavy.get() == 0;
        match place {
            Place::Lane if free => return self.onto_lane(command, &request, bytes),
            Place::Info if free && own.is_none() => {
                self.note_info(bytes.as_slice());
                return self.onto_lane(command, &request, bytes);
            }
            Place::Quit if free && own.is_none() => return Placed::Not(Step::Quit),
            _ => {}
        }
        let Some(own) = own.as_ref().filter(|_| self.outstanding.get() == 0) else {
            return Placed::Not(Step::OwnNeeded);
        };
        if place == Place::Fenced && !tied && self.wrote.get() {
            return Placed::Not(Step::Fence);
        }
        let alone = own.is_quiet() && !own.in_transaction();
        let content = Content::default();
        let disposition = own.request(self, &request, content, Some(bytes.clone()));
        self.count_sent(bytes.len());
        match bytes {
            Bytes::Received(chunk, range) => own.socket.send(chunk.slice(range)),
            Bytes::Held(held) => own.socket.write(held),
        }
        let silent = matches!(
            disposition,
            Disposition::NotMirrored(NotMirrored::NoReply | NotMirrored::AfterQuit)
        );
        Placed::Own(place == Place::OwnAndWait && alone && !silent)
    }

    fn onto_lane(
        self: &Rc<Self>,
        command: Option<&'static command::Command>,
        request: &Request<'_>,
        bytes: Bytes<'_>,
    ) -> Placed {
        if self.outstanding.get() >= self.window.get() {
            return Placed::Not(Step::Window);
        }
        let lane = self.lane.borrow();
        let Some(lane) = lane.as_ref().filter(|lane| self.fits(lane)) else {
            return Placed::Not(Step::OpenLane);
        };
        let units = &self.units;
        let disposition = route::disposition(command, request);
        lane.note(self, disposition, |pending| {
            pending.arrived_ns = units.context.ring.now_ns();
            pending.command = command;
            let content = Content::default();
            units.admit(
                pending,
                request,
                disposition,
                content,
                Some(bytes),
                lane.key.db,
            );
        });
        self.outstanding.set(self.outstanding.get() + 1);
        if !command.is_some_and(command::Command::is_readonly) {
            self.wrote.set(true);
        }
        Placed::Lane
    }

    fn fits(&self, lane: &Lane) -> bool {
        let key = &lane.key;
        lane.is_alive()
            && key.db == self.db.get()
            && key.resp == self.resp.get()
            && key.backend == self.backend.get()
            && key.identity == *self.identity.borrow()
    }

    /// Keeps a piece of a command until all of it is here.
    fn hold(
        self: &Rc<Self>,
        input: &mut Input,
        chunk: &Chunk,
        piece: Range<usize>,
        done: bool,
    ) -> Option<Step> {
        if input.held.is_empty() && self.own_is(Own::is_tied) {
            input.through = true;
            self.go_through(input, chunk, piece, done);
            return None;
        }
        input.held.extend_from_slice(&chunk[piece]);
        if done {
            input.whole = true;
            return self.place_held(input);
        }
        if input.held.len() > REDIS_HELD_BYTES_MAX {
            return self.begin_through(input);
        }
        None
    }

    /// A command that came in pieces is complete.
    fn place_held(self: &Rc<Self>, input: &mut Input) -> Option<Step> {
        let held = std::mem::take(&mut input.held);
        let wait = match self.place(Bytes::Held(&held)) {
            Placed::Not(step) => {
                input.held = held;
                return Some(step);
            }
            Placed::Own(wait) => wait,
            Placed::Lane => {
                if let Some(lane) = &*self.lane.borrow() {
                    self.count_sent(held.len());
                    lane.write(&held);
                }
                false
            }
        };
        input.whole = false;
        wait.then_some(Step::Quiet)
    }

    /// A command is too large to be held.
    fn begin_through(&self, input: &mut Input) -> Option<Step> {
        let own = self.own.borrow();
        let tied = own.as_ref().is_some_and(|own| own.is_tied());
        if !tied && self.is_held() {
            return Some(Step::Held);
        }
        if !tied && self.backend.get() != self.units.source.front() {
            return Some(Step::Move);
        }
        let Some(own) = own.as_ref().filter(|_| self.outstanding.get() == 0) else {
            return Some(Step::OwnNeeded);
        };
        let held = std::mem::take(&mut input.held);
        input.through = true;
        input.head.push(&held, REDIS_HEAD_BYTES);
        self.units.keep(&mut input.content, Bytes::Held(&held));
        self.count_sent(held.len());
        own.socket.send(Chunk::from(held));
        None
    }

    /// Sends a piece of a command over the client's own connection.
    fn go_through(&self, input: &mut Input, chunk: &Chunk, piece: Range<usize>, done: bool) {
        let own = self.own.borrow();
        let Some(own) = own.as_ref() else {
            // It was lost, and the session is about to end.
            return;
        };
        input.head.push(&chunk[piece.clone()], REDIS_HEAD_BYTES);
        let part = Bytes::Received(chunk, piece.clone());
        self.units.keep(&mut input.content, part);
        self.count_sent(piece.len());
        own.socket.send(chunk.slice(piece));
        if !done {
            return;
        }
        input.through = false;
        let content = std::mem::take(&mut input.content);
        let head = std::mem::take(&mut input.head);
        if head.is_whole() {
            own.request(self, &Request::parse(head.bytes()), content, None);
            return;
        }
        let request = Request::parse_prefix(head.bytes());
        let command = command::lookup_request(&request);
        if command.is_some_and(command::Command::is_connection_state) {
            // What it makes of the connection cannot be read any more.
            self.sticky.set(true);
        }
        own.request(self, &request, content, None);
    }

    fn feed_raw(&self, input: &mut Input, chunk: &Chunk, offset: &mut usize) -> Step {
        let own = self.own.borrow();
        let Some(own) = own.as_ref().filter(|_| self.outstanding.get() == 0) else {
            return Step::OwnNeeded;
        };
        self.units.discard(std::mem::take(&mut input.content));
        self.count_sent(chunk.len() - *offset);
        own.socket.send(chunk.slice(*offset..chunk.len()));
        *offset = chunk.len();
        Step::Done
    }

    /// The backends change places right now.
    fn is_held(&self) -> bool {
        let observer = self.units.source.observer.as_ref();
        observer.is_some_and(|observer| observer.held())
    }

    /// Sends neighbouring commands onto the lane.
    fn flush(&self, chunk: &Chunk, run: &mut Range<usize>) {
        if run.start < run.end
            && let Some(lane) = &*self.lane.borrow()
        {
            self.count_sent(run.len());
            lane.send(chunk, run.clone());
        }
        *run = run.end..run.end;
    }
}
