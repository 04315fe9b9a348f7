//! The built program, run as an administrator would.
//!
//! Knows how to start it and what it said. The modules `cli_*` say what it should do.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder in which commands run, so that messages show relative paths.
pub struct Desk {
    folder: tempfile::TempDir,
    /// Where servers of this desk keep their journals.
    runtime: PathBuf,
}

/// What a command did.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// What killed servers still hold is not deleted under them: the kernel would free it where it closes files for everybody,
/// one after another, and large ones would keep the next server waiting for its images.
impl Drop for Desk {
    fn drop(&mut self) {
        let is_held = |path: PathBuf| {
            let file = std::fs::File::open(path);
            file.is_ok_and(|file| matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
        };
        let mut looks = 0;
        while looks < 500 && self.names().into_iter().any(|name| is_held(self.path(&name))) {
            looks += 1;
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Desk {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { runtime: folder.path().join("runtime"), folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_goldrush"));
        command
            .env("GOLDRUSH_RUNTIME_DIR", &self.runtime)
            .current_dir(self.folder.path())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs `goldrush` with the words of `line`.
    pub fn goldrush(&self, line: &str) -> Said {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        said(self.command(&arguments).output().unwrap())
    }

    /// Runs it and expects success.
    #[track_caller]
    pub fn goldrush_ok(&self, line: &str) -> String {
        let said = self.goldrush(line);
        assert!(said.code == 0, "goldrush {line}: {said:?}");
        said.out
    }

    pub fn names(&self) -> Vec<String> {
        names(self.folder.path())
    }
}

/// The files of a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn said(output: Output) -> Said {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}
