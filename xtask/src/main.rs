//! The project's own commands, `cargo xtask VERB`; each verb is one file.
#![expect(clippy::print_stdout, reason = "reporting what it does is a command's job")]

mod builds;
mod command;
#[cfg(test)]
mod documents;
mod host;
mod qemu;
mod recipe;
mod results;
mod verbs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::verbs::{build, demo, fuzz, install, machines, soak, test, vm};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, version)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the one self-contained `balancer` binary, installing the tools that are missing
    Build,
    /// Format, clippy and every test, those in network namespaces included (needs root)
    Test(test::Arguments),
    /// Boot real kernels in QEMU and run the packet tables, the verifier's budgets and namespace runs inside (needs root)
    Vm(vm::Arguments),
    /// Boot three controllers and their clients as virtual machines, and do to them what may befall them (needs root)
    Machines(machines::Arguments),
    /// Churn, restarts and faults at random in network namespaces, for as long as one likes (needs root)
    Soak(soak::Arguments),
    /// Feed hostile input to all that reads what others wrote, for a minute each, guided by the code that it reaches
    Fuzz(fuzz::Arguments),
    /// Build, and show the balancer at work in network namespaces, in about a minute (needs root)
    Demo(demo::Arguments),
    /// Build, and put binary, systemd unit and example configuration in place (needs root)
    Install(install::Arguments),
}

fn main() -> ExitCode {
    let done = match CommandLine::parse().verb {
        Verb::Build => build::main(),
        Verb::Test(arguments) => test::main(&arguments),
        Verb::Vm(arguments) => vm::main(&arguments),
        Verb::Machines(arguments) => machines::main(&arguments),
        Verb::Soak(arguments) => soak::main(&arguments),
        Verb::Fuzz(arguments) => fuzz::main(&arguments),
        Verb::Demo(arguments) => demo::main(&arguments),
        Verb::Install(arguments) => install::main(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }
}
