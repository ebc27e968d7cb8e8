//! `/init` of the machines that `cargo xtask vm` boots.

fn main() {
    tests::machines::guest::main();
}
