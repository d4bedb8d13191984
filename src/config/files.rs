//! Reads the files that a configuration consists of or names, with bounds.
//!
//! Never does: put the content of a secret file into an error.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::secret::Secret;
use crate::limits::{CONFIG_FILE_BYTES_MAX, SECRET_FILE_BYTES_MAX};

/// What was in a secret file, and whether others may read it.
pub(super) struct SecretFile {
    pub secret: Secret,
    pub world_readable: bool,
}

/// Reads a whole text file of at most `max` bytes.
fn read_bounded(path: &Path, max: u64) -> io::Result<String> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::Error::other("it is a directory"));
    }
    let mut text = String::new();
    file.take(max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > max {
        return Err(io::Error::other(format!("it is longer than {max} bytes")));
    }
    Ok(text)
}

/// Reads a configuration file.
pub(super) fn read_config(path: &Path) -> io::Result<String> {
    read_bounded(path, CONFIG_FILE_BYTES_MAX)
}

/// Reads a password file; the line end after the password does not belong to it.
pub(super) fn read_secret(path: &Path) -> io::Result<SecretFile> {
    let text = read_bounded(path, SECRET_FILE_BYTES_MAX)?;
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    let secret = secret.strip_suffix('\r').unwrap_or(secret);
    if secret.is_empty() {
        return Err(io::Error::other("it is empty"));
    }
    if secret.contains(['\n', '\0']) {
        return Err(io::Error::other("it holds more than one line"));
    }
    let world_readable = fs::metadata(path)?.permissions().mode() & 0o004 != 0;
    Ok(SecretFile {
        secret: Secret::new(secret),
        world_readable,
    })
}

/// Whether this process can open the file for reading.
pub(super) fn readable(path: &Path) -> io::Result<()> {
    if File::open(path)?.metadata()?.is_dir() {
        return Err(io::Error::other("it is a directory"));
    }
    Ok(())
}

/// A path of the configuration: relative ones start at the folder of the file that names them.
pub(super) fn resolve(base: &Path, path: &str) -> PathBuf {
    base.join(path)
}

/// Whether anybody on the machine may read this file.
pub(super) fn world_readable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o004 != 0)
}
