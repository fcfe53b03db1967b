//! Bodies of the users' API and of agents' reports: decoding never panics, and what was decoded
//! encodes and decodes to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_api::{cluster, v1};
use serde::{Serialize, de::DeserializeOwned};

fn round_trip<T: DeserializeOwned + Serialize>(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(data) else { return };
    let text = serde_json::to_string(&value).expect("what was decoded encodes");
    let again: T = serde_json::from_str(&text).expect("what was encoded decodes");
    assert_eq!(text, serde_json::to_string(&again).expect("it encodes again"));
}

fuzz_target!(|data: &[u8]| {
    round_trip::<v1::CreateVmsRequest>(data);
    round_trip::<v1::SetVmRequest>(data);
    round_trip::<v1::ExplainRequest>(data);
    round_trip::<v1::CreateProjectRequest>(data);
    round_trip::<v1::CreateNetworkRequest>(data);
    round_trip::<v1::CreateImageRequest>(data);
    round_trip::<v1::SetSettingsRequest>(data);
    round_trip::<cluster::AgentReport>(data);
    round_trip::<cluster::DesiredHost>(data);
    round_trip::<cluster::JoinRequest>(data);
});
