//! The client's address on its way to the owner: the payload of a relayed SYN.
//!
//! ```text
//!  0      2     3      4     6     8                24      32
//!  ├ "JB" ┼ ver ┼ kind ┼ port┼zero ┼ client address ┼  tag  ┤
//! ```
//! All fields are in network byte order. The tag is SipHash-2-4 (Aumasson and Bernstein, 2012) under a key
//! that only the cluster has, over the fields before it and the relay hop that carries them: both addresses,
//! both ports and the sequence number. So nobody else can forge a trailer, or move one to another SYN.

use bytemuck::{Pod, Zeroable};

use crate::wire::{Address, Port, segment::Segment};

/// The trailer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct Trailer {
    magic: [u8; 2],
    version: u8,
    /// 0: a client's SYN; [`Trailer::PROBE`]: the entry's own.
    kind: u8,
    port: Port,
    zeros: [u8; 2],
    address: Address,
    tag: [u8; 8],
}

/// The relay hop of a SYN with a trailer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hop {
    /// The entry's address.
    pub source: Address,
    /// The owner's address.
    pub destination: Address,
    /// The entry's relay source port.
    pub source_port: Port,
    /// The owner's relay port.
    pub destination_port: Port,
    /// The SYN's sequence number.
    pub seq: u32,
}

impl Hop {
    /// The hop of a SYN as it is between entry and owner.
    #[inline(always)]
    pub fn of(segment: &Segment) -> Self {
        Self {
            source: segment.source,
            destination: segment.destination,
            source_port: segment.source_port,
            destination_port: segment.destination_port,
            seq: segment.seq,
        }
    }
}

/// The reason for which a payload is not a valid trailer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reject {
    /// It does not have this form or version.
    Form,
    /// The tag was not made with this key for this hop.
    Tag,
}

impl Trailer {
    /// Length in bytes.
    pub const LEN: u32 = size_of::<Self>() as u32;
    const MAGIC: [u8; 2] = *b"JB";
    const VERSION: u8 = 1;

    const PROBE: u8 = 1;

    /// Seals a client's address for `hop`.
    #[inline(always)]
    pub fn seal(address: &Address, port: Port, hop: &Hop, key: [u64; 2]) -> Self {
        Self::sealed(0, address, port, hop, key)
    }

    /// Seals the client's address that a probe of the entry uses, for `hop`.
    #[inline(always)]
    pub fn seal_probe(address: &Address, port: Port, hop: &Hop, key: [u64; 2]) -> Self {
        Self::sealed(Self::PROBE, address, port, hop, key)
    }

    /// Whether the entry probes the path; counts once [`Trailer::open`] has succeeded.
    #[inline(always)]
    pub fn is_probe(&self) -> bool {
        self.kind == Self::PROBE
    }

    #[inline(always)]
    fn sealed(kind: u8, address: &Address, port: Port, hop: &Hop, key: [u64; 2]) -> Self {
        let mut trailer = Self {
            magic: Self::MAGIC,
            version: Self::VERSION,
            kind,
            port,
            zeros: [0; 2],
            address: *address,
            tag: [0; 8],
        };
        trailer.tag = trailer.expected_tag(hop, key);
        trailer
    }

    /// The client's address, if the trailer was sealed for `hop`.
    #[inline(always)]
    pub fn open(&self, hop: &Hop, key: [u64; 2]) -> Result<(Address, Port), Reject> {
        if self.magic != Self::MAGIC
            || self.version != Self::VERSION
            || self.address.is_v4() != hop.source.is_v4()
        {
            return Err(Reject::Form);
        }
        // One comparison of the whole tag, so that timing does not reveal how much of it is right.
        if u64::from_ne_bytes(self.tag) == u64::from_ne_bytes(self.expected_tag(hop, key)) {
            Ok((self.address, self.port))
        } else {
            Err(Reject::Tag)
        }
    }

    #[inline(always)]
    fn expected_tag(&self, hop: &Hop, key: [u64; 2]) -> [u8; 8] {
        let pair = |words: [u32; 4]| {
            [u64::from(words[0]) | u64::from(words[1]) << 32, u64::from(words[2]) | u64::from(words[3]) << 32]
        };
        let [client_high, client_low] = pair(self.address.words());
        let [source_high, source_low] = pair(hop.source.words());
        let [destination_high, destination_low] = pair(hop.destination.words());
        let fields = u64::from(self.version)
            | u64::from(self.kind) << 8
            | u64::from(self.port.host()) << 16
            | u64::from(hop.source_port.host()) << 32
            | u64::from(hop.destination_port.host()) << 48;
        let mut hash = SipHash::new(key);
        hash.word(fields);
        hash.word(u64::from(hop.seq));
        hash.word(client_high);
        hash.word(client_low);
        hash.word(source_high);
        hash.word(source_low);
        hash.word(destination_high);
        hash.word(destination_low);
        hash.finish(64).to_be_bytes()
    }

    /// The trailer as native words, for checksums.
    #[inline(always)]
    pub fn words(&self) -> [u32; 8] {
        bytemuck::cast(*self)
    }
}

/// SipHash-2-4 over whole words. (The crate `siphasher`, the reference in the tests, buffers bytes at
/// variable offsets, which the verifier does not follow.)
struct SipHash {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl SipHash {
    #[inline(always)]
    const fn new(key: [u64; 2]) -> Self {
        Self {
            v0: key[0] ^ 0x736f_6d65_7073_6575,
            v1: key[1] ^ 0x646f_7261_6e64_6f6d,
            v2: key[0] ^ 0x6c79_6765_6e65_7261,
            v3: key[1] ^ 0x7465_6462_7974_6573,
        }
    }

    #[inline(always)]
    fn word(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.round();
        self.v0 ^= word;
    }

    #[inline(always)]
    fn finish(mut self, length: u64) -> u64 {
        self.word(length << 56);
        self.v2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.round();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }

    #[inline(always)]
    fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use core::{hash::Hasher, net::IpAddr};

    use proptest::prelude::*;
    use siphasher::sip::SipHasher24;

    use super::*;

    fn hop() -> Hop {
        Hop {
            source: Address::from("10.0.0.11".parse::<IpAddr>().unwrap()),
            destination: Address::from("10.0.0.12".parse::<IpAddr>().unwrap()),
            source_port: Port::new(40000),
            destination_port: Port::new(17080),
            seq: 7,
        }
    }

    proptest! {
        #[test]
        fn the_hash_is_siphash(key in any::<[u64; 2]>(), words in proptest::collection::vec(any::<u64>(), 0..9)) {
            let mut ours = SipHash::new(key);
            let mut theirs = SipHasher24::new_with_keys(key[0], key[1]);
            for &word in &words {
                ours.word(word);
                theirs.write(&word.to_le_bytes());
            }
            prop_assert_eq!(ours.finish(8 * words.len() as u64), theirs.finish());
        }

        #[test]
        fn what_is_sealed_opens_and_any_flipped_bit_does_not(
            key in any::<[u64; 2]>(), address in any::<[u8; 4]>(), port in 1u16.., bit in 0usize..256,
        ) {
            let client = Address::from_v4(u32::from_ne_bytes(address));
            let sealed = Trailer::seal(&client, Port::new(port), &hop(), key);
            prop_assert_eq!(sealed.open(&hop(), key), Ok((client, Port::new(port))));
            let mut bytes: [u8; 32] = bytemuck::cast(sealed);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let flipped = bytemuck::cast::<_, Trailer>(bytes).open(&hop(), key);
            // The bytes that must be zero are not read.
            prop_assert!(flipped.is_err() || [3, 6, 7].contains(&(bit / 8)));
        }
    }

    #[test]
    fn a_trailer_does_not_open_on_another_hop_or_under_another_key() {
        let client = Address::from("10.0.1.1".parse::<IpAddr>().unwrap());
        let sealed = Trailer::seal(&client, Port::new(5), &hop(), [1, 2]);
        for other in [
            Hop { seq: 8, ..hop() },
            Hop { source_port: Port::new(40001), ..hop() },
            Hop { destination_port: Port::new(17081), ..hop() },
            Hop { source: hop().destination, ..hop() },
            Hop { destination: hop().source, ..hop() },
        ] {
            assert_eq!(sealed.open(&other, [1, 2]), Err(Reject::Tag));
        }
        assert_eq!(sealed.open(&hop(), [1, 3]), Err(Reject::Tag));
    }
}
