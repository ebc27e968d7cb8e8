//! Other software at the hooks of a host: a program that ends the chain ahead of all others, and a link that is detached.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};

use crate::network::namespace::Namespace;

/// Attaches a program ahead of all others at the ingress of `device` that accepts every packet and lets no other program
/// see it (`TCX_PASS`). It goes with the value.
pub fn end_chain(namespace: &Namespace, device: &str) -> Result<Ebpf> {
    let attach = || -> Result<Ebpf> {
        let mut ebpf = Ebpf::load(&object()).context("the object of two instructions")?;
        let program: &mut SchedClassifier = ebpf.program_mut(NAME).context("in the object")?.try_into()?;
        program.load()?;
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        program.attach_with_options(device, TcAttachType::Ingress, first)?;
        Ok(ebpf)
    };
    namespace.enter(attach)?.with_context(|| format!("a program ahead at {device}"))
}

/// Detaches the program of a pinned link from its hook, whoever holds the link.
pub fn detach_link(pin: &Path) -> io::Result<()> {
    const BPF_OBJ_GET: libc::c_int = 7;
    const BPF_LINK_DETACH: libc::c_int = 34;
    /// The beginning of the kernel's `union bpf_attr` for the first command.
    #[repr(C)]
    struct Pinned {
        path: u64,
        descriptor: u32,
        flags: u32,
    }
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let pinned = Pinned { path: path.as_ptr() as u64, descriptor: 0, flags: 0 };
    // SAFETY: the attributes are laid out as the kernel's, and the path that they point at ends with a zero; both live during
    // the call.
    let link = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const pinned, size_of_val(&pinned)) };
    let link = match i32::try_from(link) {
        // SAFETY: the kernel has just created this descriptor, and nobody else owns it.
        Ok(link) if link >= 0 => unsafe { OwnedFd::from_raw_fd(link) },
        _ => return Err(io::Error::last_os_error()),
    };
    let attributes = link.as_raw_fd().cast_unsigned();
    // SAFETY: for this command the attributes are the link's descriptor alone, which is open and lives during the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const attributes, size_of_val(&attributes))
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The program in the object.
const NAME: &str = "accept";
/// Sizes in an ELF file, in bytes.
const HEADER: usize = 64;
const SYMBOL: usize = 24;

/// Name, type, flags (allocated and executable), link, size of an entry, content.
type Section<'a> = (&'a str, u32, u64, u32, u64, &'a [u8]);

/// An ELF object with one classifier: `r0 = TCX_PASS; exit`.
fn object() -> Vec<u8> {
    const CODE: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    const NAMES: &[u8] = b"\0classifier\0license\0.symtab\0.strtab\0accept\0";
    let name = |name: &str| {
        let found = NAMES.windows(name.len() + 1).position(|place| place == format!("{name}\0").as_bytes());
        found.unwrap_or_default() as u32
    };
    let mut symbols = vec![0; SYMBOL];
    symbols.extend(name(NAME).to_le_bytes());
    // A global function in section 1, from its beginning.
    symbols.extend([0x12, 0, 1, 0]);
    symbols.extend([0_u64, CODE.len() as u64].iter().flat_map(|word| word.to_le_bytes()));

    let sections: [Section<'_>; 4] = [
        ("classifier", 1, 6, 0, 0, &CODE),
        ("license", 1, 2, 0, 0, b"GPL\0"),
        (".symtab", 2, 0, 4, SYMBOL as u64, &symbols),
        (".strtab", 3, 0, 0, 0, NAMES),
    ];
    let (mut contents, mut headers) = (vec![0; HEADER], vec![0; HEADER]);
    for (title, kind, flags, link, entry, content) in sections {
        contents.resize(contents.len().next_multiple_of(8), 0);
        headers.extend([name(title), kind].iter().flat_map(|word| word.to_le_bytes()));
        let place = [flags, 0, contents.len() as u64, content.len() as u64];
        headers.extend(place.iter().flat_map(|word| word.to_le_bytes()));
        // The first symbol that is global has the number 1.
        headers.extend([link, u32::from(link != 0)].iter().flat_map(|word| word.to_le_bytes()));
        headers.extend([8, entry].iter().flat_map(|word| word.to_le_bytes()));
        contents.extend(content);
    }
    contents.resize(contents.len().next_multiple_of(8), 0);

    let mut file = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // Relocatable, for BPF.
    file.extend([1_u16, 247].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(1_u32.to_le_bytes());
    file.extend([0, 0, contents.len() as u64].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(0_u32.to_le_bytes());
    let counts = [HEADER as u16, 0, 0, HEADER as u16, 5, 4];
    file.extend(counts.iter().flat_map(|word| word.to_le_bytes()));
    contents[..HEADER].copy_from_slice(&file);
    [contents, headers].concat()
}
