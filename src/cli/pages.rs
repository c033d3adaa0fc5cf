//! `reflectd pages`: the manual pages and the shells' completions, from the definition of the command
//! line itself. Hidden, because only packages and `make install` ask for it. Called by `cli::run`.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use protocol::exit::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The folder to write to; it is made when missing.
    out: PathBuf,
}

pub(super) fn run(Arguments { out }: &Arguments) -> anyhow::Result<Exit> {
    let write = || {
        fs::create_dir_all(out)?;
        let mut command = super::Arguments::command();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut command, "reflectd", out)?;
        }
        clap_mangen::generate_to(super::Arguments::command(), out)
    };
    write().with_context(|| format!("write manual pages to {}", out.display()))?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_page_and_is_completed() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("pages");
        run(&Arguments { out: out.clone() }).unwrap();
        let read = |name: &str| fs::read_to_string(out.join(name)).expect(name);
        for name in ["reflectd.1", "reflectd-chat.1", "reflectd-judge-calibrate.1"] {
            assert!(read(name).contains(".SH NAME"), "{name}");
        }
        for name in ["reflectd.bash", "_reflectd", "reflectd.fish"] {
            let text = read(name);
            assert!(text.contains("explore") && text.contains("root"), "{name}: {text}");
        }
        let overview = read("reflectd.1");
        assert!(overview.contains("reflectd\\-serve(1)"), "{overview}");
        assert!(overview.contains("REFLECTD_ROOT"), "the environment is told: {overview}");
        for hidden in ["probe", "pages"] {
            assert!(!out.join(format!("reflectd-{hidden}.1")).exists(), "{hidden} is ours alone");
        }
    }
}
