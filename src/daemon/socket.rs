//! The listening socket: systemd's when it brings one, else our own at a path. A socket file that
//! lies there is replaced when nobody answers on it. Called by `daemon`.

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::net::UnixListener;

use super::StartError;

/// Only the owner.
const OWN: u32 = 0o600;
/// Every user may connect, and `SO_PEERCRED` is compared with `allow_uids`. With mode 0600 the
/// kernel would refuse the users that the configuration allows.
const SHARED: u32 = 0o666;

/// Removes the socket file when dropped, unless systemd or another daemon owns it by then.
#[derive(Debug)]
pub(super) struct SocketFile {
    /// With its device and inode.
    file: Option<(PathBuf, (u64, u64))>,
}

impl fmt::Display for SocketFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some((path, _)) => path.display().fmt(formatter),
            None => formatter.write_str("from systemd"),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some((path, inode)) = &self.file
            && inode_of(path).is_ok_and(|found| found == *inode)
        {
            // A socket file that is gone already is no error.
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
        Ok(Some(listener)) => return Ok((listener, SocketFile { file: None })),
        Ok(None) => bind(&path, if is_shared { SHARED } else { OWN }),
        Err(error) => Err(error),
    };
    let opened = opened.and_then(|listener| Ok((listener, inode_of(&path)?)));
    match opened {
        Ok((listener, inode)) => Ok((listener, SocketFile { file: Some((path, inode)) })),
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
        Ok(found) if found.file_type().is_socket() => {
            if UnixStream::connect(path).is_ok() {
                let words = "another daemon answers there; stop it, or name another socket with \
                             --socket or other folders with --root";
                return Err(io::Error::new(io::ErrorKind::AddrInUse, words));
            }
            fs::remove_file(path)?;
        }
        // `reflectd` in a user's runtime folder is gone after each log-out.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(path);
            if !folder.as_os_str().is_empty() && !folder.exists() {
                fs::DirBuilder::new().mode(0o700).create(folder)?;
            }
        }
        // Any other kind of file is left alone, and binding reports it.
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(listener)
}

fn inode_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|it| (it.dev(), it.ino()))
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
    async fn a_socket_that_another_daemon_answers_on_stays_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (_listener, first) = open(path.clone(), false).unwrap();
        let StartError::Socket { source, .. } = open(path.clone(), false).unwrap_err() else {
            panic!("another error");
        };
        assert_eq!(source.kind(), io::ErrorKind::AddrInUse);
        assert!(source.to_string().contains("--socket"), "{source}");
        // Another daemon has put its socket under this name.
        fs::remove_file(&path).unwrap();
        let (_later_listener, later) = open(path.clone(), false).unwrap();
        drop(first);
        assert!(path.exists(), "it is the later one's");
        drop(later);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_folder_of_a_runtime_folder_is_made_for_the_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reflectd/s");
        let (_listener, _socket) = open(path.clone(), false).unwrap();
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        let deeper = folder.path().join("a/b/s");
        assert!(open(deeper, false).is_err(), "one folder only: a typing error is told");
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
