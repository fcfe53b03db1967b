//! Events: open by construction, with a typed view of those that we act on.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// When QEMU saw the event, by the host's real-time clock. Both are -1 when it could not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    pub seconds: i64,
    pub microseconds: i64,
}

/// An event as it came, known to us or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub name: String,
    pub data: Value,
    pub timestamp: Timestamp,
}

/// The typed view of an [`Event`]. A field that QEMU left out reads as empty or false.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// QEMU is about to end. `guest`: the guest asked for it; `reason` is QEMU's word
    /// (`guest-shutdown`, `guest-reset` under `-no-reboot`, `host-qmp-quit`, `host-signal`, ...).
    Shutdown {
        guest: bool,
        reason: String,
    },
    /// The machine was reset, by the guest or by `system_reset`.
    Reset {
        guest: bool,
        reason: String,
    },
    /// The guest was asked to power down.
    Powerdown,
    Stop,
    Resume,
    Suspend,
    Wakeup,
    /// The balloon's size moved: `actual` is the memory that the guest now has, in bytes.
    BalloonChange {
        actual: u64,
    },
    /// The guest's firmware answered a hot-plug or -unplug. `status` 0 is success.
    AcpiDeviceOst {
        device: Option<String>,
        slot: String,
        slot_type: String,
        source: i64,
        status: i64,
    },
    DeviceDeleted {
        device: Option<String>,
        path: String,
    },
    DeviceUnplugGuestError {
        device: Option<String>,
        path: String,
    },
    BlockIoError {
        device: String,
        node_name: Option<String>,
        operation: String,
        action: String,
        reason: String,
    },
    /// `action`: what QEMU does about it (`pause`, `poweroff`, `run`).
    GuestPanicked {
        action: String,
    },
    Watchdog {
        action: String,
    },
    RtcChange,
    BlockJobCompleted {
        device: String,
    },
    Migration {
        status: String,
    },
    /// Anything else: see the event's own name and data.
    Other,
}

impl Event {
    /// Reads the event as one of those that we know.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        match self.name.as_str() {
            "SHUTDOWN" => {
                EventKind::Shutdown { guest: self.flag("guest"), reason: self.text("reason") }
            }
            "RESET" => EventKind::Reset { guest: self.flag("guest"), reason: self.text("reason") },
            "POWERDOWN" => EventKind::Powerdown,
            "STOP" => EventKind::Stop,
            "RESUME" => EventKind::Resume,
            "SUSPEND" => EventKind::Suspend,
            "WAKEUP" => EventKind::Wakeup,
            "BALLOON_CHANGE" => self
                .data
                .get("actual")
                .and_then(Value::as_u64)
                .map_or(EventKind::Other, |actual| EventKind::BalloonChange { actual }),
            "ACPI_DEVICE_OST" => self.ost(),
            "DEVICE_DELETED" => EventKind::DeviceDeleted {
                device: self.optional("device"),
                path: self.text("path"),
            },
            "DEVICE_UNPLUG_GUEST_ERROR" => EventKind::DeviceUnplugGuestError {
                device: self.optional("device"),
                path: self.text("path"),
            },
            "BLOCK_IO_ERROR" => EventKind::BlockIoError {
                device: self.text("device"),
                node_name: self.optional("node-name"),
                operation: self.text("operation"),
                action: self.text("action"),
                reason: self.text("reason"),
            },
            "GUEST_PANICKED" => EventKind::GuestPanicked { action: self.text("action") },
            "WATCHDOG" => EventKind::Watchdog { action: self.text("action") },
            "RTC_CHANGE" => EventKind::RtcChange,
            "BLOCK_JOB_COMPLETED" => EventKind::BlockJobCompleted { device: self.text("device") },
            "MIGRATION" => EventKind::Migration { status: self.text("status") },
            _ => EventKind::Other,
        }
    }

    fn ost(&self) -> EventKind {
        let Some(info) = self.data.get("info") else { return EventKind::Other };
        let text = |key: &str| info.get(key).and_then(Value::as_str).map(str::to_owned);
        let number = |key: &str| info.get(key).and_then(Value::as_i64);
        let (Some(source), Some(status)) = (number("source"), number("status")) else {
            return EventKind::Other;
        };
        EventKind::AcpiDeviceOst {
            device: text("device"),
            slot: text("slot").unwrap_or_default(),
            slot_type: text("slot-type").unwrap_or_default(),
            source,
            status,
        }
    }

    fn flag(&self, key: &str) -> bool {
        self.data.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    fn optional(&self, key: &str) -> Option<String> {
        self.data.get(key).and_then(Value::as_str).map(str::to_owned)
    }

    fn text(&self, key: &str) -> String {
        self.optional(key).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(name: &str, data: Value) -> EventKind {
        Event { name: name.into(), data, timestamp: Timestamp::default() }.kind()
    }

    #[test]
    fn typed_views() {
        assert_eq!(
            event("SHUTDOWN", json!({"guest": true, "reason": "guest-shutdown"})),
            EventKind::Shutdown { guest: true, reason: "guest-shutdown".into() }
        );
        assert_eq!(
            event(
                "ACPI_DEVICE_OST",
                json!({"info": {"device": "cpu1", "slot": "1", "slot-type": "CPU", "source": 1, "status": 0}})
            ),
            EventKind::AcpiDeviceOst {
                device: Some("cpu1".into()),
                slot: "1".into(),
                slot_type: "CPU".into(),
                source: 1,
                status: 0
            }
        );
        assert_eq!(
            event("BALLOON_CHANGE", json!({"actual": 5})),
            EventKind::BalloonChange { actual: 5 }
        );
    }

    #[test]
    fn odd_data_reads_as_other_or_empty() {
        assert_eq!(event("BALLOON_CHANGE", json!({"actual": -5})), EventKind::Other);
        assert_eq!(event("ACPI_DEVICE_OST", json!([])), EventKind::Other);
        assert_eq!(event("FROM_THE_FUTURE", Value::Null), EventKind::Other);
        assert_eq!(
            event("SHUTDOWN", json!(7)),
            EventKind::Shutdown { guest: false, reason: String::new() }
        );
    }
}
