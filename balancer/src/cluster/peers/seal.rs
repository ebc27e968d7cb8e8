//! A datagram of peer sync: its layout, sealing and opening it.
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0..4 | magic | `bals` |
//! | 4 | version | 1 |
//! | 5, 6 | part, parts | a message longer than a datagram travels in several |
//! | 7 | zero | |
//! | 8..16 | from | the sender: the first bytes of the SHA-256 of its name |
//! | 16..24 | to | the receiver, so that nobody can replay the datagram to another: its name, or the address that it is sent to |
//! | 24..32 | boot | the start of the sender's agent, in ns since 1970 |
//! | 32..40 | sequence | grows by one with each datagram of a boot |
//! | 40..48 | sent | the sender's wall clock, in ms since 1970 |
//! | 48..72 | nonce | random |
//! | 72.. | sealed | XChaCha20-Poly1305, which also authenticates everything before the nonce |
//!
//! Integers are big-endian. Random 24-byte nonces never repeat in practice, so no counter has to survive a restart.

use anyhow::{Context, Result, anyhow};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};

use super::counters::SyncDrop;

const MAGIC: [u8; 4] = *b"bals";
const VERSION: u8 = 1;
const HEADER: usize = 48;
const NONCE: usize = 24;
const TAG: usize = 16;
/// The longest datagram: it fits an Ethernet frame with room for a tunnel's headers.
pub(super) const DATAGRAM: usize = 1400;
/// The longest part of a message that fits a datagram.
pub(super) const PART: usize = DATAGRAM - HEADER - NONCE - TAG;
/// The most parts of a message: more than chitchat's longest message needs.
pub(super) const MAX_PARTS: u8 = 64;
const _: () = assert!(PART * MAX_PARTS as usize > 65_507);

/// A controller's name on the wire.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct MemberId(u64);

impl MemberId {
    pub(super) fn of(name: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(name.as_bytes()).into();
        Self(u64::from_be_bytes(digest.as_chunks().0[0]))
    }

    pub(super) fn number(self) -> u64 {
        self.0
    }

    pub(super) fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// The order in which this controller got its keys; the default is none of them.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct KeyNumber(u32);

impl KeyNumber {
    pub(super) const FIRST: Self = Self(1);

    pub(super) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// The part of a datagram in the clear.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Header {
    pub(super) from: MemberId,
    pub(super) to: MemberId,
    pub(super) boot: u64,
    pub(super) sequence: u64,
    pub(super) sent_ms: u64,
    pub(super) part: u8,
    pub(super) parts: u8,
}

impl Header {
    fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&[VERSION, self.part, self.parts, 0]);
        let words = [self.from.0, self.to.0, self.boot, self.sequence, self.sent_ms];
        for (place, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// Parses the header of `datagram`. Nothing in it is authentic before [`Seal::open`].
    pub(super) fn parse(datagram: &[u8]) -> Result<Self, SyncDrop> {
        if datagram.len() < HEADER + NONCE + TAG || datagram.len() > DATAGRAM {
            return Err(SyncDrop::Malformed);
        }
        let (words, _) = datagram[8..HEADER].as_chunks();
        let [from, to, boot, sequence, sent_ms] =
            std::array::from_fn(|index| u64::from_be_bytes(words[index]));
        let header = Self {
            from: MemberId(from),
            to: MemberId(to),
            boot,
            sequence,
            sent_ms,
            part: datagram[5],
            parts: datagram[6],
        };
        let ours = header.encode()[..8] == datagram[..8];
        let counted = header.part < header.parts
            && header.parts <= MAX_PARTS
            && header.sequence > u64::from(header.part);
        if ours && counted { Ok(header) } else { Err(SyncDrop::Malformed) }
    }
}

/// The cluster's cipher, under one key.
#[derive(Clone)]
pub(super) struct Seal(XChaCha20Poly1305);

impl Seal {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(XChaCha20Poly1305::new(key.into()))
    }

    /// The datagram that carries `part` under `header`.
    pub(super) fn seal(&self, header: &Header, part: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).context("failed to read a nonce from the kernel's random source")?;
        let aad = header.encode();
        let sealed = self
            .0
            .encrypt(&XNonce::from(nonce), Payload { msg: part, aad: &aad })
            .map_err(|_opaque| anyhow!("failed to seal {} bytes", part.len()))?;
        Ok([&aad[..], &nonce, &sealed].concat())
    }

    /// Opens `datagram` after its header has been parsed: the part that it carries.
    pub(super) fn open(&self, datagram: &[u8]) -> Result<Vec<u8>, SyncDrop> {
        let (aad, rest) = datagram.split_at_checked(HEADER).ok_or(SyncDrop::Malformed)?;
        let (nonce, msg) = rest.split_first_chunk::<NONCE>().ok_or(SyncDrop::Malformed)?;
        self.0.decrypt(&XNonce::from(*nonce), Payload { msg, aad }).map_err(|_opaque| SyncDrop::WrongKey)
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn header() -> Header {
        Header {
            from: MemberId::of("a"),
            to: MemberId::of("b"),
            boot: 0x0102_0304_0506_0708,
            sequence: 9,
            sent_ms: 0x1112_1314_1516_1718,
            part: 1,
            parts: 2,
        }
    }

    fn read(seal: &Seal, datagram: &[u8]) -> Result<(Header, Vec<u8>), SyncDrop> {
        let header = Header::parse(datagram)?;
        Ok((header, seal.open(datagram)?))
    }

    #[test]
    fn a_sealed_part_is_read_back() {
        let seal = Seal::new(&[7; 32]);
        for part in [&b""[..], b"gossip", &[0; PART]] {
            let datagram = seal.seal(&header(), part).unwrap();
            assert!(datagram.len() <= DATAGRAM);
            assert_eq!(read(&seal, &datagram), Ok((header(), part.to_vec())));
        }
        let (one, two) = (seal.seal(&header(), b"x").unwrap(), seal.seal(&header(), b"x").unwrap());
        assert_ne!(one[HEADER..], two[HEADER..], "each datagram has a nonce of its own");
    }

    #[test]
    fn the_layout_does_not_change() {
        let mut expected = b"bals\x01\x01\x02\x00".to_vec();
        expected.extend([0xca, 0x97, 0x81, 0x12, 0xca, 0x1b, 0xbd, 0xca]); // sha256("a")
        expected.extend([0x3e, 0x23, 0xe8, 0x16, 0x00, 0x39, 0x59, 0x4a]); // sha256("b")
        expected.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 9]);
        expected.extend([0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
        assert_eq!(header().encode().to_vec(), expected);
    }

    #[test]
    fn a_datagram_under_another_key_is_refused() {
        let datagram = Seal::new(&[7; 32]).seal(&header(), b"gossip").unwrap();
        assert_eq!(read(&Seal::new(&[8; 32]), &datagram), Err(SyncDrop::WrongKey));
    }

    #[test]
    fn every_changed_bit_is_refused() {
        let seal = Seal::new(&[7; 32]);
        let datagram = seal.seal(&header(), b"gossip").unwrap();
        for at in 0..datagram.len() {
            for bit in 0..8 {
                let mut changed = datagram.clone();
                changed[at] ^= 1 << bit;
                let reason = read(&seal, &changed).expect_err("a changed datagram opens");
                let shape = [SyncDrop::Malformed, SyncDrop::WrongKey];
                assert!(shape.contains(&reason), "byte {at} bit {bit}: {reason:?}");
                assert!(
                    at < 8 || at == 39 || reason == SyncDrop::WrongKey,
                    "byte {at} bit {bit}: {reason:?}"
                );
            }
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let seal = Seal::new(&[7; 32]);
        let datagram = seal.seal(&header(), b"gossip").unwrap();
        for length in 0..datagram.len() {
            let short = length < HEADER + NONCE + TAG;
            let expected = if short { SyncDrop::Malformed } else { SyncDrop::WrongKey };
            assert_eq!(read(&seal, &datagram[..length]), Err(expected), "{length} bytes");
        }
        let long = [&datagram[..], &[0; DATAGRAM]].concat();
        assert_eq!(read(&seal, &long), Err(SyncDrop::Malformed));
    }

    #[test]
    fn impossible_parts_are_malformed() {
        let seal = Seal::new(&[7; 32]);
        for (sequence, part, parts) in [(9, 0, 0), (9, 2, 2), (9, 0, MAX_PARTS + 1), (0, 0, 1), (3, 3, 4)] {
            let datagram = seal.seal(&Header { sequence, part, parts, ..header() }, b"x").unwrap();
            assert_eq!(read(&seal, &datagram), Err(SyncDrop::Malformed), "{part} of {parts} at {sequence}");
        }
    }
}
