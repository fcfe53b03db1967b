use super::{Limits, openb};
use crate::data;

#[test]
fn the_published_lists_are_read() {
    let Some(folder) = data::folder("openb") else { return };
    let limits = Limits::default();
    let nodes = openb::nodes(&folder.join("openb_node_list_all_node.csv.xz"), &limits).unwrap();
    assert_eq!(nodes.len(), 1523);
    let nodes = openb::nodes(&folder.join("openb_node_list_gpu_node.csv.xz"), &limits).unwrap();
    assert_eq!(nodes.len(), 1213);
    let pods = openb::pods(&folder.join("openb_pod_list_gpuspec33.csv.xz"), &limits).unwrap();
    assert_eq!(pods.len(), 8152);
    assert!(pods.iter().any(|pod| pod.models.len() > 1));
    let capacity = crate::openb::capacity_milli(&nodes);
    let order = crate::openb::arrivals(&pods, capacity, 1, 1.3);
    let asked: u64 = order.iter().map(|at| pods[*at].gpu_milli_total()).sum();
    assert!(asked >= capacity * 13 / 10 && asked < capacity * 13 / 10 + 8000, "{asked}");
    assert_eq!(order, crate::openb::arrivals(&pods, capacity, 1, 1.3));
    assert_ne!(order, crate::openb::arrivals(&pods, capacity, 2, 1.3));
}
