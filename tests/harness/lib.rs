//! What the integration tests share.

pub mod call_sites;
pub mod chosen;
pub mod crash;
pub mod device;
pub mod failing;
pub mod fault_matrix;
pub mod filler;
pub mod floor;
pub mod foreign;
pub mod foreign_dirs;
pub mod guarded;
pub mod hand_over;
pub mod history;
pub mod injection;
pub mod interrupted;
pub mod serializability;
pub mod signals;
pub mod versions;
pub mod volume;
pub mod waiting;
pub mod workload;
pub mod workloads;
