//! Clients that may not reach the API: kept out by the hosts' firewalls, or denied by the configuration.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::cluster::{API_PORT, Cluster, ClusterOptions};
use tests::juju::fleet::{Dial, How, Kind};
use tests::network::firewall;
use tests::network::knock::let_in;
use tests::support::eventually::{eventually, wait_for};
use tests::support::process::run;

use crate::DEADLINE;

const TRIES: usize = 20;
/// The agents look at the rules every 30 s.
const LOOKED: Duration = Duration::from_secs(35);
const OTHERS: usize = 30;

/// A cluster, a client that is to be kept out, and others that are not.
struct Scene {
    cluster: Cluster,
    blocked: SocketAddr,
    others: Vec<SocketAddr>,
}

impl Scene {
    fn start(tag: &str) -> Result<Self> {
        let options = ClusterOptions { balancer: false, client_addresses: 10, ..ClusterOptions::new(tag) };
        let cluster = Cluster::start(options)?;
        let mut others = cluster.client_addresses();
        Ok(Self { blocked: others.remove(0), others, cluster })
    }

    /// Connections of the blocked client that each controller has let in.
    fn attempts(&self, what: &str) -> Result<Vec<usize>> {
        let clients = &self.cluster.net.clients[0].namespace;
        let servers = self.cluster.addresses();
        let opened = servers.into_iter().map(|server| let_in(clients, self.blocked, server, TRIES));
        let opened = opened.collect::<Result<Vec<_>>>()?;
        println!("{what}: {opened:?} of {TRIES} at each controller");
        Ok(opened)
    }

    /// Checks that the blocked client stays out, and that others are served.
    fn ensure_kept_out(&mut self, what: &str) -> Result<()> {
        let opened = self.attempts(what)?;
        ensure!(opened == [0, 0, 0], "{what}: the client gets in: {opened:?}");
        self.dial_others(what)
    }

    fn dial_others(&mut self, what: &str) -> Result<()> {
        let dial = Dial::new(what, Kind::Single, OTHERS, &self.cluster.addresses());
        let dialled = self.cluster.fleet.dial(&Dial { bind: self.others.clone(), ..dial })?;
        ensure!(dialled.ok == OTHERS, "{what}: other clients are served: {dialled:?}");
        self.cluster.fleet.close(OTHERS, How::Fin)?;
        self.cluster.await_counts(DEADLINE, "all are closed", |counts| counts == [0, 0, 0]).map(drop)
    }

    /// Blocks the client at the API port on every controller, as operators do.
    fn block(&self) -> Result<()> {
        self.cluster
            .net
            .controllers
            .iter()
            .try_for_each(|host| firewall::block_at(&host.namespace, self.blocked.ip(), API_PORT))
    }

    /// Waits until no controller has a reason against relays, or until each names the rule as one.
    fn await_reason(&self, named: bool, deadline: Duration) -> Result<Vec<Value>> {
        let text = format!("ip saddr {} tcp dport {API_PORT} drop", self.blocked.ip());
        let is_wanted = |status: &Value| match status["not_relayed"][0].as_str() {
            Some(why) => named && why.contains("over IPv4: the rule") && why.contains(&text),
            None => !named,
        };
        let what = if named { "status names the rule" } else { "nothing speaks against relays" };
        let daemons = self.cluster.daemons.iter();
        daemons.map(|daemon| wait_for(deadline, what, || daemon.status(), is_wanted)).collect()
    }

    /// Relays that entries have opened for clients.
    fn relays(&self) -> Result<u64> {
        self.cluster.daemons.iter().map(|daemon| daemon.counter("opened")).sum()
    }

    /// Waits until other clients are relayed.
    fn await_relays(&mut self, what: &str) -> Result<()> {
        eventually(DEADLINE, what, || {
            let before = self.relays()?;
            self.dial_others(what)?;
            ensure!(self.relays()? > before, "no client is relayed: {}", self.cluster.daemons[0].status()?);
            Ok(())
        })
    }
}

#[test]
fn a_client_that_firewalls_keep_from_the_api_port_stays_out() -> Result<()> {
    let mut scene = Scene::start("pfilter")?;
    let open = scene.attempts("without a rule")?;
    ensure!(open == [TRIES; 3], "the client gets in while nothing blocks it: {open:?}");
    scene.block()?;
    scene.ensure_kept_out("blocked, without balancers")?;

    scene.cluster.start_balancers()?;
    let statuses = scene.await_reason(true, DEADLINE)?;
    ensure!(
        statuses.iter().all(|status| !status["not_relayed"].to_string().contains("IPv6")),
        "the rule is about IPv4 alone: {statuses:?}"
    );
    for daemon in &mut scene.cluster.daemons {
        daemon.await_log(0, "no client is relayed over IPv4: the rule", DEADLINE)?;
        let (_, check, _) = daemon.cli(&["check"])?;
        let line = check.lines().find(|line| line.contains("firewall ")).with_context(|| check.clone())?;
        ensure!(line.starts_with("WARN") && line.contains("nft 'insert rule"), "{check}");
    }
    let before = scene.relays()?;
    scene.ensure_kept_out("blocked before the agents started")?;
    ensure!(scene.relays()? == before, "no client is relayed");

    // The same without the look at the firewall, so that the runs above could fail.
    let trust = |scene: &mut Scene, trusts: Option<bool>| -> Result<()> {
        scene.cluster.daemons.iter_mut().try_for_each(|daemon| {
            daemon.config.api.trust_firewall = trusts;
            daemon.reload()
        })
    };
    trust(&mut scene, Some(true))?;
    scene.await_reason(false, DEADLINE)?;
    scene.await_relays("relays of other clients, as the firewall is trusted")?;
    let relayed = scene.attempts("blocked, and the firewall is trusted")?;
    ensure!(relayed.iter().sum::<usize>() > 0, "a relay passes the rule by: {relayed:?}");
    scene.cluster.await_counts(DEADLINE, "all are closed", |counts| counts == [0, 0, 0])?;
    trust(&mut scene, None)?;
    scene.await_reason(true, DEADLINE)?;
    scene.ensure_kept_out("blocked, and no longer trusted")?;

    // The command that status tells makes relays safe.
    for (daemon, host) in scene.cluster.daemons.iter().zip(&scene.cluster.net.controllers) {
        let why = daemon.status()?["not_relayed"][0].to_string();
        let rest = why.split_once("on every controller: ").with_context(|| why.clone())?.1;
        let command = rest.split_once("; or ").with_context(|| why.clone())?.0;
        run(host.namespace.command("sh").args(["-c", command]))?;
    }
    let extended = Instant::now();
    scene.await_reason(false, LOOKED)?;
    println!("relays are on again {:.0?} after the rules are extended", extended.elapsed());
    scene.await_relays("relays of other clients, as the rules are extended")?;
    scene.ensure_kept_out("blocked at the relay ports too")?;

    // A rule that comes while the agents run.
    for host in &scene.cluster.net.controllers {
        firewall::unblock(&host.namespace)?;
    }
    scene.block()?;
    let blocked = Instant::now();
    scene.await_reason(true, LOOKED)?;
    println!("relays are off {:.0?} after the rule", blocked.elapsed());
    scene.ensure_kept_out("blocked while the agents run")
}

#[test]
fn denied_clients_get_in_nowhere() -> Result<()> {
    let mut scene = Scene::start("pdeny")?;
    let denied = scene.blocked.ip().to_string();
    let (open, denied) = (None, Some(vec![denied]));
    let listed = denied.clone();
    scene.cluster.start_balancers_as(move |config| config.api.deny.clone_from(&listed))?;
    scene.await_relays("relays of other clients")?;
    scene.ensure_kept_out("denied")?;
    for daemon in &scene.cluster.daemons {
        ensure!(daemon.counter("denied")? >= TRIES as u64, "{}", daemon.status()?);
    }

    // An open connection goes on when its client is denied.
    let set = |scene: &mut Scene, deny: &Option<Vec<String>>| -> Result<()> {
        scene.cluster.daemons.iter_mut().try_for_each(|daemon| {
            daemon.config.api.deny.clone_from(deny);
            daemon.reload()
        })
    };
    set(&mut scene, &open)?;
    let opened = scene.attempts("no longer denied")?;
    ensure!(opened == [TRIES; 3], "the client gets in: {opened:?}");
    let dial = Dial::new("before", Kind::Single, TRIES, &scene.cluster.addresses());
    let dialled = scene.cluster.fleet.dial(&Dial { bind: vec![scene.blocked], ..dial })?;
    ensure!(dialled.ok == TRIES, "{dialled:?}");
    set(&mut scene, &denied)?;
    let opened = scene.attempts("denied again")?;
    ensure!(opened == [0; 3], "the client gets in: {opened:?}");
    let echoes = scene.cluster.fleet.stats()?.echoes;
    scene.cluster.fleet.traffic(Duration::from_millis(50))?;
    let stats = eventually(DEADLINE, "open connections go on", || {
        let stats = scene.cluster.fleet.stats()?;
        ensure!(stats.echoes >= echoes + 4 * TRIES as u64, "{stats:?}");
        Ok(stats)
    })?;
    ensure!(stats.lost == 0 && stats.open == TRIES as u64, "none is lost: {stats:?}");
    for daemon in &scene.cluster.daemons {
        ensure!(daemon.status()?["drift"] == 0, "{}", daemon.status()?);
    }
    Ok(())
}
