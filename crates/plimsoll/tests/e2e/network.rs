//! Two projects on one cluster: each has its own network, and sees nothing of the other, neither in
//! its guests nor through the API.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::{Value, json};

use super::lab::Lab;

/// The two networks have the same addresses, so the same address means another VM in each.
const SHOP: &str = r#"
project = "shop"
[[network]]
name = "inner"
cidr = "10.20.0.0/24"
[[vm]]
name = "web"
count = 3
image = "tiny"
resources = { cpu = "250m", memory = "128MiB" }
networks = ["inner"]
groups = ["web"]
constraints = [{ strength = "preferred", anti_affinity = { group = "web" } }]
"#;
const RIVAL: &str = r#"
project = "rival"
[[network]]
name = "same"
cidr = "10.20.0.0/24"
[[network]]
name = "else"
cidr = "10.30.0.0/24"
[[vm]]
name = "spy"
count = 2
image = "tiny"
resources = { cpu = "250m", memory = "128MiB" }
networks = ["same", "else"]
groups = ["spy"]
constraints = [{ anti_affinity = { group = "spy" } }]
"#;

#[test]
fn projects_do_not_see_each_other() {
    let Some(lab) = Lab::start(2) else { return };
    lab.apply(SHOP);
    lab.apply(RIVAL);
    a_page_across_two_hosts(&lab);
    nothing_from_another_project(&lab);
    nothing_through_the_api(&lab);
}

fn page(lab: &Lab, project: &str, vm: &str, address: &str) -> super::lab::Ran {
    let url = format!("http://{address}/");
    // Not `wget -T`: Debian's static busybox (1.35) ends with a segmentation fault at that option.
    lab.try_exec(project, vm, &["timeout", "3", "wget", "-q", "-O-", &url])
}

fn a_page_across_two_hosts(lab: &Lab) {
    let kernel = lab.exec("shop", "web-1", &["uname", "-r"]);
    assert!(kernel.contains("cloud-amd64"), "{kernel}");
    let (one, two) = (lab.vm("shop", "web-1"), lab.vm("shop", "web-2"));
    assert_ne!(one["host"], two["host"]);
    let there = page(lab, "shop", "web-1", &lab.address("shop", "web-2")).succeeded();
    assert_eq!(there.stdout, "web-2\n");
    let back = page(lab, "shop", "web-2", &lab.address("shop", "web-1")).succeeded();
    assert_eq!(back.stdout, "web-1\n");
}

fn nothing_from_another_project(lab: &Lab) {
    // The same address, in two projects: each gets its own VM's page. So the wire works, and what
    // follows is not silent for another reason.
    let shared = lab.address("shop", "web-2");
    assert_eq!(lab.address("rival", "spy-2"), shared);
    let own = page(lab, "rival", "spy-1", &shared).succeeded();
    assert_eq!(own.stdout, "spy-2\n");

    // An address that only the other project has, through each of the two networks.
    let victim = lab.address("shop", "web-3");
    let rivals: Vec<String> = ["spy-1", "spy-2"].map(|vm| lab.address("rival", vm)).into();
    assert!(!rivals.contains(&victim), "{rivals:?}");
    assert_eq!(page(lab, "shop", "web-1", &victim).succeeded().stdout, "web-3\n");
    for spy in ["spy-1", "spy-2"] {
        let got = page(lab, "rival", spy, &victim);
        let silence = [Some(1), Some(143)].contains(&got.code) && got.stdout.is_empty();
        assert!(silence, "{got:?}");
    }
    // A guest is root at home: it names the route and the hardware address itself.
    let mac = lab.vm("shop", "web-3")["guest"]["interfaces"][0]["mac"].as_str().unwrap().to_owned();
    for interface in ["eth0", "eth1"] {
        let forged = format!(
            "ip route add {victim}/32 dev {interface} && arp -i {interface} -s {victim} {mac} && \
             {{ timeout 3 wget -q -O- http://{victim}/; echo code $?; }}; \
             arp -i {interface} -d {victim}; ip route del {victim}/32"
        );
        let got = lab.exec("rival", "spy-1", &["sh", "-c", &forged]);
        // `timeout` ended it, for nothing came.
        assert_eq!(got, "code 143", "over {interface}");
    }
}

/// One request of the REST API, as anybody could send it.
fn request(lab: &Lab, token: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(lab.directory().join("manager/api.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: lab\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// What an error says, but for the number of the request.
fn refusal(body: &str) -> Value {
    let mut error: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{body}"));
    error.as_object_mut().unwrap().remove("request_id").expect("errors name their request");
    error
}

fn nothing_through_the_api(lab: &Lab) {
    let file = lab.directory().join("rival.token");
    let path = file.to_str().unwrap();
    lab.ok(&["-p", "rival", "token", "create", "--role", "admin", "--out", path]);
    let token = std::fs::read_to_string(&file).unwrap();
    let rival =
        |method: &str, path: &str, body: &str| request(lab, token.trim(), method, path, body);
    // It is good for its own.
    let (status, body) = rival("GET", "/v1/projects/rival/vms/spy-1", "");
    assert_eq!((status, body.contains("spy-1")), (200, true), "{body}");

    let id = lab.vm("shop", "web-1")["id"].as_str().unwrap().to_owned();
    let exec = json!({"argv": ["true"], "stdin": "", "timeout_ms": 1000}).to_string();
    let set = json!({"cpu": "100m"}).to_string();
    for (method, path, body) in [
        ("GET", "", ""),
        ("PATCH", "", "{}"),
        ("DELETE", "", ""),
        ("GET", "/vms", ""),
        ("GET", "/vms/web-1", ""),
        ("GET", "/vms/web-1/explain", ""),
        ("GET", "/vms/web-1/logs", ""),
        ("POST", "/vms/web-1/exec", exec.as_str()),
        ("POST", "/vms/web-1/reboot", ""),
        ("PATCH", "/vms/web-1", set.as_str()),
        ("DELETE", "/vms/web-1", ""),
        ("GET", "/networks", ""),
        ("GET", "/networks/inner", ""),
        ("DELETE", "/networks/inner", ""),
        ("GET", "/images", ""),
    ] {
        // Word for word what is said of a project that there never was.
        let (status, theirs) = rival(method, &format!("/v1/projects/shop{path}"), body);
        assert_eq!(status, 404, "{method} {path}: {theirs}");
        let (_, nobodys) = rival(method, &format!("/v1/projects/null{path}"), body);
        assert_eq!(refusal(&theirs.replace("shop", "null")), refusal(&nobodys), "{method} {path}");
    }
    for (method, path) in [
        ("GET", "/v1/events?project=shop".to_owned()),
        ("GET", "/v1/events?project=rival&vm=web-1".to_owned()),
        ("GET", "/v1/projects/rival/vms/web-1".to_owned()),
        // Nor by its id, should it leak.
        ("GET", format!("/v1/projects/rival/vms/{id}")),
        ("GET", "/v1/projects/rival/networks/inner".to_owned()),
    ] {
        let (status, body) = rival(method, &path, "");
        assert_eq!(status, 404, "{path}: {body}");
    }
    for path in ["/v1/hosts", "/v1/settings"] {
        let (status, body) = rival("GET", path, "");
        assert_eq!(status, 403, "{path}: {body}");
    }
    // What it may list has nothing of the other's in it, and neither has a decision.
    for path in [
        "/v1/events?limit=1000",
        "/v1/events?after=18446744073709551615",
        "/v1/projects",
        "/v1/projects/rival/vms",
        "/v1/projects/rival/networks",
        "/v1/projects/rival/vms/spy-1/explain",
        "/v1/status",
        "/v1/tokens",
    ] {
        let (status, body) = rival("GET", path, "");
        assert_eq!(status, 200, "{path}: {body}");
        for word in ["shop", "web-", "inner", &id] {
            assert!(!body.contains(word), "{path} tells of `{word}`: {body}");
        }
    }
    // Nothing that was refused was done.
    assert_eq!(lab.vms("shop").len(), 3);
    assert_eq!(lab.vm("shop", "web-1")["resources"]["cpu"], "250m");
    assert_eq!(lab.vm("shop", "web-1")["generation"], 1);
}
