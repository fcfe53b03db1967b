//! Lines of JSON to messages and back.
//!
//! QMP frames with line ends: each message is one JSON object on one line, ended by CR LF (QEMU)
//! or LF. The length of a line is bounded *before* it is parsed, and the search for the line's end
//! goes on where it stopped, so that a slow stream of a very long line costs linear time.

use bytes::{Buf, BufMut, BytesMut};
use serde::Deserialize;
use serde_json::Value;
use tokio_util::codec::{Decoder, Encoder};

use crate::event::{Event, Timestamp};
use crate::types::Greeting;

/// The longest line that is accepted, in bytes without the line's end. The longest honest answer
/// (`query-qmp-schema`) is well under 1 MiB.
pub const MAX_LINE_BYTES: usize = 16 * 1024 * 1024;

/// The longest event, in bytes: events are kept for receivers that lag, so that their number times
/// this bounds the memory that a hostile peer can fill. Honest ones stay under 2 KiB.
pub const MAX_EVENT_BYTES: usize = 64 * 1024;

/// Why a line is not a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    #[error("a monitor line exceeds {limit} bytes")]
    LineTooLong { limit: usize },
    #[error("a monitor event exceeds {limit} bytes")]
    EventTooLong { limit: usize },
    #[error("a monitor line is not a JSON object of the protocol")]
    Json(#[source] serde_json::Error),
    #[error("a monitor line is neither greeting, answer nor event")]
    UnknownMessage,
    #[error("cannot read from or write to the monitor socket")]
    Io(#[source] std::io::Error),
}

// tokio-util's `Decoder` demands this conversion.
impl From<std::io::Error> for CodecError {
    fn from(source: std::io::Error) -> Self {
        Self::Io(source)
    }
}

/// One message from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The first message on each connection.
    Greeting(Greeting),
    /// A command succeeded. `id` is what the command carried; absent when it carried none.
    Return { id: Option<Value>, value: Value },
    /// A command was refused. Without `id` when QEMU could not even parse it.
    Refusal { id: Option<Value>, class: String, description: String },
    /// Something happened.
    Event(Event),
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "QMP")]
    qmp: Option<Greeting>,
    #[serde(rename = "return", default, deserialize_with = "present")]
    value: Option<Value>,
    error: Option<WireRefusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    timestamp: Option<Timestamp>,
    id: Option<Value>,
}

/// Keeps `"return": null` apart from no `return` at all.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
struct WireRefusal {
    class: String,
    desc: String,
}

fn parse_line(line: &[u8]) -> Result<Message, CodecError> {
    let wire: Wire = serde_json::from_slice(line).map_err(CodecError::Json)?;
    if let Some(name) = wire.event {
        if line.len() > MAX_EVENT_BYTES {
            return Err(CodecError::EventTooLong { limit: MAX_EVENT_BYTES });
        }
        let timestamp = wire.timestamp.unwrap_or_default();
        Ok(Message::Event(Event { name, data: wire.data, timestamp }))
    } else if let Some(refusal) = wire.error {
        Ok(Message::Refusal { id: wire.id, class: refusal.class, description: refusal.desc })
    } else if let Some(value) = wire.value {
        Ok(Message::Return { id: wire.id, value })
    } else if let Some(greeting) = wire.qmp {
        Ok(Message::Greeting(greeting))
    } else {
        Err(CodecError::UnknownMessage)
    }
}

/// Decodes the first message of a buffer; `None` when no complete line is there yet.
///
/// # Errors
/// A line that is too long or is not a message of the protocol.
pub fn decode(buffer: &[u8]) -> Result<Option<Message>, CodecError> {
    QmpCodec::default().decode(&mut BytesMut::from(buffer))
}

/// The codec as tokio-util wants it: bytes in, [`Message`]s out, JSON values in, lines out.
#[derive(Debug)]
pub struct QmpCodec {
    /// Bytes of the buffer already searched for a line's end.
    searched: usize,
    limit: usize,
}

impl Default for QmpCodec {
    fn default() -> Self {
        Self::with_limit(MAX_LINE_BYTES)
    }
}

impl QmpCodec {
    /// A codec that refuses lines longer than `limit` bytes.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        Self { searched: 0, limit }
    }
}

impl Decoder for QmpCodec {
    type Item = Message;
    type Error = CodecError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Message>, CodecError> {
        loop {
            let from = self.searched.min(buffer.len());
            let Some(offset) = buffer[from..].iter().position(|byte| *byte == b'\n') else {
                if buffer.len() > self.limit {
                    return Err(CodecError::LineTooLong { limit: self.limit });
                }
                self.searched = buffer.len();
                return Ok(None);
            };
            let end = from + offset;
            self.searched = 0;
            if end > self.limit {
                return Err(CodecError::LineTooLong { limit: self.limit });
            }
            let line = buffer.split_to(end);
            buffer.advance(1);
            let line = line.trim_ascii();
            if !line.is_empty() {
                return parse_line(line).map(Some);
            }
        }
    }

    /// A half line at the end of the stream is dropped: the connection is over either way.
    fn decode_eof(&mut self, buffer: &mut BytesMut) -> Result<Option<Message>, CodecError> {
        let message = self.decode(buffer)?;
        if message.is_none() {
            buffer.clear();
            self.searched = 0;
        }
        Ok(message)
    }
}

impl Encoder<&Value> for QmpCodec {
    type Error = CodecError;

    fn encode(&mut self, value: &Value, buffer: &mut BytesMut) -> Result<(), CodecError> {
        serde_json::to_writer(buffer.writer(), value).map_err(CodecError::Json)?;
        buffer.put_u8(b'\n');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_four_kinds_of_message() {
        let greeting = br#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}
"#;
        assert!(
            matches!(decode(greeting), Ok(Some(Message::Greeting(g))) if g.version.qemu.major == 10)
        );
        assert_eq!(
            decode(b"{\"return\": {}, \"id\": 7}\r\n").unwrap(),
            Some(Message::Return { id: Some(json!(7)), value: json!({}) })
        );
        assert_eq!(
            decode(b"\r\n{\"return\": null}\n").unwrap(),
            Some(Message::Return { id: None, value: Value::Null })
        );
        assert_eq!(
            decode(
                b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": \"a\"}\n"
            )
            .unwrap(),
            Some(Message::Refusal {
                id: Some(json!("a")),
                class: "GenericError".into(),
                description: "no".into()
            })
        );
        let event =
            br#"{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "NEW_IN_12", "data": {"x": 1}}
"#;
        let Ok(Some(Message::Event(event))) = decode(event) else { panic!("an event") };
        assert_eq!((event.name.as_str(), &event.data), ("NEW_IN_12", &json!({"x": 1})));
    }

    #[test]
    fn refuses_what_is_no_message() {
        assert!(matches!(decode(b"{}\n"), Err(CodecError::UnknownMessage)));
        assert!(matches!(decode(b"[]\n"), Err(CodecError::Json(_) | CodecError::UnknownMessage)));
        assert!(matches!(decode(b"\xff\xfe\n"), Err(CodecError::Json(_))));
        assert!(matches!(decode(b"{\"return\": {}"), Ok(None)));
        let deep = format!("{{\"return\": {}\n", "[".repeat(100_000));
        assert!(matches!(decode(deep.as_bytes()), Err(CodecError::Json(_))));
    }

    #[test]
    fn a_line_is_bounded_whether_it_ends_or_not() {
        let mut codec = QmpCodec::with_limit(64);
        let mut endless = BytesMut::from(&[b' '; 65][..]);
        assert!(matches!(codec.decode(&mut endless), Err(CodecError::LineTooLong { limit: 64 })));
        let event = format!("{{\"event\": \"A\", \"data\": \"{}\"}}\n", "x".repeat(70_000));
        assert!(matches!(decode(event.as_bytes()), Err(CodecError::EventTooLong { .. })));
        let mut codec = QmpCodec::with_limit(64);
        let mut ended = BytesMut::from(format!("{}\n", "x".repeat(65)).as_bytes());
        assert!(matches!(codec.decode(&mut ended), Err(CodecError::LineTooLong { limit: 64 })));
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{1,8}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            drop(decode(&bytes));
        }

        #[test]
        fn almost_messages_never_panic(text in "\\{\"(QMP|return|error|event|id|data|timestamp)\":[ -~]{0,60}\\}?\n") {
            drop(decode(text.as_bytes()));
        }

        /// However the stream is cut into reads, the same messages come out in the same order.
        #[test]
        fn cuts_do_not_matter(
            values in prop::collection::vec(json_value(), 1..6),
            cuts in prop::collection::vec(1_usize..40, 0..60),
        ) {
            let mut stream = BytesMut::new();
            let mut encoder = QmpCodec::default();
            for (id, value) in values.iter().enumerate() {
                encoder.encode(&json!({"return": value, "id": id}), &mut stream).unwrap();
            }
            let mut decoder = QmpCodec::default();
            let mut buffer = BytesMut::new();
            let mut seen = Vec::new();
            let mut cuts = cuts.into_iter();
            while !stream.is_empty() {
                let size = cuts.next().unwrap_or(usize::MAX).min(stream.len());
                buffer.extend_from_slice(&stream.split_to(size));
                while let Some(message) = decoder.decode(&mut buffer).unwrap() {
                    seen.push(message);
                }
            }
            let wanted: Vec<_> = values
                .into_iter()
                .enumerate()
                .map(|(id, value)| Message::Return { id: Some(json!(id)), value })
                .collect();
            prop_assert_eq!(seen, wanted);
        }
    }
}
