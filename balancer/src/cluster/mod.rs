//! The other controllers: who they are, what they report, how far the reports can be trusted.

pub mod membership;
pub mod peers;
pub mod slots;
pub mod views;
