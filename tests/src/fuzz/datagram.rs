//! Sync datagrams: of strangers, of peers, changed, repeated, and authentic ones that hold anything.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;

use balancer::cluster::peers::{Datagram, Receiver};
use tokio::runtime::{Builder, Runtime};

use super::bytes::Bytes;

thread_local! {
    static LISTENER: RefCell<(Receiver, Runtime)> = RefCell::new({
        let runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
        let entered = runtime.enter();
        let listener = Receiver::new("a", &[("b", "10.0.0.2"), ("c", "10.0.0.3")], KEY).expect("a listener");
        drop(entered);
        (listener, runtime)
    });
}

const KEY: [u8; 32] = [7; 32];
/// Unix time of everything, milliseconds.
const NOW_MS: u64 = 1_000_000;

/// Nothing is taken that was not sealed with the key, nor twice.
pub fn feed(data: &[u8]) {
    LISTENER.with_borrow_mut(|(listener, _)| {
        listener.forget();
        let (mut bytes, mut taken, mut last) = (Bytes(data), BTreeSet::new(), Vec::new());
        while !bytes.is_empty() {
            let kind = bytes.byte();
            let (name, address) =
                bytes.pick(&[("b", "10.0.0.2"), ("c", "10.0.0.3"), ("a", "10.0.0.1"), ("d", "10.0.0.9")]);
            let source: SocketAddr = format!("{address}:17078").parse().expect("an address");
            match kind % 4 {
                0 => {
                    let length = usize::from(bytes.half());
                    let datagram = bytes.some(length);
                    assert!(listener.receive(source, datagram, NOW_MS).is_err(), "taken: {datagram:?}");
                }
                1 if !last.is_empty() => {
                    let (source, datagram): &(SocketAddr, Vec<u8>) = &last[0];
                    assert!(listener.receive(*source, datagram, NOW_MS).is_err(), "taken twice");
                }
                _ => {
                    let spoken = Datagram {
                        from: name,
                        to: bytes.pick(&["a", "a", "a", "b"]),
                        boot: bytes.byte().into(),
                        sequence: bytes.half().into(),
                        sent_ms: NOW_MS.wrapping_add_signed(i64::from(bytes.half().cast_signed())),
                        part: bytes.byte(),
                        parts: bytes.byte(),
                    };
                    let key = bytes.pick(&[KEY, KEY, KEY, [8; 32]]);
                    let length = usize::from(bytes.half());
                    let Ok(mut datagram) = spoken.sealed(key, bytes.some(length)) else { continue };
                    let changed = kind & 0x80 != 0;
                    if changed {
                        let at = usize::from(bytes.half()) % datagram.len();
                        datagram[at] ^= 1 << (bytes.byte() % 8);
                    }
                    // The listener may have noted a datagram that holds no message.
                    if listener.receive(source, &datagram, NOW_MS).is_ok() {
                        assert!(!changed && key == KEY && ["b", "c"].contains(&name) && spoken.to == "a");
                        assert!(taken.insert((name, spoken.boot, spoken.sequence)), "twice: {spoken:?}");
                        last = vec![(source, datagram)];
                    }
                }
            }
        }
    });
}
