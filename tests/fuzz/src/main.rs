//! libFuzzer before one of [`TARGETS`], which `FUZZ_TARGET` names; `cargo xtask fuzz` builds and starts it.
#![cfg_attr(feature = "libfuzzer", no_main)] // libFuzzer has one

use std::env;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tests::fuzz::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = env::var("FUZZ_TARGET").unwrap_or_default();
    let target = TARGETS.into_iter().find(|target| target.name == name);
    target
        .unwrap_or_else(|| panic!("FUZZ_TARGET={name:?} is none of {:?}", TARGETS.map(|target| target.name)))
});

fuzz_target!(init: LazyLock::force(&TARGET), |data: &[u8]| (TARGET.feed)(data));

#[cfg(not(feature = "libfuzzer"))]
fn main() {
    panic!("built without libFuzzer: use `cargo xtask fuzz`");
}
