//! Another configuration while the agent runs: SIGHUP, Juju's `agent.conf`, addresses that controllers report.

use std::time::Instant;

use anyhow::{Result, bail};
use balancer_common::records::{Controller as Slot, MAX_CONTROLLERS};
use log::{error, info, warn};

use super::{Agent, bounds::Table, start};
use crate::{
    cluster::{
        membership::{group, keep_name, members},
        slots::assign,
    },
    config::{self, Config},
    host::notify,
    juju::agent_conf::Follow,
};

impl Agent {
    /// SIGHUP: the new configuration, or the old one if the new one is not valid.
    pub(super) async fn reload(&mut self) {
        notify::reloading();
        let done = match self.read_again().await {
            Ok(config) => {
                for warning in &config.warnings {
                    warn!("{warning}");
                }
                self.reconfigure(config).await
            }
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => info!("configuration read again"),
            Err(error) => error!("the configuration stays as it was: {error:#}"),
        }
        notify::ready(&format!("{} client connections", self.load()));
    }

    /// Ten times a second: Juju may have rewritten its file, or a controller may have reported its addresses.
    pub(super) async fn follow_members(&mut self) {
        if self.config.follow.as_mut().is_some_and(Follow::changed) {
            self.follow_file().await;
        }
        if self.cluster.take_regroup() {
            let config = Config { cluster: self.cluster.listed().clone(), ..self.config.running.clone() };
            match self.reconfigure(config).await {
                Ok(()) => {
                    let controllers = self.config.running.cluster.controllers.iter();
                    let controllers: Vec<_> = controllers.map(describe).collect();
                    info!("controllers: {}", controllers.join("; "));
                }
                Err(error) => error!("the controllers stay as they were: {error:#}"),
            }
        }
    }

    async fn follow_file(&mut self) {
        let done = match self.read_again().await {
            Ok(config) if config.cluster == *self.cluster.listed() => return,
            Ok(config) => self.reconfigure(config).await,
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => info!("Juju has changed the controllers; they are read again"),
            Err(error) => error!("the controllers stay as they were: {error:#}"),
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
        let mut config = Config::load(&self.config.path, &addresses)?;
        keep_name(&mut config.cluster, &self.cluster.listed().name);
        Ok(config)
    }

    async fn reconfigure(&mut self, mut config: Config) -> Result<()> {
        let now = Instant::now();
        refuse_fixed(&self.config.running, &config)?;
        let listed = config.cluster.clone();
        config.cluster = group(&listed, &self.cluster.reported_by(&listed));
        self.programs.api_interfaces(&config)?;
        let changed = config.cluster.controllers != self.config.running.cluster.controllers;
        let before = std::mem::replace(&mut self.config.running, config);
        if let Err(error) = self.adopt_controllers(now, listed) {
            self.config.running = before;
            return Err(error);
        }
        if changed {
            self.balance.membership_changed(now);
        }
        self.adapt_limit();
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
        let names: Vec<&str> = cluster.controllers.iter().map(|one| one.name.as_str()).collect();
        let indices = assign(&mut slots, &names, &cluster.name, cluster.relay_ports)?;
        // Each of the two that can refuse comes before the first that changes something.
        self.gossip.set_members(&members(cluster))?;
        for (index, slot) in slots.iter().enumerate() {
            maps.set_controller(index, slot)?;
        }
        self.cluster.adopt(now, listed, cluster, &indices, &slots);
        let without = names.iter().zip(&indices).filter(|(_, slot)| slot.is_none()).map(|(name, _)| *name);
        let without = without.collect::<Vec<_>>().join(", ");
        self.bounds.note(Table::Controllers, names.len(), slots.len(), |_| {
            format!(
                "nothing is relayed to or from {without}: the balancer takes {MAX_CONTROLLERS} controllers, and their \
                 clients are served where they dial"
            )
        });
        Ok(())
    }
}

/// Refuses a configuration that changes a key which is fixed while the agent runs.
fn refuse_fixed(running: &Config, new: &Config) -> Result<()> {
    let fixed = [
        ("api.port", new.api.port == running.api.port),
        ("api.hook", new.api.hook == running.api.hook),
        ("api.health", new.api.health == running.api.health),
        ("cluster.name", new.cluster.name == running.cluster.name),
        ("cluster.listen", new.cluster.listen == running.cluster.listen),
        ("cluster.relay_ports", new.cluster.relay_ports == running.cluster.relay_ports),
        ("the cluster's key", new.cluster.key == running.cluster.key),
        ("paths", new.paths == running.paths),
    ];
    match fixed.iter().find(|(_, same)| !same) {
        Some((key, _)) => bail!("{key} cannot change while the agent runs; restart it (connections go on)"),
        None => Ok(()),
    }
}

fn describe(controller: &config::Controller) -> String {
    let addresses: Vec<_> = controller.addresses.iter().map(ToString::to_string).collect();
    addresses.join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Host;

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
            ("", "listen = \"10.0.0.1:17079\"", "", Some("cluster.listen")),
            ("", "relay_ports = \"17090-17095\"", "", Some("cluster.relay_ports")),
            ("", "", "[paths]\ncontrol = \"/run/other.sock\"", Some("paths")),
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
}
