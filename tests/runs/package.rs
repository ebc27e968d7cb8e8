//! The Debian package on bare Debians that systemd has booted: installed by the commands of the documents, without a
//! configuration, then run, hung, upgraded, downgraded, removed and purged.

#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::cluster::judge::unharmed;
use tests::cluster::{Cluster, ClusterOptions, is_even};
use tests::juju::fleet::{Dial, Kind};
use tests::machines::controllers::{UNIT, await_well, boot, packages, status};
use tests::machines::debian::Debian;
use tests::support::document::{blocks, commands};
use tests::support::eventually::{SOON, eventually, wait_for};

const CLIENTS: usize = 120;
/// `WatchdogSec` and `RestartSec`, with slack.
const WATCHDOG: Duration = Duration::from_secs(30 + 2 + 30);
/// Files that Debian itself changes.
const DEBIANS: [&str; 6] = ["/var/log", "/var/lib/dpkg", "/var/lib/apt", "/var/cache", "/tmp", "/var/tmp"];

/// A line for each file: kind, mode, owner, path, and a file's size. The files that Debian itself changes are left out.
fn all_files(host: &Debian) -> Result<BTreeSet<String>> {
    let left_out = DEBIANS.map(|path| format!("-path {path} -prune")).join(" -o ");
    let directories = "-type d -printf '%y %m %u %p\\n'";
    let text =
        host.run(&format!("find / -xdev {left_out} -o {directories} -o -printf '%y %m %u %p %s\\n'"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// A property of the unit.
fn property(host: &Debian, name: &str) -> Result<String> {
    Ok(host.run(&format!("systemctl show --value --property {name} balancer"))?.trim().to_owned())
}

fn await_active(host: &Debian) -> Result<()> {
    wait_for(UNIT, "an active unit", || property(host, "ActiveState"), |state| state == "active").map(drop)
}

/// The agent's lines of the journal: priority and text.
fn journal(host: &Debian) -> Result<Vec<(String, String)>> {
    let text = host.run("journalctl --unit balancer --output json _COMM=balancer")?;
    let lines = text.lines().map(|line| {
        let entry: Value = serde_json::from_str(line)?;
        let field = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        Ok((field("PRIORITY"), field("MESSAGE")))
    });
    lines.collect()
}

/// Ensures that nobody was lost, and that 30 more clients get in unharmed.
fn serves(cluster: &mut Cluster, what: &str) -> Result<()> {
    cluster.dial(what, Kind::Single, 30)?;
    let stats = cluster.fleet.stats()?;
    println!("{what}: {:?}, {} lost", cluster.counts()?, stats.lost);
    ensure!((stats.lost, stats.data_errors) == (0, 0), "{what}: {stats:?}");
    Ok(())
}

/// Runs `work`, which replaces the agent, beside a stream of new clients; none of them and of the others is to notice.
fn replaced(
    cluster: &mut Cluster,
    host: &Debian,
    what: &str,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = property(host, "MainPID")?;
    let dial =
        Dial { rate: 20.0, ..Dial::new(&format!("beside {what}"), Kind::Single, 60, &[cluster.address(0)]) };
    cluster.fleet.start_dial(&dial)?;
    let start = Instant::now();
    work()?;
    await_active(host)?;
    unharmed(&cluster.fleet.dialled(&dial.id, UNIT)?, dial.count)?;
    let after = property(host, "MainPID")?;
    println!("{what}: process {before}, then {after}, {:.1} s", start.elapsed().as_secs_f64());
    ensure!(before != after, "{what}: another process runs");
    serves(cluster, what)
}

/// Turns the redirector on: it runs, comes back when it is killed, and has the key to itself.
fn redirects(host: &Debian) -> Result<()> {
    host.run("printf '[redirect]\\nlisten = \"[::]:17079\"\\n' > /etc/balancer/balancer.toml")?;
    host.run("! systemctl --quiet is-active balancer-redirect")?;
    host.run("systemctl restart balancer")?;
    let active =
        || host.run("systemctl is-active balancer-redirect || journalctl --unit 'balancer-redirect*'");
    wait_for(UNIT, "it starts with the agent", active, |text| text == "active\n")?;
    host.run("systemctl kill --signal KILL balancer-redirect")?;
    let restarts = || host.run("systemctl show --value --property NRestarts,ActiveState balancer-redirect");
    wait_for(UNIT, "a restart", restarts, |text| text.split_whitespace().eq(["1", "active"]))?;
    wait_for(
        UNIT,
        "it listens",
        || Ok(host.output("balancer check")?.stdout),
        |check| String::from_utf8_lossy(check).contains("a redirector listens on"),
    )?;
    // No file leads to the key but root's own, and the one that the process has open.
    host.run("test ! -e /run/balancer-redirect")?;
    let told = host.run("journalctl --unit balancer-redirect --output cat")?;
    println!("{told}");
    ensure!(!told.contains("states are not known"), "it reads the agent's view socket: {told}");
    let pid = host.run("systemctl show --value --property MainPID balancer-redirect")?;
    let status = host.run(&format!("cat /proc/{}/status", pid.trim()))?;
    let other = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    host.run(&format!("! {other} cat /proc/{}/fd/0 2> /dev/null", pid.trim()))?;
    ensure!(status.contains("CapBnd:\t0000000000000000") && !status.contains("Uid:\t0"), "{status}");
    host.run(
        "rm /etc/balancer/balancer.toml && systemctl restart balancer && systemctl stop balancer-redirect",
    )?;
    await_active(host)
}

#[test]
#[ignore = "needs two packages and a Debian: cargo xtask package --verify"]
fn a_bare_debian_is_installed_operated_and_purged() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { balancer: false, ..ClusterOptions::new("deb") })?;
    let start = Instant::now();
    let hosts = boot(&mut cluster, "BALANCER_DEBIAN")?;
    println!("three Debians: {:.1} s", start.elapsed().as_secs_f64());
    let bare = hosts.iter().map(all_files).collect::<Result<Vec<_>>>()?;

    // The documents' own commands; the first hosts cannot be well before the others are there.
    let blocks = blocks("Install")?;
    let (_, block) = blocks.iter().find(|(language, _)| language == "sh").context("no commands")?;
    let lines: Vec<&str> = commands(block).collect();
    ensure!((1..=6).contains(&lines.len()), "six commands or fewer: {lines:?}");
    for line in &lines {
        for host in &hosts {
            let output = host.output(&line.replace("apt install", "apt-get install --quiet=2"))?;
            let (said, errors) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            println!("# {line}\n{said}{errors}");
            ensure!(output.status.success() || line.starts_with("balancer "), "{line}: {}", output.status);
        }
    }
    await_well(&hosts)?;
    println!("three are well {:.1} s after they began to boot", start.elapsed().as_secs_f64());
    for host in &hosts {
        ensure!(property(host, "UnitFileState")? == "enabled");
        // The agent tells systemd once a second.
        wait_for(
            SOON,
            "OK in the unit's status",
            || property(host, "StatusText"),
            |text| text.starts_with("OK"),
        )?;
        for (unit, most) in [("balancer", 3.0), ("balancer-redirect", 2.0)] {
            let text = host.run(&format!("systemd-analyze security --no-pager {unit}"))?;
            let level = text.split(&format!("Overall exposure level for {unit}.service: ")).nth(1);
            let level = level.and_then(|rest| rest.split(' ').next()).context(text.clone())?;
            println!("systemd-analyze security {unit}: {level}");
            ensure!(level.parse::<f64>()? <= most, "{text}");
        }
    }
    cluster.dial("first", Kind::Single, CLIENTS)?;
    ensure!(is_even(&cluster.counts()?), "clients are spread: {:?}", cluster.counts()?);
    cluster.fleet.traffic(Duration::from_millis(300))?;

    let [a, b, c] = &hosts[..] else { unreachable!("three hosts") };
    redirects(b)?;
    a.run("systemctl reload balancer")?;
    eventually(UNIT, "a reload in the journal", || {
        let lines = journal(a)?;
        ensure!(lines.iter().any(|(_, line)| line.contains("configuration read again")), "{lines:?}");
        Ok(())
    })?;
    a.run("systemctl stop balancer")?;
    serves(&mut cluster, "without the agent of a")?;
    a.run("systemctl start balancer")?;
    await_active(a)?;
    replaced(&mut cluster, b, "hang", || {
        b.run("kill -STOP $(systemctl show --value --property MainPID balancer)")?;
        wait_for(WATCHDOG, "a restart", || property(b, "NRestarts"), |count| count == "1").map(drop)
    })?;

    let [older, newer] = packages()?;
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let upgrade = format!("apt-get install --yes ./newer/{}", name(&newer).context("a name")?);
    let downgrade = format!("apt-get install --yes --allow-downgrades ./{}", name(&older).context("a name")?);
    let version = |host: &Debian| host.run("dpkg-query --show --showformat '${Version}' balancer");
    let first = version(a)?;
    replaced(&mut cluster, a, "upgrade", || a.run(&upgrade).map(drop))?;
    ensure!(version(a)? > first, "a higher version");
    replaced(&mut cluster, a, "downgrade", || a.run(&downgrade).map(drop))?;
    ensure!(version(a)? == first, "the first version again");
    await_well(&hosts)?;

    let lines = hosts.iter().map(journal).collect::<Result<Vec<_>>>()?.concat();
    for level in ["4", "6"] {
        ensure!(lines.iter().any(|(priority, _)| priority == level), "lines of priority {level}: {lines:#?}");
    }
    for (_, line) in lines.iter().filter(|(priority, _)| priority.as_str() <= "4") {
        println!("warned: {line}");
    }
    let dated = lines.iter().find(|(_, line)| line.starts_with(['<', '[']) || line.starts_with("20"));
    ensure!(dated.is_none(), "journald has the time and the priority: {dated:?}");

    // A key and a configuration that were made by hand go by purge, and by nothing else.
    let said = c.run("balancer keygen 2>&1 && touch /etc/balancer/balancer.toml")?;
    ensure!(said.contains("this file is not used yet: the key comes from Juju's agent.conf"), "{said}");
    let (relays, cpu) = (status(c)?["relays"].clone(), property(c, "CPUUsageNSec")?);
    c.run("apt-get remove --yes balancer")?;
    println!("removed, with relays {relays}, after {cpu} ns of CPU");
    ensure!(cluster.net.controllers[2].namespace.tcx_programs()? == 0, "no program is attached");
    c.run("test ! -e /sys/fs/bpf/balancer")?;
    c.run("test -s /etc/balancer/cluster.key && test -f /etc/balancer/balancer.toml")?;
    cluster.dial("after a removal", Kind::Single, 30)?;
    for (host, before) in hosts.iter().zip(&bare).rev() {
        host.run("apt-get purge --yes balancer")?;
        let after = all_files(host)?;
        let differ: Vec<_> = after.symmetric_difference(before).collect();
        ensure!(differ.is_empty(), "purge leaves nothing: {differ:#?}");
        host.run("test ! -e /sys/fs/bpf/balancer && test ! -e /run/balancer")?;
        let rules = host.run("ip rule; ip -6 rule")?;
        ensure!(rules.lines().count() == 5, "no routing rule is left: {rules}");
    }
    ensure!(
        cluster.net.controllers.iter().map(|host| host.namespace.tcx_programs().unwrap_or(9)).sum::<usize>()
            == 0
    );
    println!("all in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
