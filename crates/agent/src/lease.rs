//! When the host's lease is renewed, and when not.
//!
//! | what came of a report | lease |
//! |---|---|
//! | answered | renewed to the moment of *sending* plus what was granted |
//! | connection refused | renewed by what was granted last: nothing listens on the manager's machine, and a manager that does not run restarts nothing; when it starts it counts every host as just seen |
//! | anything else: no answer, no route, connection broken, an error as answer | left to run out |
//!
//! Errors as answers do not renew: the manager did not take the report, so it may count the host as
//! silent. A refusal renews nothing where nothing was ever granted.
//!
//! The lease itself, its file and what follows from it for starting VMs are in [`crate::vm::lease`].

use plimsoll_api::{ClientError, cluster::ReportReply};

use crate::vm::lease::{BootTime, LeaseError, LeaseKeeper};

/// What came of a report, as far as the lease is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// The manager answered; it grants so many milliseconds, or a lease without end.
    Answered {
        /// See [`ReportReply::lease_ms`].
        lease_ms: Option<u64>,
    },
    /// The connection was refused.
    Refused,
    /// The manager may be alive, and not know of us.
    Unknown,
}

impl Contact {
    /// That of a report's result.
    #[must_use]
    pub fn of(result: &Result<ReportReply, ClientError>) -> Self {
        match result {
            Ok(reply) => Self::Answered { lease_ms: reply.lease_ms },
            Err(error) if error.is_refused() => Self::Refused,
            Err(_) => Self::Unknown,
        }
    }
}

/// What became of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It goes on without a gap.
    Renewed,
    /// There is one again, after a time without: everything heard before is stale.
    Begun,
    /// It was not touched.
    Left,
}

/// Renews the lease by the rule above.
#[derive(Debug)]
pub struct LeaseRenewer {
    keeper: LeaseKeeper,
    /// What was granted last, by a manager that answered.
    granted: Option<Option<u64>>,
}

impl LeaseRenewer {
    /// Goes on with a lease file; `granted` is what the last answer granted, if there was one.
    #[must_use]
    pub const fn new(keeper: LeaseKeeper, granted: Option<Option<u64>>) -> Self {
        Self { keeper, granted }
    }

    /// A report was sent at `sent_at`, and this came of it.
    ///
    /// # Errors
    /// The file could not be written: then the old deadline stands.
    pub fn report(&mut self, sent_at: BootTime, contact: Contact) -> Result<Renewal, LeaseError> {
        let lease_ms = match contact {
            Contact::Answered { lease_ms } => lease_ms,
            Contact::Refused => match self.granted {
                Some(granted) => granted,
                None => return Ok(Renewal::Left),
            },
            Contact::Unknown => return Ok(Renewal::Left),
        };
        let since = self.since();
        self.keeper.renew(sent_at, lease_ms)?;
        self.granted = Some(lease_ms);
        Ok(if self.since() == since { Renewal::Renewed } else { Renewal::Begun })
    }

    /// What was granted last, by a manager that answered.
    #[must_use]
    pub const fn granted(&self) -> Option<Option<u64>> {
        self.granted
    }

    fn since(&self) -> Option<BootTime> {
        self.keeper.current().map(|lease| lease.since_boottime_ms)
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_api::{ErrorBody, ErrorCode};
    use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

    use super::*;
    use crate::vm::lease::Lease;

    fn unreachable(refused: bool) -> ClientError {
        let kind = if refused {
            std::io::ErrorKind::ConnectionRefused
        } else {
            std::io::ErrorKind::HostUnreachable
        };
        let source = Box::new(std::io::Error::from(kind));
        ClientError::Unreachable { address: "m:1".into(), refused, source }
    }

    #[test]
    fn what_renews_and_what_does_not() {
        let api = |code: ErrorCode| ClientError::Api {
            body: Box::new(ErrorBody::new(code, "no")),
            status: code.status(),
        };
        let answered = ReportReply { lease_ms: Some(9), interval_ms: 1, desired_generation: 0 };
        let table = [
            (Ok(answered), Contact::Answered { lease_ms: Some(9) }),
            (Err(unreachable(true)), Contact::Refused),
            (Err(unreachable(false)), Contact::Unknown),
            (Err(ClientError::Timeout { address: "m:1".into(), limit_ms: 5 }), Contact::Unknown),
            (Err(api(ErrorCode::Internal)), Contact::Unknown),
            (Err(api(ErrorCode::Forbidden)), Contact::Unknown),
            (Err(ClientError::Foreign { address: "m:1".into(), status: 502 }), Contact::Unknown),
            (Err(ClientError::OtherCa { address: "m:1".into() }), Contact::Unknown),
        ];
        for (result, contact) in table {
            assert_eq!(Contact::of(&result), contact, "{result:?}");
        }
    }

    fn contacts() -> impl Strategy<Value = Contact> {
        prop_oneof![
            any::<Option<u16>>()
                .prop_map(|lease_ms| Contact::Answered { lease_ms: lease_ms.map(u64::from) }),
            Just(Contact::Refused),
            Just(Contact::Unknown),
        ]
    }

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

        /// Whatever comes in which order: the deadline is never later than the sending of the last
        /// report that was answered or refused, plus what the last answer granted.
        #[test]
        fn the_deadline_follows_the_rule(
            walk in proptest::collection::vec((contacts(), 0_u64..5_000), 1..12)
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("lease.json");
            let keeper = LeaseKeeper::open(path.clone()).unwrap();
            let mut renewer = LeaseRenewer::new(keeper, None);
            let mut granted = None;
            let mut expected = None;
            for (contact, ago) in walk {
                let sent_at = BootTime(BootTime::now().0.saturating_sub(ago));
                let renewal = renewer.report(sent_at, contact).unwrap();
                match contact {
                    Contact::Answered { lease_ms } => granted = Some(lease_ms),
                    Contact::Refused => {}
                    Contact::Unknown => assert_eq!(renewal, Renewal::Left),
                }
                if contact != Contact::Unknown && let Some(granted) = granted {
                    expected = Some(granted.map(|ms| sent_at.plus(ms)));
                }
                let deadline = Lease::read(&path).map(|lease| lease.deadline_boottime_ms);
                assert_eq!(deadline, expected, "{contact:?}");
                assert_eq!(renewer.granted(), granted);
            }
        }
    }

    #[test]
    fn after_a_gap_the_lease_begins_anew_when_the_answer_came() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lease.json");
        let keeper = LeaseKeeper::open(path.clone()).unwrap();
        let mut renewer = LeaseRenewer::new(keeper, None);
        assert_eq!(renewer.report(BootTime::now(), Contact::Refused).unwrap(), Renewal::Left);
        assert_eq!(Lease::read(&path), None);
        let long = Contact::Answered { lease_ms: Some(60_000) };
        let before = BootTime::now();
        // Sent long before the answer: what was asked for in between may have been answered by a
        // manager that counted this host as dead.
        let sent_at = BootTime(before.0.saturating_sub(1_000));
        assert_eq!(renewer.report(sent_at, long).unwrap(), Renewal::Begun);
        assert!(Lease::read(&path).unwrap().since_boottime_ms >= before);
        assert_eq!(renewer.report(BootTime::now(), long).unwrap(), Renewal::Renewed);
        assert_eq!(renewer.report(BootTime::now(), Contact::Refused).unwrap(), Renewal::Renewed);
        // Run out at once.
        let none = Contact::Answered { lease_ms: Some(0) };
        assert_eq!(renewer.report(BootTime(1), none).unwrap(), Renewal::Renewed);
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(renewer.report(BootTime::now(), long).unwrap(), Renewal::Begun);
    }
}
