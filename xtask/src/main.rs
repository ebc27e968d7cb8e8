//! The project's own commands, `cargo xtask VERB`. Each verb has a file in `verbs`.
#![expect(clippy::print_stdout, reason = "commands report on standard output")]

mod builds;
mod command;
#[cfg(test)]
mod documents;
mod host;
mod parallel;
mod qemu;
mod recipe;
mod results;
mod step;
mod verbs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::host::root::NotRoot;
use self::verbs::{bench, build, demo, fuzz, hosts, install, machines, package, simulate, soak, test, vm};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, version)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the self-contained `balancer` binary, and install the tools that this needs
    Build,
    /// Check everything: format, lints, documentation, every test (needs root)
    Test(test::Arguments),
    /// Boot real kernels in QEMU, and test packets, verifier limits and some runs in each (needs root)
    Vm(vm::Arguments),
    /// Boot three controllers and their clients as virtual machines, and inject faults (needs root)
    Machines(machines::Arguments),
    /// Connect, restart and disconnect at random in network namespaces, for as long as you like (needs root)
    Soak(soak::Arguments),
    /// Try every layout and event of hosts and networks, without and with the balancer (needs root)
    Hosts(hosts::Arguments),
    /// Feed hostile input to every parser, a minute each, guided by code coverage
    Fuzz(fuzz::Arguments),
    /// Compare how the balancer and other rules spread up to a million clients, in simulated time
    Simulate(simulate::Arguments),
    /// Show the balancer at work in network namespaces, in about a minute (needs root)
    Demo(demo::Arguments),
    /// Measure the balancer beside plain routing, nftables, HAProxy and nginx (needs root)
    Bench(bench::Arguments),
    /// Install the binary, the systemd unit and an example configuration (needs root)
    Install(install::Arguments),
    /// Make a Debian package, and try it on Debians that systemd boots
    Package(package::Arguments),
}

fn main() -> ExitCode {
    let done = match CommandLine::parse().verb {
        Verb::Build => build::main(),
        Verb::Test(arguments) => test::main(&arguments),
        Verb::Vm(arguments) => vm::main(&arguments),
        Verb::Machines(arguments) => machines::main(&arguments),
        Verb::Soak(arguments) => soak::main(&arguments),
        Verb::Hosts(arguments) => hosts::main(&arguments),
        Verb::Fuzz(arguments) => fuzz::main(&arguments),
        Verb::Simulate(arguments) => simulate::main(&arguments),
        Verb::Demo(arguments) => demo::main(&arguments),
        Verb::Bench(arguments) => bench::main(&arguments),
        Verb::Install(arguments) => install::main(&arguments),
        Verb::Package(arguments) => package::main(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        if error.is::<NotRoot>() { ExitCode::from(2) } else { ExitCode::FAILURE }
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
