//! Where a child says its parent is.
//!
//! Knows what a path in an image file claims, whatever the format. Does not know the file system: a path from here is
//! a claim of an untrusted file, and the caller decides whether, and below which folder, it is followed.

/// Which claim a candidate comes from, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParentOrigin {
    Relative,
    Absolute,
    Url,
    /// A bare name: the VHD header's "parent unicode name", the end of a VHDX volume path.
    Name,
}

/// What a path is, whatever its origin claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathShape {
    /// Relative to the child's folder.
    Relative,
    /// Starts at a root: `/x` or `C:/x`. A drive letter means nothing outside Windows.
    Absolute,
    /// `//server/share`: never followed.
    Unc,
}

/// A place where the parent may be. `path` has `/` separators, no NUL, and may hold `..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentCandidate {
    pub origin: ParentOrigin,
    pub path: String,
}

impl ParentCandidate {
    /// `None` for an empty path.
    pub fn new(origin: ParentOrigin, text: &str) -> Option<Self> {
        let path = text.replace('\\', "/");
        (!path.is_empty() && !path.contains('\0')).then_some(Self { origin, path })
    }

    pub fn shape(&self) -> PathShape {
        let drive = self.path.as_bytes().get(1) == Some(&b':');
        if self.path.starts_with("//") {
            PathShape::Unc
        } else if self.path.starts_with('/') || drive {
            PathShape::Absolute
        } else {
            PathShape::Relative
        }
    }

    /// The last component: what a parent in the child's own folder would be called. `None` when there is none.
    pub fn base_name(&self) -> Option<&str> {
        let name = self.path.rsplit('/').next()?;
        (!matches!(name, "" | "." | "..") && !name.contains(':')).then_some(name)
    }
}
