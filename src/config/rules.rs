//! The rules between entries: what a configuration as a whole must not say.
//!
//! Owns: the rules. They see the resolved [`Config`] and where each entry came from, so that they hold for a file and for a
//! command line alike. Never does: read files or the network.

use super::address::Endpoint;
use super::error::ConfigError;
use super::types::{Auth, AuthMethod, Config, Protocol, TlsMode};
use crate::limits::MIRRORS_PER_SOURCE_MAX;

/// Where an entry came from: a line of a file, or an argument.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub file: String,
    pub line: Option<usize>,
    pub key: String,
}

/// The places of the entries of a [`Config`], index by index.
#[derive(Default)]
pub(crate) struct Places {
    pub control: Option<Place>,
    pub listeners: Vec<Place>,
    /// The `host` of each database.
    pub databases: Vec<Place>,
    /// The `auth` of each database.
    pub auth: Vec<Place>,
    /// The destination of each mirroring.
    pub mirroring: Vec<Place>,
    /// The secondary of each dual write.
    pub dual_write: Vec<Place>,
    pub users: Vec<Place>,
}

/// What the rules say of a configuration.
pub(crate) fn check(config: &Config, places: &Places) -> Vec<ConfigError> {
    let mut check = Check {
        config,
        places,
        errors: Vec::new(),
    };
    check.listeners();
    check.own_listeners();
    check.copies();
    check.cycles();
    check.controls();
    check.mirror_logins();
    check.terminated_logins();
    check.users();
    check.errors
}

struct Check<'a> {
    config: &'a Config,
    places: &'a Places,
    errors: Vec<ConfigError>,
}

/// A pair of databases, one of which gets what the other one got.
struct Copy<'a> {
    from: usize,
    to: usize,
    place: &'a Place,
    word: &'static str,
}

impl<'a> Check<'a> {
    fn refuse(&mut self, place: &Place, problem: impl Into<String>, way_out: impl Into<String>) {
        self.errors.push(ConfigError {
            file: place.file.clone(),
            line: place.line,
            key: place.key.clone(),
            problem: problem.into(),
            way_out: way_out.into(),
        });
    }

    fn name(&self, database: usize) -> &'a str {
        &self.config.databases[database].name
    }

    fn copies_of(&self) -> Vec<Copy<'a>> {
        let mirrors = self.config.mirroring.iter().zip(&self.places.mirroring);
        let duals = self.config.dual_write.iter().zip(&self.places.dual_write);
        mirrors
            .map(|(m, place)| Copy {
                from: m.source,
                to: m.destination,
                place,
                word: "mirror",
            })
            .chain(duals.map(|(d, place)| Copy {
                from: d.primary,
                to: d.secondary,
                place,
                word: "secondary",
            }))
            .collect()
    }

    /// Whether two databases are one and the same place on one server, as far as the texts show it.
    fn same(&self, a: usize, b: usize) -> bool {
        let (x, y) = (&self.config.databases[a], &self.config.databases[b]);
        let nowhere =
            |endpoint: &Endpoint| matches!(endpoint, Endpoint::Tcp { host, .. } if host.is_empty());
        a == b
            || (x.protocol == y.protocol
                && !nowhere(&x.endpoint)
                && x.endpoint.normalised() == y.endpoint.normalised()
                && match x.protocol {
                    Protocol::Postgres => x.database_name == y.database_name,
                    // A Redis client may SELECT, so the number does not keep two entries apart.
                    Protocol::Redis => true,
                })
    }

    fn listeners(&mut self) {
        let config = self.config;
        let places = self.places;
        let bound: Vec<_> = config.listeners.iter().zip(&places.listeners).collect();
        for (index, (listener, place)) in bound.iter().enumerate() {
            let twin = bound[..index]
                .iter()
                .find(|(o, _)| o.address.overlaps(&listener.address));
            if let Some((_, twin)) = twin {
                let at = twin
                    .line
                    .map_or(String::new(), |line| format!(" (line {line})"));
                let problem = format!("another listener{at} has {} too", listener.address);
                self.refuse(place, problem, "give each listener an address of its own");
            }
            if let Some(index) = listener.database {
                let database = &config.databases[index];
                if database.protocol != listener.protocol {
                    let problem = format!(
                        "the listener speaks {} but its database {:?} speaks {}",
                        listener.protocol, database.name, database.protocol
                    );
                    let way_out = format!("write protocol = \"{}\"", database.protocol);
                    self.refuse(place, problem, way_out);
                }
            }
        }
        let (Some(control), Some(place)) = (config.general.control, &places.control) else {
            return;
        };
        let control = super::ListenAddress::Tcp(control);
        if config
            .listeners
            .iter()
            .any(|listener| listener.address.overlaps(&control))
        {
            let problem = format!("a listener has {control} too");
            self.refuse(place, problem, "choose another port or write \"off\"");
        }
    }

    /// A database that is Parhelion itself would forward to itself for ever.
    fn own_listeners(&mut self) {
        for (database, place) in self.config.databases.iter().zip(&self.places.databases) {
            let own = self
                .config
                .listeners
                .iter()
                .find(|l| database.endpoint.reaches(&l.address));
            if let Some(own) = own {
                let problem = format!(
                    "{} is Parhelion's own listener {}",
                    database.endpoint, own.address
                );
                self.refuse(place, problem, "write the address of the database itself");
            }
        }
    }

    fn copies(&mut self) {
        let copies = self.copies_of();
        for (index, copy) in copies.iter().enumerate() {
            let (from, to) = (self.name(copy.from), self.name(copy.to));
            let (source, target) = (
                &self.config.databases[copy.from],
                &self.config.databases[copy.to],
            );
            if self.same(copy.from, copy.to) {
                let problem = if copy.from == copy.to {
                    format!("{to:?} would be a {} of itself", copy.word)
                } else {
                    format!(
                        "{to:?} is the same database as {from:?} ({})",
                        target.endpoint
                    )
                };
                self.refuse(copy.place, problem, "name another database");
                continue;
            }
            if source.protocol != target.protocol {
                let problem = format!(
                    "{to:?} speaks {} but {from:?} speaks {}",
                    target.protocol, source.protocol
                );
                self.refuse(copy.place, problem, "both must speak the same protocol");
            } else if copy.word == "secondary" && source.protocol != Protocol::Redis {
                let problem = format!("{from:?} and {to:?} speak {}", source.protocol);
                let way_out = "dual writes are for Redis; write [[mirroring]] for Postgres";
                self.refuse(copy.place, problem, way_out);
            }
            let before = &copies[..index];
            let twin = |o: &&Copy<'_>| {
                o.word == copy.word
                    && o.from == copy.from
                    && (o.to == copy.to || copy.word == "secondary")
            };
            if let Some(twin) = before.iter().find(twin) {
                let at = twin
                    .place
                    .line
                    .map_or(String::new(), |line| format!(" in line {line}"));
                let problem = format!("{from:?} has {:?}{at} already", self.name(twin.to));
                let way_out = match copy.word {
                    "mirror" => "keep one of the two entries",
                    _ => "a primary has one secondary; write [[mirroring]] for more",
                };
                self.refuse(copy.place, problem, way_out);
            }
            let mirrors = before
                .iter()
                .filter(|o| o.word == "mirror" && o.from == copy.from)
                .count();
            if copy.word == "mirror" && mirrors == MIRRORS_PER_SOURCE_MAX {
                let problem = format!("{from:?} has more than {MIRRORS_PER_SOURCE_MAX} mirrors");
                self.refuse(copy.place, problem, "remove some");
            }
        }
    }

    /// Follows the copies from each destination; the entry that leads back is refused, once per cycle.
    fn cycles(&mut self) {
        let copies = self.copies_of();
        for (index, closing) in copies.iter().enumerate() {
            if self.same(closing.from, closing.to) {
                continue;
            }
            // Only entries up to this one: the last entry of a cycle is the one that closes it.
            if let Some(path) = self.path(&copies[..index], closing.to, closing.from) {
                let mut names: Vec<&str> = vec![self.name(closing.from)];
                names.extend(path.iter().map(|database| self.name(*database)));
                let problem = format!("a mirror cycle: {}", names.join(" -> "));
                let way_out = "remove one of its entries: a mirror must not lead back";
                self.refuse(closing.place, problem, way_out);
            }
        }
    }

    /// The databases on a way from `from` to `to`, both included.
    fn path(&self, copies: &[Copy<'_>], from: usize, to: usize) -> Option<Vec<usize>> {
        let mut came_from: Vec<(usize, Option<usize>)> = vec![(from, None)];
        let mut next = 0;
        while let Some((here, _)) = came_from.get(next).copied() {
            if self.same(here, to) {
                let mut path = vec![here];
                let mut step = came_from[next].1;
                while let Some(index) = step {
                    path.push(came_from[index].0);
                    step = came_from[index].1;
                }
                path.reverse();
                return Some(path);
            }
            for copy in copies.iter().filter(|copy| self.same(copy.from, here)) {
                if !came_from.iter().any(|(seen, _)| *seen == copy.to) {
                    came_from.push((copy.to, Some(next)));
                }
            }
            next += 1;
        }
        None
    }

    /// A source has one control: with two it would not be clear which of them tells what is volatile.
    fn controls(&mut self) {
        let controls = self.config.mirroring.iter().zip(&self.places.mirroring);
        let controls: Vec<_> = controls.filter(|(m, _)| m.control).collect();
        for (at, (mirroring, place)) in controls.iter().enumerate() {
            let before = &controls[..at];
            if before.iter().any(|(m, _)| m.source == mirroring.source) {
                let problem = format!(
                    "\"{}\" is a second control of \"{}\"",
                    self.name(mirroring.destination),
                    self.name(mirroring.source)
                );
                self.refuse(place, problem, "write control = true for one of them");
            }
        }
    }

    /// A Postgres mirror is logged in to by Parhelion itself.
    fn mirror_logins(&mut self) {
        for (mirroring, place) in self.config.mirroring.iter().zip(&self.places.mirroring) {
            let database = &self.config.databases[mirroring.destination];
            if database.protocol != Protocol::Postgres
                || database.user.is_some()
                || self.same(mirroring.source, mirroring.destination)
            {
                continue;
            }
            let mut users = self
                .config
                .users
                .iter()
                .filter(|u| u.database == Some(mirroring.destination));
            let name = &database.name;
            let way_out = format!(
                "write user and password_file in its [[databases]] entry, or \
                 [[users]] with database = \"{name}\" and a password in users.toml"
            );
            if users.clone().next().is_none() {
                self.refuse(
                    place,
                    format!("there is no login for the mirror {name:?}"),
                    way_out,
                );
            } else if users.all(|u| u.password.is_none() && u.scram_verifier.is_some()) {
                let problem =
                    format!("no user of {name:?} has a password; a verifier cannot log in");
                self.refuse(place, problem, way_out);
            }
        }
    }

    /// Where Parhelion checks clients, it must know them and have a login of its own.
    fn terminated_logins(&mut self) {
        for (index, database) in self.config.databases.iter().enumerate() {
            let Some(place) = self.places.auth.get(index) else {
                continue;
            };
            if database.auth != Auth::Terminate {
                continue;
            }
            let users: Vec<_> = self
                .config
                .users
                .iter()
                .filter(|u| u.database == Some(index))
                .collect();
            let name = &database.name;
            let trusts = database.auth_method == AuthMethod::Trust && database.user.is_some();
            if users.is_empty() && trusts {
                continue;
            }
            if users.is_empty() {
                let problem =
                    format!("\"terminate\" needs users, and users.toml has none for {name:?}");
                let way_out = "add [[users]] with a password or scram_verifier";
                self.refuse(place, problem, way_out);
            } else if let Some(user) = users
                .iter()
                .find(|u| u.password.is_none() && u.scram_verifier.is_none())
            {
                let problem = format!(
                    "user {:?} of {name:?} has nothing to be checked by",
                    user.name
                );
                let way_out = "give it a password, password_file or scram_verifier in users.toml";
                self.refuse(place, problem, way_out);
            } else if let Some(user) = users
                .iter()
                .find(|u| u.password.is_none() && database.auth_method == AuthMethod::Md5)
            {
                let problem = format!(
                    "user {:?} of {name:?} has a verifier only, by which md5 cannot be checked",
                    user.name
                );
                let way_out = "give it a password, or remove auth_method = \"md5\"";
                self.refuse(place, problem, way_out);
            } else if let Some(user) = users
                .iter()
                .find(|u| u.password.is_none() && database.user.is_none())
            {
                let problem = format!(
                    "user {:?} has a verifier only, which cannot log in to {name:?}",
                    user.name
                );
                let way_out = "write user and password_file in the [[databases]] entry too";
                self.refuse(place, problem, way_out);
            }
        }
    }

    fn users(&mut self) {
        for (index, (user, place)) in self.config.users.iter().zip(&self.places.users).enumerate() {
            let twin = self.config.users[..index]
                .iter()
                .any(|o| o.name == user.name && o.database == user.database);
            if twin {
                let problem = format!("user {:?} stands there twice for this database", user.name);
                self.refuse(place, problem, "keep one of the two entries");
            }
        }
    }
}

/// What is allowed but worth a line in the log.
pub(crate) fn warn(config: &Config, places: &Places) -> Vec<ConfigError> {
    let databases = config.databases.iter().zip(&places.databases);
    databases
        .filter(|(d, _)| d.password.is_some() && d.protocol == Protocol::Redis)
        .filter(|(d, _)| {
            d.tls == TlsMode::Disable
                && matches!(&d.endpoint, Endpoint::Tcp { .. })
                && !d.endpoint.is_loopback()
        })
        .map(|(d, place)| ConfigError {
            file: place.file.clone(),
            line: place.line,
            key: place.key.clone(),
            problem: format!(
                "the password of {:?} crosses the network in the clear",
                d.name
            ),
            way_out: "write tls = \"require\" if the server takes it".to_owned(),
        })
        .collect()
}
