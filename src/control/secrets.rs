//! CHAP secrets: one file each, read once, never printed.
//!
//! Knows file modes and lengths. Does not know CHAP.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The shortest secret we take: 96 bits, below which a captured login can be broken offline (RFC 7143, 9.2.1).
pub const SECRET_BYTES_MIN: usize = 12;
/// The longest: what common initiators can be given.
pub const SECRET_BYTES_MAX: usize = 255;

/// The bytes of a CHAP secret; they never appear in logs or errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why a secret cannot be used. The caller adds the file's name.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the secret cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
    #[error("the secret is not a regular file")]
    NotAFile,
    #[error("the secret may be read by every user (mode {mode:03o}): run chmod 600 on it")]
    WorldReadable { mode: u32 },
    #[error("the secret has {0} bytes: it must have {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}")]
    Length(usize),
    #[error("the secret holds a line break or a NUL: it must be one line")]
    Control,
}

/// A secret and whether other users may read its file (only possible when not `strict`).
#[derive(Debug)]
pub struct LoadedSecret {
    pub secret: Secret,
    pub world_readable: bool,
}

/// Reads a secret: the whole file without one final line break.
pub fn load(path: &Path, strict: bool) -> Result<LoadedSecret, SecretError> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(SecretError::NotAFile);
    }
    let mode = metadata.mode() & 0o777;
    let world_readable = mode & 0o007 != 0;
    if strict && world_readable {
        return Err(SecretError::WorldReadable { mode });
    }
    let mut bytes = Vec::new();
    // Two more than the longest: enough to see that it is too long, with a line break or without.
    File::open(path)?.take(SECRET_BYTES_MAX as u64 + 2).read_to_end(&mut bytes)?;
    if bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len()) {
        return Err(SecretError::Length(bytes.len()));
    }
    if bytes.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0)) {
        return Err(SecretError::Control);
    }
    Ok(LoadedSecret { secret: Secret(bytes), world_readable })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(content: &[u8], mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn one_final_line_break_is_not_part_of_the_secret() {
        for content in [&b"twelve bytes"[..], b"twelve bytes\n", b"twelve bytes\r\n"] {
            let loaded = load(file(content, 0o600).path(), true).unwrap();
            assert_eq!(loaded.secret.bytes(), b"twelve bytes");
            assert!(!loaded.world_readable);
        }
    }

    #[test]
    fn too_short_too_long_and_several_lines_are_refused() {
        assert!(matches!(load(file(b"eleven byte\n", 0o600).path(), false), Err(SecretError::Length(11))));
        assert!(matches!(load(file(&[b'x'; 5000], 0o600).path(), false), Err(SecretError::Length(257))));
        assert!(matches!(load(file(b"twelve\n bytes", 0o600).path(), false), Err(SecretError::Control)));
        assert!(matches!(load(Path::new("/"), false), Err(SecretError::NotAFile)));
    }

    #[test]
    fn a_world_readable_secret_is_refused_when_strict_and_reported_otherwise() {
        let open = file(b"twelve bytes", 0o644);
        assert!(matches!(load(open.path(), true), Err(SecretError::WorldReadable { mode: 0o644 })));
        assert!(load(open.path(), false).unwrap().world_readable);
    }

    #[test]
    fn a_secret_does_not_print_itself() {
        let loaded = load(file(b"twelve bytes", 0o600).path(), true).unwrap();
        assert!(!format!("{loaded:?}").contains("twelve"));
    }
}
