//! Records of a map whose layout only the kernel knows: another version's map. aya's maps are typed, so these
//! calls to bpf(2) are made here.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use anyhow::{Context, Result};
use aya::maps::MapData;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
/// Flags of an update: overwrite any value, or only add.
const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;

/// A map with one value per key.
pub struct Records {
    map: MapData,
    key_size: usize,
    value_size: usize,
    entries: usize,
}

impl Records {
    /// Opens the map pinned at `pin`.
    pub fn open(pin: &Path) -> Result<Self> {
        let open = || -> Result<Self> {
            let map = MapData::from_pin(pin)?;
            let info = map.info()?;
            let (key_size, value_size) = (info.key_size() as usize, info.value_size() as usize);
            Ok(Self { map, key_size, value_size, entries: info.max_entries() as usize })
        };
        open().with_context(|| format!("failed to open the map {}", pin.display()))
    }

    /// Bytes of a key.
    pub fn key_size(&self) -> usize {
        self.key_size
    }

    /// Bytes of a value.
    pub fn value_size(&self) -> usize {
        self.value_size
    }

    /// Every record. A record that is added or removed meanwhile may be missing or present.
    pub fn all(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut all = Vec::new();
        let mut key: Option<Vec<u8>> = None;
        // If keys are removed during the listing, the kernel starts again from the beginning; the bound ends
        // that.
        while all.len() <= 2 * self.entries {
            let mut next = vec![0; self.key_size];
            match self.call(BPF_MAP_GET_NEXT_KEY, key.as_deref(), Some(&mut next), BPF_ANY) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => return Err(error).context("failed to list a map"),
            }
            if let Some(value) = self.get(&next)? {
                all.push((next.clone(), value));
            }
            key = Some(next);
        }
        Ok(all)
    }

    /// The value of a key of [`Records::key_size`] bytes, if it has one.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_size];
        match self.call(BPF_MAP_LOOKUP_ELEM, Some(key), Some(&mut value), BPF_ANY) {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error).context("failed to read a map"),
        }
    }

    /// Sets the value of a key, of [`Records::value_size`] bytes.
    pub fn set(&self, key: &[u8], value: &mut [u8]) -> Result<()> {
        self.call(BPF_MAP_UPDATE_ELEM, Some(key), Some(value), BPF_ANY).context("failed to write a map")
    }

    /// Adds a value unless the key has one; `true` if it was added. Fails if the map is full.
    pub fn add(&self, key: &[u8], value: &mut [u8]) -> Result<bool> {
        match self.call(BPF_MAP_UPDATE_ELEM, Some(key), Some(value), BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error).context("failed to write a map"),
        }
    }

    /// Removes a key; it may be gone already.
    pub fn remove(&self, key: &[u8]) {
        let _: io::Result<()> = self.call(BPF_MAP_DELETE_ELEM, Some(key), None, BPF_ANY);
    }

    /// Runs a command on a key; `other` is the value, or the next key.
    fn call(
        &self,
        command: libc::c_int,
        key: Option<&[u8]>,
        other: Option<&mut [u8]>,
        flags: u64,
    ) -> io::Result<()> {
        #[repr(C)]
        struct Attributes {
            map: u32,
            pad: u32,
            key: u64,
            other: u64,
            flags: u64,
        }
        let wanted = if command == BPF_MAP_GET_NEXT_KEY { self.key_size } else { self.value_size };
        let fits = key.is_none_or(|key| key.len() == self.key_size)
            && other.as_ref().is_none_or(|other| other.len() == wanted);
        if !fits {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let attributes = Attributes {
            map: self.map.fd().as_fd().as_raw_fd().cast_unsigned(),
            pad: 0,
            key: key.map_or(0, |key| key.as_ptr() as u64),
            other: other.map_or(0, |other| other.as_mut_ptr() as u64),
            flags,
        };
        // SAFETY: the attributes are laid out as the kernel's `union bpf_attr` is for these commands, and
        // live until the call returns. Key and value are borrowed as long; the check above ensures that they
        // are as long as the kernel takes them to be.
        let done =
            unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attributes, size_of::<Attributes>()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
