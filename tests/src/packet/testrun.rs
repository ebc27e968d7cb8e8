//! `BPF_PROG_TEST_RUN` with a flag that aya does not pass.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

/// The receiving device has computed the frame's checksum. If that sum does not fit the frame that the
/// program leaves, the kernel fails the run with `EBADMSG` (Linux 6.17; before, `EINVAL`).
pub const CHECKSUM_COMPLETE: u32 = 1 << 2;

/// A program's return code, the length of the frame that it left in `out`, and the time that a run took.
#[derive(Clone, Copy, Debug)]
pub struct Returned {
    /// The return code.
    pub code: u32,
    /// Length in bytes.
    pub length: u32,
    /// Mean of all runs.
    pub took: Duration,
}

/// Runs a program once on the frame `data`; `context` is the beginning of its context. On an error, except
/// `EBADMSG`, nothing has run.
pub fn test_run(
    program: BorrowedFd<'_>,
    data: &[u8],
    out: &mut [u8],
    context: &[u8],
    flags: u32,
) -> io::Result<Returned> {
    test_runs(program, 1, data, out, context, flags)
}

/// Like [`test_run`], `times` in a row on the same frame: each run gets the frame as the one before has left it.
pub fn test_runs(
    program: BorrowedFd<'_>,
    times: u32,
    data: &[u8],
    out: &mut [u8],
    context: &[u8],
    flags: u32,
) -> io::Result<Returned> {
    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    /// The kernel's `union bpf_attr` for this command.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        program: u32,
        returned: u32,
        data_size: u32,
        out_size: u32,
        data: u64,
        out: u64,
        repeat: u32,
        duration: u32,
        context_size: u32,
        context_out_size: u32,
        context: u64,
        context_out: u64,
        flags: u32,
        cpu: u32,
        batch: u32,
        pad: u32,
    }
    let mut attributes = Attributes {
        program: program.as_raw_fd().cast_unsigned(),
        data_size: data.len() as u32,
        out_size: out.len() as u32,
        data: data.as_ptr() as u64,
        out: out.as_mut_ptr() as u64,
        repeat: times,
        context_size: context.len() as u32,
        // The kernel wants no address where there is no context.
        context: if context.is_empty() { 0 } else { context.as_ptr() as u64 },
        flags,
        ..Attributes::default()
    };
    // SAFETY: the attributes are laid out as the kernel's; they and the memory that they point at live until
    // the call returns; the kernel writes at most `out_size` bytes to `out`.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<Attributes>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let took = Duration::from_nanos(attributes.duration.into());
    Ok(Returned { code: attributes.returned, length: attributes.out_size, took })
}
