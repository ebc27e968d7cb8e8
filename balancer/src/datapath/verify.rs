//! Loads one program without attaching it, to learn whether the kernel's verifier accepts it and at which
//! cost.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

/// Type and attach type of a program, by the kernel's numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Kind {
    program: u32,
    attach: u32,
}

impl Kind {
    /// `BPF_PROG_TYPE_SCHED_CLS`.
    pub const SCHED_CLS: Self = Self { program: 3, attach: 0 };
    /// `BPF_PROG_TYPE_XDP`.
    pub const XDP: Self = Self { program: 6, attach: 37 };
    /// `BPF_PROG_TYPE_SOCK_OPS`.
    pub const SOCK_OPS: Self = Self { program: 13, attach: 3 };
    /// `BPF_PROG_TYPE_SK_LOOKUP`.
    pub const SK_LOOKUP: Self = Self { program: 30, attach: 36 };
}

/// Loads a program of these instructions (`struct bpf_insn`, eight bytes each). The verifier writes its statistics into
/// `log` unless that is empty. `EACCES` or `EINVAL`: the verifier rejects it. Other
/// errors: this process may not load programs.
pub fn verify<I>(kind: Kind, instructions: &[I], log: &mut [u8]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const STATISTICS: u32 = 4;
    /// The beginning of the kernel's `union bpf_attr` for this command.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        program_type: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        expected_attach_type: u32,
    }
    const { assert!(size_of::<I>() == 8, "an instruction is eight bytes") };
    let mut attributes = Attributes {
        program_type: kind.program,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        expected_attach_type: kind.attach,
        ..Attributes::default()
    };
    if !log.is_empty() {
        attributes.log_level = STATISTICS;
        attributes.log_size = log.len() as u32;
        attributes.log = log.as_mut_ptr() as u64;
    }
    // SAFETY: the attributes are laid out as the kernel's; they and the memory that they point at live until
    // the call returns.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<Attributes>())
    };
    match i32::try_from(fd) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: the kernel has just created this descriptor, and nobody else owns it.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}
