//! What an operator sees: each fault in the first line of `status`, in its exit code, and in the log, soon after it began.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::cluster::{Cluster, ClusterOptions, SYNC_PORT, hex_key};
use tests::juju::fleet::{Dial, How, Kind};
use tests::network::firewall;
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
    cluster.daemons[2].config.cluster.key_file = Some(key);
    cluster.daemons[2].restart()?;
    ensure_shown(&mut cluster, 1, "a controller has another key", "give every controller the same key")?;
    ensure_shown(&mut cluster, 1, "c is not heard", "is its host or its agent down")?;
    ensure_shown(&mut cluster, 2, "alone, no other controller is heard", "is this host cut off")?;
    cluster.daemons[2].sigterm()?;
    ensure!(cluster.daemons[2].cli(&["status"])?.0 == Some(3), "no agent");

    // A rule that drops takes a probe's patience twice.
    let reject = "tcp dport 17080-17095 reject with tcp reset";
    firewall::filter_input(&cluster.net.controllers[1].namespace, reject)?;
    cluster.daemons[0].restart()?;
    ensure_shown(&mut cluster, 0, "no client is relayed to b over IPv4", "through the firewall of b")?;
    Ok(())
}
