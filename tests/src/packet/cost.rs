//! The verifier's statistics about each program: the loader throws the verifier's log away on success, and a
//! kernel before 5.16 gives the number of instructions nowhere else.

#![expect(clippy::wildcard_enum_match_arm, reason = "of all kinds of programs and maps there are few here")]

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aya::maps::{Map, MapData};
use aya_obj::generated::bpf_insn;
use aya_obj::{Object, ProgramSection};
use balancer::datapath::{Kind, OBJECT, verify};

use crate::packet::kernel::load;

/// The cost of one program.
#[derive(Clone, Debug)]
pub struct Cost {
    /// Name of the program.
    pub program: String,
    /// Instructions that the verifier followed; it gives up at 1,000,000.
    pub instructions: u64,
    /// Bytes of stack of the deepest function; the kernel allows 512.
    pub stack: u64,
    /// Time to verify and translate it.
    pub load: Duration,
}

/// Loads every program once more, alone, and reads the verifier's statistics, in the order of the names.
pub fn costs() -> Result<Vec<Cost>> {
    let ebpf = load()?;
    let mut object = Object::parse(OBJECT).context("failed to read the object")?;
    let maps = std::mem::take(&mut object.maps);
    let loaded = maps
        .iter()
        .map(|(name, map)| {
            let data = data(ebpf.map(name).with_context(|| format!("no map {name}"))?)?;
            Ok((name.as_str(), data.fd().as_fd().as_raw_fd(), map))
        })
        .collect::<Result<Vec<(&str, RawFd, _)>>>()?;
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(loaded.into_iter(), &sections)?;
    object.relocate_calls(&sections)?;
    let mut costs = Vec::new();
    for (name, program) in &object.programs {
        let function =
            object.functions.get(&program.function_key()).context("a program without a function")?;
        let kind = match &program.section {
            ProgramSection::SchedClassifier => Kind::SCHED_CLS,
            ProgramSection::Xdp { .. } => Kind::XDP,
            ProgramSection::SockOps => Kind::SOCK_OPS,
            ProgramSection::SkLookup => Kind::SK_LOOKUP,
            other => bail!("program {name} is of a type that is not expected: {other:?}"),
        };
        let start = Instant::now();
        let log = statistics(kind, &function.instructions)
            .with_context(|| format!("the kernel refused program {name}"))?;
        let load = start.elapsed();
        let instructions = after(&log, "processed ").first().copied();
        let stack = after(&log, "stack depth ").into_iter().max();
        costs.push(Cost {
            program: name.clone(),
            instructions: instructions.with_context(|| format!("no instructions in {log:?}"))?,
            stack: stack.with_context(|| format!("no stack in {log:?}"))?,
            load,
        });
    }
    costs.sort_by(|one, other| one.program.cmp(&other.program));
    Ok(costs)
}

fn data(map: &Map) -> Result<&MapData> {
    match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::SockMap(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => Ok(data),
        other => bail!("a map of a type that is not expected: {other:?}"),
    }
}

/// The verifier's log of a program that it accepts.
fn statistics(kind: Kind, code: &[bpf_insn]) -> Result<String> {
    let mut log = vec![0_u8; 1 << 16];
    let verified = verify(kind, code, &mut log);
    let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
    verified.with_context(|| log.clone())?;
    Ok(log)
}

/// The numbers in `stack depth 320+0+64`, `stack depth max 320` or `processed 1234 insns (limit …)`.
fn after(log: &str, words: &str) -> Vec<u64> {
    let rest = log.lines().rev().find_map(|line| line.split_once(words)).map_or("", |(_, rest)| rest);
    rest.split([' ', '+']).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_closing_lines() {
        let log = "verification time 1378 usec\nstack depth 320+0+64\nprocessed 1234 insns (limit 1000000) max_states 1\n";
        assert_eq!(after(log, "stack depth "), [320, 0, 64]);
        assert_eq!(after(log, "processed ").first(), Some(&1234));
        assert_eq!(after("stack depth max 144\nsubprog 0 (x) main", "stack depth "), [144], "Linux 7.3");
        assert!(after("", "processed ").is_empty());
    }
}
