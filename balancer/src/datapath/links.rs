//! Pinned links: replacing an attached program by a new one without a gap. aya updates the links of
//! classifiers only. If the kernel makes no XDP link, aya attaches in another way, which may replace somebody
//! else's program. So these calls to bpf(2) are made here.

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

/// Makes the link pinned at `pin` run `program`. `false`: there is no link, or the link's target is gone; the
/// pin is then removed.
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
            Err(error).with_context(|| format!("failed to replace the program of {}", pin.display()))
        }
    }
}

/// Detaches the link pinned at `pin` and removes the pin, as far as they are there. A link whose last pin is removed stays
/// attached for a moment: the kernel frees the pin's inode, and with it the link, after an RCU grace period
/// (`bpf_free_inode`).
pub fn remove(pin: &Path) {
    if let Ok(link) = open(pin) {
        detach(&link);
    }
    let _: io::Result<()> = fs::remove_file(pin);
}

/// `BPF_LINK_DETACH`, Linux 5.9. It fails if the link's target is gone, and with it the attachment.
fn detach(link: &OwnedFd) {
    const BPF_LINK_DETACH: libc::c_int = 34;
    let descriptor = link.as_raw_fd();
    // SAFETY: the command's attributes are the link's descriptor alone, which lives until the call returns.
    unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const descriptor, size_of::<i32>()) };
}

/// Attaches an XDP program to an interface, in its driver, and pins the link. `EBUSY`: another program is
/// there. On an error nothing is attached.
pub fn attach_xdp(pin: &Path, program: BorrowedFd<'_>, ifindex: u32) -> io::Result<()> {
    const BPF_LINK_CREATE: libc::c_int = 28;
    const BPF_XDP: u32 = 37;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    #[repr(C)]
    struct Attributes {
        program: i32,
        ifindex: u32,
        attach_type: u32,
        flags: u32,
    }
    let attributes =
        Attributes { program: program.as_raw_fd(), ifindex, attach_type: BPF_XDP, flags: XDP_FLAGS_DRV_MODE };
    // SAFETY: the attributes are laid out as the kernel's `union bpf_attr` begins for this command, and live until the
    // call returns.
    let link = unsafe {
        descriptor(libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_CREATE,
            &raw const attributes,
            size_of::<Attributes>(),
        ))
    }?;
    on_path(BPF_OBJ_PIN, pin, link.as_raw_fd()).map(drop)
}

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;

fn open(pin: &Path) -> io::Result<OwnedFd> {
    let opened = on_path(BPF_OBJ_GET, pin, 0)?;
    // SAFETY: `opened` is the return value of this command.
    unsafe { descriptor(opened) }
}

/// Runs a command on the object pinned at a path.
fn on_path(command: libc::c_int, pin: &Path, fd: i32) -> io::Result<libc::c_long> {
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: i32,
        flags: u32,
    }
    let path = CString::new(pin.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let attributes = Attributes { path: path.as_ptr() as u64, fd, flags: 0 };
    // SAFETY: the attributes are laid out as the kernel's `union bpf_attr` begins for both commands,
    // and they and the path live until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attributes, size_of::<Attributes>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The descriptor that a call returned.
///
/// # Safety
/// If `returned` is a descriptor, the kernel has just created it, and nobody else owns it.
unsafe fn descriptor(returned: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(returned).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller promises it.
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
