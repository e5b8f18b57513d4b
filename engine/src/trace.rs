//! Where spans and events come from: with the feature `tracing` these macros are those of that crate, and without it
//! they are nothing at all. Call sites are one line either way, and their values are only looked at if someone listens.
//!
//! A span lasts until the end of the block that its line stands in. All spans have the level `DEBUG`. Transactions are
//! synced and applied by whoever leads their batch, so those spans are children of the leader's.

/// Opens a span for the rest of the block: `span!("atomtree.commit", names = 3)`.
#[cfg(feature = "tracing")]
macro_rules! span {
    ($name:literal $(, $field:ident = $value:expr)* $(,)?) => {
        let _span = ::tracing::debug_span!($name $(, $field = $value)*).entered();
    };
}

/// Says that something happened: `event!(WARN, "the log is full", used_bytes = 4096)`.
#[cfg(feature = "tracing")]
macro_rules! event {
    ($level:ident, $message:literal $(, $field:ident = $value:expr)* $(,)?) => {
        ::tracing::event!(::tracing::Level::$level $(, $field = $value)*, $message)
    };
}

/// Checks the values' names and types, and looks at none of them.
#[cfg(not(feature = "tracing"))]
macro_rules! span {
    ($name:literal $(, $field:ident = $value:expr)* $(,)?) => {
        $( let _ = || { let _ = &$value; }; )*
    };
}

/// Checks the values' names and types, and looks at none of them.
#[cfg(not(feature = "tracing"))]
macro_rules! event {
    ($level:ident, $message:literal $(, $field:ident = $value:expr)* $(,)?) => {{
        $( let _ = || { let _ = &$value; }; )*
    }};
}

pub(crate) use {event, span};
