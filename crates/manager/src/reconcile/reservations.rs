//! Bookings: those whose host is no longer to be had are booked elsewhere, and when room was released
//! somewhere later ones move up.
//!
//! A pass goes through the bookings in the order of their starts, and moves each to the earliest
//! interval if that begins earlier than its own: never to a later one. There is a pass only after
//! some host had more room, or was changed; what a pass moves makes another one, which ends when
//! nothing moves, as starts only become earlier. A pass is made in parts, so that it never holds up
//! the commands of others for long. Starting what is due is done with all else that waits, in
//! [`super::pending`].

use std::time::Duration;

use plimsoll_model::{Timestamp, VmId};

use crate::{
    admission::book::{self, Reviewed},
    app::AppError,
    core::{Core, State, txn::Txn},
};

/// So many are looked at in one transaction; others have their turn meanwhile.
const AT_ONCE: usize = 8;
/// The look goes on for so long, and for so many, before it rests until the next time.
const LONGEST: Duration = Duration::from_millis(200);
const MOST: usize = 512;

/// How far the look at all bookings is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Review {
    /// [`State::room_changed`] when the last complete pass began.
    done: Option<u64>,
    /// The same of the pass that is under way, and the last booking that it has looked at.
    under_way: Option<(u64, (Timestamp, VmId))>,
}

pub(crate) async fn reconcile(core: Core) -> Result<String, AppError> {
    let mut review = core.review();
    let state = core.snapshot();
    let of = review.under_way.map_or(state.room_changed, |(of, _)| of);
    if review.under_way.is_none() && review.done == Some(of) || state.bookings.is_empty() {
        core.note_review(Review { done: Some(state.room_changed), under_way: None });
        return Ok(format!("{} bookings", state.bookings.len()));
    }
    let (mut looked, mut moved, mut lost) = (0, 0, 0);
    let began = core.monotonic();
    while looked < MOST && core.monotonic().saturating_sub(began) < LONGEST {
        let next = next(&core.snapshot(), review.under_way.map(|(_, last)| last));
        let Some(last) = next.last().copied() else {
            review = Review { done: Some(of), under_way: None };
            break;
        };
        looked += next.len();
        let came = core.submit(None, move |txn| Ok(look(txn, &next))).await?;
        moved += came.iter().filter(|came| **came == Reviewed::Moved).count();
        lost += came.iter().filter(|came| **came == Reviewed::Lost).count();
        review.under_way = Some((of, last));
    }
    core.note_review(review);
    Ok(format!("{looked} bookings looked at: {moved} moved, {lost} lost"))
}

/// The bookings after this one, by start.
fn next(state: &State, last: Option<(Timestamp, VmId)>) -> Vec<(Timestamp, VmId)> {
    let from = last.unwrap_or((Timestamp::MIN, VmId(uuid::Uuid::nil())));
    let after = state.bookings.range(from..).filter(|booking| Some(**booking) != last);
    after.take(AT_ONCE).copied().collect()
}

fn look(txn: &mut Txn<'_>, bookings: &[(Timestamp, VmId)]) -> Vec<Reviewed> {
    let mut came = Vec::with_capacity(bookings.len());
    for (_, id) in bookings {
        if let Some(record) = txn.state.vm(*id).cloned() {
            came.push(book::review(txn, &record));
        }
    }
    came
}
