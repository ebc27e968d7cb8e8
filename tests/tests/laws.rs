//! Conservation laws over any sequence of many clients' packets from an entry to an owner and back, on the
//! host: every event is counted exactly once, the next rewrite undoes each rewrite completely, and every
//! relay has both halves.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use balancer_common::records::{Flow, Kind, Tuple};
use balancer_common::verdict::{DropReason as Dropped, PassReason, SendReason};
use balancer_common::wire::Port;
use proptest::prelude::*;
use tests::packet::frame::{ACK, FIN, RST, SYN, Segment, verify};
use tests::packet::host::{self, Frame, Hook, Host, REDIRECT, UNSPEC, show};
use tests::packet::scene::{ANSWER, API, CAME_IN, OUT, Scene};

const CLIENTS: u16 = 8;

/// The next packet of a client, or of the owner's stack for it.
#[derive(Clone, Copy, Debug)]
struct Step {
    client: u16,
    what: What,
    /// Whether the network between entry and owner loses the packet.
    lost: bool,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Syn {
        anew: bool,
    },
    Answer,
    Refusal,
    /// `astray`: the distance of a number from the right one.
    FromClient {
        flags: u8,
        bytes: u8,
        astray: u32,
    },
    FromOwner {
        flags: u8,
        bytes: u8,
        astray: u32,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let flags = prop_oneof![6 => Just(ACK), 1 => Just(ACK | FIN), 1 => Just(RST), 1 => Just(ACK | RST)];
    let astray = prop_oneof![8 => Just(0), 1 => Just(1), 1 => Just(u32::MAX), 1 => Just(1 << 20)];
    let sent = (flags, any::<u8>(), astray);
    let what = prop_oneof![
        4 => any::<bool>().prop_map(|anew| What::Syn { anew }),
        4 => Just(What::Answer),
        1 => Just(What::Refusal),
        6 => sent.clone().prop_map(|(flags, bytes, astray)| What::FromClient { flags, bytes, astray }),
        6 => sent.prop_map(|(flags, bytes, astray)| What::FromOwner { flags, bytes, astray }),
    ];
    let step = (0..CLIENTS, what, prop::bool::weighted(0.1));
    let step = step.prop_map(|(client, what, lost)| Step { client, what, lost });
    prop::collection::vec(step, 1..200)
}

/// The entry A, the owner B, and the events so far.
struct Course {
    scene: Scene,
    entry: Host,
    owner: Host,
    /// Initial sequence numbers of clients' connections.
    isns: HashMap<u16, u32>,
    /// SYNs that reached the owner's stack, by client.
    arrived: HashMap<u16, u32>,
    /// Bytes that each client, and the owner's stack for it, have sent on its connection.
    sent: HashMap<u16, [u32; 2]>,
    /// Clients that have sent more than a SYN: their next SYN begins another connection.
    spoken: HashSet<u16>,
    relays_lost: u64,
}

impl Course {
    fn new(scene: fn(u64) -> Scene) -> Self {
        let scene_of_a = scene(1_000_000_000_000);
        let entry = Host::new(&scene_of_a.busy());
        let mut of_b = scene(1_000_000_000_000);
        std::mem::swap(&mut of_b.a, &mut of_b.b);
        let mut world = of_b.world();
        // The port that A relays to.
        world.controllers[1].relay_in = Port::new(OUT);
        Self {
            scene: scene_of_a,
            entry,
            owner: Host::new(&world),
            isns: HashMap::new(),
            arrived: HashMap::new(),
            sent: HashMap::new(),
            spoken: HashSet::new(),
            relays_lost: 0,
        }
    }

    /// An ACK of a client with the right numbers.
    fn segment(&self, client: u16) -> Segment {
        let [sent, heard] = self.sent(client);
        Segment::new((self.scene.client, 5000 + client).into(), self.scene.api())
            .seq(self.isn(client) + 1 + sent)
            .ack(ANSWER + heard)
    }

    fn sent(&self, client: u16) -> [u32; 2] {
        self.sent.get(&client).copied().unwrap_or_default()
    }

    fn isn(&self, client: u16) -> u32 {
        self.isns.get(&client).copied().unwrap_or(u32::from(client) << 16)
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        let Step { client, what, lost } = step;
        match what {
            What::Syn { anew } => {
                let anew = self.spoken.remove(&client) || anew;
                let isn = self.isn(client) + u32::from(anew) * 1000;
                if self.isns.insert(client, isn) != Some(isn) {
                    self.sent.remove(&client);
                }
                let syn = self.segment(client).flags(SYN).seq(isn).ack(0).syn_options(1400);
                self.client_sends(client, &syn, lost)
            }
            What::FromClient { flags, bytes, astray } => {
                self.spoken.insert(client);
                let segment = self.segment(client).flags(flags).payload(&vec![7; bytes.into()]);
                let segment = astray_by(astray, segment);
                self.sent.entry(client).or_default()[0] += u32::from(bytes);
                let before = self.entry.world().live.len();
                self.client_sends(client, &segment, lost)?;
                let knows = segment.ack.wrapping_sub(ANSWER) <= self.sent(client)[1];
                let is_first = segment.seq == self.isn(client) + 1 && knows;
                prop_assert!(
                    is_first || self.entry.world().live.len() <= before,
                    "only the client completes it"
                );
                Ok(())
            }
            What::Answer => {
                let Some(&isn) = self.arrived.get(&client) else { return Ok(()) };
                let answer = self
                    .owners(client)
                    .flags(SYN | ACK)
                    .seq(ANSWER - 1)
                    .ack(isn.wrapping_add(1))
                    .syn_options(1400);
                self.owner_sends(client, &answer, lost)
            }
            What::Refusal => {
                let Some(&isn) = self.arrived.get(&client) else { return Ok(()) };
                // The stack must not see the trailer.
                let refusal = self.owners(client).flags(RST | ACK).seq(0).ack(isn.wrapping_add(1));
                self.owner_sends(client, &refusal, lost)
            }
            What::FromOwner { flags, bytes, astray } => {
                if !self.arrived.contains_key(&client) {
                    return Ok(());
                }
                let segment = self.owners(client).flags(flags).payload(&vec![9; bytes.into()]);
                let segment = astray_by(astray, segment);
                self.sent.entry(client).or_default()[1] += u32::from(bytes);
                self.owner_sends(client, &segment, lost)
            }
        }
    }

    /// An ACK of the owner's stack to a client, with the right numbers.
    fn owners(&self, client: u16) -> Segment {
        let [heard, sent] = self.sent(client);
        Segment::new((self.scene.b, OUT).into(), (self.scene.client, 5000 + client).into())
            .seq(ANSWER + sent)
            .ack(self.isn(client) + 1 + heard)
    }

    fn client_sends(&mut self, client: u16, segment: &Segment, lost: bool) -> Result<(), TestCaseError> {
        let sent = self.entry.world().traffic[1].sent;
        let (code, mut frame) = run(&self.entry, Hook::Ingress, &segment.frame())?;
        if code != REDIRECT || !goes_to(&frame, self.scene.owner()) {
            return Ok(());
        }
        prop_assert!(verify(&frame).is_ok(), "what is relayed is right");
        if lost {
            self.relays_lost += self.entry.world().traffic[1].sent - sent;
            return Ok(());
        }
        let code;
        (code, frame) = run(&self.owner, Hook::Ingress, &frame)?;
        let begins = |flow: &Flow| flow.is(Kind::Restore) && flow.isn == segment.seq;
        let begins = self.owner.world().half_open.values().any(begins);
        // On an open connection the stack sends no SYN-ACK.
        if code == UNSPEC && segment.flags & SYN != 0 && begins {
            self.arrived.insert(client, segment.seq);
        }
        if code == UNSPEC {
            // After both rewrites, only the destination still shows the relay.
            let expected = segment.clone().between(segment.source, self.scene.owner());
            prop_assert_eq!(canonical(&frame), canonical(&expected.frame()));
        }
        Ok(())
    }

    fn owner_sends(&mut self, client: u16, segment: &Segment, lost: bool) -> Result<(), TestCaseError> {
        let (code, frame) = run(&self.owner, Hook::Egress, &segment.frame())?;
        if code != REDIRECT || lost {
            return Ok(());
        }
        prop_assert!(verify(&frame).is_ok(), "what is diverted is right");
        let (code, frame) = run(&self.entry, Hook::Ingress, &frame)?;
        let seen = segment.clone().between(self.scene.api(), segment.destination);
        let seen = if segment.flags & RST == 0 { seen } else { seen.labelled() };
        if code == REDIRECT && goes_to(&frame, seen.destination) {
            prop_assert_eq!(canonical(&frame), canonical(&seen.frame()), "client {}", client);
        }
        Ok(())
    }

    fn hold(&self) -> Result<(), TestCaseError> {
        let (entry, owner) = (self.entry.world(), self.owner.world());
        let (sent, received) = (entry.traffic[1].sent, owner.traffic[1].received);
        prop_assert!(received <= sent, "{received} received of {sent}");
        let counted = |host: &Host, name| host.counters().get(name).copied().unwrap_or(0);
        // A client's FIN was lost, and its next connection begins before the FIN comes again.
        let conflicts = counted(&self.owner, Dropped::Conflict.name());
        let accounted = received + self.relays_lost + conflicts;
        prop_assert!(
            sent <= accounted,
            "{sent} sent, {received} received, {} lost, {conflicts} refused",
            self.relays_lost
        );
        prop_assert!(counted(&self.entry, "opened") >= sent, "each relay is opened by a SYN");
        for (world, kinds) in
            [(&entry, [Kind::Forward, Kind::Return]), (&owner, [Kind::Restore, Kind::Divert])]
        {
            for table in [&world.live, &world.half_open] {
                for (key, flow) in table {
                    prop_assert!(kinds.iter().any(|&kind| flow.is(kind)), "{}: {flow:?}", show(key));
                    paired(table, key, flow)?;
                }
            }
        }
        Ok(())
    }
}

/// The segment with a sequence number, or if its bytes are an odd number, an acknowledgement that is wrong.
fn astray_by(astray: u32, segment: Segment) -> Segment {
    let (seq, ack) = (segment.seq.wrapping_add(astray), segment.ack.wrapping_add(astray));
    if segment.payload.len().is_multiple_of(2) { segment.seq(seq) } else { segment.ack(ack) }
}

/// Checks that a relay's other half is in the same table and leads back.
fn paired(table: &HashMap<Tuple, Flow>, key: &Tuple, flow: &Flow) -> Result<(), TestCaseError> {
    let opposite = flow.opposite(key);
    // This host serves a client that repeated its SYN, and expects no answer of the owner.
    if flow.state & Flow::REPEATED != 0 && !table.contains_key(&opposite) {
        return Ok(());
    }
    let Some(back) = table.get(&opposite) else {
        return Err(TestCaseError::fail(format!("{} has no other half", show(key))));
    };
    prop_assert_eq!(back.opposite(&opposite), *key, "{}", show(key));
    Ok(())
}

/// Runs a hook: exactly one counter explains the frame's verdict, or the frame passes untouched.
fn run(host: &Host, hook: Hook, bytes: &[u8]) -> Result<(i32, Vec<u8>), TestCaseError> {
    let before = outcomes(host);
    let mut frame = Frame::new(bytes, CAME_IN);
    let action = host::run(hook, &mut frame, host);
    let counted = outcomes(host) - before;
    prop_assert!(counted <= 1, "{counted} outcomes of one packet: {:?}", host.counters());
    if counted == 0 {
        prop_assert_eq!(action.code, UNSPEC);
        prop_assert_eq!(&frame.bytes, bytes);
    }
    Ok((action.code, frame.bytes))
}

/// Packets that were passed for a reason, sent or dropped.
fn outcomes(host: &Host) -> u64 {
    let counters = host.counters();
    let names =
        PassReason::ALL.iter().map(|why| why.name()).chain(SendReason::ALL.iter().map(|why| why.name()));
    let names = names.chain(Dropped::ALL.iter().map(|why| why.name()));
    names.filter_map(|name| counters.get(name)).sum()
}

/// Whether a frame has this destination.
fn goes_to(frame: &[u8], end: SocketAddr) -> bool {
    let expected = Segment::new(end, end).frame();
    let (address, port) = if end.is_ipv4() { (30..34, 36..38) } else { (38..54, 56..58) };
    frame.get(address.clone()) == expected.get(address) && frame.get(port.clone()) == expected.get(port)
}

/// The frame, with one form for the TCP checksum's two zeros.
fn canonical(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let at = if frame[12] == 0x08 { 50 } else { 70 };
    if frame[at..at + 2] == [0xff, 0xff] {
        frame[at..at + 2].fill(0);
    }
    frame
}

#[test]
fn a_course_completes_a_handshake_and_carries_data_both_ways() -> Result<(), TestCaseError> {
    for scene in [Scene::v4 as fn(u64) -> Scene, Scene::v6] {
        let mut course = Course::new(scene);
        let data = |bytes| (ACK, bytes, 0);
        let both = |(flags, bytes, astray)| {
            [What::FromClient { flags, bytes, astray }, What::FromOwner { flags, bytes, astray }]
        };
        let [ack, _] = both(data(0));
        for what in
            [[What::Syn { anew: false }, What::Answer], [ack, ack], both(data(200)), both(data(9))].concat()
        {
            course.take(Step { client: 1, what, lost: false })?;
            course.hold()?;
        }
        let (entry, owner) = (course.entry.world(), course.owner.world());
        prop_assert_eq!((entry.live.len(), owner.live.len()), (2, 2));
        for flow in entry.live.values().chain(owner.live.values()) {
            let first = if flow.is(Kind::Forward) || flow.is(Kind::Restore) { flow.isn + 1 } else { ANSWER };
            prop_assert_eq!(flow.next, first + 209, "{:?}", flow);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_is_counted_twice_and_no_relay_is_half_there(steps in steps(), v6: bool) {
        let mut course = Course::new(if v6 { Scene::v6 } else { Scene::v4 });
        prop_assert_eq!(course.scene.api().port(), API);
        for (number, step) in (0u32..).zip(steps) {
            // Another source port for each relay, as in a random draw.
            course.entry.set_random(number.wrapping_mul(2_654_435_761));
            course.take(step)?;
            course.hold()?;
        }
    }
}
