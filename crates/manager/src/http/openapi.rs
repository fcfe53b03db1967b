//! The description of the users' API, made from the handlers and the wire types.
//!
//! The same text is checked in as `openapi/plimsoll-v1.json`; a test compares. What is the same for
//! every endpoint (parameters in paths, errors, the bearer token) is added here once.

use std::sync::Arc;

use axum::{
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use serde_json::{Map, Value, json};
use utoipa::{OpenApi as _, ToSchema};

use super::users;

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Plimsoll",
    version = "1",
    description = "Runs more virtual machines on fewer servers, safely. Every answer that is not a \
                   success has an `ErrorBody`. Quantities are text with a unit (`4GiB`, `500m`, \
                   `100Mbit/s`); a bare number is in whole cores, bytes, or per second.",
    license(name = "Apache-2.0", identifier = "Apache-2.0")
))]
struct Base;

/// The description as JSON, with sorted keys and two blanks per level.
#[must_use]
pub fn text() -> String {
    let (_, mut described) = users::described().split_for_parts();
    let (_, open) = users::described_open().split_for_parts();
    described.merge(open);
    let mut api = Base::openapi();
    api.merge(described);
    let mut schemas = Vec::new();
    add::<plimsoll_api::ErrorBody>(&mut schemas);
    // What only query strings name is not found by itself.
    add::<plimsoll_api::agent::LogSource>(&mut schemas);
    let components = api.components.get_or_insert_default();
    components.schemas.extend(schemas);
    let mut value = serde_json::to_value(&api).unwrap_or_default();
    complete(&mut value);
    let mut text = serde_json::to_string_pretty(&value).unwrap_or_default();
    text.push('\n');
    text
}

type Schemas = Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)>;

fn add<T: ToSchema>(schemas: &mut Schemas) {
    T::schemas(schemas);
    schemas.push((T::name().into(), T::schema()));
}

/// Adds what every endpoint has.
fn complete(api: &mut Value) {
    if let Some(components) = api.get_mut("components").and_then(Value::as_object_mut) {
        components.insert(
            "securitySchemes".to_owned(),
            json!({"token": {"type": "http", "scheme": "bearer", "bearerFormat": "plt_..."}}),
        );
    }
    api["security"] = json!([{"token": []}]);
    let Some(paths) = api.get_mut("paths").and_then(Value::as_object_mut) else { return };
    for (path, item) in paths {
        let parameters: Vec<Value> = path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(path_parameter)
            .collect();
        let Some(operations) = item.as_object_mut() else { continue };
        for operation in operations.values_mut().filter_map(Value::as_object_mut) {
            complete_operation(operation, &parameters);
        }
    }
}

fn path_parameter(name: &str) -> Value {
    let schema = match name {
        "token" => json!({"$ref": "#/components/schemas/TokenId"}),
        "kind" => json!({"type": "string", "enum": ["disk", "kernel", "initrd"]}),
        _ => json!({"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"}),
    };
    json!({"name": name, "in": "path", "required": true, "schema": schema})
}

fn complete_operation(operation: &mut Map<String, Value>, parameters: &[Value]) {
    if !parameters.is_empty() {
        let all = operation.entry("parameters").or_insert_with(|| json!([]));
        if let Some(all) = all.as_array_mut() {
            all.splice(0..0, parameters.iter().cloned());
        }
    }
    let responses = operation.entry("responses").or_insert_with(|| json!({}));
    let successes = responses.as_object_mut().into_iter().flat_map(Map::values_mut);
    for success in successes.filter(|success| success["description"] == "") {
        success["description"] = json!("Done");
    }
    responses["default"] = json!({
        "description": "A refusal, or a failure",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
    });
}

pub(super) async fn show(text: Arc<String>) -> Response {
    ([(CONTENT_TYPE, "application/json")], text.as_str().to_owned()).into_response()
}
