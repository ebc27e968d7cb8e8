//! Socket options that the libraries in use do not name.

use std::io::Error;
use std::os::fd::{AsFd, AsRawFd};

/// Switches on an option with an integer as its value.
pub fn switch_on(socket: impl AsFd, level: libc::c_int, option: libc::c_int) -> Result<(), Error> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    let socket = socket.as_fd();
    // SAFETY: `socket` is an open descriptor, and the pointer is to `length` bytes that live through the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), length) };
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}
