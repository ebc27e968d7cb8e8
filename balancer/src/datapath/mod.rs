//! The data path: the programs in the kernel, their maps and their links; no other module knows their names.
//!
//! ```text
//! <pins>/<layout>/maps/NAME    every pinned map of balancer_common::records::maps
//! <pins>/<layout>/links/NAME   admit, track, ingress-IFINDEX and egress-IFINDEX where the hook is tcx, and xdp-IFINDEX
//! ```

mod attach;
mod batch;
mod btf;
mod filters;
mod flows;
mod hooks;
mod kernel;
mod links;
mod load;
mod maps;
mod news;
mod pins;
mod records;
mod upgrade;
mod verify;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::Ebpf;
use balancer_common::records::{LAYOUT, map};

use self::upgrade::Older;
use crate::host::interfaces;

pub use self::{
    attach::{AttachedHooks, TcHook, hook_of_this_kernel},
    flows::{FlowPair, Flows},
    hooks::{Displaced, Place},
    kernel::Kernel,
    load::{OBJECT, load_object, place_stages},
    maps::{Classes, Counters, Maps},
    news::News,
    pins::{change_settings, serve_here, uninstall},
    verify::{Kind, verify},
};

/// The loaded programs and their maps.
pub struct DataPath {
    ebpf: Ebpf,
    pub maps: Maps,
    /// API-facing interfaces that `ingress` is attached to, by name.
    pub hooks: BTreeMap<String, AttachedHooks>,
    egresses: BTreeMap<u32, String>,
    /// The last interface whose `egress` was looked at.
    verified: u32,
    /// Programs, by interface, that the kernel does not let run before others.
    overruled: BTreeSet<(&'static str, u32)>,
    layout: PathBuf,
    hook: TcHook,
    pub kernel: Kernel,
    pub found: PreviousDataPath,
    older: Vec<Older>,
}

/// The data path that an agent finds when it starts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PreviousDataPath {
    Nothing,
    /// The data path of another version: its relays go on, connections are counted anew.
    Older,
    /// The data path of this version: everything goes on.
    Same,
}

impl DataPath {
    /// Loads programs and maps, taking over those pinned under `pins`; attaches nothing.
    pub fn load(pins: &Path, hook: TcHook) -> Result<Self> {
        pins::prepare(pins)?;
        let layout = pins.join(LAYOUT);
        let known = upgrade::was_active(&layout)?;
        let older = Older::all(pins, &layout)?;
        let found = match (older.is_empty(), known) {
            (false, _) => PreviousDataPath::Older,
            (true, true) => PreviousDataPath::Same,
            (true, false) => PreviousDataPath::Nothing,
        };
        Self::load_into(&layout, hook, found, older).inspect_err(|_| {
            if !known {
                pins::remove_layout(&layout);
                // Fails if another version's is there.
                let _: std::io::Result<()> = fs::remove_dir(pins);
            }
        })
    }

    fn load_into(
        layout: &Path,
        hook: TcHook,
        found: PreviousDataPath,
        mut older: Vec<Older>,
    ) -> Result<Self> {
        let (map_pins, link_pins) = (layout.join("maps"), layout.join("links"));
        pins::make_private(&map_pins)?;
        pins::make_private(&link_pins)?;
        maps::check_shapes(&map_pins)?;
        let kernel = Kernel::ask()?;
        let devices = interfaces::names()?.len();
        let (room, known) = maps::make_room_for_devices(&map_pins, devices)?;
        let mut ebpf = load_object(&kernel, |loader| {
            loader.map_max_entries(map::DEVICES, room);
            for map in maps::pinned() {
                loader.map_pin_path(map.name, map_pins.join(map.name));
            }
        })?;
        maps::describe_devices(&mut ebpf, &known)?;
        // Pinned, so that the stages outlive this handle.
        place_stages(&mut ebpf)?;
        let maps = Maps::take(&mut ebpf)?;
        let taken = older.iter_mut().try_for_each(|older| {
            let name = older.name();
            older.take_over(layout).with_context(|| format!("the data path of version {name} stays"))
        });
        if let Err(error) = taken {
            for older in &older {
                older.give_back(layout);
            }
            return Err(error);
        }
        Ok(Self {
            ebpf,
            maps,
            hooks: BTreeMap::new(),
            egresses: BTreeMap::new(),
            verified: 0,
            overruled: BTreeSet::new(),
            layout: layout.to_owned(),
            hook,
            kernel,
            found,
            older,
        })
    }

    /// Brings the copies from another version's data path up to date. Its programs run on until they are replaced, and the
    /// new ones do not know the relays that they open until [`DataPath::finish_upgrade`].
    pub fn continue_upgrade(&mut self) -> Result<()> {
        self.older.iter_mut().try_for_each(|older| older.copy_flows(&self.layout))
    }

    /// Removes another version's data path, once everything is attached.
    pub fn finish_upgrade(&mut self) -> Result<()> {
        for older in std::mem::take(&mut self.older) {
            let name = older.name();
            let flows = older.finish(&self.layout)?;
            log::info!("took over from the data path of version {name}: {} relays go on", flows / 2);
        }
        Ok(())
    }

    /// The other end of [`Maps::await_news`]; must run inside the tokio runtime.
    pub fn news(&mut self) -> Result<News> {
        News::open(self.ebpf.take_map(map::NEWS).context("the object lacks the map NEWS")?)
    }

    /// Forwards the programs' log messages to this process's log.
    pub fn logger(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>> {
        Ok(aya_log::EbpfLogger::init(&mut self.ebpf)?)
    }
}
