//! An error with all that caused it: the one place that walks down [`Error::source`].

use std::{error::Error, fmt, io};

/// Prints `what failed: why: why that`, for logs and for what users are told in one line.
#[derive(Clone, Copy)]
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        sources(self.0).try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl fmt::Debug for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The texts of what caused an error, outermost first, without the error's own.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = String> + 'a {
    sources(error).map(ToString::to_string)
}

/// Whether the error itself, or anything that caused it, is an `E` of which `is` holds.
pub fn involves<E: Error + 'static>(error: &(dyn Error + 'static), is: fn(&E) -> bool) -> bool {
    std::iter::once(error).chain(sources(error)).any(|error| {
        // `source` of an `io::Error` skips the error that it wraps.
        let wrapped = error.downcast_ref().and_then(io::Error::get_ref);
        error.downcast_ref().is_some_and(is) || wrapped.is_some_and(|error| involves(error, is))
    })
}

fn sources<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause| (*cause).source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("inner {0}")]
    struct Inner(u8);

    #[test]
    fn every_cause_is_said_once_and_in_order() {
        let error = Outer(io::Error::other(Outer(io::Error::other("innermost"))));
        assert_eq!(ErrorChain(&error).to_string(), "outer: outer: innermost");
        assert_eq!(causes(&error).collect::<Vec<_>>(), ["outer", "innermost"]);
        assert_eq!(ErrorChain(&Inner(1)).to_string(), "inner 1");
        assert_eq!(causes(&Inner(1)).count(), 0);
    }

    #[test]
    fn what_an_io_error_wraps_is_found() {
        let error = Outer(io::Error::other(Inner(7)));
        assert!(involves(&error, |inner: &Inner| inner.0 == 7));
        assert!(!involves(&error, |inner: &Inner| inner.0 == 8));
        assert!(involves(&Inner(7), |inner: &Inner| inner.0 == 7));
        let refused = Outer(io::ErrorKind::ConnectionRefused.into());
        assert!(involves(&refused, |io: &io::Error| {
            io.kind() == io::ErrorKind::ConnectionRefused
        }));
    }
}
