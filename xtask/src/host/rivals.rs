//! HAProxy and nginx for the bench: Debian's packages, unpacked in `target` and not installed, so that no service starts.

use std::path::PathBuf;

use super::unpack::unpack;
use crate::command::root;

const PACKAGES: [&str; 3] = ["haproxy", "nginx", "libnginx-mod-stream"];
/// Programs in [`PACKAGES`].
const PROGRAMS: [&str; 2] = ["usr/sbin/haproxy", "usr/sbin/nginx"];

/// The directory of the unpacked packages, which are fetched if they are missing. Without them the bench leaves these
/// programs out.
pub fn fetch() -> PathBuf {
    let directory = root().join("target/rivals");
    let is_there = PROGRAMS.iter().all(|program| directory.join(program).is_file());
    if !is_there && let Err(error) = unpack(&directory, &PACKAGES) {
        println!("HAProxy and nginx are left out: {error:#}");
    }
    directory
}
