//! Points at which a fault test can end or stop the process. Compiled to nothing without the feature `failpoints`.

/// Ends the process at once, as `kill -9` would, when the fault test asked for it here: `FAILPOINTS=after_commit=return`.
#[inline]
pub(crate) fn hit(name: &'static str) {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(name, |_| std::process::abort());
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}
