//! When to ask whether to go on.

/// How many steps (comparisons of one item with one bin, about) lie between two questions: well
/// below a millisecond.
const STEPS: u64 = 1 << 14;

/// Counts steps and asks the caller's `keep_going` now and then. Once it said no it is not asked
/// again.
pub(super) struct Progress<'a> {
    keep_going: &'a mut dyn FnMut() -> bool,
    steps: u64,
    stopped: bool,
}

impl<'a> Progress<'a> {
    pub(super) fn new(keep_going: &'a mut dyn FnMut() -> bool) -> Self {
        Self { keep_going, steps: 0, stopped: false }
    }

    /// Whether to go on after so many more steps.
    pub(super) fn spend(&mut self, steps: usize) -> bool {
        self.steps += steps as u64;
        if self.steps >= STEPS && !self.stopped {
            self.steps = 0;
            self.stopped = !(self.keep_going)();
        }
        !self.stopped
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }
}
