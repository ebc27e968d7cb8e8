//! Pinned links: replacing an attached program by a new one without a gap. aya updates the links of
//! classifiers only, and its query of a hook needs `CAP_SYS_ADMIN`. If the kernel makes no XDP link, aya attaches in another way, which may replace somebody
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
use aya::programs::TcAttachType;

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

/// Whether the link pinned at `pin` is there and still attached. A link outlives its attachment: somebody may have
/// detached it, or its target is gone.
pub fn is_attached(pin: &Path) -> bool {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    /// The beginning of the kernel's `struct bpf_link_info`.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        link_type: u32,
        id: u32,
        program: u32,
        pad: u32,
        /// Interface (XDP, tcx), inode of the namespace (`sk_lookup`), or lower half of the cgroup's number; 0: detached.
        target: u32,
        more: [u32; 11],
    }
    #[repr(C)]
    struct Attributes {
        link: i32,
        length: u32,
        info: u64,
    }
    let Ok(link) = open(pin) else { return false };
    let mut info = Info::default();
    let attributes =
        Attributes { link: link.as_raw_fd(), length: size_of::<Info>() as u32, info: (&raw mut info) as u64 };
    // SAFETY: the attributes are laid out as the kernel's `union bpf_attr` begins for this command. The kernel writes no
    // more than `length` bytes into `info`, which lives until the call returns.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const attributes, size_of::<Attributes>())
    };
    done >= 0 && info.target != 0
}

/// The numbers of the programs that an interface's tcx hook runs, in their order.
pub fn programs(ifindex: u32, direction: TcAttachType) -> io::Result<Vec<u32>> {
    const BPF_PROG_QUERY: libc::c_int = 16;
    const BPF_TCX_INGRESS: u32 = 46;
    const BPF_TCX_EGRESS: u32 = 47;
    /// `BPF_MPROG_MAX`.
    const MOST: usize = 64;
    #[repr(C)]
    struct Attributes {
        ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        programs: u64,
        count: u32,
        pad: u32,
        /// Further lists, not asked for, and the revision of the hook.
        more: [u64; 4],
    }
    let mut programs = [0_u32; MOST];
    let mut attributes = Attributes {
        ifindex,
        attach_type: if direction == TcAttachType::Egress { BPF_TCX_EGRESS } else { BPF_TCX_INGRESS },
        query_flags: 0,
        attach_flags: 0,
        programs: programs.as_mut_ptr() as u64,
        count: MOST as u32,
        pad: 0,
        more: [0; 4],
    };
    // SAFETY: the attributes are laid out as the kernel's `union bpf_attr` for this command. The kernel writes into them
    // and at most `count` numbers into `programs`; both live until the call returns.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut attributes, size_of::<Attributes>()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(programs.into_iter().take(attributes.count as usize).collect())
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
