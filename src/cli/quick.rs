//! `redis` and `postgres`: a [`Config`] from arguments alone, under the same rules as a file's.

use std::env;
use std::path::Path;

use super::args::{PostgresArgs, QuickArgs, RedisArgs};
use crate::config::{
    Config, ConfigError, ConfigErrors, Database, DualWrite, Endpoint, General, Level,
    ListenAddress, Listener, Mirroring, Protocol, RedisMode, RingConfig, Secret, Sentry, arguments,
};

/// Under which argument each database came, for messages.
struct Draft {
    config: Config,
    keys: Vec<&'static str>,
    errors: Vec<ConfigError>,
}

impl RedisArgs {
    /// The configuration that these arguments mean. Names: `primary`, `secondary`, `mirror-1` …
    ///
    /// # Errors
    /// Everything that is wrong, by argument.
    pub fn to_config(&self, cpus: &[usize]) -> Result<Config, ConfigErrors> {
        let mut draft = Draft::new(&self.common, &self.listen, Protocol::Redis);
        let login = draft.login(&self.common, "PARHELION_PASSWORD");
        let own = draft.secret(
            "--primary-password-file",
            self.primary_password_file.as_deref(),
            "PARHELION_PRIMARY_PASSWORD",
        );
        let primary = draft.database("primary", "--primary", &self.primary, Protocol::Redis);
        draft.config.databases[primary].password = own;
        draft.config.databases[primary].db = self.primary_db;
        if let Some(endpoint) = &self.secondary {
            let secondary = draft.database("secondary", "--secondary", endpoint, Protocol::Redis);
            draft.set_login(secondary, &self.common, &login);
            draft.config.databases[secondary].db = self.secondary_db;
            let mut dual = DualWrite::new(primary, secondary);
            dual.mode = self.mode.unwrap_or(dual.mode);
            dual.exposure = self.common.exposure;
            draft.config.dual_write.push(dual);
        } else if let Some(mode) = self.mode.filter(|mode| *mode != RedisMode::PrimaryOnly) {
            let problem = format!("{mode} needs a second Redis");
            draft.refuse("--mode", problem, "add --secondary HOST:PORT");
        }
        draft.mirrors(&self.common, &self.mirror, Protocol::Redis, &login);
        if matches!(self.common.level, Level::Dml | Level::Ddl) {
            let problem = format!("{} is for Postgres only", self.common.level);
            draft.refuse("--level", problem, "write all, reads or writes");
        }
        draft.finish(cpus)
    }
}

impl PostgresArgs {
    /// The configuration that these arguments mean. Names: `primary`, `mirror-1` …; every client goes to the primary.
    ///
    /// # Errors
    /// Everything that is wrong, by argument.
    pub fn to_config(&self, cpus: &[usize]) -> Result<Config, ConfigErrors> {
        let mut draft = Draft::new(&self.common, &self.listen, Protocol::Postgres);
        let login = draft.login(&self.common, "PARHELION_PASSWORD");
        draft.database("primary", "--primary", &self.primary, Protocol::Postgres);
        draft.mirrors(&self.common, &self.mirror, Protocol::Postgres, &login);
        for database in &mut draft.config.databases {
            database.database_name = self.database.clone().unwrap_or_default();
        }
        if self.common.user.is_none() && !self.mirror.is_empty() {
            let problem = "is missing: a mirror needs a login of its own";
            draft.refuse(
                "--user",
                problem,
                "add --user NAME and --password-file FILE",
            );
        }
        draft.finish(cpus)
    }
}

impl Draft {
    fn new(common: &QuickArgs, listen: &ListenAddress, protocol: Protocol) -> Self {
        let general = General {
            cores: common.cores.clone(),
            control: common.control.0,
            mirror_exposure: common.exposure,
            pace: common.pace,
            log_format: common.log_format,
            divergence_log: common.divergence_log.clone(),
            ..General::default()
        };
        let listener = Listener {
            address: listen.clone(),
            protocol,
            // The primary comes first.
            database: Some(0),
            cores: None,
            tls: None,
        };
        let config = Config {
            general,
            ring: RingConfig::default(),
            listeners: vec![listener],
            databases: Vec::new(),
            mirroring: Vec::new(),
            dual_write: Vec::new(),
            sentry: Sentry::default(),
            users: Vec::new(),
        };
        Self {
            config,
            keys: Vec::new(),
            errors: Vec::new(),
        }
    }

    fn refuse(&mut self, key: &str, problem: impl Into<String>, way_out: impl Into<String>) {
        self.errors.push(arguments::fault(key, problem, way_out));
    }

    fn database(
        &mut self,
        name: &str,
        key: &'static str,
        endpoint: &Endpoint,
        protocol: Protocol,
    ) -> usize {
        self.config
            .databases
            .push(Database::new(name, protocol, endpoint.clone()));
        self.keys.push(key);
        self.config.databases.len() - 1
    }

    /// A password from a file or the environment.
    fn secret(&mut self, key: &str, file: Option<&Path>, variable: &str) -> Option<Secret> {
        let Some(file) = file else {
            return env::var(variable)
                .ok()
                .filter(|text| !text.is_empty())
                .map(Secret::new);
        };
        match arguments::read_secret(file) {
            Ok((secret, warning)) => {
                if let Some(warning) = warning {
                    tracing::warn!("{key}: {warning}");
                }
                Some(secret)
            }
            Err(problem) => {
                let way_out = "name a file that holds the password and nothing else";
                self.refuse(key, problem, way_out);
                None
            }
        }
    }

    fn login(&mut self, common: &QuickArgs, variable: &str) -> Option<Secret> {
        self.secret("--password-file", common.password_file.as_deref(), variable)
    }

    fn set_login(&mut self, database: usize, common: &QuickArgs, password: &Option<Secret>) {
        self.config.databases[database]
            .user
            .clone_from(&common.user);
        self.config.databases[database]
            .password
            .clone_from(password);
    }

    fn mirrors(
        &mut self,
        common: &QuickArgs,
        mirrors: &[Endpoint],
        protocol: Protocol,
        login: &Option<Secret>,
    ) {
        for (index, endpoint) in mirrors.iter().enumerate() {
            let name = format!("mirror-{}", index + 1);
            let mirror = self.database(&name, "--mirror", endpoint, protocol);
            self.set_login(mirror, common, login);
            let mut mirroring = Mirroring::new(0, mirror, &self.config.general);
            mirroring.compare = common.compare;
            mirroring.level = common.level;
            self.config.mirroring.push(mirroring);
        }
    }

    fn finish(mut self, cpus: &[usize]) -> Result<Config, ConfigErrors> {
        self.errors
            .extend(arguments::check(&self.config, &self.keys, cpus));
        // A missing --user is one fault, not one more per mirror.
        let user_missing = self.errors.iter().any(|error| error.key == "--user");
        self.errors
            .retain(|error| !(user_missing && error.problem.contains("no login")));
        if self.errors.is_empty() {
            Ok(self.config)
        } else {
            Err(ConfigErrors(self.errors))
        }
    }
}
