//! The listening socket: systemd's when it brings one, else our own at a path.
//! Called by `daemon` while it holds the state lock, so that a socket file that lies there is stale.

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::net::UnixListener;

use super::StartError;

/// Only the owner.
const OWN: u32 = 0o600;
/// Everybody may knock; `SO_PEERCRED` against `allow_uids` decides. With 0600 the kernel would
/// refuse the very users that are allowed.
const SHARED: u32 = 0o666;

/// Removes the socket file when dropped, unless systemd owns it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: Option<PathBuf>,
}

impl fmt::Display for SocketFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => path.display().fmt(formatter),
            None => formatter.write_str("from systemd"),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Gone already is as good.
            drop(fs::remove_file(path));
        }
    }
}

/// Opens the socket. `is_shared`: others than the owner are let in.
pub(super) fn open(
    path: PathBuf,
    is_shared: bool,
) -> Result<(UnixListener, SocketFile), StartError> {
    let opened = match inherited() {
        Ok(Some(listener)) => return Ok((listener, SocketFile { path: None })),
        Ok(None) => bind(&path, if is_shared { SHARED } else { OWN }),
        Err(error) => Err(error),
    };
    match opened {
        Ok(listener) => Ok((listener, SocketFile { path: Some(path) })),
        Err(source) => Err(StartError::Socket { path, source }),
    }
}

fn inherited() -> io::Result<Option<UnixListener>> {
    let Some(listener) = ListenFd::from_env().take_unix_listener(0)? else { return Ok(None) };
    // The trainer must not inherit it.
    fcntl_setfd(&listener, FdFlags::CLOEXEC)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener).map(Some)
}

fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
        // Anything else is somebody's file, and binding says so.
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_ours_goes_with_us() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (_listener, socket) = open(path.clone(), false).unwrap();
        assert_eq!(mode(&path), OWN);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(fs::File::create(&path).unwrap());
        assert!(matches!(open(path.clone(), false), Err(StartError::Socket { .. })));
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_shared_socket_lets_others_knock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (_listener, _socket) = open(path.clone(), true).unwrap();
        assert_eq!(mode(&path), SHARED);
    }
}
