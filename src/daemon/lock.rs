//! One daemon a state folder: an advisory lock that the kernel gives back however we end.
//! Used by `daemon` before it touches anything else there.

use std::fs::File;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::StartError;
use crate::paths::StateDir;

/// Holds the lock until it is dropped. The file is never removed, because two daemons could then
/// lock two files of the same name.
#[derive(Debug)]
pub(super) struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes the lock or says that another daemon has it.
    pub(super) fn take(state: &StateDir) -> Result<Self, StartError> {
        let path = state.root().to_owned();
        let file = match File::create(state.lock()) {
            Ok(file) => file,
            Err(source) => return Err(StartError::State { path, source }),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(Errno::WOULDBLOCK) => Err(StartError::Locked { path }),
            Err(errno) => Err(StartError::State { path, source: errno.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_lock_of_a_folder_is_refused_until_the_first_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let first = StateLock::take(&state).unwrap();
        assert!(matches!(StateLock::take(&state), Err(StartError::Locked { .. })));
        drop(first);
        StateLock::take(&state).unwrap();
    }
}
