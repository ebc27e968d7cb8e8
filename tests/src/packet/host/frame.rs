//! A frame on the host: `Packet` over a vector.

use balancer_common::hooks::Packet;
use balancer_common::wire::Family;
use balancer_common::wire::checksum::Change;
use bytemuck::Pod;

/// A frame on the host.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Contents.
    pub bytes: Vec<u8>,
    /// Interface that it came in by or leaves by.
    pub ifindex: u32,
    /// A VLAN tag was moved into metadata.
    pub tagged: bool,
    /// The transport checksum holds only the pseudo header's sum, for a device to complete
    /// (`CHECKSUM_PARTIAL`).
    pub partial: bool,
}

impl Frame {
    /// A frame with complete checksums.
    pub fn new(bytes: &[u8], ifindex: u32) -> Self {
        Self { bytes: bytes.to_vec(), ifindex, tagged: false, partial: false }
    }
}

impl Packet for Frame {
    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn tagged(&self) -> bool {
        self.tagged
    }

    fn read<T: Pod>(&self, at: usize) -> Option<T> {
        self.bytes.get(at..at.checked_add(size_of::<T>())?).map(bytemuck::pod_read_unaligned)
    }

    fn read_anywhere<T: Pod>(&self, at: usize) -> Option<T> {
        self.read(at)
    }

    fn write<T: Pod>(&mut self, at: usize, value: &T) -> Option<()> {
        let end = at.checked_add(size_of::<T>())?;
        self.bytes.get_mut(at..end)?.copy_from_slice(bytemuck::bytes_of(value));
        Some(())
    }

    fn write_anywhere<T: Pod>(&mut self, at: usize, value: &T) -> Option<()> {
        self.write(at, value)
    }

    fn resize(&mut self, len: u32) -> Option<()> {
        self.bytes.resize(len as usize, 0);
        Some(())
    }

    // Like the kernel's inet_proto_csum_replace_by_diff (net/core/utils.c).
    fn change_checksum(&mut self, at: usize, change: &Change, _family: Family) -> Option<()> {
        let field: u16 = self.read(at)?;
        let (pseudo, segment) = (u64::from(change.pseudo.wsum()), u64::from(change.segment.wsum()));
        let changed = if self.partial {
            fold(u64::from(field) + pseudo)
        } else {
            !fold(u64::from(!field) + pseudo + segment)
        };
        self.write(at, &changed)
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}
