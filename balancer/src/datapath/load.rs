//! Loading the object: maps, programs, and the stages into their slots.

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{MapData, ProgramArray},
    programs::{SchedClassifier, SkLookup, SockOps, Xdp},
};
use balancer_common::{records::map, stages::Stage};

use super::Kernel;

/// The programs, as the build made them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BALANCER_EBPF"));

/// Makes the maps and gives every program to the kernel's verifier; `set` says where maps are pinned.
pub fn load_object(kernel: &Kernel, set: impl FnOnce(&mut EbpfLoader<'_>)) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    kernel.tell(&mut loader);
    set(&mut loader);
    let mut ebpf = loader.load(OBJECT).context("failed to load maps and programs")?;
    load_programs(&mut ebpf)?;
    Ok(ebpf)
}

/// Gives every program to the kernel's verifier.
fn load_programs(ebpf: &mut Ebpf) -> Result<()> {
    for (name, program) in ebpf.programs_mut() {
        let name = name.to_owned();
        let loaded = if let Ok(program) = <&mut SchedClassifier>::try_from(&mut *program) {
            program.load()
        } else if let Ok(program) = <&mut Xdp>::try_from(&mut *program) {
            program.load()
        } else if let Ok(program) = <&mut SkLookup>::try_from(&mut *program) {
            program.load()
        } else if let Ok(program) = <&mut SockOps>::try_from(&mut *program) {
            program.load()
        } else {
            bail!("program {name} is of a type that is not expected");
        };
        loaded.with_context(|| format!("the kernel refused program {name}"))?;
    }
    Ok(())
}

/// Puts the loaded programs that `ingress` and `ingress_xdp` call into their slots. They stay there while the maps are
/// pinned or the handles live: the kernel empties a program array once nobody in user space holds it.
pub fn place_stages(ebpf: &mut Ebpf) -> Result<[ProgramArray<MapData>; 2]> {
    let mut place = |map: &str, program_of: fn(Stage) -> Option<&'static str>| -> Result<_> {
        let stages = ebpf.take_map(map).with_context(|| format!("the object lacks the map {map}"))?;
        let mut stages = ProgramArray::<MapData>::try_from(stages)?;
        for (stage, name) in Stage::ALL.into_iter().filter_map(|stage| Some((stage, program_of(stage)?))) {
            let program = ebpf.program(name).with_context(|| format!("the object lacks program {name}"))?;
            stages
                .set(stage as u32, program.fd()?, 0)
                .with_context(|| format!("failed to place stage {name}"))?;
        }
        Ok(stages)
    };
    Ok([place(map::STAGES, |stage| Some(stage.tc_program()))?, place(map::STAGES_XDP, Stage::xdp_program)?])
}
