//! Which login of a mirror runs a client's units.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::{Config, Database, Secret};
use crate::proxy::postgres::Identity;

/// How logins of clients and of the mirror belong together.
#[derive(Default)]
pub(super) struct Logins {
    /// The config that `clients` was made with.
    config: Option<Arc<Config>>,
    /// Who clients are, and which login serves them.
    clients: HashMap<Rc<Identity>, usize>,
    /// User and database of the mirror; their index is the pool's name for the login.
    pub(super) servers: Vec<(String, String)>,
}

impl Logins {
    /// The index of the login for this client.
    pub(super) fn of(
        &mut self,
        config: &Arc<Config>,
        mirror: &Database,
        who: &Rc<Identity>,
    ) -> usize {
        let same = |known: &Arc<Config>| Arc::ptr_eq(known, config);
        if !self.config.as_ref().is_some_and(same) {
            self.config = Some(config.clone());
            self.clients.clear();
        }
        if let Some(known) = self.clients.get(who) {
            return *known;
        }
        let (user, _, name) = credentials(config, mirror, who);
        let mut servers = self.servers.iter();
        let known = servers.position(|(u, n)| u == user && n == name);
        let index = known.unwrap_or_else(|| {
            self.servers.push((user.to_owned(), name.to_owned()));
            self.servers.len() - 1
        });
        self.clients.insert(who.clone(), index);
        index
    }
}

/// The login that runs this client's units: by users.toml, else the mirror's own, else the client's name without a password.
pub(super) fn credentials<'a>(
    config: &'a Config,
    mirror: &'a Database,
    who: &'a Identity,
) -> (&'a str, Option<&'a Secret>, &'a str) {
    let login = config
        .database_index(&mirror.name)
        .and_then(|index| config.backend_login(index, &who.user));
    let name = match mirror.database_name.as_str() {
        "" => who.database.as_str(),
        name => name,
    };
    match login {
        Some(login) => (login.user, login.password, name),
        None => (&who.user, None, name),
    }
}
