//! Unpacks requests: JSON bodies, paths and queries, each with a limit and an error that says where
//! the mistake is.

use std::{str::FromStr, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, RawPathParams, Request},
    http::{header::CONTENT_LENGTH, request::Parts},
};
use futures_util::StreamExt as _;
use plimsoll_api::ErrorCode;
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// The longest JSON body of users.
pub(crate) const JSON_LIMIT: usize = 1 << 20;
/// The longest report of an agent: 1,000 VMs with all that their guests tell.
pub(crate) const REPORT_LIMIT: usize = 16 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A JSON body of at most `LIMIT` bytes.
pub(crate) struct Json<T, const LIMIT: usize = JSON_LIMIT>(pub(crate) T);

/// A JSON body, or its default where there is none.
pub(crate) struct OptionalJson<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned, const LIMIT: usize> FromRequest<S> for Json<T, LIMIT> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read(request, LIMIT).await?;
        if bytes.is_empty() {
            return Err(ApiError::new(ErrorCode::InvalidRequest, "the request has no body")
                .hint("send a JSON object; /v1/openapi.json describes it"));
        }
        parse(&bytes).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read(request, JSON_LIMIT).await?;
        if bytes.is_empty() { Ok(Self(T::default())) } else { parse(&bytes).map(Self) }
    }
}

async fn read(request: Request<Body>, limit: usize) -> Result<Vec<u8>, ApiError> {
    let too_large = || {
        ApiError::new(ErrorCode::TooLarge, format!("the body is larger than {limit} bytes"))
            .hint("split the request into several")
    };
    let announced = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let mut stream = request.into_body().into_data_stream();
    let whole = async {
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| {
                ApiError::new(ErrorCode::InvalidRequest, "the body broke off")
                    .cause(error.to_string())
            })?;
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    tokio::time::timeout(BODY_TIMEOUT, whole).await.unwrap_or_else(|_| {
        Err(ApiError::new(ErrorCode::TimedOut, "the body has not come within 30 s"))
    })
}

/// Reads a JSON text; an error tells the path, line and column.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        describe(&path, error.inner())
    })?;
    deserializer.end().map_err(|error| describe(".", &error))?;
    Ok(value)
}

fn describe(path: &str, error: &serde_json::Error) -> ApiError {
    use serde_json::error::Category;
    let text = error.to_string();
    let invalid = |message| ApiError::new(ErrorCode::InvalidRequest, message);
    match error.classify() {
        Category::Syntax | Category::Eof | Category::Io => {
            invalid("the body is not JSON".to_owned())
                .cause(text)
                .hint("check the quotes, commas and brackets at that place")
        }
        Category::Data => {
            let place = if path == "." { String::new() } else { format!(" at `{path}`") };
            let hint = if text.starts_with("unknown field") {
                "remove the field, or write it as one of those that are expected"
            } else if text.starts_with("missing field") {
                "add the field; /v1/openapi.json describes it"
            } else {
                "/v1/openapi.json describes what is expected there"
            };
            invalid(format!("the body is not of the form expected{place}")).cause(text).hint(hint)
        }
    }
}

/// The variable parts of the path, in their order.
pub(crate) struct At<T>(pub(crate) T);

async fn segments<S: Send + Sync>(
    parts: &mut Parts,
    state: &S,
) -> Result<Vec<(String, String)>, ApiError> {
    let raw = RawPathParams::from_request_parts(parts, state).await.map_err(|rejection| {
        ApiError::new(ErrorCode::InvalidRequest, "the path cannot be read")
            .cause(rejection.body_text())
            .hint("the path has the names of things, as lists show them")
    })?;
    Ok(raw.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

fn segment<T: FromStr<Err: std::fmt::Display>>(
    found: Option<&(String, String)>,
) -> Result<T, ApiError> {
    let (key, text) = found.ok_or_else(|| {
        ApiError::new(ErrorCode::Internal, "the path has fewer parts than its handler takes")
    })?;
    text.parse().map_err(|error: T::Err| {
        ApiError::new(
            ErrorCode::InvalidValue,
            format!("`{}` in the path is not a {key}", text.chars().take(80).collect::<String>()),
        )
        .cause(error.to_string())
        .hint("the path has the names of things, as lists show them")
    })
}

impl<S, A> FromRequestParts<S> for At<(A,)>
where
    S: Send + Sync,
    A: FromStr<Err: std::fmt::Display>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let found = segments(parts, state).await?;
        Ok(Self((segment(found.first())?,)))
    }
}

impl<S, A, B> FromRequestParts<S> for At<(A, B)>
where
    S: Send + Sync,
    A: FromStr<Err: std::fmt::Display>,
    B: FromStr<Err: std::fmt::Display>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let found = segments(parts, state).await?;
        Ok(Self((segment(found.first())?, segment(found.get(1))?)))
    }
}

impl<S, A, B, C> FromRequestParts<S> for At<(A, B, C)>
where
    S: Send + Sync,
    A: FromStr<Err: std::fmt::Display>,
    B: FromStr<Err: std::fmt::Display>,
    C: FromStr<Err: std::fmt::Display>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let found = segments(parts, state).await?;
        Ok(Self((segment(found.first())?, segment(found.get(1))?, segment(found.get(2))?)))
    }
}

/// The query string.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|rejection| {
                ApiError::new(ErrorCode::InvalidRequest, "the query string cannot be read")
                    .cause(rejection.body_text())
                    .hint("/v1/openapi.json lists the parameters")
            })
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_api::v1::{CreateImageRequest, CreateVmsRequest, SetVmRequest};
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    #[test]
    fn mistakes_in_bodies_are_located() {
        let refuse = |text: &str| parse::<CreateVmsRequest>(text.as_bytes()).map(drop).unwrap_err();
        let error = refuse(
            r#"{"requests": [{"name": "web", "spec": {"image": "tiny", "resources": {"cpus": 1}}}]}"#,
        );
        assert!(error.0.message.contains("requests[0].spec.resources"), "{error:?}");
        assert!(error.0.causes[0].starts_with("unknown field `cpus`"), "{error:?}");
        assert!(error.0.hint.is_some());
        assert_eq!(refuse("{").0.message, "the body is not JSON");
        assert_eq!(refuse(r#"{"requests": []} x"#).0.message, "the body is not JSON");
        assert!(refuse(r#"{"requests": {}}"#).0.message.contains("`requests`"));
        assert!(refuse(&"[".repeat(100_000)).0.causes[0].contains("line 1"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse::<CreateVmsRequest>(&bytes);
        }

        /// A good body with a piece of it replaced: taken, or refused with a cause and a hint.
        #[test]
        fn damaged_bodies_are_taken_or_explained(at in any::<prop::sample::Index>(), piece in ".{0,6}") {
            let good = r#"{"requests": [{"name": "web", "count": 2, "spec": {"image": "tiny",
                "resources": {"cpu": "500m", "memory": "1GiB", "disk": 4096},
                "constraints": [{"anti_affinity": {"group": "web", "scope": "rack"}}]}}]}"#;
            let at = at.index(good.len());
            let text = format!("{}{piece}{}", &good[..at], &good[(at + 3).min(good.len())..]);
            for result in [
                parse::<CreateVmsRequest>(text.as_bytes()).map(drop),
                parse::<SetVmRequest>(text.as_bytes()).map(drop),
                parse::<CreateImageRequest>(text.as_bytes()).map(drop),
            ] {
                if let Err(ApiError(body)) = result {
                    assert_eq!(body.code, ErrorCode::InvalidRequest);
                    assert!(body.hint.is_some() && body.causes.len() == 1);
                }
            }
        }
    }
}
