//! Guards on a machine that crashes.
