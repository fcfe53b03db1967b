//! The description that is checked in is the one that the code makes.

#[test]
fn the_checked_in_description_is_fresh() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/plimsoll-v1.json");
    let text = plimsoll_manager::openapi::text();
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
        std::fs::write(path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        kept == text,
        "openapi/plimsoll-v1.json is not what the code describes; make it anew with \
         `UPDATE_OPENAPI=1 cargo nextest run -p plimsoll-manager openapi`"
    );
}

#[test]
fn every_endpoint_is_described() {
    let api: serde_json::Value = serde_json::from_str(&plimsoll_manager::openapi::text()).unwrap();
    let paths = api["paths"].as_object().unwrap();
    for path in [
        "/v1/projects/{project}/vms/{vm}/console",
        "/v1/images/{image}/files/{kind}",
        "/v1/join",
        "/v1/events",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            assert!(operation["responses"]["default"].is_object(), "{method} {path}");
            assert!(operation["summary"].is_string(), "{method} {path}");
        }
    }
    // Every reference leads somewhere.
    let text = api.to_string();
    for part in text.split("\"$ref\":\"#").skip(1) {
        let pointer = part.split('"').next().unwrap();
        assert!(api.pointer(pointer).is_some(), "{pointer} is missing");
    }
}
