//! Images of projects, and public ones. The bytes of a file go to the blob store as they come; the
//! app layer hears of them when they are durable.

use axum::{
    Json as Answer,
    extract::{Request, State},
    http::{StatusCode, header::CONTENT_LENGTH},
};
use plimsoll_api::{ErrorChain, ErrorCode, v1::CreateImageRequest};
use plimsoll_model::{Image, ImageFileKind, Name};

use crate::{
    app::{self, Caller},
    http::{
        Services,
        error::ApiError,
        extract::{At, Json},
    },
};

/// Announces an image of a project; its files follow.
#[utoipa::path(post, path = "/v1/projects/{project}/images", tag = "images",
    request_body = CreateImageRequest, responses((status = 201, body = Image)))]
pub(super) async fn image_create(
    State(services): State<Services>,
    caller: Caller,
    At((project,)): At<(Name,)>,
    Json(request): Json<CreateImageRequest>,
) -> Result<(StatusCode, Answer<Image>), ApiError> {
    let image = app::image_create(&services.core, &caller, Some(&project), request).await?;
    Ok((StatusCode::CREATED, Answer(image)))
}

/// The images of a project, without the public ones.
#[utoipa::path(get, path = "/v1/projects/{project}/images", tag = "images",
    responses((status = 200, body = Vec<Image>)))]
pub(super) async fn image_list(
    State(services): State<Services>,
    caller: Caller,
    At((project,)): At<(Name,)>,
) -> Result<Answer<Vec<Image>>, ApiError> {
    Ok(Answer(app::image_list(&services.core, &caller, Some(&project))?))
}

/// One image of a project.
#[utoipa::path(get, path = "/v1/projects/{project}/images/{image}", tag = "images",
    responses((status = 200, body = Image)))]
pub(super) async fn image_show(
    State(services): State<Services>,
    caller: Caller,
    At((project, image)): At<(Name, Name)>,
) -> Result<Answer<Image>, ApiError> {
    Ok(Answer(app::image_show(&services.core, &caller, Some(&project), &image)?))
}

/// Deletes an image of a project that no VM uses.
#[utoipa::path(delete, path = "/v1/projects/{project}/images/{image}", tag = "images",
    responses((status = 204, description = "It is gone")))]
pub(super) async fn image_delete(
    State(services): State<Services>,
    caller: Caller,
    At((project, image)): At<(Name, Name)>,
) -> Result<StatusCode, ApiError> {
    delete(&services, &caller, Some(&project), &image).await
}

/// Sends a file of an image: exactly the announced bytes, with a `Content-Length`.
#[utoipa::path(put, path = "/v1/projects/{project}/images/{image}/files/{kind}", tag = "images",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Image)))]
pub(super) async fn image_file_put(
    State(services): State<Services>,
    caller: Caller,
    At((project, image, kind)): At<(Name, Name, String)>,
    request: Request,
) -> Result<Answer<Image>, ApiError> {
    receive(&services, &caller, Some(&project), &image, &kind, request).await
}

/// Announces a public image; its files follow.
#[utoipa::path(post, path = "/v1/images", tag = "images",
    request_body = CreateImageRequest, responses((status = 201, body = Image)))]
pub(super) async fn public_image_create(
    State(services): State<Services>,
    caller: Caller,
    Json(request): Json<CreateImageRequest>,
) -> Result<(StatusCode, Answer<Image>), ApiError> {
    let image = app::image_create(&services.core, &caller, None, request).await?;
    Ok((StatusCode::CREATED, Answer(image)))
}

/// The public images.
#[utoipa::path(get, path = "/v1/images", tag = "images",
    responses((status = 200, body = Vec<Image>)))]
pub(super) async fn public_image_list(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Answer<Vec<Image>>, ApiError> {
    Ok(Answer(app::image_list(&services.core, &caller, None)?))
}

/// One public image.
#[utoipa::path(get, path = "/v1/images/{image}", tag = "images",
    responses((status = 200, body = Image)))]
pub(super) async fn public_image_show(
    State(services): State<Services>,
    caller: Caller,
    At((image,)): At<(Name,)>,
) -> Result<Answer<Image>, ApiError> {
    Ok(Answer(app::image_show(&services.core, &caller, None, &image)?))
}

/// Deletes a public image that no VM uses.
#[utoipa::path(delete, path = "/v1/images/{image}", tag = "images",
    responses((status = 204, description = "It is gone")))]
pub(super) async fn public_image_delete(
    State(services): State<Services>,
    caller: Caller,
    At((image,)): At<(Name,)>,
) -> Result<StatusCode, ApiError> {
    delete(&services, &caller, None, &image).await
}

/// Sends a file of a public image: exactly the announced bytes, with a `Content-Length`.
#[utoipa::path(put, path = "/v1/images/{image}/files/{kind}", tag = "images",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Image)))]
pub(super) async fn public_image_file_put(
    State(services): State<Services>,
    caller: Caller,
    At((image, kind)): At<(Name, String)>,
    request: Request,
) -> Result<Answer<Image>, ApiError> {
    receive(&services, &caller, None, &image, &kind, request).await
}

async fn delete(
    services: &Services,
    caller: &Caller,
    project: Option<&Name>,
    image: &Name,
) -> Result<StatusCode, ApiError> {
    let files = app::image_show(&services.core, caller, project, image)?.files;
    app::image_delete(&services.core, caller, project, image).await?;
    services.blobs_removed(files.into_iter().map(|file| file.sha256)).await;
    Ok(StatusCode::NO_CONTENT)
}

impl Services {
    /// Removes those of these files that no image has any more. A failure costs only room: the next
    /// start tries again.
    async fn blobs_removed(&self, checksums: impl Iterator<Item = String>) {
        let _still = self.blobs_in_use.lock().await;
        let needed = app::image_files(&self.core);
        for sha256 in checksums.filter(|sha256| !needed.contains(sha256)) {
            if let Err(error) = self.blobs.remove(&sha256).await {
                tracing::warn!(error = %ErrorChain(&error), "cannot remove a file of a deleted image");
            }
        }
    }
}

async fn receive(
    services: &Services,
    caller: &Caller,
    project: Option<&Name>,
    image: &Name,
    kind: &str,
    request: Request,
) -> Result<Answer<Image>, ApiError> {
    let kind = match kind {
        "disk" => ImageFileKind::Disk,
        "kernel" => ImageFileKind::Kernel,
        "initrd" => ImageFileKind::Initrd,
        other => {
            let shown: String = other.chars().take(40).collect();
            return Err(ApiError::new(
                ErrorCode::InvalidValue,
                format!("`{shown}` is not a file of an image"),
            )
            .hint("use disk, kernel or initrd"));
        }
    };
    let expected = app::image_file_expected(&services.core, caller, project, image, kind)?;
    let length = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok());
    if let Some(length) = length
        && length != expected.size.0
    {
        let (announced, code) = (expected.size.0, ErrorCode::InvalidValue);
        let message = format!("the file has {length} bytes, but {announced} were announced");
        return Err(ApiError::new(code, message).hint("send the file that was announced"));
    }
    let facts = services.blobs.receive(&expected, request.into_body().into_data_stream()).await?;
    // Held until the image counts as needing the file, so that nobody removes it in between.
    let _held = services.blobs_in_use.lock().await;
    let disk = facts.map(|facts| app::DiskFacts {
        format: facts.format.to_owned(),
        virtual_size: facts.virtual_size,
    });
    let done = app::image_file_done(&services.core, caller, project, image, kind, disk).await;
    Ok(Answer(done?))
}
