//! Clients whose networks are denied.

use std::net::IpAddr;

use balancer_common::hooks::Socket;
use balancer_common::records::{AddressClass, Class};
use tests::packet::host::World;

use crate::row::{Row, arrives};
use crate::scene::{Scene, TOWARDS, in_order, tuple};

/// `world`, where the client's address is denied.
fn denying(scene: &Scene, mut world: World) -> World {
    let bits = if scene.client.is_ipv4() { 24 } else { 112 };
    world.classes.push((network(scene.client), bits, AddressClass::new(Class::Denied, 0)));
    world
}

/// The network of the client.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(address) => (u32::from(address) & !0xff).to_be_bytes().into(),
        IpAddr::V6(address) => (u128::from(address) & !0xffff).to_be_bytes().into(),
    }
}

pub fn rows(scene: &Scene) -> Vec<Row> {
    let busy = denying(scene, scene.busy());
    let mut open_here = busy.clone();
    open_here.sockets.insert(scene.dialled(), Socket::Connection);
    let relaying = denying(scene, scene.relaying());
    let other = scene.syn().between((scene.elsewhere, 5555).into(), scene.api());
    vec![
        arrives("its SYN would be relayed", &busy, scene.syn()).dropped("denied"),
        arrives("its SYN would be served here", &denying(scene, scene.idle()), scene.syn()).dropped("denied"),
        arrives("its SYN on a connection that is open here", &open_here, scene.syn()).dropped("denied"),
        arrives("its SYN with data", &busy, scene.syn().payload(b"early")).dropped("denied"),
        arrives(
            "it is relayed by an entry that lets it in",
            &denying(scene, scene.world()),
            scene.incoming(),
        )
        .dropped("denied"),
        arrives("another client is not denied", &denying(scene, scene.idle()), other.clone())
            .passes("chosen")
            .also("arrived")
            .then(|world| scene.reserve(world, tuple(other.source, other.destination))),
        arrives("a connection of it that is open here goes on", &open_here, scene.ack()).passes("local"),
        arrives("a relay of it goes on", &relaying, scene.ack())
            .sent("forwarded", TOWARDS, scene.ack().between(scene.near(), scene.owner()))
            .then(|world| in_order(world, scene.dialled(), &scene.ack())),
    ]
}
