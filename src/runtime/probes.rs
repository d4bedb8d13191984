//! What must hold on a machine before a core can start, each with the way out if it does not.

use std::fs;
use std::io;

use super::StartError;
use crate::ring::{Ring, RingOptions};

/// The first kernel with all operations that the ring uses.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// glommio locks the memory of its own rings; less than this and it cannot start.
const MEMLOCK_MIN: u64 = 512 * 1024;

/// Descriptors below which a proxy is of little use.
const DESCRIPTORS_MIN: u64 = 1024;

/// Checks kernel, io_uring and limits.
pub(super) fn check() -> Result<(), StartError> {
    kernel()?;
    memlock()?;
    io_uring()?;
    raise_descriptor_limit();
    Ok(())
}

fn kernel() -> Result<(), StartError> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match version(&release) {
        Some(found) if found < KERNEL_MIN => Err(StartError::Machine(format!(
            "the kernel is {}, but the data path needs Linux {}.{} or later: upgrade the kernel of this host",
            release.trim(),
            KERNEL_MIN.0,
            KERNEL_MIN.1
        ))),
        // An unreadable version is no reason to refuse; the ring's own probe decides.
        _ => Ok(()),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn memlock() -> Result<(), StartError> {
    let Ok((soft, hard)) = rlimit::getrlimit(rlimit::Resource::MEMLOCK) else {
        return Ok(());
    };
    if soft >= MEMLOCK_MIN {
        return Ok(());
    }
    rlimit::setrlimit(rlimit::Resource::MEMLOCK, hard.min(MEMLOCK_MIN.max(soft)), hard)
        .ok()
        .filter(|()| hard >= MEMLOCK_MIN)
        .ok_or_else(|| {
            StartError::Machine(format!(
                "the limit of locked memory is {soft} bytes and the executor needs {MEMLOCK_MIN}: raise it \
                 (`ulimit -l`, LimitMEMLOCK= in the systemd unit)"
            ))
        })
}

fn io_uring() -> Result<(), StartError> {
    let small = RingOptions {
        entries: 8,
        slabs: 8,
        slab_size: 4096,
        ..RingOptions::default()
    };
    Ring::new(&small)
        .map(drop)
        .map_err(|error| StartError::Machine(ring_problem(&error, Bars::of_this_process())))
}

/// What may stand between this process and io_uring, as far as it can see.
#[derive(Clone, Copy, Debug, Default)]
struct Bars {
    /// A seccomp filter is in force.
    is_filtered: bool,
    /// The sysctl kernel.io_uring_disabled is there and not 0.
    is_disabled: bool,
}

impl Bars {
    fn of_this_process() -> Bars {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
        Bars {
            is_filtered: status
                .lines()
                .any(|line| line.split_whitespace().eq(["Seccomp:", "2"])),
            is_disabled: !matches!(disabled.trim(), "" | "0"),
        }
    }
}

/// What to tell somebody whose kernel refuses a ring.
fn ring_problem(error: &io::Error, bars: Bars) -> String {
    const SYSCTL: &str = "this host forbids it: set the sysctl kernel.io_uring_disabled=0";
    const SECCOMP: &str = "the seccomp filter of this container or service forbids it: allow io_uring_setup, \
                           io_uring_enter and io_uring_register (tuning/Dockerfile shows how)";
    const EITHER: &str = "it is forbidden to this process: set the sysctl kernel.io_uring_disabled=0, and allow \
                          io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile";
    let way_out = match error.raw_os_error() {
        // A filter answers EPERM (Docker) or ENOSYS (Podman, containerd, systemd) as it likes.
        Some(libc::EPERM | libc::EACCES) => match bars {
            Bars {
                is_disabled: true,
                is_filtered: false,
            } => SYSCTL,
            Bars {
                is_disabled: false,
                is_filtered: true,
            } => SECCOMP,
            _ => EITHER,
        },
        Some(libc::ENOSYS) if bars.is_filtered => SECCOMP,
        Some(libc::ENOSYS) => "this kernel was built without io_uring: use one that has it",
        Some(libc::ENOMEM) => {
            "not enough memory may be locked: raise the limit (`ulimit -l`, LimitMEMLOCK=)"
        }
        Some(libc::EMFILE | libc::ENFILE) => "out of file descriptors: raise `ulimit -n`",
        _ => "the kernel does not know the ring's set-up: Linux 6.1 or later is needed",
    };
    format!("cannot set up io_uring ({error}): {way_out}")
}

/// Raises the limit of open files to the hard limit and warns if that is little.
pub fn raise_descriptor_limit() {
    let raised: io::Result<u64> = rlimit::increase_nofile_limit(u64::MAX);
    match raised {
        Ok(limit) if limit < DESCRIPTORS_MIN => {
            tracing::warn!(
                limit,
                "few files may be open: raise `ulimit -n` or LimitNOFILE="
            );
        }
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_of_the_kernel_names_its_way_out() {
        let said = |code| ring_problem(&io::Error::from_raw_os_error(code), Bars::default());
        for (code, way_out) in [
            (libc::EPERM, "io_uring_disabled"),
            (libc::EACCES, "seccomp"),
            (libc::ENOSYS, "built without io_uring"),
            (libc::ENOMEM, "LimitMEMLOCK"),
            (libc::EMFILE, "ulimit -n"),
            (libc::EINVAL, "Linux 6.1"),
        ] {
            let said = said(code);
            assert!(said.contains(way_out), "{said}");
        }
    }

    #[test]
    fn what_bars_the_way_is_named_and_nothing_else() {
        let (filter, sysctl) = ("seccomp", "io_uring_disabled");
        for (code, is_filtered, is_disabled, named, unnamed) in [
            (libc::ENOSYS, true, false, filter, "built without"),
            (libc::EPERM, true, false, filter, sysctl),
            (libc::EPERM, false, true, sysctl, filter),
        ] {
            let bars = Bars {
                is_filtered,
                is_disabled,
            };
            let said = ring_problem(&io::Error::from_raw_os_error(code), bars);
            assert!(said.contains(named) && !said.contains(unnamed), "{said}");
        }
    }

    #[test]
    fn kernel_versions_are_read_with_any_suffix() {
        assert_eq!(version("6.1.0-13-amd64\n"), Some((6, 1)));
        assert_eq!(version("5.15.167.4-microsoft-standard"), Some((5, 15)));
        assert!(version("6.18.44").unwrap() >= KERNEL_MIN);
        assert!(version("5.19.0").unwrap() < KERNEL_MIN);
        assert_eq!(version(""), None);
    }
}
