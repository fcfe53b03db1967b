//! Charges projects for what they hold. Every change of what a project holds is settled when it
//! happens; this settles what goes on unchanged.

use plimsoll_model::{Prices, ProjectId, Resources};

use crate::{app::AppError, core::Core};

pub(crate) async fn reconcile(core: Core) -> Result<String, AppError> {
    let state = core.snapshot();
    if state.settings().prices == Prices::default() {
        return Ok("nothing costs anything".to_owned());
    }
    let charged: Vec<ProjectId> = state
        .projects
        .values()
        .map(|record| &record.project)
        .filter(|project| project.credits.is_some())
        .map(|project| project.id)
        .filter(|id| state.usage(*id).held != Resources::default())
        .collect();
    let count = charged.len();
    if count > 0 {
        core.submit(None, move |txn| {
            for id in charged {
                txn.settle(id);
            }
            Ok(())
        })
        .await?;
    }
    Ok(format!("{count} projects charged"))
}
