//! A row: a packet, its expected verdict and every expected change, proved on the host and in the kernel.

mod prove;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use balancer_common::records::{Flow, Tuple};
use balancer_common::stages::ingress::is_for_entry;
use balancer_common::wire::Port;
use balancer_common::wire::segment::is_fragment;
use tests::packet::frame::{self, ETHERNET, Segment, ip_header, source_port, verify};
use tests::packet::host::{self, Action, Frame, Hook, Host, REDIRECT, SHOT, UNSPEC, World};
use tests::packet::kernel::{Kernel, Left, RanXdp, boot_clock_ns, sockets};

use crate::scene::{CAME_IN, RELAY};

pub use self::prove::{ANY_TIME, load, prove};

/// Nanoseconds.
const SECOND: u64 = 1_000_000_000;
/// Bytes of the word of `ingress_xdp` to `ingress` in front of a frame: mark, interface, network namespace.
const HANDOVER: usize = 16;

/// A packet, the state before it, and everything that it must cause.
#[derive(Clone)]
pub struct Row {
    what: Cow<'static, str>,
    hook: Hook,
    before: World,
    frame: Vec<u8>,
    times: usize,
    action: Action,
    out: Out,
    counts: HashMap<&'static str, u64>,
    after: World,
}

/// A frame, given as a segment or as bytes.
#[derive(Clone)]
pub enum Out {
    Unchanged,
    Segment(Segment),
    Bytes(Vec<u8>),
}

impl Out {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Unchanged => Vec::new(),
            Self::Segment(segment) => segment.frame(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl From<Segment> for Out {
    fn from(segment: Segment) -> Self {
        Self::Segment(segment)
    }
}

impl From<Vec<u8>> for Out {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

/// A frame arrives. By default the row expects that it passes uncounted and changes nothing.
pub fn arrives(what: impl Into<Cow<'static, str>>, world: &World, frame: impl Into<Out>) -> Row {
    Row {
        what: what.into(),
        hook: Hook::Ingress,
        before: world.clone(),
        frame: frame.into().bytes(),
        times: 1,
        action: Action { code: UNSPEC, ifindex: None },
        out: Out::Unchanged,
        counts: HashMap::new(),
        after: world.clone(),
    }
}

/// A frame leaves; the default is the same.
pub fn leaves(what: impl Into<Cow<'static, str>>, world: &World, frame: impl Into<Out>) -> Row {
    Row { hook: Hook::Egress, ..arrives(what, world, frame) }
}

impl Row {
    /// The frame goes on to the stack unchanged.
    pub fn passes(self, why: &'static str) -> Self {
        self.also(why)
    }

    /// The frame goes on to the stack, changed.
    pub fn passes_as(self, why: &'static str, out: impl Into<Out>) -> Self {
        Self { out: out.into(), ..self.also(why) }
    }

    /// The frame is sent out of an interface.
    pub fn sent(self, why: &'static str, ifindex: u32, out: impl Into<Out>) -> Self {
        let action = Action { code: REDIRECT, ifindex: Some(ifindex) };
        Self { action, out: out.into(), ..self.also(why) }
    }

    /// The frame is answered, out of the interface where it came in.
    pub fn answered(self, why: &'static str, out: Segment) -> Self {
        self.sent(why, CAME_IN, out)
    }

    /// The frame is dropped.
    pub fn dropped(self, why: &'static str) -> Self {
        Self { action: Action { code: SHOT, ifindex: None }, ..self.also(why) }
    }

    /// The same frame comes twice, with the same verdict. The expected tables are those after both.
    pub fn again(mut self) -> Self {
        self.times += 1;
        self.counts.values_mut().for_each(|count| *count *= 2);
        self
    }

    /// A further event is counted.
    pub fn also(mut self, event: &'static str) -> Self {
        *self.counts.entry(event).or_default() += 1;
        self
    }

    /// The tables change.
    pub fn then(mut self, change: impl FnOnce(&mut World)) -> Self {
        change(&mut self.after);
        self
    }

    /// Names of the expected counts.
    pub fn counted(&self) -> impl Iterator<Item = &'static str> {
        self.counts.keys().copied()
    }

    /// The frame, for further checks.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// The state before the frame.
    pub fn before(&self) -> &World {
        &self.before
    }

    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// The row's description.
    pub fn what(&self) -> &str {
        &self.what
    }

    fn expected_frame(&self, port: u16) -> Vec<u8> {
        match &self.out {
            Out::Unchanged => self.frame.clone(),
            Out::Bytes(bytes) => bytes.clone(),
            Out::Segment(segment) => {
                let mut segment = segment.clone();
                if segment.source.port() == RELAY {
                    segment.source.set_port(port);
                }
                segment.frame()
            }
        }
    }

    fn check(&self, ran: &Ran) -> Vec<String> {
        let mut faults = Vec::new();
        if ran.action.code != self.action.code {
            faults.push(format!("code {}, not {}", ran.action.code, self.action.code));
        }
        // A test run does not report the interface by which a packet would have left.
        if ran.action.ifindex.is_some() && ran.action.ifindex != self.action.ifindex {
            faults.push(format!("leaves by {:?}, not {:?}", ran.action.ifindex, self.action.ifindex));
        }
        if ran.found.counts != self.counts {
            faults.push(format!("counts {:?}, not {:?}", ran.found.counts, self.counts));
        }
        let drawn = self.counts.contains_key("opened").then(|| source_port(&ran.frame)).flatten();
        let port = drawn.unwrap_or(RELAY);
        let expected = self.expected_frame(port);
        if ran.frame != expected {
            faults.push(format!("the frame is\n{}not\n{}", hex(&ran.frame), hex(&expected)));
        }
        // By the parser's own rules, a frame that was correct and has been changed must still be correct.
        if !matches!(self.out, Out::Unchanged) && verify(&self.frame).is_ok() {
            faults.extend(verify(&ran.frame).err());
        }
        faults.extend(ran.found.after.differences(&with_port(&self.after, port)));
        faults
    }

    fn on_host(&self) -> Ran {
        let (mut frame, host) = (Frame::new(&self.frame, CAME_IN), Host::new(&self.before));
        for _ in 1..self.times {
            host::run(self.hook, &mut frame.clone(), &host);
        }
        let action = host::run(self.hook, &mut frame, &host);
        let found =
            Found { counts: host.counters(), after: host.world(), decided_s: host.world().now_s().into() };
        Ran { action, frame: frame.bytes, found }
    }

    /// The row at the XDP hook: the same if the entry's part decides, else unchanged and uncounted. It has no stage for
    /// fragments.
    fn before_ingress(self) -> Self {
        let (frame, host) = (Frame::new(&self.frame, CAME_IN), Host::new(&self.before));
        if is_for_entry(&frame, &host) && !is_fragment(&frame) {
            self
        } else {
            arrives(self.what, &self.before, self.frame)
        }
    }

    fn by_xdp(&self, kernel: &mut Kernel) -> Result<Ran> {
        let (ran, found) = self.in_maps(kernel, |kernel, _| kernel.run_xdp(&self.frame, CAME_IN))?;
        let RanXdp { left, out } = ran;
        let (handover, frame) = match out.get(..HANDOVER) {
            Some(front) if !found.counts.is_empty() => (Some(front), out.get(HANDOVER..).unwrap_or_default()),
            _ => (None, &*out),
        };
        let ifindex =
            handover.map(|handover| u32::from_ne_bytes([handover[4], handover[5], handover[6], handover[7]]));
        let action = match (left, ifindex) {
            (Left::Up, None | Some(0)) => Action { code: UNSPEC, ifindex: None },
            (Left::Up, Some(ifindex)) => Action { code: REDIRECT, ifindex: Some(ifindex) },
            (Left::Back, _) => Action { code: REDIRECT, ifindex: Some(CAME_IN) },
            (Left::Dropped, _) => Action { code: SHOT, ifindex: None },
        };
        let magic = handover.map(|handover| [handover[0], handover[1], handover[2], handover[3]]);
        ensure!(
            left != Left::Up || magic.is_none_or(|magic| magic == 0xba1a_d902_u32.to_ne_bytes()),
            "`ingress` is not told that this is decided"
        );
        Ok(Ran { action, frame: frame.to_vec(), found })
    }

    /// Runs `run` as often as the row says (it is told which time is the last), and returns the last result
    /// and the changes in the maps.
    fn in_maps<T>(
        &self,
        kernel: &mut Kernel,
        run: impl Fn(&Kernel, bool) -> Result<Option<T>>,
    ) -> Result<(T, Found)> {
        let held = sockets(&self.before)?;
        kernel.fill(&self.before)?;
        let before = kernel.counters()?;
        for _ in 1..self.times {
            run(kernel, false)?;
        }
        let ran = run(kernel, true)?;
        let decided_s = boot_clock_ns()? / SECOND;
        drop(held);
        let mut counts = kernel.counters()?;
        for (name, count) in &before {
            *counts.entry(name).or_default() -= count;
        }
        counts.retain(|_, count| *count != 0);
        let after = kernel.world(&self.before)?;
        Ok((ran.context("the kernel does not take the frame")?, Found { counts, after, decided_s }))
    }

    fn in_kernel(&self, kernel: &mut Kernel) -> Result<Ran> {
        let resized = self.expected_frame(RELAY).len() != self.frame.len()
            || ANSWERS.iter().any(|why| self.counts.contains_key(why));
        // A frame that changes its size loses the sum that its device computed.
        let (ran, found) = self
            .in_maps(kernel, |kernel, last| kernel.run(self.hook, &self.frame, CAME_IN, last && !resized))?;
        Ok(Ran { action: Action { code: ran.code, ifindex: None }, frame: ran.frame, found })
    }
}

/// Counters of answers by RST.
const ANSWERS: [&str; 7] = ["full", "owner_left", "no_flow", "late", "relay_full", "superseded", "steered"];

/// The result of a packet.
struct Ran {
    action: Action,
    frame: Vec<u8>,
    found: Found,
}

/// The changes in the maps.
struct Found {
    counts: HashMap<&'static str, u64>,
    after: World,
    /// Boot clock, seconds, just after the decision.
    decided_s: u64,
}

/// `world` with the relay source port that the run drew.
fn with_port(world: &World, port: u16) -> World {
    if port == RELAY {
        return world.clone();
    }
    let drawn = |at: Port| if at == Port::new(RELAY) { Port::new(port) } else { at };
    let key = |key: &Tuple| Tuple { local_port: drawn(key.local_port), ..*key };
    let flow = |flow: &Flow| {
        let mut flow = *flow;
        flow.source_port = drawn(flow.source_port);
        flow
    };
    let flows = |map: &HashMap<Tuple, Flow>| map.iter().map(|(k, v)| (key(k), flow(v))).collect();
    World { live: flows(&world.live), half_open: flows(&world.half_open), ..world.clone() }
}

/// A hex dump with the layers on separate lines.
pub fn hex(frame: &[u8]) -> String {
    let header = ip_header(if frame.get(12) == Some(&0x86) {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    });
    let mut text = String::new();
    let (ip, l4) = (ETHERNET.min(frame.len()), (ETHERNET + header).min(frame.len()));
    for part in [&frame[..ip], &frame[ip..l4], &frame[l4..]] {
        text.push_str("   ");
        for byte in part {
            let _ = write!(text, " {byte:02x}");
        }
        text.push('\n');
    }
    text
}

/// The balancer's RST that answers `segment`: with `seq` alone, or also with the acknowledgement `ack`.
pub fn rst(segment: &Segment, seq: u32, ack: Option<u32>) -> Segment {
    let flags = if ack.is_some() { frame::RST | frame::ACK } else { frame::RST };
    Segment::new(segment.destination, segment.source)
        .labelled()
        .flags(flags)
        .seq(seq)
        .ack(ack.unwrap_or(0))
        .hops(64)
}
