//! The decisions about one packet, a file each.
//!
//! ```text
//! entry   ingress → client_syn → choose → commit → relay_syn → (wire)
//! owner   ingress → owner_syn → restore → (stack)
//! both    ingress → flow: a segment of a relayed connection; icmp: an error about one; reset: the answer to a
//!         segment without a home.  egress: the owner's stack answers.
//! ```

pub mod choose;
pub mod client_syn;
pub mod commit;
pub mod egress;
pub mod flow;
pub mod icmp;
pub mod ingress;
pub mod owner_syn;
pub mod relay_syn;
pub mod reset;
pub mod restore;
