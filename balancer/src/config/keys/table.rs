//! The table of configuration keys, in the order of the documents.

use super::{
    DefaultValue::{self, Derived, Or, Required, Value},
    Key,
    Kind::{self, Choice, Flag, List, Number, Positive, Tables, Text, Whole},
};

const fn key(name: &'static str, kind: Kind, default: DefaultValue, help: &'static str) -> Key {
    Key { name, kind, default, help }
}

/// Keys that have gone, and their successors in words. They have no effect, and the operator is told so.
pub const REMOVED: &[(&str, &str)] = &[
    ("policy.memory_relay", MEMORY_SHARE),
    ("policy.memory_refuse", MEMORY_SHARE),
    ("policy.memory_shed", MEMORY_SHARE),
];

const MEMORY_SHARE: &str = "the memory guard no longer goes by the share of memory in use; remove the key, or write \
                            policy.memory_reserve, the headroom in MiB below which memory is short";

#[rustfmt::skip] // a table: name, values, default; help below
pub const KEYS: &[Key] = &[
    key("api.port", Whole(1, 65535), Or("the port in Juju's agent.conf", "17070"),
        "TCP port of the controllers' API."),
    key("api.interfaces", List("interface names"),
        Derived("every interface that holds an address of this controller, or by which it reaches clients and controllers", "[\"eth0\"]"),
        "Network interfaces on which clients arrive."),
    key("api.hook", Choice(&["auto", "tc", "xdp"]), Value("\"auto\""),
        "Where the packet programs attach. tc: traffic control only. auto: native XDP as well, on interfaces where it \
         is safe. xdp: as auto, with a warning for each interface where it is not."),
    key("api.hard_limit", Whole(1, u32::MAX),
        Derived("jujud's limit on open files less 4,000 (of a small one an eighth), logged at start", "10000"),
        "Most client connections that this controller admits; it refuses more."),
    key("api.health", Choice(&["https", "tcp", "none"]), Value("\"https\""),
        "How to find out whether the local API server is ready. https: GET /health answers 200. tcp: the port accepts a \
         connection. none: it always counts as ready."),
    key("api.exempt", List("networks"), Derived("none", "[\"10.9.0.0/16\"]"),
        "Networks whose connections are never limited, relayed or closed. The controllers' own addresses are always \
         exempt."),
    key("api.deny", List("networks"), Derived("none", "[\"203.0.113.0/24\"]"),
        "Networks whose clients get no new connection, neither here nor by relay. The same on every controller."),
    key("api.trust_firewall", Flag, Value("false"),
        "Relay clients although rules of this host's firewall keep some of them from the API port and not from the relay \
         ports. true: the firewall is settled otherwise."),

    key("cluster.name", Text("a controller's name"),
        Derived("the controller that has an address of this host", "\"a\""),
        "Name of this controller."),
    key("cluster.listen", Text("an IP address and a port"),
        Derived("this controller's first address (all of the host's where agent.conf lists the controllers), port 17078",
                "\"10.0.0.11:17078\""),
        "UDP address for peer sync. The port must be the same on every controller."),
    key("cluster.relay_ports", Text("a range of 1 to 64 TCP ports"), Value("\"17080-17095\""),
        "Ports at which relayed connections from the other controllers arrive, at least one for each of them. Firewalls \
         must let them through between the controllers."),
    key("cluster.key_file", Text("an absolute path"),
        Or("derived from the secret in Juju's agent.conf", "\"/etc/balancer/cluster.key\""),
        "File with the cluster's key, the same on every controller; `balancer keygen` makes one. Where \
         cluster.controllers is set, an existing /etc/balancer/cluster.key comes before agent.conf."),
    key("cluster.controllers", Tables, Derived("the addresses in Juju's agent.conf", "[]"),
        "One table for each controller, at most 16, this one included. The same on every controller."),
    key("cluster.controllers.name", Text("1 to 63 letters, digits, '-', '_' or '.'"), Required("\"a\""),
        "Name of the controller, unique in the cluster."),
    key("cluster.controllers.addresses", List("IP addresses"), Required("[\"10.0.0.11\", \"fd00::11\"]"),
        "Every address of the controller. Relays use the first one of each family."),
    key("cluster.controllers.weight", Positive(100.0), Value("1.0"),
        "Share of the clients relative to the other controllers."),

    key("policy.rebalance", Choice(&["on", "off", "dry-run"]), Value("\"on\""),
        "Whether a controller that has too many established connections closes some, so that their clients go elsewhere. \
         dry-run: only report them. Connections above a configured limit, or for which there is no memory, are closed in \
         any case."),
    key("policy.threshold", Number(1.0, 100.0), Value("1.2"),
        "A controller starts to close connections above this multiple of its share."),
    key("policy.min_excess", Whole(1, u32::MAX), Value("50"),
        "It starts only when it also has more than this many connections above its share."),
    key("policy.max_rate", Number(0.01, 100_000.0),
        Derived("no limit besides policy.login_rate and 0.5 % of the mean count, or two", "10.0"),
        "Most connections closed per second."),
    key("policy.login_rate", Number(0.1, 100_000.0), Value("4.0"),
        "Agent logins per second that one jujud admits, 4 in every known version of Juju. Connections are closed at no \
         more than half of this rate for each controller with room."),
    key("policy.steer", Choice(&["relay", "refuse", "off"]), Value("\"relay\""),
        "How to treat a new client that another controller should serve. relay: relay its connection there. refuse: \
         refuse it by RST, so that a client with several addresses tries the next one. off: serve it here."),
    key("policy.refuse_ratio", Text("a fraction below 1"), Derived("decided by the connection counts", "\"1/3\""),
        "With steer = \"refuse\": refuse this fraction of the new clients at random, regardless of the counts. One \
         controller refuses a client, so of three controllers no more than 1/3 of the clients can be refused."),
    key("policy.per_client_limit", Whole(1, u32::MAX), Derived("no limit", "100"),
        "Most connections of one client address at one controller."),
    key("policy.memory_guard", Flag, Value("true"),
        "Take fewer clients when the host or jujud's cgroup runs short of memory."),
    key("policy.memory_reserve", Whole(1, 1_048_576),
        Derived("the cost of 100 connections here, and at least 64 MiB or an eighth of the memory", "128"),
        "Headroom in MiB below which memory is short: new clients are relayed to other controllers, below half of it they \
         are refused, and below a quarter connections are closed. At most a quarter of the memory counts."),
    key("policy.memory_pressure", Number(0.01, 1.0), Value("0.20"),
        "Fraction of the time that tasks wait for memory (PSI, average of 10 s) from which memory is under pressure. \
         Pressure makes the memory guard act one stage earlier; with much headroom it only lowers this controller's weight."),

    key("metrics.listen", Text("a loopback address and a port, or \"unix:\" and an absolute path"),
        Derived("no metrics", "\"127.0.0.1:9117\""),
        "Where the agent serves its metrics for Prometheus, at the path /metrics. docs/metrics.md lists them."),

    key("redirect.listen", Text("an IP address and a port"), Derived("no redirector", "\"[::]:17079\""),
        "TCP address on which `balancer redirect` listens and sends clients that follow redirects to the controllers. The \
         unit balancer-redirect.service runs it."),

    key("paths.pins", Text("an absolute path"), Value("\"/sys/fs/bpf/balancer\""),
        "Directory on a BPF file system for pinned programs, links and maps."),
    key("paths.control", Text("an absolute path of at most 107 bytes"), Value("\"/run/balancer/control.sock\""),
        "Unix socket on which the agent answers commands, open to root only."),
    key("paths.view", Text("an absolute path of at most 107 bytes"), Value("\"/run/balancer-view/view.sock\""),
        "Unix socket on which the agent tells the controllers' states to `balancer redirect`, and nothing else. It is there \
         if redirect.listen is set."),
    key("paths.cgroup", Text("an absolute path"), Derived("where cgroup2 is mounted", "\"/sys/fs/cgroup\""),
        "Root of the cgroup2 hierarchy."),
    key("paths.juju", Text("an absolute path"), Value("\"/var/lib/juju\""),
        "Directory of Juju's agents, searched for the agent.conf of a controller."),
];
