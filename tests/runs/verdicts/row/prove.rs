//! Proving rows: on the host, in the kernel, and with a checksum that a device completes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail, ensure};
use tests::packet::frame::{ETHERNET, source_port, verify};
use tests::packet::host::{self, Frame, Hook, Host};
use tests::packet::kernel::{Kernel, apart, boot_clock_ns};

use super::{Out, Ran, Row, SECOND, hex};
use crate::scene::{CAME_IN, RELAY, Scene};

/// Proves rows, for both families.
pub fn prove(rows: impl Fn(&Scene) -> Vec<Row> + Sync) -> Result<()> {
    let faults: Vec<_> = [Scene::v4 as fn(u64) -> Scene, Scene::v6]
        .into_iter()
        .map(|scene| faults(scene, &rows))
        .collect::<Result<_>>()?;
    let faults = faults.concat();
    ensure!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    Ok(())
}

/// A time for scenes of which only the names and numbers matter.
pub const ANY_TIME: u64 = 1_000_000_000_000;

/// Programs and maps, used for one row after another: loading takes an emulated processor seconds.
static LOADED: Mutex<Option<Kernel>> = Mutex::new(None);

/// [`LOADED`], for one test.
pub struct Loaded(MutexGuard<'static, Option<Kernel>>);

impl Loaded {
    pub fn kernel(&mut self) -> &mut Kernel {
        self.0.as_mut().expect("`load` has loaded it")
    }
}

/// The programs and their maps, with room for `most` records.
pub fn load(most: usize) -> Result<Loaded> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let known = loaded.take().filter(|kernel| kernel.room() >= most);
    *loaded = Some(known.map_or_else(|| Kernel::load(most), Ok)?);
    Ok(Loaded(loaded))
}

/// The rows of one second. Records are exact to the second, so all its moments share them: to make all rows anew for each
/// one would take an emulated processor longer than the kernel needs for them.
struct Table<'a, R> {
    scene: fn(u64) -> Scene,
    rows: &'a R,
    of_second: Option<(u64, Vec<Row>)>,
}

impl<R: Fn(&Scene) -> Vec<Row>> Table<'_, R> {
    /// Row `index` as it is at `now_ns`.
    fn row(&mut self, index: usize, now_ns: u64) -> Row {
        let second = now_ns / SECOND;
        self.of_second.take_if(|(known, _)| *known != second);
        let (_, rows) = self.of_second.get_or_insert_with(|| (second, (self.rows)(&(self.scene)(now_ns))));
        rows[index].clone()
    }
}

fn faults(scene: fn(u64) -> Scene, rows: &(impl Fn(&Scene) -> Vec<Row> + Sync)) -> Result<Vec<String>> {
    let addresses = scene(ANY_TIME).addresses();
    apart(&addresses, || {
        let most = rows(&scene(ANY_TIME)).iter().map(|row| 2 * row.before.live.len()).max().unwrap_or(0);
        let mut loaded = load(most)?;
        let kernel = loaded.kernel();
        let xdp = kernel.run_xdp(&[0; 64], CAME_IN)?.is_some();
        ensure!(
            xdp || kernel_is_before(5, 14)?,
            "this kernel can run XDP programs on a frame of an interface"
        );
        let mut table = Table { scene, rows, of_second: None };
        let mut faults = Vec::new();
        for index in 0..rows(&scene(ANY_TIME)).len() {
            let mut at = |now_ns| table.row(index, now_ns);
            let (row, ran) = within_a_second(&mut at, |row| row.in_kernel(kernel))?;
            let by_xdp = (xdp && row.hook == Hook::Ingress)
                .then(|| within_a_second(|now_ns| at(now_ns).before_ingress(), |row| row.by_xdp(kernel)))
                .transpose()?;
            let mut note = |place: &str, faulty: Vec<String>| {
                let family = scene(ANY_TIME).name;
                faults.extend(
                    faulty.into_iter().map(|fault| format!("{family}, {place}: {}: {fault}", row.what)),
                );
            };
            note("host", row.check(&row.on_host()));
            if let Some((row, ran)) = by_xdp {
                match ran {
                    Ok(ran) => note("kernel, XDP", row.check(&ran)),
                    Err(error) => note("kernel, XDP", vec![format!("{error:#}")]),
                }
            }
            note("host, checksum left to a device", offloaded(&row));
            match ran {
                Ok(ran) => note("kernel", row.check(&ran)),
                Err(error) => note("kernel", vec![format!("{error:#}")]),
            }
        }
        Ok(faults)
    })
}

/// Repeats the row that `at` makes for the present moment until its packet is decided in the same second:
/// records are exact to the second.
fn within_a_second(
    mut at: impl FnMut(u64) -> Row,
    mut run: impl FnMut(&Row) -> Result<Ran>,
) -> Result<(Row, Result<Ran>)> {
    loop {
        let now_ns = boot_clock_ns()?;
        let row = at(now_ns);
        let ran = run(&row);
        if ran.as_ref().is_ok_and(|ran| ran.found.decided_s != now_ns / SECOND) {
            continue;
        }
        return Ok((row, ran));
    }
}

/// The same row with a TCP checksum that a device completes: once completed, the frame must equal the row's.
fn offloaded(row: &Row) -> Vec<String> {
    if matches!(row.out, Out::Unchanged) || verify(&row.frame).is_err() || source_port(&row.frame).is_none() {
        return Vec::new();
    }
    let mut frame = Frame::new(&row.frame, CAME_IN);
    frame.partial = true;
    half_summed(&mut frame.bytes, false);
    let host = Host::new(&row.before);
    host::run(row.hook, &mut frame, &host);
    half_summed(&mut frame.bytes, true);
    let expected = row.expected_frame(RELAY);
    if frame.bytes == expected {
        Vec::new()
    } else {
        vec![format!("the frame is\n{}not\n{}", hex(&frame.bytes), hex(&expected))]
    }
}

/// Turns the TCP checksum into the pseudo header's sum, or completes it as a device does (kernel
/// `skb_checksum_help`).
fn half_summed(frame: &mut [u8], complete: bool) {
    let header = if frame[12..14] == [0x08, 0x00] { 20 } else { 40 };
    let addresses = ETHERNET + if header == 20 { 12 } else { 8 };
    let tcp = ETHERNET + header;
    let length = if header == 20 {
        usize::from(u16::from_be_bytes([frame[16], frame[17]])) - header
    } else {
        usize::from(u16::from_be_bytes([frame[18], frame[19]]))
    };
    if complete {
        let sum = !sum(&frame[tcp..tcp + length], 0);
        frame[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
    } else {
        let pseudo = sum(&frame[addresses..tcp], length as u64 + 6);
        frame[tcp + 16..tcp + 18].copy_from_slice(&pseudo.to_be_bytes());
    }
}

fn sum(bytes: &[u8], start: u64) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u64::from));
    let mut sum = start + words.sum::<u64>();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Whether the running kernel is older than `major.minor`.
fn kernel_is_before(major: u32, minor: u32) -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map(str::parse::<u32>);
    let (Some(Ok(found)), Some(Ok(second))) = (numbers.next(), numbers.next()) else {
        bail!("the kernel calls itself {release}")
    };
    Ok((found, second) < (major, minor))
}
