//! ErrorResponses in PostgreSQL's form.

/// How bad an ErrorResponse is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The session ends.
    Fatal,
}

/// An ErrorResponse. `code` is a SQLSTATE; NUL bytes cannot be sent and end the text.
pub fn encode_error(severity: Severity, code: &str, message: &str) -> Vec<u8> {
    encode_error_with_hint(severity, code, message, "")
}

/// An ErrorResponse with a hint, unless that is empty.
pub fn encode_error_with_hint(
    severity: Severity,
    code: &str,
    message: &str,
    hint: &str,
) -> Vec<u8> {
    let severity = match severity {
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    let mut out = vec![b'E', 0, 0, 0, 0];
    for (field, text) in [
        (b'S', severity),
        (b'V', severity),
        (b'C', code),
        (b'M', message),
        (b'H', hint),
    ] {
        if text.is_empty() {
            continue;
        }
        out.push(field);
        out.extend(text.bytes().take_while(|byte| *byte != 0));
        out.push(0);
    }
    out.push(0);
    let len = (out.len() - 1) as u32;
    out[1..5].copy_from_slice(&len.to_be_bytes());
    out
}
