//! Pinned links: putting a new program in an old one's place without a gap. aya updates the links of
//! classifiers only, so the two calls to bpf(2) are made here.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use anyhow::{Context, Result};

/// Makes the link pinned at `pin` run `program`. `false`: there is none, or what it was attached to
/// is gone; the pin is removed then.
///
/// # Errors
/// The kernel refused for another reason.
pub fn replace(pin: &Path, program: BorrowedFd<'_>) -> Result<bool> {
    if !pin.exists() {
        return Ok(false);
    }
    let link = open(pin).with_context(|| format!("failed to open the link {}", pin.display()))?;
    match update(&link, program) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
            fs::remove_file(pin).with_context(|| format!("failed to remove {}", pin.display()))?;
            Ok(false)
        }
        Err(error) => {
            Err(error).with_context(|| format!("failed to put a new program into {}", pin.display()))
        }
    }
}

/// `BPF_OBJ_GET`.
fn open(pin: &Path) -> io::Result<OwnedFd> {
    const BPF_OBJ_GET: libc::c_int = 7;
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(pin.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let attributes = Attributes { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the attributes are laid out as the kernel's `union bpf_attr` begins for this command,
    // and they and the path live until the call returns.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attributes, size_of::<Attributes>()) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_LINK_UPDATE`.
fn update(link: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_LINK_UPDATE: libc::c_int = 29;
    #[repr(C)]
    struct Attributes {
        link: i32,
        new_program: i32,
        flags: u32,
        old_program: u32,
    }
    let attributes =
        Attributes { link: link.as_raw_fd(), new_program: program.as_raw_fd(), flags: 0, old_program: 0 };
    // SAFETY: as in `open`; both descriptors are borrowed for the call.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_UPDATE, &raw const attributes, size_of::<Attributes>())
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
