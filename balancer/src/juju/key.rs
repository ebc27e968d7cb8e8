//! The cluster's key: the one secret of every controller's agent, and the keys derived from it.
//!
//! A key file holds one line of 64 hexadecimal digits; without one, the key is derived from the secret that all of
//! Juju's controllers share. Nothing uses the key itself: each purpose has a key of its own, derived by HKDF-SHA256
//! (RFC 5869) under its own label, so that one use reveals nothing about another.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use hkdf::Hkdf;
use nix::fcntl::OFlag;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::juju::agent_conf::Secret;

const LENGTH: usize = 32;
const OTHERS: u32 = 0o077; // group and others, all access
const DIGITS: usize = 2 * LENGTH;
/// Bytes of the shortest secret that makes a key; Juju's are far longer.
const MIN_SECRET: usize = 32;
const AGENT_CONF_LABEL: &[u8] = b"balancer 1 cluster key from agent.conf";
const SYNC_LABEL: &[u8] = b"balancer 1 peer sync xchacha20-poly1305";
const SYN_TAG_LABEL: &[u8] = b"balancer 1 relayed syn siphash-2-4";
const TAG_NAME_LABEL: &[u8] = b"balancer 1 relayed syn key name";

/// The cluster's key; wiped from memory when dropped.
#[derive(Clone, Eq, PartialEq)]
pub struct ClusterKey(Zeroizing<[u8; LENGTH]>);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(secret)")
    }
}

impl ClusterKey {
    /// A fresh key from the kernel's random source.
    pub fn generate() -> Result<Self> {
        let mut key = Self(Zeroizing::new([0; LENGTH]));
        getrandom::fill(key.0.as_mut()).context("failed to read random bytes from the kernel")?;
        Ok(key)
    }

    /// Reads the key file at `path`, which others must not be able to read or change.
    pub fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        // Without O_NONBLOCK, opening a FIFO would block the start of the agent.
        let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(
                "there is no key at {shown}: run `balancer keygen` on one controller and copy the file to the others"
            ),
            opened => opened.with_context(|| format!("failed to open the key file {shown}"))?,
        };
        let metadata = file.metadata().with_context(|| format!("failed to stat the key file {shown}"))?;
        ensure!(
            metadata.is_file(),
            "the key file {shown} is not a regular file: put the cluster's key in its place"
        );
        ensure!(
            metadata.mode() & OTHERS == 0,
            "the key file {shown} has mode {:04o} and is open to others: run `chmod 600 {shown}`",
            metadata.mode() & 0o7777
        );
        ensure!(
            metadata.uid() == 0 || metadata.uid() == nix::unistd::geteuid().as_raw(),
            "the key file {shown} belongs to user {}, who can change it: run `chown root {shown}`",
            metadata.uid()
        );
        // A buffer that grows would leave a copy of the key behind.
        let mut text = Zeroizing::new(Vec::with_capacity(DIGITS + 64));
        file.take(DIGITS as u64 + 8)
            .read_to_end(&mut text)
            .with_context(|| format!("failed to read the key file {shown}"))?;
        Self::decode(text.trim_ascii()).with_context(|| {
            format!("the key file {shown} holds no key: copy it again from a controller whose agent runs")
        })
    }

    /// Derives the key from a secret of Juju's: the same on every controller, without a way back to the secret.
    pub fn from_agent_conf(secret: &Secret) -> Result<Self> {
        let text = secret.expose().as_bytes();
        ensure!(
            text.len() >= MIN_SECRET,
            "{} is {} bytes long, which is too short for a secret: make a key with `balancer keygen` and set \
             cluster.key_file",
            secret.field(),
            text.len()
        );
        Ok(Self(derive(text, AGENT_CONF_LABEL)))
    }

    /// Writes a fresh key to a new file at `path` that only its owner can read. Never overwrites a file.
    pub fn keygen(path: &Path) -> Result<Self> {
        let shown = path.display();
        let key = Self::generate()?;
        let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
                "{shown} exists and is not overwritten: to give every controller a new key, move it away first"
            ),
            opened => opened.with_context(|| format!("failed to create the key file {shown}"))?,
        };
        let written = file.write_all(&key.encode()).and_then(|()| file.sync_all());
        if let Err(error) = written {
            remove_partial(path);
            return Err(error).with_context(|| format!("failed to write the key file {shown}"));
        }
        sync_directory(path);
        Ok(key)
    }

    /// The key that seals the datagrams of peer sync (XChaCha20-Poly1305).
    pub fn sync_key(&self) -> Zeroizing<[u8; 32]> {
        derive(self.0.as_ref(), SYNC_LABEL)
    }

    /// The key of the tag on relayed SYNs: the two words of SipHash, in its order.
    pub fn syn_tag_key(&self) -> [u64; 2] {
        let bytes = derive::<16>(self.0.as_ref(), SYN_TAG_LABEL);
        bytemuck::pod_read_unaligned::<[u64; 2]>(bytes.as_ref()).map(u64::from_le)
    }

    /// A name for [`Self::syn_tag_key`] that tells nothing about it.
    pub fn tag_name(&self) -> String {
        HEXLOWER.encode(derive::<4>(self.0.as_ref(), TAG_NAME_LABEL).as_ref())
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut line = Zeroizing::new(vec![b'\n'; DIGITS + 1]);
        HEXLOWER.encode_mut(self.0.as_ref(), &mut line[..DIGITS]);
        line
    }

    fn decode(line: &[u8]) -> Result<Self> {
        ensure!(
            line.len() == DIGITS,
            "expected {DIGITS} hexadecimal digits and found {} characters",
            line.len()
        );
        let mut key = Self(Zeroizing::new([0; LENGTH]));
        HEXLOWER_PERMISSIVE
            .decode_mut(line, key.0.as_mut())
            .map_err(|_quotes_the_key| anyhow!("expected hexadecimal digits only"))?;
        ensure!(*key.0 != [0; LENGTH], "the key is all zeros");
        Ok(key)
    }
}

fn derive<const N: usize>(secret: &[u8], label: &[u8]) -> Zeroizing<[u8; N]> {
    let mut key = Zeroizing::new([0; N]);
    Hkdf::<Sha256>::new(None, secret)
        .expand(label, key.as_mut())
        .expect("HKDF-SHA256 yields up to 8160 bytes");
    key
}

/// A leftover would stop the next `keygen`, which never overwrites a file.
fn remove_partial(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        log::warn!("failed to remove the unfinished key file {}: {error}", path.display());
    }
}

/// Makes the new name survive a power cut. Some file systems cannot; the key file is there all the same.
fn sync_directory(path: &Path) {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Err(error) = File::open(directory).and_then(|directory| directory.sync_all()) {
        log::debug!("failed to sync {}: {error}", directory.display());
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LINE: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn refusal(path: &Path) -> String {
        format!("{:#}", ClusterKey::load(path).unwrap_err())
    }

    #[test]
    fn a_generated_key_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.key");
        let key = ClusterKey::keygen(&path).unwrap();
        assert_eq!(ClusterKey::load(&path).unwrap().0, key.0);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!((text.len(), text.lines().count()), (65, 1));
        assert_ne!(ClusterKey::generate().unwrap().0, key.0);
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.key");
        fs::write(&path, "precious").unwrap();
        let error = ClusterKey::keygen(&path).unwrap_err().to_string();
        assert!(error.contains("cluster.key exists and is not overwritten"), "{error}");
        std::os::unix::fs::symlink("/nonexistent/elsewhere", directory.path().join("link")).unwrap();
        ClusterKey::keygen(&directory.path().join("link")).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn unusable_files_are_refused_and_say_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.key");
        assert!(refusal(&path).contains("run `balancer keygen` on one controller"));
        let short = &LINE[..62];
        let zeros = "0".repeat(64);
        let rows = [
            (LINE, 0o640, "has mode 0640 and is open to others: run `chmod 600 "),
            (LINE, 0o604, "has mode 0604"),
            (short, 0o600, "expected 64 hexadecimal digits and found 62 characters"),
            ("", 0o600, "found 0 characters"),
            (&format!("{LINE}00"), 0o600, "found 66 characters"),
            (&format!("{short}zz"), 0o600, "expected hexadecimal digits only"),
            (&zeros, 0o600, "the key is all zeros"),
        ];
        for (text, mode, expected) in rows {
            write(&path, text, mode);
            let error = refusal(&path);
            assert!(error.contains(expected), "{text} {mode:o}: {error}");
            assert!(!error.contains("0a0b0c"), "the message shows the key: {error}");
        }
        assert!(refusal(directory.path()).contains("is not a regular file"));
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(refusal(&fifo).contains("is not a regular file"));
    }

    /// Expected values from Python's `hmac` and `hashlib`, after RFC 5869.
    #[test]
    fn derived_keys_do_not_change() {
        let key = ClusterKey::decode(LINE.as_bytes()).unwrap();
        assert_eq!(key.sync_key()[..8], SYNC_KEY_START);
        assert_eq!(key.syn_tag_key(), SYN_TAG_KEY);
    }

    /// Expected values from Python's `hmac` and `hashlib`, after RFC 5869.
    #[test]
    fn keys_from_agent_conf_do_not_change() {
        use crate::juju::agent_conf::{self, tests as samples};
        let rows = [
            (samples::JUJU_2_9, [252, 202, 117, 255, 76, 216, 3, 229]),
            (samples::JUJU_4, [163, 40, 8, 168, 126, 63, 55, 57]),
        ];
        let juju = tempfile::tempdir().unwrap();
        let read = |text| {
            let path = samples::write(juju.path(), "machine-0", text);
            agent_conf::read(&path).unwrap().unwrap().secret.unwrap()
        };
        for (text, start) in rows {
            assert_eq!(ClusterKey::from_agent_conf(&read(text)).unwrap().0[..8], start);
        }
        let short = read("# format 2.0\nsharedsecret: a123456789012345678901234567890\n");
        let error = ClusterKey::from_agent_conf(&short).unwrap_err().to_string();
        assert!(error.starts_with("sharedsecret is 31 bytes long"), "{error}");
    }

    #[test]
    fn debug_output_is_bare() {
        assert_eq!(format!("{:?}", ClusterKey::decode(LINE.as_bytes()).unwrap()), "ClusterKey(secret)");
    }

    const SYNC_KEY_START: [u8; 8] = [176, 36, 158, 20, 97, 185, 107, 147];
    const SYN_TAG_KEY: [u64; 2] = [0x5a99_d871_8865_5c2d, 0x976f_6218_45b2_5123];
}
