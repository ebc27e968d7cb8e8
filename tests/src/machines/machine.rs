//! A virtual machine with a kernel of its own, on a [`Switch`]: booted, given orders, paused, killed.
//!
//! `cargo xtask` says by a file named in `$BALANCER_MACHINE` how one is booted; inside, [`crate::machines::guest`] takes
//! [`Order`]s.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::machines::orders::{self, Order, Ran};
use crate::network::switch::Switch;
use crate::support::lines::{Lines as _, Port};

/// Names the file that holds a [`Recipe`].
pub const RECIPE: &str = "BALANCER_MACHINE";
/// In the kernel's command line where the machine is to take orders.
pub const OBEY: &str = "balancer.orders";
/// Name of the port of a fleet inside.
pub const FLEET: &str = "fleet";
/// A machine takes orders within this: several are booted at the same time, by an emulated processor.
const BOOT: Duration = Duration::from_mins(2);
/// An order is carried out within this.
const ANSWER: Duration = Duration::from_mins(1);
/// QEMU has made its sockets within this.
const SOCKETS: Duration = Duration::from_secs(20);
/// A machine without runs needs no more, MiB.
const MEMORY: &str = "640";

/// How every machine is booted.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Recipe {
    /// QEMU, or a program that starts it, with the options that all machines have.
    pub command: Vec<String>,
    pub append: String,
    /// Directory for the output of the consoles.
    pub logs: PathBuf,
}

impl Recipe {
    /// The one that `cargo xtask` made.
    pub fn find() -> Result<Self> {
        let path = std::env::var_os(RECIPE).with_context(|| {
            format!("no {RECIPE}: `cargo xtask machines` runs this, with a kernel to boot")
        })?;
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("failed to read {}", Path::new(&path).display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is strange", Path::new(&path).display()))
    }
}

/// A running machine; killed on drop.
#[derive(Debug)]
pub struct Machine {
    name: String,
    directory: PathBuf,
    console: PathBuf,
    qemu: Qemu,
    orders: Mutex<Port>,
}

impl Machine {
    /// Boots the machine `name` with a card of hardware address 52:54:00:77:00:`number` on `switch`;
    /// [`Machine::await_ready`] waits for it. Its sockets are in `directory`. It ends with the calling thread, which must
    /// be the run's.
    pub fn boot(recipe: &Recipe, directory: &Path, switch: &Switch, name: &str, number: u8) -> Result<Self> {
        let socket = |port: &str| directory.join(format!("{name}.{port}"));
        let console = recipe.logs.join(format!("machine-{name}.log"));
        let log = File::create(&console).with_context(|| format!("failed to make {}", console.display()))?;
        let complaints = log.try_clone().context("failed to clone a file")?;
        let (program, arguments) = recipe.command.split_first().context("a recipe names a program")?;
        let mut command = Command::new(program);
        command.args(arguments).args(["-m", MEMORY, "-smp", "1", "-append"]);
        command.arg(format!("{} {OBEY}", recipe.append));
        command.args(["-netdev", &switch.netdev(name), "-device"]);
        command.arg(format!("virtio-net-pci,netdev=net,mac=52:54:00:77:00:{number:02x},romfile="));
        command.args(["-device", "virtio-serial-pci"]);
        for port in [orders::PORT, FLEET] {
            let path = socket(port);
            // A machine that was killed left it behind.
            let _ = std::fs::remove_file(&path);
            command
                .args(["-chardev", &format!("socket,id={port},path={},server=on,wait=off", path.display())]);
            command.args(["-device", &format!("virtserialport,chardev={port},name={port}")]);
        }
        command.stdin(Stdio::null()).stdout(log).stderr(complaints);
        let qemu = Qemu(command.spawn().with_context(|| format!("failed to start {program}"))?);
        let orders = Port::connect(name, &socket(orders::PORT), SOCKETS);
        let orders = orders.with_context(|| format!("machine {name} does not start: {}", last(&console)))?;
        let orders = Mutex::new(orders);
        Ok(Self { name: name.to_owned(), directory: directory.to_owned(), console, qemu, orders })
    }

    pub fn await_ready(&self) -> Result<()> {
        let line = self.orders().read_line(BOOT);
        let line = line.with_context(|| format!("machine {}: {}", self.name, last(&self.console)))?;
        if line != orders::READY {
            bail!("machine {} said {line:?}", self.name);
        }
        Ok(())
    }

    fn orders(&self) -> MutexGuard<'_, Port> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn fleet_port(&self) -> Result<Port> {
        Port::connect(
            &format!("{}.{FLEET}", self.name),
            &self.directory.join(format!("{}.{FLEET}", self.name)),
            SOCKETS,
        )
    }

    /// Has an order carried out that has no answer.
    pub fn tell(&self, order: &Order) -> Result<()> {
        self.order::<Value>(order).map(drop)
    }

    /// Has an order carried out; returns the answer.
    pub fn order<T: DeserializeOwned>(&self, order: &Order) -> Result<T> {
        let ask = || -> Result<Value> {
            let mut orders = self.orders();
            orders.write_line(&serde_json::to_string(order)?)?;
            let answer: Value = serde_json::from_str(&orders.read_line(ANSWER)?)?;
            match answer.get("error") {
                None => Ok(answer.get("ok").cloned().unwrap_or_default()),
                Some(error) => Err(anyhow!("{error}")),
            }
        };
        let doing = || format!("machine {}: {order:?}", self.name);
        serde_json::from_value(ask().with_context(doing)?).with_context(doing)
    }

    /// Runs a command line (split at white space) to its end inside; returns its standard output.
    pub fn exec(&self, line: &str) -> Result<String> {
        self.run(line, &[0])
    }

    /// The same for `status` and `check`, which end with 1 where not all is well.
    pub fn judge(&self, line: &str) -> Result<String> {
        self.run(line, &[0, 1])
    }

    fn run(&self, line: &str, codes: &[i32]) -> Result<String> {
        let command = line.split_whitespace().map(str::to_owned).collect();
        let ran: Ran = self.order(&Order::Run { command })?;
        if !ran.code.is_some_and(|code| codes.contains(&code)) {
            bail!("machine {}: {line}: {ran:?}", self.name);
        }
        Ok(ran.output)
    }

    /// Pauses the machine, as if its host had stopped, or lets it go on.
    pub fn pause(&self, pause: bool) -> Result<()> {
        let signal = if pause { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(Pid::from_raw(self.qemu.0.id().cast_signed()), signal)
            .with_context(|| format!("failed to send {signal} to machine {}", self.name))
    }
}

#[derive(Debug)]
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The end of a console's output.
fn last(console: &Path) -> String {
    let text = std::fs::read(console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join(" | ")
}
