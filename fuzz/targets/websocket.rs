//! A WebSocket message of any bytes: a frame or a named error in every protocol, and what was decoded is encoded to the
//! same again.

use bytes::Bytes;
use wasilet::server::channel::{Frame, Message, Outcome, Wire};

#[test]
fn websocket() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let message = Bytes::copy_from_slice(bytes);
        for wire in [Wire::BINARY, Wire::TEXT, Wire::CLOSING] {
            match wire.decode(&message) {
                // Channels above '0' + 127 are two bytes of text, and nobody has so many.
                Ok(Message::Data(channel, data)) if channel < 79 => {
                    let again = wire.encode(channel, &data);
                    assert_eq!(wire.decode(&again), Ok(Message::Data(channel, data)));
                }
                Ok(Message::Empty) => assert!(bytes.is_empty()),
                Ok(Message::Close(_)) => assert!(wire.closes && bytes.len() == 2),
                Ok(Message::Data(..)) | Err(_) => {}
            }
        }
        if let Ok(frame) = Frame::decode(&message) {
            assert_eq!(frame.encode(), message);
        }
        if let Ok(outcome) = Outcome::from_status(bytes) {
            // What it says can be said again.
            let again = Outcome::from_status(outcome.to_status().as_bytes());
            assert_eq!(again.expect("our own Status is one"), outcome);
        }
    });
}
