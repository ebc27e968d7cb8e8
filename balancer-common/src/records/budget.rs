//! The count that limits admission, and the handshakes and sockets that it is made of.

use bytemuck::{Pod, Zeroable};

/// Seconds for which a handshake in progress holds its reservation. A power of two, so that a bucket's index
/// is a mask: the verifier does not follow remainders.
pub const HANDSHAKE_WINDOW_S: usize = 4;
/// Seconds for which final ACKs are checked after a handshake has outlived its reservation: longer than any
/// handshake (Linux gives up after 127 s of SYN retransmissions, tcp(7) `tcp_syn_retries`).
pub const CHECK_FINAL_ACK_S: u32 = 130;

/// The kernel's `struct bpf_spin_lock`; the kernel finds it by its name in the object's type information.
#[cfg(not(target_arch = "bpf"))]
pub type Lock = u32;
#[cfg(target_arch = "bpf")]
pub use lock::bpf_spin_lock as Lock;

#[cfg(target_arch = "bpf")]
mod lock {
    use bytemuck::{Pod, Zeroable};

    /// The verifier recognises the lock by this name (kernel `btf_find_spin_lock`).
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
    pub struct bpf_spin_lock {
        val: u32,
    }
}

/// Sockets and handshakes of this host's API, under one lock. Arithmetic in [`crate::policy::admission`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Budget {
    /// Held while any other field is read or written.
    pub lock: Lock,
    /// Clients' sockets in ESTABLISHED or CLOSE_WAIT.
    pub established: u32,
    /// Controllers' and exempt addresses' sockets in ESTABLISHED or CLOSE_WAIT.
    pub exempt: u32,
    /// Boot clock, seconds: the newest bucket.
    pub newest_s: u32,
    /// Boot clock, seconds: until then the programs check final ACKs.
    pub check_final_ack_until_s: u32,
    /// Handshakes begun in second `s`, at `s % 4`, for the last four seconds.
    pub handshakes: [u32; HANDSHAKE_WINDOW_S],
}

const _: () = assert!(size_of::<Budget>() == 36);

/// A handshake that has a reservation, or had one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct Reservation {
    /// Boot clock, seconds: the time of its reservation. 0: it has none and is decided at its final ACK.
    pub reserved_s: u32,
    /// The client's initial sequence number (host order).
    pub isn: u32,
    /// The acknowledgement number that completes the handshake (host order); 0: this host has not answered yet.
    pub ack: u32,
}

impl Reservation {
    /// No handshake. (Not an `Option`: LLVM spills the payload that a `None` does not have, and the verifier
    /// rejects the read of a register that was never written.)
    pub const NONE: Self = Self { reserved_s: 0, isn: 0, ack: 0 };
}

/// An established socket of the API.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct Tracked {
    /// Boot clock, seconds: the time at which it was established.
    pub since_s: u32,
    /// 1: a client's socket, 0: that of a controller or an exempt address.
    pub client: u8,
    /// 1: it existed before the programs were attached; [`super::Settings::adjust`] counts it.
    pub seeded: u8,
    /// Explicit padding.
    pub pad: [u8; 2],
}
