//! The client direction of the tracker.

use super::super::startup::split_cstr;
use super::{
    ClientEvent, ClientSide, Named, Phase, Place, STATEMENT_CAPTURE_MAX, StatementText, Tracker,
    Violation,
};

/// How much of a Bind is captured: the names of portal and statement, which PostgreSQL's own clients keep under 64 bytes.
const BIND_CAPTURE_MAX: usize = 1024;

/// A stretch of one cycle's bytes that has not been reported yet.
#[derive(Default)]
struct Span {
    cycle: u64,
    start: usize,
    end: usize,
}

type Sink<'s> = &'s mut dyn FnMut(ClientEvent<'_>);

impl Tracker {
    /// Reads what the client sent next.
    ///
    /// Adjacent bytes of one cycle come as one [`ClientEvent::Bytes`]. Before an error is returned, everything in front of
    /// it has been reported.
    pub fn client(&mut self, input: &[u8], on: Sink<'_>) -> Result<(), Violation> {
        if self.phase == Phase::Replication {
            return Ok(());
        }
        let mut span = Span::default();
        let result = self.client_messages(input, &mut span, on);
        self.flush(&mut span, false, on);
        result
    }

    fn client_messages(
        &mut self,
        input: &[u8],
        span: &mut Span,
        on: Sink<'_>,
    ) -> Result<(), Violation> {
        let mut at = 0;
        while at < input.len() {
            let fresh = !self.client.framer.in_message();
            let advance = self
                .client
                .framer
                .advance(&input[at..])
                .map_err(Violation::ClientFrame)?;
            let tag = self.client.framer.tag().unwrap_or_default();
            if fresh {
                self.begin_message(tag, span, on);
            }
            let end = at + advance.consumed;
            let body = &input[at + advance.body_at..end];
            match tag {
                b'p' => {
                    self.flush(span, false, on);
                    on(ClientEvent::Password { range: at..end });
                }
                b'X' => {
                    self.flush(span, false, on);
                    on(ClientEvent::Terminate { range: at..end });
                }
                _ if self.client.place == Place::Stray => {
                    self.flush(span, false, on);
                    on(ClientEvent::Stray { range: at..end });
                }
                _ => {
                    if span.start == span.end {
                        span.cycle = self.cycles.newest();
                        span.start = at;
                    }
                    span.end = end;
                    if self.capture_statements && matches!(tag, b'Q' | b'P' | b'B' | b'C') {
                        let (cycle, offset) = (self.cycles.newest(), advance.body_offset);
                        self.client
                            .statement(tag, cycle, (offset, body, advance.done), on);
                    }
                    if advance.done {
                        let closes = self.cycles.end(tag);
                        let extended = matches!(tag, b'P' | b'B' | b'D' | b'C' | b'E');
                        self.client.extended += u32::from(extended);
                        if closes {
                            self.flush(span, true, on);
                        }
                    }
                }
            }
            at = end;
        }
        Ok(())
    }

    fn begin_message(&mut self, tag: u8, span: &mut Span, on: Sink<'_>) {
        if matches!(tag, b'p' | b'X') {
            self.client.place = Place::Stray;
            return;
        }
        self.client.place = self.cycles.begin(tag);
        if self.client.place == Place::Opens {
            self.flush(span, false, on);
            self.client.extended = 0;
            self.client.opening = true;
            on(ClientEvent::Opened {
                cycle: self.cycles.newest(),
            });
            self.client.place = Place::Continues;
        }
    }

    fn flush(&mut self, span: &mut Span, closes: bool, on: Sink<'_>) {
        if span.start < span.end {
            on(ClientEvent::Bytes {
                cycle: span.cycle,
                range: span.start..span.end,
                opens: std::mem::take(&mut self.client.opening),
                closes,
            });
        }
        *span = Span::default();
    }
}

impl ClientSide {
    /// Collects the body of a Query, Parse or Close and reports it with its last part.
    fn statement(
        &mut self,
        tag: u8,
        cycle: u64,
        (offset, part, done): (usize, &[u8], bool),
        on: Sink<'_>,
    ) {
        let max = if tag == b'B' {
            BIND_CAPTURE_MAX
        } else {
            STATEMENT_CAPTURE_MAX
        };
        let Some((body, truncated)) = self.capture.feed(offset, part, done, max) else {
            return;
        };
        let ordinal = self.extended;
        match tag {
            b'Q' => {
                let sql = until_nul(body);
                let text = StatementText {
                    sql,
                    truncated,
                    extended: false,
                };
                on(ClientEvent::Statement { cycle, text });
                let named = Named::Query { ordinal };
                on(ClientEvent::Named { cycle, named });
            }
            b'P' => {
                if let Some((name, rest)) = split_cstr(body) {
                    let sql = until_nul(rest);
                    let cut = truncated && sql.len() == rest.len();
                    let text = StatementText {
                        sql,
                        truncated: cut,
                        extended: true,
                    };
                    on(ClientEvent::Statement { cycle, text });
                    let named = Named::Parse {
                        name,
                        body: (!truncated).then_some(body),
                        ordinal,
                    };
                    on(ClientEvent::Named { cycle, named });
                }
            }
            b'B' => {
                if let Some((name, _)) = split_cstr(body).and_then(|(_, rest)| split_cstr(rest)) {
                    let named = Named::Bind { name, ordinal };
                    on(ClientEvent::Named { cycle, named });
                }
            }
            _ => {
                if let Some((b'S', rest)) = body.split_first() {
                    let name = until_nul(rest);
                    let named = Named::Close { name, ordinal };
                    on(ClientEvent::Named { cycle, named });
                }
            }
        }
        if offset > 0 {
            self.capture.release();
        }
    }
}

/// The bytes before the first zero byte; all of them without one.
fn until_nul(bytes: &[u8]) -> &[u8] {
    split_cstr(bytes).map_or(bytes, |(text, _)| text)
}
