//! The records that one client's address leads to.

use anyhow::{Context as _, Result};
use aya::maps::{IterableMap, MapError};
use balancer_common::{
    records::{AddressClass, Budget, Network},
    wire::Address,
};

use super::{super::records::Records, Maps};

/// The classes of addresses, for a thread beside the agent's loop.
pub struct Classes(Records);

impl Classes {
    /// The class of an address, as the programs find it.
    pub fn of(&self, address: Address) -> Result<AddressClass> {
        let key = [bytemuck::bytes_of(&128_u32), bytemuck::bytes_of(&address)].concat();
        let class = self.0.get(&key)?;
        Ok(class.map_or(AddressClass::CLIENT, |class| bytemuck::pod_read_unaligned(&class)))
    }
}

impl Maps {
    /// The classes of addresses, also for another thread.
    pub fn classes(&self) -> Result<Classes> {
        Ok(Classes(Records::beside(IterableMap::<_, AddressClass>::map(&self.classes))?))
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
