//! All records of a hash map, thousands in a system call. aya asks for each key and each value by itself, which stops the
//! agent for a tenth of a second where there are 50,000 relays.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use aya::maps::MapData;
use bytemuck::Pod;

const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
/// Records of a call, unless a bucket of the map has more.
const AT_ONCE: usize = 4_096;

/// Every record, as [`visit`] shows them.
pub fn records<K: Pod, V: Pod>(map: &MapData) -> io::Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    visit(map, |key, value| all.push((*key, *value)))?;
    Ok(all)
}

/// Shows `note` every record. One that is added or removed meanwhile may be missing or present.
pub fn visit<K: Pod, V: Pod>(map: &MapData, mut note: impl FnMut(&K, &V)) -> io::Result<()> {
    let (mut keys, mut values) = (vec![K::zeroed(); AT_ONCE], vec![V::zeroed(); AT_ONCE]);
    let mut place = None;
    loop {
        let looked = look_up(map, &mut place, &mut keys, &mut values);
        match looked {
            Ok((count, is_end)) => {
                keys.iter().zip(&values).take(count).for_each(|(key, value)| note(key, value));
                if is_end {
                    return Ok(());
                }
            }
            // A bucket has more records than there is room for (kernel `__htab_map_lookup_and_delete_batch`).
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                let room = keys.len() * 2;
                keys.resize(room, K::zeroed());
                values.resize(room, V::zeroed());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Fills `keys` and `values` with the records from `place` on, and moves it. Returns how many there are, and whether these
/// were the last.
fn look_up<K: Pod, V: Pod>(
    map: &MapData,
    place: &mut Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, bool)> {
    /// The kernel's `union bpf_attr` for this command.
    #[repr(C)]
    struct Attributes {
        from: u64,
        to: u64,
        keys: u64,
        values: u64,
        count: u32,
        map: u32,
        elem_flags: u64,
        flags: u64,
    }
    let info = map.info().map_err(io::Error::other)?;
    if (info.key_size() as usize, info.value_size() as usize) != (size_of::<K>(), size_of::<V>()) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let from = *place;
    let mut to = 0_u32;
    let mut attributes = Attributes {
        from: from.as_ref().map_or(0, |from| &raw const *from as u64),
        to: &raw mut to as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: keys.len().min(values.len()) as u32,
        map: map.fd().as_fd().as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the attributes are laid out as the kernel's, and live until the call returns, as does the memory that they
    // point at. `keys` and `values` have room for `count` records of the sizes that the map has, as checked above; a place
    // in a hash map is a `u32`.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attributes, size_of::<Attributes>())
    };
    let error = io::Error::last_os_error();
    let is_end = done < 0 && error.raw_os_error() == Some(libc::ENOENT);
    if done < 0 && !is_end {
        return Err(error);
    }
    *place = Some(to);
    Ok((attributes.count as usize, is_end))
}
