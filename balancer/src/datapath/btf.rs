//! Finds the offset of a member in a kernel struct, from the kernel's own type information.
//!
//! Format: `Documentation/bpf/btf.rst` in the kernel's sources.

use std::fs;

use anyhow::{Context, Result, bail};

const PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
/// Bytes of a type before the additions of some kinds.
const HEAD: usize = 12;

/// The kernel's types.
pub struct Btf {
    bytes: Vec<u8>,
    types: (usize, usize),
    strings: (usize, usize),
}

impl Btf {
    /// Loads the running kernel's types; fails if the kernel has no BTF.
    pub fn of_the_kernel() -> Result<Self> {
        Self::parse(fs::read(PATH).with_context(|| format!("failed to read {PATH}"))?)
    }

    fn parse(bytes: Vec<u8>) -> Result<Self> {
        let mut btf = Self { bytes, types: (0, 0), strings: (0, 0) };
        if btf.word(0)? & 0xffff != u32::from(MAGIC) {
            bail!("{PATH} has an unknown format or byte order");
        }
        let header = btf.word(4)? as usize;
        let section = |offset: u32, length: u32| {
            let start = header + offset as usize;
            (start, start + length as usize)
        };
        btf.types = section(btf.word(8)?, btf.word(12)?);
        btf.strings = section(btf.word(16)?, btf.word(20)?);
        Ok(btf)
    }

    /// Offset of a member in a struct, bytes.
    pub fn member(&self, structure: &str, member: &str) -> Result<u32> {
        let mut at = self.types.0;
        while at < self.types.1 {
            let info = self.word(at + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            if kind == STRUCT && self.is_named(self.word(at)?, structure) {
                let members = (0..count).map(|index| at + HEAD + 12 * index);
                for one in members {
                    if self.is_named(self.word(one)?, member) {
                        let bits = self.word(one + 8)?;
                        // If the highest bit of `info` is set, the upper byte is the width of a bit field.
                        return Ok(if info >> 31 == 0 { bits } else { bits & 0x00ff_ffff } / 8);
                    }
                }
            }
            at += HEAD + added(kind, count)?;
        }
        bail!("the kernel's BTF has no member {member} in struct {structure}")
    }

    fn word(&self, at: usize) -> Result<u32> {
        let word = self.bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        Ok(u32::from_ne_bytes(word.with_context(|| format!("{PATH} ends early"))?))
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        let strings = self.bytes.get(self.strings.0..self.strings.1).unwrap_or_default();
        let rest = strings.get(name as usize..).and_then(|rest| rest.strip_prefix(wanted.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// Bytes that follow the head of a type of this kind.
fn added(kind: u32, count: usize) -> Result<usize> {
    Ok(match kind {
        // Integers, variables, declaration tags.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structs, unions, sections, 64-bit enumerations.
        STRUCT | 5 | 15 | 19 => 12 * count,
        // Enumerations, prototypes.
        6 | 13 => 8 * count,
        // Pointers, forward declarations, names, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => 0,
        _ => bail!("{PATH} has types of an unknown kind, {kind}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Header, `struct net { int x; int ns; }`, strings.
    fn example() -> Vec<u8> {
        let types = [0, 1 << 24, 4, 32, 1, 4 << 24 | 2, 8, 5, 1, 0, 7, 1, 32];
        let strings = b"\0net\0x\0ns\0";
        let header =
            [0x0001_eb9f, 24, 0, types.len() as u32 * 4, types.len() as u32 * 4, strings.len() as u32];
        let words = header.iter().chain(&types).flat_map(|word| word.to_ne_bytes());
        words.chain(strings.iter().copied()).collect()
    }

    #[test]
    fn members_are_found() {
        let btf = Btf::parse(example()).unwrap();
        assert_eq!(btf.member("net", "x").unwrap(), 0);
        assert_eq!(btf.member("net", "ns").unwrap(), 4);
        assert!(btf.member("net", "n").is_err());
        assert!(btf.member("ne", "x").is_err());
    }

    #[test]
    fn cut_short_is_an_error_and_no_panic() {
        let whole = example();
        for length in 0..whole.len() - 10 {
            let found = Btf::parse(whole[..length].to_vec()).and_then(|btf| btf.member("net", "ns"));
            assert!(found.is_err(), "{length}");
        }
        assert!(Btf::parse(vec![0; 64]).is_err());
    }
}
