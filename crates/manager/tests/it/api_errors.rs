//! What comes in wrong: each a typed error with its cause and a hint, and nothing half done.

use std::fmt::Write as _;

use plimsoll_api::{ErrorBody, ErrorCode};
use plimsoll_model::{Role, VmPhase};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cluster::{Cluster, name, vms};

/// A request as text, over the socket; the answer's status and body.
pub(crate) async fn raw(cluster: &Cluster, head: &str, body: &str) -> (u16, String) {
    let mut stream = tokio::net::UnixStream::connect(&cluster.socket).await.unwrap();
    let mut text = format!("{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    if !head.contains("Authorization") {
        let _ = write!(text, "Authorization: Bearer {}\r\n", cluster.admin_token);
    }
    let _ = write!(text, "Content-Length: {}\r\n\r\n{body}", body.len());
    // The server may answer and close before it has read all.
    let _ = stream.write_all(text.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    (status, body.to_owned())
}

struct Case {
    what: &'static str,
    head: &'static str,
    body: &'static str,
    code: ErrorCode,
}

const fn case(what: &'static str, head: &'static str, body: &'static str, code: ErrorCode) -> Case {
    Case { what, head, body, code }
}

use ErrorCode::{
    AlreadyExists, InvalidRequest, InvalidValue, MethodNotAllowed, NoCapacity, NotFound, WrongState,
};

const DEFLATE: &str = "POST /v1/projects/shop/vms/web-1/deflate";
const VMS: &str = "POST /v1/projects/shop/vms";
const WEB: &str = "PATCH /v1/projects/shop/vms/web-1";

/// Form: paths, methods, bodies that do not parse.
const FORM: &[Case] = &[
    case("unknown path", "GET /v1/nothing", "", NotFound),
    case("no path", "GET /", "", NotFound),
    case("another version", "GET /v2/projects", "", NotFound),
    case("wrong method", "PUT /v1/projects", "", MethodNotAllowed),
    case("wrong method on an object", "POST /v1/projects/shop", "", MethodNotAllowed),
    case("unknown method", "BREW /v1/projects", "", MethodNotAllowed),
    case("no body", "POST /v1/projects", "", InvalidRequest),
    case("not JSON", "POST /v1/projects", "name = shop", InvalidRequest),
    case("cut off", "POST /v1/projects", r#"{"name": "sho"#, InvalidRequest),
    case("something behind", "POST /v1/projects", r#"{"name": "shop2"} x"#, InvalidRequest),
    case("a list", "POST /v1/projects", "[]", InvalidRequest),
    case("null", "POST /v1/projects", "null", InvalidRequest),
    case("no name", "POST /v1/projects", "{}", InvalidRequest),
    case("unknown field", "POST /v1/projects", r#"{"name": "x", "colour": 1}"#, InvalidRequest),
    case("field twice", "POST /v1/projects", r#"{"name": "x", "name": "y"}"#, InvalidRequest),
    case("wrong type", "POST /v1/projects", r#"{"name": 7}"#, InvalidRequest),
    case("bad name", "POST /v1/projects", r#"{"name": "Shop!"}"#, InvalidRequest),
    case("empty name", "POST /v1/projects", r#"{"name": ""}"#, InvalidRequest),
    case("path as name", "POST /v1/projects", r#"{"name": "../etc"}"#, InvalidRequest),
    case("bad name in the path", "GET /v1/projects/Shop", "", InvalidValue),
    case("escapes in the path", "GET /v1/projects/%2e%2e%2fetc", "", InvalidValue),
    case("no UTF-8 in the path", "GET /v1/projects/%ff", "", InvalidRequest),
    case("not a token's id", "DELETE /v1/tokens/7", "", InvalidValue),
    case("bad query", "GET /v1/events?limit=many", "", InvalidRequest),
    case("bad log", "GET /v1/projects/shop/vms/web-1/logs?source=x", "", InvalidRequest),
];

/// Values: well formed and not allowed.
const VALUES: &[Case] = &[
    case("no entries", VMS, r#"{"requests": []}"#, InvalidValue),
    case(
        "no resources",
        VMS,
        r#"{"requests": [{"name": "a", "spec": {"image": "tiny"}}]}"#,
        InvalidRequest,
    ),
    case(
        "no cpu",
        VMS,
        r#"{"requests": [{"name": "a", "spec": {"image": "tiny", "resources": {"memory": "1GiB", "disk": "1GiB"}}}]}"#,
        InvalidValue,
    ),
    case(
        "no memory",
        VMS,
        r#"{"requests": [{"name": "a", "spec": {"image": "tiny", "resources": {"cpu": 1, "disk": "1GiB"}}}]}"#,
        InvalidValue,
    ),
    case(
        "negative",
        VMS,
        r#"{"requests": [{"name": "a", "spec": {"image": "tiny", "resources": {"cpu": -1}}}]}"#,
        InvalidRequest,
    ),
    case(
        "unknown unit",
        VMS,
        r#"{"requests": [{"name": "a", "spec": {"image": "tiny", "resources": {"cpu": 1, "memory": "1GB!"}}}]}"#,
        InvalidRequest,
    ),
    case(
        "count of zero",
        VMS,
        r#"{"requests": [{"name": "a", "count": 0, "spec": {"image": "tiny", "resources": {"cpu": 1, "memory": "1GiB", "disk": "1GiB"}}}]}"#,
        InvalidValue,
    ),
    case(
        "too many",
        VMS,
        r#"{"requests": [{"name": "a", "count": 1001, "spec": {"image": "tiny", "resources": {"cpu": 1, "memory": "1GiB", "disk": "1GiB"}}}]}"#,
        InvalidValue,
    ),
    case(
        "count and split",
        VMS,
        r#"{"requests": [{"name": "a", "count": 2, "split": {}, "spec": {"image": "tiny", "resources": {"cpu": 1, "memory": "1GiB", "disk": "1GiB"}}}]}"#,
        InvalidValue,
    ),
    case(
        "unknown policy",
        VMS,
        r#"{"requests": [{"name": "a", "spec": {"image": "tiny", "resources": {"cpu": 1}}}], "policy": "best"}"#,
        InvalidRequest,
    ),
    case(
        "unknown image",
        VMS,
        r#"{"requests": [{"name": "a", "spec": {"image": "huge", "resources": {"cpu": 1, "memory": "1GiB", "disk": "1GiB"}}}]}"#,
        NotFound,
    ),
    case(
        "unknown network",
        VMS,
        r#"{"requests": [{"name": "a", "spec": {"image": "tiny", "networks": ["lan"], "resources": {"cpu": 1, "memory": "1GiB", "disk": "1GiB"}}}]}"#,
        NotFound,
    ),
    case(
        "taken name",
        VMS,
        r#"{"requests": [{"name": "web-1", "spec": {"image": "tiny", "resources": {"cpu": 1, "memory": "1GiB", "disk": "1GiB"}}}]}"#,
        AlreadyExists,
    ),
    case(
        "half a device",
        VMS,
        r#"{"requests": [{"name": "a", "spec": {"image": "tiny", "resources": {"cpu": 1, "memory": "1GiB", "disk": "1GiB", "accelerators": {"t4": "1.5"}}}}]}"#,
        InvalidValue,
    ),
    case(
        "no host so large",
        VMS,
        r#"{"requests": [{"name": "a", "spec": {"image": "tiny", "resources": {"cpu": 64, "memory": "1GiB", "disk": "1GiB"}}}]}"#,
        NoCapacity,
    ),
    case(
        "unknown rule",
        VMS,
        r#"{"requests": [{"name": "a", "spec": {"image": "tiny", "resources": {"cpu": 1}, "constraints": [{"near": {}}]}}]}"#,
        InvalidRequest,
    ),
    case(
        "over in the past",
        VMS,
        r#"{"requests": [{"name": "a", "spec": {"image": "tiny", "end_at": "2001-01-01T00:00:00Z", "resources": {"cpu": 1, "memory": "1GiB", "disk": "1GiB"}}}]}"#,
        InvalidValue,
    ),
    case("smaller disk", WEB, r#"{"disk": "1MiB"}"#, InvalidValue),
    case("no cpu left", WEB, r#"{"cpu": 0}"#, InvalidValue),
    case("another generation", WEB, r#"{"cpu": 1, "if_generation": 99}"#, ErrorCode::Conflict),
    case("unknown setting of a VM", WEB, r#"{"cpus": 1}"#, InvalidRequest),
    case(
        "long grace",
        "POST /v1/projects/shop/vms/web-1/stop",
        r#"{"grace_s": 3601}"#,
        InvalidValue,
    ),
];

/// Things that are not there, are there already, or are in use.
const THINGS: &[Case] = &[
    case("no such project", "GET /v1/projects/ghost", "", NotFound),
    case("no such VM", "GET /v1/projects/shop/vms/ghost", "", NotFound),
    case("nothing to take", DEFLATE, "{}", InvalidValue),
    case("more than all", DEFLATE, r#"{"memory_percent": 101}"#, InvalidValue),
    case("no time at all", DEFLATE, r#"{"cpu_percent": 50, "within_ms": 0}"#, InvalidValue),
    case("a word for a percentage", DEFLATE, r#"{"memory_percent": "half"}"#, InvalidRequest),
    case("below zero", DEFLATE, r#"{"memory_percent": -1}"#, InvalidRequest),
    case("no such VM to inflate", "POST /v1/projects/shop/vms/ghost/inflate", "", NotFound),
    case("no such VM to stop", "POST /v1/projects/shop/vms/ghost/stop", "", NotFound),
    case("no such VM to delete", "DELETE /v1/projects/shop/vms/ghost", "", NotFound),
    case("no such host", "GET /v1/hosts/ghost", "", NotFound),
    case("no such host to drain", "POST /v1/hosts/ghost/drain", "", NotFound),
    case("no such network", "DELETE /v1/projects/shop/networks/ghost", "", NotFound),
    case("no such image", "GET /v1/images/ghost", "", NotFound),
    case("no such image to fill", "PUT /v1/images/ghost/files/disk", "x", NotFound),
    case("no such part of an image", "PUT /v1/images/tiny/files/tail", "x", InvalidValue),
    case("another length", "PUT /v1/images/tiny/files/disk", "x", InvalidValue),
    case("no such token", "DELETE /v1/tokens/token-00000000000000000000000000000000", "", NotFound),
    case("project twice", "POST /v1/projects", r#"{"name": "shop"}"#, AlreadyExists),
    case("project with VMs", "DELETE /v1/projects/shop", "", ErrorCode::InUse),
    case("image with VMs", "DELETE /v1/images/tiny", "", ErrorCode::InUse),
    case("host with VMs", "DELETE /v1/hosts/h-1", "", ErrorCode::InUse),
    case("host that is up", "POST /v1/hosts/h-1/fence", "", WrongState),
    case(
        "bad range",
        "POST /v1/projects/shop/networks",
        r#"{"name": "lan", "cidr": "10.0.0.1/24"}"#,
        InvalidRequest,
    ),
    case("no disk", "POST /v1/images", r#"{"name": "none", "files": []}"#, InvalidValue),
    case(
        "bad checksum",
        "POST /v1/images",
        r#"{"name": "none", "files": [{"kind": "disk", "sha256": "../../etc/passwd", "size": 1}]}"#,
        InvalidValue,
    ),
    case("no program", "POST /v1/projects/shop/vms/web-1/exec", r#"{"argv": []}"#, InvalidValue),
    case(
        "long program",
        "POST /v1/projects/shop/vms/web-1/exec",
        r#"{"argv": ["x"], "timeout_ms": 600001}"#,
        InvalidValue,
    ),
    case("long tail", "GET /v1/projects/shop/vms/web-1/logs?tail_bytes=9999999", "", InvalidValue),
    case("no WebSocket", "GET /v1/projects/shop/vms/web-1/console", "", InvalidRequest),
    case("many events", "GET /v1/events?limit=1001", "", InvalidValue),
    case("long wait", "GET /v1/events?wait_ms=30001", "", InvalidValue),
    case("short join token", "POST /v1/join-tokens", r#"{"lifetime_s": 59}"#, InvalidValue),
    case("long join token", "POST /v1/join-tokens", r#"{"lifetime_s": 86401}"#, InvalidValue),
    case("unknown role", "POST /v1/tokens", r#"{"role": "root"}"#, InvalidRequest),
    case(
        "token of no project",
        "POST /v1/tokens",
        r#"{"role": "viewer", "project": "ghost"}"#,
        NotFound,
    ),
    case("dead before silent", "PATCH /v1/settings", r#"{"dead_after_ms": 1}"#, InvalidValue),
    case("joining with rubbish", "POST /v1/join", r#"{"token": "x"}"#, InvalidRequest),
];

#[tokio::test]
async fn bad_input_is_refused_with_a_cause_and_a_hint() {
    let (cluster, _agents) = Cluster::furnished(1).await;
    cluster.admin.create_vms(&name("shop"), &vms("web", 1)).await.unwrap();
    cluster.wait_phase("web-1", VmPhase::Running).await;
    let before = cluster.admin.vm(&name("shop"), &name("web-1")).await.unwrap();
    let mut wrong = Vec::new();
    let cases: Vec<_> = FORM.iter().chain(VALUES).chain(THINGS).collect();
    for case in &cases {
        let (status, text) = raw(&cluster, case.head, case.body).await;
        let verdict = match serde_json::from_str::<ErrorBody>(&text) {
            Err(_) => Some(format!("not an error body: {status} {text}")),
            Ok(body) => {
                let fine = body.code == case.code
                    && body.code.status() == status
                    && body.request_id.is_some()
                    && body.hint.is_some()
                    && !body.message.is_empty();
                (!fine).then(|| format!("wanted {}, got {status} {body:?}", case.code))
            }
        };
        if let Some(verdict) = verdict {
            wrong.push(format!("{}: {verdict}", case.what));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(cases.len() >= 60, "{}", cases.len());
    // Nothing was half done.
    let names: Vec<_> = cluster.admin.projects().await.unwrap();
    assert_eq!(names.len(), 1);
    let after = cluster.admin.vms(&name("shop")).await.unwrap();
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].generation, before.generation);
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_is_read() {
    let cluster = Cluster::start().await;
    let announced = "POST /v1/projects HTTP/1.1\r\nContent-Length: 99999999999\r\nX:";
    // The first header line ends the request line of `raw`: the length is the announced one.
    let mut stream = tokio::net::UnixStream::connect(&cluster.socket).await.unwrap();
    let text = format!(
        "{announced} y\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n{{",
        cluster.admin_token
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");

    let long = format!(r#"{{"name": "{}"}}"#, "x".repeat(2 << 20));
    let (status, _) = raw(&cluster, "POST /v1/projects", &long).await;
    // 0: closed while we were still sending.
    assert!(status == 413 || status == 0, "{status}");
    let long = "x".repeat(100_000);
    let (status, _) = raw(&cluster, &format!("GET /v1/projects/{long}"), "").await;
    assert!((400..=431).contains(&status), "{status}");
}

#[tokio::test]
async fn health_needs_no_token_and_metrics_do() {
    let cluster = Cluster::start().await;
    let none = "\r\nAuthorization: none";
    let head = |path: &str| format!("GET {path} HTTP/1.1{none}\r\nX: y");
    let get = async |path: &str| {
        let mut stream = tokio::net::UnixStream::connect(&cluster.socket).await.unwrap();
        let text = format!("{}\r\nHost: x\r\nConnection: close\r\n\r\n", head(path));
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
    for path in ["/metrics", "/v1/openapi.json", "/v1/status"] {
        assert!(get(path).await.starts_with("HTTP/1.1 401"), "{path}");
    }
    let (status, text) = raw(&cluster, "GET /metrics", "").await;
    assert_eq!(status, 200);
    for metric in [
        "plimsoll_hosts{phase=\"up\"} 0",
        "plimsoll_http_requests_total{",
        "plimsoll_commit_duration_seconds_count",
        "# EOF",
    ] {
        assert!(text.contains(metric), "no {metric} in {text}");
    }
    cluster.project("shop").await;
    let tenant = cluster.role(Role::Admin, Some("shop")).await;
    let error = tenant.get::<serde_json::Value>("/metrics").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Forbidden));
}
