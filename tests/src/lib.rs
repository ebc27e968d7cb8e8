//! Fixtures of the runs that prove the balancer: real namespaces, real sockets, real TLS.
//!
//! A run reads from the outside in: [`cluster`] puts together a [`topology`] (hosts, bridge, router, [`delay`],
//! [`firewall`]), one [`stand_in`] API server (in a [`cgroup`], where memory matters) and one [`daemon`] a controller,
//! and a [`fleet`] of clients; [`libjuju`] is a client nobody here wrote.
//! A packet's way is tried apart: a [`frame`] in a [`scene`], decided on the [`host`] and in the [`kernel`]. What hostile
//! input reaches is fed with it by [`fuzz`]. In a virtual machine with a kernel of its own all this begins with [`guest`];
//! where each controller is a [`machine`], [`machines`] puts them together on a [`switch`] and gives them [`orders`]. What
//! both kinds of clusters are judged by is in [`judge`].
//! Everything is undone on drop; what a killed run left behind is removed by the next one with the same tag.

pub mod agent_conf;
pub mod cgroup;
pub mod cluster;
pub mod cost;
pub mod daemon;
pub mod delay;
pub mod demo;
pub mod eventually;
pub mod firewall;
pub mod fleet;
pub mod frame;
pub mod fuzz;
pub mod guest;
pub mod host;
pub mod judge;
pub mod kernel;
pub mod libjuju;
pub mod limits;
pub mod lines;
pub mod machine;
pub mod machines;
pub mod noise;
pub mod orders;
pub mod process;
pub mod rpc;
pub mod scene;
pub mod server;
pub mod sockopt;
pub mod stand_in;
pub mod switch;
pub mod testrun;
pub mod tls;
pub mod topology;
