//! Key files: made once by `keygen`, read at the start of each run.
//!
//! What a key can do lives in [`crate::signature`]. Invariant: a key file is never overwritten, and text that held a secret is
//! wiped after it was parsed.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::job::KeySource;
use crate::signature::{PublicKey, SignatureError, SigningKey, TagKey};

/// What `keygen` made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NewKeys {
    pub signing_key: PathBuf,
    pub public_key: PathBuf,
    pub tag_key: PathBuf,
    /// Hex SHA-256 of the public key's SPKI DER form.
    pub keyid: String,
}

const MAKE_KEYS: &str = "make keys with `lakescrub keygen DIR` and name them as signing_key and tag_key under [state]";

/// Makes `folder`, and in it `signing.key`, `signing.pub` and `tag.key`, the secret ones with mode 0600. All three or none: an
/// existing one is a usage error, and after a failure what was made is removed again.
pub fn generate_keys(folder: &Path) -> Result<NewKeys> {
    let mut secrets = Zeroizing::new([0u8; 64]);
    getrandom::fill(&mut *secrets)
        .map_err(|error| Error::internal(format!("cannot get random bytes from the system: {error}")))?;
    let seed = Zeroizing::new(<[u8; 32]>::try_from(&secrets[..32]).expect("half of 64 bytes"));
    let signing = SigningKey::from_seed(&seed);
    let tag = TagKey::new(secrets[32..].try_into().expect("half of 64 bytes"));

    let keys = NewKeys {
        signing_key: folder.join("signing.key"),
        public_key: folder.join("signing.pub"),
        tag_key: folder.join("tag.key"),
        keyid: signing.public_key().keyid(),
    };
    let public = Zeroizing::new(signing.public_key().to_pem());
    let files = [
        (&keys.signing_key, signing.to_pem(), SECRET_MODE),
        (&keys.public_key, public, PUBLIC_MODE),
        (&keys.tag_key, tag.to_text(), SECRET_MODE),
    ];
    refuse_existing(files.iter().map(|(path, ..)| path.as_path()))?;
    make_folder(folder)?;
    for (made, (path, text, mode)) in files.iter().enumerate() {
        if let Err(error) = write_new(path, text.as_bytes(), *mode) {
            for (path, ..) in &files[..made] {
                // The fault that stopped us is the one to tell; a file left behind shows at the next keygen.
                std::fs::remove_file(path).ok();
            }
            return Err(Error::usage(format!("cannot write key file {}: {error}", path.display())));
        }
    }
    // Without this a crash could take the names of files whose bytes are safe.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| cannot_make(folder, &error))?;
    Ok(keys)
}

pub fn load_signing_key(source: &KeySource) -> Result<SigningKey> {
    let text = secret_text("signing key", source)?;
    // A variable often holds a PEM on one line, its line ends spelled out.
    let text = Zeroizing::new(text.replace("\\n", "\n"));
    SigningKey::from_pem(&text).map_err(|error| bad_key("signing key", source, &error))
}

pub fn load_tag_key(source: &KeySource) -> Result<TagKey> {
    let text = secret_text("tag key", source)?;
    TagKey::from_text(&text).map_err(|error| bad_key("tag key", source, &error))
}

/// The keys of a PEM file: one, or several one after the other (after a change of keys, the old one and the new).
pub fn load_public_keys(path: &Path) -> Result<Vec<PublicKey>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::usage(format!("cannot read public key {}: {error}", path.display())))?;
    let keys: Result<Vec<_>, _> = text
        .split_inclusive("-----END PUBLIC KEY-----")
        .filter(|block| !block.trim().is_empty())
        .map(PublicKey::from_pem)
        .collect();
    match keys {
        Ok(keys) if !keys.is_empty() => Ok(keys),
        Ok(_) | Err(_) => {
            let fault = SignatureError::NotAPublicKey;
            Err(Error::usage(format!("{} {fault}", path.display())).hint("the public key is the file signing.pub"))
        }
    }
}

/// A warning when a key file can be read or written by others than its owner.
pub fn open_to_others(source: &KeySource) -> Option<String> {
    let KeySource::File(path) = source else { return None };
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0)
        .then(|| format!("key file {0} has mode {mode:04o}; run `chmod 600 {0}`, it is a secret", path.display()))
}

fn refuse_existing<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<()> {
    let there: Vec<String> =
        paths.filter(|path| path.symlink_metadata().is_ok()).map(|path| path.display().to_string()).collect();
    if there.is_empty() {
        return Ok(());
    }
    let is = if there.len() == 1 { "exists already and is" } else { "exist already and are" };
    Err(Error::usage(format!("cannot make keys: {} {is} never overwritten", there.join(", ")))
        .hint("choose another folder; with the old signing key gone, old manifests can still be checked, with the old tag key gone, old tags no longer compare"))
}

fn make_folder(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| cannot_make(folder, &error))
}

fn cannot_make(folder: &Path, error: &io::Error) -> Error {
    Error::usage(format!("cannot make key folder {}: {error}", folder.display()))
}

/// For the owner alone.
const SECRET_MODE: u32 = 0o600;
/// For auditors, too: a public key that only its owner can read proves nothing to anybody.
const PUBLIC_MODE: u32 = 0o644;

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let written = (|| {
        // The mode of `open` is cut by the umask.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    if written.is_err() {
        std::fs::remove_file(path).ok();
    }
    written
}

fn secret_text(what: &str, source: &KeySource) -> Result<Zeroizing<String>> {
    let text = match source {
        KeySource::File(path) => std::fs::read_to_string(path)
            .map_err(|error| Error::usage(format!("cannot read {what} {}: {error}", path.display())).hint(MAKE_KEYS))?,
        KeySource::Env(name) => std::env::var(name).map_err(|error| {
            let why = match error {
                std::env::VarError::NotPresent => "is not set",
                std::env::VarError::NotUnicode(_) => "is not UTF-8",
            };
            Error::usage(format!("cannot read {what}: environment variable {name} {why}"))
                .hint(format!("set {name} to the content of the key file"))
        })?,
    };
    Ok(Zeroizing::new(text))
}

fn bad_key(what: &str, source: &KeySource, error: &SignatureError) -> Error {
    let place = match source {
        KeySource::File(path) => path.display().to_string(),
        KeySource::Env(name) => format!("environment variable {name}"),
    };
    Error::usage(format!("{what} {place} {error}")).hint(MAKE_KEYS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn keygen_makes_three_private_files_that_load_again() {
        let folder = tempfile::tempdir().unwrap();
        let keys = generate_keys(&folder.path().join("new/keys")).unwrap();
        for path in [&keys.signing_key, &keys.public_key, &keys.tag_key] {
            let wanted = if path == &keys.public_key { 0o644 } else { 0o600 };
            assert_eq!(mode(path), wanted, "{}", path.display());
        }
        let signing = load_signing_key(&KeySource::File(keys.signing_key.clone())).unwrap();
        let public = load_public_keys(&keys.public_key).unwrap();
        assert_eq!(public, [signing.public_key()]);
        assert_eq!(public[0].keyid(), keys.keyid);
        load_tag_key(&KeySource::File(keys.tag_key.clone())).unwrap();

        let others = generate_keys(&folder.path().join("others")).unwrap();
        assert_ne!(others.keyid, keys.keyid);
        assert_ne!(std::fs::read(others.tag_key).unwrap(), std::fs::read(keys.tag_key).unwrap());
    }

    #[test]
    fn keygen_overwrites_nothing_and_makes_nothing_beside_an_old_key() {
        for old in ["signing.key", "signing.pub", "tag.key"] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(old), "old").unwrap();
            let error = generate_keys(folder.path()).unwrap_err();
            assert_eq!(error.exit, Exit::Usage);
            assert!(error.message.contains(old), "{error}");
            assert_eq!(std::fs::read_to_string(folder.path().join(old)).unwrap(), "old");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_dangling_link_in_the_place_of_a_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), folder.path().join("tag.key")).unwrap();
        assert_eq!(generate_keys(folder.path()).unwrap_err().exit, Exit::Usage);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_cannot_be_had_is_a_usage_error_with_a_hint_and_without_its_text() {
        let folder = tempfile::tempdir().unwrap();
        let wrong = folder.path().join("wrong.key");
        std::fs::write(&wrong, "hunter2").unwrap();
        let sources = [
            (KeySource::File(folder.path().join("none.key")), "none.key"),
            (KeySource::File(wrong), "wrong.key"),
            (KeySource::Env("LAKESCRUB_TEST_NOT_SET".into()), "LAKESCRUB_TEST_NOT_SET is not set"),
            (KeySource::Env("PATH".into()), "environment variable PATH"),
        ];
        for (source, told) in sources {
            for error in [load_signing_key(&source).unwrap_err(), load_tag_key(&source).unwrap_err()] {
                assert_eq!(error.exit, Exit::Usage);
                assert!(error.message.contains(told), "{error}");
                assert!(error.hint.is_some());
                assert!(!format!("{error:?}").contains("hunter2"));
            }
        }
    }

    #[test]
    fn a_key_file_open_to_others_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let keys = generate_keys(folder.path()).unwrap();
        let source = KeySource::File(keys.tag_key.clone());
        assert_eq!(open_to_others(&source), None);
        std::fs::set_permissions(&keys.tag_key, Permissions::from_mode(0o640)).unwrap();
        assert!(open_to_others(&source).unwrap().contains("0640"));
        assert_eq!(open_to_others(&KeySource::Env("PATH".into())), None);
    }

    #[test]
    fn a_file_may_hold_the_old_public_key_and_the_new() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = [1, 2].map(|seed| SigningKey::from_seed(&[seed; 32]).public_key());
        let path = folder.path().join("both.pub");
        std::fs::write(&path, format!("{}\n{}", old.to_pem(), new.to_pem())).unwrap();
        assert_eq!(load_public_keys(&path).unwrap(), [old, new]);
        std::fs::write(&path, "").unwrap();
        assert_eq!(load_public_keys(&path).unwrap_err().exit, Exit::Usage);
    }
}
