//! What guards cost.
