//! A value that must not be seen: passwords, verifiers, DSNs.
//!
//! Owns: the text. Never does: show it in `Debug`, implement `Display` or `Serialize`, leave it in memory that it
//! gave back.

use std::fmt;

use zeroize::Zeroizing;

/// A password, SCRAM verifier or DSN. `Debug` prints `***`; there is no `Display` and no `Serialize`.
///
/// Equality is for telling a changed configuration from an unchanged one; it does not run in constant time and must
/// not decide whether a client may log in.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text in custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, for the one place that sends or checks it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The bytes of the text.
    pub fn expose_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_text() {
        let secret = Secret::new("canary-4711");
        assert_eq!(format!("{secret:?}"), "***");
        assert!(!format!("{:#?}", Some(&secret)).contains("canary"));
        assert_eq!(secret.expose(), "canary-4711");
    }
}
