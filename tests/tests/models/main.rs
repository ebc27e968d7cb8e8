//! Every order of events, within bounds: what the controllers tell each other is never wrong for ever.
//!
//! A model is the world around the product's own functions: hosts that restart, datagrams that are lost, repeated and
//! overtake each other. stateright visits every state that it can reach. "For ever" is asked of each state: from
//! there, once faults end, is all well again?

#![allow(clippy::print_stdout, reason = "figures for whoever reads the run")]

mod counts;
mod ports;

use stateright::{Checker as _, Model};

/// Visits all states of `model` and fails with the way to one in which a property does not hold.
fn check<M>(name: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: std::fmt::Debug + Clone + PartialEq + std::hash::Hash + Send + Sync,
    M::Action: std::fmt::Debug + Clone + PartialEq,
{
    let start = std::time::Instant::now();
    let checked = model.checker().threads(2).spawn_bfs().join();
    let (unique, visited) = (checked.unique_state_count(), checked.state_count());
    let (depth, took) = (checked.max_depth(), start.elapsed().as_secs_f64());
    println!("{name}: {unique} states, {visited} steps, at most {depth} deep, in {took:.1} s");
    checked.assert_properties();
    assert!(unique > 1_000, "{name}: {unique} states are none to speak of");
}
