//! What may stand for a word in the file: enums, each declared with its words.
//!
//! Owns: the words and their aliases. Never does: read the file.

/// Declares an enum together with the words that stand for it in the file; the first word of a variant is its name.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal $(| $alias:literal)*),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// The words that users write, in the order of the documentation, without aliases.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word for this value.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The value for a word or alias.
            pub fn from_word(word: &str) -> Option<Self> {
                match word {
                    $($word $(| $alias)* => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What a listener or a database speaks.
    Protocol {
        /// PostgreSQL's frontend/backend protocol, version 3.
        Postgres = "postgres" | "postgresql",
        /// RESP2 and RESP3.
        Redis = "redis" | "valkey",
    }
}

words! {
    /// How closely a mirror follows the primary's timing.
    Pace {
        /// As fast as the mirror answers.
        Off = "off",
        /// Pauses inside a unit are kept.
        Transaction = "transaction",
        /// Pauses between units are kept too.
        Session = "session",
    }
}

words! {
    /// Which units a mirror gets.
    Level {
        /// Every unit.
        All = "all",
        /// Units without data definition.
        Dml = "dml",
        /// Units with data definition only.
        Ddl = "ddl",
        /// Units that only read.
        Reads = "reads",
        /// Units that may write.
        Writes = "writes",
    }
}

words! {
    /// How much of a mirror's answer is compared.
    Compare {
        /// Nothing.
        Off = "off",
        /// Command tag or error code.
        Status = "status",
        /// Status, row count, columns and row data.
        Rows = "rows",
    }
}

words! {
    /// Who holds a mirror connection, and for how long.
    MirrorPoolMode {
        /// Checked out for one unit.
        Unit = "unit",
        /// One mirror connection per client.
        Session = "session",
    }
}

words! {
    /// Who holds a primary connection, and for how long.
    PoolMode {
        /// One primary connection per client.
        Session = "session",
        /// Shared between clients, transaction by transaction; needs [`Auth::Terminate`].
        Transaction = "transaction",
    }
}

words! {
    /// Who checks a Postgres client's password.
    Auth {
        /// The primary, through the proxy.
        Relay = "relay",
        /// The proxy, which then logs in to the primary itself.
        Terminate = "terminate",
    }
}

words! {
    /// How Parhelion checks a client where it does so itself; pg_hba.conf's words.
    AuthMethod {
        /// SCRAM-SHA-256, by a password or a stored verifier.
        Scram = "scram-sha-256" | "scram",
        /// md5 of the password and a salt; for clients that know nothing better.
        Md5 = "md5",
        /// The password in clear text.
        Password = "password" | "cleartext",
        /// No question asked.
        Trust = "trust",
    }
}

words! {
    /// TLS towards a database; the words of libpq's `sslmode`.
    TlsMode {
        /// Never.
        Disable = "disable",
        /// If the server offers it; Postgres only.
        Prefer = "prefer",
        /// Always, without checking the certificate.
        Require = "require",
        /// Always, the certificate chain is checked.
        VerifyCa = "verify-ca",
        /// Always, chain and host name are checked.
        VerifyFull = "verify-full",
    }
}

words! {
    /// Which backend serves Redis clients and which one follows.
    RedisMode {
        /// Everything on the primary.
        PrimaryOnly = "primary-only" | "redis-only",
        /// Writes follow on the secondary.
        DualWrite = "dual-write",
        /// Writes follow, reads are repeated on the secondary and compared.
        DualWriteShadow = "dual-write-shadow",
        /// The secondary serves; the primary follows and shadows.
        SecondaryPrimary = "secondary-primary" | "elastickv-primary",
        /// Everything on the secondary.
        SecondaryOnly = "secondary-only" | "elastickv-only",
    }
}

impl RedisMode {
    /// Whether clients are served by the secondary.
    pub fn serves_secondary(self) -> bool {
        matches!(self, Self::SecondaryPrimary | Self::SecondaryOnly)
    }

    /// Whether writes go to the backend that does not serve.
    pub fn writes_both(self) -> bool {
        matches!(
            self,
            Self::DualWrite | Self::DualWriteShadow | Self::SecondaryPrimary
        )
    }

    /// Whether reads are repeated on the backend that does not serve.
    pub fn shadows_reads(self) -> bool {
        matches!(self, Self::DualWriteShadow | Self::SecondaryPrimary)
    }
}

words! {
    /// What a shadow read's exposure counts.
    SampleBy {
        /// Each request by itself.
        Request = "request",
        /// The same keys always.
        Key = "key",
    }
}

words! {
    /// What happens on the secondary for a blocking command.
    Blocking {
        /// What was popped is taken from the secondary too.
        Effects = "effects",
        /// The command is repeated with a short timeout.
        Warmup = "warmup",
        /// Nothing.
        Off = "off",
    }
}

words! {
    /// What of a divergence is shown as a hash, under a key of this run: equal values still look equal.
    Redact {
        /// Nothing.
        Off = "off",
        /// The values.
        Values = "values",
        /// The values and the keys.
        Keys = "keys",
    }
}

words! {
    /// How log lines look.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}
