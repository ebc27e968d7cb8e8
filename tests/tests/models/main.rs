//! Model checks of every order of events, within bounds: no error in the controllers' views of each other lasts for
//! ever.
//!
//! A model is the world around the product's own functions: hosts restart; datagrams are lost, repeated and reordered.
//! stateright visits every reachable state. "For ever" is checked in each state: once faults end, do the views become
//! right again?

#![expect(clippy::print_stdout, reason = "the run prints its figures")]

mod counts;
mod ports;

use stateright::{Checker as _, Model};

/// Visits all states of `model`; fails with the path to a state that breaks a property.
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
    assert!(unique > 1_000, "{name}: {unique} states are too few to prove anything");
}
