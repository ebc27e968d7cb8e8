//! Random churn, restarts and faults for a chosen time: `cargo xtask soak`. Memory stays flat, no count drifts, and
//! every table is empty when all clients have gone.
//!
//! `$BALANCER_SOAK_SECONDS` sets the length (short by default) and `$BALANCER_SOAK_SEED` the course: a run prints the
//! seed that repeats it.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::cluster::judge::{await_empty, counted, no_drift};
use tests::cluster::{Cluster, ClusterOptions};
use tests::juju::fleet::{Dial, How, Kind};
use tests::support::eventually::eventually;
use tests::support::noise::Noise;

/// Length of the run in every test run.
const SHORT_S: u64 = 25;
/// Fewer clients make a fault pointless; more are too many for one machine.
const CLIENTS: std::ops::Range<usize> = 100..1500;
/// Counts match the kernel's, and broken parts work again, within this: a server that lost a client with its silent
/// host probes it every 15 s.
const SETTLE: Duration = Duration::from_secs(30);
/// Interval between the echoes of a client.
const ECHO: Duration = Duration::from_secs(1);
/// Longer than the collector waits for a closed connection's last packets, and than TCP probes a silent peer.
const EMPTY: Duration = Duration::from_secs(90);
/// An agent's memory may grow by this many bytes from the first half of a run to the second.
const GROWTH: u64 = 3 << 20;

/// One random action on the cluster.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Step {
    Dial,
    CloseOrderly,
    CloseAbruptly,
    KillAgent,
    RestartAgent,
    SilenceHost,
    RestartServer,
    Bulk,
}

/// Faults are rarer than the clients' own actions.
const STEPS: [Step; 16] = [
    Step::Dial,
    Step::Dial,
    Step::Dial,
    Step::Dial,
    Step::Dial,
    Step::Dial,
    Step::CloseOrderly,
    Step::CloseOrderly,
    Step::CloseOrderly,
    Step::CloseAbruptly,
    Step::KillAgent,
    Step::KillAgent,
    Step::RestartAgent,
    Step::SilenceHost,
    Step::RestartServer,
    Step::Bulk,
];

/// A number from the environment.
fn given(name: &str) -> Result<Option<u64>> {
    let Some(text) = std::env::var_os(name) else { return Ok(None) };
    let number = text.to_str().and_then(|text| text.parse().ok());
    Ok(Some(number.with_context(|| format!("{name} is no number: {}", text.display()))?))
}

struct Course {
    cluster: Cluster,
    noise: Noise,
    dials: usize,
    done: BTreeMap<Step, usize>,
    lost: u64,
}

impl Course {
    fn take(&mut self, step: Step) -> Result<u64> {
        let index = self.noise.below(self.cluster.daemons.len());
        match step {
            Step::Dial => {
                self.dials += 1;
                let count = 20 + self.noise.below(100);
                let address = self.cluster.address(index);
                let mut dial = Dial::new(&format!("dial {}", self.dials), Kind::Single, count, &[address]);
                (dial.rate, dial.timeout_ms) = (200.0, 20_000);
                let dialled = self.cluster.fleet.dial(&dial)?;
                ensure!(dialled.ok == count && dialled.wrong_peer == 0, "every client gets in: {dialled:?}");
            }
            Step::CloseOrderly | Step::CloseAbruptly => {
                let how = if step == Step::CloseOrderly { How::Fin } else { How::Rst };
                let count = self.noise.below(150);
                self.cluster.fleet.close(count, how)?;
            }
            Step::KillAgent => {
                self.cluster.daemons[index].kill9();
                self.cluster.daemons[index].run()?;
            }
            Step::RestartAgent => drop(self.cluster.daemons[index].restart()?),
            Step::SilenceHost => {
                self.cluster.net.controllers[index].silence(true)?;
                std::thread::sleep(Duration::from_millis(self.noise.below(4000) as u64));
                self.cluster.net.controllers[index].silence(false)?;
            }
            Step::RestartServer => self.cluster.restart_server(index)?,
            Step::Bulk => {
                self.cluster.fleet.bulk(self.cluster.address(index), 5_000_000, SETTLE)?;
            }
        }
        *self.done.entry(step).or_default() += 1;
        self.settle(step)
    }

    /// Checks after each step that the counts match the kernel and the clients, that all controllers serve, and that
    /// only faults cost connections; returns the number lost.
    fn settle(&mut self, step: Step) -> Result<u64> {
        self.cluster.await_settled()?;
        let Self { cluster, lost: before, .. } = self;
        // A client that lost its relay with the entry notices when it next sends, and TCP may retransmit that late.
        let settled = Instant::now();
        let lost = eventually(SETTLE, &format!("the kernel's counts after {step:?}"), || {
            let (kernel, own, stats) = (cluster.counts()?, counted(cluster)?, cluster.fleet.stats()?);
            let heard = step != Step::SilenceHost || (settled.elapsed() > ECHO && stats.waiting == 0);
            let is_exact = kernel == own && kernel.iter().sum::<usize>() as u64 == stats.open;
            let (open, waiting) = (stats.open, stats.waiting);
            ensure!(heard && is_exact, "ss {kernel:?}, status {own:?}, clients {open}, {waiting} wait");
            Ok(stats.lost)
        })?;
        let lost = lost - std::mem::replace(before, lost);
        let is_fault = matches!(step, Step::SilenceHost | Step::RestartServer);
        ensure!(lost == 0 || is_fault, "{lost} connections were lost without a fault");
        Ok(lost)
    }

    /// Resident bytes of the largest agent.
    fn memory(&mut self) -> Result<u64> {
        let sizes = self.cluster.daemons.iter_mut().map(|daemon| daemon.process()?.resident_bytes());
        Ok(sizes.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or_default())
    }
}

#[test]
fn churn_restarts_and_faults_leave_nothing_behind() -> Result<()> {
    let length = Duration::from_secs(given("BALANCER_SOAK_SECONDS")?.unwrap_or(SHORT_S));
    let seed = given("BALANCER_SOAK_SEED")?.unwrap_or_else(|| Noise::fresh().next() >> 32);
    println!("seed {seed}, {} s", length.as_secs());
    // Shedding would end connections too; the policy runs cover it.
    let policy = toml::toml! { rebalance = "off" };
    let cluster = Cluster::start(ClusterOptions { policy, ..ClusterOptions::new("soak") })?;
    let (noise, done) = (Noise::new(seed), BTreeMap::new());
    let mut course = Course { cluster, noise, dials: 0, done, lost: 0 };
    course.cluster.fleet.traffic(ECHO)?;

    let started = Instant::now();
    let mut halves = [0, 0];
    while started.elapsed() < length {
        let open = course.cluster.fleet.stats()?.clients;
        let step = match open {
            few if few < CLIENTS.start => Step::Dial,
            many if many >= CLIENTS.end => Step::CloseOrderly,
            _ => STEPS[course.noise.below(STEPS.len())],
        };
        let begun = Instant::now();
        let lost = course
            .take(step)
            .with_context(|| format!("{step:?} after {:?}, seed {seed}", started.elapsed()))?;
        let half = usize::from(started.elapsed() > length / 2);
        halves[half] = halves[half].max(course.memory()?);
        println!(
            "{:6.1} s {step:?}: {:.1} s, {lost} lost, {:?}",
            started.elapsed().as_secs_f64(),
            begun.elapsed().as_secs_f64(),
            course.cluster.counts()?
        );
    }
    println!(
        "{:?}; agents' memory at most {} KiB, then {} KiB",
        course.done,
        halves[0] >> 10,
        halves[1] >> 10
    );
    ensure!(halves[1] <= halves[0] + GROWTH, "memory stays flat: {halves:?} bytes, seed {seed}");
    no_drift(&course.cluster)?;

    let cluster = &mut course.cluster;
    let clients = cluster.fleet.stats()?.clients;
    cluster.fleet.close(clients, How::Fin)?;
    await_empty(cluster, EMPTY).with_context(|| format!("seed {seed}"))?;
    no_drift(cluster)
}
