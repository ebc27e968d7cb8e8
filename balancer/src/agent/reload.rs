//! Another configuration while the agent runs: SIGHUP, Juju's `agent.conf`, addresses that controllers report.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use balancer_common::records::{Controller as Slot, MAX_CONTROLLERS};
use log::{error, info, warn};

use super::{Agent, Configuration, bounds::Table, start};
use crate::{
    cluster::{membership::members, rotation::Tag, slots::assign},
    config::{self, Config, Host, KeySource, Source},
    host::notify,
    juju::{agent_conf::Follow, key::ClusterKey},
};

/// Between two looks whether a file has changed.
const LOOK: Duration = Duration::from_millis(500);
/// Between two attempts to read a file that could not be read.
const AGAIN: Duration = Duration::from_secs(1);

/// When the controllers are read again. Juju's file may be refused for a moment: half of it is written, or it lists an
/// address that the host has not got yet.
#[derive(Debug, Default)]
pub(super) struct Rereading {
    due: Option<Instant>,
    /// The reason of the last failure, and the number of failures.
    failed: Option<(String, u32)>,
}

impl Rereading {
    /// A file that cannot be read is tried again in its own time.
    fn ask(&mut self, now: Instant) {
        if self.failed.is_none() || self.due.is_none() {
            self.due = Some(now);
        }
    }

    fn take_due(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }

    /// Notes a failure. Returns whether the log does not know the reason yet.
    fn failed(&mut self, now: Instant, reason: String) -> bool {
        self.due = Some(now + AGAIN);
        let times = self.failed.as_ref().map_or(0, |(_, times)| *times);
        let is_new = self.failed.as_ref().is_none_or(|(known, _)| *known != reason);
        self.failed = Some((reason, times + 1));
        is_new
    }

    /// The reason why the controllers cannot be read now.
    pub(super) fn why(&self) -> Option<&String> {
        self.failed.as_ref().map(|(why, _)| why)
    }

    /// Notes a success. Returns the number of failures before it.
    fn worked(&mut self) -> u32 {
        self.failed.take().map_or(0, |(_, times)| times)
    }
}

impl Agent {
    /// SIGHUP: the new configuration, or the old one if the new one is not valid.
    pub(super) async fn reload(&mut self) {
        notify::reloading();
        let digest = config::digest(&self.config.path);
        let done = match self.read_again().await {
            Ok(config) => {
                for warning in &config.warnings {
                    warn!("{warning}");
                }
                let done = self.reconfigure(config).await;
                if done.is_ok() {
                    self.shown.digest = digest;
                }
                done
            }
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => {
                info!("configuration read again");
                self.shown.refused = None;
            }
            Err(error) => {
                let why = format!("{error:#}");
                error!("the configuration stays as it was: {why}");
                self.shown.refused = Some(why);
            }
        }
        notify::ready(&self.shown.headline);
    }

    /// Several times a second: Juju may have rewritten its file, somebody the key file, or a controller may have reported its
    /// addresses.
    pub(super) async fn follow_members(&mut self) {
        let now = Instant::now();
        let config = &mut self.config;
        let mut changed = false;
        if now >= self.schedule.files {
            self.schedule.files = now + LOOK;
            changed = config.follow.as_mut().is_some_and(Follow::changed)
                | config.follow_key.as_mut().is_some_and(Follow::changed);
        }
        let resolved = config.names.follow(now, &config.running.cluster.names).await;
        if changed || resolved {
            config.rereading.ask(now);
        }
        if config.rereading.take_due(now) {
            match self.read_members().await {
                Ok(()) => match self.config.rereading.worked() {
                    0 => {}
                    times => info!("the controllers could be read again, after {times} failures"),
                },
                Err(error) => self.not_read(now, &error),
            }
        }
        if self.cluster.take_regroup()
            && let Err(error) = self.regroup().await
        {
            self.not_read(now, &error);
        }
        let agreed = self.gossip.keys_agree();
        if self.cluster.follow_keys(now, agreed) {
            info!("relays go by the new key");
            self.write_views();
        }
    }

    fn not_read(&mut self, now: Instant, error: &anyhow::Error) {
        let reason = format!("{error:#}");
        if self.config.rereading.failed(now, reason.clone()) {
            error!("the controllers stay as they were, and are read again every second: {reason}");
        }
    }

    /// Reads Juju's file again, if the controllers come from there, and the key.
    async fn read_members(&mut self) -> Result<()> {
        let config = if self.config.follow.is_some() {
            self.read_again().await?
        } else {
            let mut cluster = self.cluster.listed().clone();
            cluster.key = cluster.key.again()?;
            Config { cluster, ..self.config.running.clone() }
        };
        if config.cluster == *self.cluster.listed() && self.config.rereading.failed.is_none() {
            let key = config.cluster.key.load()?;
            self.take_key(Instant::now(), key);
            return Ok(());
        }
        self.reconfigure(config).await?;
        self.tell_members();
        Ok(())
    }

    /// Takes in the addresses that the agents report, whether or not Juju's file can be read now.
    async fn regroup(&mut self) -> Result<()> {
        let config = Config { cluster: self.cluster.listed().clone(), ..self.config.running.clone() };
        self.reconfigure(config).await?;
        self.tell_members();
        Ok(())
    }

    fn tell_members(&mut self) {
        let controllers: Vec<_> = self.config.running.cluster.controllers.iter().map(describe).collect();
        let said = controllers.join("; ");
        if self.config.told != said {
            info!("controllers: {said}");
            self.config.told = said;
        }
    }

    /// jujud may have started, or started again with other limits.
    pub(super) fn adapt_limit(&mut self) {
        let (limit, reason) = start::limit(&self.config.running, self.jujud.memory.open_files());
        if self.balance.set_limit(limit)
            && let Some(reason) = reason
        {
            info!("hard limit: {reason}");
        }
    }

    async fn read_again(&self) -> Result<Config> {
        let addresses = self.programs.interfaces.host_addresses().await?;
        let host = Host { names: self.config.names.resolved().clone(), ..Host::here(&addresses) };
        Ok(Config::load_on(&self.config.path, &host)?)
    }

    /// The host has got or lost an address: Juju's list may mean another host by it now.
    pub(super) fn addresses_changed(&mut self) {
        if self.config.follow.is_some() {
            self.config.rereading.ask(Instant::now());
        }
    }

    /// Takes a new key once it has been there for a second: half a file may hold another secret.
    fn take_key(&mut self, now: Instant, key: ClusterKey) {
        let config = &mut self.config;
        if config.key == key {
            config.key_seen = None;
            return;
        }
        let since = match &config.key_seen {
            Some((seen, since)) if *seen == key => *since,
            Some(_) | None => now,
        };
        if now.duration_since(since) < AGAIN {
            config.key_seen = Some((key, since));
            config.rereading.due = Some(since + AGAIN);
        } else {
            config.key_seen = None;
            info!("the cluster has a new key; the old one is taken until every controller has the new one");
            self.gossip.replace_key(&key);
            self.cluster.replace_tag(Tag::of(&key));
            self.config.key = key;
        }
    }

    async fn reconfigure(&mut self, mut config: Config) -> Result<()> {
        let now = Instant::now();
        refuse_fixed(&self.config.running, &config)?;
        let key = config.cluster.key.load()?;
        let listed = config.cluster.clone();
        config.cluster = self.cluster.grouped(now, &listed);
        self.programs.api_interfaces(&config)?;
        let (cluster, running) = (&config.cluster, &self.config.running.cluster);
        if (&cluster.name, cluster.listen) != (&running.name, running.listen) {
            self.gossip.restart(&cluster.name, cluster.listen, &members(cluster)).await?;
        }
        let changed = cluster.controllers != running.controllers;
        let before = std::mem::replace(&mut self.config.running, config);
        if let Err(error) = self.adopt_controllers(now, listed) {
            self.config.running = before;
            return Err(error);
        }
        self.config.follow_files();
        self.take_key(now, key);
        if changed {
            self.balance.membership_changed(now);
        }
        self.adapt_limit();
        self.shown.metrics.listen(&self.config.running.metrics);
        self.jujud.prober.set_own(&self.config.running.cluster.this().addresses);
        self.write_addresses()?;
        // Connections that are there may be clients' since, or no longer.
        self.schedule.audit = now;
        self.interfaces_changed().await;
        self.look_at_firewall();
        self.write_views();
        Ok(())
    }

    /// Gives each controller of the running configuration a slot and a relay port, and hears it.
    pub(super) fn adopt_controllers(&mut self, now: Instant, listed: config::Cluster) -> Result<()> {
        let cluster = &self.config.running.cluster;
        let maps = &mut self.programs.data_path.maps;
        let mut slots: Vec<Slot> = maps.controllers()?;
        let wanted = cluster.controllers.iter().map(|one| (one.name.as_str(), &one.addresses[..]));
        let wanted: Vec<_> = wanted.collect();
        let indices = assign(&mut slots, &wanted, &cluster.name, cluster.relay_ports)?;
        // Each of the two that can refuse comes before the first that changes something.
        self.gossip.set_members(&members(cluster))?;
        for (index, slot) in slots.iter().enumerate() {
            maps.set_controller(index, slot)?;
        }
        self.cluster.adopt(now, listed, cluster, &indices, &slots);
        let without =
            wanted.iter().zip(&indices).filter(|(_, slot)| slot.is_none()).map(|((name, _), _)| *name);
        let without = without.collect::<Vec<_>>().join(", ");
        let room = indices.iter().flatten().count();
        self.programs.bounds.note(Table::Controllers, wanted.len(), room, |_| {
            format!(
                "nothing is relayed to or from {without}: the balancer takes {MAX_CONTROLLERS} controllers, and each but \
                 this one needs a port of cluster.relay_ports; their clients are served where they dial"
            )
        });
        Ok(())
    }
}

impl Configuration {
    /// Follows the files that the running configuration names now.
    pub(super) fn follow_files(&mut self) {
        let cluster = &self.running.cluster;
        let conf = match &cluster.source {
            Source::AgentConf(path) => Some(path),
            Source::File => None,
        };
        let key = match &cluster.key {
            KeySource::File(path) | KeySource::AgentConf { file: path, .. } => Some(path),
        };
        let follow = |known: Option<Follow>, path: Option<&PathBuf>| {
            let path = path?;
            known.filter(|known| known.path() == path).or_else(|| Some(Follow::new(path)))
        };
        self.follow = follow(self.follow.take(), conf);
        self.follow_key = follow(self.follow_key.take(), key);
    }
}

/// Refuses a configuration that changes a key which is fixed while the agent runs.
fn refuse_fixed(running: &Config, new: &Config) -> Result<()> {
    let fixed = [
        ("api.port", new.api.port == running.api.port),
        ("api.hook", new.api.hook == running.api.hook),
        ("api.health", new.api.health == running.api.health),
        ("cluster.relay_ports", new.cluster.relay_ports == running.cluster.relay_ports),
        ("redirect.listen", new.redirect == running.redirect),
        ("paths", new.paths == running.paths),
    ];
    match fixed.iter().find(|(_, same)| !same) {
        Some((key, _)) => bail!("{key} cannot change while the agent runs; restart it (connections go on)"),
        None => Ok(()),
    }
}

fn describe(controller: &config::Controller) -> String {
    let addresses: Vec<_> = controller.addresses.iter().map(ToString::to_string).collect();
    format!("{} ({})", controller.name, addresses.join(", "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The lines that every row's configuration begins with; `api` and `cluster` are the rest of these tables.
    fn config(api: &str, cluster: &str, rest: &str) -> Config {
        let text = format!(
            "[api]\n{api}\n[cluster]\nname = \"a\"\nkey_file = \"/k\"\n{cluster}\n\
             [[cluster.controllers]]\nname = \"a\"\naddresses = [\"10.0.0.1\"]\n{rest}"
        );
        let host = Host { cgroup2: Some("/cgroup".into()), ..Host::default() };
        Config::parse(Path::new("balancer.toml"), &text, &host)
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_reload_is_refused_where_the_agent_cannot_follow() {
        let b = "[[cluster.controllers]]\nname = \"b\"\naddresses = [\"10.0.0.2\"]";
        let running = config("", "", "");
        let rows = [
            ("port = 17071", "", "", Some("api.port")),
            ("hook = \"tc\"", "", "", Some("api.hook")),
            ("health = \"tcp\"", "", "", Some("api.health")),
            ("", "listen = \"10.0.0.1:17079\"", "", None),
            ("", "relay_ports = \"17090-17095\"", "", Some("cluster.relay_ports")),
            ("", "", "[paths]\ncontrol = \"/run/other.sock\"", Some("paths")),
            ("", "", "[redirect]\nlisten = \"[::]:17079\"", Some("redirect.listen")),
            ("", "", "", None),
            ("hard_limit = 5", "", "", None),
            ("exempt = [\"10.9.0.0/16\"]", "", "", None),
            ("deny = [\"203.0.113.0/24\"]", "", "", None),
            ("trust_firewall = true", "", "", None),
            ("interfaces = [\"eth1\"]", "", "", None),
            ("", "", b, None),
            ("", "", "[policy]\nsteer = \"off\"", None),
        ];
        for (api, cluster, rest, refused) in rows {
            let done = refuse_fixed(&running, &config(api, cluster, rest));
            let key = done.err().map(|error| error.to_string().split(' ').next().unwrap().to_owned());
            assert_eq!(key.as_deref(), refused, "{api} {cluster} {rest}");
        }
    }

    #[test]
    fn a_file_is_read_again_every_second_and_each_reason_told_once() {
        let start = Instant::now();
        let mut rereading = Rereading::default();
        // Milliseconds, whether the file is read, the reason if it fails then, and whether the log tells it.
        let rows = [
            (0, true, Some("half"), true),
            (100, false, None, false),
            (999, false, None, false),
            (1_000, true, Some("half"), false),
            (2_000, true, Some("no address"), true),
            (3_000, true, Some("no address"), false),
            (4_000, true, None, false),
            (9_000, false, None, false),
        ];
        rereading.ask(start);
        for (ms, read, reason, told) in rows {
            let now = start + Duration::from_millis(ms);
            assert_eq!(rereading.take_due(now), read, "{ms} ms");
            match reason {
                Some(reason) => assert_eq!(rereading.failed(now, reason.into()), told, "{ms} ms"),
                None if read => assert_eq!(rereading.worked(), 4, "{ms} ms"),
                None => {}
            }
        }
    }
}
