//! What a server is made from: the installed programs, and a data folder that `initdb` made once and each server copies.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use super::{PostgresOptions, SUPERUSER, UserAuth};
use crate::testing::process::{
    Output, Process, RunAs, am_root, find_program, is_executable, user_by_name,
};
use crate::testing::redis::tail;

#[derive(Debug, Clone)]
pub(super) struct Tools {
    pub(super) folder: PathBuf,
    pub(super) run_as: Option<RunAs>,
}

/// The newest installation under /usr/lib/postgresql, else whatever is on PATH.
pub(super) fn find_tools() -> io::Result<Tools> {
    let run_as = if am_root() {
        let user = user_by_name("postgres").or_else(|| user_by_name("nobody"));
        Some(user.ok_or_else(|| {
            io::Error::other("postgres does not run as root, and there is no user for it")
        })?)
    } else {
        None
    };
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin"),
            ))
        })
        .filter(|(_, folder)| is_executable(&folder.join("initdb")))
        .collect();
    versions.sort();
    let newest = versions.pop().map(|(_, folder)| folder);
    let folder = newest.or_else(|| find_program("initdb")?.parent().map(Path::to_path_buf));
    let folder = folder.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no Postgres server found: run tests/setup",
        )
    })?;
    Ok(Tools { folder, run_as })
}

pub(super) fn configure(
    folder: &Path,
    options: &PostgresOptions,
    run_as: Option<RunAs>,
) -> io::Result<()> {
    let data = folder.join("data");
    let mut settings = String::from(
        "fsync = off\nfull_page_writes = off\nautovacuum = off\n\
         max_connections = 200\nshared_buffers = 64MB\nmax_wal_senders = 4\n\
         log_line_prefix = '%m [%p] %q%u@%d/%a '\nlogging_collector = off\n",
    );
    if options.log_statements {
        settings.push_str("log_statement = all\nlog_lock_waits = on\ndeadlock_timeout = 200ms\n");
    }
    for (key, value) in &options.settings {
        settings.push_str(&format!("{key} = '{}'\n", value.replace('\'', "''")));
    }
    let mut access = String::new();
    for user in options
        .users
        .iter()
        .filter(|user| user.auth != UserAuth::Trust)
    {
        let (name, method) = (&user.name, user.auth.method());
        access.push_str(&format!(
            "local all \"{name}\" {method}\nhost all \"{name}\" 127.0.0.1/32 {method}\n"
        ));
    }
    access.push_str("local all all trust\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n");
    let conf = data.join("postgresql.conf");
    let mut text = fs::read_to_string(&conf)?;
    text.push_str(&settings);
    for (path, text) in [(conf, text), (data.join("pg_hba.conf"), access)] {
        fs::write(&path, text)?;
        give_to(&path, run_as)?;
    }
    Ok(())
}

/// The folder with `initdb`'s result. Built aside and moved into place by one rename, so that test processes that
/// start at once do not see a half-made one.
pub(super) fn template(tools: &Tools) -> io::Result<&'static Path> {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = TEMPLATE.get() {
        return Ok(path);
    }
    let uid = tools
        .run_as
        .map_or_else(|| rustix::process::geteuid().as_raw(), |user| user.uid);
    let installation = tools.folder.to_string_lossy().replace('/', "-");
    let place = std::env::temp_dir().join(format!("parhelion-initdb-{uid}{installation}"));
    if !is_ours(&place, uid) {
        let aside = tempfile::Builder::new()
            .prefix("parhelion-initdb-")
            .tempdir()?;
        give_to(aside.path(), tools.run_as)?;
        let data = aside.path().join("data");
        init_db(tools, &data)?;
        // Losing the race is as good as winning it.
        let _ = fs::rename(&data, &place);
        if !is_ours(&place, uid) {
            return Err(io::Error::other(format!(
                "{} is not usable: remove it",
                place.display()
            )));
        }
    }
    Ok(TEMPLATE.get_or_init(|| place))
}

/// A folder that another user has put there is not trusted.
fn is_ours(place: &Path, uid: u32) -> bool {
    fs::symlink_metadata(place)
        .is_ok_and(|meta| meta.is_dir() && meta.uid() == uid && meta.mode() & 0o077 == 0)
        && place.join("PG_VERSION").exists()
}

fn init_db(tools: &Tools, data: &Path) -> io::Result<()> {
    let log_path = data.with_extension("log");
    let log = File::create(&log_path)?;
    let mut command = Command::new(tools.folder.join("initdb"));
    command.args([
        "-A",
        "trust",
        "-U",
        SUPERUSER,
        "-E",
        "UTF8",
        "--locale=C",
        "--no-sync",
        "-D",
    ]);
    command.arg(data).current_dir("/");
    let mut process = Process::spawn(command, Output::File(log), tools.run_as)?;
    match process.wait_exit(Duration::from_secs(120)) {
        Some(status) if status.success() => Ok(()),
        other => Err(io::Error::other(format!(
            "initdb: {other:?}\n{}",
            tail(&log_path)
        ))),
    }
}

pub(super) fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let status = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(from)
        .arg(to)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("cp: {status}")))
    }
}

pub(super) fn give_to(path: &Path, run_as: Option<RunAs>) -> io::Result<()> {
    if let Some(run_as) = run_as {
        chown(path, Some(run_as.uid), Some(run_as.gid))?;
    }
    if path.is_dir() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}
