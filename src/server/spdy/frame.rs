//! Frames of SPDY/3.1 (draft 3.1, section 2.2): control frames with a type, and data frames.
//!
//! In: bytes as they come off the connection. Out: frames, and bytes of frames. Pure: it opens nothing and waits for
//! nothing. Data frames are handed on in the pieces they arrive in, whatever their length.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::SpdyError;
use super::headers::{HeaderDecoder, HeaderEncoder, Headers};

/// Bytes of a control frame that are taken; those of Kubernetes' clients are under 200.
pub const MAX_CONTROL_BYTES: usize = 64 * 1024;
/// The most that the length field of a frame can say.
const MAX_LENGTH: usize = (1 << 24) - 1;
const VERSION: u16 = 3;
const HEADER_BYTES: usize = 8;
const FIN: u8 = 0x01;
const UNIDIRECTIONAL: u8 = 0x02;

mod kind {
    pub(super) const SYN_STREAM: u16 = 1;
    pub(super) const SYN_REPLY: u16 = 2;
    pub(super) const RST_STREAM: u16 = 3;
    pub(super) const SETTINGS: u16 = 4;
    pub(super) const PING: u16 = 6;
    pub(super) const GOAWAY: u16 = 7;
    pub(super) const HEADERS: u16 = 8;
    pub(super) const WINDOW_UPDATE: u16 = 9;
}

/// Why a stream is ended (section 2.6.3).
pub mod reset {
    /// It breaks the protocol.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// It was refused before anything was done for it.
    pub const REFUSED_STREAM: u32 = 3;
    /// It is no longer wanted.
    pub const CANCEL: u32 = 5;
    /// Its receiver does not keep up.
    pub const FLOW_CONTROL_ERROR: u32 = 7;
}

/// Why a connection is ended (section 2.6.6).
pub mod goaway {
    /// Nothing is wrong.
    pub const OK: u32 = 0;
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: u32 = 1;
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// Its id: odd from a client.
        stream: u32,
        /// The stream it belongs to, or 0.
        associated: u32,
        /// 0 (highest) to 7.
        priority: u8,
        /// The opener sends no data.
        fin: bool,
        /// The other end sends no data.
        unidirectional: bool,
        /// What it is.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// Its id.
        stream: u32,
        /// The accepter sends no data.
        fin: bool,
        /// The answer's headers.
        headers: Headers,
    },
    /// Ends a stream in both directions.
    RstStream {
        /// Its id.
        stream: u32,
        /// One of [`reset`].
        status: u32,
    },
    /// Settings: flags and id, and value.
    Settings(Vec<(u32, u32)>),
    /// Asks for the same back.
    Ping(u32),
    /// No more streams are taken.
    GoAway {
        /// The last one that was.
        last_stream: u32,
        /// One of [`goaway`].
        status: u32,
    },
    /// More headers of a stream.
    Headers {
        /// Its id.
        stream: u32,
        /// The sender sends no more.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// More may be sent on a stream.
    WindowUpdate {
        /// Its id.
        stream: u32,
        /// Bytes more.
        delta: u32,
    },
    /// Bytes of a stream: all of a frame's, or a piece of them.
    Data {
        /// Its id.
        stream: u32,
        /// The sender sends no more.
        fin: bool,
        /// The bytes.
        data: Bytes,
    },
}

/// Reads frames of one direction of a connection.
#[derive(Debug, Default)]
pub struct Decoder {
    headers: HeaderDecoder,
    data: Option<DataLeft>,
}

/// The data frame under way.
#[derive(Debug, Clone, Copy)]
struct DataLeft {
    stream: u32,
    fin: bool,
    left: usize,
}

impl Decoder {
    /// The state at the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next frame off `input`; `None` when more must be read for it.
    ///
    /// # Errors
    /// [`SpdyError`]; the connection cannot be read further then.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        loop {
            if let Some(data) = self.data {
                return Ok(self.piece(data, input));
            }
            let Some(header) = input.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
            let (mut header, flags) = (header.as_slice(), header[4]);
            let first = header.get_u32();
            let length = (header.get_u32() & 0x00ff_ffff) as usize;
            if first >> 31 == 0 {
                if first == 0 {
                    return Err(SpdyError::ZeroStream(0));
                }
                input.advance(HEADER_BYTES);
                self.data = Some(DataLeft { stream: first, fin: flags & FIN != 0, left: length });
                continue;
            }
            let (version, kind) = ((first >> 16) as u16 & 0x7fff, first as u16);
            if version != VERSION {
                return Err(SpdyError::Version(version));
            }
            if length > MAX_CONTROL_BYTES {
                return Err(SpdyError::Length { kind, length });
            }
            if input.len() < HEADER_BYTES + length {
                return Ok(None);
            }
            input.advance(HEADER_BYTES);
            let body = input.split_to(length);
            if let Some(frame) = self.control(kind, flags, &body)? {
                return Ok(Some(frame));
            }
        }
    }

    fn piece(&mut self, frame: DataLeft, input: &mut BytesMut) -> Option<Frame> {
        let count = frame.left.min(input.len());
        if count == 0 && frame.left > 0 {
            return None;
        }
        let left = frame.left - count;
        self.data = (left > 0).then_some(DataLeft { left, ..frame });
        let data = input.split_to(count).freeze();
        Some(Frame::Data { stream: frame.stream, fin: frame.fin && left == 0, data })
    }

    /// Reads a whole control frame; `None` for a type this protocol does not have, which is to be ignored.
    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Option<Frame>, SpdyError> {
        let fin = flags & FIN != 0;
        let wrong_length = || SpdyError::Length { kind, length: body.len() };
        let numbers = || match body.as_chunks::<4>() {
            (&[first, second], []) => Ok((u32::from_be_bytes(first), u32::from_be_bytes(second))),
            _ => Err(wrong_length()),
        };
        let stream_id = |raw: u32| match raw & 0x7fff_ffff {
            0 => Err(SpdyError::ZeroStream(kind)),
            stream => Ok(stream),
        };
        Ok(Some(match kind {
            kind::SYN_STREAM => {
                let (fixed, block) = body.split_first_chunk::<10>().ok_or_else(wrong_length)?;
                let mut fixed = fixed.as_slice();
                let (stream, associated, priority) = (fixed.get_u32(), fixed.get_u32(), fixed.get_u8());
                Frame::SynStream {
                    // The headers first: they belong to the connection's compression whatever the stream is.
                    headers: self.headers.decode(block)?,
                    stream: stream_id(stream)?,
                    associated: associated & 0x7fff_ffff,
                    priority: priority >> 5,
                    fin,
                    unidirectional: flags & UNIDIRECTIONAL != 0,
                }
            }
            kind::SYN_REPLY | kind::HEADERS => {
                let (stream, block) = body.split_first_chunk::<4>().ok_or_else(wrong_length)?;
                let headers = self.headers.decode(block)?;
                let stream = stream_id(u32::from_be_bytes(*stream))?;
                match kind {
                    kind::SYN_REPLY => Frame::SynReply { stream, fin, headers },
                    _ => Frame::Headers { stream, fin, headers },
                }
            }
            kind::RST_STREAM => {
                let (stream, status) = numbers()?;
                Frame::RstStream { stream: stream_id(stream)?, status }
            }
            kind::SETTINGS => {
                let (count, values) = body.split_first_chunk::<4>().ok_or_else(wrong_length)?;
                let (pairs, []) = values.as_chunks::<8>() else { return Err(wrong_length()) };
                if pairs.len() != u32::from_be_bytes(*count) as usize {
                    return Err(wrong_length());
                }
                let pair = |pair: &[u8; 8]| {
                    let mut pair = pair.as_slice();
                    (pair.get_u32(), pair.get_u32())
                };
                Frame::Settings(pairs.iter().map(pair).collect())
            }
            kind::PING => {
                let id = u32::from_be_bytes(body.try_into().map_err(|_| wrong_length())?);
                if id == 0 {
                    return Err(SpdyError::ZeroStream(kind));
                }
                Frame::Ping(id)
            }
            kind::GOAWAY => {
                let (last_stream, status) = numbers()?;
                Frame::GoAway { last_stream: last_stream & 0x7fff_ffff, status }
            }
            kind::WINDOW_UPDATE => {
                let (stream, delta) = numbers()?;
                // 0 is the connection itself, a window of 3.1.
                Frame::WindowUpdate { stream: stream & 0x7fff_ffff, delta: delta & 0x7fff_ffff }
            }
            _ => return Ok(None),
        }))
    }
}

/// Writes frames of one direction of a connection.
#[derive(Debug, Default)]
pub struct Encoder {
    headers: HeaderEncoder,
}

impl Encoder {
    /// The state at the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a frame. Data that is too much for one frame becomes several.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        match frame {
            Frame::Data { stream, fin, data } => {
                let mut rest = data.as_ref();
                loop {
                    let (piece, after) = rest.split_at(rest.len().min(MAX_LENGTH));
                    rest = after;
                    out.put_u32(stream & 0x7fff_ffff);
                    out.put_u32(u32::from(flag(*fin && rest.is_empty(), FIN)) << 24 | piece.len() as u32);
                    out.put_slice(piece);
                    if rest.is_empty() {
                        return;
                    }
                }
            }
            Frame::SynStream { stream, associated, priority, fin, unidirectional, headers } => {
                let mut body = Vec::with_capacity(64);
                body.put_u32(*stream);
                body.put_u32(*associated);
                body.put_u8(priority << 5);
                body.put_u8(0);
                self.headers.encode(headers, &mut body);
                control(kind::SYN_STREAM, flag(*fin, FIN) | flag(*unidirectional, UNIDIRECTIONAL), &body, out);
            }
            Frame::SynReply { stream, fin, headers } | Frame::Headers { stream, fin, headers } => {
                let mut body = Vec::with_capacity(64);
                body.put_u32(*stream);
                self.headers.encode(headers, &mut body);
                let kind = if matches!(frame, Frame::SynReply { .. }) { kind::SYN_REPLY } else { kind::HEADERS };
                control(kind, flag(*fin, FIN), &body, out);
            }
            Frame::Settings(values) => {
                let mut body = Vec::with_capacity(4 + 8 * values.len());
                body.put_u32(values.len() as u32);
                for (id, value) in values {
                    body.put_u32(*id);
                    body.put_u32(*value);
                }
                control(kind::SETTINGS, 0, &body, out);
            }
            Frame::Ping(id) => control(kind::PING, 0, &id.to_be_bytes(), out),
            Frame::RstStream { stream, status } => numbers(kind::RST_STREAM, *stream, *status, out),
            Frame::GoAway { last_stream, status } => numbers(kind::GOAWAY, *last_stream, *status, out),
            Frame::WindowUpdate { stream, delta } => numbers(kind::WINDOW_UPDATE, *stream, *delta, out),
        }
    }
}

fn control(kind: u16, flags: u8, body: &[u8], out: &mut BytesMut) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(u32::from(flags) << 24 | body.len() as u32);
    out.put_slice(body);
}

fn numbers(kind: u16, first: u32, second: u32, out: &mut BytesMut) {
    let mut body = [0; 8];
    body[..4].copy_from_slice(&first.to_be_bytes());
    body[4..].copy_from_slice(&second.to_be_bytes());
    control(kind, 0, &body, out);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let id = 1_u32..=0x7fff_ffff;
        let headers = prop::collection::btree_map("[a-z]{1,9}", "[ -~]{0,40}", 0..4)
            .prop_map(|map| map.iter().fold(Headers::new(), |headers, (name, value)| headers.with(name, value)));
        prop_oneof![
            (id.clone(), id.clone(), 0_u8..8, any::<bool>(), any::<bool>(), headers.clone()).prop_map(
                |(stream, associated, priority, fin, unidirectional, headers)| Frame::SynStream {
                    stream,
                    associated,
                    priority,
                    fin,
                    unidirectional,
                    headers
                }
            ),
            (id.clone(), any::<bool>(), headers.clone()).prop_map(|(stream, fin, headers)| Frame::SynReply {
                stream,
                fin,
                headers
            }),
            (id.clone(), any::<bool>(), headers).prop_map(|(stream, fin, headers)| Frame::Headers {
                stream,
                fin,
                headers
            }),
            (id.clone(), any::<u32>()).prop_map(|(stream, status)| Frame::RstStream { stream, status }),
            prop::collection::vec(any::<(u32, u32)>(), 0..4).prop_map(Frame::Settings),
            id.clone().prop_map(Frame::Ping),
            (id.clone(), any::<u32>()).prop_map(|(last_stream, status)| Frame::GoAway { last_stream, status }),
            (id.clone(), 0_u32..=0x7fff_ffff).prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
            (id, any::<bool>(), prop::collection::vec(any::<u8>(), 0..300))
                .prop_map(|(stream, fin, data)| Frame::Data { stream, fin, data: data.into() }),
        ]
    }

    /// Pieces of one data frame put together again.
    fn joined(frames: Vec<Frame>) -> Vec<Frame> {
        let mut all: Vec<Frame> = Vec::new();
        let mut open = false;
        for frame in frames {
            match (all.last_mut(), frame) {
                (Some(Frame::Data { stream, fin, data }), Frame::Data { stream: next, fin: last, data: more })
                    if open && *stream == next =>
                {
                    *data = [data.as_ref(), more.as_ref()].concat().into();
                    *fin = last;
                }
                (_, frame) => all.push(frame),
            }
            open = true;
        }
        all
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire_in_any_pieces(frame in any_frame(), again in any_frame(), cut in 1_usize..40) {
            let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
            for frame in [frame, again] {
                let mut wire = BytesMut::new();
                encoder.encode(&frame, &mut wire);
                let (mut input, mut frames) = (BytesMut::new(), Vec::new());
                for piece in wire.chunks(cut) {
                    input.extend_from_slice(piece);
                    while let Some(frame) = decoder.decode(&mut input).unwrap() {
                        frames.push(frame);
                    }
                }
                prop_assert!(input.is_empty());
                prop_assert_eq!(joined(frames), vec![frame]);
            }
        }
    }

    #[test]
    fn frames_are_the_bytes_of_the_protocol() {
        for (case, frame, expected) in [
            ("a ping", Frame::Ping(1), &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1][..]),
            (
                "a reset",
                Frame::RstStream { stream: 5, status: reset::CANCEL },
                &[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 5],
            ),
            (
                "the last data",
                Frame::Data { stream: 3, fin: true, data: Bytes::from_static(b"ab") },
                &[0, 0, 0, 3, 1, 0, 0, 2, b'a', b'b'],
            ),
        ] {
            let mut out = BytesMut::new();
            Encoder::new().encode(&frame, &mut out);
            assert_eq!(out, expected, "{case}");
        }
    }

    #[test]
    fn what_a_client_written_in_go_sends_is_read() {
        // As `moby/spdystream` v0.5.1 writes it.
        let wire = "\
            80030001000000290000000100000000000078f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ff\
            ff800300010000001700000003000000000000c22e555c92929907000000ffff80030001000000190000000500000000\
            0000c22ac5565c92925f5a02000000ffff800300060000000400000001000000030000000568656c6c6f000000030100\
            00008003000300000008000000010000000580030007000000080000000000000000";
        let (mut input, mut decoder) = (BytesMut::from(hex::decode(wire).unwrap().as_slice()), Decoder::new());
        let syn = |stream, kind| {
            let headers = Headers::new().with("streamtype", kind);
            Frame::SynStream { stream, associated: 0, priority: 0, fin: false, unidirectional: false, headers }
        };
        for expected in [
            syn(1, "error"),
            syn(3, "stdin"),
            syn(5, "stdout"),
            Frame::Ping(1),
            Frame::Data { stream: 3, fin: false, data: Bytes::from_static(b"hello") },
            Frame::Data { stream: 3, fin: true, data: Bytes::new() },
            Frame::RstStream { stream: 1, status: reset::CANCEL },
            Frame::GoAway { last_stream: 0, status: goaway::OK },
        ] {
            assert_eq!(decoder.decode(&mut input), Ok(Some(expected)));
        }
        assert_eq!(decoder.decode(&mut input), Ok(None));
    }

    #[test]
    fn a_frame_outside_the_protocol_is_named() {
        for (case, bytes, expected) in [
            ("HTTP", &b"GET / HTTP/1.1\r\n"[..], None),
            ("SPDY/2", &[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1], Some(SpdyError::Version(2))),
            ("a huge control frame", &[0x80, 3, 0, 1, 0, 255, 255, 255], {
                Some(SpdyError::Length { kind: 1, length: MAX_LENGTH })
            }),
            ("a short reset", &[0x80, 3, 0, 3, 0, 0, 0, 4, 0, 0, 0, 1], Some(SpdyError::Length { kind: 3, length: 4 })),
            ("a ping of nobody", &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 0], Some(SpdyError::ZeroStream(6))),
            ("data of stream 0", &[0, 0, 0, 0, 0, 0, 0, 0], Some(SpdyError::ZeroStream(0))),
            ("settings that lie", &[0x80, 3, 0, 4, 0, 0, 0, 4, 255, 255, 255, 255], {
                Some(SpdyError::Length { kind: 4, length: 4 })
            }),
            ("a type of the future", &[0x80, 3, 0, 99, 0, 0, 0, 1, 7], None),
        ] {
            let mut input = BytesMut::from(bytes);
            let result = Decoder::new().decode(&mut input);
            assert_eq!(result.err(), expected, "{case}");
        }
    }
}
