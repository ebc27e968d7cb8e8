//! One seed, one course: where a simulation's randomness comes from, and each seed in a process of its own.
//!
//! chitchat chooses whom to gossip with by `rand`, its tables are std's, and both ask the C library for random bytes:
//! the `getrandom` below answers with the seed's. Of two branches of a `select!` that are ready tokio takes one at
//! random, and seeds that by a number that it gives to each runtime of the process: hence the processes.

use std::any::type_name;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{c_uint, c_void};
use std::fmt::Write as _;
use std::process::{Command, Output, Stdio};
use std::{env, thread};

use sha2::{Digest as _, Sha256};
use tests::support::noise::Noise;

use crate::cluster::TOOK;

/// Names the one seed that is to be run, in this process.
const ONE: &str = "BALANCER_SEED";
/// How many seeds each row is given.
const MANY: &str = "BALANCER_SEEDS";
const SAID: &str = "course: ";

thread_local! {
    static SEEDED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// What the C library gives, but in a seeded thread.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    let Some(seed) = SEEDED.get() else {
        // SAFETY: the arguments are those of the caller, who promised them to the same call.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize };
    };
    let mut noise = Noise::new(seed);
    SEEDED.set(Some(noise.next()));
    if length > 0 {
        // SAFETY: the caller has `length` octets at `buffer` to be written; it need not have written them before, and
        // octets are all that `fill` writes.
        noise.fill(unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) });
    }
    length as isize
}

/// Runs `row`, which says what came to pass, under seeds from 1 on; the first one twice, which has to come to the same.
pub fn each_seed<Row: Fn(u64) -> String + Send>(count: u64, row: Row) {
    if let Some(seed) = number(ONE) {
        let course = seeded(seed, row);
        for line in course.lines().filter(|line| line.starts_with(TOOK)) {
            eprintln!("{line}");
        }
        eprintln!("{SAID}{}", digest(&course));
        return;
    }
    let name = type_name::<Row>();
    let name = name.trim_end_matches("::{{closure}}").split_once("::").expect("a path of a function").1;
    let mut seeds = (1..=number(MANY).unwrap_or(count)).chain([1]);
    let (mut courses, mut took) = (Vec::new(), BTreeMap::new());
    loop {
        let some: Vec<_> =
            seeds.by_ref().take(thread::available_parallelism().map_or(1, usize::from)).collect();
        if some.is_empty() {
            break;
        }
        let running: Vec<_> = some.into_iter().map(|seed| (seed, start(name, seed))).collect();
        for (seed, (shown, child)) in running {
            let output = child.wait_with_output().expect("the end of a run");
            note(&mut took, &String::from_utf8_lossy(&output.stderr));
            courses.push(course(&output).unwrap_or_else(|| {
                let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
                panic!("seed {seed}: {}\n{said}\nagain with: {shown}", output.status)
            }));
        }
    }
    assert_eq!(courses.first(), courses.last(), "one seed, two courses");
    for (what, (least, most)) in took {
        eprintln!("{name}: {what}: {least} to {most} ms");
    }
}

/// Takes the shortest and the longest time for each thing.
fn note(took: &mut BTreeMap<String, (u64, u64)>, said: &str) {
    for (what, time) in said.lines().filter_map(|line| line.strip_prefix(TOOK)?.split_once(": ")) {
        if let Some(Ok(time)) = time.split(' ').next().map(str::parse) {
            let (least, most) = took.entry(what.to_owned()).or_insert((time, time));
            (*least, *most) = (time.min(*least), time.max(*most));
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is no number")))
}

/// A thread of its own has met no randomness before.
fn seeded<Row: Fn(u64) -> String + Send>(seed: u64, row: Row) -> String {
    let run = move || {
        SEEDED.set(Some(seed));
        row(seed)
    };
    thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn start(name: &str, seed: u64) -> (String, std::process::Child) {
    let program = env::current_exe().expect("this program's path");
    let mut command = Command::new(&program);
    command.args([name, "--exact", "--nocapture"]).env(ONE, seed.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = format!("{ONE}={seed} {} {name} --exact --nocapture", program.display());
    (shown, command.spawn().expect("a run of one seed"))
}

fn course(output: &Output) -> Option<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    let (_, course) = said.split_once(SAID)?;
    output.status.success().then(|| course.lines().next().unwrap_or_default().to_owned())
}

fn digest(course: &str) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(course.as_bytes()) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
