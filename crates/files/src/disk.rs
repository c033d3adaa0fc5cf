//! The one way to write files and folders, and to hash them. Nothing else renames files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

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

/// What [`write_folder`] does with a folder that is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Existing {
    /// It is an error.
    Keep,
    /// The new one takes its place in one step, and then it is removed.
    Replace,
}

/// Makes a folder so that it is there whole or not at all, also after a power cut: `fill` writes
/// into a temporary one beside it, every file is synced, then it gets its name. After an error
/// nothing is left.
pub fn write_folder<E: From<io::Error>>(
    path: &Path,
    existing: Existing,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let name = name.to_string_lossy();
    let temporary = parent.join(format!(".{name}.{}.tmp", std::process::id()));
    fs::create_dir(&temporary)?;
    let result = fill(&temporary).and_then(|()| {
        for entry in fs::read_dir(&temporary)? {
            File::open(entry?.path())?.sync_all()?;
        }
        File::open(&temporary)?.sync_all()?;
        rename_folder(&temporary, path, existing)?;
        Ok(File::open(parent)?.sync_all()?)
    });
    // What is left under this name: a failed attempt, or the folder that was replaced.
    if temporary.exists()
        && let Err(error) = fs::remove_dir_all(&temporary)
        && result.is_ok()
    {
        return Err(error.into());
    }
    result
}

/// Afterwards `from` is gone, or is what was at `to`.
fn rename_folder(from: &Path, to: &Path, existing: Existing) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let rename = |flags| renameat_with(CWD, from, CWD, to, flags);
    let taken = match rename(RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::EXIST) if existing == Existing::Replace => {
            rename(RenameFlags::EXCHANGE)
        }
        result => result,
    };
    match taken {
        // A file system without these flags: in two steps, of which a crash may see the first.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            if existing == Existing::Replace && to.exists() {
                fs::remove_dir_all(to)?;
            }
            fs::rename(from, to)
        }
        result => Ok(result?),
    }
}

/// Gives a file or a folder a new name, which must not be taken.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system without this flag: a file that gets the name between check and rename is
        // lost.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            match fs::symlink_metadata(to) {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
                Err(error) => Err(error),
            }
        }
        result => Ok(result?),
    }
}

/// Identifies a file's content. A change of the content changes the stamp once the file system's
/// clock has moved on.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// `None` for a file that was changed so lately that another change could have the same time.
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
            // The time of the last change of the inode, because programs cannot set it.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(content: &str) -> impl FnOnce(&Path) -> io::Result<()> {
        let content = content.to_owned();
        move |folder| {
            let mut file = File::create(folder.join("file"))?;
            file.write_all(content.as_bytes())
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_folder_is_there_whole_or_not_at_all() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("out");
        let failing = |folder: &Path| {
            fill("half")(folder)?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        };
        let error = write_folder(&path, Existing::Keep, failing).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(names(scratch.path()).is_empty());

        write_folder(&path, Existing::Keep, fill("one")).unwrap();
        let error = write_folder(&path, Existing::Keep, fill("two")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(path.join("file")).unwrap(), b"one");

        write_folder(&path, Existing::Replace, failing).unwrap_err();
        assert_eq!(fs::read(path.join("file")).unwrap(), b"one", "what was there is still there");
        write_folder(&path, Existing::Replace, fill("two")).unwrap();
        assert_eq!(fs::read(path.join("file")).unwrap(), b"two");
        assert_eq!(names(scratch.path()), ["out"]);
    }
}
