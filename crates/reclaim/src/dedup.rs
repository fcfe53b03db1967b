//! Page deduplication: whose VMs the host's scanner may merge, and how fast it goes.
//!
//! The kernel merges equal pages of all memory that was named to it (Linux' KSM): there is one tree
//! for the whole machine, and it cannot be told to keep two owners apart. A write to a merged page
//! takes a fault and a copy, which a guest can time; so it can find out whether somebody else has
//! a page of a content that it knows (Suzaki et al., EuroSec'11). Hence [`elect`]: of one host's
//! projects at most one is merged at a time.
//!
//! Scanning costs CPU whether or not anything is found. [`Scan`] spends it where it pays: fast while
//! pages become equal, a trickle when nothing does (after Waldspurger, OSDI'02, section 4, who scans
//! at a fixed rate; the feedback is ours).

mod election;
mod scan;

pub use election::{Candidate, Standing, Verdict, elect};
pub use scan::{CONVERGING_SHARE, IDLE_SHARE, Pace, Phase, Sample, Scan};
