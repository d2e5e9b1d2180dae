//! Paths as text: limits, components, trailing slashes. Pure.
//!
//! In: a guest's string. Out: its components one at a time, or the error Linux gives. Knows no nodes and
//! resolves nothing; `..` and `.` come out as they are.

use std::borrow::Cow;

use super::{NAME_MAX, PATH_MAX};
use crate::errno::Errno;

/// Links followed by one resolution before ELOOP, as Linux's `MAXSYMLINKS`.
pub(crate) const MAX_LINKS: u32 = 40;

/// What is still to walk of a path; grows when a link's target is put in front.
#[derive(Debug, Clone)]
pub(crate) struct Pending<'a> {
    rest: Cow<'a, str>,
    at: usize,
    links: u32,
}

/// One component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Component {
    /// Where the name is in [`Pending::name`].
    start: usize,
    end: usize,
    /// Whether nothing but slashes follows.
    pub(crate) last: bool,
    /// Whether a slash follows: it must be a directory.
    pub(crate) slash: bool,
}

impl<'a> Pending<'a> {
    /// Checks the whole path's limits.
    ///
    /// # Errors
    /// `ENOENT` when empty, `ENAMETOOLONG`, `EINVAL` for a NUL byte (it cannot be said to the kernel).
    pub(crate) fn new(path: &'a str) -> Result<Self, Errno> {
        check(path)?;
        Ok(Self { rest: Cow::Borrowed(path), at: 0, links: 0 })
    }

    /// Whether the walk starts at the root.
    pub(crate) fn is_absolute(&self) -> bool {
        self.rest.as_bytes().get(self.at) == Some(&b'/')
    }

    /// Takes the next component.
    ///
    /// # Errors
    /// `ENAMETOOLONG` for one above [`NAME_MAX`].
    pub(crate) fn next(&mut self) -> Result<Option<Component>, Errno> {
        let bytes = self.rest.as_bytes();
        let start = skip_slashes(bytes, self.at);
        if start == bytes.len() {
            self.at = start;
            return Ok(None);
        }
        let end = bytes[start..].iter().position(|&b| b == b'/').map_or(bytes.len(), |n| start + n);
        if end - start > NAME_MAX {
            return Err(Errno::NameTooLong);
        }
        let after = skip_slashes(bytes, end);
        self.at = after;
        Ok(Some(Component { start, end, last: after == bytes.len(), slash: after > end }))
    }

    /// The text of a component taken since the last [`Self::follow`].
    pub(crate) fn name(&self, component: &Component) -> &str {
        &self.rest[component.start..component.end]
    }

    /// What is left after the component taken last.
    pub(crate) fn rest(&self) -> &str {
        &self.rest[self.at..]
    }

    /// Puts a link's target before what is left. `slash` keeps the demand for a directory of the link's own
    /// trailing slash.
    ///
    /// # Errors
    /// `ELOOP` after [`MAX_LINKS`]; `ENOENT` for an empty target; `ENAMETOOLONG`.
    pub(crate) fn follow(&mut self, target: &str, slash: bool) -> Result<(), Errno> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::Loop);
        }
        check(target)?;
        let left = &self.rest[self.at..];
        let mut next = String::with_capacity(target.len() + 1 + left.len());
        next.push_str(target);
        if slash {
            next.push('/');
        }
        next.push_str(left);
        self.rest = Cow::Owned(next);
        self.at = 0;
        Ok(())
    }
}

fn skip_slashes(bytes: &[u8], from: usize) -> usize {
    bytes[from..].iter().position(|&b| b != b'/').map_or(bytes.len(), |n| from + n)
}

/// Limits of one string given as a path or as a link's target.
pub(crate) fn check(path: &str) -> Result<(), Errno> {
    if path.is_empty() {
        return Err(Errno::NoEnt);
    }
    if path.len() >= PATH_MAX {
        return Err(Errno::NameTooLong);
    }
    if path.as_bytes().contains(&0) {
        return Err(Errno::Inval);
    }
    Ok(())
}

/// Splits a relative path of trusted shape (projections, subPath, layer entries) into names.
/// `None` when it is empty, absolute, too long, or has an empty, `.`, `..`, NUL or overlong component.
pub(crate) fn strict_components(path: &str) -> Option<impl Iterator<Item = &str>> {
    let legal = |name: &str| !matches!(name, "" | "." | "..") && name.len() <= NAME_MAX && !name.contains('\0');
    (path.len() < PATH_MAX && path.split('/').all(legal)).then(|| path.split('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &str) -> Result<Vec<(String, bool, bool)>, Errno> {
        let mut pending = Pending::new(path)?;
        let mut out = Vec::new();
        while let Some(component) = pending.next()? {
            out.push((pending.name(&component).to_owned(), component.last, component.slash));
        }
        Ok(out)
    }

    #[test]
    fn components_know_whether_they_are_last_and_must_be_directories() {
        let c = |name: &str, last, slash| (name.to_owned(), last, slash);
        assert_eq!(names("a"), Ok(vec![c("a", true, false)]));
        assert_eq!(names("//a///b//"), Ok(vec![c("a", false, true), c("b", true, true)]));
        assert_eq!(names("/"), Ok(vec![]));
        assert_eq!(names(""), Err(Errno::NoEnt));
        assert_eq!(names("a\0"), Err(Errno::Inval));
        assert_eq!(names(&"x".repeat(256)), Err(Errno::NameTooLong));
        assert_eq!(names(&"x/".repeat(2048)), Err(Errno::NameTooLong));
    }

    #[test]
    fn a_link_goes_before_the_rest_and_the_41st_is_a_loop() {
        let mut pending = Pending::new("l/b").unwrap();
        pending.next().unwrap();
        pending.follow("/x/y", true).unwrap();
        assert!(pending.is_absolute());
        let mut seen = Vec::new();
        while let Some(component) = pending.next().unwrap() {
            seen.push(pending.name(&component).to_owned());
        }
        assert_eq!(seen, ["x", "y", "b"]);
        for _ in 1..MAX_LINKS {
            pending.follow("l", false).unwrap();
        }
        assert_eq!(pending.follow("l", false), Err(Errno::Loop));
    }

    #[test]
    fn strict_paths_cannot_climb() {
        for bad in ["", "/a", "a//b", "../a", "a/..", "a/./b", "a/", "a\0"] {
            assert!(strict_components(bad).is_none(), "{bad:?}");
        }
        assert_eq!(strict_components("a/..b/c").unwrap().count(), 3);
    }
}
