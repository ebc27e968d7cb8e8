//! The demo as a command; needs root.

fn main() -> std::process::ExitCode {
    tests::demo::main()
}
