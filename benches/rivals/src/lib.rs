//! Measures atomtree beside what people use instead. `README.md` says what is compared and how to read the figures.
//!
//! A [`workloads::Workload`] has cases. In each case everybody takes part in interleaved rounds ([`rounds`]), behind the
//! small traits of [`rivals`], and [`report`] says what was found.

pub mod allowance;
pub mod arguments;
pub mod batch;
pub mod bench;
pub mod children;
pub mod failure;
pub mod goals;
pub mod place;
pub mod progress;
pub mod report;
pub mod rivals;
pub mod rounds;
pub mod spread;
pub mod workloads;
