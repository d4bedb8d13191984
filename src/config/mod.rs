//! The configuration: files in, a validated [`Config`] out.
//!
//! Owns: the format, every default, every rule, and what of it can change at run time. Never does: guess. A key that is
//! unknown, a unit that is missing, a value out of range is refused with file, line, key and the way out.

mod address;
pub(crate) mod arguments;
mod databases;
mod error;
mod files;
mod general;
mod load;
mod pgdog;
mod reader;
mod reload;
mod routes;
mod rules;
mod secret;
mod show;
mod types;
mod units;

pub use address::{Endpoint, ListenAddress, default_port, parse_listen_ip, parse_socket_addr};
pub use error::{ConfigError, ConfigErrors};
pub use load::{Input, Loaded, load, load_with_warnings, parse};
pub use reload::{Change, Changes, apply, diff};
pub use secret::Secret;
pub use show::to_json;
pub use types::{
    Auth, AuthMethod, Blocking, Compare, Config, Cores, Database, DualWrite, General, Level,
    Listener, ListenerTls, LogFormat, Login, MirrorPoolMode, Mirroring, Pace, PoolMode, Protocol,
    Redact, RedisMode, RingConfig, SampleBy, Sentry, TlsMode, User,
};
pub use units::{parse_duration, parse_size, show_duration, show_size};
