//! Who is at the other end of the socket, as the kernel reports it (`SO_PEERCRED`); what a client
//! says does not count. Root and the daemon's own user may always connect, others when
//! `server.allow_uids` names them. Used by the router's outermost layer.

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::net::UnixListener;

use super::error::ApiError;

/// The user at the other end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    /// `None`: the kernel did not say, which lets nobody in.
    uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self { uid: stream.io().peer_cred().ok().map(|credentials| credentials.uid()) }
    }
}

impl Peer {
    /// Refuses users that the configuration does not name.
    pub(super) fn check(self, allow_uids: &[u32]) -> Result<(), ApiError> {
        let own = rustix::process::geteuid().as_raw();
        match self.uid {
            Some(uid) if uid == 0 || uid == own || allow_uids.contains(&uid) => Ok(()),
            Some(uid) => Err(ApiError::UidNotAllowed(uid)),
            None => Err(ApiError::UidNotAllowed(u32::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNNAMED: u32 = 4_000_000_001;

    #[test]
    fn root_and_the_own_user_come_in() {
        let own = rustix::process::geteuid().as_raw();
        Peer { uid: Some(0) }.check(&[]).unwrap();
        Peer { uid: Some(own) }.check(&[]).unwrap();
    }

    #[test]
    fn another_user_comes_in_only_when_named() {
        Peer { uid: Some(UNNAMED) }.check(&[]).unwrap_err();
        Peer { uid: Some(UNNAMED) }.check(&[UNNAMED]).unwrap();
        Peer { uid: None }.check(&[UNNAMED]).unwrap_err();
    }
}
