//! The users' API: see [`plimsoll_api::v1`] for the list of endpoints.

mod access;
mod balance;
mod cluster;
mod hosts;
mod images;
mod networks;
mod projects;
mod tokens;
mod vms;

use std::sync::Arc;

use axum::{Router, middleware, response::IntoResponse as _, routing::get};
use tokio::sync::Semaphore;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Services,
    frame::{Frame, frame, no_such_method, no_such_path},
    openapi,
};
use crate::auth;

/// How many requests of users run at once.
const MOST_REQUESTS: usize = 1024;

/// Every endpoint behind a token, with its description.
pub(super) fn described() -> OpenApiRouter<Services> {
    OpenApiRouter::new()
        .routes(routes!(cluster::status_show))
        .routes(routes!(cluster::whoami))
        .routes(routes!(cluster::settings_show, cluster::settings_set))
        .routes(routes!(balance::balance_show))
        .routes(routes!(balance::balance_plan))
        .routes(routes!(balance::balance_apply))
        .routes(routes!(cluster::event_list))
        .routes(routes!(projects::project_create, projects::project_list))
        .routes(routes!(projects::project_show, projects::project_set, projects::project_delete))
        .routes(routes!(vms::vm_create, vms::vm_list))
        .routes(routes!(vms::reservation_list))
        .routes(routes!(vms::vm_show, vms::vm_set, vms::vm_delete))
        .routes(routes!(vms::vm_start))
        .routes(routes!(vms::vm_stop))
        .routes(routes!(vms::vm_reboot))
        .routes(routes!(vms::vm_deflate))
        .routes(routes!(vms::vm_inflate))
        .routes(routes!(vms::vm_migrate))
        .routes(routes!(vms::vm_migrate_cancel))
        .routes(routes!(vms::vm_explain))
        .routes(routes!(vms::request_explain))
        .routes(routes!(access::vm_exec))
        .routes(routes!(access::vm_logs))
        .routes(routes!(access::vm_console))
        .routes(routes!(networks::network_create, networks::network_list))
        .routes(routes!(networks::network_show, networks::network_delete))
        .routes(routes!(images::image_create, images::image_list))
        .routes(routes!(images::image_show, images::image_delete))
        .routes(routes!(images::image_file_put))
        .routes(routes!(images::public_image_create, images::public_image_list))
        .routes(routes!(images::public_image_show, images::public_image_delete))
        .routes(routes!(images::public_image_file_put))
        .routes(routes!(hosts::host_list))
        .routes(routes!(hosts::host_show, hosts::host_remove))
        .routes(routes!(hosts::host_drain))
        .routes(routes!(hosts::host_undrain))
        .routes(routes!(hosts::host_fence))
        .routes(routes!(tokens::token_create, tokens::token_list))
        .routes(routes!(tokens::token_revoke))
        .routes(routes!(tokens::join_token_create))
}

/// Endpoints that ask for no user's token: a joining host shows its join token in the body.
pub(super) fn described_open() -> OpenApiRouter<Services> {
    OpenApiRouter::new().routes(routes!(hosts::host_join))
}

pub(crate) fn router(services: Services) -> Router {
    let (private, _) = described().split_for_parts();
    let (open, _) = described_open().split_for_parts();
    // Written once: it never changes while the manager runs.
    let description = Arc::new(openapi::text());
    let private = private
        .route("/v1/openapi.json", get(move || openapi::show(Arc::clone(&description))))
        .route("/metrics", get(cluster::metrics))
        .layer(middleware::from_fn_with_state(services.clone(), auth::authenticate));
    let frame_state =
        Frame { metrics: services.metrics.clone(), slots: Arc::new(Semaphore::new(MOST_REQUESTS)) };
    private
        .merge(open)
        .route("/healthz", get(|| async { "ok\n".into_response() }))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(frame_state, frame))
        .with_state(services)
}
