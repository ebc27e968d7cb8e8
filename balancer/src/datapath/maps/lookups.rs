//! The records that one client's address leads to.

use anyhow::{Context as _, Result};
use aya::maps::{
    IterableMap, Map, MapData, MapError,
    lpm_trie::{Key, LpmTrie},
};
use balancer_common::{
    records::{AddressClass, Budget, Network},
    wire::Address,
};

use super::{Maps, copy};

/// The classes of addresses.
pub struct Classes(LpmTrie<MapData, [u8; 16], AddressClass>);

impl Classes {
    /// The class of an address, as the programs find it.
    pub fn of(&self, address: Address) -> Result<AddressClass> {
        let class = found(self.0.get(&Key::new(128, bytemuck::cast(address)), 0));
        Ok(class.context("failed to look up the class of an address")?.unwrap_or(AddressClass::CLIENT))
    }
}

impl Maps {
    /// The classes of addresses, for another thread too.
    pub fn classes(&self) -> Result<Classes> {
        let map = copy(IterableMap::<_, AddressClass>::map(&self.classes))?;
        Ok(Classes(Map::LpmTrie(map).try_into()?))
    }

    /// The connections of one client address, if they are counted.
    pub fn client(&self, address: Address) -> Result<Option<Budget>> {
        found(self.clients.get(&address, 0)).context("failed to look up a client's count")
    }

    /// The network of one client address.
    pub fn network_of(&self, address: Address) -> Result<Network> {
        let network = found(self.networks.get(&Network::of(&address), 0));
        Ok(network.context("failed to look up a client's network")?.unwrap_or(Network::NONE))
    }

    /// When a client was last refused for another controller's sake (boot clock, nanoseconds).
    pub fn recently_refused(&self, address: Address) -> Result<Option<u64>> {
        found(self.recently_refused.get(&address, 0)).context("failed to look up a refusal")
    }
}

fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}
