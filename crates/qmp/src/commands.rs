//! The commands that we use, typed. Each is one call of [`Qmp::execute`]; its errors are those.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::connection::Qmp;
use crate::error::QmpError;
use crate::types::{
    BalloonInfo, BlockDevice, ChardevInfo, CpuFast, GuestStats, HotpluggableCpu, MemoryDevice,
    NameInfo, QomProperty, StatusInfo, UuidInfo, VersionInfo,
};

/// All fallible methods here fail as [`Qmp::execute`] does, and when the answer has a shape that
/// they cannot read.
#[expect(clippy::missing_errors_doc, reason = "the same for each; said once above")]
impl Qmp {
    pub(crate) async fn query<T: DeserializeOwned>(
        &self,
        command: &str,
        arguments: Value,
    ) -> Result<T, QmpError> {
        let value = self.execute(command, arguments).await?;
        serde_json::from_value(value)
            .map_err(|source| QmpError::ReplyShape { command: command.to_owned(), source })
    }

    pub async fn query_version(&self) -> Result<VersionInfo, QmpError> {
        self.query("query-version", Value::Null).await
    }

    pub async fn query_status(&self) -> Result<StatusInfo, QmpError> {
        self.query("query-status", Value::Null).await
    }

    pub async fn query_name(&self) -> Result<NameInfo, QmpError> {
        self.query("query-name", Value::Null).await
    }

    pub async fn query_uuid(&self) -> Result<UuidInfo, QmpError> {
        self.query("query-uuid", Value::Null).await
    }

    /// The plugged vCPUs with their host threads. Does not interrupt the guest.
    pub async fn query_cpus_fast(&self) -> Result<Vec<CpuFast>, QmpError> {
        self.query("query-cpus-fast", Value::Null).await
    }

    /// Every place for a vCPU, used or free, highest first (QEMU's order).
    pub async fn query_hotpluggable_cpus(&self) -> Result<Vec<HotpluggableCpu>, QmpError> {
        self.query("query-hotpluggable-cpus", Value::Null).await
    }

    /// The memory devices; the memory that the machine began with is not among them.
    pub async fn query_memory_devices(&self) -> Result<Vec<MemoryDevice>, QmpError> {
        let values: Vec<Value> = self.query("query-memory-devices", Value::Null).await?;
        Ok(values.iter().filter_map(MemoryDevice::from_value).collect())
    }

    pub async fn query_block(&self) -> Result<Vec<BlockDevice>, QmpError> {
        self.query("query-block", Value::Null).await
    }

    pub async fn query_chardev(&self) -> Result<Vec<ChardevInfo>, QmpError> {
        self.query("query-chardev", Value::Null).await
    }

    pub async fn query_balloon(&self) -> Result<BalloonInfo, QmpError> {
        self.query("query-balloon", Value::Null).await
    }

    /// Asks the balloon driver to leave the guest `target_bytes`. Returns at once: the guest
    /// follows as it can, see BALLOON_CHANGE and [`Self::query_balloon`].
    pub async fn balloon(&self, target_bytes: u64) -> Result<(), QmpError> {
        self.execute("balloon", json!({"value": target_bytes})).await.map(drop)
    }

    /// Lets the balloon at `qom_path` ask its guest for statistics every `seconds` (0: never).
    pub async fn set_guest_stats_interval(
        &self,
        qom_path: &str,
        seconds: u32,
    ) -> Result<(), QmpError> {
        self.qom_set(qom_path, "guest-stats-polling-interval", &seconds).await
    }

    /// The last statistics that the guest gave to the balloon at `qom_path`.
    pub async fn guest_stats(&self, qom_path: &str) -> Result<GuestStats, QmpError> {
        Ok(GuestStats::from_value(&self.qom_get(qom_path, "guest-stats").await?))
    }

    pub async fn qom_get(&self, path: &str, property: &str) -> Result<Value, QmpError> {
        self.execute("qom-get", json!({"path": path, "property": property})).await
    }

    pub async fn qom_set<T: Serialize + Sync + ?Sized>(
        &self,
        path: &str,
        property: &str,
        value: &T,
    ) -> Result<(), QmpError> {
        let value = serde_json::to_value(value)
            .map_err(|source| QmpError::Arguments { command: "qom-set".to_owned(), source })?;
        let arguments = json!({"path": path, "property": property, "value": value});
        self.execute("qom-set", arguments).await.map(drop)
    }

    pub async fn qom_list(&self, path: &str) -> Result<Vec<QomProperty>, QmpError> {
        self.query("qom-list", json!({"path": path})).await
    }

    /// Plugs a device. `arguments` has at least `driver`, and `id` to find it again.
    pub async fn device_add(&self, arguments: Value) -> Result<(), QmpError> {
        self.execute("device_add", arguments).await.map(drop)
    }

    /// Asks the guest to let a device go; it is gone at DEVICE_DELETED, not before.
    pub async fn device_del(&self, id: &str) -> Result<(), QmpError> {
        self.execute("device_del", json!({"id": id})).await.map(drop)
    }

    /// Plugs a vCPU into the free place `slot` under the device id `id`.
    pub async fn plug_cpu(&self, id: &str, slot: &HotpluggableCpu) -> Result<(), QmpError> {
        let mut arguments = serde_json::to_value(&slot.props)
            .map_err(|source| QmpError::Arguments { command: "device_add".to_owned(), source })?;
        // NUMA placement is the machine's own; device_add refuses it on machines without nodes.
        if let Some(fields) = arguments.as_object_mut() {
            fields.remove("node-id");
        }
        arguments["driver"] = json!(slot.driver);
        arguments["id"] = json!(id);
        self.device_add(arguments).await
    }

    /// Creates an object of type `kind` (`iothread`, `throttle-group`, ...).
    pub async fn object_add(&self, arguments: Value) -> Result<(), QmpError> {
        self.execute("object-add", arguments).await.map(drop)
    }

    pub async fn object_del(&self, id: &str) -> Result<(), QmpError> {
        self.execute("object-del", json!({"id": id})).await.map(drop)
    }

    pub async fn blockdev_add(&self, arguments: Value) -> Result<(), QmpError> {
        self.execute("blockdev-add", arguments).await.map(drop)
    }

    pub async fn blockdev_del(&self, node: &str) -> Result<(), QmpError> {
        self.execute("blockdev-del", json!({"node-name": node})).await.map(drop)
    }

    /// Resizes the block node `node` to `size_bytes`; the guest sees it at once.
    pub async fn block_resize(&self, node: &str, size_bytes: u64) -> Result<(), QmpError> {
        self.execute("block_resize", json!({"node-name": node, "size": size_bytes})).await.map(drop)
    }

    /// Presses the machine's ACPI power button.
    pub async fn system_powerdown(&self) -> Result<(), QmpError> {
        self.execute("system_powerdown", Value::Null).await.map(drop)
    }

    pub async fn system_reset(&self) -> Result<(), QmpError> {
        self.execute("system_reset", Value::Null).await.map(drop)
    }

    /// Stops all vCPUs.
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.execute("stop", Value::Null).await.map(drop)
    }

    /// Lets the vCPUs run again.
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.execute("cont", Value::Null).await.map(drop)
    }

    /// Ends QEMU. The connection's end right after it is success too.
    pub async fn quit(&self) -> Result<(), QmpError> {
        match self.execute("quit", Value::Null).await {
            Ok(_) | Err(QmpError::Closed { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
