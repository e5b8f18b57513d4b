//! What the integration tests share.

pub mod crash;
pub mod failing;
pub mod foreign;
pub mod history;
pub mod volume;
