//! What an operator sees: each fault in the first line of `status`, in its exit code, and in the log, soon after it began.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::cluster::daemon::Daemon;
use tests::cluster::{Cluster, ClusterOptions, SYNC_PORT, hex_key};
use tests::juju::fleet::{Dial, How, Kind};
use tests::network::firewall;
use tests::support::document::{blocks, commands};
use tests::support::eventually::{SOON, eventually};
use tests::support::files::write_private;
use tests::support::schema;

/// A fault shows within this.
const SHOWN: Duration = Duration::from_secs(3);
const LIMIT: usize = 20;

/// The first line of `status` at a controller, and its exit code.
fn first_line(cluster: &Cluster, index: usize) -> Result<(i32, String)> {
    let (code, said) = cluster.daemons[index].judge(&["status"])?;
    ensure!(said.lines().all(|line| line.chars().count() <= 80), "80 columns: {said}");
    Ok((code, said.lines().next().unwrap_or_default().to_owned()))
}

fn await_well(cluster: &Cluster, index: usize, what: &str) -> Result<()> {
    // Some reasons stay for a minute.
    let deadline = SOON + Duration::from_mins(1);
    eventually(deadline, what, || {
        let shown = first_line(cluster, index)?;
        ensure!(shown == (0, "OK".to_owned()), "{shown:?}");
        Ok(())
    })
}

/// Waits until controller `index` shows `words` in the first line of `status` and in the sentences of its JSON, and exits
/// with 1, and until its log has a warning with `remedy`.
fn ensure_shown(cluster: &mut Cluster, index: usize, words: &str, remedy: &str) -> Result<()> {
    let begun = Instant::now();
    eventually(SHOWN, words, || {
        let (code, line) = first_line(cluster, index)?;
        ensure!(code == 1 && line.starts_with("DEGRADED: ") && line.contains(words), "{code} {line}");
        Ok(())
    })?;
    let after = begun.elapsed();
    let status = cluster.daemons[index].status()?;
    let has_remedy = |reason: &Value| reason["sentence"].as_str().is_some_and(|text| text.contains(remedy));
    let reasons = status["reasons"].as_array().context("a list of reasons")?;
    ensure!(reasons.iter().any(has_remedy), "a sentence with {remedy:?}: {reasons:?}");
    cluster.daemons[index].await_log(0, remedy, SOON)?;
    println!("{words}: after {} ms", after.as_millis());
    Ok(())
}

#[test]
fn each_fault_shows_in_the_first_line_the_exit_code_and_the_log() -> Result<()> {
    let options = ClusterOptions {
        hard_limit: Some(LIMIT as u64),
        plain: true,
        nft: false,
        ..ClusterOptions::new("oper")
    };
    let mut cluster = Cluster::start(options)?;
    for index in 0..3 {
        await_well(&cluster, index, "all is well")?;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/status.schema.json");
    let described: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    schema::check(&described, &cluster.daemons[0].status()?, "status")?;

    let fill = Dial { concurrency: 10, ..Dial::new("fill", Kind::Raw, 3 * LIMIT, &[cluster.address(0)]) };
    cluster.fleet.dial_all(&fill)?;
    let refused = cluster.fleet.dial(&Dial::new("more", Kind::Raw, 10, &[cluster.address(0)]))?;
    ensure!(refused.refused == 10, "{refused:?}");
    ensure_shown(&mut cluster, 0, "limit of 20 reached", "raise api.hard_limit")?;
    ensure!(cluster.daemons[0].status()?["last_minute"]["refused"] == 10, "they are counted");
    cluster.fleet.close(3 * LIMIT, How::Fin)?;
    await_well(&cluster, 0, "there is room again")?;

    let good = cluster.daemons[0].config.clone();
    let text = toml::to_string(&good)?;
    ensure!(text.contains("[api]\n"), "{text}");
    cluster.daemons[0].write_config_text(&text.replacen("[api]\n", "[api]\nprot = 1\n", 1))?;
    cluster.daemons[0].hup()?;
    ensure_shown(&mut cluster, 0, "new configuration refused", "unknown key `prot`")?;
    cluster.daemons[0].config = good;
    cluster.daemons[0].reload()?;
    await_well(&cluster, 0, "it is taken back")?;

    cluster.servers[1].kill9();
    ensure_shown(&mut cluster, 1, "jujud is not ready", "is not ready: ")?;
    ensure_shown(&mut cluster, 0, "jujud on b is not ready", "is not ready")?;
    cluster.restart_server(1)?;
    await_well(&cluster, 0, "it is back")?;

    // b hears of a by c alone.
    let other = cluster.net.controllers[0].address(false);
    let b = &cluster.net.controllers[1].namespace;
    firewall::filter_input(b, &format!("ip saddr {other} udp dport {SYNC_PORT} drop"))?;
    ensure_shown(&mut cluster, 0, "b does not hear this controller", "block UDP 17078")?;
    firewall::allow_ports(&cluster.net.controllers[1].namespace)?;
    await_well(&cluster, 0, "b hears it again")?;

    cluster.daemons[0].detach_ingress()?;
    ensure_shown(&mut cluster, 0, "hook missing", "it is attached again")?;

    let key = cluster.directory().join("wrong.key");
    write_private(&key, &format!("{}\n", hex_key()))?;
    let good = cluster.daemons[2].config.cluster.key_file.replace(key);
    cluster.daemons[2].restart()?;
    ensure_shown(&mut cluster, 1, "a controller has another key", "give every controller the same key")?;
    ensure_shown(&mut cluster, 1, "c is not heard", "give every controller the same key")?;
    ensure_shown(&mut cluster, 2, "alone, no other controller is heard", "is this host cut off")?;
    cluster.daemons[2].sigterm()?;
    ensure!(cluster.daemons[2].cli(&["status"])?.0 == Some(3), "no agent");

    cluster.daemons[2].config.cluster.key_file = good;
    cluster.daemons[2].restart()?;
    cluster.daemons[0].restart()?;
    cluster.await_settled()?;
    await_well(&cluster, 0, "they have the same key")?;
    // The agents run, and nobody dials.
    firewall::drop_ports(&cluster.net.controllers[1].namespace, "17080-17095")?;
    ensure_shown(&mut cluster, 0, "no client is relayed to b over IPv4", "does a firewall drop TCP port")?;
    firewall::allow_ports(&cluster.net.controllers[1].namespace)?;
    cluster.daemons[0].await_log(0, "relays to controller b work over IPv4", SOON)
}

#[test]
fn a_controller_that_is_stopped_crashed_or_cut_off_is_told_apart() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { nft: false, ..ClusterOptions::new("silent") })?;
    cluster.daemons[1].sigterm()?;
    ensure_shown(&mut cluster, 0, "the agent on b is stopped", "`systemctl start balancer` at b")?;
    cluster.daemons[1].run()?;
    await_well(&cluster, 0, "it is started again")?;
    cluster.daemons[1].kill9();
    ensure_shown(&mut cluster, 0, "the agent on b has crashed or hangs", "`systemctl status balancer` at b")?;
    cluster.daemons[1].run()?;
    await_well(&cluster, 0, "it is back")?;
    cluster.daemons[1].process()?.signal(Signal::SIGSTOP)?;
    ensure_shown(&mut cluster, 0, "the agent on b has crashed or hangs", "`systemctl status balancer` at b")?;
    cluster.daemons[1].process()?.signal(Signal::SIGCONT)?;
    await_well(&cluster, 0, "it goes on")?;
    let other = cluster.net.controllers[0].address(false);
    firewall::filter_input(&cluster.net.controllers[1].namespace, &format!("ip saddr {other} drop"))?;
    cluster.daemons[1].kill9();
    ensure_shown(&mut cluster, 0, "b is down or cut off", "look at the host")
}

#[test]
fn other_users_learn_that_they_need_root() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions { plain: true, nft: false, ..ClusterOptions::new("users") })?;
    let daemon = &cluster.daemons[0];
    let shared = tempfile::tempdir()?;
    std::fs::set_permissions(shared.path(), std::fs::Permissions::from_mode(0o755))?;
    let config = shared.path().join("balancer.toml");
    std::fs::copy(daemon.config_path(), &config)?;
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o644))?;
    let binary = shared.path().join("balancer");
    std::fs::copy(&daemon.binary, &binary)?;
    let key = cluster.directory().join("new.key").display().to_string();
    let rows: [&[&str]; 10] = [
        &["run"],
        &["status"],
        &["check"],
        &["drain"],
        &["resume"],
        &["bypass"],
        &["on"],
        &["limit", "5"],
        &["rebalance"],
        &["uninstall"],
    ];
    let rows = rows.into_iter().map(|row| (row.to_vec(), true)).chain([(vec!["keygen", &key], false)]);
    for (arguments, configured) in rows {
        let mut command = std::process::Command::new(&binary);
        command.uid(65_534).gid(65_534).args(&arguments);
        if configured {
            command.arg("--config").arg(&config);
        }
        let output = command.output()?;
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(4), "{arguments:?}: {:?} {said}", output.status);
        ensure!(said.contains("root") || said.contains("sudo"), "{arguments:?}: {said}");
        println!("{arguments:?}: {}", said.trim());
    }
    Ok(())
}

/// The controllers that serve `count` new clients of controller `index`.
fn dialled(cluster: &mut Cluster, id: &str, count: usize, index: usize) -> Result<Vec<usize>> {
    let before = cluster.counts()?;
    let dial =
        Dial { concurrency: 10, rate: 60.0, ..Dial::new(id, Kind::Raw, count, &[cluster.address(index)]) };
    cluster.fleet.dial_all(&dial)?;
    let total = before.iter().sum::<usize>() + count;
    let after = cluster.await_total(id, total)?;
    Ok(after.iter().zip(before).map(|(after, before)| after.saturating_sub(before)).collect())
}

#[test]
fn a_bypass_serves_new_clients_where_they_dial_with_and_without_its_agent() -> Result<()> {
    let mut cluster =
        Cluster::start(ClusterOptions { plain: true, nft: false, ..ClusterOptions::new("bypass") })?;
    let spread = dialled(&mut cluster, "spread", 30, 0)?;
    ensure!(spread[0] < 20, "relayed without a bypass: {spread:?}");

    let said = cluster.daemons[0].operate(&["bypass", "--for", "1h"])?;
    ensure!(said.contains("by itself in 3600 s, or by `balancer on`"), "{said}");
    ensure!(dialled(&mut cluster, "bypassed", 30, 0)? == [30, 0, 0], "at once, and relays go on");
    ensure_shown(&mut cluster, 0, "bypassed, 59 min left", "`balancer on` ends")?;
    ensure_shown(&mut cluster, 1, "no client is relayed to a over IPv4", "has the balancer bypassed")?;
    cluster.daemons[0].await_log(0, "`balancer bypass --for 3600s` by balancer", SOON)?;
    let elsewhere = dialled(&mut cluster, "elsewhere", 120, 1)?;
    ensure!(elsewhere[0] == 0, "the others relay none to it: {elsewhere:?}");

    cluster.daemons[0].restart()?;
    ensure_shown(&mut cluster, 0, "bypassed, 59 min left", "`balancer on` ends")?;
    let said = cluster.daemons[0].operate(&["on"])?;
    ensure!(said.contains("at work again"), "{said}");
    await_well(&cluster, 0, "the bypass is over")?;
    await_well(&cluster, 1, "the bypass is over there")?;
    let spread = dialled(&mut cluster, "again", 60, 1)?;
    ensure!(spread[0] > 0, "they relay to it again: {spread:?}");

    cluster.daemons[0].process()?.signal(Signal::SIGSTOP)?;
    let begun = Instant::now();
    let (code, _, said) = cluster.daemons[0].cli(&["status"])?;
    ensure!(code == Some(3) && said.contains("hangs: "), "{code:?} {said}");
    ensure!(begun.elapsed() < SHOWN, "{:?}", begun.elapsed());
    let said = cluster.daemons[0].operate(&["bypass", "--all", "--for", "20s"])?;
    ensure!(said.contains("the programs are bypassed all the same"), "{said}");
    ensure!(dialled(&mut cluster, "hung", 30, 0)? == [30, 0, 0], "without its agent");
    cluster.daemons[0].process()?.signal(Signal::SIGCONT)?;
    let is_bypassed = |status: &Value| status["balance"]["bypass"]["all"] == true;
    cluster.daemons[0].await_status("it keeps to the bypass", is_bypassed)?;
    cluster.daemons[0].await_log(0, "the time of the bypass is over", 2 * SOON)?;
    await_well(&cluster, 0, "it is over by itself")
}

#[test]
fn the_first_day_is_as_the_document_says() -> Result<()> {
    let mut cluster =
        Cluster::start(ClusterOptions { plain: true, nft: false, ..ClusterOptions::new("first") })?;
    let mut dials = Vec::new();
    for (number, (language, lines)) in blocks("First day")?.into_iter().enumerate() {
        if language == "toml" {
            let written: toml::Table = toml::from_str(&lines)?;
            for daemon in &mut cluster.daemons {
                daemon.config.policy = written["policy"].as_table().context("a table")?.clone();
            }
            continue;
        }
        for line in commands(&lines) {
            match line {
                "systemctl restart balancer" => {
                    cluster.daemons.iter_mut().try_for_each(|d| d.restart().map(drop))?;
                }
                "systemctl reload balancer" => cluster.daemons.iter_mut().try_for_each(Daemon::reload)?,
                _ => {
                    let command = line.strip_prefix("balancer ").context("a command")?;
                    let arguments: Vec<_> = command.split(' ').collect();
                    let (code, said, error) = cluster.daemons[0].cli(&arguments)?;
                    println!("$ {line}\n{said}{error}");
                    ensure!(
                        matches!(code, Some(0 | 1)) && error.is_empty(),
                        "{line}: {code:?} {said}{error}"
                    );
                }
            }
        }
        cluster.await_settled()?;
        dials.push(dialled(&mut cluster, &format!("day{number}"), 30, 0)?);
    }
    ensure!(dials.len() == 3 && dials[0] == [30, 0, 0], "it only observes at first: {dials:?}");
    ensure!(dials[1][0] < 20, "then new clients are spread: {dials:?}");
    let policy = cluster.daemons[0].status()?["balance"]["rebalance"].clone();
    ensure!(policy == "on", "{policy}");
    Ok(())
}
