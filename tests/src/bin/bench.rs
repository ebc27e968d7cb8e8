//! The bench as a command; needs root.

fn main() -> std::process::ExitCode {
    tests::bench::main()
}
