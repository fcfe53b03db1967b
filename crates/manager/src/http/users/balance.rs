//! Moving VMs off hosts that run hot.

use axum::{Json as Answer, extract::State};
use plimsoll_api::v1::BalanceView;

use crate::{
    app::{self, Caller},
    http::{Services, error::ApiError},
};

/// How balanced the cluster is, with the last plan.
#[utoipa::path(get, path = "/v1/balance", tag = "cluster",
    responses((status = 200, body = BalanceView)))]
pub(super) async fn balance_show(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Answer<BalanceView>, ApiError> {
    Ok(Answer(app::balance_show(&services.core, &caller)?))
}

/// Makes a plan on what is known now, and carries nothing out.
#[utoipa::path(post, path = "/v1/balance/plan", tag = "cluster",
    responses((status = 200, body = BalanceView)))]
pub(super) async fn balance_plan(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Answer<BalanceView>, ApiError> {
    Ok(Answer(app::balance_plan(&services.core, &caller).await?))
}

/// Makes a plan and begins its steps, whatever the mode.
#[utoipa::path(post, path = "/v1/balance/apply", tag = "cluster",
    responses((status = 200, body = BalanceView)))]
pub(super) async fn balance_apply(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Answer<BalanceView>, ApiError> {
    Ok(Answer(app::balance_apply(&services.core, &caller).await?))
}
