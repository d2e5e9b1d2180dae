//! Certificates with their keys on disk, as the kubelet lays them out: `PREFIX-current.pem` is a symbolic link to the
//! newest of `PREFIX-TIME.pem`, and `PREFIX.key.tmp` is the key of a request that is still open.
//!
//! In: PEM. Out: the newest usable pair. A crash at any instant leaves the old pair or the new one: each file is
//! written aside, flushed and renamed, the link likewise. The directory is 0700, files are 0600.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::error::IdentityError;
use super::pair::Pair;

/// A place for one kind of certificate.
#[derive(Debug, Clone)]
pub struct PairStore {
    dir: PathBuf,
    prefix: &'static str,
}

impl PairStore {
    /// `DIR/PREFIX-current.pem` and its like.
    #[must_use]
    pub fn new(dir: &Path, prefix: &'static str) -> Self {
        Self { dir: dir.to_owned(), prefix }
    }

    /// Where the newest pair is; the path stays the same when the pair is replaced.
    #[must_use]
    pub fn current_path(&self) -> PathBuf {
        self.dir.join(format!("{}-current.pem", self.prefix))
    }

    fn pending_path(&self) -> PathBuf {
        self.dir.join(format!("{}.key.tmp", self.prefix))
    }

    /// The newest pair, if there is one.
    ///
    /// # Errors
    /// When it is there and cannot be used.
    pub fn current(&self) -> Result<Option<Pair>, IdentityError> {
        let path = self.current_path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(IdentityError::file("reading", path)(error)),
        };
        match Pair::from_pem(&text, &text) {
            Ok(pair) => Ok(Some(pair)),
            Err(source) => Err(IdentityError::Certificate { path, source }),
        }
    }

    /// Makes this pair the newest. Older ones are removed, and so is the key of the open request.
    ///
    /// # Errors
    /// When the pair is none, or cannot be written; the old one stays the newest then.
    pub fn update(&self, chain: &str, key: &str, now: Timestamp) -> Result<Pair, IdentityError> {
        let name = format!("{}-{}.pem", self.prefix, now.strftime("%Y-%m-%d-%H-%M-%S"));
        let path = self.dir.join(&name);
        let pair = Pair::from_pem(chain.as_bytes(), key.as_bytes())
            .map_err(|source| IdentityError::Certificate { path: path.clone(), source })?;
        make_private_dir(&self.dir)?;
        write_private(&path, &format!("{}\n{key}", chain.trim_end()))?;
        // A relative target: the directory may be moved with the root directory.
        let link = self.current_path();
        let aside = self.dir.join(format!("{}-updated.pem", self.prefix));
        let failed = |error| IdentityError::file("linking", link.clone())(error);
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        symlink(&name, &aside)
            .and_then(|()| fs::rename(&aside, &link))
            .and_then(|()| sync_dir(&self.dir))
            .map_err(failed)?;
        self.remove_others(&name);
        Ok(pair)
    }

    /// What is left behind costs nothing but room, so that failures are only logged.
    fn remove_others(&self, keep: &str) {
        let dated = format!("{}-2", self.prefix);
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&dated) && name.ends_with(".pem") && name != keep {
                remove_quietly(&entry.path());
            }
        }
        remove_quietly(&self.pending_path());
    }

    /// The key of the open request, made if there is none: a restart asks again for the same.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn pending_key(&self) -> Result<rcgen::KeyPair, IdentityError> {
        let path = self.pending_path();
        if let Some(key) = fs::read_to_string(&path).ok().and_then(|text| rcgen::KeyPair::from_pem(&text).ok()) {
            return Ok(key);
        }
        self.new_pending_key()
    }

    /// A new key, in the place of the open request's.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new_pending_key(&self) -> Result<rcgen::KeyPair, IdentityError> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|source| IdentityError::Make { source })?;
        make_private_dir(&self.dir)?;
        write_private(&self.pending_path(), &key.serialize_pem())?;
        Ok(key)
    }
}

fn remove_quietly(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), err = %error, "Could not remove an old certificate file");
        }
        _ => {}
    }
}

/// Makes a directory that only its owner may enter; one that is there keeps its mode.
///
/// # Errors
/// When it cannot be made.
pub fn make_private_dir(path: &Path) -> Result<(), IdentityError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(IdentityError::file("making the directory", path))
}

/// Writes a file that only its owner may read, as a whole or not at all.
///
/// # Errors
/// When it cannot be written; what was there stays then.
pub fn write_private(path: &Path, text: &str) -> Result<(), IdentityError> {
    write(path, text, 0o600).map_err(IdentityError::file("writing", path))
}

/// As [`write_private`], for what everybody may read.
///
/// # Errors
/// As [`write_private`].
pub fn write_public(path: &Path, text: &str) -> Result<(), IdentityError> {
    write(path, text, 0o644).map_err(IdentityError::file("writing", path))
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    // A leftover may have another mode.
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn pair(name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn the_newest_pair_is_found_and_older_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = PairStore::new(&dir.path().join("pki"), "wasilet-client");
        assert!(store.current().unwrap().is_none());
        let start: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        for (hour, name) in ["first", "second"].into_iter().enumerate() {
            let key = store.pending_key().unwrap();
            assert_eq!(store.pending_key().unwrap().serialize_der(), key.serialize_der(), "a restart finds the key");
            let (chain, key) = pair(name);
            let now = start + std::time::Duration::from_secs(3600 * hour as u64);
            store.update(&chain, &key, now).unwrap();
            assert_eq!(store.current().unwrap().unwrap().facts.common_name, name);
        }
        let pki = dir.path().join("pki");
        let mut names: Vec<_> =
            fs::read_dir(&pki).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["wasilet-client-2026-01-02-04-04-05.pem", "wasilet-client-current.pem"]);
        assert_eq!(fs::metadata(&pki).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(store.current_path()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_pair_that_is_none_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = PairStore::new(dir.path(), "wasilet-server");
        let ((first, key), (other, _)) = (pair("first"), pair("other"));
        store.update(&first, &key, Timestamp::UNIX_EPOCH).unwrap();
        assert!(store.update(&other, &key, Timestamp::now()).is_err());
        assert_eq!(store.current().unwrap().unwrap().facts.common_name, "first");
    }
}
