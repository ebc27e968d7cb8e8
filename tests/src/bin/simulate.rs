//! The simulation as a command.

fn main() -> std::process::ExitCode {
    tests::simulate::main()
}
