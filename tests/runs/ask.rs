//! What the agent answers an operator: `explain`, `flows`, `clients` and `events`, against the connections as they are.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use balancer_common::records::{Flow, Kind, LAYOUT, Tuple, map};
use balancer_common::wire::{Address, Port};
use serde_json::Value;
use tests::cluster::{Cluster, ClusterOptions};
use tests::juju::fleet::{Dial, Fleet, Kind as Client};
use tests::support::eventually::{SOON, eventually};
use tests::support::files::write_private;
use tests::support::lines::Lines as _;
use tests::support::process::{Process, run};

const CLIENTS: usize = 6;
const PASSWORD: &str = "dGhlIHBhc3N3b3JkIG9m";
/// Nearly all that the table takes.
const MANY: u32 = 250_000;

fn ask(cluster: &Cluster, index: usize, arguments: &[&str]) -> Result<Value> {
    let text = cluster.daemons[index].operate(&[arguments, &["--json"]].concat())?;
    serde_json::from_str(&text).with_context(|| text)
}

/// Waits until a's only outcome for `address` is this one; returns the answer.
fn explained(cluster: &Cluster, address: &str, result: &str, owner: Option<&str>) -> Result<Value> {
    eventually(SOON, "the explanation", || {
        let told = ask(cluster, 0, &["explain", address])?;
        let outcomes = told["outcomes"].as_array().context("outcomes")?;
        let only = outcomes
            .first()
            .filter(|_| outcomes.len() == 1)
            .context("one outcome")
            .with_context(|| told.to_string())?;
        ensure!(only["result"] == result && only["controller"].as_str() == owner, "{told}");
        Ok(told)
    })
}

#[test]
fn an_explanation_comes_true_and_the_lists_are_the_kernel_s() -> Result<()> {
    let options = ClusterOptions { plain: true, nft: false, ..ClusterOptions::new("ask") };
    let mut cluster = Cluster::start(options)?;
    let client = cluster.net.clients[0].address(false).to_string();

    // a takes no clients, and one of the others does.
    let mut expected = [0, 0, 0];
    cluster.daemons[0].operate(&["drain", "--within", "1h"])?;
    for (owner, other) in [(1, 2), (2, 1)] {
        let name = ["a", "b", "c"][owner];
        cluster.daemons[owner].operate(&["resume"])?;
        // Refused until the owner is heard to take clients.
        eventually(SOON, "one owner alone", || {
            cluster.daemons[other].operate(&["drain", "--within", "1h"]).map(drop)
        })?;
        let told = explained(&cluster, &client, "relayed", Some(name))?;
        ensure!(told["controllers"][0]["why_not"][0] == "it is draining", "{told}");
        cluster.dial(name, Client::Raw, CLIENTS)?;
        expected[owner] = CLIENTS;
        let counts = cluster.await_total("they are counted", expected.iter().sum())?;
        ensure!(counts == expected, "{counts:?}, not {expected:?}");
    }
    // The control: from a controller's address, which a serves itself although it is being drained.
    let exempt = cluster.net.controllers[1].address(false).to_string();
    explained(&cluster, &exempt, "served", Some("a"))?;
    let mut own = Fleet::start(&cluster.net.controllers[1].namespace)?;
    own.dial_all(&Dial::new("own", Client::Raw, 2, &[cluster.address(0)]))?;
    eventually(SOON, "a serves them", || {
        let counts = cluster.exempt_counts()?;
        ensure!(counts == [2, 0, 0], "{counts:?}");
        Ok(())
    })?;

    let flows = ask(&cluster, 0, &["flows", "--client", &client, "--limit", "100"])?;
    ensure!(flows["matching"] == 2 * CLIENTS, "{flows}");
    let listed = flows["flows"].as_array().context("flows")?;
    let to_b = listed.iter().filter(|one| one["entry"] == "a" && one["owner"] == "b").count();
    ensure!((listed.len(), to_b) == (2 * CLIENTS, CLIENTS), "{flows}");
    ensure!(flows["relayed"]["b"] == serde_json::json!([CLIENTS, 0]), "{flows}");
    let at_b = ask(&cluster, 1, &["flows"])?;
    ensure!(
        at_b["flows"][0]["entry"] == "a" && at_b["relayed"]["a"] == serde_json::json!([0, CLIENTS]),
        "{at_b}"
    );
    ensure!(ask(&cluster, 0, &["flows", "--client", "192.0.2.1"])?["matching"] == 0, "nobody's");

    let clients = ask(&cluster, 0, &["clients"])?;
    let of = |address: &str| {
        let all = clients["clients"].as_array().map(Vec::as_slice).unwrap_or_default();
        let of = all.iter().find(|one| one["address"] == address).with_context(|| clients.to_string())?;
        anyhow::Ok((of["here"].clone(), of["relayed"].clone(), of["class"].to_string()))
    };
    let (here, relayed, class) = of(&client)?;
    ensure!(here == 0 && relayed == 2 * CLIENTS && class.contains("client"), "{clients}");
    let (here, relayed, class) = of(&exempt)?;
    ensure!(here == 2 && relayed == 0 && class.contains("controller: an address of b"), "{clients}");

    let events = cluster.daemons[0].operate(&["events", "--json"])?;
    let drained = events.lines().find(|line| line.contains("`balancer drain")).context("the command")?;
    let event: Value = serde_json::from_str(drained)?;
    let text = event["text"].as_str().context("a text")?;
    ensure!(text.contains(" by balancer (process "), "with its caller: {text}");
    // The log has the same words.
    cluster.daemons[0].await_log(0, text, SOON)?;
    let command = cluster.daemons[0].command(&["events", "--follow"]);
    let mut follower = Process::start(command, "events".to_owned())?;
    cluster.daemons[0].operate(&["resume"])?;
    let deadline = Instant::now() + SOON;
    while !follower.read_line(SOON)?.ends_with("taking clients again") {
        ensure!(Instant::now() < deadline, "the follower hears of it");
    }

    bundle(&mut cluster, &client)?;
    let (code, said) = cluster.daemons[0].judge(&["status", "--all", "--json"])?;
    let all: Value = serde_json::from_str(&said)?;
    let views = all["controllers"].as_array().context("controllers")?;
    let counts: Vec<_> = views.iter().map(|one| one["view"]["connections"].as_u64()).collect();
    ensure!(counts == [Some(0), Some(CLIENTS as u64), Some(CLIENTS as u64)], "{all}");
    let is_well = views.iter().all(|one| one["view"]["line"] == "OK");
    ensure!(code == i32::from(!is_well), "{code}: {all}");
    cluster.daemons[2].sigterm()?;
    eventually(SOON, "c is not heard", || {
        let (code, said) = cluster.daemons[0].judge(&["status", "--all"])?;
        ensure!(
            code == 1 && said.contains("1 without an answer") && said.contains("- is not heard"),
            "{said}"
        );
        Ok(())
    })?;

    many(&cluster)?;
    cluster.daemons[0].sigterm()?;
    for command in ["flows", "clients", "events"] {
        ensure!(cluster.daemons[0].cli(&[command])?.0 == Some(3), "no agent answers {command}");
    }
    ensure!(cluster.daemons[0].cli(&["explain", &client])?.0 == Some(3), "no agent");
    Ok(())
}

/// Lists are bounded however many relays there are, and the agent answers others meanwhile.
fn many(cluster: &Cluster) -> Result<()> {
    let pin = cluster.daemons[0].pins().join(LAYOUT).join("maps").join(map::LIVE);
    let mut live = HashMap::<_, Tuple, Flow>::try_from(Map::HashMap(MapData::from_pin(pin)?))?;
    let (_, sample) =
        live.iter().filter_map(Result::ok).find(|(_, flow)| flow.is(Kind::Forward)).context("a relay")?;
    let local = Address::from(cluster.net.controllers[0].address(false));
    for number in 0..MANY {
        let remote = Address::from(IpAddr::from((0x0b00_0000 + number).to_be_bytes()));
        let key = Tuple { remote, local, remote_port: Port::new(40_000), local_port: Port::new(17_070) };
        live.insert(key, sample, 0)?;
    }
    let begun = Instant::now();
    let list = cluster.daemons[0].command(&["flows", "--limit", "50", "--sort", "idle", "--json"]);
    let mut list = Process::start(list, "flows".to_owned())?;
    let status = Instant::now();
    cluster.daemons[0].status()?;
    println!("`status` meanwhile: {} ms", status.elapsed().as_millis());
    list.wait(SOON)?;
    let elapsed = begun.elapsed();
    let answer = ask(cluster, 0, &["flows", "--limit", "50", "--sort", "idle"])?;
    println!("50 of {} relays: {} ms", answer["matching"], elapsed.as_millis());
    ensure!(answer["matching"].as_u64() > Some(u64::from(MANY)), "{}", answer["matching"]);
    ensure!(answer["flows"].as_array().map(Vec::len) == Some(50), "{answer}");
    ensure!(elapsed < Duration::from_secs(20), "{elapsed:?}");
    let all = ask(cluster, 0, &["flows", "--limit", "1000000"])?;
    ensure!(all["flows"].as_array().map(Vec::len) == Some(10_000), "bounded");
    let clients = ask(cluster, 0, &["clients", "--limit", "5"])?;
    ensure!(clients["addresses"].as_u64() > Some(u64::from(MANY)), "{clients}");
    Ok(())
}

/// No secret is in a bundle, and a client's address only if it is asked for.
fn bundle(cluster: &mut Cluster, client: &str) -> Result<()> {
    let directory = cluster.directory().to_owned();
    let agents = directory.join("juju/agents/machine-0");
    std::fs::create_dir_all(&agents)?;
    write_private(&agents.join("agent.conf"), &format!("statepassword: {PASSWORD}\n"))?;
    let daemon = &mut cluster.daemons[0];
    daemon.config.paths.juju = Some(directory.join("juju"));
    let commented = format!("{}\n# {PASSWORD}\n# a comment\n", toml::to_string(&daemon.config)?);
    daemon.write_config_text(&commented)?;
    let cluster = &*cluster;
    let key = std::fs::read_to_string(directory.join("cluster.key"))?;
    let text = |options: &[&str], name: &str| {
        let file = directory.join(name);
        let file = file.to_str().context("a path in UTF-8")?;
        cluster.daemons[0].operate(&[&["support-bundle", file], options].concat())?;
        let again = cluster.daemons[0].cli(&["support-bundle", file])?;
        ensure!(again.0 == Some(1) && again.2.contains("exists"), "it is never overwritten: {again:?}");
        run(Command::new("tar").args(["-xzOf", file]))
    };
    let (bare, full) = (text(&[], "bare.tar.gz")?, text(&["--addresses"], "full.tar.gz")?);
    // The control: the same words of another file are found.
    ensure!(
        full.contains(client) && full.contains("taking clients again") && full.contains("MemTotal"),
        "{full}"
    );
    ensure!(
        !bare.contains(client) && bare.contains("address-1") && bare.contains("taking clients again"),
        "{bare}"
    );
    for text in [&bare, &full] {
        ensure!(!text.contains(PASSWORD) && text.contains("# a comment"), "the password is in it");
        ensure!(!text.contains(key.trim()) && text.contains("key_file"), "the key is in it");
        let own = cluster.net.controllers[0].address(false).to_string();
        ensure!(text.contains(&own), "the controllers' addresses stay");
    }
    Ok(())
}
