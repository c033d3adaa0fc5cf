//! Where the daemon's socket lies and in which order clients look for it: the only place of this
//! rule. It reads no configuration and opens nothing. Used by `cli`, for the daemon and for clients.
//!
//! 1. `--socket` (`REFLECTD_SOCKET`), else `server.socket`. Where one of them is set, nothing else counts.
//! 2. `$RUNTIME_DIRECTORY/reflectd.sock`: systemd sets it for a unit with `RuntimeDirectory=`.
//! 3. `$XDG_RUNTIME_DIR/reflectd/reflectd.sock`, when no folder is named, or the one of the user's
//!    service.
//! 4. `reflectd.sock` in the state folder.
//! 5. `/run/reflectd/reflectd.sock`, for clients alone, when no folder is named, or one of the system
//!    service.
//!
//! The daemon listens on the first of them; a client asks the first one where somebody answers.
//! A daemon whose folders are named with `--root` or `--state` keeps its socket in its state folder,
//! because two such daemons must not meet in the one runtime folder of their user.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Its name, wherever it lies.
const FILE: &str = "reflectd.sock";
/// The folders of the system service (`packaging/systemd/system/reflectd.service`).
const SYSTEM_ROOT: &str = "/etc/reflectd";
const SYSTEM_STATE: &str = "/var/lib/reflectd";
const SYSTEM_RUNTIME: &str = "/run/reflectd";

/// Folders that were named and those that the environment gives.
#[derive(Debug, Default)]
pub struct SocketPath {
    /// The one that was named; then it is the only one.
    named: Option<PathBuf>,
    /// Folders that come before the state folder.
    before: Vec<PathBuf>,
    /// Folders that come after it, for clients.
    after: Vec<PathBuf>,
}

impl SocketPath {
    /// From `--socket`, `--root` and `--state` as far as they were given, and this process's
    /// environment.
    pub fn new(named: Option<PathBuf>, root: Option<&Path>, state: Option<&Path>) -> Self {
        Self::with(named, root, state, |name| env::var_os(name))
    }

    fn with(
        named: Option<PathBuf>,
        root: Option<&Path>,
        state: Option<&Path>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Self {
        let none_named = root.is_none() && state.is_none();
        let home = |name: &str, below_home: &str| {
            let base = variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
            let base = base.or_else(|| Some(PathBuf::from(variable("HOME")?).join(below_home)));
            base.map(|base| base.join("reflectd"))
        };
        let is = |named: Option<&Path>, folder: Option<PathBuf>| {
            named.is_some_and(|named| folder.is_some_and(|folder| named == folder))
        };
        let is_users = is(root, home("XDG_CONFIG_HOME", ".config"))
            || is(state, home("XDG_STATE_HOME", ".local/state"));
        let is_systems = is(root, Some(SYSTEM_ROOT.into())) || is(state, Some(SYSTEM_STATE.into()));

        // A unit may have several runtime folders; the first is the daemon's.
        let service = variable("RUNTIME_DIRECTORY")
            .and_then(|folders| env::split_paths(&folders).next())
            .filter(|folder| folder.is_absolute());
        let user = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
        let user = user.filter(|folder| (none_named || is_users) && is_own(folder));
        Self {
            named,
            before: service.into_iter().chain(user.map(|it| it.join("reflectd"))).collect(),
            after: if none_named || is_systems { vec![SYSTEM_RUNTIME.into()] } else { Vec::new() },
        }
    }

    /// Where the daemon listens.
    pub fn of_daemon(&self, configured: Option<&Path>, state: &Path) -> PathBuf {
        let folder = self.before.first().map_or(state, |folder| folder);
        self.one(configured).unwrap_or_else(|| folder.join(FILE))
    }

    /// Where clients look, in this order; never empty.
    pub fn of_clients(&self, configured: Option<&Path>, state: &Path) -> Vec<PathBuf> {
        if let Some(path) = self.one(configured) {
            return vec![path];
        }
        let folders = self.before.iter().map(PathBuf::as_path);
        let folders = folders.chain([state]).chain(self.after.iter().map(PathBuf::as_path));
        folders.map(|folder| folder.join(FILE)).collect()
    }

    fn one(&self, configured: Option<&Path>) -> Option<PathBuf> {
        self.named.clone().or_else(|| configured.map(Path::to_owned))
    }
}

/// After `su` or `sudo -E` the variable names the folder of another user, where root could write
/// and nobody would look.
fn is_own(folder: &Path) -> bool {
    let is_mine = |it: &fs::Metadata| it.uid() == rustix::process::geteuid().as_raw();
    folder.is_absolute() && fs::metadata(folder).is_ok_and(|it| it.is_dir() && is_mine(&it))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = "/s";

    /// A user's runtime folder, which has to exist, and the variables of a session in it.
    struct Session(tempfile::TempDir);

    impl Session {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }
        fn runtime(&self) -> String {
            self.0.path().to_str().unwrap().to_owned()
        }
        fn path(&self, root: Option<&str>, state: Option<&str>) -> SocketPath {
            let more = [("XDG_RUNTIME_DIR", self.runtime()), ("HOME", "/users/me".to_owned())];
            path(None, root, state, &more)
        }
    }

    fn path(
        named: Option<&str>,
        root: Option<&str>,
        state: Option<&str>,
        variables: &[(&str, String)],
    ) -> SocketPath {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        };
        SocketPath::with(named.map(Into::into), root.map(Path::new), state.map(Path::new), variable)
    }

    fn daemon(path: &SocketPath) -> String {
        path.of_daemon(None, Path::new(STATE)).to_str().unwrap().to_owned()
    }

    fn clients(path: &SocketPath) -> Vec<String> {
        let paths = path.of_clients(None, Path::new(STATE));
        paths.iter().map(|path| path.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_named_socket_is_the_only_one_and_a_configured_one_comes_next() {
        let variables = [("RUNTIME_DIRECTORY", "/run/x".to_owned())];
        let configured = Some(Path::new("/c"));
        let named = path(Some("/n"), None, None, &variables);
        assert_eq!(named.of_daemon(configured, Path::new(STATE)), Path::new("/n"));
        assert_eq!(named.of_clients(configured, Path::new(STATE)), [Path::new("/n")]);
        let unnamed = path(None, None, None, &variables);
        assert_eq!(unnamed.of_daemon(configured, Path::new(STATE)), Path::new("/c"));
        assert_eq!(unnamed.of_clients(configured, Path::new(STATE)), [Path::new("/c")]);
    }

    #[test]
    fn a_service_has_it_in_its_runtime_folder_whatever_folders_are_named() {
        let variables = [("RUNTIME_DIRECTORY", "/run/reflectd:/run/other".to_owned())];
        let service = path(None, Some("/etc/reflectd"), Some("/var/lib/reflectd"), &variables);
        assert_eq!(daemon(&service), "/run/reflectd/reflectd.sock");
        // Of a user's manager both are there.
        let session = Session::new();
        let both = [
            ("RUNTIME_DIRECTORY", "/run/user/7/reflectd".to_owned()),
            ("XDG_RUNTIME_DIR", session.runtime()),
        ];
        let user = path(None, None, None, &both);
        assert_eq!(daemon(&user), "/run/user/7/reflectd/reflectd.sock");
        assert_eq!(clients(&user)[0], "/run/user/7/reflectd/reflectd.sock");
        for relative in ["", "reflectd"] {
            let variables = [("RUNTIME_DIRECTORY", relative.to_owned())];
            assert_eq!(daemon(&path(None, None, None, &variables)), "/s/reflectd.sock");
        }
    }

    #[test]
    fn who_names_no_folder_has_it_in_the_users_runtime_folder() {
        let session = Session::new();
        let unnamed = session.path(None, None);
        let users = format!("{}/reflectd/reflectd.sock", session.runtime());
        assert_eq!(daemon(&unnamed), users);
        let all = [&users, "/s/reflectd.sock", "/run/reflectd/reflectd.sock"];
        assert_eq!(clients(&unnamed), all);
    }

    #[test]
    fn two_daemons_with_folders_of_their_own_never_meet() {
        let session = Session::new();
        for named in [session.path(Some("/r"), None), session.path(None, Some(STATE))] {
            assert_eq!(daemon(&named), "/s/reflectd.sock");
            assert_eq!(clients(&named), ["/s/reflectd.sock"]);
        }
    }

    #[test]
    fn the_folders_of_the_packaged_services_lead_to_their_sockets() {
        let session = Session::new();
        let users = format!("{}/reflectd/reflectd.sock", session.runtime());
        for (root, state) in [
            (Some("/users/me/.config/reflectd"), None),
            (None, Some("/users/me/.local/state/reflectd")),
        ] {
            assert_eq!(clients(&session.path(root, state)), [&users, "/s/reflectd.sock"]);
        }
        for (root, state) in [(Some("/etc/reflectd"), None), (None, Some("/var/lib/reflectd"))] {
            let found = clients(&session.path(root, state));
            assert_eq!(found, ["/s/reflectd.sock", "/run/reflectd/reflectd.sock"]);
        }
    }

    #[test]
    fn a_runtime_folder_of_somebody_else_does_not_count() {
        // It is root's, or, where the test runs as root, it is not there.
        let foreign = if rustix::process::geteuid().is_root() { "/nonexistent" } else { "/run" };
        for foreign in [foreign, "relative", ""] {
            let variables = [("XDG_RUNTIME_DIR", foreign.to_owned())];
            assert_eq!(
                daemon(&path(None, None, None, &variables)),
                "/s/reflectd.sock",
                "{foreign}"
            );
        }
    }
}
