//! One seed gives one course: the source of a simulation's randomness. Each seed runs in a process of its own.
//!
//! chitchat picks its gossip partners with `rand` and uses std's hash tables, and both ask the C library for random
//! bytes: the `getrandom` below answers from the seed. If two branches of a `select!` are ready, tokio takes one at
//! random, seeded by a number that it counts up for each runtime of the process: hence the processes.

use std::any::type_name;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{c_uint, c_void};
use std::process::{Command, Output, Stdio};
use std::{env, thread};

use tests::support::noise::{Digester, Noise};

use crate::cluster::TOOK;

/// Environment variable with the one seed to run in this process.
const ONE: &str = "BALANCER_SEED";
/// Environment variable with the number of seeds of each row.
const MANY: &str = "BALANCER_SEEDS";
const SAID: &str = "course: ";

thread_local! {
    static SEEDED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Replaces the C library's function: unchanged except in a seeded thread.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    let Some(seed) = SEEDED.get() else {
        // SAFETY: the arguments are the caller's, and the caller made them valid for the same system call.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize };
    };
    let mut noise = Noise::new(seed);
    SEEDED.set(Some(noise.next()));
    if length > 0 {
        // SAFETY: the caller provides `length` writable bytes at `buffer`; they may be uninitialised, but `fill` only
        // writes to them.
        noise.fill(unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) });
    }
    length as isize
}

/// Runs `row`, which returns its course, under seeds from 1 on; the first seed twice, which must give the same course.
pub fn each_seed<Row: Fn(u64) -> String + Send>(count: u64, row: Row) {
    each_named(type_name::<Row>(), count, row);
}

/// [`each_seed`] for a row in the test of the closure called `name`.
pub fn each_named(name: &str, count: u64, row: impl Fn(u64) -> String + Send) {
    if let Some(seed) = number(ONE) {
        let course = seeded(seed, row);
        for line in course.lines().filter(|line| line.starts_with(TOOK)) {
            eprintln!("{line}");
        }
        eprintln!("{SAID}{}", digest(&course));
        return;
    }
    let name = name.trim_end_matches("::{{closure}}").split_once("::").expect("the path of a function").1;
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
            let output = child.wait_with_output().expect("the run ends");
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

/// Keeps the shortest and the longest time of each measured step.
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

/// Uses a new thread, as it has drawn no random numbers before.
fn seeded(seed: u64, row: impl Fn(u64) -> String + Send) -> String {
    let run = move || {
        SEEDED.set(Some(seed));
        row(seed)
    };
    thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn start(name: &str, seed: u64) -> (String, std::process::Child) {
    let program = env::current_exe().expect("the path of this program");
    let mut command = Command::new(&program);
    command.args([name, "--exact", "--nocapture"]).env(ONE, seed.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = format!("{ONE}={seed} {} {name} --exact --nocapture", program.display());
    (shown, command.spawn().expect("a process for one seed starts"))
}

fn course(output: &Output) -> Option<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    let (_, course) = said.split_once(SAID)?;
    output.status.success().then(|| course.lines().next().unwrap_or_default().to_owned())
}

fn digest(course: &str) -> String {
    let mut digest = Digester::default();
    digest.update(course.as_bytes());
    digest.hex()
}
