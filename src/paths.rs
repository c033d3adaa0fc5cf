//! Where files of the daemon lie, and the one way to write them. Nothing else joins path names
//! below `state/` or renames files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The folder of everything that the daemon writes.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// Creates the folder and its parts (mode 0700) when missing.
    pub fn open(root: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        for folder in [root.to_owned(), root.join("adapters"), root.join("runs")] {
            builder.create(folder)?;
        }
        // Absolute, because the trainer runs in a folder of its own.
        Ok(Self { root: fs::canonicalize(root)? })
    }
    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// The database.
    pub fn database(&self) -> PathBuf {
        self.root.join("reflectd.db")
    }
    /// Held with `flock` while a daemon owns this folder.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }
    /// The socket, unless configured elsewhere.
    pub fn socket(&self) -> PathBuf {
        self.root.join("reflectd.sock")
    }
    /// A small file for every model and adapter that was tried and was good.
    pub fn probes(&self) -> PathBuf {
        self.root.join("probes")
    }
    /// Folders of the training runs.
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }
    /// Files of one training run.
    pub fn run(&self, run: &str) -> PathBuf {
        self.runs().join(run)
    }
    /// Log-probs of reference policies, a file a policy.
    pub fn references(&self) -> PathBuf {
        self.root.join("references")
    }
    /// The adapter of a promoted generation.
    pub fn adapter(&self, generation: u32) -> PathBuf {
        self.root.join("adapters").join(generation.to_string()).join("adapter.gguf")
    }
}

/// Writes a file so that readers see the old or the new content, also after a power cut:
/// temporary file beside it, fsync, rename, fsync of the folder.
pub fn write_atomic(
    path: &Path,
    write: impl FnOnce(&mut io::BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let result = (|| {
        let mut writer = io::BufWriter::new(File::create(&temporary)?);
        write(&mut writer)?;
        writer.flush()?;
        writer.get_ref().sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    if result.is_err() {
        drop(fs::remove_file(&temporary));
    }
    result
}

/// A file at one moment: another content has another one, if the clock has ticked in between.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// `None` for a file that was changed so lately that the next change might look the same.
    fn of(file: &File) -> io::Result<Option<Self>> {
        use std::os::unix::fs::MetadataExt as _;
        const SETTLED_S: i64 = 2;
        let metadata = file.metadata()?;
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let is_settled = metadata.ctime().saturating_add(SETTLED_S) < now.cast_signed();
        Ok(is_settled.then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            // Nobody can set this one back.
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }))
    }
}

/// The SHA-256 of a file's content, in lower-case hexadecimal. A large model is read once a process:
/// the probe asks, and then the engine.
pub fn sha256(path: &Path) -> io::Result<String> {
    static KNOWN: Mutex<BTreeMap<Stamp, String>> = Mutex::new(BTreeMap::new());
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let file = File::open(path)?;
    let stamp = Stamp::of(&file)?;
    if let Some(sha256) = stamp.and_then(|stamp| known().get(&stamp).cloned()) {
        return Ok(sha256);
    }
    let sha256 = digest(file)?;
    if let Some(stamp) = stamp {
        known().insert(stamp, sha256.clone());
    }
    Ok(sha256)
}

fn digest(mut file: File) -> io::Result<String> {
    use sha2::Digest as _;
    let mut digest = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = io::Read::read(&mut file, &mut buffer)?;
        if n == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&buffer[..n]);
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}
