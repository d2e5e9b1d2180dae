//! A SPDY connection of any bytes: frames or a named error, bounded in memory, the same in any pieces; and what was
//! decoded is encoded to the same again.

use bytes::BytesMut;
use wasilet::server::spdy::frame::{Decoder, Encoder, Frame, MAX_CONTROL_BYTES};

/// All frames of `wire`, data put together, and whether it ended in an error.
fn decode(wire: &[u8], piece: usize) -> (Vec<Frame>, bool) {
    let (mut decoder, mut input, mut frames) = (Decoder::new(), BytesMut::new(), Vec::new());
    for bytes in wire.chunks(piece) {
        input.extend_from_slice(bytes);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(Frame::Data { data, .. })) if data.len() > wire.len() => panic!("data from nowhere"),
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
        assert!(input.len() < MAX_CONTROL_BYTES + 8 + piece, "what waits for the rest of a frame is bounded");
    }
    (frames, false)
}

/// Control frames only: data frames come in pieces.
fn control(frames: &[Frame]) -> Vec<Frame> {
    frames.iter().filter(|frame| !matches!(frame, Frame::Data { .. })).cloned().collect()
}

fn data(frames: &[Frame]) -> Vec<u8> {
    let pieces = frames.iter().filter_map(|frame| match frame {
        Frame::Data { data, .. } => Some(data.as_ref()),
        _ => None,
    });
    pieces.collect::<Vec<_>>().concat()
}

#[test]
fn spdy() {
    bolero::check!().for_each(|wire: &[u8]| {
        let (whole, failed) = decode(wire, usize::MAX);
        let (pieces, failed_in_pieces) = decode(wire, 3);
        assert_eq!(failed, failed_in_pieces);
        assert_eq!(control(&whole), control(&pieces));
        assert_eq!(data(&whole), data(&pieces));

        let (mut encoder, mut again) = (Encoder::new(), BytesMut::new());
        for frame in &whole {
            encoder.encode(frame, &mut again);
        }
        let (decoded, failed) = decode(&again, usize::MAX);
        assert!(!failed, "what was taken can be sent");
        assert_eq!(control(&decoded), control(&whole));
        assert_eq!(data(&decoded), data(&whole));
    });
}
