//! The opt-in watch over the config files: tells when one of them was written, replaced or re-linked.
//!
//! It watches the folders, because editors and Kubernetes put a new file in the old one's place. It reads nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64;

use super::serve::ConfigFiles;

/// Quiet time after a change before it is told: a file that is written in pieces is read once.
const SETTLE: Duration = Duration::from_millis(300);

/// A running watch; it ends when dropped.
pub(super) struct Watch {
    _watcher: RecommendedWatcher,
    changes: mpsc::Receiver<()>,
    files: Vec<PathBuf>,
    seen: Vec<u64>,
}

impl Watch {
    /// Watches the folders of these files.
    pub(super) fn start(files: &ConfigFiles) -> io::Result<Watch> {
        let (tell, changes) = mpsc::channel(1);
        // What is full has been told already.
        let on_event = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = tell.try_send(());
            }
        };
        let mut watcher = notify::recommended_watcher(on_event).map_err(io::Error::other)?;
        let mut folders: Vec<PathBuf> = Vec::new();
        let files = watched(files);
        for file in &files {
            let folder = match file.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            if !folders.iter().any(|known| known == folder) {
                folders.push(folder.to_owned());
            }
        }
        for folder in &folders {
            watcher
                .watch(folder, RecursiveMode::NonRecursive)
                .map_err(io::Error::other)?;
        }
        Ok(Watch {
            _watcher: watcher,
            changes,
            seen: digests(&files),
            files,
        })
    }

    /// Resolves when a file has changed and settled; false when the watch has ended. Not to be dropped half-way.
    pub(super) async fn changed(&mut self) -> bool {
        loop {
            if self.changes.recv().await.is_none() {
                return false;
            }
            tokio::time::sleep(SETTLE).await;
            while self.changes.try_recv().is_ok() {
                tokio::time::sleep(SETTLE).await;
            }
            let now = digests(&self.files);
            if std::mem::replace(&mut self.seen, now.clone()) != now {
                return true;
            }
        }
    }
}

/// What the files hold now. A reload puts the file in force and undoes what was set by hand since: a file that was
/// only touched, or another one in the folder, is no reason for that.
fn digests(files: &[PathBuf]) -> Vec<u64> {
    let read = |file: &PathBuf| std::fs::read(file).map_or(0, |bytes| xxh3_64(&bytes));
    files.iter().map(read).collect()
}

/// The files that a reload reads: a `users.toml` beside the config is one, even if it is not there yet.
fn watched(files: &ConfigFiles) -> Vec<PathBuf> {
    let config = files.config.iter().cloned();
    let beside = || Some(files.config.as_ref()?.with_file_name("users.toml"));
    config.chain(files.users.clone().or_else(beside)).collect()
}
