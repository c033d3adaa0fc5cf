//! A text as a person leaves it in their editor (`$VISUAL`, `$EDITOR`, `vi`). Used by `feedback`.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

/// Opens the text and waits until the editor has ended.
pub(super) fn edited(text: &str) -> anyhow::Result<String> {
    let chosen = ["VISUAL", "EDITOR"].into_iter().find_map(|name| env::var(name).ok());
    edited_with(chosen.as_deref().unwrap_or("vi"), text)
}

/// `editor` may have arguments, as in `code --wait`.
fn edited_with(editor: &str, text: &str) -> anyhow::Result<String> {
    let path = env::temp_dir().join(format!("reflectd-answer-{}.txt", std::process::id()));
    // A file of that name, or a link that somebody else has put there, is not touched.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("create {}", path.display()))?;
    let text = file.write_all(text.as_bytes()).context("write the answer").and_then(|()| {
        run(editor, &path)?;
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    });
    let removed = fs::remove_file(&path).with_context(|| format!("remove {}", path.display()));
    text.and_then(|text| removed.map(|()| text))
}

fn run(editor: &str, path: &Path) -> anyhow::Result<()> {
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(path)
        .status()
        .context("start a shell for the editor")?;
    ensure!(status.success(), "the editor `{editor}` ended with {status}: nothing was stored");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_the_editor_leaves_and_the_file_goes_in_any_case() {
        let text = edited_with("sed -i s/five/four/", "it is five").unwrap();
        assert_eq!(text, "it is four");
        let refused = edited_with("false", "it is five").unwrap_err();
        assert!(refused.to_string().contains("`false`"), "{refused}");
        // The name is free again.
        edited_with("true", "").unwrap();
    }
}
