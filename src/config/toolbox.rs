//! Settings of the toolbox: the shell and the utilities that the node offers every container.
//!
//! In: `toolbox` of the `NodeConfiguration`, `--toolbox`, `$WASILET_TOOLBOX`. Out: where its wasm file is, and which image
//! names mean it. Looks for no file itself but where [`ToolboxFile::find`] is asked to.

use std::path::{Path, PathBuf};

/// Where the toolbox's wasm file is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolboxFile {
    /// In the usual places, if it is there.
    #[default]
    Usual,
    /// Here; an error where it is not.
    At(PathBuf),
    /// The node has none: the setting is empty.
    Off,
}

/// `toolbox`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolboxConfig {
    /// `toolbox.path`.
    pub file: ToolboxFile,
    /// `toolbox.images`: repositories whose every tag is the toolbox as an image. None: no image is.
    pub images: Vec<String>,
}

impl Default for ToolboxConfig {
    fn default() -> Self {
        // What `kubectl debug --image=busybox` and `kubectl run --image=busybox` mean.
        Self { file: ToolboxFile::Usual, images: vec!["docker.io/library/busybox".to_owned()] }
    }
}

impl ToolboxFile {
    /// A path as the config file, the flag and the environment give it: empty is none.
    #[must_use]
    pub fn from_setting(path: PathBuf) -> Self {
        if path.as_os_str().is_empty() { Self::Off } else { Self::At(path) }
    }

    /// The file, for a node whose executable is `executable`.
    ///
    /// # Errors
    /// The path of a file that was asked for by name and is not there.
    pub fn find(&self, executable: &Path) -> Result<Option<PathBuf>, PathBuf> {
        match self {
            Self::Off => Ok(None),
            Self::At(path) if path.is_file() => Ok(Some(path.clone())),
            Self::At(path) => Err(path.clone()),
            Self::Usual => Ok(usual_places(executable).into_iter().find(|path| path.is_file())),
        }
    }
}

/// Installed: `PREFIX/bin/wasilet` has `PREFIX/share/wasilet/toolbox.wasm`. A release archive: both side by side. A checkout:
/// `target/release/wasilet` has `target/guests/toolbox.wasm`.
fn usual_places(executable: &Path) -> Vec<PathBuf> {
    let Some(directory) = executable.parent() else { return Vec::new() };
    let mut places = vec![directory.join("toolbox.wasm")];
    if let Some(prefix) = directory.parent() {
        places.insert(0, prefix.join("share/wasilet/toolbox.wasm"));
        places.push(prefix.join("guests/toolbox.wasm"));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toolbox_is_found_where_it_is_installed_and_missed_where_it_was_named() {
        let prefix = tempfile::tempdir().unwrap();
        let executable = prefix.path().join("bin/wasilet");
        let installed = prefix.path().join("share/wasilet/toolbox.wasm");
        assert_eq!(ToolboxFile::Usual.find(&executable), Ok(None), "nothing is there yet");
        std::fs::create_dir_all(installed.parent().unwrap()).unwrap();
        std::fs::write(&installed, b"wasm").unwrap();
        let elsewhere = prefix.path().join("elsewhere.wasm");
        for (case, file, expected) in [
            ("the usual place", ToolboxFile::Usual, Ok(Some(installed.clone()))),
            ("turned off", ToolboxFile::from_setting(PathBuf::new()), Ok(None)),
            ("by name", ToolboxFile::from_setting(installed.clone()), Ok(Some(installed.clone()))),
            ("by a name that is not there", ToolboxFile::At(elsewhere.clone()), Err(elsewhere.clone())),
        ] {
            assert_eq!(file.find(&executable), expected, "{case}");
        }
    }
}
