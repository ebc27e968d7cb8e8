//! How each command of the documents is run. Those of firewalls are not here: all that stand in the section on firewalls are
//! typed.

/// What is typed around a command, where, and what must come of it.
#[derive(Clone, Copy, Debug)]
pub struct Typed {
    /// Number of the controller.
    pub at: usize,
    pub before: &'static str,
    pub after: &'static str,
    pub codes: &'static [i32],
    /// Stands in the output.
    pub says: &'static str,
}

impl Typed {
    pub const PLAIN: Self = Self { at: B, before: "", after: "", codes: &[0], says: "" };

    const fn before(self, before: &'static str) -> Self {
        Self { before, ..self }
    }

    const fn after(self, after: &'static str) -> Self {
        Self { after, ..self }
    }

    const fn codes(self, codes: &'static [i32]) -> Self {
        Self { codes, ..self }
    }

    const fn at(self, at: usize) -> Self {
        Self { at, ..self }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum How {
    /// Typed first, on every controller.
    Install,
    /// Typed among the firewalls' rules.
    Firewall,
    /// Typed while a connection is relayed.
    Capture,
    /// Typed at a controller, in the order of the table.
    Here(Typed),
    /// A file and its test that run it.
    ByRun(&'static str, &'static str),
    /// Why it cannot be run.
    Never(&'static str),
    /// Words of a program, or the beginning of commands that the text does not spell out.
    Phrase,
}

use How::{ByRun, Capture, Firewall, Here, Install, Never, Phrase};

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

/// A command that ends with 0 and prints this.
const fn says(says: &'static str) -> How {
    Here(Typed { says, ..Typed::PLAIN })
}

const DONE: How = says("");
const JUJU: &str = "it is a command of Juju's client, which needs a real controller";
const PACKAGE: &str = "tests/runs/package.rs";
const BARE: &str = "a_bare_debian_is_installed_operated_and_purged";

pub const TABLE: &[(&str, How)] = &[
    ("apt install ./balancer_*_amd64.deb", Install),
    ("systemctl reload balancer", Firewall),
    ("tcpdump -ni any 'tcp port 17070 or tcp portrange 17080-17095'", Capture),
    ("ss -tn", Capture),
    ("balancer flows --client 192.0.2.7", Capture),
    ("balancer explain 192.0.2.7", Capture),
    ("balancer explain 10.0.4.7", Capture),
    ("balancer flows --client 10.0.4.0/24", Capture),
    ("balancer clients --limit 20", Capture),
    // In the order in which they are typed.
    ("balancer check", says("ok")),
    ("balancer status", says("OK")),
    ("balancer status --json", says("\"schema\"")),
    ("balancer status --all", says("OK")),
    ("balancer events", says("INFO")),
    ("balancer events --follow", Here(Typed::PLAIN.before("timeout 2 ").codes(&[124]))),
    ("balancer support-bundle", says(".tar.gz")),
    ("balancer rebalance", DONE),
    ("balancer rebalance --now --dry-run", DONE),
    ("balancer rebalance --now", DONE),
    ("balancer drain --within 10m", DONE),
    ("balancer drain --wait", DONE),
    ("balancer resume", DONE),
    ("balancer limit 5000", DONE),
    ("balancer limit default", DONE),
    ("balancer bypass", DONE),
    ("balancer bypass --for 1h", says("by itself in 3600 s")),
    ("balancer bypass --all", DONE),
    ("balancer on", says("at work again")),
    ("man balancer", says("balancer-drain")),
    ("man balancer-drain", says("--within")),
    ("systemctl stop balancer", DONE),
    ("systemctl start balancer", DONE),
    ("systemctl restart balancer", DONE),
    ("systemctl enable --now balancer", DONE),
    ("systemctl status balancer", says("active (running)")),
    ("journalctl --unit balancer", says("ready")),
    ("journalctl -u balancer", says("ready")),
    ("journalctl --unit balancer --priority warning", DONE),
    ("systemd-analyze security balancer", says("Overall exposure level")),
    ("systemctl status jujud-machine-0", Here(Typed { says: "active (running)", ..Typed::PLAIN }.at(A))),
    ("systemd-cgtop -m", says("balancer.service")),
    ("timedatectl", says("synchronized")),
    ("bpftool net", says("tc:")),
    ("ping -M do -s 1472", Here(Typed { says: "1 received", ..Typed::PLAIN }.after(" -c 1 10.77.0.11"))),
    (
        "sysctl net.ipv4.conf.eth0.forwarding=1",
        // Read-only to systemd, which would change those of this machine.
        Here(
            Typed { says: "net.ipv4.conf.eth0.forwarding = 1", ..Typed::PLAIN }
                .before("mount -o remount,bind,rw /proc/sys && ")
                .after(" && mount -o remount,bind,ro /proc/sys"),
        ),
    ),
    ("balancer keygen", says("/etc/balancer/cluster.key")),
    ("sha256sum /etc/balancer/cluster.key", says("/etc/balancer/cluster.key")),
    (
        "curl http://127.0.0.1:9117/metrics",
        Here(
            Typed { says: "balancer_connections", ..Typed::PLAIN }
                .before("printf '[metrics]\nlisten = \"127.0.0.1:9117\"\n[redirect]\nlisten = \"[::]:17079\"\n' > \
                         /etc/balancer/balancer.toml && systemctl restart balancer && ")
                .after(" --silent --retry 5 --retry-connrefused"),
        ),
    ),
    ("systemctl restart balancer-redirect", DONE),
    ("systemctl stop balancer-redirect", DONE),
    // The end.
    ("balancer uninstall", Here(Typed::PLAIN.before("systemctl stop balancer && ").at(C))),
    ("apt remove balancer", Here(Typed::PLAIN.after(" --yes").at(C))),
    ("apt purge balancer", Here(Typed::PLAIN.after(" --yes"))),
    // Not here.
    ("balancer top", ByRun("tests/runs/top.rs", "each_key_does_what_the_help_says")),
    ("balancer redirect", ByRun(PACKAGE, BARE)),
    ("juju status", Never(JUJU)),
    ("juju enable-ha", Never(JUJU)),
    ("apt remove", Phrase),
    ("ip link set", Phrase),
    ("v4 only", Phrase),
    ("v6 only", Phrase),
    ("try again", Phrase),
    ("b does not hear this controller", Phrase),
    ("a controller has another key", Phrase),
    ("clocks differ", Phrase),
    ("hook missing", Phrase),
    ("metrics are not served", Phrase),
    ("another program runs before ingress on interface eth0", Phrase),
];
