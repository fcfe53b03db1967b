//! How a command fails: what could not be done, why, what would help, and with which exit code.
//!
//! ```text
//!   error: cannot start vm `web-1`
//!     caused by: project shop has no credits left
//!
//!   hint: `plimsoll project set shop --add-credits 10`
//! ```

use std::{any::Any, error::Error, fmt::Write as _, io};

use plimsoll_api::{ClientError, ErrorBody, ErrorCode, error_chain::causes};

/// Done.
pub(crate) const DONE: u8 = 0;
/// It failed.
pub(crate) const FAILED: u8 = 1;
/// The command line, or a file that it names, is wrong.
pub(crate) const USAGE: u8 = 2;
/// The manager, or a host or guest, cannot be reached.
pub(crate) const UNREACHABLE: u8 = 3;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: u8,
    message: String,
    causes: Vec<String>,
    details: Vec<(String, String)>,
    hint: Option<String>,
    code: Option<ErrorCode>,
    /// Who reads our output has gone: nothing is to be said.
    silent: bool,
}

/// What a command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// It failed.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            exit: FAILED,
            message: message.into(),
            causes: Vec::new(),
            details: Vec::new(),
            hint: None,
            code: None,
            silent: false,
        }
    }

    /// It was asked for wrongly.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: USAGE, ..Self::new(message) }
    }

    /// The command ends with a code of its own and says nothing.
    pub(crate) fn exit(code: u8) -> Self {
        Self { exit: code, silent: true, ..Self::new("") }
    }

    /// The same with a hint, unless it has one that is nearer to the cause.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// The same as the cause of `message`.
    pub(crate) fn context(mut self, message: impl Into<String>) -> Self {
        let cause = std::mem::replace(&mut self.message, message.into());
        self.causes.insert(0, cause);
        self
    }

    /// The same with a line about one of its subjects.
    pub(crate) fn detail(mut self, subject: impl Into<String>, text: impl Into<String>) -> Self {
        self.details.push((subject.into(), text.into()));
        self
    }

    /// The server's code, if it was the server that refused.
    pub(crate) const fn code(&self) -> Option<ErrorCode> {
        self.code
    }

    /// Whether it may well work in a moment, such as when the manager has been started again: nobody
    /// has refused anything.
    pub(crate) const fn is_passing(&self) -> bool {
        matches!(
            self.code,
            None | Some(
                ErrorCode::Unreachable
                    | ErrorCode::TimedOut
                    | ErrorCode::TooManyRequests
                    | ErrorCode::Internal
            )
        )
    }

    /// The exit code.
    pub(crate) const fn exit_code(&self) -> u8 {
        self.exit
    }

    /// What is printed, or nothing.
    pub(crate) fn render(&self) -> Option<String> {
        if self.silent {
            return None;
        }
        let mut text = format!("error: {}\n", self.message);
        for cause in &self.causes {
            let _ = writeln!(text, "  caused by: {cause}");
        }
        for (subject, detail) in &self.details {
            let _ = writeln!(text, "  {subject}: {detail}");
        }
        let general =
            (self.exit == USAGE).then_some("`--help` after a command shows what it takes");
        if let Some(hint) = self.hint.as_deref().or(general) {
            let _ = write!(text, "\nhint: {hint}\n");
        }
        Some(text)
    }

    fn of_body(body: &ErrorBody) -> Self {
        let exit = match body.code {
            ErrorCode::Unreachable => UNREACHABLE,
            _ => FAILED,
        };
        Self {
            exit,
            causes: body.causes.clone(),
            details: body.details.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            hint: body.hint.clone().or_else(|| general_hint(body.code)),
            code: Some(body.code),
            ..Self::new(&body.message)
        }
    }
}

/// What helps in general, where the server says nothing better.
fn general_hint(code: ErrorCode) -> Option<String> {
    let text = match code {
        ErrorCode::Unauthenticated => {
            "name a file with a token by --token-file or PLIMSOLL_TOKEN_FILE"
        }
        ErrorCode::Forbidden => "`plimsoll whoami` says what your token may do",
        ErrorCode::Conflict => "somebody else changed it meanwhile: look at it and try again",
        ErrorCode::TooManyRequests => "wait a moment and try again",
        ErrorCode::NoCapacity => "`plimsoll explain` shows what every host lacks",
        ErrorCode::Internal => "the manager's log has the rest, under the request's id",
        _ => return None,
    };
    Some(text.to_owned())
}

fn causes_of(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut causes: Vec<_> = causes(error).collect();
    // Some libraries repeat their source's text; nobody needs to read it twice.
    causes.dedup();
    causes
}

fn of_client(error: &ClientError) -> Failure {
    if let Some(body) = error.api() {
        return Failure::of_body(body);
    }
    let mut failure = Failure { causes: causes_of(error), ..Failure::new(error.to_string()) };
    match error {
        ClientError::Unreachable { .. } | ClientError::Timeout { .. } => {
            failure.exit = UNREACHABLE;
            failure.hint(
                "is the manager running? `plimsoll lab status` shows a lab's; --server or \
                 PLIMSOLL_SERVER name another",
            )
        }
        ClientError::Foreign { .. } | ClientError::Tls { .. } | ClientError::WebSocket { .. } => {
            failure.exit = UNREACHABLE;
            failure
        }
        ClientError::Address { .. } | ClientError::Token => {
            failure.exit = USAGE;
            failure
        }
        _ => failure,
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let any: &dyn Any = &error;
        if let Some(error) = any.downcast_ref::<ClientError>() {
            return of_client(error);
        }
        let broken_pipe = any
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
        if broken_pipe {
            return Self::exit(DONE);
        }
        Self { causes: causes_of(&error), ..Self::new(error.to_string()) }
    }
}

/// Says what was being done when something failed.
pub(crate) trait OrFail<T> {
    /// With this as the message, and what happened as its cause.
    fn or_fail(self, message: impl FnOnce() -> String) -> Outcome<T>;
    /// The same, as a mistake of the user: exit code 2.
    fn or_usage(self, message: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: Into<Failure>> OrFail<T> for Result<T, E> {
    fn or_fail(self, message: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| {
            let failure: Failure = error.into();
            if failure.silent { failure } else { failure.context(message()) }
        })
    }

    fn or_usage(self, message: impl FnOnce() -> String) -> Outcome<T> {
        self.or_fail(message).map_err(|failure| Failure { exit: USAGE, ..failure })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_printed_with_causes_details_and_one_hint() {
        let body = ErrorBody {
            causes: vec!["quota of 4 cores is used up".to_owned()],
            ..ErrorBody::new(ErrorCode::QuotaExceeded, "project shop may not hold 5 cores")
                .with_hint("ask for less")
        };
        let error = ClientError::Api { body: Box::new(body), status: 403 };
        let failure = Failure::from(error)
            .context("cannot create vm `web`")
            .detail("host-1", "full")
            .hint("unused: the server's is nearer");
        assert_eq!(failure.exit_code(), FAILED);
        insta::assert_snapshot!(failure.render().unwrap(), @r"
        error: cannot create vm `web`
          caused by: project shop may not hold 5 cores
          caused by: quota of 4 cores is used up
          host-1: full

        hint: ask for less
        ");
    }

    #[test]
    fn exit_codes_tell_kinds_of_failures_apart() {
        let unreachable = ClientError::Timeout { address: "x".to_owned(), limit_ms: 5 };
        assert_eq!(Failure::from(unreachable).exit_code(), UNREACHABLE);
        let pipe = io::Error::from(io::ErrorKind::BrokenPipe);
        let failure = Failure::from(pipe).exit_code();
        assert_eq!(failure, DONE);
        assert_eq!(Failure::usage("x").exit_code(), USAGE);
    }
}
